"""UniFormerV2: CLIP's image transformer on every frame, with convolutions over time and one query that looks at all.

Li et al., "UniFormerV2: Spatiotemporal Learning by Arming Image ViTs with Video UniFormer", ICCV 2023,
arXiv:2211.09552; official code: OpenGVLab/UniFormerV2, slowfast/models/uniformerv2_model.py.

Shapes, for a clip (B, 3, T, H, W): each frame is cut into S = H/16 * W/16 patches (14 for L), and the blocks of CLIP's
Vision Transformer see one frame at a time, (B * T, 1 + S, embed_dim), its class token first. After each of the last
`global_depth` blocks a global block follows: patches get a position from a depth-wise 3x3x3 convolution, and one query,
which goes from one global block to the next, looks at all T * (1 + S) tokens. What is classified is a learned mixture
of that query and the mean of the frames' class tokens.

The models for Kinetics (`local_blocks` off) add nothing else. Those for Something-Something halve the frames with a
stem that overlaps in time (`temporal_downsample`), and have before each attention and each MLP a convolution over three
frames (`local_blocks`), whose last layer starts with zeros.

Nothing of it depends on the number of frames; the table of positions is that of a frame. CLIP's own files are the
published starting point: they load with a new head, and what they have not stays as it is initialised.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Attention,
    Block,
    Mlp,
    QueryAttention,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    rename_keys,
    resize_grid,
    run_blocks,
    taps,
)
from stvid.models.convolution import depthwise
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.published_names import (
    CLIP_BLOCKS,
    count_blocks,
    from_mmaction,
    read_options,
    square_side,
)
from stvid.protocol import Protocol

__all__ = ["UniFormerV2"]

NORM_EPS = 1e-5  # epsilon of every LayerNorm (official code)
LOCAL_REDUCTION = 1.5  # UNIFORMERV2.DW_REDUCTION of every published configuration
_NATIVE = "OpenGVLab/UniFormerV2"
_CLIP = "openai/CLIP"


class OverlappingEmbed(nn.Module):
    """Embeds patches of every second frame with what lies before and after; (B, C, T, H, W) to (B, T/2, h, w, dim)."""

    def __init__(self, in_chans: int, dim: int, *, patch_size: int) -> None:
        super().__init__()
        kernel, stride = (3, patch_size, patch_size), (2, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, dim, kernel, stride=stride, padding=(1, 0, 0), bias=False)

    def forward(self, clip: Tensor) -> Tensor:
        """Embeds the patches."""
        return self.proj(clip).permute(0, 2, 3, 4, 1)


def _stem(in_chans: int, dim: int, patch_size: int, *, overlap: bool) -> nn.Module:
    """Builds the layer that embeds the patches, of each frame or, with `overlap`, of every second one."""
    if overlap:
        return OverlappingEmbed(in_chans, dim, patch_size=patch_size)
    return TubeletEmbed(in_chans, dim, tubelet_size=(1, patch_size, patch_size), bias=False)


def _local(dim: int) -> nn.Sequential:
    """Builds the relation of a patch to those at its place in the frames before and after (L_MHRA, section 3.2)."""
    hidden = int(dim // LOCAL_REDUCTION)
    layers = nn.Sequential(
        nn.BatchNorm3d(dim),
        nn.Conv3d(dim, hidden, 1),
        nn.Conv3d(hidden, hidden, (3, 1, 1), padding=(1, 0, 0), groups=hidden),
        nn.Conv3d(hidden, dim, 1),
    )
    for parameter in layers[3].parameters():
        nn.init.zeros_(parameter)
    return layers


class LocalBlock(Block):
    """A block of CLIP with a convolution over time before the attention and another before the MLP.

    Args:
        dim: Channels of a token.
        attention: Mixes the tokens of a frame.
        **options: As in `Block`.
    """

    def __init__(self, dim: int, *, attention: Attention, **options: Any) -> None:
        super().__init__(dim, attention=attention, **options)
        self.local1 = _local(dim)
        self.local2 = _local(dim)

    def forward(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:  # type: ignore[override]
        """Maps the frames' tokens, (B * T, 1 + H * W, dim), to the same shape; `grid` is (T, H, W)."""
        x = self._along_time(self.local1, x, grid)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return self.feed_forward(self._along_time(self.local2, x, grid))

    def _along_time(self, local: nn.Module, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        maps = x[:, 1:].reshape(-1, *grid, x.shape[-1]).permute(0, 4, 1, 2, 3)
        maps = maps + self.drop_path(local(maps))
        return torch.cat((x[:, :1], maps.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, x.shape[-1])), dim=1)


class _GlobalMlp(Mlp):
    """An MLP with dropout of the hidden channels alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies both layers."""
        return self.fc2(self.drop(self.act(self.fc1(x))))


class GlobalBlock(nn.Module):
    """The query looks at all tokens of the clip (section 3.3).

    Args:
        dim: Channels of a token.
        num_heads: Heads of the attention.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        drop_rate: Dropout of the MLP's hidden channels.
        drop_path_rate: Stochastic depth.
    """

    def __init__(
        self, dim: int, *, num_heads: int, mlp_ratio: float, drop_rate: float = 0.0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.pos_conv = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = QueryAttention(dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = _GlobalMlp(dim, round(dim * mlp_ratio), drop_rate=drop_rate, gelu="quick")
        self.drop_path = DropPath(drop_path_rate)

    def init_weights(self) -> None:
        """Starts as the identity of the query (official code)."""
        for layer in (self.attn.q, self.attn.k, self.attn.v, self.mlp.fc1):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.attn.proj, self.mlp.fc2):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.pos_conv.bias)  # type: ignore[arg-type]

    def forward(self, query: Tensor, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Maps the query (B, 1, dim) to the same shape; it sees the frames' tokens (B * T, 1 + H * W, dim)."""
        patches = x[:, 1:].reshape(-1, *grid, x.shape[-1]).permute(0, 4, 1, 2, 3)
        patches = (patches + depthwise(self.pos_conv, patches)).permute(0, 2, 3, 4, 1).flatten(2, 3)
        cls = x[:, :1].reshape(-1, grid[0], 1, x.shape[-1])
        tokens = self.norm3(torch.cat((cls, patches), dim=2).flatten(1, 2))
        query = query + self.drop_path(self.attn(self.norm1(query), tokens, tokens))
        return query + self.drop_path(self.mlp(self.norm2(query)))


class UniFormerV2(VideoModel):
    """UniFormerV2.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, on which no weight depends; with `temporal_downsample` they are halved.
        img_size: (height, width) in pixels, which decides the table of positions; other clips get it resized.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        depth: Blocks of the Vision Transformer.
        global_depth: A global block follows each of that many of the last blocks; None takes the published 4, and with
            `local_blocks` the last two thirds of them.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        local_blocks: Whether convolutions over time stand before each attention and each MLP.
        temporal_downsample: Whether the stem halves the frames.
        mix_class_tokens: Whether the frames' class tokens are mixed with the query; the authors' models with frozen
            blocks classify the query alone.
        drop_path_rate: Stochastic depth of the last block of the Vision Transformer; it grows linearly from 0.
        global_drop_path_rate: Stochastic depth of the last global block; it grows linearly from 0.
        global_drop_rate: Dropout in the MLPs of the global blocks.
        head_drop_rate: Dropout before the classifier.

    The features are tokens (B, 1 + T*S, embed_dim): what is classified, before its norm, and then the patches frame by
    frame. A clip has at least one patch.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = False  # what is classified looks at tokens of no sequence's own

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 16,
        depth: int = 12,
        global_depth: int | None = None,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        local_blocks: bool = False,
        temporal_downsample: bool = False,
        mix_class_tokens: bool = True,
        drop_path_rate: float = 0.0,
        global_drop_path_rate: float = 0.0,
        global_drop_rate: float = 0.5,
        head_drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if min(img_size) < patch_size:
            raise ValueError(f"img_size {img_size} is smaller than a patch of {patch_size} pixels")
        if global_depth is None:  # of every published configuration
            global_depth = max(1, 2 * depth // 3) if local_blocks else min(4, depth)
        if not 0 < global_depth <= depth:
            raise ValueError(f"global_depth {global_depth}: one global block follows each of up to {depth} blocks")
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.patch_size, self.local_blocks, self.temporal_stride = patch_size, local_blocks, 1 + temporal_downsample
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.patch_embed = _stem(in_chans, embed_dim, patch_size, overlap=temporal_downsample)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), embed_dim))
        self.norm_pre = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        kind = LocalBlock if local_blocks else Block
        self.blocks = nn.ModuleList(
            kind(
                embed_dim,
                attention=Attention(embed_dim, num_heads=num_heads, axes="space"),
                mlp_ratio=mlp_ratio,
                drop_path_rate=rate,
                norm_eps=NORM_EPS,
                gelu="quick",
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.query = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.global_blocks = nn.ModuleList(
            GlobalBlock(
                embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, drop_rate=global_drop_rate, drop_path_rate=rate
            )
            for rate in drop_path_rates(global_drop_path_rate, global_depth)
        )
        self.balance = nn.Parameter(torch.zeros(embed_dim)) if mix_class_tokens else None
        self.head = LinearHead(embed_dim, num_classes, pool="token", norm_eps=NORM_EPS, drop_rate=head_drop_rate)
        reduction = (self.temporal_stride, patch_size, patch_size)
        self.feature_info = [FeatureInfo(f"blocks.{number}", embed_dim, reduction) for number in range(depth)]
        self._init_weights()

    def _init_weights(self) -> None:
        self.apply(init_transformer_weights)
        for table in (self.cls_token, self.pos_embed):
            nn.init.normal_(table, std=self.num_features**-0.5)
        for block in self.global_blocks:
            block.init_weights()  # type: ignore[operator]

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the blocks on each frame, and the global blocks on their tokens."""
        self._check_clip(clip, minimum=(1, self.patch_size, self.patch_size))
        x = self.patch_embed(clip)
        batch, *sizes, _ = x.shape
        grid = (sizes[0], sizes[1], sizes[2])
        positions = resize_grid(self.pos_embed[:, 1:], self.grid, grid[1:], mode="cubic")
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch * grid[0], -1, -1)
        x = self.norm_pre(torch.cat((cls, x.flatten(0, 1).flatten(1, 2) + positions), dim=1))
        query = self.query.repeat(batch, 1, 1)
        recompute, depth = self.grad_checkpointing, len(self.blocks)
        for number, block in enumerate(self.blocks):
            frames = functools.partial(block, grid=grid) if self.local_blocks else block
            last = number == depth - 1
            x = run_blocks([frames], x, recompute=recompute, tap=None if last else tap, first=number)
            place = number - (depth - len(self.global_blocks))
            if place >= 0:
                look = functools.partial(self.global_blocks[place], x=x, grid=grid)
                query = run_blocks([look], query, recompute=recompute)
        tokens = x.unflatten(0, (batch, grid[0]))
        if self.balance is not None:
            share = self.balance.sigmoid()
            query = (1 - share) * query + share * tokens[:, :, 0].mean(1, keepdim=True)
        return tap(depth - 1, torch.cat((query, tokens[:, :, 1:].flatten(1, 2)), dim=1))

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map; between the blocks each frame is a sequence."""
        if place == len(self.feature_info) - 1:
            return super().to_map(x, place, clip_size)
        return (
            x[:, 1:]
            .unflatten(1, self.token_grid(clip_size)[1:])
            .unflatten(0, (-1, self.token_grid(clip_size)[0]))
            .permute(0, 4, 1, 2, 3)
        )

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each patch of each frame, or of every second one."""
        time, height, width = clip_shape[-3:]
        return -(-time // self.temporal_stride), height // self.patch_size, width // self.patch_size

    def no_weight_decay(self) -> set[str]:
        """Returns the tables and the tokens."""
        return {"pos_embed", "cls_token", "query"}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, every block in order, then the global blocks."""
        return {
            "stem": r"^patch_embed|^cls_token|^pos_embed|^norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None)],
            "global_blocks": [(r"^global_blocks|^query|^balance", (99999,))],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' checkpoints, mmaction2's, and CLIP's own, of which the rest is left as it is."""
        name, own = super().convert_checkpoint(state)
        bare = from_mmaction(own)
        if "transformer.temporal_cls_token" in bare:
            name = "mmaction2" if "transformer.norm.weight" in bare else _NATIVE
            own = _split_queries(rename_keys(bare, _OFFICIAL))
        elif any(key in own for key in ("visual.class_embedding", "class_embedding")):
            name, own = _CLIP, self._from_clip(own)
        if name != "stvid":
            own = _with_axes(own)
        return name, own

    def _from_clip(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns CLIP's image transformer without its last norm and projection, and our own for what it has not."""
        if "visual.class_embedding" in state:
            state = {key[7:]: value for key, value in state.items() if key.startswith("visual.")}
        own = rename_keys(state, _OFFICIAL)
        own = {key: value for key, value in own.items() if not key.startswith(("ln_post.", "proj"))}
        stem = own.get("patch_embed.proj.weight")
        if stem is not None and stem.dim() == 4:
            frames = self.state_dict()["patch_embed.proj.weight"].shape[2]
            own["patch_embed.proj.weight"] = taps(stem, frames, init="center")
        new = ("query", "balance", "global_blocks.")
        fresh = {key: value for key, value in self.state_dict().items() if key.startswith(new) or ".local" in key}
        return {**fresh, **own}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: patches, depths, the kind of blocks, and the size (taken as square).

        `embed_dim` is not among it: the heads that go with other channels do not show; nor do the frames.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "pos_embed"))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the table of positions (of a square grid, unless stvid wrote it)."""
        if key != "pos_embed" or table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        side = square_side(table.shape[1] - 1)
        old = None if side is None else (side, side)
        if "img_size" in built:
            old = (built["img_size"][0] // self.patch_size, built["img_size"][1] // self.patch_size)
        if old is None or math.prod(old) != table.shape[1] - 1:
            return None
        return torch.cat((table[:, :1], resize_grid(table[:, 1:], old, self.grid, mode="cubic")), dim=1)


# --- conversion -------------------------------------------------------------------------------------------------------

_OFFICIAL = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^transformer\.resblocks\.(\d+)\.lmhra(\d)\.pos_embed\.", r"blocks.\1.local\2."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"^transformer\.temporal_cls_token$", "query"),
    (r"^transformer\.balance$", "balance"),
    (r"^transformer\.dpe\.(\d+)\.", r"global_blocks.\1.pos_conv."),
    (r"^transformer\.dec\.", "global_blocks."),
    (r"^transformer\.proj\.0\.", "head.norm."),
    (r"^transformer\.proj\.2\.", "head.fc."),
    (r"^transformer\.norm\.", "head.norm."),  # mmaction2
    *CLIP_BLOCKS,
)


def _split_queries(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives queries, keys and values of the global blocks layers of their own."""
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("global_blocks.") and ".attn.qkv." in key:
            own |= {key.replace(".qkv.", f".{part}."): piece for part, piece in zip("qkv", value.chunk(3), strict=True)}
        else:
            own[key] = value
    return own


def _with_axes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives CLIP's class token and table the axes that ours have."""
    for key, axes in (("cls_token", 3), ("pos_embed", 3)):
        while key in state and state[key].dim() < axes:
            state[key] = state[key].unsqueeze(0)
    return state


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    options: dict[str, Any] = {
        "in_chans": patches[1],
        "temporal_downsample": patches[2] == 3,
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "global_depth": count_blocks(own, "global_blocks."),
        "local_blocks": "blocks.0.local1.0.weight" in own,
        "mix_class_tokens": "balance" in own,
    }
    side = square_side(own["pos_embed"].shape[1] - 1)
    return options if side is None else {**options, "img_size": (side * patches[3],) * 2}


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: exp/k400/*/run.sh (4 clips of 3 crops), slowfast/datasets/kinetics_sparse.py (frames spread over the
# whole video, short side at TEST_CROP_SIZE), slowfast/config/defaults.py (mean and standard deviation).
_K400 = Protocol(frames=8, sampling="segment", short_side=224, crop=224, views="4x3")
_LARGE = {"patch_size": 14, "depth": 24, "embed_dim": 1024, "num_heads": 16}

FAMILY = Family(
    model="UniFormerV2",
    paper="Li et al. 2023, arXiv:2211.09552",
    small_clip=(4, 112, 112),  # a multiple of both patches
    min_clip=(1, 16, 16),
    formats=("OpenGVLab/UniFormerV2", "mmaction2", "openai/CLIP"),
    tiny={"depth": 3, "global_depth": 2, "embed_dim": 48, "num_heads": 4},
    slow_goldens=("uniformerv2_b16__8x64", "uniformerv2_l14_d6__4x56"),
    golden_options={
        "uniformerv2_b16__8x64": {"name": "uniformerv2_b16", "img_size": 64},
        "uniformerv2_b16_ssv2_d6__8x64": {
            "name": "uniformerv2_b16",
            "img_size": 64,
            "depth": 6,
            "local_blocks": True,
            "temporal_downsample": True,
        },
        "uniformerv2_l14_d6__4x56": {"name": "uniformerv2_l14", "img_size": 56, "depth": 6},
    },
    variants=(
        Variant("uniformerv2_b16", "UniFormerV2-B/16, from CLIP's ViT-B/16.", _K400, params=115, params_tolerance=0.5),
        Variant(
            "uniformerv2_l14",
            "UniFormerV2-L/14, from CLIP's ViT-L/14.",
            _K400,
            _LARGE,
            params=354,
            params_tolerance=0.5,
            min_clip=(1, 14, 14),
        ),
    ),
)
