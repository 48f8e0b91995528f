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
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

MAX_BYTES = 2**20  # of a file: what is longer is cut, which is a mutation too
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


def main() -> int:
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
    options = parser.parse_args()
    files = sorted(str(file) for file in Path(options.folder).iterdir() if file.stat().st_size > 0)
    files = [file for file in files if Path(file).suffix not in (".csv", ".md", ".json", ".txt")]
    if options.only is not None:
        rng = np.random.default_rng([options.seed, options.only])
        kind, content = mutate(Path(files[options.only % len(files)]).read_bytes(), rng)
        print(files[options.only % len(files)], kind, read(content, Path(options.scratch) / "fuzz_only", rng))
        return 0

    context = multiprocessing.get_context("spawn")
    share = -(-options.mutations // options.workers)
    left = [range(at, min(at + share, options.mutations)) for at in range(0, options.mutations, share)]
    outcomes: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    peak, slowest, longest = 0, 0.0, 0.0
    running: dict[Connection, list] = {}
    begin = time.monotonic()

    def start(numbers: range) -> None:
        if numbers:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(files, options.seed, options.scratch, numbers, theirs))
            process.start()
            theirs.close()
            running[ours] = [process, numbers, numbers.start, time.monotonic(), 60.0]  # its imports may take a minute

    for numbers in left:
        start(numbers)
    while running:
        for pipe in multiprocessing.connection.wait(list(running), timeout=1.0):
            process, numbers, current, since, _ = running[pipe]
            try:
                message = pipe.recv()
            except EOFError:
                process.join()
                name = Path(files[current % len(files)]).name
                bad.append(f"crash (exit {process.exitcode}) at mutation {current} of {name}")
                del running[pipe]
                start(range(current + 1, numbers.stop))
                continue
            if message[0] == "begin":
                running[pipe][2:] = [message[1], time.monotonic(), cpu_seconds(process.pid)]
            elif message[0] == "end":
                _, number, kind, outcome, memory, seconds = message
                slowest, longest = max(slowest, seconds), max(longest, time.monotonic() - since)
                peak = max(peak, memory)
                kinds[kind] += 1
                outcomes[outcome.split(":")[0]] += 1
                if outcome.startswith("error"):
                    bad.append(f"{outcome} at mutation {number} of {Path(files[number % len(files)]).name}")
                if sum(kinds.values()) % 1000 == 0:
                    done, clock = sum(kinds.values()), time.monotonic() - begin
                    print(f"{done} done, {dict(outcomes)}, {len(bad)} bad, peak {peak} MB, {clock:.0f} s", flush=True)
            else:
                process.join()
                del running[pipe]
        for pipe, (process, numbers, current, since, cpu) in list(running.items()):
            spent, waited = cpu_seconds(process.pid) - cpu, time.monotonic() - since
            if spent > options.limit or waited > 10 * options.limit:
                process.kill()
                process.join()
                name = Path(files[current % len(files)]).name
                bad.append(f"hang ({spent:.0f} s of CPU in {waited:.0f} s) at mutation {current} of {name}")
                del running[pipe]
                start(range(current + 1, numbers.stop))
    if peak > options.memory:
        bad.append(f"memory: a worker reached {peak} MB")
    total = sum(kinds.values())
    print(f"{total} mutations of {len(files)} files in {time.monotonic() - begin:.0f} s: {dict(outcomes)}")
    print(f"kinds: {dict(kinds)}; slowest {slowest:.1f} s of CPU, {longest:.1f} s on the clock")
    print(f"peak memory of a worker {peak} MB; {len(bad)} bad")
    for line in bad:
        print(f"  {line}")
    if options.json:
        record = {"mutations": total, "outcomes": outcomes, "kinds": kinds, "bad": bad, "peak_mb": peak}
        record |= {"slowest_cpu_s": slowest, "longest_s": longest}
        Path(options.json).write_text(json.dumps(record, indent=2), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
