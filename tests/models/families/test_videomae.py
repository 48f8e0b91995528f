"""VideoMAE: its positions, its published layouts, the encoder of the pretraining, masks and merging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stvid
from stvid.config import OptimConfig
from stvid.engine.optim import plan_parameters
from stvid.errors import CheckpointError
from stvid.models.families.videomae import VideoMAE, sinusoids
from stvid.models.merging import token_sources

TINY: dict[str, Any] = {"num_frames": 4, "img_size": (32, 32), "depth": 2, "embed_dim": 48, "num_heads": 4}


def tiny(num_classes: int = 5, **options: Any) -> VideoMAE:
    torch.manual_seed(0)
    model = stvid.create_model("videomae_vit_b", num_classes=num_classes, **{**TINY, **options}).eval()
    assert isinstance(model, VideoMAE)
    for parameter in model.parameters():  # biases start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def authors_state(model: VideoMAE) -> dict[str, Tensor]:
    """The state of a model in the authors' keys, which have no table of positions."""
    state = {key: value for key, value in model.state_dict().items() if key != "pos_embed"}
    return {key.replace("head.norm.", "fc_norm.").replace("head.fc.", "head."): state[key] for key in state}


def pretraining_state(model: VideoMAE) -> dict[str, Tensor]:
    """An encoder as the authors' pretraining stores it, with some of the decoder."""
    body = {f"encoder.{key}": value for key, value in authors_state(model).items() if "norm." not in key[:8]}
    state = {key: value for key, value in body.items() if not key.startswith("encoder.head.")}
    extra = {"encoder.norm.weight": torch.full((48,), 3.0), "encoder.norm.bias": torch.ones(48)}
    return {**state, **extra, "mask_token": torch.zeros(1, 1, 24), "decoder.blocks.0.norm1.weight": torch.ones(24)}


def transformers_state(model: VideoMAE, *, version: int) -> dict[str, Tensor]:
    """The state of a model in the keys of transformers 4 or 5."""
    names = {"q": "q_bias", "v": "v_bias"} if version == 4 else {"q": "query.bias", "v": "value.bias"}
    state: dict[str, Tensor] = {}
    for key, value in authors_state(model).items():
        if key.startswith("blocks."):
            _, block, rest = key.split(".", 2)
            layer = f"videomae.encoder.layer.{block}"
            if rest == "attn.qkv.weight":
                for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    state[f"{layer}.attention.attention.{part}.weight"] = rows
                continue
            for ours, theirs in (
                ("attn.q_bias", f"attention.attention.{names['q']}"),
                ("attn.v_bias", f"attention.attention.{names['v']}"),
                ("attn.proj", "attention.output.dense"),
                ("norm1", "layernorm_before"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                rest = rest.replace(ours, theirs)
            state[f"{layer}.{rest}"] = value
        else:
            key = key.replace("patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection.")
            state[key.replace("head.", "classifier.")] = value
    return state


def mmaction_state(model: VideoMAE) -> dict[str, Tensor]:
    """The state of a model in mmaction2's keys, which hold the table of positions."""
    state = {"backbone.pos_embed": model.pos_embed}
    for key, value in authors_state(model).items():
        key = key.replace("patch_embed.proj.", "patch_embed.projection.").replace("mlp.fc1.", "mlp.layers.0.0.")
        key = key.replace("mlp.fc2.", "mlp.layers.1.")
        head = key.startswith("head.")
        state[key.replace("head.", "cls_head.fc_cls.") if head else f"backbone.{key}"] = value
    return state


def test_the_sinusoids_are_those_of_the_authors() -> None:
    table = sinusoids(6, 8)
    assert table.shape == (1, 6, 8) and table.dtype == torch.float32
    for number in range(6):
        for channel in range(8):
            angle = torch.tensor(number / 10000 ** (2 * (channel // 2) / 8), dtype=torch.float64)
            expected = angle.sin() if channel % 2 == 0 else angle.cos()
            assert float(table[0, number, channel]) == pytest.approx(float(expected), abs=1e-7)


def test_keys_have_no_bias_and_layers_may_be_wrapped() -> None:
    names = {name for name, _ in tiny().named_parameters()}
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.attn.qkv.weight"} <= names
    assert "blocks.0.attn.qkv.bias" not in names
    assert not any(name.endswith("_bias") for name, _ in tiny(qkv_bias=False).named_parameters())


@pytest.mark.parametrize("layout", ["authors", "mmaction2", "transformers 4", "transformers 5"])
def test_published_layouts_give_the_same_logits(layout: str) -> None:
    made, clip = tiny(), torch.randn(2, 3, 4, 32, 32)
    state = {
        "authors": authors_state,
        "mmaction2": mmaction_state,
        "transformers 4": lambda model: transformers_state(model, version=4),
        "transformers 5": lambda model: transformers_state(model, version=5),
    }[layout](made)
    model = tiny()
    model.apply(lambda module: module.reset_parameters() if isinstance(module, torch.nn.Linear) else None)
    report = stvid.load_checkpoint(model, {"model": state})
    assert report.format == {"authors": "MCG-NJU/VideoMAE", "mmaction2": "mmaction2"}.get(
        layout, "transformers VideoMAE"
    )
    assert (model.norm_eps, model.head_norm_eps) == ((1e-12, 1e-5) if "transformers" in layout else (1e-6, 1e-6))
    assert model.blocks[1].norm2.eps == model.norm_eps and model.head.norm.eps == model.head_norm_eps
    with torch.no_grad():
        torch.testing.assert_close(model(clip), made(clip), rtol=1e-3, atol=1e-4)


def test_epsilons_of_a_layout_are_saved(tmp_path: Any) -> None:
    model, clip = tiny(), torch.randn(1, 3, 4, 32, 32)
    stvid.load_checkpoint(model, transformers_state(tiny(), version=5))
    stvid.save_model(model, tmp_path / "model.safetensors")
    again = stvid.load_model(tmp_path / "model.safetensors").eval()
    assert again.blocks[0].norm1.eps == 1e-12 and again.head.norm.eps == 1e-5
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), rtol=0, atol=0)


def test_the_table_of_a_file_is_taken() -> None:
    model, state = tiny(), mmaction_state(tiny())
    state["backbone.pos_embed"] = torch.full_like(state["backbone.pos_embed"], 0.5)
    stvid.load_checkpoint(model, state)
    assert (model.pos_embed == 0.5).all()


@pytest.mark.parametrize("library", ["authors", "transformers"])
def test_the_encoder_of_a_pretraining_is_a_start(library: str) -> None:
    made = tiny()
    if library == "authors":
        state = pretraining_state(made)
    else:
        whole = transformers_state(made, version=4)
        state = {key: value for key, value in whole.items() if key.startswith("videomae.")}
        state |= {"videomae.layernorm.weight": torch.ones(48), "videomae.layernorm.bias": torch.ones(48)}
        state |= {"mask_token": torch.zeros(1, 1, 24), "encoder_to_decoder.weight": torch.zeros(24, 48)}
    model, clip = tiny(num_classes=3), torch.randn(1, 3, 4, 32, 32)
    fresh = model.head.fc.weight.clone()
    stvid.load_checkpoint(model, {"model": state}, reset_head=True)
    assert torch.equal(model.head.fc.weight, fresh)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip), made.forward_features(clip), rtol=1e-4, atol=1e-5)
        without = tiny(num_classes=0)
        stvid.load_checkpoint(without, {"model": state})
        assert (without.head.norm.weight == 1).all() and (without.head.norm.bias == 0).all()
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight"):
        stvid.load_checkpoint(model, {"model": state})


def test_other_clips_get_the_table_of_the_model_resized() -> None:
    model = tiny()
    with torch.no_grad():
        for size in ((4, 32, 32), (8, 48, 32), (2, 16, 80), (5, 40, 40)):
            clip = torch.randn(1, 3, *size)
            features, maps = model.forward_intermediates(clip)
            grid = (size[0] // 2, size[1] // 16, size[2] // 16)
            assert model.token_grid(clip.shape) == grid and maps[-1].shape[2:] == grid
            assert features.isfinite().all()
        whole = torch.randn(1, 3, 5, 40, 40)  # the rest that fills no tubelet does not matter
        torch.testing.assert_close(model(whole), model(whole[:, :, :4, :32, :32]))


def test_the_authors_state_gets_the_table_of_the_model_and_stvid_s_is_resized(tmp_path: Any) -> None:
    made = tiny()
    stvid.save_model(made, tmp_path / "model.safetensors")
    larger = tiny(num_frames=8, img_size=(64, 32))
    fresh = larger.pos_embed.clone()
    assert fresh.shape == (1, 4 * 4 * 2, 48) and torch.equal(fresh, sinusoids(32, 48))
    stvid.load_checkpoint(larger, authors_state(made))
    assert torch.equal(larger.pos_embed, fresh)
    report = stvid.load_checkpoint(larger, tmp_path / "model.safetensors")
    assert "pos_embed" in report.resized
    clip = torch.randn(1, 3, 8, 64, 32)
    with torch.no_grad():  # as the small model does with a large clip
        torch.testing.assert_close(larger(clip), made(clip))
    with pytest.raises(ValueError, match="smaller than a tubelet"):
        tiny(num_frames=1)


def test_a_mask_leaves_tokens_out() -> None:
    model, clip = tiny(), torch.randn(2, 3, 4, 32, 32)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip, mask=mask), model.forward_features(clip))
        mask[0, :4], mask[1, 2:6] = True, True
        some = model.forward_features(clip, mask=mask)
        assert some.shape == (2, 4, 48)
        changed = clip.clone()
        changed[0, :, :2] = 9.0  # the first four tokens of the first clip are hidden
        torch.testing.assert_close(model.forward_features(changed, mask=mask), some)
    with pytest.raises(ValueError, match="mask: each clip"):
        mask[0, 7] = True
        model.forward_features(clip, mask=mask)


def test_every_token_may_be_merged() -> None:
    model, clip = tiny(), torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = model(clip)
        stvid.merge_tokens(model, 4, trace_source=True)
        merged = model(clip)
        assert model.forward_features(clip).shape == (2, 8, 48)
        assert not torch.allclose(merged, expected)
        assert len(token_sources(model)[0].unique()) == 2  # 8 tokens, then 4, then 2
        same = torch.zeros(1, 3, 4, 32, 32)
        model.pos_embed.zero_()
        stvid.merge_tokens(model, 0)
        plain = model(same)
        stvid.merge_tokens(model, 4)
        torch.testing.assert_close(model(same), plain)  # equal tokens lose nothing


def test_layers_learn_as_the_authors_group_them() -> None:
    plan = plan_parameters(tiny(), OptimConfig(layer_decay=0.5))
    scales = {name: treatment.lr_scale for name, treatment in plan.items()}
    assert scales["patch_embed.proj.weight"] == 0.125 and scales["head.fc.weight"] == 1.0
    assert scales["blocks.0.attn.q_bias"] == 0.25 and scales["blocks.1.mlp.fc2.weight"] == 0.5
    assert scales["head.norm.weight"] == 1.0
