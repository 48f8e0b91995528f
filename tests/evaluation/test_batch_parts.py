"""Parts of work on batches: what is kept, what is done again, and what is refused when they are joined."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stvid.data.parts import Part
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.batch_parts import BatchWork, hardware

MADE = {"videos": "a", "measured": "b", "checkpoint": "c", "precision": "32-true", "versions": {"torch": "2.9"}}
CPU = {"device": "cpu"}


@pytest.fixture
def work(tmp_path: Path) -> BatchWork:
    return BatchWork(tmp_path / "test.jsonl", MADE, 5)


def do(
    work: BatchWork, number: int, count: int, *, where: str = "here", computed: Any = CPU, most: int = 9
) -> list[int]:
    """Does a part, of which batch 3 has a video that cannot be read; returns the batches that were done now."""
    with work.part(Part(number, count), computed=computed) as journal:
        todo = journal.todo[:most]
        for batch in todo:
            journal.add(batch, {"value": batch * 0.1, "failed": [7] if batch == 3 else []}, where=where)
    return todo


def test_parts_join_in_the_order_of_the_batches(work: BatchWork) -> None:
    assert do(work, 2, 2) == [1, 3]
    assert do(work, 1, 2) == [0, 2, 4]
    joined = work.joined()
    assert [outcome["value"] for outcome in joined.outcomes] == [batch * 0.1 for batch in range(5)]
    assert joined.computed == CPU and joined.notes == []
    assert [path.name for path in joined.journals] == ["test.jsonl", "test.1-of-2.jsonl", "test.2-of-2.jsonl"]


def test_a_part_that_is_done_twice_is_the_same(work: BatchWork, tmp_path: Path) -> None:
    do(work, 1, 2, most=1)
    assert do(work, 1, 2) == [2, 4]  # goes on
    do(work, 2, 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert do(work, 1, 2) == [] and do(work, 2, 2) == [3]  # a video that cannot be read is tried again
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with work.part(Part(2, 2), computed=CPU) as journal:
        journal.add(3, {"value": 5, "failed": []}, where="here")  # now it could be read
    assert work.joined().outcomes[3] == {"value": 5, "failed": []}


def test_what_a_killed_process_had_half_written_is_done_again(work: BatchWork, tmp_path: Path) -> None:
    do(work, 1, 2)
    path = tmp_path / "test.1-of-2.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert do(work, 1, 2) == [4]


def test_other_hardware_is_said(work: BatchWork) -> None:
    do(work, 1, 2, where="2 threads")
    do(work, 2, 2, where="8 threads")
    (note,) = work.joined().notes
    assert "(2 threads; 8 threads), so the last digits may differ" in note
    assert hardware(torch.device("cpu")).startswith("cpu with ")


def test_missing_and_unfinished_parts(work: BatchWork) -> None:
    with pytest.raises(StvidError, match="there is no journal of a shard; first run all"):
        work.joined()
    do(work, 1, 3)
    do(work, 3, 3)
    with pytest.raises(StvidError, match=r"shard 2 of 3 is missing: run --shard 2/3"):
        work.joined()
    do(work, 2, 3, most=1)
    with pytest.raises(StvidError, match=r"test\.2-of-3\.jsonl: 1 of the 2 batches of shard 2/3 are not done; run"):
        work.joined()


def test_doubled_parts(work: BatchWork, tmp_path: Path) -> None:
    do(work, 1, 2)
    shutil.copy(tmp_path / "test.1-of-2.jsonl", tmp_path / "test.2-of-2.jsonl")
    with pytest.raises(ConfigError, match=r"2-of-2\.jsonl: holds shard 1/2, whose copy it is; delete it and run"):
        work.joined()
    (tmp_path / "test.2-of-2.jsonl").unlink()
    do(work, 2, 2)
    do(work, 1, 3)
    with pytest.raises(ConfigError, match="holds journals of runs in 2 and 3 shards, which overlap"):
        work.joined()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"videos": "x"}, "another list of videos than this command has"),
        ({"measured": "x"}, "another protocol or options"),
        ({"checkpoint": "x"}, "other weights"),
        ({"precision": "bf16-mixed"}, "precision bf16-mixed, this command has 32-true"),
        ({"versions": {"torch": "2.6"}}, "torch 2.6, this command has 2.9"),
    ],
)
def test_a_part_of_other_work(work: BatchWork, change: dict[str, Any], said: str) -> None:
    do(work, 1, 2)
    do(dataclasses.replace(work, made={**MADE, **change}), 2, 2)
    with pytest.raises(ConfigError, match=rf"test\.2-of-2\.jsonl: was made with .*{said}.*run --shard 2/2 again"):
        work.joined()
    with pytest.raises(ConfigError, match=said):
        do(work, 2, 2)


def test_a_part_that_was_computed_in_another_way(work: BatchWork) -> None:
    do(work, 1, 2)
    do(work, 2, 2, computed={"device": "cuda"})
    with pytest.raises(ConfigError, match=r"2-of-2.jsonl: was computed in another way \(cuda instead of cpu\)"):
        work.joined()


def test_another_file(work: BatchWork, tmp_path: Path) -> None:
    (tmp_path / "test.1-of-1.jsonl").write_text('{"job": 1}\n')
    with pytest.raises(StvidError, match="is not the journal of a part"):
        work.joined()


def test_another_number_of_devices_goes_on(work: BatchWork, tmp_path: Path) -> None:
    do(work, 1, 2)
    do(work, 2, 2, most=1)
    work.fold(3)
    assert [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]
    assert [do(work, number, 3) for number in (1, 2, 3)] == [[3], [], []]
    assert [outcome["value"] for outcome in work.joined().outcomes] == [batch * 0.1 for batch in range(5)]
    work.fold(3)  # there is nothing to fold
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(ConfigError, match="other weights"):
        dataclasses.replace(work, made={**MADE, "checkpoint": "x"}).fold(2)
