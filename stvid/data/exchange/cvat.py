"""Exports of CVAT, version 1.1: ``CVAT for images`` of a task that is a video, and ``CVAT for video``.

CVAT has no labels of time. What comes nearest is a tag of a frame: neighbouring frames of one tag are a part of the
video. Without tags the times at which an object is to be seen are taken for parts of its label; where it is in the
picture is left out, and both is said. Frames are those of the video, counted from 0, so that their times come from the
video itself.

Written is ``CVAT for images``, a file for each video, since a task of CVAT is one video: every frame of a part has a
tag with its label. CVAT has no place for predictions beside labels; their tags say ``source="auto"``.

Facts from the documentation of the format (docs.cvat.ai, "XML annotation format") and CVAT's own exporter and importer
(``cvat/apps/dataset_manager/formats/cvat.py``).
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from stvid.data.exchange.labelled import LabelledVideo, classes_of, frames_between, place_in
from stvid.data.exchange.rows import Export, Item, label_of
from stvid.data.exchange.xml_files import parse_xml
from stvid.data.text_files import read_text
from stvid.data.video_folder import is_video
from stvid.errors import ConfigError, ManifestError
from stvid.files import write_folder_atomically
from stvid.video.reader import VideoReader

__all__ = ["LABELS", "check_cvat_folder", "cvat_text", "is_cvat_folder", "read_cvat", "write_cvat"]

LABELS = "labels.json"
"""The labels of a project, as the raw form of CVAT's label constructor takes them."""

_FRAME_NAME = re.compile(r"(?:.*/)?frame_(\d{1,9})(?:\.\w+)?")
_FRAME = re.compile(r"[0-9]{1,9}")
_SHAPES = {"box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton"}
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_MEMBER = "annotations.xml"
_MOST_BYTES = 2**30

_Parts = dict[tuple[str, str], set[int]]
"""Frames by number of the task and label."""


def is_cvat_folder(folder: str) -> bool:
    """Tells whether a folder is one that `write_cvat` has written: a file for each video, and the labels."""
    names = os.listdir(folder)
    return LABELS in names and len(names) > 1 and all(name == LABELS or name.endswith(".xml") for name in names)


def read_cvat(path: str) -> Export:
    """Reads the XML of an export of CVAT, the ZIP that holds it, or a folder of such XML, one for each video.

    Raises:
        ManifestError: If it is none, is not of a video, or is damaged.
    """
    if not os.path.isdir(path):
        return _read_file(path)
    names = sorted(name for name in os.listdir(path) if name.endswith((".xml", ".zip")))
    if not names:
        raise ManifestError(f"{path}: holds no XML of CVAT, a file for each video")
    export = Export()
    for name in names:
        found = _read_file(os.path.join(path, name))
        export.items += [replace(item, where=f"{name}, {item.where}") for item in found.items]
        export.left_out.update(found.left_out)
        export.remarks += [remark for remark in found.remarks if remark not in export.remarks]
    return export


def _read_file(path: str) -> Export:
    root = parse_xml(_text_of(path), path)
    if root.tag != "annotations":
        raise ManifestError(f"{path}: is XML, but no export of CVAT, which begins with <annotations>")
    export = Export()
    videos, steps = _videos(root, path)
    tags = _tags(root, steps, path)
    tracks = _tracks(root, steps, path)
    shapes = sum(shape.tag in _SHAPES for image in root.iter("image") for shape in image)
    if shapes:
        export.left_out["shapes in single frames"] += shapes
    count = sum(1 for _ in root.iter("track"))
    parts = tags or tracks
    if tags and count:
        export.left_out["tracks of objects, since there are tags"] += count
    elif tracks:
        export.left_out["places of objects in the pictures"] += count
        export.remarks.append(
            "has no tags: the times at which an object is to be seen are taken for parts that show its label"
        )
    for (task, label), frames in parts.items():
        if task not in videos:
            raise ManifestError(f"{path}: label {label!r} belongs to task {task!r}, which names no video")
        step = steps.get(task, 1)
        for first, last in _runs(sorted(frames), step):
            where = f"label {label!r}, frames {first} to {last}"
            export.items.append(Item(videos[task], (label,), where, frames=(first, last), spare=step - 1))
    labelled = {task for task, _ in parts}
    export.items += [Item(name, (), f"task {task}") for task, name in videos.items() if task not in labelled]
    return export


def _text_of(path: str) -> str:
    if not zipfile.is_zipfile(path):
        return read_text(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if info.filename.split("/")[-1] == _MEMBER]
            if len(names) != 1:
                raise ManifestError(f"{path}: holds {len(names) or 'no'} {_MEMBER}, of which one is needed")
            if names[0].file_size > _MOST_BYTES:
                raise ManifestError(f"{path}: its {_MEMBER} would take {names[0].file_size} bytes; unpack it first")
            return archive.read(names[0]).decode("utf-8")
    except ManifestError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ManifestError(f"{path}: cannot be unpacked ({error})") from error


def _videos(root: ElementTree.Element, path: str) -> tuple[dict[str, str], dict[str, int]]:
    """Returns the video and the step between frames of each task, by its number; one task alone is "" as well."""
    tasks = root.findall("./meta/task") or root.findall("./meta/job") or root.findall("./meta/project/tasks/task")
    videos, steps = {}, {}
    for number, task in enumerate(tasks):
        name = (task.findtext("source") or "").strip()
        if not is_video(name):
            continue
        known = (task.findtext("id") or str(number)).strip()
        found = re.search(r"step=(\d{1,6})", task.findtext("frame_filter") or "")
        videos[known], steps[known] = name, max(int(found[1]), 1) if found else 1
    if not videos:
        source = (root.findtext("./meta/source") or "").strip()
        if not is_video(source):
            raise ManifestError(f"{path}: is not of a video: no <source> of a task names one")
        videos, steps = {"": source}, {"": 1}
    if len(videos) == 1 and len(tasks) <= 1:
        return {"": next(iter(videos.values()))}, {"": next(iter(steps.values()))}
    return videos, steps


def _task_of(element: ElementTree.Element, tasks: dict[str, int]) -> str:
    return "" if "" in tasks else element.get("task_id", "")


def _frame(value: str | None, where: str) -> int:
    if value is None or not _FRAME.fullmatch(value):
        raise ManifestError(f"{where}: {str(value)[:40]!r} is no number of a frame")
    return int(value)


def _tags(root: ElementTree.Element, steps: dict[str, int], path: str) -> _Parts:
    parts: _Parts = {}
    for image in root.iter("image"):
        tags = image.findall("tag")
        if not tags:
            continue
        name = image.get("name", "")
        named = _FRAME_NAME.fullmatch(name)
        frame = int(named[1]) if named else _frame(image.get("id"), f"{path}: image {name[:80]!r}: id")
        for tag in tags:
            label = label_of(tag.get("label"), f"{path}: image {name[:80]!r}: the label of a tag")
            parts.setdefault((_task_of(image, steps), label), set()).add(frame)
    for tag in root.findall("tag"):
        label = label_of(tag.get("label"), f"{path}: the label of a tag")
        frame = _frame(tag.get("frame"), f"{path}: tag {label!r}")
        parts.setdefault((_task_of(tag, steps), label), set()).add(frame)
    return parts


def _tracks(root: ElementTree.Element, steps: dict[str, int], path: str) -> _Parts:
    parts: _Parts = {}
    for track in root.iter("track"):
        label = label_of(track.get("label"), f"{path}: the label of a track")
        where = f"{path}: track {track.get('id')} ({label!r})"
        shown = {
            _frame(shape.get("frame"), where)
            for shape in track
            if shape.tag in _SHAPES and shape.get("outside", "0") != "1"
        }
        if shown:
            parts.setdefault((_task_of(track, steps), label), set()).update(shown)
    return parts


def _runs(frames: list[int], step: int) -> Iterator[tuple[int, int]]:
    """Yields first and last frame of neighbours; each frame stands for those up to the next that was labelled."""
    first = last = frames[0]
    for frame in frames[1:]:
        if frame > last + step:
            yield first, last + step - 1
            first = frame
        last = frame
    yield first, last + step - 1


# --- writing ----------------------------------------------------------------------------------------------------------


def _sub(parent: ElementTree.Element, tag: str, text: object = None, **attributes: object) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})
    element.text = None if text is None else str(text)
    return element


def cvat_text(video: LabelledVideo, class_names: Sequence[str], *, folder: str | os.PathLike[str] | None) -> str:
    """Returns the XML of CVAT for one video: a tag with each label on every frame of its part.

    Args:
        video: The video and its labels. Parts of one label that touch are one part in CVAT.
        class_names: All classes, which become the labels of the task.
        folder: Folder of the file, to which a path below it is written relative.

    Raises:
        ConfigError: If it is no video file, or a name holds what XML cannot.
        VideoError: If its frames cannot be read.
    """
    if not is_video(video.path):
        raise ConfigError(f"{video.path}: is no video file, of which CVAT makes a task")
    with VideoReader(video.path) as reader:
        times = np.asarray(reader.timestamps, np.float64) - reader.timestamps[0]
        height, width = reader.height, reader.width
    tags: dict[int, dict[str, str]] = {}
    for part in video.parts:
        first, last = frames_between(times, part.start, part.end)
        source = "manual" if part.confidence is None else "auto"
        for frame in range(first, last + 1) if part.labels else ():
            tags.setdefault(frame, {}).update(dict.fromkeys(part.labels, source))
    root = ElementTree.Element("annotations")
    _sub(root, "version", "1.1")
    name = place_in(folder, video.path)
    task = _sub(_sub(root, "meta"), "task")
    last_frame = len(times) - 1
    about = {"name": Path(name).stem, "size": len(times), "mode": "interpolation", "start_frame": 0}
    for key, value in {**about, "stop_frame": last_frame, "frame_filter": ""}.items():
        _sub(task, key, value)
    labels = _sub(task, "labels")
    for label in classes_of([video], class_names):
        _sub(_sub(labels, "label"), "name", label)
    size = _sub(task, "original_size")
    _sub(size, "width", width)
    _sub(size, "height", height)
    _sub(task, "source", name)
    for frame in sorted(tags):
        image = _sub(root, "image", id=frame, name=f"frame_{frame:06d}", width=width, height=height)
        for label, source in tags[frame].items():
            _sub(image, "tag", label=label, source=source)
    _check_letters(root, video.path)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _check_letters(root: ElementTree.Element, path: str) -> None:
    for element in root.iter():
        for text in (element.text, *element.attrib.values()):
            if text and _NOT_IN_XML.search(text):
                raise ConfigError(f"{path}: {text[:80]!r} holds a character that XML cannot; rename it")


def check_cvat_folder(folder: Path) -> None:
    """Raises ConfigError if something is in the place of a folder that `write_cvat` has not written."""
    if folder.exists() and not (folder.is_dir() and (not os.listdir(folder) or is_cvat_folder(str(folder)))):
        raise ConfigError(f"{folder}: is there already and is no folder of CVAT by stvid; give another --out")


def write_cvat(videos: Sequence[LabelledVideo], folder: Path, class_names: Sequence[str]) -> None:
    """Writes a folder for CVAT: ``NAME.xml`` for each video, and the labels of the project.

    Args:
        videos: The videos and their labels.
        folder: The folder; one that was written so before is replaced.
        class_names: All classes.

    Raises:
        ConfigError: If there is another folder or file of that name, or a name cannot be written.
        VideoError: If the frames of a video cannot be read.
        OSError: If it cannot be written.
    """
    check_cvat_folder(folder)
    names = classes_of(videos, class_names)
    project: list[dict[str, Any]] = [{"name": name, "type": "tag", "attributes": []} for name in names]
    contents = {LABELS: json.dumps(project, indent=1, ensure_ascii=False) + "\n"}
    for video in videos:
        stem = re.split(r"[/\\]", video.path)[-1].rpartition(".")[0] or "video"
        free = (f"{stem}{number}.xml" for number in ("", *(f"_{count}" for count in range(2, len(videos) + 2))))
        contents[next(name for name in free if name not in contents)] = cvat_text(video, names, folder=folder)

    def write(place: Path) -> None:
        for name, text in contents.items():
            (place / name).write_text(text, encoding="utf-8")

    write_folder_atomically(folder, write, replace=True)
