"""MixUp and CutMix of a batch, and the soft targets that go with them.

MixUp (Zhang et al. 2018, arXiv:1710.09412) blends two clips; CutMix (Yun et al. 2019, arXiv:1905.04899) pastes a box of
one clip, the same in all its frames, into another. The targets are blended in the same shares. One share and one box
are drawn a batch, as in timm (``timm/data/mixup.py``, mode "batch") and PySlowFast (``datasets/mixup.py``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import one_hot

from stvid.config import AugmentConfig
from stvid.errors import ConfigError

__all__ = ["Mixer"]


class Mixer:
    """Mixes the clips of a batch with each other and makes soft targets.

    With `mixup` and `cutmix` both 0 the clips pass unchanged and only the targets are made.

    Args:
        num_classes: Number of classes K.
        augment: Gives `mixup`, `cutmix`, `mix_prob`, `mix_switch` and `label_smoothing`.
        multilabel: Whether targets are multi-hot (B, K) instead of class ids (B,).

    Raises:
        ConfigError: If one of these values is out of its range.
    """

    def __init__(self, num_classes: int, augment: AugmentConfig, *, multilabel: bool = False) -> None:
        for field in ("mixup", "cutmix"):
            if not getattr(augment, field) >= 0:
                raise ConfigError(f"augment.{field}: {getattr(augment, field)!r} is not 0 or more")
        for field in ("mix_prob", "mix_switch"):
            if not 0 <= getattr(augment, field) <= 1:
                raise ConfigError(f"augment.{field}: {getattr(augment, field)!r} is not a probability (0 to 1)")
        if not 0 <= augment.label_smoothing < 1:
            raise ConfigError(f"augment.label_smoothing: {augment.label_smoothing!r} is not in 0 <= smoothing < 1")
        self.num_classes = num_classes
        self.augment = augment
        self.multilabel = multilabel

    def __call__(
        self, clips: torch.Tensor, targets: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes one batch.

        Args:
            clips: Float (B, C, T, H, W). Not changed.
            targets: Class ids, int64 (B,); with `multilabel` multi-hot, float (B, K).
            generator: Source of all random choices.

        Returns:
            The clips, and the soft targets, float (B, K).

        Raises:
            ValueError: If the clips are not floats, or the targets do not have these shapes.
        """
        expected = (len(clips), self.num_classes) if self.multilabel else (len(clips),)
        if not clips.is_floating_point() or clips.ndim != 5 or tuple(targets.shape) != expected:
            raise ValueError(
                f"expected float clips (B, C, T, H, W) and targets {expected}, "
                f"got {clips.dtype} {tuple(clips.shape)} and {tuple(targets.shape)}"
            )
        soft = self.soft_targets(targets)
        augment = self.augment
        if not (augment.mixup > 0 or augment.cutmix > 0) or generator.random() >= augment.mix_prob:
            return clips, soft
        cut = augment.cutmix > 0 and (augment.mixup == 0 or generator.random() < augment.mix_switch)
        alpha = augment.cutmix if cut else augment.mixup
        kept = float(generator.beta(alpha, alpha))
        partner = torch.from_numpy(generator.permutation(len(clips))).to(clips.device)
        if cut:
            top, bottom, left, right = _cut_box(clips.shape[-2], clips.shape[-1], 1.0 - kept, generator)
            clips = clips.clone()
            clips[..., top:bottom, left:right] = clips[partner, ..., top:bottom, left:right]
            # The box may reach over the edge and is made of whole pixels: the targets follow its true area.
            kept = 1.0 - (bottom - top) * (right - left) / (clips.shape[-2] * clips.shape[-1])
        else:
            clips = torch.lerp(clips[partner], clips, kept)
        return clips, torch.lerp(soft[partner], soft, kept)

    def soft_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns smoothed targets: s/K where a class is absent, 1 - s + s/K where it is present (timm's rule).

        Args:
            targets: Class ids, int64 (B,); with `multilabel` multi-hot, float (B, K).

        Returns:
            Float (B, K).
        """
        hard = targets if self.multilabel else one_hot(targets, self.num_classes)
        smoothing = self.augment.label_smoothing
        return hard.to(torch.float32) * (1.0 - smoothing) + smoothing / self.num_classes


def _cut_box(height: int, width: int, share: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws top, bottom, left and right of a box of the frame's aspect that is centred anywhere in the frame.

    It has `share` of the area where it does not reach over the edge (Yun 2019, section 3.1).
    """
    half_height = int(height * math.sqrt(share)) // 2
    half_width = int(width * math.sqrt(share)) // 2
    y, x = int(generator.integers(height)), int(generator.integers(width))
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)
