"""Exports of Label Studio, as its documentation shows them and as its own converter writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.commands.prep import main
from stvid.data.manifest import read_manifest
from stvid.errors import ManifestError

Annotation = dict[str, Any]


def choices(*labels: str, question: str = "choice") -> Annotation:
    return {"from_name": question, "to_name": "video", "type": "choices", "value": {"choices": [*labels]}}


def ranges(label: str, *spans: tuple[int, int]) -> Annotation:
    value = {"ranges": [{"start": a, "end": b} for a, b in spans], "timelinelabels": [label]}
    return {"from_name": "timeline", "to_name": "video", "type": "timelinelabels", "value": value}


def task(number: int, video: str, *annotations: list[Annotation], **more: Any) -> dict[str, Any]:
    made = [{"id": 10 * number + k, "result": result, "was_cancelled": False} for k, result in enumerate(annotations)]
    return {"id": number, "data": {"video": video, **more.pop("data", {})}, "annotations": made, **more}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        write(root / name, "x")


def rows(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...], float | None, float | None]]:
    manifest = read_manifest(path, **options)
    base = options.get("root", path.parent)
    return [(e.path.removeprefix(f"{base}/"), e.labels, e.start, e.end) for e in manifest]


def test_choices_and_where_the_videos_lie(tmp_path: Path) -> None:
    """Local files, uploads with the eight letters that Label Studio puts before a name, addresses, plain paths."""
    touch(tmp_path / "v", "set one/ü.mp4", "up.mp4", "deep/c.mp4", "upload/7/0a1b2c3d-kept.mp4")
    path = write(
        tmp_path / "export.json",
        [
            task(1, "/data/local-files/?d=set%20one/%C3%BC.mp4", [choices("run")]),
            task(2, "http://localhost:8080/data/local-files/?d=home/me/deep/c.mp4", [choices("jump")]),
            task(3, "/data/upload/7/89abcdef-up.mp4", [choices("run")]),
            task(4, "/data/upload/7/0a1b2c3d-kept.mp4", [choices("run")]),
            task(5, "https://example.org/d.mp4?token=1", [choices("jump")]),
            task(6, "gone.mp4", [choices("jump")]),
        ],
    )
    assert rows(path, root=tmp_path / "v") == [
        ("set one/ü.mp4", ("run",), None, None),
        ("deep/c.mp4", ("jump",), None, None),
        ("up.mp4", ("run",), None, None),
        ("upload/7/0a1b2c3d-kept.mp4", ("run",), None, None),
        ("https://example.org/d.mp4?token=1", ("jump",), None, None),
        ("gone.mp4", ("jump",), None, None),
    ]
    (note,) = read_manifest(path, root=tmp_path / "v").notes
    assert note.startswith(f"{path}: 1 of its videos are not below {tmp_path / 'v'}, such as gone.mp4")


def test_several_choices_are_several_labels(tmp_path: Path) -> None:
    content = [task(1, "a.mp4", [choices("run", "jump")]), task(2, "b.mp4", [choices("run")]), task(3, "c.mp4", [])]
    path = write(tmp_path / "export.json", content)
    found = read_manifest(path, multilabel=True)
    assert [e.labels for e in found] == [("jump", "run"), ("run",), ()]
    assert len(read_manifest(path)) == 2
    assert any("left out: videos without a label (1)" in note for note in read_manifest(path).notes)


def test_which_annotation_counts(tmp_path: Path) -> None:
    old, new = ({"result": [choices(name)], "updated_at": f"2026-0{k}-01"} for k, name in ((1, "old"), (2, "new")))
    content = [
        {"id": 1, "data": {"video": "a.mp4"}, "annotations": [old, new]},
        {"id": 2, "data": {"video": "b.mp4"}, "annotations": [{**old, "ground_truth": True}, new]},
        {"id": 3, "data": {"video": "c.mp4"}, "annotations": [{**new, "was_cancelled": True}, old]},
        {"id": 4, "data": {"video": "d.mp4"}, "annotations": [], "predictions": [{"result": [choices("guess")]}]},
        {"id": 5, "data": {"video": "e.mp4"}, "annotations": [old, old]},
    ]
    found = read_manifest(write(tmp_path / "export.json", content))
    assert [e.labels[0] for e in found] == ["new", "old", "old", "old"]
    (text,) = {re.sub(r"^.*?export.json: ", "", note) for note in found.notes if "left out" in note}
    assert text == "left out: annotations that were cancelled (1), tasks that nobody has annotated (1)"
    assert any("2 tasks have annotations that differ" in note for note in found.notes)


def test_predictions_are_no_labels(tmp_path: Path) -> None:
    content = [{"data": {"video": "a.mp4"}, "predictions": [{"result": [choices("guess")], "score": 0.9}]}]
    found = read_manifest(write(tmp_path / "tasks.json", content))
    assert len(found) == 1 and not found.has_labels
    assert any("predictions are not taken for labels" in note for note in found.notes)


def test_ranges_are_counted_by_the_rate_of_label_studio(tmp_path: Path) -> None:
    """Frames run from 1 and both ends are included: 1 to 25 is the first second at 25 frames a second."""
    content = [task(1, "a.mp4", [ranges("run", (1, 25), (51, 51)), ranges("jump", (26, 50))], data={"fps": "25"})]
    path = write(tmp_path / "export.json", content)
    expected = [("a.mp4", ("run",), 0.0, 1.0), ("a.mp4", ("run",), 2.0, 2.04), ("a.mp4", ("jump",), 1.0, 2.0)]
    assert rows(path) == expected
    del content[0]["data"]["fps"]
    write(path, content)
    with pytest.raises(ManifestError, match=r"task 1 \(id 1\): has ranges of frames.* --fps 24"):
        read_manifest(path)
    for config, rate in [
        ('<View><Video name="video" value="$video" frameRate="25"/></View>', 25),
        ('<View><Video name="video" value="$video"/></View>', 24),
        ('<View><Video name="video" value="$video" frameRate="$rate"/></View>', 24),
    ]:
        write(tmp_path / "export.xml", config)
        assert rows(path)[0][3] == pytest.approx(25 / rate)
    content[0]["data"]["rate"] = 12.5
    write(path, content)
    assert rows(path)[0][3] == 2.0


def test_parts_in_seconds(tmp_path: Path) -> None:
    """Labels of sound beside a video have their times in seconds."""
    value = {"start": 0.5, "end": 2.25, "channel": 0, "labels": ["clap"]}
    content = [task(1, "a.mp4", [{"from_name": "l", "to_name": "audio", "type": "labels", "value": value}])]
    assert rows(write(tmp_path / "export.json", content)) == [("a.mp4", ("clap",), 0.5, 2.25)]


def test_two_questions_need_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = {"from_name": "box", "to_name": "video", "type": "videorectangle", "value": {"sequence": []}}
    content = [task(1, "a.mp4", [choices("run"), choices("good", question="quality"), box])]
    path = write(tmp_path / "export.json", content)
    touch(tmp_path, "a.mp4")
    with pytest.raises(ManifestError, match=r"2 names \(control: choice, quality\)"):
        read_manifest(path)
    command = ["manifest", "label-studio", str(path), "--out", str(tmp_path / "list.csv"), "--field"]
    assert main([*command, "quality"]) == 0
    assert (tmp_path / "list.csv").read_text() == "path,label\na.mp4,good\n"
    assert "left out: results of type videorectangle (1)" in capsys.readouterr().err
    assert main([*command, "qality"]) == 1
    assert "no control 'qality' holds labels; it has choice, quality; nearest: quality" in capsys.readouterr().err


def test_a_list_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "v", "a.mp4", "b.mp4")
    content = [
        task(1, "a.mp4", [ranges("run", (1, 24)), ranges("=jump", (25, 31))]),
        task(2, "/data/local-files/?d=x/b.mp4", [ranges("run", (1, 1))]),
        task(3, "c.mp4", [ranges("run", (1, 1))]),
    ]
    path = write(tmp_path / "export.json", content)
    command = ["manifest", "label-studio", str(path), "--root", str(tmp_path / "v"), "--out", str(tmp_path / "l.csv")]
    assert main([*command, "--fps", "24"]) == 0
    out, err = capsys.readouterr()
    assert "3 of 4 annotated videos are there" in out and "1 missing" in err
    assert (tmp_path / "l_classes.txt").read_text() == "=jump\nrun\n"
    assert [(e.labels, e.start, e.end) for e in read_manifest(tmp_path / "l.csv")] == [
        (("run",), 0.0, 1.0),
        (("=jump",), 1.0, pytest.approx(31 / 24, abs=1e-6)),
        (("run",), 0.0, pytest.approx(1 / 24, abs=1e-6)),
    ]
    for wrong, words in [(["--fps", "0"], "--fps 0"), (["--part", "test"], "--part: only for hmdb51")]:
        assert main([*command, *wrong]) == 2 and words in capsys.readouterr().err
    assert main(["manifest", "ucf101", str(path), "--out", "x", "--field", "y"]) == 2
    assert "--field: only for label-studio, cvat" in capsys.readouterr().err


def test_several_labels_in_a_written_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    content = [task(1, "a.mp4", [choices("run", "jump")]), task(2, "b.mp4", [choices("run")]), task(3, "c.mp4", [])]
    path = write(tmp_path / "export.json", content)
    assert main(["manifest", "label-studio", str(path), "--out", str(tmp_path / "l.csv")]) == 0
    found = read_manifest(tmp_path / "l.csv", multilabel=True)
    assert [{*e.labels} for e in found] == [{"run", "jump"}, {"run"}, set()]


MIN = [
    {
        "video": "/data/local-files/?d=a.mp4",
        "fps": 25,
        "id": 4,
        "choice": "run",
        "annotator": 1,
        "annotation_id": 7,
        "created_at": "2026-01-02T00:00:00Z",
        "updated_at": "2026-01-02T00:00:00Z",
        "lead_time": 3.2,
    },
    {"video": "b.mp4", "title": "x", "id": 5, "choice": {"choices": ["run", "jump"]}, "annotator": 1, "lead_time": 1},
]


def test_json_min(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    path = write(tmp_path / "export.json", MIN)
    assert rows(path, multilabel=True) == [("a.mp4", ("run",), None, None), ("b.mp4", ("jump", "run"), None, None)]


def test_json_min_of_ranges(tmp_path: Path) -> None:
    value = [{"ranges": [{"start": 26, "end": 50}], "timelinelabels": ["run"]}]
    path = write(
        tmp_path / "export.json", [{"video": "a.mp4", "fps": 25, "id": 1, "t": value, "annotator": 1, "lead_time": 0}]
    )
    assert rows(path) == [("a.mp4", ("run",), 1.0, 2.0)]


CONFIG = """<View><Video name="video" value="$video" frameRate="$fps"/>
<Choices name="choice" toName="video" choice="multiple"><Choice value="run"/><Choice value="jump"/></Choices>
<TimelineLabels name="timeline" toName="video"><Label value="run"/><Label value="jump"/></TimelineLabels></View>"""


def test_what_label_studios_own_converter_writes(tmp_path: Path) -> None:
    """JSON and JSON-MIN of one project, written by label-studio-sdk, are the same list."""
    converter = pytest.importorskip("label_studio_sdk.converter")
    answers = [[choices("run")], [choices("run", "jump")]], [[ranges("run", (1, 25)), ranges("jump", (26, 40))]]
    for name, results in zip(("choices", "ranges"), answers, strict=True):
        content = [task(k, f"{k}.mp4", result, data={"fps": 25}) for k, result in enumerate(results, 1)]
        full = write(tmp_path / name / "tasks.json", content)
        made = converter.Converter(CONFIG, str(tmp_path))
        made.convert_to_json_min(str(full), str(tmp_path / name / "min"), is_dir=False)
        found = rows(full, multilabel=True)
        again = rows(tmp_path / name / "min" / "result.json", multilabel=True)
        assert again == found and len(found) == 2, name


def test_what_label_studio_takes_for_valid(tmp_path: Path) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(CONFIG)
    for result in (choices("run", "jump"), ranges("run", (1, 25))):
        assert interface.validate_annotation({"result": [{"id": "a", **result}]})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"data": {}}], r"task 1: its data names no video \(it is empty\)"),
        ([{"data": {"image": "a.jpg"}}], r"task 1: its data names no video \(image\)"),
        ([task(1, "rtsp://x/a.mp4", [choices("run")])], "files are not read from addresses"),
        ([task(1, "a.mp4", [ranges("run", (5, 3))], data={"fps": 25})], "a range ends at frame 3, before frame 5"),
        ([task(1, "a.mp4", [ranges("run", (5, 9))], data={"fps": "fast"})], "fps is 'fast', not a number of frames"),
        ([task(1, "a.mp4", [choices(" ")])], "a label: is ' ', not a name"),
        ([task(1, "a.mp4", [{"type": "choices", "from_name": "c", "value": {"choices": "run"}}])], "not a list"),
    ],
)
def test_one_line_says_what_is_wrong(content: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "export.json", content)
    with pytest.raises(ManifestError, match=words) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}, task 1")


def test_all_damage_is_refused_or_read(refuse_all_damage: Callable[[str, str, Any], None]) -> None:
    full = task(1, "a.mp4", [choices("run"), ranges("jump", (1, 5))][1:], [choices("run")], data={"fps": 25})
    refuse_all_damage("full.json", "label-studio", [full, task(2, "b.mp4", [choices("run")])])
    refuse_all_damage("min.json", "label-studio", MIN)
