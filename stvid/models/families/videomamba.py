"""VideoMamba: the tokens of a clip go through selective state spaces, from both ends, instead of attention.

Li et al., "VideoMamba: State Space Model for Efficient Video Understanding", ECCV 2024, arXiv:2403.06977; official
code: OpenGVLab/VideoMamba, videomamba/video_sm/models/videomamba.py and mamba/mamba_ssm. The state space is Mamba's: Gu
and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752.

Shapes, for a clip (B, 3, T, H, W): every frame is cut into S = H/16 * W/16 patches, which with a class token in front
make a sequence (B, 1 + T * S, embed_dim), frame by frame. Each block normalises it, widens it to D = 2 * embed_dim
channels, and reads it twice, forwards and backwards, with weights of their own. At token l a state of 16 numbers for
each channel becomes h_l = exp(d_l A) h_(l-1) + d_l B_l x_l, and the output C_l h_l + D x_l, in which the step d_l, B_l
and C_l depend on the token. The class token, which has been first and last, is classified.

The scan goes from chunk to chunk (`selective_scan`): the states of one chunk are all that is kept at a time, and in
training they are computed once more in the backward pass, so that memory is linear in the number of tokens, without
the factor of 16. On a GPU the kernel of the package mamba-ssm is used if it is installed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import (
    Tap,
    TubeletEmbed,
    drop_path_rates,
    init_transformer_weights,
    keep_visible,
    leave_out,
    rename_keys,
    resize_grid,
    run_blocks,
    taps,
)
from stvid.models.family import Family, Variant
from stvid.models.heads import LinearHead
from stvid.models.published_names import count_blocks, read_options, square_side
from stvid.protocol import IMAGENET_MEAN, IMAGENET_STD, Protocol

__all__ = ["VideoMamba", "selective_scan"]

NORM_EPS = 1e-5  # epsilon of every norm (official code)
STATE = 16  # numbers of a channel's state
KERNEL = 4  # tokens that the convolution before a scan sees
CHUNK = 64  # tokens whose states are held at a time
LONG_CHUNK = 512  # the same, where all states of a chunk are computed at once
_NATIVE = "OpenGVLab/VideoMamba"


# --- the scan ---------------------------------------------------------------------------------------------------------


@functools.cache
def _kernel() -> Callable[..., Tensor] | None:
    """Returns mamba-ssm's selective scan for GPUs; None where the package is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    kernel: Callable[..., Tensor] = selective_scan_fn
    return kernel


def selective_scan(x: Tensor, steps: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Computes y_l = c_l h_l, where h_l = exp(steps_l decay) h_(l-1) + steps_l b_l x_l starts at zero.

    Args:
        x: (B, L, D).
        steps: (B, L, D), positive.
        decay: (D, N), negative.
        b: (B, L, N).
        c: (B, L, N).

    Returns:
        (B, L, D), in float32 at least, in which it is computed.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    x, steps, decay, b, c = (tensor.to(kind) for tensor in (x, steps, decay, b, c))
    kernel = _kernel() if x.is_cuda and kind == torch.float32 else None
    if kernel is not None:
        channels_first = [tensor.transpose(1, 2).contiguous() for tensor in (x, steps)]
        maps = [tensor.transpose(1, 2).contiguous() for tensor in (b, c)]
        return kernel(*channels_first, decay, *maps).transpose(1, 2)
    at_once = x.device.type != "cpu" or torch.compiler.is_compiling()
    chunk = LONG_CHUNK if at_once else CHUNK
    run = _states_at_once if at_once else _states_in_turn
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (x, steps, decay, b, c))
    state = x.new_zeros(x.shape[0], x.shape[2], decay.shape[1])
    parts = []
    for first in range(0, x.shape[1], chunk):
        part = slice(first, first + chunk)
        inputs = (state, x[:, part], steps[:, part], decay, b[:, part], c[:, part])
        if differentiated and not torch.compiler.is_compiling():
            y, state = checkpoint(functools.partial(_scan_chunk, run), *inputs, use_reentrant=False)
        else:
            y, state = _scan_chunk(run, *inputs)
        parts.append(y)
    return torch.cat(parts, dim=1)


def _scan_chunk(
    run: Callable[[Tensor, Tensor, Tensor], Tensor],
    state: Tensor,
    x: Tensor,
    steps: Tensor,
    decay: Tensor,
    b: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor]:
    """Scans the tokens of a chunk from a state (B, D, N); returns (B, L, D) and the last state."""
    factors = (steps.transpose(0, 1).unsqueeze(-1) * decay).exp()  # (L, B, D, N)
    added = (steps * x).transpose(0, 1).unsqueeze(-1) * b.transpose(0, 1).unsqueeze(2)
    states = run(factors, added, state)
    y = (states @ c.transpose(0, 1).unsqueeze(-1)).squeeze(-1)
    return y.transpose(0, 1), states[-1]


def _states_in_turn(factors: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """Returns all states, (L, B, D, N), one after the other: the least work, and fast where a call costs little."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (factors, added, state)):
        states = []
        for factor, more in zip(factors.unbind(), added.unbind(), strict=True):
            state = torch.addcmul(more, factor, state)
            states.append(state)
        return torch.stack(states)
    for factor, more in zip(factors.unbind(), added.unbind(), strict=True):
        state = torch.addcmul(more, factor, state, out=more)
    return added


def _states_at_once(factors: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """Returns all states, (L, B, D, N), in log2(L) passes (Hillis and Steele 1986), which multiply decays alone."""
    added = torch.cat((torch.addcmul(added[:1], factors[:1], state.unsqueeze(0)), added[1:]))
    distance = 1
    while distance < added.shape[0]:
        behind = torch.addcmul(added[distance:], factors[distance:], added[:-distance])
        added = torch.cat((added[:distance], behind))
        factors = torch.cat((factors[:distance], factors[distance:] * factors[:-distance]))
        distance *= 2
    return added


class Direction(nn.Module):
    """Reads a sequence in one direction: a causal convolution, then the scan; (B, L, dim) to the same.

    Args:
        dim: Channels.
        step_rank: Numbers of a token from which the steps of all channels are made.
    """

    def __init__(self, dim: int, *, step_rank: int) -> None:
        super().__init__()
        self.step_rank = step_rank
        self.conv = nn.Conv1d(dim, dim, KERNEL, padding=KERNEL - 1, groups=dim)
        self.x_proj = nn.Linear(dim, step_rank + 2 * STATE, bias=False)
        self.step_proj = nn.Linear(step_rank, dim)
        self.decay_log = nn.Parameter(torch.zeros(dim, STATE))
        self.skip = nn.Parameter(torch.ones(dim))
        self.init_weights()

    def init_weights(self) -> None:
        """Starts the decays as 1 to 16 (S4D's real initialisation)."""
        with torch.no_grad():
            self.decay_log.copy_(
                torch.arange(1, STATE + 1, device=self.decay_log.device).log().expand_as(self.decay_log)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Reads the sequence from its first token on."""
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        steps, b, c = self.x_proj(x).split((self.step_rank, STATE, STATE), dim=-1)
        kind = torch.promote_types(x.dtype, torch.float32)
        steps = F.softplus(self.step_proj(steps).to(kind))
        y = selective_scan(x, steps, -self.decay_log.to(kind).exp(), b, c)
        return (y + self.skip.to(kind) * x).to(x.dtype)


class Mixer(nn.Module):
    """Mamba's mixing of tokens, from both ends; (B, L, dim) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner, rank = 2 * dim, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.ahead = Direction(inner, step_rank=rank)
        self.back = Direction(inner, step_rank=rank)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj((self.ahead(x) + self.back(x.flip(1)).flip(1)) * F.silu(gate))


class MambaBlock(nn.Module):
    """A norm and a mixer with a residual, whose sum is kept in float32 at least; (B, L, dim) to the same."""

    def __init__(self, dim: int, *, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.mixer = Mixer(dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        return x + self.drop_path(self.mixer(self.norm(x.to(self.norm.weight.dtype))))


# --- the model --------------------------------------------------------------------------------------------------------


class VideoMamba(VideoModel):
    """VideoMamba.

    Args:
        num_classes: Number of logits.
        num_frames: Frames of a clip: entries of the table of times. Other clips are taken, with the table resized.
        img_size: (height, width) in pixels, which decides the table of positions; other clips get it resized.
        in_chans: Channels of the clip.
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames of a patch.
        depth: Number of blocks.
        embed_dim: Channels of a token.
        drop_rate: Dropout of the embeddings.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        head_drop_rate: Dropout before the classifier.

    The features are the normalised tokens (B, 1 + t*h*w, embed_dim), the class token first, then frame by frame. Frames
    and pixels that fill no patch are left out.
    """

    gives_maps = False
    num_prefix_tokens = 1
    names_attention = False  # there is none
    takes_mask = True

    def __init__(
        self,
        *,
        num_classes: int = 400,
        num_frames: int = 8,
        img_size: tuple[int, int] = (224, 224),
        in_chans: int = 3,
        patch_size: int = 16,
        tubelet_size: int = 1,
        depth: int = 24,
        embed_dim: int = 192,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        head_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        self.tubelet = (tubelet_size, patch_size, patch_size)
        self.grid = self.token_grid((num_frames, *img_size))
        if not all(self.grid):
            raise ValueError(
                f"num_frames {num_frames}, img_size {img_size}: smaller than a patch of {tubelet_size} frames of "
                f"{patch_size}x{patch_size} pixels"
            )
        self.patch_embed = TubeletEmbed(in_chans, embed_dim, tubelet_size=self.tubelet)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[1] * self.grid[2], embed_dim))
        self.time_embed = nn.Parameter(torch.zeros(1, self.grid[0], embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(MambaBlock(embed_dim, drop_path_rate=rate) for rate in rates)
        self.norm = nn.RMSNorm(embed_dim, eps=NORM_EPS)
        self.head = LinearHead(embed_dim, num_classes, pool="token", drop_rate=head_drop_rate)
        names = [*(f"blocks.{number}" for number in range(depth - 1)), "norm"]
        self.feature_info = [FeatureInfo(name, embed_dim, self.tubelet) for name in names]
        self._init_weights()

    def _init_weights(self) -> None:
        """As published; the official code zeroes the biases of the steps, too, which Mamba draws."""
        self.apply(init_transformer_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        with torch.no_grad():
            for mixer in (module for module in self.modules() if isinstance(module, Mixer)):
                nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
                mixer.out_proj.weight.div_(math.sqrt(len(self.blocks)))

    def embed(self, clip: Tensor) -> Tensor:
        """Embeds the patches and adds places and times; (B, in_chans, T, H, W) to (B, 1 + t*h*w, embed_dim)."""
        self._check_clip(clip, minimum=self.tubelet)
        x = self.patch_embed(clip)
        frames, *size = x.shape[1:4]
        places = resize_grid(self.pos_embed[:, 1:], self.grid[1:], size, mode="cubic")
        times = resize_grid(self.time_embed, self.grid[:1], (frames,), mode="cubic")
        patches = x.flatten(2, 3) + places.unsqueeze(1) + times.unsqueeze(2)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return self.pos_drop(torch.cat((cls, patches.flatten(1, 2)), dim=1))

    def _run(self, x: Tensor, tap: Tap) -> Tensor:
        last = len(self.blocks) - 1
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = run_blocks(self.blocks, x, recompute=self.grad_checkpointing, tap=leave_out(last, tap))
        return tap(last, self.norm(x.to(self.norm.weight.dtype)))

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        """Embeds the patches and runs the blocks."""
        return self._run(self.embed(clip), tap)

    def encode_visible(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Runs the blocks on the class token and some of the others, as the pretraining does."""
        return self._run(keep_visible(self.embed(clip), visible, prefix=1), lambda number, x: x)

    def token_grid(self, clip_shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the cells of the features: one for each whole patch."""
        time, height, width = (size // step for size, step in zip(clip_shape[-3:], self.tubelet, strict=True))
        return time, height, width

    def no_weight_decay(self) -> set[str]:
        """Returns the tables, the class token and the decays (official code)."""
        decays = {name for name, _ in self.named_parameters() if name.endswith("decay_log")}
        return {"pos_embed", "time_embed", "cls_token"} | decays

    def group_matcher(self) -> dict[str, Any]:
        """Returns the layer groups: the embedding, then every block in order (official code: optim_factory.py)."""
        return {
            "stem": r"^patch_embed|^cls_token|^pos_embed|^time_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    def convert_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Recognises the authors' checkpoints, of videos and of images."""
        name, own = super().convert_checkpoint(state)
        if "layers.0.mixer.A_log" not in own:
            return name, own
        own = rename_keys(own, _OFFICIAL)
        patches = own.get("patch_embed.proj.weight")
        if patches is not None and patches.dim() == 4:  # an image model, from which the authors start
            own["patch_embed.proj.weight"] = taps(patches, self.tubelet[0], init="center")
            own.setdefault("time_embed", torch.zeros(self.time_embed.shape))
        return _NATIVE, own

    def options_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns what the tensors show: patches, depth, channels, the frames and the size (taken as square)."""
        _, own = self.convert_checkpoint(state)
        return read_options(_read, own, self.state_dict(), needed=("patch_embed.proj.weight", "pos_embed"))

    def resize_table(self, key: str, table: Tensor, built: Mapping[str, Any]) -> Tensor | None:
        """Resizes the tables of times, linearly, and of positions, bicubically."""
        if table.dim() != 3 or table.shape[2] != self.num_features:
            return None
        if key == "time_embed":
            return resize_grid(table, table.shape[1:2], self.grid[:1], mode="cubic")
        if key != "pos_embed":
            return None
        side = square_side(table.shape[1] - 1)
        old = None if side is None else (side, side)
        if "img_size" in built:
            old = (built["img_size"][0] // self.tubelet[1], built["img_size"][1] // self.tubelet[2])
        if old is None or math.prod(old) != table.shape[1] - 1:
            return None
        return torch.cat((table[:, :1], resize_grid(table[:, 1:], old, self.grid[1:], mode="cubic")), dim=1)


# --- conversion -------------------------------------------------------------------------------------------------------

_OFFICIAL = (
    (r"^temporal_pos_embedding$", "time_embed"),
    (r"^layers\.", "blocks."),
    (r"^norm_f\.", "norm."),
    (r"\.mixer\.A_log$", ".mixer.ahead.decay_log"),
    (r"\.mixer\.A_b_log$", ".mixer.back.decay_log"),
    (r"\.mixer\.D$", ".mixer.ahead.skip"),
    (r"\.mixer\.D_b$", ".mixer.back.skip"),
    (r"\.mixer\.conv1d_b\.", ".mixer.back.conv."),
    (r"\.mixer\.conv1d\.", ".mixer.ahead.conv."),
    (r"\.mixer\.x_proj_b\.", ".mixer.back.x_proj."),
    (r"\.mixer\.x_proj\.", ".mixer.ahead.x_proj."),
    (r"\.mixer\.dt_proj_b\.", ".mixer.back.step_proj."),
    (r"\.mixer\.dt_proj\.", ".mixer.ahead.step_proj."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def _read(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads arguments off a state in our keys."""
    patches = own["patch_embed.proj.weight"].shape
    options: dict[str, Any] = {
        "in_chans": patches[1],
        "tubelet_size": patches[2],
        "patch_size": patches[3],
        "depth": count_blocks(own, "blocks."),
        "embed_dim": patches[0],
    }
    if "time_embed" in own:
        options["num_frames"] = own["time_embed"].shape[1] * patches[2]
    side = square_side(own["pos_embed"].shape[1] - 1)
    return options if side is None else {**options, "img_size": (side * patches[3],) * 2}


# --- variants ---------------------------------------------------------------------------------------------------------

# Official code: videomamba/video_sm/exp/k400/*/run_f8x224.sh (num_frames, short_side_size, test_num_segment x
# test_num_crop), datasets/kinetics_sparse.py (frames spread over the whole video, ImageNet's mean and deviation).
_K400 = Protocol(
    frames=8, sampling="segment", short_side=224, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, views="4x3"
)

FAMILY = Family(
    model="VideoMamba",
    paper="Li et al. 2024, arXiv:2403.06977",
    small_clip=(4, 32, 32),
    min_clip=(1, 16, 16),
    formats=("OpenGVLab/VideoMamba",),
    tiny={"depth": 2, "embed_dim": 48},
    slow_goldens=("videomamba_t16__8x64",),
    golden_options={
        "videomamba_t16__8x64": {"name": "videomamba_t16", "img_size": 64},
        "videomamba_s16_d4__4x96": {"name": "videomamba_s16", "img_size": 96, "depth": 4},
    },
    variants=(
        Variant("videomamba_t16", "VideoMamba-Ti.", _K400, params=7),
        Variant(
            "videomamba_s16",
            "VideoMamba-S.",
            _K400,
            {"embed_dim": 384},
            params=26,
            params_tolerance=0.5,
            same_as="videomamba_t16",
        ),
        Variant(
            "videomamba_m16",
            "VideoMamba-M.",
            _K400,
            {"embed_dim": 576, "depth": 32},
            params=74,
            params_tolerance=0.5,
            same_as="videomamba_t16",
        ),
    ),
)
