"""Ray beside the processes of one machine: the time that 300 small files take once all workers are up.

    python tools/benchmark_engines.py                  # index and transcode, 5 rounds
    python tools/benchmark_engines.py --files 100 --rounds 3 --stages scan

The engines take turns on the same files with as many workers. Each run begins with some more files, which are not
counted: the workers start, and import what they need. It prints the median seconds of each engine and their ratio.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark_loader import make_videos

from stvid.data.jobs import run_pool
from stvid.data.ray_engine import run_on_ray, started_ray
from stvid.data.stage_base import Stage
from stvid.data.stages import Index, Scan, Transcode

WARM_UP = 48
ENGINES = {"local": run_pool, "ray": run_on_ray}


def seconds_after_start(engine: str, stage: Stage, warm_up: Sequence[str], keys: Sequence[str], workers: int) -> float:
    """Returns the time that an engine takes for the files, counted from the end of the warm-up."""
    waiting, begin, counted = set(warm_up), 0.0, 0

    def record(key: str, result: Mapping[str, Any], error: str) -> None:
        nonlocal begin, counted
        if error:
            raise RuntimeError(error)
        if waiting:
            waiting.discard(key)
            begin = time.perf_counter()
        else:
            counted += 1

    lost = ENGINES[engine](stage, [*warm_up, *keys], workers, record)
    if lost or not counted:
        raise RuntimeError(f"{engine}: lost {lost}, counted {counted}")
    return (time.perf_counter() - begin) / counted * len(keys)


def make_stages(folder: Path) -> dict[str, Callable[[], Stage]]:
    """Returns what makes each stage, with an empty folder for what it writes."""

    def fresh(name: str) -> Path:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        return folder / name

    return {
        "scan": Scan,
        "index": lambda: Index(fresh("index")),
        "transcode": lambda: Transcode(folder, fresh("copies"), short_side=112, preset="veryfast"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seconds", type=int, default=1, help="Length of the files.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stages", nargs="+", default=["index", "transcode"], choices=["scan", "index", "transcode"])
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, started_ray(None, options.workers):
        folder = Path(name)
        (folder / "videos").mkdir()
        (original,) = make_videos(folder / "videos", 1, seconds=options.seconds)
        keys = [str(folder / "videos" / f"{number:04d}.mp4") for number in range(WARM_UP + options.files)]
        for key in keys:
            shutil.copy(original, key)
        for stage in options.stages:
            seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
            for _ in range(options.rounds):
                for engine, times in seconds.items():
                    made = make_stages(folder)[stage]()
                    times.append(seconds_after_start(engine, made, keys[:WARM_UP], keys[WARM_UP:], options.workers))
            local, ray = (statistics.median(seconds[engine]) for engine in ("local", "ray"))
            print(f"{stage}: local {local:.2f} s, Ray {ray:.2f} s, {ray / local:.2f} times the time", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
