"""Facts about the machine that this process runs on."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["available_memory", "busy_cores", "usable_cores"]


def usable_cores() -> int:
    """Returns how many CPU cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(root: str | os.PathLike[str] = "/") -> int | None:
    """Returns the bytes of memory that this process could still take, or None where the system does not say.

    Linux tells how much can be had without swapping, and a container how much it allows.

    Args:
        root: The folder that ``proc`` and ``sys`` stand in.
    """
    found = []
    try:
        lines = (Path(root) / "proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # not Linux
        pass
    try:
        group = Path(root) / "sys/fs/cgroup"
        limit = (group / "memory.max").read_text().strip()
        if limit.isdecimal():  # otherwise "max"
            found.append(max(0, int(limit) - int((group / "memory.current").read_text())))
    except OSError:  # no container, or one of the first version
        pass
    return min(found, default=None)


def busy_cores(seconds: float = 0.5, *, root: str | os.PathLike[str] = "/") -> float | None:
    """Returns how many CPU cores of the machine other processes keep busy, or None where the system does not say.

    Args:
        seconds: Time to watch.
        root: The folder that ``proc`` stands in.
    """

    def counted() -> tuple[float, float]:
        """Seconds that all cores have worked, and that this process has."""
        words = (Path(root) / "proc/stat").read_text().split("\n", 1)[0].split()
        if words[:1] != ["cpu"]:
            raise ValueError("no line of all cores")
        # user, nice, system, irq and softirq; idle and waiting for the disk are no work, and a virtual machine's guest
        # is counted as user, too. Time that the host took away (steal) is work of others.
        ticks = sum(int(words[place]) for place in (1, 2, 3, 6, 7, 8) if place < len(words))
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time()

    try:
        begin, (all_before, own_before) = time.perf_counter(), counted()
        time.sleep(seconds)
        passed, (all_after, own_after) = time.perf_counter() - begin, counted()
    except (OSError, ValueError, AttributeError):  # not Linux
        return None
    return max(0.0, (all_after - all_before - (own_after - own_before)) / passed)
