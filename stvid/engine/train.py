"""A training run from a config: what `stvid train` does."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from stvid.checkpoints import load_checkpoint, read_checkpoint, write_atomically
from stvid.config import TrainConfig, dump_config
from stvid.data.dataset import EvalDataset, TrainDataset
from stvid.data.manifest import Manifest, read_class_names
from stvid.engine.callbacks import (
    AtomicCheckpointIO,
    EpochLines,
    Interrupted,
    MetricsCsv,
    StopOnSignal,
    Throughput,
    TrainBar,
)
from stvid.engine.loaders import VideoData
from stvid.engine.optim import scaled_learning_rate
from stvid.engine.runs import RUN_DIR_VARIABLE, choose_output, newest_checkpoint, read_split
from stvid.engine.task import VideoTask
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.models.layers import VideoModel
from stvid.models.registry import create_model

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


def _limited(manifest: Manifest, limit: int | None, seed: int) -> Manifest:
    if limit is None or limit >= len(manifest):
        return manifest
    rng = np.random.default_rng([seed, len(manifest)])
    return manifest.subset(np.sort(rng.choice(len(manifest), size=limit, replace=False)))


def _hold_out(manifest: Manifest, fraction: float, seed: int) -> tuple[Manifest, Manifest]:
    """Splits off a share of each class, at least one video of each class that has two."""
    if not 0 < fraction < 1:
        raise ConfigError(f"data.val_fraction: {fraction} is not between 0 and 1")
    rng = np.random.default_rng([seed, 1])
    held: list[int] = []
    primary = np.asarray(manifest.primary)
    for label in np.unique(primary):
        rows = rng.permutation(np.flatnonzero(primary == label))
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held += rows[:count].tolist()
    mask = np.zeros(len(manifest), dtype=bool)
    mask[held] = True
    return manifest.subset(np.flatnonzero(~mask)), manifest.subset(np.flatnonzero(mask))


def _class_order(config: TrainConfig) -> tuple[str, ...] | None:
    """Returns the order of the logits if the config or the initial weights fix it."""
    if config.protocol.class_names:
        return config.protocol.class_names
    if config.data.class_names is not None:
        return read_class_names(config.data.class_names)
    return None


def _initial_class_names(config: TrainConfig) -> tuple[str, ...]:
    if config.init is None or config.resume is not None:
        return ()
    stored = read_checkpoint(config.init).get("stvid")
    return tuple(stored["protocol"]["class_names"]) if isinstance(stored, dict) and "protocol" in stored else ()


def _read_data(config: TrainConfig) -> tuple[Manifest, Manifest | None]:
    order = _class_order(config)
    train = read_split(config, "train", class_names=order)
    if not train.has_labels:
        raise ConfigError(f"data.train: {train.source} has no labels")
    initial = _initial_class_names(config)
    if order is None and set(initial) == set(train.class_names):
        train = train.with_class_names(initial)  # the head of the initial weights stays usable
    val = None
    if config.data.val is not None:
        val = _limited(read_split(config, "val", class_names=train.class_names), config.data.limit_val, config.seed)
    elif config.data.val_fraction:
        train, val = _hold_out(train, config.data.val_fraction, config.seed)
    return _limited(train, config.data.limit_train, config.seed), val


def _build_model(config: TrainConfig, num_classes: int) -> VideoModel:
    options = dict(config.model.hyperparameters)
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
        raise ConfigError(f"model.hyperparameters: {error}") from error
    except ValueError as error:
        if isinstance(error, StvidError):
            raise
        raise ConfigError(f"model {config.model.name}: {error}") from error
    model.set_grad_checkpointing(config.model.grad_checkpointing)
    return model


def _initialise(
    model: VideoModel, config: TrainConfig, class_names: tuple[str, ...], say: Callable[[str], None]
) -> None:
    if config.init is None or config.resume is not None:
        return
    report = load_checkpoint(model, config.init, reset_head=True)
    say(f"init      {report}")
    stored = report.protocol.class_names if report.protocol is not None else ()
    if not report.reset and stored and stored != class_names:
        model.reset_classifier(len(class_names))
        say("init      the checkpoint's classes have other names: new head")


# --- the run ----------------------------------------------------------------------------------------------------------


class _LastEpoch(Callback):
    """Validates after the last epoch even if `val_every` does not divide the number of epochs."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class _FailureLimit(Callback):
    """Lists unreadable training videos after each epoch, and stops the run when there are too many."""

    def __init__(self, folder: Path, *, videos: int, limit: float) -> None:
        self.path = folder / "unreadable.csv"
        self.videos = videos
        self.limit = limit

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VideoTask)
        failures = pl_module.gathered_failures()
        if failures and trainer.is_global_zero:
            write_atomically(self.path, lambda path: _write_failures(path, failures))
        if len(failures) > self.limit * self.videos:
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
        _LastEpoch(),
        LearningRateMonitor(logging_interval="step"),
        ModelCheckpoint(
            dirpath=folder,
            filename="last",
            every_n_epochs=trainer.save_every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
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
    if has_val:
        name = "mAP" if config.task == "multilabel" else "top1"
        callbacks.append(
            ModelCheckpoint(
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
    resumed_step = None
    if config.resume is not None:
        resumed_step = int(read_checkpoint(config.resume).get("global_step", 0))
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
                MetricsCsv(output, resume_step=resumed_step),
                TensorBoardLogger(save_dir=output, name="", version=""),
            ],
            callbacks=callbacks,
            plugins=plugins,
        )
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        # Lightning checks accelerator, devices, strategy and precision here; its messages say which
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _quiet_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
    # depth-wise weights have two equal layouts; DDP copies them, which costs nothing to speak of
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides")


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
    if config.resume is not None:
        config = dataclasses.replace(config, resume=str(newest_checkpoint(config.resume)))
    if config.init is not None:
        config = dataclasses.replace(config, init=str(newest_checkpoint(config.init, prefer="best.ckpt")))
    output = choose_output(config, name)
    train_videos, val_videos = _read_data(config)
    class_names = train_videos.class_names
    config = dataclasses.replace(config, output=str(output), protocol=config.protocol.replace(class_names=class_names))
    torch.manual_seed(config.seed)  # the initial weights
    model = _build_model(config, len(class_names))

    callbacks = _callbacks(config, output, videos=len(train_videos), has_val=val_videos is not None)
    stop = next(callback for callback in callbacks if isinstance(callback, StopOnSignal))
    trainer = _build_trainer(config, output, callbacks, val_videos is not None)

    def say(line: str) -> None:
        if trainer.is_global_zero:
            print(line, flush=True)

    _initialise(model, config, class_names, say)
    model.default_protocol = config.protocol
    clips_per_step = config.data.batch_size * trainer.world_size * config.trainer.accumulate_grad_batches
    lr = scaled_learning_rate(config.optim, clips_per_step)
    multilabel = config.task == "multilabel"
    shared: dict[str, Any] = {
        "backend": config.data.backend,
        "decode_threads": config.data.decode_threads,
        "multilabel": multilabel,
    }
    data = VideoData(
        TrainDataset(
            train_videos, config.protocol, config.augment, seed=config.seed, repeats=config.data.repeats, **shared
        ),
        None if val_videos is None else EvalDataset(val_videos, config.protocol, views=config.data.val_views, **shared),
        config.data,
        seed=config.seed,
        stop=stop.stop_requested,
    )
    task = VideoTask(
        model,
        config,
        lr=lr,
        steps_per_epoch=data.steps_per_epoch(
            world_size=trainer.world_size, accumulate=config.trainer.accumulate_grad_batches
        ),
        val_paths=lambda index: "" if val_videos is None else val_videos[index].path,
        stop_requested=stop.stop_requested,
    )

    if trainer.is_global_zero:
        # The file names the run as a user would start it again: not as the continuation that this may be.
        write_atomically(
            output / "config.yaml",
            lambda path: path.write_text(dump_config(dataclasses.replace(config, resume=None)), encoding="utf-8"),
        )
        os.environ[RUN_DIR_VARIABLE] = str(output.resolve())
    params = sum(parameter.numel() for parameter in model.parameters())
    say(f"model     {config.model.name}, {params / 1e6:.2f} M parameters, {len(class_names)} classes")
    say(f"data      {len(train_videos)} training videos, {len(val_videos) if val_videos else 0} for validation")
    say(f"protocol  {config.protocol.describe()}")
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
                raise Interrupted(
                    f"stopped by signal {stop.received} before the state could be saved; continue from the last "
                    f"checkpoint with: stvid train --resume {output}",
                    stop.received,
                ) from None
            raise
        if trainer.current_epoch % config.trainer.save_every:
            trainer.save_checkpoint(output / "checkpoints" / "last.ckpt")
        failures = task.gathered_failures()
    except Interrupted:
        raise
    except (RuntimeError, KeyError) as error:
        if isinstance(error, StvidError):
            raise
        text = " ".join(str(error).split())
        if "DataLoader worker" in text:
            raise StvidError(
                f"{text[:200]}; a data worker was killed (memory?): use fewer data.workers, then continue with "
                f"--resume {output}"
            ) from error
        if config.resume is not None and "state_dict" in text:
            raise CheckpointError(f"{config.resume}: does not fit this config: {text[:200]}") from error
        raise
    finally:
        data.close()
        os.environ.pop(RUN_DIR_VARIABLE, None)
    if trainer.is_global_zero:
        (output / "checkpoints" / "interrupted.ckpt").unlink(missing_ok=True)
    best = output / "checkpoints" / "best.ckpt"
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    if failures:
        say(f"{len(failures)} training videos could not be read: {output / 'unreadable.csv'}")
    return TrainResult(
        output=output,
        last=output / "checkpoints" / "last.ckpt",
        best=best if val_videos is not None and best.exists() else None,
        metrics=metrics,
        failures=failures,
    )
