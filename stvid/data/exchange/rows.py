"""Labels as other programs write them, made into the rows of a list of videos.

Each reader of this package turns a file into an `Export`: which videos it names, and what was said of them. `as_list`
does what all of them need: it finds the videos, turns numbers of frames into seconds, puts labels of the same part
together, and counts aloud what is left out.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stvid.data.csv_list import SPLITS, VideoList
from stvid.data.video_table import Manifest, Row, build_manifest
from stvid.errors import ManifestError, VideoError, nearest
from stvid.files import expand_home
from stvid.video.reader import VideoReader
from stvid.video.remote import is_remote_file

__all__ = [
    "Export",
    "Item",
    "as_list",
    "as_manifest",
    "chosen_field",
    "label_of",
    "list_of",
    "number_of",
    "table_of",
    "text_of",
]

_MOST = 1e9
"""Seconds or frames that no video has."""


@dataclass(frozen=True)
class Item:
    """Something that was said of a video or a part of it; or only that there is the video.

    Attributes:
        video: The video, as the file names it.
        labels: Names of its classes; empty if there are none.
        where: Where it stands in the file, for messages.
        start: Where the part begins in seconds from the first frame; None is the first frame.
        end: Where it ends; None is the end of the video.
        frames: First and last frame of the part, counted from 0, if the file has frames instead of seconds.
        fps: Frames a second by which the file counts these; None if they are the frames that the video has.
        spare: How many of the last frames may be beyond the end of the video.
        also: Other names under which the video may lie.
        split: The split that the file names; may be empty.
        stored: Number of the file of the export and row in it where the bytes of the video lie; None if it is a file.
    """

    video: str
    labels: tuple[str, ...]
    where: str
    start: float | None = None
    end: float | None = None
    frames: tuple[int, int] | None = None
    fps: float | None = None
    spare: int = 0
    also: tuple[str, ...] = ()
    split: str = ""
    stored: tuple[int, int] | None = None


@dataclass
class Export:
    """The content of a file of another program.

    Attributes:
        items: What it says of videos, in order.
        left_out: Kinds of things that are no labels of videos, and how many there are of each.
        remarks: What a user should know else, a sentence each.
        class_names: All classes in their order, if the file has one.
        tables: The files whose rows hold videos as bytes, and the column of these.
    """

    items: list[Item] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    tables: tuple[tuple[str, ...], str] | None = None


# --- values of JSON ---------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def table_of(value: Any, where: str) -> dict[str, Any]:
    """Returns a value that must be a table.

    Raises:
        ManifestError: If it is something else; the message begins with `where`.
    """
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: is {_shown(value)}, not a table")
    return value


def list_of(value: Any, where: str) -> list[Any]:
    """Returns a value that must be a list.

    Raises:
        ManifestError: If it is something else; the message begins with `where`.
    """
    if not isinstance(value, list):
        raise ManifestError(f"{where}: is {_shown(value)}, not a list")
    return value


def text_of(value: Any, where: str) -> str:
    """Returns a value that must be a text that is not blank, without spaces around it.

    Raises:
        ManifestError: If it is something else; the message begins with `where`.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ManifestError(f"{where}: is {_shown(value)}, not a name")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise ManifestError(f"{where}: is {_shown(value)}, which holds half of a letter")
    return value.strip()


def label_of(value: Any, where: str) -> str:
    """Returns a label, which is a text or a whole number.

    Raises:
        ManifestError: If it is something else; the message begins with `where`.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST:
        return str(value)
    return text_of(value, where)


def number_of(value: Any, where: str, *, least: float = 0.0) -> float:
    """Returns a number of seconds or frames.

    Raises:
        ManifestError: If it is no number, too small, or beyond any video; the message begins with `where`.
    """
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST
    if not fits or not math.isfinite(value) or value < least:
        raise ManifestError(f"{where}: is {_shown(value)}, not a number of {least:g} or more")
    return float(value)


def chosen_field(fields: Iterable[str], wanted: str | None, source: str, what: str) -> str | None:
    """Returns which of several fields has the labels: the wanted one, or the only one.

    Args:
        fields: The fields that hold labels.
        wanted: The name that the user gave; None if there was none.
        source: The file, for messages.
        what: The word of the program for a field.

    Raises:
        ManifestError: If there are several and none is wanted, or the wanted one is not there.
    """
    there = list(dict.fromkeys(fields))
    if wanted is not None:
        if wanted not in there:
            has = f"has {', '.join(there)}" if there else "has none"
            raise ManifestError(f"{source}: no {what} {wanted!r} holds labels; it {has}{nearest(wanted, there)}")
        return wanted
    if len(there) > 1:
        raise ManifestError(
            f"{source}: labels stand under {len(there)} names ({what}: {', '.join(there)}); say which to take: "
            f"stvid prep manifest ... --field {there[0]}"
        )
    return there[0] if there else None


# --- rows -------------------------------------------------------------------------------------------------------------


class _Places:
    """Finds the videos of a list below a folder."""

    def __init__(self, root: str, source: str) -> None:
        self.root = root
        self.source = source
        self.missing: list[str] = []
        self._found: dict[tuple[str, ...], str] = {}

    def find(self, item: Item) -> str:
        """Returns where a video lies: an address as it is, else the longest end of its path that is there."""
        names = (item.video, *item.also)
        if names not in self._found:
            self._found[names] = self._find(names, item.where)
        return self._found[names]

    def _find(self, names: tuple[str, ...], where: str) -> str:
        first = names[0].removeprefix("file://")
        if "://" in first:
            if not is_remote_file(first):
                raise ManifestError(f"{self.source}, {where}: files are not read from addresses like {first[:200]!r}")
            return first
        for name in (first, *names[1:]):
            name = expand_home(name, root=self.root)
            if os.path.isabs(name) and os.path.lexists(name):
                return name
            parts = [part for part in name.replace("\\", "/").split("/") if part]
            for number in range(len(parts)):
                below = os.path.join(*parts[number:])
                if os.path.lexists(os.path.join(self.root, below)):
                    return below
        self.missing.append(first)
        return first


class _FrameTimes:
    """Turns numbers of frames into seconds from the first frame."""

    def __init__(self, root: str, source: str, fps: float | None) -> None:
        self.root = root
        self.source = source
        self.fps = fps
        self._read: tuple[str, np.ndarray] = ("", np.empty(0))

    def part(self, item: Item, path: str) -> tuple[float | None, float | None]:
        """Returns begin and end of an item's part."""
        if item.frames is None:
            return item.start, item.end
        first, last = item.frames
        rate = self.fps or item.fps
        if rate is not None:
            return first / rate, (last + 1) / rate
        edges = self._edges(path, item)
        last = min(last, max(last - item.spare, len(edges) - 2))
        if last + 1 >= len(edges):
            raise ManifestError(
                f"{self.source}, {item.where}: frame {last} (counted from 0) is beyond the {len(edges) - 1} frames of "
                f"{path}; give the rate by which they were counted: stvid prep manifest ... --fps"
            )
        if first == 0 and last + 2 == len(edges):
            return None, None  # the whole video
        return float(edges[first]), float(edges[last + 1])

    def _edges(self, path: str, item: Item) -> np.ndarray:
        """Returns the time of each frame of a video, and that of its end."""
        if self._read[0] != path:
            try:
                with VideoReader(path if "://" in path else os.path.join(self.root, path)) as reader:
                    times = np.asarray(reader.timestamps, np.float64)
                    edges = np.append(times - times[0], reader.duration)
            except VideoError as error:
                raise ManifestError(
                    f"{self.source}, {item.where}: has numbers of frames, whose times only the video tells ({error}); "
                    "give its folder with --root, or its frames a second: stvid prep manifest ... --fps"
                ) from error
            self._read = (path, edges)
        return self._read[1]


def as_list(
    export: Export, source: str, root: str, *, fps: float | None = None, multilabel: bool | None = False
) -> VideoList:
    """Makes the rows of a list of videos.

    Args:
        export: The content of the file.
        source: The file, for messages.
        root: Folder of the videos.
        fps: Frames a second by which frames were counted; None takes what the file says, else the times of the video.
        multilabel: Whether a video without labels shows none of the classes. Otherwise it is left out, unless no video
            has a label. None: if any video has several labels.

    Raises:
        ManifestError: If there is no video, or a part is none.
    """
    places, times = _Places(root, source), _FrameTimes(root, source, fps)
    parts: dict[tuple[str, float | None, float | None], tuple[Item, dict[str, None]]] = {}
    for item in export.items:
        path = item.video if item.stored is not None else places.find(item)
        start, end = times.part(item, path)
        if end is not None and end <= (start or 0.0):
            raise ManifestError(f"{source}, {item.where}: its part ends at {end:g} s, not after {start or 0:g} s")
        kept, labels = parts.setdefault((path, start, end), (item, {}))
        if kept.split != item.split:
            raise ManifestError(f"{source}, {item.where}: {path} is in two splits, {kept.split} and {item.split}")
        labels.update(dict.fromkeys(item.labels))
    left_out = Counter(export.left_out)
    if multilabel is None:
        multilabel = any(len(labels) > 1 for _, labels in parts.values())
    labelled = sum(bool(labels) for _, labels in parts.values())
    if labelled and not multilabel and labelled < len(parts):
        left_out["videos without a label"] += len(parts) - labelled
        parts = {key: (item, labels) for key, (item, labels) in parts.items() if labels}
    said = f"left out: {', '.join(f'{kind} ({count})' for kind, count in left_out.items())}" if left_out else ""
    if not parts:
        raise ManifestError(f"{source}: names no video that could be used{f'; {said}' if said else ''}")
    rows = [
        Row(path, tuple(of), start, end, item.where, stored=item.stored)
        for (path, start, end), (item, of) in parts.items()
    ]
    splits = [item.split for item, _ in parts.values()]
    found = VideoList(rows, multilabel, _known_splits(splits, source), (), export.class_names, export.tables)
    remarks = [*export.remarks, *([said] if said else [])]
    if places.missing:
        remarks.append(
            f"{len(places.missing)} of its videos are not below {root}, such as {places.missing[0]}; give their folder "
            "as root"
        )
    found.notes = tuple(f"{source}: {remark}" for remark in remarks)
    return found


def as_manifest(export: Export, source: str, *, root: str | None, multilabel: bool | None) -> Manifest:
    """Makes a list of videos of what another program holds in memory; the arguments are those of `as_list`."""
    base = root or os.getcwd()
    found = as_list(export, source, base, multilabel=multilabel)
    manifest = build_manifest(
        found.rows, root=base, class_names=found.class_names or None, source=source, multilabel=found.sparse
    )
    manifest.notes = found.notes
    manifest.splits = tuple(sorted({*found.splits}))
    return manifest


def _known_splits(splits: list[str], source: str) -> list[str]:
    if not any(splits):
        return []
    for split in splits:
        if split.lower() not in SPLITS:
            raise ManifestError(f"{source}: split {split!r} is none of train, val and test")
    return [SPLITS[split.lower()] for split in splits]
