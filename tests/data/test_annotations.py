from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvid.data.annotations import Annotation, locate, read_class_names, read_kinetics, read_ssv2
from stvid.data.conversion import convert
from stvid.data.manifest import read_manifest
from stvid.data.video_folder import VideoFolder
from stvid.errors import ManifestError


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_class_names(tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path / "a.txt", b"\xef\xbb\xbfrun\r\n throw, far \r\n\r\n")) == (
        "run",
        "throw, far",
    )
    assert read_class_names(write(tmp_path / "a.json", '["b", "a"]')) == ("b", "a")
    for name, text, message in (
        ("b.txt", "run\nrun\n", "'run' occurs twice"),
        ("c.txt", "\n", "is empty"),
        ("b.json", '{"a": "0", "b": "2"}', "do not run from 0 to 1"),
        ("c.json", '{"a": "0", "b": "0"}', "do not run from 0 to 1"),
        ("d.json", '{"a": "x"}', "are not numbers"),
        ("e.json", "[1, 2]", "needs a list of names"),
        ("f.json", "[", "line 1: is not JSON"),
    ):
        with pytest.raises(ManifestError, match=message):
            read_class_names(write(tmp_path / name, text))
    with pytest.raises(ManifestError, match="no such file"):
        read_class_names(tmp_path / "none.txt")


KINETICS = "label,youtube_id,time_start,time_end,split\nride bike,x,3,13,train\nrun,whole,7,17,train\n"


def test_kinetics(tmp_path: Path) -> None:
    found = read_kinetics(write(tmp_path / "train.csv", KINETICS))
    assert found.rows == [
        Annotation("x", "ride bike", "line 2", "x_000003_000013", 3.0, 13.0),
        Annotation("whole", "run", "line 3", "whole_000007_000017", 7.0, 17.0),
    ]
    assert found.class_names == []
    with pytest.raises(ManifestError, match="line 2: time_end is not after time_start"):
        read_kinetics(write(tmp_path / "train.csv", KINETICS.replace("3,13", "13,3")))


def test_something_something_with_the_official_order_of_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", json.dumps([{"id": 7, "template": "Holding [something]"}, {"id": "8"}]))
    write(tmp_path / "labels.json", json.dumps({"Unused": "0", "Holding something": "1"}))
    found = read_ssv2(path)
    assert [(row.video, row.label) for row in found.rows] == [("7", "Holding something"), ("8", "")]
    assert found.class_names == ["Unused", "Holding something"]
    answers = read_ssv2(write(tmp_path / "answers.csv", "7;Holding something\r\n8;Throwing something, twice\r\n"))
    assert [(row.video, row.label) for row in answers.rows] == [
        ("7", "Holding something"),
        ("8", "Throwing something, twice"),
    ]


def test_a_file_that_holds_only_the_part_comes_before_the_whole_video(tmp_path: Path) -> None:
    row = Annotation("x", "run", "line 2", "x_000003_000013", 3.0, 13.0)
    assert locate(row, VideoFolder(tmp_path)) is None
    write(tmp_path / "x.webm", "x")
    assert locate(row, VideoFolder(tmp_path)) == ("x.webm", 3.0, 13.0)
    write(tmp_path / "x_000003_000013.mp4", "x")
    assert locate(row, VideoFolder(tmp_path)) == ("x_000003_000013.mp4", None, None)


def test_the_list_that_is_read_and_the_one_that_is_written_are_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", KINETICS)
    for name in ("ride_bike/x_000003_000013.mp4", "other/x_000003_000013.mp4", "whole.mkv"):
        write(tmp_path / "v" / name, "x")
    manifest = read_manifest(path, root=tmp_path / "v")
    read = [(entry.path, entry.labels[0], entry.start, entry.end) for entry in manifest]
    assert read == convert("kinetics400", path, tmp_path / "v").rows
    assert read == [
        (str(tmp_path / "v/ride_bike/x_000003_000013.mp4"), "ride bike", None, None),
        (str(tmp_path / "v/whole.mkv"), "run", 7.0, 17.0),
    ]
