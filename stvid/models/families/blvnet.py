"""bLVNet-TAM: of each pair of frames one goes through a deep branch at half the size, and one through a shallow branch.

Fan et al., "More Is Less: Learning Efficient Video Representations by Big-Little Network and Depthwise Temporal
Aggregation", NeurIPS 2019, arXiv:1912.00869; official code: IBM/bLVNet-TAM, core/models/blvnet_tam.py and
blvnet_tam_backbone.py.

Shapes, for a clip (B, 3, T, H, W) with an even T: the stem divides space by 4, modules 1 and 2 and stage 4 by 2 each.
Module i holds (B, 256 * 2^i, T/2, H/2^(i+3), W/2^(i+3)), but for the third, which keeps the size of the second.

Frames 1, 3, 5, ... go through the big branch, frames 0, 2, 4, ... through the little one. Their sum stands for both,
and is given to both before the next module. Before each module, and in front of the blocks of stage 4, temporal
aggregation mixes neighbouring frames. The shortcut of a block of stage 4 sees what the aggregation made if there is a
convolution on it, else the input of the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, init_conv_weights, rename_keys, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.published_names import count_blocks, read_options
from stvid.models.segments import (
    BlockParts,
    BlockPlace,
    Bottleneck,
    ConsensusHead,
    PerFrame,
    TemporalAggregation,
    conv_norm,
    join_aggregations,
    tap_frames,
    to_frames,
)
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["BLVNet"]


def _bottleneck(
    in_dim: int, dim: int, *, stride: int = 1, last_act: bool = True, before: nn.Module | None = None
) -> Bottleneck:
    """Builds a block whose shortcut is pooled where it is strided, and projected where channels change."""
    layers: list[nn.Module] = [nn.AvgPool2d(3, stride=2, padding=1)] if stride > 1 else []
    if in_dim != dim:
        layers += [nn.Conv2d(in_dim, dim, 1, bias=False), nn.BatchNorm2d(dim)]
    place = BlockPlace(stage=0, block=0, in_dim=in_dim, dim=dim, inner=dim // 4, stride=stride)
    shortcut = PerFrame(*layers) if layers else None
    parts = BlockParts(before=before, moves_shortcut=bool(layers), shortcut=shortcut, last_act=last_act)
    return Bottleneck(place, parts)


def _branch(in_dim: int, dim: int, blocks: int, *, stride: int = 1, last_act: bool = True) -> nn.Sequential:
    """Builds blocks in a row; the last of several may lack its ReLU."""
    return nn.Sequential(
        *(
            _bottleneck(
                dim if block else in_dim,
                dim,
                stride=1 if block else stride,
                last_act=last_act or block == 0 or block < blocks - 1,
            )
            for block in range(blocks)
        )
    )


class BigLittleStem(nn.Module):
    """The stem: a strided convolution, temporal aggregation, and two branches with another stride.

    Args:
        in_chans: Channels of the clip.
        dim: Channels of the output.
        alpha: Channels of the big branch over those of the little one.
        blending_frames: Frames that temporal aggregation mixes.
    """

    def __init__(self, in_chans: int, dim: int, *, alpha: int, blending_frames: int) -> None:
        super().__init__()
        self.conv = conv_norm(in_chans, dim, 7, stride=2)
        self.tam = TemporalAggregation(dim, kernel=blending_frames)
        self.big = conv_norm(dim, dim, 3, stride=2, act=False)
        self.little = nn.Sequential(
            conv_norm(dim, dim // alpha, 3),
            conv_norm(dim // alpha, dim // alpha, 3, stride=2),
            conv_norm(dim // alpha, dim, 1, act=False),
        )
        self.merge = conv_norm(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, in_chans, H, W) to (B, T/2, dim, H/4, W/4)."""
        x = self.tam(self.conv(x))
        return self.merge(F.relu(self.big(x[:, 1::2]) + self.little(x[:, 0::2]), inplace=True))


class BigLittleModule(nn.Module):
    """Temporal aggregation, a deep branch at half the size and a shallow narrow one, their sum, and a block on it.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        blocks: Blocks of the big branch with the one on the sum.
        stride: Stride of the block on the sum.
        alpha: Channels of the big branch over those of the little one.
        beta: Blocks of the big branch over those of the little one, roughly.
        blending_frames: Frames that temporal aggregation mixes.
    """

    def __init__(
        self, in_dim: int, dim: int, *, blocks: int, stride: int, alpha: int, beta: int, blending_frames: int
    ) -> None:
        super().__init__()
        self.tam = TemporalAggregation(in_dim, kernel=blending_frames)
        self.big = _branch(in_dim, dim, blocks - 1, stride=2, last_act=False)
        self.little = _branch(in_dim, dim // alpha, max(1, blocks // beta - 1))
        self.little_out = conv_norm(dim // alpha, dim, 1, act=False)
        self.fusion = _bottleneck(dim, dim, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T/2, in_dim, H, W), each for two, to (B, T/2, dim, H', W')."""
        x = self.tam(x.unsqueeze(2).expand(-1, -1, 2, -1, -1, -1).flatten(1, 2))
        big, little = self.big(x[:, 1::2]), self.little_out(self.little(x[:, 0::2]))
        big = F.interpolate(big.flatten(0, 1), little.shape[3:], mode="nearest").unflatten(0, little.shape[:2])
        return self.fusion(F.relu(big + little, inplace=True))


class BLVNet(VideoModel):
    """Big-little video network with temporal aggregation.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the three modules and of stage 4.
        embed_dim: Channels of the first module.
        alpha: Channels of the big branches over those of the little ones.
        beta: Blocks of the big branches over those of the little ones, roughly.
        blending_frames: Frames that temporal aggregation mixes, an odd number.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T/2, ceil(H/32), ceil(W/32)). A clip has an even number of frames, and at least
    32 pixels in height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        alpha: int = 2,
        beta: int = 4,
        blending_frames: int = 3,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if len(depth) != 4 or min(depth[:3]) < 2:
            raise ValueError(f"depth {tuple(depth)}: needs three modules of at least 2 blocks, and stage 4")
        if blending_frames < 1 or blending_frames % 2 == 0:
            raise ValueError(f"blending_frames {blending_frames}: must be an odd number")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, embed_dim * 8
        self.stem = BigLittleStem(in_chans, embed_dim // 4, alpha=alpha, blending_frames=blending_frames)
        before = embed_dim // 4
        for number, stride in ((1, 2), (2, 2), (3, 1)):
            dim = embed_dim * 2 ** (number - 1)
            module = BigLittleModule(
                before,
                dim,
                blocks=depth[number - 1],
                stride=stride,
                alpha=alpha,
                beta=beta,
                blending_frames=blending_frames,
            )
            self.add_module(f"layer{number}", module)
            before = dim
        last = self.num_features
        self.layer4 = nn.Sequential(
            *(
                _bottleneck(
                    last if block else before,
                    last,
                    stride=1 if block else 2,
                    before=TemporalAggregation(last if block else before, kernel=blending_frames),
                )
                for block in range(depth[3])
            )
        )
        self.feature_info = [
            FeatureInfo(f"layer{number}", embed_dim * 2 ** (number - 1), (2, step, step))
            for number, step in ((1, 8), (2, 16), (3, 16), (4, 32))
        ]
        self.head = ConsensusHead(self.num_features, num_classes, drop_rate=drop_rate)
        self.apply(init_conv_weights)
        for block in self.modules():
            if isinstance(block, Bottleneck):  # every residual branch starts at zero, as in the official code
                nn.init.zeros_(block.get_parameter("conv3.1.weight"))

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stem, the modules and the last stage over the frames."""
        self._check_clip(clip, minimum=(2, 32, 32))
        if clip.shape[2] % 2:
            raise ValueError(f"BLVNet takes an even number of frames, not {clip.shape[2]}: they come in pairs")

        maps = tap_frames(tap)
        modules = [self.get_submodule(f"layer{number}") for number in (1, 2, 3)]
        x = self.stem(to_frames(clip))
        x = run_blocks(modules, x, recompute=self.grad_checkpointing, tap=maps)
        return maps(3, run_blocks(self.layer4, x, recompute=self.grad_checkpointing)).transpose(1, 2)

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, the three modules, the blocks of the last stage."""
        return {"stem": r"^stem\.", "modules": [(r"^layer([123])\.", None)], "layer4": [(r"^layer4\.(\d+)\.", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys."""
        if "baseline_model.bl_init.weight" not in state and "bl_init.weight" not in state:
            return "stvid", dict(state)
        plain = {key.removeprefix("baseline_model."): value for key, value in state.items()}
        return "IBM/bLVNet-TAM", rename_keys(join_aggregations(plain), BLVNET_RULES)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depth, alpha, and how many frames are mixed."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("stem.conv.0.weight", "layer1.little_out.0.weight"))


# --- published keys ---------------------------------------------------------------------------------------------------

BLVNET_RULES = (
    (r"^conv1\.", "stem.conv.0."),
    (r"^bn1\.", "stem.conv.1."),
    (r"^tam\.", "stem.tam."),
    (r"^b_conv0\.", "stem.big.0."),
    (r"^bn_b0\.", "stem.big.1."),
    (r"^l_conv(\d)\.", r"stem.little.\1.0."),
    (r"^bn_l(\d)\.", r"stem.little.\1.1."),
    (r"^bl_init\.", "stem.merge.0."),
    (r"^bn_bl_init\.", "stem.merge.1."),
    (r"^(layer4\.\d+)\.tam\.", r"\1.before."),
    (r"\.little_e\.", ".little_out."),
    (r"\.fusion\.0\.", ".fusion."),
    (r"\.conv(\d)\.weight$", r".conv\1.0.weight"),
    (r"\.bn(\d)\.", r".conv\1.1."),
    (r"^(?:new_fc|fc)\.", "head.fc."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys; each big branch has one block less than `depth` says."""
    dim, little = own["layer1.little_out.0.weight"].shape[:2]
    return {
        "in_chans": own["stem.conv.0.weight"].shape[1],
        "embed_dim": dim,
        "alpha": dim // little,
        "depth": (
            *(count_blocks(own, f"layer{number}.big.") + 1 for number in (1, 2, 3)),
            count_blocks(own, "layer4."),
        ),
        "blending_frames": own["stem.tam.conv.weight"].shape[2],
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: README (Something-Something, one clip and one crop; "f8x2" are 8 pairs of frames; with
# --disable_scaleup the short side has as many pixels as the crop).
_SSV2 = Protocol(frames=16, sampling="segment", short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)

FAMILY = Family(
    model="BLVNet",
    paper="Fan et al. 2019, arXiv:1912.00869",
    small_clip=(4, 64, 64),
    min_clip=(2, 32, 32),
    formats=("IBM/bLVNet-TAM",),
    tiny={"depth": (2, 3, 2, 2), "embed_dim": 32},
    slow_goldens=("blvnet_tam_r101_f4x2__8x64_174cls",),
    golden_options={
        "blvnet_tam_r50_f8x2__16x64_174cls": {"name": "blvnet_tam_r50", "img_size": 64},
        "blvnet_tam_r101_f4x2__8x64_174cls": {"name": "blvnet_tam_r101", "img_size": 64},
    },
    variants=(
        Variant("blvnet_tam_r50", "bLVNet-TAM of 50 layers.", _SSV2),
        Variant(
            "blvnet_tam_r101",
            "bLVNet-TAM of 101 layers.",
            _SSV2,
            {"depth": (4, 8, 18, 3)},
            same_as="blvnet_tam_r50",
        ),
    ),
)
