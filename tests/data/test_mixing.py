from __future__ import annotations

import numpy as np
import pytest
import torch

from stvid.config import AugmentConfig
from stvid.data.mixing import Mixer
from stvid.errors import ConfigError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def batch(size: int = 6, side: int = 20, frames: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip i has the value i everywhere and the class i."""
    clips = torch.arange(size, dtype=torch.float32).view(-1, 1, 1, 1, 1).expand(-1, 3, frames, side, side).contiguous()
    return clips, torch.arange(size)


def test_without_mixing_clips_pass_and_targets_are_one_hot() -> None:
    clips, targets = batch()
    mixed, soft = Mixer(8, AugmentConfig())(clips, targets, rng())
    assert mixed is clips
    assert torch.equal(soft, torch.eye(8)[:6])


def test_label_smoothing_is_timms() -> None:
    clips, targets = batch()
    soft = Mixer(8, AugmentConfig(label_smoothing=0.2))(clips, targets, rng())[1]
    assert torch.allclose(soft.sum(1), torch.ones(6))
    assert torch.allclose(soft[0], torch.tensor([0.825] + [0.025] * 7))


def test_mixup_blends_pixels_and_targets_in_the_same_share() -> None:
    clips, targets = batch()
    before = clips.clone()
    shares = []
    for seed in range(200):
        mixed, soft = Mixer(6, AugmentConfig(mixup=0.8))(clips, targets, rng(seed))
        assert torch.allclose(soft.sum(1), torch.ones(6))
        # The value of clip i is i, so the blended value is the expected value of the class under the soft target.
        expected = soft @ torch.arange(6.0)
        assert torch.allclose(mixed, expected.view(-1, 1, 1, 1, 1).expand_as(mixed), atol=1e-5)
        shares.append(float(soft.max(1).values.min()))
    assert torch.equal(clips, before)
    assert min(shares) < 0.6 and max(shares) > 0.95


def test_cutmix_targets_follow_the_true_area_of_the_box() -> None:
    clips, targets = batch(side=21)
    areas, at_edge = [], 0
    for seed in range(200):
        mixed, soft = Mixer(6, AugmentConfig(cutmix=1.0))(clips, targets, rng(seed))
        for number in range(6):
            pasted = mixed[number] != number
            share = float(pasted.float().mean())
            assert float(soft[number, number]) == pytest.approx(1 - share, abs=1e-6)
            if not pasted.any():
                continue
            assert torch.equal(pasted, pasted[:1, :1].expand_as(pasted)), "the same box in all frames"
            rows, columns = pasted[0, 0].any(1).nonzero().flatten(), pasted[0, 0].any(0).nonzero().flatten()
            assert share == pytest.approx(len(rows) * len(columns) / 441)
            assert pasted[0, 0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            at_edge += int(rows[0]) == 0 or int(rows[-1]) == 20
            areas.append(share)
            partner = int(mixed[number][pasted][0])
            assert float(soft[number, partner]) == pytest.approx(share, abs=1e-6)
    assert min(areas) < 0.1 and max(areas) > 0.7
    assert at_edge > 20, "boxes that reach over the edge occur and are counted by what is inside"
    assert torch.equal(clips, batch(side=21)[0])


def test_smoothing_is_folded_into_mixed_targets() -> None:
    clips, targets = batch()
    for seed in range(20):
        plain = Mixer(6, AugmentConfig(mixup=0.8))(clips, targets, rng(seed))[1]
        smooth = Mixer(6, AugmentConfig(mixup=0.8, label_smoothing=0.1))(clips, targets, rng(seed))[1]
        assert torch.allclose(smooth, plain * 0.9 + 0.1 / 6, atol=1e-6)


def test_switch_and_probability() -> None:
    clips, targets = batch(frames=1, side=32)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    mixer = Mixer(6, AugmentConfig(mixup=0.8, cutmix=1.0, mix_prob=0.6, mix_switch=0.25))
    for seed in range(600):
        mixed, _ = mixer(clips, targets, rng(seed))
        if mixed is clips:
            kinds["none"] += 1
        elif torch.equal(mixed, mixed.round()):
            kinds["cutmix"] += 1
        else:
            kinds["mixup"] += 1
    assert 0.33 < kinds["none"] / 600 < 0.47
    assert 0.09 < kinds["cutmix"] / 600 < 0.21
    assert 0.38 < kinds["mixup"] / 600 < 0.52


def test_multilabel_targets() -> None:
    clips, _ = batch(2)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    soft = Mixer(3, AugmentConfig(), multilabel=True)(clips, targets, rng())[1]
    assert torch.equal(soft, targets)
    smooth = Mixer(3, AugmentConfig(label_smoothing=0.3), multilabel=True)(clips, targets, rng())[1]
    assert torch.allclose(smooth, targets * 0.7 + 0.1)
    mixed, soft = Mixer(3, AugmentConfig(mixup=1.0), multilabel=True)(clips, targets, rng(1))
    share = 1 - float(mixed[0].mean())  # of clip 0 in itself
    assert torch.allclose(soft[0], torch.tensor([share, share, 1 - share]), atol=1e-6)
    assert 0 < share < 1


def test_is_a_pure_function_of_the_generator() -> None:
    clips, targets = batch()
    clips = clips + torch.rand(clips.shape, generator=torch.Generator().manual_seed(0))
    mixer = Mixer(6, AugmentConfig(mixup=0.8, cutmix=1.0))
    for seed in range(10):
        one, other = mixer(clips, targets, rng(seed)), mixer(clips, targets, rng(seed))
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_one_clip_is_mixed_with_itself() -> None:
    clips, targets = torch.rand(1, 3, 2, 8, 8), torch.tensor([2])
    mixed, soft = Mixer(4, AugmentConfig(mixup=0.8))(clips, targets, rng())
    assert torch.allclose(mixed, clips)
    assert torch.allclose(soft, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mixup": -1}, "mixup"),
        ({"cutmix": -0.5}, "cutmix"),
        ({"mix_prob": 1.5}, "mix_prob"),
        ({"mix_switch": -1}, "mix_switch"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, float], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^augment\.{field}: "):
        Mixer(3, AugmentConfig(**changes))


def test_wrong_shapes_are_refused() -> None:
    clips, targets = batch()
    mixer = Mixer(6, AugmentConfig())
    with pytest.raises(ValueError, match="float clips"):
        mixer(clips.to(torch.uint8), targets, rng())
    with pytest.raises(ValueError, match="targets"):
        mixer(clips, targets[:3], rng())
    with pytest.raises(ValueError, match="targets"):
        Mixer(6, AugmentConfig(), multilabel=True)(clips, targets, rng())
