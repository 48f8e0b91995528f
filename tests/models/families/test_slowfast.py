"""The parts of SlowFast alone: two pathways, the frames of the slow one, laterals, and files of four kinds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stvid
from stvid.errors import CheckpointError
from stvid.models.families.slowfast import SlowFast, slow_indices

TINY: dict[str, Any] = {"depth": (1, 2, 2, 1), "embed_dim": 64, "channel_ratio": 4, "num_classes": 5}
needs_pytorchvideo = pytest.mark.skipif(
    importlib.util.find_spec("pytorchvideo") is None, reason="pytorchvideo is not installed"
)


def tiny(name: str = "slowfast_r50_8x8", **options: Any) -> SlowFast:
    torch.manual_seed(0)
    return stvid.create_model(name, **{**TINY, "num_frames": 16, "img_size": 64, **options})  # type: ignore[return-value]


def filled(model: SlowFast) -> SlowFast:
    fill.fill_module(model)
    return model.double().eval()


@pytest.mark.parametrize("alpha", [2, 4, 8, 16])
def test_the_slow_frames_are_those_of_slowfast(alpha: int) -> None:
    for count in range(1, 257):
        frames = alpha * count
        assert slow_indices(frames, count) == torch.linspace(0, frames - 1, count).long().tolist()


def test_both_pathways_see_their_frames() -> None:
    model = filled(tiny())
    clip = torch.randn(1, 3, 16, 64, 64, dtype=torch.float64)
    assert torch.equal(model.slow_clip(clip), clip[:, :, [0, 5, 10, 15]])
    strided = filled(tiny(slow_frames="stride"))
    assert torch.equal(strided.slow_clip(clip), clip[:, :, [0, 4, 8, 12]])
    with torch.no_grad():
        features = model.forward_features(clip)
        changed = clip.clone()
        changed[:, :, 7] += 1.0  # only the fast pathway sees it
        assert not torch.allclose(model.forward_features(changed), features)


def test_the_features_are_the_slow_maps_and_the_mean_of_the_fast_ones() -> None:
    model = filled(tiny())
    seen: dict[str, Tensor] = {}
    model.layer4.slow.register_forward_hook(lambda _, __, out: seen.__setitem__("slow", out))
    model.layer4.fast.register_forward_hook(lambda _, __, out: seen.__setitem__("fast", out))
    clip = torch.randn(1, 3, 16, 96, 64, dtype=torch.float64)
    slow, fast = [clip[:, :, [0, 5, 10, 15]], clip]
    with torch.no_grad():
        features, maps = model.forward_intermediates(clip)
        slow, fast = model.stem(slow, fast)
        for number, layer in enumerate((model.layer1, model.layer2, model.layer3)):
            slow, fast = layer(slow, fast)
            torch.testing.assert_close(maps[number], slow)
        last_slow, last_fast = model.layer4.slow(slow), model.layer4.fast(fast)
        mean = torch.stack([last_fast[:, :, start : start + 4].mean(2) for start in (0, 4, 8, 12)], 2)
        torch.testing.assert_close(features, torch.cat((last_slow, mean), 1))
        # The head averages both pathways over windows of 2x2 cells of a map of 3x2.
        windows = [F.avg_pool3d(x, (x.shape[2], 2, 2), 1) for x in (last_slow, last_fast)]
        pooled = torch.cat([x.mean((2, 3, 4)) for x in windows], 1)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)


def test_other_numbers_of_frames_are_refused() -> None:
    model = tiny().eval()
    with pytest.raises(ValueError, match=r"multiple of 4 frames \(alpha\), not 10"):
        model(torch.randn(1, 3, 10, 64, 64))
    with pytest.raises(ValueError, match="num_frames 18: SlowFast takes a multiple of 4 frames"):
        tiny(num_frames=18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": (1, 1)}, r"four stages: depth \(1, 1\)"),
        ({"temporal_blocks": (3,)}, "temporal_blocks"),
        ({"slow_frames": "all"}, "even or stride"),
        ({"embed_dim": 40}, "multiple of 4"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_temporal_blocks_limit_the_kernels_in_time() -> None:
    kernels = [
        block.conv1.kernel_size[0] for block in tiny(depth=(1, 1, 4, 1), temporal_blocks=(1, 1, 2, 0)).layer3.slow
    ]
    assert kernels == [3, 3, 1, 1]


# --- published files --------------------------------------------------------------------------------------------------


def official(model: SlowFast) -> dict[str, Tensor]:
    """The model's state under PySlowFast's keys."""
    state = {}
    for key, value in model.state_dict().items():
        name, _, rest = key.partition(".")
        stage = 1 if name == "stem" else int(name[5]) + 1 if name.startswith("layer") else 0
        if key.startswith("head."):
            new = key.replace("head.fc", "head.projection")
        elif rest.startswith("lateral."):
            new = f"s{stage}_fuse." + rest.replace("lateral.0", "conv_f2s").replace("lateral.1", "bn")
        else:
            side, _, rest = rest.partition(".")
            number, _, rest = rest.partition(".")
            pathway = f"s{stage}.pathway{int(side == 'fast')}"
            if stage == 1:
                new = f"{pathway}_stem.{'conv' if number == '0' else 'bn'}.{rest}"
            else:
                layer, _, rest = rest.partition(".")
                if layer == "downsample":
                    place, _, rest = rest.partition(".")
                    new = f"{pathway}_res{number}.{'branch1' if place == '0' else 'branch1_bn'}.{rest}"
                else:
                    letter = "abc"[int(layer[-1]) - 1]
                    new = f"{pathway}_res{number}.branch2.{letter}{'_bn' if layer[:4] == 'norm' else ''}.{rest}"
        state[new] = value
    return state


def caffe2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """PySlowFast's keys as the blobs of its model zoo."""
    tails = {"running_mean": "rm", "running_var": "riv"}
    blobs = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[-1] == "num_batches_tracked":
            continue
        norm = parts[-2].endswith("bn")
        tail = tails.get(parts[-1], "b" if parts[-1] == "bias" else "s" if norm else "w")
        if parts[0] == "head":
            blob = f"pred_{tail}"
        elif parts[0].endswith("_fuse"):
            last = {"s1": "pool1", "s2": "res2_0_branch2c_bn", "s3": "res3_1_branch2c_bn", "s4": "res4_1_branch2c_bn"}
            blob = f"t_{last[parts[0][:2]]}_subsample_{'bn_' if norm else ''}{tail}"
        else:
            fast = "t_" if "pathway1" in parts[1] else ""
            if parts[0] == "s1":
                blob = f"{fast}{'res_conv1_bn' if norm else 'conv1'}_{tail}"
            else:
                block = f"{fast}res{parts[0][1]}_{parts[1].rpartition('res')[2]}"
                branch = parts[2] if parts[2].startswith("branch1") else f"branch2{parts[3]}"
                blob = f"{block}_{branch}_{tail}"
        blobs[blob] = value
    return {**blobs, "lr": torch.zeros(1), "conv1_w_momentum": torch.zeros(1)}


def test_slowfasts_files_of_both_kinds_load() -> None:
    model = filled(tiny())
    clip = torch.randn(1, 3, 16, 64, 64, dtype=torch.float64)
    for state, layout in ((official(model), "SlowFast"), (caffe2(official(model)), "SlowFast Caffe2")):
        other = tiny()
        assert stvid.load_checkpoint(other, {"model_state": state}).format == layout
        with torch.no_grad():
            torch.testing.assert_close(other.double().eval()(clip), model(clip), rtol=0, atol=0)


def mmaction(model: SlowFast) -> dict[str, Tensor]:
    """The model's state under mmaction2's keys, the fast channels first in the head."""
    state = {}
    for key, value in model.state_dict().items():
        name, _, rest = key.partition(".")
        if name == "head":
            slow = 8 * model.layer1.slow[0].norm3.num_features
            state[key.replace("head.fc", "cls_head.fc_cls")] = (
                torch.cat((value[:, slow:], value[:, :slow]), 1) if value.dim() == 2 else value
            )
            continue
        side, _, rest = rest.partition(".")
        if side == "lateral":
            place = "conv1" if name == "stem" else name
            new = f"slow_path.{place}_lateral.{rest.replace('0.', 'conv.')}"
        elif name == "stem":
            new = f"{side}_path.conv1.{rest.replace('0.', 'conv.').replace('1.', 'bn.', 1)}"
        else:
            number, layer, *rest_parts = rest.split(".")
            if layer == "downsample":
                layer, kind = "downsample", "conv" if rest_parts.pop(0) == "0" else "bn"
            else:
                layer, kind = f"conv{layer[-1]}", "conv" if layer.startswith("conv") else "bn"
            new = f"{side}_path.{name}.{number}.{layer}.{kind}.{'.'.join(rest_parts)}"
        state[f"backbone.{new}"] = value
    return state


def test_a_file_of_mmaction2_brings_its_own_function(tmp_path: Path) -> None:
    options = {"lateral_norm": False, "slow_frames": "stride", "pool_size": "all", "fast_depth": (1, 1, 1, 1)}
    model = filled(tiny(fusion_kernel=5, **options))
    clip = torch.randn(1, 3, 16, 96, 64, dtype=torch.float64)
    torch.save({"state_dict": mmaction(model)}, tmp_path / "mma.pth")
    with pytest.raises(CheckpointError, match=r"missing .*lateral"):
        stvid.load_checkpoint(tiny(), tmp_path / "mma.pth")
    found = tiny().options_of(mmaction(model))
    assert found == {"lateral_norm": False, "fusion_kernel": 5, "fast_depth": (1, 1, 1, 1)}
    other = tiny(**found)
    assert stvid.load_checkpoint(other, tmp_path / "mma.pth").format == "mmaction2"
    assert other.slow_frames == "stride" and other.head.window is None  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(other.double().eval()(clip), model(clip), rtol=1e-12, atol=1e-12)
    stvid.save_model(other.float(), tmp_path / "own.pt")
    again = stvid.load_model(tmp_path / "own.pt")
    assert again.slow_frames == "stride" and again.pool_size == "all"
    with torch.no_grad():
        torch.testing.assert_close(again(clip.float()), other(clip.float()), rtol=0, atol=0)


def test_options_are_read_off_a_file() -> None:
    built = tiny(depth=(1, 1, 3, 1), temporal_blocks=(1, 1, 3, 1), in_chans=2, nonlocal_blocks=((), (), (1,), ()))
    found = tiny(temporal_blocks=(1, 1, 1, 1)).options_of(built.state_dict())
    assert found == {
        "depth": (1, 1, 3, 1),
        "temporal_blocks": (1, 1, 3, 1),
        "in_chans": 2,
        "nonlocal_blocks": ((), (), (1,), ()),
    }
    assert tiny().options_of({"fc.weight": torch.zeros(1)}) == {}


@needs_pytorchvideo
def test_the_logits_are_pytorchvideos() -> None:
    from pytorchvideo.models.slowfast import create_slowfast

    network = create_slowfast(
        model_depth=50,
        model_num_class=5,
        slowfast_conv_channel_fusion_ratio=2,
        slowfast_channel_reduction_ratio=(4,),
        stem_dim_outs=(16, 4),
        head_pool_kernel_sizes=((4, 2, 2), (16, 2, 2)),
    )
    fill.fill_module(network).double().eval()
    model = tiny(depth=(3, 4, 6, 3)).eval()
    report = stvid.load_checkpoint(model, {"model_state": network.state_dict()})
    assert report.format == "PyTorchVideo" and model.pool_size == (4, 7, 7)
    model.double().head.window = (4, 2, 2)  # type: ignore[assignment]
    clip = torch.randn(1, 3, 16, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = network([clip[:, :, [0, 5, 10, 15]], clip])
        torch.testing.assert_close(model(clip), expected, rtol=1e-9, atol=1e-9)
