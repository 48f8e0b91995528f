"""Classifiers on frozen features, against independent computations on made-up features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stvid.errors import ConfigError, StvidError
from stvid.evaluation.metrics import softmax
from stvid.evaluation.probe import choose_penalty, fit_linear, neighbour_logits, with_classifier
from stvid.models.base import VideoModel
from stvid.protocol import Protocol


def blobs(videos: int = 30, *, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 2, 5) around a point for each of three classes, far from zero and of unlike scales; labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(videos) % 3
    centres = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]], float)
    features = centres[labels][:, None] + noise * rng.standard_normal((videos, 2, 5))
    return (100 + features * [1, 10, 0.1, 1, 1]).astype(np.float32), labels


def test_linear_is_the_optimum_of_the_stated_loss() -> None:
    features, labels = blobs()
    found = fit_linear(features, labels, num_classes=3, penalty=0.1)
    rows = features.reshape(-1, 5).astype(np.float64)
    mean, std = rows.mean(0), rows.std(0)
    x, y = (rows - mean) / std, np.repeat(labels, 2)
    weight = found.weight.double().numpy() * std
    bias = found.bias.double().numpy() + found.weight.double().numpy() @ mean
    wrong = softmax(x @ weight.T + bias) - np.eye(3)[y]
    # The gradient of the loss vanishes: float32 of the answer is the only error.
    np.testing.assert_allclose(wrong.T @ x / len(x) + 0.1 * weight, 0, atol=2e-5)
    np.testing.assert_allclose(wrong.mean(0), 0, atol=2e-5)
    again = fit_linear(features, labels, num_classes=3, penalty=0.1)
    assert torch.equal(found.weight, again.weight) and torch.equal(found.bias, again.bias)


def test_a_constant_feature_and_a_class_without_videos_do_no_harm() -> None:
    features, labels = blobs()
    features[..., 4] = 7.0
    found = fit_linear(features, labels, num_classes=4, penalty=0.01)
    assert found.weight.isfinite().all() and (found.weight[:, 4] == 0).all()
    assert (found.logits(features).mean(1).argmax(1) == labels).mean() > 0.9
    features[0, 0, 0] = np.nan
    with pytest.raises(StvidError, match="not finite"):
        fit_linear(features, labels, num_classes=4, penalty=0.01)


def test_multilabel_is_one_regression_for_each_class() -> None:
    features, labels = blobs()
    targets = np.eye(3, dtype=np.int64)[labels]
    targets[:, 2] |= targets[:, 0]
    joint = fit_linear(features, targets, num_classes=3, penalty=0.05)
    for k in range(3):
        alone = fit_linear(features, targets[:, k : k + 1], num_classes=1, penalty=0.05)
        torch.testing.assert_close(joint.weight[k], alone.weight[0], rtol=1e-3, atol=1e-4)
    assert ((joint.logits(features).mean(1) > 0) == targets).mean() > 0.9


def test_the_penalty_is_chosen_on_the_videos_that_are_held_out() -> None:
    features, labels = blobs(60, noise=1.0)
    held = np.arange(60) >= 45
    best, records = choose_penalty(features, labels, held, num_classes=3)
    assert [record["l2"] for record in records] == sorted((record["l2"] for record in records), reverse=True)
    assert best == max(records, key=lambda record: (record["top1"], -record["loss"]))["l2"]
    # Each record is what a fit from nothing gives.
    alone = fit_linear(features[~held], labels[~held], num_classes=3, penalty=1e-2)
    record = next(record for record in records if record["l2"] == pytest.approx(1e-2))
    right = softmax(alone.logits(features[held])).mean(1).argmax(1) == labels[held]
    assert record["top1"] == pytest.approx(right.mean())
    # Held-out labels that are noise cannot be met by weak penalties: the strongest has the lowest loss.
    noise = np.where(held, np.random.default_rng(1).permutation(labels), labels)
    losses = [record["loss"] for record in choose_penalty(features, noise, held, num_classes=3)[1]]
    assert losses[0] == min(losses)


def test_neighbours_vote_as_dino_says() -> None:
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((12, 1, 4)).astype(np.float32)
    queries = rng.standard_normal((5, 2, 4)).astype(np.float32)
    labels = np.arange(12) % 3
    found = neighbour_logits(queries, bank, labels, num_classes=3, k=4, temperature=0.1)
    assert found.shape == (5, 2, 3) and found.dtype == np.float32
    known = bank[:, 0] / np.linalg.norm(bank[:, 0], axis=1, keepdims=True)
    for video in range(5):
        for view in range(2):
            query = queries[video, view] / np.linalg.norm(queries[video, view])
            cosine = known @ query
            votes = np.zeros(3)
            for place in np.argsort(-cosine)[:4]:
                votes[labels[place]] += np.exp(cosine[place] / 0.1)
            np.testing.assert_allclose(softmax(found[video, view]), votes / votes.sum(), atol=1e-4)
    scaled = neighbour_logits(queries * 3, bank * 5, labels, num_classes=3, k=4, temperature=0.1)
    np.testing.assert_allclose(scaled, found, atol=1e-4)
    several = np.eye(3, dtype=np.int64)[labels]
    many = neighbour_logits(queries, bank, several, num_classes=3, k=4, temperature=0.1)
    np.testing.assert_allclose(1 / (1 + np.exp(-many)), softmax(found), atol=1e-4)


def test_one_neighbour_is_the_nearest_video() -> None:
    features, labels = blobs()
    found = neighbour_logits(features, features, labels, num_classes=3, k=1)
    centred = features - features.mean((0, 1))
    near = neighbour_logits(centred, centred, labels, num_classes=3, k=1)
    assert found.shape == near.shape and (near.mean(1).argmax(1) == labels).mean() > 0.8


class Odd(VideoModel):
    """A model whose classifier is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = 3, 5, 3
        self.head = nn.Sequential(nn.Linear(5, 3), nn.ReLU())

    def reset_classifier(self, num_classes: int, *, head: str = "default") -> None:
        pass


def test_a_model_that_takes_no_linear_layer_is_named() -> None:
    features, labels = blobs()
    probe = fit_linear(features, labels, num_classes=3, penalty=1.0)
    with pytest.raises(ConfigError, match=r"Odd is no linear layer of 5 features.*knn"):
        with_classifier(Odd(), probe, Protocol(), "multiclass")
