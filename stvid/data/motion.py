"""`motion`: a small data set that the program makes itself, on which only the order of the frames tells the class.

Each video shows one textured shape over a slowly drifting, low-contrast background. The shape moves left, right, up or
down, turns clockwise or counterclockwise, grows or shrinks; nothing else depends on the class. Its state in the middle
of the video (place, size, angle, shape, texture, colours) is drawn from one distribution for all classes, and the
motion runs from there both ways in time. So a single middle frame says nothing about the class, and a model that scores
above chance has used time.

The files are ordinary H.264 in MP4 and are read by the same loader as any other video. A clip is a pure function of
(seed, split, index): the set does not depend on how many processes make it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stvid.console import progress_bar
from stvid.errors import ConfigError, StvidError
from stvid.files import TEMPORARY, write_folder_atomically, write_table
from stvid.machine import usable_cores

__all__ = ["MOTION_CLASSES", "motion_codec", "prepare_motion", "render_clip", "resolve_motion"]

MOTION_CLASSES = (
    "move left",
    "move right",
    "move up",
    "move down",
    "rotate clockwise",
    "rotate counterclockwise",
    "grow",
    "shrink",
)

VERSION = 1  # raise it whenever a clip of the same (seed, split, index) would look different
FRAMES = 16
SIZE = 64  # pixels of both sides
FPS = 16
TRAIN_VIDEOS = 4800
VAL_VIDEOS = 800

_SPLITS = ("train", "val")
_CHUNK = 40  # videos a worker makes before it reports back
_STALE_SECONDS = 3600.0  # a temporary folder this old was left behind by a killed process


def _directions() -> tuple[tuple[float, float, float, float], ...]:
    """Returns (x, y, angle, log size) of each class's motion, in image coordinates: y points down, so a positive angle
    turns clockwise on the screen."""
    return (
        (-1, 0, 0, 0),
        (1, 0, 0, 0),
        (0, -1, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 1, 0),
        (0, 0, -1, 0),
        (0, 0, 0, 1),
        (0, 0, 0, -1),
    )


def _background(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """Returns a smooth random texture (T, SIZE, SIZE) of zero mean and unit deviation that drifts with `times`.

    A sum of plane waves of random direction; a wave that drifts is a wave whose phase advances, and
    cos(a + b) = cos a cos b - sin a sin b makes it one matrix product per frame.
    """
    waves = 10
    wavelength = np.exp(rng.uniform(math.log(10.0), math.log(48.0), waves))
    direction = rng.uniform(0, 2 * math.pi, waves)
    kx, ky = 2 * math.pi / wavelength * np.array([np.cos(direction), np.sin(direction)])
    phase = rng.uniform(0, 2 * math.pi, waves)
    heading, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.6)  # pixels a frame
    advance = (kx * math.cos(heading) + ky * math.sin(heading)) * speed
    pixels = np.arange(SIZE)
    across = np.outer(kx, pixels)
    down = np.outer(pixels, ky) + phase - np.multiply.outer(times, advance)[:, None]
    left = np.concatenate([np.cos(down), -np.sin(down)], axis=-1).astype(np.float32)
    right = np.concatenate([np.cos(across), np.sin(across)]).astype(np.float32)
    return left @ right * np.float32(math.sqrt(2 / waves))


def _outline(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Draws a shape: a function from the polar angle to the outline's radius, of area pi (that of the unit disc)."""
    kind = rng.integers(5)
    corners = int(rng.integers(3, 6))
    squeeze, wobble = rng.uniform(1.3, 1.7), rng.uniform(0.12, 0.2)

    def ellipse(angle: np.ndarray) -> np.ndarray:
        return 1 / np.sqrt((np.cos(angle) / squeeze) ** 2 + (np.sin(angle) * squeeze) ** 2)

    def polygon(angle: np.ndarray) -> np.ndarray:
        half = math.pi / corners
        return math.cos(half) / np.cos(np.mod(angle, 2 * half) - half)

    def rectangle(angle: np.ndarray) -> np.ndarray:
        return 1 / np.maximum(np.abs(np.cos(angle)) / squeeze, np.abs(np.sin(angle)) * squeeze)

    def flower(angle: np.ndarray) -> np.ndarray:
        return 1 + 1.6 * wobble * np.cos(corners * angle)

    def pear(angle: np.ndarray) -> np.ndarray:
        return 1 + wobble * (np.cos(angle) + np.cos(2 * angle))

    shape = (ellipse, polygon, rectangle, flower, pear)[kind]
    around = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    scale = 1 / math.sqrt(float(np.mean(shape(around) ** 2)))  # area = mean of r^2, times pi
    return lambda angle: scale * shape(angle)


def _texture(rng: np.random.Generator) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Draws a texture: a function from coordinates on the shape to the share 0..1 of its second colour."""
    kind = rng.integers(3)
    frequency = rng.uniform(4.0, 7.0)
    phase = rng.uniform(0, 2 * math.pi, 2)

    def stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.sin(frequency * u + phase[0])

    def checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.sin(frequency * u + phase[0]) * np.sin(frequency * v + phase[1])

    def waves(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.sin(frequency * u + 1.5 * np.sin(0.7 * frequency * v + phase[0]) + phase[1])

    pattern = (stripes, checks, waves)[kind]
    return lambda u, v: np.clip(0.5 + 1.5 * pattern(u, v), 0, 1)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the background's colour and two colours of the shape, of values 0..1: those of a few random candidates
    that are farthest from the background and from each other."""
    ground = rng.uniform(0.3, 0.6, 3)
    candidates = rng.uniform(0.0, 1.0, (8, 3))

    def distance(colour: np.ndarray) -> np.ndarray:
        # Brightness counts most: video codecs keep colour at half the resolution.
        return ((candidates - colour) ** 2).mean(1) + 2 * ((candidates - colour) @ (0.299, 0.587, 0.114)) ** 2

    first = candidates[np.argmax(distance(ground))]
    return ground, first, candidates[np.argmax(np.minimum(distance(ground), distance(first)))]


def render_clip(index: int, *, seed: int = 0, split: str = "train") -> tuple[np.ndarray, int]:
    """Draws one clip.

    Args:
        index: Number of the clip in its split; ``index % 8`` is its class.
        seed: Seed of the set.
        split: ``train`` or ``val``.

    Returns:
        Frames as uint8 RGB (16, 64, 64, 3) and the index of the class in `MOTION_CLASSES`.

    Raises:
        ValueError: If the split is neither ``train`` nor ``val``.
    """
    if split not in _SPLITS:
        raise ValueError(f"split {split!r} is neither train nor val")
    label = index % len(MOTION_CLASSES)
    return _draw(np.random.default_rng((seed, _SPLITS.index(split), index)), label), label


def _draw(rng: np.random.Generator, label: int) -> np.ndarray:
    """Draws the frames of one clip of a class, uint8 RGB (FRAMES, SIZE, SIZE, 3)."""
    # The class enters here and nowhere else. Every draw below is made for every class, in the same order.
    dx, dy, turn, growth = _directions()[label]
    times = np.arange(FRAMES) - (FRAMES - 1) / 2  # frames, 0 in the middle

    speed = rng.uniform(0.9, 1.7)  # pixels a frame
    spin = rng.uniform(0.14, 0.24)  # radians a frame: 8 to 14 degrees
    rate = rng.uniform(0.03, 0.05)  # of the size, a frame
    centre = rng.uniform(0.38 * SIZE, 0.62 * SIZE, 2)
    size = math.exp(rng.uniform(math.log(12.0), math.log(17.0)))  # radius in pixels of a disc of the same area
    angle = rng.uniform(0, 2 * math.pi)
    # A shape turns about a point beside its centre, so that it swings as well as spins.
    arm, bearing = rng.uniform(0.5, 0.9) * size, rng.uniform(0, 2 * math.pi)

    theta = angle + turn * spin * times
    swing = bearing + turn * spin * times
    x0 = centre[0] + dx * speed * times + arm * (np.cos(swing) - math.cos(bearing))
    y0 = centre[1] + dy * speed * times + arm * (np.sin(swing) - math.sin(bearing))
    radius = size * np.exp(growth * rate * times)

    outline, texture = _outline(rng), _texture(rng)
    ground, first, second = _colours(rng)
    contrast = rng.uniform(0.1, 0.25)
    tint = rng.uniform(-0.3, 0.3, 3) + 1
    noise = rng.uniform(0.005, 0.02)

    # Coordinates on the shape: (u, v) = R(-theta) (x - x0, y - y0) / radius, each (T, SIZE, SIZE).
    pixels = np.arange(SIZE, dtype=np.float64)
    across = (pixels - x0[:, None]) / radius[:, None]
    down = (pixels - y0[:, None]) / radius[:, None]
    cos, sin = np.cos(theta)[:, None], np.sin(theta)[:, None]
    u = ((cos * across)[:, None, :] + (sin * down)[:, :, None]).astype(np.float32)
    v = ((-sin * across)[:, None, :] + (cos * down)[:, :, None]).astype(np.float32)
    # The edge is as wide as a pixel, so that motion by part of a pixel shows.
    inside = (outline(np.arctan2(v, u)) - np.hypot(u, v)) * radius[:, None, None].astype(np.float32)
    alpha = np.clip(inside + 0.5, 0, 1).astype(np.float32)
    share = texture(u, v).astype(np.float32)

    grey = _background(rng, times) * np.float32(0.5 * contrast)
    grain = rng.standard_normal((FRAMES, SIZE, SIZE), dtype=np.float32) * np.float32(noise)
    frames = np.empty((FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    for channel in range(3):
        behind = grey * np.float32(tint[channel]) + np.float32(ground[channel])
        shape = share * np.float32(second[channel] - first[channel]) + np.float32(first[channel])
        value = behind + alpha * (shape - behind) + grain
        frames[..., channel] = np.clip(value * 255 + 0.5, 0, 255)
    return frames


def motion_codec() -> tuple[str, str]:
    """Returns the encoder used for the files and, if it is not ``libx264``, the reason (else an empty string)."""
    import av

    try:
        av.codec.Codec("libx264", "w")
    except (ValueError, av.error.FFmpegError) as error:
        return "mpeg4", f"PyAV {av.__version__} has no libx264 encoder ({error}); wrote MPEG-4 part 2 instead of H.264"
    return "libx264", ""


def _write_video(path: Path, frames: np.ndarray, codec: str) -> None:
    """Encodes uint8 RGB frames (T, H, W, 3) to an MP4 file whose bytes depend on nothing else."""
    import av

    if codec == "libx264":
        options = {"preset": "superfast", "crf": "20", "threads": "1"}
    else:
        options = {"qscale": "3", "flags": "+qscale", "threads": "1"}
    # bitexact leaves out the muxer's version and the time of writing.
    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=Fraction(FPS), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _video_name(split: str, index: int) -> str:
    return f"videos/{split}/{MOTION_CLASSES[index % len(MOTION_CLASSES)].replace(' ', '_')}_{index:05d}.mp4"


def _make_chunk(task: tuple[str, int, str, int, int, str]) -> int:
    """Makes the videos start..stop-1 of one split; returns how many. A worker process runs it."""
    folder, seed, split, start, stop, codec = task
    for index in range(start, stop):
        frames, _ = render_clip(index, seed=seed, split=split)
        _write_video(Path(folder) / _video_name(split, index), frames, codec)
    return stop - start


def _run_chunks(tasks: list[tuple[str, int, str, int, int, str]], workers: int) -> Iterator[int]:
    if workers <= 1 or len(tasks) <= 1:
        yield from map(_make_chunk, tasks)
        return
    # Never fork: the caller may hold threads of torch or of a decoder.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_leave_interrupts_to_parent)
    try:
        for future in as_completed([pool.submit(_make_chunk, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise StvidError(
            "motion: a worker process died (out of memory, or the calling script lacks `if __name__ == '__main__':`); "
            "call prepare_motion(workers=1) to make the set in one process"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; one report is enough


def _default_root(name: str) -> Path:
    cache = os.environ.get("STVID_CACHE")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache" / "stvid") / "motion" / name


def _read_metadata(root: Path) -> dict[str, Any] | None:
    """Returns the metadata of a finished set, None where there is none."""
    try:
        found = json.loads((root / "motion.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{root / 'motion.json'}: cannot be read ({error}); delete {root} to make it anew") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{root / 'motion.json'}: is not the description of a motion set; choose another folder")
    return found


def _write_lists(folder: Path, description: dict[str, Any]) -> None:
    for split in _SPLITS:
        rows = [
            (_video_name(split, index), MOTION_CLASSES[index % len(MOTION_CLASSES)])
            for index in range(description[split])
        ]
        write_table(folder / f"{split}.csv", ["path", "label"], rows, formulas=True)
    (folder / "motion.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _remove_stale(folder: Path) -> None:
    """Removes the temporary folders that killed processes left behind, not those of processes still at work."""
    for left in folder.parent.glob(f".{folder.name}.*{TEMPORARY}"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def prepare_motion(
    root: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    train: int = TRAIN_VIDEOS,
    val: int = VAL_VIDEOS,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Makes the `motion` set, or finds the one made before.

    The folder holds ``videos/``, ``train.csv``, ``val.csv`` (columns ``path,label``) and ``motion.json`` (version,
    seed, counts, codec). It is made under a temporary name beside its place and renamed when it is whole, so an
    interrupted run leaves nothing that looks like a set.

    Args:
        root: Folder of the set; None takes one named after the set's version, seed and counts in ``$STVID_CACHE``,
            or in ``~/.cache/stvid`` if that is not set.
        seed: Seed of every random choice.
        train: Videos of the training split.
        val: Videos of the held-out split.
        workers: Processes that draw and encode; None takes one for each usable core. The files do not depend on it.
        progress: Say on stderr what is done, with a progress bar if that is a terminal.

    Returns:
        The folder of the set.

    Raises:
        ConfigError: If a count is below the number of classes, or the folder holds something else.
        StvidError: If the set cannot be written.
    """
    for name, count in (("train", train), ("val", val)):
        if count < len(MOTION_CLASSES):
            raise ConfigError(f"motion: {name}={count}; ask for at least one video of each of the 8 classes")
    folder = Path(root).absolute() if root is not None else _default_root(f"v{VERSION}-seed{seed}-{train}-{val}")
    wanted = {"version": VERSION, "seed": seed, "train": train, "val": val}

    found = _read_metadata(folder)
    if found is not None:
        if {key: found.get(key) for key in wanted} == wanted:
            return folder
        have = ", ".join(f"{key} {found.get(key)}" for key in wanted)
        raise ConfigError(
            f"{folder}: holds another motion set ({have}; wanted {', '.join(f'{k} {v}' for k, v in wanted.items())}); "
            "delete it or choose another folder"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty and holds no motion set; choose another folder")

    try:
        _make_set(folder, wanted, workers=usable_cores() if workers is None else workers, progress=progress)
    except OSError as error:
        raise StvidError(
            f"{folder}: the motion set cannot be written ({error}); free space or set STVID_CACHE"
        ) from error
    return folder


def _make_set(folder: Path, wanted: dict[str, int], *, workers: int, progress: bool) -> None:
    from rich.console import Console

    codec, reason = motion_codec()
    total = wanted["train"] + wanted["val"]
    console = Console(stderr=True, quiet=not progress)
    console.print(f"motion: making {total} videos in {folder} (once)", highlight=False, soft_wrap=True)
    if reason:
        console.print(f"motion: {reason}", highlight=False, soft_wrap=True)

    began = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)

    def write(making: Path) -> None:
        for split in _SPLITS:
            (making / "videos" / split).mkdir(parents=True)
        tasks = [
            (str(making), wanted["seed"], split, start, min(start + _CHUNK, wanted[split]), codec)
            for split in _SPLITS
            for start in range(0, wanted[split], _CHUNK)
        ]
        with progress_bar("motion", total, enabled=console.is_terminal and progress, transient=True) as bar:
            for done in _run_chunks(tasks, workers):
                bar.advance(done)
        description = {**wanted, "classes": list(MOTION_CLASSES), "frames": FRAMES, "size": SIZE, "fps": FPS}
        _write_lists(making, {**description, "codec": codec, "codec_reason": reason})

    try:
        write_folder_atomically(folder, write)
    except OSError:
        # Another process that was asked for the same set may have been faster; its files are the same.
        found = _read_metadata(folder)
        if found is None or any(found.get(key) != value for key, value in wanted.items()):
            raise
    console.print(f"motion: made in {time.perf_counter() - began:.0f} s", highlight=False)


def resolve_motion(
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    train: int = TRAIN_VIDEOS,
    val: int = VAL_VIDEOS,
) -> Path:
    """Returns the CSV of one split of the set, which is made if it does not exist yet.

    Args:
        split: ``train`` or ``val``.
        root: Folder of the set, see `prepare_motion`.
        train: Videos of the training split.
        val: Videos of the held-out split.

    Raises:
        ConfigError: If the split is neither, or the folder cannot be used, see `prepare_motion`.
        StvidError: If the set cannot be made.
    """
    if split not in _SPLITS:
        raise ConfigError(f"motion: split {split!r} is neither train nor val")
    return prepare_motion(root, train=train, val=val) / f"{split}.csv"
