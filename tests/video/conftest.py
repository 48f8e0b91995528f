from __future__ import annotations

from collections.abc import Iterator

import pytest

from stvid.video import remote
from tests.loopback import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that failed are made again at once."""
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
