"""Numbers about a set of videos: pure functions of scores and labels.

Everything here is a fraction in 0..1, computed in float64 with numpy; average precision and calibration error are
torchmetrics'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stvid.protocol import Task

__all__ = [
    "Average",
    "Calibration",
    "average_precision",
    "bootstrap_interval",
    "bounds",
    "calibration",
    "classification_metrics",
    "confusion_matrix",
    "label_ranks",
    "multilabel_metrics",
    "per_class",
    "softmax",
    "video_scores",
]

Average = Literal["probabilities", "logits"]
TOP_K = (1, 5)
_CHUNK = 256  # videos whose scores are held in float64 for all views at a time


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    values = np.asarray(logits, dtype=np.float64)
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    values = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(values))  # never overflows
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


def video_scores(
    logits: NDArray[Any], task: Task = "multiclass", average: Average = "probabilities"
) -> NDArray[np.float64]:
    """Returns the score of each class: the softmax (sigmoid if multi-label) of the logits, averaged over the views.

    Averaging probabilities of clips and crops is how two-stream networks (Simonyan and Zisserman, arXiv:1406.2199,
    section 5, "Testing") and SlowFast (arXiv:1812.03982, section 4, "Inference") state their video-level numbers; in
    SlowFast's code the head applies softmax in evaluation and `TestMeter` sums over the views. TSN
    (arXiv:1608.00859, section 3.1) averages logits and takes the softmax after the consensus.

    Args:
        logits: (N, V, K): videos, views, classes.
        task: ``multiclass`` takes the softmax, ``multilabel`` the sigmoid.
        average: Whether the ``probabilities`` or the ``logits`` of the views are averaged.

    Returns:
        (N, K) float64.
    """
    videos, _, classes = logits.shape
    activation = softmax if task == "multiclass" else _sigmoid
    scores = np.empty((videos, classes), dtype=np.float64)
    for start in range(0, videos, _CHUNK):
        part = np.asarray(logits[start : start + _CHUNK], dtype=np.float64)
        if average == "logits":
            scores[start : start + _CHUNK] = activation(part.mean(axis=1))
        else:
            scores[start : start + _CHUNK] = activation(part).mean(axis=1)
    return scores


def label_ranks(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Counts the classes that are ranked before each video's own: 0 is a correct top-1 prediction.

    Equal scores are ranked by class number, as argmax does, so that a constant model is not always right.

    Args:
        scores: (N, K).
        labels: (N,) class numbers.

    Returns:
        (N,) in 0..K-1.
    """
    labels = np.asarray(labels, dtype=np.int64)[:, None]
    own = np.take_along_axis(scores, labels, axis=1)
    earlier = np.arange(scores.shape[1])[None] < labels
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1).astype(np.int64)


def confusion_matrix(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Counts (K, K): row is the true class, column the predicted one.

    Args:
        scores: (N, K).
        labels: (N,) class numbers.
    """
    classes = scores.shape[1]
    cells = np.asarray(labels, dtype=np.int64) * classes + scores.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def _class_mean(correct: NDArray[Any], support: NDArray[Any]) -> float:
    present = support > 0
    return float((correct[present] / support[present]).mean())


def classification_metrics(scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Top-1, top-5 and mean-class accuracy of single-label videos.

    Args:
        scores: (N, K), higher is more likely; logits or probabilities.
        labels: (N,) class numbers.

    Returns:
        ``top1``, ``top5`` (left out with 5 classes or fewer, where it is 1 of itself), and ``mean_class``: the
        recall of each class, averaged over the classes that have a video.

    Raises:
        ValueError: If there is no video.
    """
    if len(scores) == 0:
        raise ValueError("no video to compute metrics of")
    ranks = label_ranks(scores, labels)
    metrics = {f"top{k}": float((ranks < k).mean()) for k in TOP_K if k == 1 or k < scores.shape[1]}
    support = np.bincount(labels, minlength=scores.shape[1])
    metrics["mean_class"] = _class_mean(np.bincount(labels[ranks == 0], minlength=scores.shape[1]), support)
    return metrics


def average_precision(scores: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Average precision of each class over the videos (torchmetrics' `binary_average_precision`).

    Args:
        scores: (N, K), only their order within a class matters.
        targets: (N, K), 1 where the video has the class.

    Returns:
        (K,); NaN for a class that no video has.
    """
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    result = np.full(scores.shape[1], np.nan)
    for k in np.flatnonzero(np.asarray(targets).sum(axis=0) > 0):
        # torchmetrics squashes scores outside 0..1, which can make close ones equal; ranks stay apart.
        ranks = np.unique(scores[:, k], return_inverse=True)[1] / len(scores)
        target = np.asarray(targets)[:, k].astype(np.int64)
        result[k] = float(binary_average_precision(torch.from_numpy(ranks), torch.from_numpy(target)))
    return result


def multilabel_metrics(scores: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """Mean average precision of multi-label videos.

    Args:
        scores: (N, K).
        targets: (N, K), 1 where the video has the class.

    Returns:
        ``mAP``: the mean over the classes that at least one video has; a class without any has no average precision
        (`per_class` shows which, with support 0).

    Raises:
        ValueError: If there is no video, or none has a label.
    """
    if len(scores) == 0 or not np.asarray(targets).any():
        raise ValueError("no labelled video to compute metrics of")
    return {"mAP": float(np.nanmean(average_precision(scores, targets)))}


def bounds(
    scores: NDArray[Any],
    labels: NDArray[Any],
    *,
    failed_labels: NDArray[Any],
    task: Task = "multiclass",
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the metrics if all unreadable videos were wrong, and if all were right.

    Args:
        scores: (N, K) of the videos that were read.
        labels: (N,) class numbers, or (N, K) 0/1 if multi-label.
        failed_labels: (F,) or (F, K): the labels of the videos that could not be read.
        task: ``multiclass`` or ``multilabel``, which decides the metrics.

    Returns:
        Two dictionaries with the keys of `classification_metrics` or `multilabel_metrics`: lowest and highest values.
    """
    everything = np.concatenate([labels, failed_labels])
    worst, best = np.zeros((2, len(failed_labels), scores.shape[1]))
    if task == "multilabel":
        # Average precision falls when a positive goes down or a negative up: the extremes lie beyond all real scores.
        positive = np.asarray(failed_labels) > 0
        low, high = scores.min() - 1.0, scores.max() + 1.0
        worst, best = np.where(positive, low, high), np.where(positive, high, low)
        return (
            multilabel_metrics(np.concatenate([scores, worst]), everything),
            multilabel_metrics(np.concatenate([scores, best]), everything),
        )
    # Wrong: every other class is ranked before the true one.
    rows = np.arange(len(failed_labels))
    best[rows, failed_labels] = 1.0
    worst += 1.0
    worst[rows, failed_labels] = 0.0
    return (
        classification_metrics(np.concatenate([scores, worst]), everything),
        classification_metrics(np.concatenate([scores, best]), everything),
    )


def per_class(
    scores: NDArray[Any], labels: NDArray[Any], class_names: tuple[str, ...], task: Task = "multiclass"
) -> list[dict[str, Any]]:
    """Returns one record for each class, as `result.json` holds it; None stands for "undefined", never NaN.

    Args:
        scores: (N, K).
        labels: (N,) class numbers, or (N, K) 0/1 if multi-label.
        class_names: K names.
        task: ``multiclass`` gives ``class, support, recall, precision``; ``multilabel`` gives ``class, support, ap``.
    """
    if task == "multilabel":
        support = np.asarray(labels).sum(axis=0)
        precisions = average_precision(scores, labels)
        return [
            {"class": name, "support": int(n), "ap": float(ap) if n else None}
            for name, n, ap in zip(class_names, support, precisions, strict=True)
        ]
    confusion = confusion_matrix(scores, labels)
    hits, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "class": name,
            "support": int(support[k]),
            "recall": float(hits[k] / support[k]) if support[k] else None,
            "precision": float(hits[k] / predicted[k]) if predicted[k] else None,
        }
        for k, name in enumerate(class_names)
    ]


def bootstrap_interval(
    values: NDArray[Any], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean over videos (Efron and Tibshirani 1993, section 13.3).

    Args:
        values: (N,) one number for each video, such as 1 for a correct prediction; differences of two models give the
            interval of a paired comparison.
        level: Share of the resampled means that lie within the interval.
        resamples: How often N videos are drawn with replacement.
        seed: Seed of these draws.

    Raises:
        ValueError: If there is no video.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no video to compute an interval of")
    rng = np.random.default_rng(seed)
    # A resample is how often each different value is drawn: a few numbers however many videos there are.
    different, counts = np.unique(values, return_counts=True)
    means = rng.multinomial(len(values), counts / len(values), size=resamples) @ different / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Calibration:
    """Measures whether predictions made with probability p are right in a share p of the cases.

    Attributes:
        error: Expected calibration error: the mean over the videos of |confidence - accuracy| of their bin (Guo et al.
            2017, arXiv:1706.04599, section 2).
        bins: One record for each bin of equal width that holds a video: ``low, high, count, confidence, accuracy``.
    """

    error: float
    bins: tuple[dict[str, float], ...]


def calibration(scores: NDArray[Any], labels: NDArray[Any], *, bins: int = 15) -> Calibration:
    """Compares the confidence of the top-1 predictions with how often they are right.

    Args:
        scores: (N, K) probabilities.
        labels: (N,) class numbers.
        bins: Bins of equal width between 0 and 1.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        torch.from_numpy(np.ascontiguousarray(scores)),
        torch.from_numpy(np.ascontiguousarray(labels)),
        num_classes=scores.shape[1],
        n_bins=bins,
        validate_args=False,
    )
    confidence = scores.max(axis=1)
    correct = scores.argmax(axis=1) == labels
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    records = [
        {
            "low": float(k / bins),
            "high": float((k + 1) / bins),
            "count": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(correct[inside].mean()),
        }
        for k in np.unique(number)
        for inside in [number == k]
    ]
    return Calibration(float(error), tuple(records))
