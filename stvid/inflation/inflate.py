"""`inflate`: a video model from a 2D network of timm, of torchvision, or of the user's."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stvid.checkpoints import read_checkpoint, unwrap
from stvid.errors import CheckpointError, ConfigError, nearest
from stvid.inflation.anatomy import examine
from stvid.inflation.model import InflatedModel, Init, Temporal
from stvid.inflation.proof import check_foldable, filter_pairs, still_difference
from stvid.inflation.report import EXACT, FilterPair, InflationReport, LayerDifference, TensorRule
from stvid.inflation.sources import ImageOrigin, head_classes, image_models, load_strictly, parse_source
from stvid.models.base import VideoModel
from stvid.models.registry import ModelInfo
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["Inflated", "inflate", "inflate_with_report", "library_model_info", "library_models"]

SPAN = 64  # source frames that a clip spans, as in I3D and SlowFast
Source = str | nn.Module
Weights = str | os.PathLike[str] | Mapping[str, Any]


@dataclass
class Inflated:
    """What `inflate_with_report` returns.

    Attributes:
        model: The video model, in evaluation mode.
        report: The rule of every tensor, and the proof.
    """

    model: InflatedModel
    report: InflationReport


def inflate(
    source: Source,
    *,
    num_frames: int,
    num_classes: int | None = None,
    temporal: Temporal = "conv",
    kernel_size: int | Mapping[str, int] = 3,
    init: Init = "center",
    img_size: int | tuple[int, int] | None = None,
    weights: Weights | None = None,
    pretrained: bool = False,
    **hyperparameters: Any,
) -> VideoModel:
    """Makes a video model of an image model; for a still video it computes what the image model computes.

    Args:
        source: ``timm:<name>``, ``torchvision:<name>``, or a network that takes images (N, C, H, W) and returns logits
            (N, classes); the network itself is not changed.
        num_frames: Frames of a clip.
        num_classes: Number of logits; None keeps the classifier of the 2D network.
        temporal: How frames see each other: ``none``, ``shift``, ``conv``, ``attention`` or ``head``; see
            `stvid.inflation.model`.
        kernel_size: Frames that a kernel sees (``conv``), or a mapping from patterns of names to it.
        init: Kernels in time (``conv``): ``center`` has zeros in all frames but the central one, ``average`` an equal
            share in each.
        img_size: Side in pixels, or (height, width); None takes the 2D network's own, for a module 224.
        weights: A file or mapping with weights of the 2D network.
        pretrained: Whether to take the library's published weights, from the network or its cache.
        **hyperparameters: Further arguments of `InflatedModel` (``layers``, ``padding``, ...), and for a named source
            those of the library's function (``drop_path_rate``, ...).

    Returns:
        The model, in evaluation mode.

    Raises:
        UnknownNameError: If the source does not exist; the message lists the nearest names.
        ConfigError: If the source is no image classifier, or the options do not fit it.
        CheckpointError: If the weights cannot be read or do not fit.
        TypeError: If there is no such hyperparameter; the message names it.
    """
    return inflate_with_report(
        source,
        num_frames=num_frames,
        num_classes=num_classes,
        temporal=temporal,
        img_size=img_size,
        weights=weights,
        pretrained=pretrained,
        prove=False,
        kernel_size=kernel_size,
        init=init,
        **hyperparameters,
    ).model


def inflate_with_report(
    source: Source,
    *,
    num_frames: int,
    num_classes: int | None = None,
    temporal: Temporal = "conv",
    img_size: int | tuple[int, int] | None = None,
    weights: Weights | None = None,
    pretrained: bool = False,
    prove: bool = True,
    **hyperparameters: Any,
) -> Inflated:
    """Does what `inflate` does, and says what became of every tensor.

    The arguments are those of `inflate`, and `prove`: whether to compare both networks on a still video, in float64.
    """
    own = {key: value for key, value in hyperparameters.items() if key in _model_options()}
    rest = {key: value for key, value in hyperparameters.items() if key not in own}
    origin = None
    if isinstance(source, str):
        origin = ImageOrigin(*parse_source(source), options=rest)
        name = str(origin)
        size = origin.settings()["crop"] if img_size is None else img_size
    elif isinstance(source, nn.Module):
        name = type(source).__name__
        size = 224 if img_size is None else img_size
        if rest:
            unknown = next(iter(rest))
            raise TypeError(f"inflate() has no argument {unknown!r}{nearest(unknown, _model_options())}")
        if pretrained:
            raise ConfigError("pretrained is for named sources; load the weights into the module, or give a file")
    else:
        raise ConfigError(
            f"{type(source).__name__}: is no 2D network; give a torch module, timm:<name> or torchvision:<name>"
        )
    height_width = _height_width(size)
    if num_classes is not None and (
        isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0
    ):
        raise ConfigError(f"num_classes {num_classes!r}: must be a whole number; 0 leaves the classifier out")

    state = None
    if weights is not None:
        if pretrained:
            raise ConfigError("give either weights or pretrained, not both")
        state = unwrap(weights if isinstance(weights, Mapping) else read_checkpoint(weights))
        if not state:
            raise CheckpointError(f"{_name_of(weights)}: holds no tensors")
    dropped: list[str] = []
    fresh_head = False
    if origin is not None:
        own_classes = origin.num_classes()
        classes = own_classes or num_classes
        if not classes:
            raise ConfigError(
                f"{name}: was trained without a classifier; say for how many classes it gets one (num_classes)"
            )
        network = _built(origin, num_classes=classes, img_size=height_width, pretrained=pretrained)
        fresh_head = not own_classes
        if state is not None:
            network, dropped, fresh_head = _with_weights(
                origin, network, height_width, state, name=_name_of(weights), num_classes=num_classes
            )
    else:
        assert isinstance(source, nn.Module)
        network = copy.deepcopy(source)
        if state is not None:
            load_strictly(network, state, name=_name_of(weights), owner=name)
    before = copy.deepcopy(network) if prove or origin is None else None
    taken = {key: value.detach() for key, value in network.state_dict().items()}
    model = InflatedModel(
        network, num_frames=num_frames, img_size=height_width, temporal=temporal, source_name=name, **own
    ).eval()
    model.origin = origin
    difference: float | None = None
    aligned: float | None = None
    reasons = _reasons(model, own)
    compared = "logits"
    layers: list[LayerDifference] = []
    filters: list[FilterPair] = []
    if before is not None:
        check_foldable(before, height_width, in_chans=model.in_chans, name=name)
    if before is not None and prove:
        difference, compared, layers = still_difference(before, model)
        if not reasons and difference >= EXACT:
            aligned, *_ = still_difference(before, model, unrounded=True)
            if aligned < EXACT:
                reasons.append("the network magnifies the rounding of its averaged kernels")
            else:
                aligned = None
        filters = filter_pairs(before, model)
    new_head = num_classes is not None and num_classes != model.num_classes
    if new_head:
        assert num_classes is not None
        model.reset_classifier(num_classes)
    _, rules = model.transfer(taken, new_head=new_head)
    _check_complete(rules, taken, model)
    if fresh_head:
        rules = [_without_origin(rule) if rule.target in model.head_keys() else rule for rule in rules]
    rules += [TensorRule(key, "", "dropped", "dropped: of an auxiliary classifier", "", ()) for key in dropped]
    model.default_protocol = _protocol(origin, temporal, num_frames, height_width)
    model.recipe = {
        "name": name if origin is None else f"{origin.library}/{origin.name.split('.')[0]}",  # a tag names weights only
        "num_classes": model.num_classes,
        "num_frames": num_frames,
        "img_size": list(height_width),
        "hyperparameters": {"temporal": temporal, **hyperparameters},
    }
    report = InflationReport(
        name,
        f"{name} with temporal={temporal}, {num_frames} frames",
        rules,
        difference=difference,
        compared=f"{compared} (with the 2D network's classifier)" if new_head else compared,
        reasons=reasons,
        aligned=aligned,
        alignment="kernels in float64" if aligned is not None else "",
        layers=layers,
        filters=filters,
    )
    return Inflated(model, report)


def _height_width(img_size: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ConfigError(f"img_size {img_size!r}: must be a positive whole number of pixels, or (height, width)")
    return sides[0], sides[1]


def _built(origin: ImageOrigin, *, num_classes: int, img_size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """Builds a named network; an option that neither it nor `InflatedModel` has is named, with the nearest."""
    try:
        return origin.build(num_classes=num_classes, img_size=img_size, pretrained=pretrained)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in origin.options:
            raise
        raise TypeError(f"{origin} has no option {unknown[1]!r}{nearest(unknown[1], _model_options())}") from error


def _with_weights(
    origin: ImageOrigin,
    network: nn.Module,
    img_size: tuple[int, int],
    state: Mapping[str, Tensor],
    *,
    name: str,
    num_classes: int | None,
) -> tuple[nn.Module, list[str], bool]:
    """Returns the network with a file's weights and as many classes.

    Returns:
        The network, the keys that were dropped, and whether the file has no classifier, so that it is a new one.
    """
    fitted, dropped = origin.fit_state(network, state, name=name)
    anatomy = examine(network, img_size, name=str(origin))
    classes = head_classes(fitted, anatomy.logits)
    fresh = classes is None
    if classes is None and num_classes is None:
        raise CheckpointError(
            f"{name}: has no classifier of {origin} (looked for {', '.join(anatomy.logits)}); say for how many classes "
            "it gets a new one (num_classes)"
        )
    wanted = classes or num_classes
    if wanted != anatomy.num_classes:
        assert wanted is not None
        network = origin.build(num_classes=wanted, img_size=img_size)
        fitted, dropped = origin.fit_state(network, state, name=name)
    if fresh:
        own = network.state_dict()
        head = {f"{layer}.{part}" for layer in anatomy.logits for part in ("weight", "bias")}
        fitted |= {key: own[key] for key in head & own.keys()}
    load_strictly(network, fitted, name=name, owner=str(origin))
    return network, dropped, fresh


def _without_origin(rule: TensorRule) -> TensorRule:
    return TensorRule("", rule.target, "initialised", "initialised: a new classifier", "", rule.target_shape)


def _check_complete(rules: Sequence[TensorRule], source: Mapping[str, Tensor], model: InflatedModel) -> None:
    """Fails if a tensor of either side has no rule, or more than one."""
    sources = [name for rule in rules if rule.source for name in rule.source.split(" + ")]
    targets = [rule.target for rule in rules if rule.target]
    if sorted(sources) != sorted(source) or sorted(targets) != sorted(model.state_dict()):
        wrong = sorted(set(sources) ^ set(source)) + sorted(set(targets) ^ set(model.state_dict()))
        raise AssertionError(f"tensors without a rule: {wrong}")


def _reasons(model: InflatedModel, options: Mapping[str, Any]) -> list[str]:
    """Returns why the logits on a still video differ from those of the 2D network."""
    if options.get("padding") != "zeros" or (options.get("init") != "average" and not model.shifts):
        return []
    return ["zeros beyond the ends of the clip reach its first and last frames (padding=replicate avoids it)"]


def _protocol(origin: ImageOrigin | None, temporal: Temporal, num_frames: int, img_size: tuple[int, int]) -> Protocol:
    """Returns the protocol at a model's frames and size; sparse frames where they are only averaged or shifted."""
    protocol = _published(origin, temporal).replace(frames=num_frames)
    crop = min(img_size)
    short_side = max(crop, round(crop * protocol.short_side / protocol.crop))
    return protocol.replace(stride=max(1, SPAN // num_frames), crop=crop, short_side=short_side)


def _published(origin: ImageOrigin | None, temporal: Temporal) -> Protocol:
    settings = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if origin is None else origin.settings()
    sampling: Any = "dense" if temporal in ("conv", "attention") else "segment"
    return Protocol(frames=8, stride=SPAN // 8, sampling=sampling, **settings)


@functools.cache
def _model_options() -> tuple[str, ...]:
    """Returns the options of `InflatedModel`, which are those of a named source's function no more."""
    known = inspect.signature(InflatedModel.__init__).parameters
    return tuple(name for name in known if name not in ("self", "network", "num_frames", "img_size", "source_name"))


def _name_of(weights: Weights | None) -> str:
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
    """Builds a model with fresh weights; `hyperparameters` are of `InflatedModel` or of the library's function."""
    own = {key: value for key, value in hyperparameters.items() if key in _model_options()}
    rest = {key: value for key, value in hyperparameters.items() if key not in own}
    for key in rest:
        if key.startswith(("pretrained", "weights", "checkpoint")):
            raise TypeError(
                f"{origin} takes no {key!r} here: stvid.inflate does, or give a checkpoint of the 2D network"
            )
    origin = ImageOrigin(origin.library, origin.name, options=rest)
    network = _built(origin, num_classes=num_classes, img_size=img_size)
    model = InflatedModel(network, num_frames=num_frames, img_size=img_size, source_name=str(origin), **own)
    model.origin = origin
    return model
