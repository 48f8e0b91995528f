"""The model of a run: built as its config says, with the weights that it starts from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

from stvid.checkpoints import load_checkpoint, read_checkpoint
from stvid.config import TrainConfig
from stvid.errors import CheckpointError, ConfigError, StvidError, nearest
from stvid.models.base import VideoModel
from stvid.zoo import create_model

__all__ = ["build_model", "initialise"]

# Arguments of `create_model` that other keys of a config stand for.
FROM_ELSEWHERE = {
    "num_classes": "the classes of data.train",
    "num_frames": "protocol.frames",
    "img_size": "protocol.crop",
    "checkpoint": "init",
}


def build_model(config: TrainConfig, num_classes: int) -> VideoModel:
    """Builds the model of a run, with random weights, and freezes what the config says.

    Args:
        config: Names the model, its hyperparameters, and the size of its clips.
        num_classes: Number of its logits.

    Raises:
        ConfigError: If the model does not take the hyperparameters or the size, or `model.frozen` names no module.
    """
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


def initialise(model: VideoModel, config: TrainConfig, class_names: tuple[str, ...]) -> list[str]:
    """Loads the weights that a run starts from, if its config names any and it is not the continuation of a run.

    Args:
        model: From `build_model`; it gets a new classifier if that of the weights is of other classes.
        config: Names the weights with `init`.
        class_names: The classes of the training videos in the order of the logits.

    Returns:
        Lines that say what was loaded.

    Raises:
        CheckpointError: If the weights cannot be read or do not fit.
        ConfigError: If they are of another model; the message holds the options that name it.
    """
    if config.init is None or config.resume is not None:
        return []
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
    lines = [f"init      {report}"]
    stored = report.protocol.class_names if report.protocol is not None else ()
    if not report.reset and stored and stored != class_names:
        model.reset_classifier(len(class_names))
        lines.append("init      the checkpoint's classes have other names: new head")
    return lines
