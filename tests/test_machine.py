import os
import time
from pathlib import Path

import pytest

from stvid.machine import available_memory, busy_cores, usable_cores


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 6}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_memory_is_what_the_system_and_the_container_allow(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None  # another system
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  900 kB\nMemAvailable:   500 kB\n")
    assert available_memory(tmp_path) == 500 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 500 * 1024
    (group / "memory.max").write_text("5000\n")
    assert available_memory(tmp_path) == 4000


def test_cores_that_others_keep_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert busy_cores(0, root=tmp_path) is None  # another system
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    clock = {"now": 100.0, "own": 5.0}
    second = os.sysconf("SC_CLK_TCK")

    def sleep(seconds: float) -> None:
        clock["now"] += seconds
        clock["own"] += 0.5 * seconds  # half a core is busy with this process
        stat.write_text(f"cpu  {int(1000 + 2 * second * seconds)} 7 {int(20 + second * seconds)} 999999 55 1 2 0 9 9\n")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(time, "process_time", lambda: clock["own"])
    stat.write_text("cpu  1000 7 20 0 50 1 2 0 9 9\ncpu0 1 2 3\n")
    assert busy_cores(2, root=tmp_path) == pytest.approx(2.5)  # 2 of users, 1 of the system, less this process
    stat.write_text("\n")
    assert busy_cores(2, root=tmp_path) is None
