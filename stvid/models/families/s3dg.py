"""S3D-G: Inception-v1 with convolutions split into space and time, and gates on its channels (TensorFlow slim's).

Xie et al., "Rethinking Spatiotemporal Feature Learning: Speed-Accuracy Trade-offs in Video Classification", ECCV 2018,
arXiv:1712.04851. Official code: tensorflow/models, research/slim/nets/s3dg.py and i3d_utils.py. The student of Stroud
et al., "D3D: Distilled 3D Networks for Video Action Recognition", WACV 2020, arXiv:1812.08249, is this network with its
default arguments. `s3d` (i3d.py) is torchvision's network without gates.

Shapes, for a clip (B, 3, T, H, W): the features are (B, 1024, T/8, H/32, W/32), rounded up, since all convolutions and
pools have TensorFlow's SAME padding. The head averages over windows of 2x7x7 positions at stride 1, then over the
windows.

What sets it apart from torchvision's S3D:

- The stem is not split: 3x7x7, or the paper's 7x7x7 (``stem_kernel=7``), which slim calls slower for little accuracy.
- Of a split convolution, 1x3x3 has a norm and no bias, 3x1x1 a bias and no norm; a ReLU follows each.
- Norms shift and do not scale. Their epsilon is 1e-3.
- From the third convolution on, and at the end of each branch of a block, a gate weighs the channels: the sigmoid of a
  matrix times their mean over all positions. Slim computes it for square maps only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, run_blocks
from stvid.models.families.i3d import BRANCHES, NORM_EPS, WINDOW, MaxPool, pad_same
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.protocol import Protocol

__all__ = ["GatedS3D"]

Size3d = tuple[int, int, int]
MIN_DIM = 16  # the fewest channels of a convolution in a narrower network (min_depth)


class ConvNorm(nn.Module):
    """Convolution, a norm that only shifts, ReLU.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        kernel: (T, H, W) of the kernel.
        stride: Stride along each axis.
    """

    norm_neighbours = (("conv", "norm"),)

    def __init__(self, in_dim: int, dim: int, kernel: Size3d = (1, 1, 1), *, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, (stride, stride, stride)
        # With stride 1 and odd kernels, SAME padding is torch's own.
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2) if stride == 1 else (0, 0, 0)
        self.conv = nn.Conv3d(in_dim, dim, kernel, stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm3d(dim, eps=NORM_EPS, momentum=0.001)  # batch_norm_decay 0.999
        self.norm.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T', H', W')."""
        if self.stride != (1, 1, 1):
            x = pad_same(x, self.kernel, self.stride)
        return F.relu(self.norm(self.conv(x)), inplace=True)


class SplitConv(nn.Module):
    """1x3x3 with norm and ReLU, then 3x1x1 with bias and ReLU; (B, in_dim, T, H, W) to (B, dim, T, H, W)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.spatial = ConvNorm(in_dim, dim, (1, 3, 3))
        self.temporal = nn.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Applies both."""
        return F.relu(self.temporal(self.spatial(x)), inplace=True)


class Gate(nn.Module):
    """Weighs each channel by the sigmoid of a linear function of the means of all; (B, dim, T, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weigh = nn.Conv3d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate."""
        return x * self.weigh(x.mean((2, 3, 4), keepdim=True)).sigmoid()


class GatedInception(nn.Module):
    """Four branches side by side, each with a gate at its end; see `stvid.models.families.i3d.BRANCHES`."""

    def __init__(self, in_dim: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(ConvNorm(in_dim, dims[0]), Gate(dims[0]))
        self.branch1 = nn.Sequential(ConvNorm(in_dim, dims[1]), SplitConv(dims[1], dims[2]), Gate(dims[2]))
        self.branch2 = nn.Sequential(ConvNorm(in_dim, dims[3]), SplitConv(dims[3], dims[4]), Gate(dims[4]))
        pool = MaxPool((3, 3, 3), (1, 1, 1), same_padding=True)
        self.branch3 = nn.Sequential(pool, ConvNorm(in_dim, dims[5]), Gate(dims[5]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dims[0] + dims[2] + dims[4] + dims[5], T, H, W)."""
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


class GatedS3D(VideoModel):
    """S3D-G.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        stem_kernel: Frames that the stem sees: 1, 3, 5 or 7.
        width: Channels of every convolution over the published ones, but at least 16 (slim's depth_multiplier).
        drop_rate: Dropout before the classifier.

    The features are (B, 1024 * width, T/8, H/32, W/32), rounded up. A clip has at least 32 pixels in height and width.
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
        stem_kernel: int = 3,
        width: float = 1.0,
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        if stem_kernel not in (1, 3, 5, 7):
            raise ValueError(f"stem_kernel {stem_kernel}: must be 1, 3, 5 or 7")
        if width <= 0:
            raise ValueError(f"width {width}: must be above 0")

        def scaled(dim: int) -> int:
            return max(int(dim * width), MIN_DIM)

        self.num_classes, self.in_chans = num_classes, in_chans
        self.conv1 = ConvNorm(in_chans, scaled(64), (stem_kernel, 7, 7), stride=2)
        self.pool1 = MaxPool((1, 3, 3), (1, 2, 2), same_padding=True)
        self.conv2 = ConvNorm(scaled(64), scaled(64))
        self.conv3 = nn.Sequential(SplitConv(scaled(64), scaled(192)), Gate(scaled(192)))
        self.pool2 = MaxPool((1, 3, 3), (1, 2, 2), same_padding=True)
        self.pool3 = MaxPool((3, 3, 3), (2, 2, 2), same_padding=True)
        self.pool4 = MaxPool((2, 2, 2), (2, 2, 2), same_padding=True)
        in_dim = scaled(192)
        self.feature_info = []
        for (stage, blocks), reduction in zip(BRANCHES.items(), [(2, 8, 8), (4, 16, 16), (8, 32, 32)], strict=True):
            layer = nn.Sequential()
            for dims in blocks:
                narrow = [scaled(dim) for dim in dims]
                layer.append(GatedInception(in_dim, narrow))
                in_dim = narrow[0] + narrow[2] + narrow[4] + narrow[5]
            setattr(self, stage, layer)
            self.feature_info.append(FeatureInfo(stage, in_dim, reduction))
        self.num_features = in_dim
        self.head = LinearHead(in_dim, num_classes, window=WINDOW, drop_rate=drop_rate)
        self.apply(_init_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the convolutions and the blocks; each pool comes before the blocks of the next stage."""
        self._check_clip(clip, minimum=(1, 32, 32))
        x = self.pool2(self.conv3(self.conv2(self.pool1(self.conv1(clip_layout(clip))))))
        x = tap(0, run_blocks(self.mixed3, x, recompute=self.grad_checkpointing))
        x = tap(1, run_blocks(self.mixed4, self.pool3(x), recompute=self.grad_checkpointing))
        return tap(2, run_blocks(self.mixed5, self.pool4(x), recompute=self.grad_checkpointing))

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the first convolution, the second pair, then every block in order."""
        return {"stem": r"^conv1", "blocks": [(r"^conv[23]", (-1,)), (r"^mixed(\d)\.(\d)", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the variables of TensorFlow slim into our keys and torch's order of axes."""
        if not any(key.startswith("InceptionV1/Conv2d_1a_7x7/") for key in state):
            return "stvid", dict(state)
        own: dict[str, Tensor] = {}
        for name, value in state.items():
            if _LEFT_OUT.search(name):
                continue
            key = name
            for pattern, replacement in SLIM_RULES:
                key = re.sub(pattern, replacement, key)
            is_kernel = key.endswith(".weight") and value.dim() == 5
            own[key] = value.permute(4, 3, 0, 1, 2).contiguous() if is_kernel else value
        if own.get("head.fc.weight") is not None:
            own["head.fc.weight"] = own["head.fc.weight"].flatten(1)
        return "TensorFlow slim", own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the frames that the stem sees, and the channels of the clip."""
        _, own = self.convert_checkpoint(state)
        weight, built = own.get("conv1.conv.weight"), self.conv1.conv.weight
        if weight is None or weight.dim() != 5:
            return {}
        found = {"stem_kernel": (weight.shape[2], built.shape[2]), "in_chans": (weight.shape[1], built.shape[1])}
        return {key: theirs for key, (theirs, ours) in found.items() if theirs != ours}


def _init_weights(module: nn.Module) -> None:
    """Draws kernels from a truncated normal of 0.01, as slim does, and those in time so that they change nothing."""
    if isinstance(module, nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, SplitConv):  # after its children: the identity initialiser of slim
        nn.init.dirac_(module.temporal.weight)
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


# --- published keys ---------------------------------------------------------------------------------------------------

_LEFT_OUT = re.compile(r"^global_step$|/(?:Momentum|ExponentialMovingAverage|Adam(?:_1)?)$")  # what a training adds
SLIM_RULES = (
    (r"/(?:weights|kernel)$", ".weight"),
    (r"/(?:biases|bias|beta)$", ".bias"),
    (r"/(?:moving_mean|mean)$", ".running_mean"),
    (r"/(?:moving_variance|var)$", ".running_var"),
    (r"^InceptionV1/Logits/Conv2d_0c_1x1\.", "head.fc."),
    (r"^InceptionV1/Conv2d_1a_7x7", "conv1"),
    (r"^InceptionV1/Conv2d_2b_1x1", "conv2"),
    (r"^InceptionV1/Conv2d_2c_3x3/self_gating/transformer_W", "conv3.1.weigh"),
    (r"^InceptionV1/Conv2d_2c_3x3/temporal", "conv3.0.temporal"),
    (r"^InceptionV1/Conv2d_2c_3x3", "conv3.0.spatial"),
    *((rf"^InceptionV1/Mixed_(\d){letter}/", rf"mixed\1.{place}.") for place, letter in enumerate("bcdef")),
    (r"Branch_(\d)/Conv2d_0[ab]_1x1/self_gating/transformer_W", r"branch\1/gate"),
    (r"Branch_(\d)/Conv2d_0b_3x3/self_gating/transformer_W", r"branch\1/gate"),
    (r"branch0/gate", "branch0.1.weigh"),
    (r"branch(\d)/gate", r"branch\1.2.weigh"),
    (r"Branch_(\d)/Conv2d_0b_3x3/temporal", r"branch\1.1.temporal"),
    (r"Branch_(\d)/Conv2d_0b_3x3", r"branch\1.1.spatial"),
    (r"Branch_3/Conv2d_0b_1x1", "branch3.1"),
    (r"Branch_(\d)/Conv2d_0a_1x1", r"branch\1.0"),
    (r"/BatchNorm\.", ".norm."),
    (r"^(conv[12]|conv3\.0\.spatial|mixed\d\.\d\.branch\d\.\d(?:\.spatial)?)\.weight$", r"\1.conv.weight"),
)


# --- variants ---------------------------------------------------------------------------------------------------------

# The paper trains on 64 frames of 224 pixels; its clips are those of I3D, 25 frames per second in -1..1. Its 11.56M and
# 71.38G are of another network than the one in slim, which has 9.56M with the same stem of 7 frames: none stand here.
_K400 = Protocol(
    frames=64, stride=1, fps=25, short_side=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), views="1x1"
)

FAMILY = Family(
    model="GatedS3D",
    paper="Xie et al. 2018, arXiv:1712.04851",
    small_clip=(16, 64, 64),
    min_clip=(1, 32, 32),
    formats=("TensorFlow slim",),
    tiny={"width": 0.25},
    golden_options={
        "s3dg_tf__16x64": {"name": "s3dg"},
        "s3dg_tf_k7__16x112": {"name": "s3dg", "stem_kernel": 7},
    },
    variants=(Variant("s3dg", "S3D-G of TensorFlow slim, the student of D3D.", _K400),),
)
