"""The sections of a training run's config: every key, its type, its default, and what it does.

`stvid.config` reads and writes them; a value out of its range is an error that begins with the key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from stvid.errors import ConfigError
from stvid.protocol import Protocol, parse_views

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "TrainerConfig",
]


# --- ranges -----------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    return repr(value).removesuffix(".0")


def _check_whole(key: str, value: Any, least: int, most: int | None = None, *, optional: bool = False) -> None:
    """Raises ConfigError unless the value is a whole number in the range, or None where that is allowed."""
    if optional and value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"from {least} up" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{key}: {_shown(value)} is not a whole number {span}{', nor null' if optional else ''}")


def _check_number(
    key: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    optional: bool = False,
) -> None:
    """Raises ConfigError unless the value is a finite number in the range, or None where that is allowed."""
    if optional and value is None:
        return
    null = ", nor null" if optional else ""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key}: {_shown(value)} is not a finite number{null}")
    fits = (
        (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    )
    if fits:
        return
    if above == 0 and below is None and most is None:
        raise ConfigError(f"{key}: {_shown(value)} is not a positive number{null}")
    bounds = {"above": above, "at least": least, "below": below, "at most": most}
    span = " and ".join(f"{word} {_shown(bound)}" for word, bound in bounds.items() if bound is not None)
    raise ConfigError(f"{key}: {_shown(value)} is not {span}{null}")


# --- the sections -----------------------------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """Which model is built; its frames and size are those of `protocol`.

    Attributes:
        name: A name of `stvid models`.
        drop_path_rate: Stochastic depth of the last block; null takes the variant's own.
        grad_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        frozen: Modules that are not trained, by the beginning of their parameters' names, as ``[stem, layer1]``; their
            batch norms still gather statistics.
        hyperparameters: Further keyword arguments of the model, checked by its constructor.
    """

    name: str = "uniformer_s"
    drop_path_rate: float | None = None
    grad_checkpointing: bool = False
    frozen: list[str] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_number("model.drop_path_rate", self.drop_path_rate, least=0, below=1, optional=True)


@dataclass
class DataConfig:
    """Where the videos are and how they reach the model.

    Attributes:
        train: Training videos: a CSV, a JSON, a folder per class, a folder or URL of shards (`stvid-prep shard`), or
            ``motion`` (the embedded demo set).
        val: Validation videos; null trains without validation, unless `val_fraction` is set.
        val_fraction: Without `val`, the share of each class's training videos that is held out for validation.
        test: Videos of `stvid test`; null takes `val`.
        root: Folder that relative paths of a manifest start from; null takes the manifest's own folder.
        format: Manifest format; ``auto`` recognises it.
        class_names: A file with one class name a line, which fixes the order of the logits; null sorts the names
            that occur in `train`.
        backend: Decoder: ``av``, ``decord``, ``torchcodec`` or ``frames``.
        batch_size: Training clips of one process and one step.
        val_batch_size: Validation videos decoded at a time; null takes `batch_size`.
        workers: Loader processes of each training process; null takes one for each CPU core, 8 at most.
        decode_threads: Threads of one decoder; more than one only pays with fewer workers than cores.
        repeats: Clips taken from one decoded video (repeated augmentation); divides `batch_size`.
        balance: ``class`` draws each class equally often; ``none`` takes each video once an epoch.
        val_views: Temporal clips x spatial crops of validation during training.
        max_failures: Share of the training videos that may be unreadable before the run stops.
        limit_train: Use only this many training videos, drawn with the seed; null takes all.
        limit_val: Use only this many validation videos, drawn with the seed; null takes all.
    """

    train: str | None = None
    val: str | None = None
    val_fraction: float = 0.0
    test: str | None = None
    root: str | None = None
    format: Literal["auto", "csv", "folder", "kinetics", "ssv2", "shards"] = "auto"
    class_names: str | None = None
    backend: Literal["av", "decord", "torchcodec", "frames"] = "av"
    batch_size: int = 8
    val_batch_size: int | None = None
    workers: int | None = None
    decode_threads: int = 1
    repeats: int = 1
    balance: Literal["none", "class"] = "none"
    val_views: str = "1x1"
    max_failures: float = 0.1
    limit_train: int | None = None
    limit_val: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "decode_threads", "repeats"):
            _check_whole(f"data.{name}", getattr(self, name), 1)
        for name in ("val_batch_size", "limit_train", "limit_val"):
            _check_whole(f"data.{name}", getattr(self, name), 1, optional=True)
        _check_whole("data.workers", self.workers, 0, optional=True)
        _check_number("data.val_fraction", self.val_fraction, least=0, below=1)
        _check_number("data.max_failures", self.max_failures, least=0, most=1)
        parse_views(self.val_views, key="data.val_views")


@dataclass
class AugmentConfig:
    """Training augmentation; each random choice is made once a clip, so that all its frames agree.

    Attributes:
        resize: ``random_resized_crop`` cuts a box of random area and aspect (Inception); ``short_side_jitter`` scales
            the short side to a random size of `jitter`, then crops at random (SlowFast); ``none`` scales to
            `protocol.short_side` and crops at random.
        scale: Range of the box's share of the frame's area.
        ratio: Range of the box's aspect ratio.
        jitter: Range of the short side in pixels, for ``short_side_jitter``.
        crop: Side of a training clip in pixels, where it is smaller than in the test; null takes `protocol.crop`.
        frames: Frames of a training clip; null takes `protocol.frames`.
        hflip: Probability of mirroring the clip left to right.
        hflip_pairs: Classes that turn into each other when mirrored, as ``[["move left", "move right"]]``. A clip of
            such a class changes its label when it is mirrored.
        hflip_keep: Classes that must never be mirrored, since the mirrored video belongs to no class or to an unnamed
            one.
        color_jitter: Largest change of brightness, contrast, saturation (factors from 1 - x to 1 + x) and hue (shifts
            from -x to x, of a turn), in random order.
        color_jitter_prob: Probability that the colours of a clip are changed so.
        grayscale: Probability that a clip loses its colours.
        randaugment_magnitude: Strength 0 to 10 of RandAugment; 0 switches it off.
        randaugment_layers: Operations applied to each clip.
        randaugment_std: Standard deviation of the strength.
        randaugment_prob: Probability of each operation.
        erasing: Probability that a box of the clip is erased, the same box in all frames.
        erasing_scale: Range of the share of the frame's area that is erased.
        erasing_mode: ``noise`` fills the box with random pixels, other ones in each frame (mode "pixel" of SlowFast and
            timm); ``zeros`` fills it with the mean colour, which normalisation turns into zeros (timm's default,
            "const").
        mixup: Beta parameter of MixUp; 0 switches it off.
        cutmix: Beta parameter of CutMix; 0 switches it off.
        mix_prob: Probability that a batch is mixed at all.
        mix_switch: Probability that a mixed batch takes CutMix where both are on.
        label_smoothing: Share of the target spread over all classes.
        temporal_jitter: Random start of each training clip; off takes the middle.
    """

    resize: Literal["random_resized_crop", "short_side_jitter", "none"] = "random_resized_crop"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    jitter: tuple[int, int] = (256, 320)
    crop: int | None = None
    frames: int | None = None
    hflip: float = 0.5
    hflip_pairs: list[list[str]] = field(default_factory=list)
    hflip_keep: list[str] = field(default_factory=list)
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_prob: float = 1.0
    grayscale: float = 0.0
    randaugment_magnitude: float = 0.0
    randaugment_layers: int = 2
    randaugment_std: float = 0.5
    randaugment_prob: float = 0.5
    erasing: float = 0.0
    erasing_scale: tuple[float, float] = (0.02, 0.3333)
    erasing_mode: Literal["noise", "zeros"] = "noise"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch: float = 0.5
    label_smoothing: float = 0.0
    temporal_jitter: bool = True

    def __post_init__(self) -> None:
        _check_whole("augment.crop", self.crop, 1, optional=True)
        _check_whole("augment.frames", self.frames, 1, optional=True)
        if not isinstance(self.color_jitter, tuple | list) or len(self.color_jitter) != 4:
            raise ConfigError(f"augment.color_jitter: {self.color_jitter!r} is not four numbers")
        for strength, most in zip(self.color_jitter, (None, None, None, 0.5), strict=True):
            _check_number("augment.color_jitter", strength, least=0, most=most)
        for name in ("color_jitter_prob", "grayscale"):
            _check_number(f"augment.{name}", getattr(self, name), least=0, most=1)

    def clip_protocol(self, protocol: Protocol) -> Protocol:
        """Returns the protocol of training clips: `crop` and `frames` take the place of the test's.

        Raises:
            ConfigError: If the crop does not fit into `protocol.short_side`.
        """
        crop = protocol.crop if self.crop is None else self.crop
        if crop > protocol.short_side:
            raise ConfigError(f"augment.crop: {crop} is larger than protocol.short_side ({protocol.short_side})")
        return protocol.replace(crop=crop, frames=protocol.frames if self.frames is None else self.frames)


@dataclass
class OptimConfig:
    """Optimiser and learning-rate schedule.

    Attributes:
        name: ``adamw`` or ``sgd``.
        lr: Learning rate at `base_batch` clips a step.
        base_batch: Clips a step that `lr` is stated for: the rate used is lr * (clips a step) / base_batch. Null
            uses `lr` as it is.
        weight_decay: Applied to all parameters but biases, norms and those of the model's `no_weight_decay`.
        decay_1d: Apply it to biases and norms too, as recipes from before about 2019 do.
        betas: Of AdamW.
        momentum: Of SGD.
        nesterov: Nesterov's momentum for SGD.
        layer_decay: Factor from one layer group to the one before it; 1 switches it off.
        backbone_scale: Factor of the learning rate of everything but the classifier.
        warmup_epochs: Epochs of linear warm-up, to where the schedule is then.
        warmup_lr: Rate at the first step, scaled as `lr` is.
        min_lr: Rate at the last step, scaled as `lr` is.
        schedule: ``cosine``, ``step`` or ``constant``.
        cosine_over_warmup: Whether the cosine begins at the first step, so that the warm-up ends a little below `lr`
            (SlowFast, mmcv, scenic); off begins it after the warm-up.
        milestones: Epochs after which ``step`` lowers the rate, ascending, counted from the start.
        gamma: Factor of the rate at each of `milestones`.
        schedule_epochs: Epochs that the schedule spans; null takes `trainer.max_epochs`. Set it to stop a run early
            and continue it later on the same curve.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-4
    base_batch: int | None = None
    weight_decay: float = 0.05
    decay_1d: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    nesterov: bool = True
    layer_decay: float = 1.0
    backbone_scale: float = 1.0
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    cosine_over_warmup: bool = False
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    schedule_epochs: float | None = None

    def __post_init__(self) -> None:
        _check_number("optim.lr", self.lr, above=0)
        _check_whole("optim.base_batch", self.base_batch, 1, optional=True)
        for name in ("weight_decay", "warmup_epochs", "warmup_lr", "min_lr"):
            _check_number(f"optim.{name}", getattr(self, name), least=0)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ConfigError(f"optim.betas: {self.betas!r} is not two numbers")
        for beta in self.betas:
            _check_number("optim.betas", beta, least=0, below=1)
        _check_number("optim.momentum", self.momentum, least=0, below=1)
        _check_number("optim.layer_decay", self.layer_decay, above=0, most=1)
        _check_number("optim.backbone_scale", self.backbone_scale, above=0)
        for epoch in self.milestones:
            _check_number("optim.milestones", epoch, above=0)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"optim.milestones: {list(self.milestones)!r} does not ascend")
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("optim.milestones: [] leaves optim.schedule step without a step; give epochs")
        _check_number("optim.gamma", self.gamma, above=0, most=1)
        _check_number("optim.schedule_epochs", self.schedule_epochs, above=0, optional=True)


@dataclass
class TrainerConfig:
    """How the run is executed; names and meanings are Lightning's.

    Attributes:
        max_epochs: Passes over the training videos.
        max_steps: Stop after this many optimiser steps; null does not.
        accelerator: ``auto``, ``cpu``, ``gpu`` or another of Lightning's.
        devices: How many devices of each node, or ``auto``.
        num_nodes: How many machines.
        strategy: ``auto``, ``ddp``, ``fsdp``, or another of Lightning's.
        precision: ``32-true``, ``bf16-mixed``, ``16-mixed``, ...
        accumulate_grad_batches: Batches added up before one optimiser step.
        gradient_clip_val: Largest gradient norm; null does not clip.
        ema_decay: Keep an exponential moving average of the weights with this decay, validate and save it; null does
            not.
        compile: Run the model through torch.compile.
        channels_last: Keep activations in the channels_last_3d memory format.
        sync_batchnorm: Share batch statistics between devices.
        val_every: Validate each so many epochs, and after the last.
        save_every: Write a checkpoint each so many epochs, and after the last.
        keep: How many of the written checkpoints are kept, the newest; the best one by validation is kept besides.
        log_every_n_steps: Steps between two lines of the logs.
        deterministic: Only deterministic kernels: slower, bitwise repeatable on a GPU.
        progress: Show the progress bar.
    """

    max_epochs: int = 10
    max_steps: int | None = None
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    ema_decay: float | None = None
    compile: bool = False
    channels_last: bool = False
    sync_batchnorm: bool = False
    val_every: int = 1
    save_every: int = 1
    keep: int = 1
    log_every_n_steps: int = 10
    deterministic: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        names = ("max_epochs", "num_nodes", "accumulate_grad_batches", "val_every", "save_every", "keep")
        for name in (*names, "log_every_n_steps"):
            _check_whole(f"trainer.{name}", getattr(self, name), 1)
        _check_whole("trainer.max_steps", self.max_steps, 1, optional=True)
        _check_number("trainer.gradient_clip_val", self.gradient_clip_val, above=0, optional=True)
        _check_number("trainer.ema_decay", self.ema_decay, above=0, below=1, optional=True)


@dataclass
class TrainConfig:
    """A training run.

    Attributes:
        task: ``multiclass``: one label a video, cross-entropy, top-1. ``multilabel``: any number of labels, binary
            cross-entropy, mAP.
        model: Which model is built.
        data: Where the videos are.
        protocol: Frames, size and views; saved in every checkpoint.
        augment: Training augmentation.
        optim: Optimiser and schedule.
        trainer: How the run is executed.
        init: Weights to start from, in stvid's or any published format; the head is replaced if its size differs.
        resume: A checkpoint of an interrupted run, or its folder, to be continued exactly.
        output: Folder of the run; null makes ``runs/<config name>``.
        seed: Of every random choice.
    """

    task: Literal["multiclass", "multilabel"] = "multiclass"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    protocol: Protocol = field(default_factory=Protocol)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    init: str | None = None
    resume: str | None = None
    output: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed, 0, 2**32 - 1)
