"""Perceiver IO: a few learned latents look at all pixels and samples of a clip, and a learned query reads its class.

Jaegle et al., "Perceiver IO: A General Architecture for Structured Inputs & Outputs", ICLR 2022, arXiv:2107.14795,
section 4.3 (multimodal autoencoding of Kinetics-700-2020). Facts were read in transformers 5.24,
models/perceiver/modeling_perceiver.py (PerceiverForMultimodalAutoencoding, whose weights are
deepmind/multimodal-perceiver), and in google-deepmind/deepmind-research, perceiver/colabs/video_autoencoding.ipynb.

Shapes, for a clip (B, 3, T, H, W) and its sound (B, S), S = 1920 T: patches of 4x4 pixels become tokens with their 48
numbers and 195 of their place, and 16 samples become a token with 385 numbers of its place. A learned vector fills each
of them up to 704 channels, and one token more stands for the class, which is masked. The latents (B, 784, 512) look at
all of these tokens once, with one head, and then at themselves in the blocks. The classifier looks at the latents with
one learned query.

A place is its coordinates from -1 to 1 with the sines and cosines of multiples of them. The multiples go up to half the
cells that the model was built for, so that other clips are taken, too. They are computed in float32 as the official
code does, since the highest ones of the sound are so large that the rounding shows.

Without sound the model gets silence: as many zeros as belong to the frames. The class of a clip is read as published:
the token of the class is the mask among the inputs. The pretraining did not mask pictures and sound, so that their
masks (`embed.mask`) mean nothing, and are in the weights only because the published ones have them.

What decodes pictures and sound is kept, too, for `Perceiver.reconstruct`. No logit depends on it, so training leaves it
as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.base import FeatureInfo, VideoModel, leave
from stvid.models.blocks import (
    Attention,
    Block,
    FeedForward,
    Tap,
    drop_path_rates,
    init_transformer_weights,
    rename_keys,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import Head
from stvid.models.published_names import count_blocks, mlp_ratio, read_options
from stvid.protocol import Protocol

__all__ = ["Perceiver"]

NORM_EPS = 1e-5  # of all norms: transformers does not read the epsilon of its config here
PATCH = 4  # pixels of a side
IMAGE_BANDS, AUDIO_BANDS = 32, 192  # multiples of a coordinate
INPUT_MARGIN, QUERY_MARGIN = 4, 2  # channels that at least are learned ones, in inputs and in queries
_TRANSFORMERS = "transformers Perceiver"


def place_features(places: Tensor, resolution: Sequence[int], bands: int) -> Tensor:
    """Returns the numbers that say where something is.

    Args:
        places: float32 (N, axes), each from -1 to 1.
        resolution: The cells along each axis for which the highest multiple is made.
        bands: Multiples of each coordinate, from 1 to half of its resolution.

    Returns:
        float32 (N, axes * (2 * bands + 1)): the coordinates, then all sines, then all cosines, axis by axis.
    """
    multiples = torch.stack([torch.linspace(1.0, cells / 2, bands, device=places.device) for cells in resolution])
    angles = math.pi * (places[:, :, None] * multiples).flatten(1)
    return torch.cat((places, angles.sin(), angles.cos()), dim=1)


def places_of(grid: Sequence[int], device: torch.device) -> Tensor:
    """Returns the places of the cells of a grid, the first at -1 and the last at 1, float32 (cells, axes)."""
    lines = [torch.linspace(-1.0, 1.0, cells, dtype=torch.float32, device=device) for cells in grid]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, -2)


def points_of(numbers: Tensor, grid: Sequence[int]) -> Tensor:
    """Returns the places of some cells of a grid for the decoder, the first at -1 and the last a cell before 1.

    Args:
        numbers: The numbers of the cells, counted with the last axis fastest.
        grid: Cells along each axis.
    """
    indices = torch.stack(torch.unravel_index(numbers, tuple(grid)), dim=1)
    return -1 + 2 * indices / torch.tensor(grid, device=numbers.device)


def _width(axes: int, bands: int) -> int:
    return axes * (2 * bands + 1)


def _filled_up(x: Tensor, places: Tensor, padding: Tensor) -> Tensor:
    """Returns (B, N, C) with the numbers of the places and the learned vector behind it."""
    batch, cells = x.shape[:2]
    rest = (places.to(x.dtype).expand(batch, -1, -1), padding.to(x.dtype).expand(batch, cells, -1))
    return torch.cat((x, *rest), dim=2)


class InputTokens(nn.Module):
    """Makes tokens of the pictures, the sound and the masked class, all of the same number of channels.

    Args:
        grid: Patches in time, height and width that the model is built for.
        samples: Samples of sound that the model is built for.
        in_chans: Channels of the clip.
        samples_per_patch: Samples of a token of sound.
        label_dim: Channels of the class among the inputs.
    """

    def __init__(
        self, grid: tuple[int, int, int], samples: int, *, in_chans: int, samples_per_patch: int, label_dim: int
    ) -> None:
        super().__init__()
        self.grid, self.samples, self.samples_per_patch = grid, samples, samples_per_patch
        used = {
            "audio": samples_per_patch + _width(1, AUDIO_BANDS),
            "image": in_chans * PATCH**2 + _width(3, IMAGE_BANDS),
            "label": label_dim,
        }
        self.dim = max(used.values()) + INPUT_MARGIN
        self.padding = nn.ParameterDict({name: torch.randn(1, self.dim - width) * 0.02 for name, width in used.items()})
        self.mask = nn.ParameterDict({name: torch.randn(1, self.dim) * 0.02 for name in used})
        for unread in (self.padding["label"], self.mask["audio"], self.mask["image"]):
            unread.requires_grad_(False)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps (B, in_chans, T, H, W) to (B, T * H/4 * W/4, dim)."""
        time, height, width = clip.shape[2], clip.shape[3] // PATCH, clip.shape[4] // PATCH
        whole = clip[..., : height * PATCH, : width * PATCH]
        patches = rearrange(whole, "b c t (h p) (w q) -> b (t h w) (p q c)", p=PATCH, q=PATCH)
        places = place_features(places_of((time, height, width), clip.device), self.grid, IMAGE_BANDS)
        return _filled_up(patches, places, self.padding["image"])

    def hear(self, audio: Tensor) -> Tensor:
        """Maps samples (B, S) to (B, S / samples_per_patch, dim)."""
        patches = audio.unflatten(1, (-1, self.samples_per_patch))
        places = place_features(places_of(patches.shape[1:2], audio.device), (self.samples,), AUDIO_BANDS)
        return _filled_up(patches, places, self.padding["audio"])


class CrossBlock(FeedForward):
    """Tokens that look at others, and an MLP.

    Args:
        dim: Channels of the tokens.
        other_dim: Channels of the others.
        inner_dim: Channels of queries, keys and values.
        num_heads: Heads of the attention.
        residual: Whether what was seen is added to the tokens; else it takes their place.
        attn_drop_rate: Dropout of the attention weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        other_dim: int,
        inner_dim: int,
        num_heads: int = 1,
        residual: bool = True,
        attn_drop_rate: float = 0.0,
    ) -> None:
        super().__init__(dim, mlp_ratio=1.0, norm_eps=NORM_EPS)
        if inner_dim % num_heads:
            raise ValueError(f"cross_num_heads {num_heads}: {inner_dim} channels are no multiple of it")
        self.num_heads, self.residual, self.attn_drop_rate = num_heads, residual, attn_drop_rate
        self.norm_q = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_kv = nn.LayerNorm(other_dim, eps=NORM_EPS)
        self.q = nn.Linear(dim, inner_dim)
        self.kv = nn.Linear(other_dim, 2 * inner_dim)
        self.proj = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor, *, others: Tensor) -> Tensor:
        """Maps (B, N, dim) and (B, M, other_dim) to (B, N, dim)."""
        q, others = self.q(self.norm_q(x)), self.norm_kv(others)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        if self.num_heads == 1 and not drop_rate and x.shape[1] < others.shape[1] and _is_plain(self.kv):
            seen = self._see_unprojected(q, others)
        else:
            k, v = self.kv(others).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
            seen = attend(q.unflatten(-1, (self.num_heads, -1)), k, v, drop_rate=drop_rate, layout="BMHK").flatten(-2)
        seen = self.proj(seen)
        return self.feed_forward(x + seen if self.residual else seen)

    def _see_unprojected(self, q: Tensor, others: Tensor) -> Tensor:
        """Attends with one head, and projects the few queries and results instead of the many keys and values.

        ``q (others Wk + bk)^T`` is ``(q Wk^T) others^T`` and a number for each query, which a softmax does not see; and
        since the weights of a query sum to 1, ``weights (others Wv + bv)`` is ``(weights others) Wv + bv``.
        """
        key_weight, value_weight = self.kv.weight.chunk(2)
        value_bias = self.kv.bias.chunk(2)[1]
        queries = (q @ key_weight)[:, None]
        given = others.to(queries.dtype)[:, None]  # autocast leaves the results of norms in float32
        seen = attend(queries, given, given, scale=q.shape[-1] ** -0.5)[:, 0]
        return F.linear(seen, value_weight, value_bias)


def _is_plain(layer: nn.Module) -> bool:
    """Returns whether a layer is torch's own and nobody listens to it, so that its weights may be used without it."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


class _Output(nn.Module):
    """A linear layer that no logit depends on.

    It is no `nn.Linear`, since tools that adapt or quantise those would find one that a classifier never runs.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * 0.02, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        return F.linear(x, self.weight, self.bias)


class DecoderHead(Head):
    """A learned query that looks at the latents, and the classifier; and what decodes pictures and sound.

    Args:
        latent_dim: Channels of the latents.
        num_classes: Number of logits.
        query_dim: Channels of the query that are its own.
        output_dim: Channels that the classifier sees.
        in_chans: Channels of a decoded pixel.
        samples_per_patch: Samples that one query for sound decodes.
        attn_drop_rate: Dropout of the attention weights.
    """

    def __init__(
        self,
        latent_dim: int,
        num_classes: int,
        *,
        query_dim: int,
        output_dim: int,
        in_chans: int,
        samples_per_patch: int,
        attn_drop_rate: float,
    ) -> None:
        super().__init__(output_dim, num_classes)
        used = {"audio": _width(1, AUDIO_BANDS), "image": _width(3, IMAGE_BANDS), "label": query_dim}
        dim = max(used.values()) + QUERY_MARGIN
        self.query = nn.Parameter(torch.randn(1, query_dim) * 0.02)
        self.padding = nn.ParameterDict({name: torch.randn(1, dim - width) * 0.02 for name, width in used.items()})
        self.cross = CrossBlock(
            dim, other_dim=latent_dim, inner_dim=latent_dim, residual=False, attn_drop_rate=attn_drop_rate
        )
        self.proj = nn.Linear(dim, output_dim)
        self.image, self.audio = _Output(output_dim, in_chans), _Output(output_dim, samples_per_patch)
        for unread in (self.padding["audio"], self.padding["image"]):
            unread.requires_grad_(False)

    def pool(self, features: Tensor) -> Tensor:
        """Asks the latents for the class; (B, latents + 1, latent_dim) to (B, output_dim)."""
        query = torch.cat((self.query, self.padding["label"]), dim=1)
        return self._ask(query.repeat(features.shape[0], 1, 1), features)[:, 0]

    def _ask(self, queries: Tensor, features: Tensor) -> Tensor:
        return self.proj(self.cross(queries, others=features[:, :-1]))

    def decode(self, features: Tensor, places: Tensor, name: str) -> Tensor:
        """Decodes the ``image`` or the ``audio`` at some places; (B, latents + 1, latent_dim) to (B, N, numbers)."""
        empty = features.new_empty(features.shape[0], len(places), 0)
        output: nn.Module = getattr(self, name)
        return output(self._ask(_filled_up(empty, places, self.padding[name]), features))


class Perceiver(VideoModel):
    """Perceiver IO for video with sound.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip. They decide how fine places are told apart; other clips are taken, too.
        img_size: (height, width) in pixels, which does the same.
        in_chans: Channels of the clip.
        depth: Number of blocks.
        repeats: How often the blocks are run, one after the other.
        embed_dim: Channels of a latent.
        num_heads: Heads of each block.
        mlp_ratio: Hidden channels of the blocks' MLPs over `embed_dim`.
        num_latents: Number of latents.
        cross_num_heads: Heads with which the latents look at the inputs.
        label_dim: Channels of the class among the inputs, and by that of all of them: as many as the pretraining had
            classes, which need not be as many as there are now.
        audio_samples_per_frame: Samples of sound of a frame; 1920 is 48 kHz at 25 frames a second.
        samples_per_patch: Samples of a token of sound.
        query_dim: Channels of the query for the class that are its own.
        output_dim: Channels that the classifier sees.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.

    The features are (B, num_latents + 1, embed_dim): the latents, which belong to no place, and behind them their mean,
    the one cell of `token_grid`, which stands for the clip as a whole. The head does not read it. Pixels that fill no
    patch of 4x4 are left out.
    """

    gives_maps = False
    names_attention = False  # the latents look at other tokens than themselves

    def __init__(
        self,
        *,
        num_classes: int = 700,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: int = 8,
        repeats: int = 1,
        embed_dim: int = 512,
        num_heads: int = 8,
        mlp_ratio: float = 1.0,
        num_latents: int = 784,
        cross_num_heads: int = 1,
        label_dim: int = 700,
        audio_samples_per_frame: int = 1920,
        samples_per_patch: int = 16,
        query_dim: int = 1024,
        output_dim: int = 512,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.num_prefix_tokens, self.repeats = num_latents, repeats
        self.clip_size = (num_frames, *img_size)
        self.audio_samples_per_frame = audio_samples_per_frame
        grid = self.patch_grid(self.clip_size)
        if not all(grid):
            raise ValueError(f"num_frames {num_frames}, img_size {img_size}: smaller than a patch of {PATCH}x{PATCH}")
        samples = num_frames * audio_samples_per_frame
        if samples < samples_per_patch:
            raise ValueError(
                f"audio_samples_per_frame {audio_samples_per_frame}: {num_frames} frames have fewer samples than a "
                f"patch of {samples_per_patch}"
            )
        self.embed = InputTokens(
            grid, samples, in_chans=in_chans, samples_per_patch=samples_per_patch, label_dim=label_dim
        )
        self.latents = nn.Parameter(torch.randn(num_latents, embed_dim) * 0.02)
        width = self.embed.dim
        self.cross = CrossBlock(
            embed_dim,
            other_dim=width,
            inner_dim=width,
            num_heads=cross_num_heads,
            attn_drop_rate=attn_drop_rate,
        )
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                attention=Attention(embed_dim, num_heads=num_heads, attn_drop_rate=attn_drop_rate),
                mlp_ratio=mlp_ratio,
                drop_path_rate=rate,
                norm_eps=NORM_EPS,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.head = DecoderHead(
            embed_dim,
            num_classes,
            query_dim=query_dim,
            output_dim=output_dim,
            in_chans=in_chans,
            samples_per_patch=samples_per_patch,
            attn_drop_rate=attn_drop_rate,
        )
        self.feature_info = [
            FeatureInfo("embed", width, (1, PATCH, PATCH)),
            FeatureInfo(f"blocks.{depth - 1}", embed_dim, self.clip_size),
        ]
        self.apply(init_transformer_weights)

    # --- from a clip to logits ----------------------------------------------------------------------------------------

    def forward(self, clip: Tensor, audio: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_classes).

        Args:
            clip: (B, in_chans, T, H, W).
            audio: The sound of the clip, (B, S) or (B, S, 1), from -1 to 1; 48,000 samples a second for published
                weights. None is silence, zeros for all frames.
        """
        return self.forward_head(self.forward_features(clip, audio=audio))

    def forward_features(self, clip: Tensor, *, mask: Tensor | None = None, audio: Tensor | None = None) -> Tensor:
        """Returns the latents and their mean, (B, num_latents + 1, embed_dim); the sound is as for `forward`."""
        if mask is not None:
            return super().forward_features(clip, mask=mask)
        return self.encode(clip, leave, audio=audio)

    def encode(self, clip: Tensor, tap: Tap, *, audio: Tensor | None = None) -> Tensor:
        """Makes tokens, lets the latents look at them, and runs the blocks."""
        self._check_clip(clip, minimum=(1, PATCH, PATCH))
        pictures = tap(0, self.embed(clip))
        sound = self.embed.hear(self._samples(clip, audio))
        label = self.embed.mask["label"].to(clip.dtype).expand(clip.shape[0], 1, -1)
        tokens = torch.cat((sound, pictures, label), dim=1)
        x = self.latents.repeat(clip.shape[0], 1, 1)  # a view of a parameter confuses torch's FlopCounterMode
        look = functools.partial(self.cross, others=tokens)
        x = run_blocks(
            (look, *(block for _ in range(self.repeats) for block in self.blocks)), x, recompute=self.grad_checkpointing
        )
        return tap(1, torch.cat((x, x.mean(1, keepdim=True)), dim=1))

    def _samples(self, clip: Tensor, audio: Tensor | None) -> Tensor:
        """Returns whole patches of sound, (B, S)."""
        size = self.embed.samples_per_patch
        if audio is None:
            samples = max(size, clip.shape[2] * self.audio_samples_per_frame // size * size)
            return clip.new_zeros(clip.shape[0], samples)
        sound = audio[..., 0] if audio.dim() == 3 and audio.shape[2] == 1 else audio
        if sound.dim() != 2 or len(sound) != len(clip) or sound.shape[1] < size:
            raise ValueError(
                f"audio: ({len(clip)}, S) or ({len(clip)}, S, 1) with at least {size} samples, not {tuple(audio.shape)}"
            )
        return sound[:, : sound.shape[1] // size * size].to(clip.dtype)

    def reconstruct(self, features: Tensor, *, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes some pixels and some sound of the clip, of the size that the model was built for.

        The published code decodes a 128th of a clip at a time.

        Args:
            features: From `forward_features`.
            pixels: Numbers of pixels, int (P,), counted through the frames, row by row.
            patches: Numbers of patches of samples, int (S,).

        Returns:
            The pixels (B, P, in_chans) and the samples (B, S * samples_per_patch).

        Raises:
            ValueError: If the head is another one, which decodes neither.
        """
        if not isinstance(self.head, DecoderHead):
            raise ValueError(f"reconstruct: the head is a {type(self.head).__name__}, which decodes classes alone")
        cells = (self.embed.samples // self.embed.samples_per_patch,)
        image = place_features(points_of(pixels, self.clip_size), self.embed.grid, IMAGE_BANDS)
        audio = place_features(points_of(patches, cells), (self.embed.samples,), AUDIO_BANDS)
        return self.head.decode(features, image, "image"), self.head.decode(features, audio, "audio").flatten(1)

    @staticmethod
    def patch_grid(clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the patches of a clip in time, height and width."""
        time, height, width = clip_shape[-3:]
        return time, height // PATCH, width // PATCH

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the one cell of the features, the mean of the latents."""
        return 1, 1, 1

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns the patches (place 0) or the mean of the latents as a map (B, C, t, h, w)."""
        if place == 0:
            return x.transpose(1, 2).unflatten(2, self.patch_grid(clip_size))
        return super().to_map(x, place, clip_size)

    # --- what training asks -------------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Returns the latents, the query, and the vectors that fill up tokens or stand for the class."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
            and (name in ("latents", "head.query") or name.startswith(("embed.", "head.padding.")))
        }

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: what makes the first latents, then every block in order."""
        return {"stem": r"^(?:embed|latents|cross)", "blocks": [(r"^blocks\.(\d+)", None)]}

    # --- published weights --------------------------------------------------------------------------------------------

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises transformers' PerceiverForMultimodalAutoencoding."""
        name, own = super().convert_checkpoint(state)
        if not any(key.endswith("input_preprocessor.padding.label") for key in own):
            return name, own
        return _TRANSFORMERS, _joined(rename_keys(own, _FROM_TRANSFORMERS))

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: all sizes but those of the clip, and the numbers of heads."""
        _, own = self.convert_checkpoint(state)
        needed = ("latents", "embed.mask.label", "embed.padding.label", "blocks.0.norm1.weight")
        return read_options(_read, own, self.state_dict(), needed=needed)


# --- conversion -------------------------------------------------------------------------------------------------------

_ATTENTION = (
    (r"\.attention\.self\.layernorm1\.", ".norm_q."),
    (r"\.attention\.self\.layernorm2\.", ".norm_kv."),
    (r"\.attention\.self\.(query|key|value)\.", r".\1."),
    (r"\.attention\.output\.dense\.", ".proj."),
    (r"\.layernorm\.", ".norm2."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
)
_FROM_TRANSFORMERS = (
    (r"^perceiver\.", ""),
    (r"^input_preprocessor\.", "embed."),
    (r"^embeddings\.", ""),
    (r"^encoder\.cross_attention\.", "cross."),
    (r"^encoder\.self_attends\.", "blocks."),
    (r"^decoder\.modalities\.label\.decoder\.output_position_encodings\.position_embeddings$", "head.query"),
    (r"^decoder\.decoder\.decoding_cross_attention\.", "head.cross."),
    (r"^decoder\.decoder\.final_layer\.", "head.proj."),
    (r"^decoder\.padding\.", "head.padding."),
    (r"^output_postprocessor\.modalities\.label\.classifier\.", "head.fc."),
    (r"^output_postprocessor\.modalities\.(image|audio)\.classifier\.", r"head.\1."),
    *_ATTENTION,
    (r"^(blocks\.\d+)\.norm_q\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.(proj|query|key|value)\.", r"\1.attn.\2."),
)


def _joined(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins queries, keys and values of the blocks, and keys and values where others are looked at, in one tensor."""
    for key in [key for key in own if ".query." in key]:
        stem, _, kind = key.rpartition("query.")
        parts = [f"{stem}{part}.{kind}" for part in ("query", "key", "value")]
        if not all(part in own for part in parts):
            continue
        if stem.endswith(".attn."):
            own[f"{stem}qkv.{kind}"] = torch.cat([own.pop(part) for part in parts])
        else:
            own[f"{stem}q.{kind}"] = own.pop(parts[0])
            own[f"{stem}kv.{kind}"] = torch.cat([own.pop(part) for part in parts[1:]])
    return own


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    latents, dim = own["latents"].shape
    options: dict[str, Any] = {
        "num_latents": latents,
        "embed_dim": dim,
        "depth": count_blocks(own, "blocks."),
        "label_dim": own["embed.mask.label"].shape[1] - own["embed.padding.label"].shape[1],
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }
    if "head.query" in own and "head.proj.weight" in own:
        options |= {"query_dim": own["head.query"].shape[1], "output_dim": own["head.proj.weight"].shape[0]}
    if "head.audio.bias" in own and "head.image.bias" in own:
        options |= {"samples_per_patch": len(own["head.audio.bias"]), "in_chans": len(own["head.image.bias"])}
    return options


# --- variants ---------------------------------------------------------------------------------------------------------

# Official notebook: the square in the middle at 224 pixels, divided by 255 alone; 16 frames go with 30,720 samples at
# 48 kHz, which is 25 frames a second. One clip is read.
_K700 = Protocol(
    frames=16, stride=1, fps=25, short_side=224, crop=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), views="1x1"
)

FAMILY = Family(
    model="Perceiver",
    paper="Jaegle et al. 2022, arXiv:2107.14795",
    small_clip=(4, 16, 24),
    min_clip=(1, 4, 4),
    formats=("transformers Perceiver",),
    tiny={
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 4,
        "num_latents": 6,
        "label_dim": 8,
        "audio_samples_per_frame": 32,
        "query_dim": 32,
        "output_dim": 24,
    },
    golden_options={
        "hf_perceiver_multimodal_b8__4x32": {
            "name": "perceiver_io_video",
            "img_size": 32,
            "num_latents": 64,
            "audio_samples_per_frame": 64,
        },
    },
    variants=(
        Variant(
            "perceiver_io_video",
            "Perceiver IO that encodes video, sound and class of Kinetics-700; it is read as a classifier.",
            _K700,
        ),
    ),
)
