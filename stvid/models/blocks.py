"""Pieces that three or more families share: blocks, embeddings, initialisation, conversion of keys and tables."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from stvid.models.attention import attend

Axes = Literal["clip", "space", "time", "window"]
"""The tokens of one sequence of an attention: those of a clip, of a frame, of one place or one of each frame
in time, or of a window."""

Gelu = Literal["none", "tanh", "quick"]
"""Which GELU: the exact one, the approximation by tanh that flax uses, or CLIP's by a sigmoid."""

Tap = Callable[[int, Tensor], Tensor]
"""Is shown an intermediate result, with its number, and returns it."""

LARGEST = 32 << 20  # bytes of the largest block that glibc keeps to hand out again (mallopt(3), M_MMAP_THRESHOLD)
PIECE = 20 << 20  # bytes of an MLP's hidden layer at once, where it has more than `LARGEST`

__all__ = [
    "Attention",
    "Axes",
    "Block",
    "FeedForward",
    "Gelu",
    "Mlp",
    "QueryAttention",
    "QueryValueBiasAttention",
    "QuickGELU",
    "Tap",
    "TubeletEmbed",
    "activate",
    "drop_path_rates",
    "init_conv_weights",
    "init_transformer_weights",
    "is_plain",
    "is_watched",
    "keep_visible",
    "leave_out",
    "rename_keys",
    "resize_grid",
    "run_blocks",
    "shortcut",
    "sinusoids",
    "taps",
]


class Attention(nn.Module):
    """Multi-head self-attention over tokens; (B, N, dim) to the same.

    Args:
        dim: Channels of input and output.
        num_heads: Heads, each of dim / num_heads channels.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of the projection.
        attn_drop_rate: Dropout of the attention weights.
        axes: The axes of the clip that a sequence of tokens spans; tools that follow attention read it.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        axes: Axes = "clip",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is no multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.axes: Axes = axes
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens."""
        return self.mix(*self.queries_keys_values(x))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the projections of tokens (B, N, dim), each (B, N, num_heads, head_dim); views of one tensor."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attends and projects; (B, N, num_heads, head_dim) each, and a bias of the scores, to (B, N, dim)."""
        drop_rate = self.attn_drop_rate if self.training else 0.0
        mixed = attend(q, k, v, bias=bias, drop_rate=drop_rate, layout="BMHK", source=(self, self.axes))
        return self.proj_drop(self.proj(mixed.flatten(-2)))


class QueryValueBiasAttention(Attention):
    """Self-attention whose queries and values have a bias, and whose keys have none; (B, N, dim) to the same.

    Args:
        dim: Channels of input and output.
        num_heads: Heads, each of dim / num_heads channels.
        qkv_bias: Whether queries and values have a bias.
        drop_rate: Dropout of the projection.
        attn_drop_rate: Dropout of the attention weights.
    """

    def __init__(
        self, dim: int, *, num_heads: int, qkv_bias: bool = True, drop_rate: float = 0.0, attn_drop_rate: float = 0.0
    ) -> None:
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        super().__init__(dim, num_heads=num_heads, qkv_bias=False, axes="clip", **rates)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the projections of tokens (B, N, dim), each (B, N, num_heads, head_dim)."""
        q, k, v = super().queries_keys_values(x)
        if self.q_bias is None or self.v_bias is None:
            return q, k, v
        # In the type of the products: under autocast a sum with float32 biases would be float32, and attention slow.
        q_bias, v_bias = (bias.to(q.dtype).view(self.num_heads, -1) for bias in (self.q_bias, self.v_bias))
        return q + q_bias, k, v + v_bias


class QueryAttention(nn.Module):
    """Multi-head attention of queries to other tokens, whose keys and values may differ.

    Args:
        dim: Channels of the queries and of the other tokens.
        num_heads: Heads, each of dim / num_heads channels.
        qkv_bias: Whether queries, keys and values have a bias.
        out_dim: Channels of the result; None takes `dim`.
    """

    def __init__(self, dim: int, *, num_heads: int, qkv_bias: bool = True, out_dim: int | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is no multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim if out_dim is None else out_dim)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Maps (B, Q, dim), (B, N, dim) and (B, N, dim) to (B, Q, out_dim)."""
        heads = (self.num_heads, -1)
        q, k, v = self.q(queries).unflatten(-1, heads), self.k(keys).unflatten(-1, heads), self.v(values)
        return self.proj(attend(q, k, v.unflatten(-1, heads), layout="BMHK").flatten(-2))


class QuickGELU(nn.Module):
    """CLIP's approximation of the GELU: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies it to each value; written with a SiLU, which keeps one tensor for the gradient instead of two."""
        if torch.is_grad_enabled() and x.requires_grad:
            return F.silu(1.702 * x) / 1.702
        return F.silu(1.702 * x, inplace=True).div_(1.702)  # without memory for each step

    def overwrite(self, x: Tensor) -> Tensor:
        """Applies it in place, without gradients."""
        return F.silu(x.mul_(1.702), inplace=True).div_(1.702)


class Mlp(nn.Module):
    """Two linear layers with a GELU between; (..., dim) to the same, or to other channels.

    Args:
        dim: Channels of the input.
        hidden_dim: Channels between.
        out_dim: Channels of the output; None takes those of the input.
        drop_rate: Dropout after each layer.
        gelu: Which GELU, see `Gelu`.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, out_dim: int | None = None, drop_rate: float = 0.0, gelu: Gelu = "none"
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act: nn.Module = QuickGELU() if gelu == "quick" else nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Applies both layers."""
        rows = self._rows_at_once(x)
        if not rows:
            return self._apply_layers(x)
        return torch.cat([self._apply_layers(part) for part in x.flatten(0, -2).split(rows)]).view(*x.shape[:-1], -1)

    def _apply_layers(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(activate(self.act, self.fc1(x), self.fc1))))

    def _rows_at_once(self, x: Tensor) -> int:
        """Returns how many tokens a CPU computes at once, where nobody sees that they are parts; 0 for all.

        The C library fetches a block of more than `LARGEST` bytes from the system each time.
        """
        if type(x) is not Tensor or torch.is_grad_enabled() or x.device.type != "cpu" or is_watched():
            return 0
        known = (nn.Linear, nn.GELU, QuickGELU, nn.Dropout)  # which see one token at a time
        if self.training or not all(type(layer) in known and is_plain(layer) for layer in self.children()):
            return 0
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        row = self.fc1.out_features * dtype.itemsize
        rows = x.numel() // x.shape[-1]
        return -(-rows // -(-rows * row // PIECE)) if rows * row > LARGEST else 0


def activate(act: nn.Module, x: Tensor, layer: nn.Module) -> Tensor:
    """Applies an activation; GELUs in place, where nobody sees what the layer before returned.

    Without gradients and hooks that is so, and a second tensor of that size need not be fetched from the system.

    Args:
        act: The activation.
        x: What `layer` has just returned.
        layer: That comes before it.
    """
    fresh = type(x) is Tensor and not x.requires_grad and type(layer) is nn.Linear and is_plain(layer)
    if not fresh or not is_plain(act) or is_watched():
        return act(x)
    if type(act) is QuickGELU:
        return act.overwrite(x)
    return torch.ops.aten.gelu_(x, approximate=act.approximate) if type(act) is nn.GELU else act(x)


def is_plain(layer: nn.Module) -> bool:
    """Returns whether a call of a layer does what its class says, and no more."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(layer) and not hasattr(layer, "parametrizations")


def is_watched() -> bool:
    """Returns whether somebody follows every call: a compiler, a tracer, hooks of all modules, or a mode of torch."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _has_any_global_hook()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )


class FeedForward(nn.Module):
    """The second half of a pre-norm transformer block: norm, MLP, residual. A subclass adds the first half.

    Args:
        dim: Channels of a token.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        drop_rate: Dropout of the MLP.
        drop_path_rate: Stochastic depth.
        norm_eps: Epsilon of the norms.
        gelu: As in `Mlp`.
        rms_norm: Whether the norms divide by the root mean square alone, without a mean and a bias.
        layer_scale: Where the factors of each channel of what is added start; None has no factors.
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: float,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        gelu: Gelu = "none",
        rms_norm: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = _norm(dim, norm_eps, rms_norm)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop_rate=drop_rate, gelu=gelu)
        self.ls2: nn.Module = nn.Identity() if layer_scale is None else LayerScale(dim, init_values=layer_scale)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Maps (..., dim) to the same shape."""
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


def _norm(dim: int, eps: float, rms_norm: bool) -> nn.Module:
    return nn.RMSNorm(dim, eps=eps) if rms_norm else nn.LayerNorm(dim, eps=eps)


class Block(FeedForward):
    """A pre-norm transformer block (Dosovitskiy et al. 2021, equations 2 and 3).

    Args:
        dim: Channels of a token.
        attention: Mixes the tokens.
        **options: As in `FeedForward`.
    """

    def __init__(self, dim: int, *, attention: Attention, norm_eps: float = 1e-6, **options: Any) -> None:
        super().__init__(dim, norm_eps=norm_eps, **options)
        self.norm1 = _norm(dim, norm_eps, options.get("rms_norm", False))
        self.attn = attention
        scale = options.get("layer_scale")
        self.ls1: nn.Module = nn.Identity() if scale is None else LayerScale(dim, init_values=scale)

    def forward(self, x: Tensor, **layout: int) -> Tensor:
        """Maps (B, N, dim) to the same shape; `layout` holds what the attention needs to know besides the tokens."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), **layout)))
        return self.feed_forward(x)


class TubeletEmbed(nn.Module):
    """Cuts a clip into tubelets without overlap and embeds each; frames and pixels that fill none are left out.

    The kernel has three axes even for tubelets of one frame, whose published weights have two.

    Args:
        in_chans: Channels of the clip.
        dim: Channels of a token.
        tubelet_size: Frames, height and width of a tubelet.
        bias: Whether the embedding has a bias.
    """

    def __init__(self, in_chans: int, dim: int, *, tubelet_size: tuple[int, int, int], bias: bool = True) -> None:
        super().__init__()
        self.tubelet_size = tubelet_size
        self.proj = nn.Conv3d(in_chans, dim, tubelet_size, stride=tubelet_size, bias=bias)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps (B, in_chans, T, H, W) to (B, T', H', W', dim)."""
        if self._is_product(clip):
            return self._product(clip)
        # With the channels of a token side by side: sums would hand the convolution's layout on through all blocks, and
        # every norm would copy its input.
        return self.proj(clip).permute(0, 2, 3, 4, 1).contiguous()

    def _is_product(self, clip: Tensor) -> bool:
        """Returns whether the embedding is one product of matrices, and nobody follows the convolution."""
        proj = self.proj
        return (
            type(clip) is Tensor
            and type(proj) is nn.Conv3d
            and proj.kernel_size == proj.stride == self.tubelet_size
            and (proj.padding, proj.dilation, proj.groups) == ((0, 0, 0), (1, 1, 1), 1)
            and is_plain(proj)
            and not is_watched()
            and clip.dim() == 5
            and clip.shape[1] == proj.in_channels
            and all(side >= step for side, step in zip(clip.shape[2:], self.tubelet_size, strict=True))
        )

    def _product(self, clip: Tensor) -> Tensor:
        """Embeds with one matrix product over the patches."""
        t, h, w = self.tubelet_size
        time, height, width = (length // step for length, step in zip(clip.shape[2:], (t, h, w), strict=True))
        clip = clip[:, :, : time * t, : height * h, : width * w]
        patches = clip.unflatten(4, (width, w)).unflatten(3, (height, h)).unflatten(2, (time, t))
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def leave_out(last: int, tap: Tap) -> Tap:
    """Returns a tap that is not shown result `last`: the model shows it itself, after the last norm."""

    def others(number: int, x: Tensor) -> Tensor:
        return x if number == last else tap(number, x)

    return others


def sinusoids(count: int, dim: int) -> Tensor:
    """Returns the code of each number below `count`, float32 (1, count, dim): sines at even, cosines at odd channels.

    The angle is number / 10000^(2 * floor(channel / 2) / dim), computed in float64 (Vaswani et al. 2017, section 3.5,
    with the neighbours interleaved).
    """
    channel = np.arange(dim)
    angles = np.arange(count)[:, None] / np.power(10000, 2 * (channel // 2) / dim)
    angles[:, 0::2] = np.sin(angles[:, 0::2])
    angles[:, 1::2] = np.cos(angles[:, 1::2])
    return torch.from_numpy(angles.astype(np.float32)).unsqueeze(0)


def keep_visible(x: Tensor, visible: Tensor, *, prefix: int) -> Tensor:
    """Leaves tokens out of a sequence, as masked pretraining does.

    Args:
        x: (B, prefix + N, dim).
        visible: bool (B, N), True for the tokens that are kept, the same number in each row.
        prefix: Tokens in front that are always kept.

    Returns:
        (B, prefix + kept, dim), in their order.

    Raises:
        ValueError: If the mask has another shape, or its rows keep different numbers of tokens.
    """
    batch, tokens, dim = x.shape
    if visible.shape != (batch, tokens - prefix):
        raise ValueError(f"mask: shape {tuple(visible.shape)} instead of ({batch}, {tokens - prefix})")
    counts = visible.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(f"mask: each clip must leave out as many tokens, not {(~visible).sum(1).tolist()}")
    kept = x[:, prefix:][visible].view(batch, -1, dim)
    return torch.cat((x[:, :prefix], kept), dim=1)


def taps(weight: Tensor, kernel_size: int, *, init: Literal["center", "average"]) -> Tensor:
    """Gives a 2D kernel an axis of time; on a still clip both ways compute what the 2D kernel does.

    Args:
        weight: (out, in, kh, kw).
        kernel_size: Frames that the new kernel sees.
        init: ``center``: the kernel in the central frame, zeros elsewhere. ``average``: an equal share in every frame.

    Returns:
        (out, in, kernel_size, kh, kw).
    """
    if init == "average":
        return weight.unsqueeze(2).expand(-1, -1, kernel_size, -1, -1).div(kernel_size)
    inflated = weight.new_zeros(*weight.shape[:2], kernel_size, *weight.shape[2:])
    inflated[:, :, kernel_size // 2] = weight
    return inflated


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Returns the stochastic depth rate of each block: linear from 0 to `last` (Huang et al. 2016, section 3)."""
    return [last * block / max(depth - 1, 1) for block in range(depth)]


def resize_grid(
    table: Tensor, old: Sequence[int], new: Sequence[int], *, mode: Literal["nearest", "linear", "cubic"]
) -> Tensor:
    """Resizes a position table that has one entry per cell of a grid of one to three axes.

    Args:
        table: (1, cells of `old`, dim), the last axis of the grid fastest.
        old: The grid's length along each axis.
        new: The wanted lengths.
        mode: ``nearest`` takes cell floor(i * old / new); ``linear`` keeps the first and last cell in their places;
            ``cubic`` keeps the borders of the grid in their places, and is linear in time (of three axes, or of one)
            and then bicubic in space.

    Returns:
        (1, cells of `new`, dim); `table` itself if nothing changes.
    """
    if tuple(old) == tuple(new):
        return table
    grid = table.transpose(1, 2).unflatten(2, tuple(old))
    if mode == "cubic":
        return _resize_cubic(grid, tuple(new)).flatten(2).transpose(1, 2)
    if mode == "nearest":
        grid = F.interpolate(grid, size=tuple(new), mode="nearest")
    else:
        kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(new)]
        grid = F.interpolate(grid, size=tuple(new), mode=kind, align_corners=True)
    return grid.flatten(2).transpose(1, 2)


def _resize_cubic(grid: Tensor, new: tuple[int, ...]) -> Tensor:
    """Resizes (1, dim, T), (1, dim, H, W) or (1, dim, T, H, W): linear in time, then bicubic in each frame."""
    if len(new) == 1:
        return F.interpolate(grid, size=new, mode="linear")
    if len(new) == 3:
        if grid.shape[2] != new[0]:
            cells = grid.flatten(3).permute(0, 3, 1, 2).flatten(0, 1)
            cells = F.interpolate(cells, size=new[:1], mode="linear")
            grid = cells.unflatten(0, (grid.shape[0], -1)).permute(0, 2, 3, 1).unflatten(3, grid.shape[3:])
        if grid.shape[3:] == new[1:]:
            return grid
        frames = F.interpolate(grid.transpose(1, 2).flatten(0, 1), size=new[1:], mode="bicubic")
        return frames.unflatten(0, (grid.shape[0], -1)).transpose(1, 2)
    return F.interpolate(grid, size=new, mode="bicubic")


def run_blocks(
    blocks: Iterable[Callable[[Tensor], Tensor]], x: Tensor, *, recompute: bool, tap: Tap | None = None, first: int = 0
) -> Tensor:
    """Applies blocks in order, each recomputed in the backward pass if `recompute` is set and gradients are on.

    A recomputed batch norm does not count its batch a second time, so that the running statistics are those of a run
    without recomputation.

    Args:
        blocks: Functions of `x`, mostly modules.
        x: Input of the first.
        recompute: Whether activations are recomputed.
        tap: Is shown the output of each block.
        first: Number of the first block for `tap`.

    Returns:
        Output of the last.
    """
    recompute = recompute and torch.is_grad_enabled()
    for number, block in enumerate(blocks, start=first):
        if not recompute:
            x = block(x)
        elif norms := _batch_norms(block):
            contexts = functools.partial(_recompute_contexts, norms)
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        else:
            x = checkpoint(block, x, use_reentrant=False)
        if tap is not None:
            x = tap(number, x)
    return x


def _batch_norms(block: Callable[[Tensor], Tensor]) -> list[_BatchNorm]:
    """Returns the batch norms of a block that would update their running statistics."""
    if not isinstance(block, nn.Module):
        return []
    return [part for part in block.modules() if isinstance(part, _BatchNorm) and part.training]


def _recompute_contexts(norms: list[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), _frozen_statistics(norms)


@contextlib.contextmanager
def _frozen_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the statistics of the batch are used, but not added up
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def init_transformer_weights(module: nn.Module) -> None:
    """Draws linear weights from a truncated normal of 0.02, with zero biases and unit norms, as timm and DeiT do.

    Args:
        module: One module; give the function to `nn.Module.apply`.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_conv_weights(module: nn.Module) -> None:
    """Draws convolutions from a Kaiming normal and linear weights from a normal of 0.01, with unit norms.

    Args:
        module: One module; give the function to `nn.Module.apply`.
    """
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def shortcut(in_dim: int, dim: int, stride: tuple[int, int, int]) -> nn.Module:
    """Builds the shortcut of a residual block: a 1x1x1 convolution and a norm where the shape changes, else none."""
    if stride == (1, 1, 1) and in_dim == dim:
        return nn.Identity()
    return nn.Sequential(nn.Conv3d(in_dim, dim, 1, stride=stride, bias=False), nn.BatchNorm3d(dim))


def rename_keys(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Returns a state whose keys went through every (pattern, replacement) in order, as in `re.sub`."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        own[key] = value
    return own
