from __future__ import annotations

from typing import Any

import pytest

from stvid.cli import main
from stvid.commands import benchmark

ARGUMENTS = ["benchmark", "uniformer_xxs", "--frames", "4", "--img_size", "32", "--seconds", "0.01"]


@pytest.mark.parametrize(
    ("busy", "cores", "spread", "said"),
    [
        (0.1, 2, 1.0, []),
        (None, 2, 1.0, []),
        (1.8, 2, 1.0, ["other processes keep 1.8 of 2 cores busy, so the model seems slower"]),
        (1.8, 64, 1.0, []),
        (9.0, 64, 1.0, ["other processes keep 9.0 of 64 cores busy, so the model seems slower"]),
        (0.0, 2, 30.0, ["the passes differ by 30%"]),
    ],
)
def test_a_busy_machine_is_noticed(busy: float | None, cores: int, spread: float, said: list[str]) -> None:
    figures = {"busy_cores": busy, "cores": cores, "milliseconds": 100.0, "spread_milliseconds": spread}
    assert benchmark.doubts(figures) == said


def test_doubts_are_warnings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def busy(*_: Any) -> float:
        return 99.0

    monkeypatch.setattr(benchmark, "busy_cores", busy)
    assert main(ARGUMENTS) == 0
    printed = capsys.readouterr()
    assert "clips a second" in printed.out
    assert "warning: other processes keep 99.0 of" in printed.err and "measure again on a quiet machine" in printed.err
