"""Tasks of Label Studio, from labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stvid.data.exchange.label_studio_tasks import LabelStudioProject, labelling_config, served_from, tasks_of
from stvid.data.exchange.labelled import LabelledPart, LabelledVideo
from stvid.errors import ConfigError


def test_labels_are_annotations_and_predictions_are_not(make_video: Callable[..., Path]) -> None:
    path = make_video("tasks.mp4", frames=40, fps=20)
    project = LabelStudioProject(("run", "sit"), timed=True, root=str(path.parent))
    said = LabelledVideo(str(path), (LabelledPart(("run",), None, 0.5), LabelledPart(("sit",), 0.5, None)))
    (task,) = tasks_of([said], project)
    assert task["data"]["fps"] == 20 and "predictions" not in task
    results = task["annotations"][0]["result"]
    assert [result["value"]["ranges"] for result in results] == [[{"start": 1, "end": 10}], [{"start": 11, "end": 40}]]
    assert all("score" not in result for result in results)
    guessed = LabelledVideo(str(path), (LabelledPart(("run",), 0.0, 1.0, 0.75),))
    (task,) = tasks_of([guessed], project, model_version="net")
    assert "annotations" not in task and task["predictions"][0]["score"] == 0.75
    assert task["predictions"][0]["result"][0]["score"] == 0.75
    (task,) = tasks_of([LabelledVideo(str(path), (LabelledPart(()),))], project)
    assert [*task] == ["data"]  # nobody has annotated it


@pytest.mark.parametrize(("timed", "control"), [(True, "TimelineLabels"), (False, "Choices")])
def test_the_configuration_fits(timed: bool, control: str) -> None:
    project = LabelStudioProject(('a "<b>"', "c"), timed=timed, multilabel=True, to_name="clip")
    root = ElementTree.fromstring(labelling_config(project))
    (found,) = root.iter(control)
    assert found.get("name") == project.control and found.get("toName") == "clip"
    assert [label.get("value") for label in found] == ['a "<b>"', "c"]


def test_what_label_studio_serves(tmp_path: Path) -> None:
    assert served_from(str(tmp_path / "x/a b.mp4"), str(tmp_path)) == "/data/local-files/?d=x/a%20b.mp4"
    assert served_from("https://host/a.mp4", str(tmp_path)) == "https://host/a.mp4"
    with pytest.raises(ConfigError, match="is not below the root"):
        served_from("/else/a.mp4", str(tmp_path))
