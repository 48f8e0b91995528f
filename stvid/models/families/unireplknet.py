"""UniRepLKNet for video: a large-kernel 2D network over one image that all frames of a clip are laid out in.

Ding et al., "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and
Image Recognition", CVPR 2024, arXiv:2311.15599; official code: AILab-CVC/UniRepLKNet, unireplknet.py, with
Video/run_class_finetuning.py and Video/engine_for_finetuning.py for video.

A clip has 16 frames, (B, 3, 16, H, W), and is read as an image (B, 3, 4H, 4W) in the order of memory: a row of the
image is four rows of a frame side by side, and the frames stand one above the other, each a quarter of its height and
four times its width. So a place of the features is a place of this image, not of a frame.

Shapes: the stem divides the image by 4, stages 2 to 4 by 2 each. Stage i holds (B, embed_dim * 2^i, 1, H/2^i, W/2^i),
rounded up.

A block is a depthwise convolution with its norm, squeeze and excitation, and an MLP with global response normalisation.
The depthwise convolution is 3x3, or 13x13 (11x11 in the last stage of the video script) with dilated branches beside
it, each with a norm. In evaluation mode all branches are one convolution, which `stvid.fuse` makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, SEModule
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from stvid.models.base import StagedModel
from stvid.models.blocks import Tap, drop_path_rates, init_transformer_weights, rename_keys
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.published_names import count_blocks, read_options
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["DilatedConv", "UniRepLKNet"]

FRAMES = 16
SMALL_KERNEL = 3
# Side and dilation of each branch beside a large kernel: official code, DilatedReparamBlock.
BRANCHES = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


def depthwise(dim: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    """Builds a depthwise convolution that keeps the size."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(dim, dim, kernel, padding=padding, dilation=dilation, groups=dim, bias=False)


def as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns the factor and the summand that a norm in evaluation mode has for each channel, in float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a norm without running statistics is no fixed map, so its branch cannot be merged")
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


class DilatedConv(nn.Module):
    """A depthwise convolution of a large kernel, and the sum of dilated ones beside it, each with a norm.

    Args:
        dim: Channels.
        kernel: Side of the large kernel, an odd number from 5 to 17.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        if kernel not in BRANCHES:
            raise ValueError(f"kernel_size {kernel}: choose {SMALL_KERNEL}, {', '.join(map(str, BRANCHES))}")
        self.kernel = kernel
        sizes = {
            "large": (kernel, 1),
            **{f"k{side}_{dilation}": (side, dilation) for side, dilation in BRANCHES[kernel]},
        }
        self.branches = nn.ModuleDict(
            {name: nn.Sequential(depthwise(dim, *size), nn.BatchNorm2d(dim)) for name, size in sizes.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, H, W) to the same shape."""
        first, *others = self.branches.values()
        out = first(x)
        for branch in others:
            out = out + branch(x)
        return out

    def merge(self) -> nn.Conv2d:
        """Returns one convolution that computes what all branches compute in evaluation mode (section 3.1)."""
        first: Any = self.branches["large"]
        old = first[0].weight
        weight = old.new_zeros(old.shape, dtype=torch.float64)
        bias = old.new_zeros(old.shape[0], dtype=torch.float64)
        branch: Any
        for branch in self.branches.values():
            conv, norm = branch
            scale, shift = as_affine(norm)
            step = conv.dilation[0]
            span = step * (conv.kernel_size[0] - 1) + 1
            start = (self.kernel - span) // 2
            places = slice(start, start + span, step)
            weight[:, :, places, places] += conv.weight.double() * scale.view(-1, 1, 1, 1)
            bias += shift
        merged = nn.Conv2d(len(bias), len(bias), self.kernel, padding=self.kernel // 2, groups=len(bias))
        merged.weight = nn.Parameter(weight.to(old.dtype), requires_grad=False)
        merged.bias = nn.Parameter(bias.to(old.dtype), requires_grad=False)
        return merged.eval()


class Block(nn.Module):
    """Depthwise convolution, squeeze and excitation, MLP, with a residual around all of it.

    Args:
        dim: Channels.
        kernel: Side of the depthwise convolution, 3 or a large one of `DilatedConv`.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        drop_path_rate: Stochastic depth.
        layer_scale: Where the factor of each channel of what is added starts.
    """

    norm_neighbours = (("dwconv", "norm"),)

    def __init__(self, dim: int, *, kernel: int, mlp_ratio: float, drop_path_rate: float, layer_scale: float) -> None:
        super().__init__()
        self.dwconv: nn.Module = depthwise(dim, kernel) if kernel == SMALL_KERNEL else DilatedConv(dim, kernel)
        self.norm = nn.BatchNorm2d(dim)
        self.se = SEModule(dim, rd_channels=dim // 4)
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.grn = GlobalResponseNorm(hidden)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(dim)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, H, W) to the same shape."""
        out = self.se(self.norm(self.dwconv(x))).permute(0, 2, 3, 1)
        out = self.fc2(self.grn(self.act(self.fc1(out))))
        out = self.norm2(out.permute(0, 3, 1, 2))
        if self.gamma is not None:
            out = out * self.gamma.view(-1, 1, 1)
        return x + self.drop_path(out)

    def merge(self) -> dict[str, str]:
        """Merges the branches into one convolution, and the last norm and factor into the last linear layer.

        Returns:
            The name of each norm that is gone, with that of the layer that does its work.
        """
        gone: dict[str, str] = {}
        if isinstance(self.dwconv, DilatedConv):
            gone.update({f"dwconv.branches.{name}.1": "dwconv" for name in self.dwconv.branches})
            self.dwconv = self.dwconv.merge()
        if isinstance(self.norm2, nn.BatchNorm2d) and self.gamma is not None:
            scale, shift = (part * self.gamma.double() for part in as_affine(self.norm2))
            weight = self.fc2.weight
            merged = nn.Linear(self.fc2.in_features, self.fc2.out_features)
            merged.weight = nn.Parameter((weight.double() * scale.unsqueeze(1)).to(weight.dtype), requires_grad=False)
            merged.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
            self.fc2, self.norm2, self.gamma = merged.eval(), nn.Identity().eval(), None
            gone["norm2"] = "fc2"
        return gone


class UniRepLKNet(StagedModel):
    """UniRepLKNet over the image that a clip of 16 frames is read as.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, always 16: four by four make the image.
        img_size: (height, width) in pixels, for the protocol only: the weights do not depend on it.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the first stage.
        kernel_size: Side of the large kernels: in all blocks of stage 2, and in some of stage 3.
        last_kernel_size: Side of the kernels of stage 4.
        large_every: In stage 3 the first of so many blocks has a large kernel, the others one of 3x3.
        mlp_ratio: Hidden channels of the MLPs over those of the stage.
        drop_path_rate: Stochastic depth of the last block.
        layer_scale: Where the factor of each channel of what a block adds starts.

    The features are (B, 8 * embed_dim, 1, ceil(H/8), ceil(W/8)), before the last norm; their places are those of the
    image that holds all frames, as the head of this file says. A clip has at least 8 pixels in height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = FRAMES,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 3, 27, 3),
        embed_dim: int = 128,
        kernel_size: int = 13,
        last_kernel_size: int = 11,
        large_every: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        if num_frames != FRAMES:
            raise ValueError(
                f"num_frames {num_frames}: UniRepLKNet reads {FRAMES} frames as one image, no other number"
            )
        if large_every < 1:
            raise ValueError(f"large_every {large_every}: must be at least 1")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, embed_dim * 8
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim // 2, 3, stride=2, padding=1),
            LayerNorm2d(embed_dim // 2, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=2, padding=1),
            LayerNorm2d(embed_dim, eps=1e-6),
        )
        dims = [embed_dim * 2**stage for stage in range(4)]
        self.downsamples = nn.ModuleDict(
            {
                str(stage + 1): nn.Sequential(
                    nn.Conv2d(dims[stage - 1], dims[stage], 3, stride=2, padding=1), LayerNorm2d(dims[stage], eps=1e-6)
                )
                for stage in (1, 2, 3)
            }
        )
        rates = iter(drop_path_rates(drop_path_rate, sum(depth)))

        def make_block(stage: int, block: int) -> Block:
            large = stage == 1 or (stage == 2 and block % large_every == 0)
            kernel = last_kernel_size if stage == 3 else kernel_size if large else SMALL_KERNEL
            return Block(
                dims[stage], kernel=kernel, mlp_ratio=mlp_ratio, drop_path_rate=next(rates), layer_scale=layer_scale
            )

        self.build_stages(depth, make_block)
        self.describe_stages(embed_dim, [(FRAMES, 2**stage, 2**stage) for stage in range(4)])
        self.head = LinearHead(self.num_features, num_classes, norm_eps=1e-6)
        self.apply(_init_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Reads the clip as an image, and runs the stem and the stages over it."""
        self._check_clip(clip, minimum=(FRAMES, 8, 8))
        if clip.shape[2] != FRAMES:
            raise ValueError(
                f"{type(self).__name__} reads {FRAMES} frames as one image of four by four, not {clip.shape[2]}: "
                f"give it clips of {FRAMES} frames (protocol.frames)"
            )

        def tap_image(number: int, x: Tensor) -> Tensor:
            return tap(number, x.unsqueeze(2)).squeeze(2)

        x = clip.reshape(clip.shape[0], clip.shape[1], 4 * clip.shape[3], 4 * clip.shape[4])
        if clip.device.type == "cpu":  # linear layers and norms then see the channels of a place side by side
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        for number in (1, 2, 3, 4):
            x = self.downsamples[str(number)](x) if number > 1 else x
            x = self.run_stage(number, x, tap_image)
        return x.unsqueeze(2)

    def merge_branches(self) -> dict[str, str]:
        """Merges the branches of each block into one convolution, and norms and factors into linear layers."""
        return {
            f"{name}.{norm}": f"{name}.{layer}"
            for name, block in self.named_modules()
            if isinstance(block, Block)
            for norm, layer in block.merge().items()
        }

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block in order, each stage with what comes before it."""
        return {"stem": r"^stem\.", "blocks": [(r"^downsamples\.(\d)\.", (0,)), (r"^layer(\d)\.(\d+)\.", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the authors' layout into our keys."""
        if "downsample_layers.0.0.weight" not in state:
            return "stvid", dict(state)
        own = rename_keys(state, UNIREPLKNET_RULES)
        return "AILab-CVC/UniRepLKNet", {
            key: value.flatten() if ".grn." in key else value for key, value in own.items()
        }

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels, depth, kernels."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("stem.0.weight", "layer4.0.fc1.weight"))


def _init_weights(module: nn.Module) -> None:
    """Draws convolutions and linear weights from a truncated normal of 0.02, with zero biases, as the authors do."""
    init_transformer_weights(module)
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- published keys ---------------------------------------------------------------------------------------------------

UNIREPLKNET_RULES = (
    (r"^downsample_layers\.0\.", "stem."),
    *((rf"^downsample_layers\.{stage}\.", f"downsamples.{stage + 1}.") for stage in (1, 2, 3)),
    *((rf"^stages\.{stage}\.", f"layer{stage + 1}.") for stage in range(4)),
    (r"\.dwconv\.lk_origin\.", ".dwconv.branches.large.0."),
    (r"\.dwconv\.origin_bn\.", ".dwconv.branches.large.1."),
    (r"\.dwconv\.dil_conv_(k\d+_\d)\.", r".dwconv.branches.\1.0."),
    (r"\.dwconv\.dil_bn_(k\d+_\d)\.", r".dwconv.branches.\1.1."),
    (r"\.se\.down\.", ".se.fc1."),
    (r"\.se\.up\.", ".se.fc2."),
    (r"\.pwconv1\.1\.", ".fc1."),
    (r"\.act\.1\.gamma$", ".grn.weight"),
    (r"\.act\.1\.beta$", ".grn.bias"),
    (r"\.pwconv2\.0\.", ".fc2."),
    (r"\.pwconv2\.2\.", ".norm2."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    depth = tuple(count_blocks(own, f"layer{stage}.") for stage in range(1, 5))
    large = [block for block in range(depth[2]) if f"layer3.{block}.dwconv.branches.large.0.weight" in own]
    options = {
        "in_chans": own["stem.0.weight"].shape[1],
        "depth": depth,
        "embed_dim": own["stem.3.weight"].shape[0],
        "mlp_ratio": own["layer4.0.fc1.weight"].shape[0] / own["layer4.0.fc1.weight"].shape[1],
        "large_every": large[1] - large[0] if len(large) > 1 else max(depth[2], 1),
    }
    for name, stage in (("kernel_size", 2), ("last_kernel_size", 4)):
        weight = own.get(f"layer{stage}.0.dwconv.branches.large.0.weight")
        options[name] = SMALL_KERNEL if weight is None else weight.shape[3]
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: Video/run_unireplknet.sh, and Video/dataset/datasets.py (mean and std). For video the authors built the
# larger model alone, with kernels of 11 in the last stage; the smaller one is their `unireplknet_t` of images, with its
# own kernels, in the same place.
_K400 = Protocol(frames=16, stride=4, short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="5x3")

FAMILY = Family(
    model="UniRepLKNet",
    paper="Ding et al. 2024, arXiv:2311.15599",
    small_clip=(16, 32, 32),
    min_clip=(16, 8, 8),
    formats=("AILab-CVC/UniRepLKNet",),
    tiny={"depth": (1, 1, 2, 1), "embed_dim": 16},
    golden_options={"unireplknet_video_b__16x32": {"name": "unireplknet_video_b", "img_size": 32}},
    variants=(
        Variant("unireplknet_video_b", "UniRepLKNet-B, which sees 16 frames as one image.", _K400),
        Variant(
            "unireplknet_video_t",
            "UniRepLKNet-T, which sees 16 frames as one image.",
            _K400,
            {"depth": (3, 3, 18, 3), "embed_dim": 80, "large_every": 2, "last_kernel_size": 13},
        ),
    ),
)
