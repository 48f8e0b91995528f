"""TAM on ResNets: where the modules stand, and the authors' names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stvid
from stvid.models.segments import TemporalAggregation, join_aggregations


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return stvid.create_model("tam_r18", **{"num_classes": 5, "depth": (1, 2, 1, 1), "embed_dim": 16, **options}).eval()


def test_every_block_mixes_what_its_branch_sees_alone() -> None:
    model = tiny()
    found = [name for name, module in model.named_modules() if isinstance(module, TemporalAggregation)]
    assert found == ["layer1.0.before", "layer2.0.before", "layer2.1.before", "layer3.0.before", "layer4.0.before"]
    block = model.layer2[1]
    x = torch.rand(1, 3, 32, 4, 4)
    with torch.no_grad():
        block.conv2[1].weight.zero_()
        block.conv2[1].bias.zero_()
        torch.testing.assert_close(block(x), x)  # the shortcut sees the input


def test_more_frames_are_mixed_with_the_authors_names() -> None:
    with pytest.raises(ValueError, match="blending_frames 4: must be an odd number"):
        tiny(blending_frames=4)
    weight = torch.randn(3, 1, 5, 1)
    layers = {f"layer1.0.tam.blending_layers.{place}.fc1.weight": weight[:, :, [place]] for place in range(5)}
    assert torch.equal(join_aggregations(layers)["layer1.0.tam.conv.weight"], weight)
    module = TemporalAggregation(3, kernel=5)
    x = torch.randn(1, 6, 3, 2, 2)
    with torch.no_grad():
        module.conv.weight.copy_(weight)
        padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 2, 2))
        terms = [padded[:, place : place + 6] * weight[:, 0, place].view(3, 1, 1) for place in range(5)]
        torch.testing.assert_close(module(x), sum(terms).relu())
    assert tiny().options_of(tiny(blending_frames=5).state_dict()) == {"blending_frames": 5}


def test_pools_in_time() -> None:
    model = tiny(temporal_pool=True)
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 16, 32, 32)).shape[2] == 2
