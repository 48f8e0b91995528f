"""The official annotation files of data sets: which videos they name, and what these show.

Each reader gives the rows of a file as `Annotations`; `locate` finds the video of a row in a folder. The lists that
`stvid.data.manifest` reads directly and those that ``stvid-prep manifest`` writes are made of the same rows.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stvid.data.class_names import read_class_names
from stvid.data.text_files import Table, parse_json, parse_table, read_lines, read_text
from stvid.data.video_folder import VideoFolder
from stvid.errors import ManifestError, nearest

__all__ = [
    "Annotation",
    "Annotations",
    "locate",
    "official_names",
    "parse_seconds",
    "read_class_names",
    "read_diving48",
    "read_hmdb51",
    "read_jester",
    "read_kinetics",
    "read_moments",
    "read_rows",
    "read_ssv1",
    "read_ssv2",
    "read_ucf101",
    "video_name",
]

_MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Annotation:
    """One row of an annotation file.

    Attributes:
        video: Name of the video without extension.
        label: Its class, or its classes joined by ``|`` if the annotation is multi-label; empty if the row has none.
        where: Where the row stands in the file, for messages.
        cut: Name of a file that holds only the part from `start` to `end`; None if there are no such files.
        start: Where the part begins in the video, in seconds; None is its beginning.
        end: Where the part ends in the video, in seconds; None is its end.
        also: Another name that copies of the whole video have; None if there is none.
    """

    video: str
    label: str
    where: str
    cut: str | None = None
    start: float | None = None
    end: float | None = None
    also: str | None = None


@dataclass
class Annotations:
    """The content of an annotation file.

    Attributes:
        rows: The rows, in order.
        class_names: All classes in their official order; empty if no file beside the annotation gives it.
        notes: What a user should know of the file, a line each: rows that were left out, and the like.
        multilabel: Whether a row may have several classes, or none, beside rows that have.
    """

    rows: list[Annotation]
    class_names: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    multilabel: bool = False


def locate(row: Annotation, videos: VideoFolder) -> tuple[str, float | None, float | None] | None:
    """Finds the video of a row.

    Returns:
        Its path below the folder, and the part of it to use in seconds (None: all of it); None if it is not there.
    """
    if row.cut is not None and (path := videos.find(row.cut, row.label)) is not None:
        return path, None, None
    path = videos.find(row.video, row.label)
    if path is None and row.also is not None:
        path = videos.find(row.also, row.label)
    return None if path is None else (path, row.start, row.end)


def parse_seconds(text: str, what: str) -> float | None:
    """Reads a number of seconds; None if there is none.

    Raises:
        ManifestError: If it is not a number, or below 0; the message begins with `what`.
    """
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ManifestError(f"{what} is {text!r}: a number of seconds is needed, 0 or more")
    return value


def video_name(value: Any, where: str, key: str) -> str:
    """Returns the name of a video, which is a text or a whole number.

    Raises:
        ManifestError: If it is missing, something else, or a path; the message begins with `where`.
    """
    name = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if value is None or value == "" or (isinstance(value, str) and not name):
        raise ManifestError(f"{where}: has no {key}")
    if not name or "/" in name or "\\" in name:
        raise ManifestError(f"{where}: {key} {str(value)[:80]!r} is no name of a video")
    return name


def official_names(annotation: Path, *names: str) -> list[str]:
    """Returns the classes in their official order, if their file lies beside the annotation, else an empty list."""
    for name in names:
        if (path := annotation.with_name(name)).is_file():
            return list(read_class_names(path))
    return []


def read_kinetics(annotation: str | os.PathLike[str], table: Table | None = None) -> Annotations:
    """Reads a CSV of Kinetics-400, -600 or -700: ``label,youtube_id,time_start,time_end,split``.

    Copies of the set lie in folders per class or flat, as ``<id>_<start>_<end>.mp4`` with six digits (the crawler of
    activitynet/ActivityNet and the copies of cvdfoundation), or as whole videos ``<id>.mp4``. Several rows may have one
    id and different times. The test list has no labels.

    Args:
        annotation: The file.
        table: Its lines, if they have been read.
    """
    table = parse_table(read_text(annotation), annotation) if table is None else table
    line, first = table[0]
    header = [cell.strip().lower() for cell in first]
    for column in ("youtube_id", "time_start", "time_end", "label"):
        if column not in header and column != "label":
            raise ManifestError(f"{annotation}, line {line}: has no column {column!r}, which the CSV of Kinetics has")
        if header.count(column) > 1:
            raise ManifestError(f"{annotation}, line {line}: column {column!r} occurs twice")
    if len(table) == 1:
        raise ManifestError(f"{annotation}: has a header but no videos")
    rows = []
    for line, cells in table[1:]:
        where = f"{annotation}, line {line}"
        if len(cells) != len(header):
            raise ManifestError(f"{where}: has {len(cells)} columns, not {len(header)} ({','.join(header)})")
        values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        video = video_name(values["youtube_id"], where, "youtube_id")
        start, end = (parse_seconds(values[name], f"{where}: {name}") for name in ("time_start", "time_end"))
        if start is None or end is None:
            raise ManifestError(f"{where}: time_start and time_end are needed")
        if end <= start:
            raise ManifestError(f"{where}: time_end is not after time_start")
        if end >= 1e6:
            raise ManifestError(f"{where}: time_end is {values['time_end'][:20]!r}: no video is as long")
        if values.get("label") == "":
            raise ManifestError(f"{where}: {video!r} has no label")
        cut = f"{video}_{round(start):06d}_{round(end):06d}"
        rows.append(Annotation(video, values.get("label", ""), f"line {line}", cut, start, end))
    return Annotations(rows)


def read_ssv2(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads Something-Something v2: a JSON list of ``id`` and ``template``, whose brackets do not belong to the class.

    The test list has ids only; the answers to it (``test-answers.csv``) are lines ``id;label``. ``labels.json`` or
    ``something-something-v2-labels.json`` beside it has the official order of the classes.
    """
    path = Path(annotation)
    names = official_names(path, "something-something-v2-labels.json", "labels.json")
    if path.suffix.lower() == ".csv":
        return Annotations(_id_label_lines(path), names)
    content = parse_json(read_text(path), path, unique_keys=True)
    if not isinstance(content, list) or not content:
        raise ManifestError(
            f"{path}: needs a list of videos as Something-Something v2 has it, not {type(content).__name__}"
        )
    rows = []
    for number, item in enumerate(content, start=1):
        video = video_name(item.get("id") if isinstance(item, dict) else None, f"{path}, video {number}", "id")
        where = f"video {number} (id {video})"
        template = item.get("template", item.get("label"))
        if template is not None and not isinstance(template, str):
            raise ManifestError(f"{path}, {where}: its template is {str(template)[:80]!r}, not a text")
        label = "" if template is None else template.replace("[", "").replace("]", "").strip()
        if template is not None and not label:
            raise ManifestError(f"{path}, {where}: has no label")
        if any(unicodedata.category(letter) == "Cs" for letter in label):
            raise ManifestError(f"{path}, {where}: its template holds half of a letter: {label!r}")
        rows.append(Annotation(video, label, where))
    return Annotations(rows, names)


def read_ssv1(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads Something-Something v1: lines ``id;label``; the videos are folders of JPEG images at 12 frames a second.

    ``something-something-v1-labels.csv`` beside it has the official order of the classes. `VideoReader` shows a folder
    of images at 25 frames a second; ``stvid prep transcode --frames_fps 12`` makes videos with the right times of them.
    """
    path = Path(annotation)
    return Annotations(_id_label_lines(path), official_names(path, "something-something-v1-labels.csv"))


def read_jester(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads Jester: lines ``id;label``; the videos are folders of JPEG images at 12 frames a second.

    ``jester-v1-labels.csv`` beside it has the official order of the classes. See `read_ssv1` for the times.
    """
    path = Path(annotation)
    rows = _id_label_lines(path, "jester-v1-train.csv")
    return Annotations(rows, official_names(path, "jester-v1-labels.csv"))


def read_moments(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads Moments in Time: lines ``class/video.mp4,class,...`` without a header, as ``trainingSet.csv`` has them.

    The further cells count votes of the annotators. ``moments_categories.txt`` beside it (``clapping,0``) has the
    official order of the classes.
    """
    path = Path(annotation)
    rows = []
    for line, cells in parse_table(read_text(path), path):
        label, _, file = cells[0].strip().rpartition("/")
        if not label or not file or "/" in label or len(cells) < 2 or cells[1].strip() != label:
            raise ManifestError(f"{path}, line {line}: {','.join(cells)[:80]!r} is not like class/video.mp4,class")
        rows.append(Annotation(os.path.splitext(file)[0], label, f"line {line}"))
    return Annotations(rows, official_names(path, "moments_categories.txt"))


def read_rows(path: str | os.PathLike[str], needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Reads a CSV with a header: number of the line, and its cells by their column.

    Args:
        path: The file.
        needed: Columns that it must have.

    Raises:
        ManifestError: If it is no CSV, a column is missing, or a line has more or fewer cells than the header.
    """
    table = parse_table(read_text(path), path)
    first, cells = table[0]
    header = [cell.strip() for cell in cells]
    missing = [column for column in needed if column not in header]
    if missing:
        raise ManifestError(f"{path}, line {first}: has no column {missing[0]!r}; its columns are {', '.join(header)}")
    if len(table) == 1:
        raise ManifestError(f"{path}: has a header but no videos")
    rows = []
    for line, cells in table[1:]:
        if len(cells) != len(header):
            raise ManifestError(f"{path}, line {line}: has {len(cells)} columns, not {len(header)}")
        rows.append((line, dict(zip(header, (cell.strip() for cell in cells), strict=True))))
    return rows


def _id_label_lines(annotation: Path, example: str = "something-something-v1-train.csv") -> list[Annotation]:
    """Reads lines ``id;label``, or ``id`` alone in a test list; `example` is a file of this form, for messages."""
    rows = []
    for number, line in read_lines(annotation):
        name, _, label = line.partition(";")
        if not name.strip().isdigit():
            raise ManifestError(f"{annotation}, line {number}: needs 'id;label', as {example}")
        rows.append(Annotation(name.strip(), label.strip(), f"line {number}"))
    return rows


def read_ucf101(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads UCF101: ``trainlist01.txt`` (``Class/v_Class_g01_c01.avi 1``) or ``testlist01.txt``, with ``classInd.txt``.

    ``classInd.txt`` lies beside the list and has the official order and spelling of the classes.
    """
    listed = Path(annotation).with_name("classInd.txt")
    names = official_names(Path(annotation), listed.name)
    spelled = {name.casefold(): name for name in names}
    rows = []
    for number, line in read_lines(annotation):
        file = line.split()[0]
        match = re.fullmatch(r"(?:([^/]+)/)?v_([^_/]+)_g\d+_c\d+\.\w+", file)
        if match is None:
            raise ManifestError(f"{annotation}, line {number}: {file!r} is not like Class/v_Class_g01_c01.avi")
        label = match[1] or match[2]
        if label.casefold() != match[2].casefold():
            raise ManifestError(f"{annotation}, line {number}: {file!r} names two classes, {label} and {match[2]}")
        if spelled and label.casefold() not in spelled:
            raise ManifestError(f"{annotation}, line {number}: {label} is no class of {listed}{nearest(label, names)}")
        rows.append(Annotation(Path(file).stem, spelled.get(label.casefold(), label), f"line {number}"))
    return Annotations(rows, names)


def read_hmdb51(annotation: str | os.PathLike[str], *, part: str = "train", split: int = 1) -> Annotations:
    """Reads HMDB51: a folder of ``<class>_test_split<n>.txt`` with lines ``file.avi 1``.

    The number is 1 for training, 2 for the test, and 0 for videos that are not used.

    Args:
        annotation: The folder.
        part: ``train`` or ``test``.
        split: 1, 2 or 3.
    """
    folder = Path(annotation)
    if not folder.is_dir():
        raise ManifestError(f"{folder}: for HMDB51 give the folder of the files <class>_test_split1.txt")
    lists = sorted(folder.glob(f"*_test_split{split}.txt"))
    if not lists:
        raise ManifestError(f"{folder}: holds no <class>_test_split{split}.txt")
    rows, names = [], []
    for file in lists:
        label = file.stem.removesuffix(f"_test_split{split}")
        names.append(label)
        for number, line in read_lines(file):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name.strip():
                raise ManifestError(f"{file}, line {number}: needs '<file>.avi' and 0, 1 or 2, not {line!r}")
            if use == {"train": "1", "test": "2"}[part]:
                rows.append(Annotation(os.path.splitext(name.strip())[0], label, f"{file.name}, line {number}"))
    return Annotations(rows, names)


def read_diving48(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads Diving48: a JSON list of ``vid_name``, ``label`` (a number), ``start_frame``, ``end_frame``.

    So are ``Diving48_train.json`` and the corrected ``Diving48_V2_train.json``. ``Diving48_vocab.json`` beside it names
    the classes (four parts of a dive, joined by spaces here). The frames are those of the cut videos, which are used
    whole.
    """
    path = Path(annotation)
    content = parse_json(read_text(path), path)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ManifestError(f"{path}: needs a JSON list of tables")
    classes = _diving48_classes(path.with_name("Diving48_vocab.json"))
    rows, numbers = [], []
    for count, row in enumerate(content, start=1):
        label = row.get("label")
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise ManifestError(f"{path}, video {count}: needs vid_name and label, a number from 0 up")
        name = video_name(row.get("vid_name"), f"{path}, video {count}", "vid_name")
        if label >= _MOST_CLASSES:
            raise ManifestError(f"{path}, video {count}: label {label} is beyond any number of classes")
        if classes and label >= len(classes):
            raise ManifestError(
                f"{path}, video {count}: label {label} is beyond the {len(classes)} of Diving48_vocab.json"
            )
        numbers.append(label)
        rows.append(Annotation(name, classes[label] if classes else str(label), f"video {count}"))
    return Annotations(rows, classes or [str(number) for number in range(max(numbers, default=-1) + 1)])


def _diving48_classes(vocabulary: Path) -> list[str]:
    if not vocabulary.is_file():
        return []
    parts = parse_json(read_text(vocabulary), vocabulary)
    if not isinstance(parts, list):
        raise ManifestError(f"{vocabulary}: needs a JSON list of the parts of each class")
    for number, part in enumerate(parts, start=1):
        words = [part] if isinstance(part, str) else part
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise ManifestError(f"{vocabulary}, class {number}: needs the parts of its name, not {str(part)[:80]!r}")
    return [part if isinstance(part, str) else " ".join(part) for part in parts]
