"""The 2D parents of the hand-written families: `inflate_parent` starts a video model from its image model.

What becomes of each tensor is in parent_rules.py, what is known of the image networks in image_networks.py, and the
proof that both compute the same on a still video in parent_proof.py.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from stvid.checkpoints import read_checkpoint, unwrap
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.inflation.image_networks import KINDS, ImageNetwork, Kind, recognise_network
from stvid.inflation.options import Init
from stvid.inflation.parent_proof import compare
from stvid.inflation.parent_rules import PARENTS, ParentRule, fill
from stvid.inflation.report import InflationReport
from stvid.inflation.sources import HUB, LIBRARIES, find_origin
from stvid.inflation.transfer import Transfer
from stvid.models.base import VideoModel
from stvid.models.registry import build_model, family_of, model_info, native_models

__all__ = ["InflatedParent", "inflate_parent", "models_with_parent"]

Weights = str | os.PathLike[str] | Mapping[str, Any]
Source = Weights | nn.Module


@dataclass
class InflatedParent:
    """The result of `inflate_parent`.

    Attributes:
        model: The video model, in evaluation mode. Its protocol normalises frames as the 2D parent's images.
        report: The rule of every tensor, and the proof.
    """

    model: VideoModel
    report: InflationReport


def models_with_parent(kind: Kind | None = None) -> list[str]:
    """Returns the names of the models that have a 2D parent, of one kind or of any; see `PARENTS`."""
    return [name for name in native_models() if (rule := _rule_of(name)) is not None and kind in (None, rule.kind)]


def inflate_parent(
    source: Source,
    to: str,
    *,
    weights: Weights | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    init: Init | None = None,
    prove: bool = True,
    **arguments: Any,
) -> InflatedParent:
    """Builds a hand-written video model from the weights of its 2D parent.

    Args:
        source: A file of weights or a mapping (the layouts of `stvid.inflation.image_networks`, with or without
            wrappers), ``timm:<name>``, ``torchvision:<name>``, ``hf-hub:<organisation>/<name>``, or the 2D network
            itself.
        to: The video model, one of `models_with_parent`.
        weights: Weights for a named source.
        pretrained: Whether a named source gets its published weights, from the network or the library's cache.
        num_classes: Number of logits; None takes the parent's, and with that its classifier.
        init: Kernels in time: ``center``, zeros in all frames but the central one; ``average``, an equal share in each.
            None takes ``average`` for Video Swin, as its authors do, and else ``center``, which zero padding at the
            ends of a clip does not disturb. S3D's convolutions in time alone start as the identity either way.
        prove: Whether to compare both networks on a still video.
        **arguments: Further arguments of `stvid.create_model` for the video model: ``num_frames``, ``img_size``,
            ``depth``, ...

    Returns:
        The model and the report.

    Raises:
        UnknownNameError: If there is no such model or source; the message lists the nearest names.
        ConfigError: If the model has no 2D parent, or one of another kind, or cannot be built with these arguments.
        CheckpointError: If the weights cannot be read or do not fit; the message lists the models that they fit.
    """
    rule = _rule_of(to)
    if rule is None:
        raise ConfigError(f"{to}: has no known 2D parent; those that have one: {', '.join(models_with_parent())}")
    if init is not None and init not in get_args(Init):
        raise ConfigError(f"init {init!r}: choose one of {', '.join(get_args(Init))}")
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 0):
        raise ConfigError(f"num_classes {num_classes!r}: must be a whole number; 0 leaves the classifier out")
    network, name = _read_source(source, weights=weights, pretrained=pretrained)
    if network.kind != rule.kind:
        raise ConfigError(
            f"{name}: is a {KINDS[network.kind]}, {to} descends from a {KINDS[rule.kind]}; models for it: "
            f"{', '.join(models_with_parent(network.kind))}"
        )
    classes = network.num_classes or 400 if num_classes is None else num_classes
    with _as_config_error(to):
        model = build_model(
            model_info(to),
            num_classes=classes,
            num_frames=arguments.pop("num_frames", None),
            img_size=arguments.pop("img_size", None),
            hyperparameters=arguments,
        )
    model.eval()
    transfer = Transfer(network, model, init=init or rule.init)
    try:
        fill(transfer, rule)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: a {network.describe()} does not become {to}: {error}{_fitting(network)}"
        ) from None
    model.default_protocol = model.default_protocol.replace(mean=network.mean, std=network.std)
    report = InflationReport(name, to, transfer.rows)
    if prove:
        with _as_config_error(to):
            compare(transfer, rule, report)
    return InflatedParent(model, report)


@contextlib.contextmanager
def _as_config_error(name: str) -> Iterator[None]:
    """Turns the ValueError of a model that cannot be built, or cannot take its clip, into one for the user."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, StvidError):
            raise
        raise ConfigError(f"{name}: {error}") from error


def _fitting(network: ImageNetwork) -> str:
    """Returns a hint with the models that take a network as it is, found by trying all on the meta device."""
    shapes = copy.copy(network)
    shapes.state, shapes.module = {key: value.to("meta") for key, value in network.state.items()}, None
    fitting = []
    for candidate in models_with_parent(network.kind):
        rule = _rule_of(candidate)
        assert rule is not None
        try:
            fill(Transfer(shapes, _weightless(candidate), init="center"), rule)
        except CheckpointError:
            continue
        fitting.append(candidate)
    return f"; it fits {', '.join(fitting)}" if fitting else ""


@functools.cache
def _weightless(name: str) -> VideoModel:
    """Builds a model of shapes alone, as its name says it."""
    info = model_info(name)
    size = (info.protocol.crop, info.protocol.crop)
    with torch.device("meta"):
        return info.build(num_classes=400, num_frames=info.protocol.frames, img_size=size)


def _rule_of(name: str) -> ParentRule | None:
    """Returns the rule of a model's family; None if the model has no 2D parent."""
    family, _ = family_of(name)
    if family.parent is None or (family.parent_of and name not in family.parent_of):
        return None
    return next(rule for rule in PARENTS if rule.family.__name__ == family.model)


def _read_source(source: Source, *, weights: Weights | None, pretrained: bool) -> tuple[ImageNetwork, str]:
    """Returns the 2D network and what to call it in messages."""
    if not isinstance(source, str | os.PathLike) and (weights is not None or pretrained):
        raise ConfigError(
            f"{type(source).__name__}: has its weights; weights and pretrained are for timm:<name> and such"
        )
    if isinstance(source, Mapping):
        return recognise_network(unwrap(source), name="mapping"), "mapping"
    if isinstance(source, nn.Module):
        name = type(source).__name__
        return recognise_network(source.state_dict(), module=source, name=name), name
    name = str(source)
    if not name.startswith((HUB, *(f"{library}:" for library in LIBRARIES))):
        if weights is not None or pretrained:
            raise ConfigError(
                f"{name}: is a file of weights itself; weights and pretrained are for timm:<name> and such"
            )
        return recognise_network(unwrap(read_checkpoint(name)), name=name), name
    origin, weights, pretrained = find_origin(name, {}, weights=weights, pretrained=pretrained)
    side = origin.settings()["crop"]
    if pretrained and weights is not None:
        raise ConfigError("give either weights or pretrained, not both")
    module = origin.build(num_classes=0, img_size=(side, side), pretrained=pretrained)
    if weights is None:
        return recognise_network(module.state_dict(), module=module, name=name), name
    content, name = (weights, "mapping") if isinstance(weights, Mapping) else (read_checkpoint(weights), str(weights))
    network = recognise_network(unwrap(content), name=name)
    network.adopt_settings(module)
    return network, name
