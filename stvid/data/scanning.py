"""Checks of the videos of a list: unreadable, damaged, short, of another length than annotated, or there twice."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stvid.data.jobs import Outcome
from stvid.files import TEMPORARY
from stvid.video.reader import VideoReader, scan
from stvid.video.remote import is_url
from stvid.video.stored_index import pack_index

__all__ = ["examine", "expected_seconds", "findings", "index_video"]

# A clip that was cut at key frames may be this much longer or shorter than its annotation says.
TOLERANCE = 1.0


def examine(path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reads a video: its packets, and its first, middle and last frame, or all frames with ``full``.

    Returns:
        ``frames``, ``fps``, ``seconds``, ``width``, ``height``, ``bad_packets``, ``method``, ``sha256`` and ``bytes``.

    Raises:
        VideoError: If it cannot be read.
    """
    with VideoReader(path) as reader:
        count = len(reader)
        step = 32
        wanted = range(count) if options["full"] else sorted({0, count // 2, count - 1})
        for first in range(0, len(wanted), step):  # a bounded number of frames in memory
            reader.get_batch(list(wanted[first : first + step]))
        facts = {
            "frames": len(reader),
            "fps": round(reader.fps, 3),
            "seconds": round(reader.duration, 3),
            "width": reader.width,
            "height": reader.height,
            "bad_packets": reader.bad_packets,
            "method": reader.index_method,
        }
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return {**facts, "sha256": digest.hexdigest(), "bytes": os.path.getsize(path)}


def index_video(path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scans a video once; its index is kept in a file of the job's folder, packed.

    Returns:
        ``file``: its name; ``bytes``: the size of the video; 0 of one at a URL.

    Raises:
        VideoError: If it cannot be read.
    """
    target = Path(options["folder"], f"{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:24]}.scan")
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")  # two may do the same work at once
    draft.write_bytes(pack_index(scan(path)))
    os.replace(draft, target)
    return {"file": target.name, "bytes": 0 if is_url(path) else os.path.getsize(path)}


def expected_seconds(path: str) -> float | None:
    """Returns the length that a file name promises, as that of a cut of Kinetics does: ``<id>_<start>_<end>.mp4``."""
    match = re.search(r"_(\d{6})_(\d{6})$", os.path.splitext(os.path.basename(path))[0])
    seconds = int(match[2]) - int(match[1]) if match else 0
    return float(seconds) if seconds > 0 else None


def findings(
    outcomes: Sequence[Outcome], parts: Mapping[str, Sequence[tuple[float, float | None]]], *, shortest: float
) -> list[tuple[str, str, str]]:
    """Returns (path, kind, detail) of everything that is wrong, in the order of the videos.

    Kinds: ``unreadable``; ``damaged`` (packets that the decoder refused); ``short`` (shorter than `shortest` seconds);
    ``length`` (more than a second beside what its name promises, or without a part that the list uses); ``duplicate``
    (the very same bytes as an earlier video).

    Args:
        outcomes: The outcomes of `examine`.
        parts: Start and end in seconds of the parts that the list uses of each video; an end of None is its end.
        shortest: Videos of fewer seconds are reported.
    """
    found: list[tuple[str, str, str]] = []
    first_with: dict[str, str] = {}
    for outcome in outcomes:
        path, facts = outcome.key, outcome.result
        if outcome.error:
            found.append((path, "unreadable", outcome.error.removeprefix(f"{path}: ")))
            continue
        if bad := facts["bad_packets"]:
            found.append((path, "damaged", f"{bad} packet{'s' if bad > 1 else ''} cannot be decoded"))
        if facts["seconds"] < shortest:
            found.append((path, "short", f"{facts['seconds']:g} s, {facts['frames']} frames"))
        for start, end in parts.get(path, ()):
            if start >= facts["seconds"] or (end is not None and end > facts["seconds"] + TOLERANCE):
                part = f"{start:g} s to {'its end' if end is None else f'{end:g} s'}"
                found.append((path, "length", f"{facts['seconds']:g} s, but the list uses {part}"))
        wanted = expected_seconds(path)
        if wanted is not None and abs(facts["seconds"] - wanted) > TOLERANCE:
            found.append((path, "length", f"{facts['seconds']:g} s instead of {wanted:g} s"))
        other = first_with.setdefault(facts["sha256"], path)
        if other != path:
            found.append((path, "duplicate", other))
    return found
