"""VideoReader: exactly the frames that were asked for, from any video file that FFmpeg can read.

The frames of a video are the frames that a decode of the whole file gives, in the order in which they are shown, going
on past packets that the decoder refuses. Frame ``i`` of a reader is frame ``i`` of that list, however it was found.

There are two ways to find it:

* **By time stamps.** A scan that reads all packets but decodes only the first frame (a few ms for a Kinetics file)
  gives the time of every frame and the places where decoding can begin. To read frames, decode from the nearest such
  place, leave out the packets that nothing refers to and nobody asked for, and match the frames by their time stamps.
* **By counting.** Decode from the start of the file and count.

The first is only right if the container tells the truth, so it is used for H.264, HEVC, VP8 and VP9, whose packets show
without decoding how many frames they hold, and only if every packet has a time stamp of its own and the structure that
it should have. While frames are read, the decoder must give exactly the frames that the scan foretold, in that order
and without an error; if it ever does not, the reader goes back to counting. `VideoReader.index_method` tells which way
is used, and why. Known reasons to count: AVI (it has decode times only: files with B-frames come out shuffled when
sorted by them), missing or repeated time stamps, damaged or truncated packets, no key frame at the beginning.

What is left: damage that only decoding shows (a flipped bit in a slice header) can make a frame fail that the scan has
counted. It is found when the decoder comes to it. The reader then has fewer frames than it had when it was opened, and
says so if one of those is asked for; the next reader of that file in this process has the true number from the start.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import torch

from stvid.data.packets import PARSERS, nal_length_size
from stvid.data.stored_index import StoredIndex
from stvid.errors import MissingFileError, StvidError, UnknownNameError, VideoError, nearest

__all__ = ["BACKENDS", "IMAGE_EXTENSIONS", "Index", "Packets", "VideoReader", "available_backends", "scan"]

_T = TypeVar("_T")

BACKENDS = ("av", "decord", "torchcodec", "frames")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

_INSTALL = {
    "av": "pip install 'av>=15'",
    "decord": "pip install 'stvid[decord]'",
    "torchcodec": "pip install 'stvid[torchcodec]', and FFmpeg's libraries: apt-get install ffmpeg",
}

# The largest side that H.264 (level 6.2) and HEVC (level 7.2) can code is 16,888 samples. One RGB frame of 2^28 pixels
# is 805 MB: a header that asks for more is damage or an attack, not a video.
MAX_SIDE = 16_888
MAX_PIXELS = 2**28
# 2^22 frames are 39 hours at 30 fps; their index takes 150 MB. More comes from damaged files and frame bombs.
MAX_FRAMES = 2**22

# A worker must not be held up for ever by one file: longer than any file within the limits above takes, unless damage
# makes FFmpeg crawl.
TIME_LIMIT = 600.0

# What a reader that counts may keep of the frames that it decoded for counting, so that short files are decoded once.
_KEEP_BYTES = 128 * 2**20
# All scans that a process remembers: about 6,000 files of 300 frames.
_CACHE_BYTES = 64 * 2**20
# A file that gives this many read errors in a row is taken to be at its end.
_MAX_READ_ERRORS = 1000

# What keeps FFmpeg from decoding the first frames of a file that it opens (0.5 to 3 ms of a Kinetics file), which it
# does to find what the header may lack: the size, and by how many frames the decoder must delay its output.
_QUICK_OPTIONS = {"skip_frame": "all", "probesize": "32", "analyzeduration": "0"}

_FRAMES_FPS = 25.0

# Demuxers that follow references to other files or URLs, or that make pictures of text.
_REFUSED_FORMATS = frozenset({"hls", "applehttp", "dash", "concat", "tty", "sdp", "rtsp", "imf", "webm_dash_manifest"})


# ------------------------------------------------------------------------------------------------------------ the index


@dataclass
class Packets:
    """The packets of a stream in file order, as far as seeking needs them."""

    pts: np.ndarray  # int64, units of the stream's time base
    dts: np.ndarray  # int64; equal to pts where the container has none
    size: np.ndarray  # int32, bytes
    start: np.ndarray  # bool: decoding can begin here
    skippable: np.ndarray  # bool: may be left out when its frame is not wanted
    shown: np.ndarray  # bool: its frame comes out (False: the container says to discard it)
    of_frame: np.ndarray  # int32: the packet of each frame, in presentation order


@dataclass
class Index:
    """What is known of one video stream; kept for the next reader of the same file, or stored on disk."""

    stream: int
    timestamps: np.ndarray  # float64 seconds, one a frame, sorted
    time_base: float  # seconds of one unit of the packets' clock
    fps: float
    method: str  # for people
    packets: Packets | None  # None: frames are found by counting
    bad_packets: int = 0
    coded: tuple[int, int] = (0, 0)  # height and width before rotation, of the first frame
    turn: tuple[bool, bool, bool] = (False, False, False)  # transpose, flip vertically, flip horizontally
    quick: bool = False  # the container's header tells the decoder all that it needs: no probing when opened again

    @property
    def nbytes(self) -> int:
        """Roughly the memory that it takes."""
        total = self.timestamps.nbytes + 1024
        if self.packets is not None:
            total += len(self.packets.pts) * (8 + 8 + 4 + 3 + 4)
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


_cache = _IndexCache(_CACHE_BYTES)


class _Mismatch(Exception):
    """The decoder did not give what the scan foretold. Never leaves this module."""


def _average_rate(timestamps: np.ndarray, stated: float | None) -> float:
    """Returns frames per second: the container's figure if the time stamps bear it out, else what they give."""
    stated = stated if stated is not None and 0 < stated < 1e6 else None
    span = float(timestamps[-1] - timestamps[0])
    if len(timestamps) < 2 or span <= 0:
        return stated or _FRAMES_FPS
    measured = (len(timestamps) - 1) / span
    # Containers state 29.97 as 30000/1001 where time stamps in whole milliseconds give 29.9701; but some state 1000.
    return stated if stated is not None and abs(stated / measured - 1) < 0.01 else measured


# ------------------------------------------------------------------------------------------------------ colour and turn

# AVColorSpace (libavutil/pixfmt.h) -> SWS_CS_* (libswscale/swscale.h). Anything else, unspecified included, is taken
# for BT.601, which is swscale's rule (SWS_CS_DEFAULT) and so that of ffmpeg, OpenCV and decord.
_SWS_COLORSPACE = {1: 1, 4: 4, 7: 7, 9: 9}
_SWS_DEFAULT = 5
_RANGE_LIMITED, _RANGE_FULL = 1, 2


class _RgbConverter:
    """Converts frames to RGB with the matrix and the range that the file states."""

    def __init__(self, av: ModuleType) -> None:
        from av.video.reformatter import VideoReformatter

        self.reformatter = VideoReformatter()
        # Since PyAV 17, swscale takes matrix and range from the frame; before, PyAV left both at BT.601, limited,
        # unless told. `threads` came with it: 1, because a worker has one core and must leave no threads behind.
        self.reads_frame = int(av.__version__.split(".")[0]) >= 17

    def __call__(self, frame: Any, height: int, width: int) -> np.ndarray:
        """Returns the frame as uint8 (height, width, 3); a view of memory that lives as long as the array."""
        if self.reads_frame:
            rgb = self.reformatter.reformat(frame, width, height, "rgb24", threads=1)
        else:
            matrix = _SWS_COLORSPACE.get(int(frame.colorspace), _SWS_DEFAULT)
            full = int(frame.color_range) == _RANGE_FULL or frame.format.name.startswith("yuvj")
            rgb = self.reformatter.reformat(
                frame,
                width,
                height,
                "rgb24",
                src_colorspace=matrix,
                # PyAV applies the matrix only if the two differ; RGB has none, so any other one will do.
                dst_colorspace=_SWS_DEFAULT if matrix != _SWS_DEFAULT else 1,
                src_color_range=_RANGE_FULL if full else _RANGE_LIMITED,
                dst_color_range=_RANGE_FULL,
            )
        plane: Any = rgb.planes[0]
        return np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width].reshape(height, width, 3)


def _display_turn(frame: Any) -> tuple[bool, bool, bool]:
    """Reads the display matrix: (transpose, flip vertically, flip horizontally), to be done in this order.

    The matrix maps a stored pixel (x, y) to the shown (a x + c y, b x + d y) (ISO/IEC 14496-12, 8.3.2; FFmpeg
    libavutil/display.h). Quarter turns and mirrors are applied; any other matrix (an odd angle, damage) is left out.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = (np.frombuffer(bytes(data), np.int32) / 2**16).tolist()
            if abs(a) == abs(d) == 1 and b == c == 0:
                return False, d < 0, a < 0
            if abs(b) == abs(c) == 1 and a == d == 0:
                return True, b < 0, c < 0
    return False, False, False


def _turned(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """Applies `_display_turn` to an image (H, W, 3); returns a view."""
    transpose, vertical, horizontal = turn
    if transpose:
        image = image.transpose(1, 0, 2)
    return image[:: -1 if vertical else 1, :: -1 if horizontal else 1]


# ------------------------------------------------------------------------------------------------------------- backends


class _Source(Protocol):
    """One open video, as a backend gives it."""

    @property
    def timestamps(self) -> np.ndarray: ...

    @property
    def fps(self) -> float: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def method(self) -> str: ...

    @property
    def bad_packets(self) -> int: ...

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns the frames at indices that are within the range: uint8 (N, H, W, 3)."""

    def close(self) -> None:
        """Frees everything; may be called twice."""


class _AvSource:
    """PyAV, the default."""

    def __init__(
        self,
        source: str | bytes,
        name: str,
        num_threads: int,
        time_limit: float = TIME_LIMIT,
        stored: StoredIndex | None = None,
    ) -> None:
        self.av = _import_backend("av")
        self.time_limit = time_limit
        self.deadline = time.monotonic() + time_limit
        self.convert = _RgbConverter(self.av)
        self.source = source
        self.name = name
        self.num_threads = num_threads
        self.container: Any = None
        self.stream: Any = None
        self.file: Any = None  # only for names that FFmpeg cannot be given
        self.kept: list[Any] = []  # frames that counting has decoded
        self.numbers: dict[int, int] = {}  # time stamp -> packet number
        self.quick = False  # open the container without probing
        self.key: tuple[str, int, int] | None = None
        if isinstance(source, str):
            status = os.stat(source)
            self.key = (os.path.abspath(source), status.st_mtime_ns, status.st_size)
        try:
            self.index = self._find_index(stored)
        except BaseException:
            self.close()
            raise

    def _find_index(self, stored: StoredIndex | None) -> Index:
        cached = _cache.get(self.key)
        if cached is None and stored is not None and self.key is not None:
            cached = stored.find(self.key[0], self.key[2])
            if cached is not None:
                _cache.put(self.key, cached)
        if cached is not None:
            self.quick = cached.quick
            self._open(cached.stream)
            return cached
        try:
            index = self._index_by_scan()
        except _Mismatch as reason:
            self.quick = False
            return self._index_by_counting(str(reason))
        _cache.put(self.key, index)
        return index

    # What the reader shows of the index.

    @property
    def timestamps(self) -> np.ndarray:
        return self.index.timestamps

    @property
    def fps(self) -> float:
        return self.index.fps

    @property
    def height(self) -> int:
        return self.index.coded[1 if self.index.turn[0] else 0]

    @property
    def width(self) -> int:
        return self.index.coded[0 if self.index.turn[0] else 1]

    @property
    def method(self) -> str:
        return self.index.method

    @property
    def bad_packets(self) -> int:
        return self.index.bad_packets

    # Opening.

    def _open(self, stream_index: int | None = None, *, threads: int | None = None) -> None:
        """Opens the container at its start, closing an earlier one."""
        self.close_container()
        # "file:" keeps FFmpeg from taking a name such as "a:b.mp4" for a protocol. Broken metadata is no broken video.
        source: Any = io.BytesIO(self.source) if isinstance(self.source, bytes) else f"file:{self.source}"
        if isinstance(self.source, str):
            try:
                self.source.encode()
            except UnicodeEncodeError:  # a file name that is not UTF-8
                source = self.file = open(self.source, "rb")  # noqa: SIM115 - the container reads from it
        try:
            # A playlist under a video's name must not make FFmpeg fetch what it lists.
            options = {"protocol_whitelist": "file"}
            self.container = self.av.open(
                source,
                metadata_errors="replace",
                container_options=options,
                options=_QUICK_OPTIONS if self.quick else {},
            )
        except self.av.error.FFmpegError as error:
            self.close_container()
            raise VideoError(self.name, f"not a video, or cut off before it begins ({_why(error)})") from error
        try:
            self._choose_stream(stream_index)
            self.stream.codec_context.thread_count = threads or self.num_threads
            self.stream.codec_context.thread_type = "FRAME" if (threads or self.num_threads) > 1 else "NONE"
        except BaseException:
            self.close_container()
            raise

    def _choose_stream(self, stream_index: int | None) -> None:
        formats = set(self.container.format.name.split(","))
        if formats & _REFUSED_FORMATS:
            raise VideoError(self.name, f"{self.container.format.name} is not a video file")
        if stream_index is not None:
            self.stream = self.container.streams[stream_index]
            return
        picture = self.av.stream.Disposition.attached_pic  # a cover
        videos = [s for s in self.container.streams.video if picture not in s.disposition]
        if not videos:
            kinds = sorted({str(s.type) for s in self.container.streams})
            found = "only " + " and ".join(kinds) if kinds else "nothing"
            raise VideoError(self.name, f"has no video stream, {found}")
        best = self.container.streams.best("video")
        if best is None or best.index not in {s.index for s in videos}:
            best = videos[0]
        self.stream = best
        context = best.codec_context
        if context is None:
            raise VideoError(self.name, "FFmpeg has no decoder for its video stream")
        # The size in the header may be missing, and be known when a frame is decoded.
        _check_size(self.name, context.height or 1, context.width or 1)

    def close_container(self) -> None:
        if self.container is not None:
            self.container.close()
            self.container = None
        self.stream = None
        if self.file is not None:
            self.file.close()
            self.file = None

    def close(self) -> None:
        self.kept = []
        self.close_container()

    # Indexing.

    def _packets(self) -> Iterator[Any]:
        """Yields the stream's packets from where the container stands, past read errors."""
        errors = 0
        while True:
            try:
                for packet in self.container.demux(self.stream):
                    if time.monotonic() > self.deadline:
                        raise VideoError(self.name, f"not read within {self.time_limit:g} s; damaged, or very long")
                    if packet.size:  # an empty packet would tell the decoder that the stream has ended
                        errors = 0
                        yield packet
                return
            except (self.av.error.FFmpegError, IndexError):  # PyAV: IndexError at a stream that begins within the file
                errors += 1
                if errors > _MAX_READ_ERRORS:
                    return

    def _index_by_scan(self) -> Index:
        """Reads all packets and decodes only the first frame.

        Raises:
            _Mismatch: If the packets do not give a reliable index.
        """
        self._open()
        context = self.stream.codec_context
        codec = context.name
        read_units = PARSERS.get(codec)
        if read_units is None:
            raise _Mismatch(f"packets of {codec} do not show what they hold")
        if "avi" in self.container.format.name.split(","):
            raise _Mismatch("AVI has no presentation times")
        length_size = nal_length_size(codec, context.extradata)
        pts, dts, sizes, starts, skippable, shown, parameters = [], [], [], [], [], [], []
        for packet in self._packets():
            if packet.pts is None:
                raise _Mismatch("packets without a time stamp")
            if packet.is_corrupt:
                raise _Mismatch("damaged packets")
            units = read_units(bytes(packet), length_size)
            if units is None or units.frames != 1:
                raise _Mismatch("packets that are damaged or hold no frame or several")
            pts.append(packet.pts)
            dts.append(packet.pts if packet.dts is None else packet.dts)
            sizes.append(packet.size)
            starts.append(units.random_access)
            skippable.append(units.skippable)
            shown.append(not packet.is_discard)
            parameters.append(units.parameters)
            if len(pts) > MAX_FRAMES:
                raise VideoError(self.name, f"more than {MAX_FRAMES} frames: cut it into shorter files")
        if not pts or not any(shown):
            raise _Mismatch("no packets")
        if len(set(pts)) != len(pts):
            raise _Mismatch("repeated time stamps")
        if not starts[0] or min(pts) < pts[0]:
            raise _Mismatch("the stream does not begin with a key frame")
        start = np.array(starts)
        brings = np.array(parameters)
        if brings.any():
            # Parameter sets within the stream: a start must bring its own, and no frame may change them on its way.
            start = start & brings if not (brings & ~start).any() else np.zeros_like(start)
            start[0] = True
        times = np.array(pts, np.int64)
        visible = np.flatnonzero(shown)
        of_frame = visible[np.argsort(times[visible], kind="stable")].astype(np.int32)
        packets = Packets(
            pts=times,
            dts=np.array(dts, np.int64),
            size=np.array(sizes, np.int32),
            start=start,
            skippable=np.array(skippable),
            shown=np.array(shown),
            of_frame=of_frame,
        )
        time_base = float(self.stream.time_base)
        timestamps = times[of_frame] * time_base
        rate = self.stream.average_rate
        index = Index(
            stream=self.stream.index,
            timestamps=timestamps,
            time_base=time_base,
            fps=_average_rate(timestamps, float(rate) if rate else None),
            method="time stamps",
            packets=packets,
        )
        # The first frame gives size and rotation, and shows that the stream can be decoded at all.
        shown_first = int(of_frame[0])
        index.quick = self.quick = self._reopens_quickly()
        for _, frame in self._decode_span(packets, self._start_of(packets, shown_first), {shown_first}):
            self._take_shape(index, frame)
        return index

    def _reopens_quickly(self) -> bool:
        """Opens the file again without probing, if that gives the same stream and decoder; else as before."""

        def facts() -> tuple[Any, ...]:
            context = self.stream.codec_context
            sides = (context.width, context.height, context.has_b_frames)
            clock = (self.stream.time_base, self.stream.start_time)
            return (len(self.container.streams), self.stream.index, context.name, context.extradata, *sides, *clock)

        stream, probed = self.stream.index, facts()
        self.quick = True
        try:
            self._open(stream)
            if facts() == probed and self.stream.codec_context.skip_frame in ("DEFAULT", "default"):
                return True
        except (VideoError, IndexError, self.av.error.FFmpegError):
            pass  # the header does not suffice
        self.quick = False
        self._open(stream)
        return False

    def _index_by_counting(self, reason: str) -> Index:
        """Decodes the whole file and counts its frames; keeps them if they are few.

        Raises:
            VideoError: If no frame can be decoded.
        """
        times: list[int | None] = []
        kept: list[Any] | None = []
        kept_bytes = 0
        index = Index(0, np.zeros(0), 0.0, 0.0, f"counting ({reason})", None)
        problems: list[str] = []
        for frame in self._decode_all(problems):
            if not times:
                self._take_shape(index, frame)
            times.append(frame.pts)
            if len(times) > MAX_FRAMES:
                raise VideoError(self.name, f"more than {MAX_FRAMES} frames: cut it into shorter files")
            # What damaged areas show is what the decoder's buffers held before, and that depends on which are free: a
            # frame that is kept would change later ones.
            if frame.is_corrupt or problems:
                kept = None
            if kept is not None:
                kept_bytes += sum(plane.buffer_size for plane in frame.planes)
                kept.append(frame)
                if kept_bytes > _KEEP_BYTES:
                    kept = None
        if not times:
            detail = f"none of its frames can be decoded ({problems[-1]})" if problems else "it holds no frames"
            raise VideoError(self.name, detail)
        rate = self.stream.average_rate
        stated = float(rate) if rate else None
        known = np.array([t for t in times if t is not None], np.float64)
        if len(known) == len(times):
            # The frames come in the order in which they are shown; their time stamps may not (AVI).
            index.timestamps = np.sort(known) * float(self.stream.time_base)
        else:
            first = float(known.min()) * float(self.stream.time_base) if len(known) else 0.0
            step = 1 / (stated if stated is not None and 0 < stated < 1e6 else _FRAMES_FPS)
            index.timestamps = first + step * np.arange(len(times))
        index.fps = _average_rate(index.timestamps, stated)
        index.stream = self.stream.index
        index.bad_packets = len(problems)
        self.kept = [] if kept is None or problems else kept
        _cache.put(self.key, index)
        return index

    def _take_shape(self, index: Index, frame: Any) -> None:
        _check_size(self.name, frame.height, frame.width)
        index.coded = (frame.height, frame.width)
        index.turn = _display_turn(frame)

    # Decoding.

    def _decode_all(self, problems: list[str]) -> Iterator[Any]:
        """Yields every frame of the file in decoder order, which is presentation order; lists refused packets.

        With one thread: several may drop good frames that are in flight when a packet is refused.
        """
        self._open(threads=1)
        context = self.stream.codec_context
        for packet in self._packets():
            try:
                frames = packet.decode()
            except self.av.error.FFmpegError as error:
                problems.append(_why(error))
                continue
            yield from frames
        try:
            frames = context.decode(None)
        except self.av.error.FFmpegError as error:
            problems.append(_why(error))
            return
        yield from frames

    def _packets_from(self, packets: Packets, first: int) -> Iterator[tuple[int, Any]]:
        """Yields (number, packet) from packet number `first` on, wherever the container's seek lands."""
        if not self.numbers:
            self.numbers = {pts: number for number, pts in enumerate(packets.pts.tolist())}
        for target in dict.fromkeys((int(packets.pts[first]), int(packets.dts[first]))):
            try:
                self.container.seek(target, stream=self.stream, backward=True)
            except self.av.error.FFmpegError:
                continue
            started = False
            for packet in self._packets():
                number = self.numbers.get(packet.pts, -1)
                if not started:
                    if number > first:
                        break  # too far: try the earlier target, or else the start of the file
                    if number != first or packet.size != packets.size[first]:
                        continue
                    started = True
                yield number, packet
            if started:
                return
        self._open(self.stream.index)
        for number, packet in enumerate(self._packets()):
            if number >= first:
                yield self.numbers.get(packet.pts, -1), packet

    def _decode_span(self, packets: Packets, first: int, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        """Decodes from packet `first`, a start, to the packets `wanted`; yields (packet number, frame) for each.

        Packets that are skippable and not wanted do not go to the decoder. By the standard that changes no other frame
        (H.264, 7.4.1: nal_ref_idc 0 is not used for inter prediction). After the last wanted packet the decoder is
        drained, so that no later packet needs to be decoded to get the delayed frames out.

        Raises:
            _Mismatch: If the decoder gives anything but the frames of the packets that it got, in the order of their
                time stamps, or reports an error.
        """
        last = max(wanted)
        numbers = np.arange(first, last + 1)
        sent = ~packets.skippable[numbers] | np.isin(numbers, list(wanted))
        # Frames that are shown before the start but stored after it may refer to what lies before it: leave them out.
        sent &= packets.pts[numbers] >= packets.pts[first]
        expected = numbers[sent & packets.shown[numbers]]
        expected = expected[np.argsort(packets.pts[expected], kind="stable")].tolist()
        position = 0
        try:
            for frame in self._feed(packets, first, sent.tolist()):
                if position >= len(expected) or frame.pts != packets.pts[expected[position]] or frame.is_corrupt:
                    raise _Mismatch("the decoder does not give the frames that the packets promise")
                if expected[position] in wanted:
                    yield expected[position], frame
                position += 1
        except self.av.error.FFmpegError as error:
            raise _Mismatch(f"a packet cannot be decoded ({_why(error)})") from error
        if position != len(expected):
            raise _Mismatch("the decoder gives fewer frames than the packets promise")

    def _feed(self, packets: Packets, first: int, sent: list[bool]) -> Iterator[Any]:
        """Sends packets `first`, `first` + 1, ... where `sent` says so, then the end; yields what the decoder gives."""
        stream = self._packets_from(packets, first)
        for number, send in enumerate(sent, start=first):
            found, packet = next(stream, (-1, None))
            if packet is None or found != number:
                raise _Mismatch("reading again gives other packets")
            if packet.size != packets.size[number]:
                raise _Mismatch("the file has changed since it was scanned")
            if send:
                yield from packet.decode()
        yield from self.stream.codec_context.decode(None)

    @staticmethod
    def _start_of(packets: Packets, number: int) -> int:
        """Returns the last start from which a packet can be decoded: not after it, neither in file nor in time."""
        starts = np.flatnonzero(packets.start[: number + 1])
        return int(starts[packets.pts[starts] <= packets.pts[number]][-1])

    def read(self, indices: Sequence[int]) -> np.ndarray:
        self.deadline = time.monotonic() + self.time_limit
        if self.index.packets is not None:
            try:
                return self._read_by_time(indices, self.index.packets)
            except _Mismatch as reason:
                if self.quick:  # what the header says of the decoder may have been wrong
                    self.index.quick = self.quick = False
                    self._open(self.index.stream)
                    return self.read(indices)  # with its packets again
                self.index = self._index_by_counting(str(reason))
                count = len(self.index.timestamps)
                if max(indices, default=0) >= count:
                    raise VideoError(
                        self.name,
                        f"only {count} frames can be decoded, fewer than its packets promise; open it again for the "
                        "true number",
                    ) from reason
        return self._read_by_counting(indices)

    def _empty(self, count: int) -> np.ndarray:
        return np.empty((count, self.height, self.width, 3), np.uint8)

    def _store(self, out: np.ndarray, places: list[int], frame: Any) -> None:
        try:
            image = _turned(self.convert(frame, *self.index.coded), self.index.turn)
        except self.av.error.FFmpegError as error:
            reason = f"its {frame.format.name} frames cannot be converted to RGB ({_why(error)})"
            raise VideoError(self.name, reason) from error
        for place in places:
            out[place] = image

    def _read_by_time(self, indices: Sequence[int], packets: Packets) -> np.ndarray:
        out = self._empty(len(indices))
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(int(packets.of_frame[index]), []).append(place)
        spans: dict[int, set[int]] = {}
        for number in places:
            spans.setdefault(self._start_of(packets, number), set()).add(number)
        for start in sorted(spans):
            for number, frame in self._decode_span(packets, start, spans[start]):
                self._store(out, places[number], frame)
        return out

    def _read_by_counting(self, indices: Sequence[int]) -> np.ndarray:
        out = self._empty(len(indices))
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        left = len(places)
        frames: Iterable[Any] = self.kept or self._decode_all([])
        for number, frame in enumerate(frames):
            if left == 0:
                break
            if number in places:
                self._store(out, places[number], frame)
                left -= 1
        if left:
            raise VideoError(self.name, "gave fewer frames than when it was opened: has the file changed?")
        return out


def _why(error: Exception) -> str:
    """Returns FFmpeg's own words without the number and the function that PyAV puts around them."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _check_size(name: str, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise VideoError(name, f"its frames are {width} x {height} pixels")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise VideoError(name, f"its frames are {width} x {height} pixels, more than a video can have")


class _OtherSource:
    """A decoder of another package, which is asked for frames by number; the numbers come from PyAV's index.

    So all backends have the same frames at the same times, or say that they do not.
    """

    bad_packets = 0

    def __init__(self, source: str | bytes, name: str, num_threads: int, stored: StoredIndex | None = None) -> None:
        self.name = name
        reference = _AvSource(source, name, 1, stored=stored)
        self.timestamps, self.fps = reference.timestamps, reference.fps
        self.height, self.width = reference.height, reference.width
        reference.close()
        count, height, width = self._guarded(self._open, source, num_threads)
        if count != len(self.timestamps) or (height, width) != (self.height, self.width):
            raise VideoError(
                name,
                f"{self.method} finds {count} frames of {width} x {height} pixels where there are "
                f"{len(self.timestamps)} of {self.width} x {self.height}; use backend 'av'",
            )

    method = ""

    def _open(self, source: str | bytes, num_threads: int) -> tuple[int, int, int]:
        """Opens the file; returns number, height and width of its frames."""
        raise NotImplementedError

    def _frames(self, indices: list[int]) -> np.ndarray:
        """Returns frames at ascending indices: uint8 (N, H, W, 3)."""
        raise NotImplementedError

    def _guarded(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Calls, and makes a VideoError of whatever the package raises for bad files (decord has its own kinds)."""
        try:
            return call(*arguments)
        except (StvidError, MemoryError):
            raise
        except Exception as error:
            raise VideoError(self.name, f"{self.method} cannot read it ({_why(error)})") from error

    def read(self, indices: Sequence[int]) -> np.ndarray:
        if not indices:
            return np.empty((0, self.height, self.width, 3), np.uint8)
        unique = sorted(set(indices))
        frames = self._guarded(self._frames, unique)
        return frames[np.searchsorted(unique, indices)]

    def close(self) -> None:
        self.decoder: Any = None


class _DecordSource(_OtherSource):
    """decord. It aborts the process on some damaged files: for comparisons, not for training."""

    method = "decord"

    def _open(self, source: str | bytes, num_threads: int) -> tuple[int, int, int]:
        decord = _import_backend("decord")
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        self.decoder = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=num_threads)
        count = len(self.decoder)
        height, width = self.decoder[0].shape[:2] if count else (0, 0)
        return count, height, width

    def _frames(self, indices: list[int]) -> np.ndarray:
        return self.decoder.get_batch(indices).asnumpy()


class _TorchcodecSource(_OtherSource):
    """torchcodec, in its exact mode."""

    method = "torchcodec"

    def _open(self, source: str | bytes, num_threads: int) -> tuple[int, int, int]:
        torchcodec = _import_backend("torchcodec")
        self.decoder = torchcodec.decoders.VideoDecoder(
            source, dimension_order="NHWC", num_ffmpeg_threads=num_threads, seek_mode="exact"
        )
        count = len(self.decoder)
        height, width = self.decoder[0].shape[:2] if count else (0, 0)
        return count, height, width

    def _frames(self, indices: list[int]) -> np.ndarray:
        return self.decoder.get_frames_at(indices).data.numpy()


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key in which frame_2 comes before frame_10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


class _FramesSource:
    """A folder of images, in the natural order of their names, shown at 25 frames a second."""

    method = "image files"
    bad_packets = 0
    fps = _FRAMES_FPS

    def __init__(self, source: str, name: str, num_threads: int) -> None:
        self.name = name
        try:
            names = [n for n in os.listdir(source) if n.lower().endswith(IMAGE_EXTENSIONS) and not n.startswith(".")]
        except NotADirectoryError as error:
            raise VideoError(name, "is a file; backend='frames' reads a folder of images") from error
        except OSError as error:
            raise VideoError(name, f"cannot be read ({_why(error)})") from error
        if not names:
            raise VideoError(name, f"holds no images ({', '.join(IMAGE_EXTENSIONS)})")
        self.files = [os.path.join(source, n) for n in sorted(names, key=_natural)]
        self.timestamps = np.arange(len(self.files)) / self.fps
        first = self._image(0)
        self.height, self.width = first.shape[:2]

    def _image(self, index: int) -> np.ndarray:
        from PIL import Image, ImageOps

        path = self.files[index]
        try:
            with Image.open(path) as image:
                _check_size(path, image.height, image.width)
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(path, f"is no readable image ({_why(error)})") from error

    def read(self, indices: Sequence[int]) -> np.ndarray:
        out = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        unique, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        for number, index in enumerate(unique.tolist()):
            image = self._image(index)
            if image.shape != out.shape[1:]:
                raise VideoError(
                    self.files[index],
                    f"is {image.shape[1]} x {image.shape[0]} pixels, the first image of its folder "
                    f"{self.width} x {self.height}",
                )
            out[places == number] = image
        return out

    def close(self) -> None:
        self.files = []


def _import_backend(name: str) -> ModuleType:
    """Imports a decoder. Lazily, inside the worker: some of them do not survive a fork.

    Raises:
        StvidError: If it is not installed or does not load; the message has the command that installs it.
    """
    try:
        if name == "av":
            import av
            import av.error
            import av.stream

            if int(av.__version__.split(".")[0]) < 15:  # before: no disposition; before 14: no BT.2020 matrix
                raise ImportError(f"stvid needs av 15 or newer, found {av.__version__}")
            return av
        if name == "decord":
            import decord

            return decord
        import torchcodec
        import torchcodec.decoders

        try:
            torchcodec.decoders.VideoDecoder(b"\x00")
        except RuntimeError as error:  # recent versions load FFmpeg's libraries only now
            if "libtorchcodec" in str(error):
                raise
        except Exception:  # it runs, and refuses this as a video, as it should
            pass
        return torchcodec
    except (ImportError, RuntimeError, OSError) as error:  # torchcodec raises RuntimeError where FFmpeg is missing
        raise StvidError(f"backend {name!r} cannot be used ({_why(error)}); install it: {_INSTALL[name]}") from error


def scan(path: str | os.PathLike[str]) -> Index:
    """Returns the index of a video file, for `stvid.data.stored_index.write_index`.

    Raises:
        MissingFileError: If there is nothing at the path.
        VideoError: As `VideoReader` raises it.
    """
    name = os.fspath(path)
    _check_file(name, folder=False)
    source = _AvSource(name, name, 1)
    try:
        return source.index
    finally:
        source.close()


def available_backends() -> dict[str, str]:
    """Returns for each backend an empty string if it can be used, else the reason and the command that installs it."""
    found = {}
    for name in BACKENDS:
        found[name] = ""
        if name != "frames":
            try:
                _import_backend(name)
            except StvidError as error:
                found[name] = str(error)
    return found


# ----------------------------------------------------------------------------------------------------------- the reader


class VideoReader:
    """Random access to the frames of one video.

    A plain short-lived object: make it in the process that reads, read, close. Not picklable, not for several threads.

    Args:
        source: Path of a video file; for ``backend="frames"`` the path of a folder of images, which are taken in the
            natural order of their names (2 before 10) at 25 frames a second. Or the bytes of a video file, or a binary
            file object, which is read to its end.
        backend: ``av`` (PyAV, the default, exact for every file), ``decord``, ``torchcodec`` (optional: fast readers
            with their own ideas of damaged files) or ``frames``.
        num_threads: Decoder threads. One is best in a data-loader worker.
        time_limit: Seconds after which opening the file, or one call for frames, is given up (backend av).
        index: Indices that were stored earlier, so that the file need not be scanned.

    Attributes:
        backend: The name of the backend.
        source_name: The path, or ``<bytes>``.

    Raises:
        MissingFileError: If there is nothing at the path.
        VideoError: If it is a folder, empty, not a video, without a video stream, not decodable, or absurdly large.
        StvidError: If the backend is not installed; the message has the command that installs it.
        UnknownNameError: If there is no such backend.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        backend: str = "av",
        num_threads: int = 1,
        time_limit: float = TIME_LIMIT,
        index: StoredIndex | None = None,
    ) -> None:
        if backend not in BACKENDS:
            hint = nearest(backend, BACKENDS)
            raise UnknownNameError(f"backend {backend!r} does not exist; use one of {', '.join(BACKENDS)}{hint}")
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}: at least 1 is needed")
        self.backend = backend
        self._source: _Source | None = None
        if not isinstance(source, (str, os.PathLike)) and hasattr(source, "read"):
            source = source.read()
        if isinstance(source, (bytes, bytearray, memoryview)):
            self.source_name = "<bytes>"
            content = bytes(source)
            if backend == "frames":
                raise VideoError(self.source_name, "backend='frames' reads a folder of images, not bytes")
            if not content:
                raise VideoError(self.source_name, "is empty (0 bytes)")
            self._source = self._make(content, num_threads, time_limit, None)
            return
        path = os.fspath(source)
        self.source_name = path
        _check_file(path, folder=backend == "frames")
        self._source = self._make(path, num_threads, time_limit, index)

    def _make(self, source: str | bytes, num_threads: int, time_limit: float, index: StoredIndex | None) -> _Source:
        if self.backend == "av":
            return _AvSource(source, self.source_name, num_threads, time_limit, index)
        if self.backend == "decord":
            return _DecordSource(source, self.source_name, num_threads, index)
        if self.backend == "torchcodec":
            return _TorchcodecSource(source, self.source_name, num_threads, index)
        assert isinstance(source, str)
        return _FramesSource(source, self.source_name, num_threads)

    @property
    def _opened(self) -> _Source:
        if self._source is None:
            raise VideoError(self.source_name, "the reader is closed")
        return self._source

    def __len__(self) -> int:
        return len(self._opened.timestamps)

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self._opened.fps

    @property
    def timestamps(self) -> np.ndarray:
        """When each frame is shown: float64 seconds (N,), ascending; the file's own clock, which may not begin at 0."""
        return self._opened.timestamps.copy()

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, which is taken to be shown for ``1 / fps``."""
        times = self._opened.timestamps
        return float(times[-1] - times[0]) + 1 / self.fps

    @property
    def height(self) -> int:
        """Pixels, after the rotation that the file asks for."""
        return self._opened.height

    @property
    def width(self) -> int:
        """Pixels, after the rotation that the file asks for."""
        return self._opened.width

    @property
    def index_method(self) -> str:
        """How frames are found, and if slowly then why, for people."""
        return self._opened.method

    @property
    def bad_packets(self) -> int:
        """Packets that the decoder refused; their frames are not in the video (always 0 for other backends than av)."""
        return self._opened.bad_packets

    def get_batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Returns the frames at some positions in presentation order.

        Args:
            indices: Whole numbers from 0 to ``len(self) - 1``, in any order, repeats allowed.

        Returns:
            uint8 (N, H, W, 3), RGB, the very pixels that decoding the whole file gives.

        Raises:
            IndexError: If an index is negative or too large.
            VideoError: If the frames cannot be decoded.
        """
        numbers = np.asarray(indices)
        if numbers.size == 0:
            numbers = numbers.reshape(-1).astype(np.int64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise TypeError(
                f"indices must be a one-dimensional list of whole numbers, not {numbers.dtype} of shape {numbers.shape}"
            )
        wanted = [int(number) for number in numbers]
        count = len(self)
        for number in wanted:
            if not 0 <= number < count:
                raise IndexError(f"{self.source_name}: frame {number} of a video of {count} frames")
        return torch.from_numpy(self._opened.read(wanted))

    def get_all(self) -> torch.Tensor:
        """Returns all frames: uint8 (N, H, W, 3). For small files."""
        return self.get_batch(np.arange(len(self)))

    def close(self) -> None:
        """Frees decoder, file and memory; may be called twice."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._source is None:
            return f"VideoReader({self.source_name!r}, closed)"
        return (
            f"VideoReader({self.source_name!r}, {len(self)} frames, {self.width} x {self.height}, {self.fps:g} fps, "
            f"{self.backend}: {self.index_method})"
        )


def _check_file(path: str, *, folder: bool) -> None:
    """Says in one line why a path cannot be a video."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(path, "no such file") from error
    except (OSError, ValueError) as error:  # no permission, a name that is too long, a null byte
        raise VideoError(path, f"cannot be read ({_why(error)})") from error
    if folder:
        return
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(path, "is a folder, not a video file (a folder of images: backend='frames')")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, "is not a regular file")
    if status.st_size == 0:
        raise VideoError(path, "is empty (0 bytes)")
