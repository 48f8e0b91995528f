"""Heads: from the features of a clip to logits.

A head takes what `VideoModel.forward_features` returns, maps (B, C, T', H', W') or tokens (B, N, C), pools it, and
classifies. ``head(features, pre_logits=True)`` stops before the classifier. Every head has the same four things, which
`VideoModel` and its tools ask for: `num_features` (channels before the classifier), `classifier` (the layer that makes
the logits), `reset` (another number of classes), and the layer names that published weights are mapped to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from stvid.models.attention import attend
from stvid.models.blocks import Attention, Block, Mlp, QueryAttention, init_transformer_weights

__all__ = [
    "AttentivePoolHead",
    "Head",
    "LinearHead",
    "MeanQueryHead",
    "MlpHead",
    "NamedHeads",
    "Pool",
    "average_windows",
    "mean_of_windows",
    "pool_features",
]

Pool = Literal["mean", "token"]
Window = tuple[int, int, int]


def mean_of_windows(x: Tensor, window: Window | None) -> Tensor:
    """Averages over time and space; (B, C, T, H, W) to (B, C).

    Several official heads average over windows of a fixed size at stride 1 and then over the windows. That equals the
    plain mean only where one window covers all positions; in a larger map those in the middle weigh more.

    Args:
        x: The features.
        window: (T, H, W) of the window, cut to the map where that is smaller; None takes the plain mean.
    """
    return x.mean((2, 3, 4)) if window is None else average_windows(x, window).mean((2, 3, 4))


def average_windows(x: Tensor, window: Window) -> Tensor:
    """Averages over every window of a map, at stride 1; (B, C, T, H, W) to (B, C, T', H', W').

    Args:
        x: The features.
        window: (T, H, W) of the window, cut to the map where that is smaller.
    """
    kernel = [min(size, limit) for size, limit in zip(window, x.shape[2:], strict=True)]
    if kernel == list(x.shape[2:]):
        return x.mean((2, 3, 4), keepdim=True)
    if x.dtype in (torch.bfloat16, torch.float16):  # torch's CPUs have no such average of these types
        return F.avg_pool3d(x.float(), kernel, stride=1).to(x.dtype)
    return F.avg_pool3d(x, kernel, stride=1)


def pool_features(features: Tensor, pool: Pool, window: Window | None = None) -> Tensor:
    """Reduces the features of a clip to one vector.

    Args:
        features: Maps (B, C, T, H, W), tokens (B, N, C), or (B, C), which stays as it is.
        pool: ``mean`` averages maps over time and space, and tokens over their number; ``token`` takes the first token.
        window: As in `mean_of_windows`; for maps alone.

    Returns:
        (B, C).
    """
    if features.dim() == 5:
        return mean_of_windows(features, window)
    if features.dim() == 3:
        return features[:, 0] if pool == "token" else features.mean(1)
    return features


def _classifier(num_features: int, num_classes: int) -> nn.Linear | nn.Identity:
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()


class Head(nn.Module):
    """Base class of the heads that end with one linear layer, `fc`, which is the identity without classes.

    Args:
        num_features: Channels that the classifier sees.
        num_classes: Number of logits; 0 returns the pooled features instead.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.fc: nn.Module = _classifier(num_features, num_classes)

    def forward(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Returns the logits (B, num_classes), or with `pre_logits` the input of the classifier, (B, num_features)."""
        x = self.pool(features)
        return x if pre_logits else self.fc(x)

    def pool(self, features: Tensor) -> Tensor:
        """Returns the input of the classifier, (B, num_features)."""
        raise TypeError(f"{type(self).__name__} does not implement pool")

    @property
    def classifier(self) -> nn.Module:
        """The layer that makes the logits."""
        return self.fc

    def reset(self, num_classes: int) -> None:
        """Replaces the classifier by a freshly initialised one, on the device and in the type of the head's weights."""
        old = next(self.parameters(), None)
        fc = _classifier(self.num_features, num_classes).train(self.training)
        fc.apply(init_transformer_weights)
        self.fc = fc if old is None else fc.to(old)


class LinearHead(Head):
    """Pool, norm if wanted, dropout, linear layer.

    Args:
        num_features: Channels of the features.
        num_classes: Number of logits.
        pool: As in `pool_features`.
        window: As in `mean_of_windows`; None takes the plain mean.
        norm_eps: Epsilon of a LayerNorm after pooling (VideoMAE); None takes no norm.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        pool: Pool = "mean",
        window: Window | None = None,
        norm_eps: float | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_features, num_classes)
        self.pooling: Pool = pool
        self.window = window
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(num_features, eps=norm_eps)
        self.drop = nn.Dropout(drop_rate)

    def pool(self, features: Tensor) -> Tensor:
        """Pools the features; (B, C, T, H, W) or (B, N, C) to (B, C)."""
        return self.drop(self.norm(pool_features(features, self.pooling, self.window)))


class MlpHead(Head):
    """Pool, norm, hidden linear layer, activation, dropout, linear layer (X-ViT; without a norm X3D).

    Args:
        in_features: Channels of the features.
        num_classes: Number of logits.
        hidden_features: Channels of the hidden layer.
        pool: As in `pool_features`.
        window: For maps: the hidden layer and the activation are applied to the average over each window (T, H, W),
            cut to the map where that is smaller, and their results averaged; None takes one plain mean.
        norm: Whether a LayerNorm comes before the hidden layer.
        act: The activation's class.
        bias: Whether the hidden layer has a bias.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden_features: int,
        pool: Pool = "mean",
        window: Window | None = None,
        norm: bool = False,
        act: type[nn.Module] = nn.ReLU,
        bias: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(hidden_features, num_classes)
        self.pooling: Pool = pool
        self.window = window
        self.norm = nn.LayerNorm(in_features) if norm else nn.Identity()
        self.hidden = nn.Linear(in_features, hidden_features, bias=bias)
        self.act = act()
        self.drop = nn.Dropout(drop_rate)

    def pool(self, features: Tensor) -> Tensor:
        """Pools the features and applies the hidden layer; (B, C, T, H, W) or (B, N, C) to (B, hidden_features)."""
        if features.dim() == 5 and self.window is not None:
            x = average_windows(features, self.window).flatten(2).transpose(1, 2)  # a vector for each window
            return self.drop(self.act(self.hidden(self.norm(x))).mean(1))
        x = self.norm(pool_features(features, self.pooling))
        return self.drop(self.act(self.hidden(x)))


class CrossAttention(nn.Module):
    """Queries that look at tokens; the queries are not projected back, as in V-JEPA 2's probe."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Maps (B, Q, dim) and (B, N, dim) to (B, Q, dim)."""
        q = self.q(queries).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return attend(q, k, v, layout="BMHK").flatten(-2)


class AttentivePoolHead(Head):
    """Pools by attention: some self-attention blocks, then one learned query that looks at all tokens.

    Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", 2024,
    arXiv:2404.08471, section 4.1 (attentive probing); with `depth` above 1 the probe of Assran et al., "V-JEPA 2",
    2025, arXiv:2506.09985; official code: facebookresearch/vjepa2, src/models/attentive_pooler.py.

    Args:
        num_features: Channels of the features.
        num_classes: Number of logits.
        num_heads: Heads of each attention.
        depth: Blocks in all; the last is the one with the query.
        mlp_ratio: Hidden channels of the MLPs over `num_features`.
        norm_eps: Epsilon of the norms.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        num_heads: int,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(num_features, num_classes)
        if num_features % num_heads:
            raise ValueError(f"head: {num_features} channels are no multiple of {num_heads} heads")
        self.query = nn.Parameter(torch.zeros(1, 1, num_features))
        self.blocks = nn.ModuleList(
            Block(
                num_features,
                attention=Attention(num_features, num_heads=num_heads),
                mlp_ratio=mlp_ratio,
                norm_eps=norm_eps,
            )
            for _ in range(depth - 1)
        )
        self.norm1 = nn.LayerNorm(num_features, eps=norm_eps)
        self.cross_attn = CrossAttention(num_features, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(num_features, eps=norm_eps)
        self.mlp = Mlp(num_features, int(num_features * mlp_ratio))
        self.drop_path = DropPath(0.0)
        nn.init.trunc_normal_(self.query, std=0.02)
        self.apply(init_transformer_weights)

    def set_numbers(self, *, num_heads: int, norm_eps: float) -> None:
        """Sets the heads of each attention and the epsilon of the norms, which the tensors of weights do not show."""
        if self.num_features % num_heads:
            raise ValueError(f"head: {self.num_features} channels are no multiple of {num_heads} heads")
        for module in self.modules():
            if isinstance(module, Attention | CrossAttention):
                module.num_heads = num_heads
            elif isinstance(module, nn.LayerNorm):
                module.eps = norm_eps

    def pool(self, features: Tensor) -> Tensor:
        """Pools the features; (B, C, T, H, W) or (B, N, C) to (B, C)."""
        tokens = features.flatten(2).transpose(1, 2) if features.dim() == 5 else features
        for block in self.blocks:
            tokens = block(tokens)
        query = self.query.repeat(tokens.shape[0], 1, 1)  # a view of a parameter confuses torch's FlopCounterMode
        query = query + self.cross_attn(query, self.norm1(tokens))
        return (query + self.drop_path(self.mlp(self.norm2(query))))[:, 0]


class MeanQueryHead(Head):
    """Pools by attention: the mean of all tokens is the query that looks at them (InternVideo2, CoCa).

    Queries, keys and values have norms of their own.

    Args:
        in_features: Channels of the features.
        num_classes: Number of logits.
        num_heads: Heads of the attention.
        out_features: Channels that the attention returns and the classifier sees.
        extra_mlp: Whether a norm and an MLP are added to the pooled vector (attentive probing).
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        num_heads: int,
        out_features: int,
        extra_mlp: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(out_features, num_classes)
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(in_features) for _ in range(3))
        self.attn = QueryAttention(in_features, num_heads=num_heads, out_dim=out_features)
        self.mlp: nn.Sequential | None = None
        if extra_mlp:
            self.mlp = nn.Sequential(nn.LayerNorm(out_features), Mlp(out_features, 4 * out_features))
        self.norm = nn.LayerNorm(out_features)
        self.drop = nn.Dropout(drop_rate)

    def pool(self, features: Tensor) -> Tensor:
        """Pools the features; (B, C, T, H, W) or (B, N, C) to (B, out_features)."""
        tokens = features.flatten(2).transpose(1, 2) if features.dim() == 5 else features
        query = self.norm_q(tokens.mean(1, keepdim=True))
        x = self.attn(query, self.norm_k(tokens), self.norm_v(tokens))[:, 0]
        return self.drop(self.norm(x if self.mlp is None else x + self.mlp(x)))


class NamedHeads(nn.Module):
    """Several heads over the same features, such as the verb and the noun of EPIC-Kitchens.

    Args:
        heads: Each head under its name.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    def forward(self, features: Tensor, *, pre_logits: bool = False) -> dict[str, Tensor]:
        """Returns what each head returns, by name."""
        return {name: head(features, pre_logits=pre_logits) for name, head in self.heads.items()}
