"""Videos of a list in WebDataset tar shards, with the ``shards.json`` that `stvid.data.shards` reads.

The videos are shuffled once with a seed and filled into tars of about the same size. What each tar is to hold is
planned first, so that the tars can be written in parallel, and an interrupted run continued.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stvid.data.manifest import Manifest
from stvid.data.shards import INDEX, ROW, VERSION
from stvid.errors import VideoError
from stvid.files import write_atomically
from stvid.video.reader import scan
from stvid.video.stored_index import pack_index

__all__ = ["plan_shards", "write_shard", "write_shard_index"]


def plan_shards(manifest: Manifest, *, size: float, seed: int) -> tuple[list[list[dict[str, Any]]], dict[str, str]]:
    """Returns the rows of each shard, in their order there, and the reason for each video that cannot be taken.

    Args:
        manifest: The videos.
        size: Bytes of a shard; the last one may be smaller, and one larger video makes a shard of its own.
        seed: Seed of the random order.
    """
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    base = os.path.commonpath([os.path.dirname(manifest[number].path) for number in range(len(manifest))])
    for number in range(len(manifest)):
        entry = manifest[number]
        reason = _why_not(entry.path)
        if reason:
            failed[entry.path] = reason
            continue
        name = os.path.relpath(entry.path, base)
        stem, extension = os.path.splitext(os.path.basename(name))
        extension = extension.lower()
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:60]
        rows.append(
            {
                "path": entry.path,
                "name": name,
                "member": f"{number:08d}-{stem}{'.video' if extension in ('', '.json', '.scan') else extension}",
                "labels": [int(label) for label in manifest.label_ids(number)],
                "start": entry.start,
                "end": entry.end,
                "bytes": os.path.getsize(entry.path),
            }
        )
    shards: list[list[dict[str, Any]]] = []
    filled = size
    for at in np.random.default_rng(seed).permutation(len(rows)):
        row = rows[at]
        if filled + row["bytes"] > size or not shards:
            shards.append([])
            filled = 0
        shards[-1].append(row)
        filled += row["bytes"]
    return shards, failed


def _why_not(path: str) -> str:
    if os.path.isdir(path):
        return "is a folder of images; make it a video first with: stvid prep transcode"
    if not os.path.isfile(path):
        return "no such file"
    if os.path.getsize(path) == 0:
        return "is empty (0 bytes)"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8; rename it"
    return ""


def write_shard(path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Writes one tar and reads its list back; the same plan gives the same bytes.

    Args:
        path: The tar.
        options: ``plan``: folder with a JSON file for each tar, which `plan_shards` gave.

    Returns:
        ``file``, ``bytes``, ``sha256`` and ``videos``: rows as in ``shards.json``.

    Raises:
        VideoError: If a video has changed since the plan was made.
        OSError: If something cannot be read or written.
    """
    target = Path(path)
    plan = json.loads((Path(options["plan"]) / f"{target.stem}.json").read_text(encoding="utf-8"))
    write_atomically(target, lambda temporary: _write_tar(temporary, plan))
    with tarfile.open(target, "r:") as tar:
        members = {member.name: member for member in tar}
    videos = []
    for row in plan:
        video, about, scanned = (members.get(name) for name in (row["member"], *_beside(row["member"])))
        assert video is not None and about is not None
        place = {"begin": about.offset, "data": video.offset_data, "bytes": video.size}
        place |= {"scan": scanned.offset_data, "scan_bytes": scanned.size} if scanned else {"scan": 0, "scan_bytes": 0}
        videos.append([({**row, **place})[column] for column in ROW])
    return {"file": target.name, "bytes": target.stat().st_size, "sha256": _digest(target), "videos": videos}


def _beside(member: str) -> tuple[str, str]:
    """Returns the names of the two files before a video in its tar: its labels, and its index."""
    stem = os.path.splitext(member)[0]
    return f"{stem}.json", f"{stem}.scan"


def _write_tar(target: Path, plan: Sequence[Mapping[str, Any]]) -> None:
    with tarfile.open(target, "w:", format=tarfile.PAX_FORMAT) as tar:
        for row in plan:
            about = {key: row[key] for key in ("name", "labels", "start", "end")}
            text = json.dumps(about).encode()
            labels, index = _beside(row["member"])
            tar.addfile(_header(labels, len(text)), io.BytesIO(text))
            with contextlib.suppress(VideoError):  # who reads it says what is wrong with it
                scanned = pack_index(scan(row["path"]))
                tar.addfile(_header(index, len(scanned)), io.BytesIO(scanned))
            with open(row["path"], "rb") as video:
                if os.fstat(video.fileno()).st_size != row["bytes"]:
                    raise VideoError(row["path"], "has changed while the shards were written; start again")
                tar.addfile(_header(row["member"], row["bytes"]), video)


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    return header


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_shard_index(folder: Path, class_names: Sequence[str], shards: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``shards.json``, after which the shards count as whole.

    Args:
        folder: The folder of the tars.
        class_names: The names that label ids stand for.
        shards: The results of `write_shard`, in order.
    """
    about = {
        "version": VERSION,
        "videos": sum(len(shard["videos"]) for shard in shards),
        "class_names": list(class_names),
        "columns": ROW,
        "shards": shards,
    }
    write_atomically(folder / INDEX, lambda path: path.write_text(json.dumps(about), encoding="utf-8"))
