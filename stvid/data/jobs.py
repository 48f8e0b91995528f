"""One piece of work per file, in parallel: with progress, a journal to go on from, and a list of what failed.

The journal (`stvid.journal`) gets one record for each file that is done, written at once. A second run with the same
journal does what is left, what failed before, and what has changed or is gone since; one that is a different job is
refused.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvid.console import progress_bar
from stvid.errors import ConfigError, Interrupted, StvidError
from stvid.journal import Journal
from stvid.machine import usable_cores

__all__ = ["Outcome", "run_jobs"]

Work = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of the work on one file.

    Attributes:
        key: The file.
        result: The result of the work; empty if it failed.
        error: Why it failed, an empty string if it did not.
    """

    key: str
    result: Mapping[str, Any]
    error: str


def _attempt(work: Work, key: str, options: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """In the worker process. One file must not end the run, whatever is wrong with it or with the work."""
    try:
        return work(key, options), ""
    except StvidError as error:
        return {}, str(error)
    except OSError as error:
        return {}, f"{error.filename or key}: {error.strerror or error}"
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return {}, f"{key}: internal error: {message[:500]} (please report it)"


def _enter_worker() -> None:
    # Ctrl-C reaches all processes of the terminal; the main one acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The pool's own processes wait for ever if the main one is killed.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _stamp(key: str) -> list[int]:
    """Size and time of a file, by which a changed one is known; empty if it is not there."""
    try:
        status = os.stat(key)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def _keep(
    done: dict[str, Outcome],
    record: Mapping[str, Any],
    intact: Callable[[Mapping[str, Any]], bool] = lambda result: True,
) -> None:
    """Takes what a journal has of a file as done, unless the file or what was made of it has changed since."""
    key, result = record["key"], record["result"]
    done.pop(key, None)  # a later record says more
    try:
        if not record["error"] and record["stamp"] == _stamp(key) and intact(result):
            done[key] = Outcome(key, result, "")
    except (LookupError, TypeError, ValueError):
        pass  # a result of another version, or damaged: the work is done again


def run_jobs(
    work: Work,
    keys: Sequence[str],
    options: Mapping[str, Any],
    *,
    title: str,
    journal: Path,
    workers: int | None = None,
    intact: Callable[[Mapping[str, Any]], bool] = lambda result: True,
) -> list[Outcome]:
    """Calls ``work(key, options)`` for every key in worker processes.

    A file that takes its process down is tried once more by itself, and is listed as failed if it does so again.

    Args:
        work: A function of a module; it returns what JSON can hold, and raises StvidError for a file that it cannot do.
        keys: The files, each once.
        options: For every call; what JSON can hold. They must be the same when the run is continued.
        title: Shown beside the progress.
        journal: The file in which the outcomes are kept.
        workers: Processes; None takes one for each core.
        intact: Tells of what the work returned in an earlier run whether what it wrote is still there.

    Returns:
        The outcomes in the order of the keys, those of earlier runs included.

    Raises:
        ConfigError: If the journal belongs to another job, or the number of workers is less than 1.
        StvidError: If the file of the journal holds something else, or cannot be read or written.
        Interrupted: If Ctrl-C was pressed; the journal holds what was done.
    """
    job = json.loads(json.dumps({"title": title, **options}))
    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise ConfigError(f"--workers {workers}: at least 1 is needed")
    done: dict[str, Outcome] = {}
    failed = 0
    with contextlib.ExitStack() as stack:
        kept = functools.partial(_keep, done, intact=intact)
        fields = {"key": str, "stamp": list, "result": dict, "error": str}
        header = {"job": job}
        file = stack.enter_context(Journal(journal, header, what="the journal of a job", fields=fields, each=kept))
        left = [key for key in keys if key not in done]
        bar = stack.enter_context(progress_bar(title, len(keys), done=len(keys) - len(left)))

        def record(key: str, result: Mapping[str, Any], error: str) -> None:
            nonlocal failed
            failed += bool(error)
            done[key] = Outcome(key, result, error)
            file.add({"key": key, "stamp": _stamp(key), "result": result, "error": error})
            bar.advance(title=f"{title} ({failed} failed)" if failed else None)

        try:
            suspects = _run_pool(work, left, options, workers, record)
            for key in suspects:  # one of them took its process down: each by itself shows which
                if _run_pool(work, [key], options, 1, record):
                    record(key, {}, f"{key}: takes the process that reads it down")
        except KeyboardInterrupt as error:
            count = f"{len(done)} of {len(keys)} videos done"
            raise Interrupted(f"interrupted, {count}; the same command goes on from there", signal.SIGINT) from error
    return [done[key] for key in keys]


def _run_pool(
    work: Work,
    keys: Sequence[str],
    options: Mapping[str, Any],
    workers: int,
    record: Callable[[str, Mapping[str, Any], str], None],
) -> list[str]:
    """Returns the files that were being worked on when a process died."""
    suspects: list[str] = []
    waiting = list(reversed(keys))
    context = multiprocessing.get_context("spawn")
    while waiting:
        running: dict[concurrent.futures.Future[tuple[Mapping[str, Any], str]], str] = {}
        others = set(multiprocessing.active_children())
        with concurrent.futures.ProcessPoolExecutor(
            min(workers, len(waiting)), mp_context=context, initializer=_enter_worker
        ) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        running[pool.submit(_attempt, work, waiting[-1], options)] = waiting[-1]
                        waiting.pop()
                    ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in ended:
                        outcome = future.result()
                        record(running.pop(future), *outcome)
            except BrokenProcessPool:
                for future, key in running.items():
                    try:
                        record(key, *future.result())  # ended before the process died, not seen yet
                    except BrokenProcessPool:
                        suspects.append(key)
            except BaseException:
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()  # a long video would be waited for
                # Waited for: a thread of the pool that is still about when Python exits may trip over a closed pipe.
                pool.shutdown(cancel_futures=True)
                raise
    return suspects
