"""MoViNet: small video networks found by search, and their streams that go frame by frame.

Kondratyuk et al., "MoViNets: Mobile Video Networks for Efficient Video Recognition", CVPR 2021, arXiv:2103.11511.
Official code: tensorflow/models, official/projects/movinet (modeling/movinet.py, modeling/movinet_layers.py, README);
a port: Atze00/MoViNet-pytorch.

Shapes, for a clip (B, 3, T, H, W): time is never reduced. The stem divides space by 2, as does the first block of each
stage but the fourth: the five stages hold maps of 1/4, 1/8, 1/16, 1/16 and 1/32, rounded up. A block widens its
channels, convolves each by itself in space and time, weighs them (squeeze and excitation), narrows them, and adds the
result, times one learned number that starts at zero, to its input.

Two networks have these stages:

- The *base* one convolves in space and time at once and sees later frames (Swish, sigmoid gates).
- The *stream* (``causal=True``) convolves each frame, then in time over the frames before, and weighs channels by what
  it sees of this frame beside the mean of all frames so far (Hardswish, hard sigmoid gates). So it can go frame by
  frame: `step`. A3 to A5 tell these means the number of the frame (`pos_encoding`).

The hard sigmoid is Keras' of 2021, clip(0.2 x + 0.5), with which the published streams were trained; today's official
code means relu6(x + 3) / 6 by the same name (``gate="relu6"``).

Layers that see single frames are 2D ones on frames folded into the batch: on CPUs torch is several times as fast with
them as with the same layers in 3D.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from stvid.errors import StvidError
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, rename_keys, run_blocks
from stvid.models.families.x3d import round_width
from stvid.models.family import Family, Variant
from stvid.models.heads import AttentivePoolHead, MlpHead
from stvid.models.kernels import clip_layout
from stvid.models.movinet_steps import QuickSteps
from stvid.models.published_names import count_blocks, read_options
from stvid.models.streaming import StreamMemory, StreamState
from stvid.protocol import Protocol

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MoViNet"]

Stage = tuple[int, Sequence[int], Sequence[tuple[int, int]]]
"""Channels of a stage; for each of its blocks the channels within, and the kernel's frames and side."""
Gate = Literal["hard_sigmoid", "relu6"]

# Kernels: frames and side. Stages: channels; channels within each block; kernel of each block. From BLOCK_SPECS of the
# official modeling/movinet.py.
K13 = (1, 3)
K15 = (1, 5)
K33 = (3, 3)
K53 = (5, 3)
# fmt: off
A0 = (
    (8, (24,), (K15,)),
    (32, (80, 80, 80), (K33, K33, K33)),
    (56, (184, 112, 184), (K53, K33, K33)),
    (56, (184, 184, 184, 184), (K53, K33, K33, K33)),
    (104, (384, 280, 280, 344), (K53, K15, K15, K15)),
)
A1 = (
    (16, (40, 40), (K15, K33)),
    (40, (96, 120, 96, 96), (K33, K33, K33, K33)),
    (64, (216, 128, 216, 168, 216), (K53, K33, K33, K33, K33)),
    (64, (216, 216, 216, 128, 128, 216), (K53, K33, K33, K33, K15, K33)),
    (136, (456, 360, 360, 360, 456, 456, 544), (K53, K15, K15, K15, K15, K33, K13)),
)
A2 = (
    (16, (40, 40, 64), (K15, K33, K33)),
    (40, (96, 120, 96, 96, 120), (K33, K33, K33, K33, K33)),
    (72, (240, 160, 240, 192, 240), (K53, K33, K33, K33, K33)),
    (72, (240, 240, 240, 240, 144, 240), (K53, K33, K33, K33, K15, K33)),
    (144, (480, 384, 384, 480, 480, 480, 576), (K53, K15, K15, K15, K15, K33, K13)),
)
A3 = (
    (16, (40, 40, 64, 40), (K15, K33, K33, K33)),
    (48, (112, 144, 112, 112, 144, 144), (K33, K33, K33, K15, K33, K33)),
    (80, (240, 152, 240, 192, 240), (K53, K33, K33, K33, K33)),
    (88, (264, 264, 264, 264, 160, 264, 264, 264), (K53, K33, K33, K33, K15, K33, K33, K33)),
    (168, (560, 448, 448, 560, 560, 560, 448, 448, 560, 672), (K53, K15, K15, K15, K15, K33, K15, K15, K33, K13)),
)
A4 = (
    (24, (64, 64, 96, 64, 96, 64), (K15, K33, K33, K33, K33, K33)),
    (56, (168, 168, 136, 136, 168, 168, 168, 136, 136), (K33, K33, K33, K33, K33, K33, K33, K15, K33)),
    (96, (320, 160, 320, 192, 320, 160, 320, 256, 320), (K53, K33, K33, K33, K33, K33, K33, K33, K33)),
    (96, (320, 320, 320, 320, 192, 320, 320, 192, 320, 320), (K53, K33, K33, K33, K15, K33, K33, K33, K33, K33)),
    (192, (640, 512, 512, 640, 640, 640, 512, 512, 640, 768, 640, 640, 768),
        (K53, K15, K15, K15, K15, K33, K15, K15, K15, K15, K15, K33, K33)),
)
A5 = (
    (24, (64, 64, 96, 64, 96, 64), (K15, K15, K33, K33, K33, K33)),
    (64, (192, 152, 152, 152, 192, 192, 192, 152, 152, 192, 192),
        (K53, K33, K33, K33, K33, K33, K33, K33, K33, K33, K33)),
    (112, (376, 224, 376, 376, 296, 376, 224, 376, 376, 296, 376, 376, 376),
        (K53, K33, K33, K33, K33, K33, K33, K33, K33, K33, K33, K33, K33)),
    (120, (376, 376, 376, 376, 224, 376, 376, 224, 376, 376, 376),
        (K53, K33, K33, K33, K15, K33, K33, K33, K33, K33, K33)),
    (224, (744, 744, 600, 600, 744, 744, 744, 896, 600, 600, 896, 744, 744, 896, 600, 600, 744, 744),
        (K53, K33, K15, K15, K15, K15, K33, K15, K15, K15, K15, K15, K33, K15, K15, K15, K15, K33)),
)
# fmt: on

STRIDES = (2, 2, 2, 1, 2)  # in space, of the first block of each stage
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01  # official code: norm_epsilon, 1 - norm_momentum


def to_frames(clip: Tensor) -> Tensor:
    """Folds the frames of a clip into the batch; (B, C, T, H, W) to (B*T, C, H, W)."""
    return clip.squeeze(2) if clip.shape[2] == 1 else clip.transpose(1, 2).flatten(0, 1)


def to_clip(frames: Tensor, time: int) -> Tensor:
    """Takes `time` frames of each clip out of the batch; (B*T, C, H, W) to (B, C, T, H, W)."""
    return frames.unsqueeze(2) if time == 1 else frames.unflatten(0, (-1, time)).transpose(1, 2)


def _fast_layout(clip: Tensor) -> Tensor:
    """Returns a clip in the layout of `clip_layout`, also a single frame, which fits several and would lose it."""
    if clip.shape[2] > 1 or clip.device.type != "cpu":
        return clip_layout(clip)
    return clip.squeeze(2).contiguous(memory_format=torch.channels_last).unsqueeze(2)


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pads height and width as TensorFlow's SAME: to ceil(size / stride) outputs, an odd rest at the end."""
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def pool_same(frames: Tensor) -> Tensor:
    """Halves height and width by means over 3x3 windows, padded as SAME; what is padded does not count."""
    padding = (frames.shape[2] % 2, frames.shape[3] % 2)  # in front and behind; else only the last window is cut
    return F.avg_pool2d(frames, 3, 2, padding, ceil_mode=True, count_include_pad=False)


def conv_norm(conv: nn.Module, act: type[nn.Module] | None) -> nn.Sequential:
    """Returns a convolution with its norm, and an activation if there is one."""
    kind = nn.BatchNorm3d if isinstance(conv, nn.Conv3d) else nn.BatchNorm2d
    norm = kind(conv.out_channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)  # type: ignore[arg-type]
    return nn.Sequential(conv, norm) if act is None else nn.Sequential(conv, norm, act(inplace=True))


class SqueezeExcite(nn.Module):
    """Weighs the channels of frames by a small network of their means; (B*T, dim, H, W) to the same.

    Args:
        dim: Channels.
        causal: Whether each frame is weighed by itself, by its own mean beside that of all frames so far; else all
            frames of a clip are weighed alike.
        pos_encoding: Whether the means are told the number of the frame.
        gate: The last activation of a causal one.
    """

    def __init__(self, dim: int, *, causal: bool, pos_encoding: bool, gate: Gate) -> None:
        super().__init__()
        seen = 2 * dim if causal else dim
        hidden_dim = round_width(dim // 4 * (2 if causal else 1), 1.0)
        self.causal, self.gate = causal, gate
        self.fc1 = nn.Linear(seen, hidden_dim)
        self.act = nn.Hardswish(inplace=True) if causal else nn.SiLU(inplace=True)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.pos_scale = nn.Parameter(torch.zeros(())) if causal and pos_encoding else None

    def forward(self, frames: Tensor, time: int, memory: StreamMemory | None = None) -> Tensor:
        """Applies the weights to the frames of clips of `time` frames."""
        means = frames.mean((2, 3)).unflatten(0, (-1, time))
        if not self.causal:
            gate = self.fc2(self.act(self.fc1(means.mean(1)))).sigmoid()
            return frames * gate.repeat_interleave(time, 0)[:, :, None, None]
        gate = self.fc2(self.act(self.fc1(self.look_back(means, memory)))).flatten(0, 1)
        gate = F.hardsigmoid(1.2 * gate if self.gate == "hard_sigmoid" else gate)  # 0.2 x + 0.5 is (1.2 x + 3) / 6
        return frames * gate[:, :, None, None]

    def look_back(self, means: Tensor, memory: StreamMemory | None) -> Tensor:
        """Returns the mean of all frames so far beside that of each frame; (B, T, dim) to (B, T, 2*dim)."""
        time = means.shape[1]
        wide = means.float() if means.dtype in (torch.bfloat16, torch.float16) else means
        total = wide if time == 1 else wide.cumsum(1)
        before = 0
        if memory is not None:
            past, before = memory.recall(total[:, 0].shape), memory.frames
            total = total if past is None else total + past[0][:, None]
            memory.keep(total[:, 0] if time == 1 else total[:, -1].clone())
        if time == 1:
            average = total / (before + 1)
        else:
            average = total / torch.arange(before + 1, before + 1 + time, device=wide.device, dtype=wide.dtype)[:, None]
        seen = torch.cat((average, wide), dim=-1)
        if self.pos_scale is not None:
            numbers = torch.arange(before, before + time, device=wide.device, dtype=wide.dtype)
            seen = seen + self.pos_scale * encode_positions(numbers, seen.shape[-1])
        return seen.to(means.dtype)


def encode_positions(positions: Tensor, dim: int) -> Tensor:
    """Returns the sinusoids of some positions: sines in the first half of the channels, cosines in the second.

    Args:
        positions: (T,).
        dim: Channels, an even number.

    Returns:
        (T, dim).
    """
    pairs = torch.arange(dim // 2, device=positions.device, dtype=positions.dtype)
    angles = positions[:, None] / 10000 ** (2 * pairs / dim)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Bottleneck(nn.Module):
    """Residual inverted bottleneck; (B, in_dim, T, H, W) to (B, dim, T, H', W').

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        inner: Channels between.
        kernel: Frames and side of the kernel between.
        stride: Stride in space.
        causal: Whether no later frame is seen.
        drop_path_rate: Stochastic depth.
        **gating: ``pos_encoding`` and ``gate`` of `SqueezeExcite`.
    """

    keeps_layers = ("temporal",)  # `_weigh` takes their weights

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        inner: int,
        kernel: tuple[int, int],
        stride: int,
        causal: bool,
        drop_path_rate: float,
        **gating: Any,
    ) -> None:
        super().__init__()
        frames, side = self.kernel = (kernel[0], kernel[1])
        self.stride = stride
        self.by_frame = frames == 1 or causal  # else the depth-wise convolution sees neighbours in time
        act: type[nn.Module] = nn.Hardswish if causal else nn.SiLU
        padding = side // 2 if stride == 1 else 0  # with a stride it depends on the size: `pad_same`
        space: dict[str, Any] = {"groups": inner, "bias": False}
        self.expand = conv_norm(nn.Conv2d(in_dim, inner, 1, bias=False), act)
        conv: nn.Module
        if self.by_frame:
            conv = nn.Conv2d(inner, inner, side, stride=stride, padding=padding, **space)
        else:
            size, step, pad = (frames, side, side), (1, stride, stride), (frames // 2, padding, padding)
            conv = nn.Conv3d(inner, inner, size, stride=step, padding=pad, **space)
        self.depthwise = conv_norm(conv, act)
        self.temporal: nn.Sequential | None = None
        if causal and frames > 1:
            self.temporal = conv_norm(nn.Conv2d(inner, inner, (frames, 1), **space), act)
        self.se = SqueezeExcite(inner, causal=causal, **gating)
        self.project = conv_norm(nn.Conv2d(inner, dim, 1, bias=False), None)
        self.shortcut: nn.Sequential | None = None
        if stride > 1 or in_dim != dim:
            self.shortcut = conv_norm(nn.Conv2d(in_dim, dim, 1, bias=False), None)
        self.alpha = nn.Parameter(torch.zeros(()))  # Bachlechner et al., "ReZero is All You Need", arXiv:2003.04887
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, memory: StreamMemory | None = None) -> Tensor:
        """Applies the block; `memory` holds the frames before those of `x`, else there are none."""
        time = x.shape[2]
        frames = to_frames(x)
        out = self.expand(frames)
        if self.stride > 1:
            out = pad_same(out, self.kernel[1], self.stride)
        out = self.depthwise(out) if self.by_frame else to_frames(self.depthwise(to_clip(out, time)))
        if self.temporal is not None:
            out = self._look_back(out, time, memory)
        out = self.project(self.se(out, time, memory))
        if self.stride > 1:
            frames = pool_same(frames)
        if self.shortcut is not None:
            frames = self.shortcut(frames)
        return torch.addcmul(to_clip(frames, time), self.drop_path(to_clip(out, time)), self.alpha)

    def _look_back(self, frames: Tensor, time: int, memory: StreamMemory | None) -> Tensor:
        """Convolves in time over each frame and those before; (B*T, C, H, W) to the same."""
        assert self.temporal is not None
        past, size = self.kernel[0] - 1, frames.shape[2:]
        clip = to_clip(frames, time)
        if memory is None:
            rows = F.pad(clip.flatten(3), (0, 0, past, 0))
        else:
            frame = clip[:, :, 0]
            before = memory.recall(frame.shape, past) or [torch.zeros_like(frame)] * past
            if time == 1 and type(self.temporal[0]) is nn.Conv2d:
                memory.keep(*before[1:], frames)
                return self._weigh([*before, frames])
            rows = torch.cat((*(frame.unsqueeze(2) for frame in before), clip), dim=2).flatten(3)
            memory.keep(*(rows[:, :, place].clone().unflatten(2, size) for place in range(time, time + past)))
        # (B, C, T, H*W): a 2D convolution over it is one in time
        return to_frames(self.temporal(rows).unflatten(3, size))

    def _weigh(self, frames: Sequence[Tensor]) -> Tensor:
        """Computes `temporal` for a single frame, as a sum over it and those before: a third of the time."""
        layers: Any = self.temporal
        conv, *rest = layers
        weights = conv.weight.unbind(2)
        out = (
            frames[0] * weights[0]
            if conv.bias is None
            else torch.addcmul(conv.bias[:, None, None], frames[0], weights[0])
        )
        for frame, weight in zip(frames[1:], weights[1:], strict=True):
            out = torch.addcmul(out, frame, weight)
        for layer in rest:
            out = layer(out)
        return out


class MoViNet(VideoModel):
    """MoViNet.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        causal: Whether this is the stream, which sees no later frame, or the base network.
        stages: The five stages: channels; for each block the channels within; for each block (frames, side) of the
            kernel.
        depth: How many of the blocks of each stage there are, from the first on; None takes all.
        embed_dim: Channels of the stem.
        head_dim: Channels of the features.
        hidden_dim: Channels of the head's hidden layer.
        pos_encoding: Whether the gates of the stream are told the number of the frame.
        gate: ``hard_sigmoid`` or ``relu6``: the last activation of the stream's gates.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; those before have their share of it.

    The features are (B, head_dim, T, ceil(H/32), ceil(W/32)). Any clip is taken.
    """

    steps_quickly = False
    quick: QuickSteps | None = None

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 50,
        img_size: tuple[int, int] = (172, 172),
        in_chans: int = 3,
        causal: bool = False,
        stages: Sequence[Stage] = A0,
        depth: Sequence[int] | None = None,
        embed_dim: int = 8,
        head_dim: int = 480,
        hidden_dim: int = 2048,
        pos_encoding: bool = False,
        gate: Gate = "hard_sigmoid",
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if gate not in get_args(Gate):
            raise ValueError(f"gate {gate!r}: choose {' or '.join(get_args(Gate))}")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, head_dim
        self.causal = self.streams = causal
        kinds = _check_stages(stages, depth)
        act: type[nn.Module] = nn.Hardswish if causal else nn.SiLU
        self.stem = conv_norm(nn.Conv2d(in_chans, embed_dim, 3, stride=2, bias=False), act)
        number, total, in_dim = 0, sum(len(inner) for _, inner, _ in kinds), embed_dim
        for place, (dim, inner, kernels) in enumerate(kinds):
            blocks = nn.Sequential()
            for width, kernel in zip(inner, kernels, strict=True):
                number += 1
                blocks.append(
                    Bottleneck(
                        in_dim,
                        dim,
                        inner=width,
                        kernel=(kernel[0], kernel[1]),
                        stride=1 if len(blocks) else STRIDES[place],
                        causal=causal,
                        drop_path_rate=drop_path_rate * number / total,
                        pos_encoding=pos_encoding,
                        gate=gate,
                    )
                )
                in_dim = dim
            self.add_module(f"layer{place + 1}", blocks)
        self.conv7 = conv_norm(nn.Conv2d(in_dim, head_dim, 1, bias=False), act)
        self.head = MlpHead(head_dim, num_classes, hidden_features=hidden_dim, act=nn.SiLU, drop_rate=drop_rate)
        self.feature_info = [
            FeatureInfo(f"layer{place + 1}", kinds[place][0], (1, step, step))
            for place, step in enumerate((4, 8, 16, 16, 32))
        ]
        self.feature_info.append(FeatureInfo("conv7", head_dim, (1, 32, 32)))
        self.apply(_init_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem, the stages and the last convolution."""
        return self._run(clip, tap, None)

    def _run(self, clip: Tensor, tap: Tap, memory: StreamMemory | None) -> Tensor:
        self._check_clip(clip)
        time = clip.shape[2]
        x = to_clip(self.stem(pad_same(to_frames(_fast_layout(clip)), 3, 2)), time)
        for place in range(len(STRIDES)):
            blocks: nn.Sequential = getattr(self, f"layer{place + 1}")
            if memory is None:
                x = run_blocks(blocks, x, recompute=self.grad_checkpointing)
            else:
                for block in blocks:
                    x = block(x, memory)
            x = tap(place, x)
        return tap(len(STRIDES), to_clip(self.conv7(to_frames(x)), time))

    def step(self, frames: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Goes on with a stream; see `VideoModel.step`. The head sees the mean of all frames so far."""
        self.init_state(state.batch_size)
        if isinstance(self.head, AttentivePoolHead):
            raise StvidError("MoViNet: a head that pools by attention sees all frames at once, so it has no stream")
        if frames.shape[0] != state.batch_size:
            raise ValueError(
                f"the state is for {state.batch_size} streams side by side, the frames are of {len(frames)}"
            )
        memory = StreamMemory(state)
        quick = self._quick_steps(frames)
        if quick is None:
            means = self._run(frames, lambda number, x: x, memory).mean((3, 4))
        else:
            self._check_clip(frames)
            means = quick(frames, memory)[:, :, None]
        total = (means.float() if means.dtype in (torch.bfloat16, torch.float16) else means).sum(2)
        past = memory.recall(total.shape)
        total = total if past is None else total + past[0]
        memory.keep(total)
        new = memory.after(frames.shape[2])
        return self.forward_head((total / new.frames).to(means.dtype)), new

    def speed_up_steps(self) -> str:
        """Prepares a copy for inference for single frames; returns what was done, empty if nothing was."""
        self.steps_quickly = self.causal and QuickSteps.fits(self)
        return "single frames of a stream without modules" if self.steps_quickly else ""

    def _quick_steps(self, frames: Tensor) -> QuickSteps | None:
        """Returns the fast path, if it was asked for and fits these frames."""
        if not self.steps_quickly or frames.shape[2] != 1 or frames.device.type != "cpu":
            return None
        if torch.is_grad_enabled() and frames.requires_grad:
            return None
        if self.quick is None:
            blocks = [block for place in _PLACES for block in getattr(self, f"layer{place + 1}")]
            self.quick = QuickSteps(self, blocks, pad=pad_same, pool=pool_same)
        return self.quick

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.quick = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "quick"}

    def no_weight_decay(self) -> set[str]:
        """Returns the factors of the branches and of the encodings of position."""
        return {name for name, _ in self.named_parameters() if name.endswith((".alpha", ".pos_scale"))}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, every block in order, the last convolution."""
        return {"stem": r"^stem\.", "blocks": [(r"^layer(\d)\.(\d+)\.", None), (r"^conv7\.", (99999,))]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the port's layout, and the variables of the official checkpoints by name, into our keys and shapes."""
        if any(key.startswith("conv1.conv_1.conv") for key in state):
            return "MoViNet-pytorch", _without_axes(rename_keys(state, PORT_RULES))
        if any("stem/stem/" in key for key in state):
            torch_layout = {key: _from_tensorflow(key, value) for key, value in state.items()}
            return "TensorFlow", _without_axes(rename_keys(torch_layout, TENSORFLOW_RULES))
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: base network or stream, the stages, and all widths."""
        _, own = self.convert_checkpoint(state)
        needed = ("stem.0.weight", "layer1.0.expand.0.weight", "conv7.0.weight", "head.hidden.weight")
        return read_options(_read, own, self.state_dict(), needed=needed)


def _check_stages(stages: Sequence[Stage], depth: Sequence[int] | None) -> list[Stage]:
    """Returns the stages, each cut to its `depth`.

    Raises:
        ValueError: If there are not five stages, or a stage has no such blocks.
    """
    found = [(dim, tuple(inner), tuple(kernels)) for dim, inner, kernels in stages]
    if len(found) != len(STRIDES) or any(len(inner) != len(kernels) or not inner for _, inner, kernels in found):
        raise ValueError(f"stages: {len(STRIDES)} are needed, each with as many kernels as channels within its blocks")
    if depth is None:
        return list(found)
    if len(depth) != len(found) or any(not 1 <= n <= len(inner) for n, (_, inner, _) in zip(depth, found, strict=True)):
        most = tuple(len(inner) for _, inner, _ in found)
        raise ValueError(f"depth {tuple(depth)}: a number for each stage, from 1 to {most}")
    return [(dim, inner[:n], kernels[:n]) for n, (dim, inner, kernels) in zip(depth, found, strict=True)]


def _init_weights(module: nn.Module) -> None:
    """Draws weights from a normal of variance 2 / inputs, with zero biases (Keras' HeNormal, not truncated)."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- published keys ---------------------------------------------------------------------------------------------------

_PLACES = range(len(STRIDES))
PORT_RULES = (
    (r"^conv1\.conv_1\.", "stem."),
    *((rf"^blocks\.b{place}_l(\d+)\.", rf"layer{place + 1}.\1.") for place in _PLACES),
    (r"\.deep\.conv_1\.", ".depthwise."),
    (r"\.deep\.conv_2\.", ".temporal."),
    (r"\.(expand|project)\.conv_1\.", r".\1."),
    (r"\.res\.\d\.conv_1\.", ".shortcut."),
    (r"\.se\.(fc\d)\.conv_1\.conv\dd\.", r".se.\1."),
    (r"\.se\.pos_encoding\.rezero\.scale$", ".se.pos_scale"),
    (r"^conv7\.conv_1\.", "conv7."),
    (r"^classifier\.0\.conv_1\.conv\dd\.", "head.hidden."),
    (r"^classifier\.3\.conv_1\.conv\dd\.", "head.fc."),
    (r"\.conv\dd\.weight$", ".0.weight"),
    (r"\.norm\.", ".1."),
)
TENSORFLOW_RULES = (
    (r":0$", ""),
    (r"^stem/stem/", "stem/"),
    *((rf"^block{place}_layer(\d+)/(?:bneck/)?", rf"layer{place + 1}.\1/") for place in _PLACES),
    (r"^(layer\d\.\d+)/scale$", r"\1.alpha"),
    (r"^(layer\d\.\d+)/.*/scale$", r"\1.se.pos_scale"),
    (r"/feature/conv2d_temporal/", ".temporal/"),
    (r"/feature/", ".depthwise/"),
    (r"/expansion/", ".expand/"),
    (r"/projection/", ".project/"),
    (r"/skip/skip_project/", ".shortcut/"),
    (r"/se/se_reduce/.*(kernel|bias)$", r".se.fc1.\1"),
    (r"/se/se_expand/.*(kernel|bias)$", r".se.fc2.\1"),
    (r"^head/project/", "conv7/"),
    (r"^classifier_head[_\d]*/head/.*(kernel|bias)$", r"head.hidden.\1"),
    (r"^classifier_head[_\d]*/classifier/.*(kernel|bias)$", r"head.fc.\1"),
    (r"/(?:.*/)?(?:depthwise_)?kernel$", ".0.weight"),
    (r"/(?:.*/)?gamma$", ".1.weight"),
    (r"/(?:.*/)?beta$", ".1.bias"),
    (r"/(?:.*/)?moving_mean$", ".1.running_mean"),
    (r"/(?:.*/)?moving_variance$", ".1.running_var"),
    (r"\.kernel$", ".weight"),
)


def _from_tensorflow(name: str, value: Tensor) -> Tensor:
    """Returns a variable in torch's order of axes; TensorFlow's kernels have the channels last."""
    if value.dim() == 5:
        return value.permute(4, 3, 0, 1, 2)
    if value.dim() == 4:
        return value.permute((2, 3, 0, 1) if "depthwise_kernel" in name else (3, 2, 0, 1))
    return value


def _without_axes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turns kernels of one frame into 2D ones, and those of the gates and the head into matrices."""
    own = dict(state)
    for key, value in own.items():
        if re.search(r"(?:\.se\.fc\d|^head\.(?:hidden|fc))\.weight$", key):
            own[key] = value.flatten(1)
        elif value.dim() == 5 and value.shape[2] == 1:
            own[key] = value.squeeze(2)
        elif key.endswith((".alpha", ".pos_scale")) and value.numel() == 1:
            own[key] = value.reshape(())  # some writers give a number an axis
    return own


def _read(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    stages = []
    causal = any(".temporal." in key for key in state)
    for place in range(1, len(STRIDES) + 1):
        inner, kernels = [], []
        blocks = [f"layer{place}.{block}." for block in range(count_blocks(state, f"layer{place}."))]
        for prefix in blocks:
            weight, temporal = state[f"{prefix}depthwise.0.weight"], state.get(f"{prefix}temporal.0.weight")
            inner.append(weight.shape[0])
            frames = weight.shape[2] if weight.dim() == 5 else 1 if temporal is None else temporal.shape[2]
            kernels.append((frames, weight.shape[-1]))
        stages.append((state[f"{blocks[0]}project.0.weight"].shape[0], tuple(inner), tuple(kernels)))
    squeezed = state["layer1.0.se.fc1.weight"]
    causal = causal or squeezed.shape[1] == 2 * state["layer1.0.se.fc2.weight"].shape[0]
    return {
        "causal": causal,
        "stages": tuple(stages),
        "embed_dim": state["stem.0.weight"].shape[0],
        "head_dim": state["conv7.0.weight"].shape[0],
        "hidden_dim": state["head.hidden.weight"].shape[0],
        **({"pos_encoding": "layer1.0.se.pos_scale" in state} if causal else {}),
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# The official README ("Base Models") and configs/yaml (validation_data): one clip of the whole video, ten seconds at 25
# frames a second, of which every 5th, 3rd or 2nd is taken. Pixels are scaled to 0..1 and nothing else.
_A0 = Protocol(frames=50, stride=5, fps=25, short_side=192, crop=172, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_A2 = _A0.replace(short_side=256, crop=224)
_A3 = _A0.replace(frames=120, stride=2, short_side=288, crop=256)
_A4 = _A0.replace(frames=80, stride=3, short_side=320, crop=290)
_A5 = _A3.replace(short_side=368, crop=320)
_ROUNDED = "the README rounds GFLOPs"
_TINY = (
    (8, (16,), (K15,)),
    (8, (16, 24), (K33, K33)),
    (16, (24,), (K53,)),
    (24, (32, 24), (K33, K15)),
    (24, (32, 32), (K53, K13)),
)
_XXS = (
    (16, (32,), (K33,)),
    (24, (72, 48), (K33, K33)),
    (32, (96, 64), (K53, K33)),
    (32, (96, 64), (K53, K33)),
    (48, (128, 96), (K33, K13)),
)

FAMILY = Family(
    model="MoViNet",
    paper="Kondratyuk et al. 2021, arXiv:2103.11511",
    small_clip=(5, 40, 50),
    formats=("TensorFlow", "MoViNet-pytorch"),
    tiny={"stages": _TINY, "embed_dim": 8, "head_dim": 32, "hidden_dim": 48},
    slow_goldens=(
        "movinet_a1_base__6x86",
        "movinet_a2_base__8x64",
        "movinet_a2_stream__8x64",
        "movinet_a3_base__4x64",
        "movinet_a3_stream_tf__4x64",
        "movinet_a5_base__4x64",
    ),
    golden_options={
        "movinet_a0_base__8x64": {"name": "movinet_a0"},
        "movinet_a0_base_tf__6x64x88": {"name": "movinet_a0"},
        "movinet_a0_stream__8x64": {"name": "movinet_a0", "causal": True},
        "movinet_a0_stream_tf__6x72x56": {"name": "movinet_a0", "causal": True},
        "movinet_a1_base__6x86": {"name": "movinet_a1"},
        "movinet_a2_base__8x64": {"name": "movinet_a2"},
        "movinet_a2_stream__8x64": {"name": "movinet_a2", "causal": True},
        "movinet_a3_base__4x64": {"name": "movinet_a3"},
        "movinet_a3_stream_tf__4x64": {"name": "movinet_a3", "causal": True},
        "movinet_a5_base__4x64": {"name": "movinet_a5"},
    },
    variants=(
        Variant(
            "movinet_xxs",
            "A stream that is small enough to train on two CPU cores; this project's own.",
            Protocol(frames=16, stride=1, short_side=64, crop=64),
            {"causal": True, "stages": _XXS, "embed_dim": 16, "head_dim": 192, "hidden_dim": 256, "drop_rate": 0.0},
            paper="",
            formats=(),
        ),
        Variant(
            "movinet_a0", "MoViNet-A0: 50 frames of 172x172.", _A0, gflops=2.7, gflops_tolerance=0.03, note=_ROUNDED
        ),
        Variant(
            "movinet_a1",
            "MoViNet-A1: 50 frames of 172x172.",
            _A0,
            {"stages": A1, "embed_dim": 16, "head_dim": 600, "drop_rate": 0.5},
            gflops=6.0,
            gflops_tolerance=0.03,
            note=_ROUNDED,
            same_as="movinet_a0",
        ),
        Variant(
            "movinet_a2",
            "MoViNet-A2: 50 frames of 224x224.",
            _A2,
            {"stages": A2, "embed_dim": 16, "head_dim": 640, "drop_rate": 0.5},
            gflops=10.0,
            gflops_tolerance=0.16,
            note="the README prints 10 GFLOPs; code: 11.6",
            same_as="movinet_a0",
        ),
        Variant(
            "movinet_a3",
            "MoViNet-A3: 120 frames of 256x256; its stream numbers the frames.",
            _A3,
            {"stages": A3, "embed_dim": 16, "head_dim": 744, "pos_encoding": True, "drop_rate": 0.5},
            gflops=57.0,
            gflops_tolerance=0.03,
            note=_ROUNDED,
            same_as="movinet_a0",
        ),
        Variant(
            "movinet_a4",
            "MoViNet-A4: 80 frames of 290x290; its stream numbers the frames.",
            _A4,
            {"stages": A4, "embed_dim": 24, "head_dim": 856, "pos_encoding": True, "drop_rate": 0.5},
            gflops=110.0,
            gflops_tolerance=0.07,
            note="the README prints 110 GFLOPs; code: 103.3",
            same_as="movinet_a0",
        ),
        Variant(
            "movinet_a5",
            "MoViNet-A5: 120 frames of 320x320; its stream numbers the frames.",
            _A5,
            {"stages": A5, "embed_dim": 24, "head_dim": 992, "pos_encoding": True, "drop_rate": 0.5},
            gflops=280.0,
            gflops_tolerance=0.02,
            note=_ROUNDED,
            same_as="movinet_a0",
        ),
    ),
)
