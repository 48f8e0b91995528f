"""The non-local block, which several families of ResNets hook in: attention over all positions of a clip.

Wang et al., "Non-local Neural Networks", CVPR 2018, arXiv:1711.07971; official code: facebookresearch/SlowFast,
slowfast/models/nonlocal_helper.py. That of mmaction2 (`NonLocalNd` of mmcv) and of TSM differ in details, which are
arguments here.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.attention import attend

__all__ = ["NONLOCAL_STD", "NonLocal", "NonlocalMode", "NonlocalPool"]

NonlocalMode = Literal["softmax", "dot_product", "gaussian"]
NonlocalPool = Literal["before", "after", "none"]
NONLOCAL_STD = 0.01  # standard deviation of the initial weights in non-local blocks (SlowFast)


class NonLocal(nn.Module):
    """Non-local block: every position sees all others, through half the channels (section 3.3).

    Args:
        dim: Channels.
        mode: ``softmax`` (embedded Gaussian: scaled dot-product attention of one head), ``dot_product``, which
            divides by the number of positions instead, or ``gaussian``, which compares the input itself, unscaled.
        pool: Whether keys and values are pooled by 2x2 in space ``before`` their projections (SlowFast), ``after`` them
            (mmaction2), or not (``none``).
        scale: Whether ``softmax`` scales the scores.
        bias: Whether the last convolution has a bias, in front of its norm.
    """

    norm_neighbours = (("out", "norm"),)
    axes = "clip"

    def __init__(
        self,
        dim: int,
        *,
        mode: NonlocalMode = "softmax",
        pool: NonlocalPool = "before",
        scale: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if mode not in get_args(NonlocalMode):
            raise ValueError(f"nonlocal_mode {mode!r}: must be softmax, dot_product or gaussian")
        if pool not in get_args(NonlocalPool):
            raise ValueError(f"nonlocal_pool {pool!r}: must be before, after or none")
        self.mode, self.pool, self.scale = mode, pool, scale
        self.theta = nn.Identity() if mode == "gaussian" else nn.Conv3d(dim, dim // 2, 1)
        self.phi = nn.Identity() if mode == "gaussian" else nn.Conv3d(dim, dim // 2, 1)
        self.g = nn.Conv3d(dim, dim // 2, 1)
        self.out = nn.Conv3d(dim // 2, dim, 1, bias=bias)
        self.norm = nn.BatchNorm3d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, dim, T, H, W) to the same shape."""
        pooled = F.max_pool3d(x, (1, 2, 2)) if self.pool == "before" else x
        keys, values = self.phi(pooled), self.g(pooled)
        if self.pool == "after":
            keys, values = F.max_pool3d(keys, (1, 2, 2)), F.max_pool3d(values, (1, 2, 2))
        q, k, v = (y.flatten(2).transpose(1, 2) for y in (self.theta(x), keys, values))
        if self.mode == "dot_product":
            mixed = q @ (k.transpose(1, 2) @ v) / k.shape[1]
        else:
            scale = None if self.scale and self.mode == "softmax" else 1.0
            mixed = attend(q[:, None], k[:, None], v[:, None], scale=scale, source=(self, self.axes))[:, 0]
        mixed = mixed.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.norm(self.out(mixed))

    def start_as_identity(self) -> None:
        """Starts the block at zero, with small weights inside (SlowFast, slowfast/utils/weight_init_helper.py)."""
        nn.init.zeros_(self.norm.weight)
        for conv in (self.theta, self.phi, self.g, self.out):
            if isinstance(conv, nn.Conv3d):
                nn.init.normal_(conv.weight, std=NONLOCAL_STD)
