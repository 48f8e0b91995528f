"""Jobs in this process: a worker process costs a second, and `test_jobs` tests those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from stvid.data import jobs


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `run_jobs` do its work here, one file after the other."""

    def run(
        work: jobs.Work,
        keys: Sequence[str],
        options: Mapping[str, Any],
        workers: int,
        record: Callable[[str, Mapping[str, Any], str], None],
    ) -> list[str]:
        for key in keys:
            record(key, *jobs._attempt(work, key, options))
        return []

    monkeypatch.setattr(jobs, "_run_pool", run)
