"""``report.html``: an evaluation as one file to look at, without network, scripts or fonts of its own.

The numbers come from an `EvaluationResult`. The strips of frames come from reading the videos in question once more,
the same way as the evaluation read them. This module prepares plain data; the template
``report.html.j2`` makes the page.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from stvid.data.dataset import EvalDataset
from stvid.data.labels import are_numbers
from stvid.data.views import ViewPlan
from stvid.evaluation.evaluate import perturb_time
from stvid.evaluation.metrics import Calibration, video_scores
from stvid.evaluation.record import EvaluationResult
from stvid.files import write_atomically
from stvid.look.plots import reliability, scatter
from stvid.look.rendering import render

__all__ = ["Example", "find_examples", "report_html", "write_report"]

MAX_MATRIX_CLASSES = 30
"""A confusion matrix of more classes is shown as its largest entries only."""

_LISTED = 20  # rows of long tables; result.json has them all
_LISTED_FAILURES = 200
_BAR_CLASSES = 30


@dataclass(frozen=True)
class Example:
    """A video that the model got wrong.

    Attributes:
        kind: ``confident`` for a wrong class with a high score, ``hard`` for a label with a low one.
        number: The video's place in the result.
        view: The view in which the wrong class scores highest.
        strip: Frames that the model saw in this view, side by side, as JPEG; empty if they cannot be read any more.
    """

    kind: str
    number: int
    view: int
    strip: bytes


def _own_and_other(result: EvaluationResult) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Returns per video the lowest score of its labels, the highest score of any other class, and that other class."""
    scores = result.scores
    own = result.labels > 0 if result.task == "multilabel" else np.eye(scores.shape[1], dtype=bool)[result.labels]
    others = np.where(own, -1.0, scores)
    return np.where(own, scores, 2.0).min(axis=1), others.max(axis=1), others.argmax(axis=1)


def find_examples(
    result: EvaluationResult, dataset: EvalDataset, *, seed: int = 0, count: int = 6, frames: int = 8, size: int = 72
) -> list[Example]:
    """Finds the most confident errors and the hardest videos, and reads what the model saw of them.

    Args:
        result: The result of the evaluation.
        dataset: The videos, with the views of the result first.
        seed: The seed of the evaluation, which decides how shuffled frames are ordered.
        count: How many videos of each kind to show at most.
        frames: How many frames a strip has at most.
        size: Side of a frame in the strip, in pixels.
    """
    own, other, wrong_class = _own_and_other(result)
    wrong = np.flatnonzero(other > own)
    confident = wrong[np.argsort(-other[wrong], kind="stable")][:count]
    rest = wrong[~np.isin(wrong, confident)]
    hard = rest[np.argsort(own[rest], kind="stable")][:count]
    found = []
    for kind, numbers in (("confident", confident), ("hard", hard)):
        for number in numbers.tolist():
            per_view = video_scores(result.logits[number][:, None], result.task)
            view = int(per_view[:, wrong_class[number]].argmax())
            index = int(result.indices[number])
            sample = dataset[index]
            strip = b""
            if sample.clips is not None:
                clips = perturb_time(sample.clips[view : view + 1], result.temporal, seed=seed, index=index)
                strip = _strip(rearrange(clips[0], "c t h w -> t h w c").numpy(), frames=frames, size=size)
            found.append(Example(kind, number, view, strip))
    return found


def _strip(clip: NDArray[np.uint8], *, frames: int, size: int) -> bytes:
    """Joins evenly chosen frames of a clip (T, H, W, 3), scaled, to one JPEG."""
    chosen = np.unique(np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int))
    strip = Image.new("RGB", (len(chosen) * (size + 2) - 2, size), (128, 128, 128))
    for place, number in enumerate(chosen):
        picture = Image.fromarray(np.ascontiguousarray(clip[number])).resize((size, size), Image.Resampling.BILINEAR)
        strip.paste(picture, (place * (size + 2), 0))
    stream = io.BytesIO()
    strip.save(stream, format="JPEG", quality=70)
    return stream.getvalue()


def write_report(
    result: EvaluationResult, folder: str | os.PathLike[str], *, examples: Sequence[Example] = (), title: str = ""
) -> Path:
    """Writes ``report.html`` into a folder.

    Args:
        result: The evaluation to show.
        folder: Folder of the page, which is made if it is missing.
        examples: Errors to show, from `find_examples`.
        title: Name of the model or run.

    Raises:
        OSError: If it cannot be written; an earlier file is left as it was.
    """
    target = Path(folder) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    page = report_html(result, examples=examples, title=title)
    write_atomically(target, lambda file: file.write_text(page, encoding="utf-8"))
    return target


def report_html(result: EvaluationResult, *, examples: Sequence[Example] = (), title: str = "") -> str:
    """Returns the page; see `write_report`."""
    return render(
        "report.html.j2",
        title=title or "stvid evaluation",
        main_metric=f"{'mAP' if result.task == 'multilabel' else 'top1'}@{result.views}",
        measure="average precision" if result.task == "multilabel" else "recall",
        headline=_headline(result),
        protocols=_protocols(result),
        probe=_probe(result),
        classes=_classes(result),
        calibration=_calibration(result.calibration),
        cost=_cost(result),
        confusion=_confusion(result),
        errors=_errors(result, examples),
        failures=_failures(result),
    )


# --- the data of each section -----------------------------------------------------------------------------------------


def _main_metrics(result: EvaluationResult) -> list[str]:
    """Returns the metrics of the protocol's own views, as in ``top1@4x3``."""
    return [name for name in result.metrics if name.endswith(f"@{result.views}")]


def _class_measure(result: EvaluationResult) -> str:
    """Returns the key of the number that stands for a class in `EvaluationResult.per_class`."""
    return "ap" if result.task == "multilabel" else "recall"


def _headline(result: EvaluationResult) -> dict[str, Any]:
    intervals = result.intervals
    tiles = []
    for name in _main_metrics(result):
        ends = [result.metrics.get(f"{name}_{end}") for end in ("low", "high")]
        tiles.append(
            {
                "name": name,
                "value": result.metrics[name],
                "interval": intervals.get(name),
                "bounds": None if None in ends else ends,
            }
        )
    return {
        "tiles": tiles,
        "counted": result.counted,
        "failed": len(result.failures),
        "classes": len(result.class_names),
        "guessing": None if result.task == "multilabel" else 1 / len(result.class_names),
        "protocol": result.protocol.describe(),
        "temporal": result.temporal,
        "average": result.average,
        "published": result.published_lines(),
        "command": result.command,
        "versions": ", ".join(f"{package} {version}" for package, version in result.versions.items()),
    }


def _protocols(result: EvaluationResult) -> dict[str, Any]:
    metrics = [name.partition("@")[0] for name in _main_metrics(result)]
    gflops = result.cost.get("gflops")
    rows, points = [], []
    for views in sorted((result.views, *result.also), key=lambda item: (ViewPlan.parse(item).num_views, item)):
        number = ViewPlan.parse(views).num_views
        values = [result.metrics.get(f"{name}@{views}") for name in metrics]
        rows.append(
            {"views": views, "main": views == result.views, "values": values, "gflops": gflops, "number": number}
        )
        if values[0] is not None:
            points.append((number if gflops is None else gflops * number, values[0], views))
    cost = "views" if gflops is None else "GFLOPs × views"
    equal = 0 if result.distinct is None else int((result.distinct < result.logits.shape[1]).sum())
    return {
        "metrics": metrics,
        "rows": rows,
        "equal_views": equal,
        "plot": scatter(points, x_name=cost, y_name=metrics[0]) if len(points) > 1 else None,
    }


def _probe(result: EvaluationResult) -> dict[str, Any] | None:
    probe = result.probe
    if not probe:
        return None
    names, key = _main_metrics(result), _class_measure(result)
    normal = [result.metrics[name] for name in names]
    orders = [
        {
            "order": temporal,
            "values": list(zip([record["metrics"][name] for name in names], normal, strict=True)),
        }
        for temporal, record in probe.items()
    ]
    changes = []
    for number, record in enumerate(result.per_class):
        if record["support"]:
            others = [changed["per_class"][number][key] for changed in probe.values()]
            changes.append((max(record[key] - other for other in others), record, others))
    changes.sort(key=lambda change: -change[0])
    classes = [
        {"name": record["class"], "support": record["support"], "values": [record[key], *others]}
        for _, record, others in changes[:_LISTED]
    ]
    metrics = [name.partition("@")[0] for name in names]
    return {"views": result.views, "metrics": metrics, "normal": normal, "orders": orders, "classes": classes}


def _calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    return None if calibration is None else {"error": calibration.error, "plot": reliability(calibration)}


def _classes(result: EvaluationResult) -> dict[str, Any]:
    by_name = sorted(result.per_class, key=lambda record: record["class"])
    records = [
        {
            "name": record["class"],
            "support": record["support"],
            "value": record[_class_measure(result)],
            "precision": record.get("precision"),
        }
        for record in (result.per_class if are_numbers(result.class_names) else by_name)
    ]
    present = sorted((record for record in records if record["support"]), key=lambda record: record["value"])
    left_out = len(present) > _BAR_CLASSES
    half = _BAR_CLASSES // 2
    return {
        "all": records,
        "with_precision": result.task != "multilabel",
        "worst": present[:half] if left_out else present,
        "best": present[-half:] if left_out else [],
        "left_out": left_out,
        "present": len(present),
        "empty": len(records) - len(present),
    }


def _confusion(result: EvaluationResult) -> dict[str, Any] | None:
    matrix, names = result.confusion, result.class_names
    if matrix is None:
        return None
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small = len(names) <= MAX_MATRIX_CLASSES
    cells = np.argsort(-off, axis=None, kind="stable")[: 10 if small else _LISTED]
    pairs = [
        (names[true], names[predicted], int(off[true, predicted]), f"{100 * shares[true, predicted]:.1f}%")
        for true, predicted in (divmod(int(cell), len(names)) for cell in cells)
        if off[true, predicted]
    ]
    rows = [
        {
            "name": name,
            "cells": [
                {
                    "taken_for": other,
                    "hit": true == predicted,
                    "count": int(matrix[true, predicted]),
                    "share": float(shares[true, predicted]),
                }
                for predicted, other in enumerate(names)
            ],
        }
        for true, name in enumerate(names if small else ())
    ]
    return {"matrix": rows, "pairs": pairs, "classes": len(names)}


def _errors(result: EvaluationResult, examples: Sequence[Example]) -> list[dict[str, Any]]:
    own, other, wrong_class = _own_and_other(result)
    plan = ViewPlan.parse(result.views)

    def card(example: Example) -> dict[str, Any]:
        number = example.number
        labels = np.atleast_1d(result.labels[number])
        present = np.flatnonzero(labels) if result.task == "multilabel" else labels
        return {
            "picture": base64.b64encode(example.strip).decode(),
            "labels": ", ".join(result.class_names[k] for k in present),
            "own_score": own[number],
            "wrong_class": result.class_names[wrong_class[number]],
            "wrong_score": other[number],
            "view": plan.names[example.view],
            "path": result.paths[number],
        }

    groups = [
        {"heading": heading, "cards": [card(example) for example in examples if example.kind == kind]}
        for kind, heading in (("confident", "Most confident errors"), ("hard", "Hardest videos"))
    ]
    return [group for group in groups if group["cards"]]


def _cost(result: EvaluationResult) -> list[tuple[str, str]]:
    cost, rows = result.cost, []
    number = result.logits.shape[1]
    views = number * (1 + len(result.probe_logits))
    views += 0 if result.extra_logits is None else result.extra_logits.shape[1]
    if "params" in cost:
        rows.append(("parameters", f"{cost['params'] / 1e6:.2f} M"))
    if "gflops" in cost:
        rows.append(("multiply-adds of one view", f"{cost['gflops']:.4g} G"))
        rows.append((f"multiply-adds of one video ({result.views})", f"{cost['gflops'] * number:.4g} G"))
    rows.append(("views of each video in this pass", str(views)))
    if result.arithmetic:
        rows.append(("arithmetic", "; ".join(result.arithmetic)))
    if "seconds" in cost:
        count = max(result.counted + len(result.failures), 1)
        rows.append(("time, decoding included", f"{cost['seconds']:.1f} s ({cost['seconds'] / count:.3f} s a video)"))
    return rows


def _failures(result: EvaluationResult) -> dict[str, Any] | None:
    rows = result.failures[:_LISTED_FAILURES]
    return {"rows": rows, "more": len(result.failures) - len(rows)} if rows else None
