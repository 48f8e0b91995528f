"""The cost of a million remote videos, computed from what this machine needs for a few; and what a long list takes.

    python tools/benchmark_scale.py                          # 20 files of 10 s, a list of a million rows
    python tools/benchmark_scale.py --files 4 --rows 10000 --model uniformer_xxs

Everything runs on one thread, so that a rate is that of a core. The files are those of `tools/benchmark_remote.py` (340
x 256, 30 frames a second, 10 s, x264's defaults, sound), behind HTTP on the loopback at full speed. Measured are the
processor's seconds, requests and bytes of

* ``index``: the header and the first frame of a video (`stvid prep index`),
* ``leakage``: the eight frames that `stvid prep check-leakage` compares,
* ``clip``: a 16x4 clip, with the index at hand, decoded, cropped and normalised, and
* ``model``: one pass of a model over that clip, on the CPU,

then the memory and the seconds of reading a list of URLs, the bytes of an index and of a file of features, and how
many pairs of videos a second are compared. A million videos take, in core hours, a million times the seconds / 3600.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_loader import make_videos
from benchmark_remote import FRAMES, STRIDE, serving

import stvid
from stvid.data.leakage import FRAMES as HASHES
from stvid.data.leakage import hash_video, near_duplicates
from stvid.evaluation.features import ClipFeatures, save_features
from stvid.video.reader import Index, VideoReader, scan
from stvid.video.stored_index import pack_index, write_index

MILLION = 10**6
_LIST = """
import resource, sys, time
from stvid.data.manifest import read_manifest
import torch, stvid
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, begin = held(), time.process_time()
videos = read_manifest(sys.argv[1])
seconds, after = time.process_time() - begin, held()
print(len(videos), after - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, seconds)
"""


@dataclass(frozen=True)
class Stage:
    """The cost of one stage for one video."""

    seconds: float  # of the processor
    requests: float
    fetched: float  # bytes


def measure(work: Callable[[int], Any], count: int, counts: Any) -> Stage:
    """Does something for videos 0, 1, ..., and returns its cost for one of them; video 0 is done once before.

    Args:
        work: Does it for the video of a number.
        count: Videos.
        counts: The server's counts of requests and bytes.
    """
    work(0)
    before, begin = list(counts), time.process_time()
    for number in range(count):
        work(number)
    seconds = time.process_time() - begin
    return Stage(seconds / count, (counts[0] - before[0]) / count, (counts[1] - before[1]) / count)


def measure_stages(urls: Sequence[str], indices: Sequence[Index], model: Any, counts: Any) -> dict[str, Stage]:
    """Returns the cost of each stage."""
    rng = np.random.default_rng(0)

    def read_clip(number: int) -> torch.Tensor:
        with VideoReader(urls[number], index=indices[number]) as reader:
            frames = rng.integers(0, len(reader) - FRAMES * STRIDE) + STRIDE * np.arange(FRAMES)
            return (reader.get_batch(frames, crop=(16, 58, 224, 224)).float() / 255 - 0.45) / 0.225

    @torch.no_grad()
    def run_model(number: int) -> None:
        model.forward_features(torch.zeros(1, 3, 16, 224, 224))

    return {
        "index": measure(lambda number: scan(urls[number]), len(urls), counts),
        "leakage": measure(lambda number: hash_video(urls[number], {}), len(urls), counts),
        "clip": measure(read_clip, len(urls), counts),
        "model": measure(run_model, 3, counts),
    }


def list_cost(folder: Path, rows: int) -> tuple[float, ...]:
    """Returns the bytes of a CSV of URLs, of memory that it takes once read and meanwhile, and seconds (Linux)."""
    path = folder / "long.csv"
    with open(path, "w") as file:
        file.write("path,label\n")
        for row in range(rows):
            file.write(f"https://videos.example.org/set/{row % 4096:03x}/{row:011d}.mp4,class {row % 400}\n")
    told = subprocess.run([sys.executable, "-c", _LIST, str(path)], check=True, capture_output=True, text=True).stdout
    count, held, most, seconds = map(float, told.split())
    assert count == rows
    return path.stat().st_size, held, most, seconds


def index_bytes(folder: Path, index: Index, count: int = 200) -> float:
    """Returns the bytes that a stored index takes for one video."""
    packed = pack_index(index)
    write_index(folder / "x.index", [(f"https://a/{number}", 0, packed) for number in range(count)], root=folder)
    return sum(path.stat().st_size for path in (folder / "x.index").rglob("*") if path.is_file()) / count


def pairs_a_second(count: int = 2000) -> float:
    """Returns the pairs of videos that `stvid prep check-leakage` compares in a second of one core."""
    rng = np.random.default_rng(0)
    hashes = [[rng.bytes(8).hex() for _ in range(HASHES)] for _ in range(count)]
    begin = time.process_time()
    near_duplicates(hashes, hashes, threshold=0)
    return count**2 / (time.process_time() - begin)


def print_stages(stages: dict[str, Stage]) -> None:
    """Prints the cost of each stage for a million videos, or clips."""
    print(f"{'a million':10}{'a second a core':>17}{'core hours':>12}{'requests':>12}{'TB fetched':>12}")
    for name, stage in stages.items():
        print(
            f"{name:10}{1 / stage.seconds:17.1f}{MILLION * stage.seconds / 3600:12.0f}"
            f"{MILLION * stage.requests / 1e6:10.1f} M{MILLION * stage.fetched / 1e12:12.2f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--files", type=int, default=20, help="files of 10 s; default: %(default)s")
    parser.add_argument("--rows", type=int, default=MILLION, help="rows of the list; default: %(default)s")
    parser.add_argument("--model", default="uniformer_s", help="default: %(default)s")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = stvid.create_model(options.model, num_frames=16).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        files = [Path(path) for path in make_videos(folder / "videos", options.files)]
        indices = [scan(file) for file in files]
        with serving(str(folder / "videos"), rate=1e12, latency=0.0) as (address, counts):
            stages = measure_stages([f"{address}/{file.name}" for file in files], indices, model, counts)
        size, held, most, seconds = list_cost(folder, options.rows)
        index = index_bytes(folder, indices[0])
        target = folder / "features.npz"
        shape = (1, model.head_features)
        one = np.zeros(1), np.ones(1), np.zeros((1, 2), np.int64)
        save_features(ClipFeatures(np.zeros(shape, np.float32), *one, "https://a/b.mp4", ("class",)), target)
        feature = target.stat().st_size
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread; torch {torch.__version__}"
    )
    print(f"{len(files)} files of 10 s; {options.model}\n")
    print_stages(stages)
    print(f"\nlist of {options.rows} URLs: {size / 1e6:.0f} MB as CSV, {seconds:.1f} s to read it; ", end="")
    print(f"{held / 1e6:.0f} MB of memory, {most / 1e6:.0f} MB while it is read")
    print(f"index: {index / 1e3:.2f} kB a video; features: {feature / 1e3:.2f} kB a video of one clip")
    print(f"leakage: {pairs_a_second() / 1e6:.0f} million pairs a second a core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
