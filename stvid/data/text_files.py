"""Lists and annotations as text: UTF-8, CSV and JSON, with errors that name the file, the line and the cure."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import stat
from typing import Any

from stvid.errors import ManifestError

__all__ = ["Table", "check_letters", "parse_json", "parse_table", "read_lines", "read_text"]

Table = list[tuple[int, list[str]]]
"""The lines of a CSV that are not blank: number of the line, and its cells."""


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a text file.

    A mark of byte order is left off, also one at the begin of a later line, where files were put together.

    Raises:
        ManifestError: If it cannot be read, is not UTF-8, or holds nothing.
    """
    try:
        if not _is_readable(os.stat(path).st_mode):
            raise ManifestError(f"{path}: is neither a file nor a pipe")
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:  # a path with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"{path}: cannot be read ({reason})") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ManifestError(f"{path}: is not UTF-8 but UTF-16 text; save it as UTF-8")
    if b"\0" in content:
        raise ManifestError(f"{path}: is not text (it holds zero bytes); save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(content[: error.start].splitlines()) or 1
        raise ManifestError(
            f"{path}: is not UTF-8 text (line {line}, byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error
    text = re.sub(r"(?m)^\ufeff", "", text)
    if not text.strip():
        raise ManifestError(f"{path}: is empty")
    if text.startswith("version https://git-lfs.github.com/"):
        raise ManifestError(f"{path}: is a pointer of git-lfs, not the file itself; git lfs pull fetches it")
    if re.match(r"(?i)\s*(<!doctype html|<html)\b", text):
        raise ManifestError(f"{path}: is a page of the web (HTML), not a list; download the file itself")
    return text


def _is_readable(mode: int) -> bool:
    """Whether something of this mode ends: devices do not, and a folder is left to the system to refuse."""
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)


def read_lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Reads number and text of the lines that are not blank.

    Raises:
        ManifestError: If it cannot be read, is not UTF-8, or holds nothing.
    """
    return [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


def parse_json(text: str, path: str | os.PathLike[str], *, unique_keys: bool = False) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: The text.
        path: Where it is from, for messages.
        unique_keys: Refuse a key that occurs twice in a table, of which otherwise the last one counts.

    Raises:
        ManifestError: If it is not JSON; the message begins with `path`.
    """

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ManifestError(f"{path}: the key {key!r} occurs twice")
            found[key] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=table if unique_keys else None)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from error
    except ManifestError:
        raise
    except RecursionError as error:
        raise ManifestError(f"{path}: is JSON within JSON too many times") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise ManifestError(f"{path}: is not JSON that can be read ({str(error)[:60]})") from error
    check_letters(value, text, path)
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def check_letters(value: Any, text: str, path: str | os.PathLike[str]) -> None:
    """Refuses JSON whose escapes name half of a letter, which no file and no terminal can hold.

    The bytes of names of files that are not UTF-8 stand as such halves too, U+DC80 to U+DCFF; they are kept.

    Args:
        value: The value of the text.
        text: The text; without an escape of that kind nothing is looked at.
        path: Where it is from, for messages.

    Raises:
        ManifestError: If there is such a half; the message begins with `path`.
    """
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ManifestError(f"{path}: holds {half}, which is half of a letter; save it as UTF-8") from error


def parse_table(text: str, path: str | os.PathLike[str], *, delimiter: str = ",") -> Table:
    """Returns the lines of a CSV.

    Args:
        text: The text.
        path: Where it is from, for messages.
        delimiter: The sign between two cells.

    Raises:
        ManifestError: If it is not CSV, or has no lines; the message begins with `path`.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
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
