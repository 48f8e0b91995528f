"""The help and the errors of all commands of ``stvid prep``, under both of its names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stvid import cli
from stvid.commands.prep import COMMANDS, main
from stvid.data import jobs


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_types_and_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: stvid prep {command}" in text and "(required, type: str)" in text and "default: " in text


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS) and len(COMMANDS) == 8
    assert main(["shards"]) == 2
    assert "shards: no such command; nearest: shard" in capsys.readouterr().err


def test_both_names_are_the_same_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--help"],
        ["scan", "--help"],
        ["scan", str(tmp_path / "none.csv")],
        ["scna"],
        ["scan", "--fxi"],
    ):
        code, one = main(arguments), capsys.readouterr()
        assert (cli.main(["prep", *arguments]), capsys.readouterr()) == (code, one)
        assert "stvid prep" in one.out + one.err and "stvid-prep" not in one.out + one.err


@pytest.mark.parametrize("command", ["scan", "index", "transcode", "shard"])
def test_a_list_that_is_not_there(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path / "out")] if command in ("transcode", "shard") else []
    assert main([command, str(tmp_path / "none.csv"), *arguments]) == 1
    assert capsys.readouterr().err == f"stvid prep: error: {tmp_path}/none.csv: no such file or folder\n"
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[str, object]:
    """Returns all files of a folder; journals without the times of files that were written anew."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "shard.jsonl":
            found[path.name] = [{**json.loads(line), "stamp": 0, "crc32": 0} for line in path.read_text().splitlines()]
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("command", ["scan", "index", "transcode", "shard"])
def test_shards_give_what_one_process_gives(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    videos = make_dataset(tmp_path / "kept", classes=("a", "b"), per_class=3)
    (videos / "a" / "bad.mp4").write_text("no video")
    lines = [f"{path},{path.parent.name}" for path in sorted(videos.rglob("*.mp4"))]
    arguments = [command, str(work / "list.csv")]
    arguments += {
        "scan": ["--fix", str(work / "fixed.csv")],
        "index": [],
        "transcode": ["--out", str(work / "out"), "--short_side", "32", "--preset", "ultrafast"],
        "shard": ["--out", str(work / "out"), "--size", "0.004"],
    }[command]

    def begin() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")

    begin()
    code, shown = main(arguments), capsys.readouterr()
    assert code == (0 if command == "shard" else 1)  # shards keep what cannot be read
    expected = contents(work)
    begin()
    assert main([*arguments, "--shard", "2/3"]) == 0
    assert "shard 2/3: " in capsys.readouterr().out
    for name, value in {"ID": 3, "COUNT": 3, "MIN": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert main([*arguments, "--shard", "slurm"]) == 0

    attempt, begun = jobs._attempt, []

    def killed(stage: object, key: str) -> object:
        begun.append(key)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return attempt(stage, key)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_attempt", killed)
        assert main([*arguments, "--shard", "1/3"]) == 130
    assert main(["merge", *arguments]) == 1
    assert "of shard 1/3 are not done" in capsys.readouterr().err
    assert main([*arguments, "--shard", "1/3"]) == 0
    assert main([*arguments, "--shard", "2/3"]) == 0  # once more
    capsys.readouterr()
    assert main(["merge", *arguments]) == code
    assert capsys.readouterr() == shown
    assert contents(work) == expected


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shards_at_once_of_which_one_is_killed(make_video: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(9):
        make_video(f"{number}.mp4", frames=200, first=number, to=tmp_path / "v" / "a")
    out = tmp_path / "out"
    arguments = ["transcode", str(tmp_path / "v"), "--out", str(out), "--preset", "slower", "--workers", "1"]
    assert main(arguments) == 0
    expected = contents(out)
    shutil.rmtree(out)

    command = [sys.executable, "-m", "stvid", "prep", *arguments, "--shard"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed, *others = (subprocess.Popen([*command, f"{number}/3"], env=environment) for number in (2, 1, 3))
    journal = out / "transcode.2-of-3.jsonl"
    while not (journal.exists() and journal.read_text().count("\n") == 2):  # the header, and one of three videos
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert [process.wait() for process in (killed, *others)] == [-signal.SIGKILL, 0, 0]
    assert main(["merge", *arguments]) == 1
    assert main([*arguments, "--shard", "2/3"]) == 0
    assert main(["merge", *arguments]) == 0
    assert contents(out) == expected


def test_merge_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").touch()
    for arguments, message in (
        ([], "COMMAND: missing"),
        (["scann", str(tmp_path)], "scann: has no --shard; nearest: scan"),
        (["manifest", str(tmp_path)], "manifest: has no --shard"),
        (["scan", str(tmp_path), "--shard", "1/2"], "--shard: merge joins all parts; leave it out"),
        (["scan", str(tmp_path)], "there is no journal of a shard; first run all of them"),
        (["index", str(tmp_path)], "there is no journal of a shard; first run all of them"),
    ):
        assert main(["merge", *arguments]) in (1, 2)
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert main(["scan", str(tmp_path), "--shard", "3/2"]) == 2
    assert main(["scan", str(tmp_path), "--ray_address", "auto"]) == 2
    assert "--ray_address: belongs to --engine ray, which is missing" in capsys.readouterr().err
