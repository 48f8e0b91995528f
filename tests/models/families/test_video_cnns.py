"""What the 3D CNNs share besides test_models.py: odd sizes, and the settings that come with a published layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.errors import CheckpointError
from stvid.models.families.i3d_resnet import NonLocal
from stvid.models.heads import mean_of_windows

GOLDENS = Path(__file__).parents[2] / "goldens"
TINY = {"depth": (1, 1, 1, 1)}
TINY_INFLATED = {"depth": (1, 2, 2, 1), "embed_dim": 32}
ANY_SIZE: list[tuple[str, dict[str, Any], tuple[int, int, int]]] = [
    ("r3d_18", TINY, (1, 33, 50)),
    ("mc3_18", TINY, (5, 33, 50)),
    ("r2plus1d_18", TINY, (3, 47, 33)),
    ("r2plus1d_50", TINY, (5, 33, 70)),
    ("ir_csn_50", TINY, (5, 33, 70)),
    ("ip_csn_50", TINY, (1, 70, 33)),
    ("c3d", {"embed_dim": (4, 4, 8, 8, 8), "hidden_dim": 16}, (19, 50, 33)),
    ("i3d_inception", {}, (5, 33, 70)),
    ("s3d", {}, (9, 35, 70)),
    ("c2d_r50", TINY_INFLATED, (3, 33, 70)),
    ("slow_r50", TINY_INFLATED, (1, 33, 70)),
    ("i3d_nl_r50", TINY_INFLATED, (5, 33, 70)),
    ("resnet3d_18", {**TINY, "shortcut_type": "A"}, (5, 33, 70)),
    ("resnext3d_50", TINY, (1, 70, 33)),
    ("p3d_63", TINY, (37, 33, 70)),
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


def test_window_of_the_inflated_resnets() -> None:
    with torch.device("meta"):
        assert stvid.create_model("i3d_r50").head.window == (4, 7, 7)  # 256 pixels: trained at 224
        assert stvid.create_model("i3d_r50", num_frames=16, img_size=112).head.window == (8, 3, 3)
        assert stvid.create_model("slow_r50", num_frames=4, img_size=(112, 160)).head.window == (4, 3, 3)
        assert stvid.create_model("slow_r50", pool_size=(1, 2, 2)).head.window == (1, 2, 2)


@pytest.mark.parametrize("mode", ["softmax", "dot_product"])
def test_nonlocal_block_golden(mode: str) -> None:
    record = json.loads((GOLDENS / "blocks" / f"nonlocal_{mode}_block__4x6.json").read_text())
    state = fill.fill_state({key: shape for key, shape in record["state"].items() if key not in record["int_keys"]})
    names = {key: key.replace("conv_", "").replace("bn.", "norm.") for key in state}
    block = NonLocal(64, mode=mode).eval()
    loaded = block.load_state_dict({names[key]: torch.from_numpy(value) for key, value in state.items()}, strict=False)
    assert set(loaded.missing_keys) <= {"norm.num_batches_tracked"} and not loaded.unexpected_keys
    with torch.no_grad():
        out = block.double()(torch.from_numpy(fill.make_input(record["input_shape"])).double()).flatten()[:400].numpy()
    assert np.abs(out - np.array(record["logits"])).max() < 1e-7 * record["logits_std"]


def test_mean_of_windows() -> None:
    x = torch.arange(3.0).reshape(1, 1, 3, 1, 1)
    assert mean_of_windows(x, None).item() == 1.0
    assert mean_of_windows(x, (5, 7, 7)).item() == 1.0
    y = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 3, 1, 1)
    assert mean_of_windows(y, (2, 7, 7)).item() == 0.25  # windows (1, 0) and (0, 0): the first position weighs half


@pytest.mark.parametrize(("built", "loaded"), [("A", "B"), ("B", "A")])
def test_shortcuts_of_the_other_type_are_named(built: str, loaded: str) -> None:
    source = stvid.create_model("resnet3d_18", num_classes=5, shortcut_type=loaded, **TINY).state_dict()
    source = {re.sub(r"^head\.fc", "fc", key): value for key, value in source.items()}
    model = stvid.create_model("resnet3d_18", num_classes=5, shortcut_type=built, **TINY)
    with pytest.raises(CheckpointError, match=f"shortcut_type='{loaded}'"):
        stvid.load_checkpoint(model, source)


@pytest.mark.parametrize("shortcut_type", ["A", "B"])
def test_published_weights_bring_their_shortcuts(shortcut_type: Any, tmp_path: Path) -> None:
    source = stvid.create_model("resnet3d_18", num_classes=5, shortcut_type=shortcut_type).eval()
    state = {"module." + re.sub(r"^head\.fc", "fc", key): value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    model = stvid.load_model(tmp_path / "published.pth", name="resnet3d_18")
    assert model.shortcut_type == shortcut_type and model.num_classes == 5
    clip = torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), source(clip), rtol=0, atol=0)
    stvid.save_model(model, tmp_path / "own.safetensors")
    assert stvid.load_model(tmp_path / "own.safetensors").shortcut_type == shortcut_type


def test_weights_of_the_flow_streams(tmp_path: Path) -> None:
    record = json.loads((GOLDENS / "i3d_inception_v1__16x224.json").read_text())
    state = {key: torch.rand(shape) for key, shape in record["state"].items() if key not in record["int_keys"]}
    stem = "Conv3d_1a_7x7.conv3d.weight"
    state[stem] = state[stem][:, :2].contiguous()
    torch.save(state, tmp_path / "flow_imagenet.pt")
    for model in (
        stvid.create_model("i3d_inception", in_chans=2, checkpoint=tmp_path / "flow_imagenet.pt"),
        stvid.load_model(tmp_path / "flow_imagenet.pt", name="i3d_inception"),
    ):
        assert torch.equal(model.conv1.conv.weight, state[stem])
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 2, 8, 32, 32)).shape == (1, 400)
    state = stvid.create_model("p3d_63", in_chans=2, **TINY).state_dict()
    assert stvid.create_model("p3d_63", **TINY).options_of({"conv1_custom.weight": state["conv1.weight"]}) == {
        "in_chans": 2
    }


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


@pytest.mark.parametrize("name", ["r2plus1d_18", "i3d_nl_r50", "i3d_inception", "c3d"])
def test_one_graph_for_torch_compile(name: str) -> None:
    options, size = next((options, size) for case, options, size in ANY_SIZE if case == name)
    model = stvid.create_model(name, num_classes=3, num_frames=size[0], img_size=size[1:], **options)
    clip = torch.randn(2, 3, *size)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(clip), model(clip), rtol=1e-4, atol=1e-5)


def test_operations_are_counted_on_the_cpu_too() -> None:
    counts = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = stvid.create_model("ip_csn_50", num_classes=3, **TINY).eval()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(torch.zeros(1, 3, 4, 32, 32))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_wrong_options_are_named() -> None:
    for name, options, message in [
        ("r3d_18", {"conv": "4d"}, "3d, 2d"),
        ("r3d_18", {"depth": (1, 1)}, "four stages"),
        ("resnet3d_18", {"shortcut_type": "C"}, "A or B"),
        ("resnet3d_18", {"cardinality": 32}, "bottlenecks"),
        ("i3d_nl_r50", {"nonlocal_mode": "max"}, "softmax or dot_product"),
        ("p3d_63", {"block_kinds": ("D",)}, "A, B, C"),
    ]:
        with pytest.raises(ValueError, match=message):
            stvid.create_model(name, **options)
