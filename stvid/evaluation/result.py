"""Computes the numbers of an evaluation from the logits of each view.

`ViewAccumulator` collects the logits of every view and computes the `EvaluationResult`. Validation during training and
`evaluate` both use it, so that they agree exactly at the same protocol.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stvid.data.layout import view_layout
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError, ManifestError, StvidError
from stvid.evaluation import metrics as M
from stvid.evaluation.classes import name_classes
from stvid.evaluation.metrics import Average
from stvid.evaluation.record import EvaluationResult, Temporal, compute_metrics
from stvid.protocol import Protocol, Task
from stvid.version import __version__

__all__ = [
    "EvaluationError",
    "EvaluationResult",
    "Temporal",
    "ViewAccumulator",
    "check_choice",
    "library_versions",
    "typed_command",
]


class EvaluationError(StvidError):
    """An evaluation that gives no number.

    Attributes:
        failures: (path, reason) of each video that could not be read.
    """

    def __init__(self, message: str, failures: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, tuple(failures))  # both in args, so that the error survives pickling
        self.message = message
        self.failures = list(failures)

    def __str__(self) -> str:
        return self.message


class ViewAccumulator:
    """Collects per-view logits of videos, on one process or several, and turns them into numbers.

    A video is known by its index: one that comes again (the padding of a distributed sampler) is ignored. Logits are
    kept as float32, and scores are computed in float64 in the order of the indices, so that the numbers do not depend
    on the order of arrival or on how the videos were shared out.

    Args:
        protocol: Protocol of the evaluation; its class names name the logits ("class 0", ... if it has none).
        views: Temporal clips x spatial crops; None takes those of the protocol.
        task: ``multiclass`` or ``multilabel``.
        temporal: Order of the frames, which is written into the result.
        also: Further views whose logits are given; see `stvid.data.layout`.
        average: Whether the scores average the ``probabilities`` or the ``logits`` of the views.

    Several processes:

        states = [None] * world_size
        torch.distributed.all_gather_object(states, accumulator.state())
        result = ViewAccumulator.from_states(states).result()  # the same on every rank
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        views: str | ViewPlan | None = None,
        task: Task = "multiclass",
        temporal: Temporal = "normal",
        also: Sequence[str | ViewPlan] = (),
        average: Average = "probabilities",
    ) -> None:
        self.plan = ViewPlan.parse(protocol.views if views is None else views)
        self.protocol = protocol.replace(views=str(self.plan))
        names = dict.fromkeys(str(ViewPlan.parse(other)) for other in also)
        self.also = tuple(name for name in names if name != str(self.plan))
        self.layout = view_layout([str(self.plan), *self.also], protocol.sampling)
        self.task: Task = check_choice("task", task, get_args(Task))
        self.temporal: Temporal = check_choice("temporal", temporal, get_args(Temporal))
        self.average: Average = check_choice("average", average, get_args(Average))
        self._logits: dict[int, NDArray[np.float32]] = {}
        self._labels: dict[int, NDArray[np.int64]] = {}
        self._paths: dict[int, str] = {}
        self._distinct: dict[int, int] = {}
        self._probes: dict[int, dict[str, NDArray[np.float32]]] = {}
        self._failures: dict[int, tuple[str, str, NDArray[np.int64] | None]] = {}

    def __len__(self) -> int:
        """Returns how many different videos have come, readable or not."""
        return len(self._logits.keys() | self._failures.keys())

    def __contains__(self, index: int) -> bool:
        """Returns whether the logits of a video have come."""
        return index in self._logits

    def add(
        self,
        index: int,
        logits: Tensor | NDArray[Any],
        labels: Any,
        *,
        path: str = "",
        distinct: int | None = None,
        probes: Mapping[str, Tensor | NDArray[Any]] | None = None,
    ) -> None:
        """Adds one video.

        Args:
            index: Row of the video in the manifest.
            logits: (V, K), views clip by clip; then those of further protocols, in the order of the layout.
            labels: The class number; if multi-label, K zeros and ones.
            path: File of the video, for the result.
            distinct: How many of the V views are different; None takes all to be.
            probes: Logits (V, K) with a changed order of frames, by its name; the same names for all videos.

        Raises:
            ConfigError: If the logits are not those of this protocol: another number of views or classes.
            ManifestError: If the label is not one of the classes, as for a video without a label.
        """
        if index in self._logits:
            return
        values = self._check_logits(logits, len(self.layout.views))
        classes = values.shape[1]
        first = next(iter(self._logits.values()), values)
        if first.shape != values.shape:
            raise ConfigError(f"logits of shape {values.shape} after others of shape {first.shape}")
        self._labels[index] = self._check_labels(labels, classes, path or f"video {index}")
        self._probes[index] = {
            name: self._check_logits(other, self.plan.num_views) for name, other in (probes or {}).items()
        }
        self._logits[index] = values
        self._paths[index] = path
        self._distinct[index] = self.plan.num_views if distinct is None else distinct

    def _check_logits(self, logits: Tensor | NDArray[Any], views: int) -> NDArray[np.float32]:
        if isinstance(logits, Tensor):
            logits = logits.detach().float().cpu().numpy()
        values = np.array(logits, dtype=np.float32)  # a copy: the caller may reuse its memory
        if values.ndim != 2 or len(values) != views:
            named = " and ".join([str(self.plan), *self.also])
            raise ConfigError(f"logits of shape {values.shape} for views {named}: expected ({views}, classes)")
        name_classes(self.protocol.class_names, values.shape[1])  # refuses another number of names
        return values

    def add_failure(self, index: int, path: str, reason: str, *, labels: Any = None) -> None:
        """Adds a video that could not be read.

        Args:
            index: Row of the video in the manifest.
            path: File of the video.
            reason: Why it could not be read, in a few words.
            labels: Label of the video, as for `add`; None leaves the bounds of class means unknown.
        """
        known = None if labels is None else _label_array(labels)
        self._failures.setdefault(index, (str(path), str(reason), known))

    def _check_labels(self, labels: Any, classes: int, name: str) -> NDArray[np.int64]:
        values = _label_array(labels)
        if self.task == "multilabel":
            if values.shape != (classes,) or not np.isin(values, (0, 1)).all():
                raise ManifestError(f"{name}: multi-label targets are {classes} zeros and ones, not {labels!r}")
            return values
        if values.size != 1:
            raise ManifestError(f"{name}: one label is needed, not {values.size}; use task: multilabel for several")
        if not 0 <= values.item() < classes:
            raise ManifestError(f"{name}: label {values.item()} is not one of the model's {classes} classes")
        return values.reshape(())

    def state(self) -> dict[str, Any]:
        """Returns everything as plain picklable values, for `from_states`."""
        return {
            "protocol": self.protocol.to_dict(),
            "task": self.task,
            "temporal": self.temporal,
            "also": self.also,
            "average": self.average,
            "logits": self._logits,
            "labels": self._labels,
            "paths": self._paths,
            "distinct": self._distinct,
            "probes": self._probes,
            "failures": self._failures,
        }

    @classmethod
    def from_states(cls, states: Iterable[Mapping[str, Any]]) -> ViewAccumulator:
        """Merges what several processes have collected; of a video that came twice, the first is taken.

        Args:
            states: Results of `state`, in the order of the ranks.

        Raises:
            ValueError: If there is no state, or they are of different evaluations.
        """
        states = list(states)
        if not states:
            raise ValueError("no state to merge")
        first = states[0]
        for state in states:
            for name in ("protocol", "task", "temporal", "also", "average"):
                if state[name] != first[name]:
                    raise ValueError(f"states of different evaluations: {name} {state[name]!r} and {first[name]!r}")
        options = {name: first[name] for name in ("task", "temporal", "also", "average")}
        merged = cls(Protocol.from_dict(first["protocol"]), **options)
        for state in states:
            for index, logits in state["logits"].items():
                merged.add(
                    index,
                    logits,
                    state["labels"][index],
                    path=state["paths"][index],
                    distinct=state["distinct"][index],
                    probes=state["probes"][index],
                )
            for index, (path, reason, labels) in state["failures"].items():
                merged.add_failure(index, path, reason, labels=labels)
        return merged

    def result(self) -> EvaluationResult:
        """Computes the numbers.

        Raises:
            EvaluationError: If no video could be read (its `failures` list them all), if there was none, if the model
                gave a logit that is not a finite number, or if no counted video has a label (multi-label).
        """
        # A video that one rank could read and another (in its padding) could not has been read.
        failed = [self._failures[index] for index in sorted(self._failures.keys() - self._logits.keys())]
        failures = [(path, reason) for path, reason, _ in failed]
        if not self._logits:
            if not failures:
                raise EvaluationError("no video to evaluate")
            shown = "; ".join(f"{path}: {reason}" for path, reason in failures[:3])
            more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
            raise EvaluationError(f"none of the {len(failures)} videos could be read: {shown}{more}", failures)
        indices = sorted(self._logits)
        logits = np.stack([self._logits[index] for index in indices])
        labels = np.stack([self._labels[index] for index in indices])
        paths = [self._paths[index] for index in indices]
        probes = {name: np.stack([self._probes[index][name] for index in indices]) for name in self._probes[indices[0]]}
        finite = np.isfinite(logits).all(axis=(1, 2))
        for other in probes.values():
            finite &= np.isfinite(other).all(axis=(1, 2))
        broken = np.flatnonzero(~finite)
        if len(broken):
            name = paths[broken[0]] or f"video {indices[broken[0]]}"
            raise EvaluationError(
                f"the model gives logits that are not finite numbers for {len(broken)} of {len(logits)} videos, first "
                f"{name}; its weights are broken or the precision is too low",
                failures,
            )
        if self.task == "multilabel" and not labels.any():
            raise EvaluationError("no readable video has a label, so there is no average precision", failures)

        numbers: dict[str, float] = {}
        for name, rows in self.layout.rows.items():
            scores = M.video_scores(logits[:, rows], self.task, self.average)
            numbers |= {f"{key}@{name}": value for key, value in compute_metrics(scores, labels, self.task).items()}
            for end, values in zip(("low", "high"), self._bounds(scores, labels, failed), strict=True):
                numbers |= {f"{key}@{name}_{end}": value for key, value in values.items()}
        main, extra = np.split(logits, [self.plan.num_views], axis=1)
        scores = M.video_scores(main, self.task, self.average)
        class_names = name_classes(self.protocol.class_names, scores.shape[1])
        return EvaluationResult(
            protocol=self.protocol,
            metrics=numbers,
            class_names=class_names,
            logits=main,
            labels=labels,
            indices=np.array(indices, dtype=np.int64),
            paths=paths,
            failures=failures,
            per_class=M.per_class(scores, labels, class_names, self.task),
            confusion=None if self.task == "multilabel" else M.confusion_matrix(scores, labels),
            task=self.task,
            temporal=self.temporal,
            command=typed_command(sys.argv),
            versions=library_versions(),
            also=self.also,
            extra_logits=extra if extra.shape[1] else None,
            average=self.average,
            distinct=np.array([self._distinct[index] for index in indices], dtype=np.int64),
            probe_logits=probes,
        )

    def _bounds(
        self,
        scores: NDArray[np.float64],
        labels: NDArray[np.int64],
        failed: list[tuple[str, str, NDArray[np.int64] | None]],
    ) -> tuple[dict[str, float], dict[str, float]]:
        if not failed:
            return {}, {}
        known = [self._check_labels(extra, scores.shape[1], path) for path, _, extra in failed if extra is not None]
        if len(known) == len(failed):
            return M.bounds(scores, labels, failed_labels=np.stack(known), task=self.task)
        if self.task == "multilabel":
            return {}, {}  # average precision cannot be bounded without knowing what the videos hold
        # Without labels only top-k can be bounded: it counts videos, whatever their class.
        total = len(scores) + len(failed)
        low, high = {}, {}
        for name, value in M.classification_metrics(scores, labels).items():
            if name.startswith("top"):
                low[name] = value * len(scores) / total
                high[name] = (value * len(scores) + len(failed)) / total
        return low, high


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> Any:
    """Returns the value if it is allowed.

    Raises:
        ConfigError: If it is not.
    """
    if value not in allowed:
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
    return value


def _label_array(labels: Any) -> NDArray[np.int64]:
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    values = np.asarray(labels)
    if not np.array_equal(values, values.astype(np.int64)):
        raise ManifestError(f"labels are whole numbers, not {labels!r}")
    return values.astype(np.int64)


def typed_command(arguments: Sequence[str]) -> str:
    """Returns the command of a process as one would type it: without the folder that the program lies in."""
    program = Path(arguments[0])
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", program.parent.name, *arguments[1:]])
    return shlex.join([program.name, *arguments[1:]])


def library_versions() -> dict[str, str]:
    """Returns the versions of what the numbers depend on."""
    # From the packages' metadata: importing a decoder in this process is what stvid avoids.
    packages = ("torch", "torchvision", "av")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"stvid": __version__, **found, "python": platform.python_version()}
