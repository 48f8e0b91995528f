"""A training run from a config: what `stvid train` does."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from stvid.checkpoints import load_checkpoint, read_checkpoint
from stvid.config import TrainConfig, dump_config
from stvid.data.dataset import EvalDataset, TrainDataset
from stvid.engine.callbacks import (
    AtomicCheckpointIO,
    EpochLines,
    MetricsCsv,
    StopOnSignal,
    Throughput,
    TrainBar,
)
from stvid.engine.loaders import VideoData
from stvid.engine.optim import scaled_learning_rate
from stvid.engine.task import VideoTask
from stvid.errors import CheckpointError, ConfigError, Interrupted, ManifestError, StvidError, nearest
from stvid.files import write_atomically
from stvid.models.base import VideoModel
from stvid.models.registry import create_model
from stvid.runs import (
    RUN_DIR_VARIABLE,
    check_resumable,
    claim_output,
    cpu_cores,
    default_workers,
    newest_checkpoint,
    read_data,
    stored_run,
)

__all__ = ["TrainResult", "train"]


@dataclass
class TrainResult:
    """What a run left behind.

    Attributes:
        output: Folder of the run.
        last: Newest checkpoint.
        best: Checkpoint with the best validation; None without validation.
        metrics: Last value of each logged number.
        failures: Path and reason of each unreadable training video.
    """

    output: Path
    last: Path
    best: Path | None
    metrics: dict[str, float]
    failures: dict[str, str]


# --- data and model ---------------------------------------------------------------------------------------------------


# Arguments of `create_model` that other keys of a config stand for.
FROM_ELSEWHERE = {
    "num_classes": "the classes of data.train",
    "num_frames": "protocol.frames",
    "img_size": "protocol.crop",
    "checkpoint": "init",
}


def _build_model(config: TrainConfig, num_classes: int) -> VideoModel:
    options = dict(config.model.hyperparameters)
    for name, place in FROM_ELSEWHERE.items():
        if name in options:
            raise ConfigError(f"model.hyperparameters: {name} is decided by {place}; leave it out here")
    if config.model.drop_path_rate is not None:
        options["drop_path_rate"] = config.model.drop_path_rate
    try:
        model = create_model(
            config.model.name,
            num_classes=num_classes,
            num_frames=config.protocol.frames,
            img_size=config.protocol.crop,
            **options,
        )
    except TypeError as error:
        raise ConfigError(f"model.hyperparameters: {error} (they are {options})") from error
    except ValueError as error:
        if isinstance(error, StvidError):
            raise
        raise ConfigError(f"model {config.model.name}: {error}") from error
    model.set_grad_checkpointing(config.model.grad_checkpointing)
    _freeze(model, config.model.frozen)
    return model


def _freeze(model: VideoModel, modules: Sequence[str]) -> None:
    """Excludes the parameters from training whose names begin with one of these module names."""
    for module in modules:
        parameters = [parameter for name, parameter in model.named_parameters() if f"{name}.".startswith(f"{module}.")]
        if not parameters:
            hint = nearest(module, [name for name, _ in model.named_modules() if name])
            raise ConfigError(f"model.frozen: {module!r} is not a module of {type(model).__name__}{hint}")
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("model.frozen: nothing is left to train")


def _initialise(
    model: VideoModel, config: TrainConfig, class_names: tuple[str, ...], say: Callable[[str], None]
) -> None:
    if config.init is None or config.resume is not None:
        return
    try:
        report = load_checkpoint(model, config.init, reset_head=True)
    except CheckpointError as error:
        stored = read_checkpoint(config.init).get("stvid")
        recipe = stored.get("model", {}) if isinstance(stored, Mapping) else {}
        if recipe.get("name", config.model.name) == config.model.name:
            raise
        given = shlex.quote(json.dumps(recipe["hyperparameters"]))
        options = f" --model.hyperparameters {given}" if recipe["hyperparameters"] else ""
        raise ConfigError(
            f"init {config.init}: holds {recipe['name']}, not {config.model.name}; add --model.name {recipe['name']}"
            f"{options}"
        ) from error
    say(f"init      {report}")
    stored = report.protocol.class_names if report.protocol is not None else ()
    if not report.reset and stored and stored != class_names:
        model.reset_classifier(len(class_names))
        say("init      the checkpoint's classes have other names: new head")


# --- the run ----------------------------------------------------------------------------------------------------------


class _LastEpoch(Callback):
    """Validates and saves after the last epoch even if `val_every` or `save_every` does not divide the epochs."""

    def __init__(self, path: Path, *, save_every: int) -> None:
        self.path = path
        self.save_every = save_every

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # stands before the averaging of weights in the list, which then replaces the weights by their average
        if trainer.current_epoch % self.save_every or trainer.max_steps != -1:
            trainer.save_checkpoint(self.path)


class _RunConfig(Callback):
    """Writes the config when the first step is near: a continuation that is refused leaves the earlier file."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self.begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True
        if trainer.is_global_zero:
            write_atomically(self.path, lambda path: path.write_text(dump_config(self.config), encoding="utf-8"))


class _BestCheckpoint(ModelCheckpoint):
    """Knows its best score again when the folder of the run was moved; Lightning's forgets it then."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {
            key: here(value) if key in ("best_model_path", "kth_best_model_path", "last_model_path") else value
            for key, value in state_dict.items()
        }
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**moved, "dirpath": self.dirpath})


class _FailureLimit(Callback):
    """Lists unreadable training videos after each epoch, and stops the run when there are too many."""

    def __init__(self, folder: Path, *, videos: int, limit: float) -> None:
        self.path = folder / "unreadable.csv"
        self.videos = videos
        self.limit = limit

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VideoTask)
        if trainer.world_size == 1:  # several ranks agree at the end of the epoch
            self._check(pl_module.failures)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VideoTask)
        failures = pl_module.gathered_failures()
        if failures and trainer.is_global_zero:
            write_atomically(self.path, lambda path: _write_failures(path, failures))
        self._check(failures)

    def _check(self, failures: dict[str, str]) -> None:
        if len(failures) > self.limit * self.videos:
            write_atomically(self.path, lambda path: _write_failures(path, failures))
            path, reason = next(iter(failures.items()))
            raise StvidError(
                f"{len(failures)} of {self.videos} training videos could not be read, more than data.max_failures "
                f"({self.limit:g}) allows; first {path}: {reason}; all are in {self.path}"
            )


def _write_failures(path: Path, failures: dict[str, str]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(sorted(failures.items()))


def _callbacks(config: TrainConfig, output: Path, *, videos: int, has_val: bool) -> list[Callback]:
    folder = output / "checkpoints"
    trainer = config.trainer
    callbacks: list[Callback] = [
        Throughput(),
        EpochLines(),
        _LastEpoch(folder / "last.ckpt", save_every=trainer.save_every),
        LearningRateMonitor(logging_interval="step"),
    ]
    if trainer.keep > 1:
        callbacks.append(
            ModelCheckpoint(
                dirpath=folder,
                filename="epoch{epoch:04d}",
                auto_insert_metric_name=False,
                monitor="epoch",
                mode="max",
                save_top_k=trainer.keep,
                every_n_epochs=trainer.save_every,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    # After those that are kept, so that it knows of the newest of them and a continued run removes it in its turn.
    callbacks.append(
        ModelCheckpoint(
            dirpath=folder,
            filename="last",
            every_n_epochs=trainer.save_every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
    )
    if has_val:
        name = "mAP" if config.task == "multilabel" else "top1"
        callbacks.append(
            _BestCheckpoint(
                dirpath=folder,
                filename="best",
                monitor=f"val_{name}@{config.data.val_views}",
                mode="max",
                save_top_k=1,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
        )
    if trainer.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=trainer.ema_decay))
    if trainer.progress and sys.stdout.isatty():
        callbacks.append(TrainBar(leave=False))
    stop = StopOnSignal(folder)
    callbacks += [_FailureLimit(output, videos=videos, limit=config.data.max_failures), stop]
    return callbacks


def _build_trainer(config: TrainConfig, output: Path, callbacks: list[Callback], has_val: bool) -> Trainer:
    options = config.trainer
    plugins: list[CheckpointIO] = [AtomicCheckpointIO()]
    devices: Any = int(options.devices) if str(options.devices).lstrip("-").isdigit() else options.devices
    try:
        return Trainer(
            max_epochs=options.max_epochs,
            max_steps=-1 if options.max_steps is None else options.max_steps,
            accelerator=options.accelerator,
            devices=devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=options.precision,
            accumulate_grad_batches=options.accumulate_grad_batches,
            gradient_clip_val=options.gradient_clip_val,
            sync_batchnorm=options.sync_batchnorm,
            check_val_every_n_epoch=options.val_every,
            limit_val_batches=None if has_val else 0,
            log_every_n_steps=options.log_every_n_steps,
            deterministic=options.deterministic,
            enable_progress_bar=any(isinstance(callback, TrainBar) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=output,
            logger=[
                MetricsCsv(output, resumed=config.resume is not None),
                TensorBoardLogger(save_dir=output, name="", version=""),
            ],
            callbacks=callbacks,
            plugins=plugins,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        # Lightning checks accelerator, devices, strategy and precision here; its messages say which
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _quiet_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
    # depth-wise weights have two equal layouts; DDP copies them, which costs nothing to speak of
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")


def _share_cores(config: TrainConfig) -> None:
    """Leaves the loader processes of a training on the CPU a core of their own.

    torch takes a thread for each core; with decoding processes beside them the threads wait for each other at every
    operation. A user's OMP_NUM_THREADS is respected.
    """
    on_cpu = config.trainer.accelerator == "cpu" or (
        config.trainer.accelerator == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available()
    )
    if not on_cpu or "OMP_NUM_THREADS" in os.environ:
        return
    ranks = int(config.trainer.devices) if str(config.trainer.devices).isdigit() else 1
    workers = default_workers(config.data.workers)
    torch.set_num_threads(max(1, cpu_cores() // max(ranks, 1) - workers))


def _how_to_go_on(output: Path) -> str:
    if not any((output / "checkpoints").glob("*.ckpt")):
        return "nothing had been saved yet: start it again with the same command"
    return f"continue from the last checkpoint with: stvid train --resume {output}"


def train(config: TrainConfig, *, name: str = "run") -> TrainResult:
    """Runs a training from a config.

    Args:
        config: Everything about the run.
        name: Of the folder below ``runs`` if `config.output` is not set.

    Returns:
        Where the checkpoints are, and the last numbers.

    Raises:
        ConfigError: If the config cannot be run.
        ManifestError: If the videos' list cannot be used.
        CheckpointError: If weights cannot be read, do not fit, or cannot be written.
        Interrupted: If SIGINT or SIGTERM came; the state is saved and can be continued exactly.
        StvidError: If the loss is not finite, or too many videos cannot be read.
    """
    _quiet_lightning()
    _share_cores(config)
    if config.resume is not None:
        config = dataclasses.replace(config, resume=str(newest_checkpoint(config.resume)))
    if config.init is not None:
        config = dataclasses.replace(config, init=str(newest_checkpoint(config.init, prefer="best.ckpt")))
    with claim_output(config, name) as output:
        return _train(config, output)


def _check_readable(videos: EvalDataset, *, samples: int = 8) -> None:
    """Raises ManifestError if no video tried can be read: otherwise an epoch is trained before `val` fails."""
    numbers = sorted({number * (len(videos) - 1) // (samples - 1) for number in range(samples)})
    failures = []
    for number in numbers:
        sample = videos[number]
        if not sample.error:
            return
        failures.append(f"{videos.manifest[number].path}: {sample.error}")
    raise ManifestError(
        f"data.val: {videos.manifest.source}: none of the {len(failures)} videos tried can be read; first {failures[0]}"
    )


def _train(config: TrainConfig, output: Path) -> TrainResult:
    """Does what `train` says, in a folder of its own."""
    before = None if config.resume is None else stored_run(config.resume)
    if before is not None and not config.protocol.class_names:
        names = tuple(before["protocol"]["class_names"])  # the order of the logits
        config = dataclasses.replace(config, protocol=config.protocol.replace(class_names=names))
    train_videos, val_videos = read_data(config)
    class_names = train_videos.class_names
    config = dataclasses.replace(config, output=str(output), protocol=config.protocol.replace(class_names=class_names))
    torch.manual_seed(config.seed)  # the initial weights
    model = _build_model(config, len(class_names))

    # The file names the run as a user would start it again: not as the continuation that this may be.
    begun = _RunConfig(output / "config.yaml", dataclasses.replace(config, resume=None))
    callbacks = [begun, *_callbacks(config, output, videos=len(train_videos), has_val=val_videos is not None)]
    stop = next(callback for callback in callbacks if isinstance(callback, StopOnSignal))
    trainer = _build_trainer(config, output, callbacks, val_videos is not None)

    def say(line: str) -> None:
        if trainer.is_global_zero:
            print(line, flush=True)

    _initialise(model, config, class_names, say)
    model.default_protocol = config.protocol
    model.task = config.task
    clips_per_step = config.data.batch_size * trainer.world_size * config.trainer.accumulate_grad_batches
    if before is not None:
        check_resumable(config, before, clips_per_step=clips_per_step, training_videos=len(train_videos))
    lr = scaled_learning_rate(config.optim, clips_per_step)
    multilabel = config.task == "multilabel"
    shared: dict[str, Any] = {
        "backend": config.data.backend,
        "decode_threads": config.data.decode_threads,
        "multilabel": multilabel,
    }
    val = None
    if val_videos is not None:
        val = EvalDataset(val_videos, config.protocol, views=config.data.val_views, **shared)
        _check_readable(val)
    data = VideoData(
        TrainDataset(
            train_videos, config.protocol, config.augment, seed=config.seed, repeats=config.data.repeats, **shared
        ),
        val,
        config.data,
        seed=config.seed,
        stop=stop.stop_requested,
    )
    task = VideoTask(
        model,
        config,
        lr=lr,
        clips_per_step=clips_per_step,
        steps_per_epoch=data.steps_per_epoch(
            world_size=trainer.world_size, accumulate=config.trainer.accumulate_grad_batches
        ),
        training_videos=len(train_videos),
        val_paths=lambda index: "" if val_videos is None else val_videos[index].path,
        stop_requested=stop.stop_requested,
    )

    if trainer.is_global_zero:
        os.environ[RUN_DIR_VARIABLE] = str(output.resolve())
    params = sum(parameter.numel() for parameter in model.parameters())
    say(f"model     {config.model.name}, {params / 1e6:.2f} M parameters, {len(class_names)} classes")
    say(f"data      {len(train_videos)} training videos, {len(val_videos) if val_videos else 0} for validation")
    clips = config.augment.clip_protocol(config.protocol)
    other = "" if clips == config.protocol else f"; training clips of {clips.frames} frames, crop {clips.crop}"
    say(f"protocol  {config.protocol.describe()}{other}")
    scaling = f" = {config.optim.lr:g} x {clips_per_step}/{config.optim.base_batch}" if config.optim.base_batch else ""
    say(
        f"optim     {config.optim.name}, learning rate {lr:.3g}{scaling}; {clips_per_step} clips a step "
        f"({config.data.batch_size} clips x {trainer.world_size} devices x {config.trainer.accumulate_grad_batches})"
    )
    say(f"output    {output}")
    if config.resume is not None:
        say(f"resume    {config.resume}")
    try:
        try:
            trainer.fit(task, datamodule=data, ckpt_path=config.resume)
        except StvidError:
            # a signal to the whole process group ends the data workers too, before the step in hand is done
            if stop.received is not None and stop.saved is None:
                name = signal.Signals(stop.received).name
                raise Interrupted(
                    f"stopped by {name} before the state could be saved; {_how_to_go_on(output)}", stop.received
                ) from None
            raise
        failures = task.gathered_failures()
        if not begun.begun:
            say("resume    nothing is left to do: give more trainer.max_epochs, or trainer.max_steps, to go on")
    except SystemExit as error:  # Lightning's answer to a signal that comes before `StopOnSignal` is ready, or twice
        signum = signal.SIGINT if isinstance(error.__context__, KeyboardInterrupt) else signal.SIGTERM
        raise Interrupted(f"stopped by {signum.name} at once; {_how_to_go_on(output)}", signum) from None
    except torch.OutOfMemoryError as error:
        raise StvidError(
            f"the device has too little memory for {config.data.batch_size} clips: lower data.batch_size, or set "
            "model.grad_checkpointing true, or trainer.precision bf16-mixed"
        ) from error
    except OSError as error:
        if isinstance(error, StvidError):
            raise
        place, reason = error.filename or output, error.strerror or error
        raise StvidError(f"{place}: {reason}; {_how_to_go_on(output)}") from error
    except (RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())
        if config.resume is not None and "state_dict" in text:
            raise CheckpointError(f"{config.resume}: does not fit this config: {text[:200]}") from error
        raise
    finally:
        data.close()
        os.environ.pop(RUN_DIR_VARIABLE, None)
    if trainer.is_global_zero:
        (output / "checkpoints" / "interrupted.ckpt").unlink(missing_ok=True)
    best = output / "checkpoints" / "best.ckpt"
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()} | task.validated
    if failures:
        say(f"{len(failures)} training videos could not be read: {output / 'unreadable.csv'}")
    return TrainResult(
        output=output,
        last=output / "checkpoints" / "last.ckpt",
        best=best if val_videos is not None and best.exists() else None,
        metrics=metrics,
        failures=failures,
    )
