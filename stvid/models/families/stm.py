"""STM: a 2D network whose blocks encode space and time in one branch, and motion in another, and add them.

Jiang et al., "STM: SpatioTemporal and Motion Encoding for Action Recognition", ICCV 2019, arXiv:1908.02486.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each; time stays. Stage i
holds (B, 256 * 2^i, T, H/2^(i+2), W/2^(i+2)).

In place of the 3x3 convolution of a bottleneck stand two modules, whose outputs are added: the channel-wise
spatiotemporal module (CSTM: a convolution in time of every channel by itself, then the 3x3 convolution), and the
channel-wise motion module (CMM: the difference of each frame from the next one, in a sixteenth of the channels).

The authors published no code, and no official output exists. Two files with the first author's name, STM.py and CMM.py
of February 2019, lie in a public repository; from them are the order of norms and activations, the pool of the motion
where a block has a stride, and the start of the convolutions in time. What was checked instead:

- the output of a network built as those files say, for the weights of the fill rule (`stm_r50__8x64`, recorded here and
  not by the authors); parameters and multiply-adds are equal;
- the paper's numbers from memory, since its tables could not be opened: 24.0 million parameters and 33.3e9
  multiply-adds for 8 frames and 174 classes. Counted are 24.04 million and 33.08e9;
- a gradient to every parameter;
- learning: one block a stage of 32 channels (0.13 million parameters) names 97.9% of the 800 validation videos of the
  demo set `motion` after 3 of 5 epochs from scratch; guessing names 12.5%. The command is ``stvid train --config
  tsm_r18_motion.yaml --model.name stm_r50 --model.hyperparameters '{embed_dim: 32, depth: [1, 1, 1, 1]}' --optim.lr
  0.002 --trainer.max_epochs 5``.
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

__all__ = ["STM", "MotionModule", "SpatioTemporalMotion"]


class MotionModule(nn.Module):
    """Channel-wise motion module: how each frame differs from the next one, filtered (section 3.2).

    Args:
        dim: Channels.
        reduction: Channels over those of the differences.
    """

    norm_neighbours = (("reduce", "norm"),)

    def __init__(self, dim: int, *, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, dim // reduction)
        self.reduce = nn.Conv2d(dim, inner, 1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.filter = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.expand = nn.Conv2d(inner, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to the same shape; the last frame has no next one, and no motion."""
        folded = self.norm(self.reduce(x.flatten(0, 1)))
        filtered, reduced = self.filter(folded).unflatten(0, x.shape[:2]), folded.unflatten(0, x.shape[:2])
        difference = F.pad(filtered[:, 1:] - reduced[:, :-1], (0, 0, 0, 0, 0, 0, 0, 1))
        return self.expand(difference.flatten(0, 1)).unflatten(0, x.shape[:2])


class SpatioTemporalMotion(nn.Module):
    """Both modules of a block: CSTM, with norm and ReLU, plus CMM.

    Args:
        dim: Channels.
        stride: Stride in space: of the 3x3 convolution, and of a max pool behind the motion.
    """

    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        self.time = ChannelTimeConv(dim)
        self.space = conv_norm(dim, dim, 3, stride=stride)
        self.motion = MotionModule(dim)
        self.pool = nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to (B, T, dim, H', W'), rounded up."""
        motion = self.pool(self.motion(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.space(self.time(x)) + motion

    def start(self) -> None:
        """Starts the convolution in time: a quarter of the channels take the frame before, a quarter the next one."""
        weight = self.time.conv.weight
        quarter = weight.shape[0] // 4
        with torch.no_grad():
            weight.zero_()
            weight[:quarter, :, 0] = 1.0
            weight[quarter:-quarter, :, 1] = 1.0
            weight[-quarter:, :, 2] = 1.0


class STM(SegmentResNet):
    """STM on a ResNet of bottlenecks.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)). A clip has at least 2 frames, and 32 pixels in
    height and width.
    """

    published_as = "STM of B. Jiang"
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
        drop_rate: float = 0.0,
    ) -> None:
        if embed_dim < 16:
            raise ValueError(f"embed_dim {embed_dim}: must be at least 16, of which four channels are inside a block")

        def make_parts(place: BlockPlace) -> BlockParts:
            return BlockParts(spatial=SpatioTemporalMotion(place.inner, stride=place.stride))

        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=True,
            make_parts=make_parts,
            drop_rate=drop_rate,
        )
        for module in self.modules():
            if isinstance(module, SpatioTemporalMotion):
                module.start()

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layout of the first author's file into our keys."""
        if not any(key.endswith(".mb.stage_conv.weight") for key in state):
            return super().convert_checkpoint(state)
        own = rename_keys(state, (*STM_RULES, *RESNET_RULES))
        return self.published_as, {key: value.unsqueeze(3) if ".time." in key else value for key, value in own.items()}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show of the trunk."""
        _, own = self.convert_checkpoint(state)
        needed = ("stem.0.weight", "layer4.0.conv2.motion.reduce.weight")
        return read_options(_read, own, self.state_dict(), needed=needed)


# --- published keys ---------------------------------------------------------------------------------------------------

STM_RULES = (
    (r"^(layer\d\.\d+)\.conv2\.", r"\1.conv2.space.0."),
    (r"^(layer\d\.\d+)\.bn2\.", r"\1.conv2.space.1."),
    (r"\.mb\.stage_conv\.", ".conv2.motion.reduce."),
    (r"\.mb\.stage_bn\.", ".conv2.motion.norm."),
    (r"\.mb\.shift\.", ".conv2.motion.filter."),
    (r"\.mb\.conv1x1\.", ".conv2.motion.expand."),
    (r"\.shift\.weight$", ".conv2.time.conv.weight"),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    options = read_trunk(own)
    del options["bottleneck"]
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Section 4.2, as remembered: one frame of each of 8 parts of a video of Something-Something, 10 clips of three crops
# that are 224 pixels wide for the network.
_SSV1 = Protocol(
    frames=8, sampling="segment", short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="10x3"
)

FAMILY = Family(
    model="STM",
    paper="Jiang et al. 2019, arXiv:1908.02486",
    small_clip=(4, 32, 32),
    min_clip=(2, 32, 32),
    formats=("STM of B. Jiang", "torchvision ResNet"),
    tiny={"depth": (1, 2, 1, 1), "embed_dim": 64},
    golden_options={"stm_r50__8x64": {"name": "stm_r50", "img_size": 64}},
    variants=(Variant("stm_r50", "STM on a ResNet of 50 layers.", _SSV1),),
)
