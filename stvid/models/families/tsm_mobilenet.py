"""TSM on MobileNetV2: inverted residuals whose blocks move a part of the channels between neighbouring frames.

Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019, arXiv:1811.08383, on the network
of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv:1801.04381. Official code:
mit-han-lab/temporal-shift-module, archs/mobilenet_v2.py and ops/models.py; open-mmlab/mmaction2,
models/backbones/mobilenet_v2_tsm.py is the same.

Shapes, for a clip (B, 3, T, H, W): the stem divides space by 2, and so do the first blocks of stages 2, 3, 4 and 6.
Time stays. The stages have 16, 24, 32, 64, 96, 160 and 320 channels; a last 1x1 convolution makes 1280 of them.

With ``causal=True`` channels move on in time alone, as in the authors' online_demo/mobilenet_v2_tsm.py: the first
1/shift_div of the channels take the previous frame, and none the next. Such a network runs over a stream: each shift
keeps what its last frame passes on, and the logits are the mean of those so far.

The shift stands in front of the first convolution of every block that has a shortcut, which sees the input as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, init_conv_weights, leave_out, rename_keys, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.published_names import from_mmaction, is_mmaction, read_options
from stvid.models.segments import (
    MIN_CLIP,
    ConsensusHead,
    PerFrame,
    TemporalShift,
    shift_next,
    step_frames,
    tap_frames,
    to_frames,
)
from stvid.models.streaming import StreamMemory, StreamState
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["TSMMobileNet"]

STEM_DIM = 32
# Of each stage: hidden channels of its blocks over their input, output channels, blocks, stride (table 2 of the paper).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _layer(in_dim: int, dim: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True) -> PerFrame:
    """Builds a convolution with its norm, and a ReLU6 if `act` is set."""
    conv = nn.Conv2d(in_dim, dim, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(dim)]
    return PerFrame(*layers, nn.ReLU6(inplace=True)) if act else PerFrame(*layers)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a 3x3 one of every channel by itself, and a 1x1 one to few without ReLU.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        expand: Hidden channels over `in_dim`; 1 has no first convolution.
        stride: Stride of the 3x3 convolution.
        shift_div: As in `TemporalShift`; a block without shortcut has no shift.
        causal: As in `TemporalShift`.
    """

    def __init__(
        self, in_dim: int, dim: int, *, expand: int, stride: int, shift_div: int, causal: bool = False
    ) -> None:
        super().__init__()
        hidden = in_dim * expand
        self.adds = stride == 1 and in_dim == dim
        shifts = self.adds and expand > 1
        shift = TemporalShift(shift_div=shift_div, causal=causal) if shifts else nn.Identity()
        self.before: nn.Module = shift
        first = [_layer(in_dim, hidden, 1)] if expand > 1 else []
        spatial = _layer(hidden, hidden, 3, stride=stride, groups=hidden)
        self.conv = nn.Sequential(*first, spatial, _layer(hidden, dim, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, in_dim, H, W) to (B, T, dim, H', W')."""
        return self.after_moving(x, self.before(x))

    def step(self, x: Tensor, memory: StreamMemory) -> Tensor:
        """Maps the next frames of a stream."""
        return self.after_moving(x, shift_next(self.before, x, memory))

    def after_moving(self, x: Tensor, moved: Tensor) -> Tensor:
        """Applies all but the shift, to the input of the block and what the shift made of it."""
        out = self.conv(moved)
        return out + x if self.adds else out


class TSMMobileNet(VideoModel):
    """Temporal shift module on MobileNetV2.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        width: Channels of the stages over those of the paper, rounded up to multiples of 8; above 1 the last
            convolution grows too.
        shift_div: The first 1/shift_div of the channels take the next frame, the second 1/shift_div the previous one.
        causal: Whether channels move on in time alone, so that no frame sees a later one.
        drop_rate: Dropout before the classifier.

    The features are (B, 1280, T, ceil(H/32), ceil(W/32)). A clip has at least 32 pixels in height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        width: float = 1.0,
        shift_div: int = 8,
        causal: bool = False,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.streams = causal
        self.num_features = _multiple_of_8(1280 * max(width, 1.0))
        self.stem = _layer(in_chans, STEM_DIM, 3, stride=2)
        self.feature_info = []
        dim, reduction = STEM_DIM, 2
        for number, (expand, channels, blocks, stride) in enumerate(STAGES, start=1):
            before, dim = dim, channels if expand == 1 else _multiple_of_8(channels * width)
            stage = nn.Sequential(
                *(
                    InvertedResidual(
                        dim if block else before,
                        dim,
                        expand=expand,
                        stride=1 if block else stride,
                        shift_div=shift_div,
                        causal=causal,
                    )
                    for block in range(blocks)
                )
            )
            self.add_module(f"layer{number}", stage)
            reduction *= stride
            self.feature_info.append(FeatureInfo(f"layer{number}", dim, (1, reduction, reduction)))
        self.tail = _layer(dim, self.num_features, 1)
        self.feature_info[-1] = FeatureInfo("tail", self.num_features, (1, reduction, reduction))
        self.head = ConsensusHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem, the stages and the last convolution over the frames."""
        self._check_clip(clip, minimum=MIN_CLIP)
        last = len(self.feature_info) - 1
        inner = tap_frames(leave_out(last, tap))
        x = self.stem(to_frames(clip))
        for number in range(1, len(STAGES) + 1):
            stage: nn.Sequential = getattr(self, f"layer{number}")
            x = inner(number - 1, run_blocks(stage, x, recompute=self.grad_checkpointing))
        return tap(last, self.tail(x).transpose(1, 2))

    def step(self, frames: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Goes on with a stream; see `VideoModel.step`."""

        def run(x: Tensor, memory: StreamMemory) -> Tensor:
            x = self.stem(x)
            for number in range(1, len(STAGES) + 1):
                block: Any  # knows one frame after the other, too
                for block in self.get_submodule(f"layer{number}").children():
                    x = block.step(x, memory)
            return self.tail(x)

        return step_frames(self, frames, state, run)

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, every block in order, the last convolution."""
        return {"stem": r"^stem\.", "blocks": [(r"^layer(\d)\.(\d+)\.", None), (r"^tail\.", (99999,))]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of the authors and of mmaction2 into our keys."""
        if is_mmaction(state):
            return "mmaction2", rename_keys(from_mmaction(state), MMACTION_RULES)
        if "base_model.features.0.0.weight" in state:
            return "mit-han-lab/temporal-shift-module", rename_keys(state, _authors_rules())
        return "stvid", dict(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels and width."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("stem.0.weight", "layer7.0.conv.0.0.weight"))


def _multiple_of_8(channels: float) -> int:
    return math.ceil(channels / 8) * 8


# --- published keys ---------------------------------------------------------------------------------------------------

MMACTION_RULES = (
    (r"\.net\.", "."),
    (r"^conv1\.conv\.", "stem.0."),
    (r"^conv1\.bn\.", "stem.1."),
    (r"^conv2\.conv\.", "tail.0."),
    (r"^conv2\.bn\.", "tail.1."),
    (r"^(layer\d\.\d+\.conv\.\d)\.conv\.", r"\1.0."),
    (r"^(layer\d\.\d+\.conv\.\d)\.bn\.", r"\1.1."),
)


def _authors_rules() -> list[tuple[str, str]]:
    """Returns the rules for the authors' keys: the blocks are counted through, and so are the layers of a block."""
    rules = [(r"^base_model\.", ""), (r"\.net\.", "."), (r"^new_fc\.", "head.fc."), (r"^features\.0\.", "stem.")]
    place = 1
    for stage, (expand, _, blocks, _) in enumerate(STAGES, start=1):
        for block in range(blocks):
            for layer in range(3 if expand > 1 else 2):
                for part in range(2):
                    old = rf"^features\.{place}\.conv\.{3 * layer + part}\."
                    rules.append((old, f"layer{stage}.{block}.conv.{layer}.{part}."))
            place += 1
    return [*rules, (rf"^features\.{place}\.", "tail.")]


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys; the width is that of the last stage, whose channels are many."""
    last = STAGES[-1][1]
    return {
        "in_chans": own["stem.0.weight"].shape[1],
        "width": own["layer7.0.conv.2.0.weight"].shape[0] / last,
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: ops/models.py (`input_mean`, `input_std`, `crop_size`, and `scale_size`, 256), and README for the
# 8 frames, one of each part of the video. The parameters are those of mmaction2's README.
_K400 = Protocol(frames=8, sampling="segment", short_side=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)

FAMILY = Family(
    model="TSMMobileNet",
    paper="Lin et al. 2019, arXiv:1811.08383",
    small_clip=(4, 64, 64),
    min_clip=(1, 32, 32),
    formats=("mit-han-lab/temporal-shift-module", "mmaction2"),
    tiny={"width": 0.25},
    golden_options={"mma2_tsm_mobilenetv2__keys": {"name": "tsm_mobilenet_v2", "img_size": 64}},
    variants=(Variant("tsm_mobilenet_v2", "TSM on MobileNetV2.", _K400, params=2.736),),
)
