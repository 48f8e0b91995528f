"""Projects and CSV exports of VIA 3, the annotator of the Visual Geometry Group.

A segment of time is a row of ``metadata`` whose ``z`` are its two ends in seconds and whose ``xy`` is empty; what it
shows stands in ``av`` by the number of an attribute: the text itself, or the number of an option (several joined by
commas for check boxes). A row without ``z`` and ``xy`` speaks of the whole file. Regions in pictures are left out.

Written is a project. Attributes are lists of options, since VIA shows segments of time in a row for each option;
several labels of a part are several segments, and several labels of a whole file are check boxes. VIA has no place for
predictions beside labels.

Facts from VIA's own code (``_via_data.js``, ``_via_attribute.js``, ``_via_import_export.js`` of via-3.x.y).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from stvid.data.exchange.labelled import LabelledVideo, classes_of, frame_times, place_in
from stvid.data.exchange.rows import Export, Item, chosen_field, label_of, list_of, number_of, table_of, text_of
from stvid.data.text_files import Table, parse_json, parse_table
from stvid.data.video_folder import is_video
from stvid.errors import ConfigError, ManifestError

__all__ = ["is_via", "is_via_csv", "read_via", "read_via_csv", "via_project"]

_CHECKBOX, _SELECT = 2, 4  # _VIA_ATTRIBUTE_TYPE
_VIDEO = 4  # _VIA_FILE_TYPE
_ADDRESS, _FILE = 2, 3  # _VIA_FILE_LOC: URIHTTP and URIFILE
_ATTRIBUTE = "label"
_LOOKS = {
    "file_content_align": "center",
    "file_metadata_editor_visible": True,
    "spatial_metadata_editor_visible": False,
    "temporal_segment_metadata_editor_visible": True,
    "spatial_region_label_attribute_id": "",
    "gtimeline_visible_row_count": "4",
}
_UNSET = ("", "_DEFAULT")
_HEADER = "# CSV_HEADER ="


def is_via(content: Any) -> bool:
    """Tells whether the value of a JSON file is a project of VIA."""
    return isinstance(content, dict) and ({"metadata", "file", "view"} <= {*content} or "_via_img_metadata" in content)


def is_via_csv(text: str) -> bool:
    """Tells whether a text is a CSV that VIA exported."""
    return any(line.lstrip('"').startswith(_HEADER) for line in text.splitlines()[:50] if line[:2] in ("# ", '"#'))


def read_via(content: dict[str, Any], source: str, *, field: str | None = None) -> Export:
    """Reads a project of VIA 3.

    Args:
        content: The value of the JSON.
        source: The file, for messages.
        field: Name of the attribute whose values are the labels; needed if several have values.

    Raises:
        ManifestError: If it is none, or damaged; the message names the row.
    """
    if "_via_img_metadata" in content:
        raise ManifestError(f"{source}: is a project of VIA 2, which knows pictures only; videos are labelled in VIA 3")
    files = table_of(content.get("file"), f"{source}: file")
    views = table_of(content.get("view"), f"{source}: view")
    videos: dict[str, tuple[str, ...]] = {}
    export = Export()
    for view, value in views.items():
        where = f"{source}: view {view!r}"
        shown = [str(number) for number in list_of(table_of(value, where).get("fid_list"), f"{where}: fid_list")]
        if len(shown) > 1:
            export.left_out["second files of a view"] += len(shown) - 1
        if shown:
            if shown[0] not in files:
                raise ManifestError(f"{where}: shows file {shown[0]!r}, which the project does not have")
            videos[str(view)] = _names_of(table_of(files[shown[0]], f"{source}: file {shown[0]!r}"), source)
    rows = []
    for key, value in table_of(content.get("metadata"), f"{source}: metadata").items():
        row = table_of(value, f"{source}: metadata {key!r}")
        view = str(row.get("vid"))
        if view not in videos:
            raise ManifestError(f"{source}: metadata {key!r} is of view {view[:40]!r}, which the project does not have")
        rows.append((f"metadata {key!r}", videos[view], row.get("z"), row.get("xy"), row.get("av")))
    _add(export, rows, _attributes(content.get("attribute"), source), source, field)
    spoken = {item.video for item in export.items}
    export.items += [
        Item(names[0], (), f"view {view!r}", also=names[1:]) for view, names in videos.items() if names[0] not in spoken
    ]
    return export


def read_via_csv(text: str, source: str, *, field: str | None = None) -> Export:
    """Reads a CSV that VIA 3 exported.

    Args:
        text: Its content.
        source: The file, for messages.
        field: Name of the attribute whose values are the labels; needed if several have values.

    Raises:
        ManifestError: If it is damaged; the message names the line.
    """
    attributes: Any = {}
    header: list[str] = []
    lines = text.splitlines()
    for line in (line.strip().strip('"') for line in lines if line.lstrip('"').startswith("#")):
        name, _, value = line.lstrip("# ").partition(" = ")
        if name in ("ATTRIBUTE", "ATTRIBUTES"):
            attributes = parse_json(value.replace('""', '"'), f"{source}: ATTRIBUTE")
        elif name == "CSV_HEADER":
            header = [cell.strip() for cell in value.split(",") if cell.strip()]
    if not {"file_list", "metadata"} <= {*header}:
        raise ManifestError(f"{source}: its CSV_HEADER ({','.join(header)[:200]}) has no file_list and metadata")
    body = "\n".join("" if line.lstrip('"').startswith("#") else line for line in lines)
    if not body.strip():
        raise ManifestError(f"{source}: has a header but no rows")
    export = Export()
    _add(
        export,
        _rows_of(parse_table(body, source), header, source, export),
        _attributes(attributes, source),
        source,
        field,
    )
    return export


_Line = tuple[str, tuple[str, ...], Any, Any, Any]
"""Place in the file; names of the video; times, shape and values."""


def _rows_of(table: Table, header: list[str], source: str, export: Export) -> Iterator[_Line]:
    for line, cells in table:
        where = f"line {line}"
        if len(cells) < len(header):
            raise ManifestError(f"{source}, {where}: has {len(cells)} columns, not {len(header)} ({','.join(header)})")
        row = dict(zip(header, cells, strict=False))
        files = list_of(parse_json(row["file_list"], f"{source}, {where}: file_list"), f"{source}, {where}: file_list")
        if not files:
            raise ManifestError(f"{source}, {where}: file_list is empty")
        if len(files) > 1:
            export.left_out["second files of a view"] += len(files) - 1
        times = row.get("temporal_coordinates")
        if times is None:  # VIA 3.0.1
            times = f"[{row.get('temporal_segment_start', '')},{row.get('temporal_segment_end', '')}]"
            times = "[]" if times == "[,]" else times
        values = [
            parse_json(text or "[]", f"{source}, {where}: {name}")
            for name, text in (
                ("temporal_coordinates", times),
                ("spatial_coordinates", row.get("spatial_coordinates", "[]")),
                ("metadata", row["metadata"]),
            )
        ]
        yield where, (text_of(files[0], f"{source}, {where}: file_list"),), *values


def _names_of(file: dict[str, Any], source: str) -> tuple[str, ...]:
    """Returns the name of a file of a project, and others under which it may lie."""
    name = text_of(file.get("fname"), f"{source}: fname of file {file.get('fid')}")
    address = file.get("src")
    if isinstance(address, str) and address.strip() and not address.startswith(("blob:", "data:")):
        return text_of(address, f"{source}: src of file {file.get('fid')}"), name
    return (name,)


def _attributes(value: Any, source: str) -> dict[str, dict[str, Any]]:
    found = {}
    for number, about in table_of(value, f"{source}: attribute").items():
        found[str(number)] = about if isinstance(about, dict) else {"aname": about}
    return found


def _add(export: Export, rows: Any, attributes: dict[str, dict[str, Any]], source: str, field: str | None) -> None:
    """Adds the labels of rows, and counts the rows that are regions or of pictures and sound."""
    usable: list[tuple[_Line, list[float], dict[str, Any]]] = []
    for line in rows:
        where, names, times, shape, given = line
        if list_of(shape, f"{source}, {where}: xy"):
            export.left_out["regions in pictures"] += 1
            continue
        ends = [number_of(end, f"{source}, {where}: z") for end in list_of(times, f"{source}, {where}: z")]
        if len(ends) not in (0, 2):
            export.left_out["single moments" if len(ends) == 1 else "other times"] += 1
        elif not is_video(names[-1]):
            export.left_out["rows of files that are no videos"] += 1
        else:
            usable.append((line, ends, table_of(given, f"{source}, {where}: av")))
    used = (
        str(attributes.get(str(number), {}).get("aname", number))
        for _, _, values in usable
        for number, value in values.items()
        if value not in _UNSET
    )
    chosen = chosen_field(used, field, source, "attribute")
    for (where, names, *_), ends, values in usable:
        labels: list[str] = []
        for number, value in values.items():
            about = attributes.get(str(number), {"aname": number})
            if str(about.get("aname", number)) == chosen and value not in _UNSET:
                labels += _labels(value, about, f"{source}, {where}: value of {chosen!r}")
        start, end = ends or (None, None)
        export.items.append(Item(names[0], tuple(dict.fromkeys(labels)), where, start, end, also=names[1:]))


def _labels(value: Any, attribute: dict[str, Any], where: str) -> list[str]:
    options = attribute.get("options")
    options = options if isinstance(options, dict) else {}
    text = label_of(value, where)
    if attribute.get("type") == _CHECKBOX:
        return [label_of(options.get(part, part), where) for part in text.split(",") if part.strip()]
    return [label_of(options.get(text, text), where)]


# --- writing ----------------------------------------------------------------------------------------------------------


def via_project(
    videos: Sequence[LabelledVideo],
    class_names: Sequence[str],
    *,
    folder: str | os.PathLike[str] | None,
    multilabel: bool = False,
) -> dict[str, Any]:
    """Returns a project of VIA 3: the value of its JSON.

    Args:
        videos: The videos and their labels.
        class_names: All classes, which become the options.
        folder: Folder of the file, to which paths below it are written relative; VIA's page then has to lie there.
        multilabel: Whether a whole video may show several classes: they are check boxes then.

    Raises:
        ConfigError: If it is no video file.
        VideoError: If the end of a part is not given and the video cannot be read.
    """
    names = classes_of(videos, class_names)
    number = {name: str(place) for place, name in enumerate(names)}
    timed = any(video.is_timed for video in videos)
    whole = any(part.is_whole for video in videos for part in video.parts) or not timed
    several = multilabel or any(part.is_whole and len(part.labels) > 1 for video in videos for part in video.parts)
    options = {place: name for name, place in number.items()}
    attributes = {}
    if whole:
        attributes["1"] = _attribute("FILE1_Z0_XY0", _CHECKBOX if several else _SELECT, options)
    if timed:
        attributes["2"] = _attribute("FILE1_Z2_XY0", _SELECT, options)
    files: dict[str, Any] = {}
    views: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for count, video in enumerate(videos, start=1):
        if not is_video(video.path):
            raise ConfigError(f"{video.path}: is no video file, which VIA needs")
        key = str(count)
        place = place_in(folder, video.path)
        kind = _ADDRESS if "://" in place else _FILE
        name = place.replace("\\", "/").split("/")[-1]
        files[key] = {"fid": key, "fname": name, "type": _VIDEO, "loc": kind, "src": place}
        views[key] = {"fid_list": [key]}
        for row in _rows_for(video, number):
            rows[f"{key}_{len(rows) + 1:06d}"] = {"vid": key, "flg": 0, "xy": [], **row}
    about = {
        "pid": "__VIA_PROJECT_ID__",
        "rev": "__VIA_PROJECT_REV_ID__",
        "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
    }
    about |= {"pname": "stvid", "creator": "stvid", "data_format_version": "3.1.1"}
    prefixes = dict.fromkeys("1234", "")
    return {
        "project": {**about, "created": 0, "vid_list": [*views]},
        "config": {"file": {"loc_prefix": prefixes}, "ui": _LOOKS},
        "attribute": attributes,
        "file": files,
        "metadata": rows,
        "view": views,
    }


def _attribute(anchor: str, kind: int, options: dict[str, str]) -> dict[str, Any]:
    shown = {"aname": _ATTRIBUTE, "anchor_id": anchor, "type": kind, "desc": ""}
    return {**shown, "options": options, "default_option_id": ""}


def _rows_for(video: LabelledVideo, number: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yields times and values of the rows of a video."""
    for part in video.parts:
        chosen = [number[label] for label in part.labels]
        if not chosen:
            continue
        if part.is_whole:
            yield {"z": [], "av": {"1": ",".join(chosen)}}
            continue
        end = frame_times(video.path)[1] if part.end is None else part.end
        for one in chosen:
            yield {"z": [round(part.start or 0.0, 6), round(end, 6)], "av": {"2": one}}
