"""Videos whose bytes lie in the rows of Parquet and Arrow files, as data sets of Hugging Face hold them.

A list of such videos is a `stvid.data.video_table.Manifest` like any other, whose videos are read from their rows. Rows
of an Arrow file are found at once. A Parquet file is read row by row within a group of rows, so that memory holds one
video at a time, and a pass in order reads each byte once; to go back within a group, it is read again from its
beginning. Groups are small in files that ``datasets`` writes (about ten videos); a file with one large group is read
fast in order only.
"""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stvid.errors import StvidError, VideoError
from stvid.video.frame_index import Index

__all__ = ["TableRows", "arrow_module", "open_arrow"]

_MOST_OPEN = 8
"""Files that a process keeps open."""


def arrow_module(what: str) -> Any:
    """Returns pyarrow with its part for Parquet.

    Args:
        what: The kind of files that need it, for the message.

    Raises:
        StvidError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StvidError(f"{error}; {what} need: pip install 'stvid[parquet]'") from error
    return pyarrow


def open_arrow(path: str) -> Any:
    """Returns the table of an Arrow file (a stream, as datasets writes them), mapped into memory and not read.

    Raises:
        OSError: If it cannot be read.
        pyarrow.ArrowException: If it is no such file.
    """
    pyarrow = arrow_module("Arrow files")
    return pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()


class _ArrowColumn:
    """The rows of a column of an Arrow file."""

    def __init__(self, path: str, column: str) -> None:
        self.values = open_arrow(path).column(column)

    def value(self, row: int) -> Any:
        """Returns the value of a row."""
        return self.values[row].as_py()


class _ParquetColumn:
    """The rows of a column of a Parquet file; the last place is kept, so that reading on is cheap."""

    def __init__(self, path: str, column: str) -> None:
        self.file = arrow_module("Parquet").parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        self.column = column
        counts = [self.file.metadata.row_group(number).num_rows for number in range(self.file.num_row_groups)]
        self.begins = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self.group = -1
        self.next = 0
        self.batches: Iterator[Any] = iter(())

    def value(self, row: int) -> Any:
        """Returns the value of a row."""
        group = bisect.bisect_right(self.begins, row) - 1
        if group != self.group or row < self.next:
            self.group, self.next = group, self.begins[group]
            self.batches = self.file.iter_batches(
                batch_size=1, row_groups=[group], columns=[self.column], use_threads=False
            )
        while True:
            batch = next(self.batches)
            self.next += 1
            if self.next > row:
                return batch.column(0)[0].as_py()


class _OpenFiles:
    """The files that this process has open; another process that gets them opens its own."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.columns: dict[tuple[str, str], _ArrowColumn | _ParquetColumn] = {}

    def __reduce__(self) -> tuple[type[_OpenFiles], tuple[()]]:
        return _OpenFiles, ()

    def value(self, path: str, column: str, row: int) -> Any:
        """Returns the value of a row of a column."""
        if self.process != os.getpid():  # after a fork
            self._forget()
        with self.lock:
            found = self.columns.pop((path, column), None)
            if found is None:
                found = (_ArrowColumn if path.endswith(".arrow") else _ParquetColumn)(path, column)
                while len(self.columns) >= _MOST_OPEN:
                    del self.columns[next(iter(self.columns))]
            self.columns[path, column] = found  # the last that was used stands last
            return found.value(row)


@dataclass(frozen=True)
class TableRows:
    """Where the videos of a manifest lie in tables; arrays of one entry a video.

    Attributes:
        files: The Parquet and Arrow files, absolute.
        column: The column of the videos: their bytes, or ``bytes`` and ``path``.
        file: Number of the file, int32 (N,).
        row: Row in it, counted from 0, int64 (N,).
    """

    files: tuple[str, ...]
    column: str
    file: np.ndarray
    row: np.ndarray
    _open: _OpenFiles = field(default_factory=_OpenFiles, repr=False, compare=False)

    @classmethod
    def of(cls, files: Sequence[str], column: str, places: Sequence[tuple[int, int]]) -> TableRows:
        """Returns the rows at these places: number of the file, and row in it."""
        pairs = np.array(places, np.int64).reshape(len(places), 2)
        return cls(tuple(files), column, pairs[:, 0].astype(np.int32), pairs[:, 1].copy())

    @property
    def place(self) -> str:
        """Says in words where the videos lie, for messages."""
        return "as bytes in a data set"

    @property
    def instead(self) -> str:
        """Says in words what to do where files are needed."""
        return "write files and a list of them: stvid prep manifest hugging-face"

    def subset(self, picked: np.ndarray) -> TableRows:
        """Returns the places of some of the videos."""
        return TableRows(self.files, self.column, self.file[picked], self.row[picked])

    def read(self, index: int) -> tuple[bytes, Index | None]:
        """Returns the bytes of one video; its frame index is not known.

        Raises:
            VideoError: If they cannot be read.
        """
        path, row = self.files[int(self.file[index])], int(self.row[index])
        pyarrow = arrow_module("videos in tables")
        try:
            value = self._open.value(path, self.column, row)
        except StopIteration as error:
            raise VideoError(path, f"has no row {row} any more; it was changed") from error
        except (pyarrow.ArrowException, OSError, IndexError, KeyError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise VideoError(path, f"row {row} cannot be read ({reason})") from error
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise VideoError(path, f"row {row} holds no bytes of a video")
        return content, None
