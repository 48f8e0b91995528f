"""Projects and CSV exports of VIA 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.commands.prep import main
from stvid.data.manifest import read_manifest
from stvid.errors import ManifestError


def project(*metadata: dict[str, Any], **attributes: dict[str, Any]) -> dict[str, Any]:
    about = {"aname": "TEMPORAL-SEGMENTS", "anchor_id": "FILE1_Z2_XY0", "type": 4, "options": {"0": "run", "1": "jump"}}
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": "x", "data_format_version": "3.1.1", "vid_list": ["1", "2"]},
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
        "attribute": {"1": about, **attributes},
        "file": {
            "1": {"fid": "1", "fname": "a.mp4", "type": 4, "loc": 1, "src": ""},
            "2": {"fid": 2, "fname": "b.mp4", "type": 4, "loc": 3, "src": "/home/me/videos/b.mp4"},
        },
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": [2]}},
        "metadata": {f"{row['vid']}_{number}": row for number, row in enumerate(metadata)},
    }


def segment(vid: str, *z: float, av: Any = None, xy: Any = ()) -> dict[str, Any]:
    return {"vid": vid, "flg": 0, "z": [*z], "xy": [*xy], "av": {"1": "0"} if av is None else av}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...], float | None, float | None]]:
    return [(Path(e.path).name, e.labels, e.start, e.end) for e in read_manifest(path, **options)]


def test_segments_of_time(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/b.mp4").touch()
    path = write(
        tmp_path / "project.json",
        project(
            segment("1", 1.5, 2.25),
            segment("1", 3, 4.125, av={"1": "1"}),
            segment("2", 0, 1, av={"1": "a new word"}),
            segment("1", 1.0, xy=[2, 1, 2, 3, 4]),
            segment("1", 7.5),
            segment("2", 5, 6, av={"1": "_DEFAULT"}),
        ),
    )
    assert rows(path) == [
        ("a.mp4", ("run",), 1.5, 2.25),
        ("a.mp4", ("jump",), 3.0, 4.125),
        ("b.mp4", ("a new word",), 0.0, 1.0),
    ]
    found = read_manifest(path)
    assert found[2].path == str(tmp_path / "videos/b.mp4")
    assert "regions in pictures (1), single moments (1), videos without a label (1)" in found.notes[0]


def test_attributes_of_whole_files_and_check_boxes(tmp_path: Path) -> None:
    boxes = {"aname": "seen", "anchor_id": "FILE1_Z0_XY0", "type": 2, "options": {"0": "run", "1": "jump"}}
    content = project(segment("1", av={"7": "0,1"}), segment("2", av={"7": "1"}), **{"7": boxes})
    path = write(tmp_path / "project.json", content)
    assert rows(path, multilabel=True) == [
        ("a.mp4", ("jump", "run"), None, None),
        ("b.mp4", ("jump",), None, None),
    ]


def test_several_attributes_need_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = {"aname": "who", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}}
    path = write(tmp_path / "p.json", project(segment("1", 0, 1, av={"1": "0", "7": "Ann, Bob"}), **{"7": text}))
    with pytest.raises(ManifestError, match=r"2 names \(attribute: TEMPORAL-SEGMENTS, who\)"):
        read_manifest(path)
    (tmp_path / "a.mp4").touch()
    assert main(["manifest", "via", str(path), "--out", str(tmp_path / "l.csv"), "--field", "who"]) == 0
    assert (tmp_path / "l.csv").read_text() == 'path,label,start,end\na.mp4,"Ann, Bob",0,1\n'


CSV = """# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)
# Notes:
# - temporal coordinate of [1.349,2.741] denotes a temporal segment from time 1.346 sec. to 2.741 sec.
# SHAPE_ID = {"POINT":1,"RECTANGLE":2}
# FLAG_ID = {"RESERVED_FOR_FUTURE":1}
# ATTRIBUTE = {"1":{"aname":"TEMPORAL-SEGMENTS","anchor_id":"FILE1_Z2_XY0","type":4,"options":{"0":"run","1":"jump"}}}
# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata
"1_j5sJvB9h","[""a.mp4""]",0,"[1.124,5.31493]","[]","{""1"":""0""}"
"1_zYQJk2sM","[""a.mp4""]",0,"[2.41892]","[2,162.262,176.21971,639.45,192.49481]","{""1"":""1""}"
"2_vL68gsEX","[""b, c.mp4""]",0,"[0,2]","[]","{""1"":""1""}"
"""


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "export.csv", CSV)
    assert rows(path) == [("a.mp4", ("run",), 1.124, 5.31493), ("b, c.mp4", ("jump",), 0.0, 2.0)]
    assert "regions in pictures (1)" in read_manifest(path, format="via").notes[0]


def test_csv_of_the_first_versions(tmp_path: Path) -> None:
    text = (
        "# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)\n"
        "# CSV_HEADER = metadata_id,file_list,temporal_segment_start,temporal_segment_end,metadata\n"
        '"1_a","[""a.mp4""]",0.5,2,"{""TEMPORAL-SEGMENTS"":""run""}"\n'
    )
    assert rows(write(tmp_path / "export.csv", text)) == [("a.mp4", ("run",), 0.5, 2.0)]


def test_a_project_and_its_csv_are_one_list(tmp_path: Path) -> None:
    one = project(segment("1", 1.124, 5.31493), segment("1", 2.4, av={"1": "1"}, xy=[2, 1, 1, 1, 1]))
    one["file"]["2"] = {"fid": "2", "fname": "b, c.mp4", "type": 4, "loc": 1, "src": ""}
    one["metadata"]["2_x"] = segment("2", 0, 2, av={"1": "1"})
    assert rows(write(tmp_path / "p.json", one)) == rows(write(tmp_path / "p.csv", CSV))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA 2, which knows pictures only"),
        (project(segment("9", 0, 1)), "is of view '9', which the project does not have"),
        (project(segment("1", 2, 1)), "its part ends at 1 s, not after 2 s"),
        (project(segment("1", -2, 1)), "not a number of 0 or more"),
        ({**project(), "view": {"1": {"fid_list": ["5"]}}}, "shows file '5', which the project does not have"),
        (CSV.replace("file_list", "files"), "has no file_list and metadata"),
        (CSV.replace('"[1.124,5.31493]"', "now"), "line 8: temporal_coordinates, line 1: is not JSON"),
        (CSV.splitlines()[6], "has a header but no rows"),
    ],
)
def test_one_line_says_what_is_wrong(content: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / ("export.csv" if isinstance(content, str) else "project.json"), content)
    with pytest.raises(ManifestError, match=words) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_all_damage_is_refused_or_read(refuse_all_damage: Callable[[str, str, Any], None]) -> None:
    refuse_all_damage("project.json", "via", project(segment("1", 1.5, 2), segment("2", av={"1": "1"})))


def test_a_csv_cut_off_anywhere(tmp_path: Path) -> None:
    for length in range(1, len(CSV), 3):
        path = write(tmp_path / "export.csv", CSV[:length])
        try:
            read_manifest(path, format="via")
        except ManifestError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
