"""V-JEPA 2: a Vision Transformer with rotary positions in time, height and width, read out by an attentive probe.

Assran et al., "V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning", 2025,
arXiv:2506.09985; official code: facebookresearch/vjepa2, src/models/vision_transformer.py (encoder),
src/models/attentive_pooler.py (probe), evals/video_classification_frozen (classification).

Shapes, for a clip (B, 3, T, H, W): tubelets of 2 frames of 16x16 pixels become tokens (B, T/2 * H/16 * W/16,
embed_dim), without a class token and without a table of positions. Each block attends over all of them, and a norm ends
the encoder. The probe mixes the tokens in three more blocks, and one learned query looks at them.

In each head, queries and keys are turned by the place of their token: a third of the channels by its frame, a third by
its row, a third by its column, and the few that are left over are not. Places are counted in the clip's own grid, so
every clip that tubelets fill is taken. Two channels that are turned together have different angles, since the official
tables repeat the sequence of frequencies instead of each frequency; published weights rely on that.

Classification of a video as published runs the encoder on each clip apart, hands the tokens of all clips of a crop to
the probe at once (`VJEPA2.forward_clips`), and averages the probabilities of the crops.

There are two kinds of published files. The authors' have the encoder and the probe apart: load the encoder first, then
the probe. Those of transformers have both in one, with another epsilon in the probe, and with as many heads in the
probe as in the encoder. For ViT-g these are 22, while the authors train their probe with 16, so that the same weights
are two functions; each file computes what its own code does, unless `head_num_heads` says otherwise.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
    keep_visible,
    leave_out,
    rename_keys,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import AttentivePoolHead, LinearHead
from stvid.models.published_names import count_blocks, mlp_ratio, read_options
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["VJEPA2"]

NORM_EPS = 1e-6  # epsilon of the encoder's norms (official code)
PROBE_HEADS = 16  # of every official probe (configs/eval: classifier.num_heads)
PROBE_NORM_EPS = 1e-5  # of the official probe
BASE = 10000.0  # the wavelengths of the positions grow up to this number
_NATIVE = "facebookresearch/vjepa2"
_ENCODER = "facebookresearch/vjepa2 encoder"
_PROBE = "facebookresearch/vjepa2 probe"
_TRANSFORMERS = "transformers VJEPA2"
_TRANSFORMERS_ENCODER = "transformers VJEPA2 encoder"


def rotation(grid: Sequence[int], head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the factors that turn queries and keys: ``x * cosines + swapped(x) * sines``.

    Channels 2j and 2j + 1 are turned together. The sines of even channels are negative, as a rotation has them.

    Args:
        grid: Cells in time, height and width.
        head_dim: Channels of a head. Three parts of 2 * (head_dim // 6) of them belong to time, height and width.
        like: Gives the device and the type.

    Returns:
        Cosines and sines, each (cells, head_dim); 1 and 0 for channels that are not turned.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    part = 2 * (head_dim // 3 // 2)
    frequencies = BASE ** -(torch.arange(part // 2, dtype=dtype, device=like.device) / (part / 2))
    frequencies = frequencies.repeat(2)  # tiled, as in the official code
    places = [torch.arange(size, dtype=dtype, device=like.device) for size in grid]
    angles = [place.flatten()[:, None] * frequencies for place in torch.meshgrid(*places, indexing="ij")]
    rest = angles[0].new_zeros(math.prod(grid), head_dim - 3 * part)
    angle = torch.cat((*angles, rest), dim=1)
    signs = torch.tensor([-1.0, 1.0], dtype=dtype, device=like.device).repeat(head_dim // 2)
    if head_dim % 2:
        signs = torch.cat((signs, signs.new_ones(1)))
    return angle.cos().to(like.dtype), (angle.sin() * signs).to(like.dtype)


class RotaryAttention(Attention):
    """Self-attention whose queries and keys are turned by the places of their tokens; (B, N, dim) to the same."""

    def forward(self, x: Tensor, *, cosines: Tensor, sines: Tensor) -> Tensor:  # type: ignore[override]
        """Mixes the tokens.

        Args:
            x: (B, N, dim).
            cosines: From `rotation`, (N, head_dim) or, if the rows of the batch differ, (B, N, head_dim).
            sines: From `rotation`, in the shape of `cosines`.
        """
        both, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).split((2, 1), dim=-3)
        # Three reads of queries and keys together; the tables are cast under autocast, or all would be float32.
        cosines, sines = (table.to(both.dtype)[..., None, None, :] for table in (cosines, sines))
        odd = both[..., : both.shape[-1] // 2 * 2].unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        if both.shape[-1] % 2:
            odd = torch.cat((odd, both[..., -1:]), dim=-1)
        q, k = torch.addcmul(both * cosines, odd, sines).unbind(-3)
        return self.mix(q, k, v.squeeze(-3))


class VJEPA2(VideoModel):
    """V-JEPA 2's encoder with an attentive probe.

    Args:
        num_classes: Number of logits. 0 returns the mean of the tokens, for which there is no probe.
        num_frames: Frames of a clip; others are taken, too, since no tensor depends on them.
        img_size: (height, width) in pixels; others are taken, too.
        in_chans: Channels of the clip.
        patch_size: Side of a tubelet in pixels.
        tubelet_size: Frames of a tubelet.
        depth: Number of blocks of the encoder.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention of the encoder.
        mlp_ratio: Hidden channels of the encoder's MLPs over `embed_dim`.
        qkv_bias: Whether the encoder's queries, keys and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_depth: Blocks of the probe, of which the last is the one with the query.
        head_num_heads: Heads of the probe's attention. None takes 16 as the authors do, and loading a file of
            transformers takes as many as the encoder has, which is what that library computes.
        head_norm_eps: Epsilon of the probe's norms. None takes 1e-5 as the authors do, and loading a file of
            transformers takes 1e-6.

    The features are the tokens after the encoder's norm, (B, T/2 * H/16 * W/16, embed_dim). Tokens of several clips of
    a video, joined along their number, are features, too (see `forward_clips`). Frames and pixels that fill no tubelet
    are left out.
    """

    gives_maps = False
    block_prefix_tokens = 0
    takes_mask = True
    joins_clips = True

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (256, 256),
        in_chans: int = 3,
        patch_size: int = 16,
        tubelet_size: int = 2,
        depth: int = 24,
        embed_dim: int = 1024,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_depth: int = 4,
        head_num_heads: int | None = None,
        head_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.num_heads = num_heads
        self.tubelet = (tubelet_size, patch_size, patch_size)
        if not all(self.token_grid((num_frames, *img_size))):
            raise ValueError(
                f"num_frames {num_frames}, img_size {img_size}: smaller than a tubelet of {tubelet_size} frames of "
                f"{patch_size}x{patch_size} pixels"
            )
        self.chosen = {"head_num_heads": head_num_heads, "head_norm_eps": head_norm_eps}
        self.encoder_is_loaded = False
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=self.tubelet)
        self.pos_drop = nn.Dropout(drop_rate)
        rates: dict[str, Any] = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                attention=RotaryAttention(embed_dim, num_heads=num_heads, qkv_bias=qkv_bias, **rates),
                mlp_ratio=mlp_ratio,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_eps=NORM_EPS,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head_depth = head_depth
        self.head: nn.Module = self._probe(num_classes) if num_classes else LinearHead(embed_dim, 0)
        names = [*(f"blocks.{number}" for number in range(depth - 1)), "norm"]
        self.feature_info = [FeatureInfo(name, embed_dim, self.tubelet) for name in names]
        self.apply(init_transformer_weights)
        for number, block in enumerate(self.blocks, start=1):  # official code: _rescale_blocks
            for name in ("attn.proj.weight", "mlp.fc2.weight"):
                block.get_parameter(name).data.div_(math.sqrt(2.0 * number))

    def _probe(self, num_classes: int) -> AttentivePoolHead:
        heads, eps = self.chosen["head_num_heads"], self.chosen["head_norm_eps"]
        return AttentivePoolHead(
            self.num_features,
            num_classes,
            num_heads=PROBE_HEADS if heads is None else int(heads),
            depth=self.head_depth,
            norm_eps=PROBE_NORM_EPS if eps is None else eps,
        )

    # --- from a clip to logits ----------------------------------------------------------------------------------------

    def _embed(self, clip: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the embedded tubelets, (B, t*h*w, embed_dim), and the factors that turn queries and keys."""
        self._check_clip(clip, minimum=self.tubelet)
        x = self.patch_embed(clip)
        turn = rotation(x.shape[1:4], self.num_features // self.num_heads, x)
        return self.pos_drop(x.flatten(1, 3)), turn

    def _run(self, x: Tensor, turn: tuple[Tensor, Tensor], tap: Tap | None = None) -> Tensor:
        blocks = [functools.partial(block, cosines=turn[0], sines=turn[1]) for block in self.blocks]
        return run_blocks(blocks, x, recompute=self.grad_checkpointing, tap=tap)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the tubelets, runs the blocks and the norm."""
        last = len(self.feature_info) - 1
        x, turn = self._embed(clip)
        return tap(last, self.norm(self._run(x, turn, leave_out(last, tap))))

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Runs the encoder on some of the tokens, each turned by its place in the whole clip, as the pretraining does.

        Official code: app/vjepa/train.py, the context encoder.
        """
        x, turn = self._embed(clip)
        kept = keep_visible(x, visible, prefix=0)
        cosines, sines = (keep_visible(table.expand(x.shape[0], -1, -1), visible, prefix=0) for table in turn)
        return self.norm(self._run(kept, (cosines, sines)))

    def forward_clips(self, clips: Tensor) -> Tensor:
        """Classifies several clips of a video by one look of the probe at the tokens of all, as published.

        Official code: evals/video_classification_frozen, ClipAggregation. The probabilities of several crops are
        averaged by the caller.

        Args:
            clips: (B, clips, in_chans, T, H, W), the clips in the order of time.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: If there is no axis of clips.
        """
        if clips.dim() != 6:
            raise ValueError(f"forward_clips takes (B, clips, C, T, H, W), not {tuple(clips.shape)}")
        tokens = self.forward_features(clips.flatten(0, 1))
        return self.forward_head(tokens.unflatten(0, tuple(clips.shape[:2])).flatten(1, 2))

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each whole tubelet."""
        time, height, width = (size // step for size, step in zip(clip_shape[-3:], self.tubelet, strict=True))
        return time, height, width

    # --- what training asks -------------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Returns the query of the probe."""
        return {"head.query"} if isinstance(self.head, AttentivePoolHead) else set()

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, then every block in order, the norm with the last."""
        return {"stem": r"^patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))]}

    # --- published weights --------------------------------------------------------------------------------------------

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' encoder, probe, and both together, and transformers' classifier and encoder.

        Of a pretraining the moving average is taken (``target_encoder``), on which the published probes were trained.

        Raises:
            CheckpointError: If the state is a probe, and no encoder was loaded before.
        """
        name, own = super().convert_checkpoint(state)
        if any(key.endswith("embeddings.patch_embeddings.proj.weight") for key in own):
            own = _joined(rename_keys(_without(own, _PREDICTOR), _FROM_TRANSFORMERS))
            name = _TRANSFORMERS if "head.query" in own else _TRANSFORMERS_ENCODER
        elif any(_PARTS.match(key) for key in own):
            parts = {_PARTS.sub(lambda match: f"{match[1]}.", key): value for key, value in own.items()}
            unwanted = "encoder." if any(key.startswith("target_encoder.") for key in parts) else "target_encoder."
            own = rename_keys(_without(parts, ("predictor.", unwanted)), _FROM_AUTHORS)
            name = _NATIVE if "head.query" in own else _ENCODER
        elif "pooler.query_tokens" in own and "patch_embed.proj.weight" not in own:
            name, own = _PROBE, rename_keys(own, _FROM_AUTHORS)
            if not self.encoder_is_loaded:
                raise CheckpointError(
                    "holds the probe alone: load the file of its encoder first (reset_head=True), then this one"
                )
            own |= {key: value for key, value in self.state_dict().items() if not key.startswith("head.")}
        elif "patch_embed.proj.weight" in own and "head.query" not in own:
            name = _ENCODER if "head.fc.weight" not in own else name
        if name != "stvid":
            own.pop("pos_embed", None)  # a table that the authors' files hold, and their code does not use
        if not isinstance(self.head, AttentivePoolHead) and name in (_NATIVE, _TRANSFORMERS):
            own = _without(own, ("head.",))  # a model of features takes the encoder alone
        return name, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: the depths, the tubelets, and the width of the MLPs.

        `embed_dim` is not among it, since the heads that go with other channels do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight",))

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the heads and the epsilon that the code of a file has in its probe, unless they were chosen."""
        self.encoder_is_loaded = True
        if not isinstance(self.head, AttentivePoolHead) or "head" in self.recipe:
            return
        settings: dict[str, Any] = {"head_num_heads": PROBE_HEADS, "head_norm_eps": PROBE_NORM_EPS}
        if format_name == _TRANSFORMERS:
            settings = {"head_num_heads": self.num_heads, "head_norm_eps": NORM_EPS}
        elif format_name == "stvid":
            settings |= {key: hyperparameters[key] for key in settings if hyperparameters.get(key) is not None}
        elif format_name not in (_NATIVE, _PROBE):
            return
        chosen = {key: value for key, value in self.chosen.items() if value is not None}
        settings |= chosen
        if self.num_features % settings["head_num_heads"]:
            return
        self.head.set_numbers(num_heads=settings["head_num_heads"], norm_eps=settings["head_norm_eps"])
        others = self.recipe.get("hyperparameters", {})
        official = {"head_num_heads": PROBE_HEADS, "head_norm_eps": PROBE_NORM_EPS}
        changed = {key: value for key, value in settings.items() if value != official[key] or key in chosen}
        kept = {key: value for key, value in others.items() if key not in settings}
        self.recipe = {**self.recipe, "hyperparameters": {**kept, **changed}}


# --- conversion -------------------------------------------------------------------------------------------------------

_PARTS = re.compile(r"^(encoder|target_encoder|predictor|classifier)[./](?:module\.)?(?:backbone\.)?(?=\w)")
_PREDICTOR = ("vjepa2.predictor.", "predictor.")

_PROBE_NAMES = (
    (r"^pooler\.query_tokens$", "head.query"),
    (r"^pooler\.cross_attention_(?:block|layer)\.(?:xattn|cross_attn)\.", "head.cross_attn."),
    (r"^pooler\.cross_attention_(?:block|layer)\.", "head."),
    (r"^pooler\.(?:blocks|self_attention_layers)\.(\d+)\.", r"head.blocks.\1."),
)
_FROM_AUTHORS = (
    (r"^(?:target_)?encoder\.", ""),
    (r"^classifier\.", ""),
    *_PROBE_NAMES,
    (r"^linear\.", "head.fc."),
)
_FROM_TRANSFORMERS = (
    (r"^vjepa2\.", ""),
    (r"^encoder\.embeddings\.patch_embeddings\.", "patch_embed."),
    (r"^encoder\.layer\.(\d+)\.attention\.", r"blocks.\1.attn."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^encoder\.layernorm\.", "norm."),
    *_PROBE_NAMES,
    (r"\.(?:layer_)?norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.(q|k|v)_proj\.", r".\1."),
    (r"\.attn\.query\.", ".attn.q."),
    (r"\.attn\.key\.", ".attn.k."),
    (r"\.attn\.value\.", ".attn.v."),
    (r"^classifier\.", "head.fc."),
)


def _without(state: Mapping[str, Tensor], prefixes: str | tuple[str, ...]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def _joined(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins queries, keys and values of self-attention, and keys and values of the probe's query, in one tensor."""
    for key in [key for key in own if re.search(r"attn\.q\.(?:weight|bias)$", key)]:
        stem, _, kind = key.rpartition("q.")
        parts = "kv" if stem.endswith("cross_attn.") else "qkv"
        if all(f"{stem}{part}.{kind}" in own for part in parts):
            own[f"{stem}{parts}.{kind}"] = torch.cat([own.pop(f"{stem}{part}.{kind}") for part in parts])
    return own


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    probe = {"head_depth": 1 + count_blocks(own, "head.blocks.")} if "head.query" in own else {}
    return {
        "in_chans": patches[1],
        "tubelet_size": patches[2],
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
        **probe,
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/eval/vitl/ssv2.yaml (frames_per_clip, frame_step, resolution, num_segments x
# num_views_per_segment), evals/video_classification_frozen/utils.py (EvalVideoTransform: the short side is the crop),
# eval.py (DEFAULT_NORMALIZATION). Frames are counted at the rate of the video.
_SSV2 = Protocol(frames=16, stride=4, short_side=256, crop=256, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="2x3")
# configs/eval/vitg-384/ssv2.yaml, likewise.
_SSV2_384 = Protocol(frames=64, stride=2, short_side=384, crop=384, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="2x3")

FAMILY = Family(
    model="VJEPA2",
    paper="Assran et al. 2025, arXiv:2506.09985",
    small_clip=(4, 48, 32),
    min_clip=(2, 16, 16),
    formats=(
        "facebookresearch/vjepa2",
        "facebookresearch/vjepa2 encoder",
        "facebookresearch/vjepa2 probe",
        "transformers VJEPA2",
        "transformers VJEPA2 encoder",
    ),
    tiny={"depth": 2, "embed_dim": 64, "num_heads": 4, "head_depth": 2, "head_num_heads": 4},
    slow_goldens=(
        "vjepa2_vit_l__16x64",
        "vjepa2_vit_g_d4__16x64",
        "vjepa2_vit_h_d4__8x96x64",
        "hf_vjepa2_vit_g_d3__8x64",
        "hf_vjepa2_vit_l_d6__16x64",
    ),
    golden_options={
        "vjepa2_vit_l__16x64": {"name": "vjepa2_vit_l", "img_size": 64},
        "vjepa2_vit_h_d4__8x96x64": {"name": "vjepa2_vit_h", "img_size": (96, 64), "depth": 4},
        "vjepa2_vit_g_d4__16x64": {"name": "vjepa2_vit_g", "img_size": 64, "depth": 4},
        "hf_vjepa2_vit_l_d6__16x64": {"name": "vjepa2_vit_l", "img_size": 64, "depth": 6},
        "hf_vjepa2_vit_g_d3__8x64": {"name": "vjepa2_vit_g", "img_size": 64, "depth": 3},
    },
    variants=(
        Variant("vjepa2_vit_l", "V-JEPA 2 ViT-L/16 with an attentive probe.", _SSV2),
        Variant(
            "vjepa2_vit_h",
            "V-JEPA 2 ViT-H/16 with an attentive probe.",
            _SSV2,
            {"depth": 32, "embed_dim": 1280, "num_heads": 16},
            same_as="vjepa2_vit_l",
        ),
        Variant(
            "vjepa2_vit_g",
            "V-JEPA 2 ViT-g/16 at 384 pixels with an attentive probe.",
            _SSV2_384,
            {"depth": 40, "embed_dim": 1408, "num_heads": 22, "mlp_ratio": 48 / 11},
            same_as="vjepa2_vit_l",
        ),
    ),
)
