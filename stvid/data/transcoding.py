"""Videos made small and quick to seek: short side, distance of key frames, H.264. PyAV brings FFmpeg with it.

A copy is plain H.264 (High profile, 4:2:0) that every player reads, written so that few of its frames must be decoded
for a clip: seven B-frames that nothing refers to stand between any two other frames, so that one frame in eight is
decoded whether it is wanted or not, and x264's ``fastdecode`` leaves out what costs the decoder most (CABAC, the
deblocking filter, weighted prediction).

The same original gives the same bytes each time, on every processor: one thread encodes, without AVX-512, whose
look-ahead for ``mbtree`` reads memory in x264 that nobody wrote. (To leave out mbtree instead costs 0.2 to 1.5 dB at
the same size, AVX2 neither quality nor time.)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stvid.errors import VideoError
from stvid.files import write_atomically
from stvid.video.reader import VideoReader

__all__ = ["DEFAULTS", "PRESETS", "output_path", "transcode"]

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")

DEFAULTS: dict[str, Any] = {"short_side": 256, "gop": 24, "crf": 22, "preset": "medium", "frames_fps": None}
"""Options of `transcode` beside ``root`` and ``out``."""

_CLOCK = 90_000  # ticks a second of the new file's time stamps, as MPEG has it
_BLOCK = 32
# B-frames that nothing refers to are skipped by `VideoReader`; b-adapt 0 makes them regular.
_X264 = "bframes=7:b-pyramid=none:b-adapt=0:ref=1"


def _encoder_parameters() -> str:
    """Returns x264's parameters; the instructions are named only where the processor has those of AVX-512, too."""
    return f"{_X264}:asm=AVX2" if _has_avx512() else _X264


@functools.cache
def _has_avx512() -> bool:
    import torch

    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            known = any("avx512" in line for line in file)
    except OSError:  # not Linux
        known = False
    return known or "AVX512" in torch.backends.cpu.get_cpu_capability()


def output_path(path: str, root: str, out: str) -> Path:
    """Returns where the copy of a video goes: the same place below `out` that it has below `root`, as .mp4."""
    relative = os.path.relpath(path, root)
    if relative.startswith(".."):
        relative = os.path.basename(path)
    stem = relative if os.path.isdir(path) else os.path.splitext(relative)[0]
    return Path(out, f"{stem}.mp4")


def transcode(path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Writes a copy whose frames are those of the original, scaled: the same number at the same times.

    Rotation is applied, odd sides are made even, sound is left out. The copy is read again before it takes its place.

    Args:
        path: The original.
        options: ``root``, ``out``, ``short_side`` (never enlarged), ``gop`` (frames from key frame to key frame, 1 for
            all-intra), ``crf`` (x264's quality, 18 good to 28 small), ``preset``, ``frames_fps`` (images a second of
            videos that are folders of images; None refuses them).

    Returns:
        ``out``, ``frames``, ``width``, ``height``, ``bytes_before`` and ``bytes_after``.

    Raises:
        VideoError: If the original cannot be read or the copy does not hold what it should.
    """
    import av

    try:
        return _transcode(path, options)
    except av.error.FFmpegError as error:
        raise VideoError(path, f"cannot be written anew ({error.strerror or error})") from error


def _transcode(path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    target = output_path(path, options["root"], options["out"])
    target.parent.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}

    def write(copy: Path) -> None:
        with VideoReader(path, backend="frames" if os.path.isdir(path) else "av") as reader:
            times, fps = reader.timestamps, reader.fps
            if reader.backend == "frames":
                if options["frames_fps"] is None:
                    raise VideoError(path, "is a folder of images; say how many a second they are with --frames_fps")
                times, fps = np.arange(len(times)) / options["frames_fps"], options["frames_fps"]
            height, width = _encode(reader, copy, times, fps, options)
        _check(copy, path, times)
        facts.update({"frames": len(times), "width": width, "height": height})

    write_atomically(target, write)
    sizes = {"bytes_before": _size(path), "bytes_after": os.path.getsize(target)}
    return {"out": str(target), **facts, **sizes}


def _encode(
    reader: VideoReader, copy: Path, times: np.ndarray, fps: float, options: Mapping[str, Any]
) -> tuple[int, int]:
    """Writes the frames of a reader, scaled, at these times in seconds; returns their height and width."""
    import av

    height, width = _scaled(reader.height, reader.width, options["short_side"])
    ticks = _ticks(times)
    with av.open(str(copy), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _CLOCK)
        stream.thread_count = 1
        gop = str(options["gop"])
        stream.options = {
            "crf": str(options["crf"]),
            "preset": options["preset"],
            "g": gop,
            "keyint_min": gop,
            "sc_threshold": "0",
            "threads": "1",
            "tune": "fastdecode",
            "x264-params": _encoder_parameters(),
        }
        for first in range(0, len(ticks), _BLOCK):
            last = min(first + _BLOCK, len(ticks))
            for number, image in enumerate(reader.get_batch(range(first, last)).numpy(), start=first):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                if (height, width) != image.shape[:2]:
                    frame = frame.reformat(width, height, interpolation="BICUBIC")
                frame.pts, frame.time_base = int(ticks[number]), Fraction(1, _CLOCK)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return height, width


def _size(path: str) -> int:
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return os.path.getsize(path)


def _scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns even sides, the shorter one `short_side` or less."""
    factor = min(1.0, short_side / min(height, width))
    even = [max(2, 2 * round(side * factor / 2)) for side in (height, width)]
    return even[0], even[1]


def _ticks(times: np.ndarray) -> np.ndarray:
    """Times from the first frame in ticks, each later than the one before."""
    ticks = np.round((times - times[0]) * _CLOCK).astype(np.int64)
    return np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))


def _check(copy: Path, path: str, times: np.ndarray) -> None:
    with VideoReader(copy) as reader:
        if len(reader) != len(times):
            raise VideoError(path, f"its copy has {len(reader)} frames instead of {len(times)}")
        drift = np.abs((reader.timestamps - reader.timestamps[0]) - (times - times[0])).max()
        if drift > max(0.002, len(times) / _CLOCK):
            raise VideoError(path, f"the times of its copy are off by {drift:.3f} s")
        reader.get_batch([len(reader) - 1])
