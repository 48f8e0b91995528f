"""A stage for many files, in parallel: with progress, a journal to go on from, and a list of what failed.

The journal (`stvid.journal`) gets one record for each file that is done, written at once. A second run with the same
journal does what is left, what failed before, and what has changed or is gone since; one that is a different job is
refused. A part of a job (`stvid.data.parts`) has a journal of its own; `merge_parts` joins those of all parts.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stvid.console import progress_bar
from stvid.data.parts import Part, found_parts
from stvid.data.stage_base import Stage
from stvid.errors import ConfigError, Interrupted, StvidError
from stvid.files import write_atomically
from stvid.journal import Journal, read_journal
from stvid.machine import usable_cores

__all__ = ["EngineName", "Job", "Outcome", "Record", "merge_parts", "run_jobs", "run_pool"]


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


_WHAT = "the journal of a job"
_FIELDS: dict[str, type] = {"key": str, "stamp": list, "result": dict, "error": str}
"""The fields of each record of a journal."""

Record = Callable[[str, Mapping[str, Any], str], None]
"""Called with the file, the result and the error of each piece of work that is done."""

Run = Callable[[Stage, Sequence[str], "int | None", Record], list[str]]
"""Does the work of a stage on files with a number of workers; returns the files that were lost with their workers."""

EngineName = Literal["local", "ray"]


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


def _stamp(key: str) -> list[int]:
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
    *,
    failures: bool = False,
) -> None:
    """Takes what a journal has of a file as done, unless the file or what was made of it has changed since.

    Args:
        done: The outcomes by file, to which it is added.
        record: The record of the journal.
        intact: See `Job`.
        failures: Whether what failed counts as done, too; otherwise it is tried again.
    """
    key, result, error = record["key"], record["result"], record["error"]
    done.pop(key, None)  # a later record says more
    try:
        if record["stamp"] == _stamp(key) and (failures if error else intact(result)):
            done[key] = Outcome(key, {} if error else result, error)
    except (LookupError, TypeError, ValueError):
        pass  # a result of another version, or damaged: the work is done again


def run_jobs(
    job: Job,
    *,
    workers: int | None = None,
    part: Part | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
) -> list[Outcome]:
    """Does the work of a job on every file, in worker processes of this machine or of a Ray cluster.

    A file that takes its process down is tried once more by itself, and is listed as failed if it does so again.

    Args:
        job: The work, and the files.
        workers: Processes; None takes one for each core, of a Ray cluster as many as it gives.
        part: The part of the files to do; None does all.
        engine: ``local`` starts processes here, ``ray`` hands the work to Ray.
        ray_address: The cluster, as Ray names it; None starts Ray on this machine.

    Returns:
        The outcomes in the order of the files, or of those of the part; those of earlier runs are included.

    Raises:
        ConfigError: If the journal belongs to another job, or the number of workers is less than 1.
        StvidError: If the file of the journal holds something else, or cannot be read or written, or Ray is missing or
            cannot be reached.
        Interrupted: If Ctrl-C was pressed; the journal holds what was done.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: at least 1 is needed")
    keys, title, path, header = job.keys, job.title, job.journal, job.header
    done: dict[str, Outcome] = {}
    failed = 0
    with contextlib.ExitStack() as stack:
        kept = functools.partial(_keep, done, intact=job.intact)
        if part is not None:
            _read_whole(job, kept)  # what was merged before, of a list that may have been shorter
            keys, path, header = part.of(keys), part.beside(path), part.header(header, keys)
        file = stack.enter_context(Journal(path, header, what=_WHAT, fields=_FIELDS, each=kept))
        left = [key for key in keys if key not in done]
        bar = stack.enter_context(progress_bar(title, len(keys), done=len(keys) - len(left)))

        def record(key: str, result: Mapping[str, Any], error: str) -> None:
            nonlocal failed
            failed += bool(error)
            done[key] = Outcome(key, result, error)
            file.add(_record(done[key]))
            bar.advance(title=f"{title} ({failed} failed)" if failed else None)

        try:
            run = stack.enter_context(_started(engine if left else "local", ray_address, workers))
            suspects = run(job.stage, left, workers, record)
            for key in suspects:  # one of them took its process down: each by itself shows which
                if run(job.stage, [key], 1, record):
                    record(key, {}, f"{key}: takes the process that reads it down")
        except KeyboardInterrupt as error:
            count = f"{sum(key in done for key in keys)} of {len(keys)} videos done"
            raise Interrupted(f"interrupted, {count}; the same command goes on from there", signal.SIGINT) from error
    return [done[key] for key in keys]


def _read_whole(job: Job, each: Callable[[dict[str, Any]], None]) -> None:
    """Reads the journal of a whole job, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        read_journal(job.journal, job.header, what=_WHAT, fields=_FIELDS, each=each)


def merge_parts(job: Job) -> tuple[list[Outcome], list[Path]]:
    """Makes the journal of a whole job from those of all its parts: the one that a single process writes.

    Returns:
        The outcomes in the order of the files, and the journals of the parts, which are not needed any more.

    Raises:
        ConfigError: If a part is of another job or another list, or there are parts of two divisions, which overlap.
        StvidError: If a part is missing, has not done all its files, or is at work now.
    """
    parts = found_parts(job.journal)
    done: dict[str, Outcome] = {}
    _read_whole(job, functools.partial(_keep, done, intact=job.intact, failures=True))
    for part in parts:
        journal = part.beside(job.journal)
        own = set(part.of(job.keys))

        def kept(record: dict[str, Any], own: set[str] = own, journal: Path = journal) -> None:
            if record["key"] not in own:
                raise ConfigError(
                    f"{journal}: holds {record['key']}, which is another shard's; delete it and run it again"
                )
            _keep(done, record, job.intact, failures=True)

        with Journal(journal, part.header(job.header, job.keys), what=_WHAT, fields=_FIELDS, each=kept):
            left = sum(key not in done for key in own)
        if left:
            raise StvidError(
                f"{journal}: {left} of {len(own)} videos of shard {part} are not done, or have changed since; run "
                f"--shard {part} again"
            )
    outcomes = [done[key] for key in job.keys]

    def write(path: Path) -> None:
        with Journal(path, job.header, what=_WHAT, fields=_FIELDS, each=lambda record: None) as file:
            for outcome in outcomes:
                file.add(_record(outcome))

    write_atomically(job.journal, write)
    return outcomes, [part.beside(job.journal) for part in parts]


def _record(outcome: Outcome) -> dict[str, Any]:
    return {"key": outcome.key, "stamp": _stamp(outcome.key), "result": outcome.result, "error": outcome.error}


@contextlib.contextmanager
def _started(engine: EngineName, ray_address: str | None, workers: int | None) -> Iterator[Run]:
    """Gives what runs a stage, with Ray started or connected until the end of the ``with`` if it is asked for."""
    if engine == "local":
        yield run_pool
        return
    from stvid.data.ray_engine import run_on_ray, started_ray

    with started_ray(ray_address, workers):
        yield run_on_ray


def run_pool(stage: Stage, keys: Sequence[str], workers: int | None, record: Record) -> list[str]:
    """Does the work of a stage on files in processes of this machine.

    Args:
        stage: The work.
        keys: The files.
        workers: Processes; None takes one for each core.
        record: Called with the file, the result and the error of each piece of work that is done.

    Returns:
        The files that were being worked on when a process died.
    """
    workers = workers or usable_cores()
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
