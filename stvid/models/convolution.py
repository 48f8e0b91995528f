"""Convolutions of clips by oneDNN, and gradients of depthwise ones that are quick on CPUs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from stvid.models.blocks import is_plain, is_watched

__all__ = ["conv3d", "depthwise"]

_Steps = tuple[int, ...]


def conv3d(
    clip: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[_Steps, _Steps, _Steps], groups: int
) -> Tensor:
    """Convolves with a stride, a padding and a dilation; in float32 on CPUs by oneDNN whatever the shape.

    For a single clip and one thread torch takes a kernel of its own (ATen/native/Convolution.cpp, `use_mkldnn`), which
    is slow and gives up channels_last, so that the layers behind are slow too.
    """
    stride, padding, dilation = settings
    if not _takes_onednn(clip, weight):
        return F.conv3d(clip, weight, bias, stride, padding, dilation, groups)
    if _has_quick_gradients(weight, settings, groups):
        return _depthwise(clip, weight, bias, padding)
    return torch.mkldnn_convolution(clip, weight, bias, padding, stride, dilation, groups)


def depthwise(conv: nn.Conv3d, clip: Tensor) -> Tensor:
    """Calls a depthwise convolution, on CPUs in float32 with gradients of its own.

    Whatever else is asked of the layer (a stride, hooks, a compiler, no gradients) is left to the layer.

    Args:
        conv: With as many groups as channels.
        clip: (B, C, T, H, W).
    """
    if type(conv) is not nn.Conv3d or is_watched() or not is_plain(conv):
        return conv(clip)
    settings: Any = (conv.stride, conv.padding, conv.dilation)
    quick = (
        _takes_onednn(clip, conv.weight)
        and clip.dim() == 5
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and _has_quick_gradients(conv.weight, settings, conv.groups)
    )
    return _depthwise(clip, conv.weight, conv.bias, settings[1]) if quick else conv(clip)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor  # subclasses (fake, distributed, ...) bring their own rules
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def _has_quick_gradients(weight: Tensor, settings: tuple[Any, Any, Any], groups: int) -> bool:
    """Returns whether gradients are needed, and are those that `_Depthwise` knows."""
    stride, padding, dilation = settings
    return (
        torch.is_grad_enabled()
        and {*stride, *dilation} == {1}
        and tuple(weight.shape[:2]) == (groups, 1)
        and all(zeros < size for zeros, size in zip(padding, weight.shape[2:], strict=True))
    )


def _depthwise(clip: Tensor, weight: Tensor, bias: Tensor | None, padding: _Steps) -> Tensor:
    out: Tensor = _Depthwise.apply(clip, weight, bias, padding)
    return out


if torch.backends.mkldnn.is_available():

    @register_flop_formula(torch.ops.aten.mkldnn_convolution)
    def _count_convolution(x_shape: Any, w_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        """Tells torch's FlopCounterMode how many operations `conv3d` takes."""
        return 2 * math.prod(w_shape) * math.prod(out_shape) // out_shape[1]


class _Depthwise(torch.autograd.Function):
    """Convolves each channel by itself, with gradients that do without oneDNN's of 3D, which are slow.

    The gradient of the clip is a convolution again, with the kernel turned round, and that of the kernel is one of 2D
    for each of its frames. ``python tools/benchmark_depthwise.py`` compares training steps.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(clip: Tensor, weight: Tensor, bias: Tensor | None, padding: _Steps) -> Tensor:
        once = (1, 1, 1)
        return torch.mkldnn_convolution(clip, weight, bias, padding, once, once, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        clip, weight, bias, ctx.padding = inputs
        ctx.save_for_backward(clip, weight)
        ctx.biased = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        clip, weight = ctx.saved_tensors
        of_clip, of_weight = None, None
        with torch.autocast("cpu", enabled=False):  # in which the forward pass was not
            if ctx.needs_input_grad[0]:
                behind = [size - 1 - zeros for size, zeros in zip(weight.shape[2:], ctx.padding, strict=True)]
                of_clip = F.conv3d(grad, weight.flip(2, 3, 4), padding=behind, groups=len(weight))
            if ctx.needs_input_grad[1]:
                of_weight = _gradient_of_kernel(clip, grad, weight, ctx.padding)
        of_bias = grad.sum((0, 2, 3, 4)) if ctx.biased and ctx.needs_input_grad[2] else None
        return of_clip, of_weight, of_bias, None


def _gradient_of_kernel(clip: Tensor, grad: Tensor, weight: Tensor, padding: _Steps) -> Tensor:
    """Returns the gradient of a kernel (C, 1, kt, kh, kw), frame by frame of it.

    A frame of the kernel meets each frame of the output with one of the clip, as a 2D convolution does.
    """
    frames, made = (x.permute(0, 2, 3, 4, 1).contiguous() for x in (clip, grad))
    flat = weight[:, :, 0]
    found = []
    for tap in range(weight.shape[2]):
        ahead = tap - padding[0]  # of the output's frame is the clip's
        first, end = max(0, -ahead), min(made.shape[1], frames.shape[1] - ahead)
        if first >= end:
            found.append(torch.zeros_like(flat))
            continue
        above, below = made.narrow(1, first, end - first), frames.narrow(1, first + ahead, end - first)
        if flat.shape[2:] == (1, 1):  # whose gradient by oneDNN is slow
            found.append((above * below).sum((0, 1, 2, 3))[:, None, None, None])
        else:
            found.append(_gradient_of_flat(above, below, flat, padding[1:]))
    return torch.stack(found, dim=2)


def _gradient_of_flat(grad: Tensor, frames: Tensor, weight: Tensor, padding: _Steps) -> Tensor:
    """Returns the gradient of a 2D kernel; the gradient of what it made, and the frames, are (B, T, H, W, C)."""
    above, below = (x.reshape(-1, *x.shape[2:]).permute(0, 3, 1, 2) for x in (grad, frames))
    once, needed = (1, 1), (False, True, False)
    return torch.ops.aten.convolution_backward(
        above, below, weight, None, once, padding, once, False, (0, 0), len(weight), needed
    )[1]
