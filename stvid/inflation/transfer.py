"""The books of an inflation: a row for every tensor of the video model, and for all that it leaves of the 2D one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stvid.errors import CheckpointError
from stvid.inflation.image_networks import ImageNetwork
from stvid.inflation.options import Init
from stvid.inflation.report import COPIED, RuleKind, TensorRule
from stvid.inflation.temporal import describe_kernels
from stvid.models.base import VideoModel
from stvid.models.blocks import taps

__all__ = ["Reason", "Remedy", "Transfer"]

SHOWN = 6  # problems in a message


class Remedy(Enum):
    """How the proof can take a reason away, with the words for it; applied in this order."""

    MOVE_ONE_PIXEL = "the clip moved by one pixel"
    NO_CLASS_TOKEN = "no class token in either"
    SAME_GELU = "the same GELU in both"
    ONE_TOKEN_LONG = "a clip that is one token long"
    NO_EXCHANGE = "no channels exchanged between frames"


@dataclass(frozen=True)
class Reason:
    """Why two networks cannot be equal on a still video.

    Attributes:
        text: One sentence for people.
        remedy: How the proof can take the reason away; None if it cannot.
    """

    text: str
    remedy: Remedy | None = None


class Transfer:
    """The books of one inflation: what each tensor of a video model is made from.

    A family's function in parent_rules.py fills them in, and sets those attributes below that differ.

    Attributes:
        network: The 2D parent.
        model: The video model; it is filled by `finish`.
        init: How kernels get their axis of time.
        rows: A row per tensor.
        reasons: Why the two networks cannot be equal on a still video.
        new_head: Whether the classifier is not the parent's.
        frame_features: Name of the layer of the video model that gives the features of each frame, if a transformer
            over frames follows; else empty.
        class_token: Whether the video model's tokens begin with a class token.
        head_window: Height and width of the windows that the video model's head averages over, and by how much the
            model divides the image's sides until there; None if it averages over the whole map.
        rename: Gives the parent's name of what begins with a name of the video model; set by `take_rest`.
        filters: Kernels that got an axis of time, as (name in the video model, 2D, 3D).
        resized: A ViT's table of positions at another grid, and that grid; None if it was not resized.
    """

    def __init__(self, network: ImageNetwork, model: VideoModel, *, init: Init) -> None:
        self.network = network
        self.model = model
        self.init = init
        self.rows: list[TensorRule] = []
        self.reasons: list[Reason] = []
        self.new_head = network.num_classes is None or network.num_classes != model.num_classes
        self.frame_features = ""
        self.class_token = True
        self.head_window: tuple[int, int, int] | None = None
        self.rename: Callable[[str], str] = str
        self.filters: list[tuple[str, Tensor, Tensor]] = []
        self.resized: tuple[Tensor, tuple[int, int]] | None = None
        self._own = model.state_dict()
        self._values: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._wrong: list[str] = []

    def put(self, key: str, value: Tensor, rule: str, *sources: str, kind: RuleKind = "derived") -> None:
        """Books a tensor of the video model.

        Args:
            key: Its name.
            value: Its values.
            rule: How they are made, in words.
            *sources: The parent's tensors that they are made from, by their names of its kind.
            kind: See `TensorRule`.
        """
        if key in self._values:
            raise AssertionError(f"{key} is booked twice")
        own = self._own[key]
        if value.shape != own.shape:
            self._wrong.append(f"{key} would be {tuple(value.shape)} instead of {tuple(own.shape)}")
        notes = [self.network.notes[source] for source in sources if source in self.network.notes]
        names = [name for source in sources for name in self.network.names[source]]
        self._values[key] = value
        self._used.update(sources)
        shapes = " + ".join(str(self.network.shapes[name]) for name in names)
        if notes and kind == "copied":
            kind = "derived"
        self.rows.append(TensorRule(" + ".join(names), key, kind, ", ".join([rule, *notes]), shapes, tuple(own.shape)))

    def keep(self, key: str, reason: str) -> None:
        """Books a tensor of the video model that starts as the model was built."""
        self.put(key, self._own[key], f"initialised: {reason}", kind="initialised")

    def drop(self, source: str, reason: str) -> None:
        """Books a tensor of the parent that the video model does not take."""
        self._used.add(source)
        for name in self.network.names[source]:
            self._leave(name, reason)

    def take(self, key: str, source: str, *, rule: str = COPIED) -> None:
        """Books a tensor that is the parent's, with an axis of time if it has one."""
        value, own = self.network.state[source], self._own[key]
        kind: RuleKind = "copied" if rule == COPIED else "derived"
        if own.dim() == 5 and value.dim() == 4:
            frames = own.shape[2]
            image, value = value, taps(value, frames, init=self.init)
            kind, rule = "derived", describe_kernels(frames, init=self.init, causal=False)
            if frames > 1:
                self.filters.append((key, image, value))
                if self.init == "average":
                    self._note_borders(key)
        elif key.endswith(".weight") and isinstance(norm := self._module(key), _BatchNorm):
            eps = self.network.norm_eps
            if norm.eps != eps:
                variance = self.network.state[source.removesuffix("weight") + "running_var"]
                value = value * ((variance + norm.eps) / (variance + eps)).sqrt()
                kind, rule = "derived", f"{rule}, scaled for the epsilon {norm.eps:g} instead of {eps:g}"
        self.put(key, value, rule, source, kind=kind)

    def take_rest(self, rename: Callable[[str], str]) -> None:
        """Books all tensors that are not booked yet, by name.

        Args:
            rename: Gives the parent's name of a tensor of the video model.
        """
        self.rename = rename
        head = f"{self.network.head}."
        for key in self._own:
            if key in self._values:
                continue
            source = rename(key)
            if source.startswith(head) and self.new_head:
                self.keep(key, f"a new classifier of {self.model.num_classes} classes")
            elif source in self.network.state:
                self.take(key, source)
            elif key.endswith("num_batches_tracked"):
                self.keep(key, "a count of batches, which the source does not have")
            elif key.endswith("qkv.bias"):
                self.put(
                    key, torch.zeros_like(self._own[key]), "zeros: the source has no such bias", kind="initialised"
                )
            else:
                self._wrong.append(f"nothing for {key} (looked for {source})")

    def finish(self) -> None:
        """Loads the weights, once everything is booked.

        Raises:
            CheckpointError: If a tensor of either side has no place on the other, or shapes differ.
        """
        network = self.network
        if self.new_head:
            for part in ("weight", "bias"):
                if (source := f"{network.head}.{part}") in network.state and source not in self._used:
                    classes = network.num_classes
                    reason = (
                        "the video model's classifier sees other features"
                        if classes == self.model.num_classes
                        else f"a classifier of {classes} classes"
                    )
                    self.drop(source, reason)
        for source in network.state:
            if source in self._used:
                continue
            if source.endswith("num_batches_tracked"):
                self.drop(source, "a count of batches")
            else:
                self._wrong.append(f"no place for {' + '.join(network.names[source])}")
        for name, reason in network.dropped.items():
            self._leave(name, reason)
        if self._wrong:
            more = f"; and {len(self._wrong) - SHOWN} more" if len(self._wrong) > SHOWN else ""
            raise CheckpointError("; ".join(self._wrong[:SHOWN]) + more)
        if sorted(self._values) != sorted(self._own):
            raise AssertionError(f"not booked: {sorted(set(self._own) - set(self._values))}")
        self.model.load_state_dict({key: value.to(self._own[key].dtype) for key, value in self._values.items()})

    def fail(self, problem: str) -> None:
        """Adds to what `finish` raises."""
        self._wrong.append(problem)

    def note(self, text: str, remedy: Remedy | None = None) -> None:
        """Adds a reason, once."""
        if (reason := Reason(text, remedy)) not in self.reasons:
            self.reasons.append(reason)

    def _note_borders(self, key: str) -> None:
        """Adds the reason that an averaged kernel gives, unless its convolution cuts clips without overlap."""
        conv = self._module(key)
        assert isinstance(conv, nn.Conv3d)
        if conv.stride[0] != conv.kernel_size[0] or conv.padding[0]:
            self.note("averaged kernels meet zero padding before the first and after the last frame")

    def _leave(self, name: str, reason: str) -> None:
        self.rows.append(TensorRule(name, "", "dropped", f"dropped: {reason}", str(self.network.shapes[name]), ()))

    def _module(self, key: str) -> nn.Module:
        return self.model.get_submodule(key.rpartition(".")[0])
