"""Two results compared: tests against independent formulas, and what is refused."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from stvid.errors import ConfigError, StvidError
from stvid.evaluation.comparison import compare, mcnemar
from stvid.evaluation.metrics import average_precision, multilabel_metrics
from stvid.evaluation.result import EvaluationResult, ViewAccumulator
from stvid.protocol import Protocol

NAMES = ("a", "b", "c")


def result(
    predicted: list[int],
    labels: list[int],
    *,
    names: tuple[str, ...] = NAMES,
    folder: str = "/v",
    failed: tuple[int, ...] = (),
    paths: list[str] | None = None,
) -> EvaluationResult:
    accumulator = ViewAccumulator(Protocol(class_names=names))
    for index, (guess, label) in enumerate(zip(predicted, labels, strict=True)):
        path = paths[index] if paths else f"{folder}/{index}.mp4"
        if index in failed:
            accumulator.add_failure(index, path, "empty file", labels=label)
        else:
            accumulator.add(index, np.eye(len(names))[[guess]] * 5, label, path=path)
    return accumulator.result()


def test_wins_losses_and_classes() -> None:
    labels = [0, 0, 0, 1, 1, 2, 2, 2]
    first = result([0, 0, 1, 1, 1, 0, 0, 2], labels)
    second = result([0, 1, 0, 1, 1, 2, 2, 2], labels)
    found = compare(first, second)
    assert (found.wins, found.losses, found.videos, found.left_out) == (3, 1, 8, 0)
    assert found.first == 5 / 8 and found.second == 7 / 8 and found.difference == 0.25
    assert found.p_value == pytest.approx(2 * (1 + 4) / 16)
    assert found.interval[0] < 0.25 < found.interval[1]
    assert [(c.name, c.support, c.wins, c.losses) for c in found.per_class] == [
        ("c", 3, 2, 0),
        ("a", 3, 1, 1),
        ("b", 2, 0, 0),
    ]
    back = compare(second, first)
    assert (back.wins, back.losses, back.difference) == (1, 3, -0.25)
    same = compare(first, first)
    assert same.interval == (0, 0) and same.p_value == 1.0


def test_results_are_named_by_their_folders(tmp_path: Path) -> None:
    labels = [0, 1, 2, 2]
    first, second = result([0, 1, 2, 0], labels), result([0, 1, 2, 2], labels)
    second.save(tmp_path / "second")
    assert compare(first, tmp_path / "second").difference == compare(first, second).difference == 0.25
    with pytest.raises(StvidError, match=r"nowhere: neither a result\.json nor a folder"):
        compare(first, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("wins", "losses"), list(product(range(7), range(7))))
def test_mcnemar_against_the_sum_of_binomial_terms(wins: int, losses: int) -> None:
    total = wins + losses
    expected = min(1.0, 2 * sum(math.comb(total, k) for k in range(min(wins, losses) + 1)) / 2**total)
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_many_videos() -> None:
    expected = 2 * sum(math.comb(3000, k) for k in range(1401)) / 2**3000
    assert mcnemar(1600, 1400) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(100000, 0) == 0.0


def test_classes_in_another_order_and_videos_in_another_folder() -> None:
    labels = [0, 1, 2, 2]
    first = result([0, 1, 2, 0], labels)
    order = ("c", "a", "b")
    to = [order.index(name) for name in NAMES]
    second = result([to[0], to[0], to[2], to[2]], [to[k] for k in labels], names=order, folder="/elsewhere/data")
    found = compare(first, second)
    assert (found.wins, found.losses, found.videos) == (1, 1, 4)


def test_unreadable_videos_are_left_out_and_counted() -> None:
    labels = [0, 1, 2, 0]
    found = compare(result([0, 1, 2, 0], labels, failed=(1,)), result([1, 1, 2, 0], labels, failed=(3,)))
    assert (found.videos, found.left_out, found.losses, found.wins) == (2, 2, 1, 0)


def test_parts_of_one_file_are_told_apart() -> None:
    paths = ["/v/long.mp4", "/v/long.mp4", "/v/x.mp4"]
    labels = [0, 1, 2]
    found = compare(result([0, 0, 2], labels, paths=paths), result([0, 1, 2], labels, paths=paths))
    assert (found.videos, found.wins) == (3, 1)
    failed = compare(result([0, 0, 2], labels, paths=paths, failed=(0,)), result([0, 1, 2], labels, paths=paths))
    assert (failed.videos, failed.left_out) == (1, 2)  # which part of the file failed is not known


def test_what_cannot_be_compared_is_refused() -> None:
    base = result([0, 1, 2], [0, 1, 2])
    for other, message in [
        (result([0, 1], [0, 1]), "of different videos .only in the first: .*2.mp4"),
        (result([0, 1, 2], [0, 1, 1]), "different labels for 1 videos, first /v/2.mp4"),
        (result([0, 1, 2], [0, 1, 2], names=("a", "b", "x")), "different classes: c, x"),
        (result([0, 1, 2], [0, 1, 2], paths=["/v/0.mp4", "/v/1.mp4", "/v/other.mp4"]), "different videos"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            compare(base, other)
        assert "\n" not in str(caught.value)
    half = result([0, 1, 2], [0, 1, 2], failed=(0,))
    with pytest.raises(ConfigError, match="no readable video in common"):
        compare(half, result([0, 1, 2], [0, 1, 2], failed=(1, 2)))


def test_multilabel() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 3)) < 0.4).astype(np.int64)
    logits = [rng.normal(size=(60, 3)) + strength * targets for strength in (0.3, 1.5)]
    results = []
    for values in logits:
        accumulator = ViewAccumulator(Protocol(class_names=NAMES), task="multilabel")
        for index in range(60):
            accumulator.add(index, values[index][None], targets[index], path=f"/v/{index}.mp4")
        results.append(accumulator.result())
    found = compare(*results, resamples=300)
    scores = [torch.from_numpy(values).float().sigmoid().numpy() for values in logits]
    for value, score in zip((found.first, found.second), scores, strict=True):
        assert value == pytest.approx(multilabel_metrics(score, targets)["mAP"], abs=1e-6)
    assert found.p_value is None and found.wins is None and found.interval[0] > 0
    # the interval against resampling with torchmetrics
    draws = np.random.default_rng(1).integers(0, 60, (300, 60))
    expected = [
        np.nanmean(average_precision(scores[1][rows], targets[rows]))
        - np.nanmean(average_precision(scores[0][rows], targets[rows]))
        for rows in draws[:100]
    ]
    np.testing.assert_allclose(found.interval, np.quantile(expected, [0.025, 0.975]), atol=0.06)
    with pytest.raises(ConfigError, match="multiclass"):
        compare(results[0], result([0], [0]))
