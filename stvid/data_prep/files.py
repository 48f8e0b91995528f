"""Lists and reports: written whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stvid.errors import StvidError

__all__ = ["write_lines", "write_table"]


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    from stvid.checkpoints import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:  # it may name the temporary file or a folder above
        raise StvidError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_table(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, errors: str = "surrogateescape"
) -> None:
    """Writes a CSV.

    Args:
        path: Where; folders above it are made.
        header: The first line.
        rows: The others.
        errors: What becomes of a name that is not UTF-8, as for `open`: a report may name such a file.

    Raises:
        StvidError: If it cannot be written.
    """

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8", errors=errors, newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            table.writerows(rows)

    _write(path, write)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes a text file; without lines there is none, not even an earlier one.

    Raises:
        StvidError: If it cannot be written.
    """
    if not lines:
        path.unlink(missing_ok=True)
        return
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")
    _write(path, lambda target: target.write_bytes(content))
