"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stvid.errors import StvidError

__all__ = ["write_atomically", "write_lines", "write_table"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Writes a file so that an interruption or a full disk leaves the earlier file as it was.

    Args:
        path: Where the file is to be.
        write: Called with a temporary path in the same folder; what it writes there is moved into place.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        os.chmod(temporary, mode)  # some libraries (safetensors) make files that nobody else may read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
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
