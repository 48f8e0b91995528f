"""Hiera: a hierarchical Vision Transformer of plain blocks, in which the first stages attend within mask units.

Ryali et al., "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles", ICML 2023, arXiv:2306.00989;
official code: facebookresearch/hiera, hiera/hiera.py. These are the video models.

Shapes, for a clip (B, 3, T, H, W): a convolution makes a map (B, C, T/2, H/4, W/4), whose cells are sorted into mask
units of 8x8 cells of a frame: (B, units, 64, C), with the units in the order of time, height and width. Three of the
four stages begin by taking the maximum over 2x2 cells, and double the channels: 64, 16, 4 and 1 cell to a unit.
Attention of the first two stages, and of the first block of the third, stays within a unit; that of the others goes
over the whole clip.

The official code has the cells of all units with the same place side by side. Here those of a unit stand together, in
quadrants of quadrants: a group of 2x2 is four neighbours in the sequence, a unit is a row, and no cell is moved between
the embedding and the features. As attention does not see the order, both compute the same.

A mask leaves out whole units: their pixels are zero for the convolution, which overlaps, and their cells go. So the
cells that `forward_features` masks are the units.

The pretraining is `HieraPretraining` (official code: hiera/hiera_mae.py). The last stage does not pool there, so that
four cells of each unit are left. The cells after the first two stages are joined to those after the last; a decoder of
plain blocks gets them, and an own token for each hidden cell, and predicts the pixels of every second frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import FeedForward, Tap, drop_path_rates, keep_visible, rename_keys, resize_grid, run_blocks
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.pretraining import MaskedAutoencoder, empty_token, encoder_alone, patch_values
from stvid.models.published_names import mlp_ratio, read_options
from stvid.protocol import Protocol

__all__ = ["Hiera", "HieraPretraining"]

NORM_EPS = 1e-6  # epsilon of every LayerNorm (official code)
INIT_BIAS = 0.02  # of linear layers and norms (official code)
STEM = (2, 4, 4)  # frames, height and width of a cell
UNIT = 8  # side of a mask unit in cells
POOL = 4  # cells that a stage pools into one
_MAE = "facebookresearch/hiera MAE"
_OWN_PRETRAINING = "stvid pretraining"


def _pool(x: Tensor) -> Tensor:
    """Takes the maximum over groups of 2x2 cells; (B, units, cells, ...) to (B, units, cells / 4, ...)."""
    return x.unflatten(2, (-1, POOL)).amax(3)


class CellEmbed(nn.Module):
    """Embeds the cells of a clip with kernels that overlap; (B, in_chans, T, H, W) to (B, dim, T/2, H/4, W/4)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, (3, 7, 7), stride=STEM, padding=(1, 3, 3))

    def forward(self, clip: Tensor) -> Tensor:
        """Embeds a clip."""
        return self.proj(clip)


class UnitAttention(nn.Module):
    """Attention over the cells of a mask unit or of the whole clip, with pooled queries at the start of a stage.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        num_heads: Heads, each of dim / num_heads channels.
        pools: Whether the queries are pooled.
        axes: ``window`` attends within a unit, ``clip`` over all.
    """

    def __init__(self, in_dim: int, dim: int, *, num_heads: int, pools: bool, axes: Literal["window", "clip"]) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim: {dim} channels of a stage are no multiple of its {num_heads} heads")
        self.num_heads = num_heads
        self.pools = pools
        self.axes = axes
        self.qkv = nn.Linear(in_dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, units, cells, in_dim) to (B, units, cells or cells / 4, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        q = _pool(q) if self.pools else q
        units, cells = q.shape[1:3]
        first = 0 if self.axes == "window" else 1
        q, k, v = (part.flatten(first, first + 1) for part in (q, k, v))
        mixed = attend(q, k, v, layout="BMHK", source=(self, self.axes)).flatten(-2)
        return self.proj(mixed.reshape(x.shape[0], units, cells, -1))


class HieraBlock(FeedForward):
    """A pre-norm transformer block, which may pool and widen.

    Args:
        in_dim: Channels of the input.
        dim: Channels of the output.
        attention: Mixes the cells.
        **options: As in `FeedForward`.
    """

    def __init__(self, in_dim: int, dim: int, *, attention: UnitAttention, **options: Any) -> None:
        super().__init__(dim, norm_eps=NORM_EPS, **options)
        self.norm1 = nn.LayerNorm(in_dim, eps=NORM_EPS)
        self.attn = attention
        self.proj = nn.Linear(in_dim, dim) if in_dim != dim else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, units, cells, in_dim) to (B, units, cells or cells / 4, dim)."""
        normed = self.norm1(x)
        if self.proj is not None:
            x = self.proj(normed)
            x = _pool(x) if self.attn.pools else x
        return self.feed_forward(x + self.drop_path(self.attn(normed)))


class Hiera(VideoModel):
    """Hiera for video.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the table of times; other clips are taken, with it resized.
        img_size: (height, width) in pixels, which decides the table of places; other sizes are taken, too.
        in_chans: Channels of the clip.
        depth: Blocks of each stage.
        embed_dim: Channels of the first stage; each later one has twice as many.
        num_heads: Heads of the first stage; each later one has twice as many.
        mlp_ratio: Hidden channels of the MLPs over their input's.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.
        q_pool: Stages that begin by pooling, 3 or 2; the pretraining leaves the last one out.

    The features are tokens (B, T/2 * H/32 * W/32, 8 * embed_dim), one for each mask unit, which no norm has seen; that
    of the head comes after their mean. With `q_pool` 2 there are four for each unit, in the order of height and width,
    or those of a unit together where units are masked. Pixels that fill no unit of 32x32 are left out.
    """

    gives_maps = False
    names_attention = False  # pooled queries and mask units are not tokens that attention can be followed through
    takes_mask = True

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (2, 3, 16, 3),
        embed_dim: int = 96,
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        q_pool: int = 3,
    ) -> None:
        super().__init__()
        if len(depth) != 4:
            raise ValueError(f"Hiera has four stages: depth {tuple(depth)} needs four numbers")
        if q_pool not in (2, 3):
            raise ValueError(f"q_pool {q_pool}: two or three stages of Hiera pool")
        self.num_classes = num_classes
        self.num_features = 8 * embed_dim
        self.in_chans = in_chans
        self.depth = tuple(depth)
        self.q_pool = q_pool
        self.grid = self._cells((num_frames, *img_size))
        if not all(self.grid):
            raise ValueError(f"num_frames {num_frames}, img_size {img_size}: Hiera needs a frame of 32x32 pixels")
        self.patch_embed = CellEmbed(in_chans, embed_dim)
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, self.grid[1] * self.grid[2], embed_dim))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid[0], embed_dim))
        self.blocks = nn.ModuleList()
        self._add_blocks(embed_dim, num_heads, mlp_ratio, drop_path_rates(drop_path_rate, sum(depth)))
        self.head = LinearHead(self.num_features, num_classes, norm_eps=NORM_EPS, drop_rate=head_drop_rate)
        self.feature_info = [
            FeatureInfo(f"blocks.{sum(depth[: stage + 1]) - 1}", embed_dim * 2**stage, (2, side, side))
            for stage, side in enumerate((4, 8, 16, 32 if q_pool == 3 else 16))
        ]
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.pos_embed_spatial, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_temporal, std=0.02)

    def _add_blocks(self, embed_dim: int, num_heads: int, mlp_ratio: float, rates: Sequence[float]) -> None:
        """Makes the blocks of all stages, with the stochastic depth of each."""
        for stage, blocks in enumerate(self.depth):
            for number in range(blocks):
                dim, begins = embed_dim * 2**stage, stage > 0 and number == 0
                in_dim = dim // 2 if begins else dim
                # The first block of a stage attends as the stage before it.
                axes: Literal["window", "clip"] = "window" if stage < 2 or (stage == 2 and begins) else "clip"
                pools = begins and stage <= self.q_pool
                attention = UnitAttention(in_dim, dim, num_heads=num_heads * 2**stage, pools=pools, axes=axes)
                rate = rates[len(self.blocks)]
                self.blocks.append(
                    HieraBlock(in_dim, dim, attention=attention, mlp_ratio=mlp_ratio, drop_path_rate=rate)
                )

    @staticmethod
    def _cells(clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the first stage: those of whole units."""
        time, height, width = clip_shape[-3:]
        side = UNIT * STEM[1]
        return -(-time // STEM[0]), height // side * UNIT, width // side * UNIT

    def embed(self, clip: Tensor) -> Tensor:
        """Embeds a clip and sorts its cells into mask units; (B, in_chans, T, H, W) to (B, units, 64, embed_dim)."""
        grid = time, height, width = self._cells(clip.shape)
        x = self.patch_embed(clip)[:, :, :, :height, :width]
        places = resize_grid(self.pos_embed_spatial, self.grid[1:], grid[1:], mode="linear")
        times = resize_grid(self.pos_embed_temporal, self.grid[:1], (time,), mode="linear")
        places = places.transpose(1, 2).unflatten(2, (1, height, width))
        x = x + (places + times.transpose(1, 2).unflatten(2, (time, 1, 1)))
        return rearrange(
            x, "b c t (h y2 y1 y0) (w x2 x1 x0) -> b (t h w) (y2 x2 y1 x1 y0 x0) c", y2=2, y1=2, y0=2, x2=2, x1=2, x0=2
        )

    def _run(self, x: Tensor, tap: Tap | None) -> Tensor:
        """Applies the stages to cells (B, units, 64, embed_dim); returns (B, units, 1 or 4, num_features)."""
        start = 0
        for stage, count in enumerate(self.depth):
            x = run_blocks(self.blocks[start : start + count], x, recompute=self.grad_checkpointing)
            start += count
            x = x if tap is None else tap(stage, x)
        return x

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the clip and runs the stages."""
        self._check_clip(clip, minimum=(1, UNIT * STEM[1], UNIT * STEM[2]))
        return units_to_grid(self._run(self.embed(clip), tap), self.mask_grid(clip.shape))

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Runs the stages on some of the mask units, without a glance at the pixels of the others."""
        return self.run_visible(clip, visible).flatten(1, 2)

    def run_visible(self, clip: Tensor, visible: Tensor, tap: Tap | None = None) -> Tensor:
        """Runs the stages on some of the mask units.

        Args:
            clip: (B, in_chans, T, H, W).
            visible: bool (B, units), True for the units that are kept.
            tap: Is shown the cells after each stage, (B, kept units, cells, channels).

        Returns:
            (B, kept units, 1 or 4 cells, num_features).
        """
        self._check_clip(clip, minimum=(1, UNIT * STEM[1], UNIT * STEM[2]))
        units = self.mask_grid(clip.shape)
        if visible.shape != (clip.shape[0], math.prod(units)):
            raise ValueError(f"mask: shape {tuple(visible.shape)} instead of ({clip.shape[0]}, {math.prod(units)})")
        side = UNIT * STEM[1]
        clip = clip[:, :, :, : units[1] * side, : units[2] * side]
        seen = F.interpolate(visible.view(-1, 1, *units).to(clip.dtype), scale_factor=(STEM[0], side, side))
        x = self.embed(clip * seen[:, :, : clip.shape[2]])
        kept = keep_visible(x.flatten(2), visible, prefix=0)
        return self._run(kept.unflatten(2, x.shape[2:]), tap)

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map: takes the cells out of their units."""
        if x.dim() == 3:
            return super().to_map(x, place, clip_size)
        time, height, width = self.mask_grid(clip_size)
        x = x.unflatten(1, (time, height, width))
        while x.shape[4] > 1:  # the largest quadrants first
            x = rearrange(x, "b t h w (y x n) c -> b t (h y) (w x) n c", y=2, x=2)
        return x.squeeze(4).permute(0, 4, 1, 2, 3)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each mask unit, or four if the last stage does not pool."""
        time, height, width = self.mask_grid(clip_shape)
        return (time, height, width) if self.q_pool == 3 else (time, 2 * height, 2 * width)

    def mask_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the mask units."""
        time, height, width = self._cells(clip_shape)
        return time, height // UNIT, width // UNIT

    def no_weight_decay(self) -> set[str]:
        """Returns the tables of places and times (official code)."""
        return {"pos_embed_spatial", "pos_embed_temporal"}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding with the tables, then every block in order."""
        return {"stem": r"^(?:patch_embed|pos_embed)", "blocks": [(r"^blocks\.(\d+)", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' classifiers, and their pretraining, of which the decoder is left out."""
        name, own = super().convert_checkpoint(state)
        encoder = encoder_alone(own)
        if encoder is not None:
            name, own = _OWN_PRETRAINING, self._with_fresh_norm(encoder)
        elif "decoder_pos_embed" in own:
            encoder = {key: value for key, value in own.items() if not key.startswith(_OF_THE_PRETRAINING)}
            name, own = _MAE, self._with_fresh_norm(encoder)
        elif "head.projection.weight" in own or "norm.weight" in own:
            name = "facebookresearch/hiera"
        return name, rename_keys(own, [(r"^norm\.", "head.norm."), (r"^head\.projection\.", "head.fc.")])

    def _with_fresh_norm(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the norm before the classifier, as the fine-tuning starts with it."""
        bias = torch.full((self.num_features,), INIT_BIAS)
        return {**state, "norm.weight": torch.ones(self.num_features), "norm.bias": bias}

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: channels of the clip, blocks of each stage, and width of the MLPs.

        `embed_dim` is not among it: the heads that go with other channels do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "pos_embed_spatial"))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of places (of a square grid, unless stvid wrote it) and times."""
        if table.dim() != 3 or table.shape[2] * 8 != self.num_features or not table.shape[1]:
            return None
        if key == "pos_embed_temporal":
            return resize_grid(table, (table.shape[1],), self.grid[:1], mode="linear")
        if key != "pos_embed_spatial":
            return None
        side = math.isqrt(table.shape[1])
        old = self._cells((1, *built["img_size"]))[1:] if "img_size" in built else (side, side)
        return resize_grid(table, old, self.grid[1:], mode="linear") if math.prod(old) == table.shape[1] else None


def units_to_grid(x: Tensor, units: Sequence[int]) -> Tensor:
    """Sorts the cells of units into those of the clip; (B, units, 1 or 4, C) to (B, cells, C).

    Args:
        x: Four cells of a unit are in the order of height and width.
        units: Units in time, height and width.
    """
    if x.shape[2] == 1:
        return x.squeeze(2)
    pattern = "b (t h w) (y x) c -> b (t h y w x) c"
    return rearrange(x, pattern, t=units[0], h=units[1], w=units[2], y=2, x=2)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.constant_(module.bias, INIT_BIAS)


# --- pretraining ------------------------------------------------------------------------------------------------------


class HieraDecoder(nn.Module):
    """The decoder: places, plain blocks over all cells, a norm, and a linear layer to the pixels of a cell.

    Args:
        in_dim: Channels of the encoder's cells.
        dim: Channels of the decoder's.
        cells: Cells of a clip.
        values: Values of a cell's pixels.
        depth: Number of blocks.
        num_heads: Heads of each attention.
    """

    def __init__(self, in_dim: int, dim: int, *, cells: int, values: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, cells, dim))
        self.blocks = nn.ModuleList(
            HieraBlock(
                dim,
                dim,
                attention=UnitAttention(dim, dim, num_heads=num_heads, pools=False, axes="clip"),
                mlp_ratio=4.0,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pred = nn.Linear(dim, values)

    def forward(self, x: Tensor, positions: Tensor, *, recompute: bool) -> Tensor:
        """Maps cells and their places, (B, N, dim) and (1, N, dim), to (B, N, values)."""
        x = run_blocks(self.blocks, (x + positions).unsqueeze(1), recompute=recompute)
        return self.pred(self.norm(x.squeeze(1)))


class HieraPretraining(MaskedAutoencoder):
    """The masked pretraining of Hiera.

    Args:
        encoder: The encoder, with `q_pool` 2.
        normalize_target: Whether the target is normalised in each patch, over all its pixels and colours.
        decoder_depth: Blocks of the decoder.
        decoder_embed_dim: Channels of its cells.
        decoder_num_heads: Heads of its attention.
    """

    masking = "random"
    encoder_options: ClassVar[Mapping[str, Any]] = {"q_pool": 2}
    frame_step = STEM[0]

    def __init__(
        self,
        encoder: Hiera,
        *,
        normalize_target: bool = True,
        decoder_depth: int = 8,
        decoder_embed_dim: int = 512,
        decoder_num_heads: int = 16,
    ) -> None:
        super().__init__(encoder, normalize_target=normalize_target)
        self.patch_size = (1, 4 * STEM[1], 4 * STEM[2])
        width = encoder.num_features
        self.fusion = nn.ModuleList(
            nn.Conv3d(width // ratio, width, (1, side, side), stride=(1, side, side))
            for ratio, side in ((8, 4), (4, 2))
        )
        self.encoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mask_token = empty_token(decoder_embed_dim)
        self.grid = self.patch_grid((encoder.grid[0] * STEM[0], encoder.grid[1] * STEM[1], encoder.grid[2] * STEM[2]))
        self.decoder = HieraDecoder(
            width,
            decoder_embed_dim,
            cells=math.prod(self.grid),
            values=patch_values(self.patch_size, encoder.in_chans),
            depth=decoder_depth,
            num_heads=decoder_num_heads,
        )
        for module in (self.fusion, self.encoder_norm, self.decoder):
            module.apply(_init_weights)
        nn.init.trunc_normal_(self.decoder.pos_embed, std=0.02)

    encoder: Hiera

    def predict(self, clip: Tensor, mask: Tensor, decoder_mask: Tensor | None) -> Tensor:
        """Returns the pixels of the hidden cells, (B, hidden, values)."""
        stages: list[Tensor] = []

        def keep(stage: int, x: Tensor) -> Tensor:
            stages.append(x)
            return x

        last = self.encoder.run_visible(clip, ~mask, keep)
        x = last + self._fused(stages[0], 0) + self._fused(stages[1], 1)
        x = self.decoder.embed(self.encoder_norm(x))
        units = self.mask_grid(clip.shape)
        empty = self.mask_token.to(x.dtype).unsqueeze(1)
        cells = empty.repeat(len(x), math.prod(units), x.shape[2], 1)
        cells[~mask] = x.flatten(0, 1)
        grid = self.patch_grid(clip.shape)
        positions = resize_grid(self.decoder.pos_embed, self.grid, grid, mode="linear")
        pixels = self.decoder(units_to_grid(cells, units), positions, recompute=self.grad_checkpointing)
        hidden = self.hidden_patches(clip.shape, mask)
        return pixels[hidden].view(len(pixels), -1, pixels.shape[2])

    def _fused(self, x: Tensor, number: int) -> Tensor:
        """Maps the cells after an early stage to those after the last; (B, units, cells, C) to (B, units, 4, C')."""
        side = "y x" if number else "y1 x1 y0 x0"  # the cells of a quadrant, as quadrants of quadrants
        rows, columns = ("y", "x") if number else ("(y1 y0)", "(x1 x0)")
        sizes = dict.fromkeys(side.split(), 2)
        maps = rearrange(x, f"b u (quadrants {side}) c -> (b u quadrants) c 1 {rows} {columns}", **sizes)
        return self.fusion[number](maps).flatten(1).view(*x.shape[:2], 4, -1)

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and spread over all pixels and colours of a patch."""
        mean, variance = patches.mean((2, 3), keepdim=True), patches.var((2, 3), keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' pretraining."""
        name, own = super().convert_checkpoint(state)
        if "decoder_pos_embed" in own:
            own = rename_keys(own, _FROM_MAE)
            beside = ("decoder.", "encoder_norm.", "mask_token", "fusion.")
            name = _MAE
            own = {key if key.startswith(beside) else f"encoder.{key}": value for key, value in own.items()}
        return name, own

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of positions, the decoder's too."""
        if key != "decoder.pos_embed":
            return super().resize_table(key, table, built)
        old = self.patch_grid((built.get("num_frames", 16), *built.get("img_size", (224, 224))))
        fits = table.dim() == 3 and table.shape[1:] == (math.prod(old), self.decoder.pos_embed.shape[2])
        return resize_grid(table, old, self.grid, mode="linear") if fits else None


# --- conversion -------------------------------------------------------------------------------------------------------

_FROM_MAE = (
    (r"^multi_scale_fusion_heads\.", "fusion."),
    (r"^decoder_(pos_embed$|(?:embed|blocks|norm|pred)\.)", r"decoder.\1"),
)
_OF_THE_PRETRAINING = ("decoder_", "encoder_norm.", "mask_token", "multi_scale_fusion_heads.")


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys; a block that widens begins a stage."""
    blocks = {int(key.split(".")[1]) for key in own if key.startswith("blocks.")}
    starts = [0, *sorted(number for number in blocks if f"blocks.{number}.proj.weight" in own), len(blocks)]
    options: dict[str, Any] = {
        "in_chans": own["patch_embed.proj.weight"].shape[1],
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }
    if len(starts) == 5:
        options["depth"] = tuple(after - before for before, after in itertools.pairwise(starts))
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: README ("Video Models": 16 frames, 3x5 views) and examples/inference.ipynb (stride 4 at 30 frames a
# second, mean and standard deviation).
_K400 = Protocol(
    frames=16,
    stride=4,
    fps=30,
    short_side=224,
    crop=224,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    views="5x3",
)
_PLUS = {"embed_dim": 112, "num_heads": 2}
_LARGE = {"depth": (2, 6, 36, 4), "embed_dim": 144, "num_heads": 2}
_HUGE = {"depth": (2, 6, 36, 4), "embed_dim": 256, "num_heads": 4}

FAMILY = Family(
    model="Hiera",
    paper="Ryali et al. 2023, arXiv:2306.00989",
    small_clip=(4, 64, 64),
    min_clip=(1, 32, 32),
    formats=("facebookresearch/hiera", "facebookresearch/hiera MAE"),
    autoencoder="HieraPretraining",
    tiny={"depth": (1, 1, 2, 1), "embed_dim": 8, "num_heads": 1},
    slow_goldens=("hiera_base_16x224__16x224", "hiera_base_plus_16x224__16x224"),
    variants=(
        Variant("hiera_tiny", "Hiera-T for video.", _K400, {"depth": (1, 2, 7, 2)}),
        Variant("hiera_small", "Hiera-S for video.", _K400, {"depth": (1, 2, 11, 2)}, same_as="hiera_tiny"),
        Variant("hiera_base", "Hiera-B.", _K400, params=51, gflops=102, params_tolerance=0.5, same_as="hiera_tiny"),
        Variant(
            "hiera_base_plus",
            "Hiera-B+.",
            _K400,
            _PLUS,
            params=69,
            gflops=133,
            params_tolerance=0.5,
            same_as="hiera_tiny",
        ),
        Variant(
            "hiera_large", "Hiera-L.", _K400, _LARGE, params=213, gflops=413, params_tolerance=0.5, same_as="hiera_tiny"
        ),
        Variant(
            "hiera_huge", "Hiera-H.", _K400, _HUGE, params=672, gflops=1159, params_tolerance=0.7, same_as="hiera_tiny"
        ),
    ),
)
