"""Which views of a video are averaged: temporal clips x spatial crops.

Papers write a test protocol as two numbers, as in "4x3" or "10x3": clips spread over the video, times crops of each
frame (SlowFast, arXiv:1812.03982, section 4, "Inference"; UniFormer, arXiv:2201.04676, table 1). The views of a video
are ordered clip by clip: view ``v`` is crop ``v % crops`` of clip ``v // crops``.
"""

from __future__ import annotations

from dataclasses import dataclass

from stvid.errors import ConfigError
from stvid.protocol import parse_views

__all__ = ["ViewPlan"]

_CROP_NAMES: dict[int, tuple[str, ...]] = {
    1: ("centre",),
    3: ("left/top", "centre", "right/bottom"),  # along the long side
    5: ("top left", "top right", "bottom left", "bottom right", "centre"),
}
_CROP_NAMES[10] = _CROP_NAMES[5] + tuple(f"{name}, mirrored" for name in _CROP_NAMES[5])


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
        if self.crops not in _CROP_NAMES:
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
            f"clip {clip + 1} of {self.clips}, {crop}" for clip in range(self.clips) for crop in _CROP_NAMES[self.crops]
        )

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"
