"""A training run from a config: what `stvid train` does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor

from stvid.config import TrainConfig
from stvid.console import command_line, printable
from stvid.data.clips import video_grid
from stvid.data.dataset import EvalDataset, TrainDataset
from stvid.data.manifest import Manifest
from stvid.data.mirroring import mirrored_classes
from stvid.data.sampling import clip_span
from stvid.engine.callbacks import EpochLines, EpochMeans, FailureLimit, StopOnSignal, Throughput, TrainBar
from stvid.engine.course import HeadFirst, Patience, TimeEstimate
from stvid.engine.loaders import VideoData
from stvid.engine.loggers import Services, check_installed, make_loggers
from stvid.engine.model import (
    InitialWeights,
    build_model,
    find_initial_weights,
    initialise,
    protocol_differences,
)
from stvid.engine.optim import scaled_learning_rate
from stvid.engine.pretraining import PretrainTask, check_pretraining
from stvid.engine.saving import (
    AtomicCheckpointIO,
    LastEpoch,
    RunConfig,
    check_monitor,
    checkpoint_callbacks,
    monitor_mode,
    monitored,
)
from stvid.engine.task import VideoTask
from stvid.engine.trainers import check_precision, make_trainer, quiet_lightning, strategy_of
from stvid.errors import CheckpointError, ConfigError, Interrupted, ManifestError, StvidError, VideoError
from stvid.machine import usable_cores
from stvid.protocol import parse_views
from stvid.runs import (
    RUN_DIR_VARIABLE,
    check_resumable,
    claim_output,
    default_workers,
    is_first_rank,
    newest_checkpoint,
    read_data,
    stored_run,
)
from stvid.video.reader import VideoReader

__all__ = ["Run", "TrainResult", "explained", "prepare", "share_cores", "train"]


# The words of gloo, NCCL and torch's store for a connection to another process that broke.
_LOST_RANK = re.compile(
    r"gloo|nccl|tcpstore|processgroup|connection (was )?(reset|closed|refused)|broken pipe|socket timeout|"
    r"timed out waiting",
    re.IGNORECASE,
)
# As Lightning names them, with its older names.
_NO_PRECISIONS = ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")
_NO_STRATEGIES = ("spawn", "fork", "notebook")


@dataclass
class TrainResult:
    """The files and numbers that a run left behind.

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


def _callbacks(config: TrainConfig, output: Path, *, videos: int, val_videos: int) -> list[Callback]:
    folder = output / "checkpoints"
    trainer = config.trainer
    has_val = val_videos > 0
    clips, crops = parse_views(config.data.val_views)
    callbacks: list[Callback] = [
        EpochMeans(),
        *([HeadFirst(config.optim.frozen_epochs)] if config.optim.frozen_epochs else []),
        *(
            [Patience(monitored(config), trainer.patience, min_delta=trainer.min_delta, mode=monitor_mode(config))]
            if trainer.patience and has_val
            else []
        ),
        TimeEstimate(validated=val_videos * clips * crops, val_every=trainer.val_every),
        Throughput(),
        EpochLines(),
        LastEpoch(folder / "last.ckpt", save_every=trainer.save_every),
        LearningRateMonitor(logging_interval="step"),
        *checkpoint_callbacks(config, folder, has_val=has_val),
    ]
    if trainer.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=trainer.ema_decay))
    if trainer.progress and sys.stdout.isatty():
        callbacks.append(TrainBar(leave=False))
    return [*callbacks, FailureLimit(output, videos=videos, limit=config.data.max_failures)]


def _build_trainer(config: TrainConfig, output: Path, callbacks: list[Callback], *, has_val: bool) -> Trainer:
    options = config.trainer
    if any(word in str(options.strategy) for word in _NO_STRATEGIES):
        raise ConfigError(
            f"trainer.strategy {options.strategy}: stvid starts its processes as commands of their own, not as copies "
            "of this one; take ddp"
        )
    if str(options.precision) in _NO_PRECISIONS:
        kind = "bf16" if "bf16" in str(options.precision) else "16"
        raise ConfigError(
            f"trainer.precision {options.precision}: the weights themselves would be rounded to 16 bits, and most "
            f"steps are smaller than that; take {kind}-mixed, which keeps them in 32"
        )
    return make_trainer(
        max_epochs=options.max_epochs,
        max_steps=-1 if options.max_steps is None else options.max_steps,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy_of(config),
        precision=options.precision,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        sync_batchnorm=options.sync_batchnorm,
        check_val_every_n_epoch=options.val_every,
        limit_val_batches=None if has_val else 0,
        log_every_n_steps=options.log_every_n_steps,
        deterministic=options.deterministic,
        enable_progress_bar=any(isinstance(callback, TrainBar) for callback in callbacks),
        num_sanity_val_steps=0,
        default_root_dir=output,
        logger=make_loggers(config, output),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )


def share_cores(config: TrainConfig) -> None:
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
    torch.set_num_threads(max(1, usable_cores() // max(ranks, 1) - workers))


def _how_to_go_on(output: Path, config: TrainConfig) -> str:
    if not any((output / "checkpoints").glob("*.ckpt")):
        return "nothing had been saved yet: start it again with the same command"
    return f"continue from the last checkpoint with: {command_line('stvid', config.command, '--resume', output)}"


def train(config: TrainConfig, *, name: str = "run") -> TrainResult:
    """Runs a training from a config.

    Args:
        config: Everything about the run.
        name: Name of the folder below ``runs`` if `config.output` is not set.

    Returns:
        Where the checkpoints are, and the last numbers.

    Raises:
        ConfigError: If the config cannot be run.
        ManifestError: If the videos' list cannot be used.
        CheckpointError: If weights cannot be read, do not fit, or cannot be written.
        Interrupted: If SIGINT or SIGTERM came; the state is saved and can be continued exactly.
        StvidError: If the loss is not finite, or too many videos cannot be read.
    """
    quiet_lightning()
    check_installed(config.trainer.loggers)
    share_cores(config)
    if config.resume is not None:
        config = dataclasses.replace(config, resume=str(newest_checkpoint(config.resume)))
    with claim_output(config, name) as output:
        return prepare(config, output).fit()


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


def _complete(config: TrainConfig, output: Path, train_videos: Manifest) -> TrainConfig:
    """Fills in what the folder and the videos decide."""
    protocol = config.protocol.replace(class_names=train_videos.class_names)
    return dataclasses.replace(config, output=str(output), protocol=protocol)


@dataclass
class Run:
    """A training that is ready to start.

    Attributes:
        config: The complete config.
        output: Folder of the run.
        trainer: Lightning's trainer.
        task: The model and its steps.
        data: The loaders.
        stop: Hears the signals.
        begun: Knows whether there was anything left to train.
        services: The connections to services such as MLflow.
    """

    config: TrainConfig
    output: Path
    trainer: Trainer
    task: VideoTask
    data: VideoData
    stop: StopOnSignal
    begun: RunConfig
    services: Services

    def say(self, line: str) -> None:
        """Prints a line, once for all ranks."""
        if self.trainer.is_global_zero:
            print(printable(line), flush=True)

    def describe(self) -> None:
        """Prints the model, the data, the protocol and the learning rate."""
        config, data = self.config, self.config.data
        videos = self.data.val_dataset
        self.say(f"model     {self.task.headline()}")
        held = 0 if videos is None else len(videos)
        self.say(f"data      {self.task.training_videos} training videos, {held} for validation")
        clips = config.augment.clip_protocol(config.protocol)
        other = "" if clips == config.protocol else f"; training clips of {clips.frames} frames, crop {clips.crop}"
        self.say(f"protocol  {config.protocol.describe()}{other}")
        optim, clips_per_step = config.optim, self.task.clips_per_step
        scaling = f" = {optim.lr:g} x {clips_per_step}/{optim.base_batch}" if optim.base_batch else ""
        self.say(
            f"optim     {optim.name}, learning rate {self.task.lr:.3g}{scaling}; {clips_per_step} clips a step "
            f"({data.batch_size} clips x {self.trainer.world_size} devices x {config.trainer.accumulate_grad_batches})"
        )
        self.say(f"output    {self.output}")
        if config.resume is not None:
            self.say(f"resume    {config.resume}")

    def fit(self) -> TrainResult:
        """Trains to the end, and returns what there is then."""
        if self.trainer.is_global_zero:
            os.environ[RUN_DIR_VARIABLE] = str(self.output.resolve())
        failed = True
        try:
            self.describe()
            self.services.open(self.trainer)
            with explained(self.config, self.output, ranks=self.trainer.world_size):
                self._fit()
                failures = self.task.gathered_failures()
                if not self.begun.begun:
                    self.say(
                        "resume    nothing is left to do: give more trainer.max_epochs, or trainer.max_steps, to go on"
                    )
            failed = False
        finally:
            self.services.close(failed=failed)
            self.data.close()
            os.environ.pop(RUN_DIR_VARIABLE, None)
        return self._result(failures)

    def _fit(self) -> None:
        try:
            self.trainer.fit(self.task, datamodule=self.data, ckpt_path=self.config.resume)
        except StvidError:
            # A signal to the whole process group ends the data workers too, before the step in hand is done.
            if self.stop.received is not None and self.stop.saved is None:
                name = signal.Signals(self.stop.received).name
                raise Interrupted(
                    f"stopped by {name} before the state could be saved; {_how_to_go_on(self.output, self.config)}",
                    self.stop.received,
                ) from None
            raise

    def _result(self, failures: dict[str, str]) -> TrainResult:
        folder = self.output / "checkpoints"
        if self.trainer.is_global_zero:
            (folder / "interrupted.ckpt").unlink(missing_ok=True)
        best = folder / "best.ckpt"
        for callback in self.trainer.callbacks:
            if isinstance(callback, Patience) and callback.outcome:
                self.say(f"patience  {callback.outcome}")
        if failures:
            self.say(f"{len(failures)} training videos could not be read: {self.output / 'unreadable.csv'}")
        return TrainResult(
            output=self.output,
            last=folder / "last.ckpt",
            best=best if self.data.val_dataset is not None and best.exists() else None,
            metrics={key: float(value) for key, value in self.trainer.callback_metrics.items()} | self.task.validated,
            failures=failures,
        )


def prepare(config: TrainConfig, output: Path, *, task_type: type[VideoTask] | None = None) -> Run:
    """Reads the videos, builds the model, and refuses what cannot be run before anything is written.

    Args:
        config: Everything about the run.
        output: Its folder.
        task_type: The steps of the training; None takes those of `config.task`.
    """
    pretrains = config.task == "pretrain"
    if pretrains:
        check_pretraining(config)
    if task_type is None:
        task_type = PretrainTask if pretrains else VideoTask
    before = None if config.resume is None else stored_run(config.resume)
    if before is not None and not config.protocol.class_names:
        names = tuple(before["protocol"]["class_names"])  # the order of the logits
        config = dataclasses.replace(config, protocol=config.protocol.replace(class_names=names))
    weights = find_initial_weights(config)
    if weights is not None:
        config = dataclasses.replace(config, init=weights.source)
    named = () if weights is None or weights.protocol is None else weights.protocol.class_names
    train_videos, val_videos = read_data(config, initial=named)
    config = _complete(config, output, train_videos)
    torch.manual_seed(config.seed)  # the initial weights
    model = build_model(config, len(train_videos.class_names))

    # The file names the run as a user would start it again: not as the continuation that this may be.
    begun = RunConfig(output / "config.yaml", dataclasses.replace(config, resume=None))
    stop = StopOnSignal(output / "checkpoints", config.command)
    has_val = val_videos is not None
    check_monitor(config, has_val=has_val)
    counts = {"videos": len(train_videos), "val_videos": 0 if val_videos is None else len(val_videos)}
    services = Services(dataclasses.replace(config, resume=None), output, resumed=config.resume is not None)
    callbacks = [begun, services, *_callbacks(config, output, **counts), stop]
    trainer = _build_trainer(config, output, callbacks, has_val=has_val)
    check_precision(trainer, model)
    lines = initialise(model, config, train_videos.class_names, weights)
    lines += [f"note      {note}" for note in _notes(config, weights, train_videos, val_videos)]
    if trainer.is_global_zero and lines:
        print("\n".join(map(printable, lines)), flush=True)
    model.default_protocol = config.protocol
    model.task = config.classification
    model.weights, model.measured = None, {}  # the weights change from here on
    accumulated = config.trainer.accumulate_grad_batches
    clips_per_step = config.data.batch_size * trainer.world_size * accumulated
    if before is not None:
        check_resumable(config, before, clips_per_step=clips_per_step, training_videos=len(train_videos))
    data = _make_data(config, train_videos, val_videos, stop)
    task = task_type(
        model,
        config,
        lr=scaled_learning_rate(config.optim, clips_per_step),
        clips_per_step=clips_per_step,
        steps_per_epoch=data.steps_per_epoch(world_size=trainer.world_size, accumulate=accumulated),
        training_videos=len(train_videos),
        val_paths=lambda index: "" if val_videos is None else val_videos[index].path,
        stop_requested=stop.stop_requested,
    )
    return Run(config, output, trainer, task, data, stop, begun, services)


def _notes(
    config: TrainConfig, weights: InitialWeights | None, train_videos: Manifest, val_videos: Manifest | None
) -> list[str]:
    """Returns what a user should know of a training that begins, each a line."""
    notes = []
    made_for = None if weights is None else weights.protocol
    if made_for is not None and (differing := protocol_differences(config.protocol, made_for)):
        notes.append("; ".join(differing))
    if config.data.val is None and config.data.val_fraction and val_videos is None:
        notes.append(
            f"nothing can be held out for validation (data.val_fraction {config.data.val_fraction:g}), since no class "
            "has two videos (or two groups of the column group); add videos, or give others with --data.val"
        )
    if config.task == "pretrain":  # whose clips have no labels that a mirror could change
        return [*notes, *_note_on_span(config, train_videos)]
    augment = config.augment
    said = {name for pair in augment.hflip_pairs for name in pair} | {*augment.hflip_keep}
    pairs, alone = mirrored_classes(train_videos.class_names)
    open_pairs = [pair for pair in pairs if not said & {*pair}]
    if augment.hflip and (open_pairs or {*alone} - said):
        example = json.dumps(open_pairs[0]) if open_pairs else ""
        option = (
            f"--augment.hflip_pairs '[{example}]'" if example else f"--augment.hflip_keep '{json.dumps(alone[:1])}'"
        )
        about = " and ".join(open_pairs[0]) if open_pairs else alone[0]
        notes.append(
            f"clips are mirrored at random, though there is {about}; see augment.hflip_pairs, such as {option}"
        )
    return [*notes, *_note_on_span(config, train_videos)]


def _note_on_span(config: TrainConfig, videos: Manifest, *, samples: int = 8) -> list[str]:
    """Says it if most of the videos are shorter than a training clip, whose end is then one frame again and again.

    A few videos are looked at, by one process for all. What cannot be read is left to the training, which counts it.
    """
    clips = config.augment.clip_protocol(config.protocol)
    if clips.sampling != "dense" or not is_first_rank():
        return []
    needed = clip_span(clips)
    lengths: dict[str, int] = {}
    for number in sorted({place * (len(videos) - 1) // (samples - 1) for place in range(samples)}):
        entry = videos[number]
        try:
            content, known = videos.content_and_index(number)
            with VideoReader(content, backend=config.data.backend, index=known) as reader:
                lengths[entry.path] = len(video_grid(reader, clips, entry.start, entry.end))
        except VideoError:
            continue
    short = {path: length for path, length in lengths.items() if length < needed}
    if 2 * len(short) <= len(lengths):
        return []
    path, length = next(iter(short.items()))
    unit = "frames" if clips.fps is None else f"frames at {clips.fps:g} a second"
    keys = "augment.frames or protocol.stride" if config.augment.frames else "protocol.frames or protocol.stride"
    return [
        f"clips span {needed} {unit}, more than {len(short)} of {len(lengths)} videos tried have ({length} in {path}): "
        f"their last frame is repeated; take fewer {keys}"
    ]


def _make_data(config: TrainConfig, train: Manifest, val: Manifest | None, stop: StopOnSignal) -> VideoData:
    options = config.data
    shared: dict[str, Any] = {
        "backend": options.backend,
        "decode_threads": options.decode_threads,
        "multilabel": config.task == "multilabel",
    }
    held = None
    if val is not None:
        held = EvalDataset(val, config.protocol, views=options.val_views, **shared)
        _check_readable(held)
    drawn: dict[str, Any] = {"seed": config.seed, "repeats": options.repeats, "labelled": config.task != "pretrain"}
    clips = TrainDataset(train, config.protocol, config.augment, **drawn, **shared)
    return VideoData(clips, held, options, seed=config.seed, stop=stop.stop_requested)


@contextlib.contextmanager
def explained(config: TrainConfig, output: Path, *, ranks: int) -> Iterator[None]:
    """Turns what can end a training before its time into one line that says how to go on."""
    try:
        yield
    except SystemExit as error:  # Lightning's answer to a signal that comes before `StopOnSignal` is ready, or twice
        signum = signal.SIGINT if isinstance(error.__context__, KeyboardInterrupt) else signal.SIGTERM
        raise Interrupted(f"stopped by {signum.name} at once; {_how_to_go_on(output, config)}", signum) from None
    except torch.OutOfMemoryError as error:
        raise StvidError(
            f"the device has too little memory for {config.data.batch_size} clips: lower data.batch_size, or set "
            "model.grad_checkpointing true, or trainer.precision bf16-mixed"
        ) from error
    except OSError as error:
        if isinstance(error, StvidError):
            raise
        place, reason = error.filename or output, error.strerror or error
        raise StvidError(f"{place}: {reason}; {_how_to_go_on(output, config)}") from error
    except (RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())
        if config.resume is not None and "state_dict" in text:
            raise CheckpointError(f"{config.resume}: does not fit this config: {text[:200]}") from error
        if ranks > 1 and _LOST_RANK.search(text):
            raise StvidError(
                f"another process of this training is gone ({text[:120]}): it was killed, perhaps for want of memory, "
                f"or its machine is; {_how_to_go_on(output, config)}"
            ) from error
        raise
