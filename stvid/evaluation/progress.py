"""An evaluation that was interrupted goes on where it stopped: the logits of finished videos, kept on the disk.

The file is only ever appended to: a line that says what is measured, then the records of a batch of videos with a
checksum. What a killed process had half written is cut off when the file is opened again: always whole batches, so that
those that follow are the ones of an uninterrupted evaluation, and round the same way.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stvid.data.manifest import Manifest
from stvid.errors import StvidError

__all__ = ["ProgressFile", "VideoRecord", "digest", "model_digest", "videos_digest"]

_FRAME = struct.Struct("<QI")  # length and CRC-32 of the records of a batch
_SIZE = struct.Struct("<Q")  # length of one record


@dataclass(frozen=True)
class VideoRecord:
    """What an evaluation keeps of one video.

    Attributes:
        index: Its row in the manifest.
        logits: float32 (V, K), all views in the order of the layout.
        labels: Its label, or zeros and ones.
        distinct: How many of the views of the main protocol are different.
        probes: Logits with a changed order of frames, by its name.
    """

    index: int
    logits: NDArray[np.float32]
    labels: NDArray[Any]
    distinct: int
    probes: dict[str, NDArray[np.float32]]


class ProgressFile:
    """The records of an evaluation; used as a context.

    Args:
        path: The file; its folder is made.
        key: Digest of everything that the logits depend on.

    Raises:
        StvidError: If the file is of another evaluation, or cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path = Path(path)
        self.records: list[VideoRecord] = []
        header = json.dumps({"stvid": "evaluation in progress, by batches", "key": key}).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                whole = self._read(header)
                os.truncate(self.path, whole)
            self._file = open(self.path, "ab")  # noqa: SIM115  # closed by __exit__
            if self._file.tell() == 0:
                self._file.write(header)
                self._file.flush()
        except OSError as error:
            raise StvidError(f"{self.path}: cannot keep the progress ({error.strerror or error})") from error

    def _read(self, header: bytes) -> int:
        """Reads the batches that are whole; returns where the last one ends."""
        with open(self.path, "rb") as file:
            found = file.readline(len(header))
            if found != header:
                if header.startswith(found):
                    return 0  # killed while it was begun
                raise StvidError(f"{self.path}: not the progress of this evaluation; delete it or move it away")
            end = file.tell()
            while len(head := file.read(_FRAME.size)) == _FRAME.size:
                length, checksum = _FRAME.unpack(head)
                if length > os.path.getsize(self.path) - file.tell():
                    break
                payload = file.read(length)
                if zlib.crc32(payload) != checksum:
                    break
                try:
                    self.records += _unpack(payload)
                except (KeyError, ValueError, struct.error, zipfile.BadZipFile) as error:
                    raise StvidError(f"{self.path}: cannot be read ({error}); delete it to begin again") from error
                end = file.tell()
        return end

    def add(self, records: Iterable[VideoRecord]) -> None:
        """Appends the records of a batch; they are in the hands of the operating system when this returns.

        Raises:
            StvidError: If they cannot be written.
        """
        payload = b"".join(_SIZE.pack(len(packed)) + packed for packed in map(_pack, records))
        if not payload:
            return
        try:
            self._file.write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)
            self._file.flush()
        except OSError as error:
            raise StvidError(f"{self.path}: cannot keep the progress ({error.strerror or error})") from error

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _pack(record: VideoRecord) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {f"probe_{name}": values for name, values in record.probes.items()}
    arrays |= {"index": record.index, "logits": record.logits, "labels": record.labels, "distinct": record.distinct}
    np.savez(stream, **arrays)
    return stream.getvalue()


def _unpack(payload: bytes) -> Iterator[VideoRecord]:
    place = 0
    while place < len(payload):
        (length,) = _SIZE.unpack_from(payload, place)
        place += _SIZE.size + length
        with np.load(io.BytesIO(payload[place - length : place]), allow_pickle=False) as stored:
            yield VideoRecord(
                index=int(stored["index"]),
                logits=stored["logits"],
                labels=stored["labels"],
                distinct=int(stored["distinct"]),
                probes={name[len("probe_") :]: stored[name] for name in stored.files if name.startswith("probe_")},
            )


def digest(values: Mapping[str, Any]) -> str:
    """Returns 32 hexadecimal digits that depend on plain values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def videos_digest(videos: Manifest) -> str:
    """Returns a digest of the list of videos: paths, ranges and labels, in order."""
    state = hashlib.blake2b(digest_size=16)
    for entry in (videos[index] for index in range(len(videos))):
        state.update(repr((os.fsencode(entry.path), entry.labels, entry.start, entry.end)).encode())
    return state.hexdigest()


def model_digest(model: nn.Module) -> str:
    """Returns a digest of what a model computes: its structure as it prints itself, and all weights and buffers."""
    state = hashlib.blake2b(repr(model).encode(), digest_size=16)
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            state.update(f"{name} {value!r}".encode())
            continue
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
