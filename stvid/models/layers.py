"""What three or more families share: the base class of every model, pieces of blocks and of key conversion."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from stvid.models.attention import attend
from stvid.protocol import Protocol

__all__ = [
    "Attention",
    "Mlp",
    "TubeletEmbed",
    "VideoModel",
    "channels_last",
    "drop_path_rates",
    "init_conv_weights",
    "init_transformer_weights",
    "mean_of_windows",
    "rename_keys",
    "resize_grid",
    "run_blocks",
]


class VideoModel(nn.Module):
    """Base class of the models: the methods that training, evaluation and checkpoint loading rely on.

    A family's class sets `num_classes` and `num_features`, keeps its classifier in the attribute `head` and
    implements `forward_features` and `forward`.

    Attributes:
        num_classes: Number of logits.
        num_features: Channels that the classifier sees.
        default_protocol: The published protocol at this model's frames and size; training replaces it by its own.
        task: What the logits mean: ``multiclass`` (softmax) or ``multilabel`` (sigmoid). It is saved with the weights.
        recipe: The arguments of `create_model` that make this model again.
        grad_checkpointing: Whether activations are recomputed in the backward pass.
    """

    num_classes: int
    num_features: int

    def __init__(self) -> None:
        super().__init__()
        self.default_protocol = Protocol()
        self.task: str = "multiclass"
        self.recipe: dict[str, Any] = {}
        self.grad_checkpointing = False

    def forward_features(self, clip: Tensor) -> Tensor:
        """Returns the features before pooling, (B, num_features, T', H', W') or (B, tokens, num_features)."""
        raise TypeError(f"{type(self).__name__} does not implement forward_features")

    def get_classifier(self) -> nn.Module:
        """Returns the layer that makes the logits."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the classifier by a freshly initialised one; 0 classes returns the pooled features."""
        old = self.get_classifier()
        device = next(self.parameters()).device
        dtype = next(self.parameters()).dtype
        self.num_classes = num_classes
        self.head = (
            nn.Linear(self.num_features, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        )
        init_transformer_weights(self.head)
        self.head.train(old.training)
        self.recipe = {**self.recipe, "num_classes": num_classes}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches the recomputation of activations on or off."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Returns names of parameters that are not decayed, besides the biases and norms that never are."""
        return set()

    def group_matcher(self) -> dict[str, Any]:
        """Returns regular expressions of the layer groups, from the input on, for layer-wise learning rates.

        The keys are those of timm: ``stem``, one expression or a list, and ``blocks``, a list of (expression, order)
        in which a group of parentheses captures the number of a block.
        """
        raise TypeError(f"{type(self).__name__} does not define layer groups: optim.layer_decay must be 1")

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns a published state into this model's keys and shapes.

        Args:
            state: Flat mapping without wrappers.

        Returns:
            The name of the recognised format, and the state in this model's own keys.
        """
        return "stvid", dict(state)

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Returns a position table of a checkpoint at this model's frames and size.

        Args:
            key: One of this model's own keys, whose shape differs from the checkpoint's.
            table: The checkpoint's tensor.
            built: The `recipe` that is stored with the weights; empty for published formats.

        Returns:
            The resized table; None if the key is no table or the table's own grid is unknown.
        """
        return None

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Sets what comes with weights but is no tensor, such as an epsilon; called after they were loaded.

        Args:
            format_name: What `convert_checkpoint` recognised.
            hyperparameters: Those stored with a checkpoint of stvid; empty for other formats.
        """

    def _check_clip(self, clip: Tensor, *, channels: int = 3, minimum: tuple[int, int, int] = (1, 1, 1)) -> None:
        """Raises ValueError unless the clip is (B, channels, T, H, W) and no smaller than `minimum` (T, H, W)."""
        if clip.dim() != 5 or clip.shape[1] != channels:
            raise ValueError(
                f"{type(self).__name__} takes a clip of shape (B, {channels}, T, H, W), not {tuple(clip.shape)}"
            )
        if clip.shape[2] < minimum[0] or clip.shape[3] < minimum[1] or clip.shape[4] < minimum[2]:
            raise ValueError(
                f"{type(self).__name__} takes clips of at least {minimum[0]} frames of {minimum[1]}x{minimum[2]} "
                f"pixels, not {clip.shape[2]} of {clip.shape[3]}x{clip.shape[4]}"
            )


class Attention(nn.Module):
    """Multi-head self-attention over tokens; (B, N, dim) to the same.

    Args:
        dim: Channels of input and output.
        num_heads: Heads, each of dim / num_heads channels.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of the projection.
        attn_drop_rate: Dropout of the attention weights.
    """

    def __init__(
        self, dim: int, *, num_heads: int, qkv_bias: bool = True, drop_rate: float = 0.0, attn_drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is no multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v, drop_rate=self.attn_drop_rate if self.training else 0.0)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(batch, tokens, dim)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between; (..., dim) to the same.

    Args:
        dim: Channels of input and output.
        hidden_dim: Channels between.
        drop_rate: Dropout after each layer.
        gelu: torch's name of the GELU: ``none`` is the exact one, ``tanh`` the approximation that flax uses.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, drop_rate: float = 0.0, gelu: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Applies both layers."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class TubeletEmbed(nn.Module):
    """Cuts a clip into tubelets without overlap and embeds each; a rest that fills none is left out.

    The convolution is three-dimensional for tubelets of one frame too (the published weights of those have four axes):
    so a clip is not copied, and `channels_last_3d` applies.

    Args:
        in_chans: Channels of the clip.
        dim: Channels of a token.
        tubelet_size: Frames, height and width of a tubelet.
    """

    def __init__(self, in_chans: int, dim: int, *, tubelet_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, tubelet_size, stride=tubelet_size)

    def forward(self, clip: Tensor) -> Tensor:
        """(B, in_chans, T, H, W) to (B, T', H', W', dim)."""
        return self.proj(clip).permute(0, 2, 3, 4, 1)


def channels_last(model: nn.Module) -> None:
    """Puts the weights of 3D convolutions into channels_last_3d and those of 2D ones into channels_last, in place."""
    formats = {5: torch.channels_last_3d, 4: torch.channels_last}
    for parameter in model.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Returns the stochastic depth rate of each block: linear from 0 to `last` (Huang et al. 2016, section 3)."""
    return [last * block / max(depth - 1, 1) for block in range(depth)]


def resize_grid(table: Tensor, old: Sequence[int], new: Sequence[int], *, mode: Literal["nearest", "linear"]) -> Tensor:
    """Resizes a position table that has one entry per cell of a grid of one to three axes.

    Args:
        table: (1, cells of `old`, dim), the last axis of the grid fastest.
        old: The grid's length along each axis.
        new: The wanted lengths.
        mode: ``nearest`` takes cell floor(i * old / new); ``linear`` keeps the first and last cell in their places.

    Returns:
        (1, cells of `new`, dim); `table` itself if nothing changes.
    """
    if tuple(old) == tuple(new):
        return table
    grid = table.transpose(1, 2).unflatten(2, tuple(old))
    if mode == "nearest":
        grid = F.interpolate(grid, size=tuple(new), mode="nearest")
    else:
        kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(new)]
        grid = F.interpolate(grid, size=tuple(new), mode=kind, align_corners=True)
    return grid.flatten(2).transpose(1, 2)


def run_blocks(blocks: Iterable[Callable[[Tensor], Tensor]], x: Tensor, *, recompute: bool) -> Tensor:
    """Applies blocks in order, each recomputed in the backward pass if `recompute` is set and gradients are on.

    A recomputed batch norm does not count its batch a second time, so that the running statistics are those of a run
    without recomputation.
    """
    recompute = recompute and torch.is_grad_enabled()
    for block in blocks:
        if not recompute:
            x = block(x)
        elif norms := _batch_norms(block):
            contexts = functools.partial(_recompute_contexts, norms)
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        else:
            x = checkpoint(block, x, use_reentrant=False)
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
    """Truncated normal of 0.02 for linear weights, zero biases, unit norms; for `nn.Module.apply` (timm, DeiT)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_conv_weights(module: nn.Module) -> None:
    """Kaiming normal for convolutions, unit norms, normal of 0.01 for linear weights; for `nn.Module.apply`."""
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


def mean_of_windows(x: Tensor, window: tuple[int, int, int] | None) -> Tensor:
    """Averages over time and space; (B, C, T, H, W) to (B, C).

    Several official heads average over windows of a fixed size at stride 1 and then over the windows. That is the
    plain mean only where one window covers all; in a larger map the positions in the middle weigh more.

    Args:
        x: The features.
        window: (T, H, W) of the window, cut to the map where that is smaller; None takes the plain mean.
    """
    if window is not None:
        kernel = [min(size, limit) for size, limit in zip(window, x.shape[2:], strict=True)]
        if kernel != list(x.shape[2:]):
            x = F.avg_pool3d(x, kernel, stride=1)
    return x.mean((2, 3, 4))


def rename_keys(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Returns a state whose keys went through every (pattern, replacement) in order, as in `re.sub`."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        own[key] = value
    return own
