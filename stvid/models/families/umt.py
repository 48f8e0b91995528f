"""UMT (Unmasked Teacher): a plain Vision Transformer over all frames, pretrained to predict what CLIP sees.

Li et al., "Unmasked Teacher: Towards Training-Efficient Video Foundation Models", ICCV 2023, arXiv:2303.16058; official
code: OpenGVLab/unmasked_teacher, single_modality/models/modeling_finetune.py. These are the classifiers.

Shapes, for a clip (B, 3, T, H, W): every frame is cut into patches of 16x16 pixels, which become tokens
(B, T * H/16 * W/16, embed_dim), without a class token. Each block attends over all of them. Their mean is normalised
and classified.

Keys have no bias, queries and values have one. The positions are sines of the number of a token in a grid of 8 x 14 x
14, and for another number of tokens that table is resized, bicubically in space and linearly in time. In the official
code the table is part of a checkpoint only then, and counts as a parameter that no gradient reaches; so it is here.

Checkpoints of the pretraining load, too: their encoder is taken, its last norm and the decoder are left out, as the
official fine-tuning does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Block,
    QueryValueBiasAttention,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    keep_visible,
    rename_keys,
    resize_grid,
    run_blocks,
    sinusoids,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.merging import merge_as_built
from stvid.models.published_names import count_blocks, mlp_ratio, read_options, square_side
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["UMT"]

NORM_EPS = 1e-6  # epsilon of every LayerNorm (official code)
PUBLISHED_GRID = (8, 14, 14)  # of the pretraining
PUBLISHED_FRAMES = (8, 16, 4, 32)
_NATIVE = "OpenGVLab/unmasked_teacher"
_PRETRAINING = "OpenGVLab/unmasked_teacher pretraining"


class UMT(VideoModel):
    """UMT's classifier.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the table of positions; other clips are taken, with it resized.
        img_size: (height, width) in pixels, which decides the table, too.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames of a patch.
        depth: Number of blocks.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.
        token_merging: ``r`` and ``prop_attn`` of `stvid.merge_tokens`, such as ``{"r": 8}``; None merges nothing.

    The features are the tokens after the last block, (B, t*h*w, embed_dim), which no norm has seen; that of the head
    comes after their mean. Frames and pixels that fill no patch are left out.
    """

    gives_maps = False
    block_prefix_tokens = 0
    takes_mask = True
    pos_embed: Tensor

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 16,
        tubelet_size: int = 1,
        depth: int = 12,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        token_merging: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.tubelet = (tubelet_size, patch_size, patch_size)
        self.grid = self.token_grid((num_frames, *img_size))
        if not all(self.grid):
            raise ValueError(
                f"num_frames {num_frames}, img_size {img_size}: smaller than a patch of {tubelet_size} frames of "
                f"{patch_size}x{patch_size} pixels"
            )
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=self.tubelet)
        table = torch.zeros(1, math.prod(self.grid), embed_dim)
        if math.prod(self.grid) == math.prod(PUBLISHED_GRID):
            self.register_buffer("pos_embed", table)
        else:
            self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                attention=QueryValueBiasAttention(embed_dim, num_heads=num_heads, qkv_bias=qkv_bias, **rates),
                mlp_ratio=mlp_ratio,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_eps=NORM_EPS,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.head = LinearHead(embed_dim, num_classes, norm_eps=NORM_EPS, drop_rate=head_drop_rate)
        self.feature_info = [FeatureInfo(f"blocks.{number}", embed_dim, self.tubelet) for number in range(depth)]
        self.apply(init_transformer_weights)
        with torch.no_grad():
            self.pos_embed.copy_(self._table())
        if token_merging is not None:
            merge_as_built(self, token_merging)

    def _table(self) -> Tensor:
        """Returns the table of positions that the model starts with."""
        published = sinusoids(math.prod(PUBLISHED_GRID), self.num_features)
        return resize_grid(published, PUBLISHED_GRID, self.grid, mode="cubic")

    def embed(self, clip: Tensor) -> Tensor:
        """Embeds the patches and adds their positions; (B, in_chans, T, H, W) to (B, t*h*w, embed_dim)."""
        self._check_clip(clip, minimum=self.tubelet)
        x = self.patch_embed(clip)
        positions = resize_grid(self.pos_embed.detach(), self.grid, x.shape[1:4], mode="cubic")
        return self.pos_drop(x.flatten(1, 3) + positions)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the patches and runs the blocks."""
        return run_blocks(self.blocks, self.embed(clip), recompute=self.grad_checkpointing, tap=tap)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Runs the blocks on some of the tokens, as the encoder of the pretraining does."""
        x = keep_visible(self.embed(clip), visible, prefix=0)
        return run_blocks(self.blocks, x, recompute=self.grad_checkpointing)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each whole patch."""
        time, height, width = (size // step for size, step in zip(clip_shape[-3:], self.tubelet, strict=True))
        return time, height, width

    def mergeable_blocks(self) -> dict[str, nn.Module]:
        """Returns the blocks, all of which attend over the whole clip."""
        return {f"blocks.{number}": block for number, block in enumerate(self.blocks)}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, then every block in order (official code: optim_factory.py)."""
        return {"stem": r"^patch_embed|^pos_embed", "blocks": [(r"^blocks\.(\d+)", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' classifiers, and the encoder of their pretraining."""
        name, own = super().convert_checkpoint(state)
        if "encoder.patch_embed.proj.weight" in own:
            name, own = _PRETRAINING, _encoder_alone(own)
        elif "fc_norm.weight" in own:
            name = _NATIVE
        own = rename_keys(own, _OFFICIAL)
        if "patch_embed.proj.weight" in own and "pos_embed" not in own:
            own["pos_embed"] = self._table()
        return name, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, patches, width of the MLPs, biases, and the frames or the size.

        `embed_dim` is not among it: the heads that go with other channels do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "pos_embed"))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the table of positions, linearly in time and bicubically in space (run_class_finetuning.py)."""
        if key != "pos_embed" or table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        if "num_frames" in built and "img_size" in built:
            old: tuple[int, ...] | None = self.token_grid((built["num_frames"], *built["img_size"]))
        else:
            old = _published_grid(table.shape[1], (*PUBLISHED_FRAMES, self.grid[0]))
        if old is None or math.prod(old) != table.shape[1]:
            return None
        return resize_grid(table, old, self.grid, mode="cubic")


# --- conversion -------------------------------------------------------------------------------------------------------

_OFFICIAL = (
    (r"^fc_norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def _encoder_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the encoder of the authors' pretraining without its last norm, and a fresh norm before the classifier."""
    own = {
        key.removeprefix("encoder."): value
        for key, value in state.items()
        if key.startswith("encoder.") and not key.startswith("encoder.norm.")
    }
    dim = len(own["patch_embed.proj.weight"])
    return {**own, "fc_norm.weight": torch.ones(dim), "fc_norm.bias": torch.zeros(dim)}


def _published_grid(cells: int, frames: Sequence[int]) -> tuple[int, int, int] | None:
    """Returns the grid of a table: square frames in one of some numbers; None if none fits."""
    for count in frames:
        side = square_side(cells // count) if cells % count == 0 else None
        if side:
            return count, side, side
    return None


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    options: dict[str, Any] = {
        "in_chans": patches[1],
        "tubelet_size": patches[2],
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "qkv_bias": "blocks.0.attn.q_bias" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }
    grid = _published_grid(own["pos_embed"].shape[1], PUBLISHED_FRAMES)
    if grid is not None and grid[1] * patches[3] >= 224:  # smaller tables are not published
        options |= {"num_frames": grid[0] * patches[2], "img_size": (grid[1] * patches[3],) * 2}
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: exp/finetuning/k400/*.sh (num_frames, short_side_size, test_num_segment x test_num_crop),
# datasets/kinetics_sparse.py (frames spread over the whole video, ImageNet's mean and deviation).
_K400 = Protocol(
    frames=8, sampling="segment", short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="4x3"
)

FAMILY = Family(
    model="UMT",
    paper="Li et al. 2023, arXiv:2303.16058",
    small_clip=(4, 32, 32),
    min_clip=(1, 16, 16),
    formats=("OpenGVLab/unmasked_teacher", "OpenGVLab/unmasked_teacher pretraining"),
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4},
    slow_goldens=("umt_vit_b__4x64",),
    golden_options={
        "umt_vit_b__4x64": {"name": "umt_vit_b", "img_size": 64},
        "umt_vit_b_d2__8x224": {"name": "umt_vit_b", "img_size": 224, "depth": 2},
    },
    variants=(
        Variant("umt_vit_b", "UMT ViT-B/16.", _K400, params=87, gflops=180, params_tolerance=1.1),
        Variant(
            "umt_vit_l",
            "UMT ViT-L/16.",
            _K400,
            {"depth": 24, "embed_dim": 1024, "num_heads": 16},
            params=304,
            gflops=596,
            params_tolerance=0.6,
            same_as="umt_vit_b",
        ),
    ),
)
