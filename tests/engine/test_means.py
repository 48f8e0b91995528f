from __future__ import annotations

import pytest
import torch

from stvid.engine.means import EpochSums, broken_weight, gathered


def test_means_are_weighted_by_clips_and_survive_a_stop() -> None:
    whole, first = EpochSums(), EpochSums()
    values = [(0.1, 4), (0.7, 4), (1 / 3, 3)]
    for value, clips in values:
        whole.add(1, "loss", value, clips)
    first.add(1, "loss", *values[0])
    rest = EpochSums(**first.to_dict())
    for value, clips in values[1:]:
        rest.add(1, "loss", value, clips)
    mean, clips = rest.take(1)["loss"]
    assert (mean, clips) == whole.take(1)["loss"] and clips == 11
    assert mean == pytest.approx((0.4 + 2.8 + 1) / 11)
    assert rest.take(1) == {}


def test_another_epoch_begins_anew() -> None:
    sums = EpochSums()
    sums.add(0, "loss", 5.0, 2)
    sums.add(1, "loss", 1.0, 2)
    assert sums.take(1) == {"loss": (1.0, 2)}
    sums.add(1, "loss", 1.0, 2)
    assert sums.take(2) == {}


def test_the_sums_of_all_ranks_are_joined() -> None:
    parts = [EpochSums(2, {"loss": 3.0}, {"loss": 2}), EpochSums(2, {"loss": 1.0}, {"loss": 4})]
    assert EpochSums.merged(parts) == EpochSums(2, {"loss": 4.0}, {"loss": 6})
    assert EpochSums.merged([EpochSums()]) == EpochSums()
    assert gathered("alone") == ["alone"]


@pytest.mark.parametrize(
    ("value", "broken"), [(float("nan"), True), (float("-inf"), True), (-5e30, True), (1e6, False)]
)
def test_broken_weights_are_found(value: float, broken: bool) -> None:
    weights = {"count": torch.tensor(3), "empty": torch.zeros(0), "weight": torch.tensor([1.0, value])}
    for part in ("state_dict", "current_model_state"):
        found = broken_weight({"state_dict": {}, part: weights})
        assert (found is not None and found.startswith("weight holds ")) is broken
