"""Motionformer: a Vision Transformer whose tokens follow a trajectory, one place of every frame, and attend along it.

Patrick et al., "Keeping Your Eye on the Ball: Trajectory Attention in Video Transformers", NeurIPS 2021,
arXiv:2106.05392; official code: facebookresearch/Motionformer, slowfast/models/video_model_builder.py, vit_helper.py,
orthoformer_helper.py.

Shapes, for a clip (B, 3, T, H, W): tubelets of 2 frames of 16x16 pixels become P = T/2 * H/16 * W/16 tokens, a class
token stands before them. The table of positions is that of a frame of 224 pixels, resized by cubic interpolation to
the frames of the clip, and added to the table of times.

Trajectory attention has two steps. In the first each token attends to the tokens of every frame apart, which gives it
one vector a frame, (P, T/2, embed_dim): its trajectory. In the second it attends along its own trajectory, with a query
from the vector of its own frame. The class token attends to all tokens at once. Memory grows with P * T/2.

Some details are part of the published weights. The values of the second step are the trajectory itself, so that half
of `proj_kv` does nothing (`original_values`); the code calls it a typo. The embedding of single frames (`patch_embed`),
which the ImageNet model had, is kept and not used. The head has a hidden layer with tanh.

`orthoformer` approximates the first step: tokens attend to landmarks, and these to each frame. The landmarks are
queries that are as orthogonal to each other as a greedy choice finds. It begins with the first token, so that results
can be repeated; the official code begins with a random one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Attention,
    Block,
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    leave_out,
    rename_keys,
    resize_grid,
    run_blocks,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import MlpHead
from stvid.models.published_names import count_blocks, mlp_ratio, read_options
from stvid.protocol import Protocol

__all__ = ["Motionformer", "orthogonal_landmarks"]

NORM_EPS = 1e-6  # epsilon of every LayerNorm (official code)
TABLE = 14  # side of the grid of the table of positions, which is made for 224 pixels whatever the clip has
Kind = Literal["trajectory", "orthoformer"]
_NATIVE = "facebookresearch/Motionformer"


@torch.no_grad()
def orthogonal_landmarks(queries: Tensor, count: int) -> Tensor:
    """Chooses queries that are as orthogonal to each other as a greedy choice finds, apart for each head.

    The first query is taken first. Each further one has the smallest largest cosine, without its sign, to those taken.

    Args:
        queries: (B, N, heads, head_dim).
        count: How many; no more than N are taken.

    Returns:
        Chosen queries in their order in the sequence, (B, count, heads, head_dim).
    """
    directions = F.normalize(queries.transpose(1, 2), dim=-1)  # (B, heads, N, head_dim)
    count = min(count, directions.shape[2])
    chosen = [torch.zeros(*directions.shape[:2], 1, dtype=torch.int64, device=queries.device)]
    nearest = directions.new_zeros(directions.shape[:3])
    for _ in range(count - 1):
        last = directions.gather(2, chosen[-1].unsqueeze(-1).expand(-1, -1, -1, directions.shape[3]))
        cosines = (directions @ last.transpose(-2, -1)).squeeze(-1).abs()
        nearest = torch.maximum(nearest, cosines).scatter(2, chosen[-1], torch.inf)
        chosen.append(nearest.argmin(2, keepdim=True))
    places = torch.cat(chosen, dim=2).sort(dim=2).values.transpose(1, 2)  # (B, count, heads)
    return queries.gather(1, places.unsqueeze(-1).expand(-1, -1, -1, queries.shape[3]))


class TrajectoryAttention(Attention):
    """Attention to each frame apart, and then along the trajectory that comes of it; (B, 1 + P, dim) to the same.

    Args:
        dim: Channels of input and output.
        num_heads: Heads, each of dim / num_heads channels.
        qkv_bias: Whether queries, keys and values have a bias, in both steps.
        drop_rate: Dropout of the projection.
        attn_drop_rate: Dropout of the attention weights of the first step.
        kind: ``trajectory``, or ``orthoformer`` for the approximation of the first step.
        num_landmarks: Landmarks of the approximation.
        original_values: Whether the values of the second step are the trajectory itself, as in published weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        kind: Kind = "trajectory",
        num_landmarks: int = 128,
        original_values: bool = True,
    ) -> None:
        rates = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate}
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, axes="clip", **rates)
        self.kind: Kind = kind
        self.num_landmarks = num_landmarks
        self.original_values = original_values
        self.proj_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj_kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)

    def forward(self, x: Tensor, *, frames: int) -> Tensor:  # type: ignore[override]
        """Mixes the class token and the tokens of a number of frames."""
        q, k, v = self.queries_keys_values(x)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        token = attend(q[:, :1], k, v, layout="BMHK", source=(self, "clip")).flatten(-2)
        keys, values = k[:, 1:].unflatten(1, (frames, -1)), v[:, 1:].unflatten(1, (frames, -1))
        if self.kind == "orthoformer":
            paths = self._through_landmarks(q[:, 1:], keys, values)
        else:
            queries = q[:, 1:].unsqueeze(1).expand(-1, frames, -1, -1, -1).flatten(0, 1)
            paths = attend(
                queries,
                keys.flatten(0, 1),
                values.flatten(0, 1),
                drop_rate=drop_rate,
                layout="BMHK",
                source=(self, "space"),
            ).unflatten(0, (-1, frames))
        mixed = self._along(paths.flatten(-2))
        return self.proj_drop(self.proj(torch.cat((token, mixed), dim=1)))

    def _through_landmarks(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Returns the trajectories, (B, frames, P, heads, head_dim), by way of a few queries."""
        frames = keys.shape[1]
        landmarks = orthogonal_landmarks(q, self.num_landmarks)
        each = landmarks.unsqueeze(1).expand(-1, frames, -1, -1, -1).flatten(0, 1)
        seen = attend(each, keys.flatten(0, 1), values.flatten(0, 1), layout="BMHK", source=(self, "space"))
        seen = seen.unflatten(0, (-1, frames)).permute(0, 2, 3, 1, 4).flatten(-2)  # (B, L, heads, frames * head_dim)
        paths = attend(q, landmarks, seen, layout="BMHK", source=(self, "clip"))
        return paths.unflatten(-1, (frames, -1)).permute(0, 3, 1, 2, 4)

    def _along(self, paths: Tensor) -> Tensor:
        """Attends along each trajectory; (B, frames, P, dim) to (B, P, dim)."""
        frames = paths.shape[1]
        own = paths.unflatten(2, (frames, -1)).diagonal(dim1=1, dim2=2)  # (B, P / frames, dim, frames)
        q = self.proj_q(own.permute(0, 3, 1, 2).flatten(1, 2))
        k, v = self.proj_kv(paths).chunk(2, dim=-1)
        v = paths if self.original_values else v
        # Each token's heads are heads of one attention, whose sequence is that of the frames.
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).flatten(-3, -2) for part in (q.unsqueeze(1), k, v))
        mixed = attend(q, k, v, layout="BMHK", source=(self, "time"))
        return mixed.squeeze(1).unflatten(1, (-1, self.num_heads)).flatten(-2)


class Motionformer(VideoModel):
    """Motionformer.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip, which decide the table of times; other clips are taken, with it resized.
        img_size: (height, width) in pixels; others are taken, too, since the table of positions is always resized.
        in_chans: Channels of the clip.
        patch_size: Side of a tubelet in pixels.
        tubelet_size: Frames of a tubelet.
        depth: Number of blocks.
        embed_dim: Channels of a token.
        num_heads: Heads of each attention.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of embeddings and projections.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.
        attention: ``trajectory``, or ``orthoformer`` for its approximation by landmarks.
        num_landmarks: Landmarks of ``orthoformer``.
        original_values: Whether the values of the second step are the trajectory itself, as in published weights; False
            takes a projection of it, as the paper says.

    The features are the tokens after the last norm, (B, 1 + T/2 * H/16 * W/16, embed_dim), the class token first.
    Frames and pixels that fill no tubelet are left out.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = (
        False  # a token attends to trajectories, which are no tokens that attention can be followed through
    )

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
        attention: Kind = "trajectory",
        num_landmarks: int = 128,
        original_values: bool = True,
    ) -> None:
        super().__init__()
        if attention not in ("trajectory", "orthoformer"):
            raise ValueError(f"attention {attention!r}: choose trajectory or orthoformer")
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.tubelet = (tubelet_size, patch_size, patch_size)
        self.frames = self.token_grid((num_frames, *img_size))[0]
        if not all(self.token_grid((num_frames, *img_size))):
            raise ValueError(
                f"num_frames {num_frames}, img_size {img_size}: smaller than a tubelet of {tubelet_size} frames of "
                f"{patch_size}x{patch_size} pixels"
            )
        # Of the ImageNet model; no clip goes through it, so that it is never trained.
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)})
        self.patch_embed.requires_grad_(False)
        self.patch_embed_3d = TubeletEmbed(in_chans, embed_dim, tubelet_size=self.tubelet)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TABLE * TABLE, embed_dim))
        self.temp_embed = nn.Parameter(torch.zeros(1, self.frames, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        options: dict[str, Any] = {"drop_rate": drop_rate, "attn_drop_rate": attn_drop_rate, "kind": attention}
        options |= {"num_landmarks": num_landmarks, "original_values": original_values, "qkv_bias": qkv_bias}
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                attention=TrajectoryAttention(embed_dim, num_heads=num_heads, **options),
                mlp_ratio=mlp_ratio,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                norm_eps=NORM_EPS,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = MlpHead(
            embed_dim, num_classes, hidden_features=embed_dim, pool="token", act=nn.Tanh, drop_rate=head_drop_rate
        )
        names = [*(f"blocks.{number}" for number in range(depth - 1)), "norm"]
        self.feature_info = [FeatureInfo(name, embed_dim, self.tubelet) for name in names]
        self.apply(init_transformer_weights)
        for table in (self.cls_token, self.pos_embed, self.temp_embed):
            nn.init.trunc_normal_(table, std=0.02)
        self._train_last_trajectories(False)

    def _train_last_trajectories(self, wanted: bool) -> None:
        """Says whether the second step of the last block is trained: the class token alone does not see its result."""
        for name in ("attn.proj_q", "attn.proj_kv"):
            self.blocks[-1].get_submodule(name).requires_grad_(wanted)

    def reset_classifier(self, num_classes: int, *, head: Literal["default", "attentive"] = "default") -> None:
        """Replaces the classifier, see `VideoModel`; the attentive head sees all tokens, so that all of them train."""
        super().reset_classifier(num_classes, head=head)
        if head == "attentive":
            self._train_last_trajectories(True)

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the tubelets, runs the blocks and the norm."""
        self._check_clip(clip, minimum=self.tubelet)
        maps = self.patch_embed_3d(clip)
        frames, height, width = maps.shape[1:4]
        places = _resized(self.pos_embed[:, 1:], height, width).to(maps.dtype)
        times = resize_grid(self.temp_embed, (self.frames,), (frames,), mode="linear").to(maps.dtype)
        x = maps.flatten(2, 3) + places.unsqueeze(1) + times.unsqueeze(2)
        token = (self.cls_token + self.pos_embed[:, :1]).to(maps.dtype)
        x = self.pos_drop(torch.cat((token.expand(clip.shape[0], -1, -1), x.flatten(1, 2)), dim=1))
        last = len(self.feature_info) - 1
        blocks = [functools.partial(block, frames=frames) for block in self.blocks]
        x = run_blocks(blocks, x, recompute=self.grad_checkpointing, tap=leave_out(last, tap))
        return tap(last, self.norm(x))

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each whole tubelet."""
        time, height, width = (size // step for size, step in zip(clip_shape[-3:], self.tubelet, strict=True))
        return time, height, width

    def no_weight_decay(self) -> set[str]:
        """Returns the tables and the class token (official code: no_weight_decay)."""
        return {"pos_embed", "cls_token", "temp_embed"}

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding with the tables, then every block in order."""
        return {
            "stem": r"^(?:patch_embed|patch_embed_3d|cls_token|pos_embed|temp_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' files."""
        if "temp_embed" not in state or "pre_logits.fc.weight" not in state:
            return super().convert_checkpoint(state)
        own = rename_keys(state, _FROM_AUTHORS)
        return _NATIVE, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: depth, tubelets, width of the MLPs, and whether there are biases."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed_3d.proj.weight",))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the table of times."""
        if key != "temp_embed" or table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        return resize_grid(table, (table.shape[1],), (self.frames,), mode="linear")


def _resized(table: Tensor, height: int, width: int) -> Tensor:
    """Resizes the positions of a frame by cubic interpolation; (1, 14 * 14, dim) to (1, height * width, dim)."""
    if (height, width) == (TABLE, TABLE):
        return table
    grid = table.transpose(1, 2).unflatten(2, (TABLE, TABLE))
    return F.interpolate(grid, size=(height, width), mode="bicubic").flatten(2).transpose(1, 2)


_FROM_AUTHORS = (
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^pre_logits\.fc\.", "head.hidden."),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed_3d.proj.weight"].shape
    return {
        "in_chans": patches[1],
        "tubelet_size": patches[2],
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
        **mlp_ratio(own, "blocks.0.mlp.fc1.weight"),
    }


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: configs/K400/motionformer_*.yaml (DATA.*, TEST.NUM_ENSEMBLE_VIEWS x NUM_SPATIAL_CROPS),
# slowfast/config/defaults.py (DATA.TARGET_FPS 30).
_HALF = (0.5, 0.5, 0.5)
_K400 = Protocol(frames=16, stride=4, fps=30, short_side=224, crop=224, mean=_HALF, std=_HALF, views="10x3")
_K400_HR = Protocol(frames=16, stride=8, fps=30, short_side=336, crop=336, mean=_HALF, std=_HALF, views="10x3")
_K400_L = Protocol(frames=32, stride=3, fps=30, short_side=224, crop=224, mean=_HALF, std=_HALF, views="10x3")

FAMILY = Family(
    model="Motionformer",
    paper="Patrick et al. 2021, arXiv:2106.05392",
    small_clip=(4, 48, 32),
    min_clip=(2, 16, 16),
    formats=("facebookresearch/Motionformer",),
    tiny={"depth": 2, "embed_dim": 48, "num_heads": 4, "num_landmarks": 3},
    slow_goldens=("motionformer__8x64", "motionformer_d4__fixedv_8x96"),
    golden_options={
        "motionformer__8x64": {"name": "motionformer", "img_size": 64},
        "motionformer_d4__fixedv_8x96": {
            "name": "motionformer",
            "img_size": 96,
            "depth": 4,
            "original_values": False,
        },
        "motionformer_l_d4__16x64": {"name": "motionformer_l", "img_size": 64, "depth": 4},
        "motionformer_orthoformer_d4__8x64": {
            "name": "motionformer",
            "img_size": 64,
            "depth": 4,
            "attention": "orthoformer",
            "num_landmarks": 32,
        },
    },
    variants=(
        Variant("motionformer", "Motionformer, 16 frames of 224 pixels.", _K400, gflops=369.5),
        Variant(
            "motionformer_hr",
            "Motionformer-HR, 16 frames of 336 pixels.",
            _K400_HR,
            gflops=958.8,
            same_as="motionformer",
        ),
        Variant(
            "motionformer_l",
            "Motionformer-L, 32 frames of 224 pixels.",
            _K400_L,
            gflops=1185.1,
            same_as="motionformer",
        ),
    ),
)
