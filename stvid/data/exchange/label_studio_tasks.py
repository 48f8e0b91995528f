"""Tasks of Label Studio and the labelling configuration that they fit, from labels or predictions.

Labels become annotations, predictions stay apart from them. Ranges count frames from 1 on by the frame rate that stands
in each task's data, which the configuration names (``frameRate="$fps"``).

Facts: labelstud.io/guide/predictions, labelstud.io/tags/timelinelabels and the types of label-studio-sdk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from stvid.data.exchange.labelled import LabelledVideo, frame_times
from stvid.errors import ConfigError

__all__ = ["LabelStudioProject", "labelling_config", "served_from", "tasks_of"]


@dataclass(frozen=True)
class LabelStudioProject:
    """Settings of a project of Label Studio.

    Attributes:
        class_names: All classes.
        multilabel: Whether a video may show several of them.
        timed: Whether parts of videos are labelled (``TimelineLabels``), or whole videos (``Choices``).
        root: Folder that Label Studio serves files from (``LOCAL_FILES_DOCUMENT_ROOT``).
        from_name: Name of the control; None is ``timeline`` or ``choice``.
        to_name: Name of the video.
    """

    class_names: tuple[str, ...]
    multilabel: bool = False
    timed: bool = False
    root: str = "."
    from_name: str | None = None
    to_name: str = "video"

    @property
    def control(self) -> str:
        """Name of the control."""
        return self.from_name or ("timeline" if self.timed else "choice")


def labelling_config(project: LabelStudioProject) -> str:
    """Returns the labelling configuration: XML for the settings of a project of Label Studio."""
    name, video = quoteattr(project.control), quoteattr(project.to_name)
    lines = ["<View>", f'  <Video name={video} value="$video" frameRate="$fps"/>']
    if project.timed:
        lines.append(f"  <TimelineLabels name={name} toName={video}>")
        lines += [f"    <Label value={quoteattr(label)}/>" for label in project.class_names]
        lines.append("  </TimelineLabels>")
    else:
        choice = "multiple" if project.multilabel else "single"
        lines.append(f'  <Choices name={name} toName={video} choice="{choice}" showInline="true">')
        lines += [f"    <Choice value={quoteattr(label)}/>" for label in project.class_names]
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>", ""])


def served_from(path: str, root: str) -> str:
    """Returns the address by which Label Studio serves a file from its document root.

    Raises:
        ConfigError: If the file is not below it.
    """
    if "://" in path:
        return path
    below = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if below.split(os.sep)[0] == os.pardir:
        raise ConfigError(f"{path}: is not below the root {root}, from which Label Studio would serve it; see --root")
    return f"/data/local-files/?d={quote(below)}"


def tasks_of(
    videos: Sequence[LabelledVideo], project: LabelStudioProject, *, model_version: str | None = None
) -> list[dict[str, Any]]:
    """Returns tasks, as Label Studio imports them.

    Args:
        videos: The videos with their labels.
        project: Settings of the project.
        model_version: Name of the network whose predictions the labels are; None if people gave them.

    Raises:
        ConfigError: If a video is not below the root.
        StvidError: If the frame rate of a video cannot be read.
    """
    tasks = []
    labelled = any(part.labels for video in videos for part in video.parts)
    for video in videos:
        times, duration = frame_times(video.path)
        fps = len(times) / duration
        task: dict[str, Any] = {"data": {"video": served_from(video.path, project.root), "fps": round(fps, 6)}}
        results = list(_results(video, project, fps, duration))
        if model_version is not None:
            sure = [part.confidence or 0.0 for part in video.parts]
            score = round(float(np.mean(sure)), 6) if sure else 0.0
            task["predictions"] = [{"model_version": model_version, "score": score, "result": results}]
        elif labelled:
            task["annotations"] = [{"result": results}]
        tasks.append(task)
    return tasks


def _results(
    video: LabelledVideo, project: LabelStudioProject, fps: float, duration: float
) -> Iterator[dict[str, Any]]:
    for number, part in enumerate(video.parts):
        if not part.labels:
            continue
        key = hashlib.sha256(f"{video.path} {number}".encode("utf-8", "surrogateescape")).hexdigest()[:10]
        result: dict[str, Any] = {"id": key, "from_name": project.control, "to_name": project.to_name}
        if part.confidence is not None:
            result["score"] = round(part.confidence, 6)
        if project.timed:
            first = round((part.start or 0.0) * fps) + 1
            last = max(first, round((duration if part.end is None else part.end) * fps))
            value: dict[str, Any] = {"ranges": [{"start": first, "end": last}], "timelinelabels": [*part.labels]}
            yield {**result, "type": "timelinelabels", "value": value}
        else:
            yield {**result, "type": "choices", "value": {"choices": [*part.labels]}}
