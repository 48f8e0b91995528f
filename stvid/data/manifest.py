"""Manifests: which videos there are, and what they show.

Read are a CSV of one's own, a folder per class, the official CSV of Kinetics, the official JSON of Something-Something
v2, the tar shards of `stvid prep shard`, and what the tools write that people label with (`stvid.data.exchange`).
Labels are class *names*; their numbers come from the list of class names, which is given or made of the names that
occur, sorted. Labels that are whole numbers are the places of the classes (`stvid.data.labels`); without a list of
names the classes are called "0", "1", ...

That a video file is missing is no error here: it is reported when the video is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from stvid.data.annotations import Annotations, locate, read_class_names, read_kinetics, read_ssv2
from stvid.data.class_folders import read_class_folders, read_folder
from stvid.data.csv_list import VideoList, list_table, read_csv_list
from stvid.data.exchange.formats import EXCHANGE, ExchangeOptions, format_of, read_exchange, read_if_via
from stvid.data.labels import label_notes
from stvid.data.shards import is_shards, read_shards
from stvid.data.table_rows import TableRows
from stvid.data.text_files import read_text
from stvid.data.video_folder import VIDEO_EXTENSIONS, VideoFolder, is_video
from stvid.data.video_table import Manifest, Row, VideoEntry, build_manifest
from stvid.errors import ManifestError, nearest
from stvid.files import expand_home

__all__ = ["FORMATS", "VIDEO_EXTENSIONS", "Manifest", "VideoEntry", "read_class_names", "read_manifest"]

FORMATS = ("auto", "csv", "folder", "kinetics", "ssv2", "shards", *EXCHANGE)


def read_manifest(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    format: str = "auto",
    class_names: Sequence[str] | None = None,
    multilabel: bool = False,
    splits: Sequence[str] = (),
    labelled: bool = True,
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
        label-studio: JSON or JSON-MIN of Label Studio: choices, and ranges of ``TimelineLabels``.
        cvat: XML of CVAT 1.1, the ZIP with it, or a folder of XML: tags of frames, or the times of objects.
        via: A project or CSV of VIA 3: segments of time.
        fiftyone: A folder that FiftyOne exported, or its ``labels.json`` or ``samples.json``.
        hugging-face: A folder that ``save_to_disk`` of the package datasets has written, or one of Parquet files, with
            a column of videos: their paths, or their bytes, which are read from there.
        parquet, json: A table with the columns of a CSV; Parquet also with a column of videos.

    In the last six the videos are looked for below the root by the ends of their paths, and what is left out is counted
    in the manifest's `notes`.

    Args:
        source: The file, or for ``folder`` and ``shards`` the folder.
        root: Folder that relative paths start from; None is the folder of the manifest.
        format: One of the above, or ``auto``, which recognises it by the content.
        class_names: The classes in order; None takes the labels that occur, sorted (numbers as numbers).
        multilabel: Whether the labels of a CSV are lists joined by ``|``. An empty one then means that the video shows
            none of the classes.
        splits: Names among ``train``, ``val`` and ``test``. If a CSV has a column ``split`` with several names, the
            rows of the first of these are taken; without any, all rows are.
        labelled: Whether labels are read. If not, the videos of a folder may lie anywhere in it, and the labels of a
            list, if there are some, are left out.

    Raises:
        ManifestError: If it is missing, empty, or has a row that cannot be used: one line with the file, the line
            number, what is wrong and what would be right.
    """
    if not labelled:
        return _read_unlabelled(source, root=root, format=format, splits=splits)
    path = expand_home(os.fspath(source))
    if not path:
        raise ManifestError("the name of the list of videos is empty; a variable of the shell may not be set")
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
    is_folder = os.path.isdir(path)
    if format == "auto" and (is_folder or not is_video(path)):
        format = format_of(path, is_folder=is_folder) or ("folder" if is_folder else "auto")
    if format == "folder":
        if not is_folder:
            raise ManifestError(f"{path}: format 'folder' needs a folder that holds a folder per class")
        if root is not None:
            raise ManifestError(f"{path}: root has no meaning for a folder per class; leave it out")
        rows, notes = read_class_folders(path)
        manifest = build_manifest(rows, root=path, class_names=class_names, source=path)
        if multilabel:
            notes = (*notes, f"{path}: in folders no video has several labels; a list joins them by | (run|jump)")
        manifest.notes = (*notes, *label_notes(manifest.used_classes, path))
        return manifest
    if is_folder and format not in EXCHANGE:
        raise ManifestError(f"{path}: is a folder, but format {format!r} needs a file")
    if is_video(path):
        raise ManifestError(
            f"{path}: is a video, not a list of videos; give a CSV (path,label), a JSON or a folder per class"
        )
    folder = path if is_folder else os.path.dirname(path) or "."
    base = expand_home(os.fspath(root)) if root is not None else folder
    found = _read_file(path, base, format, multilabel)
    if splits and len({*found.splits}) > 1:
        found = found.of_split(splits, path)
    names = class_names if class_names is not None else found.class_names or None
    manifest = build_manifest(found.rows, root=base, class_names=names, source=path, multilabel=found.sparse)
    manifest.notes = (*found.notes, *label_notes(manifest.used_classes, path))
    manifest.splits = tuple(sorted({*found.splits}))
    if found.tables is not None:
        manifest.members = TableRows.of(*found.tables, [row.stored or (0, 0) for row in found.rows])
    return manifest


def _read_unlabelled(
    source: str | os.PathLike[str], *, root: str | os.PathLike[str] | None, format: str, splits: Sequence[str]
) -> Manifest:
    """Reads a list of videos, or a folder that holds some anywhere, without labels."""
    path = expand_home(os.fspath(source))
    plain = os.path.isdir(path) and not is_shards(path)
    if plain and (format == "folder" or (format == "auto" and format_of(path, is_folder=True) is None)):
        rows, notes = read_folder(path)
        manifest = build_manifest(rows, root=path, class_names=None, source=path)
        manifest.notes = notes
        return manifest
    return read_manifest(source, root=root, format=format, splits=splits).without_labels()


def _read_file(path: str, root: str, format: str, multilabel: bool) -> VideoList:
    if format in EXCHANGE:
        return read_exchange(path, format, root, ExchangeOptions(multilabel=multilabel))
    if format == "ssv2" or (format == "auto" and path.lower().endswith(".json")):
        return VideoList(_annotated(read_ssv2(path), VideoFolder(root, depth=0), ".webm"))
    text = read_text(path)
    if format == "auto" and (found := read_if_via(text, path, root, multilabel=multilabel)) is not None:
        return found
    table, notes = list_table(text, path)
    header = [cell.strip().lower() for cell in table[0][1]]
    if format == "kinetics" or (format == "auto" and "youtube_id" in header):
        return VideoList(_annotated(read_kinetics(path, table), VideoFolder(root, depth=1), ".mp4"), notes=notes)
    found = read_csv_list(table, path, root, multilabel=multilabel)
    found.notes = (*notes, *found.notes)
    return found


def _annotated(annotations: Annotations, videos: VideoFolder, extension: str) -> list[Row]:
    """Returns the rows of an official annotation; a video that is not there gets the path that it should have."""
    rows = []
    for row in annotations.rows:
        missing = os.path.join(videos.folder_of(row.label), f"{row.cut or row.video}{extension}")
        path, start, end = locate(row, videos) or (missing, None, None)
        rows.append(Row(path, (row.label,) if row.label else (), start, end, row.where))
    return rows
