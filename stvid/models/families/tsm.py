"""TSM: a 2D ResNet whose blocks move a part of the channels between neighbouring frames, at no cost.

Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019, arXiv:1811.08383; official code:
mit-han-lab/temporal-shift-module, ops/temporal_shift.py, ops/non_local.py, ops/models.py. mmaction2's networks of this
name (open-mmlab/mmaction2, models/backbones/resnet_tsm.py) are the same, with other kinds of non-local blocks.

With ``causal=True`` channels move on in time alone (section 4.3 of the paper, the shift for streams): the first
1/shift_div of the channels take the previous frame, and none the next. Such a network runs over a stream: each shift
keeps what its last frame passes on, and the logits are the mean of those so far.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each; time stays, but for
`temporal_pool`. Stage i holds (B, 256 * 2^i, T, H/2^(i+2), W/2^(i+2)), with basic blocks a quarter of the channels.

The shift stands in front of the first convolution of a block, while the shortcut sees the input as it was
(``shift_place="blockres"``, the residual shift), or in front of the whole block with its shortcut (``"block"``, the
shift in place). With 23 blocks or more in stage 3, that is from 101 layers on, every second block has a residual shift.
Non-local blocks follow every second block of stages 2 and 3; they pool keys and values by 2x2 in space after their
projections, and do not scale the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from stvid.models.blocks import rename_keys
from stvid.models.family import Family, Variant
from stvid.models.nonlocal_block import NonLocal, NonlocalMode
from stvid.models.published_names import read_options
from stvid.models.segments import BlockParts, BlockPlace, SegmentResNet, TemporalShift, read_trunk, step_frames
from stvid.models.streaming import StreamMemory, StreamState
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["TSM", "FrameNonLocal"]

ShiftPlace = Literal["blockres", "block"]
DEEP = 23  # blocks of stage 3 from which on every second block has a residual shift


class FrameNonLocal(NonLocal):
    """A non-local block over all positions of a clip, on frames."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to the same shape."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class TSM(SegmentResNet):
    """Temporal shift module on a ResNet.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        bottleneck: Whether blocks are bottlenecks, with a quarter of the channels inside, or basic blocks.
        shift_div: The first 1/shift_div of the channels take the next frame, the second 1/shift_div the previous one.
        shift_place: ``blockres`` or ``block``.
        non_local: Whether non-local blocks follow blocks 0 and 2 of stage 2 and blocks 0, 2 and 4 of stage 3, or which:
            True means ``softmax``; mmaction2 has ``dot_product`` and ``gaussian``, too.
        nonlocal_bias: Whether the last convolution of a non-local block has a bias (the authors), or not (mmaction2).
        temporal_pool: Whether a pool behind stage 1 halves time.
        causal: Whether channels move on in time alone, so that no frame sees a later one.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)), with half the frames with `temporal_pool`. A clip
    has at least 32 pixels in height and width.
    """

    published_as = "mit-han-lab/temporal-shift-module"

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        bottleneck: bool = True,
        shift_div: int = 8,
        shift_place: ShiftPlace = "blockres",
        non_local: bool | NonlocalMode = False,
        nonlocal_bias: bool = True,
        temporal_pool: bool = False,
        causal: bool = False,
        drop_rate: float = 0.5,
    ) -> None:
        if causal and (non_local or temporal_pool):
            raise ValueError("causal: non_local and temporal_pool see later frames, so they must be off")
        if shift_place not in get_args(ShiftPlace):
            raise ValueError(f"shift_place {shift_place!r}: must be blockres or block")
        every = 2 if shift_place == "blockres" and len(depth) == 4 and depth[2] >= DEEP else 1
        mode: NonlocalMode = "softmax" if non_local is True or not non_local else non_local

        def make_parts(place: BlockPlace) -> BlockParts:
            attends = non_local and place.stage in (1, 2) and place.block in (0, 2, 4)[: place.stage + 1]
            return BlockParts(
                before=None if place.block % every else TemporalShift(shift_div=shift_div, causal=causal),
                after=FrameNonLocal(place.dim, mode=mode, pool="after", scale=False, bias=nonlocal_bias)
                if attends
                else None,
                moves_shortcut=shift_place == "block",
            )

        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=bottleneck,
            make_parts=make_parts,
            drop_rate=drop_rate,
            time_pools=(1,) if temporal_pool else (),
        )
        self.streams = causal
        for module in self.modules():
            if isinstance(module, NonLocal):
                module.start_as_identity()

    def step(self, frames: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """Goes on with a stream; see `VideoModel.step`."""

        def run(x: Tensor, memory: StreamMemory) -> Tensor:
            x = self.stem(x)
            for stage in self.stages().values():
                block: Any  # knows one frame after the other, too
                for block in stage.children():
                    x = block.step(x, memory)
            return x

        return step_frames(self, frames, state, run)

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of the trunk into our keys, with the non-local blocks of TSM and of mmaction2."""
        layout, own = super().convert_checkpoint(state)
        if layout == "stvid":
            return layout, own
        own = rename_keys(own, NONLOCAL_RULES)
        if layout == "mmaction2":  # its blocks have no bias there
            for name, module in self.named_modules():
                weight = own.get(f"{name}.out.weight")
                if isinstance(module, NonLocal) and module.out.bias is not None and weight is not None:
                    own.setdefault(f"{name}.out.bias", weight.new_zeros(weight.shape[0]))
        return layout, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: the trunk, and whether there are non-local blocks.

        The kind ``dot_product`` and the place of the shift do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("stem.0.weight", "layer1.0.conv1.0.weight"))


# --- published keys ---------------------------------------------------------------------------------------------------

NONLOCAL_RULES = (
    (r"^(layer\d\.\d+)\.block\.", r"\1."),
    (r"^(layer\d\.\d+)\.nl\.W\.0\.", r"\1.after.out."),
    (r"^(layer\d\.\d+)\.nl\.W\.1\.", r"\1.after.norm."),
    (r"^(layer\d\.\d+)\.nl\.(g|theta|phi)\.(?:0\.)?", r"\1.after.\2."),
    (r"^(layer\d\.\d+)\.non_local_block\.conv_out\.conv\.", r"\1.after.out."),
    (r"^(layer\d\.\d+)\.non_local_block\.conv_out\.bn\.", r"\1.after.norm."),
    (r"^(layer\d\.\d+)\.non_local_block\.(g|theta|phi)\.(?:0\.)?conv\.", r"\1.after.\2."),
    (r"^(layer\d\.\d+)\.(?:block\.)?conv(\d)\.(weight|bias)$", r"\1.conv\2.0.\3"),
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.1."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    options = read_trunk(own)
    places = {key.partition(".after.")[0] for key in own if ".after.g." in key}
    if places:
        options["non_local"] = True if all(f"{place}.after.theta.weight" in own for place in places) else "gaussian"
        options["nonlocal_bias"] = all(f"{place}.after.out.bias" in own for place in places)
    else:
        options["non_local"] = False
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: scripts/test_tsm_kinetics_rgb_8f.sh (8 segments, one crop), ops/models.py (`input_mean`, `input_std`,
# `crop_size`, and `scale_size`, which is 256). The 8 frames are one of each part of the video.
_K400 = Protocol(frames=8, sampling="segment", short_side=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)

FAMILY = Family(
    model="TSM",
    paper="Lin et al. 2019, arXiv:1811.08383",
    small_clip=(4, 32, 32),
    min_clip=(1, 32, 32),
    formats=("mit-han-lab/temporal-shift-module", "mmaction2", "torchvision ResNet"),
    tiny={"depth": (1, 2, 1, 1), "embed_dim": 64},
    slow_goldens=("tsm_r50_8f__8x112",),
    golden_options={"mma2_tsm_r50__keys": {"name": "tsm_r50", "img_size": 64}},
    variants=(
        Variant("tsm_r50", "TSM on a ResNet of 50 layers.", _K400, params=24.3, gflops=33.0),
        Variant("tsm_r101", "TSM on a ResNet of 101 layers.", _K400, {"depth": (3, 4, 23, 3)}, same_as="tsm_r50"),
        Variant(
            "tsm_r18",
            "TSM on a ResNet of 18 layers, small enough to be trained from scratch.",
            _K400,
            {"depth": (2, 2, 2, 2), "embed_dim": 64, "bottleneck": False},
        ),
    ),
)
