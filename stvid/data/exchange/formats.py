"""The formats of other programs: which one a file has, and what reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvid.data.csv_list import VideoList
from stvid.data.exchange.cvat import is_cvat_folder, read_cvat
from stvid.data.exchange.fiftyone import is_fiftyone, is_fiftyone_folder, read_fiftyone
from stvid.data.exchange.hub_files import holds_videos, is_hub_folder, read_hub_files
from stvid.data.exchange.label_studio import is_label_studio, read_label_studio
from stvid.data.exchange.rows import Export, as_list
from stvid.data.exchange.tables import is_records, read_parquet, read_records
from stvid.data.exchange.via import is_via, is_via_csv, read_via, read_via_csv
from stvid.data.text_files import parse_json, read_text
from stvid.errors import ManifestError

__all__ = ["EXCHANGE", "ExchangeOptions", "format_of", "read_exchange", "read_if_via"]

EXCHANGE = ("label-studio", "cvat", "via", "fiftyone", "hugging-face", "parquet", "json")
"""The formats, as options name them."""


@dataclass(frozen=True)
class ExchangeOptions:
    """Settings for what a file of another program may leave open.

    Attributes:
        field: Name under which the labels stand: a control, an attribute, a field, a column.
        fps: Frames a second by which the file counts frames.
        multilabel: Whether a video without labels shows none of the classes; None: if any video has several labels.
        videos: Folder that videos are written to which a data set holds as bytes; None leaves them there.
    """

    field: str | None = None
    fps: float | None = None
    multilabel: bool | None = False
    videos: Path | None = None


def format_of(path: str, *, is_folder: bool) -> str | None:
    """Tells which format of another program a file or folder has; None if it has none of them.

    The text of a CSV is asked by `read_if_via`, since a pipe can be read once only.

    Raises:
        ManifestError: If it is JSON by its name and not by its content.
    """
    if is_folder:
        folders = {"fiftyone": is_fiftyone_folder, "hugging-face": is_hub_folder, "cvat": is_cvat_folder}
        return next((name for name, check in folders.items() if check(path)), None)
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".xml", ".zip"):
        return "cvat"
    if suffix in (".parquet", ".pq"):
        return "parquet"
    if suffix == ".json":
        content = parse_json(read_text(path), path)
        checks = {"label-studio": is_label_studio, "via": is_via, "fiftyone": is_fiftyone, "json": is_records}
        return next((name for name, check in checks.items() if check(content)), None)
    return None


def read_if_via(text: str, path: str, root: str, *, multilabel: bool) -> VideoList | None:
    """Reads a text that is no JSON as a list if it is a CSV that VIA exported; else returns None."""
    if not is_via_csv(text):
        return None
    return as_list(read_via_csv(text, path), path, root, multilabel=multilabel)


def read_exchange(path: str, format: str, root: str, options: ExchangeOptions | None = None) -> VideoList:
    """Reads a list of videos that another program has written.

    Args:
        path: The file or folder.
        format: One of `EXCHANGE`.
        root: Folder of the videos.
        options: What the file may leave open.

    Raises:
        ManifestError: If it is damaged, or names no video.
        StvidError: If a package is missing that the format needs.
    """
    options = options or ExchangeOptions()
    if format == "parquet" and not holds_videos(path):
        return read_parquet(path, root, multilabel=bool(options.multilabel))
    if format == "json":
        return read_records(_json(path), path, root, multilabel=bool(options.multilabel))
    export = _export(path, format, options)
    return as_list(export, path, root, fps=options.fps, multilabel=options.multilabel)


def _json(path: str) -> Any:
    return parse_json(read_text(path), path)


def _export(path: str, format: str, options: ExchangeOptions) -> Export:
    if format in ("hugging-face", "parquet"):
        return read_hub_files(path, field=options.field, videos=options.videos)
    if format == "fiftyone":
        return read_fiftyone(path, field=options.field)
    if format == "cvat":
        return read_cvat(path)
    if os.path.isdir(path):
        raise ManifestError(f"{path}: is a folder, but format {format!r} needs a file")
    if format == "label-studio":
        content = _json(path)
        if not is_label_studio(content):
            raise ManifestError(f"{path}: is no JSON that Label Studio exports, whose tasks have 'data'")
        return read_label_studio(content, path, field=options.field, fps=options.fps)
    text = read_text(path)
    if is_via_csv(text):
        return read_via_csv(text, path, field=options.field)
    content = parse_json(text, path)
    if not is_via(content):
        raise ManifestError(f"{path}: is no project of VIA 3, which has 'file', 'view' and 'metadata'")
    return read_via(content, path, field=options.field)
