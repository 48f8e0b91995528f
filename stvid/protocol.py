"""The protocol: which frames are read, how they are scaled, and how many views are averaged.

Most failures to reproduce a published number are protocol mistakes, so stvid keeps the protocol with the weights: in
every checkpoint, config and report. `stvid test` and `stvid predict` take it from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stvid.errors import ConfigError, nearest

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "KINETICS_MEAN",
    "KINETICS_STD",
    "Protocol",
    "Task",
    "checked_protocol",
    "parse_views",
]

Task = Literal["multiclass", "multilabel"]
"""Whether a video has exactly one class (softmax over the logits) or any number of them (sigmoid of each logit)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
KINETICS_MEAN = (0.45, 0.45, 0.45)  # SlowFast's DATA.MEAN, used by everything that grew out of its code base
KINETICS_STD = (0.225, 0.225, 0.225)


_CROPS = (1, 3, 5, 10)  # the layouts that `stvid.data.views.ViewPlan` names


def parse_views(views: str, *, key: str | None = None) -> tuple[int, int]:
    """Splits ``"4x3"`` into 4 temporal clips and 3 spatial crops.

    Args:
        views: Temporal clips x spatial crops.
        key: The key of the config that holds the text, to start error messages with; None calls it views.

    Raises:
        ConfigError: If the text is not two positive numbers joined by ``x``, or there is no such number of crops.
    """
    where = "views" if key is None else f"{key}:"
    match = re.fullmatch(r"\s*([1-9]\d{0,3})\s*[x×]\s*([1-9]\d?)\s*", str(views))
    if match is None:
        raise ConfigError(f"{where} {views!r} is not temporal clips x spatial crops, for example 4x3")
    clips, crops = int(match[1]), int(match[2])
    if crops not in _CROPS:
        raise ConfigError(f"{where} {views!r} has {crops} spatial crops; there are 1, 3, 5 or 10, for example 4x3")
    return clips, crops


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Protocol:
    """How a video becomes the tensors that a model was made for, and how their logits become one prediction.

    Attributes:
        frames: Frames of one clip, of all its segments together.
        stride: Distance between two frames of a dense clip, in source frames, or in ticks of ``fps`` if that is set.
            Segment sampling does not use it.
        fps: Rate at which the video is read (frames are picked by time); None takes the video's own frames.
        sampling: ``dense``: frames at a fixed stride (Kinetics). ``segment``: the video is cut into ``frames`` equal
            parts and one frame is taken of each (TSN, Something-Something).
        frames_per_segment: Frames that follow each other wherever one is taken; `frames` is a multiple of it. TDN takes
            5: ``frames=40`` are then 8 segments of 5 frames, and `stride` is the distance between segments.
        short_side: The frame is scaled so that its short side has this many pixels before a test crop.
        crop: Side of the square crop in pixels.
        mean: Mean of red, green and blue, which is subtracted from values in 0..1.
        std: Standard deviation of red, green and blue, by which the differences are divided.
        channels: Order of the colour channels that the model sees: ``rgb``, or ``bgr`` for weights that were trained on
            frames that OpenCV had decoded. `mean` and `std` are in the order of red, green, blue in both cases.
        views: Temporal clips x spatial crops that are averaged, as in ``4x3``.
        class_names: The name of each logit, in order; empty if unknown.
    """

    frames: int = 16
    stride: int = 4
    fps: float | None = None
    sampling: Literal["dense", "segment"] = "dense"
    frames_per_segment: int = 1
    short_side: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = KINETICS_MEAN
    std: tuple[float, float, float] = KINETICS_STD
    channels: Literal["rgb", "bgr"] = "rgb"
    views: str = "1x1"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "frames_per_segment", "short_side", "crop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"protocol.{name}: {value!r} is not a positive whole number")
        if self.frames % self.frames_per_segment:
            raise ConfigError(
                f"protocol.frames: {self.frames} is no multiple of protocol.frames_per_segment "
                f"({self.frames_per_segment})"
            )
        if self.fps is not None and not (_is_finite(self.fps) and self.fps > 0):
            raise ConfigError(f"protocol.fps: {self.fps!r} is not a positive number (null takes the video's own rate)")
        if self.sampling not in ("dense", "segment"):
            raise ConfigError(f"protocol.sampling: {self.sampling!r} is neither dense nor segment")
        if self.channels not in ("rgb", "bgr"):
            raise ConfigError(f"protocol.channels: {self.channels!r} is neither rgb nor bgr")
        if self.crop > self.short_side:
            raise ConfigError(f"protocol.crop: {self.crop} is larger than protocol.short_side ({self.short_side})")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if (
                not isinstance(value, tuple | list)
                or len(value) != 3
                or not all(_is_finite(number) for number in value)
            ):
                raise ConfigError(f"protocol.{name}: {value!r} is not three finite numbers")
            object.__setattr__(self, name, tuple(float(number) for number in value))
        if min(self.std) <= 0:
            raise ConfigError(f"protocol.std: {self.std!r} has a number that is not positive")
        if not isinstance(self.class_names, tuple | list):
            raise ConfigError(f"protocol.class_names: {self.class_names!r} is no list of names")
        object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names))
        parse_views(self.views, key="protocol.views")

    @property
    def segments(self) -> int:
        """Places of the video that a clip is taken from: `frames`, or fewer if frames follow each other there."""
        return self.frames // self.frames_per_segment

    @property
    def num_clips(self) -> int:
        """Temporal clips of `views`."""
        return parse_views(self.views)[0]

    @property
    def num_crops(self) -> int:
        """Spatial crops of `views`."""
        return parse_views(self.views)[1]

    def replace(self, **changes: Any) -> Protocol:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists, numbers and strings, as JSON and checkpoints hold them."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Reads what `to_dict` wrote.

        Raises:
            ConfigError: If a key is unknown or a value does not fit.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"protocol: {values!r} is no table of its keys")
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"protocol.{key}: unknown key{nearest(str(key), known)}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)

    def describe(self) -> str:
        """Returns one line for people, without the class names."""
        how = f"{self.frames} frames"
        if self.sampling == "dense":
            how += f", stride {self.stride}"
            if self.frames_per_segment > 1:
                how += f", {self.frames_per_segment} in a row at each of {self.segments} places"
        elif self.frames_per_segment > 1:
            how += f", {self.frames_per_segment} in a row from each of {self.segments} segments"
        else:
            how += ", one from each of as many segments"
        how += f" at {self.fps:g} fps" if self.fps else ""
        colours = "; channels bgr (blue, green, red)" if self.channels == "bgr" else ""
        return f"{how}; short side {self.short_side}, crop {self.crop}{colours}; views {self.views}"


def checked_protocol(value: object) -> Protocol:
    """Returns a protocol that a caller has given.

    Raises:
        ConfigError: If it is none, as a name or a table.
    """
    if not isinstance(value, Protocol):
        raise ConfigError(
            f"protocol: {str(value)[:80]!r} is no stvid.Protocol; a model's own is model.default_protocol, and "
            "stvid.Protocol.from_dict makes one of a table"
        )
    return value
