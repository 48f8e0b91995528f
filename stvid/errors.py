"""Errors that a user can cause and can put right.

Each message is one line that says what is wrong, where, and what to do. The command line prints it and exits with a
non-zero code; a Python caller catches `StvidError` or one of its kinds. Anything else that escapes is a bug of stvid.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from stvid.console import printable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "Interrupted",
    "ManifestError",
    "ManualDownloadError",
    "MissingFileError",
    "StvidError",
    "UnknownNameError",
    "VideoError",
    "nearest",
]


class StvidError(Exception):
    """Base of all errors whose message is meant for the user.

    The message is one line, also where names of files, keys and classes hold line breaks.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(StvidError, ValueError):
    """A config key, value or combination that cannot be used."""


class ManifestError(StvidError, ValueError):
    """A list of videos that cannot be read or is inconsistent."""


class CheckpointError(StvidError, ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


class DownloadError(CheckpointError):
    """A published file that cannot be fetched, or is not the one that was published."""


class ManualDownloadError(DownloadError):
    """A published file that only a person can fetch, from a page in a browser."""


class UnknownNameError(StvidError, ValueError):
    """A name (model, dataset, backend) that does not exist."""


class Interrupted(StvidError):
    """A run that was stopped by a signal after what it had done was saved.

    Attributes:
        signum: The signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message, signum)
        self.signum = signum

    def __str__(self) -> str:
        return printable(str(self.args[0]))


class VideoError(StvidError, ValueError):
    """A video that cannot be decoded.

    Attributes:
        source: The path of the video, or a description of an in-memory source.
        reason: The problem in words, without the path.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)  # both in args, so that the error survives pickling between processes
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"{self.source}: {self.reason}")


class MissingFileError(VideoError, FileNotFoundError):
    """A path of a video at which there is no file."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns a hint such as ``; nearest: a, b`` of up to three names, or an empty string if nothing is near.

    Args:
        name: The name that was asked for.
        candidates: The names that exist.
    """
    found = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(found)}" if found else ""
