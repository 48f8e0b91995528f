"""The model of a run: built as its config says, with the weights that it starts from."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stvid.checkpoints import LoadReport, describe, load_checkpoint, newest_checkpoint, read_checkpoint
from stvid.config import TrainConfig
from stvid.engine.frozen import freeze
from stvid.errors import CheckpointError, ConfigError, StvidError, nearest
from stvid.inflation.sources import ImageOrigin
from stvid.models.base import VideoModel
from stvid.models.pretraining import create_autoencoder
from stvid.models.registry import family_of, model_arguments
from stvid.protocol import Protocol
from stvid.sources import resolve_source
from stvid.zoo import create_model, load_model, model_info

__all__ = ["InitialWeights", "build_model", "find_initial_weights", "initialise", "model_takes", "protocol_differences"]

# Arguments of `create_model` that other keys of a config stand for.
FROM_ELSEWHERE = {
    "num_classes": "the classes of data.train",
    "num_frames": "protocol.frames",
    "img_size": "protocol.crop",
    "checkpoint": "init",
}
# Arguments that neither change the shapes of the weights nor what they compute in evaluation mode.
_OF_TRAINING = ("drop_rate", "attn_drop_rate", "drop_path_rate", "proj_drop_rate")


def model_takes(name: str, argument: str) -> bool:
    """Whether a model takes a keyword argument; its class says so.

    Args:
        name: As `stvid.create_model` takes it.
        argument: Such as ``drop_path_rate``.

    Raises:
        UnknownNameError: If there is no such model.
    """
    library, _, own_name = model_info(name).name.partition("/")
    if not own_name:
        return argument in model_arguments(library)
    origin = ImageOrigin(library, own_name)
    with torch.device("meta"):
        network = origin.build(num_classes=2, img_size=(origin.settings()["crop"],) * 2)
    return any(argument in _parameters(kind) for kind in type(network).__mro__)


def _parameters(kind: type) -> tuple[str, ...]:
    code = getattr(kind.__dict__.get("__init__"), "__code__", None)
    return () if code is None else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def build_model(config: TrainConfig, num_classes: int) -> VideoModel:
    """Builds the model of a run, with random weights, and freezes what the config says.

    Args:
        config: Names the model, its hyperparameters, and the size of its clips.
        num_classes: Number of its logits.

    Raises:
        ConfigError: If the model does not take the hyperparameters or the size, or `model.frozen` names no module.
    """
    name, given = config.model.name, config.model.hyperparameters
    create = functools.partial(_autoencoder, config) if config.task == "pretrain" else create_model
    options = dict(given)
    if config.model.drop_path_rate is not None:
        if not model_takes(name, "drop_path_rate"):
            raise ConfigError(
                f"model.drop_path_rate: {name} has no stochastic depth, so {config.model.drop_path_rate:g} has no "
                "meaning; set it to null (--model.drop_path_rate null)"
            )
        options["drop_path_rate"] = config.model.drop_path_rate
    _check_hyperparameters(name, given)
    _check_clips(config)
    options |= {"num_frames": config.protocol.frames, "img_size": config.protocol.crop}
    try:
        model = create(name, num_classes=num_classes, **options)
    except TypeError as error:
        if not given:  # nothing that the user could change
            raise
        raise ConfigError(f"model.hyperparameters: {error} (they are {given})") from error
    except ValueError as error:
        if isinstance(error, StvidError):
            raise
        raise ConfigError(f"model {name}: {error}") from error
    model.set_grad_checkpointing(config.model.grad_checkpointing)
    freeze(model, config.model.frozen)
    return model


def _autoencoder(config: TrainConfig, name: str, *, num_classes: int, **options: Any) -> VideoModel:
    """Builds the model of a pretraining, which has no classes."""
    decoder = config.autoencoder.decoder_options
    target = config.autoencoder.normalize_target
    return create_autoencoder(name, normalize_target=target, decoder_options=decoder, **options)


def _check_hyperparameters(name: str, given: Mapping[str, Any]) -> None:
    for key, place in FROM_ELSEWHERE.items():
        if key in given:
            raise ConfigError(f"model.hyperparameters: {key} is decided by {place}; leave it out here")
    if not given or "/" in model_info(name).name:  # what a library's function takes, it says itself
        return
    known = {*model_arguments(name), "head"}
    for key in given:
        if key not in known:
            raise ConfigError(f"model.hyperparameters: {name} has no argument {key!r}{nearest(key, known)}")


def _check_clips(config: TrainConfig) -> None:
    """Raises ConfigError if clips are too short or too small for the model, as far as its family says."""
    name = config.model.name
    if "/" in model_info(name).name:
        return
    family, variant = family_of(name)
    per_segment = variant.protocol.frames_per_segment
    if config.protocol.frames_per_segment != per_segment:
        raise ConfigError(
            f"protocol.frames_per_segment: {name} takes {per_segment}, not {config.protocol.frames_per_segment}"
        )
    if config.model.hyperparameters:  # with which a model may take smaller ones
        return
    frames, height, width = variant.min_clip or family.min_clip
    train = config.augment.clip_protocol(config.protocol)
    own = config.augment
    wanted = [
        ("protocol.frames", config.protocol.frames, frames, "frames"),
        ("protocol.crop", config.protocol.crop, max(height, width), "pixels"),
        ("augment.frames" if own.frames is not None else "protocol.frames", train.frames, frames, "frames"),
        ("augment.crop" if own.crop is not None else "protocol.crop", train.crop, max(height, width), "pixels"),
    ]
    for key, value, least, unit in wanted:
        if value < least:
            section, field = key.split(".")
            more = ""
            if field == "crop" and config.protocol.short_side < least:
                more = f" --protocol.short_side {least}"
            raise ConfigError(
                f"{key}: {value} {unit} are too few for {name}, which takes clips of at least {least}; set "
                f"--{section}.{field} {least}{more} or more"
            )


# --- the weights that a run starts from -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The weights that a run starts from.

    Attributes:
        source: As the config names them.
        content: What `load_checkpoint` takes: a file, or the state and description of a model that was loaded by name.
        recipe: The arguments of `create_model` that the weights were saved with; empty if they do not say.
        protocol: The protocol that they were made for; None if they do not say.
    """

    source: str
    content: Path | Mapping[str, Any]
    recipe: Mapping[str, Any]
    protocol: Protocol | None


def find_initial_weights(config: TrainConfig) -> InitialWeights | None:
    """Finds the weights that a config names with `init`, and what they say of themselves.

    Args:
        config: `init` is a file, the folder of a run, or anything else that `stvid.load_model` takes. `model.name` says
            what a file at a URL is of.

    Returns:
        None if no weights are named, or the run is the continuation of another.

    Raises:
        CheckpointError: If the weights cannot be read.
    """
    if config.init is None or config.resume is not None:
        return None
    path = _local_file(config.init)
    if path is not None:
        stored = read_checkpoint(path).get("stvid")
        known: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
        protocol = Protocol.from_dict(known["protocol"]) if "protocol" in known else None
        return InitialWeights(str(path), path, known.get("model", {}), protocol)
    if config.task == "pretrain":  # the decoder is needed, too, which is no part of a model
        located = resolve_source(config.init)
        return InitialWeights(located.name, read_checkpoint(located.path), {}, None)
    model = load_model(config.init, name=config.model.name if "://" in config.init else None)
    content = {"state_dict": model.state_dict(), "stvid": describe(model)}
    return InitialWeights(config.init, content, model.recipe, model.default_protocol)


def _local_file(source: str) -> Path | None:
    """Returns the checkpoint that a path means; None for a name of weights, a URL or another folder."""
    path = Path(source)
    if path.is_file() or any(path.glob("checkpoints/*.ckpt")) or any(path.glob("*.ckpt")):
        return newest_checkpoint(path, prefer="best.ckpt")
    return None


def protocol_differences(ours: Protocol, theirs: Protocol) -> list[str]:
    """Returns a phrase for each setting in which the clips of a run differ from those that its weights were made for.

    Args:
        ours: The protocol of the run.
        theirs: That of the weights. Views and class names are not compared.
    """
    fields = ["frames", "frames_per_segment", "stride", "fps", "sampling"]
    fields += ["short_side", "crop", "mean", "std", "channels"]
    if "segment" in (ours.sampling, theirs.sampling):
        fields.remove("stride")  # which has a meaning in dense clips alone
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in fields]
    return [
        f"protocol.{name}: {_shown(mine)} instead of the weights' {_shown(own)}"
        for name, mine, own in pairs
        if mine != own
    ]


def _shown(value: Any) -> str:
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


def initialise(
    model: VideoModel, config: TrainConfig, class_names: tuple[str, ...], weights: InitialWeights | None
) -> list[str]:
    """Loads the weights that a run starts from, and encodes the classes of a model that takes texts.

    Args:
        model: From `build_model`; it gets a new classifier if that of the weights is of other classes.
        config: The whole run.
        class_names: The classes of the training videos in the order of the logits.
        weights: From `find_initial_weights`; None leaves the model as it is.

    Returns:
        Lines that say what was loaded.

    Raises:
        CheckpointError: If the weights cannot be read or do not fit.
        ConfigError: If they are of another model, or were made with other options; the message holds the options that
            name it.
    """
    lines = [] if weights is None else _load_initial(model, config, class_names, weights)
    if model.takes_texts:
        model.set_classes(class_names)
        lines.append(f"init      the classes are the {len(class_names)} labels of the videos, as texts")
    return lines


def _load_initial(
    model: VideoModel, config: TrainConfig, class_names: tuple[str, ...], weights: InitialWeights
) -> list[str]:
    """Loads the weights that a run starts from; the arguments are those of `initialise`."""
    name = config.model.name
    _check_temporal(model, weights)
    try:
        report = load_checkpoint(model, weights.content, reset_head=True)
    except CheckpointError as error:
        if weights.recipe.get("name", name) != name:
            theirs = weights.recipe["name"]
            raise ConfigError(
                f"init {weights.source}: holds {theirs}, not {name}; add --model.name {theirs}"
                f"{_as_option(weights.recipe['hyperparameters'])}"
            ) from error
        if other := _other_options(model, weights):
            raise ConfigError(
                f"init {weights.source}: was made with {other}; add{_as_option(weights.recipe['hyperparameters'])}"
            ) from error
        raise CheckpointError(str(error).replace("mapping:", f"{weights.source}:", 1)) from error
    return _describe_loaded(model, dataclasses.replace(report, source=weights.source), class_names)


def _describe_loaded(model: VideoModel, report: LoadReport, class_names: tuple[str, ...]) -> list[str]:
    lines = [f"init      {report}"]
    stored = report.protocol.class_names if report.protocol is not None else ()
    if report.reset and "/" in model.recipe.get("name", ""):
        # Libraries draw a new classifier for their own number of classes: timm's EfficientNets with weights of up to
        # 0.7 for two classes, so that the first loss is 5 where 0.7 is chance.
        model.reset_classifier(len(class_names))
    if not report.reset and stored and stored != class_names and model.num_classes:
        model.reset_classifier(len(class_names))
        lines.append("init      the checkpoint's classes have other names: new head")
    return lines


def _as_option(hyperparameters: Mapping[str, Any]) -> str:
    return f" --model.hyperparameters {shlex.quote(json.dumps(dict(hyperparameters)))}" if hyperparameters else ""


def _other_options(model: VideoModel, weights: InitialWeights) -> str:
    """Says in which arguments the model of the weights differs from this one; empty if in none that matters."""
    theirs = {**weights.recipe.get("hyperparameters", {})}
    ours = {**model.recipe.get("hyperparameters", {})}
    differing = [key for key in sorted({*theirs, *ours} - {*_OF_TRAINING}) if theirs.get(key) != ours.get(key)]
    shown = [f"{key} {theirs.get(key, 'left out')} (this training: {ours.get(key, 'left out')})" for key in differing]
    return ", ".join(shown)


def _check_temporal(model: VideoModel, weights: InitialWeights) -> None:
    """Raises ConfigError if an inflated network was made for another way of seeing frames.

    Two of the modes, ``none`` and ``shift``, have the same parameters, so that the weights would load and compute
    something else.
    """
    theirs = weights.recipe.get("hyperparameters", {})
    if "temporal" not in theirs or weights.recipe.get("name") != model.recipe.get("name"):
        return
    ours = getattr(getattr(model, "options", None), "temporal", None)
    if ours is not None and ours != theirs["temporal"]:
        raise ConfigError(
            f"init {weights.source}: was made with temporal {theirs['temporal']}, but this training builds temporal "
            f"{ours}; add{_as_option(theirs)}"
        )
