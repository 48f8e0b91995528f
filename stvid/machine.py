"""Facts about the machine that this process runs on."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_memory", "usable_cores"]


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
