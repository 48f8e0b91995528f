"""Finds the state of a 2D network in a file: plain, below prefixes, or beside what self-supervised training needs.

MoCo keeps its network under ``module.encoder_q.``, DINO a student and a teacher, lightly a sequence of a ResNet's
children; a projection head stands in the place of the classifier. It is left out, and the report says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stvid.checkpoints import candidates, unwrap
from stvid.errors import CheckpointError

__all__ = ["Picked", "pick_state"]

Fit = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
# Where self-supervised training keeps a network whose last layer projects and does not classify.
SELF_SUPERVISED = re.compile(
    r"(?:^|[. :])(?:encoder_q|encoder_k|base_encoder|momentum_encoder|student|teacher|online_encoder|target_encoder"
    r"|online_network|target_network)\b"
)


@dataclass
class Picked:
    """The state of a 2D network in a file.

    Attributes:
        raw: As it is in the file, without prefixes.
        fitted: In the network's keys.
        where: Where in the file it was found; empty if at its top.
        dropped: Keys of auxiliary classifiers.
        left_out: Keys of a projection head.
        beside: Names of what else the file holds there, such as a predictor or a queue, which is left out, too.
    """

    raw: dict[str, Tensor]
    fitted: dict[str, Tensor]
    where: str = ""
    dropped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    def without_head(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a state without what is left out of this one."""
        return {key: value for key, value in state.items() if key not in self.left_out}


def pick_state(
    content: Mapping[str, Any],
    own: Mapping[str, Tensor],
    *,
    heads: Sequence[str],
    children: Sequence[str],
    fit: Fit,
) -> Picked:
    """Returns the first state in a file that has all tensors of a network but for its classifier.

    Args:
        content: Mapping that was read from the file, with or without wrappers.
        own: The state of the network.
        heads: Names of the layers that make its logits.
        children: Names of its children, in order.
        fit: Turns a published layout into the network's keys, and names the keys of auxiliary classifiers.

    Returns:
        The state; if none fits, the likeliest, for the caller to complain about.

    Raises:
        CheckpointError: If the file holds no tensors, or none that `fit` can read.
    """
    listed = candidates(content)
    for where, found in listed:
        for raw in (found, _by_position(found, children)):
            if raw is None:
                continue
            try:
                fitted, dropped = fit(raw)
            except CheckpointError:
                continue  # of another network: the next may fit, and if none does, the likeliest one's error is raised
            left_out = _left_out(fitted, own, heads, projects=bool(SELF_SUPERVISED.search(where)))
            if left_out is not None:
                picked = Picked(dict(raw), fitted, where, dropped, left_out, _beside(where, listed))
                picked.fitted = picked.without_head(fitted)
                return picked
    state = unwrap(content)
    if not state:
        raise CheckpointError("holds no tensors")
    fitted, dropped = fit(state)
    return Picked(state, fitted, dropped=dropped)


def _beside(where: str, listed: Sequence[tuple[str, Mapping[str, Tensor]]]) -> list[str]:
    """Returns the names of what stands beside a state that was found below a prefix."""
    around, _, prefix = where.rpartition(": ")
    if not prefix.endswith("."):
        return []
    outer: Mapping[str, Tensor] = next((state for name, state in listed if name == around), {})
    others = [key.removeprefix("module.") for key in outer if not key.startswith(prefix)]
    return list(dict.fromkeys(key.partition(".")[0] for key in others))


def _by_position(state: Mapping[str, Tensor], children: Sequence[str]) -> dict[str, Tensor] | None:
    """Renames the keys of ``nn.Sequential(*network.children())``; None if they are not numbered."""
    numbers = [key.partition(".")[0] for key in state]
    if not numbers or not all(number.isdigit() and int(number) < len(children) for number in numbers):
        return None
    return {
        f"{children[int(number)]}.{key.partition('.')[2]}": value
        for number, (key, value) in zip(numbers, state.items(), strict=True)
    }


def _left_out(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], heads: Sequence[str], *, projects: bool
) -> list[str] | None:
    """Returns the keys of a projection head; None if the state is not of this network."""
    in_head = tuple(f"{name}." for name in heads)
    counts = "num_batches_tracked"
    body = [key for key in own if not key.startswith(in_head) and not key.endswith(counts)]
    if any(key not in state or state[key].shape != own[key].shape for key in body):
        return None
    extra = [key for key in state if key not in own and not key.endswith(counts)]
    classifies = not projects and all(
        key in state and state[key].dim() == value.dim() and state[key].shape[1:] == value.shape[1:]
        for key, value in own.items()
        if key.startswith(in_head)
    )
    if classifies:
        return None if extra else []
    return sorted({*extra, *(key for key in state if key.startswith(in_head))})
