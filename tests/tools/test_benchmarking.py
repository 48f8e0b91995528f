"""The timing that the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], Any]) -> Any:
    return load_tool("benchmarking")


def test_the_sides_take_turns_and_the_first_round_is_not_counted(tool: Any) -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in ("stvid", "peer")}
    seconds = tool.alternate(steps, rounds=2, device=torch.device("cpu"))
    assert calls == ["stvid", "peer"] * 3
    assert all(len(times) == 2 for both in seconds.values() for times in both.values())
    tool.alternate(steps, rounds=1, warm_up=0)
    assert calls == ["stvid", "peer"] * 4


def test_medians(tool: Any) -> None:
    seconds = {"a": {"wall": [3.0, 1.0, 2.0], "cpu": [9.0, 9.0, 1.0]}, "b": {"wall": [5.0], "cpu": [4.0]}}
    assert tool.medians(seconds, "wall") == {"a": 2.0, "b": 5.0}
    assert tool.medians(seconds, "cpu") == {"a": 9.0, "b": 4.0}


@pytest.mark.parametrize("name", ["attention", "engines", "evaluation", "gpu", "inflation", "loader", "models"])
def test_every_benchmark_can_be_loaded(load_tool: Callable[[str], Any], name: str) -> None:
    assert callable(load_tool(f"benchmark_{name}").main)
