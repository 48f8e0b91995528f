"""Names to models: `create_model`, `list_models`, `load_model`, over all that stvid can build.

Native models are those of `stvid.models.registry`. A name with a slash, ``<library>/<name>``, is an image model of timm
or torchvision, inflated.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvid.errors import CheckpointError, ConfigError, StvidError, UnknownNameError, nearest
from stvid.machine import available_memory
from stvid.models import registry
from stvid.models.libraries import NATIVE
from stvid.models.registry import HeadName, ModelInfo, build_model, native_models
from stvid.models.weights import Weights
from stvid.sources import adopt_weights, published_source, resolve_source

if TYPE_CHECKING:
    from torch import nn

    from stvid.checkpoints import LoadReport
    from stvid.hub import StoredModel
    from stvid.models.base import VideoModel
    from stvid.protocol import Protocol

__all__ = ["LIBRARIES", "create_model", "list_models", "load_model", "model_info"]
_log = logging.getLogger(__name__)

# The modules that know the models of a library, asked in this order and imported at first use. Each has two functions:
# `library_models(library)` lists the names behind the slash, `library_model_info(library, name)` returns a `ModelInfo`.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "timm": ("stvid.inflation.inflate",),
    "torchvision": ("stvid.inflation.inflate",),
}


HUGE = 500_000_000  # numbers in a file from which a model is built of its tensors, without a copy


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Returns the names of the models that match a shell pattern, sorted.

    Args:
        pattern: ``uniformer_*`` matches models of stvid itself. A pattern with a slash matches models of other
            libraries, whether those are installed or not: ``timm/*``, ``*/resnet*``.
        pretrained: List the published weights of stvid's own models instead, as ``MODEL.TAG``, the default weights of
            each model first. The pattern then means models or weights: ``uniformer_s``, ``*.ssv2*``.
    """
    if pretrained:
        published = [(model, [weights.name for weights in registry.weights_of(model)]) for model in native_models()]
        return [
            name
            for model, names in published
            for name in names
            if fnmatch.fnmatchcase(model, pattern) or fnmatch.fnmatchcase(name, pattern)
        ]
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
    for names in NATIVE.values():
        if name in names:
            raise UnknownNameError(f"{name}: is native here: {names[name]}")
    elsewhere = [f"{library}/{name}" for library in LIBRARIES if name in _names(library)]
    hint = f"; there is {', '.join(elsewhere)}" if elsewhere else nearest(name, native_models())
    raise UnknownNameError(f"model {name!r}: no such model{hint} (see: stvid models)")


def _names(library: str) -> set[str]:
    modules = (importlib.import_module(module) for module in LIBRARIES[library])
    return {name for module in modules for name in module.library_models(library)}


def _library_model_info(name: str) -> ModelInfo:
    library, _, own_name = name.partition("/")
    if native := NATIVE.get(library, {}).get(own_name):
        raise UnknownNameError(f"{name}: is native here: {native}")
    if library not in LIBRARIES and library in NATIVE:
        hint = nearest(own_name, NATIVE[library]) or " (see: stvid models)"
        raise UnknownNameError(f"model {name!r}: the models of {library} are native here, but none has this name{hint}")
    if library not in LIBRARIES:
        known = ", ".join(f"{library}/..." for library in LIBRARIES)
        raise UnknownNameError(f"model {name!r}: no library {library!r}; there are {known}")
    for module in map(importlib.import_module, LIBRARIES[library]):
        if own_name in module.library_models(library):
            info: ModelInfo = module.library_model_info(library, own_name)
            return info
    hint = nearest(own_name, {*_names(library), *NATIVE.get(library, ())})
    raise UnknownNameError(f"model {name!r}: {library} has no {own_name!r}{hint} (see: stvid models '{library}/*')")


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    head: HeadName = "default",
    **hyperparameters: Any,
) -> VideoModel:
    """Builds a model by name.

    Args:
        name: One of `list_models`; ``<library>/<name>`` is a model of another library. ``MODEL.TAG`` names published
            weights, too, and builds the model that they were made for.
        pretrained: Load the published weights of the tag, or without a tag the model's default ones.
        num_classes: Number of logits; 0 gives features. None takes as many as the weights have, and 400 without
            weights. Another number than the weights have makes a new classifier, which is said on stderr.
        num_frames: Frames of a clip; None takes those of the weights, or else the model's own.
        img_size: Side of the square input in pixels, or (height, width); None takes the weights' or the model's.
        in_chans: Channels of the clip. The first layer of weights for three colours is adapted to any other number.
        checkpoint: Weights for `stvid.load_checkpoint`, instead of published ones.
        head: ``default``, or ``attentive`` for a head that pools by attention.
        **hyperparameters: Further arguments of the family's class, for example ``drop_path_rate``.

    Returns:
        A model in training mode: ``forward(clip)`` takes (B, C, T, H, W) and returns logits (B, num_classes). Its
        ``default_protocol`` is the one of the weights, or else the published one, at these frames and this size.

    Raises:
        UnknownNameError: If there is no such model or no such weights; the message lists the nearest names.
        ConfigError: If both `pretrained` and `checkpoint` are given.
        ValueError: If `num_classes` is negative, there is no such head, or the model cannot be built at these frames or
            this size.
        TypeError: If the model has no such hyperparameter; the message names it.
        CheckpointError: If the weights cannot be read or do not fit.
        StvidError: If they cannot be fetched.
    """
    if pretrained and checkpoint is not None:
        raise ConfigError("pretrained and checkpoint both name weights: give one of them")
    weights = _published(name, pretrained)
    info = model_info(name if weights is None else weights.model)
    options = dict(hyperparameters) if in_chans == 3 else {**hyperparameters, "in_chans": in_chans}
    if weights is not None:
        options = {**weights.options, **options}
        info = dataclasses.replace(info, protocol=weights.protocol)
    wanted = weights if weights is not None and pretrained else checkpoint
    given = None if wanted is None else _Given.read(wanted)
    classes = num_classes if weights is None or num_classes is not None else weights.num_classes
    if classes is None and given is not None:
        classes = given.count_classes(info.name, options)
    model = build_model(
        info,
        num_classes=400 if classes is None else classes,
        num_frames=num_frames,
        img_size=img_size,
        head=head,
        hyperparameters=options,
    )
    if given is not None:
        report = given.load_into(model, reset_head=pretrained)
        if report.reset and model.num_classes:
            print(f"{given.name}: new classifier of {model.num_classes} classes, not yet trained", file=sys.stderr)
    elif weights is not None:
        adopt_weights(model, weights, trained=False)
    return model


def _published(name: str, pretrained: bool) -> Weights | None:
    """Returns the weights that a name means; None for a name without a tag, unless weights are wanted."""
    weights = registry.find_weights(name)
    if weights is not None or not pretrained:
        return weights
    info = model_info(name)  # raises for a name that does not exist
    published = registry.weights_of(name) if "/" not in name else ()
    if not published:
        raise CheckpointError(
            f"{info.name}: stvid knows of no published weights of it (see: stvid models --pretrained)"
        )
    return published[0]


@dataclass(frozen=True)
class _Given:
    """Weights that were read, and where they are from.

    Attributes:
        name: The name by which they were asked for, for messages.
        content: What the file holds.
        weights: What is known of them, if they are published weights with a name.
        folder: The folder with a ``config.json`` that they lie in, if it is one of `stvid.hub` or of transformers.
    """

    name: str
    content: Mapping[str, Any]
    weights: Weights | None = None
    folder: Path | None = None

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Weights) -> _Given:
        """Fetches the weights if need be, and reads them."""
        from stvid.checkpoints import read_checkpoint

        if isinstance(source, Mapping):
            return cls("mapping", source)
        found = published_source(source) if isinstance(source, Weights) else resolve_source(source)
        folder = found.path.parent if found.path.name.endswith(".index.json") else found.path
        described = (folder / "config.json").is_file()
        return cls(found.name, read_checkpoint(found.path), found.weights, folder if described else None)

    def options_of(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Reads arguments of `create_model` off the tensors: those that the model's family finds in them."""
        from stvid.checkpoints import nearest_state

        network = _outline(model, options)
        return network.options_of(nearest_state(network, self.content))

    def count_classes(self, model: str, options: Mapping[str, Any]) -> int:
        """Reads the number of classes off the head; 0 if there is none, so that the model gives features."""
        from stvid.checkpoints import head_keys, nearest_state

        network = _outline(model, options)
        _, state = network.convert_checkpoint(nearest_state(network, self.content))
        biases = (key for key in head_keys(network) if key.endswith("bias") and key in state)
        return next((int(state[key].shape[0]) for key in biases), 0)

    def in_folder(self, name: str | None) -> StoredModel | None:
        """Returns the model that the config beside the weights describes.

        Args:
            name: The model, if the caller names it; a config of another one of the same family does not count then.

        Raises:
            CheckpointError: If the config is of a model that stvid does not have, and the caller names none.
        """
        from stvid.hub import load_recipe

        if self.folder is None:
            return None
        try:
            found = load_recipe(self.folder)
        except CheckpointError:
            if name is None:
                raise
            return None
        return found if name in (None, found.recipe["name"]) else None

    def load_into(
        self, model: VideoModel, *, reset_head: bool = False, classes: Sequence[str] | None = None
    ) -> LoadReport:
        """Loads the weights, and what is known of them; then encodes the texts that are the classes, if they are."""
        from stvid.checkpoints import head_keys, load_checkpoint

        report = load_checkpoint(model, self.content, reset_head=reset_head, name=self.name)
        if self.weights is not None:
            if model.takes_texts and len(self.weights.class_names) != model.num_classes:
                report.reset = sorted(head_keys(model))  # texts of other classes are not in the file
            adopt_weights(model, self.weights, trained=not report.reset)
        if classes is not None:
            model.set_classes(classes)
        elif model.takes_texts and "stvid" not in self.content and model.default_protocol.class_names:
            model.set_classes(model.default_protocol.class_names)
        return report


def load_model(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    protocol: Protocol | None = None,
    network: nn.Module | None = None,
    classes: Sequence[str] | None = None,
) -> VideoModel:
    """Builds the model that weights belong to, with these weights, their protocol and task, in evaluation mode.

    Args:
        source: One of the forms of `stvid.sources`: a checkpoint of stvid; the folder of a run, of which the best
            checkpoint is taken, else the newest; published weights by name, ``MODEL.TAG``; a folder of transformers;
            ``hf-hub:org/repo``; an address that begins with ``https://``; or, with `name`, any other file of weights.
        name: The model, for weights that do not say themselves what they are of; the head decides the number of
            classes, and the other tensors the options that `VideoModel.options_of` finds. Without a head it gives
            features.
        protocol: Replaces the stored or published protocol.
        network: The image network of the user's own that the video model was made of by `stvid.inflate`; its weights
            are replaced by those of the checkpoint.
        classes: Texts that are the classes, for models that take texts (X-CLIP); None takes those of the weights.

    Raises:
        ConfigError: If there are `classes`, and the model takes no texts.
        CheckpointError: If the weights cannot be read, do not say which model they are of and no name is given, or do
            not fit.
        StvidError: If they cannot be fetched.
    """
    given = _Given.read(source)
    stored = given.content.get("stvid")
    in_folder = None if given.weights is not None else given.in_folder(name)
    build: Callable[[], VideoModel]
    if in_folder is not None:
        build = functools.partial(_described, in_folder.recipe, name, given.name, network)
    elif isinstance(stored, Mapping) and "model" in stored:
        build = functools.partial(_described, dict(stored["model"]), name, given.name, network)
    elif given.weights is not None:
        build = functools.partial(_of_weights, given, given.weights, name)
    elif name is None:
        raise CheckpointError(
            f"{given.name}: does not say which model it is of (not written by stvid); name it with --model, for "
            "example --model uniformer_s"
        )
    else:
        options = given.options_of(name, {})
        build = functools.partial(create_model, name, num_classes=given.count_classes(name, options), **options)
    model = _filled(given, build, classes) if network is None and _count_numbers(given.content) >= HUGE else None
    if model is None:
        model = build()
        if model.takes_texts and given.folder is not None and (given.folder / "merges.txt").is_file():
            model.tokenizer = str(given.folder)  # type: ignore[assignment]
        given.load_into(model, classes=classes)
    if in_folder is not None:
        texts = {"class_names": model.default_protocol.class_names} if model.takes_texts else {}
        model.default_protocol, model.task = in_folder.protocol.replace(**texts), in_folder.task
    if protocol is not None:
        model.default_protocol = protocol
    return model.eval()


def _filled(given: _Given, build: Callable[[], VideoModel], classes: Sequence[str] | None) -> VideoModel | None:
    """Builds a huge model of the tensors of its file, without memory of its own and without drawing weights.

    The files are mapped into memory, so that a tensor is read when it is used, shard by shard, and there is no second
    copy.

    Returns:
        The model; None if it is none of stvid's own, or if something of it is not in the file.
    """
    import torch

    with torch.device("meta"):
        model = build()
    if model.takes_texts or model.recipe.get("name") not in native_models():
        return None
    given.load_into(model, classes=classes)
    left = any(tensor.is_meta for tensor in itertools.chain(model.parameters(), model.buffers()))
    return None if left else model


def _count_numbers(content: Any) -> int:
    """Returns how many numbers the tensors in the content of a file have."""
    if isinstance(content, Mapping):
        return sum(map(_count_numbers, content.values()))
    return int(content.numel()) if hasattr(content, "numel") else 0


def _of_weights(given: _Given, weights: Weights, name: str | None) -> VideoModel:
    """Builds the model that published weights were made for."""
    if name not in (None, weights.model):
        raise CheckpointError(f"{given.name}: is weights of {weights.model}, not of {name}")
    classes = weights.num_classes
    if classes is None:
        classes = given.count_classes(weights.model, weights.options)
    return create_model(weights.name, num_classes=classes)


def _outline(name: str, options: Mapping[str, Any]) -> VideoModel:
    """Builds a model that is only asked for its shapes; a native one without memory and without drawing weights."""
    import torch

    with torch.device("cpu" if "/" in name else "meta"):
        return create_model(name, **options)


def _inflated_again(recipe: dict[str, Any], network: nn.Module | None, source: str) -> VideoModel:
    """Inflates a network of the user's own once more, as a description stored with weights says."""
    from stvid.inflation.guests import other_constants
    from stvid.inflation.inflate import inflate

    if "module" not in recipe:
        raise CheckpointError(
            f"{source}: is a checkpoint of {recipe.get('name')}, which stvid builds itself; leave network out"
        )
    if network is None:
        raise CheckpointError(
            f"{source}: is a video model made of an image network of your own, class {recipe['module']}, which stvid "
            f"does not have: give an instance, stvid.load_model(file, network={recipe['module']}(...)), or build the "
            "video model again with stvid.inflate and read the file with stvid.load_checkpoint(model, file)"
        )
    try:
        model = inflate(
            network,
            num_frames=recipe["num_frames"],
            num_classes=recipe["num_classes"],
            img_size=tuple(recipe["img_size"]),
            prove=False,
            **recipe["hyperparameters"],
        )
    except (StvidError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: the network cannot be inflated as the file says: {error}") from error
    others = other_constants(recipe.get("constants", {}), model.recipe.get("constants", {}))
    if others:
        _log.warning(
            "%s: the given network has another %s than the saved one (no part of the weights: a plain tensor or a "
            "buffer that is not persistent), so it computes something else; give it the same",
            source,
            " and another ".join(others),
        )
    model.train()
    return model


_USUAL_SIZE = 2048


def _numbers(value: Any) -> Iterator[float]:
    """Yields all numbers in a value."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _check_memory(recipe: Mapping[str, Any]) -> None:
    """Raises ValueError if the weights of a description would not fit into the memory that there is."""
    sizes = [size for key in ("hyperparameters", "img_size", "num_frames") for size in _numbers(recipe[key])]
    memory = available_memory()
    usual = max(sizes, default=0) <= _USUAL_SIZE and sum(sizes) <= 16 * _USUAL_SIZE
    if memory is None or "/" in recipe["name"] or usual:
        return
    options = {key: recipe[key] for key in ("num_classes", "num_frames")}
    outline = _outline(recipe["name"], {**options, "img_size": tuple(recipe["img_size"]), **recipe["hyperparameters"]})
    needed = sum(value.numel() * value.element_size() for value in outline.state_dict().values())
    if needed > memory:
        raise ValueError(f"its weights would take {needed / 1e9:.0f} GB, and there are {memory / 1e9:.0f} GB")


def _described(recipe: dict[str, Any], name: str | None, source: str, network: nn.Module | None = None) -> VideoModel:
    """Builds the model that a description stored with weights calls for."""
    if network is not None or "module" in recipe:
        return _inflated_again(recipe, network, source)
    if name is not None and name != recipe.get("name"):
        raise CheckpointError(f"{source}: is a checkpoint of {recipe.get('name')}, not of {name}")
    try:
        _check_memory(recipe)
        return create_model(
            recipe["name"],
            num_classes=recipe["num_classes"],
            num_frames=recipe["num_frames"],
            img_size=tuple(recipe["img_size"]),
            head=recipe.get("head", "default"),
            **recipe["hyperparameters"],
        )
    except (StvidError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        # Whatever the layers say of values that no model has: zero heads, a kernel of half a pixel, too much memory.
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{source}: its description cannot be built here: {reason}") from error
