"""Video ResNets: R3D, MC3, R(2+1)D and CSN, one trunk whose blocks differ in their convolution.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018, arXiv:1711.11248 (R3D,
MC3, R(2+1)D); Tran et al., "Video Classification with Channel-Separated Convolutional Networks", ICCV 2019,
arXiv:1904.02811 (CSN). Official code: facebookresearch/VMZ, pt/vmz/models; torchvision/models/video/resnet.py;
facebookresearch/pytorchvideo, models/csn.py and models/r2plus1d.py.

Shapes, for a clip (B, 3, T, H, W): the stem halves space (the deeper variants pool once more), and stages 2 to 4 halve
time and space. Stage i holds (B, expansion * 64 * 2^i, T/2^i, H/2^(i+1), W/2^(i+1)), half of H and W with the pool.
Sizes are rounded up, so that any clip is taken that is no smaller than the stride in space.

What differs is the convolution (`conv`) that stands where a 2D ResNet has its 3x3 convolution:

- ``3d``: 3x3x3 (R3D);
- ``2d``: 1x3x3, which keeps all frames (stages 2 to 4 of MC3);
- ``2+1d``: 1x3x3 to "mid planes", norm, ReLU, 3x1x1 (R(2+1)D, section 3.5: as many weights as 3x3x3 would have);
- ``1+2d``: 3x1x1, norm, ReLU, 1x3x3, no mid planes (PyTorchVideo's R(2+1)D of 50 layers);
- ``ir``: depth-wise 3x3x3 (interaction-reduced CSN);
- ``ip``: 1x1x1, norm, depth-wise 3x3x3 (interaction-preserved CSN).

Where the published versions disagree, a variant follows the code whose weights it has. torchvision counts the mid
planes once per block, VMZ for each convolution (`block_midplanes`): the second convolution of a block with stride
differs. VMZ has a norm epsilon of 1e-3 (from Caffe2), torchvision and PyTorchVideo 1e-5; PyTorchVideo's heads average
over windows. Since a CSN has weights in both layouts, loading sets `norm_eps` and `pool_size` to those of the layout.
VMZ also sets its norms' momentum to 0.9, which is Caffe2's meaning of torch's 0.1; here it is 0.1.

mmaction2's R(2+1)D of 34 layers (open-mmlab/mmaction2, models/backbones/resnet2plus1d.py and common/conv2plus1d.py) is
another network: 83 mid planes in the stem (`stem_midplanes`), a max pool after it, shortcuts that are split like the
other convolutions (`split_shortcut`), and an epsilon of 1e-5 in the norms between two halves (`middle_eps`), 1e-3 in
the others. `options_of` finds it. Its CSN are VMZ's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from stvid.errors import CheckpointError
from stvid.models.base import StagedModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, shortcut
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.published_names import (
    count_blocks,
    from_mmaction,
    from_vmz_caffe2,
    is_mmaction,
    is_vmz_caffe2,
    read_options,
)
from stvid.protocol import Protocol

__all__ = ["TORCHVISION", "VideoResNet"]

ConvName = Literal["3d", "2d", "2+1d", "1+2d", "ir", "ip"]
Size3d = tuple[int, int, int]
STEM_MIDPLANES = 45  # channels between the two convolutions of the R(2+1)D stem (torchvision, VMZ)


def mid_planes(in_planes: int, planes: int, kernel: int = 3) -> int:
    """Returns the channels between 1 x k x k and 3x1x1 that give as many weights as 3 x k x k (section 3.5)."""
    return (in_planes * planes * 3 * kernel**2) // (in_planes * kernel**2 + planes * 3)


def make_conv(conv: ConvName, in_planes: int, planes: int, stride: Size3d, middle: int) -> nn.Module:
    """Builds the convolution of a block; see the top of this file. `middle` is used by ``2+1d`` alone."""
    time, space = (stride[0], 1, 1), (1, stride[1], stride[2])
    if conv == "3d":
        return nn.Conv3d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
    if conv == "2d":
        return nn.Conv3d(in_planes, planes, (1, 3, 3), stride=stride, padding=(0, 1, 1), bias=False)
    if conv == "2+1d":
        return nn.Sequential(
            nn.Conv3d(in_planes, middle, (1, 3, 3), stride=space, padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, planes, (3, 1, 1), stride=time, padding=(1, 0, 0), bias=False),
        )
    if conv == "1+2d":
        return nn.Sequential(
            nn.Conv3d(in_planes, planes, (3, 1, 1), stride=time, padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
            nn.Conv3d(planes, planes, (1, 3, 3), stride=space, padding=(0, 1, 1), bias=False),
        )
    depthwise = nn.Conv3d(planes, planes, 3, stride=stride, padding=1, groups=planes, bias=False)
    if conv == "ir":
        return depthwise
    if conv == "ip":
        return nn.Sequential(nn.Conv3d(in_planes, planes, 1, bias=False), nn.BatchNorm3d(planes), depthwise)
    raise ValueError(f"conv {conv!r}: must be one of 3d, 2d, 2+1d, 1+2d, ir, ip")


def make_stem(
    stem: Literal["3d", "2d", "2+1d"], in_chans: int, *, pool: bool, midplanes: int = STEM_MIDPLANES
) -> nn.Sequential:
    """Builds the stem: 3x7x7, 1x7x7, or 1x7x7 and 3x1x1, with stride 2 in space; then, with `pool`, a max pool."""
    first, kernel = (midplanes, 1) if stem == "2+1d" else (64, 3 if stem == "3d" else 1)
    layers: list[nn.Module] = [
        nn.Conv3d(in_chans, first, (kernel, 7, 7), stride=(1, 2, 2), padding=(kernel // 2, 3, 3), bias=False),
        nn.BatchNorm3d(first),
        nn.ReLU(inplace=True),
    ]
    if stem == "2+1d":
        layers += [
            nn.Conv3d(first, 64, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
        ]
    if pool:
        layers.append(nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))
    return nn.Sequential(*layers)


def make_split_shortcut(in_planes: int, planes: int, stride: Size3d) -> nn.Module:
    """Builds mmaction2's shortcut of R(2+1)D: 1x1x1 with the stride in space, norm, ReLU, 1x1x1 with that in time."""
    if stride == (1, 1, 1) and in_planes == planes:
        return nn.Identity()
    middle = mid_planes(in_planes, planes, 1)
    split = nn.Sequential(
        nn.Conv3d(in_planes, middle, 1, stride=(1, stride[1], stride[2]), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, planes, 1, stride=(stride[0], 1, 1), bias=False),
    )
    return nn.Sequential(split, nn.BatchNorm3d(planes))


class Block(nn.Module):
    """A residual block: two convolutions, or with `bottleneck` one between two of 1x1x1 (four times the channels)."""

    def __init__(
        self,
        in_planes: int,
        planes: int,
        *,
        conv: ConvName,
        stride: Size3d,
        bottleneck: bool,
        block_midplanes: bool,
        split_shortcut: bool = False,
    ) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        out_planes = planes * 4 if bottleneck else planes
        if bottleneck:
            middle = mid_planes(planes, planes)
            self.conv1 = nn.Sequential(nn.Conv3d(in_planes, planes, 1, bias=False), nn.BatchNorm3d(planes), relu)
            self.conv2 = nn.Sequential(make_conv(conv, planes, planes, stride, middle), nn.BatchNorm3d(planes), relu)
            self.conv3: nn.Module = nn.Sequential(
                nn.Conv3d(planes, out_planes, 1, bias=False), nn.BatchNorm3d(out_planes)
            )
        else:
            middle = mid_planes(in_planes, planes)
            second = middle if block_midplanes else mid_planes(planes, planes)
            self.conv1 = nn.Sequential(make_conv(conv, in_planes, planes, stride, middle), nn.BatchNorm3d(planes), relu)
            self.conv2 = nn.Sequential(make_conv(conv, planes, planes, (1, 1, 1), second), nn.BatchNorm3d(planes))
            self.conv3 = nn.Identity()
        make_shortcut = make_split_shortcut if split_shortcut else shortcut
        self.downsample = make_shortcut(in_planes, out_planes, stride)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_planes, T, H, W) to (B, out_planes, T', H', W')."""
        out = self.conv3(self.conv2(self.conv1(x)))
        out += self.downsample(x)
        return self.relu(out)


def _times(first: Size3d, second: Size3d) -> Size3d:
    return first[0] * second[0], first[1] * second[1], first[2] * second[2]


class VideoResNet(StagedModel):
    """R3D, MC3, R(2+1)D or CSN.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        conv: The convolution of the blocks: one name for all stages, or one for each.
        stem: ``3d``, ``2d`` or ``2+1d``.
        stem_pool: Whether the stem ends with a max pool of stride 2 in space.
        bottleneck: Whether the blocks are bottlenecks.
        stage_strides: (time, height, width) of the first block of each stage.
        block_midplanes: Whether both convolutions of a ``2+1d`` block have the mid planes of the first (torchvision).
        stem_midplanes: Mid planes of a ``2+1d`` stem.
        split_shortcut: Whether shortcuts that change the shape are split in space and time (mmaction2's R(2+1)D).
        middle_eps: Epsilon of the norms between the halves of ``2+1d`` convolutions; None takes `norm_eps`. Loading a
            published format sets that format's.
        norm_eps: Epsilon of the norms; loading a published format sets that format's.
        pool_size: Window (T, H, W) of the head's average; None takes the plain mean. Loading a published format sets
            that format's.
        drop_rate: Dropout before the classifier.

    The features are (B, num_features, T/8, H/16, W/16), rounded up; with the stem's pool H/32 and W/32. A clip has at
    least as many pixels as the stride in space (16; 32 with the stem's pool).
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (112, 112),
        in_chans: int = 3,
        depth: Sequence[int] = (2, 2, 2, 2),
        conv: ConvName | Sequence[ConvName] = "3d",
        stem: Literal["3d", "2d", "2+1d"] = "3d",
        stem_pool: bool = False,
        bottleneck: bool = False,
        stage_strides: Sequence[Size3d] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        block_midplanes: bool = True,
        stem_midplanes: int = STEM_MIDPLANES,
        split_shortcut: bool = False,
        middle_eps: float | None = None,
        norm_eps: float = 1e-5,
        pool_size: Size3d | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        convs: Sequence[ConvName] = (conv,) * 4 if isinstance(conv, str) else conv
        if len(convs) != 4 or len(stage_strides) != 4:
            raise ValueError(f"a video ResNet has four stages: conv {conv}, strides {stage_strides}")
        self.num_classes = num_classes
        self.num_features = 2048 if bottleneck else 512
        self.in_chans = in_chans
        self.stem_kind = stem
        self.stem = make_stem(stem, in_chans, pool=stem_pool, midplanes=stem_midplanes)
        strides: list[Size3d] = [
            (1 if kind == "2d" else time, height, width)
            for kind, (time, height, width) in zip(convs, stage_strides, strict=True)
        ]
        reductions = list(itertools.accumulate(strides, _times, initial=(1, *(4 if stem_pool else 2,) * 2)))[1:]
        self.min_size = reductions[-1][1:]
        expansion = 4 if bottleneck else 1

        def make_block(stage: int, block: int) -> Block:
            planes = 64 * 2**stage
            if block:
                in_planes = planes * expansion
            else:
                in_planes = planes // 2 * expansion if stage else 64
            return Block(
                in_planes,
                planes,
                conv=convs[stage],
                stride=(1, 1, 1) if block else strides[stage],
                bottleneck=bottleneck,
                block_midplanes=block_midplanes,
                split_shortcut=split_shortcut,
            )

        self.build_stages(depth, make_block)
        self.describe_stages(64 * expansion, reductions)
        self.head = LinearHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)
        self._configure(norm_eps, middle_eps, pool_size)

    def _configure(self, norm_eps: float, middle_eps: float | None, pool_size: Size3d | None) -> None:
        self.norm_eps = norm_eps
        self.middle_eps = middle_eps
        self.pool_size = None if pool_size is None else (pool_size[0], pool_size[1], pool_size[2])
        if isinstance(self.head, LinearHead):  # a head that pools by attention has no window
            self.head.window = self.pool_size
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm3d):
                between = re.search(MIDDLE_NORM, name) is not None and middle_eps is not None
                module.eps = middle_eps if between and middle_eps is not None else norm_eps

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem and the stages."""
        self._check_clip(clip, minimum=(1, self.min_size[0], self.min_size[1]))
        return self.run_stages(self.stem(clip_layout(clip)), tap)

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of torchvision, VMZ (the same keys, or Caffe2's blobs), PyTorchVideo and mmaction2.

        Raises:
            CheckpointError: If the weights are of mmaction2's R(2+1)D, and the model is not.
        """
        layout, own = self._own_keys(state)
        stem, built = own.get("stem.0.weight"), self.state_dict()["stem.0.weight"]
        if layout == "mmaction2" and stem is not None and stem.shape[0] != built.shape[0]:
            options = ", ".join(f"{name}={value!r}" for name, value in self.options_of(state).items())
            raise CheckpointError(
                f"the checkpoint is of mmaction2's network, which differs from this one: build the model with {options}"
            )
        return layout, own

    def _own_keys(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        if "blocks.0.conv.weight" in state:
            return "PyTorchVideo", rename_keys(state, PYTORCHVIDEO_RULES)
        if is_vmz_caffe2(state):
            return "VMZ Caffe2", rename_keys(from_vmz_caffe2(state), [(r"^fc\.", "head.fc.")])
        if is_mmaction(state) or "conv1.bn.weight" in state:
            return "mmaction2", _from_mmaction(state)
        if "fc.weight" in state:
            own = {re.sub(r"^fc\.", "head.fc.", key): value for key, value in state.items()}
            return "VMZ" if is_vmz(state) else "torchvision", own
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depth, and how convolutions and shortcuts are split.

        VMZ's R(2+1)D of 18 layers has mid planes for each convolution, torchvision's for each block; mmaction2's of 34
        layers is a network of its own. VMZ's files of 152 layers are of a network without the pool after the stem: so
        converts them utilities/model_conversion, and so are the 329.1 GFLOPs of the model zoo (at 128 pixels), while
        the function of its hub has the pool.
        """
        layout, own = self._own_keys(state)
        options = read_options(_read, own, self.state_dict(), needed=("stem.0.weight",))
        if layout == "mmaction2" and options.get("split_shortcut"):
            options |= {"stem_pool": True, "middle_eps": 1e-5}
        if layout in ("VMZ", "VMZ Caffe2") and "layer1.0.conv2.0.3.weight" in own and "layer1.0.conv3.0.weight" in own:
            options["stem_pool"] = False
        return options

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the epsilons and the head's window that a layout's weights were trained with."""
        split = self.stem_kind == "2+1d"
        published: dict[str, dict[str, Any]] = {
            "torchvision": {"norm_eps": 1e-5, "middle_eps": None, "pool_size": None},
            "VMZ": {"norm_eps": 1e-3, "middle_eps": None, "pool_size": None},
            "VMZ Caffe2": {"norm_eps": 1e-3, "middle_eps": None, "pool_size": None},
            "mmaction2": {"norm_eps": 1e-3, "middle_eps": 1e-5 if split else None, "pool_size": None},
            # models/hub/csn.py, models/r2plus1d.py
            "PyTorchVideo": {"norm_eps": 1e-5, "middle_eps": None, "pool_size": (4, 7, 7)},
        }
        names = ("norm_eps", "middle_eps", "pool_size")
        settings = published.get(format_name, {key: hyperparameters[key] for key in names if key in hyperparameters})
        current = {"norm_eps": self.norm_eps, "middle_eps": self.middle_eps, "pool_size": self.pool_size}
        changed = {key: value for key, value in settings.items() if value != current[key]}
        if changed:
            self._configure(**{**current, **changed})
            self.recipe = {**self.recipe, "hyperparameters": {**self.recipe.get("hyperparameters", {}), **changed}}


# --- published keys ---------------------------------------------------------------------------------------------------

# The norm between the halves of a split convolution, the stem's (if it is split) and a shortcut's among them.
MIDDLE_NORM = r"^stem\.1$|^layer\d\.\d+\.(?:conv\d|downsample)\.0\.1$"


def _from_mmaction(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames mmaction2's CSN and R(2+1)D, whose convolutions carry their norm."""
    split = any(".conv_s." in key for key in state)
    with_pointwise = any(".conv2.1.conv." in key for key in state)  # ip-CSN has 1x1x1 in front of the depth-wise one
    rules = [
        (r"\.conv_s\.", ".0."),
        (r"\.bn_s\.", ".1."),
        (r"\.conv_t\.", ".3."),
        (r"^conv1\.conv\.", "stem." if split else "stem.0."),
        (r"^conv1\.bn\.", "stem.4." if split else "stem.1."),
        (r"\.conv2\.1\.conv\.", ".conv2.0.2."),
        (r"\.conv2\.1\.bn\.", ".conv2.1."),
        (r"\.conv2\.0\.conv\.", ".conv2.0.0." if with_pointwise else ".conv2.0."),
        (r"\.conv2\.0\.bn\.", ".conv2.0.1." if with_pointwise else ".conv2.1."),
        (r"\.(conv\d|downsample)\.conv\.", r".\1.0."),
        (r"\.(conv\d|downsample)\.bn\.", r".\1.1."),
    ]
    return rename_keys(from_mmaction(state), rules)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    options: dict[str, Any] = {"depth": tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5))}
    if "stem.0.weight" in own:
        options["in_chans"] = own["stem.0.weight"].shape[1]
    if "stem.3.weight" in own and own["stem.3.weight"].dim() == 5:
        options["stem_midplanes"] = own["stem.0.weight"].shape[0]
    first, second = own.get("layer2.0.conv1.0.0.weight"), own.get("layer2.0.conv2.0.0.weight")
    if first is not None and second is not None and "layer2.0.conv1.0.3.weight" in own:  # 2+1d in basic blocks
        options["block_midplanes"] = first.shape[0] == second.shape[0]
        options["split_shortcut"] = "layer2.0.downsample.0.3.weight" in own
    return options


PYTORCHVIDEO_RULES = (
    (r"^blocks\.0\.conv\.", "stem.0."),
    (r"^blocks\.0\.norm\.", "stem.1."),
    (r"^blocks\.5\.proj\.", "head.fc."),
    (r"^blocks\.(\d)\.res_blocks\.(\d+)\.", r"layer\1.\2."),
    (r"\.branch1_conv\.", ".downsample.0."),
    (r"\.branch1_norm\.", ".downsample.1."),
    (r"\.branch2\.conv_a\.", ".conv1.0."),
    (r"\.branch2\.norm_a\.", ".conv1.1."),
    (r"\.branch2\.conv_b\.conv_t\.", ".conv2.0.0."),
    (r"\.branch2\.conv_b\.norm\.", ".conv2.0.1."),
    (r"\.branch2\.conv_b\.conv_xy\.", ".conv2.0.3."),
    (r"\.branch2\.conv_b\.", ".conv2.0."),
    (r"\.branch2\.norm_b\.", ".conv2.1."),
    (r"\.branch2\.conv_c\.", ".conv3.0."),
    (r"\.branch2\.norm_c\.", ".conv3.1."),
)


def is_vmz(state: Mapping[str, Tensor]) -> bool:
    """Tells VMZ's weights from torchvision's: they are bottlenecks, or have mid planes for each convolution."""
    if "layer1.0.conv3.0.weight" in state:
        return True
    first, second = state.get("layer2.0.conv1.0.0.weight"), state.get("layer2.0.conv2.0.0.weight")
    return first is not None and second is not None and first.shape[0] != second.shape[0]


# --- variants ---------------------------------------------------------------------------------------------------------

_NORMS = "the zoo's GFLOPs count the norms too"
_CSN_PAPER = "Tran et al. 2019, arXiv:1904.02811"
# torchvision: transforms of the weights (resize 128x171, crop 112, mean and std in transforms/_presets.py), 16 frames
# at 15 frames per second, 5 clips of a video (_docs of the weights).
TORCHVISION = Protocol(
    frames=16,
    stride=1,
    fps=15,
    short_side=128,
    crop=112,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
    views="5x1",
)
# VMZ: the weights named 32frms; the R(2+1)D paper averages 10 clips of the centre crop. The CSN paper takes every
# second of 64 frames and averages 10 clips of three 256-pixel crops, for which its multiply-adds are counted.
_VMZ = TORCHVISION.replace(frames=32, fps=None, views="10x1")
_CSN_PROTOCOL = _VMZ.replace(stride=2, short_side=256, crop=256, views="10x3")
# PyTorchVideo: SlowFast's configs/Kinetics/pytorchvideo/{R2PLUS1D_16x4_R50,CSN_32x2_R101}.yaml, tested in 10x3 views of
# 256 pixels. The zoo's multiply-adds count the norms too (2 to 3% more than convolutions alone).
_PYTORCHVIDEO = Protocol(frames=16, stride=4, fps=30, short_side=256, crop=256, views="10x3")


_D50 = (3, 4, 6, 3)
_D101 = (3, 4, 23, 3)
_D152 = (3, 8, 36, 3)
_R2PLUS1D = {"conv": "2+1d", "stem": "2+1d"}
_CSN = {"bottleneck": True, "stem_pool": True, "norm_eps": 1e-3}

FAMILY = Family(
    model="VideoResNet",
    paper="Tran et al. 2018, arXiv:1711.11248",
    small_clip=(4, 32, 32),
    min_clip=(1, 16, 16),
    formats=("VMZ", "VMZ Caffe2", "mmaction2"),
    parent="resnet",
    parent_of=("r3d_18", "mc3_18"),  # the others split their convolutions or separate their channels
    tiny={"depth": (1, 2, 1, 1)},
    slow_goldens=(
        "ip_csn_152__16x112",
        "ptv_csn_r101__32x224",
        "ptv_r2plus1d_r50__16x224",
        "r2plus1d_18__16x112",
        "r2plus1d_34__16x64",
        "r2plus1d_34__8x112",
        "tv_mc3_18__16x112",
        "tv_r3d_18__16x112",
    ),
    variants=(
        Variant(
            "r3d_18",
            "R3D of 18 layers (torchvision).",
            TORCHVISION,
            params=33.37,
            gflops=40.7,
            formats=("torchvision", "VMZ Caffe2"),
        ),
        Variant(
            "mc3_18",
            "MC3 of 18 layers (torchvision): 3x3x3 in the first stage, 1x3x3 in the others.",
            TORCHVISION,
            {"conv": ("3d", "2d", "2d", "2d")},
            params=11.7,
            gflops=43.34,
            formats=("torchvision", "VMZ Caffe2"),
        ),
        Variant(
            "r2plus1d_18",
            "R(2+1)D of 18 layers (torchvision).",
            TORCHVISION,
            _R2PLUS1D,
            params=31.5,
            gflops=40.52,
            formats=("torchvision", "VMZ Caffe2"),
        ),
        Variant(
            "r2plus1d_34",
            "R(2+1)D of 34 layers (VMZ).",
            _VMZ,
            {**_R2PLUS1D, "depth": _D50, "block_midplanes": False, "norm_eps": 1e-3},
            params=63.7,
            gflops=152.0,
        ),
        Variant(
            "r2plus1d_50",
            "R(2+1)D of 50 layers (PyTorchVideo): time before space, no mid planes, space halved in stage 1 too.",
            _PYTORCHVIDEO,
            {
                "depth": _D50,
                "conv": "1+2d",
                "stem": "2d",
                "bottleneck": True,
                "stage_strides": ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
                "pool_size": (4, 7, 7),
                "drop_rate": 0.5,
            },
            params=28.1,
            gflops=76.45,
            formats=("PyTorchVideo",),
            note=_NORMS,
            gflops_tolerance=0.02,
            min_clip=(1, 32, 32),
        ),
        Variant(
            "r2plus1d_152",
            "R(2+1)D of 152 layers (VMZ).",
            _VMZ,
            {**_R2PLUS1D, "depth": _D152, "bottleneck": True, "stem_pool": True, "norm_eps": 1e-3},
            params=118.2,
            min_clip=(1, 32, 32),
        ),
        Variant(
            "ir_csn_50",
            "Interaction-reduced CSN of 50 layers.",
            _CSN_PROTOCOL,
            {**_CSN, "conv": "ir", "depth": _D50},
            paper=_CSN_PAPER,
            formats=("VMZ", "VMZ Caffe2", "PyTorchVideo", "mmaction2"),
            min_clip=(1, 32, 32),
        ),
        Variant(
            "ir_csn_101",
            "Interaction-reduced CSN of 101 layers (PyTorchVideo's csn_r101).",
            _PYTORCHVIDEO.replace(frames=32, stride=2),
            {**_CSN, "conv": "ir", "depth": _D101},
            params=22.21,
            gflops=75.62,
            paper=_CSN_PAPER,
            formats=("VMZ", "VMZ Caffe2", "PyTorchVideo", "mmaction2"),
            note=_NORMS,
            gflops_tolerance=0.03,
            min_clip=(1, 32, 32),
            same_as="ir_csn_50",
        ),
        Variant(
            "ir_csn_152",
            "Interaction-reduced CSN of 152 layers (VMZ).",
            _CSN_PROTOCOL,
            {**_CSN, "conv": "ir", "depth": _D152},
            params=29.7,
            gflops=97.0,
            paper=_CSN_PAPER,
            formats=("VMZ", "VMZ Caffe2", "PyTorchVideo", "mmaction2"),
            min_clip=(1, 32, 32),
            same_as="ir_csn_50",
        ),
        Variant(
            "ip_csn_50",
            "Interaction-preserved CSN of 50 layers.",
            _CSN_PROTOCOL,
            {**_CSN, "conv": "ip", "depth": _D50},
            paper=_CSN_PAPER,
            min_clip=(1, 32, 32),
        ),
        Variant(
            "ip_csn_101",
            "Interaction-preserved CSN of 101 layers.",
            _CSN_PROTOCOL,
            {**_CSN, "conv": "ip", "depth": _D101},
            paper=_CSN_PAPER,
            min_clip=(1, 32, 32),
            same_as="ip_csn_50",
        ),
        Variant(
            "ip_csn_152",
            "Interaction-preserved CSN of 152 layers (VMZ).",
            _CSN_PROTOCOL,
            {**_CSN, "conv": "ip", "depth": _D152},
            params=33.0,
            gflops=108.8,
            paper=_CSN_PAPER,
            min_clip=(1, 32, 32),
            same_as="ip_csn_50",
        ),
    ),
)
