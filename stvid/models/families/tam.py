"""TAM: a 2D ResNet whose blocks mix every channel with its neighbours in time, by learned weights.

Fan et al., "More Is Less: Learning Efficient Video Representations by Big-Little Network and Depthwise Temporal
Aggregation", NeurIPS 2019, arXiv:1912.00869 (the module); Chen et al., "Deep Analysis of CNN-based Spatio-temporal
Representations for Action Recognition", CVPR 2021, arXiv:2010.11757 (these networks). Official code:
IBM/action-recognition-pytorch, models/twod_models/resnet.py, temporal_modeling.py and common.py.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each; time stays, but for
`temporal_pool`. Stage i holds (B, 256 * 2^i, T, H/2^(i+2), W/2^(i+2)), with basic blocks a quarter of the channels. The
module stands in front of the first convolution of every block, while the shortcut sees the input as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from stvid.models.blocks import rename_keys
from stvid.models.family import Family, Variant
from stvid.models.published_names import read_options
from stvid.models.segments import (
    RESNET_RULES,
    BlockParts,
    BlockPlace,
    SegmentResNet,
    TemporalAggregation,
    join_aggregations,
    read_trunk,
)
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["TAM"]


class TAM(SegmentResNet):
    """Temporal aggregation module on a ResNet.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        bottleneck: Whether blocks are bottlenecks, with a quarter of the channels inside, or basic blocks.
        blending_frames: Frames that a module mixes, an odd number.
        temporal_pool: Whether pools behind stages 1, 2 and 3 halve time.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)), with an eighth of the frames with `temporal_pool`. A
    clip has at least 32 pixels in height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 32,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        bottleneck: bool = True,
        blending_frames: int = 3,
        temporal_pool: bool = False,
        drop_rate: float = 0.5,
    ) -> None:
        if blending_frames < 1 or blending_frames % 2 == 0:
            raise ValueError(f"blending_frames {blending_frames}: must be an odd number")

        def make_parts(place: BlockPlace) -> BlockParts:
            return BlockParts(before=TemporalAggregation(place.in_dim, kernel=blending_frames))

        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=bottleneck,
            make_parts=make_parts,
            drop_rate=drop_rate,
            time_pools=(1, 2, 3) if temporal_pool else (),
        )

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys, and the names of torchvision's ResNets."""
        if not any(".tam." in key for key in state):
            return super().convert_checkpoint(state)
        rules = ((r"\.tam\.", ".before."), *RESNET_RULES)
        return "IBM/action-recognition-pytorch", rename_keys(join_aggregations(state), rules)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: the trunk, and how many frames a module mixes; pools in time do not show."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("stem.0.weight", "layer1.0.conv1.0.weight"))


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    options = read_trunk(own)
    mixing = own.get("layer1.0.before.conv.weight")
    return options if mixing is None else {**options, "blending_frames": mixing.shape[2]}


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: README ("Models and Results"): 32 frames, every second one, 10 clips of three 256-pixel crops; the
# short side has as many pixels (--disable_scaleup). Mean and std: models/twod_models/resnet.py.
_K400 = Protocol(frames=32, stride=2, short_side=256, crop=256, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="10x3")

FAMILY = Family(
    model="TAM",
    paper="Fan et al. 2019, arXiv:1912.00869",
    small_clip=(4, 32, 32),
    min_clip=(1, 32, 32),
    formats=("IBM/action-recognition-pytorch", "torchvision ResNet"),
    tiny={"depth": (1, 2, 1, 1), "embed_dim": 32},
    golden_options={
        "ibm_tam_r18_8f__8x64": {"name": "tam_r18", "img_size": 64},
        "ibm_tam_r50_8f__8x64": {"name": "tam_r50", "img_size": 64},
        "ibm_tam_r50_16f_ts__16x64": {"name": "tam_r50", "img_size": 64, "temporal_pool": True},
    },
    variants=(
        Variant("tam_r50", "TAM on a ResNet of 50 layers.", _K400),
        Variant("tam_r101", "TAM on a ResNet of 101 layers.", _K400, {"depth": (3, 4, 23, 3)}, same_as="tam_r50"),
        Variant(
            "tam_r18",
            "TAM on a ResNet of 18 layers.",
            _K400,
            {"depth": (2, 2, 2, 2), "embed_dim": 64, "bottleneck": False},
        ),
    ),
)
