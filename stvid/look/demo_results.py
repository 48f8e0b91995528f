"""The answers of one or two models to a video, as the demo page shows them, on the video's own axis of time.

A `ModelRun` takes the windows of `stvid.timeline` one by one and keeps of each only which class leads, so that its
memory stays small for a video of hours. The frames that count come from `stvid.explain`: for a class that leads
somewhere, in the window where it is surest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvid.errors import ConfigError
from stvid.evaluation.classes import name_classes
from stvid.evaluation.timeline import TimelineWindow, timeline
from stvid.look.demo_models import licence_note
from stvid.look.drawing import heat_overlay
from stvid.look.explanation import Explanation, explain
from stvid.look.rendering import render
from stvid.look.timeline_output import TimelineFiles, TrackLook, colour_of, dashes_of
from stvid.models.base import VideoModel
from stvid.notebook import picture_address
from stvid.video.reader import VideoReader

__all__ = ["Comparison", "Lead", "ModelRun", "compare_runs", "results_page"]

EXPLAINED = 3  # classes whose frames are shown
PICTURES = 8  # frames that are shown of a class
LISTED = 12  # changes of the leading class, and disagreements, that are listed
_NARROW, _WIDE, _HALF = 330, 860, 600  # widths of a plot in pixels: on a phone, alone, and beside another


@dataclass(frozen=True)
class Lead:
    """The most likely class of a part of a video.

    Attributes:
        start: Start of the part in seconds from the first frame.
        end: End of the part.
        name: The class.
        probability: Its probability in 0..1.
    """

    start: float
    end: float
    name: str
    probability: float

    @property
    def middle(self) -> float:
        """The second in the middle, where plots draw the part."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class CountingFrames:
    """The frames that count for a class in one window.

    Attributes:
        lead: The class and the window.
        method: How they were found, as `Explanation.method` says.
        frames: For each frame, in order: the second from the first frame, its share of the map, its number in the
            source, and its picture as a ``data:`` address.
    """

    lead: Lead
    method: str
    frames: tuple[tuple[float, float, int, str], ...]

    @classmethod
    def of(cls, lead: Lead, found: Explanation, origin: float) -> CountingFrames:
        """Takes the frames with the largest shares; `origin` is the time of the first frame on the source's clock."""
        shares = found.over_time
        kept: dict[int, int] = {}  # the number in the source, and that in the clip, which may repeat a frame
        for place in np.argsort(-shares, kind="stable").tolist():
            if len(kept) < PICTURES:
                kept.setdefault(int(found.clip.indices[place]), place)
        pictures = []
        for index, place in sorted(kept.items()):
            second = max(0.0, float(found.clip.seconds[place]) - origin)
            address = picture_address(heat_overlay(found.frames[place], found.heat[place]), short_side=128)
            pictures.append((second, float(shares[place]), index, address))
        return cls(lead, found.method, tuple(pictures))


class ModelRun:
    """The answers of one model to one video.

    Args:
        name: Name of the model on the page.
        model: A model with its protocol and class names, on its device.
        topk: How many classes of the whole video to show.
    """

    def __init__(self, name: str, model: VideoModel, *, topk: int) -> None:
        self.name = name
        self.model = model
        self.protocol = model.default_protocol
        self.class_names = name_classes(self.protocol.class_names, model.num_classes)
        self.topk = min(topk, model.num_classes)
        self.leads: list[Lead] = []
        self.windows = 0
        self.failed: list[str] = []  # why a window has no scores; the first few
        self.counting: list[CountingFrames] = []
        self.not_explained = ""
        self.end = 0.0
        self.files: TimelineFiles | None = None
        self._total = np.zeros(model.num_classes)
        self._peaks = np.zeros(model.num_classes)

    def watch(
        self, video: str, folder: str | os.PathLike[str], *, window: float, stride: float, precision: str
    ) -> Iterator[TimelineWindow]:
        """Classifies the windows of a video, and writes the files of a timeline.

        Raises:
            VideoError: If the video cannot be read, or breaks off.
            ConfigError: If an argument is not usable, or the model does not take the clips.
        """
        header = {
            "source": Path(video).name,
            "model": self.name,
            "window": window,
            "stride": stride,
            "protocol": self.protocol.to_dict(),
        }
        found = timeline(
            self.model, video, window=window, stride=stride, topk=self.topk, device=None, precision=precision
        )
        self.files = TimelineFiles(folder, header, class_names=self.protocol.class_names, topk=self.topk)
        with self.files as files:
            for item in found:
                files.add(item)
                self._take(item)
                yield item

    def _take(self, item: TimelineWindow) -> None:
        self.windows += 1
        self.end = max(self.end, item.end)
        if item.error is not None:
            if item.error not in self.failed and len(self.failed) < 3:
                self.failed.append(item.error)
            return
        self._total += item.scores
        self._peaks = np.maximum(self._peaks, item.scores)
        self.leads.append(Lead(item.start, item.end, item.classes[0], item.probabilities[0]))

    def explain(self, video: str) -> None:
        """Finds the frames that count for the classes that lead, each in the window where it is surest.

        A model that `stvid.explain` has no method for is noted in `not_explained`.

        Raises:
            VideoError: If the video cannot be read.
        """
        with VideoReader(video) as reader:
            origin = float(reader.timestamps[0])
        for lead in self._surest():
            try:
                found = explain(self.model, video, class_name=lead.name, start=lead.start, end=lead.end)
            except ConfigError as error:
                self.not_explained = str(error)
                return
            self.counting.append(CountingFrames.of(lead, found, origin))

    def _surest(self) -> list[Lead]:
        """Returns for the classes that lead with the highest probabilities their surest windows, in order of time."""
        best: dict[str, Lead] = {}
        for lead in self.leads:
            if lead.name not in best or lead.probability > best[lead.name].probability:
                best[lead.name] = lead
        highest = sorted(best.values(), key=lambda lead: -lead.probability)[:EXPLAINED]
        return sorted(highest, key=lambda lead: lead.start)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Probabilities of the whole video: the mean of those of its windows, (K,)."""
        return self._total / max(len(self.leads), 1)

    @property
    def shown(self) -> list[str]:
        """The classes that are drawn: the most likely of the whole video, and those that lead somewhere."""
        if not self.leads:
            return []
        best = [self.class_names[k] for k in np.argsort(-self.mean, kind="stable")[: self.topk].tolist()]
        return list(dict.fromkeys([*best, *(lead.name for lead in self._surest())]))

    def changes(self) -> list[Lead]:
        """Returns the parts of the video with one leading class, one after the other."""
        parts: list[Lead] = []
        for lead in self.leads:
            if parts and parts[-1].name == lead.name:
                last = parts.pop()
                lead = Lead(last.start, lead.end, lead.name, max(last.probability, lead.probability))
            parts.append(lead)
        return parts


# --- two models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Where two models disagree.

    Attributes:
        text: One or two sentences.
        bands: The parts of the video where they name different classes: first and last second of each.
    """

    text: str
    bands: tuple[tuple[float, float], ...]


def compare_runs(first: ModelRun, second: ModelRun, *, stride: float) -> Comparison:
    """Compares the leading classes of two models window by window.

    Args:
        first: A model's answers.
        second: Those of another to the same windows.
        stride: Seconds from the start of a window to that of the next.
    """
    others = {lead.start: lead for lead in second.leads}
    pairs = [(lead, others[lead.start]) for lead in first.leads if lead.start in others]
    if not pairs:
        return Comparison("There is no window to which both give scores.", ())
    if not {*first.class_names} & {*second.class_names}:
        text = (
            f"The two models have no class in common ({len(first.class_names)} and {len(second.class_names)} classes), "
            "so they cannot agree; compare when their answers change."
        )
        return Comparison(text, ())
    parts: list[tuple[float, float, str, str]] = []
    differing = 0
    end = max(first.end, second.end)
    for one, other in pairs:
        if one.name == other.name:
            continue
        differing += 1
        low, high = max(0.0, one.middle - stride / 2), min(end, one.middle + stride / 2)
        if parts and parts[-1][2:] == (one.name, other.name) and low - parts[-1][1] < stride / 4:
            low = parts.pop()[0]
        parts.append((low, high, one.name, other.name))
    if not differing:
        return Comparison(f"Both name the same class first in all {len(pairs)} windows.", ())
    told = [f"{_seconds(low)} to {_seconds(high)} ({a} / {b})" for low, high, a, b in parts[: LISTED // 2]]
    more = f"; and in {len(parts) - len(told)} further parts" if len(parts) > len(told) else ""
    text = f"They disagree in {differing} of {len(pairs)} windows: {'; '.join(told)}{more}."
    return Comparison(text, tuple(part[:2] for part in parts))


def _seconds(value: float) -> str:
    return f"{round(value, 2):g} s"


# --- the page ---------------------------------------------------------------------------------------------------------


def results_page(runs: Sequence[ModelRun], comparison: Comparison | None = None) -> str:
    """Returns the answers as HTML: for each model its classes, their plot over time, and the frames that count.

    Args:
        runs: One model's answers, or those of two, which are drawn side by side on the same axis.
        comparison: What `compare_runs` says of them.
    """
    runs = [run for run in runs if run.windows]
    names = tuple(dict.fromkeys(name for run in runs for name in run.shown))
    end = max((run.end for run in runs), default=0.0)
    bands = () if comparison is None else comparison.bands
    return render(
        "demo_results.html.j2",
        models=[
            _model_section(run, names, end=end, bands=bands, width=_HALF if len(runs) > 1 else _WIDE) for run in runs
        ],
        comparison=None if comparison is None else comparison.text,
        shaded=bool(bands),
        end=_seconds(end),
    )


def _model_section(
    run: ModelRun, names: tuple[str, ...], *, end: float, bands: tuple[tuple[float, float], ...], width: int
) -> dict[str, Any]:
    """Returns what the template shows of one model."""
    assert run.files is not None
    places = [run.class_names.index(name) for name in names if name in run.class_names]
    mean = run.mean
    classes = [
        {
            "name": run.class_names[k],
            "colour": colour_of(run.class_names[k], names),
            "dashes": dashes_of(run.class_names[k], names),
            "mean": float(mean[k]),
            "most": float(run._peaks[k]),
        }
        for k in sorted(places, key=lambda k: -mean[k])
    ]
    marks = tuple((second, item.lead.name) for item in run.counting for second, _, _, _ in item.frames)
    plots = []
    for pixels in (width, _NARROW):
        look = TrackLook(width=pixels, height=260, span=(0.0, end), names=names, marks=marks, bands=bands, legend=False)
        plots.append(run.files.track.svg(look=look))
    changes = run.changes()
    return {
        "name": run.name,
        "about": run.protocol.replace(views="1x1").describe(),
        "licence": licence_note(run.model),
        "windows": run.windows,
        "failed": run.failed,
        "unnamed": not run.protocol.class_names,
        "classes": classes,
        "wide": plots[0],
        "narrow": plots[1],
        "changes": [_change(part) for part in changes[:LISTED]],
        "more": max(0, len(changes) - LISTED),
        "counting": [_counting(item, names) for item in run.counting],
        "not_explained": run.not_explained,
    }


def _change(part: Lead) -> dict[str, Any]:
    return {"second": f"{part.start:.3f}", "at": _seconds(part.start), "name": part.name, "most": part.probability}


def _counting(item: CountingFrames, names: tuple[str, ...]) -> dict[str, Any]:
    strongest = max((share for _, share, _, _ in item.frames), default=0.0)
    return {
        "name": item.lead.name,
        "colour": colour_of(item.lead.name, names),
        "part": f"{_seconds(item.lead.start)} to {_seconds(item.lead.end)}",
        "probability": item.lead.probability,
        "method": item.method,
        "frames": [
            {
                "second": f"{second:.3f}",
                "at": f"{second:.2f} s",
                "share": share,
                "height": share / strongest if strongest > 0 else 0.0,
                "index": index,
                "address": address,
            }
            for second, share, index, address in item.frames
        ],
    }
