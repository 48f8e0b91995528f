"""Predictions as the files of the tools that people label with, for them to correct.

There are four targets. ``label-studio``: tasks with predictions, and the labelling configuration that they fit.
``fiftyone``: a data set on disk whose samples have a field ``predictions`` with confidence and logits. ``csv`` and
``json``: a list of videos with the predicted class as label, which is read as any list. The first two keep predictions
apart from labels, and so do the readers of `stvid.data.exchange`.

Facts: labelstud.io/guide/predictions and the types of label-studio-sdk.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from stvid.errors import ConfigError, StvidError
from stvid.evaluation.fiftyone_samples import check_folder, write_fiftyone_folder
from stvid.evaluation.predicted import ExchangeSettings, Predicted, check_names, frame_times
from stvid.files import csv_cell, write_table, write_together

__all__ = [
    "TARGETS",
    "Target",
    "check_target",
    "label_studio_config",
    "label_studio_tasks",
    "list_rows",
    "to_text",
    "write_predictions",
]

Target = Literal["label-studio", "fiftyone", "csv", "json"]
TARGETS: tuple[Target, ...] = ("label-studio", "fiftyone", "csv", "json")


# --- lists ------------------------------------------------------------------------------------------------------------


def list_rows(
    predicted: Sequence[Predicted], settings: ExchangeSettings, *, folder: str | None
) -> list[dict[str, Any]]:
    """Returns the rows of a list of videos: path, label, start and end of parts, confidence, and the likeliest classes.

    Args:
        predicted: The predictions.
        settings: Names of the classes and so on.
        folder: Folder of the list, to which paths below it are written relative; None leaves paths as they are.
    """
    rows = []
    names = settings.class_names
    for video in predicted:
        for part in video.parts:
            labels = [names[number] for number in part.labels]
            best = np.argsort(-part.scores, kind="stable")[: settings.topk].tolist()
            row: dict[str, Any] = {"path": _listed(video.path, folder)}
            row["label"] = labels if settings.task == "multilabel" else labels[0]
            if video.over_time:
                row |= {"start": round(part.start or 0.0, 6), "end": round(part.end or 0.0, 6)}
            row |= {"confidence": round(part.confidence, 6), "classes": [names[number] for number in best]}
            row["probabilities"] = [round(float(part.scores[number]), 6) for number in best]
            rows.append(row)
    return rows


def _listed(path: str, folder: str | None) -> str:
    """Returns a path as a list in a folder names it, beginning so that no spreadsheet takes it for a formula."""
    if "://" in path:
        return path
    if folder is not None:
        absolute, base = os.path.abspath(path), os.path.abspath(folder)
        path = os.path.relpath(absolute, base) if Path(absolute).is_relative_to(base) else absolute
    return path if csv_cell(path) == path else os.path.join(".", path)


def _csv_rows(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    header = [name for name in ("path", "label", "start", "end", "confidence") if not rows or name in rows[0]]
    cells = []
    for row in rows:
        labels = row["label"]
        if isinstance(labels, list):
            joined = next((label for label in labels if "|" in label), None)
            if joined is not None:
                raise ConfigError(f"class {joined!r} holds |, which joins labels in a CSV; take --to json")
            labels = "|".join(labels)
        cells.append([labels if name == "label" else row[name] for name in header])
    return header, cells


# --- Label Studio -----------------------------------------------------------------------------------------------------


def _control(predicted: Sequence[Predicted], settings: ExchangeSettings) -> tuple[str, bool]:
    over_time = any(video.over_time for video in predicted)
    return settings.from_name or ("timeline" if over_time else "choice"), over_time


def label_studio_config(predicted: Sequence[Predicted], settings: ExchangeSettings) -> str:
    """Returns the labelling configuration that the tasks fit: XML for the settings of a project of Label Studio."""
    name, over_time = _control(predicted, settings)
    video = quoteattr(settings.to_name)
    lines = ["<View>", f'  <Video name={video} value="$video" frameRate="$fps"/>']
    if over_time:
        lines.append(f"  <TimelineLabels name={quoteattr(name)} toName={video}>")
        lines += [f"    <Label value={quoteattr(label)}/>" for label in settings.class_names]
        lines.append("  </TimelineLabels>")
    else:
        choice = "multiple" if settings.task == "multilabel" else "single"
        lines.append(f'  <Choices name={quoteattr(name)} toName={video} choice="{choice}" showInline="true">')
        lines += [f"    <Choice value={quoteattr(label)}/>" for label in settings.class_names]
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>", ""])


def label_studio_tasks(predicted: Sequence[Predicted], settings: ExchangeSettings) -> list[dict[str, Any]]:
    """Returns tasks with predictions, as Label Studio imports them.

    Raises:
        ConfigError: If a video is not below the root.
        StvidError: If the frame rate of a video cannot be read.
    """
    name, _ = _control(predicted, settings)
    tasks = []
    for video in predicted:
        times, duration = frame_times(video.path)
        fps = len(times) / duration
        results = []
        for number, part in enumerate(video.parts):
            labels = [settings.class_names[label] for label in part.labels]
            if not labels:
                continue
            key = hashlib.sha256(f"{video.path} {number}".encode("utf-8", "surrogateescape")).hexdigest()[:10]
            result = {"id": key, "from_name": name, "to_name": settings.to_name, "score": round(part.confidence, 6)}
            if video.over_time:
                first = round((part.start or 0.0) * fps) + 1
                last = max(first, round((part.end or 0.0) * fps))
                value: dict[str, Any] = {"ranges": [{"start": first, "end": last}], "timelinelabels": labels}
                results.append({**result, "type": "timelinelabels", "value": value})
            else:
                results.append({**result, "type": "choices", "value": {"choices": labels}})
        score = float(np.mean([part.confidence for part in video.parts])) if video.parts else 0.0
        made = {"model_version": settings.model_version, "score": round(score, 6), "result": results}
        data = {"video": _served(video.path, settings.root), "fps": round(fps, 6)}
        tasks.append({"data": data, "predictions": [made]})
    return tasks


def _served(path: str, root: str) -> str:
    """Returns the address by which Label Studio serves a file from its document root."""
    if "://" in path:
        return path
    below = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if below.split(os.sep)[0] == os.pardir:
        raise ConfigError(f"{path}: is not below the root {root}, from which Label Studio would serve it; see --root")
    return f"/data/local-files/?d={quote(below)}"


# --- files ------------------------------------------------------------------------------------------------------------


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_text(predicted: Sequence[Predicted], target: Target, settings: ExchangeSettings) -> str:
    """Returns the content of the file of a target, for standard output.

    Raises:
        ConfigError: If the target is ``fiftyone``, which is a folder, or a name cannot be written.
    """
    if target == "fiftyone":
        raise ConfigError("--to fiftyone: writes a folder: give its name with --out")
    check_names(predicted)
    if target == "label-studio":
        return _json(label_studio_tasks(predicted, settings))
    rows = list_rows(predicted, settings, folder=None)
    if target == "json":
        return _json(rows)
    header, cells = _csv_rows(rows)
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(header)
    table.writerows([[cell if settings.formulas else csv_cell(cell) for cell in row] for row in cells])
    return stream.getvalue()


def check_target(
    paths: Sequence[str], target: Target, out: str | os.PathLike[str] | None, settings: ExchangeSettings
) -> None:
    """Checks what `write_predictions` needs, before anything is predicted.

    Args:
        paths: The videos.
        target: One of `TARGETS`.
        out: The file or folder; None is standard output.
        settings: Settings of the files.

    Raises:
        ConfigError: If a video is not below the root of Label Studio, or there is another folder in the place.
    """
    if target == "label-studio":
        if out is not None and Path(out).suffix == ".xml":
            raise ConfigError(f"{out}: is where the labelling configuration would go; give a name with .json")
        for path in paths:
            _served(path, settings.root)
    if target == "fiftyone" and out is not None:
        check_folder(Path(out))


def write_predictions(
    predicted: Sequence[Predicted], target: Target, out: str | os.PathLike[str], settings: ExchangeSettings
) -> list[Path]:
    """Writes predictions for a tool, whole or not at all.

    Args:
        predicted: The predictions.
        target: One of `TARGETS`.
        out: The file; for ``fiftyone`` the folder.
        settings: Names of the classes and so on.

    Returns:
        The files that were written; beside the tasks for Label Studio lies the labelling configuration, ``NAME.xml``.

    Raises:
        ConfigError: If a name cannot be written, or a video is not below the root.
        StvidError: If a file cannot be written, or a video cannot be read.
    """
    place = Path(out)
    check_target([video.path for video in predicted], target, place, settings)
    check_names(predicted)
    folder = os.path.dirname(place.absolute())
    contents: dict[Path, str] = {}
    if target == "csv":
        header, cells = _csv_rows(list_rows(predicted, settings, folder=folder))
        write_table(place, header, cells, errors="strict", formulas=settings.formulas)
        return [place]
    if target == "json":
        contents[place] = _json(list_rows(predicted, settings, folder=folder))
    elif target == "label-studio":
        contents[place] = _json(label_studio_tasks(predicted, settings))
        contents[place.with_suffix(".xml")] = label_studio_config(predicted, settings)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if target == "fiftyone":
            write_fiftyone_folder(predicted, place, settings)
            return [place]
        write_together({path: _writer(text) for path, text in contents.items()})
    except StvidError:
        raise  # that of a missing video is an OSError, too
    except OSError as error:
        raise StvidError(f"{place}: cannot be written ({error.strerror or error})") from error
    return [*contents]


def _writer(text: str) -> Callable[[Path], Any]:
    return lambda file: file.write_text(text, encoding="utf-8")
