"""The index of a video: when each frame is shown, and where its packet lies, known without decoding.

An index is made once a file by `stvid.video.av_reader`, kept in memory for the next reader of the same file, and may be
stored beside a list of videos (`stvid.video.stored_index`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

__all__ = ["DEFAULT_FPS", "DecoderFacts", "Index", "MismatchError", "Packets", "average_rate", "index_cache"]

DEFAULT_FPS = 25.0
"""Frames a second of a folder of images, and of a file that tells neither a rate nor times."""

# All indices that a process remembers: about 6,000 files of 300 frames.
_CACHE_BYTES = 64 * 2**20


class MismatchError(Exception):
    """File or decoder do not give what the index says. Never leaves the readers, which know another way."""


@dataclass(frozen=True)
class DecoderFacts:
    """The facts in a container's header that a decoder needs, so that it can be made without the container."""

    codec: str  # the decoder's name
    extradata: str  # hexadecimal: parameter sets
    width: int
    height: int
    color_range: int  # these four as FFmpeg numbers them (libavutil/pixfmt.h)
    color_primaries: int
    color_trc: int
    colorspace: int
    reorder_depth: int  # by how many frames the output is delayed; -1 is unknown


@dataclass
class Packets:
    """The packets of a stream in file order, as far as seeking needs them."""

    pts: np.ndarray  # int64, units of the stream's time base
    dts: np.ndarray  # int64; as the file has it, equal to pts where it has none
    size: np.ndarray  # int32, bytes
    position: np.ndarray  # int64: where its bytes lie in the file, -1 if not in one piece
    crc: np.ndarray  # uint32: of its bytes (CRC-32 of zlib); 0 if they were not read (a header's table), or by chance
    start: np.ndarray  # bool: decoding can begin here
    skippable: np.ndarray  # bool: may be left out when its frame is not wanted
    shown: np.ndarray  # bool: its frame comes out (False: the container says to discard it)
    of_frame: np.ndarray  # int32: the packet of each frame, in presentation order
    moved: np.ndarray | None = None  # int64: what is added to the file's pts, where its clock jumps; None: nothing

    def file_times(self) -> np.ndarray:
        """Returns the presentation times as the file has them, int64; not unique where its clock jumped."""
        return self.pts if self.moved is None else self.pts - self.moved

    def reorder_depth(self) -> int:
        """Returns the most packets that are decoded before a frame and shown after it, as a decoder's delay counts.

        No decoder holds more than 16 frames (H.264, HEVC), so that a larger number is not counted to its end.
        """
        depth = 0
        later: list[int] = []
        for pts in self.pts.tolist():
            later = [other for other in later if other > pts]
            depth = max(depth, len(later))
            if depth > 16:
                break
            later.append(pts)
        return depth


@dataclass
class Index:
    """The index of one video stream; kept for the next reader of the same file, or stored on disk."""

    stream: int
    timestamps: np.ndarray  # float64 seconds, one for each frame, sorted
    time_base: float  # seconds of one unit of the packets' clock
    fps: float
    method: str  # for people
    packets: Packets | None  # None: frames are found by counting
    bad_packets: int = 0
    coded: tuple[int, int] = (0, 0)  # height and width before rotation, of the first frame
    turn: tuple[bool, bool, bool] = (False, False, False)  # transpose, flip vertically, flip horizontally
    decoder: DecoderFacts | None = None  # None: only the container's own decoder gives the right frames
    # int32: which of the frames that decoding gives, counted, is shown as each frame; None: one is shown as each.
    given: np.ndarray | None = None

    @property
    def height(self) -> int:
        """Pixels, after the rotation that the file asks for."""
        return self.coded[1 if self.turn[0] else 0]

    @property
    def width(self) -> int:
        """Pixels, after the rotation that the file asks for."""
        return self.coded[0 if self.turn[0] else 1]

    @property
    def nbytes(self) -> int:
        """Roughly the memory that it takes."""
        total = self.timestamps.nbytes + 1024 + (0 if self.given is None else self.given.nbytes)
        if self.packets is not None:
            total += len(self.packets.pts) * (8 + 8 + 4 + 8 + 4 + 3 + 4 + 8)
        return total


class _IndexCache:
    """The latest indices of a process, bounded by their memory; a changed file (size or time) is another file."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.entries: OrderedDict[tuple[str, int, int], Index] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: tuple[str, int, int] | None) -> Index | None:
        if key is None:
            return None
        with self.lock:
            found = self.entries.get(key)
            if found is not None:
                self.entries.move_to_end(key)
            return found

    def put(self, key: tuple[str, int, int] | None, index: Index) -> None:
        if key is None:
            return
        with self.lock:
            old = self.entries.pop(key, None)
            self.used += index.nbytes - (old.nbytes if old is not None else 0)
            self.entries[key] = index
            while self.used > self.limit and len(self.entries) > 1:
                _, dropped = self.entries.popitem(last=False)
                self.used -= dropped.nbytes

    def clear(self) -> None:
        with self.lock:
            self.entries.clear()
            self.used = 0


index_cache = _IndexCache(_CACHE_BYTES)


def average_rate(timestamps: np.ndarray, stated: float | None) -> float:
    """Returns frames per second: the container's figure if the time stamps bear it out, else what they give."""
    stated = stated if stated is not None and 0 < stated < 1e6 else None
    span = float(timestamps[-1] - timestamps[0])
    if len(timestamps) < 2 or span <= 0:
        return stated or DEFAULT_FPS
    measured = (len(timestamps) - 1) / span
    # Containers state 29.97 as 30000/1001 where time stamps in whole milliseconds give 29.9701; but some state 1000.
    return stated if stated is not None and abs(stated / measured - 1) < 0.01 else measured
