"""Classes over time: a window slides over a video of any length, or over a stream, in bounded memory.

Window ``k`` is the part from ``k * stride`` to ``k * stride + window`` seconds, counted from the first frame. Its clip
is the one that `stvid.load_clip` reads with that `start` and `end`: the protocol's test clip of that part, frame by
frame the same. So a dense clip that is shorter than the window shows its middle, and one that is longer repeats the
window's last frame; segment sampling spreads the frames over the window. With views such as ``2x3`` a window has
several clips and crops, whose scores are averaged, as if it were a video of its own.

Windows go on until one has reached the end of the video; that last one may be shorter than the others. A part without a
frame of its own (a long still of a variable frame rate) is a window with an error.

Frames are decoded once, in order, and kept only as long as a window can need them, and only the part that the model
would see.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stvid.data.clips import Frames, around, cut_views, scaled_frames, view_plans
from stvid.data.dataset import EvalSample
from stvid.data.layout import view_layout
from stvid.data.sampling import TOLERANCE, LimitClock, last_duration, window_grid
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError, VideoError
from stvid.evaluation.classes import NOT_FINITE, top_classes
from stvid.evaluation.evaluate import check_counts, inference, model_protocol, model_task, sample_logits
from stvid.protocol import Protocol, Task
from stvid.video.reader import VideoLike
from stvid.video.streaming import Frame, is_live, stream_frames

__all__ = [
    "TimelineWindow",
    "WindowClips",
    "check_windows",
    "parse_seconds",
    "stream_windows",
    "timeline",
]

MAX_WINDOW_BYTES = 4 * 2**30
"""Pixels that a window may hold, in bytes; a window that needs more is refused, not swapped."""

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0}


def parse_seconds(text: str, *, name: str) -> float:
    """Reads ``2s``, ``0.5``, ``500ms`` or ``1min`` as seconds.

    Raises:
        ConfigError: If it is none of these, or not positive; `name` says which option.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s|min|m|)\s*", text)
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not value > 0:
        raise ConfigError(f"{name}: {text!r} is not a positive time such as 2s, 0.5s or 500ms")
    return value


# --- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowClips:
    """The views of one window.

    Attributes:
        start: Start in seconds from the first frame of the source.
        end: End in seconds from the first frame; the end of the source, if that is earlier.
        clips: uint8 (V, C, T, crop, crop), ordered as `ViewPlan` says; None if the window holds no frame.
        indices: Source frame of each frame, int64 (clips, T).
        seconds: Time of each frame on the source's own clock, float64 (clips, T).
        error: Why there are no clips; None if there are.
    """

    start: float
    end: float
    clips: torch.Tensor | None
    indices: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    error: str | None = None


class _Buffer:
    """The latest frames of a stream, scaled, without what lies around all crops."""

    def __init__(self, protocol: Protocol, plan: ViewPlan) -> None:
        self.protocol = protocol
        self.layout = view_layout([str(plan)], protocol.sampling)
        self.count = 0  # frames that have come
        self.origin = 0.0
        self.seconds: deque[float] = deque()  # on the source's own clock
        self.images: deque[Tensor] = deque()
        self.clock = LimitClock()
        self.kind: Frames | None = None  # the size of the scaled frames and the corner of `images` in them

    def add(self, frame: Frame) -> float:
        """Takes the next frame; returns the limit that the stream has reached with it."""
        scaled = scaled_frames(torch.from_numpy(frame.image)[None], self.protocol.short_side)
        if self.kind is None:
            self.origin = frame.seconds
            views = {(0, count, crop) for _, count, crop in self.layout.views}
            plans = view_plans(np.zeros((1, 1)), sorted(views), frame_size=scaled.size, size=self.protocol.crop)
            top, left, self.height, self.width = around([plan.box for plan in plans])
            self.kind = dataclasses.replace(scaled, corner=(top, left))
        top, left = self.kind.corner
        self.count += 1
        self.seconds.append(frame.seconds)
        self.images.append(scaled.images[0, top : top + self.height, left : left + self.width].clone())
        if len(self.images) * self.images[-1].nbytes > MAX_WINDOW_BYTES:
            raise ConfigError(
                f"window: its {len(self.images)} frames take more than {MAX_WINDOW_BYTES >> 30} GiB; take a shorter one"
            )
        return self.clock.reached(frame.seconds - self.origin)

    @property
    def end(self) -> float:
        """When a source ends of which no more frames come, in seconds from the first frame."""
        last = self.seconds[-1] - self.origin
        return last + last_duration(last, count=self.count, fps=self.protocol.fps)

    def forget(self, before: float) -> None:
        """Drops frames that no window from `before` on can need: all but the one that is shown then."""
        while len(self.seconds) > 1 and self.seconds[1] - self.origin <= before - 2 * TOLERANCE:
            self.seconds.popleft()
            self.images.popleft()

    def window(self, start: float, end: float, *, stop: float = math.inf) -> WindowClips:
        """Cuts the views of a window out of the frames.

        Args:
            start: Start in seconds from the first frame.
            end: End in seconds from the first frame.
            stop: Second at which the source has ended, if it has; otherwise a frame in the buffer has reached `end`.
        """
        seconds = np.array(self.seconds)
        shown_end = round(min(end, stop), 6)
        grid = window_grid(seconds - self.origin, fps=self.protocol.fps, start=start, end=end, stop=stop)
        if not len(grid):
            error = f"there is no frame in [{start:g} s, {shown_end:g} s)"
            return WindowClips(start, shown_end, None, error=error)
        places = self.layout.indices(grid, self.protocol)
        used = np.unique(places)
        images = torch.stack([self.images[place] for place in used.tolist()])
        assert self.kind is not None
        frames = dataclasses.replace(self.kind, images=images, numbers=used)
        size = self.protocol.crop
        clips = cut_views(frames, view_plans(places, self.layout.views, frame_size=frames.size, size=size), size)
        return WindowClips(start, shown_end, clips, places + self.count - len(seconds), seconds[places])


def check_windows(window: float, stride: float) -> None:
    """Refuses windows that are not positive numbers of seconds.

    Raises:
        ConfigError: If the window or the stride is not.
    """
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"{name}: {value!r} is not a positive number of seconds")


def stream_windows(
    frames: Iterable[Frame], protocol: Protocol, *, window: float, stride: float, views: str | ViewPlan = "1x1"
) -> Iterator[WindowClips]:
    """Yields the windows of a stream, each as soon as a frame at its end has come.

    Args:
        frames: Frames in order, such as `stvid.video.streaming.stream_frames` gives.
        protocol: Frames, sampling and size.
        window: Length in seconds.
        stride: Seconds from the start of a window to that of the next.
        views: Temporal clips x spatial crops of each window.

    Raises:
        ConfigError: If an argument is not usable, or the crops of a window take more than 4 GiB.
    """
    check_windows(window, stride)
    buffer = _Buffer(protocol, ViewPlan.parse(views))
    number = 0

    def start_of(k: int) -> float:
        return round(k * stride, 6)  # 3 * 0.1 is meant to be 0.3

    for frame in frames:
        reached = buffer.add(frame)
        while reached >= start_of(number) + window:
            yield buffer.window(start_of(number), start_of(number) + window)
            number += 1
        buffer.forget(start_of(number))
    if not buffer.count:
        return
    end = buffer.end
    while number == 0 or max(start_of(number - 1) + window, start_of(number)) < end - TOLERANCE:
        yield buffer.window(start_of(number), start_of(number) + window, stop=end)
        number += 1


# --- scores -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimelineWindow:
    """The most likely classes of one window.

    Attributes:
        start: Start in seconds from the first frame of the source.
        end: End in seconds from the first frame of the source.
        classes: Class names, the most likely first; empty if the window holds no frame.
        probabilities: Probabilities of these classes in 0..1, averaged over the views.
        scores: Probabilities of all classes, float64 (K,); empty if the window holds no frame.
        frames: First and last source frame that the model saw; None if it saw none.
        error: Why there are no classes; None if there are.
    """

    start: float
    end: float
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    scores: NDArray[np.float64]
    frames: tuple[int, int] | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON: all but the scores."""
        return {
            "start": self.start,
            "end": self.end,
            "classes": list(self.classes),
            "probabilities": list(self.probabilities),
            "frames": None if self.frames is None else list(self.frames),
            "error": self.error,
        }


def timeline(
    model: nn.Module,
    source: VideoLike,
    *,
    window: float,
    stride: float,
    fps: float | None = None,
    topk: int = 5,
    views: str | ViewPlan = "1x1",
    protocol: Protocol | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    precision: str = "32-true",
    task: Task | None = None,
) -> Iterator[TimelineWindow]:
    """Classifies every window of a video or stream; the docstring of this module says which frames a window shows.

    Args:
        model: Maps clips (B, C, T, H, W) to logits (B, K). It stays on the device until the iterator is used up or
            closed.
        source: A file, or what else `stvid.video.streaming.stream_frames` reads.
        window: Length in seconds.
        stride: Seconds from the start of a window to that of the next.
        fps: Frames a second of a source that is frames in memory.
        topk: How many classes to name.
        views: Temporal clips x spatial crops of each window.
        protocol: None takes `model.default_protocol`.
        batch_size: Clips in one forward pass. None takes 8, or for a camera, pipe or URL the clips of one window, so
            that each window is known as soon as it is over.
        device: None leaves the model where it is.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        task: None takes `model.task`.

    Yields:
        The windows in order. Memory does not grow with their number.

    Raises:
        VideoError: If the source cannot be read or breaks off; the windows before come first.
        ConfigError: If an argument is not usable, or the model does not take the clips.
    """
    check_windows(window, stride)
    check_counts(topk=topk, workers=0, batch_size=1 if batch_size is None else batch_size)
    plan = ViewPlan.parse(views)
    settings = _TimelineSettings(
        protocol=model_protocol(model, protocol, plan),
        views=plan,
        task=model_task(model, task),
        window=window,
        stride=stride,
        topk=topk,
        batch_size=batch_size or (plan.num_views if is_live(source) else 8),
        device=device,
        precision=precision,
    )
    return _timeline(model, source, settings, fps)


@dataclass(frozen=True)
class _TimelineSettings:
    """The checked arguments of `timeline`, with the defaults that None stands for."""

    protocol: Protocol
    views: ViewPlan
    task: Task
    window: float
    stride: float
    topk: int
    batch_size: int
    device: torch.device | str | None
    precision: str


def _timeline(
    model: nn.Module, source: VideoLike, settings: _TimelineSettings, fps: float | None
) -> Iterator[TimelineWindow]:
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    windows_at_once = -(-settings.batch_size // settings.views.num_views)
    waiting: list[WindowClips] = []

    def classified() -> list[TimelineWindow]:
        done = _classify(model, waiting, settings)
        waiting.clear()
        return done

    try:
        with inference(model, device=settings.device, precision=settings.precision) as place:
            target = place.device  # checked, with a message of one line
        model.to(target)
        frames = stream_frames(source, fps=fps)
        windows = stream_windows(
            frames, settings.protocol, window=settings.window, stride=settings.stride, views=settings.views
        )
        try:
            for item in windows:
                waiting.append(item)
                if len(waiting) == windows_at_once:
                    yield from classified()
        except VideoError:
            if waiting:
                yield from classified()  # what came before still counts
            raise
        finally:
            frames.close()  # type: ignore[attr-defined]
        if waiting:
            yield from classified()
    finally:
        model.to(home)


def _classify(model: nn.Module, windows: list[WindowClips], settings: _TimelineSettings) -> list[TimelineWindow]:
    """Runs the model over some windows, on the device where it is."""
    # Entered for each batch: inference mode must not be on in the caller between two windows.
    with inference(model, device=None, precision=settings.precision) as place:
        samples = [
            EvalSample(number, item.clips, np.array(-1), error=item.error) for number, item in enumerate(windows)
        ]
        pairs = sample_logits(
            model, samples, protocol=settings.protocol, placement=place, view_chunk=settings.batch_size
        )
        logits = [None if rows is None else rows.numpy() for _, rows in pairs]
    return [_named(item, rows, settings) for item, rows in zip(windows, logits, strict=True)]


def _named(item: WindowClips, logits: NDArray[np.float32] | None, settings: _TimelineSettings) -> TimelineWindow:
    if logits is None:
        return TimelineWindow(item.start, item.end, (), (), np.empty(0), error=item.error)
    best = top_classes(logits, settings.protocol, task=settings.task, topk=settings.topk)
    seen = (int(item.indices.min()), int(item.indices.max()))
    if best is None:
        return TimelineWindow(item.start, item.end, (), (), np.empty(0), frames=seen, error=NOT_FINITE)
    return TimelineWindow(item.start, item.end, best.names, best.probabilities, best.scores, frames=seen)
