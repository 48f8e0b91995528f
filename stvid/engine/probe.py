"""A probe: a classifier that is trained on the features of a frozen network, to see what the network knows."""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from stvid.checkpoints import save_model
from stvid.config import load_config
from stvid.data.manifest import Manifest, read_manifest
from stvid.data.views import ViewPlan
from stvid.engine.features import extract_features
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.evaluate import EvaluationPlan, check_counts, evaluate, model_protocol
from stvid.evaluation.features import feature_files, load_features
from stvid.evaluation.probe import (
    LinearProbe,
    ProbeKind,
    ProbeResult,
    choose_penalty,
    fit_linear,
    neighbour_logits,
    with_classifier,
)
from stvid.evaluation.record import EvaluationResult
from stvid.evaluation.result import check_choice
from stvid.models.base import VideoModel
from stvid.models.heads import NamedHeads
from stvid.protocol import Protocol, Task
from stvid.runs import held_out, read_data
from stvid.zoo import load_model

__all__ = ["ProbeSettings", "probe"]

_SHARE = 0.2
"""Share of the training videos of each class that is held out, to choose the penalty or in the place of `val`."""


@dataclass(frozen=True)
class ProbeSettings:
    """How `probe` makes the features and fits the classifier.

    Attributes:
        views: Temporal clips x spatial crops, as in ``4x3``; None takes those of the protocol. The classifier is fitted
            to every view of the training videos, and measured on the average over those of the others.
        protocol: How clips are read; None takes `model.default_protocol`, which a checkpoint brings along.
        task: ``multiclass`` or ``multilabel``.
        l2: Strength of the penalty of a linear probe, see `stvid.evaluation.probe.fit_linear`; None chooses it on a
            fifth of the training videos.
        k: How many neighbours vote.
        temperature: How much more a nearer neighbour counts.
        epochs: Epochs that an attentive probe is trained for.
        batch_size: Clips in one forward pass; for an attentive probe, in one step.
        workers: Decoding processes; 0 decodes in this one.
        device: None takes a GPU if there is one.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        backend: Decoder.
        features: Folder in which the features are kept, so that a probe of another kind, or one that was interrupted,
            need not read the videos again; None takes the folder ``features`` below `out`.
        progress: Called with the number of videos whose features are there since the last call.

    Raises:
        ConfigError: If a number is not usable.
    """

    views: str | ViewPlan | None = None
    protocol: Protocol | None = None
    task: Task = "multiclass"
    l2: float | None = None
    k: int = 20
    temperature: float = 0.07
    epochs: int = 10
    batch_size: int = 8
    workers: int = 0
    device: str | None = None
    precision: str = "32-true"
    backend: str = "av"
    features: str | os.PathLike[str] | None = None
    progress: Callable[[int], Any] | None = None

    def __post_init__(self) -> None:
        check_choice("task", self.task, get_args(Task))
        check_counts(batch_size=self.batch_size, workers=self.workers, k=self.k, epochs=self.epochs)
        for name in ("l2", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name}: {value!r} is not a number above 0")

    def placed(self) -> tuple[str, str | int]:
        """Returns the accelerator and the devices as Lightning names them: one device."""
        if self.device is None:
            return "auto", 1
        kind, _, number = str(self.device).partition(":")
        return ("gpu" if kind == "cuda" else kind), (f"{number}," if number and kind != "cpu" else 1)

    def computes_on(self) -> str:
        """Returns the device as torch names it."""
        if self.device is None:
            return "cuda" if torch.cuda.is_available() else "cpu"
        return str(self.device)


@dataclass(frozen=True)
class _Job:
    """A network with the videos that it is probed by."""

    model: VideoModel
    train: Manifest
    val: Manifest
    protocol: Protocol  # with views and class names
    settings: ProbeSettings
    seed: int

    @property
    def plan(self) -> EvaluationPlan:
        return EvaluationPlan(self.protocol, task=self.settings.task, seed=self.seed)

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)


def probe(
    model_or_source: VideoModel | str | os.PathLike[str],
    train: Manifest | str | os.PathLike[str],
    val: Manifest | str | os.PathLike[str] | None = None,
    *,
    kind: ProbeKind = "linear",
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> ProbeResult:
    """Trains a classifier on the features of a frozen network and measures it.

    Kinds:
        linear: Logistic regression of the standardised features, the penalty chosen on training videos.
        knn: The vote of the nearest training videos; nothing is trained.
        attentive: A head that pools the tokens by attention, trained by `stvid.train` with the network frozen; a fifth
            of the training videos decides which epoch is taken. The videos are read in every epoch, since pooled
            features are not enough for it.

    The features of the other two are extracted once, and kept in `out` if that is given.

    Args:
        model_or_source: A model of stvid, with a classifier or without one (``num_classes=0``), or weights, as
            `stvid.load_model` takes them. A model is the same afterwards.
        train: Training videos: their list, or what `stvid.read_manifest` reads.
        val: Videos to measure; None holds out a fifth of the training videos of each class.
        kind: One of the above.
        out: Folder for the result, the classifier and the features, see `ProbeResult.save`; None keeps nothing.
        seed: Seed of what is held out and, of an attentive probe, of the training.
        **settings: The fields of `ProbeSettings`, such as ``views="4x3", batch_size=16``.

    Returns:
        The numbers, what was chosen, and the network with its classifier.

    Raises:
        ConfigError: If there are fewer than two classes, videos have no labels, no training video can be held out, a
            setting is not usable, or the model does not take the clips.
        ManifestError: If a list cannot be read, or a video to measure has a label that no training video has.
        CheckpointError: If weights cannot be read.
        StvidError: If too few videos can be read.
        TypeError: If there is no such setting.
    """
    check_choice("kind", kind, get_args(ProbeKind))
    chosen = ProbeSettings(**settings)
    learned, measured = _videos(train, val, chosen.task, seed)
    model = _network(model_or_source, seed)
    protocol = model_protocol(model, chosen.protocol, chosen.views).replace(class_names=learned.class_names)
    job = _Job(model, learned, measured, protocol, chosen, seed)
    with contextlib.ExitStack() as stack:
        folder = Path(out) if out is not None else None
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stvid_probe_")))
        if kind == "attentive":
            result = _attentive(job, place)
        else:
            result = _of_features(job, kind, Path(chosen.features or place / "features"))
    if folder is not None:
        result.save(folder)
    return result


# --- videos and network -----------------------------------------------------------------------------------------------


def _videos(train: Any, val: Any, task: Task, seed: int) -> tuple[Manifest, Manifest]:
    """Returns the videos to learn from and those to measure, with the same classes."""
    if isinstance(train, Manifest):
        learned, measured = train, val
        if val is None:
            _check_learned(learned, task)
            mask = held_out(learned, _SHARE, seed)
            learned, measured = learned.subset(np.flatnonzero(~mask)), learned.subset(np.flatnonzero(mask))
        elif not isinstance(val, Manifest):
            measured = read_manifest(
                val, class_names=learned.class_names, multilabel=task == "multilabel", splits=("val", "test")
            )
    else:
        learned, measured = _read(train, val, task, seed)
    _check_learned(learned, task)
    if measured is None or not len(measured):
        raise ConfigError(
            f"data.val: not set, and {learned.source} has no class with two videos of which one could be held out; "
            "name videos to measure"
        )
    if not measured.has_labels:
        raise ConfigError(f"data.val: {measured.source} has no labels, so nothing can be measured on it")
    return learned, measured.with_class_names(learned.class_names)


def _read(train: Any, val: Any, task: Task, seed: int) -> tuple[Manifest, Manifest | None]:
    """Reads the lists as `stvid train` does; without `val` a part of the training videos is held out."""
    options = [f"--data.train={os.fspath(train)}", f"--task={task}", f"--seed={seed}"]
    if isinstance(val, Manifest):
        return read_data(load_config(None, options))[0], val
    options.append(f"--data.val_fraction={_SHARE}" if val is None else f"--data.val={os.fspath(val)}")
    return read_data(load_config(None, options))


def _check_learned(videos: Manifest, task: Task) -> None:
    if not videos.has_labels:
        raise ConfigError(f"data.train: {videos.source} has no labels")
    used = videos.used_classes
    if len(used) < 2 and (task == "multiclass" or not used):
        raise ConfigError(
            f"data.train: {videos.source}: all its videos are of one class, {used[0]!r}; a probe needs two or more"
        )


def _network(source: VideoModel | str | os.PathLike[str], seed: int) -> VideoModel:
    """Returns the network; parts that its weights do not hold are the same at each call."""
    model = source
    if not isinstance(source, VideoModel):
        if isinstance(source, torch.nn.Module):
            raise ConfigError(f"probe: {type(source).__name__} is no model of stvid; stvid.inflate makes one of it")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = load_model(source)
    assert isinstance(model, VideoModel)
    name = model.recipe.get("name", type(model).__name__)
    if model.inference_only:
        raise ConfigError(f"probe: {name}: {model.inference_only}; probe the model it was made from")
    if model.takes_texts:
        raise ConfigError(f"probe: {name} takes texts as classes and has no layer to train; build it with text=False")
    if isinstance(model.head, NamedHeads):
        raise ConfigError(f"probe: {name} has several heads, {', '.join(model.head.heads)}; a probe fits one")
    return model


# --- features ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _frozen(job: _Job) -> Iterator[VideoModel]:
    """Gives the network in evaluation mode with the protocol of the probe; it is as it was afterwards."""
    model = job.model
    before = (model.default_protocol, model.training, next(model.parameters()).device)
    try:
        # Features do not depend on the names of classes, and their folder serves other lists.
        model.default_protocol = job.protocol.replace(class_names=())
        yield model.eval()
    finally:
        model.default_protocol = before[0]
        model.train(before[1]).to(before[2])


def _features(job: _Job, videos: Manifest, folder: Path) -> tuple[NDArray[np.float32], NDArray[Any], dict[str, str]]:
    """Returns the features (N, V, D) of the videos that can be read, their rows, and why the others cannot."""
    accelerator, devices = job.settings.placed()
    with _frozen(job) as model:
        report = extract_features(
            model,
            videos,
            folder,
            crops="each",
            batch_size=job.settings.batch_size,
            workers=job.settings.workers,
            backend=job.settings.backend,
            accelerator=accelerator,
            devices=devices,
            precision=job.settings.precision,
            progress=job.settings.progress,
        )
    files = feature_files(videos, folder, "npz")
    rows = [row for row, file in enumerate(files) if file.exists()]
    failures = dict(report.failed)
    if not rows:
        path, reason = report.failed[0]
        raise StvidError(f"none of the {len(videos)} videos of {videos.source} could be read: {path}: {reason}")
    return np.stack([load_features(files[row]).features for row in rows]), np.array(rows), failures


def _labels(videos: Manifest, rows: NDArray[Any], task: Task) -> NDArray[np.int64]:
    if task == "multiclass":
        return videos.primary[rows]
    table = np.zeros((len(rows), len(videos.class_names)), dtype=np.int64)
    for place, row in enumerate(rows):
        table[place, videos.label_ids(int(row))] = 1
    return table


def _of_features(job: _Job, kind: ProbeKind, folder: Path) -> ProbeResult:
    if kind == "linear":  # what cannot be fitted is said before the videos are read
        width = job.model.head_features
        _fitted(job, LinearProbe(torch.zeros(job.num_classes, width), torch.zeros(job.num_classes)))
        if job.settings.l2 is None:
            _held(job, np.arange(len(job.train)))
    features, rows, failures = _features(job, job.train, folder / "train")
    labels = _labels(job.train, rows, job.settings.task)
    _check_learned(job.train.subset(rows), job.settings.task)
    queries, places, unread = _features(job, job.val, folder / "val")
    where: dict[str, Any] = {"num_classes": job.num_classes, "device": job.settings.computes_on()}
    chosen: dict[str, float]
    selection: list[dict[str, float]] = []
    fitted: VideoModel | None = None
    if kind == "knn":
        k, temperature = min(job.settings.k, len(rows)), job.settings.temperature
        logits = neighbour_logits(queries, features, labels, k=k, temperature=temperature, **where)
        chosen = {"k": k, "temperature": temperature}
    else:
        penalty = job.settings.l2
        if penalty is None:
            penalty, selection = choose_penalty(features, labels, _held(job, rows), **where)
        linear = fit_linear(features, labels, penalty=penalty, **where)
        chosen, logits = {"l2": penalty}, linear.logits(queries)
        fitted = _fitted(job, linear)
    if fitted is not None and fitted.joins_clips and ViewPlan.parse(job.protocol.views).clips > 1:
        # Its head sees the tokens of all clips at once, so that its logits are not those of single clips.
        measured = _measured(job, fitted)
    else:
        measured = _evaluation(job, logits, places, unread)
    lost = sorted(failures.items())
    return ProbeResult(kind, measured, len(rows), chosen, selection, lost, fitted=fitted)


def _held(job: _Job, rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which of the training videos that could be read are held out to choose the penalty."""
    mask: NDArray[np.bool_] = held_out(job.train.subset(rows), _SHARE, job.seed)
    if not mask.any():
        raise ConfigError(
            f"data.train: {job.train.source}: each class has a single training video, so none can be held out to "
            "choose the penalty; give more videos, or the penalty itself as l2 (on the command line --l2 0.01), or "
            "take kind knn"
        )
    return mask


def _fitted(job: _Job, linear: LinearProbe) -> VideoModel:
    with torch.random.fork_rng():
        return with_classifier(job.model, linear, job.protocol, job.settings.task)


def _evaluation(
    job: _Job, logits: NDArray[np.float32], rows: NDArray[Any], failures: dict[str, str]
) -> EvaluationResult:
    """Returns the numbers of logits (N, V, K) of the videos that could be read."""
    plan = job.plan
    accumulator = plan.accumulator()
    labels = _labels(job.val, np.arange(len(job.val)), job.settings.task)
    for row, values in zip(rows.tolist(), logits, strict=True):
        accumulator.add(row, values, labels[row], path=job.val[row].path)
    for row in sorted(set(range(len(job.val))) - set(rows.tolist())):
        path = job.val[row].path
        accumulator.add_failure(row, path, failures[path], labels=labels[row])
    result = accumulator.result()
    result.evaluation = plan.digest(job.val)
    result.arithmetic = (f"{job.settings.precision} on {job.settings.computes_on()}",)
    return result


def _measured(job: _Job, model: VideoModel) -> EvaluationResult:
    settings = job.settings
    return evaluate(
        model,
        job.val,
        views=job.protocol.views,
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=settings.computes_on(),
        precision=settings.precision,
        backend=settings.backend,
    )


# --- attentive --------------------------------------------------------------------------------------------------------


def _attentive(job: _Job, folder: Path) -> ProbeResult:
    """Trains a head that pools by attention with all else frozen, as ``stvid train`` does, and measures it."""
    from stvid.engine.finetuning import train

    mask = _held(job, np.arange(len(job.train)))
    lists = folder / "training_lists"
    for name, rows in (("train", np.flatnonzero(~mask)), ("val", np.flatnonzero(mask))):
        _write_list(job.train.subset(rows), lists / f"{name}.csv")
    (lists / "classes.txt").write_text("\n".join(job.train.class_names) + "\n", encoding="utf-8")
    with _frozen(job) as model:
        save_model(model, lists / "frozen.safetensors", protocol=job.protocol.replace(class_names=()))
    accelerator, devices = job.settings.placed()
    overrides = {
        "model.hyperparameters": {"head": "attentive"},
        "task": job.settings.task,
        "seed": job.seed,
        "data.class_names": str(lists / "classes.txt"),
        "data.batch_size": job.settings.batch_size,
        "data.workers": job.settings.workers,
        "data.backend": job.settings.backend,
        "trainer.max_epochs": job.settings.epochs,
        "trainer.patience": job.settings.epochs,
        "optim.frozen_epochs": job.settings.epochs,
        "trainer.accelerator": accelerator,
        "trainer.devices": devices,
        "trainer.precision": job.settings.precision,
    }
    run = train(
        init=lists / "frozen.safetensors",
        data=lists / "train.csv",
        val=lists / "val.csv",
        output=folder / "training",
        overrides=overrides,
    )
    fitted = load_model(run.best if run.best is not None else run.last)
    fitted.default_protocol = job.protocol
    fitted.weights = None
    return ProbeResult(
        "attentive",
        _measured(job, fitted),
        int((~mask).sum()) - len(run.failures),
        {"epochs": job.settings.epochs},
        train_failures=sorted(run.failures.items()),
        fitted=fitted,
    )


def _write_list(videos: Manifest, path: Path) -> None:
    """Writes a list that `stvid train` reads."""
    if videos.members is not None:
        raise ConfigError(
            f"data.train: {videos.source}: an attentive probe of videos that lie {videos.members.place} is trained "
            "with stvid train --optim.frozen_epochs; linear and knn probes take them"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "start", "end"])
        for entry in (videos[row] for row in range(len(videos))):
            ends = ["" if value is None else repr(value) for value in (entry.start, entry.end)]
            table.writerow([os.path.abspath(entry.path), "|".join(entry.labels), *ends])
