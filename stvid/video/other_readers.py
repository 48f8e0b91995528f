"""The backends beside PyAV: decord, torchcodec, and folders of images."""

from __future__ import annotations

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from stvid.errors import StvidError, VideoError
from stvid.video.av_reader import AvSource
from stvid.video.backends import IMAGE_EXTENSIONS, check_size, import_backend, why
from stvid.video.frame_index import DEFAULT_FPS, Index
from stvid.video.pixels import Box
from stvid.video.stored_index import StoredIndex

__all__ = ["DecordSource", "FramesSource", "TorchcodecSource"]

_T = TypeVar("_T")


class _OtherSource(ABC):
    """A decoder of another package, which is asked for frames by number; the numbers come from PyAV's index.

    So all backends have the same frames at the same times, or say that they do not.
    """

    method = ""

    def __init__(
        self, source: str | bytes, name: str, num_threads: int, stored: StoredIndex | Index | None = None
    ) -> None:
        self.name = name
        reference = AvSource(source, name, 1, stored=stored)
        self.index = replace(reference.index, method=self.method, packets=None, bad_packets=0)
        reference.close()
        count, height, width = self._guarded(self._open, source, num_threads)
        expected = (len(self.index.timestamps), self.index.height, self.index.width)
        if (count, height, width) != expected:
            raise VideoError(
                name,
                f"{self.method} finds {count} frames of {width} x {height} pixels where there are {expected[0]} of "
                f"{expected[2]} x {expected[1]}; use backend 'av'",
            )

    @abstractmethod
    def _open(self, source: str | bytes, num_threads: int) -> tuple[int, int, int]:
        """Opens the file; returns number, height and width of its frames."""

    @abstractmethod
    def _frames(self, indices: list[int]) -> np.ndarray:
        """Returns frames at ascending indices: uint8 (N, H, W, 3)."""

    def _guarded(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Calls, and makes a VideoError of whatever the package raises for bad files (decord has its own kinds)."""
        try:
            return call(*arguments)
        except (StvidError, MemoryError):
            raise
        except Exception as error:
            raise VideoError(self.name, f"{self.method} cannot read it ({why(error)})") from error

    def read(self, indices: Sequence[int], box: Box | None = None) -> np.ndarray:
        """Returns the frames, or a part of them, at indices that are within the range: uint8 (N, H, W, 3)."""
        top, left, height, width = box or (0, 0, self.index.height, self.index.width)
        if not indices:
            return np.empty((0, height, width, 3), np.uint8)
        unique = sorted(set(indices))
        frames = self._guarded(self._frames, unique)[:, top : top + height, left : left + width]
        return frames if unique == list(indices) else frames[np.searchsorted(unique, indices)]

    def close(self) -> None:
        """Frees everything; may be called twice."""
        self.decoder: Any = None


class DecordSource(_OtherSource):
    """decord. It aborts the process on some damaged files: for comparisons, not for training."""

    method = "decord"

    def _open(self, source: str | bytes, num_threads: int) -> tuple[int, int, int]:
        decord = import_backend("decord")
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        self.decoder = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=num_threads)
        count = len(self.decoder)
        height, width = self.decoder[0].shape[:2] if count else (0, 0)
        return count, height, width

    def _frames(self, indices: list[int]) -> np.ndarray:
        return self.decoder.get_batch(indices).asnumpy()


class TorchcodecSource(_OtherSource):
    """torchcodec, in its exact mode."""

    method = "torchcodec"

    def _open(self, source: str | bytes, num_threads: int) -> tuple[int, int, int]:
        torchcodec = import_backend("torchcodec")
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


class FramesSource:
    """A folder of images, in the natural order of their names, shown at 25 frames a second; or a list of images.

    A list is a text file that names one image a line, relative to its own folder.
    """

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        self.files = self._folder(source) if os.path.isdir(source) else self._listed(source)
        first = self._image(0)
        self.index = Index(
            stream=0,
            timestamps=np.arange(len(self.files)) / DEFAULT_FPS,
            time_base=1 / DEFAULT_FPS,
            fps=DEFAULT_FPS,
            method="image files",
            packets=None,
            coded=(first.shape[0], first.shape[1]),
        )

    def _folder(self, source: str) -> list[str]:
        try:
            names = [n for n in os.listdir(source) if n.lower().endswith(IMAGE_EXTENSIONS) and not n.startswith(".")]
        except OSError as error:
            raise VideoError(self.name, f"cannot be read ({why(error)})") from error
        if not names:
            raise VideoError(self.name, f"holds no images ({', '.join(IMAGE_EXTENSIONS)})")
        return [os.path.join(source, n) for n in sorted(names, key=_natural)]

    def _listed(self, source: str) -> list[str]:
        wanted = "backend='frames' reads a folder of images, or a .txt file that names one image a line"
        if not source.lower().endswith(".txt"):
            raise VideoError(self.name, f"is a file; {wanted}")
        try:
            with open(source, encoding="utf-8-sig") as file:
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise VideoError(self.name, f"cannot be read ({why(error)}); {wanted}") from error
        names = [line for line in lines if line]
        if not names:
            raise VideoError(self.name, f"names no images; {wanted}")
        return [os.path.join(os.path.dirname(source), name) for name in names]

    def _image(self, index: int) -> np.ndarray:
        from PIL import Image, ImageOps

        path = self.files[index]
        if os.path.exists(path) and not os.path.isfile(path):  # a list may name a pipe, which would never end
            raise VideoError(path, "is no readable image (not a regular file)")
        try:
            with Image.open(path) as image:
                check_size(path, image.height, image.width)
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(path, f"is no readable image ({why(error)})") from error

    def read(self, indices: Sequence[int], box: Box | None = None) -> np.ndarray:
        """Returns the frames, or a part of them, at indices that are within the range: uint8 (N, H, W, 3)."""
        top, left, height, width = box or (0, 0, *self.index.coded)
        out = np.empty((len(indices), height, width, 3), np.uint8)
        unique, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        for number, index in enumerate(unique.tolist()):
            image = self._image(index)
            if image.shape[:2] != self.index.coded:
                raise VideoError(
                    self.files[index],
                    f"is {image.shape[1]} x {image.shape[0]} pixels, the first image of {self.name} {width} x {height}",
                )
            out[places == number] = image[top : top + height, left : left + width]
        return out

    def close(self) -> None:
        """Frees everything; may be called twice."""
        self.files = []
