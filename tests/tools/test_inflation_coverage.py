"""The parts of tools/inflation_coverage.py that need no network of timm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def test_a_table_holds_what_a_report_needs(load_tool: Callable[[str], Any], tmp_path: Path) -> None:
    tool = load_tool("inflation_coverage")
    good = {"parameters": 7, "size": 64, "still": 2e-7, "order": 0.5, "dtype": "float32"}
    records = {
        ("timm", "a", "conv"): good,
        ("timm", "a", "shift"): {**good, "still": 3e-3},
        ("timm", "a", "attention"): {"parameters": 7, "size": 64, "skipped": "no attention"},
        ("timm", "b", "conv"): {"parameters": 9, "problem": "2D network: ValueError: a, b"},
        ("torchvision", "c", "shift"): {**good, "still": 9.999223039e-06, "built_with": {"depth": 4}},
    }
    tool.write_table(records, tmp_path / "table.csv")
    again = tool.read_table(tmp_path / "table.csv")
    assert again == records
    assert tool.report(again, 5) == tool.report(records, 5)
    assert "3 of 5 networks." in tool.report(again, 5)
    assert "3 of 5 networks, 2 of them as an earlier version measured them." in tool.report(again, 5, earlier=2)
    assert "| timm:b | conv | 2D network: ValueError: a, b |" in tool.report(again, 5)
    assert "| timm:a | shift | still video differs by 3.0e-03 (float32) |" in tool.report(again, 5)


def test_batch_norms_know_the_activations(load_tool: Callable[[str], Any]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.normal_(network[0].weight, std=50.0)
    load_tool("inflation_coverage").calibrate(network, 32)
    assert not network[1].training
    activations = network(torch.randn(8, 3, 32, 32)).transpose(0, 1).flatten(1)
    assert activations.mean(1).abs().max() < 0.1
    assert (activations.std(1) - 1).abs().max() < 0.1


def test_a_stopped_run_has_seen_all_families(load_tool: Callable[[str], Any]) -> None:
    names = {("timm", "resnet50"): 2.0, ("timm", "resnet18"): 1.0, ("timm", "vit_large_patch16_224"): 9.0}
    tool = load_tool("inflation_coverage")
    order = tool.jobs({**names, ("torchvision", "resnet18"): 1.0}, "*", False)
    assert order == [
        ("timm", "resnet18"),
        ("torchvision", "resnet18"),
        ("timm", "vit_large_patch16_224"),
        ("timm", "resnet50"),
    ]
    assert tool.jobs(names, "timm:res*", True) == [("timm", "resnet18")]
