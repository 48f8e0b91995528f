"""R3D, MC3, R(2+1)D and CSN: published layouts and what comes with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.errors import CheckpointError

TINY = {"depth": (1, 1, 1, 1)}


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_torchvision_models_compute_the_same_at_an_odd_size(name: str) -> None:
    video = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(0)
    official = getattr(video, name)(num_classes=5).eval()
    for module in official.modules():  # so that norms, and their epsilon, matter
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_var.uniform_(1e-3, 0.1)
    model = stvid.create_model(name, num_classes=5)
    assert stvid.load_checkpoint(model, official.state_dict()).format == "torchvision"
    clip = torch.randn(1, 3, 5, 38, 50)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(clip), official(clip), rtol=1e-4, atol=1e-4)


def to_pytorchvideo(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keys of a CSN as PyTorchVideo names them."""
    rules = [
        (r"^stem\.0\.", "blocks.0.conv."),
        (r"^stem\.1\.", "blocks.0.norm."),
        (r"^head\.fc\.", "blocks.5.proj."),
        (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"blocks.\1.res_blocks.\2.branch1_conv."),
        (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"blocks.\1.res_blocks.\2.branch1_norm."),
        *(
            (rf"^layer(\d)\.(\d+)\.conv{i + 1}\.{j}\.", rf"blocks.\1.res_blocks.\2.branch2.{part}_{'abc'[i]}.")
            for i in range(3)
            for j, part in enumerate(("conv", "norm"))
        ),
    ]
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def test_a_layout_brings_its_epsilon_and_window(tmp_path: Path) -> None:
    options = {"num_classes": 5, "num_frames": 4, "img_size": 32, **TINY}
    state = stvid.create_model("ir_csn_50", **options).state_dict()
    clip = torch.randn(1, 3, 4, 288, 288)  # a map larger than PyTorchVideo's window
    model = stvid.create_model("ir_csn_50", **options).eval()
    assert model.norm_eps == 1e-3 and model.head.window is None
    stvid.load_checkpoint(model, {re.sub(r"^head\.fc", "fc", key): value for key, value in state.items()})
    with torch.no_grad():
        vmz = model(clip)
    assert stvid.load_checkpoint(model, {"model_state": to_pytorchvideo(state)}).format == "PyTorchVideo"
    assert model.norm_eps == model.layer1[0].conv1[1].eps == 1e-5 and model.head.window == (4, 7, 7)
    with torch.no_grad():
        pytorchvideo = model(clip)
    assert not torch.allclose(vmz, pytorchvideo)

    stvid.save_model(model, tmp_path / "own.pt")
    other = stvid.create_model("ir_csn_50", **options).eval()
    stvid.load_checkpoint(other, tmp_path / "own.pt")
    for again in (other, stvid.load_model(tmp_path / "own.pt")):
        with torch.no_grad():
            torch.testing.assert_close(again(clip), pytorchvideo, rtol=0, atol=0)

    report = stvid.load_checkpoint(model, {re.sub(r"^head\.fc", "fc", key): value for key, value in state.items()})
    assert report.format == "VMZ"
    with torch.no_grad():
        torch.testing.assert_close(model(clip), vmz, rtol=0, atol=0)


def test_a_failed_load_changes_no_setting() -> None:
    model = stvid.create_model("ir_csn_50", num_classes=5, **TINY)
    state = to_pytorchvideo(model.state_dict())
    state.pop("blocks.0.norm.weight")
    with pytest.raises(CheckpointError, match=r"stem\.1\.weight"):
        stvid.load_checkpoint(model, state)
    assert model.norm_eps == 1e-3 and model.head.window is None


def test_one_clip_is_computed_as_in_a_batch() -> None:
    """On CPUs the way of a convolution depends on the shape, the layout and on whether anything is traced."""
    torch.manual_seed(0)
    model = stvid.create_model("r3d_18", num_classes=3, **TINY).eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = model.double()(clips.double()).float()
        model.float()
        last = clips.contiguous(memory_format=torch.channels_last_3d)
        traced = torch.jit.trace(model, clips[:1], check_trace=False)
        for found in (model(clips), torch.cat([model(clip[None]) for clip in clips]), model(last), traced(clips)):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_operations_are_counted_on_the_cpu_too() -> None:
    counts = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = stvid.create_model("ip_csn_50", num_classes=3, **TINY).eval()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(torch.zeros(1, 3, 4, 32, 32))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
