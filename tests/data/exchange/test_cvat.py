"""Exports of CVAT 1.1 in both of its forms."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.commands.prep import main
from stvid.data.manifest import read_manifest
from stvid.errors import ManifestError
from stvid.video.reader import VideoReader

META = (
    '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><id>7</id><name>x</name>'
    "<size>40</size><mode>interpolation</mode><start_frame>0</start_frame><stop_frame>39</stop_frame>"
    "<frame_filter>{filter}</frame_filter><source>{source}</source></task></meta>{body}</annotations>"
)


def xml(body: str, *, source: str = "tool.mp4", filter: str = "") -> str:
    return META.format(filter=filter, source=source, body=body)


def image(frame: int, *labels: str, number: int | None = None, more: str = "") -> str:
    tags = "".join(f'<tag label="{label}" source="manual"></tag>' for label in labels)
    number = frame if number is None else number
    return f'<image id="{number}" name="frame_{frame:06d}" width="64" height="48">{tags}{more}</image>'


def track(number: int, label: str, *frames: tuple[int, int]) -> str:
    boxes = "".join(
        f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"></box>'
        for frame, outside in frames
    )
    return f'<track id="{number}" label="{label}" source="manual">{boxes}</track>'


@pytest.fixture
def video(make_video: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "tool.mp4").write_bytes(make_video("cvat.mp4", frames=40, fps=20).read_bytes())
    return tmp_path / "tool.mp4"


def parts(path: Path) -> list[tuple[str, float | None, float | None]]:
    return [(entry.labels[0], entry.start, entry.end) for entry in read_manifest(path)]


def test_tags_of_neighbouring_frames_are_a_part(tmp_path: Path, video: Path) -> None:
    body = "".join(image(k, "run") for k in (0, 1, 2, 3, 8, 9)) + image(10, "run", "jump", number=99) + image(11)
    (tmp_path / "annotations.xml").write_text(xml(body))
    expected = [("run", 0.0, 0.2), ("run", 0.4, 0.55), ("jump", 0.5, 0.55)]
    found = parts(tmp_path / "annotations.xml")
    assert [(label, round(a, 6), round(b, 6)) for label, a, b in found] == expected  # type: ignore[arg-type]
    assert [entry.path for entry in read_manifest(tmp_path / "annotations.xml")] == [str(video)] * 3


def test_times_are_those_of_the_video(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    """The time of each frame counts, not its number, where the rate of a video changes."""
    times = [k / 20 for k in range(10)] + [0.5 + k / 5 for k in range(10)]
    (tmp_path / "odd.mp4").write_bytes(make_video("odd.mp4", frames=20, times=times).read_bytes())
    (tmp_path / "annotations.xml").write_text(xml("".join(image(k, "run") for k in (11, 12)), source="odd.mp4"))
    ((_, start, end),) = parts(tmp_path / "annotations.xml")
    with VideoReader(tmp_path / "odd.mp4") as reader:
        seconds = reader.timestamps - reader.timestamps[0]
    assert (start, end) == (seconds[11], seconds[13]) and end == pytest.approx(1.1)


def test_a_zip_and_a_rate_that_is_given(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", xml(image(0, "run") + image(1, "run")))
    (tmp_path / "tool.mp4").write_bytes(b"cannot be read")
    with pytest.raises(ManifestError, match="whose times only the video tells"):
        read_manifest(tmp_path / "task.zip")
    command = ["manifest", "cvat", str(tmp_path / "task.zip"), "--out", str(tmp_path / "list.csv"), "--fps", "4"]
    assert main(command) == 0
    assert (tmp_path / "list.csv").read_text() == "path,label,start,end\ntool.mp4,run,0,0.5\n"


def test_every_fifth_frame(tmp_path: Path, video: Path) -> None:
    """A frame stands for those up to the next one that was shown."""
    (tmp_path / "a.xml").write_text(xml(image(0, "run") + image(5, "run") + image(20, "run"), filter="step=5"))
    assert [(round(a or 0, 6), round(b or 0, 6)) for _, a, b in parts(tmp_path / "a.xml")] == [(0, 0.5), (1, 1.25)]
    (tmp_path / "a.xml").write_text(xml(image(37, "run"), filter="step=5"))  # there are three frames left
    assert [(round(a or 0, 6), round(b or 0, 6)) for _, a, b in parts(tmp_path / "a.xml")] == [(1.85, 2)]
    (tmp_path / "a.xml").write_text(xml(image(40, "run"), filter="step=5"))
    with pytest.raises(ManifestError, match=r"frame 40 \(counted from 0\) is beyond the 40 frames"):
        read_manifest(tmp_path / "a.xml")


def test_tracks_are_times_without_tags(tmp_path: Path, video: Path) -> None:
    body = track(0, "person", (0, 0), (1, 0), (2, 1)) + track(1, "car", *[(k, 0) for k in range(10, 20)], (20, 1))
    (tmp_path / "a.xml").write_text(xml(body))
    found = read_manifest(tmp_path / "a.xml")
    assert [(e.labels[0], round(e.start or 0, 6), round(e.end or 0, 6)) for e in found] == [
        ("person", 0, 0.1),
        ("car", 0.5, 1.0),
    ]
    assert any("times at which an object is to be seen" in note for note in found.notes)
    assert any("left out: places of objects in the pictures (2)" in note for note in found.notes)
    box = '<box label="dog" xtl="1" ytl="1" xbr="2" ybr="2" occluded="0"></box>'
    (tmp_path / "a.xml").write_text(xml(image(3, "run", more=box) + body))
    found = read_manifest(tmp_path / "a.xml")
    assert [e.labels for e in found] == [("run",)]
    (note,) = found.notes
    assert "shapes in single frames (1), tracks of objects, since there are tags (2)" in note


def test_a_project_of_two_tasks(tmp_path: Path, video: Path) -> None:
    tasks = "".join(f"<task><id>{k}</id><source>{name}</source></task>" for k, name in ((1, "tool.mp4"), (2, "no.mp4")))
    body = image(0, "run").replace("<image", '<image task_id="1" subset="x"')
    meta = f"<meta><project><id>1</id><tasks>{tasks}</tasks></project></meta>"
    (tmp_path / "a.xml").write_text(f"<annotations>{meta}{body}</annotations>")
    found = read_manifest(tmp_path / "a.xml")
    assert [(e.path, e.labels) for e in found] == [(str(video), ("run",))]
    assert any("videos without a label (1)" in note for note in found.notes)
    (tmp_path / "a.xml").write_text(f"<annotations>{meta}{image(0, 'run')}</annotations>")
    with pytest.raises(ManifestError, match="label 'run' belongs to task '', which names no video"):
        read_manifest(tmp_path / "a.xml")


BAD = {
    "<annotations>": "is not XML",
    "<html></html>": "is a page of the web",
    '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>': "declares a document type",
    xml(image(0, "run"), source="pictures"): "is not of a video",
    xml(image(0, " ")): "the label of a tag: is ' ', not a name",
    xml('<image name="frame_x" id="-1"><tag label="a"/></image>'): "'-1' is no number of a frame",
    xml(track(3, "a", (0, 0)).replace('frame="0"', "")): r"track 3 \('a'\): 'None' is no number",
    xml(image(40, "run")): r"frame 40 \(counted from 0\) is beyond the 40 frames",
    xml("<image/>").replace("tool.mp4", ""): "is not of a video",
}


@pytest.mark.parametrize("content", BAD)
def test_one_line_says_what_is_wrong(content: str, tmp_path: Path, video: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(ManifestError, match=BAD[content]) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_damaged_zips(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", xml("".join(image(k, "run") for k in range(50))))
    whole = path.read_bytes()
    for at in range(30, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            read_manifest(path)
        except ManifestError as error:
            assert "\n" not in str(error)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.xml", "")
    with pytest.raises(ManifestError, match=r"holds no annotations\.xml"):
        read_manifest(path)
