from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from stvid.data.video_folder import VideoFolder, counted_kinds, is_video
from stvid.errors import ManifestError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_video_is_found_by_its_name_and_class(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.mp4", "deep/er/b.MKV", "x/c.avi", "ride_bike/c.webm", "notes/d.txt", ".hidden.mp4")
    videos = VideoFolder(root)
    assert videos.find("a") == "a.mp4" and videos.find("A") == "a.mp4"
    assert videos.find("b") == "deep/er/b.MKV"
    assert videos.find("c", "ride bike") == "ride_bike/c.webm" and videos.find("c", "x") == "x/c.avi"
    assert videos.find("d") is None and videos.find(".hidden") is None
    assert VideoFolder(root).unused() == ["a.mp4", "deep/er/b.MKV", "ride_bike/c.webm", "x/c.avi"]
    assert videos.unused() == []
    assert (videos.folder_of("ride bike"), videos.folder_of("x"), videos.folder_of("run")) == ("ride_bike", "x", "")


@pytest.mark.parametrize(("depth", "found"), [(0, "a"), (1, "ab"), (2, "abc"), (None, "abc")])
def test_depth(tmp_path: Path, depth: int | None, found: str) -> None:
    videos = VideoFolder(touch(tmp_path, "a.mp4", "one/b.mp4", "one/two/c.mp4"), depth=depth)
    assert "".join(name for name in "abc" if videos.find(name)) == found


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "real")
    assert VideoFolder(root).unused() == ["link/a.mp4"]


def test_folders_of_images(tmp_path: Path) -> None:
    videos = VideoFolder(touch(tmp_path, "7/1.jpg", "7/2.jpg", "8/1.PNG", "9/a.mp4"), frames=True)
    assert [videos.find(name) for name in ("7", "8", "9")] == ["7", "8", None]


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none: no such folder \(root of the videos\)"):
        VideoFolder(tmp_path / "none")
    assert is_video("a/b.WEBM") and not is_video("a/b.txt")


def test_files_are_counted_by_kind(tmp_path: Path) -> None:
    assert counted_kinds(["b.txt", "a.TXT", "x", "c.csv"]) == "2 .txt, 1 without an extension, 1 .csv"
    assert counted_kinds(f"{n}.k{n}" for n in range(12)).endswith(", 4 of 4 other kinds")
    assert VideoFolder(touch(tmp_path, "a.mp4", "in/b.xyz", ".c.xyz")).left_out == ["b.xyz"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(path: str) -> object:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ManifestError, match=r"closed: cannot be read \(Permission denied\)"):
        VideoFolder(tmp_path)


# What lies in the folder of the videos, and what is found for a name.
ODD: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "upper-case ending": (("a.MP4",), "a", "a.MP4"),
    "dots in a name": (("a.b.c.mp4",), "a.b.c", "a.b.c.mp4"),
    "another case": (("HandstandPushups.avi",), "HandStandPushups", "HandstandPushups.avi"),
    "the very name first": (("A.mp4", "a.mp4"), "a", "a.mp4"),
    "other letters": (("视频.webm",), "视频", "视频.webm"),
    "another form of letters": ((unicodedata.normalize("NFD", "é.mp4"),), "é", unicodedata.normalize("NFD", "é.mp4")),
    "hidden": ((".a.mp4", "._a.mp4"), "a", None),
    "another kind": (("a.txt", "a"), "a", None),
    "a folder of this name": (("a.mp4/x.txt",), "a", None),
    "in folders": (("x/y/a.mp4",), "a", "x/y/a.mp4"),
    "a name of an option": (("-a.mp4",), "-a", "-a.mp4"),
    "a line break": (("a\nb.mp4",), "a\nb", "a\nb.mp4"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_names_are_found(case: str, tmp_path: Path) -> None:
    files, name, found = ODD[case]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    assert VideoFolder(tmp_path).find(name) == found
