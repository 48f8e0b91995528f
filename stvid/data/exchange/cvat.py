"""Exports of CVAT, version 1.1: ``CVAT for images`` of a task that is a video, and ``CVAT for video``.

CVAT has no labels of time. What comes nearest is a tag of a frame: neighbouring frames of one tag are a part of the
video. Without tags the times at which an object is to be seen are taken for parts of its label; where it is in the
picture is left out, and both is said. Frames are those of the video, counted from 0, so that their times come from the
video itself.

Facts from the documentation of the format (docs.cvat.ai, "XML annotation format") and CVAT's own exporter.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from xml.etree import ElementTree

from stvid.data.exchange.rows import Export, Item, label_of
from stvid.data.exchange.xml_files import parse_xml
from stvid.data.text_files import read_text
from stvid.data.video_folder import is_video
from stvid.errors import ManifestError

__all__ = ["read_cvat"]

_FRAME_NAME = re.compile(r"(?:.*/)?frame_(\d{1,9})(?:\.\w+)?")
_FRAME = re.compile(r"[0-9]{1,9}")
_SHAPES = {"box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton"}
_MEMBER = "annotations.xml"
_MOST_BYTES = 2**30

_Parts = dict[tuple[str, str], set[int]]
"""Frames by number of the task and label."""


def read_cvat(path: str) -> Export:
    """Reads the XML of an export of CVAT, or the ZIP that holds it.

    Raises:
        ManifestError: If it is none, is not of a video, or is damaged.
    """
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
