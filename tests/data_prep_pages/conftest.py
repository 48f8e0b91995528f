"""Runs the scripts of data_prep/ as their pages say, on imitations of the official files.

The steps run in this process: a process for each, and its workers, would cost seconds each.
"""

from __future__ import annotations

import csv
import importlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture
def write_files(tmp_path: Path) -> Callable[..., Path]:
    """``write_files({"name.csv": "text"})`` -> the folder ``official`` that holds these files."""

    def write(files: dict[str, str]) -> Path:
        folder = tmp_path / "official"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    return write


@pytest.fixture
def make_images() -> Callable[[Path], None]:
    """Writes a folder of 24 small JPEG images, ``00001.jpg`` and so on."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        for image in range(24):
            pixels = np.full((48, 64, 3), 8 * image, np.uint8)
            Image.fromarray(pixels).save(folder / f"{image + 1:05d}.jpg")

    return make
