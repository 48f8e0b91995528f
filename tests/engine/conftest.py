"""An interruption that several tests of trainings make."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stvid.engine.callbacks import StopOnSignal


@pytest.fixture
def stopped_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """``with stopped_in_the_middle():`` a training gets SIGTERM after its second step."""
    original = StopOnSignal.on_train_batch_end

    def stop(self: StopOnSignal, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2:
            self.received = signal.SIGTERM
        original(self, trainer, *args)

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(StopOnSignal, "on_train_batch_end", stop)
            yield

    return patched
