"""Damages files of every kind that stvid reads, and reads them: no crash, no hang, only errors that name the file.

    python tools/fuzz.py --mutations 5000                              # every kind of side file
    python tools/fuzz.py videos --clips ../shared/clips --mutations 20000
    python tools/fuzz.py checkpoints --only 1234                       # one mutation again, with its traceback

`tools/fuzz_readers.py` holds the kinds (the modes). Each mutation is read in a process of its own, with limits of
memory and time, so nothing that an earlier file left behind can matter. Videos are read twice, frame by frame in one
process and in spans in another, and both must give the same pixels. The table at the end counts:

    refused   an error of stvid, in one line that names the file
    equal     read, with the values of the undamaged file; for videos, the same pixels in both readings
    changed   read, with other values: damage that a format without a digest cannot show
    sealed    the same where a digest should have shown it (bad)
    error     another error than stvid's, or one that names no file or has several lines (bad)
    varies    two readings that differ (bad)
    crash     the process died (bad)
    hang      more than --limit seconds of processor time, or ten times as long on the clock (bad)

The exit code is 1 if anything bad happened.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Threads of this process would be missing in those that it forks, which would wait for them.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from fuzz_damage import REFUSED, Seed  # noqa: E402

BAD = ("sealed", "error", "varies", "crash", "hang")
COLUMNS = ("refused", "equal", "changed", *BAD)

# --- one reading ------------------------------------------------------------------------------------------------------


def attempt(seed: Seed, path: Path, reading: str, rng: np.random.Generator) -> dict[str, str]:
    """Reads a file; returns a digest for each part, or the trouble under ``error``."""
    from stvid.errors import StvidError

    try:
        return dict(seed.read(path, reading, rng))
    except StvidError as error:
        message = str(error)
        names = (path.name, path.parent.name, "<bytes>")
        if "\n" in message or (seed.named and not any(name in message for name in names)):
            return {"error": f"a message that does not name the file, or has several lines: {message[:300]!r}"}
        return {"": REFUSED}
    except Exception:
        return {"error": " | ".join(traceback.format_exc().strip().splitlines()[-3:])}


def limit_process(options: argparse.Namespace) -> None:
    """Bounds memory and processor time of this process, from what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + options.memory * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    seconds = int(time.process_time() + options.limit) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass
class Child:
    """A process that reads one damaged file.

    Attributes:
        pid: Its number.
        job: The mutation.
        reading: The name of the reading.
        answer: What it has said so far.
        since: When it began.
    """

    pid: int
    job: Job
    reading: str
    answer: bytes = b""
    since: float = field(default_factory=time.monotonic)


@dataclass
class Job:
    """One mutation on its way through its readings.

    Attributes:
        number: Its number in the mode, from which all of it can be made again.
        seed: The file.
        kind: The kind of damage.
        folder: Where the damaged file and those beside it lie.
        left: The readings that are still to be done.
        found: The digests of each reading.
        trouble: The first thing that went wrong: a word of `BAD` and the details.
        peak: The most memory that a reading took, in MB.
        slowest: The most processor time that a reading took, in seconds.
    """

    number: int
    seed: Seed
    kind: str
    folder: tempfile.TemporaryDirectory[str]
    left: list[str]
    found: dict[str, dict[str, str]] = field(default_factory=dict)
    trouble: tuple[str, str] | None = None
    peak: int = 0
    slowest: float = 0.0

    @property
    def path(self) -> Path:
        """The damaged file."""
        return Path(self.folder.name) / self.seed.target


def make_job(seeds: Sequence[Seed], number: int, options: argparse.Namespace, content: bytes | None = None) -> Job:
    """Writes the files of a mutation; `content` is given for the undamaged file."""
    seed = seeds[number % len(seeds)]
    kind = "none"
    if content is None:
        kind, content = seed.damaged(np.random.default_rng([options.seed, number]))
    folder = tempfile.TemporaryDirectory(dir=options.scratch, prefix="fuzz_")
    job = Job(number, seed, kind, folder, list(seed.readings))
    for name, data in {**seed.files, seed.target: content}.items():
        path = Path(folder.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return job


def run_child(job: Job, reading: str, pipe: int, options: argparse.Namespace) -> None:
    """Does one reading in the new process, which ends with it."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    limit_process(options)
    begin = time.process_time()
    found = attempt(job.seed, job.path, reading, np.random.default_rng([options.seed, job.number, 1]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    answer = json.dumps({"found": found, "memory": memory, "seconds": time.process_time() - begin})
    with open(pipe, "wb") as file:
        file.write(answer.encode())


# --- one mode ---------------------------------------------------------------------------------------------------------


class Fuzzing:
    """The mutations of one mode, and what came out of them.

    Args:
        mode: Its name.
        seeds: The good files.
        options: From the command line.
    """

    def __init__(self, mode: str, seeds: Sequence[Seed], options: argparse.Namespace) -> None:
        self.mode = mode
        self.seeds = seeds
        self.options = options
        self.selector = selectors.DefaultSelector()
        self.running: dict[int, Child] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.bad: list[str] = []
        self.good: dict[str, dict[str, str]] = {}  # what the undamaged files hold
        self.peak, self.slowest = 0, 0.0
        self.begin = time.monotonic()

    def run(self) -> None:
        """Reads the undamaged files, then all mutations."""
        for number, seed in enumerate(self.seeds):
            job = make_job(self.seeds, number, self.options, seed.packed(seed.inner()))
            self.begin_reading(job)
            while self.running:
                self.listen()
            self.good[seed.name] = job.found.get(seed.readings[0], {})
        number = 0
        while number < self.options.mutations or self.running:
            if number < self.options.mutations and len(self.running) < self.options.workers:
                self.begin_reading(make_job(self.seeds, number, self.options))
                number += 1
            else:
                self.listen()

    def begin_reading(self, job: Job) -> None:
        """Starts the next reading of a mutation."""
        reading = job.left.pop(0)
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(ours)
                run_child(job, reading, theirs, self.options)
                code = 0
            finally:
                os._exit(code)
        os.close(theirs)
        self.running[ours] = Child(pid, job, reading)
        self.selector.register(ours, selectors.EVENT_READ)

    def listen(self) -> None:
        """Takes what the processes say, and kills those that wait for ever."""
        for key, _ in self.selector.select(timeout=0.5):
            part = os.read(key.fd, 2**16)
            if part:
                self.running[key.fd].answer += part
            else:
                self.end_reading(key.fd)
        for child in self.running.values():
            if time.monotonic() - child.since > 10 * self.options.limit:
                os.kill(child.pid, signal.SIGKILL)
                child.job.trouble = ("hang", f"{child.reading}: waited for {10 * self.options.limit:g} s")

    def end_reading(self, pipe: int) -> None:
        """Takes the outcome of a reading, and starts the next one of that mutation."""
        self.selector.unregister(pipe)
        child = self.running.pop(pipe)
        job = child.job
        os.close(pipe)
        _, status = os.waitpid(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            answer = json.loads(child.answer)
            job.found[child.reading] = answer["found"]
            job.peak, job.slowest = max(job.peak, answer["memory"]), max(job.slowest, answer["seconds"])
            if "error" in answer["found"]:
                job.trouble = job.trouble or ("error", answer["found"]["error"])
        elif code in (-signal.SIGXCPU, -signal.SIGKILL) and job.trouble is None:
            job.trouble = ("hang", f"{child.reading}: over {self.options.limit:g} s of processor time")
        elif job.trouble is None:
            job.trouble = ("crash", f"{child.reading}: exit code {code}")
        if job.left and job.trouble is None:
            self.begin_reading(job)
        else:
            job.folder.cleanup()
            self.count(job)

    def count(self, job: Job) -> None:
        """Counts a mutation that is done."""
        word, details = job.trouble or self.compare(job)
        if job.kind == "none":  # the undamaged file; of real videos, some are damaged as they are
            if word in BAD or (word == REFUSED and len(job.seed.readings) == 1):
                raise SystemExit(f"{self.mode}: the undamaged {job.seed.name} cannot be read: {word} {details}")
            return
        self.counts[word] += 1
        self.peak, self.slowest = max(self.peak, job.peak), max(self.slowest, job.slowest)
        if word in BAD:
            self.bad.append(f"{self.mode} {job.number} ({job.kind} of {job.seed.name}): {word}: {details}")
            print(self.bad[-1], flush=True)
        done = self.counts.total()
        if done % 1000 == 0:
            seconds = time.monotonic() - self.begin
            print(f"{self.mode}: {done} done, {dict(self.counts)}, {seconds:.0f} s", flush=True)

    def compare(self, job: Job) -> tuple[str, str]:
        """Compares the readings with each other, and with the undamaged file."""
        first, *others = job.found.values()
        for other in others:
            both = [part for part in first if part in other and REFUSED not in (first[part], other[part])]
            differing = [part for part in both if first[part] != other[part]]
            if differing:
                return "varies", f"{len(differing)} of {len(both)} parts differ between the readings: {differing[:8]}"
        everything = {value for found in job.found.values() for value in found.values()}
        if everything <= {REFUSED}:
            return "refused", ""
        if others or first == self.good.get(job.seed.name, first):
            return "equal", ""
        return ("sealed", f"gave other values: {sorted(first)[:5]}") if job.seed.sealed else ("changed", "")

    def row(self) -> list[str]:
        """Returns the line of this mode in the table."""
        counts = [str(self.counts[name]) for name in COLUMNS]
        seconds = time.monotonic() - self.begin
        return [self.mode, str(len(self.seeds)), *counts, f"{self.peak}", f"{self.slowest:.1f}", f"{seconds:.0f}"]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns the summary: a line for each mode."""
    head = ["mode", "seeds", *COLUMNS, "peak MB", "CPU s", "s"]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    from fuzz_readers import MODES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"default all but videos: {', '.join(MODES)}")
    parser.add_argument("--mutations", type=int, default=5000, help="of each mode")
    parser.add_argument("--clips", default="../shared/clips", help="folder of videos to damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds of one file that count as a hang")
    parser.add_argument("--memory", type=int, default=2048, help="MB that one reading may take")
    parser.add_argument("--only", type=int, help="repeat one mutation in this process")
    parser.add_argument("--scratch", default="/dev/shm" if Path("/dev/shm").is_dir() else ".", help="for the files")
    parser.add_argument("--json", help="file for the outcome")
    options = parser.parse_args(argv)
    unknown = [mode for mode in options.modes if mode not in MODES]
    if unknown:
        parser.error(f"there is no mode {unknown[0]!r}; there are {', '.join(MODES)}")
    options.modes = options.modes or [mode for mode in MODES if mode != "videos"]
    return options


def repeat(seeds: Sequence[Seed], options: argparse.Namespace) -> None:
    """Does one mutation again in this process, so that errors show their tracebacks."""
    job = make_job(seeds, options.only, options)
    print(f"{job.kind} of {job.seed.name}: {job.path}")
    for reading in job.seed.readings:
        print(reading, dict(job.seed.read(job.path, reading, np.random.default_rng([options.seed, job.number, 1]))))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the modes; returns the exit code."""
    options = parse(argv)
    from fuzz_readers import MODES

    rows, bad, record = [], [], {}
    for mode in options.modes:
        with tempfile.TemporaryDirectory(dir=options.scratch, prefix="fuzz_seeds_") as folder:
            seeds = MODES[mode](Path(folder), options)
            if options.only is not None:
                repeat(seeds, options)
                continue
            fuzzing = Fuzzing(mode, seeds, options)
            fuzzing.run()
        rows.append(fuzzing.row())
        bad += fuzzing.bad
        record[mode] = {**fuzzing.counts, "seeds": len(seeds), "peak_mb": fuzzing.peak, "bad": fuzzing.bad}
        print(f"{table(rows)}\n", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=2), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
