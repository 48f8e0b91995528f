from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.data.annotations import (
    Annotation,
    Annotations,
    locate,
    read_class_names,
    read_diving48,
    read_kinetics,
    read_ssv1,
    read_ssv2,
    read_ucf101,
)
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


HEAD = "label,youtube_id,time_start,time_end,split\n"
UCF = "Jump/v_Jump_g01_c01.avi"

# The reader, the name of the file, its content, and the video and label of each row that is read.
ODD_READ: dict[str, tuple[Callable[..., Annotations], str, str, list[tuple[str, str]]]] = {
    "Kinetics, mark of byte order": (read_kinetics, "k.csv", f"\ufeff{HEAD}run,abc,0,10,train\n", [("abc", "run")]),
    "Kinetics, names of options": (read_kinetics, "k.csv", f"{HEAD}run,-abc,0,10,train\n", [("-abc", "run")]),
    "Kinetics, spaces": (read_kinetics, "k.csv", f"{HEAD} run , abc ,0,10,\n", [("abc", "run")]),
    "Kinetics, other columns": (
        read_kinetics,
        "k.csv",
        "is_cc,youtube_id,time_end,time_start,label\n0,abc,10,0.5,run\n",
        [("abc", "run")],
    ),
    "Something v2, numbers": (read_ssv2, "s.json", '[{"id": 7, "template": "Holding [a]"}]', [("7", "Holding a")]),
    "Something v2, other letters": (read_ssv2, "s.json", '[{"id": "7", "template": "跑\\u6b65"}]', [("7", "跑步")]),
    "Something v1, no labels": (read_ssv1, "v1.csv", "1\r\n2\r\n", [("1", ""), ("2", "")]),
    "Something v1, semicolon in a label": (read_ssv1, "v1.csv", "1;a;b\n", [("1", "a;b")]),
    "UCF101, no numbers": (read_ucf101, "trainlist01.txt", f"{UCF}\n", [("v_Jump_g01_c01", "Jump")]),
    "UCF101, no folders": (read_ucf101, "trainlist01.txt", "v_Jump_g01_c01.avi 1\n", [("v_Jump_g01_c01", "Jump")]),
    "UCF101, other case": (
        read_ucf101,
        "trainlist01.txt",
        "HandstandPushups/v_HandStandPushups_g01_c01.avi 1\n",
        [("v_HandStandPushups_g01_c01", "HandstandPushups")],
    ),
    "Diving48, numbers": (read_diving48, "d.json", '[{"vid_name": "a", "label": 1}]', [("a", "1")]),
}


@pytest.mark.parametrize("case", ODD_READ)
def test_odd_annotations_are_read(case: str, tmp_path: Path) -> None:
    read, name, text, expected = ODD_READ[case]
    rows = read(write(tmp_path / name, text)).rows
    assert [(row.video, row.label) for row in rows] == expected


ODD_REFUSED: dict[str, tuple[Callable[..., Annotations], str, str | bytes, str]] = {
    "Kinetics, empty": (read_kinetics, "k.csv", "\n", "is empty"),
    "Kinetics, UTF-16": (read_kinetics, "k.csv", HEAD.encode("utf-16"), "is not UTF-8 but UTF-16"),
    "Kinetics, zero byte": (read_kinetics, "k.csv", f"{HEAD}run,a\0,0,9,x\n", "holds zero bytes"),
    "Kinetics, no header": (read_kinetics, "k.csv", "run,abc,0,10,train\n", "line 1: has no column 'youtube_id'"),
    "Kinetics, semicolons": (read_kinetics, "k.csv", HEAD.replace(",", ";"), "line 1: has no column 'youtube_id'"),
    "Kinetics, a column twice": (
        read_kinetics,
        "k.csv",
        "label,label,youtube_id,time_start,time_end\nrun,sit,abc,0,10\n",
        "line 1: column 'label' occurs twice",
    ),
    "Kinetics, header again": (
        read_kinetics,
        "k.csv",
        f"{HEAD}run,abc,0,10,train\n{HEAD}",
        "line 3: time_start is 'time_start'",
    ),
    "Kinetics, below 0": (read_kinetics, "k.csv", f"{HEAD}run,abc,-5,9,x\n", "line 2: time_start is '-5'"),
    "Kinetics, too long": (read_kinetics, "k.csv", f"{HEAD}run,abc,0,1e300,x\n", "line 2: time_end is '1e300'"),
    "Kinetics, a path": (read_kinetics, "k.csv", f"{HEAD}run,../abc,0,9,x\n", "youtube_id '../abc' is no name"),
    "Kinetics, no id": (read_kinetics, "k.csv", f"{HEAD}run, ,0,9,x\n", "line 2: has no youtube_id"),
    "Something v2, cut off": (read_ssv2, "s.json", '[{"id": "1", "templ', "line 1: is not JSON"),
    "Something v2, comma at the end": (read_ssv2, "s.json", '[{"id": "1"},]', "line 1: is not JSON"),
    "Something v2, a value a line": (read_ssv2, "s.json", '{"id": "1"}\n{"id": "2"}\n', "line 2: is not JSON"),
    "Something v2, ActivityNet's": (
        read_ssv2,
        "s.json",
        '{"database": {"a": {}}}',
        "needs a list of videos .* not dict",
    ),
    "Something v2, a key twice": (read_ssv2, "s.json", '[{"id": "1", "id": "2"}]', "the key 'id' occurs twice"),
    "Something v2, null": (read_ssv2, "s.json", '[{"id": null}]', "video 1: has no id"),
    "Something v2, fraction": (read_ssv2, "s.json", '[{"id": 1.5}]', "video 1: id '1.5' is no name of a video"),
    "Something v2, list": (read_ssv2, "s.json", '[{"id": [1]}]', "video 1: id .* is no name of a video"),
    "Something v2, truth": (read_ssv2, "s.json", '[{"id": true}]', "video 1: id 'True' is no name of a video"),
    "Something v2, path": (read_ssv2, "s.json", '[{"id": "a\\\\b"}]', "is no name of a video"),
    "Something v2, number": (read_ssv2, "s.json", '[{"id": "1", "template": 3}]', "its template is '3', not a text"),
    "Something v2, half a letter": (read_ssv2, "s.json", '[{"id": "1", "template": "\\ud800"}]', "half of a letter"),
    "Something v1, commas": (read_ssv1, "v1.csv", "1,run\n", "line 1: needs 'id;label'"),
    "Something v1, words": (read_ssv1, "v1.csv", "1;run\nid;label\n", "line 2: needs 'id;label'"),
    "UCF101, backslashes": (read_ucf101, "t.txt", UCF.replace("/", "\\"), "line 1: .* is not like Class/v_Class"),
    "UCF101, two classes": (
        read_ucf101,
        "t.txt",
        UCF.replace("Jump/", "Run/"),
        "line 1: .* names two classes, Run and",
    ),
    "Diving48, table": (read_diving48, "d.json", '{"a": 1}', "needs a JSON list of tables"),
    "Diving48, label as text": (
        read_diving48,
        "d.json",
        '[{"vid_name": "a", "label": "0"}]',
        "video 1: needs vid_name",
    ),
    "Diving48, name as list": (
        read_diving48,
        "d.json",
        '[{"vid_name": ["a"], "label": 0}]',
        "video 1: vid_name .* is no",
    ),
    "Diving48, endless": (
        read_diving48,
        "d.json",
        '[{"vid_name": "a", "label": 1000000000}]',
        "video 1: label 1000000000 is beyond any number of classes",
    ),
}


@pytest.mark.parametrize("case", ODD_REFUSED)
def test_odd_annotations_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    read, name, content, message = ODD_REFUSED[case]
    path = write(tmp_path / name, content)
    with pytest.raises(ManifestError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", '[["a", 1]]', "[[]]", '"ab"', "[null]"])
def test_a_vocabulary_of_diving48_that_is_none(text: str, tmp_path: Path) -> None:
    write(tmp_path / "Diving48_vocab.json", text)
    with pytest.raises(ManifestError, match=r"Diving48_vocab\.json.*: needs .*parts of"):
        read_diving48(write(tmp_path / "d.json", '[{"vid_name": "a", "label": 0}]'))
