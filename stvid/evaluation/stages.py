"""Models as stages: classes that a ``ray.data`` pipeline of one's own can run on its GPUs.

The weights are named when a stage is made, and the model is built once in each process that calls it. For example,
features and the most likely class of many videos, on four GPUs::

    import ray
    from stvid.evaluation.stages import Features, Predict

    videos = ray.data.read_csv("videos.csv")                                  # path
    gpus = {"concurrency": 4, "num_gpus": 1, "batch_size": 16}
    videos = videos.map_batches(Features, fn_constructor_args=["uniformer_s.k400_16x4"], **gpus)
    videos = videos.map_batches(Predict, fn_constructor_args=["uniformer_s.k400_16x4"], **gpus)
    videos.drop_columns(["error"]).write_parquet("features")

The numbers of a video do not depend on the rows beside it: the clips of each go through the model by themselves. So
they are the same bit for bit, on one machine or on many of its kind. Stages of `stvid.data.stages` can stand before
these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.stage_base import Rows, Stage
from stvid.errors import StvidError, VideoError
from stvid.evaluation.batch_parts import hardware
from stvid.evaluation.evaluate import (
    Evaluation,
    EvaluationPlan,
    Execution,
    check_counts,
    inference,
    model_protocol,
    model_task,
    outcome_of,
)
from stvid.evaluation.features import ClipFeatures, FeatureClips, clip_features, save_features
from stvid.evaluation.predict import Classification, predict, predictions_of
from stvid.models.base import VideoModel

__all__ = ["FeatureFile", "Features", "ModelStage", "Predict", "PredictBatch", "Test", "TestBatch"]


class ModelStage(Stage):
    """A stage whose work needs a model. What is wrong with the model or an option is raised; it is no fault of a video.

    Args:
        source: Weights, as `stvid.load_model` takes them, or a model, which then travels with the stage.
        device: Where the model runs; None takes a GPU if there is one.
        column: The column that names the videos.
        **options: All else that the work depends on.
    """

    rows_at_once = 16
    lasting = True

    def __init__(
        self,
        source: str | os.PathLike[str] | VideoModel,
        *,
        device: str | None = None,
        column: str = "path",
        **options: Any,
    ) -> None:
        given = source if isinstance(source, VideoModel) else None  # travels with the stage
        name = source.recipe.get("name") if isinstance(source, VideoModel) else os.fspath(source)
        super().__init__({"source": name, "device": device, **options}, column=column)
        self._given = given
        self._model: VideoModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    @property
    def model(self) -> VideoModel:
        """The model, built when it is first asked for."""
        if self._model is None:
            from stvid.zoo import load_model

            device = self.options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
            given = self._given
            self._model = (load_model(self.options["source"]) if given is None else given).to(device)
        return self._model

    def _attempt(self, path: str) -> tuple[Mapping[str, Any], str]:
        try:
            return self.work(path), ""
        except VideoError as error:
            return {}, str(error)

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Returns the rows with what the model says, and with ``error``: an empty text where all went well."""
        assert self.model is not None  # what is wrong with it is raised, even if no row needs it
        return super().__call__(rows)


class Features(ModelStage):
    """Gives clip features of a video, those that `stvid features` writes.

    Args:
        source: Weights, as `stvid.load_model` takes them.
        views: Temporal clips x spatial crops; None takes the protocol's, or with windows 1x1.
        window: Seconds of a sliding window; None takes the test clips of the protocol.
        stride: Seconds from one window to the next; None takes `window`.
        batch_size: Clips in one forward pass.
        **options: ``device``, ``column``, and ``precision`` and ``backend`` as `stvid.predict` has them.

    The columns are ``features`` (clips, numbers), ``start`` and ``end`` in seconds (clips,), and ``frames``, the first
    and last one of each clip (clips, 2).
    """

    fields: ClassVar[Mapping[str, type]] = {
        "features": np.ndarray,
        "start": np.ndarray,
        "end": np.ndarray,
        "frames": np.ndarray,
    }

    def __init__(
        self,
        source: str | os.PathLike[str] | VideoModel,
        *,
        views: str | None = None,
        window: float | None = None,
        stride: float | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> None:
        check_counts(workers=0, batch_size=batch_size)
        own: dict[str, Any] = {"views": views, "window": window, "stride": stride, "batch_size": batch_size}
        super().__init__(source, **{"precision": "32-true", "backend": "av", **own, **options})

    def nothing(self, name: str) -> np.ndarray:
        """Returns an array without clips."""
        shape, dtype = {"features": ((0, self.model.head_features), "f4"), "frames": ((0, 2), "i8")}.get(
            name, ((0,), "f8")
        )
        return np.empty(shape, dtype)

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads one video and runs the model over its clips."""
        found = self.features_of(VideoEntry(path))
        return {name: getattr(found, name) for name in self.fields}

    def features_of(self, entry: VideoEntry) -> ClipFeatures:
        """Returns the features of a video, or of a part of one.

        Raises:
            VideoError: If it cannot be read.
        """
        options, model = self.options, self.model
        window = options["window"]
        protocol = model_protocol(model, None, options["views"] or ("1x1" if window is not None else None))
        chunks = FeatureClips(
            Manifest.from_entries([entry]),
            [0],
            protocol,
            views=protocol.views,
            window=window,
            stride=options["stride"],
            backend=options["backend"],
        )
        parts = []
        with inference(model, device=None, precision=options["precision"]) as place:
            for chunk in chunks:
                if isinstance(chunk, StvidError):
                    raise chunk
                if chunk.error is not None:
                    raise VideoError(entry.path, chunk.error)
                if chunk.clips is not None:
                    found = clip_features(
                        model, chunk.clips, protocol, batch_size=options["batch_size"], device=place.device
                    )
                    parts.append((found.numpy(), chunk.start, chunk.end, chunk.frames))
        if not parts:
            raise VideoError(entry.path, "no window holds a frame")
        features, begins, ends, frames = (np.concatenate(values) for values in zip(*parts, strict=True))
        return ClipFeatures(features, begins, ends, frames, path=entry.path, labels=entry.labels)


class FeatureFile(Features):
    """Writes the features of a video, or of a part of one, into a file.

    The column ``path`` holds tasks as `FeatureFile.task` makes them, and ``file`` is what was written.
    """

    fields: ClassVar[Mapping[str, type]] = {"file": str}

    @staticmethod
    def task(entry: VideoEntry, file: Path) -> str:
        """Returns a task as text: the video of a list, and the file for its features."""
        return json.dumps([entry.path, list(entry.labels), entry.start, entry.end, os.fspath(file)])

    def nothing(self, name: str) -> Any:
        """Returns an empty name."""
        return ""

    def work(self, path: str) -> Mapping[str, Any]:
        """Does one task."""
        video, labels, start, end, file = json.loads(path)
        save_features(self.features_of(VideoEntry(video, tuple(labels), start=start, end=end)), file)
        return {"file": file}


class Predict(ModelStage):
    """Gives the most likely classes of a video, as `stvid.predict` does for one by itself.

    Args:
        source: Weights, as `stvid.load_model` takes them.
        topk: How many classes to name.
        views: Temporal clips x spatial crops; None takes the protocol's.
        batch_size: Clips in one forward pass.
        precision: As `stvid.predict` has it.
        **options: ``device`` and ``column``.

    The columns are ``label`` and ``probability`` of the first class, and ``classes``, ``probabilities`` and
    ``class_ids`` of all `topk`, each a list as JSON.
    """

    fields: ClassVar[Mapping[str, type]] = {
        "label": str,
        "probability": float,
        "classes": list,
        "probabilities": list,
        "class_ids": list,
    }

    def __init__(
        self,
        source: str | os.PathLike[str] | VideoModel,
        *,
        topk: int = 5,
        views: str | None = None,
        batch_size: int = 8,
        precision: str = "32-true",
        **options: Any,
    ) -> None:
        check_counts(workers=0, batch_size=batch_size, topk=topk)
        own: dict[str, Any] = {"topk": topk, "views": views, "batch_size": batch_size, "precision": precision}
        super().__init__(source, **own, **options)

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads one video and classifies it."""
        chosen = {name: self.options[name] for name in ("topk", "views", "batch_size", "precision")}
        (found,) = predict(self.model, [path], **chosen)
        if found.error is not None:
            raise VideoError(path, found.error)
        return {
            "label": found.classes[0],
            "probability": found.probabilities[0],
            "classes": found.classes,
            "probabilities": found.probabilities,
            "class_ids": found.class_ids,
        }


class Test(ModelStage):
    """Gives the logits of all views of a video, those that `stvid test` gives of it by itself.

    Args:
        source: Weights, as `stvid.load_model` takes them.
        views: Temporal clips x spatial crops; None takes the protocol's.
        batch_size: Clips in one forward pass.
        **options: ``device``, ``column``, and ``precision`` and ``backend`` as `stvid.evaluate` has them.

    The columns are ``logits`` (views, classes), clip by clip, and ``distinct``: how many of the views are different.
    `stvid.evaluation.result.ViewAccumulator` makes numbers of them.
    """

    __test__ = False  # pytest takes it for tests of its own
    fields: ClassVar[Mapping[str, type]] = {"logits": np.ndarray, "distinct": int}

    def __init__(
        self,
        source: str | os.PathLike[str] | VideoModel,
        *,
        views: str | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> None:
        check_counts(workers=0, batch_size=batch_size)
        own: dict[str, Any] = {"views": views, "batch_size": batch_size}
        super().__init__(source, **{"precision": "32-true", "backend": "av", **own, **options})

    def nothing(self, name: str) -> Any:
        """Returns an array without views, or 0."""
        return np.empty((0, self.model.num_classes), "f4") if name == "logits" else super().nothing(name)

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads one video and runs the model over its views."""
        names = ("batch_size", "precision", "backend")
        execution = Execution(**{name: self.options[name] for name in names})
        protocol = model_protocol(self.model, None, self.options["views"])
        plan = EvaluationPlan(protocol, model_task(self.model, None))
        evaluation = Evaluation(self.model, Manifest.from_entries([VideoEntry(path)]), plan, execution)
        with evaluation.started() as place:
            records, failed = evaluation.measure([evaluation.dataset()[0]], place)
        for sample in failed:
            raise VideoError(path, str(sample.error))
        return {"logits": records[0].logits, "distinct": records[0].distinct}


class _BatchStage(ModelStage):
    """Work on the batches of a list, whose tasks are texts in the column ``path``; it has the same bits as one process.

    Args:
        model: The model, which travels with the stage.
        execution: How one process does the work.
        device: Where the model runs.
        threads: Threads of torch for a model on the CPU, which its last digits depend on.
    """

    rows_at_once = 4

    def __init__(self, model: VideoModel, execution: Execution, *, device: str, threads: int) -> None:
        super().__init__(model, device=device)
        self.execution = replace(execution, device=None, workers=0, progress=False)
        self.threads = threads if device == "cpu" else None
        self.cores = self.threads or 1

    def set_threads(self) -> None:
        """Gives torch as many threads as one process has."""
        if self.threads is not None and self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)


class TestBatch(_BatchStage):
    """Measures the batches of an evaluation, with the same bits as one process.

    The column ``path`` holds tasks as `TestBatch.task` makes them. The columns ``videos`` and ``failed`` are what
    `stvid.evaluation.evaluate.outcome_of` says of a batch, each as JSON, and ``where`` is the hardware.

    Args:
        evaluation: What is measured; its model travels with the stage, its list of videos does not.
        device: Where the model runs.
        threads: Threads of torch for a model on the CPU, which its last digits depend on.
    """

    __test__ = False  # pytest takes it for tests of its own
    fields: ClassVar[Mapping[str, type]] = {"videos": list, "failed": list, "where": str}

    def __init__(self, evaluation: Evaluation, *, device: str, threads: int) -> None:
        super().__init__(evaluation.model, evaluation.execution, device=device, threads=threads)  # type: ignore[arg-type]
        self.plan = evaluation.plan

    @staticmethod
    def task(videos: Manifest, batch: range) -> str:
        """Returns a task as text: the videos of a batch, and the number of the first of them."""
        entries = [videos[index] for index in batch]
        return json.dumps([batch.start, [[entry.path, entry.start, entry.end] for entry in entries]])

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads the videos of a batch and runs the model over their views."""
        first, listed = json.loads(path)
        entries = [VideoEntry(video, start=start, end=end) for video, start, end in listed]
        evaluation = Evaluation(self.model, Manifest.from_entries(entries), self.plan, self.execution)
        self.set_threads()
        dataset = evaluation.dataset()
        with evaluation.started() as place:
            # The order of shuffled frames depends on the number of a video in the whole list.
            samples = [replace(dataset[index], index=first + index) for index in range(len(dataset))]
            records, failed = evaluation.measure(samples, place)
            return {**outcome_of(records, failed), "where": hardware(place.device)}


class PredictBatch(_BatchStage):
    """Classifies the batches of a list, with the same bits as one process.

    The column ``path`` holds tasks as `PredictBatch.task` makes them. The column ``predictions`` holds the number of
    each video in the list and what `Prediction.to_dict` says of it, as JSON, ``failed`` the numbers of those that could
    not be read, and ``where`` the hardware.

    Args:
        work: What is classified; its model travels with the stage, its list of videos does not.
        device: Where the model runs.
        threads: Threads of torch for a model on the CPU, which its last digits depend on.
    """

    fields: ClassVar[Mapping[str, type]] = {"predictions": list, "failed": list, "where": str}

    def __init__(self, work: Classification, *, device: str, threads: int) -> None:
        super().__init__(work.model, work.execution, device=device, threads=threads)  # type: ignore[arg-type]
        self.arguments: dict[str, Any] = {"protocol": work.protocol, "task": work.task, "topk": work.topk}

    @staticmethod
    def task(videos: Sequence[str], batch: range) -> str:
        """Returns a task as text: the videos of a batch, and the number of the first of them."""
        return json.dumps([batch.start, [videos[index] for index in batch]])

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads the videos of a batch and classifies them."""
        first, videos = json.loads(path)
        work = Classification.prepare(self.model, videos, execution=self.execution, **self.arguments)
        self.set_threads()
        with work.started() as place:
            (outcome,) = (found for _, found in work.classified([range(len(videos))], [0], place))
            return {**predictions_of(outcome, first=first), "where": hardware(place.device)}
