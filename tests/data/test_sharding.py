"""``stvid prep shard``; what the shards hold is tested in ``tests/data/test_shards.py``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stvid.commands.prep import main
from stvid.data import sharding
from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.data.sharding import plan_shards

pytestmark = pytest.mark.usefixtures("in_process")


def fill(folder: Path, sizes: list[int]) -> Manifest:
    entries = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.mp4"
        path.write_bytes(bytes(size))
        entries.append(VideoEntry(str(path), (f"c{number % 3}",)))
    return Manifest.from_entries(entries)


def test_shards_have_about_the_size_that_is_asked_for(tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(100, 900, 60).tolist()
    sizes[7] = 5000
    manifest = fill(tmp_path, sizes)
    plan, failed = plan_shards(manifest, size=3000, seed=0)
    assert not failed
    filled = [sum(row["bytes"] for row in rows) for rows in plan]
    assert sorted(row["path"] for rows in plan for row in rows) == sorted(manifest[i].path for i in range(60))
    assert all(2000 < size <= 3000 or len(rows) == 1 for size, rows in zip(filled[:-1], plan[:-1], strict=True) if size)
    assert max(filled) == 5000
    assert plan_shards(manifest, size=3000, seed=0)[0] == plan
    assert plan_shards(manifest, size=3000, seed=1)[0] != plan


def test_odd_names_become_plain_members(tmp_path: Path) -> None:
    names = ["a.b c.MP4", "ü#é.webm", "noextension", f"{'x' * 200}.avi", "taken.JSON", "taken.scan"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    manifest = Manifest.from_entries([VideoEntry(str(tmp_path / name)) for name in names])
    rows = {row["name"]: row["member"] for shard in plan_shards(manifest, size=10, seed=0)[0] for row in shard}
    assert rows == {
        "a.b c.MP4": "00000000-a_b_c.mp4",
        "ü#é.webm": "00000001-___.webm",
        "noextension": "00000002-noextension.video",
        f"{'x' * 200}.avi": f"00000003-{'x' * 60}.avi",
        "taken.JSON": "00000004-taken.video",
        "taken.scan": "00000005-taken.video",
    }


def test_the_command(make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(tmp_path / "v", classes=("b", "a"), per_class=3)
    (folder / "a" / "empty.mp4").touch()
    out = tmp_path / "shards"
    command = ["shard", str(folder), "--out", str(out), "--size", "0.01"]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "6 videos in " in shown.out and "1 of 7 videos failed" in shown.err
    with open(out / "failed.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [[str(folder / "a/empty.mp4"), "is empty (0 bytes)"]]
    manifest = read_manifest(out)
    assert len(manifest) == 6 and manifest.class_names == ("a", "b")
    assert {path.name for path in out.iterdir()} == {
        *(f"shard-{number:06d}.tar" for number in range(len(list(out.glob("*.tar"))))),
        *("shards.json", "shard.jsonl", "failed.csv"),
    }

    # the same again writes nothing anew, but for what is gone
    tars = sorted(out.glob("*.tar"))
    before = [tar.stat().st_mtime_ns for tar in tars]
    tars[1].unlink()
    main(command)
    assert [tar.stat().st_mtime_ns == old for tar, old in zip(tars, before, strict=True)] == [True, False] + [True] * (
        len(tars) - 2
    )
    capsys.readouterr()

    # other videos are another job, which leaves the first one alone
    (folder / "a" / "empty.mp4").unlink()
    (folder / "a" / "a_0.mp4").unlink()
    text = (out / "shards.json").read_text()
    assert main(command) == 2
    assert "belongs to a run with other options" in capsys.readouterr().err
    assert (out / "shards.json").read_text() == text and not list(out.glob(".plan*"))

    assert main(["scan", str(out)]) == 2
    assert "lie in shards, not in files; give the list that the shards were made of" in capsys.readouterr().err


def test_a_video_that_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, [600, 700])
    (tmp_path / "list.csv").write_text("path,label\n0.mp4,a\n1.mp4,b\n")
    command = ["shard", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--size", "0.0006"]
    original = sharding.plan_shards

    def plan(*arguments: object, **keywords: object) -> object:
        found = original(*arguments, **keywords)  # type: ignore[arg-type]
        (tmp_path / "1.mp4").write_bytes(bytes(100))
        return found

    monkeypatch.setattr(sharding, "plan_shards", plan)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "1 of 2 shards could not be written" in error and "1.mp4: has changed while" in error
    assert not (tmp_path / "out" / "shards.json").exists()
    monkeypatch.undo()


def test_nothing_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "list.csv").write_text("path,label\nframes,a\nmissing.mp4,b\n")
    out = tmp_path / "out"
    assert main(["shard", str(tmp_path / "list.csv"), "--out", str(out)]) == 1
    assert "none of its videos can be put into shards" in capsys.readouterr().err
    with open(out / "failed.csv", newline="") as file:
        reasons = dict(list(csv.reader(file))[1:])
    assert "make it a video first with: stvid prep transcode" in reasons[str(tmp_path / "frames")]
    assert reasons[str(tmp_path / "missing.mp4")] == "no such file"
    assert main(["shard", str(tmp_path / "list.csv"), "--out", str(out), "--size", "0"]) == 2


def test_the_order_of_the_classes(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "v", classes=("b", "a"), per_class=1)
    (tmp_path / "names.txt").write_text("b\nc\na\n")
    out = tmp_path / "out"
    assert main(["shard", str(folder), "--out", str(out), "--class_names", str(tmp_path / "names.txt")]) == 0
    manifest = read_manifest(out)
    assert manifest.class_names == ("b", "c", "a") and manifest.primary.tolist() == [2, 0]
    about = json.loads((out / "shards.json").read_text())
    assert about["videos"] == 2 and [shard["file"] for shard in about["shards"]] == ["shard-000000.tar"]
