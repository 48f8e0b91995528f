from __future__ import annotations

import numpy as np
import pytest
import torch

from stvid.models.masking import MASKS, random_mask, running_cell_mask, tube_mask

GRID = (4, 6, 6)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_tubes_hide_the_same_places_in_every_frame() -> None:
    mask = tube_mask(3, GRID, 0.9, draw())
    assert mask.shape == (3, 4 * 36) and mask.dtype == torch.bool
    frames = mask.view(3, 4, 36)
    assert (frames == frames[:, :1]).all()
    assert (frames.sum(2) == 32).all()  # int(0.9 * 36)
    assert not torch.equal(mask[0], mask[1])


def test_random_masks_keep_an_exact_share() -> None:
    mask = random_mask(3, (8, 7, 7), 0.9, draw())
    assert ((~mask).sum(1) == 39).all()  # int(392 * (1 - 0.9))
    frames = mask.view(3, 8, 49)
    assert not (frames == frames[:, :1]).all()


@pytest.mark.parametrize("kind", sorted(MASKS))
def test_masks_follow_from_the_generator_alone(kind: str) -> None:
    first = MASKS[kind](2, GRID, 0.5, draw(3))
    assert torch.equal(first, MASKS[kind](2, GRID, 0.5, draw(3)))
    assert not torch.equal(first, MASKS[kind](2, GRID, 0.5, draw(4)))


@pytest.mark.parametrize("kind", sorted(MASKS))
def test_each_place_is_hidden_as_often(kind: str) -> None:
    mask = MASKS[kind](2000, (1, 4, 4), 0.5, draw())
    assert mask.float().mean(0).sub(0.5).abs().max() < 0.05


@pytest.mark.parametrize(("ratio", "words"), [(0.01, "hides none of"), (1.0, "hides all of")])
def test_a_share_must_leave_something_and_hide_something(ratio: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tube_mask(1, GRID, ratio, draw())
    with pytest.raises(ValueError, match="hides all of"):
        random_mask(1, GRID, 1.0, draw())


def test_running_cells_take_turns() -> None:
    mask = running_cell_mask(5, GRID, 0.5, draw()).view(5, 4, 3, 2, 3, 2)
    squares = mask.permute(0, 1, 2, 4, 3, 5).flatten(4)  # clip, frame, rows and columns of squares, cells
    assert (squares.sum(4) == 2).all()
    assert (squares == squares[:, :, :1, :1]).all()
    row = squares[:, :, 0, 0]
    assert torch.equal(row[:, 1:], row[:, :-1].roll(-1, dims=2))
    assert (row.sum(1) == 2).all()  # each cell is left alone in two of four frames
    assert len({tuple(clip.flatten().tolist()) for clip in row}) > 1


def test_running_cells_are_those_of_the_official_code() -> None:
    # Frame 0 of the recorded mask of VideoMAE V2, ptr 1: queue [1, 1, 0, 0] moved on by two.
    starts = {tuple(running_cell_mask(1, (1, 2, 2), 0.5, draw(seed))[0].int().tolist()) for seed in range(20)}
    assert starts == {(1, 1, 0, 0), (1, 0, 0, 1), (0, 0, 1, 1), (0, 1, 1, 0)}


def test_running_cells_need_whole_squares() -> None:
    with pytest.raises(ValueError, match="a frame of 3x4 cells does not hold"):
        running_cell_mask(1, (2, 3, 4), 0.5, draw())
    with pytest.raises(ValueError, match="hides none of the 4 cells of a square"):
        running_cell_mask(1, GRID, 0.1, draw())
