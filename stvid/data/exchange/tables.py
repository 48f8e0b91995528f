"""Lists of videos as Parquet, as JSON, and as data sets of Hugging Face with a column of videos.

Parquet and JSON have the columns of a CSV: ``path,label[,start,end][,split][,group]``; labels may be lists. A column of
type ``datasets.Video`` holds for each video its path, or its bytes; files of such data sets are read by
`stvid.data.exchange.hub_files`, data sets that are open in Python here.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stvid.data.csv_list import VideoList, read_csv_list
from stvid.data.exchange.rows import Export, Item, as_manifest, label_of, list_of, table_of
from stvid.data.text_files import Table
from stvid.data.video_table import Manifest
from stvid.errors import ManifestError, StvidError, nearest
from stvid.files import write_atomically

__all__ = [
    "LABEL_WORDS",
    "PATH_WORDS",
    "given_labels",
    "is_records",
    "read_hub_dataset",
    "read_parquet",
    "read_records",
    "to_hub_dataset",
    "write_videos",
]

_COLUMNS = ("path", "label", "start", "end", "split", "group")
PATH_WORDS = ("video", "path", "file", "file_name", "filename")
LABEL_WORDS = ("label", "labels", "class", "class_name", "category")


# --- tables -----------------------------------------------------------------------------------------------------------


def is_records(content: Any) -> bool:
    """Tells whether the value of a JSON file is a list of tables with the columns of a CSV."""
    first = next((row for row in content if isinstance(row, dict)), {}) if isinstance(content, list) else {}
    return "path" in first


def read_records(content: Any, source: str, root: str, *, multilabel: bool) -> VideoList:
    """Reads a list of tables with the keys ``path``, ``label`` and so on, as ``stvid predict --to json`` writes it.

    Raises:
        ManifestError: If it is damaged; the message names the row.
    """
    rows = [table_of(row, f"{source}, row {number}") for number, row in enumerate(list_of(content, source), start=1)]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return _of_columns(columns, source, root, multilabel=multilabel)


def read_parquet(source: str, root: str, *, multilabel: bool) -> VideoList:
    """Reads a Parquet file with the columns ``path``, ``label`` and so on.

    Raises:
        ManifestError: If it is damaged, or has no column of paths.
        StvidError: If pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StvidError(f"{error}; Parquet needs: pip install 'stvid[parquet]'") from error
    try:
        table = pyarrow.parquet.read_table(source)
    except (pyarrow.ArrowException, OSError) as error:
        raise ManifestError(f"{source}: is no Parquet file that can be read ({_one_line(error)})") from error
    columns = {
        name: table.column(name).to_pylist() if name.strip().lower() in _COLUMNS else [None] * len(table)
        for name in table.column_names
    }
    return _of_columns(columns, source, root, multilabel=multilabel)


def _of_columns(columns: dict[str, list[Any]], source: str, root: str, *, multilabel: bool) -> VideoList:
    known = {name.strip().lower(): name for name in columns}
    if "path" not in known:
        raise ManifestError(f"{source}: has no column 'path' ({', '.join(columns)[:200] or 'it has none'})")
    several = any(isinstance(value, (list, tuple)) for value in columns[known["label"]]) if "label" in known else False
    table: Table = [(0, [name.strip() for name in columns])]
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        cells = [
            _cell(value, f"{source}, row {number}: {name}") if name.strip().lower() in _COLUMNS else ""
            for name, value in zip(columns, values, strict=True)
        ]
        table.append((number, cells))
    if len(table) == 1:
        raise ManifestError(f"{source}: has no rows")
    found = read_csv_list(table, source, root, multilabel=multilabel or several)
    found.sparse = multilabel
    return found


def _cell(value: Any, where: str) -> str:
    """Returns a value as a CSV would have it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (list, tuple)):
        names = [label_of(one, where) for one in value]
        if any("|" in name for name in names):
            raise ManifestError(f"{where}: has a label with |, which joins labels")
        return "|".join(names)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ManifestError(f"{where}: is {str(value)[:60]}, not a text or a number")
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, str) and ("\0" in value or any(0xD800 <= ord(letter) < 0xE000 for letter in value)):
        raise ManifestError(f"{where}: is {value[:60]!r}, which is no text")
    return str(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- data sets of Hugging Face ----------------------------------------------------------------------------------------


def read_hub_dataset(
    dataset: Any,
    *,
    label: str | None = None,
    videos: str | os.PathLike[str] | None = None,
    root: str | None = None,
    multilabel: bool = False,
) -> Manifest:
    """Makes a list of videos of a data set of Hugging Face that is open, with a column of videos.

    Args:
        dataset: A ``datasets.Dataset`` or ``DatasetDict``; the parts of the latter are the splits.
        label: The column of the labels; None takes one that is called so. A ``ClassLabel`` gives the order of classes.
        videos: Folder that videos are written to which lie in the data set as bytes; None refuses these.
        root: Folder that relative paths start from.
        multilabel: Whether a video without labels shows none of the classes; otherwise it is left out.

    Raises:
        ManifestError: If it has no column of videos, or a value is none.
    """
    name = "data set of Hugging Face"
    export = _hub_export(dataset, name, label, None if videos is None else Path(videos))
    return as_manifest(export, name, root=root, multilabel=multilabel)


def to_hub_dataset(manifest: Manifest) -> Any:
    """Makes a data set of Hugging Face of a list of videos, to save it or to push it to the hub.

    Args:
        manifest: The list, of files or addresses.

    Returns:
        A ``datasets.Dataset`` with the columns ``video`` (a ``Video``), ``label`` (a ``ClassLabel``, or a list of these
        if a video has several labels or none; not there without labels), and ``start`` and ``end`` if there are parts.

    Raises:
        ManifestError: If the videos lie in shards or tables.
        StvidError: If the package ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise StvidError(f"{error}; data sets of Hugging Face need: pip install datasets") from error
    if manifest.members is not None:
        raise ManifestError(f"{manifest.source}: its videos lie {manifest.members.place}; give a list of files")
    entries = [manifest[number] for number in range(len(manifest))]
    columns: dict[str, list[Any]] = {"video": [entry.path for entry in entries]}
    features: dict[str, Any] = {"video": datasets.Video()}
    if manifest.has_labels:
        several = any(len(entry.labels) != 1 for entry in entries)
        names = datasets.ClassLabel(names=list(manifest.class_names))
        features["label"] = [names] if several else names
        columns["label"] = [list(entry.labels) if several else entry.labels[0] for entry in entries]
    for name in ("start", "end"):
        if any(getattr(entry, name) is not None for entry in entries):
            features[name] = datasets.Value("float64")
            columns[name] = [getattr(entry, name) for entry in entries]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _hub_export(dataset: Any, source: str, field: str | None, videos: Path | None) -> Export:
    export = Export()
    parts = dict(dataset) if isinstance(dataset, dict) else {"": dataset}
    for split, part in parts.items():
        column, labels = _video_column(part, source), _label_column(part, source, field)
        names = _class_names(part.features[labels]) if labels else ()
        if export.class_names and names != export.class_names:
            raise ManifestError(f"{source}: split {split!r} has other classes than the splits before")
        export.class_names = names
        for number, row in enumerate(_plain(part, column, labels), start=1):
            where = f"{split} row {number}".strip()
            path = _path_of(row[column], videos, f"{source}, {where}")
            given = given_labels(row[labels], names, f"{source}, {where}: {labels}") if labels else ()
            start, end = (row.get(name) for name in ("start", "end"))
            export.items.append(Item(path, given, where, start, end, split=split))
    if export.items and not any(item.labels for item in export.items):
        export.remarks.append("has no column of labels")
    return export


def _video_column(part: Any, source: str) -> str:
    kinds = {name: type(feature).__name__ for name, feature in part.features.items()}
    found = [name for name, kind in kinds.items() if kind == "Video"]
    structs = [name for name, kind in part.features.items() if isinstance(kind, dict) and {"bytes", "path"} <= {*kind}]
    found = found or structs or [name for name in PATH_WORDS if name in kinds]
    if not found:
        raise ManifestError(f"{source}: has no column of videos ({', '.join(kinds)[:200]})")
    return found[0]


def _label_column(part: Any, source: str, field: str | None) -> str | None:
    names = list(part.features)
    if field is not None and field not in names:
        raise ManifestError(f"{source}: has no column {field!r}{nearest(field, names)} ({', '.join(names)[:200]})")
    return field or next((name for name in LABEL_WORDS if name in names), None)


def _class_names(feature: Any) -> tuple[str, ...]:
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return tuple(getattr(inner, "names", None) or ())


def _plain(part: Any, column: str, labels: str | None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a data set, with videos that are not decoded."""
    wanted = [name for name in (column, labels, "start", "end") if name is not None and name in part.features]
    chosen = part.with_format(None).select_columns(wanted)
    if type(part.features[column]).__name__ == "Video":
        chosen = chosen.cast_column(column, type(part.features[column])(decode=False))
    yield from chosen


def given_labels(value: Any, names: Sequence[str], where: str) -> tuple[str, ...]:
    """Returns the labels of a row: names, or numbers of a ``ClassLabel``, one or several.

    Raises:
        ManifestError: If one is none; the message begins with `where`.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    found = []
    for one in values:
        if names and isinstance(one, int):
            if one == -1:  # how ClassLabel writes that there is none
                continue
            if not 0 <= one < len(names):
                raise ManifestError(f"{where}: class {one} is none of the {len(names)}")
            one = names[one]
        found.append(label_of(one, where))
    return tuple(found)


def _path_of(value: Any, videos: Path | None, where: str) -> str:
    path, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
    if content is not None:
        if videos is None:
            raise ManifestError(
                f"{where}: the video lies in the data set as bytes; write files and a list of them: "
                "stvid prep manifest hugging-face ... --out list.csv"
            )
        return str(write_videos(videos, path, content))
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ManifestError(f"{where}: has neither path nor bytes of a video")
    return path


def write_videos(folder: Path, name: str | None, content: bytes) -> Path:
    """Writes the bytes of a video into a folder, under its name and what tells it from others of this name.

    Args:
        folder: The folder, which is made.
        name: Name of the file in the data set; only its last part counts. None is a number.
        content: The bytes.

    Raises:
        StvidError: If it cannot be written.
    """
    base = Path(str(name or "video.mp4").replace("\\", "/")).name or "video.mp4"
    stem, suffix = os.path.splitext(base)
    place = folder.absolute() / f"{stem[:100]}-{hashlib.sha256(content).hexdigest()[:12]}{suffix or '.mp4'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not place.is_file() or place.stat().st_size != len(content):
            write_atomically(place, lambda file: file.write_bytes(content))
    except OSError as error:
        raise StvidError(f"{place}: cannot be written ({error.strerror or error})") from error
    return place
