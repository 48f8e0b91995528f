"""Official annotation files that say when in a video something happens.

EPIC-KITCHENS-100, Charades, ActivityNet, HACS and FineGym annotate parts of long videos. Each reader gives a row for
each part, with its time in seconds from the beginning of the video, or, where the data set is also used so, a row for
each video with all of its classes. Rows whose times cannot be meant (the end is not after the start) are left out, and
a note says how many, since the published files have some.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from stvid.classes import class_list
from stvid.data.annotations import (
    Annotation,
    Annotations,
    official_names,
    parse_seconds,
    read_rows,
    video_name,
)
from stvid.data.text_files import parse_json, read_lines, read_text
from stvid.errors import ManifestError, nearest

__all__ = [
    "ROWS",
    "SUBSETS",
    "read_activitynet",
    "read_charades",
    "read_epic_actions",
    "read_epic_nouns",
    "read_epic_verbs",
    "read_gym",
    "read_hacs",
]

ROWS = ("videos", "segments")
"""The rows of a list: whole videos with all of their classes, or each annotated part."""

SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
"""Parts of a data set whose annotation is one file, and what ActivityNet and HACS call them."""


def _seconds(text: str, where: str) -> float:
    """Reads ``HH:MM:SS.ss``.

    Raises:
        ManifestError: If it is not such a time.
    """
    match = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)", text.strip())
    if match is None:
        raise ManifestError(f"{where} is {text[:40]!r}: a time such as 00:01:02.50 is needed")
    return round(3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]), 3)


def _time(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ManifestError(f"{where} is {str(value)[:40]!r}: a number of seconds is needed, 0 or more")
    return float(value)


def _in_order(rows: Iterable[Annotation], source: str | os.PathLike[str]) -> tuple[list[Annotation], tuple[str, ...]]:
    """Leaves out the rows that end before they begin, and says how many they are."""
    everything = list(rows)
    good = [row for row in everything if row.start is None or row.end is None or row.end > row.start]
    if len(good) == len(everything):
        return good, ()
    odd = next(row for row in everything if row.start is not None and row.end is not None and row.end <= row.start)
    return good, (
        f"{source}: left out, since their end is not after their start: {len(everything) - len(good)} parts, such as "
        f"{odd.video} from {odd.start:g} to {odd.end:g} s",
    )


def _class_at(text: str, names: list[str], where: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number < len(names):
        raise ManifestError(f"{where} is {text[:40]!r}: a number from 0 to {len(names) - 1} is needed")
    return number


_EPIC = {"verb": ("EPIC_100_verb_classes.csv", "epic_verbs"), "noun": ("EPIC_100_noun_classes.csv", "epic_nouns")}


def _epic_names(annotation: Path, kind: str) -> list[str]:
    file, packaged = _EPIC[kind]
    return official_names(annotation, file) or list(class_list(packaged))


def _read_epic(
    annotation: str | os.PathLike[str], kinds: tuple[str, ...], label: Callable[[tuple[int, ...]], str]
) -> Annotations:
    """Reads a CSV of EPIC-KITCHENS-100; `label` makes the label of the numbers of its classes."""
    path = Path(annotation)
    names = {kind: _epic_names(path, kind) for kind in kinds}
    needed = ("narration_id", "video_id", "start_timestamp", "stop_timestamp")
    rows = []
    for line, values in read_rows(path, needed):
        where = f"{path}, line {line}"
        video = video_name(values["video_id"], where, "video_id")
        start, end = (_seconds(values[f"{end}_timestamp"], f"{where}: {end}_timestamp") for end in ("start", "stop"))
        numbers = tuple(
            _class_at(values[f"{kind}_class"], names[kind], f"{where}: {kind}_class")
            for kind in kinds
            if f"{kind}_class" in values
        )
        text = label(numbers) if len(numbers) == len(kinds) else ""
        rows.append(Annotation(video, text, f"line {line}", values["narration_id"] or None, start, end))
    good, notes = _in_order(rows, path)
    return Annotations(good, next(iter(names.values())) if len(kinds) == 1 else [], notes=notes)


def read_epic_verbs(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads EPIC-KITCHENS-100 with the 97 classes of verbs as labels.

    The files are ``EPIC_100_train.csv``, ``EPIC_100_validation.csv`` and ``EPIC_100_test_timestamps.csv``, which has no
    labels. ``EPIC_100_verb_classes.csv`` beside them has the names; without it the packaged list is taken, which is
    equal (epic-kitchens/epic-kitchens-100-annotations at ea8b404). The videos are whole (``P01_01.MP4``), or cut and
    named by the ``narration_id``.
    """
    names = _epic_names(Path(annotation), "verb")
    return _read_epic(annotation, ("verb",), lambda numbers: names[numbers[0]])


def read_epic_nouns(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads EPIC-KITCHENS-100 with the 300 classes of nouns (the first noun of a narration) as labels.

    See `read_epic_verbs`; the names stand in ``EPIC_100_noun_classes.csv``.
    """
    names = _epic_names(Path(annotation), "noun")
    return _read_epic(annotation, ("noun",), lambda numbers: names[numbers[0]])


def read_epic_actions(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads EPIC-KITCHENS-100 with pairs of a verb and a noun as labels, such as ``take plate``.

    No official file lists the actions. The classes are the pairs that occur in ``EPIC_100_train.csv`` and
    ``EPIC_100_validation.csv``, ordered by the numbers of verb and noun; if both lie beside the annotation, each of
    them gives the same list.
    """
    path = Path(annotation)
    verbs, nouns = _epic_names(path, "verb"), _epic_names(path, "noun")
    pairs: set[tuple[int, ...]] = set()
    here = path.resolve()

    def collect(pair: tuple[int, ...]) -> str:
        pairs.add(pair)
        return ""

    for file in (path, path.with_name("EPIC_100_train.csv"), path.with_name("EPIC_100_validation.csv")):
        if file.is_file() and (file == path or file.resolve() != here):
            _read_epic(file, ("verb", "noun"), collect)

    def name(pair: tuple[int, ...]) -> str:
        return f"{verbs[pair[0]]} {nouns[pair[1]]}"

    found = _read_epic(path, ("verb", "noun"), name)
    found.class_names = list(dict.fromkeys(name(pair) for pair in sorted(pairs)))
    return found


def _coded_names(path: Path) -> dict[str, str]:
    """Reads ``Charades_v1_classes.txt``: lines ``c000 Holding some clothes``."""
    if not path.is_file():
        return {f"c{number:03d}": f"c{number:03d}" for number in range(157)}
    named = {}
    for number, line in read_lines(path):
        code, _, name = line.partition(" ")
        if re.fullmatch(r"c\d{3}", code) is None or not name.strip() or "|" in name:
            raise ManifestError(f"{path}, line {number}: needs a code and a name, as 'c000 Holding some clothes'")
        named[code] = name.strip()
    return distinct(named)


def distinct(named: Mapping[str, str]) -> dict[str, str]:
    """Returns names by their keys, with the key behind each name that several keys have."""
    names = list(named.values())
    return {key: f"{name} ({key})" if names.count(name) > 1 else name for key, name in named.items()}


def read_charades(annotation: str | os.PathLike[str], *, rows: str = "videos") -> Annotations:
    """Reads ``Charades_v1_train.csv`` or ``Charades_v1_test.csv``, with actions ``c092 11.90 21.20;c147 0.00 12.60``.

    ``Charades_v1_classes.txt`` beside it has the names of the 157 classes; without it the codes are the names.

    Args:
        annotation: The file.
        rows: ``videos`` for a row a video with all of its classes, joined by ``|`` (some videos have none), as results
            are published; ``segments`` for a row for each annotated time, with all classes of exactly that time.
    """
    path = Path(annotation)
    named = _coded_names(path.with_name("Charades_v1_classes.txt"))
    whole: list[Annotation] = []
    parts: list[Annotation] = []
    for line, values in read_rows(path, ("id", "actions")):
        where = f"{path}, line {line}"
        video = video_name(values["id"], where, "id")
        labels = []
        for action in filter(None, (text.strip() for text in values["actions"].split(";"))):
            code, *times = action.split()
            if code not in named or len(times) != 2:
                raise ManifestError(
                    f"{where}: {action[:60]!r} is not a class of Charades and two times{nearest(code, named)}"
                )
            start, end = (parse_seconds(time, f"{where}: the time of {code}") for time in times)
            labels.append(named[code])
            parts.append(Annotation(video, named[code], f"line {line}", None, start, end))
        whole.append(Annotation(video, "|".join(dict.fromkeys(labels)), f"line {line}"))
    good, notes = (whole, ()) if rows == "videos" else _in_order(parts, path)
    return Annotations(good, list(named.values()), notes=notes, multilabel=True)


def read_activitynet(annotation: str | os.PathLike[str], *, part: str = "train", rows: str = "segments") -> Annotations:
    """Reads ``activity_net.v1-3.min.json``, or ``HACS_segments_v1.1.1.json``, which has the same form.

    ``database`` holds for each video its subset and its annotations, each with ``label`` and ``segment`` (start and end
    in seconds). The test videos have none: they become rows without a label. The classes are all labels of the file in
    the order of their letters, which is the order of ActivityNet's own evaluation. Files may be called ``v_<id>``.

    Args:
        annotation: The file.
        part: ``train``, ``val`` or ``test``.
        rows: ``segments``, or ``videos`` for whole videos with all of their classes, joined by ``|``.
    """
    path = Path(annotation)
    content = parse_json(read_text(path), path)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not database:
        raise ManifestError(f"{path}: needs a table 'database' with an entry a video, as ActivityNet has it")
    names: set[str] = set()
    found: list[Annotation] = []
    for key, entry in database.items():
        where = f"{path}, video {key}"
        if not isinstance(entry, dict) or entry.get("subset") not in SUBSETS.values():
            raise ManifestError(f"{where}: its subset is none of {', '.join(SUBSETS.values())}")
        segments = [_segment(item, where) for item in entry.get("annotations") or []]
        names.update(label for label, _, _ in segments)
        if entry["subset"] != SUBSETS[part]:
            continue
        video = video_name(key, where, "id")
        if rows == "videos" or part == "test":
            label = "|".join(dict.fromkeys(label for label, _, _ in segments))
            found.append(Annotation(video, label, f"video {key}", also=f"v_{video}"))
        else:
            found += [
                Annotation(video, label, f"video {key}", None, start, end, f"v_{video}")
                for label, start, end in segments
            ]
    if not found:
        raise ManifestError(f"{path}: has no annotations of the subset {SUBSETS[part]!r}")
    good, notes = _in_order(found, path)
    return Annotations(good, sorted(names), notes=notes, multilabel=rows == "videos")


def _segment(item: Any, where: str) -> tuple[str, float, float]:
    label = item.get("label") if isinstance(item, dict) else None
    times = item.get("segment") if isinstance(item, dict) else None
    if not isinstance(label, str) or not label.strip() or not isinstance(times, list) or len(times) != 2:
        raise ManifestError(
            f"{where}: an annotation needs a label and a segment of two times, not {json.dumps(item)[:80]}"
        )
    start, end = (_time(value, f"{where}: a time of its segment") for value in times)
    return label.strip(), start, end


def read_hacs(annotation: str | os.PathLike[str], *, part: str = "train", rows: str = "segments") -> Annotations:
    """Reads HACS: ``HACS_segments_v1.1.1.json`` (see `read_activitynet`) or ``HACS_clips_v1.1.1.csv``.

    The clips are lines ``classname,youtube_id,subset,start,end,label`` of two seconds each. Those whose label is -1 do
    not show their class; they are left out, and counted in a note.

    Args:
        annotation: The file.
        part: ``train``, ``val`` or ``test``.
        rows: ``segments``; of the JSON also ``videos``.
    """
    path = Path(annotation)
    if path.suffix.lower() != ".csv":
        return read_activitynet(path, part=part, rows=rows)
    if rows != "segments":
        raise ManifestError(f"{path}: HACS Clips are parts of videos; for whole videos give HACS_segments_v1.1.1.json")
    names: set[str] = set()
    found: list[Annotation] = []
    negatives = 0
    columns = ("classname", "youtube_id", "subset", "start", "end", "label")
    for line, values in read_rows(path, columns):
        where = f"{path}, line {line}"
        if values["subset"] not in SUBSETS.values():
            raise ManifestError(f"{where}: subset {values['subset']!r} is none of {', '.join(SUBSETS.values())}")
        if not values["classname"] or values["label"] not in ("1", "-1", ""):
            raise ManifestError(f"{where}: needs a classname, and 1 or -1 as label")
        names.add(values["classname"])
        if values["subset"] != SUBSETS[part]:
            continue
        if values["label"] == "-1":
            negatives += 1
            continue
        video = video_name(values["youtube_id"], where, "youtube_id")
        start, end = (parse_seconds(values[key], f"{where}: {key}") for key in ("start", "end"))
        label = values["classname"] if values["label"] else ""
        found.append(Annotation(video, label, f"line {line}", None, start, end, f"v_{video}"))
    good, notes = _in_order(found, path)
    if negatives:
        notes += (f"{path}: left out, since they do not show their class (label -1): {negatives} clips",)
    return Annotations(good, sorted(names), notes=notes)


_ELEMENT = re.compile(r"(?P<video>.{11})_(?P<event>E_\d+_\d+)_(?P<element>A_\d+_\d+)")


def read_gym(annotation: str | os.PathLike[str]) -> Annotations:
    """Reads a list of Gym99 or Gym288 (FineGym): lines ``0LtLS9wROrk_E_002407_002435_A_0003_0005 78``.

    ``finegym_annotation_info_v1.1.json`` (or ``v1.0``) beside it has the exact times, of the event in the video and of
    the element in its event; with it whole videos ``<id>.mp4`` are found as well as cut elements. Without it, and for
    elements that it does not have, only files of the name in the list are found. ``gym99_categories.txt`` or
    ``gym288_categories.txt`` beside it has the names; those that occur twice get the number of their class.
    """
    path = Path(annotation)
    subset = re.match(r"gym(99|288)_", path.name)
    if subset is None:
        raise ManifestError(
            f"{path}: a list of FineGym begins with gym99_ or gym288_, which says what the numbers mean"
        )
    names = _gym_names(path.with_name(f"gym{subset[1]}_categories.txt"), int(subset[1]))
    version = re.search(r"_v1\.\d", path.name)
    versions = [version[0]] if version else ["_v1.1", "_v1.0"]
    files = (path.with_name(f"finegym_annotation_info{version}.json") for version in versions)
    source = next((file for file in files if file.is_file()), None)
    times = {} if source is None else parse_json(read_text(source), source)
    rows, without = [], 0
    for number, line in read_lines(path):
        element, _, label = line.partition(" ")
        match = _ELEMENT.fullmatch(element)
        if match is None:
            raise ManifestError(
                f"{path}, line {number}: {element[:80]!r} is not like 0LtLS9wROrk_E_002407_002435_A_0003_0005"
            )
        name = names[_class_at(label.strip(), names, f"{path}, line {number}: the number of its class")]
        span = None if source is None else _gym_times(times, match, f"{source}, {element}")
        if span is None:
            without += 1
            rows.append(Annotation(element, name, f"line {number}"))
        else:
            rows.append(Annotation(match["video"], name, f"line {number}", element, *span))
    good, notes = _in_order(rows, path)
    if without:
        notes += (
            f"{path}: without times, so that only cut videos are found: {without} of {len(rows)} elements "
            f"({source or 'no finegym_annotation_info beside it'})",
        )
    return Annotations(good, names, notes=notes)


def _gym_names(path: Path, count: int) -> list[str]:
    if not path.is_file():
        if count == 99:
            return list(distinct({f"class {n}": name for n, name in enumerate(class_list("gym99"))}).values())
        raise ManifestError(f"{path}: no such file; it names the {count} classes, and lies on FineGym's page")
    named: dict[str, str] = {}
    for number, line in read_lines(path):
        match = re.fullmatch(r"Clabel:\s*(\d+);\s*set:\s*\d+;\s*Glabel:\s*\d+;\s*(.+)", line)
        if match is None or int(match[1]) != len(named):
            raise ManifestError(f"{path}, line {number}: needs 'Clabel: {len(named)}; set: 1; Glabel: 1; name'")
        named[f"class {match[1]}"] = match[2].strip()
    return list(distinct(named).values())


def _gym_times(times: Any, match: re.Match[str], where: str) -> tuple[float, float] | None:
    """Returns start and end of an element in its video; None if the file of times does not have it.

    Raises:
        ManifestError: If the file has another form.
    """
    try:
        event = times.get(match["video"], {}).get(match["event"])
        element = None if event is None else (event["segments"] or {}).get(match["element"])
        if event is None or element is None:
            return None
        begin = _time(event["timestamps"][0][0], f"{where}: the start of its event")
        first, last = element["timestamps"][0][0], element["timestamps"][-1][1]
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ManifestError(f"{where}: has not the form of finegym_annotation_info_v1.1.json") from error
    start, end = (_time(value, f"{where}: a time of the element") for value in (first, last))
    return round(begin + start, 3), round(begin + end, 3)
