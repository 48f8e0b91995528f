from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from stvid.commands.dispatch import dispatch


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 1, "there is too little memory here"),
        (
            ImportError("libtorch.so: failed to map segment from shared object"),
            1,
            "memory here (libtorch.so",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "too little memory here (Default"),
        (OSError(12, "Cannot allocate memory"), 1, "Cannot allocate memory"),
        (RuntimeError("something else"), 70, "internal error: RuntimeError: something else (STVID_DEBUG=1"),
    ],
)
def test_a_want_of_memory_is_no_internal_error(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: Sequence[str]) -> int:
        raise error

    assert dispatch("stvid", "", {"fail": fail}, ["fail"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith("stvid: error: ") and said in printed and printed.count("\n") == 1


def test_every_command_takes_the_cache_of_remote_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STVID_REMOTE_CACHE", "")
    monkeypatch.setenv("STVID_REMOTE_CACHE_GB", "")
    seen: list[tuple[list[str], str, str]] = []

    def note(argv: Sequence[str]) -> int:
        seen.append((list(argv), os.environ["STVID_REMOTE_CACHE"], os.environ["STVID_REMOTE_CACHE_GB"]))
        return 0

    folder = tmp_path / "blocks"
    assert dispatch("stvid", "", {"x": note}, ["x", "--a", "--remote_cache", str(folder), "--remote_cache_gb=2"]) == 0
    assert seen == [(["--a"], str(folder), "2")] and folder.is_dir()
    assert dispatch("stvid", "", {"x": note}, ["x", "--remote_cache_gb", "none"]) == 2
    assert "--remote_cache_gb" in capsys.readouterr().err and len(seen) == 1


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["models", "uniformer_xxs"]])
def test_what_is_printed_into_a_closed_pipe_or_a_full_disk_is_no_traceback(command: list[str]) -> None:
    program = [sys.executable, "-m", "stvid", *command]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `| head -1` does
        assert process.stderr.read() == ""
    assert process.returncode == 1
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr
