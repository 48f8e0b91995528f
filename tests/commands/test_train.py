from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stvid
from stvid.cli import main
from stvid.protocol import Protocol


@pytest.mark.parametrize(
    "typed,suggested",
    [
        ([], "--config uniformer_xxs_motion.yaml"),
        (["mine.yaml"], "--config mine.yaml"),
        (["mine.yaml", "videos", "--optim.lr", "1"], "--config mine.yaml --data.train videos --optim.lr 1"),
        (["my videos"], "--config uniformer_xxs_folder.yaml --data.train 'my videos'"),
        (["--data.train", "v", "--seed=3"], "--config uniformer_xxs_folder.yaml --data.train v --seed=3"),
        (["w.safetensors"], "--init w.safetensors --data.train VIDEOS"),
        (["w.pth", "v"], "--init w.pth --data.train v"),
        (["hf-hub:a/b", "--data.train=v"], "--init hf-hub:a/b --data.train=v"),
    ],
)
def test_the_hint_does_what_was_meant(
    typed: list[str],
    suggested: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *typed]) == 2
    assert f"--config is missing; for example: stvid train {suggested}\n" in capsys.readouterr().err


def test_one_command_trains(
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_dataset(tmp_path / "videos", classes=("a", "b"))
    torch.manual_seed(0)
    model = stvid.create_model("timm/test_efficientnet", num_classes=5, num_frames=2, img_size=32)
    own = Protocol(frames=2, stride=4, short_side=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    stvid.save_model(model, "w.safetensors", protocol=own)
    assert main(["train", "--init", "w.safetensors", "--data.train", "videos", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "mean: [0.5, 0.5, 0.5]" in printed and "val_fraction: 0.2" in printed
    quick = ["--trainer.max_epochs=1", "--data.workers=0", "--trainer.accelerator=cpu"]
    assert main(["train", "--init", "w.safetensors", "--data.train", "videos", *quick]) == 0
    folder = "runs/videos_test_efficientnet"
    following = f"next: stvid test --checkpoint {folder}; stvid predict VIDEO --checkpoint {folder}\n"
    assert capsys.readouterr().out.endswith(following)
    assert main(["test", "--checkpoint", "runs/videos_test_efficientnet", "--workers=0"]) == 0
    assert "2 videos counted" in capsys.readouterr().out
