"""What every registered model must satisfy, and what the published ones must reproduce."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.config import OptimConfig
from stvid.engine.optim import plan_parameters
from stvid.errors import StvidError
from stvid.models.base import VideoModel
from stvid.models.kernels import channels_last
from stvid.models.registry import family_of, model_info, native_models

GOLDENS = Path(__file__).parent.parent / "goldens"
MODELS = [
    pytest.param(name, marks=pytest.mark.slow) if family_of(name)[1].same_as else name for name in native_models()
]


def one_of_each_family(names: Sequence[str] = ()) -> list[Any]:
    """All models, or those of `names`; slow are all but the first of each family, as its statement lists them."""
    first: dict[str, str] = {}
    for name in names or native_models():
        family = family_of(name)[0]
        order = [variant.name for variant in family.variants]
        first[family.model] = min(first.get(family.model, name), name, key=order.index)
    quick = set(first.values())
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names or native_models()]


# Parameters that change the features alone, not the logits: MViT's head reads the class token, which the last block
# neither pools nor knows a position of. VideoMamba's class token comes first: in the last block there is nothing before
# it that decays.
UNREAD = {
    "MViT": [f"blocks.3.attn.{name}" for name in ("pool_q.weight", "rel_pos_h", "rel_pos_w", "rel_pos_t")],
    "VideoMamba": ["blocks.1.mixer.ahead.decay_log"],
}


def golden(case: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{case}.json").read_text())


@functools.cache
def declared_goldens() -> dict[str, dict[str, Any]]:
    """The options of the models of all cases whose record does not name them."""
    return {key: call for name in native_models() for key, call in family_of(name)[0].golden_options.items()}


def golden_cases() -> list[Any]:
    """All cases. Slow are those that a family calls so, and all but the cheapest of each family."""
    cheapest: dict[str, tuple[float, str]] = {}
    for case in sorted(path.stem for path in GOLDENS.glob("*.json")):
        record = golden(case)
        name = record["create"]["name"] if record.get("create") else declared_goldens()[case]["name"]
        found = (record["params"] * math.prod(record["input_shape"] or record["full_input_shape"]), case)
        kind = family_of(name)[0].model
        cheapest[kind] = min(cheapest.get(kind, found), found)
    slow = {case for name in native_models() for case in family_of(name)[0].slow_goldens}
    quick = {case for _, case in cheapest.values()} - slow
    cases = sorted(path.stem for path in GOLDENS.glob("*.json"))
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def counted(case: Any) -> bool:
    """Whether the record of a case of `golden_cases` has the multiply-adds."""
    return golden(case if isinstance(case, str) else case.values[0])["gmacs"] is not None


def golden_call(case: str) -> tuple[str, dict[str, Any]]:
    record = golden(case)
    if record.get("create"):
        call = dict(record["create"]["kwargs"])
        size = call["img_size"]
        call["img_size"] = size if isinstance(size, int) else tuple(size)
        return record["create"]["name"], call
    call = {
        **declared_goldens()[case],
        "num_classes": record["num_classes"],
        "num_frames": clip_shape(record, "input_shape")[2],
    }
    return call.pop("name"), call


def golden_state(case: str) -> dict[str, Any]:
    """The official state, as a checkpoint of the authors would hold it."""
    record = golden(case)
    integers = {key: np.array(0) for key in record["int_keys"] if key.endswith("num_batches_tracked")}
    floats = {key: shape for key, shape in record["state"].items() if key not in record["int_keys"]}
    return {**integers, **fill.fill_state(floats)}


def small_model(name: str, num_classes: int = 7, **options: Any) -> tuple[VideoModel, torch.Tensor]:
    family, variant = family_of(name)
    frames, height, width = family.small_clip
    torch.manual_seed(0)
    options = {**family.tiny, **variant.tiny, **options}
    model = stvid.create_model(name, num_classes=num_classes, num_frames=frames, img_size=(height, width), **options)
    return model, torch.randn(2, 3, frames, height, width)


def clip_axes(record: dict[str, Any]) -> list[int]:
    """The permutation from the official code's layout of a clip to ours."""
    return [axes_of(record).index(axis) for axis in "NCTHW"]


def axes_of(record: dict[str, Any]) -> list[str]:
    """The axes of the official code's clip; segments of several frames (N,S,5,...) are one axis of frames."""
    return re.sub("S,5", "T", record["layout"]).split(",")


def clip_shape(record: dict[str, Any], key: str) -> list[int]:
    """One of a record's shapes in our layout of a clip."""
    shape = list(record[key])
    if "S,5" in record["layout"]:
        shape[1:3] = [shape[1] * shape[2]]
    return [shape[axis] for axis in clip_axes(record)]


@pytest.mark.parametrize("case", golden_cases())
def test_golden_logits(case: str, outline: Callable[..., Any]) -> None:
    record = golden(case)
    name, call = golden_call(case)
    if record["logits"] is None:  # a model too large to run here: its parameters only
        with outline():
            model = stvid.create_model(name, **call)
        assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]
        return
    with outline("cpu"):
        model = stvid.create_model(name, **call)
    state = golden_state(case)
    report = stvid.load_checkpoint(model, {"model_state": state})
    assert report.format in (*model_info(name).formats, "stvid")
    if not report.resized:
        beside = [shape for key, shape in record["state"].items() if key.startswith("vjepa2.predictor.")]
        params = sum(parameter.numel() for parameter in model.parameters())  # the model has no part of the pretraining
        assert params + sum(map(math.prod, beside)) == record["params"]
    given = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    clip = (given.flatten(1, 2) if given.dim() == 6 else given).permute(clip_axes(record))
    sound = {}
    if "audio_shape" in record:  # Perceiver's
        sound["audio"] = torch.from_numpy(fill.make_input(record["audio_shape"], seed=7)).double()
    with torch.no_grad():
        logits = model.double().eval()(clip, **sound).reshape(-1).numpy()
    # The attention weights of transformers' ViViT and Longformer are rounded to float32; so are constants of MoViNet.
    tolerance = 1e-6 if re.match(r"hf_vivit|vtn|movinet_.*_tf__", case) else 1e-7
    assert np.abs(logits - np.array(record["logits"])).max() < tolerance * record["logits_std"]


@pytest.mark.parametrize("case", [case for case in golden_cases() if counted(case)])
def test_golden_multiply_adds(case: str, outline: Callable[..., Any]) -> None:
    record = golden(case)
    if record["gmacs"] is None:
        pytest.skip("torch's counter does not see all of the official code, so none were recorded")
    name, call = golden_call(case)
    if re.search(r"_d\d+__", case):  # of a shortened model, whose record has the multiply-adds of the whole one
        del call["depth"]
    if "orthoformer" in case:  # whose record counts exact attention
        call["attention"] = "trajectory"
    shape = clip_shape(record, "full_input_shape")
    with outline():
        model = stvid.create_model(name, **{**call, "num_frames": shape[2], "img_size": tuple(shape[3:])}).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(shape))
    # TSM's authors classify every frame before they average, which is 0.15% of MobileNetV2.
    assert counter.get_total_flops() / 2e9 == pytest.approx(record["gmacs"], rel=2e-3)


def test_recomputing_counts_a_batch_once() -> None:
    statistics = []
    for recompute in (False, True):
        model, clip = small_model("uniformer_xxs")
        model.train()
        model.set_grad_checkpointing(recompute)
        model(clip).sum().backward()
        statistics.append({key: value.clone() for key, value in model.named_buffers()})
    assert statistics[0].keys() == statistics[1].keys()
    for key, value in statistics[0].items():
        torch.testing.assert_close(statistics[1][key], value)


@pytest.mark.parametrize("name", native_models())
def test_published_size(name: str, outline: Callable[..., Any]) -> None:
    info = model_info(name)
    with outline():
        model = stvid.create_model(name)
    params = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if info.params is not None:
        assert params == pytest.approx(info.params, abs=family_of(name)[1].params_tolerance)
    assert model.default_protocol == info.protocol


COUNTED = [name for name in native_models() if model_info(name).gflops is not None]


@pytest.mark.parametrize("name", one_of_each_family(COUNTED))
def test_published_multiply_adds(name: str, outline: Callable[..., Any]) -> None:
    info = model_info(name)
    if info.gflops is None:  # tests/docs/test_add_a_model.py calls this for a family of its own
        pytest.skip("none were published")
    clip = (info.protocol.frames, info.protocol.crop, info.protocol.crop)
    with outline(), FlopCounterMode(display=False) as counter, torch.no_grad():
        stvid.create_model(name).eval()(torch.empty(1, 3, *clip))
    assert counter.get_total_flops() / 2e9 == pytest.approx(info.gflops, rel=family_of(name)[1].gflops_tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient_and_recomputing_changes_nothing(name: str) -> None:
    model, clip = small_model(name)
    model.eval()  # batch statistics and stochastic depth aside, so that both passes compute the same function

    for parameter in model.parameters():  # branches that start as the identity pass no gradient on
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        (model(clip) * torch.arange(7.0)).sum().backward()
        trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
        missing = [key for key, parameter in trained.items() if parameter.grad is None]
        assert not missing
        return {key: parameter.grad.clone() for key, parameter in trained.items()}

    plain = gradients()
    unread = UNREAD.get(family_of(name)[0].model, ())
    assert {key for key, gradient in plain.items() if not gradient.abs().sum() > 0} <= {*unread}
    model.set_grad_checkpointing()
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[key], rtol=1e-4, atol=1e-5 * float(plain[key].abs().max()))


@pytest.mark.parametrize("name", one_of_each_family())
def test_methods_that_training_relies_on(name: str) -> None:
    model, clip = small_model(name)
    model.eval()
    features = model.forward_features(clip)
    assert model.num_features in features.shape
    assert model.get_classifier().weight.shape == (7, model.head_features)
    model.reset_classifier(3)
    with torch.no_grad():
        assert model(clip).shape == (2, 3)
    names = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert model.no_weight_decay() <= names
    plan = plan_parameters(model, OptimConfig(layer_decay=0.5))
    assert plan.keys() == {key for key, _ in model.named_parameters()}
    scales = sorted({treatment.lr_scale for treatment in plan.values()}, reverse=True)
    assert scales[0] == 1.0 and len(scales) > 2


@pytest.mark.parametrize("name", one_of_each_family())
def test_other_channels_and_no_classifier(name: str) -> None:
    model, clip = small_model(name, num_classes=0, in_chans=2)
    model.eval()
    with torch.no_grad():
        pooled = model(clip[:, :2])
        assert pooled.shape == (2, model.head_features) and model.num_classes == 0
        with pytest.raises(ValueError, match=r"\(B, 2, T, H, W\)"):
            model(clip)
        model.reset_classifier(3)
        torch.testing.assert_close(model(clip[:, :2]), model.get_classifier()(pooled))


@pytest.mark.parametrize("name", one_of_each_family())
def test_own_state_goes_round(name: str, tmp_path: Path) -> None:
    model, clip = small_model(name)
    model.eval()
    for file in ("weights.safetensors", "weights.pt"):
        stvid.save_model(model, tmp_path / file)
        again = stvid.load_model(tmp_path / file)
        assert again.default_protocol == model.default_protocol
        with torch.no_grad():
            torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("uniformer_xxs", "x3d_xxs") else pytest.param(name, marks=pytest.mark.slow)
        for name in native_models()
    ],
)
def test_export(name: str) -> None:
    model, clip = small_model(name)
    model.eval()
    program = torch.export.export(model, (clip,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        for batch in (clip, torch.randn(3, *clip.shape[1:])):
            torch.testing.assert_close(program.module()(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", one_of_each_family())
def test_bf16_autocast_and_channels_last(name: str) -> None:
    model, clip = small_model(name)
    model.eval()
    with torch.no_grad():
        expected = model(clip)
        channels_last(model)
        last = model(clip.contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(clip).float()
    assert (low - expected).abs().max() < 0.1 * expected.abs().max() + 0.05


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_clip_is_taken_and_smaller_ones_are_refused(name: str) -> None:
    model, _ = small_model(name)
    model.eval()
    family, variant = family_of(name)
    smallest = variant.min_clip or family.min_clip
    with torch.no_grad():
        assert model(torch.randn(1, 3, *smallest)).isfinite().all()
    for axis in range(3):
        size = [length - (place == axis) for place, length in enumerate(smallest)]
        with pytest.raises(ValueError, match=f"at least {smallest[0]} frames of {smallest[1]}x{smallest[2]} pixels"):
            model(torch.randn(1, 3, *size))
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        model(torch.randn(3, 4, 64, 64))


@pytest.mark.parametrize("name", one_of_each_family())
def test_features_and_head_are_the_model(name: str) -> None:
    model, clip = small_model(name)
    model.eval()
    with torch.no_grad():
        features = model.forward_features(clip)
        logits = model(clip)
        torch.testing.assert_close(model.forward_head(features), logits, rtol=0, atol=0)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_features)
        torch.testing.assert_close(model.get_classifier()(pooled), logits, rtol=0, atol=0)
    assert features.shape[1 if features.dim() == 5 else -1] == model.num_features
    cells = model.token_grid(clip.shape)
    if features.dim() == 5:
        assert features.shape[2:] == cells
    else:
        assert features.shape[1] == model.num_prefix_tokens + math.prod(cells)


@pytest.mark.parametrize("name", one_of_each_family())
def test_intermediate_results(name: str) -> None:
    model, clip = small_model(name)
    model.eval()
    with torch.no_grad():
        features, maps = model.forward_intermediates(clip)
        assert torch.equal(features, model.forward_features(clip))
        assert len(maps) == len(model.feature_info) == len(model.stages())
        for info, found in zip(model.feature_info, maps, strict=True):
            cells = tuple(-(-size // step) for size, step in zip(clip.shape[2:], info.reduction, strict=True))
            assert found.shape == (2, info.channels, *cells), info
            assert (info["num_chs"], info["reduction"], info["module"]) == (info.channels, info.reduction, info.module)
        last = features if features.dim() == 3 else features.flatten(2).transpose(1, 2)
        tokens = model.forward_intermediates(clip, [-1], output="NLC", intermediates_only=True)
        assert torch.equal(tokens[0], last[:, model.num_prefix_tokens if features.dim() == 3 else 0 :])
        assert torch.equal(tokens[0], maps[-1].flatten(2).transpose(1, 2))

        for indices in ([0], [-1, 0], [len(maps) - 1]):
            some = model.forward_intermediates(clip, indices, intermediates_only=True)
            assert all(torch.equal(one, maps[place]) for one, place in zip(some, indices, strict=True))
        some = model.forward_intermediates(clip, 2, intermediates_only=True)
        assert torch.equal(some[0], maps[-2]) and torch.equal(some[1], maps[-1])
    for wrong in (len(maps), -len(maps) - 1):
        with pytest.raises(ValueError, match=f"{len(maps)} intermediate results"):
            model.forward_intermediates(clip, [wrong])
    with pytest.raises(ValueError, match="choose NCTHW or NLC"):
        model.forward_intermediates(clip, output="NCHW")


@pytest.mark.parametrize("name", one_of_each_family())
def test_a_head_that_pools_by_attention(name: str, tmp_path: Path) -> None:
    model, clip = small_model(name, head="attentive")
    model.eval()
    names = {key for key, _ in model.named_parameters()}
    assert any(key.startswith("head.cross_attn.") for key in names)
    with torch.no_grad():
        assert model(clip).shape == (2, 7)
        if model.num_features <= 1024:  # the head of a wider one has 100 million weights
            stvid.save_model(model, tmp_path / "weights.safetensors")
            again = stvid.load_model(tmp_path / "weights.safetensors")
            torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)
        model.reset_classifier(3)
        assert model(clip).shape == (2, 3)


@pytest.mark.parametrize("name", one_of_each_family())
def test_layers_are_torch_s_own(name: str) -> None:
    """Tools of others (quantisation, LoRA) look for these types."""
    model, clip = small_model(name)
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv3d)]
    assert layers and {type(layer) for layer in layers} <= {nn.Linear, nn.Conv3d}
    with torch.no_grad():
        expected = model(clip)
        for path, layer in [pair for pair in model.named_modules() if pair[1] in layers]:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Watched(layer))
        torch.testing.assert_close(model(clip), expected)
    unseen = {path for path, part in model.named_modules() if isinstance(part, Watched) and not part.calls}
    assert unseen <= {"new_fc"}  # X-ViT's, which the published code does not use either


class Watched(nn.Module):
    """A wrapper as LoRA's: the layer inside is called by it alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.inner(x)


def test_a_mask_leaves_tokens_out() -> None:
    model, clip = small_model("vivit_b16x2")
    model.eval()
    cells = math.prod(model.token_grid(clip.shape))
    mask = torch.zeros(2, cells, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip, mask=mask), model.forward_features(clip))
        mask[:, ::2] = True
        some = model.forward_features(clip, mask=mask)
        assert some.shape == (2, 1 + cells // 2, model.num_features)
        changed = clip.clone()
        hidden = model.patch_embed.tubelet_size  # the first tubelet is left out: its pixels do not matter
        changed[:, :, : hidden[0], : hidden[1], : hidden[2]] = 9.0
        torch.testing.assert_close(model.forward_features(changed, mask=mask), some)
    with pytest.raises(ValueError, match="mask: each clip must leave out as many"):
        mask[0, 1] = True
        model.forward_features(clip, mask=mask)
    with pytest.raises(ValueError, match="mask: shape"):
        model.forward_features(clip, mask=mask[:, 1:])
    other, clip = small_model("uniformer_xxs")
    with pytest.raises(StvidError, match="UniFormer takes no mask"):
        other.forward_features(clip, mask=mask)


# The 3D CNNs take any size; these are odd ones, with the arguments of a tiny model.
TINY_CNN = {"depth": (1, 1, 1, 1)}
TINY_INFLATED = {"depth": (1, 2, 2, 1), "embed_dim": 32}
ANY_SIZE: list[tuple[str, dict[str, Any], tuple[int, int, int]]] = [
    ("r3d_18", TINY_CNN, (1, 33, 50)),
    ("mc3_18", TINY_CNN, (5, 33, 50)),
    ("r2plus1d_18", TINY_CNN, (3, 47, 33)),
    ("r2plus1d_50", TINY_CNN, (5, 33, 70)),
    ("ir_csn_50", TINY_CNN, (5, 33, 70)),
    ("ip_csn_50", TINY_CNN, (1, 70, 33)),
    ("c3d", {"embed_dim": (4, 4, 8, 8, 8), "hidden_dim": 16}, (19, 50, 33)),
    ("i3d_inception", {}, (5, 33, 70)),
    ("s3d", {}, (9, 35, 70)),
    ("c2d_r50", TINY_INFLATED, (3, 33, 70)),
    ("slow_r50", TINY_INFLATED, (1, 33, 70)),
    ("i3d_nl_r50", TINY_INFLATED, (5, 33, 70)),
    ("resnet3d_18", {**TINY_CNN, "shortcut_type": "A"}, (5, 33, 70)),
    ("resnext3d_50", TINY_CNN, (1, 70, 33)),
    ("p3d_63", TINY_CNN, (37, 33, 70)),
]


@pytest.mark.parametrize(("name", "options", "size"), ANY_SIZE, ids=[case[0] for case in ANY_SIZE])
def test_any_size_channels_and_classes(name: str, options: dict[str, Any], size: tuple[int, int, int]) -> None:
    model = stvid.create_model(
        name, num_classes=3, num_frames=size[0], img_size=(size[1], size[2]), in_chans=2, **options
    ).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    "name",
    ["r2plus1d_18", "c3d", *(pytest.param(name, marks=pytest.mark.slow) for name in ("i3d_nl_r50", "i3d_inception"))],
)
def test_one_graph_for_torch_compile(name: str) -> None:
    model, clip = small_model(name)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(clip), model(clip), rtol=1e-4, atol=1e-5)


def test_wrong_options_are_named() -> None:
    for name, options, message in [
        ("r3d_18", {"conv": "4d"}, "3d, 2d"),
        ("r3d_18", {"depth": (1, 1)}, "four stages"),
        ("resnet3d_18", {"shortcut_type": "C"}, "A or B"),
        ("resnet3d_18", {"cardinality": 32}, "bottlenecks"),
        ("i3d_nl_r50", {"nonlocal_mode": "max"}, "softmax, dot_product or gaussian"),
        ("p3d_63", {"block_kinds": ("D",)}, "A, B, C"),
    ]:
        with pytest.raises(ValueError, match=message):
            stvid.create_model(name, **options)
