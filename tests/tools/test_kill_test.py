"""tools/kill_test.py tells equal outcomes from others, and kills all that a command has started."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORK = """
import pathlib, random, sys, time
out = pathlib.Path(sys.argv[1])
out.mkdir(exist_ok=True)
for number in range(5):
    path = out / f"{number}.txt"
    if not path.exists():
        time.sleep(0.1)
        path.write_text(str(number) if FAITHFUL else str(random.random()))
"""


def content(out: Path) -> Mapping[str, str]:
    return {path.name: path.read_text() for path in out.iterdir()}


@pytest.mark.parametrize("faithful", [True, False])
def test_killed_work_is_compared(
    load_tool: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faithful: bool
) -> None:
    tool = load_tool("kill_test")
    script = tmp_path / "work.py"
    script.write_text(WORK.replace("FAITHFUL", str(faithful)))
    monkeypatch.setattr(tool, "COMMAND", [sys.executable, str(script)])
    monkeypatch.setitem(tool.KINDS, "work", tool.Kind(lambda i, o: [str(o)], lambda i, o: [str(o)], content))
    options = argparse.Namespace(moments=2, kills=1, seed=0)
    outcome = tool.kill_kind("work", tmp_path, tmp_path / "scratch", options)
    assert outcome.moments == 2 and outcome.equal == (2 if faithful else 0)
    assert len(outcome.problems) == (0 if faithful else 2)
    assert tool.table([outcome]).splitlines()[1].split()[0] == "work"


def test_arrays_are_told_apart(load_tool: Callable[[str], Any], tmp_path: Path) -> None:
    tool = load_tool("kill_test")
    np.savez(tmp_path / "a.npz", run=np.array("x"), values=np.arange(3))
    np.savez(tmp_path / "b.npz", run=np.array("y"), values=np.arange(3))
    np.savez(tmp_path / "c.npz", run=np.array("x"), values=np.arange(4))
    digests = [tool.arrays_of(tmp_path / f"{name}.npz", without=["run"]) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    (tmp_path / f".a.npz.{'0' * 12}.tmp").touch()
    assert list(tool.left_over(tmp_path / "out")) == [f"left over: .a.npz.{'0' * 12}.tmp"]
