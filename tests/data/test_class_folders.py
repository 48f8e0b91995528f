"""Folders of classes with odd things in them: what is read, what is said, or the one line that refuses them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from stvid.data.class_folders import read_class_folders
from stvid.data.manifest import read_manifest
from stvid.errors import ManifestError

CAFE = unicodedata.normalize("NFC", "café")


class Odd(NamedTuple):
    """A tree of files and what else is done to it; the labels with their videos, and words of the notes."""

    files: tuple[str, ...]
    labels: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    more: Callable[[Path], object] = lambda folder: None


def link(path: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).symlink_to(target)


def raw(name: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"")

    return write


TWO = ("run/a.mp4", "sit/b.mp4")
BOTH = {"run": ["run/a.mp4"], "sit": ["sit/b.mp4"]}

READ = {
    "plain": Odd(TWO, BOTH),
    "upper case": Odd(("run/a.MP4", "sit/b.WebM"), {"run": ["run/a.MP4"], "sit": ["sit/b.WebM"]}),
    "other languages": Odd(
        ("跑步/视频.mp4", "прыжок/видео.mp4", "تمرين/a.mp4"),
        {"تمرين": ["تمرين/a.mp4"], "прыжок": ["прыжок/видео.mp4"], "跑步": ["跑步/视频.mp4"]},
    ),
    "both forms of a name": Odd(
        ("run/x.mp4", f"{CAFE}/a.mp4", unicodedata.normalize("NFD", CAFE) + "/b.mp4"),
        {"run": ["run/x.mp4"], CAFE: [unicodedata.normalize("NFD", CAFE) + "/b.mp4", f"{CAFE}/a.mp4"]},
    ),
    "numbers": Odd(("10/a.mp4", "2/a.mp4", "1/a.mp4"), {"1": ["1/a.mp4"], "10": ["10/a.mp4"], "2": ["2/a.mp4"]}),
    "numbers with a point": Odd(
        ("10.5/a.mp4", "2.5/a.mp4"),
        {"10.5": ["10.5/a.mp4"], "2.5": ["2.5/a.mp4"]},
        ("labels such as '2.5' are numbers with a point: they are taken as names",),
    ),
    "spaces around a name": Odd((" run /a.mp4", "sit/b.mp4"), {"run": [" run /a.mp4"], "sit": ["sit/b.mp4"]}),
    "names of options": Odd(("-run/-a.mp4", "sit/b.mp4"), {"-run": ["-run/-a.mp4"], "sit": ["sit/b.mp4"]}),
    "line breaks and escapes": Odd(
        ("ru\nn/a.mp4", "s\x1b[31m/b.mp4"), {"ru\nn": ["ru\nn/a.mp4"], "s\x1b[31m": ["s\x1b[31m/b.mp4"]}
    ),
    "bytes that are not UTF-8": Odd(
        TWO, BOTH | {"run": ["run/a.mp4", "run/caf\udce9.mp4"]}, (), raw(b"run/caf\xe9.mp4")
    ),
    "a class that is not UTF-8": Odd(TWO, BOTH | {"caf\udce9": ["caf\udce9/c.mp4"]}, (), raw(b"caf\xe9/c.mp4")),
    "two spellings": Odd(
        ("Run/a.mp4", "run/b.mp4", "go_on/a.mp4", "go on/a.mp4"),
        {"Run": ["Run/a.mp4"], "go on": ["go on/a.mp4"], "go_on": ["go_on/a.mp4"], "run": ["run/b.mp4"]},
        ("'Run', 'run' are 2 classes, though they differ in case or spaces", "'go on', 'go_on' are 2 classes"),
    ),
    "hidden": Odd((*TWO, "run/.a.mp4", "run/._a.mp4", ".cache/x.mp4", "run/.old/y.mp4"), BOTH),
    "folders of the system": Odd(
        (*TWO, "__MACOSX/run/a.mp4", "@eaDir/a.mp4", "lost+found/x", "run/@eaDir/a.mp4"),
        BOTH,
        ("left out, folders of the system: @eaDir, __MACOSX, lost.found",),
    ),
    "files beside the classes": Odd((*TWO, "README.md", "list.csv"), BOTH),
    "other files": Odd(
        (*TWO, "run/Thumbs.db", "run/a.srt", "sit/b.mp4.part", "run/a.jpg"),
        BOTH,
        ("left out, not known as videos: 1 .db, 1 .jpg, 1 .part, 1 .srt$",),
    ),
    "folders without videos": Odd(
        (*TWO, "logs/events.txt"), BOTH, ("not known as videos: 1 .txt", "1 folder without videos, no class: logs")
    ),
    "empty video": Odd((*TWO, "run/z.mp4"), BOTH | {"run": ["run/a.mp4", "run/z.mp4"]}),
    "a folder called like a video": Odd((*TWO, "run/c.mp4/x.txt"), BOTH, ("not known as videos: 1 .txt",)),
    "folders of images among videos": Odd(
        (*TWO, *(f"run/c/{n}.jpg" for n in range(4))),
        BOTH,
        (r"4 .jpg; videos that are folders of images are listed in a CSV, .* data\.backend frames",),
    ),
    "broken link of a video": Odd(
        TWO, BOTH | {"run": ["run/a.mp4", "run/c.mp4"]}, (), link("run/c.mp4", "/nowhere/c.mp4")
    ),
    "broken link of a class": Odd(TWO, BOTH, ("left out, links that lead nowhere: walk",), link("walk", "/nowhere")),
    "link to itself": Odd(TWO, BOTH, ("left out, links that lead nowhere: walk",), link("walk", "walk")),
    "link to the folder above": Odd(
        TWO,
        BOTH | {"run": ["run/a.mp4", "run/up/sit/b.mp4"]},
        ("links show one file in several",),
        link("run/up", ".."),
    ),
    "link to the same folder": Odd(TWO, BOTH, (), link("run/again", ".")),
    "link to another class": Odd(
        ("run/a.mp4",),
        {"run": ["run/a.mp4"], "sit": ["sit/a.mp4"]},
        ("links show one file in several classes: .*run/a.mp4 and .*sit/a.mp4",),
        link("sit", "run"),
    ),
    "links to a pool": Odd(
        TWO,
        BOTH | {"sit": ["sit/a.mp4", "sit/b.mp4"]},
        ("links show one file in several classes",),
        link("sit/a.mp4", "../run/a.mp4"),
    ),
    "one level too high": Odd(
        ("videos/run/a.mp4", "videos/sit/b.mp4"),
        {"videos": ["videos/run/a.mp4", "videos/sit/b.mp4"]},
        ("all videos lie one folder deeper; the classes are videos, not run, sit",),
    ),
    "folders within the classes": Odd(
        ("sport/run/a.mp4", "sport/jump/b.mp4", "home/cook/c.mp4"),
        {"home": ["home/cook/c.mp4"], "sport": ["sport/jump/b.mp4", "sport/run/a.mp4"]},
        ("the classes are home, sport, not cook, jump, run",),
    ),
    "one folder within each class": Odd(
        ("run/run/a.mp4", "sit/sit/b.mp4"), {"run": ["run/run/a.mp4"], "sit": ["sit/sit/b.mp4"]}
    ),
    "a class called train": Odd(("train/a.mp4", "car/b.mp4"), {"car": ["car/b.mp4"], "train": ["train/a.mp4"]}),
}


def build(folder: Path, odd: Odd) -> None:
    for name in odd.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not read here")
    odd.more(folder)


@pytest.mark.parametrize("case", READ)
def test_what_is_read_and_said(case: str, tmp_path: Path) -> None:
    odd = READ[case]
    build(tmp_path, odd)
    manifest = read_manifest(tmp_path)
    found: dict[str, list[str]] = {}
    for entry in manifest:
        found.setdefault(entry.labels[0], []).append(os.path.relpath(entry.path, tmp_path))
    assert found == odd.labels and set(manifest.class_names) == set(odd.labels)
    assert len(manifest.notes) == len(odd.notes), manifest.notes
    for note, words in zip(manifest.notes, odd.notes, strict=True):
        assert re.search(words, note), note
        assert note.startswith(str(tmp_path)) and "\n" not in note


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    for name, order in (("numbers", ("1", "2", "10")), ("numbers with a point", ("2.5", "10.5"))):
        build(tmp_path / name, READ[name])
        assert read_manifest(tmp_path / name).class_names == order


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "holds no folders; a folder per class is needed"),
    "only files": (("a.mp4", "b.mp4"), "'a.mp4' is not in the folder of a class"),
    "archives": (("run.zip", "sit.zip"), "holds no folders"),
    "only folders of the system": (("__MACOSX/run/a.mp4",), "holds no folders"),
    "unknown kinds": (("run/a.xyz", "run/b.xyz", "sit/c"), "no video file in its folders; there are 2 .xyz, 1 without"),
    "empty folders": (("run/.keep", "sit/.keep"), "no video file in its folders, and no other file"),
    "images": (("run/a/1.jpg", "sit/b/1.png"), "there are 1 .jpg, 1 .png; videos that are folders of images"),
    "splits": (("train/run/a.mp4", "val/run/b.mp4"), "train, val look like splits, not classes; give one of them"),
    "one split": (("train/run/a.mp4", "train/sit/a.mp4"), "train look like splits"),
    "splits and notes": (("train/a/a.mp4", "test/a/b.mp4", "notes/x.txt"), "test, train look like splits"),
    "splits of other words": (("Training/a/a.mp4", "VALID/a/b.mp4", "other/a/c.mp4"), "Training, VALID look like"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    files, message = REFUSED[case]
    build(tmp_path, Odd(files, {}))
    with pytest.raises(ManifestError, match=message) as caught:
        read_class_folders(str(tmp_path))
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_a_pipe_is_a_video_that_cannot_be_read(tmp_path: Path) -> None:
    build(tmp_path, READ["plain"])
    os.mkfifo(tmp_path / "run/c.mp4")
    assert len(read_manifest(tmp_path)) == 3  # listed; a reader says that it is no file, and does not wait for it


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, READ["plain"])
    listed = os.scandir

    def scandir(path: str) -> object:
        if os.path.basename(path) == "sit":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ManifestError, match=r"sit: cannot be read \(Permission denied\)"):
        read_manifest(tmp_path)
