"""UMT: its table of positions, the encoder of the pretraining, masks and merging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stvid
from stvid.errors import CheckpointError
from stvid.models.blocks import resize_grid, sinusoids
from stvid.models.families.umt import UMT

TINY: dict[str, Any] = {"num_frames": 4, "img_size": (32, 48), "depth": 2, "embed_dim": 48, "num_heads": 4}


def tiny(num_classes: int = 5, **options: Any) -> UMT:
    torch.manual_seed(0)
    model = stvid.create_model("umt_vit_b", num_classes=num_classes, **{**TINY, **options}).eval()
    assert isinstance(model, UMT)
    return model


def authors_state(model: UMT) -> dict[str, Tensor]:
    """The state of a model in the authors' keys."""
    state = model.state_dict()
    return {key.replace("head.norm.", "fc_norm.").replace("head.fc.", "head."): state[key] for key in state}


def test_positions_are_sines_of_the_published_grid_resized() -> None:
    published = tiny(num_frames=8, img_size=(224, 224))
    assert "pos_embed" not in dict(published.named_parameters())
    assert torch.equal(published.pos_embed, sinusoids(1568, 48))
    other = tiny(num_frames=16)
    table = dict(other.named_parameters())["pos_embed"]
    assert not table.requires_grad
    assert torch.equal(table, resize_grid(sinusoids(1568, 48), (8, 14, 14), (16, 2, 3), mode="cubic"))
    same_count = tiny(num_frames=32, img_size=(112, 112))  # 1568 tokens of another grid
    assert "pos_embed" not in dict(same_count.named_parameters())
    assert not torch.equal(same_count.pos_embed, published.pos_embed)


def test_the_authors_files_load_with_and_without_a_table() -> None:
    model = tiny()
    clip = torch.randn(2, 3, 4, 32, 48)
    state = authors_state(model)
    without = {key: value for key, value in state.items() if key != "pos_embed"}
    for found in (state, without):
        torch.manual_seed(1)
        other = stvid.create_model("umt_vit_b", num_classes=5, **TINY).eval()
        assert stvid.load_checkpoint(other, {"module": found}).format == "OpenGVLab/unmasked_teacher"
        with torch.no_grad():
            torch.testing.assert_close(other(clip), model(clip), rtol=0, atol=0)


def test_a_published_table_follows_the_frames() -> None:
    longer = tiny(num_frames=16, img_size=(224, 224))
    shorter = tiny(num_frames=8, img_size=(224, 224))
    report = stvid.load_checkpoint(shorter, authors_state(longer))
    assert report.resized == {"pos_embed": ((1, 3136, 48), (1, 1568, 48))}
    expected = resize_grid(longer.pos_embed.detach(), (16, 14, 14), (8, 14, 14), mode="cubic")
    assert torch.equal(shorter.pos_embed, expected)
    assert shorter.resize_table("pos_embed", torch.zeros(1, 7, 48), {}) is None
    assert longer.options_of(authors_state(shorter))["num_frames"] == 8


def test_the_pretraining_gives_its_encoder() -> None:
    model = tiny()
    state = authors_state(model)
    body = {f"encoder.{key}": state[key] for key in state if not key.startswith(("head.", "fc_norm.", "pos_embed"))}
    extra = {"encoder.norm.weight": torch.ones(48), "encoder.norm.bias": torch.ones(48)}
    decoder = {"clip_decoder.0.head.weight": torch.zeros(3, 48)}
    with pytest.raises(CheckpointError, match=r"missing head\.fc"):
        stvid.load_checkpoint(tiny(), {**body, **extra, **decoder})
    other = tiny(num_classes=0)
    report = stvid.load_checkpoint(other, {**body, **extra, **decoder})
    assert report.format == "OpenGVLab/unmasked_teacher pretraining"
    clip = torch.randn(1, 3, 4, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(other.forward_features(clip), model.forward_features(clip))


def test_a_mask_leaves_tokens_out_and_tokens_merge() -> None:
    model = tiny()
    clip = torch.randn(2, 3, 4, 32, 48)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, ::3] = True
    with torch.no_grad():
        assert model.forward_features(clip, mask=mask).shape == (2, 16, 48)
        plain = model(clip)
        stvid.merge_tokens(model, 6)
        assert model(clip).shape == plain.shape
