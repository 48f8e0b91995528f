"""X-ViT: space-time mixing attention, at the cost of attention over single frames.

Bulat et al., "Space-time Mixing Attention for Video Transformer", NeurIPS 2021, arXiv:2106.05968; official code:
1adrianb/video-transformers, slowfast/models/transformers/vit.py and slowfast/models/head_helper.py.

Shapes, for a clip (B, 3, T, H, W): each frame is a sequence (B*T, 1 + S, embed_dim) of S = H/16 * W/16 patches behind a
class token, as in an image transformer. Attention stays inside a frame, but its keys and values hold channels of the
neighbours: of the `embed_dim` channels (heads and their channels taken as one axis) the first 1 / `shift_div` come from
the next frame, as many from the previous one, and the class token takes part. `num_segments` frames form a group whose
first and last frame have no neighbour outside, where the channels are zero. The frames' class tokens then go through
one transformer block with a class token of its own (the temporal attention of section 3.3), and a two-layer classifier.

The published models have one table of 14 x 14 positions, which is resized (bicubically) for other sizes at run time,
and one of 8 frame embeddings, which repeats in longer clips; both keep their size here whatever the clip is.
Kinetics models of 8 or 16 frames have groups of 8 and `shift_div` 8, those of Something-Something 16 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stvid.errors import CheckpointError
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Attention,
    Block,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    rename_keys,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import MlpHead
from stvid.models.published_names import count_blocks, mlp_ratio, read_options
from stvid.protocol import Protocol

__all__ = ["XViT"]

BACKBONE_EPS = 1e-6  # epsilon of the frames' LayerNorms; those of the temporal block have 1e-5 (official code)
TABLE_PIXELS = 224  # the clip that the table of positions is made for


def shift_frames(x: Tensor, *, num_segments: int, shift_div: int) -> Tensor:
    """Gives each frame channels of its neighbours (equation 8 of the paper, as a shift).

    Args:
        x: (B, T, ..., dim).
        num_segments: Frames of a group; a group at the end may be shorter.
        shift_div: dim / shift_div channels come from the next frame, and the same number from the previous one.

    Returns:
        The same shape.
    """
    frames, fold = x.shape[1], x.shape[-1] // shift_div
    shifted = torch.empty_like(x)
    shifted[..., 2 * fold :] = x[..., 2 * fold :]
    for start in range(0, frames, num_segments):
        end = min(start + num_segments, frames)
        shifted[:, start : end - 1, ..., :fold] = x[:, start + 1 : end, ..., :fold]
        shifted[:, end - 1, ..., :fold] = 0
        shifted[:, start, ..., fold : 2 * fold] = 0
        shifted[:, start + 1 : end, ..., fold : 2 * fold] = x[:, start : end - 1, ..., fold : 2 * fold]
    return shifted


class MixingAttention(Attention):
    """Attention inside a frame, to keys and values that are mixed with those of the neighbouring frames."""

    def __init__(self, dim: int, *, num_segments: int, shift_div: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.num_segments = num_segments
        self.shift_div = shift_div

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Maps (B * frames, N, dim) to the same shape."""
        projected = self.qkv(x).unflatten(-1, (3, -1))
        by_frame = projected[:, :, 1:].unflatten(0, (-1, frames))
        shifted = shift_frames(by_frame, num_segments=self.num_segments, shift_div=self.shift_div).flatten(0, 1)
        q = projected[:, :, 0].unflatten(-1, (self.num_heads, -1))
        k, v = shifted.unflatten(-1, (self.num_heads, -1)).unbind(2)
        return self.mix(q, k, v)


class XViT(VideoModel):
    """X-ViT.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        num_segments: Frames of a group, between which no channels are exchanged.
        shift_div: embed_dim / shift_div channels come from each neighbouring frame.
        num_time_embeds: Entries of the table of frame embeddings; it repeats in longer clips.
        depth: Number of blocks.
        temporal_depth: Number of blocks over the frames' class tokens.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries, keys and values have a bias; those of the temporal blocks have none.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout of the frames' class tokens, and before the last layer.

    The features are the tokens of the temporal transformer, (B, 1 + T, embed_dim), the class token first. A clip has
    at least one patch.
    """

    gives_maps = False
    num_prefix_tokens = 1

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 16,
        num_segments: int = 8,
        shift_div: int = 8,
        num_time_embeds: int = 8,
        depth: int = 12,
        temporal_depth: int = 1,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if shift_div < 2:
            raise ValueError(f"shift_div {shift_div}: at least 2, since two neighbours give their channels")
        if num_segments < 1 or num_time_embeds < 1:
            raise ValueError(f"num_segments {num_segments} and num_time_embeds {num_time_embeds} must be positive")
        self.num_classes = num_classes
        self.num_features = embed_dim
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.table_side = TABLE_PIXELS // patch_size
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=(1, patch_size, patch_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.table_side**2, embed_dim))
        self.time_embed = nn.Parameter(torch.zeros(1, num_time_embeds, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        options: dict[str, Any] = {"num_heads": num_heads, "drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        block = partial(Block, embed_dim, mlp_ratio=mlp_ratio, drop_rate=drop_rate)
        exchange = {"num_segments": num_segments, "shift_div": shift_div}
        mixing = partial(MixingAttention, embed_dim, qkv_bias=qkv_bias, axes="space", **exchange, **options)
        self.blocks = nn.ModuleList(
            block(attention=mixing(), drop_path_rate=rate, norm_eps=BACKBONE_EPS)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=BACKBONE_EPS)
        self.frame_drop = nn.Dropout(head_drop_rate)
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        over_time = partial(Attention, embed_dim, qkv_bias=False, axes="time", **options)
        self.temporal_blocks = nn.ModuleList(
            block(attention=over_time(), drop_path_rate=0.0, norm_eps=1e-5) for _ in range(temporal_depth)
        )
        hidden: dict[str, Any] = {"hidden_features": embed_dim, "norm": True, "act": nn.GELU}
        self.head = MlpHead(embed_dim, num_classes, pool="token", drop_rate=head_drop_rate, **hidden)
        frame, sides = (1, patch_size, patch_size), (1, *img_size)
        self.feature_info = [FeatureInfo(f"blocks.{number}", embed_dim, frame) for number in range(depth)]
        self.feature_info += [FeatureInfo(f"temporal_blocks.{n}", embed_dim, sides) for n in range(temporal_depth)]
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_transformer_weights)
        self._make_unused_head()

    def _make_unused_head(self) -> None:
        """Makes the classifier that published checkpoints hold and their code does not use; frozen."""
        reference = self.patch_embed.proj.weight
        self.new_fc = (
            nn.Linear(self.num_features, self.num_classes, device=reference.device, dtype=reference.dtype)
            if self.num_classes
            else nn.Identity()
        )
        self.new_fc.apply(init_transformer_weights).requires_grad_(False)

    def reset_classifier(self, num_classes: int, *, head: Literal["default", "attentive"] = "default") -> None:
        """Replaces the last layer, and the classifier that is not used, by freshly initialised ones."""
        super().reset_classifier(num_classes, head=head)
        self._make_unused_head()

    def _positions(self, height: int, width: int) -> Tensor:
        """Returns the table of positions for a clip of these pixels, (1, 1 + S, embed_dim).

        As in the official code, a clip that is no whole number of patches scales the table by its pixels.
        """
        if (height, width) == (TABLE_PIXELS, TABLE_PIXELS):
            return self.pos_embed
        side = self.table_side
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if height % self.patch_size == 0 and width % self.patch_size == 0:
            size = (height // self.patch_size, width // self.patch_size)
            grid = F.interpolate(grid, size=size, mode="bicubic")
        else:
            scale = (height / self.patch_size / side, width / self.patch_size / side)
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the blocks over each frame, and then those over the frames' class tokens."""
        self._check_clip(clip, minimum=(1, self.patch_size, self.patch_size))
        x = self.patch_embed(clip).flatten(2, 3)
        batch, frames = x.shape[:2]
        x = torch.cat((self.cls_token.unsqueeze(1).expand(batch, frames, -1, -1), x), dim=2)
        x = self.pos_drop(x + self._positions(clip.shape[3], clip.shape[4]).unsqueeze(1))
        times = self.time_embed.repeat(1, -(-frames // self.time_embed.shape[1]), 1)[:, :frames]
        x = (x + times.unsqueeze(2)).flatten(0, 1)
        blocks = [partial(block, frames=frames) for block in self.blocks]
        x = run_blocks(blocks, x, recompute=self.grad_checkpointing, tap=tap)
        x = self.frame_drop(self.norm(x[:, 0])).unflatten(0, (batch, frames))
        x = torch.cat((self.temporal_cls_token.expand(batch, -1, -1), x), dim=1)
        return run_blocks(self.temporal_blocks, x, recompute=self.grad_checkpointing, tap=tap, first=len(self.blocks))

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map: patches of all frames, or one cell for each frame."""
        if place >= len(self.blocks):
            return super().to_map(x, place, clip_size)
        height = clip_size[1] // self.patch_size
        return rearrange(x[:, 1:], "(b t) (h w) c -> b c t h w", t=clip_size[0], h=height)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each frame."""
        return clip_shape[-3], 1, 1

    def no_weight_decay(self) -> set[str]:
        """Returns the tables and class tokens."""
        return {"cls_token", "pos_embed", "time_embed", "temporal_cls_token"}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embeddings, the frames' blocks, and the temporal ones in order."""
        return {
            "stem": r"^patch_embed|^cls_token|^pos_embed|^time_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
            "temporal_blocks": [
                (r"^temporal_cls_token", (0,)),
                (r"^temporal_blocks\.(\d+)", None),
                (r"^head\.norm|^head\.hidden|^new_fc", (99999,)),
            ],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' checkpoints; an unused classifier of other classes is left out."""
        name, own = self._own_keys(state)
        times = own.get("time_embed")
        if times is not None and times.shape[1:2] != self.time_embed.shape[1:2]:
            raise CheckpointError(
                f"the checkpoint has {times.shape[1]} frame embeddings, the model {self.time_embed.shape[1]}; build "
                f"the model with num_time_embeds={times.shape[1]}"
            )
        for key, value in self.new_fc.state_dict(prefix="new_fc.").items():
            if key in own and own[key].shape != value.shape:
                own[key] = value
        return name, own

    def _own_keys(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        name, own = super().convert_checkpoint(state)
        if "base_model.temp_embed" in own:
            name, own = "1adrianb/video-transformers", rename_keys(own, _OFFICIAL)
            own["time_embed"] = own["time_embed"].flatten(1, 2)
            if "patch_embed.proj.weight" in own:
                own["patch_embed.proj.weight"] = own["patch_embed.proj.weight"].unsqueeze(2)
        return name, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depths, patches, width of the MLPs, and entries of the table of frames.

        How frames exchange channels (`num_segments`, `shift_div`) and the heads do not show.
        """
        _, own = self._own_keys(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "time_embed"))


# --- conversion -------------------------------------------------------------------------------------------------------

_OFFICIAL = (
    (r"^base_model\.temp_embed$", "time_embed"),
    (r"^base_model\.", ""),
    (r"^consensus\.cls_token$", "temporal_cls_token"),
    (r"^consensus\.temporal_encoder\.", "temporal_blocks."),
    (r"^consensus\.mlp_head\.0\.", "head.norm."),
    (r"^consensus\.mlp_head\.1\.", "head.hidden."),
    (r"^consensus\.mlp_head\.4\.", "head.fc."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    return {
        "in_chans": patches[1],
        "patch_size": patches[3],
        "num_time_embeds": own["time_embed"].shape[1],
        "depth": count_blocks(own, "blocks."),
        "temporal_depth": count_blocks(own, "temporal_blocks."),
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/Kinetics/xvit_B16_16x16_k400.yaml (MEAN and STD 0.5, TEST.NUM_ENSEMBLE_VIEWS 1,
# NUM_SPATIAL_CROPS 3), whose 16 frames at rate 16 are 8 at rate 32 here; DATA.TARGET_FPS is SlowFast's 30.
_K400 = Protocol(
    frames=8,
    stride=32,
    fps=30,
    short_side=224,
    crop=224,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    views="1x3",
)


FAMILY = Family(
    model="XViT",
    paper="Bulat et al. 2021, arXiv:2106.05968",
    small_clip=(4, 32, 32),
    min_clip=(1, 16, 16),
    formats=("1adrianb/video-transformers",),
    parent="vit",
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4, "num_segments": 3},
    slow_goldens=("xvit_b16_8x224__full",),
    variants=(
        Variant(
            "xvit_base",
            "X-ViT of ViT-B/16.",
            _K400,
            params=92,
            gflops=141.7,
            note="the paper prints 92M; the code has 94.1M with Kinetics-400's classes",
            params_tolerance=2.2,
        ),
    ),
)
