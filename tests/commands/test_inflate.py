"""``stvid inflate`` says first when its weights are random, and takes files of self-supervised training."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from stvid.cli import main


def test_random_weights_are_called_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inflate", "--from", "timm:test_resnet", "--frames", "2", "--img_size", "64"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "RANDOM" in printed.splitlines()[0] and printed.rstrip().endswith("exact")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    assert main([*arguments, "--weights", str(tmp_path / "w.pth")]) == 0
    assert "RANDOM" not in capsys.readouterr().out


def test_a_projection_head_is_said_to_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = {
        f"module.encoder_q.{key}": value
        for key, value in timm.create_model("test_resnet").state_dict().items()
        if not key.startswith("head.")
    }
    torch.save({"state_dict": {**body, "module.queue": torch.randn(8, 16)}}, tmp_path / "moco.pth")
    arguments = ["inflate", "--from", "timm:test_resnet", "--frames", "2", "--img_size", "64"]
    assert main([*arguments, "--weights", str(tmp_path / "moco.pth")]) != 0
    assert "num_classes" in capsys.readouterr().err
    assert main([*arguments, "--weights", str(tmp_path / "moco.pth"), "--num_classes", "3"]) == 0
    printed = capsys.readouterr().out
    assert "what stands beside it is left out (queue)" in printed and "a new classifier" in printed
