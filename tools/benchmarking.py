"""The timing that the benchmarks of this folder share: all sides take turns in each round, and medians are compared.

Turns make the sides meet the same state of the machine, and a median does not care for a round that something else
disturbed. The time on the clock counts everything; that of the processor, summed over all threads, hardly depends on
what else a machine does, but says nothing about a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

__all__ = ["alternate", "low_precision", "medians", "synchronize"]

Seconds = dict[str, dict[str, list[float]]]


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    steps: Mapping[str, Callable[[], Any]], *, rounds: int, device: torch.device | str = "cpu", warm_up: int = 1
) -> Seconds:
    """Runs the steps by turns.

    Args:
        steps: The work of each side.
        rounds: How often each is timed.
        device: Where they run.
        warm_up: Rounds before, which are not counted.

    Returns:
        The seconds of each round by side, under ``wall`` on the clock and under ``cpu`` of all threads.
    """
    device = torch.device(device)
    seconds: Seconds = {name: {"wall": [], "cpu": []} for name in steps}
    for number in range(warm_up + rounds):
        for name, step in steps.items():
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            synchronize(device)
            if number >= warm_up:
                seconds[name]["wall"].append(time.perf_counter() - wall)
                seconds[name]["cpu"].append(time.process_time() - cpu)
    return seconds


def medians(seconds: Seconds, kind: Literal["wall", "cpu"]) -> dict[str, float]:
    """Returns the median time of each side."""
    return {name: statistics.median(times[kind]) for name, times in seconds.items()}


def low_precision(device: torch.device, *, enabled: bool) -> torch.autocast:
    """Returns the context in which a model runs in bfloat16, or as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
