"""Hara's 3D ResNets: their two kinds of shortcuts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import stvid
from stvid.errors import CheckpointError

TINY = {"depth": (1, 1, 1, 1)}


@pytest.mark.parametrize(("built", "loaded"), [("A", "B"), ("B", "A")])
def test_shortcuts_of_the_other_type_are_named(built: str, loaded: str) -> None:
    source = stvid.create_model("resnet3d_18", num_classes=5, shortcut_type=loaded, **TINY).state_dict()
    source = {re.sub(r"^head\.fc", "fc", key): value for key, value in source.items()}
    model = stvid.create_model("resnet3d_18", num_classes=5, shortcut_type=built, **TINY)
    with pytest.raises(CheckpointError, match=f"shortcut_type='{loaded}'"):
        stvid.load_checkpoint(model, source)


@pytest.mark.parametrize("shortcut_type", ["A", "B"])
def test_published_weights_bring_their_shortcuts(shortcut_type: Any, tmp_path: Path) -> None:
    source = stvid.create_model("resnet3d_18", num_classes=5, shortcut_type=shortcut_type).eval()
    state = {"module." + re.sub(r"^head\.fc", "fc", key): value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    model = stvid.load_model(tmp_path / "published.pth", name="resnet3d_18")
    assert model.shortcut_type == shortcut_type and model.num_classes == 5
    clip = torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), source(clip), rtol=0, atol=0)
    stvid.save_model(model, tmp_path / "own.safetensors")
    assert stvid.load_model(tmp_path / "own.safetensors").shortcut_type == shortcut_type
