"""``stvid predict --to``: from a model to files that people correct, and back."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.data.manifest import read_manifest

Call = Callable[..., tuple[int, str, str]]
NAMES = {"left", "right", "turn"}


@pytest.fixture
def videos(video: str, tmp_path: Path) -> list[str]:
    (tmp_path / "videos").mkdir()
    return [str(shutil.copy(video, tmp_path / "videos" / name)) for name in ("a.mp4", "b.mp4")]


@pytest.mark.parametrize("target", ["label-studio", "fiftyone", "cvat", "via", "csv", "json"])
@pytest.mark.parametrize("options", [[], ["--window", "1s"]])
def test_what_was_written_is_a_list_of_videos(
    target: str, options: list[str], checkpoint: str, videos: list[str], tmp_path: Path, call: Call
) -> None:
    out = tmp_path / {"fiftyone": "set", "cvat": "set", "csv": "list.csv"}.get(target, "list.json")
    code, text, err = call("predict", *videos, "--checkpoint", checkpoint, "--to", target, "--out", out, *options)
    assert code == 0 and f"2 of 2 videos: {out}" in text and not err
    found = read_manifest(out)
    assert {e.path for e in found} == {*videos}
    if target in ("csv", "json", "cvat", "via"):
        assert {*found.used_classes} <= NAMES and found.has_labels
        if target in ("csv", "json", "via"):  # in CVAT a part that is the whole video is the whole video
            assert all((e.end is not None) == bool(options) for e in found)
    else:
        assert not found.has_labels  # the tools keep predictions apart, and so does the reader


def test_the_labels_are_those_that_are_printed(checkpoint: str, videos: list[str], tmp_path: Path, call: Call) -> None:
    _, out, _ = call("predict", *videos, "--checkpoint", checkpoint, "--json")
    best = {row["path"]: row["classes"][0] for row in json.loads(out)}
    call("predict", *videos, "--checkpoint", checkpoint, "--to", "csv", "--out", tmp_path / "list.csv")
    assert {e.path: e.labels[0] for e in read_manifest(tmp_path / "list.csv")} == best
    _, out, _ = call("predict", *videos, "--checkpoint", checkpoint, "--to", "label-studio", "--root", tmp_path)
    tasks = json.loads(out)
    assert [task["data"]["video"] for task in tasks] == [f"/data/local-files/?d=videos/{n}.mp4" for n in "ab"]
    results = [task["predictions"][0]["result"][0] for task in tasks]
    assert [result["value"]["choices"] for result in results] == [[best[path]] for path in videos]
    assert tasks[0]["predictions"][0]["model_version"] == "tiny.safetensors"


def test_cvat_and_via_say_the_same_parts(checkpoint: str, videos: list[str], tmp_path: Path, call: Call) -> None:
    """CVAT counts frames, so that its parts begin and end with one."""
    rows = {}
    for target, name in (("cvat", "set"), ("via", "project.json"), ("csv", "list.csv")):
        out = tmp_path / name
        options = ["--checkpoint", checkpoint, "--window", "0.4s", "--to", target, "--out", out]
        assert call("predict", *videos, *options)[0] == 0
        rows[target] = sorted((e.path, e.start or 0.0, e.end or 2.0, e.labels) for e in read_manifest(out))
    assert len(rows["csv"]) > 2
    for row, *others in zip(rows["csv"], rows["via"], rows["cvat"], strict=True):
        for other in others:
            assert (other[0], other[3]) == (row[0], row[3]) and other[1:3] == pytest.approx(row[1:3], abs=1 / 25)
    assert 'source="auto"' in (tmp_path / "set/a.xml").read_text()


def test_standard_output(checkpoint: str, videos: list[str], tmp_path: Path, call: Call) -> None:
    common = ["predict", videos[0], "--checkpoint", checkpoint, "--to"]
    code, out, err = call(*common, "csv")
    assert code == 0 and not err and next(csv.DictReader(out.splitlines()))["path"] == videos[0]
    code, out, err = call(*common, "json", "--topk", 1)
    assert code == 0 and len(json.loads(out)[0]["classes"]) == 1
    code, out, err = call(*common, "via")
    assert code == 0 and json.loads(out)["file"]["1"]["src"] == videos[0]
    code, out, err = call(*common, "label-studio", "--from_name", "action", "--to_name", "clip")
    assert code == 0 and json.loads(out)[0]["predictions"][0]["result"][0]["from_name"] == "action"
    assert '<Choices name="action" toName="clip"' in err and "LOCAL_FILES_DOCUMENT_ROOT=" in err


def test_a_list_is_predicted(checkpoint: str, videos: list[str], tmp_path: Path, call: Call) -> None:
    (tmp_path / "list.csv").write_text("path,who\nvideos/a.mp4,x\nvideos/b.mp4,y\n")
    code, out, err = call("predict", tmp_path / "list.csv", videos[0], "--checkpoint", checkpoint, "--to", "json")
    assert code == 0 and [row["path"] for row in json.loads(out)] == videos and "ignored columns: who" in err
    (tmp_path / "list.csv").write_text("path,label,start\nvideos/a.mp4,x,1\n")
    code, _, err = call("predict", tmp_path / "list.csv", "--checkpoint", checkpoint)
    assert code == 2 and "lists parts of videos" in err and len(err.splitlines()) == 1


def test_videos_that_cannot_be_read_are_left_out(
    checkpoint: str, videos: list[str], tmp_path: Path, call: Call
) -> None:
    Path(videos[1]).write_bytes(b"damaged")
    for options in ([], ["--window", "1s"]):
        out = tmp_path / "list.json"
        common = ["--checkpoint", checkpoint, "--to", "json", "--out", out, *options]
        code, text, err = call("predict", *videos, *common)
        assert code == 1 and "1 of 2 videos" in text and videos[1] in err and len(err.splitlines()) == 1
        assert {e.path for e in read_manifest(out)} == {videos[0]}
        out.unlink()
        code, text, err = call("predict", videos[1], *common)
        assert code == 1 and not text and not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--root", "."], "--root: belongs to --to label-studio"),
        (["--to", "csv", "--from_name", "x"], "--from_name: belongs to --to label-studio"),
        (["--to", "csv", "--json"], "--json: prints; with --to give --to json"),
        (["--to", "csv", "--stream", "true"], "--stream: says what was seen so far"),
        (["--to", "fiftyone"], "--to fiftyone: writes a folder"),
        (["--to", "cvat"], "--to cvat: writes a folder"),
        (["--to", "cvat", "--out", "/proc"], "/proc: is there already and is no folder of CVAT"),
        (["--to", "xml"], "--to"),
        (["--to", "label-studio", "--from_name", "video"], "both 'video'"),
        (["--to", "csv", "--window", "2h"], "--window: '2h'"),
        (["--to", "label-studio", "--root", "/proc"], "is not below the root /proc"),
        (["--to", "label-studio", "--out", "a.xml"], "a.xml: is where the labelling configuration would go"),
        (["--to", "fiftyone", "--out", "/proc"], "/proc: is there already and is no data set of FiftyOne"),
    ],
)
def test_bad_calls(
    options: list[str], words: str, checkpoint: str, video: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before anything is predicted."""
    monkeypatch.setattr("stvid.evaluation.predict.predict", None)
    code, _, err = call("predict", video, "--checkpoint", checkpoint, *options)
    assert code == 2 and words in err and len(err.splitlines()) == 1


def test_a_camera_is_no_file(checkpoint: str, call: Call) -> None:
    code, _, err = call("predict", "rtsp://host/1", "--checkpoint", checkpoint, "--to", "csv", "--window", "1s")
    assert code == 2 and "of which no file stays" in err
