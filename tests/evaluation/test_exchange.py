"""The files of tools, which read again as lists of videos."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from stvid.data.manifest import read_manifest
from stvid.errors import ConfigError, MissingFileError, StvidError
from stvid.evaluation.exchange import TARGETS, label_studio_config, label_studio_tasks, to_text, write_predictions
from stvid.evaluation.predicted import ExchangeSettings, Predicted, PredictedPart

NAMES = ("run", 'say "<hi>" & go', "=sit")


@pytest.fixture
def folder(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """Two videos of 40 frames at 20 a second, one with an odd name."""
    content = make_video("exchange.mp4", frames=40, fps=20).read_bytes()
    for name in ("videos/=a b.mp4", "videos/deep/ü.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def part(
    *scores: float, labels: tuple[int, ...] | None = None, span: tuple[float, float] | None = None
) -> PredictedPart:
    values = np.array(scores)
    return PredictedPart((int(values.argmax()),) if labels is None else labels, values, *(span or (None, None)))


def whole(folder: Path) -> list[Predicted]:
    return [
        Predicted(str(folder / "videos/=a b.mp4"), (part(0.7, 0.2, 0.1),)),
        Predicted(str(folder / "videos/deep/ü.mp4"), (part(0.2, 0.7, 0.1),)),
    ]


def over_time(folder: Path) -> list[Predicted]:
    parts = (part(0.7, 0.2, 0.1, span=(0.0, 0.5)), part(0.1, 0.3, 0.6, span=(0.5, 2.0)))
    return [Predicted(str(folder / "videos/deep/ü.mp4"), parts, over_time=True)]


def entries(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...], float | None, float | None]]:
    return [(Path(e.path).name, e.labels, e.start, e.end) for e in read_manifest(path, **options)]


def test_csv(folder: Path) -> None:
    out = folder / "out/list.csv"
    assert write_predictions(whole(folder), "csv", out, ExchangeSettings(NAMES)) == [out]
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [*rows[0]] == ["path", "label", "confidence"] and rows[0]["confidence"] == "0.7"
    assert entries(out) == [("=a b.mp4", ("run",), None, None), ("ü.mp4", (NAMES[1],), None, None)]
    beside = folder / "videos/list.csv"
    write_predictions(whole(folder), "csv", beside, ExchangeSettings(NAMES))
    assert beside.read_text().splitlines()[1] == "./=a b.mp4,run,0.7"
    assert entries(beside) == entries(out)


def test_csv_starts_no_formula(folder: Path) -> None:
    predicted = over_time(folder)
    write_predictions(predicted, "csv", folder / "a.csv", ExchangeSettings(NAMES))
    assert entries(folder / "a.csv") == [("ü.mp4", ("run",), 0.0, 0.5), ("ü.mp4", ("'=sit",), 0.5, 2.0)]
    write_predictions(predicted, "csv", folder / "a.csv", ExchangeSettings(NAMES, formulas=True))
    assert entries(folder / "a.csv")[1][1] == ("=sit",)
    text = to_text(predicted, "csv", ExchangeSettings(NAMES))
    header = next(csv.reader(io.StringIO(text)))
    assert "'=sit" in text and header == ["path", "label", "start", "end", "confidence"]


def test_json(folder: Path) -> None:
    out = folder / "list.json"
    write_predictions(whole(folder), "json", out, ExchangeSettings(NAMES, topk=2))
    first = json.loads(out.read_text())[0]
    assert first == {
        "path": "videos/=a b.mp4",
        "label": "run",
        "confidence": 0.7,
        "classes": ["run", NAMES[1]],
        "probabilities": [0.7, 0.2],
    }
    assert entries(out) == [("=a b.mp4", ("run",), None, None), ("ü.mp4", (NAMES[1],), None, None)]
    write_predictions(over_time(folder), "json", out, ExchangeSettings(NAMES))
    assert entries(out) == [("ü.mp4", ("run",), 0.0, 0.5), ("ü.mp4", ("=sit",), 0.5, 2.0)]


@pytest.mark.parametrize("target", ["csv", "json"])
def test_several_labels(target: Any, folder: Path) -> None:
    names, settings = ("run", "sit"), ExchangeSettings(("run", "sit"), task="multilabel")
    predicted = [
        Predicted(str(folder / "videos/=a b.mp4"), (part(0.7, 0.9, labels=(1, 0)),)),
        Predicted(str(folder / "videos/deep/ü.mp4"), (part(0.2, 0.1, labels=()),)),
    ]
    out = folder / f"list.{target}"
    write_predictions(predicted, target, out, settings)
    assert [row[1] for row in entries(out, multilabel=True)] == [names, ()]
    if target == "csv":
        with pytest.raises(ConfigError, match=r"class 'a\|b' holds \|"):
            write_predictions(predicted, "csv", out, ExchangeSettings(("a|b", "c"), task="multilabel"))


def test_label_studio(folder: Path) -> None:
    """The tasks read as the videos without labels; once people have agreed, the labels are there."""
    out = folder / "tasks.json"
    settings = ExchangeSettings(NAMES, model_version="tiny", root=str(folder))
    assert write_predictions(whole(folder), "label-studio", out, settings) == [out, folder / "tasks.xml"]
    tasks = json.loads(out.read_text())
    assert tasks[0]["data"] == {"video": "/data/local-files/?d=videos/%3Da%20b.mp4", "fps": 20.0}
    (made,) = tasks[1]["predictions"]
    assert made["model_version"] == "tiny" and made["score"] == 0.7
    (result,) = made["result"]
    assert (result["from_name"], result["to_name"], result["type"]) == ("choice", "video", "choices")
    assert result["value"] == {"choices": [NAMES[1]]} and result["score"] == 0.7
    found = read_manifest(out)
    assert [Path(e.path).name for e in found] == ["=a b.mp4", "ü.mp4"] and not found.has_labels
    config = ElementTree.parse(folder / "tasks.xml").getroot()
    assert [choice.get("value") for choice in config.iter("Choice")] == [*NAMES]
    assert config.find("Choices").attrib["choice"] == "single"  # type: ignore[union-attr]
    out.write_text(json.dumps(corrected(tasks)))
    assert entries(out) == [("=a b.mp4", ("run",), None, None), ("ü.mp4", (NAMES[1],), None, None)]


def corrected(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the export of Label Studio once every prediction was accepted."""
    return [
        {
            "id": number,
            "data": task["data"],
            "annotations": [{"id": number, "result": task["predictions"][0]["result"]}],
        }
        for number, task in enumerate(tasks, 1)
    ]


def test_label_studio_over_time(folder: Path) -> None:
    out = folder / "tasks.json"
    write_predictions(over_time(folder), "label-studio", out, ExchangeSettings(NAMES, root=str(folder)))
    tasks = json.loads(out.read_text())
    results = tasks[0]["predictions"][0]["result"]
    assert [result["value"] for result in results] == [
        {"ranges": [{"start": 1, "end": 10}], "timelinelabels": ["run"]},
        {"ranges": [{"start": 11, "end": 40}], "timelinelabels": ["=sit"]},
    ]
    assert len({result["id"] for result in results}) == 2
    out.write_text(json.dumps(corrected(tasks)))
    assert entries(out) == [("ü.mp4", ("run",), 0.0, 0.5), ("ü.mp4", ("=sit",), 0.5, 2.0)]
    out.write_text(json.dumps(corrected([{**task, "data": {"video": task["data"]["video"]}} for task in tasks])))
    assert entries(out)[0][3] == pytest.approx(10 / 24)  # the configuration names a key that is missing: 24


@pytest.mark.parametrize("timed", [False, True])
def test_label_studio_takes_them(timed: bool, folder: Path) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    predicted = over_time(folder) if timed else whole(folder)
    for settings in (
        ExchangeSettings(NAMES, root=str(folder)),
        ExchangeSettings(NAMES, root=str(folder), from_name="action", to_name="clip"),
    ):
        config = interface.LabelInterface(label_studio_config(predicted, settings))
        config.validate()
        for task in label_studio_tasks(predicted, settings):
            assert config.validate_prediction(task["predictions"][0], return_errors=True) in (True, [])


def test_cvat(folder: Path) -> None:
    """CVAT has no place for predictions: what reads again are labels."""
    assert write_predictions(whole(folder), "cvat", folder / "c", ExchangeSettings(NAMES)) == [folder / "c"]
    assert entries(folder / "c") == [("=a b.mp4", ("run",), None, None), ("ü.mp4", (NAMES[1],), None, None)]
    assert 'source="auto"' in (folder / "c/ü.xml").read_text()
    write_predictions(over_time(folder), "cvat", folder / "c", ExchangeSettings(NAMES))
    assert sorted(entries(folder / "c"), key=str) == [
        ("ü.mp4", ("=sit",), 0.5, 2.0),
        ("ü.mp4", ("run",), 0.0, 0.5),
    ]


def test_via(folder: Path) -> None:
    out = folder / "project.json"
    assert write_predictions(whole(folder), "via", out, ExchangeSettings(NAMES)) == [out]
    project = json.loads(out.read_text())
    assert project["file"]["2"]["src"] == "videos/deep/ü.mp4" and project["view"]["2"] == {"fid_list": ["2"]}
    assert entries(out) == [("=a b.mp4", ("run",), None, None), ("ü.mp4", (NAMES[1],), None, None)]
    write_predictions(over_time(folder), "via", out, ExchangeSettings(NAMES))
    assert entries(out) == [("ü.mp4", ("run",), 0.0, 0.5), ("ü.mp4", ("=sit",), 0.5, 2.0)]
    several = [Predicted(str(folder / "videos/deep/ü.mp4"), (part(0.7, 0.9, labels=(1, 0)),))]
    write_predictions(several, "via", out, ExchangeSettings(("run", "sit"), task="multilabel"))
    assert [row[1] for row in entries(out, multilabel=True)] == [("run", "sit")]


def test_nothing_is_predicted_in_label_studio(folder: Path) -> None:
    settings = ExchangeSettings(("a", "b"), task="multilabel", root=str(folder))
    predicted = [Predicted(str(folder / "videos/deep/ü.mp4"), (part(0.1, 0.2, labels=()),))]
    (task,) = label_studio_tasks(predicted, settings)
    assert task["predictions"][0]["result"] == [] and 'choice="multiple"' in label_studio_config(predicted, settings)


def test_bad_places(folder: Path) -> None:
    predicted = whole(folder)
    with pytest.raises(ConfigError, match="is not below the root"):
        write_predictions(predicted, "label-studio", folder / "a.json", ExchangeSettings(NAMES, root=str(folder / "x")))
    with pytest.raises(ConfigError, match="labelling configuration would go"):
        write_predictions(predicted, "label-studio", folder / "a.xml", ExchangeSettings(NAMES, root=str(folder)))
    (folder / "file").touch()
    for target in TARGETS:
        with pytest.raises(StvidError, match=r"file.*cannot be written"):
            write_predictions(predicted, target, folder / "file/a.json", ExchangeSettings(NAMES, root=str(folder)))
    with pytest.raises(MissingFileError):
        gone = [Predicted(str(folder / "gone.mp4"), predicted[0].parts)]
        write_predictions(gone, "label-studio", folder / "a.json", ExchangeSettings(NAMES, root=str(folder)))
    assert {path.name for path in folder.iterdir()} == {"videos", "file"}
    with pytest.raises(ConfigError, match="--out"):
        to_text(predicted, "fiftyone", ExchangeSettings(NAMES))
