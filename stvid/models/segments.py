"""The trunk of 2D CNNs with a temporal module: frames are folded into the batch, and a consensus joins them.

A 2D network sees every frame of a clip by itself, and its head averages over the frames (Wang et al., "Temporal Segment
Networks", ECCV 2016, arXiv:1608.00859). What makes such a network see time is a small module in its residual blocks: a
shift of channels, a difference of neighbours, a gate. This module holds what these networks share; a family hooks its
temporal module in and says nothing of ResNets.

Between blocks, and for every temporal module, the features of a clip are *frames*, a tensor (B, T, C, H, W). `PerFrame`
folds T into the batch for its 2D layers, which on both sides is a view. A block offers four places for a module, all
from frames to frames (`BlockParts`):

    x -> before -> conv1 -> inside -> conv2, or spatial in its place -> conv3 -> + shortcut -> ReLU -> after

Blocks are those of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, with the
stride at the 3x3 convolution (torchvision, models/resnet.py); so any checkpoint of a 2D ResNet fits the trunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.errors import StvidError
from stvid.models.base import StagedModel, VideoModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys
from stvid.models.heads import AttentivePoolHead, LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import count_blocks, from_mmaction, is_mmaction, read_options
from stvid.models.streaming import StreamMemory, StreamState

__all__ = [
    "BasicBlock",
    "BlockParts",
    "BlockPlace",
    "Bottleneck",
    "ChannelTimeConv",
    "ConsensusHead",
    "PerFrame",
    "PerPlace",
    "SegmentResNet",
    "TemporalAggregation",
    "TemporalShift",
    "TimePool",
    "conv_norm",
    "join_aggregations",
    "read_trunk",
    "shift_next",
    "step_frames",
    "tap_frames",
    "to_frames",
]

MIN_CLIP = (1, 32, 32)


# --- layers on frames -------------------------------------------------------------------------------------------------


class PerFrame(nn.Sequential):
    """2D layers that see each frame by itself; (B, T, C, H, W) to (B, T, C', H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        """Folds the frames into the batch, applies the layers, and unfolds them."""
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class PerPlace(nn.Sequential):
    """2D layers over time, in front, and all places of a frame in a row; (B, T, C, H, W) to (B, T, C', H, W).

    With kernels of one place these are layers in time, for which 2D convolutions have fast kernels everywhere.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Puts the places in a row, applies the layers, and puts the places back."""
        return super().forward(x.transpose(1, 2).flatten(3)).unflatten(3, x.shape[3:]).transpose(1, 2)


def conv_norm(
    in_dim: int, dim: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = False, act: bool = True
) -> PerFrame:
    """Builds a padded 2D convolution with its norm, and a ReLU if `act` is set.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        kernel: Side of the kernel, an odd number.
        stride: Stride.
        groups: Groups of channels that do not see each other.
        bias: Whether the convolution has a bias, in front of its norm.
        act: Whether a ReLU follows the norm.
    """
    conv = nn.Conv2d(in_dim, dim, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(dim)]
    return PerFrame(*layers, nn.ReLU(inplace=True)) if act else PerFrame(*layers)


def to_frames(clip: Tensor) -> Tensor:
    """Returns the frames (B, T, C, H, W) of a clip (B, C, T, H, W), in the memory format that 2D layers like."""
    return clip_layout(clip).transpose(1, 2)


def tap_frames(tap: Tap) -> Tap:
    """Returns a tap for frames (B, T, C, H, W) that shows them to a tap for maps (B, C, T, H, W)."""

    def on_frames(number: int, x: Tensor) -> Tensor:
        return tap(number, x.transpose(1, 2)).transpose(1, 2)

    return on_frames


class TemporalShift(nn.Module):
    """Moves a part of the channels one frame back, and as many one frame on; frames without a neighbour get zeros.

    Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019, arXiv:1811.08383; official
    code: mit-han-lab/temporal-shift-module, ops/temporal_shift.py and online_demo/mobilenet_v2_tsm.py.

    Args:
        shift_div: The first 1/shift_div of the channels take the next frame, the second 1/shift_div the previous one.
        causal: The shift for streams: the first 1/shift_div of the channels take the previous frame, and none the next.
    """

    def __init__(self, *, shift_div: int = 8, causal: bool = False) -> None:
        super().__init__()
        if shift_div < (1 if causal else 2):
            raise ValueError(f"shift_div {shift_div}: must be at least {1 if causal else 2}")
        self.shift_div = shift_div
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, C, H, W) to the same shape."""
        part = x.shape[2] // self.shift_div
        if self.causal:
            return self.step(x, x.new_zeros(1, 1, part, 1, 1).expand(x.shape[0], 1, part, *x.shape[3:]))[0]
        out = x.clone()  # faster than copying most of it channel by channel
        out[:, :-1, :part] = x[:, 1:, :part]
        out[:, -1, :part] = 0.0
        out[:, 1:, part : 2 * part] = x[:, :-1, part : 2 * part]
        out[:, 0, part : 2 * part] = 0.0
        return out

    def step(self, x: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts the next frames of a stream.

        Args:
            x: (B, T, C, H, W).
            last: The channels that the frame before `x` passes on, (B, 1, C / shift_div, H, W).

        Returns:
            The shifted frames, and the channels that their last one passes on.
        """
        part = last.shape[2]
        moved = torch.cat((last, x[:, :, :part]), dim=1)
        return torch.cat((moved[:, :-1], x[:, :, part:]), dim=2), moved[:, -1:]

    def extra_repr(self) -> str:
        """Returns the settings, which are shown when the model is printed."""
        return f"shift_div={self.shift_div}, causal={self.causal}"


class ChannelTimeConv(nn.Module):
    """A convolution in time of every channel by itself, with zeros beyond the clip: a shift that is learned.

    It is written as a 2D convolution over (T, H * W), which has fast kernels everywhere.

    Args:
        dim: Channels.
        kernel: Frames that it sees, an odd number.
    """

    def __init__(self, dim: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, (kernel, 1), padding=(kernel // 2, 0), groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, C, H, W) to the same shape."""
        rows = x.transpose(1, 2).flatten(3)
        return self.conv(rows).unflatten(3, x.shape[3:]).transpose(1, 2)

    def start_as_shift(self, moved: int) -> None:
        """Starts a kernel of three frames as a shift.

        Args:
            moved: As many channels take the next frame, as many after them the previous one, and the rest stay.
        """
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:moved, :, 2] = 1.0
            self.conv.weight[moved : 2 * moved, :, 0] = 1.0
            self.conv.weight[2 * moved :, :, 1] = 1.0


class TemporalAggregation(ChannelTimeConv):
    """TAM: mixes every channel with its neighbours in time by learned weights, with a ReLU behind.

    Fan et al., "More Is Less: Learning Efficient Video Representations by Big-Little Network and Depthwise Temporal
    Aggregation", NeurIPS 2019, arXiv:1912.00869; official code: IBM/bLVNet-TAM, core/models/blvnet_tam_backbone.py, and
    IBM/action-recognition-pytorch, models/twod_models/temporal_modeling.py, with a layer for each neighbour.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the frames."""
        return F.relu(super().forward(x), inplace=True)


def join_aggregations(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins ``tam.prev``, ``tam.curr`` and ``tam.next`` of IBM's files into the weight of one convolution."""
    pattern = re.compile(r"(.*\btam)\.(?:(prev|curr|next)(?:_se\.fc1)?|blending_layers\.(\d+)(?:\.fc1)?)\.weight")
    own: dict[str, Tensor] = {}
    found: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if match := pattern.fullmatch(key):
            place = ("prev", "curr", "next").index(match[2]) if match[2] else int(match[3])
            found.setdefault(match[1], {})[place] = value
        else:
            own[key] = value
    for name, layers in found.items():
        own[f"{name}.conv.weight"] = torch.cat([layers[place] for place in sorted(layers)], dim=2)
    return own


class TimePool(nn.Module):
    """Halves the frames of a clip: the maximum over three frames at every second one."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, C, H, W) to (B, ceil(T/2), C, H, W)."""
        return F.max_pool3d(x.transpose(1, 2), (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)).transpose(1, 2)


class ConsensusHead(LinearHead):
    """Averages each frame over space, drops out, and averages over the frames: the logits are the mean of the frames'.

    Args:
        num_features: Channels of the features.
        num_classes: Number of logits.
        drop_rate: Dropout of each frame's features.
    """

    def __init__(self, num_features: int, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__(num_features, num_classes, drop_rate=drop_rate)

    def pool(self, features: Tensor) -> Tensor:
        """Pools the features, (B, C, T, H, W) to (B, C)."""
        return self.drop(features.mean((3, 4))).mean(2)


# --- streams ----------------------------------------------------------------------------------------------------------


def shift_next(shift: nn.Module, x: Tensor, memory: StreamMemory) -> Tensor:
    """Applies what stands before a block to the next frames of a stream.

    Args:
        shift: A causal `TemporalShift`, which remembers what its last frame passes on; anything else is just applied.
        x: (B, T, C, H, W).
        memory: The state of the stream.
    """
    if not isinstance(shift, TemporalShift):
        return shift(x)
    part = x.shape[2] // shift.shift_div
    shape = (x.shape[0], 1, part, *x.shape[3:])
    past = memory.recall(shape)
    moved, last = shift.step(x, x.new_zeros(shape) if past is None else past[0])
    memory.keep(last)
    return moved


def step_frames(
    model: VideoModel, frames: Tensor, state: StreamState, run: Callable[[Tensor, StreamMemory], Tensor]
) -> tuple[Tensor, StreamState]:
    """Goes on with a stream in a network whose logits are the mean of the frames'; see `VideoModel.step`.

    Args:
        model: The network.
        frames: (B, in_chans, T, H, W).
        state: The state before.
        run: Computes the features (B, T, C, h, w) of frames (B, T, in_chans, H, W).
    """
    model.init_state(state.batch_size)  # says why not, if the model does not run over a stream
    if isinstance(model.head, AttentivePoolHead):
        raise StvidError(
            f"{type(model).__name__}: a head that pools by attention sees all frames at once, so it has no stream"
        )
    model._check_clip(frames, minimum=MIN_CLIP)
    if frames.shape[0] != state.batch_size:
        raise ValueError(f"the state is for {state.batch_size} streams side by side, the frames are of {len(frames)}")
    memory = StreamMemory(state)
    means = run(to_frames(frames), memory).mean((3, 4))
    total = (means.float() if means.dtype in (torch.bfloat16, torch.float16) else means).sum(1)
    past = memory.recall(total.shape)
    total = total if past is None else total + past[0]
    memory.keep(total)
    new = memory.after(frames.shape[2])
    mean = (total / new.frames).to(means.dtype)
    return model.forward_head(mean[:, :, None, None, None]), new


# --- residual blocks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockPlace:
    """The place of a block in the trunk, and its sizes.

    Attributes:
        stage: Number of its stage, from 0.
        block: Number in the stage, from 0.
        in_dim: Channels of its input.
        dim: Channels of its output.
        inner: Channels between its convolutions.
        stride: Stride in space.
    """

    stage: int
    block: int
    in_dim: int
    dim: int
    inner: int
    stride: int


@dataclass(frozen=True)
class BlockParts:
    """The modules that a family hooks into a residual block; each maps frames to frames.

    Attributes:
        before: In front of the first convolution; sees `in_dim` channels.
        inside: Behind the first convolution with its norm and ReLU; sees `inner` channels. Bottlenecks alone have it.
        spatial: In place of the 3x3 convolution with its norm and ReLU; also applies the stride. Bottlenecks alone.
        after: Behind the last ReLU; sees `dim` channels.
        moves_shortcut: Whether the shortcut sees what `before` made, or the input of the block.
        shortcut: In place of the convolution with norm that stands on the shortcut where the shape changes.
        last_act: Whether a ReLU follows the sum.
    """

    before: nn.Module | None = None
    inside: nn.Module | None = None
    spatial: nn.Module | None = None
    after: nn.Module | None = None
    moves_shortcut: bool = False
    shortcut: nn.Module | None = None
    last_act: bool = True


class ResidualBlock(nn.Module):
    """Base class of the blocks: the shortcut, and the modules around the branch.

    Args:
        place: The block's place and sizes.
        parts: The modules that are hooked in.
        bias: Whether convolutions have a bias, in front of their norms.
    """

    def __init__(self, place: BlockPlace, parts: BlockParts, *, bias: bool = False) -> None:
        super().__init__()
        self.moves_shortcut, self.last_act = parts.moves_shortcut, parts.last_act
        self.before = parts.before or nn.Identity()
        self.after = parts.after or nn.Identity()
        if parts.shortcut is not None:
            self.downsample: nn.Module = parts.shortcut
        elif place.stride > 1 or place.in_dim != place.dim:
            self.downsample = conv_norm(place.in_dim, place.dim, 1, stride=place.stride, bias=bias, act=False)
        else:
            self.downsample = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        """Returns what is added to the shortcut."""
        raise TypeError(f"{type(self).__name__} does not implement branch")

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, in_dim, H, W) to (B, T, dim, H', W')."""
        return self.after_moving(x, self.before(x))

    def step(self, x: Tensor, memory: StreamMemory) -> Tensor:
        """Maps the next frames of a stream."""
        return self.after_moving(x, shift_next(self.before, x, memory))

    def after_moving(self, x: Tensor, moved: Tensor) -> Tensor:
        """Applies all but `before`, to the input of the block and what `before` made of it."""
        out = self.branch(moved)
        out += self.downsample(moved if self.moves_shortcut else x)
        return self.after(F.relu(out, inplace=True) if self.last_act else out)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    def __init__(self, place: BlockPlace, parts: BlockParts, *, bias: bool = False) -> None:
        super().__init__(place, parts, bias=bias)
        self.conv1 = conv_norm(place.in_dim, place.dim, 3, stride=place.stride, bias=bias)
        self.conv2 = conv_norm(place.dim, place.dim, 3, bias=bias, act=False)

    def branch(self, x: Tensor) -> Tensor:
        """Applies both convolutions."""
        return self.conv2(self.conv1(x))


class Bottleneck(ResidualBlock):
    """A 1x1, a 3x3 and a 1x1 convolution, with the stride at the second."""

    def __init__(self, place: BlockPlace, parts: BlockParts, *, bias: bool = False) -> None:
        super().__init__(place, parts, bias=bias)
        self.conv1 = conv_norm(place.in_dim, place.inner, 1, bias=bias)
        self.inside = parts.inside or nn.Identity()
        self.conv2: nn.Module = parts.spatial or conv_norm(place.inner, place.inner, 3, stride=place.stride, bias=bias)
        self.conv3 = conv_norm(place.inner, place.dim, 1, bias=bias, act=False)

    def branch(self, x: Tensor) -> Tensor:
        """Applies the convolutions and what is hooked in between."""
        return self.conv3(self.conv2(self.inside(self.conv1(x))))


# --- the trunk --------------------------------------------------------------------------------------------------------


class SegmentResNet(StagedModel):
    """A ResNet over frames; families subclass it and hook their modules into its blocks.

    Args:
        num_classes: Number of logits.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        bottleneck: Whether blocks are bottlenecks, with a quarter of the channels inside, or basic blocks.
        make_parts: Called with each block's place, in order; returns what is hooked into it.
        drop_rate: Dropout before the classifier.
        bias: Whether convolutions have a bias, in front of their norms.
        time_pools: Stages, from 1 to 3, after which `TimePool` halves the frames.
        inner_dim: Gives the channels inside a bottleneck for a quarter of its output's; None takes that quarter.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)), with fewer frames behind pools in time. A clip has
    at least 32 pixels in height and width.

    Attributes:
        published_as: Name of the authors' layout.
        min_clip: The smallest clip, (T, H, W).
    """

    published_as: str = "authors"
    min_clip = MIN_CLIP

    def __init__(
        self,
        *,
        num_classes: int,
        in_chans: int,
        depth: Sequence[int],
        embed_dim: int,
        bottleneck: bool,
        make_parts: Callable[[BlockPlace], BlockParts],
        drop_rate: float,
        bias: bool = False,
        time_pools: Sequence[int] = (),
        inner_dim: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__()
        if not set(time_pools) <= {1, 2, 3}:
            raise ValueError(f"time_pools {tuple(time_pools)}: stages from 1 to 3 can have a pool in time behind them")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, embed_dim * 8
        stem_dim = embed_dim // 4 if bottleneck else embed_dim
        self.stem = PerFrame(
            nn.Conv2d(in_chans, stem_dim, 7, stride=2, padding=3, bias=bias),
            nn.BatchNorm2d(stem_dim),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )

        def make_block(stage: int, block: int) -> ResidualBlock:
            dim = embed_dim * 2**stage
            before = (dim // 2 if stage else stem_dim) if not block else dim
            stride = 2 if stage and not block else 1
            inner = dim // 4 if bottleneck else dim
            place = BlockPlace(stage, block, before, dim, inner_dim(inner) if inner_dim else inner, stride)
            kind = Bottleneck if bottleneck else BasicBlock
            return kind(place, make_parts(place), bias=bias)

        self.build_stages(depth, make_block)
        self.time_pools = nn.ModuleDict({str(stage): TimePool() for stage in sorted(time_pools)})
        halved = [2 ** sum(pool <= stage for pool in time_pools) for stage in range(4)]
        self.describe_stages(embed_dim, [(time, 4 * 2**stage, 4 * 2**stage) for stage, time in enumerate(halved)])
        self.head = ConsensusHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages over the frames."""
        self._check_clip(clip, minimum=self.min_clip)
        return self.run_frames(self.stem(to_frames(clip)), tap)

    def run_frames(self, x: Tensor, tap: Tap, *, first: int = 1) -> Tensor:
        """Applies the stages, and `behind_stage` after each, from frames to the features as maps.

        Args:
            x: The frames that stage `first` sees.
            tap: As in `encode`.
            first: Number of the first stage that is applied.
        """
        for number in range(first, 5):
            x = self.behind_stage(number, self.run_stage(number, x, tap_frames(tap)))
        return x.transpose(1, 2)

    def behind_stage(self, number: int, x: Tensor) -> Tensor:
        """Applies what stands behind stage 1, 2, 3 or 4: a pool in time, if there is one."""
        key = str(number)
        return self.time_pools[key](x) if key in self.time_pools else x

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns mmaction2's keys, and those of torchvision's ResNets as the authors use them, into our keys."""
        if is_mmaction(state):
            return "mmaction2", rename_keys(from_mmaction(state), MMACTION_RULES)
        if "base_model.conv1.weight" in state:
            return self.published_as, rename_keys(state, (*AUTHORS_RULES, *RESNET_RULES))
        if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
            return "torchvision ResNet", rename_keys(state, RESNET_RULES)
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show of the trunk: channels, depth, kind of block."""
        _, own = self.convert_checkpoint(state)
        return read_options(read_trunk, own, self.state_dict(), needed=("stem.0.weight", "layer1.0.conv1.0.weight"))


# --- published keys ---------------------------------------------------------------------------------------------------

RESNET_RULES = (
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^(layer\d\.\d+)\.conv(\d)\.(weight|bias)$", r"\1.conv\2.0.\3"),
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1."),
    (r"^fc\.", "head.fc."),
)
AUTHORS_RULES = (
    (r"^base_model\.", ""),
    (r"\.net\.", "."),
    (r"^new_fc\.", "fc."),
)
MMACTION_RULES = (
    (r"\.net\.", "."),
    (r"^conv1\.conv\.", "stem.0."),
    (r"^conv1\.bn\.", "stem.1."),
    (r"\.(conv\d|downsample)\.conv\.", r".\1.0."),
    (r"\.(conv\d|downsample)\.bn\.", r".\1.1."),
)


def read_trunk(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads the arguments of a trunk off a state in our keys."""
    bottleneck = "layer1.0.conv3.0.weight" in own
    stem_dim, in_chans = own["stem.0.weight"].shape[:2]
    return {
        "in_chans": in_chans,
        "depth": tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5)),
        "embed_dim": stem_dim * 4 if bottleneck else stem_dim,
        "bottleneck": bottleneck,
    }
