"""Fine-tuning in one command: the weights decide the config where the user does not.

`fine_tuning_config` makes the complete config of a training from weights and videos alone: architecture and protocol
are those of the weights, the schedule follows from the number of videos, the batch from the memory. `resolve_config`
lets weights and model have their say in a config from a file. `train` does the same from Python.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.models import group_parameters
from torch import nn

from stvid.config import TrainConfig, config_keys, dump_config, find_config, load_config, parse_config
from stvid.console import printable
from stvid.data.manifest import Manifest
from stvid.data.members import Members
from stvid.data.mirroring import mirrored_classes
from stvid.engine import train as training
from stvid.engine.model import find_initial_weights, model_takes
from stvid.errors import CheckpointError, ConfigError, StvidError, nearest
from stvid.machine import available_memory, usable_cores
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from stvid.runs import is_first_rank, read_data
from stvid.zoo import load_model, model_info

__all__ = ["fine_tuning_config", "resolve_config", "run_name", "train"]

# What a complete config states of its protocol, as the folder of a run holds it; no recipe states all of it.
_COMPLETE = {"frames", "stride", "fps", "sampling", "short_side", "crop", "mean", "std", "views", "class_names"}


def given_keys(options: Sequence[str]) -> set[str]:
    """Returns the keys of a config that options in the form of the command line set."""
    return {option[2:].partition("=")[0] for option in options if option.startswith("--")}


def _say(lines: Iterable[str]) -> None:
    """Prints lines once for all processes of a training; not on stdout, where ``--print_config`` writes the config."""
    if is_first_rank():
        for line in lines:
            print(printable(line), file=sys.stderr, flush=True)


# --- a config from a file ---------------------------------------------------------------------------------------------


def resolve_config(config: str | os.PathLike[str] | TrainConfig | None, options: Sequence[str]) -> TrainConfig:
    """Returns the config of a training, in which model and weights have had their say.

    A key of a recipe that the model does not take (stochastic depth) is left out, and a model of several frames a
    segment (TDN) has these also with the recipe of another. Where weights are named that were
    made for another normalisation than the config has, theirs is used, unless it was set among the options, or the
    config is a complete one, as the folder of a run holds it. Each is said in a line on stderr.

    Args:
        config: Path or name of a config, or the config itself; None makes that of a fine-tuning of the weights that
            ``--init`` names.
        options: Keys and values in the form of the command line.

    Raises:
        ConfigError: If a key is unknown or has a wrong value.
        CheckpointError: If weights cannot be read.
    """
    if config is None:
        return fine_tuning_config(options)
    if isinstance(config, TrainConfig):
        text = dump_config(config)
        resolved = parse_config(text, options, source="config")
    else:
        resolved = load_config(config, options)
        text = find_config(config).read_text(encoding="utf-8")
    lines: list[str] = []
    given = given_keys(options)
    rate = resolved.model.drop_path_rate
    if (
        rate is not None
        and "model.drop_path_rate" not in given
        and not model_takes(resolved.model.name, "drop_path_rate")
    ):
        lines.append(f"model.drop_path_rate: {rate:g} of the config is left out, {resolved.model.name} takes none")
        resolved = dataclasses.replace(resolved, model=dataclasses.replace(resolved.model, drop_path_rate=None))
    weights = find_initial_weights(resolved)
    stated = yaml.safe_load(text) or {}
    if "frames_per_segment" not in (stated.get("protocol") or {}) and "protocol.frames_per_segment" not in given:
        resolved = _with_segments(resolved, lines, round_frames="protocol.frames" not in given)
    complete = set(stated.get("protocol") or {}) >= _COMPLETE
    if weights is not None and weights.protocol is not None and not complete:
        changes = _normalisation(resolved.protocol, weights.protocol, given)
        for name, value in changes.items():
            before = getattr(resolved.protocol, name)
            lines.append(f"protocol.{name}: {_plain(value)} of the weights instead of {_plain(before)} of the config")
        resolved = dataclasses.replace(resolved, protocol=resolved.protocol.replace(**changes))
    _say(lines)
    return resolved


def _with_segments(config: TrainConfig, lines: list[str], *, round_frames: bool) -> TrainConfig:
    """Returns a config of another model with as many frames a segment as the model takes; a line says so.

    Args:
        config: The config.
        lines: Takes the line.
        round_frames: Whether frames that make no whole segments are made fewer; else they are an error.
    """
    info, protocol = model_info(config.model.name), config.protocol
    each = info.protocol.frames_per_segment
    if each == protocol.frames_per_segment:
        return config
    frames = max(each, protocol.frames // each * each) if round_frames else protocol.frames
    line = f"protocol.frames_per_segment: {each}, as {info.name} takes them"
    if frames != protocol.frames:
        line += f", and protocol.frames {frames} instead of {protocol.frames} of the config"
    lines.append(line)
    return dataclasses.replace(config, protocol=protocol.replace(frames=frames, frames_per_segment=each))


def _normalisation(ours: Protocol, theirs: Protocol, given: set[str]) -> dict[str, Any]:
    names = [name for name in ("mean", "std", "channels") if f"protocol.{name}" not in given]
    return {name: getattr(theirs, name) for name in names if getattr(theirs, name) != getattr(ours, name)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- a config from weights --------------------------------------------------------------------------------------------


def fine_tuning_config(options: Sequence[str]) -> TrainConfig:
    """Makes the complete config of a fine-tuning from the weights, the videos, and the machine.

    Args:
        options: Keys and values in the form of the command line; ``--init`` and ``--data.train`` are needed, all other
            keys replace what is chosen here.

    Raises:
        ConfigError: If a key is unknown, has a wrong value, or one of the two is missing.
        CheckpointError: If the weights cannot be read, or do not say of which model they are and no model is named.
    """
    given = given_keys(options)
    # The sizes are wide enough here for any that the user gives; the real ones follow.
    asked = parse_config("protocol: {short_side: 1000000, crop: 1}", options, source="command line")
    if asked.init is None:
        raise ConfigError("init: not set; name the weights to start from with --init, or a recipe with --config")
    if asked.data.train is None:
        raise ConfigError("data.train: not set; name a folder that holds a folder per class with --data.train VIDEOS")
    model = _load(asked, given)
    values: dict[str, Any] = {
        "init": asked.init,
        "model": {"name": model.recipe["name"], "hyperparameters": _hyperparameters(model, asked)},
        "protocol": _protocol(model.default_protocol, asked.protocol, given),
        "data": {} if asked.data.val is not None else {"val_fraction": 0.2},
    }
    source = f"weights {asked.init}"
    options = [*options, f"--model.hyperparameters={json.dumps(values['model']['hyperparameters'])}"]
    first = parse_config(yaml.safe_dump(values), options, source=source)
    videos, _ = read_data(first, initial=model.default_protocol.class_names)
    values["data"] |= _loading(first, videos, model, given)
    values["augment"] = _augmentation(videos.class_names)
    values["model"]["grad_checkpointing"] = values["data"].pop("grad_checkpointing", False)
    on_gpu = _on_gpu(first)
    half = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "16-mixed"
    values["trainer"] = {"precision": half if on_gpu else "32-true", "gradient_clip_val": 5.0}
    values["trainer"]["max_epochs"] = epochs_for(len(videos))
    chosen = parse_config(yaml.safe_dump(values), options, source=source).trainer.max_epochs  # the user's, if given
    values["trainer"]["patience"] = max(3, math.ceil(chosen / 3))
    values["optim"] = _optimisation(model, epochs=chosen)
    config = parse_config(yaml.safe_dump(values), options, source=source)
    _say([_summary(config, len(videos))])
    return config


def _load(asked: TrainConfig, given: set[str]) -> VideoModel:
    assert asked.init is not None
    try:
        model = load_model(asked.init, name=asked.model.name if "model.name" in given else None)
    except CheckpointError as error:
        raise CheckpointError(re.sub(r"--model(?=[ ,])", "--model.name", str(error))) from error
    if model.in_chans != 3:
        raise ConfigError(f"init {asked.init}: its clips have {model.in_chans} channels, those of videos have 3")
    return model


def _hyperparameters(model: VideoModel, asked: TrainConfig) -> dict[str, Any]:
    """Returns the arguments of the weights' model, with those that the user gives in their place."""
    head = {} if model.recipe.get("head", "default") == "default" else {"head": model.recipe["head"]}
    return {**json.loads(json.dumps(model.recipe["hyperparameters"])), **head, **asked.model.hyperparameters}


def _protocol(theirs: Protocol, asked: Protocol, given: set[str]) -> dict[str, Any]:
    """Returns the protocol of the weights; if one of the two sizes is given, the other follows in proportion."""
    values = {**theirs.to_dict(), "class_names": []}
    crop, short_side = "protocol.crop" in given, "protocol.short_side" in given
    if crop and not short_side:
        values["short_side"] = max(asked.crop, round(asked.crop * theirs.short_side / theirs.crop))
    if short_side and not crop:
        values["crop"] = max(1, round(asked.short_side * theirs.crop / theirs.short_side))
    return values


def epochs_for(videos: int) -> int:
    """Returns how many epochs a fine-tuning takes: 30 for up to 100 videos, 16 for 1,000, 9 for 10,000, 5 for 100,000.

    The number of clips that are seen grows with the videos, but more slowly: a large set says more in each epoch.
    """
    return max(3, round(30 * (max(videos, 100) / 100) ** -0.26))


def _augmentation(class_names: Sequence[str]) -> dict[str, Any]:
    pairs, alone = mirrored_classes(class_names)
    return {
        "scale": [0.4, 1.0],
        "randaugment_magnitude": 5.0,
        "label_smoothing": 0.1,
        "hflip_pairs": pairs,
        "hflip_keep": alone,
    }


def _optimisation(model: VideoModel, *, epochs: int) -> dict[str, Any]:
    """Returns AdamW with a rate for 16 clips a step; transformers get a smaller one in earlier layers.

    Layer decay is that of BEiT and VideoMAE: about 0.75 for 12 blocks and 0.85 for 24, so that the first layer has 2%
    of the rate of the last. Without it (convolutional networks) all layers of the backbone have the same.
    """
    lr = 1e-3
    values: dict[str, Any] = {
        "name": "adamw",
        "lr": lr,
        "base_batch": 16,
        "weight_decay": 0.05,
        "backbone_scale": 0.3,
        "warmup_epochs": min(1.0, epochs / 10),
        "warmup_lr": lr / 100,
        "min_lr": lr / 100,
        "frozen_epochs": 0 if epochs < 3 else max(1, round(epochs / 15)),
    }
    if (groups := layer_groups(model)) > 1:
        values |= {"layer_decay": round(0.02 ** (1 / groups), 3)}
    return values


def layer_groups(model: VideoModel) -> int:
    """Returns how many groups of layers a transformer has for layer decay; 0 for other networks.

    Networks with layer norms count as transformers (ConvNeXt, which is fine-tuned like them, among them).
    """
    if type(model).group_matcher is VideoModel.group_matcher:
        return 0
    if not any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        return 0
    return max(group_parameters(model, model.group_matcher(), reverse=True).values()) + 1


def _loading(config: TrainConfig, videos: Manifest, model: VideoModel, given: set[str]) -> dict[str, Any]:
    """Returns the batch size that the memory holds and the videos fill, the workers, and how classes are drawn."""
    on_gpu = _on_gpu(config)
    values: dict[str, Any] = {}
    if not on_gpu:  # the cores are better used by the model than by decoders
        values["workers"] = max(1, usable_cores() // 4)
    counts = torch.bincount(torch.as_tensor(videos.primary), minlength=len(videos.class_names))
    counts = counts[counts > 0]
    if config.task == "multiclass" and not isinstance(videos.members, Members) and counts.max() > 2 * counts.min():
        values["balance"] = "class"
    if "data.batch_size" in given:
        return values
    devices = int(config.trainer.devices) if str(config.trainer.devices).isdigit() else 1
    if on_gpu and not str(config.trainer.devices).isdigit():
        devices = torch.cuda.device_count()
    repeats, most = config.data.repeats, 16 if on_gpu else 8
    room = max(1, len(videos) // (2 * devices * config.trainer.num_nodes)) * repeats
    batch, checkpointing = _batch_that_fits(model, config, most=_power_of_two(min(most, max(room, 2))))
    return {**values, "batch_size": max(batch, repeats), "grad_checkpointing": checkpointing}


def _power_of_two(number: float) -> int:
    return 1 << (max(int(number), 1).bit_length() - 1)


def _on_gpu(config: TrainConfig) -> bool:
    return config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _batch_that_fits(model: VideoModel, config: TrainConfig, *, most: int) -> tuple[int, bool]:
    """Returns how many clips a step can take in the memory there is, and whether activations must be recomputed.

    Args:
        model: The model of the weights; its batch norms see random clips and are of no use after this.
        config: Gives the clips and the device.
        most: Clips that are enough.
    """
    on_gpu = _on_gpu(config)
    free = torch.cuda.mem_get_info()[0] if on_gpu else available_memory()
    if free is None:
        return most, False
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    room = 0.7 * free - 4 * weights  # weights, gradients and two moments of AdamW
    clip = config.augment.clip_protocol(config.protocol)
    for recompute in (config.model.grad_checkpointing, True):
        model.set_grad_checkpointing(recompute)
        needed = 1.3 * _saved_bytes(model, clip, "cuda" if on_gpu else "cpu")
        fitting = min(most, _power_of_two(room / needed)) if room > needed else 1
        if fitting >= min(4, most):
            break
    return fitting, recompute


def _saved_bytes(model: VideoModel, clip: Protocol, device: str) -> float:
    """Returns the bytes that a training step keeps of each clip for its backward pass."""
    model = model.to(device).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    clips = torch.rand(2, 3, clip.frames, clip.crop, clip.crop, device=device)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(clips)
    except ValueError as error:
        if isinstance(error, StvidError):
            raise
        raise ConfigError(f"protocol.crop, protocol.frames: {error}") from error
    return sum(kept.values()) / len(clips)


def _summary(config: TrainConfig, videos: int) -> str:
    optim, trainer = config.optim, config.trainer
    text = (
        f"fine-tuning {config.model.name} from {config.init}: {trainer.max_epochs} epochs for {videos} training videos"
    )
    if optim.frozen_epochs:
        text += f", the head alone in the first {optim.frozen_epochs}"
    if optim.layer_decay != 1:
        text += f", layer decay {optim.layer_decay:g}"
    if trainer.patience and (config.data.val is not None or config.data.val_fraction):
        text += f"; it ends after {trainer.patience} validations without a better one"
    return text


def run_name(config: TrainConfig) -> str:
    """Returns a name for the folder of a fine-tuning: that of the videos and that of the model."""
    videos = re.sub(r"[^\w.-]+", "_", Path(config.data.train or "videos").stem) or "videos"
    return f"{videos}_{config.model.name.rpartition('/')[2]}"


# --- from Python ------------------------------------------------------------------------------------------------------


def train(
    *,
    init: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | TrainConfig | None = None,
    data: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> training.TrainResult:
    """Trains a model, as ``stvid train`` does.

    A script that calls this must do so below ``if __name__ == "__main__":``, since worker processes read the videos.

    Args:
        init: Weights to start from: anything that `stvid.load_model` takes. Without a config, architecture and protocol
            are those of the weights, and the schedule follows from the number of videos.
        config: Path or name of a config, or the config itself.
        data: Training videos: a folder that holds a folder for each class, or a list; it is ``data.train``.
        val: Validation videos in the same forms; it is ``data.val``. Without a config, a fifth of the training videos
            is held out if there are none.
        output: Folder of the run; None makes one below ``runs``.
        overrides: Values of further keys of the config, by their dotted names, such as ``{"optim.lr": 1e-4}``.

    Returns:
        Where the checkpoints are, and the last numbers.

    Raises:
        ConfigError: If neither weights nor a config are given, a key is unknown or has a wrong value, or the config
            cannot be run.
        ManifestError: If the list of videos cannot be used.
        CheckpointError: If weights cannot be read, do not fit, or cannot be written.
        StvidError: If the loss is not finite, or too many videos cannot be read.
    """
    if config is None and init is None:
        raise ConfigError("init, config: neither is given; name weights to start from, or a config")
    named = {"init": init, "data.train": data, "data.val": val, "output": output}
    values = {key: os.fspath(value) for key, value in named.items() if value is not None}
    for key in overrides or {}:
        if key not in config_keys():
            raise ConfigError(f"overrides: {key}: unknown key{nearest(key, config_keys())}")
        if key in values:
            raise ConfigError(f"overrides: {key}: is given as an argument already")
    options = [f"--{key}={_as_text(value)}" for key, value in {**values, **(overrides or {})}.items()]
    resolved = resolve_config(config, options)
    if config is None:
        return training.train(resolved, name=run_name(resolved))
    return training.train(resolved, name="run" if isinstance(config, TrainConfig) else Path(config).stem)


def _as_text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    try:
        return json.dumps(value)
    except TypeError as error:
        raise ConfigError(f"overrides: {value!r} is no plain value ({error})") from error
