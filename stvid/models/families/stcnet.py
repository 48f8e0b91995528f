"""STCNet: a 3D ResNet whose blocks weigh their channels by what is correlated over space, and over space and time.

Diba et al., "Spatio-Temporal Channel Correlation Networks for Action Classification", ECCV 2018, arXiv:1806.07754. The
network around is that of Hara et al. (`resnet3d`), a ResNet or, with `cardinality`, a ResNeXt, with its shapes.

In front of the sum of a residual block stands a block of two branches. Both average over the places of a frame and
make a factor for each channel with two linear layers, a ReLU between and a sigmoid behind: the temporal correlation
branch (TCB) from the mean over all frames, the spatial one (SCB) from the frames side by side, T * C numbers. The
output is the mean of what both scale. Since the second branch sees all frames at once, a network fits the number of
frames that it is built for.

The authors published no code, and no official output exists. The paper's text could not be opened whole; the shapes of
the linear layers, C/r x C and C x C/r, (TC)/r x TC and C x (TC)/r, and the mean are from quotations of its equations.
Which branch is called what, the place in front of the sum (as in squeeze and excitation), r = 16, and biases are not
from there. What was checked instead: the block against its formula, that the network without it is the 3D ResNet, a
gradient to every parameter, and learning: one basic block a stage names 97.4% of the 800 validation videos of the demo
set `motion` after the first of 4 epochs from scratch, 12.1% where the frames are frozen; guessing names 12.5%. The
command is ``stvid train --config tsm_r18_motion.yaml --model.name stcnet_r50 --model.hyperparameters '{depth: [1, 1, 1,
1], bottleneck: false}' --optim.lr 3e-3 --trainer.max_epochs 4 --trainer.val_every 1``. The paper's parameters and
multiply-adds could not be found, so none are compared; counted are 55.7 million and 10.1e9 for 50 layers, and 103.7
million and 13.9e9 for 101, of 16 frames of 112 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stvid.models.blocks import Tap, init_conv_weights
from stvid.models.families.resnet3d import Block, ResNet3d
from stvid.models.family import Family, Variant
from stvid.models.published_names import count_blocks, read_options
from stvid.protocol import Protocol

__all__ = ["ChannelCorrelation", "STCNet"]


class ChannelCorrelation(nn.Module):
    """The spatio-temporal channel correlation block (section 3.1).

    Args:
        dim: Channels.
        frames: Frames of the features.
        reduction: Numbers that a branch sees over those between its linear layers.
    """

    def __init__(self, dim: int, *, frames: int, reduction: int = 16) -> None:
        super().__init__()
        self.temporal = _factors(dim, dim, reduction)
        self.spatial = _factors(dim * frames, dim, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, frames, H, W) to the same shape."""
        frames = x.mean((3, 4))
        factors = (self.temporal(frames.mean(2)) + self.spatial(frames.flatten(1))) / 2
        return x * factors[:, :, None, None, None]


def _factors(seen: int, dim: int, reduction: int) -> nn.Sequential:
    inner = max(1, seen // reduction)
    return nn.Sequential(nn.Linear(seen, inner), nn.ReLU(inplace=True), nn.Linear(inner, dim), nn.Sigmoid())


class STCNet(ResNet3d):
    """3D ResNet or ResNeXt with channel correlation in every block.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip; only clips of so many are taken.
        img_size: (height, width) in pixels, for the protocol only: the weights do not depend on it.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        bottleneck: Whether the blocks are bottlenecks.
        cardinality: Groups of the 3x3x3 convolutions; more than 1 makes a ResNeXt, twice as wide inside its blocks.
        reduction: As in `ChannelCorrelation`.
        drop_rate: Dropout before the classifier.

    The features are (B, num_features, T/16, H/32, W/32), rounded up. A clip has at least 32 pixels in height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (112, 112),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        bottleneck: bool = True,
        cardinality: int = 1,
        reduction: int = 16,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            bottleneck=bottleneck,
            cardinality=cardinality,
            drop_rate=drop_rate,
        )
        if reduction < 1:
            raise ValueError(f"reduction {reduction}: must be at least 1")
        self.num_frames = num_frames
        for info, stage in zip(self.feature_info, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            frames = -(-num_frames // info.reduction[0])
            for block in stage:
                if isinstance(block, Block):
                    block.gate = ChannelCorrelation(info.channels, frames=frames, reduction=reduction)
                    block.gate.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages."""
        self._check_clip(clip, minimum=(self.num_frames, self.min_size, self.min_size))
        if clip.shape[2] != self.num_frames:
            raise ValueError(
                f"{type(self).__name__} weighs channels by all of {self.num_frames} frames, and the clip has "
                f"{clip.shape[2]}: build the model with num_frames={clip.shape[2]}"
            )
        return super().encode(clip, tap)

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Takes the state as it is: nobody published weights."""
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, channels, groups, frames."""
        return read_options(_read, state, self.state_dict(), needed=("conv1.weight", "layer1.0.gate.spatial.0.weight"))


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state; frames are told to the next even number, which has the same tensors."""
    conv, spatial = own["layer1.0.conv2.weight"], own["layer1.0.gate.spatial.0.weight"]
    dim, inner = own["layer1.0.gate.temporal.0.weight"].shape[::-1]
    return {
        "depth": tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5)),
        "in_chans": own["conv1.weight"].shape[1],
        "bottleneck": "layer1.0.conv3.weight" in own,
        "cardinality": conv.shape[0] // conv.shape[1],
        "num_frames": 2 * spatial.shape[1] // dim,
        "reduction": dim // inner,
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# The paper trains clips of 16 frames of 112 pixels; the rest is the protocol of the 3D ResNets of Hara et al.
_K400 = Protocol(
    frames=16,
    stride=1,
    short_side=112,
    crop=112,
    mean=(0.4345, 0.4051, 0.3775),
    std=(0.2768, 0.2713, 0.2737),
    views="10x1",
)

FAMILY = Family(
    model="STCNet",
    paper="Diba et al. 2018, arXiv:1806.07754",
    small_clip=(4, 32, 32),
    min_clip=(4, 32, 32),
    tiny={"depth": (1, 2, 1, 1)},
    variants=(
        Variant("stcnet_r50", "3D ResNet of 50 layers with channel correlation.", _K400),
        Variant(
            "stcnet_r101",
            "3D ResNet of 101 layers with channel correlation.",
            _K400,
            {"depth": (3, 4, 23, 3)},
            same_as="stcnet_r50",
        ),
    ),
)
