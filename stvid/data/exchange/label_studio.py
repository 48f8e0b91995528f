"""Exports of Label Studio: JSON with all that it knows, and JSON-MIN.

A choice is a label of the whole video. ``TimelineLabels`` name parts of it by frames, from 1 on and both ends included.
Label Studio counts frames by the ``frameRate`` of the ``Video`` tag in the labelling configuration (24 if there is
none), whatever the video has, so that this number is needed: it is taken from the key of the task's data that the
configuration names, or from the configuration itself, if it lies beside the export as ``NAME.xml``, or it is given.

Facts from the documentation of the formats (labelstud.io/guide/export, labelstud.io/tags/timelinelabels and
labelstud.io/tags/video) and from the types of label-studio-sdk, with which the tests go back and forth.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from stvid.data.exchange.rows import Export, Item, chosen_field, label_of, list_of, number_of, table_of, text_of
from stvid.data.exchange.xml_files import parse_xml
from stvid.data.text_files import read_text
from stvid.data.video_folder import is_video
from stvid.errors import ManifestError

__all__ = ["is_label_studio", "read_label_studio"]

_RATE_KEYS = ("fps", "frame_rate", "framerate", "frameRate")
_VIDEO_KEYS = ("video", "video_url", "url")
# What JSON-MIN writes into a record beside the data of the task and the answers.
_OF_RECORD = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "_where")
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of a file that was uploaded


def is_label_studio(content: Any) -> bool:
    """Tells whether the value of a JSON file is an export, or a file of tasks, of Label Studio."""
    tasks = content if isinstance(content, list) else [content]
    first = next((task for task in tasks if isinstance(task, dict)), {})
    return isinstance(first.get("data"), dict) or any(key in first for key in ("annotation_id", "lead_time"))


@dataclass(frozen=True)
class _Answer:
    """An answer of one annotation: the question, labels, and the part in frames or seconds."""

    question: str
    labels: tuple[str, ...]
    frames: tuple[int, int] | None = None
    seconds: tuple[float, float] | None = None


def read_label_studio(content: Any, source: str, *, field: str | None = None, fps: float | None = None) -> Export:
    """Reads an export of Label Studio.

    Of several annotations of a task, one that is marked as ground truth counts, else the newest; those that were
    cancelled do not. Predictions are never taken for labels.

    Args:
        content: The value of the JSON.
        source: The file, for messages and for the labelling configuration beside it.
        field: Name of the ``Choices`` or ``TimelineLabels`` whose answers are the labels; needed if there are several.
        fps: Frames a second by which Label Studio counted; needed for ranges of frames if nothing else tells it.

    Raises:
        ManifestError: If it is none, or damaged; the message names the task.
    """
    export = Export()
    rate = fps or _configured_rate(source)
    tasks: list[tuple[str, dict[str, Any], list[_Answer] | None]] = []
    unlike = 0
    for where, data, found in _tasks(content, source, export):
        if found is None:
            tasks.append((where, data, None))
            continue
        given = [list(_answers(annotation, f"{source}, {where}", export)) for annotation in found]
        unlike += any({*answers} != {*given[0]} for answers in given[1:])
        tasks.append((where, data, given[0]))
    questions = (answer.question for _, _, answers in tasks for answer in answers or ())
    chosen = chosen_field(questions, field, source, "control")
    annotated = any(answers is not None for _, _, answers in tasks)
    for where, data, answers in tasks:
        if answers is None and annotated:
            export.left_out["tasks that nobody has annotated"] += 1
            continue
        export.items += _items(where, data, [a for a in answers or () if a.question == chosen], source, rate)
    if unlike:
        export.remarks.append(f"{unlike} tasks have annotations that differ; ground truth, or the newest, was taken")
    if not annotated and tasks:
        export.remarks.append("no task is annotated; predictions are not taken for labels")
    return export


# --- tasks ------------------------------------------------------------------------------------------------------------


def _tasks(
    content: Any, source: str, export: Export
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]] | None]]:
    """Yields place, data and usable annotations of each task, the best first; None if it has none."""
    tasks = [content] if isinstance(content, dict) else list_of(content, source)
    records: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    for number, value in enumerate(tasks, start=1):
        task = table_of(value, f"{source}, task {number}")
        known = task.get("id")
        where = f"task {number}" + (f" (id {known})" if isinstance(known, (int, str)) and str(known)[:40] else "")
        if "data" not in task:
            records.setdefault(known if isinstance(known, int) else f"task {number}", []).append((where, task))
            continue
        data = table_of(task["data"], f"{source}, {where}: its data")
        given = list_of(task.get("annotations", task.get("completions")) or [], f"{source}, {where}: annotations")
        found = [table_of(annotation, f"{source}, {where}: annotation") for annotation in given]
        usable = [one for one in found if not (one.get("was_cancelled") or one.get("skipped"))]
        if len(usable) < len(found):
            export.left_out["annotations that were cancelled"] += len(found) - len(usable)
        yield where, data, _best_first(usable) or None
    for same in records.values():  # JSON-MIN has a record for each annotation
        ranked = _best_first([{**record, "_where": where} for where, record in same])
        yield ranked[0]["_where"], _data_of(ranked[0]), ranked


def _best_first(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def key(annotation: dict[str, Any]) -> tuple[bool, str]:
        return bool(annotation.get("ground_truth")), str(annotation.get("updated_at") or annotation.get("created_at"))

    return sorted(found, key=key, reverse=True)


def _data_of(record: dict[str, Any]) -> dict[str, Any]:
    answers = {*_answer_keys(record)}
    return {key: value for key, value in record.items() if key not in answers}


def _answer_keys(record: dict[str, Any]) -> list[str]:
    """Returns the names of the answers in a record of JSON-MIN, which stand between ``id`` and ``annotator``."""
    keys = list(record)
    first = keys.index("id") + 1 if "id" in keys else 0
    last = next((number for number, key in enumerate(keys) if number >= first and key in _OF_RECORD), len(keys))
    return [key for key in keys[first:last] if not (first == 0 and _names_video(record[key]))]


# --- answers ----------------------------------------------------------------------------------------------------------


def _answers(annotation: dict[str, Any], where: str, export: Export) -> Iterator[_Answer]:
    if "_where" in annotation:  # a record of JSON-MIN
        for name in _answer_keys(annotation):
            value = annotation[name]
            for part in value if isinstance(value, list) else [value]:
                yield from _answer(name, {"choices": [part]} if isinstance(part, str) else part, where, export)
        return
    for result in list_of(annotation.get("result") or [], f"{where}: result"):
        entry = table_of(result, f"{where}: result")
        control = str(entry.get("from_name"))[:80]
        if "value" not in entry:  # a relation of two regions
            export.left_out[f"results of type {str(entry.get('type'))[:40]}"] += 1
            continue
        yield from _answer(control, entry["value"], where, export, kind=str(entry.get("type"))[:40])


def _answer(name: str, given: Any, where: str, export: Export, *, kind: str = "") -> Iterator[_Answer]:
    value = given if isinstance(given, dict) else {}
    if "timelinelabels" in value:
        labels = _labels(value["timelinelabels"], where)
        for part in list_of(value.get("ranges"), f"{where}: ranges"):
            frames = table_of(part, f"{where}: a range")
            first, last = (int(number_of(frames.get(end), f"{where}: {end} of a range")) for end in ("start", "end"))
            if last < first:
                raise ManifestError(f"{where}: a range ends at frame {last}, before frame {first}")
            yield _Answer(name, labels, (max(first, 1) - 1, max(last, 1) - 1))
    elif "choices" in value and not {"start", "end", "ranges"} & {*value}:
        yield _Answer(name, _labels(value["choices"], where))
    elif "labels" in value and {"start", "end"} <= {*value}:  # parts in seconds, as of sound
        start, end = (number_of(value[key], f"{where}: {key}") for key in ("start", "end"))
        yield _Answer(name, _labels(value["labels"], where), seconds=(start, end))
    else:
        export.left_out[f"results of type {kind or name}"] += 1


def _labels(value: Any, where: str) -> tuple[str, ...]:
    return tuple(label_of(label, f"{where}: a label") for label in list_of(value, f"{where}: its labels"))


# --- videos -----------------------------------------------------------------------------------------------------------


def _items(
    where: str, data: dict[str, Any], answers: list[_Answer], source: str, rate: float | str | None
) -> Iterator[Item]:
    video, *also = _video_of(data, f"{source}, {where}")
    if not answers:
        yield Item(video, (), where, also=tuple(also))
    for answer in answers:
        fps = None
        if answer.frames is not None:
            fps = _rate_of(data, rate, f"{source}, {where}")
        start, end = answer.seconds or (None, None)
        yield Item(video, answer.labels, where, start, end, answer.frames, fps, also=tuple(also))


def _names_video(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return is_video(_path_of(value)) or value.startswith("/data/")


def _path_of(address: str) -> str:
    try:
        parts = urlsplit(address)
        named = parse_qs(parts.query).get("d")
    except ValueError:
        return address
    return named[0] if named and parts.path.endswith("/local-files/") else unquote(parts.path)


def _video_of(data: dict[str, Any], where: str) -> tuple[str, ...]:
    """Returns the name of a task's video, and others under which it may lie."""
    keys = [key for key, value in data.items() if _names_video(value)]
    key = next((key for key in (*_VIDEO_KEYS, *keys) if key in keys), None)
    if key is None:
        raise ManifestError(f"{where}: its data names no video ({', '.join(map(str, data))[:200] or 'it is empty'})")
    address = text_of(data[key], f"{where}: {key}")
    path = _path_of(address)
    if "/local-files/" in address:
        return (path.lstrip("/") if not os.path.isabs(path) else path,)
    if "/data/upload/" in address:
        name = os.path.basename(path)
        plain = _UPLOADED.sub("", name, count=1) if _UPLOADED.match(name) else name
        return path.removeprefix("/data/"), name, plain
    return (address,)


def _rate_of(data: dict[str, Any], rate: float | str | None, where: str) -> float:
    """Returns the frames a second by which the ranges of a task count.

    Raises:
        ManifestError: If nothing tells it.
    """
    if isinstance(rate, float):
        return rate
    keys = (rate,) if isinstance(rate, str) else _RATE_KEYS
    for key in keys:
        value = data.get(key)
        if value is None:
            continue
        try:
            given = float(value)
        except (TypeError, ValueError) as error:
            raise ManifestError(f"{where}: {key} is {str(value)[:40]!r}, not a number of frames a second") from error
        return number_of(given, f"{where}: {key}", least=1e-3)
    if isinstance(rate, str):
        return 24.0
    raise ManifestError(
        f"{where}: has ranges of frames, which Label Studio counts by the frameRate of its configuration: put that "
        "beside the export as NAME.xml, or give the number: stvid prep manifest label-studio ... --fps 24"
    )


def _configured_rate(source: str) -> float | str | None:
    """Returns the frame rate of the labelling configuration beside an export: a number, or the key of the data."""
    place = f"{os.path.splitext(source)[0]}.xml"
    if not os.path.isfile(place):
        return None
    tag = parse_xml(read_text(place), place).find(".//Video")
    given = "24" if tag is None else tag.get("frameRate") or tag.get("framerate") or "24"
    if given.startswith("$"):
        return given[1:]
    try:
        return number_of(float(given), f"{place}: frameRate", least=1e-3)
    except ValueError as error:
        raise ManifestError(f"{place}: frameRate is {given[:40]!r}, not a number of frames a second") from error
