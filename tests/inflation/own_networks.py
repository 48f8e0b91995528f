"""Small image networks in the styles of many that are in neither timm nor torchvision; the code is written for here.

Each entry of `NETWORKS` is a function that builds one for images of 32x32 pixels and five classes, and the modes in
which it must be inflated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CLASSES, DIM = 32, 5, 16


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Pooled(nn.Module):
    """A stem, blocks, the mean over places, a classifier."""

    def __init__(self, *blocks: nn.Module, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, 4, stride=4) if stem is None else stem
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.flatten(2).mean(2))


class Tokens(Pooled):
    """The same on tokens (N, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(1))


# --- convolutions -----------------------------------------------------------------------------------------------------


class GatedRecursive(nn.Module):
    """Channels are split, and each part is gated by the one before (HorNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(DIM, 2 * DIM, 1)
        self.depthwise = nn.Conv2d(3 * DIM // 2, 3 * DIM // 2, 5, padding=2, groups=3 * DIM // 2)
        self.second = nn.Conv2d(DIM // 2, DIM, 1)
        self.last = nn.Conv2d(DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        start, rest = self.first(x).split((DIM // 2, 3 * DIM // 2), dim=1)
        half, whole = self.depthwise(rest).split((DIM // 2, DIM), dim=1)
        return x + self.last(self.second(start * half) * whole)


class Column(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(DIM, DIM, 3, padding=1), nn.Conv2d(DIM, DIM, 3, padding=1)

    def forward(self, x: Tensor, low: Tensor | None, high: Tensor | None) -> tuple[Tensor, Tensor]:
        low = self.low(x).relu() + (0 if low is None else 0.5 * low)
        high = self.high(low).relu() + (0 if high is None else 0.5 * high)
        return low, high


class Columns(nn.Module):
    """Columns that hand each level to the next column and return several logits (RevCol)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, 4, stride=4)
        self.columns = nn.ModuleList(Column() for _ in range(3))
        self.fc = nn.ModuleList(nn.Linear(DIM, CLASSES) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x, low, high, outputs = self.stem(x), None, None, []
        for column, fc in zip(self.columns, self.fc, strict=True):
            low, high = column(x, low, high)
            outputs.append(fc(high.mean((2, 3))))
        return outputs if self.training else outputs[-1]


class Branches(nn.Module):
    """Parallel kernels of several sizes, which a deployment would merge (UniRepLKNet, RepVGG)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (7, 5, 3)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(DIM, DIM, size, padding=size // 2, groups=DIM), nn.BatchNorm2d(DIM))
            for size in sizes
        )
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        y = sum(branch(x) for branch in self.branches)
        return x + self.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Dynamic(nn.Module):
    """A kernel mixed from several, by what the image shows (ODConv, CondConv)."""

    def __init__(self, inputs: int = DIM, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.randn(3, DIM, inputs, 3, 3) / (9 * inputs) ** 0.5)
        self.attention = nn.Sequential(nn.Conv2d(inputs, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        share = self.attention(x.mean((2, 3), keepdim=True)).flatten(1).softmax(1)
        kernels = torch.einsum("nk,koihw->noihw", share, self.weight).flatten(0, 1)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, stride=self.stride, padding=1, groups=len(x))
        return y.reshape(len(x), DIM, *y.shape[2:])


class TwoDynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Dynamic(), Dynamic()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


class Involution(nn.Module):
    """A kernel for each place, made from the place."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.span = nn.Conv2d(DIM, 8, 1), nn.Conv2d(8, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.span(self.reduce(x).relu())
        windows = F.unfold(x, 3, padding=1).unflatten(1, (DIM, 9)).unflatten(-1, x.shape[2:])
        return x + (windows * kernels[:, None]).sum(2)


class Spectral(nn.Module):
    """A learned filter in the frequency domain, with complex weights (GFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(DIM, 8, 5, dtype=torch.cfloat) * 0.2)
        self.mlp = nn.Sequential(nn.Conv2d(DIM, DIM, 1), nn.GELU(), nn.Conv2d(DIM, DIM, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[2:]))


def mixer() -> nn.Module:
    """Nothing but sequences (ConvMixer)."""
    blocks = [
        nn.Sequential(
            Residual(nn.Sequential(nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM), nn.GELU())),
            nn.Conv2d(DIM, DIM, 1),
            nn.BatchNorm2d(DIM),
        )
        for _ in range(4)
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(DIM, CLASSES))
    return nn.Sequential(nn.Conv2d(3, DIM, 4, stride=4), *blocks, *head)


# --- graphs and clusters ----------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Each place looks at its nearest neighbours among the features (ViG)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.Conv2d(DIM, DIM, 1), nn.Conv2d(2 * DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.before(x).flatten(2)
        near = torch.cdist(nodes.transpose(1, 2), nodes.transpose(1, 2)).topk(3, largest=False).indices
        found = nodes.gather(2, near.flatten(1)[:, None].expand(-1, DIM, -1)).unflatten(2, (-1, 3))
        furthest = (found - nodes[..., None]).amax(3)
        return x + self.behind(torch.cat((nodes, furthest), 1).unflatten(2, x.shape[2:]))


class Cluster(nn.Module):
    """Places are given to the centre that they are most like, and get its mean (Context Cluster)."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Conv2d(DIM, DIM, 1), nn.Conv2d(DIM, DIM, 1)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        places, values = x.flatten(2), self.value(x).flatten(2)
        centres = F.adaptive_avg_pool2d(x, 2).flatten(2)
        like = (F.normalize(centres, dim=1).transpose(1, 2) @ F.normalize(places, dim=1) * self.alpha).sigmoid()
        like = like * torch.zeros_like(like).scatter(1, like.argmax(1, keepdim=True), 1.0)
        means = values @ like.transpose(1, 2) / (like.sum(2)[:, None] + 1)
        return x + self.out((means @ like).unflatten(2, x.shape[2:]))


# --- attention --------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Softmax attention; how many heads it has is said in an attribute of any name, or nowhere."""

    def __init__(self, named: str = "", fused: bool = False, softmax: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attend = nn.Softmax(dim=-1) if softmax else nn.Identity()
        self.fused = fused
        if named:
            setattr(self, named, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = self.attend(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5) @ v
        return self.to_out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Layer(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp = attention, FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class PairedTransformer(nn.Module):
    """Its layers are lists of two modules, and a class token comes first (vit-pytorch)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * 64, DIM)
        self.cls_token, self.places = nn.Parameter(torch.randn(1, 1, DIM)), nn.Parameter(torch.randn(1, 17, DIM))
        self.layers = nn.ModuleList(nn.ModuleList([SelfAttention("heads"), FeedForward()]) for _ in range(3))
        self.mlp_head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(F.unfold(x, 8, stride=8).transpose(1, 2))
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.places
        for attention, mlp in self.layers:
            x = x + attention(x)
            x = x + mlp(x)
        return self.mlp_head(x[:, 0])


class Stripes(nn.Module):
    """Attention in stripes of the map, half of the channels in rows and half in columns (CSWin)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.mlp = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(1, (8, 8)).unflatten(-1, (3, 2, DIM // 2)).permute(3, 4, 0, 1, 2, 5)
        parts = []
        for half, axis in ((0, 1), (1, 2)):
            q, k, v = (part[half].movedim(axis, 1).flatten(0, 1) for part in qkv)
            y = (q @ k.transpose(1, 2) * (DIM // 2) ** -0.5).softmax(-1) @ v
            parts.append(y.unflatten(0, (-1, 8)).movedim(1, axis))
        x = x + self.out(torch.cat(parts, -1).flatten(1, 2))
        return x + self.mlp(x)


class MapAttention(nn.Module):
    """Attention on a map, after a convolution (AlterNet, CoAtNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DIM, DIM, 3, padding=1)
        self.attention = SelfAttention("heads")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(x).relu()
        return x + self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class TokensToToken(nn.Module):
    """Overlapping patches are unfolded again after each attention, whose channels change (T2T-ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(27, DIM), nn.Linear(9 * DIM, DIM)
        self.layers = nn.ModuleList(Layer(SelfAttention(fused=True)) for _ in range(3))
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2))
        x = x.transpose(1, 2).unflatten(2, (16, 16))
        x = self.second(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2))
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(1))


class SequenceFirst(nn.Module):
    """Tokens on the first axis and images on the second, and a projection that is a parameter (CLIP's visual tower)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, 8, stride=8, bias=False)
        layers = [nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, dropout=0.0) for _ in range(2)]
        self.resblocks = nn.Sequential(*layers)
        self.proj = nn.Parameter(torch.randn(DIM, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).permute(2, 0, 1)
        return self.resblocks(x).mean(0) @ self.proj


def small_cnn() -> nn.Module:
    """LeNet's shape, flattened by `view`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2 = nn.Linear(16 * 25, 20), nn.Linear(20, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.conv1(x).relu(), 2)
            x = F.max_pool2d(self.conv2(x).relu(), 2)
            return self.fc2(self.fc1(x.view(x.size(0), -1)).relu())

    return Net()


CONV, SHIFT, ATTENTION = "conv", "shift", "attention"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "hornet": (lambda: Pooled(*(GatedRecursive() for _ in range(3))), (CONV, SHIFT)),
    "revcol": (Columns, (CONV, SHIFT)),
    "unireplknet": (lambda: Pooled(*(Branches() for _ in range(3))), (CONV, SHIFT)),
    "odconv": (lambda: Pooled(*(TwoDynamic() for _ in range(3)), stem=Dynamic(3, 4)), (CONV, SHIFT)),
    "involution": (lambda: Pooled(*(Involution() for _ in range(3))), (CONV, SHIFT)),
    "gfnet": (lambda: Pooled(*(Spectral() for _ in range(3))), (CONV, SHIFT)),
    "convmixer": (mixer, (CONV, SHIFT)),
    "vig": (lambda: Pooled(*(Graph() for _ in range(3))), (CONV, SHIFT)),
    "coc": (lambda: Pooled(*(Cluster() for _ in range(3))), (CONV, SHIFT)),
    "lenet": (small_cnn, (CONV, SHIFT)),
    "unnamed heads": (lambda: Tokens(*(Layer(SelfAttention()) for _ in range(3))), (CONV, SHIFT, ATTENTION)),
    "n_heads": (lambda: Tokens(*(Layer(SelfAttention("n_heads")) for _ in range(3))), (CONV, SHIFT, ATTENTION)),
    "vit-pytorch": (PairedTransformer, (CONV, SHIFT, ATTENTION)),
    "cswin": (lambda: Tokens(*(Stripes() for _ in range(3))), (CONV, SHIFT, ATTENTION)),
    "alternet": (lambda: Pooled(*(MapAttention() for _ in range(3))), (CONV, SHIFT, ATTENTION)),
    "t2t": (TokensToToken, (CONV, SHIFT, ATTENTION)),
    "clip": (SequenceFirst, (CONV, SHIFT, ATTENTION)),
}
