"""ViViT: pure transformers over the tubelets of a clip, and four ways to divide their attention between space and time.

Arnab et al., "ViViT: A Video Vision Transformer", ICCV 2021, arXiv:2103.15691; official code: google-research/scenic,
scenic/projects/vivit/model.py.

Shapes, for a clip (B, 3, T, H, W): tubelets of 2 x 16 x 16 pixels give t = T/2 times s = H/16 * W/16 tokens, frames
first, with learned positions. `attention_type` names the paper's models:

- ``joint`` (model 1): every token sees all others; a class token makes the logits.
- ``factorised_encoder`` (model 2, "late fusion"): a transformer over the tokens of each frame, then a shorter one over
  the frames' class tokens, each with its own class token, positions and last norm.
- ``factorised_self_attention`` (model 3): each block attends over space, then over time; the mean token is classified.
- ``factorised_dot_product`` (model 4): half of the heads attend over time, half over space, at the cost of no
  parameters; the mean token is classified.
- ``average_pool`` (the baseline of section 4.2): the first transformer of model 2, and the mean of its class tokens.

The sizes are those of ViT-B, L and H; GELU is flax's tanh approximation (exact in TAdaConv's weights). Position tables
are resized to other clips (linearly with fixed corners, which is scenic's zoom of order 1), when a checkpoint is loaded
or at run time. Converted: scenic's flax parameters, nested or flattened with ``/``, transformers'
VivitForVideoClassification, and the factorised encoder of alibaba-mmai-research/TAdaConv
(tadaconv/models/base/transformer.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.base import FeatureInfo, VideoModel, leave
from stvid.models.blocks import (
    Attention,
    Axes,
    Block,
    FeedForward,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    keep_visible,
    leave_out,
    rename_keys,
    resize_grid,
    run_blocks,
    taps,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.merging import merge_as_built
from stvid.models.published_names import count_blocks, mlp_ratio, read_options
from stvid.protocol import Protocol

__all__ = ["ViViT"]

AttentionType = Literal[
    "joint", "factorised_encoder", "factorised_self_attention", "factorised_dot_product", "average_pool"
]
TubeletInit = Literal["central_frame", "average"]
NORM_EPS = 1e-6  # epsilon of every LayerNorm (flax's default)
PUBLISHED_GRID = (16, 14, 14)  # tokens of the published 32 x 224 models


class DotProductAttention(Attention):
    """Attention whose first half of heads sees the other frames, and whose second half sees the frame (model 4)."""

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Maps (B, frames * S, dim) to the same shape."""
        batch = x.shape[0]
        by_place = [part.unflatten(1, (frames, -1)) for part in self.queries_keys_values(x)]
        columns = (part[..., : self.num_heads // 2, :].transpose(1, 2).flatten(0, 1) for part in by_place)
        rows = (part[..., self.num_heads // 2 :, :].flatten(0, 1) for part in by_place)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        attend_to = partial(attend, drop_rate=drop_rate, layout="BMHK")
        over_time = attend_to(*columns, source=(self, "time")).unflatten(0, (batch, -1)).transpose(1, 2)
        over_space = attend_to(*rows, source=(self, "space")).unflatten(0, (batch, frames))
        return self.proj_drop(self.proj(torch.cat((over_time, over_space), dim=3).reshape(x.shape)))


class SelfAttentionBlock(FeedForward):
    """Attention over space, attention over time, MLP, each with its residual (model 3)."""

    def __init__(self, dim: int, *, attention: Callable[..., Attention], **options: Any) -> None:
        super().__init__(dim, **options)
        self.norm_space = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn_space = attention(axes="space")
        self.norm_time = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn_time = attention(axes="time")

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Maps (B, frames * S, dim) to the same shape."""
        batch, tokens, dim = x.shape
        rows = x.reshape(batch * frames, tokens // frames, dim)
        rows = rows + self.drop_path(self.attn_space(self.norm_space(rows)))
        columns = rows.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1)
        columns = columns + self.drop_path(self.attn_time(self.norm_time(columns)))
        return self.feed_forward(columns.unflatten(0, (batch, -1)).transpose(1, 2).reshape(batch, tokens, dim))


class TimeSpaceBlock(SelfAttentionBlock):
    """The block of model 3 in the other order: over time, then over space."""

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Maps (B, frames * S, dim) to the same shape."""
        batch, tokens, dim = x.shape
        columns = x.reshape(batch, frames, -1, dim).transpose(1, 2).flatten(0, 1)
        columns = columns + self.drop_path(self.attn_time(self.norm_time(columns)))
        rows = columns.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)
        rows = rows + self.drop_path(self.attn_space(self.norm_space(rows)))
        return self.feed_forward(rows.reshape(batch, tokens, dim))


class Encoder(nn.Module):
    """A transformer with its positions, its class token if it has one, and its last norm."""

    def __init__(self, dim: int, *, grid: Sequence[int], class_token: bool, blocks: nn.ModuleList, drop_rate: float):
        super().__init__()
        self.grid = tuple(grid)
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.class_token = class_token
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid) + class_token, dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(
        self,
        x: Tensor,
        grid: Sequence[int],
        *,
        recompute: bool,
        tap: Tap,
        first: int = 0,
        layout: Mapping[str, int] | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Encodes tokens.

        Args:
            x: (B, cells of `grid`, dim).
            grid: Cells along each axis.
            recompute: Whether activations are recomputed in the backward pass.
            tap: Is shown the output of each block but the last.
            first: Number of the first block for `tap`.
            layout: Arguments that the blocks take besides the tokens.
            visible: bool (B, cells), True for the tokens that are kept; None keeps all.

        Returns:
            (B, tokens, dim), the class token in front if there is one.
        """
        if self.class_token:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.pos_drop(x + self.resized(self.pos_embed, self.grid, grid))
        if visible is not None:
            x = keep_visible(x, visible, prefix=int(self.class_token))
        blocks = [partial(block, **layout) for block in self.blocks] if layout else self.blocks
        return self.norm(run_blocks(blocks, x, recompute=recompute, tap=tap, first=first))

    def resized(self, table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
        """Returns a table of positions of grid `old` at grid `new`."""
        cls, cells = table[:, : int(self.class_token)], table[:, int(self.class_token) :]
        cells = resize_grid(cells, old, new, mode="linear")
        return torch.cat((cls, cells), dim=1) if tuple(old) != tuple(new) else table


def _check_choices(attention_type: str, attention_order: str, tubelet_init: str) -> None:
    for name, value, choices in (
        ("attention_type", attention_type, get_args(AttentionType)),
        ("attention_order", attention_order, ("space_time", "time_space")),
        ("tubelet_init", tubelet_init, get_args(TubeletInit)),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r}: choose one of {', '.join(choices)}")


class ViViT(VideoModel):
    """ViViT.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the table of positions; for other clips the table is resized.
        img_size: (height, width) in pixels, which decide the table, too.
        in_chans: Channels of the clip.
        tubelet_size: Frames, height and width of a tubelet.
        tubelet_init: How the embedding of an image model becomes one of tubelets (section 3.4): ``central_frame`` or
            ``average``; see `stvid.models.blocks.taps`.
        attention_type: The model of the paper; see the head of this file.
        attention_order: Which attention comes first with ``factorised_self_attention``.
        depth: Number of blocks.
        temporal_depth: Number of blocks of the second transformer with ``factorised_encoder``.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        gelu: torch's name of the GELU: ``tanh``, or ``none`` for the exact one. Loading a published format sets that
            format's.
        token_merging: ``r`` and ``prop_attn`` of `stvid.merge_tokens`, such as ``{"r": 8}``; None merges nothing.

    The features are normalised tokens. ``joint``: (B, 1 + t*s, embed_dim), the class token first.
    ``factorised_encoder``: those of the second transformer, (B, 1 + t, embed_dim). ``average_pool``: the class token of
    each frame, (B, t, embed_dim). Otherwise (B, t*s, embed_dim). A clip has at least one tubelet.
    """

    gives_maps = False

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 32,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        tubelet_size: tuple[int, int, int] = (2, 16, 16),
        tubelet_init: TubeletInit = "central_frame",
        attention_type: AttentionType = "joint",
        attention_order: Literal["space_time", "time_space"] = "space_time",
        depth: int = 12,
        temporal_depth: int = 4,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        gelu: Literal["tanh", "none"] = "tanh",
        token_merging: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_choices(attention_type, attention_order, tubelet_init)
        if attention_type == "factorised_dot_product" and num_heads % 2:
            raise ValueError(f"factorised_dot_product halves the heads: num_heads {num_heads} must be even")
        clip_size = (num_frames, *img_size)
        time, height, width = (size // tubelet for size, tubelet in zip(clip_size, tubelet_size, strict=True))
        if min(time, height, width) < 1:
            raise ValueError(f"{num_frames} frames of {img_size} pixels hold no tubelet of {tuple(tubelet_size)}")
        self.num_classes = num_classes
        self.num_features = embed_dim
        self.in_chans = in_chans
        self.tubelet_size = tubelet_size
        self.gelu = gelu
        self.attention_type = attention_type
        self.by_frame = attention_type in ("factorised_encoder", "average_pool")
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=tubelet_size)

        kind = DotProductAttention if attention_type == "factorised_dot_product" else Attention
        attention = partial(
            kind, embed_dim, num_heads=num_heads, qkv_bias=qkv_bias, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate
        )

        def block(rate: float, axes: Axes) -> FeedForward:
            options: dict[str, Any] = {"mlp_ratio": mlp_ratio, "drop_rate": drop_rate, "drop_path_rate": rate}
            options |= {"norm_eps": NORM_EPS, "gelu": gelu}
            if attention_type != "factorised_self_attention":
                return Block(embed_dim, attention=attention(axes=axes), **options)
            order = SelfAttentionBlock if attention_order == "space_time" else TimeSpaceBlock
            return order(embed_dim, attention=attention, **options)

        def encoder(grid: Sequence[int], blocks: int, axes: Axes) -> Encoder:
            layers = (block(rate, axes) for rate in drop_path_rates(drop_path_rate, blocks))
            with_token, stack = self.by_frame or attention_type == "joint", nn.ModuleList(layers)
            return Encoder(embed_dim, grid=grid, class_token=with_token, blocks=stack, drop_rate=drop_rate)

        if self.by_frame:
            self.encoder = encoder((height, width), depth, "space")
        else:
            self.encoder = encoder((time, height, width), depth, "clip")
        if attention_type == "factorised_encoder":
            self.temporal_encoder = encoder((time,), temporal_depth, "time")
        self.num_prefix_tokens = int(attention_type in ("joint", "factorised_encoder"))
        self.takes_mask = attention_type == "joint"
        self.head = LinearHead(embed_dim, num_classes, pool="token" if self.num_prefix_tokens else "mean")
        self._describe(depth, temporal_depth, img_size)
        self._init_weights(tubelet_init)
        if token_merging is not None:
            merge_as_built(self, token_merging)

    def _describe(self, depth: int, temporal_depth: int, img_size: tuple[int, int]) -> None:
        """Sets `feature_info`; one entry for each block, of which the last is taken after the norm."""
        names = [f"encoder.blocks.{number}" for number in range(depth)]
        info = [FeatureInfo(name, self.num_features, self.tubelet_size) for name in names]
        frames = (self.tubelet_size[0], *img_size)
        if self.attention_type == "factorised_encoder":
            names = [f"temporal_encoder.blocks.{number}" for number in range(temporal_depth - 1)]
            info += [FeatureInfo(name, self.num_features, frames) for name in (*names, "temporal_encoder.norm")]
        elif self.attention_type == "average_pool":
            info.append(FeatureInfo("encoder.norm", self.num_features, frames))
        else:
            info[-1] = FeatureInfo("encoder.norm", self.num_features, self.tubelet_size)
        self.feature_info = info

    def _init_weights(self, tubelet_init: TubeletInit) -> None:
        """Draws each matrix by Xavier's rule and starts the classifier at zero (official code)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                for matrix in module.weight.chunk(3 if name.endswith(".qkv") else 1):
                    nn.init.xavier_uniform_(matrix)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.zeros_(self.head.fc.weight)
        proj = self.patch_embed.proj
        with torch.no_grad():
            image = nn.init.trunc_normal_(proj.weight[:, :, 0].clone(), std=proj.weight[0, :, 0].numel() ** -0.5)
            init: Literal["center", "average"] = "average" if tubelet_init == "average" else "center"
            proj.weight.copy_(taps(image, self.tubelet_size[0], init=init))
            if proj.bias is not None:
                proj.bias.zero_()

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the tubelets and runs one transformer, or two."""
        self._check_clip(clip, minimum=self.tubelet_size)
        x = self.patch_embed(clip)
        batch, time, height, width, _ = x.shape
        recompute, depth, last = self.grad_checkpointing, len(self.encoder.blocks), len(self.feature_info) - 1
        before_norm = leave_out(last, tap)
        if not self.by_frame:
            layout = None if self.attention_type == "joint" else {"frames": time}
            grid = (time, height, width)
            x = self.encoder(x.flatten(1, 3), grid, recompute=recompute, tap=before_norm, layout=layout)
            return tap(last, x)
        x = self.encoder(rearrange(x, "b t h w c -> (b t) (h w) c"), (height, width), recompute=recompute, tap=tap)
        x = x[:, 0].unflatten(0, (batch, time))
        if self.attention_type == "factorised_encoder":
            x = self.temporal_encoder(x, (time,), recompute=recompute, tap=before_norm, first=depth)
        return tap(last, x)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Runs the transformer over some tokens alone; ``joint`` only."""
        self._check_clip(clip, minimum=self.tubelet_size)
        x = self.patch_embed(clip)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        return self.encoder(x.flatten(1, 3), grid, recompute=self.grad_checkpointing, tap=leave, visible=visible)

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map: tubelets, or one cell for each frame."""
        if self.by_frame and place < len(self.encoder.blocks):
            frames, height = clip_size[0] // self.tubelet_size[0], clip_size[1] // self.tubelet_size[1]
            return rearrange(x[:, 1:], "(b t) (h w) c -> b c t h w", t=frames, h=height)
        return super().to_map(x, place, clip_size)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: tubelets, or one for each frame where the tokens of a frame are pooled."""
        time, height, width = (size // step for size, step in zip(clip_shape[-3:], self.tubelet_size, strict=True))
        return (time, 1, 1) if self.by_frame else (time, height, width)

    def mergeable_blocks(self) -> dict[str, nn.Module]:
        """Returns the blocks of joint attention, or of a frame's; models 3 and 4 attend along axes of the grid."""
        if not self.by_frame and self.attention_type != "joint":
            return {}
        return {f"encoder.blocks.{number}": block for number, block in enumerate(self.encoder.blocks)}

    def no_weight_decay(self) -> set[str]:
        """Returns the tables of positions and the class tokens."""
        return {name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "cls_token"))}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embeddings, then every block in order, the second transformer's last."""
        return {
            "stem": r"^patch_embed|^encoder\.(?:cls_token|pos_embed)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
            "temporal_blocks": [
                (r"^temporal_encoder\.(?:cls_token|pos_embed)", (0,)),
                (r"^temporal_encoder\.blocks\.(\d+)", None),
                (r"^temporal_encoder\.norm", (99999,)),
            ],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises scenic's flax parameters, transformers' Vivit and TAdaConv's factorised encoder."""
        for prefix in ("", "params/", "target/", "optimizer/target/", "optimizer/params/"):
            if f"{prefix}embedding/kernel" in state and f"{prefix}output_projection/kernel" in state:
                inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                values = {key: _scenic_value(key, value) for key, value in inner.items()}
                return "scenic ViViT", _join_qkv(rename_keys(values, _SCENIC))
        if "vivit.embeddings.cls_token" in state:
            return "transformers Vivit", _join_qkv(rename_keys(state, _TRANSFORMERS))
        if "backbone.cls_token_out" in state:
            return "TAdaConv", rename_keys(state, _TADACONV)
        return super().convert_checkpoint(state)

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the GELU that a layout's weights were trained with."""
        published = {"scenic ViViT": "tanh", "transformers Vivit": "tanh", "TAdaConv": "none"}
        gelu = published.get(format_name, hyperparameters.get("gelu", self.gelu))
        if gelu == self.gelu:
            return
        self.gelu = gelu
        for module in self.modules():
            if isinstance(module, nn.GELU):
                module.approximate = gelu
        self.recipe = {**self.recipe, "hyperparameters": {**self.recipe.get("hyperparameters", {}), "gelu": gelu}}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, tubelets, width of the MLPs, and frames and size if unambiguous.

        Channels and heads show in scenic's files alone, whose kernels keep the heads apart.
        """
        _, own = self.convert_checkpoint(state)
        options = read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "encoder.pos_embed"))
        if "patch_embed.proj.weight" in own and "encoder.pos_embed" in own:
            options |= self._clip_of(own)
        query = next(
            (value for key, value in state.items() if key.endswith("/query/kernel") and value.dim() == 3), None
        )
        if query is not None and query.shape[0] != self.num_features:
            options |= {"embed_dim": query.shape[0], "num_heads": query.shape[1]}
        return options

    def _clip_of(self, own: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns ``num_frames`` and ``img_size`` of the tables of positions, where they differ from this model's."""
        tubelet = own["patch_embed.proj.weight"].shape[2:]
        cells = own["encoder.pos_embed"].shape[1] - int(self.encoder.class_token)
        grids = [(self.encoder, self._grid_of(cells, self.encoder.grid, {}))]
        if self.attention_type == "factorised_encoder" and "temporal_encoder.pos_embed" in own:
            cells = own["temporal_encoder.pos_embed"].shape[1] - 1
            grids.append((self.temporal_encoder, self._grid_of(cells, self.temporal_encoder.grid, {})))
        options: dict[str, Any] = {}
        for encoder, grid in grids:
            if grid is None or grid == encoder.grid:
                continue
            if len(grid) != 2 and grid[0] != encoder.grid[0]:
                options["num_frames"] = grid[0] * tubelet[0]
            if len(grid) > 1 and grid[-2:] != encoder.grid[-2:]:
                options["img_size"] = (grid[-2] * tubelet[1], grid[-1] * tubelet[2])
        return options

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of positions."""
        encoders = {
            f"{name}.pos_embed": module for name, module in self.named_children() if isinstance(module, Encoder)
        }
        encoder = encoders.get(key)
        if encoder is None or table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        old = self._grid_of(table.shape[1] - encoder.class_token, encoder.grid, built)
        return None if old is None else encoder.resized(table, old, encoder.grid)

    def _grid_of(self, cells: int, own: tuple[int, ...], built: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Guesses the grid of a checkpoint's table; None if there is no single answer."""
        if cells < 1:
            return None
        if "img_size" in built and "num_frames" in built:
            sizes = (built["num_frames"], *built["img_size"])
            grid = tuple(size // tubelet for size, tubelet in zip(sizes, self.tubelet_size, strict=True))
            grid = {1: grid[:1], 2: grid[1:], 3: grid}[len(own)]
            return grid if math.prod(grid) == cells else None
        if len(own) == 1:
            return (cells,)
        if len(own) == 3 and cells == math.prod(PUBLISHED_GRID):
            return PUBLISHED_GRID
        time = own[0] if len(own) == 3 else 1
        side = math.isqrt(cells // time)
        found = {(*own[:-2], side, side)} if time * side * side == cells else set()
        if len(own) == 3 and cells % (own[1] * own[2]) == 0:
            found.add((cells // (own[1] * own[2]), *own[1:]))
        return found.pop() if len(found) == 1 else None


# --- conversion -------------------------------------------------------------------------------------------------------

_SCENIC = (
    (r"^embedding/", "patch_embed.proj/"),
    (r"^output_projection/", "head.fc/"),
    (r"^cls(?:_SpatialTransformer)?$", "encoder.cls_token"),
    (r"^cls_TemporalTransformer$", "temporal_encoder.cls_token"),
    (r"^(?:Spatial)?Transformer/", "encoder."),
    (r"^TemporalTransformer/", "temporal_encoder."),
    (r"posembed_input/pos_embedding$", "pos_embed"),
    (r"encoder_norm/", "norm/"),
    (r"encoderblock_(\d+)/", r"blocks.\1."),
    (r"LayerNorm_0/", "norm1/"),
    (r"LayerNorm_(?:1|mlp)/", "norm2/"),
    (r"LayerNorm_(space|time)/", r"norm_\1/"),
    (r"MultiHeadDotProductAttention_0/", "attn."),
    (r"MultiHeadDotProductAttention_(space|time)/", r"attn_\1."),
    (r"MlpBlock(?:_0)?/Dense_0/", "mlp.fc1/"),
    (r"MlpBlock(?:_0)?/Dense_1/", "mlp.fc2/"),
    (r"(attn\w*)\.out/", r"\1.proj/"),
    (r"/(?:kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
)
_TRANSFORMERS = (
    (r"^vivit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vivit\.embeddings\.cls_token$", "encoder.cls_token"),
    (r"^vivit\.embeddings\.position_embeddings$", "encoder.pos_embed"),
    (r"^vivit\.(?:encoder\.layer|layers)\.(\d+)\.", r"encoder.blocks.\1."),
    (r"^(encoder\.blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(encoder\.blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(encoder\.blocks\.\d+)\.attention\.attention\.", r"\1.attn."),
    (r"^(encoder\.blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"\.attention\.q_proj\.", ".attn.query."),  # transformers 5 in memory; its files have the names above
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"^(encoder\.blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(encoder\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^vivit\.layernorm\.", "encoder.norm."),
    (r"^classifier\.", "head.fc."),
)
_TADACONV = (
    (r"^backbone\.stem\.conv1\.", "patch_embed.proj."),
    (r"^backbone\.cls_token$", "encoder.cls_token"),
    (r"^backbone\.cls_token_out$", "temporal_encoder.cls_token"),
    (r"^backbone\.pos_embd$", "encoder.pos_embed"),
    (r"^backbone\.temp_embd$", "temporal_encoder.pos_embed"),
    (r"^backbone\.layers\.", "encoder.blocks."),
    (r"^backbone\.layers_temporal\.", "temporal_encoder.blocks."),
    (r"^backbone\.norm\.", "encoder.norm."),
    (r"^backbone\.norm_out\.", "temporal_encoder.norm."),
    (r"(blocks\.\d+)\.norm\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.norm_ffn\.", r"\1.norm2."),
    (r"\.attn\.to_qkv\.", ".attn.qkv."),
    (r"\.ffn\.net\.0\.", ".mlp.fc1."),
    (r"\.ffn\.net\.3\.", ".mlp.fc2."),
    (r"^head\.linear\.", "head.fc."),
)


def _scenic_value(key: str, value: Tensor) -> Tensor:
    """Turns flax's input-first kernels, with heads and channels apart, into torch's output-first matrices."""
    name = key.split("/")[-2] if "/" in key else ""
    if key.endswith("/kernel"):
        if value.dim() == 5:
            return value.permute(4, 3, 0, 1, 2)
        matrix = value.flatten(0, 1) if name == "out" else value.flatten(1)
        return matrix.t()
    return value.flatten() if name in ("query", "key", "value") else value


def _join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacks queries, keys and values, each separate in both published formats."""
    joined = dict(state)
    for key in state:
        match = re.fullmatch(r"(.*\.attn\w*)\.query[./](weight|bias)", key)
        if match is None:
            continue
        parts = [key, *(key.replace("query", part) for part in ("key", "value"))]
        if all(part in state for part in parts):
            joined[f"{match[1]}.qkv.{match[2]}"] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    tubelets = own["patch_embed.proj.weight"].shape
    options: dict[str, Any] = {
        "in_chans": tubelets[1],
        "tubelet_size": tuple(tubelets[2:]),
        "depth": count_blocks(own, "encoder.blocks."),
        **mlp_ratio(own, "encoder.blocks.0.mlp.fc1.weight"),
    }
    temporal = count_blocks(own, "temporal_encoder.blocks.")
    return {**options, "temporal_depth": temporal} if temporal else options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: scenic/projects/vivit/configs/kinetics400 (32 frames at stride 2, min_resize 256, crop 224, values in
# -1..1 by zero_centering; 4 clips x 3 crops in the test). There a video of Kinetics has 250 frames in 10 seconds: 25 a
# second.
_K400 = Protocol(
    frames=32, stride=2, fps=25, short_side=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), views="4x3"
)
_LARGE = {"depth": 24, "embed_dim": 1024, "num_heads": 16}
_HUGE = {"depth": 32, "embed_dim": 1280, "num_heads": 16}


_BOTH = ("scenic ViViT", "transformers Vivit")

FAMILY = Family(
    model="ViViT",
    paper="Arnab et al. 2021, arXiv:2103.15691",
    small_clip=(4, 32, 32),
    min_clip=(2, 16, 16),
    formats=("scenic ViViT",),
    parent="vit",
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4, "temporal_depth": 2},
    slow_goldens=(
        "hf_vivit_b_16x2__16x64",
        "vivit_b_16x2_fe_avgpool__16x64",
        "vivit_b_16x2_fe_model2__16x64",
        "vivit_b_16x2_fe_model2__full_32x224",
        "vivit_b_16x2_model1__16x64",
        "vivit_b_16x2_model1__full_32x224",
        "vivit_b_16x2_model4__16x64",
    ),
    variants=(
        Variant(
            "vivit_b16x2", "ViViT-B/16x2, model 1: joint attention.", _K400, params=88.9, gflops=455.2, formats=_BOTH
        ),
        Variant(
            "vivit_b16x2_fe",
            "ViViT-B/16x2, model 2: factorised encoder.",
            _K400,
            {"attention_type": "factorised_encoder"},
            params=115.1,
            gflops=284.4,
            formats=("scenic ViViT", "TAdaConv"),
        ),
        Variant(
            "vivit_b16x2_fsa",
            "ViViT-B/16x2, model 3: factorised self-attention.",
            _K400,
            {"attention_type": "factorised_self_attention"},
            params=117.3,
            gflops=372.3,
        ),
        Variant(
            "vivit_b16x2_fdp",
            "ViViT-B/16x2, model 4: factorised dot-product attention.",
            _K400,
            {"attention_type": "factorised_dot_product"},
            params=88.9,
            gflops=277.1,
        ),
        Variant(
            "vivit_b16x2_avgpool",
            "ViViT-B/16x2, the baseline that averages frames.",
            _K400,
            {"attention_type": "average_pool"},
            params=86.7,
            gflops=283.9,
        ),
        Variant("vivit_l16x2", "ViViT-L/16x2, model 1.", _K400, _LARGE, gflops=1446, formats=_BOTH),
        Variant(
            "vivit_l16x2_fe",
            "ViViT-L/16x2, model 2, with 4 temporal blocks; the official configuration has 24 (temporal_depth=24).",
            _K400,
            {**_LARGE, "attention_type": "factorised_encoder"},
        ),
        Variant("vivit_h16x2", "ViViT-H/16x2, model 1.", _K400, _HUGE, formats=_BOTH),
    ),
)
