"""Mutates real video files and reads them: no crash, no hang, and only errors that name the file.

    python tools/fuzz_decoding.py ../shared/clips --mutations 20000

Each worker process takes mutations of its own until it has done its share. A worker that dies, or that takes more than
--limit seconds of processor time for one file, or ten times as long on the clock (which shows a reader that waits), is
recorded with the mutation's number and replaced; a busy machine alone makes no hang. `--only NUMBER` repeats one.
Exit code 1 if there was a crash, a hang, memory growth or an error of another kind than StvidError.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import resource
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 2**20  # longer files are cut to this length, which is a mutation, too
READS = 6


def mutate(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the kind of damage and the damaged file."""
    data = bytearray(content[:MAX_BYTES])
    kind = str(rng.choice(["flip", "flip_header", "bytes", "cut", "hole", "repeat", "swap", "size", "zero_tail"]))
    size = len(data)
    if kind == "flip":
        for at in rng.integers(size, size=rng.integers(1, 40)):
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == "flip_header":  # where the structure is: the first and last kilobytes
        edge = min(size, 3000)
        for at in rng.integers(edge, size=rng.integers(1, 12)):
            data[at if rng.random() < 0.5 else size - 1 - at] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        at, length = int(rng.integers(size)), int(rng.integers(1, 200))
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
    elif kind == "cut":
        del data[int(rng.integers(size)) :]
    elif kind == "hole":
        at, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 4)))
        del data[at : at + length]
    elif kind == "repeat":
        at, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 8)))
        data[at:at] = data[at : at + length]
    elif kind == "swap":
        a, b = sorted(int(value) for value in rng.integers(size, size=2))
        length = min(b - a, size - b, 4096)
        data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
    elif kind == "size":  # four bytes that may be a size, a count or a time
        at = int(rng.integers(max(1, min(size - 4, 8000))))
        value = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, int(rng.integers(2**32))]))
        data[at : at + 4] = value.to_bytes(4, "big" if rng.random() < 0.7 else "little")
    else:
        at = int(rng.integers(size))
        data[at:] = bytes(size - at)
    return kind, bytes(data)


def read(content: bytes, path: Path, rng: np.random.Generator) -> str:
    """Reads some frames; returns how it went."""
    from stvid.errors import StvidError
    from stvid.video.reader import VideoReader

    as_bytes = rng.random() < 0.3
    if not as_bytes:
        path.write_bytes(content)
    try:
        with VideoReader(content if as_bytes else path) as reader:
            count = len(reader)
            indices = rng.integers(count, size=READS)
            frames = reader.get_batch(indices)
            assert frames.shape == (READS, reader.height, reader.width, 3)
            assert len(reader.timestamps) == len(reader) > 0 and reader.fps > 0
            assert bool(np.all(np.diff(reader.timestamps) >= 0))
    except StvidError as error:
        message = str(error)
        assert "\n" not in message and ("<bytes>" in message or path.name in message), message
        return "refused"
    return "read"


def cpu_seconds(pid: int | None) -> float:
    """Returns the processor time that a process has used, or the time of the clock where that is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # proc(5): utime and stime
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def work(files: list[str], seed: int, folder: str, numbers: range, pipe: Connection) -> None:
    """Does the mutations `numbers`, telling before and after each."""
    contents = [Path(file).read_bytes() for file in files]
    path = Path(folder) / f"fuzz_{numbers.start}"
    for number in numbers:
        pipe.send(("begin", number))
        begin = time.process_time()
        rng = np.random.default_rng([seed, number])
        kind, content = mutate(contents[number % len(files)], rng)
        try:
            outcome = read(content, path, rng)
        except Exception:
            outcome = "error: " + " | ".join(traceback.format_exc().strip().splitlines()[-3:])
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        pipe.send(("end", number, kind, outcome, memory, time.process_time() - begin))
    path.unlink(missing_ok=True)
    pipe.send(("done",))


@dataclass
class Worker:
    """A worker process and the mutation that it is at.

    Attributes:
        process: The process.
        numbers: The mutations that it is to do.
        current: The one that it does now.
        since: When it began with that one, on the clock.
        cpu: Processor time that it had used then. Its imports may take a minute, so it is given that at the start.
    """

    process: Any
    numbers: range
    current: int
    since: float = field(default_factory=time.monotonic)
    cpu: float = 60.0


class Fuzzing:
    """All workers of a run, and what they found.

    Args:
        files: The videos to mutate.
        options: From the command line.
    """

    def __init__(self, files: list[str], options: argparse.Namespace) -> None:
        self.files = files
        self.options = options
        self.context = multiprocessing.get_context("spawn")
        self.running: dict[Connection, Worker] = {}
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.bad: list[str] = []
        self.peak, self.slowest, self.longest = 0, 0.0, 0.0
        self.begin = time.monotonic()

    def run(self) -> None:
        """Does all mutations."""
        total = self.options.mutations
        share = -(-total // self.options.workers)
        for at in range(0, total, share):
            self.start(range(at, min(at + share, total)))
        while self.running:
            for pipe in multiprocessing.connection.wait(list(self.running), timeout=1.0):
                assert isinstance(pipe, Connection)
                self.hear(pipe)
            self.watch()
        if self.peak > self.options.memory:
            self.bad.append(f"memory: a worker reached {self.peak} MB")

    def start(self, numbers: range) -> None:
        """Starts a worker, if anything is left for it."""
        if numbers:
            ours, theirs = self.context.Pipe()
            options = self.options
            arguments = (self.files, options.seed, options.scratch, numbers, theirs)
            process = self.context.Process(target=work, args=arguments)
            process.start()
            theirs.close()
            self.running[ours] = Worker(process, numbers, numbers.start)

    def hear(self, pipe: Connection) -> None:
        """Takes a message of a worker, or its death."""
        worker = self.running[pipe]
        try:
            message = pipe.recv()
        except EOFError:
            worker.process.join()
            return self.replace(pipe, f"crash (exit {worker.process.exitcode})")
        if message[0] == "begin":
            worker.current, worker.since, worker.cpu = message[1], time.monotonic(), cpu_seconds(worker.process.pid)
        elif message[0] == "end":
            self.count(worker, *message[1:])
        else:
            worker.process.join()
            del self.running[pipe]
        return None

    def count(self, worker: Worker, number: int, kind: str, outcome: str, memory: int, seconds: float) -> None:
        """Counts a mutation that was read to its end."""
        self.slowest = max(self.slowest, seconds)
        self.longest = max(self.longest, time.monotonic() - worker.since)
        self.peak = max(self.peak, memory)
        self.kinds[kind] += 1
        self.outcomes[outcome.split(":")[0]] += 1
        if outcome.startswith("error"):
            self.bad.append(f"{outcome} at {self.name(number)}")
        done = self.kinds.total()
        if done % 1000 == 0:
            found = f"{dict(self.outcomes)}, {len(self.bad)} bad, peak {self.peak} MB"
            print(f"{done} done, {found}, {time.monotonic() - self.begin:.0f} s", flush=True)

    def watch(self) -> None:
        """Kills the workers that hang."""
        for pipe, worker in list(self.running.items()):
            spent, waited = cpu_seconds(worker.process.pid) - worker.cpu, time.monotonic() - worker.since
            if spent > self.options.limit or waited > 10 * self.options.limit:
                worker.process.kill()
                worker.process.join()
                self.replace(pipe, f"hang ({spent:.0f} s of CPU in {waited:.0f} s)")

    def replace(self, pipe: Connection, problem: str) -> None:
        """Records a mutation that ended its worker, and lets another go on after it."""
        worker = self.running.pop(pipe)
        self.bad.append(f"{problem} at {self.name(worker.current)}")
        self.start(range(worker.current + 1, worker.numbers.stop))

    def name(self, number: int) -> str:
        """Returns the name of a mutation."""
        return f"mutation {number} of {Path(self.files[number % len(self.files)]).name}"

    def report(self) -> None:
        """Prints the outcome, and writes it if a file was named."""
        total = self.kinds.total()
        print(
            f"{total} mutations of {len(self.files)} files in {time.monotonic() - self.begin:.0f} s: "
            f"{dict(self.outcomes)}"
        )
        print(f"kinds: {dict(self.kinds)}; slowest {self.slowest:.1f} s of CPU, {self.longest:.1f} s on the clock")
        print(f"peak memory of a worker {self.peak} MB; {len(self.bad)} bad")
        for line in self.bad:
            print(f"  {line}")
        if self.options.json:
            record = {"mutations": total, "outcomes": self.outcomes, "kinds": self.kinds, "bad": self.bad}
            record |= {"peak_mb": self.peak, "slowest_cpu_s": self.slowest, "longest_s": self.longest}
            Path(self.options.json).write_text(json.dumps(record, indent=2), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of videos to mutate")
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60.0, help="CPU seconds of one file that count as a hang")
    parser.add_argument("--memory", type=int, default=2048, help="MB that a worker may reach")
    parser.add_argument("--only", type=int, help="repeat one mutation in this process")
    parser.add_argument("--scratch", default="/dev/shm" if Path("/dev/shm").is_dir() else ".", help="for the files")
    parser.add_argument("--json", help="file for the outcome")
    return parser.parse_args()


def main() -> int:
    """Runs the mutations; returns the exit code."""
    options = parse()
    files = sorted(str(file) for file in Path(options.folder).iterdir() if file.stat().st_size > 0)
    files = [file for file in files if Path(file).suffix not in (".csv", ".md", ".json", ".txt")]
    if options.only is not None:
        rng = np.random.default_rng([options.seed, options.only])
        kind, content = mutate(Path(files[options.only % len(files)]).read_bytes(), rng)
        print(files[options.only % len(files)], kind, read(content, Path(options.scratch) / "fuzz_only", rng))
        return 0
    fuzzing = Fuzzing(files, options)
    fuzzing.run()
    fuzzing.report()
    return 1 if fuzzing.bad else 0


if __name__ == "__main__":
    sys.exit(main())
