"""From per-view logits to numbers, and to files.

`ViewAccumulator` collects the logits of every view and `EvaluationResult` holds what they amount to. Validation during
training and `evaluate` both use them, so that they agree exactly at the same protocol.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stvid.data.layout import view_layout
from stvid.errors import ConfigError, ManifestError, StvidError
from stvid.evaluation import metrics as M
from stvid.evaluation.metrics import Average, Calibration, Task
from stvid.evaluation.views import ViewPlan
from stvid.protocol import Protocol
from stvid.version import __version__

__all__ = ["EvaluationError", "EvaluationResult", "Temporal", "ViewAccumulator", "check_choice"]

Temporal = Literal["normal", "frozen", "shuffled", "reversed"]
_RESULT, _LOGITS = "result.json", "logits.npz"
_PROBE = "logits_"  # before the order of frames, in logits.npz


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


@dataclass
class EvaluationResult:
    """What an evaluation found: N videos counted, V views each, K classes.

    Attributes:
        protocol: The protocol that was used; its `views` are those of this evaluation.
        metrics: Fractions in 0..1 such as ``top1@4x3``, ``top5@4x3``, ``mean_class@4x3``, or ``mAP@4x3``, first of the
            protocol's views, then of those in `also`. If videos could not be read, these count the others only, and
            each has a ``_low`` and ``_high`` twin that counts the unreadable ones wrong and right.
        class_names: The K names.
        logits: float32 (N, V, K), views clip by clip (`ViewPlan.names`).
        labels: int64 (N,) class numbers, or (N, K) 0/1 if multi-label.
        indices: int64 (N,) row of each video in the manifest, increasing.
        paths: The N files.
        failures: (path, reason) of each video that could not be read.
        per_class: One record a class: support, recall and precision, or average precision (see `metrics.per_class`).
        confusion: int64 (K, K) counts, row the true class; None if multi-label.
        task: ``multiclass`` or ``multilabel``.
        temporal: What was done to the order of the frames.
        command: The command line of the process.
        versions: Package name to version.
        also: Further views that were measured in the same pass, as in ``1x1``.
        extra_logits: float32 (N, E, K), the views that only `also` needs, in the order of
            `stvid.data.layout.view_layout`.
        average: What the scores average over the views, ``probabilities`` or ``logits``.
        distinct: int64 (N,) how many of the V views are different: clips of a short video and crops of a square one
            may be equal.
        probe_logits: The logits (N, V, K) with the frames of each clip ``reversed``, ``shuffled`` or ``frozen``, as
            far as that was measured in the same pass.
        cost: What it took: ``params`` (parameters), ``gflops`` (multiply-adds of one view in 1e9), ``seconds``; as far
            as known.
        evaluation: Digest of what was measured: videos, labels, protocol, views, order of frames. Two results with
            the same one differ in the model only. Empty if unknown.
        progress_file: The logits of finished videos that an interrupted evaluation would have left; `save` deletes it.
    """

    protocol: Protocol
    metrics: dict[str, float]
    class_names: tuple[str, ...]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    paths: list[str]
    failures: list[tuple[str, str]]
    per_class: list[dict[str, Any]]
    confusion: NDArray[np.int64] | None
    task: Task = "multiclass"
    temporal: Temporal = "normal"
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    extra_logits: NDArray[np.float32] | None = None
    average: Average = "probabilities"
    distinct: NDArray[np.int64] | None = None
    probe_logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    evaluation: str = ""
    progress_file: Path | None = field(default=None, compare=False)
    _scores: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def views(self) -> str:
        """Temporal clips x spatial crops, as in ``4x3``."""
        return self.protocol.views

    @property
    def counted(self) -> int:
        """How many videos the metrics are about."""
        return len(self.logits)

    @property
    def scores(self) -> NDArray[np.float64]:
        """(N, K) probabilities, averaged over the views."""
        return self.protocol_scores(self.views)

    def protocol_logits(self, views: str | ViewPlan) -> NDArray[np.float32]:
        """Returns the per-view logits (N, V', K) of one of the protocols that were measured, clip by clip.

        Raises:
            ConfigError: If these views were not measured.
        """
        name = str(ViewPlan.parse(views))
        if name not in (self.views, *self.also):
            raise ConfigError(f"views {name}: not measured here, but {', '.join((self.views, *self.also))}")
        rows = view_layout([self.views, *self.also], self.protocol.sampling).rows[name]
        if name == self.views:
            return self.logits
        count = self.logits.shape[1]
        extra = np.empty(0) if self.extra_logits is None else self.extra_logits
        return np.stack([self.logits[:, row] if row < count else extra[:, row - count] for row in rows], axis=1)

    def protocol_scores(self, views: str | ViewPlan) -> NDArray[np.float64]:
        """Returns the scores (N, K) of one of the protocols that were measured; see `protocol_logits`."""
        name = str(ViewPlan.parse(views))
        if name not in self._scores:  # kept: with the views of Kinetics this takes seconds
            self._scores[name] = M.video_scores(self.protocol_logits(name), self.task, self.average)
        return self._scores[name]

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% bootstrap intervals over the videos of the accuracies; empty if multi-label."""
        if self.task == "multilabel":
            return {}
        found = {}
        for views in (self.views, *self.also):
            ranks = M.label_ranks(self.protocol_scores(views), self.labels)
            for k in M.TOP_K:
                if f"top{k}@{views}" in self.metrics:
                    found[f"top{k}@{views}"] = M.bootstrap_interval(ranks < k)
        return found

    @property
    def calibration(self) -> Calibration | None:
        """How far the confidence of the top-1 predictions can be trusted; None if multi-label."""
        return None if self.task == "multilabel" else M.calibration(self.scores, self.labels)

    @property
    def probe(self) -> dict[str, dict[str, Any]]:
        """For each changed order of frames the ``metrics``, and ``per_class`` records, of the protocol's views."""
        found: dict[str, dict[str, Any]] = {}
        for temporal, logits in self.probe_logits.items():
            scores = M.video_scores(logits, self.task, self.average)
            numbers = _compute(scores, self.labels, self.task)
            found[temporal] = {
                "metrics": {f"{name}@{self.views}": value for name, value in numbers.items()},
                "per_class": M.per_class(scores, self.labels, self.class_names, self.task),
            }
        return found

    def metric(self, name: str) -> float:
        """Returns a metric by its short name: ``metric("top1")`` is ``metrics["top1@4x3"]``.

        Raises:
            KeyError: If there is no such metric.
        """
        return self.metrics[f"{name}@{self.views}"]

    def summary(self) -> str:
        """Returns a few lines for people: the metrics in percent, what was counted, and each unreadable video."""
        lines = []
        intervals = self.intervals
        for views in (self.views, *self.also):
            parts = []
            for name, value in self.metrics.items():
                if not name.endswith(f"@{views}"):
                    continue
                text = f"{name} {100 * value:.2f}%"
                if f"{name}_low" in self.metrics:
                    low, high = self.metrics[f"{name}_low"], self.metrics[f"{name}_high"]
                    text += f" (with the unreadable ones {100 * low:.2f} to {100 * high:.2f}%)"
                elif views == self.views and name.startswith("top1@"):
                    text += " (95% interval {:.2f} to {:.2f}%)".format(*(100 * end for end in intervals[name]))
                parts.append(text)
            lines.append(", ".join(parts))
        for temporal, record in self.probe.items():
            drops = [
                f"{name} {100 * value:.2f}% ({100 * (value - self.metrics[name]):+.2f})"
                for name, value in record["metrics"].items()
            ]
            lines.append(f"frames {temporal}: {', '.join(drops)}")
        lines.append(f"{self.counted} videos counted; {self.protocol.describe()}")
        if self.temporal != "normal":
            lines[-1] += f"; frames {self.temporal}"
        if self.average != "probabilities":
            lines[-1] += f"; averages {self.average}"
        if self.distinct is not None and (self.distinct < self.logits.shape[1]).any():
            few = int((self.distinct < self.logits.shape[1]).sum())
            share = self.distinct.mean() / self.logits.shape[1]
            lines.append(
                f"{few} short or square videos have equal views: {100 * share:.1f}% of all views are different"
            )
        empty = sum(record["support"] == 0 for record in self.per_class)
        if empty:
            lines.append(f"{empty} of {len(self.class_names)} classes have no video and are left out of class means")
        if self.failures:
            lines.append(f"{len(self.failures)} videos could not be read:")
            # A file name need not be valid text, but what is printed must be.
            lines += [f"  {os.fsencode(path).decode(errors='replace')}: {reason}" for path, reason in self.failures]
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``result.json`` and ``logits.npz``; each appears whole or not at all.

        Args:
            folder: Made if it does not exist. Earlier files of these names are replaced.

        Returns:
            The path of ``result.json``.

        Raises:
            StvidError: If the folder cannot be written to or the disk is full; earlier files are left as they were.
        """
        target = Path(folder)
        run = uuid.uuid4().hex  # in both files, so that load() sees if they do not belong together
        record = {
            "metrics": self.metrics,
            "protocol": self.protocol.to_dict(),
            "videos": {
                "counted": self.counted,
                "failed": [{"path": path, "reason": reason} for path, reason in self.failures],
            },
            "task": self.task,
            "temporal": self.temporal,
            "average": self.average,
            "also": list(self.also),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "calibration": None if self.calibration is None else dataclasses.asdict(self.calibration),
            "probe": self.probe,
            "cost": self.cost,
            "classes": list(self.class_names),
            "per_class": self.per_class,
            "evaluation": self.evaluation,
            "command": self.command,
            "versions": self.versions,
            "run": run,
        }
        text = json.dumps(record, indent=2, allow_nan=False)
        arrays: dict[str, NDArray[Any]] = {
            "run": np.array(run),
            "logits": self.logits,
            "labels": self.labels,
            "indices": self.indices,
            # Bytes as the file system has them: a path need not be valid text.
            "paths": np.frombuffer(b"\0".join(os.fsencode(path) for path in self.paths), dtype=np.uint8),
        }
        optional = {"confusion": self.confusion, "extra_logits": self.extra_logits, "distinct": self.distinct}
        arrays |= {name: value for name, value in optional.items() if value is not None}
        arrays |= {f"{_PROBE}{name}": value for name, value in self.probe_logits.items()}
        try:
            target.mkdir(parents=True, exist_ok=True)
            _replace_files(
                target,
                {
                    _LOGITS: lambda stream: np.savez(stream, **arrays),  # type: ignore[arg-type]  # allow_pickle: bool
                    _RESULT: lambda stream: stream.write(text.encode() + b"\n"),
                },
            )
        except OSError as error:
            raise StvidError(
                f"{target}: cannot save the evaluation ({error.strerror or error}); choose another folder or free space"
            ) from error
        if self.progress_file is not None:
            self.progress_file.unlink(missing_ok=True)
        return target / _RESULT

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> EvaluationResult:
        """Reads what `save` wrote.

        Args:
            folder: The folder, or its ``result.json``.

        Raises:
            StvidError: If a file is missing, damaged, or the two are of different runs.
        """
        target = Path(folder)
        target = target.parent if target.name == _RESULT else target
        try:
            record = json.loads((target / _RESULT).read_text(encoding="utf-8"))
            with open(target / _LOGITS, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if str(arrays["run"]) != record["run"]:
                raise StvidError(f"{target}: {_RESULT} and {_LOGITS} are of different runs; evaluate again")
            joined = arrays["paths"].tobytes()
            return cls(
                protocol=Protocol.from_dict(record["protocol"]),
                metrics=record["metrics"],
                class_names=tuple(record["classes"]),
                logits=arrays["logits"],
                labels=arrays["labels"],
                indices=arrays["indices"],
                paths=[os.fsdecode(path) for path in joined.split(b"\0")] if len(arrays["logits"]) else [],
                failures=[(failed["path"], failed["reason"]) for failed in record["videos"]["failed"]],
                per_class=record["per_class"],
                confusion=arrays.get("confusion"),
                task=record["task"],
                temporal=record["temporal"],
                command=record["command"],
                versions=record["versions"],
                also=tuple(record.get("also", ())),  # results of stvid 0.1 lack what follows
                extra_logits=arrays.get("extra_logits"),
                average=record.get("average", "probabilities"),
                distinct=arrays.get("distinct"),
                probe_logits={name[len(_PROBE) :]: value for name, value in arrays.items() if name.startswith(_PROBE)},
                cost=record.get("cost", {}),
                evaluation=record.get("evaluation", ""),
            )
        except OSError as error:
            name = error.filename or target
            raise StvidError(f"{name}: cannot read the saved evaluation ({error.strerror or error})") from error
        except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, StvidError):
                raise
            raise StvidError(f"{target}: not an evaluation saved by stvid, or damaged ({error})") from error


def _replace_files(folder: Path, contents: Mapping[str, Callable[[IO[bytes]], Any]]) -> None:
    """Writes all files under temporary names, and only when all are on the disk gives them their own."""
    suffix = f".{uuid.uuid4().hex}.tmp"
    temporary = {name: folder / f".{name}{suffix}" for name in contents}
    try:
        for name, write in contents.items():
            with open(temporary[name], "xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


class ViewAccumulator:
    """Collects per-view logits of videos, on one process or several, and turns them into numbers.

    A video is known by its index: what comes again (the padding of a distributed sampler) is ignored. Logits are kept
    as float32, scores are computed in float64 in the order of the indices, so the numbers do not depend on the order
    of arrival or on how the videos were shared out.

    Args:
        protocol: Protocol of the evaluation; its class names name the logits ("class 0", ... if it has none).
        views: Temporal clips x spatial crops; None takes those of the protocol.
        task: ``multiclass`` or ``multilabel``.
        temporal: Written into the result.
        also: Further views whose logits are given; see `stvid.data.layout`.
        average: What the scores average over the views.

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
            index: Its row in the manifest.
            logits: (V, K), views clip by clip; then those of further protocols, in the order of the layout.
            labels: The class number; if multi-label, K zeros and ones.
            path: Its file, for the result.
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
        names = self.protocol.class_names
        if names and len(names) != values.shape[1]:
            raise ConfigError(f"the model gives {values.shape[1]} logits, but the protocol names {len(names)} classes")
        return values

    def add_failure(self, index: int, path: str, reason: str, *, labels: Any = None) -> None:
        """Adds a video that could not be read.

        Args:
            index: Its row in the manifest.
            path: Its file.
            reason: Why, in a few words.
            labels: As for `add`; None leaves the bounds of class means unknown.
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
        """Merges what several processes have collected; of a video that came twice, the first state's is taken.

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
            numbers |= {f"{key}@{name}": value for key, value in _compute(scores, labels, self.task).items()}
            for end, values in zip(("low", "high"), self._bounds(scores, labels, failed), strict=True):
                numbers |= {f"{key}@{name}_{end}": value for key, value in values.items()}
        main, extra = np.split(logits, [self.plan.num_views], axis=1)
        scores = M.video_scores(main, self.task, self.average)
        class_names = self.protocol.class_names or tuple(f"class {k}" for k in range(scores.shape[1]))
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
            command=shlex.join(sys.argv),
            versions=_versions(),
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


def _compute(scores: NDArray[np.float64], labels: NDArray[np.int64], task: Task) -> dict[str, float]:
    return (M.multilabel_metrics if task == "multilabel" else M.classification_metrics)(scores, labels)


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


def _versions() -> dict[str, str]:
    # From the packages' metadata: importing a decoder in this process is what stvid avoids.
    packages = ("torch", "torchvision", "av")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"stvid": __version__, **found, "python": platform.python_version()}
