"""UniFormer: the epsilon that comes with a layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import stvid

TINY = {"depth": (1, 1, 1, 1), "embed_dim": (16, 32, 64, 64), "head_dim": 32, "num_classes": 3}


def test_mmaction_has_another_epsilon(tmp_path: Path) -> None:
    source = stvid.create_model("uniformer_s", **TINY)
    state = {
        f"backbone.{key}" if not key.startswith("head.") else key.replace("head.fc", "cls_head.fc_cls"): value
        for key, value in source.state_dict().items()
    }
    model = stvid.create_model("uniformer_s", **TINY)
    assert stvid.load_checkpoint(model, state).format == "mmaction2"
    norms = [module for module in model.blocks4.modules() if isinstance(module, nn.LayerNorm)]
    assert norms and {norm.eps for norm in norms} == {1e-5} and model.patch_embed1.norm.eps == 1e-5
    stvid.save_model(model, tmp_path / "own.pt")
    assert stvid.load_model(tmp_path / "own.pt").norm_eps == 1e-5

    published = {key.replace("head.fc", "head"): value for key, value in source.state_dict().items()}
    assert stvid.load_checkpoint(model, published).format == "Sense-X/UniFormer"
    assert model.norm_eps == model.blocks3[0].norm1.eps == 1e-6
    own = {key: value.clone() for key, value in model.state_dict().items()}
    assert all(torch.equal(own[key], value) for key, value in source.state_dict().items())
