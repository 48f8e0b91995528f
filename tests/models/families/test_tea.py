"""TEA: motion excitation, and the cascade of groups."""

from __future__ import annotations

import pytest
import torch

import stvid
from stvid.models.families.tea import MotionExcitation, TemporalCascade


def test_the_last_frame_has_no_motion() -> None:
    excitation = MotionExcitation(32).eval()
    x = torch.randn(1, 3, 32, 6, 6)
    with torch.no_grad():
        gates = excitation(x) / x - 1
    assert torch.allclose(gates[:, 2], torch.zeros_like(gates[:, 2]), atol=1e-4)  # sigmoid of zero, less a half
    assert gates[:, :2].abs().max() > 1e-3


@pytest.mark.parametrize("first", [False, True])
def test_groups_follow_each_other_but_in_the_first_block(first: bool) -> None:
    cascade = TemporalCascade(16, stride=1, first=first).eval()
    cascade.start()
    x = torch.randn(1, 3, 16, 4, 4)
    changed = x.clone()
    changed[:, :, :4] += 1.0  # the first group
    with torch.no_grad():
        differ = [(group.abs().max() > 1e-6).item() for group in (cascade(x) - cascade(changed)).split(4, 2)]
    assert differ == ([True, False, False, False] if first else [True, True, True, False])


def test_the_last_group_starts_as_a_shift() -> None:
    cascade = TemporalCascade(16, stride=1, first=False).eval()
    cascade.start()
    x = torch.randn(1, 3, 16, 4, 4)
    with torch.no_grad():
        last = cascade(x)[:, :, 12:]
    torch.testing.assert_close(last[:, :-1, :2], x[:, 1:, 12:14])
    torch.testing.assert_close(last[:, 1:, 2:], x[:, :-1, 14:])


def test_the_width_is_read_off_a_file() -> None:
    small = {"num_classes": 3, "depth": (1, 1, 1, 1), "embed_dim": 64}
    wide = stvid.create_model("tea_r50", width=40, **small)
    assert stvid.create_model("tea_r50", **small).options_of(wide.state_dict()) == {"width": 40}
