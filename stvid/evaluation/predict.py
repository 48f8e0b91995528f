"""Predictions for video files, with class names and probabilities."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from stvid.data.datamodule import LoaderSettings, make_eval_loader
from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.views import ViewPlan
from stvid.evaluation.classes import NOT_FINITE, TopClasses, top_classes
from stvid.evaluation.evaluate import check_counts, inference, model_protocol, model_task, sample_logits
from stvid.protocol import Protocol, Task

__all__ = ["Prediction", "predict"]


@dataclass
class Prediction:
    """The most likely classes of one video, or why there are none.

    Attributes:
        path: The file, as it was given.
        classes: Class names, the most likely first; empty if the file could not be read.
        probabilities: Probabilities of these classes in 0..1, averaged over the views.
        class_ids: Numbers of these classes: their positions in the logits.
        error: Why the file has no prediction; None if it has one.
    """

    path: str
    classes: list[str] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    class_ids: list[int] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)


def predict(
    model_or_checkpoint: nn.Module | str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    topk: int = 5,
    views: str | ViewPlan | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32-true",
    backend: str = "av",
    task: Task | None = None,
) -> list[Prediction]:
    """Classifies video files, each decoded once for all its views.

    Args:
        model_or_checkpoint: A model that maps clips (B, C, T, H, W) to logits (B, K), a checkpoint of stvid, or the
            folder of a run, of which the best checkpoint is taken, else the newest. A model's training mode and device
            are the same afterwards.
        paths: Video files; one may be given by itself.
        topk: How many classes to name; all, if there are fewer.
        views: Temporal clips x spatial crops, as in ``4x3``; None takes those of the protocol.
        protocol: None takes `model.default_protocol`, which a checkpoint brings along. Classes that it does not name
            are called "class 0", "class 1", ...
        batch_size: Clips in one forward pass.
        workers: Decoding processes; 0 decodes in this one.
        device: None leaves the model where it is.
        precision: ``32-true`` runs as the weights are; ``bf16-mixed`` and ``16-mixed`` use autocast.
        backend: Decoder.
        task: ``multiclass`` gives probabilities that add up to one over all classes (softmax), ``multilabel`` one for
            each class by itself (sigmoid). None takes `model.task`, which a checkpoint brings along, or ``multiclass``
            if the model has none.

    Returns:
        One prediction for each path, in the order given. A file that cannot be read has its `error` set, and the others
        still come.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ConfigError: If there is no protocol, it names another number of classes than the model has, the model does not
            take its clips, or an argument is not usable.
        StvidError: If the decoder is not installed, or a worker was killed.
    """
    check_counts(batch_size=batch_size, workers=workers, topk=topk)
    if isinstance(model_or_checkpoint, nn.Module):
        model = model_or_checkpoint
    else:
        from stvid.zoo import load_model

        model = load_model(model_or_checkpoint)
    used = model_protocol(model, protocol, views)
    used_task = model_task(model, task)
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    # A file that is given twice is decoded once. The manifest shortens "folder/.." as text, so links come first.
    files = [os.path.realpath(path) for path in given]
    order = {path: number for number, path in enumerate(dict.fromkeys(files))}
    manifest = Manifest.from_entries([VideoEntry(path) for path in order], source="the given files")
    found: dict[int, Prediction] = {}
    if order:
        dataset = EvalDataset(manifest, used, views=used.views, backend=backend)
        with inference(model, device=device, precision=precision) as place:
            loader = make_eval_loader(
                dataset,
                LoaderSettings(
                    max(1, batch_size // ViewPlan.parse(used.views).num_views),
                    workers,
                    pin_memory=place.device.type == "cuda",
                ),
            )
            run = partial(sample_logits, model, protocol=used, placement=place, view_chunk=batch_size)
            with contextlib.closing(iter(loader)) as batches:
                for sample, logits in (pair for samples in batches for pair in run(samples)):
                    best = None if logits is None else top_classes(logits.numpy(), used, task=used_task, topk=topk)
                    found[sample.index] = _prediction(best, sample.error)
    return [replace(found[order[file]], path=path) for file, path in zip(files, given, strict=True)]


def _prediction(best: TopClasses | None, error: str | None) -> Prediction:
    if best is None:
        return Prediction("", error=error or NOT_FINITE)
    return Prediction("", list(best.names), list(best.probabilities), list(best.ids))
