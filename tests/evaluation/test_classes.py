"""The most likely classes of one video, by name."""

from __future__ import annotations

import numpy as np
import pytest

from stvid.errors import ConfigError
from stvid.evaluation.classes import name_classes, top_classes
from stvid.protocol import Protocol

LOGITS = np.array([[0.0, 2.0, 1.0], [0.0, 1.0, 5.0]], np.float32)


def test_classes_come_by_their_mean_probability() -> None:
    found = top_classes(LOGITS, Protocol(class_names=("a", "b", "c")), task="multiclass", topk=2)
    powers = np.exp(LOGITS.astype(np.float64))
    expected = (powers / powers.sum(1, keepdims=True)).mean(0)
    assert found is not None and found.names == ("c", "b") and found.ids == (2, 1)
    np.testing.assert_allclose(found.scores, expected)
    np.testing.assert_allclose(found.probabilities, expected[[2, 1]])


def test_every_class_of_a_multilabel_model_stands_alone() -> None:
    found = top_classes(LOGITS, Protocol(), task="multilabel", topk=9)
    assert found is not None and found.names == ("class 2", "class 1", "class 0")
    np.testing.assert_allclose(found.scores, (1 / (1 + np.exp(-LOGITS.astype(np.float64)))).mean(0))


def test_logits_that_are_no_numbers_have_no_classes() -> None:
    assert top_classes(np.array([[0.0, np.nan]], np.float32), Protocol(), task="multiclass", topk=1) is None


def test_another_number_of_names_is_refused() -> None:
    assert name_classes((), 2) == ("class 0", "class 1") and name_classes(["x", "y"], 2) == ("x", "y")
    with pytest.raises(ConfigError, match="3 logits, but the protocol names 2 classes"):
        name_classes(("x", "y"), 3)
