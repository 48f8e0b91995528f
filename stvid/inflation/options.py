"""The options of an inflated network: how its frames see each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from stvid.errors import ConfigError

__all__ = ["AttentionType", "InflationOptions", "Init", "LogitsAt", "Padding", "ShiftPlace", "Temporal"]

Temporal = Literal["none", "shift", "conv", "attention", "head"]
Init = Literal["center", "average"]
Padding = Literal["replicate", "zeros"]
ShiftPlace = Literal["residual", "in_place"]
AttentionType = Literal["divided_space_time", "joint_space_time"]
LogitsAt = int | str | Sequence[int | str] | None

_CHOICES: dict[str, Any] = {
    "temporal": Temporal,
    "init": Init,
    "padding": Padding,
    "shift_place": ShiftPlace,
    "attention_type": AttentionType,
}
# The options that have a meaning in each mode.
_MODE_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": ("causal",),
    "shift": ("layers", "padding", "shift_div", "shift_place", "causal"),
    "conv": ("layers", "padding", "kernel_size", "init", "temporal_strides", "factorized", "causal"),
    "attention": ("layers", "attention_type"),
    "head": ("head_depth", "head_num_heads"),
}


@dataclass(frozen=True)
class InflationOptions:
    """How the frames of an inflated network see each other; see `stvid.inflation.model`.

    Attributes:
        temporal: The mode: ``none``, ``shift``, ``conv``, ``attention`` or ``head``.
        layers: Regular expression that is searched in the names of the layers (with ``attention`` and ``in_place``: of
            the blocks), or their names; None takes the mode's default.
        kernel_size: Frames that a kernel sees, odd unless `causal`; or a mapping from patterns of names to it.
        init: ``center`` or ``average``; see `stvid.inflation.temporal.kernels`.
        padding: The values beyond the ends of a clip, ``replicate`` or ``zeros``. With ``zeros``, which I3D and TSM
            use, a shift, and a kernel that starts as an average, change the first and last frames of a still video.
        temporal_strides: Mapping from patterns of names to a step in time: convolutions that are inflated take it;
            behind any other module the maximum over so many frames is taken.
        factorized: Whether the 2D convolutions stay and a convolution over time, which starts as the identity, follows
            each (R(2+1)D). That is always done behind convolutions of classes that do more than convolve, such as those
            that standardise their weights.
        causal: Whether no frame sees a later one, so that the model runs over a stream: kernels end with the current
            frame, which is their center then, and a shift moves channels on in time alone. Strides in time, attention
            and a transformer over frames see later frames.
        shift_div: One part in so many of the channels moves each way.
        shift_place: ``residual`` shifts what the first layer of a block sees, ``in_place`` what the block sees.
        attention_type: ``divided_space_time`` or ``joint_space_time``.
        head_depth: Blocks of the transformer over frames.
        head_num_heads: Its heads; None takes one for every 64 channels.
        logits: Which of several outputs of the network the logits are: a position or a name, or several that lead there
            (``[0, 3]``). None takes the one that calls itself so, or to which the most layers lead.

    Raises:
        ConfigError: If a value is not possible, or an option has no meaning in this mode.
    """

    temporal: Temporal = "conv"
    layers: str | Sequence[str] | None = None
    kernel_size: int | Mapping[str, int] = 3
    init: Init = "center"
    padding: Padding = "replicate"
    temporal_strides: Mapping[str, int] | None = None
    factorized: bool = False
    causal: bool = False
    shift_div: int = 8
    shift_place: ShiftPlace = "residual"
    attention_type: AttentionType = "divided_space_time"
    head_depth: int = 3
    head_num_heads: int | None = None
    logits: LogitsAt = None

    def __post_init__(self) -> None:
        for option, choices in _CHOICES.items():
            if (value := getattr(self, option)) not in get_args(choices):
                raise ConfigError(f"{option} {value!r}: choose one of {', '.join(get_args(choices))}")
        if not isinstance(self.causal, bool):
            raise ConfigError(f"causal {self.causal!r}: must be true or false")
        self._check_causal()
        for field in fields(self):
            option, value = field.name, getattr(self, field.name)
            if (
                option in ("temporal", "logits")
                or option in _MODE_OPTIONS[self.temporal]
                or value in (field.default, {})
            ):
                continue
            modes = [mode for mode, options in _MODE_OPTIONS.items() if option in options]
            raise ConfigError(f"{option} has no meaning with temporal={self.temporal}, only with {', '.join(modes)}")
        if self.temporal_strides is not None and not isinstance(self.temporal_strides, Mapping):
            raise ConfigError(
                f"temporal_strides {self.temporal_strides!r}: must map patterns of names to steps in time"
            )
        steps = [self.logits] if isinstance(self.logits, int | str) else self.logits or []
        if not isinstance(steps, Sequence) or any(
            isinstance(step, bool) or not isinstance(step, int | str) for step in steps
        ):
            raise ConfigError(f"logits {self.logits!r}: must be a position or a name, or a list of these")
        numbers = [("shift_div", self.shift_div, 2), ("head_depth", self.head_depth, 1)]
        numbers += [] if self.head_num_heads is None else [("head_num_heads", self.head_num_heads, 1)]
        numbers += [(f"temporal_strides {pattern!r}", step, 1) for pattern, step in self.strides.items()]
        for option, number, least in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ConfigError(f"{option} {number!r}: must be a whole number of at least {least}")

    def _check_causal(self) -> None:
        """Raises ConfigError if frames would see later ones although they must not."""
        if self.causal and "causal" not in _MODE_OPTIONS[self.temporal]:
            modes = [mode for mode, options in _MODE_OPTIONS.items() if "causal" in options]
            raise ConfigError(
                f"causal: with temporal={self.temporal} frames see later ones, so it does not run over a stream; "
                f"take {', '.join(modes)}"
            )
        if self.causal and self.temporal_strides:
            raise ConfigError(
                "causal: temporal_strides join frames with later ones, so it does not run over a stream; leave them out"
            )

    @property
    def strides(self) -> Mapping[str, int]:
        """The steps in time, also if there are none."""
        return self.temporal_strides or {}

    @property
    def joint(self) -> bool:
        """Whether attention layers see all frames."""
        return self.attention_type == "joint_space_time"

    @property
    def spoils_ends(self) -> bool:
        """Whether zeros beyond the ends of a clip change the first and last frames of a still video."""
        return self.padding == "zeros" and (self.init == "average" or self.temporal == "shift")
