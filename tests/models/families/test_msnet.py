"""MSNet: matches between frames, and the displacements that they show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import stvid
from stvid.models.families.msnet import MotionSqueeze


def test_matches_are_products_with_the_places_around() -> None:
    module = MotionSqueeze(8, patch=3, matched_dim=4)
    first, second = torch.rand(2, 4, 3, 5), torch.rand(2, 4, 3, 5)
    found = module.match(first, second)
    around = F.unfold(second, 3, padding=1).view(2, 4, 9, 3, 5)
    torch.testing.assert_close(found, (first.unsqueeze(2) * around).sum(1))


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-1, 3), (3, -2)])
def test_a_moved_picture_shows_its_displacement(right: int, down: int) -> None:
    module = MotionSqueeze(8, patch=7, matched_dim=32)
    first = F.normalize(torch.randn(1, 32, 16, 16), dim=1)
    second = first.roll((down, right), (2, 3))
    flow = module.displacements(module.match(first, second))[0, :, 4:-4, 4:-4]
    torch.testing.assert_close(flow[0], torch.full_like(flow[0], right / 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(flow[1], torch.full_like(flow[1], down / 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(flow[2], torch.ones_like(flow[2]))


def test_the_last_frame_has_the_motion_of_the_one_before() -> None:
    module = MotionSqueeze(8, patch=3).eval()
    with torch.no_grad():
        out = module(torch.rand(2, 4, 8, 6, 6))
    assert out.shape == (2, 4, 8, 6, 6)
    torch.testing.assert_close(out[:, -1], out[:, -2])
    with pytest.raises(ValueError, match="patch 4: must be an odd number"):
        MotionSqueeze(8, patch=4)


def test_motion_stands_behind_the_second_stage() -> None:
    model = stvid.create_model("msnet_r18", num_classes=3, depth=(1, 1, 1, 1), embed_dim=16, patch=3).eval()
    x = torch.rand(1, 3, 32, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(model.behind_stage(2, x), x + model.motion(x))
        assert model.behind_stage(3, x) is x
