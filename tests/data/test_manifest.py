from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from stvid.data.manifest import Manifest, VideoEntry, read_class_names, read_manifest
from stvid.errors import ManifestError


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        write(path, b"not read here")


# ------------------------------------------------------------------------------------------------------------------ csv


def test_csv(tmp_path: Path) -> None:
    text = 'path,label,start,end\na/x.mp4,run,,\nb/ü y.mp4,"throw, far",1.5,2\na/x.mp4,run,3,\n/abs/z.mp4,jump,,4.25\n'
    manifest = read_manifest(write(tmp_path / "list.csv", text))
    assert len(manifest) == 4 and manifest.has_labels
    assert manifest.class_names == ("jump", "run", "throw, far")
    assert list(manifest) == [
        VideoEntry(str(tmp_path / "a/x.mp4"), ("run",)),
        VideoEntry(str(tmp_path / "b/ü y.mp4"), ("throw, far",), 1.5, 2.0),
        VideoEntry(str(tmp_path / "a/x.mp4"), ("run",), 3.0, None),
        VideoEntry("/abs/z.mp4", ("jump",), None, 4.25),
    ]
    assert manifest.primary.tolist() == [1, 2, 1, 0] and manifest.primary.dtype == np.int64
    assert manifest.label_ids(1).tolist() == [2] and manifest.label_ids(-1).tolist() == [0]
    assert manifest[-1] == manifest[3]
    with pytest.raises(IndexError):
        manifest[4]
    assert "4 videos, 3 classes" in repr(manifest)


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4,run\nb.mp4,jump\n",
        "path,label\na.mp4,run\nb.mp4,jump",
        "label,path\nrun,a.mp4\njump,b.mp4\n",
        "Path, Label\n a.mp4 , run\n\n b.mp4 ,jump\n\n",
        "path,label\r\na.mp4,run\r\nb.mp4,jump\r\n",
        b"\xef\xbb\xbfpath,label\r\na.mp4,run\r\nb.mp4,jump\r\n",
        "path,label,end,start\na.mp4,run,,\nb.mp4,jump,,\n",
        './a.mp4,run\n"b.mp4","jump"\n',
    ],
)
def test_csv_in_other_shapes(text: str | bytes, tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "list.csv", text))
    assert [(os.path.basename(e.path), e.labels, e.start, e.end) for e in manifest] == [
        ("a.mp4", ("run",), None, None),
        ("b.mp4", ("jump",), None, None),
    ]


def test_csv_root_and_class_names(tmp_path: Path) -> None:
    path = write(tmp_path / "lists/list.csv", "a.mp4,run\nb.mp4,jump\n")
    manifest = read_manifest(path, root=tmp_path / "videos", class_names=["walk", "run", "jump"])
    assert manifest[0].path == str(tmp_path / "videos/a.mp4")
    assert manifest.class_names == ("walk", "run", "jump") and manifest.primary.tolist() == [1, 2]
    assert read_manifest(path)[0].path == str(tmp_path / "lists/a.mp4")


def test_csv_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "list.csv", "a.mp4,run\n")
    monkeypatch.chdir(tmp_path)
    manifest = read_manifest("list.csv")
    monkeypatch.chdir("/")
    assert manifest[0].path == str(tmp_path / "a.mp4")


def test_csv_without_labels(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "list.csv", "path\na.mp4\nb.mp4\n"))
    assert not manifest.has_labels and manifest.class_names == ()
    assert manifest.primary.tolist() == [-1, -1] and manifest[1].labels == ()
    assert manifest.label_ids(0).shape == (0,)
    assert manifest.with_class_names(["x"]).class_names == ("x",)


def test_csv_numbers_are_places(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "list.csv", "a.mp4,10\nb.mp4,9\n"))
    assert manifest.class_names == ("9", "10") and manifest[0].labels == ("10",)


def test_csv_with_several_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "path,label\na.mp4,run|jump\nb.mp4, walk \nc.mp4,jump|run|walk|run\n")
    manifest = read_manifest(path, multilabel=True)
    assert manifest.class_names == ("jump", "run", "walk")
    assert [manifest.label_ids(i).tolist() for i in range(3)] == [[0, 1], [2], [0, 1, 2]]
    assert manifest[2].labels == ("jump", "run", "walk") and manifest.primary.tolist() == [0, 2, 0]
    other = manifest.with_class_names(["walk", "x", "run", "jump"])
    assert [other.label_ids(i).tolist() for i in range(3)] == [[2, 3], [0], [0, 2, 3]]
    assert read_manifest(path).class_names == ("jump|run|walk|run", "run|jump", "walk")
    with pytest.raises(ManifestError, match=r"line 2: 'a.mp4' has no label"):
        read_manifest(write(tmp_path / "bad.csv", "path,label\na.mp4,run|\n"), multilabel=True)


def test_csv_with_rows_that_show_none_of_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "path,label\na.mp4,\nb.mp4,run|jump\nc.mp4, \n")
    manifest = read_manifest(path, multilabel=True)
    assert manifest.has_labels and manifest.class_names == ("jump", "run")
    assert [manifest.label_ids(i).tolist() for i in range(3)] == [[], [0, 1], []]
    assert manifest[0].labels == () and manifest.primary.tolist() == [-1, 0, -1]
    assert manifest.subset([2, 1]).has_labels and not manifest.subset([0, 2]).has_labels
    assert manifest.with_class_names(["run", "jump"]).label_ids(0).shape == (0,)
    with pytest.raises(ManifestError, match=r"line 2: 'a\.mp4' has no label"):
        read_manifest(path)
    rows = [VideoEntry("a.mp4"), VideoEntry("b.mp4", ("run",))]
    assert Manifest.from_entries(rows, multilabel=True).has_labels
    with pytest.raises(ManifestError, match=r"entry 0: 'a\.mp4' has no label, but others have"):
        Manifest.from_entries(rows)
    nothing = write(tmp_path / "nothing.csv", "path,label\na.mp4,\nb.mp4,\n")
    assert not read_manifest(nothing, multilabel=True).has_labels
    listed = write(tmp_path / "list.json", '[{"id": "1", "template": "x"}, {"id": "2"}]')
    with pytest.raises(ManifestError, match="has no label, but others have"):
        read_manifest(listed, multilabel=True)  # a missing template says nothing about the video


@pytest.mark.parametrize("name", ["a.mp4", "b.WEBM"])
def test_a_video_is_no_list(name: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=f"{name}: is a video, not a list of videos; give a CSV"):
        read_manifest(write(tmp_path / name, b"\x00\xff\xfe video"))


BAD_CSV = {
    "": "is empty",
    "\n  \n": "is empty",
    "path,label\n": "has a header but no videos",
    "path,label\na.mp4,run\nb.mp4\n": r"line 3: has 1 columns, not 2 \(path,label\)",
    "path,label\na.mp4,throw, far\n": r"line 2: has 3 columns, not 2 .*quotes around a name that holds a comma",
    "path,label\n\na.mp4,\n": "line 3: 'a.mp4' has no label",
    "path,label\n,run\n": "line 2: has no path",
    "path,lable\na.mp4,run\n": r"line 1: unknown column 'lable'; use path,label,start,end; nearest: label",
    "path,path\na.mp4,run\n": "line 1: column 'path' occurs twice",
    "video,label\na.mp4,run\n": r"line 1: 'video,label' is neither a header",
    "video_name,tag\na.mp4,run\nb.mp4,sit\n": r"line 1: 'video_name,tag' is neither a header \(path,label",
    "a.mp4 0\nb.mp4 1\n": "line 1: 'a.mp4 0' is neither a header",
    "a.mp4,run,1,2\n": "line 1: .* is neither a header",
    "path,label,start\na.mp4,run,soon\n": "line 2: start is 'soon': a number of seconds is needed",
    "path,label,end\na.mp4,run,nan\n": "line 2: end is 'nan'",
    "path,label,end\na.mp4,run,inf\n": "line 2: end is 'inf'",
    "path,label,start\na.mp4,run,-1\n": "line 2: start is '-1'",
    "path,label,start,end\na.mp4,run,2,2\n": r"line 2: end \(2 s\) is not after start \(2 s\)",
    "path,label,end\na.mp4,run,0\n": r"line 2: end \(0 s\) is not after start \(0 s\)",
    "path,label\na.mp4,run\nb.mp4,run\n./a.mp4,jump\n": r"line 4: './a.mp4' is already at line 2; remove one",
    "path,label,start,end\na.mp4,x,1,2\na.mp4,x,1.0,2.0\n": "line 3: 'a.mp4' is already at line 2",
    'path,label\na.mp4,"run\nb.mp4,jump\n': "line 3: is not CSV",
    'path,label\n"a.mp4"x,run\n': "line 2: is not CSV",
}


@pytest.mark.parametrize("text", BAD_CSV)
def test_csv_errors_name_the_line(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", text)
    with pytest.raises(ManifestError, match=BAD_CSV[text]) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_csv_with_further_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "id,path,fps,label,\n7,a.mp4,25,run,\n8,b.mp4,30,sit,\n")
    manifest = read_manifest(path)
    assert manifest.class_names == ("run", "sit") and manifest[1].path == str(tmp_path / "b.mp4")
    assert manifest.notes == (f"{path}: ignored columns: id, fps, (without a name)",) and manifest.splits == ()
    for header, meant in (("path,class", "label"), ("path,label,start_time", "start"), ("path,labels,fps", "label")):
        row = ",".join(["a.mp4", "run", "1"][: header.count(",") + 1])
        with pytest.raises(ManifestError, match=f"line 1: unknown column .*nearest: {meant}"):
            read_manifest(write(tmp_path / "bad.csv", f"{header}\n{row}\n"))


def test_csv_with_a_column_of_splits(tmp_path: Path) -> None:
    text = "path,label,split\na.mp4,run,train\nb.mp4,sit,Training\nc.mp4,sit,val\n"
    path = write(tmp_path / "list.csv", text)
    assert len(read_manifest(path)) == 3 and read_manifest(path).splits == ("train", "val")
    manifest = read_manifest(path, splits=("train",))
    assert len(manifest) == 2 and manifest.subset([0]).splits == ("train", "val")
    assert manifest.notes == (f"{path}: 2 of 3 rows, those whose column split says train",)
    assert [e.path for e in read_manifest(path, splits=("test", "val"))] == [str(tmp_path / "c.mp4")]
    with pytest.raises(ManifestError, match="no row is of the split 'test'; its column split has train, val"):
        read_manifest(path, splits=("test",))
    one = write(tmp_path / "one.csv", "path,label,split\na.mp4,run,test\nb.mp4,sit,test\n")
    assert len(read_manifest(one, splits=("val",))) == 2  # the list of one split: given for whatever it is given for
    with pytest.raises(ManifestError, match="line 3: split 'fold1' is none of train, val and test"):
        read_manifest(write(tmp_path / "bad.csv", "path,label,split\na.mp4,run,train\nb.mp4,sit,fold1\n"))


def test_csv_of_several_labels_with_another_sign(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", 'path,label\na.mp4,"run,jump"\nb.mp4,sit\n')
    assert read_manifest(path, multilabel=True).notes == (
        f"{path}: no video has several labels; they are joined by | (run|jump), so 'run,jump' is one class",
    )
    assert read_manifest(path).notes == ()
    several = write(tmp_path / "several.csv", "path,label\na.mp4,run|jump\nb.mp4,sit\n")
    assert read_manifest(several, multilabel=True).notes == ()


def test_csv_line_numbers_count_lines_within_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", 'path,label\n"a\nb.mp4",run\nc.mp4,\n')
    with pytest.raises(ManifestError, match=r"line 4: 'c.mp4' has no label"):
        read_manifest(path)


def test_csv_label_that_is_not_a_class(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "path,label\na.mp4,run\nb.mp4,jumpp\n")
    with pytest.raises(ManifestError, match=r"line 3: label 'jumpp' is not among the 2 class names; nearest: jump"):
        read_manifest(path, class_names=["run", "jump"])


def test_source_errors(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is empty; a variable of the shell"):
        read_manifest("")
    with pytest.raises(ManifestError, match="no such file or folder"):
        read_manifest(tmp_path / "none.csv")
    path = write(tmp_path / "list.csv", "a.mp4,run\n")
    with pytest.raises(ManifestError, match=r"format 'kinetic' does not exist; .*nearest: kinetics"):
        read_manifest(path, format="kinetic")
    with pytest.raises(ManifestError, match="needs a folder"):
        read_manifest(path, format="folder")
    with pytest.raises(ManifestError, match="is a folder, but format 'csv' needs a file"):
        read_manifest(tmp_path, format="csv")
    with pytest.raises(ManifestError, match="class name 'a' occurs twice"):
        read_manifest(path, class_names=["a", "run", "a"])
    with pytest.raises(ManifestError, match="the list of class names is empty"):
        read_manifest(path, class_names=[])


# --------------------------------------------------------------------------------------------------------------- folder


def test_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path / "run/b.mp4", tmp_path / "run/a.AVI", tmp_path / "run/deep/er/c.webm", tmp_path / "jump/a.mkv")
    touch(tmp_path / "run/notes.txt", tmp_path / "run/.hidden.mp4", tmp_path / ".git/x.mp4", tmp_path / "README.md")
    (tmp_path / "walk").mkdir()
    for manifest in (read_manifest(tmp_path), read_manifest(str(tmp_path) + "/", format="folder")):
        assert manifest.class_names == ("jump", "run")  # a folder without videos is no class
        left_out, empty = manifest.subset([0]).notes
        assert left_out.endswith(": left out, not known as videos: 1 .txt")
        assert empty.endswith(": 1 folder without videos, no class: walk")
        assert [(os.path.relpath(e.path, tmp_path), e.labels) for e in manifest] == [
            ("jump/a.mkv", ("jump",)),
            ("run/a.AVI", ("run",)),
            ("run/b.mp4", ("run",)),
            ("run/deep/er/c.webm", ("run",)),
        ]
    assert read_manifest(tmp_path, class_names=["walk", "run", "jump"]).primary.tolist() == [2, 1, 1, 1]
    assert "in folders no video has several labels" in read_manifest(tmp_path, multilabel=True).notes[2]


def test_folder_of_cameras_and_recorders(tmp_path: Path) -> None:
    names = [
        "a.dav",
        "b.h264",
        "c.265",
        "d.m2v",
        "e.mjpeg",
        "f.3g2",
        "g.dv",
        "h.MOD",
        "i.TOD",
        "j.ogg",
        "k.qt",
        "l.insv",
    ]
    touch(*(tmp_path / "run" / name for name in names), tmp_path / "jump/a.mp4")
    assert len(read_manifest(tmp_path)) == 13 and read_manifest(tmp_path).notes == ()
    touch(*(tmp_path / "run" / name for name in ("x.xyz", "y.XYZ", "z.yuv", "Thumbs")))
    assert read_manifest(tmp_path).notes[0].endswith("not known as videos: 2 .xyz, 1 without an extension, 1 .yuv")


def test_folder_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/x.mp4", tmp_path / "data/run/a.mp4")
    (tmp_path / "data/jump").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/run/loop").symlink_to(tmp_path / "data/run")
    manifest = read_manifest(tmp_path / "data")
    assert [os.path.relpath(e.path, tmp_path / "data") for e in manifest] == ["jump/x.mp4", "run/a.mp4"]


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no folders"):
        read_manifest(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(ManifestError, match="no video file in its folders"):
        read_manifest(tmp_path)
    touch(tmp_path / "run/a.mp4")
    with pytest.raises(ManifestError, match="label 'run' is not among the 1 class names"):
        read_manifest(tmp_path, class_names=["jump"])
    with pytest.raises(ManifestError, match="root has no meaning"):
        read_manifest(tmp_path, root=tmp_path)
    touch(tmp_path / "b.mp4")
    with pytest.raises(ManifestError, match=r"'b.mp4' is not in the folder of a class"):
        read_manifest(tmp_path)


def test_folder_of_splits_is_not_one_of_classes(tmp_path: Path) -> None:
    touch(tmp_path / "train/run/a.mp4", tmp_path / "test/run/b.mp4")
    with pytest.raises(ManifestError, match="test, train look like splits, not classes; give one of them"):
        read_manifest(tmp_path)
    assert read_manifest(tmp_path / "train").class_names == ("run",)


# ------------------------------------------------------------------------------------------------------------- kinetics

KINETICS = (
    "label,youtube_id,time_start,time_end,split,is_cc\n"
    "abseiling,-_AbC123xyz,20,30,train,0\n"
    '"answering questions",0abcdefghij,5,15,train,1\n'
    "abseiling,wholevideo1,7,17,train,0\n"
    "abseiling,gone_gone_g,0,10,train,0\n"
)


def test_kinetics(tmp_path: Path) -> None:
    path = write(tmp_path / "lists/train.csv", KINETICS)
    root = tmp_path / "videos"
    touch(root / "-_AbC123xyz_000020_000030.mp4", root / "answering questions/0abcdefghij_000005_000015.mkv")
    touch(root / "wholevideo1.mp4")
    manifest = read_manifest(path, root=root)
    assert manifest.class_names == ("abseiling", "answering questions")
    assert list(manifest) == [
        VideoEntry(str(root / "-_AbC123xyz_000020_000030.mp4"), ("abseiling",)),
        VideoEntry(str(root / "answering questions/0abcdefghij_000005_000015.mkv"), ("answering questions",)),
        VideoEntry(str(root / "wholevideo1.mp4"), ("abseiling",), 7.0, 17.0),
        VideoEntry(str(root / "gone_gone_g_000000_000010.mp4"), ("abseiling",)),
    ]


def test_kinetics_in_folders_of_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", KINETICS)
    touch(tmp_path / "abseiling/-_AbC123xyz_000020_000030.mp4")
    touch(tmp_path / "answering_questions/0abcdefghij_000005_000015.mp4")
    manifest = read_manifest(path, format="kinetics")
    assert [os.path.relpath(entry.path, tmp_path) for entry in manifest] == [
        "abseiling/-_AbC123xyz_000020_000030.mp4",
        "answering_questions/0abcdefghij_000005_000015.mp4",
        "abseiling/wholevideo1_000007_000017.mp4",
        "abseiling/gone_gone_g_000000_000010.mp4",
    ]


def test_kinetics_makes_no_system_call_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"run,video{n:06d},0,10,train\n" for n in range(500))
    path = write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split\n" + rows)
    touch(tmp_path / "run/video000007_000000_000010.mp4")
    calls = []
    for name in ("stat", "scandir", "listdir"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, call=call, **k: (calls.append(a), call(*a, **k))[1])
    assert len(read_manifest(path)) == 500
    assert len(calls) < 10


def test_kinetics_test_list_has_no_labels(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "t.csv", "youtube_id,time_start,time_end,split\nabc,1,11,test\n"))
    assert not manifest.has_labels and manifest[0].path.endswith("abc_000001_000011.mp4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,youtube_id,time_start\nrun,a,1\n", "line 1: has no column 'time_end'"),
        ("label,youtube_id,time_start,time_end\nrun,a,1,x\n", "line 2: time_end is 'x'"),
        ("label,youtube_id,time_start,time_end\nrun,a,,2\n", "line 2: time_start and time_end are needed"),
        ("label,youtube_id,time_start,time_end\n,a,1,2\n", "line 2: 'a' has no label"),
        ("label,youtube_id,time_start,time_end\nrun,,1,2\n", "line 2: has no youtube_id"),
        ("label,youtube_id,time_start,time_end\nrun,a,1\n", "line 2: has 3 columns, not 4"),
        ("label,youtube_id,time_start,time_end\nrun,a,1,2\nrun,a,1,2\n", "line 3: .* is already at line 2"),
        ("label,youtube_id,time_start,time_end\n", "has a header but no videos"),
    ],
)
def test_kinetics_errors(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest(write(tmp_path / "train.csv", text))


# ----------------------------------------------------------------------------------------------------------------- ssv2


def test_ssv2(tmp_path: Path) -> None:
    videos = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "42326", "label": "x", "template": "Moving [something] and [something] closer", "placeholders": []},
        {"id": 7, "template": "Holding [something]"},
    ]
    touch(tmp_path / "v/78687.webm", tmp_path / "v/42326.mp4", tmp_path / "v/sub/7.mp4")
    path = write(tmp_path / "train.json", json.dumps(videos))
    manifest = read_manifest(path, root=tmp_path / "v")
    assert manifest.class_names == ("Holding something", "Moving something and something closer")
    assert [os.path.relpath(entry.path, tmp_path) for entry in manifest] == ["v/78687.webm", "v/42326.mp4", "v/7.webm"]
    assert manifest.primary.tolist() == [0, 1, 0]
    labels = {"Moving something and something closer": "0", "Other": "2", "Holding something": "1"}
    names = read_class_names(write(tmp_path / "labels.json", json.dumps(labels)))
    assert names == ("Moving something and something closer", "Holding something", "Other")
    assert read_manifest(path, root=tmp_path / "v", class_names=names).primary.tolist() == [1, 0, 1]


def test_ssv2_test_list(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "test.json", '[{"id": "1"}, {"id": "2"}]'))
    assert len(manifest) == 2 and not manifest.has_labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": "1",\n}]', r"line \d: is not JSON"),
        ("{}", "needs a list of videos"),
        ("[]", "needs a list of videos"),
        ('[{"id": "1"}, {"template": "x"}]', "video 2: has no id"),
        ("[3]", "video 1: has no id"),
        ('[{"id": "1", "template": "[]"}]', r"video 1 \(id 1\): has no label"),
        ('[{"id": "1", "template": "x"}, {"id": "2"}]', r"video 2 \(id 2\): '2.webm' has no label, but others have"),
        ('[{"id": "1", "template": "x"}, {"id": "1", "template": "x"}]', r"'1.webm' is already at video 1"),
    ],
)
def test_ssv2_errors(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        read_manifest(write(tmp_path / "train.json", text))
