"""Which frames a clip holds: pure index arithmetic.

A video is first turned into a *grid*, the source-frame index of each tick of its timeline (`frame_grid`); with
``fps=None`` the ticks are the frames themselves. Clips are then cut from the grid in one of two ways:

* **dense**: `frames` positions at a fixed stride (Kinetics). A training clip begins anywhere; test clips are spread
  evenly from the first possible place to the last, and a single one is centred.
* **segment**: the video is cut into `frames` equal parts and one position is taken of each (TSN, Wang et al. 2016,
  section 3.1; Something-Something). In training it is random within each part, in a test it is the middle.

Where a protocol has `frames_per_segment` frames that follow each other, these ways place the first frame of each row,
so that the rows fit into the video (TDN, Wang et al. 2021).

If a clip is longer than the video, a dense clip repeats the last frame (as SlowFast does: datasets/decoder.py,
`temporal_sampling` clamps to the last index), and a segment clip repeats frames throughout.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from stvid.protocol import Protocol

__all__ = [
    "TOLERANCE",
    "LimitClock",
    "clip_span",
    "dense_clip",
    "dense_starts",
    "frame_grid",
    "last_duration",
    "sample_train",
    "sample_views",
    "segment_clip",
    "segment_shifts",
    "window_grid",
]

TOLERANCE = 1e-3
"""Seconds within which a limit or a tick counts as at a frame's time, at most.

Containers such as Matroska and FLV round times to whole milliseconds: a 30 fps frame due at 66.667 ms is stamped 67.
Without it such a file would have doubles when it is read at its own rate. Of frames that follow each other closely it
is less: a tenth of the time between them.
"""

_SHARE = 0.1


def _tolerances(times: np.ndarray) -> np.ndarray:
    """Returns for each frame how far a limit may be from its time to count as at it, in seconds.

    It depends on this frame and the one before only, so that a stream gives the same as a file.
    """
    return np.minimum(TOLERANCE, _SHARE * np.diff(times, prepend=times[:1]))


class LimitClock:
    """Tells of frames that come one by one which limits they have reached: by the rule of `frame_grid`, exactly.

    The window [start, end) of a stream begins with the first frame for which `reached` is `start` or more, and is over
    when it is `end` or more.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._reached = -math.inf

    def reached(self, seconds: float) -> float:
        """Returns the latest limit that the next frame has reached; it never falls.

        Args:
            seconds: When the frame is shown.
        """
        gap = 0.0 if self._last is None else seconds - self._last
        self._last = seconds
        self._reached = max(self._reached, seconds + min(TOLERANCE, _SHARE * gap))
        return self._reached


def frame_grid(
    timestamps: np.ndarray, *, fps: float | None, start: float | None = None, end: float | None = None
) -> np.ndarray:
    """Returns the source frame of each tick of the timeline that clips are cut from.

    Args:
        timestamps: When each frame is shown, in seconds, ascending: `VideoReader.timestamps`.
        fps: Ticks per second, or None for one tick at each frame.
        start: Where the timeline begins, on the clock of `timestamps`; None is the first frame.
        end: Where it ends (not included); None, or anything later, is the end of the video. The last frame is taken
            to be shown as long as the frames are on average.

    Returns:
        int64 (ticks,), never empty: for ``fps=None`` the frames whose time is in [start, end), otherwise for tick
        ``k`` the frame shown at ``start + k / fps`` (before the first frame: the first one).

    Raises:
        ValueError: If the range holds no frame, or an argument makes no sense.
    """
    times = np.asarray(timestamps, np.float64)
    if times.ndim != 1 or len(times) == 0:
        raise ValueError(f"timestamps of shape {times.shape}: one time for each of at least one frame is needed")
    if fps is not None and not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps is {fps!r}: a positive number is needed")
    for name, value in (("start", start), ("end", end)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}: a number of seconds is needed")
    stop = float(times[-1]) + last_duration(times[-1] - times[0], count=len(times), fps=fps)
    begin = float(times[0]) if start is None else float(start)
    grid = window_grid(times, fps=fps, start=begin, end=stop if end is None else float(end), stop=stop)
    if not len(grid):
        part = f"[{begin:g} s, {'its end' if end is None else f'{end:g} s'})"
        raise ValueError(f"there is no frame in {part} of a video from {times[0]:g} s to {stop:g} s")
    return grid


def last_duration(span: float, *, count: int, fps: float | None) -> float:
    """Returns the seconds for which the last frame is taken to be shown: as long as the frames are on average.

    Args:
        span: Seconds from the first frame to the last.
        count: How many frames there are.
        fps: Ticks per second; a video of one frame lasts one tick, or a second if this is None.
    """
    return float(span) / (count - 1) if span > 0 else (1 / fps if fps is not None else 1.0)


def window_grid(
    times: np.ndarray, *, fps: float | None, start: float, end: float, stop: float = math.inf
) -> np.ndarray:
    """Returns the frame of each tick of [start, end); `frame_grid` for limits that are known, also within a stream.

    Args:
        times: When each frame is shown, float64 seconds. Of a stream, frames may be missing at the beginning if the
            first one that is there lies twice the `TOLERANCE` before `start`, and at the end after one that has
            reached `end` (`LimitClock`).
        fps: Ticks per second, or None for one tick at each frame.
        start: Where the window begins.
        end: Where it ends (not included).
        stop: Where the video ends, if that is known.

    Returns:
        int64 (ticks,), as `frame_grid`; empty if the window holds no frame.
    """
    tolerances = _tolerances(times)
    if fps is None:
        reached = np.maximum.accumulate(times + tolerances)
        first = int(np.searchsorted(reached, start))
        last = len(times) if end >= stop else int(np.searchsorted(reached, end))
        return np.arange(first, last, dtype=np.int64)
    end = min(end, stop)
    ticks = math.ceil((end - start - min(TOLERANCE, _SHARE / fps)) * fps) if end > times[0] else 0
    at = start + np.arange(ticks) / fps
    return np.maximum(np.searchsorted(times - tolerances, at, side="right") - 1, 0).astype(np.int64)


def dense_starts(length: int, *, span: int, num_clips: int) -> np.ndarray:
    """Returns where evenly spread clips begin, from 0 to the last possible place; a single one is centred.

    SlowFast does this with ``DATA.USE_OFFSET_SAMPLING`` (datasets/decoder.py, `get_start_end_idx`). Its older rule,
    ``delta * k / num_clips``, never reaches the end of the video and puts a single clip at its start.

    Args:
        length: Ticks of the video.
        span: Ticks from the first frame of a clip to its last, both included.
        num_clips: How many clips.

    Returns:
        int64 (num_clips,), ascending; all 0 if the video is no longer than a clip.
    """
    _positive(length=length, span=span, num_clips=num_clips)
    room = max(length - span, 0)
    if num_clips == 1:
        return np.array([room // 2], np.int64)
    gaps = num_clips - 1
    return (2 * np.arange(num_clips, dtype=np.int64) * room + gaps) // (2 * gaps)  # rounded, without floats


def dense_clip(length: int, *, frames: int, stride: int, start: int) -> np.ndarray:
    """Returns the positions of a clip with a fixed stride; past the end the last frame is repeated.

    The stride is exact. SlowFast (datasets/decoder.py, `temporal_sampling`) spreads 16 frames with `linspace` over the
    64 that 16 x 4 stand for, a step of 63 / 15 = 4.2, and rounds down: steps of 4 and now and then 5.

    Args:
        length: Ticks of the video.
        frames: Positions wanted.
        stride: Ticks between two of them.
        start: The first position.

    Returns:
        int64 (frames,), ascending, within 0..length-1.
    """
    _positive(length=length, frames=frames, stride=stride)
    if start < 0:
        raise ValueError(f"start is {start}: it cannot be before the video")
    return np.minimum(int(start) + stride * np.arange(frames, dtype=np.int64), length - 1)


def segment_clip(length: int, *, frames: int, rng: np.random.Generator | None = None, shift: float = 0.5) -> np.ndarray:
    """Returns one position in each of `frames` equal parts of the video.

    With the default shift this is ``floor(length / frames * (k + 1/2))``, the test positions of TSM
    (mit-han-lab/temporal-shift-module, ops/dataset.py, `_get_test_indices`). Training positions are uniform over the
    whole part, also where its limits fall within a frame; TSN and TSM round the length of a part down to whole frames
    (`_sample_indices`) and so may never draw the last ones.

    Args:
        length: Ticks of the video.
        frames: Parts.
        rng: Draws a place in each part; None takes `shift`.
        shift: Place within each part, from 0 (its start) to below 1.

    Returns:
        int64 (frames,), ascending, within 0..length-1; positions repeat if the video is shorter than `frames`.
    """
    _positive(length=length, frames=frames)
    if not 0 <= shift < 1:
        raise ValueError(f"shift is {shift}: a number from 0 to below 1 is needed")
    places = np.full(frames, shift) if rng is None else rng.random(frames)
    positions = np.floor((np.arange(frames) + places) * length / frames).astype(np.int64)
    return np.minimum(positions, length - 1)  # a place just below 1 may round up


def segment_shifts(num_clips: int) -> tuple[Fraction, ...]:
    """Returns the place that each test clip takes in every segment, evenly spread; the middle is always one of them.

    One clip takes the middle, as TSN and TSM do. Two take 0 and 1/2: the "twice sample" of TSM (Lin et al. 2019,
    arXiv:1811.08383; mit-han-lab/temporal-shift-module, ops/dataset.py, `_get_test_indices`, which lists the middle
    first). Three take 1/6, 1/2 and 5/6.

    Args:
        num_clips: How many clips.
    """
    _positive(num_clips=num_clips)
    first = Fraction(num_clips % 2, 2 * num_clips)
    return tuple(first + Fraction(k, num_clips) for k in range(num_clips))


def sample_train(grid: np.ndarray, protocol: Protocol, *, rng: np.random.Generator | None) -> np.ndarray:
    """Returns the source frames of one training clip.

    Args:
        grid: The grid that `frame_grid` returned.
        protocol: Its `sampling`, `frames`, `frames_per_segment` and `stride` are used.
        rng: Draws the clip; None takes the middle one.

    Returns:
        int64 (frames,), source-frame indices, ascending; but in a short video the rows of two segments may overlap.
    """
    length = len(grid)
    if protocol.sampling == "segment":
        return grid[_rows(segment_clip(_room(length, protocol), frames=protocol.segments, rng=rng), length, protocol)]
    span = clip_span(protocol)
    if rng is None:
        start = int(dense_starts(length, span=span, num_clips=1)[0])
    else:
        start = int(rng.integers(0, max(length - span, 0) + 1))
    return grid[_dense(length, protocol, start)]


def sample_views(grid: np.ndarray, protocol: Protocol, *, num_clips: int) -> np.ndarray:
    """Returns the source frames of the test clips of one video.

    Dense clips are spread by `dense_starts`; segment clips take the places of `segment_shifts` in each part. Clips of a
    short video may be equal.

    Args:
        grid: The grid that `frame_grid` returned.
        protocol: Its `sampling`, `frames`, `frames_per_segment` and `stride` are used.
        num_clips: How many clips.

    Returns:
        int64 (num_clips, frames), source-frame indices, each clip's ascending; but in a short video the rows of two
        segments may overlap.
    """
    _positive(num_clips=num_clips)
    length = len(grid)
    if protocol.sampling == "segment":
        room = _room(length, protocol)
        clips = [
            _rows(segment_clip(room, frames=protocol.segments, shift=float(at)), length, protocol)
            for at in segment_shifts(num_clips)
        ]
    else:
        starts = dense_starts(length, span=clip_span(protocol), num_clips=num_clips)
        clips = [_dense(length, protocol, int(start)) for start in starts]
    return grid[np.stack(clips)]


def clip_span(protocol: Protocol) -> int:
    """Returns the ticks that a dense clip needs, first and last frame included."""
    return (protocol.segments - 1) * protocol.stride + protocol.frames_per_segment


def _room(length: int, protocol: Protocol) -> int:
    """Returns how many ticks can be the first of a row of frames that fits into the video; at least one."""
    return max(length - protocol.frames_per_segment + 1, 1)


def _dense(length: int, protocol: Protocol, start: int) -> np.ndarray:
    """Returns the positions of a dense clip, with the frames that follow each."""
    return _rows(dense_clip(length, frames=protocol.segments, stride=protocol.stride, start=start), length, protocol)


def _rows(positions: np.ndarray, length: int, protocol: Protocol) -> np.ndarray:
    """Returns the positions of the frames that begin at each of some positions and follow each other."""
    rows = positions[:, None] + np.arange(protocol.frames_per_segment, dtype=np.int64)
    return np.minimum(rows, length - 1).reshape(-1)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: at least 1 is needed")
