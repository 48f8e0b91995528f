"""MViT and MViTv2: transformers whose attention pools queries, keys and values, so that each stage is coarser.

Fan et al., "Multiscale Vision Transformers", ICCV 2021, arXiv:2104.11227; Li et al., "MViTv2: Improved Multiscale
Vision Transformers for Classification and Detection", CVPR 2022, arXiv:2112.01526; official code:
facebookresearch/SlowFast, slowfast/models/video_model_builder.py (MViT) and attention.py, at 287ec007.

Shapes, for a clip (B, 3, T, H, W): a convolution makes a map (B, C, T/2, H/4, W/4), whose cells are the tokens, with a
class token in front: (B, 1 + T/2 * H/4 * W/4, C). Before three of the blocks the channels and heads double, and within
them the queries are pooled by 2x2; so the last stage has 8 * C channels and T/2 * H/32 * W/32 tokens. Keys and values
are pooled further, to about T/2 * H/32 * W/32 tokens in all stages. Every pooling is a depth-wise convolution over the
channels of a head, whose weights the heads share; the class token passes it by.

The two versions differ: the first adds positions to the tokens, pools queries only where they get fewer, and widens in
the MLP of the block before. The second knows relative positions alone, pools the queries of every block, adds them to
what the attention gives, and widens in the attention. The relative positions are decomposed: a query's products with
one row for each distance in time, in height and in width are added to its scores. `PooledAttention` never holds these
sums for all queries: without gradients it adds them for a few queries at a time, else it hands them to the kernel as
further channels of the queries, which the keys select by ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Mlp, Tap, drop_path_rates, leave_out, rename_keys, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import count_blocks, from_mmaction, is_mmaction, read_options, square_side
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["MViT"]

Grid = tuple[int, int, int]
NORM_EPS = 1e-6  # epsilon of every LayerNorm (official code)
INIT_BIAS = 0.02  # of linear layers and norms (official code)
BLOCK_SCORES = 1 << 20  # scores whose relative positions are held at once
STEP: Grid = (1, 2, 2)  # by how much a stage is coarser than the one before
PIECE = 1 << 22  # numbers in the hidden layer of an MLP that is computed at once


def _follows_operations() -> bool:
    """Whether the same operations are wanted whatever the size: of who differentiates them or writes them down."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()


def _divided(grid: Grid, stride: Grid) -> Grid:
    """Returns the cells of a grid after a pooling with padding, which rounds up."""
    t, h, w = (-(-size // step) for size, step in zip(grid, stride, strict=True))
    return t, h, w


def _built(grid: Grid, stride: Grid) -> Grid:
    """Returns the cells that the official code builds tables for, rounding down, but never none."""
    t, h, w = (max(1, size // step) for size, step in zip(grid, stride, strict=True))
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
        kv_kernel: Kernel of the poolings of its keys and values, likewise.
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
    places = partial(torch.arange, dtype=torch.float32, device=table.device)
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
            padding = tuple(size // 2 for size in kernel)
            conv = nn.Conv3d(head_dim, head_dim, kernel, stride, padding, groups=head_dim, bias=False)
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
        q_grid, k_grid = _divided(grid, self.q_stride), _divided(grid, self.kv_stride)
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
        rows = max(1, BLOCK_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
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


def _halve(x: Tensor, grid: Grid) -> Tensor:
    """Takes the maximum over 3x3 cells around every second row and column; torch's own pooling is slow on CPUs.

    Args:
        x: (B, 1 + T*H*W, C), the class token first, which is kept.
        grid: (T, H, W).

    Returns:
        (B, 1 + T*H'*W', C).
    """
    maps = x[:, 1:].unflatten(1, grid)
    t, h, w = _divided(grid, STEP)
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
        pooled = F.max_pool3d(maps, kernel, self.stride, tuple(size // 2 for size in kernel))
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
        q, skip = _convolve(attn.pool_q, q, grid), skip if max(self.stride) == 1 else _halve(skip, grid)
        rows: tuple[Tensor, Tensor] | None = None
        if attn.relative:
            k_grid = _divided(grid, attn.kv_stride)
            rows = attn.rows_of_distances(_divided(grid, attn.q_stride), k_grid)
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


class OverlappingPatches(nn.Module):
    """Embeds a clip by a convolution with padding; (B, in_chans, T, H, W) to (B, dim, T', H', W').

    Args:
        in_chans: Channels of the clip.
        dim: Channels of a token.
        kernel: Frames, height and width that a token sees.
        stride: Frames, height and width of a cell.
    """

    def __init__(self, in_chans: int, dim: int, *, kernel: Grid, stride: Grid) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, kernel, stride, tuple(size // 2 for size in kernel))

    def forward(self, clip: Tensor) -> Tensor:
        """Embeds a clip."""
        return self.proj(clip_layout(clip))


# --- the model --------------------------------------------------------------------------------------------------------


class MViT(VideoModel):
    """MViT and MViTv2.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the tables of positions; other clips are taken, with them resized.
        img_size: (height, width) in pixels, which decide the tables, too.
        in_chans: Channels of the clip.
        version: 1, or 2 for relative positions, queries pooled in every block and added to what attention gives.
        depth: Number of blocks.
        stage_starts: Numbers of the blocks that pool by 2x2, from 0; those from `depth` on mean nothing.
        embed_dim: Channels of the first stage; each later one has twice as many.
        num_heads: Heads of the first stage; each later one has twice as many.
        mlp_ratio: Hidden channels of the MLPs over their input's.
        qkv_bias: Whether queries, keys and values have a bias.
        patch_kernel: Frames, height and width that a token sees.
        patch_stride: Frames, height and width of a cell.
        pool_kernel: Kernel of the poolings in the attention; None takes those that reach one cell beyond their stride,
            and none where the stride is 1.
        kv_stride: Stride of the pooling of keys and values in the first stage; each later one has half of it in space.
        widen_in_attention: Whether channels double in the attention of a stage's first block; if not, in the MLP of the
            block before. None takes the version's: the second one widens in the attention.
        pool_norm_eps: Epsilon of the norms after the poolings. Loading a published format sets that format's.
        drop_rate: Dropout of embeddings and projections.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.

    The features are normalised tokens, (B, 1 + ceil(T/2) * ceil(H/32) * ceil(W/32), 8 * embed_dim), the class token
    first.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = False  # pooled queries and keys are not tokens that attention can be followed through

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        version: Literal[1, 2] = 1,
        depth: int = 16,
        stage_starts: Sequence[int] = (1, 3, 14),
        embed_dim: int = 96,
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        patch_kernel: Grid = (3, 7, 7),
        patch_stride: Grid = (2, 4, 4),
        pool_kernel: Grid | None = (3, 3, 3),
        kv_stride: Grid = (1, 8, 8),
        widen_in_attention: bool | None = None,
        pool_norm_eps: float = NORM_EPS,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        head_drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if version not in (1, 2):
            raise ValueError(f"version {version}: MViT has the versions 1 and 2")
        if list(stage_starts) != sorted(set(stage_starts)) or any(start < 1 for start in stage_starts):
            raise ValueError(
                f"stage_starts {tuple(stage_starts)}: numbers of blocks from 1 on, each larger than before"
            )
        self.num_classes, self.in_chans = num_classes, in_chans
        self.version = version
        self.pool_norm_eps = pool_norm_eps
        self.patch_stride = patch_stride
        self.grid = _built((num_frames, *img_size), patch_stride)
        plans = _plans(
            depth=depth,
            starts=tuple(stage_starts),
            first=Plan(
                embed_dim,
                embed_dim,
                embed_dim,
                num_heads,
                q_kernel=pool_kernel if version == 2 else None,
                kv_kernel=pool_kernel,
                q_stride=(1, 1, 1),
                kv_stride=kv_stride,
                grid=self.grid,
            ),
            widen_in_attention=version == 2 if widen_in_attention is None else widen_in_attention,
        )
        self.num_features = plans[-1].out_dim
        self.patch_embed = OverlappingPatches(in_chans, embed_dim, kernel=patch_kernel, stride=patch_stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if version == 1:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, self.grid[1] * self.grid[2], embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid[0], embed_dim))
            self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        attention = partial(
            PooledAttention,
            relative=version == 2,
            qkv_bias=qkv_bias,
            pool_norm_eps=pool_norm_eps,
            drop_rate=drop_rate,
        )
        self.blocks = nn.ModuleList(
            PooledBlock(plan, attention=attention(plan), mlp_ratio=mlp_ratio, drop_rate=drop_rate, drop_path_rate=rate)
            for plan, rate in zip(plans, drop_path_rates(drop_path_rate, depth), strict=True)
        )
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS)
        self.head = LinearHead(self.num_features, num_classes, pool="token", drop_rate=head_drop_rate)
        self._describe([start for start in stage_starts if start < depth], plans)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if _is_table(name):
                nn.init.trunc_normal_(parameter, std=0.02)

    def _describe(self, starts: Sequence[int], plans: Sequence[Plan]) -> None:
        """Sets `feature_info`: the last block of each stage, and the norm after the last one."""
        self.feature_info = []
        ends = [*(start - 1 for start in starts), len(plans) - 1]
        for stage, end in enumerate(ends):
            t, h, w = self.patch_stride
            name = "norm" if stage == len(starts) else f"blocks.{end}"
            self.feature_info.append(FeatureInfo(name, plans[end].out_dim, (t, h * 2**stage, w * 2**stage)))
        self.stage_ends = ends

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the clip and runs the blocks."""
        self._check_clip(clip)
        maps = self.patch_embed(clip)
        t, h, w = maps.shape[2:]
        grid: Grid = (t, h, w)
        x = torch.cat((self.cls_token.expand(maps.shape[0], -1, -1), maps.flatten(2).transpose(1, 2)), dim=1)
        x = self.pos_drop(x if self.version == 2 else x + self._positions(grid))
        blocks = []
        for block in self.blocks:
            blocks.append(partial(block, grid=grid))
            grid = _divided(grid, block.stride)
        last, start = len(self.stage_ends) - 1, 0
        for stage, end in enumerate(self.stage_ends):
            x = run_blocks(blocks[start : end + 1], x, recompute=self.grad_checkpointing)
            x = leave_out(last, tap)(stage, x)
            start = end + 1
        return tap(last, self.norm(x))

    def _positions(self, grid: Grid) -> Tensor:
        """Returns the positions of the class token and the cells, (1, 1 + T*H*W, embed_dim)."""
        places = _resize(self.pos_embed_spatial, self.grid[1:], grid[1:])
        times = _resize(self.pos_embed_temporal, self.grid[:1], grid[:1])
        cells = (times.unsqueeze(2) + places.unsqueeze(1)).flatten(1, 2)
        return torch.cat((self.pos_embed_class, cells), dim=1)

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map, at the resolution of its stage."""
        grid = _divided(clip_size, self.feature_info[place].reduction)
        return x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding with the tables, then every block in order."""
        return {
            "stem": r"^(?:patch_embed|cls_token|pos_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of SlowFast, PyTorchVideo, torchvision and mmaction2 into our keys."""
        if "cls_positional_encoding.cls_token" in state:
            name, own = "PyTorchVideo", _join_qkv(rename_keys(state, _PYTORCHVIDEO))
        elif "conv_proj.weight" in state:
            name, own = "torchvision", rename_keys(state, _TORCHVISION)
        elif is_mmaction(state) or "patch_embed.projection.weight" in state:
            name, own = "mmaction2", rename_keys(from_mmaction(state), _MMACTION)
        elif "head.projection.weight" in state:
            name, own = "SlowFast", rename_keys(state, [(r"^head\.projection\.", "head.fc.")])
        else:
            name, own = super().convert_checkpoint(state)
        return name, {key: _with_all_axes(key, value) for key, value in own.items()}

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the epsilon of the norms after the poolings that a layout's weights are used with."""
        published = {"SlowFast": NORM_EPS, "PyTorchVideo": 1e-5, "torchvision": NORM_EPS, "mmaction2": NORM_EPS}
        eps = published.get(format_name, hyperparameters.get("pool_norm_eps", self.pool_norm_eps))
        if eps == self.pool_norm_eps:
            return
        self.pool_norm_eps = eps
        for block in self.blocks:
            for norm in (block.attn.norm_q, block.attn.norm_k, block.attn.norm_v):
                if norm is not None:
                    norm.eps = eps
        changed = {**self.recipe.get("hyperparameters", {}), "pool_norm_eps": eps}
        self.recipe = {**self.recipe, "hyperparameters": changed}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: version, stages, depth, kernels, and where the channels double.

        `embed_dim` and `num_heads` show together, as the channels of a head do; strides do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=_NEEDED)

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of places (of a square grid, unless stvid wrote it), times and relative positions."""
        own = self.state_dict()[key].shape
        leaf = key.rpartition(".")[2]
        if table.dim() != len(own) or table.shape[-1] != own[-1] or not table.numel():
            return None
        if leaf.startswith("rel_pos_"):
            return _resize(table.unsqueeze(0), (table.shape[0],), (own[0],)).squeeze(0)
        if leaf == "pos_embed_temporal":
            return _resize(table, (table.shape[1],), self.grid[:1])
        if leaf != "pos_embed_spatial":
            return None
        side = square_side(table.shape[1])
        old = (side, side) if side else None
        if "img_size" in built:
            old = _built((1, *built["img_size"]), self.patch_stride)[1:]
        return _resize(table, old, self.grid[1:]) if old and math.prod(old) == table.shape[1] else None


def _plans(*, depth: int, starts: Sequence[int], first: Plan, widen_in_attention: bool) -> list[Plan]:
    """Returns the shape of every block.

    Args:
        depth: Number of blocks.
        starts: Numbers of the blocks that pool.
        first: Shape that the blocks of the first stage would have if no channels doubled.
        widen_in_attention: Whether the block that pools doubles the channels; if not, the one before does.
    """
    plans: list[Plan] = []
    dim, heads, kv_stride, grid = first.dim, first.num_heads, first.kv_stride, first.grid
    for number in range(depth):
        begins = number in starts
        in_dim, q_kernel, q_stride = dim, first.q_kernel, first.q_stride
        if begins:
            heads, q_kernel, q_stride = heads * 2, first.kv_kernel, STEP
            t, h, w = (max(1, size // step) for size, step in zip(kv_stride, STEP, strict=True))
            kv_stride = (t, h, w)
        if widen_in_attention:
            attention_dim = dim = 2 * dim if begins else dim
        else:
            attention_dim, dim = dim, 2 * dim if number + 1 in starts else dim
        plans.append(Plan(in_dim, attention_dim, dim, heads, q_kernel, first.kv_kernel, q_stride, kv_stride, grid))
        grid = _built(grid, STEP) if begins else grid
    return plans


def _resize(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resizes a table (1, cells of `old`, dim) linearly, by the places of the cells' centres (official code)."""
    if tuple(old) == tuple(new):
        return table
    grid = table.transpose(1, 2).unflatten(2, tuple(old))
    grid = F.interpolate(grid, size=tuple(new), mode="linear" if len(new) == 1 else "bilinear")
    return grid.flatten(2).transpose(1, 2)


def _is_table(name: str) -> bool:
    return name.rpartition(".")[2].startswith(("cls_token", "pos_embed_", "rel_pos_"))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.constant_(module.bias, INIT_BIAS)


# --- published keys ---------------------------------------------------------------------------------------------------

_PYTORCHVIDEO = (
    (r"^patch_embed\.patch_model\.", "patch_embed.proj."),
    (r"^cls_positional_encoding\.", ""),
    (r"^norm_embed\.", "norm."),
    (r"^head\.proj\.", "head.fc."),
)
_TORCHVISION = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"^pos_encoding\.(spatial|temporal|class)_pos$", r"pos_embed_\1"),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"^head\.1\.", "head.fc."),
)
_MMACTION = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^norm\d\.", "norm."),  # mmaction2 numbers the last norm by its stage
)


def _join_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins the layers of queries, keys and values that PyTorchVideo has apart."""
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.*\.attn\.)([qkv])(\.(?:weight|bias))", key)
        if match is None:
            own[key] = value
        elif match[2] == "q":
            parts = [state.get(f"{match[1]}{part}{match[3]}") for part in "qkv"]
            whole = [part for part in parts if part is not None]
            own[f"{match[1]}qkv{match[3]}"] = torch.cat(whole)
    return own


def _with_all_axes(key: str, value: Tensor) -> Tensor:
    """Gives torchvision's tables the axis of the batch, and the patches of image models that of time."""
    if key == "patch_embed.proj.weight" and value.dim() == 4:
        return value.unsqueeze(2)
    if key == "cls_token" or key.startswith("pos_embed_"):
        while value.dim() < 3:
            value = value.unsqueeze(0)
    return value


_NEEDED = ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.pool_k.weight", "norm.weight")


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    depth = count_blocks(own, "blocks.")
    patches, head_dim = own["patch_embed.proj.weight"], own["blocks.0.attn.pool_k.weight"].shape[0]
    dims = [own[f"blocks.{number}.attn.proj.weight"].shape[0] for number in range(depth)]
    inputs = [own[f"blocks.{number}.norm1.weight"].shape[0] for number in range(depth)]
    ends = [own[f"blocks.{number}.mlp.fc2.weight"].shape[0] for number in range(depth)]
    starts = [number for number in range(1, depth) if dims[number] > dims[number - 1]]
    kernels = [tuple(value.shape[2:]) for key, value in own.items() if key.endswith(".attn.pool_k.weight")]
    version = 2 if "blocks.0.attn.rel_pos_t" in own else 1
    options: dict[str, Any] = {
        "in_chans": patches.shape[1],
        "version": version,
        "depth": depth,
        "stage_starts": tuple(starts),
        "embed_dim": patches.shape[0],
        "num_heads": dims[0] // head_dim,
        "mlp_ratio": own["blocks.0.mlp.fc1.weight"].shape[0] / dims[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        "patch_kernel": tuple(patches.shape[2:]),
        "pool_kernel": kernels[0] if len(set(kernels)) == 1 else None,
        "widen_in_attention": inputs != dims or (version == 2 and inputs == ends),
    }
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/Kinetics/MVIT*.yaml (DATA.*, TEST.NUM_SPATIAL_CROPS, NUM_ENSEMBLE_VIEWS), with what they do not
# set from slowfast/config/defaults.py (mean, standard deviation, TARGET_FPS). The views of the published numbers are
# those of MODEL_ZOO.md and projects/mvitv2/README.md.
_K400 = Protocol(
    frames=16,
    stride=4,
    fps=30,
    short_side=224,
    crop=224,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    views="5x1",
)
_K400_32 = Protocol(
    frames=32,
    stride=3,
    fps=30,
    short_side=224,
    crop=224,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    views="5x1",
)
_K400_L = Protocol(
    frames=40,
    stride=3,
    fps=30,
    short_side=312,
    crop=312,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    views="5x3",
)
# Official code: configs/ImageNet/MVIT_B_16_CONV.yaml.
_IMAGE = Protocol(frames=1, stride=1, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
_B24 = {"depth": 24, "stage_starts": (2, 5, 21), "drop_path_rate": 0.3}
_V2 = "Li et al. 2022, arXiv:2112.01526"

FAMILY = Family(
    model="MViT",
    paper="Fan et al. 2021, arXiv:2104.11227",
    small_clip=(4, 64, 64),
    formats=("SlowFast", "PyTorchVideo", "torchvision", "mmaction2"),
    tiny={"depth": 4, "stage_starts": (1, 2, 3), "embed_dim": 16, "num_heads": 1},
    slow_goldens=(
        "mma2_mvit_s__keys",
        "mvit_b_16x4__16x224",
        "mvit_b_32x3__32x224",
        "mvitv2_b_32x3__16x96",
        "mvitv2_s_16x4__16x224",
        "ptv_mvit_b_16x4__16x224",
        "ptv_mvit_b_32x3__32x224",
        "tv_mvit_v1_b__16x224",
        "tv_mvit_v2_s__16x224",
    ),
    golden_options={
        "mma2_mvit_s__keys": {"name": "mvitv2_s_16x4", "img_size": 224},
        "mvitv2_b_32x3__16x96": {"name": "mvitv2_b_32x3", "img_size": 96},
        "mvitv2_l_40x3__8x64": {"name": "mvitv2_l_40x3", "img_size": 64},
    },
    variants=(
        Variant("mvit_b_16x4", "MViT-B, 16 frames.", _K400, params=36.6, gflops=70.5),
        Variant(
            "mvit_b_32x3",
            "MViT-B, 32 frames.",
            _K400_32,
            {"drop_path_rate": 0.3},
            params=36.6,
            gflops=170,
            same_as="mvit_b_16x4",
        ),
        Variant(
            "mvit_b24_32x3",
            "MViT-B of 24 blocks, 32 frames.",
            _K400_32,
            {**_B24, "pool_kernel": None},
            params=52.9,
            gflops=236,
            params_tolerance=0.25,
            note="The official configuration has 53.1M parameters.",
            same_as="mvit_b_16x4",
        ),
        Variant("mvitv2_s_16x4", "MViTv2-S, 16 frames.", _K400, {"version": 2}, params=34.5, gflops=64, paper=_V2),
        Variant(
            "mvitv2_b_32x3",
            "MViTv2-B, 32 frames.",
            _K400_32,
            {"version": 2, **_B24},
            params=51.2,
            gflops=225,
            paper=_V2,
            same_as="mvitv2_s_16x4",
        ),
        Variant(
            "mvitv2_l_40x3",
            "MViTv2-L, 40 frames of 312 pixels.",
            _K400_L,
            {
                "version": 2,
                "depth": 48,
                "stage_starts": (2, 8, 44),
                "embed_dim": 144,
                "num_heads": 2,
                "drop_path_rate": 0.75,
            },
            params=213.4,
            gflops=2828,
            paper=_V2,
            note="The paper prints 217.6M parameters; the published configuration, and its file, have 213.4M.",
            same_as="mvitv2_s_16x4",
        ),
        Variant(
            "mvit_b_16",
            "MViT-B for images: clips of one frame.",
            _IMAGE,
            {
                "patch_kernel": (1, 7, 7),
                "patch_stride": (1, 4, 4),
                "pool_kernel": (1, 3, 3),
                "kv_stride": (1, 4, 4),
                "drop_path_rate": 0.1,
                "head_drop_rate": 0.0,
            },
            formats=("SlowFast", "PyTorchVideo"),
        ),
    ),
)
