"""TDN: a 2D ResNet that sees differences, of the frames around each segment's own, and between segments.

Wang et al., "TDN: Temporal Difference Networks for Efficient Action Recognition", CVPR 2021, arXiv:2012.10071; official
code: MCG-NJU/TDN, ops/tdn_net.py and base_module.py.

Shapes, for a clip (B, 3, T, H, W) of T/5 segments with 5 frames each: stem and max pool divide space by 4, stages 2 to
4 by 2 each. Stage i holds (B, 256 * 2^i, T/5, H/2^(i+2), W/2^(i+2)).

Within a segment, the middle frame goes through the network, and the four differences of neighbouring frames, at half
the size, through a stem and a first stage of their own. What these give is added behind the stem and behind the first
stage, with fixed weights (`difference_weight`): both count the same in networks of 8 segments; in others the
differences count a third as much.

Between segments, blocks of stages 2 to 4 gate their channels by differences, at two scales and in both directions
(`DifferenceGate`), and move them by a learned shift. All convolutions of the ResNet have biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.blocks import Tap, init_conv_weights, rename_keys, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.segments import (
    RESNET_RULES,
    BlockParts,
    BlockPlace,
    Bottleneck,
    ChannelTimeConv,
    PerFrame,
    SegmentResNet,
    tap_frames,
    to_frames,
)
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["TDN", "DifferenceGate"]

FRAMES = 5  # of a segment


class DifferenceGate(nn.Module):
    """Gates channels by how a segment differs from the next one and from the one before.

    Both segments are reduced to fewer channels, one of them through a 3x3 convolution of every channel by itself. Their
    difference is taken as it is, through a 3x3 convolution, and through one at half the size; the mean of the three
    makes the gate. The same layers serve both directions.

    Args:
        dim: Channels.
        reduction: Channels over those of the differences.
    """

    norm_neighbours = (("reduce", "reduce_norm"), ("fine", "fine_norm"), ("coarse", "coarse_norm"), ("expand", "norm"))

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, dim // reduction)
        self.reduce = nn.Conv2d(dim, inner, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(inner)
        self.blur = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.fine = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.fine_norm = nn.BatchNorm2d(inner)
        self.coarse = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.coarse_norm = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def gate(self, difference: Tensor) -> Tensor:
        """Maps differences (B * T, inner, H, W) to gates around zero, (B * T, dim, H, W)."""
        fine = self.fine_norm(self.fine(difference))
        window = (min(2, difference.shape[2]), min(2, difference.shape[3]))
        coarse = self.coarse_norm(self.coarse(F.avg_pool2d(difference, window)))
        coarse = F.interpolate(coarse, difference.shape[2:], mode="nearest")
        return self.norm(self.expand((difference + coarse + fine) / 3)).sigmoid() - 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to the same shape."""
        folded = self.reduce_norm(self.reduce(x.flatten(0, 1)))
        blurred = self.blur(folded).unflatten(0, x.shape[:2])
        reduced = folded.unflatten(0, x.shape[:2])
        none = torch.zeros_like(reduced[:, :1])
        forward = torch.cat((blurred[:, 1:] - reduced[:, :-1], none), dim=1)
        backward = torch.cat((none, blurred[:, :-1] - reduced[:, 1:]), dim=1)
        gate = 0.5 * self.gate(forward.flatten(0, 1)) + 0.5 * self.gate(backward.flatten(0, 1))
        return x + x * gate.unflatten(0, x.shape[:2])


class DifferenceStem(nn.Module):
    """The stem of the differences within segments: at half the size, through a convolution of its own and a pool."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.layers = PerFrame(
            nn.AvgPool2d(2),
            nn.Conv2d((FRAMES - 1) * in_chans, dim, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )

    def forward(self, segments: Tensor) -> Tensor:
        """Maps segments (B, T/5, 5, in_chans, H, W) to frames (B, T/5, dim, H/8, W/8)."""
        return self.layers((segments[:, :, 1:] - segments[:, :, :-1]).flatten(2, 3))


class TDN(SegmentResNet):
    """Temporal difference network on a ResNet.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, 5 for each segment: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        difference_weight: Share of the differences in the sums behind the stem and behind stage 1; None takes 0.5 for 8
            segments, and 0.25 for any other number, as the authors do.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T/5, ceil(H/32), ceil(W/32)). A clip has a multiple of 5 frames, and at least 32
    pixels in height and width; below 33 the last stage has a single place, which half the size leaves as it is.

    Attributes:
        conv1_temp: A second stem in the authors' files, which nothing uses and which is not trained.
    """

    published_as = "MCG-NJU/TDN"
    min_clip = (FRAMES, 32, 32)

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 40,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        difference_weight: float | None = None,
        drop_rate: float = 0.5,
    ) -> None:
        if num_frames < FRAMES or num_frames % FRAMES:
            raise ValueError(f"num_frames {num_frames}: TDN takes a multiple of {FRAMES} frames, {FRAMES} a segment")

        def make_parts(place: BlockPlace) -> BlockParts:
            if not place.stage:
                return BlockParts()
            return BlockParts(inside=nn.Sequential(DifferenceGate(place.inner), ChannelTimeConv(place.inner)))

        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=True,
            make_parts=make_parts,
            drop_rate=drop_rate,
            bias=True,
        )
        default = 0.5 if num_frames == 8 * FRAMES else 0.25
        self.difference_weight = default if difference_weight is None else difference_weight
        stem_dim = embed_dim // 4
        self.conv1_temp = nn.Conv2d(in_chans, stem_dim, 7).requires_grad_(False)
        self.difference_stem = DifferenceStem(in_chans, stem_dim)
        self.difference_layer1 = nn.Sequential(
            *(
                Bottleneck(
                    BlockPlace(0, block, embed_dim if block else stem_dim, embed_dim, stem_dim, 1),
                    BlockParts(),
                    bias=True,
                )
                for block in range(depth[0])
            )
        )
        for part in (self.difference_stem, self.difference_layer1):
            part.apply(init_conv_weights)
        for module in self.modules():
            if isinstance(module, ChannelTimeConv):
                module.start_as_shift(module.conv.out_channels // 8)
        self.describe_stages(embed_dim, [(FRAMES, step, step) for step in (4, 8, 16, 32)])

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the middle frames and the differences through the first stage, then their sum through the others."""
        self._check_clip(clip, minimum=self.min_clip)
        if clip.shape[2] % FRAMES:
            raise ValueError(f"TDN takes a multiple of {FRAMES} frames, {FRAMES} a segment, not {clip.shape[2]}")
        segments = to_frames(clip).unflatten(1, (-1, FRAMES))
        differences = self.difference_stem(segments)
        x = self._add(self.stem(segments[:, :, FRAMES // 2]), differences)
        x = self.run_stage(1, x, tap_frames(tap))
        differences = run_blocks(self.difference_layer1, differences, recompute=self.grad_checkpointing)
        return self.run_frames(self._add(x, differences), tap, first=2)

    def _add(self, x: Tensor, differences: Tensor) -> Tensor:
        """Adds differences to frames whose maps are larger."""
        differences = F.interpolate(differences.flatten(0, 1), x.shape[3:], mode="nearest").unflatten(0, x.shape[:2])
        return (1 - self.difference_weight) * x + self.difference_weight * differences

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: both stems, then every block in order, those of the differences with stage 1."""
        blocks = [(r"^layer(\d)\.(\d+)", None), (r"^difference_layer(1)\.(\d+)", None)]
        return {"stem": r"^(?:stem|difference_stem|conv1_temp)\.", "blocks": blocks}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys, and the names of ResNets of images."""
        if "base_model.layer1_bak.0.conv1.weight" not in state:
            return super().convert_checkpoint(state)
        own = rename_keys(state, (*TDN_RULES, *RESNET_RULES))
        return self.published_as, {
            key: value.unsqueeze(3) if key.endswith(".inside.1.conv.weight") else value for key, value in own.items()
        }


# --- published keys ---------------------------------------------------------------------------------------------------

TDN_RULES = (
    (r"^base_model\.", ""),
    (r"^new_fc\.", "fc."),
    (r"^layer(\d)_bak\.", r"layer\1."),
    (r"^resnext_layer1\.(\d+)\.conv(\d)\.", r"difference_layer1.\1.conv\2.0."),
    (r"^resnext_layer1\.(\d+)\.bn(\d)\.", r"difference_layer1.\1.conv\2.1."),
    (r"^resnext_layer1\.", "difference_layer1."),
    (r"^conv1_5\.0\.", "difference_stem.layers.1."),
    (r"^conv1_5\.1\.", "difference_stem.layers.2."),
    (r"\.mse\.conv1\.", ".inside.0.reduce."),
    (r"\.mse\.bn1\.", ".inside.0.reduce_norm."),
    (r"\.mse\.conv2\.", ".inside.0.blur."),
    (r"\.mse\.conv3_smallscale4\.", ".inside.0.fine."),
    (r"\.mse\.bn3_smallscale4\.", ".inside.0.fine_norm."),
    (r"\.mse\.conv3_smallscale2\.", ".inside.0.coarse."),
    (r"\.mse\.bn3_smallscale2\.", ".inside.0.coarse_norm."),
    (r"\.mse\.conv3\.", ".inside.0.expand."),
    (r"\.mse\.bn3\.", ".inside.0.norm."),
    (r"\.shift\.conv\.", ".inside.1.conv."),
)

# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: README and test_models_three_crops.py for Kinetics: 8 segments, 10 clips of three 256-pixel crops, with
# segments that begin at random there; ops/models.py (`input_mean`, `input_std`).
_K400 = Protocol(
    frames=40,
    frames_per_segment=5,
    sampling="segment",
    short_side=256,
    crop=256,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    views="10x3",
)

FAMILY = Family(
    model="TDN",
    paper="Wang et al. 2021, arXiv:2012.10071",
    small_clip=(15, 64, 64),
    min_clip=(5, 32, 32),
    formats=("MCG-NJU/TDN",),
    tiny={"depth": (1, 2, 1, 1), "embed_dim": 64},
    slow_goldens=("tdn_r50_16f__16x64_174cls",),
    golden_options={
        "tdn_r50_8f__8x64": {"name": "tdn_r50", "img_size": 64},
        "tdn_r50_16f__16x64_174cls": {"name": "tdn_r50", "img_size": 64},
    },
    variants=(
        Variant("tdn_r50", "TDN on a ResNet of 50 layers.", _K400),
        Variant("tdn_r101", "TDN on a ResNet of 101 layers.", _K400, {"depth": (3, 4, 23, 3)}, same_as="tdn_r50"),
    ),
)
