"""Official annotations with times, made here in the published forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stvid.commands.prep import main
from stvid.data.annotations import read_jester, read_moments
from stvid.data.conversion import convert
from stvid.data.manifest import read_manifest
from stvid.data.temporal_annotations import (
    read_activitynet,
    read_charades,
    read_epic_actions,
    read_epic_nouns,
    read_epic_verbs,
    read_gym,
    read_hacs,
)
from stvid.errors import ManifestError


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def touch(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name, "x")
    return root


EPIC = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame"
EPIC_LABELS = ",narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
TAKE = "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,x,take,0,plate,2,\"['plate']\",[2]\n"
PUT = "P01_11_1,P01,P01_11,00:01:01.700,00:01:01.56,01:01:02.45,93,147,x,put,1,tap,0,\"['tap']\",[0]\n"


def test_epic_kitchens(tmp_path: Path) -> None:
    train = write(tmp_path / "EPIC_100_train.csv", EPIC + EPIC_LABELS + TAKE + PUT)
    validation = write(tmp_path / "EPIC_100_validation.csv", EPIC + EPIC_LABELS + PUT.replace(",tap,0,", ",tap,1,"))
    verbs = read_epic_verbs(train)
    assert [(row.label, row.start, row.end) for row in verbs.rows] == [("take", 0.0, 1.89), ("put", 61.56, 3662.45)]
    assert len(verbs.class_names) == 97 and len(read_epic_nouns(train).class_names) == 300
    assert [row.label for row in read_epic_nouns(train).rows] == ["plate", "tap"]
    actions = ["take plate", "put tap", "put spoon"]
    assert [read_epic_actions(file).class_names for file in (train, validation)] == [actions, actions]
    test = write(tmp_path / "EPIC_100_test_timestamps.csv", f"{EPIC}\n{','.join(TAKE.split(',')[:8])}\n")
    assert [row.label for row in read_epic_verbs(test).rows] == [""]
    videos = touch(tmp_path / "v", "P01/videos/P01_11.MP4")
    assert [row[1:] for row in convert("epic_verbs", train, videos).rows][1] == ("put", 61.56, 3662.45)
    write(train, EPIC + EPIC_LABELS + TAKE.replace("00:00:01.89", "1.89"))
    with pytest.raises(ManifestError, match=r"line 2: stop_timestamp is '1.89': a time such as 00:01:02.50"):
        read_epic_verbs(train)
    write(train, EPIC + EPIC_LABELS + TAKE.replace("take,0", "take,97"))
    with pytest.raises(ManifestError, match="verb_class is '97': a number from 0 to 96 is needed"):
        read_epic_verbs(train)


CHARADES = """id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food,"x",c092 11.90 21.20;c147 0.00 12.60;c092 22.0 23.0,24.83
N11GT,0KZ7,Stairs,6,7,Yes,x,,x,,18.33
"""


def test_charades_by_videos_and_by_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation = write(tmp_path / "Charades_v1_train.csv", CHARADES)
    write(tmp_path / "Charades_v1_classes.txt", "c000 Holding clothes\nc092 Smiling\nc147 Cooking\nc148 Smiling\n")
    found = read_charades(annotation)
    assert [(row.video, row.label) for row in found.rows] == [("46GP8", "Smiling (c092)|Cooking"), ("N11GT", "")]
    assert found.class_names == ["Holding clothes", "Smiling (c092)", "Cooking", "Smiling (c148)"]
    parts = read_charades(annotation, rows="segments")
    assert [(row.start, row.end) for row in parts.rows] == [(11.9, 21.2), (0.0, 12.6), (22.0, 23.0)]
    videos = touch(tmp_path / "v", "46GP8.mp4", "N11GT.mp4")
    arguments = ["manifest", "charades", str(annotation), "--root", str(videos), "--out", str(tmp_path / "o.csv")]
    assert main(arguments) == 0
    assert "read " in capsys.readouterr().out
    listed = read_manifest(tmp_path / "o.csv", multilabel=True)
    assert (listed[0].labels, listed[1].labels) == (("Cooking", "Smiling (c092)"), ())
    (tmp_path / "Charades_v1_classes.txt").unlink()
    assert len(read_charades(annotation).class_names) == 157
    write(annotation, CHARADES.replace("c092 11.90", "c192 11.90"))
    with pytest.raises(ManifestError, match=r"'c192 11.90 21.20' is not a class of Charades and two times"):
        read_charades(annotation)


def database(*segments: tuple[str, float, float]) -> dict[str, Any]:
    rows = [{"label": label, "segment": [start, end]} for label, start, end in segments]
    return {
        "database": {
            "5n7NCViB5TU": {"subset": "training", "annotations": rows},
            "other": {"subset": "validation", "annotations": [{"label": "Archery", "segment": [0, 1]}]},
            "unseen": {"subset": "testing", "annotations": []},
        }
    }


@pytest.mark.parametrize("dataset", ["activitynet", "hacs"])
def test_activitynet(tmp_path: Path, dataset: str) -> None:
    times = [("Discus throw", 24.2, 38.0), ("Archery", 24.2, 38.0), ("Archery", 50.0, 60.5), ("Archery", 9.0, 9.0)]
    annotation = write(tmp_path / "a.json", database(*times))
    videos = touch(tmp_path / "v", "Discus_throw/v_5n7NCViB5TU.mp4", "unseen.mp4")
    found = convert(dataset, annotation, videos)
    assert [row[1:] for row in found.rows] == [("Archery", 50.0, 60.5)]
    assert "their end is not after their start: 1 parts" in found.notes[0]
    assert "since they show several classes: 1 times" in found.notes[1]
    assert found.class_names == ["Archery", "Discus throw"]
    assert convert(dataset, annotation, videos, rows="videos").rows[0][1] == "Discus throw|Archery"
    assert convert(dataset, annotation, videos, part="test").rows[0][1:] == ("", None, None)
    assert read_activitynet(annotation, part="val").rows[0].also == "v_other"
    for wrong, message in (
        ({"database": {"x": {"subset": "train"}}}, "its subset is none of training"),
        (database(("a", "0", 1)), "a time of its segment is '0'"),  # type: ignore[arg-type]
        ([], "needs a table 'database'"),
    ):
        with pytest.raises(ManifestError, match=message):
            read_activitynet(write(annotation, wrong))


def test_hacs_clips(tmp_path: Path) -> None:
    lines = ("Archery,a2X2hz1G6i8,training,15.5,17.5,1", "Archery,NUdji_CqvcY,training,77.5,79.5,-1")
    head = "classname,youtube_id,subset,start,end,label\n"
    annotation = write(tmp_path / "HACS_clips_v1.1.1.csv", head + "\n".join([*lines, "Zumba,x,validation,0,2,1"]))
    found = read_hacs(annotation)
    assert [(row.video, row.label, row.start, row.end) for row in found.rows] == [
        ("a2X2hz1G6i8", "Archery", 15.5, 17.5)
    ]
    assert "label -1): 1 clips" in found.notes[0] and found.class_names == ["Archery", "Zumba"]
    with pytest.raises(ManifestError, match=r"for whole videos give HACS_segments_v1.1.1.json"):
        read_hacs(annotation, rows="videos")


def test_finegym(tmp_path: Path) -> None:
    ids = ("0LtLS9wROrk_E_002407_002435_A_0003_0005", "0LtLS9wROrk_E_002407_002435_A_0006_0008")
    annotation = write(tmp_path / "gym288_val_element.txt", f"{ids[0]} 1\n{ids[1]} 0\n")
    with pytest.raises(ManifestError, match="names the 288 classes"):
        read_gym(annotation)
    lines = (
        "Clabel:   0; set: 51; Glabel: 7; (BB) salto; tucked",
        "Clabel:   1; set: 51; Glabel: 9; (BB) salto; tucked",
    )
    write(tmp_path / "gym288_categories.txt", "\n".join(lines))
    assert read_gym(annotation).class_names == ["(BB) salto; tucked (class 0)", "(BB) salto; tucked (class 1)"]
    assert (read_gym(annotation).rows[0].video, read_gym(annotation).rows[0].start) == (ids[0], None)
    element = {"stages": 1, "timestamps": [[3.45, 4.0], [4.0, 5.64]]}
    event = {"event": 4, "segments": {"A_0003_0005": element}, "timestamps": [[2407.32, 2435.28]]}
    write(tmp_path / "finegym_annotation_info_v1.1.json", {"0LtLS9wROrk": {"E_002407_002435": event}})
    found = read_gym(annotation)
    first, second = found.rows
    assert (first.video, first.cut, first.start, first.end) == ("0LtLS9wROrk", ids[0], 2410.77, 2412.96)
    assert (second.video, second.start) == (ids[1], None) and "1 of 2 elements" in found.notes[0]
    videos = touch(tmp_path / "v", f"{ids[0]}.mp4", "0LtLS9wROrk.mp4")
    assert [row[2:] for row in convert("gym288", annotation, videos).rows] == [(None, None)]
    (videos / f"{ids[0]}.mp4").unlink()
    assert [row[2:] for row in convert("gym288", annotation, videos).rows] == [(2410.77, 2412.96)]
    assert len(read_gym(write(tmp_path / "gym99_val_element.txt", f"{ids[0]} 98\n")).class_names) == 99


def test_jester_and_moments(tmp_path: Path) -> None:
    write(tmp_path / "jester-v1-labels.csv", "Swiping Left\nNo gesture\n")
    jester = read_jester(write(tmp_path / "jester-v1-train.csv", "34870;No gesture\n"))
    assert (jester.rows[0].video, jester.rows[0].label) == ("34870", "No gesture")
    assert jester.class_names == ["Swiping Left", "No gesture"]
    with pytest.raises(ManifestError, match=r"needs 'id;label', as jester-v1-train.csv"):
        read_jester(write(tmp_path / "wrong.csv", "x;y\n"))
    write(tmp_path / "moments_categories.txt", "yawning,1\nadult+female+singing,0\n")
    line = "adult+female+singing/yt-0P3XG_vf91c_35.mp4,adult+female+singing,4,1\n"
    moments = read_moments(write(tmp_path / "trainingSet.csv", line))
    assert (moments.rows[0].video, moments.rows[0].label) == ("yt-0P3XG_vf91c_35", "adult+female+singing")
    assert moments.class_names == ["adult+female+singing", "yawning"]
    with pytest.raises(ManifestError, match=r"line 1: 'x.mp4,run' is not like class/video.mp4,class"):
        read_moments(write(tmp_path / "trainingSet.csv", "x.mp4,run\n"))
