"""Video Transformer Network: a Vision Transformer over each frame, then a Longformer over the frames of a whole video.

Neimark et al., "Video Transformer Network", ICCVW 2021, arXiv:2102.00719; official code: bomri/SlowFast,
slowfast/models/video_model_builder.py (VTN), vtn_helper.py, with the Longformer of transformers
(models/longformer/modeling_longformer.py) and the ViT-B/16 of timm.

Shapes, for a clip (B, 3, T, H, W): each frame becomes 1 + H/16 * W/16 tokens, of which the class token is kept after
the last norm: (B, T, embed_dim). A second class token is put before them. In each layer of the Longformer a frame sees
the 9 frames before and after it and that token, in one softmax; the token sees all frames, by projections of its own.
Time and memory grow with T. The token is classified.

The Longformer's blocks have the norm after the sum. The place of a frame is its number in the video, modulo 286, since
the table has 288 rows, of which two are for the class token and for padding (which is not needed here). A model knows
only the clip, so that it has to be told the numbers of the frames: `first_frame` and `frame_stride` of the model, or
`VTN.forward_frames` for any numbers. Trained with 16 frames that are 8 apart, it is measured on 250 frames of a whole
video, which are about 1 apart in the videos of Kinetics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.base import FeatureInfo, VideoModel, leave
from stvid.models.blocks import (
    Attention,
    Axes,
    Block,
    Mlp,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    rename_keys,
    resize_grid,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import MlpHead
from stvid.models.published_names import count_blocks, mlp_ratio, read_options, square_side
from stvid.protocol import KINETICS_MEAN, KINETICS_STD, Protocol

__all__ = ["VTN", "LocalAttention"]

NORM_EPS = 1e-6  # of the ViT (timm)
LONGFORMER_EPS = 1e-12  # of the Longformer (transformers: LongformerConfig.layer_norm_eps)
FULL_VIDEO = 250  # frames from which on a clip is taken for a whole video (config: TRAIN.EVAL_NUM_FRAMES)
TRAINED_STRIDE = 8  # frames between two of a shorter clip (config: DATA.SAMPLING_RATE)
RESERVED = 2  # rows of the table of positions that are not for frames
_NATIVE = "bomri/SlowFast"


class LocalAttention(Attention):
    """The Longformer's attention: each token sees its neighbours and the first token, and the first token sees all.

    Args:
        dim: Channels of input and output.
        num_heads: Heads, each of dim / num_heads channels.
        reach: Neighbours on each side.
        drop_rate: Dropout of the projection.
        attn_drop_rate: Dropout of the attention weights.
    """

    def __init__(
        self, dim: int, *, num_heads: int, reach: int, drop_rate: float = 0.0, attn_drop_rate: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads=num_heads, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, axes="time")
        self.reach = reach
        self.q_global = nn.Linear(dim, dim)
        self.kv_global = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens, (B, N, dim) to the same."""
        q = self.q_global(x[:, :1]).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv_global(x).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        first = self._attend(q, k, v, "time")
        others = self._local(*self.queries_keys_values(x))
        mixed = torch.cat((first, others[:, 1:]), dim=1)
        return self.proj_drop(self.proj(mixed.flatten(-2)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, axes: Axes, bias: Tensor | None = None) -> Tensor:
        drop_rate = self.attn_drop_rate if self.training else 0.0
        return attend(q, k, v, bias=bias, drop_rate=drop_rate, layout="BMHK", source=(self, axes))

    def _local(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends to the neighbours and the first token, a chunk of queries at a time; (B, N, heads, head_dim)."""
        number, reach = q.shape[1], self.reach
        chunk = min(4 * max(reach, 1), number)
        chunks = -(-number // chunk)
        rest = chunks * chunk - number
        queries = F.pad(q, (0, 0, 0, 0, 0, rest)).unflatten(1, (chunks, chunk)).flatten(0, 1)

        def windows(part: Tensor) -> Tensor:
            padded = F.pad(part, (0, 0, 0, 0, reach, reach + rest))
            seen = padded.unfold(1, chunk + 2 * reach, chunk).permute(0, 1, 4, 2, 3)
            first = part[:, :1].unsqueeze(1).expand(-1, chunks, -1, -1, -1)
            return torch.cat((first, seen), dim=2).flatten(0, 1)

        bias = self._bias(number, chunk, chunks, q)
        bias = bias.repeat(q.shape[0], 1, 1, 1)
        mixed = self._attend(queries, windows(k), windows(v), "window", bias)
        return mixed.unflatten(0, (-1, chunks)).flatten(1, 2)[:, :number]

    def _bias(self, number: int, chunk: int, chunks: int, like: Tensor) -> Tensor:
        """Returns what is added to the scores, (chunks, 1, chunk, 1 + chunk + 2 * reach): 0 for what is seen.

        The first key is the first token, which is not seen a second time among the neighbours.
        """
        starts = torch.arange(chunks, device=like.device)[:, None, None] * chunk
        query = starts + torch.arange(chunk, device=like.device)[:, None]
        key = starts + torch.arange(-self.reach, chunk + self.reach, device=like.device)
        seen = ((query - key).abs() <= self.reach) & (key > 0) & (key < number)
        seen = F.pad(seen, (1, 0), value=True)
        return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, -torch.inf).unsqueeze(1)


class PostNormBlock(nn.Module):
    """A transformer block with the norms after the sums; (B, N, dim) to the same.

    Args:
        dim: Channels of a token.
        attention: Mixes the tokens.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        drop_rate: Dropout after the MLP.
    """

    def __init__(self, dim: int, *, attention: Attention, mlp_ratio: float, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = nn.LayerNorm(dim, eps=LONGFORMER_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop = nn.Dropout(drop_rate)
        self.norm2 = nn.LayerNorm(dim, eps=LONGFORMER_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.drop(self.mlp(x)))


class VTN(VideoModel):
    """Video Transformer Network with a ViT.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip; others are taken, too, since no tensor depends on them.
        img_size: (height, width) in pixels, which decide the ViT's table of positions; others are taken, with it
            resized.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        depth: Number of blocks of the ViT.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries, keys and values of the ViT have a bias.
        drop_rate: Dropout of the ViT's embeddings and projections.
        attn_drop_rate: Dropout of the ViT's attention weights.
        drop_path_rate: Stochastic depth of the ViT's last block; it grows linearly from 0.
        temporal_depth: Number of layers of the Longformer.
        temporal_window: Frames that a frame sees besides itself, half of them on each side.
        temporal_drop_rate: Dropout of the Longformer's embeddings, projections and attention weights.
        max_positions: Rows of the table of frames.
        head_drop_rate: Dropout before the classifier.
        first_frame: Number of the first frame of a clip in its video.
        frame_stride: By how much the numbers of two frames of a clip differ. None takes 8, as in training, and 1 for
            clips of 250 frames and more, which are whole videos.

    The features are the tokens after the Longformer, (B, 1 + T, embed_dim), the class token first. Pixels that fill no
    patch are left out.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = False  # windows overlap, and the class token has projections of its own

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 250,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 16,
        depth: int = 12,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        temporal_depth: int = 3,
        temporal_window: int = 18,
        temporal_drop_rate: float = 0.1,
        max_positions: int = 288,
        head_drop_rate: float = 0.0,
        first_frame: int = 0,
        frame_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.patch_size = patch_size
        self.first_frame, self.frame_stride = first_frame, frame_stride
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        if not all(self.grid) or num_frames < 1:
            raise ValueError(
                f"num_frames {num_frames}, img_size {img_size}: smaller than a patch of {patch_size} pixels"
            )
        if max_positions <= RESERVED:
            raise ValueError(f"max_positions {max_positions}: {RESERVED} rows are no frames, so there must be more")
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=(1, patch_size, patch_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                attention=Attention(embed_dim, num_heads=num_heads, qkv_bias=qkv_bias, axes="space", **rates),
                mlp_ratio=mlp_ratio,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_eps=NORM_EPS,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.clip_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.frame_positions = nn.Parameter(torch.zeros(max_positions, embed_dim))
        self.token_types = nn.Parameter(torch.zeros(2, embed_dim))
        self.temporal_norm = nn.LayerNorm(embed_dim, eps=LONGFORMER_EPS)
        self.temporal_drop = nn.Dropout(temporal_drop_rate)
        rates = {"drop_rate": temporal_drop_rate, "attn_drop_rate": temporal_drop_rate}
        self.temporal_blocks = nn.ModuleList(
            PostNormBlock(
                embed_dim,
                attention=LocalAttention(embed_dim, num_heads=num_heads, reach=temporal_window // 2, **rates),
                mlp_ratio=4.0,
                drop_rate=temporal_drop_rate,
            )
            for _ in range(temporal_depth)
        )
        self.head = MlpHead(
            embed_dim,
            num_classes,
            hidden_features=embed_dim,
            pool="token",
            norm=True,
            act=nn.GELU,
            drop_rate=head_drop_rate,
        )
        patch, frame = (1, patch_size, patch_size), (1, *img_size)
        self.feature_info = [FeatureInfo(f"blocks.{number}", embed_dim, patch) for number in range(depth)]
        self.feature_info += [FeatureInfo(f"temporal_blocks.{n}", embed_dim, frame) for n in range(temporal_depth)]
        self.apply(init_transformer_weights)
        for table in (self.cls_token, self.pos_embed, self.frame_positions, self.token_types):
            nn.init.trunc_normal_(table, std=0.02)
        nn.init.normal_(self.clip_token)  # official code: torch.randn
        self._train_last_neighbours(False)

    def _train_last_neighbours(self, wanted: bool) -> None:
        """Says whether the last layer's view of neighbours is trained: the class token does not see it."""
        self.temporal_blocks[-1].get_submodule("attn.qkv").requires_grad_(wanted)

    def reset_classifier(self, num_classes: int, *, head: Literal["default", "attentive"] = "default") -> None:
        """Replaces the classifier, see `VideoModel`; the attentive head sees all tokens, so that all of them train."""
        super().reset_classifier(num_classes, head=head)
        if head == "attentive":
            self._train_last_neighbours(True)

    # --- from a clip to logits ----------------------------------------------------------------------------------------

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the ViT over each frame and the Longformer over all."""
        self._check_clip(clip, minimum=(1, self.patch_size, self.patch_size))
        stride = self.frame_stride
        if stride is None:
            stride = TRAINED_STRIDE if clip.shape[2] < FULL_VIDEO else 1
        numbers = self.first_frame + stride * torch.arange(clip.shape[2], device=clip.device)
        return self._run(clip, numbers.expand(clip.shape[0], -1), tap)

    def forward_frames(self, clip: Tensor, numbers: Tensor) -> Tensor:
        """Classifies clips whose frames have given numbers in their video.

        Args:
            clip: (B, in_chans, T, H, W).
            numbers: Whole numbers from 0 on, (B, T) or (T,).

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: If the numbers do not fit the clip.
        """
        self._check_clip(clip, minimum=(1, self.patch_size, self.patch_size))
        frames = (clip.shape[0], clip.shape[2])
        if numbers.shape not in (frames, frames[1:]) or numbers.is_floating_point() or numbers.min() < 0:
            raise ValueError(f"numbers: takes whole numbers from 0 on of shape {frames} or {frames[1:]}")
        return self.forward_head(self._run(clip, numbers.expand(frames), leave))

    def _run(self, clip: Tensor, numbers: Tensor, tap: Tap) -> Tensor:
        x = self._frames(clip, tap)
        rows = len(self.frame_positions) - RESERVED
        places = torch.cat((numbers.new_full((x.shape[0], 1), rows), numbers % rows), dim=1)
        x = torch.cat((self.clip_token.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)
        kinds = self.token_types.flip(0)[(torch.arange(x.shape[1], device=x.device) > 0).long()]  # 1 is the token's
        x = x + (self.frame_positions[places] + kinds).to(x.dtype)
        x = self.temporal_drop(self.temporal_norm(x))
        recompute, depth = self.grad_checkpointing, len(self.blocks)
        return run_blocks(self.temporal_blocks, x, recompute=recompute, tap=tap, first=depth)

    def _frames(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the ViT over each frame; (B, in_chans, T, H, W) to (B, T, embed_dim)."""
        maps = self.patch_embed(clip)
        batch, frames, height, width, _ = maps.shape
        places = resize_grid(self.pos_embed[:, 1:], self.grid, (height, width), mode="linear").to(maps.dtype)
        x = rearrange(maps, "b t h w c -> (b t) (h w) c") + places
        token = (self.cls_token + self.pos_embed[:, :1]).to(x.dtype)
        x = self.pos_drop(torch.cat((token.expand(x.shape[0], -1, -1), x), dim=1))
        x = run_blocks(self.blocks, x, recompute=self.grad_checkpointing, tap=tap)
        return self.norm(x[:, 0]).unflatten(0, (batch, frames))

    def to_map(self, x: Tensor, place: int, clip_size: tuple[int, int, int]) -> Tensor:
        """Returns an intermediate result as a map: patches, or one cell for each frame."""
        if place < len(self.blocks):
            frames, height = clip_size[0], clip_size[1] // self.patch_size
            return rearrange(x[:, 1:], "(b t) (h w) c -> b c t h w", t=frames, h=height)
        return super().to_map(x, place, clip_size)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each frame."""
        return clip_shape[-3], 1, 1

    # --- what training asks -------------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Returns the tables and the class tokens."""
        return {"cls_token", "pos_embed", "clip_token", "frame_positions", "token_types"}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, the ViT's blocks, then what the Longformer adds, and its blocks."""
        return {
            "stem": r"^(?:patch_embed|cls_token|pos_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
            "temporal_stem": r"^(?:clip_token|frame_positions|token_types|temporal_norm)",
            "temporal_blocks": r"^temporal_blocks\.(\d+)",
        }

    # --- published weights --------------------------------------------------------------------------------------------

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' files."""
        if "temporal_encoder.embeddings.position_embeddings.weight" not in state:
            return super().convert_checkpoint(state)
        own = rename_keys(state, _FROM_AUTHORS)
        own.pop("temporal_encoder.embeddings.position_ids", None)  # numbers that an older library kept
        for layer in range(count_blocks(own, "temporal_blocks.")):
            stem = f"temporal_blocks.{layer}.attn."
            for kind in ("weight", "bias"):
                parts = {"qkv": ("query", "key", "value"), "kv_global": ("key_global", "value_global")}
                for name, keys in parts.items():
                    if all(f"{stem}{key}.{kind}" in own for key in keys):
                        own[f"{stem}{name}.{kind}"] = torch.cat([own.pop(f"{stem}{key}.{kind}") for key in keys])
        patches = own.get("patch_embed.proj.weight")
        if patches is not None and patches.dim() == 4:
            own["patch_embed.proj.weight"] = patches.unsqueeze(2)
        return _NATIVE, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: the depths, the side of a patch, the width of the MLPs, the table's rows."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "frame_positions"))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the ViT's table of positions."""
        if key != "pos_embed" or table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        cells = table.shape[1] - 1
        size = built.get("img_size")
        side = square_side(cells)
        old = (size[0] // self.patch_size, size[1] // self.patch_size) if size else (side, side)
        if old[0] is None or old[1] is None or old[0] * old[1] != cells:
            return None
        places = resize_grid(table[:, 1:], (old[0], old[1]), self.grid, mode="linear")
        return torch.cat((table[:, :1], places), dim=1)


_FROM_AUTHORS = (
    (r"^cls_token$", "clip_token"),
    (r"^backbone\.", ""),
    (r"^temporal_encoder\.embeddings\.position_embeddings\.weight$", "frame_positions"),
    (r"^temporal_encoder\.embeddings\.token_type_embeddings\.weight$", "token_types"),
    (r"^temporal_encoder\.embeddings\.LayerNorm\.", "temporal_norm."),
    (r"^temporal_encoder\.encoder\.layer\.(\d+)\.", r"temporal_blocks.\1."),
    (r"\.attention\.self\.query_global\.", ".attn.q_global."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.output\.LayerNorm\.", ".norm2."),
    (r"^mlp_head\.0\.", "head.norm."),
    (r"^mlp_head\.1\.", "head.hidden."),
    (r"^mlp_head\.4\.", "head.fc."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    return {
        "in_chans": patches[1],
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "temporal_depth": count_blocks(own, "temporal_blocks."),
        "max_positions": len(own["frame_positions"]),
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/Kinetics/VIT_B_VTN.yaml (TRAIN.EVAL_FULL_VIDEO, EVAL_NUM_FRAMES, DATA.TARGET_FPS,
# TEST_CROP_SIZE, TEST.NUM_SPATIAL_CROPS); decoder.py spreads the frames over the whole video, which is what 250
# frames at 25 per second are for Kinetics. The short side is the crop there.
_K400 = Protocol(
    frames=250,
    stride=1,
    fps=25,
    short_side=224,
    crop=224,
    mean=KINETICS_MEAN,
    std=KINETICS_STD,
    views="1x1",
)

FAMILY = Family(
    model="VTN",
    paper="Neimark et al. 2021, arXiv:2102.00719",
    small_clip=(4, 48, 32),
    min_clip=(1, 16, 16),
    formats=("bomri/SlowFast",),
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4, "temporal_depth": 2, "temporal_window": 2},
    slow_goldens=("vtn_vit_b__40x64",),
    golden_options={
        "vtn_vit_b__40x64": {"name": "vtn_vit_b", "img_size": 64},
        "vtn_vit_b_d4__pos100_16x96": {"name": "vtn_vit_b", "img_size": 96, "depth": 4, "first_frame": 100},
    },
    variants=(
        Variant(
            "vtn_vit_b",
            "VTN with ViT-B/16 and three layers of a Longformer over 250 frames.",
            _K400,
            params=114.0,
            gflops=4218,
            params_tolerance=0.6,
            gflops_tolerance=0.06,
            note="The official code has 113.5 million parameters; the paper's multiply-adds seem to leave out the "
            "products of queries, keys and values",
        ),
    ),
)
