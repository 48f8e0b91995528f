"""The interface, the limits and the errors that all backends of `stvid.video.reader.VideoReader` share."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import numpy as np

from stvid.errors import MissingFileError, StvidError, VideoError
from stvid.video.frame_index import Index
from stvid.video.pixels import Box

__all__ = [
    "BACKENDS",
    "IMAGE_EXTENSIONS",
    "TIME_LIMIT",
    "Source",
    "available_backends",
    "check_file",
    "check_size",
    "import_backend",
    "why",
]

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

# A worker must not be held up for ever by one file: longer than any file within the limits above takes, unless damage
# makes FFmpeg crawl.
TIME_LIMIT = 600.0


class Source(Protocol):
    """One open video, as a backend gives it."""

    index: Index

    def read(self, indices: Sequence[int], box: Box | None = None) -> np.ndarray:
        """Returns the frames, or a part of them, at indices that are within the range: uint8 (N, H, W, 3)."""

    def close(self) -> None:
        """Frees everything; may be called twice."""


def import_backend(name: str) -> ModuleType:
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
        raise StvidError(f"backend {name!r} cannot be used ({why(error)}); install it: {_INSTALL[name]}") from error


def available_backends() -> dict[str, str]:
    """Returns for each backend an empty string if it can be used, else the reason and the command that installs it."""
    found = {}
    for name in BACKENDS:
        found[name] = ""
        if name != "frames":
            try:
                import_backend(name)
            except StvidError as error:
                found[name] = str(error)
    return found


def check_file(path: str, *, folder: bool) -> None:
    """Says in one line why a path cannot be a video."""
    if not path:
        raise MissingFileError("video", "its name is empty; a variable of the shell may not be set")
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(path, "no such file") from error
    except (OSError, ValueError) as error:  # no permission, a name that is too long, a null byte
        raise VideoError(path, f"cannot be read ({why(error)})") from error
    if folder:
        return
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(path, "is a folder, not a video file (a folder of images: backend='frames')")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, "is not a regular file")
    if status.st_size == 0:
        raise VideoError(path, "is empty (0 bytes)")


def check_size(name: str, height: int, width: int) -> None:
    """Refuses frames that no video can have, before memory is taken for them."""
    if height < 1 or width < 1:
        raise VideoError(name, f"its frames are {width} x {height} pixels")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise VideoError(name, f"its frames are {width} x {height} pixels, more than a video can have")


def why(error: Exception) -> str:
    """Returns FFmpeg's own words without the number and the function that PyAV puts around them."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
