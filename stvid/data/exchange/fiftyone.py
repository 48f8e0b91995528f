"""Data sets of FiftyOne: its formats on disk, and data sets that are open in FiftyOne itself.

Two formats on disk are read: ``labels.json`` beside ``data/`` (``FiftyOneTemporalDetectionDataset``, and the same shape
with one class a video, as FiftyOne's classification formats have it), and ``samples.json`` (``FiftyOneDataset``), which
holds whole samples. A folder per class (``VideoClassificationDirectoryTree``) is read as any such folder. Supports are
frames from 1 on, both ends included; their times come from the video itself.

Facts from the documentation, importers and exporters of fiftyone 1.22 (``fiftyone/utils/data``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stvid.data.csv_list import SPLITS
from stvid.data.exchange.labelled import LabelledVideo, frame_times, frames_between
from stvid.data.exchange.rows import (
    Export,
    Item,
    as_manifest,
    chosen_field,
    label_of,
    list_of,
    number_of,
    table_of,
    text_of,
)
from stvid.data.text_files import parse_json, read_text
from stvid.data.video_table import Manifest
from stvid.errors import ConfigError, ManifestError
from stvid.files import write_folder_atomically

__all__ = [
    "FIELD",
    "check_folder",
    "is_fiftyone",
    "is_fiftyone_folder",
    "label_of_video",
    "read_dataset",
    "read_fiftyone",
    "write_samples",
]

FIELD = "predictions"
"""The field that predictions are written to, which are never taken for labels unless they are asked for."""

_FILES = ("samples.json", "labels.json")
_KINDS = ("Classification", "Classifications", "TemporalDetection", "TemporalDetections")


def is_fiftyone(content: Any) -> bool:
    """Tells whether the value of a JSON file is one of FiftyOne's."""
    if not isinstance(content, dict):
        return False
    return isinstance(content.get("samples"), list) or (
        "classes" in content and isinstance(content.get("labels"), dict)
    )


def is_fiftyone_folder(folder: str) -> bool:
    """Tells whether a folder is a data set that FiftyOne exported."""
    if os.path.isfile(os.path.join(folder, "samples.json")):
        return os.path.isfile(os.path.join(folder, "metadata.json"))
    beside = (os.path.join(folder, "data"), os.path.join(folder, "data.json"))
    return os.path.isfile(os.path.join(folder, "labels.json")) and any(map(os.path.exists, beside))


def read_fiftyone(source: str, *, field: str | None = None) -> Export:
    """Reads a data set that FiftyOne wrote to disk.

    Args:
        source: Its folder, or the ``labels.json`` or ``samples.json`` in it.
        field: Field of the samples that holds the labels; needed if several do.

    Raises:
        ManifestError: If it is none, or damaged; the message names the sample.
    """
    if os.path.isdir(source):
        names = (os.path.join(source, name) for name in _FILES)
        place = next((name for name in names if os.path.isfile(name)), None)
        if place is None:
            raise ManifestError(f"{source}: holds neither {' nor '.join(_FILES)}, as a data set of FiftyOne does")
    else:
        place = source
    content = parse_json(read_text(place), place)
    if not is_fiftyone(content):
        raise ManifestError(f"{place}: is no data set of FiftyOne, which has 'samples', or 'classes' and 'labels'")
    if "samples" in content:
        return _read_samples(content["samples"], place, field)
    return _read_labels(content, place)


# --- labels.json ------------------------------------------------------------------------------------------------------


def _read_labels(content: dict[str, Any], place: str) -> Export:
    classes = tuple(
        label_of(name, f"{place}: classes") for name in list_of(content["classes"] or [], f"{place}: classes")
    )
    export = Export(class_names=classes)
    files = _media(place)
    for key, value in content["labels"].items():
        where = f"labels {key[:80]!r}"
        if not key.strip() or "\0" in key:
            raise ManifestError(f"{place}: {key[:80]!r} names no video")
        video = files.get(key, key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        found = [_labelled(one, classes, f"{place}: {where}") for one in values]
        whole = tuple(label for label, frames, _ in found if frames is None)
        if whole or not found:
            export.items.append(Item(video, whole, where))
        for label, frames, seconds in found:
            if frames is not None:
                start, end = seconds or (None, None)
                export.items.append(Item(video, (label,), where, start, end, None if seconds else frames))
    return export


def _media(place: str) -> dict[str, str]:
    """Returns the paths of the videos of a ``labels.json``, by the keys that it has for them."""
    folder = os.path.dirname(place)
    table = os.path.join(folder, "data.json")
    if os.path.isfile(table):
        given = table_of(parse_json(read_text(table), table), table)
        return {key: text_of(path, f"{table}: {key[:80]!r}") for key, path in given.items()}
    found: dict[str, str] = {}
    for below, _, names in os.walk(os.path.join(folder, "data")):
        for name in sorted(names):
            path = os.path.relpath(os.path.join(below, name), folder)
            key = os.path.splitext(os.path.relpath(path, "data"))[0].replace(os.sep, "/")
            found.setdefault(key, path)
    return found


def _labelled(
    value: Any, classes: tuple[str, ...], where: str
) -> tuple[str, tuple[int, int] | None, tuple[float, float] | None]:
    """Returns label, frames and seconds of one label of a ``labels.json``; frames are not None for a part."""
    if not isinstance(value, dict):
        return _named(value, classes, where), None, None
    label = _named(value.get("label"), classes, where)
    if "timestamps" in value:
        start, end = _pair(value["timestamps"], f"{where}: timestamps", least=0)
        return label, (0, 0), (start, end)
    if "support" in value:
        return label, _frames(value["support"], f"{where}: support"), None
    return label, None, None


def _named(value: Any, classes: tuple[str, ...], where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and classes:
        if not 0 <= value < len(classes):
            raise ManifestError(f"{where}: class {value} is none of the {len(classes)}")
        return classes[value]
    return label_of(value, f"{where}: label")


def _pair(value: Any, where: str, *, least: float) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ManifestError(f"{where}: is {str(value)[:60]}, not begin and end")
    first, last = (number_of(end, where, least=least) for end in value)
    return first, last


def _frames(value: Any, where: str) -> tuple[int, int]:
    first, last = _pair(value, where, least=1)
    if last < first:
        raise ManifestError(f"{where}: ends at frame {last:g}, before frame {first:g}")
    return int(first) - 1, int(last) - 1


# --- samples ----------------------------------------------------------------------------------------------------------


def _read_samples(samples: list[Any], place: str, field: str | None) -> Export:
    export = Export()
    tables = [table_of(sample, f"{place}, sample {number}") for number, sample in enumerate(samples, start=1)]
    held = [
        {name: value for name, value in sample.items() if isinstance(value, dict) and value.get("_cls") in _KINDS}
        for sample in tables
    ]
    chosen = _field(held, field, place, export)
    folder = os.path.dirname(place)
    for number, (sample, fields) in enumerate(zip(tables, held, strict=True), start=1):
        where = f"sample {number}"
        path = text_of(sample.get("filepath"), f"{place}, {where}: filepath")
        there = os.path.join(folder, path)
        video = there if os.path.lexists(there) else path
        split = _split(sample.get("tags"))
        value = fields.get(chosen or "")
        export.items += _items_of(video, value, where, split, f"{place}, {where}: {chosen}")
    return export


def _field(samples: Iterable[Mapping[str, Any]], field: str | None, place: str, export: Export) -> str | None:
    """Returns the field of the labels; predictions only count if they are asked for."""
    names = dict.fromkeys(name for fields in samples for name in fields)
    if field is None and FIELD in names:
        del names[FIELD]
        if not names:
            export.remarks.append(f"has predictions, which are not taken for labels (--field {FIELD} takes them)")
    return chosen_field(names, field, place, "field")


def _split(tags: Any) -> str:
    """Returns the split that the tags of a sample name, if they name just one."""
    given = tags if isinstance(tags, list) else []
    found = {SPLITS[tag.lower()] for tag in given if isinstance(tag, str) and tag.lower() in SPLITS}
    return found.pop() if len(found) == 1 else ""


def _items_of(video: str, value: Any, where: str, split: str, what: str) -> Iterator[Item]:
    """Yields what a field says; its value is a table, or a label of FiftyOne, which has the same names."""
    get = value.get if isinstance(value, dict) else lambda name, other=None: getattr(value, name, other)
    several = next((found for name in ("classifications", "detections") if (found := get(name)) is not None), None)
    if value is None or (several is None and get("label") is None):
        yield Item(video, (), where, split=split)
        return
    labels = []
    parts = [value] if several is None else list_of(list(several) if isinstance(several, Iterable) else several, what)
    for part in parts:
        label, support = (
            (part.get(name) if isinstance(part, dict) else getattr(part, name, None)) for name in ("label", "support")
        )
        name = label_of(label, f"{what}: label")
        if support is None:
            labels.append(name)
        else:
            yield Item(video, (name,), where, frames=_frames(support, f"{what}: support"), split=split)
    if labels or not parts:
        yield Item(video, tuple(labels), where, split=split)


# --- data sets that are open ------------------------------------------------------------------------------------------


def read_dataset(
    dataset: Any, field: str = "ground_truth", *, root: str | None = None, multilabel: bool = False
) -> Manifest:
    """Makes a list of videos of a data set, or a view, that is open in FiftyOne.

    Args:
        dataset: A ``fiftyone.Dataset``, a view of one, or any iterable of samples.
        field: Field with a Classification, Classifications or TemporalDetections.
        root: Folder below which videos are looked for that are not where the data set says.
        multilabel: Whether a video without labels shows none of the classes; otherwise it is left out.

    Returns:
        The list; tags such as ``train`` and ``test`` are its splits.

    Raises:
        ManifestError: If no sample has the field, or a value of it is no label of a video.
    """
    name = f"FiftyOne data set {getattr(dataset, 'name', '')}".strip()
    export = Export()
    known = False
    for number, sample in enumerate(dataset, start=1):
        where = f"sample {number}"
        has = field in sample.field_names
        known = known or has
        value = sample[field] if has else None
        path = text_of(sample.filepath, f"{name}, {where}: filepath")
        export.items += _items_of(path, value, where, _split(sample.tags), f"{name}, {where}: {field}")
    if export.items and not known:
        raise ManifestError(f"{name}: its samples have no field {field!r}; name the field of the labels")
    return as_manifest(export, name, root=root, multilabel=multilabel)


# --- writing ----------------------------------------------------------------------------------------------------------


def label_of_video(video: LabelledVideo, *, timed: bool, multilabel: bool) -> dict[str, Any] | None:
    """Returns the labels of a video as FiftyOne writes them; None if there are none.

    Args:
        video: The video and its labels.
        timed: Whether they are temporal detections, which all samples of a field have to be if one is.
        multilabel: Whether a video may show several classes.

    Raises:
        VideoError: If the times of the frames are needed and cannot be read.
    """
    if timed:
        times, _ = frame_times(video.path)
        detections = []
        for part in video.parts:
            first, last = frames_between(times, part.start, part.end)
            for label in part.labels:
                detections.append({"_cls": "TemporalDetection", "label": label, "support": [first + 1, last + 1]})
        return {"_cls": "TemporalDetections", "detections": detections}
    found = [{"_cls": "Classification", "label": label} for part in video.parts for label in part.labels]
    if multilabel:
        return {"_cls": "Classifications", "classifications": found}
    return found[0] if found else None


def check_folder(folder: Path) -> None:
    """Raises ConfigError if something is in the place of a folder that `write_samples` has not written."""
    ours = {"frames", "metadata.json", "samples.json"}
    if folder.exists() and not (folder.is_dir() and {*os.listdir(folder)} <= ours):
        raise ConfigError(f"{folder}: is there already and is no data set of FiftyOne by stvid; give another --out")


def write_samples(samples: Iterable[tuple[str, dict[str, Any]]], folder: Path, class_names: Sequence[str]) -> None:
    """Writes a data set that ``fiftyone.Dataset.from_dir(FOLDER, fiftyone.types.FiftyOneDataset)`` opens.

    Args:
        samples: Path of each video, and its fields.
        folder: The folder; one that was written so before is replaced.
        class_names: All classes.

    Raises:
        ConfigError: If there is another folder or file of that name.
        OSError: If it cannot be written.
    """
    frames = "frames/none.json"  # FiftyOne wants the labels of a video's frames, of which there are none
    about = {"media_type": "video", "info": {"classes": [*class_names]}, "default_classes": [*class_names]}
    tables = []
    for video, fields in samples:
        path = video if "://" in video else os.path.abspath(video)
        common: dict[str, Any] = {"_media_type": "video", "tags": [], "metadata": None, "frames": frames}
        tables.append({"filepath": path, **common, **fields})
    contents = {"metadata.json": about, "samples.json": {"samples": tables}, frames: {"frames": {}}}

    def write(place: Path) -> None:
        (place / "frames").mkdir()
        for name, content in contents.items():
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (place / name).write_text(text, encoding="utf-8")

    check_folder(folder)
    write_folder_atomically(folder, write, replace=True)
