"""Text for a terminal without control characters, commands that can be pasted, and the progress bar."""

from __future__ import annotations

import contextlib
import shlex
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

__all__ = ["ProgressBar", "command_line", "printable", "progress_bar"]

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Control characters, halves of surrogate pairs (bytes of a name that are not UTF-8), and the separators of lines and
# paragraphs.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reorder what is shown


def printable(text: str, *, keep: str = "") -> str:
    """Returns a text in which control characters are seen (``\\n``, ``\\x1b``) instead of obeyed by a terminal.

    Names of files and classes come from others: they may hold line breaks and escape sequences, and bytes that are not
    UTF-8. In files (CSV, JSON) they stay as they are.

    Args:
        text: Any text.
        keep: Characters that stay as they are, such as the line breaks of a text of several lines.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in keep else _shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if character not in _TURNING and unicodedata.category(character) not in _UNPRINTABLE:
        return character
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for a byte
        return f"\\x{code - 0xDC00:02x}"
    return _ESCAPES.get(character) or (f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}")


def command_line(*words: object) -> str:
    """Returns a command that can be pasted into a shell, on one line: words are quoted where they need it.

    Args:
        *words: The program and its arguments: texts and paths.
    """
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    if printable(word) == word:
        return shlex.quote(word)
    # bash and zsh read $'...' with escapes
    return "$'" + printable(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


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
