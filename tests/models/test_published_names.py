"""Names of mmaction2 and of Caffe2, which several families share, and what tensors show of a model's arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch

import stvid
from stvid.errors import CheckpointError
from stvid.models.base import VideoModel
from stvid.models.published_names import (
    count_blocks,
    from_slowfast_caffe2,
    from_vmz_caffe2,
    read_options,
    square_side,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "mmaction2"
NETWORKS = {
    "c2d_r50": "c2d_r50",
    "c3d": "c3d",
    "i3d_nl_r50": "i3d_nl_r50",
    "i3d_r50": "i3d_r50",
    "ircsn_152": "ir_csn_152",
    "r2plus1d_34": "r2plus1d_34",
    "slowonly_r50": "slow_r50",
    "swin_t": "swin3d_t",
    "timesformer_divst": "timesformer_base",
    "uniformer_s": "uniformer_s",
}
SLOW = {"c2d_r50", "c3d", "i3d_nl_r50", "ircsn_152", "r2plus1d_34", "timesformer_divst"}


def golden(network: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{network}.json").read_text())


def shown(name: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Options that a file shows; the model is built without memory, since only shapes count."""
    with torch.device("meta"):
        return stvid.create_model(name).options_of(state)


# --- mmaction2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_mmaction_names_and_shapes(network: str, outline: Callable[..., Any]) -> None:
    record = golden(network)
    with outline():
        state = {key: torch.empty(shape) for key, shape in record["state"].items()}
        options = shown(NETWORKS[network], state)
        model = stvid.create_model(NETWORKS[network], num_classes=record["num_classes"], **options)
        _, own = model.convert_checkpoint(state)
    assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]
    counted = {key: value.shape for key, value in model.state_dict().items() if "num_batches" not in key}
    assert {key: value.shape for key, value in own.items()} == counted


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS]
)
def test_mmaction_logits(network: str) -> None:
    record = golden(network)
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in fill.fill_state(record["state"]).items()}
    _, _, frames, height, width = record["input_shape"]
    call = {"num_classes": record["num_classes"], "num_frames": frames, "img_size": (height, width)}
    model = stvid.create_model(NETWORKS[network], **call)
    if network == "r2plus1d_34":  # shows in its tensors; what does not is set when the weights are loaded
        with pytest.raises(CheckpointError, match="build the model with stem_midplanes=83"):
            stvid.load_checkpoint(model, state)
        model = stvid.create_model(NETWORKS[network], **call, **model.options_of(state))
    report = stvid.load_checkpoint(model, {"state_dict": state})
    assert report.format == ("Video-Swin-Transformer" if network == "swin_t" else "mmaction2") and not report.resized
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    with torch.no_grad():
        logits = model.double().eval()(clip).flatten().numpy()
    assert np.abs(logits - np.array(record["logits"])).max() < 1e-7 * record["logits_std"]


@pytest.mark.parametrize("network", ["c3d", "i3d_r50", "ircsn_152", "swin_t", "timesformer_divst"])
def test_a_backbone_alone_is_known_without_its_prefix(network: str, outline: Callable[..., Any]) -> None:
    record = golden(network)
    with outline():
        state = {
            key.removeprefix("backbone."): torch.empty(shape)
            for key, shape in record["state"].items()
            if key.startswith("backbone.")
        }
        model = stvid.create_model(NETWORKS[network])
        _, own = model.convert_checkpoint(state)
    needed = {key for key in model.state_dict() if "num_batches" not in key}
    assert needed - own.keys() == {"head.fc.weight", "head.fc.bias"} and not own.keys() - needed


def random_model(name: str, **options: Any) -> VideoModel:
    torch.manual_seed(0)
    model = stvid.create_model(name, num_classes=5, **options).eval()
    for module in model.modules():  # so that norms, and their epsilon, matter
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.uniform_(module.running_var, 1e-3, 0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return model


def renamed(model: VideoModel, rules: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in model.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    return state


def logits_of(model: VideoModel, clip: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(clip)


MMACTION_RESNET = [
    (r"^stem\.0\.", "backbone.conv1.conv."),
    (r"^stem\.1\.", "backbone.conv1.bn."),
    (r"^head\.fc\.", "cls_head.fc_cls."),
    (r"^layer", "backbone.layer"),
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"\.downsample\.1\.", ".downsample.bn."),
    (r"\.(conv\d)\.(\w+)$", r".\1.conv.\2"),
    (r"\.norm([123])\.", r".conv\1.bn."),
    (r"\.nonlocal_block\.out\.", ".non_local_block.conv_out.conv."),
    (r"\.nonlocal_block\.norm\.", ".non_local_block.conv_out.bn."),
    (r"\.nonlocal_block\.(g|phi)\.", r".non_local_block.\1.0.conv."),
    (r"\.nonlocal_block\.theta\.", ".non_local_block.theta.conv."),
]


def test_mmaction_slowonly_with_gaussian_non_local_blocks() -> None:
    settings = {"nonlocal_mode": "gaussian", "nonlocal_bias": False, "nonlocal_pool": "after"}
    blocks = {"nonlocal_blocks": ((), (0,), (1,), ()), "depth": (1, 1, 2, 1), "in_chans": 2, "embed_dim": 32}
    model = random_model("slow_r50", pool_size="all", **settings, **blocks)
    state = renamed(model, MMACTION_RESNET)
    options = shown("slow_r50", state)
    assert options == {**blocks, "nonlocal_mode": "gaussian", "nonlocal_bias": False, "nonlocal_pool": "after"}
    other = stvid.create_model("slow_r50", num_classes=5, **options)
    assert stvid.load_checkpoint(other, state).format == "mmaction2"
    clip = torch.randn(1, 2, 4, 70, 64)
    torch.testing.assert_close(logits_of(other, clip), logits_of(model, clip))


def test_arguments_win_over_the_settings_of_a_layout() -> None:
    """mmaction2's C2D with and without the pool in time have the same keys."""
    tiny = {"depth": (1, 1, 1, 1), "embed_dim": 32, "num_classes": 5}
    state = renamed(random_model("c2d_r50", depth=(1, 1, 1, 1), embed_dim=32), MMACTION_RESNET)
    pooled = stvid.create_model("c2d_r50", **tiny)
    plain = stvid.create_model("c2d_r50", time_pool=False, stem_pool_padding=1, **tiny)
    for model in (pooled, plain):
        stvid.load_checkpoint(model, state)
    assert (pooled.stem[3].padding, plain.stem[3].padding) == ((0, 0, 0), (0, 1, 1))
    assert pooled.head.window is plain.head.window is None
    frames = torch.randn(1, 3, 4, 40, 40)
    each = torch.cat([logits_of(plain, frames[:, :, number : number + 1]) for number in range(4)])
    torch.testing.assert_close(logits_of(plain, frames)[0], each.mean(0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(plain, frames), logits_of(pooled, frames), atol=1e-4)
    assert tuple(logits_of(pooled, frames).shape) == (1, 5)
    for size in (32, 36, 40, 70):
        clip = torch.randn(1, 3, 4, size, size)
        assert pooled.forward_features(clip).shape[2:] == pooled.token_grid(clip.shape)


def test_a_saved_model_keeps_the_settings_of_its_layout(tmp_path: Path) -> None:
    tiny = {"depth": (1, 1, 1, 1), "embed_dim": 32, "num_classes": 5}
    model = stvid.create_model("i3d_r50", **tiny)
    stvid.load_checkpoint(model, renamed(random_model("i3d_r50", depth=(1, 1, 1, 1), embed_dim=32), MMACTION_RESNET))
    assert model.feature_info[-1].reduction == (8, 32, 32)
    stvid.save_model(model, tmp_path / "own.pt")
    clip = torch.randn(1, 3, 9, 64, 64)
    again = stvid.load_model(tmp_path / "own.pt")
    torch.testing.assert_close(logits_of(again, clip), logits_of(model, clip), rtol=0, atol=0)
    other = stvid.create_model("i3d_r50", **tiny)
    stvid.load_checkpoint(other, tmp_path / "own.pt")
    torch.testing.assert_close(logits_of(other, clip), logits_of(model, clip), rtol=0, atol=0)
    with pytest.raises(ValueError, match="at least 5 frames"):
        model(clip[:, :, :4])


def test_mmaction_ip_csn() -> None:
    model = random_model("ip_csn_50", depth=(1, 1, 1, 1))
    rules = [
        (r"^stem\.0\.", "backbone.conv1.conv."),
        (r"^stem\.1\.", "backbone.conv1.bn."),
        (r"^head\.fc\.", "cls_head.fc_cls."),
        (r"^layer", "backbone.layer"),
        (r"\.conv2\.1\.", ".conv2.1.bn."),
        (r"\.conv2\.0\.2\.", ".conv2.1.conv."),
        (r"\.conv2\.0\.0\.", ".conv2.0.conv."),
        (r"\.conv2\.0\.1\.", ".conv2.0.bn."),
        (r"\.(conv[13]|downsample)\.0\.", r".\1.conv."),
        (r"\.(conv[13]|downsample)\.1\.", r".\1.bn."),
    ]
    state = renamed(model, rules)
    options = shown("ip_csn_152", state)
    assert options == {"depth": (1, 1, 1, 1)}
    other = stvid.create_model("ip_csn_152", num_classes=5, norm_eps=1e-5, **options)
    stvid.load_checkpoint(other, state)
    clip = torch.randn(1, 3, 4, 64, 64)
    torch.testing.assert_close(logits_of(other, clip), logits_of(model, clip))


# --- Caffe2 -----------------------------------------------------------------------------------------------------------

SUFFIXES = {"weight": "w", "bias": "b"}
NORM_SUFFIXES = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
TRAINING = {"lr": torch.tensor(0.1), "model_iter": torch.tensor([7]), "conv1_w_momentum": torch.zeros(3)}


def slowfast_blob(key: str) -> str:
    """The blob that video-nonlocal-net's code gives a tensor of ours."""
    *path, kind = key.split(".")
    if path[0] == "stem":
        return f"conv1_{SUFFIXES[kind]}" if path[1] == "0" else f"res_conv1_bn_{NORM_SUFFIXES[kind]}"
    if path[0] == "head":
        return f"pred_{SUFFIXES[kind]}"
    stage, block = int(path[0][-1]) + 1, path[1]
    if path[2] == "nonlocal_block":
        name = f"nonlocal_conv{stage}_{block}"
        return f"{name}_bn_{NORM_SUFFIXES[kind]}" if path[3] == "norm" else f"{name}_{path[3]}_{SUFFIXES[kind]}"
    name = f"res{stage}_{block}_branch"
    if path[2] == "downsample":
        return f"{name}1_w" if path[3] == "0" else f"{name}1_bn_{NORM_SUFFIXES[kind]}"
    letter = "abc"[int(path[2][-1]) - 1]
    return f"{name}2{letter}_w" if path[2].startswith("conv") else f"{name}2{letter}_bn_{NORM_SUFFIXES[kind]}"


@pytest.mark.parametrize("name", ["i3d_nl_r50", "c2d_r50", "slow_r50"])
def test_slowfast_blobs(name: str) -> None:
    model = random_model(name, depth=(1, 4, 2, 1), num_frames=8, img_size=96)
    blobs = {
        slowfast_blob(key): value for key, value in model.state_dict().items() if not key.endswith("batches_tracked")
    }
    blobs["pred_w"] = blobs["pred_w"][:, :, None, None, None]  # a convolution, in some of the files
    options = shown(name, blobs)
    assert options == {"depth": (1, 4, 2, 1), **({"nonlocal_blocks": ((), (1, 3), (1,), ())} if "nl" in name else {})}
    other = stvid.create_model(name, num_classes=5, num_frames=8, img_size=96, **options)
    assert stvid.load_checkpoint(other, {**blobs, **TRAINING}).format == "SlowFast Caffe2"
    clip = torch.randn(1, 3, 8, 96, 96)
    torch.testing.assert_close(logits_of(other, clip), logits_of(model, clip), rtol=0, atol=0)


def test_blobs_of_the_fast_pathway() -> None:
    names = {
        "t_conv1_w": "s1.pathway1_stem.conv.weight",
        "t_res_conv1_bn_rm": "s1.pathway1_stem.bn.running_mean",
        "t_res4_2_branch2b_bn_s": "s4.pathway1_res2.branch2.b_bn.weight",
        "t_pool1_subsample_w": "s1_fuse.conv_f2s.weight",
        "t_res3_3_branch2c_bn_subsample_bn_riv": "s3_fuse.bn.running_var",
        "nonlocal_conv4_5_phi_b": "s4.pathway0_nonlocal5.conv_phi.bias",
        "something_else": "something_else",
    }
    assert list(from_slowfast_caffe2(dict.fromkeys(names, torch.zeros(1)))) == list(names.values())


def vmz_blobs(model: VideoModel) -> dict[str, torch.Tensor]:
    """Names each tensor as c2/lib/models/builder/video_model.py of VMZ does, block by block."""
    blobs: dict[str, torch.Tensor] = {}

    def conv(name: str, module: torch.nn.Module) -> None:
        blobs[f"{name}_w"] = module.weight

    def norm(name: str, module: torch.nn.Module) -> None:
        for key, value in module.state_dict().items():
            if key in NORM_SUFFIXES:
                blobs[f"{name}_{NORM_SUFFIXES[key]}"] = value

    stem = list(model.stem)
    if isinstance(stem[3] if len(stem) > 3 else None, torch.nn.Conv3d):
        conv("conv1_middle", stem[0])
        norm("conv1_middle_spatbn_relu", stem[1])
        stem = stem[3:]
    conv("conv1", stem[0])
    norm("conv1_spatbn_relu", stem[1])
    number = 0
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            place = 0
            for layer in (block.conv1, block.conv2, block.conv3):
                if isinstance(layer, torch.nn.Identity):
                    continue
                main = layer[0]
                depth_wise = isinstance(main, torch.nn.Conv3d) and main.groups > 1
                place += 2 if depth_wise else 1  # VMZ counts a depth-wise convolution twice
                if isinstance(main, torch.nn.Sequential):
                    conv(f"comp_{number}_conv_{place}_middle", main[0])
                    norm(f"comp_{number}_spatbn_{place}_middle", main[1])
                conv(f"comp_{number}_conv_{place}", main[-1] if isinstance(main, torch.nn.Sequential) else main)
                norm(f"comp_{number}_spatbn_{place}", layer[1])
            if not isinstance(block.downsample, torch.nn.Identity):
                conv(f"shortcut_projection_{number}", block.downsample[0])
                norm(f"shortcut_projection_{number}_spatbn", block.downsample[1])
            number += 1
    blobs["last_out_L5_w"], blobs["last_out_L5_b"] = model.head.fc.weight, model.head.fc.bias
    return {name: value.detach() for name, value in blobs.items()}


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("r3d_18", {}, {}),
        ("mc3_18", {}, {}),
        ("r2plus1d_18", {"block_midplanes": False}, {"block_midplanes": False}),
        ("r2plus1d_34", {}, {}),
        ("r2plus1d_152", {"stem_pool": False}, {"stem_pool": False}),
        ("ir_csn_50", {}, {}),
        ("ip_csn_50", {}, {}),
    ],
)
def test_vmz_blobs(name: str, options: dict[str, Any], found: dict[str, Any]) -> None:
    model = random_model(name, depth=(1, 2, 1, 1), norm_eps=1e-3, **options)
    blobs = {**vmz_blobs(model), **TRAINING}
    needed = shown(name, blobs)
    assert needed == {**found, "depth": (1, 2, 1, 1)}
    other = stvid.create_model(name, num_classes=5, **needed)
    report = stvid.load_checkpoint(other, blobs)
    assert report.format == "VMZ Caffe2"
    assert report.loaded == sum("num_batches" not in key for key in other.state_dict())
    clip = torch.randn(1, 3, 8, 32, 32)
    torch.testing.assert_close(logits_of(other, clip), logits_of(model, clip), rtol=0, atol=0)


def test_an_unknown_blob_keeps_its_name() -> None:
    state = {"conv1_spatbn_relu_s": torch.zeros(64), "comp_0_sum_2": torch.zeros(1)}
    assert list(from_vmz_caffe2(state)) == ["stem.1.weight", "comp_0_sum_2"]


# --- what tensors show ------------------------------------------------------------------------------------------------


def test_pieces_that_read_options() -> None:
    state = dict.fromkeys(("blocks.0.a", "blocks.1.a", "blocks.3.a", "others.0.a"), torch.zeros(1))
    assert count_blocks(state, "blocks.") == 2 and count_blocks(state, "nothing.") == 0
    assert [square_side(cells) for cells in (-1, 0, 1, 15, 16)] == [None, None, 1, None, 4]

    def read(state: Any) -> dict[str, Any]:
        return {"depth": count_blocks(state, "blocks."), "kind": "a"}

    own = dict.fromkeys(("blocks.0.a",), torch.zeros(1))
    assert read_options(read, state, own) == {"depth": 2}
    assert read_options(read, own, own) == {} == read_options(read, state, own, needed=("stem.weight",))


TINY_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 4}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timesformer_base", {"depth": 1, "num_frames": 3, "img_size": (48, 48), "mlp_ratio": 2.0}),
        ("timesformer_base", {"depth": 1, "attention_type": "joint_space_time", "num_frames": 4, "in_chans": 1}),
        ("timesformer_base", {"depth": 1, "attention_type": "space_only", "img_size": (32, 32)}),
        ("vivit_b16x2_fe", {"depth": 1, "temporal_depth": 2, "num_frames": 6, "img_size": (48, 48)}),
        ("vivit_b16x2", {"depth": 1, "num_frames": 6}),
        ("vivit_b16x2_fsa", {"depth": 1, "img_size": (64, 64), "mlp_ratio": 2.0}),
        ("xvit_base", {"depth": 1, "temporal_depth": 2, "num_time_embeds": 16}),
        ("swin3d_t", {"depth": (1, 1), "num_heads": (2, 4), "embed_dim": 32, "window_size": (2, 4, 4)}),
        ("swin3d_t", {"depth": (1, 1), "num_heads": (2, 4), "embed_dim": 32, "window_size": (16, 7, 7)}),
        ("uniformer_s", {"depth": (1, 1, 2, 1), "split_attention": True, "temporal_embed": True}),
        ("c3d", {"embed_dim": (8, 8, 16, 16, 16), "hidden_dim": 32, "in_chans": 2}),
        ("p3d_199", {"depth": (1, 1, 2, 1), "in_chans": 2}),
        ("resnet3d_18", {"depth": (1, 1, 1, 2), "shortcut_type": "A", "conv1_t_size": 3}),
        ("i3d_inception", {"in_chans": 2}),
        ("r2plus1d_34", {"depth": (1, 1, 1, 2), "stem_midplanes": 20, "split_shortcut": True}),
        ("i3d_r50", {"depth": (1, 2, 1, 1), "time_kernels": ((3,), (3, 3), (3,), (3,)), "embed_dim": 32}),
    ],
)
def test_a_state_dict_of_ours_shows_its_options(
    name: str, options: dict[str, Any], outline: Callable[..., Any]
) -> None:
    with outline():
        state = stvid.create_model(name, num_classes=5, **options).state_dict()
        if name == "swin3d_t" and options["window_size"][0] == 2:
            state["layers.0.blocks.0.attn.relative_position_index"] = torch.empty(32, 32)
        found = shown(name, state)
        assert found == options
        again = stvid.create_model(name, num_classes=5, **found).state_dict()
    own = {key: value.shape for key, value in state.items() if not key.endswith("relative_position_index")}
    assert {key: value.shape for key, value in again.items()} == own


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timesformer_base", TINY_VIT),  # heads of another width do not show
        ("vivit_b16x2", {"depth": 12, "num_frames": 16, "img_size": (64, 64)}),  # 128 tokens: 8x4x4, or 2x8x8
        ("swin3d_t", {"window_size": (2, 8, 8)}),  # 675 rows: also 14x3x3
    ],
)
def test_what_does_not_show_is_not_guessed(name: str, options: dict[str, Any], outline: Callable[..., Any]) -> None:
    with outline():
        state = stvid.create_model(name, num_classes=5, **options).state_dict()
        found = shown(name, state)
    assert not {"embed_dim", "num_heads", "num_frames", "img_size", "window_size"} & found.keys()


def test_a_file_of_another_network_shows_nothing(outline: Callable[..., Any]) -> None:
    with outline():
        for name in ("timesformer_base", "uniformer_s", "swin3d_t", "c3d", "xvit_base", "vivit_b16x2", "r3d_18"):
            assert stvid.create_model(name).options_of({"conv.weight": torch.empty(3, 3)}) == {}
        i3d = stvid.create_model("i3d_nl_r50").state_dict()  # where it pools in time does not show
        assert shown("slow_r50", i3d) == {}
