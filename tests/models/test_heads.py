from __future__ import annotations

import torch

from stvid.models.heads import mean_of_windows


def test_mean_of_windows() -> None:
    x = torch.arange(3.0).reshape(1, 1, 3, 1, 1)
    assert mean_of_windows(x, None).item() == 1.0
    assert mean_of_windows(x, (5, 7, 7)).item() == 1.0
    y = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 3, 1, 1)
    assert mean_of_windows(y, (2, 7, 7)).item() == 0.25  # windows (1, 0) and (0, 0): the first position weighs half
