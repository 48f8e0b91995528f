"""Folding norms, settings of a device: the outputs stay the same, and nothing is lost silently."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import stvid
from stvid.errors import CheckpointError, ConfigError, StvidError
from stvid.inference import FuseReport, OptimizedModel, pick_precision
from stvid.models.base import VideoModel
from stvid.models.blocks import Mlp
from stvid.models.following import follow_norms
from stvid.models.kernels import FastConv3d, FastLinear, clip_layout, remade, speed_up
from stvid.protocol import Protocol

TINY: dict[str, Any] = {"depth": (1, 1, 1, 1)}
INFLATED: dict[str, Any] = {"depth": (1, 2, 1, 1), "embed_dim": 32}
# Every family with batch norms at a small size: options, frames, side, and how many norms follow a convolution.
FAMILIES: dict[str, tuple[dict[str, Any], int, int, str]] = {
    "c2d_r50": (INFLATED, 4, 32, "20 of 20"),
    "i3d_r50": (INFLATED, 4, 32, "20 of 20"),
    "i3d_nl_r50": (INFLATED, 4, 32, "21 of 21"),
    "slow_r50": (INFLATED, 4, 32, "20 of 20"),
    "i3d_inception": ({}, 8, 32, "57 of 57"),
    "s3d": ({}, 8, 32, "77 of 77"),
    "r3d_18": (TINY, 4, 32, "12 of 12"),
    "mc3_18": (TINY, 4, 32, "12 of 12"),
    "r2plus1d_18": (TINY, 4, 32, "21 of 21"),
    "r2plus1d_34": (TINY, 4, 32, "21 of 21"),
    "r2plus1d_50": (TINY, 4, 32, "21 of 21"),
    "ir_csn_50": (TINY, 4, 32, "17 of 17"),
    "ip_csn_50": (TINY, 4, 32, "21 of 21"),
    "p3d_63": (TINY, 16, 32, "20 of 20"),
    "resnet3d_18": ({**TINY, "shortcut_type": "A"}, 4, 32, "9 of 9"),
    "resnext3d_50": (TINY, 4, 32, "17 of 17"),
    "uniformer_xxs": ({}, 4, 64, "8 of 9"),  # they come before convolutions, the last one before the mean
}


def with_statistics(model: nn.Module) -> Any:
    """Gives all batch norms weights and statistics that are not those of a new one."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0.0, 0.2, generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(norm.bias, 0.0, 0.2, generator=generator)
    return model


def small(name: str, **options: Any) -> tuple[VideoModel, Tensor]:
    own, frames, side, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = stvid.create_model(name, num_classes=5, num_frames=frames, img_size=side, **{**own, **options})
    return with_statistics(model).eval(), torch.randn(2, 3, frames, side, side)


def norms_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


# --- fuse -------------------------------------------------------------------------------------------------------------


# Those that are wired like another one.
REPEATED = {"c2d_r50", "i3d_r50", "ir_csn_50", "mc3_18", "r2plus1d_34", "slow_r50"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in REPEATED else name for name in sorted(FAMILIES)]
)
def test_a_fused_model_computes_the_same(name: str) -> None:
    model, clip = small(name)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model, clip = model.to(dtype), clip.to(dtype)
        before = copy.deepcopy(model.state_dict())
        fused = stvid.fuse(model)
        assert str(fused.fused).startswith(f"{FAMILIES[name][3]} batch norms")
        assert set(norms_of(fused)) == set(fused.fused.kept)
        assert set(norms_of(model)) == {*fused.fused.fused, *fused.fused.kept}
        with torch.no_grad():
            expected, found = model(clip), fused(clip)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
        for key, value in model.state_dict().items():  # the original is as it was
            assert torch.equal(value, before[key])


def test_a_model_in_training_mode_is_fused_as_in_evaluation() -> None:
    model, clip = small("r3d_18")
    fused = stvid.fuse(model.train())
    assert model.training and not any(module.training for module in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused(clip), model.eval()(clip), rtol=1e-4, atol=1e-5)


class Tricky(VideoModel):
    """Norms of which only the first may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.num_features = 4, 4
        self.plain = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, affine=False))
        self.read_twice = nn.ModuleList([nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)])
        self.viewed = nn.ModuleList([nn.Conv3d(4, 4, 1), nn.BatchNorm2d(4)])
        self.joined = nn.ModuleList([nn.Conv3d(4, 4, 1), nn.BatchNorm3d(8)])
        self.shared = nn.ModuleList([nn.Conv3d(8, 4, 1), nn.BatchNorm3d(4), nn.BatchNorm3d(4)])
        self.without_statistics = nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4, track_running_stats=False))
        self.tied = nn.ModuleList([nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4), nn.Conv3d(4, 4, 1)])
        self.tied[2].weight = self.tied[0].weight
        self.changed = nn.ModuleList([nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)])
        self.unused = nn.BatchNorm3d(4)
        self.returned = nn.ModuleList([nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)])

    def norm_pairs(self, clip: Tensor | None = None) -> list[tuple[str, str]]:
        return follow_norms(self, (2, 3, 2, 4, 4), clip)

    def forward(self, clip: Tensor) -> Any:
        x = self.plain(clip)
        conv, norm = self.read_twice
        y = conv(x)
        x = norm(y) + y
        conv, norm = self.viewed
        x = norm(conv(x).flatten(3)).unflatten(3, x.shape[3:])
        conv, norm = self.joined
        x = norm(torch.cat((conv(x), x), 1))
        conv, first, second = self.shared
        x = first(conv(x)) + second(conv(-x))
        x = self.without_statistics(x)
        conv, norm, other = self.tied
        x = other(norm(conv(x)))
        conv, norm = self.changed
        x = norm(conv(x).mul_(2))
        conv, norm = self.returned
        y = conv(x)
        return norm(y).mean((2, 3, 4)), y


def test_a_norm_is_folded_only_where_that_is_right() -> None:
    torch.manual_seed(0)
    model = Tricky()
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            norm.running_mean.normal_()
    model.double().eval()
    fused = stvid.fuse(model)
    assert fused.fused.fused == {"plain.1": "plain.0", "changed.1": "returned.0"}  # back, and ahead
    reasons = {name.split(".")[0]: reason for name, reason in fused.fused.kept.items()}
    for name in ("read_twice", "returned", "viewed", "joined", "shared", "unused"):
        assert reasons[name] == "no convolution stands beside it alone"
    assert "running statistics" in reasons["without_statistics"]
    assert "weights are used elsewhere" in reasons["tied"]
    clip = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        for expected, found in zip(model(clip), fused(clip), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class PreNorm(VideoModel):
    """Norms before convolutions: an unpadded one with groups and a stride, a padded one, one behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.num_features = 4, 4
        self.unpadded = nn.Sequential(nn.BatchNorm3d(4), nn.Conv3d(4, 6, (1, 2, 2), stride=(1, 2, 2), groups=2))
        self.between = nn.Sequential(nn.BatchNorm3d(6), nn.Conv3d(6, 4, 1, bias=False), nn.BatchNorm3d(4))
        self.padded = nn.Sequential(nn.BatchNorm3d(4), nn.Conv3d(4, 4, 3, padding=1))
        self.activated = nn.Sequential(nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.Conv3d(4, 4, 1))
        self.shared = nn.ModuleList([nn.BatchNorm3d(4), nn.Conv3d(4, 4, 1)])

    def norm_pairs(self, clip: Tensor | None = None) -> list[tuple[str, str]]:
        return follow_norms(self, (2, 3, 2, 8, 8), clip)

    def forward(self, clip: Tensor) -> Tensor:
        x = torch.cat((clip, clip[:, :1]), 1)
        x = self.activated(self.padded(self.between(self.unpadded(x).sin()).sin()).sin()).sin()
        norm, conv = self.shared
        x = norm(x)
        return (x + conv(x)).mean((2, 3, 4))


def test_a_norm_is_folded_ahead_only_where_nothing_is_padded() -> None:
    torch.manual_seed(0)
    model = with_statistics(PreNorm()).double().eval()
    fused = stvid.fuse(model)
    assert fused.fused.fused == {
        "unpadded.0": "unpadded.1",
        "between.0": "between.1",
        "between.2": "between.1",
    }
    assert set(fused.fused.kept) == {"padded.0", "activated.0", "shared.0"}
    clip = torch.randn(2, 3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(clip), model(clip), rtol=1e-9, atol=1e-12)


def test_an_example_clip_serves_as_well() -> None:
    model = with_statistics(PreNorm()).eval()
    assert stvid.fuse(model, clip=torch.randn(1, 3, 2, 8, 8)).fused == stvid.fuse(model).fused
    with pytest.raises(StvidError, match="PreNorm cannot be followed"):
        stvid.fuse(model, clip=torch.randn(1, 2, 2, 8, 8))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_a_model_says_of_its_norms_is_what_a_forward_pass_shows(name: str) -> None:
    model, clip = small(name)
    assert set(model.norm_pairs()) == set(follow_norms(model, tuple(clip.shape)))


@pytest.mark.parametrize("change", [stvid.fuse, stvid.optimize])
def test_what_is_for_inference_only_says_so(change: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = small("r3d_18")
    changed = change(model)
    assert not any(parameter.requires_grad for parameter in changed.parameters())
    with pytest.raises(StvidError, match=r"cannot be trained: .*stvid\."):
        changed.train()
    assert not changed.eval().training
    with pytest.raises(CheckpointError, match=r"not written: .*save the model it was made from"):
        stvid.save_model(changed, tmp_path / "weights.pt")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="load it into a plain one"):
        stvid.load_checkpoint(changed, model.state_dict())
    with pytest.raises(ConfigError, match="already"):
        change(changed)
    with pytest.raises(ConfigError, match="takes a model of stvid"):
        change(nn.Linear(2, 2))


@pytest.mark.parametrize("change", [stvid.fuse, stvid.optimize])
def test_what_is_for_inference_only_can_be_exported(change: Callable[..., Any], tmp_path: Path) -> None:
    model, clip = small("r3d_18")
    report = stvid.export_model(change(model), tmp_path / "model.pt2")
    assert report.largest_difference < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(stvid.load_exported(report.path)(clip), model(clip), rtol=0.03, atol=0.03)


def test_the_models_of_other_libraries_are_fused() -> None:
    pytest.importorskip("torchvision")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("timm/resnet18", {}),
        ("timm/mobilenetv3_small_050", {}),  # norms that end with an activation
    ]
    for name, options in cases:
        model = stvid.create_model(name, num_classes=5, num_frames=2, img_size=32, **options)
        model = with_statistics(model).eval()
        fused = stvid.fuse(model)
        assert len(fused.fused.fused) > 10 and not fused.fused.kept
        clip = torch.randn(1, 3, 2, 32, 32)
        with torch.no_grad():
            expected = model(clip)
            assert (fused(clip) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_report_counts_and_explains() -> None:
    report = FuseReport({"a.bn": "a.conv"}, {"b.bn": "it does not run", "c.bn": "it does not run"})
    assert str(report) == ("1 of 3 batch norms folded into their convolutions; 2 kept, it does not run (b.bn, ...)")


# --- optimize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r2plus1d_18", "ir_csn_50", "i3d_nl_r50", "uniformer_xxs"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_optimized_model_answers_like_the_original(name: str, precision: Any) -> None:
    model, clip = small(name)
    fast = stvid.optimize(model, precision=precision)
    assert isinstance(fast, OptimizedModel) and fast.precision == precision and fast.input_dtype == torch.float32
    assert {parameter.dtype for parameter in fast.parameters()} == {
        torch.float32 if precision == "float32" else torch.bfloat16
    }
    assert fast.default_protocol == model.default_protocol and fast.get_classifier().weight.shape[0] == 5
    with torch.inference_mode():
        for batch in (clip, clip[:1], clip.contiguous(memory_format=torch.channels_last_3d)):
            expected, found = model(batch), fast(batch)
            assert found.dtype == torch.float32
            tolerance = 1e-5 if precision == "float32" else 0.03
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()
        assert fast.forward_features(clip).dtype == torch.float32
        expected = fast(clip)
        assert (copy.deepcopy(fast)(clip) - expected).abs().max() <= tolerance * expected.abs().max()


def test_auto_asks_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, avx, expected in ((True, True, "bf16"), (False, True, "bf16"), (False, False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        precision, reason = pick_precision(torch.device("cpu"))
        assert precision == expected and ("AMX" in reason) >= amx
    assert pick_precision(torch.device("meta"))[0] == "float32"
    for capability, expected in (((9, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert pick_precision(torch.device("cuda", 0))[0] == expected


def test_wrong_settings_are_refused() -> None:
    model, _ = small("r3d_18")
    with pytest.raises(ConfigError, match="'int8' is not one of auto, float32, bf16, fp16"):
        stvid.optimize(model, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nowhere"):
        stvid.optimize(model, device="nowhere")


def test_an_optimized_model_is_evaluated(make_video: Any, tmp_path: Path) -> None:
    """Clips come in float32 whatever the weights are, and the result is that of the original within bf16's rounding."""
    files = [make_video(f"{number}.mp4", frames=12) for number in range(2)]
    manifest = tmp_path / "val.csv"
    manifest.write_text("path,label\n" + "".join(f"{file},class {k}\n" for k, file in enumerate(files)))
    model, _ = small("r3d_18")
    model.default_protocol = Protocol(
        frames=4, stride=2, short_side=32, crop=32, views="2x1", class_names=tuple(f"class {k}" for k in range(5))
    )
    expected = stvid.evaluate(model, str(manifest))
    seen: list[torch.dtype] = []
    fast = stvid.optimize(model, precision="bf16")
    fast.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    found = stvid.evaluate(fast, str(manifest))
    assert set(seen) == {torch.float32}
    assert np.abs(found.logits - expected.logits).max() < 0.03 * np.abs(expected.logits).max()


# --- the layers under it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 4])
def test_the_convolution_is_torchs(groups: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 8, (3, 3, 1), stride=(2, 1, 1), padding=(1, 1, 0), groups=groups).requires_grad_(False)
    fast = remade(plain, FastConv3d)
    tiny = torch.randn(1, 4, 2, 2, 2)
    for clip in (torch.randn(1, 4, 5, 6, 7), torch.randn(2, 4, 3, 6, 6), tiny, clip_layout(tiny)):
        torch.testing.assert_close(fast(clip), plain(clip), rtol=1e-4, atol=1e-5)
        assert fast.packed is not None


def test_a_packed_weight_follows_no_change_unseen() -> None:
    plain = nn.Conv3d(4, 8, 3, padding=1).requires_grad_(False)
    conv = remade(plain, FastConv3d)
    clip = torch.randn(1, 4, 3, 6, 6)
    expected = plain(clip)
    torch.testing.assert_close(conv(clip), expected)
    larger = torch.randn(2, 4, 5, 7, 9)
    torch.testing.assert_close(conv(larger), nn.functional.conv3d(larger, conv.weight, conv.bias, padding=1))
    assert conv.packed is not None and conv.packed[0] == larger.shape  # the layout depends on the shape
    torch.testing.assert_close(conv(clip), expected)
    x = clip.clone().requires_grad_()
    conv(x).sum().backward()  # by the plain weight
    assert x.grad.abs().sum() > 0
    assert copy.deepcopy(conv).packed is None
    conv.double()
    assert conv.packed is None
    torch.testing.assert_close(conv(clip.double()), expected.double(), rtol=1e-4, atol=1e-5)


def test_only_what_nobody_watches_is_replaced() -> None:
    model = stvid.create_model(
        "vivit_b16x2", num_classes=5, num_frames=4, img_size=32, depth=1, embed_dim=32, num_heads=2
    )
    clip = torch.randn(1, 3, 5, 35, 35)  # a rest that fills no tubelet
    model.eval().requires_grad_(False)
    expected = model(clip)
    seen: list[Tensor] = []
    model.encoder.blocks[0].attn.proj.register_forward_hook(lambda module, inputs, output: seen.append(output))
    speed_up(model)
    assert type(model.patch_embed.proj) is nn.Conv3d and type(model.head.fc) is nn.Linear  # float32: torch's own
    torch.testing.assert_close(model(clip), expected, rtol=1e-4, atol=1e-5)
    low = copy.deepcopy(model).to(torch.bfloat16)
    assert any("linear layers" in note for note in speed_up(low)) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert type(low.encoder.blocks[0].attn.proj) is nn.Linear
    low(clip.bfloat16())
    assert len(seen) == 2


@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_the_mlp_in_bfloat16_is_torchs(gelu: Literal["none", "tanh"]) -> None:
    torch.manual_seed(0)
    mlp = Mlp(16, 64, gelu=gelu).to(torch.bfloat16)
    expected = copy.deepcopy(mlp)
    speed_up(mlp)
    tokens = torch.randn(2, 5, 32, dtype=torch.bfloat16)[..., ::2]
    with torch.no_grad():
        found, wanted = mlp(tokens), expected(tokens)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.01)
    mlp(tokens.clone().requires_grad_()).sum().backward()  # with a gradient it is torch's
    assert all(parameter.grad is not None for parameter in mlp.parameters())
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert type(mlp.fc1) is FastLinear and mlp.fc1.gelu == gelu and type(mlp.act) is nn.Identity
