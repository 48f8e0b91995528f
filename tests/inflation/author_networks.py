"""More small image networks, with the habits of well-known authors: windows, lists, tuples, caches, checkpoints.

As in `own_networks`: each entry of `NETWORKS` is a function that builds one for images of 32x32 pixels and five
classes, and the modes in which it must be inflated. `REFUSED` has those that depend on the other images of their batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SIDE, CLASSES, DIM = 32, 5, 16


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden or 2 * dim), nn.Linear(hidden or 2 * dim, dim)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(x))))


class Attention(nn.Module):
    def __init__(self, dim: int = DIM, heads: int = 2) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if mask is not None:  # of each window
            scores = (scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]).view(scores.shape)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, dim))


class Block(nn.Module):
    def __init__(self, attn: nn.Module | None = None, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM), Attention() if attn is None else attn
        self.norm2, self.mlp = nn.LayerNorm(DIM), Mlp(DIM) if mlp is None else mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, DIM, 8, stride=8)
        self.pos_embed = nn.Parameter(torch.randn(1, 16, DIM))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def tokens(self, x: Tensor) -> Tensor:
        return self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed

    def forward(self, x: Tensor) -> Any:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Maps(nn.Module):
    """A stem, blocks that take and give maps, a pooling, a classifier."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.conv1, self.layer1 = nn.Conv2d(3, DIM, 4, stride=4), nn.Sequential(*blocks)
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = F.adaptive_avg_pool2d(self.layer1(self.conv1(x)), 1)
        return self.fc(x.view(x.size(0), -1))


# --- convolutions -----------------------------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv1, self.conv2 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 8, 1), nn.Conv2d(8, 4, 3, 1, 1)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return self.conv2(F.relu(self.conv1(F.relu(self.norm(torch.cat(inputs, 1))))))


class DenseBlock(nn.ModuleDict):
    """Layers that take the list of all maps before (DenseNet)."""

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__({f"layer{index}": DenseLayer(inputs + 4 * index) for index in range(count)})

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for _, layer in self.items():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def densenet() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, 2, 1), DenseBlock(8, 3), nn.Conv2d(20, DIM, 1), nn.AvgPool2d(2), DenseBlock(DIM, 2))
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, CLASSES))


class Exchange(nn.Module):
    """Takes and gives a list of maps of two sizes, which exchange what they know (HRNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1), nn.BatchNorm2d(dim), nn.ReLU(inplace=True)) for dim in (8, 16)
        )
        self.up, self.down = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        high, low = (branch(x) for branch, x in zip(self.branches, maps, strict=True))
        return [F.relu(high + F.interpolate(self.up(low), scale_factor=2.0)), F.relu(low + self.down(high))]


class HRNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.transition = nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)])
        self.stage2 = nn.Sequential(Exchange(), Exchange())
        self.classifier = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = self.stage2([transition(x) for transition in self.transition])
        return self.classifier(torch.cat([F.avg_pool2d(y, y.size()[2:]).view(y.size(0), -1) for y in maps], 1))


class Split(nn.Module):
    """A part of the channels goes through each convolution, with what came before (Res2Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv3 = nn.Conv2d(DIM, DIM, 1), nn.Conv2d(DIM, DIM, 1)
        self.convs = nn.ModuleList(nn.Conv2d(DIM // 4, DIM // 4, 3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.conv1(x)), DIM // 4, 1)
        found = [parts[3]]
        for index, conv in enumerate(self.convs):
            found.append(F.relu(conv(parts[index] + found[-1] if index else parts[index])))
        y = self.conv3(torch.cat(found, 1))
        y += x
        return F.relu(y, inplace=True)


class Selective(nn.Module):
    """A softmax over branches, which is no attention over places (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(DIM, DIM, 3, 1, 1 + rate, dilation=1 + rate) for rate in range(2))
        self.fc, self.fcs = nn.Linear(DIM, 8), nn.ModuleList(nn.Linear(8, DIM) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([conv(x).relu() for conv in self.convs], 1)
        seen = self.fc(maps.sum(1).mean(-1).mean(-1))
        shares = torch.stack([fc(seen) for fc in self.fcs], 1).softmax(1)
        return (maps * shares[..., None, None]).sum(1)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        parametrise = torch.nn.utils.parametrizations
        self.first, self.norm = Standardised(DIM, DIM, 3, padding=1), nn.GroupNorm(4, DIM)
        self.second = parametrise.spectral_norm(nn.Conv2d(DIM, DIM, 1))
        self.third = parametrise.weight_norm(nn.Conv2d(DIM, DIM, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.third(self.second(F.relu(self.norm(self.first(x)))))


class Recomputing(nn.Module):
    """Recomputes its activations itself, in the older way of torch's checkpoints (UniRepLKNet, Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(DIM, DIM, 5, padding=2, groups=DIM), nn.BatchNorm2d(DIM)
        self.mlp = Mlp(DIM)
        self.gamma = nn.Parameter(torch.ones(DIM))

    def inner(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.dwconv(x)).permute(0, 2, 3, 1))
        return x + (self.gamma * y).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=True) if x.requires_grad else self.inner(x)


class Gated(nn.Module):
    """Half of the channels gate the others, over all places (gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)
        self.gate_norm, self.gate = nn.LayerNorm(DIM), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.fc1(self.norm(x))).chunk(2, dim=-1)
        return x + self.fc2(u * self.gate(self.gate_norm(v).transpose(1, 2)).transpose(1, 2))


class Expert(nn.Module):
    """Each token goes to the two experts that suit it, in one list of the tokens of all images (V-MoE)."""

    def __init__(self, capacity: bool = False) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(DIM, 4), nn.ModuleList(Mlp(DIM) for _ in range(4))
        self.capacity = capacity

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, DIM)
        shares = self.gate(tokens).softmax(-1)
        result = torch.zeros_like(tokens)
        chosen = shares.topk(2, -1).indices
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).any(-1).nonzero()[:, 0]
            if self.capacity:  # an expert takes so many tokens of the whole batch
                rows = shares[:, index].topk(len(tokens) // 4).indices
            result[rows] += shares[rows, index, None] * expert(tokens[rows])
        return result.reshape(x.shape)


# --- attention --------------------------------------------------------------------------------------------------------


def windows_of(x: Tensor, side: int) -> Tensor:
    n, height, width, dim = x.shape
    x = x.view(n, height // side, side, width // side, side, dim)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side * side, dim)


def map_of(windows: Tensor, side: int, height: int) -> Tensor:
    n = int(len(windows) / (height * height / side / side))
    x = windows.view(n, height // side, height // side, side, side, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(n, height * height, -1)


class ShiftedWindows(nn.Module):
    """Attention in windows, which move in every second block (Swin)."""

    def __init__(self, move: int) -> None:
        super().__init__()
        self.move = move
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(DIM), Attention(), nn.LayerNorm(DIM), Mlp(DIM)
        regions = torch.zeros(1, 8, 8, 1)
        if move:
            for index, (row, column) in enumerate([(a, b) for a in range(3) for b in range(3)]):
                cuts = (slice(0, -4), slice(-4, -move), slice(-move, None))
                regions[:, cuts[row], cuts[column]] = index
        seen = windows_of(regions, 4)[..., 0]
        self.register_buffer("mask", (seen[:, None] != seen[:, :, None]) * -100.0)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.roll(self.norm1(x).view(-1, 8, 8, DIM), (-self.move, -self.move), (1, 2))
        y = map_of(self.attn(windows_of(y, 4), self.mask if self.move else None), 4, 8).view(-1, 8, 8, DIM)
        x = x + torch.roll(y, (self.move, self.move), (1, 2)).view(x.shape)
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ShiftedWindows(2 * (index % 2)) for index in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True) if self.training else block(x)
        return x


def swin() -> nn.Module:
    network = ViT(Stage(), Stage())
    network.patch_embed, network.pos_embed = nn.Conv2d(3, DIM, 4, 4), nn.Parameter(torch.randn(1, 64, DIM))
    return network


class Reduced(nn.Module):
    """Keys and values of a smaller map; its blocks are told height and width (PVT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.q, self.kv, self.proj = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)
        self.sr, self.norm = nn.Conv2d(DIM, DIM, 2, 2), nn.LayerNorm(DIM)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        n, tokens, dim = x.shape
        q = self.q(x).reshape(n, tokens, self.num_heads, -1).permute(0, 2, 1, 3)
        small = self.sr(x.permute(0, 2, 1).reshape(n, dim, height, width)).reshape(n, dim, -1).permute(0, 2, 1)
        k, v = self.kv(self.norm(small)).reshape(n, -1, 2, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) * 0.3).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(n, tokens, dim))


class PyramidBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(DIM), Reduced(), nn.LayerNorm(DIM), Mlp(DIM)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attn(self.norm1(x), height, width)
        return x + self.mlp(self.norm2(x))


class PVT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for stage in (1, 2):
            setattr(self, f"patch_embed{stage}", nn.Conv2d(3 if stage == 1 else DIM, DIM, 6 - 2 * stage, 6 - 2 * stage))
            setattr(self, f"block{stage}", nn.ModuleList(PyramidBlock() for _ in range(2)))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for stage in (1, 2):
            x = getattr(self, f"patch_embed{stage}")(x)
            height, width = x.shape[2:]
            x = x.flatten(2).transpose(1, 2)
            for block in getattr(self, f"block{stage}"):
                x = block(x, height, width)
            x = x.reshape(len(x), height, width, -1).permute(0, 3, 1, 2).contiguous()
        return self.head(x.mean((2, 3)))


class Biased(nn.Module):
    """Keeps the biases of its scores while it evaluates, made when its mode is set (LeViT, EfficientFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attention_biases = nn.Parameter(torch.randn(2, 64))
        places = torch.arange(64)
        self.register_buffer("indices", (places - places[:, None]).abs())

    @torch.no_grad()
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if mode and hasattr(self, "ab"):
            del self.ab
        else:
            self.ab = self.attention_biases[:, self.indices]
        return self

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(len(x), -1, 2, 3 * DIM // 2).permute(0, 2, 1, 3).split(DIM // 2, dim=3)
        bias = self.attention_biases[:, self.indices] if self.training else self.ab
        y = (q @ k.transpose(-2, -1) * 0.3 + bias).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(tokens.shape)).transpose(1, 2).reshape(x.shape)


class Unfolded(nn.Module):
    """A transformer over patches, in each of which one place is taken at a time (MobileViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.local, self.fusion = nn.Conv2d(DIM, DIM, 3, 1, 1), nn.Conv2d(2 * DIM, DIM, 3, 1, 1)
        self.transformer = nn.Sequential(Block(), Block(), nn.LayerNorm(DIM))

    def forward(self, x: Tensor) -> Tensor:
        n, dim, height, width = x.shape
        y = self.local(x).reshape(n * dim * (height // 2), 2, width // 2, 2).transpose(1, 2)
        y = self.transformer(y.reshape(n, dim, -1, 4).transpose(1, 3).reshape(n * 4, -1, dim))
        y = y.contiguous().view(n, 4, -1, dim).transpose(1, 3).reshape(n * dim * (height // 2), width // 2, 2, 2)
        return self.fusion(torch.cat((x, y.transpose(1, 2).reshape(x.shape)), 1))


class Axial(nn.Module):
    """Attention along columns or rows, which are folded into the batch, by convolutions of one axis (Axial-DeepLab)."""

    def __init__(self, along_rows: bool) -> None:
        super().__init__()
        self.along_rows = along_rows
        self.qkv, self.norm, self.out = nn.Conv1d(DIM, 3 * DIM, 1), nn.BatchNorm1d(3 * DIM), nn.Conv2d(DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 1, 3) if self.along_rows else x.permute(0, 3, 1, 2)
        n, lines, dim, places = y.shape
        y = self.norm(self.qkv(y.contiguous().view(n * lines, dim, places)))
        q, k, v = y.reshape(n * lines, 2, -1, places).split((dim // 2,) * 3, dim=2)
        scores = F.softmax(torch.einsum("bgci,bgcj->bgij", q, k), dim=3)
        y = torch.einsum("bgij,bgcj->bgci", scores, v).reshape(n, lines, dim, places)
        return x + self.out(y.permute(0, 2, 1, 3) if self.along_rows else y.permute(0, 2, 3, 1))


class Deformable(nn.Module):
    """Keys are taken at places that the map itself chooses, in groups of channels (DAT)."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.groups = 4, 2
        self.offset = nn.Conv2d(DIM // 2, 2, 3, 2, 1)
        self.q, self.k, self.v, self.out = (nn.Conv2d(DIM, DIM, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, dim, height, width = x.shape
        q = self.q(x)
        moved = self.offset(q.reshape(n * self.groups, -1, height, width)).tanh().permute(0, 2, 3, 1)
        axis = torch.linspace(-1, 1, moved.shape[1], dtype=x.dtype, device=x.device)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
        found = F.grid_sample(x.reshape(n * self.groups, -1, height, width), grid + 0.1 * moved, align_corners=True)
        found = found.reshape(n, dim, 1, -1)
        q, k, v = (
            part.reshape(n * self.n_heads, dim // self.n_heads, -1) for part in (q, self.k(found), self.v(found))
        )
        y = torch.einsum("bmn,bcn->bcm", torch.einsum("bcm,bcn->bmn", q, k).softmax(2), v)
        return x + self.out(y.reshape(x.shape))


class Several(Maps):
    """Returns what a drawing needs beside the logits."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), [x.mean((2, 3))], None


class Backwards(torch.autograd.Function):
    """Runs the blocks again in the backward pass, from their outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Sequence[Any]) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        for block in blocks:
            first, second = block(first, second)
        ctx.blocks = blocks
        ctx.save_for_backward(first.detach(), second.detach())
        return torch.cat((first, second), -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (first, second), (by_first, by_second) = ctx.saved_tensors, gradient.chunk(2, dim=-1)
        for block in reversed(ctx.blocks):
            with torch.enable_grad():
                first = first.detach().requires_grad_()
                added = block.mlp(first)
                added.backward(by_second)
                second = (second - added).detach().requires_grad_()
                by_first = by_first + first.grad
                added = block.attn(second)
                added.backward(by_first)
                first, by_second = (first - added).detach(), by_second + second.grad
        return torch.cat((by_first, by_second), -1), None


class Reversible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Sequential(nn.LayerNorm(DIM), Attention())
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        first = first + self.attn(second)
        return first, second + self.mlp(first)


class RevViT(ViT):
    """Two streams, whose inputs are found again from the outputs (Rev-ViT)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        first, second = Backwards.apply(torch.cat((x, x), -1), list(self.blocks)).chunk(2, dim=-1)
        return self.head(self.norm((first + second).mean(1)))


class Remembering(nn.Module):
    """Keeps its last scores and a table for each number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Tensor] = {}
        self.scores: Tensor | None = None
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        if tokens not in self.tables:
            self.tables[tokens] = torch.outer(torch.arange(tokens), torch.arange(DIM) / DIM).cos()
        table = self.tables[tokens].to(x)
        self.scores = torch.einsum("bic,bjc->bij", self.q(x) * table, self.k(x) * table).softmax(-1)
        return self.scores @ self.v(x)


class Repeating(ViT):
    """One block, three times (ALBERT)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for _ in range(3):
            x = self.blocks[0](x)
        return self.head(self.norm(x).mean(1))


class Encoder(ViT):
    """Torch's own encoder, which runs in one function of its own while it evaluates."""

    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, batch_first=True)
        super().__init__(nn.TransformerEncoder(layer, 3))


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(DIM), nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), Mlp(DIM))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(query=y, key=y, value=y, need_weights=False)[0]
        return x + self.mlp(x)


class Named(ViT):
    """Returns a mapping."""

    def forward(self, x: Tensor) -> Any:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return {"tokens": x, "logits": self.head(x.mean(1))}


class Distilled(ViT):
    """Two classifiers, whose mean counts after training (DeiT)."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.head_dist = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        both = self.head(x[:, 0]), self.head_dist(x[:, 1])
        return both if self.training else (both[0] + both[1]) / 2


class AttentionPool(nn.Module):
    """The mean of the places asks all places; the projections are used as tensors (CLIP's ResNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(65, DIM))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(DIM, DIM) for _ in range(3))
        self.c_proj = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0) + self.positional_embedding[:, None].to(x.dtype)
        pooled, _ = F.multi_head_attention_forward(
            query=x[:1],
            key=x,
            value=x,
            embed_dim_to_check=DIM,
            num_heads=2,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True,
            training=self.training,
            need_weights=False,
        )
        return pooled.squeeze(0)


def clip_resnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, DIM, 4, 4), Split(), Split(), AttentionPool())


# --- what depends on the batch ----------------------------------------------------------------------------------------


class CountingBatch(Maps):
    """Makes a table for the size of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        share = torch.linspace(0.5, 1.5, len(x), dtype=x.dtype, device=x.device)
        return super().forward(x * share[:, None, None, None])


def _three(make: Callable[[], nn.Module]) -> list[nn.Module]:
    return [make() for _ in range(3)]


CONV, SHIFT, ATTENTION = "conv", "shift", "attention"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "densenet": (densenet, (CONV, SHIFT)),
    "hrnet": (HRNet, (CONV, SHIFT)),
    "res2net": (lambda: Maps(*_three(Split)), (CONV, SHIFT)),
    "sknet": (lambda: Maps(*_three(Selective)), (CONV, SHIFT)),
    "parametrised": (lambda: Maps(*_three(Parametrised)), (CONV, SHIFT)),
    "reentrant": (lambda: Maps(*_three(Recomputing)), (CONV, SHIFT)),
    "gmlp": (lambda: ViT(*_three(Gated)), (CONV, SHIFT)),
    "v-moe": (lambda: ViT(*_three(lambda: Block(mlp=Expert()))), (CONV, SHIFT, ATTENTION)),
    "swin": (swin, (CONV, SHIFT, ATTENTION)),
    "pvt": (PVT, (CONV, SHIFT, ATTENTION)),
    "levit": (lambda: Maps(*_three(Biased)), (CONV, SHIFT, ATTENTION)),
    "mobilevit": (lambda: Maps(Unfolded(), Unfolded()), (CONV, SHIFT, ATTENTION)),
    "axial": (lambda: Maps(Axial(False), Axial(True), Axial(False)), (CONV, SHIFT, ATTENTION)),
    "dat": (lambda: Several(*_three(Deformable)), (CONV, SHIFT, ATTENTION)),
    "rev-vit": (lambda: RevViT(*_three(Reversible)), (CONV, SHIFT, ATTENTION)),
    "remembering": (lambda: ViT(*_three(lambda: Block(Remembering()))), (CONV, SHIFT, ATTENTION)),
    "albert": (lambda: Repeating(Block()), (CONV, SHIFT, ATTENTION)),
    "torch encoder": (Encoder, (CONV, SHIFT, ATTENTION)),
    "torch attention": (lambda: Named(*_three(Asking)), (CONV, SHIFT, ATTENTION)),
    "deit": (lambda: Distilled(*_three(Block)), (CONV, SHIFT, ATTENTION)),
    "clip resnet": (clip_resnet, (CONV, SHIFT, ATTENTION)),
}
REFUSED: dict[str, Callable[[], nn.Module]] = {
    "experts with a capacity": lambda: ViT(*_three(lambda: Block(mlp=Expert(capacity=True)))),
    "a table of the batch": lambda: CountingBatch(*_three(Split)),
}
