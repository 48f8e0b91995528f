"""STM: the branch of space and time, and that of motion."""

from __future__ import annotations

import pytest
import torch

import stvid
from stvid.models.families.stm import MotionModule, SpatioTemporalMotion


def test_the_last_frame_and_still_frames_have_no_motion() -> None:
    motion = MotionModule(32).eval()
    torch.nn.init.zeros_(motion.filter.weight)
    motion.filter.weight.data[:, :, 1, 1] = 1.0  # filters nothing, so that equal frames differ by nothing
    x = torch.randn(1, 3, 32, 6, 6)
    x[:, 1] = x[:, 0]
    with torch.no_grad():
        found = motion(x)
    assert not found[:, 2].any() and not found[:, 0].any()
    assert found[:, 1].abs().max() > 1e-3


def test_time_starts_as_a_shift_of_half_the_channels() -> None:
    block = SpatioTemporalMotion(16, stride=1)
    block.start()
    x = torch.randn(1, 3, 16, 4, 4)
    with torch.no_grad():
        moved = block.time(x)
    torch.testing.assert_close(moved[:, 1:, :4], x[:, :-1, :4])
    torch.testing.assert_close(moved[:, :, 4:12], x[:, :, 4:12])
    torch.testing.assert_close(moved[:, :-1, 12:], x[:, 1:, 12:])
    assert not moved[:, 0, :4].any() and not moved[:, -1, 12:].any()


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_both_branches_round_a_stride_up(size: tuple[int, int]) -> None:
    block = SpatioTemporalMotion(16, stride=2).eval()
    with torch.no_grad():
        assert block(torch.randn(1, 2, 16, *size)).shape[3:] == tuple(-(-side // 2) for side in size)


def test_the_options_are_read_off_a_file() -> None:
    small = {"num_classes": 3, "depth": (1, 1, 1, 1), "embed_dim": 64}
    other = stvid.create_model("stm_r50", **{**small, "depth": (1, 2, 1, 1), "in_chans": 2})
    found = stvid.create_model("stm_r50", **small).options_of(other.state_dict())
    assert found == {"depth": (1, 2, 1, 1), "in_chans": 2}
    with pytest.raises(ValueError, match="embed_dim 8"):
        stvid.create_model("stm_r50", **{**small, "embed_dim": 8})
