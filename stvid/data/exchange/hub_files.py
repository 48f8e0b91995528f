"""Data sets of Hugging Face on disk, read with pyarrow alone: Parquet, and folders of ``save_to_disk``.

A column of type ``datasets.Video`` holds for each video its path, or its bytes. Bytes are not copied: the rows of the
list say where they lie, and `stvid.data.table_rows` reads them when the video is opened.

Facts: the types of columns stand as JSON under ``huggingface`` in the metadata of the schema; ``save_to_disk`` writes
``state.json`` with the names of its Arrow files, and ``dataset_dict.json`` with the names of the splits (datasets 5.2).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stvid.data.csv_list import SPLITS
from stvid.data.exchange.rows import Export, Item, label_of, list_of, number_of, table_of, text_of
from stvid.data.exchange.tables import LABEL_WORDS, PATH_WORDS, given_labels, write_videos
from stvid.data.table_rows import TableRows, arrow_module, open_arrow
from stvid.data.text_files import parse_json, read_text
from stvid.errors import ManifestError, nearest

__all__ = ["holds_videos", "is_hub_folder", "read_hub_files"]

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_BYTES_WORDS = ("video", "mp4", "bytes", "content")
"""Names of columns of bytes that are taken for videos."""


def is_hub_folder(folder: str) -> bool:
    """Tells whether a folder is a data set of Hugging Face: one of ``save_to_disk``, or of Parquet files."""
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        return True
    if all(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_info.json")):
        return True
    return bool(_parquet_files(folder))


def _parquet_files(folder: str) -> list[str]:
    """Returns the Parquet files of a folder, or of ``data`` in it, where the hub puts them."""
    for place in (folder, os.path.join(folder, "data")):
        names = sorted(os.listdir(place)) if os.path.isdir(place) else []
        found = [os.path.join(place, name) for name in names if name.endswith(".parquet")]
        if found:
            return found
    return []


# --- files ------------------------------------------------------------------------------------------------------------


def _files(source: str) -> list[tuple[str, str]]:
    """Returns the files of a data set, each with its split, which may be empty."""
    if not os.path.isdir(source):
        return [(os.path.abspath(source), "")]
    splits = os.path.join(source, "dataset_dict.json")
    if os.path.isfile(splits):
        names = list_of(table_of(parse_json(read_text(splits), splits), splits).get("splits"), f"{splits}: splits")
        parts = [text_of(name, f"{splits}: splits") for name in names]
        return [(file, part) for part in parts for file in _saved_files(os.path.join(source, part))]
    if os.path.isfile(os.path.join(source, "state.json")):
        return [(file, "") for file in _saved_files(source)]
    found = _parquet_files(source)
    if not found:
        raise ManifestError(f"{source}: is no data set of Hugging Face: no state.json, dataset_dict.json or Parquet")
    return [(os.path.abspath(file), _split_of(file)) for file in found]


def _split_of(file: str) -> str:
    stem = os.path.splitext(os.path.basename(file))[0]
    named = _SHARD.fullmatch(stem)
    word = named[1] if named else stem
    return word if word.lower() in SPLITS else ""


def _saved_files(folder: str) -> Iterator[str]:
    place = os.path.join(folder, "state.json")
    state = table_of(parse_json(read_text(place), place), place)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ManifestError(
            f"{place}: the data set is a selection of rows; save it again: flatten_indices().save_to_disk"
        )
    for entry in list_of(state.get("_data_files"), f"{place}: _data_files"):
        name = text_of(table_of(entry, f"{place}: _data_files").get("filename"), f"{place}: filename")
        if os.path.basename(name) != name:
            raise ManifestError(f"{place}: {name[:80]!r} is no name of a file in this folder")
        yield os.path.abspath(os.path.join(folder, name))


# --- columns ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Meaning of the columns of a file.

    Attributes:
        video: The column of videos.
        kind: ``struct`` (bytes and path), ``bytes`` or ``path``.
        label: The column of labels; None if there is none.
        class_names: The classes in the order of their numbers; empty if labels are names.
        times: Which of ``start`` and ``end`` there are.
    """

    video: str
    kind: str
    label: str | None
    class_names: tuple[str, ...]
    times: tuple[str, ...]


def _features(schema: Any, source: str) -> dict[str, Any]:
    """Returns what ``datasets`` says of the columns; empty if another program wrote the file.

    Raises:
        ManifestError: If it is damaged, or two columns have one name.
    """
    if len({*schema.names}) < len(schema.names):
        raise ManifestError(f"{source}: has two columns of one name ({', '.join(schema.names)[:200]})")
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    about = table_of(parse_json(text.decode("utf-8", "replace"), f"{source}: its schema"), f"{source}: its schema")
    info = about.get("info")
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any, where: str) -> tuple[str, ...]:
    """Returns the names of a ``ClassLabel``, by itself or in a list, in any of the forms that ``datasets`` wrote."""
    inner = feature[0] if isinstance(feature, list) and feature else feature
    if isinstance(inner, dict) and isinstance(inner.get("feature"), dict):
        inner = inner["feature"]
    names = inner.get("names") if isinstance(inner, dict) else None
    return tuple(label_of(name, where) for name in list_of(names, where)) if names else ()


def _columns(schema: Any, source: str, field: str | None) -> _Columns:
    names = list(schema.names)
    if field is not None and field not in names:
        raise ManifestError(f"{source}: has no column {field!r}{nearest(field, names)} ({', '.join(names)[:200]})")
    features = _features(schema, source)
    found = _video_column(schema, features)
    if found is None:
        raise ManifestError(f"{source}: has no column of videos ({', '.join(names)[:200]})")
    label = field or next((name for name in LABEL_WORDS if name in names), None)
    classes = _class_names(features.get(label), f"{source}: names of {label}") if label else ()
    return _Columns(*found, label, classes, tuple(name for name in ("start", "end") if name in names))


def _video_column(schema: Any, features: dict[str, Any]) -> tuple[str, str] | None:
    """Returns the name of the column of videos, and its kind."""
    types = arrow_module("data sets of Hugging Face").types
    kinds = {name: schema.field(name).type for name in schema.names}
    structs = [name for name, kind in kinds.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    marked = [name for name, about in features.items() if isinstance(about, dict) and about.get("_type") == "Video"]
    for name in [*(name for name in marked if name in structs), *structs]:
        return name, "struct"
    binary = [name for name, kind in kinds.items() if types.is_binary(kind) or types.is_large_binary(kind)]
    texts = [name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    for names, words, kind in ((binary, _BYTES_WORDS, "bytes"), (texts, PATH_WORDS, "path")):
        name = next((word for word in (*marked, *words) if word in names), None)
        if name is not None:
            return name, kind
    return None


def holds_videos(source: str) -> bool:
    """Tells whether a Parquet file has a column of videos and none of paths.

    Raises:
        ManifestError: If it cannot be read.
        StvidError: If pyarrow is not installed.
    """
    schema = _opened(source).schema_arrow
    features = _features(schema, source)
    found = None if "path" in schema.names else _video_column(schema, features)
    return found is not None and found[1] != "path"


def _opened(path: str) -> Any:
    pyarrow = arrow_module("Parquet")
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: is no Parquet file that can be read ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- rows -------------------------------------------------------------------------------------------------------------


def read_hub_files(source: str, *, field: str | None = None, videos: Path | None = None) -> Export:
    """Reads a data set of Hugging Face on disk.

    Args:
        source: A folder of ``save_to_disk``, a folder of Parquet files, or one Parquet file.
        field: The column of the labels; None takes one that is called so.
        videos: Folder that videos are written to which lie in the data set as bytes; None leaves them there.

    Raises:
        ManifestError: If it is damaged, or has no videos.
        StvidError: If pyarrow is not installed, or a video cannot be written.
    """
    export = Export()
    files = _files(source)
    pyarrow = arrow_module("data sets of Hugging Face")
    for number, (file, split) in enumerate(files):
        try:
            columns, rows = _rows(file, field)
        except (pyarrow.ArrowException, OSError) as error:
            raise ManifestError(f"{file}: is no data set that can be read ({_one_line(error)})") from error
        if number and columns.class_names != export.class_names:
            raise ManifestError(f"{file}: has other classes than the files before")
        export.class_names = columns.class_names
        if export.tables is not None and export.tables[1] != columns.video:
            raise ManifestError(
                f"{file}: its column of videos is {columns.video!r}, before it was {export.tables[1]!r}"
            )
        export.tables = (tuple(path for path, _ in files), columns.video)
        export.items += _items(file, number, split, columns, rows)
    if export.items and not any(item.labels for item in export.items):
        export.remarks.append("has no column of labels")
    held = sum(item.stored is not None for item in export.items)
    if not held:
        export.tables = None
    elif videos is not None:
        export.items = list(_written(export, videos))
        export.tables = None
    elif held < len(export.items):
        item = next(item for item in export.items if item.stored is None)
        raise ManifestError(
            f"{source}, {item.where}: holds no bytes, but {held} other rows do; write files and a list of them: stvid "
            "prep manifest hugging-face ... --out list.csv"
        )
    return export


@dataclass(frozen=True)
class _Row:
    """One row of a file: its small columns, the path of its video, and whether the bytes of the video are there."""

    values: dict[str, Any]
    path: Any
    held: bool


def _rows(file: str, field: str | None) -> tuple[_Columns, list[_Row]]:
    """Returns the columns and the rows of a file, without the bytes of the videos."""
    if file.endswith(".arrow"):
        table = open_arrow(file)
        columns = _columns(table.schema, file, field)
        videos = table.column(columns.video)
        content = _leaf(videos, "bytes", columns.kind)
        held = None if content is None else content.is_valid().to_pylist()
        count = table.num_rows
    else:
        parquet = _opened(file)
        columns = _columns(parquet.schema_arrow, file, field)
        leaf = f"{columns.video}.bytes" if columns.kind == "struct" else columns.video
        held = None if columns.kind == "path" else _valid(parquet, leaf)
        shown = {"struct": [f"{columns.video}.path"], "path": [columns.video]}.get(columns.kind, [])
        table = parquet.read(columns=[*_small(columns), *shown])
        videos = table.column(columns.video) if columns.video in table.column_names else None
        count = parquet.metadata.num_rows
    paths = None if videos is None else _leaf(videos, "path", columns.kind)
    names = [None] * count if paths is None else paths.to_pylist()
    small = _small(columns)
    values = table.select(small).to_pylist() if small else [{} for _ in range(count)]
    there = [False] * count if held is None else held
    return columns, [_Row(row, path, has) for row, path, has in zip(values, names, there, strict=True)]


def _small(columns: _Columns) -> list[str]:
    return [*([columns.label] if columns.label else []), *columns.times]


def _leaf(values: Any, name: str, kind: str) -> Any:
    """Returns the bytes or the paths of a column of videos; None if it has none."""
    if kind != "struct":
        return values if kind == name else None
    if values.type.get_field_index(name) < 0:
        return None
    import pyarrow.compute

    return pyarrow.compute.struct_field(values, name)


def _valid(parquet: Any, leaf: str) -> list[bool]:
    """Tells for each row whether it has a value, by the counts in the file where these say it, without reading it."""
    found: list[bool] = []
    for group in range(parquet.num_row_groups):
        about = parquet.metadata.row_group(group)
        column = next(c for c in map(about.column, range(about.num_columns)) if c.path_in_schema == leaf)
        known = column.statistics
        nulls = known.null_count if known is not None and known.has_null_count else None
        if nulls in (0, about.num_rows):
            found += [nulls == 0] * about.num_rows
            continue
        for batch in parquet.iter_batches(batch_size=1, row_groups=[group], columns=[leaf], use_threads=False):
            value = batch.column(0)[0].as_py()
            found.append((value.get("bytes") if isinstance(value, dict) else value) is not None)
    return found


def _items(file: str, number: int, split: str, columns: _Columns, rows: Sequence[_Row]) -> Iterator[Item]:
    for place, row in enumerate(rows):
        where, known = f"{os.path.basename(file)}, row {place}", f"{file}, row {place}"
        labels: tuple[str, ...] = ()
        if columns.label:
            labels = given_labels(row.values[columns.label], columns.class_names, f"{known}: {columns.label}")
        start, end = (_seconds(row.values.get(name), f"{known}: {name}") for name in ("start", "end"))
        path = row.path
        if row.held:
            name = os.path.basename(path.replace("\\", "/")) if isinstance(path, str) else ""
            video = f"{file}/{place}{f'-{name}' if name else ''}"
            yield Item(video, labels, where, start, end, split=split, stored=(number, place))
            continue
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise ManifestError(f"{known}: has neither path nor bytes of a video")
        yield Item(path, labels, where, start, end, split=split)


def _seconds(value: Any, where: str) -> float | None:
    """Returns seconds; None and NaN, as pandas writes it, are none."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if missing else number_of(value, where)


def _written(export: Export, folder: Path) -> Iterator[Item]:
    """Yields the items with the files that their bytes were written to."""
    assert export.tables is not None
    files, column = export.tables
    stored = [item.stored or (0, 0) for item in export.items]
    rows = TableRows.of(files, column, stored)
    for number, (item, (file, row)) in enumerate(zip(export.items, stored, strict=True)):
        if item.stored is None:
            yield item
            continue
        content, _ = rows.read(number)
        name = item.video.removeprefix(f"{files[file]}/{row}").removeprefix("-") or None
        yield replace(item, video=str(write_videos(folder, name, content)), stored=None)
