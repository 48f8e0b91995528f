"""CorrNet: an R(2+1)D of bottlenecks, with blocks that match each frame with places around in the frame before.

Wang et al., "Video Modeling with Correlation Networks", CVPR 2020, arXiv:1906.03349.

Shapes, for a clip (B, 3, T, H, W): the stem, 1x7x7, halves space; every stage halves it once more, and stages 3 and 4
halve time. Stage i holds (B, 256 * 2^i, T_i, H/2^(i+2), W/2^(i+2)), rounded up, with T_i = T, T, T/2, T/4.

A correlation block stands behind stages 1, 2 and 3 (res2 to res4), and with 101 layers also in the middle of stage 3.
It reduces the channels to a quarter, compares every place with 7x7 places, two pixels apart, in the frame before, and
adds the result to its input (the paper's correlation-sum block). The products of a place with another are weighted by
learned filters, and averaged over each of 32 groups of channels. Each frame has filters of its own, so that a network
fits the number of frames that it is built for. The first frame is compared with itself.

The authors published no code, and no official output exists. The paper's text could not be opened whole; its facts are
from quotations (depths, places of the blocks, K, D, the formula) and a reimplementation in a public repository (groups,
quarter of the channels, norms, strides). What was checked instead: the operator against its formula, written as plain
loops, a gradient to every parameter, and learning: a narrow one names 90.8% of the 800 validation videos of the demo
set `motion` after 2 of 4 epochs from scratch, 10.0% where the frames are frozen; guessing names 12.5%. The command is
``stvid train --config tsm_r18_motion.yaml --model.name corrnet_r26 --model.hyperparameters '{embed_dim: 32, groups: 4,
depth: [1, 1, 1, 1]}' --optim.lr 4e-3 --trainer.max_epochs 4``. The one figure that could be found is not met: tables of
later papers quote 6.72e12 multiply-adds for 30 views of CorrNet-101, which is 224e9 a view. Counted are 253e9, and
1.1e9 in the operator, 13% more. Of what was left open the channels inside the split convolution weigh most: here they
are as many as outside; with those of R(2+1)D's formula it would be 375e9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import StagedModel
from stvid.models.blocks import Tap, init_conv_weights, shortcut
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import count_blocks, read_options
from stvid.protocol import Protocol

__all__ = ["CorrNet", "Correlation", "CorrelationBlock"]

Size3d = tuple[int, int, int]
PATCH, DILATION = 7, 2  # section 3.2: K and D


class Correlation(nn.Module):
    """Groupwise learnable correlation of each frame with the one before (section 3).

    Args:
        dim: Channels, a multiple of `groups`.
        frames: Frames of a clip, each of which has its filters.
        groups: Groups of channels, each of which has its own results.
        patch: Side of the square of places that are compared, an odd number.
        dilation: Pixels between these places.
    """

    def __init__(self, dim: int, *, frames: int, groups: int, patch: int = PATCH, dilation: int = DILATION) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"groups {groups}: must divide the {dim} channels that are compared")
        self.groups, self.patch, self.dilation = groups, patch, dilation
        self.weight = nn.Parameter(torch.ones(patch * patch, dim, frames))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, T, H, W) to (B, patch * patch * groups, T, H, W), the group fastest."""
        height, width = x.shape[3:]
        far = self.dilation * (self.patch // 2)
        before = F.pad(torch.cat((x[:, :, :1], x[:, :, :-1]), dim=2), (far, far, far, far))
        found = []
        for number, weight in enumerate(self.weight.to(x.dtype)):
            top, left = (self.dilation * step for step in divmod(number, self.patch))
            place = before[:, :, :, top : top + height, left : left + width]
            product = (x * weight.unsqueeze(2).unsqueeze(3)) * place
            found.append(product.unflatten(1, (self.groups, -1)).mean(2))
        return torch.cat(found, dim=1)


class CorrelationBlock(nn.Module):
    """Correlation of reduced channels, added to the input (section 4, correlation-sum).

    Args:
        dim: Channels.
        frames: Frames of a clip.
        groups: As in `Correlation`.
    """

    def __init__(self, dim: int, *, frames: int, groups: int) -> None:
        super().__init__()
        inner = dim // 4
        self.reduce = nn.Sequential(nn.Conv3d(dim, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU(inplace=True))
        self.correlation = Correlation(inner, frames=frames, groups=groups)
        self.expand = nn.Sequential(nn.Conv3d(PATCH * PATCH * groups, dim, 1, bias=False), nn.BatchNorm3d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, T, H, W) to the same shape."""
        return F.relu(x + self.expand(self.correlation(self.reduce(x))), inplace=True)


class Bottleneck(nn.Module):
    """A 1x1x1, a split 3x3x3 and a 1x1x1 convolution, and maybe a correlation block behind.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output, four times those inside.
        stride: Stride of the split convolution: in space of its 1x3x3, in time of its 3x1x1 half.
        correlation: What stands behind; None leaves it out.
    """

    def __init__(self, in_dim: int, dim: int, *, stride: Size3d, correlation: nn.Module | None) -> None:
        super().__init__()
        inner = dim // 4
        self.branch = nn.Sequential(
            nn.Conv3d(in_dim, inner, 1, bias=False),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
            nn.Conv3d(inner, inner, (1, 3, 3), stride=(1, *stride[1:]), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
            nn.Conv3d(inner, inner, (3, 1, 1), stride=(stride[0], 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
            nn.Conv3d(inner, dim, 1, bias=False),
            nn.BatchNorm3d(dim),
        )
        self.downsample = shortcut(in_dim, dim, stride)
        self.correlation = correlation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T', H', W')."""
        out = self.branch(x)
        out += self.downsample(x)
        return self.correlation(F.relu(out, inplace=True))


class CorrNet(StagedModel):
    """Correlation network.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip; each has filters of its own, so that only clips of so many frames are taken.
        img_size: (height, width) in pixels, for the protocol only: the weights do not depend on it.
        in_chans: Channels of the clip.
        depth: Bottlenecks of the four stages.
        embed_dim: Channels of the first stage.
        groups: Groups of channels that are compared by themselves.
        extra_correlation: Whether there is a correlation block in the middle of stage 3, too.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, ceil(T/4), ceil(H/32), ceil(W/32)). A clip has at least 32 pixels in height and
    width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 32,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        groups: int = 32,
        extra_correlation: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, embed_dim * 8
        self.num_frames = num_frames
        stem_dim = embed_dim // 4
        self.stem = nn.Sequential(
            nn.Conv3d(in_chans, stem_dim, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(stem_dim),
            nn.ReLU(inplace=True),
        )
        steps = (1, 1, 2, 4)  # frames of the clip for one of the stage

        def make_block(stage: int, block: int) -> Bottleneck:
            dim = embed_dim * 2**stage
            in_dim = dim if block else (dim // 2 if stage else stem_dim)
            stride = (1, 1, 1) if block else (2 if stage > 1 else 1, 2, 2)
            places = {depth[stage] - 1, *([depth[2] // 2] if extra_correlation and stage == 2 else [])}
            correlate = stage < 3 and block in places
            frames = -(-num_frames // steps[stage])
            correlation = CorrelationBlock(dim, frames=frames, groups=groups) if correlate else None
            return Bottleneck(in_dim, dim, stride=stride, correlation=correlation)

        self.build_stages(depth, make_block)
        self.describe_stages(embed_dim, [(step, 4 * 2**stage, 4 * 2**stage) for stage, step in enumerate(steps)])
        self.head = LinearHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages."""
        self._check_clip(clip, minimum=(self.num_frames, 32, 32))
        if clip.shape[2] != self.num_frames:
            raise ValueError(
                f"{type(self).__name__} has filters for each of {self.num_frames} frames, and the clip has "
                f"{clip.shape[2]}: build the model with num_frames={clip.shape[2]}"
            )
        return self.run_stages(self.stem(clip_layout(clip)), tap)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depth, frames, groups."""
        needed = ("stem.0.weight", "layer4.0.branch.0.weight")
        return read_options(_read, state, self.state_dict(), needed=needed)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    depth = tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5))
    correlations = sum(key.endswith(".correlation.correlation.weight") for key in own)
    options: dict[str, Any] = {
        "in_chans": own["stem.0.weight"].shape[1],
        "depth": depth,
        "embed_dim": own["stem.0.weight"].shape[0] * 4,
        "extra_correlation": correlations > 3,
    }
    last = f"layer1.{depth[0] - 1}.correlation"
    if f"{last}.expand.0.weight" in own:
        options["groups"] = own[f"{last}.expand.0.weight"].shape[1] // PATCH**2
        options["num_frames"] = own[f"{last}.correlation.weight"].shape[2]
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

_K400 = Protocol(frames=32, stride=2, short_side=256, crop=224, views="10x3")

FAMILY = Family(
    model="CorrNet",
    paper="Wang et al. 2020, arXiv:1906.03349",
    small_clip=(4, 32, 32),
    min_clip=(4, 32, 32),
    tiny={"depth": (1, 2, 2, 1), "embed_dim": 32, "groups": 4},
    variants=(
        Variant("corrnet_r50", "Correlation network of 50 layers.", _K400),
        Variant(
            "corrnet_r101",
            "Correlation network of 101 layers.",
            _K400,
            {"depth": (3, 4, 23, 3), "extra_correlation": True},
        ),
        Variant("corrnet_r26", "Correlation network of 26 layers.", _K400, {"depth": (2, 2, 2, 2)}),
    ),
)
