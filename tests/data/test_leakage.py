"""``stvid prep check-leakage``: copies are found, other videos are not."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stvid.commands.prep import main
from stvid.data.leakage import FRAMES, hash_video, near_duplicates
from stvid.errors import VideoError

HEIGHT, WIDTH, LENGTH = 96, 128, 24


def scene(seed: int) -> np.ndarray:
    """Smooth random shapes that drift: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.5, 4, (10, 2)) * rng.choice([-1, 1], (10, 2))
    phases, speeds, colours = rng.uniform(0, 6.28, 10), rng.uniform(-3, 3, 10), rng.uniform(-1, 1, (10, 3))
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    frames = np.empty((LENGTH, HEIGHT, WIDTH, 3))
    for number in range(LENGTH):
        time = number / LENGTH
        angle = 6.28 * (waves[:, :1, None] * y + waves[:, 1:, None] * x) + (phases + speeds * time)[:, None, None]
        frames[number] = np.tensordot(np.sin(angle), colours, (0, 0))
    low, high = frames.min(), frames.max()
    return ((frames - low) / (high - low) * 255).astype(np.uint8)


def encode(path: Path, frames: Sequence[np.ndarray], *, codec: str = "libx264", **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=12)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode(None))
    return path


def scaled(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def test_copies_are_found_and_other_videos_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(8):
        encode(tmp_path / f"train/a/{seed}.mp4", scene(seed))
    copies = {
        "encoded_0": (scene(0), {"crf": "40"}),
        "scaled_1": (scaled(scene(1), 48, 80), {}),
        "cropped_2": (scene(2)[:, 3:-3, 4:-4], {}),
        "faster_3": (scene(3)[::2], {}),
        "brighter_4": (np.clip(scene(4).astype(int) * 0.8 + 40, 0, 255).astype(np.uint8), {}),
    }
    for name, (frames, options) in copies.items():
        encode(tmp_path / f"test/a/{name}.mp4", frames, **options)
    for seed in range(20, 30):
        encode(tmp_path / f"test/a/other_{seed}.mp4", scene(seed))
    hashes = {
        side: {p.stem: hash_video(str(p), {})["hashes"] for p in sorted((tmp_path / side).rglob("*.mp4"))}
        for side in ("train", "test")
    }
    pairs = near_duplicates(list(hashes["train"].values()), list(hashes["test"].values()), threshold=8)
    names = {(list(hashes["train"])[a], list(hashes["test"])[b]) for a, b, _ in pairs}
    assert names == {(name[-1], name) for name in copies}
    distances = [distance for _, _, distance in pairs]
    assert distances == sorted(distances)


@pytest.mark.usefixtures("in_process")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        encode(tmp_path / f"train/a/{seed}.mp4", scene(seed))
    encode(tmp_path / "test/a/2.mp4", scene(2))
    out = tmp_path / "report/leakage.csv"
    command = ["check-leakage", str(tmp_path / "train"), str(tmp_path / "test"), "--out", str(out)]
    assert main(command) == 0
    assert "2 and 1 videos: 0 near-duplicate pairs" in capsys.readouterr().out
    encode(tmp_path / "test/b/copy.mp4", scene(1), crf="35")
    encode(tmp_path / "test/b/black.mp4", np.zeros((10, 48, 64, 3), np.uint8))
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "2 and 2 videos: 1 near-duplicate pairs" in shown.out and "1 of 5 videos failed" in shown.err
    with open(out, newline="") as file:
        ((train, test, distance),) = list(csv.reader(file))[1:]
    assert (train, test) == (str(tmp_path / "train/a/1.mp4"), str(tmp_path / "test/b/copy.mp4"))
    assert float(distance) < 5


def test_even_videos_cannot_be_compared(tmp_path: Path) -> None:
    path = encode(tmp_path / "grey.mp4", np.full((10, 48, 64, 3), 128, np.uint8))
    with pytest.raises(VideoError, match="too even"):
        hash_video(str(path), {})


def test_distances_are_those_of_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = ([[rng.bytes(8).hex() for _ in range(FRAMES)] for _ in range(n)] for n in (7, 5))
    expected = {
        (a, b): sum(bin(int(x, 16) ^ int(y, 16)).count("1") for x, y in zip(one, two, strict=True)) / FRAMES
        for a, one in enumerate(first)
        for b, two in enumerate(second)
    }
    monkeypatch.setattr("stvid.data.leakage._PAIRS", 10)  # several blocks
    assert {(a, b): d for a, b, d in near_duplicates(first, second, threshold=64)} == expected
    assert near_duplicates(first, [], threshold=64) == []
