"""Classes of a stream while it runs: a model that sees no later frame goes on frame by frame, in bounded memory.

The frames are those that a dense clip of the model's protocol would hold if it went on for ever: of the timeline at the
protocol's rate (or of the frames, if it has none) every `stride`-th tick, from the first frame on; of a protocol that
samples segments, every tick. Each is scaled and cropped as in a test, with the protocol's spatial crops side by side,
and given to the model's `step`. So the classes at the end of a video are those of one clip of all these frames. The
protocol's temporal clips have no meaning here.

A frame is taken as soon as it is certain that it is the one to be shown at its tick: at the rate of the source that is
when it comes, else often when the next one comes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stvid.data.clips import cut_views, scaled_frames, view_plans
from stvid.data.sampling import TOLERANCE, last_duration
from stvid.data.transforms import model_input
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError, VideoError
from stvid.evaluation.classes import NOT_FINITE, top_classes
from stvid.evaluation.evaluate import Placement, check_counts, inference, model_protocol, model_task
from stvid.models.base import VideoModel
from stvid.models.streaming import StreamState
from stvid.protocol import Protocol, Task
from stvid.video.reader import VideoLike
from stvid.video.streaming import Frame, stream_frames

__all__ = ["StreamUpdate", "follow_stream", "frames_at_ticks"]

_RECENT = 1000  # frames whose latency is kept
_SAME = 1e-6  # seconds that times may differ by rounding


@dataclass(frozen=True)
class StreamUpdate:
    """The most likely classes of all that has passed so far.

    Attributes:
        seconds: Time of the last frame that the model saw, in seconds from the first frame of the source.
        frames: Frames that the model has seen.
        classes: Class names, the most likely first; empty if the logits are not finite numbers.
        probabilities: Probabilities of these classes in 0..1, averaged over the spatial crops.
        scores: Probabilities of all classes, float64 (K,).
        latency: Median time that a frame took from its pixels to the logits, in seconds, over the last 1000 frames:
            scaling, cropping and the model, but not decoding.
        slowest: The longest such time.
        last: Whether the source has ended.
        error: Why there are no classes; None if there are.
    """

    seconds: float
    frames: int
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    scores: NDArray[np.float64]
    latency: float
    slowest: float
    last: bool = False
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON: all but the scores, with the latency in milliseconds."""
        return {
            "seconds": self.seconds,
            "frames": self.frames,
            "classes": list(self.classes),
            "probabilities": list(self.probabilities),
            "latency_ms": round(1000 * self.latency, 3),
            "slowest_ms": round(1000 * self.slowest, 3),
            "last": self.last,
            "error": self.error,
        }


def frames_at_ticks(frames: Iterable[Frame], protocol: Protocol) -> Iterator[Frame]:
    """Yields the frames that a model with this protocol sees of a stream, each as soon as it is certain.

    They are those that `stvid.data.sampling.frame_grid` gives for the same times, every `stride`-th of them.

    Args:
        frames: In the order of their times.
        protocol: Its rate and stride.
    """
    stride = 1 if protocol.sampling == "segment" else protocol.stride
    if protocol.fps is None:
        yield from (frame for number, frame in enumerate(frames) if number % stride == 0)
        return
    first, shown, tick, count = 0.0, None, 0, 0

    def due() -> float:
        return tick * stride / protocol.fps  # type: ignore[operator]

    for frame in frames:
        first = frame.seconds if shown is None else first
        begins = frame.seconds - first
        gap = 0.0 if shown is None else frame.seconds - shown.seconds
        while shown is not None and begins - min(TOLERANCE, 0.1 * gap) > due():
            yield shown
            tick += 1
        shown, count = frame, count + 1
        while begins >= due() - _SAME:  # the next frame begins later than this tick
            yield frame
            tick += 1
    if shown is not None:
        span = shown.seconds - first
        end = span + last_duration(span, count=count, fps=protocol.fps)
        ticks = math.ceil((end - min(TOLERANCE, 0.1 / protocol.fps)) * protocol.fps)
        while tick * stride < ticks:
            yield shown
            tick += 1


class _Follower:
    """A stream on its way through a model."""

    def __init__(self, model: VideoModel, protocol: Protocol, crops: int, topk: int, task: Task) -> None:
        self.model, self.protocol, self.crops, self.topk, self.task = model, protocol, crops, topk, task
        self.state: StreamState = model.init_state(crops)
        self.logits: Tensor | None = None
        self.origin: float | None = None
        self.seconds = 0.0
        self.latencies: deque[float] = deque(maxlen=_RECENT)
        self.slowest = 0.0

    def see(self, frame: Frame, place: Placement) -> None:
        """Gives a frame to the model."""
        begin = time.perf_counter()
        scaled = scaled_frames(torch.from_numpy(frame.image)[None], self.protocol.short_side)
        size, views = self.protocol.crop, [(0, self.crops, crop) for crop in range(self.crops)]
        plans = view_plans(np.zeros((1, 1), np.int64), views, frame_size=scaled.size, size=size)
        clips = cut_views(scaled, plans, size).to(place.device)
        clips = model_input(clips, self.protocol, dtype=place.dtype)
        try:
            logits, self.state = self.model.step(clips, self.state)
        except ValueError as error:
            raise ConfigError(f"{' '.join(str(error).split())} (protocol: {self.protocol.describe()})") from error
        self.logits = logits.float().cpu()
        self.latencies.append(time.perf_counter() - begin)
        self.slowest = max(self.slowest, self.latencies[-1])
        self.origin = frame.seconds if self.origin is None else self.origin
        self.seconds = frame.seconds - self.origin

    def update(self, *, last: bool) -> StreamUpdate:
        """Returns what is known now."""
        assert self.logits is not None
        best = top_classes(self.logits.numpy(), self.protocol, task=self.task, topk=self.topk)
        latency = float(np.median(self.latencies))
        return StreamUpdate(
            round(self.seconds, 6),
            self.state.frames,
            () if best is None else best.names,
            () if best is None else best.probabilities,
            np.empty(0) if best is None else best.scores,
            latency,
            self.slowest,
            last,
            NOT_FINITE if best is None else None,
        )


def follow_stream(
    model: VideoModel,
    source: VideoLike,
    *,
    every: float = 1.0,
    fps: float | None = None,
    topk: int = 5,
    views: str | ViewPlan | None = None,
    protocol: Protocol | None = None,
    device: torch.device | str | None = None,
    precision: str = "32-true",
    task: Task | None = None,
) -> Iterator[StreamUpdate]:
    """Classifies a video or stream while it runs; the docstring of this module says which frames the model sees.

    Args:
        model: A model that runs over a stream (`VideoModel.streams`). It stays on the device until the iterator is used
            up or closed.
        source: A file, or what else `stvid.video.streaming.stream_frames` reads.
        every: Seconds of the stream from one update to the next; 0 gives one for each frame.
        fps: Frames a second of a source that is frames in memory.
        topk: How many classes to name.
        views: Temporal clips x spatial crops, of which the crops are taken; None takes the protocol's.
        protocol: None takes `model.default_protocol`.
        device: None leaves the model where it is.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        task: None takes `model.task`.

    Yields:
        Updates in order; the last one says so. Memory does not grow with the length of the stream.

    Raises:
        VideoError: If the source cannot be read or breaks off; what is known by then comes first.
        StvidError: If the model does not run over a stream.
        ConfigError: If an argument is not usable, or the model does not take the frames.
    """
    if isinstance(every, bool) or not 0 <= every < math.inf:
        raise ConfigError(f"every: {every!r} is not a number of seconds")
    check_counts(topk=topk, workers=0)
    used = model_protocol(model, protocol, views)
    crops = ViewPlan.parse(used.views).crops
    follower = _Follower(model, used, crops, topk, model_task(model, task))
    return _follow(follower, source, every=every, fps=fps, device=device, precision=precision)


def _follow(
    follower: _Follower,
    source: VideoLike,
    *,
    every: float,
    fps: float | None,
    device: torch.device | str | None,
    precision: str,
) -> Iterator[StreamUpdate]:
    model = follower.model
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with inference(model, device=device, precision=precision) as place:
            target = place.device  # checked, with a message of one line
        model.to(target)
        decoded = stream_frames(source, fps=fps)
        frames = frames_at_ticks(decoded, follower.protocol)
        due, more = 0.0, True
        try:
            while more:
                # Entered anew for each update: inference mode must not be on in the caller between two.
                with inference(model, device=None, precision=precision) as place:
                    more = _advance(follower, frames, place, until=due)
                if more:
                    yield follower.update(last=False)
                due = (math.floor(follower.seconds / every + TOLERANCE) + 1) * every if every else follower.seconds
        except VideoError:
            if follower.logits is not None:
                yield follower.update(last=True)
            raise
        finally:
            decoded.close()  # type: ignore[attr-defined]
        if follower.logits is not None:
            yield follower.update(last=True)
    finally:
        model.to(home)


def _advance(follower: _Follower, frames: Iterator[Frame], place: Placement, *, until: float) -> bool:
    """Gives frames to the model until one at second `until` or later; returns False if the source ends before."""
    for frame in frames:
        follower.see(frame, place)
        if follower.seconds >= until - TOLERANCE:
            return True
    return False
