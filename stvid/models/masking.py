"""Masks of the masked pretraining: which cells of a clip an encoder does not see, and which a decoder leaves alone.

Every function is pure: the same generator gives the same masks. A mask is bool (B, t*h*w) on the CPU, with the cells of
a grid (t, h, w) in the order of time, height and width, True for a cell that is hidden. All clips of a batch hide the
same number.

    tube_mask             the same places in every frame (VideoMAE)
    random_mask           any cells (Hiera, whose cells are mask units; MAE for video)
    running_cell_mask     for a decoder: in every square of 2x2 cells as many, which take turns in time (VideoMAE V2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["MASKS", "Masking", "random_mask", "running_cell_mask", "tube_mask"]

Masking = Literal["tube", "random"]
"""How the cells are chosen that an encoder does not see."""

CELL = 2  # side of a running cell (official code: 2x2 patches)


def tube_mask(batch: int, grid: Sequence[int], ratio: float, generator: np.random.Generator) -> Tensor:
    """Hides the same places in every frame (Tong et al. 2022, section 3.3; official code: masking_generator.py).

    Args:
        batch: Number of clips B; each has places of its own.
        grid: (t, h, w).
        ratio: Share of the places of a frame that are hidden: int(ratio * h * w) of them.
        generator: Source of the choice.

    Returns:
        bool (B, t*h*w).

    Raises:
        ValueError: If no place, or every one, would be hidden.
    """
    frames, places = grid[0], grid[1] * grid[2]
    hidden = int(ratio * places)
    _check(hidden, places, ratio, "places of a frame")
    return _drawn(batch, places, hidden, generator).repeat(1, frames)


def random_mask(batch: int, grid: Sequence[int], ratio: float, generator: np.random.Generator) -> Tensor:
    """Hides cells anywhere in the clip (Ryali et al. 2023; official code: hiera_mae.py, get_random_mask).

    Args:
        batch: Number of clips B; each has cells of its own.
        grid: (t, h, w).
        ratio: Share of the cells that are hidden: int(t*h*w * (1 - ratio)) of them stay visible.
        generator: Source of the choice.

    Returns:
        bool (B, t*h*w).

    Raises:
        ValueError: If no cell, or every one, would be hidden.
    """
    cells = math.prod(grid)
    hidden = cells - int(cells * (1 - ratio))
    _check(hidden, cells, ratio, "cells of a clip")
    return _drawn(batch, cells, hidden, generator)


def running_cell_mask(batch: int, grid: Sequence[int], ratio: float, generator: np.random.Generator) -> Tensor:
    """Leaves a part of each square of 2x2 cells to no decoder, another part in each frame (Wang et al. 2023, 3.2).

    The four cells of a square stand in a row. From one frame to the next the row moves on by one, so that each cell
    is decoded as often (official code of VideoMAE V2: masking_generator.py, RunningCellMaskingGenerator).

    Args:
        batch: Number of clips B; each begins at a place of its own in the row.
        grid: (t, h, w), h and w even.
        ratio: Share of the cells that are left alone: int(4 * ratio) of each square.
        generator: Source of the beginnings.

    Returns:
        bool (B, t*h*w), True where nothing is decoded.

    Raises:
        ValueError: If the grid has no whole squares, or no cell or every cell of a square would be left alone.
    """
    frames, height, width = grid
    if height % CELL or width % CELL:
        raise ValueError(f"running cells are squares of 2x2, which a frame of {height}x{width} cells does not hold")
    row = CELL * CELL
    skipped = int(row * ratio)
    _check(skipped, row, ratio, "cells of a square")
    queue = torch.arange(row) < skipped
    start = torch.from_numpy(generator.integers(row, size=batch))
    moved = start[:, None] + torch.arange(1, frames + 1)  # the row moves before the first frame, too
    squares = queue[(torch.arange(row) + moved[:, :, None]) % row].unflatten(2, (CELL, CELL))
    return squares.repeat(1, 1, height // CELL, width // CELL).flatten(1)


MASKS: dict[str, Callable[[int, Sequence[int], float, np.random.Generator], Tensor]] = {
    "tube": tube_mask,
    "random": random_mask,
}
"""The function of each `Masking`."""


def _check(hidden: int, cells: int, ratio: float, of_what: str) -> None:
    if not 0 < hidden < cells:
        share = "none" if hidden <= 0 else "all"
        raise ValueError(f"a ratio of {ratio:g} hides {share} of the {cells} {of_what}")


def _drawn(batch: int, cells: int, hidden: int, generator: np.random.Generator) -> Tensor:
    """Draws as many cells for each clip; bool (B, cells)."""
    order = generator.permuted(np.tile(np.arange(cells), (batch, 1)), axis=1)
    return torch.from_numpy(order < hidden)
