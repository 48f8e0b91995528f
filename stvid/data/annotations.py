"""Official annotations to a list of videos with class names.

Each reader gives (wanted file, label, start, end) for every annotated video and finds the file in the folder, so that
what is missing, and what lies there without an annotation, can be told.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stvid.data.manifest import VIDEO_EXTENSIONS, read_class_names, read_manifest
from stvid.errors import ConfigError, ManifestError, nearest
from stvid.files import write_table

__all__ = ["DATASETS", "Annotated", "convert", "write_list"]


@dataclass
class Annotated:
    """What an annotation file and a folder of videos give together.

    Attributes:
        rows: Path, label, start and end in seconds (None: the whole video) of each video that is there.
        missing: Names of annotated videos that are not there.
        unexpected: Files in the folder that no annotation names.
        class_names: All classes of the annotation, in their official order where there is one.
        repeated: Rows of the annotation that were there before, and were left out.
    """

    rows: list[tuple[str, str, float | None, float | None]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    repeated: int = 0


class _Videos:
    """The videos below a folder (or folders of images) by name without extension.

    A name is looked up as it is, then without regard to case: the split files of UCF101 write HandStandPushups where
    some copies have HandstandPushups.
    """

    def __init__(self, root: Path, *, frames: bool = False) -> None:
        self._found: dict[str, list[str]] = {}
        self._folded: dict[str, str] = {}
        self._unused: set[str] = set()
        visited: set[str] = set()  # links to folders are followed, but not in circles
        for folder, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders.sort()
            if frames:
                if any(name.lower().endswith((".jpg", ".jpeg", ".png")) for name in names):
                    self._add(os.path.basename(folder), folder)
                continue
            for name in sorted(names):
                stem, extension = os.path.splitext(name)
                if extension.lower() in VIDEO_EXTENSIONS and not name.startswith("."):
                    self._add(stem, os.path.join(folder, name))

    def _add(self, name: str, path: str) -> None:
        self._found.setdefault(name, []).append(path)
        self._folded.setdefault(name.casefold(), name)
        self._unused.add(path)

    def find(self, name: str, label: str = "") -> str | None:
        """Returns the path of a video; of several of this name that in a folder called like its class."""
        paths = self._found.get(name) or self._found.get(self._folded.get(name.casefold(), ""), [])
        if not paths:
            return None
        folders = (label, label.replace(" ", "_"))
        path = next((path for path in paths if os.path.basename(os.path.dirname(path)) in folders), paths[0])
        self._unused.discard(path)
        return path

    def unused(self) -> list[str]:
        """Returns the paths that were not asked for, sorted."""
        return sorted(self._unused)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not UTF-8 text") from error


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    return [(number, line.strip()) for number, line in enumerate(_text(path).splitlines(), start=1) if line.strip()]


def _match(wanted: Iterable[tuple[str, str]], videos: _Videos, names: Sequence[str] = ()) -> Annotated:
    out = Annotated()
    labels = set()
    for name, label in wanted:
        labels.add(label)
        path = videos.find(name, label)
        if path is None:
            out.missing.append(name)
        else:
            out.rows.append((path, label, None, None))
    out.unexpected = videos.unused()
    out.class_names = list(names) or sorted(label for label in labels if label)
    return out


def _kinetics(annotation: Path, root: Path) -> Annotated:
    """Kinetics-400, -600, -700: ``label,youtube_id,time_start,time_end,split``.

    Copies of the set lie in folders per class or flat, as ``<id>_<start>_<end>.mp4`` with six digits (the crawler of
    activitynet/ActivityNet and the copies of cvdfoundation), or as whole videos ``<id>.mp4``. Several rows may have one
    id and different times.
    """
    videos = _Videos(root)
    out = Annotated()
    table = csv.DictReader(io.StringIO(_text(annotation), newline=""), strict=True)
    for column in ("youtube_id", "time_start", "time_end"):
        if column not in (table.fieldnames or ()):
            raise ManifestError(f"{annotation}: is no CSV of Kinetics: it has no column {column}")
    try:
        rows = [(table.line_num, row) for row in table]
    except csv.Error as error:
        raise ManifestError(f"{annotation}, line {table.reader.line_num}: is not CSV ({error})") from error
    labels = set()
    for number, row in rows:
        where = f"{annotation}, line {number}"
        start, end = (_time(row[column], where, column) for column in ("time_start", "time_end"))
        identity, label = (row["youtube_id"] or "").strip(), (row.get("label") or "").strip()
        if not identity or end <= start:
            raise ManifestError(f"{where}: {'time_end is not after time_start' if identity else 'no youtube_id'}")
        labels.add(label)
        cut = f"{identity}_{round(start):06d}_{round(end):06d}"
        if (path := videos.find(cut, label)) is not None:
            out.rows.append((path, label, None, None))
        elif (path := videos.find(identity, label)) is not None:
            out.rows.append((path, label, start, end))
        else:
            out.missing.append(cut)
    out.class_names = sorted(label for label in labels if label)
    out.unexpected = videos.unused()
    return out


def _time(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ManifestError(f"{where}: {column} is {text!r}, not a number of seconds")
    return value


def _official_names(annotation: Path, *names: str) -> list[str]:
    """The classes in their official order, if their file lies beside the annotation."""
    for name in names:
        if (path := annotation.with_name(name)).is_file():
            return list(read_class_names(path))
    return []


def _ssv2(annotation: Path, root: Path) -> Annotated:
    """Something-Something v2: a JSON list of ``id`` and ``template``, whose brackets do not belong to the class.

    The test list has ids only; the answers to it (``test-answers.csv``) are lines ``id;label``. ``labels.json`` or
    ``something-something-v2-labels.json`` beside it has the official order of the classes.
    """
    names = _official_names(annotation, "something-something-v2-labels.json", "labels.json")
    if annotation.suffix.lower() == ".csv":
        return _match(_id_label_lines(annotation), _Videos(root), names)
    wanted = []
    for number, row in enumerate(_json_list(annotation), start=1):
        if not str(row.get("id", "")).strip():
            raise ManifestError(f"{annotation}, video {number}: has no id")
        label = str(row.get("template", row.get("label", "")))
        wanted.append((str(row["id"]).strip(), label.replace("[", "").replace("]", "").strip()))
    return _match(wanted, _Videos(root), names)


def _ssv1(annotation: Path, root: Path) -> Annotated:
    """Something-Something v1: lines ``id;label``; the videos are folders of JPEG images at 12 frames a second.

    ``something-something-v1-labels.csv`` beside it has the official order of the classes. `VideoReader` shows a folder
    of images at 25 frames a second; ``stvid prep transcode --frames_fps 12`` makes videos with the right times of them.
    """
    names = _official_names(annotation, "something-something-v1-labels.csv")
    return _match(_id_label_lines(annotation), _Videos(root, frames=True), names)


def _id_label_lines(annotation: Path) -> list[tuple[str, str]]:
    """Reads lines ``id;label``, or ``id`` alone in a test list."""
    wanted = []
    for number, line in _lines(annotation):
        name, _, label = line.partition(";")
        if not name.strip().isdigit():
            raise ManifestError(f"{annotation}, line {number}: needs 'id;label', as something-something-v1-train.csv")
        wanted.append((name.strip(), label.strip()))
    return wanted


def _json_list(annotation: Path) -> list[dict[str, object]]:
    try:
        rows = json.loads(_text(annotation))
    except ValueError as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{annotation}: is no JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{annotation}: needs a JSON list of tables")
    return rows


def _ucf101(annotation: Path, root: Path) -> Annotated:
    """UCF101: ``trainlist01.txt`` (``Class/v_Class_g01_c01.avi 1``) or ``testlist01.txt``, beside ``classInd.txt``."""
    names: list[str] = []
    listed = annotation.with_name("classInd.txt")
    if listed.is_file():
        for number, line in _lines(listed):
            if len(line.split()) != 2:
                raise ManifestError(f"{listed}, line {number}: needs '<number> <class>'")
            names.append(line.split()[1])
    spelled = {name.casefold(): name for name in names}
    wanted = []
    for number, line in _lines(annotation):
        file = line.split()[0]
        match = re.fullmatch(r"(?:([^/]+)/)?v_([^_/]+)_g\d+_c\d+\.\w+", file)
        if match is None:
            raise ManifestError(f"{annotation}, line {number}: {file!r} is not like Class/v_Class_g01_c01.avi")
        label = match[1] or match[2]
        if spelled and label.casefold() not in spelled:
            raise ManifestError(f"{annotation}, line {number}: {label} is no class of {listed}{nearest(label, names)}")
        wanted.append((Path(file).stem, spelled.get(label.casefold(), label)))
    out = _match(wanted, _Videos(root), names)
    out.unexpected = []  # the other split lies in the same folder
    return out


def _hmdb51(annotation: Path, root: Path, *, part: str = "train", split: int = 1) -> Annotated:
    """HMDB51: a folder of ``<class>_test_split<n>.txt``: ``file.avi 1`` (training), ``2`` (test) or ``0`` (unused)."""
    if not annotation.is_dir():
        raise ManifestError(f"{annotation}: for HMDB51 give the folder of the files <class>_test_split1.txt")
    lists = sorted(annotation.glob(f"*_test_split{split}.txt"))
    if not lists:
        raise ManifestError(f"{annotation}: holds no <class>_test_split{split}.txt")
    wanted, names = [], []
    for file in lists:
        label = file.stem.removesuffix(f"_test_split{split}")
        names.append(label)
        for number, line in _lines(file):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name.strip():
                raise ManifestError(f"{file}, line {number}: needs '<file>.avi' and 0, 1 or 2, not {line!r}")
            if use == {"train": "1", "test": "2"}[part]:
                wanted.append((os.path.splitext(name.strip())[0], label))
    out = _match(wanted, _Videos(root), names)
    out.unexpected = []
    return out


def _diving48(annotation: Path, root: Path) -> Annotated:
    """Diving48: a JSON list of ``vid_name``, ``label`` (a number), ``start_frame``, ``end_frame``.

    So are ``Diving48_train.json`` and the corrected ``Diving48_V2_train.json``. ``Diving48_vocab.json`` beside it names
    the classes (four parts of a dive, joined by spaces here). The frames are those of the cut videos, which are used
    whole.
    """
    rows = _json_list(annotation)
    vocabulary = annotation.with_name("Diving48_vocab.json")
    classes: list[str] = []
    if vocabulary.is_file():
        try:
            classes = [part if isinstance(part, str) else " ".join(part) for part in json.loads(_text(vocabulary))]
        except (ValueError, TypeError) as error:
            raise ManifestError(f"{vocabulary}: needs a JSON list of the parts of each class ({error})") from error
    wanted = []
    numbers = []
    for count, row in enumerate(rows, start=1):
        name, label = row.get("vid_name"), row.get("label")
        if not name or isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise ManifestError(f"{annotation}, video {count}: needs vid_name and label, a number from 0 up")
        if classes and label >= len(classes):
            raise ManifestError(
                f"{annotation}, video {count}: label {label} is beyond the {len(classes)} of {vocabulary}"
            )
        numbers.append(label)
        wanted.append((str(name), classes[label] if classes else str(label)))
    names = classes or [str(number) for number in range(max(numbers, default=-1) + 1)]
    return _match(wanted, _Videos(root), names)


def _folder(annotation: Path, root: Path) -> Annotated:
    """A folder per class."""
    manifest = read_manifest(annotation)
    out = Annotated(class_names=list(manifest.class_names))
    for number in range(len(manifest)):
        entry = manifest[number]
        out.rows.append((entry.path, entry.labels[0], None, None))
    return out


DATASETS: dict[str, Callable[..., Annotated]] = {
    "kinetics400": _kinetics,
    "kinetics600": _kinetics,
    "kinetics700": _kinetics,
    "ssv1": _ssv1,
    "ssv2": _ssv2,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "diving48": _diving48,
    "folder": _folder,
}
CLASSES = {
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "ssv1": 174,
    "ssv2": 174,
    "ucf101": 101,
    "hmdb51": 51,
    "diving48": 48,
}


def convert(dataset: str, annotation: Path, root: Path, *, part: str = "train", split: int = 1) -> Annotated:
    """Reads the official annotation of a data set and finds its videos.

    Args:
        dataset: One of `DATASETS`.
        annotation: The file (HMDB51: the folder of its split files; folder: the folder of class folders).
        root: The folder of the videos; they may lie in folders below it.
        part: ``train`` or ``test``; HMDB51 only, whose files hold both.
        split: 1, 2 or 3; HMDB51 only.

    Raises:
        ConfigError: If the data set is unknown.
        ManifestError: If the annotation cannot be read, or none of its videos is there.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"{dataset}: no such data set{nearest(dataset, DATASETS)} ({', '.join(DATASETS)})")
    for path in (annotation, root):
        if not path.exists():
            raise ManifestError(f"{path}: no such file or folder")
    extra = {"part": part, "split": split} if dataset == "hmdb51" else {}
    found = DATASETS[dataset](annotation, root, **extra)
    if not found.rows:
        example = f", such as {found.missing[0]}" if found.missing else ""
        raise ManifestError(f"{root}: holds none of the {len(found.missing)} videos of {annotation}{example}")
    _leave_out_repeated(found, annotation)
    return found


def _leave_out_repeated(found: Annotated, annotation: Path) -> None:
    labels: dict[tuple[str, float | None, float | None], str] = {}
    for path, label, start, end in found.rows:
        other = labels.setdefault((path, start, end), label)
        if other != label:
            raise ManifestError(f"{annotation}: gives {path} two labels, {other!r} and {label!r}")
    found.repeated = len(found.rows) - len(labels)
    found.rows = [(path, label, start, end) for (path, start, end), label in labels.items()]
    unlabelled = sum(not label for label in labels.values())
    if 0 < unlabelled < len(labels):
        path = next(path for (path, _, _), label in labels.items() if not label)
        raise ManifestError(f"{annotation}: {unlabelled} videos have no label, but others have; such as {path}")
    unknown = {label for label in labels.values() if label} - set(found.class_names)
    if unknown:
        label = min(unknown)
        raise ManifestError(f"{annotation}: {label!r} is not in the list of classes{nearest(label, found.class_names)}")


def _unwritable(video: str) -> bool:
    try:
        video.encode()
    except UnicodeEncodeError:
        return True
    return video != video.strip()


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
    rows = []
    for video, label, start, end in found.rows:
        video = os.path.abspath(video)
        if _unwritable(video):
            raise ManifestError(f"{video!r}: its name is not UTF-8 text or has an odd end; rename it")
        shown = os.path.relpath(video, base) if Path(video).is_relative_to(base) else video
        times = ["" if value is None else f"{value:g}" for value in (start, end)]
        rows.append([shown, *([label] if labelled else []), *(times if timed else [])])
    write_table(path, header, rows, errors="strict")
