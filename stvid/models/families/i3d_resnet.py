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

mmaction2's networks of these names are other functions (open-mmlab/mmaction2, models/backbones/resnet3d.py and c2d.py,
and `NonLocalNd` of mmcv). The head takes the plain mean. Stem and pool of I3D halve time, too; the pool of C2D does not
pad. Non-local blocks pool keys and values after their projections instead of before, and those of I3D do not scale the
scores. None of this shows in the shapes: loading mmaction2's files sets it, except where an argument says otherwise.
Two of its files need one: C2D without the pool in time (``time_pool=False, stem_pool_padding=1``), and Non-local I3D
with ``nonlocal_mode="dot_product"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import StagedModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, shortcut
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.nonlocal_block import NonLocal, NonlocalMode, NonlocalPool
from stvid.models.published_names import (
    count_blocks,
    from_mmaction,
    from_slowfast_caffe2,
    is_mmaction,
    is_slowfast_caffe2,
    read_options,
)
from stvid.protocol import Protocol

__all__ = ["InflatedResNet"]

Size3d = tuple[int, int, int]


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
        nonlocal_mode: NonlocalMode | None,
        nonlocal_bias: bool = True,
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
        self.nonlocal_block = (
            nn.Identity() if nonlocal_mode is None else NonLocal(dim, mode=nonlocal_mode, bias=nonlocal_bias)
        )

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
        nonlocal_mode: ``softmax``, ``dot_product`` or ``gaussian``.
        nonlocal_bias: Whether the last convolution of a non-local block has a bias (SlowFast), or not (mmaction2).
        pool_size: Window (T, H, W) of the head's average, or ``all`` for the plain mean; None takes the window that the
            head of this file describes.
        stem_stride: Stride of the stem's convolution in time. None takes 1, or what a published layout has when its
            weights are loaded; so do the four arguments below.
        stem_pool_stride: Stride of the stem's pool in time; None takes 1.
        stem_pool_padding: Padding of the stem's pool in space, 0 or 1; None takes 1.
        nonlocal_pool: Where non-local blocks pool: ``before``, ``after`` or ``none``; None takes ``before``.
        nonlocal_scale: Whether ``softmax`` scales the scores; None takes True.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T/2 with `time_pool`, ceil(H/32), ceil(W/32)), with strides of the stem in time
    fewer frames. A clip has at least 32 pixels in height and width, and with `time_pool` 2 frames that reach it.
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
        nonlocal_mode: NonlocalMode = "softmax",
        nonlocal_bias: bool = True,
        pool_size: Size3d | Literal["all"] | None = None,
        stem_stride: int | None = None,
        stem_pool_stride: int | None = None,
        stem_pool_padding: int | None = None,
        nonlocal_pool: NonlocalPool | None = None,
        nonlocal_scale: bool | None = None,
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
        self.time_pool = time_pool
        self.clip = (num_frames, min(img_size))
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
                nonlocal_bias=nonlocal_bias,
            )

        self.build_stages(depth, make_block)
        self.head = LinearHead(self.num_features, num_classes, drop_rate=drop_rate)
        given = {
            "stem_stride": stem_stride,
            "stem_pool_stride": stem_pool_stride,
            "stem_pool_padding": stem_pool_padding,
            "nonlocal_pool": nonlocal_pool,
            "nonlocal_scale": nonlocal_scale,
        }
        self.given = {name: value for name, value in given.items() if value is not None}
        self.settings: dict[str, Any] = {}
        self._configure({**SLOWFAST_SETTINGS, **self.given})
        self._set_window(self.default_pool_size if pool_size is None else pool_size)
        self.apply(init_conv_weights)
        self._init_branches()

    def _configure(self, settings: Mapping[str, Any]) -> None:
        """Applies the settings that no tensor shows, of which a published layout has its own."""
        if settings["stem_pool_padding"] not in (0, 1):
            raise ValueError(f"stem_pool_padding {settings['stem_pool_padding']}: must be 0 or 1")
        self.settings = dict(settings)
        stem: Any = self.stem
        stem[0].stride = (settings["stem_stride"], 2, 2)
        stem[3].stride = (settings["stem_pool_stride"], 2, 2)
        stem[3].padding = (0, settings["stem_pool_padding"], settings["stem_pool_padding"])
        for module in self.modules():
            if isinstance(module, NonLocal):
                module.pool, module.scale = settings["nonlocal_pool"], settings["nonlocal_scale"]
        self.stem_time = settings["stem_stride"] * settings["stem_pool_stride"]
        self.min_frames = self.stem_time + 1 if self.time_pool else 1
        time = self.stem_time * (2 if self.time_pool else 1)
        self.describe_stages(
            self.num_features // 8, [(self.stem_time, 4, 4), (time, 8, 8), (time, 16, 16), (time, 32, 32)]
        )

    @property
    def default_pool_size(self) -> Size3d:
        """The window that SlowFast makes from the clip."""
        frames, size = self.clip
        side = min(7, max(1, size // 32))
        return max(1, frames // self.feature_info[-1].reduction[0]), side, side

    def _set_window(self, pool_size: Size3d | Literal["all"]) -> None:
        if isinstance(self.head, LinearHead):  # a head that pools by attention has no window
            self.head.window = None if pool_size == "all" else (pool_size[0], pool_size[1], pool_size[2])

    def _init_branches(self) -> None:
        """Starts every residual branch at zero (SlowFast: RESNET.ZERO_INIT_FINAL_BN)."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)
            elif isinstance(module, NonLocal):
                module.start_as_identity()

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages, with the pool in time after the first."""
        self._check_clip(clip, minimum=(self.min_frames, 32, 32))
        x = self.run_stage(1, self.stem(clip_layout(clip)), tap)
        if self.time_pool:
            x = F.max_pool3d(x, (2, 1, 1))
        for number in (2, 3, 4):
            x = self.run_stage(number, x, tap)
        return x

    def token_grid(self, clip_shape: Sequence[int]) -> Size3d:
        """Returns the cells of the features; the pool in time drops an odd frame, one without padding odd pixels."""
        time, height, width = clip_shape[-3:]
        for step in (self.settings["stem_stride"], self.settings["stem_pool_stride"]):
            time = -(-time // step)

        def cells(size: int) -> int:
            pooled = ((size + 1) // 2 + 2 * self.settings["stem_pool_padding"] - 3) // 2 + 1
            return -(-pooled // 8)

        return time // 2 if self.time_pool else time, cells(height), cells(width)

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of SlowFast (also Caffe2's blobs), PyTorchVideo and mmaction2 into our keys."""
        if is_slowfast_caffe2(state):
            return "SlowFast Caffe2", rename_keys(from_slowfast_caffe2(state), SLOWFAST_RULES)
        if "s1.pathway0_stem.conv.weight" in state:
            return "SlowFast", rename_keys(state, SLOWFAST_RULES)
        if is_mmaction(state) or "conv1.conv.weight" in state:
            own = rename_keys(from_mmaction(state), MMACTION_RULES)
            own = {key: value.unsqueeze(2) if value.dim() == 4 else value for key, value in own.items()}
            return "mmaction2", self._with_biases(own)
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

    def _with_biases(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the biases of zero that this model's non-local blocks have and mmaction2's have not."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, NonLocal)]
        for name in blocks:
            weight = own.get(f"{name}.out.weight")
            if weight is not None and self.get_submodule(f"{name}.out").bias is not None:
                own.setdefault(f"{name}.out.bias", weight.new_zeros(weight.shape[0]))
        return own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depth, kernels in time, non-local blocks, and mmaction2's settings.

        The head's window of mmaction2 and PyTorchVideo comes with the layout when the weights are loaded.
        """
        layout, own = self.convert_checkpoint(state)
        if layout == "mmaction2":
            own = {key: value for key, value in own.items() if not key.endswith(".nonlocal_block.out.bias")}
        built = self.state_dict()
        options = read_options(_read, own, built, needed=("stem.0.weight", "layer1.0.conv1.weight"))
        if options.pop("stem_kernel", None) is not None:
            return {}  # another model, whose pools do not show
        kernels = options.pop("time_kernels", None)
        if kernels is not None and built["stem.0.weight"].shape[2] > 1 and not _repeat(_read(built), kernels):
            options["time_kernels"] = kernels
        if layout == "mmaction2" and "stem.0.weight" in own:
            found = _mmaction_settings(own)
            options |= {name: value for name, value in found.items() if value != self.settings[name]}
        return options

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the head's window that a layout's weights are used with, and mmaction2's other settings."""
        windows: dict[str, Size3d | Literal["all"]] = {
            "SlowFast": self.default_pool_size,
            "SlowFast Caffe2": self.default_pool_size,
            "PyTorchVideo": (8 // (2 if self.time_pool else 1), 7, 7),
            "mmaction2": "all",
        }
        changed: dict[str, Any] = {}
        settings = {**SLOWFAST_SETTINGS, **self.given}
        if format_name == "mmaction2":
            settings |= {**_mmaction_settings(self.state_dict()), **self.given}
        elif format_name == "stvid":
            settings = {key: hyperparameters.get(key, value) for key, value in self.settings.items()}
        if settings != self.settings:
            changed = {key: value for key, value in settings.items() if value != self.settings[key]}
            self._configure(settings)
        size = windows.get(format_name, hyperparameters.get("pool_size"))
        if size is not None and isinstance(self.head, LinearHead):
            before = self.head.window
            self._set_window(size)
            if self.head.window != before:
                changed["pool_size"] = size if size == "all" else tuple(size)
        if changed:
            self.recipe = {**self.recipe, "hyperparameters": {**self.recipe.get("hyperparameters", {}), **changed}}


# --- published keys ---------------------------------------------------------------------------------------------------

SLOWFAST_SETTINGS: dict[str, Any] = {
    "stem_stride": 1,
    "stem_pool_stride": 1,
    "stem_pool_padding": 1,
    "nonlocal_pool": "before",
    "nonlocal_scale": True,
}


def _mmaction_settings(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the settings of mmaction2's network whose kernels a state in our keys has.

    I3D, whose stem sees five frames, has strides of 2 in time there, but for the "heavy" one, whose blocks all see
    three frames. C2D is told by its kernels of one frame.
    """
    stem = own["stem.0.weight"].shape[2]
    kernels = {kernel for stage in _read(own)["time_kernels"] for kernel in stage}
    settings: dict[str, Any] = {"nonlocal_pool": "after", "nonlocal_scale": stem == 1}
    if not any(".nonlocal_block." in key for key in own):
        settings = {}
    if stem == 1 and kernels == {1}:
        return {**settings, "stem_pool_padding": 0}
    stride = 2 if stem > 1 and kernels != {3} else 1
    return {**settings, "stem_stride": stride, "stem_pool_stride": stride}


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    depth = tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5))
    kernels, nonlocal_blocks, modes = [], [], set()
    for stage, blocks in enumerate(depth, start=1):
        names = [f"layer{stage}.{block}" for block in range(blocks)]
        found = [own[f"{name}.conv1.weight"].shape[2] for name in names if f"{name}.conv1.weight" in own]
        kernels.append(tuple(found))
        after = tuple(block for block, name in enumerate(names) if f"{name}.nonlocal_block.g.weight" in own)
        nonlocal_blocks.append(after)
        modes |= {f"{names[block]}.nonlocal_block.theta.weight" in own for block in after}
    options: dict[str, Any] = {
        "depth": depth,
        "time_kernels": tuple(kernels),
        "nonlocal_blocks": tuple(nonlocal_blocks),
    }
    if "stem.0.weight" in own:
        stem = own["stem.0.weight"]
        options |= {"in_chans": stem.shape[1], "stem_kernel": stem.shape[2], "embed_dim": 4 * stem.shape[0]}
    if modes and not any(key.endswith(".nonlocal_block.out.bias") for key in own):
        options["nonlocal_bias"] = False
    return {**options, "nonlocal_mode": "gaussian"} if modes == {False} else options


def _repeat(built: Mapping[str, Any], kernels: Sequence[Sequence[int]]) -> bool:
    """Tells whether kernels are those of a model, whose stages may be longer or shorter."""
    for pattern, found in zip(built["time_kernels"], kernels, strict=True):
        if any(kernel != pattern[block % 2 if block >= len(pattern) else block] for block, kernel in enumerate(found)):
            return False
    return True


MMACTION_RULES = (
    (r"^conv1\.conv\.", "stem.0."),
    (r"^conv1\.bn\.", "stem.1."),
    (r"^(layer\d\.\d+)\.block\.", r"\1."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"\.conv([123])\.conv\.", r".conv\1."),
    (r"\.conv([123])\.bn\.", r".norm\1."),
    (r"\.non_local_block\.conv_out\.conv\.", ".nonlocal_block.out."),
    (r"\.non_local_block\.conv_out\.bn\.", ".nonlocal_block.norm."),
    (r"\.non_local_block\.(g|theta|phi)\.(?:0\.)?conv\.", r".nonlocal_block.\1."),
)
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
    formats=("SlowFast", "SlowFast Caffe2", "PyTorchVideo", "mmaction2"),
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
            formats=("SlowFast", "SlowFast Caffe2", "mmaction2"),
        ),
        Variant(
            "i3d_nl_r101",
            "Non-local I3D of 101 layers.",
            _8X8,
            {**_NONLOCAL, "depth": (3, 4, 23, 3)},
            params=59.1,
            formats=("SlowFast", "SlowFast Caffe2", "mmaction2"),
            same_as="i3d_nl_r50",
        ),
    ),
)
