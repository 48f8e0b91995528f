"""Clip features: what the classifier sees, at the right seconds, once for each video, also after an interruption."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stvid
from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.transforms import normalize
from stvid.engine import features as engine
from stvid.engine.features import extract_features
from stvid.errors import ConfigError, StvidError
from stvid.evaluation import features as evaluation
from stvid.evaluation.features import ClipFeatures, feature_files, load_features, save_features
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="3x3", class_names=("a", "b"))
ON_CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[Protocol], VideoModel]) -> VideoModel:
    return tiny_model(PROTOCOL)


@pytest.fixture(scope="module")
def videos(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/0.mp4, a/1.ts (whose clock begins at 1.4 s), b/0.mp4"""
    folder = tmp_path_factory.mktemp("features")
    make_video("0.mp4", frames=40, to=folder / "a")
    make_video("1.ts", frames=50, first=100, start=1.4, to=folder / "a")
    make_video("0.mp4", frames=30, first=200, to=folder / "b")
    return folder


def pooled(model: VideoModel, clips: torch.Tensor) -> np.ndarray:
    """The reference: features before pooling, averaged over time and space."""
    with torch.no_grad():
        return model.forward_features(normalize(clips, PROTOCOL.mean, PROTOCOL.std)).mean((2, 3, 4)).numpy()


def test_test_clips(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    manifest = stvid.read_manifest(videos)
    report = extract_features(model, manifest, tmp_path, batch_size=4, **ON_CPU)
    assert (report.written, report.present, report.failed) == (3, 0, [])
    dataset = EvalDataset(manifest, PROTOCOL, views="3x3")
    files = feature_files(manifest, tmp_path, "npz")
    for row in range(3):
        found = load_features(files[row])
        sample = dataset[row]
        expected = pooled(model, sample.clips).reshape(3, 3, -1).mean(1)
        np.testing.assert_allclose(found.features, expected, atol=1e-5)
        np.testing.assert_array_equal(found.frames, sample.indices[:, [0, -1]])
        np.testing.assert_allclose(found.start, found.frames[:, 0] / 25, atol=1e-6)
        np.testing.assert_allclose(found.end, found.frames[:, 1] / 25, atol=1e-6)
        assert found.path == manifest[row].path and found.labels == manifest[row].labels
    listed = list(csv.DictReader((tmp_path / "index.csv").read_text().splitlines()))
    assert [tmp_path / line["file"] for line in listed] == files
    assert [file.parent.name for file in files] == ["a", "a", "b"] and len(set(files)) == 3
    assert feature_files(manifest.subset([2]), tmp_path, "npz") == files[2:]
    assert not (tmp_path / "failed.csv").exists()
    assert not model.get_classifier()._forward_pre_hooks and not model.training


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_windows(model: VideoModel, videos: Path, tmp_path: Path, workers: int) -> None:
    manifest = stvid.read_manifest(videos)
    extract_features(model, manifest, tmp_path, window=0.8, stride=0.4, workers=workers, batch_size=3, **ON_CPU)
    for row, ends in enumerate([[0.8, 1.2, 1.6], [0.8, 1.2, 1.6, 2.0], [0.8, 1.2]]):
        found = load_features(feature_files(manifest, tmp_path, "npz")[row])
        np.testing.assert_allclose(found.end, ends)
        np.testing.assert_allclose(found.start, np.array(ends) - 0.8, atol=1e-9)
        for number, start in enumerate(found.start):
            clip = stvid.load_clip(manifest[row].path, protocol=PROTOCOL, start=start, end=start + 0.8)
            with torch.no_grad():
                expected = model.forward_features(clip.tensor[None]).mean((2, 3, 4))[0]
            np.testing.assert_allclose(found.features[number], expected, atol=1e-5)
            assert found.frames[number].tolist() == [clip.indices[0], clip.indices[-1]]


def test_parts_of_videos(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    path = str(videos / "a" / "1.ts")
    manifest = Manifest.from_entries([VideoEntry(path, start=0.4, end=1.2), VideoEntry(path, start=1.0)])
    extract_features(model, manifest, tmp_path / "w", window=0.4, stride=0.4, **ON_CPU)
    files = feature_files(manifest, tmp_path / "w", "npz")
    assert files[0] != files[1]
    first, second = map(load_features, files)
    np.testing.assert_allclose(first.start, [0.4, 0.8], atol=1e-6)
    for row, (start, end) in zip(first.frames.tolist(), ((0.4, 0.8), (0.8, 1.2)), strict=True):
        assert row == stvid.load_clip(path, protocol=PROTOCOL, start=start, end=end).indices[[0, -1]].tolist()
    np.testing.assert_allclose(second.start, [1.0, 1.4, 1.8], atol=1e-6)
    extract_features(model, manifest, tmp_path / "v", **ON_CPU)
    found = load_features(feature_files(manifest, tmp_path / "v", "npz")[0])
    assert found.frames.min() == 10 and found.frames.max() == 29
    np.testing.assert_allclose(found.start, found.frames[:, 0] / 25, atol=1e-6)


@pytest.mark.parametrize("window", [None, 0.8])
def test_videos_in_shards_have_the_features_of_the_files(
    model: VideoModel, videos: Path, make_shards: Callable[..., Manifest], window: float | None, tmp_path: Path
) -> None:
    files = stvid.read_manifest(videos)
    shards = make_shards(files, tmp_path / "shards")
    for manifest, name in ((files, "f"), (shards, "s")):
        report = extract_features(model, manifest, tmp_path / name, window=window, **ON_CPU)
        assert (report.written, report.failed) == (3, [])
    for row, (one, other) in enumerate(
        zip(feature_files(files, tmp_path / "f", "npz"), feature_files(shards, tmp_path / "s", "npz"), strict=True)
    ):
        expected, found = load_features(one), load_features(other)
        for name in ("features", "start", "end", "frames"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.path == shards[row].path and found.labels == expected.labels


def test_an_interrupted_run_goes_on(
    model: VideoModel, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = stvid.read_manifest(videos)
    real = engine.save_features
    written: list[Path] = []

    def save(found: ClipFeatures, path: Path) -> None:
        if len(written) == 2:
            raise StvidError("the power went off")
        real(found, path)
        written.append(path)

    monkeypatch.setattr(engine, "save_features", save)
    with pytest.raises(StvidError, match="power"):
        extract_features(model, manifest, tmp_path, **ON_CPU)
    before = {path: path.stat().st_mtime_ns for path in written}
    assert len(before) == 2
    monkeypatch.setattr(engine, "save_features", real)
    report = extract_features(model, manifest, tmp_path, **ON_CPU)
    assert (report.written, report.present) == (1, 2)
    assert {path: path.stat().st_mtime_ns for path in written} == before
    report = extract_features(model, manifest, tmp_path, **ON_CPU)
    assert (report.written, report.present) == (0, 3)


def test_features_of_other_settings_are_not_mixed(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    manifest = stvid.read_manifest(videos).subset([0])
    extract_features(model, manifest, tmp_path, **ON_CPU)
    with pytest.raises(ConfigError, match=r"window.*another --out"):
        extract_features(model, manifest, tmp_path, window=1.0, **ON_CPU)
    with torch.no_grad():
        model.norm.bias += 1
    try:
        with pytest.raises(ConfigError, match="weights"):
            extract_features(model, manifest, tmp_path, **ON_CPU)
    finally:
        with torch.no_grad():
            model.norm.bias -= 1


def test_unreadable_videos_are_listed_and_tried_again(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    good = videos / "a" / "0.mp4"
    manifest = Manifest.from_entries(
        [VideoEntry(str(broken)), VideoEntry(str(good)), VideoEntry(str(tmp_path / "gone"))]
    )
    for options in ({}, {"window": 0.5}):
        out = tmp_path / f"out{len(options)}"
        report = extract_features(model, manifest, out, **options, **ON_CPU)
        assert report.written == 1 and [path for path, _ in report.failed] == [str(broken), str(tmp_path / "gone")]
        listed = list(csv.DictReader((out / "failed.csv").read_text().splitlines()))
        assert [line["path"] for line in listed] == [str(broken), str(tmp_path / "gone")]
        assert "no such file" in listed[1]["reason"]
    broken.write_bytes(good.read_bytes())
    report = extract_features(model, manifest, out, window=0.5, **ON_CPU)
    assert report.written == 1 and len(report.failed) == 1


def test_the_shares_of_processes_are_all_videos_once(videos: Path) -> None:
    manifest = stvid.read_manifest(videos)
    seen = []
    for rank in range(2):
        dataset = evaluation.FeatureClips(
            manifest, range(3), PROTOCOL, views="1x1", window=0.5, stride=0.5, rank=rank, world_size=2
        )
        seen += [chunk.video for chunk in dataset if chunk.last]
    assert sorted(seen) == [0, 1, 2]


def test_a_long_video_comes_in_chunks(videos: Path) -> None:
    manifest = stvid.read_manifest(videos).subset([1])  # 2 s
    dataset = evaluation.FeatureClips(manifest, [0], PROTOCOL, views="1x1", window=0.2, stride=0.05)
    chunks = [chunk for chunk in dataset if chunk.clips is not None]
    assert [len(chunk.clips) for chunk in chunks] == [16, 16, 5]
    np.testing.assert_allclose(np.concatenate([chunk.start for chunk in chunks]), 0.05 * np.arange(37), atol=1e-6)


def test_parquet_goes_round(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    found = ClipFeatures(
        features=rng.random((3, 5), np.float32),
        start=np.arange(3.0),
        end=np.arange(3.0) + 2,
        frames=np.arange(6).reshape(3, 2),
        path="a, b.mp4",
        labels=("jump", "run"),
    )
    for name in ("f.parquet", "f.npz"):
        save_features(found, tmp_path / name)
        again = load_features(tmp_path / name)
        for field in dataclasses.fields(found):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    with pytest.raises(ConfigError, match="parquet"):
        save_features(found, tmp_path / "f.txt")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(StvidError, match="damaged"):
        load_features(tmp_path / "other.npz")


def test_bad_calls(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    manifest = stvid.read_manifest(videos)
    for options, words in (
        ({"stride": 1.0}, "stride"),
        ({"window": -1.0}, "window"),
        ({"format": "csv"}, "format"),
        ({"batch_size": 0}, "batch_size"),
        ({"views": "2x2"}, "crops"),
        ({"accelerator": "abacus"}, "accelerator abacus"),
        ({"devices": 0}, "devices 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            extract_features(model, manifest, tmp_path / words, **{**ON_CPU, **options})
    assert not (tmp_path / "stride").exists()


def test_settings_are_written(model: VideoModel, videos: Path, tmp_path: Path) -> None:
    extract_features(model, stvid.read_manifest(videos).subset([0]), tmp_path, **ON_CPU)
    settings = json.loads((tmp_path / "features.json").read_text())
    assert settings["num_features"] == 16 and settings["model"] == "uniformer_xxs"
    assert Protocol.from_dict(settings["protocol"]) == PROTOCOL
