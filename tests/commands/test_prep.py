"""The help and the errors of all commands of ``stvid prep``, under both of its names."""

from __future__ import annotations

from pathlib import Path

import pytest

from stvid import cli
from stvid.commands.prep import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_types_and_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: stvid prep {command}" in text and "(required, type: str)" in text and "default: " in text


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS) and len(COMMANDS) == 6
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
