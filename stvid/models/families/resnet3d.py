"""3D ResNet and 3D ResNeXt: every 3x3 convolution of the 2D network made 3x3x3.

Hara et al., "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?", CVPR 2018, arXiv:1711.09577;
official code: kenshohara/3D-ResNets-PyTorch, models/resnet.py (master) and models/resnext.py (branch CVPR2018, which
the published ResNeXt weights come from; the one of master cannot be built).

Shapes, for a clip (B, 3, T, H, W): the stem has 7x7x7 kernels and halves space, the max pool halves time and space, and
so do stages 2 to 4: stage i holds (B, C_i, T/2^(i+1), H/2^(i+2), W/2^(i+2)), rounded up. The head takes the plain mean,
which is what the fixed windows of the 2018 code are at the size they are built for.

What differs: basic blocks (18 and 34 layers), bottlenecks with four times the channels (50, 101), and ResNeXt's with
twice the channels and 32 groups in the middle. Shortcuts that change the shape are a 1x1x1 convolution and a norm (type
B), or take every second position and add channels of zeros (type A: the 18 and 34 layers published in 2018). The
official code cuts the gradient through shortcuts of type A; here it flows, as in the ResNet paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.errors import CheckpointError
from stvid.models.base import StagedModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, shortcut
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import count_blocks, read_options
from stvid.protocol import Protocol

__all__ = ["ResNet3d"]


class ZeroShortcut(nn.Module):
    """Shortcut of type A: every `stride`-th position, with channels of zeros at the end."""

    def __init__(self, in_dim: int, dim: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = dim - in_dim, stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T', H', W')."""
        step = self.stride
        return F.pad(x[:, :, ::step, ::step, ::step], (0, 0, 0, 0, 0, 0, 0, self.added))


class Block(nn.Module):
    """A residual block.

    Args:
        in_dim: Channels of the input.
        middle: Channels inside.
        dim: Channels of the output.
        stride: Stride of the 3x3x3 convolution, the first of two in a basic block.
        bottleneck: Convolutions of 1x1x1, 3x3x3 and 1x1x1 instead of two of 3x3x3.
        groups: Groups of the 3x3x3 convolution of a bottleneck.
        shortcut_type: ``A`` or ``B``; see the head of this file.

    Attributes:
        gate: What the output of the branch goes through in front of the sum; nothing here, but STCNet sets it.
    """

    norm_neighbours = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        in_dim: int,
        middle: int,
        dim: int,
        *,
        stride: int,
        bottleneck: bool,
        groups: int,
        shortcut_type: Literal["A", "B"],
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv1 = nn.Conv3d(in_dim, middle, 1, bias=False)
            self.conv2 = nn.Conv3d(middle, middle, 3, stride=stride, padding=1, groups=groups, bias=False)
            self.conv3 = nn.Conv3d(middle, dim, 1, bias=False)
            self.bn3 = nn.BatchNorm3d(dim)
        else:
            self.conv1 = nn.Conv3d(in_dim, middle, 3, stride=stride, padding=1, bias=False)
            self.conv2 = nn.Conv3d(middle, dim, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(middle)
        self.bn2 = nn.BatchNorm3d(middle)
        if shortcut_type == "A" and (stride != 1 or in_dim != dim):
            self.downsample: nn.Module = ZeroShortcut(in_dim, dim, stride)
        else:
            self.downsample = shortcut(in_dim, dim, (stride, stride, stride))
        self.gate: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T', H', W')."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.bottleneck:
            out = self.bn3(self.conv3(F.relu(out, inplace=True)))
        out = self.gate(out)
        out += self.downsample(x)
        return F.relu(out, inplace=True)


class ResNet3d(StagedModel):
    """3D ResNet or 3D ResNeXt.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        bottleneck: Whether the blocks are bottlenecks.
        cardinality: Groups of the 3x3x3 convolutions; more than 1 makes a ResNeXt, twice as wide inside its blocks.
        shortcut_type: ``A`` or ``B``; see the head of this file.
        conv1_t_size: Frames that the stem sees.
        conv1_t_stride: Stride of the stem in time.
        no_max_pool: Leaves out the pool after the stem.
        drop_rate: Dropout before the classifier.

    The features are (B, num_features, T/16, H/32, W/32), rounded up; without the pool T/8, H/16, W/16. A clip has at
    least as many pixels as the stride in space.
    """

    norm_neighbours = (("conv1", "bn1"),)

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (112, 112),
        in_chans: int = 3,
        depth: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        cardinality: int = 1,
        shortcut_type: Literal["A", "B"] = "B",
        conv1_t_size: int = 7,
        conv1_t_stride: int = 1,
        no_max_pool: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if shortcut_type not in ("A", "B"):
            raise ValueError(f"shortcut_type {shortcut_type!r}: must be A or B")
        if cardinality > 1 and not bottleneck:
            raise ValueError(f"cardinality {cardinality}: only bottlenecks have groups")
        self.num_classes = num_classes
        self.num_features = 2048 if bottleneck else 512
        self.in_chans = in_chans
        self.shortcut_type = shortcut_type
        self.conv1 = nn.Conv3d(
            in_chans,
            64,
            (conv1_t_size, 7, 7),
            stride=(conv1_t_stride, 2, 2),
            padding=(conv1_t_size // 2, 3, 3),
            bias=False,
        )
        self.bn1 = nn.BatchNorm3d(64)
        self.pool: nn.Module = nn.Identity() if no_max_pool else nn.MaxPool3d(3, stride=2, padding=1)
        self.min_size = 16 if no_max_pool else 32
        width = 256 if bottleneck else 64

        def make_block(stage: int, block: int) -> Block:
            dim = width * 2**stage
            if block:
                in_dim = dim
            else:
                in_dim = dim // 2 if stage else 64
            return Block(
                in_dim,
                cardinality * (4 * 2**stage) if cardinality > 1 else 64 * 2**stage,
                dim,
                stride=2 if stage and not block else 1,
                bottleneck=bottleneck,
                groups=cardinality,
                shortcut_type=shortcut_type,
            )

        self.build_stages(depth, make_block)
        pooled = 1 if no_max_pool else 2
        time, space = conv1_t_stride * pooled, 2 * pooled
        self.describe_stages(width, [(time * 2**stage, space * 2**stage, space * 2**stage) for stage in range(4)])
        self.head = LinearHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages."""
        self._check_clip(clip, minimum=(1, self.min_size, self.min_size))
        return self.run_stages(self.pool(F.relu(self.bn1(self.conv1(clip_layout(clip))), inplace=True)), tap)

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Renames the classifier of kenshohara/3D-ResNets-PyTorch.

        Raises:
            CheckpointError: If the weights have shortcuts of the other type.
        """
        if "fc.weight" not in state or "layer1.0.bn1.weight" not in state:
            return "stvid", dict(state)
        found = _shortcut_type(state)
        if found != self.shortcut_type:
            raise CheckpointError(
                f"the checkpoint has shortcuts of type {found}, the model of type {self.shortcut_type}: build the "
                f"model with shortcut_type={found!r}"
            )
        return "kenshohara/3D-ResNets-PyTorch", rename_keys(state, [(r"^fc\.", "head.fc.")])

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, channels, frames of the stem, and the shortcuts' type.

        Type A are the 18 and 34 layers of 2018.
        """
        return read_options(_read, state, self.state_dict(), needed=("conv1.weight", "layer1.0.bn1.weight"))


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state, whose keys but the classifier's are ours."""
    stem = own["conv1.weight"]
    return {
        "depth": tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5)),
        "in_chans": stem.shape[1],
        "conv1_t_size": stem.shape[2],
        "shortcut_type": _shortcut_type(own),
    }


def _shortcut_type(state: Mapping[str, Tensor]) -> Literal["A", "B"]:
    return "B" if any(".downsample." in key for key in state) else "A"


# --- variants ---------------------------------------------------------------------------------------------------------

_D34 = (3, 4, 6, 3)
_D101 = (3, 4, 23, 3)
# opts.py, mean.py and main.py of master: the centre crop of all clips of 16 frames in a row, here 10 of them. The paper
# prints neither parameters nor operations.
_K400 = Protocol(
    frames=16,
    stride=1,
    short_side=112,
    crop=112,
    mean=(0.4345, 0.4051, 0.3775),
    std=(0.2768, 0.2713, 0.2737),
    views="10x1",
)
# The branch CVPR2018 subtracts the mean of ActivityNet from values in 0..255 and does not divide.
_CVPR2018 = _K400.replace(mean=(114.7748 / 255, 107.7354 / 255, 99.4750 / 255), std=(1 / 255, 1 / 255, 1 / 255))

FAMILY = Family(
    model="ResNet3d",
    paper="Hara et al. 2018, arXiv:1711.09577",
    small_clip=(4, 32, 32),
    min_clip=(1, 32, 32),
    formats=("kenshohara/3D-ResNets-PyTorch",),
    parent="resnet",
    tiny={"depth": (1, 2, 1, 1)},
    slow_goldens=(
        "kh_resnet3d_18__16x112",
        "kh_resnet3d_34__16x112",
        "kh_resnet3d_50__16x112",
    ),
    variants=(
        Variant("resnet3d_18", "3D ResNet of 18 layers.", _K400),
        Variant("resnet3d_34", "3D ResNet of 34 layers.", _K400, {"depth": _D34}, same_as="resnet3d_18"),
        Variant("resnet3d_50", "3D ResNet of 50 layers.", _K400, {"depth": _D34, "bottleneck": True}),
        Variant(
            "resnet3d_101",
            "3D ResNet of 101 layers.",
            _K400,
            {"depth": _D101, "bottleneck": True},
            same_as="resnet3d_50",
        ),
        Variant(
            "resnext3d_50",
            "3D ResNeXt of 50 layers.",
            _CVPR2018,
            {"depth": _D34, "bottleneck": True, "cardinality": 32},
        ),
        Variant(
            "resnext3d_101",
            "3D ResNeXt of 101 layers.",
            _CVPR2018,
            {"depth": _D101, "bottleneck": True, "cardinality": 32},
            same_as="resnext3d_50",
        ),
    ),
)
