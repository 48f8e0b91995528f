"""Lists of videos that lie in WebDataset tar shards, in a folder or behind any URL that fsspec opens.

`stvid prep shard` writes them: tars of ``<key>.json``, ``<key>.scan`` and ``<key>.mp4`` (or what the video is), and
``shards.json``, which has a row for each video: its labels, its shard and its place in it. So a list of shards is a
`Manifest` like any other; one video is read from its place, which is what tests do. The ``.scan`` is the index of the
video (`stvid.video.stored_index`), without which it would be scanned at every reading; it may be missing. Training
reads the shards from front to back instead (`stvid.data.shard_stream`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stvid.data.labels import order_labels
from stvid.data.members import Members
from stvid.data.text_files import check_letters
from stvid.data.video_table import Manifest, VideoEntry
from stvid.errors import ManifestError, StvidError
from stvid.video.remote import file_system, reason_of

__all__ = ["INDEX", "ROW", "VERSION", "is_shards", "read_shards"]

INDEX = "shards.json"
VERSION = 1
ROW = ("name", "member", "labels", "start", "end", "begin", "data", "bytes", "scan", "scan_bytes")
"""Columns of a video in `INDEX`: name in the list it was made of; name in the tar; label ids; part to use in seconds;
where its first header, and where the bytes of the video begin in the tar; their number; and where the bytes of its
index begin, before those of the video, and their number, 0 if it has none."""


def is_shards(source: str) -> bool:
    """Tells whether a source of videos is a folder of shards: a URL, or a folder that holds ``shards.json``."""
    return "://" in source or os.path.basename(source) == INDEX or os.path.isfile(os.path.join(source, INDEX))


def read_shards(source: str, *, class_names: Sequence[str] | None = None) -> Manifest:
    """Reads the list of the videos in shards.

    Args:
        source: Folder or URL of the shards, or their ``shards.json``.
        class_names: The classes in order; None takes those of the shards.

    Raises:
        ManifestError: If there are no shards, or they are not whole.
        StvidError: If what fsspec needs for this kind of URL is not installed.
    """
    root = source.removesuffix(INDEX).rstrip("/") if os.path.basename(source) == INDEX else source.rstrip("/")
    root = root if "://" in root else os.path.abspath(root)
    place = f"{root}/{INDEX}"
    text = _read_index(place)
    try:
        about = json.loads(text)
        version, names, shards = about["version"], tuple(about["class_names"]), about["shards"]
        columns = ("shard", *about["columns"])
        rows = [(number, *row) for number, shard in enumerate(shards) for row in shard["videos"]]
        rows.sort(key=lambda row: row[2])  # members are named by their numbers in the list they were made of
        column = dict(zip(columns, zip(*rows, strict=True), strict=True)) if rows else {}
        if rows and not {*ROW} <= {*column}:
            raise KeyError("columns")
        sizes = {shard["file"]: int(shard["bytes"]) for shard in shards}
        _check(names, column, sizes)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ManifestError(f"{place}: is no list of shards; make it with: stvid prep shard") from error
    check_letters(about, text.decode(), place)
    if version != VERSION:
        raise ManifestError(f"{place}: was written by another version of stvid; make the shards again")
    if not rows:
        raise ManifestError(f"{place}: lists no videos")
    if "://" not in root:
        for file, size in sizes.items():
            found = os.path.getsize(f"{root}/{file}") if os.path.isfile(f"{root}/{file}") else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ManifestError(f"{root}/{file}: {state}; copy it again")
    members = Members(
        root=root,
        files=tuple(sizes),
        shard=np.array(column["shard"], np.int32),
        begin=np.array(column["begin"], np.int64),
        data=np.array(column["data"], np.int64),
        size=np.array(column["bytes"], np.int64),
        scan=np.array(column["scan"], np.int64),
        scan_size=np.array(column["scan_bytes"], np.int64),
    )
    entries = [
        VideoEntry(f"{members.files[shard]}/{member}", tuple(names[label] for label in labels), start=start, end=end)
        for shard, member, labels, start, end in zip(
            *(column[name] for name in ("shard", "member", "labels", "start", "end")), strict=True
        )
    ]
    manifest = Manifest.from_entries(entries, class_names=names or None, source=source, multilabel=True, root=root)
    manifest.members = members
    if class_names is None and names and list(names) == sorted(names):
        class_names = order_labels(names, source)  # shards of earlier versions have numbers in the order of words
    return manifest if class_names is None else manifest.with_class_names(class_names)


def _check(names: tuple[Any, ...], column: Mapping[str, Sequence[Any]], sizes: Mapping[Any, int]) -> None:
    """Raises ValueError unless each value has its type, and each video lies within its shard."""
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a class name is no text")
    if not all(isinstance(file, str) and os.path.basename(file) == file and file for file in sizes):
        raise ValueError("a shard is no name of a file in this folder")  # else a list could name any file
    for name in ("begin", "data", "bytes", "scan", "scan_bytes"):
        if not all(type(value) is int and 0 <= value < 2**62 for value in column.get(name, ())):
            raise ValueError(f"{name} is no place in a file")
    for name in ("name", "member"):
        if not all(isinstance(value, str) for value in column.get(name, ())):
            raise ValueError(f"{name} is no text")
    for name in ("start", "end"):
        known = [value for value in column.get(name, ()) if value is not None]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in known):
            raise ValueError(f"{name} is no number of seconds")
    for labels in column.get("labels", ()):
        if not isinstance(labels, list) or not all(type(at) is int and 0 <= at < len(names) for at in labels):
            raise ValueError("a label is no number of a class")
    ends = [*sizes.values()]
    rows = zip(*(column.get(name, ()) for name in ("shard", "data", "bytes", "scan", "scan_bytes")), strict=True)
    for shard, data, length, scan, scanned in rows:
        if data + length > ends[shard] or (scanned and not scan + scanned <= data):
            raise ValueError("a video lies beyond its shard")


def _read_index(place: str) -> bytes:
    try:
        files, path = file_system(place)
        return bytes(files.cat_file(path))
    except StvidError:
        raise
    except FileNotFoundError as error:
        raise ManifestError(f"{place}: no such file; shards are made with: stvid prep shard") from error
    except Exception as error:  # each file system has errors of its own
        raise ManifestError(f"{place}: cannot be read ({reason_of(error)})") from error
