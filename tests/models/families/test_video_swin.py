"""Windows, masks and bias tables of Video Swin."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torchvision.models.video.swin_transformer import SwinTransformer3d

import stvid
from stvid.models.families import video_swin
from stvid.models.families.video_swin import MASKED, Windows, relative_position_index

TINY: dict[str, Any] = {"depth": (2, 2), "embed_dim": 8, "num_heads": (1, 2), "num_classes": 5, "head_drop_rate": 0.0}
SIZES = [(4, 14, 14), (9, 8, 15), (3, 20, 7), (16, 7, 7), (1, 1, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_are_those_of_a_rolled_and_padded_input(size: tuple[int, int, int], shifted: bool) -> None:
    windows = Windows.fit(size, (8, 7, 7), shifted=shifted)
    padded = [count * side for count, side in zip(windows.counts, windows.window, strict=True)]
    assert windows.padded == (padded != list(size))
    groups = windows.rows(2, torch.device("cpu"))
    every = torch.cat([rows.flatten() for rows in groups])
    assert every[every >= 0].sort().values.equal(torch.arange(2 * math.prod(size)))  # each token once
    assert (every < 0).sum() == 2 * (math.prod(padded) - math.prod(size))

    # by hand: number each place of the padded grid by the region that it falls into after the roll
    region = torch.zeros(padded)
    cuts = []
    for length, side, step in zip(region.shape, windows.window, windows.shift, strict=True):
        cuts.append([slice(0, length - side), slice(length - side, length - step), slice(length - step, length)])
        cuts[-1] = cuts[-1] if step else [slice(0, length)]
    for number, place in enumerate(itertools.product(*cuts)):
        region[place] = number
    whole = Windows(tuple(region.shape), windows.window, windows.shift)  # type: ignore[arg-type]
    regions = region.roll(windows.shift, dims=(0, 1, 2)).flatten()
    masks = windows.shift_masks(torch.device("cpu"))
    for rows, mask in zip(whole.rows(1, torch.device("cpu")), masks, strict=True):
        for window in regions[rows]:
            expected = MASKED * (window[:, None] != window[None, :]).float()
            assert expected.equal(torch.zeros_like(expected) if mask is None else mask)


@pytest.mark.parametrize("size", [(4, 64, 64), (9, 50, 130)])
def test_pieces_compute_what_the_whole_does(size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = stvid.create_model("swin3d_t", **TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    clip = torch.randn(2, 3, *size)
    expected = model(clip)  # with gradients: all windows at once
    for piece in (1, 1 << 14, 1 << 20):
        monkeypatch.setattr(video_swin, "PIECE", piece)
        with torch.no_grad():
            torch.testing.assert_close(model(clip), expected, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_is_that_of_a_clip() -> None:
    """Not of a window: a branch is kept or left out for all tokens of a clip."""
    torch.manual_seed(0)
    model = stvid.create_model("swin3d_t", **{**TINY, "drop_path_rate": 0.5}).train()
    block = model.layers[1].blocks[1]
    x = torch.randn(64, 2, 7, 14, 16)
    windows = Windows.fit((2, 7, 14), (8, 7, 7), shifted=True)
    rows = windows.rows(64, x.device)
    torch.nn.init.normal_(block.attn.proj.bias)
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    with torch.no_grad():
        changed = (block(x, windows, rows, model.relative_position_index) - x).abs().amax(-1).flatten(1) > 1e-6
    assert (changed.all(1) | ~changed.any(1)).all()
    assert 0 < changed[:, 0].sum() < 64


@pytest.mark.parametrize("size", [(20, 100, 72), (9, 150, 230), (3, 33, 65)])
def test_any_size_computes_what_torchvision_computes(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    theirs = SwinTransformer3d([2, 4, 4], 8, [2, 2, 1], [1, 2, 2], [8, 7, 7], num_classes=5).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    options = {**TINY, "depth": (2, 2, 1), "num_heads": (1, 2, 2)}
    ours = stvid.create_model("swin3d_t", **options).double().eval()
    assert stvid.load_checkpoint(ours, theirs.state_dict()).format == "torchvision"
    clip = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-9, atol=1e-9)


def test_relative_position_index_counts_distances() -> None:
    index = relative_position_index((2, 3, 2))
    places = list(itertools.product(range(2), range(3), range(2)))
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        t, h, w = (x - y for x, y in zip(a, b, strict=True))
        assert index[i, j] == ((t + 1) * 5 + h + 2) * 3 + w + 1


def test_cached_masks_follow_the_weights_and_the_shape() -> None:
    torch.manual_seed(0)
    model = stvid.create_model("swin3d_t", **TINY).eval()
    clips = [torch.randn(1, 3, *size) for size in ((4, 64, 64), (5, 50, 70), (4, 64, 64))]
    for clip in clips:
        expected = model(clip)  # with gradients: nothing is kept
        with torch.no_grad():
            model(clip)
            torch.testing.assert_close(model(clip), expected)
            for parameter in model.parameters():
                parameter.mul_(1.1)
            changed = model(clip)
        torch.testing.assert_close(changed, model(clip))
        assert not torch.allclose(changed, expected)
    with torch.no_grad():
        single = model(clips[0])
        torch.testing.assert_close(model.double()(clips[0].double()).float(), single, rtol=1e-4, atol=1e-5)


def test_cached_masks_are_not_stale_after_training() -> None:
    torch.manual_seed(0)
    model = stvid.create_model("swin3d_t", **TINY).eval()
    for parameter in model.parameters():  # so large that the biases are seen in the logits
        torch.nn.init.normal_(parameter, std=0.3)
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        model(clip)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()(clip).sum().backward()
    optimizer.step()
    fresh = copy.deepcopy(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(clip), fresh(clip), rtol=0, atol=0)
    tables = [key for key in model.state_dict() if key.endswith("bias_table")]
    loaded = {key: torch.randn_like(value) if key in tables else value for key, value in model.state_dict().items()}
    for assign in (False, True):
        before = model(clip).detach()
        model.load_state_dict(loaded, assign=assign)
        with torch.no_grad():
            after = model(clip)
            assert not torch.allclose(after, before)
            torch.testing.assert_close(after, copy.deepcopy(model)(clip), rtol=0, atol=0)
        loaded = {key: value.clone().mul_(2) if key in tables else value.clone() for key, value in loaded.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.5)  # as some averages of weights are written: torch counts no new version
        model.eval()
        torch.testing.assert_close(model(clip), copy.deepcopy(model)(clip), rtol=0, atol=0)


def test_cached_masks_are_neither_saved_nor_copied() -> None:
    model = stvid.create_model("swin3d_t", **TINY).eval()
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 4, 64, 64))
    attention = model.layers[0].blocks[1].attn
    assert attention._cached is not None
    assert not [key for key in model.state_dict() if "cached" in key]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.layers[0].blocks[1].attn._cached is None
        with torch.no_grad():
            assert copied(torch.ones(1, 3, 4, 64, 64)).equal(expected)


def test_another_window_resizes_the_bias_tables() -> None:
    source = stvid.create_model("swin3d_t", **TINY)
    target = stvid.create_model("swin3d_t", window_size=(16, 7, 7), **TINY)
    report = stvid.load_checkpoint(target, source.state_dict())
    assert set(report.resized.values()) == {((2535, 1), (5239, 1)), ((2535, 2), (5239, 2))}
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    old, new = (model.state_dict()[key].view(-1, 13, 13) for model in (source, target))
    for before, after in ((0, 0), (7, 15), (14, 30)):
        torch.testing.assert_close(new[after], old[before])
    with torch.no_grad():
        assert target(torch.randn(1, 3, 36, 32, 32)).shape == (1, 5)


def test_official_index_buffers_are_dropped() -> None:
    model = stvid.create_model("swin3d_t", **TINY)
    official: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        official[key.replace("head.fc.", "cls_head.fc_cls.") if key.startswith("head.") else f"backbone.{key}"] = value
    official["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(392, 392, dtype=torch.long)
    assert stvid.load_checkpoint(model, {"state_dict": official}).format == "Video-Swin-Transformer"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [True, False])
def test_a_trace_is_the_same_each_time_and_takes_another_batch(gradients: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"depth": (2, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 2, 2)}
    model = stvid.create_model("swin3d_t", num_classes=3, num_frames=4, img_size=64, **options).eval()
    size = (3, 3, 70, 64)  # neither patches nor windows fill it
    with torch.set_grad_enabled(gradients):
        program = torch.jit.trace(model, torch.randn(1, *size))  # which is traced again and compared
    clips = torch.randn(3, *size)
    with torch.no_grad():
        torch.testing.assert_close(program(clips), model(clips), atol=1e-5, rtol=1e-5)
