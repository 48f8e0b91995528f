"""Lists of videos as files of other programs: the way back from `stvid.data.exchange.formats`.

Each file reads again as the list that it was made of, as far as the format can say it: CVAT, FiftyOne and Label Studio
count frames, so that ends of parts move to the nearest frame.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stvid.data.exchange.cvat import check_cvat_folder, write_cvat
from stvid.data.exchange.fiftyone import check_folder, label_of_video, write_samples
from stvid.data.exchange.label_studio_tasks import LabelStudioProject, labelling_config, tasks_of
from stvid.data.exchange.labelled import LabelledVideo, labelled_videos, place_in
from stvid.data.exchange.tables import to_hub_dataset
from stvid.data.exchange.via import via_project
from stvid.data.table_rows import arrow_module
from stvid.data.video_table import Manifest
from stvid.errors import ConfigError, ManifestError, StvidError, nearest
from stvid.files import write_atomically, write_folder_atomically, write_texts

__all__ = ["FOLDERS", "WRITTEN", "write_labels"]

WRITTEN = ("label-studio", "cvat", "via", "fiftyone", "hugging-face", "parquet", "json")
"""The formats that lists are written in; a CSV is written by `stvid.data.conversion.write_list`."""
FOLDERS = ("cvat", "fiftyone", "hugging-face")
"""Those that are folders."""


def write_labels(
    manifest: Manifest, format: str, out: str | os.PathLike[str], *, served: str | None = None
) -> list[Path]:
    """Writes a list of videos for another program, whole or not at all.

    Args:
        manifest: The list, of files or addresses.
        format: One of `WRITTEN`.
        out: The file; for `FOLDERS` the folder.
        served: Folder that Label Studio serves files from (``LOCAL_FILES_DOCUMENT_ROOT``); None is the folder that is
            above all videos.

    Returns:
        The files that were written; beside the tasks for Label Studio lies the labelling configuration, ``NAME.xml``.

    Raises:
        ConfigError: If there is no such format, another folder is in the place, or a name cannot be written.
        ManifestError: If the videos are no files of their own.
        StvidError: If a file cannot be written, a video cannot be read, or a package is missing.
    """
    if format not in WRITTEN:
        raise ConfigError(f"{format}: no such format{nearest(format, WRITTEN)} ({', '.join(WRITTEN)})")
    place = Path(out)
    videos = labelled_videos(manifest)
    folder = os.path.dirname(place.absolute())
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if format in FOLDERS:
            _write_folder(manifest, videos, format, place)
            return [place]
        if format == "parquet":
            _write_parquet(_records(manifest, folder), place)
            return [place]
        texts = _texts(manifest, videos, format, place, served)
        write_texts(texts)
    except StvidError:
        raise  # that of a missing video is an OSError, too
    except OSError as error:
        raise StvidError(f"{place}: cannot be written ({error.strerror or error})") from error
    return [*texts]


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _has_several(manifest: Manifest) -> bool:
    """Tells whether a video may show several classes: one does, or one shows none although others show some."""
    counts = {len(manifest.label_ids(number)) for number in range(len(manifest))}
    return max(counts, default=0) > 1 or len(counts) > 1


def _texts(
    manifest: Manifest, videos: Sequence[LabelledVideo], format: str, place: Path, served: str | None
) -> dict[Path, str]:
    names, several = manifest.class_names, _has_several(manifest)
    folder = os.path.dirname(place.absolute())
    if format == "json":
        return {place: _json(_records(manifest, folder))}
    if format == "via":
        return {place: _json(via_project(videos, names, folder=folder, multilabel=several))}
    if place.suffix == ".xml":
        raise ConfigError(f"{place}: is where the labelling configuration would go; give a name with .json")
    project = LabelStudioProject(
        names,
        multilabel=several,
        timed=any(video.is_timed for video in videos),
        root=_above_all(videos) if served is None else served,
    )
    return {place: _json(tasks_of(videos, project)), place.with_suffix(".xml"): labelling_config(project)}


def _above_all(videos: Sequence[LabelledVideo]) -> str:
    folders = [os.path.dirname(os.path.abspath(video.path)) for video in videos if "://" not in video.path]
    return os.path.commonpath(folders) if folders else "."


def _write_folder(manifest: Manifest, videos: Sequence[LabelledVideo], format: str, place: Path) -> None:
    if format == "cvat":
        check_cvat_folder(place)
        write_cvat(videos, place, manifest.class_names)
        return
    if format == "fiftyone":
        check_folder(place)
        timed, several = any(video.is_timed for video in videos), _has_several(manifest)
        fields = [
            (video.path, {"ground_truth": label_of_video(video, timed=timed, multilabel=several)}) for video in videos
        ]
        write_samples(fields, place, manifest.class_names)
        return
    if place.exists():
        raise ConfigError(f"{place}: is there already; give another --out")
    dataset = to_hub_dataset(manifest)
    write_folder_atomically(place, lambda folder: dataset.save_to_disk(os.fspath(folder)))


def _records(manifest: Manifest, folder: str) -> list[dict[str, Any]]:
    """Returns the rows of a list as tables, for JSON and Parquet."""
    entries = [manifest[number] for number in range(len(manifest))]
    several = _has_several(manifest)
    timed = any(entry.start is not None or entry.end is not None for entry in entries)
    joined = next((name for name in manifest.used_classes if several and "|" in name), None)
    if joined is not None:
        raise ConfigError(f"class {joined!r} holds |, which joins labels where a video has several; rename it")
    rows = []
    for entry in entries:
        row: dict[str, Any] = {"path": place_in(folder, entry.path)}
        if manifest.has_labels:
            row["label"] = list(entry.labels) if several else entry.labels[0]
        if timed:
            row |= {"start": entry.start, "end": entry.end}
        rows.append(row)
    return rows


def _write_parquet(rows: Sequence[dict[str, Any]], place: Path) -> None:
    pyarrow = arrow_module("Parquet")
    try:
        table = pyarrow.Table.from_pylist(list(rows))
        write_atomically(place, lambda file: pyarrow.parquet.write_table(table, file))
    except (pyarrow.ArrowException, UnicodeEncodeError) as error:
        raise ManifestError(f"{place}: cannot be written ({' '.join(str(error).split())[:200]})") from error
