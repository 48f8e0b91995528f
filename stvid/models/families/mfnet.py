"""Multi-Fiber Network: residual units cut into parallel fibers, with a multiplexer that lets them exchange.

Chen et al., "Multi-Fiber Networks for Video Recognition", ECCV 2018, arXiv:1807.11195; official code:
cypw/PyTorch-MFNet, network/mfnet_3d.py.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, the first stage time by 2, each later stage
space by 2. Stage i holds (B, 96 * 2^i, T/2, H/2^(i+2), W/2^(i+2)). Norm and ReLU come before each convolution, and once
more after the last stage.

A unit has a 3x3x3 and a 1x3x3 convolution of 16 groups, the fibers. Before them the multiplexer, two 1x1x1 convolutions
with a residual, mixes the fibers. The shortcut of the unit adds its input as it was before the multiplexer. In the
first unit of a stage the second convolution is 1x1x1, without groups, and another one is on the shortcut.

The head takes the mean; the official one, a window of 8x7x7, is that for the only size it takes, 16 frames of 224x224.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, StagedModel
from stvid.models.blocks import Tap, init_conv_weights, leave_out, rename_keys
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import count_blocks, read_options
from stvid.protocol import Protocol

__all__ = ["MultiFiberNet"]

Size3d = tuple[int, int, int]
STEM_DIM = 16


class NormConv(nn.Module):
    """Norm, ReLU, convolution."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        kernel: Size3d = (1, 1, 1),
        *,
        stride: Size3d = (1, 1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(in_dim)
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_dim, dim, kernel, stride=stride, padding=padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T', H', W')."""
        return self.conv(F.relu(self.norm(x), inplace=True))


class MultiFiberUnit(nn.Module):
    """Multiplexer, then two convolutions of fibers, with a residual around all of it.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        stride: Stride of the first convolution of fibers.
        groups: Number of fibers.
        first: Whether it is the first unit of a stage.
    """

    norm_neighbours = (("mix1.conv", "mix2.norm"), ("conv1.conv", "conv2.norm"))

    def __init__(self, in_dim: int, dim: int, *, stride: Size3d, groups: int, first: bool) -> None:
        super().__init__()
        self.mix1 = NormConv(in_dim, dim // 4)
        self.mix2 = NormConv(dim // 4, in_dim)
        self.conv1 = NormConv(in_dim, dim, (3, 3, 3), stride=stride, groups=groups)
        self.conv2 = NormConv(dim, dim) if first else NormConv(dim, dim, (1, 3, 3), groups=groups)
        self.downsample = NormConv(in_dim, dim, stride=stride) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T', H', W')."""
        mixed = x + self.mix2(self.mix1(x))
        return self.conv2(self.conv1(mixed)) + self.downsample(x)


class MultiFiberNet(StagedModel):
    """Multi-Fiber Network in 3D.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Units of the four stages.
        embed_dim: Channels of the first stage.
        groups: Number of fibers.
        drop_rate: Dropout before the classifier; the authors take 0.5 for fine-tuning, and none before.

    The features are (B, 8 * embed_dim, ceil(T/2), ceil(H/32), ceil(W/32)), after the last norm and ReLU. A clip has at
    least 32 pixels in height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 96,
        groups: int = 16,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if groups < 1 or STEM_DIM % groups or embed_dim % groups:
            raise ValueError(f"groups {groups}: must divide embed_dim {embed_dim} and the stem's {STEM_DIM} channels")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = embed_dim * 8
        self.stem = nn.Sequential(
            nn.Conv3d(in_chans, STEM_DIM, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False),
            nn.BatchNorm3d(STEM_DIM),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )

        def make_block(stage: int, block: int) -> MultiFiberUnit:
            dim = embed_dim * 2**stage
            before = dim // 2 if stage else STEM_DIM
            stride = ((1, 2, 2) if stage else (2, 1, 1)) if not block else (1, 1, 1)
            return MultiFiberUnit(dim if block else before, dim, stride=stride, groups=groups, first=not block)

        self.build_stages(depth, make_block)
        self.tail = nn.Sequential(nn.BatchNorm3d(self.num_features), nn.ReLU(inplace=True))
        self.describe_stages(embed_dim, [(2, step, step) for step in (4, 8, 16, 32)])
        self.feature_info[-1] = FeatureInfo("tail", self.num_features, (2, 32, 32))
        self.head = LinearHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem, the stages, and the last norm."""
        self._check_clip(clip, minimum=(1, 32, 32))
        last = len(self.feature_info) - 1
        return tap(last, self.tail(self.run_stages(self.stem(clip_layout(clip)), leave_out(last, tap))))

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, every unit in order, the last norm."""
        return {"stem": r"^stem\.", "blocks": [(r"^layer(\d)\.(\d+)\.", None), (r"^tail\.", (99999,))]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys."""
        if "conv1.conv.weight" not in state or "tail.bn.weight" not in state:
            return "stvid", dict(state)
        counted = {
            re.sub(r"^conv(\d)\.B(\d+)\.", lambda match: f"layer{int(match[1]) - 1}.{int(match[2]) - 1}.", key): value
            for key, value in state.items()
        }
        return "cypw/PyTorch-MFNet", rename_keys(counted, MFNET_RULES)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depth, fibers."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("stem.0.weight", "layer1.0.conv1.conv.weight"))


# --- published keys ---------------------------------------------------------------------------------------------------

MFNET_RULES = (
    (r"^conv1\.conv\.", "stem.0."),
    (r"^conv1\.bn\.", "stem.1."),
    (r"\.conv_i(\d)\.", r".mix\1."),
    (r"\.conv_m(\d)\.", r".conv\1."),
    (r"\.conv_w1\.", ".downsample."),
    (r"^(layer\d\.\d+\.\w+)\.bn\.", r"\1.norm."),
    (r"^tail\.bn\.", "tail.0."),
    (r"^classifier\.", "head.fc."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    fibers = own["layer1.0.conv1.conv.weight"]
    return {
        "in_chans": own["stem.0.weight"].shape[1],
        "depth": tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5)),
        "embed_dim": fibers.shape[0],
        "groups": STEM_DIM // fibers.shape[1],
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: network/config.py (mean and std), data/iterator_factory.py (256 pixels, 224 of them; the frames are
# squeezed to a square there) and train_kinetics.py (val-frame-interval). The authors average random clips and crops,
# as many as one likes (test/evaluate_video_ucf101_split1.py); 10 clips of the centre crop stand for them here.
_K400 = Protocol(
    frames=16,
    stride=2,
    short_side=256,
    crop=224,
    mean=(0.486275, 0.458824, 0.407843),
    std=(0.234825, 0.234825, 0.234825),
    views="10x1",
)

FAMILY = Family(
    model="MultiFiberNet",
    paper="Chen et al. 2018, arXiv:1807.11195",
    small_clip=(4, 64, 64),
    min_clip=(1, 32, 32),
    formats=("cypw/PyTorch-MFNet",),
    tiny={"depth": (1, 2, 2, 1), "embed_dim": 32, "groups": 4},
    variants=(Variant("mfnet3d", "Multi-Fiber Network of 16 fibers.", _K400, params=8.0, gflops=11.1),),
)
