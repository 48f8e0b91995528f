"""Predictions as the files of the tools that people label with, for them to correct.

There are six targets. ``label-studio``: tasks with predictions, and the labelling configuration that they fit.
``fiftyone``: a data set on disk whose samples have a field ``predictions`` with confidence and logits. ``cvat``: a
folder with the XML of each video. ``via``: a project. ``csv`` and ``json``: a list of videos with the predicted class
as label, which is read as any list. The first two keep predictions apart from labels, and so do the readers of
`stvid.data.exchange`; in the others predictions are labels.

Facts: labelstud.io/guide/predictions and the types of label-studio-sdk.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stvid.data.exchange.cvat import check_cvat_folder, write_cvat
from stvid.data.exchange.fiftyone import check_folder
from stvid.data.exchange.label_studio_tasks import LabelStudioProject, labelling_config, served_from, tasks_of
from stvid.data.exchange.via import via_project
from stvid.data.video_folder import is_video
from stvid.errors import ConfigError, StvidError
from stvid.evaluation.fiftyone_samples import write_fiftyone_folder
from stvid.evaluation.predicted import ExchangeSettings, Predicted, as_labels, check_names
from stvid.files import csv_cell, write_table, write_texts

__all__ = [
    "FOLDERS",
    "TARGETS",
    "Target",
    "check_target",
    "label_studio_config",
    "label_studio_tasks",
    "list_rows",
    "to_text",
    "write_predictions",
]

Target = Literal["label-studio", "fiftyone", "cvat", "via", "csv", "json"]
TARGETS: tuple[Target, ...] = ("label-studio", "fiftyone", "cvat", "via", "csv", "json")
FOLDERS: tuple[Target, ...] = ("fiftyone", "cvat")
"""The targets that are folders."""


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


def _project(predicted: Sequence[Predicted], settings: ExchangeSettings) -> LabelStudioProject:
    return LabelStudioProject(
        settings.class_names,
        multilabel=settings.task == "multilabel",
        timed=any(video.over_time for video in predicted),
        root=settings.root,
        from_name=settings.from_name,
        to_name=settings.to_name,
    )


def label_studio_config(predicted: Sequence[Predicted], settings: ExchangeSettings) -> str:
    """Returns the labelling configuration that the tasks fit: XML for the settings of a project of Label Studio."""
    return labelling_config(_project(predicted, settings))


def label_studio_tasks(predicted: Sequence[Predicted], settings: ExchangeSettings) -> list[dict[str, Any]]:
    """Returns tasks with predictions, as Label Studio imports them.

    Raises:
        ConfigError: If a video is not below the root.
        StvidError: If the frame rate of a video cannot be read.
    """
    videos = as_labels(predicted, settings)
    return tasks_of(videos, _project(predicted, settings), model_version=settings.model_version)


# --- files ------------------------------------------------------------------------------------------------------------


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_text(predicted: Sequence[Predicted], target: Target, settings: ExchangeSettings) -> str:
    """Returns the content of the file of a target, for standard output.

    Raises:
        ConfigError: If the target is a folder, or a name cannot be written.
    """
    if target in FOLDERS:
        raise ConfigError(f"--to {target}: writes a folder: give its name with --out")
    check_names(predicted)
    if target == "via":
        return _json(_via(predicted, settings, None))
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
            served_from(path, settings.root)
    if target == "fiftyone" and out is not None:
        check_folder(Path(out))
    if target == "cvat" and out is not None:
        check_cvat_folder(Path(out))
    if target in ("cvat", "via"):
        wrong = next((path for path in paths if not is_video(path)), None)
        if wrong is not None:
            raise ConfigError(f"{wrong}: is no video file by its name, as --to {target} needs")


def write_predictions(
    predicted: Sequence[Predicted], target: Target, out: str | os.PathLike[str], settings: ExchangeSettings
) -> list[Path]:
    """Writes predictions for a tool, whole or not at all.

    Args:
        predicted: The predictions.
        target: One of `TARGETS`.
        out: The file; for `FOLDERS` the folder.
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
    elif target == "via":
        contents[place] = _json(_via(predicted, settings, folder))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if target == "fiftyone":
            write_fiftyone_folder(predicted, place, settings)
            return [place]
        if target == "cvat":
            write_cvat(as_labels(predicted, settings), place, settings.class_names)
            return [place]
        write_texts(contents)
    except StvidError:
        raise  # that of a missing video is an OSError, too
    except OSError as error:
        raise StvidError(f"{place}: cannot be written ({error.strerror or error})") from error
    return [*contents]


def _via(predicted: Sequence[Predicted], settings: ExchangeSettings, folder: str | None) -> dict[str, Any]:
    several = settings.task == "multilabel"
    return via_project(as_labels(predicted, settings), settings.class_names, folder=folder, multilabel=several)
