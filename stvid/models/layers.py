"""What three or more families share: the base class of every model, pieces of blocks and of key conversion."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula

from stvid.errors import StvidError
from stvid.models.attention import attend
from stvid.protocol import Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

    from stvid.inference import FuseReport

__all__ = [
    "Attention",
    "Block",
    "Conv3d",
    "FeedForward",
    "Linear",
    "Mlp",
    "StagedModel",
    "TubeletEmbed",
    "VideoModel",
    "channels_last",
    "clip_layout",
    "drop_path_rates",
    "init_conv_weights",
    "init_transformer_weights",
    "mean_of_windows",
    "rename_keys",
    "resize_grid",
    "run_blocks",
    "shortcut",
    "takes_onednn",
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
        fused: The `stvid.inference.FuseReport` of a model that `stvid.fuse` made, else None.
        inference_only: Why the model cannot be trained or saved; empty if it can.
    """

    num_classes: int
    num_features: int
    fused: FuseReport | None = None
    inference_only: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.default_protocol = Protocol()
        self.task: str = "multiclass"
        self.recipe: dict[str, Any] = {}
        self.grad_checkpointing = False

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode.

        Raises:
            StvidError: If the model is for inference only.
        """
        if mode and self.inference_only:
            raise StvidError(
                f"{type(self).__name__} cannot be trained: {self.inference_only}; train the model it was made from"
            )
        return super().train(mode)

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

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the hyperparameters, other than the variant's own, that a published state needs.

        `stvid.load_model` builds the model with them when it is given a name and a checkpoint of others.

        Args:
            state: As for `convert_checkpoint`.
        """
        return {}

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

    def plain_blocks(self) -> tuple[Sequence[nn.Module], int] | None:
        """Returns the `Block`s in which each token sees all others of its sequence, for `stvid.merge_tokens`.

        Returns:
            The blocks, and how many tokens in front of the sequence (class tokens) are not patches; None if the model
            has no such blocks, or needs the tokens in between.
        """
        return None

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


class StagedModel(VideoModel):
    """What the video ResNets share: four stages of residual blocks after a stem.

    Attributes:
        layer1: The blocks of the first stage; `layer2` to `layer4` hold the others.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def build_stages(self, depth: Sequence[int], make_block: Callable[[int, int], nn.Module]) -> None:
        """Makes the stages.

        Args:
            depth: Blocks of each stage.
            make_block: Called with the numbers of the stage and of the block in it, both from 0, in order.

        Raises:
            ValueError: If there are not four stages.
        """
        if len(depth) != 4:
            raise ValueError(f"{type(self).__name__} has four stages: depth {tuple(depth)} needs four numbers")
        for stage, blocks in enumerate(depth):
            self.add_module(f"layer{stage + 1}", nn.Sequential(*(make_block(stage, block) for block in range(blocks))))

    def run_stages(self, x: Tensor, *layers: nn.Sequential) -> Tensor:
        """Applies all stages, or the given ones."""
        for layer in layers or (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_blocks(layer, x, recompute=self.grad_checkpointing)
        return x

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block in order."""
        return {"stem": r"^(?:stem|conv1|bn1)\.", "blocks": [(r"^layer(\d)\.(\d+)", None)]}


def _eager_on_cpu(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: torch.compile stops here, and cannot look into what follows
        and not torch.jit.is_tracing()
        and type(x) is Tensor  # subclasses (fake, distributed, ...) bring their own rules
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


def takes_onednn(x: Tensor, weight: Tensor, *, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> bool:
    """Returns whether a convolution may be computed by oneDNN directly: eager, in one of the types, on a CPU."""
    return _eager_on_cpu(x) and x.dtype == weight.dtype and x.dtype in dtypes and not torch.is_autocast_enabled("cpu")


class Conv3d(nn.Conv3d):
    """torch's 3D convolution, by oneDNN on CPUs in float32 whatever the shape.

    For a single clip with small maps torch takes its own kernel (ATen/native/Convolution.cpp, `use_mkldnn`), which is
    up to twice as slow there and gives up the layout `clip_layout` chose, so that the layers after it are slow too.

    Attributes:
        packs: Whether `pack` was called.
        packed: The weight in oneDNN's own layout for clips of a shape, once such clips came; see `pack`.
    """

    packs: bool = False
    packed: tuple[torch.Size, Tensor] | None = None

    def pack(self) -> None:
        """Keeps the weight in oneDNN's own layout too, for inference on CPUs, from the next pass on.

        Else it is brought into that layout in every pass, which takes as long as the convolution where maps are small
        and channels many. It is kept for one shape of input, since the layout for another can cost a multiple. The
        weight must not change any more; moving or copying the layer ends it.
        """
        self.packs, self.packed = True, None

    def _packed(self, x: Tensor) -> Tensor:
        kept = self.packed  # once: other threads may replace it
        if kept is None or kept[0] != x.shape:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv3d_weight  # what torch.utils.mkldnn calls
            settings = (self.padding, self.stride, self.dilation, self.groups)
            kept = (x.shape, reorder(self.weight.detach().to_mkldnn(), *settings, x.shape))
            self.packed = kept
        return kept[1]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.packs, self.packed = False, None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("packs", "packed")}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W')."""
        padding: Any = self.padding  # numbers: no convolution here names its padding
        settings = (padding, self.stride, self.dilation, self.groups)
        differentiated = torch.is_grad_enabled() and x.requires_grad
        low = (torch.float32, torch.bfloat16)
        if self.packs and not differentiated and takes_onednn(x, self.weight, dtypes=low):
            # An operator of torch.compile's, the only one that takes such weights; it has no gradient.
            return torch.ops.mkldnn._convolution_pointwise(x, self._packed(x), self.bias, *settings, "none", [], "")
        if takes_onednn(x, self.weight):
            # Clip and weight must share a layout. Deep in a network there is less of the clip to rearrange.
            heavy = math.prod(self.kernel_size) > 1 and self.weight.numel() > x.numel()
            # Not in torch's documentation, but in its namespace since 0.4; the gradient is that of conv3d.
            out = torch.mkldnn_convolution(x.contiguous() if heavy else x, self.weight, self.bias, *settings)
            return clip_layout(out) if heavy else out
        return super().forward(x)


@register_flop_formula(torch.ops.aten.mkldnn_convolution)
def _count_convolution(x_shape: Any, w_shape: Any, bias: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Tells torch's FlopCounterMode what `Conv3d` does on CPUs."""
    return 2 * math.prod(w_shape) * math.prod(out_shape) // out_shape[1]


class Linear(nn.Linear):
    """torch's linear layer, by oneDNN where it is computed in bfloat16 on a CPU and no gradient is wanted.

    torch's own first copies the bias to every row of the output, and a GELU after it is one more pass: together a tenth
    of a transformer's time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return self.by_onednn(x) if self.takes_onednn(x) else super().forward(x)

    def takes_onednn(self, x: Tensor) -> bool:
        """Returns whether `by_onednn` computes what `forward` should."""
        if not _eager_on_cpu(x) or type(self.weight) is not nn.Parameter or not x.numel():
            return False
        dtypes = [torch.bfloat16]
        if torch.is_autocast_enabled("cpu"):
            dtypes = [torch.bfloat16, torch.float32] if torch.get_autocast_dtype("cpu") == torch.bfloat16 else []
        differentiated = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return (
            x.dtype in dtypes
            and self.weight.dtype in dtypes
            and not differentiated
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )

    def by_onednn(self, x: Tensor, *, gelu: Literal["none", "tanh"] | None = None) -> Tensor:
        """Computes the layer in bfloat16, and torch's GELU of that name of it.

        The operator is one of torch.compile's; it has no gradient.
        """
        x, weight = x.bfloat16(), self.weight.bfloat16()
        bias = None if self.bias is None else self.bias.bfloat16()
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], gelu or "")


if torch.backends.mkldnn.is_available():

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _count_linear(x_shape: Any, w_shape: Any, *args: Any, **kwargs: Any) -> int:
        """Tells torch's FlopCounterMode what `Linear` does on CPUs."""
        return 2 * math.prod(x_shape) * w_shape[0]


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
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
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
        mixed = attend(q, k, v, bias=bias, drop_rate=drop_rate, layout="BMHK")
        return self.proj_drop(self.proj(mixed.flatten(-2)))


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
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU(approximate=gelu)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Applies both layers."""
        return self.drop(self.fc2(self.drop(self._expand(x))))

    def _expand(self, x: Tensor) -> Tensor:
        """The first layer and the GELU; in one pass if both are as built and nobody watches what is between."""
        layer, act = self.fc1, self.act
        watched = any(part._forward_hooks or part._forward_pre_hooks for part in (layer, act))
        if type(layer) is Linear and type(act) is nn.GELU and not watched and layer.takes_onednn(x):
            return layer.by_onednn(x, gelu="tanh" if act.approximate == "tanh" else "none")
        return act(layer(x))


class FeedForward(nn.Module):
    """The second half of a pre-norm transformer block: norm, MLP, residual. The first half is the subclass's.

    Args:
        dim: Channels of a token.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        drop_rate: Dropout of the MLP.
        drop_path_rate: Stochastic depth.
        norm_eps: Epsilon of the norms.
        gelu: As in `Mlp`.
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: float,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        gelu: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop_rate=drop_rate, gelu=gelu)

    def feed_forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Block(FeedForward):
    """A pre-norm transformer block (Dosovitskiy et al. 2021, equations 2 and 3).

    Args:
        dim: Channels of a token.
        attention: Mixes the tokens.
        **options: As in `FeedForward`.
    """

    def __init__(self, dim: int, *, attention: Attention, norm_eps: float = 1e-6, **options: Any) -> None:
        super().__init__(dim, norm_eps=norm_eps, **options)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attention

    def forward(self, x: Tensor, **layout: int) -> Tensor:
        """(B, N, dim) to the same; `layout` is what the attention asks for besides the tokens."""
        x = x + self.drop_path(self.attn(self.norm1(x), **layout))
        return self.feed_forward(x)


class TubeletEmbed(nn.Module):
    """Cuts a clip into tubelets without overlap and embeds each; a rest that fills none is left out.

    A convolution whose stride is its kernel is a matrix product of the tubelets, and computed as one. Its weights are
    three-dimensional for tubelets of one frame too (the published ones of those have four axes).

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
        t, h, w = self.proj.kernel_size
        time, height, width = (length // step for length, step in zip(clip.shape[2:], (t, h, w), strict=True))
        clip = clip[:, :, : time * t, : height * h, : width * w]
        tubelets = clip.unflatten(4, (width, w)).unflatten(3, (height, h)).unflatten(2, (time, t))
        tubelets = tubelets.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(tubelets, self.proj.weight.flatten(1), self.proj.bias)


def channels_last(model: nn.Module) -> None:
    """Puts the weights of 3D convolutions into channels_last_3d and those of 2D ones into channels_last, in place."""
    formats = {5: torch.channels_last_3d, 4: torch.channels_last}
    for parameter in model.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def clip_layout(clip: Tensor) -> Tensor:
    """Returns a clip in the memory format that 3D convolutions, norms and pools are fastest in.

    On CPUs that is channels_last_3d, in float32 too: pooling is up to 15 times as fast as in torch's default format. On
    other devices the clip stays as it is: there the format is the caller's choice (`channels_last`, `stvid.optimize`).
    """
    return clip.contiguous(memory_format=torch.channels_last_3d) if clip.device.type == "cpu" else clip


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


def shortcut(in_dim: int, dim: int, stride: tuple[int, int, int]) -> nn.Module:
    """Builds the shortcut of a residual block: 1x1x1 and a norm where the shape changes, else nothing."""
    if stride == (1, 1, 1) and in_dim == dim:
        return nn.Identity()
    return nn.Sequential(Conv3d(in_dim, dim, 1, stride=stride, bias=False), nn.BatchNorm3d(dim))


def rename_keys(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Returns a state whose keys went through every (pattern, replacement) in order, as in `re.sub`."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        own[key] = value
    return own
