"""``stvid prep scan`` and ``index`` on good, damaged and wrong files."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stvid.commands.prep import main
from stvid.config import AugmentConfig
from stvid.data import scanning
from stvid.data.dataset import EvalDataset, TrainDataset
from stvid.data.jobs import Outcome
from stvid.data.manifest import read_manifest
from stvid.data.scanning import examine, expected_seconds, findings
from stvid.errors import StvidError, VideoError
from stvid.protocol import Protocol
from stvid.video import reader, stored_index
from stvid.video.av_reader import AvSource
from stvid.video.frame_index import index_cache
from stvid.video.stored_index import StoredIndex

MakeVideo = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("in_process")


def rows(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def damage(path: Path) -> Path:
    """Overwrites a stretch in the middle of the frames."""
    data = bytearray(path.read_bytes())
    at = data.find(b"mdat")
    middle = at + (len(data) - at) // 2
    data[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(data)
    return path


def test_scan_finds_what_is_wrong(make_video: MakeVideo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "v" / "a"
    good = make_video("good.mp4", frames=50, to=folder)
    shutil.copy(good, folder / "same bytes.mp4")
    make_video("xy_000005_000015.mp4", frames=51, to=folder)
    make_video("xy_000005_000007.mp4", frames=52, to=folder)
    make_video("short.mp4", frames=5, to=folder)
    damage(make_video("damaged.mp4", frames=48, gop=48, to=folder))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 20)
    command = ["scan", str(tmp_path / "v"), "--fix", str(tmp_path / "fixed.csv")]
    assert main(command) == 1
    found = {(Path(path).name, kind): detail for path, kind, detail in rows(tmp_path / "v.scan.csv")}
    assert sorted(found) == [
        ("damaged.mp4", "damaged"),
        ("empty.mp4", "unreadable"),
        ("same bytes.mp4", "duplicate"),
        ("short.mp4", "short"),
        ("text.mp4", "unreadable"),
        ("xy_000005_000015.mp4", "length"),
    ]
    assert found["same bytes.mp4", "duplicate"] == str(good)
    assert found["xy_000005_000015.mp4", "length"] == "2.04 s instead of 10 s"
    assert found["empty.mp4", "unreadable"] == "is empty (0 bytes)"
    assert found["short.mp4", "short"] == "0.2 s, 5 frames"
    assert "8 videos: " in capsys.readouterr().out
    fixed = read_manifest(tmp_path / "fixed.csv")
    names = {Path(fixed[index].path).name for index in range(len(fixed))}
    assert len(fixed) == 6 and not names & {"empty.mp4", "text.mp4"}
    assert fixed[0].labels == ("a",)

    # What was unreadable is looked at again, the rest is known.
    shutil.copy(make_video("third.mp4", frames=40), folder / "text.mp4")
    assert main(command) == 1
    assert len(read_manifest(tmp_path / "fixed.csv")) == 7


def test_scan_of_good_videos(make_video: MakeVideo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_video("good.mp4", frames=50, to=tmp_path)
    (tmp_path / "list.csv").write_text(f"path,label\n{path.name},x\n")
    assert main(["scan", str(tmp_path / "list.csv"), "--full"]) == 0
    assert "1 videos: nothing is wrong" in capsys.readouterr().out
    assert rows(tmp_path / "list.csv.scan.csv") == []
    assert main(["scan", str(tmp_path / "list.csv")]) == 2  # not what the journal holds
    assert "belongs to a run with other options" in capsys.readouterr().err


def test_a_part_beyond_the_end(make_video: MakeVideo, tmp_path: Path) -> None:
    path = str(make_video("whole.mp4", frames=50, to=tmp_path))
    outcome = Outcome(path, examine(path, {"full": False}), "")
    parts = [(0.0, 2.0), (1.0, 3.0), (1.0, 3.5), (2.5, None), (0.5, None)]
    assert findings([outcome], {path: parts}, shortest=0.5) == [
        (path, "length", "2 s, but the list uses 1 s to 3.5 s"),
        (path, "length", "2 s, but the list uses 2.5 s to its end"),
    ]


def test_lengths_in_names() -> None:
    assert expected_seconds("/a/-x_y_000010_000020.mp4") == 10
    assert expected_seconds("/a/x_000020_000010.mp4") is None
    assert expected_seconds("/a/x_10_20.mp4") is None


def test_examine_reads_every_frame_if_asked(make_video: MakeVideo, tmp_path: Path, monkeypatch) -> None:
    path = str(make_video("good.mp4", frames=70))
    read: list[int] = []
    original = reader.VideoReader.get_batch
    monkeypatch.setattr(
        reader.VideoReader, "get_batch", lambda self, indices: (read.extend(indices), original(self, indices))[1]
    )
    facts = examine(path, {"full": False})
    assert read == [0, 35, 69] and facts["frames"] == 70 and facts["bytes"] == os.path.getsize(path)
    read.clear()
    examine(path, {"full": True})
    assert read == list(range(70))
    with pytest.raises(VideoError, match="no such file"):
        examine(str(tmp_path / "none.mp4"), {"full": True})


def test_training_uses_the_index(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset(tmp_path / "v", classes=("left", "right"), per_class=2)
    protocol = Protocol(frames=4, stride=2, short_side=40, crop=32)
    scanned = TrainDataset(read_manifest(folder), protocol, AugmentConfig(), seed=0)
    assert scanned.stored_index is None
    expected = [scanned[number].clips for number in range(4)]
    (folder / "left" / "broken.mp4").write_text("no video")
    assert main(["index", str(folder)]) == 1
    assert "1 of 5 videos failed; they are listed in" in capsys.readouterr().err
    assert rows(tmp_path / "v.index.failed.csv")[0][0] == str(folder / "left/broken.mp4")
    assert not (tmp_path / "v.index.work").exists()
    (folder / "left" / "broken.mp4").unlink()
    assert main(["index", str(folder)]) == 0
    assert not (tmp_path / "v.index.failed.csv").exists()
    index_cache.clear()

    def refuse(*_: object) -> None:
        raise AssertionError("scanned again")

    monkeypatch.setattr(AvSource, "_index_by_scan", refuse)
    dataset = TrainDataset(read_manifest(folder), protocol, AugmentConfig(), seed=0)
    assert dataset.stored_index is not None and len(dataset.stored_index) == 4
    assert all(torch.equal(dataset[number].clips, clips) for number, clips in enumerate(expected))
    index_cache.clear()
    assert EvalDataset(read_manifest(folder), protocol, views="1x1")[0].error is None


def test_an_interrupted_index_goes_on_with_what_is_whole(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset(tmp_path / "v", classes=("left", "right"), per_class=2)

    def full(*_: object, **__: object) -> None:
        raise StvidError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(stored_index, "write_index", full)
        assert main(["index", str(folder)]) == 1
    assert "no space left" in capsys.readouterr().err
    cut, gone, *_ = sorted((tmp_path / "v.index.work").glob("*.scan"))
    cut.write_bytes(cut.read_bytes()[:-3])
    gone.unlink()

    scanned = []
    scan = scanning.scan
    monkeypatch.setattr(scanning, "scan", lambda path: scanned.append(path) or scan(path))
    assert main(["index", str(folder)]) == 0
    assert len(set(scanned)) == len(scanned) == 2
    assert len(StoredIndex(tmp_path / "v.index")) == 4 and not (tmp_path / "v.index.work").exists()
