"""Still videos through inflated models and their 2D parents, the books of every tensor, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from fill import fill_module  # tests/goldens/fill.py
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as read_microsoft
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import stvid
from stvid.checkpoints import save_model
from stvid.errors import CheckpointError, ConfigError, UnknownNameError
from stvid.inflation.parents import InflatedParent, inflate_parent, models_with_parent
from stvid.inflation.uniformer_image import UniFormerImage
from stvid.models.families.uniformer import UniFormer
from stvid.zoo import load_model

ONES = {"depth": (1, 1, 1, 1), "img_size": 64, "num_frames": 4}
TOKENS = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "num_frames": 4}
WINDOWS = {"embed_dim": 24, "depth": (2, 2), "num_heads": (2, 4), "img_size": 32, "num_frames": 8}
FSA = "vivit_b16x2_fsa"


def untrained(network: nn.Module) -> nn.Module:
    """Gives every tensor values that matter: norms, biases and tables start as ones and zeros."""
    return fill_module(network).eval()


def resnet(block: Any = Bottleneck, **options: Any) -> nn.Module:
    return untrained(ResNet(block, (1, 1, 1, 1), num_classes=7, **options))


def vit(**options: Any) -> nn.Module:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return untrained(VisionTransformer(**{**sizes, "num_classes": 7, **options}))


def tanh_vit() -> nn.Module:
    return vit(act_layer="gelu_tanh")


def torchvision_vit() -> nn.Module:
    return untrained(torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 128, num_classes=7))


def swin() -> nn.Module:
    sizes: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    return untrained(SwinTransformer(**sizes, window_size=4, num_classes=7))


def torchvision_swin() -> nn.Module:
    return untrained(torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=7))


def uniformer() -> nn.Module:
    sizes: dict[str, Any] = {"depth": (2, 2, 1, 1), "embed_dim": (16, 32, 64, 128), "num_heads": (2, 4)}
    return untrained(UniFormerImage(**sizes, num_classes=7))


def googlenet(**options: Any) -> nn.Module:
    return untrained(torchvision.models.GoogLeNet(num_classes=7, init_weights=False, **options))


@torch.no_grad()
def still_difference(parent: nn.Module, model: nn.Module, *, size: int, frames: int) -> float:
    """Largest difference of the logits on a still video, over the largest difference between two images."""
    images = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = parent.double().eval()(images)
    found = model.double().eval()(images.unsqueeze(2).repeat(1, 1, frames, 1, 1))
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / (expected[0] - expected[1]).abs().max()).item()


def assert_booked(parent: nn.Module, inflated: InflatedParent) -> None:
    """Every tensor of the video model is in one row, every tensor of the 2D network in one or more."""
    rules, own, source_state = inflated.report.rules, inflated.model.state_dict(), parent.state_dict()
    assert sorted(rule.target for rule in rules if rule.target) == sorted(own)
    assert {source for rule in rules for source in rule.source.split(" + ") if source} == set(source_state)
    for rule in rules:
        assert rule.rule and (rule.target or rule.rule.startswith("dropped: "))
        assert (rule.kind == "dropped") == (not rule.target) and (rule.kind == "copied") == (rule.rule == "copied")
        assert rule.kind == "initialised" or rule.source
        shapes = [str(tuple(source_state[source].shape)) for source in rule.source.split(" + ") if source]
        assert rule.source_shape == " + ".join(shapes)
        if rule.rule == "copied":
            assert own[rule.target].equal(source_state[rule.source])
        elif rule.rule.startswith("in the central one"):
            kernel, middle = own[rule.target], own[rule.target].shape[2] // 2
            assert kernel[:, :, middle].equal(source_state[rule.source])
            assert kernel.count_nonzero() == kernel[:, :, middle].count_nonzero()


EXACT: list[tuple[Callable[[], nn.Module], str, dict[str, Any]]] = [
    *((resnet, name, ONES) for name in ("c2d_r50", "i3d_r50", "i3d_nl_r50", "resnet3d_50")),
    (resnet, "c2d_r50", {**ONES, "init": "average"}),
    (lambda: resnet(cardinality=32, base_width=4), "resnext3d_50", ONES),
    (lambda: resnet(BasicBlock), "resnet3d_18", ONES),
    *((lambda: resnet(BasicBlock), name, {**ONES, "stem_pool": True}) for name in ("r3d_18", "mc3_18")),
    *((build, "timesformer_base", {**TOKENS, "patch_size": 8}) for build in (vit, torchvision_vit)),
    (lambda: vit(init_values=0.7), "timesformer_base", {**TOKENS, "patch_size": 8}),
    (lambda: vit(no_embed_class=True), "timesformer_base", {**TOKENS, "patch_size": 8}),
    (lambda: vit(qkv_bias=False), "timesformer_base", {**TOKENS, "patch_size": 8}),
    (vit, "timesformer_base", {**TOKENS, "patch_size": 8, "attention_type": "space_only"}),
    *(
        (tanh_vit, "vivit_b16x2_avgpool", {**TOKENS, "tubelet_size": (2, 8, 8), "init": init})
        for init in ("center", "average")
    ),
    *((build, "swin3d_t", {**WINDOWS, "window_size": (2, 4, 4)}) for build in (swin, torchvision_swin)),
    (swin, "swin3d_t", {**WINDOWS, "window_size": (8, 4, 4), "init": "center"}),
    (uniformer, "uniformer_xxs", {"img_size": 64, "num_frames": 4}),
    (uniformer, "uniformer_xxs", {"img_size": 64, "num_frames": 4, "split_attention": True, "temporal_embed": True}),
]


@pytest.mark.parametrize(("build", "name", "options"), EXACT, ids=lambda value: value if isinstance(value, str) else "")
def test_a_still_video_gives_the_logits_of_the_image(
    build: Callable[[], nn.Module], name: str, options: dict[str, Any]
) -> None:
    parent = build()
    inflated = inflate_parent(parent, name, **options)
    assert inflated.report.exact and inflated.report.difference < 1e-5 and not inflated.report.reasons
    assert not inflated.model.training and inflated.model.num_classes == 7
    assert_booked(parent, inflated)
    blocks = sum(options["depth"]) if isinstance(options.get("depth"), tuple) else options.get("depth", 6)
    assert len(inflated.report.layers) == blocks
    assert max(layer.relative for layer in inflated.report.layers) < 1e-5
    assert still_difference(parent, inflated.model, size=options["img_size"], frames=options["num_frames"]) < 1e-5


APPROXIMATE: list[tuple[Callable[[], nn.Module], str, dict[str, Any], str, bool]] = [
    (resnet, "i3d_r50", {**ONES, "init": "average"}, "zero padding", False),
    (resnet, "i3d_r50", {**ONES, "img_size": 112}, "windows of 3x3", False),
    (lambda: resnet(BasicBlock), "r3d_18", ONES, "no max pool", False),
    (lambda: resnet(BasicBlock), "resnet3d_18", {**ONES, "shortcut_type": "A"}, "type A", False),
    (vit, "timesformer_base", {**TOKENS, "patch_size": 8, "attention_type": "joint_space_time"}, "class token", True),
    (vit, "vivit_b16x2", {**TOKENS, "tubelet_size": (2, 8, 8)}, "class token", True),
    (vit, "vivit_b16x2_avgpool", {**TOKENS, "tubelet_size": (2, 8, 8)}, "GELU", True),
    (tanh_vit, FSA, {**TOKENS, "tubelet_size": (2, 8, 8)}, "no class token", True),
    (vit, "vivit_b16x2_fdp", {**TOKENS, "tubelet_size": (2, 8, 8)}, "half of the heads", False),
    (swin, "swin3d_t", {**WINDOWS, "window_size": (2, 7, 7)}, "windows of 7x7 instead of 4x4", False),
    (swin, "swin3d_t", {**WINDOWS, "window_size": (2, 4, 4), "num_frames": 6}, "padded to whole windows", False),
    (uniformer, "uniformer_xxs", {"img_size": 64, "num_frames": 4, "init": "average"}, "zero padding", False),
]


@pytest.mark.parametrize(
    ("build", "name", "options", "reason", "alignable"),
    APPROXIMATE,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_equal_is_named_and_measured(
    build: Callable[[], nn.Module], name: str, options: dict[str, Any], reason: str, alignable: bool
) -> None:
    parent = build()
    inflated = inflate_parent(parent, name, **options)
    assert_booked(parent, inflated)
    report = inflated.report
    assert not report.exact and report.as_promised and report.difference > 1e-5
    assert any(reason in given for given in report.reasons)
    if alignable:
        assert report.alignment and report.aligned < 1e-9
    else:
        assert report.aligned is None or report.aligned > 1e-5


@pytest.mark.parametrize("name", ["vivit_b16x2_fe", "xvit_base"])
def test_transformers_over_frames_are_new_and_the_frames_features_are_the_parents(name: str) -> None:
    parent = tanh_vit() if name.startswith("vivit") else vit(img_size=224, patch_size=56)
    sizes = {"tubelet_size": (2, 8, 8)} if name.startswith("vivit") else {"patch_size": 56, "img_size": 224}
    inflated = inflate_parent(parent, name, **{**TOKENS, **sizes})
    assert inflated.report.compared.startswith("features of each frame")
    rules = {rule.target: rule.rule for rule in inflated.report.rules}
    assert rules["head.fc.weight"].startswith("initialised")
    if name == "vivit_b16x2_fe":
        assert inflated.report.exact
    else:
        assert not inflated.report.exact and "neighbouring frames" in inflated.report.reasons[0]
        assert inflated.report.alignment == "no channels exchanged between frames" and inflated.report.aligned < 1e-9


def test_googlenet_becomes_i3d_one_pixel_off() -> None:
    parent = googlenet(transform_input=True)
    inflated = inflate_parent(parent, "i3d_inception", num_frames=4, img_size=96)
    assert_booked(parent, inflated)
    assert "one pixel" in inflated.report.reasons[0] and not inflated.report.exact and inflated.report.aligned < 1e-5
    assert inflated.model.default_protocol.mean == (0.5, 0.5, 0.5)  # what transform_input turns ImageNet's into
    parent.transform_input = False
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    images[..., -1, :] = images[..., :, -1] = 0
    moved = torch.nn.functional.pad(images, (1, -1, 1, -1)).unsqueeze(2).repeat(1, 1, 4, 1, 1)
    with torch.no_grad():
        expected, found = parent.double()(images), inflated.model.double()(moved)
    assert (found - expected).abs().max() < 1e-6 * (expected[0] - expected[1]).abs().max()


def test_googlenet_becomes_s3d() -> None:
    inflated = inflate_parent(googlenet(), "s3d", num_frames=8, img_size=64)
    assert "pools pad on both sides" in inflated.report.reasons[0]
    features = (
        inflated.model.conv1[0],
        inflated.model.conv1,
    )  # convolution in time, norm and ReLU pass what is not negative
    still = torch.randn(1, 3, 1, 64, 64).repeat(1, 1, 16, 1, 1)
    with torch.no_grad():
        before, after = features[0](still), features[1](still)
    assert torch.allclose(before[:, :, ::2], after, atol=1e-5)


def test_a_mean_kernel_adds_up() -> None:
    parent = resnet()
    model = inflate_parent(parent, "i3d_r50", prove=False, init="average", **ONES).model
    assert torch.allclose(model.stem[0].weight.sum(2), parent.conv1.weight, atol=1e-6)
    assert model.stem[0].weight[:, :, 0].equal(model.stem[0].weight[:, :, 4])


def test_other_classes_get_a_new_head() -> None:
    parent = resnet()
    inflated = inflate_parent(parent, "i3d_r50", num_classes=5, **ONES)
    assert inflated.model.head.fc.weight.shape[0] == 5
    assert inflated.report.exact  # in the features before it
    rules = {rule.source: rule.rule for rule in inflated.report.rules}
    assert rules["fc.weight"] == "dropped: a classifier of 7 classes"
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 64)
        parent.reset_classifier(0)
        inflated.model.reset_classifier(0)
        still = image.unsqueeze(2).repeat(1, 1, 4, 1, 1)
        assert torch.allclose(parent(image), inflated.model(still), atol=1e-4)


def test_no_classes_return_the_features() -> None:
    inflated = inflate_parent(resnet(), "i3d_r50", num_classes=0, **ONES)
    assert inflated.report.exact and inflated.model(torch.randn(1, 3, 4, 64, 64)).shape == (1, 2048)


def test_positions_are_resized_to_another_size() -> None:
    parent = tanh_vit()
    options = {**TOKENS, "tubelet_size": (2, 8, 8), "img_size": 48}
    inflated = inflate_parent(parent, "vivit_b16x2_avgpool", **options)
    assert inflated.report.exact
    rule = next(rule for rule in inflated.report.rules if rule.target == "encoder.pos_embed")
    assert "resized from 4x4 to 6x6" in rule.rule
    corners = inflated.model.encoder.pos_embed[0, 1:].unflatten(0, (6, 6))[::5, ::5]
    assert torch.allclose(corners, parent.pos_embed[0, 1:].unflatten(0, (4, 4))[::3, ::3], atol=1e-6)


def test_joint_positions_repeat_in_time() -> None:
    parent = vit()
    model = inflate_parent(parent, "vivit_b16x2", prove=False, tubelet_size=(2, 8, 8), **TOKENS).model
    table = model.encoder.pos_embed
    assert table.shape == (1, 1 + 2 * 16, 32)
    assert table[:, :17].equal(parent.pos_embed) and table[:, 17:].equal(parent.pos_embed[:, 1:])


def flax_vit() -> dict[str, np.ndarray]:
    """Parameters as google-research/vision_transformer names and shapes them."""
    generator = np.random.default_rng(0)

    def draw(*shape: int, around: float = 0.0) -> np.ndarray:
        return (around + generator.standard_normal(shape) * 0.2).astype(np.float32)

    state = {
        "embedding/kernel": draw(8, 8, 3, 32),
        "embedding/bias": draw(32),
        "cls": draw(1, 1, 32),
        "Transformer/posembed_input/pos_embedding": draw(1, 17, 32),
        "Transformer/encoder_norm/scale": draw(32, around=1),
        "Transformer/encoder_norm/bias": draw(32),
        "head/kernel": draw(32, 7),
        "head/bias": draw(7),
    }
    for number in range(2):
        block = f"Transformer/encoderblock_{number}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            state |= {f"{block}/{norm}/scale": draw(32, around=1), f"{block}/{norm}/bias": draw(32)}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            state |= {f"{attention}/{part}/kernel": draw(32, 4, 8), f"{attention}/{part}/bias": draw(4, 8)}
        state |= {f"{attention}/out/kernel": draw(4, 8, 32), f"{attention}/out/bias": draw(32)}
        for part, sizes in (("Dense_0", (32, 128)), ("Dense_1", (128, 32))):
            state |= {
                f"{block}/MlpBlock_3/{part}/kernel": draw(*sizes),
                f"{block}/MlpBlock_3/{part}/bias": draw(sizes[1]),
            }
    return state


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_the_authors_vit_is_read_as_timm_reads_it(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "ViT-S_8.npz"
    np.savez(path, **{prefix + key: value for key, value in flax_vit().items()})
    parent = tanh_vit()
    parent.load_pretrained(str(path))
    inflated = inflate_parent(str(path), "vivit_b16x2_avgpool", tubelet_size=(2, 8, 8), **TOKENS)
    assert inflated.report.exact
    assert still_difference(parent, inflated.model, size=32, frames=4) < 1e-5
    assert inflated.model.default_protocol.mean == (0.5, 0.5, 0.5)


def test_a_layer_before_the_classifier_takes_the_classifier_along() -> None:
    state = {
        **flax_vit(),
        "pre_logits/kernel": np.zeros((32, 32), np.float32),
        "pre_logits/bias": np.zeros(32, np.float32),
    }
    inflated = inflate_parent(state, "vivit_b16x2_avgpool", num_classes=7, tubelet_size=(2, 8, 8), **TOKENS)
    dropped = {rule.source for rule in inflated.report.rules if rule.rule.startswith("dropped")}
    assert dropped == {"pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"}


def microsoft_swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's keys as microsoft/Swin-Transformer has them, with its buffers."""
    own = {re.sub(r"^layers\.1\.downsample", "layers.0.downsample", key): value for key, value in state.items()}
    own = {re.sub(r"^head\.fc", "head", key): value for key, value in own.items()}
    own["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    own["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    return own


def test_microsofts_swin() -> None:
    state = microsoft_swin(swin().state_dict())
    parent = swin()
    parent.load_state_dict(read_microsoft(dict(state), parent))
    inflated = inflate_parent({"model": state}, "swin3d_t", window_size=(2, 4, 4), **WINDOWS)
    assert still_difference(parent, inflated.model, size=32, frames=8) < 1e-5
    dropped = {rule.source for rule in inflated.report.rules if not rule.target}
    assert dropped == {"layers.0.blocks.1.attn_mask", "layers.0.blocks.0.attn.relative_position_index"}


def test_slowfasts_imagenet_resnet() -> None:
    names = [("^conv1", "s1.pathway0_stem.conv"), (r"^bn1", "s1.pathway0_stem.bn"), (r"^fc", "head.projection")]
    names += [(rf"^layer{stage}\.", f"s{stage + 1}.pathway0_res") for stage in range(1, 5)]
    names += [(r"downsample\.0", "branch1"), (r"downsample\.1", "branch1_bn")]
    names += [(rf"\.conv{n}\.", f".branch2.{'abc'[n - 1]}.") for n in (1, 2, 3)]
    names += [(rf"\.bn{n}\.", f".branch2.{'abc'[n - 1]}_bn.") for n in (1, 2, 3)]
    parent, state = resnet(), {}
    for key, value in parent.state_dict().items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        state[key] = value.unsqueeze(2) if value.dim() == 4 else value
    inflated = inflate_parent({"model_state": state}, "slow_r50", **ONES)
    assert still_difference(parent, inflated.model, size=64, frames=4) < 1e-5


def test_uniformers_layer_scale_and_training_head() -> None:
    parent = uniformer()
    state = dict(parent.state_dict())
    for stage in (3, 4):
        for gamma, layer in (("gamma_1", "attn.proj"), ("gamma_2", "mlp.fc2")):
            scale = torch.rand(64 * (stage - 2)) + 0.5
            state[f"blocks{stage}.0.{gamma}"] = scale
            state[f"blocks{stage}.0.{layer}.weight"] = state[f"blocks{stage}.0.{layer}.weight"] / scale[:, None]
            state[f"blocks{stage}.0.{layer}.bias"] = state[f"blocks{stage}.0.{layer}.bias"] / scale
    state["aux_head.weight"] = torch.zeros(7, 128)
    inflated = inflate_parent(state, "uniformer_xxs", img_size=64, num_frames=4)
    assert still_difference(parent, inflated.model, size=64, frames=4) < 1e-5
    assert any(rule.source == "aux_head.weight" and not rule.target for rule in inflated.report.rules)


def test_the_image_uniformer_is_the_video_one_of_one_frame() -> None:
    """A check of the 2D network itself: a clip of one frame, of which only the central kernels see anything."""
    parent = uniformer().double()
    video = UniFormer(depth=(2, 2, 1, 1), embed_dim=(16, 32, 64, 128), head_dim=32, num_classes=7).double().eval()
    state = {}
    for key, value in video.state_dict().items():
        source = parent.state_dict()[key.replace("head.fc.", "head.")]
        state[key] = value.clone().normal_() if source.dim() == 4 else source
        if source.dim() == 4:
            state[key][:, :, value.shape[2] // 2] = source
    video.load_state_dict(state)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(parent(image), video(image.unsqueeze(2)), atol=1e-9)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_from_a_file_and_back(tmp_path: Path, suffix: str) -> None:
    parent, path = resnet(BasicBlock), tmp_path / f"resnet18{suffix}"
    state = {f"module.{key}": value for key, value in parent.state_dict().items()}
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, str(path))
    model = inflate_parent(path, "r3d_18", norm_eps=1e-3, **ONES).model
    save_model(model, tmp_path / "video.safetensors")
    again = load_model(tmp_path / "video.safetensors")
    assert again.norm_eps == 1e-5  # that of the 2D network, whatever was asked for
    assert again.default_protocol == model.default_protocol
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        assert again(clip).equal(model(clip))


def test_another_epsilon_is_scaled_away() -> None:
    parent = resnet()
    for module in parent.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2
    inflated = inflate_parent(parent, "i3d_r50", **ONES)
    assert inflated.report.exact
    assert still_difference(parent, inflated.model, size=64, frames=4) < 1e-5


@pytest.mark.parametrize(
    ("build", "name", "options", "parameters"),
    [
        (resnet, "i3d_r50", ONES, ["stem.0.weight", "layer1.0.conv1.weight"]),
        (vit, "timesformer_base", {**TOKENS, "patch_size": 8}, ["blocks.0.temporal_fc.weight"]),
        (vit, FSA, {**TOKENS, "tubelet_size": (2, 8, 8)}, ["encoder.blocks.0.attn_time.proj.weight"]),
    ],
    ids=["i3d", "timesformer", "vivit"],
)
def test_what_sees_time_can_learn(
    build: Callable[[], nn.Module], name: str, options: dict[str, Any], parameters: list[str]
) -> None:
    model = inflate_parent(build(), name, prove=False, **options).model.train()
    side = options["img_size"]
    model(torch.randn(2, 3, options["num_frames"], side, side)).square().sum().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key in parameters:
        gradient = gradients[key]
        assert gradient is not None and gradient.abs().amax().item() > 0
        if gradient.dim() == 5:
            assert (gradient.abs().amax((0, 1, 3, 4)) > 0).all()  # in each frame of the kernel


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "name", "fitting"),
    [
        (
            lambda: VisionTransformer(embed_dim=1024, depth=24, num_heads=16),
            "vivit_b16x2",
            "depth 12; give depth=24; it fits vivit_l16x2, vivit_l16x2_fe",
        ),
        (
            lambda: SwinTransformer(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
            "swin3d_s",
            "it fits swin3d_b",
        ),
    ],
)
def test_another_size_names_the_models_that_fit(build: Callable[[], nn.Module], name: str, fitting: str) -> None:
    with torch.device("meta"):
        state = build().state_dict()
    with pytest.raises(CheckpointError) as caught:
        inflate_parent(state, name)
    assert str(caught.value).endswith(fitting)


def test_another_depth_names_the_models_that_fit() -> None:
    network = ResNet(Bottleneck, (3, 4, 23, 3), num_classes=7, device="meta")
    with pytest.raises(CheckpointError) as caught:
        inflate_parent(network.state_dict(), "i3d_r50", img_size=64)
    message = str(caught.value)
    assert "depth (3, 4, 23, 3)" in message and "give depth=(3, 4, 23, 3)" in message
    assert "it fits i3d_nl_r101, resnet3d_101" in message


@pytest.mark.parametrize(
    ("build", "name", "options", "error", "message"),
    [
        (resnet, "i3d_r5", ONES, UnknownNameError, "nearest: .*i3d_r50"),
        *((resnet, name, {}, ConfigError, f"{name}: has no known 2D parent.*i3d_r50") for name in ("c3d", "ir_csn_50")),
        (resnet, "swin3d_t", {}, ConfigError, "is a ResNet, swin3d_t descends from a Swin.*i3d_r50"),
        (resnet, "i3d_r50", {**ONES, "init": "mean"}, ConfigError, "init 'mean': choose one of center, average"),
        (resnet, "i3d_r50", {**ONES, "num_frame": 3}, TypeError, "num_frame"),
        (resnet, "i3d_r50", {**ONES, "num_classes": -1}, ConfigError, "num_classes -1: must be a whole number"),
        (resnet, "i3d_r50", {**ONES, "weights": "x.pth"}, ConfigError, "ResNet: has its weights"),
        (resnet, "i3d_r50", {**ONES, "num_frames": 1}, ConfigError, "i3d_r50: .* at least 2 frames"),
        (resnet, "resnet3d_50", {**ONES, "shortcut_type": "C"}, ConfigError, "resnet3d_50: shortcut_type 'C'"),
        (resnet, "resnet3d_18", ONES, CheckpointError, "bottlenecks does not become.*the model has basic blocks"),
        (
            lambda: resnet(block_args={"attn_layer": "se"}),
            "i3d_r50",
            ONES,
            CheckpointError,
            "no place for layer1.0.se.fc1.weight",
        ),
        (lambda: resnet(stem_type="deep"), "i3d_r50", ONES, CheckpointError, "no known 2D parent.*--temporal"),
        (
            lambda: vit(reg_tokens=4),
            FSA,
            {**TOKENS, "tubelet_size": (2, 8, 8)},
            CheckpointError,
            "a ViT with reg_token",
        ),
        (
            lambda: vit(class_token=False, global_pool="avg"),
            FSA,
            {**TOKENS, "tubelet_size": (2, 8, 8)},
            CheckpointError,
            "without cls_token",
        ),
        (
            vit,
            "timesformer_base",
            {**TOKENS, "num_heads": 2, "patch_size": 8},
            CheckpointError,
            "attention has 2 heads, the parent's has 4",
        ),
        (vit, "timesformer_base", {**TOKENS, "patch_size": 16}, CheckpointError, "patch_embed.proj.weight would be"),
        (uniformer, "uniformer_s", {}, CheckpointError, "it fits uniformer_xxs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_clear_errors(
    build: Callable[[], nn.Module], name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        inflate_parent(build(), name, **options)
    assert "\n" not in str(caught.value)


def test_weights_of_a_video_model_are_refused() -> None:
    video = stvid.create_model("resnet3d_18", num_classes=7)
    state = {re.sub("^head", "fc", key): value for key, value in video.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"conv1.weight has kernels in time.*load_checkpoint"):
        inflate_parent(state, "resnet3d_18")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnet5o", "timm has no such image classifier; nearest: .*resnet50"),
        ("torchvision:resnet5o", "torchvision has no such image classifier; nearest: .*resnet50"),
        ("torchvision:fasterrcnn_resnet50_fpn", "only image classifiers"),
    ],
)
def test_unknown_names_of_2d_networks(source: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        inflate_parent(source, "i3d_r50")


def test_a_missing_file() -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such checkpoint file"):
        inflate_parent("nowhere.pth", "i3d_r50")


def test_names_and_weights_of_a_library(tmp_path: Path) -> None:
    parent = untrained(torchvision.models.resnet18(num_classes=7))
    torch.save(parent.state_dict(), tmp_path / "r18.pth")
    options = {"stem_pool": True, "img_size": 64, "num_frames": 4}
    inflated = inflate_parent("timm:resnet18", "r3d_18", weights=tmp_path / "r18.pth", **options)
    assert inflated.model.num_classes == 7
    assert still_difference(parent, inflated.model, size=64, frames=4) < 1e-5


def test_models_with_parent() -> None:
    names = models_with_parent()
    assert {"i3d_r50", "swin3d_b", "vivit_l16x2_fe", "xvit_base", "uniformer_s", "mc3_18"} <= set(names)
    assert not {"c3d", "p3d_63", "r2plus1d_18", "ip_csn_152"} & set(names)
    assert models_with_parent("inception") == ["i3d_inception", "s3d"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name", "options"),
    [
        ("torchvision:resnet50", "i3d_r50", {}),
        ("timm:resnet50", "slow_r50", {}),
        ("torchvision:resnet101", "i3d_nl_r101", {}),
        ("torchvision:resnext50_32x4d", "resnext3d_50", {}),
        ("torchvision:resnet18", "resnet3d_18", {}),
        ("timm:vit_base_patch16_224", "timesformer_base", {"num_frames": 2}),
        ("torchvision:vit_b_16", "timesformer_base", {"num_frames": 2}),
        ("timm:swin_tiny_patch4_window7_224", "swin3d_t", {"num_frames": 8}),
        ("torchvision:swin_t", "swin3d_t", {"num_frames": 8}),
    ],
)
def test_published_sizes(source: str, name: str, options: dict[str, Any]) -> None:
    library, own_name = source.split(":")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        parent = untrained(timm.create_model(own_name))
    else:
        parent = untrained(torchvision.models.get_model(own_name))
    assert inflate_parent(parent, name, **options).report.exact
