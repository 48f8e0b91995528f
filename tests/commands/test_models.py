"""``stvid models`` on the models of other libraries."""

from __future__ import annotations

import json

import pytest

from stvid.cli import main


def test_models_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "\ntorchvision\n" in out and "torchvision/mvit_v2_s" in out and "pytorchvideo/x3d_xs" in out
    assert "torchvision/resnet50" not in out  # image models: too many to list unasked
    assert main(["models", "x3d_?", "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert set(records) == {"pytorchvideo/x3d_l", "pytorchvideo/x3d_m", "pytorchvideo/x3d_s"}
    assert records["pytorchvideo/x3d_m"]["library"] == "pytorchvideo"
    assert records["pytorchvideo/x3d_m"]["protocol"]["stride"] == 5
    assert main(["models", "torchvision/mvit_v"]) == 2
    assert "torchvision has no 'mvit_v'; nearest: " in capsys.readouterr().err
    assert main(["models", "torchvision/r3d_18"]) == 2
    assert "torchvision/r3d_18: is native here: r3d_18" in capsys.readouterr().err
