"""bLVNet-TAM: pairs of frames, and the branches that see them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stvid
from stvid.models.families.blvnet import BigLittleModule


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    given = {"num_classes": 5, "depth": (3, 4, 6, 2), "embed_dim": 32, **options}
    return stvid.create_model("blvnet_tam_r50", **given).eval()


def test_frames_come_in_pairs() -> None:
    model = tiny()
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 6, 64, 64)).shape == (1, 256, 3, 2, 2)
        with pytest.raises(ValueError, match="an even number of frames, not 5"):
            model(torch.randn(1, 3, 5, 64, 64))
    with pytest.raises(ValueError, match="needs three modules of at least 2 blocks"):
        tiny(depth=(1, 2, 2, 2))


def test_depth_of_the_branches() -> None:
    model = tiny(depth=(3, 4, 18, 2))
    assert [len(model.get_submodule(f"layer{number}.big")) for number in (1, 2, 3)] == [2, 3, 17]
    assert [len(model.get_submodule(f"layer{number}.little")) for number in (1, 2, 3)] == [1, 1, 3]
    acts = [[block.last_act for block in model.get_submodule(f"layer{number}.big")] for number in (1, 2)]
    assert acts == [[True, False], [True, True, False]]
    assert tiny(depth=(2, 2, 2, 1)).layer1.big[0].last_act  # a single block keeps its ReLU
    assert tiny().options_of(model.state_dict()) == {"depth": (3, 4, 18, 2)}


def test_little_frames_are_even_and_big_ones_odd() -> None:
    module = BigLittleModule(8, 16, blocks=3, stride=1, alpha=2, beta=4, blending_frames=1).eval()
    seen: dict[str, torch.Tensor] = {}
    module.big.register_forward_pre_hook(lambda _, inputs: seen.update(big=inputs[0]))
    module.little.register_forward_pre_hook(lambda _, inputs: seen.update(little=inputs[0]))
    module.tam.register_forward_hook(lambda *_: torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 8, 8, 8))
    with torch.no_grad():
        out = module(torch.randn(1, 2, 8, 8, 8))
    assert out.shape == (1, 2, 16, 8, 8)
    assert seen["big"].amax((2, 3, 4)).tolist() == [[1.0, 3.0]]
    assert seen["little"].amax((2, 3, 4)).tolist() == [[0.0, 2.0]]
