"""CorrNet: the correlation operator, and where its blocks stand."""

from __future__ import annotations

import itertools

import pytest
import torch

import stvid
from stvid.models.families.corrnet import Correlation, CorrelationBlock, CorrNet

TINY = {"num_classes": 3, "depth": (1, 2, 2, 1), "embed_dim": 32, "groups": 4, "num_frames": 4, "img_size": 32}


def test_the_operator_is_its_formula() -> None:
    operator = Correlation(4, frames=3, groups=2, patch=3, dilation=2).double()
    torch.nn.init.normal_(operator.weight)
    x = torch.randn(1, 4, 3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        found = operator(x)[0].unflatten(0, (3, 3, 2))
        expected = torch.zeros_like(found)
        for down, right, group, frame, row, column in itertools.product(*map(range, expected.shape)):
            other = (row + 2 * (down - 1), column + 2 * (right - 1))
            if 0 <= other[0] < 5 and 0 <= other[1] < 6:
                for channel in (2 * group, 2 * group + 1):
                    weight = operator.weight[3 * down + right, channel, frame]
                    before = x[0, channel, max(frame - 1, 0), other[0], other[1]]
                    place = x[0, channel, frame, row, column]
                    expected[down, right, group, frame, row, column] += weight * before * place / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("corrnet_r26", ["layer1.1", "layer2.1", "layer3.1"]),
        ("corrnet_r50", ["layer1.2", "layer2.3", "layer3.5"]),
        ("corrnet_r101", ["layer1.2", "layer2.3", "layer3.11", "layer3.22"]),
    ],
)
def test_blocks_stand_behind_stages(name: str, places: list[str]) -> None:
    with torch.device("meta"):
        model = stvid.create_model(name)
    blocks = {path: part for path, part in model.named_modules() if isinstance(part, CorrelationBlock)}
    assert list(blocks) == [f"{place}.correlation" for place in places]
    frames = [part.correlation.weight.shape[2] for part in blocks.values()]
    assert frames == [32, 32, 16, 16][: len(frames)]


def test_only_clips_of_the_frames_that_have_filters_are_taken() -> None:
    model = stvid.create_model("corrnet_r50", **TINY)
    with pytest.raises(ValueError, match=r"filters for each of 4 frames, and the clip has 6: build .* num_frames=6"):
        model(torch.randn(1, 3, 6, 32, 32))
    odd = stvid.create_model("corrnet_r50", **{**TINY, "num_frames": 5}).eval()
    with torch.no_grad():
        assert odd(torch.randn(1, 3, 5, 33, 50)).isfinite().all()
    with pytest.raises(ValueError, match="groups 3: must divide the 8 channels"):
        stvid.create_model("corrnet_r50", **{**TINY, "groups": 3})


def test_the_options_are_read_off_a_file() -> None:
    changed = {"depth": (1, 2, 4, 1), "num_frames": 6, "groups": 2, "in_chans": 2}
    other = stvid.create_model("corrnet_r101", **{**TINY, **changed})
    model = stvid.create_model("corrnet_r50", **TINY)
    assert isinstance(model, CorrNet)
    assert model.options_of(other.state_dict()) == {**changed, "extra_correlation": True}
