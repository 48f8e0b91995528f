"""Causal layers: no frame sees a later one, and a stream in chunks of any size gives the logits of one pass."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.errors import ConfigError, StvidError
from stvid.inflation.model import InflatedModel
from stvid.inflation.options import InflationOptions
from stvid.inflation.temporal import TemporalShift, kernels
from stvid.models.streaming import StreamState

FRAMES = 7
CHUNKS = [(1,) * FRAMES, (FRAMES,), (3, 1, 2, 1), (1, 6), (5, 2)]
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("timm:test_resnet", {"temporal": "none"}),
    ("timm:test_resnet", {"temporal": "shift"}),
    ("timm:test_resnet", {"temporal": "shift", "shift_place": "in_place", "padding": "zeros", "shift_div": 3}),
    ("timm:test_resnet", {"temporal": "conv"}),
    ("timm:test_resnet", {"temporal": "conv", "kernel_size": 4, "init": "average"}),
    ("timm:test_resnet", {"temporal": "conv", "kernel_size": 2, "padding": "zeros"}),
    ("timm:test_resnet", {"temporal": "conv", "factorized": True, "padding": "zeros"}),
    ("timm:test_nfnet", {"temporal": "conv"}),  # standardised weights: filters behind its convolutions
    ("timm:test_convnext", {"temporal": "conv"}),
    ("timm:test_convnext", {"temporal": "shift"}),
    ("timm:test_efficientnet", {"temporal": "conv", "layers": "conv"}),
    ("timm:test_vit", {"temporal": "shift"}),
    ("timm:test_vit", {"temporal": "conv"}),
    ("torchvision:squeezenet1_1", {"temporal": "shift"}),  # whose classifier is within the network
]


def causal(name: str = "timm:test_resnet", *, trained: bool = True, **options: Any) -> InflatedModel:
    """A causal model whose layers look back as after training, in float64."""
    torch.manual_seed(0)
    made = stvid.inflate(name, num_frames=4, num_classes=5, img_size=64, causal=True, **{"temporal": "conv", **options})
    assert isinstance(made, InflatedModel) and made.inflation is not None and made.inflation.proof is not None
    assert made.inflation.proof.exact or made.options.spoils_ends
    with torch.no_grad():  # fresh networks have branches of zeros
        for key, parameter in made.named_parameters() if trained else ():
            noise = torch.randn(parameter.shape)
            if parameter.dim() >= 2:
                parameter.copy_(noise * max(1, parameter[0].numel()) ** -0.5)
            else:
                parameter.copy_(noise * 0.1 if key.endswith("bias") else 1 + noise * 0.1)
    return made.double().eval()


def in_chunks(model: Any, clip: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, StreamState]:
    state = model.init_state(len(clip))
    for chunk in clip.split(sizes, dim=2):
        logits, state = model.step(chunk, state)
    return logits, state


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=[f"{name}-{options}" for name, options in NETWORKS])
def test_chunks_give_the_logits_of_one_pass(name: str, options: dict[str, Any]) -> None:
    model = causal(name, **options)
    assert model.streams
    clip = torch.randn(2, 3, FRAMES, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(clip)
        backwards = model(clip.flip(2))
        for sizes in CHUNKS:
            logits, state = in_chunks(model, clip, sizes)
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
            assert state.frames == FRAMES
        again, _ = in_chunks(model, clip, (4, 3))
        torch.testing.assert_close(model(clip), again, rtol=1e-9, atol=1e-9)  # a stream leaves nothing behind
    order_counts = (backwards - expected).abs().max() > 1e-6 * expected.abs().max()
    assert order_counts == (options["temporal"] != "none")


@pytest.mark.parametrize("temporal", ["shift", "conv"])
def test_no_frame_sees_a_later_one(temporal: str) -> None:
    model = causal(temporal=temporal)
    clip = torch.randn(1, 3, 5, 64, 64, dtype=torch.float64)
    changed = clip.clone()
    changed[:, :, 3:] = torch.randn(1, 3, 2, 64, 64)
    with torch.no_grad():
        before, after = model.forward_features(clip), model.forward_features(changed)
        torch.testing.assert_close(before[:, :, :3], after[:, :, :3], rtol=1e-9, atol=1e-9)
        changed = clip.clone()
        changed[:, :, 1] = torch.randn(1, 3, 64, 64)
        assert (model.forward_features(changed)[:, :, 2] - before[:, :, 2]).abs().max() > 1e-6


@pytest.mark.parametrize("temporal", ["shift", "conv"])
def test_the_state_is_flat_and_holds_on_to_nothing_else(temporal: str) -> None:
    model = causal(temporal=temporal)
    state = model.init_state(1)
    sizes = []
    with torch.no_grad():
        for _ in range(6):
            _, state = model.step(torch.randn(1, 3, 4, 64, 64, dtype=torch.float64), state)
            sizes.append(sum(buffer.untyped_storage().nbytes() for buffer in state.buffers))
            assert sizes[-1] == sum(buffer.numel() * buffer.element_size() for buffer in state.buffers)
    assert len(set(sizes)) == 1


def test_a_stream_can_be_continued_twice_and_beside_others() -> None:
    model = causal(temporal="shift")
    clip = torch.randn(1, 3, 6, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        _, state = model.step(clip[:, :, :4], model.init_state(1))
        model.step(torch.randn(1, 3, 3, 64, 64, dtype=torch.float64), state)
        logits, _ = model.step(clip[:, :, 4:], state)
        torch.testing.assert_close(logits, model(clip))

        def run(frames: int) -> Tensor:
            with torch.no_grad():
                one = torch.full((1, 3, frames, 64, 64), float(frames), dtype=torch.float64) * clip[:, :, :1]
                return (in_chunks(model, one, (1,) * frames)[0] - model(one)).abs().max()

        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(run, (2, 5, 3, 4) * 4)) < 1e-8


def test_gradients_flow_back_through_a_stream_with_and_without_recomputation() -> None:
    model = causal(temporal="conv")
    clip = torch.randn(1, 3, 5, 64, 64, dtype=torch.float64)
    model(clip).square().sum().backward()
    wanted = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        in_chunks(model, clip, (2, 3))[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            if name in wanted:
                torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-7, atol=1e-9)


def test_a_saved_fused_and_optimized_model_streams(tmp_path: Path) -> None:
    model = causal(temporal="conv").float()
    clip = torch.randn(1, 3, 5, 64, 64)
    stvid.save_model(model, tmp_path / "causal.ckpt")
    again = stvid.load_model(tmp_path / "causal.ckpt")
    fast = stvid.optimize(model, precision="float32")
    with torch.no_grad():
        expected = model(clip)
        for each in (again, copy.deepcopy(model), stvid.fuse(model), fast):
            assert each.streams
            logits, _ = in_chunks(each, clip, (1, 1, 3))
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_stream_says_so() -> None:
    model = causal(temporal="shift", trained=False)
    state = model.init_state(2)
    with pytest.raises(ValueError, match="the state is for 2 streams side by side, the frames are of 1"):
        model.step(torch.zeros(1, 3, 1, 64, 64, dtype=torch.float64), state)
    _, state = model.step(torch.zeros(2, 3, 1, 64, 64, dtype=torch.float64), state)
    with pytest.raises(StvidError, match="of another model, or of frames of another size"):
        model.step(torch.zeros(2, 3, 1, 32, 32, dtype=torch.float64), state)
    both_ways = stvid.inflate("timm:test_resnet", num_frames=2, img_size=64, temporal="shift", prove=False)
    assert not both_ways.streams
    with pytest.raises(StvidError, match="InflatedModel does not run over a stream"):
        both_ways.step(torch.zeros(1, 3, 1, 64, 64), StreamState(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal": "attention"}, "causal: with temporal=attention frames see later ones.*; take none, shift, conv"),
        ({"temporal": "head"}, "causal: with temporal=head frames see later ones"),
        ({"temporal_strides": {"stem": 2}}, "causal: temporal_strides join frames with later ones"),
        ({"causal": "yes"}, "causal 'yes': must be true or false"),
    ],
)
def test_networks_that_cannot_be_causal(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InflationOptions(**{"causal": True, **options})
    with pytest.raises(ConfigError, match="kernel_size 0: must be a positive whole number of frames"):
        causal(kernel_size=0)


def test_a_causal_kernel_ends_with_the_current_frame() -> None:
    weight = torch.randn(2, 3, 3, 3)
    for frames in (1, 2, 3, 4):
        made = kernels(weight, frames, init="center", causal=True)
        assert torch.equal(made[:, :, -1], weight) and not made[:, :, :-1].any()
        torch.testing.assert_close(kernels(weight, frames, init="average", causal=True).sum(2), weight)
    assert torch.equal(kernels(weight, 3, init="center", causal=False)[:, :, 1], weight)
    model = causal(trained=False)
    assert {rule.rule for rule in model.inflation.rules if rule.kind == "derived"} == {
        "in the last of 3 frames, zeros elsewhere"
    }


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_a_causal_shift_moves_channels_on_in_time_alone(padding: Any) -> None:
    model = causal(temporal="shift", padding=padding, trained=False)
    shift = TemporalShift(model.time, channels_first=True, shift_div=4, padding=padding, causal=True)
    frames = torch.randn(2 * 3, 8, 5, 5)
    model.time.frames = 3
    shifted, clip = shift(frames).unflatten(0, (2, 3)), frames.unflatten(0, (2, 3))
    assert torch.equal(shifted[:, :, 2:], clip[:, :, 2:])
    assert torch.equal(shifted[:, 1:, :2], clip[:, :-1, :2])
    first = clip[:, 0, :2] if padding == "replicate" else torch.zeros(2, 2, 5, 5)
    assert torch.equal(shifted[:, 0, :2], first)


def test_the_protocol_is_of_frames_that_follow_each_other() -> None:
    assert causal(temporal="shift", trained=False).default_protocol.sampling == "dense"
    free = stvid.inflate(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        num_frames=2,
        img_size=16,
        temporal="none",
    )
    assert free.default_protocol.sampling == "segment"
