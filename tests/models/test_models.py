"""What every registered model must satisfy, and what the published ones must reproduce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.config import OptimConfig
from stvid.engine.optim import plan_parameters
from stvid.models.base import VideoModel
from stvid.models.kernels import channels_last
from stvid.models.registry import model_info

GOLDENS = Path(__file__).parent.parent / "goldens"
# The smallest clip (frames, side) on which a family shows all its parts.
SMALL = {
    "c2d": (4, 32),
    "c3d": (16, 16),
    "i3d": (8, 32),
    "ip": (4, 32),
    "ir": (4, 32),
    "mc3": (4, 32),
    "p3d": (16, 32),
    "r2plus1d": (4, 32),
    "r3d": (4, 32),
    "resnet3d": (4, 32),
    "resnext3d": (4, 32),
    "s3d": (8, 32),
    "slow": (4, 32),
    "swin3d": (4, 64),
    "timesformer": (4, 32),
    "uniformer": (4, 64),
    "vivit": (4, 32),
    "xvit": (4, 32),
}
# The smallest clip (frames, height, width) that a family takes.
SMALLEST = {
    "c2d": (2, 32, 32),
    "c3d": (16, 16, 16),
    "i3d": (2, 32, 32),
    "i3d_inception": (1, 32, 32),
    "ip": (1, 32, 32),
    "ir": (1, 32, 32),
    "mc3": (1, 16, 16),
    "p3d": (16, 32, 32),
    "r2plus1d": (1, 16, 16),
    "r2plus1d_152": (1, 32, 32),
    "r2plus1d_50": (1, 32, 32),
    "r3d": (1, 16, 16),
    "resnet3d": (1, 32, 32),
    "resnext3d": (1, 32, 32),
    "s3d": (5, 32, 32),
    "slow": (1, 32, 32),
    "swin3d": (1, 1, 1),
    "timesformer": (1, 16, 16),
    "uniformer": (1, 32, 32),
    "vivit": (2, 16, 16),
    "xvit": (1, 16, 16),
}
# Sizes that keep the tests over all models quick; the published ones are built in test_published_size.
TINY_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 4}
TINY_RESNET = {"depth": (1, 2, 1, 1)}
TINY_INFLATED = {"depth": (1, 2, 2, 1), "embed_dim": 32}
SHRINK: dict[str, dict[str, Any]] = {
    "c2d": TINY_INFLATED,
    "c3d": {"embed_dim": (8, 8, 16, 16, 16), "hidden_dim": 32},
    "i3d_nl_r101": TINY_INFLATED,
    "i3d_nl_r50": TINY_INFLATED,
    "i3d_r50": TINY_INFLATED,
    "ip": TINY_RESNET,
    "ir": TINY_RESNET,
    "mc3": TINY_RESNET,
    "p3d": TINY_RESNET,
    "r2plus1d": TINY_RESNET,
    "r3d": TINY_RESNET,
    "resnet3d": TINY_RESNET,
    "resnext3d": TINY_RESNET,
    "slow": TINY_INFLATED,
    "swin3d": {"depth": (2, 2, 2, 2), "embed_dim": 16, "num_heads": (1, 2, 2, 4)},
    "timesformer": TINY_VIT,
    "vivit": {**TINY_VIT, "temporal_depth": 2},
    "xvit": {**TINY_VIT, "num_segments": 3},
}
# Variants that are, at these sizes, the same network as a shallower one: once is enough in the default run.
REPEATED = {
    "i3d_nl_r101",
    "ip_csn_101",
    "ip_csn_152",
    "ir_csn_101",
    "ir_csn_152",
    "p3d_199",
    "resnet3d_101",
    "resnet3d_34",
    "resnext3d_101",
}
MODELS = [pytest.param(name, marks=pytest.mark.slow) if name in REPEATED else name for name in stvid.list_models()]
# Millions by which a printed parameter count may differ: papers that print one number for several models.
LOOSE_PARAMS = {"timesformer": 0.7, "xvit": 2.2}
# By how much of itself a printed count of multiply-adds may differ: PyTorchVideo's zoo counts the norms too.
LOOSE_GFLOPS = {"c2d_r50": 0.02, "i3d_r50": 0.02, "ir_csn_101": 0.03, "r2plus1d_50": 0.02}
# Goldens whose call is not in the file: ablations that are options here.
OPTIONS: dict[str, dict[str, Any]] = {
    "uniformer_s_split__16x64": {"split_attention": True},
    "uniformer_s_std__16x64": {"temporal_embed": True},
}


# Goldens that take more than a few seconds on one thread; each family keeps a quick one.
SLOW_GOLDENS = {
    "hf_vivit_b_16x2__16x64",
    "i3d_inception_v1__24x224",
    "ip_csn_152__16x112",
    "kh_resnet3d_18__16x112",
    "kh_resnet3d_34__16x112",
    "kh_resnet3d_50__16x112",
    "p3d_199__16x160",
    "ptv_c2d_r50__8x224",
    "ptv_csn_r101__32x224",
    "ptv_i3d_r50__8x224",
    "ptv_r2plus1d_r50__16x224",
    "ptv_slow_r50__8x224",
    "r2plus1d_18__16x112",
    "r2plus1d_34__16x64",
    "r2plus1d_34__8x112",
    "sf_i3d_r50__8x112",
    "swin3d_b__16x112",
    "swin3d_s__16x112",
    "swin3d_t__32x112",
    "timesformer_divided_8x224__full",
    "timesformer_divided_8x224__resized_4x96",
    "tv_mc3_18__16x112",
    "tv_r3d_18__16x112",
    "tv_swin3d_b__16x112",
    "tv_swin3d_s__16x112",
    "vivit_b_16x2_fe_avgpool__16x64",
    "vivit_b_16x2_fe_model2__16x64",
    "vivit_b_16x2_fe_model2__full_32x224",
    "vivit_b_16x2_model1__full_32x224",
    "vivit_b_16x2_model4__16x64",
    "xvit_b16_8x224__full",
}


def golden(case: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{case}.json").read_text())


def golden_cases() -> list[Any]:
    cases = sorted(path.stem for path in GOLDENS.glob("*.json"))
    return [pytest.param(case, marks=pytest.mark.slow) if case in SLOW_GOLDENS else case for case in cases]


def golden_call(case: str) -> tuple[str, dict[str, Any]]:
    record = golden(case)
    if record.get("create"):
        call = dict(record["create"]["kwargs"])
        size = call["img_size"]
        call["img_size"] = size if isinstance(size, int) else tuple(size)
        return record["create"]["name"], call
    shape = record["input_shape"]
    return "uniformer_s", {"num_classes": record["num_classes"], "num_frames": shape[2], **OPTIONS[case]}


def golden_state(case: str) -> dict[str, Any]:
    """The official state, as a checkpoint of the authors would hold it."""
    record = golden(case)
    integers = {key: np.array(0) for key in record["int_keys"] if key.endswith("num_batches_tracked")}
    floats = {key: shape for key, shape in record["state"].items() if key not in record["int_keys"]}
    return {**integers, **fill.fill_state(floats)}


def small_model(name: str, num_classes: int = 7, **options: Any) -> tuple[VideoModel, torch.Tensor]:
    family = name.split("_")[0]
    frames, side = SMALL[family]
    torch.manual_seed(0)
    options = {**SHRINK.get(name, SHRINK.get(family, {})), **options}
    model = stvid.create_model(name, num_classes=num_classes, num_frames=frames, img_size=side, **options)
    return model, torch.randn(2, 3, frames, side, side)


def clip_axes(record: dict[str, Any]) -> list[int]:
    """The permutation from the official code's layout of a clip to ours."""
    return [record["layout"].split(",").index(axis) for axis in "NCTHW"]


@pytest.mark.parametrize("case", golden_cases())
def test_golden_logits(case: str) -> None:
    record = golden(case)
    name, call = golden_call(case)
    if record["logits"] is None:  # a model too large to run here: its parameters only
        with torch.device("meta"):
            model = stvid.create_model(name, **call)
        assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]
        return
    model = stvid.create_model(name, **call)
    state = golden_state(case)
    report = stvid.load_checkpoint(model, {"model_state": state})
    assert report.format in (*model_info(name).formats, "stvid")
    if not report.resized:
        assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double().permute(clip_axes(record))
    with torch.no_grad():
        logits = model.double().eval()(clip).reshape(-1).numpy()
    tolerance = 1e-6 if case.startswith("hf_vivit") else 1e-7
    assert np.abs(logits - np.array(record["logits"])).max() < tolerance * record["logits_std"]


@pytest.mark.parametrize("case", golden_cases())
def test_golden_multiply_adds(case: str) -> None:
    record = golden(case)
    name, call = golden_call(case)
    shape = [record["full_input_shape"][axis] for axis in clip_axes(record)]
    with torch.device("meta"):
        model = stvid.create_model(name, **{**call, "num_frames": shape[2], "img_size": tuple(shape[3:])}).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(shape))
    assert counter.get_total_flops() / 2e9 == pytest.approx(record["gmacs"], rel=1e-3)


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


@pytest.mark.parametrize("name", stvid.list_models())
def test_published_size(name: str) -> None:
    info = model_info(name)
    with torch.device("meta"):
        model = stvid.create_model(name)
        params = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        if info.gflops is not None:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.eval()(torch.empty(1, 3, info.protocol.frames, info.protocol.crop, info.protocol.crop))
            assert counter.get_total_flops() / 2e9 == pytest.approx(info.gflops, rel=LOOSE_GFLOPS.get(name, 0.01))
    if info.params is not None:
        assert params == pytest.approx(info.params, abs=LOOSE_PARAMS.get(name.split("_")[0], 0.06))
    assert model.default_protocol == info.protocol


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
    assert not [key for key, gradient in plain.items() if not gradient.abs().sum() > 0]
    model.set_grad_checkpointing()
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[key], rtol=1e-4, atol=1e-5 * float(plain[key].abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_methods_that_training_relies_on(name: str) -> None:
    model, clip = small_model(name)
    model.eval()
    features = model.forward_features(clip)
    assert model.num_features in features.shape
    assert model.get_classifier().weight.shape == (7, model.num_features)
    model.reset_classifier(3)
    with torch.no_grad():
        assert model(clip).shape == (2, 3)
    names = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert model.no_weight_decay() <= names
    plan = plan_parameters(model, OptimConfig(layer_decay=0.5))
    assert plan.keys() == {key for key, _ in model.named_parameters()}
    scales = sorted({treatment.lr_scale for treatment in plan.values()}, reverse=True)
    assert scales[0] == 1.0 and len(scales) > 2


@pytest.mark.parametrize("name", MODELS)
def test_other_channels_and_no_classifier(name: str) -> None:
    model, clip = small_model(name, num_classes=0, in_chans=2)
    model.eval()
    with torch.no_grad():
        pooled = model(clip[:, :2])
        assert pooled.shape == (2, model.num_features) and model.num_classes == 0
        with pytest.raises(ValueError, match=r"\(B, 2, T, H, W\)"):
            model(clip)
        model.reset_classifier(3)
        torch.testing.assert_close(model(clip[:, :2]), model.get_classifier()(pooled))


@pytest.mark.parametrize("name", MODELS)
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
    [name if name.endswith("xxs") else pytest.param(name, marks=pytest.mark.slow) for name in stvid.list_models()],
)
def test_export(name: str) -> None:
    model, clip = small_model(name)
    model.eval()
    program = torch.export.export(model, (clip,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        for batch in (clip, torch.randn(3, *clip.shape[1:])):
            torch.testing.assert_close(program.module()(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
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
    smallest = SMALLEST.get(name, SMALLEST[name.split("_")[0]])
    with torch.no_grad():
        assert model(torch.randn(1, 3, *smallest)).isfinite().all()
    for axis in range(3):
        size = [length - (place == axis) for place, length in enumerate(smallest)]
        with pytest.raises(ValueError, match=f"at least {smallest[0]} frames of {smallest[1]}x{smallest[2]} pixels"):
            model(torch.randn(1, 3, *size))
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        model(torch.randn(3, 4, 64, 64))
