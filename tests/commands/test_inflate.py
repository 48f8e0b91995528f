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


def test_causal_networks_and_those_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inflate", "--from", "timm:test_resnet", "--frames", "3", "--img_size", "64", "--causal"]
    assert main([*arguments, "--kernel_size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "in the last of 2 frames, zeros elsewhere" in printed and printed.rstrip().endswith("exact")
    for wrong, message in (
        (["--temporal", "head"], "causal: with temporal=head frames see later ones"),
        (["--hyperparameters", '{"temporal_strides": {"stem": 2}}'], "causal: temporal_strides join frames"),
        (["--hyperparameters", '{"causal": true}'], "causal has an option of its own, --causal"),
        (["--from", "torchvision:resnet50", "--to", "i3d_r50"], "--causal has no meaning with --to: i3d_r50"),
    ):
        assert main([*arguments, *wrong]) == 2
        errors = capsys.readouterr().err
        assert message in errors and len(errors.splitlines()) == 1
