from __future__ import annotations

import torch

from stvid.models.blocks import TubeletEmbed, resize_grid


def test_resize_grid_rules() -> None:
    table = torch.tensor([0.0, 10.0, 20.0]).view(1, 3, 1)
    assert resize_grid(table, (3,), (3,), mode="linear") is table
    assert resize_grid(table, (3,), (5,), mode="linear").flatten().tolist() == [0, 5, 10, 15, 20]
    assert resize_grid(table, (3,), (6,), mode="nearest").flatten().tolist() == [0, 0, 10, 10, 20, 20]
    grid = torch.arange(6.0).view(1, 6, 1)
    assert resize_grid(grid, (2, 3), (1, 3), mode="nearest").flatten().tolist() == [0, 1, 2]
    assert resize_grid(grid, (1, 2, 3), (2, 2, 3), mode="linear").flatten().tolist() == 2 * list(range(6))


def test_tokens_have_their_channels_side_by_side() -> None:
    """Sums would hand the layout of the convolution on, and every norm would copy its input."""
    embed = TubeletEmbed(3, 8, tubelet_size=(2, 4, 4))
    clip = torch.randn(2, 3, 4, 8, 12)
    tokens = embed(clip)
    assert tokens.shape == (2, 2, 2, 3, 8) and tokens.is_contiguous()
    torch.testing.assert_close(tokens, embed.proj(clip).permute(0, 2, 3, 4, 1))
