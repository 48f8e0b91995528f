"""Manifests: which videos there are, and what they show.

Five forms are read: a CSV of one's own, a folder per class, the official CSV of Kinetics, the official JSON of
Something-Something v2, and the tar shards of `stvid prep shard`. Labels are class *names*; their numbers come from the
list of class names, which is given or made of the names that occur, sorted. Labels that are whole numbers are the
places of the classes (`stvid.data.labels`); without a list of names the classes are called "0", "1", ...

That a video file is missing is no error here: it is reported when the video is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from stvid.data.annotations import Annotations, locate, parse_seconds, read_class_names, read_kinetics, read_ssv2
from stvid.data.shards import is_shards, read_shards
from stvid.data.text_files import Table, parse_table, read_text
from stvid.data.video_folder import VIDEO_EXTENSIONS, VideoFolder, is_video
from stvid.data.video_table import Manifest, Row, VideoEntry, build_manifest
from stvid.errors import ManifestError, nearest

__all__ = ["FORMATS", "VIDEO_EXTENSIONS", "Manifest", "VideoEntry", "read_class_names", "read_manifest"]

FORMATS = ("auto", "csv", "folder", "kinetics", "ssv2", "shards")
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "eval"})
_COLUMNS = ("path", "label", "start", "end")


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
        class_names: The classes in order; None takes the labels that occur, sorted (numbers as numbers).
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
        return build_manifest(_read_folder(path), root=path, class_names=class_names, source=path)
    if os.path.isdir(path):
        raise ManifestError(f"{path}: is a folder, but format {format!r} needs a file")
    if is_video(path):
        raise ManifestError(
            f"{path}: is a video, not a list of videos; give a CSV (path,label), a JSON or a folder per class"
        )
    base = os.fspath(root) if root is not None else os.path.dirname(path) or "."
    rows, sparse = _read_file(path, base, format, multilabel)
    return build_manifest(rows, root=base, class_names=class_names, source=path, multilabel=sparse)


def _read_file(path: str, root: str, format: str, multilabel: bool) -> tuple[list[Row], bool]:
    """Returns the rows of a list, and whether rows without labels may stand beside labelled ones."""
    if format == "ssv2" or (format == "auto" and path.lower().endswith(".json")):
        return _annotated(read_ssv2(path), VideoFolder(root, depth=0), ".webm"), False
    table = parse_table(read_text(path), path)
    header = [cell.strip().lower() for cell in table[0][1]]
    if format == "kinetics" or (format == "auto" and "youtube_id" in header):
        return _annotated(read_kinetics(path, table), VideoFolder(root, depth=1), ".mp4"), False
    return _read_csv(table, path, multilabel), multilabel


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
        videos_below = len(table) > 1 and all(is_video(cells[0].strip()) for _, cells in table[1:])
        odd = videos_below and not is_video(first[0].strip())  # a header of other words, video_name,tag
        if odd or len(header) != 2 or header[1] in ("label", "labels", "class", "class_name", "category"):
            raise ManifestError(
                f"{path}, line {line}: {','.join(first)!r} is neither a header ({','.join(_COLUMNS)}) nor a path and a "
                "label, with a comma between them"
            )
        header = ["path", "label"]
        body = table
    return header, body


def _read_csv(table: Table, path: str, multilabel: bool) -> list[Row]:
    header, body = _csv_columns(table, path)
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
        start = parse_seconds(values.get("start", ""), f"{path}, {where}: start")
        end = parse_seconds(values.get("end", ""), f"{path}, {where}: end")
        rows.append(Row(values["path"], labels, start, end, where))
    return rows


def _read_folder(path: str) -> list[Row]:
    """Returns the videos in the folders of the classes; a folder without videos (logs, notes) is no class."""
    folders = []
    rows: list[Row] = []
    for entry in sorted(os.scandir(path), key=lambda item: item.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if is_video(entry.name):
                raise ManifestError(f"{path}: {entry.name!r} is not in the folder of a class")
            continue
        visited: set[str] = set()  # links to folders are followed, but not in circles
        for folder, below, files in os.walk(entry.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(files):
                if is_video(name) and not name.startswith("."):
                    relative = os.path.relpath(os.path.join(folder, name), path)
                    rows.append(Row(relative, (entry.name,), None, None, relative))
        folders.append(entry.name)
    if folders and {name.lower() for name in folders} <= _SPLITS:
        raise ManifestError(
            f"{path}: {', '.join(folders)} look like splits, not classes; give one of them, for example "
            f"{os.path.join(path, folders[-1])}"
        )
    if not folders:
        raise ManifestError(f"{path}: holds no folders; a folder per class is needed, with video files in it")
    if not rows:
        raise ManifestError(f"{path}: there is no video file in its folders ({', '.join(sorted(VIDEO_EXTENSIONS))})")
    return rows
