"""A journal of work that can be interrupted: one line for each piece that is done, so that the next run goes on there.

The file holds JSON, one object a line. The first line is the header, which says what work it is; each other line is a
record, with a checksum. Lines are only ever appended. What a killed process had half written, and all that follows a
damaged line, is cut off when the journal is opened again; the work of those lines is then done once more.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from stvid.errors import ConfigError, StvidError

__all__ = ["Journal", "read_journal"]

_CHECKSUM = "crc32"


class Journal:
    """The journal of one piece of work; used as a context, which closes it.

    Args:
        path: The file; it is made, with the folders above it, if it is not there.
        header: Describes the work, in values that JSON can hold. A journal goes on only if its header is the same.
        what: The name of the journal in messages, such as "the journal of this job".
        each: Called with every record that an earlier run has written, in order.
        fields: The types of the fields that each record has; one that has others is taken for damaged.

    Raises:
        ConfigError: If the file is the journal of other work.
        StvidError: If another process does this work now.
        StvidError: If the file is no journal, or cannot be read or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, Any],
        *,
        what: str,
        each: Callable[[dict[str, Any]], None],
        fields: Mapping[str, type] | None = None,
    ) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115  # __exit__ closes it
        except OSError as error:
            raise StvidError(f"{self.path}: cannot keep the progress ({error.strerror or error})") from error
        try:
            self._claim()
            if os.fstat(self._file.fileno()).st_size:
                os.truncate(self.path, read_journal(self.path, header, what=what, each=each, fields=fields))
                self._claim()  # reading has opened the file once more, and closing it gave the lock back
            if os.fstat(self._file.fileno()).st_size == 0:
                self._append(_line(header))
        except OSError as error:
            self._file.close()
            raise StvidError(f"{self.path}: cannot keep the progress ({error.strerror or error})") from error
        except StvidError:
            self._file.close()
            raise

    def _claim(self) -> None:
        if not _lock(self._file.fileno()):
            raise StvidError(f"{self.path}: another process does this work now; wait for its end")

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record; it is in the hands of the operating system when this returns.

        Raises:
            StvidError: If it cannot be written.
        """
        try:
            self._append(_line({**record, _CHECKSUM: _checksum(record)}))
        except OSError as error:
            raise StvidError(f"{self.path}: cannot keep the progress ({error.strerror or error})") from error

    def _append(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_journal(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    *,
    what: str,
    each: Callable[[dict[str, Any]], None],
    fields: Mapping[str, type] | None = None,
) -> int:
    """Reads the records of a journal that are whole, and leaves the file as it is.

    Args:
        path: The file.
        header: See `Journal`, as are the other arguments.
        what: The name of the journal in messages.
        each: Called with every record, in order.
        fields: The types of the fields that each record has.

    Returns:
        The byte at which the last record ends.

    Raises:
        ConfigError: If the file is the journal of other work.
        StvidError: If the file is no journal.
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        first = file.readline()
        if not first.endswith(b"\n") and _line(header).startswith(first):
            return 0  # the process was killed when it had just begun
        found = _parsed(first)
        if found is None:
            raise StvidError(f"{path}: is not {what}; delete it or move it away")
        if found != _parsed(_line(header)):
            raise ConfigError(
                f"{path}: belongs to a run with other options ({json.dumps(found)}); delete it to start "
                "again, or give another place for the output"
            )
        end = len(first)
        for line in file:
            record = _parsed(line)
            if record is None or record.pop(_CHECKSUM, None) != _checksum(record):
                break
            if not all(type(record.get(name)) is kind for name, kind in (fields or {}).items()):
                break
            each(record)
            end += len(line)
    return end


def _lock(descriptor: int) -> bool:
    """Locks an open file until this process closes it; returns whether no other process has it.

    Processes that this one forks do not inherit the lock, so that it ends with this process.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _checksum(values: Mapping[str, Any]) -> int:
    return zlib.crc32(_line(values))


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line; None if the line is cut off or damaged."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
