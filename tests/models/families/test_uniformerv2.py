"""UniFormerV2: its published layouts, CLIP's files as its parents, the models for Something-Something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stvid
from stvid.errors import CheckpointError
from stvid.models.blocks import rename_keys
from stvid.models.families.uniformerv2 import UniFormerV2

TINY: dict[str, Any] = {"num_frames": 4, "img_size": (32, 48), "depth": 3, "embed_dim": 48, "num_heads": 4}
SOMETHING = {"local_blocks": True, "temporal_downsample": True}


def tiny(num_classes: int = 5, **options: Any) -> UniFormerV2:
    torch.manual_seed(0)
    model = stvid.create_model("uniformerv2_b16", num_classes=num_classes, **{**TINY, **options}).eval()
    assert isinstance(model, UniFormerV2)
    for parameter in model.parameters():  # much starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def authors_state(model: UniFormerV2) -> dict[str, Tensor]:
    """The state of a model in the authors' keys."""
    own = model.state_dict()
    for number in range(len(model.global_blocks)):
        for kind in ("weight", "bias"):
            parts = [own.pop(f"global_blocks.{number}.attn.{letter}.{kind}") for letter in "qkv"]
            own[f"global_blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    rules = [
        (r"\.attn\.qkv\.(weight|bias)$", r".attn.in_proj_\1"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"^(blocks|global_blocks)\.(\d+)\.norm(\d)\.", r"\1.\2.ln_\3."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"^global_blocks\.(\d+)\.pos_conv\.", r"transformer.dpe.\1."),
        (r"^global_blocks\.", "transformer.dec."),
        (r"^blocks\.(\d+)\.local(\d)\.", r"transformer.resblocks.\1.lmhra\2.pos_embed."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"^query$", "transformer.temporal_cls_token"),
        (r"^balance$", "transformer.balance"),
        (r"^head\.norm\.", "transformer.proj.0."),
        (r"^head\.fc\.", "transformer.proj.2."),
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^norm_pre\.", "ln_pre."),
        (r"^", "backbone."),
    ]
    state = rename_keys(own, rules)
    state["backbone.class_embedding"] = state.pop("backbone.cls_token")[0, 0]
    state["backbone.positional_embedding"] = state.pop("backbone.pos_embed")[0]
    return state


def clip_state(model: UniFormerV2) -> dict[str, Tensor]:
    """An image transformer as openai/CLIP stores it, with what belongs to texts."""
    bare = {key.removeprefix("backbone."): value for key, value in authors_state(model).items()}
    left_out = ("transformer.dec", "transformer.dpe", "transformer.proj", "transformer.temporal", "transformer.balance")
    state = {f"visual.{key}": value for key, value in bare.items() if not key.startswith(left_out)}
    state["visual.conv1.weight"] = state["visual.conv1.weight"][:, :, 0]
    extra = {"visual.ln_post.weight": torch.ones(48), "visual.proj": torch.zeros(48, 32), "logit_scale": torch.ones(())}
    return {**state, **extra, "token_embedding.weight": torch.zeros(9, 32)}


@pytest.mark.parametrize("options", [{}, SOMETHING, {"mix_class_tokens": False}])
def test_the_authors_files_and_mmaction2_s_load(options: dict[str, Any]) -> None:
    model = tiny(**options)
    clip = torch.randn(2, 3, 4, 32, 48)
    state = authors_state(model)
    ports = rename_keys(
        state,
        [(r"transformer\.proj\.0\.", "transformer.norm."), (r"^backbone\.transformer\.proj\.2\.", "cls_head.fc_cls.")],
    )
    for found, name in ((state, "OpenGVLab/UniFormerV2"), (ports, "mmaction2")):
        torch.manual_seed(1)
        other = stvid.create_model("uniformerv2_b16", num_classes=5, **{**TINY, **options}).eval()
        assert stvid.load_checkpoint(other, {"model_state": found}).format == name
        with torch.no_grad():
            torch.testing.assert_close(other(clip), model(clip), rtol=0, atol=0)


def test_the_options_of_a_file_are_read_off_its_tensors(tmp_path: Path) -> None:
    options: dict[str, Any] = {**SOMETHING, "depth": 3, "img_size": 32, "num_classes": 6}
    model = stvid.create_model("uniformerv2_b16", **options).eval()
    assert isinstance(model, UniFormerV2) and len(model.global_blocks) == 2
    torch.save(authors_state(model), tmp_path / "ssv2.pyth")
    again = stvid.load_model(tmp_path / "ssv2.pyth", name="uniformerv2_b16")
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, SOMETHING])
def test_clip_s_image_transformer_is_the_parent(options: dict[str, Any]) -> None:
    parent = clip_state(tiny())
    model = tiny(**options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing head\."):
        stvid.load_checkpoint(model, parent)
    report = stvid.load_checkpoint(model, parent, reset_head=True)
    assert report.format == "openai/CLIP" and report.reset
    after = model.state_dict()
    kernel = after["patch_embed.proj.weight"]
    assert torch.equal(kernel[:, :, kernel.shape[2] // 2], parent["visual.conv1.weight"])
    assert kernel.abs().sum() == parent["visual.conv1.weight"].abs().sum()  # nothing in the other frames
    expected = parent["visual.transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(after["blocks.1.attn.qkv.weight"], expected)
    new = [key for key in after if key.startswith("global_blocks.") or ".local" in key]
    assert new and all(torch.equal(after[key], before[key]) for key in new)


def test_how_many_global_blocks_there_are() -> None:
    assert len(tiny(depth=5).global_blocks) == 4
    assert len(tiny(depth=6, **SOMETHING).global_blocks) == 4  # two thirds
    assert len(tiny(depth=3, global_depth=1).global_blocks) == 1
    with pytest.raises(ValueError, match="global_depth 4"):
        tiny(global_depth=4)


def test_an_odd_number_of_frames_is_rounded_up() -> None:
    model = tiny(**SOMETHING)
    assert model.token_grid((5, 32, 48)) == (3, 2, 3)
    with torch.no_grad():
        features = model.forward_features(torch.randn(1, 3, 5, 48, 48))
    assert features.shape == (1, 1 + 3 * 9, 48)


def test_a_convolution_over_time_sees_the_neighbouring_frames_alone() -> None:
    model = tiny(depth=1, **SOMETHING)
    clip = torch.randn(1, 3, 8, 32, 48)
    changed = clip.clone()
    changed[:, :, 6:] += 1.0  # the last of four places in time, whose stem sees frames 5 to 7
    with torch.no_grad():
        before = model.forward_features(clip)[:, 1:].unflatten(1, (4, 6))
        after = model.forward_features(changed)[:, 1:].unflatten(1, (4, 6))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 2], after[:, 2])
