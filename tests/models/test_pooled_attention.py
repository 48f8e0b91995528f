"""Pooled attention: its three ways of adding relative positions, and the poolings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import stvid
from stvid.models import pooled_attention
from stvid.models.attention import attend
from stvid.models.pooled_attention import Grid, Plan, PooledAttention, halve

GRID = (2, 5, 6)


def attention(grid: Grid = GRID, *, relative: bool = True, **options: Any) -> PooledAttention:
    settings = {"q_kernel": (3, 3, 3), "kv_kernel": (3, 3, 3), "q_stride": (1, 2, 2), "kv_stride": (1, 4, 4), **options}
    torch.manual_seed(0)
    module = PooledAttention(
        Plan(8, 16, 16, 2, grid=grid, **settings), relative=relative, qkv_bias=True, pool_norm_eps=1e-6, drop_rate=0.0
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def tokens(grid: Grid = GRID, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1 + grid[0] * grid[1] * grid[2], 8, generator=torch.manual_seed(1)).double()


def test_the_scores_are_the_products_and_a_row_for_each_distance() -> None:
    module, x = attention(), tokens()
    q, k, v = module.split(x)
    q, k, v = module.pool(q, "q", GRID), module.pool(k, "k", GRID), module.pool(v, "v", GRID)
    q_grid, k_grid = (2, 3, 3), (2, 2, 2)
    assert q.shape[2] == 1 + 18 and k.shape[2] == v.shape[2] == 1 + 8
    scores = (q @ k.transpose(2, 3)) * 8**-0.5
    cells = [[(t, h, w) for t in range(a) for h in range(b) for w in range(c)] for a, b, c in (q_grid, k_grid)]
    tables = []
    for name, queries, keys in zip("thw", q_grid, k_grid, strict=True):
        table, length = getattr(module, f"rel_pos_{name}"), 2 * max(queries, keys) - 1
        tables.append(F.interpolate(table.t()[None], size=length, mode="linear")[0].t())
    for row, query in enumerate(cells[0], start=1):
        for column, key in enumerate(cells[1], start=1):
            for axis, table in enumerate(tables):
                step = max(q_grid[axis] / k_grid[axis], 1.0)
                distance = int(query[axis] - key[axis] * step + (k_grid[axis] - 1) * step)
                scores[:, :, row, column] += q[:, :, row] @ table[distance]
    mixed = scores.softmax(-1) @ v
    mixed[:, :, 1:] += q[:, :, 1:]
    torch.testing.assert_close(module(x, GRID), module.proj(mixed.transpose(1, 2).flatten(2)))


def test_a_bias_and_channels_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = attention(), tokens()
    with torch.no_grad():
        biased = module(x, GRID)
        monkeypatch.setattr(pooled_attention, "BLOCK_SCORES", 100)  # a few queries at a time
        torch.testing.assert_close(module(x, GRID), biased)
    torch.testing.assert_close(module(x, GRID), biased)  # with gradients: as channels


def test_no_bias_is_kept_for_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*args: Any, bias: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        seen.append(bias)
        return attend(*args, bias=bias, **options)

    monkeypatch.setattr(pooled_attention, "attend", watched)
    attention()(tokens(), GRID).sum().backward()
    assert seen == [None]


@pytest.mark.parametrize("relative", [True, False])
def test_without_pooled_queries(relative: bool) -> None:
    plain = {"q_kernel": None, "q_stride": (1, 1, 1)}
    module, x = attention(relative=relative, **plain), tokens()
    assert module.pool_q is None and module.norm_q is None and module.pool_k is not None
    assert module(x, GRID).shape == (2, 1 + 2 * 5 * 6, 16)
    with torch.no_grad():
        torch.testing.assert_close(module(x, GRID), module(x.requires_grad_(), GRID))


def test_heads_share_the_kernels_and_the_class_token_is_not_pooled() -> None:
    module, x = attention(), tokens(batch=1)
    values = module.split(x)[2]
    pooled = module.pool(values, "v", GRID)
    assert module.norm_v is not None and module.pool_v is not None
    torch.testing.assert_close(pooled[:, :, :1], module.norm_v(values[:, :, :1]))
    for head in range(2):
        maps = values[:, head, 1:].transpose(1, 2).unflatten(2, GRID)
        alone = F.conv3d(maps, module.pool_v.weight, stride=(1, 4, 4), padding=1, groups=8)
        torch.testing.assert_close(pooled[:, head, 1:], module.norm_v(alone.flatten(2).transpose(1, 2)))


@pytest.mark.parametrize("grid", [(2, 5, 8), (1, 1, 1), (2, 2, 1), (3, 7, 7), (1, 6, 4)])
def test_halving_is_a_maximum_over_3x3(grid: Grid) -> None:
    x = torch.randn(2, 1 + grid[0] * grid[1] * grid[2], 6)
    pooled = F.max_pool3d(x[:, 1:].transpose(1, 2).unflatten(2, grid), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert torch.equal(halve(x, grid), torch.cat((x[:, :1], pooled.flatten(2).transpose(1, 2)), dim=1))


@pytest.mark.parametrize("name", ["mvit_b_16x4", "mvit_b24_32x3", "mvitv2_s_16x4"])
def test_blocks_in_pieces_are_the_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"depth": 4, "stage_starts": (1, 2, 3), "embed_dim": 8, "num_frames": 4, "img_size": (40, 64)}
    torch.manual_seed(0)
    model = stvid.create_model(name, num_classes=3, **options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    clip = torch.randn(2, 3, 4, 40, 64).double()
    whole = model.forward_features(clip).detach()  # gradients are on: as one
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(clip), whole)
        monkeypatch.setattr(pooled_attention, "PIECE", 3000)
        torch.testing.assert_close(model.forward_features(clip), whole)


def test_wrong_heads_are_named() -> None:
    with pytest.raises(ValueError, match="16 channels of a block are no multiple of its 3 heads"):
        PooledAttention(
            Plan(8, 16, 16, 3, None, None, (1, 1, 1), (1, 2, 2), GRID),
            relative=False,
            qkv_bias=True,
            pool_norm_eps=1e-6,
            drop_rate=0.0,
        )
