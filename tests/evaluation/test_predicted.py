from __future__ import annotations

import numpy as np
import pytest

from stvid.errors import ConfigError
from stvid.evaluation.predict import Prediction
from stvid.evaluation.predicted import (
    ExchangeSettings,
    Predicted,
    PredictedPart,
    as_labels,
    check_names,
    predicted_over_time,
    predicted_whole,
)
from stvid.evaluation.timeline import TimelineWindow


def window(start: float, end: float, *scores: float, error: str | None = None) -> TimelineWindow:
    return TimelineWindow(start, end, (), (), np.array(scores), error=error)


def spans(video: Predicted) -> list[tuple[float | None, float | None, tuple[int, ...]]]:
    return [(part.start, part.end, part.labels) for part in video.parts]


def test_a_whole_video() -> None:
    prediction = Prediction("a.mp4", ["c", "a", "b"], [0.7, 0.2, 0.1], [2, 0, 1])
    (part,) = predicted_whole(prediction, "multiclass").parts  # type: ignore[union-attr]
    assert part.labels == (2,) and part.scores.tolist() == [0.2, 0.1, 0.7] and part.confidence == 0.7
    prediction = Prediction("a.mp4", ["c", "a", "b"], [0.9, 0.5, 0.1], [2, 0, 1])
    (part,) = predicted_whole(prediction, "multilabel").parts  # type: ignore[union-attr]
    assert part.labels == (2, 0) and part.confidence == 0.9
    prediction.probabilities = [0.3, 0.2, 0.1]
    (part,) = predicted_whole(prediction, "multilabel").parts  # type: ignore[union-attr]
    assert part.labels == () and part.confidence == pytest.approx(0.7)
    assert predicted_whole(Prediction("a.mp4", error="damaged"), "multiclass") is None


def test_windows_become_parts() -> None:
    """Each window speaks for half a step around its middle; the first and last reach to the ends."""
    first, second = (0.8, 0.2), (0.4, 0.6)
    windows = [window(k, k + 2, *scores) for k, scores in enumerate((first, first, second, first))]
    found = predicted_over_time("a.mp4", windows, 1.0, "multiclass")
    assert found.over_time and spans(found) == [(0, 2.5, (0,)), (2.5, 3.5, (1,)), (3.5, 5, (0,))]
    assert found.parts[0].scores.tolist() == pytest.approx([0.8, 0.2]) and found.parts[1].confidence == 0.6
    assert spans(predicted_over_time("a.mp4", windows[:1], 1.0, "multiclass")) == [(0, 2, (0,))]
    assert spans(predicted_over_time("a.mp4", [], 1.0, "multiclass")) == []


def test_scores_of_a_part_are_averages() -> None:
    windows = [window(0, 1, 0.9, 0.1), window(1, 2, 0.7, 0.3)]
    (part,) = predicted_over_time("a.mp4", windows, 1.0, "multiclass").parts
    assert part.confidence == pytest.approx(0.8)


def test_gaps_stay_gaps() -> None:
    windows = [window(0, 1, 1, 0), window(1, 2, error="no frame"), window(2, 3, 1, 0)]
    assert spans(predicted_over_time("a.mp4", windows, 1.0, "multiclass")) == [(0, 1, (0,)), (2, 3, (0,))]
    sparse = [window(0, 1, 1, 0), window(5, 6, 1, 0)]  # a step that is longer than the window
    assert spans(predicted_over_time("a.mp4", sparse, 5.0, "multiclass")) == [(0, 1, (0,)), (5, 6, (0,))]


def test_several_labels_over_time() -> None:
    windows = [window(0, 1, 0.9, 0.8), window(1, 2, 0.8, 0.9), window(2, 3, 0.1, 0.2), window(3, 4, 0.1, 0.6)]
    found = predicted_over_time("a.mp4", windows, 1.0, "multilabel")
    assert spans(found) == [(0, 2, (0, 1)), (3, 4, (1,))]


def test_settings() -> None:
    with pytest.raises(ConfigError, match="both 'video'"):
        ExchangeSettings(("a",), from_name="video")
    with pytest.raises(ConfigError, match="to_name: is empty"):
        ExchangeSettings(("a",), to_name=" ")


def test_names_that_are_no_text() -> None:
    part = PredictedPart((0,), np.ones(1))
    check_names([Predicted("ü.mp4", (part,))])
    with pytest.raises(ConfigError, match="is not UTF-8 text; rename it"):
        check_names([Predicted("\udcff.mp4", (part,))])


def test_labels_by_name() -> None:
    """The writers of tools take names, parts, and how sure the network is."""
    parts = (PredictedPart((1,), np.array([0.2, 0.8]), 0.5, 1.0), PredictedPart((), np.array([0.2, 0.4]), 1.0, 2.0))
    (video,) = as_labels([Predicted("a.mp4", parts, over_time=True)], ExchangeSettings(("run", "sit")))
    assert video.path == "a.mp4" and [part.labels for part in video.parts] == [("sit",), ()]
    assert [(part.start, part.end, part.confidence) for part in video.parts] == [(0.5, 1.0, 0.8), (1.0, 2.0, 0.6)]
