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

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.stage_base import Rows, Stage
from stvid.errors import StvidError, VideoError
from stvid.evaluation.evaluate import check_counts, inference, model_protocol
from stvid.evaluation.features import FeatureClips, clip_features
from stvid.evaluation.predict import predict
from stvid.models.base import VideoModel

__all__ = ["Features", "ModelStage", "Predict"]


class ModelStage(Stage):
    """A stage whose work needs a model. What is wrong with the model or an option is raised; it is no fault of a video.

    Args:
        source: Weights, as `stvid.load_model` takes them.
        device: Where the model runs; None takes a GPU if there is one.
        column: The column that names the videos.
        **options: All else that the work depends on.
    """

    rows_at_once = 16

    def __init__(
        self, source: str | os.PathLike[str], *, device: str | None = None, column: str = "path", **options: Any
    ) -> None:
        super().__init__({"source": os.fspath(source), "device": device, **options}, column=column)
        self._model: VideoModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    @property
    def model(self) -> VideoModel:
        """The model, built when it is first asked for."""
        if self._model is None:
            from stvid.zoo import load_model

            device = self.options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
            self._model = load_model(self.options["source"]).to(device)
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
        **options: ``device``, ``column``, and ``precision`` as `stvid.predict` has it.

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
        source: str | os.PathLike[str],
        *,
        views: str | None = None,
        window: float | None = None,
        stride: float | None = None,
        batch_size: int = 8,
        precision: str = "32-true",
        **options: Any,
    ) -> None:
        check_counts(workers=0, batch_size=batch_size)
        own = {"views": views, "window": window, "stride": stride, "batch_size": batch_size, "precision": precision}
        super().__init__(source, **own, **options)

    def nothing(self, name: str) -> np.ndarray:
        """Returns an array without clips."""
        shape, dtype = {"features": ((0, self.model.head_features), "f4"), "frames": ((0, 2), "i8")}.get(
            name, ((0,), "f8")
        )
        return np.empty(shape, dtype)

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads one video and runs the model over its clips."""
        options, model = self.options, self.model
        window = options["window"]
        protocol = model_protocol(model, None, options["views"] or ("1x1" if window is not None else None))
        chunks = FeatureClips(
            Manifest.from_entries([VideoEntry(path)]),
            [0],
            protocol,
            views=protocol.views,
            window=window,
            stride=options["stride"],
        )
        parts = []
        with inference(model, device=None, precision=options["precision"]) as place:
            for chunk in chunks:
                if isinstance(chunk, StvidError):
                    raise chunk
                if chunk.error is not None:
                    raise VideoError(path, chunk.error)
                if chunk.clips is not None:
                    features = clip_features(
                        model, chunk.clips, protocol, batch_size=options["batch_size"], device=place.device
                    )
                    parts.append((features.numpy(), chunk.start, chunk.end, chunk.frames))
        if not parts:
            raise VideoError(path, "no window holds a frame")
        return {name: np.concatenate(found) for name, found in zip(self.fields, zip(*parts, strict=True), strict=True)}


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
        source: str | os.PathLike[str],
        *,
        topk: int = 5,
        views: str | None = None,
        batch_size: int = 8,
        precision: str = "32-true",
        **options: Any,
    ) -> None:
        check_counts(workers=0, batch_size=batch_size, topk=topk)
        own = {"topk": topk, "views": views, "batch_size": batch_size, "precision": precision}
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
