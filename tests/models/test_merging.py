"""Token merging: the official code's numbers, and what a user relies on around them."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import timm
import torch

import stvid
from stvid.errors import ConfigError
from stvid.models.merging import draw_sources, match_tokens, merge_schedule, token_sources

GOLDENS = Path(__file__).parent.parent / "goldens"
TINY: dict[str, Any] = {"depth": 4, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def small(name: str, **options: Any) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = stvid.create_model(name, num_frames=4, img_size=64, **TINY, **options).eval()
    for parameter in model.parameters():  # so that logits differ and attention is not uniform
        torch.nn.init.normal_(parameter, std=0.2)
    return model, torch.randn(2, 3, 4, 64, 64)


MERGING = [
    ("vivit_b16x2", {}),
    ("vivit_b16x2_fe", {"temporal_depth": 1}),
    ("vivit_b16x2_avgpool", {}),
    ("timesformer_base", {"attention_type": "joint_space_time"}),
    ("timesformer_base", {"attention_type": "space_only"}),
]


def timm_model() -> torch.nn.Module:
    return timm.create_model("vit_base_patch16_224")


def own_model() -> torch.nn.Module:
    """On one frame, TimeSformer without attention over time is an image transformer with timm's keys."""
    return stvid.create_model("timesformer_base", attention_type="space_only", num_classes=1000, num_frames=1)


@pytest.mark.parametrize(
    "case", ["tome_vit_b16_r8__224", pytest.param("tome_vit_b16_r13_noprop__224", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("build", [timm_model, pytest.param(own_model, marks=pytest.mark.slow)])
def test_golden_logits(case: str, build: Callable[[], torch.nn.Module]) -> None:
    record = json.loads((GOLDENS / "merging" / f"{case}.json").read_text())
    model = build()
    state = {key: torch.from_numpy(value) for key, value in fill.fill_state(record["state"]).items()}
    stvid.load_checkpoint(model, state)
    stvid.merge_tokens(model, record["config"]["r"], prop_attn=record["config"]["prop_attn"])
    image = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    with torch.no_grad():
        logits = model.double().eval()(image if build is timm_model else image.unsqueeze(2)).reshape(-1).numpy()
    assert np.abs(logits - np.array(record["logits"])).max() < 1e-7 * record["logits_std"]


def by_hand(keys: torch.Tensor, count: int, protected: int) -> list[set[int]]:
    """The groups that bipartite soft matching makes of one sequence, straight from the paper."""
    similar = torch.nn.functional.cosine_similarity(keys[:, None], keys[None, :], dim=-1)
    edges = []
    for a in range(0, len(keys), 2):
        partners = [b for b in range(1, len(keys), 2) if a >= protected and b >= protected]
        if partners:
            best = max(partners, key=lambda b: float(similar[a, b]))
            edges.append((float(similar[a, best]), a, best))
    edges.sort(reverse=True)
    groups = {n: {n} for n in range(len(keys))}
    for _, a, b in edges[:count]:
        groups[b] |= groups.pop(a)
    return sorted(groups.values(), key=min)


@pytest.mark.parametrize(
    "tokens,protected,count", [(17, 1, 5), (16, 1, 7), (17, 0, 8), (12, 2, 3), (13, 5, 4), (9, 3, 3)]
)
def test_matching(tokens: int, protected: int, count: int) -> None:
    torch.manual_seed(tokens)
    keys = torch.randn(3, tokens, 6)
    place = match_tokens(keys, count, protected=protected)
    assert place[:, :protected].equal(torch.arange(protected).expand(3, -1))  # still in front, in their order
    for sequence, places in zip(keys, place.tolist(), strict=True):
        assert sorted(set(places)) == list(range(tokens - count))
        groups = [{n for n in range(tokens) if places[n] == p} for p in range(tokens - count)]
        assert sorted(groups, key=min) == by_hand(sequence, count, protected)


def test_schedules() -> None:
    assert merge_schedule(8, 3) == [8, 8, 8]
    assert merge_schedule((8, -1), 5) == [16, 12, 8, 4, 0]  # the paper's decreasing schedule
    assert merge_schedule((8, 1), 5) == [0, 4, 8, 12, 16]
    assert merge_schedule([5, 2], 4) == [5, 2, 0, 0]
    for wrong in (-1, 2.5, True, [1, -2], (8, 3), [1] * 5):
        with pytest.raises(ConfigError, match="token merging"):
            merge_schedule(wrong, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name,options", MERGING)
def test_none_is_identical_and_some_is_close(name: str, options: dict[str, Any]) -> None:
    model, clip = small(name, **options)
    with torch.no_grad():
        plain, features = model(clip), model.forward_features(clip)
        for nothing in ([0, 0], 0):
            assert stvid.merge_tokens(model, nothing)(clip).equal(plain)
        merged = stvid.merge_tokens(model, 2)(clip)
        assert not merged.equal(plain)
        assert torch.nn.functional.cosine_similarity(merged, plain, dim=1).min() > 0.7
        assert model.forward_features(clip).shape == features.shape
        assert stvid.merge_tokens(model, 0)(clip).equal(plain)  # taken off again
        assert stvid.merge_tokens(model, 1000)(clip).isfinite().all()  # capped at half of the tokens


def test_identical_patches_merge_without_loss() -> None:
    """Of tokens that are equal, the weighted mean is one of them, and proportional attention counts them all."""
    model, clip = small("vivit_b16x2_avgpool")
    model.encoder.pos_embed.data.zero_()
    clip[:] = clip[..., :16, :16].repeat(1, 1, 1, 4, 4)  # every patch of a frame is the same
    with torch.no_grad():
        plain = model.double()(clip.double())
        torch.testing.assert_close(stvid.merge_tokens(model, 3)(clip.double()), plain)
        others = stvid.merge_tokens(model, 3, prop_attn=False)(clip.double())
    assert not torch.allclose(others, plain)  # the class token and the patches are then weighed otherwise


def test_sources_say_where_a_patch_went() -> None:
    model, clip = small("timesformer_base", attention_type="space_only")
    with pytest.raises(ConfigError, match="trace_source"):
        token_sources(model)
    stvid.merge_tokens(model, [3, 0, 4], trace_source=True)
    with torch.no_grad():
        model(clip)
    sources = token_sources(model)
    assert sources.shape == (8, 17)  # a frame is a sequence
    assert all(len(row.unique()) == 17 - 7 for row in sources)
    assert (sources[:, 0] == 0).all() and (sources[:, 1:] > 0).all()


def test_drawing_shows_each_token_in_its_mean_colour() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (10, 13, 3), dtype=np.uint8)
    left = [[3, 9], [3, 9]]  # two columns of patches, cut where the model cuts them
    drawn = draw_sources(frame, np.array(left), line=(1, 2, 3))
    assert drawn.shape == frame.shape and drawn.dtype == np.uint8
    edge = 7  # the first pixel of the second patch: 6 * 2 // 13 is 0
    assert (drawn[:, edge] == (1, 2, 3)).all()
    for columns, inside in ((slice(0, edge), slice(0, edge)), (slice(edge, 13), slice(edge + 1, 13))):
        mean = np.rint(frame[:, columns].reshape(-1, 3).mean(0))
        assert (drawn[:, inside] == mean).all()
    model, clip = small("vivit_b16x2_fe", temporal_depth=1)
    stvid.merge_tokens(model, 2, trace_source=True)
    with torch.no_grad():
        model(clip)
    sources = token_sources(model)[0, 1:].view(4, 4)
    assert len(np.unique(draw_sources(frame, sources).reshape(-1, 3), axis=0)) <= len(sources.unique()) + 1
    for wrong in ((frame.astype(float), sources), (frame, sources.flatten()), (frame, sources.float())):
        with pytest.raises(ConfigError, match="draw_sources"):
            draw_sources(*wrong)


def test_last_block_puts_tokens_back() -> None:
    model, clip = small("vivit_b16x2")
    stvid.merge_tokens(model, 3, trace_source=True)
    with torch.no_grad():
        features = model.forward_features(clip)
    sources = token_sources(model)
    for row, tokens in zip(sources, features, strict=True):
        for a, b in itertools.combinations(range(len(row)), 2):
            assert bool((tokens[a] == tokens[b]).all()) == bool(row[a] == row[b])


@pytest.mark.parametrize("name,options", MERGING[::2])
def test_training_recomputing_and_copies(name: str, options: dict[str, Any]) -> None:
    model, clip = small(name, **options)
    stvid.merge_tokens(model, 2)

    def gradients(network: torch.nn.Module) -> list[torch.Tensor]:
        network.zero_grad()
        first = network(clip)  # two passes before the backward one: a recomputed block must see its own sizes
        second = network(clip.flip(0) * 2)
        (first.sum() + second.pow(2).sum()).backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    plain = gradients(model)
    assert all(gradient.abs().sum() > 0 for gradient in plain)
    model.set_grad_checkpointing()
    for gradient, expected in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    again = copy.deepcopy(model)
    with torch.no_grad():
        assert again(clip).equal(model(clip))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert again(clip).isfinite().all()


def test_saved_models_merge_again(tmp_path: Path) -> None:
    model, clip = small("vivit_b16x2_fe", temporal_depth=1)
    plain = model.state_dict().keys()
    stvid.merge_tokens(model, (3, -1), prop_attn=False)
    assert model.state_dict().keys() == plain
    for file in ("weights.safetensors", "weights.pt"):
        stvid.save_model(model, tmp_path / file)
        with torch.no_grad():
            assert stvid.load_model(tmp_path / file)(clip).equal(model(clip))
    stvid.merge_tokens(model, 0)
    assert "token_merging" not in model.recipe["hyperparameters"]


def test_merging_as_a_hyperparameter() -> None:
    model, clip = small("vivit_b16x2", token_merging={"r": 2})
    other, _ = small("vivit_b16x2")
    stvid.merge_tokens(other, 2)
    with torch.no_grad():
        assert model(clip).equal(other(clip))
    for wrong, reason in (({"rate": 2}, "keys r"), ({"r": (8, -1)}, "tuples"), ({"r": -1}, "whole number")):
        with pytest.raises(ConfigError, match=reason):
            small("vivit_b16x2", token_merging=wrong)


@pytest.mark.slow
def test_export() -> None:
    model, clip = small("vivit_b16x2")
    stvid.merge_tokens(model, 3)
    program = torch.export.export(model, (clip,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        for batch in (clip, torch.randn(3, *clip.shape[1:])):
            torch.testing.assert_close(program.module()(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timesformer_base", "vivit_b16x2_fsa", "vivit_b16x2_fdp", "xvit_base"])
def test_models_that_need_the_grid_are_refused(name: str) -> None:
    model = stvid.create_model(name, num_frames=4, img_size=32, **TINY)
    with pytest.raises(ConfigError, match="cannot be merged"):
        stvid.merge_tokens(model, 2)
    with pytest.raises(ConfigError, match="Linear: its tokens cannot be merged"):
        stvid.merge_tokens(torch.nn.Linear(2, 2), 2)


def test_timm_models_with_registers_mean_pooling_and_scaled_layers() -> None:
    torch.manual_seed(0)
    options = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    clip = torch.randn(2, 3, 64, 64)
    for more in (
        {"reg_tokens": 4, "init_values": 0.5, "qk_norm": True},
        {"class_token": False, "global_pool": "avg"},
        {"global_pool": "avg"},
    ):
        model = timm.models.vision_transformer.VisionTransformer(**options, **more).eval()
        with torch.no_grad():
            plain = model(clip)
            torch.testing.assert_close(stvid.merge_tokens(model, [0, 0, 0])(clip), plain)
            assert stvid.merge_tokens(model, 2)(clip).shape == plain.shape
            assert model.forward_features(clip).shape == (2, 16 + model.num_prefix_tokens, 32)
