"""The parts of tools/inflation_coverage.py that need no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_table_holds_what_a_report_needs(load_tool: Callable[[str], Any], tmp_path: Path) -> None:
    tool = load_tool("inflation_coverage")
    good = {"parameters": 7, "size": 64, "still": 2e-7, "order": 0.5, "dtype": "float32"}
    records = {
        ("timm", "a", "conv"): good,
        ("timm", "a", "shift"): {**good, "still": 3e-3},
        ("timm", "a", "attention"): {"parameters": 7, "size": 64, "skipped": "no attention"},
        ("timm", "b", "conv"): {"parameters": 9, "problem": "2D network: ValueError: a, b"},
        ("torchvision", "c", "shift"): {**good, "built_with": {"depth": 4}},
    }
    tool.write_table(records, tmp_path / "table.csv")
    again = tool.read_table(tmp_path / "table.csv")
    assert again == records
    assert tool.report(again, 5) == tool.report(records, 5)
    assert "3 of 5 networks" in tool.report(again, 5)
    assert "| timm:b | conv | 2D network: ValueError: a, b |" in tool.report(again, 5)
    assert "| timm:a | shift | still video differs by 3.0e-03 (float32) |" in tool.report(again, 5)
