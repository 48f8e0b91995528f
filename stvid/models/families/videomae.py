"""VideoMAE and VideoMAE V2: a plain Vision Transformer over the tubelets of a clip, pretrained as a masked autoencoder.

Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training", NeurIPS
2022, arXiv:2203.12602; official code: MCG-NJU/VideoMAE, modeling_finetune.py. Wang et al., "VideoMAE V2: Scaling Video
Masked Autoencoders with Dual Masking", CVPR 2023, arXiv:2303.16727; official code: OpenGVLab/VideoMAEv2,
models/modeling_finetune.py. These are the classifiers; V2's S and B have the first version's architecture, and were
distilled from its ViT-g.

Shapes, for a clip (B, 3, T, H, W): tubelets of 2 frames of 16x16 pixels become tokens (B, T/2 * H/16 * W/16,
embed_dim), without a class token. Each block attends over all of them. Their mean is normalised and classified.

Three details differ from other Vision Transformers. Keys have no bias, queries and values have one. The positions are
sines of the number of a token in the flattened grid, so a token's code depends on the size of the grid: a model built
for other frames or pixels has the table of its own grid, as in the official code, while a clip of another size than the
model was built for gets the model's table resized. There is no norm after the last block, only one after the mean.

Checkpoints of the pretraining load, too: their encoder is taken, its last norm and the decoder are left out, as the
official fine-tuning does. The pretraining itself is `VideoMAEPretraining` (official code of both: modeling_pretrain.py,
engine_for_pretraining.py): a narrow decoder of plain blocks gets the visible tokens and, behind them, one token for
each hidden tubelet, with sines of its own width, and predicts the pixels of the hidden ones, normalised in each tubelet
and colour. In V2 it gets tokens for a half of the tubelets only.
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
from stvid.models.pretraining import MaskedAutoencoder, empty_token, encoder_alone, patch_values
from stvid.models.published_names import count_blocks, from_mmaction, is_mmaction, mlp_ratio, read_options
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["VideoMAE", "VideoMAEPretraining", "sinusoids"]

NORM_EPS = 1e-6  # epsilon of every LayerNorm (official code)
_NATIVE = "MCG-NJU/VideoMAE"
_PRETRAINING = "MCG-NJU/VideoMAE pretraining"
_TRANSFORMERS = "transformers VideoMAE"
_OWN_PRETRAINING = "stvid pretraining"
_TRANSFORMERS_PRETRAINING = "transformers VideoMAE pretraining"
_EPSILONS = {
    **dict.fromkeys((_TRANSFORMERS, _TRANSFORMERS_PRETRAINING), (1e-12, 1e-05)),
    **dict.fromkeys((_NATIVE, _PRETRAINING, "mmaction2"), (NORM_EPS, NORM_EPS)),
}  # of the blocks' norms and of the one before the classifier, by the layout of the file


class VideoMAE(VideoModel):
    """VideoMAE's classifier.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the table of positions; other clips are taken, with it resized.
        img_size: (height, width) in pixels, which decides the table, too.
        in_chans: Channels of the clip.
        patch_size: Side of a tubelet in pixels.
        tubelet_size: Frames of a tubelet.
        depth: Number of blocks.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.
        norm_eps: Epsilon of the blocks' norms; loading a published format sets that format's.
        head_norm_eps: Epsilon of the norm before the classifier, which a published format sets, too.
        token_merging: ``r`` and ``prop_attn`` of `stvid.merge_tokens`, such as ``{"r": 8}``; None merges nothing.

    The features are the tokens after the last block, (B, T/2 * H/16 * W/16, embed_dim), which no norm has seen; that of
    the head comes after their mean. Frames and pixels that fill no tubelet are left out.
    """

    gives_maps = False
    block_prefix_tokens = 0
    takes_mask = True

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 16,
        tubelet_size: int = 2,
        depth: int = 12,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        norm_eps: float = NORM_EPS,
        head_norm_eps: float = NORM_EPS,
        token_merging: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = embed_dim
        self.in_chans = in_chans
        self.tubelet = (tubelet_size, patch_size, patch_size)
        self.grid = self.token_grid((num_frames, *img_size))
        if not all(self.grid):
            raise ValueError(
                f"num_frames {num_frames}, img_size {img_size}: smaller than a tubelet of {tubelet_size} frames of "
                f"{patch_size}x{patch_size} pixels"
            )
        self.norm_eps, self.head_norm_eps = norm_eps, head_norm_eps
        self.mlp_ratio, self.qkv_bias = mlp_ratio, qkv_bias
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=self.tubelet)
        # Part of the state, since mmaction2's files hold the table, and since stvid's own resize it.
        self.register_buffer("pos_embed", torch.zeros(1, math.prod(self.grid), embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                attention=QueryValueBiasAttention(embed_dim, num_heads=num_heads, qkv_bias=qkv_bias, **rates),
                mlp_ratio=mlp_ratio,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_eps=norm_eps,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.head = LinearHead(embed_dim, num_classes, norm_eps=head_norm_eps, drop_rate=head_drop_rate)
        self.feature_info = [FeatureInfo(f"blocks.{number}", embed_dim, self.tubelet) for number in range(depth)]
        self.apply(init_transformer_weights)
        self.pos_embed.copy_(self.table())
        if token_merging is not None:
            merge_as_built(self, token_merging)

    pos_embed: Tensor

    def table(self) -> Tensor:
        """Returns the table of positions of the grid that the model was built for."""
        return sinusoids(math.prod(self.grid), self.num_features)

    def embed(self, clip: Tensor) -> Tensor:
        """Embeds the tubelets and adds their positions; (B, in_chans, T, H, W) to (B, t*h*w, embed_dim)."""
        self._check_clip(clip, minimum=self.tubelet)
        x = self.patch_embed(clip)
        positions = resize_grid(self.pos_embed, self.grid, x.shape[1:4], mode="linear")
        # As in the official code, in the type of the tokens: under autocast the residuals stay in the low precision.
        return self.pos_drop(x.flatten(1, 3) + positions.to(x.dtype))

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the tubelets and runs the blocks."""
        return run_blocks(self.blocks, self.embed(clip), recompute=self.grad_checkpointing, tap=tap)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Runs the blocks on some of the tokens, as the encoder of the pretraining does."""
        x = keep_visible(self.embed(clip), visible, prefix=0)
        return run_blocks(self.blocks, x, recompute=self.grad_checkpointing)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each whole tubelet."""
        time, height, width = (size // step for size, step in zip(clip_shape[-3:], self.tubelet, strict=True))
        return time, height, width

    def mergeable_blocks(self) -> dict[str, nn.Module]:
        """Returns the blocks, all of which attend over the whole clip."""
        return {f"blocks.{number}": block for number, block in enumerate(self.blocks)}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, then every block in order (official code: optim_factory.py)."""
        return {"stem": r"^patch_embed", "blocks": [(r"^blocks\.(\d+)", None)]}

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' classifiers and pretraining, mmaction2's, and transformers' VideoMAE, 4 and 5."""
        name, own = super().convert_checkpoint(state)
        if is_mmaction(own):
            name, own = "mmaction2", rename_keys(from_mmaction(own), _FROM_MMACTION)
        elif any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in own):
            name, own = _TRANSFORMERS, _from_transformers(own, self.num_features)
        elif (encoder := encoder_alone(own)) is not None:
            name, own = _OWN_PRETRAINING, _with_fresh_norm(encoder, self.num_features)
        elif "encoder.patch_embed.proj.weight" in own:
            name, own = _PRETRAINING, _encoder_alone(own)
        elif "fc_norm.weight" in own:
            name = _NATIVE
        own = rename_keys(own, _HEAD)
        if "patch_embed.proj.weight" in own and "pos_embed" not in own:
            own["pos_embed"] = self.table()
        return name, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, tubelets, width of the MLPs, and whether there are biases.

        `embed_dim` is not among it: the heads that go with other channels do not show; nor do frames and size.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight",))

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the epsilons that a layout's weights were trained with."""
        names = ("norm_eps", "head_norm_eps")
        published = _EPSILONS.get(format_name)
        values = hyperparameters if published is None else dict(zip(names, published, strict=True))
        changed = {key: values[key] for key in names if values.get(key, getattr(self, key)) != getattr(self, key)}
        if not changed:
            return
        self.norm_eps = changed.get("norm_eps", self.norm_eps)
        self.head_norm_eps = changed.get("head_norm_eps", self.head_norm_eps)
        for module in self.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = self.norm_eps
        if isinstance(self.head, LinearHead) and isinstance(self.head.norm, nn.LayerNorm):
            self.head.norm.eps = self.head_norm_eps
        hyperparameters = {**self.recipe.get("hyperparameters", {}), **changed}
        self.recipe = {**self.recipe, "hyperparameters": hyperparameters}

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the table of positions, which stvid's own files and mmaction2's hold."""
        if key != "pos_embed" or table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        old = self.token_grid((built.get("num_frames", 16), *built.get("img_size", (224, 224))))
        return resize_grid(table, old, self.grid, mode="linear") if table.shape[1] == math.prod(old) else None


# --- pretraining ------------------------------------------------------------------------------------------------------


class VideoMAEDecoder(nn.Module):
    """The decoder: plain blocks, a norm, and a linear layer to the pixels of a tubelet.

    Args:
        dim: Channels of a token.
        values: Values of a tubelet.
        depth: Number of blocks.
        num_heads: Heads of each attention.
        **options: As in `Block`.
    """

    def __init__(self, dim: int, values: int, *, depth: int, num_heads: int, qkv_bias: bool, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, attention=QueryValueBiasAttention(dim, num_heads=num_heads, qkv_bias=qkv_bias), **options)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.head = nn.Linear(dim, values)

    def forward(self, x: Tensor, predicted: int, *, recompute: bool) -> Tensor:
        """Maps tokens (B, N, dim), of which the last are to be predicted, to (B, predicted, values)."""
        x = run_blocks(self.blocks, x, recompute=recompute)
        return self.head(self.norm(x[:, x.shape[1] - predicted :]))


class VideoMAEPretraining(MaskedAutoencoder):
    """The masked pretraining of VideoMAE and VideoMAE V2.

    Args:
        encoder: The encoder.
        normalize_target: Whether the target is normalised in each tubelet and colour.
        decoder_depth: Blocks of the decoder.
        decoder_embed_dim: Channels of its tokens; None takes half of the encoder's.
        decoder_num_heads: Heads of its attention; None takes one for 64 channels.
    """

    takes_decoder_mask = True

    def __init__(
        self,
        encoder: VideoMAE,
        *,
        normalize_target: bool = True,
        decoder_depth: int = 4,
        decoder_embed_dim: int | None = None,
        decoder_num_heads: int | None = None,
    ) -> None:
        super().__init__(encoder, normalize_target=normalize_target)
        width = encoder.num_features
        dim = width // 2 if decoder_embed_dim is None else decoder_embed_dim
        self.patch_size = encoder.tubelet
        self.encoder_norm = nn.LayerNorm(width, eps=encoder.norm_eps)
        self.encoder_to_decoder = nn.Linear(width, dim, bias=False)
        self.mask_token = empty_token(dim)
        self.decoder = VideoMAEDecoder(
            dim,
            patch_values(self.patch_size, encoder.in_chans),
            depth=decoder_depth,
            num_heads=max(1, dim // 64) if decoder_num_heads is None else decoder_num_heads,
            qkv_bias=encoder.qkv_bias,
            mlp_ratio=encoder.mlp_ratio,
            norm_eps=encoder.norm_eps,
        )
        self.register_buffer("decoder_positions", sinusoids(math.prod(encoder.grid), dim), persistent=False)
        self.apply(_init_pretraining_weights)

    encoder: VideoMAE
    decoder_positions: Tensor

    def predict(self, clip: Tensor, mask: Tensor, decoder_mask: Tensor | None) -> Tensor:
        """Returns the pixels of the predicted tubelets, (B, predicted, values)."""
        x = self.encoder_to_decoder(self.encoder_norm(self.encoder.forward_features(clip, mask=mask)))
        positions = resize_grid(self.decoder_positions, self.encoder.grid, self.patch_grid(clip.shape), mode="linear")
        positions = positions.to(x.dtype).expand(len(x), -1, -1)
        skipped = ~mask if decoder_mask is None else decoder_mask
        empty = keep_visible(positions, ~skipped, prefix=0) + self.mask_token.to(x.dtype)
        x = torch.cat((x + keep_visible(positions, ~mask, prefix=0), empty), dim=1)
        return self.decoder(x, empty.shape[1], recompute=self.grad_checkpointing)

    def target_pixels(self, clip: Tensor) -> Tensor:
        """Returns the clip as values from 0 to 1."""
        mean, std = self._colours(clip)
        return clip * std + mean

    def input_pixels(self, pixels: Tensor) -> Tensor:
        """Returns normalised values."""
        mean, std = self._colours(pixels)
        return (pixels - mean) / std

    def _colours(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        protocol = self.default_protocol
        mean, std = (clip.new_tensor(values).view(-1, 1, 1, 1) for values in (protocol.mean, protocol.std))
        return mean, std

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of each colour of a tubelet."""
        return patches.mean(2, keepdim=True), patches.std(2, keepdim=True) + 1e-6

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' pretraining of both versions, and transformers' VideoMAEForPreTraining, 4 and 5."""
        name, own = super().convert_checkpoint(state)
        if "encoder_norm.weight" in own:
            return name, own
        if "videomae.embeddings.patch_embeddings.projection.weight" in own:
            name = _TRANSFORMERS_PRETRAINING
            own = rename_keys(own, _PRETRAINING_FROM_TRANSFORMERS)
            for stem in ("", "decoder."):
                own = _with_joint_weights(own, stem)
            own = {key if key.startswith(_DECODER) else f"encoder.{key}": value for key, value in own.items()}
        elif "encoder.norm.weight" in own and "decoder.head.weight" in own:
            name = _PRETRAINING
        own = rename_keys(own, [(r"^encoder\.norm\.", "encoder_norm.")])
        if "encoder.patch_embed.proj.weight" in own:
            own["encoder.pos_embed"] = self.encoder.table()
        return name, own

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the epsilons that a layout's weights were trained with, in encoder and decoder."""
        super().adopt_format(format_name, hyperparameters)
        self.encoder_norm.eps = self.encoder.norm_eps
        for module in self.decoder.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = self.encoder.norm_eps
        self.decoder.norm.eps = self.encoder.head_norm_eps


def _init_pretraining_weights(module: nn.Module) -> None:
    """Draws linear weights from Xavier's uniform distribution (official code: modeling_pretrain.py)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- conversion -------------------------------------------------------------------------------------------------------

_HEAD = (
    (r"^fc_norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)

_FROM_MMACTION = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
)

_FROM_TRANSFORMERS = (
    (r"^videomae\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(?:q_bias|query\.bias)$", ".attn.q_bias"),
    (r"\.attention\.attention\.(?:v_bias|value\.bias)$", ".attn.v_bias"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^classifier\.", "head."),
)

_PRETRAINING_FROM_TRANSFORMERS = (
    (r"^videomae\.layernorm\.", "norm."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    *_FROM_TRANSFORMERS,
)
# Parts of the pretraining: the decoder with what belongs to it, and the encoder's last norm.
_DECODER = ("decoder.", "encoder_to_decoder.", "mask_token")


def _with_fresh_norm(state: dict[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Adds the norm before the classifier, as the fine-tuning starts with it."""
    return {**state, "fc_norm.weight": torch.ones(dim), "fc_norm.bias": torch.zeros(dim)}


def _encoder_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the encoder of the authors' pretraining without its last norm."""
    left_out = (*_DECODER, "encoder.norm.")
    own = {key.removeprefix("encoder."): value for key, value in state.items() if not key.startswith(left_out)}
    return _with_fresh_norm(own, len(state["encoder.patch_embed.proj.weight"]))


def _from_transformers(state: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Returns the keys of the authors for those of transformers 4 or 5, with queries, keys and values in one."""
    alone = not any(key.startswith("fc_norm.") for key in state)  # an encoder, with or without its decoder
    left_out = (*_DECODER, "videomae.layernorm.", "layernorm.") if alone else ()
    own = rename_keys({key: value for key, value in state.items() if not key.startswith(left_out)}, _FROM_TRANSFORMERS)
    own = _with_joint_weights(own, "")
    return _with_fresh_norm(own, dim) if alone else own


def _with_joint_weights(own: dict[str, Tensor], stem: str) -> dict[str, Tensor]:
    """Joins the weights of queries, keys and values of each block below a name, which transformers has apart."""
    for block in range(count_blocks(own, f"{stem}blocks.")):
        parts = [f"{stem}blocks.{block}.attention.attention.{part}.weight" for part in ("query", "key", "value")]
        if all(key in own for key in parts):
            own[f"{stem}blocks.{block}.attn.qkv.weight"] = torch.cat([own.pop(key) for key in parts])
    return own


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    return {
        "in_chans": patches[1],
        "tubelet_size": patches[2],
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "qkv_bias": "blocks.0.attn.q_bias" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code of both: datasets.py, kinetics.py and the scripts finetune.sh (short_side_size, input_size, num_frames,
# sampling_rate, test_num_segment x test_num_crop); frames are taken at the rate of the video.
_K400 = Protocol(frames=16, stride=4, short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="5x3")
_SMALL = {"embed_dim": 384, "num_heads": 6}
_LARGE = {"depth": 24, "embed_dim": 1024, "num_heads": 16}
_HUGE = {"depth": 32, "embed_dim": 1280, "num_heads": 16}
_GIANT = {"patch_size": 14, "depth": 40, "embed_dim": 1408, "num_heads": 16, "mlp_ratio": 48 / 11}
_V2 = "Wang et al. 2023, arXiv:2303.16727"

FAMILY = Family(
    model="VideoMAE",
    paper="Tong et al. 2022, arXiv:2203.12602",
    small_clip=(4, 112, 112),  # a multiple of both sides of a patch
    min_clip=(2, 16, 16),
    formats=("MCG-NJU/VideoMAE", "MCG-NJU/VideoMAE pretraining", "transformers VideoMAE", "mmaction2"),
    autoencoder="VideoMAEPretraining",
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4},
    slow_goldens=(
        "videomae_vit_s__full",
        "videomae_vit_b__small_8x64",
        "videomae_vit_l__small_8x64",
        "videomaev2_vit_b__16x64",
        "videomaev2_vit_g_d4__16x56",
        "hf_videomae_vit_b__8x64",
    ),
    golden_options={
        "hf_videomae_vit_s__16x96": {"name": "videomae_vit_s", "img_size": 96},
        "hf_videomae_vit_b__8x64": {"name": "videomae_vit_b", "img_size": 64},
        "videomaev2_vit_b__16x64": {"name": "videomaev2_vit_b", "img_size": 64},
        "videomaev2_vit_g_d4__16x56": {"name": "videomaev2_vit_g", "img_size": 56, "depth": 4},
    },
    variants=(
        Variant("videomae_vit_s", "VideoMAE ViT-S/16.", _K400, _SMALL, params=22, gflops=57),
        Variant(
            "videomae_vit_b",
            "VideoMAE ViT-B/16.",
            _K400,
            params=87,
            gflops=180,
            params_tolerance=0.5,
            same_as="videomae_vit_s",
        ),
        Variant(
            "videomae_vit_l",
            "VideoMAE ViT-L/16.",
            _K400,
            _LARGE,
            decoder={"decoder_depth": 12},
            params=305,
            gflops=597,
            params_tolerance=0.8,
            same_as="videomae_vit_s",
        ),
        Variant(
            "videomae_vit_h",
            "VideoMAE ViT-H/16.",
            _K400,
            _HUGE,
            decoder={"decoder_depth": 12, "decoder_num_heads": 8},
            params=633,
            gflops=1192,
            params_tolerance=1.0,
            same_as="videomae_vit_s",
        ),
        Variant(
            "videomaev2_vit_s",
            "VideoMAE V2 ViT-S/16, distilled from ViT-g.",
            _K400,
            _SMALL,
            paper=_V2,
            same_as="videomae_vit_s",
        ),
        Variant(
            "videomaev2_vit_b",
            "VideoMAE V2 ViT-B/16, distilled from ViT-g.",
            _K400,
            paper=_V2,
            same_as="videomae_vit_s",
        ),
        Variant(
            "videomaev2_vit_g",
            "VideoMAE V2 ViT-g/14.",
            _K400,
            _GIANT,
            paper=_V2,
            min_clip=(2, 14, 14),
            decoder={"decoder_embed_dim": 512},
        ),
    ),
)
