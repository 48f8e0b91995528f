"""`inflate`: a video model from a 2D network of timm, of torchvision, or of the user's."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from stvid.checkpoints import read_checkpoint
from stvid.errors import CheckpointError, ConfigError, nearest
from stvid.inflation.anatomy import examine
from stvid.inflation.guests import constants_of, copied, own_copy
from stvid.inflation.image_weights import pick_state
from stvid.inflation.model import InflatedModel
from stvid.inflation.options import InflationOptions, LogitsAt, Temporal
from stvid.inflation.proof import Trial, prove_training
from stvid.inflation.proof import prove as prove_still
from stvid.inflation.report import RANDOM, InflationReport, TensorRule
from stvid.inflation.sources import ImageOrigin, find_origin, head_classes, image_models, load_strictly
from stvid.models.base import VideoModel
from stvid.models.registry import ModelInfo
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["Inflated", "inflate", "inflate_with_report", "library_model_info", "library_models"]

SPAN = 64  # source frames that a clip spans, as in I3D and SlowFast
Source = str | nn.Module
Weights = str | os.PathLike[str] | Mapping[str, Any]
_OPTIONS = ("in_chans", *(field.name for field in fields(InflationOptions)))


@dataclass
class Inflated:
    """The result of `inflate_with_report`.

    Attributes:
        model: The video model, in evaluation mode.
        report: The rule of every tensor, and the proof.
    """

    model: InflatedModel
    report: InflationReport


@dataclass
class _Image:
    """The 2D network of an inflation.

    Attributes:
        name: How messages call the network.
        network: With its weights; it is inflated in place.
        img_size: (height, width) in pixels.
        origin: Where it is from; None for a module of the user's.
        dropped: Keys of the given weights that it does not take.
        fresh_head: Whether its classifier is a new one, not that of the given weights.
        weights: Where its weights are from, for the report.
        in_chans: Channels of its images.
        left_out: Keys of the given weights that are of a projection head.
        beside: Names of what else stands beside the given weights in their file.
        logits: Which of its outputs the logits are, if the user says so.
    """

    name: str
    network: nn.Module
    img_size: tuple[int, int]
    origin: ImageOrigin | None = None
    dropped: Sequence[str] = ()
    fresh_head: bool = False
    weights: str = RANDOM
    in_chans: int = 3
    left_out: Sequence[str] = ()
    beside: Sequence[str] = ()
    logits: LogitsAt = None


def inflate(
    source: Source,
    *,
    num_frames: int,
    num_classes: int | None = None,
    temporal: Temporal = "conv",
    img_size: int | tuple[int, int] | None = None,
    weights: Weights | None = None,
    checkpoint: Weights | None = None,
    pretrained: bool = False,
    prove: bool = True,
    **hyperparameters: Any,
) -> VideoModel:
    """Makes a video model of an image model; for a still video it computes what the image model computes.

    That is proved before the model is returned: an image, repeated over time, must give the image's logits. What became
    of every tensor, and the proof, are in the model's attribute ``inflation``.

    Args:
        source: ``timm:<name>``, ``torchvision:<name>``, ``hf-hub:<organisation>/<name>`` (a repository of an image
            model of timm, with its weights), or a network that takes images (N, C, H, W) and returns logits
            (N, classes), as a tensor, first in a tuple, or as ``logits`` of an object; the network itself is not
            changed.
        num_frames: Frames of a clip.
        num_classes: Number of logits; None keeps the classifier of the 2D network. A network without classifier, also
            one that returns maps or tokens, gets a linear one on top.
        temporal: How frames see each other: ``none``, ``shift``, ``conv``, ``attention`` or ``head``; see
            `stvid.inflation.model`.
        img_size: Side in pixels, or (height, width); None takes the 2D network's own, for a module 224.
        weights: A file or mapping with weights of the 2D network; also from self-supervised training, whose projection
            head is left out.
        checkpoint: Another name of `weights`.
        pretrained: Whether to take the library's published weights, from the network or its cache.
        prove: Whether to compare the two networks; False returns the model unproved.
        **hyperparameters: Further options of `InflationOptions` (``kernel_size``, ``init``, ``layers``, ``padding``,
            ``causal``, ``logits``, ...), ``in_chans``, and for a named source those of the library's function
            (``drop_path_rate``, ...).

    Returns:
        The model, in evaluation mode.

    Raises:
        UnknownNameError: If the source does not exist; the message lists the nearest names.
        ConfigError: If the source is no image classifier, the options do not fit it, or the proof fails.
        CheckpointError: If the weights cannot be read or do not fit.
        TypeError: If there is no such hyperparameter; the message names it.
    """
    if weights is not None and checkpoint is not None:
        raise ConfigError("give either weights or checkpoint, which are two names of one thing")
    result = inflate_with_report(
        source,
        num_frames=num_frames,
        num_classes=num_classes,
        img_size=img_size,
        weights=checkpoint if weights is None else weights,
        pretrained=pretrained,
        prove=prove,
        temporal=temporal,
        **hyperparameters,
    )
    if not result.report.as_promised:
        raise ConfigError(
            f"{result.report.source}: the video model does not compute what the image network computes "
            f"({result.report.verdict()}); another temporal mode may work, prove=False returns it as it is"
        )
    return result.model


def inflate_with_report(
    source: Source,
    *,
    num_frames: int,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    weights: Weights | None = None,
    pretrained: bool = False,
    prove: bool = True,
    **hyperparameters: Any,
) -> Inflated:
    """Does what `inflate` does, and says what became of every tensor.

    The arguments are those of `inflate`, and `prove`: whether to compare both networks on a still video, in float64.
    """
    own, rest = _split(hyperparameters)
    if num_classes is not None and (
        isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0
    ):
        raise ConfigError(f"num_classes {num_classes!r}: must be a whole number; 0 leaves the classifier out")
    if isinstance(source, str):
        origin, weights, pretrained = find_origin(source, rest, weights=weights, pretrained=pretrained)
        hyperparameters = {**own, **origin.options}
        image = _from_library(
            origin, img_size=img_size, num_classes=num_classes, weights=weights, pretrained=pretrained
        )
    else:
        image = _from_module(
            source,
            own,
            rest,
            img_size=img_size,
            weights=weights,
            pretrained=pretrained,
            num_classes=num_classes,
        )
    before = copied(image.network) if prove or image.origin is None else None
    constants = constants_of(image.network) if image.origin is None else {}
    taken = {key: value.detach() for key, value in image.network.state_dict().items()}
    trial = None if before is None else Trial(before, image.name, proves=prove)
    model = _inflated(image, own, num_frames=num_frames, new_head=bool(num_classes), trial=trial).eval()
    report = InflationReport(
        image.name,
        f"{image.name} with temporal={model.options.temporal}, {num_frames} frames",
        [],
        weights=image.weights,
        notes=list(model.anatomy.notes),
    )
    if trial is not None and trial.proves:
        prove_still(model, report, trial)
        if image.origin is None and report.as_promised:
            prove_training(trial.network, model, report)
    new_head = num_classes is not None and num_classes != model.num_classes
    if new_head:
        assert num_classes is not None
        model.reset_classifier(num_classes)
        report.compared += " (with the 2D network's classifier)"
    _, report.rules = model.transfer(taken, new_head=new_head)
    _check_complete(report.rules, taken, model)
    if image.fresh_head:
        head = model.head_keys()
        report.rules = [_without_origin(rule) if rule.target in head else rule for rule in report.rules]
    report.rules += [
        TensorRule(key, "", "dropped", "dropped: of an auxiliary classifier", "", ()) for key in image.dropped
    ]
    report.rules += [TensorRule(key, "", "dropped", "dropped: of a projection head", "", ()) for key in image.left_out]
    report.notes += _left_out_in_words(image)
    _describe(model, image, hyperparameters)
    if constants:
        model.recipe["constants"] = constants
    model.inflation = replace(report, filters=[])
    return Inflated(model, report)


def _from_library(
    origin: ImageOrigin,
    *,
    img_size: int | tuple[int, int] | None,
    num_classes: int | None,
    weights: Weights | None,
    pretrained: bool,
) -> _Image:
    """Builds the network of a library."""
    image_size = _height_width(origin.settings()["crop"] if img_size is None else img_size)
    if weights is not None and pretrained:
        raise ConfigError("give either weights or pretrained, not both")
    own_classes = origin.num_classes()
    classes = own_classes or num_classes
    if not classes:
        raise ConfigError(
            f"{origin}: was trained without a classifier; say for how many classes it gets one (num_classes)"
        )
    network = _built(origin, num_classes=classes, img_size=image_size, pretrained=pretrained)
    image = _Image(str(origin), network, image_size, origin, fresh_head=not own_classes)
    if pretrained:
        image.weights = "published"
    if weights is not None:
        _load_weights(image, weights, num_classes=num_classes)
    return image


def _from_module(
    source: nn.Module,
    own: Mapping[str, Any],
    rest: Mapping[str, Any],
    *,
    img_size: int | tuple[int, int] | None,
    weights: Weights | None,
    pretrained: bool,
    num_classes: int | None,
) -> _Image:
    """Copies a network of the user's."""
    name = type(source).__name__
    if not isinstance(source, nn.Module):
        raise ConfigError(f"{name}: is no 2D network; give a torch module, timm:<name> or torchvision:<name>")
    if rest:
        unknown = next(iter(rest))
        raise TypeError(f"inflate() has no argument {unknown!r}{nearest(unknown, _OPTIONS)}")
    if pretrained:
        raise ConfigError("pretrained is for named sources; load the weights into the module, or give a file")
    size, in_chans = _height_width(224 if img_size is None else img_size), own.get("in_chans", 3)
    image = _Image(name, own_copy(source, size, in_chans=in_chans), size, in_chans=in_chans, weights="as given")
    image.name, image.logits = type(image.network).__name__, own.get("logits")
    if weights is not None:
        _load_weights(image, weights, num_classes=num_classes)
    return image


def _split(hyperparameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments that are of `InflatedModel` and `InflationOptions`, and all others."""
    own = {key: value for key, value in hyperparameters.items() if key in _OPTIONS}
    return own, {key: value for key, value in hyperparameters.items() if key not in own}


def _inflated(
    image: _Image, own: Mapping[str, Any], *, num_frames: int, new_head: bool = False, trial: Trial | None = None
) -> InflatedModel:
    """Inflates a network in place, with the first result of `_split`."""
    options = dict(own)
    channels = {"in_chans": options.pop("in_chans")} if "in_chans" in options else {}
    model = InflatedModel(
        image.network,
        InflationOptions(**options),
        num_frames=num_frames,
        img_size=image.img_size,
        source_name=image.name,
        new_head=new_head,
        trial=trial,
        **channels,
    )
    model.origin = image.origin
    return model


def _describe(model: InflatedModel, image: _Image, hyperparameters: Mapping[str, Any]) -> None:
    """Sets the protocol at the model's frames and size, and the arguments that make it again."""
    origin, frames, crop = image.origin, model.num_frames, min(image.img_size)
    published = _published(origin, model.options.temporal, causal=model.options.causal)
    short_side = max(crop, round(crop * published.short_side / published.crop))
    model.default_protocol = published.replace(
        frames=frames, stride=max(1, SPAN // frames), crop=crop, short_side=short_side
    )
    model.recipe = {
        "name": image.name if origin is None else f"{origin.library}/{origin.name.split('.')[0]}",  # no tag: of weights
        "num_classes": model.num_classes,
        "num_frames": frames,
        "img_size": list(image.img_size),
        "hyperparameters": {"temporal": model.options.temporal, **hyperparameters},
    }
    if origin is None:
        model.recipe["module"] = image.name  # so that the file is told from one of a model of this name


def _height_width(img_size: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ConfigError(f"img_size {img_size!r}: must be a positive whole number of pixels, or (height, width)")
    return sides[0], sides[1]


def _built(origin: ImageOrigin, *, num_classes: int, img_size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """Builds a named network; an option that neither it nor `InflationOptions` has is named, with the nearest."""
    try:
        return origin.build(num_classes=num_classes, img_size=img_size, pretrained=pretrained)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in origin.options:
            raise
        raise TypeError(f"{origin} has no option {unknown[1]!r}{nearest(unknown[1], _OPTIONS)}") from error


def _load_weights(image: _Image, weights: Weights, *, num_classes: int | None) -> None:
    """Gives a network the weights of a file, and a named one as many classes."""
    name, origin = _name_of(weights), image.origin
    anatomy = examine(
        image.network,
        image.img_size,
        in_chans=image.in_chans,
        name=image.name,
        as_features=True,
        logits_at=image.logits,
    )

    def fit(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        return (dict(state), []) if origin is None else origin.fit_state(image.network, state, name=name)

    try:
        picked = pick_state(
            weights if isinstance(weights, Mapping) else read_checkpoint(weights),
            image.network.state_dict(),
            heads=anatomy.logits,
            children=[child for child, _ in image.network.named_children()],
            fit=fit,
        )
    except CheckpointError as error:
        raise error if str(error).startswith(name) else CheckpointError(f"{name}: {error}") from error
    fitted, image.dropped, image.left_out = picked.fitted, picked.dropped, picked.left_out
    image.beside = picked.beside
    image.weights = f"{name} ({picked.where})" if picked.where else name
    classes = head_classes(fitted, anatomy.logits) if anatomy.logits else anatomy.num_classes
    image.fresh_head = classes is None
    if classes is None and num_classes is None:
        raise CheckpointError(
            f"{name}: has no classifier of {origin or image.name} (looked for {', '.join(anatomy.logits)}); say for "
            "how many classes it gets a new one (num_classes)"
        )
    wanted = classes or num_classes
    if origin is not None and wanted is not None and wanted != anatomy.num_classes:
        image.network = origin.build(num_classes=wanted, img_size=image.img_size)
        fitted, image.dropped = origin.fit_state(image.network, picked.raw, name=name)
        fitted = picked.without_head(fitted)
    if image.fresh_head:
        own = image.network.state_dict()
        fitted |= {key: own[key] for key in own if any(key.startswith(f"{layer}.") for layer in anatomy.logits)}
    load_strictly(image.network, fitted, name=name, owner=image.name)


def _left_out_in_words(image: _Image) -> list[str]:
    """Returns what of a file was not taken, for the report."""
    notes = []
    if image.left_out:
        names = sorted({key.rpartition(".")[0] or key for key in image.left_out})
        notes.append(f"{image.weights}: a projection head is left out ({', '.join(names[:4])})")
    if image.beside:
        notes.append(f"{image.weights}: what stands beside it is left out ({', '.join(image.beside[:6])})")
    return notes


def _without_origin(rule: TensorRule) -> TensorRule:
    return TensorRule("", rule.target, "initialised", "initialised: a new classifier", "", rule.target_shape)


def _check_complete(rules: Sequence[TensorRule], source: Mapping[str, Tensor], model: InflatedModel) -> None:
    """Fails if a tensor of either side has no rule, or more than one."""
    sources = [name for rule in rules if rule.source for name in rule.source.split(" + ")]
    targets = [rule.target for rule in rules if rule.target]
    if sorted(sources) != sorted(source) or sorted(targets) != sorted(model.state_dict()):
        wrong = sorted(set(sources) ^ set(source)) + sorted(set(targets) ^ set(model.state_dict()))
        raise AssertionError(f"tensors without a rule: {wrong}")


def _published(origin: ImageOrigin | None, temporal: Temporal, *, causal: bool = False) -> Protocol:
    """Returns the protocol: frames that follow each other where layers count on their distance, as in a stream."""
    settings = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if origin is None else origin.settings()
    sampling: Any = "dense" if causal or temporal in ("conv", "attention") else "segment"
    return Protocol(frames=8, stride=SPAN // 8, sampling=sampling, **settings)


def _name_of(weights: Weights) -> str:
    return "mapping" if isinstance(weights, Mapping) else str(weights)


# --- in the registry --------------------------------------------------------------------------------------------------


def library_models(library: str) -> tuple[str, ...]:
    """Returns the names of the image classifiers of a library, which `stvid.create_model` inflates."""
    return image_models(library)


def library_model_info(library: str, name: str) -> ModelInfo:
    """Returns the registry entry of one of `library_models`."""
    origin = ImageOrigin(library, name)
    return ModelInfo(
        str(origin).replace(":", "/"), functools.partial(_build, origin), _published(origin, "conv"), None, None, ""
    )


def _build(
    origin: ImageOrigin, *, num_classes: int, num_frames: int, img_size: tuple[int, int], **hyperparameters: Any
) -> InflatedModel:
    """Builds a model with fresh weights; `hyperparameters` are those of `inflate`."""
    own, rest = _split(hyperparameters)
    for key in rest:
        if key.startswith(("pretrained", "weights", "checkpoint")):
            raise TypeError(
                f"{origin} takes no {key!r} here: stvid.inflate does, or give a checkpoint of the 2D network"
            )
    origin = ImageOrigin(origin.library, origin.name, options=rest)
    network = _built(origin, num_classes=num_classes, img_size=img_size)
    return _inflated(_Image(str(origin), network, img_size, origin), own, num_frames=num_frames)
