"""UniFormer: 3D convolution in the shallow stages, space-time self-attention in the deep ones.

Li et al., "UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning", ICLR 2022,
arXiv:2201.04676; official code: Sense-X/UniFormer, video_classification/slowfast/models/uniformer.py.

Shapes, for a clip (B, 3, T, H, W): the stem halves time and quarters space, and each later stage halves space, so
stage i holds (B, embed_dim[i], T/2, H/2^(i+2), W/2^(i+2)). Every block is a dynamic position embedding (a depth-wise
3x3x3 convolution, added), a relation aggregator, and an MLP. The aggregator is *local* in stages 1 and 2 (1x1x1
convolution, depth-wise 5x5x5 convolution, 1x1x1 convolution) and *global* in stages 3 and 4 (multi-head self-attention
over all T/2 * H * W tokens). All sizes down to 32 pixels work, since no table depends on the size.

The variants differ in `depth` and `embed_dim`. Two ablations of the official code are options: `split_attention`
(SPLIT, section 4.4: attention over time, then over space) and `temporal_embed` (STD: the later patch embeddings look
at three frames).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Attention, Mlp, Tap, drop_path_rates, init_transformer_weights, rename_keys, run_blocks
from stvid.models.convolution import depthwise
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.published_names import count_blocks, from_mmaction, is_mmaction, mlp_ratio, read_options
from stvid.protocol import Protocol

__all__ = ["UniFormer"]

BLOCK_NORM_EPS = 1e-6  # epsilon of the global blocks' LayerNorms; patch embeddings have 1e-5 (official code)
MMACTION_NORM_EPS = 1e-5  # the same in mmaction2's port (mmaction/models/backbones/uniformer.py)


class PatchEmbed(nn.Module):
    """Strided convolution without overlap in space, then LayerNorm over channels; (B, C, T, H, W) to the same."""

    def __init__(self, in_chans: int, dim: int, *, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv3d(in_chans, dim, kernel, stride=stride, padding=(kernel[0] // 2, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Embeds patches."""
        x = self.proj(x)
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class ConvMlp(nn.Module):
    """The MLP of the local blocks: two 1x1x1 convolutions with a GELU between."""

    def __init__(self, dim: int, hidden_dim: int, *, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(dim, hidden_dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv3d(hidden_dim, dim, 1)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Applies both convolutions; (B, dim, T, H, W) to the same."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class LocalBlock(nn.Module):
    """Local relation aggregator (section 3.2, equation 5): a learned 5x5x5 affinity, the same at every position."""

    norm_neighbours = (("norm1", "conv1"), ("norm2", "mlp.fc1"))

    def __init__(self, dim: int, *, mlp_ratio: float, drop_rate: float, drop_path_rate: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm3d(dim)
        self.conv1 = nn.Conv3d(dim, dim, 1)
        self.conv2 = nn.Conv3d(dim, dim, 1)
        self.attn = nn.Conv3d(dim, dim, 5, padding=2, groups=dim)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.BatchNorm3d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), drop_rate=drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, T, H, W) to the same shape."""
        x = x + depthwise(self.pos_embed, x)
        x = x + self.drop_path(self.conv2(depthwise(self.attn, self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class GlobalBlock(nn.Module):
    """Global relation aggregator (section 3.2, equation 6): self-attention over all space-time tokens.

    With `split`, attention runs over time and then over space. As in the official code, the residual after the
    spatial attention is the input of the temporal one: the temporal branch reaches the output only through the
    spatial attention.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        split: bool,
    ) -> None:
        super().__init__()
        attention = partial(
            Attention, dim, num_heads=num_heads, qkv_bias=qkv_bias, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate
        )
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.split = split
        if split:
            self.t_norm = nn.LayerNorm(dim)
            self.t_attn = attention(axes="time")
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention(axes="space" if split else "clip")
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop_rate=drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, T, H, W) to the same shape."""
        x = x + depthwise(self.pos_embed, x)
        batch, dim, time, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if self.split:
            tokens = self._split_attention(tokens.reshape(batch, time, height * width, dim))
        else:
            tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).reshape(batch, dim, time, height, width)

    def _split_attention(self, x: Tensor) -> Tensor:
        batch, time, space, dim = x.shape
        columns = x.transpose(1, 2).reshape(batch * space, time, dim)
        columns = columns + self.drop_path(self.t_attn(self.t_norm(columns)))
        frames = columns.reshape(batch, space, time, dim).transpose(1, 2).reshape(batch * time, space, dim)
        mixed = self.drop_path(self.attn(self.norm1(frames)))
        return (x + mixed.reshape(batch, time, space, dim)).reshape(batch, time * space, dim)


class UniFormer(VideoModel):
    """UniFormer for video.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, for the protocol only: the weights do not depend on it.
        img_size: (height, width) in pixels, for the protocol only.
        in_chans: Channels of the clip.
        depth: Blocks of the four stages.
        embed_dim: Channels of the four stages.
        head_dim: Channels of an attention head.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        split_attention: Attention over time and then over space, instead of both at once.
        temporal_embed: Later patch embeddings with a kernel of three frames.
        norm_eps: Epsilon of the global blocks' LayerNorms; loading a published format sets that format's.

    The features are the normalised last stage, (B, embed_dim[3], ceil(T/2), H/32, W/32). A clip has at least 32 pixels
    in height and width.
    """

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 16,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        depth: Sequence[int] = (3, 4, 8, 3),
        embed_dim: Sequence[int] = (64, 128, 320, 512),
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        split_attention: bool = False,
        temporal_embed: bool = False,
        norm_eps: float = BLOCK_NORM_EPS,
    ) -> None:
        super().__init__()
        if len(depth) != 4 or len(embed_dim) != 4:
            raise ValueError(f"UniFormer has four stages: depth {depth} and embed_dim {embed_dim} need four numbers")
        for dim in embed_dim[2:]:
            if dim % head_dim:
                raise ValueError(f"embed_dim {dim} is no multiple of head_dim {head_dim}")
        self.num_classes = num_classes
        self.num_features = embed_dim[-1]
        self.in_chans = in_chans
        later = 3 if temporal_embed else 1
        self.patch_embed1 = PatchEmbed(in_chans, embed_dim[0], kernel=(3, 4, 4), stride=(2, 4, 4))
        self.patch_embed2 = PatchEmbed(embed_dim[0], embed_dim[1], kernel=(later, 2, 2), stride=(1, 2, 2))
        self.patch_embed3 = PatchEmbed(embed_dim[1], embed_dim[2], kernel=(later, 2, 2), stride=(1, 2, 2))
        self.patch_embed4 = PatchEmbed(embed_dim[2], embed_dim[3], kernel=(later, 2, 2), stride=(1, 2, 2))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, sum(depth)))
        common = {"mlp_ratio": mlp_ratio, "drop_rate": drop_rate}

        def local_stage(stage: int) -> nn.ModuleList:
            return nn.ModuleList(
                LocalBlock(embed_dim[stage], drop_path_rate=next(rates), **common) for _ in range(depth[stage])
            )

        def global_stage(stage: int) -> nn.ModuleList:
            return nn.ModuleList(
                GlobalBlock(
                    embed_dim[stage],
                    num_heads=embed_dim[stage] // head_dim,
                    qkv_bias=qkv_bias,
                    attn_drop_rate=attn_drop_rate,
                    split=split_attention,
                    drop_path_rate=next(rates),
                    **common,
                )
                for _ in range(depth[stage])
            )

        self.blocks1 = local_stage(0)
        self.blocks2 = local_stage(1)
        self.blocks3 = global_stage(2)
        self.blocks4 = global_stage(3)
        self.norm = nn.BatchNorm3d(embed_dim[-1])
        self.head = LinearHead(embed_dim[-1], num_classes)
        self._describe(embed_dim)
        self._set_norm_eps(norm_eps)
        self.apply(init_transformer_weights)
        if split_attention:
            self._init_temporal_attention()

    def _set_norm_eps(self, norm_eps: float) -> None:
        self.norm_eps = norm_eps
        for block in (*self.blocks3, *self.blocks4):
            for module in block.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = norm_eps

    def _describe(self, embed_dim: Sequence[int]) -> None:
        """Sets `feature_info`: one entry for each stage, of which the last is taken after the norm."""
        names = ("blocks1", "blocks2", "blocks3", "norm")
        self.feature_info = [
            FeatureInfo(name, dim, (2, 4 * 2**stage, 4 * 2**stage))
            for stage, (name, dim) in enumerate(zip(names, embed_dim, strict=True))
        ]

    def _init_temporal_attention(self) -> None:
        """Starts the temporal branch as the identity (official code: zero queries, keys and values)."""
        for block in [*self.blocks3, *self.blocks4]:
            nn.init.zeros_(block.t_attn.qkv.weight)
            nn.init.ones_(block.t_attn.proj.weight)  # biases are zero already

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Runs the four stages."""
        self._check_clip(clip, minimum=(1, 32, 32))
        x = self.pos_drop(self.patch_embed1(clip))
        x = tap(0, run_blocks(self.blocks1, x, recompute=self.grad_checkpointing))
        x = tap(1, run_blocks(self.blocks2, self.patch_embed2(x), recompute=self.grad_checkpointing))
        x = tap(2, run_blocks(self.blocks3, self.patch_embed3(x), recompute=self.grad_checkpointing))
        x = run_blocks(self.blocks4, self.patch_embed4(x), recompute=self.grad_checkpointing)
        return tap(3, self.norm(x))

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: the first embedding pads time, none pads space."""
        time, height, width = clip_shape[-3:]
        return (time + 1) // 2, height // 32, width // 32

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Renames the classifier of Sense-X/UniFormer and of mmaction2, whose other keys are this file's own."""
        if is_mmaction(state):
            return "mmaction2", from_mmaction(state)
        if "head.weight" not in state:
            return "stvid", dict(state)
        return "Sense-X/UniFormer", rename_keys(state, [(r"^head\.", "head.fc.")])

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, channels of the clip, width of the MLPs, and the two ablations.

        `embed_dim` is not among it: the heads that go with other channels do not show.
        """
        _, own = self.convert_checkpoint(state)
        return read_options(
            _read, own, self.state_dict(), needed=("patch_embed1.proj.weight", "patch_embed2.proj.weight")
        )

    def adopt_format(self, format_name: str, hyperparameters: Mapping[str, Any]) -> None:
        """Takes the epsilon that a layout's weights were trained with."""
        published = {"Sense-X/UniFormer": BLOCK_NORM_EPS, "mmaction2": MMACTION_NORM_EPS}
        norm_eps = published.get(format_name, hyperparameters.get("norm_eps", self.norm_eps))
        if norm_eps != self.norm_eps:
            self._set_norm_eps(norm_eps)
            changed = {**self.recipe.get("hyperparameters", {}), "norm_eps": norm_eps}
            self.recipe = {**self.recipe, "hyperparameters": changed}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the stem, then every patch embedding and block in order."""
        return {
            "stem": r"^patch_embed1",
            "blocks": [
                (r"^patch_embed(\d)", (-1,)),  # of a stage, before its blocks
                (r"^blocks(\d)\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }


# --- published keys ---------------------------------------------------------------------------------------------------


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    return {
        "depth": tuple(count_blocks(own, f"blocks{stage}.") for stage in range(1, 5)),
        "in_chans": own["patch_embed1.proj.weight"].shape[1],
        "temporal_embed": own["patch_embed2.proj.weight"].shape[2] > 1,
        "split_attention": any(".t_attn." in key for key in own),
        **mlp_ratio(own, "blocks3.0.mlp.fc1.weight"),
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: DATA.TARGET_FPS, DATA.MEAN and DATA.STD of slowfast/config/defaults.py; the tests scale the short side
# to 224 (README, "Testing": TRAIN_JITTER_SCALES [224, 224]) and average 4 clips of 1 crop on Kinetics.
_K400 = Protocol(frames=16, stride=4, fps=30, short_side=224, crop=224, views="4x1")

FAMILY = Family(
    model="UniFormer",
    paper="Li et al. 2022, arXiv:2201.04676",
    small_clip=(4, 64, 64),
    min_clip=(1, 32, 32),
    formats=("Sense-X/UniFormer", "mmaction2"),
    parent="uniformer",
    tiny={"depth": (1, 1, 1, 1), "embed_dim": (16, 32, 48, 64), "head_dim": 16},
    slow_goldens=("uniformer_s__8x96x128", "uniformer_s_std__16x64"),
    golden_options={
        "uniformer_s_split__16x64": {"name": "uniformer_s", "split_attention": True},
        "uniformer_s_std__16x64": {"name": "uniformer_s", "temporal_embed": True},
    },
    variants=(
        Variant("uniformer_s", "UniFormer-S.", _K400, {"depth": (3, 4, 8, 3)}, params=21.4, gflops=41.8),
        Variant(
            "uniformer_b",
            "UniFormer-B.",
            _K400,
            {"depth": (5, 8, 20, 7), "drop_path_rate": 0.3},
            params=49.8,
            gflops=97.0,
            same_as="uniformer_s",
        ),
        Variant(
            "uniformer_xxs",
            "Small enough to train on two CPU cores; this project's own, not the authors' lightweight UniFormer-XXS.",
            Protocol(frames=16, stride=1, short_side=64, crop=64),
            {"depth": (2, 2, 1, 1), "embed_dim": (16, 32, 64, 128), "head_dim": 32, "drop_path_rate": 0.0},
            paper="",
            formats=(),
        ),
    ),
)
