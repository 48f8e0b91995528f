"""The same frames through every backend: which agree, and which of those is the fastest here."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from stvid.errors import StvidError
from stvid.video.reader import BACKENDS, VideoReader, available_backends

__all__ = ["compare_backends"]

CLIPS, FRAMES, STRIDE = 8, 16, 4
TIME_LIMIT = 300.0


def _read(path: str, backend: str, clips: np.ndarray, folder: str, outcome: Any) -> None:
    """In a process of its own, which decord may take down: writes the frames, sends the seconds of each clip."""
    try:
        frames, seconds = [], []
        for clip in clips:
            begin = time.perf_counter()
            with VideoReader(path, backend=backend) as reader:
                frames.append(reader.get_batch(clip).numpy())
            seconds.append(time.perf_counter() - begin)
        np.save(Path(folder) / f"{backend}.npy", np.stack(frames))
        outcome.send(("", seconds))
    except StvidError as error:
        outcome.send((str(error), []))


def compare_backends(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads 8 random clips of 16 frames through all backends, each in a process of its own.

    Args:
        source: A video file.

    Returns:
        ``frames`` (frames of the video), ``backends``: for each ``problem`` (why it could not be used or did not read
        the file, else an empty string), ``milliseconds`` (median of a clip, opening included), ``differing`` (numbers
        of the frames that differ from those of av) and ``largest`` (the largest difference of a colour, 0 to 255);
        and ``recommended``: the fastest of those that agree with av.

    Raises:
        VideoError: If av, which is the reference, cannot read the file.
    """
    path = os.fspath(source)
    with VideoReader(path) as reader:
        count = len(reader)
    rng = np.random.default_rng(0)
    starts = rng.integers(max(1, count - (FRAMES - 1) * STRIDE), size=CLIPS)
    clips = np.minimum(starts[:, None] + STRIDE * np.arange(FRAMES), count - 1)
    usable = available_backends()
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in BACKENDS:
            if backend == "frames":  # folders of images
                continue
            problem, seconds = usable[backend], []
            if not problem:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_read, args=(path, backend, clips, folder, theirs))
                process.start()
                theirs.close()
                try:
                    problem, seconds = ours.recv() if ours.poll(TIME_LIMIT) else (f"took over {TIME_LIMIT:g} s", [])
                except EOFError:
                    process.join()
                    problem = f"took its process down (exit code {process.exitcode})"
                process.kill()
                process.join()
            entry: dict[str, Any] = {"problem": problem, "milliseconds": None, "differing": [], "largest": None}
            if not problem:
                entry["milliseconds"] = 1000 * statistics.median(seconds)
                frames = np.load(Path(folder) / f"{backend}.npy", mmap_mode="r")
                reference = np.load(Path(folder) / "av.npy", mmap_mode="r")
                gaps = [int(np.abs(a.astype(int) - b).max()) for a, b in zip(frames, reference, strict=True)]
                differs = (frames != reference).reshape(CLIPS, FRAMES, -1).any(axis=2)
                entry["differing"] = sorted({int(index) for index in clips[differs]})
                entry["largest"] = max(gaps)
            found[backend] = entry
    agreeing = [name for name, entry in found.items() if not entry["problem"] and not entry["differing"]]
    recommended = min(agreeing, key=lambda name: found[name]["milliseconds"], default=None)
    return {"frames": count, "backends": found, "recommended": recommended}
