"""Labels of videos in the form that the writers of this package take: lists of videos, and predictions.

A list has a row for each part of a video; the files of labelling tools have an entry for each video. Tools that count
frames get the frames whose times lie in a part.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stvid.data.sampling import TOLERANCE
from stvid.data.video_table import Manifest
from stvid.errors import ManifestError
from stvid.video.reader import VideoReader

__all__ = [
    "LabelledPart",
    "LabelledVideo",
    "classes_of",
    "frame_times",
    "frames_between",
    "labelled_videos",
    "place_in",
]


@dataclass(frozen=True)
class LabelledPart:
    """The classes of a video, or of a part of it.

    Attributes:
        labels: Names of the classes; empty if none is to be seen.
        start: Where the part begins in seconds from the first frame; None is the first frame.
        end: Where it ends; None is the end of the video.
        confidence: How sure a network is of them, in 0..1; None if people said it.
    """

    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    confidence: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole video."""
        return self.start is None and self.end is None


@dataclass(frozen=True)
class LabelledVideo:
    """The labels of a video.

    Attributes:
        path: The video, a path or an address.
        parts: Its parts, or the one that is all of it; empty if nothing was said of it.
    """

    path: str
    parts: tuple[LabelledPart, ...]

    @property
    def is_timed(self) -> bool:
        """Whether a part of it is less than the whole video."""
        return any(not part.is_whole for part in self.parts)


def labelled_videos(manifest: Manifest) -> list[LabelledVideo]:
    """Returns the labels of a list of videos, the rows of a video together.

    Args:
        manifest: A list of files or addresses.

    Raises:
        ManifestError: If the videos are no files of their own.
    """
    if manifest.members is not None:
        raise ManifestError(
            f"{manifest.source}: its videos lie {manifest.members.place}, and tools open files; give a list of files"
        )
    parts: dict[str, list[LabelledPart]] = {}
    for number in range(len(manifest)):
        entry = manifest[number]
        start = entry.start if entry.start else None  # the first frame, as None says it
        parts.setdefault(entry.path, []).append(LabelledPart(entry.labels, start, entry.end))
    return [LabelledVideo(path, tuple(found)) for path, found in parts.items()]


def frame_times(path: str) -> tuple[NDArray[np.float64], float]:
    """Returns the times of a video's frames in seconds from the first one, and its duration.

    Raises:
        VideoError: If it cannot be read.
    """
    with VideoReader(path) as reader:
        times = np.asarray(reader.timestamps, np.float64)
        return times - times[0], reader.duration


def frames_between(times: NDArray[np.float64], start: float | None, end: float | None) -> tuple[int, int]:
    """Returns the first and the last frame whose times lie in a part, counted from 0; at least one frame.

    Args:
        times: Times of all frames in seconds from the first one, ascending.
        start: Where the part begins; None is the first frame.
        end: Where it ends, which is no longer of it; None is the end of the video.
    """
    first = 0 if start is None else int(np.searchsorted(times, start - TOLERANCE))
    last = len(times) - 1 if end is None else int(np.searchsorted(times, end - TOLERANCE)) - 1
    first = min(first, len(times) - 1)
    return first, max(first, last)


def place_in(folder: str | os.PathLike[str] | None, path: str) -> str:
    """Returns a path as a file in a folder names it: relative if it lies below, else absolute; addresses stay."""
    if "://" in path:
        return path
    absolute = os.path.abspath(path)
    if folder is None:
        return absolute
    base = os.path.abspath(folder)
    return os.path.relpath(absolute, base) if Path(absolute).is_relative_to(base) else absolute


def classes_of(videos: Iterable[LabelledVideo], class_names: Iterable[str]) -> tuple[str, ...]:
    """Returns all classes: those that are named, and after them those that only occur."""
    occurring = (label for video in videos for part in video.parts for label in part.labels)
    return tuple(dict.fromkeys((*class_names, *occurring)))
