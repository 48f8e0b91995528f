"""Inflated ResNets: C2D, Slow, I3D and Non-local I3D, as SlowFast and PyTorchVideo publish them.

Wang et al., "Non-local Neural Networks", CVPR 2018, arXiv:1711.07971 (C2D, I3D and Non-local); Feichtenhofer et al.,
"SlowFast Networks for Video Recognition", ICCV 2019, arXiv:1812.03982 (Slow: the slow pathway alone). Official code:
facebookresearch/SlowFast, slowfast/models/video_model_builder.py (`ResNet`), nonlocal_helper.py and
configs/Kinetics; facebookresearch/pytorchvideo, pytorchvideo/models/hub/resnet.py.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each (the stride is at the
3x3 convolution); time is only halved by a pool after stage 1 (not in Slow). Stage i holds (B, 256 * 2^i, T/2,
H/2^(i+2), W/2^(i+2)). The models differ in the kernels in time, at the stem and at the first 1x1 convolution of each
bottleneck (`time_kernels`), and in non-local blocks: attention over all positions, after blocks 1 and 3 of stage 2 and
blocks 1, 3 and 5 of stage 3 (at both depths), whose keys and values are pooled by 2x2 in space.

The head averages over windows at stride 1, then over the windows. SlowFast makes the window from the clip and the crop
it trains with, which is 224 pixels in all published configurations, while it tests at 256. So the window is what
`num_frames` and `img_size` give, but at most 7x7; `pool_size` sets another, and PyTorchVideo's weights set theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.base import StagedModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, shortcut
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.protocol import Protocol

__all__ = ["InflatedResNet"]

Size3d = tuple[int, int, int]
NONLOCAL_STD = 0.01  # standard deviation of the initial weights in non-local blocks (SlowFast)


class NonLocal(nn.Module):
    """Non-local block: every position sees all others, through half the channels (section 3.3).

    Args:
        dim: Channels.
        mode: ``softmax`` (embedded Gaussian: scaled dot-product attention of one head), or ``dot_product``, which
            divides by the number of positions instead.
    """

    norm_neighbours = (("out", "norm"),)
    axes = "clip"

    def __init__(self, dim: int, *, mode: Literal["softmax", "dot_product"] = "softmax") -> None:
        super().__init__()
        if mode not in ("softmax", "dot_product"):
            raise ValueError(f"nonlocal_mode {mode!r}: must be softmax or dot_product")
        self.mode = mode
        self.theta = nn.Conv3d(dim, dim // 2, 1)
        self.phi = nn.Conv3d(dim, dim // 2, 1)
        self.g = nn.Conv3d(dim, dim // 2, 1)
        self.out = nn.Conv3d(dim // 2, dim, 1)
        self.norm = nn.BatchNorm3d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, T, H, W) to the same shape."""
        pooled = F.max_pool3d(x, (1, 2, 2))
        q, k, v = (y.flatten(2).transpose(1, 2) for y in (self.theta(x), self.phi(pooled), self.g(pooled)))
        if self.mode == "softmax":
            mixed = attend(q[:, None], k[:, None], v[:, None], source=(self, self.axes))[:, 0]
        else:
            mixed = q @ (k.transpose(1, 2) @ v) / k.shape[1]
        mixed = mixed.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.norm(self.out(mixed))


class Bottleneck(nn.Module):
    """Residual bottleneck of kx1x1, 1x3x3 and 1x1x1 convolutions, with a non-local block after it if there is one."""

    norm_neighbours = (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"))

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        time_kernel: int,
        stride: int,
        nonlocal_mode: Literal["softmax", "dot_product"] | None,
    ) -> None:
        super().__init__()
        inner = dim // 4
        self.conv1 = nn.Conv3d(in_dim, inner, (time_kernel, 1, 1), padding=(time_kernel // 2, 0, 0), bias=False)
        self.norm1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False)
        self.norm2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, dim, 1, bias=False)
        self.norm3 = nn.BatchNorm3d(dim)
        self.downsample = shortcut(in_dim, dim, (1, stride, stride))
        self.nonlocal_block = nn.Identity() if nonlocal_mode is None else NonLocal(dim, mode=nonlocal_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T, H', W')."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = F.relu(self.norm2(self.conv2(out)), inplace=True)
        out = self.norm3(self.conv3(out))
        out += self.downsample(x)
        return self.nonlocal_block(F.relu(out, inplace=True))


class InflatedResNet(StagedModel):
    """C2D, Slow, I3D or Non-local I3D.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the head's window: the weights do not depend on it.
        img_size: (height, width) in pixels, for the head's window.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        stem_kernel: Frames that the stem sees.
        time_kernels: For each stage, the kernels in time of its blocks, repeated as often as needed.
        time_pool: Whether a pool after stage 1 halves time.
        nonlocal_blocks: For each stage, the blocks that end with a non-local block.
        nonlocal_mode: ``softmax`` or ``dot_product``.
        pool_size: Window (T, H, W) of the head's average; None takes the one that the head of this file describes.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T/2 with `time_pool`, ceil(H/32), ceil(W/32)). A clip has at least 32 pixels in
    height and width, and with `time_pool` 2 frames.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        stem_kernel: int = 5,
        time_kernels: Sequence[Sequence[int]] = ((3,), (3, 1), (3, 1), (1, 3)),
        time_pool: bool = True,
        nonlocal_blocks: Sequence[Sequence[int]] = ((), (), (), ()),
        nonlocal_mode: Literal["softmax", "dot_product"] = "softmax",
        pool_size: Size3d | None = None,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if len(time_kernels) != 4 or len(nonlocal_blocks) != 4:
            raise ValueError(
                f"an inflated ResNet has four stages: time_kernels {time_kernels} and nonlocal_blocks "
                f"{nonlocal_blocks} need four entries"
            )
        self.num_classes = num_classes
        self.num_features = embed_dim * 8
        self.in_chans = in_chans
        self.time_stride = 2 if time_pool else 1
        side = min(7, max(1, min(img_size) // 32))
        self.default_pool_size: Size3d = (max(1, num_frames // self.time_stride), side, side)
        padding = (stem_kernel // 2, 3, 3)
        self.stem = nn.Sequential(
            nn.Conv3d(in_chans, embed_dim // 4, (stem_kernel, 7, 7), stride=(1, 2, 2), padding=padding, bias=False),
            nn.BatchNorm3d(embed_dim // 4),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )

        def make_block(stage: int, block: int) -> Bottleneck:
            dim = embed_dim * 2**stage
            return Bottleneck(
                dim if block else (embed_dim // 4 if stage == 0 else dim // 2),
                dim,
                time_kernel=time_kernels[stage][block % len(time_kernels[stage])],
                stride=2 if stage and not block else 1,
                nonlocal_mode=nonlocal_mode if block in nonlocal_blocks[stage] else None,
            )

        self.build_stages(depth, make_block)
        time = self.time_stride
        self.describe_stages(embed_dim, [(1, 4, 4), (time, 8, 8), (time, 16, 16), (time, 32, 32)])
        window = self.default_pool_size if pool_size is None else (pool_size[0], pool_size[1], pool_size[2])
        self.head = LinearHead(self.num_features, num_classes, window=window, drop_rate=drop_rate)
        self.apply(init_conv_weights)
        self._init_branches()

    def _init_branches(self) -> None:
        """Starts every residual branch at zero (SlowFast: RESNET.ZERO_INIT_FINAL_BN)."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)
            elif isinstance(module, NonLocal):
                nn.init.zeros_(module.norm.weight)
                for conv in (module.theta, module.phi, module.g, module.out):
                    nn.init.normal_(conv.weight, std=NONLOCAL_STD)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages, with the pool in time after the first."""
        self._check_clip(clip, minimum=(self.time_stride, 32, 32))
        x = self.run_stage(1, self.stem(clip_layout(clip)), tap)
        if self.time_stride > 1:
            x = F.max_pool3d(x, (2, 1, 1))
        for number in (2, 3, 4):
            x = self.run_stage(number, x, tap)
        return x

    def token_grid(self, clip_shape: Sequence[int]) -> Size3d:
        """Returns the cells of the features; the pool in time drops an odd frame."""
        _, height, width = super().token_grid(clip_shape)
        return clip_shape[-3] // self.time_stride, height, width

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of SlowFast and PyTorchVideo into our keys."""
        if "s1.pathway0_stem.conv.weight" in state:
            return "SlowFast", rename_keys(state, SLOWFAST_RULES)
        if "blocks.0.conv.weight" in state:
            stages = sorted(
                {int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.res_blocks\.", key))}
            )
            stage_rules = [  # the pool in time has a number too
                (rf"^blocks\.{number}\.res_blocks\.(\d+)\.", rf"layer{stage + 1}.\1.")
                for stage, number in enumerate(stages)
            ]
            return "PyTorchVideo", rename_keys(state, (*stage_rules, *PYTORCHVIDEO_RULES))
        return "stvid", dict(state)

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the head's window that a layout's weights are used with."""
        published = {"SlowFast": self.default_pool_size, "PyTorchVideo": (8 // self.time_stride, 7, 7)}
        size = published.get(format_name, hyperparameters.get("pool_size"))
        if size is not None and isinstance(self.head, LinearHead) and tuple(size) != self.head.window:
            self.head.window = (size[0], size[1], size[2])
            changed = {**self.recipe.get("hyperparameters", {}), "pool_size": self.head.window}
            self.recipe = {**self.recipe, "hyperparameters": changed}


# --- published keys ---------------------------------------------------------------------------------------------------

SLOWFAST_RULES = (
    (r"^s1\.pathway0_stem\.conv\.", "stem.0."),
    (r"^s1\.pathway0_stem\.bn\.", "stem.1."),
    *((rf"^s{stage + 1}\.pathway0_res(\d+)\.", rf"layer{stage}.\1.") for stage in range(1, 5)),
    *((rf"^s{stage + 1}\.pathway0_nonlocal(\d+)\.", rf"layer{stage}.\1.nonlocal_block.") for stage in range(1, 5)),
    (r"\.branch1\.", ".downsample.0."),
    (r"\.branch1_bn\.", ".downsample.1."),
    *((rf"\.branch2\.{'abc'[index]}\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.branch2\.{'abc'[index]}_bn\.", f".norm{index + 1}.") for index in range(3)),
    (r"\.nonlocal_block\.conv_", ".nonlocal_block."),
    (r"\.nonlocal_block\.bn\.", ".nonlocal_block.norm."),
    (r"^head\.projection\.", "head.fc."),
)
PYTORCHVIDEO_RULES = (
    (r"^blocks\.0\.conv\.", "stem.0."),
    (r"^blocks\.0\.norm\.", "stem.1."),
    (r"\.branch1_conv\.", ".downsample.0."),
    (r"\.branch1_norm\.", ".downsample.1."),
    *((rf"\.branch2\.conv_{'abc'[index]}\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.branch2\.norm_{'abc'[index]}\.", f".norm{index + 1}.") for index in range(3)),
    (r"^blocks\.\d+\.proj\.", "head.fc."),
)


# --- variants ---------------------------------------------------------------------------------------------------------

_NORMS = "the zoo's GFLOPs count the norms too"
# SlowFast, configs/Kinetics/{C2D,SLOW,I3D,I3D_NLN}_8x8_R50.yaml, which test 10 clips of three 256-pixel crops; the mean
# and std of slowfast/config/defaults.py. Its decoder reads videos at 30 frames per second (TARGET_FPS). Multiply-adds
# are those of PyTorchVideo's zoo, for the 256-pixel crop; they count the norms too.
_8X8 = Protocol(frames=8, stride=8, fps=30, short_side=256, crop=256, views="10x3")
_NONLOCAL = {"nonlocal_blocks": ((), (1, 3), (1, 3, 5), ())}


FAMILY = Family(
    model="InflatedResNet",
    paper="Wang et al. 2018, arXiv:1711.07971",
    small_clip=(4, 32, 32),
    min_clip=(2, 32, 32),
    formats=("SlowFast", "PyTorchVideo"),
    parent="resnet",
    tiny={"depth": (1, 2, 2, 1), "embed_dim": 32},
    slow_goldens=(
        "ptv_c2d_r50__8x224",
        "ptv_i3d_r50__8x224",
        "ptv_slow_r50__8x224",
        "sf_i3d_r50__8x112",
    ),
    variants=(
        Variant(
            "c2d_r50",
            "C2D of 50 layers: frames meet only in the pool and in the head.",
            _8X8,
            {"stem_kernel": 1, "time_kernels": ((1,), (1,), (1,), (1,))},
            params=24.33,
            gflops=25.89,
            note=_NORMS,
            gflops_tolerance=0.02,
        ),
        Variant(
            "slow_r50",
            "Slow of 50 layers: kernels in time in the last two stages.",
            _8X8,
            {"stem_kernel": 1, "time_kernels": ((1,), (1,), (3,), (3,)), "time_pool": False},
            params=32.45,
            gflops=54.52,
            paper="Feichtenhofer et al. 2019, arXiv:1812.03982",
            min_clip=(1, 32, 32),
        ),
        Variant("i3d_r50", "I3D of 50 layers.", _8X8, params=28.04, gflops=37.53, note=_NORMS, gflops_tolerance=0.02),
        Variant(
            "i3d_nl_r50",
            "Non-local I3D of 50 layers.",
            _8X8,
            _NONLOCAL,
            params=35.4,
            formats=("SlowFast",),
        ),
        Variant(
            "i3d_nl_r101",
            "Non-local I3D of 101 layers.",
            _8X8,
            {**_NONLOCAL, "depth": (3, 4, 23, 3)},
            params=59.1,
            formats=("SlowFast",),
            same_as="i3d_nl_r50",
        ),
    ),
)
