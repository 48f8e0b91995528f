"""The parts of tools/inflation_training.py that need no training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


def test_stills_show_what_their_labels_say(load_tool: Callable[[str], Any]) -> None:
    tool = load_tool("inflation_training")
    images, labels = tool.draw_stills("val", 40)
    assert images.shape == (40, 3, tool.SIDE, tool.SIDE)
    assert labels.min() >= 0 and labels.max() < tool.SHAPES * tool.TEXTURES and len(labels.unique()) > 5
    again, same = tool.draw_stills("val", 40)
    assert torch.equal(images, again) and torch.equal(labels, same)
    motions = torch.arange(40) % 8
    assert any(len(motions[labels == label].unique()) > 1 for label in labels.unique())  # not the class of the motion


def test_a_2d_network_learns_stills(load_tool: Callable[[str], Any]) -> None:
    tool = load_tool("inflation_training")
    torch.manual_seed(0)
    labels = torch.arange(3).repeat(20)
    images = torch.randn(60, 3, 8, 8) * 0.1 + torch.eye(3)[labels][:, :, None, None]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    assert tool.train_on_stills(network, (images, labels), (images, labels), epochs=60) > 0.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"after": 0.89}, ["after 89.0% < 90%"]),
        ({"before": 0.5, "frozen": 0.3}, ["before 50.0% > 20%", "frozen 30.0% > 20%"]),
        ({"still": 0.1}, ["stills 10.0% < 30%"]),
    ],
)
def test_bounds(load_tool: Callable[[str], Any], change: dict[str, float], words: list[str]) -> None:
    row = {"still": 0.4, "before": 0.12, "after": 0.95, "frozen": 0.13, **change}
    assert load_tool("inflation_training").missed(row) == words
