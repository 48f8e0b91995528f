"""The script of Kinetics, on the layout of the copies of CVDF with a few videos."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stvid

SCRIPT = Path(__file__).parent.parent.parent / "data_prep" / "kinetics" / "prepare.py"
HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def official(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    """Two training videos of three are there, one of them twice in the list; one of two validation videos is broken."""
    folder = tmp_path / "k400"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "train.csv").write_text(
        HEADER + "abseiling,aaaaaaaaaaa,3,4,train\nabseiling,aaaaaaaaaaa,3,4,train\n"
        "zumba,-bbbbbbbbbb,10,11,train\nzumba,ccccccccccc,0,10,train\n"
    )
    (folder / "annotations" / "val.csv").write_text(
        HEADER + "abseiling,ddddddddddd,0,1,val\nzumba,eeeeeeeeeee,0,1,val\n"
    )
    for name, split in (
        ("aaaaaaaaaaa_000003_000004.mp4", "train"),
        ("-bbbbbbbbbb_000010_000011.mp4", "train"),
        ("ddddddddddd_000000_000001.mp4", "val"),
    ):
        make_video(name, frames=25, first=ord(name[-22]), to=folder / split)
    (folder / "val" / "eeeeeeeeeee_000000_000001.mp4").write_bytes(b"not a video")
    return folder


def test_lists_and_counts(
    tmp_path: Path,
    official: Path,
    capsys: pytest.CaptureFixture[str],
    run_prepare: Callable[..., None],
    read_counts: Callable[[Path], dict[tuple[str, str], tuple[str, int, str]]],
) -> None:
    out = tmp_path / "out"
    arguments = ("--edition", "400", "--annotations", official / "annotations", "--videos", official, "--out", out)
    run_prepare("kinetics", *arguments)
    printed = capsys.readouterr().out
    train, val = out / "lists" / "train_readable.csv", out / "lists" / "val_readable.csv"
    assert [stvid.read_manifest(train)[n].labels for n in range(2)] == [("abseiling",), ("zumba",)]
    assert len(stvid.read_manifest(val)) == 1
    assert Path(f"{train}.index").is_dir() and Path(f"{val}.index").is_dir()
    assert read_counts(out) == {
        ("train", "entries in the annotation"): ("246534", 4, ""),
        ("train", "classes"): ("400", 2, ""),
        ("train", "entries that repeat an earlier one"): ("0", 1, ""),
        ("train", "videos there"): ("3", 2, "lists/train_missing.txt"),
        ("train", "videos readable"): ("2", 2, ""),
        ("val", "entries in the annotation"): ("19906", 2, ""),
        ("val", "classes"): ("400", 2, ""),
        ("val", "videos there"): ("2", 2, ""),
        ("val", "videos readable"): ("2", 1, "lists/val.scan.csv"),
    }
    assert (out / "lists" / "train_missing.txt").read_text() == "ccccccccccc_000000_000010\n"
    assert "eeeeeeeeeee_000000_000001.mp4,unreadable" in (out / "lists" / "val.scan.csv").read_text()
    assert f"train: 2 videos there instead of 3: 1 fewer, listed in {out}/lists/train_missing.txt" in printed
    assert f"ready: train {train}" in printed and f"ready: val {val}" in printed


def test_copies_shards_and_an_edition_whose_numbers_are_not_known(
    tmp_path: Path,
    official: Path,
    capsys: pytest.CaptureFixture[str],
    run_prepare: Callable[..., None],
    read_counts: Callable[[Path], dict[tuple[str, str], tuple[str, int, str]]],
) -> None:
    (official / "annotations" / "val.csv").rename(official / "annotations" / "validate.csv")
    arguments = ("--edition", "600", "--annotations", official / "annotations", "--videos", official)
    places = ("--out", tmp_path / "out", "--transcode", tmp_path / "small", "--shards", tmp_path / "shards")
    run_prepare("kinetics", *arguments, *places, "--splits", "val", "--short_side", "32")
    printed = capsys.readouterr().out
    counts = read_counts(tmp_path / "out")
    assert counts["val", "entries in the annotation"] == ("", 2, "")
    assert counts["val", "videos copied"] == ("1", 1, "")
    assert "val: 2 entries in the annotation; no official number to compare with" in printed
    with stvid.VideoReader(tmp_path / "small" / "val" / "ddddddddddd_000000_000001.mp4") as copy:
        assert (copy.height, len(copy)) == (32, 25)
    assert len(stvid.read_manifest(tmp_path / "shards" / "val")) == 1


def test_a_training_video_among_the_validation_videos_is_counted(
    tmp_path: Path,
    official: Path,
    run_prepare: Callable[..., None],
    read_counts: Callable[[Path], dict[tuple[str, str], tuple[str, int, str]]],
) -> None:
    shutil.copy(
        official / "train" / "-bbbbbbbbbb_000010_000011.mp4", official / "val" / "eeeeeeeeeee_000000_000001.mp4"
    )
    arguments = ("--edition", "400", "--annotations", official / "annotations", "--videos", official)
    run_prepare("kinetics", *arguments, "--out", tmp_path / "out", "--check_leakage")
    expected, found, listed = read_counts(tmp_path / "out")["val", "copies of training videos"]
    assert (expected, listed) == ("0", "leakage.csv") and found >= 1
    pairs = (tmp_path / "out" / "leakage.csv").read_text()
    assert "-bbbbbbbbbb_000010_000011.mp4" in pairs and "eeeeeeeeeee_000000_000001.mp4" in pairs


def test_what_cannot_be_done_is_one_line(tmp_path: Path, official: Path) -> None:
    """The script as its page starts it, in processes of its own."""

    def run(annotations: Path) -> subprocess.CompletedProcess[str]:
        options = ["--edition", "400", "--annotations", annotations, "--videos", official, "--out", tmp_path / "out"]
        return subprocess.run([sys.executable, SCRIPT, *options], cwd=tmp_path, capture_output=True, text=True)

    nothing = run(tmp_path)
    assert nothing.returncode == 1
    assert nothing.stderr.startswith(f"prepare: error: {tmp_path}: holds no train.csv; ")
    (official / "annotations" / "train.csv").write_text("label,id\nzumba,eeeeeeeeeee\n")
    wrong = run(official / "annotations")
    assert wrong.returncode == 1
    said = wrong.stderr.splitlines()
    assert len(said) == 2 and said[0].endswith("has no column 'youtube_id', which the CSV of Kinetics has")
    assert said[1].startswith("prepare: error: the step 'stvid prep manifest' failed")
    assert not (tmp_path / "out" / "counts.csv").exists()
