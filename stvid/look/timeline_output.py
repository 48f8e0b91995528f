"""The files of a timeline: a CSV that grows window by window, and at the end a JSON and a plot."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvid.evaluation.classes import name_classes
from stvid.evaluation.timeline import TimelineWindow
from stvid.files import claimed, csv_cell, draft_folder, write_atomically
from stvid.look.plots import Axes, Tick, round_ticks
from stvid.look.rendering import render

__all__ = ["ClassTrack", "TimelineFiles", "TrackLook", "colour_of", "dashes_of"]


@dataclass(frozen=True)
class TrackLook:
    """How the scores of a timeline are drawn.

    Attributes:
        width: Width of the picture in pixels.
        height: Height in pixels, without the legend.
        span: First and last second of the axis; None goes from the first point to the last.
        names: The classes that are drawn, in the order of their colours, of which those are left out that the model
            does not have; empty takes those with the highest peaks.
        marks: Seconds that are marked below the axis, each for a class of `names`.
        bands: Parts of the axis that are shaded: first and last second of each.
        legend: Whether the names stand below the plot.
    """

    width: int = 860
    height: int = 300
    span: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    marks: tuple[tuple[float, str], ...] = ()
    bands: tuple[tuple[float, float], ...] = ()
    legend: bool = True


class ClassTrack:
    """The scores of a timeline for a plot, in bounded memory: neighbours are averaged when there are too many.

    Args:
        class_names: Names of the classes; without names they are called "class 0", "class 1", ...
        limit: How many points to keep at most.
    """

    def __init__(self, class_names: Sequence[str], *, limit: int = 1024) -> None:
        self.class_names = tuple(class_names)
        self.limit = limit
        self.times: list[float] = []  # middle of each point
        self.scores: list[NDArray[np.float64]] = []
        self._group: list[TimelineWindow] = []
        self._per_point = 1

    def add(self, window: TimelineWindow) -> None:
        """Adds a window; a window without scores is left out."""
        if window.error is not None:
            return
        self._group.append(window)
        if len(self._group) < self._per_point:
            return
        self._close_group()
        if len(self.times) >= self.limit:
            self._per_point *= 2
            self.times = [float(np.mean(self.times[n : n + 2])) for n in range(0, len(self.times), 2)]
            self.scores = [np.mean(self.scores[n : n + 2], axis=0) for n in range(0, len(self.scores), 2)]

    def _close_group(self) -> None:
        self.times.append(float(np.mean([(item.start + item.end) / 2 for item in self._group])))
        self.scores.append(np.mean([item.scores for item in self._group], axis=0))
        self._group = []

    def svg(self, *, classes: int = 5, look: TrackLook | None = None) -> str:
        """Returns a line for each of the classes that were ever the most probable, as an SVG picture.

        Args:
            classes: How many lines to draw at most; the classes with the highest peaks are taken.
            look: How the picture is drawn; None draws one that stands alone, from the first point to the last.
        """
        look = look or TrackLook()
        if self._group:
            self._close_group()
            self._group = []
        left, right, top, bottom = 44, 12, 12, 34
        inner_width, inner_height = look.width - left - right, look.height - top - bottom
        begin, end = look.span or ((self.times[0], self.times[-1]) if self.times else (0.0, 0.0))
        span = max(end - begin, 1e-9)

        def x(seconds: float) -> float:
            return left + inner_width * ((seconds - begin) / span if end > begin else 0.5)

        def y(score: float) -> float:
            return top + inner_height * (1 - score)

        seconds = round_ticks(begin, end, count=max(2, look.width // 100)) if self.times else []
        axes = Axes(
            left,
            top,
            inner_width,
            inner_height,
            x_ticks=tuple(Tick(x(tick), f"{tick:g} s") for tick in seconds),
            y_ticks=tuple(Tick(y(level), f"{level:g}") for level in (0, 0.25, 0.5, 0.75, 1)) if self.times else (),
        )
        return render(
            "timeline.svg.j2",
            axes=axes,
            look=look,
            lines=self._lines(classes, look, x, y),
            bands=[(x(start), x(stop)) for start, stop in look.bands],
            marks=[(x(second), colour_of(name, look.names)) for second, name in look.marks],
        )

    def _lines(
        self, classes: int, look: TrackLook, x: Callable[[float], float], y: Callable[[float], float]
    ) -> list[dict[str, Any]]:
        """Returns the lines of the classes, in pixels."""
        if not self.times:
            return []
        scores = np.stack(self.scores)
        names = name_classes(self.class_names, scores.shape[1])
        if look.names:
            chosen = [names.index(name) for name in look.names if name in names]
        else:
            chosen = np.argsort(-scores.max(axis=0), kind="stable")[:classes].tolist()
        shown = look.names or tuple(names[k] for k in chosen)
        return [
            {
                "name": names[k],
                "most": scores[:, k].max(),
                "colour": colour_of(names[k], shown),
                "dashes": dashes_of(names[k], shown),
                "points": [(x(time), y(score)) for time, score in zip(self.times, scores[:, k], strict=True)],
            }
            for k in chosen
        ]


# Okabe and Ito's colours, which most colour-blind people can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("", "7 4", "2 3", "9 3 2 3")


def colour_of(name: str, names: Sequence[str]) -> str:
    """Returns the colour of a class in the plots that show the classes `names`."""
    return _COLOURS[names.index(name) % len(_COLOURS)]


def dashes_of(name: str, names: Sequence[str]) -> str:
    """Returns the dashes of the line of a class, as SVG writes them; nothing for a solid line."""
    return _DASHES[names.index(name) // len(_COLOURS) % len(_DASHES)]


class TimelineFiles:
    """Writes ``timeline.csv``, ``timeline.json`` and ``timeline.svg`` into a folder, whatever the number of windows.

    A line of the CSV is on disk as soon as `add` returns, so that nothing is lost if the process is killed; the other
    two are put in place when the context ends, also by an error or Ctrl-C, with the reason under ``stopped``.

    Args:
        folder: Folder of the files, which is made if it is missing.
        header: Entries of the JSON besides ``windows`` and ``stopped``: source, protocol, window, stride ...
        class_names: Names of the classes, for the plot.
        topk: How many classes a line of the CSV names.
        formulas: Whether names in the CSV stay as they are that a spreadsheet would take for formulas.

    Raises:
        OSError: If a file cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        header: dict[str, Any],
        *,
        class_names: Sequence[str],
        topk: int,
        formulas: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.track = ClassTrack(class_names)
        self._header = header
        self._topk = topk
        self._cell = (lambda cell: cell) if formulas else csv_cell
        self._held = contextlib.ExitStack()
        self._empty = True

    def __enter__(self) -> TimelineFiles:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(claimed(self.folder / "timeline.json"))
        try:
            self._begin()
        except BaseException:
            self._held.close()
            raise
        return self

    def _begin(self) -> None:
        self._draft = self._held.enter_context(draft_folder(self.folder / "timeline.json")) / "timeline.json"
        place = self.folder / "timeline.csv"
        self._csv = open(place, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115  # `_finish`
        self._writer = csv.writer(self._csv)
        ranks = [name for k in range(1, self._topk + 1) for name in (f"class_{k}", f"probability_{k}")]
        self._writer.writerow(["start", "end", *ranks, "error"])
        self._csv.flush()
        self._json = open(self._draft, "w", encoding="utf-8")  # noqa: SIM115  # closes both
        whole = json.dumps({**self._header, "windows": []}, indent=2, allow_nan=False)
        self._json.write(whole.removesuffix("]\n}"))

    def add(self, window: TimelineWindow) -> None:
        """Writes one window."""
        pairs = list(zip(window.classes, window.probabilities, strict=True))[: self._topk]
        cells = [cell for name, probability in pairs for cell in (name, f"{probability:.6g}")]
        cells += [""] * (2 * self._topk - len(cells))
        cells = [self._cell(cell) for cell in (*cells, window.error or "")]
        self._writer.writerow([f"{window.start:g}", f"{window.end:g}", *cells])
        self._csv.flush()
        self._json.write(("" if self._empty else ",") + "\n    " + json.dumps(window.to_dict(), allow_nan=False))
        self._empty = False
        self.track.add(window)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            self._finish(kind, error)

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        self._csv.close()
        reason = None if kind is None else (" ".join(str(error).split()) or kind.__name__)
        self._json.write(f'\n  ],\n  "stopped": {json.dumps(reason)}\n}}\n')
        self._json.close()
        os.replace(self._draft, self.folder / "timeline.json")
        write_atomically(self.folder / "timeline.svg", lambda file: file.write_text(self.track.svg(), encoding="utf-8"))
