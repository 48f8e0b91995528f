"""InternVideo2: a plain Vision Transformer over all frames, from 22 million to 6 billion parameters (stage 1).

Wang et al., "InternVideo2: Scaling Foundation Models for Multimodal Video Understanding", ECCV 2024, arXiv:2403.15377;
official code: OpenGVLab/InternVideo, InternVideo2/single_modality/models/internvideo2.py, and internvideo2_ap.py for
attentive probing (`extra_mlp`). These are the classifiers of the first stage; S, B and L were distilled from 1B.

Shapes, for a clip (B, 3, T, H, W): every frame is cut into patches of 14x14 pixels, which with a class token make
(B, 1 + T * H/14 * W/14, embed_dim). Each block attends over all of them. The mean of all tokens is the query that pools
them by attention to 768 channels, which are normalised and classified; the class token is a token like any other.

The blocks have root-mean-square norms, no bias of queries, keys and values, norms of queries and keys over the full
width, before it is split into heads, and a factor for each channel of what they add.

The published files were trained with the tanh approximation of the GELU in the blocks (flash_attn's FusedMLP, whose
default is ``gelu_approx``), while the same class without that library has the exact one. ``gelu="tanh"`` computes what
the files were trained for, and is what the table of published weights sets; ``none`` is the default, as in the code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Attention,
    Block,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    keep_visible,
    rename_keys,
    resize_grid,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import MeanQueryHead
from stvid.models.merging import merge_as_built
from stvid.models.published_names import count_blocks, mlp_ratio, read_options, square_side
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["InternVideo2"]

NORM_EPS = 1e-6  # epsilon of the blocks' norms (official code)
LAYER_SCALE = 1e-5  # init_values
POOLED = 768  # clip_embed_dim of every published model
PUBLISHED_FRAMES = (8, 16, 4, 32)  # of the published tables; run_finetuning.py takes 8
_NATIVE = "OpenGVLab/InternVideo2"
_PRETRAINING = "OpenGVLab/InternVideo2 pretraining"


class NormedAttention(Attention):
    """Self-attention over the clip whose queries and keys are normalised over all heads; (B, N, dim) to the same."""

    def __init__(self, dim: int, *, num_heads: int, qkv_bias: bool = False, attn_drop_rate: float = 0.0) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, attn_drop_rate=attn_drop_rate, axes="clip")
        self.q_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(dim, eps=NORM_EPS)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the projections of tokens (B, N, dim), each (B, N, num_heads, head_dim)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        heads = (self.num_heads, -1)
        return self.q_norm(q).unflatten(-1, heads), self.k_norm(k).unflatten(-1, heads), v.unflatten(-1, heads)


def _angles(positions: np.ndarray, dim: int) -> np.ndarray:
    """Returns sines and then cosines of each position, (..., dim)."""
    rates = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float32) / (dim / 2.0))
    angles = positions[..., None] * rates
    return np.concatenate((np.sin(angles), np.cos(angles)), axis=-1)


def _in_space(height: int, width: int, dim: int) -> np.ndarray:
    """Returns the code of each place, (height, width, dim): of its column, then of its row."""
    rows, columns = np.meshgrid(np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing="ij")
    return np.concatenate((_angles(columns, dim // 2), _angles(rows, dim // 2)), axis=-1)


def positions_3d(grid: Sequence[int], dim: int) -> Tensor:
    """Returns the code of each cell of (t, h, w), float32 (1, t*h*w, dim): a quarter is time, the rest is space."""
    time, height, width = grid
    space = np.broadcast_to(_in_space(height, width, dim // 4 * 3), (time, height, width, dim // 4 * 3))
    frames = _angles(np.arange(time, dtype=np.float32), dim // 4)[:, None, None]
    table = np.concatenate((np.broadcast_to(frames, (time, height, width, dim // 4)), space), axis=-1)
    return torch.from_numpy(table.astype(np.float32)).flatten(0, 2).unsqueeze(0)


class InternVideo2(VideoModel):
    """InternVideo2's classifier of the first stage.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the table of positions; other clips are taken, with it resized.
        img_size: (height, width) in pixels, which decides the table, too.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames of a patch.
        depth: Number of blocks.
        embed_dim: Channels of a token; a multiple of 16.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        pool_num_heads: Heads of the attention that pools.
        sep_pos_embed: Whether places and times have a table each, which are added.
        extra_mlp: Whether an MLP follows the pooling (the authors' attentive probes).
        gelu: The GELU of the blocks: ``none`` is the exact one; ``tanh`` is that of the published files.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.
        token_merging: ``r`` and ``prop_attn`` of `stvid.merge_tokens`, such as ``{"r": 8}``; None merges nothing.

    The features are the tokens after the last block, (B, 1 + t*h*w, embed_dim), the class token first, which no norm
    has seen. Frames and pixels that fill no patch are left out.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = False  # what is classified is the mean of the tokens, which pools them
    takes_mask = True

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 14,
        tubelet_size: int = 1,
        depth: int = 12,
        embed_dim: int = 384,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        pool_num_heads: int = 16,
        sep_pos_embed: bool = False,
        extra_mlp: bool = False,
        gelu: Literal["none", "tanh"] = "none",
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        token_merging: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if embed_dim % 16:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of 16, which the table of positions needs")
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.tubelet = (tubelet_size, patch_size, patch_size)
        self.grid = self.token_grid((num_frames, *img_size))
        if not all(self.grid):
            raise ValueError(
                f"num_frames {num_frames}, img_size {img_size}: smaller than a patch of {tubelet_size} frames of "
                f"{patch_size}x{patch_size} pixels"
            )
        self.sep_pos_embed = sep_pos_embed
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=self.tubelet)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self._make_tables(embed_dim)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                attention=NormedAttention(embed_dim, num_heads=num_heads, attn_drop_rate=attn_drop_rate),
                mlp_ratio=mlp_ratio,
                drop_path_rate=rate,
                norm_eps=NORM_EPS,
                gelu=gelu,
                rms_norm=True,
                layer_scale=LAYER_SCALE,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        pooling: dict[str, Any] = {"num_heads": pool_num_heads, "out_features": POOLED, "extra_mlp": extra_mlp}
        self.head = MeanQueryHead(embed_dim, num_classes, drop_rate=head_drop_rate, **pooling)
        self.feature_info = [FeatureInfo(f"blocks.{number}", embed_dim, self.tubelet) for number in range(depth)]
        self._init_weights()
        if token_merging is not None:
            merge_as_built(self, token_merging)

    def _make_tables(self, dim: int) -> None:
        """Makes the tables of positions, which start as sines and are trained."""
        time, height, width = self.grid
        if self.sep_pos_embed:
            space = torch.from_numpy(_in_space(height, width, dim).astype(np.float32)).flatten(0, 1)
            frames = torch.from_numpy(_angles(np.arange(time, dtype=np.float32), dim).astype(np.float32))
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, time, dim))
            self.pos_embed_cls = nn.Parameter(torch.zeros(1, 1, dim))
            with torch.no_grad():
                self.pos_embed_spatial.copy_(space.unsqueeze(0))
                self.pos_embed_temporal.copy_(frames.unsqueeze(0))
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), dim))
            with torch.no_grad():
                self.pos_embed[:, 1:].copy_(positions_3d(self.grid, dim))

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_transformer_weights)
        with torch.no_grad():
            blocks = [module for module in self.modules() if isinstance(module, Block)]
            for number, block in enumerate(blocks, start=1):  # official code: fix_init_weight
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight.div_(math.sqrt(2.0 * number))
            if isinstance(self.head.fc, nn.Linear):
                self.head.fc.weight.mul_(0.001)  # init_scale

    def _positions(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns the codes of the class token and of the cells of a grid."""
        if not self.sep_pos_embed:
            return self.pos_embed[:, :1], resize_grid(self.pos_embed[:, 1:], self.grid, grid, mode="cubic")
        space = resize_grid(self.pos_embed_spatial, self.grid[1:], grid[1:], mode="cubic")
        frames = resize_grid(self.pos_embed_temporal, self.grid[:1], grid[:1], mode="cubic")
        return self.pos_embed_cls, (frames.unsqueeze(2) + space.unsqueeze(1)).flatten(1, 2)

    def embed(self, clip: Tensor) -> Tensor:
        """Embeds the patches and adds their positions; (B, in_chans, T, H, W) to (B, 1 + t*h*w, embed_dim)."""
        self._check_clip(clip, minimum=self.tubelet)
        x = self.patch_embed(clip)
        first, cells = self._positions(x.shape[1:4])
        return torch.cat(((self.cls_token + first).expand(x.shape[0], -1, -1), x.flatten(1, 3) + cells), dim=1)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the patches and runs the blocks."""
        return run_blocks(self.blocks, self.embed(clip), recompute=self.grad_checkpointing, tap=tap)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Runs the blocks on the class token and some of the others, as the pretraining does."""
        x = keep_visible(self.embed(clip), visible, prefix=1)
        return run_blocks(self.blocks, x, recompute=self.grad_checkpointing)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each whole patch."""
        time, height, width = (size // step for size, step in zip(clip_shape[-3:], self.tubelet, strict=True))
        return time, height, width

    def mergeable_blocks(self) -> dict[str, nn.Module]:
        """Returns the blocks, all of which attend over the whole clip."""
        return {f"blocks.{number}": block for number, block in enumerate(self.blocks)}

    def no_weight_decay(self) -> set[str]:
        """Returns the tables and the class token (official code)."""
        return {name for name, _ in self.named_parameters() if name.startswith("pos_embed")} | {"cls_token"}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, then every block in order (official code: optim_factory.py)."""
        return {"stem": r"^patch_embed|^cls_token|^pos_embed", "blocks": [(r"^blocks\.(\d+)", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' classifiers, and the encoder of their pretraining."""
        name, own = super().convert_checkpoint(state)
        if "clip_projector.norm1_q.weight" not in own:
            return name, own
        name = _NATIVE
        if any(key.startswith("clip_decoder.") for key in own):
            name = _PRETRAINING
            own = {key: value for key, value in own.items() if not key.startswith(_DECODERS)}
            fresh = {"fc_norm.weight": torch.ones(POOLED), "fc_norm.bias": torch.zeros(POOLED)}
            own = {**fresh, **own}
        return name, rename_keys(own, _OFFICIAL)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, patches, width of the MLPs, the kind of tables and of head, the frames.

        `embed_dim` is not among it: the heads that go with other channels do not show; nor does the GELU.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight",))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of positions: linearly in time, then bicubically in space (run_finetuning.py)."""
        if table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        if key == "pos_embed_temporal":
            return resize_grid(table, table.shape[1:2], self.grid[:1], mode="cubic")
        if key not in ("pos_embed", "pos_embed_spatial"):
            return None
        size = built.get("img_size")
        space = None if size is None else (size[0] // self.tubelet[1], size[1] // self.tubelet[2])
        if key == "pos_embed_spatial":
            side = square_side(table.shape[1])
            old_space = (side, side) if space is None and side else space
            fits = old_space is not None and math.prod(old_space) == table.shape[1]
            return resize_grid(table, old_space, self.grid[1:], mode="cubic") if fits and old_space else None
        old = self._old_grid(table.shape[1] - 1, built.get("num_frames"), space)
        if old is None:
            return None
        return torch.cat((table[:, :1], resize_grid(table[:, 1:], old, self.grid, mode="cubic")), dim=1)

    def _old_grid(
        self, cells: int, num_frames: int | None, space: tuple[int, int] | None
    ) -> tuple[int, int, int] | None:
        """Returns the grid of a table: what stvid wrote beside it, or square frames in a published number."""
        if num_frames is not None and space is not None:
            grid = (num_frames // self.tubelet[0], *space)
            return grid if math.prod(grid) == cells else None
        for frames in (*PUBLISHED_FRAMES, self.grid[0]):
            side = square_side(cells // frames) if cells % frames == 0 else None
            if side:
                return frames, side, side
        return None


# --- conversion -------------------------------------------------------------------------------------------------------

# Parts of the pretraining that the encoder does not need (models/internvideo2_pretrain.py).
_DECODERS = (
    *("clip_decoder.", "final_clip_decoder.", "mae_decoder.", "clip_pos_embed", "mae_pos_embed", "img_pos_embed"),
    "clip_img_pos_embed",
)
_OFFICIAL = (
    (r"^clip_projector\.norm1_([qkv])\.", r"head.norm_\1."),
    (r"^clip_projector\.cross_attn\.([qkv])_bias$", r"head.attn.\1.bias"),
    (r"^clip_projector\.cross_attn\.", "head.attn."),
    (r"^extra_mlp\.", "head.mlp."),
    (r"^fc_norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    options: dict[str, Any] = {
        "in_chans": patches[1],
        "tubelet_size": patches[2],
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "sep_pos_embed": "pos_embed_spatial" in own,
        "extra_mlp": "head.mlp.0.weight" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }
    side = None
    if "pos_embed_spatial" in own:
        options["num_frames"] = own["pos_embed_temporal"].shape[1] * patches[2]
        side = square_side(own["pos_embed_spatial"].shape[1])
    elif "pos_embed" in own:
        cells = own["pos_embed"].shape[1] - 1
        for frames in PUBLISHED_FRAMES:
            side = square_side(cells // frames) if cells % frames == 0 else None
            if side is not None and side * patches[3] >= 224:  # smaller tables are not published
                options["num_frames"] = frames * patches[2]
                break
            side = None
    return options if side is None else {**options, "img_size": (side * patches[3],) * 2}


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: scripts/finetuning/full_tuning/*/*.sh (num_frames, short_side_size, test_num_segment x test_num_crop),
# datasets/kinetics_sparse.py (frames spread over the whole video, ImageNet's mean and deviation).
_K400 = Protocol(
    frames=8, sampling="segment", short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="4x3"
)
_1B = {"depth": 40, "embed_dim": 1408, "num_heads": 16, "mlp_ratio": 48 / 11}

FAMILY = Family(
    model="InternVideo2",
    paper="Wang et al. 2024, arXiv:2403.15377",
    small_clip=(4, 112, 112),
    min_clip=(1, 14, 14),
    formats=("OpenGVLab/InternVideo2", "OpenGVLab/InternVideo2 pretraining"),
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4},
    slow_goldens=("internvideo2_1b_d4__4x56", "internvideo2_6b_d1__4x42", "internvideo2_b_d6__sep_4x70"),
    golden_options={
        "internvideo2_s__8x56": {"name": "internvideo2_s", "img_size": 56},
        "internvideo2_s_d4__load_8x56_to_16x70": {"name": "internvideo2_s", "img_size": 70, "depth": 4},
        "internvideo2_ap_s_d6__4x56": {"name": "internvideo2_s", "img_size": 56, "depth": 6, "extra_mlp": True},
        "internvideo2_b_d6__sep_4x70": {"name": "internvideo2_b", "img_size": 70, "depth": 6, "sep_pos_embed": True},
        "internvideo2_1b_d4__4x56": {"name": "internvideo2_1b", "img_size": 56, "depth": 4},
        "internvideo2_6b_d1__4x42": {"name": "internvideo2_6b", "img_size": 42, "depth": 1},
    },
    variants=(
        Variant("internvideo2_s", "InternVideo2-S/14, distilled from 1B.", _K400),
        Variant(
            "internvideo2_b",
            "InternVideo2-B/14, distilled from 1B.",
            _K400,
            {"embed_dim": 768, "num_heads": 12},
            same_as="internvideo2_s",
        ),
        Variant(
            "internvideo2_l",
            "InternVideo2-L/14, distilled from 1B.",
            _K400,
            {"depth": 24, "embed_dim": 1024, "num_heads": 16},
            same_as="internvideo2_s",
        ),
        Variant("internvideo2_1b", "InternVideo2-1B.", _K400, _1B, tiny={"mlp_ratio": 4.0}, same_as="internvideo2_s"),
        Variant(
            "internvideo2_6b",
            "InternVideo2-6B.",
            _K400,
            {"depth": 48, "embed_dim": 3200, "num_heads": 25},
            same_as="internvideo2_s",
        ),
    ),
)
