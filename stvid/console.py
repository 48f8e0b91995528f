"""The progress bar of every long command, on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar:
    """A bar that counts what is done; one that is not shown does nothing.

    Args:
        progress: The display of rich that draws it; None shows nothing.
        task: Its number in that display.
    """

    def __init__(self, progress: Any = None, task: Any = None) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int = 1, *, title: str | None = None) -> None:
        """Counts `count` more as done, and changes the words before the bar if a title is given."""
        if self._progress is not None:
            self._progress.update(self._task, advance=count, **({} if title is None else {"description": title}))


@contextlib.contextmanager
def progress_bar(
    title: str,
    total: int | None,
    *,
    done: int = 0,
    enabled: bool | None = None,
    transient: bool = False,
    in_bytes: bool = False,
) -> Iterator[ProgressBar]:
    """Shows a bar with its title, the count and the time that is left, until the end of the ``with``.

    Args:
        title: The words before the bar.
        total: How much there is to do; None if that is not known.
        done: How much of it has been done before.
        enabled: Whether the bar is shown; None shows it if standard error is a terminal.
        transient: Whether the bar disappears at the end.
        in_bytes: Whether bytes are counted: they are shown as MB, with the speed.

    Yields:
        The bar, to be told of what is done.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield ProgressBar()
        return
    from rich.console import Console  # slow to import, and not needed without a terminal
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    # The title is text of the caller, not rich's markup, in which brackets have a meaning.
    counts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=transient) as progress:
        yield ProgressBar(progress, progress.add_task(title, total=total, completed=done))
