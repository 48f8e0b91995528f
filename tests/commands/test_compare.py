from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvid.commands import compare
from stvid.evaluation.comparison import Comparison
from stvid.evaluation.record import EvaluationResult


@pytest.mark.parametrize("views", [("1x1", "4x3"), ("4x3", "4x3")])
def test_different_views_are_mentioned(
    views: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Comparison(
        metric="top1",
        views=views,
        videos=10,
        left_out=0,
        first=0.5,
        second=0.6,
        difference=0.1,
        interval=(-0.1, 0.3),
        wins=2,
        losses=1,
        p_value=1.0,
        per_class=(),
    )
    monkeypatch.setattr(EvaluationResult, "load", classmethod(lambda cls, source: Path(source)))
    monkeypatch.setattr("stvid.evaluation.comparison.compare", lambda *results, **options: found)
    assert compare.run(["first", "with\x1b[31m"]) == 0
    printed = capsys.readouterr().out
    assert ("the views differ (1x1 and 4x3)" in printed) is (views[0] != views[1])
    assert "with\\x1b[31m" in printed and "\x1b" not in printed
    assert compare.run(["first", "second", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["views"] == list(views)
