"""Every format goes round: a list is written for a program, and what was written reads as the same list."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stvid.commands.prep import main
from stvid.data.exchange.formats import EXCHANGE
from stvid.data.exchange.writing import FOLDERS, WRITTEN, write_labels
from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.errors import ConfigError, ManifestError, StvidError

NAMES = ("run", 'say "<hi>" & go', "ü, x")
Rows = list[tuple[bytes, tuple[str, ...], float, float | None]]


@pytest.fixture
def videos(make_video: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Three videos of 40 frames at 20 a second; two have the same name, and each has bytes of its own."""
    content = make_video("writing.mp4", frames=40, fps=20).read_bytes()
    paths = [tmp_path / "videos" / name for name in ("a b.mp4", "deep/ü.mp4", "deeper/ü.mp4")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content + str(path).encode())
    return [str(path) for path in paths]


def whole(videos: list[str]) -> list[VideoEntry]:
    return [VideoEntry(path, (name,)) for path, name in zip(videos, NAMES, strict=True)]


def parts(videos: list[str]) -> list[VideoEntry]:
    first, second, third = videos
    return [
        VideoEntry(first, ("run",), None, 0.5),
        VideoEntry(first, (NAMES[1],), 0.5, 1.25),
        VideoEntry(second, (NAMES[1],), 1.0, None),
        VideoEntry(third, (NAMES[2],)),
    ]


def several(videos: list[str]) -> list[VideoEntry]:
    return [VideoEntry(videos[0], NAMES), VideoEntry(videos[1], ("run",)), VideoEntry(videos[2])]


def several_parts(videos: list[str]) -> list[VideoEntry]:
    return [VideoEntry(videos[0], NAMES[:2], 0.25, 0.5), VideoEntry(videos[1], ("run",), 0.0, 1.0)]


def unlabelled(videos: list[str]) -> list[VideoEntry]:
    return [VideoEntry(path) for path in videos]


def rows(manifest: Manifest) -> Rows:
    """Content, classes and part of each row; the end of the video is an end, too."""
    found = []
    for number, entry in enumerate(manifest):
        content = manifest.content(number)
        data = content if isinstance(content, bytes) else Path(content).read_bytes()
        end = None if entry.end is None or entry.end > 1.999 else round(entry.end, 6)
        found.append((data, tuple(sorted(entry.labels)), round(entry.start or 0.0, 6), end))
    return sorted(found)


def needed(format: str) -> None:
    if format in ("parquet", "hugging-face"):
        pytest.importorskip("pyarrow")
    if format == "hugging-face":
        pytest.importorskip("datasets")


@pytest.mark.parametrize("make", [whole, parts, several, several_parts, unlabelled])
@pytest.mark.parametrize("format", WRITTEN)
def test_a_list_goes_there_and_back(
    format: str, make: Callable[[list[str]], list[VideoEntry]], videos: list[str], tmp_path: Path
) -> None:
    needed(format)
    multilabel = make in (several, several_parts)
    names = NAMES if make is not unlabelled else None
    made = Manifest.from_entries(make(videos), class_names=names, multilabel=multilabel)
    out = tmp_path / "out" / {"via": "v.json", "json": "l.json", "parquet": "l.parquet"}.get(format, "x.json")
    out = out.with_suffix("") if format in FOLDERS else out
    written = write_labels(made, format, out)
    assert out in written and all(path.exists() for path in written)
    root = tmp_path / "videos" if format == "label-studio" else None  # its paths start from the folder that it serves
    again = read_manifest(out, root=root, multilabel=multilabel)
    assert rows(again) == rows(made)
    assert {*again.used_classes} == {*made.used_classes}
    assert read_manifest(out, format=format, multilabel=multilabel).used_classes == again.used_classes


def test_every_format_that_is_read_is_written() -> None:
    assert {*WRITTEN} == {*EXCHANGE}


@pytest.mark.parametrize("format", ["cvat", "via", "fiftyone", "label-studio"])
def test_the_command(format: str, videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{path},run\n" for path in videos))
    out = tmp_path / ("out" if format in FOLDERS else "out.json")
    for _ in range(2):  # what was written so before is replaced
        assert main(["labels", str(tmp_path / "list.csv"), "--to", format, "--out", str(out)]) == 0
        assert f"3 videos: {out}" in capsys.readouterr().out
    back = tmp_path / "back.csv"
    command = ["manifest", format, str(out), "--root", str(tmp_path / "videos"), "--out", str(back)]
    assert main(command) == 0, capsys.readouterr().err
    assert [(e.path, e.labels, e.start, e.end) for e in read_manifest(back)] == [
        (path, ("run",), None, None) for path in videos
    ]


@pytest.mark.parametrize("format", FOLDERS)
def test_another_folder_is_kept(format: str, videos: list[str], tmp_path: Path) -> None:
    needed(format)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x.txt").touch()
    with pytest.raises(ConfigError, match="give another --out"):
        write_labels(Manifest.from_entries(whole(videos)), format, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["x.txt"]


def test_bad_calls(videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Manifest.from_entries(whole(videos))
    with pytest.raises(ConfigError, match="no such format; nearest: cvat"):
        write_labels(made, "cvt", tmp_path / "x")
    with pytest.raises(ConfigError, match="labelling configuration would go"):
        write_labels(made, "label-studio", tmp_path / "x.xml")
    with pytest.raises(ConfigError, match="is not below the root"):
        write_labels(made, "label-studio", tmp_path / "x.json", served=str(tmp_path / "out"))
    (tmp_path / "frames").mkdir()
    folder = Manifest.from_entries([VideoEntry(str(tmp_path / "frames"), ("run",))])
    for format in ("cvat", "via"):
        with pytest.raises(ConfigError, match="is no video file"):
            write_labels(folder, format, tmp_path / "x")
    gone = Manifest.from_entries([VideoEntry(str(tmp_path / "gone.mp4"), ("run",))])
    for format in ("cvat", "label-studio"):
        with pytest.raises(StvidError, match=r"gone\.mp4"):
            write_labels(gone, format, tmp_path / "x.json")
    (tmp_path / "file").touch()
    for format in ("via", "json", "cvat"):
        with pytest.raises(StvidError, match=r"file.*cannot be written"):
            write_labels(made, format, tmp_path / "file/x")
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "x").exists()
    (tmp_path / "list.csv").write_text(f"path,label\n{videos[0]},run\n")
    command = ["labels", str(tmp_path / "list.csv"), "--to", "cvat", "--out", str(tmp_path / "x"), "--served", "."]
    assert main(command) == 2 and "--served: belongs to --to label-studio" in capsys.readouterr().err


def test_labels_that_a_table_cannot_join(videos: list[str], tmp_path: Path) -> None:
    made = Manifest.from_entries([VideoEntry(videos[0], ("a|b", "c"))])
    with pytest.raises(ConfigError, match=r"class 'a\|b' holds \|, which joins labels"):
        write_labels(made, "json", tmp_path / "x.json")
    single = Manifest.from_entries([VideoEntry(videos[0], ("a|b",))])
    write_labels(single, "json", tmp_path / "x.json")
    assert read_manifest(tmp_path / "x.json")[0].labels == ("a|b",)


def test_names_that_xml_cannot_hold(videos: list[str], tmp_path: Path) -> None:
    made = Manifest.from_entries([VideoEntry(videos[0], ("a\x0bb",))])
    with pytest.raises(ConfigError, match=r"'a\\x0bb' holds a character that XML cannot"):
        write_labels(made, "cvat", tmp_path / "x")


def test_a_folder_of_cvat(videos: list[str], tmp_path: Path) -> None:
    """Each task of CVAT is one video, so that there is a file for each, and the labels of the project."""
    write_labels(Manifest.from_entries(whole(videos), class_names=NAMES), "cvat", tmp_path / "x")
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"a b.xml", "ü.xml", "ü_2.xml", "labels.json"}
    labels: Any = json.loads((tmp_path / "x/labels.json").read_text())
    assert [(label["name"], label["type"]) for label in labels] == [(name, "tag") for name in NAMES]
    text = (tmp_path / "x/a b.xml").read_text()
    assert text.count('<tag label="run" source="manual" />') == 40 and "<size>40</size>" in text
    assert read_manifest(tmp_path / "x/a b.xml")[0].labels == ("run",)
    (tmp_path / "x/a b.xml").write_text("<annotations>")
    with pytest.raises(ManifestError, match=r"a b\.xml: is not XML"):
        read_manifest(tmp_path / "x")
