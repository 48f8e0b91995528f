"""Masked pretrainings, small but whole: encoded videos in, checkpoints, numbers and pictures out."""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

import stvid
from stvid.checkpoints import load_checkpoint
from stvid.config import TrainConfig, dump_config, load_config
from stvid.engine.pretraining import PretrainTask
from stvid.engine.train import TrainResult, train
from stvid.errors import CheckpointError, ConfigError, Interrupted
from stvid.models.pretraining import create_autoencoder
from stvid.runs import resume_config

MODEL = {"depth": 2, "embed_dim": 24, "num_heads": 2}


@pytest.fixture(autouse=True)
def _one_thread_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # otherwise a training on the CPU takes the cores that its workers leave


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path_factory.mktemp("videos"), classes=("left", "right"))


@pytest.fixture
def configure(videos: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """``configure("trainer.max_epochs=3", ...)`` -> a config of a tiny run into a fresh folder."""

    def make(*options: str, output: str = "run") -> TrainConfig:
        base = {
            "task": "pretrain",
            "model.name": "videomae_vit_s",
            "model.hyperparameters": "{depth: 2, embed_dim: 24, num_heads: 2}",
            "data.train": str(videos),
            "data.val": str(videos),
            "data.batch_size": "4",
            "data.workers": "0",
            "protocol.frames": "4",
            "protocol.stride": "2",
            "protocol.short_side": "64",
            "protocol.crop": "64",
            "optim.lr": "0.003",
            "autoencoder.decoder_depth": "1",
            "autoencoder.mask_ratio": "0.75",
            "trainer.max_epochs": "1",
            "trainer.accelerator": "cpu",
            "trainer.log_every_n_steps": "1",
            "output": str(tmp_path / output),
        }
        base.update(option.split("=", 1) for option in options)  # type: ignore[misc]
        return load_config(None, [f"--{key}={value}" for key, value in base.items()])

    return make


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return torch.load(result.last, weights_only=True)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything(configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    result = train(configure("trainer.max_epochs=2", "data.val_views=2x1", "data.workers=1"))
    printed = capsys.readouterr().out
    assert "parameters (0.05 M of the encoder), 75% of a clip hidden (tube)" in printed
    assert "epoch 2/2: loss" in printed and "val_loss" in printed
    assert {path.name for path in (result.output / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    logged = rows(result.output / "metrics.csv")
    assert {"train_loss_step", "train_loss", "val_loss", "val_failed"} <= set(logged[0])
    losses = [float(row["val_loss"]) for row in logged if row["val_loss"]]
    assert len(losses) == 2 and result.metrics["val_loss"] == pytest.approx(losses[-1], rel=1e-5)
    with Image.open(result.output / "reconstruction.png") as picture:
        assert picture.height > picture.width  # four videos, three lines of four frames each

    again = load_config(result.output / "config.yaml")
    assert again.task == "pretrain" and again.protocol.class_names == ()
    assert again.autoencoder.mask_ratio == 0.75


def test_the_encoder_is_a_model_of_features(configure: Callable[..., TrainConfig]) -> None:
    result = train(configure())
    model = stvid.load_model(result.output)
    assert model.num_classes == 0 and model.recipe["name"] == "videomae_vit_s"
    stored = torch.load(result.last, weights_only=True)
    assert stored["stvid"]["task"] == "multiclass"
    assert stored["stvid"]["pretraining"] == {"decoder": {"decoder_depth": 1}, "normalize_target": True}
    assert torch.equal(
        model.state_dict()["blocks.1.attn.qkv.weight"], weights(result)["model.encoder.blocks.1.attn.qkv.weight"]
    )

    whole = create_autoencoder(
        "videomae_vit_s", num_frames=4, img_size=64, decoder_options=stored["stvid"]["pretraining"]["decoder"], **MODEL
    )
    load_checkpoint(whole, result.last)
    assert torch.equal(whole.decoder.head.weight, weights(result)["model.decoder.head.weight"])


def test_it_learns(configure: Callable[..., TrainConfig]) -> None:
    """The pixels themselves are predicted, whose mean is learnt first."""
    options = ["trainer.max_epochs=8", "optim.lr=0.01", "autoencoder.normalize_target=false", "augment.resize=none"]
    result = train(configure(*options, "data.repeats=2", "data.batch_size=8"))
    losses = [float(row["val_loss"]) for row in rows(result.output / "metrics.csv") if row["val_loss"]]
    assert losses[-1] < 0.9 * losses[0]
    assert result.best is not None
    best = torch.load(result.best, weights_only=True)
    number = losses.index(min(losses))
    assert best["epoch"] == number  # the lowest loss, not the highest


@pytest.mark.parametrize("model", ["videomae_vit_s", "videomaev2_vit_s", "hiera_tiny"])
def test_resume_between_epochs_is_exact(configure: Callable[..., TrainConfig], model: str) -> None:
    options = [f"model.name={model}", "model.drop_path_rate=0.2", "trainer.ema_decay=0.9"]
    if model == "videomaev2_vit_s":
        options.append("autoencoder.decoder_mask_ratio=0.5")
    if model == "hiera_tiny":
        options += ["model.hyperparameters={depth: [1, 1, 1, 1], embed_dim: 8}", "autoencoder.decoder_embed_dim=32"]
    whole = train(configure(*options, "trainer.max_epochs=2", output="whole"))
    half = train(configure(*options, "trainer.max_epochs=1", "optim.schedule_epochs=2", output="half"))
    continued = train(resume_config(half.output, ["--trainer.max_epochs", "2"]))
    assert same(weights(whole), weights(continued))
    assert whole.metrics["val_loss"] == pytest.approx(continued.metrics["val_loss"], rel=1e-6)


def test_resume_within_an_epoch_is_exact(
    configure: Callable[..., TrainConfig],
    stopped_in_the_middle: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    options = ("trainer.max_epochs=2", "data.batch_size=2")
    whole = train(configure(*options, output="whole"))
    with (
        stopped_in_the_middle(),
        pytest.raises(Interrupted, match=r"SIGTERM; continue with: stvid pretrain --resume .*interrupted\.ckpt"),
    ):
        train(configure(*options, output="half"))
    continued = train(resume_config(Path(configure(output="half").output or "")))
    assert same(weights(whole), weights(continued))


def test_labels_do_not_matter(configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path) -> None:
    files = sorted(videos.rglob("*.mp4"))
    lists = {
        "labelled": ["path,label", *(f"{file},{file.parent.name}" for file in files)],
        "of_one_class": ["path,label", *(f"{file},x" for file in files)],
        "without": ["path", *map(str, files)],
    }
    found = []
    for name, lines in lists.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        options = [f"data.train={tmp_path / name}.csv", "data.val=null", "data.val_fraction=0.25"]
        result = train(configure(*options, output=name))
        assert "val_loss" in result.metrics
        found.append(weights(result))
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_videos_anywhere_in_a_folder_are_taken(
    configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat" / "deep" / "er").mkdir(parents=True)
    for number, file in enumerate(sorted(videos.rglob("*.mp4"))):
        os.link(file, tmp_path / "flat" / ("deep/er" if number % 2 else "") / f"{number}.mp4")
    train(configure(f"data.train={tmp_path / 'flat'}", "data.val=null"))
    assert "8 training videos, 0 for validation" in capsys.readouterr().out


def test_a_validation_hides_the_same_in_every_epoch(configure: Callable[..., TrainConfig]) -> None:
    result = train(configure("trainer.max_epochs=2", "optim.lr=1e-12", "data.limit_val=3"))
    losses = [float(row["val_loss"]) for row in rows(result.output / "metrics.csv") if row["val_loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_an_unreadable_video_is_counted(
    configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted(videos.rglob("*.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "val.csv").write_text("\n".join(["path", *map(str, good[:2]), str(tmp_path / "broken.mp4")]) + "\n")
    result = train(configure(f"data.val={tmp_path / 'val.csv'}"))
    assert result.metrics["val_failed"] == 1 and result.metrics["val_loss"] > 0
    assert "warning: unreadable validation video" in capsys.readouterr().err


def test_the_encoder_starts_a_training(
    configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = train(configure(output="before"))
    capsys.readouterr()
    seen: list[torch.Tensor] = []
    fit = Trainer.fit

    def spy(self: Trainer, model: PretrainTask, *args: object, **kwargs: object) -> None:
        seen.append(model.model.state_dict()["blocks.0.mlp.fc1.weight"].clone())
        fit(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", spy)
    result = train(configure("task=multiclass", f"init={before.output}", output="after"))
    printed = capsys.readouterr().out
    assert "stvid pretraining format" in printed and "left out the decoder of the pretraining (" in printed
    assert "new head (head.fc.bias" in printed
    assert torch.equal(seen[0], weights(before)["model.encoder.blocks.0.mlp.fc1.weight"])
    assert stvid.load_model(result.output).default_protocol.class_names == ("left", "right")


def test_a_pretraining_starts_from_an_earlier_one(
    configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    before = train(configure(output="before"))
    train(configure(f"init={before.output}", output="after"))
    assert "init      " in capsys.readouterr().out
    model = stvid.create_model("videomae_vit_s", num_classes=2, num_frames=4, img_size=64, **MODEL)
    stvid.save_model(model, before.output / "classifier.pt")
    with pytest.raises(CheckpointError, match=r"does not fit videomae_vit_s.*missing mask_token"):
        train(configure(f"init={before.output / 'classifier.pt'}", output="other"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.name=uniformer_s", r"^model\.name: uniformer_s cannot be pretrained .* these can: hiera_base, "),
        ("model.name=timm/vit_tiny_patch16_224", r"^model\.name: timm/vit_tiny_patch16_224 cannot be pretrained"),
        ("augment.mixup=0.8", r"^augment\.mixup: 0\.8 has no meaning in a pretraining, it mixes labels; set it to 0$"),
        ("data.balance=class", r"^data\.balance: class has no meaning .*set it to none$"),
        ("optim.layer_decay=0.75", r"^optim\.layer_decay: 0\.75 has no meaning .*set it to 1$"),
        (
            "trainer.monitor=val_top1@1x1",
            r"^trainer\.monitor: the validation has no number val_top1@1x1; nearest: val_loss$",
        ),
        ("autoencoder.mask_ratio=0.01", r"^autoencoder\.mask_ratio: a ratio of 0\.01 hides none of the 16 places"),
        ("autoencoder.decoder_num_heads=5", r"^model videomae_vit_s: embed_dim 12 is no multiple of num_heads 5$"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    configure: Callable[..., TrainConfig], option: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(configure(option))


def test_a_finished_setting_cannot_be_changed(configure: Callable[..., TrainConfig]) -> None:
    result = train(configure())
    with pytest.raises(ConfigError, match=r"^autoencoder\.mask_ratio: 0\.5 cannot be changed while a run is continued"):
        train(resume_config(result.output, ["--autoencoder.mask_ratio", "0.5", "--trainer.max_epochs", "2"]))


@pytest.mark.slow
def test_two_processes_share_the_videos(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = configure("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=2")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    done = subprocess.run(
        [sys.executable, "-m", "stvid", "pretrain", "--config", str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "4 clips a step (2 clips x 2 devices x 1)" in done.stdout
    assert stvid.load_model(tmp_path / "run").num_classes == 0
