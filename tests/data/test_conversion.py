"""Official annotations, made here in the layouts that the data sets have, to lists that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvid.commands.prep import main
from stvid.data.class_names import read_class_names
from stvid.data.conversion import convert, write_class_names, write_list
from stvid.data.manifest import read_manifest
from stvid.errors import ConfigError, ManifestError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def listed(found: object, root: Path) -> list[tuple[str, str]]:
    return [(str(Path(path).relative_to(root)), label) for path, label, _, _ in found.rows]  # type: ignore[attr-defined]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


KINETICS = """label,youtube_id,time_start,time_end,split
"petting animal (not cat)",-abc_12,3,13,train
"massaging person's ""head"", slowly",idid_000001,10,20,train
abseiling,twice,0,10,train
abseiling,twice,50,60,train
abseiling,twice,50,60,train
abseiling,whole,7,17,train
abseiling,gone,1,11,train
"""


@pytest.mark.parametrize("dataset", ["kinetics400", "kinetics600", "kinetics700"])
def test_kinetics(tmp_path: Path, dataset: str) -> None:
    annotation = write(tmp_path / "train.csv", KINETICS)
    root = tmp_path / "videos"
    touch(root, "petting animal (not cat)/-abc_12_000003_000013.mp4", "idid_000001_000010_000020.mkv")
    touch(root, "abseiling/twice_000000_000010.mp4", "abseiling/twice_000050_000060.mp4", "whole.webm", "more.mp4")
    found = convert(dataset, annotation, root)
    assert listed(found, root) == [
        ("petting animal (not cat)/-abc_12_000003_000013.mp4", "petting animal (not cat)"),
        ("idid_000001_000010_000020.mkv", 'massaging person\'s "head", slowly'),
        ("abseiling/twice_000000_000010.mp4", "abseiling"),
        ("abseiling/twice_000050_000060.mp4", "abseiling"),
        ("whole.webm", "abseiling"),
    ]
    assert [row[2:] for row in found.rows] == [(None, None)] * 4 + [(7.0, 17.0)]
    assert found.missing == ["gone_000001_000011"]
    assert found.unexpected == [str(root / "more.mp4")]
    assert found.repeated == 1
    assert len(found.class_names) == 3
    write_list(tmp_path / "out.csv", found)
    manifest = read_manifest(tmp_path / "out.csv")
    assert [manifest[index].labels[0] for index in range(5)] == [label for _, label in listed(found, root)]
    assert (manifest[4].start, manifest[4].end, manifest[3].start) == (7.0, 17.0, None)


def test_parts_of_one_whole_video(tmp_path: Path) -> None:
    annotation = write(tmp_path / "a.csv", KINETICS)
    touch(tmp_path / "v", "twice.mp4")
    assert [row[2:] for row in convert("kinetics400", annotation, tmp_path / "v").rows] == [(0.0, 10.0), (50.0, 60.0)]


def test_something_something_v2(tmp_path: Path) -> None:
    rows = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something] next to [something]"},
        {"id": "42326", "label": "x", "template": "Putting [something], and [something]"},
        {"id": "1", "label": "x", "template": "Holding [something] next to [something]"},
    ]
    annotation = write(tmp_path / "train.json", json.dumps(rows))
    names = {"Putting something, and something": "0", "Unused": "1", "Holding something next to something": "2"}
    write(tmp_path / "labels.json", json.dumps(names))
    touch(tmp_path / "v", "78687.webm", "42326.webm", "5.webm")
    found = convert("ssv2", annotation, tmp_path / "v")
    assert listed(found, tmp_path / "v") == [
        ("78687.webm", "Holding something next to something"),
        ("42326.webm", "Putting something, and something"),
    ]
    assert found.class_names == list(names)
    assert found.missing == ["1"] and found.unexpected == [str(tmp_path / "v/5.webm")]


def test_something_something_v1(tmp_path: Path) -> None:
    annotation = write(
        tmp_path / "train.csv", '100218;Something falling like a feather; slowly\n24413;Say "hi", twice\n'
    )
    touch(tmp_path / "v", "100218/00001.jpg", "100218/00002.jpg", "24413/00001.jpg", "9/00001.jpg", "9.mp4")
    found = convert("ssv1", annotation, tmp_path / "v")
    assert listed(found, tmp_path / "v") == [
        ("100218", "Something falling like a feather; slowly"),
        ("24413", 'Say "hi", twice'),
    ]
    assert found.unexpected == [str(tmp_path / "v/9")]
    write_list(tmp_path / "out.csv", found)
    assert read_manifest(tmp_path / "out.csv")[1].labels == ('Say "hi", twice',)


def test_ucf101(tmp_path: Path) -> None:
    """The lists write HandStandPushups in file names; copies of the set have either spelling."""
    write(tmp_path / "lists/classInd.txt", "1 ApplyEyeMakeup\n2 HandstandPushups\n3 YoYo\n")
    train = write(
        tmp_path / "lists/trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nHandStandPushups/v_HandStandPushups_g01_c01.avi 2\n"
        "HandstandPushups/v_HandStandPushups_g02_c01.avi 2\n",
    )
    test = write(tmp_path / "lists/testlist01.txt", "YoYo/v_YoYo_g01_c01.avi\n\nYoYo/v_YoYo_g01_c02.avi\n")
    touch(tmp_path / "v", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "YoYo/v_YoYo_g01_c02.avi")
    touch(tmp_path / "v", "HandstandPushups/v_HandstandPushups_g01_c01.avi")
    touch(tmp_path / "v", "HandstandPushups/v_HandStandPushups_g02_c01.avi")
    found = convert("ucf101", train, tmp_path / "v")
    assert [label for _, label in listed(found, tmp_path / "v")] == ["ApplyEyeMakeup", *["HandstandPushups"] * 2]
    assert not found.missing and not found.unexpected
    assert found.class_names == ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    assert convert("ucf101", test, tmp_path / "v").missing == ["v_YoYo_g01_c01"]


def test_hmdb51(tmp_path: Path) -> None:
    odd = "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi"
    other = "Let's_(s01)_[&;@!]_20.5%_clap_f_nm_np1_ba_med_1.avi"
    write(tmp_path / "splits/clap_test_split1.txt", f"{odd} 1 \n{other} 2 \nunused_clap.avi 0 \n")
    write(tmp_path / "splits/brush_hair_test_split1.txt", "a b_brush_hair_u_0.avi 1\nn_brush_hair_1.avi 2\n")
    write(tmp_path / "splits/clap_test_split2.txt", "nothing.avi 1\n")
    touch(tmp_path / "v", f"clap/{odd}", f"clap/{other}", "brush_hair/a b_brush_hair_u_0.avi", "clap/unused_clap.avi")
    parts = {part: convert("hmdb51", tmp_path / "splits", tmp_path / "v", part=part) for part in ("train", "test")}
    assert listed(parts["train"], tmp_path / "v") == [
        ("brush_hair/a b_brush_hair_u_0.avi", "brush_hair"),
        (f"clap/{odd}", "clap"),
    ]
    assert listed(parts["test"], tmp_path / "v") == [(f"clap/{other}", "clap")]
    assert parts["test"].missing == ["n_brush_hair_1"]
    assert parts["test"].class_names == ["brush_hair", "clap"]
    write_list(tmp_path / "out.csv", parts["test"])
    assert read_manifest(tmp_path / "out.csv")[0].path == str(tmp_path / "v/clap" / other)


@pytest.mark.parametrize("vocabulary", [True, False])
def test_diving48(tmp_path: Path, vocabulary: bool) -> None:
    rows = [
        {"vid_name": "8mSX8J6vVUs_00100", "label": 2, "start_frame": 0, "end_frame": 150},
        {"vid_name": "-oLk3XwMVqg_00001", "label": 0, "start_frame": 0, "end_frame": 99},
    ]
    annotation = write(tmp_path / "Diving48_V2_train.json", json.dumps(rows))
    if vocabulary:
        names = [
            ["Back", "15som", "05Twis", "FREE"],
            ["Back", "Dive", "NoTwis", "PIKE"],
            ["Inward", "25som", "", "TUCK"],
        ]
        write(tmp_path / "Diving48_vocab.json", json.dumps(names))
    touch(tmp_path / "rgb", "8mSX8J6vVUs_00100.mp4", "-oLk3XwMVqg_00001.mp4")
    found = convert("diving48", annotation, tmp_path / "rgb")
    first = "Back 15som 05Twis FREE" if vocabulary else "0"
    assert [label for _, label in listed(found, tmp_path / "rgb")][1] == first == found.class_names[0]
    assert len(found.class_names) == 3


def test_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path / "v", "b/x.mp4", "a/deep/y.avi")
    found = convert("folder", tmp_path / "v", tmp_path / "v")
    assert listed(found, tmp_path / "v") == [("a/deep/y.avi", "a"), ("b/x.mp4", "b")]


HEAD = "label,youtube_id,time_start,time_end\n"


@pytest.mark.parametrize(
    ("dataset", "file", "text", "message"),
    [
        ("kinetics400", "a.csv", "label,id\na,b\n", "a.csv, line 1: has no column 'youtube_id'"),
        ("kinetics400", "a.csv", HEAD + "a,there,x,10\n", "a.csv, line 2: time_start is 'x': a number of seconds"),
        ("kinetics400", "a.csv", HEAD + "a,there,inf,10\n", "a.csv, line 2: time_start is 'inf': a number"),
        ("kinetics400", "a.csv", HEAD + "a,there\n", "a.csv, line 2: has 2 columns, not 4"),
        ("kinetics400", "a.csv", HEAD + "a,there,10,5\n", "line 2: time_end is not after time_start"),
        ("kinetics400", "a.csv", HEAD + 'a,"there,1,5\n', "a.csv, line 2: is not CSV"),
        ("kinetics400", "a.csv", HEAD + "a,there,0,5\nb,there,0,5\n", "gives .*there.mp4 two labels, 'a' and 'b'"),
        ("kinetics400", "a.csv", HEAD + "a,there,0,5\n,there,5,9\n", "a.csv, line 3: 'there' has no label"),
        ("kinetics400", "a.csv", HEAD + "a,gone,0,5\n", "holds none of the 1 videos of .*, such as gone_000000_000005"),
        ("ssv2", "a.json", "[1]", "a.json, video 1: has no id"),
        ("ssv2", "a.json", "{", "a.json, line 1: is not JSON"),
        ("ssv2", "a.json", '[{"template": "x"}]', "a.json, video 1: has no id"),
        ("ssv1", "a.csv", "there;x\n", "a.csv, line 1: needs 'id;label'"),
        ("ucf101", "a.txt", "there.avi 1\n", "a.txt, line 1: 'there.avi' is not like Class/v_Class_g01_c01.avi"),
        (
            "hmdb51",
            "s/clap_test_split1.txt",
            "there.avi\n",
            "line 1: needs '<file>.avi' and 0, 1 or 2, not 'there.avi'",
        ),
        ("hmdb51", "s/clap.txt", "there.avi 1\n", "s: holds no <class>_test_split1.txt"),
        ("diving48", "a.json", '[{"vid_name": "there"}]', "a.json, video 1: needs vid_name and label"),
        ("nosuch", "a.csv", HEAD, "nosuch: no such data set"),
    ],
)
def test_wrong_annotations_are_one_line(
    tmp_path: Path, dataset: str, file: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    annotation = write(tmp_path / file, text)
    touch(tmp_path / "v", "there.mp4")
    where = annotation.parent if dataset == "hmdb51" else annotation
    with pytest.raises((ManifestError, ConfigError), match=message):
        convert(dataset, where, tmp_path / "v")
    code = main(["manifest", dataset, str(where), "--root", str(tmp_path / "v"), "--out", str(tmp_path / "o.csv")])
    error = capsys.readouterr().err
    assert code == (2 if dataset == "nosuch" else 1) and error.count("\n") == 1, error
    assert not (tmp_path / "o.csv").exists()


def test_either_all_videos_have_a_label_or_none(tmp_path: Path) -> None:
    annotation = write(tmp_path / "a.csv", "1;a\n2\n")
    touch(tmp_path / "v", "1.webm", "2.webm")
    with pytest.raises(ManifestError, match="1 videos have no label, but others have"):
        convert("ssv2", annotation, tmp_path / "v")


def test_labels_that_are_not_in_the_list_of_classes(tmp_path: Path) -> None:
    annotation = write(tmp_path / "a.json", json.dumps([{"id": "1", "template": "Holding [something]"}]))
    write(tmp_path / "labels.json", json.dumps({"Holding somethin": "0"}))
    touch(tmp_path / "v", "1.webm")
    with pytest.raises(ManifestError, match="'Holding something' is not in the list of classes; nearest: Holding"):
        convert("ssv2", annotation, tmp_path / "v")


def test_the_command_writes_list_classes_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotation = write(tmp_path / "a.csv", KINETICS)
    touch(tmp_path / "v", "abseiling/twice_000000_000010.mp4", "more.mp4")
    arguments = ["manifest", "kinetics400", str(annotation), "--root", str(tmp_path / "v")]
    assert main([*arguments, "--out", str(tmp_path / "lists/train.csv")]) == 0
    shown = capsys.readouterr()
    assert "1 of 7 annotated videos are there" in shown.out
    assert "kinetics400 has 400 classes, the annotation 3" in shown.err
    lists = tmp_path / "lists"
    assert (lists / "train_classes.txt").read_text().splitlines()[0] == "abseiling"
    assert "gone_000001_000011" in (lists / "train_missing.txt").read_text().splitlines()
    assert (lists / "train_unexpected.txt").read_text().splitlines() == [str(tmp_path / "v/more.mp4")]
    (tmp_path / "v/more.mp4").unlink()
    assert main([*arguments, "--out", str(lists / "train.csv")]) == 0
    assert not (lists / "train_unexpected.txt").exists()


def test_folders_that_link_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path, "videos/a/7.webm")
    (tmp_path / "videos" / "a" / "again").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "b").symlink_to(tmp_path / "videos" / "a")
    found = convert("ssv2", write(tmp_path / "train.json", '[{"id": "7", "label": "x"}]'), tmp_path / "videos")
    assert (listed(found, tmp_path), found.unexpected) == ([("videos/a/7.webm", "x")], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ssv2", "--part", "test"], "--part: only for hmdb51, hacs, activitynet; ssv2 has a file"),
        (["ucf101", "--split", "1"], "--split: only for hmdb51"),
        (["ssv2", "--rows", "videos"], "--rows: only for charades, hacs, activitynet"),
        (["hmdb51", "--part", "val"], "--part val: hmdb51 has train, test"),
        (["folder", "--root", "."], "--root: has no meaning for a folder per class"),
    ],
)
def test_options_that_mean_nothing_here(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, *options = arguments
    assert main(["manifest", dataset, str(tmp_path), *options, "--out", str(tmp_path / "out.csv")]) == 2
    assert message in capsys.readouterr().err


def test_a_list_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "7.webm")
    annotation = write(tmp_path / "train.json", '[{"id": "7", "label": "x"}]')
    (tmp_path / "out.csv").mkdir()
    assert main(["manifest", "ssv2", str(annotation), "--out", str(tmp_path / "out.csv")]) == 1
    assert capsys.readouterr().err == (f"stvid prep: error: {tmp_path}/out.csv: cannot be written (Is a directory)\n")
    touch(tmp_path, "file")
    assert main(["manifest", "ssv2", str(annotation), "--out", str(tmp_path / "file" / "out.csv")]) == 1
    assert "file/out.csv: cannot be written (" in capsys.readouterr().err


def test_class_names_are_written_so_that_they_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    for names in (
        ["run", "sit"],
        ["1 clap", "2 clap"],
        ["2 run", "1 sit"],
        ["names", "run"],
        ["10", "2"],
        ["a,0", "b,1"],
    ):
        write_class_names(path, names)
        assert list(read_class_names(path)) == names
    write_class_names(path, ["1 clap", "2 clap"])
    assert path.read_text().startswith("[")
    write_class_names(path, ["run", "sit"])
    assert path.read_text() == "run\nsit\n"
    with pytest.raises(ManifestError, match="holds a control character"):
        write_class_names(path, ["a\nb", "sit"])
    assert not path.exists()
    touch(tmp_path / "v/a\nb", "x.mp4")
    touch(tmp_path / "v/sit", "y.mp4")
    assert main(["manifest", "folder", str(tmp_path / "v"), "--out", str(tmp_path / "o.csv")]) == 1
    assert not (tmp_path / "o.csv").exists()
