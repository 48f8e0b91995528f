"""MViT and MViTv2: layouts, options read off files, tables at other sizes, and the networks of other libraries."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stvid
from stvid.checkpoints import load_checkpoint
from stvid.models.families.mvit import MViT

needs_pytorchvideo = pytest.mark.skipif(
    importlib.util.find_spec("pytorchvideo") is None, reason="pytorchvideo is not installed"
)
TINY: dict[str, Any] = {"depth": 4, "stage_starts": (1, 2, 3), "embed_dim": 8, "num_frames": 4, "img_size": (64, 64)}


def tiny(name: str = "mvit_b_16x4", num_classes: int = 5, **options: Any) -> MViT:
    torch.manual_seed(0)
    model = stvid.create_model(name, num_classes=num_classes, **{**TINY, **options}).eval()
    assert isinstance(model, MViT)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def renamed(state: dict[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    for pattern, replacement in rules:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state


def slowfast(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return renamed(state, (r"^head\.fc\.", "head.projection."))


def mmaction(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = renamed(
        state, (r"^patch_embed\.proj", "patch_embed.projection"), (r"^norm\.", "norm3."), (r"^", "backbone.")
    )
    return renamed(state, (r"^backbone\.head\.fc", "cls_head.fc_cls"))


def pytorchvideo(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = renamed(
        state,
        (r"^patch_embed\.proj", "patch_embed.patch_model"),
        (r"^(cls_token|pos_embed_\w+)$", r"cls_positional_encoding.\1"),
        (r"^norm\.", "norm_embed."),
        (r"^head\.fc\.", "head.proj."),
    )
    apart: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".qkv." in key:
            apart |= {key.replace("qkv", part): third for part, third in zip("qkv", value.chunk(3), strict=True)}
        else:
            apart[key] = value
    return apart


@pytest.mark.parametrize(
    ("layout", "name", "make"),
    [
        ("SlowFast", "mvit_b_16x4", slowfast),
        ("SlowFast", "mvitv2_s_16x4", slowfast),
        ("mmaction2", "mvitv2_s_16x4", mmaction),
        ("PyTorchVideo", "mvit_b_16x4", pytorchvideo),
    ],
)
def test_layouts(layout: str, name: str, make: Any) -> None:
    model, other = tiny(name), tiny(name)
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    report = load_checkpoint(other, {"model_state": make(state)})
    assert report.format == layout and not report.resized
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_layout_brings_the_epsilon_of_its_norms(tmp_path: Path) -> None:
    model, clip = tiny(), torch.randn(1, 3, 4, 64, 64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(clip)
        load_checkpoint(model, pytorchvideo(state))
        assert model.pool_norm_eps == 1e-5 and {block.attn.norm_k.eps for block in model.blocks} == {1e-5}
        after = model(clip)
        assert not torch.equal(before, after)
        stvid.save_model(model, tmp_path / "weights.pt")
        torch.testing.assert_close(stvid.load_model(tmp_path / "weights.pt")(clip), after, rtol=0, atol=0)
        load_checkpoint(model, slowfast(state))
        torch.testing.assert_close(model(clip), before, rtol=0, atol=0)


def test_options_are_read_off_a_file() -> None:
    made = tiny("mvit_b24_32x3", depth=5, stage_starts=(1, 3), mlp_ratio=2.0, in_chans=2, qkv_bias=False)
    assert tiny("mvit_b_16x4").options_of(slowfast(made.state_dict())) == {
        "in_chans": 2,
        "depth": 5,
        "stage_starts": (1, 3),
        "mlp_ratio": 2.0,
        "qkv_bias": False,
        "pool_kernel": None,
    }
    second = tiny("mvitv2_s_16x4", embed_dim=16, num_heads=2)
    expected = {"version": 2, "embed_dim": 16, "num_heads": 2, "widen_in_attention": True}
    assert tiny().options_of(mmaction(second.state_dict())) == expected
    maskfeat = tiny("mvitv2_s_16x4", widen_in_attention=False)
    assert tiny("mvitv2_s_16x4").options_of(maskfeat.state_dict()) == {"widen_in_attention": False}
    image = tiny("mvit_b_16", num_frames=1)
    assert tiny().options_of(image.state_dict()) == {"patch_kernel": (1, 7, 7), "pool_kernel": (1, 3, 3)}


def test_other_clips_resize_the_positions() -> None:
    model = tiny()
    other = tiny(num_frames=8, img_size=(96, 32))
    report = load_checkpoint(other, slowfast(model.state_dict()))
    assert sorted(report.resized) == ["pos_embed_spatial", "pos_embed_temporal"]
    grid = model.pos_embed_spatial.transpose(1, 2).unflatten(2, (16, 16))
    expected = F.interpolate(grid, (24, 8), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(other.pos_embed_spatial, expected)
    clip = torch.randn(2, 3, 8, 96, 32)
    with torch.no_grad():  # the model resizes them itself, too
        torch.testing.assert_close(model(clip), other(clip))


def test_a_file_of_stvid_says_which_grid_its_positions_have(tmp_path: Path) -> None:
    stvid.save_model(tiny(img_size=(64, 16)), tmp_path / "weights.pt")  # 64 cells, but no square
    model = stvid.load_model(tmp_path / "weights.pt")
    other = tiny(img_size=(96, 32))
    assert [*load_checkpoint(other, tmp_path / "weights.pt").resized] == ["pos_embed_spatial"]
    clip = torch.randn(1, 3, 4, 96, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), other(clip), rtol=1e-4, atol=1e-5)


def test_other_clips_resize_the_relative_positions() -> None:
    model = tiny("mvitv2_s_16x4")
    other = tiny("mvitv2_s_16x4", num_frames=8, img_size=(96, 96))
    report = load_checkpoint(other, slowfast(model.state_dict()))
    assert len(report.resized) == 4 * 3
    clip = torch.randn(2, 3, 8, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), other(clip), rtol=1e-4, atol=1e-5)
        assert model(clip[:, :, :3, :70, :50]).shape == (2, 5)


def test_the_features_know_how_the_last_block_pools() -> None:
    """The logits do not: they are of the class token, which no pooling sees."""
    model = tiny("mvitv2_s_16x4")
    model.forward_features(torch.randn(1, 3, 4, 64, 64))[:, 1:, 0].sum().backward()
    last = model.blocks[3].attn
    for parameter in (last.pool_q.weight, last.rel_pos_h, last.rel_pos_w, last.rel_pos_t):
        assert parameter.grad.abs().sum() > 0


def test_wrong_options_are_named() -> None:
    for options, message in [
        ({"version": 3}, "version 3: MViT has the versions 1 and 2"),
        ({"stage_starts": (3, 1)}, "each larger than before"),
        ({"stage_starts": (0,)}, "from 1 on"),
        ({"num_heads": 3}, "no multiple of its 3 heads"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny(**options)


# --- the libraries themselves -----------------------------------------------------------------------------------------


@needs_pytorchvideo
@pytest.mark.parametrize("name", ["mvit_b_16x4", "mvit_b_16"])
def test_the_logits_are_pytorchvideos(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    image = name == "mvit_b_16"
    size: dict[str, Any] = {"num_frames": 1 if image else 6, "img_size": (32, 48)}
    stages = {"embed_dim_mul": [[1, 2.0], [2, 2.0]], "atten_head_mul": [[1, 2.0], [2, 2.0]]}
    settings: dict[str, Any] = {"pool_kv_stride_adaptive": [1, 8, 8], "pool_kvq_kernel": [3, 3, 3]}
    if image:
        settings = {"pool_kv_stride_adaptive": [1, 4, 4], "pool_kvq_kernel": [1, 3, 3], "use_2d_patch": True}
        for part, value in (("kernel", 7), ("stride", 4), ("padding", 3)):
            settings[f"conv_patch_embed_{part}"] = [value, value]
    torch.manual_seed(0)
    network = create_multiscale_vision_transformers(
        spatial_size=size["img_size"],
        temporal_size=size["num_frames"],
        depth=3,
        patch_embed_dim=8,
        pool_q_stride_size=[[1, 1, 2, 2], [2, 1, 2, 2]],
        head_num_classes=5,
        **stages,
        **settings,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = stvid.create_model(name, num_classes=5, depth=3, stage_starts=(1, 2), embed_dim=8, **size).eval()
    assert stvid.load_checkpoint(model, network.state_dict()).format == "PyTorchVideo"
    clip = torch.randn(2, 3, size["num_frames"], 32, 48).double()
    with torch.no_grad():
        expected = network.double().eval()(clip[:, :, 0] if image else clip)
        torch.testing.assert_close(model.double()(clip), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("version", [1, 2])
def test_the_logits_are_torchvisions(version: int) -> None:
    from torchvision.models.video.mvit import MSBlockConfig
    from torchvision.models.video.mvit import MViT as Network

    widths = [(8, 16), (16, 32), (32, 32)] if version == 1 else [(8, 8), (8, 16), (16, 32)]
    no_pooling: list[int] = []
    blocks = [
        MSBlockConfig(
            num_heads=2**number,
            input_channels=inner,
            output_channels=outer,
            kernel_q=[3, 3, 3] if number or version == 2 else no_pooling,
            kernel_kv=[3, 3, 3],
            stride_q=[1, 2, 2] if number else [1, 1, 1] if version == 2 else no_pooling,
            stride_kv=[1, 8 // 2**number, 8 // 2**number],
        )
        for number, (inner, outer) in enumerate(widths)
    ]
    torch.manual_seed(0)
    second = version == 2
    network = Network(
        spatial_size=(56, 40),
        temporal_size=6,
        block_setting=blocks,
        residual_pool=second,
        residual_with_cls_embed=False,
        rel_pos_embed=second,
        proj_after_attn=second,
        num_classes=5,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    name = "mvitv2_s_16x4" if second else "mvit_b_16x4"
    size: dict[str, Any] = {"num_frames": 6, "img_size": (56, 40)}
    model = stvid.create_model(name, num_classes=5, depth=3, stage_starts=(1, 2), embed_dim=8, **size).eval()
    report = stvid.load_checkpoint(model, network.state_dict())
    assert report.format == "torchvision" and not report.resized
    clip = torch.randn(2, 3, 6, 56, 40).double()
    with torch.no_grad():
        torch.testing.assert_close(model.double()(clip), network.double().eval()(clip), rtol=0, atol=1e-9)
