"""``stvid test`` as a user types it, and that it measures what the validation of a training does."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stvid
from stvid import zoo
from stvid.classes import class_list
from stvid.cli import main
from stvid.config import load_config
from stvid.engine.train import train
from stvid.evaluation.result import EvaluationResult, ViewAccumulator
from stvid.models.base import VideoModel
from stvid.models.weights import Weights
from stvid.protocol import Protocol

Call = Callable[..., tuple[int, str, str]]
UNNAMED = Protocol(frames=4, stride=2, short_side=40, crop=32)


def test_optimize_is_recorded(
    checkpoint: str, make_dataset: Callable[..., Path], video: str, tmp_path: Path, call: Call
) -> None:
    folder = make_dataset(tmp_path / "videos", per_class=1)
    common = ["test", "--checkpoint", checkpoint, "--data", folder, "--workers", 0, "--device", "cpu"]
    code, out, err = call(*common, "--out", tmp_path / "plain")
    assert code == 0 and "optimized" not in err and "computed in" not in out
    code, out, err = call(*common, "--out", tmp_path / "fast", "--optimize")
    assert code == 0 and "optimized: " in err and "computed in" in out
    plain, fast = (stvid.EvaluationResult.load(tmp_path / name) for name in ("plain", "fast"))
    notes = stvid.optimize(stvid.load_model(checkpoint)).notes
    assert plain.arithmetic == ("32-true on cpu",) and fast.arithmetic == notes
    np.testing.assert_allclose(fast.logits, plain.logits, atol=0.05)
    for name, notes in (("plain", plain.arithmetic), ("fast", fast.arithmetic)):
        assert json.loads((tmp_path / name / "result.json").read_text())["arithmetic"] == list(notes)
        assert "; ".join(notes) in html.unescape((tmp_path / name / "report.html").read_text())
    code, _, err = call(*common, "--out", tmp_path / "no", "--optimize", "--precision", "bf16-mixed")
    assert code == 2 and "leave out --precision" in err
    for options in ([], ["--window", "1s"]):
        arguments = ["predict", video, "--checkpoint", checkpoint, "--device", "cpu", "--optimize", *options]
        code, out, err = call(*arguments)
        assert code == 0 and "optimized: " in err and "%" in out


@pytest.mark.parametrize("options", [(), ("--trainer.ema_decay=0.5",)], ids=["plain", "averaged"])
def test_validation_is_what_stvid_test_measures(
    options: tuple[str, ...], make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    videos = make_dataset(tmp_path / "videos", per_class=3)
    validated: list[EvaluationResult] = []
    compute = ViewAccumulator.result
    monkeypatch.setattr(ViewAccumulator, "result", lambda self: validated.append(compute(self)) or validated[-1])
    base = {
        "model.name": "uniformer_xxs",
        "model.hyperparameters": '{"depth": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "head_dim": 8}',
        "data.train": str(videos),
        "data.val": str(videos),
        "data.batch_size": "4",
        "data.workers": "0",
        "data.val_views": "2x3",
        "data.val_batch_size": "5",  # other batches than the test's
        "protocol.frames": "4",
        "protocol.stride": "2",
        "protocol.short_side": "40",
        "protocol.crop": "32",
        "protocol.views": "2x3",
        "optim.lr": "0.02",
        "trainer.max_epochs": "2",
        "trainer.accelerator": "cpu",
        "output": str(tmp_path / "run"),
    }
    run = train(load_config(None, [*(f"--{key}={value}" for key, value in base.items()), *options]))
    last = validated[-1]
    output = tmp_path / "test"
    assert main(["test", "--checkpoint", str(run.last), "--workers=0", "--device=cpu", f"--out={output}"]) == 0
    measured = EvaluationResult.load(output)

    assert measured.paths == last.paths and measured.class_names == last.class_names
    np.testing.assert_allclose(measured.logits, last.logits, rtol=0, atol=1e-5)
    for name, value in last.metrics.items():
        assert measured.metrics[name] == value
        assert run.metrics[f"val_{name}"] == value
    # It could not be so by accident: videos, views and epochs differ by more than the tolerance.
    assert measured.logits.std(axis=0).min() > 1e-3 and measured.logits.std(axis=1).max() > 1e-3
    assert abs(validated[0].logits - last.logits).max() > 1e-2


@pytest.fixture
def answers_two(tiny_model: Callable[[Protocol], VideoModel], tmp_path: Path) -> str:
    """A checkpoint of 12 logits without names that always answers the one at place 2."""
    model = tiny_model(UNNAMED.replace(class_names=[str(n) for n in range(12)]))
    with torch.no_grad():
        model.get_classifier().weight.zero_()
        model.get_classifier().bias.copy_(torch.eye(12)[2])
    model.default_protocol = UNNAMED
    stvid.save_model(model, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("labels", [range(12), [2, 10], [0, 2, 3], [11, 2, 2]], ids=str)
def test_labels_that_are_numbers_are_places_of_the_logits(
    labels: Sequence[int], answers_two: str, video: str, tmp_path: Path, call: Call
) -> None:
    rows = [f"{video},{label},{n / 100},\n" for n, label in enumerate(labels)]
    (tmp_path / "list.csv").write_text("path,label,start,end\n" + "".join(rows))
    common = ["test", "--checkpoint", answers_two, "--data", tmp_path / "list.csv", "--workers", 0, "--device", "cpu"]
    code, _, err = call(*common, "--out", tmp_path / "plain")
    share = list(labels).count(2) / len(labels)
    assert code == 0 and "the labels are numbers, the places of its logits" in err
    result = EvaluationResult.load(tmp_path / "plain")
    assert result.metric("top1") == share and result.labels.tolist() == list(labels) and len(result.class_names) == 12
    (tmp_path / "names.txt").write_text("".join(f"name {chr(97 + n)}\n" for n in range(12)))
    code, _, err = call(*common, "--out", tmp_path / "named", "--class_names", tmp_path / "names.txt")
    assert code == 0 and "taken as the places of the class names" in err
    named = EvaluationResult.load(tmp_path / "named")
    assert named.metric("top1") == share and named.class_names[2] == "name c"


@pytest.mark.parametrize("labels", [(0, 12), (1, 400), (0, -1)])
def test_numbers_beyond_the_logits_are_one_line(
    labels: Sequence[int], answers_two: str, video: str, tmp_path: Path, call: Call
) -> None:
    rows = [f"{video},{label},{n / 100},\n" for n, label in enumerate(labels)]
    (tmp_path / "list.csv").write_text("path,label,start,end\n" + "".join(rows))
    code, _, err = call("test", "--checkpoint", answers_two, "--data", tmp_path / "list.csv", "--out", tmp_path / "o")
    line = err.splitlines()[-1]
    assert code == 1 and f"label '{labels[1]}' is " in line and "list.csv" in line and "internal error" not in line


def test_words_need_names(answers_two: str, make_dataset: Callable[..., Path], tmp_path: Path, call: Call) -> None:
    folder = make_dataset(tmp_path / "videos", per_class=1)
    code, _, err = call("test", "--checkpoint", answers_two, "--data", folder, "--out", tmp_path / "o")
    assert code == 2 and "--class_names" in err and "packaged list" in err and len(err.splitlines()) == 1


def test_the_published_number_beside_the_measured_one(
    tiny_model: Callable[[Protocol], VideoModel],
    video: str,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = class_list("jester")
    stvid.save_model(tiny_model(UNNAMED.replace(class_names=names)), tmp_path / "m.safetensors")
    rows = [f'{video},"{name}",{n / 100},\n' for n, name in enumerate(names)]
    (tmp_path / "list.csv").write_text("path,label,start,end\n" + "".join(rows))
    published = Weights(
        model="uniformer_xxs",
        tag="jester",
        url="https://example.org/w.pth",
        protocol=UNNAMED,
        num_classes=len(names),
        classes="jester",
        top1=80.8,
        views=UNNAMED.views,
        source="Sense-X/UniFormer@0123abc:README.md",
    )
    load_model = zoo.load_model

    def load(*arguments: Any, **options: Any) -> VideoModel:
        model = load_model(*arguments, **options)
        model.weights = published
        return model

    monkeypatch.setattr(zoo, "load_model", load)
    common = ["test", "--checkpoint", tmp_path / "m.safetensors", "--data", tmp_path / "list.csv", "--workers", 0]
    code, out, _ = call(*common, "--device", "cpu", "--out", tmp_path / "same")
    result = EvaluationResult.load(tmp_path / "same")
    top1 = 100 * result.metric("top1")
    line = f"published  top1@1x1 80.8% (Sense-X/UniFormer): measured {top1:.1f}%, {top1 - 80.8:+.1f}"
    assert code == 0 and line in out.splitlines()
    assert result.published is not None and result.published["top1"] == 80.8
    assert line in html.unescape((tmp_path / "same" / "report.html").read_text())
    code, out, _ = call(*common, "--device", "cpu", "--out", tmp_path / "other", "--protocol.stride", "1")
    assert code == 0 and "(Sense-X/UniFormer), not compared: stride 1 instead of 2" in out
