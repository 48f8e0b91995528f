"""The geometry of plots: where axes, marks and lines stand, in pixels. Templates draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stvid.evaluation.metrics import Calibration

__all__ = ["Axes", "Mark", "Plot", "Tick", "reliability", "round_ticks", "scatter"]


@dataclass(frozen=True)
class Tick:
    """A grid line: where it crosses the axis, in pixels, and the text beside it."""

    place: float
    text: str


@dataclass(frozen=True)
class Axes:
    """The rectangle that data is drawn in, in pixels, with its grid.

    Attributes:
        left: Left edge.
        top: Upper edge.
        width: Width of the rectangle.
        height: Height of the rectangle.
        x_ticks: Vertical grid lines.
        y_ticks: Horizontal grid lines.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis.
    """

    left: float
    top: float
    width: float
    height: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_name: str = ""
    y_name: str = ""

    @property
    def right(self) -> float:
        """Right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.top + self.height


def round_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Returns round numbers in a range, at most `count` + 1; a single number if the range is empty."""
    if high <= low:
        return [round(low, 3)]
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * number, 9) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Plot:
    """A picture of `width` by `height` pixels: the axes, and what the template draws in them."""

    width: float
    height: float
    axes: Axes
    marks: tuple[Any, ...]


# --- accuracy against cost --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A point with its name: the place of the point, and the height of the text above or below it."""

    x: float
    y: float
    text_y: float
    name: str


def scatter(points: Sequence[tuple[float, float, str]], *, x_name: str, y_name: str) -> Plot:
    """Lays out fractions against costs, on a logarithmic axis of costs.

    Args:
        points: At least one (cost, fraction, name).
        x_name: Name of the costs.
        y_name: Name of the fractions.
    """
    width, height, left, top = 400, 260, 52, 26
    inner_width, inner_height = width - left - 24, height - top - 38
    logs = [math.log10(cost) for cost, _, _ in points]
    low_x, high_x = min(logs) - 0.08, max(logs) + 0.08
    values = [value for _, value, _ in points]
    margin = max(0.25 * (max(values) - min(values)), 0.005)
    low_y, high_y = max(min(values) - margin, 0.0), min(max(values) + margin, 1.0)

    def x(cost: float) -> float:
        return left + inner_width * (math.log10(cost) - low_x) / (high_x - low_x)

    def y(value: float) -> float:
        return top + inner_height * (high_y - value) / (high_y - low_y)

    x_ticks: list[Tick] = []
    for cost in sorted({cost for cost, _, _ in points}):
        if not x_ticks or x(cost) - x_ticks[-1].place > 44:  # the texts must not run into each other
            x_ticks.append(Tick(x(cost), f"{cost:.4g}"))
    y_ticks = tuple(Tick(y(value), f"{100 * value:.4g}%") for value in round_ticks(low_y, high_y))
    axes = Axes(left, top, inner_width, inner_height, tuple(x_ticks), y_ticks, x_name, y_name)
    marks: list[Mark] = []
    for cost, value, name in sorted(points):
        at_x, at_y = x(cost), y(value)
        text_y = at_y - 7
        while any(abs(at_x - other.x) < 30 and abs(text_y - other.text_y) < 12 for other in marks):
            text_y += 12 if text_y >= at_y else 2 * (at_y - text_y) + 6
        marks.append(Mark(at_x, at_y, text_y, name))
    return Plot(width, height, axes, tuple(marks))


# --- confidence and accuracy ------------------------------------------------------------------------------------------


def reliability(calibration: Calibration) -> Plot:
    """Lays out the bins of a calibration: a bar as high as the accuracy, paler if it holds fewer videos.

    A mark of the plot is a record of the calibration with the place of its bar and of the dot of its mean confidence.
    """
    size, left, top = 320, 44, 26
    inner = size - left - 12

    def x(value: float) -> float:
        return left + inner * value

    def y(value: float) -> float:
        return top + inner * (1 - value)

    shown = (0, 0.25, 0.5, 0.75, 1)
    x_ticks = tuple(Tick(x(value), f"{value:.4g}") for value in shown)
    y_ticks = tuple(Tick(y(value), f"{100 * value:.4g}%") for value in shown)
    most = max(record["count"] for record in calibration.bins)
    bars = tuple(
        {
            **record,
            "x": x(record["low"]) + 0.5,
            "y": y(record["accuracy"]),
            "width": x(record["high"]) - x(record["low"]) - 1,
            "height": y(0) - y(record["accuracy"]),
            "opacity": 0.35 + 0.65 * record["count"] / most,
            "dot_x": x(record["confidence"]),
        }
        for record in calibration.bins
    )
    axes = Axes(left, top, inner, inner, x_ticks, y_ticks, "confidence", "accuracy")
    return Plot(size, top + inner + 38, axes, bars)
