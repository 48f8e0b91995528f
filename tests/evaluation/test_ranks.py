"""Processes that work together find each other, end together, and say why in one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.errors import ConfigError
from stvid.evaluation.ranks import Rank, alone

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4711"}


def test_the_place_of_a_process() -> None:
    assert Rank.of_environment({}) is None
    assert Rank.of_environment({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}) is None  # Lightning's own
    assert Rank.of_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert Rank.of_environment({"SLURM_PROCID": "0"}) is None
    rank = Rank.of_environment(TORCHRUN)
    assert rank == Rank(1, 4, 1, "node1", 29500) and str(rank.part) == "2/4"
    nodes = {"SLURM_NODELIST": "gpu[03-05,9],login"}
    port = 15000 + 4711 * 7 % 10000
    assert Rank.of_environment(SLURM | nodes) == Rank(3, 8, 1, "gpu03", port)
    assert Rank.of_environment(SLURM | {"SLURM_NODELIST": "login,b"}) == Rank(3, 8, 1, "login", port)
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "b7"}
    assert Rank.of_environment(SLURM | nodes | step) == Rank(3, 4, 1, "b7", port)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (TORCHRUN | {"RANK": "x"}, "RANK: is 'x', not a number"),
        (TORCHRUN | {"RANK": "4"}, "RANK: is 4, but there are 4 processes"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT: is 'http', not a port"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR: is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT: is not set"),
    ],
)
def test_variables_that_make_no_sense(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Rank.of_environment(environment)


def test_others_are_hidden_from_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | SLURM).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with alone():
        assert Rank.of_environment() is None and "SLURM_JOB_ID" not in os.environ
    assert dict(os.environ) == before


SCRIPT = """
import sys, time
from stvid.commands.dispatch import dispatch
from stvid.errors import ConfigError
from stvid.evaluation.ranks import Rank, together

def work(arguments):
    with together(Rank.of_environment()) as team:
        print("all are here", flush=True)
        team.meet()
        found = team.gather(team.rank.number ** 2)
        assert found == ([0, 1, 4] if team.first else [])
        open(f"here-{team.rank.number}", "w").close()
        MIDDLE
        team.finish()
        print("done", flush=True)
    return 0

sys.exit(dispatch("stvid", "", {"work": work}, ["work"]))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], list[subprocess.Popen[str]]]:
    """``start(middle)`` starts three processes that do something in the middle."""

    def started(middle: str) -> list[subprocess.Popen[str]]:
        (tmp_path / "script.py").write_text(SCRIPT.replace("MIDDLE", middle))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
        shared["PYTHONPATH"] = str(Path(__file__).parents[2])
        return [
            subprocess.Popen(
                [sys.executable, "script.py"],
                cwd=tmp_path,
                env={**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(3)
        ]

    return started


def ends(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str, list[str]]:
    """Returns the exit codes, what the first process printed, and the messages of all."""
    streams = [process.communicate(timeout=100) for process in processes]
    lines = [line for _, err in streams for line in err.splitlines() if "Gloo" not in line and "socket" not in line]
    return [process.returncode for process in processes], streams[0][0], lines


def test_all_do_their_part(start: Callable[[str], list[subprocess.Popen[str]]]) -> None:
    processes = start("time.sleep(team.rank.number)")
    codes, shown, lines = ends(processes)
    assert codes == [0, 0, 0] and shown == "all are here\ndone\n" and lines == []


@pytest.mark.parametrize(
    "victim", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_process_that_dies_ends_all(
    victim: int, start: Callable[[str], list[subprocess.Popen[str]]], tmp_path: Path
) -> None:
    processes = start("time.sleep(200)")
    until = time.monotonic() + 90
    while not all((tmp_path / f"here-{number}").exists() for number in range(3)):
        assert time.monotonic() < until
        time.sleep(0.1)
    processes[victim].kill()
    began = time.monotonic()
    codes, _, lines = ends(processes)
    assert time.monotonic() - began < 20
    assert codes[victim] == -signal.SIGKILL and [code for code in codes if code >= 0] == [1, 1]
    assert len(lines) == 1 and f"stvid: error: process {victim} of 3 ended before the work was done" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2])
def test_what_goes_wrong_is_said_once(number: int, start: Callable[[str], list[subprocess.Popen[str]]]) -> None:
    middle = f"if team.rank.number == {number}: raise ConfigError('--views: none')"
    codes, shown, lines = ends(start(f"{middle}\n        time.sleep(3 if team.rank.number == {number} else 200)"))
    assert codes == [2, 2, 2] and "done" not in shown
    assert lines == ["stvid: error: --views: none"]
