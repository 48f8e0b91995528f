from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stvid
from stvid.config import TrainConfig, load_config
from stvid.engine.course import TimeEstimate, _Measured, duration
from stvid.engine.task import VideoTask
from stvid.engine.train import train
from stvid.errors import ConfigError
from stvid.runs import resume_config

MODEL = "{depth: [1, 1, 1, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}"


@pytest.fixture(autouse=True)
def _one_thread_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path_factory.mktemp("videos"), per_class=4)


@pytest.fixture
def configure(videos: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(*options: str, output: str = "run") -> TrainConfig:
        base = ["model.name=uniformer_xxs", f"model.hyperparameters={MODEL}", f"data.train={videos}"]
        base += ["data.batch_size=4", "data.workers=0", "protocol.frames=4", "protocol.short_side=32"]
        base += ["protocol.crop=32", "optim.lr=0.003", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
        return load_config(None, [f"--{option}" for option in [*base, *options, f"output={tmp_path / output}"]])

    return make


def model_of(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_only_the_head_is_trained_at_first(configure: Callable[..., TrainConfig], accumulate: int) -> None:
    """Batch norms stay, too; an optimiser with weight decay and momentum does not move what is frozen."""
    start = train(configure("trainer.max_epochs=1", "optim.lr=1e-30", output="start"))
    options = ["optim.frozen_epochs=2", f"init={start.last}", f"trainer.accumulate_grad_batches={accumulate}"]
    options += ["trainer.ema_decay=0.5"] if accumulate > 1 else []
    head = train(configure(*options, "trainer.max_epochs=2", output="head"))
    before = model_of(start.last)
    moved = changed(before, model_of(head.last))
    assert moved and all(key.startswith("head.") for key in moved)
    whole = train(configure(*options, "trainer.max_epochs=3", output="whole"))
    moved = changed(before, model_of(whole.last))
    assert any(key.startswith("blocks1.") for key in moved) and any(key.endswith("running_mean") for key in moved)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_trains_the_head_first_resumes_exactly(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    options = ["optim.frozen_epochs=2", "model.drop_path_rate=0.3", "optim.schedule_epochs=3"]
    whole = train(configure(*options, "trainer.max_epochs=3", output="whole"))
    half = train(configure(*options, f"trainer.max_epochs={epochs}", output="half"))
    again = train(resume_config(half.output, ["--trainer.max_epochs", "3"]))
    assert not changed(model_of(whole.last), model_of(again.last))


def test_several_processes_throw_the_gradients_away() -> None:
    """They compute them, since others wait for them; the optimiser must not see them."""

    class Trainer:
        world_size = 2

    model = stvid.create_model("resnet3d_18", num_classes=2, num_frames=4, img_size=32)
    config = load_config(None, ["--protocol.frames=4", "--protocol.crop=32"])
    task = VideoTask(model, config, lr=0.1, clips_per_step=2, steps_per_epoch=1, training_videos=2)
    task._trainer = Trainer()  # type: ignore[assignment]
    task.train_head_only(True)
    assert model.conv1.weight.requires_grad and not model.bn1.training  # type: ignore[union-attr]
    model(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.on_before_optimizer_step(optimizer)
    optimizer.step()
    assert changed(before, model.state_dict()) == {"head.fc.weight", "head.fc.bias"}
    task.train_head_only(False)
    assert model.bn1.training  # type: ignore[union-attr]


def test_a_training_that_gets_no_better_ends(
    configure: Callable[..., TrainConfig], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"data.val={videos}", "optim.lr=1e-30", "trainer.patience=2", "trainer.max_epochs=9"]
    result = train(configure(*options))
    printed = capsys.readouterr().out
    assert "epoch 3/9" in printed and "epoch 4/9" not in printed
    assert "patience  stopped after epoch 3: val_top1@1x1 was not better than" in printed
    assert result.best is not None
    stored = [torch.load(path, weights_only=True)["epoch"] for path in (result.best, result.last)]
    assert stored == [0, 2]
    with pytest.raises(ConfigError, match=r"^trainer\.patience: 0 is not a whole number from 1 up, nor null$"):
        configure("trainer.patience=0")


def test_a_training_that_gets_too_little_better_ends(
    configure: Callable[..., TrainConfig],
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another number than the accuracy decides, and so does how much better it is."""
    course = iter([0.1, 0.4, 0.45, 0.49, 0.6])
    log_dict = VideoTask.log_dict

    def rigged(self: VideoTask, values: dict[str, float], **more: object) -> None:
        if "val_mean_class@1x1" in values:
            values = {**values, "val_mean_class@1x1": next(course)}
        log_dict(self, values, **more)

    monkeypatch.setattr(VideoTask, "log_dict", rigged)
    options = [f"data.val={videos}", "trainer.monitor=val_mean_class@1x1", "trainer.min_delta=0.1"]
    result = train(configure(*options, "trainer.patience=2", "trainer.max_epochs=9"))
    said = "stopped after epoch 4: val_mean_class@1x1 was not 0.1 better than 0.4000 in 2 validations"
    assert said in capsys.readouterr().out
    assert result.best is not None and torch.load(result.best, weights_only=True)["epoch"] == 3  # the best of all


@pytest.mark.parametrize(
    "options,message",
    [
        (("trainer.monitor=val_top1@4x3",), r"the validation has no number val_top1@4x3; nearest: val_top1@1x1"),
        (("trainer.monitor=loss",), r"the validation has no number loss; there are val_top1@1x1, val_mean_class@1x1"),
        (("trainer.monitor=val_top1@1x1", "data.val=null"), r"val_top1@1x1 is a number of the validation, and there"),
        (
            ("trainer.monitor=val_top1@1x1", "task=multilabel"),
            r"the validation has no number val_top1@1x1; nearest: val_mAP",
        ),
    ],
)
def test_a_number_that_the_validation_has_not(
    configure: Callable[..., TrainConfig], videos: Path, options: tuple[str, ...], message: str
) -> None:
    made = configure(f"data.val={videos}", *options)
    with pytest.raises(ConfigError, match=rf"^trainer\.monitor: {message}"):
        train(made)
    assert not list(Path(made.output or "").rglob("*.ckpt"))


def test_the_time_is_estimated(configure: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]) -> None:
    train(configure("trainer.max_epochs=3", "optim.frozen_epochs=1"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time ")]
    assert len(lines) == 2  # again when more is trained than the head
    times = r"time      about \d+ (s|min) an epoch, [\d.]+ (s|min)"
    assert re.fullmatch(rf"{times} in all", lines[0]) and re.fullmatch(
        rf"{times} for the 2 epochs that are left", lines[1]
    )


@pytest.mark.parametrize(
    "head_only,waited,step,view",
    [
        (False, 0.0, 6.0, 0.25),  # a third of a step is its forward pass
        (True, 0.0, 18.0, 0.75),  # later steps have a backward pass, twice as long
        (True, 24.0, 18.0, 1.5),  # for which the data are there in time
        (False, 24.0, 12.0, 1.0),
    ],
)
def test_an_estimate_from_measured_steps(head_only: bool, waited: float, step: float, view: float) -> None:
    estimate = TimeEstimate(validated=10, val_every=1)
    estimate._head_only = head_only
    estimate._measured = _Measured(steps=4, waited=waited, worked=24.0, clips=32)
    epoch, validation = estimate.estimate(100)
    assert (epoch, validation) == (pytest.approx(100 * step), pytest.approx(10 * view))


@pytest.mark.parametrize(
    "seconds,text",
    [(0.2, "1 s"), (89, "89 s"), (720, "12 min"), (7200, "2 h"), (9000, "2.5 h"), (260000, "3 days")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_epochs_are_not_negative(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"^optim\.frozen_epochs: -1 is not a whole number from 0 up$"):
        configure("optim.frozen_epochs=-1")
