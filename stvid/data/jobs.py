"""A stage for many files, in parallel: with progress, a journal to go on from, and a list of what failed.

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
from stvid.data.stage_base import Stage
from stvid.errors import ConfigError, Interrupted
from stvid.journal import Journal
from stvid.machine import usable_cores

__all__ = ["FIELDS", "WHAT", "Job", "Outcome", "Record", "run_jobs", "stamp"]


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


def _always(result: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Job:
    """Some work on many files.

    Attributes:
        stage: The work. Its options must be the same when the job is continued.
        keys: The files, each once.
        title: Shown beside the progress.
        journal: The file in which the outcomes are kept.
        intact: Tells of what the work returned in an earlier run whether what it wrote is still there.
    """

    stage: Stage
    keys: Sequence[str]
    title: str
    journal: Path
    intact: Callable[[Mapping[str, Any]], bool] = _always

    @property
    def header(self) -> dict[str, Any]:
        """The first line of the journal, which says what the job is."""
        return json.loads(json.dumps({"job": {"title": self.title, **self.stage.options}}))


WHAT = "the journal of a job"
FIELDS: dict[str, type] = {"key": str, "stamp": list, "result": dict, "error": str}
"""The fields of each record of a journal."""

Record = Callable[[str, Mapping[str, Any], str], None]
"""Called with the file, the result and the error of each piece of work that is done."""


def _attempt(stage: Stage, key: str) -> tuple[str, Mapping[str, Any], str]:
    """In the worker process: does the work on one file."""
    (outcome,) = stage.outcomes(stage({stage.column: [key]}))
    return outcome


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


def stamp(key: str) -> list[int]:
    """Returns the size and time of a file, by which a changed one is known; empty if it is not there."""
    try:
        status = os.stat(key)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def _keep(
    done: dict[str, Outcome],
    record: Mapping[str, Any],
    intact: Callable[[Mapping[str, Any]], bool] = _always,
) -> None:
    """Takes what a journal has of a file as done, unless the file or what was made of it has changed since."""
    key, result = record["key"], record["result"]
    done.pop(key, None)  # a later record says more
    try:
        if not record["error"] and record["stamp"] == stamp(key) and intact(result):
            done[key] = Outcome(key, result, "")
    except (LookupError, TypeError, ValueError):
        pass  # a result of another version, or damaged: the work is done again


def run_jobs(job: Job, *, workers: int | None = None) -> list[Outcome]:
    """Does the work of a job on every file in worker processes.

    A file that takes its process down is tried once more by itself, and is listed as failed if it does so again.

    Args:
        job: The work, and the files.
        workers: Processes; None takes one for each core.

    Returns:
        The outcomes in the order of the files, those of earlier runs included.

    Raises:
        ConfigError: If the journal belongs to another job, or the number of workers is less than 1.
        StvidError: If the file of the journal holds something else, or cannot be read or written.
        Interrupted: If Ctrl-C was pressed; the journal holds what was done.
    """
    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise ConfigError(f"--workers {workers}: at least 1 is needed")
    keys, title = job.keys, job.title
    done: dict[str, Outcome] = {}
    failed = 0
    with contextlib.ExitStack() as stack:
        kept = functools.partial(_keep, done, intact=job.intact)
        file = stack.enter_context(Journal(job.journal, job.header, what=WHAT, fields=FIELDS, each=kept))
        left = [key for key in keys if key not in done]
        bar = stack.enter_context(progress_bar(title, len(keys), done=len(keys) - len(left)))

        def record(key: str, result: Mapping[str, Any], error: str) -> None:
            nonlocal failed
            failed += bool(error)
            done[key] = Outcome(key, result, error)
            file.add({"key": key, "stamp": stamp(key), "result": result, "error": error})
            bar.advance(title=f"{title} ({failed} failed)" if failed else None)

        try:
            suspects = _run_pool(job.stage, left, workers, record)
            for key in suspects:  # one of them took its process down: each by itself shows which
                if _run_pool(job.stage, [key], 1, record):
                    record(key, {}, f"{key}: takes the process that reads it down")
        except KeyboardInterrupt as error:
            count = f"{len(done)} of {len(keys)} videos done"
            raise Interrupted(f"interrupted, {count}; the same command goes on from there", signal.SIGINT) from error
    return [done[key] for key in keys]


def _run_pool(stage: Stage, keys: Sequence[str], workers: int, record: Record) -> list[str]:
    """Returns the files that were being worked on when a process died."""
    suspects: list[str] = []
    waiting = list(reversed(keys))
    context = multiprocessing.get_context("spawn")
    while waiting:
        running: dict[concurrent.futures.Future[tuple[str, Mapping[str, Any], str]], str] = {}
        others = set(multiprocessing.active_children())
        with concurrent.futures.ProcessPoolExecutor(
            min(workers, len(waiting)), mp_context=context, initializer=_enter_worker
        ) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        running[pool.submit(_attempt, stage, waiting[-1])] = waiting[-1]
                        waiting.pop()
                    ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for future in ended:
                        outcome = future.result()
                        del running[future]
                        record(*outcome)
            except BrokenProcessPool:
                for future, key in running.items():
                    try:
                        record(*future.result())  # ended before the process died, not seen yet
                    except BrokenProcessPool:
                        suspects.append(key)
            except BaseException:
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()  # a long video would be waited for
                # Waited for: a thread of the pool that is still about when Python exits may trip over a closed pipe.
                pool.shutdown(cancel_futures=True)
                raise
    return suspects
