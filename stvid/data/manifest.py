"""Manifests: which videos there are, and what they show.

Five forms are read: a CSV of one's own, a folder per class, the official CSV of Kinetics, the official JSON of
Something-Something v2, and the tar shards of `stvid prep shard`. Labels are class *names*; their numbers come from the
list of class names, which is given or made of the names that occur, sorted. Labels that are whole numbers are the
places of the classes (`stvid.data.labels`); without a list of names the classes are called "0", "1", ...

That a video file is missing is no error here: it is reported when the video is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from stvid.data.annotations import Annotations, locate, parse_seconds, read_class_names, read_kinetics, read_ssv2
from stvid.data.shards import is_shards, read_shards
from stvid.data.text_files import Table, parse_table, read_text
from stvid.data.video_folder import VIDEO_EXTENSIONS, VideoFolder, counted_kinds, is_video
from stvid.data.video_table import Manifest, Row, VideoEntry, build_manifest
from stvid.errors import ManifestError, nearest

__all__ = ["FORMATS", "VIDEO_EXTENSIONS", "Manifest", "VideoEntry", "read_class_names", "read_manifest"]

FORMATS = ("auto", "csv", "folder", "kinetics", "ssv2", "shards")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_COLUMNS = ("path", "label", "start", "end", "split", "group")
_LABEL_WORDS = ("label", "labels", "class", "class_name", "category")


def read_manifest(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    class_names: Sequence[str] | None = None,
    multilabel: bool = False,
    splits: Sequence[str] = (),
) -> Manifest:
    """Reads a list of videos.

    Formats:
        csv: Columns ``path,label[,start,end][,split][,group]`` in any order, named by the first line; ``label`` may be
            missing (unlabelled videos). Videos of one ``group`` (a person, a recording) are held out for validation
            together. Other columns are ignored, and named in the manifest's `notes`. A file of two columns
            without a header is taken as path and label. UTF-8, commas, quotes where a name holds a comma. ``start``
            and ``end`` are seconds from the first frame of the video, wherever the clock of the file begins.
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
        class_names: The classes in order; None takes the labels that occur, sorted (numbers as numbers).
        multilabel: Whether the labels of a CSV are lists joined by ``|``. An empty one then means that the video shows
            none of the classes.
        splits: Names among ``train``, ``val`` and ``test``. If a CSV has a column ``split`` with several names, the
            rows of the first of these are taken; without any, all rows are.

    Raises:
        ManifestError: If it is missing, empty, or has a row that cannot be used: one line with the file, the line
            number, what is wrong and what would be right.
    """
    path = os.fspath(source)
    if format not in FORMATS:
        raise ManifestError(
            f"format {format!r} does not exist; use one of {', '.join(FORMATS)}{nearest(format, FORMATS)}"
        )
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
        rows, notes = _read_folder(path)
        manifest = build_manifest(rows, root=path, class_names=class_names, source=path)
        manifest.notes = notes
        return manifest
    if os.path.isdir(path):
        raise ManifestError(f"{path}: is a folder, but format {format!r} needs a file")
    if is_video(path):
        raise ManifestError(
            f"{path}: is a video, not a list of videos; give a CSV (path,label), a JSON or a folder per class"
        )
    base = os.fspath(root) if root is not None else os.path.dirname(path) or "."
    found = _read_file(path, base, format, multilabel)
    if splits and len({*found.splits}) > 1:
        found = found.of_split(splits, path)
    manifest = build_manifest(found.rows, root=base, class_names=class_names, source=path, multilabel=found.sparse)
    manifest.notes, manifest.splits = found.notes, tuple(sorted({*found.splits}))
    return manifest


@dataclass
class _List:
    """A list as it was read.

    Attributes:
        rows: Its rows.
        sparse: Whether rows without labels may stand beside labelled ones.
        splits: The split of each row; empty if no column names it.
        notes: What a user should know of it.
    """

    rows: list[Row]
    sparse: bool = False
    splits: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def of_split(self, splits: Sequence[str], path: str) -> _List:
        """Returns the same list with the rows of the first of these splits that it has."""
        chosen = next((split for split in splits if split in self.splits), None)
        if chosen is None:
            there = ", ".join(sorted({*self.splits}))
            raise ManifestError(f"{path}: no row is of the split {splits[0]!r}; its column split has {there}")
        rows = [row for row, own in zip(self.rows, self.splits, strict=True) if own == chosen]
        note = f"{path}: {len(rows)} of {len(self.rows)} rows, those whose column split says {chosen}"
        return _List(rows, self.sparse, self.splits, (*self.notes, note))


def _read_file(path: str, root: str, format: str, multilabel: bool) -> _List:
    if format == "ssv2" or (format == "auto" and path.lower().endswith(".json")):
        return _List(_annotated(read_ssv2(path), VideoFolder(root, depth=0), ".webm"))
    table = parse_table(read_text(path), path)
    header = [cell.strip().lower() for cell in table[0][1]]
    if format == "kinetics" or (format == "auto" and "youtube_id" in header):
        return _List(_annotated(read_kinetics(path, table), VideoFolder(root, depth=1), ".mp4"))
    return _read_csv(table, path, multilabel)


def _annotated(annotations: Annotations, videos: VideoFolder, extension: str) -> list[Row]:
    """Returns the rows of an official annotation; a video that is not there gets the path that it should have."""
    rows = []
    for row in annotations.rows:
        missing = os.path.join(videos.folder_of(row.label), f"{row.cut or row.video}{extension}")
        path, start, end = locate(row, videos) or (missing, None, None)
        rows.append(Row(path, (row.label,) if row.label else (), start, end, row.where))
    return rows


def _csv_columns(table: Table, path: str) -> tuple[list[str], Table]:
    """Returns the names of the columns of a CSV, and the lines with videos."""
    line, first = table[0]
    header = [cell.strip().lower() for cell in first]
    if "path" in header:
        for column in _COLUMNS:
            if header.count(column) > 1:
                raise ManifestError(f"{path}, line {line}: column {column!r} occurs twice")
        wanted = [column for column in _COLUMNS if column not in header]
        for column in header:
            meant = "label" if column in _LABEL_WORDS else next(iter(get_close_matches(column, wanted)), "")
            if column not in _COLUMNS and meant in wanted:  # another word for a column, or one with a slip
                raise ManifestError(
                    f"{path}, line {line}: unknown column {column!r}; use {','.join(_COLUMNS[:4])}; nearest: {meant}"
                )
        body = table[1:]
        if not body:
            raise ManifestError(f"{path}: has a header but no videos")
    else:
        videos_below = len(table) > 1 and all(is_video(cells[0].strip()) for _, cells in table[1:])
        odd = videos_below and not is_video(first[0].strip())  # a header of other words, video_name,tag
        if odd or len(header) != 2 or header[1] in _LABEL_WORDS:
            raise ManifestError(
                f"{path}, line {line}: {','.join(first)!r} is neither a header ({','.join(_COLUMNS[:4])}) nor a path "
                "and a label, with a comma between them"
            )
        header = ["path", "label"]
        body = table
    return header, body


def _csv_labels(text: str, multilabel: bool) -> tuple[str, ...]:
    if multilabel and not text:
        return ()
    return tuple(dict.fromkeys(name.strip() for name in (text.split("|") if multilabel else [text])))


def _read_csv(table: Table, path: str, multilabel: bool) -> _List:
    header, body = _csv_columns(table, path)
    found = _List([], sparse=multilabel)
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
        labels = _csv_labels(values["label"], multilabel) if "label" in values else ()
        if "" in labels:
            raise ManifestError(f"{path}, {where}: {values['path']!r} has no label")
        if "split" in values:
            if (split := _SPLITS.get(values["split"].lower())) is None:
                raise ManifestError(f"{path}, {where}: split {values['split']!r} is none of train, val and test")
            found.splits.append(split)
        start = parse_seconds(values.get("start", ""), f"{path}, {where}: start")
        end = parse_seconds(values.get("end", ""), f"{path}, {where}: end")
        found.rows.append(Row(values["path"], labels, start, end, where, values.get("group", "")))
    found.notes = tuple(_csv_notes(path, header, found.rows, multilabel))
    return found


def _csv_notes(path: str, header: list[str], rows: list[Row], multilabel: bool) -> Iterator[str]:
    ignored = [column or "(without a name)" for column in header if column not in _COLUMNS]
    if ignored:
        yield f"{path}: ignored columns: {', '.join(ignored)}"
    if multilabel and "label" in header and not any(len(row.labels) > 1 for row in rows):
        joined = next((label for row in rows for label in row.labels if re.search("[,;/]", label)), None)
        example = "" if joined is None else f", so {joined!r} is one class"
        yield f"{path}: no video has several labels; they are joined by | (run|jump){example}"


def _read_folder(path: str) -> tuple[list[Row], tuple[str, ...]]:
    """Returns the videos in the folders of the classes, and notes on what is left out.

    A folder without videos (logs, notes) is no class.
    """
    folders: list[str] = []
    rows: list[Row] = []
    left_out: list[str] = []
    for entry in sorted(os.scandir(path), key=lambda item: item.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if is_video(entry.name):
                raise ManifestError(f"{path}: {entry.name!r} is not in the folder of a class")
            continue
        for file in _files_below(entry.path):
            relative = os.path.relpath(file, path)
            if is_video(file):
                rows.append(Row(relative, (entry.name,), None, None, relative))
            else:
                left_out.append(file)
        folders.append(entry.name)
    if folders and {name.lower() for name in folders} <= _SPLITS.keys():
        raise ManifestError(
            f"{path}: {', '.join(folders)} look like splits, not classes; give one of them, for example "
            f"{os.path.join(path, folders[-1])}"
        )
    if not folders:
        raise ManifestError(f"{path}: holds no folders; a folder per class is needed, with video files in it")
    notes = [f"{path}: left out, not known as videos: {counted_kinds(left_out)}"] if left_out else []
    if not rows:
        there = f"; there are {counted_kinds(left_out)}" if left_out else ""
        raise ManifestError(
            f"{path}: there is no video file in its folders ({', '.join(sorted(VIDEO_EXTENSIONS))}){there}"
        )
    if empty := [name for name in folders if name not in {row.labels[0] for row in rows}]:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        notes.append(f"{path}: {len(empty)} folder{'s' if len(empty) > 1 else ''} without videos, no class: {shown}")
    return rows, tuple(notes)


def _files_below(folder: str) -> Iterator[str]:
    """Yields the files in and below a folder that are not hidden; links are followed, but not in circles."""
    visited: set[str] = set()
    for place, below, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            below.clear()
            continue
        visited.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(files) if not name.startswith("."))
