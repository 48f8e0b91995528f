"""The result of an evaluation, for people, for programs, and as files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from stvid.console import printable
from stvid.data.layout import view_layout
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError, StvidError
from stvid.evaluation import metrics as M
from stvid.evaluation.metrics import Average, Calibration
from stvid.files import load_arrays, save_arrays, write_together
from stvid.notebook import render_html
from stvid.protocol import Protocol, Task

__all__ = ["EvaluationResult", "Temporal", "compute_metrics"]

Temporal = Literal["normal", "frozen", "shuffled", "reversed"]
_RESULT, _LOGITS = "result.json", "logits.npz"
_PROBE = "logits_"  # before the order of frames, in logits.npz


def compute_metrics(scores: NDArray[np.float64], labels: NDArray[np.int64], task: Task) -> dict[str, float]:
    """Returns the metrics of scores (N, K) and labels as fractions, by their short names."""
    return (M.multilabel_metrics if task == "multilabel" else M.classification_metrics)(scores, labels)


@dataclass
class EvaluationResult:
    """The result of an evaluation of N readable videos, with V views each and K classes.

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
        temporal: Change that was made to the order of the frames.
        command: The command line of the process.
        versions: Package name to version.
        also: Further views that were measured in the same pass, as in ``1x1``.
        extra_logits: float32 (N, E, K), the views that only `also` needs, in the order of
            `stvid.data.layout.view_layout`.
        average: Whether the scores average the ``probabilities`` or the ``logits`` of the views.
        distinct: int64 (N,) how many of the V views are different: clips of a short video and crops of a square one
            may be equal.
        probe_logits: The logits (N, V, K) with the frames of each clip ``reversed``, ``shuffled`` or ``frozen``, as
            far as that was measured in the same pass.
        cost: Cost of the evaluation, as far as it is known: ``params`` (parameters), ``gflops`` (multiply-adds of one
            view in 1e9), ``seconds``.
        arithmetic: Precision and device of the model, such as ``32-true on cpu``; for a model of `stvid.optimize` its
            notes. Empty if unknown.
        evaluation: Digest of what was measured: videos, labels, protocol, views, order of frames. Two results with
            the same one differ in the model only. Empty if unknown.
        published: The published numbers of the weights and how the measured ones differ, see
            `stvid.evaluation.published.compare_with_published`; None if there are none.
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
    arithmetic: tuple[str, ...] = ()
    evaluation: str = ""
    published: dict[str, Any] | None = None
    progress_file: Path | None = field(default=None, compare=False)
    _scores: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def views(self) -> str:
        """Temporal clips x spatial crops, as in ``4x3``."""
        return self.protocol.views

    @property
    def counted(self) -> int:
        """Number of videos that the metrics count."""
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
        """Comparison of the confidence of the top-1 predictions with their accuracy; None if multi-label."""
        return None if self.task == "multilabel" else M.calibration(self.scores, self.labels)

    @property
    def probe(self) -> dict[str, dict[str, Any]]:
        """The ``metrics`` and ``per_class`` records of the protocol's views, for each changed order of frames."""
        found: dict[str, dict[str, Any]] = {}
        for temporal, logits in self.probe_logits.items():
            scores = M.video_scores(logits, self.task, self.average)
            numbers = compute_metrics(scores, self.labels, self.task)
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

    def published_lines(self) -> list[str]:
        """Returns a line for each published number, with the measured one, or with why they are not compared."""
        record = self.published
        if record is None:
            return []
        where = record["source"].partition("@")[0] or record["weights"]
        views = f"@{record['views']}" if record["views"] else ""
        names = [f"{name}{views} {record[name]:.1f}%" for name in ("top1", "top5") if name in record]
        if record["differs"]:
            return [f"published  {', '.join(names)} ({where}), not compared: {'; '.join(record['differs'])}"]
        return [
            f"published  {name}{views} {record[name]:.1f}% ({where}): measured {value:.1f}%, "
            f"{record['difference'][name]:+.1f}"
            for name, value in record["measured"].items()
        ]

    def summary(self) -> str:
        """Returns a few lines for people: the metrics in percent, the number of videos, and each unreadable video."""
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
        lines += self.published_lines()
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
        if self.arithmetic and not self.arithmetic[0].startswith("32-true"):
            lines.append(f"computed in {'; '.join(self.arithmetic)}")
        if self.distinct is not None and (self.distinct < self.logits.shape[1]).any():
            few = int((self.distinct < self.logits.shape[1]).sum())
            share = self.distinct.mean() / self.logits.shape[1]
            lines.append(
                f"{few} short or square videos have equal views: {100 * share:.1f}% of all views are different"
            )
        if self.task == "multiclass":
            classes = len(self.class_names)
            fifth = f", top5 {500 / classes:.2f}%" if classes > 5 else ""
            lines.append(f"guessing: top1 {100 / classes:.2f}%{fifth}")
        empty = sum(record["support"] == 0 for record in self.per_class)
        if empty:
            lines.append(f"{empty} of {len(self.class_names)} classes have no video and are left out of class means")
        if self.failures:
            lines.append(f"{len(self.failures)} videos could not be read:")
            # A file name need not be valid text, but what is printed must be.
            lines += [
                printable(f"  {os.fsencode(path).decode(errors='replace')}: {reason}") for path, reason in self.failures
            ]
        return "\n".join(lines)

    def _table(self) -> list[dict[str, str]]:
        """Returns the rows of the table in a notebook: the metrics, then those with the frames in another order."""
        intervals, rows = self.intervals, []
        measured = [(name, value, "") for name, value in self.metrics.items() if not name.endswith(("_low", "_high"))]
        for temporal, record in self.probe.items():
            measured += [(name, value, f", frames {temporal}") for name, value in record["metrics"].items()]
        for name, value, order in measured:
            short, _, views = name.partition("@")
            bounds = (
                [] if order else [self.metrics[key] for key in (f"{name}_low", f"{name}_high") if key in self.metrics]
            )
            interval = intervals.get(name, ()) if not order else ()
            rows.append(
                {
                    "name": f"{short.replace('_', ' ')}, {views} views{order}",
                    "value": f"{100 * value:.2f}%",
                    "interval": " to ".join(f"{100 * end:.2f}" for end in interval) + "%" * bool(interval),
                    "bounds": " to ".join(f"{100 * end:.2f}" for end in bounds) + "%" * bool(bounds),
                }
            )
        return rows

    def _repr_html_(self) -> str:
        """Returns a table of the metrics, with the protocol and the number of videos, for Jupyter."""
        rows = self._table()
        return render_html(
            "result.html.j2",
            rows=rows,
            sure=any(row["interval"] for row in rows),
            bounded=any(row["bounds"] for row in rows),
            videos=self.counted,
            classes=len(self.class_names),
            failures=len(self.failures),
            protocol=self.protocol.describe(),
            temporal=self.temporal,
        )

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
            "arithmetic": list(self.arithmetic),
            "classes": list(self.class_names),
            "per_class": self.per_class,
            "evaluation": self.evaluation,
            "published": self.published,
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
            write_together(
                {
                    target / _LOGITS: lambda path: save_arrays(path, arrays),
                    target / _RESULT: lambda path: path.write_bytes(text.encode() + b"\n"),
                }
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
        if not (target / _RESULT).is_file():
            raise StvidError(f"{folder}: neither a {_RESULT} nor a folder that holds one; stvid test writes them")
        try:
            record = json.loads((target / _RESULT).read_text(encoding="utf-8"))
            _check_letters(record)
            arrays = load_arrays(target / _LOGITS)
            if str(arrays["run"]) != record["run"]:
                raise StvidError(f"{target}: {_RESULT} and {_LOGITS} are of different runs; evaluate again")
            joined = arrays["paths"].tobytes()
            result = cls(
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
                also=tuple(record["also"]),
                extra_logits=arrays.get("extra_logits"),
                average=record["average"],
                distinct=arrays.get("distinct"),
                probe_logits={name[len(_PROBE) :]: value for name, value in arrays.items() if name.startswith(_PROBE)},
                cost=record["cost"],
                arithmetic=tuple(record["arithmetic"]),
                evaluation=record["evaluation"],
                published=record.get("published"),  # younger than the file may be
            )
            _check(result)
            return result
        except OSError as error:
            name = error.filename or target
            raise StvidError(f"{name}: cannot read the saved evaluation ({error.strerror or error})") from error
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, StvidError) and str(target) in str(error):
                raise
            reason = " ".join(str(error).split())[:160]
            raise StvidError(
                f"{target}: not an evaluation saved by stvid, or damaged ({reason}); run stvid test again"
            ) from error


# The types of what result.json holds.
_PLAIN: dict[str, Any] = {
    "metrics": dict[str, float],
    "class_names": tuple[str, ...],
    "paths": list[str],
    "failures": list[tuple[str, str]],
    "per_class": list[dict[str, Any]],
    "command": str,
    "versions": dict[str, str],
    "also": tuple[str, ...],
    "cost": dict[str, float],
    "arithmetic": tuple[str, ...],
    "evaluation": str,
}


def _is(value: Any, kind: Any) -> bool:
    """Whether a value, with all that is in it, is of a type such as ``dict[str, float]``."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer is Any:
        return True
    if outer is float:
        return value is None or (type(value) in (int, float) and math.isfinite(value))
    if type(value) is not outer:
        return False
    if outer is dict:
        return all(_is(key, inner[0]) and _is(item, inner[1]) for key, item in value.items())
    if outer is tuple and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(_is, value, inner))
    return all(_is(item, inner[0]) for item in value) if inner else True


_PUBLISHED: dict[str, Any] = {
    "weights": str,
    "source": str,
    "views": str,
    "differs": list[str],
    "measured": dict[str, float],
    "difference": dict[str, float],
}


def _has(record: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return isinstance(record, dict) and all(_is(record.get(name), kind) for name, kind in fields.items())


def _check_letters(record: Any) -> None:
    """Raises ValueError for a record with half of a letter: JSON can name one, but no file and no terminal holds it."""
    try:
        json.dumps(record, ensure_ascii=False).encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a letter") from error


def _check_numbers(result: EvaluationResult) -> None:
    """Raises ValueError unless every class with videos has its numbers, and every protocol the same metrics."""
    measures = ("ap",) if result.task == "multilabel" else ("recall", "precision")
    main = measures[0]
    for record in result.per_class:
        if not _has(record, dict.fromkeys(measures, float)) or not {*measures} <= {*record}:
            raise ValueError(f"per_class does not hold {', '.join(measures)}")
        if (record[main] is None) != (record["support"] == 0) or record["support"] < 0:
            raise ValueError(f"per_class has {record['support']} videos and {main} {record[main]} of one class")
    names: dict[str, set[str]] = {}
    for key, value in result.metrics.items():
        name, _, views = key.partition("@")
        names.setdefault(views.partition("_")[0], set()).add(name + views.partition("_")[2])
        if value is None:
            raise ValueError(f"{key} is no number")
    if {*names} != {result.views, *result.also} or len({frozenset(of) for of in names.values()}) > 1:
        raise ValueError("metrics are not those of its views")
    main_names = names[result.views]
    if ("mAP" if result.task == "multilabel" else "top1") not in main_names:
        raise ValueError("metrics lack the one that counts")
    if any((name + "low" in main_names) != (name + "high" in main_names) for name in main_names):
        raise ValueError("metrics have one bound and not the other")


def _check(result: EvaluationResult) -> None:
    """Raises ValueError unless what was read has the types and shapes that `EvaluationResult` promises."""
    for name, kind in _PLAIN.items():
        if not _is(getattr(result, name), kind):
            raise ValueError(f"{name} holds other values than it should")
    for name, words in (("task", Task), ("temporal", Temporal), ("average", Average)):
        if getattr(result, name) not in get_args(words):
            raise ValueError(f"{name} is {getattr(result, name)!r}")
    if result.published is not None and not _has(result.published, _PUBLISHED):
        raise ValueError("published holds other values than it should")
    if not all(_has(record, {"class": str, "support": int}) for record in result.per_class):
        raise ValueError("per_class holds other values than it should")
    _check_numbers(result)
    videos, classes = len(result.logits), len(result.class_names)
    layout = view_layout([result.views, *result.also], result.protocol.sampling)
    views = ViewPlan.parse(result.views).num_views
    multilabel = result.task == "multilabel"
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "logits": ("float32", (videos, views, classes)),
        "labels": ("int64", (videos, classes) if multilabel else (videos,)),
        "indices": ("int64", (videos,)),
        "confusion": ("int64", (classes, classes)),
        "extra_logits": ("float32", (videos, len(layout.views) - views, classes)),
        "distinct": ("int64", (videos,)),
    }
    named = {name: getattr(result, name) for name in shapes}
    for name, (dtype, shape) in shapes.items():
        value = named[name]
        if value is not None and (value.dtype != dtype or value.shape != shape):
            raise ValueError(f"{name} is {value.dtype} of shape {value.shape}, not {dtype} of shape {shape}")
    for name, value in result.probe_logits.items():
        if name not in get_args(Temporal) or value.dtype != np.float32 or value.shape != result.logits.shape:
            raise ValueError(f"{_PROBE}{name} is {value.dtype} of shape {value.shape}")
    if videos and (result.labels.min() < 0 or result.labels.max() >= (2 if multilabel else classes)):
        raise ValueError("labels name classes that there are not")
    if len(result.paths) != videos or len(result.per_class) != classes:
        raise ValueError("its parts are of different numbers of videos or classes")
