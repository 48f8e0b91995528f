"""A list of videos as a table: which there are, and what they show.

`stvid.data.manifest` reads such lists from files.
"""

from __future__ import annotations

import itertools
import math
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from stvid.data.labels import are_numbers, label_places, order_labels, unknown_label
from stvid.data.members import Members
from stvid.data.table_rows import TableRows
from stvid.errors import ManifestError
from stvid.video.frame_index import Index

__all__ = ["Manifest", "Row", "StoredVideo", "VideoEntry", "build_manifest", "checked_class_names"]


@dataclass(frozen=True)
class VideoEntry:
    """One row of a manifest.

    Attributes:
        path: Absolute path of the video file (or of a folder of images), or its URL; in shards the tar and the name in
            it, in tables the file and the row.
        labels: Names of its classes; empty if unknown, several only in a multi-label manifest.
        start: Where the part to use begins, in seconds from the first frame of the video; None is the first frame.
        end: Where it ends, in seconds from the first frame; None is the end of the video.
    """

    path: str
    labels: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of a list as it was read.

    Attributes:
        path: The video, relative to the root of the list or absolute.
        labels: Names of its classes.
        start: Where the part to use begins, in seconds from the first frame; None is the first frame.
        end: Where it ends, in seconds from the first frame; None is the end of the video.
        where: Where the row stands in the list, for messages.
        group: What it shares with other rows (a person, a recording), so that they belong to the same split; may be
            empty.
        stored: Number of the file and row in it where the bytes of the video lie; None if it is a file of its own.
    """

    path: str
    labels: tuple[str, ...]
    start: float | None
    end: float | None
    where: str
    group: str = ""
    stored: tuple[int, int] | None = None


class _Ragged(NamedTuple):
    """Rows of different lengths in one array.

    Attributes:
        values: All rows, one after the other.
        ends: Where each row begins, and where the last one ends, int64 (N + 1,).
    """

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> _Ragged:
        """Returns rows of these lengths."""
        return cls(values, np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64))

    def row(self, index: int) -> np.ndarray:
        """Returns one row; not a copy."""
        return self.values[self.ends[index] : self.ends[index + 1]]

    def rows(self, picked: np.ndarray) -> _Ragged:
        """Returns some rows, in the order given."""
        lengths = np.diff(self.ends)[picked]
        new = _Ragged.of(self.values, lengths)
        places = np.arange(new.ends[-1]) + np.repeat(self.ends[:-1][picked] - new.ends[:-1], lengths)
        return new._replace(values=self.values[places])


class Manifest:
    """A table of videos, held in a few arrays.

    A list of Python objects would be copied into every worker process piece by piece, as their reference counts change;
    arrays are shared after a fork and pickle fast for a spawn.

    Made by `stvid.data.manifest.read_manifest` or `Manifest.from_entries`.

    Attributes:
        class_names: The names that label ids stand for.
        source: Where it came from, for messages.
        members: Where the videos lie in shards, or in rows of tables; None if they are files.
        labels_are: ``numbers`` if the labels of the list are numbers, which were taken for places of `class_names`,
            which are words; else ``names``.
        notes: What a user should know of how the list was read, a line each: files that were left out, and the like.
        splits: The splits that a column of the list names: ``train``, ``val``, ``test``; those of the list, not only of
            the rows that were taken.
        groups: A number for each video, int64 (N,): those of one number belong together and are held out together;
            None if no column of the list says so.
    """

    def __init__(
        self,
        *,
        root: str,
        names: _Ragged,
        ids: _Ragged,
        spans: np.ndarray,
        class_names: tuple[str, ...],
        source: str,
        members: Members | TableRows | None = None,
        labels_are: Literal["names", "numbers"] = "names",
    ) -> None:
        self._root = root
        self._names = names  # uint8: the paths below the root, UTF-8
        self._ids = ids  # int64: the label ids
        self._spans = spans  # float64 (N, 2): start and end, NaN where not given
        self.class_names = class_names
        self.source = source
        self.members = members
        self.labels_are = labels_are
        self.notes: tuple[str, ...] = ()
        self.splits: tuple[str, ...] = ()
        self.groups: np.ndarray | None = None

    def _said_of(self, other: Manifest, picked: np.ndarray | None = None) -> Manifest:
        """Returns this table, of `picked` rows of `other`, with what is said of the list that they came from."""
        self.notes, self.splits = other.notes, other.splits
        self.groups = other.groups if picked is None or other.groups is None else other.groups[picked]
        return self

    @classmethod
    def from_entries(
        cls,
        entries: Iterable[VideoEntry],
        *,
        class_names: Sequence[str] | None = None,
        source: str = "<entries>",
        multilabel: bool = False,
        root: str | None = None,
    ) -> Manifest:
        """Makes a manifest of rows.

        Args:
            entries: The rows.
            class_names: The classes in order; None takes the labels that occur, see `stvid.data.labels.order_labels`.
            source: Name of the list in messages.
            multilabel: Whether a row without labels may stand beside labelled ones: it shows none of the classes.
            root: Folder or URL that relative paths start from; None is the working directory.

        Raises:
            ManifestError: If a label is not in `class_names`, two rows are the same, or some rows have labels and
                others have not although `multilabel` is off.
        """
        rows = [Row(e.path, tuple(e.labels), e.start, e.end, f"entry {n}") for n, e in enumerate(entries)]
        return build_manifest(
            rows, root=root or os.getcwd(), class_names=class_names, source=source, multilabel=multilabel
        )

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> VideoEntry:
        """Returns one row, with its absolute path."""
        index = range(len(self))[index]
        name = bytes(self._names.row(index))
        start, end = self._spans[index].tolist()
        return VideoEntry(
            path=_joined(self._root, os.fsdecode(name)),
            labels=tuple(self.class_names[number] for number in self.label_ids(index)),
            start=None if math.isnan(start) else start,
            end=None if math.isnan(end) else end,
        )

    def __repr__(self) -> str:
        return f"Manifest({self.source!r}: {len(self)} videos, {len(self.class_names)} classes)"

    def content(self, index: int) -> str | bytes:
        """Returns the source that a `VideoReader` opens for one row: its path, or its bytes if it lies in a shard
        or a table.

        Raises:
            VideoError: If its shard cannot be read.
        """
        return self.content_and_index(index)[0]

    def content_and_index(self, index: int) -> tuple[str | bytes, Index | None]:
        """Returns the source of one row for a `VideoReader`, see `content`, and the index that its shard has of it.

        Raises:
            VideoError: If its shard cannot be read.
        """
        return (self[index].path, None) if self.members is None else self.members.read(range(len(self))[index])

    def label_ids(self, index: int) -> np.ndarray:
        """Returns the label ids of one video: int64 (labels,), indices into `class_names`, ascending."""
        return self._ids.row(range(len(self))[index])

    @property
    def primary(self) -> np.ndarray:
        """The (first) label id of each video: int64 (N,), -1 where there is none."""
        firsts = np.full(len(self), -1, np.int64)
        labelled = np.diff(self._ids.ends) > 0
        firsts[labelled] = self._ids.values[self._ids.ends[:-1][labelled]]
        return firsts

    @property
    def used_classes(self) -> tuple[str, ...]:
        """The classes that a video shows, in order."""
        return tuple(self.class_names[number] for number in np.unique(self._ids.values))

    @property
    def has_labels(self) -> bool:
        """Whether the videos are labelled: every one, or in a multi-label manifest at least one."""
        return len(self._ids.values) > 0

    def without_labels(self) -> Manifest:
        """Returns the same videos without labels and classes."""
        return Manifest(
            root=self._root,
            names=self._names,
            ids=_Ragged.of(np.empty(0, np.int64), np.zeros(len(self), np.int64)),
            spans=self._spans,
            class_names=(),
            source=self.source,
            members=self.members,
        )._said_of(self)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Manifest:
        """Returns a manifest of some of the videos, in the order given, with the same class names."""
        picked = np.asarray(indices)
        picked = picked.astype(np.int64) if picked.size == 0 else picked
        if picked.dtype.kind not in "iu":
            raise TypeError(f"indices must be whole numbers, not {picked.dtype}")
        if picked.size and (picked.min() < 0 or picked.max() >= len(self)):
            raise IndexError(f"{self.source}: rows {picked.min()}..{picked.max()} of a manifest of {len(self)} videos")
        return Manifest(
            root=self._root,
            names=self._names.rows(picked),
            ids=self._ids.rows(picked),
            spans=self._spans[picked],
            class_names=self.class_names,
            source=self.source,
            members=None if self.members is None else self.members.subset(picked),
            labels_are=self.labels_are,
        )._said_of(self, picked)

    def with_class_names(self, names: Sequence[str]) -> Manifest:
        """Returns the same videos with label ids that are indices into `names`.

        Labels are matched by name. If all of them are whole numbers and none is a name, they are the indices.

        Raises:
            ManifestError: If a label that occurs is not in `names`.
        """
        wanted = checked_class_names(names, self.source)
        places, numbered = label_places(self.class_names, wanted)
        table = np.array(places, np.int64)
        before, ends = self._ids
        ids = table[before] if len(before) else before.copy()
        if (ids < 0).any():
            missing = self.class_names[int(before[int(np.argmax(ids < 0))])]
            count = len({int(number) for number in before[ids < 0]})
            why = unknown_label(missing, wanted, numbers=are_numbers(self.class_names), more=count - 1)
            raise ManifestError(f"{self.source}: {why}")
        for begin, end in itertools.pairwise(ends):
            if end - begin > 1:
                ids[begin:end].sort()
        return Manifest(
            root=self._root,
            names=self._names,
            ids=_Ragged(ids, ends),
            spans=self._spans,
            class_names=wanted,
            source=self.source,
            members=self.members,
            labels_are="numbers" if numbered else self.labels_are,
        )._said_of(self)


@dataclass(frozen=True)
class StoredVideo:
    """A video that is no file of its own: a row of a list in shards or tables.

    Attributes:
        manifest: The list.
        index: Number of the row.
    """

    manifest: Manifest
    index: int

    @property
    def path(self) -> str:
        """The name of the video, for messages."""
        return self.manifest[self.index].path


def checked_class_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Returns class names, or says what is wrong with them.

    Raises:
        ManifestError: If there are none, or one is empty or occurs twice; the message begins with `source`.
    """
    result = tuple(str(name) for name in names)
    if not result:
        raise ManifestError(f"{source}: the list of class names is empty")
    seen: set[str] = set()
    for name in result:
        if not name.strip():
            raise ManifestError(f"{source}: a class name is empty")
        if name in seen:
            raise ManifestError(f"{source}: class name {name!r} occurs twice")
        seen.add(name)
    return result


def build_manifest(
    rows: Sequence[Row], *, root: str, class_names: Sequence[str] | None, source: str, multilabel: bool = False
) -> Manifest:
    """Makes a manifest of rows that were read.

    Args:
        rows: The rows.
        root: Folder or URL that relative paths start from.
        class_names: The classes in order; None takes the labels that occur, see `stvid.data.labels.order_labels`.
        source: Name of the list in messages.
        multilabel: Whether a row without labels may stand beside labelled ones.

    Raises:
        ManifestError: If a label is not in `class_names`, two rows are the same, a part ends before it begins, or some
            rows have labels and others have not although `multilabel` is off.
    """
    labels = list({label: None for row in rows for label in row.labels})
    if class_names is not None:
        names = checked_class_names(class_names, source)
    else:
        names = order_labels(labels, source)
    places, numbered = label_places(labels, names)
    position = dict(zip(labels, places, strict=True))
    root = root if "://" in root else os.path.abspath(root)
    seen: dict[tuple[str, float | None, float | None], str] = {}
    ids: list[int] = []
    counts: list[int] = []
    paths: list[bytes] = []
    unlabelled = next((row for row in rows if not row.labels), None)
    labelled = next((row for row in rows if row.labels), None)
    if unlabelled is not None and labelled is not None and not multilabel:
        raise ManifestError(f"{source}, {unlabelled.where}: {unlabelled.path!r} has no label, but others have")
    for row in rows:
        if row.end is not None and row.end <= (row.start or 0):
            raise ManifestError(f"{source}, {row.where}: end ({row.end:g} s) is not after start ({row.start or 0:g} s)")
        path = row.path if "://" in row.path else _other_form(root, os.path.normpath(row.path))
        key = (_joined(root, path), row.start, row.end)  # one row may have it relative, another absolute
        if key in seen:
            raise ManifestError(
                f"{source}, {row.where}: {row.path!r} is already at {seen[key]}; remove one (several labels of a "
                "video: multilabel, joined by |)"
            )
        seen[key] = row.where
        for label in row.labels:
            if position[label] < 0:
                why = unknown_label(label, names, numbers=are_numbers(labels))
                raise ManifestError(f"{source}, {row.where}: {why}")
        own = sorted({position[label] for label in row.labels})
        ids.extend(own)
        counts.append(len(own))
        paths.append(os.fsencode(path))
    manifest = Manifest(
        root=root,
        names=_Ragged.of(np.frombuffer(b"".join(paths), np.uint8).copy(), [len(path) for path in paths]),
        ids=_Ragged.of(np.array(ids, np.int64), counts),
        spans=np.array([[_nan(row.start), _nan(row.end)] for row in rows], np.float64).reshape(len(rows), 2),
        class_names=names,
        source=source,
        labels_are="numbers" if numbered else "names",
    )
    if any(row.group for row in rows):
        # A row without a group is one of its own.
        keys = [row.group or f"\0{number}" for number, row in enumerate(rows)]
        manifest.groups = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return manifest


def _joined(root: str, path: str) -> str:
    """Returns where a video lies: a URL or an absolute path by itself, else below the root."""
    return path if "://" in path else os.path.join(root, path)


def _other_form(root: str, path: str) -> str:
    """Returns a path as the file system spells it, if that differs in the Unicode form of its letters only.

    Folders made on a Mac have accents as letters of their own (NFD), lists from elsewhere one letter (NFC). Paths in
    ASCII, most of all, cost no look at the file system.
    """
    if path.isascii() or "://" in root or os.path.lexists(os.path.join(root, path)):
        return path
    found = ""
    for part in path.split(os.sep):
        forms = dict.fromkeys((part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))))
        there = (form for form in forms if os.path.lexists(os.path.join(root, found, form)))
        if part and (part := next(there, "")) == "":
            return path  # it is not there in any form
        found = os.path.join(found, part) if part else os.sep
    return found


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
