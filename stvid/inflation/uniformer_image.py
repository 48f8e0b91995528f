"""The image UniFormer, the 2D parent of the video one, which no library has.

Li et al., "UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning", ICLR 2022,
arXiv:2201.04676; official code: Sense-X/UniFormer, image_classification/models/uniformer.py (`uniformer_small` and
`uniformer_base`; the variants with a convolutional stem have no video model).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stvid.models.blocks import Attention, Mlp

__all__ = ["UniFormerImage"]

BLOCK_NORM_EPS = 1e-6  # epsilon of the global blocks' LayerNorms; patch embeddings have 1e-5 (official code)


class UniFormerImage(nn.Module):
    """The image UniFormer, which no library has.

    Its blocks are those of `stvid.models.families.uniformer`, with kernels in space alone.

    Args:
        depth: Blocks of the four stages.
        embed_dim: Channels of the four stages.
        in_chans: Channels of the image.
        num_heads: Heads of stages 3 and 4.
        mlp_ratio: Hidden channels of the MLPs over `embed_dim`.
        num_classes: Number of logits; 0 returns the pooled features.
    """

    def __init__(
        self,
        *,
        depth: Sequence[int],
        embed_dim: Sequence[int],
        in_chans: int = 3,
        num_heads: Sequence[int],
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        for stage in range(4):
            kernel = 2 if stage else 4
            self.add_module(f"patch_embed{stage + 1}", _PatchEmbed(in_chans, embed_dim[stage], kernel))
            in_chans = embed_dim[stage]
            blocks = (
                _LocalBlock(in_chans, mlp_ratio)
                if stage < 2
                else _GlobalBlock(in_chans, num_heads[stage - 2], mlp_ratio)
                for _ in range(depth[stage])
            )
            self.add_module(f"blocks{stage + 1}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(in_chans)
        self.head = nn.Linear(in_chans, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_chans, H, W) to logits."""
        for stage in range(1, 5):
            x = self.get_submodule(f"blocks{stage}")(self.get_submodule(f"patch_embed{stage}")(x))
        return self.head(self.norm(x).mean((2, 3)))


class _PatchEmbed(nn.Module):
    def __init__(self, in_chans: int, dim: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride=kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _LocalBlock(nn.Module):
    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Conv2d(dim, hidden, 1), "fc2": nn.Conv2d(hidden, dim, 1)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class _GlobalBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS), nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.attn = Attention(dim, num_heads=num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).view(x.shape)
