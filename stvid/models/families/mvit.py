"""MViT and MViTv2: transformers whose attention pools queries, keys and values, so that each stage is coarser.

Fan et al., "Multiscale Vision Transformers", ICCV 2021, arXiv:2104.11227; Li et al., "MViTv2: Improved Multiscale
Vision Transformers for Classification and Detection", CVPR 2022, arXiv:2112.01526; official code:
facebookresearch/SlowFast, slowfast/models/video_model_builder.py (MViT) and attention.py, at 287ec007.

Shapes, for a clip (B, 3, T, H, W): a convolution makes a map (B, C, T/2, H/4, W/4), whose cells are the tokens, with a
class token in front: (B, 1 + T/2 * H/4 * W/4, C). Before three of the blocks the channels and heads double, and within
them the queries are pooled by 2x2; so the last stage has 8 * C channels and T/2 * H/32 * W/32 tokens. Keys and values
are pooled further, to about T/2 * H/32 * W/32 tokens in all stages. Every pooling is a depth-wise convolution over the
channels of a head, whose weights the heads share; the class token passes it by.

The two versions differ: the first adds positions to the tokens, pools queries only where they get fewer, and widens in
the MLP of the block before. The second knows relative positions alone, pools the queries of every block, adds them to
what the attention gives, and widens in the attention. Both are built of the blocks of stvid/models/pooled_attention.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap, drop_path_rates, leave_out, rename_keys, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.kernels import clip_layout
from stvid.models.pooled_attention import (
    NORM_EPS,
    STEP,
    Grid,
    Plan,
    PooledAttention,
    PooledBlock,
    around,
    built_cells,
    divided,
)
from stvid.models.published_names import count_blocks, from_mmaction, is_mmaction, read_options, square_side
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["MViT"]

INIT_BIAS = 0.02  # of linear layers and norms (official code)


class OverlappingPatches(nn.Module):
    """Embeds a clip by a convolution with padding; (B, in_chans, T, H, W) to (B, dim, T', H', W').

    Args:
        in_chans: Channels of the clip.
        dim: Channels of a token.
        kernel: Frames, height and width that a token sees.
        stride: Frames, height and width of a cell.
    """

    def __init__(self, in_chans: int, dim: int, *, kernel: Grid, stride: Grid) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, kernel, stride, around(kernel))

    def forward(self, clip: Tensor) -> Tensor:
        """Embeds a clip."""
        return self.proj(clip_layout(clip))


# --- the model --------------------------------------------------------------------------------------------------------


class MViT(VideoModel):
    """MViT and MViTv2.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the tables of positions; other clips are taken, with them resized.
        img_size: (height, width) in pixels, which decide the tables, too.
        in_chans: Channels of the clip.
        version: 1, or 2 for relative positions, queries pooled in every block and added to what attention gives.
        depth: Number of blocks.
        stage_starts: Numbers of the blocks that pool by 2x2, from 0; those from `depth` on mean nothing.
        embed_dim: Channels of the first stage; each later one has twice as many.
        num_heads: Heads of the first stage; each later one has twice as many.
        mlp_ratio: Hidden channels of the MLPs over their input's.
        qkv_bias: Whether queries, keys and values have a bias.
        patch_kernel: Frames, height and width that a token sees.
        patch_stride: Frames, height and width of a cell.
        pool_kernel: Kernel of the poolings in the attention; None takes those that reach one cell beyond their stride,
            and none where the stride is 1.
        kv_stride: Stride of the pooling of keys and values in the first stage; each later one has half of it in space.
        widen_in_attention: Whether channels double in the attention of a stage's first block; if not, in the MLP of the
            block before. None takes the version's: the second one widens in the attention.
        pool_norm_eps: Epsilon of the norms after the poolings. Loading a published format sets that format's.
        drop_rate: Dropout of embeddings and projections.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.

    The features are normalised tokens, (B, 1 + ceil(T/2) * ceil(H/32) * ceil(W/32), 8 * embed_dim), the class token
    first.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = False  # pooled queries and keys are not tokens that attention can be followed through

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        version: Literal[1, 2] = 1,
        depth: int = 16,
        stage_starts: Sequence[int] = (1, 3, 14),
        embed_dim: int = 96,
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        patch_kernel: Grid = (3, 7, 7),
        patch_stride: Grid = (2, 4, 4),
        pool_kernel: Grid | None = (3, 3, 3),
        kv_stride: Grid = (1, 8, 8),
        widen_in_attention: bool | None = None,
        pool_norm_eps: float = NORM_EPS,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        head_drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if version not in (1, 2):
            raise ValueError(f"version {version}: MViT has the versions 1 and 2")
        if list(stage_starts) != sorted(set(stage_starts)) or any(start < 1 for start in stage_starts):
            raise ValueError(
                f"stage_starts {tuple(stage_starts)}: numbers of blocks from 1 on, each larger than before"
            )
        self.num_classes, self.in_chans = num_classes, in_chans
        self.version = version
        self.pool_norm_eps = pool_norm_eps
        self.patch_stride = patch_stride
        self.grid = built_cells((num_frames, *img_size), patch_stride)
        plans = _plans(
            depth=depth,
            starts=tuple(stage_starts),
            first=Plan(
                embed_dim,
                embed_dim,
                embed_dim,
                num_heads,
                q_kernel=pool_kernel if version == 2 else None,
                kv_kernel=pool_kernel,
                q_stride=(1, 1, 1),
                kv_stride=kv_stride,
                grid=self.grid,
            ),
            widen_in_attention=version == 2 if widen_in_attention is None else widen_in_attention,
        )
        self.num_features = plans[-1].out_dim
        self.patch_embed = OverlappingPatches(in_chans, embed_dim, kernel=patch_kernel, stride=patch_stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if version == 1:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, self.grid[1] * self.grid[2], embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid[0], embed_dim))
            self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        attention = partial(
            PooledAttention,
            relative=version == 2,
            qkv_bias=qkv_bias,
            pool_norm_eps=pool_norm_eps,
            drop_rate=drop_rate,
        )
        self.blocks = nn.ModuleList(
            PooledBlock(plan, attention=attention(plan), mlp_ratio=mlp_ratio, drop_rate=drop_rate, drop_path_rate=rate)
            for plan, rate in zip(plans, drop_path_rates(drop_path_rate, depth), strict=True)
        )
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS)
        self.head = LinearHead(self.num_features, num_classes, pool="token", drop_rate=head_drop_rate)
        self._describe([start for start in stage_starts if start < depth], plans)
        self.apply(_init_weights)
        for name, parameter in self.named_parameters():
            if _is_table(name):
                nn.init.trunc_normal_(parameter, std=0.02)

    def _describe(self, starts: Sequence[int], plans: Sequence[Plan]) -> None:
        """Sets `feature_info`: the last block of each stage, and the norm after the last one."""
        self.feature_info = []
        ends = [*(start - 1 for start in starts), len(plans) - 1]
        for stage, end in enumerate(ends):
            t, h, w = self.patch_stride
            name = "norm" if stage == len(starts) else f"blocks.{end}"
            self.feature_info.append(FeatureInfo(name, plans[end].out_dim, (t, h * 2**stage, w * 2**stage)))
        self.stage_ends = ends

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the clip and runs the blocks."""
        self._check_clip(clip)
        maps = self.patch_embed(clip)
        t, h, w = maps.shape[2:]
        grid: Grid = (t, h, w)
        x = torch.cat((self.cls_token.expand(maps.shape[0], -1, -1), maps.flatten(2).transpose(1, 2)), dim=1)
        x = self.pos_drop(x if self.version == 2 else x + self._positions(grid))
        blocks: list[Any] = []
        every: Any = self.blocks
        for block in every:
            blocks.append(partial(block, grid=grid))
            grid = divided(grid, block.stride)
        last, start = len(self.stage_ends) - 1, 0
        for stage, end in enumerate(self.stage_ends):
            x = run_blocks(blocks[start : end + 1], x, recompute=self.grad_checkpointing)
            x = leave_out(last, tap)(stage, x)
            start = end + 1
        return tap(last, self.norm(x))

    def _positions(self, grid: Grid) -> Tensor:
        """Returns the positions of the class token and the cells, (1, 1 + T*H*W, embed_dim)."""
        places = _resize(self.pos_embed_spatial, self.grid[1:], grid[1:])
        times = _resize(self.pos_embed_temporal, self.grid[:1], grid[:1])
        cells = (times.unsqueeze(2) + places.unsqueeze(1)).flatten(1, 2)
        return torch.cat((self.pos_embed_class, cells), dim=1)

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map, at the resolution of its stage."""
        grid = divided(clip_size, self.feature_info[place].reduction)
        return x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding with the tables, then every block in order."""
        return {
            "stem": r"^(?:patch_embed|cls_token|pos_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Turns the layouts of SlowFast, PyTorchVideo, torchvision and mmaction2 into our keys."""
        if "cls_positional_encoding.cls_token" in state:
            name, own = "PyTorchVideo", _join_qkv(rename_keys(state, _PYTORCHVIDEO))
        elif "conv_proj.weight" in state:
            name, own = "torchvision", rename_keys(state, _TORCHVISION)
        elif is_mmaction(state) or "patch_embed.projection.weight" in state:
            name, own = "mmaction2", rename_keys(from_mmaction(state), _MMACTION)
        elif "head.projection.weight" in state:
            name, own = "SlowFast", rename_keys(state, [(r"^head\.projection\.", "head.fc.")])
        else:
            name, own = super().convert_checkpoint(state)
        return name, {key: _with_all_axes(key, value) for key, value in own.items()}

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the epsilon of the norms after the poolings that a layout's weights are used with."""
        published = {"SlowFast": NORM_EPS, "PyTorchVideo": 1e-5, "torchvision": NORM_EPS, "mmaction2": NORM_EPS}
        eps = published.get(format_name, hyperparameters.get("pool_norm_eps", self.pool_norm_eps))
        if eps == self.pool_norm_eps:
            return
        self.pool_norm_eps = eps
        every: Any = self.blocks
        for block in every:
            for norm in (block.attn.norm_q, block.attn.norm_k, block.attn.norm_v):
                if norm is not None:
                    norm.eps = eps
        changed = {**self.recipe.get("hyperparameters", {}), "pool_norm_eps": eps}
        self.recipe = {**self.recipe, "hyperparameters": changed}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: version, stages, depth, kernels, and where the channels double.

        `embed_dim` and `num_heads` show together, as the channels of a head do; strides do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=_NEEDED)

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of places (of a square grid, unless stvid wrote it), times and relative positions."""
        own = self.state_dict()[key].shape
        leaf = key.rpartition(".")[2]
        if table.dim() != len(own) or table.shape[-1] != own[-1] or not table.numel():
            return None
        if leaf.startswith("rel_pos_"):
            return _resize(table.unsqueeze(0), (table.shape[0],), (own[0],)).squeeze(0)
        if leaf == "pos_embed_temporal":
            return _resize(table, (table.shape[1],), self.grid[:1])
        if leaf != "pos_embed_spatial":
            return None
        side = square_side(table.shape[1])
        old = (side, side) if side else None
        if "img_size" in built:
            old = built_cells((1, *built["img_size"]), self.patch_stride)[1:]
        return _resize(table, old, self.grid[1:]) if old and math.prod(old) == table.shape[1] else None


def _plans(*, depth: int, starts: Sequence[int], first: Plan, widen_in_attention: bool) -> list[Plan]:
    """Returns the shape of every block.

    Args:
        depth: Number of blocks.
        starts: Numbers of the blocks that pool.
        first: Shape that the blocks of the first stage would have if no channels doubled.
        widen_in_attention: Whether the block that pools doubles the channels; if not, the one before does.
    """
    plans: list[Plan] = []
    dim, heads, kv_stride, grid = first.dim, first.num_heads, first.kv_stride, first.grid
    for number in range(depth):
        begins = number in starts
        in_dim, q_kernel, q_stride = dim, first.q_kernel, first.q_stride
        if begins:
            heads, q_kernel, q_stride = heads * 2, first.kv_kernel, STEP
            t, h, w = (max(1, size // step) for size, step in zip(kv_stride, STEP, strict=True))
            kv_stride = (t, h, w)
        if widen_in_attention:
            attention_dim = dim = 2 * dim if begins else dim
        else:
            attention_dim, dim = dim, 2 * dim if number + 1 in starts else dim
        plans.append(Plan(in_dim, attention_dim, dim, heads, q_kernel, first.kv_kernel, q_stride, kv_stride, grid))
        grid = built_cells(grid, STEP) if begins else grid
    return plans


def _resize(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resizes a table (1, cells of `old`, dim) linearly, by the places of the cells' centres (official code)."""
    if tuple(old) == tuple(new):
        return table
    grid = table.transpose(1, 2).unflatten(2, tuple(old))
    grid = F.interpolate(grid, size=tuple(new), mode="linear" if len(new) == 1 else "bilinear")
    return grid.flatten(2).transpose(1, 2)


def _is_table(name: str) -> bool:
    return name.rpartition(".")[2].startswith(("cls_token", "pos_embed_", "rel_pos_"))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.constant_(module.bias, INIT_BIAS)


# --- published keys ---------------------------------------------------------------------------------------------------

_PYTORCHVIDEO = (
    (r"^patch_embed\.patch_model\.", "patch_embed.proj."),
    (r"^cls_positional_encoding\.", ""),
    (r"^norm_embed\.", "norm."),
    (r"^head\.proj\.", "head.fc."),
)
_TORCHVISION = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"^pos_encoding\.(spatial|temporal|class)_pos$", r"pos_embed_\1"),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"^head\.1\.", "head.fc."),
)
_MMACTION = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^norm\d\.", "norm."),  # mmaction2 numbers the last norm by its stage
)


def _join_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins the layers of queries, keys and values that PyTorchVideo has apart."""
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.*\.attn\.)([qkv])(\.(?:weight|bias))", key)
        if match is None:
            own[key] = value
        elif match[2] == "q":
            parts = [state.get(f"{match[1]}{part}{match[3]}") for part in "qkv"]
            whole = [part for part in parts if part is not None]
            own[f"{match[1]}qkv{match[3]}"] = torch.cat(whole)
    return own


def _with_all_axes(key: str, value: Tensor) -> Tensor:
    """Gives torchvision's tables the axis of the batch, and the patches of image models that of time."""
    if key == "patch_embed.proj.weight" and value.dim() == 4:
        return value.unsqueeze(2)
    if key == "cls_token" or key.startswith("pos_embed_"):
        while value.dim() < 3:
            value = value.unsqueeze(0)
    return value


_NEEDED = ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.pool_k.weight", "norm.weight")


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    depth = count_blocks(own, "blocks.")
    patches, head_dim = own["patch_embed.proj.weight"], own["blocks.0.attn.pool_k.weight"].shape[0]
    dims = [own[f"blocks.{number}.attn.proj.weight"].shape[0] for number in range(depth)]
    inputs = [own[f"blocks.{number}.norm1.weight"].shape[0] for number in range(depth)]
    ends = [own[f"blocks.{number}.mlp.fc2.weight"].shape[0] for number in range(depth)]
    starts = [number for number in range(1, depth) if dims[number] > dims[number - 1]]
    kernels = [tuple(value.shape[2:]) for key, value in own.items() if key.endswith(".attn.pool_k.weight")]
    version = 2 if "blocks.0.attn.rel_pos_t" in own else 1
    options: dict[str, Any] = {
        "in_chans": patches.shape[1],
        "version": version,
        "depth": depth,
        "stage_starts": tuple(starts),
        "embed_dim": patches.shape[0],
        "num_heads": dims[0] // head_dim,
        "mlp_ratio": own["blocks.0.mlp.fc1.weight"].shape[0] / dims[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        "patch_kernel": tuple(patches.shape[2:]),
        "pool_kernel": kernels[0] if len(set(kernels)) == 1 else None,
        "widen_in_attention": inputs != dims or (version == 2 and inputs == ends),
    }
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/Kinetics/MVIT*.yaml (DATA.*), with what they do not set from slowfast/config/defaults.py (mean,
# standard deviation, TARGET_FPS), and slowfast/datasets/kinetics.py: a single crop is taken of the smaller of
# TRAIN_JITTER_SCALES. The views of the published numbers are those of MODEL_ZOO.md and projects/mvitv2/README.md.
_K400 = Protocol(
    frames=16,
    stride=4,
    fps=30,
    short_side=256,
    crop=224,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    views="5x1",
)
_K400_32 = Protocol(
    frames=32,
    stride=3,
    fps=30,
    short_side=256,
    crop=224,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    views="5x1",
)
_K400_L = Protocol(
    frames=40,
    stride=3,
    fps=30,
    short_side=312,
    crop=312,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    views="5x3",
)
# Official code: configs/ImageNet/MVIT_B_16_CONV.yaml.
_IMAGE = Protocol(frames=1, stride=1, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
_B24 = {"depth": 24, "stage_starts": (2, 5, 21), "drop_path_rate": 0.3}
_V2 = "Li et al. 2022, arXiv:2112.01526"

FAMILY = Family(
    model="MViT",
    paper="Fan et al. 2021, arXiv:2104.11227",
    small_clip=(4, 64, 64),
    formats=("SlowFast", "PyTorchVideo", "torchvision", "mmaction2"),
    tiny={"depth": 4, "stage_starts": (1, 2, 3), "embed_dim": 16, "num_heads": 1},
    slow_goldens=(
        "mma2_mvit_s__keys",
        "mvit_b_16x4__16x224",
        "mvit_b_32x3__32x224",
        "mvitv2_b_32x3__16x96",
        "mvitv2_l_40x3__8x64",
        "mvitv2_s_16x4__16x224",
        "ptv_mvit_b_16x4__16x224",
        "ptv_mvit_b_32x3__32x224",
        "tv_mvit_v1_b__16x224",
        "tv_mvit_v2_s__16x224",
    ),
    golden_options={
        "mma2_mvit_s__keys": {"name": "mvitv2_s_16x4", "img_size": 224},
        "mvitv2_b_32x3__16x96": {"name": "mvitv2_b_32x3", "img_size": 96},
        "mvitv2_l_40x3__8x64": {"name": "mvitv2_l_40x3", "img_size": 64},
    },
    variants=(
        Variant("mvit_b_16x4", "MViT-B, 16 frames.", _K400, params=36.6, gflops=70.5),
        Variant(
            "mvit_b_32x3",
            "MViT-B, 32 frames.",
            _K400_32,
            {"drop_path_rate": 0.3},
            params=36.6,
            gflops=170,
            same_as="mvit_b_16x4",
        ),
        Variant(
            "mvit_b24_32x3",
            "MViT-B of 24 blocks, 32 frames.",
            _K400_32,
            {**_B24, "pool_kernel": None},
            params=52.9,
            gflops=236,
            params_tolerance=0.25,
            note="The official configuration has 53.1M parameters",
            same_as="mvit_b_16x4",
        ),
        Variant("mvitv2_s_16x4", "MViTv2-S, 16 frames.", _K400, {"version": 2}, params=34.5, gflops=64, paper=_V2),
        Variant(
            "mvitv2_b_32x3",
            "MViTv2-B, 32 frames.",
            _K400_32,
            {"version": 2, **_B24},
            params=51.2,
            gflops=225,
            paper=_V2,
            same_as="mvitv2_s_16x4",
        ),
        Variant(
            "mvitv2_l_40x3",
            "MViTv2-L, 40 frames of 312 pixels.",
            _K400_L,
            {
                "version": 2,
                "depth": 48,
                "stage_starts": (2, 8, 44),
                "embed_dim": 144,
                "num_heads": 2,
                "drop_path_rate": 0.75,
            },
            params=213.4,
            gflops=2828,
            paper=_V2,
            note="The paper prints 217.6M parameters; the published configuration, and its file, have 213.4M",
            same_as="mvitv2_s_16x4",
        ),
        Variant(
            "mvit_b_16",
            "MViT-B for images: clips of one frame.",
            _IMAGE,
            {
                "patch_kernel": (1, 7, 7),
                "patch_stride": (1, 4, 4),
                "pool_kernel": (1, 3, 3),
                "kv_stride": (1, 4, 4),
                "drop_path_rate": 0.1,
                "head_drop_rate": 0.0,
            },
            formats=("SlowFast", "PyTorchVideo"),
        ),
    ),
)
