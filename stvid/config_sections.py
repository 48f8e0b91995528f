"""The sections of a training run's config, with the type, the default and the meaning of every key.

`stvid.config` reads and writes them. A value out of its range is an error that begins with the key. The texts below are
also what `stvid train --help` prints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stvid.errors import ConfigError, nearest
from stvid.protocol import Protocol, parse_views

__all__ = [
    "AugmentConfig",
    "AutoencoderConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "TrainerConfig",
]


_LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "comet")

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
    """The model that is built. Its number of frames and its image size are those of `protocol`.

    Attributes:
        name: Name of a model, as `stvid models` lists them.
        drop_path_rate: Stochastic depth of the last block; the blocks before it have less. Null takes the model's own.
        grad_checkpointing: Whether activations are computed again in the backward pass instead of being kept, which
            needs less memory and about a third more time.
        frozen: Modules that are not trained, given by how the names of their parameters begin, as ``[stem, layer1]``.
            A module all of whose parameters are frozen stays in evaluation mode: its batch norms keep their statistics,
            and nothing is dropped in it.
        hyperparameters: Further keyword arguments of the model, which its constructor checks.
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
    """Where the videos are, and how they reach the model.

    Attributes:
        train: Training videos: a CSV (path,label and, if need be, start,end,split,group), a JSON, a folder that holds
            a folder per class, a folder or URL of shards (made by `stvid prep shard`), or ``motion`` for the embedded
            demo set.
        val: Validation videos, in the same forms. Null takes those that a column ``split`` of `train` names, or else
            trains without validation, unless `val_fraction` is set.
        val_fraction: Share of each class's training videos that is held out for validation when `val` is null; whole
            groups, if `train` has a column ``group``.
        test: Videos of `stvid test`, in the same forms; null takes `val`.
        root: Folder that the relative paths of a manifest start from; null takes the manifest's own folder.
        format: Format of the manifest; ``auto`` recognises it.
        class_names: File with one class name a line (or CSV, JSON, YAML), or the name of a packaged list such as
            kinetics400, which fixes the order of the logits. Null sorts the names that occur in `train`; labels that
            are whole numbers are ordered as numbers.
        backend: Decoder that reads the videos: ``av``, ``decord``, ``torchcodec`` or ``frames``.
        batch_size: Training clips of one process in one step.
        val_batch_size: Validation videos that are decoded together; null takes `batch_size`.
        workers: Loader processes of each training process; null takes one for each CPU core, 8 at most.
        decode_threads: Threads of one decoder. More than one only pays with fewer workers than cores.
        repeats: Clips that are taken from one decoded video (repeated augmentation); it must divide `batch_size`.
        balance: ``class`` draws each class equally often; ``none`` takes each video once an epoch.
        val_views: Temporal clips x spatial crops of the validation during training.
        max_failures: Share of the training videos that may be unreadable before the run stops.
        limit_train: Number of training videos that are used, drawn with the seed; null takes all.
        limit_val: Number of validation videos that are used, drawn with the seed; null takes all.
    """

    train: str | None = None
    val: str | None = None
    val_fraction: float = 0.0
    test: str | None = None
    root: str | None = None
    format: Literal[
        "auto", "csv", "folder", "kinetics", "ssv2", "shards",
        "label-studio", "cvat", "via", "fiftyone", "hugging-face", "parquet", "json",
    ] = "auto"  # fmt: skip
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
    """Training augmentation. Each random choice is made once for a clip, so that all its frames agree.

    Attributes:
        resize: ``random_resized_crop`` cuts a box of random area and aspect (Inception). ``short_side_jitter`` scales
            the short side to a random size of `jitter`, then crops at random (SlowFast). ``none`` scales the short side
            to `protocol.short_side`, then crops at random.
        scale: Range of the box's share of the frame's area, for ``random_resized_crop``.
        ratio: Range of the box's aspect ratio, for ``random_resized_crop``.
        jitter: Range of the short side in pixels, for ``short_side_jitter``.
        crop: Side of a training clip in pixels, where it is smaller than in the test; null takes `protocol.crop`.
        frames: Number of frames of a training clip, where it is not that of the test; null takes `protocol.frames`.
        hflip: Probability that a clip is mirrored left to right.
        hflip_pairs: Pairs of classes that turn into each other when mirrored, as ``[["move left", "move right"]]``. A
            clip of such a class changes its label when it is mirrored.
        hflip_keep: Classes that are never mirrored, because the mirrored video belongs to none of the classes.
        color_jitter: Largest change of brightness, contrast, saturation (each is multiplied by 1 - x to 1 + x) and hue
            (which is shifted by -x to x of a turn); they are changed in random order.
        color_jitter_prob: Probability that the colours of a clip are changed in this way.
        grayscale: Probability that a clip loses its colours.
        randaugment_magnitude: Strength of RandAugment on a scale of 0 to 10, such as 2.3; 0 switches it off.
        randaugment_layers: Number of operations that RandAugment draws for each clip.
        randaugment_std: Standard deviation of the strength.
        randaugment_prob: Probability that a drawn operation is applied.
        erasing: Probability that a box of the clip is erased, the same box in all frames.
        erasing_scale: Range of the share of the frame's area that is erased.
        erasing_mode: ``noise`` fills the box with random pixels, other ones in each frame (mode "pixel" of SlowFast and
            timm); ``zeros`` fills it with the mean colour, which normalisation turns into zeros (timm's default,
            "const").
        mixup: Beta parameter of MixUp; 0 switches it off.
        cutmix: Beta parameter of CutMix; 0 switches it off.
        mix_prob: Probability that a batch is mixed at all.
        mix_switch: Probability that a mixed batch takes CutMix, where both are on.
        label_smoothing: Share of the target that is spread evenly over all classes.
        temporal_jitter: Whether a training clip starts at a random frame; if not, it is taken from the middle.
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
            ConfigError: If the crop does not fit into `protocol.short_side`, or the frames make no whole segments.
        """
        crop = protocol.crop if self.crop is None else self.crop
        if crop > protocol.short_side:
            raise ConfigError(f"augment.crop: {crop} is larger than protocol.short_side ({protocol.short_side})")
        if self.frames is not None and self.frames % protocol.frames_per_segment:
            raise ConfigError(
                f"augment.frames: {self.frames} is no multiple of protocol.frames_per_segment "
                f"({protocol.frames_per_segment})"
            )
        return protocol.replace(crop=crop, frames=protocol.frames if self.frames is None else self.frames)


@dataclass
class OptimConfig:
    """The optimiser and the schedule of the learning rate.

    Attributes:
        name: Optimiser: ``adamw``, ``sgd`` or ``rmsprop`` (TensorFlow's, which adds `epsilon` under the root).
        lr: Learning rate, for steps of `base_batch` clips.
        base_batch: Number of clips a step that `lr` is stated for: the rate that is used is lr * (clips a step) /
            base_batch. Null uses `lr` as it is.
        weight_decay: Weight decay of all parameters but biases, norms and those of the model's `no_weight_decay`.
        decay_1d: Whether biases and norms are decayed too, as in recipes from before about 2019.
        betas: The two decay rates of AdamW's moments.
        momentum: Momentum of SGD and RMSProp.
        rho: The decay rate of RMSProp's second moment.
        epsilon: Is added to RMSProp's second moment.
        nesterov: Whether SGD takes Nesterov's momentum.
        frozen_epochs: Epochs at the start in which the head alone is trained. The rest of the model stays as it is and
            in evaluation mode, so that a new head does not spoil weights that are good already.
        layer_decay: Factor of the learning rate from one group of layers to the group before it; 1 switches it off.
        backbone_scale: Factor of the learning rate of everything but the classifier.
        lr_scales: Further factors of the learning rate, `warmup_lr` and `min_lr` included, for parameters in whose
            names a regular expression is found, as ``{"^mix[.]": 10}``; of several in one name the first counts.
        warmup_epochs: Epochs over which the rate rises linearly, up to where the schedule is then.
        warmup_lr: Learning rate at the first step of the warm-up, scaled as `lr` is.
        min_lr: Learning rate at the last step of the cosine, scaled as `lr` is.
        schedule: Course of the rate after the warm-up: ``cosine``, ``step`` or ``constant``.
        cosine_over_warmup: Whether the cosine begins at the first step, so that the warm-up ends a little below `lr`
            (SlowFast, mmcv, scenic). If not, it begins after the warm-up.
        milestones: Epochs, counted from the start and ascending, after which ``step`` lowers the rate.
        gamma: Factor by which ``step`` lowers the rate at each of `milestones`.
        schedule_epochs: Epochs that the schedule spans; null takes `trainer.max_epochs`. Set it to stop a run early and
            continue it later on the same curve.
    """

    name: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    lr: float = 1e-4
    base_batch: int | None = None
    weight_decay: float = 0.05
    decay_1d: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    rho: float = 0.9
    epsilon: float = 1e-7
    nesterov: bool = True
    frozen_epochs: int = 0
    layer_decay: float = 1.0
    backbone_scale: float = 1.0
    lr_scales: dict[str, float] = field(default_factory=dict)
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
        _check_whole("optim.frozen_epochs", self.frozen_epochs, 0)
        for name in ("weight_decay", "warmup_epochs", "warmup_lr", "min_lr"):
            _check_number(f"optim.{name}", getattr(self, name), least=0)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ConfigError(f"optim.betas: {self.betas!r} is not two numbers")
        for beta in self.betas:
            _check_number("optim.betas", beta, least=0, below=1)
        _check_number("optim.momentum", self.momentum, least=0, below=1)
        _check_number("optim.rho", self.rho, least=0, below=1)
        _check_number("optim.epsilon", self.epsilon, above=0)
        _check_number("optim.layer_decay", self.layer_decay, above=0, most=1)
        _check_number("optim.backbone_scale", self.backbone_scale, above=0)
        if not isinstance(self.lr_scales, Mapping):
            raise ConfigError(f"optim.lr_scales: {self.lr_scales!r} is no mapping of expressions to factors")
        for pattern, scale in self.lr_scales.items():
            _check_number(f"optim.lr_scales: {pattern!r}", scale, above=0)
            try:
                re.compile(pattern)
            except (re.error, TypeError, OverflowError) as error:
                raise ConfigError(f"optim.lr_scales: {pattern!r} is no regular expression ({error})") from error
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
    """How the run is executed. Names and meanings are Lightning's, where Lightning has them.

    Attributes:
        max_epochs: Number of passes over the training videos.
        max_steps: Number of optimiser steps after which the run stops; null sets no limit.
        accelerator: Kind of device: ``auto``, ``cpu``, ``gpu`` or another of Lightning's.
        devices: Number of devices of each machine, or ``auto`` for all.
        num_nodes: Number of machines.
        strategy: How devices share the work: ``auto``, ``ddp`` (each holds the whole model), ``fsdp2`` (each holds a
            share of every block, for models that are too large otherwise), or another of Lightning's.
        precision: Type of the numbers: ``32-true``, ``bf16-mixed``, ``16-mixed`` or another of Lightning's.
        accumulate_grad_batches: Number of batches whose gradients are added up before one optimiser step.
        gradient_clip_val: Largest norm of the gradient; null does not clip it.
        ema_decay: Decay of an exponential moving average of the weights, which is validated and saved; null keeps
            none.
        compile: Whether the model runs through torch.compile.
        channels_last: Whether activations are kept in the memory format channels_last_3d.
        sync_batchnorm: Whether devices share the statistics of batch norms.
        val_every: Number of epochs from one validation to the next; the last epoch is always validated.
        patience: Number of validations in a row without a better result after which the run ends; null trains to the
            end. The best checkpoint is kept in both cases.
        min_delta: How much better a result must be to count as better for `patience`.
        monitor: Number of the validation that says which result is better, such as ``val_mean_class@1x1``; null takes
            the accuracy (top-1, or mAP with several labels) of `data.val_views`.
        save_every: Number of epochs from one checkpoint to the next; the last epoch is always saved.
        keep: Number of these checkpoints that are kept, the newest; the best one by validation is kept, too.
        loggers: Where the numbers are written: ``csv`` (metrics.csv, always), ``tensorboard``, and the services
            ``wandb``, ``mlflow`` and ``comet``, which also get the config and the report of `stvid test`.
        log_every_n_steps: Number of steps from one line of the logs to the next.
        deterministic: Whether only deterministic kernels are used, which is slower and repeatable bit for bit on a GPU.
        progress: Whether the progress bar is shown.
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
    patience: int | None = None
    min_delta: float = 0.0
    monitor: str | None = None
    save_every: int = 1
    keep: int = 1
    loggers: list[str] = field(default_factory=lambda: ["csv", "tensorboard"])
    log_every_n_steps: int = 10
    deterministic: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        names = ("max_epochs", "num_nodes", "accumulate_grad_batches", "val_every", "save_every", "keep")
        for name in (*names, "log_every_n_steps"):
            _check_whole(f"trainer.{name}", getattr(self, name), 1)
        for name in ("max_steps", "patience"):
            _check_whole(f"trainer.{name}", getattr(self, name), 1, optional=True)
        _check_number("trainer.min_delta", self.min_delta, least=0)
        for name in self.loggers:
            if name not in _LOGGERS:
                hint = nearest(str(name), _LOGGERS) or f"; there are {', '.join(_LOGGERS)}"
                raise ConfigError(f"trainer.loggers: {name!r} is unknown{hint}")
        _check_number("trainer.gradient_clip_val", self.gradient_clip_val, above=0, optional=True)
        _check_number("trainer.ema_decay", self.ema_decay, above=0, below=1, optional=True)


@dataclass
class AutoencoderConfig:
    """The masked autoencoder of `stvid pretrain`: what it hides, and how it predicts that. Only that command reads it.

    Attributes:
        masking: How the hidden cells are chosen: ``tube`` hides the same places in all frames, ``random`` any cells.
            Null takes the way of the model's authors.
        mask_ratio: Share of the clip that is hidden from the encoder; null takes that of the authors.
        decoder_mask_ratio: Share of the patches that the decoder leaves out, in cells that take turns (the dual masking
            of VideoMAE V2); 0 predicts all that is hidden.
        decoder_depth: Blocks of the decoder; null takes the authors' number.
        decoder_embed_dim: Channels of the decoder's tokens; null takes the authors' number.
        decoder_num_heads: Heads of the decoder's attention; null takes the authors' number.
        normalize_target: Whether the pixels to predict are normalised in each patch, as all authors do.
        pictures: Number of validation clips of which each validation draws the original, what the encoder sees of it,
            and what the decoder makes of that, as ``reconstruction.png`` in the folder of the run.
    """

    masking: Literal["tube", "random"] | None = None
    mask_ratio: float | None = None
    decoder_mask_ratio: float = 0.0
    decoder_depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_num_heads: int | None = None
    normalize_target: bool = True
    pictures: int = 4

    def __post_init__(self) -> None:
        _check_number("autoencoder.mask_ratio", self.mask_ratio, above=0, below=1, optional=True)
        _check_number("autoencoder.decoder_mask_ratio", self.decoder_mask_ratio, least=0, below=1)
        for name in ("decoder_depth", "decoder_embed_dim", "decoder_num_heads"):
            _check_whole(f"autoencoder.{name}", getattr(self, name), 1, optional=True)
        _check_whole("autoencoder.pictures", self.pictures, 0)

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder that are not null."""
        names = ("decoder_depth", "decoder_embed_dim", "decoder_num_heads")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class TrainConfig:
    """The complete configuration of a training run.

    Attributes:
        task: ``multiclass`` for one label a video (cross-entropy, top-1), ``multilabel`` for any number of labels
            (binary cross-entropy, mAP), which a list joins by ``|``, as in ``run|jump``, or ``pretrain`` for the masked
            pretraining of `stvid pretrain`, which needs no labels.
        model: The model that is built.
        data: Where the videos are.
        protocol: Frames, sizes and views, which are saved in every checkpoint.
        augment: Training augmentation.
        optim: The optimiser and the schedule of the learning rate.
        trainer: How the run is executed.
        autoencoder: What a masked pretraining hides and predicts.
        init: Weights to start from, in stvid's or any published format: all that `stvid.load_model` takes. A head of
            other classes is replaced. Without ``--config`` the weights decide the rest of the config, too.
        resume: Checkpoint of an interrupted run, or the folder of the run, which is continued exactly.
        output: Folder of the run; null makes ``runs/<config name>``.
        seed: Seed of every random choice.
    """

    task: Literal["multiclass", "multilabel", "pretrain"] = "multiclass"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    protocol: Protocol = field(default_factory=Protocol)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    init: str | None = None
    resume: str | None = None
    output: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed, 0, 2**32 - 1)

    @property
    def command(self) -> Literal["train", "pretrain"]:
        """The command that runs this config."""
        return "pretrain" if self.task == "pretrain" else "train"

    @property
    def classification(self) -> Literal["multiclass", "multilabel"]:
        """The meaning of the model's logits; the encoder of a pretraining has none yet."""
        return "multilabel" if self.task == "multilabel" else "multiclass"
