"""Predictions as samples of FiftyOne: a data set on disk, or one that is open.

The data set on disk is a ``FiftyOneDataset``, the format of FiftyOne that holds confidence and logits. Frames of parts
are those of the video. Data sets that are open live in MongoDB, so that fiftyone is only imported for them.

Facts from the documentation and the importers of fiftyone 1.22 (``fiftyone/utils/data/importers.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvid.data.exchange.fiftyone import FIELD, write_samples
from stvid.data.exchange.labelled import frame_times, frames_between
from stvid.errors import StvidError
from stvid.evaluation.predicted import ExchangeSettings, Predicted
from stvid.protocol import Task

__all__ = ["write_fiftyone_folder", "write_to_fiftyone"]

_LEAST = 1e-12
"""The smallest probability of which a logit is written; that of 0 would be infinite."""


def _logits(scores: NDArray[np.float64], task: Task) -> list[float]:
    """Returns logits that give these probabilities: of softmax, or for several labels a video of the sigmoid.

    The scores are averages over views, so that no logits of the model belong to them.
    """
    safe = np.clip(scores, _LEAST, 1 - _LEAST)
    values = np.log(safe) - np.log1p(-safe) if task == "multilabel" else np.log(safe)
    return [round(float(value), 6) for value in values]


def _label(video: Predicted, settings: ExchangeSettings) -> dict[str, Any]:
    """Returns the value of the field of a sample, as FiftyOne writes it."""
    names, task = settings.class_names, settings.task
    if video.over_time:
        times, _ = frame_times(video.path)
        detections = []
        for part in video.parts:
            first, last = frames_between(times, part.start, part.end)
            for number in part.labels:
                shown = {"label": names[number], "support": [first + 1, last + 1]}
                detections.append(
                    {"_cls": "TemporalDetection", **shown, "confidence": round(float(part.scores[number]), 6)}
                )
        return {"_cls": "TemporalDetections", "detections": detections}
    (part,) = video.parts
    logits = _logits(part.scores, task)
    found = [
        {"_cls": "Classification", "label": names[n], "confidence": round(float(part.scores[n]), 6)}
        for n in part.labels
    ]
    if task == "multilabel":
        return {"_cls": "Classifications", "classifications": found, "logits": logits}
    return {**found[0], "logits": logits}


def write_fiftyone_folder(predicted: Sequence[Predicted], folder: Path, settings: ExchangeSettings) -> None:
    """Writes a data set that ``fiftyone.Dataset.from_dir(FOLDER, fiftyone.types.FiftyOneDataset)`` opens.

    Args:
        predicted: The predictions, which go into the field ``predictions``.
        folder: The folder; one that was written so before is replaced.
        settings: Names of the classes and the task.

    Raises:
        ConfigError: If there is another folder or file of that name.
        OSError: If it cannot be written.
    """
    write_samples([(video.path, {FIELD: _label(video, settings)}) for video in predicted], folder, settings.class_names)


def write_to_fiftyone(
    dataset: Any,
    predicted: Iterable[Predicted],
    settings: ExchangeSettings,
    *,
    field: str = FIELD,
    embeddings: Mapping[str, Any] | None = None,
) -> int:
    """Writes predictions into a data set that is open in FiftyOne.

    Args:
        dataset: A ``fiftyone.Dataset``, a view of one, or any iterable of samples.
        predicted: The predictions; those of videos that the data set does not have are not used.
        settings: Names of the classes and the task.
        field: Field of the samples to write.
        embeddings: A vector for each video, by its path; written to the field ``embeddings``.

    Returns:
        Number of samples that were written.

    Raises:
        StvidError: If fiftyone is not installed.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise StvidError(f"{error}; writing to FiftyOne needs: pip install fiftyone") from error
    by_path = {_absolute(video.path): video for video in predicted}
    vectors = {_absolute(path): vector for path, vector in (embeddings or {}).items()}
    count = 0
    for sample in dataset:
        path = _absolute(sample.filepath)
        if path not in by_path and path not in vectors:
            continue
        if path in by_path:
            sample[field] = _made(_label(by_path[path], settings), fiftyone)
        if path in vectors:
            sample["embeddings"] = np.asarray(vectors[path], np.float32)
        sample.save()
        count += 1
    return count


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _made(value: Any, fiftyone: Any) -> Any:
    """Returns a label of FiftyOne of its form on disk."""
    if isinstance(value, dict):
        made = {name: _made(inner, fiftyone) for name, inner in value.items() if name != "_cls"}
        return getattr(fiftyone, value["_cls"])(**made)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_made(inner, fiftyone) for inner in value]
    return value
