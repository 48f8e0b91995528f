"""``stvid models`` on the models of other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stvid.sources
from stvid.cli import main


def test_models_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "mvitv2_s_16x4" in out and "stvid models 'timm/*'" in out
    assert "torchvision/resnet50" not in out  # image models: too many to list unasked
    assert main(["models", "torchvision/resnet1?", "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert set(records) == {"torchvision/resnet18"}
    assert records["torchvision/resnet18"]["library"] == "torchvision"
    assert main(["models", "torchvision/resnet1"]) == 2
    assert "torchvision has no 'resnet1'; nearest: " in capsys.readouterr().err
    assert main(["models", "mvit_v2_s"]) == 2
    assert "mvit_v2_s: is native here: mvitv2_s_16x4" in capsys.readouterr().err
    assert main(["models", "torchvision/r3d_18"]) == 2
    assert "torchvision/r3d_18: is native here: r3d_18" in capsys.readouterr().err


def test_published_weights_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--pretrained", "uniformer_s"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("uniformer_s.k400_16x4 ")]
    for fact in ("80.8", "4x1", "16x4", "224", "41.8", "Apache-2.0", "Sense-X/UniFormer"):
        assert fact in line.split()
    assert "uniformer_b" not in out
    assert main(["models", "--pretrained", "*.ssv2*", "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert all(".ssv2" in name for name in records)
    assert records["uniformer_s.ssv2_16f_prek400"]["protocol"]["channels"] == "bgr"
    assert records["uniformer_s.ssv2_16f_prek400"]["classes"] == "ssv2"
    assert main(["models", "--pretrained", "uniformer_xxs"]) == 2
    assert "uniformer_xxs: no published weights match" in capsys.readouterr().err
    assert main(["models", "--pretrained", "uniformer_z"]) == 2
    assert "nearest: uniformer_" in capsys.readouterr().err


def test_weights_are_fetched_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(stvid.sources, "fetch_weights", lambda weights: asked.append(weights) or tmp_path / "w.pth")
    assert main(["models", "--get", "uniformer_s.k400_16x4"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'w.pth'}\n"
    assert [weights.name for weights in asked] == ["uniformer_s.k400_16x4"]
    assert main(["models", "--get", "uniformer_s"]) == 2
    assert "names a model, not weights" in capsys.readouterr().err
    assert main(["models", "--get", "uniformer_s.k4"]) == 2
    assert "has no weights 'k4'" in capsys.readouterr().err
