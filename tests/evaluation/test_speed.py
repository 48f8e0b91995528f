"""The time of a pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stvid.evaluation.speed import measure_speed


@pytest.mark.parametrize("step", ["forward", "train"])
def test_passes_are_timed(step: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, 5))
    calls: list[bool] = []
    model.register_forward_hook(lambda module, inputs, logits: calls.append(logits.requires_grad))
    taken = measure_speed(model, torch.randn(2, 3, 2, 4, 4), step=step, threads=1, seconds=0.01)  # type: ignore[arg-type]
    assert 0 < taken.seconds < 1 and taken.spread >= 0 and taken.threads == 1 and taken.peak_gib is None
    assert len(calls) > 2 and set(calls) == {step == "train"}
    assert (model[1].weight.grad is not None) == (step == "train")


def test_low_precision() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, 5))
    dtypes = set()
    model.register_forward_hook(lambda module, inputs, logits: dtypes.add(logits.dtype))
    measure_speed(model, torch.randn(2, 3, 2, 4, 4), precision="bf16-mixed", threads=1, seconds=0.01)
    assert dtypes == {torch.bfloat16}
