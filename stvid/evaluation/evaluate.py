"""Multi-view evaluation: each video is decoded once, the model sees all its views, and the logits of each are kept.

Metric names carry the protocol: ``top1@4x3``. What is computed from the logits is in `stvid.evaluation.result`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from stvid.data.datamodule import make_eval_loader
from stvid.data.dataset import EvalDataset, EvalSample
from stvid.data.manifest import Manifest, read_manifest
from stvid.data.transforms import normalize
from stvid.errors import ConfigError, ManifestError, StvidError
from stvid.evaluation.metrics import Task
from stvid.evaluation.result import EvaluationError, EvaluationResult, Temporal, ViewAccumulator, check_choice
from stvid.evaluation.views import ViewPlan
from stvid.protocol import Protocol

__all__ = [
    "EvaluationError",
    "EvaluationResult",
    "Placement",
    "Temporal",
    "ViewAccumulator",
    "evaluate",
    "perturb_time",
    "sample_logits",
]

_PRECISIONS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


def perturb_time(clips: Tensor, temporal: Temporal, *, seed: int, index: int) -> Tensor:
    """Destroys or turns round the order of the frames, to see whether a model uses it.

    Args:
        clips: (V, C, T, H, W), all views of one video.
        temporal: ``normal`` changes nothing; ``frozen`` repeats the middle frame T // 2; ``reversed`` runs backwards;
            ``shuffled`` applies one permutation, the same for all views and never the identity, which depends on
            (seed, index) only.
        seed: Of the permutation.
        index: Number of the video.

    Returns:
        A tensor of the same shape.

    Raises:
        ConfigError: If `temporal` is unknown, or the clips have a single frame and so no order.
    """
    frames = clips.shape[2]
    if temporal == "normal":
        return clips
    check_choice("temporal", temporal, get_args(Temporal))
    if frames < 2:
        raise ConfigError(f"temporal {temporal}: clips of one frame have no order that could be changed")
    if temporal == "frozen":
        return clips[:, :, frames // 2 : frames // 2 + 1].expand_as(clips)
    if temporal == "reversed":
        return clips.flip(2)
    rng = np.random.default_rng([seed, index])
    order = rng.permutation(frames)
    while (order == np.arange(frames)).all():
        order = rng.permutation(frames)
    return clips[:, :, torch.from_numpy(order)]


@dataclass(frozen=True)
class Placement:
    """Where a model is, and the floating-point type of its weights."""

    device: torch.device
    dtype: torch.dtype


def sample_logits(
    model: Callable[[Tensor], Tensor],
    samples: Sequence[EvalSample],
    *,
    protocol: Protocol,
    placement: Placement,
    view_chunk: int,
    temporal: Temporal = "normal",
    seed: int = 0,
) -> list[tuple[EvalSample, Tensor | None]]:
    """Runs the model over all views of some videos, a bounded number of clips at a time.

    The caller chooses evaluation mode, autocast and `torch.inference_mode`.

    Args:
        model: Maps normalised clips (B, C, T, H, W) to logits (B, K).
        samples: What a loader of `EvalDataset` gives.
        protocol: Gives the mean and standard deviation, and is named where the model does not take its clips.
        placement: Device and type of the model's input. Clips go to the device as uint8 and are normalised there.
        view_chunk: Clips in one forward pass, of one video or of several.
        temporal: See `perturb_time`.
        seed: See `perturb_time`.

    Returns:
        Each sample with its logits, float32 (V, K) on the CPU, or None if it could not be read.

    Raises:
        ConfigError: If the model does not take these clips (it raises ValueError), or does not give one row of logits a
            clip.
    """
    counts: list[int] = []
    views: list[Tensor] = []
    for sample in samples:
        if sample.clips is None:
            counts.append(0)
            continue
        clips = perturb_time(sample.clips, temporal, seed=seed, index=sample.index)
        counts.append(len(clips))
        views.extend(clips)
    parts = []
    for start in range(0, len(views), view_chunk):
        batch = torch.stack(
            [view.to(placement.device, non_blocking=True) for view in views[start : start + view_chunk]]
        )
        clips = normalize(batch, protocol.mean, protocol.std, dtype=placement.dtype)
        try:
            logits = model(clips)
        except StvidError:
            raise
        except ValueError as error:
            raise ConfigError(f"{' '.join(str(error).split())} (protocol: {protocol.describe()})") from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(f"the model gives {got} for {len(batch)} clips; expected logits ({len(batch)}, classes)")
        parts.append(logits.float())
    joined = torch.cat(parts).cpu() if parts else torch.empty(0, 0)
    return [
        (sample, rows if count else None)
        for sample, count, rows in zip(samples, counts, joined.split(counts), strict=True)
    ]


@contextlib.contextmanager
def inference(model: nn.Module, *, device: torch.device | str | None, precision: str) -> Iterator[Placement]:
    """Puts a model into evaluation mode on a device, without gradients, and puts it back afterwards.

    Args:
        model: Any module; parts that were in training mode are again afterwards, each by itself.
        device: None leaves it where it is.
        precision: ``32-true`` runs as the weights are; ``bf16-mixed`` and ``16-mixed`` use autocast.

    Yields:
        Device and input type to use.

    Raises:
        ConfigError: If the precision or the device is unknown.
    """
    if precision not in _PRECISIONS:
        raise ConfigError(f"precision: {precision!r} is not one of {', '.join(_PRECISIONS)}")
    weights = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    home = weights.device
    try:
        target = home if device is None else torch.device(device)
        if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device {str(device)!r}: no such CUDA device is usable here; use cpu or see stvid doctor"
            )
    except RuntimeError as error:
        raise ConfigError(f"device {str(device)!r}: {str(error).splitlines()[0]}") from error
    training = [module for module in model.modules() if module.training]
    autocast = _PRECISIONS[precision]
    try:
        model.eval()
        if target != home:
            model.to(target)
        with torch.inference_mode(), torch.autocast(target.type, dtype=autocast, enabled=autocast is not None):
            yield Placement(target, weights.dtype)
    finally:
        for module in training:
            module.training = True
        if target != home:
            model.to(home)


def model_protocol(model: nn.Module, protocol: Protocol | None, views: str | ViewPlan | None) -> Protocol:
    """The protocol to evaluate with: the given one or the model's own, with `views` put in.

    Raises:
        ConfigError: If there is none, or the views cannot be read.
    """
    found = protocol if protocol is not None else getattr(model, "default_protocol", None)
    if not isinstance(found, Protocol):
        raise ConfigError(f"{type(model).__name__} has no default_protocol; pass protocol=stvid.Protocol(...)")
    return found.replace(views=str(ViewPlan.parse(found.views if views is None else views)))


def model_task(model: nn.Module, task: Task | None) -> Task:
    """The task to evaluate with: the given one or the model's own, ``multiclass`` if it has none.

    Raises:
        ConfigError: If there is no such task.
    """
    return check_choice("task", getattr(model, "task", "multiclass") if task is None else task, get_args(Task))


def evaluate(
    model: nn.Module,
    manifest: Manifest | str | os.PathLike[str],
    *,
    views: str | ViewPlan | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32-true",
    backend: str = "av",
    task: Task | None = None,
    temporal: Temporal = "normal",
    seed: int = 0,
    progress: bool = False,
    view_chunk: int | None = None,
) -> EvaluationResult:
    """Measures a model on labelled videos, each decoded once for all its views.

    A video that cannot be read is never replaced: it is listed in the result's `failures`, and the metrics get bounds.

    Args:
        model: Maps clips (B, C, T, H, W) to logits (B, K). Its training mode and device are the same afterwards.
        manifest: A `Manifest`, or what `read_manifest` reads. Its labels are matched with the protocol's class names
            by name.
        views: Temporal clips x spatial crops, as in ``4x3``; None takes those of the protocol.
        protocol: None takes `model.default_protocol`.
        batch_size: Clips in one forward pass. As many videos are decoded at a time as give so many clips, at least
            one.
        workers: Decoding processes; 0 decodes in this one.
        device: None leaves the model where it is.
        precision: ``32-true`` runs as the weights are; ``bf16-mixed`` and ``16-mixed`` use autocast.
        backend: Decoder.
        task: ``multiclass`` or ``multilabel``; None takes `model.task`, or ``multiclass`` if the model has none.
        temporal: What is done to the order of each clip's frames, see `perturb_time`. A model that does not fall
            with ``frozen``, ``shuffled`` or ``reversed`` clips does not use time.
        seed: Of the shuffled order.
        progress: Show a bar on standard error.
        view_chunk: Clips in one forward pass if that is to differ from `batch_size`.

    Returns:
        Numbers, per-view logits, and what is needed to trust them.

    Raises:
        ConfigError: If there is no protocol, it has no class names, the model does not take its clips or gives another
            number of logits, or an argument is not usable.
        ManifestError: If the manifest cannot be read, has no labels, or has a label that the protocol does not name.
        EvaluationError: If no video could be read, or the logits are not finite.
        StvidError: If a worker was killed.
    """
    used = model_protocol(model, protocol, views)
    plan = ViewPlan.parse(used.views)
    used_task = model_task(model, task)
    check_choice("temporal", temporal, get_args(Temporal))
    chunk = batch_size if view_chunk is None else view_chunk
    check_counts(batch_size=batch_size, workers=workers, view_chunk=chunk)
    if seed < 0:
        raise ConfigError(f"seed: {seed!r} is not a whole number from 0 up")
    if temporal != "normal" and used.frames < 2:
        raise ConfigError(f"temporal {temporal}: clips of one frame have no order that could be changed")
    videos = _labelled(manifest, used, used_task)
    accumulator = ViewAccumulator(used, task=used_task, temporal=temporal)
    dataset = EvalDataset(
        videos, used, views=used.views, backend=backend, decode_threads=1, multilabel=used_task == "multilabel"
    )
    with inference(model, device=device, precision=precision) as place:
        loader = make_eval_loader(
            dataset,
            batch_size=max(1, batch_size // plan.num_views),
            workers=workers,
            pin_memory=place.device.type == "cuda",
        )
        # Closed here and not when forgotten: the traceback of an exception would keep the worker processes alive.
        with _progress(len(videos), enabled=progress) as advance, contextlib.closing(iter(loader)) as batches:
            for samples in batches:
                for sample, logits in sample_logits(
                    model,
                    samples,
                    protocol=used,
                    placement=place,
                    view_chunk=chunk,
                    temporal=temporal,
                    seed=seed,
                ):
                    path = videos[sample.index].path
                    if logits is None:
                        accumulator.add_failure(sample.index, path, str(sample.error), labels=sample.labels)
                    else:
                        accumulator.add(sample.index, logits, sample.labels, path=path)
                advance(len(samples))
    return accumulator.result()


def check_counts(*, workers: int, **counts: int) -> None:
    """Refuses numbers that cannot be counts: less than 1, or for `workers` less than 0.

    Raises:
        ConfigError: If one of them cannot.
    """
    for name, value, least in (("workers", workers, 0), *((name, value, 1) for name, value in counts.items())):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")


def _labelled(manifest: Manifest | str | os.PathLike[str], protocol: Protocol, task: Task) -> Manifest:
    names = protocol.class_names
    if not names:
        raise ConfigError(
            "the protocol has no class names, so labels cannot be matched with logits; "
            "pass protocol=model.default_protocol.replace(class_names=[...]) in the order of the logits"
        )
    if isinstance(manifest, Manifest):
        videos = manifest
    else:
        videos = read_manifest(manifest, class_names=names, multilabel=task == "multilabel")
    if not videos.has_labels:
        raise ManifestError(f"{videos.source}: the videos have no labels to compare with; use predict instead")
    return videos if tuple(videos.class_names) == names else videos.with_class_names(names)


@contextlib.contextmanager
def _progress(total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    if not enabled:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task("videos", total=total)
        yield lambda count: bar.advance(row, count)
