"""Data sets of FiftyOne, as its exporters write them; with FiftyOne itself where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stvid.commands.prep import main
from stvid.data.exchange.fiftyone import read_dataset
from stvid.data.manifest import read_manifest
from stvid.errors import ManifestError


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def rows(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...], float | None, float | None]]:
    found = read_manifest(path, **options)
    return [
        (Path(e.path).name, e.labels, *(None if at is None else round(at, 6) for at in (e.start, e.end))) for e in found
    ]


@pytest.fixture
def folder(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    """A data set of two videos of 40 frames at 20 a second."""
    content = make_video("fiftyone.mp4", frames=40, fps=20).read_bytes()
    for name in ("a.mp4", "deep/b.mkv.mp4"):
        path = tmp_path / "set/data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "set"


def test_temporal_detections(folder: Path) -> None:
    labels = {
        "a": [{"label": 0, "support": [1, 20], "confidence": 0.5}, {"label": "swim", "timestamps": [0.5, 1.25]}],
        "deep/b.mkv": [{"label": 1, "support": [40, 40]}],
    }
    write(folder / "labels.json", {"classes": ["run", "jump", "swim"], "labels": labels})
    expected = [
        ("a.mp4", ("run",), 0.0, 1.0),
        ("a.mp4", ("swim",), 0.5, 1.25),
        ("b.mkv.mp4", ("jump",), 1.95, 2.0),
    ]
    assert rows(folder) == expected and rows(folder / "labels.json") == expected
    assert read_manifest(folder).class_names == ("run", "jump", "swim")  # not sorted: the order is that of the file


def test_one_class_a_video_and_several(folder: Path) -> None:
    write(folder / "labels.json", {"classes": None, "labels": {"a": "run", "deep/b.mkv": {"label": "sit"}}})
    assert [row[:2] for row in rows(folder)] == [("a.mp4", ("run",)), ("b.mkv.mp4", ("sit",))]
    write(folder / "labels.json", {"classes": ["x", "y"], "labels": {"a": [0, 1], "deep/b.mkv": None}})
    assert [row[1] for row in rows(folder, multilabel=True)] == [("x", "y"), ()]


def test_videos_that_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    """``data.json`` names them, or the labels have absolute paths."""
    video = (folder / "data/a.mp4").rename(tmp_path / "a.mp4")
    write(folder / "data.json", {"a": str(video)})
    write(folder / "labels.json", {"classes": ["x"], "labels": {"a": 0}})
    assert [e.path for e in read_manifest(folder)] == [str(video)]
    (folder / "data.json").unlink()
    write(folder / "labels.json", {"classes": ["x"], "labels": {str(video): 0}})
    assert [e.path for e in read_manifest(folder)] == [str(video)]


SAMPLES = [
    {
        "filepath": "data/a.mp4",
        "tags": ["train", "odd"],
        "ground_truth": {"_cls": "Classification", "label": "run", "tags": []},
        "predictions": {"_cls": "Classification", "label": "guess", "confidence": 0.5},
        "parts": {"_cls": "TemporalDetections", "detections": [{"label": "start", "support": [1, 10]}]},
    },
    {"filepath": "data/deep/b.mkv.mp4", "tags": ["test"], "ground_truth": {"_cls": "Classification", "label": "sit"}},
]


def test_whole_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "metadata.json", {"media_type": "video"})
    write(folder / "samples.json", {"samples": SAMPLES})
    with pytest.raises(ManifestError, match=r"2 names \(field: ground_truth, parts\)"):
        read_manifest(folder)
    out = folder.parent / "list.csv"
    assert main(["manifest", "fiftyone", str(folder), "--out", str(out), "--field", "ground_truth"]) == 0
    assert out.read_text() == "path,label,split\nset/data/a.mp4,run,train\nset/data/deep/b.mkv.mp4,sit,test\n"
    assert main(["manifest", "fiftyone", str(folder), "--out", str(out), "--field", "parts"]) == 0
    assert out.read_text() == "path,label,start,end,split\nset/data/a.mp4,start,0,0.5,train\n"
    assert "left out: videos without a label (1)" in capsys.readouterr().err


def test_predictions_are_labels_only_if_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "metadata.json", {"media_type": "video"})
    write(folder / "samples.json", {"samples": [{k: SAMPLES[0][k] for k in ("filepath", "predictions")}]})
    found = read_manifest(folder)
    assert len(found) == 1 and not found.has_labels and "--field predictions" in found.notes[0]
    out = folder.parent / "list.csv"
    assert main(["manifest", "fiftyone", str(folder), "--out", str(out), "--field", "predictions"]) == 0
    assert out.read_text() == "path,label\nset/data/a.mp4,guess\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"classes": ["x"], "labels": {"a": 1}}, "labels 'a': class 1 is none of the 1"),
        ({"classes": ["x"], "labels": {"a": [{"label": 0, "support": [5, 2]}]}}, "ends at frame 5|ends at frame 2"),
        ({"classes": ["x"], "labels": {"a": [{"label": 0, "support": [1, 41]}]}}, "beyond the 40 frames"),
        ({"classes": ["x"], "labels": {"a": [{"label": 0, "support": [1]}]}}, "not begin and end"),
        ({"classes": ["x"], "labels": {"a": [{"label": 0, "timestamps": [2, 1]}]}}, "ends at 1 s, not after 2 s"),
        ({"classes": [], "labels": {}}, "names no video"),
        ({"labels": {}}, "is no data set of FiftyOne"),
    ],
)
def test_one_line_says_what_is_wrong(content: Any, words: str, folder: Path) -> None:
    write(folder / "labels.json", content)
    with pytest.raises(ManifestError, match=words) as caught:
        read_manifest(folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


def test_all_damage_is_refused_or_read(refuse_all_damage: Callable[[str, str, Any], None]) -> None:
    labels = {"a": [{"label": 0, "timestamps": [0.5, 1]}, {"label": "x", "support": [1, 2]}], "b": "x"}
    refuse_all_damage("labels.json", "fiftyone", {"classes": ["x", "y"], "labels": labels})
    refuse_all_damage("samples.json", "fiftyone", {"samples": SAMPLES[1:]})


@dataclass
class Label:
    """Stands for the labels of FiftyOne, which have these names."""

    label: str | None = None
    support: list[int] | None = None
    classifications: list[Label] | None = None
    detections: list[Label] | None = None


@dataclass
class Sample:
    """Stands for a sample of FiftyOne."""

    filepath: str
    tags: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def field_names(self) -> tuple[str, ...]:
        return ("filepath", "tags", *self.fields)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


def test_a_data_set_that_is_open(folder: Path) -> None:
    video = str(folder / "data/a.mp4")
    whole = [Sample(video, ["train"], {"truth": Label("run")}), Sample("b.mp4", ["validation"], {"truth": None})]
    found = read_dataset(whole, "truth")
    assert [(e.path, e.labels) for e in found] == [(video, ("run",))]
    assert any("videos without a label (1)" in note for note in found.notes)
    several = [Sample(video, [], {"truth": Label(classifications=[Label("run"), Label("sit")])}), Sample("b.mp4")]
    assert [e.labels for e in read_dataset(several, "truth", multilabel=True)] == [("run", "sit"), ()]
    parts = [Sample(video, [], {"truth": Label(detections=[Label("run", [1, 20])])})]
    assert [(e.start, e.end) for e in read_dataset(parts, "truth")] == [(0.0, 1.0)]
    with pytest.raises(ManifestError, match="its samples have no field 'ground_truth'"):
        read_dataset(whole)
    with pytest.raises(ManifestError, match=r"sample 1: truth: label: is 3\.5, not a name"):
        read_dataset([Sample(video, [], {"truth": Label(3.5)})], "truth")  # type: ignore[arg-type]


def test_samples_of_fiftyone_itself(folder: Path) -> None:
    """Samples and labels need no database, so that they are the real ones here; data sets do."""
    fo = pytest.importorskip("fiftyone")
    video = str(folder / "data/a.mp4")
    detections = fo.TemporalDetections(detections=[fo.TemporalDetection(label="run", support=[1, 20])])
    samples = [
        fo.Sample(filepath=video, tags=["train"], ground_truth=fo.Classification(label="sit"), parts=detections),
        fo.Sample(filepath="b.mp4", several=fo.Classifications(classifications=[fo.Classification(label="x")])),
    ]
    assert [(e.path, e.labels) for e in read_dataset(samples)] == [(video, ("sit",))]
    assert [(e.labels, e.start, e.end) for e in read_dataset(samples, "parts")] == [(("run",), 0.0, 1.0)]
    assert [e.labels for e in read_dataset(samples, "several")] == [("x",)]
    write(folder / "metadata.json", {"media_type": "video"})
    write(folder / "samples.json", {"samples": [json.loads(json.dumps(samples[0].to_dict(), default=str))]})
    with pytest.raises(ManifestError, match="2 names"):
        read_manifest(folder)
