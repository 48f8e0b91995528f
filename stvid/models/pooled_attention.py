"""Attention with pooled queries, keys and values, and the blocks around it, as MViT and MViTv2 have them.

Facts from facebookresearch/SlowFast, slowfast/models/attention.py at 287ec007. Relative positions are decomposed: the
products of a query with one row for each distance in time, in height and in width are added to its scores. The sums are
never held for all queries. Without gradients they are added for a few queries at a time; else the kernel gets the
products as further channels of the queries, which the keys select by ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.blocks import Mlp
from stvid.models.kernels import clip_layout

__all__ = [
    "NORM_EPS",
    "STEP",
    "Grid",
    "Plan",
    "PooledAttention",
    "PooledBlock",
    "around",
    "built_cells",
    "divided",
    "halve",
]

Grid = tuple[int, int, int]
NORM_EPS = 1e-6  # epsilon of every LayerNorm (official code)
BLOCK_SCORES = 1 << 20  # scores whose relative positions are held at once
STEP: Grid = (1, 2, 2)  # by how much a stage is coarser than the one before
PIECE = 1 << 22  # numbers in the hidden layer of an MLP that is computed at once


def _follows_operations() -> bool:
    """Whether the same operations are wanted whatever the size: of who differentiates them or writes them down."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()


def divided(grid: Grid, stride: Grid) -> Grid:
    """Returns the cells of a grid after a pooling with padding, which rounds up."""
    t, h, w = (-(-size // step) for size, step in zip(grid, stride, strict=True))
    return t, h, w


def built_cells(grid: Grid, stride: Grid) -> Grid:
    """Returns the cells that the official code builds tables for, rounding down, but never none."""
    t, h, w = (max(1, size // step) for size, step in zip(grid, stride, strict=True))
    return t, h, w


def around(kernel: Grid) -> Grid:
    """Returns the padding with which a kernel is centred on the first cell of each axis."""
    t, h, w = (size // 2 for size in kernel)
    return t, h, w


@dataclass(frozen=True)
class Plan:
    """The shape of one block.

    Attributes:
        in_dim: Channels of its input.
        dim: Channels of its attention.
        out_dim: Channels of its output.
        num_heads: Heads of its attention.
        q_kernel: Kernel of the pooling of its queries; None takes one that suits the stride.
        kv_kernel: Kernel of the poolings of its keys and values, in the same way.
        q_stride: Stride of the pooling of its queries.
        kv_stride: Stride of the pooling of its keys and values.
        grid: Cells of its input, for which its tables of relative positions are built.
    """

    in_dim: int
    dim: int
    out_dim: int
    num_heads: int
    q_kernel: Grid | None
    kv_kernel: Grid | None
    q_stride: Grid
    kv_stride: Grid
    grid: Grid


# --- attention --------------------------------------------------------------------------------------------------------


def _rows_of_distances(table: Tensor, queries: int, keys: int) -> Tensor:
    """Returns the row of a table of relative positions for each query and key along one axis, (queries, keys, dim).

    The grid of the finer of both counts. Distances that are no whole numbers are rounded towards zero. They are
    computed in float32, in the order of the official code, on which the rounding depends.

    Args:
        table: (2 * length - 1, dim) for an axis of `length` cells; resized if `length` is another.
        queries: Cells of the queries along the axis.
        keys: Cells of the keys.
    """
    length = 2 * max(queries, keys) - 1
    if table.shape[0] != length:
        table = F.interpolate(table.t().unsqueeze(0), size=length, mode="linear").squeeze(0).t()
    query_step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)

    def places(number: int) -> Tensor:
        return torch.arange(number, dtype=torch.float32, device=table.device)

    distances = places(queries).unsqueeze(1) * query_step - places(keys).unsqueeze(0) * key_step
    return table[(distances + (keys - 1) * key_step).long()]


def _selectors(grid: Grid, like: Tensor) -> Tensor:
    """Returns for each key, the class token first, ones at its time, row and column; (1 + cells, sum of `grid`)."""
    t, h, w = (torch.eye(size, dtype=like.dtype, device=like.device) for size in grid)
    parts = (t[:, None, None], h[None, :, None], w[None, None, :])
    ones = torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).flatten(0, 2)
    return F.pad(ones, (0, 0, 1, 0))


def _kernel(kernel: Grid | None, stride: Grid) -> Grid:
    """Returns the kernel of a pooling: without one of its own, it overlaps by one cell where it has a stride."""
    if kernel is not None:
        return kernel
    t, h, w = (step + 1 if step > 1 else 1 for step in stride)
    return t, h, w


def _convolve(conv: nn.Module | None, x: Tensor, grid: Grid) -> Tensor:
    """Applies a convolution to tokens (B, heads, T*H*W, C) of a grid (T, H, W), each head on its own."""
    if conv is None:
        return x
    maps = x.reshape(-1, *grid, x.shape[3]).permute(0, 4, 1, 2, 3)
    maps = clip_layout(maps) if x.device.type == "cpu" else maps.contiguous()
    return conv(maps).permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(0, x.shape[:2])


def _normalise(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


class PooledAttention(nn.Module):
    """Attention with pooled queries, keys and values; (B, 1 + T*H*W, in_dim) to (B, 1 + T'*H'*W', dim).

    Args:
        plan: Shape of the block.
        relative: Whether there are relative positions, and the queries are added to what the attention gives.
        qkv_bias: Whether queries, keys and values have a bias.
        pool_norm_eps: Epsilon of the norms after the poolings.
        drop_rate: Dropout of the projection.
    """

    axes = "clip"
    pool_q: nn.Conv3d | None
    pool_k: nn.Conv3d | None
    pool_v: nn.Conv3d | None
    norm_q: nn.LayerNorm | None
    norm_k: nn.LayerNorm | None
    norm_v: nn.LayerNorm | None

    def __init__(self, plan: Plan, *, relative: bool, qkv_bias: bool, pool_norm_eps: float, drop_rate: float) -> None:
        super().__init__()
        if plan.dim % plan.num_heads:
            raise ValueError(f"embed_dim: {plan.dim} channels of a block are no multiple of its {plan.num_heads} heads")
        self.num_heads, self.relative = plan.num_heads, relative
        self.channels = 3 * plan.dim
        self.q_stride, self.kv_stride = plan.q_stride, plan.kv_stride
        self.scale = (plan.dim // plan.num_heads) ** -0.5
        self.qkv = nn.Linear(plan.in_dim, 3 * plan.dim, bias=qkv_bias)
        self.proj = nn.Linear(plan.dim, plan.dim)
        self.proj_drop = nn.Dropout(drop_rate)
        head_dim = plan.dim // plan.num_heads
        poolings = {"q": (plan.q_kernel, plan.q_stride)}
        poolings |= dict.fromkeys(("k", "v"), (plan.kv_kernel, plan.kv_stride))
        for name, (given, stride) in poolings.items():
            kernel = _kernel(given, stride)
            conv = nn.Conv3d(head_dim, head_dim, kernel, stride, around(kernel), groups=head_dim, bias=False)
            pools = max(*kernel, *stride) > 1
            self.add_module(f"pool_{name}", conv if pools else None)
            self.add_module(f"norm_{name}", nn.LayerNorm(head_dim, eps=pool_norm_eps) if pools else None)
        if relative:
            side = max(plan.grid[1:])  # the official tables are those of a square
            finest = max(1, side // min(plan.q_stride[1], plan.kv_stride[1]))
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * finest - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * finest - 1, head_dim))
            self.rel_pos_t = nn.Parameter(torch.zeros(2 * plan.grid[0] - 1, head_dim))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Attends among tokens (B, 1 + T*H*W, in_dim) of a grid (T, H, W)."""
        q, k, v = self.split(x)
        k, v = self.pool(k, "k", grid), self.pool(v, "v", grid)
        q = self.pool(q, "q", grid)
        if not self.relative:
            mixed = attend(q, k, v, scale=self.scale, source=(self, self.axes)).transpose(1, 2)
            return self.finish(mixed)
        q_grid, k_grid = divided(grid, self.q_stride), divided(grid, self.kv_stride)
        distances = self.distances(q[:, :, 1:], self.rows_of_distances(q_grid, k_grid))
        mix = self._mix_with_channels if x.is_cuda or _follows_operations() else self._mix_with_bias
        return self.finish(mix(q, k, v, distances, k_grid))

    def split(self, x: Tensor) -> Tensor:
        """Returns queries, keys and values of tokens (B, N, in_dim), before they are pooled; (3, B, heads, N, C)."""
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def finish(self, mixed: Tensor) -> Tensor:
        """Projects what the attention gives, (B, N, heads, C) to (B, N, dim)."""
        return self.proj_drop(self.proj(mixed.flatten(2)))

    def pool(self, x: Tensor, kind: Literal["q", "k", "v"], grid: Grid) -> Tensor:
        """Pools and normalises tokens (B, heads, 1 + T*H*W, C), but does not pool the class token."""
        return x if getattr(self, f"pool_{kind}") is None else self.join(x[:, :, :1], x[:, :, 1:], kind, grid)

    def join(self, first: Tensor, others: Tensor, kind: Literal["q", "k", "v"], grid: Grid) -> Tensor:
        """Does the same with the class token (B, heads, 1, C) and the others (B, heads, T*H*W, C) apart."""
        conv, norm = getattr(self, f"pool_{kind}"), getattr(self, f"norm_{kind}")
        return _normalise(norm, torch.cat((first, _convolve(conv, others, grid)), dim=2))

    def rows_of_distances(self, q_grid: Grid, k_grid: Grid) -> tuple[Tensor, Tensor]:
        """Returns what the products of queries are taken with.

        Args:
            q_grid: (T, H, W) of the queries.
            k_grid: (t, h, w) of the keys.

        Returns:
            For each time and row of the queries the rows of the times and of the rows of the keys, (T*H, C, t + h); for
            each column those of the columns of the keys, (W, C, w).
        """
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        t, h, w = (_rows_of_distances(*axis).transpose(1, 2) for axis in zip(tables, q_grid, k_grid, strict=True))
        both = (t.unsqueeze(1).expand(-1, q_grid[1], -1, -1), h.unsqueeze(0).expand(q_grid[0], -1, -1, -1))
        return torch.cat(both, dim=-1).flatten(0, 1), w

    def distances(self, q: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
        """Returns what each query adds to its scores for each time, row and column of the keys.

        Args:
            q: Queries (B, heads, N, C) of whole rows of the grid, without the class token.
            rows: From `rows_of_distances`, for these rows of the grid.

        Returns:
            (B, heads, N, t + h + w).
        """
        batch, heads, cells, dim = q.shape
        q = q.reshape(-1, *(rows[0].shape[0], rows[1].shape[0]), dim)
        by_time_and_row = q @ rows[0]
        by_column = (q.flatten(0, 1).transpose(0, 1) @ rows[1]).transpose(0, 1)
        found = torch.cat((by_time_and_row, by_column.unflatten(0, q.shape[:2])), dim=-1)
        return found.reshape(batch, heads, cells, -1)

    def _mix_with_channels(self, q: Tensor, k: Tensor, v: Tensor, distances: Tensor, k_grid: Grid) -> Tensor:
        """Attends, with the relative positions as channels of the queries; returns (B, 1 + N, heads, C).

        Each key has ones in three of these channels. So a kernel without a bias computes the function, whose memory is
        linear in the number of tokens in the backward pass, too.
        """
        dim, more = q.shape[3], sum(k_grid)
        padding = -(dim + more) % 8  # fused kernels want multiples of eight channels, as many for values as for keys
        further = F.pad(distances / self.scale, (0, padding, 1, 0)).to(q.dtype)
        ones = F.pad(_selectors(k_grid, k), (0, padding)).expand(*k.shape[:2], -1, -1)
        queries, keys = torch.cat((q, further), dim=-1), torch.cat((k, ones), dim=-1)
        values = F.pad(v, (0, more + padding))
        mixed = attend(queries, keys, values, scale=self.scale, source=(self, self.axes))[..., :dim]
        return self.add_queries(mixed.transpose(1, 2), q)

    def _mix_with_bias(self, q: Tensor, k: Tensor, v: Tensor, distances: Tensor, k_grid: Grid) -> Tensor:
        """Attends, with the relative positions of a few queries at a time as a bias; returns (B, 1 + N, heads, C)."""
        mixed = [attend(q[:, :, :1], k, v, scale=self.scale, source=(self, self.axes))]
        rows = q.shape[2] if q.is_meta else max(1, BLOCK_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
        for some, part in zip(q[:, :, 1:].split(rows, 2), distances.split(rows, 2), strict=True):
            t, h, w = part.split(k_grid, dim=-1)
            bias = t[..., :, None, None] + h[..., None, :, None] + w[..., None, None, :]
            bias = F.pad(bias.flatten(3), (1, 0))  # none for the class token
            mixed.append(attend(some, k, v, bias=bias, scale=self.scale, source=(self, self.axes)))
        return self.add_queries(torch.cat(mixed, dim=2).transpose(1, 2), q)

    def attend_in_pieces(
        self,
        query: Tensor,
        q: Tensor,
        keys_values: tuple[Tensor, Tensor],
        rows: tuple[Tensor, Tensor] | None,
        *,
        at_once: int,
    ) -> Iterator[Tensor]:
        """Lets a few queries attend at a time, without gradients.

        Args:
            query: Query of the class token, (B, heads, 1, C), before the norm.
            q: The other queries, pooled, before the norm, (B, heads, N, C).
            keys_values: Keys and values. With relative positions the keys are scaled, and have further channels that
                select the distances.
            rows: From `rows_of_distances`, if there are relative positions.
            at_once: Queries that may attend at a time; at least a whole row of the grid does.

        Yields:
            What they find, (B, n, heads, C), in order, the class token first.
        """
        keys, values = keys_values
        width = 1 if rows is None else rows[1].shape[0]
        at_once = max(1, at_once // width) * width
        query = _normalise(self.norm_q, query)
        for start in range(0, q.shape[2], at_once):
            some = queries = _normalise(self.norm_q, q[:, :, start : start + at_once])
            if rows is not None:
                whole = (rows[0][start // width : (start + at_once) // width], rows[1])
                queries = torch.cat((some, self.distances(some, whole)), dim=-1)
            if start == 0:
                queries = torch.cat((F.pad(query, (0, queries.shape[3] - query.shape[3])), queries), dim=2)
            if rows is None:
                yield attend(queries, keys, values, scale=self.scale, source=(self, self.axes)).transpose(1, 2)
            else:  # so few scores at a time that plain products are the fastest
                with torch.autocast("cpu", enabled=False):  # which would take the softmax in float32
                    mixed = attend(queries, keys, values, scale=1.0, backend="math", source=(self, self.axes))
                mixed[:, :, -some.shape[2] :] += some
                yield mixed.transpose(1, 2)

    def add_queries(self, mixed: Tensor, q: Tensor) -> Tensor:
        """Adds the queries (B, heads, 1 + N, C) to what they found (B, 1 + N, heads, C), but for the class token."""
        return mixed + F.pad(q[:, :, 1:], (0, 0, 1, 0)).transpose(1, 2)


def _raise_to(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """Raises the even cells along an axis to the odd ones beside them, in place."""
    for start in (0, 1):  # the odd cell behind, and that in front
        length = min(even.shape[axis] - start, odd.shape[axis])
        if length > 0:
            some = even.narrow(axis, start, length)
            torch.maximum(some, odd.narrow(axis, 0, length), out=some)
    return even


def halve(x: Tensor, grid: Grid) -> Tensor:
    """Takes the maximum over 3x3 cells around every second row and column; torch's own pooling is slow on CPUs.

    Args:
        x: (B, 1 + T*H*W, C), the class token first, which is kept.
        grid: (T, H, W).

    Returns:
        (B, 1 + T*H'*W', C).
    """
    maps = x[:, 1:].unflatten(1, grid)
    t, h, w = divided(grid, STEP)
    out = x.new_empty(x.shape[0], 1 + t * h * w, x.shape[2])
    out[:, 0] = x[:, 0]
    columns = _raise_to(maps[:, :, :, ::2].contiguous(), maps[:, :, :, 1::2], axis=3)
    rows = out[:, 1:].unflatten(1, (t, h, w))
    rows.copy_(columns[:, :, ::2])
    _raise_to(rows, columns[:, :, 1::2], axis=2)
    return out


# --- blocks -----------------------------------------------------------------------------------------------------------


class PooledBlock(nn.Module):
    """Pooled attention and an MLP, each after a norm and with a residual; the first may pool, either may widen.

    Args:
        plan: Shape of the block.
        attention: Mixes the tokens.
        mlp_ratio: Hidden channels of the MLP over those of the attention.
        drop_rate: Dropout of the MLP.
        drop_path_rate: Stochastic depth.
    """

    def __init__(
        self, plan: Plan, *, attention: PooledAttention, mlp_ratio: float, drop_rate: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(plan.in_dim, eps=NORM_EPS)
        self.attn = attention
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(plan.dim, eps=NORM_EPS)
        self.hidden_dim = int(plan.dim * mlp_ratio)
        self.mlp = Mlp(plan.dim, self.hidden_dim, out_dim=plan.out_dim, drop_rate=drop_rate)
        self.proj = nn.Linear(plan.in_dim, plan.out_dim) if plan.in_dim != plan.out_dim else None
        self.widens_in_attention = plan.dim != plan.in_dim
        self.stride = plan.q_stride

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Maps tokens (B, 1 + T*H*W, in_dim) of a grid (T, H, W) to (B, 1 + T'*H'*W', out_dim)."""
        if x.device.type == "cpu" and not (self.training or _follows_operations()):
            return self._in_pieces(x, grid)
        normed = self.norm1(x)
        mixed = self.attn(normed, grid)
        if self.proj is not None and self.widens_in_attention:
            x = self.proj(normed)
        return self._feed_forward(self._pool(x, grid) + self.drop_path(mixed))

    def _feed_forward(self, x: Tensor) -> Tensor:
        normed = self.norm2(x)
        if self.proj is not None and not self.widens_in_attention:
            x = self.proj(normed)
        return x + self.drop_path(self.mlp(normed))

    def _pool(self, x: Tensor, grid: Grid) -> Tensor:
        """Takes the maximum over overlapping cells, but for the class token."""
        if max(self.stride) == 1:
            return x
        kernel = _kernel(None, self.stride)
        maps = x[:, 1:].transpose(1, 2).unflatten(2, grid)
        pooled = F.max_pool3d(maps, kernel, self.stride, around(kernel))
        return torch.cat((x[:, :1], pooled.flatten(2).transpose(1, 2)), dim=1)

    def _in_pieces(self, x: Tensor, grid: Grid) -> Tensor:
        """Applies the whole block to a few tokens at a time, for inference on CPUs.

        Apart from the poolings, each token is treated on its own, or attends on its own. So what is large (scores,
        relative positions, the MLP's hidden layer) fits into the cache of a CPU, and into memory that the allocator
        holds already.
        """
        attn = self.attn
        first, (q, k, v), skip = self._project_in_pieces(x)
        keys, values = attn.join(first[1], k, "k", grid), attn.join(first[2], v, "v", grid)
        q = _convolve(attn.pool_q, q, grid)
        skip = skip if max(self.stride) == 1 else halve(skip, grid)
        rows: tuple[Tensor, Tensor] | None = None
        if attn.relative:
            k_grid = divided(grid, attn.kv_stride)
            by_axis = attn.rows_of_distances(divided(grid, attn.q_stride), k_grid)
            rows = (by_axis[0].to(keys.dtype), by_axis[1].to(keys.dtype))
            ones = _selectors(k_grid, keys).expand(*keys.shape[:2], -1, -1)
            keys = torch.cat((keys * attn.scale, ones), dim=-1)
        at_once = PIECE // (len(x) * max(self.hidden_dim, keys.shape[1] * keys.shape[2]))
        out, end = x.new_empty(0), 0
        for mixed in attn.attend_in_pieces(first[0], q, (keys, values), rows, at_once=at_once):
            start, end = end, end + mixed.shape[1]
            piece = self._feed_forward(skip[:, start:end] + attn.finish(mixed))
            if start == 0:
                out = piece.new_empty(*skip.shape[:2], piece.shape[2])
            out[:, start:end] = piece
        return out

    def _project_in_pieces(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects tokens (B, 1 + N, in_dim) a few at a time.

        Returns:
            Queries, keys and values of the class token, (3, B, heads, 1, C), and of the others, (3, B, heads, N, C);
            and what the block adds its results to, (B, 1 + N, dim or in_dim).
        """
        batch, tokens, _ = x.shape
        at_once = max(1, PIECE // (batch * self.attn.channels))
        first, others, skip = x, x, x
        for start in range(0, tokens, at_once):
            normed = self.norm1(x[:, start : start + at_once])
            parts = self.attn.split(normed)
            widened = self.proj(normed) if self.proj is not None and self.widens_in_attention else None
            if start == 0:
                first, parts = parts[:, :, :, :1].clone(), parts[:, :, :, 1:]
                others = parts.new_empty(*parts.shape[:3], tokens - 1, parts.shape[4])
                skip = x if widened is None else widened.new_empty(batch, tokens, widened.shape[2])
            before = max(0, start - 1)  # without the class token
            others[:, :, :, before : before + parts.shape[3]] = parts
            if widened is not None:
                skip[:, start : start + at_once] = widened
        return first, others, skip
