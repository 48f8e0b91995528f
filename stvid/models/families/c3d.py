"""C3D: eight 3x3x3 convolutions, five max pools, two hidden linear layers.

Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015, arXiv:1412.0767; checked
against DavideA/c3d-pytorch, C3D_model.py (the Sports-1M weights of the authors, converted from Caffe).

Shapes, for a clip (B, 3, T, H, W): the first pool halves space only, the others time and space. The last one pads
space, so that 16 frames of 112x112 give (B, 512, 1, 4, 4), which `fc6` sees flattened in the order C, T, H, W. Other
clips are averaged to 1x4x4 positions before `fc6` (nothing is done at the published size), so that the published
weights serve any clip of at least 16 frames of 16x16 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.heads import Head
from stvid.models.kernels import clip_layout
from stvid.models.published_names import from_mmaction, is_mmaction, read_options
from stvid.protocol import Protocol

__all__ = ["C3D"]

GRID = (1, 4, 4)  # positions that fc6 sees


def _relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


class C3DHead(Head):
    """Two hidden linear layers over a grid of 1x4x4 positions, and the classifier."""

    def __init__(self, in_features: int, num_classes: int, *, hidden_dim: int, drop_rate: float) -> None:
        super().__init__(hidden_dim, num_classes)
        self.fc6 = nn.Linear(in_features * GRID[0] * GRID[1] * GRID[2], hidden_dim)
        self.fc7 = nn.Linear(hidden_dim, hidden_dim)
        self.drop = nn.Dropout(drop_rate)

    def pool(self, features: Tensor) -> Tensor:
        """Maps (B, in_features, T, H, W) to the output of `fc7`, (B, hidden_dim)."""
        x = features if features.shape[2:] == GRID else F.adaptive_avg_pool3d(features, GRID)
        x = self.drop(F.relu(self.fc6(x.flatten(1))))
        return self.drop(F.relu(self.fc7(x)))


class C3D(VideoModel):
    """C3D.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        embed_dim: Channels of the five stages.
        hidden_dim: Channels of the hidden linear layers.
        drop_rate: Dropout after each of these.

    The features are the last map, (B, embed_dim[4], T/16, H/32 + 1, W/32 + 1), rounded down. A clip has at least 16
    frames of 16x16 pixels.
    """

    def __init__(
        self,
        *,
        num_classes: int = 487,
        num_frames: int = 16,
        img_size: tuple[int, int] = (112, 112),
        in_chans: int = 3,
        embed_dim: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512),
        hidden_dim: int = 4096,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if len(embed_dim) != 5:
            raise ValueError(f"C3D has five stages: embed_dim {embed_dim} needs five numbers")
        self.num_classes = num_classes
        self.num_features = embed_dim[-1]
        self.in_chans = in_chans
        self.conv1 = nn.Conv3d(in_chans, embed_dim[0], 3, padding=1)
        self.conv2 = nn.Conv3d(embed_dim[0], embed_dim[1], 3, padding=1)
        self.conv3a = nn.Conv3d(embed_dim[1], embed_dim[2], 3, padding=1)
        self.conv3b = nn.Conv3d(embed_dim[2], embed_dim[2], 3, padding=1)
        self.conv4a = nn.Conv3d(embed_dim[2], embed_dim[3], 3, padding=1)
        self.conv4b = nn.Conv3d(embed_dim[3], embed_dim[3], 3, padding=1)
        self.conv5a = nn.Conv3d(embed_dim[3], embed_dim[4], 3, padding=1)
        self.conv5b = nn.Conv3d(embed_dim[4], embed_dim[4], 3, padding=1)
        self.head = C3DHead(embed_dim[4], num_classes, hidden_dim=hidden_dim, drop_rate=drop_rate)
        last = ("conv1", "conv2", "conv3b", "conv4b", "conv5b")
        self.feature_info = [
            FeatureInfo(name, dim, (2**stage, 2 * 2**stage, 2 * 2**stage))
            for stage, (name, dim) in enumerate(zip(last, embed_dim, strict=True))
        ]
        self.apply(init_conv_weights)

    def _stage1(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_relu(self.conv1(x)), (1, 2, 2))

    def _stage2(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_relu(self.conv2(x)), 2)

    def _stage3(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_relu(self.conv3b(_relu(self.conv3a(x)))), 2)

    def _stage4(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_relu(self.conv4b(_relu(self.conv4a(x)))), 2)

    def _stage5(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_relu(self.conv5b(_relu(self.conv5a(x)))), 2, padding=(0, 1, 1))

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the five stages, each with its pool."""
        self._check_clip(clip, minimum=(16, 16, 16))
        stages = (self._stage1, self._stage2, self._stage3, self._stage4, self._stage5)
        return run_blocks(stages, clip_layout(clip), recompute=self.grad_checkpointing, tap=tap)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: the pools drop odd positions, and the last one pads space."""
        time, height, width = clip_shape[-3:]
        return time // 16, height // 16 // 2 + 1, width // 16 // 2 + 1

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the first convolution, then every layer in order."""
        return {"stem": r"^conv1", "blocks": [(r"^conv(\d)", None), (r"^head\.fc(\d)", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Renames the classifier of DavideA/c3d-pytorch, and the layers of mmaction2."""
        if is_mmaction(state) or "conv1a.conv.weight" in state:
            return "mmaction2", rename_keys(from_mmaction(state), MMACTION_RULES)
        if "fc8.weight" not in state:
            return "stvid", dict(state)
        return "DavideA/c3d-pytorch", rename_keys(state, [(r"^fc([67])\.", r"head.fc\1."), (r"^fc8\.", "head.fc.")])

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the channels that the tensors show."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=(*_LAST, "head.fc7.weight"))


# --- published keys ---------------------------------------------------------------------------------------------------

_LAST = ("conv1.weight", "conv2.weight", "conv3b.weight", "conv4b.weight", "conv5b.weight")
MMACTION_RULES = (
    (r"^conv([12])a\.conv\.", r"conv\1."),
    (r"^(conv\d[ab])\.conv\.", r"\1."),
    (r"^fc([67])\.", r"head.fc\1."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    embed_dim = tuple(own[key].shape[0] for key in _LAST)
    return {"in_chans": own[_LAST[0]].shape[1], "embed_dim": embed_dim, "hidden_dim": own["head.fc7.weight"].shape[0]}


# --- variants ---------------------------------------------------------------------------------------------------------

# DavideA/c3d-pytorch, predict.py: 16 frames in a row, scaled to a height of 112, the centre crop, values 0..255 without
# a mean. The paper averages 10 clips of a video; it prints neither parameters nor operations (38.5 is follow-ups').
_SPORTS1M = Protocol(
    frames=16, stride=1, short_side=112, crop=112, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255), views="10x1"
)


FAMILY = Family(
    model="C3D",
    paper="Tran et al. 2015, arXiv:1412.0767",
    small_clip=(16, 16, 16),
    min_clip=(16, 16, 16),
    formats=("DavideA/c3d-pytorch", "mmaction2"),
    tiny={"embed_dim": (8, 8, 16, 16, 16), "hidden_dim": 32},
    variants=(Variant("c3d", "C3D.", _SPORTS1M, gflops=38.5),),
)
