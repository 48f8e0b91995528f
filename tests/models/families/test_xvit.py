"""The shift of X-ViT, and what it keeps of the published checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stvid
from stvid.errors import CheckpointError
from stvid.models.families.xvit import shift_frames

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32}


def test_shift_takes_channels_of_the_neighbours_in_a_group() -> None:
    x = torch.randn(2, 8, 5, 12)
    shifted = shift_frames(x, num_segments=3, shift_div=4)
    for frame in range(8):
        follows, leads = frame % 3 != 2 and frame < 7, frame % 3 != 0
        ahead = x[:, frame + 1, :, :3] if follows else torch.zeros(2, 5, 3)
        behind = x[:, frame - 1, :, 3:6] if leads else torch.zeros(2, 5, 3)
        expected = torch.cat((ahead, behind, x[:, frame, :, 6:]), dim=-1)
        assert shifted[:, frame].equal(expected)


def test_groups_decide_what_a_frame_can_see() -> None:
    torch.manual_seed(0)
    clip = torch.randn(1, 3, 16, 32, 32)
    changed = clip.clone()
    changed[:, :, 8:] += 1

    def first_frames(num_segments: int) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = stvid.create_model(
            "xvit_base", num_classes=5, num_segments=num_segments, temporal_depth=0, **TINY
        ).eval()
        with torch.no_grad():
            return [model.forward_features(x)[:, 1:9] for x in (clip, changed)]

    before, after = first_frames(8)
    assert before.equal(after)
    before, after = first_frames(16)
    assert before[:, :6].equal(after[:, :6]) and not torch.allclose(
        before[:, 6:], after[:, 6:]
    )  # two blocks: two frames


@pytest.mark.parametrize("size", [(4, 40, 56), (11, 33, 100), (1, 224, 224), (9, 16, 16)])
def test_any_clip(size: tuple[int, int, int]) -> None:
    model = stvid.create_model("xvit_base", num_classes=5, **TINY).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size)).shape == (2, 5)


def test_a_new_head_takes_the_unused_one_along() -> None:
    source = stvid.create_model("xvit_base", num_classes=5, **TINY)
    target = stvid.create_model("xvit_base", num_classes=3, **TINY)
    with pytest.raises(CheckpointError, match="5 classes"):
        stvid.load_checkpoint(target, source.state_dict())
    report = stvid.load_checkpoint(target, source.state_dict(), reset_head=True)
    assert report.reset == ["head.fc.bias", "head.fc.weight"]
    source.reset_classifier(3)
    stvid.load_checkpoint(target, source.state_dict())


@pytest.mark.parametrize("num_segments", [8, 16])
def test_sixteen_frames_repeat_the_published_table(num_segments: int) -> None:
    """With two groups of eight, each half of a clip is what a model of eight frames computes."""
    torch.manual_seed(0)
    options = {**TINY, "num_classes": 5, "temporal_depth": 0}
    short = stvid.create_model("xvit_base", num_frames=8, **options).eval()
    model = stvid.create_model("xvit_base", num_frames=16, num_segments=num_segments, **options).eval()
    assert not stvid.load_checkpoint(model, short.state_dict()).resized
    clip = torch.randn(1, 3, 16, 32, 32)
    with torch.no_grad():
        halves = torch.cat([short.forward_features(half)[:, 1:] for half in clip.split(8, dim=2)], dim=1)
        assert torch.allclose(model.forward_features(clip)[:, 1:], halves, atol=1e-5) == (num_segments == 8)


def test_a_longer_table_of_frames_names_the_option() -> None:
    source = stvid.create_model("xvit_base", num_classes=5, num_time_embeds=16, **TINY)
    with pytest.raises(CheckpointError, match="num_time_embeds=16"):
        stvid.load_checkpoint(stvid.create_model("xvit_base", num_classes=5, **TINY), source.state_dict())
    target = stvid.create_model("xvit_base", num_classes=5, num_time_embeds=16, **TINY)
    stvid.load_checkpoint(target, source.state_dict())
