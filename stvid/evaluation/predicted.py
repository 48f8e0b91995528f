"""Predictions for videos in the form in which they are handed to other programs.

A prediction is of the whole video, or of its parts. Windows of a timeline become parts in this way: each window speaks
for the time around its middle, half a step to either side, and neighbours of the same class are one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvid.data.exchange.labelled import LabelledPart, LabelledVideo
from stvid.data.sampling import TOLERANCE
from stvid.errors import ConfigError
from stvid.evaluation.predict import Prediction
from stvid.evaluation.timeline import TimelineWindow
from stvid.protocol import Task

__all__ = [
    "ExchangeSettings",
    "Predicted",
    "PredictedPart",
    "as_labels",
    "check_names",
    "predicted_over_time",
    "predicted_whole",
]


@dataclass(frozen=True)
class PredictedPart:
    """The classes of a video, or of a part of it.

    Attributes:
        labels: The predicted classes: one, or for several labels a video those above the threshold, perhaps none.
        scores: Probabilities of all K classes, float64 (K,).
        start: Where the part begins in seconds from the first frame; None is the whole video.
        end: Where it ends; None is the whole video.
    """

    labels: tuple[int, ...]
    scores: NDArray[np.float64]
    start: float | None = None
    end: float | None = None

    @property
    def confidence(self) -> float:
        """The probability of the (most likely) predicted class; without one that nothing is to be seen."""
        return float(max((self.scores[number] for number in self.labels), default=1 - self.scores.max()))


@dataclass(frozen=True)
class Predicted:
    """The predictions for a video.

    Attributes:
        path: The video, as it was given.
        parts: The prediction for all of it, or for its parts in order.
        over_time: Whether the parts are those of a timeline.
    """

    path: str
    parts: tuple[PredictedPart, ...]
    over_time: bool = False


@dataclass(frozen=True)
class ExchangeSettings:
    """Settings of the files.

    Attributes:
        class_names: Names of all classes, in the order of the logits.
        task: ``multiclass`` or ``multilabel``.
        model_version: Name of the model, as the tools show it.
        root: Folder that Label Studio serves files from (``LOCAL_FILES_DOCUMENT_ROOT``).
        from_name: Name of the control in Label Studio; None is ``choice``, or ``timeline`` for parts.
        to_name: Name of the video in Label Studio.
        topk: How many classes the JSON names.
        formulas: Whether cells of a CSV stay as they are that a spreadsheet would take for formulas.
    """

    class_names: tuple[str, ...]
    task: Task = "multiclass"
    model_version: str = "stvid"
    root: str = "."
    from_name: str | None = None
    to_name: str = "video"
    topk: int = 5
    formulas: bool = False

    def __post_init__(self) -> None:
        for name, value in (("from_name", self.from_name), ("to_name", self.to_name)):
            if value is not None and not value.strip():
                raise ConfigError(f"{name}: is empty; Label Studio needs a name")
        if self.from_name == self.to_name:
            raise ConfigError(f"from_name and to_name are both {self.to_name!r}; Label Studio needs two names")


# --- what was predicted -----------------------------------------------------------------------------------------------


def _chosen(scores: NDArray[np.float64], task: Task) -> tuple[int, ...]:
    if task == "multilabel":
        order = np.argsort(-scores, kind="stable")
        return tuple(int(number) for number in order if scores[number] >= 0.5)
    return (int(scores.argmax()),)


def predicted_whole(prediction: Prediction, task: Task) -> Predicted | None:
    """Returns the prediction for a whole video; None if it could not be read.

    Args:
        prediction: One with all classes: `stvid.predict` with `topk` of at least their number.
        task: ``multiclass``, or ``multilabel``, whose labels are the classes above 0.5.
    """
    if prediction.error is not None:
        return None
    scores = np.empty(len(prediction.class_ids))
    scores[prediction.class_ids] = prediction.probabilities
    return Predicted(prediction.path, (PredictedPart(_chosen(scores, task), scores),))


def predicted_over_time(path: str, windows: Iterable[TimelineWindow], stride: float, task: Task) -> Predicted:
    """Makes parts of the windows of a timeline.

    Args:
        path: The video.
        windows: The windows in order; those with errors are gaps.
        stride: Seconds from one window to the next.
        task: ``multiclass``: neighbours with the same most likely class are one part. ``multilabel``: so are neighbours
            with the same classes above 0.5; where there is none, there is no part.
    """
    usable = [window for window in windows if window.error is None]
    parts: list[PredictedPart] = []
    group: list[tuple[float, float, TimelineWindow]] = []

    def close() -> None:
        if group:
            scores = np.mean([window.scores for _, _, window in group], axis=0)
            labels = _chosen(group[0][2].scores, task)
            if labels:
                parts.append(PredictedPart(labels, scores, group[0][0], group[-1][1]))
            group.clear()

    for number, window in enumerate(usable):
        middle = (window.start + window.end) / 2
        begin = window.start if number == 0 else max(window.start, middle - stride / 2)
        end = window.end if number == len(usable) - 1 else min(window.end, middle + stride / 2)
        if group and begin > group[-1][1] + TOLERANCE:  # a gap
            close()
        if group:
            begin = group[-1][1]
        elif parts and parts[-1].end is not None:
            begin = max(begin, parts[-1].end)
        if group and {*_chosen(group[0][2].scores, task)} != {*_chosen(window.scores, task)}:
            close()
        if end > begin:
            group.append((begin, end, window))
    close()
    return Predicted(path, tuple(parts), over_time=True)


def check_names(predicted: Sequence[Predicted]) -> None:
    """Raises ConfigError if the name of a video is no text that a file of UTF-8 can hold."""
    for video in predicted:
        try:
            video.path.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{video.path!r}: its name is not UTF-8 text; rename it") from error


def as_labels(predicted: Sequence[Predicted], settings: ExchangeSettings) -> list[LabelledVideo]:
    """Returns the predicted classes by their names, as the writers of `stvid.data.exchange` take them."""
    names = settings.class_names
    return [
        LabelledVideo(
            video.path,
            tuple(
                LabelledPart(tuple(names[number] for number in part.labels), part.start, part.end, part.confidence)
                for part in video.parts
            ),
        )
        for video in predicted
    ]
