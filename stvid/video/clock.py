"""The clock of a stream over its jumps, as a player follows it.

Pieces of transport streams that were joined, recorders that begin again, the cells of a DVD and counters that run over
leave a file whose clock jumps, while its frames lie in the order in which they are to be shown. Players then let the
new piece begin where the earlier one ends. A jump is what FFmpeg takes for one (``fftools/ffmpeg_demux.c``,
``ts_discontinuity_detect``; ``fftools/ffplay.c``, ``vp_duration``):

* Decode times never fall in a sound stream. If they fall by more than a tenth of a second, a new piece has begun.
* Where the format allows its clock to jump (FFmpeg's ``AVFMT_TS_DISCONT``: MPEG transport and program streams, Ogg),
  it has if a frame follows another by more than ten seconds, or at the same time (program streams state few times, and
  those that are guessed between them may fall back a little). In other formats the former is a pause.

That presentation times fall is no jump: those of AVI are in another order than the frames in sound files, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Clock"]

_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT (libavformat/avformat.h)
_FALL = 0.1  # seconds
_LEAP = 10.0  # seconds
_LARGEST = 2**60  # units; a time beyond is damage


class Clock:
    """Follows one stream from its first packet on.

    Args:
        container: PyAV's container.
        stream: PyAV's stream of it.

    Attributes:
        moved: Units that are added to the times of the latest packet; 0 until the clock has fallen.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.moved = 0
        unit = float(stream.time_base or 0)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self._fall = _FALL / unit if unit > 0 else float("inf")
        self._may_jump = bool(int(container.format.flags) & _TS_DISCONT)
        self._leap = _LEAP / unit if self._may_jump and unit > 0 else float("inf")
        self._step = round(1 / (rate * unit)) if unit > 0 and 0 < rate < 1e6 else 0
        self._last: int | None = None  # decode time of the packet before, moved
        self._due = 0  # decode time at which the next packet is due
        self._end = 0  # when the last frame so far ends
        self._shown: float | None = None  # the time of the frame before, as it was given
        self._taken = 0.0  # what was taken out so far

    def move(self, packet: Any) -> None:
        """Moves the times of the next packet, in place, to where they are on a clock that does not fall."""
        pts, dts = packet.pts, packet.dts
        if max(abs(pts or 0), abs(dts or 0)) > _LARGEST:
            return
        step = packet.duration or self._step
        if dts is not None:
            if self._last is not None and dts + self.moved < self._last - self._fall:
                self.moved = self._due - dts
                if pts is not None:  # and its frame is not shown before the last one ends
                    self.moved = max(self.moved, self._end - pts)
            self._last = dts + self.moved
            self._due = self._last + step
        if self.moved:
            packet.pts = None if pts is None else pts + self.moved
            packet.dts = None if dts is None else dts + self.moved
        shown = pts if pts is not None else dts
        if shown is not None:
            self._end = max(self._end, shown + self.moved + step)

    def presented(self, time: float) -> float:
        """Returns the time of the next frame, in the order of their times, on a clock that neither leaps nor stands."""
        if self._shown is not None:
            gap = time - self._shown
            if gap > self._leap + self._step or (gap <= 0 and self._may_jump):
                self._taken += gap - self._step
        self._shown = time
        return time - self._taken

    def all_presented(self, times: np.ndarray) -> np.ndarray:
        """Returns the times of all frames, in ascending order, as `presented` does: int64 in and out."""
        gaps = np.diff(times)
        jumps = (gaps > self._leap + self._step) | ((gaps <= 0) & self._may_jump)
        return times - np.concatenate(([0], np.cumsum(np.where(jumps, gaps - self._step, 0)))).astype(np.int64)
