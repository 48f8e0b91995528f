"""X-CLIP: CLIP's image and text transformers for videos, as a zero-shot classifier by text and as an encoder.

Ni et al., "Expanding Language-Image Pretrained Models for General Video Recognition", ECCV 2022, arXiv:2208.02816;
official code: microsoft/VideoX, X-CLIP/models (xclip.py, cct.py, mit.py, prompt.py).

Shapes, for a clip (B, 3, T, H, W): each frame is cut into S = H/16 * W/16 patches (32 or 14 for others), and the blocks
of CLIP's Vision Transformer see one frame at a time, (B * T, 1 + S, embed_dim). In each block the class tokens of the
frames attend to each other first, and what comes out for a frame is one more token of it during its attention. The
class tokens of the last block, in the space that images and texts share (`joint_dim`), go through a small transformer
over time, and their mean is the video.

With ``text=True`` the classes are texts. Each is encoded once (`XCLIP.set_classes`), by transformers' CLIP text model;
two layers of attention to the patches of the clip, averaged over time, adapt it to the video; a logit is the cosine of
text and video times a learned scale. Without, a linear classifier sees the video, and there is no text encoder.

The authors' files, transformers' and CLIP's own (of which the rest stays as it is initialised) load into both; without
``text`` what belongs to the texts is left out.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.errors import ConfigError, StvidError
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Attention,
    Block,
    Mlp,
    QueryAttention,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    rename_keys,
    resize_grid,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import Head, LinearHead
from stvid.models.published_names import CLIP_BLOCKS, count_blocks, read_options, square_side
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["XCLIP", "TextHead"]

NORM_EPS = 1e-5  # epsilon of every LayerNorm (official code)
HEAD_DIM = 64  # channels of a head, in all parts of the published models
PROMPT_SCALE = 0.1  # where the factors of what adapts a text to the video start (prompts_alpha)
TEXTS = 256  # texts that are encoded at once
TOKENIZER = "openai/clip-vit-base-patch32"  # all of CLIP's models share one vocabulary
_NATIVE = "microsoft/VideoX"
_TRANSFORMERS = "transformers XCLIP"
_CLIP = "openai/CLIP"


def _transformers() -> Any:
    """Returns the library of the text encoder."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise StvidError(
            f"text: the encoder of texts is that of transformers ({error}); install it with: pip install 'stvid[text]'"
        ) from error


# --- the video --------------------------------------------------------------------------------------------------------


class CrossFrameBlock(Block):
    """A block of CLIP in which the class tokens of the frames exchange messages first (section 3.2).

    Args:
        dim: Channels of a token.
        num_heads: Heads of each attention.
        **options: As in `Block`.
    """

    def __init__(self, dim: int, *, num_heads: int, **options: Any) -> None:
        super().__init__(dim, attention=Attention(dim, num_heads=num_heads, axes="space"), **options)
        self.message_fc = nn.Linear(dim, dim)
        self.message_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.message_attn = Attention(dim, num_heads=num_heads, axes="time")

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """Maps the frames' tokens, (B * T, 1 + S, dim), to the same shape."""
        message = self.message_fc(x[:, 0]).unflatten(0, (-1, frames))
        message = message + self.drop_path(self.message_attn(self.message_norm(message)))
        tokens = torch.cat((x, message.flatten(0, 1).unsqueeze(1)), dim=1)
        x = x + self.drop_path(self.attn(self.norm1(tokens))[:, :-1])
        return self.feed_forward(x)


class FrameMixer(nn.Module):
    """The transformer over the frames' vectors (multi-frame integration); (B, T, dim) to (B, dim).

    Args:
        dim: Channels of a vector.
        depth: Number of blocks.
        num_frames: Entries of the table of times.
    """

    def __init__(self, dim: int, *, depth: int, num_frames: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, num_frames, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                attention=Attention(dim, num_heads=max(1, dim // HEAD_DIM), axes="time"),
                mlp_ratio=4.0,
                norm_eps=NORM_EPS,
                gelu="quick",
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the frames and averages them; what they were is added without their times."""
        times = resize_grid(self.pos_embed, self.pos_embed.shape[1:2], x.shape[1:2], mode="cubic")
        return (run_blocks(self.blocks, x + times, recompute=False) + x).mean(1)


# --- the text ---------------------------------------------------------------------------------------------------------


class ClassVectors(nn.Module):
    """The vector of each class, (num_classes, dim), that of a text or, before there are texts, a learned one.

    Args:
        num_classes: Number of classes.
        dim: Channels of a vector.
        vectors: The vectors of texts; None makes learned ones.
    """

    weight: Tensor

    def __init__(self, num_classes: int, dim: int, vectors: Tensor | None = None) -> None:
        super().__init__()
        if vectors is None:
            self.weight = nn.Parameter(torch.zeros(num_classes, dim))
            nn.init.normal_(self.weight)
        else:
            self.register_buffer("weight", vectors)


class PromptLayer(nn.Module):
    """Adapts the classes' vectors to a video: attention to its patches, and an MLP (section 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = QueryAttention(dim, num_heads=max(1, dim // HEAD_DIM), qkv_bias=False)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, 4 * dim, gelu="quick")

    def forward(self, texts: Tensor, patches: Tensor) -> Tensor:
        """Maps (B, K, dim) to the same shape; the patches are (B, N, dim)."""
        texts = texts + self.attn(self.norm1(texts), patches, patches)
        return texts + self.mlp(self.norm2(texts))


class TextHead(Head):
    """Compares the video with each class by the cosine of their vectors.

    Args:
        dim: Channels of the features.
        num_classes: Number of classes; 0 returns the vector of the video.
        depth: Layers that adapt the classes' vectors to the video.
    """

    def __init__(self, dim: int, num_classes: int, *, depth: int) -> None:
        super().__init__(dim, num_classes)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.layers = nn.ModuleList(PromptLayer(dim) for _ in range(depth))
        self.alpha = nn.Parameter(torch.full((dim,), PROMPT_SCALE))
        # Not trained, as published, nor is the text encoder (MODEL.FIX_TEXT).
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)), requires_grad=False)
        self.reset(num_classes)

    def forward(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, num_classes) of tokens (B, 1 + N, dim), or the first, which is the video."""
        video = self.pool(features)
        if pre_logits or not isinstance(self.fc, ClassVectors):
            return video
        texts = self.fc.weight.to(video.dtype).expand(video.shape[0], -1, -1)
        prompts, patches = texts, self.norm(features[:, 1:])
        for layer in self.layers:
            prompts = layer(prompts, patches)
        texts = F.normalize(texts + self.alpha * prompts, dim=-1)
        return self.logit_scale.exp() * (texts @ F.normalize(video, dim=-1).unsqueeze(-1)).squeeze(-1)

    def pool(self, features: Tensor) -> Tensor:
        """Returns the vector of the video."""
        return features[:, 0]

    def reset(self, num_classes: int) -> None:
        """Replaces the classes' vectors by learned ones."""
        self.fc = ClassVectors(num_classes, self.num_features).to(self.alpha) if num_classes else nn.Identity()


# --- the model --------------------------------------------------------------------------------------------------------


class XCLIP(VideoModel):
    """X-CLIP.

    Args:
        num_classes: Number of logits; with `text`, 0 until `set_classes` is called.
        num_frames: Frames of a clip: entries of the table of times. Other clips are taken, with the table resized.
        img_size: (height, width) in pixels, which decides the table of positions; other clips get it resized.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        depth: Blocks of the Vision Transformer.
        embed_dim: Channels of its tokens; each head has 64, or fewer with `num_heads`.
        num_heads: Heads of its attention; None takes one for 64 channels.
        joint_dim: Channels of the space that videos and texts share.
        mix_depth: Blocks of the transformer over frames.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the linear classifier.
        text: Whether the classes are texts; then there is a text encoder, which is not trained.
        prompt_depth: Layers that adapt the texts to the video.
        text_depth: Blocks of the text encoder.
        text_dim: Channels of its tokens.
        vocab_size: Entries of its vocabulary.
        context_length: Tokens of a text.
        tokenizer: The tokenizer's folder, or its name on Hugging Face.

    The features are tokens in the joint space. The first is the video; the others are the patches, (B, 1 + T*S,
    joint_dim), or with `text` their mean over time, (B, 1 + S, joint_dim). A clip has at least one patch.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = False  # the frames' messages are tokens of no place

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 16,
        depth: int = 12,
        embed_dim: int = 768,
        num_heads: int | None = None,
        joint_dim: int = 512,
        mix_depth: int = 1,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        text: bool = False,
        prompt_depth: int = 2,
        text_depth: int = 12,
        text_dim: int = 512,
        vocab_size: int = 49408,
        context_length: int = 77,
        tokenizer: str = TOKENIZER,
    ) -> None:
        super().__init__()
        if min(img_size) < patch_size:
            raise ValueError(f"img_size {img_size} is smaller than a patch of {patch_size} pixels")
        self.num_classes, self.num_features, self.in_chans = num_classes, joint_dim, in_chans
        self.patch_size, self.num_frames, self.text, self.tokenizer = patch_size, num_frames, text, tokenizer
        self.context_length, self.takes_texts = context_length, text
        self.text_names: tuple[str, ...] = ()
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        tubelet = (1, patch_size, patch_size)
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=tubelet, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), embed_dim))
        self.norm_pre = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        heads = max(1, embed_dim // HEAD_DIM) if num_heads is None else num_heads
        options: dict[str, Any] = {"mlp_ratio": 4.0, "norm_eps": NORM_EPS, "gelu": "quick"}
        self.blocks = nn.ModuleList(
            CrossFrameBlock(embed_dim, num_heads=heads, drop_path_rate=rate, **options)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.proj = nn.Linear(embed_dim, joint_dim, bias=False)
        self.mix = FrameMixer(joint_dim, depth=mix_depth, num_frames=num_frames)
        self.head: LinearHead | TextHead
        if text:
            self.prompt_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
            self.prompt_proj = nn.Linear(embed_dim, joint_dim, bias=False)
            self.head = TextHead(joint_dim, num_classes, depth=prompt_depth)
        else:
            self.head = LinearHead(joint_dim, num_classes, pool="token", drop_rate=head_drop_rate)
        self.feature_info = [FeatureInfo(f"blocks.{number}", embed_dim, tubelet) for number in range(depth)]
        self.feature_info.append(FeatureInfo("proj", joint_dim, (num_frames, *tubelet[1:]) if text else tubelet))
        self._init_weights()
        self.text_encoder: nn.Module | None = None
        if text:
            sizes = (text_depth, text_dim, joint_dim, vocab_size, context_length)
            self.text_encoder = _build_text_encoder(sizes)

    def _init_weights(self) -> None:
        self.apply(init_transformer_weights)
        for table in (self.cls_token, self.pos_embed):
            nn.init.normal_(table, std=table.shape[-1] ** -0.5)
        nn.init.trunc_normal_(self.mix.pos_embed, std=0.02)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the blocks on each frame, and mixes the frames."""
        self._check_clip(clip, minimum=(1, self.patch_size, self.patch_size))
        x = self.patch_embed(clip)
        batch, frames, height, width, _ = x.shape
        positions = resize_grid(self.pos_embed[:, 1:], self.grid, (height, width), mode="cubic")
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch * frames, -1, -1)
        x = self.norm_pre(torch.cat((cls, x.flatten(0, 1).flatten(1, 2) + positions), dim=1))
        blocks = [functools.partial(block, frames=frames) for block in self.blocks]
        x = run_blocks(blocks, x, recompute=self.grad_checkpointing, tap=tap)
        if self.text:
            patches = self.prompt_proj(self.prompt_norm(x[:, 1:])).unflatten(0, (batch, frames)).mean(1)
            vectors = self.proj(self.norm(x[:, 0]))
        else:
            tokens = self.proj(self.norm(x))
            vectors, patches = tokens[:, 0], tokens[:, 1:].unflatten(0, (batch, frames)).flatten(1, 2)
        video = self.mix(vectors.unflatten(0, (batch, frames)))
        return tap(len(self.blocks), torch.cat((video.unsqueeze(1), patches), dim=1))

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map; between the blocks each frame is a sequence."""
        if place == len(self.feature_info) - 1:
            return super().to_map(x, place, clip_size)
        maps = x[:, 1:].unflatten(1, self.token_grid(clip_size)[1:]).unflatten(0, (-1, clip_size[0]))
        return maps.permute(0, 4, 1, 2, 3)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each patch, of each frame or, with texts, of their mean."""
        time, height, width = clip_shape[-3:]
        return 1 if self.text else time, height // self.patch_size, width // self.patch_size

    def no_weight_decay(self) -> set[str]:
        """Returns the tables and the class token (official code: no_weight_decay_keywords)."""
        return {"pos_embed", "cls_token", "mix.pos_embed"}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, every block in order, then the transformer over frames."""
        return {
            "stem": r"^patch_embed|^cls_token|^pos_embed|^norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None)],
            "mix": [(r"^mix\.|^norm\.|^proj\.|^prompt_|^text_encoder\.", (99999,))],
        }

    # --- texts as classes ---------------------------------------------------------------------------------------------

    def set_classes(self, names: Sequence[str]) -> None:
        """Makes texts the classes of the model, and its protocol's class names; training mode and device stay.

        Args:
            names: A text for each class, such as "opening a door".

        Raises:
            ConfigError: If there are no texts, two are equal or one is empty, or the model was built without
                ``text=True``.
            StvidError: If transformers is not installed, or the tokenizer cannot be had.
        """
        texts = [" ".join(name.replace("_", " ").split()) for name in names]
        if not texts or not all(texts) or len(set(texts)) < len(texts):
            raise ConfigError("classes: give at least one text, none of them empty, and none twice")
        if self.text_encoder is None:
            super().set_classes(names)
        limit = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        tokens = _load_tokenizer(self.tokenizer)(texts, return_tensors="pt", **limit)
        self.set_class_tokens(tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, 0))
        self.text_names = tuple(names)
        self.default_protocol = self.default_protocol.replace(class_names=tuple(names))
        if self.weights is not None and self.weights.class_names != tuple(names):
            self.weights, self.measured = None, {}  # what was measured was measured for other classes

    def set_class_tokens(self, tokens: Tensor) -> None:
        """Makes tokenised texts the classes of the model.

        Args:
            tokens: int64 (classes, context_length), each text closed by the token with the largest number.

        Raises:
            ConfigError: If the model was built without ``text=True``.
        """
        if not isinstance(self.head, TextHead):
            raise ConfigError("classes: this model has no text encoder; build it with text=True")
        vectors = self.encode_text(tokens)
        self.head.fc = ClassVectors(len(vectors), self.num_features, vectors).train(self.training)
        self.num_classes, self.text_names = len(vectors), ()
        self.recipe = {**self.recipe, "num_classes": len(vectors)}

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Returns the vectors of tokenised texts, (texts, context_length) to (texts, joint_dim), not normalised.

        The vector of a text is that of its token with the largest number, which closes it (official code).
        """
        if self.text_encoder is None:
            raise ConfigError("texts: this model has no text encoder; build it with text=True")
        encoder: Any = self.text_encoder.eval()
        vectors = []
        for part in tokens.to(next(encoder.parameters()).device).split(TEXTS):
            hidden = encoder.text_model(input_ids=part).last_hidden_state
            ends = part.argmax(dim=-1).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
            vectors.append(encoder.text_projection(hidden.gather(1, ends)[:, 0]))
        return torch.cat(vectors)

    def train(self, mode: bool = True) -> XCLIP:
        """Sets training or evaluation mode; the text encoder is always evaluated."""
        super().train(mode)
        if self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    # --- published weights --------------------------------------------------------------------------------------------

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' checkpoints, transformers' XCLIPModel, and CLIP's own; the last fills a part."""
        name, own = super().convert_checkpoint(state)
        if "visual.class_embedding" in own:
            name = _NATIVE if "mit.positional_embedding" in own else _CLIP
            own = _from_authors(own)
        elif "vision_model.embeddings.class_embedding" in own and "mit.position_embedding" in own:
            name, own = _TRANSFORMERS, _from_transformers(own)
        if name == "stvid":
            return name, own
        wanted = self.state_dict()
        if name == _CLIP:
            fresh = (".message_", "mix.", "prompt_", "head.norm.", "head.layers.", "head.alpha")
            own |= {key: value for key, value in wanted.items() if any(part in f".{key}" for part in fresh)}
        if not self.text:
            own = {key: value for key, value in own.items() if not key.startswith(_TEXT_PARTS)}
        elif "head.fc.weight" in wanted:
            own.setdefault("head.fc.weight", wanted["head.fc.weight"])
        return name, own

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Encodes the texts that are the classes once more, since the weights of the encoder have changed."""
        if self.text and self.text_names and format_name != "stvid":
            self.set_classes(self.text_names)

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: all sizes, and whether there is a text encoder."""
        _, own = super().convert_checkpoint(state)
        if "visual.class_embedding" in own:
            own = _from_authors(own)
        elif "vision_model.embeddings.class_embedding" in own:
            own = _from_transformers(own)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "mix.pos_embed"))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the table of positions (of a square grid, unless stvid wrote it), and that of times."""
        if key == "mix.pos_embed" and table.shape[2] == self.num_features:
            return resize_grid(table, table.shape[1:2], (self.num_frames,), mode="cubic")
        if key != "pos_embed" or table.dim() != 3 or table.shape[2] != self.pos_embed.shape[2]:
            return None
        side = square_side(table.shape[1] - 1)
        old = None if side is None else (side, side)
        if "img_size" in built:
            old = (built["img_size"][0] // self.patch_size, built["img_size"][1] // self.patch_size)
        if old is None or math.prod(old) != table.shape[1] - 1:
            return None
        return torch.cat((table[:, :1], resize_grid(table[:, 1:], old, self.grid, mode="cubic")), dim=1)


def _build_text_encoder(sizes: tuple[int, int, int, int, int]) -> nn.Module:
    """Builds transformers' CLIP text model, without gradients, of (depth, dim, joint_dim, vocab_size, context)."""
    depth, dim, joint_dim, vocab_size, context = sizes
    library = _transformers()
    config = library.CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=depth,
        num_attention_heads=max(1, dim // HEAD_DIM),
        projection_dim=joint_dim,
        max_position_embeddings=context,
        hidden_act="quick_gelu",
        layer_norm_eps=NORM_EPS,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        attn_implementation="sdpa",
    )
    encoder: nn.Module = library.CLIPTextModelWithProjection(config)
    return encoder.requires_grad_(False).eval()


def _load_tokenizer(name: str) -> Any:
    try:
        return _transformers().CLIPTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StvidError(
            f"tokenizer {name}: cannot be read or fetched ({' '.join(str(error).split())[:200]}); give tokenizer= a "
            "folder with CLIP's vocab.json and merges.txt"
        ) from error


# --- conversion -------------------------------------------------------------------------------------------------------

_TEXT_PARTS = ("text_encoder.", "prompt_norm.", "prompt_proj.", "head.")
_AUTHORS = (
    (r"^visual\.conv1\.", "patch_embed.proj."),
    (r"^visual\.class_embedding$", "cls_token"),
    (r"^visual\.positional_embedding$", "pos_embed"),
    (r"^visual\.ln_pre\.", "norm_pre."),
    (r"^visual\.ln_post\.", "norm."),
    (r"^visual\.proj$", "proj.weight"),
    (r"^visual\.transformer\.resblocks\.", "blocks."),
    (r"\.message_ln\.", ".message_norm."),
    (r"\.message_attn\.in_proj_(weight|bias)$", r".message_attn.qkv.\1"),
    (r"\.message_attn\.out_proj\.", ".message_attn.proj."),
    (r"^mit\.positional_embedding$", "mix.pos_embed"),
    (r"^mit\.resblocks\.", "mix.blocks."),
    (r"^prompts_visual_ln\.", "prompt_norm."),
    (r"^prompts_visual_proj$", "prompt_proj.weight"),
    (r"^logit_scale$", "head.logit_scale"),
    (r"^token_embedding\.", "text_encoder.text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_encoder.text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_encoder.text_model.final_layer_norm."),
    (r"^text_projection$", "text_encoder.text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_encoder.text_model.encoder.layers."),
)
_PROMPTS = (
    (r"^prompts_generator\.norm\.|^prompts_generator\.layernorm\.", "head.norm."),
    (r"^prompts_generator\.alpha$", "head.alpha"),
    (r"^prompts_generator\.decoder\.", "head.layers."),
    (r"\.cross_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.cross_attn\.proj\.", ".attn.proj."),
    (r"^(head\.layers\.\d+)\.norm3\.", r"\1.norm2."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
_TEXT_BLOCKS = (
    (r"^(text_encoder\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(text_encoder\..*)\.attn\.proj\.", r"\1.self_attn.out_proj."),
    (r"^(text_encoder\..*)\.norm([12])\.", r"\1.layer_norm\2."),
)
_HUGGING_FACE = (
    (r"^text_model\.", "text_encoder.text_model."),
    (r"^text_projection\.", "text_encoder.text_projection."),
    (r"^vision_model\.embeddings\.class_embedding$", "cls_token"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^vision_model\.pre_layernorm\.", "norm_pre."),
    (r"^vision_model\.post_layernorm\.", "norm."),
    (r"^vision_model\.encoder\.layers\.", "blocks."),
    (r"^visual_projection\.", "proj."),
    (r"^prompts_visual_layernorm\.", "prompt_norm."),
    (r"^prompts_visual_projection$", "prompt_proj.weight"),
    (r"^mit\.position_embedding$", "mix.pos_embed"),
    (r"^mit\.encoder\.layers\.", "mix.blocks."),
    (r"\.message_ln\.", ".message_norm."),
    (r"^((?:mix\.)?blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^((?:mix\.)?blocks\.\d+)\.self_attn\.", r"\1.attn."),
    (r"^((?:mix\.)?blocks\.\d+\.(?:message_)?attn)\.out_proj\.", r"\1.proj."),
    (r"^logit_scale$", "head.logit_scale"),
)
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers that CLIP's files hold beside them


def _from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our keys for those of the authors, or of openai/CLIP."""
    own = rename_keys(
        {key: value for key, value in state.items() if key not in _NOT_WEIGHTS},
        (*_AUTHORS, *CLIP_BLOCKS, *_PROMPTS, *_TEXT_BLOCKS),
    )
    for key in ("proj.weight", "prompt_proj.weight", "text_encoder.text_projection.weight"):
        if key in own:
            own[key] = own[key].t().contiguous()
    for key in [key for key in own if key.startswith("text_encoder.") and ".self_attn.qkv." in key]:
        parts = own.pop(key).chunk(3)
        own |= {key.replace(".qkv.", f".{letter}_proj."): part for letter, part in zip("qkv", parts, strict=True)}
    return _with_axes(own)


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our keys for those of transformers' XCLIPModel, with queries, keys and values of the video in one."""
    weights = {key: value for key, value in state.items() if not key.endswith(".position_ids")}
    own = rename_keys(weights, (*_HUGGING_FACE, *_PROMPTS))
    first = [key for key in own if ".q_proj." in key and not key.startswith("text_encoder.")]
    for key in first:
        parts = [own.pop(key.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        own[key.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    if "prompt_proj.weight" in own:
        own["prompt_proj.weight"] = own["prompt_proj.weight"].t().contiguous()
    return _with_axes(own)


def _with_axes(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the class token, the table and the kernel of the patches the axes that ours have."""
    for key in ("cls_token", "pos_embed"):
        while key in own and own[key].dim() < 3:
            own[key] = own[key].unsqueeze(0)
    patches = own.get("patch_embed.proj.weight")
    if patches is not None and patches.dim() == 4:
        own["patch_embed.proj.weight"] = patches.unsqueeze(2)
    return own


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    options: dict[str, Any] = {
        "in_chans": patches[1],
        "patch_size": patches[3],
        "embed_dim": patches[0],
        "depth": count_blocks(own, "blocks."),
        "joint_dim": own["mix.pos_embed"].shape[2],
        "num_frames": own["mix.pos_embed"].shape[1],
        "mix_depth": count_blocks(own, "mix.blocks."),
        "text": "head.logit_scale" in own,
    }
    if options["text"]:
        embeddings = "text_encoder.text_model.embeddings"
        options["vocab_size"], options["text_dim"] = own[f"{embeddings}.token_embedding.weight"].shape
        options["context_length"] = own[f"{embeddings}.position_embedding.weight"].shape[0]
        options["text_depth"] = count_blocks(own, "text_encoder.text_model.encoder.layers.")
        options["prompt_depth"] = count_blocks(own, "head.layers.")
    side = square_side(own["pos_embed"].shape[1] - 1)
    return options if side is None else {**options, "img_size": (side * patches[3],) * 2}


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: datasets/build.py (one frame of each of NUM_FRAMES parts; with three crops the short side is that of
# the input), README ("Test": 4 clips of 3 crops).
_K400 = Protocol(
    frames=8, sampling="segment", short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="4x3"
)
_NOTE = "the published count has the texts, too"

FAMILY = Family(
    model="XCLIP",
    paper="Ni et al. 2022, arXiv:2208.02816",
    small_clip=(4, 224, 224),
    min_clip=(1, 16, 16),
    formats=("microsoft/VideoX", "transformers XCLIP", "openai/CLIP"),
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4, "joint_dim": 32},
    variants=(
        Variant("xclip_b16", "X-CLIP-B/16.", _K400, gflops=145, gflops_tolerance=0.03, note=_NOTE),
        Variant(
            "xclip_b32",
            "X-CLIP-B/32.",
            _K400,
            {"patch_size": 32},
            gflops=39,
            gflops_tolerance=0.1,
            note=_NOTE,
            min_clip=(1, 32, 32),
        ),
        Variant(
            "xclip_l14",
            "X-CLIP-L/14.",
            _K400,
            {"patch_size": 14, "depth": 24, "embed_dim": 1024, "joint_dim": 768, "text_dim": 768},
            gflops=658,
            gflops_tolerance=0.03,
            note=_NOTE,
            min_clip=(1, 14, 14),
        ),
    ),
)
