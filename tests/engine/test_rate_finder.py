"""The search for a learning rate, and that it changes nothing."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stvid.cli import main
from stvid.engine import rate_finder
from stvid.engine.rate_finder import steepest
from stvid.engine.task import VideoTask


@pytest.fixture
def options(tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    videos = make_dataset(tmp_path / "videos", classes=("a", "b"), per_class=4)
    values = {
        "config": "uniformer_xxs_folder",
        "model.hyperparameters": "{depth: [1, 1, 1, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}",
        "data.train": str(videos),
        "data.val": str(videos),
        "data.batch_size": "4",
        "data.workers": "0",
        "protocol.frames": "4",
        "protocol.short_side": "40",
        "protocol.crop": "32",
        "trainer.accelerator": "cpu",
        "optim.base_batch": "8",
    }
    return [f"--{key}={value}" for key, value in values.items()]


def test_the_rate_at_which_the_loss_falls_fastest() -> None:
    rates = [10 ** (-6 + place / 20) for place in range(100)]
    losses = [2 - 1 / (1 + math.exp(-(math.log10(rate) + 3) * 4)) for rate in rates]  # steepest at 1e-3
    place = steepest(rates, losses)
    assert place is not None and rates[place] == pytest.approx(1e-3, rel=0.15)
    losses[80:] = [math.nan] * 20
    assert steepest(rates, losses) == place
    assert steepest(rates, [1 + rate for rate in rates]) is None
    assert steepest(rates[:12], losses[:12]) is None


def test_it_prints_a_rate_and_changes_nothing(
    options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", *options, "--out", "run", "--trainer.max_epochs=1"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["train", *options, "--out", "run", "--find_lr"]) == 0
    printed = capsys.readouterr().out
    found = printed.split("found ")[1]
    assert "for 4 clips a step: --optim.lr " in found and "val_" not in printed
    with open("run/lr_find.csv", newline="") as file:
        curve = [(float(row["lr"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert 20 < len(curve) <= 101 and curve[0][0] == pytest.approx(1e-7, rel=0.5)
    rate, lr = float(found.split("learning rate ")[1].split()[0]), float(found.split("--optim.lr ")[1].split()[0])
    assert 1e-7 < rate < 1 and lr == pytest.approx(2 * rate, rel=0.1)  # base_batch 8
    drawn = {tmp_path / "run" / "lr_find.png"} if importlib.util.find_spec("matplotlib") else set()
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {tmp_path / "run" / "lr_find.csv"} | drawn
    assert {path: after[path] for path in before} == before


def test_groups_keep_their_share_of_the_rate(
    options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used: list[dict[str, float]] = []

    class Recorded(rate_finder._SearchTask):
        def configure_optimizers(self) -> dict[str, Any]:
            configured = super().configure_optimizers()
            optimizer = configured["optimizer"]
            optimizer.register_step_pre_hook(
                lambda *_: used.append({group["name"]: group["lr"] for group in optimizer.param_groups})
            )
            return configured

    monkeypatch.setattr(rate_finder, "_SearchTask", Recorded)
    monkeypatch.setattr(rate_finder, "STEPS", 20)
    main(["train", *options, "--find_lr", "--optim.backbone_scale=0.1"])  # 20 steps may be too few for a rate
    assert len(used) > 10
    for rates in used:
        assert rates["backbone-decay"] == pytest.approx(0.1 * rates["head-decay"])
    assert (tmp_path / "runs" / "uniformer_xxs_folder-lr" / "lr_find.csv").is_file()


def test_a_loss_that_explodes_ends_the_search_and_is_no_error(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = VideoTask.training_step
    steps = []

    def explode(self: VideoTask, batch: Any, batch_idx: int) -> torch.Tensor:
        steps.append(batch_idx)
        loss = step(self, batch, batch_idx)
        if len(steps) > 30:
            self.on_broken_loss(math.inf, batch_idx)
        return loss / len(steps)

    monkeypatch.setattr(VideoTask, "training_step", explode)
    assert main(["train", *options, "--find_lr"]) == 0
    assert 30 <= len(steps) <= 33 and "found     learning rate" in capsys.readouterr().out


def test_a_loss_that_never_falls(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = VideoTask.training_step
    steps = []

    def rise(self: VideoTask, batch: Any, batch_idx: int) -> torch.Tensor:
        steps.append(batch_idx)
        return step(self, batch, batch_idx) * 0 + 1 + 0.01 * len(steps)

    monkeypatch.setattr(VideoTask, "training_step", rise)
    monkeypatch.setattr(rate_finder, "STEPS", 25)
    assert main(["train", *options, "--find_lr"]) != 0
    assert "no learning rate from 1e-07 to 1 makes the loss fall" in capsys.readouterr().err


def test_not_together_with_resume(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options, "--find_lr", "--resume", "run"]) == 2
    assert "--find_lr: a continued run keeps its learning rate" in capsys.readouterr().err
