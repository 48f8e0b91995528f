"""Manifests: which videos there are, and what they show.

Five forms are read: a CSV of one's own, a folder per class, the official CSV of Kinetics, the official JSON of
Something-Something v2, and the tar shards of `stvid prep shard`. Labels are class *names*; their numbers come from the
list of class names, which is given or made of the names that occur, sorted. A CSV whose labels are numbers is read as
one whose class names are "0", "1", ...

That a video file is missing is no error here: it is reported when the video is read.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stvid.errors import ManifestError, nearest

if TYPE_CHECKING:
    from stvid.data.shards import Members
    from stvid.video.frame_index import Index

__all__ = ["FORMATS", "VIDEO_EXTENSIONS", "Manifest", "VideoEntry", "read_class_names", "read_manifest"]

FORMATS = ("auto", "csv", "folder", "kinetics", "ssv2", "shards")
VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        "3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts",
        "mxf", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv",
    )
)  # fmt: skip
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "eval"})
_COLUMNS = ("path", "label", "start", "end")


@dataclass(frozen=True)
class VideoEntry:
    """One row of a manifest.

    Attributes:
        path: Absolute path of the video file (or of a folder of images); in shards the tar and the name in it.
        labels: Names of its classes; empty if unknown, several only in a multi-label manifest.
        start: Where the part to use begins, in seconds from the first frame of the video; None is the first frame.
        end: Where it ends, in seconds from the first frame; None is the end of the video.
    """

    path: str
    labels: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None


class Manifest:
    """A table of videos, held in a few arrays.

    A list of Python objects would be copied into every worker process piece by piece, as their reference counts change;
    arrays are shared after a fork and pickle fast for a spawn.

    Made by `read_manifest` or `Manifest.from_entries`.

    Attributes:
        class_names: The names that label ids stand for.
        source: Where it came from, for messages.
        members: Where the videos lie in shards; None if they are files.
    """

    def __init__(
        self,
        *,
        root: str,
        names: np.ndarray,
        name_ends: np.ndarray,
        ids: np.ndarray,
        id_ends: np.ndarray,
        spans: np.ndarray,
        class_names: tuple[str, ...],
        source: str,
        members: Members | None = None,
    ) -> None:
        self._root = root
        self._names = names  # uint8: all paths below the root, UTF-8, one after the other
        self._name_ends = name_ends  # int64 (N + 1,)
        self._ids = ids  # int64: all label ids, one video after the other
        self._id_ends = id_ends  # int64 (N + 1,)
        self._spans = spans  # float64 (N, 2): start and end, NaN where not given
        self.class_names = class_names
        self.source = source
        self.members = members

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
            class_names: The classes in order; None takes the labels that occur, sorted.
            source: What messages call it.
            multilabel: Whether a row without labels may stand beside labelled ones: it shows none of the classes.
            root: Folder or URL that relative paths start from; None is the working directory.

        Raises:
            ManifestError: If a label is not in `class_names`, two rows are the same, or some rows have labels and
                others have not although `multilabel` is off.
        """
        rows = [_Row(e.path, tuple(e.labels), e.start, e.end, f"entry {n}") for n, e in enumerate(entries)]
        return _build(rows, root=root or os.getcwd(), class_names=class_names, source=source, multilabel=multilabel)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> VideoEntry:
        """Returns one row, with its absolute path."""
        index = range(len(self))[index]
        name = bytes(self._names[self._name_ends[index] : self._name_ends[index + 1]])
        start, end = self._spans[index].tolist()
        return VideoEntry(
            path=os.path.join(self._root, os.fsdecode(name)),
            labels=tuple(self.class_names[number] for number in self.label_ids(index)),
            start=None if math.isnan(start) else start,
            end=None if math.isnan(end) else end,
        )

    def __repr__(self) -> str:
        return f"Manifest({self.source!r}: {len(self)} videos, {len(self.class_names)} classes)"

    def content(self, index: int) -> str | bytes:
        """Returns what a `VideoReader` opens for one row: its path, or its bytes if it lies in a shard.

        Raises:
            VideoError: If its shard cannot be read.
        """
        return self.content_and_index(index)[0]

    def content_and_index(self, index: int) -> tuple[str | bytes, Index | None]:
        """Returns what a `VideoReader` opens for one row, as `content`, and the index that its shard has of it.

        Raises:
            VideoError: If its shard cannot be read.
        """
        return (self[index].path, None) if self.members is None else self.members.read(range(len(self))[index])

    def label_ids(self, index: int) -> np.ndarray:
        """Returns the label ids of one video: int64 (labels,), indices into `class_names`, ascending."""
        index = range(len(self))[index]
        return self._ids[self._id_ends[index] : self._id_ends[index + 1]]

    @property
    def primary(self) -> np.ndarray:
        """The (first) label id of each video: int64 (N,), -1 where there is none."""
        firsts = np.full(len(self), -1, np.int64)
        labelled = np.diff(self._id_ends) > 0
        firsts[labelled] = self._ids[self._id_ends[:-1][labelled]]
        return firsts

    @property
    def has_labels(self) -> bool:
        """Whether the videos are labelled: every one, or in a multi-label manifest at least one."""
        return len(self._ids) > 0

    def subset(self, indices: Sequence[int] | np.ndarray) -> Manifest:
        """Returns a manifest of some of the videos, in the order given, with the same class names."""
        picked = np.asarray(indices)
        picked = picked.astype(np.int64) if picked.size == 0 else picked
        if picked.dtype.kind not in "iu":
            raise TypeError(f"indices must be whole numbers, not {picked.dtype}")
        if picked.size and (picked.min() < 0 or picked.max() >= len(self)):
            raise IndexError(f"{self.source}: rows {picked.min()}..{picked.max()} of a manifest of {len(self)} videos")
        names, name_ends = _gather(self._names, self._name_ends, picked)
        ids, id_ends = _gather(self._ids, self._id_ends, picked)
        return Manifest(
            root=self._root,
            names=names,
            name_ends=name_ends,
            ids=ids,
            id_ends=id_ends,
            spans=self._spans[picked],
            class_names=self.class_names,
            source=self.source,
            members=None if self.members is None else self.members.subset(picked),
        )

    def with_class_names(self, names: Sequence[str]) -> Manifest:
        """Returns the same videos with label ids that are indices into `names`; labels are matched by name.

        Raises:
            ManifestError: If a label that occurs is not in `names`.
        """
        wanted = _checked_class_names(names, self.source)
        position = {name: number for number, name in enumerate(wanted)}
        table = np.array([position.get(name, -1) for name in self.class_names], np.int64)
        ids = table[self._ids] if len(self._ids) else self._ids
        if (ids < 0).any():
            missing = self.class_names[int(self._ids[int(np.argmax(ids < 0))])]
            count = len({int(number) for number in self._ids[ids < 0]})
            more = f" (and {count - 1} more)" if count > 1 else ""
            raise ManifestError(
                f"{self.source}: label {missing!r}{more} is not among the {len(wanted)} class names"
                f"{nearest(missing, wanted)}"
            )
        ids = ids.copy()
        for begin, end in zip(self._id_ends[:-1], self._id_ends[1:], strict=True):
            if end - begin > 1:
                ids[begin:end].sort()
        return Manifest(
            root=self._root,
            names=self._names,
            name_ends=self._name_ends,
            ids=ids,
            id_ends=self._id_ends,
            spans=self._spans,
            class_names=wanted,
            source=self.source,
            members=self.members,
        )


@dataclass(frozen=True)
class _Row:
    """One row as read: path relative to the root or absolute, and where it stands in the file."""

    path: str
    labels: tuple[str, ...]
    start: float | None
    end: float | None
    where: str


def read_manifest(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    class_names: Sequence[str] | None = None,
    multilabel: bool = False,
) -> Manifest:
    """Reads a list of videos.

    Formats:
        csv: Columns ``path,label[,start,end]`` in any order, named by the first line; ``label`` may be missing
            (unlabelled videos). A file of two columns without a header is taken as path and label. UTF-8, commas,
            quotes where a name holds a comma. ``start`` and ``end`` are seconds from the first frame of the video,
            wherever the clock of the file begins.
        folder: One folder per class, which holds video files, also in folders below it. A folder without videos is no
            class.
        kinetics: The official CSV (``label,youtube_id,time_start,time_end,split``; the test list has no labels). Files
            are ``<id>_<start>_<end>.mp4`` with six digits each (the cut clip) or ``<id>.mp4`` (the whole video, of
            which the row's seconds are used), with any video extension, in the root or in a folder of it named after
            the class.
        ssv2: The official JSON of Something-Something v2: a list with ``id`` and ``template`` (or ``label``), brackets
            removed ("[something]" is "something"); the test list has ids only. Files are ``<id>.webm`` or ``<id>.mp4``
            in the root.
        shards: A folder or URL (``s3://``, ``https://``, whatever fsspec opens) with the ``shards.json`` and the tar
            files of `stvid prep shard`.

    Args:
        source: The file, or for ``folder`` and ``shards`` the folder.
        root: Folder that relative paths start from; None is the folder of the manifest.
        format: One of the above, or ``auto``: shards (a URL, or a folder with ``shards.json``), a folder, a .json file,
            a CSV with a column ``youtube_id``, or a CSV.
        class_names: The classes in order; None takes the labels that occur, sorted.
        multilabel: Whether the labels of a CSV are lists joined by ``|``. An empty one then means that the video shows
            none of the classes.

    Raises:
        ManifestError: If it is missing, empty, or has a row that cannot be used: one line with the file, the line
            number, what is wrong and what would be right.
    """
    path = os.fspath(source)
    if format not in FORMATS:
        raise ManifestError(
            f"format {format!r} does not exist; use one of {', '.join(FORMATS)}{nearest(format, FORMATS)}"
        )
    from stvid.data.shards import is_shards, read_shards

    if format == "shards" or (format == "auto" and is_shards(path)):
        if root is not None:
            raise ManifestError(f"{path}: root has no meaning for shards; leave it out")
        return read_shards(path, class_names=class_names)
    if not os.path.exists(path):
        raise ManifestError(f"{path}: no such file or folder")
    if format == "auto" and os.path.isdir(path):
        format = "folder"
    if format == "folder":
        if not os.path.isdir(path):
            raise ManifestError(f"{path}: format 'folder' needs a folder that holds a folder per class")
        if root is not None:
            raise ManifestError(f"{path}: root has no meaning for a folder per class; leave it out")
        found, rows = _read_folder(path)
        return _build(rows, root=path, class_names=class_names if class_names is not None else found, source=path)
    if os.path.isdir(path):
        raise ManifestError(f"{path}: is a folder, but format {format!r} needs a file")
    if _is_video(path):
        raise ManifestError(
            f"{path}: is a video, not a list of videos; give a CSV (path,label), a JSON or a folder per class"
        )
    base = os.fspath(root) if root is not None else os.path.dirname(path) or "."
    text = _read_text(path)
    sparse = False
    if format == "ssv2" or (format == "auto" and path.lower().endswith(".json")):
        rows = _read_ssv2(text, path, base)
    else:
        table = _read_table(text, path)
        header = [cell.strip().lower() for cell in table[0][1]]
        if format == "kinetics" or (format == "auto" and "youtube_id" in header):
            rows = _read_kinetics(table, path, base)
        else:
            rows = _read_csv(table, path, multilabel)
            sparse = multilabel
    return _build(rows, root=base, class_names=class_names, source=path, multilabel=sparse)


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads a list of class names: a text file with one a line, a JSON list, or a JSON table from name to number.

    The last is the labels file of Something-Something v2 (``{"Approaching something with your camera": "0", ...}``);
    its numbers must run from 0 without gaps.

    Raises:
        ManifestError: If the file is missing, empty, or holds a name twice.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise ManifestError(f"{name}: no such file")
    text = _read_text(name)
    if not name.lower().endswith(".json"):
        return _checked_class_names([line.strip() for line in text.splitlines() if line.strip()], name)
    content = _parse_json(text, name)
    if isinstance(content, dict):
        try:
            numbers = {int(number): label for label, number in content.items()}
        except (TypeError, ValueError) as error:
            raise ManifestError(f"{name}: the values are not numbers ({error})") from error
        if len(numbers) != len(content) or sorted(numbers) != list(range(len(numbers))):
            raise ManifestError(f"{name}: the numbers of the classes do not run from 0 to {len(content) - 1}")
        content = [numbers[number] for number in range(len(numbers))]
    if not isinstance(content, list) or not all(isinstance(label, str) for label in content):
        raise ManifestError(f"{name}: needs a list of names, or a table from name to number")
    return _checked_class_names(content, name)


# ---------------------------------------------------------------------------------------------------------------- forms


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    if not text.strip():
        raise ManifestError(f"{path}: is empty")
    return text


def _parse_json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from error


def _read_table(text: str, path: str) -> list[tuple[int, list[str]]]:
    """Returns the lines of a CSV that are not blank: (line number, cells)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    table = []
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                table.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: is not CSV ({error})") from error
    if not table:
        raise ManifestError(f"{path}: is empty")
    return table


def _read_csv(table: list[tuple[int, list[str]]], path: str, multilabel: bool) -> list[_Row]:
    line, first = table[0]
    header = [cell.strip().lower() for cell in first]
    if "path" in header:
        for column in header:
            if column not in _COLUMNS:
                raise ManifestError(
                    f"{path}, line {line}: unknown column {column!r}; use {','.join(_COLUMNS)}"
                    f"{nearest(column, _COLUMNS)}"
                )
            if header.count(column) > 1:
                raise ManifestError(f"{path}, line {line}: column {column!r} occurs twice")
        body = table[1:]
        if not body:
            raise ManifestError(f"{path}: has a header but no videos")
    else:
        if len(header) != 2 or header[1] in ("label", "labels", "class", "class_name", "category"):
            raise ManifestError(
                f"{path}, line {line}: {','.join(first)!r} is neither a header ({','.join(_COLUMNS)}) nor a path and a "
                "label, with a comma between them"
            )
        header = ["path", "label"]
        body = table
    rows = []
    for line, cells in body:
        where = f"line {line}"
        if len(cells) != len(header):
            raise ManifestError(
                f"{path}, {where}: has {len(cells)} columns, not {len(header)} ({','.join(header)}); put quotes around "
                "a name that holds a comma"
            )
        values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        if not values["path"]:
            raise ManifestError(f"{path}, {where}: has no path")
        labels: tuple[str, ...] = ()
        if "label" in values:
            names = values["label"].split("|") if multilabel else [values["label"]]
            labels = tuple(dict.fromkeys(name.strip() for name in names))
            if multilabel and not values["label"]:
                labels = ()
            if "" in labels:
                raise ManifestError(f"{path}, {where}: {values['path']!r} has no label")
        start = _seconds(values.get("start", ""), f"{path}, {where}: start")
        end = _seconds(values.get("end", ""), f"{path}, {where}: end")
        rows.append(_Row(values["path"], labels, start, end, where))
    return rows


def _read_folder(path: str) -> tuple[list[str], list[_Row]]:
    """Returns the names of the folders that hold videos, and the videos."""
    folders = []
    classes = []
    rows: list[_Row] = []
    for entry in sorted(os.scandir(path), key=lambda item: item.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if _is_video(entry.name):
                raise ManifestError(f"{path}: {entry.name!r} is not in the folder of a class")
            continue
        before = len(rows)
        visited: set[str] = set()  # links to folders are followed, but not in circles
        for folder, below, files in os.walk(entry.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(files):
                if _is_video(name) and not name.startswith("."):
                    relative = os.path.relpath(os.path.join(folder, name), path)
                    rows.append(_Row(relative, (entry.name,), None, None, relative))
        folders.append(entry.name)
        if len(rows) > before:  # a folder without videos (logs, notes) is no class
            classes.append(entry.name)
    if folders and {name.lower() for name in folders} <= _SPLITS:
        raise ManifestError(
            f"{path}: {', '.join(folders)} look like splits, not classes; give one of them, for example "
            f"{os.path.join(path, folders[-1])}"
        )
    if not folders:
        raise ManifestError(f"{path}: holds no folders; a folder per class is needed, with video files in it")
    if not rows:
        raise ManifestError(f"{path}: there is no video file in its folders ({', '.join(sorted(VIDEO_EXTENSIONS))})")
    return classes, rows


def _read_kinetics(table: list[tuple[int, list[str]]], path: str, root: str) -> list[_Row]:
    line, first = table[0]
    header = [cell.strip().lower() for cell in first]
    for column in ("youtube_id", "time_start", "time_end"):
        if column not in header:
            raise ManifestError(f"{path}, line {line}: has no column {column!r}, which the CSV of Kinetics has")
    if len(table) == 1:
        raise ManifestError(f"{path}: has a header but no videos")
    listing = _Listing(root)
    rows = []
    for line, cells in table[1:]:
        where = f"line {line}"
        if len(cells) != len(header):
            raise ManifestError(f"{path}, {where}: has {len(cells)} columns, not {len(header)} ({','.join(header)})")
        values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        video = values["youtube_id"]
        if not video:
            raise ManifestError(f"{path}, {where}: has no youtube_id")
        start = _seconds(values["time_start"], f"{path}, {where}: time_start")
        end = _seconds(values["time_end"], f"{path}, {where}: time_end")
        if start is None or end is None:
            raise ManifestError(f"{path}, {where}: time_start and time_end are needed")
        labels: tuple[str, ...] = ()
        folders = [""]
        if "label" in values:
            if not values["label"]:
                raise ManifestError(f"{path}, {where}: {video!r} has no label")
            labels = (values["label"],)
            folders = [values["label"], values["label"].replace(" ", "_"), ""]
        cut = f"{video}_{round(start):06d}_{round(end):06d}"
        file = listing.find(folders, cut)
        if file is not None:
            rows.append(_Row(file, labels, None, None, where))
            continue
        file = listing.find(folders, video)
        if file is not None:
            rows.append(_Row(file, labels, start, end, where))
            continue
        folder = next((name for name in folders if name in listing.folders), "")
        rows.append(_Row(os.path.join(folder, f"{cut}.mp4"), labels, None, None, where))
    return rows


def _read_ssv2(text: str, path: str, root: str) -> list[_Row]:
    content = _parse_json(text, path)
    if not isinstance(content, list) or not content:
        raise ManifestError(
            f"{path}: needs a list of videos as Something-Something v2 has it, not {type(content).__name__}"
        )
    listing = _Listing(root, depth=0)
    rows = []
    for number, item in enumerate(content, start=1):
        where = f"video {number}"
        if not isinstance(item, dict) or not str(item.get("id", "")).strip():
            raise ManifestError(f"{path}, {where}: has no id")
        video = str(item["id"]).strip()
        where += f" (id {video})"
        template = item.get("template", item.get("label"))
        labels: tuple[str, ...] = ()
        if template is not None:
            name = str(template).replace("[", "").replace("]", "").strip()
            if not name:
                raise ManifestError(f"{path}, {where}: has no label")
            labels = (name,)
        rows.append(_Row(listing.find([""], video) or f"{video}.webm", labels, None, None, where))
    return rows


class _Listing:
    """The video files of a folder and of the folders in it, from one listing each: no system call a file."""

    def __init__(self, root: str, *, depth: int = 1) -> None:
        self.folders: dict[str, dict[str, str]] = {}
        if not os.path.isdir(root):
            raise ManifestError(f"{root}: no such folder (root of the videos)")
        self._list(root, "", depth)

    def _list(self, root: str, folder: str, depth: int) -> None:
        files = self.folders.setdefault(folder, {})
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                stem, extension = os.path.splitext(entry.name)
                if extension.lower() in VIDEO_EXTENSIONS:
                    files.setdefault(stem, entry.name)
                elif depth and entry.is_dir():
                    self._list(root, entry.name, depth - 1)

    def find(self, folders: Iterable[str], stem: str) -> str | None:
        """Returns the file with that name but for the extension, in the first of the folders that has it."""
        for folder in folders:
            name = self.folders.get(folder, {}).get(stem)
            if name is not None:
                return os.path.join(folder, name)
        return None


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_EXTENSIONS


def _seconds(text: str, what: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ManifestError(f"{what} is {text!r}: a number of seconds is needed, 0 or more")
    return value


# ------------------------------------------------------------------------------------------------------------- building


def _checked_class_names(names: Sequence[str], source: str) -> tuple[str, ...]:
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


def _ends(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64)


def _gather(values: np.ndarray, ends: np.ndarray, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picks rows of different lengths out of one array."""
    lengths = np.diff(ends)[picked]
    new_ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.arange(new_ends[-1]) + np.repeat(ends[:-1][picked] - new_ends[:-1], lengths)
    return values[places], new_ends


def _build(
    rows: list[_Row], *, root: str, class_names: Sequence[str] | None, source: str, multilabel: bool = False
) -> Manifest:
    if class_names is not None:
        names = _checked_class_names(class_names, source)
    else:
        names = tuple(sorted({label for row in rows for label in row.labels}))
    position = {name: number for number, name in enumerate(names)}
    root = root if "://" in root else os.path.abspath(root)
    seen: dict[tuple[str, float | None, float | None], str] = {}
    ids: list[int] = []
    paths: list[bytes] = []
    unlabelled = next((row for row in rows if not row.labels), None)
    labelled = next((row for row in rows if row.labels), None)
    if unlabelled is not None and labelled is not None and not multilabel:
        raise ManifestError(f"{source}, {unlabelled.where}: {unlabelled.path!r} has no label, but others have")
    for row in rows:
        if row.end is not None and row.end <= (row.start or 0):
            raise ManifestError(f"{source}, {row.where}: end ({row.end:g} s) is not after start ({row.start or 0:g} s)")
        path = os.path.normpath(row.path)
        key = (os.path.join(root, path), row.start, row.end)  # one row may have it relative, another absolute
        if key in seen:
            raise ManifestError(
                f"{source}, {row.where}: {row.path!r} is already at {seen[key]}; remove one (several labels of a "
                "video: multilabel, joined by |)"
            )
        seen[key] = row.where
        for label in row.labels:
            if label not in position:
                raise ManifestError(
                    f"{source}, {row.where}: label {label!r} is not among the {len(names)} class names"
                    f"{nearest(label, names)}"
                )
        ids.extend(sorted(position[label] for label in row.labels))
        paths.append(os.fsencode(path))
    return Manifest(
        root=root,
        names=np.frombuffer(b"".join(paths), np.uint8).copy(),
        name_ends=_ends([len(path) for path in paths]),
        ids=np.array(ids, np.int64),
        id_ends=_ends([len(row.labels) for row in rows]),
        spans=np.array([[_nan(row.start), _nan(row.end)] for row in rows], np.float64).reshape(len(rows), 2),
        class_names=names,
        source=source,
    )


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
