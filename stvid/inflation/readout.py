"""Where a 2D network gives its features, and how those of the frames of a clip are arranged as the contract wants them.

A network of timm is asked: its `forward_features` and `forward_head` are used if the two together are its `forward`.
Of other networks the features are what the classifier sees of each frame, a map with one place; the last map with more
places, which tools draw, was seen when the network was watched.
"""

from __future__ import annotations

import inspect
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stvid.inflation.anatomy import Anatomy, in_words, no_training
from stvid.inflation.sites import Site

__all__ = ["Layout", "ReadOut", "find_read_out"]
_log = logging.getLogger(__name__)
# The module whose tensor the current thread looks at, and what it does with it. The hooks themselves stay on the
# module, so that threads that share a model do not change it under each other.
_SHOWN: ContextVar[tuple[nn.Module, Callable[[Tensor], Tensor]] | None] = ContextVar("shown", default=None)
_LISTENING = threading.Lock()


@dataclass(frozen=True)
class Layout:
    """How a tensor of a 2D network holds the places of its frames.

    Attributes:
        kind: ``vector`` (N, C), ``first`` (N, C, H, W), ``last`` (N, H, W, C), or ``tokens`` (N, prefix + H * W, C).
        grid: Height and width.
        channels: Number of channels.
        prefix: Tokens in front of those of the grid.
    """

    kind: Literal["vector", "first", "last", "tokens"]
    grid: tuple[int, int]
    channels: int
    prefix: int = 0

    def to_map(self, frames: Tensor, batch: int) -> Tensor:
        """Maps (B*T, ...) to (B, C, T, H, W), without the prefix."""
        x = frames.unflatten(0, (batch, -1))
        if self.kind == "vector":
            return x.transpose(1, 2)[..., None, None]
        if self.kind == "first":
            return x.transpose(1, 2)
        if self.kind == "tokens":
            x = x[:, :, self.prefix :].unflatten(2, self._grid_of(x.shape[2] - self.prefix))
        return x.movedim(-1, 1)

    def from_map(self, maps: Tensor, frames: Tensor) -> Tensor:
        """Puts a map back to where `to_map` took it from; the prefix is that of `frames`."""
        if self.kind == "vector":
            return maps[..., 0, 0].transpose(1, 2).flatten(0, 1)
        if self.kind == "first":
            return maps.transpose(1, 2).flatten(0, 1)
        x = maps.movedim(1, -1).flatten(0, 1)
        return torch.cat((frames[:, : self.prefix], x.flatten(1, 2)), dim=1) if self.kind == "tokens" else x

    def _grid_of(self, places: int) -> tuple[int, int]:
        """Returns the grid of so many places: the known one, or one of its shape."""
        height, width = self.grid
        if places == height * width:
            return self.grid
        rows = round(math.sqrt(places * height / width))
        return rows, places // rows


@dataclass(frozen=True)
class ReadOut:
    """Where the features of a 2D network are.

    Attributes:
        splits: Whether `forward_head` of `forward_features` is the network.
        features: Layout of the features.
        watched: Name of the module with the last map before the features, and whether its input is meant; None if
            there is none.
        map: Layout of that map.
    """

    splits: bool
    features: Layout
    watched: tuple[str, bool] | None
    map: Layout | None

    @contextmanager
    def watching(self, network: nn.Module, show: Callable[[Tensor], Tensor], batch: int) -> Iterator[None]:
        """Shows the last map of each run as (B, C, T, H, W), and lets the network go on with what `show` returns."""
        if self.watched is None or self.map is None:
            yield
            return
        layout, (name, is_input) = self.map, self.watched

        def put(frames: Tensor) -> Tensor:
            meanwhile = _SHOWN.set(None)  # it may call the network itself
            try:
                return layout.from_map(show(layout.to_map(frames, batch)), frames)
            finally:
                _SHOWN.reset(meanwhile)

        module = network.get_submodule(name)
        _listen(module, is_input)
        before = _SHOWN.set((module, put))
        try:
            yield
        finally:
            _SHOWN.reset(before)


def _listen(module: nn.Module, is_input: bool) -> None:
    """Gives a module the hook that shows its input or output; once, since other threads may be running it."""
    with _LISTENING:
        if is_input and _show_input not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_show_input)
        elif not is_input and _show_output not in module._forward_hooks.values():
            module.register_forward_hook(_show_output)


def _show_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    put = _putting(module)
    return None if put is None else (put(inputs[0]), *inputs[1:])


def _show_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    put = _putting(module)
    return None if put is None else put(output)


def _putting(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Returns what this thread wants to be done with a module's tensor; None if nothing."""
    if torch.compiler.is_compiling():
        return None
    shown = _SHOWN.get()
    return None if shown is None or shown[0] is not module else shown[1]


def find_read_out(network: nn.Module, anatomy: Anatomy, images: Tensor, width: int) -> ReadOut:
    """Finds the features of a 2D network whose classifier was taken out; runs it if it has methods of its own for them.

    Args:
        network: Takes (N, C, H, W).
        anatomy: The parts that were found in it.
        images: As it takes them; one is enough.
        width: Channels that the classifier sees.
    """
    size = (images.shape[2], images.shape[3])
    watched, layout = _find_map(network, anatomy, size)
    if anatomy.reader.plain and (found := _split(network, images, size)) is not None:
        return ReadOut(True, found, watched, layout)
    return ReadOut(False, Layout("vector", (1, 1), width), watched, layout)


def _split(network: nn.Module, images: Tensor, size: tuple[int, int]) -> Layout | None:
    """Returns the layout of a network's own features; None if its methods of these names do something else."""
    own: Any = network
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        return None
    with no_training(network):
        whole, features = _with_features(network, images)
        try:
            features = own.forward_features(images) if features is None else features
            if not isinstance(features, Tensor) or len(features) != len(images):
                return None
            found = _layout_of(network, features, size)
            return found if found is not None and _equal(own.forward_head(features), whole) else None
        except Exception as error:  # whatever a network's own code raises: then the methods are for other inputs
            _log.debug("%s: forward_features is not used: %s", type(network).__name__, in_words(error))
            return None


def _with_features(network: nn.Module, images: Tensor) -> tuple[Tensor, Any]:
    """Runs a network; returns what it gives, and what its own method made of the images on the way.

    That is None where `forward` does not call the method once, with the images, or it is no method that another can
    stand for; then it has to be run by itself.
    """
    own: Any = network
    if not isinstance(inspect.getattr_static(network, "forward_features", None), FunctionType | MethodType):
        return own(images), None
    method, kept = own.forward_features, vars(network).get("forward_features")
    made: list[Any] = []

    def forward_features(*inputs: Any, **options: Any) -> Any:
        features = method(*inputs, **options)
        plain = len(inputs) == 1 and inputs[0] is images and not options and isinstance(features, Tensor)
        made.append(features.clone() if plain else None)  # what comes behind may overwrite it
        return features

    own.forward_features = forward_features
    try:
        whole = own(images)
    finally:
        del own.forward_features
        if kept is not None:
            own.forward_features = kept
    return whole, made[0] if len(made) == 1 else None


def _equal(found: Any, whole: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != whole.shape:
        return False
    return whole.is_meta or torch.allclose(found, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def _find_map(
    network: nn.Module, anatomy: Anatomy, size: tuple[int, int]
) -> tuple[tuple[str, bool] | None, Layout | None]:
    """Finds the tokens that enter the last block, or else the last map that a module makes.

    Returns:
        The name of the module, and whether its input is meant; how it holds the places.
    """
    if anatomy.blocks and len(anatomy.blocks[-1].shape) == 3 and _as_usual(anatomy.blocks[-1]):
        last = anatomy.blocks[-1]
        tokens = _layout_of(network, torch.empty(last.shape, device="meta"), size)
        return ((last.name, True), tokens) if tokens is not None else (None, None)
    if anatomy.last_map is None:
        return None, None
    name, shape = anatomy.last_map
    return (name, False), _layout_of(network, torch.empty(shape, device="meta"), size)


def _as_usual(site: Site) -> bool:
    """Returns whether a module takes its tensor first, with the images on the first axis."""
    return site.batch_axis == 0 and site.argument == 0


def _layout_of(network: nn.Module, x: Tensor, size: tuple[int, int]) -> Layout | None:
    """Tells how a tensor holds the places of an image; None if its tokens are no grid."""
    ratio = size[0] / size[1]
    if x.dim() == 2:
        return Layout("vector", (1, 1), x.shape[1])
    if x.dim() == 4:
        first, second, third = x.shape[1:]
        off_if_first = abs(math.log(second / third / ratio))
        off_if_last = abs(math.log(first / second / ratio))
        if off_if_last < off_if_first or (off_if_last == off_if_first and first < third):
            return Layout("last", (first, second), third)
        return Layout("first", (second, third), first)
    if x.dim() != 3:
        return None
    known = getattr(network, "num_prefix_tokens", None)  # timm's
    tokens = x.shape[1]
    for prefix in range(tokens) if known is None else [int(known)]:
        height = round(math.sqrt((tokens - prefix) * ratio))
        if height and (tokens - prefix) % height == 0 and round(height / ratio) == (tokens - prefix) // height:
            return Layout("tokens", (height, (tokens - prefix) // height), x.shape[2], prefix)
    return None
