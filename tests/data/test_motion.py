"""The embedded demo set: what moves, that nothing else tells the class, and that half a set is never taken for one."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stvid.data import motion
from stvid.data.motion import MOTION_CLASSES, prepare_motion, render_clip, resolve_motion
from stvid.errors import ConfigError, StvidError

TRAIN, VAL = 48, 16


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_motion(tmp_path_factory.mktemp("motion") / "set", train=TRAIN, val=VAL, workers=1, progress=False)


@pytest.fixture(scope="module")
def clips() -> tuple[np.ndarray, np.ndarray]:
    drawn = [render_clip(index, seed=5) for index in range(480)]
    return np.stack([frames for frames, _ in drawn]), np.array([label for _, label in drawn])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def object_mask(frames: np.ndarray) -> np.ndarray:
    """Pixels (T, H, W) whose colour is far from that of the border, which is background in nearly all clips."""
    border = np.concatenate([frames[:, :3].reshape(-1, 3), frames[:, -3:].reshape(-1, 3)])
    distance = np.abs(frames.astype(float) - np.median(border, axis=0)).sum(-1)
    return distance > 0.4 * np.quantile(distance, 0.99)


def centroids_and_areas(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = object_mask(frames)
    ys, xs = np.mgrid[: frames.shape[1], : frames.shape[2]]
    area = mask.sum((1, 2))
    centre = np.stack([(mask * xs).sum((1, 2)), (mask * ys).sum((1, 2))], -1) / np.maximum(area, 1)[:, None]
    return centre, area.astype(float)


def turned(frames: np.ndarray) -> float:
    """Angle in degrees, clockwise on the screen, by which the picture around the object turns in two frames."""
    centres = centroids_and_areas(frames)[0]
    angles = np.deg2rad(np.arange(0, 360, 2))
    radii = np.arange(2, 15)[:, None]
    xs = np.clip(np.rint(centres[:, 0, None, None] + radii * np.cos(angles)), 0, 63).astype(int)
    ys = np.clip(np.rint(centres[:, 1, None, None] + radii * np.sin(angles)), 0, 63).astype(int)
    polar = frames[np.arange(len(frames))[:, None, None], ys, xs].astype(float)  # (T, radii, angles, 3)
    polar -= polar.mean(2, keepdims=True)
    shifts = np.arange(-15, 16)
    spectrum = np.conj(np.fft.rfft(polar[:-2], axis=2)) * np.fft.rfft(polar[2:], axis=2)
    scores = np.fft.irfft(spectrum.sum((0, 1, 3)), n=len(angles))  # correlation at each shift along the angle
    return float(shifts[int(np.argmax(scores[shifts]))] * 2)


def probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """Accuracy of the better of a ridge classifier and 5 nearest neighbours."""
    mean, deviation = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, test_x = (train_x - mean) / deviation, (test_x - mean) / deviation
    gram = train_x @ train_x.T
    weights = np.linalg.solve(gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram)), np.eye(8)[train_y])
    ridge = np.mean((test_x @ train_x.T @ weights).argmax(1) == test_y)
    distance = (train_x**2).sum(1) - 2 * test_x @ train_x.T
    votes = np.eye(8)[train_y[np.argsort(distance, axis=1)[:, :5]]].sum(1)
    return float(max(ridge, np.mean(votes.argmax(1) == test_y)))


# --- the clips --------------------------------------------------------------------------------------------------------


def test_a_clip_is_a_pure_function_of_seed_split_and_index() -> None:
    frames, label = render_clip(11, seed=3)
    assert frames.shape == (16, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert label == 3
    render_clip(12, seed=3)
    assert np.array_equal(render_clip(11, seed=3)[0], frames)
    for other in (render_clip(11, seed=4), render_clip(19, seed=3), render_clip(11, seed=3, split="val")):
        assert other[1] == label
        assert np.abs(other[0].astype(int) - frames).mean() > 5


def test_unknown_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither train nor val"):
        render_clip(0, split="test")
    with pytest.raises(ConfigError, match="neither train nor val"):
        resolve_motion("test")


def test_the_class_changes_nothing_in_the_middle_and_much_at_the_ends() -> None:
    for seed in range(6):
        drawn = np.stack([motion._draw(np.random.default_rng(seed), label) for label in range(8)]).astype(float)
        difference = np.abs(drawn - drawn[:1]).mean((0, 2, 3, 4))  # of each frame, over classes
        # The middle lies between frames 7 and 8, half a frame of motion from each: only edges differ a little.
        assert difference[[7, 8]].max() < 0.3 * difference[[0, 15]].min()


def test_one_frame_does_not_tell_the_class(clips: tuple[np.ndarray, np.ndarray]) -> None:
    frames, labels = clips
    half = len(labels) // 2
    for position in (7, 8):
        still = frames[:, position, ::4, ::4].reshape(len(labels), -1).astype(float)
        assert probe(still[:half], labels[:half], still[half:], labels[half:]) < 0.22  # 4.5 sigma above 1/8
    summary = []
    for clip in frames:  # what a picture tells about the object: place and area
        centre, area = centroids_and_areas(clip[8:9])
        summary.append([*centre[0], area[0], *clip[8].reshape(-1, 3).mean(0), *clip[8].reshape(-1, 3).std(0)])
    features = np.array(summary)
    assert probe(features[:half], labels[:half], features[half:], labels[half:]) < 0.22


def test_the_probe_finds_the_class_where_it_can_be_seen(clips: tuple[np.ndarray, np.ndarray]) -> None:
    frames, labels = clips[0][:320], clips[1][:320]
    half = len(labels) // 2
    features = []
    for clip in frames:
        centre, area = centroids_and_areas(clip)
        features.append(
            [*(centre[-3:].mean(0) - centre[:3].mean(0)), np.log((area[-1] + 1) / (area[0] + 1)), turned(clip)]
        )
    table = np.clip(np.array(features), -20, 20)
    assert probe(table[:half], labels[:half], table[half:], labels[half:]) > 0.8


@pytest.mark.parametrize("label", range(8), ids=MOTION_CLASSES)
def test_the_motion_is_what_the_class_says(clips: tuple[np.ndarray, np.ndarray], label: int) -> None:
    frames, labels = clips
    right = []
    for clip in frames[labels == label][:30]:
        centre, area = centroids_and_areas(clip)
        shift_x, shift_y = centre[-3:].mean(0) - centre[:3].mean(0)
        growth = np.log((area[-3:].mean() + 1) / (area[:3].mean() + 1))
        turn = turned(clip)
        right.append(
            (
                shift_x < -3,
                shift_x > 3,
                shift_y < -3,
                shift_y > 3,
                turn > 4,
                turn < -4,
                growth > 0.2,
                growth < -0.2,
            )[label]
        )
    assert np.mean(right) >= 0.85


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_set_is_whole_and_balanced(small_set: Path) -> None:
    description = json.loads((small_set / "motion.json").read_text())
    assert description["classes"] == list(MOTION_CLASSES)
    assert (description["train"], description["val"], description["seed"]) == (TRAIN, VAL, 0)
    seen = set()
    for split, count in (("train", TRAIN), ("val", VAL)):
        rows = rows_of(small_set / f"{split}.csv")
        labels = [row["label"] for row in rows]
        assert {name: labels.count(name) for name in MOTION_CLASSES} == dict.fromkeys(MOTION_CLASSES, count // 8)
        for row in rows:
            assert (small_set / row["path"]).is_file()
            seen.add(row["path"])
    assert len(seen) == TRAIN + VAL == len(list(small_set.rglob("*.mp4")))
    assert len({(small_set / path).read_bytes() for path in seen}) == len(seen)  # no video twice, none in both splits


def test_the_files_hold_the_drawn_frames(small_set: Path) -> None:
    codec, reason = motion.motion_codec()
    assert (codec, reason) == ("libx264", "")
    for split, index in (("train", 6), ("val", 9)):
        row = rows_of(small_set / f"{split}.csv")[index]
        with av.open(str(small_set / row["path"])) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.average_rate == 16
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        drawn, label = render_clip(index, split=split)
        assert MOTION_CLASSES[label] == row["label"]
        assert decoded.shape == drawn.shape
        error = np.abs(decoded.astype(float) - drawn).mean((1, 2, 3))
        assert error.max() < 12  # lossy, and colours at half resolution
        assert error.max() < 0.5 * np.abs(decoded[0].astype(float) - drawn[15]).mean() + 6


def test_the_files_do_not_depend_on_the_number_of_processes(small_set: Path, tmp_path: Path) -> None:
    again = prepare_motion(tmp_path / "again", train=TRAIN, val=VAL, workers=2, progress=False)
    assert contents(again) == contents(small_set)


def test_without_x264_the_reason_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, mode: str = "r") -> None:
        raise ValueError(f"no codec {name}")

    monkeypatch.setattr(av.codec, "Codec", missing)
    folder = prepare_motion(tmp_path / "set", train=8, val=8, workers=1, progress=False)
    description = json.loads((folder / "motion.json").read_text())
    assert description["codec"] == "mpeg4"
    assert "no libx264 encoder (no codec libx264)" in description["codec_reason"]
    with av.open(str(folder / rows_of(folder / "val.csv")[0]["path"])) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        assert sum(1 for _ in container.decode(video=0)) == 16


# --- finding, interrupting, refusing ----------------------------------------------------------------------------------


def test_a_finished_set_is_used_again(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "_make_set", lambda *_, **__: pytest.fail("made anew"))
    assert prepare_motion(small_set, train=TRAIN, val=VAL) == small_set
    assert resolve_motion("val", root=small_set, train=TRAIN, val=VAL) == small_set / "val.csv"


def test_the_default_place_is_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STVID_CACHE", str(tmp_path / "cache"))
    table = resolve_motion("train", train=8, val=8)
    assert table == tmp_path / "cache" / "motion" / "v1-seed0-8-8" / "train.csv"
    assert len(rows_of(table)) == 8
    said = capsys.readouterr().err
    assert "making 16 videos in " + str(table.parent) in said.replace("\n", "")
    assert prepare_motion(train=8, val=8, seed=1) != table.parent  # another seed is another set
    assert capsys.readouterr().err
    assert resolve_motion("train", train=8, val=8) == table
    assert not capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "set"
    written: list[Path] = []
    write = motion._write_video

    def interrupted(path: Path, frames: np.ndarray, codec: str) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, frames, codec)

    with monkeypatch.context() as patch:
        patch.setattr(motion, "_write_video", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_motion(folder, train=8, val=8, workers=1, progress=False)
    assert len(written) == 5
    assert list(folder.parent.iterdir()) == []
    assert prepare_motion(folder, train=8, val=8, workers=1, progress=False) == folder
    assert len(contents(folder)) == 8 + 8 + 3


def test_what_a_killed_run_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".set.1.tmp", tmp_path / ".set.2.tmp"
    for left in (old, fresh):
        (left / "videos").mkdir(parents=True)
    long_ago = time.time() - 2 * 3600
    os.utime(old, (long_ago, long_ago))
    prepare_motion(tmp_path / "set", train=8, val=8, workers=1, progress=False)
    assert not old.exists()
    assert fresh.exists()  # perhaps of a process that is still at work


def test_two_processes_may_make_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    original = motion._write_lists

    def overtaken(making: Path, description: dict[str, Any]) -> None:
        original(making, description)
        with monkeypatch.context() as patch:
            patch.setattr(motion, "_write_lists", original)
            prepare_motion(folder, train=8, val=8, workers=1, progress=False)

    monkeypatch.setattr(motion, "_write_lists", overtaken)
    assert prepare_motion(folder, train=8, val=8, workers=1, progress=False) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def die(task: object) -> int:
    os._exit(9)


def test_a_dead_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "_make_chunk", die)
    with pytest.raises(StvidError, match="worker process died"):
        prepare_motion(tmp_path / "set", train=8, val=8, workers=2, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_used_is_refused(small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"another motion set .*seed 0.* wanted .*seed 1"):
        prepare_motion(small_set, train=TRAIN, val=VAL, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(ConfigError, match="not empty"):
        prepare_motion(tmp_path / "mine", train=8, val=8)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "important"
    with pytest.raises(ConfigError, match="val=7"):
        prepare_motion(tmp_path / "set", train=8, val=7)
    with pytest.raises(StvidError, match="cannot be written"):
        prepare_motion(tmp_path / "mine" / "thesis.txt" / "set", train=8, val=8, progress=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "motion.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        prepare_motion(tmp_path / "broken", train=8, val=8)
