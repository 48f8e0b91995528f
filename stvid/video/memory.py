"""Videos that are no files: frames in memory."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stvid.errors import VideoError
from stvid.video.backends import check_size, why
from stvid.video.frame_index import DEFAULT_FPS, Index
from stvid.video.pixels import Box

__all__ = [
    "FRAMES_NAME",
    "MemoryFrames",
    "MemorySource",
    "checked_rate",
    "is_frame",
    "iterate_frames",
    "read_whole",
]

FRAMES_NAME = "<frames>"
"""The name of frames in memory in messages and results."""

_MOST_BYTES = 8 * 2**30

_WANTED = "give uint8 frames (T, H, W, 3), RGB from 0 to 255"


def _array(value: Any) -> np.ndarray | None:
    """Returns an array or tensor as an array of numpy; None if it is neither, such as a PIL image."""
    if isinstance(value, np.ndarray):
        return value
    if not (hasattr(value, "detach") and hasattr(value, "numpy")):
        return None
    if str(value.dtype) != "torch.uint8":
        raise VideoError(FRAMES_NAME, f"are {str(value.dtype).removeprefix('torch.')}; {_WANTED}")
    return value.detach().cpu().numpy()


def _is_image(value: Any) -> bool:
    """Whether this is an image of PIL, without importing it."""
    return hasattr(value, "convert") and hasattr(value, "getexif")


def is_frame(value: Any) -> bool:
    """Tells whether this is an image of PIL, or an array or tensor of three dimensions."""
    return _is_image(value) or (hasattr(value, "ndim") and hasattr(value, "dtype") and value.ndim == 3)


def _checked(images: np.ndarray) -> np.ndarray:
    """Raises VideoError unless these are frames (T, H, W, 3)."""
    shape = tuple(images.shape)
    if images.dtype != np.uint8:
        hint = "; multiply by 255 and round if they go from 0 to 1" if images.dtype.kind == "f" else ""
        raise VideoError(FRAMES_NAME, f"are {images.dtype}; {_WANTED}{hint}")
    if images.ndim != 4 or shape[3] != 3:
        hint = ""
        if images.ndim == 4 and shape[1] == 3:
            hint = "; the colour comes last: permute(0, 2, 3, 1)"
        elif images.ndim == 4 and shape[0] == 3:
            hint = "; the colour comes last: permute(1, 2, 3, 0)"
        elif images.ndim == 4 and shape[3] == 4:
            hint = "; leave out the fourth channel: frames[..., :3]"
        elif images.ndim == 5:
            hint = "; several videos are given as a list"
        raise VideoError(FRAMES_NAME, f"have the shape {shape}; {_WANTED}{hint}")
    if not len(images):
        raise VideoError(FRAMES_NAME, "there are none")
    check_size(FRAMES_NAME, shape[1], shape[2])
    return images


def _one_frame(value: Any, number: int) -> np.ndarray:
    """Returns one frame as uint8 (H, W, 3)."""
    if _is_image(value):
        from PIL import ImageOps

        try:
            return np.array(ImageOps.exif_transpose(value).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise VideoError(FRAMES_NAME, f"image {number} cannot be read ({why(error)})") from error
    array = _array(value)
    if array is None:
        raise VideoError(FRAMES_NAME, f"frame {number} is of type {type(value).__name__}; {_WANTED}, or images of PIL")
    if array.ndim != 3:
        raise VideoError(FRAMES_NAME, f"frame {number} has the shape {tuple(array.shape)} instead of (H, W, 3)")
    return _writable(_checked(array[None])[0])


def _writable(frame: np.ndarray) -> np.ndarray:
    """Returns a frame as torch takes it without a warning."""
    return frame if frame.flags.writeable else frame.copy()


def checked_rate(fps: float | None) -> float | None:
    """Returns a number of frames a second.

    Raises:
        VideoError: If it is not above 0, or not finite.
    """
    if fps is not None and not (isinstance(fps, (int, float)) and 0 < fps < math.inf):
        raise VideoError(FRAMES_NAME, f"fps={fps!r} is not a number above 0")
    return None if fps is None else float(fps)


def iterate_frames(source: Any) -> Iterator[np.ndarray] | None:
    """Returns the frames of a source one by one, uint8 (H, W, 3) of one size; None if it is no source of frames.

    Args:
        source: An array or tensor (T, H, W, 3), or a list or iterator of images of PIL or of arrays (H, W, 3).
            An iterator whose first value is no frame is None, too, and then has lost that value.

    Raises:
        VideoError: If these are frames of another type or shape.
    """
    if isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(source, "read"):
        return None
    if _is_image(source):
        raise VideoError(FRAMES_NAME, "is one image; a video is a list of them")
    array = _array(source)
    if array is not None:
        return map(_writable, _checked(array))
    if not isinstance(source, Iterable):
        return None
    values = iter(source)
    first = next(values, None)
    if first is None or not is_frame(first):
        return None
    return _of_one_size(itertools.chain([first], values))


def _of_one_size(values: Iterator[Any]) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for number, value in enumerate(values):
        frame = _one_frame(value, number)
        shape = shape or frame.shape
        if frame.shape != shape:
            size, wanted = (f"{height} x {width}" for height, width, _ in (frame.shape, shape))
            raise VideoError(FRAMES_NAME, f"frame {number} is {size} pixels high and wide, the first one {wanted}")
        yield frame


@dataclass(frozen=True, eq=False)
class MemoryFrames:
    """A video whose frames are in memory.

    Attributes:
        images: uint8 (T, H, W, 3), RGB.
        fps: Frames a second; None if that is not known.
    """

    images: np.ndarray
    fps: float | None = None

    @classmethod
    def take(cls, source: Any, fps: float | None = None) -> MemoryFrames | None:
        """Returns the frames of what `iterate_frames` takes, all of them; None if that is no source of frames.

        Raises:
            VideoError: If these are frames of another type or shape, or more than 8 GB.
        """
        rate = checked_rate(fps)
        if isinstance(source, MemoryFrames):
            return source if rate is None else cls(source.images, rate)
        frames = iterate_frames(source)
        if frames is None:
            return None
        array = _array(source)
        if array is not None:
            return cls(array, rate)
        kept: list[np.ndarray] = []
        size = 0
        for frame in frames:
            kept.append(frame)
            size += frame.nbytes
            if size > _MOST_BYTES:
                raise VideoError(FRAMES_NAME, "take more than 8 GB; give a file, or use stvid.timeline for a stream")
        return cls(np.stack(kept), rate)


class MemorySource:
    """Frames in memory, as a backend gives them; shown at 25 a second if their rate is not known."""

    def __init__(self, frames: MemoryFrames) -> None:
        self.images = frames.images
        fps = frames.fps or DEFAULT_FPS
        self.index = Index(
            stream=0,
            timestamps=np.arange(len(frames.images)) / fps,
            time_base=1 / fps,
            fps=fps,
            method="frames in memory",
            packets=None,
            coded=(frames.images.shape[1], frames.images.shape[2]),
        )

    def read(self, indices: Sequence[int], box: Box | None = None) -> np.ndarray:
        """Returns a copy of the frames, or of a part of them, at indices within the range: uint8 (N, H, W, 3)."""
        top, left, height, width = box or (0, 0, *self.index.coded)
        return self.images[list(indices), top : top + height, left : left + width]

    def close(self) -> None:
        """Forgets the frames; may be called twice."""
        self.images = self.images[:0]


def read_whole(file: Any) -> bytes:
    """Returns what is left in a binary file object.

    Raises:
        VideoError: If it was opened as text, cannot be read, or has been read to its end before.
    """
    name = "<file>"
    try:
        content = file.read()
        if isinstance(content, (bytes, bytearray, memoryview)):
            if not len(content) and hasattr(file, "tell") and file.seekable() and file.tell() > 0:
                raise VideoError(name, "has been read to its end before; go back with seek(0)")
            return bytes(content)
    except UnicodeDecodeError as error:
        raise VideoError(name, "was opened as text; open it with mode 'rb'") from error
    except (OSError, ValueError) as error:  # a file that is closed, or only written to
        if isinstance(error, VideoError):
            raise
        raise VideoError(name, f"cannot be read ({why(error)})") from error
    if isinstance(content, str):
        raise VideoError(name, "was opened as text; open it with mode 'rb'")
    raise VideoError(name, f"gives {type(content).__name__} instead of bytes")
