from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.cli import main

TINY = [
    "--model.hyperparameters={depth: 2, embed_dim: 24, num_heads: 2}",
    "--autoencoder.decoder_depth=1",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--data.workers=0",
    "--data.batch_size=4",
    "--protocol.frames=4",
    "--data.val=null",
]


@pytest.fixture
def folder(tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return make_dataset(tmp_path / "videos", classes=("a", "b"))


def test_from_videos_without_labels_to_a_classifier(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", "videomae_vit_s_motion_pretrain.yaml", "--data.train=videos"]
    assert main(["pretrain", *config, *TINY, "--out", "run"]) == 0
    assert "next: stvid train --init run --data.train VIDEOS\n" in capsys.readouterr().out

    assert main(["predict", "videos/a/a_0.mp4", "--checkpoint", "run"]) == 2
    said = capsys.readouterr().err
    assert "run: has no classifier, only features; train one with: stvid train --init run --data.train VIDEOS" in said
    assert main(["test", "--checkpoint", "run", "--data", "videos", "--workers=0"]) == 2
    assert "run: has no classifier, only features" in capsys.readouterr().err

    quick = ["--trainer.max_epochs=1", "--data.workers=0", "--trainer.accelerator=cpu"]
    assert main(["train", "--init", "run", "--data.train", "videos", *quick, "--out", "tuned"]) == 0
    assert "left out the decoder of the pretraining" in capsys.readouterr().out
    assert main(["predict", "videos/a/a_0.mp4", "--checkpoint", "tuned"]) == 0

    assert main(["pretrain", "--resume", "run", "--trainer.max_epochs=2"]) == 0
    assert "epoch 2/2: loss" in capsys.readouterr().out


def test_the_two_commands_do_not_take_each_others_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", "videomae_vit_s_motion_pretrain.yaml"]
    assert main(["train", *config]) == 2
    assert (
        "videomae_vit_s_motion_pretrain.yaml: is a masked pretraining; use stvid pretrain --config "
        "videomae_vit_s_motion_pretrain.yaml\n"
    ) in capsys.readouterr().err
    assert main(["pretrain", *config, "--data.train=videos", *TINY, "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 2
    assert "run: is a masked pretraining; use stvid pretrain --resume run\n" in capsys.readouterr().err


def test_the_config_is_printed_and_the_help_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", "videomae_vit_b_k400_pretrain.yaml", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "task: pretrain\n" in printed and "  mask_ratio: 0.9\n" in printed
    assert main(["pretrain", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: stvid pretrain --config") and "--autoencoder.mask_ratio" in text
    assert "videomae_vit_b_k400_pretrain.yaml" in text and "uniformer_s_k400.yaml" not in text
    assert main(["train", "--help"]) == 0
    assert "videomae_vit_b_k400_pretrain.yaml" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--config is missing; for example: stvid pretrain --config videomae_vit_s_motion_pretrain.yaml\n"),
        (["--config", "videomae_vit_s_motion_pretrain.yaml", "--find_lr"], "--find_lr: only for stvid train\n"),
        (["--config", "uniformer_xxs_motion.yaml"], "model.name: uniformer_xxs cannot be pretrained as a masked"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
