"""A folder that holds a folder for each class, with the videos of the class in it and in folders below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from stvid.data.csv_list import SPLITS
from stvid.data.video_folder import counted_kinds, is_image, is_video
from stvid.data.video_table import Row
from stvid.errors import ManifestError

__all__ = ["read_class_folders", "read_folder"]

# Folders that systems and archivers make beside those of the user.
_SYSTEM = frozenset(("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"))
_MANY = 5  # names that a message lists


class _Video(NamedTuple):
    """A video below the folder of a class.

    Attributes:
        path: Its path, by the folders that were walked through.
        real: The file itself, behind all links.
        deep: The folder within that of the class in which it lies; empty if it lies in that of the class.
    """

    path: str
    real: str
    deep: str


@dataclass
class _Found:
    """The content of the folder.

    Attributes:
        classes: The videos of each folder of a class, which may be none.
        left_out: Files that are not known as videos.
        broken: Links of the folder that lead nowhere, and so may have been classes.
        system: Folders of the system, which are no classes.
    """

    classes: dict[str, list[_Video]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)


def read_class_folders(path: str) -> tuple[list[Row], tuple[str, ...]]:
    """Returns the videos in the folders of the classes, and notes on what is left out or may not be meant.

    A folder without videos (logs, notes) is no class; nor is one of the system, as ``__MACOSX``. Hidden files and
    folders are passed by. Links are followed, but not in circles.

    Raises:
        ManifestError: If there are no folders, or no videos in them, they are splits (``train``, ``val``), a video lies
            beside them, or one cannot be read.
    """
    found = _Found()
    for entry in _entries(path):
        if entry.name.lower() in _SYSTEM:
            found.system.append(entry.name)
        elif os.path.isdir(entry.path):
            found.classes[entry.name] = list(_videos_below(entry.path, found.left_out))
        elif is_video(entry.name):
            raise ManifestError(
                f"{path}: {entry.name!r} is not in the folder of a class; give the folder that holds a folder for each "
                "class, or a CSV (path,label)"
            )
        elif entry.is_symlink() and not os.path.exists(entry.path):
            found.broken.append(entry.name)
    _check(path, found)
    rows = []
    for name, videos in found.classes.items():
        for video in videos:
            relative = os.path.relpath(video.path, path)
            rows.append(Row(relative, (name.strip() or name,), None, None, relative))
    return rows, tuple(f"{path}: {note}" for note in _notes(found))


def read_folder(path: str) -> tuple[list[Row], tuple[str, ...]]:
    """Returns the videos anywhere in a folder, without labels, and a note on the files that are left out.

    Raises:
        ManifestError: If there are none, or a folder cannot be read.
    """
    left_out: list[str] = []
    places = [os.path.relpath(video.path, path) for video in _videos_below(path, left_out)]
    if not places:
        there = f"; there are {counted_kinds(left_out)}" if left_out else ", and no other file"
        raise ManifestError(f"{path}: there is no video file in it{there}")
    note = f"{path}: left out, not known as videos: {counted_kinds(left_out)}"
    return [Row(place, (), None, None, place) for place in places], (note,) if left_out else ()


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Returns what a folder holds and is not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda item: item.name)
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be read ({error.strerror})") from error


def _videos_below(top: str, left_out: list[str]) -> Iterator[_Video]:
    """Yields the videos in and below the folder of a class, and notes the files that are left out."""
    visited: set[str] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop(0)
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        deep = "" if folder == top else os.path.relpath(folder, top).split(os.sep)[0]
        below = []
        for entry in _entries(folder):
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                below += [entry.path] if entry.name.lower() not in _SYSTEM else []
            elif is_video(entry.name):
                place = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                yield _Video(entry.path, place, deep)
            else:
                left_out.append(entry.name)
        waiting[:0] = below


def _check(path: str, found: _Found) -> None:
    folders = list(found.classes)
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if folders and (len(splits) == len(folders) or len({*splits.values()}) > 1):
        raise ManifestError(
            f"{path}: {', '.join(splits)} look like splits, not classes; give one of them, for example "
            f"{os.path.join(path, list(splits)[-1])}"
        )
    if not folders:
        raise ManifestError(f"{path}: holds no folders; a folder per class is needed, with video files in it")
    if not any(found.classes.values()):
        there = f"; there are {counted_kinds(found.left_out)}" if found.left_out else ", and no other file"
        raise ManifestError(f"{path}: there is no video file in its folders{there}{_of_images(found)}")


def _of_images(found: _Found) -> str:
    """Returns what to do with folders of images, if there are more images than videos."""
    if sum(map(is_image, found.left_out)) <= sum(map(len, found.classes.values())):
        return ""  # none, or thumbnails
    return "; videos that are folders of images are listed in a CSV, a folder a line, and read with data.backend frames"


def _notes(found: _Found) -> Iterator[str]:
    if found.left_out:
        yield f"left out, not known as videos: {counted_kinds(found.left_out)}{_of_images(found)}"
    if empty := [name for name, videos in found.classes.items() if not videos]:
        yield f"{len(empty)} folder{'s' if len(empty) > 1 else ''} without videos, no class: {_listed(empty)}"
    if found.system:
        yield f"left out, folders of the system: {_listed(found.system)}"
    if found.broken:
        yield f"left out, links that lead nowhere: {_listed(found.broken)}"
    videos = [video for some in found.classes.values() for video in some]
    deeper = sorted({video.deep for video in videos if video.deep})
    used = [name for name, some in found.classes.items() if some]
    if len(deeper) > 1 and deeper != used and all(video.deep for video in videos):
        yield f"all videos lie one folder deeper; the classes are {_listed(used)}, not {_listed(deeper)}"
    shared = _shared(found)
    if shared:
        first, second = shared[0]
        more = f" and {len(shared) - 1} other pairs" if len(shared) > 1 else ""
        yield f"links show one file in several classes: {first} and {second}{more}"


def _shared(found: _Found) -> list[tuple[str, str]]:
    """Returns pairs of paths in folders of different classes that are the same file."""
    first: dict[str, tuple[str, str]] = {}
    pairs = []
    for name, videos in found.classes.items():
        for video in videos:
            owner, path = first.setdefault(video.real, (name, video.path))
            if owner != name:
                pairs.append((path, video.path))
    return pairs


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "")
