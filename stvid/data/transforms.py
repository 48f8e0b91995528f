"""The random changes that training makes to a clip, and normalisation; every frame of a clip is treated alike.

The clips themselves are made by `stvid.data.clips`. They stay uint8 in the order red, green, blue until `model_input`
makes floats on the device, in the order of channels that the protocol asks for; `shown_pixels` is its inverse.

Training cuts a box out of the source before it is scaled, mirrors, applies RandAugment, then erases. The order is
timm's. PySlowFast and UniFormer (``datasets/kinetics.py``, ``_aug_frame``) apply RandAugment to the whole decoded
frame before cutting, which costs more and differs only in how much of a filled border remains in sight.

All randomness comes from the generator that is passed in, so a sample is a pure function of that generator's seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import InterpolationMode

from stvid.config import AugmentConfig
from stvid.data.clips import ClipPlan, CropBox, Frames, make_clip, whole_frames
from stvid.errors import ConfigError, nearest
from stvid.protocol import Protocol

__all__ = ["RANDAUGMENT_OPS", "CropBox", "TrainTransform", "model_input", "normalize", "shown_pixels"]


# --- RandAugment ------------------------------------------------------------------------------------------------------
# Cubuk et al. 2020 (arXiv:1909.13719), with the "increasing" set of operations and ranges of timm
# (timm/data/auto_augment.py, _RAND_INCREASING_TRANSFORMS), which PySlowFast (MViT) and UniFormer use on clips as
# "rand-m7-n4-mstd0.5-inc1". `level` is the magnitude / 10, in 0..1; `sign` is -1 or 1. No operation mirrors.


def _warp(frames: torch.Tensor, fill: Sequence[float], *, angle: float, shear: tuple[float, float]) -> torch.Tensor:
    # PIL shears around the upper left corner and rotates around the centre, and so does torchvision's own RandAugment.
    return F.affine(
        frames,
        angle=angle,
        translate=[0, 0],
        scale=1.0,
        shear=[math.degrees(math.atan(value)) for value in shear],
        interpolation=InterpolationMode.BILINEAR,
        fill=list(fill),
        center=[0.0, 0.0] if any(shear) else None,
    )


def _translate(frames: torch.Tensor, fill: Sequence[float], *, down: int, right: int) -> torch.Tensor:
    # By whole pixels, where timm interpolates between them: a copy, no warp.
    height, width = frames.shape[-2:]
    background = torch.tensor(fill, dtype=frames.dtype).view(1, 3, 1, 1)
    moved = torch.empty_like(frames).copy_(background)
    moved[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = frames[
        ..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved


def _planar(operation: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    # Reductions over height and width want each colour as a plane of its own.
    return operation(frames.contiguous()).contiguous(memory_format=torch.channels_last)


def _enhance(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * 0.9 * level)


def _solarize(frames: torch.Tensor, threshold: int) -> torch.Tensor:
    if threshold > 255:  # torch would compare with the number modulo 256
        return frames
    # 255 - value is value ^ 255.
    return frames ^ (frames >= threshold).to(torch.uint8).mul_(255)


def _solarize_add(frames: torch.Tensor, amount: int) -> torch.Tensor:
    return frames + (frames < 128).to(torch.uint8).mul_(amount)  # at most 127 + 110: cannot overflow


_Op = Callable[[torch.Tensor, float, int, Sequence[float]], torch.Tensor]

_OPS: Final[Mapping[str, _Op]] = {
    "autocontrast": lambda frames, level, sign, fill: _planar(F.autocontrast, frames),
    "equalize": lambda frames, level, sign, fill: _planar(F.equalize, frames),
    "invert": lambda frames, level, sign, fill: F.invert(frames),
    "rotate": lambda frames, level, sign, fill: _warp(frames, fill, angle=30 * level * sign, shear=(0.0, 0.0)),
    # timm's range ends at 0 bits, an all-black clip at magnitude 10; one bit is the least that is left here.
    "posterize": lambda frames, level, sign, fill: F.posterize(frames, max(1, 4 - int(4 * level))),
    "solarize": lambda frames, level, sign, fill: _solarize(frames, 256 - int(256 * level)),
    "solarize_add": lambda frames, level, sign, fill: _solarize_add(frames, int(110 * level)),
    "color": lambda frames, level, sign, fill: F.adjust_saturation(frames, _enhance(level, sign)),
    "contrast": lambda frames, level, sign, fill: F.adjust_contrast(frames, _enhance(level, sign)),
    "brightness": lambda frames, level, sign, fill: F.adjust_brightness(frames, _enhance(level, sign)),
    "sharpness": lambda frames, level, sign, fill: F.adjust_sharpness(frames, _enhance(level, sign)),
    "shear_x": lambda frames, level, sign, fill: _warp(frames, fill, angle=0.0, shear=(0.3 * level * sign, 0.0)),
    "shear_y": lambda frames, level, sign, fill: _warp(frames, fill, angle=0.0, shear=(0.0, 0.3 * level * sign)),
    "translate_x": lambda frames, level, sign, fill: _translate(
        frames, fill, down=0, right=round(0.45 * level * sign * frames.shape[-1])
    ),
    "translate_y": lambda frames, level, sign, fill: _translate(
        frames, fill, down=round(0.45 * level * sign * frames.shape[-2]), right=0
    ),
}

_COLOR_OPS: Final = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

RANDAUGMENT_OPS: Final[tuple[str, ...]] = tuple(_OPS)
"""Names of the operations that RandAugment draws from."""


# --- training ---------------------------------------------------------------------------------------------------------


def _check(condition: bool, field: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"augment.{field}: {value!r} is not {expected}")


class TrainTransform:
    """Random crop, label-aware mirroring, colour jitter, RandAugment and erasing of one clip.

    Args:
        protocol: Gives the output size, the short side of ``resize: none``, the mean colour and the noise of erasing.
        augment: The changes, and how strong they are.
        class_names: The classes in the order of their ids, for `hflip_pairs` and `hflip_keep`.

    Raises:
        ConfigError: If a value of `augment` is out of its range, or a class in `hflip_pairs` or `hflip_keep` is
            unknown or occurs twice.
    """

    def __init__(self, protocol: Protocol, augment: AugmentConfig, class_names: Sequence[str]) -> None:
        for field in ("hflip", "randaugment_prob", "erasing"):
            value = getattr(augment, field)
            _check(0 <= value <= 1, field, value, "a probability (0 to 1)")
        for field in ("scale", "erasing_scale"):
            low, high = getattr(augment, field)
            _check(0 < low <= high <= 1, field, (low, high), "a range of shares of an area (0 < low <= high <= 1)")
        _check(0 < augment.ratio[0] <= augment.ratio[1], "ratio", augment.ratio, "a range of positive numbers")
        magnitude = augment.randaugment_magnitude
        _check(0 <= magnitude <= 10, "randaugment_magnitude", magnitude, "in 0 to 10")
        _check(augment.randaugment_layers >= 0, "randaugment_layers", augment.randaugment_layers, "0 or more")
        _check(augment.randaugment_std >= 0, "randaugment_std", augment.randaugment_std, "0 or more")
        if augment.resize == "short_side_jitter":
            low, high = augment.jitter
            _check(
                protocol.crop <= low <= high, "jitter", (low, high), f"a range from protocol.crop ({protocol.crop}) up"
            )
        elif augment.resize not in ("random_resized_crop", "none"):
            _check(False, "resize", augment.resize, "random_resized_crop, short_side_jitter or none")
        _check(augment.erasing_mode in ("noise", "zeros"), "erasing_mode", augment.erasing_mode, "noise or zeros")
        self.protocol = protocol
        self.augment = augment
        self._swap, self._keep = self._flip_rules(augment, list(class_names))
        self._fill = [round(255 * value) for value in protocol.mean]

    @staticmethod
    def _flip_rules(augment: AugmentConfig, names: list[str]) -> tuple[dict[int, int], frozenset[int]]:
        ids = {name: number for number, name in enumerate(names)}
        seen: set[str] = set()

        def find(field: str, name: str) -> int:
            if name not in ids:
                raise ConfigError(
                    f"augment.{field}: {name!r} is not a class of the training videos{nearest(name, ids)}"
                )
            if name in seen:
                raise ConfigError(f"augment.{field}: {name!r} occurs twice in hflip_pairs and hflip_keep")
            seen.add(name)
            return ids[name]

        swap: dict[int, int] = {}
        for pair in augment.hflip_pairs:
            _check(len(pair) == 2, "hflip_pairs", pair, "a pair of class names")
            first, second = (find("hflip_pairs", name) for name in pair)
            swap[first], swap[second] = second, first
        return swap, frozenset(find("hflip_keep", name) for name in augment.hflip_keep)

    def __call__(
        self, images: torch.Tensor, label_ids: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, np.ndarray, CropBox, bool]:
        """Makes one training clip of all frames that are given.

        Args:
            images: Decoded frames, uint8 (T, H, W, 3) or (T, 3, H, W). They are not changed, but the result may share
                their memory.
            label_ids: Class ids of the video, int64 (any number of them).
            rng: Source of all random choices.

        Returns:
            The clip, uint8 (C, T, crop, crop); the class ids, which mirroring may have exchanged; the box of the
            source that was cut out; whether the clip was mirrored.
        """
        frames = whole_frames(images)
        plan, label_ids = self.draw_plan(frames.numbers, frames.size, label_ids, rng)
        return self.apply(frames, plan, rng), label_ids, CropBox(*plan.box), plan.flipped

    def draw_plan(
        self, indices: np.ndarray, size: tuple[int, int], label_ids: np.ndarray, rng: np.random.Generator
    ) -> tuple[ClipPlan, np.ndarray]:
        """Draws which part of the frames a clip shows, and whether it is mirrored.

        Args:
            indices: The frames of the clip, int64 (T,).
            size: Height and width of the frames of the video.
            label_ids: Class ids of the video, int64 (any number of them).
            rng: Source of the random choices; `apply` goes on with it.

        Returns:
            The plan, and the class ids, which mirroring may have exchanged.
        """
        box = self.draw_box(*size, rng)
        # The number is drawn for every class, so that hflip_keep does not change the other choices of a sample.
        flipped = bool(rng.random() < self.augment.hflip) and self._keep.isdisjoint(label_ids.tolist())
        if flipped:
            label_ids = np.array([self._swap.get(label, label) for label in label_ids.tolist()], dtype=np.int64)
        return ClipPlan(indices, box, flipped), label_ids

    def apply(self, frames: Frames, plan: ClipPlan, rng: np.random.Generator) -> torch.Tensor:
        """Makes the clip of a plan and changes its colours, places and parts: uint8 (C, T, crop, crop).

        Args:
            frames: The frames that the plan needs; not changed.
            plan: The plan that `draw_plan` drew.
            rng: Source of the random choices.
        """
        clip = make_clip(frames, plan, self.protocol.crop)
        if any(self.augment.color_jitter) and rng.random() < self.augment.color_jitter_prob:
            clip = self._jitter_colors(clip, rng)
        if self.augment.grayscale > 0 and rng.random() < self.augment.grayscale:
            gray = F.rgb_to_grayscale(clip, num_output_channels=3)
            clip = gray.contiguous(memory_format=torch.channels_last)
        if self.augment.randaugment_magnitude > 0:
            clip = self._rand_augment(clip, rng)
        if rng.random() < self.augment.erasing:
            clip = self._erase(clip, rng)
        return clip.permute(1, 0, 2, 3)

    def draw_box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws top, left, height and width of the box to cut, in whole pixels of the source."""
        augment, crop, short = self.augment, self.protocol.crop, min(height, width)
        if augment.resize == "random_resized_crop":
            box_height, box_width = self._draw_inception_size(height, width, rng)
        else:
            # To scale the short side to `target` and then cut `crop` pixels shows the same part as to cut
            # crop * short / target source pixels, but scales fewer of them.
            target = self.protocol.short_side
            if augment.resize == "short_side_jitter":
                target = round(rng.uniform(*augment.jitter))  # PySlowFast, datasets/transform.py
            box_height = box_width = min(short, max(1, round(crop * short / target)))
        top = int(rng.integers(height - box_height + 1))
        left = int(rng.integers(width - box_width + 1))
        return top, left, box_height, box_width

    def _draw_inception_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draws height and width of a box of random area and aspect (Szegedy 2015, arXiv:1409.4842, section 6)."""
        low, high = self.augment.ratio
        for _ in range(10):
            area = height * width * rng.uniform(*self.augment.scale)
            aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
            box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_width <= width and 0 < box_height <= height:
                return box_height, box_width
        # A very wide or tall frame may hold none of these: the largest box whose aspect is allowed.
        return max(1, min(height, round(width / low))), max(1, min(width, round(height * high)))

    def _jitter_colors(self, clip: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Changes brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter does."""
        *strengths, hue = self.augment.color_jitter
        amounts = [rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths]
        amounts.append(rng.uniform(-hue, hue))
        for number in rng.permutation(len(_COLOR_OPS)):
            if self.augment.color_jitter[number] > 0:
                clip = _COLOR_OPS[number](clip, amounts[number])
        return clip.contiguous(memory_format=torch.channels_last)

    def _rand_augment(self, clip: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        augment = self.augment
        for _ in range(augment.randaugment_layers):
            name = RANDAUGMENT_OPS[rng.integers(len(RANDAUGMENT_OPS))]
            magnitude = augment.randaugment_magnitude + augment.randaugment_std * rng.standard_normal()
            sign = 1 if rng.random() < 0.5 else -1
            if rng.random() < augment.randaugment_prob:
                clip = _OPS[name](clip, min(max(magnitude, 0.0), 10.0) / 10.0, sign, self._fill)
        return clip

    def _erase(self, clip: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Fills one box of all frames (Zhong 2020, arXiv:1708.04896) with noise or with the mean colour.

        The noise is N(0, 1) after normalisation, clipped to what uint8 can hold (about 2 standard deviations). The mean
        colour is within half a step of uint8 of what normalisation turns into zero.
        """
        num_frames, channels, height, width = clip.shape
        for _ in range(10):
            area = height * width * rng.uniform(*self.augment.erasing_scale)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < box_height < height and 0 < box_width < width):
                continue
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            box = (num_frames, box_height, box_width, channels)
            fill = rng.standard_normal(box, dtype=np.float32) if self.augment.erasing_mode == "noise" else np.zeros(box)
            pixels = 255 * (fill * np.array(self.protocol.std, np.float32) + np.array(self.protocol.mean, np.float32))
            colours = torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
            clip = clip.clone()  # it may be a view of the decoded frames, which other clips are cut from
            clip[..., top : top + box_height, left : left + box_width] = colours
            return clip
        return clip


# --- values ---------------------------------------------------------------------------------------------------------


def model_input(
    clips: torch.Tensor, protocol: Protocol, *, dtype: torch.dtype = torch.float32, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Makes the clips that a model takes of RGB clips: normalised, and in the protocol's order of channels.

    Every clip goes through this function on its way into a model: in training, evaluation, prediction, timelines,
    features and `stvid.load_clip`.

    Args:
        clips: (..., 3, T, H, W) in the order red, green, blue, either uint8 of 0..255 or float of 0..1.
        protocol: Gives the mean, the standard deviation and the order of the channels.
        dtype: Type of the result.
        out: Where to write the result, see `normalize`.

    Returns:
        A tensor of the same shape: `out`, or a new contiguous one.
    """
    reverse = protocol.channels == "bgr"
    return normalize(clips, protocol.mean, protocol.std, reverse=reverse, dtype=dtype, out=out)


def shown_pixels(clip: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """Returns the pictures that a model's input shows, for people: uint8 in the order red, green, blue.

    Args:
        clip: A result of `model_input`, (..., 3, T, H, W).
        protocol: The protocol that it was made with.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (protocol.mean, protocol.std))
    ordered = clip.flip(-4) if protocol.channels == "bgr" else clip
    return ((ordered * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def normalize(
    clips: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    reverse: bool = False,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Subtracts the mean and divides by the standard deviation, on whatever device the clips are.

    What a model takes is made by `model_input`, which knows the order of its channels.

    Args:
        clips: (..., C, T, H, W), either uint8 of 0..255 or float of 0..1.
        mean: One number for each channel, for values in 0..1.
        std: One number for each channel, for values in 0..1.
        reverse: Whether the result has the channels in the opposite order. Mean and standard deviation are in the
            order of `clips`.
        dtype: Type of the result.
        out: Where to write the result, of the clips' shape and device and of that type; None takes new memory.

    Returns:
        A tensor of the same shape: `out`, or a new contiguous one.
    """
    scale = 1.0 if clips.is_floating_point() else 255.0
    shape = (-1, 1, 1, 1)
    if reverse:
        mean, std = mean[::-1], std[::-1]
    subtract = torch.tensor([scale * value for value in mean], dtype=dtype, device=clips.device).view(shape)
    divide = torch.tensor([scale * value for value in std], dtype=dtype, device=clips.device).view(shape)
    result = torch.empty(clips.shape, dtype=dtype, device=clips.device) if out is None else out
    if result.shape != clips.shape or result.dtype != dtype:
        wanted, given = (f"{kind} {tuple(size)}" for kind, size in ((dtype, clips.shape), (result.dtype, result.shape)))
        raise ValueError(f"out must be {wanted}, not {given}")
    if clips.device.type != "cpu":
        return result.copy_(clips.flip(-4) if reverse else clips).sub_(subtract).div_(divide)
    subtract, divide = subtract[:, 0], divide[:, 0]
    for place in np.ndindex(*clips.shape[:-4]):
        # Frame by frame: the cache holds it from step to step.
        for frame, target in zip(clips[place].unbind(1), result[place].unbind(1), strict=True):
            target.copy_(frame.flip(0) if reverse else frame).sub_(subtract).div_(divide)
    return result
