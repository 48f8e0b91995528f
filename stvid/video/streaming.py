"""Frames one after the other from a file, a pipe, a camera or a URL, without an index and in bounded memory.

The frames of a file are those of `stvid.video.reader.VideoReader`, in the same order and with the same times. What a
reader knows by its index is not known here: how many frames will come, and whether later ones can be decoded.
"""

from __future__ import annotations

import heapq
import io
import itertools
import os
import stat
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stvid.errors import ConfigError, VideoError
from stvid.video.av_reader import MAX_READ_ERRORS
from stvid.video.backends import check_file, check_size, import_backend, why
from stvid.video.clock import Clock
from stvid.video.frame_index import DEFAULT_FPS
from stvid.video.memory import MemoryFrames, checked_rate, iterate_frames
from stvid.video.pixels import RgbConverter, display_turn, turned
from stvid.video.reader import VideoLike
from stvid.video.whitelists import options_for, refusal

__all__ = ["Frame", "is_live", "stream_frames"]

TIMEOUT = 30.0
"""Seconds after which a network that gives nothing counts as broken."""

# Times in a file may be out of order (AVI has decode times only); H.264 and HEVC reorder 16 frames at most.
_REORDER = 16


class Frame(NamedTuple):
    """One frame of a stream.

    Attributes:
        seconds: When it is shown, on the source's own clock, which need not begin at 0; never falls.
        image: uint8 (H, W, 3), RGB.
    """

    seconds: float
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class _Input:
    """A source for PyAV that is no regular file."""

    file: Any  # a name, or something with a method read
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=options_for)  # of what is read through Python
    opened: Any = None  # a file to close afterwards
    live: bool = True


_INDEX_FIRST = (
    "; an mp4 whose source cannot seek must have its index first: save it as a file, or make it so with "
    "ffmpeg -i IN -c copy -movflags +faststart OUT"
)


class _Pipe:
    """A pipe as PyAV takes it: with nothing but `read`, since a pipe cannot seek."""

    def __init__(self, file: Any) -> None:
        self.read = file.read


def is_live(source: VideoLike) -> bool:
    """Tells whether frames come when they come: a camera, a pipe, a URL or an iterator; not a file or a list."""
    if not isinstance(source, (str, os.PathLike)):
        return isinstance(source, Iterator) and not hasattr(source, "read")
    name = os.fspath(source)
    if name == "-" or "://" in name:
        return True
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _file_input(path: str) -> _Input:
    try:
        path.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        file = open(path, "rb")  # noqa: SIM115 - `_Stream.close` does it
        return _Input(file, opened=file, live=False)
    # "file:" keeps FFmpeg from taking "a:b.mp4" for a protocol.
    return _Input(f"file:{path}", options=options_for(path=True), live=False)


def _live_input(name: str) -> _Input:
    if name == "-":
        return _Input(_Pipe(sys.stdin.buffer))
    if "://" in name:
        return _Input(name, options=options_for(url=name))
    if stat.S_ISCHR(os.stat(name).st_mode):
        return _Input(name, format="v4l2", options=options_for(device="v4l2"))
    file = open(name, "rb")  # noqa: SIM115 - `_Stream.close` does it
    return _Input(_Pipe(file), opened=file)


class _Stream:
    """An open source that is read once, from its beginning."""

    def __init__(self, source: str | _Input, name: str) -> None:
        self.av = import_backend("av")
        self.name = name
        self.live = isinstance(source, _Input) and source.live
        given = source if isinstance(source, _Input) else _file_input(source)
        network = self.live and isinstance(given.file, str)
        self.opened = given.opened
        self.container: Any = None
        try:
            self.container = self.av.open(
                given.file,
                format=given.format,
                metadata_errors="replace",
                container_options=dict(given.options),
                timeout=TIMEOUT if network else None,
            )
        except (self.av.error.FFmpegError, ValueError) as error:
            hint = _INDEX_FIRST if isinstance(given.file, _Pipe) else ""
            self.close()
            raise VideoError(name, refusal(error) or f"cannot be opened as a video ({why(error)}{hint})") from error
        try:
            self._choose_stream()
        except BaseException:
            self.close()
            raise

    def _choose_stream(self) -> None:
        cover = self.av.stream.Disposition.attached_pic
        videos = [stream for stream in self.container.streams.video if cover not in stream.disposition]
        if not videos:
            raise VideoError(self.name, "has no video stream")
        best = self.container.streams.best("video")
        self.stream = best if best is not None and best in videos else videos[0]
        if self.stream.codec_context is None:
            raise VideoError(self.name, "FFmpeg has no decoder for its video stream")
        self.stream.codec_context.thread_count = 1  # several drop good frames when a packet is refused
        self.stream.codec_context.thread_type = "NONE"
        self.clock = Clock(self.container, self.stream)

    def _packets(self) -> Iterator[Any]:
        """Yields packets; of a file past read errors, as `VideoReader` does."""
        errors, begun = 0, False
        while True:
            try:
                for packet in self.container.demux(self.stream):
                    if packet.size:  # an empty packet would tell the decoder that the stream has ended
                        errors, begun = 0, True
                        yield packet
                return
            except self.av.error.EOFError:
                return
            except (self.av.error.FFmpegError, IndexError) as error:
                if self.live:
                    hint = "" if begun or "mp4" not in self.container.format.name.split(",") else _INDEX_FIRST
                    raise VideoError(self.name, f"the stream broke off ({why(error)}{hint})") from error
                errors += 1
                if errors > MAX_READ_ERRORS:
                    return

    def _decoded(self) -> Iterator[Any]:
        """Yields PyAV's frames, past packets that the decoder refuses."""
        reason = "it holds no frames"
        found = False
        for packet in itertools.chain(self._packets(), [None]):
            if packet is not None:
                self.clock.move(packet)
            try:
                frames = packet.decode() if packet is not None else self.stream.codec_context.decode(None)
            except self.av.error.FFmpegError as error:
                reason = f"none of its frames can be decoded ({why(error)})"
                continue
            for frame in frames:
                found = True
                yield frame
        if not found:
            raise VideoError(self.name, reason)

    def frames(self) -> Iterator[Frame]:
        """Yields every frame."""
        convert = RgbConverter(self.av)
        rate = float(self.stream.average_rate or 0)
        step = 1 / rate if 0 < rate < 1e6 else 1 / DEFAULT_FPS
        unit = float(self.stream.time_base or step)
        shape: tuple[int, int] | None = None
        turn = (False, False, False)
        waiting: deque[Any] = deque()
        times: list[float] = []  # a heap: the earliest time belongs to the first frame that waits
        last: float | None = None
        lost = 0.0  # how far a clock that jumped back is behind

        def next_frame() -> Frame:
            assert shape is not None
            frame = waiting.popleft()
            seconds = self.clock.presented(heapq.heappop(times)) * unit
            try:
                return Frame(seconds, turned(convert(frame, *shape), turn))
            except self.av.error.FFmpegError as error:
                reason = f"its {frame.format.name} frames cannot be converted to RGB ({why(error)})"
                raise VideoError(self.name, reason) from error

        for frame in self._decoded():
            if shape is None:
                check_size(self.name, frame.height, frame.width)
                shape, turn = (frame.height, frame.width), display_turn(frame)
            if frame.pts is not None:
                time = frame.pts + lost
            else:
                time = 0.0 if last is None else last + step / unit
            if self.live and last is not None and time < last:
                lost += last + step / unit - time
                time = last + step / unit
            last = time
            waiting.append(frame)
            heapq.heappush(times, time)
            if self.live or len(waiting) > _REORDER:
                yield next_frame()
        while waiting:
            yield next_frame()

    def close(self) -> None:
        """Frees decoder and file."""
        if self.container is not None:
            self.container.close()
        if self.opened is not None:
            self.opened.close()


def stream_frames(source: VideoLike, *, fps: float | None = None) -> Iterator[Frame]:
    """Yields the frames of a source in the order in which they are shown, one decoder pass, without seeking.

    Args:
        source: A file; a camera (``/dev/video0``, Video4Linux); a URL that FFmpeg reads (``http://``, ``rtsp://``
            ...); a named pipe; or ``-`` for standard input. A pipe needs a container that can be read in order, such
            as MPEG-TS or Matroska, or an mp4 whose index comes first ("faststart"). Also the bytes of a file, a binary
            file object, and frames in memory: a uint8 array or tensor (T, H, W, 3), or a list or iterator, also one
            without an end, of images of PIL or of arrays (H, W, 3).
        fps: Frames a second of frames in memory.

    Raises:
        MissingFileError: If there is nothing at the path.
        VideoError: If it cannot be opened, holds no video, or a stream breaks off; or if frames in memory have another
            type or shape.
        ConfigError: If frames in memory do not say how many a second they are.
    """
    if isinstance(source, MemoryFrames):
        fps = fps if fps is not None else source.fps
        source = source.images
    frames = iterate_frames(source)
    if frames is not None:
        rate = checked_rate(fps)
        if rate is None:
            raise ConfigError("fps: say how many frames a second the given ones are, as in fps=25")
        yield from (Frame(number / rate, image) for number, image in enumerate(frames))
        return
    opened = _opened(source)
    try:
        yield from opened.frames()
    finally:
        opened.close()


def _opened(source: VideoLike) -> _Stream:
    """Opens what FFmpeg reads."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _Stream(_Input(io.BytesIO(source), live=False), "<bytes>")
    if hasattr(source, "read"):
        file: Any = source
        if isinstance(file, io.TextIOBase):
            raise VideoError("<file>", "was opened as text; open it with mode 'rb'")
        seekable = bool(getattr(file, "seekable", lambda: False)())
        return _Stream(_Input(file if seekable else _Pipe(file), live=not seekable), "<file>")
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise VideoError(f"<{kind}>", "is no video; give a path, bytes, a file, a URL, or frames (T, H, W, 3)")
    name = os.fspath(source)
    shown = "<standard input>" if name == "-" else name
    if is_live(name):
        try:
            given: Any = _live_input(name)
        except OSError as error:
            raise VideoError(name, f"cannot be read ({why(error)})") from error
    else:
        check_file(name, folder=False)
        given = name
    return _Stream(given, shown)
