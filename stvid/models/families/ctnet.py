"""CT-Net: a 2D ResNet in which channels are a table, and convolutions see a row or a column of it at a time.

Li et al., "CT-Net: Channel Tensorization Network for Video Classification", ICLR 2021, arXiv:2106.01603; official code:
Andy1621/CT-Net, ops/models.py, ops/reshape_block.py and arch/resnet.py.

Shapes, for a clip (B, 3, T, H, W): stem and max pool divide space by 4, stages 2 to 4 by 2 each; time stays. Stage i
holds (B, 256 * 2^i, T, H/2^(i+2), W/2^(i+2)).

In some blocks (`replaced`) a tensorized module takes the place of the 3x3 convolution. Its C = X * Y channels are a
table of X rows and Y columns. First each row is convolved in space and in time, in parallel; both results are gated,
added, and gated again; a 1x1 convolution mixes all channels; then the same is done to the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from stvid.models.blocks import rename_keys
from stvid.models.family import Family, Variant
from stvid.models.published_names import read_options
from stvid.models.segments import (
    RESNET_RULES,
    BlockParts,
    BlockPlace,
    PerFrame,
    PerPlace,
    SegmentResNet,
    conv_norm,
    read_trunk,
)
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["CTNet", "ChannelTensorization", "GroupGate"]

Replaced = Literal[3, 4, 5, 7, 12]
Kernel = tuple[int, int]


class GroupGate(nn.Module):
    """Gates channels by an average of them, through two convolutions of groups.

    Args:
        dim: Channels.
        groups: Groups of channels that do not see each other.
        kernel: Kernel of both convolutions, over (H, W), or over (T, place).
        average: Axes of frames (B, T, C, H, W) that are averaged.
    """

    def __init__(self, dim: int, *, groups: int, kernel: Kernel, average: tuple[int, ...]) -> None:
        super().__init__()
        self.average = average
        hidden = dim // 4
        settings: dict[str, Any] = {
            "kernel_size": kernel,
            "padding": (kernel[0] // 2, kernel[1] // 2),
            "groups": groups,
            "bias": False,
        }
        over = PerPlace if kernel[0] > kernel[1] else PerFrame
        self.layers = over(
            nn.Conv2d(dim, hidden, **settings),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, dim, **settings),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to the same shape."""
        return x * self.layers(x.mean(self.average, keepdim=True))


class GroupConvs(nn.Module):
    """Convolutions of groups in space and in time, in parallel, with their gates.

    Args:
        dim: Channels.
        groups: Groups of channels that do not see each other.
    """

    def __init__(self, dim: int, *, groups: int) -> None:
        super().__init__()
        self.space = conv_norm(dim, dim, 3, groups=groups)
        self.time = PerPlace(
            nn.Conv2d(dim, dim, (3, 1), padding=(1, 0), groups=groups, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
        )
        self.space_gate = GroupGate(dim, groups=groups, kernel=(3, 3), average=(1,))
        self.time_gate = GroupGate(dim, groups=groups, kernel=(3, 1), average=(3, 4))
        self.channel_gate = GroupGate(dim, groups=groups, kernel=(1, 1), average=(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to the same shape."""
        return self.channel_gate(self.space_gate(self.space(x)) + self.time_gate(self.time(x)))


class ChannelTensorization(nn.Module):
    """The module that takes the place of a 3x3 convolution: rows, a mixture of all channels, columns.

    Args:
        dim: Channels, a power of 2 from 16 on.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        power = dim.bit_length() - 1
        if dim != 2**power or dim < 16:
            raise ValueError(
                f"embed_dim: {dim} channels inside a block are no power of 2 from 16 on, and make no table"
            )
        self.table = (2 ** (power // 2), 2 ** (power - power // 2))
        self.rows = GroupConvs(dim, groups=self.table[0])
        self.fusion = conv_norm(dim, dim, 1)
        self.columns = GroupConvs(dim, groups=self.table[1])

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames (B, T, dim, H, W) to the same shape."""
        rows, columns = self.table
        x = self.fusion(self.rows(x))
        x = self.columns(x.unflatten(2, (rows, columns)).transpose(2, 3).flatten(2, 3))
        return x.unflatten(2, (columns, rows)).transpose(2, 3).flatten(2, 3)


class CTNet(SegmentResNet):
    """Channel tensorization network on a ResNet.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage, a power of 2 from 64 on.
        replaced: Which blocks have the module, by their number in the ResNet of 50 layers: 7 takes every second block
            of each stage, beginning with its second; 12 all but the first; 4 the second alone; 3 the fourth, the sixth
            and so on; 5 the third, the fifth and so on.
        drop_rate: Dropout before the classifier.

    The features are (B, 8 * embed_dim, T, ceil(H/32), ceil(W/32)). A clip has at least 32 pixels in height and width.
    """

    published_as = "Andy1621/CT-Net"

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (256, 256),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 256,
        replaced: Replaced = 7,
        drop_rate: float = 0.5,
    ) -> None:
        if replaced not in get_args(Replaced):
            raise ValueError(f"replaced {replaced}: must be 3, 4, 5, 7 or 12")

        def make_parts(place: BlockPlace) -> BlockParts:
            return BlockParts(
                spatial=ChannelTensorization(place.inner) if _is_replaced(replaced, place.block) else None
            )

        super().__init__(
            num_classes=num_classes,
            in_chans=in_chans,
            depth=depth,
            embed_dim=embed_dim,
            bottleneck=True,
            make_parts=make_parts,
            drop_rate=drop_rate,
        )

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys; their kernels have three axes."""
        if not any(".sx_attention." in key for key in state):
            return super().convert_checkpoint(state)
        own = {}
        for key, value in rename_keys(state, (*CTNET_RULES, *RESNET_RULES)).items():
            own[key] = value if value.dim() < 5 else value.squeeze(4) if value.shape[2] == 3 else value.squeeze(2)
        return self.published_as, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: the trunk, and which blocks have the module."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("stem.0.weight", "layer1.0.conv1.0.weight"))


def _is_replaced(replaced: int, block: int) -> bool:
    """Tells whether a block has the module, by its number in the stage."""
    return {
        3: block % 2 == 1 and block != 1,
        4: block == 1,
        5: block > 0 and block % 2 == 0,
        7: block % 2 == 1,
        12: block > 0,
    }[replaced]


# --- published keys ---------------------------------------------------------------------------------------------------

CTNET_RULES = (
    (r"^base_model\.", ""),
    (r"^new_fc\.", "fc."),
    (r"\.conv2\.conv1_x\.", ".conv2.rows.space."),
    (r"\.conv2\.conv1_z\.", ".conv2.rows.time."),
    (r"\.conv2\.conv2_y\.", ".conv2.columns.space."),
    (r"\.conv2\.conv2_z\.", ".conv2.columns.time."),
    (r"\.sx_attention\.", ".rows.space_gate."),
    (r"\.tx_attention\.", ".rows.time_gate."),
    (r"\.cx_attention\.", ".rows.channel_gate."),
    (r"\.sy_attention\.", ".columns.space_gate."),
    (r"\.ty_attention\.", ".columns.time_gate."),
    (r"\.cy_attention\.", ".columns.channel_gate."),
    (r"_gate\.fc1\.", "_gate.layers."),
    (r"_gate\.fc2\.0\.", "_gate.layers.3."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    options = read_trunk(own)
    del options["bottleneck"]
    found = [
        [f"layer{stage}.{block}.conv2.fusion.0.weight" in own for block in range(blocks)]
        for stage, blocks in enumerate(options["depth"], start=1)
    ]
    for replaced in (7, 12, 4, 3, 5):
        if found == [[_is_replaced(replaced, block) for block in range(blocks)] for blocks in options["depth"]]:
            return {**options, "replaced": replaced}
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: scripts of Kinetics (full resolution, that is 256 pixels; frames at even distances in a window of 64);
# ops/models.py (`input_mean`, `input_std`).
_K400 = Protocol(frames=16, stride=4, short_side=256, crop=256, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="10x3")

FAMILY = Family(
    model="CTNet",
    paper="Li et al. 2021, arXiv:2106.01603",
    small_clip=(4, 32, 32),
    min_clip=(1, 32, 32),
    formats=("Andy1621/CT-Net",),
    tiny={"depth": (2, 2, 1, 1), "embed_dim": 64},
    slow_goldens=("ctnet_r50_16f__16x64_174cls",),
    golden_options={
        "ctnet_r50_8f__8x64": {"name": "ctnet_r50", "img_size": 64},
        "ctnet_r50_16f__16x64_174cls": {"name": "ctnet_r50", "img_size": 64},
        "ctnet_r50_4f_r12__4x64": {"name": "ctnet_r50", "img_size": 64, "replaced": 12},
    },
    variants=(
        Variant("ctnet_r50", "CT-Net on a ResNet of 50 layers.", _K400),
        Variant(
            "ctnet_r101", "CT-Net on a ResNet of 101 layers.", _K400, {"depth": (3, 4, 23, 3)}, same_as="ctnet_r50"
        ),
    ),
)
