"""Pseudo-3D ResNet: bottlenecks whose 3x3 convolution is 1x3x3 and 3x1x1, joined in three ways by turns.

Qiu et al., "Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks", ICCV 2017, arXiv:1711.10305;
checked against qijiezhao/pseudo-3d-pytorch, p3d_model.py (the authors' Kinetics weights).

Shapes, for a clip (B, 3, T, H, W): stem and pool divide space by 4 and time by 2, stages 2 to 4 halve space, and a
pool after each of stages 1 to 3 halves time: 16 frames are one when they reach stage 4, which has kernels in space
alone. The published code folds time into the batch there and takes 16 frames only; here longer clips keep their T/16
positions, and the head averages over all.

With S the convolution in space and T that in time, each followed by norm and ReLU, block i computes by i modulo 3:
A ``T(S(x))``, B ``S(x) + T(x)``, C ``S(x) + T(S(x))`` (figure 3), between the 1x1x1 convolutions of the bottleneck.
There is no ReLU on the sums, and the stride is at the first 1x1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import StagedModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, shortcut
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import count_blocks, read_options
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["P3D"]


class Block(nn.Module):
    """A pseudo-3D bottleneck.

    Args:
        in_dim: Channels of the input.
        middle: Channels inside; the output has four times as many.
        kind: ``A``, ``B`` or ``C``, or ``2D`` for 1x3x3 alone.
        stride: Stride in space.
    """

    norm_neighbours = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("conv4", "bn4"))

    def __init__(self, in_dim: int, middle: int, *, kind: str, stride: int) -> None:
        super().__init__()
        if kind not in ("A", "B", "C", "2D"):
            raise ValueError(f"block kind {kind!r}: must be A, B, C or 2D")
        self.kind = kind
        dim = 4 * middle
        self.conv1 = nn.Conv3d(in_dim, middle, 1, stride=(1, stride, stride), bias=False)
        self.bn1 = nn.BatchNorm3d(middle)
        self.conv2 = nn.Conv3d(middle, middle, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(middle)
        if kind != "2D":
            self.conv3 = nn.Conv3d(middle, middle, (3, 1, 1), padding=(1, 0, 0), bias=False)
            self.bn3 = nn.BatchNorm3d(middle)
        self.conv4 = nn.Conv3d(middle, dim, 1, bias=False)
        self.bn4 = nn.BatchNorm3d(dim)
        self.downsample = shortcut(in_dim, dim, (1, stride, stride))

    def _space(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)), inplace=True)

    def _time(self, x: Tensor) -> Tensor:
        return F.relu(self.bn3(self.conv3(x)), inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, 4 * middle, T, H', W')."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        space = self._space(out)
        if self.kind == "A":
            out = self._time(space)
        elif self.kind == "B":
            out = space + self._time(out)
        elif self.kind == "C":
            out = space + self._time(space)
        else:
            out = space
        out = self.bn4(self.conv4(out))
        out += self.downsample(x)
        return F.relu(out, inplace=True)


class P3D(StagedModel):
    """Pseudo-3D ResNet.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip; the published flow model has 2.
        depth: Blocks of the four stages.
        block_kinds: The kinds that the blocks of stages 1 to 3 have by turns.
        drop_rate: Dropout before the classifier.

    The features are (B, 2048, floor(T/16), ceil(H/32), ceil(W/32)). A clip has at least 16 frames of 32x32 pixels.
    """

    norm_neighbours = (("conv1", "bn1"),)

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (160, 160),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        block_kinds: Sequence[str] = ("A", "B", "C"),
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 2048
        self.in_chans = in_chans
        self.conv1 = nn.Conv3d(in_chans, 64, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)

        def make_block(stage: int, block: int) -> Block:
            middle = 64 * 2**stage
            number = sum(depth[:stage]) + block
            return Block(
                4 * middle if block else (2 * middle if stage else 64),
                middle,
                kind="2D" if stage == 3 else block_kinds[number % len(block_kinds)],
                stride=2 if stage and not block else 1,
            )

        self.build_stages(depth, make_block)
        self.describe_stages(256, [(2 * 2**stage, 4 * 2**stage, 4 * 2**stage) for stage in range(4)])
        self.head = LinearHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages; a pool in time follows each of the first three."""
        self._check_clip(clip, minimum=(16, 32, 32))
        x = F.relu(self.bn1(self.conv1(clip_layout(clip))), inplace=True)
        x = F.max_pool3d(x, (2, 3, 3), stride=2, padding=(0, 1, 1))
        for number in (1, 2, 3):
            x = F.max_pool3d(self.run_stage(number, x, tap), (2, 1, 1))
        return self.run_stage(4, x, tap)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features; the pools drop frames at the end."""
        _, height, width = super().token_grid(clip_shape)
        return clip_shape[-3] // 16, height, width

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Renames the keys of qijiezhao/pseudo-3d-pytorch, whose last stage has 2D kernels."""
        if "conv1_custom.weight" not in state:
            return "stvid", dict(state)
        own = rename_keys(state, PUBLISHED_RULES)
        kernels = {key: value.unsqueeze(2) for key, value in own.items() if value.ndim == 4}
        return "qijiezhao/pseudo-3d-pytorch", {**own, **kernels}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth and channels, 3 or 2 (those of optical flow)."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("conv1.weight",))


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    depth = tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5))
    return {"in_chans": own["conv1.weight"].shape[1], **({"depth": depth} if all(depth) else {})}


# --- published keys ---------------------------------------------------------------------------------------------------

PUBLISHED_RULES = (
    (r"^conv1_custom\.", "conv1."),
    (r"\.conv_normal\.", ".conv2."),
    (r"\.bn_normal\.", ".bn2."),
    (r"^fc\.", "head.fc."),
)


# --- variants ---------------------------------------------------------------------------------------------------------

# The paper: 16 frames in a row, scaled to 182x242, crop 160; 20 clips of the centre crop. Mean and std of
# qijiezhao/pseudo-3d-pytorch. The paper prints neither parameters nor operations.
_KINETICS = Protocol(frames=16, stride=1, short_side=182, crop=160, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="20x1")


FAMILY = Family(
    model="P3D",
    paper="Qiu et al. 2017, arXiv:1711.10305",
    small_clip=(16, 32, 32),
    min_clip=(16, 32, 32),
    formats=("qijiezhao/pseudo-3d-pytorch",),
    tiny={"depth": (1, 2, 1, 1)},
    slow_goldens=("p3d_199__16x160",),
    variants=(
        Variant("p3d_63", "P3D of 63 layers, from a ResNet-50.", _KINETICS),
        Variant(
            "p3d_199", "P3D of 199 layers, from a ResNet-152.", _KINETICS, {"depth": (3, 8, 36, 3)}, same_as="p3d_63"
        ),
    ),
)
