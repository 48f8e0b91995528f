"""Parquet, JSON and data sets of Hugging Face as lists of videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.commands.prep import main
from stvid.data.exchange.tables import read_hub_dataset, to_hub_dataset, write_videos
from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.errors import ManifestError

ROWS: list[dict[str, Any]] = [
    {"path": "a.mp4", "label": "run", "start": None, "end": 2.5, "split": "train", "group": 1},
    {"path": "b/ü.mp4", "label": "sit", "start": 1, "end": None, "split": "val", "group": None},
]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def rows(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...], float | None, float | None]]:
    found = read_manifest(path, **options)
    return [(Path(e.path).name, e.labels, e.start, e.end) for e in found]


EXPECTED = [("a.mp4", ("run",), None, 2.5), ("ü.mp4", ("sit",), 1.0, None)]


def test_json(tmp_path: Path) -> None:
    path = write(tmp_path / "list.json", ROWS)
    assert rows(path) == EXPECTED
    assert (
        read_manifest(path, splits=("val",)).splits == ("train", "val")
        and len(read_manifest(path, splits=("val",))) == 1
    )
    several = [{"path": "a.mp4", "label": ["run", "sit"], "score": 1}, {"path": "b.mp4", "label": []}]
    path = write(tmp_path / "list.json", several)
    assert [row[1] for row in rows(path, multilabel=True)] == [("run", "sit"), ()]
    assert any("ignored columns: score" in note for note in read_manifest(path, multilabel=True).notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"path": "a.mp4", "label": "x"}, 3], "row 2: is 3, not a table"),
        ([{"path": "a.mp4", "label": {"a": 1}}], "row 1: label: is .*, not a text or a number"),
        ([{"path": "a.mp4", "label": ["a|b"]}], "holds|has a label with |"),
        ([{"path": "a.mp4", "label": "x", "start": "soon"}], "line 1: start is 'soon'"),
        ([{"path": None, "label": "x"}], "line 1: has no path"),
        ([{"path": "a.mp4", "labels": "x"}], "unknown column 'labels'; use path,label,start,end; nearest: label"),
    ],
)
def test_one_line_says_what_is_wrong(content: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "list.json", content)
    with pytest.raises(ManifestError, match=words) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_all_damage_is_refused_or_read(refuse_all_damage: Callable[[str, str, Any], None]) -> None:
    refuse_all_damage("list.json", "json", ROWS)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert rows(path) == EXPECTED
    assert [read_manifest(path).groups is not None, read_manifest(path).splits] == [True, ("train", "val")]
    several = [{"path": "a.mp4", "label": ["run", "sit"]}, {"path": "b.mp4", "label": []}]
    parquet.write_table(pyarrow.Table.from_pylist(several), path)
    assert [row[1] for row in rows(path, multilabel=True)] == [("run", "sit"), ()]
    numbers = pyarrow.table({"path": ["a.mp4", "b.mp4"], "label": [1, 0], "x": [{"y": 1}, None]})
    parquet.write_table(numbers, path)
    assert [row[1] for row in rows(path)] == [("1",), ("0",)]
    whole = path.read_bytes()
    for length in (0, 4, 40, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ManifestError, match="is no Parquet file that can be read") as caught:
            read_manifest(path)
        assert "\n" not in str(caught.value)
    parquet.write_table(pyarrow.table({"file": ["a.mp4"]}), path)
    with pytest.raises(ManifestError, match=r"has no column 'path' \(file\)"):
        read_manifest(path)


def test_parquet_without_its_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        (tmp_path / "list.parquet").write_bytes(b"PAR1")
        assert main(["scan", str(tmp_path / "list.parquet")]) == 1
        assert "pip install 'stvid[parquet]'" in capsys.readouterr().err


def test_a_list_of_parquet_is_written_as_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.mp4").touch()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "list.parquet")
    assert main(["manifest", "parquet", str(tmp_path / "list.parquet"), "--out", str(tmp_path / "list.csv")]) == 0
    assert (tmp_path / "list.csv").read_text() == "path,label,start,end,split\na.mp4,run,,2.5,train\n"


@pytest.fixture
def videos(make_video: Callable[..., Path], tmp_path: Path) -> list[str]:
    content = make_video("hub.mp4", frames=20, fps=20).read_bytes()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(content + name.encode())
    return [str(tmp_path / name) for name in ("a.mp4", "b.mp4")]


def test_a_data_set_of_hugging_face(videos: list[str], tmp_path: Path) -> None:
    """The order of a ``ClassLabel`` is that of the classes; videos are not decoded."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"video": datasets.Video(), "label": datasets.ClassLabel(names=["sit", "run"])})
    made = datasets.Dataset.from_dict({"video": videos, "label": [1, 0]}, features=features)
    for found in (read_hub_dataset(made), read_hub_dataset(made.with_format("numpy"))):
        assert [(e.path, e.labels) for e in found] == [(videos[0], ("run",)), (videos[1], ("sit",))]
        assert found.class_names == ("sit", "run")
    parts = read_hub_dataset(
        datasets.DatasetDict({"train": made.select([0]), "test": made.select([1]).map(lambda row: row)}), root="."
    )
    assert parts.splits == ("test", "train")
    paths = made.remove_columns("video").add_column("video", videos)  # videos themselves would be saved as bytes
    paths.save_to_disk(str(tmp_path / "saved"))
    found = read_manifest(tmp_path / "saved")
    assert [e.path for e in found] == videos and found.class_names == ("sit", "run")
    several = datasets.Dataset.from_dict({"video": videos, "labels": [["run", "sit"], []]})
    several = several.cast_column("video", datasets.Video())
    assert [e.labels for e in read_hub_dataset(several, multilabel=True)] == [("run", "sit"), ()]
    with pytest.raises(ManifestError, match="has no column 'lable'; nearest: label"):
        read_hub_dataset(made, label="lable")


def test_a_list_goes_to_hugging_face_and_back(videos: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = [
        VideoEntry(videos[0], ("run",), 0.5, 1.0),
        VideoEntry(videos[0], ("sit",), 1.0),
        VideoEntry(videos[1], ("run",)),
    ]
    several = [VideoEntry(videos[0], ("sit", "run")), VideoEntry(videos[1])]
    for entries, multilabel in ((parts, False), (several, True), ([VideoEntry(path) for path in videos], False)):
        names = ["sit", "run"] if entries[0].labels else None
        made = Manifest.from_entries(entries, class_names=names, multilabel=multilabel)
        hub = to_hub_dataset(made)
        assert isinstance(hub.features["video"], datasets.Video)
        again = read_hub_dataset(hub, multilabel=multilabel)
        assert list(again) == list(made) and again.class_names == made.class_names
        hub.to_parquet(str(tmp_path / "list.parquet"))
        out = tmp_path / "list.csv"
        assert main(["manifest", "hugging-face", str(tmp_path / "list.parquet"), "--out", str(out)]) == 0
        listed = read_manifest(out, multilabel=multilabel)
        assert [({*e.labels}, e.start or 0, e.end) for e in listed] == [
            ({*e.labels}, e.start or 0, e.end) for e in made
        ]


def test_videos_that_lie_in_the_data_set(videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    contents = [{"path": Path(path).name, "bytes": Path(path).read_bytes()} for path in videos]
    for path in videos:
        Path(path).unlink()
    features = datasets.Features({"video": datasets.Video(), "label": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"video": contents, "label": ["run", "sit"]}, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "made.parquet"))
    for name in ("saved", "made.parquet"):
        stored = read_manifest(tmp_path / name)
        assert [stored.content(row) for row in range(2)] == [content["bytes"] for content in contents]
        out = tmp_path / f"{name}_list.csv"
        assert main(["manifest", "hugging-face", str(tmp_path / name), "--out", str(out)]) == 0, capsys.readouterr().err
        found = read_manifest(out)
        assert [e.labels[0] for e in found] == ["run", "sit"]
        assert [Path(e.path).read_bytes() for e in found] == [content["bytes"] for content in contents]
        assert Path(found[0].path).parent == tmp_path / f"{name}_list_videos"


def test_damaged_folders_of_hugging_face(videos: list[str], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ManifestError, match=r"has no column of videos \(text\)"):
        read_manifest(tmp_path / "saved")
    for file in sorted((tmp_path / "saved").iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ManifestError) as caught:
            read_manifest(tmp_path / "saved")
        assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)
        file.write_bytes(whole)


def test_videos_are_written_under_names_of_their_own(tmp_path: Path) -> None:
    first, again, other, nameless = (
        write_videos(tmp_path / "v", name, content)
        for name, content in (("../../x/a.avi", b"1"), ("a.avi", b"1"), ("a.avi", b"2"), (None, b"3"))
    )
    assert first == again != other and first.name.startswith("a-") and first.suffix == ".avi"
    assert nameless.suffix == ".mp4" and {path.parent for path in (first, other, nameless)} == {tmp_path / "v"}
    assert other.read_bytes() == b"2" and len([*(tmp_path / "v").iterdir()]) == 3
