"""VideoReader: exactly the frames that were asked for, from any video file that FFmpeg can read.

The frames of a video are the frames that a decode of the whole file gives, in the order in which they are shown, going
on past packets that the decoder refuses. Frame ``i`` of a reader is frame ``i`` of that list, however it was found, and
whichever backend reads it: PyAV (`stvid.video.av_reader`, which says how), decord, torchcodec, or a folder of images
(`stvid.video.other_readers`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from stvid.errors import ConfigError, UnknownNameError, VideoError, nearest
from stvid.video.av_reader import AvSource
from stvid.video.backends import BACKENDS, IMAGE_EXTENSIONS, TIME_LIMIT, Source, available_backends, check_file
from stvid.video.frame_index import Index, Packets
from stvid.video.memory import FRAMES_NAME, MemoryFrames, MemorySource, read_whole
from stvid.video.other_readers import DecordSource, FramesSource, TorchcodecSource
from stvid.video.pixels import Box
from stvid.video.remote import RemoteFile, is_url
from stvid.video.stored_index import StoredIndex

if TYPE_CHECKING:
    import torch

__all__ = [
    "BACKENDS",
    "IMAGE_EXTENSIONS",
    "Index",
    "MemoryFrames",
    "Packets",
    "VideoLike",
    "VideoReader",
    "available_backends",
    "scan",
]

VideoLike: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | MemoryFrames | np.ndarray | Iterable[Any]
"""A path, bytes, a file, a URL, or frames; tensors are among what can be iterated."""


def scan(path: str | os.PathLike[str]) -> Index:
    """Returns the index of a video file, or of one at a URL, for `stvid.video.stored_index.pack_index`.

    Of an MP4 file at a URL only the header is fetched, and the first frame (`stvid.video.remote`).

    Raises:
        MissingFileError: If there is nothing at the path.
        VideoError: If it is no video that can be decoded, see `VideoReader`.
    """
    name = os.fspath(path)
    remote = is_url(name)
    if not remote:
        check_file(name, folder=False)
    source = AvSource(RemoteFile(name) if remote else name, name, 1)
    try:
        return source.index
    finally:
        source.close()


class VideoReader:
    """Random access to the frames of one video.

    A plain short-lived object: make it in the process that reads, read, close. Not picklable, not for several threads.

    Args:
        source: Path of a video file, or its bytes, or a binary file object, which is read to its end; a URL that fsspec
            opens, of which the bytes that are needed are fetched (`stvid.video.remote`); or frames in memory: a uint8
            array or tensor (T, H, W, 3), or a list or iterator of images of PIL or of arrays (H, W, 3). For
            ``backend="frames"`` the path of a folder of images, which are taken in the natural order of their names
            (2 before 10), or of a .txt file that names one image a line, relative to its own folder; shown at 25 frames
            a second.
        backend: ``av`` (PyAV, the default, exact for every file), ``decord``, ``torchcodec`` (optional: fast readers
            with their own ideas of damaged files) or ``frames``.
        num_threads: Decoder threads. One is best in a data-loader worker.
        time_limit: Seconds after which opening the file, or one call for frames, is given up (backend av).
        index: Indices that were stored earlier, or the one of this video, so that it need not be scanned.
        fps: Frames a second of frames in memory; None takes 25.

    Attributes:
        backend: The name of the backend; ``memory`` for frames in memory.
        source_name: The path or URL, ``<bytes>``, or ``<frames>``.

    Raises:
        MissingFileError: If there is nothing at the path.
        VideoError: If it is a folder, empty, not a video, without a video stream, not decodable, or absurdly large.
        StvidError: If the backend is not installed; the message has the command that installs it.
        UnknownNameError: If there is no such backend.
    """

    _source: Source | None = None

    def __init__(
        self,
        source: VideoLike,
        *,
        backend: str = "av",
        num_threads: int = 1,
        time_limit: float = TIME_LIMIT,
        index: StoredIndex | Index | None = None,
        fps: float | None = None,
    ) -> None:
        if backend not in BACKENDS:
            hint = nearest(backend, BACKENDS)
            raise UnknownNameError(f"backend {backend!r} does not exist; use one of {', '.join(BACKENDS)}{hint}")
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}: at least 1 is needed")
        self.backend = backend
        frames = MemoryFrames.take(source, fps)
        if frames is not None:
            self.backend, self.source_name = "memory", FRAMES_NAME
            self._source = MemorySource(frames)
            return
        if fps is not None:
            raise ConfigError("fps: a file says itself how many frames a second it has; leave fps out")
        if is_url(source):
            self.source_name = str(source)
            remote = RemoteFile(self.source_name)
            content = remote if backend == "av" else remote.read_all()
            self._source = self._make(content, num_threads, time_limit, index)
            return
        if not isinstance(source, (str, os.PathLike)) and hasattr(source, "read"):
            source = read_whole(source)
        if isinstance(source, (bytes, bytearray, memoryview)):
            self.source_name = "<bytes>"
            content = bytes(source)
            if backend == "frames":
                raise VideoError(self.source_name, "backend='frames' reads a folder of images, not bytes")
            if not content:
                raise VideoError(self.source_name, "is empty (0 bytes)")
            self._source = self._make(content, num_threads, time_limit, index)
            return
        if not isinstance(source, (str, os.PathLike)):
            kind = type(source).__name__
            raise VideoError(f"<{kind}>", "is no video; give a path, bytes, a file, a URL, or frames (T, H, W, 3)")
        path = os.fspath(source)
        self.source_name = path
        check_file(path, folder=backend == "frames")
        self._source = self._make(path, num_threads, time_limit, index)

    def _make(
        self, source: str | bytes | RemoteFile, num_threads: int, time_limit: float, index: StoredIndex | Index | None
    ) -> Source:
        if self.backend == "av":
            return AvSource(source, self.source_name, num_threads, time_limit, index)
        assert not isinstance(source, RemoteFile)
        if self.backend == "decord":
            return DecordSource(source, self.source_name, num_threads, index)
        if self.backend == "torchcodec":
            return TorchcodecSource(source, self.source_name, num_threads, index)
        assert isinstance(source, str)
        return FramesSource(source, self.source_name)

    @property
    def _opened(self) -> Source:
        if self._source is None:
            raise VideoError(self.source_name, "the reader is closed")
        return self._source

    def __len__(self) -> int:
        return len(self._opened.index.timestamps)

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self._opened.index.fps

    @property
    def timestamps(self) -> np.ndarray:
        """When each frame is shown: float64 seconds (N,), ascending; the file's own clock, which may not begin at 0."""
        return self._opened.index.timestamps.copy()

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, which is taken to be shown for ``1 / fps``."""
        times = self._opened.index.timestamps
        return float(times[-1] - times[0]) + 1 / self.fps

    @property
    def height(self) -> int:
        """Pixels, after the rotation that the file asks for."""
        return self._opened.index.height

    @property
    def width(self) -> int:
        """Pixels, after the rotation that the file asks for."""
        return self._opened.index.width

    @property
    def index_method(self) -> str:
        """How frames are found, and if slowly then why, for people."""
        return self._opened.index.method

    @property
    def bad_packets(self) -> int:
        """Packets that the decoder refused; their frames are not in the video (always 0 for other backends than av)."""
        return self._opened.index.bad_packets

    def get_batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor, *, crop: Box | None = None) -> torch.Tensor:
        """Returns the frames at some positions in presentation order.

        Args:
            indices: Whole numbers from 0 to ``len(self) - 1``, in any order, repeats allowed.
            crop: Top, left, height and width of the part of the frames that is wanted, in pixels of the frame as it is
                shown; the rest is neither converted, where the file allows that, nor copied. None is the whole.

        Returns:
            uint8 (N, H, W, 3), RGB, the very pixels that decoding the whole file gives.

        Raises:
            IndexError: If an index is negative or too large.
            ValueError: If the crop is not within the frame.
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
        if crop is not None:
            top, left, height, width = crop
            if not (0 <= top < top + height <= self.height and 0 <= left < left + width <= self.width):
                size = f"{self.width} x {self.height}"
                raise ValueError(f"crop {tuple(crop)} (top, left, height, width) is not within frames of {size}")
        import torch  # here, so that the package can be imported without it

        return torch.from_numpy(self._opened.read(wanted, crop))

    def get_all(self) -> torch.Tensor:
        """Returns all frames: uint8 (N, H, W, 3). For small files."""
        return self.get_batch(np.arange(len(self)))

    def close(self) -> None:
        """Frees decoder, file and memory; may be called twice."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __del__(self) -> None:
        self.close()

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
