"""Stages with a model give the numbers of `stvid features` and `stvid.predict`, here and in a pipeline of Ray."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stvid
from stvid.engine.features import extract_features
from stvid.errors import CheckpointError, ConfigError
from stvid.evaluation.evaluate import Execution
from stvid.evaluation.features import feature_files, load_features
from stvid.evaluation.predict import Classification, Prediction
from stvid.evaluation.stages import Features, Predict, PredictBatch
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="3x3", class_names=("a", "b"))
COLUMNS = ("features", "start", "end", "frames")


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Callable[[Protocol], VideoModel], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stages") / "tiny.safetensors"
    stvid.save_model(tiny_model(PROTOCOL), path)
    return str(path)


@pytest.fixture(scope="module")
def videos(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video("0.mp4", frames=40, to=folder / "a")
    make_video("1.ts", frames=50, first=100, start=1.4, to=folder / "a")
    make_video("2.mp4", frames=30, first=200, to=folder / "a")
    (folder / "a" / "3.mp4").write_text("no video")
    return folder


@pytest.mark.parametrize("window", [{}, {"window": 0.8, "stride": 0.4}], ids=["clips", "windows"])
def test_features_are_those_of_the_command(
    checkpoint: str, videos: Path, tmp_path: Path, window: dict[str, float]
) -> None:
    manifest = stvid.read_manifest(videos)
    extract_features(
        stvid.load_model(checkpoint), manifest, tmp_path, accelerator="cpu", devices=1, batch_size=4, **window
    )
    files = feature_files(manifest, tmp_path, "npz")
    stage = pickle.loads(pickle.dumps(Features(checkpoint, batch_size=4, device="cpu", **window)))
    found = stage({"path": [manifest[row].path for row in range(4)]})
    assert found["error"][:3] == ["", "", ""] and found["error"][3].startswith(f"{videos}/a/3.mp4: ")
    for row in range(3):
        expected = load_features(files[row])
        for column in COLUMNS:
            np.testing.assert_array_equal(found[column][row], getattr(expected, column))
    assert [found[column][3].shape for column in COLUMNS] == [(0, 16), (0,), (0,), (0, 2)]


def test_predictions_are_those_of_predict(checkpoint: str, videos: Path) -> None:
    paths = [str(path) for path in sorted((videos / "a").iterdir())]
    stage = Predict(checkpoint, topk=2, device="cpu")
    found = stage({"path": paths})
    assert stage.model is stage.model and pickle.loads(pickle.dumps(stage))._model is None
    for row, path in enumerate(paths[:3]):
        (expected,) = stvid.predict(checkpoint, [path], topk=2, device="cpu")
        for column in ("classes", "probabilities", "class_ids"):
            assert json.loads(found[column][row]) == getattr(expected, column)
        assert found["label"][row] == expected.classes[0]
        assert found["probability"][row] == expected.probabilities[0]
    assert found["error"][3].startswith(f"{paths[3]}: not a video") and found["classes"][3] == "[]"


def test_a_batch_has_the_predictions_of_one_process(checkpoint: str, videos: Path) -> None:
    model = stvid.load_model(checkpoint)
    paths = [str(videos / "a" / name) for name in ("0.mp4", "1.ts", "2.mp4", "3.mp4")]
    work = Classification.prepare(model, paths, topk=2, execution=Execution(batch_size=18, workers=1))
    stage = pickle.loads(pickle.dumps(PredictBatch(work, device="cpu", threads=torch.get_num_threads())))
    first, second = work.batches()
    found = stage({"path": [PredictBatch.task(paths, batch) for batch in (second, first)]})
    assert found["error"] == ["", ""]
    assert [json.loads(text) for text in found["failed"]] == [[3], []]
    numbered = dict(pair for text in found["predictions"] for pair in json.loads(text))
    expected = stvid.predict(model, paths, topk=2, batch_size=18)
    assert [Prediction(**numbered[number]) for number in range(4)] == [replace(one, path="") for one in expected]


def test_what_is_no_fault_of_a_video_is_raised(checkpoint: str, videos: Path, tmp_path: Path) -> None:
    path = str(videos / "a" / "0.mp4")
    with pytest.raises(ConfigError, match="views"):
        Features(checkpoint, views="3by3", device="cpu")({"path": [path]})
    with pytest.raises(ConfigError, match="batch_size: 0 is not"):
        Predict(checkpoint, batch_size=0)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Predict(tmp_path / "none.ckpt", device="cpu")({"path": []})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actors_of_ray_build_the_model_once(checkpoint: str, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray: Any = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    paths = [str(path) for path in sorted((videos / "a").iterdir())]
    expected = Features(checkpoint, batch_size=4, device="cpu")({"path": paths})
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    try:
        rows = ray.data.from_items([{"path": path} for path in paths]).map_batches(
            Features,
            fn_constructor_args=[checkpoint],
            fn_constructor_kwargs={"batch_size": 4, "device": "cpu"},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
            batch_size=2,
        )
        found = sorted(rows.take_all(), key=lambda row: row["path"])
    finally:
        ray.shutdown()
    assert [row["error"] for row in found] == expected["error"]
    for number, row in enumerate(found):
        for column in COLUMNS:
            np.testing.assert_array_equal(row[column], expected[column][number])
