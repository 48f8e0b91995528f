"""The engine of tools/fuzz.py: it tells apart what a damaged file can lead to, and nothing escapes it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stvid.errors import StvidError


def options(fuzz: Any, tmp_path: Path, *more: str) -> Any:
    return fuzz.parse(["lists", "--scratch", str(tmp_path), "--limit", "1", "--memory", "300", *more])


def outcome(fuzz: Any, damage: Any, tmp_path: Path, read: Callable[..., Mapping[str, str]], **seed: Any) -> Any:
    seeds = [damage.Seed("x", {"file.bin": b"good" * 20}, read, **seed)]
    fuzzing = fuzz.Fuzzing("mode", seeds, options(fuzz, tmp_path))
    fuzzing.options.mutations = MUTATIONS.get(read, 3)
    fuzzing.run()
    assert list(tmp_path.iterdir()) == []
    return fuzzing


def is_good(path: Path) -> bool:
    return path.read_bytes() == b"good" * 20


def refuse(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    if is_good(path):
        return {"all": "x"}
    raise StvidError(f"{path}: is damaged")


def unnamed(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    if is_good(path):
        return {"all": "x"}
    raise StvidError("is damaged")


def escape(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    return {"all": "x"} if is_good(path) else {"all": str(1 // 0)}


def die(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    if not is_good(path):
        os.abort()
    return {"all": "x"}


def spin(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    begin = time.process_time()
    while not is_good(path) and time.process_time() - begin < 60:
        pass
    return {"all": "x"}


def swallow(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    return {"all": "x"} if is_good(path) else {"all": str(len(bytes(2**30)))}


def other(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    return {"all": "x" if is_good(path) else "y"}


def by_reading(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
    return {"all": "x" if is_good(path) else reading}


MUTATIONS = {spin: 1}  # each takes seconds of the processor


@pytest.mark.parametrize(
    ("read", "seed", "word"),
    [
        (refuse, {}, "refused"),
        (unnamed, {}, "error"),
        (escape, {}, "error"),
        (swallow, {}, "error"),  # more memory than a reading may take
        (die, {}, "crash"),
        (spin, {}, "hang"),
        (other, {}, "changed"),
        (other, {"sealed": True}, "sealed"),
        (by_reading, {"readings": ("one", "two")}, "varies"),
        (other, {"readings": ("one", "two")}, "equal"),
    ],
)
def test_outcomes_are_told_apart(
    load_tool: Callable[[str], Any], tmp_path: Path, read: Any, seed: dict[str, Any], word: str
) -> None:
    fuzz, damage = load_tool("fuzz"), load_tool("fuzz_damage")
    fuzzing = outcome(fuzz, damage, tmp_path, read, **seed)
    mutations = MUTATIONS.get(read, 3)
    assert dict(fuzzing.counts) == {word: mutations}
    assert len(fuzzing.bad) == (mutations if word in fuzz.BAD else 0)
    assert "ZeroDivisionError" in fuzzing.bad[0] if read is escape else True
    assert fuzz.table([fuzzing.row()]).splitlines()[1].split()[0] == "mode"


def test_a_good_file_must_be_readable(load_tool: Callable[[str], Any], tmp_path: Path) -> None:
    def never(path: Path, reading: str, rng: np.random.Generator) -> Mapping[str, str]:
        raise StvidError(f"{path}: is never read")

    with pytest.raises(SystemExit, match="undamaged x cannot be read"):
        outcome(load_tool("fuzz"), load_tool("fuzz_damage"), tmp_path, never)


@pytest.mark.slow
def test_every_mode_has_seeds_that_are_read(load_tool: Callable[[str], Any], tmp_path: Path) -> None:
    fuzz = load_tool("fuzz")
    done = fuzz.main(["--mutations", "5", "--scratch", str(tmp_path), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert done == 0, [line for mode in found.values() for line in mode["bad"]]
    assert set(found) == set(load_tool("fuzz_readers").MODES) - {"videos"}


def test_videos_are_read_in_two_ways(
    load_tool: Callable[[str], Any], tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    make_video("a.mp4", to=tmp_path / "clips")
    fuzz = load_tool("fuzz")
    assert (
        fuzz.main(["videos", "--mutations", "5", "--clips", str(tmp_path / "clips"), "--scratch", str(tmp_path)]) == 0
    )
