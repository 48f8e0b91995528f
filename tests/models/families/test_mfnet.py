"""The parts of the Multi-Fiber Network alone: fibers, a multiplexer, and a shortcut around both."""

from __future__ import annotations

from typing import Any

import fill  # tests/goldens/fill.py
import pytest
import torch

import stvid
from stvid.models.families.mfnet import MultiFiberNet

TINY: dict[str, Any] = {"depth": (1, 2, 1, 1), "embed_dim": 32, "groups": 4, "num_classes": 5}


def tiny(**options: Any) -> MultiFiberNet:
    torch.manual_seed(0)
    return stvid.create_model("mfnet3d", **{**TINY, "num_frames": 4, "img_size": 64, **options})  # type: ignore[return-value]


def test_the_shortcut_leaves_the_multiplexer_out() -> None:
    unit = tiny().layer2[1].double().eval()
    fill.fill_module(unit)
    x = torch.randn(1, 64, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        mixed = x + unit.mix2(unit.mix1(x))
        torch.testing.assert_close(unit(x), unit.conv2(unit.conv1(mixed)) + x)
        unit.mix2.conv.weight.zero_()
        torch.testing.assert_close(unit(x), unit.conv2(unit.conv1(x)) + x)


def test_fibers_do_not_see_each_other() -> None:
    conv = tiny().layer2[1].conv1.conv
    assert conv.groups == 4 and conv.weight.shape == (64, 16, 3, 3, 3)
    with pytest.raises(ValueError, match="groups 5: must divide embed_dim 32"):
        tiny(groups=5)


def test_norms_between_two_convolutions_are_folded() -> None:
    """A norm in front of a ReLU stays, unless a convolution alone stands before it."""
    model = tiny().eval()
    fused = stvid.fuse(model)
    assert fused.fused is not None
    units = [f"layer{stage}.{unit}" for stage, depth in enumerate(TINY["depth"], 1) for unit in range(depth)]
    folded = {"stem.1", *(f"{unit}.{norm}.norm" for unit in units for norm in ("mix2", "conv2"))}
    assert set(fused.fused.fused) == folded
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(clip), model(clip), rtol=1e-4, atol=1e-5)


def test_options_are_read_off_a_file() -> None:
    built = tiny(depth=(2, 1, 3, 1), embed_dim=64, groups=8, in_chans=2)
    found = tiny().options_of(built.state_dict())
    assert found == {"depth": (2, 1, 3, 1), "embed_dim": 64, "groups": 8, "in_chans": 2}
    assert tiny().options_of({"fc.weight": torch.zeros(1)}) == {}
