"""The base of all stages: work on one file at a time, called with a batch of rows.

A batch is a table as ``ray.data`` hands it to `map_batches`: a dict from the name of a column to a list or an array.
`stvid.data.stages` has the stages, and an example.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from stvid.errors import StvidError

__all__ = ["Rows", "Stage"]

Rows = Mapping[str, Any]
"""Columns by name: lists or arrays, all of one length."""


class Stage:
    """Does one kind of work on the file of each row. It keeps no state but its options, and can be pickled.

    Whatever is wrong with a file ends up in the column ``error`` of its row and ends no run. A row whose ``error`` says
    something already is passed on as it is, so that stages can follow each other.

    Attributes:
        fields: The columns that the work adds, and their types: int, float, str, list or `numpy.ndarray`. A table has
            no column for lists of anything, so these are JSON in a text.
        rows_at_once: Rows that a distributed engine should give one call at most; what is lost with a process is done
            again.
        lasting: Whether a call leaves something for the next one that is costly to make, so that an engine should keep
            the processes that hold it.
        cores: CPU cores that a call uses.
        options: All that the work depends on beside the file, as JSON can hold it.
        column: The column that names the file.

    Args:
        options: See the attribute.
        column: See the attribute.
    """

    fields: ClassVar[Mapping[str, type]] = {}
    rows_at_once: ClassVar[int] = 1
    lasting: ClassVar[bool] = False
    cores: int = 1

    def __init__(self, options: Mapping[str, Any], *, column: str = "path") -> None:
        self.options = dict(options)
        self.column = column

    def work(self, path: str) -> Mapping[str, Any]:
        """Does the work on one file.

        Returns:
            A value for each of `fields`.

        Raises:
            StvidError: If the file is not usable.
            OSError: If it cannot be read, or something cannot be written.
        """
        raise NotImplementedError

    def nothing(self, name: str) -> Any:
        """Returns the value of a field in the row of a file that has failed."""
        kind = self.fields[name]
        return "[]" if kind is list else kind()

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Returns the rows with the columns of the work, and with ``error``: an empty text where all went well.

        Args:
            rows: The batch. The files are named by texts, or by bytes where a name is not UTF-8.
        """
        paths = [os.fsdecode(path) for path in rows[self.column]]
        earlier = [str(error) for error in rows.get("error", [""] * len(paths))]
        done = [({}, error) if error else self._attempt(path) for path, error in zip(paths, earlier, strict=True)]
        columns: dict[str, Any] = dict(rows)
        for name, kind in self.fields.items():
            values = [self.nothing(name) if error else _packed(result[name], kind) for result, error in done]
            columns[name] = np.array(values, "int64" if kind is int else "float64") if kind in (int, float) else values
        columns["error"] = [error for _, error in done]
        return columns

    def _attempt(self, path: str) -> tuple[Mapping[str, Any], str]:
        """One file must not end the run, whatever is wrong with it or with the work."""
        try:
            return self.work(path), ""
        except StvidError as error:
            return {}, str(error)
        except OSError as error:
            return {}, f"{error.filename or path}: {error.strerror or error}"
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())
            return {}, f"{path}: internal error: {message[:500]} (please report it)"

    def outcomes(self, rows: Rows) -> list[tuple[str, dict[str, Any], str]]:
        """Returns the file, the result in plain values, and the error of each row that a call has given.

        Args:
            rows: What a call returned, or the same after a way through another program's tables.
        """
        found = []
        for number, path in enumerate(rows[self.column]):
            error = str(rows["error"][number])
            result = {} if error else {n: _plain(rows[n][number], kind) for n, kind in self.fields.items()}
            found.append((os.fsdecode(path), result, error))
        return found


def _packed(value: Any, kind: type) -> Any:
    return json.dumps(value) if kind is list else value


def _plain(value: Any, kind: type) -> Any:
    if kind is np.ndarray:
        return np.asarray(value)
    return json.loads(value) if kind is list else kind(value)
