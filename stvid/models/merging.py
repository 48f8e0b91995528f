"""Token merging: similar tokens are averaged between the blocks of a Vision Transformer, without training.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461; official code: facebookresearch/ToMe,
tome/merge.py and tome/patch/timm.py.

Each block gives up to `r` tokens to others between its attention and its MLP. Tokens at even places look for the token
at an odd place whose keys (the mean over heads) are nearest by angle; the `r` best pairs are joined, weighted by how
many patches each token stands for. Class tokens and registers take no part. With proportional attention (equation 1 of
the paper) the logarithm of that number is added to the scores, so that a joined token counts for all its patches.

Other than in the official code, the last block puts a token back at the place of each patch that it stands for. So
features keep their shape, and everything that follows (a norm and a classifier on the class token, the mean of the
patches, the mean over frames) works as before and gives joined tokens their due weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

from stvid.errors import ConfigError
from stvid.models.attention import attend
from stvid.models.base import VideoModel
from stvid.models.blocks import Block
from stvid.models.kernels import remade

__all__ = ["draw_sources", "merge_as_built", "merge_schedule", "merge_tokens", "token_sources"]

Model = TypeVar("Model", bound=nn.Module)


def merge_tokens(
    model: Model,
    r: int | tuple[int, float] | list[int],
    *,
    prop_attn: bool = True,
    trace_source: bool = False,
) -> Model:
    """Makes a model merge tokens from now on; its weights and their keys stay as they are.

    Args:
        model: A model of stvid with blocks in which each token sees all others of its sequence (ViViT ``joint``,
            ``factorised_encoder``, whose first transformer merges, and ``average_pool``; TimeSformer
            ``joint_space_time`` and ``space_only``; VideoMAE; UMT; InternVideo2), or a VisionTransformer of timm. It is
            changed in place.
        r: Tokens that each block gives up; see `merge_schedule`. 0 takes merging off again.
        prop_attn: Whether a token counts in the attention for all patches that it stands for. The paper does so for
            weights trained without merging, except those of masked autoencoders.
        trace_source: Keep which token each patch went into, for `token_sources`.

    Returns:
        `model`. A model of stvid that is saved and loaded again, with `save_model` or as a training checkpoint, merges
        as before.

    Raises:
        ConfigError: If the model has no such blocks, or `r` cannot be read.
    """
    blocks, protected = _mergeable(model)
    schedule = merge_schedule(r, len(blocks))
    last = max((number for number, count in enumerate(schedule) if count), default=-1)
    for number, (name, block) in enumerate(blocks.items()):
        merging_class, plain_class = _CLASSES[type(block)]
        kind = plain_class if last < 0 else merging_class
        new = block if type(block) is kind else remade(block, kind)
        new.__dict__.pop("step", None)
        if last >= 0:
            final = number == len(blocks) - 1
            new.step = MergeStep(schedule[number], protected, prop_attn, final, trace_source and final)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
    if isinstance(model, VideoModel):
        recipe = model.recipe
        options = {key: value for key, value in recipe.get("hyperparameters", {}).items() if key != "token_merging"}
        if last >= 0:
            options["token_merging"] = {"r": schedule, "prop_attn": prop_attn}
        model.recipe = {**recipe, "hyperparameters": options} if recipe else recipe
    return model


def merge_as_built(model: VideoModel, options: Mapping[str, Any]) -> None:
    """Applies the hyperparameter ``token_merging`` of a model: arguments of `merge_tokens` that a file can hold.

    Raises:
        ConfigError: If there are other keys, ``r`` is missing or a tuple, or `merge_tokens` refuses the values.
    """
    wrong = options.keys() - {"r", "prop_attn"}
    if wrong or "r" not in options:
        raise ConfigError(f"token_merging: {dict(options)}: takes the keys r and, if wanted, prop_attn")
    if isinstance(options["r"], tuple):
        raise ConfigError("token_merging: files keep no tuples; give r as a number, or as a list with one per block")
    merge_tokens(model, **options)


def merge_schedule(r: int | tuple[int, float] | list[int], depth: int) -> list[int]:
    """Returns how many tokens each of `depth` blocks gives up.

    Args:
        r: A number for all blocks; or a tuple (number, inflection), which changes linearly from number * (1 -
            inflection) in the first block to number * (1 + inflection) in the last, so that -1 is the paper's
            "decreasing schedule"; or a list of one number per block, missing ones being 0 (`parse_r` of the official
            code). A block gives up at most half of its tokens, whatever is asked for.
        depth: Number of blocks.

    Raises:
        ConfigError: If `r` is none of these.
    """
    if isinstance(r, list):
        if len(r) > depth:
            raise ConfigError(f"token merging: r has {len(r)} numbers for {depth} blocks")
        schedule = [*r, *[0] * (depth - len(r))]
    elif isinstance(r, tuple):
        if len(r) != 2 or not -1 <= r[1] <= 1:
            raise ConfigError(f"token merging: r={r}: a tuple is (number, inflection from -1 to 1)")
        first = int(r[0] * (1.0 - r[1]))
        step = 2 * (r[0] - first) / max(depth - 1, 1)
        schedule = [int(first + step * block) for block in range(depth)]
    else:
        schedule = [r] * depth
    for count in schedule:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ConfigError(f"token merging: r={r!r}: the tokens that a block gives up are a whole number, 0 or more")
    return schedule


def token_sources(model: nn.Module) -> Tensor:
    """Returns which token each patch ended in, in the last forward pass; for pictures of what was merged.

    Returns:
        int64 (sequences, tokens), on the grid that the model's blocks see, class token first: entries of one row that
        are equal were merged into one token. A sequence is a clip with joint attention, else a frame.

    Raises:
        ConfigError: If the model does not merge with ``trace_source=True``, or has not run since.
    """
    blocks, _ = _mergeable(model)
    place = list(blocks.values())[-1].__dict__.get("traced")
    if place is None:
        raise ConfigError("no sources of tokens: call merge_tokens(model, ..., trace_source=True), then run the model")
    return place


def draw_sources(
    frame: np.ndarray, sources: Tensor | np.ndarray, *, line: Sequence[int] = (255, 255, 255)
) -> np.ndarray:
    """Draws on a frame which patches were merged: each token in the mean colour of its patches, with a line around.

    For a model that merges within frames:

        stvid.merge_tokens(model, r=8, trace_source=True)
        model(clip)
        picture = draw_sources(frame, token_sources(model)[0, 1:].view(14, 14))  # without the class token

    Args:
        frame: uint8 (H, W, 3).
        sources: Whole numbers (rows, columns), one for each patch, equal where patches are one token; see
            `token_sources`.
        line: Colour of the lines.

    Returns:
        uint8 array (H, W, 3).

    Raises:
        ConfigError: If the frame or the sources have another shape or type.
    """
    places = np.asarray(sources)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ConfigError(f"draw_sources: a frame is uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
    if places.ndim != 2 or not np.issubdtype(places.dtype, np.integer) or not places.size:
        raise ConfigError(f"draw_sources: sources are whole numbers (rows, columns), not {places.dtype} {places.shape}")
    row, column = (np.arange(side) * cells // side for side, cells in zip(frame.shape[:2], places.shape, strict=True))
    _, token = np.unique(places[row[:, None], column], return_inverse=True)
    token = token.reshape(frame.shape[:2])
    pixels = np.bincount(token.ravel())
    sums = [np.bincount(token.ravel(), weights=frame[..., channel].ravel()) for channel in range(3)]
    drawn = np.rint(np.stack(sums, axis=1) / pixels[:, None]).astype(np.uint8)[token]
    drawn[1:][token[1:] != token[:-1]] = line
    drawn[:, 1:][token[:, 1:] != token[:, :-1]] = line
    return drawn


def _mergeable(model: nn.Module) -> tuple[dict[str, nn.Module], int]:
    """Returns the blocks that can merge, by name, and how many tokens in front of a sequence are not patches."""
    if isinstance(model, VideoModel):
        found = model.mergeable_blocks()
        prefix = model.block_prefix_tokens
    elif isinstance(model, timm_vit.VisionTransformer):
        found = {f"blocks.{number}": block for number, block in enumerate(model.blocks)}
        prefix = model.num_prefix_tokens
    else:
        found, prefix = {}, 0
    if not found or not all(_supported(block) for block in found.values()):
        raise ConfigError(
            f"{type(model).__name__}: its tokens cannot be merged; that takes blocks in which each token sees all "
            "others of its sequence (ViViT joint, factorised_encoder, average_pool; TimeSformer joint_space_time, "
            "space_only; VideoMAE, UMT, InternVideo2; timm's VisionTransformer)"
        )
    return found, prefix


def _supported(block: nn.Module) -> bool:
    if type(block) not in _CLASSES:
        return False
    return isinstance(block, Block) or (
        type(block.attn) is timm_vit.Attention and getattr(block.attn, "gate", None) is None
    )


# --- the blocks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeStep:
    """The merging that a block does besides its own work.

    Attributes:
        count: Tokens that it gives up.
        protected: Tokens in front of the sequence that are not merged.
        prop_attn: Whether attention is proportional.
        last: Whether it is the last block, which puts the tokens back.
        trace: Whether it keeps which token each patch went into.
    """

    count: int
    protected: int
    prop_attn: bool
    last: bool
    trace: bool


class Merged(NamedTuple):
    """The tokens that a block hands to the next, with all that it has to know of them.

    A block takes all of it as an argument, so that one that is recomputed sees the same as the first time.

    Attributes:
        tokens: (B, M, dim).
        size: Patches that each stands for, (B, M, 1), in float32 or float64.
        place: Which of the M tokens each of the N original ones went into, (B, N).
    """

    tokens: Tensor
    size: Tensor
    place: Tensor


class _Merging:
    """The forward pass of a block that merges; a subclass says how its block computes."""

    step: MergeStep

    def attend_with(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns `x` after the block's attention, with a bias of the scores, and the keys (B, N, heads, head_dim)."""
        raise TypeError(f"{type(self).__name__} does not implement attend_with")

    def forward(self, x: Tensor | Merged, attn_mask: None = None) -> Tensor | Merged:
        """Maps tokens (B, N, dim), or those merged so far, to merged ones; the last block returns (B, N, dim)."""
        if attn_mask is not None:
            raise ValueError("token merging takes no attention mask")
        merged = x if isinstance(x, Merged) else None
        tokens: Tensor = x.tokens if isinstance(x, Merged) else x
        bias = None
        if merged is not None and self.step.prop_attn:
            bias = merged.size.log().to(tokens.dtype).transpose(1, 2).unsqueeze(1)
        tokens, keys = self.attend_with(tokens, bias)
        number = tokens.shape[1]
        count = min(self.step.count, (number - self.step.protected) // 2)
        if count > 0:
            place = match_tokens(keys.mean(2), count, protected=self.step.protected)
            if merged is None:
                size = tokens.new_ones(tokens.shape[0], number, 1, dtype=_weight_dtype(tokens))
                total = place
            else:
                size, total = merged.size, place.gather(1, merged.place)
            merged = Merged(*_join(tokens, size, place, number - count), total)
            tokens = merged.tokens
        tokens = self.feed_forward(tokens)  # type: ignore[attr-defined]
        if merged is None:
            return tokens
        if not self.step.last:
            return Merged(tokens, merged.size, merged.place)
        if self.step.trace:
            self.__dict__["traced"] = merged.place
        return tokens.gather(1, merged.place.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class MergingBlock(_Merging, Block):  # type: ignore[misc]  # takes and returns `Merged` too
    """`stvid.models.blocks.Block` that merges."""

    def attend_with(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns `x` after attention, and the keys."""
        q, k, v = self.attn.queries_keys_values(self.norm1(x))
        mixed = self.attn.mix(q, k, v, None if bias is None else bias.to(q.dtype))
        return x + self.drop_path(self.ls1(mixed)), k


class TimmMergingBlock(_Merging, timm_vit.Block):
    """timm's Block that merges."""

    def attend_with(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns `x` after attention, and the keys."""
        attn = self.attn
        q, k, v = attn.qkv(self.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).unbind(-3)
        q, k = attn.q_norm(q), attn.k_norm(k)
        drop_rate = attn.attn_drop.p if self.training else 0.0
        bias = None if bias is None else bias.to(q.dtype)
        mixed = attend(q, k, v, bias=bias, scale=attn.scale, drop_rate=drop_rate, layout="BMHK").flatten(-2)
        mixed = attn.norm(mixed) if hasattr(attn, "norm") else mixed  # timm 1.0.9 and later
        return x + self.drop_path1(self.ls1(attn.proj_drop(attn.proj(mixed)))), k

    def feed_forward(self, x: Tensor) -> Tensor:
        """Maps (B, N, dim) to the same shape."""
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


_CLASSES: Mapping[type, tuple[type, type]] = {
    Block: (MergingBlock, Block),
    MergingBlock: (MergingBlock, Block),
    timm_vit.Block: (TimmMergingBlock, timm_vit.Block),
    TimmMergingBlock: (TimmMergingBlock, timm_vit.Block),
}


# --- the matching -----------------------------------------------------------------------------------------------------


def match_tokens(keys: Tensor, count: int, *, protected: int) -> Tensor:
    """Finds the tokens to merge by bipartite soft matching (section 3 of the paper).

    Args:
        keys: The vectors by which tokens are compared, (B, N, channels).
        count: Tokens to give up, at most (N - protected) // 2.
        protected: Tokens in front that neither give nor take.

    Returns:
        The new place of each token, int64 (B, N) with values below N - count: the protected tokens, those at even
        places that stay, those at odd places.
    """
    keys = F.normalize(keys.detach().to(_weight_dtype(keys)), dim=-1)
    scores = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    even, odd = scores.shape[1:]
    scores[:, : (protected + 1) // 2] = -torch.inf
    scores[:, :, : protected // 2] = -torch.inf
    best, target = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    given, kept = order[:, :count], order[:, count:]
    if protected:
        kept = kept.sort(dim=-1).values  # so that the protected tokens, whose score is the lowest, come first
    stay = even - count
    of_even = torch.empty_like(order)
    of_even = of_even.scatter(1, kept, torch.arange(stay, device=keys.device).expand_as(kept))
    of_even = of_even.scatter(1, given, stay + target.gather(1, given))
    of_odd = torch.arange(stay, stay + odd, device=keys.device).expand(keys.shape[0], -1)
    place = torch.stack((of_even[:, :odd], of_odd), dim=-1).flatten(1)
    if even > odd:
        place = torch.cat((place, of_even[:, odd:]), dim=1)
    return place if protected < 2 else _protected_first(place, protected, stay)


def _protected_first(place: Tensor, protected: int, stay: int) -> Tensor:
    """Renumbers places so that the protected tokens, which are in two ranges, stand in front in their order."""
    evens, odds = (protected + 1) // 2, protected // 2
    front = torch.arange(protected, device=place.device).expand(place.shape[0], -1)
    others = torch.where((place >= evens) & (place < stay), place + odds, place)
    return torch.cat((front, others[:, protected:]), dim=1)


def _join(x: Tensor, size: Tensor, place: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Averages tokens (B, N, dim) that share a place, weighted by `size` (B, N, 1); returns them and their sizes."""
    index = place.unsqueeze(-1)
    sizes = size.new_zeros(size.shape[0], number, 1).scatter_add(1, index, size)
    sums = size.new_zeros(x.shape[0], number, x.shape[2]).scatter_add(1, index.expand_as(x), x * size)
    return (sums / sizes).to(x.dtype), sizes


def _weight_dtype(x: Tensor) -> torch.dtype:
    """Returns float32 for narrower types: sizes are whole numbers, which bfloat16 does not hold beyond 256."""
    return torch.promote_types(x.dtype, torch.float32)
