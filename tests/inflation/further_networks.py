"""Small image networks whose layers take what is not the image: learned queries, scores of others, windows alone.

As in `own_networks`: each entry of `NETWORKS` is a function that builds one for images of 32x32 pixels and five
classes, and the modes in which it must be inflated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

CLASSES, DIM = 5, 16


def mlp(dim: int = DIM) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class Reading(nn.Module):
    """Attention in which the tokens of `x` look at those of a context; it can take over scores, and then skips `x`."""

    def __init__(self, computes_scores: bool = True) -> None:
        super().__init__()
        self.to_q = nn.Linear(DIM, DIM) if computes_scores else None
        self.to_k = nn.Linear(DIM, DIM) if computes_scores else None
        self.to_v, self.to_out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, context: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.to_q is not None and self.to_k is not None:
            scores = self.to_q(x) @ self.to_k(context).transpose(1, 2) * DIM**-0.5
        assert scores is not None
        return self.to_out(scores.softmax(-1) @ self.to_v(context)), scores


class Perceiver(nn.Module):
    """Learned latents, the same for every image, read the pixels; no convolution anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 16, DIM)
        self.latents = nn.Parameter(torch.randn(6, DIM))
        self.layers = nn.ModuleList(nn.ModuleList([Reading(), mlp()]) for _ in range(3))
        self.to_logits = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3).permute(0, 2, 1, 3, 4).flatten(2)
        pixels = self.embed(pixels)
        x = self.latents.expand(len(x), -1, -1)
        for read, feed in self.layers:
            x = x + read(x, context=pixels)[0]
            x = x + feed(x)
        return self.to_logits(x.mean(1))


class LookViT(nn.Module):
    """Few tokens read many; the many then take over the transposed scores, so their layer skips its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(3, DIM, 16, 16), nn.Conv2d(3, DIM, 8, 8)
        self.layers = nn.ModuleList(
            nn.ModuleList([Reading(), mlp(), Reading(computes_scores=False), mlp()]) for _ in range(2)
        )
        self.to_logits = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        few, many = (embed(x).flatten(2).transpose(1, 2) for embed in (self.coarse, self.fine))
        for look, feed, answer, feed_many in self.layers:
            found, scores = look(few, many)
            few = few + found
            few = few + feed(few)
            many = many + answer(many, few, scores.transpose(1, 2))[0]
            many = many + feed_many(many)
        return self.to_logits(few.mean(1) + many.mean(1))


class Flexible(nn.Module):
    """Attention by `flex_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return x + self.proj(flex_attention(q, k, v).transpose(1, 2).flatten(2))


class FlexViT(nn.Module):
    """A transformer whose attention runs backwards on GPUs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, 8, stride=8)
        self.blocks = nn.ModuleList(nn.ModuleList([Flexible(), mlp()]) for _ in range(3))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for attend, feed in self.blocks:
            x = attend(x)
            x = x + feed(x)
        return self.head(x.mean(1))


class WindowAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class WindowsWithRegisters(nn.Module):
    """The network itself cuts windows and adds registers to each, so that no layer of attention sees a whole frame."""

    def __init__(self, windows_first: bool = False) -> None:
        super().__init__()
        self.windows_first = windows_first
        self.stem = nn.Conv2d(3, DIM, 4, stride=4)
        self.registers = nn.Parameter(torch.randn(2, DIM))
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(DIM, DIM, 3, padding=1), WindowAttention(), mlp()]) for _ in range(2)
        )
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, attend, feed in self.layers:
            x = x + conv(x).relu()
            n, side = len(x), x.shape[2]
            windows = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(2, 3).permute(0, 2, 3, 1)  # (n, w, 16, dim)
            w = windows.shape[1]
            windows = (windows.transpose(0, 1) if self.windows_first else windows).flatten(0, 1)
            tokens = torch.cat((self.registers.expand(len(windows), -1, -1), windows), dim=1)
            tokens = tokens + attend(tokens)
            tokens = tokens + feed(tokens)
            windows = tokens[:, 2:].unflatten(0, (w, n) if self.windows_first else (n, w))
            windows = windows.transpose(0, 1) if self.windows_first else windows
            maps = windows.reshape(n, side // 4, side // 4, 4, 4, DIM).permute(0, 5, 1, 3, 2, 4)
            x = maps.reshape(n, DIM, side, side)
        return self.head(x.mean((2, 3)))


CONV, SHIFT, ATTENTION = "conv", "shift", "attention"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "perceiver": (Perceiver, (CONV, SHIFT, ATTENTION)),
    "lookvit": (LookViT, (CONV, SHIFT, ATTENTION)),
    "flex attention": (FlexViT, (CONV, SHIFT, ATTENTION)),
    "windows with registers": (WindowsWithRegisters, (CONV, SHIFT, ATTENTION)),
}
