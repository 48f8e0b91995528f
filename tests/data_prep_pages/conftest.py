"""Runs the scripts of data_prep/ as their pages say, on imitations of the official files.

The steps run in this process: a process for each, and its workers, would cost seconds each.
"""

from __future__ import annotations

import csv
import importlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_prep import steps
from stvid.commands import prep


@pytest.fixture
def run_prepare(monkeypatch: pytest.MonkeyPatch, in_process: None) -> Callable[..., None]:
    """``run_prepare("kinetics", "--edition", "400", ...)`` runs that script; raises what it raises."""

    def start(command: Sequence[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        assert tuple(command[: len(steps.PREP)]) == steps.PREP and not check
        words = list(command[len(steps.PREP) :])
        return subprocess.CompletedProcess(words, prep.run(words))

    monkeypatch.setattr(steps.subprocess, "run", start)

    def run(dataset: str, *arguments: str | Path) -> None:
        importlib.import_module(f"data_prep.{dataset}.prepare").main([*map(str, arguments), "--workers", "1"])

    return run


@pytest.fixture(scope="session")
def read_counts() -> Callable[[Path], dict[tuple[str, str], tuple[str, int, str]]]:
    """``read_counts(out)`` -> (split, what) to (expected, found, file that lists the difference)."""

    def read(out: Path) -> dict[tuple[str, str], tuple[str, int, str]]:
        with open(out / "counts.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            (row["split"], row["what"]): (
                row["expected"],
                int(row["found"]),
                row["listed_in"] and str(Path(row["listed_in"]).relative_to(out)),
            )
            for row in rows
        }

    return read
