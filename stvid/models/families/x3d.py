"""X3D: a tiny image network, expanded step by step along time, size, depth and width.

Feichtenhofer, "X3D: Expanding Architectures for Efficient Video Recognition", CVPR 2020, arXiv:2004.04730. Official
code: facebookresearch/SlowFast, slowfast/models/video_model_builder.py (`X3D`), head_helper.py (`X3DHead`) and
configs/Kinetics; facebookresearch/pytorchvideo, pytorchvideo/models/x3d.py and
pytorchvideo/models/accelerator/mobile_cpu/efficient_x3d.py.

Shapes, for a clip (B, 3, T, H, W): time is never reduced. The stem, a convolution in space and one in time, divides
space by 2, as does each stage of inverted bottlenecks: stage i holds (B, 24 * 2^i, T, H/2^(i+2), W/2^(i+2)), and within
its blocks 2.25 times the channels, which the 3x3x3 convolution keeps apart. The features are those of a last 1x1x1
convolution, (B, 432, T, H/32, W/32). XS, S and M are the same network, for more frames and larger ones; L is deeper.

Every other block, from the first on, weighs its channels (squeeze and excitation), before its Swish.

The head averages over windows at stride 1, applies a hidden layer to each, and averages then. SlowFast makes the window
from the clip and the crop it trains with (160, 160, 224 and 312 pixels: sides of 5, 5, 7 and 10), but tests at 182,
182, 256 and 356. So the window is what `num_frames` and `img_size` give, but at most `pool_side` wide; `pool_size` sets
another. mmaction2 and PyTorchVideo's efficient X3D average over the whole map, and loading their files sets that.

PyTorchVideo has no norm in the shortcut of the first block. Loading its files takes this one away (`shortcut_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, StagedModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, run_blocks, shortcut
from stvid.models.convolution import depthwise
from stvid.models.family import Family, Variant
from stvid.models.heads import MlpHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import count_blocks, from_mmaction, is_mmaction, read_options
from stvid.protocol import Protocol

__all__ = ["X3D"]

Size3d = tuple[int, int, int]
PoolSize = Size3d | Literal["all"]
SE_RATIO = 0.0625  # channels of the squeezed vector over those that it weighs (official code)


def round_width(width: int, ratio: float) -> int:
    """Returns a multiple of 8 near `width` * `ratio`, at least 8 and at least nine tenths of it (official code)."""
    wanted = width * ratio
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class SqueezeExcite(nn.Module):
    """Weighs channels by a small network of their means; (B, dim, T, H, W) to the same.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv3d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the weights."""
        gate = F.relu(self.fc1(x.mean((2, 3, 4), keepdim=True)), inplace=True)
        return x * self.fc2(gate).sigmoid()


class Bottleneck(nn.Module):
    """Residual inverted bottleneck of 1x1x1, depth-wise 3x3x3 and 1x1x1 convolutions.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        inner: Channels between.
        stride: Stride in space.
        excite: Whether the channels between are weighed.
    """

    norm_neighbours = (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"))

    def __init__(self, in_dim: int, dim: int, *, inner: int, stride: int, excite: bool) -> None:
        super().__init__()
        strides = (1, stride, stride)
        self.conv1 = nn.Conv3d(in_dim, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride=strides, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm3d(inner)
        self.se = SqueezeExcite(inner, round_width(inner, SE_RATIO)) if excite else nn.Identity()
        self.conv3 = nn.Conv3d(inner, dim, 1, bias=False)
        self.norm3 = nn.BatchNorm3d(dim)
        self.downsample = shortcut(in_dim, dim, strides)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_dim, T, H, W) to (B, dim, T, H', W')."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = F.silu(self.se(self.norm2(depthwise(self.conv2, out))), inplace=True)
        out = self.norm3(self.conv3(out))
        out += self.downsample(x)
        return F.relu(out, inplace=True)


class X3D(StagedModel):
    """X3D.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the head's window: the weights do not depend on it.
        img_size: (height, width) in pixels, for the head's window.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the stem and of the first stage; each later stage has twice as many.
        expansion: Channels within a block over those around it.
        hidden_dim: Channels of the head's hidden layer.
        shortcut_norm: Whether the shortcut of the first block has a norm. Loading PyTorchVideo's weights takes it away.
        pool_side: Largest side of the head's window.
        pool_size: Window (T, H, W) of the head's average, or ``all`` for the plain mean; None takes the window that the
            head of this file describes. Loading a published format sets that format's.
        zero_init: Whether every residual branch of a new model starts at zero (RESNET.ZERO_INIT_FINAL_BN). A training
            of minutes starts faster without.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim * expansion, T, ceil(H/32), ceil(W/32)). A clip has at least 32 pixels in height
    and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 5, 11, 7),
        embed_dim: int = 24,
        expansion: float = 2.25,
        hidden_dim: int = 2048,
        shortcut_norm: bool = True,
        pool_side: int = 7,
        pool_size: PoolSize | None = None,
        zero_init: bool = True,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = int(embed_dim * 8 * expansion)
        side = min(pool_side, -(-min(img_size) // 32))
        self.default_pool_size: Size3d = (num_frames, side, side)
        self.stem = nn.Sequential(
            nn.Conv3d(in_chans, embed_dim, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
            nn.Conv3d(embed_dim, embed_dim, (5, 1, 1), padding=(2, 0, 0), groups=embed_dim, bias=False),
            nn.BatchNorm3d(embed_dim),
            nn.ReLU(inplace=True),
        )

        def make_block(stage: int, block: int) -> Bottleneck:
            dim = embed_dim * 2**stage
            return Bottleneck(
                dim if block or not stage else dim // 2,
                dim,
                inner=int(dim * expansion),
                stride=1 if block else 2,
                excite=block % 2 == 0,
            )

        self.build_stages(depth, make_block)
        if not shortcut_norm:
            self._remove_shortcut_norm()
        self.conv5 = nn.Sequential(
            nn.Conv3d(embed_dim * 8, self.num_features, 1, bias=False),
            nn.BatchNorm3d(self.num_features),
            nn.ReLU(inplace=True),
        )
        self.describe_stages(embed_dim, [(1, step, step) for step in (4, 8, 16, 32)])
        self.feature_info.append(FeatureInfo("conv5", self.num_features, (1, 32, 32)))
        self.head = MlpHead(self.num_features, num_classes, hidden_features=hidden_dim, bias=False, drop_rate=drop_rate)
        self._set_window(self.default_pool_size if pool_size is None else pool_size)
        self.apply(init_conv_weights)
        for module in self.modules():
            if zero_init and isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)

    def _set_window(self, pool_size: PoolSize) -> None:
        self.pool_size: PoolSize = pool_size if pool_size == "all" else (pool_size[0], pool_size[1], pool_size[2])
        if isinstance(self.head, MlpHead):  # a head that pools by attention has no window
            self.head.window = None if self.pool_size == "all" else self.pool_size

    def _remove_shortcut_norm(self) -> None:
        first: Any = self.layer1[0]
        first.downsample = nn.Sequential(first.downsample[0])

    @property
    def shortcut_norm(self) -> bool:
        """Whether the shortcut of the first block has a norm."""
        first: Any = self.layer1[0]
        return len(first.downsample) == 2

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem, the stages and the last convolution."""
        self._check_clip(clip, minimum=(1, 32, 32))
        x = self.run_stages(self.stem(clip_layout(clip)), tap)
        return tap(4, run_blocks([self.conv5], x, recompute=self.grad_checkpointing))

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, every block in order, the last convolution."""
        return {"stem": r"^stem\.", "blocks": [(r"^layer(\d)\.(\d+)\.", None), (r"^conv5\.", (99999,))]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of SlowFast, PyTorchVideo (also of its efficient X3D) and mmaction2 into our keys."""
        if "s1.pathway0_stem.conv_xy.weight" in state:
            name, own = "SlowFast", rename_keys(state, SLOWFAST_RULES)
        elif "blocks.0.conv.conv_xy.weight" in state:
            name, own = "PyTorchVideo", self._with_shortcut_norm(rename_keys(state, PYTORCHVIDEO_RULES))
        elif "s1.pathway0_stem_conv_xy.kernel.conv.weight" in state:
            name, own = "PyTorchVideo efficient", rename_keys(state, EFFICIENT_RULES)
        elif is_mmaction(state) or "conv1_s.conv.weight" in state:
            name, own = "mmaction2", rename_keys(from_mmaction(state), MMACTION_RULES)
        else:
            return "stvid", dict(state)
        key = "head.hidden.weight"  # a 1x1x1 convolution in most layouts
        return name, {**own, key: own[key].flatten(1)} if key in own else own

    def _with_shortcut_norm(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fills in the norm that PyTorchVideo lacks, if this model has it still; `adopt_format` takes it away."""
        prefix = "layer1.0.downsample.1."
        missing = {key: value for key, value in self.state_dict().items() if key.startswith(prefix) and key not in own}
        return {**own, **missing}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depth, and the norm of the first shortcut."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=_NEEDED)

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the head's window that a layout's weights are used with, and PyTorchVideo's first shortcut."""
        windows: dict[str, PoolSize] = {
            "SlowFast": self.default_pool_size,
            "PyTorchVideo": self.default_pool_size,
            "PyTorchVideo efficient": "all",
            "mmaction2": "all",
        }
        changed: dict[str, Any] = {}
        size = windows.get(format_name, hyperparameters.get("pool_size"))
        if size is not None:
            before = self.pool_size
            self._set_window(size)
            if self.pool_size != before:
                changed["pool_size"] = self.pool_size
        if format_name == "PyTorchVideo" and self.shortcut_norm:
            self._remove_shortcut_norm()
            changed["shortcut_norm"] = False
        if changed:
            self.recipe = {**self.recipe, "hyperparameters": {**self.recipe.get("hyperparameters", {}), **changed}}


# --- published keys ---------------------------------------------------------------------------------------------------

_STAGES = (1, 2, 3, 4)
SLOWFAST_RULES = (
    (r"^s1\.pathway0_stem\.conv_xy\.", "stem.0."),
    (r"^s1\.pathway0_stem\.conv\.", "stem.1."),
    (r"^s1\.pathway0_stem\.bn\.", "stem.2."),
    *((rf"^s{stage + 1}\.pathway0_res(\d+)\.", rf"layer{stage}.\1.") for stage in _STAGES),
    (r"\.branch1\.", ".downsample.0."),
    (r"\.branch1_bn\.", ".downsample.1."),
    *((rf"\.branch2\.{'abc'[index]}\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.branch2\.{'abc'[index]}_bn\.", f".norm{index + 1}.") for index in range(3)),
    (r"\.branch2\.se\.", ".se."),
    (r"^head\.conv_5\.", "conv5.0."),
    (r"^head\.conv_5_bn\.", "conv5.1."),
    (r"^head\.lin_5\.", "head.hidden."),
    (r"^head\.projection\.", "head.fc."),
)
PYTORCHVIDEO_RULES = (
    # PyTorchVideo calls the first convolution, that in space, conv_t, and the second, that in time, conv_xy.
    (r"^blocks\.0\.conv\.conv_t\.", "stem.0."),
    (r"^blocks\.0\.conv\.conv_xy\.", "stem.1."),
    (r"^blocks\.0\.norm\.", "stem.2."),
    (r"^blocks\.(\d)\.res_blocks\.(\d+)\.", r"layer\1.\2."),
    (r"\.branch1_conv\.", ".downsample.0."),
    (r"\.branch1_norm\.", ".downsample.1."),
    (r"\.branch2\.norm_b\.0\.", ".norm2."),
    (r"\.branch2\.norm_b\.1\.block\.0\.", ".se.fc1."),
    (r"\.branch2\.norm_b\.1\.block\.2\.", ".se.fc2."),
    *((rf"\.branch2\.conv_{'abc'[index]}\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.branch2\.norm_{'abc'[index]}\.", f".norm{index + 1}.") for index in range(3)),
    (r"^blocks\.5\.pool\.pre_conv\.", "conv5.0."),
    (r"^blocks\.5\.pool\.pre_norm\.", "conv5.1."),
    (r"^blocks\.5\.pool\.post_conv\.", "head.hidden."),
    (r"^blocks\.5\.proj\.", "head.fc."),
)
EFFICIENT_RULES = (
    (r"^s1\.pathway0_stem_conv_xy\.kernel\.conv\.", "stem.0."),
    (r"^s1\.pathway0_stem_conv\.kernel\.conv\.", "stem.1."),
    (r"^s1\.pathway0_stem_conv\.kernel\.bn\.", "stem.2."),
    *((rf"^s{stage + 1}\.pathway0_res(\d+)\.", rf"layer{stage}.\1.") for stage in _STAGES),
    (r"\._res_proj\.kernel\.conv\.", ".downsample.0."),
    (r"\._res_proj\.kernel\.bn\.", ".downsample.1."),
    *((rf"\.layers\.conv_{index}\.kernel\.conv\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.layers\.conv_{index}\.kernel\.bn\.", f".norm{index + 1}.") for index in range(3)),
    (r"\.layers\.se\.se\.block\.0\.", ".se.fc1."),
    (r"\.layers\.se\.se\.block\.2\.", ".se.fc2."),
    (r"^head\.conv_5\.kernel\.conv\.", "conv5.0."),
    (r"^head\.conv_5\.kernel\.bn\.", "conv5.1."),
    (r"^head\.lin_5\.kernel\.conv\.", "head.hidden."),
    (r"^projection\.model\.", "head.fc."),
)
MMACTION_RULES = (
    (r"^conv1_s\.conv\.", "stem.0."),
    (r"^conv1_t\.conv\.", "stem.1."),
    (r"^conv1_t\.bn\.", "stem.2."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"\.se_module\.", ".se."),
    (r"^conv5\.conv\.", "conv5.0."),
    (r"^conv5\.bn\.", "conv5.1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.conv(\d)\.bn\.", r".norm\1."),
    (r"^cls_head\.fc1\.", "head.hidden."),
    (r"^cls_head\.fc2\.", "head.fc."),
)
_NEEDED = ("stem.0.weight", "layer1.0.conv1.weight", "layer1.0.se.fc1.weight", "conv5.0.weight")


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    found: dict[str, Any] = {
        "in_chans": own["stem.0.weight"].shape[1],
        "depth": tuple(count_blocks(own, f"layer{stage}.") for stage in _STAGES),
        "embed_dim": own["stem.0.weight"].shape[0],
        "shortcut_norm": "layer1.0.downsample.1.weight" in own,
    }
    if "head.hidden.weight" in own:
        found["hidden_dim"] = own["head.hidden.weight"].shape[0]
    return found


# --- variants ---------------------------------------------------------------------------------------------------------

# SlowFast, configs/Kinetics/X3D_{XS,S,M,L}.yaml, which test 10 clips of three crops; DATA.MEAN, DATA.STD and
# DATA.TARGET_FPS of slowfast/config/defaults.py. Multiply-adds are those of PyTorchVideo's zoo for these crops, which
# count norms and activations too; M's are the paper's (table 4).
_M = Protocol(frames=16, stride=5, fps=30, short_side=256, crop=256, views="10x3")
_S = _M.replace(frames=13, stride=6, short_side=182, crop=182)
_XS = _S.replace(frames=4, stride=12)
_L = _M.replace(short_side=356, crop=356)
_NORMS = "the zoo's GFLOPs count norms and activations too"

FAMILY = Family(
    model="X3D",
    paper="Feichtenhofer 2020, arXiv:2004.04730",
    small_clip=(4, 48, 48),
    min_clip=(1, 32, 32),
    formats=("SlowFast", "PyTorchVideo", "PyTorchVideo efficient", "mmaction2"),
    tiny={"depth": (1, 2, 2, 1), "embed_dim": 16, "hidden_dim": 64},
    slow_goldens=("ptv_x3d_l__16x312", "ptv_x3d_m__16x224", "x3d_l__16x160", "x3d_m__16x160", "x3d_s__13x160"),
    golden_options={
        "mma2_x3d_m__keys": {"name": "x3d_m"},
        "ptv_efficient_x3d_xs__4x160": {"name": "x3d_xs"},
        "ptv_x3d_l__16x312": {"name": "x3d_l"},
    },
    variants=(
        Variant(
            "x3d_xxs",
            "Small enough to train on two CPU cores; this project's own.",
            Protocol(frames=16, stride=1, short_side=64, crop=64),
            {"depth": (1, 2, 4, 2), "embed_dim": 16, "hidden_dim": 256, "zero_init": False, "drop_rate": 0.0},
            paper="",
            formats=(),
        ),
        Variant(
            "x3d_xs",
            "X3D-XS: 4 frames.",
            _XS,
            {"pool_side": 5},
            params=3.79,
            gflops=0.91,
            gflops_tolerance=0.16,
            note=_NORMS,
        ),
        Variant(
            "x3d_s",
            "X3D-S: 13 frames.",
            _S,
            {"pool_side": 5},
            params=3.79,
            gflops=2.96,
            gflops_tolerance=0.16,
            note=_NORMS,
        ),
        Variant("x3d_m", "X3D-M: 16 frames.", _M, params=3.79, gflops=6.2),
        Variant(
            "x3d_l",
            "X3D-L: 16 frames, twice the depth.",
            _L,
            {"depth": (5, 10, 25, 15), "pool_side": 10},
            params=6.15,
            gflops=26.64,
            gflops_tolerance=0.12,
            note=_NORMS,
        ),
    ),
)
