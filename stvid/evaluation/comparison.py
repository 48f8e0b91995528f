"""Two models on the same videos: is the difference more than chance, and where does it come from?"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvid.errors import ConfigError
from stvid.evaluation import metrics as M
from stvid.evaluation.record import EvaluationResult

__all__ = ["ClassChange", "Comparison", "compare", "mcnemar"]


@dataclass(frozen=True)
class ClassChange:
    """How the videos of one class fare in two results.

    Attributes:
        name: Name of the class.
        support: How many videos it has.
        first: Recall of the class in the first result (average precision if multi-label).
        second: The same number of the second result.
        wins: Videos that only the second gets right; None if multi-label.
        losses: Videos that only the first gets right; None if multi-label.
    """

    name: str
    support: int
    first: float
    second: float
    wins: int | None
    losses: int | None


@dataclass(frozen=True)
class Comparison:
    """The difference between two results, and how sure it is.

    Attributes:
        metric: ``top1`` or ``mAP``.
        views: Views of the two results.
        videos: How many videos both results could read.
        left_out: How many videos of the list at least one result could not read.
        first: The metric of the first result on these videos, in 0..1.
        second: The metric of the second result.
        difference: The second metric minus the first.
        interval: 95% interval of the difference, by a paired bootstrap over the videos.
        wins: Videos that only the second gets right; None if multi-label.
        losses: Videos that only the first gets right; None if multi-label.
        p_value: Result of McNemar's exact test that wins and losses are equally likely; None if multi-label.
        per_class: The classes that have a video, the largest gain first.
    """

    metric: str
    views: tuple[str, str]
    videos: int
    left_out: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    wins: int | None
    losses: int | None
    p_value: float | None
    per_class: tuple[ClassChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return dataclasses.asdict(self)


def compare(
    first: EvaluationResult | str | os.PathLike[str],
    second: EvaluationResult | str | os.PathLike[str],
    *,
    names: tuple[str, str] = ("the first", "the second"),
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares two results on the same labelled videos.

    Videos are matched by file, in the order of the list; if the lists lie in different folders, by the path below
    their common folder. A video that one of the two could not read is left out and counted.

    Args:
        first: The result to compare with, or the file or folder that `stvid test` wrote it to.
        second: The result that is compared.
        names: The names of the two results in messages.
        resamples: How often the videos are drawn again with replacement.
        seed: Seed of these draws.

    Raises:
        ConfigError: If the results are of different videos, labels, classes or tasks.
        StvidError: If a result cannot be read.
    """
    first, second = (
        result if isinstance(result, EvaluationResult) else EvaluationResult.load(result) for result in (first, second)
    )
    pair = _pair(first, second, names)
    run = _compare_multilabel if first.task == "multilabel" else _compare_multiclass
    return run(pair, resamples, seed)


@dataclass(frozen=True)
class _Pair:
    """Two results, brought to the same videos and the same order of classes.

    Attributes:
        class_names: Names of the K classes.
        scores: Scores (N, K) of each result.
        labels: Their labels, (N,) or (N, K).
        views: Views of each result.
        left_out: How many videos of the list at least one result could not read.
    """

    class_names: tuple[str, ...]
    scores: tuple[NDArray[np.float64], NDArray[np.float64]]
    labels: NDArray[np.int64]
    views: tuple[str, str]
    left_out: int


def _pair(first: EvaluationResult, second: EvaluationResult, names: tuple[str, str]) -> _Pair:
    """Finds the videos that both results could read.

    Raises:
        ConfigError: If the results are of different videos, labels, classes or tasks.
    """
    if first.task != second.task:
        raise ConfigError(f"{names[0]} is {first.task}, {names[1]} is {second.task}: they cannot be compared")
    if set(first.class_names) != set(second.class_names):
        different = sorted(set(first.class_names) ^ set(second.class_names))
        raise ConfigError(f"{names[0]} and {names[1]} have different classes: {_listed(different)} in one only")
    keys = _video_keys(first, second, names)
    shared = [key for key in keys[0] if key in keys[1]]
    if not shared:
        raise ConfigError(f"{names[0]} and {names[1]} have no readable video in common")
    rows = [np.array([found[key] for key in shared]) for found in keys]
    order = [
        second.class_names.index(name) for name in first.class_names
    ]  # the second's classes, as the first has them
    labels, others = first.labels[rows[0]], second.labels[rows[1]]
    if first.task == "multilabel":
        same = (labels == others[:, order]).all(axis=1)
    else:
        same = labels == np.argsort(order)[others]
    if not same.all():
        path = first.paths[rows[0][np.flatnonzero(~same)[0]]]
        raise ConfigError(f"{names[0]} and {names[1]} have different labels for {(~same).sum()} videos, first {path}")
    return _Pair(
        class_names=first.class_names,
        scores=(first.scores[rows[0]], second.scores[rows[1]][:, order]),
        labels=labels,
        views=(first.views, second.views),
        left_out=first.counted + len(first.failures) - len(shared),
    )


def _compare_multiclass(pair: _Pair, resamples: int, seed: int) -> Comparison:
    correct = [score.argmax(axis=1) == pair.labels for score in pair.scores]
    wins, losses = ~correct[0] & correct[1], correct[0] & ~correct[1]
    changes = [
        ClassChange(
            name=name,
            support=int(own.sum()),
            first=float(correct[0][own].mean()),
            second=float(correct[1][own].mean()),
            wins=int(wins[own].sum()),
            losses=int(losses[own].sum()),
        )
        for k, name in enumerate(pair.class_names)
        for own in [pair.labels == k]
        if own.any()
    ]
    gains = correct[1].astype(np.int64) - correct[0]
    return Comparison(
        metric="top1",
        views=pair.views,
        videos=len(pair.labels),
        left_out=pair.left_out,
        first=float(correct[0].mean()),
        second=float(correct[1].mean()),
        difference=float(gains.mean()),
        interval=M.bootstrap_interval(gains, resamples=resamples, seed=seed),
        wins=int(wins.sum()),
        losses=int(losses.sum()),
        p_value=mcnemar(int(wins.sum()), int(losses.sum())),
        per_class=_sorted(changes),
    )


def _compare_multilabel(pair: _Pair, resamples: int, seed: int) -> Comparison:
    targets = pair.labels
    present = np.flatnonzero(targets.any(axis=0))
    precisions = [M.average_precision(score, targets)[present] for score in pair.scores]
    rng = np.random.default_rng(seed)
    ranked = [[_Ranked(score[:, k], targets[:, k]) for k in present] for score in pair.scores]
    differences = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, len(targets), len(targets)), minlength=len(targets))
        found = np.array([[one.average_precision(weights) for one in classes] for classes in ranked])
        differences.append(float(np.nanmean(found[1]) - np.nanmean(found[0])))
    low, high = np.quantile(differences, [0.025, 0.975])
    first, second = (float(values.mean()) for values in precisions)
    changes = [
        ClassChange(pair.class_names[k], int(targets[:, k].sum()), float(a), float(b), None, None)
        for k, a, b in zip(present, *precisions, strict=True)
    ]
    return Comparison(
        metric="mAP",
        views=pair.views,
        videos=len(targets),
        left_out=pair.left_out,
        first=first,
        second=second,
        difference=second - first,
        interval=(float(low), float(high)),
        wins=None,
        losses=None,
        p_value=None,
        per_class=_sorted(changes),
    )


def mcnemar(wins: int, losses: int) -> float:
    """Returns the exact two-sided p-value that the disagreements of two classifiers fall equally to both sides.

    This is McNemar's test (1947) in the exact, binomial form: twice the chance of at most min(wins, losses) heads in as
    many throws of a coin as there are disagreements, but 1 at most.

    Args:
        wins: Videos that only one of them gets right.
        losses: Videos that only the other gets right.
    """
    total, least = wins + losses, min(wins, losses)
    if wins == losses:
        return 1.0
    # Each probability is that of the next larger count times a ratio below 1, so the sum cannot overflow.
    log_last = math.lgamma(total + 1) - math.lgamma(least + 1) - math.lgamma(total - least + 1) - total * math.log(2)
    term, series = 1.0, 1.0
    for heads in range(least, 0, -1):
        term *= heads / (total - heads + 1)
        series += term
    return min(1.0, 2.0 * math.exp(log_last) * series)


def _video_keys(
    first: EvaluationResult, second: EvaluationResult, names: tuple[str, str]
) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], int]]:
    """Names each readable video of the two results; the same name for the same video."""
    lists = [_listed_videos(result) for result in (first, second)]
    if Counter(name for name, _ in lists[0]) != Counter(name for name, _ in lists[1]):
        lists = [_below_common_folder(videos) for videos in lists]
    counts = [Counter(name for name, _ in videos) for videos in lists]
    if counts[0] != counts[1]:
        only = [sorted((counts[a] - counts[b]).keys()) for a, b in ((0, 1), (1, 0))]
        told = "; ".join(f"only in {name}: {_listed(found)}" for name, found in zip(names, only, strict=True) if found)
        raise ConfigError(f"{names[0]} and {names[1]} are of different videos ({told})")
    # The parts of one file come several times, in the order of the list; if one failed, it is unknown which.
    unclear = {name for videos in lists for name, row in videos if row is None and counts[0][name] > 1}
    keys: list[dict[tuple[str, int], int]] = []
    for videos in lists:
        seen: Counter[str] = Counter()
        found: dict[tuple[str, int], int] = {}
        for name, row in videos:
            if row is not None and name not in unclear:
                found[name, seen[name]] = row
            seen[name] += 1
        keys.append(found)
    return keys[0], keys[1]


def _listed_videos(result: EvaluationResult) -> list[tuple[str, int | None]]:
    read: list[tuple[str, int | None]] = [(path, row) for row, path in enumerate(result.paths)]
    return read + [(path, None) for path, _ in result.failures]


def _below_common_folder(videos: list[tuple[str, int | None]]) -> list[tuple[str, int | None]]:
    folder = os.path.commonpath([os.path.dirname(path) for path, _ in videos])
    return [(os.path.relpath(path, folder), row) for path, row in videos]


class _Ranked:
    """The videos in the order of a class's scores: gives the average precision of resamples without sorting again."""

    def __init__(self, scores: NDArray[np.float64], targets: NDArray[np.int64]) -> None:
        self.order = np.argsort(-scores, kind="stable")
        self.targets = targets[self.order]
        ranked = scores[self.order]
        # Equal scores share one threshold: the last place of each group.
        self.last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def average_precision(self, weights: NDArray[np.int64]) -> float:
        """Returns it with each video counted as often as `weights` says; NaN if no video of the class is drawn."""
        drawn = weights[self.order]
        hits = np.cumsum(drawn * self.targets)[self.last]
        total = np.cumsum(drawn)[self.last]
        if hits[-1] == 0:
            return math.nan
        gained = np.diff(hits, prepend=0)
        return float((gained * hits / np.maximum(total, 1)).sum() / hits[-1])


def _sorted(changes: Sequence[ClassChange]) -> tuple[ClassChange, ...]:
    return tuple(sorted(changes, key=lambda change: (change.first - change.second, change.name)))


def _listed(names: Sequence[str]) -> str:
    limit = 3
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(os.fsencode(name).decode(errors="replace") for name in names[:limit]) + more
