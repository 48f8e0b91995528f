"""TimeSformer: a Vision Transformer whose blocks attend over time and over space, one after the other.

Bertasius et al., "Is Space-Time Attention All You Need for Video Understanding?", ICML 2021, arXiv:2102.05095; official
code: facebookresearch/TimeSformer, timesformer/models/vit.py.

Shapes, for a clip (B, 3, T, H, W): frames are cut into S = H/16 * W/16 patches, which gives a sequence
(B, 1 + T*S, embed_dim) with the class token in front; between the blocks of divided attention time runs fastest.
`attention_type` decides what a token sees: with ``divided_space_time`` (the paper's proposal) the patches at its place
in the other frames, and then the patches of its frame; with ``joint_space_time`` all; with ``space_only`` its frame,
and the frames are averaged at the end. The class token takes part in the attention over space only: each frame has a
copy, and the copies are averaged.

The variants differ in frames and size: base 8 x 224, HR 16 x 448, L 96 x 224. The tables of positions and times are
resized to any other clip (nearest neighbour, as in the official forward), when a checkpoint is loaded or at run time.
The authors' keys are this file's own; those of transformers' Timesformer and of mmaction2 are renamed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Attention,
    Axes,
    Block,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    leave_out,
    rename_keys,
    resize_grid,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.merging import merge_as_built
from stvid.models.published_names import (
    count_blocks,
    from_mmaction,
    is_mmaction,
    mlp_ratio,
    read_options,
    square_side,
)
from stvid.protocol import Protocol

__all__ = ["TimeSformer"]

AttentionType = Literal["divided_space_time", "joint_space_time", "space_only"]
NORM_EPS = 1e-6  # epsilon of every LayerNorm (official code)


class DividedBlock(Block):
    """Attention over time, then over space, then an MLP (section 3, "divided space-time attention").

    Since time runs fastest in the sequence, the columns of the first attention are a view of it, and the one copy
    that the second needs is the one that puts the class token in front of each frame.
    """

    def __init__(self, dim: int, *, attention: Attention, temporal_attention: Attention, **options: Any) -> None:
        super().__init__(dim, attention=attention, **options)
        self.temporal_norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.temporal_attn = temporal_attention
        self.temporal_fc = nn.Linear(dim, dim)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """Maps (B, 1 + S * frames, dim) to the same shape."""
        batch, tokens, dim = x.shape
        space = (tokens - 1) // frames
        cls, patches = x[:, :1], x[:, 1:]

        columns = self.temporal_norm1(patches).reshape(batch * space, frames, dim)
        mixed = self.drop_path(self.temporal_attn(columns))
        patches = patches + self.temporal_fc(mixed).view(batch, space * frames, dim)

        by_frame = patches.view(batch, space, frames, dim).transpose(1, 2)
        with_cls = torch.cat((cls.unsqueeze(1).expand(-1, frames, -1, -1), by_frame), dim=2).flatten(0, 1)
        mixed = self.drop_path(self.attn(self.norm1(with_cls))).view(batch, frames, 1 + space, dim)
        cls = cls + mixed[:, :, 0].mean(1, keepdim=True)
        patches = patches.view(batch, space, frames, dim) + mixed[:, :, 1:].transpose(1, 2)

        return self.feed_forward(torch.cat((cls, patches.flatten(1, 2)), dim=1))


class TimeSformer(VideoModel):
    """TimeSformer.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip: entries of the table of times. Other clips are taken, with the table resized.
        img_size: (height, width) in pixels, which decides the table of positions; other sizes are taken, too.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        attention_type: ``divided_space_time``, ``joint_space_time`` or ``space_only``.
        depth: Number of blocks.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        token_merging: ``r`` and ``prop_attn`` of `stvid.merge_tokens`, such as ``{"r": 8}``; None merges nothing.

    The features are the normalised tokens (B, 1 + T*S, embed_dim), the class token first, then frame by frame; with
    ``space_only`` the mean of the frames, (B, 1 + S, embed_dim). A clip has at least one patch.
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
        attention_type: AttentionType = "divided_space_time",
        depth: int = 12,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        token_merging: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if attention_type not in get_args(AttentionType):
            raise ValueError(f"attention_type {attention_type!r}: choose one of {', '.join(get_args(AttentionType))}")
        if min(img_size) < patch_size:
            raise ValueError(f"img_size {img_size} is smaller than a patch of {patch_size} pixels")
        self.num_classes = num_classes
        self.num_features = embed_dim
        self.num_frames = num_frames
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.attention_type = attention_type
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=(1, patch_size, patch_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), embed_dim))
        if attention_type != "space_only":
            self.time_embed = nn.Parameter(torch.zeros(1, num_frames, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        rates: dict[str, Any] = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        attention = partial(Attention, embed_dim, num_heads=num_heads, qkv_bias=qkv_bias, **rates)

        axes: Axes = "clip" if attention_type == "joint_space_time" else "space"

        def block(rate: float) -> Block:
            options: dict[str, Any] = {"mlp_ratio": mlp_ratio, "drop_rate": drop_rate, "drop_path_rate": rate}
            options |= {"attention": attention(axes=axes), "norm_eps": NORM_EPS}
            if attention_type == "divided_space_time":
                return DividedBlock(embed_dim, temporal_attention=attention(axes="time"), **options)
            return Block(embed_dim, **options)

        self.blocks = nn.ModuleList(block(rate) for rate in drop_path_rates(drop_path_rate, depth))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = LinearHead(embed_dim, num_classes, pool="token")
        frames = num_frames if attention_type == "space_only" else 1
        names = [f"blocks.{number}" for number in range(depth - 1)]
        self.feature_info = [FeatureInfo(name, embed_dim, (1, patch_size, patch_size)) for name in names]
        self.feature_info.append(FeatureInfo("norm", embed_dim, (frames, patch_size, patch_size)))
        self._init_weights()
        if token_merging is not None:
            merge_as_built(self, token_merging)

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_transformer_weights)
        for module in self.blocks:
            if isinstance(module, DividedBlock):  # attention over time starts as the identity (official code)
                nn.init.zeros_(module.temporal_fc.weight)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the patches and runs the blocks."""
        self._check_clip(clip, minimum=(1, self.patch_size, self.patch_size))
        x = self.patch_embed(clip)
        batch, frames, height, width, _ = x.shape
        last = len(self.blocks) - 1
        taps = leave_out(last, tap)
        positions = resize_grid(self.pos_embed[:, 1:], self.grid, (height, width), mode="nearest")
        patches = self.pos_drop(x.flatten(2, 3) + positions.unsqueeze(1))
        cls = self.pos_drop(self.cls_token + self.pos_embed[:, :1])
        if self.attention_type == "space_only":
            x = torch.cat((cls.expand(batch * frames, -1, -1), patches.flatten(0, 1)), dim=1)
            x = run_blocks(self.blocks, x, recompute=self.grad_checkpointing, tap=taps)
            return tap(last, self.norm(x.unflatten(0, (batch, frames)).mean(1)))
        times = resize_grid(self.time_embed, (self.num_frames,), (frames,), mode="nearest")
        patches = self.pos_drop(patches + times.unsqueeze(2))
        if self.attention_type == "joint_space_time":
            x = torch.cat((cls.expand(batch, -1, -1), patches.flatten(1, 2)), dim=1)
            return tap(last, self.norm(run_blocks(self.blocks, x, recompute=self.grad_checkpointing, tap=taps)))
        x = torch.cat((cls.expand(batch, -1, -1), rearrange(patches, "b t s c -> b (s t) c")), dim=1)
        blocks = [partial(block, frames=frames) for block in self.blocks]
        x = run_blocks(blocks, x, recompute=self.grad_checkpointing, tap=taps)
        patches = rearrange(x[:, 1:], "b (s t) c -> b (t s) c", t=frames)
        return tap(last, self.norm(torch.cat((x[:, :1], patches), dim=1)))

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map; between the blocks the sequence has another order."""
        frames, height, width = clip_size[0], clip_size[1] // self.patch_size, clip_size[2] // self.patch_size
        if place == len(self.feature_info) - 1:
            return super().to_map(x, place, clip_size)
        if self.attention_type == "space_only":
            return rearrange(x[:, 1:], "(b t) (h w) c -> b c t h w", t=frames, h=height)
        order = "b (h w t) c" if self.attention_type == "divided_space_time" else "b (t h w) c"
        return rearrange(x[:, 1:], f"{order} -> b c t h w", t=frames, h=height, w=width)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each patch of each frame."""
        time, height, width = clip_shape[-3:]
        frames = 1 if self.attention_type == "space_only" else time
        return frames, height // self.patch_size, width // self.patch_size

    def mergeable_blocks(self) -> dict[str, nn.Module]:
        """Returns the blocks, unless they divide attention between time and space."""
        if self.attention_type == "divided_space_time":
            return {}
        return {f"blocks.{number}": block for number, block in enumerate(self.blocks)}

    def no_weight_decay(self) -> set[str]:
        """Returns the tables and the class token (official code)."""
        return {name for name, _ in self.named_parameters() if name in ("pos_embed", "time_embed", "cls_token")}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embeddings, then every block in order."""
        return {
            "stem": r"^patch_embed|^cls_token|^pos_embed|^time_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' checkpoints, mmaction2's, and transformers' TimesformerForVideoClassification."""
        name, own = super().convert_checkpoint(state)
        if is_mmaction(own) or any(key.startswith("transformer_layers.layers.") for key in own):
            divided = any(".temporal_fc." in key for key in own)
            name, own = "mmaction2", rename_keys(from_mmaction(own), _MMACTION_DIVIDED if divided else _MMACTION)
        if "timesformer.embeddings.cls_token" in own:
            name, own = "transformers Timesformer", rename_keys(own, _TRANSFORMERS)
        patches = own.get("patch_embed.proj.weight")
        if patches is not None and patches.dim() == 4:
            own["patch_embed.proj.weight"] = patches.unsqueeze(2)
            name = "facebookresearch/TimeSformer" if name == "stvid" else name
        return name, rename_keys(own, [(r"^head\.(weight|bias)$", r"head.fc.\1")])

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: kind of attention, depth, patches, and frames and size (taken as square).

        `embed_dim` is not among it: the heads that go with other channels do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "pos_embed"))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of positions (of a square grid, unless stvid wrote it) and times."""
        if table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        if key == "time_embed" and table.shape[1]:
            return resize_grid(table, (table.shape[1],), (self.num_frames,), mode="nearest")
        if key != "pos_embed" or table.shape[1] < 2:
            return None
        old = [math.isqrt(table.shape[1] - 1)] * 2  # published models are square
        if "img_size" in built:
            old = [size // self.patch_size for size in built["img_size"]]
        if math.prod(old) != table.shape[1] - 1:
            return None
        return torch.cat((table[:, :1], resize_grid(table[:, 1:], old, self.grid, mode="nearest")), dim=1)


# --- conversion -------------------------------------------------------------------------------------------------------

_TRANSFORMERS = (
    (r"^timesformer\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^timesformer\.embeddings\.cls_token$", "cls_token"),
    (r"^timesformer\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^timesformer\.embeddings\.time_embeddings$", "time_embed"),
    (r"^timesformer\.encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.temporal_layernorm\.", r"\1.temporal_norm1."),
    (r"^(blocks\.\d+)\.temporal_attention\.attention\.qkv\.", r"\1.temporal_attn.qkv."),
    (r"^(blocks\.\d+)\.temporal_attention\.output\.dense\.", r"\1.temporal_attn.proj."),
    (r"^(blocks\.\d+)\.temporal_dense\.", r"\1.temporal_fc."),
    (r"^(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.attention\.attention\.qkv\.", r"\1.attn.qkv."),
    (r"^(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^timesformer\.layernorm\.", "norm."),
    (r"^classifier\.", "head.fc."),
)


_MMACTION_SHARED = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^transformer_layers\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffns\.0\.layers\.1\.", ".mlp.fc2."),
)
_MMACTION_DIVIDED = (
    *_MMACTION_SHARED,
    (r"\.attentions\.0\.norm\.", ".temporal_norm1."),
    (r"\.attentions\.0\.attn\.", ".temporal_attn."),
    (r"\.attentions\.0\.temporal_fc\.", ".temporal_fc."),
    (r"\.attentions\.1\.norm\.", ".norm1."),
    (r"\.attentions\.1\.attn\.", ".attn."),
    (r"\.ffns\.0\.norm\.", ".norm2."),
)
_MMACTION = (
    *_MMACTION_SHARED,
    (r"\.attentions\.0\.attn\.", ".attn."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    attention: AttentionType = "joint_space_time" if "time_embed" in own else "space_only"
    options: dict[str, Any] = {
        "in_chans": patches[1],
        "patch_size": patches[3],
        "attention_type": "divided_space_time" if any(".temporal_fc." in key for key in own) else attention,
        "depth": count_blocks(own, "blocks."),
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }
    if "time_embed" in own:
        options["num_frames"] = own["time_embed"].shape[1]
    side = square_side(own["pos_embed"].shape[1] - 1)
    return options if side is None else {**options, "img_size": (side * patches[3],) * 2}


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/Kinetics/TimeSformer_divST_*.yaml (1 clip of 3 crops; DATA.TARGET_FPS is 30), and
# timesformer/datasets/kinetics.py, which scales the short side to TEST_CROP_SIZE when there are several crops.
_K400 = Protocol(frames=8, stride=32, fps=30, short_side=224, crop=224, views="1x3")
_NOTE = "the paper prints one number for all, that of 174 classes"

FAMILY = Family(
    model="TimeSformer",
    paper="Bertasius et al. 2021, arXiv:2102.05095",
    small_clip=(4, 32, 32),
    min_clip=(1, 16, 16),
    formats=("facebookresearch/TimeSformer", "transformers Timesformer", "mmaction2"),
    parent="vit",
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4},
    slow_goldens=(
        "timesformer_divided_8x224__full",
        "timesformer_divided_8x224__resized_4x96",
        "timesformer_space_8x224__small_8x64",
    ),
    variants=(
        Variant(
            "timesformer_base",
            "TimeSformer, 8 x 224.",
            _K400,
            params=121.4,
            gflops=196.7,
            note=_NOTE,
            params_tolerance=0.7,
        ),
        Variant(
            "timesformer_hr",
            "TimeSformer-HR, 16 x 448.",
            _K400.replace(frames=16, stride=16, short_side=448, crop=448),
            params=121.4,
            gflops=1703,
            note=_NOTE,
            params_tolerance=0.7,
        ),
        Variant(
            "timesformer_l",
            "TimeSformer-L, 96 x 224.",
            _K400.replace(frames=96, stride=4),
            params=121.4,
            gflops=2380,
            note=_NOTE,
            params_tolerance=0.7,
        ),
    ),
)
