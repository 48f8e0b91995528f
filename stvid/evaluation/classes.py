"""From the logits of one video to the names of its most likely classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvid.errors import ConfigError
from stvid.evaluation.metrics import video_scores
from stvid.protocol import Protocol, Task

__all__ = ["NOT_FINITE", "TopClasses", "name_classes", "top_classes"]

NOT_FINITE = "the model gives logits that are not finite numbers"


@dataclass(frozen=True)
class TopClasses:
    """The most likely classes of a video.

    Attributes:
        names: Names of the classes, the most likely first.
        ids: Numbers of these classes: their positions in the logits.
        probabilities: Probabilities of these classes in 0..1, averaged over the views.
        scores: Probabilities of all K classes, float64 (K,).
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    scores: NDArray[np.float64]


def name_classes(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Returns a name for each class of a model: the given ones, or "class 0", "class 1", ... if there are none.

    Raises:
        ConfigError: If another number of names is given than there are classes.
    """
    if names and len(names) != count:
        raise ConfigError(f"the model gives {count} logits, but the protocol names {len(names)} classes")
    return tuple(names) or tuple(f"class {number}" for number in range(count))


def top_classes(logits: NDArray[np.float32], protocol: Protocol, *, task: Task, topk: int) -> TopClasses | None:
    """Finds the most likely classes of a video.

    Args:
        logits: (V, K), one row for each view of the video.
        protocol: Names the classes.
        task: ``multiclass`` or ``multilabel``.
        topk: How many classes to name.

    Returns:
        The classes; None if a logit is not a finite number (`NOT_FINITE` says so in words).

    Raises:
        ConfigError: If the protocol names another number of classes than there are logits.
    """
    names = name_classes(protocol.class_names, logits.shape[1])
    if not np.isfinite(logits).all():
        return None
    scores = video_scores(logits[None], task)[0]
    best = np.argsort(-scores, kind="stable")[:topk].tolist()
    return TopClasses(
        names=tuple(names[k] for k in best),
        ids=tuple(best),
        probabilities=tuple(float(scores[k]) for k in best),
        scores=scores,
    )
