"""TSN, temporal segment networks: a 2D ResNet that sees one frame of each part of a video, and averages.

Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016,
arXiv:1608.00859. On ResNets it is the baseline of the TSM paper; official code: mit-han-lab/temporal-shift-module,
ops/models.py (`TSN` without shift).

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each; time stays. Stage i
holds (B, 256 * 2^i, T, H/2^(i+2), W/2^(i+2)), with basic blocks a quarter of the channels. Nothing sees two frames but
the mean over the frames in the head, so any number of frames can be tested.
"""

from __future__ import annotations

from collections.abc import Sequence

from stvid.models.family import Family, Variant
from stvid.models.segments import BlockParts, BlockPlace, SegmentResNet
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["TSN"]


def _no_parts(place: BlockPlace) -> BlockParts:
    """Hooks nothing into a block."""
    return BlockParts()


class TSN(SegmentResNet):
    """Temporal segment network on a ResNet.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        bottleneck: Whether blocks are bottlenecks, with a quarter of the channels inside, or basic blocks.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)). A clip has at least 32 pixels in height and width.
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
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=bottleneck,
            make_parts=_no_parts,
            drop_rate=drop_rate,
        )


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: scripts/test_tsm_kinetics_rgb_8f.sh (8 segments, one crop), ops/models.py (`input_mean`, `input_std`,
# `crop_size`, and `scale_size`, which is 256). The 8 frames are one of each part of the video.
_K400 = Protocol(frames=8, sampling="segment", short_side=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)

FAMILY = Family(
    model="TSN",
    paper="Wang et al. 2016, arXiv:1608.00859",
    small_clip=(4, 32, 32),
    min_clip=(1, 32, 32),
    formats=("mit-han-lab/temporal-shift-module", "mmaction2", "torchvision ResNet"),
    tiny={"depth": (1, 2, 1, 1), "embed_dim": 32},
    slow_goldens=("tsn_r50_8f__8x112",),
    golden_options={"mma2_tsn_r50__keys": {"name": "tsn_r50", "img_size": 64}},
    variants=(
        Variant("tsn_r50", "TSN on a ResNet of 50 layers.", _K400, params=24.3, gflops=33.0),
        Variant("tsn_r101", "TSN on a ResNet of 101 layers.", _K400, {"depth": (3, 4, 23, 3)}, same_as="tsn_r50"),
        Variant(
            "tsn_r18",
            "TSN on a ResNet of 18 layers.",
            _K400,
            {"depth": (2, 2, 2, 2), "embed_dim": 64, "bottleneck": False},
        ),
    ),
)
