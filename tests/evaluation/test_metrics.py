import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from stvid.evaluation import metrics as M

N, K = 60, 7


def random_scores(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return M.softmax(rng.normal(size=(N, K))), rng.integers(0, K, N)


def naive_top(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    return sum(label in np.argsort(-row, kind="stable")[:k] for row, label in zip(scores, labels, strict=True)) / len(
        labels
    )


def naive_ap(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of the precision at each positive, best first, no equal scores."""
    hits = targets[np.argsort(-scores)]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits == 1].mean())


def test_softmax_of_large_logits():
    values = M.softmax(np.array([[1000.0, 1000.0, -1000.0]], dtype=np.float32))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, [[0.5, 0.5, 0.0]])


@pytest.mark.parametrize(("task", "function"), [("multiclass", lambda x: x.softmax(-1)), ("multilabel", torch.sigmoid)])
def test_video_scores_average_probabilities_not_logits(task, function):
    logits = np.random.default_rng(0).normal(scale=4, size=(600, 3, 5)).astype(np.float32)  # more than one chunk
    expected = function(torch.from_numpy(logits).double()).mean(1).numpy()
    np.testing.assert_allclose(M.video_scores(logits, task), expected, atol=1e-12)


def test_multilabel_scores_do_not_overflow():
    scores = M.video_scores(np.array([[[1e4, -1e4, 0.0]]], dtype=np.float32), "multilabel")
    np.testing.assert_allclose(scores, [[1.0, 0.0, 0.5]])


def test_classification_metrics_against_naive_and_torchmetrics():
    scores, labels = random_scores()
    found = M.classification_metrics(scores, labels)
    assert found["top1"] == naive_top(scores, labels, 1)
    assert found["top5"] == naive_top(scores, labels, 5)
    macro = multiclass_accuracy(torch.from_numpy(scores), torch.from_numpy(labels), num_classes=K, average="macro")
    assert found["mean_class"] == pytest.approx(float(macro), abs=1e-6)


def test_top5_is_left_out_where_it_is_always_right():
    assert set(M.classification_metrics(np.eye(4), np.arange(4))) == {"top1", "mean_class"}
    assert set(M.classification_metrics(np.eye(5), np.arange(5))) == {"top1", "mean_class"}
    assert set(M.classification_metrics(np.eye(6), np.arange(6))) == {"top1", "top5", "mean_class"}


def test_mean_class_counts_only_classes_with_videos():
    scores = np.eye(4)[[0, 0, 0, 1]]
    labels = np.array([0, 0, 0, 2])  # class 1 is predicted but has no video; class 3 has neither
    assert M.classification_metrics(scores, labels) == {"top1": 0.75, "mean_class": 0.5}


def test_equal_scores_are_ranked_as_argmax_does():
    scores = np.ones((3, 3))
    assert M.label_ranks(scores, np.arange(3)).tolist() == [0, 1, 2]
    assert M.classification_metrics(scores, np.arange(3))["top1"] == pytest.approx(1 / 3)


def test_confusion_rows_are_the_true_class():
    scores = np.eye(3)[[1, 1, 2]]
    found = M.confusion_matrix(scores, np.array([0, 1, 2]))
    assert found.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_per_class_has_none_where_undefined():
    scores = np.eye(3)[[1, 1, 1]]
    found = M.per_class(scores, np.array([0, 1, 1]), ("a", "b", "c"))
    assert found == [
        {"class": "a", "support": 1, "recall": 0.0, "precision": None},
        {"class": "b", "support": 2, "recall": 1.0, "precision": pytest.approx(2 / 3)},
        {"class": "c", "support": 0, "recall": None, "precision": None},
    ]


def test_average_precision_against_naive():
    rng = np.random.default_rng(1)
    scores, targets = rng.random((N, K)), (rng.random((N, K)) < 0.3).astype(np.int64)
    expected = [naive_ap(scores[:, k], targets[:, k]) for k in range(K)]
    np.testing.assert_allclose(M.average_precision(scores, targets), expected, atol=1e-6)
    # only the order matters: values outside 0..1 and very close ones too
    np.testing.assert_allclose(M.average_precision(scores * 1e-6 + 40, targets), expected, atol=1e-6)


def test_map_leaves_out_classes_without_positives():
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3]])
    targets = np.array([[0, 0, 1], [1, 0, 0]])
    ap = M.average_precision(scores, targets)
    assert ap[0] == pytest.approx(0.5) and math.isnan(ap[1]) and ap[2] == pytest.approx(0.5)
    assert M.multilabel_metrics(scores, targets) == {"mAP": pytest.approx(0.5)}
    records = M.per_class(scores, targets, ("a", "b", "c"), "multilabel")
    assert [record["support"] for record in records] == [1, 0, 1]
    assert records[1] == {"class": "b", "support": 0, "ap": None}


def test_map_of_a_single_class():
    assert M.multilabel_metrics(np.array([[0.9], [0.1]]), np.array([[1], [0]])) == {"mAP": 1.0}


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="no video"):
        M.classification_metrics(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="no labelled"):
        M.multilabel_metrics(np.zeros((2, 3)), np.zeros((2, 3)))


def test_bounds_count_the_failed_wrong_and_right():
    scores, labels = random_scores()
    failed = np.array([0, 3, 3])
    low, high = M.bounds(scores, labels, failed_labels=failed)
    metrics = M.classification_metrics(scores, labels)
    for name in ("top1", "top5"):
        assert low[name] == pytest.approx(metrics[name] * N / (N + 3), abs=1e-12)
        assert high[name] == pytest.approx((metrics[name] * N + 3) / (N + 3), abs=1e-12)
    # mean_class really bounds every outcome
    rng = np.random.default_rng(2)
    for _ in range(20):
        outcome = np.concatenate([scores, rng.random((3, K))])
        value = M.classification_metrics(outcome, np.concatenate([labels, failed]))["mean_class"]
        assert low["mean_class"] <= value <= high["mean_class"]


def test_multilabel_bounds_hold_for_every_outcome():
    rng = np.random.default_rng(3)
    scores, targets = rng.random((20, 4)), (rng.random((23, 4)) < 0.4).astype(np.int64)
    low, high = M.bounds(scores, targets[:20], failed_labels=targets[20:], task="multilabel")
    assert low["mAP"] < high["mAP"]
    for _ in range(20):
        value = M.multilabel_metrics(np.concatenate([scores, rng.random((3, 4))]), targets)["mAP"]
        assert low["mAP"] - 1e-6 <= value <= high["mAP"] + 1e-6


def test_scores_of_averaged_logits():
    logits = np.random.default_rng(0).normal(scale=4, size=(20, 3, 5)).astype(np.float32)
    expected = torch.from_numpy(logits).double().mean(1).softmax(-1).numpy()
    np.testing.assert_allclose(M.video_scores(logits, average="logits"), expected, atol=1e-12)


def test_bootstrap_interval_of_an_accuracy_is_that_of_the_binomial():
    low, high = M.bootstrap_interval(np.arange(1000) < 700, resamples=20000)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert low == pytest.approx(0.7 - half, abs=0.002) and high == pytest.approx(0.7 + half, abs=0.002)
    assert M.bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no video"):
        M.bootstrap_interval(np.empty(0))


def test_bootstrap_interval_against_drawing_the_videos():
    values = np.random.default_rng(3).choice([-1, 0, 1], size=300, p=[0.2, 0.5, 0.3])
    draws = np.random.default_rng(4).integers(0, 300, (4000, 300))
    expected = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose(M.bootstrap_interval(values, resamples=4000), expected, atol=0.01)


def test_calibration_by_hand():
    # Two videos at 0.9 of which one is right; two at 0.6, both right.
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    found = M.calibration(scores, np.array([0, 1, 0, 1]), bins=10)
    assert found.error == pytest.approx(0.5 * 0.4 + 0.5 * 0.4, abs=1e-6)
    assert [record["count"] for record in found.bins] == [2, 2]
    assert [record["accuracy"] for record in found.bins] == [1.0, 0.5]
    weighted = sum(r["count"] * abs(r["confidence"] - r["accuracy"]) for r in found.bins) / 4
    assert weighted == pytest.approx(found.error, abs=1e-6)
    assert M.calibration(np.array([[1.0, 0.0]]), np.array([0])).error == pytest.approx(0.0)
