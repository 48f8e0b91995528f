"""Video Swin: attention inside windows of a clip, shifted by half a window in every second block.

Liu et al., "Video Swin Transformer", CVPR 2022, arXiv:2106.13230; official code:
SwinTransformer/Video-Swin-Transformer, mmaction/models/backbones/swin_transformer.py.

Shapes, for a clip (B, 3, T, H, W): patches of 2 x 4 x 4 pixels give (B, T/2, H/4, W/4, embed_dim); each later stage
halves height and width and doubles the channels. A block cuts its input into windows of `window_size` tokens and adds
to the attention a learned bias that depends on the distance of two tokens in time and space.

Any size works, as in the official code: the clip, the windows and the patch merging pad with zeros at the end; padded
tokens are attended to like others. Where the input is no longer than the window on an axis, the window shrinks to it
and is not shifted there; its bias then is that of the *first* tokens of the full window in raster order, which for
height and width is not the geometrically true one (published weights are trained and tested with it).

Shifting rolls the input, so that the last window of an axis holds tokens of both ends, and a mask of -100 keeps those
apart. Only the windows at the ends differ in that mask: they are attended to in up to 2 x 2 x 2 groups that share one
additive mask (bias plus shift mask) each, so that no mask has an axis of windows, however many there are.

The variants differ in `embed_dim`, `depth` and `num_heads`. The official checkpoints (mmaction layout) and those of
torchvision are converted; with another `window_size` the bias tables are resized linearly, centre on centre.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Attention,
    FeedForward,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    rename_keys,
    resize_grid,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.published_names import (
    count_blocks,
    from_mmaction,
    is_mmaction,
    mlp_ratio,
    read_options,
    square_side,
)
from stvid.protocol import Protocol

__all__ = ["VideoSwin"]

PUBLISHED_WINDOWS = ((8, 7, 7), (16, 7, 7))
NORM_EPS = 1e-5  # epsilon of every LayerNorm: torch's default (official code)
PIECE = 1 << 20  # values that the hidden layer of an MLP may have for a piece of the input (4 MB in float32)
MASKED = -100.0  # added to the scores of tokens that are kept apart (official code; not minus infinity)


def relative_position_index(window: Sequence[int]) -> Tensor:
    """Returns for each pair of tokens of a window its row in the bias table, (N, N).

    A row counts distances from the most negative on, width fastest.
    """
    index = torch.zeros(1, 1, dtype=torch.long)
    for length in window:
        place = torch.arange(length)
        distance = place[:, None] - place[None, :] + length - 1
        rows = index.shape[0] * length
        index = index[:, None, :, None] * (2 * length - 1) + distance[None, :, None, :]
        index = index.reshape(rows, rows)
    return index


def end_padding(size: Sequence[int], unit: Sequence[int]) -> tuple[int, ...]:
    """Returns `F.pad`'s argument (last axis first, channels behind) that fills three axes up to multiples of a unit."""
    missing = [-length % step for length, step in zip(_numbers(size), unit, strict=True)]
    return (0, 0, 0, missing[2], 0, missing[1], 0, missing[0])


def _numbers(size: Sequence[int]) -> Sequence[int]:
    """Returns sizes as numbers: torch.jit.trace hands out tensors, and how a clip is cut cannot depend on those."""
    return [int(length) for length in size] if torch.jit.is_tracing() else size


def _one_way() -> bool:
    """Whether the same operations are wanted with and without gradients: of who follows them to write them down."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()


@dataclass(frozen=True)
class Windows:
    """How an input (T, H, W) is cut into windows.

    Attributes:
        size: Size (T, H, W) of the input.
        window: Tokens of a window along each axis.
        shift: By how much the windows are shifted; zero where a single window covers the axis.
    """

    size: tuple[int, int, int]
    window: tuple[int, int, int]
    shift: tuple[int, int, int]

    @classmethod
    def fit(cls, size: tuple[int, int, int], window: Sequence[int], *, shifted: bool) -> Windows:
        """Shrinks the window to the input, and shifts it by half where it does not cover the axis."""
        covered = [length <= side for length, side in zip(size, window, strict=True)]
        fitted = tuple(length if whole else side for length, side, whole in zip(size, window, covered, strict=True))
        shift = tuple(0 if whole or not shifted else side // 2 for side, whole in zip(window, covered, strict=True))
        return cls(size, fitted, shift)  # type: ignore[arg-type]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of windows along each axis."""
        return tuple(-(-length // side) for length, side in zip(self.size, self.window, strict=True))

    @property
    def tokens(self) -> int:
        """The number of tokens of a window."""
        return self.window[0] * self.window[1] * self.window[2]

    @property
    def padded(self) -> bool:
        """Whether the windows reach beyond the input."""
        return any(length % side for length, side in zip(self.size, self.window, strict=True))

    def groups(self) -> Iterator[tuple[tuple[slice, slice, slice], tuple[bool, bool, bool]]]:
        """Yields the windows that share a mask: their range along each axis, and whether it is the masked end."""
        ranges = [
            [(slice(0, count), False)] if not step else [(slice(0, count - 1), False), (slice(count - 1, count), True)]
            for count, step in zip(self.counts, self.shift, strict=True)
        ]
        for choice in itertools.product(*ranges):
            yield tuple(part for part, _ in choice), tuple(end for _, end in choice)  # type: ignore[misc]

    def rows(self, batch: int, device: torch.device) -> list[Tensor]:
        """Returns which rows of an input (B, T, H, W, C), flattened to (B * T * H * W, C), each window holds.

        Returns:
            For each group (B * windows, tokens), the windows of a clip together; -1 is padding.
        """
        (nt, nh, nw), (wt, wh, ww) = self.counts, self.window
        number = batch * self.size[0] * self.size[1] * self.size[2]
        rows = torch.arange(number, device=device).view(-1, *self.size)
        padding = end_padding(self.size, self.window)[2:]
        rows = F.pad(rows, padding, value=-1) if any(padding) else rows
        rows = rows.roll([-step for step in self.shift], dims=(1, 2, 3)) if any(self.shift) else rows
        rows = rows.unflatten(3, (nw, ww)).unflatten(2, (nh, wh)).unflatten(1, (nt, wt))
        return [
            rows[:, t, :, h, :, w].permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, self.tokens)
            for (t, h, w), _ in self.groups()
        ]

    def shift_masks(self, device: torch.device) -> list[Tensor | None]:
        """Returns the mask of each group, (tokens, tokens); None for the group without."""
        masks: list[Tensor | None] = []
        for _, ends in self.groups():
            side = torch.zeros(1, dtype=torch.long, device=device)
            for length, step, end in zip(self.window, self.shift, ends, strict=True):
                # In a masked end, the last `step` places come from the other end of the axis.
                wrapped = torch.arange(length, device=device) >= (length - step if end else length)
                side = (side[:, None] * 2 + wrapped[None, :]).flatten()
            masks.append(MASKED * (side[:, None] != side[None, :]).float() if any(ends) else None)
        return masks


class WindowAttention(Attention):
    """Multi-head self-attention inside windows, with a bias for the distance of two tokens."""

    def __init__(self, dim: int, *, window_size: Sequence[int], num_heads: int, **options: Any) -> None:
        super().__init__(dim, num_heads=num_heads, axes="window", **options)
        rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1) * (2 * window_size[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._cached: tuple[tuple[Any, ...], list[Tensor]] | None = None

    def masks(self, windows: Windows, index: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Returns the additive mask of each group, (1, heads, tokens, tokens); kept per shape when not training."""
        table = self.relative_position_bias_table
        keep = not (_one_way() or table.is_inference())
        key = (windows, dtype, table.device, table.dtype, table._version, table.data_ptr()) if keep else ()
        if self._cached is not None and self._cached[0] == key:
            return self._cached[1]
        rows = index[: windows.tokens, : windows.tokens].flatten()
        bias = table.t().index_select(1, rows).view(1, self.num_heads, windows.tokens, windows.tokens)
        masks = [
            (bias if mask is None else bias + mask.to(bias.dtype)).to(dtype)
            for mask in windows.shift_masks(table.device)
        ]
        self._cached = (key, masks) if keep else None
        return masks

    def train(self, mode: bool = True) -> WindowAttention:
        """Switches between training and evaluation, and forgets the masks (weights may have changed through .data)."""
        self._cached = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the masks out of copies and pickles."""
        return {**self.__dict__, "_cached": None}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends inside windows (n, tokens, dim) that share a mask (1, heads, tokens, tokens); returns their shape."""
        return self.mix(*self.queries_keys_values(x), bias=mask)


class Block(FeedForward):
    """Window attention and an MLP, each after a norm and with a residual."""

    def __init__(self, dim: int, *, attention: WindowAttention, **options: Any) -> None:
        super().__init__(dim, norm_eps=NORM_EPS, **options)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = attention
        self.hidden_dim = self.mlp.fc1.out_features

    def forward(self, x: Tensor, windows: Windows, rows: Sequence[Tensor], index: Tensor) -> Tensor:
        """Applies the block.

        Args:
            x: (B, T, H, W, dim).
            windows: How the input is cut.
            rows: The rows of each window, from `Windows.rows`.
            index: The full window's `relative_position_index`.

        Returns:
            The same shape.
        """
        groups = list(zip(rows, self.attn.masks(windows, index, _attention_dtype(x)), strict=True))
        flat = x.flatten(0, 3)
        if x.device.type == "cpu" and not (self.training or _one_way()):
            return self._in_pieces(flat, windows, groups).view(x.shape)
        parts = [self._attend(_take(flat, some), some, mask, windows.padded).flatten(0, 1) for some, mask in groups]
        mixed = torch.cat(parts).index_select(0, _places(rows, flat.shape[0])).view(x.shape)
        return self.feed_forward(x + self.drop_path(mixed))

    def _attend(self, x: Tensor, rows: Tensor, mask: Tensor, padded: bool) -> Tensor:
        """Applies norm and attention to windows (n, tokens, dim); padded tokens are set to zero after the norm."""
        normed = self.norm1(x)
        return self.attn(normed.masked_fill((rows < 0).unsqueeze(-1), 0) if padded else normed, mask)

    def _in_pieces(self, x: Tensor, windows: Windows, groups: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Applies the whole block to a few windows at a time; (B * T * H * W, dim) to the same shape.

        Apart from the attention, each step treats every token on its own, so the windows need not be put back in
        between. The large tensors (queries, keys, values, the MLP's hidden layer) then fit into the cache of a CPU and
        into memory that the allocator holds already. Fresh pages from the kernel would take much time: set
        MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to a gigabyte to see how much.
        """
        at_once = max(1, PIECE // (windows.tokens * self.hidden_dim))
        out = x.new_empty(len(x) + windows.padded, x.shape[1])  # padded tokens go to a last row
        for rows, mask in groups:
            for some in rows.split(at_once):
                piece = _take(x, some)
                piece = self.feed_forward(piece + self._attend(piece, some, mask, windows.padded))
                out.index_copy_(0, torch.where(some < 0, len(x), some).flatten(), piece.flatten(0, 1))
        return out[: len(x)]


def _attention_dtype(x: Tensor) -> torch.dtype:
    """Returns the type that a linear layer gives for `x`, which a mask must share."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast and x.dtype != torch.float64 else x.dtype


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Returns the rows of `x` (N, C) that `rows` names, (*rows.shape, C); padding (-1) gets the first row."""
    return x.index_select(0, rows.clamp(min=0).flatten()).view(*rows.shape, -1)


def _places(rows: Sequence[Tensor], number: int) -> Tensor:
    """Returns the place of each of `number` rows in the groups, which stand one after the other."""
    order = torch.cat([some.flatten() for some in rows])
    order = torch.where(order < 0, number, order)
    return order.new_empty(number + 1).scatter(0, order, torch.arange(order.shape[0], device=order.device))[:-1]


class PatchMerging(nn.Module):
    """Joins 2 x 2 neighbours in space: (B, T, H, W, dim) to (B, T, H/2, W/2, 2 * dim), odd sizes padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Joins neighbours; the channels hold the columns, and within a column the rows."""
        padding = end_padding(x.shape[1:4], (1, 2, 2))
        x = F.pad(x, padding) if any(padding) else x
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 2, 4, 5, 3, 6).flatten(4)
        return self.reduction(self.norm(x))


class PatchEmbed(TubeletEmbed):
    """Embeds patches and normalises them; a clip that they do not fill is padded at its end."""

    def __init__(self, in_chans: int, dim: int, *, tubelet_size: tuple[int, int, int]) -> None:
        super().__init__(in_chans, dim, tubelet_size=tubelet_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps (B, in_chans, T, H, W) to (B, T', H', W', dim)."""
        padding = end_padding(clip.shape[2:], self.tubelet_size)[2:]
        return self.norm(super().forward(F.pad(clip, padding) if any(padding) else clip))


class Stage(nn.Module):
    """The blocks of one resolution, and the merging after them."""

    def __init__(self, blocks: Sequence[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = nn.Identity() if downsample is None else downsample

    def forward(self, x: Tensor, window: Sequence[int], index: Tensor, *, recompute: bool) -> Tensor:
        """Applies the blocks, every second one with shifted windows; the merging is called by the model."""
        frames, height, width = _numbers(x.shape[1:4])
        size = (frames, height, width)
        cuts = [Windows.fit(size, window, shifted=shifted) for shifted in (False, True)]
        layouts = [{"windows": cut, "rows": cut.rows(x.shape[0], x.device), "index": index} for cut in cuts]
        blocks = [partial(block, **layouts[n % 2]) for n, block in enumerate(self.blocks)]
        return run_blocks(blocks, x, recompute=recompute)


class VideoSwin(VideoModel):
    """Video Swin Transformer.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        patch_size: Frames, height and width of a patch.
        window_size: Tokens of a window in time, height and width.
        depth: Blocks of each stage.
        embed_dim: Channels of the first stage; each later one has twice as many.
        num_heads: Heads of each stage.
        mlp_ratio: Hidden channels of the MLPs over their input's.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.

    The features are the normalised last stage, (B, num_features, ceil(T/2), ceil(H/32), ceil(W/32)). Clips of any size
    are taken.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 32,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: tuple[int, int, int] = (2, 4, 4),
        window_size: Sequence[int] = (8, 7, 7),
        depth: Sequence[int] = (2, 2, 6, 2),
        embed_dim: int = 96,
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        head_drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if len(window_size) != 3:
            raise ValueError(f"window_size {window_size} needs three numbers: frames, height, width")
        if len(depth) != len(num_heads):
            raise ValueError(f"depth {depth} and num_heads {num_heads} need one number per stage")
        self.num_classes = num_classes
        self.num_features = embed_dim * 2 ** (len(depth) - 1)
        self.in_chans = in_chans
        self.window_size = tuple(window_size)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, tubelet_size=patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, sum(depth)))
        self.layers = nn.ModuleList()
        for stage, blocks in enumerate(depth):
            dim = embed_dim * 2**stage
            attention = partial(
                WindowAttention,
                dim,
                window_size=window_size,
                num_heads=num_heads[stage],
                qkv_bias=qkv_bias,
                drop_rate=drop_rate,
                attn_drop_rate=attn_drop_rate,
            )
            layers = [
                Block(dim, attention=attention(), mlp_ratio=mlp_ratio, drop_rate=drop_rate, drop_path_rate=next(rates))
                for _ in range(blocks)
            ]
            self.layers.append(Stage(layers, PatchMerging(dim) if stage + 1 < len(depth) else None))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = LinearHead(self.num_features, num_classes, drop_rate=head_drop_rate)
        names = [f"layers.{stage}.blocks.{blocks - 1}" for stage, blocks in enumerate(depth[:-1])]
        time, height, width = patch_size
        self.feature_info = [
            FeatureInfo(name, embed_dim * 2**stage, (time, height * 2**stage, width * 2**stage))
            for stage, name in enumerate([*names, "norm"])
        ]
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)
        self.apply(init_transformer_weights)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the stages, with the merging between them."""
        self._check_clip(clip)
        x = self.pos_drop(self.patch_embed(clip))
        last = len(self.layers) - 1
        for stage in range(last + 1):
            layer: Any = self.layers[stage]
            x = layer(x, self.window_size, self.relative_position_index, recompute=self.grad_checkpointing)
            if stage < last:
                tap(stage, x.permute(0, 4, 1, 2, 3))
            x = layer.downsample(x)
        return tap(last, self.norm(x).permute(0, 4, 1, 2, 3))

    def no_weight_decay(self) -> set[str]:
        """Returns the bias tables (official code)."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every block in order, a merging with the block before it."""
        groups: dict[str, Any] = {"stem": r"^patch_embed"}
        for stage in range(len(self.layers)):
            groups[f"stage{stage + 1}"] = [
                (rf"^layers\.{stage}\.blocks\.(\d+)", None),
                (rf"^layers\.{stage}\.downsample", (99999,)),
            ]
        groups["norm"] = [(r"^norm", (99999,))]
        return groups

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the layouts of mmaction (official) and torchvision, and drops their index buffers."""
        state = {key: value for key, value in state.items() if not key.endswith("relative_position_index")}
        if any(key.startswith("features.") for key in state):
            return "torchvision", {_from_torchvision(key): value for key, value in state.items()}
        if is_mmaction(state) or "norm3.weight" in state:
            own = rename_keys(from_mmaction(state), [(r"^norm\d\.", "norm.")])  # mmaction2 numbers the last norm
            return "Video-Swin-Transformer", own
        return super().convert_checkpoint(state)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, channels, heads, patches, and the windows if they are unambiguous."""
        _, own = self.convert_checkpoint(state)
        needed = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
        options = read_options(_read, own, self.state_dict(), needed=needed)
        if all(key in own for key in needed):
            window = _window_of(own[needed[1]].shape[0], _places_of(state), self.window_size)
            if window is not None and window != self.window_size:
                options["window_size"] = window
        return options

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the bias tables of another window."""
        if not key.endswith("relative_position_bias_table") or table.dim() != 2:
            return None
        windows: Sequence[Sequence[int]] = PUBLISHED_WINDOWS
        if "hyperparameters" in built:
            windows = [built["hyperparameters"].get("window_size", PUBLISHED_WINDOWS[0])]
        new = [2 * side - 1 for side in self.window_size]
        for window in windows:
            old = [2 * side - 1 for side in window]
            if old[0] * old[1] * old[2] == len(table):
                return resize_grid(table.unsqueeze(0), old, new, mode="linear").squeeze(0)
        return None


# --- conversion -------------------------------------------------------------------------------------------------------


def _from_torchvision(key: str) -> str:
    """Renames a key: features.{0,2,4,6} are the stages in torchvision, features.{1,3,5} the mergings."""
    match = re.match(r"features\.(\d+)\.(.*)", key)
    if match is None:
        return re.sub(r"^head\.", "head.fc.", key)
    position, rest = int(match[1]), match[2]
    if position % 2:
        return f"layers.{position // 2}.downsample.{rest}"
    rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
    return f"layers.{position // 2}.blocks.{rest}"


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    stages = [f"layers.{stage}.blocks." for stage in range(count_blocks(own, "layers."))]
    tables = [own.get(f"{stage}0.attn.relative_position_bias_table") for stage in stages]
    options = {
        "in_chans": patches[1],
        "embed_dim": patches[0],
        "patch_size": tuple(patches[2:]),
        "depth": tuple(count_blocks(own, stage) for stage in stages),
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in own,
        **mlp_ratio(own, "layers.0.blocks.0.mlp.fc1.weight"),
    }
    heads = tuple(table.shape[1] for table in tables if table is not None)
    return {**options, "num_heads": heads} if len(heads) == len(stages) else options


def _places_of(state: Mapping[str, Tensor]) -> int | None:
    """Returns how many tokens a window has, which an index buffer shows: (tokens, tokens), or flat in torchvision."""
    for key, index in state.items():
        if key.endswith("relative_position_index"):
            return index.shape[0] if index.dim() == 2 else square_side(index.numel())
    return None


def _window_of(rows: int, tokens: int | None, own: Sequence[int]) -> tuple[int, int, int] | None:
    """Returns the window, square in space, whose bias table has `rows` rows; None if several could be meant.

    Args:
        rows: Rows of the table.
        tokens: Tokens of a window, if known.
        own: The model's window, which is taken if it fits, before the published ones.
    """
    published = [(window[0], window[1], window[2]) for window in (own, *PUBLISHED_WINDOWS)]
    found = []
    for side in range(1, 65):
        frames, rest = divmod(rows, (2 * side - 1) ** 2)
        if rest == 0 and frames % 2 and (tokens is None or (frames + 1) // 2 * side * side == tokens):
            found.append(((frames + 1) // 2, side, side))
    known = [window for window in published if window in found]
    if known:
        return known[0]
    if tokens is None:
        found = [window for window in found if window[1] > 1]
    return found[0] if len(found) == 1 else None


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/recognition/swin/swin_*_patch244_window877_kinetics400_*.py (clip_len 32, frame_interval 2,
# Resize (-1, 224), ThreeCrop 224, num_clips 4; img_norm_cfg is ImageNet's).
_K400 = Protocol(
    frames=32,
    stride=2,
    short_side=224,
    crop=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    views="4x3",
)
_DEEP = (2, 2, 18, 2)


FAMILY = Family(
    model="VideoSwin",
    paper="Liu et al. 2022, arXiv:2106.13230",
    small_clip=(4, 64, 64),
    formats=("Video-Swin-Transformer", "torchvision"),
    parent="swin",
    tiny={"depth": (2, 2, 2, 2), "embed_dim": 16, "num_heads": (1, 2, 2, 4)},
    slow_goldens=(
        "swin3d_b__16x112",
        "swin3d_s__16x112",
        "swin3d_t__32x112",
        "tv_swin3d_b__16x112",
        "tv_swin3d_s__16x112",
        "tv_swin3d_t__16x112",
    ),
    variants=(
        Variant("swin3d_t", "Video Swin-T.", _K400, params=28.2, gflops=88),
        Variant("swin3d_s", "Video Swin-S.", _K400, {"depth": _DEEP}, params=49.8, gflops=166),
        Variant(
            "swin3d_b",
            "Video Swin-B.",
            _K400,
            {"depth": _DEEP, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.2},
            params=88.1,
            gflops=282,
        ),
        Variant(
            "swin3d_l",
            "Video Swin-L.",
            _K400,
            {"depth": _DEEP, "embed_dim": 192, "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.2},
            params=197.0,
            gflops=604,
        ),
    ),
)
