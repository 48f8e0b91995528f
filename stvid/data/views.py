"""Which views of a video are averaged: temporal clips x spatial crops.

Papers write a test protocol as two numbers, as in "4x3" or "10x3": clips spread over the video, times crops of each
frame. The views of a video are ordered clip by clip: view ``v`` is crop ``v % crops`` of clip ``v // crops``.

What papers use (for Kinetics unless said otherwise; Something-Something is sampled by segments):

- 10x3: SlowFast (arXiv:1812.03982, section 4, "Inference"), X3D (arXiv:2004.04730, which also reports 10x1), and
  Non-local in SlowFast's code (the paper, arXiv:1711.07971, scores 10 clips fully convolutionally).
- 5x1: MViT (arXiv:2104.11227). 5x3, and 2x3 for Something-Something: VideoMAE (arXiv:2203.12602).
- 4x3: ViViT (arXiv:2103.15691), Video Swin (arXiv:2106.13230). 4x1: UniFormer (arXiv:2201.04676, table 1).
- 1x3: TimeSformer (arXiv:2102.05095), X-ViT (arXiv:2106.05968), and for Something-Something Video Swin and UniFormer.
- 1x1 and 2x3 of segments: TSM (arXiv:1811.08383). 25 single frames x 10 crops: TSN (arXiv:1608.00859), which is 1x10
  with 25 frames sampled by segments.
- I3D (arXiv:1705.07750) scores the whole video in one pass: 1x1 with as many frames as that takes.

Dense clips go from the first to the last possible place, segment clips as in `stvid.data.sampling.segment_shifts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stvid.data.layout import CROP_NAMES, view_layout
from stvid.errors import ConfigError
from stvid.protocol import parse_views

__all__ = ["USUAL_VIEWS", "ViewPlan", "affordable_views"]

USUAL_VIEWS = ("1x1", "1x3", "4x1", "4x3", "5x1", "5x3", "10x1", "10x3")
"""Protocols of published tables, of which `affordable_views` chooses."""


def affordable_views(views: str, sampling: str) -> tuple[str, ...]:
    """Returns the usual protocols that one pass over these views gives nearly for nothing.

    First those that are part of the views, then, in the order of `USUAL_VIEWS`, each of no more clips and crops while
    the further views are at most a quarter of those asked for: 10x3 gives 4x1, 4x3 and 10x1 free, and 1x1, 1x3 and 5x1
    for 6 views more.

    Args:
        views: The views that are evaluated, as in ``10x3``.
        sampling: ``dense`` or ``segment``.
    """
    clips, crops = parse_views(views)
    smaller = [
        other
        for other in USUAL_VIEWS
        if other != f"{clips}x{crops}" and parse_views(other)[0] <= clips and parse_views(other)[1] <= crops
    ]

    def total(others: Sequence[str]) -> int:
        return len(view_layout([views, *others], sampling).views)

    chosen = [other for other in smaller if total([other]) == clips * crops]
    for other in smaller:
        if other not in chosen and total([*chosen, other]) <= clips * crops * 5 // 4:
            chosen.append(other)
    return tuple(other for other in smaller if other in chosen)


@dataclass(frozen=True)
class ViewPlan:
    """Temporal clips x spatial crops.

    Attributes:
        clips: Clips spread evenly over the video.
        crops: Crops of each frame: 1 (centre), 3 (along the long side), 5 (corners and centre) or 10 (those and
            their mirror images).

    Raises:
        ConfigError: If a number is not usable.
    """

    clips: int
    crops: int

    def __post_init__(self) -> None:
        if isinstance(self.clips, bool) or not isinstance(self.clips, int) or self.clips < 1:
            raise ConfigError(f"views: {self.clips!r} temporal clips; write a positive whole number, as in 4x3")
        if self.crops not in CROP_NAMES:
            raise ConfigError(f"views {self.clips}x{self.crops}: spatial crops are 1, 3, 5 or 10, not {self.crops}")

    @classmethod
    def parse(cls, views: str | ViewPlan) -> ViewPlan:
        """Reads ``"4x3"``; returns a ViewPlan as it is.

        Raises:
            ConfigError: If the text is not two positive numbers joined by ``x``, or the number of crops is unknown.
        """
        return views if isinstance(views, ViewPlan) else cls(*parse_views(views))

    @property
    def num_views(self) -> int:
        """How many times the model runs on each video."""
        return self.clips * self.crops

    @property
    def names(self) -> tuple[str, ...]:
        """One name a view, in the order of the logits: ``"clip 1 of 4, centre"``."""
        return tuple(
            f"clip {clip + 1} of {self.clips}, {crop}" for clip in range(self.clips) for crop in CROP_NAMES[self.crops]
        )

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"
