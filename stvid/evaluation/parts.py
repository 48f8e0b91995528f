"""`evaluate` and `predict` in parts: with ``--shard i/n``, on several devices, or batch by batch on Ray.

The parts keep the logits of each view, or the predictions, of their videos in journals
(`stvid.evaluation.batch_parts`); joined, they give what one process gives in one go, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stvid.console import progress_bar
from stvid.data.parts import Part, keys_digest
from stvid.data.ray_engine import run_on_ray, started_ray
from stvid.data.stage_base import Stage
from stvid.data.video_table import StoredVideo
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.batch_parts import BatchWork, Joined, PartJournal, hardware
from stvid.evaluation.evaluate import Evaluation, add_record, outcome_of
from stvid.evaluation.predict import Classification, Prediction, predictions_of
from stvid.evaluation.progress import VideoRecord, digest, model_digest, unpacked, videos_digest
from stvid.evaluation.result import EvaluationResult, library_versions
from stvid.evaluation.stages import PredictBatch, TestBatch
from stvid.inference import OptimizedModel

__all__ = [
    "PartReport",
    "evaluate_on_ray",
    "evaluate_part",
    "join_evaluation",
    "join_predictions",
    "predict_on_ray",
    "predict_part",
    "prediction_work",
    "result_of",
    "work_of",
]


@dataclass(frozen=True)
class PartReport:
    """The counts and the journal of a part that `evaluate_part` or `predict_part` did.

    Attributes:
        journal: The file that holds the logits or the predictions.
        videos: How many videos the part has.
        failed: How many of them could not be read.
    """

    journal: Path
    videos: int
    failed: int


def work_of(evaluation: Evaluation, folder: str | os.PathLike[str], *, weights: nn.Module, optimize: bool) -> BatchWork:
    """Returns an evaluation as work that can be shared out.

    Args:
        evaluation: What is measured.
        folder: Where the result is to be; the journals stand in it.
        weights: The model as it was loaded.
        optimize: Whether `stvid.optimize` made the model that runs.
    """
    plan, execution = evaluation.plan, evaluation.execution
    made = {
        "videos": videos_digest(evaluation.videos),
        "views": plan.protocol.views,
        "measured": plan.digest(evaluation.videos),
        "checkpoint": model_digest(weights),
        "optimize": optimize,
        "precision": execution.precision,
        "backend": execution.backend,
        "batch_size": [execution.batch_size, execution.chunk],
        "versions": library_versions(),
    }
    return BatchWork(Path(folder) / "test.jsonl", made, len(evaluation.batches()))


def evaluate_part(evaluation: Evaluation, work: BatchWork, part: Part, *, title: str = "videos") -> PartReport:
    """Measures the videos of one part, and keeps their logits in its journal.

    What an earlier, interrupted run of the part did is kept; batches with videos that could not be read are done again.

    Args:
        evaluation: What is measured.
        work: The same, as `work_of` gives it.
        part: Which part.
        title: Shown beside the progress.

    Raises:
        ConfigError: If the journal is of another evaluation, or the model does not take its clips.
        StvidError: If another process does this part now, the journal cannot be written, or a worker was killed.
    """
    batches = evaluation.batches()
    own = part.of(batches)
    failures: dict[int, int] = {}
    with evaluation.started() as place:
        computed = {"arithmetic": list(evaluation.arithmetic(place)), "device": place.device.type}
        with work.part(part, computed=computed) as journal:
            where = hardware(place.device)
            todo = [index for batch in journal.todo for index in batches[batch]]
            total = sum(map(len, own))
            if len(todo) < total and journal.done:
                line = f"continuing: {total - len(todo)} of {total} videos of shard {part} are done ({journal.path})"
                print(line, file=sys.stderr, flush=True)
            enabled = evaluation.execution.progress
            with (
                progress_bar(title, total, done=total - len(todo), enabled=enabled) as bar,
                evaluation.decoded(todo, place) as decoded,
            ):
                for batch, samples in zip(journal.todo, decoded, strict=True):
                    records, failed = evaluation.measure(samples, place)
                    journal.add(batch, outcome_of(records, failed), where=where)
                    failures[batch] = len(failed)
                    bar.advance(len(samples))
    return PartReport(journal.path, total, sum(failures.values()))


def evaluate_on_ray(
    evaluation: Evaluation, work: BatchWork, part: Part, *, address: str | None = None, workers: int | None = None
) -> PartReport:
    """Measures the videos of a part, or as part 1/1 of all, on a Ray cluster; see `evaluate_part`.

    Args:
        evaluation: What is measured. Its device, if it is given, is that of the models on the cluster; None takes GPUs
            if there are any.
        work: The same, as `work_of` gives it.
        part: Which part.
        address: The cluster, as Ray names it; None starts Ray on this machine.
        workers: The most models at once; None takes as many as the cluster has room for.

    Raises:
        ConfigError: If the videos are no files, the journal is of another evaluation, or the model does not take its
            clips.
        StvidError: If Ray is missing or cannot be reached, or videos take the processes down that read them.
    """
    videos = evaluation.videos
    if videos.members is not None:
        raise ConfigError(
            f"{videos.source}: lies {videos.members.place}, which --engine ray does not read; use --shard i/n"
        )
    paths = [videos[index].path for index in range(len(videos))]
    with started_ray(address, workers) as gpus:
        device = str(evaluation.execution.device or ("cuda" if gpus else "cpu"))
        stage = TestBatch(evaluation, device=device, threads=torch.get_num_threads())
        computed = {"arithmetic": [f"{evaluation.execution.precision} on {device}"], "device": device}
        with work.part(part, computed=computed) as journal:
            tasks = [TestBatch.task(videos, batch) for batch in evaluation.batches()]
            batches = _Batches(evaluation.batches(), tasks, paths, evaluation.execution.progress)
            return batches.run(stage, journal, part, workers)


@dataclass(frozen=True)
class _Batches:
    """The batches of a list, which Ray works on.

    Attributes:
        ranges: The numbers of the videos of each batch.
        tasks: The task of each batch as text.
        paths: The videos.
        progress: Show a bar on standard error.
    """

    ranges: Sequence[range]
    tasks: Sequence[str]
    paths: Sequence[str]
    progress: bool

    def run(self, stage: Stage, journal: PartJournal, part: Part, workers: int | None) -> PartReport:
        """Does the batches of a part that its journal does not hold yet, within `started_ray`."""
        ranges = self.ranges
        total = sum(len(batch) for batch in part.of(ranges))
        todo = sum(len(ranges[batch]) for batch in journal.todo)
        numbers = {self.tasks[batch]: batch for batch in journal.todo}
        failed = 0
        with progress_bar("videos", total, done=total - todo, enabled=self.progress) as bar:

            def record(task: str, result: Mapping[str, Any], error: str) -> None:
                nonlocal failed
                if error:
                    raise StvidError(error)
                outcome = {name: value for name, value in result.items() if name != "where"}
                journal.add(numbers[task], outcome, where=result["where"])
                failed += len(result["failed"])
                bar.advance(len(ranges[numbers[task]]))

            for task in run_on_ray(stage, list(numbers), workers, record) if numbers else ():
                if run_on_ray(stage, [task], 1, record):
                    names = ", ".join(self.paths[index] for index in ranges[numbers[task]])
                    raise StvidError(f"{names}: the process that reads them is taken down, again and again")
        return PartReport(journal.path, total, failed)


def result_of(
    evaluation: Evaluation, outcomes: Sequence[Mapping[str, Any]], arithmetic: Sequence[str]
) -> EvaluationResult:
    """Returns the result that the outcomes of all batches give.

    Raises:
        EvaluationError: If no video could be read, or the logits are not finite.
        StvidError: If an outcome is damaged.
    """
    accumulator, dataset = evaluation.plan.accumulator(), evaluation.dataset()
    try:
        for outcome in outcomes:
            for text in outcome["videos"]:
                record = unpacked(text)
                labels = np.asarray(dataset.labels(record.index))
                own = VideoRecord(record.index, record.logits, labels, record.distinct, record.probes)
                add_record(accumulator, own, evaluation.videos)
            for index, reason in outcome["failed"]:
                path = evaluation.videos[index].path
                accumulator.add_failure(index, path, reason, labels=dataset.labels(index))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StvidError):
            raise
        raise StvidError(f"the outcome of a batch is damaged ({error}); delete the journals and test again") from error
    result = accumulator.result()
    result.evaluation = evaluation.plan.digest(evaluation.videos)
    result.arithmetic = tuple(arithmetic)
    return result


def join_evaluation(evaluation: Evaluation, work: BatchWork) -> tuple[EvaluationResult, Joined]:
    """Joins all parts of an evaluation to its result; no video is read, and the model does not run.

    Raises:
        ConfigError: If a part is of another evaluation, of other weights, or was made with other versions.
        StvidError: If a part is missing, or not done.
        EvaluationError: If no video could be read.
    """
    joined = work.joined()
    return result_of(evaluation, joined.outcomes, joined.computed.get("arithmetic", ())), joined


# --- predictions ------------------------------------------------------------------------------------------------------


def prediction_work(work: Classification, path: str | os.PathLike[str], *, weights: nn.Module) -> BatchWork:
    """Returns predictions as work that can be shared out.

    Args:
        work: The videos, which are files or URLs, and how they are classified.
        path: The file that the whole work writes; the journals stand beside it.
        weights: The model as it was loaded.
    """
    execution = work.execution
    made = {
        "videos": keys_digest([str(source) for source in work.given]),
        "views": work.protocol.views,
        "measured": digest({"protocol": work.protocol.to_dict(), "task": work.task, "topk": work.topk}),
        "checkpoint": model_digest(weights),
        "optimize": isinstance(work.model, OptimizedModel),
        "precision": execution.precision,
        "backend": execution.backend,
        "batch_size": execution.batch_size,
        "versions": library_versions(),
    }
    return BatchWork(Path(path).with_suffix(".jsonl"), made, len(work.batches()))


def predict_part(work: Classification, shared: BatchWork, part: Part) -> PartReport:
    """Classifies the videos of one part, and keeps the predictions in its journal; see `evaluate_part`.

    Args:
        work: The videos.
        shared: The same, as `prediction_work` gives it.
        part: Which part.

    Raises:
        ConfigError: If the journal is of other work, or the model does not take its clips.
        StvidError: If another process does this part now, the journal cannot be written, or a worker was killed.
    """
    batches = work.batches()
    failed = 0
    with work.started() as place:
        computed = {"precision": work.execution.precision, "device": place.device.type}
        with (
            shared.part(part, computed=computed) as journal,
            contextlib.closing(work.classified(batches, journal.todo, place)) as outcomes,
        ):
            for batch, predictions in outcomes:
                outcome = predictions_of(predictions)
                journal.add(batch, outcome, where=hardware(place.device))
                failed += len(outcome["failed"])
    return PartReport(journal.path, sum(map(len, part.of(batches))), failed)


def predict_on_ray(
    work: Classification, shared: BatchWork, part: Part, *, address: str | None = None, workers: int | None = None
) -> PartReport:
    """Classifies the videos of a part, or as part 1/1 of all, on a Ray cluster; see `evaluate_on_ray`.

    Args:
        work: The videos, which are files or URLs.
        shared: The same, as `prediction_work` gives it.
        part: Which part.
        address: The cluster, as Ray names it; None starts Ray on this machine.
        workers: The most models at once; None takes as many as the cluster has room for.

    Raises:
        ConfigError: If a video is no file or URL, the journal is of other work, or the model does not take its clips.
        StvidError: If Ray is missing or cannot be reached, or videos take the processes down that read them.
    """
    paths = []
    for source in work.sources:
        if not isinstance(source, str):
            place = f"{source.path}: lies in a data set" if isinstance(source, StoredVideo) else "a video: is in memory"
            raise ConfigError(f"{place}, which --engine ray does not read; use --shard i/n")
        paths.append(source)
    with started_ray(address, workers) as gpus:
        device = str(work.execution.device or ("cuda" if gpus else "cpu"))
        stage = PredictBatch(work, device=device, threads=torch.get_num_threads())
        with shared.part(part, computed={"precision": work.execution.precision, "device": device}) as journal:
            tasks = [PredictBatch.task(paths, batch) for batch in work.batches()]
            return _Batches(work.batches(), tasks, paths, work.execution.progress).run(stage, journal, part, workers)


def join_predictions(work: Classification, shared: BatchWork) -> tuple[list[Prediction], Joined]:
    """Joins all parts of some predictions; no video is read, and the model does not run.

    Raises:
        ConfigError: If a part is of other videos or weights, or was made with other versions.
        StvidError: If a part is missing, or not done.
    """
    joined = shared.joined()
    try:
        found = {index: Prediction(**values) for outcome in joined.outcomes for index, values in outcome["predictions"]}
        return work.in_order(found), joined
    except (KeyError, TypeError, ValueError) as error:
        raise StvidError(f"the journal of a part is damaged ({error}); delete the journals and begin again") from error
