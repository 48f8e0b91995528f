"""Multi-view evaluation: each video is decoded once, the model sees all its views, and the logits of each are kept.

One pass can serve several protocols and several orders of frames: a view that protocols share is computed once, and so
are views of a video that turn out to be equal. Metric names carry the protocol: ``top1@4x3``. The numbers are computed
from the logits in `stvid.evaluation.result`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from stvid.console import progress_bar
from stvid.data.datamodule import LoaderSettings, make_eval_loader
from stvid.data.dataset import EvalDataset, EvalSample
from stvid.data.labels import are_numbers
from stvid.data.manifest import Manifest, read_manifest
from stvid.data.transforms import model_input
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError, ManifestError, StvidError
from stvid.evaluation.metrics import Average
from stvid.evaluation.progress import ProgressFile, VideoRecord, digest, model_digest, packed, videos_digest
from stvid.evaluation.result import EvaluationError, EvaluationResult, Temporal, ViewAccumulator, check_choice
from stvid.inference import OptimizedModel
from stvid.models.base import VideoModel
from stvid.protocol import Protocol, Task, checked_protocol

__all__ = [
    "PROBES",
    "Evaluation",
    "EvaluationError",
    "EvaluationPlan",
    "EvaluationResult",
    "Execution",
    "Placement",
    "Temporal",
    "ViewAccumulator",
    "add_record",
    "evaluate",
    "outcome_of",
    "perturb_time",
    "prepare",
    "run_evaluation",
    "sample_logits",
]

PROBES: tuple[Temporal, ...] = ("reversed", "shuffled", "frozen")
"""Changes to the order of frames that show whether a model uses it."""

_PRECISIONS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


def perturb_time(clips: Tensor, temporal: Temporal, *, seed: int, index: int) -> Tensor:
    """Changes the order of the frames, to see whether a model uses it.

    Args:
        clips: (V, C, T, H, W), all views of one video.
        temporal: ``normal`` changes nothing; ``frozen`` repeats the middle frame T // 2; ``reversed`` runs backwards;
            ``shuffled`` applies one permutation, the same for all views and never the identity, which depends on
            (seed, index) only.
        seed: Seed of the permutation.
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
    """The device that a model is on, and the floating-point type of its weights."""

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
    num_views: int | None = None,
) -> list[tuple[EvalSample, Tensor | None]]:
    """Runs the model over all views of some videos, a bounded number of clips at a time.

    Views that a sample says are equal are computed once. A model that joins the clips of a video (`joins_clips`) gives
    one row of logits for each crop, which stands for each of its views. The caller chooses evaluation mode, autocast
    and `torch.inference_mode`.

    Args:
        model: Maps normalised clips (B, C, T, H, W) to logits (B, K).
        samples: The videos, as a loader of `EvalDataset` gives them.
        protocol: Gives mean, standard deviation and order of the channels, and is named where the model does not take
            its clips.
        placement: Device and type of the model's input. Clips go to the device as uint8 and are normalised there.
        view_chunk: How many clips to take in one forward pass, from one video or from several.
        temporal: See `perturb_time`.
        seed: See `perturb_time`.
        num_views: How many of each sample's views to take, from the first on; None takes all.

    Returns:
        Each sample with its logits, float32 (V, K) on the CPU, or None if it could not be read.

    Raises:
        ConfigError: If the model does not take these clips (it raises ValueError), does not give one row of logits for
            each clip, or joins the clips of views that are not those of the protocol.
    """
    joint = _joint_views(model, protocol, samples, num_views)
    counts: list[int] = []
    places: list[Tensor] = []  # the place of each view among the different ones
    views: list[Tensor] = []
    for sample in samples:
        if sample.clips is None:
            counts.append(0)
            places.append(torch.empty(0, dtype=torch.int64))
            continue
        clips = perturb_time(sample.clips[:num_views], temporal, seed=seed, index=sample.index)
        same = np.arange(len(clips)) if sample.same is None else sample.same[:num_views]
        different, place = np.unique(same, return_inverse=True)
        counts.append(len(different))
        places.append(torch.from_numpy(place))
        views.extend(clips[int(view)] for view in different)
    parts = []
    memory = None
    if views and placement.device.type == "cpu":  # each batch takes the memory of the one before
        memory = torch.empty(min(view_chunk, len(views)), *views[0].shape, dtype=placement.dtype)
    for start in range(0, len(views), view_chunk):
        batch = views[start : start + view_chunk]
        clips = _model_input(batch, protocol, placement, memory)
        try:
            logits = model(clips) if joint is None else model.forward_features(clips)  # type: ignore[attr-defined]
        except StvidError:
            raise
        except ValueError as error:
            raise ConfigError(f"{' '.join(str(error).split())} (protocol: {protocol.describe()})") from error
        if joint is not None:
            parts.append(logits.clone())
            continue
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ConfigError(f"the model gives {got} for {len(batch)} clips; expected logits ({len(batch)}, classes)")
        parts.append(logits.to(torch.float32, copy=True))  # they may be a part of `memory`
    if joint is None:
        joined = torch.cat(parts).cpu() if parts else torch.empty(0, 0)
        found = [rows[place] if len(place) else None for place, rows in zip(places, joined.split(counts), strict=True)]
    else:
        features = torch.cat(parts).split(counts) if parts else [torch.empty(0)] * len(samples)
        found = [
            _joint_logits(model, rows[place.to(rows.device)], joint) if len(place) else None
            for place, rows in zip(places, features, strict=True)
        ]
    return list(zip(samples, found, strict=True))


def _joint_views(
    model: Callable[[Tensor], Tensor], protocol: Protocol, samples: Sequence[EvalSample], num_views: int | None
) -> ViewPlan | None:
    """Returns the views of a model that joins the clips of a video; None if it does not, or there is one clip.

    Raises:
        ConfigError: If the samples have other views than the protocol.
    """
    plan = ViewPlan.parse(protocol.views)
    if not getattr(model, "joins_clips", False) or plan.clips == 1:
        return None
    for sample in samples:
        if sample.clips is not None and len(sample.clips[:num_views]) != plan.num_views:
            raise ConfigError(
                f"{type(model).__name__} classifies the clips of a video together, so that {plan} shares no views with "
                "other protocols: measure each by itself (also: none)"
            )
    return plan


def _joint_logits(model: Any, features: Tensor, plan: ViewPlan) -> Tensor:
    """Classifies the clips of each crop together.

    Args:
        model: Its head makes logits of tokens.
        features: Tokens of the views of a video, (clips * crops, N, C), clip by clip.
        plan: The number of clips and crops.

    Returns:
        Logits, float32 (clips * crops, K) on the CPU, the same for all clips of a crop.
    """
    tokens = features.unflatten(0, (plan.clips, plan.crops)).transpose(0, 1).flatten(1, 2)
    rows = torch.cat([model.forward_head(crop).float() for crop in tokens.split(1)])
    return rows.cpu().repeat(plan.clips, 1)


def _model_input(views: Sequence[Tensor], protocol: Protocol, placement: Placement, memory: Tensor | None) -> Tensor:
    """Returns views as one normalised batch on the model's device, within `memory` if there is any."""
    if memory is None:
        batch = torch.stack([view.to(placement.device, non_blocking=True) for view in views])
        return model_input(batch, protocol, dtype=placement.dtype)
    for view, place in zip(views, memory, strict=False):
        model_input(view, protocol, dtype=placement.dtype, out=place)
    return memory[: len(views)]


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
            yield Placement(target, getattr(model, "input_dtype", weights.dtype))
    finally:
        for module in training:
            module.training = True
        if target != home:
            model.to(home)


def model_protocol(model: nn.Module, protocol: Protocol | None, views: str | ViewPlan | None) -> Protocol:
    """Returns the protocol to evaluate with: the given one or the model's own, with `views` put in.

    Raises:
        ConfigError: If there is none, or the views cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: {model!r} is no network: load it first, as in stvid.load_model({str(model)!r})")
    found = checked_protocol(protocol) if protocol is not None else getattr(model, "default_protocol", None)
    if not isinstance(found, Protocol):
        raise ConfigError(f"{type(model).__name__} has no default_protocol; pass protocol=stvid.Protocol(...)")
    return found.replace(views=str(ViewPlan.parse(found.views if views is None else views)))


def model_task(model: nn.Module, task: Task | None) -> Task:
    """Returns the task to evaluate with: the given one or the model's own, or ``multiclass`` if it has none.

    Raises:
        ConfigError: If there is no such task, or the model gives features alone, as the encoder of a pretraining does.
    """
    if isinstance(model, VideoModel) and not model.num_classes and not model.takes_texts:
        raise ConfigError(
            f"{model.recipe.get('name', type(model).__name__)}: has no classifier, only features; build it with "
            "num_classes and train it, or take stvid.extract_features"
        )
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
    also: Sequence[str | ViewPlan] = (),
    average: Average = "probabilities",
    probe: Sequence[Temporal] = (),
    resume_from: str | os.PathLike[str] | None = None,
) -> EvaluationResult:
    """Measures a model on labelled videos, each decoded once for all its views.

    A video that cannot be read is never replaced: it is listed in the result's `failures`, and the metrics get bounds.

    Args:
        model: Maps clips (B, C, T, H, W) to logits (B, K). Its training mode and device are the same afterwards.
        manifest: A `Manifest`, or what `read_manifest` reads. Its labels are matched with the protocol's class names
            by name; labels that are whole numbers are the places of the logits, also if the protocol has no names.
        views: Temporal clips x spatial crops, as in ``4x3``; None takes those of the protocol.
        protocol: None takes `model.default_protocol`.
        batch_size: Clips in one forward pass. As many videos are decoded at a time as give so many clips, but at
            least one.
        workers: Decoding processes; 0 decodes in this one.
        device: None leaves the model where it is.
        precision: ``32-true`` runs as the weights are; ``bf16-mixed`` and ``16-mixed`` use autocast.
        backend: Decoder.
        task: ``multiclass`` or ``multilabel``; None takes `model.task`, or ``multiclass`` if the model has none.
        temporal: Change to the order of each clip's frames, see `perturb_time`. A model that does not get worse with
            ``frozen``, ``shuffled`` or ``reversed`` clips does not use time.
        seed: Seed of the shuffled order.
        progress: Show a bar on standard error.
        view_chunk: Clips in one forward pass, if that is to differ from `batch_size`.
        also: Further views to measure in the same pass, as in ``["1x1", "4x3"]``. Each number is the one that these
            views give by themselves; a view that several protocols share is computed once.
        average: Whether the score of a video averages the ``probabilities`` or the ``logits`` of its views.
        probe: Other orders of frames (of `PROBES`) to measure as well, on the same decoded clips of `views`.
        resume_from: A folder in which the logits of finished videos are kept (``interrupted-....jsonl``) until the
            result is saved. If it holds those of the same evaluation of the same weights, only the other videos are
            decoded; those that could not be read are tried again. With the same `batch_size` the result is that of an
            uninterrupted evaluation, bit for bit, but for videos that can be read only at the second try.

    Returns:
        The numbers, the logits of each view, and all that is needed to trust them.

    Raises:
        ConfigError: If there is no protocol, it has no class names, the model does not take its clips or gives another
            number of logits, or an argument is not usable.
        ManifestError: If the manifest cannot be read, has no labels, or has a label that the protocol does not name.
        EvaluationError: If no video could be read, or the logits are not finite.
        StvidError: If a worker was killed.
    """
    began = time.perf_counter()
    evaluation = prepare(
        model,
        manifest,
        views=views,
        protocol=protocol,
        task=task,
        also=also,
        average=average,
        temporal=temporal,
        probe=probe,
        seed=seed,
        batch_size=batch_size,
        view_chunk=view_chunk,
        workers=workers,
        device=device,
        precision=precision,
        backend=backend,
        progress=progress,
    )
    return run_evaluation(evaluation, resume_from=resume_from, began=began)


def prepare(
    model: nn.Module,
    manifest: Manifest | str | os.PathLike[str],
    *,
    views: str | ViewPlan | None = None,
    protocol: Protocol | None = None,
    task: Task | None = None,
    also: Sequence[str | ViewPlan] = (),
    average: Average = "probabilities",
    temporal: Temporal = "normal",
    probe: Sequence[Temporal] = (),
    seed: int = 0,
    **execution: Any,
) -> Evaluation:
    """Checks the arguments of `evaluate` and reads the list; no video is read, and the model does not run.

    Args:
        model: See `evaluate`, as for all others.
        manifest: The videos.
        views: The views.
        protocol: The protocol.
        task: The task.
        also: Further views.
        average: What is averaged.
        temporal: The order of frames.
        probe: Other orders of frames.
        seed: The seed of the shuffled order.
        **execution: The fields of `Execution`.

    Raises:
        ConfigError: If an argument is not usable.
        ManifestError: If the list cannot be read, or has no labels that the protocol names.
    """
    used, used_task = model_protocol(model, protocol, views), model_task(model, task)
    videos = _labelled(manifest, used, used_task, count=_num_classes(model))
    plan = EvaluationPlan(
        protocol=used.replace(class_names=videos.class_names),
        task=used_task,
        also=tuple(also),
        average=average,
        temporal=temporal,
        probe=tuple(probe),
        seed=seed,
    )
    return Evaluation(model, videos, plan, Execution(**execution))


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything that decides which numbers are measured, other than the videos and the model.

    Attributes:
        protocol: How clips are read, with the views.
        task: ``multiclass`` or ``multilabel``.
        also: Further views to measure in the same pass.
        average: Whether the score of a video averages the ``probabilities`` or the ``logits`` of its views.
        temporal: Change to the order of the frames.
        probe: Other orders of frames to measure as well.
        seed: Seed of the shuffled order.

    Raises:
        ConfigError: If an attribute is not usable.
    """

    protocol: Protocol
    task: Task = "multiclass"
    also: tuple[str | ViewPlan, ...] = ()
    average: Average = "probabilities"
    temporal: Temporal = "normal"
    probe: tuple[Temporal, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("temporal", self.temporal, get_args(Temporal))
        if self.seed < 0:
            raise ConfigError(f"seed: {self.seed!r} is not a whole number from 0 up")
        still = self.protocol.frames < 2
        if self.temporal != "normal" and still:
            raise ConfigError(f"temporal {self.temporal}: clips of one frame have no order that could be changed")
        for name in self.probe:
            check_choice("probe", name, PROBES)
        if self.probe and (self.temporal != "normal" or still):
            why = "clips of one frame have no order" if still else f"the frames are {self.temporal} already"
            raise ConfigError(f"probe: {why}")

    @property
    def num_views(self) -> int:
        """Number of views of the protocol itself."""
        return ViewPlan.parse(self.protocol.views).num_views

    def accumulator(self) -> ViewAccumulator:
        """Returns an empty accumulator for the logits."""
        return ViewAccumulator(
            self.protocol, task=self.task, temporal=self.temporal, also=self.also, average=self.average
        )

    def _described(self) -> dict[str, Any]:
        # Results from before there were these settings have the digests of their defaults.
        later = {"channels": "rgb", "frames_per_segment": 1}
        described = self.protocol.to_dict()
        return {key: value for key, value in described.items() if key not in later or later[key] != value}

    def digest(self, videos: Manifest) -> str:
        """Returns a digest of what is measured, whatever the model; `EvaluationResult.evaluation` holds it.

        Paths, ranges, labels and order of the videos enter it, and the seed only if frames are shuffled.
        """
        orders = (self.temporal, *dict.fromkeys(self.probe))
        return digest(
            {
                "videos": videos_digest(videos),
                "protocol": self._described(),
                "also": [str(ViewPlan.parse(other)) for other in self.also],
                "task": self.task,
                "orders": orders,
                "seed": self.seed if "shuffled" in orders else None,
                "average": self.average,
            }
        )


@dataclass(frozen=True)
class Execution:
    """How the work is done: arguments of `evaluate` that change its speed, but not what it measures.

    Attributes:
        batch_size: Clips in one forward pass.
        view_chunk: The same, if that is to differ from the clips that are decoded at a time; None takes `batch_size`.
        workers: Decoding processes.
        device: None leaves the model where it is.
        precision: As `evaluate` has it.
        backend: Decoder.
        progress: Show a bar on standard error.

    Raises:
        ConfigError: If a number is not usable.
    """

    batch_size: int = 8
    view_chunk: int | None = None
    workers: int = 0
    device: torch.device | str | None = None
    precision: str = "32-true"
    backend: str = "av"
    progress: bool = False

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, workers=self.workers, view_chunk=self.chunk)

    @property
    def chunk(self) -> int:
        """Clips in one forward pass."""
        return self.batch_size if self.view_chunk is None else self.view_chunk


@dataclass(frozen=True)
class Evaluation:
    """An evaluation whose arguments were checked (`prepare`): what is measured of which videos, and how.

    Attributes:
        model: Maps clips (B, C, T, H, W) to logits (B, K).
        videos: The videos, with the classes of the protocol.
        plan: What is measured.
        execution: How the work is done.
    """

    model: nn.Module
    videos: Manifest
    plan: EvaluationPlan
    execution: Execution

    @property
    def at_once(self) -> int:
        """How many videos are decoded, and given to the model, at a time."""
        return max(1, self.execution.batch_size // len(self.plan.accumulator().layout.views))

    def batches(self) -> list[range]:
        """Returns the numbers of the videos of each batch of an evaluation that is done in one go.

        The numbers of a video may depend in their last digits on the videos that are in one batch with it, so that
        whoever shares out the work shares whole batches.
        """
        step, count = self.at_once, len(self.videos)
        return [range(start, min(start + step, count)) for start in range(0, count, step)]

    def dataset(self) -> EvalDataset:
        """Returns the views of the videos."""
        return EvalDataset(
            self.videos,
            self.plan.protocol,
            views=self.plan.accumulator().layout.protocols,
            backend=self.execution.backend,
            decode_threads=1,
            multilabel=self.plan.task == "multilabel",
        )

    def started(self) -> contextlib.AbstractContextManager[Placement]:
        """Puts the model into evaluation mode on its device until the end of the ``with``."""
        return inference(self.model, device=self.execution.device, precision=self.execution.precision)

    def arithmetic(self, place: Placement) -> tuple[str, ...]:
        """Returns the precision and the device, as `EvaluationResult.arithmetic` has them."""
        computed = (f"{self.execution.precision} on {place.device}",)
        return self.model.notes if isinstance(self.model, OptimizedModel) else computed

    def measure(self, samples: Sequence[EvalSample], place: Placement) -> tuple[list[VideoRecord], list[EvalSample]]:
        """Runs the model over a batch of videos, within `started`.

        Returns:
            The record of each video that could be read, and the samples that could not.
        """
        run = functools.partial(
            sample_logits,
            self.model,
            protocol=self.plan.protocol,
            placement=place,
            view_chunk=self.execution.chunk,
            seed=self.plan.seed,
        )
        return _measure(samples, run, self.plan)

    @contextlib.contextmanager
    def decoded(self, todo: Sequence[int], place: Placement) -> Iterator[Iterator[list[EvalSample]]]:
        """Starts decoding and yields the batches of some videos; at the end it stops the worker processes.

        They are not left to be stopped when the loader is forgotten: the traceback of an exception would keep them
        alive.
        """
        if not todo:
            yield iter(())
            return
        settings = LoaderSettings(self.at_once, self.execution.workers, pin_memory=place.device.type == "cuda")
        loader = make_eval_loader(self.dataset(), settings, only=todo)
        with contextlib.closing(iter(loader)) as batches:
            yield batches


def run_evaluation(
    evaluation: Evaluation, *, resume_from: str | os.PathLike[str] | None = None, began: float | None = None
) -> EvaluationResult:
    """Does an evaluation in one go, as `evaluate` does.

    Args:
        evaluation: What is measured.
        resume_from: See `evaluate`.
        began: The time of `time.perf_counter` from which the cost counts the seconds; None takes now.

    Raises:
        EvaluationError: If no video could be read, or the logits are not finite.
        StvidError: If a worker was killed.
    """
    began = time.perf_counter() if began is None else began
    videos, plan, execution = evaluation.videos, evaluation.plan, evaluation.execution
    accumulator = plan.accumulator()
    measured = plan.digest(videos)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(evaluation.started())
        store = None
        if resume_from is not None:
            parts = {"measured": measured, "model": model_digest(evaluation.model), "precision": execution.precision}
            key = digest(parts | {"backend": execution.backend, "device": place.device.type})
            store = stack.enter_context(ProgressFile(Path(resume_from) / f"interrupted-{key}.jsonl", key))
        known = [] if store is None else store.records
        for record in known:
            add_record(accumulator, record, videos)
        todo = _remaining(len(videos), accumulator, known, evaluation.at_once)
        done = len(videos) - len(todo)
        if store is not None and known:
            print(f"continuing: {done} of {len(videos)} videos are done ({store.path})", file=sys.stderr, flush=True)
        bar = stack.enter_context(progress_bar("videos", len(videos), done=done, enabled=execution.progress))
        for samples in stack.enter_context(evaluation.decoded(todo, place)):
            records, failed = evaluation.measure(samples, place)
            for record in records:
                add_record(accumulator, record, videos)
            for sample in failed:
                path = videos[sample.index].path
                accumulator.add_failure(sample.index, path, str(sample.error), labels=sample.labels)
            if store is not None:
                store.add(records)
            bar.advance(len(samples))
    result = accumulator.result()
    result.evaluation = measured
    result.arithmetic = evaluation.arithmetic(place)
    result.progress_file = None if store is None else store.path
    if not known:
        result.cost["seconds"] = time.perf_counter() - began
    return result


def _remaining(count: int, accumulator: ViewAccumulator, known: Sequence[VideoRecord], at_once: int) -> list[int]:
    """Returns the videos that are still to be measured, in an order that keeps the batches as they were.

    Videos that could not be read come last when they are tried again.
    """
    reached = max((record.index for record in known), default=-1)
    begun = -(-(reached + 1) // at_once) * at_once
    return sorted(
        (index for index in range(count) if index not in accumulator), key=lambda index: (index < begun, index)
    )


def _measure(
    samples: Sequence[EvalSample],
    run: Callable[..., list[tuple[EvalSample, Tensor | None]]],
    plan: EvaluationPlan,
) -> tuple[list[VideoRecord], list[EvalSample]]:
    """Runs the model over a batch of videos.

    Args:
        samples: The videos.
        run: `sample_logits`, of the model.
        plan: The orders of frames to measure.

    Returns:
        The record of each video that could be read, and the samples that could not.
    """
    probed = {name: run(samples, temporal=name, num_views=plan.num_views) for name in plan.probe}
    records, failed = [], []
    for number, (sample, logits) in enumerate(run(samples, temporal=plan.temporal)):
        if logits is None:
            failed.append(sample)
            continue
        same = sample.same if sample.same is not None else np.arange(plan.num_views)
        others = {name: pairs[number][1] for name, pairs in probed.items()}
        records.append(
            VideoRecord(
                index=sample.index,
                logits=logits.numpy(),
                labels=np.asarray(sample.labels),
                distinct=len(np.unique(same[: plan.num_views])),
                probes={name: values.numpy() for name, values in others.items() if values is not None},
            )
        )
    return records, failed


def add_record(accumulator: ViewAccumulator, record: VideoRecord, videos: Manifest) -> None:
    """Gives the record of a video to an accumulator."""
    accumulator.add(
        record.index,
        record.logits,
        record.labels,
        path=videos[record.index].path,
        distinct=record.distinct,
        probes=record.probes,
    )


def outcome_of(records: Sequence[VideoRecord], failed: Sequence[EvalSample]) -> dict[str, Any]:
    """Returns what came out of a batch as JSON can hold it."""
    return {
        "videos": [packed(record) for record in records],
        "failed": [[sample.index, str(sample.error)] for sample in failed],
    }


def check_counts(*, workers: int, **counts: int) -> None:
    """Refuses numbers that cannot be counts: less than 1, or for `workers` less than 0.

    Raises:
        ConfigError: If one of the numbers cannot be a count.
    """
    for name, value, least in (("workers", workers, 0), *((name, value, 1) for name, value in counts.items())):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")


def _num_classes(model: nn.Module) -> int:
    count = getattr(model, "num_classes", 0)  # other people's modules may have none
    return count if isinstance(count, int) else 0


def _labelled(manifest: Manifest | str | os.PathLike[str], protocol: Protocol, task: Task, *, count: int) -> Manifest:
    """Returns the videos with the classes of the protocol, or with `count` numbers if there are only numbers."""
    names = protocol.class_names
    if not names and count:
        if not isinstance(manifest, Manifest):
            manifest = read_manifest(manifest, multilabel=task == "multilabel")
        if are_numbers(manifest.class_names):
            names = tuple(str(number) for number in range(count))
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
