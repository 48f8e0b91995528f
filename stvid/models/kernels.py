"""Fast paths on CPUs: convolutions and linear layers through oneDNN, and the memory formats they are fastest in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Conv3d", "Linear", "channels_last", "clip_layout", "takes_onednn"]


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
