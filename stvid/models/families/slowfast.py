"""SlowFast: a slow pathway for what is seen, and a fast, thin one for how it moves.

Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019, arXiv:1812.03982. Official code:
facebookresearch/SlowFast, slowfast/models/video_model_builder.py (`SlowFast`), slowfast/datasets/utils.py
(`pack_pathway_output`) and configs/Kinetics; facebookresearch/pytorchvideo, pytorchvideo/models/slowfast.py. Another
function of this name: open-mmlab/mmaction2, mmaction/models/backbones/resnet3d_slowfast.py.

Shapes, for a clip (B, 3, T, H, W), which is that of the fast pathway; the slow one takes T/alpha of its frames. Both
are ResNets of bottlenecks that never reduce time; stem and max pool divide space by 4, stages 2 to 4 by 2 each. Stage i
of the slow pathway holds (B, 256 * 2^i, T/alpha, H/2^(i+2), W/2^(i+2)); the fast one has an eighth of the channels, and
all T frames. After the stem and the first three stages, a lateral convolution of stride alpha in time brings the fast
maps to the slow frames, with twice their channels; they stand behind the slow ones.

The models differ in alpha (8 for 4x16, else 4), in the lateral kernel, in depth, and in the blocks whose first
convolution sees three frames: all of the fast pathway and those of stages 3 and 4 of the slow one, but at most as many
in a stage as `temporal_blocks` says. The ResNet-101 of the paper has those of a ResNet-50; PyTorchVideo's and the
config SLOWFAST_8x8_R101_101_101 have all 23 in stage 3: ``temporal_blocks=(3, 4, 23, 3)``.

The head averages each pathway over windows at stride 1, then over the windows, which are as in i3d_resnet.py.

mmaction2's SlowFast has laterals without norm and ReLU (``lateral_norm=False``, which `options_of` reads off its
files), and the fast channels first in the head. It takes every alpha-th frame for the slow pathway (`slow_frames`) and
averages over the whole map, which loading its files sets. Its ResNet-101 for 4x16 has a fast pathway of 50 layers
(`fast_depth`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, run_blocks
from stvid.models.families.i3d_resnet import Bottleneck
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.nonlocal_block import NonLocal, NonlocalMode
from stvid.models.published_names import (
    count_blocks,
    from_mmaction,
    from_slowfast_caffe2,
    is_mmaction,
    is_slowfast_caffe2,
    read_options,
)
from stvid.protocol import Protocol

__all__ = ["SlowFast", "slow_indices"]

Size3d = tuple[int, int, int]
PoolSize = Size3d | Literal["all"]
SlowFrames = Literal["even", "stride"]
STAGES = (1, 2, 3, 4)
SLOW_KERNELS = (1, 1, 3, 3)  # frames that the first convolution of a block of each stage sees
FAST_KERNELS = (3, 3, 3, 3)


def _single(x: float) -> float:
    """Rounds a number to the precision of float32, by Veltkamp's splitting."""
    scaled = x * (2**29 + 1)
    return scaled - (scaled - x)


def slow_indices(frames: int, count: int) -> list[int]:
    """Returns which frames the slow pathway takes: evenly spread from the first to the last.

    SlowFast computes ``torch.linspace(0, frames - 1, count).long()``, in float32; this rounds as it does, so that no
    index differs, on whatever device the model runs.

    Args:
        frames: Frames of the clip.
        count: Frames of the slow pathway.
    """
    if count == 1:
        return [0]
    step = _single((frames - 1) / (count - 1))
    values = [step * place if place < count // 2 else frames - 1 - step * (count - 1 - place) for place in range(count)]
    return [int(_single(value)) for value in values]


class FrameMean(nn.Module):
    """Averages every `alpha` frames; (B, C, T, H, W) to (B, C, T/alpha, H, W)."""

    def __init__(self, alpha: int) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Applies the average."""
        return x.unflatten(2, (-1, self.alpha)).mean(3)


class Pathways(nn.Module):
    """The parts of both pathways that stand side by side, and what brings the fast one's maps to the slow one.

    Args:
        slow: Blocks of the slow pathway.
        fast: Blocks of the fast pathway.
        lateral: Maps fast maps (B, C, T, H, W) to (B, C', T/alpha, H, W).
    """

    def __init__(self, slow: nn.Sequential, fast: nn.Sequential, lateral: nn.Module) -> None:
        super().__init__()
        self.slow, self.fast, self.lateral = slow, fast, lateral

    def forward(self, slow: Tensor, fast: Tensor, *, recompute: bool = False) -> tuple[Tensor, Tensor]:
        """Returns the slow maps with the lateral ones behind them, and the fast maps."""
        slow = run_blocks(self.slow, slow, recompute=recompute)
        fast = run_blocks(self.fast, fast, recompute=recompute)
        return torch.cat((slow, self.lateral(fast)), dim=1), fast


def make_stem(in_chans: int, dim: int, time_kernel: int) -> nn.Sequential:
    """Builds the stem of one pathway: a kx7x7 convolution of stride 2 in space, norm, ReLU, max pool in space."""
    padding = (time_kernel // 2, 3, 3)
    return nn.Sequential(
        nn.Conv3d(in_chans, dim, (time_kernel, 7, 7), stride=(1, 2, 2), padding=padding, bias=False),
        nn.BatchNorm3d(dim),
        nn.ReLU(inplace=True),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    )


def make_blocks(
    stage: int,
    depth: int,
    *,
    widths: tuple[int, int],
    time_kernel: int,
    temporal: int,
    nonlocal_blocks: Sequence[Sequence[int]] = ((), (), (), ()),
    nonlocal_mode: NonlocalMode = "softmax",
) -> nn.Sequential:
    """Builds a stage of one pathway: `depth` blocks, the first `temporal` of which see `time_kernel` frames.

    Args:
        stage: Number of the stage, from 0.
        depth: Blocks.
        widths: Channels before and after it.
        time_kernel: Frames that the first convolution of a block sees.
        temporal: How many of the first blocks see so many; the others see one.
        nonlocal_blocks: For each stage, the blocks that end with a non-local block.
        nonlocal_mode: As in `NonLocal`.
    """
    return nn.Sequential(
        *(
            Bottleneck(
                widths[min(block, 1)],
                widths[1],
                time_kernel=time_kernel if block < temporal else 1,
                stride=2 if stage and not block else 1,
                nonlocal_mode=nonlocal_mode if block in nonlocal_blocks[stage] else None,
            )
            for block in range(depth)
        )
    )


class SlowFast(VideoModel):
    """SlowFast.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the head's window: the weights do not depend on it.
        img_size: (height, width) in pixels, for the head's window.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        fast_depth: Blocks of the four stages of the fast pathway; None takes `depth`.
        embed_dim: Channels of the first stage of the slow pathway.
        channel_ratio: Channels of the slow pathway over those of the fast one.
        alpha: Frames of the fast pathway for each of the slow one.
        fusion_kernel: Frames that a lateral convolution sees.
        lateral_norm: Whether a norm and a ReLU follow a lateral convolution.
        temporal_blocks: For each stage, how many of the first blocks may see several frames.
        nonlocal_blocks: For each stage, the blocks of the slow pathway that end with a non-local block.
        nonlocal_mode: ``softmax``, ``dot_product`` or ``gaussian``.
        slow_frames: The frames of the slow pathway: ``even`` spreads them from the first to the last, ``stride`` takes
            every alpha-th. Loading a published format sets that format's.
        pool_size: Window (T, H, W) of the head's average, at the slow pathway's frames, or ``all`` for the plain mean;
            None takes the window that the head of this file describes. Loading a published format sets that format's.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim * (1 + 1 / channel_ratio), T/alpha, ceil(H/32), ceil(W/32)): the slow maps, and
    behind them the fast ones, averaged over the alpha frames of each slow one, so that their mean over time stays what
    it is. The other intermediate results are what the next stage of the slow pathway sees: its maps, with the lateral
    ones behind them. A clip has a multiple of alpha frames, and at least 32 pixels in height and width.
    """

    layer1: Pathways
    layer2: Pathways
    layer3: Pathways
    layer4: Pathways

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 32,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        fast_depth: Sequence[int] | None = None,
        embed_dim: int = 256,
        channel_ratio: int = 8,
        alpha: int = 4,
        fusion_kernel: int = 7,
        lateral_norm: bool = True,
        temporal_blocks: Sequence[int] = (3, 4, 6, 3),
        nonlocal_blocks: Sequence[Sequence[int]] = ((), (), (), ()),
        nonlocal_mode: NonlocalMode = "softmax",
        slow_frames: SlowFrames = "even",
        pool_size: PoolSize | None = None,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        depths = (tuple(depth), tuple(depth if fast_depth is None else fast_depth))
        for key, value in {
            "depth": depths[0],
            "fast_depth": depths[1],
            "temporal_blocks": temporal_blocks,
            "nonlocal_blocks": nonlocal_blocks,
        }.items():
            if len(value) != 4:
                raise ValueError(f"SlowFast has four stages: {key} {tuple(value)} needs four entries")
        if slow_frames not in get_args(SlowFrames):
            raise ValueError(f"slow_frames {slow_frames!r}: must be even or stride")
        if alpha < 1 or num_frames % alpha:
            raise ValueError(f"num_frames {num_frames}: SlowFast takes a multiple of {alpha} frames (alpha)")
        if embed_dim % (4 * channel_ratio):
            raise ValueError(f"embed_dim {embed_dim} is no multiple of 4 * channel_ratio, {4 * channel_ratio}")
        self.num_classes, self.in_chans, self.alpha = num_classes, in_chans, alpha
        self.slow_frames: SlowFrames = slow_frames
        self.clip_size = (num_frames, min(img_size))
        dims = (embed_dim, embed_dim // channel_ratio)
        self.num_features = 8 * sum(dims)

        def lateral(dim: int) -> nn.Module:
            padding = (fusion_kernel // 2, 0, 0)
            kernel, stride = (fusion_kernel, 1, 1), (alpha, 1, 1)
            conv = nn.Conv3d(dim, 2 * dim, kernel, stride=stride, padding=padding, bias=False)
            layers = [nn.BatchNorm3d(2 * dim), nn.ReLU(inplace=True)] if lateral_norm else []
            return nn.Sequential(conv, *layers)

        slow_stem, fast_stem = make_stem(in_chans, dims[0] // 4, 1), make_stem(in_chans, dims[1] // 4, 5)
        self.stem = Pathways(slow_stem, fast_stem, lateral(dims[1] // 4))
        options: list[dict[str, Any]] = [{"nonlocal_blocks": nonlocal_blocks, "nonlocal_mode": nonlocal_mode}, {}]
        widths = (dims[0] // 4 + dims[1] // 2, dims[1] // 4)  # channels that the next stage of each pathway sees
        for stage in range(4):
            slow, fast = (
                make_blocks(
                    stage,
                    depths[side][stage],
                    widths=(widths[side], dims[side] * 2**stage),
                    time_kernel=(SLOW_KERNELS, FAST_KERNELS)[side][stage],
                    temporal=temporal_blocks[stage],
                    **options[side],
                )
                for side in (0, 1)
            )
            widths = ((dims[0] + 2 * dims[1]) * 2**stage, dims[1] * 2**stage)
            last = FrameMean(alpha) if stage == 3 else lateral(widths[1])
            self.add_module(f"layer{stage + 1}", Pathways(slow, fast, last))
        self.feature_info = [
            FeatureInfo(f"layer{stage}", (dims[0] + (1 if stage == 4 else 2) * dims[1]) * 2 ** (stage - 1), reduction)
            for stage, reduction in zip(STAGES, [(alpha, side, side) for side in (4, 8, 16, 32)], strict=True)
        ]
        self.head = LinearHead(self.num_features, num_classes, drop_rate=drop_rate)
        self._set_window(self.default_pool_size if pool_size is None else pool_size)
        self.apply(init_conv_weights)
        self._init_branches()

    @property
    def default_pool_size(self) -> Size3d:
        """The window that SlowFast makes from the clip and its training crop, which is 224 pixels at most."""
        frames, size = self.clip_size
        side = min(7, max(1, size // 32))
        return frames // self.alpha, side, side

    def _set_window(self, pool_size: PoolSize) -> None:
        self.pool_size: PoolSize = pool_size if pool_size == "all" else (pool_size[0], pool_size[1], pool_size[2])
        if isinstance(self.head, LinearHead):  # a head that pools by attention has no window
            self.head.window = None if self.pool_size == "all" else self.pool_size

    def _init_branches(self) -> None:
        """Starts every residual branch at zero (SlowFast: RESNET.ZERO_INIT_FINAL_BN)."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)
            elif isinstance(module, NonLocal):
                module.start_as_identity()

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs both pathways, stage by stage."""
        self._check_clip(clip, minimum=(self.alpha, 32, 32))
        if clip.shape[2] % self.alpha:
            raise ValueError(f"SlowFast takes a multiple of {self.alpha} frames (alpha), not {clip.shape[2]}")
        slow, fast = self.stem(clip_layout(self.slow_clip(clip)), clip_layout(clip))
        for number, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            slow, fast = layer(slow, fast, recompute=self.grad_checkpointing)
            slow = tap(number, slow)
        return slow

    def slow_clip(self, clip: Tensor) -> Tensor:
        """Returns the frames of the slow pathway; (B, C, T, H, W) to (B, C, T/alpha, H, W)."""
        if self.slow_frames == "stride":
            return clip[:, :, :: self.alpha]
        frames = clip.shape[2]
        return torch.cat([clip[:, :, at : at + 1] for at in slow_indices(frames, frames // self.alpha)], dim=2)

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block, those of both pathways together, and the laterals."""
        return {
            "stem": r"^stem\.",
            "blocks": [(r"^layer(\d)\.(?:slow|fast)\.(\d+)\.", None), (r"^layer(\d)\.lateral\.", (99999,))],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of SlowFast (also Caffe2's blobs), PyTorchVideo and mmaction2 into our keys."""
        if is_slowfast_caffe2(state):
            return "SlowFast Caffe2", rename_keys(from_slowfast_caffe2(state), SLOWFAST_RULES)
        if "s1.pathway0_stem.conv.weight" in state:
            return "SlowFast", rename_keys(state, SLOWFAST_RULES)
        if "blocks.0.multipathway_blocks.0.conv.weight" in state:
            return "PyTorchVideo", rename_keys(state, PYTORCHVIDEO_RULES)
        if is_mmaction(state) or "slow_path.conv1.conv.weight" in state:
            own = rename_keys(from_mmaction(state), MMACTION_RULES)
            weight, fast = own.get("head.fc.weight"), own.get("layer4.fast.0.norm3.weight")
            if weight is not None and fast is not None:
                own["head.fc.weight"] = torch.cat((weight[:, len(fast) :], weight[:, : len(fast)]), dim=1)
            return "mmaction2", own
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depths, kernels in time, laterals, and non-local blocks.

        The stride between the pathways, `alpha`, does not show. What mmaction2 has besides comes with the layout when
        the weights are loaded.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=_NEEDED)

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the slow pathway's frames and the head's window that a layout's weights are used with."""
        window = self.default_pool_size
        published: dict[str, dict[str, Any]] = {
            "SlowFast": {"slow_frames": "even", "pool_size": window},
            "SlowFast Caffe2": {"slow_frames": "even", "pool_size": window},
            "PyTorchVideo": {"slow_frames": "even", "pool_size": (window[0], 7, 7)},  # models/hub/slowfast.py
            "mmaction2": {"slow_frames": "stride", "pool_size": "all"},
        }
        stored = {key: hyperparameters[key] for key in ("slow_frames", "pool_size") if key in hyperparameters}
        settings = published.get(format_name, stored)
        before = {"slow_frames": self.slow_frames, "pool_size": self.pool_size}
        self.slow_frames = settings.get("slow_frames", self.slow_frames)
        self._set_window(settings.get("pool_size") or self.pool_size)
        after = {"slow_frames": self.slow_frames, "pool_size": self.pool_size}
        changed = {key: value for key, value in after.items() if value != before[key]}
        if changed:
            self.recipe = {**self.recipe, "hyperparameters": {**self.recipe.get("hyperparameters", {}), **changed}}


# --- published keys ---------------------------------------------------------------------------------------------------

_SIDES = ("slow", "fast")  # pathway 0 and pathway 1
SLOWFAST_RULES = (
    (r"^s1_fuse\.conv_f2s\.", "stem.lateral.0."),
    (r"^s1_fuse\.bn\.", "stem.lateral.1."),
    *((rf"^s{stage + 1}_fuse\.conv_f2s\.", f"layer{stage}.lateral.0.") for stage in STAGES),
    *((rf"^s{stage + 1}_fuse\.bn\.", f"layer{stage}.lateral.1.") for stage in STAGES),
    *((rf"^s1\.pathway{number}_stem\.conv\.", f"stem.{side}.0.") for number, side in enumerate(_SIDES)),
    *((rf"^s1\.pathway{number}_stem\.bn\.", f"stem.{side}.1.") for number, side in enumerate(_SIDES)),
    *((rf"^s(\d)\.pathway{number}_res(\d+)\.", rf"s\1.{side}.\2.") for number, side in enumerate(_SIDES)),
    (r"^s(\d)\.pathway0_nonlocal(\d+)\.", r"s\1.slow.\2.nonlocal_block."),
    *((rf"^s{stage + 1}\.(slow|fast)\.", rf"layer{stage}.\1.") for stage in STAGES),
    (r"\.branch1\.", ".downsample.0."),
    (r"\.branch1_bn\.", ".downsample.1."),
    *((rf"\.branch2\.{'abc'[index]}\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.branch2\.{'abc'[index]}_bn\.", f".norm{index + 1}.") for index in range(3)),
    (r"\.nonlocal_block\.conv_", ".nonlocal_block."),
    (r"\.nonlocal_block\.bn\.", ".nonlocal_block.norm."),
    (r"^head\.projection\.", "head.fc."),
)
PYTORCHVIDEO_RULES = (
    (r"^blocks\.0\.multipathway_fusion\.conv_fast_to_slow\.", "stem.lateral.0."),
    (r"^blocks\.0\.multipathway_fusion\.norm\.", "stem.lateral.1."),
    (r"^blocks\.(\d)\.multipathway_fusion\.conv_fast_to_slow\.", r"layer\1.lateral.0."),
    (r"^blocks\.(\d)\.multipathway_fusion\.norm\.", r"layer\1.lateral.1."),
    (r"^(blocks\.\d)\.multipathway_blocks\.0\.", r"\1.slow."),
    (r"^(blocks\.\d)\.multipathway_blocks\.1\.", r"\1.fast."),
    (r"^blocks\.0\.(slow|fast)\.conv\.", r"stem.\1.0."),
    (r"^blocks\.0\.(slow|fast)\.norm\.", r"stem.\1.1."),
    (r"^blocks\.(\d)\.(slow|fast)\.res_blocks\.(\d+)\.", r"layer\1.\2.\3."),
    (r"\.branch1_conv\.", ".downsample.0."),
    (r"\.branch1_norm\.", ".downsample.1."),
    *((rf"\.branch2\.conv_{'abc'[index]}\.", f".conv{index + 1}.") for index in range(3)),
    *((rf"\.branch2\.norm_{'abc'[index]}\.", f".norm{index + 1}.") for index in range(3)),
    (r"^blocks\.\d+\.proj\.", "head.fc."),
)
MMACTION_RULES = (
    (r"^slow_path\.conv1_lateral\.conv\.", "stem.lateral.0."),
    (r"^slow_path\.conv1_lateral\.bn\.", "stem.lateral.1."),
    (r"^slow_path\.layer(\d)_lateral\.conv\.", r"layer\1.lateral.0."),
    (r"^slow_path\.layer(\d)_lateral\.bn\.", r"layer\1.lateral.1."),
    (r"^(slow|fast)_path\.conv1\.conv\.", r"stem.\1.0."),
    (r"^(slow|fast)_path\.conv1\.bn\.", r"stem.\1.1."),
    (r"^(slow|fast)_path\.layer(\d)\.", r"layer\2.\1."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.conv(\d)\.bn\.", r".norm\1."),
)
_NEEDED = ("stem.slow.0.weight", "stem.fast.0.weight", "stem.lateral.0.weight", "layer1.slow.0.norm3.weight")


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    depths = {side: tuple(count_blocks(own, f"layer{stage}.{side}.") for stage in STAGES) for side in _SIDES}
    temporal, nonlocal_blocks = [], []
    for stage in STAGES:
        side = "slow" if SLOW_KERNELS[stage - 1] > 1 else "fast"
        weights = [own[f"layer{stage}.{side}.{block}.conv1.weight"] for block in range(depths[side][stage - 1])]
        count = sum(weight.shape[2] > 1 for weight in weights)
        every = count == len(weights)
        temporal.append(max(depths["slow"][stage - 1], depths["fast"][stage - 1]) if every else count)
        pattern = re.compile(rf"layer{stage}\.slow\.(\d+)\.nonlocal_block\.g\.weight")
        nonlocal_blocks.append(tuple(sorted(int(match[1]) for key in own if (match := pattern.fullmatch(key)))))
    return {
        "in_chans": own["stem.slow.0.weight"].shape[1],
        "depth": depths["slow"],
        "fast_depth": None if depths["fast"] == depths["slow"] else depths["fast"],
        "embed_dim": own["layer1.slow.0.norm3.weight"].shape[0],
        "channel_ratio": own["stem.slow.0.weight"].shape[0] // own["stem.fast.0.weight"].shape[0],
        "fusion_kernel": own["stem.lateral.0.weight"].shape[2],
        "lateral_norm": "stem.lateral.1.weight" in own,
        "temporal_blocks": tuple(temporal),
        "nonlocal_blocks": tuple(nonlocal_blocks),
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# SlowFast, configs/Kinetics/SLOWFAST_{4x16,8x8}_R50.yaml and those in c2: frames and stride of the fast pathway,
# 10 clips of three 256-pixel crops; DATA.MEAN, DATA.STD and DATA.TARGET_FPS of slowfast/config/defaults.py. Parameters
# and multiply-adds of 50 layers are those of PyTorchVideo's zoo, which count the norms too; those of 101 layers are the
# paper's. Both are for the 256-pixel crop.
_8X8 = Protocol(frames=32, stride=2, fps=30, short_side=256, crop=256, views="10x3")
_NORMS = "the zoo's GFLOPs count the norms too"
_D101 = (3, 4, 23, 3)

FAMILY = Family(
    model="SlowFast",
    paper="Feichtenhofer et al. 2019, arXiv:1812.03982",
    small_clip=(16, 32, 32),
    min_clip=(4, 32, 32),
    formats=("SlowFast", "SlowFast Caffe2", "PyTorchVideo", "mmaction2"),
    tiny={"depth": (1, 2, 2, 1), "embed_dim": 64, "channel_ratio": 4},
    slow_goldens=(
        "mma2_slowfast_r50__keys",
        "ptv_slowfast_r101__32x224",
        "ptv_slowfast_r50_8x8__32x224",
        "slowfast_8x8_r101_50_50__32x112",
        "slowfast_8x8_r101__32x112",
        "slowfast_8x8_r50__32x112",
        "slowfast_nl_16x8_r101__softmax_64x96",
    ),
    golden_options={
        "mma2_slowfast_r50__keys": {"name": "slowfast_r50_4x16", "lateral_norm": False},
        "ptv_slowfast_r101__32x224": {"name": "slowfast_r101_8x8", "temporal_blocks": _D101},
        "slowfast_8x8_r101__32x112": {"name": "slowfast_r101_8x8", "temporal_blocks": _D101, "img_size": 112},
    },
    variants=(
        Variant(
            "slowfast_r50_4x16",
            "SlowFast 4x16 of 50 layers: the slow pathway takes 4 of 32 frames.",
            _8X8,
            {"alpha": 8, "fusion_kernel": 5},
            params=34.48,
            gflops=36.69,
            note=_NORMS,
            gflops_tolerance=0.02,
            min_clip=(8, 32, 32),
        ),
        Variant(
            "slowfast_r50_8x8",
            "SlowFast 8x8 of 50 layers: the slow pathway takes 8 of 32 frames.",
            _8X8,
            params=34.57,
            gflops=65.71,
            note=_NORMS,
        ),
        Variant(
            "slowfast_r101_8x8",
            "SlowFast 8x8 of 101 layers, with kernels in time in the blocks of a ResNet-50 (the paper's).",
            _8X8,
            {"depth": _D101, "fusion_kernel": 5},
            params=53.7,
            params_tolerance=0.08,
            gflops=106.0,
        ),
        Variant(
            "slowfast_nl_r101_16x8",
            "SlowFast 16x8 of 101 layers, with three non-local blocks in the slow pathway.",
            _8X8.replace(frames=64),
            {"depth": _D101, "fusion_kernel": 5, "nonlocal_blocks": ((), (), (6, 13, 20), ())},
            params=59.9,
            params_tolerance=0.2,
            gflops=234.0,
            gflops_tolerance=0.04,
            note='the paper\'s GFLOPs are 2% below; the published config has nonlocal_mode="dot_product"',
            tiny={"nonlocal_blocks": ((), (), (1,), ())},
            formats=("SlowFast", "SlowFast Caffe2"),
        ),
    ),
)
