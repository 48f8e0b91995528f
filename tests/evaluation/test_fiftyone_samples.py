"""Predictions as samples of FiftyOne; with its own importer and its own labels where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stvid.commands.prep import main
from stvid.data.manifest import read_manifest
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.fiftyone_samples import write_fiftyone_folder, write_to_fiftyone
from stvid.evaluation.predicted import ExchangeSettings, Predicted, PredictedPart

NAMES = ("run", "sit", "ü")
SETTINGS = ExchangeSettings(NAMES)


@pytest.fixture
def video(make_video: Callable[..., Path], tmp_path: Path) -> str:
    (tmp_path / "a.mp4").write_bytes(make_video("samples.mp4", frames=40, fps=20).read_bytes())
    return str(tmp_path / "a.mp4")


def whole(path: str) -> Predicted:
    return Predicted(path, (PredictedPart((2,), np.array([0.25, 0.0, 0.75])),))


def over_time(path: str) -> Predicted:
    parts = (
        PredictedPart((0,), np.array([0.6, 0.3, 0.1]), 0.0, 0.5),
        PredictedPart((1,), np.array([0.1, 0.8, 0.1]), 0.5, 2.0),
    )
    return Predicted(path, parts, over_time=True)


def test_a_whole_video(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    write_fiftyone_folder([whole(video)], folder, SETTINGS)
    (sample,) = json.loads((folder / "samples.json").read_text())["samples"]
    label = sample["predictions"]
    assert sample["filepath"] == video and (label["_cls"], label["label"], label["confidence"]) == (
        "Classification",
        "ü",
        0.75,
    )
    assert np.exp(label["logits"]) == pytest.approx([0.25, 0, 0.75], abs=1e-6)  # softmax of them gives the scores
    assert json.loads((folder / "metadata.json").read_text())["default_classes"] == [*NAMES]
    found = read_manifest(folder)
    assert [e.path for e in found] == [video] and not found.has_labels
    out = tmp_path / "list.csv"
    assert main(["manifest", "fiftyone", str(folder), "--field", "predictions", "--out", str(out)]) == 0
    assert [e.labels for e in read_manifest(out)] == [("ü",)]


def test_parts(video: str, tmp_path: Path) -> None:
    """The frames of a part are those whose times lie in it."""
    write_fiftyone_folder([over_time(video)], tmp_path / "set", SETTINGS)
    (sample,) = json.loads((tmp_path / "set/samples.json").read_text())["samples"]
    assert [(d["label"], d["support"], d["confidence"]) for d in sample["predictions"]["detections"]] == [
        ("run", [1, 10], 0.6),
        ("sit", [11, 40], 0.8),
    ]
    out = tmp_path / "list.csv"
    command = ["manifest", "fiftyone", str(tmp_path / "set"), "--field", "predictions", "--out", str(out)]
    assert main(command) == 0
    assert out.read_text() == "path,label,start,end\na.mp4,run,0,0.5\na.mp4,sit,0.5,2\n"


def test_several_labels(video: str, tmp_path: Path) -> None:
    predicted = Predicted(video, (PredictedPart((1, 0), np.array([0.5, 0.9, 0.0])),))
    write_fiftyone_folder([predicted], tmp_path / "set", ExchangeSettings(NAMES, task="multilabel"))
    label = json.loads((tmp_path / "set/samples.json").read_text())["samples"][0]["predictions"]
    assert [c["label"] for c in label["classifications"]] == ["sit", "run"]
    assert 1 / (1 + np.exp(-np.array(label["logits"]))) == pytest.approx([0.5, 0.9, 0], abs=1e-6)


def test_another_folder_is_kept(video: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for _ in range(2):
        write_fiftyone_folder([whole(video)], tmp_path / "set", SETTINGS)
    (tmp_path / "set/mine.txt").touch()
    with pytest.raises(ConfigError, match="give another --out"):
        write_fiftyone_folder([whole(video)], tmp_path / "set", SETTINGS)
    assert (tmp_path / "set/mine.txt").exists()


class FakeSample(dict[str, Any]):
    """Stands for a sample in a data set, which needs a database in FiftyOne."""

    def __init__(self, filepath: str) -> None:
        super().__init__()
        self.filepath = filepath
        self.saved = 0

    def save(self) -> None:
        self.saved += 1


def test_a_data_set_that_is_open(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("Classification", "Classifications", "TemporalDetection", "TemporalDetections")
    fake = {kind: lambda kind=kind, **values: SimpleNamespace(kind=kind, **values) for kind in kinds}
    if "fiftyone" not in sys.modules:
        monkeypatch.setitem(sys.modules, "fiftyone", SimpleNamespace(**fake))
    samples = [FakeSample(video), FakeSample("/else/where.mp4")]
    count = write_to_fiftyone(samples, [whole(video)], SETTINGS, embeddings={video: [1.0, 2.0]})
    assert count == 1 and [sample.saved for sample in samples] == [1, 0] and not samples[1]
    made = samples[0]["predictions"]
    assert (made.label, made.confidence, len(made.logits)) == ("ü", 0.75, 3)
    assert samples[0]["embeddings"].tolist() == [1, 2] and samples[0]["embeddings"].dtype == np.float32
    write_to_fiftyone(samples, [over_time(video)], SETTINGS, field="parts")
    assert [d.support for d in samples[0]["parts"].detections] == [[1, 10], [11, 40]]


def test_fiftyone_is_missing(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(StvidError, match="pip install fiftyone"):
        write_to_fiftyone([], [whole(video)], SETTINGS)


@pytest.mark.parametrize("make", [whole, over_time])
def test_fiftyones_own_importer(make: Callable[[str], Predicted], video: str, tmp_path: Path) -> None:
    """Its importer makes samples without the database, which only the data set needs."""
    fiftyone = pytest.importorskip("fiftyone")
    write_fiftyone_folder([make(video)], tmp_path / "set", SETTINGS)
    importer = fiftyone.utils.data.FiftyOneDatasetImporter(str(tmp_path / "set"))
    assert importer._is_legacy_format_data()  # as Dataset.from_dir asks
    importer = importer._to_legacy_importer()
    importer.setup()
    (sample,) = importer
    assert sample.filepath == video and sample.media_type == "video"
    if make is whole:
        label = sample.predictions
        assert isinstance(label, fiftyone.Classification) and label.label == "ü" and label.confidence == 0.75
        assert label.logits.argmax() == 2 and importer.get_dataset_info() == {"classes": [*NAMES]}
    else:
        assert [d.support for d in sample.predictions.detections] == [[1, 10], [11, 40]]


def test_labels_of_fiftyone_itself(video: str) -> None:
    fiftyone = pytest.importorskip("fiftyone")
    samples = [FakeSample(video)]
    write_to_fiftyone(samples, [whole(video)], SETTINGS)
    assert isinstance(samples[0]["predictions"], fiftyone.Classification)
    sample = fiftyone.Sample(filepath=video, predictions=samples[0]["predictions"], embeddings=np.ones(2))
    assert sample.predictions.logits.shape == (3,)
