"""The fast path of MoViNet's streams on CPUs: one frame at a time through a list of plain functions.

A frame of a small stream is so little work that Python's way through the modules takes nearly half of the time.
`stvid.optimize` therefore takes the weights out of the modules once: 1x1 convolutions become matrix products, the
factor of a branch goes into its last one, and each block is one function without modules. What comes out differs from
`MoViNet.step` by rounding alone, and so does the state, which either can go on with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.streaming import StreamMemory

__all__ = ["QuickSteps"]

_LOW = (torch.bfloat16, torch.float16)


def _matrix(layers: Any, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a 1x1 convolution that stands first in a sequence, times a factor."""
    weight, bias = layers[0].weight.detach().flatten(1), layers[0].bias.detach()
    return (weight, bias) if scale is None else (weight * scale, bias * scale)


class _Block:
    """A block for single frames, (B, H, W, in_dim) to (B, H', W', dim)."""

    def __init__(self, block: Any) -> None:
        conv, se = block.depthwise[0], block.se
        self.stride, self.side, self.past = block.stride, block.kernel[1], block.kernel[0] - 1
        self.expand = _matrix(block.expand)
        self.depthwise = (conv.weight.detach(), conv.bias.detach(), conv.stride, conv.padding, 1, conv.groups)
        self.taps: tuple[Tensor, ...] = ()
        self.tap_bias = self.expand[1]
        if block.temporal is not None:
            self.taps = block.temporal[0].weight.detach().unbind(2)
            self.tap_bias = block.temporal[0].bias.detach()[:, None, None]
        steep = 1.2 if se.gate == "hard_sigmoid" else 1.0  # Keras' gate, see `SqueezeExcite`
        self.fc1 = (se.fc1.weight.detach(), se.fc1.bias.detach())
        self.fc2 = (se.fc2.weight.detach() * steep, se.fc2.bias.detach() * steep)
        self.excite = se
        self.project = _matrix(block.project, block.alpha.detach())
        self.shortcut = None if block.shortcut is None else _matrix(block.shortcut)

    def __call__(self, x: Tensor, memory: StreamMemory, pad: Any, pool: Any) -> Tensor:
        """Applies the block; `pad` and `pool` are MoViNet's `pad_same` and `pool_same`."""
        out = F.hardswish(F.linear(x, *self.expand), inplace=True).permute(0, 3, 1, 2)
        if self.stride > 1:
            out = pad(out, self.side, self.stride)
        out = F.hardswish(F.conv2d(out, *self.depthwise), inplace=True)
        if self.taps:
            out = self._look_back(out, memory)
        means = out.mean((2, 3))
        gate = F.linear(self._seen(means, memory), *self.fc1)
        gate = F.hardsigmoid(F.linear(F.hardswish(gate, inplace=True), *self.fc2))
        out = F.linear((out * gate[:, :, None, None]).permute(0, 2, 3, 1), *self.project)
        if self.stride > 1:
            x = pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out.add_(x if self.shortcut is None else F.linear(x, *self.shortcut))

    def _look_back(self, frame: Tensor, memory: StreamMemory) -> Tensor:
        """Convolves a frame and those before in time; (B, C, H, W) to the same."""
        before = memory.recall(frame.shape, self.past) or [torch.zeros_like(frame)] * self.past
        memory.keep(*before[1:], frame)
        out = torch.addcmul(self.tap_bias, before[0], self.taps[0])
        for part, weight in zip((*before[1:], frame), self.taps[1:], strict=True):
            out = torch.addcmul(out, part, weight)
        return F.hardswish(out, inplace=True)

    def _seen(self, means: Tensor, memory: StreamMemory) -> Tensor:
        """Returns the mean of all frames so far beside that of this one; (B, dim) to (B, 2*dim)."""
        if self.excite.pos_scale is not None:
            seen: Tensor = self.excite.look_back(means[:, None], memory)
            return seen[:, 0]
        past = memory.recall(means.shape)
        wide = means.float() if means.dtype in _LOW else means
        total = wide if past is None else past[0] + wide
        memory.keep(total)
        return torch.cat(((total / (memory.frames + 1)).to(means.dtype), means), dim=1)


class QuickSteps:
    """The features of single frames.

    Args:
        model: A causal MoViNet whose norms are folded into its convolutions.
        blocks: Its blocks, in order.
        pad: MoViNet's `pad_same`.
        pool: MoViNet's `pool_same`.
    """

    def __init__(self, model: Any, blocks: Any, *, pad: Any, pool: Any) -> None:
        stem = model.stem[0]
        self.stem = (stem.weight.detach(), stem.bias.detach(), stem.stride)
        self.blocks = [_Block(block) for block in blocks]
        self.conv7 = _matrix(model.conv7)
        self.pad, self.pool = pad, pool

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Returns whether no norm is left in a model."""
        return not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())

    def __call__(self, frame: Tensor, memory: StreamMemory) -> Tensor:
        """Maps frames (B, C, 1, H, W) to the mean of their features over space, (B, head_dim)."""
        x = self.pad(frame[:, :, 0].contiguous(memory_format=torch.channels_last), 3, 2)
        x = F.hardswish(F.conv2d(x, *self.stem), inplace=True).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x, memory, self.pad, self.pool)
        return F.hardswish(F.linear(x, *self.conv7), inplace=True).mean((1, 2))
