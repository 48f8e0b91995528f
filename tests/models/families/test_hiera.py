"""Hiera: the order of its cells, masks, tables at other sizes, and the authors' pretraining."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stvid
from stvid.models.families.hiera import Hiera

TINY: dict[str, Any] = {"num_frames": 4, "img_size": (64, 96), "depth": (1, 1, 2, 1), "embed_dim": 8, "num_heads": 1}


def tiny(num_classes: int = 5, **options: Any) -> Hiera:
    torch.manual_seed(0)
    model = stvid.create_model("hiera_base", num_classes=num_classes, **{**TINY, **options}).eval()
    assert isinstance(model, Hiera)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def authors_state(model: Hiera) -> dict[str, Tensor]:
    state = model.state_dict()
    return {key.replace("head.norm.", "norm.").replace("head.fc.", "head.projection."): state[key] for key in state}


def test_cells_stand_in_their_mask_units() -> None:
    model, clip = tiny(), torch.randn(2, 3, 4, 64, 96)
    with torch.no_grad():
        model.pos_embed_spatial.zero_()
        model.pos_embed_temporal.zero_()
        grid = model.patch_embed.proj(clip)  # (B, C, 2, 16, 24)
        cells = model.embed(clip)
        assert cells.shape == (2, 2 * 2 * 3, 64, 8)
        torch.testing.assert_close(model.to_map(cells, 0, (4, 64, 96)), grid)
        unit = grid[:, :, 1, 8:16, 16:24]  # the last unit of the second pair of frames
        torch.testing.assert_close(cells[:, 11].sort(1).values, unit.flatten(2).transpose(1, 2).sort(1).values)
        pooled = torch.nn.functional.max_pool3d(grid, (1, 2, 2))
        quarter = cells.unflatten(2, (16, 4)).amax(3)
        torch.testing.assert_close(model.to_map(quarter, 1, (4, 64, 96)), pooled)


def test_the_first_stages_stay_within_a_unit() -> None:
    model, clip = tiny(), torch.randn(1, 3, 4, 64, 96)
    other = clip.clone()
    other[:, :, :, :24, :24] += 1.0  # in the first unit of each pair of frames, off its border
    with torch.no_grad():
        _, before = model.forward_intermediates(clip)
        _, after = model.forward_intermediates(other)
    changed = [(a - b).abs().amax((0, 1, 2)) > 0 for a, b in zip(before, after, strict=True)]
    for stage, side in ((0, 8), (1, 4)):
        assert changed[stage][:side, :side].any()
        assert not changed[stage][side:].any() and not changed[stage][:, side:].any()
    assert changed[2].all() and changed[3].all()


def test_a_mask_leaves_units_out() -> None:
    model, clip = tiny(), torch.randn(2, 3, 4, 64, 96)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip, mask=mask), model.forward_features(clip))
        mask[0, :6], mask[1, 6:] = True, True  # the first frames of one clip, the last of the other
        some = model.forward_features(clip, mask=mask)
        assert some.shape == (2, 6, 64)
        changed = clip.clone()
        changed[0, :, :2], changed[1, :, 2:] = 9.0, 9.0  # no kernel sees them, though kernels overlap
        torch.testing.assert_close(model.forward_features(changed, mask=mask), some)
    with pytest.raises(ValueError, match="mask: each clip"):
        mask[0, 7] = True
        model.forward_features(clip, mask=mask)
    with pytest.raises(ValueError, match="mask: shape"):
        model.forward_features(clip, mask=mask[:, 1:])


def test_other_sizes_resize_the_tables() -> None:
    model = tiny()
    with torch.no_grad():
        for size in ((4, 64, 96), (1, 32, 32), (7, 100, 70)):
            features, maps = model.forward_intermediates(torch.randn(1, 3, *size))
            grid = (-(-size[0] // 2), size[1] // 32, size[2] // 32)
            assert model.token_grid(size) == grid and maps[-1].shape[2:] == grid
            assert features.isfinite().all()
    larger = tiny(num_frames=8, img_size=(128, 96))
    state = {**model.state_dict()}
    with pytest.raises(stvid.errors.CheckpointError, match="pos_embed_spatial"):
        stvid.load_checkpoint(larger, authors_state(model))  # a grid that is not square, which the file does not name
    square = tiny(img_size=(64, 64))
    report = stvid.load_checkpoint(larger, authors_state(square))
    assert (
        set(report.resized) == {"pos_embed_spatial", "pos_embed_temporal"}
        and state.keys() == larger.state_dict().keys()
    )


def test_the_authors_layouts() -> None:
    made, clip = tiny(), torch.randn(1, 3, 4, 64, 96)
    model = tiny()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    report = stvid.load_checkpoint(model, {"model_state": authors_state(made)})
    assert report.format == "facebookresearch/hiera"
    with torch.no_grad():
        torch.testing.assert_close(model(clip), made(clip))
    body = {key: value for key, value in authors_state(made).items() if not key.startswith(("norm.", "head."))}
    extra = {"decoder_pos_embed": torch.zeros(1, 4, 8), "mask_token": torch.zeros(1, 1, 8)}
    extra |= {"encoder_norm.weight": torch.ones(64), "multi_scale_fusion_heads.0.bias": torch.zeros(64)}
    report = stvid.load_checkpoint(model, {"model_state": {**body, **extra}}, reset_head=True)
    assert report.format == "facebookresearch/hiera MAE"
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip), made.forward_features(clip))
    assert tiny(depth=(1, 2, 3, 1)).options_of(authors_state(made)) == {"depth": (1, 1, 2, 1)}


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="four stages"):
        tiny(depth=(1, 1))
    with pytest.raises(ValueError, match="32x32"):
        tiny(img_size=(31, 64))
    with pytest.raises(ValueError, match="no multiple"):
        tiny(num_heads=3)
