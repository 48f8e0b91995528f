"""The means of an epoch over its clips, which survive a stop, and a look at weights before they are saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

__all__ = ["SUMS_KEY", "EpochSums", "broken_weight", "gathered"]

T = TypeVar("T")

SUMS_KEY = "stvid_epoch"
"""Where a checkpoint holds the sums of the epoch that it was written in."""

LARGEST = 1e18  # the square of a larger number is infinite in float32, and so is every norm


@dataclass
class EpochSums:
    """Sums of the values of an epoch, each times its clips, and how many clips there were.

    Lightning's own sums are not in its checkpoints, so a continued epoch would have the means of its rest only.

    Attributes:
        epoch: Number of the epoch, from 0; -1 before the first value.
        sums: The sum of each name.
        clips: The number of clips of each name.
    """

    epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)

    def add(self, epoch: int, name: str, value: float, clips: int) -> None:
        """Counts the mean of some clips; the first of another epoch begins anew."""
        if epoch != self.epoch:
            self.epoch, self.sums, self.clips = epoch, {}, {}
        self.sums[name] = self.sums.get(name, 0.0) + value * clips
        self.clips[name] = self.clips.get(name, 0) + clips

    def take(self, epoch: int) -> dict[str, tuple[float, int]]:
        """Returns mean and clips of each name, and forgets them; nothing if they are of another epoch."""
        found = {name: (value / self.clips[name], self.clips[name]) for name, value in self.sums.items()}
        of_this = self.epoch == epoch
        self.epoch, self.sums, self.clips = -1, {}, {}
        return found if of_this else {}

    @classmethod
    def merged(cls, parts: Iterable[EpochSums]) -> EpochSums:
        """Returns the sums over all ranks."""
        total = cls()
        for part in parts:
            for name, value in part.sums.items():
                total.add(part.epoch, name, value / part.clips[name], part.clips[name])
        return total

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint."""
        return asdict(self)


def gathered(value: T) -> list[T]:
    """Returns the value of every rank; to be called by all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def broken_weight(checkpoint: Mapping[str, Any]) -> str | None:
    """Says which weight of a checkpoint is not finite, or too large to compute with; None if all are well.

    Args:
        checkpoint: Its ``state_dict`` and, where weights are averaged, ``current_model_state`` are looked at.
    """
    for part in ("state_dict", "current_model_state"):
        for name, value in checkpoint.get(part, {}).items():
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                continue
            largest = value.detach().abs().max().item()  # nan if there is one
            if not largest <= LARGEST:
                return f"{name} holds {largest:.3g}"
    return None
