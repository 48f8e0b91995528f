"""The trunk of 2D CNNs with a temporal module: layers on frames, the places for modules, the consensus."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stvid.models.segments import (
    BlockParts,
    BlockPlace,
    ChannelTimeConv,
    ConsensusHead,
    PerFrame,
    SegmentResNet,
    TemporalShift,
    TimePool,
    conv_norm,
)


class Noted(nn.Module):
    """An identity that notes the shapes it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x


def trunk(**options: Any) -> SegmentResNet:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "num_classes": 5,
        "in_chans": 3,
        "depth": (1, 2, 1, 1),
        "embed_dim": 32,
        "bottleneck": True,
        "make_parts": lambda place: BlockParts(),
        "drop_rate": 0.0,
    }
    return SegmentResNet(**{**given, **options}).eval()


def test_layers_see_each_frame_by_itself() -> None:
    layers = conv_norm(3, 4, 3, stride=2).eval()
    x = torch.randn(2, 5, 3, 8, 8)
    with torch.no_grad():
        out = layers(x)
        assert isinstance(layers, PerFrame) and out.shape == (2, 5, 4, 4, 4)
        torch.testing.assert_close(out[:, 2:3], layers(x[:, 2:3]))


def test_shift_moves_both_ways_and_pads_with_zeros() -> None:
    x = torch.randn(2, 3, 9, 2, 2)
    out = TemporalShift(shift_div=4)(x)
    assert torch.equal(out[:, :-1, :2], x[:, 1:, :2]) and not out[:, -1, :2].any()
    assert torch.equal(out[:, 1:, 2:4], x[:, :-1, 2:4]) and not out[:, 0, 2:4].any()
    assert torch.equal(out[:, :, 4:], x[:, :, 4:])
    alone = TemporalShift(shift_div=4)(x[:, :1])
    assert not alone[:, :, :4].any() and torch.equal(alone[:, :, 4:], x[:, :1, 4:])
    with pytest.raises(ValueError, match="shift_div 1: must be at least 2"):
        TemporalShift(shift_div=1)


def test_causal_shift_in_chunks_is_the_shift_in_one_pass() -> None:
    shift = TemporalShift(shift_div=4, causal=True)
    x = torch.randn(2, 6, 8, 2, 2)
    whole = shift(x)
    assert torch.equal(whole[:, 1:, :2], x[:, :-1, :2]) and not whole[:, 0, :2].any()
    assert torch.equal(whole[:, :, 2:], x[:, :, 2:])
    last = torch.zeros(2, 1, 2, 2, 2)
    found = []
    for chunk in x.split([1, 3, 2], dim=1):
        part, last = shift.step(chunk, last)
        found.append(part)
    assert torch.equal(torch.cat(found, dim=1), whole)


def test_convolution_in_time_starts_as_the_shift() -> None:
    conv = ChannelTimeConv(8)
    conv.start_as_shift(2)
    x = torch.randn(2, 5, 8, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), TemporalShift(shift_div=4)(x))
        plain = nn.functional.conv3d(x.transpose(1, 2), conv.conv.weight[..., None], padding=(1, 0, 0), groups=8)
        torch.testing.assert_close(conv(x), plain.transpose(1, 2))


def test_the_head_is_the_mean_of_the_frames_logits() -> None:
    head = ConsensusHead(4, 3).eval()
    features = torch.randn(2, 4, 5, 2, 2)
    with torch.no_grad():
        frames = torch.stack([head.fc(features[:, :, frame].mean((2, 3))) for frame in range(5)])
        torch.testing.assert_close(head(features), frames.mean(0))
    dropping = ConsensusHead(64, 3, drop_rate=0.5).train()
    pooled = dropping.pool(torch.ones(1, 64, 6, 1, 1))
    assert len(pooled.unique()) > 2  # each frame drops its own channels, so sums of six differ by more than all or none


def test_modules_see_frames_in_their_places() -> None:
    seen: dict[tuple[int, int], dict[str, Noted]] = {}

    def make_parts(place: BlockPlace) -> BlockParts:
        parts = {name: Noted() for name in ("before", "inside", "after")}
        seen[place.stage, place.block] = parts
        return BlockParts(**parts)

    model = trunk(make_parts=make_parts)
    with torch.no_grad():
        model(torch.randn(2, 3, 4, 32, 64))
    assert list(seen) == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    found = {name: part.shapes for name, part in seen[1, 0].items()}
    assert found == {"before": [(2, 4, 32, 8, 16)], "inside": [(2, 4, 16, 8, 16)], "after": [(2, 4, 64, 4, 8)]}


def test_a_module_may_take_the_place_of_the_3x3_convolution() -> None:
    def make_parts(place: BlockPlace) -> BlockParts:
        return BlockParts(spatial=conv_norm(place.inner, place.inner, 1) if place.stride == 1 else None)

    names = {key for key, _ in trunk(make_parts=make_parts).named_parameters()}
    assert "layer2.1.conv2.0.weight" in names
    assert trunk(make_parts=make_parts).layer2[1].conv2[0].kernel_size == (1, 1)


@pytest.mark.parametrize("moves", [False, True])
def test_the_shortcut_sees_the_input_or_what_was_made_of_it(moves: bool) -> None:
    model = trunk(make_parts=lambda place: BlockParts(before=TemporalShift(), moves_shortcut=moves))
    block = model.layer2[1]
    x = torch.rand(1, 3, 64, 2, 2)
    with torch.no_grad():
        block.conv3[1].weight.zero_()  # the branch is zero
        block.conv3[1].bias.zero_()
        torch.testing.assert_close(block(x), block.before(x) if moves else x)


def test_pools_in_time_halve_the_frames() -> None:
    x = torch.randn(1, 5, 2, 1, 1)
    out = TimePool()(x)
    assert out.shape[1] == 3
    torch.testing.assert_close(out[:, 1], x[:, 1:4].amax(1))
    model = trunk(time_pools=(1, 3))
    assert [info.reduction[0] for info in model.feature_info] == [1, 2, 2, 4]
    assert model.token_grid((1, 3, 5, 64, 64)) == (2, 2, 2)
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 5, 64, 64)).shape == (1, 256, 2, 2, 2)
    with pytest.raises(ValueError, match="stages from 1 to 3"):
        trunk(time_pools=(4,))
