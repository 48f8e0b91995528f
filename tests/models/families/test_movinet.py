"""MoViNet alone: its streams, the padding of TensorFlow, and files of both layouts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import stvid
from stvid.errors import StvidError
from stvid.models.base import VideoModel
from stvid.models.families.movinet import A0, MoViNet, encode_positions, pad_same, pool_same
from stvid.models.registry import family_of

GOLDENS = Path(__file__).parents[2] / "goldens"


def tiny(name: str = "movinet_a0", *, size: tuple[int, int] = (40, 50), **options: Any) -> MoViNet:
    torch.manual_seed(0)
    settings = {**family_of(name)[0].tiny, "num_classes": 5, "num_frames": 6, "img_size": size, **options}
    model = stvid.create_model(name, **settings)
    fill.fill_module(model)
    return model.double().eval()  # type: ignore[return-value]


def golden(case: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{case}.json").read_text())


def streamed(model: VideoModel, clip: torch.Tensor, chunks: list[int]) -> list[torch.Tensor]:
    """Returns the logits after each chunk."""
    state, logits = model.init_state(len(clip)), []
    with torch.no_grad():
        for frames in clip.split(chunks, dim=2):
            found, state = model.step(frames, state)
            logits.append(found)
    assert state.frames == sum(chunks)
    return logits


@pytest.mark.parametrize("chunks", [[1] * 7, [2, 2, 2, 1], [3, 3, 1], [7], [1, 6], [5, 1, 1]])
@pytest.mark.parametrize("name", ["movinet_a0", "movinet_a3"])
def test_chunks_of_any_size_give_the_logits_of_one_pass(name: str, chunks: list[int]) -> None:
    model = tiny(name, causal=True)
    assert model.streams and (model.layer1[0].se.pos_scale is None) == (name == "movinet_a0")
    clip = torch.randn(2, 3, 7, 40, 50, dtype=torch.float64)
    with torch.no_grad():
        prefixes = [model(clip[:, :, : sum(chunks[: place + 1])]) for place in range(len(chunks))]
    for found, expected in zip(streamed(model, clip, chunks), prefixes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["movinet_a0_stream__8x64"])
def test_streams_in_chunks_are_the_official_ones(case: str) -> None:
    record = golden(case)
    model = stvid.create_model("movinet_a0", causal=True, num_classes=record["num_classes"])
    integers = {key: np.array(0) for key in record["int_keys"] if key.endswith("num_batches_tracked")}
    floats = {key: shape for key, shape in record["state"].items() if key not in record["int_keys"]}
    stvid.load_checkpoint(model, {**integers, **fill.fill_state(floats)})
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    for place, chunks in enumerate(record["stream_chunks"]):
        logits = streamed(model.double().eval(), clip, chunks)
        expected = torch.tensor(record["logits"], dtype=torch.float64).flatten()
        assert (logits[-1].flatten() - expected).abs().max() < 1e-7 * record["logits_std"]
        if place == 0:
            first = torch.tensor(record["logits_after_first_chunk"], dtype=torch.float64).flatten()
            assert (logits[0].flatten() - first).abs().max() < 1e-7 * record["logits_std"]


def test_no_later_frame_is_seen_and_the_state_stays_small() -> None:
    model = tiny(causal=True)
    clip = torch.randn(1, 3, 12, 40, 50, dtype=torch.float64)
    changed = clip.clone()
    changed[:, :, 5:] = 9.0
    with torch.no_grad():
        first, second = model.forward_features(clip), model.forward_features(changed)
        assert torch.equal(first[:, :, :5], second[:, :, :5]) and not torch.equal(first[:, :, 5], second[:, :, 5])
        state, sizes = model.init_state(), []
        for frames in clip.split(3, dim=2):
            _, state = model.step(frames, state)
            sizes.append(sum(buffer.untyped_storage().nbytes() for buffer in state.buffers))
    assert len(set(sizes)) == 1


def test_a_stream_goes_on_twice_from_one_state() -> None:
    model = tiny(causal=True)
    clip = torch.randn(1, 3, 6, 40, 50, dtype=torch.float64)
    with torch.no_grad():
        _, state = model.step(clip[:, :, :3], model.init_state())
        kept = [buffer.clone() for buffer in state.buffers]
        once, _ = model.step(clip[:, :, 3:], state)
        model.step(torch.zeros_like(clip), state)
        again, _ = model.step(clip[:, :, 3:], state)
    assert torch.equal(once, again)
    assert all(torch.equal(before, after) for before, after in zip(kept, state.buffers, strict=True))


def test_gradients_flow_through_the_state_until_it_is_detached() -> None:
    model = tiny(causal=True)
    clip = torch.randn(1, 3, 4, 40, 50, dtype=torch.float64, requires_grad=True)
    _, state = model.step(clip[:, :, :2], model.init_state())
    model.step(clip[:, :, 2:], state)[0].sum().backward()
    assert clip.grad is not None and clip.grad[:, :, 0].abs().sum() > 0
    clip.grad = None
    _, state = model.step(clip[:, :, :2], model.init_state())
    model.step(clip[:, :, 2:], state.detach())[0].sum().backward()
    assert clip.grad is not None
    assert clip.grad[:, :, 0].abs().sum() == 0 and clip.grad[:, :, 2].abs().sum() > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["movinet_a0", "movinet_a3"])
@pytest.mark.parametrize("chunks", [[1] * 6, [2, 1, 1, 2], [1, 4, 1]])
def test_optimized_streams_are_the_same(name: str, chunks: list[int]) -> None:
    """Single frames go through plain functions; the state fits both ways."""
    model = tiny(name, causal=True).float()
    fast = stvid.optimize(model, precision="float32")
    assert "single frames of a stream without modules" in fast.notes
    clip = torch.randn(2, 3, 6, 40, 50)
    for found, expected in zip(streamed(fast, clip, chunks), streamed(model, clip, chunks), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        _, state = model.step(clip[:, :, :1], model.init_state(2))
        expected, _ = model.step(clip[:, :, 1:2], state)
        torch.testing.assert_close(fast.step(clip[:, :, 1:2], state)[0], expected, rtol=1e-4, atol=1e-4)
        low = streamed(stvid.optimize(model, precision="bf16"), clip, chunks)[-1]
        assert (low - expected).abs().max() < 0.3 * expected.std() + 0.3
        again = copy.deepcopy(fast)
        assert torch.equal(again.step(clip[:, :, 1:2], state)[0], fast.step(clip[:, :, 1:2], state)[0])
    with pytest.raises(StvidError, match="frames of another size"):
        fast.step(clip[:, :, :1].transpose(3, 4), state)


def test_small_streams_are_optimized_in_float32_and_large_ones_as_the_device_likes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stvid.inference.pick_precision", lambda device: ("bf16", "this test says so"))
    stream = tiny(causal=True).float()
    small = stvid.optimize(stream)
    assert small.precision == "float32" and any("single frames are too little work" in note for note in small.notes)
    assert stvid.optimize(stream, precision="bf16").precision == "bf16"
    assert stvid.optimize(tiny().float()).precision == "bf16"  # no stream
    monkeypatch.setattr("stvid.inference.SMALL_STREAM", 10)
    assert stvid.optimize(stream).precision == "bf16"


def test_single_frames_run_in_the_layout_that_convolutions_are_fastest_in() -> None:
    model = tiny(causal=True)
    seen = []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    for frame in (torch.randn(1, 3, 1, 40, 50).double(), torch.randn(2, 3, 1, 40, 50).double()):
        with torch.no_grad():
            model.step(frame, model.init_state(len(frame)))
    assert seen and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_optimized_models_of_other_kinds_have_no_fast_steps() -> None:
    base = tiny().float()
    optimized = stvid.optimize(base, precision="float32")
    assert not any("single frames" in note for note in optimized.notes)
    clip = torch.randn(1, 3, 3, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(optimized(clip), base(clip), rtol=1e-4, atol=1e-4)
    kept = stvid.optimize(tiny(causal=True).float(), precision="float32", fuse_norms=False)
    assert not any("single frames" in note for note in kept.notes)
    with torch.no_grad():
        torch.testing.assert_close(streamed(kept, clip, [1, 2])[-1], kept(clip), rtol=1e-4, atol=1e-4)


def test_what_has_no_stream_says_so() -> None:
    clip = torch.randn(1, 3, 2, 40, 50, dtype=torch.float64)
    base = tiny()
    assert not base.streams
    with pytest.raises(StvidError, match=r"MoViNet does not run over a stream.*causal=True"):
        base.init_state()
    model = tiny(causal=True)
    with pytest.raises(ValueError, match="state is for 2 streams side by side, the frames are of 1"):
        model.step(clip, model.init_state(2))
    _, state = model.step(clip, model.init_state())
    with pytest.raises(StvidError, match="frames of another size"):
        model.step(clip.transpose(3, 4), state)
    with pytest.raises(StvidError, match="of another model"):
        tiny(causal=True, depth=(1, 1, 1, 1, 1)).step(clip, state)
    with pytest.raises(StvidError, match="of another model"):
        model.step(clip, state._replace(buffers=state.buffers[:-1]))
    model.reset_classifier(3, head="attentive")
    with pytest.raises(StvidError, match="pools by attention"):
        model.step(clip, model.init_state())


def test_the_gate_of_today_s_official_code() -> None:
    record = golden("movinet_a0_stream_tf__6x72x56")
    model = stvid.create_model("movinet_a0", causal=True, gate="relu6", num_classes=600)
    stvid.load_checkpoint(model, fill.fill_state(record["state"]))
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    with torch.no_grad():
        logits = model.double().eval()(clip).flatten()
    expected = torch.tensor(record["logits_current_repo_gate"], dtype=torch.float64).flatten()
    # Their factor is the float32 0.16667, ours 1/6.
    assert (logits - expected).abs().max() < 1e-4 * record["logits_std"]
    other = torch.tensor(record["logits"], dtype=torch.float64)
    assert (logits - other.flatten()).abs().max() > 3e-4 * record["logits_std"]


@pytest.mark.parametrize("case", ["movinet_a0_base_tf__6x64x88", "movinet_a0_stream_tf__6x72x56"])
def test_official_variables_load_by_name(case: str) -> None:
    record = golden(case)
    port = fill.fill_state(record["state"])
    variables = {}
    for key, value in port.items():
        name, order = record["tf_names"][key]
        variables[f"{name}:0"] = value.reshape(-1) if order is None else value.transpose(np.argsort(order))
    models = []
    for state, layout in ((port, "MoViNet-pytorch"), (variables, "TensorFlow")):
        model = stvid.create_model("movinet_a0", causal="stream" in case, num_classes=600)
        assert stvid.load_checkpoint(model, state).format == layout
        models.append(model.state_dict())
    assert all(torch.equal(models[0][key], value) for key, value in models[1].items())


def test_files_tell_the_network() -> None:
    """A file of a stream makes a stream, and one of other stages makes those."""
    base, stream = tiny(), tiny("movinet_a3", causal=True)
    assert stream.options_of(stream.state_dict()) == {}
    assert base.options_of(stream.state_dict()) == {"causal": True, "pos_encoding": True}
    stages = tuple((dim, inner[:1], kernels[:1]) for dim, inner, kernels in family_of("movinet_a0")[0].tiny["stages"])
    shallow = tiny(depth=(1, 1, 1, 1, 1), hidden_dim=40)
    assert base.options_of(shallow.state_dict()) == {"stages": stages, "hidden_dim": 40}


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (6, 6), (5, 9), (1, 2), (2, 1)])
def test_padding_and_pooling_are_tensorflow_s(size: tuple[int, int]) -> None:
    """SAME: ceil(size / 2) outputs, the odd rest behind; a pool's mean is over what is not padded."""
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for kernel in (3, 5):
        padded = F.conv2d(
            pad_same(x, kernel, 2), torch.ones(3, 1, kernel, kernel, dtype=torch.float64), stride=2, groups=3
        )
        assert padded.shape[2:] == tuple(-(-side // 2) for side in size)
        front = [max((-(-side // 2) - 1) * 2 + kernel - side, 0) // 2 for side in size]
        window = x[:, :, : kernel - front[0], : kernel - front[1]]
        torch.testing.assert_close(padded[:, :, 0, 0], window.sum((2, 3)))
    front = [max((-(-side // 2) - 1) * 2 + 3 - side, 0) // 2 for side in size]
    pooled = pool_same(x)
    assert pooled.shape[2:] == tuple(-(-side // 2) for side in size)
    torch.testing.assert_close(pooled[:, :, 0, 0], x[:, :, : 3 - front[0], : 3 - front[1]].mean((2, 3)))
    last = [2 * (-(-side // 2) - 1) - before for side, before in zip(size, front, strict=True)]
    torch.testing.assert_close(pooled[:, :, -1, -1], x[:, :, max(last[0], 0) :, max(last[1], 0) :].mean((2, 3)))


def test_positions_are_sines_then_cosines() -> None:
    code = encode_positions(torch.tensor([0.0, 3.0], dtype=torch.float64), 8)
    angles = 3.0 / 10000 ** (torch.arange(4, dtype=torch.float64) / 4)
    torch.testing.assert_close(code[1], torch.cat((angles.sin(), angles.cos())))
    assert code[0].tolist() == [0.0] * 4 + [1.0] * 4


def test_wrong_arguments_are_named() -> None:
    for options, message in [
        ({"stages": A0[:4]}, "stages: 5 are needed"),
        ({"depth": (1, 9, 1, 1, 1)}, r"depth \(1, 9, 1, 1, 1\): a number for each stage"),
        ({"gate": "sigmoid"}, "gate 'sigmoid': choose hard_sigmoid or relu6"),
    ]:
        with pytest.raises(ValueError, match=message):
            MoViNet(**options)  # type: ignore[arg-type]
