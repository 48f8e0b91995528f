"""STCNet: the channel correlation block, and the 3D ResNet around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import stvid
from stvid.models.families.stcnet import ChannelCorrelation, STCNet

TINY: dict[str, Any] = {"num_classes": 3, "depth": (1, 2, 1, 1), "num_frames": 4, "img_size": 32}


def test_the_block_is_the_mean_of_what_both_branches_scale() -> None:
    block = ChannelCorrelation(16, frames=3, reduction=4)
    x = torch.randn(2, 16, 3, 5, 6)
    scaled = []
    for branch, seen in ((block.temporal, x.mean((2, 3, 4))), (block.spatial, x.mean((3, 4)).flatten(1))):
        first, _, second, _ = branch
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        assert first.weight.shape == (seen.shape[1] // 4, seen.shape[1]) and second.weight.shape[0] == 16
        hidden = (seen @ first.weight.T + first.bias).clamp(min=0)
        factors = torch.sigmoid(hidden @ second.weight.T + second.bias)
        scaled.append(x * factors.view(2, 16, 1, 1, 1))
    torch.testing.assert_close(block(x), (scaled[0] + scaled[1]) / 2)


@pytest.mark.parametrize("options", [{}, {"cardinality": 32}, {"bottleneck": False}])
def test_without_the_blocks_it_is_the_3d_resnet(options: dict[str, Any]) -> None:
    model = stvid.create_model("stcnet_r50", **TINY, **options).eval()
    plain = stvid.create_model("resnet3d_50", **TINY, **options).eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".gate." not in key})
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(model(clip), plain(clip))
        for module in model.modules():
            if hasattr(module, "gate"):
                module.gate = nn.Identity()
        torch.testing.assert_close(model(clip), plain(clip))


def test_only_clips_of_the_frames_that_are_weighed_are_taken() -> None:
    model = stvid.create_model("stcnet_r50", **TINY)
    with pytest.raises(ValueError, match=r"all of 4 frames, and the clip has 6: build the model with num_frames=6"):
        model(torch.randn(1, 3, 6, 32, 32))
    odd = stvid.create_model("stcnet_r50", **{**TINY, "num_frames": 21}).eval()
    with torch.no_grad():
        assert odd(torch.randn(1, 3, 21, 33, 50)).isfinite().all()
    with pytest.raises(ValueError, match="reduction 0"):
        stvid.create_model("stcnet_r50", **TINY, reduction=0)


def test_the_options_are_read_off_a_file() -> None:
    changed = {"depth": (1, 1, 1, 1), "num_frames": 8, "cardinality": 32, "reduction": 8, "in_chans": 2}
    other = stvid.create_model("stcnet_r101", **{**TINY, **changed})
    model = stvid.create_model("stcnet_r50", **TINY)
    assert isinstance(model, STCNet)
    assert model.options_of(other.state_dict()) == changed
