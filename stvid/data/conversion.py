"""Official annotations to a list of videos with class names.

The videos that an annotation names are looked for in a folder, so that what is missing, and what lies there without an
annotation, can be told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stvid.data.annotations import (
    Annotations,
    locate,
    read_diving48,
    read_hmdb51,
    read_jester,
    read_kinetics,
    read_moments,
    read_ssv1,
    read_ssv2,
    read_ucf101,
)
from stvid.data.class_names import read_class_names
from stvid.data.exchange.formats import EXCHANGE, ExchangeOptions, read_exchange
from stvid.data.labels import composed, order_labels
from stvid.data.manifest import read_manifest
from stvid.data.temporal_annotations import (
    ROWS,
    read_activitynet,
    read_charades,
    read_epic_actions,
    read_epic_nouns,
    read_epic_verbs,
    read_gym,
    read_hacs,
)
from stvid.data.video_folder import VideoFolder, counted_kinds
from stvid.errors import ConfigError, ManifestError, nearest
from stvid.files import write_lines, write_table

__all__ = [
    "CLASSES",
    "DATASETS",
    "PARTS",
    "ROW_KINDS",
    "SPLITS",
    "Annotated",
    "convert",
    "convert_export",
    "read_annotation",
    "write_class_names",
    "write_list",
]


@dataclass
class Annotated:
    """The list that an annotation file and a folder of videos give together.

    Attributes:
        rows: Path, label (several are joined by ``|``), start and end in seconds (None: the whole video) of each video
            that is there.
        missing: Names of annotated videos that are not there.
        unexpected: Files in the folder that no annotation names.
        class_names: All classes of the annotation, in their official order where there is one.
        repeated: Rows of the annotation that were there before, and were left out.
        notes: What a user should know of the annotation and the folder, a line each.
        multilabel: Whether a video may show several of the classes, or none.
        splits: The split of each row; empty if there are none.
    """

    rows: list[tuple[str, str, float | None, float | None]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    repeated: int = 0
    notes: tuple[str, ...] = ()
    multilabel: bool = False
    splits: list[str] = field(default_factory=list)


def _match(annotations: Annotations, videos: VideoFolder) -> Annotated:
    """Finds the videos of an annotation in a folder."""
    out = Annotated(notes=annotations.notes, multilabel=annotations.multilabel)
    for row in annotations.rows:
        found = locate(row, videos)
        if found is None:
            out.missing.append(row.cut or row.video)
        else:
            path, start, end = found
            out.rows.append((os.path.join(videos.root, path), composed(row.label), start, end))
    if videos.left_out:
        out.notes += (f"{videos.root}: left out, not known as videos: {counted_kinds(videos.left_out)}",)
    out.unexpected = [os.path.join(videos.root, path) for path in videos.unused()]
    labels = (label for row in annotations.rows for label in _labels(row.label, annotations.multilabel))
    out.class_names = annotations.class_names or list(order_labels(labels, "the annotation"))
    return out


def _labels(label: str, multilabel: bool) -> list[str]:
    """Returns the classes of a row: none, one, or several."""
    return [name for name in (label.split("|") if multilabel else [label]) if name]


def _class_folders(folder: Path) -> Annotated:
    manifest = read_manifest(folder)
    rows = [(entry.path, entry.labels[0], None, None) for entry in (manifest[n] for n in range(len(manifest)))]
    return Annotated(rows=list(rows), class_names=list(manifest.class_names), notes=manifest.notes)


DATASETS: dict[str, Callable[..., Annotations] | None] = {
    "kinetics400": read_kinetics,
    "kinetics600": read_kinetics,
    "kinetics700": read_kinetics,
    "ssv1": read_ssv1,
    "ssv2": read_ssv2,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "diving48": read_diving48,
    "jester": read_jester,
    "moments": read_moments,
    "epic_verbs": read_epic_verbs,
    "epic_nouns": read_epic_nouns,
    "epic_actions": read_epic_actions,
    "charades": read_charades,
    "hacs": read_hacs,
    "activitynet": read_activitynet,
    "gym99": read_gym,
    "gym288": read_gym,
    "folder": None,
}
"""The data sets, with what reads their annotation; a folder per class has none."""

CLASSES = {
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "ssv1": 174,
    "ssv2": 174,
    "ucf101": 101,
    "hmdb51": 51,
    "diving48": 48,
    "jester": 27,
    "moments": 339,
    "epic_verbs": 97,
    "epic_nouns": 300,
    "charades": 157,
    "hacs": 200,
    "activitynet": 200,
    "gym99": 99,
    "gym288": 288,
}
"""The number of classes of each data set, where it is fixed."""

PARTS = {
    "hmdb51": ("train", "test"),
    "hacs": ("train", "val", "test"),
    "activitynet": ("train", "val", "test"),
}
"""The data sets of which one annotation holds several parts."""

SPLITS = {"hmdb51": (1, 2, 3)}
"""The data sets whose annotation holds several splits into parts."""

ROW_KINDS = {"charades": "videos", "hacs": "segments", "activitynet": "segments"}
"""The data sets that are listed by videos or by their annotated parts, and what is usual."""

_IMAGES = ("ssv1", "jester")  # the videos are folders of images
_TIMED = ("epic_verbs", "epic_nouns", "epic_actions", "hacs", "activitynet", "gym99", "gym288")
_SHARED = ("ucf101", "hmdb51", *PARTS)  # the videos of their other splits and parts lie in the same folder


def read_annotation(
    dataset: str, annotation: Path, *, part: str = "train", split: int = 1, rows: str | None = None
) -> Annotations:
    """Reads the official annotation of a data set.

    Args:
        dataset: One of `DATASETS` that has an annotation.
        annotation: The file (HMDB51: the folder of its split files).
        part: One of `PARTS` of the data set, if it has some.
        split: One of `SPLITS` of the data set, if it has some.
        rows: ``videos`` or ``segments``, if the data set has both; None is what is usual.

    Raises:
        ConfigError: If the data set is unknown.
        ManifestError: If the annotation cannot be read.
    """
    if (read := DATASETS.get(dataset)) is None:
        raise ConfigError(f"{dataset}: no data set with an annotation{nearest(dataset, DATASETS)}")
    extra: dict[str, str | int] = {}
    if dataset in PARTS:
        extra["part"] = part
    if dataset in SPLITS:
        extra["split"] = split
    if dataset in ROW_KINDS:
        extra["rows"] = rows or ROW_KINDS[dataset]
    return read(annotation, **extra)


def convert(
    dataset: str, annotation: Path, root: Path, *, part: str = "train", split: int = 1, rows: str | None = None
) -> Annotated:
    """Reads the official annotation of a data set and finds its videos.

    Args:
        dataset: One of `DATASETS`.
        annotation: The file (HMDB51: the folder of its split files; folder: the folder of class folders).
        root: The folder of the videos; they may lie in folders below it.
        part: ``train``, ``val`` or ``test``, where one annotation holds several, see `PARTS`.
        split: 1, 2 or 3; HMDB51 only.
        rows: ``videos`` or ``segments``, where a data set has both, see `ROW_KINDS`; None is what is usual.

    Raises:
        ConfigError: If the data set is unknown, or has no such part or rows.
        ManifestError: If the annotation cannot be read, or none of its videos is there.
    """
    if dataset not in DATASETS:
        known = (*DATASETS, *EXCHANGE)
        raise ConfigError(f"{dataset}: no such data set{nearest(dataset, known)} ({', '.join(known)})")
    if dataset in PARTS and part not in PARTS[dataset]:
        raise ConfigError(f"--part {part}: {dataset} has {', '.join(PARTS[dataset])}")
    if rows is not None and rows not in ROWS:
        raise ConfigError(f"--rows {rows}: is none of {', '.join(ROWS)}")
    for path in (annotation, root):
        if not path.exists():
            raise ManifestError(f"{path}: no such file or folder")
    if DATASETS[dataset] is None:
        found = _class_folders(annotation)
    else:
        annotations = read_annotation(dataset, annotation, part=part, split=split, rows=rows)
        found = _match(annotations, VideoFolder(root, frames=dataset in _IMAGES))
        if dataset in _SHARED:
            found.unexpected = []
    if not found.rows:
        example = f", such as {found.missing[0]}" if found.missing else ""
        raise ManifestError(f"{root}: holds none of the {len(found.missing)} videos of {annotation}{example}")
    _leave_out_repeated(found, annotation, times=dataset in _TIMED)
    return found


def convert_export(format: str, path: Path, root: Path, options: ExchangeOptions) -> Annotated:
    """Reads a list of videos that another program has written, and finds its videos.

    Args:
        format: One of `stvid.data.exchange.formats.EXCHANGE`.
        path: The file or folder.
        root: The folder of the videos.
        options: What the file may leave open.

    Raises:
        ManifestError: If the file cannot be read, none of its videos is there, or a label cannot be joined to others.
    """
    for place in (path, root):
        if not place.exists():
            raise ManifestError(f"{place}: no such file or folder")
    listed = read_exchange(os.fspath(path), format, os.fspath(root), options)
    labels = order_labels((label for row in listed.rows for label in row.labels), os.fspath(path))
    found = Annotated(notes=listed.notes, class_names=list(listed.class_names or labels))
    for number, row in enumerate(listed.rows):
        video = row.path if "://" in row.path else os.path.join(root, row.path)
        if "://" not in video and not os.path.lexists(video):
            found.missing.append(row.path)
            continue
        if len(row.labels) > 1 and any("|" in label for label in row.labels):
            raise ManifestError(f"{path}, {row.where}: a label holds |, which joins the labels of a list; rename it")
        found.rows.append((video, "|".join(composed(label) for label in row.labels), row.start, row.end))
        found.splits += listed.splits[number : number + 1]
    found.multilabel = any("|" in row[1] for row in found.rows)
    if not found.rows:
        raise ManifestError(
            f"{root}: holds none of the {len(found.missing)} videos of {path}, such as {found.missing[0]}; give their "
            "folder with --root"
        )
    return found


def _leave_out_repeated(found: Annotated, annotation: Path, *, times: bool) -> None:
    """Leaves out the rows that were there before.

    Args:
        found: The list, which is changed.
        annotation: Where it is from, for messages.
        times: Whether the data set annotates times, of which one may show several classes. Such a time has no single
            label: without multi-label it is left out, and a note says so.

    Raises:
        ManifestError: If a video has two labels, or some have labels and others have not, or a label is no class.
    """
    labels: dict[tuple[str, float | None, float | None], list[str]] = {}
    for path, label, start, end in found.rows:
        before = labels.setdefault((path, start, end), [])
        before += [name for name in _labels(label, found.multilabel) if name not in before]
        if len(before) > 1 and not found.multilabel and not times:
            raise ManifestError(f"{annotation}: gives {path} two labels, {before[0]!r} and {before[1]!r}")
    found.repeated = len(found.rows) - len(labels)
    if not found.multilabel:
        several = [key for key, names in labels.items() if len(names) > 1]
        for key in several:
            del labels[key]
        if several:
            found.notes += (f"{annotation}: left out, since they show several classes: {len(several)} times",)
    found.rows = [(path, "|".join(names), start, end) for (path, start, end), names in labels.items()]
    unlabelled = sum(not names for names in labels.values())
    if 0 < unlabelled < len(labels) and not found.multilabel:
        path = next(path for (path, _, _), names in labels.items() if not names)
        raise ManifestError(f"{annotation}: {unlabelled} videos have no label, but others have; such as {path}")
    unknown = {name for names in labels.values() for name in names} - set(found.class_names)
    if unknown:
        label = min(unknown)
        raise ManifestError(f"{annotation}: {label!r} is not in the list of classes{nearest(label, found.class_names)}")


def _unwritable(video: str) -> bool:
    try:
        video.encode()
    except UnicodeEncodeError:
        return True
    return video != video.strip()


def _seconds(value: float) -> str:
    """Returns seconds to the microsecond, which tells all frames of any video from each other."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def write_list(path: Path, found: Annotated) -> None:
    """Writes a CSV that `read_manifest` reads; paths below its folder are written relative to it.

    Raises:
        ManifestError: If a name cannot be written so that it is read again.
        StvidError: If the file cannot be written.
    """
    base = path.absolute().parent
    timed = any(start is not None or end is not None for _, _, start, end in found.rows)
    labelled = any(label for _, label, _, _ in found.rows)
    header = ["path", *(["label"] if labelled else []), *(["start", "end"] if timed else [])]
    header += ["split"] if found.splits else []
    rows = []
    for number, (video, label, start, end) in enumerate(found.rows):
        video = video if "://" in video else os.path.abspath(video)
        if _unwritable(video):
            raise ManifestError(f"{video!r}: its name is not UTF-8 text or has an odd end; rename it")
        shown = os.path.relpath(video, base) if Path(video).is_relative_to(base) else video
        times = ["" if value is None else _seconds(value) for value in (start, end)]
        cells = [shown, *([label] if labelled else []), *(times if timed else [])]
        rows.append([*cells, *found.splits[number : number + 1]])
    write_table(path, header, rows, errors="strict", formulas=True)


def write_class_names(path: Path, names: Sequence[str]) -> None:
    """Writes names of classes so that `read_class_names` gives the same: a name a line, or a JSON list if need be.

    Names such as "1 clap" would be read as a number and a name from lines.

    Raises:
        ManifestError: If a name cannot be listed: it holds a control character, or occurs twice.
        StvidError: If the file cannot be written.
    """
    write_lines(path, names)
    if not names:
        return
    try:
        same = list(read_class_names(path)) == list(names)
    except ManifestError:
        same = False
    if not same:
        write_lines(path, [json.dumps(list(names), ensure_ascii=False)])
        try:
            read_class_names(path)
        except ManifestError:
            path.unlink()
            raise
