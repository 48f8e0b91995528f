"""Classifiers on frozen features: how much does a network know before it is trained for a task?

Two kinds need nothing but the features. `fit_linear` is multinomial logistic regression on standardised features (one
binary regression for each class if multi-label); the strength of its penalty is chosen on training videos that are held
out by `choose_penalty`. `neighbour_logits` is the weighted vote of the nearest training videos. `stvid.engine.probe`
extracts the features, and puts the linear classifier on the network.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stvid.checkpoints import save_model
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.metrics import video_scores
from stvid.evaluation.record import EvaluationResult, compute_metrics
from stvid.files import write_atomically
from stvid.models.base import VideoModel
from stvid.protocol import Protocol, Task

__all__ = [
    "PENALTIES",
    "LinearProbe",
    "ProbeKind",
    "ProbeResult",
    "choose_penalty",
    "fit_linear",
    "neighbour_logits",
    "with_classifier",
]

ProbeKind = Literal["linear", "knn", "attentive"]
PENALTIES = tuple(10.0**power for power in range(1, -7, -1))
"""Strengths of the penalty that are tried, from strong to weak."""
_LEAST = 1e-6  # of a probability, so that its logarithm is finite
_CHUNK = 1024  # queries whose similarities to all training videos are in memory at a time


# --- linear -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of the features as they are: the standardisation is part of it.

    Attributes:
        weight: float32 (K, D).
        bias: float32 (K,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Maps features (..., D) to logits (..., K), as the layer on the network does."""
        return F.linear(torch.from_numpy(np.ascontiguousarray(features)), self.weight, self.bias).numpy()


class _Regression:
    """Logistic regression of standardised features, for one strength of the penalty after the other.

    Args:
        features: (N, V, D) of N videos with V views, each of which is an example.
        labels: (N,) class numbers, or (N, K) 0/1 if multi-label.
        num_classes: K.
        device: Where to compute.
    """

    def __init__(self, features: NDArray[Any], labels: NDArray[Any], *, num_classes: int, device: str) -> None:
        views = features.shape[1]
        x = torch.from_numpy(features.reshape(-1, features.shape[2])).to(device, torch.float64)
        self.mean, self.std = x.mean(0), x.std(0, correction=0)
        self.std[self.std <= 1e-12 * self.mean.abs().clamp(min=1)] = 1.0  # a constant feature tells nothing
        self.x = (x - self.mean) / self.std
        self.multilabel = labels.ndim == 2
        targets = torch.from_numpy(np.repeat(labels, views, axis=0)).to(device)
        self.targets = targets.double() if self.multilabel else targets
        self.weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=device, requires_grad=True)
        self.bias = torch.zeros(num_classes, dtype=torch.float64, device=device, requires_grad=True)

    def _loss(self, penalty: float) -> Tensor:
        logits = F.linear(self.x, self.weight, self.bias)
        if self.multilabel:
            loss = F.binary_cross_entropy_with_logits(logits, self.targets, reduction="sum") / len(logits)
        else:
            loss = F.cross_entropy(logits, self.targets)
        return loss + penalty / 2 * self.weight.square().sum()

    def fit(self, penalty: float) -> LinearProbe:
        """Minimises the loss, from where the last fit ended; the optimum does not depend on that, the time does."""
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=1000,
            max_eval=2500,
            tolerance_grad=1e-7,
            tolerance_change=1e-11,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(penalty)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        weight = self.weight.detach() / self.std
        bias = self.bias.detach() - weight @ self.mean
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise StvidError("probe: the features of the training videos are not finite numbers; is the model broken?")
        return LinearProbe(weight.float().cpu(), bias.float().cpu())


def fit_linear(
    features: NDArray[Any], labels: NDArray[Any], *, num_classes: int, penalty: float, device: str = "cpu"
) -> LinearProbe:
    """Fits logistic regression: the mean cross entropy plus ``penalty / 2`` times the squared weights is least.

    The weights that are penalised are those of standardised features (mean 0 and deviation 1 over all training views);
    the biases are not penalised. L-BFGS in float64 finds the optimum, which is unique, so that nothing is drawn.

    Args:
        features: float32 (N, V, D) of N videos with V views; each view is an example with the labels of its video.
        labels: int64 (N,) class numbers; or (N, K) 0/1, which fits one binary regression for each class.
        num_classes: K.
        penalty: Strength of the penalty, above 0.
        device: Where to compute.

    Raises:
        StvidError: If the features are not finite.
    """
    return _Regression(features, labels, num_classes=num_classes, device=device).fit(penalty)


def choose_penalty(
    features: NDArray[Any],
    labels: NDArray[Any],
    held: NDArray[np.bool_],
    *,
    num_classes: int,
    device: str = "cpu",
    penalties: Sequence[float] = PENALTIES,
) -> tuple[float, list[dict[str, float]]]:
    """Fits the videos that are not held out with each penalty, and measures the others.

    Args:
        features: As in `fit_linear`.
        labels: As in `fit_linear`.
        held: bool (N,) which videos are held out.
        num_classes: K.
        device: Where to compute.
        penalties: Strengths to try, from strong to weak: each fit begins where the last one ended.

    Returns:
        The best penalty, and a record for each: ``l2``, ``top1`` (or ``mAP``) and ``loss`` of the held-out videos. The
        highest accuracy counts, among equal ones the lowest loss.
    """
    regression = _Regression(features[~held], labels[~held], num_classes=num_classes, device=device)
    task: Task = "multilabel" if labels.ndim == 2 else "multiclass"
    name = "mAP" if task == "multilabel" else "top1"
    records = []
    for penalty in penalties:
        logits = regression.fit(penalty).logits(features[held])
        scores = video_scores(logits, task)
        # Held-out videos without any label have no average precision; the loss alone decides then.
        known = task == "multiclass" or bool(labels[held].any())
        accuracy = compute_metrics(scores, labels[held], task)[name] if known else 0.0
        records.append({"l2": penalty, name: accuracy, "loss": _mean_loss(scores, labels[held])})
    return max(records, key=lambda record: (record[name], -record["loss"]))["l2"], records


def _mean_loss(scores: NDArray[np.float64], labels: NDArray[Any]) -> float:
    likely = np.clip(scores, 1e-12, 1 - 1e-12)
    if labels.ndim == 1:
        return float(-np.log(likely[np.arange(len(labels)), labels]).mean())
    return float(-np.where(labels > 0, np.log(likely), np.log1p(-likely)).sum(axis=1).mean())


# --- neighbours -------------------------------------------------------------------------------------------------------


def neighbour_logits(
    queries: NDArray[Any],
    bank: NDArray[Any],
    labels: NDArray[Any],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Returns logits of the weighted vote of the nearest training videos, by the cosine of the features.

    The k nearest vote with weight exp(cosine / temperature), as in DINO: Caron et al., "Emerging Properties in
    Self-Supervised Vision Transformers", 2021, arXiv:2104.14294, section 3.2 and its code, where k = 20 is found best
    and the temperature is 0.07, after Wu et al., arXiv:1805.01978, section 3.4.

    Args:
        queries: (M, V, D) features of M videos with V views, each of which looks for its own neighbours.
        bank: (N, V, D) features of the training videos; a video is the mean direction of its views.
        labels: (N,) class numbers, or (N, K) 0/1 if multi-label.
        num_classes: K.
        k: How many neighbours vote; all, if there are fewer.
        temperature: How much more a nearer neighbour counts.
        device: Where to compute.

    Returns:
        float32 (M, V, K): their softmax (sigmoid if multi-label) is each class's share of the votes, at least 1e-6.
    """
    multilabel = labels.ndim == 2
    known = F.normalize(torch.from_numpy(bank).to(device, torch.float64), dim=-1)
    known = F.normalize(known.mean(1), dim=-1)
    targets = torch.from_numpy(labels).to(device)
    votes_of = targets.double() if multilabel else F.one_hot(targets, num_classes).double()
    rows = torch.from_numpy(queries.reshape(-1, queries.shape[-1]))
    found = []
    for part in rows.split(_CHUNK):
        cosine = F.normalize(part.to(device, torch.float64), dim=-1) @ known.T
        values, places = cosine.sort(dim=1, descending=True, stable=True)  # equal ones in the order of the list
        values, places = values[:, :k], places[:, :k]
        weights = ((values - values[:, :1]) / temperature).exp()
        shares = (weights[:, :, None] * votes_of[places]).sum(1) / weights.sum(1, keepdim=True)
        shares = shares.clamp(_LEAST, 1 - _LEAST) if multilabel else shares.clamp(min=_LEAST)
        found.append((shares.logit() if multilabel else shares.log()).float().cpu())
    return torch.cat(found).reshape(*queries.shape[:2], num_classes).numpy()


# --- result -----------------------------------------------------------------------------------------------------------


def with_classifier(model: VideoModel, probe: LinearProbe, protocol: Protocol, task: Task) -> VideoModel:
    """Returns a copy of a model with a linear classifier, its protocol with the class names, and its task.

    Args:
        model: The frozen network.
        probe: The classifier of its features.
        protocol: The protocol that the features were made with; it names the classes.
        task: ``multiclass`` or ``multilabel``.

    Raises:
        ConfigError: If the model's logits are made by something else than a linear layer of its features.
    """
    network = copy.deepcopy(model)
    try:
        network.reset_classifier(len(probe.bias))
    except TypeError as error:
        raise ConfigError(f"probe: {error}") from error
    layer = network.get_classifier()
    if not isinstance(layer, nn.Linear) or layer.weight.shape != probe.weight.shape:
        raise ConfigError(
            f"probe: the classifier of {model.recipe.get('name', type(model).__name__)} is no linear layer of "
            f"{probe.weight.shape[1]} features, so a linear probe cannot be put on it; kind='knn' works"
        )
    with torch.no_grad():
        layer.weight.copy_(probe.weight)
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0]))
        layer.bias.copy_(probe.bias)
    network.default_protocol, network.task = protocol, task
    network.weights, network.measured = None, {}
    return network.eval()


@dataclass
class ProbeResult:
    """The result of `stvid.probe`.

    Attributes:
        kind: ``linear``, ``knn`` or ``attentive``.
        evaluation: The measured videos with their logits and all numbers, as `stvid.evaluate` gives them.
        train_videos: Training videos that the probe was fitted to.
        settings: What was chosen or used: ``l2`` of a linear probe, ``k`` and ``temperature`` of the neighbours,
            ``epochs`` of an attentive one.
        selection: A record for each strength of the penalty that was tried, see `choose_penalty`.
        train_failures: Path and reason of each training video that could not be read.
        folder: Where the files are; None if none were asked for.
    """

    kind: ProbeKind
    evaluation: EvaluationResult
    train_videos: int
    settings: dict[str, float]
    selection: list[dict[str, float]] = field(default_factory=list)
    train_failures: list[tuple[str, str]] = field(default_factory=list)
    folder: Path | None = None
    fitted: VideoModel | None = field(default=None, repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """Fractions with their views, such as ``top1@4x3``; see `EvaluationResult.metrics`."""
        return self.evaluation.metrics

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """One record for each class; see `EvaluationResult.per_class`."""
        return self.evaluation.per_class

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the logits."""
        return self.evaluation.class_names

    @property
    def n(self) -> int:
        """How many videos the metrics count."""
        return self.evaluation.counted

    @property
    def regularisation(self) -> float | None:
        """The strength of the penalty of a linear probe; None of another kind."""
        return self.settings.get("l2")

    @property
    def chance(self) -> dict[str, float]:
        """The accuracies of a guess, by the names of the metrics; empty if multi-label."""
        if self.evaluation.task == "multilabel":
            return {}
        names = (f"top{k}@{self.evaluation.views}" for k in (1, 5))
        classes = len(self.class_names)
        return {name: k / classes for name, k in zip(names, (1, 5), strict=True) if name in self.metrics}

    def model(self) -> VideoModel:
        """Returns the network with the fitted classifier on it, in evaluation mode.

        Raises:
            ConfigError: If the probe is that of the neighbours, which is a list of videos and no layer.
        """
        if self.fitted is None:
            raise ConfigError("probe: kind 'knn' fits no layer that could be put on a model; use linear or attentive")
        return self.fitted

    def summary(self) -> str:
        """Returns a few lines for people: the metrics beside those of a guess, and how the probe was made."""
        chosen = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        held = f" (chosen of {len(self.selection)} on held-out training videos)" if self.selection else ""
        lines = [self.evaluation.summary(), f"{self.kind} probe of {self.train_videos} training videos: {chosen}{held}"]
        if self.train_failures:
            lines.append(f"{len(self.train_failures)} training videos could not be read and are left out:")
            lines += [f"  {path}: {reason}" for path, reason in self.train_failures]
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``result.json`` and ``logits.npz``, as `stvid.evaluate` does, ``probe.json``, and the model.

        The model is ``probe.safetensors``, the network with its new classifier, for `stvid.load_model`; there is none
        of the neighbours.

        Args:
            folder: Made if it is missing. Earlier files of these names are replaced.

        Returns:
            The path of ``result.json``.

        Raises:
            StvidError: If the folder cannot be written to.
        """
        target = Path(folder)
        record = {
            "kind": self.kind,
            "train_videos": self.train_videos,
            "videos": self.n,
            "metrics": self.metrics,
            "chance": self.chance,
            "settings": self.settings,
            "selection": self.selection,
            "train_failures": [{"path": path, "reason": reason} for path, reason in self.train_failures],
        }
        written = self.evaluation.save(target)
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        try:
            write_atomically(target / "probe.json", lambda file: file.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise StvidError(f"{target}: cannot save the probe ({error.strerror or error})") from error
        if self.fitted is not None:
            save_model(self.fitted, target / "probe.safetensors")
        else:
            (target / "probe.safetensors").unlink(missing_ok=True)  # of an earlier probe of another kind
        self.folder = target
        return written
