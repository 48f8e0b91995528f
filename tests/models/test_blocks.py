from __future__ import annotations

import torch

from stvid.models.blocks import resize_grid


def test_resize_grid_rules() -> None:
    table = torch.tensor([0.0, 10.0, 20.0]).view(1, 3, 1)
    assert resize_grid(table, (3,), (3,), mode="linear") is table
    assert resize_grid(table, (3,), (5,), mode="linear").flatten().tolist() == [0, 5, 10, 15, 20]
    assert resize_grid(table, (3,), (6,), mode="nearest").flatten().tolist() == [0, 0, 10, 10, 20, 20]
    grid = torch.arange(6.0).view(1, 6, 1)
    assert resize_grid(grid, (2, 3), (1, 3), mode="nearest").flatten().tolist() == [0, 1, 2]
    assert resize_grid(grid, (1, 2, 3), (2, 2, 3), mode="linear").flatten().tolist() == 2 * list(range(6))
