"""Parts of a job: how they are named, what each has to do, and which are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from stvid.data.parts import Part, found_parts, keys_digest
from stvid.errors import ConfigError, StvidError


def array(task: object, count: object, **more: object) -> dict[str, str]:
    values = {"ID": task, "COUNT": count, **more}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "1/3/4", "-1/3", "1.0/3", "", "SLURM"])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--shard .*: is not i/n with i from 1 to n, .*, nor slurm$"):
        Part.parse(text)


def test_parts_share_the_files() -> None:
    keys = list("abcdefgh")
    parts = [Part.parse(f"{number}/3") for number in (1, 2, 3)]
    assert [part.of(keys) for part in parts] == [list("adg"), list("beh"), list("cf")]
    assert Part(1, 1).of(keys) == keys and Part(3, 3).of(["a"]) == []
    assert parts[1].beside(Path("x/v.scan.jsonl")) == Path("x/v.scan.2-of-3.jsonl")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (array(0, 3), "1/3"),
        (array(2, 3, MIN=0), "3/3"),
        (array(1, 3, MIN=1), "1/3"),
        (array(3, 3, MIN=1, MAX=3, STEP=1), "3/3"),
        (array(30, 4, MIN=0, STEP=10), "4/4"),
    ],
)
def test_the_place_in_an_array(environment: dict[str, str], expected: str) -> None:
    assert str(Part.parse("slurm", environment=environment)) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT not set: that is for jobs of an array"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "slurm: SLURM_ARRAY_TASK_COUNT not set"),
        (array("x", 3), "SLURM_ARRAY_TASK_ID is 'x', not a number"),
        (array(7, 3, MIN=1), "task 7 is not one of 3 in a row from 1 on; give the array as --array=1-3"),
        (array(3, 3), "task 3 is not one of 3 in a row from 0 on"),
        (array(5, 4, MIN=0, STEP=10), "task 5 is not one of 4 in a row from 0 on"),
        (array(1, 0), "task 1 is not one of 0"),
    ],
)
def test_arrays_that_make_no_sense(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"--shard slurm: .*{message}|{message}"):
        Part.parse("slurm", environment=environment)


def test_the_process_has_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in array(2, 5, MIN=1).items():
        monkeypatch.setenv(name, value)
    assert Part.parse("slurm") == Part(2, 5)


def test_missing_and_overlapping_parts_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "job.jsonl"
    with pytest.raises(StvidError, match=r"job\.1-of-N\.jsonl: there is no journal of a shard"):
        found_parts(whole)
    with pytest.raises(StvidError, match="there is no journal of a shard"):
        found_parts(tmp_path / "no folder" / "job.jsonl")
    for number in (1, 3):
        Part(number, 4).beside(whole).touch()
    (tmp_path / "other.1-of-2.jsonl").touch()
    with pytest.raises(StvidError, match=r"job\.2-of-4\.jsonl: no such file; shards 2, 4 of 4 are missing"):
        found_parts(whole)
    Part(2, 4).beside(whole).touch()
    with pytest.raises(StvidError, match=r"shard 4 of 4 is missing: run --shard 4/4"):
        found_parts(whole)
    Part(4, 4).beside(whole).touch()
    assert found_parts(whole) == [Part(number, 4) for number in (1, 2, 3, 4)]
    Part(1, 2).beside(whole).touch()
    with pytest.raises(ConfigError, match=r"in 2 and 4 shards, which overlap; delete those of one run \(job\.\*-of-2"):
        found_parts(whole)


def test_the_digest_tells_lists_apart() -> None:
    assert keys_digest(["a", "b"]) == keys_digest(["a", "b"]) != keys_digest(["b", "a"])
    assert keys_digest(["ab", "c"]) != keys_digest(["a", "bc"])
    assert keys_digest(["a\udcff"])  # a name that is not UTF-8
