"""``stvid test`` as a user types it, and that it measures what the validation of a training does."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import stvid
from stvid.cli import main
from stvid.config import load_config
from stvid.engine.train import train
from stvid.evaluation.result import EvaluationResult, ViewAccumulator

Call = Callable[..., tuple[int, str, str]]


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
