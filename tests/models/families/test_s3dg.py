"""The parts of S3D-G alone: gates, norms that only shift, TensorFlow's names, outputs that hardly see the clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch

import stvid
from stvid.models.families.s3dg import GatedS3D

GOLDENS = Path(__file__).parent.parent.parent / "goldens"


def tiny(**options: Any) -> GatedS3D:
    torch.manual_seed(0)
    call = {"num_classes": 5, "num_frames": 16, "img_size": 64, "width": 0.25, **options}
    return stvid.create_model("s3dg", **call)  # type: ignore[return-value]


@pytest.mark.parametrize(("case", "options"), [("s3dg_tf__16x64", {}), ("s3dg_tf_k7__16x112", {"stem_kernel": 7})])
def test_the_output_of_a_loud_clip(case: str, options: dict[str, Any]) -> None:
    """The recorded weights let a clip of unit noise die away, so that its logits say little: this one is louder."""
    record = json.loads((GOLDENS / f"{case}.json").read_text())
    model = stvid.create_model("s3dg", img_size=record["input_shape"][2], **options)
    stvid.load_checkpoint(model, fill.fill_state(record["state"]))
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double().permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        logits = model.double().eval()(clip * record["scaled"]["input_scale"])[0].numpy()
    assert np.abs(logits - np.array(record["scaled"]["logits"])).max() < 1e-7 * record["scaled"]["logits_std"]


def test_the_variables_of_tensorflow_keep_their_names() -> None:
    record = json.loads((GOLDENS / "s3dg_tf__16x64.json").read_text())
    ends = {"kernel": "weights", "bias": "biases", "mean": "moving_mean", "var": "moving_variance"}
    state = {}
    for key, value in fill.fill_state(record["state"]).items():
        scope, _, end = key.rpartition("/")
        state[f"{scope}/{ends.get(end, end)}"] = value
    state |= {"global_step": np.array(7.0), "InceptionV1/Conv2d_2b_1x1/weights/Momentum": np.zeros(3)}
    model, other = stvid.create_model("s3dg"), stvid.create_model("s3dg")
    assert stvid.load_checkpoint(model, state).format == "TensorFlow slim"
    stvid.load_checkpoint(other, fill.fill_state(record["state"]))
    for key, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_the_gate_weighs_channels_by_their_means() -> None:
    model = tiny().double().eval()
    gate = model.conv3[1]
    fill.fill_module(gate)
    x = torch.randn(1, 48, 2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        weights = (gate.weigh.weight.flatten(1) @ x.mean((2, 3, 4)).flatten()).sigmoid()
        torch.testing.assert_close(gate(x), x * weights.view(1, -1, 1, 1, 1))


def test_new_kernels_in_time_change_nothing() -> None:
    conv = tiny().conv3[0].eval()
    x = torch.randn(1, 16, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), conv.spatial(x))


def test_norms_without_a_scale_are_folded() -> None:
    model = tiny().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            assert module.weight is None
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    fused = stvid.fuse(model)
    assert fused.fused is not None and not fused.fused.kept
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(clip), model(clip), rtol=1e-4, atol=1e-5)


def test_options() -> None:
    assert tiny().options_of(tiny(stem_kernel=7, in_chans=2).state_dict()) == {"stem_kernel": 7, "in_chans": 2}
    assert tiny().options_of({"fc.weight": torch.zeros(1)}) == {}
    with pytest.raises(ValueError, match="stem_kernel 4: must be 1, 3, 5 or 7"):
        tiny(stem_kernel=4)
    with pytest.raises(ValueError, match="width 0: must be above 0"):
        tiny(width=0)
