"""Late fusion adds the logits of several models, video by video, and counts what one of them could not read."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import stvid
from stvid.errors import ConfigError
from stvid.evaluation.result import EvaluationResult, ViewAccumulator
from stvid.protocol import Protocol


def result_of(
    logits: np.ndarray, *, missing: tuple[int, ...] = (), labels: tuple[int, ...] = (0, 1, 2)
) -> EvaluationResult:
    names = tuple("abc")
    accumulator = ViewAccumulator(Protocol(views="2x1", class_names=names))
    for index, label in enumerate(labels):
        if index in missing:
            accumulator.add_failure(index, f"{index}.mp4", "broken", labels=label)
        else:
            accumulator.add(index, logits[index], label, path=f"{index}.mp4")
    return accumulator.result()


def test_late_fusion_adds_the_logits() -> None:
    rng = np.random.default_rng(0)
    rgb, flow = rng.normal(size=(2, 3, 2, 3)).astype(np.float32)
    fused = stvid.late_fusion([result_of(rgb), result_of(flow)])
    np.testing.assert_allclose(fused.logits, rgb + flow, rtol=1e-6)
    scores = np.exp(rgb + flow) / np.exp(rgb + flow).sum(-1, keepdims=True)
    top1 = (scores.mean(1).argmax(1) == [0, 1, 2]).mean()
    assert fused.metrics["top1@2x1"] == pytest.approx(top1)
    weighted = stvid.late_fusion([result_of(rgb), result_of(flow)], weights=[1.0, 0.5])
    np.testing.assert_allclose(weighted.logits, rgb + 0.5 * flow, rtol=1e-6)


def test_late_fusion_counts_what_one_model_could_not_read() -> None:
    logits = np.eye(3, dtype=np.float32)[:, None].repeat(2, 1)
    fused = stvid.late_fusion([result_of(logits, missing=(2,)), result_of(logits, missing=(1,))])
    assert fused.indices.tolist() == [0]
    assert [path for path, _ in fused.failures] == ["2.mp4", "1.mp4"]
    assert fused.metrics["top1@2x1"] == 1.0 and fused.metrics["top1@2x1_low"] == pytest.approx(1 / 3)


def test_late_fusion_refuses_what_does_not_fit() -> None:
    logits = np.eye(3, dtype=np.float32)[:, None].repeat(2, 1)
    result = result_of(logits)
    with pytest.raises(ConfigError, match="two or more"):
        stvid.late_fusion([result])
    with pytest.raises(ConfigError, match="1 weights for 2 results"):
        stvid.late_fusion([result, result], weights=[1.0])
    with pytest.raises(ConfigError, match="video 1 has different labels"):
        stvid.late_fusion([result, result_of(logits, labels=(0, 2, 2))])
    other = copy.copy(result)
    other.class_names = ("x", "y", "z")
    with pytest.raises(ConfigError, match="differ in class_names"):
        stvid.late_fusion([result, other])
