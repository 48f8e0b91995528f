"""TEA: a Res2Net whose blocks excite motion, and aggregate over time in a cascade of groups of channels.

Li et al., "TEA: Temporal Excitation and Aggregation for Action Recognition", CVPR 2020, arXiv:2004.01398; official
code: Phoenix1327/tea-action-recognition, ops/models.py, tea50_8f.py and tea50_16f.py. The 2D network is that of
Gao et al., "Res2Net: A New Multi-scale Backbone Architecture", TPAMI 2021, arXiv:1904.01169, of 4 groups.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each; time stays. Stage i
holds (B, 256 * 2^i, T, H/2^(i+2), W/2^(i+2)).

Behind the first convolution of a block, motion excitation gates channels by how the next frame differs. Then, in place
of the 3x3 convolution, each of four groups of channels goes through a learned shift, and all but the last through a 3x3
convolution, whose input has the output of the group before added to it; in the first block of a stage nothing is added,
and the last group is pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.blocks import rename_keys
from stvid.models.family import Family, Variant
from stvid.models.published_names import read_options
from stvid.models.segments import (
    RESNET_RULES,
    BlockParts,
    BlockPlace,
    ChannelTimeConv,
    SegmentResNet,
    conv_norm,
    read_trunk,
)
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["TEA", "MotionExcitation", "TemporalCascade"]

GROUPS = 4


class MotionExcitation(nn.Module):
    """Gates channels by how the next frame differs, averaged over space (section 3.1).

    Args:
        dim: Channels.
        reduction: Channels over those of the differences.
    """

    norm_neighbours = (("reduce", "reduce_norm"), ("expand", "norm"))

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, dim // reduction)
        self.reduce = nn.Conv2d(dim, inner, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(inner)
        self.blur = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.expand = nn.Conv2d(inner, dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to the same shape; the last frame has no next one, and no difference."""
        folded = self.reduce_norm(self.reduce(x.flatten(0, 1)))
        blurred, reduced = self.blur(folded).unflatten(0, x.shape[:2]), folded.unflatten(0, x.shape[:2])
        difference = (blurred[:, 1:] - reduced[:, :-1]).mean((3, 4), keepdim=True)
        difference = F.pad(difference, (0, 0, 0, 0, 0, 0, 0, 1))
        gate = self.norm(self.expand(difference.flatten(0, 1))).sigmoid() - 0.5
        return x + x * gate.unflatten(0, x.shape[:2])


class TemporalCascade(nn.Module):
    """Multiple temporal aggregation: a learned shift and a 3x3 convolution for each group, in a cascade (section 3.2).

    Args:
        dim: Channels, a multiple of 4.
        stride: Stride in space.
        first: Whether it is in the first block of a stage.
    """

    def __init__(self, dim: int, *, stride: int, first: bool) -> None:
        super().__init__()
        width = dim // GROUPS
        self.first = first
        self.shifts = nn.ModuleList(ChannelTimeConv(width) for _ in range(GROUPS))
        self.width = width
        self.convs = nn.ModuleList(conv_norm(width, width, 3, stride=stride) for _ in range(GROUPS - 1))
        self.pool = nn.AvgPool2d(3, stride=stride, padding=1) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to (B, T, dim, H', W')."""
        *groups, last = x.chunk(GROUPS, dim=2)
        made: list[Tensor] = []
        for group, shift, conv in zip(groups, self.shifts, self.convs, strict=False):
            made.append(conv(shift(group if self.first or not made else group + made[-1])))
        kept = self.shifts[-1](last)
        made.append(self.pool(kept.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return torch.cat(made, dim=2)

    def start(self) -> None:
        """Starts as the official code does: the last group is shifted, half of it each way, and the others stay."""
        for number, shift in enumerate(self.shifts):
            if isinstance(shift, ChannelTimeConv):
                shift.start_as_shift(self.width // 2 if number == GROUPS - 1 else 0)


class TEA(SegmentResNet):
    """Temporal excitation and aggregation on a Res2Net.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        width: Channels of a group in a stage of 256 channels; in others in proportion, rounded down.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)). A clip has at least 2 frames, and 32 pixels in
    height and width.
    """

    published_as = "Phoenix1327/tea-action-recognition"
    min_clip = (2, 32, 32)  # with a single frame there is no difference

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        width: int = 26,
        drop_rate: float = 0.5,
    ) -> None:
        def make_parts(place: BlockPlace) -> BlockParts:
            return BlockParts(
                inside=MotionExcitation(place.inner),
                spatial=TemporalCascade(place.inner, stride=place.stride, first=not place.block),
            )

        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=True,
            make_parts=make_parts,
            drop_rate=drop_rate,
            inner_dim=lambda quarter: GROUPS * (quarter * width // 64),
        )
        for module in self.modules():
            if isinstance(module, TemporalCascade):
                module.start()

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys."""
        if "base_model.layer1.0.me.conv1.weight" not in state:
            return super().convert_checkpoint(state)
        own = rename_keys(state, (*TEA_RULES, *RESNET_RULES))
        return self.published_as, {
            key: value.unsqueeze(3) if ".shifts." in key else value for key, value in own.items()
        }

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: the trunk, and the width of the groups."""
        _, own = self.convert_checkpoint(state)
        needed = ("stem.0.weight", "layer4.0.conv2.convs.0.0.weight")
        return read_options(_read, own, self.state_dict(), needed=needed)


# --- published keys ---------------------------------------------------------------------------------------------------

TEA_RULES = (
    (r"^base_model\.", ""),
    (r"^new_fc\.", "fc."),
    (r"\.me\.conv1\.", ".inside.reduce."),
    (r"\.me\.bn1\.", ".inside.reduce_norm."),
    (r"\.me\.conv2\.", ".inside.blur."),
    (r"\.me\.conv3\.", ".inside.expand."),
    (r"\.me\.bn3\.", ".inside.norm."),
    (r"\.convs\.(\d)\.", r".conv2.convs.\1.0."),
    (r"\.bns\.(\d)\.", r".conv2.convs.\1.1."),
    (r"\.shifts\.", ".conv2.shifts."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys; the last stage shows the width most exactly."""
    options = read_trunk(own)
    width = own["layer4.0.conv2.convs.0.0.weight"].shape[0]
    del options["bottleneck"]
    return {**options, "width": -(-width * 64 // (2 * options["embed_dim"]))}


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: README and scripts; ops/models.py (`input_mean`, `input_std`). The paper's main protocol (section 4.2):
# one of each of 8 parts of the video, 10 clips of three 256-pixel crops.
_K400 = Protocol(
    frames=8, sampling="segment", short_side=256, crop=256, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="10x3"
)

FAMILY = Family(
    model="TEA",
    paper="Li et al. 2020, arXiv:2004.01398",
    small_clip=(4, 32, 32),
    min_clip=(2, 32, 32),
    formats=("Phoenix1327/tea-action-recognition",),
    tiny={"depth": (1, 2, 1, 1), "embed_dim": 64},
    slow_goldens=("tea_r50_16f__16x64_174cls",),
    golden_options={
        "tea_r50_8f__8x64": {"name": "tea_r50", "img_size": 64},
        "tea_r50_16f__16x64_174cls": {"name": "tea_r50", "img_size": 64},
    },
    variants=(Variant("tea_r50", "TEA on a Res2Net of 50 layers.", _K400),),
)
