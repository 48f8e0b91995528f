"""A list of videos as a table of one's own: a CSV with the columns path, label and a few others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from stvid.data.annotations import parse_seconds
from stvid.data.text_files import Table, parse_table
from stvid.data.video_folder import is_video
from stvid.data.video_table import Row
from stvid.errors import ManifestError
from stvid.files import expand_home
from stvid.video.remote import is_remote_file

__all__ = ["SPLITS", "VideoList", "list_table", "read_csv_list"]

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The words for a split, and what each means."""

_COLUMNS = ("path", "label", "start", "end", "split", "group")
_LABEL_WORDS = ("label", "labels", "class", "class_name", "category")


@dataclass
class VideoList:
    """A list as it was read.

    Attributes:
        rows: Its rows.
        sparse: Whether rows without labels may stand beside labelled ones.
        splits: The split of each row; empty if no column names it.
        notes: What a user should know of it.
        class_names: All classes in their order, if the list itself says it.
        tables: The files whose rows hold the videos as bytes, and the column of these; None if videos are files.
    """

    rows: list[Row]
    sparse: bool = False
    splits: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    tables: tuple[tuple[str, ...], str] | None = None

    def of_split(self, splits: Sequence[str], path: str) -> VideoList:
        """Returns the same list with the rows of the first of these splits that it has."""
        chosen = next((split for split in splits if split in self.splits), None)
        if chosen is None:
            there = ", ".join(sorted({*self.splits}))
            raise ManifestError(f"{path}: no row is of the split {splits[0]!r}; its column split has {there}")
        rows = [row for row, own in zip(self.rows, self.splits, strict=True) if own == chosen]
        note = f"{path}: {len(rows)} of {len(self.rows)} rows, those whose column split says {chosen}"
        return VideoList(rows, self.sparse, self.splits, (*self.notes, note), self.class_names, self.tables)


def list_table(text: str, path: str) -> tuple[Table, tuple[str, ...]]:
    """Returns the lines of a list, and a note if its cells are separated by another sign than the comma.

    A semicolon (spreadsheets where the comma stands in numbers) or a tab is taken if the first line is a header by it.

    Raises:
        ManifestError: If it is no table, or is JSON.
    """
    stripped = text.strip()
    if stripped[0] + stripped[-1] in ("[]", "{}"):
        raise ManifestError(f"{path}: is JSON, not a CSV; the JSON of Something-Something v2 is read from a .json file")
    first = stripped.splitlines()[0]
    if not _heads(first, ","):
        for sign, name in ((";", "semicolons"), ("\t", "tabs")):
            if _heads(first, sign):
                return parse_table(text, path, delimiter=sign), (f"{path}: its cells are separated by {name}",)
    return parse_table(text, path), ()


def _heads(line: str, sign: str) -> bool:
    """Whether a line names several columns, separated by this sign, and one of them is that of the videos."""
    cells = [cell.strip().strip('"').lower() for cell in line.split(sign)]
    return len(cells) > 1 and ("path" in cells or "youtube_id" in cells)


def _columns(table: Table, path: str, root: str) -> tuple[list[str], Table]:
    """Returns the names of the columns of a CSV, and the lines with videos."""
    line, first = table[0]
    header = [cell.strip().lower() for cell in first]
    if "path" not in header:
        _check_headerless(table, path, root)
        return ["path", "label"], table
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
    if not table[1:]:
        raise ManifestError(f"{path}: has a header but no videos")
    return header, table[1:]


def _check_headerless(table: Table, path: str, root: str) -> None:
    """Raises ManifestError unless the lines are paths and labels, beginning with the first."""
    line, first = table[0]
    cells = _without_empty_end(first, 2)
    firsts = [row[0].strip() for _, row in table]
    there = [os.path.lexists(os.path.join(root, name)) for name in firsts[:2]]
    # A header of other words (video_name,tag): of all first cells it alone has no ending of a video, or is not there.
    odd = not is_video(firsts[0]) and len(table) > 1 and (all(map(is_video, firsts[1:])) or there == [False, True])
    if odd or len(cells) != 2 or cells[1].strip().lower() in _LABEL_WORDS:
        raise ManifestError(
            f"{path}, line {line}: {','.join(first)[:200]!r} is neither a header ({','.join(_COLUMNS[:4])}) nor a path "
            "and a label, with a comma between them"
        )
    if all(len(row) > 1 and is_video(row[1].strip()) for _, row in table) and not any(map(is_video, firsts)):
        raise ManifestError(f"{path}: the videos stand in the second column; put the line label,path before the others")


def _without_empty_end(cells: list[str], count: int) -> list[str]:
    """Returns cells without those at the end that are empty and more than the columns: a comma ends each line."""
    while len(cells) > count and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _labels(text: str, multilabel: bool) -> tuple[str, ...]:
    if multilabel and not text:
        return ()
    return tuple(dict.fromkeys(name.strip() for name in (text.split("|") if multilabel else [text])))


def read_csv_list(table: Table, path: str, root: str, *, multilabel: bool) -> VideoList:
    """Reads the lines of a CSV, of which the first may name the columns.

    Args:
        table: The lines.
        path: Where they are from, for messages.
        root: Folder that relative paths start from.
        multilabel: Whether labels are lists joined by ``|``.

    Raises:
        ManifestError: If a line cannot be used; the message names it.
    """
    header, body = _columns(table, path, root)
    named = [cell.strip().lower() for cell in table[0][1]] if len(body) < len(table) else ["path", "label"]
    found = VideoList([], sparse=multilabel)
    for line, given in body:
        where = f"line {line}"
        cells = _without_empty_end(given, len(header))
        if [cell.strip().lower() for cell in cells] == named:
            raise ManifestError(f"{path}, {where}: is a header again ({','.join(cells)}); remove it")
        if len(cells) != len(header):
            raise ManifestError(
                f"{path}, {where}: has {len(cells)} columns, not {len(header)} ({','.join(header)}); put quotes around "
                "a name that holds a comma"
            )
        values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        if not values["path"]:
            raise ManifestError(f"{path}, {where}: has no path")
        if "://" in values["path"] and not is_remote_file(values["path"]):
            raise ManifestError(
                f"{path}, {where}: {values['path'][:200]!r} is an address that files are not read from; give a path, "
                "or an address of a file that begins with https://, s3://, gs:// or hf://"
            )
        labels = _labels(values["label"], multilabel) if "label" in values else ()
        if "" in labels:
            raise ManifestError(f"{path}, {where}: {values['path']!r} has no label")
        if "split" in values:
            if (split := SPLITS.get(values["split"].lower())) is None:
                raise ManifestError(f"{path}, {where}: split {values['split']!r} is none of train, val and test")
            found.splits.append(split)
        start, end = (parse_seconds(values.get(name, ""), f"{path}, {where}: {name}") for name in ("start", "end"))
        video = expand_home(values["path"], root=root)
        found.rows.append(Row(video, labels, start, end, where, values.get("group", "")))
    found.notes = tuple(_notes(path, header, found.rows, multilabel))
    return found


def _notes(path: str, header: list[str], rows: list[Row], multilabel: bool) -> Iterator[str]:
    ignored = [column or "(without a name)" for column in header if column not in _COLUMNS]
    if ignored:
        yield f"{path}: ignored columns: {', '.join(ignored)}"
    if multilabel and "label" in header and not any(len(row.labels) > 1 for row in rows):
        joined = next((label for row in rows for label in row.labels if re.search("[,;/]", label)), None)
        example = "" if joined is None else f", so {joined!r} is one class"
        yield f"{path}: no video has several labels; they are joined by | (run|jump){example}"
