"""From frames and a plan to a clip: the only place where clips are cut, scaled and mirrored.

A `ClipPlan` says which frames a clip shows, which part of them, and whether they are mirrored. Training, tests,
`stvid.load_clip`, the windows of a timeline and what `stvid inspect` shows differ in how they draw their plans, and in
where their `Frames` come from; the clip itself is made by `make_clip` for all of them.

Frames stay uint8 all the way and keep the memory order of the decoder (colour last, which torch calls channels_last):
resizing is fastest so, and a batch takes a quarter of the memory of floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import InterpolationMode

from stvid.data.sampling import frame_grid
from stvid.errors import ConfigError, VideoError
from stvid.protocol import Protocol
from stvid.video.pixels import Box
from stvid.video.reader import VideoReader

__all__ = [
    "CROP_COUNTS",
    "ClipPlan",
    "CropBox",
    "Frames",
    "around",
    "crop_offsets",
    "cut_views",
    "decode_frames",
    "decode_scaled_frames",
    "make_clip",
    "resize_short_side",
    "scaled_frames",
    "video_grid",
    "view_plans",
    "whole_frames",
]

MAX_FRAME_BYTES = 256 * 2**20
"""Decoded frames of a test video that are held at a time before they are scaled."""

CROP_COUNTS: Final = (1, 3, 5, 10)
"""Numbers of spatial crops that are defined."""


class CropBox(NamedTuple):
    """The part of the source frame that a clip shows, in pixels of the source.

    Attributes:
        top: Distance from the frame's upper edge.
        left: Distance from the frame's left edge.
        height: Height of the part.
        width: Width of the part.
    """

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class Frames:
    """Some frames of a video, or the same part of each, to cut clips from.

    Attributes:
        images: uint8 (U, h, w, 3).
        numbers: Which frames of the video they are, int64 (U,), ascending.
        size: Height and width of the whole frames, after scaling if they are scaled.
        source: Height and width of the frames in the file.
        corner: Top and left of `images` within the whole frames, in pixels.
    """

    images: torch.Tensor
    numbers: np.ndarray
    size: tuple[int, int]
    source: tuple[int, int]
    corner: tuple[int, int] = (0, 0)

    def source_box(self, box: Box) -> CropBox:
        """Returns a part of the whole frames in pixels of the source."""
        top, left, height, width = box
        scale_y, scale_x = self.source[0] / self.size[0], self.source[1] / self.size[1]
        return CropBox(top * scale_y, left * scale_x, height * scale_y, width * scale_x)


@dataclass(frozen=True)
class ClipPlan:
    """A description of one clip: its frames, the part that it shows of them, and whether it is mirrored.

    Attributes:
        indices: Frame of the video for each frame of the clip, int64 (T,).
        box: Top, left, height and width of the part that is shown, in pixels of the whole `Frames`.
        flipped: Whether it is mirrored left to right.
    """

    indices: np.ndarray
    box: Box
    flipped: bool = False


def make_clip(frames: Frames, plan: ClipPlan, size: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Makes a clip: takes its frames, cuts its part out, scales it to a square if it has another size, and mirrors it.

    Args:
        frames: All frames and all pixels that the plan names must be among them. They are not changed.
        plan: The description of the clip.
        size: Height and width of the clip in pixels.
        out: Where to write it, uint8 (T, size, size, 3); None takes new memory, or that of `frames` where it can.

    Returns:
        uint8 (T, 3, size, size), with the colour last in memory.
    """
    top, left, height, width = plan.box
    top, left = top - frames.corner[0], left - frames.corner[1]
    part = frames.images[:, top : top + height, left : left + width]
    places = np.searchsorted(frames.numbers, plan.indices)
    if out is not None and (height, width) == (size, size):  # copied once, straight to where it is to be
        for time, place in enumerate(places.tolist()):
            out[time] = part[place].flip(1) if plan.flipped else part[place]
        return out.permute(0, 3, 1, 2)
    if not np.array_equal(places, np.arange(len(part))):
        part = part[torch.from_numpy(places)]
    clip = _resize(part.permute(0, 3, 1, 2), size, size)
    if plan.flipped:
        clip = clip.flip(-1)
    return clip if out is None else out.copy_(clip.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# --- plans of test views ----------------------------------------------------------------------------------------------


def crop_offsets(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Returns the upper left corner of each square crop of a scaled frame.

    Args:
        height: Height of the frame, in pixels.
        width: Width of the frame, in pixels.
        size: Height and width of the crops.
        num_crops: 1: the centre. 3: left, centre and right, or top, centre and bottom, along the long side (PySlowFast,
            ``datasets/transform.py``, ``uniform_crop``). 5: upper left, upper right, lower left, lower right, centre.
            10: these five, then the same again, which are to be mirrored.

    Raises:
        ConfigError: If `num_crops` is none of `CROP_COUNTS`.
    """
    bottom, right = height - size, width - size
    # The centre is rounded up, as in PySlowFast.
    middle = (math.ceil(bottom / 2), math.ceil(right / 2))
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), middle]
    if num_crops == 1:
        return [middle]
    if num_crops == 3 and height > width:
        return [(0, middle[1]), middle, (bottom, middle[1])]
    if num_crops == 3:
        return [(middle[0], 0), middle, (middle[0], right)]
    if num_crops == 5:
        return corners
    if num_crops == 10:
        return corners + corners
    raise ConfigError(f"views: {num_crops} crops of a clip are not defined; choose 1, 3, 5 or 10")


def view_plans(
    indices: np.ndarray, views: Sequence[tuple[int, int, int]], *, frame_size: tuple[int, int], size: int
) -> list[ClipPlan]:
    """Returns the plans of test views.

    Args:
        indices: Frames of each clip, int64 (clips, T).
        views: Clip, number of crops, and crop of each view, as `stvid.data.layout.ViewLayout` has them.
        frame_size: Height and width of the scaled frames.
        size: Height and width of the crops.

    Raises:
        ConfigError: If the number of crops is not defined.
    """
    plans = []
    for clip, count, crop in views:
        top, left = crop_offsets(*frame_size, size, count)[crop]
        plans.append(ClipPlan(indices[clip], (top, left, size, size), flipped=crop >= 5))
    return plans


def cut_views(frames: Frames, plans: Sequence[ClipPlan], size: int) -> torch.Tensor:
    """Makes the clips of several plans of equal length: uint8 (V, C, T, size, size), with the colour last in memory."""
    length = len(plans[0].indices)
    views = torch.empty(len(plans), length, size, size, 3, dtype=torch.uint8)
    for plan, view in zip(plans, views, strict=True):
        make_clip(frames, plan, size, out=view)
    return views.permute(0, 4, 1, 2, 3)


# --- frames -----------------------------------------------------------------------------------------------------------


def _channels_second(frames: torch.Tensor) -> torch.Tensor:
    """Returns a (T, C, H, W) view of uint8 frames given as (T, H, W, 3) or (T, 3, H, W)."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or 3 not in (frames.shape[-1], frames.shape[1]):
        raise ValueError(f"frames must be uint8 (T, H, W, 3) or (T, 3, H, W), not {frames.dtype} {tuple(frames.shape)}")
    return frames.permute(0, 3, 1, 2) if frames.shape[-1] == 3 else frames


def _resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scales (T, C, H, W) frames, or returns them as they are if they have that size already."""
    if frames.shape[-2:] == (height, width):
        return frames
    # Dense colour-last memory selects torch's native uint8 kernel; half the time of a strided view.
    frames = frames.contiguous(memory_format=torch.channels_last)
    return F.resize(frames, [height, width], interpolation=InterpolationMode.BILINEAR, antialias=True)


def resize_short_side(frames: torch.Tensor, short_side: int) -> torch.Tensor:
    """Scales frames so that the short side has `short_side` pixels; the long one is rounded down, as in PySlowFast.

    Args:
        frames: uint8 (T, H, W, 3) or (T, 3, H, W).
        short_side: In pixels.

    Returns:
        uint8 (T, 3, H', W'); each frame is scaled by itself.
    """
    frames = _channels_second(frames)
    height, width = frames.shape[-2:]
    if height <= width:
        return _resize(frames, short_side, int(short_side * width / height))
    return _resize(frames, int(short_side * height / width), short_side)


def whole_frames(images: torch.Tensor) -> Frames:
    """Returns frames that are in memory, numbered from 0: uint8 (T, H, W, 3) or (T, 3, H, W).

    Raises:
        ValueError: If they have another type or shape.
    """
    images = _channels_second(images).permute(0, 2, 3, 1)
    size = (images.shape[1], images.shape[2])
    return Frames(images, np.arange(len(images)), size, size)


def scaled_frames(images: torch.Tensor, short_side: int) -> Frames:
    """Returns frames that are in memory, numbered from 0, with their short side scaled to `short_side` pixels.

    Raises:
        ValueError: If they are not uint8 (T, H, W, 3) or (T, 3, H, W).
    """
    source = whole_frames(images).size
    scaled = resize_short_side(images, short_side).permute(0, 2, 3, 1).contiguous()
    return Frames(scaled, np.arange(len(scaled)), (scaled.shape[1], scaled.shape[2]), source)


def video_grid(reader: VideoReader, protocol: Protocol, start: float | None, end: float | None) -> np.ndarray:
    """Returns the frames of a video that clips are drawn from, see `stvid.data.sampling.frame_grid`.

    Args:
        reader: An open video.
        protocol: Its `fps` is used.
        start: Where the part to use begins, in seconds from the first frame: the clock of a file may begin anywhere (a
            transport stream often at 1.4 s).
        end: Where it ends (not included), in seconds from the first frame.

    Raises:
        VideoError: If there is no frame in the part; it is a fault of this video.
    """
    times = reader.timestamps
    try:
        return frame_grid(times - times[:1], fps=protocol.fps, start=start, end=end)
    except ValueError as error:
        raise VideoError(reader.source_name, str(error)) from error


def around(boxes: Sequence[Box]) -> Box:
    """Returns the smallest box that holds all of them."""
    top, left = (min(box[side] for box in boxes) for side in (0, 1))
    bottom, right = (max(box[side] + box[side + 2] for box in boxes) for side in (0, 1))
    return top, left, bottom - top, right - left


def decode_frames(reader: VideoReader, indices: np.ndarray, box: Box) -> Frames:
    """Decodes a part of the frames of several clips, each frame only once.

    Args:
        reader: An open video.
        indices: Frames of the clips, of any shape.
        box: Top, left, height and width of the part that is wanted.
    """
    numbers = np.unique(indices)
    size = (reader.height, reader.width)
    return Frames(reader.get_batch(numbers, crop=box), numbers, size, size, corner=(box[0], box[1]))


def decode_scaled_frames(reader: VideoReader, indices: np.ndarray, short_side: int) -> Frames:
    """Decodes and scales the frames of several clips, each frame once, a bounded number of large ones at a time.

    Args:
        reader: An open video.
        indices: Frames of the clips, of any shape.
        short_side: Short side of the scaled frames, in pixels.
    """
    numbers = np.unique(indices)
    at_a_time = max(1, MAX_FRAME_BYTES // (reader.height * reader.width * 3))
    parts: list[Frames] = []
    for start in range(0, len(numbers), at_a_time):
        parts.append(scaled_frames(reader.get_batch(numbers[start : start + at_a_time]), short_side))
    images = parts[0].images if len(parts) == 1 else torch.cat([part.images for part in parts])
    return Frames(images, numbers, parts[0].size, parts[0].source)
