"""Lists of videos with odd things in them: what is read, what is said, or the one line that refuses them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from stvid.data.manifest import read_manifest
from stvid.errors import ManifestError

TWO = [("a.mp4", "run"), ("b.mp4", "sit")]
HEAD = "path,label\n"

# The content of a list; what is read: path and label, and start and end where they are given; words of the notes.
READ: dict[str, tuple[str | bytes, list[tuple[object, ...]], tuple[str, ...]]] = {
    "mark of byte order": ("\ufeffpath,label\na.mp4,run\nb.mp4,sit\n", TWO, ()),
    "marks within": ("\ufeffpath,label\n\ufeffa.mp4,run\nb.mp4,sit\n", TWO, ()),
    "old mac": ("path,label\ra.mp4,run\rb.mp4,sit\r", TWO, ()),
    "mixed ends of lines": ("path,label\r\na.mp4,run\nb.mp4,sit\r", TWO, ()),
    "no end of the last line": ("a.mp4,run\nb.mp4,sit", TWO, ()),
    "upper-case header": ("PATH,Label\na.mp4,run\nb.mp4,sit\n", TWO, ()),
    "quotes around all": ('"path","label"\n"a.mp4","run"\n"b.mp4","sit"\n', TWO, ()),
    "semicolons": ("path;label\na.mp4;run\nb.mp4;sit\n", TWO, ("its cells are separated by semicolons",)),
    "tabs": ("path\tlabel\na.mp4\trun\nb.mp4\tsit\n", TWO, ("its cells are separated by tabs",)),
    "commas within semicolons": (
        'label;path;remark\nrun;"a;1.mp4";x, y\nsit;b.mp4;\n',
        [("a;1.mp4", "run"), ("b.mp4", "sit")],
        ("separated by semicolons", "ignored columns: remark"),
    ),
    "commas at the ends": ("path,label\na.mp4,run,\nb.mp4,sit,,\n", TWO, ()),
    "commas at all ends": ("a.mp4,run,\nb.mp4,sit,\n", TWO, ()),
    "a column without a name": (
        "path,label,\na.mp4,run,\nb.mp4,sit,\n",
        TWO,
        (r"ignored columns: \(without a name\)",),
    ),
    "index of pandas": (",path,label\n0,a.mp4,run\n1,b.mp4,sit\n", TWO, (r"ignored columns: \(without a name\)",)),
    "line break in a name": (HEAD + '"a\nb.mp4",run\nc.mp4,sit\n', [("a\nb.mp4", "run"), ("c.mp4", "sit")], ()),
    "quote in a name": (HEAD + '"a""b.mp4",run\n', [('a"b.mp4', "run")], ()),
    "separator of lines in a name": (HEAD + "a\u2028b.mp4,run\n", [("a\u2028b.mp4", "run")], ()),
    "escape in a label": (HEAD + "a.mp4,\x1b[2Jrun\nb.mp4,sit\n", [("a.mp4", "\x1b[2Jrun"), ("b.mp4", "sit")], ()),
    "spaces around labels": (HEAD + " a.mp4 , run\u00a0\nb.mp4,\tsit \n", TWO, ()),
    "labels in two spellings": (
        HEAD + "a.mp4,Run\nb.mp4,run\nc.mp4,ru\u200bn\n",
        [("a.mp4", "Run"), ("b.mp4", "run"), ("c.mp4", "ru\u200bn")],
        (r"'Run', 'run', 'ru\\u200bn' are 3 classes, though they differ in case or spaces at most",),
    ),
    "numbers with a point": (
        HEAD + "a.mp4,0.0\nb.mp4,10.0\nc.mp4,2.0\n",
        [("a.mp4", "0.0"), ("b.mp4", "10.0"), ("c.mp4", "2.0")],
        ("labels such as '0.0' are numbers with a point: they are taken as names",),
    ),
    "numbers and words": (HEAD + "a.mp4,0\nb.mp4,sit\n", [("a.mp4", "0"), ("b.mp4", "sit")], ()),
    "other digits": (HEAD + "a.mp4,١\nb.mp4,٢\n", [("a.mp4", "١"), ("b.mp4", "٢")], ()),
    "parts that overlap": (
        "path,label,start,end\na.mp4,run,0,5\na.mp4,sit,2,6\n",
        [("a.mp4", "run", 0.0, 5.0), ("a.mp4", "sit", 2.0, 6.0)],
        (),
    ),
    "names without an ending": (HEAD + "a,run\nb,sit\n", [("a", "run"), ("b", "sit")], ()),
    "address-like names": (HEAD + "a%20b.mp4,run\nb:.mp4,sit\n", [("a%20b.mp4", "run"), ("b:.mp4", "sit")], ()),
    "names of options": (HEAD + "-a.mp4,-run\n--b.mp4,sit\n", [("-a.mp4", "-run"), ("--b.mp4", "sit")], ()),
    "backslashes": (HEAD + "run\\a.mp4,run\n", [("run\\a.mp4", "run")], ()),
    "other folders": (HEAD + "../a.mp4,run\n./x/../b.mp4,sit\n", [("../a.mp4", "run"), ("b.mp4", "sit")], ()),
    "one line": ("a.mp4,run\n", [("a.mp4", "run")], ()),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read_and_said(case: str, tmp_path: Path) -> None:
    content, rows, notes = READ[case]
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    manifest = read_manifest(path)
    found = [(os.path.relpath(e.path, tmp_path), e.labels[0], e.start, e.end) for e in manifest]
    assert found == [(*row, None, None)[:4] for row in rows]
    assert len(manifest.notes) == len(notes), manifest.notes
    for note, words in zip(manifest.notes, notes, strict=True):
        assert re.search(words, note), note
        assert note.startswith(str(path)) and "\n" not in note


def test_numbers_with_a_point_are_ordered_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(str(READ["numbers with a point"][0]))
    assert read_manifest(tmp_path / "list.csv").class_names == ("0.0", "2.0", "10.0")


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "lists/~").mkdir(parents=True)
    (tmp_path / "lists/~/b.mp4").write_bytes(b"")
    (tmp_path / "lists/list.csv").write_text(HEAD + "~/a.mp4,run\n~/b.mp4,sit\n~c.mp4,sit\n")
    found = [entry.path for entry in read_manifest(tmp_path / "lists/list.csv")]
    assert found == [str(tmp_path / name) for name in ("home/a.mp4", "lists/~/b.mp4", "lists/~c.mp4")]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/list.csv").write_text("a.mp4,run\n")
    manifest = read_manifest("~/list.csv", root="~/videos")
    assert manifest[0].path == str(tmp_path / "home/videos/a.mp4")


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "UTF-16": ((HEAD + "a.mp4,run\n").encode("utf-16"), "is not UTF-8 but UTF-16 text; save it as UTF-8"),
    "UTF-16 without a mark": ((HEAD + "a.mp4,run\n").encode("utf-16-le"), "holds zero bytes"),
    "Latin-1": (HEAD.encode() + b"a.mp4,caf\xe9\n", r"is not UTF-8 text \(line 2, byte 20: .*\); save it as UTF-8"),
    "zero byte in a path": (HEAD + "a\0.mp4,run\n", "holds zero bytes"),
    "zeros": (b"\0" * 999, "holds zero bytes"),
    "no lines": ("\ufeff\n\n", "is empty"),
    "blank cells": (",,\n , \n", "is empty"),
    "header only": ("\ufeffpath,label\r\n\r\n", "has a header but no videos"),
    "a name of a million letters": (HEAD + "a" * 10**6 + ".mp4,run\n", "line 2: is not CSV .field larger than"),
    "other separator without a header": ("a.mp4;run\nb.mp4;sit\n", "'a.mp4;run' is neither a header .* with a comma"),
    "list of mmaction2": ("a.mp4 0\nb.mp4 1\n", "'a.mp4 0' is neither a header"),
    "list of frame folders": ("a 120 0\nb 64 1\n", "'a 120 0' is neither a header"),
    "a column of paths": ("a.mp4\nb.mp4\n", "'a.mp4' is neither a header"),
    "comment": ("# mine\npath,label\na.mp4,run\n", "line 1: '# mine' is neither a header"),
    "columns in the other order": ("run,a.mp4\nsit,b.mp4\n", "the videos stand in the second column; put the line"),
    "header of other words": ("clip,action\na.mp4,run\nb.mp4,sit\n", "line 1: 'clip,action' is neither a header"),
    "more columns without a header": ("a.mp4,run,train\n", "line 1: 'a.mp4,run,train' is neither a header"),
    "header again": (HEAD + "a.mp4,run\npath,label\nb.mp4,sit\n", r"line 3: is a header again \(path,label\); remove"),
    "header in the middle": ("a.mp4,run\npath,label\nb.mp4,sit\n", "line 2: is a header again"),
    "comma in a name": (HEAD + "a,b.mp4,run\n", "line 2: has 3 columns, not 2 .*put quotes around a name"),
    "backslash before a quote": (HEAD + '"a\\"b.mp4",run\n', "line 2: is not CSV"),
    "JSON": ('[{"path": "a.mp4", "label": "run"}]', "is JSON, not a CSV"),
    "page of a server": ("<!DOCTYPE html><html>404</html>", "is a page of the web .HTML., not a list"),
    "pointer of git-lfs": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
        "is a pointer of git-lfs, not the file itself",
    ),
    "camera": (HEAD + "rtsp://x.org/1,run\n", "line 2: 'rtsp://x.org/1' is an address that files are not read from"),
    "address of a file": (HEAD + "file:///a.mp4,run\n", "line 2: 'file:///a.mp4' is an address that files are not"),
    "no label in one line": (HEAD + "a.mp4,run\nb.mp4,\n", "line 3: 'b.mp4' has no label"),
    "label below 0": (HEAD + "a.mp4,-1\nb.mp4,0\n", "label '-1' is no number of a class"),
    "one number in two ways": (HEAD + "a.mp4,01\nb.mp4,1\n", "labels '01' and '1' are the same number"),
    "one path with two labels": (HEAD + "a.mp4,run\nx/../a.mp4,sit\n", "line 3: .* is already at line 2"),
    "minutes": ("path,label,start\na.mp4,run,0:05\n", "line 2: start is '0:05': a number of seconds is needed"),
    "decimal comma": ('path,label,start\na.mp4,run,"1,5"\n', "line 2: start is '1,5'"),
    "too large a number": ("path,label,end\na.mp4,run,1e309\n", "line 2: end is '1e309'"),
    "split without a word": ("path,label,split\na.mp4,run,\n", "line 2: split '' is none of train, val and test"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_header_of_other_words_above_names_without_an_ending(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("clip,action\nv1,run\nv2,sit\n")
    assert len(read_manifest(tmp_path / "list.csv")) == 3  # nothing tells which of these are videos
    (tmp_path / "v1").mkdir()
    with pytest.raises(ManifestError, match="line 1: 'clip,action' is neither a header"):
        read_manifest(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["list", "/dev/zero", "a\0b", "x" * 300])
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "list").mkdir()
    with pytest.raises(ManifestError, match=r"is a folder|is neither a file nor a pipe|no such file or folder"):
        read_manifest(tmp_path / name, format="csv")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"path,label\n/x/a.mp4,run\n")
    os.close(write)
    try:
        assert read_manifest(f"/dev/fd/{read}")[0].path == "/x/a.mp4"
    finally:
        os.close(read)
