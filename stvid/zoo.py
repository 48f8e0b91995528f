"""Names to models: `create_model`, `list_models`, `load_model`, over all that stvid can build.

Native models are those of `stvid.models.registry`. A name with a slash, ``<library>/<name>``, is a model of another
library behind the same API: a video model of torchvision or PyTorchVideo that has no native counterpart, or an image
model of timm or torchvision, inflated.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stvid.errors import CheckpointError, StvidError, UnknownNameError, nearest
from stvid.models import registry
from stvid.models.libraries import NATIVE
from stvid.models.registry import HeadName, ModelInfo, build_model, native_models

if TYPE_CHECKING:
    from torch import Tensor

    from stvid.models.base import VideoModel
    from stvid.protocol import Protocol

__all__ = ["LIBRARIES", "create_model", "list_models", "load_model", "model_info"]

# The modules that know the models of a library, asked in this order and imported at first use. Each has two functions:
# `library_models(library)` lists the names behind the slash, `library_model_info(library, name)` returns a `ModelInfo`.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "pytorchvideo": ("stvid.models.libraries",),
    "timm": ("stvid.inflation.inflate",),
    "torchvision": ("stvid.models.libraries", "stvid.inflation.inflate"),
}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names of the models that match a shell pattern.

    Args:
        pattern: ``uniformer_*`` matches models of stvid itself. A pattern with a slash matches models of other
            libraries, whether those are installed or not: ``pytorchvideo/*``, ``*/mvit_*``.
    """
    if "/" not in pattern:
        return fnmatch.filter(native_models(), pattern)
    libraries, _, names = pattern.partition("/")
    matching = fnmatch.filter(LIBRARIES, libraries)
    return sorted(f"{library}/{name}" for library in matching for name in fnmatch.filter(_names(library), names))


def model_info(name: str) -> ModelInfo:
    """Returns what is known of a model before it is built.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
    """
    if "/" in name:
        return _library_model_info(name)
    if name in native_models():
        return registry.model_info(name)
    elsewhere = [f"{library}/{name}" for library in LIBRARIES if name in _names(library)]
    hint = f"; there is {', '.join(elsewhere)}" if elsewhere else nearest(name, native_models())
    raise UnknownNameError(f"model {name!r}: no such model{hint} (see: stvid models)")


def _names(library: str) -> set[str]:
    modules = (importlib.import_module(module) for module in LIBRARIES[library])
    return {name for module in modules for name in module.library_models(library)}


def _library_model_info(name: str) -> ModelInfo:
    library, _, own_name = name.partition("/")
    if library not in LIBRARIES:
        known = ", ".join(f"{library}/..." for library in LIBRARIES)
        raise UnknownNameError(f"model {name!r}: no library {library!r}; there are {known}")
    for module in map(importlib.import_module, LIBRARIES[library]):
        if own_name in module.library_models(library):
            info: ModelInfo = module.library_model_info(library, own_name)
            return info
    if native := NATIVE.get(library, {}).get(own_name):
        raise UnknownNameError(f"{name}: is native here: {native}")
    hint = nearest(own_name, _names(library))
    raise UnknownNameError(f"model {name!r}: {library} has no {own_name!r}{hint} (see: stvid models '{library}/*')")


def create_model(
    name: str,
    *,
    num_classes: int = 400,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    checkpoint: Any = None,
    head: HeadName = "default",
    **hyperparameters: Any,
) -> VideoModel:
    """Builds a model by name.

    Args:
        name: One of `list_models`; ``<library>/<name>`` is a model of another library.
        num_classes: Number of logits; 0 gives features.
        num_frames: Frames of a clip; None takes the model's own.
        img_size: Side of the square input in pixels, or (height, width); None takes the model's own.
        checkpoint: A path or mapping of weights for `stvid.load_checkpoint`.
        head: ``default``, or ``attentive`` for a head that pools by attention.
        **hyperparameters: Further arguments of the family's class, for example ``drop_path_rate``.

    Returns:
        A model in training mode: ``forward(clip)`` takes (B, C, T, H, W) and returns logits (B, num_classes). Its
        ``default_protocol`` is the published one at these frames and this size.

    Raises:
        UnknownNameError: If there is no such model; the message lists the nearest names.
        ValueError: If `num_classes` is negative, there is no such head, or the model cannot be built at these frames or
            this size.
        TypeError: If the model has no such hyperparameter; the message names it.
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    model = build_model(
        model_info(name),
        num_classes=num_classes,
        num_frames=num_frames,
        img_size=img_size,
        head=head,
        hyperparameters=hyperparameters,
    )
    if checkpoint is not None:
        from stvid.checkpoints import load_checkpoint

        load_checkpoint(model, checkpoint)
    return model


def load_model(
    source: str | os.PathLike[str], *, name: str | None = None, protocol: Protocol | None = None
) -> VideoModel:
    """Builds the model that a checkpoint describes, with its weights, protocol and task, in evaluation mode.

    Args:
        source: A checkpoint of stvid, or the folder of a run, of which the best checkpoint is taken, else the newest;
            or, with `name`, a checkpoint in a published format.
        name: The model, for a checkpoint that does not describe itself; its head decides the number of classes, and
            its other weights the options that `VideoModel.options_of` finds.
        protocol: Replaces the stored or published protocol.

    Raises:
        CheckpointError: If the checkpoint cannot be read, does not describe a model and no name is given, or does
            not fit.
    """
    from stvid.checkpoints import load_checkpoint, newest_checkpoint, read_checkpoint, unwrap

    source = newest_checkpoint(source, prefer="best.ckpt")
    content = read_checkpoint(source)
    stored = content.get("stvid")
    if isinstance(stored, Mapping) and "model" in stored:
        model = _described(dict(stored["model"]), name, str(source))
    elif name is None:
        raise CheckpointError(
            f"{source}: does not say which model it is of (not written by stvid); name it with --model, for example "
            "--model uniformer_s"
        )
    else:
        state = unwrap(content)
        options = create_model(name).options_of(state)
        model = create_model(name, num_classes=_count_classes(name, state, str(source), options), **options)
    try:
        load_checkpoint(model, content)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("mapping", str(source), 1)) from error
    if protocol is not None:
        model.default_protocol = protocol
    return model.eval()


def _described(recipe: dict[str, Any], name: str | None, source: str) -> VideoModel:
    """Builds the model that a description stored with weights calls for."""
    if name is not None and name != recipe.get("name"):
        raise CheckpointError(f"{source}: is a checkpoint of {recipe.get('name')}, not of {name}")
    try:
        return create_model(
            recipe["name"],
            num_classes=recipe["num_classes"],
            num_frames=recipe["num_frames"],
            img_size=tuple(recipe["img_size"]),
            head=recipe.get("head", "default"),
            **recipe["hyperparameters"],
        )
    except (StvidError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its description cannot be built here: {error}") from error


def _count_classes(name: str, state: Mapping[str, Tensor], source: str, options: Mapping[str, Any]) -> int:
    """Reads the number of classes off the head of a published checkpoint."""
    from stvid.checkpoints import head_keys

    model = create_model(name, **options)
    _, state = model.convert_checkpoint(state)
    biases = [key for key in head_keys(model) if key.endswith("bias")]
    for key in biases:
        if key in state:
            return int(state[key].shape[0])
    raise CheckpointError(f"{source}: has no classifier of {name} (looked for {', '.join(sorted(biases))})")
