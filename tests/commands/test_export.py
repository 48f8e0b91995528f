"""``stvid export`` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import stvid

Call = Callable[..., tuple[int, str, str]]


def test_export(checkpoint: str, video: str, tmp_path: Path, call: Call) -> None:
    code, out, _ = call("export", "--checkpoint", checkpoint, "--out", tmp_path / "m.pt2", "--json")
    report = json.loads(out)
    assert code == 0 and report["largest_difference"] < 1e-3 and report["input_shape"] == [3, 4, 32, 32]
    found = stvid.predict(stvid.load_exported(tmp_path / "m.pt2"), video)[0]
    assert found.classes == stvid.predict(checkpoint, video)[0].classes
    code, _, err = call("export", "--checkpoint", checkpoint, "--out", tmp_path / "m.tflite")
    assert code == 2 and ".pt2 nor .onnx" in err
