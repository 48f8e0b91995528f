"""The published accuracy of weights beside the one that was measured, if both are of the same protocol and classes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from stvid.classes import class_list
from stvid.evaluation.record import EvaluationResult
from stvid.models.weights import Weights
from stvid.protocol import Protocol

__all__ = ["compare_with_published"]

_FIELDS = (
    *("frames", "frames_per_segment", "stride", "fps", "sampling"),
    *("short_side", "crop", "mean", "std", "channels"),
)
_ROUNDING = 2e-3  # sources print 0.485 where others compute 0.4851


def compare_with_published(weights: Weights, result: EvaluationResult) -> dict[str, Any] | None:
    """Returns the published numbers of weights, and how the measured ones differ.

    Args:
        weights: What is known of the weights that were measured.
        result: The evaluation.

    Returns:
        Plain values, as ``result.json`` holds them: ``weights``, ``source``, ``views``, ``top1`` and ``top5`` in
        percent as they were published; ``differs``, what was measured in another way (empty if the numbers can be
        compared); ``measured`` and ``difference``, by the names ``top1`` and ``top5`` in percent, if they can. None if
        no number was published.
    """
    if weights.top1 is None:
        return None
    views = weights.views
    published = {name: value for name, value in (("top1", weights.top1), ("top5", weights.top5)) if value is not None}
    differs = _differences(weights, result)
    measured = {}
    if not differs:
        found = {name: result.metrics.get(f"{name}@{views}") for name in published}
        measured = {name: 100 * value for name, value in found.items() if value is not None}
    return {
        "weights": weights.name,
        "source": weights.source,
        "views": views,
        **published,
        "differs": differs,
        "measured": measured,
        "difference": {name: value - published[name] for name, value in measured.items()},
    }


def _differences(weights: Weights, result: EvaluationResult) -> list[str]:
    """Names what was measured in another way than what was published."""
    wanted, used = weights.protocol, result.protocol
    fields = [name for name in _FIELDS if (name, wanted.sampling) != ("stride", "segment")]
    found = [
        f"{name} {_shown(getattr(used, name))} instead of {_shown(getattr(wanted, name))}"
        for name in fields
        if not _same(name, used, wanted)
    ]
    if not weights.views:
        found.append("views: those of the published number are not known")
    elif weights.views not in (used.views, *result.also):
        found.append(f"views {used.views} instead of {weights.views}")
    if result.temporal != "normal":
        found.append(f"frames {result.temporal}")
    if result.task != "multiclass":
        found.append(f"task {result.task}")
    return found + _class_differences(weights.classes, result)


def _same(name: str, used: Protocol, wanted: Protocol) -> bool:
    one, other = getattr(used, name), getattr(wanted, name)
    if name in ("mean", "std"):
        return all(math.isclose(a, b, rel_tol=0, abs_tol=_ROUNDING) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{number:g}" for number in value) + ")"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _plain(name: str) -> str:
    """Returns the letters and digits of a name: copies of a data set write spaces and quotes in their own ways."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name).casefold())


def _class_differences(classes: str, result: EvaluationResult) -> list[str]:
    """Says in which way the classes of the videos are not those that the weights were made for."""
    if not classes:
        return ["classes: the order of those of the weights is not known"]
    wanted = {_plain(name) for name in class_list(classes)}
    shown: Sequence[str] = [record["class"] for record in result.per_class if record["support"]]
    found = {_plain(name) for name in shown}
    strangers = len(found - wanted)
    if strangers:
        return [f"classes: {strangers} of {len(found)} are none of {classes}"]
    if len(found) < len(wanted):
        return [f"classes: the videos show {len(found)} of the {len(wanted)} of {classes}"]
    return []
