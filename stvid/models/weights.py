"""The tables of published weights: for each model, which files there are, and what each was made for.

A table stands beside the file of its family, ``families/uniformer.csv`` beside ``families/uniformer.py``, a row for
each published file. Reading it needs neither torch nor a network connection.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stvid.classes import class_list
from stvid.errors import ConfigError, StvidError
from stvid.protocol import Protocol, Task

__all__ = ["COLUMNS", "Weights", "read_weights", "write_weights"]


@dataclass(frozen=True)
class Weights:
    """A published file of weights, and all that is known of it before it is fetched.

    Attributes:
        model: The model that it fits, as `stvid.create_model` takes it.
        tag: What tells the files of a model apart, such as ``k400_16x4``.
        url: Where it is published: ``https://...``, ``hf:REPO`` or ``hf:REPO/FILE`` (Hugging Face), ``gdrive:ID`` or
            ``gdrive-folder:ID`` (Google Drive).
        sha256: SHA-256 of the file in hexadecimal digits, or its first digits; empty if it was not published.
        bytes: Size of the file; None if it was not published.
        protocol: How a video becomes clips for these weights, without the class names.
        num_classes: Number of logits; 0 for weights without a classifier, None where only the file itself knows.
        classes: Name of the list of class names that fits the logits (see `stvid.classes`); empty if their order is not
            known.
        task: Whether the logits mean one class of a video, or any number of them.
        top1: Published top-1 accuracy in percent; None if there is none.
        top5: Published top-5 accuracy in percent; None if there is none.
        views: The views with which these were measured, as ``4x3``; empty if the source does not say, so that they
            cannot be compared with a number of one's own.
        params: Published parameters in millions; None if there are none.
        gflops: Published multiply-adds of one view in 1e9; None if there are none.
        pretrained_on: The data of the pretraining, in the words of the source; empty for none or unknown.
        options: Further arguments of `stvid.create_model` that these weights need.
        licence: Licence of the weights, or of the repository that publishes them; empty if unknown.
        source: Where these facts were read, as repository@commit:path.
        note: What a user of the weights must know besides.
    """

    model: str
    tag: str
    url: str
    protocol: Protocol
    num_classes: int | None
    sha256: str = ""
    bytes: int | None = None
    classes: str = ""
    task: Task = "multiclass"
    top1: float | None = None
    top5: float | None = None
    views: str = ""
    params: float | None = None
    gflops: float | None = None
    pretrained_on: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    source: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """The name that commands and `stvid.load_model` take, such as ``uniformer_s.k400_16x4``."""
        return f"{self.model}.{self.tag}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each logit; empty if their order is not known."""
        return class_list(self.classes) if self.classes else ()

    @property
    def needs_a_person(self) -> bool:
        """Whether the file cannot be fetched by a program, because its host shows a page first."""
        return self.url.startswith("gdrive-folder:")


_PROTOCOL = ("frames", "stride", "fps", "sampling", "short_side", "crop", "mean", "std", "channels", "views")
COLUMNS = (
    *("model", "tag", "url", "sha256", "bytes", "num_classes", "classes", "task", "top1", "top5", "views"),
    *("params", "gflops"),
    *(name for name in _PROTOCOL if name != "views"),
    "other_views",
    *("options", "pretrained_on", "licence", "source", "note"),
)
"""The columns of a table. A cell that is empty has the default. ``other_views`` are those of the protocol where the
published ones are unknown."""
RARE_COLUMNS = ("frames_per_segment",)
"""Further columns at the end of a table whose weights need them."""


@functools.cache
def read_weights(path: Path) -> Mapping[str, tuple[Weights, ...]]:
    """Reads a table of published weights.

    Args:
        path: A CSV file with the columns `COLUMNS`; there need not be such a file.

    Returns:
        The weights of each model in the order of the table; empty without a file.

    Raises:
        StvidError: If a row cannot be read, or two have the same name; the message has the line.
    """
    found: dict[str, list[Weights]] = {}
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) not in (COLUMNS, (*COLUMNS, *RARE_COLUMNS)):
            raise StvidError(f"{path}: the columns are not {','.join(COLUMNS)}")
        for row in rows:
            try:
                weights = _from_row(row)
            except (ConfigError, ValueError, TypeError) as error:
                raise StvidError(f"{path}, line {rows.line_num}: {error}") from error
            if any(other.tag == weights.tag for other in found.get(weights.model, ())):
                raise StvidError(f"{path}, line {rows.line_num}: {weights.name} stands twice")
            found.setdefault(weights.model, []).append(weights)
    return {model: tuple(entries) for model, entries in found.items()}


def _from_row(row: Mapping[str, str]) -> Weights:
    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    def whole(column: str) -> int | None:
        return int(row[column]) if row[column] else None

    texts = {key: row[key] for key in _PROTOCOL if row[key]}
    texts["views"] = row["views"] or row["other_views"] or "1x1"
    values: dict[str, Any] = dict(texts)
    whole_numbers = ("frames", "stride", "short_side", "crop", *RARE_COLUMNS)
    values |= {key: int(row[key]) for key in whole_numbers if row.get(key)}
    values |= {key: tuple(map(float, texts[key].split())) for key in ("mean", "std") if key in texts}
    values |= {"fps": number("fps")}
    return Weights(
        model=row["model"],
        tag=row["tag"],
        url=row["url"],
        protocol=Protocol(**values),
        num_classes=whole("num_classes"),
        sha256=row["sha256"],
        bytes=whole("bytes"),
        classes=row["classes"],
        task="multilabel" if row["task"] == "multilabel" else "multiclass",
        top1=number("top1"),
        top5=number("top5"),
        views=row["views"],
        params=number("params"),
        gflops=number("gflops"),
        pretrained_on=row["pretrained_on"],
        options=json.loads(row["options"]) if row["options"] else {},
        licence=row["licence"],
        source=row["source"],
        note=row["note"],
    )


def write_weights(path: Path, entries: Sequence[Weights]) -> None:
    """Writes a table of published weights, as `read_weights` reads it."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(f"{part:.10g}" for part in value)
        if isinstance(value, Mapping):
            return json.dumps(value) if value else ""
        return (
            "" if value in (None, "multiclass", "rgb") else f"{value:.10g}" if isinstance(value, float) else str(value)
        )

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        rare = any(entry.protocol.frames_per_segment > 1 for entry in entries)
        columns = (*COLUMNS, *RARE_COLUMNS) if rare else COLUMNS
        writer.writerow(columns)
        for entry in entries:
            cells = {key: text(getattr(entry, key)) for key in COLUMNS if hasattr(entry, key)}
            cells |= {key: text(getattr(entry.protocol, key)) for key in _PROTOCOL if key != "views"}
            cells["other_views"] = "" if entry.views else entry.protocol.views
            cells |= {key: text(getattr(entry.protocol, key)) for key in RARE_COLUMNS}
            writer.writerow([cells[key] for key in columns])
