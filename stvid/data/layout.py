"""Which views of a video several protocols need together, each different one once.

Evaluation papers write their views as temporal clips x spatial crops. Some protocols share views: the clips of 4x3
begin at 0, 1/3, 2/3 and 1 of the room that a video leaves, which are clips 1, 4, 7 and 10 of 10x3, and the centre crop
is one of three. A view is known by the place of its clip, an exact fraction, and the name of its crop, so what two
protocols share does not depend on the video, and the union of any set of protocols has the same shape for all videos.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from stvid.data.sampling import sample_views, segment_shifts
from stvid.protocol import Protocol, parse_views

__all__ = ["CROP_NAMES", "ViewLayout", "view_layout"]

CROP_NAMES: dict[int, tuple[str, ...]] = {
    1: ("centre",),
    3: ("left/top", "centre", "right/bottom"),  # along the long side
    5: ("top left", "top right", "bottom left", "bottom right", "centre"),
}
CROP_NAMES[10] = CROP_NAMES[5] + tuple(f"{name}, mirrored" for name in CROP_NAMES[5])
"""Names of the crops that `stvid.data.clips.crop_offsets` places, in its order."""


@dataclass(frozen=True)
class ViewLayout:
    """The views of several protocols; those of the first come first, clip by clip.

    Attributes:
        protocols: Temporal clips x spatial crops of each, as in ``10x3``.
        clips: Where each different clip comes from: (k, n) is clip k of n that are spread over the video.
        views: (clip, number of crops, crop) of each different view: the crop is at ``crop_offsets(..., number)[crop]``.
        rows: The rows of `views` that make up each protocol, clip by clip.
    """

    protocols: tuple[str, ...]
    clips: tuple[tuple[int, int], ...]
    views: tuple[tuple[int, int, int], ...]
    rows: dict[str, tuple[int, ...]]

    def indices(self, grid: np.ndarray, protocol: Protocol) -> np.ndarray:
        """Returns the source frames of each clip, int64 (clips, frames).

        Args:
            grid: The grid that `stvid.data.sampling.frame_grid` returned.
            protocol: Its `sampling`, `frames` and `stride` are used.
        """
        spread = {n: sample_views(grid, protocol, num_clips=n) for n in {n for _, n in self.clips}}
        return np.stack([spread[n][k] for k, n in self.clips])


def _places(num_clips: int, sampling: str) -> list[Fraction | str]:
    """Where clips lie; equal places give equal clips of every video."""
    if sampling == "segment":
        return list(segment_shifts(num_clips))
    # A single dense clip begins at half the room rounded down, the middle one of an odd number at half rounded up.
    return ["centre"] if num_clips == 1 else [Fraction(k, num_clips - 1) for k in range(num_clips)]


@functools.lru_cache(maxsize=64)
def _layout(protocols: tuple[str, ...], sampling: str) -> ViewLayout:
    clips: dict[Fraction | str, tuple[int, int]] = {}
    wanted: dict[tuple[Fraction | str, str], None] = {}  # in order
    for views in protocols:
        num_clips, num_crops = parse_views(views)
        for k, place in enumerate(_places(num_clips, sampling)):
            clips.setdefault(place, (k, num_clips))
            for name in CROP_NAMES[num_crops]:
                wanted.setdefault((place, name))
    number_of = {place: number for number, place in enumerate(clips)}
    main = int(np.prod(parse_views(protocols[0])))
    wanted_keys = list(wanted)
    wanted_keys[main:] = sorted(wanted_keys[main:], key=lambda key: number_of[key[0]])
    views_of_clip = {place: {name for other, name in wanted if other == place} for place in clips}
    found = []
    for place, name in wanted_keys:
        # One number of crops for all of a clip, unless three along the long side and corners are wanted.
        needed = views_of_clip[place]
        counts = [count for count, names in CROP_NAMES.items() if needed <= set(names)] or [
            count for count, names in CROP_NAMES.items() if name in names and count in (3, 10)
        ]
        found.append((number_of[place], counts[0], CROP_NAMES[counts[0]].index(name)))
    place_in = {key: row for row, key in enumerate(wanted_keys)}
    rows = {
        views: tuple(
            place_in[place, name]
            for place in _places(parse_views(views)[0], sampling)
            for name in CROP_NAMES[parse_views(views)[1]]
        )
        for views in protocols
    }
    return ViewLayout(protocols, tuple(clips.values()), tuple(found), rows)


def view_layout(protocols: Sequence[str], sampling: str) -> ViewLayout:
    """Returns the union of the views of some protocols.

    Args:
        protocols: Temporal clips x spatial crops of each, as in ``10x3``; one that comes again is ignored.
        sampling: ``dense`` or ``segment``.

    Raises:
        ConfigError: If the views cannot be read.
        ValueError: If there is no protocol.
    """
    if not protocols:
        raise ValueError("no protocol")
    pairs = [parse_views(views) for views in protocols]
    return _layout(tuple(dict.fromkeys(f"{clips}x{crops}" for clips, crops in pairs)), sampling)
