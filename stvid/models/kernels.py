"""Fast paths on CPUs, and the memory formats that convolutions are fastest in.

The definitions of the models use torch's own layers, which users' tools look for. `stvid.optimize` puts the layers
below in their places, in a copy that is for inference: convolutions and linear layers through oneDNN, whose results
differ from torch's by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from stvid.models.blocks import Mlp, TubeletEmbed, is_plain

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "FastConv2d",
    "FastConv3d",
    "FastLinear",
    "channels_last",
    "clip_layout",
    "remade",
    "speed_up",
]

_LOW = (torch.float32, torch.bfloat16)
FEW = 2**17  # numbers in a map up to which the time that an operator needs to start counts most
# The activations that oneDNN computes together with a convolution, by torch.compile's names.
ACTIVATIONS: dict[str, tuple[type[nn.Module], Callable[..., Tensor]]] = {
    "relu": (nn.ReLU, F.relu),
    "swish": (nn.SiLU, F.silu),
    "hardswish": (nn.Hardswish, F.hardswish),
}


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


def remade(module: nn.Module, kind: type[nn.Module]) -> Any:
    """Returns a module of another class that shares the parameters, layers, hooks and settings of the given one."""
    new = kind.__new__(kind)
    new.__dict__.update(module.__dict__)
    return new


def _plain(x: Tensor) -> bool:
    """Returns whether oneDNN may be called directly: eagerly, on a CPU, for inference, with torch's own tensors."""
    return (
        not torch.compiler.is_compiling()  # first: torch.compile stops here, and cannot look into what follows
        and not torch.jit.is_tracing()
        and type(x) is Tensor  # subclasses (fake, distributed, ...) bring their own rules
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


class _FastConv(nn.Module):
    """The common part of `FastConv2d` and `FastConv3d`.

    Attributes:
        act: torch.compile's name of the activation that follows, which is computed in the same pass; ``none`` if there
            is none.
        packed: The weight in oneDNN's layout for the last shape of input, with that shape.
    """

    act: str = "none"
    packed: tuple[torch.Size, Tensor] | None = None
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Any
    dilation: Sequence[int]
    groups: int

    def _packed(self, x: Tensor) -> Tensor:
        kept = self.packed  # read once, since other threads may replace it
        if kept is None or kept[0] != x.shape:
            functions: Any = torch._C._nn  # those that torch.utils.mkldnn calls
            reorder = functions.mkldnn_reorder_conv2d_weight if x.dim() == 4 else functions.mkldnn_reorder_conv3d_weight
            settings = (self.padding, self.stride, self.dilation, self.groups)
            kept = (x.shape, reorder(self.weight.detach().to_mkldnn(), *settings, x.shape))
            self.packed = kept
        return kept[1]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "packed"}

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T, H, W) to (B, C', T', H', W'), or the same without T."""
        if _plain(x) and x.dtype == self.weight.dtype and x.dtype in _LOW and x.dim() == self.weight.dim():
            settings: Any = (self.padding, self.stride, self.dilation, self.groups)
            # The only operator that takes such weights; it is torch.compile's and has no gradient.
            return torch.ops.mkldnn._convolution_pointwise(x, self._packed(x), self.bias, *settings, self.act, [], "")
        out = super().forward(x)
        return out if self.act == "none" else ACTIVATIONS[self.act][1](out)


class FastConv2d(_FastConv, nn.Conv2d):  # type: ignore[misc]
    """torch's 2D convolution for inference, with the activation that follows.

    The operator of `FastConv3d` takes 40 microseconds more than torch's own convolution; it pays for large maps, where
    it saves a pass over the output. Of a frame or a few, a 1x1 convolution is fastest as a matrix product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H', W')."""
        if x.dim() != 4 or x.numel() > FEW or not _plain(x):
            return super().forward(x)
        if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.groups == 1 and self.padding == (0, 0):
            out = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        else:
            out = self._conv_forward(x, self.weight, self.bias)
        return out if self.act == "none" else ACTIVATIONS[self.act][1](out, inplace=True)


class FastConv3d(_FastConv, nn.Conv3d):  # type: ignore[misc]
    """torch's 3D convolution for inference, by oneDNN on CPUs, with the weight in oneDNN's own layout.

    torch's own layer brings the weight into that layout in every pass, which takes as long as the convolution itself
    where maps are small and channels many. Here the result is kept, for the last shape of input: with the layout for
    another shape, a convolution can take several times as long. The weight must not change after the first pass, unless
    the layer is moved or copied, which drops the kept weight.
    """


class FastLinear(nn.Linear):
    """torch's linear layer for inference in bfloat16 on a CPU, by oneDNN, with a GELU in the same pass if there is one.

    torch's own layer first copies the bias to every row of the output, and a GELU after it reads the output once more;
    together that is a tenth of a transformer's time.

    Attributes:
        gelu: torch's name of the GELU that follows; None if there is none.
    """

    gelu: Literal["none", "tanh"] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        if _plain(x) and x.dtype == self.weight.dtype == torch.bfloat16 and x.numel():
            act = "gelu" if self.gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, act, [], self.gelu or "")
        out = super().forward(x)
        return out if self.gelu is None else F.gelu(out, approximate=self.gelu)


def speed_up(model: nn.Module) -> list[str]:
    """Replaces layers of a model for inference on CPUs by those of this module, in place.

    Layers of other classes than torch's own, with hooks, or with parametrised weights stay as they are; so do those
    that a module names in a class attribute ``keeps_layers``, since it uses their weights itself.

    Returns:
        One line for each kind of replacement that was made.
    """
    packed, linear = "convolutions packed for oneDNN", "linear layers through oneDNN"
    counts = {packed: 0, linear: 0}
    low = next(model.parameters()).dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    kept = {
        id(part)
        for module in model.modules()
        for name in getattr(type(module), "keeps_layers", ())
        if isinstance(child := getattr(module, name), nn.Module)
        for part in child.modules()
    }
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is None or not is_plain(child) or id(child) in kept or isinstance(module, TubeletEmbed):
                continue
            if type(child) in _FAST and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                module._modules[name] = remade(child, _FAST[type(child)])
                counts[packed] += 1
            elif low and type(child) is nn.Linear:
                module._modules[name] = remade(child, FastLinear)
                counts[linear] += 1
        if low and isinstance(module, Mlp) and type(module.fc1) is FastLinear and type(module.act) is nn.GELU:
            module.fc1.gelu = "tanh" if module.act.approximate == "tanh" else "none"
            module._modules["act"] = nn.Identity()
        if type(module) is nn.Sequential:
            _join_activation(module)
    return [f"{count} {what}" for what, count in counts.items() if count]


_FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: FastConv2d, nn.Conv3d: FastConv3d}


def _join_activation(layers: nn.Sequential) -> None:
    """Lets convolutions of a sequence compute the activation that follows, with nothing but identities between."""
    names = {kind: name for name, (kind, _) in ACTIVATIONS.items()}
    conv: Any = None
    for key, layer in layers._modules.items():
        if isinstance(layer, _FastConv):
            conv = layer
        elif conv is not None and type(layer) in names and is_plain(layer):
            conv.act = names[type(layer)]
            layers._modules[key] = nn.Identity()
            conv = None
        elif type(layer) is not nn.Identity:
            conv = None


if torch.backends.mkldnn.is_available():

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _count_convolution(x_shape: Any, w_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        """Tells torch's FlopCounterMode how many operations `FastConv3d` takes."""
        return 2 * math.prod(w_shape) * math.prod(out_shape) // out_shape[1]

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _count_linear(x_shape: Any, w_shape: Any, *args: Any, **kwargs: Any) -> int:
        """Tells torch's FlopCounterMode how many operations `FastLinear` takes."""
        return 2 * math.prod(x_shape) * w_shape[0]
