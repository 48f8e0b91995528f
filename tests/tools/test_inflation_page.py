"""The page on inflation says what the networks of its table do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent


def test_every_network_of_the_table_is_on_the_page(load_tool: Callable[[str], Any]) -> None:
    tool = load_tool("inflation_page")
    networks = tool.table()
    assert networks.keys() == tool.STYLES.keys()
    written = (ROOT / "docs" / "inflation.md").read_text(encoding="utf-8")
    assert written.startswith(tool.TOP)
    for name, (_, modes) in networks.items():
        row = next(line for line in written.splitlines() if line.startswith(f"| {tool.STYLES[name]} |"))
        cells = dict(zip(tool.MODES, (cell.strip() for cell in row.strip("|").split("|")[1:]), strict=True))
        proved = {mode: cells[mode].partition(";")[0] for mode in modes}  # behind it stands whether it can be trained
        assert proved == dict.fromkeys(modes, "exact")
        assert modes or all(cell.startswith("no [") for cell in cells.values())


def test_an_outcome_is_a_proof_or_a_reason(load_tool: Callable[[str], Any]) -> None:
    tool = load_tool("inflation_page")
    networks = tool.networks_of("own_networks")
    torch.manual_seed(0)
    network = networks.small_cnn().eval()
    assert tool.outcome(network, "shift", networks.SIDE) == "exact"
    reason = "no: it has no transformer block in which attention was seen (a softmax over places)"
    assert tool.outcome(network, "attention", networks.SIDE) == reason


def test_reasons_are_notes_below_the_table(load_tool: Callable[[str], Any]) -> None:
    tool = load_tool("inflation_page")
    reasons: list[str] = []
    assert tool.short("exact", reasons) == "exact" and reasons == []
    assert tool.short("no: it is odd: very", reasons) == "no [1]" == tool.short("no: it is odd: very", reasons)
    assert tool.short("approximate: a; b", reasons) == "approximate [2]"
    assert reasons == ["it is odd: very", "a; b"]
