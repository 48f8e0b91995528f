"""Fine-tuning in one command: weights and videos in, the rest follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stvid
from stvid.config import dump_config, load_config
from stvid.engine import finetuning
from stvid.engine.finetuning import epochs_for, fine_tuning_config, resolve_config, run_name
from stvid.errors import CheckpointError, ConfigError
from stvid.protocol import Protocol

TINY = "timm/test_efficientnet"
OWN = Protocol(
    frames=4, stride=2, short_side=40, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3, channels="bgr", views="2x3"
)
ARGUMENTS = {"num_frames": 4, "img_size": 32, "depth": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "head_dim": 8}


@pytest.fixture(autouse=True)
def _one_thread_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path_factory.mktemp("videos"), per_class=4)


@pytest.fixture(scope="module")
def inflated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inflated image network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inflated.safetensors"
    model = stvid.create_model(TINY, num_classes=5, num_frames=4, img_size=32, temporal="shift", shift_div=4)
    stvid.save_model(model, path, protocol=OWN)
    return path


@pytest.fixture(scope="module")
def uniformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "uniformer.pt"
    stvid.save_model(stvid.create_model("uniformer_xxs", num_classes=5, **ARGUMENTS), path, protocol=OWN)
    return path


def options(init: Path | str, videos: Path, *more: str) -> list[str]:
    return [f"--init={init}", f"--data.train={videos}", *(f"--{option}" for option in more)]


def test_the_weights_decide(inflated: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = fine_tuning_config(options(inflated, videos))
    assert config.protocol == OWN and config.init == str(inflated)
    assert config.model.name == TINY and config.model.hyperparameters == {"temporal": "shift", "shift_div": 4}
    assert config.data.val_fraction == 0.2 and config.data.batch_size == 4  # of 9 videos
    assert config.trainer.max_epochs == 30 and config.trainer.patience == 10 and config.optim.frozen_epochs == 2
    assert config.optim.layer_decay == 1  # a convolutional network
    assert config.augment.hflip_pairs == [["left", "right"]]
    captured = capsys.readouterr()
    assert f"fine-tuning {TINY} from {inflated}: 30 epochs for 9 training videos" in captured.err and not captured.out


def test_a_transformer_gets_layer_decay(uniformer: Path, videos: Path) -> None:
    config = fine_tuning_config(options(uniformer, videos, f"data.val={videos}"))
    assert 0.3 < config.optim.layer_decay < 0.7  # few layers: the first one still has about 2% of the rate
    assert config.data.val_fraction == 0 and config.data.val == str(videos)


def test_the_user_decides_more(inflated: Path, videos: Path) -> None:
    more = ["trainer.max_epochs=6", "data.batch_size=3", "optim.lr=0.5", "model.hyperparameters={shift_div: 4}"]
    config = fine_tuning_config(options(inflated, videos, *more, "protocol.crop=64", "augment.hflip=0"))
    assert (config.trainer.max_epochs, config.data.batch_size, config.optim.lr) == (6, 3, 0.5)
    assert config.trainer.patience == 3 and config.optim.frozen_epochs == 1 and config.optim.warmup_epochs == 0.6
    assert config.model.hyperparameters == {"temporal": "shift", "shift_div": 4}
    assert (config.protocol.crop, config.protocol.short_side) == (64, 80) and config.protocol.mean == OWN.mean
    config = fine_tuning_config(options(inflated, videos, "protocol.short_side=80", "model.drop_path_rate=0.2"))
    assert (config.protocol.crop, config.protocol.short_side) == (64, 80) and config.model.drop_path_rate == 0.2


@pytest.mark.parametrize("videos,epochs", [(2, 30), (100, 30), (1000, 16), (10_000, 9), (100_000, 5), (10**9, 3)])
def test_more_videos_need_fewer_epochs(videos: int, epochs: int) -> None:
    assert epochs_for(videos) == epochs


@pytest.mark.parametrize(
    "given,error,message",
    [
        (["init={inflated}"], ConfigError, r"^data\.train: not set; name a folder .* --data\.train VIDEOS$"),
        (["data.train={videos}"], ConfigError, r"^init: not set; name the weights"),
        (["init={inflated}", "data.train={videos}", "optim.lrr=3"], ConfigError, r"--optim\.lrr: unknown.*optim\.lr"),
        (["init=gone.pt", "data.train={videos}"], CheckpointError, r"gone\.pt: no such"),
        (
            ["init={bare}", "data.train={videos}"],
            CheckpointError,
            r"not say which model.* name it with --model\.name, .* --model\.name uni",
        ),
        (
            ["init={inflated}", "data.train={videos}", "model.name=c3d"],
            CheckpointError,
            rf"is a checkpoint of {TINY}, not of c3d",
        ),
        (["init={inflated}", "data.train={videos}/left"], ConfigError, r"one class|no videos|folder"),
    ],
)
def test_what_is_missing_is_named(
    inflated: Path, videos: Path, tmp_path: Path, given: list[str], error: type[Exception], message: str
) -> None:
    bare = tmp_path / "bare.pt"
    torch.save({"weight": torch.zeros(2)}, bare)
    filled = [f"--{option.format(inflated=inflated, videos=videos, bare=bare)}" for option in given]
    with pytest.raises(stvid.StvidError, match=message):
        fine_tuning_config(filled)


def test_little_memory_makes_small_batches(uniformer: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = options(uniformer, videos, "data.val_fraction=0", "data.val=null")
    wide = fine_tuning_config(given)
    assert (wide.data.batch_size, wide.model.grad_checkpointing) == (4, False)
    monkeypatch.setattr(finetuning, "available_memory", lambda: 500_000)
    narrow = fine_tuning_config(given)
    assert narrow.data.batch_size < 4 and narrow.model.grad_checkpointing
    monkeypatch.setattr(finetuning, "available_memory", lambda: None)  # a system that does not say
    assert fine_tuning_config(given).data.batch_size == 4


def test_unequal_classes_are_drawn_equally_often(
    uniformer: Path, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    make_dataset(tmp_path / "v", classes=("a",), per_class=5)
    make_dataset(tmp_path / "v", classes=("b",), per_class=2)
    assert fine_tuning_config(options(uniformer, tmp_path / "v")).data.balance == "class"


def test_a_run_is_complete_repeats_and_resumes(
    inflated: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From weights to a run, from the run's folder to another fine-tuning, and from its config to the same again."""
    quick = {"trainer.max_epochs": 2, "optim.frozen_epochs": 1, "data.workers": 0, "trainer.accelerator": "cpu"}
    quick |= {"protocol.mean": [0.4, 0.4, 0.4], "optim.schedule_epochs": 3}
    result = stvid.train(init=inflated, data=videos, output=tmp_path / "run", overrides=quick)
    said = capsys.readouterr().out
    assert "note      protocol.mean: [0.4, 0.4, 0.4] instead of the weights' [0.5, 0.5, 0.5]\n" in said
    assert result.best is not None and "val_top1@1x1" in result.metrics
    model = stvid.load_model(result.output)
    assert model.default_protocol == OWN.replace(mean=(0.4,) * 3, class_names=("left", "right", "turn"))

    written = load_config(result.output / "config.yaml")
    again = resolve_config(result.output / "config.yaml", [f"--output={tmp_path / 'again'}"])
    assert again.protocol == written.protocol  # also the mean, which is the user's
    repeated = stvid.train(config=again)
    assert "instead of the weights' [0.5" in capsys.readouterr().out
    states = [torch.load(run.last, weights_only=True)["state_dict"] for run in (result, repeated)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    config = fine_tuning_config(options(result.output, videos))
    assert config.protocol.mean == (0.4,) * 3 and config.model.name == TINY
    resumed = finetuning.training.train(stvid.runs.resume_config(result.output, ["--trainer.max_epochs", "3"]))
    assert torch.load(resumed.last, weights_only=True)["epoch"] == 2


def test_the_normalisation_of_the_weights_is_used(
    inflated: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(inflated, videos, f"model.name={TINY}", "model.hyperparameters={temporal: shift, shift_div: 4}")
    config = resolve_config("uniformer_xxs_folder.yaml", given)
    assert (config.protocol.mean, config.protocol.std, config.protocol.channels) == (OWN.mean, OWN.std, "bgr")
    assert (config.protocol.frames, config.protocol.crop) == (16, 112)  # those of the recipe
    lines = capsys.readouterr().err.splitlines()
    assert "protocol.mean: [0.5, 0.5, 0.5] of the weights instead of [0.45, 0.45, 0.45] of the config" in lines
    assert "protocol.channels: bgr of the weights instead of rgb of the config" in lines

    config = resolve_config("uniformer_xxs_folder.yaml", [*given, "--protocol.std", "[1, 1, 1]"])
    assert config.protocol.mean == OWN.mean and config.protocol.std == (1.0,) * 3
    capsys.readouterr()
    complete = tmp_path / "complete.yaml"
    complete.write_text(dump_config(load_config("uniformer_xxs_folder.yaml", given)))
    assert resolve_config(complete, []).protocol.mean == (0.45,) * 3  # whoever wrote all of it meant it
    assert capsys.readouterr().err == ""


def test_weights_that_say_nothing_change_nothing(tmp_path: Path, videos: Path) -> None:
    model = stvid.create_model("uniformer_xxs", num_classes=5, **ARGUMENTS)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    given = options(tmp_path / "w.pth", videos)
    assert resolve_config("uniformer_xxs_folder.yaml", given) == load_config("uniformer_xxs_folder.yaml", given)


def test_the_python_function_names_what_is_wrong(videos: Path, uniformer: Path) -> None:
    with pytest.raises(ConfigError, match=r"^init, config: neither is given"):
        stvid.train(data=videos)
    with pytest.raises(ConfigError, match=r"^overrides: optim\.lrr: unknown key; nearest: optim\.lr"):
        stvid.train(init=uniformer, data=videos, overrides={"optim.lrr": 1})
    with pytest.raises(ConfigError, match=r"^overrides: data\.train: is given as an argument already$"):
        stvid.train(init=uniformer, data=videos, overrides={"data.train": "x"})
    with pytest.raises(ConfigError, match=r"^overrides: .* is no plain value"):
        stvid.train(init=uniformer, data=videos, overrides={"optim.lr": torch.zeros(1)})


def test_runs_are_named_after_videos_and_model() -> None:
    config = load_config(None, ["--data.train=/data/my gestures/", "--model.name=timm/vit_tiny"])
    assert run_name(config) == "my_gestures_vit_tiny"
