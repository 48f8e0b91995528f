"""Predictions for video files, with class names and probabilities."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from stvid.data.datamodule import LoaderSettings, make_eval_loader
from stvid.data.dataset import EvalDataset, EvalSample, check_rate_known
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.video_table import StoredVideo
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError
from stvid.evaluation.classes import NOT_FINITE, TopClasses, top_classes
from stvid.evaluation.evaluate import (
    Execution,
    Placement,
    check_counts,
    inference,
    model_protocol,
    model_task,
    sample_logits,
)
from stvid.evaluation.ranks import Team
from stvid.protocol import Protocol, Task
from stvid.video.memory import FRAMES_NAME, is_frame, read_whole
from stvid.video.reader import Index, MemoryFrames, VideoLike
from stvid.video.remote import is_url

__all__ = ["Classification", "Prediction", "predict", "predict_together", "predictions_of"]


_Source = str | bytes | MemoryFrames | StoredVideo


@dataclass
class Prediction:
    """The most likely classes of one video, or why there are none.

    Attributes:
        path: The file or URL, as it was given; ``<bytes>`` or ``<frames>`` for what was in memory.
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
    videos: VideoLike | StoredVideo | Sequence[VideoLike | StoredVideo],
    *,
    topk: int = 5,
    fps: float | None = None,
    views: str | ViewPlan | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32-true",
    backend: str = "av",
    task: Task | None = None,
) -> list[Prediction]:
    """Classifies videos, each decoded once for all its views.

    Args:
        model_or_checkpoint: A model that maps clips (B, C, T, H, W) to logits (B, K), or weights, as
            `stvid.load_model` takes them. A model's training mode and device
            are the same afterwards.
        videos: A list of videos, or one by itself: a path, bytes, a binary file object, a URL, or frames in memory (a
            uint8 array or tensor (T, H, W, 3), or a list or iterator of images of PIL or of arrays (H, W, 3)), or a row
            of a list whose videos are no files (`stvid.data.video_table.StoredVideo`).
        topk: How many classes to name; all, if there are fewer.
        fps: Frames a second of videos that are frames in memory; needed if the protocol has a rate.
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
        One prediction for each video, in the order given. One that cannot be read has its `error` set, and the others
        still come.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ConfigError: If there is no protocol, it names another number of classes than the model has, the model does not
            take its clips, or an argument is not usable.
        VideoError: If frames in memory have another type or shape.
        StvidError: If the decoder is not installed, or a worker was killed.
    """
    check_counts(batch_size=batch_size, workers=workers, topk=topk)
    if isinstance(model_or_checkpoint, nn.Module):
        model = model_or_checkpoint
    else:
        from stvid.zoo import load_model

        model = load_model(model_or_checkpoint)
    execution = Execution(batch_size=batch_size, workers=workers, device=device, precision=precision, backend=backend)
    work = Classification.prepare(
        model, videos, topk=topk, fps=fps, views=views, protocol=protocol, task=task, execution=execution
    )
    return predict_together(work, None) or []


@dataclass(frozen=True)
class Classification:
    """A call of `predict` whose arguments were checked: which videos, and how they are classified.

    Attributes:
        model: Maps clips (B, C, T, H, W) to logits (B, K).
        given: The videos as they were given.
        places: For each of them its number among the different ones: a file that is given twice is decoded once.
        protocol: How clips are read, with the views.
        task: ``multiclass`` or ``multilabel``.
        topk: How many classes to name.
        execution: How the work is done.
    """

    model: nn.Module
    given: Sequence[_Source]
    places: Sequence[int]
    protocol: Protocol
    task: Task
    topk: int
    execution: Execution

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        videos: VideoLike | StoredVideo | Sequence[VideoLike | StoredVideo],
        *,
        execution: Execution,
        topk: int = 5,
        fps: float | None = None,
        views: str | ViewPlan | None = None,
        protocol: Protocol | None = None,
        task: Task | None = None,
    ) -> Classification:
        """Checks the arguments, which are those of `predict`; no video is read, and the model does not run.

        Raises:
            ConfigError: If an argument is not usable.
            VideoError: If frames in memory have another type or shape.
        """
        check_counts(workers=0, topk=topk)
        used = model_protocol(model, protocol, views)
        used_task = model_task(model, task)
        given = _given_videos(videos, fps)
        for source in given:
            if isinstance(source, MemoryFrames):
                check_rate_known(source, used)
        keys = [os.path.realpath(source) if _is_path(source) else number for number, source in enumerate(given)]
        order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return cls(model, given, [order[key] for key in keys], used, used_task, topk, execution)

    @property
    def sources(self) -> list[_Source]:
        """The different videos."""
        found: dict[int, _Source] = {}
        for place, source in zip(self.places, self.given, strict=True):
            found.setdefault(place, source)
        return [found[place] for place in range(len(found))]

    @property
    def at_once(self) -> int:
        """How many videos are decoded, and given to the model, at a time."""
        return max(1, self.execution.batch_size // ViewPlan.parse(self.protocol.views).num_views)

    def batches(self) -> list[range]:
        """Returns the numbers of the different videos of each batch; see `Evaluation.batches`."""
        step, count = self.at_once, len(set(self.places))
        return [range(start, min(start + step, count)) for start in range(0, count, step)]

    def started(self) -> contextlib.AbstractContextManager[Placement]:
        """Puts the model into evaluation mode on its device until the end of the ``with``."""
        return inference(self.model, device=self.execution.device, precision=self.execution.precision)

    def classified(
        self, batches: Sequence[range], todo: Sequence[int], place: Placement
    ) -> Generator[tuple[int, dict[int, Prediction]], None, None]:
        """Decodes and classifies some of the batches, within `started`.

        Yields:
            The number of a batch, and the predictions by the numbers of its videos.
        """
        wanted = [index for batch in todo for index in batches[batch]]
        if not wanted:
            return
        dataset = _GivenVideos(self.sources, self.protocol, views=self.protocol.views, backend=self.execution.backend)
        settings = LoaderSettings(self.at_once, self.execution.workers, pin_memory=place.device.type == "cuda")
        loader = make_eval_loader(dataset, settings, only=wanted)
        run = partial(
            sample_logits,
            self.model,
            protocol=self.protocol,
            placement=place,
            view_chunk=self.execution.chunk,
        )
        with contextlib.closing(iter(loader)) as decoded:
            for batch, samples in zip(todo, decoded, strict=True):
                yield batch, {sample.index: self._prediction(sample, logits) for sample, logits in run(samples)}

    def _prediction(self, sample: EvalSample, logits: Tensor | None) -> Prediction:
        best = None if logits is None else top_classes(logits.numpy(), self.protocol, task=self.task, topk=self.topk)
        return _prediction(best, sample.error)

    def in_order(self, found: Mapping[int, Prediction]) -> list[Prediction]:
        """Returns one prediction for each video that was given, with its name."""
        pairs = zip(self.places, self.given, strict=True)
        return [replace(found[place], path=_name(source)) for place, source in pairs]


def predictions_of(found: Mapping[int, Prediction], *, first: int = 0) -> dict[str, Any]:
    """Returns the predictions of a batch as values for JSON, under ``predictions`` and ``failed``.

    Args:
        found: The predictions by the numbers of their videos.
        first: Added to the numbers.
    """
    return {
        "predictions": [[first + index, prediction.to_dict()] for index, prediction in found.items()],
        "failed": [first + index for index, prediction in found.items() if prediction.error is not None],
    }


def predict_together(work: Classification, team: Team | None) -> list[Prediction] | None:
    """Classifies all videos, with other processes if there is a team.

    Args:
        work: The videos, and how they are classified.
        team: The processes that share the batches; None does all here.

    Returns:
        One prediction for each video that was given; None in a process that is not the first.
    """
    batches = work.batches()
    numbers: Sequence[int] = range(len(batches))
    found: dict[int, Prediction] = {}
    with work.started() as place:
        todo = numbers if team is None else team.rank.part.of(numbers)
        with contextlib.closing(work.classified(batches, todo, place)) as outcomes:
            for _, predictions in outcomes:
                found |= predictions
    if team is not None:
        for others in team.gather(found):
            found |= others
        team.finish()
        if not team.first:
            return None
    return work.in_order(found)


def _is_path(source: _Source) -> TypeGuard[str]:
    return isinstance(source, str) and not is_url(source)


def _name(source: _Source) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, StoredVideo):
        return source.path
    return "<bytes>" if isinstance(source, bytes) else FRAMES_NAME


def _given_videos(videos: Any, fps: float | None) -> list[_Source]:
    """Returns what was given as a list of paths, URLs, bytes and frames.

    Raises:
        ConfigError: If it is nothing of that kind.
        VideoError: If frames have another type or shape.
    """
    # An iterator is one of videos or of frames, which the first value tells.
    if isinstance(videos, Iterator) and not hasattr(videos, "read"):
        first = next(videos, None)
        rest = itertools.chain([] if first is None else [first], videos)
        videos = MemoryFrames.take(rest, fps) if is_frame(first) else list(rest)
    one = _one_video(videos, fps)
    if one is not None:
        return [one]
    if not isinstance(videos, Iterable) or isinstance(videos, Mapping):
        raise ConfigError(f"videos: {type(videos).__name__} is no video; give paths, bytes, files, URLs or frames")
    return [_video_of_list(video, fps) for video in videos]


def _video_of_list(video: Any, fps: float | None) -> _Source:
    found = _one_video(video, fps)
    if found is None:
        raise ConfigError(f"videos: {type(video).__name__} is no video; give paths, bytes, files, URLs or frames")
    return found


def _one_video(video: Any, fps: float | None) -> _Source | None:
    """Returns one video, or None if this is something else, such as a list of videos."""
    if isinstance(video, StoredVideo):
        return video
    if isinstance(video, (str, os.PathLike)):
        return os.fspath(video)
    if hasattr(video, "read"):
        video = read_whole(video)
    if isinstance(video, (bytes, bytearray, memoryview)):
        return bytes(video)
    return MemoryFrames.take(video, fps)


class _GivenVideos(EvalDataset):
    """The views of videos that are files or in memory."""

    def __init__(self, sources: Sequence[_Source], protocol: Protocol, *, views: str, backend: str) -> None:
        # The names of a list are put in order as text ("folder/.."), so they only stand for the sources here.
        names = [VideoEntry(f"video {number}") for number in range(len(sources))]
        super().__init__(
            Manifest.from_entries(names, source="the given videos"), protocol, views=views, backend=backend
        )
        self.sources = list(sources)

    def content_and_index(self, index: int) -> tuple[str | bytes | MemoryFrames, Index | None]:
        """Returns the video; its index is not known, unless its shard has it."""
        source = self.sources[index]
        return source.manifest.content_and_index(source.index) if isinstance(source, StoredVideo) else (source, None)


def _prediction(best: TopClasses | None, error: str | None) -> Prediction:
    if best is None:
        return Prediction("", error=error or NOT_FINITE)
    return Prediction("", list(best.names), list(best.probabilities), list(best.ids))
