"""Inflated networks: equal to their 2D network on still videos, not blind to time, and whole models otherwise."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import Bottleneck

import stvid
from stvid.cli import main
from stvid.config import OptimConfig
from stvid.engine.optim import plan_parameters
from stvid.errors import CheckpointError, ConfigError, UnknownNameError
from stvid.inflation.blocks import find_blocks
from stvid.inflation.inflate import inflate_with_report
from stvid.inflation.model import InflatedModel
from stvid.inflation.options import InflationOptions
from stvid.inflation.placement import has_attention
from stvid.inflation.proof import FewFrames, still_difference
from stvid.inflation.recomputation import Recomputed
from stvid.inflation.temporal import FrameAttention, TemporalConv

_spec = importlib.util.spec_from_file_location("timm_models", Path(__file__).parent / "timm_models.py")
assert _spec is not None and _spec.loader is not None
timm_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(timm_models)

# One of each kind of network: plain and grouped convolutions, standardised weights, "same" padding, windows, tokens,
# channels last, several classifiers, no convolution between blocks. The others run with `make test-slow`.
QUICK = {
    "byobnet",
    "convnext",
    "efficientnet",
    "levit",
    "maxxvit",
    "mlp_mixer",
    "nfnet",
    "resnet",
    "vision_transformer",
    "vision_transformer_relpos",
}
FILES = [module if module in QUICK else pytest.param(module, marks=pytest.mark.slow) for module in timm.list_modules()]


def fill(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in all parameters, so that nothing hides behind a zero of the initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * max(1, parameter[0].numel()) ** -0.5)
            else:
                parameter.copy_(noise * 0.1 if name.endswith("bias") else 1 + noise * 0.1)
    return network.eval()


def perturb(model: InflatedModel) -> InflatedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, TemporalConv):
                part.weight.add_(torch.randn(part.weight.shape, generator=generator) * part.weight.std())
        for parameter in model.temporal.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def small(temporal: str = "conv", name: str = "timm:test_resnet", **options: Any) -> InflatedModel:
    torch.manual_seed(0)
    size = options.pop("img_size", 64)
    frames = options.pop("num_frames", 4)
    return stvid.inflate(name, num_frames=frames, num_classes=5, temporal=temporal, img_size=size, **options)


def build(network: nn.Module, *, num_frames: int, img_size: tuple[int, int], **options: Any) -> InflatedModel:
    return InflatedModel(network, InflationOptions(**options), num_frames=num_frames, img_size=img_size)


class Tiny(nn.Module):
    """A network of the user's: two residual blocks."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(TinyBlock(), TinyBlock())
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class TinyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


# --- every file of timm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", FILES)
def test_still_video_and_order(module: str) -> None:
    if module not in timm_models.SMALLEST:
        pytest.skip("a file that timm 1.0.31 does not have; tools/inflation_coverage.py covers it")
    name, size = timm_models.SMALLEST[module]
    options = timm_models.SHALLOW.get(module, {})
    sized = {} if timm.get_pretrained_cfg(name).input_size[1] == size else {"img_size": size}
    try:
        network = timm.create_model(name, num_classes=7, **options, **sized)
    except TypeError:
        network = timm.create_model(name, num_classes=7, **options)
    fill(network).double()
    clip = torch.randn(1, 3, 3, size, size, generator=torch.Generator().manual_seed(2)).double()
    for mode in ("conv", "shift", "attention"):
        if mode == "attention" and not has_attention(network, (size, size)):
            continue
        extra = {"init": "average"} if mode == "conv" else {}
        model = build(copy.deepcopy(network), num_frames=3, img_size=(size, size), temporal=mode, **extra)
        difference, *_ = still_difference(network, model.eval())
        assert difference < 1e-5, mode
        if mode != "shift":
            perturb(model)
        with torch.no_grad():
            forth, back = model(clip), model(clip.flip(2))
            images = network(clip[0, :, :2].transpose(0, 1))
        assert (forth - back).abs().max() > 1e-4 * (images[0] - images[1]).abs().max(), mode


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", pytest.param("vit_b_16", marks=pytest.mark.slow)])
def test_torchvision(name: str) -> None:
    result = inflate_with_report(f"torchvision:{name}", num_frames=3, img_size=64, temporal="conv", init="average")
    assert result.report.exact
    assert result.model(torch.randn(1, 3, 3, 64, 64)).shape == (1, 1000)


# --- the layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_conv_is_a_conv3d(padding: str) -> None:
    network = fill(Tiny())
    model = build(
        copy.deepcopy(network), num_frames=4, img_size=(16, 16), temporal="conv", layers="^stem$", padding=padding
    ).eval()
    perturb(model)
    clip = torch.randn(2, 3, 4, 16, 16)
    conv: Any = model.network.stem
    padded = (
        torch.cat((clip[:, :, :1], clip, clip[:, :, -1:]), 2)
        if padding == "replicate"
        else F.pad(clip, (0,) * 4 + (1, 1))
    )
    stem = F.conv3d(padded, conv.weight, conv.bias, stride=(1, 2, 2), padding=(0, 1, 1))
    frames = stem.transpose(1, 2).flatten(0, 1)
    expected = network.fc(network.blocks(frames).mean((2, 3))).unflatten(0, (2, 4)).mean(1)
    assert torch.allclose(model(clip), expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("place", ["residual", "in_place"])
def test_shift_moves_the_channels(padding: str, place: str) -> None:
    network = fill(Tiny())
    model = build(
        copy.deepcopy(network),
        num_frames=3,
        img_size=(16, 16),
        temporal="shift",
        shift_div=4,
        padding=padding,
        shift_place=place,
        layers=r"^blocks\.0",
    ).eval()
    assert model.inflated == (["blocks.0.conv1", "blocks.0.conv2"] if place == "residual" else ["blocks.0"])
    if place == "residual":
        model = build(
            copy.deepcopy(network),
            num_frames=3,
            img_size=(16, 16),
            temporal="shift",
            shift_div=4,
            padding=padding,
            layers=["blocks.0.conv1"],
        ).eval()
    clip = torch.randn(1, 3, 3, 16, 16)
    with torch.no_grad():
        frames = network.stem(clip[0].transpose(0, 1))
        shifted = frames.clone()
        for t in range(3):
            after, before = min(t + 1, 2), max(t - 1, 0)
            shifted[t, :2] = frames[after, :2] if t < 2 or padding == "replicate" else 0
            shifted[t, 2:4] = frames[before, 2:4] if t > 0 or padding == "replicate" else 0
        block = network.blocks[0]
        out = (frames if place == "residual" else shifted) + block.conv2(F.relu(block.conv1(shifted)))
        expected = network.fc(network.blocks[1](out).mean((2, 3))).mean(0)
        assert torch.allclose(model(clip)[0], expected, atol=1e-5)


def test_zeros_spoil_the_borders_and_are_named() -> None:
    network = fill(Tiny())
    shift = inflate_with_report(network, num_frames=4, img_size=16, temporal="shift", padding="zeros").report
    assert not shift.exact and shift.reasons and shift.as_promised and "approximate" in shift.verdict()
    center = inflate_with_report(network, num_frames=4, img_size=16, padding="zeros").report
    assert center.exact and not center.reasons


@pytest.mark.parametrize("init", ["center", "average"])
def test_factorized_keeps_the_2d_kernels(init: str) -> None:
    result = inflate_with_report("timm:test_resnet", num_frames=4, img_size=64, factorized=True, init=init)
    assert result.report.exact
    assert not any(isinstance(part, TemporalConv) for part in result.model.modules())
    assert len(result.model.temporal) == len(result.model.inflated) > 1


def test_standardised_weights_get_a_filter_behind() -> None:
    result = inflate_with_report("timm:test_nfnet", num_frames=4, img_size=64, init="average")
    assert result.report.exact
    assert result.model.temporal and all("initialised" in rule.rule for rule in result.report.rules if not rule.source)


def test_strides_in_time() -> None:
    options: dict[str, Any] = {"temporal_strides": {"^stem$": 2, r"^blocks\.0$": 2}, "layers": "^stem$|conv1"}
    network = fill(Tiny())
    model = build(copy.deepcopy(network), num_frames=7, img_size=(16, 16), temporal="conv", **options)
    assert still_difference(network, model.eval())[0] < 1e-5
    assert model.forward_features(torch.randn(2, 3, 7, 16, 16)).shape[2] == 2  # 7, 4, 2
    with pytest.raises(ConfigError, match="residual branches"):
        build(Tiny(), num_frames=8, img_size=(16, 16), temporal="conv", layers="conv1", temporal_strides={"conv1": 2})


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_heads_start_at_neighbouring_frames(frames: int) -> None:
    attention = FrameAttention(3 * frames, frames=5, num_heads=3)
    with torch.no_grad():
        for parameter in (attention.qkv.weight, attention.qkv.bias, attention.proj.bias):
            parameter.zero_()
        attention.qkv.weight[-3 * frames :] = torch.eye(3 * frames)  # the values are the tokens
        attention.proj.weight.copy_(torch.eye(3 * frames))
        shares = attention(torch.eye(frames).repeat(1, 3).unsqueeze(0)).view(frames, 3, frames)
    assert torch.allclose(shares.sum(2), torch.ones(frames, 3))
    if frames == 5:
        looks_at = shares.argmax(2).t().tolist()  # one before, one behind, two before, within the clip
        assert looks_at == [[0, 0, 1, 2, 3], [1, 2, 3, 4, 4], [0, 0, 0, 1, 2]]


class Noting(TorchFunctionMode):
    """Notes how many frames each convolution takes."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.conv3d):
            self.frames.append(len(args[0]) if func is F.conv2d else args[0].shape[2])
        return func(*args, **(kwargs or {}))


def test_double_precision_is_computed_in_parts() -> None:
    network = fill(Tiny())
    options: dict[str, Any] = {"layers": "stem|conv1", "temporal_strides": {"^stem$": 2}, "padding": "zeros"}
    model = perturb(build(network, num_frames=7, img_size=(16, 16), temporal="conv", **options).eval())
    clip = torch.randn(2, 3, 7, 16, 16)
    with torch.no_grad(), Noting() as noting, FewFrames():
        in_parts = copy.deepcopy(model).double()(clip.double())
    assert max(noting.frames) == 4 and len(noting.frames) > 10
    assert torch.allclose(in_parts.float(), model(clip), atol=1e-5)


def test_the_layers_of_the_2d_network_stay_what_they_were() -> None:
    network = timm.create_model("test_resnet")
    before = {name: type(module) for name, module in network.named_modules()}
    model = stvid.inflate(network, num_frames=2, img_size=64, temporal="shift")
    for name, module in model.network.named_modules():
        assert type(module) is before[name] or name in model.anatomy.logits


@pytest.mark.parametrize("name", ["timm:test_vit", pytest.param("torchvision:vit_b_16", marks=pytest.mark.slow)])
def test_joint_attention_is_exact(name: str) -> None:
    options: dict[str, Any] = {"temporal": "attention", "attention_type": "joint_space_time"}
    assert inflate_with_report(name, num_frames=3, img_size=64, **options).report.exact


def test_joint_attention_sees_all_frames() -> None:
    result = inflate_with_report(
        "timm:test_vit", num_frames=3, img_size=64, temporal="attention", attention_type="joint_space_time"
    )
    clip = torch.randn(1, 3, 3, 64, 64)
    other = clip.clone()
    other[:, :, 0] += 1
    seen: list[Tensor] = []
    result.model.network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    fill(result.model)
    result.model(clip), result.model(other)
    assert (seen[0][2] - seen[1][2]).abs().max() > 1e-4  # the last frame has seen the first


class Pooling(Tiny):
    """Its only attention is the pooling, as in CLIP's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        del self.fc
        self.head = timm.layers.AttentionPool2d(8, feat_size=12, out_features=6, num_heads=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def test_attention_over_frames_before_a_pooling_by_attention() -> None:
    network, images = fill(Pooling()).eval(), torch.randn(2, 3, 24, 24)
    expected = network(images)
    model = build(network, num_frames=3, img_size=(24, 24), temporal="attention").eval()
    assert model.inflated == ["head"]
    assert model.temporal["head-block"].channels_first
    assert torch.allclose(model(images[:, :, None].expand(-1, -1, 3, -1, -1)), expected, atol=1e-5)
    clip = torch.randn(1, 3, 3, 24, 24)
    perturb(model)
    assert (model(clip) - model(clip.flip(2))).abs().max() > 1e-4


def test_same_network_as_i3d() -> None:
    """The hand-written I3D of 50 layers and the inflated ResNet-50 are one function, given the same weights."""
    small_net = {"depth": (1, 2, 2, 1), "embed_dim": 32}
    i3d = fill(stvid.create_model("i3d_r50", num_classes=7, num_frames=8, img_size=64, **small_net))
    network = torchvision.models.ResNet(Bottleneck, [1, 2, 2, 1])
    network.inplanes = 8  # the same shapes: 8 channels in the stem, 32 to 256 behind the stages
    network.conv1, network.bn1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8)
    for index, blocks in enumerate([1, 2, 2, 1]):
        layer = network._make_layer(Bottleneck, 8 * 2**index, blocks, stride=1 if index == 0 else 2)
        setattr(network, f"layer{index + 1}", layer)
    network.fc = nn.Linear(256, 7)
    model = build(
        network,
        num_frames=8,
        img_size=(64, 64),
        temporal="conv",
        layers=r"^conv1$|^layer[123]\.0\.conv1$|^layer4\.0\.conv1$",
        kernel_size={"^conv1$": 5, r"^layer4": 1, "": 3},
        padding="zeros",
        temporal_strides={"^layer1$": 2},
    ).eval()
    state = {}
    own = model.state_dict()
    for key, value in i3d.state_dict().items():
        key = key.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.").replace(".norm", ".bn")
        key = key if key.startswith("head") else f"network.{key}"
        state[key] = value.squeeze(2) if key in own and own[key].dim() == 4 and value.dim() == 5 else value
    model.load_state_dict(state)
    clip = torch.randn(2, 3, 8, 64, 64)
    assert torch.allclose(model(clip), i3d(clip), rtol=1e-4, atol=1e-5)


# --- the model --------------------------------------------------------------------------------------------------------


MODES = [
    ("none", "timm:test_resnet"),
    ("shift", "timm:test_resnet"),
    ("conv", "timm:test_resnet"),
    ("attention", "timm:test_vit"),
    ("head", "timm:test_resnet"),
]


@pytest.mark.parametrize(("mode", "name"), MODES)
def test_saved_and_loaded_without_the_2d_model(mode: str, name: str, tmp_path: Path) -> None:
    model = small(mode, name)
    clip = torch.randn(2, 3, 4, 64, 64)
    stvid.save_model(model, tmp_path / "x.safetensors")
    again = stvid.load_model(tmp_path / "x.safetensors")
    assert torch.equal(again(clip), model(clip))
    assert again.default_protocol == model.default_protocol
    assert again.recipe == model.recipe
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(clip), model(clip))
        assert twin.time is not model.time


@pytest.mark.parametrize(("mode", "name"), MODES)
def test_gradients_reach_every_weight_and_recomputation_agrees(mode: str, name: str) -> None:
    model = fill(small(mode, name)).train()
    clip = torch.randn(2, 3, 4, 64, 64)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(clip).square().sum().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    plain = gradients()
    assert [key for key, _ in model.named_parameters() if key not in plain] == []
    statistics = {key: value.clone() for key, value in model.named_buffers()}
    keys, modules = list(model.state_dict()), list(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters())
    model.set_grad_checkpointing()
    assert list(model.state_dict()) == keys and dict(model.named_parameters()).keys() == parameters.keys()
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    recomputed = gradients()
    assert all(torch.allclose(plain[key], recomputed[key], rtol=1e-3, atol=1e-4) for key in plain)
    counted = [key for key in statistics if key.endswith("num_batches_tracked")]
    assert all(dict(model.named_buffers())[key] == statistics[key] + 1 for key in counted)
    model.set_grad_checkpointing(False)
    assert list(model.named_modules(remove_duplicate=False)) == modules
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(("mode", "name"), MODES)
def test_recomputation_frees_activations(mode: str, name: str) -> None:
    model = fill(small(mode, name)).train()
    clip = torch.randn(1, 3, 4, 64, 64)
    kept = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            model(clip)
        kept.append(sum(saved))
    assert kept[1] < (0.75 if mode == "head" else 0.6) * kept[0]


def test_a_model_that_recomputes_is_moved_copied_and_switched_as_a_whole() -> None:
    model = fill(small("conv"))
    clip = torch.randn(1, 3, 4, 64, 64)
    expected = model(clip)
    model.set_grad_checkpointing()
    model.set_grad_checkpointing()  # once more changes nothing
    block = model.network.get_submodule(model.anatomy.blocks[0].name)
    assert isinstance(block, Recomputed) and not isinstance(block.block, Recomputed)
    model.train()
    assert block.block.training and all(part.training for part in model.modules())
    model.eval()
    assert not block.block.training and block.conv1 is block.block.conv1
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(clip), expected)
        twin.set_grad_checkpointing(False)
        assert torch.equal(twin.double()(clip.double()).float().round(decimals=3), expected.round(decimals=3))
    doubled = model.double()
    doubled.set_grad_checkpointing(False)
    assert {parameter.dtype for parameter in doubled.parameters()} == {torch.float64}
    assert torch.allclose(doubled(clip.double()).float(), expected, atol=1e-4)


def test_a_block_that_runs_twice_is_recomputed_both_times() -> None:
    class Twice(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.fc(self.again(self.stem(x)).mean((2, 3)))

    network = fill(Twice())
    network.again = network.blocks[0]
    model = build(network, num_frames=2, img_size=(16, 16)).train()
    clip = torch.randn(1, 3, 2, 16, 16)
    model(clip).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    assert model.network.again is model.network.blocks[0] and isinstance(model.network.again, Recomputed)
    model(clip).sum().backward()
    assert all(
        torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
        for parameter, gradient in zip(model.parameters(), expected, strict=True)
    )


def test_recomputation_survives_another_clip_in_between() -> None:
    model = fill(small("conv"))
    clip, other = torch.randn(1, 3, 4, 64, 64), torch.randn(1, 3, 2, 64, 64)
    loss = model(clip).sum()
    loss.backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    loss = model(clip).sum()
    model(other)
    loss.backward()
    assert all(
        torch.allclose(parameter.grad, expected[key], rtol=1e-3, atol=1e-5)
        for key, parameter in model.named_parameters()
    )


@pytest.mark.parametrize(
    ("mode", "name"),
    [pair if pair[0] in ("conv", "attention") else pytest.param(*pair, marks=pytest.mark.slow) for pair in MODES],
)
def test_export_with_any_batch(mode: str, name: str) -> None:
    model = fill(small(mode, name))
    clip = torch.randn(3, 3, 4, 64, 64)
    program = torch.export.export(model, (clip[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    assert torch.allclose(program.module()(clip), model(clip), rtol=1e-4, atol=1e-4)


def test_takes_other_clips_and_any_layout() -> None:
    model = fill(small("attention", "timm:test_vit"))
    clip = torch.randn(2, 3, 6, 64, 64)
    logits = model(clip)
    assert logits.shape == (2, 5)
    assert torch.allclose(model(clip.contiguous(memory_format=torch.channels_last_3d)), logits, atol=1e-5)
    with pytest.raises(ValueError, match="takes a clip of shape"):
        model(clip[:, :, 0])


@pytest.mark.parametrize("mode", ["conv", "shift", "attention", "none", "head"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_added_has_the_type_of_the_network(mode: str, dtype: torch.dtype) -> None:
    network = timm.create_model("test_vit", num_classes=5, img_size=32).to(dtype)
    model = build(network, num_frames=2, img_size=(32, 32), temporal=mode)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.no_grad():
        assert model(torch.randn(1, 3, 2, 32, 32, dtype=dtype)).dtype == dtype


def test_features_and_layer_groups() -> None:
    model = small("attention", "timm:test_vit")
    tokens = model.forward_features(torch.randn(1, 3, 4, 64, 64))
    assert tokens.shape == (1, 4 * 17, model.num_features)
    plan = plan_parameters(model, OptimConfig(layer_decay=0.5))
    layers = {key: treatment.layer for key, treatment in plan.items()}
    assert layers["network.patch_embed.proj.weight"] < layers["network.blocks.0.attn.qkv.weight"]
    assert layers["network.blocks.1.attn.qkv.weight"] == layers["temporal.blocks-1.attn.qkv.weight"]
    assert layers["network.blocks.5.mlp.fc1.weight"] < layers["network.norm.weight"] < layers["head.fc.weight"]
    assert not plan["temporal.blocks-0.time_embed"].decayed
    convs = small("conv").forward_features(torch.randn(1, 3, 4, 64, 64))
    assert convs.shape[2:] == (4, 2, 2)


def test_new_and_kept_classifiers() -> None:
    network = fill(Tiny())
    kept = inflate_with_report(network, num_frames=2, img_size=16)
    assert torch.equal(kept.model.get_classifier().weight, network.fc.weight)
    new = inflate_with_report(network, num_frames=2, num_classes=3, img_size=16)
    rules = {rule.source or rule.target: rule.rule for rule in new.report.rules}
    assert rules["fc.weight"].startswith("dropped") and rules["head.fc.weight"].startswith("initialised")
    assert new.report.exact and new.model(torch.randn(1, 3, 2, 16, 16)).shape == (1, 3)
    squeeze = stvid.inflate("torchvision:squeezenet1_1", num_frames=2, num_classes=3, img_size=64)  # a ReLU behind it
    assert squeeze(torch.randn(1, 3, 2, 64, 64)).shape == (1, 3)
    assert squeeze.get_classifier().out_channels == 3


def test_two_classifiers_become_one() -> None:
    network = fill(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4, img_size=32))
    result = inflate_with_report(network, num_frames=2, img_size=32, temporal="none")
    assert result.report.exact
    assert result.model.get_classifier().weight.shape == (4, 2 * 192)
    sources = [rule.source for rule in result.report.rules]
    assert "head.weight + head_dist.weight" in sources


class Labelling(Tiny):
    """Classifies its places too, and adds the largest logits, as VOLO does."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        places = self.blocks(self.stem(x)).flatten(2).transpose(1, 2)
        return self.fc(places.mean(1)) + 0.5 * self.aux(places).amax(1)


def test_a_second_classifier_of_the_places() -> None:
    network = fill(Labelling())
    assert inflate_with_report(network, num_frames=2, img_size=16).report.exact
    new = inflate_with_report(network, num_frames=2, num_classes=3, img_size=16)
    assert new.report.exact and new.model(torch.randn(1, 3, 2, 16, 16)).shape == (1, 3)
    dropped = {rule.source for rule in new.report.rules if rule.rule.startswith("dropped")}
    assert dropped == {"fc.weight", "fc.bias", "aux.weight", "aux.bias"}


def test_every_tensor_has_one_rule() -> None:
    network = Tiny()
    report = inflate_with_report(network, num_frames=2, img_size=16, init="average").report
    assert sorted(rule.source for rule in report.rules) == sorted(network.state_dict())
    assert sum(report.counts().values()) == len(report.rules)
    assert (
        next(rule for rule in report.rules if rule.source == "stem.weight").rule
        == "repeated 3 times in time, divided by 3"
    )


def test_default_layers_are_every_second_block() -> None:
    model = small("conv", "timm:resnet50", img_size=64)
    assert model.inflated == [
        "conv1",
        *(
            f"layer{layer}.{block}.conv1"
            for layer, blocks in enumerate((3, 4, 6, 3), 1)
            for block in range(0, blocks, 2)
        ),
    ]
    assert find_blocks(timm.create_model("test_vit")) == [f"blocks.{index}" for index in range(6)]


def test_protocol_of_the_images() -> None:
    model = stvid.create_model("timm/test_vit", num_classes=5, num_frames=8, img_size=64, temporal="conv")
    data = timm.get_pretrained_cfg("test_vit")
    assert model.default_protocol.mean == data.mean and model.default_protocol.std == data.std
    assert model.default_protocol.frames == 8 and model.default_protocol.crop == 64


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_from_files(tmp_path: Path) -> None:
    network = fill(timm.create_model("test_resnet", num_classes=9))
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}},
        tmp_path / "w.pth",
    )
    result = inflate_with_report("timm:test_resnet", num_frames=2, img_size=64, weights=tmp_path / "w.pth")
    assert result.model.num_classes == 9 and result.report.exact
    still = torch.randn(1, 3, 64, 64)
    clip = still.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    assert torch.allclose(result.model(clip), network(still), rtol=1e-4, atol=1e-4)
    made = stvid.create_model(
        "timm/test_resnet", num_classes=9, num_frames=2, img_size=64, checkpoint=tmp_path / "w.pth"
    )
    assert torch.allclose(made.eval()(clip), network(still), rtol=1e-4, atol=1e-4)
    other = stvid.create_model("timm/test_resnet", num_classes=4, num_frames=2, img_size=64)
    report = stvid.load_checkpoint(other, tmp_path / "w.pth", reset_head=True)
    assert report.reset == ["head.fc.bias", "head.fc.weight"]
    with pytest.raises(CheckpointError, match="no classifier of timm:test_vit"):
        inflate_with_report("timm:test_vit", num_frames=2, img_size=64, weights=tmp_path / "w.pth")


def test_weights_without_a_classifier(tmp_path: Path) -> None:
    state = fill(timm.create_model("test_vit", num_classes=3)).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("head.")}, tmp_path / "backbone.pth")
    options: dict[str, Any] = {"num_frames": 2, "img_size": 160, "weights": tmp_path / "backbone.pth"}
    with pytest.raises(CheckpointError, match="num_classes"):
        inflate_with_report("timm:test_vit", **options)
    result = inflate_with_report("timm:test_vit", num_classes=4, **options)
    assert [rule.rule for rule in result.report.rules if rule.target == "head.fc.weight"] == [
        "initialised: a new classifier"
    ]
    assert torch.equal(result.model.network.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    with pytest.raises(ConfigError, match="without a classifier"):
        inflate_with_report("timm:vit_small_patch14_dinov2", num_frames=2, img_size=56)


def test_auxiliary_classifiers_are_dropped_by_name(tmp_path: Path) -> None:
    network = torchvision.models.googlenet(weights=None, init_weights=False, num_classes=6)
    torch.save(network.state_dict(), tmp_path / "g.pth")
    result = inflate_with_report(
        "torchvision:googlenet", num_frames=2, img_size=64, weights=tmp_path / "g.pth", prove=False
    )
    dropped = [rule for rule in result.report.rules if rule.rule.startswith("dropped")]
    assert dropped and all(rule.source.startswith(("aux1.", "aux2.")) for rule in dropped)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:convnext_tinny", "nearest: convnext_tiny"),
        ("timm:resnet50.no_such_tag", "no such weights"),
        ("torchvision:resnet5", "nearest: resnet50"),
        ("torchvision:fasterrcnn_resnet50_fpn", "detection model"),
        ("torchvision:deeplabv3_resnet50", "segmentation model"),
        ("torchvision:swin3d_t", "video model"),
        ("torchvision:raft_small", "an optical flow model"),
        ("resnet50.pth", "timm:<name>"),
        ("resnet50", "timm:resnet50 or torchvision:resnet50"),
        ("timm:", "'timm:': is no 2D network"),
    ],
)
def test_unknown_sources(source: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        stvid.inflate(source, num_frames=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames 0"),
        ({"kernel_size": 2}, "odd"),
        ({"layers": "nothing"}, "matches no convolution"),
        ({"layers": "("}, "regular expression"),
        ({"temporal": "convs"}, "choose one of"),
        ({"temporal": "shift", "kernel_size": 5}, "no meaning with temporal=shift"),
        ({"temporal": "attention"}, "no transformer block"),
        ({"shift_dib": 3}, "shift_dib"),
        ({"num_classes": -1}, "num_classes -1: must be a whole number"),
        ({"img_size": 0}, "img_size 0"),
        ({"img_size": (16,)}, r"img_size \(16,\)"),
        ({"img_size": "large"}, "img_size 'large'"),
        ({"img_size": 16.0}, r"img_size 16\.0"),
        ({"layers": 3}, "layers 3: must be a regular expression"),
        ({"temporal": "shift", "shift_div": 1}, "shift_div 1: must be a whole number of at least 2"),
        ({"temporal": "shift", "shift_div": "a"}, "shift_div 'a'"),
        ({"temporal": "head", "head_depth": 0}, "head_depth 0"),
        ({"temporal": "head", "head_num_heads": 3}, "does not divide the 8 features"),
        ({"temporal_strides": 2}, "temporal_strides 2: must map"),
        ({"temporal_strides": {"stem": 0}}, "temporal_strides 'stem' 0"),
        ({"kernel_size": {"no_such": 5}}, "kernel_size 'no_such': matches no chosen convolution"),
        ({"kernel_size": {"": "3"}}, "kernel_size '3': must be an odd"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=message):
        stvid.inflate(Tiny(), **{"num_frames": 4, "img_size": 16, **options})


def test_an_option_of_neither_names_the_nearest() -> None:
    for make in (
        lambda: stvid.inflate("timm:test_resnet", num_frames=2, img_size=64, shift_dib=4),
        lambda: stvid.create_model("timm/test_resnet", num_frames=2, img_size=64, shift_dib=4),
    ):
        with pytest.raises(TypeError, match="timm:test_resnet has no option 'shift_dib'; nearest: shift_div"):
            make()


def test_an_encoder_without_a_classifier_gets_one(tmp_path: Path) -> None:
    name, options = "qwen3_vit_88m_enc", {"depth": 1}
    encoder = fill(timm.create_model(name, img_size=64, **options))
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(ConfigError, match="num_classes"):
        stvid.inflate(f"timm:{name}", num_frames=2, img_size=64, **options)
    result = inflate_with_report(
        f"timm:{name}",
        num_frames=2,
        num_classes=7,
        img_size=64,
        weights=tmp_path / "encoder.pth",
        temporal="attention",
        **options,
    )
    assert result.report.exact
    stvid.save_model(result.model, tmp_path / "video.safetensors")
    video = stvid.load_model(tmp_path / "video.safetensors").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = video(image[:, :, None].expand(-1, -1, 2, -1, -1))
        expected = video.get_classifier()(encoder(image).mean(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Mixing(Tiny):
    """Depends on the other images of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Overwriting(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Counting(Tiny):
    """Computes something else each time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Boxes(Tiny):
    def forward(self, x: Tensor) -> Any:
        return [{"boxes": x}]


def test_proof_of_a_network_whose_classifier_is_zero() -> None:
    network = fill(Tiny())
    nn.init.zeros_(network.fc.weight)
    report = inflate_with_report(network, num_frames=2, img_size=16, init="average").report
    assert report.exact and "random classifier" in report.verdict()
    spoiled = inflate_with_report(network, num_frames=2, img_size=16, init="average", padding="zeros").report
    assert spoiled.difference > 1e-3 and "approximate" in spoiled.verdict()


def test_networks_that_cannot_be_folded() -> None:
    with pytest.raises(ConfigError, match="other images in its batch"):
        stvid.inflate(fill(Mixing()), num_frames=4, img_size=16)
    with pytest.raises(ConfigError, match="overwrites the images"):
        stvid.inflate(fill(Overwriting()), num_frames=4, img_size=16)
    with pytest.raises(ConfigError, match="other logits for the same images"):
        stvid.inflate(fill(Counting()), num_frames=4, img_size=16)
    with pytest.raises(ConfigError, match="returns a list"):
        stvid.inflate(Boxes(), num_frames=4, img_size=16)
    with pytest.raises(ConfigError, match="does not take images"):
        stvid.inflate(nn.Sequential(nn.Linear(3, 4)), num_frames=4, img_size=16)


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "x.safetensors", tmp_path / "x.html"
    arguments = ["inflate", "--from", "timm:test_resnet", "--frames", "4", "--img_size", "64", "--init", "average"]
    assert main([*arguments, "--out", str(out), "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "divided by 3" in printed and "exact" in printed
    assert stvid.load_model(out).num_frames == 4
    html = page.read_text()
    assert "data:image/png;base64" in html and "<svg" in html and "http" not in html
    assert html.count("<tr>") > len(timm.create_model("test_resnet").state_dict())
    assert main([*arguments, "--layers", "nothing"]) == 2
    assert "matches no convolution" in capsys.readouterr().err
    assert main(["inflate", "--from", "timm:test_resnot"]) == 2
    for wrong, message in (
        (["--out", "x.foo"], "--out x.foo: the suffix must be one of"),
        (["--hyperparameters", '{"num_classes": 3}'], "num_classes has an option of its own, --num_classes"),
        (["--hyperparameters", '{"num_frames": 3}'], "num_frames has an option of its own, --frames"),
        (["--from", str(out)], "is a file; name what becomes of it"),
        (["--to", "i3d_r50", "--from", str(out), "--pretrained"], "is a file of weights itself"),
    ):
        assert main([*arguments[:3], *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main([*arguments, "--report", str(out / "page.html")]) == 1  # the folder is a file
    assert "the report cannot be written" in capsys.readouterr().err
    assert main(["inflate", "--help"]) == 0
    assert "--kernel_size" in capsys.readouterr().out


# --- what the model says of itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("torchvision:resnet18", {}),
        ("torchvision:resnet18", {"temporal": "head"}),
        ("timm:test_resnet", {"temporal": "shift"}),
        ("timm:test_convnext", {"temporal_strides": {r"^stages\.1\.downsample": 2}}),
        ("timm:test_vit", {"temporal": "attention"}),
        ("timm:swin_tiny_patch4_window7_224", {"temporal": "none", "img_size": 64, "embed_dim": 16, "depths": (1, 1)}),
    ],
)
def test_contract(source: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = stvid.inflate(source, num_frames=4, **{"temporal": "conv", "img_size": 64, "num_classes": 5, **options})
    size = model.img_size
    clip = torch.randn(2, 3, 4, *size)
    with torch.no_grad():
        logits = model(clip)
        features, found = model.forward_intermediates(clip)
        torch.testing.assert_close(model(clip), logits, rtol=0, atol=0)  # watching changes nothing
        assert torch.equal(features, model.forward_features(clip))
        torch.testing.assert_close(model.forward_head(features), logits, rtol=1e-4, atol=1e-5)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_features)
        torch.testing.assert_close(model.get_classifier()(pooled), logits, rtol=1e-4, atol=1e-5)
    assert len(found) == len(model.feature_info) == len(model.stages()) == 2
    for info, maps in zip(model.feature_info, found, strict=True):
        cells = tuple(-(-length // step) for length, step in zip((4, *size), info.reduction, strict=True))
        assert maps.shape[1] == info.channels and maps.shape[3:] == cells[1:]
    last = found[-1].flatten(2).transpose(1, 2)
    if model.gives_maps:
        assert features.dim() == 5 and torch.equal(features, found[-1])
    else:
        assert features.shape[1] == model.num_prefix_tokens + math.prod(model.token_grid(clip.shape))
        assert torch.equal(features[:, model.num_prefix_tokens :], last)
