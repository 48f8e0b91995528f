"""Training runs, small but whole: encoded videos in, checkpoints and logs out."""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import stvid
from stvid.config import TrainConfig, load_config
from stvid.data.manifest import read_manifest
from stvid.engine.callbacks import MetricsCsv, StopOnSignal
from stvid.engine.task import VideoTask
from stvid.engine.train import TrainResult, _note_on_span, train
from stvid.errors import CheckpointError, ConfigError, Interrupted, ManifestError, StvidError
from stvid.evaluation.evaluate import evaluate
from stvid.runs import claim_output, newest_checkpoint, read_test_videos, resume_config, stored_run

MODEL = "{depth: [1, 1, 1, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}"


@pytest.fixture(autouse=True)
def _one_thread_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # otherwise a training on the CPU takes the cores that its workers leave


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path_factory.mktemp("videos"), per_class=4)


@pytest.fixture
def configure(videos: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """``configure("trainer.max_epochs=3", ...)`` -> a config of a tiny run into a fresh folder."""

    def make(*options: str, output: str = "run") -> TrainConfig:
        base = {
            "model.name": "uniformer_xxs",
            "model.hyperparameters": MODEL,
            "data.train": str(videos),
            "data.val": str(videos),
            "data.batch_size": "4",
            "data.workers": "0",
            "protocol.frames": "4",
            "protocol.stride": "2",
            "protocol.short_side": "40",
            "protocol.crop": "32",
            "optim.lr": "0.003",
            "trainer.max_epochs": "1",
            "trainer.accelerator": "cpu",
            "trainer.log_every_n_steps": "1",
            "output": str(tmp_path / output),
        }
        base.update(option.split("=", 1) for option in options)  # type: ignore[misc]
        return load_config(None, [f"--{key}={value}" for key, value in base.items()])

    return make


def weights(result: TrainResult | Path, key: str = "state_dict") -> dict[str, torch.Tensor]:
    path = result if isinstance(result, Path) else result.last
    return torch.load(path, weights_only=True)[key]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything(configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    result = train(configure("trainer.max_epochs=2", "data.val_views=2x1", "optim.base_batch=16", "data.workers=1"))
    printed = capsys.readouterr().out
    assert "3 classes (guessing: top1 0.3333)" in printed
    assert "learning rate 0.00075 = 0.003 x 4/16" in printed and "epoch 2/2: loss" in printed
    assert multiprocessing.active_children() == []
    assert {path.name for path in (result.output / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any(path.name.startswith("events.out.tfevents") for path in result.output.iterdir())
    logged = rows(result.output / "metrics.csv")
    assert {"train_loss_step", "data_wait", "clips_per_second", "val_top1@2x1"} <= set(logged[0])
    assert max(int(row["step"]) for row in logged) == 5

    again = load_config(result.output / "config.yaml")
    assert again.protocol.class_names == ("left", "right", "turn")

    model = stvid.load_model(result.last)
    assert model.default_protocol == again.protocol
    stored = torch.load(result.last, weights_only=True)["stvid"]
    assert stored["version"] == stvid.__version__ and stored["model"]["name"] == "uniformer_xxs"


def test_it_learns(configure: Callable[..., TrainConfig]) -> None:
    """The classes differ in colour; a model that sees the right videos with the right labels tells them apart."""
    options = ["trainer.max_epochs=12", "optim.lr=0.01", "augment.scale=[0.5,1]", "data.repeats=2", "data.batch_size=8"]
    result = train(configure(*options, "trainer.val_every=6", "augment.hflip=0.5"))
    assert result.metrics["val_top1@1x1"] > 0.8


def test_validation_equals_evaluation(configure: Callable[..., TrainConfig], videos: Path) -> None:
    result = train(configure("data.val_views=2x3", "trainer.max_epochs=1"))
    model = stvid.load_model(result.last)
    measured = evaluate(model, read_manifest(videos), views="2x3")
    assert measured.metrics["top1@2x3"] == pytest.approx(result.metrics["val_top1@2x3"], abs=1e-6)
    assert measured.metrics["mean_class@2x3"] == pytest.approx(result.metrics["val_mean_class@2x3"], abs=1e-6)
    assert model.measured["metrics"]["top1@2x3"] == pytest.approx(measured.metrics["top1@2x3"], abs=1e-6)
    assert model.measured["videos"] == measured.counted and model.weights is None


RANDOM = ("model.drop_path_rate=0.3", "augment.mixup=0.4", "augment.cutmix=1", "augment.erasing=0.5")


AVERAGED = ("trainer.ema_decay=0.9", "trainer.accumulate_grad_batches=2", "trainer.save_every=2")


@pytest.mark.parametrize(("options", "epochs", "whole_epochs"), [((), 1, 2), (AVERAGED, 3, 4)])
def test_resume_between_epochs_is_exact(
    configure: Callable[..., TrainConfig], options: tuple[str, ...], epochs: int, whole_epochs: int
) -> None:
    whole = train(configure(*RANDOM, *options, f"trainer.max_epochs={whole_epochs}", output="whole"))
    part = (f"trainer.max_epochs={epochs}", f"optim.schedule_epochs={whole_epochs}")
    half = train(configure(*RANDOM, *options, *part, output="half"))
    config = resume_config(half.output, ["--trainer.max_epochs", f"{whole_epochs}"])
    continued = train(config)
    assert continued.output == half.output
    assert same(weights(whole), weights(continued))
    if options:
        assert same(weights(whole, "current_model_state"), weights(continued, "current_model_state"))
        assert not same(weights(whole), weights(whole, "current_model_state"))
    steps = [row["step"] for row in rows(continued.output / "metrics.csv") if row["train_loss_step"]]
    assert steps == [row["step"] for row in rows(whole.output / "metrics.csv") if row["train_loss_step"]]


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_inside_an_epoch_is_exact(
    configure: Callable[..., TrainConfig],
    stopped_in_the_middle: Callable[[], contextlib.AbstractContextManager[None]],
    workers: int,
) -> None:
    options = (*RANDOM, "trainer.max_epochs=2", f"data.workers={workers}")
    whole = train(configure(*options, output="whole"))
    with (
        stopped_in_the_middle(),
        pytest.raises(Interrupted, match=r"SIGTERM; continue with: stvid train --resume .*interrupted\.ckpt"),
    ):
        train(configure(*options, output="half"))
    half = Path(configure(output="half").output or "")
    continued = train(resume_config(half))
    assert same(weights(whole), weights(continued))
    assert not (half / "checkpoints" / "interrupted.ckpt").exists()
    means = [
        [(row["epoch"], row["train_loss"]) for row in rows(result.output / "metrics.csv") if row["train_loss"]]
        for result in (whole, continued)
    ]
    assert len(means[0]) == 2 and means[0] == means[1]  # also of the epoch that was stopped


@pytest.mark.parametrize("stopped", [False, True])
def test_signals_are_given_back(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """A program that trained ends on SIGTERM as it did before."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    seen: list[Any] = []

    def note(self: StopOnSignal, *args: Any) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        if stopped:
            raise Interrupted("stopped", signal.SIGTERM)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_end", note)
    with pytest.raises(Interrupted) if stopped else contextlib.nullcontext():
        train(configure("trainer.max_epochs=1"))
    assert seen and seen[0] not in before
    assert [signal.getsignal(number) for number in numbers] == before


def test_fine_tuning_keeps_what_is_frozen_and_resumes(
    configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        *("model.frozen=[patch_embed1, blocks1]", "optim.schedule=step", "optim.milestones=[1]", "optim.gamma=0.5"),
        *(
            "optim.backbone_scale=0.1",
            "augment.crop=32",
            "augment.frames=3",
            "augment.color_jitter=[0.4, 0.4, 0.4, 0.1]",
        ),
        *("data.val=null", "protocol.crop=40"),
    ]
    start = train(configure("data.val=null", "protocol.crop=40", output="start"))
    whole = train(configure(*options, f"init={start.last}", "trainer.max_epochs=2", output="whole"))
    assert "crop 40; views 1x1; training clips of 3 frames, crop 32\n" in capsys.readouterr().out
    before, after = weights(start), weights(whole)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("model.blocks4") for key in changed)
    assert not any(key.startswith(("model.patch_embed1.", "model.blocks1.")) for key in changed)  # nor batch norms
    logged = [row for row in rows(whole.output / "metrics.csv") if row.get("lr-AdamW/backbone-decay")]
    assert [float(row["lr-AdamW/head-decay"]) for row in logged] == pytest.approx([0.003] * 3 + [0.0015] * 3)
    assert [float(row["lr-AdamW/backbone-decay"]) for row in logged] == pytest.approx([3e-4] * 3 + [1.5e-4] * 3)

    half = train(configure(*options, f"init={start.last}", "trainer.max_epochs=1", output="half"))
    again = train(resume_config(half.output, ["--trainer.max_epochs", "2"]))
    assert same(weights(again), after)


def test_a_training_clip_that_the_model_cannot_take(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"^augment\.crop, augment\.frames: .*32x32 pixels, not 4 of 24x24$"):
        train(configure("augment.crop=24"))
    with pytest.raises(ConfigError, match=r"^protocol\.crop, protocol\.frames: .*32x32 pixels, not 4 of 24x24$"):
        train(configure("protocol.crop=24"))


def test_one_video_a_class(
    configure: Callable[..., TrainConfig],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_dataset(tmp_path / "data", per_class=1)
    options = [f"data.train={folder}", "data.val=null", "data.val_fraction=0.2", "data.batch_size=3"]
    result = train(configure(*options))
    assert result.best is None
    assert "nothing can be held out for validation (data.val_fraction 0.2)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^data\.test: not set, and the training could hold no videos out"):
        read_test_videos(load_config(result.output / "config.yaml"))


def test_a_class_with_two_videos_is_validated_in_a_batch_that_is_too_large(
    configure: Callable[..., TrainConfig], make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    make_dataset(tmp_path / "data", classes=("a",), per_class=2)
    folder = make_dataset(tmp_path / "data", classes=("b", "c"), per_class=1)
    options = [f"data.train={folder}", "data.val=null", "data.val_fraction=0.2", "data.batch_size=3"]
    assert train(configure(*options, "data.val_batch_size=8")).best is not None


def test_one_class_is_no_training(
    configure: Callable[..., TrainConfig], make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_dataset(tmp_path / "data", classes=("only",))
    with pytest.raises(
        ConfigError, match=r"^data\.train: .*data.*: all its videos are of one class, 'only'; .* two or more"
    ):
        train(configure(f"data.train={folder}", "data.val=null"))


def test_a_batch_of_one_clip_is_not_blamed_on_the_size(configure: Callable[..., TrainConfig]) -> None:
    options = ["model.name=resnet3d_18", "model.hyperparameters={}", "data.val=null", "data.batch_size=1"]
    with pytest.raises(
        ConfigError, match=r"^data\.batch_size: 1 clip .* batch norms of resnet3d_18 .*; take 2 or more$"
    ):
        train(configure(*options))


def test_mirrored_classes_are_mentioned(
    configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "clips are mirrored at random, though there is left and right; see augment.hflip_pairs, such as "
    train(configure("data.val=null"))
    assert said + """--augment.hflip_pairs '[["left", "right"]]'""" in capsys.readouterr().out
    train(configure("data.val=null", 'augment.hflip_pairs=[["left", "right"]]', output="told"))
    train(configure("data.val=null", "augment.hflip=0", output="never"))
    assert "clips are mirrored" not in capsys.readouterr().out


def test_multilabel(configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path) -> None:
    lines = ["path,label"]
    for index, path in enumerate(sorted(videos.rglob("*.mp4"))):
        lines.append(f"{path},{path.parent.name}|{'even' if index % 2 else 'odd'}")
    listing = tmp_path / "list.csv"
    listing.write_text("\n".join(lines))
    options = ["task=multilabel", f"data.train={listing}", f"data.val={listing}", "augment.mixup=0.2"]
    result = train(configure(*options, "augment.label_smoothing=0.1"))
    assert 0 <= result.metrics["val_mAP@1x1"] <= 1
    assert stvid.load_model(result.last).num_classes == 5


def test_init_keeps_or_replaces_the_head(
    configure: Callable[..., TrainConfig], make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    first = train(configure(output="first"))
    weights_before = weights(first)

    def head_after(*options: str, output: str) -> torch.Tensor:
        # no step changes the weights: the learning rate is 0
        result = train(configure(f"init={first.output}", "optim.lr=1e-30", *options, output=output))
        return weights(result)["model.head.fc.weight"]

    assert torch.equal(head_after(output="same"), weights_before["model.head.fc.weight"])
    two = make_dataset(tmp_path / "data2", classes=("left", "right"))
    assert head_after(f"data.train={two}", f"data.val={two}", output="two").shape[0] == 2
    other = make_dataset(tmp_path / "data3", classes=("a", "b", "c"))
    renamed = head_after(f"data.train={other}", f"data.val={other}", output="other")
    assert renamed.shape == weights_before["model.head.fc.weight"].shape
    assert not torch.equal(renamed, weights_before["model.head.fc.weight"])


def test_init_from_another_model_names_it(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    hyperparameters = {"depth": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "head_dim": 8}
    weights_of = stvid.create_model("uniformer_xxs", num_classes=3, num_frames=4, img_size=32, **hyperparameters)
    stvid.save_model(weights_of, tmp_path / "w.safetensors")
    other = configure(
        f"init={tmp_path / 'w.safetensors'}",
        "model.name=c3d",
        "model.hyperparameters={embed_dim: [4, 4, 4, 4, 4], hidden_dim: 8}",
    )
    with pytest.raises(
        ConfigError,
        match=r"holds uniformer_xxs, not c3d; add --model\.name uniformer_xxs --model\.hyperparameters '\{.depth",
    ):
        train(other)


def test_unreadable_videos_are_skipped_listed_and_bounded(
    configure: Callable[..., TrainConfig],
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_dataset(tmp_path / "data")
    (folder / "left" / "broken.mp4").write_bytes(b"not a video")
    sources = [f"data.train={folder}", f"data.val={folder}"]
    result = train(configure(*sources, "data.max_failures=0.5", "data.val_views=1x3"))
    error = capsys.readouterr().err
    assert "skipped unreadable training video" in error and "unreadable validation video" in error
    assert [Path(path).name for path in result.failures] == ["broken.mp4"]
    assert [Path(row["path"]).name for row in rows(result.output / "unreadable.csv")] == ["broken.mp4"]
    low, middle, high = (result.metrics[f"val_top1@1x3{end}"] for end in ("_low", "", "_high"))
    assert low <= middle <= high and low < high
    with pytest.raises(StvidError, match=r"1 of 13 training videos could not be read.*broken\.mp4"):
        train(configure(*sources, "data.max_failures=0", output="strict"))


def test_videos_that_are_not_where_the_list_says(
    configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path
) -> None:
    """Said before the first step, not after the first epoch."""
    listing = tmp_path / "val.csv"
    listing.write_text("path,label\ngone/1.mp4,left\ngone/2.mp4,turn\n")
    with pytest.raises(
        ManifestError, match=r"^data\.val: .*val\.csv: its videos are not there .*gone/1\.mp4.*data\.root"
    ):
        train(configure(f"data.val={listing}"))
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    path = next(videos.rglob("left/*.mp4"))
    listing.write_text(f"path,label\ngone/1.mp4,left\n{path},left\n")
    assert train(configure(f"data.val={listing}")).metrics["val_failed"] == 1


def test_validation_videos_that_cannot_be_read(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Said before the first step, not after the first epoch."""
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes(b"no video")
    listing = tmp_path / "val.csv"
    listing.write_text("path,label\n" + "".join(f"{number}.mp4,left\n" for number in range(3)))
    message = r"^data\.val: .*val\.csv: none of the 3 videos tried can be read; first .*0\.mp4: "
    with pytest.raises(ManifestError, match=message):
        train(configure(f"data.val={listing}"))
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_disk_full_leaves_the_earlier_checkpoint(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(configure("data.val=null"))
    before = first.last.read_bytes()
    save = torch.save

    def full(content: Any, path: Path) -> None:
        Path(path).write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    config = resume_config(first.output, ["--trainer.max_epochs", "2"])
    with pytest.raises(CheckpointError, match=r"no space left on the disk; earlier checkpoints .* unchanged"):
        train(config)
    monkeypatch.setattr(torch, "save", save)
    assert first.last.read_bytes() == before
    assert [path.name for path in first.last.parent.iterdir()] == ["last.ckpt"]
    train(resume_config(first.output, ["--trainer.max_epochs", "2"]))


def test_val_fraction_holds_out_some_of_each_class(configure: Callable[..., TrainConfig]) -> None:
    result = train(configure("data.val=null", "data.val_fraction=0.25"))
    assert result.best is not None
    with pytest.raises(ConfigError, match="val_fraction"):
        train(configure("data.val=null", "data.val_fraction=1.5", output="b"))


def test_outputs_are_never_mixed(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = train(configure("data.val=null"))
    with pytest.raises(ConfigError, match=r"holds a run already; continue it with --resume"):
        train(configure("data.val=null"))
    monkeypatch.chdir(tmp_path)
    names = [train(configure("data.val=null", "output=null"), name="x").output for _ in range(2)]
    assert names == [Path("runs/x"), Path("runs/x-2")]
    assert newest_checkpoint(result.output) == result.last


def test_a_loss_that_is_not_finite_stops_the_run_which_is_not_in_the_way(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(StvidError, match=r"the loss is (nan|inf) at epoch 1.*optim\.lr"):
        train(configure("optim.lr=1e30", "data.val=null", "trainer.max_epochs=5", "trainer.save_every=5"))
    assert train(configure("data.val=null")).last.is_file()


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(configure("data.val=null"))
    before = first.last.read_bytes()
    step = VideoTask.on_train_batch_end

    def break_weights(self: VideoTask, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.trainer.num_training_batches:  # the last step, whose loss was well
            next(self.model.parameters()).data.view(-1)[0] = float("nan")
        step(self, outputs, batch, batch_idx)

    monkeypatch.setattr(VideoTask, "on_train_batch_end", break_weights)
    with pytest.raises(
        StvidError, match=r"after step 6, .*weights are broken \(.*holds nan\) .*last\.ckpt, is unharmed"
    ):
        train(resume_config(first.output, ["--trainer.max_epochs", "2"]))
    assert first.last.read_bytes() == before
    with pytest.raises(StvidError, match="no checkpoint has been saved before"):
        train(configure("data.val=null", output="other"))


def test_a_strategy_that_copies_this_process_is_refused(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy ddp_spawn: .*take ddp"):
        train(configure("trainer.strategy=ddp_spawn", "trainer.devices=2"))
    for precision, mixed in {"16-true": "16-mixed", "bf16-true": "bf16-mixed"}.items():
        with pytest.raises(ConfigError, match=rf"trainer\.precision {precision}: .*take {mixed}"):
            train(configure(f"trainer.precision={precision}"))


@pytest.mark.parametrize(
    "words",
    [
        "[../gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1234: Connection reset by peer",
        "NCCL error in: ProcessGroupNCCL.cpp:3384, remote process exited or there was a network error",
        "[3] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via store: Socket Timeout",
    ],
)
def test_a_lost_process_says_how_to_go_on(
    words: str, configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: VideoTask, batch: Any, batch_idx: int) -> torch.Tensor:
        raise RuntimeError(words)

    monkeypatch.setattr(VideoTask, "training_step", lost)
    with pytest.raises(RuntimeError, match=r"(?i)nccl|gloo"):  # alone it is something else
        train(configure("data.val=null"))
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(StvidError, match=r"another process of this training is gone .*start it again"):
        train(configure("data.val=null", "data.batch_size=2", output="two"))


@pytest.mark.parametrize(
    "options,error,message",
    [
        (("data.train=null",), ConfigError, r"data\.train: not set"),
        (("data.train=nowhere.csv",), ManifestError, "nowhere.csv"),
        (("data.batch_size=100",), ConfigError, "data.batch_size"),
        (("model.name=uniformer_xs",), StvidError, "nearest: uniformer_xxs"),
        (("model.hyperparameters={dpth: 3}",), ConfigError, "dpth"),
        (
            ("model.hyperparameters={num_classes: 3}",),
            ConfigError,
            "num_classes is decided by the classes of data.train",
        ),
        (("trainer.devices=0",), ConfigError, r"^trainer\.devices 0: .*devices=0"),
        (("trainer.accelerator=abacus",), ConfigError, r"^trainer\.accelerator abacus: "),
        (("output=",), ConfigError, r"^output: is empty"),
        (("trainer.strategy=ddd",), ConfigError, r"^trainer\.strategy ddd: "),
        (("trainer.precision=8-bit",), ConfigError, r"^trainer\.precision 8-bit: "),
        (("trainer.precision=bf16-mixed",), ConfigError, r"trainer\.precision bf16-mixed: .*wrong gradients.*32-true"),
        (("augment.hflip_pairs=[[left, wright]]",), ConfigError, "wright"),
        (("init=nowhere.ckpt",), CheckpointError, "nowhere.ckpt"),
        (("resume=nowhere.ckpt",), CheckpointError, "nowhere.ckpt"),
    ],
)
def test_bad_configs(
    configure: Callable[..., TrainConfig], options: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        train(configure(*options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options,message",
    [
        (["--model.hyperparameters", "{depth: [1, 1, 2, 1]}"], r"model\.hyperparameters: .* cannot be changed while"),
        (["--optim.lr", "0.5"], r"optim\.lr: 0\.5 cannot be changed while a run is continued, it began with 0\.003"),
        (["--data.batch_size", "2"], r"2 clips a step, but the run began with 4"),
    ],
)
def test_what_a_continued_run_cannot_change(
    configure: Callable[..., TrainConfig], options: list[str], message: str
) -> None:
    first = train(configure("data.val=null"))
    with pytest.raises(ConfigError, match=message):
        train(resume_config(first.output, [*options, "--trainer.max_epochs", "2"]))
    assert load_config(first.output / "config.yaml").optim.lr == 0.003


def changed_list(videos: Path, path: Path, change: Callable[[str], str], *, leave_out: int = 0) -> Path:
    """Writes a list of the videos with other labels, or fewer of them."""
    files = sorted(videos.rglob("*.mp4"))[leave_out:]
    path.write_text("path,label\n" + "".join(f"{file},{change(file.parent.name)}\n" for file in files))
    return path


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda name: name.replace("turn", "left"), None),  # fewer classes than before
        (lambda name: name.replace("turn", "spin"), r"(?s)spin"),
        ({"left": "right", "right": "left", "turn": "turn"}.get, None),  # the names are the same
    ],
)
def test_a_continued_run_keeps_its_classes(
    configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path, change: Any, message: str | None
) -> None:
    first = train(configure("data.val=null"))
    other = changed_list(videos, tmp_path / "other.csv", change)
    before = (first.output / "config.yaml").read_text()
    again = configure("data.val=null", f"data.train={other}", "trainer.max_epochs=2", f"resume={first.last}")
    again.optim.schedule_epochs = 1
    if message is None:
        result = train(again)
        assert stvid.load_model(result.last).default_protocol.class_names == ("left", "right", "turn")
        assert stvid.load_model(result.last).num_classes == 3
    else:
        with pytest.raises(StvidError, match=message):
            train(again)
        assert (first.output / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    "options",
    [["--protocol.class_names", "[left, right, spin, turn]"], ["--protocol.class_names", "[turn, left, right]"]],
)
def test_a_refused_continuation_changes_nothing(configure: Callable[..., TrainConfig], options: list[str]) -> None:
    first = train(configure("data.val=null"))
    files = {path: path.read_bytes() for path in first.output.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"protocol\.class_names: a continued run keeps its classes; these differ: "):
        train(resume_config(first.output, [*options, "--trainer.max_epochs", "2"]))
    assert {path: path.read_bytes() for path in first.output.rglob("*") if path.is_file()} == files


def test_a_list_of_another_length_is_not_a_continuation(
    configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path
) -> None:
    first = train(configure("data.val=null"))
    before = (first.output / "config.yaml").read_text()
    shorter = changed_list(videos, tmp_path / "shorter.csv", str, leave_out=1)
    with pytest.raises(ConfigError, match=r"^data\.train: lists 11 training videos, but the run began with 12; "):
        train(resume_config(first.output, ["--data.train", str(shorter), "--trainer.max_epochs", "2"]))
    assert (first.output / "config.yaml").read_text() == before


def test_weights_that_fit_no_longer_leave_the_config(configure: Callable[..., TrainConfig]) -> None:
    first = train(configure("data.val=null"))
    before = (first.output / "config.yaml").read_text()
    content = torch.load(first.last, weights_only=True)
    del content["state_dict"]["model.head.fc.weight"]
    torch.save(content, first.last)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: does not fit this config: .*head\.fc\.weight"):
        train(resume_config(first.output, ["--trainer.max_epochs", "2"]))
    assert (first.output / "config.yaml").read_text() == before


def test_a_finished_run_says_so(configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    first = train(configure("data.val=null"))
    before = first.last.read_bytes()
    assert train(resume_config(first.output)).last == first.last
    assert "nothing is left to do: give more trainer.max_epochs" in capsys.readouterr().out
    assert first.last.read_bytes() == before


def test_a_folder_that_another_process_trains_in(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with claim_output(configure("output=null"), "x") as first, claim_output(configure("output=null"), "x") as second:
        assert (first, second) == (Path("runs/x"), Path("runs/x-2"))
        half_written = first / "checkpoints" / ".last.ckpt.1.tmp"
        half_written.touch()
        with (
            pytest.raises(ConfigError, match=r"^output runs/x: another process trains in this folder; wait"),
            claim_output(configure(f"output={first}"), "x"),
        ):
            pass
        assert half_written.exists()
    with claim_output(configure(f"output={first}"), "x"):
        assert not half_written.exists()


def test_a_full_disk_while_logging(configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*RANDOM, "data.val=null", "trainer.max_epochs=3")
    whole = train(configure(*options, output="whole"))
    original = MetricsCsv.log_metrics

    def full(self: MetricsCsv, metrics: Any, step: int | None = None) -> None:
        original(self, metrics, step)
        if step == 4:
            with open(self.path, "a") as file:
                file.write("1")  # the beginning of a row
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MetricsCsv, "log_metrics", full)
        with pytest.raises(StvidError, match=r"half: No space left on device; continue from .* --resume .*half$"):
            train(configure(*options, output="half"))
    continued = train(resume_config(configure(output="half").output or ""))
    assert same(weights(whole), weights(continued))
    steps = [[row["step"] for row in rows(run.output / "metrics.csv")] for run in (whole, continued)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end"])
def test_a_signal_that_cannot_wait(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """Before the first step, and for the second time, it ends the run at once: one line, and nothing left behind."""
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    original = getattr(StopOnSignal, hook)

    def signalled(self: StopOnSignal, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if hook == "on_train_start":
            raise KeyboardInterrupt
        if trainer.global_step == 4:
            self._handle(signal.SIGINT, None)
            self._handle(signal.SIGINT, None)

    monkeypatch.setattr(StopOnSignal, hook, signalled)
    message = "nothing had been saved yet" if hook == "on_train_start" else "continue from the last checkpoint"
    with pytest.raises(Interrupted, match=rf"stopped by SIGINT at once; {message}") as caught:
        train(configure("data.val=null", "trainer.max_epochs=3"))
    assert caught.value.signum == signal.SIGINT
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_resume_from_weights_alone_is_refused(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    first = train(configure("data.val=null"))
    stvid.save_model(stvid.load_model(first.last), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"holds no run that could be continued; use --init"):
        train(configure(f"resume={tmp_path / 'weights.pt'}", output="other"))
    content = torch.load(first.last, weights_only=True)
    del content["stvid"]["protocol"]
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt: what it tells of its run is damaged; use --init"):
        stored_run(tmp_path / "damaged.ckpt")


def test_kept_checkpoints_do_not_pile_up(configure: Callable[..., TrainConfig]) -> None:
    options = ("data.val=null", "trainer.keep=2")
    first = train(configure(*options, "trainer.max_epochs=2", "optim.schedule_epochs=4"))
    folder = first.output / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"epoch0000.ckpt", "epoch0001.ckpt", "last.ckpt"}
    for path in folder.glob("epoch*.ckpt"):  # the newest is last.ckpt, whatever the order of writing
        os.utime(path, ns=(0, 0))
    train(resume_config(first.output, ["--trainer.max_epochs", "4"]))
    assert {path.name for path in folder.iterdir()} == {"epoch0002.ckpt", "epoch0003.ckpt", "last.ckpt"}


def test_a_moved_run_keeps_its_best(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    first = train(configure("trainer.max_epochs=1", "optim.schedule_epochs=3"))
    best = (first.output / "checkpoints" / "best.ckpt").read_bytes()
    moved = first.output.rename(tmp_path / "moved")
    result = train(resume_config(moved, ["--trainer.max_epochs", "3"]))
    assert result.output == moved
    logged = [float(row["val_top1@1x1"]) for row in rows(moved / "metrics.csv") if row["val_top1@1x1"]]
    assert len(logged) == 3
    kept = (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    assert kept == (max(logged[1:]) <= logged[0])


def test_a_signal_in_the_last_validation_lets_it_finish(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StopOnSignal.on_validation_start

    def signalled(self: StopOnSignal, trainer: Any, module: Any) -> None:
        original(self, trainer, module)
        if trainer.current_epoch == stop_in:
            self.received = signal.SIGTERM

    monkeypatch.setattr(StopOnSignal, "on_validation_start", signalled)
    stop_in = 1
    result = train(configure("trainer.max_epochs=2"))
    assert result.best is not None and "val_top1@1x1" in result.metrics
    stop_in = 0
    with pytest.raises(Interrupted):
        train(configure("trainer.max_epochs=2", output="earlier"))


def start(config: TrainConfig, folder: Path, *options: str) -> subprocess.Popen[str]:
    from stvid.config import dump_config

    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "stvid", "train", "--config", str(path), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("signum,ranks", [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)])
def test_signals_save_and_resume(
    configure: Callable[..., TrainConfig], tmp_path: Path, signum: signal.Signals, ranks: int
) -> None:
    config = configure("trainer.max_epochs=200", "data.workers=1", "data.batch_size=2", f"trainer.devices={ranks}")
    process = start(config, tmp_path)
    log = tmp_path / "run" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(rows(log)) > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert error.count(f"stopped by {signum.name}; continue with: stvid train --resume") == 1
    assert "Traceback" not in error
    saved = torch.load(tmp_path / "run" / "checkpoints" / "interrupted.ckpt", weights_only=True)
    options = ["--trainer.max_steps", str(saved["global_step"] + 2), "--trainer.devices", "1"]
    options += ["--data.batch_size", str(2 * ranks)]
    result = train(resume_config(tmp_path / "run", options))
    assert torch.load(result.last, weights_only=True)["global_step"] >= saved["global_step"]


@pytest.mark.slow
def test_a_killed_worker_is_named_and_does_not_hang(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    process = start(configure("trainer.max_epochs=500", "data.workers=2", "data.val=null"), tmp_path)
    log = tmp_path / "run" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(rows(log)) > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    server = [line.split()[0] for line in listing.splitlines() if f" {process.pid} " in line and "forkserver" in line]
    workers = [line.split()[0] for line in listing.splitlines() if server and line.split()[1] == server[0]]
    assert workers
    os.kill(int(workers[0]), signal.SIGKILL)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 1 and "was killed" in error and "Traceback" not in error


def test_two_ranks_take_their_own_share(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Gloo on the CPU: both ranks run, the shares are disjoint, and one run folder holds one set of weights."""
    script = tmp_path / "two_ranks.py"
    script.write_text(
        "import sys\n"
        "import stvid.engine.task as task\n"
        "from stvid.cli import main\n"
        "step = task.VideoTask.training_step\n"
        "def record(self, batch, batch_idx):\n"
        f"    with open(r'{tmp_path}/share-%d.txt' % self.global_rank, 'a') as file:\n"
        "        print(self.current_epoch, *batch.videos.tolist(), file=file)\n"
        "    return step(self, batch, batch_idx)\n"
        "task.VideoTask.training_step = record\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main())\n"
    )
    from stvid.config import dump_config

    config = configure(
        "trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=3", "trainer.max_epochs=2", "data.val_views=1x3"
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    done = subprocess.run(
        [sys.executable, str(script), "train", "--config", str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    shares = []
    for rank in (0, 1):
        lines = [list(map(int, line.split())) for line in (tmp_path / f"share-{rank}.txt").read_text().splitlines()]
        shares.append([{video for line in lines if line[0] == epoch for video in line[1:]} for epoch in (0, 1)])
    for epoch in (0, 1):
        assert not shares[0][epoch] & shares[1][epoch]
        assert len(shares[0][epoch] | shares[1][epoch]) == 12
    assert shares[0][0] != shares[0][1]
    assert "6 clips a step (3 clips x 2 devices x 1)" in done.stdout
    model = stvid.load_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    measured = evaluate(model, read_manifest(config.data.val or ""), views="1x3")
    logged = [row["val_top1@1x3"] for row in rows(tmp_path / "run" / "metrics.csv") if row["val_top1@1x3"]]
    assert measured.metrics["top1@1x3"] == pytest.approx(float(logged[-1]), abs=1e-6)


def test_a_run_that_max_steps_ends_is_validated(configure: Callable[..., TrainConfig]) -> None:
    options = ("trainer.max_epochs=4", "trainer.val_every=4", "data.batch_size=4")  # 3 steps an epoch
    for steps in (1, 3, 5):  # within the first epoch, at its end, within the second
        result = train(configure(*options, f"trainer.max_steps={steps}", output=f"run-{steps}"))
        logged = [row for row in rows(result.output / "metrics.csv") if row["val_top1@1x1"]]
        assert [int(row["step"]) for row in logged] == [steps - 1]
        assert result.best is not None and "val_top1@1x1" in result.metrics
        assert torch.load(result.last, weights_only=True)["global_step"] == steps


def test_a_last_epoch_that_was_interrupted_is_validated(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StopOnSignal.on_train_batch_end

    def stop_in_the_last(self: StopOnSignal, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            self.received = signal.SIGTERM
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_train_batch_end", stop_in_the_last)
        with pytest.raises(Interrupted):
            train(configure("trainer.max_epochs=2", "trainer.val_every=5"))
    result = train(resume_config(Path(configure().output or "")))
    assert [row["step"] for row in rows(result.output / "metrics.csv") if row["val_top1@1x1"]] == ["5"]
    assert result.best is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), ""),
        (("protocol.stride=8",), "clips span 25 frames, more than 8 of 8 videos tried have (16 in "),
        (("protocol.stride=8", "protocol.fps=25"), "clips span 25 frames at 25 a second, more than 8 of 8"),
        (("protocol.stride=8", "protocol.fps=50"), ""),
        (("augment.frames=20",), "their last frame is repeated; take fewer augment.frames or protocol.stride"),
        (("protocol.stride=8", "protocol.sampling=segment"), ""),
    ],
)
def test_clips_that_span_more_than_the_videos_are_mentioned(
    configure: Callable[..., TrainConfig], videos: Path, options: tuple[str, ...], said: str
) -> None:
    notes = _note_on_span(configure(*options), read_manifest(videos))
    assert (said in notes[0]) if said else not notes


def test_videos_that_cannot_be_read_say_nothing_of_spans(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "v" / label).mkdir(parents=True)
        (tmp_path / "v" / label / "x.mp4").write_bytes(b"no video")
    assert _note_on_span(configure("protocol.stride=8"), read_manifest(tmp_path / "v")) == []


RECORDED = """
import sys
import stvid.engine.task as task
from stvid.cli import main

training, validation = task.VideoTask.training_step, task.VideoTask.validation_step

def note(self, kind, videos):
    with open(sys.argv[1] + "-%s-%d.txt" % (kind, self.global_rank), "a") as file:
        print(self.current_epoch, *videos, file=file)

def train_step(self, batch, batch_idx):
    note(self, "train", batch.videos.tolist())
    return training(self, batch, batch_idx)

def validation_step(self, batch, batch_idx):
    note(self, "val", [sample.index for sample in batch])
    return validation(self, batch, batch_idx)

task.VideoTask.training_step, task.VideoTask.validation_step = train_step, validation_step
if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_slurm_tasks(folder: Path, options: list[str], *, tasks: int, notes: str) -> list[str]:
    """Runs ``stvid train`` as ``srun`` starts it, with SLURM's variables; returns what each task printed."""
    (folder / "recorded.py").write_text(RECORDED)
    shared = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "stvid", "SLURM_NTASKS": str(tasks), "SLURM_NODEID": "0"}
    shared |= {"SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "recorded.py"), str(folder / notes), "train", *options]
    processes = []
    for task in range(tasks):
        own = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, **streams, env={**os.environ, **shared, **own}))
    ends = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * tasks, ends
    return [out for out, _ in ends]


def noted(folder: Path, notes: str, kind: str, *, tasks: int) -> list[dict[int, list[int]]]:
    """Returns the videos of each epoch that each task saw."""
    found: list[dict[int, list[int]]] = []
    for task in range(tasks):
        epochs: dict[int, list[int]] = {}
        for line in (folder / f"{notes}-{kind}-{task}.txt").read_text().splitlines():
            epoch, *videos = map(int, line.split())
            epochs.setdefault(epoch, []).extend(videos)
        found.append(epochs)
    return found


@pytest.mark.slow
def test_resume_on_another_number_of_processes(
    configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path
) -> None:
    """Two tasks of SLURM, then one process, then two tasks: one run, in which each epoch sees each video once."""
    from stvid.config import dump_config

    config = configure("trainer.devices=2", "data.batch_size=3", "optim.schedule_epochs=3", "data.val_views=1x3")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    printed = as_slurm_tasks(tmp_path, ["--config", str(tmp_path / "config.yaml")], tasks=2, notes="first")
    assert "6 clips a step (3 clips x 2 devices x 1)" in printed[0] and printed[1] == ""
    again = ["--resume", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match=r"data\.batch_size x trainer\.devices: 3 clips a step, .* began with 6"):
        train(resume_config(tmp_path / "run", ["--trainer.devices", "1", "--trainer.max_epochs", "2"]))
    alone = ["--trainer.devices=1", "--data.batch_size=6", "--trainer.max_epochs=2"]
    as_slurm_tasks(tmp_path, [*again, *alone], tasks=1, notes="second")
    both = ["--trainer.devices=2", "--data.batch_size=3", "--trainer.max_epochs=3"]
    as_slurm_tasks(tmp_path, [*again, *both], tasks=2, notes="third")

    everything = list(range(12))
    for epoch, (notes, tasks) in enumerate((("first", 2), ("second", 1), ("third", 2))):
        shares = noted(tmp_path, notes, "train", tasks=tasks)
        assert all(share.keys() == {epoch} for share in shares)
        assert sorted(video for share in shares for video in share[epoch]) == everything
        seen = noted(tmp_path, notes, "val", tasks=tasks)
        assert sorted(video for share in seen for video in share[epoch]) == everything  # each once
    log = rows(tmp_path / "run" / "metrics.csv")
    assert [int(row["step"]) for row in log if row["train_loss_step"]] == [0, 1, 2, 3, 4, 5]
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["epoch"] == 2 and stored["global_step"] == 6
    model = stvid.load_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    measured = evaluate(model, read_manifest(videos), views="1x3")
    logged = [float(row["val_top1@1x3"]) for row in log if row["val_top1@1x3"]]
    assert len(logged) == 3 and measured.metrics["top1@1x3"] == pytest.approx(logged[-1], abs=1e-6)


@pytest.mark.slow
def test_two_tasks_read_their_own_shards(
    configure: Callable[..., TrainConfig], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each task opens half of the shards, and validation counts each video once though they do not divide."""
    pytest.importorskip("webdataset")
    from stvid.cli import main
    from stvid.config import dump_config

    assert main(["prep", "shard", str(videos), "--out", str(tmp_path / "shards"), "--size", "0.03"]) == 0
    held = tmp_path / "val.csv"
    paths = sorted(videos.rglob("*.mp4"))
    seven = [*paths[::2], paths[1]]
    held.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in seven))
    sources = [f"data.train={tmp_path / 'shards'}", f"data.val={held}"]
    config = configure(*sources, "trainer.devices=2", "data.batch_size=2")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    as_slurm_tasks(tmp_path, ["--config", str(tmp_path / "config.yaml")], tasks=2, notes="shards")
    first, second = (set(share[0]) for share in noted(tmp_path, "shards", "train", tasks=2))
    assert first and second and not first & second
    seen = [video for share in noted(tmp_path, "shards", "val", tasks=2) for video in share[0]]
    assert set(seen) == set(range(7)) and len(seen) == 8  # one comes twice, since two tasks take as many each
    (row,) = [row for row in rows(tmp_path / "run" / "metrics.csv") if row["val_top1@1x1"]]
    assert float(row["val_top1@1x1"]) * 7 == pytest.approx(round(float(row["val_top1@1x1"]) * 7), abs=1e-4)
    capsys.readouterr()
