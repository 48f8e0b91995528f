"""Where the logits are in whatever a 2D network returns: a tensor, a tuple, an object with ``logits``, or features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stvid.errors import ConfigError

__all__ = ["Reader", "Wish", "find_reader", "tensors_of", "training_reader"]

Path = tuple[str | int, ...]
_LOGITS = "logits"
_FEATURES = ("pooler_output", "image_embeds", "last_hidden_state")  # of transformers' encoders, the best first
_DEEPEST = 3


@dataclass(frozen=True)
class Reader:
    """Takes the logits, or the features of a network without classifier, out of what a network returns.

    Attributes:
        paths: Attributes, keys or positions that lead to each tensor; of several the mean is taken.
        pooled: Whether the tensor is a map (N, C, H, W) or tokens (N, L, C), of which the mean over places is taken.
        channels_last: Whether a map is (N, H, W, C).
        among: How many tensors of the same shape there are, of which the one is taken that the most layers lead to.
    """

    paths: tuple[Path, ...] = ((),)
    pooled: bool = False
    channels_last: bool = False
    among: int = 1

    @property
    def plain(self) -> bool:
        """Whether the network itself returns the logits."""
        return self == Reader()

    @property
    def features(self) -> bool:
        """Whether what is taken is called a feature, so that no layer that makes it is a classifier."""
        return self.pooled or any(path and path[-1] in _FEATURES for path in self.paths)

    def __call__(self, output: Any) -> Tensor:
        """Returns (N, C)."""
        found = [_at(output, path) for path in self.paths]
        tensor = found[0] if len(found) == 1 else torch.stack(found).mean(0)
        if not self.pooled:
            return tensor
        if tensor.dim() == 3 or self.channels_last:
            return tensor.flatten(1, -2).mean(1)
        return tensor.flatten(2).mean(2)

    def __str__(self) -> str:
        """Returns in words what is taken."""
        names = " and ".join("".join(f"[{step!r}]" for step in path) for path in self.paths)
        mean = "the mean of " if len(self.paths) > 1 else ""
        why = (
            f", which the most layers lead to, the first such of {self.among} of its shape (logits= takes another)"
            if self.among > 1
            else ""
        )
        return f"{mean}{names or 'the output'}{', averaged over places' if self.pooled else ''}{why}"


def tensors_of(output: Any) -> dict[Path, Tensor]:
    """Returns the tensors in an output, each with the path that leads to it, in their order."""
    found: dict[Path, Tensor] = {}

    def visit(value: Any, path: Path) -> None:
        if isinstance(value, Tensor):
            found[path] = value
        elif len(path) >= _DEEPEST:
            return
        elif isinstance(value, Mapping):  # transformers' outputs are mappings, too
            for key, part in value.items():
                visit(part, (*path, key))
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            for key in value._fields:
                visit(getattr(value, key), (*path, key))
        elif isinstance(value, list | tuple):
            for place, part in enumerate(value):
                visit(part, (*path, place))
        elif hasattr(value, "__dict__"):
            for key, part in vars(value).items():
                visit(part, (*path, key))

    visit(output, ())
    return found


@dataclass(frozen=True)
class Wish:
    """Guides the search for logits.

    Attributes:
        declared: The ``num_classes`` that the network says it has; None if it says nothing, 0 for a network without
            classifier.
        as_features: Whether a map or tokens will do, since the network gets a new classifier.
        path: Where the user says that the logits are: a position or name, or several that lead there; None leaves it
            to the search.
        depth: Returns how many layers lead to a tensor.
    """

    declared: int | None = None
    as_features: bool = False
    path: int | str | Sequence[int | str] | None = None
    depth: Callable[[Tensor], int] = field(default=lambda tensor: 0)


def find_reader(output: Any, images: int, *, wish: Wish, name: str) -> Reader:
    """Finds the logits in what a network returned in evaluation mode.

    Args:
        output: The network's output.
        images: Number of images in the batch.
        wish: What is known of them.
        name: How messages call the network.

    Raises:
        ConfigError: If there are no logits.
    """
    found = tensors_of(output)
    vectors = [path for path, tensor in found.items() if tensor.dim() == 2 and tensor.shape[0] == images]
    if wish.path is not None:
        return _asked_for(wish.path, vectors, found, name)
    declared = wish.declared
    named = [path for path in vectors if path and path[-1] == _LOGITS]
    known = [path for path in vectors if declared and found[path].shape[1] == declared]
    pooled = [path for key in _FEATURES for path in vectors if path and path[-1] == key]
    for chosen in (named, known, pooled, vectors):
        if chosen and chosen is not pooled:
            alike = [path for path in chosen if found[path].shape == found[chosen[0]].shape]
            deepest = max(alike, key=lambda path: wish.depth(found[path])) if len(alike) > 1 else alike[0]
            return Reader((deepest,), among=len(alike))
        if chosen:
            return Reader((chosen[0],))
    if wish.as_features:
        maps = [path for path, tensor in found.items() if tensor.dim() in (3, 4) and tensor.shape[0] == images]
        best = [path for key in _FEATURES for path in maps if path and path[-1] == key] or maps[-1:]
        if best:
            shape = found[best[0]].shape
            last = len(shape) == 4 and shape[1] == shape[2] != shape[3]
            return Reader((best[0],), pooled=True, channels_last=last)
    raise ConfigError(f"{name}: {_complaint(output, images)}")


def _asked_for(wish: Any, vectors: Sequence[Path], found: Mapping[Path, Tensor], name: str) -> Reader:
    """Returns the reader of a tensor that the user chose."""
    path = (wish,) if isinstance(wish, int | str) else tuple(wish)
    if path in vectors:
        return Reader((path,))
    there = ", ".join(f"{list(other) if len(other) > 1 else other[0]!r}" for other in vectors if other)
    shape = f"a tensor {tuple(found[path].shape)}" if path in found else "no tensor"
    hint = f"there are logits at {there}" if there else "leave it out"
    raise ConfigError(f"logits {wish!r}: {name} returns {shape} there, not (images, classes); {hint}")


def _complaint(output: Any, images: int) -> str:
    if isinstance(output, Tensor):
        hint = "; for its features with a new classifier, give num_classes" if output.dim() in (3, 4) else ""
        return f"returns {tuple(output.shape)} for {images} images, not logits (images, classes){hint}"
    article = "an" if type(output).__name__[:1].lower() in "aeiou" else "a"
    return (
        f"returns {article} {type(output).__name__} for a batch of images, with no tensor of logits (images, classes) "
        "in it; detection and segmentation networks cannot be inflated"
    )


def training_reader(output: Any, evaluation: Reader, width: int, *, several: bool = False) -> Reader:
    """Finds the logits in what a network returned in training mode, such as a tuple with those of a second classifier.

    Args:
        output: The network's output.
        evaluation: How they are found in evaluation mode.
        width: Channels of what is looked for.
        several: Whether the mean over all such tensors is meant, as in evaluation. Else of several in a list the last
            one is meant, of others the first.

    Raises:
        ConfigError: If there is no tensor of such a shape.
    """
    found = tensors_of(output)
    if evaluation.pooled or all(path in found and found[path].shape[-1] == width for path in evaluation.paths):
        return evaluation
    paths = [path for path, tensor in found.items() if tensor.dim() == 2 and tensor.shape[1] == width]
    if not paths:
        raise ConfigError(
            f"the network returns a {type(output).__name__} without logits in training mode; wrap it in a module that "
            "returns the logits"
        )
    if several or len(paths) == 1:
        return Reader(tuple(paths))
    beside = [path for path in paths if path[:-1] == paths[0][:-1]]
    in_list = isinstance(_at(output, paths[0][:-1]), list)  # as of networks that classify at several depths
    return Reader((beside[-1] if in_list else paths[0],))


def _at(output: Any, path: Path) -> Tensor:
    for step in path:
        by_name = isinstance(step, str) and not isinstance(output, Mapping)
        output = getattr(output, str(step)) if by_name else output[step]
    return output
