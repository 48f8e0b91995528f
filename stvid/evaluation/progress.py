"""An evaluation that was interrupted goes on where it stopped: the logits of finished videos, kept on the disk.

The file is a journal (`stvid.journal`) with one record for each batch of videos. What a killed process had half written
is cut off when the file is opened again: always whole batches, so that those that follow are the ones of an
uninterrupted evaluation, and round the same way.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
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
from stvid.files import load_arrays
from stvid.journal import Journal

__all__ = ["ProgressFile", "VideoRecord", "digest", "model_digest", "packed", "unpacked", "videos_digest"]


@dataclass(frozen=True)
class VideoRecord:
    """The results for one video that an evaluation keeps.

    Attributes:
        index: Its row in the manifest.
        logits: float32 (V, K), all views in the order of the layout.
        labels: Its label, or zeros and ones.
        distinct: How many of the views of the main protocol are different.
        probes: Logits with the frames in another order, by the name of that order.
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
        what = "the progress of this evaluation"
        header = {"evaluation in progress, by batches": key}
        self._journal = Journal(path, header, what=what, fields={"videos": list}, each=self._take)

    def _take(self, batch: dict[str, Any]) -> None:
        try:
            self.records += [unpacked(packed) for packed in batch["videos"]]
        except (KeyError, TypeError, ValueError) as error:
            raise StvidError(f"{self.path}: cannot be read ({error}); delete it to begin again") from error

    def add(self, records: Iterable[VideoRecord]) -> None:
        """Appends the records of a batch; they are in the hands of the operating system when this returns.

        Raises:
            StvidError: If they cannot be written.
        """
        videos = [packed(record) for record in records]
        if videos:
            self._journal.add({"videos": videos})

    def __enter__(self) -> ProgressFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.__exit__(kind, error, trace)


def packed(record: VideoRecord) -> str:
    """Returns a record as text, with every bit of its numbers."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {f"probe_{name}": values for name, values in record.probes.items()}
    arrays |= {"index": record.index, "logits": record.logits, "labels": record.labels, "distinct": record.distinct}
    np.savez(stream, **arrays)
    return base64.b64encode(stream.getvalue()).decode()


def unpacked(text: str) -> VideoRecord:
    """Returns the record of a text that `packed` made.

    Raises:
        KeyError: If something is missing.
        ValueError: If it is damaged.
    """
    stored = load_arrays(io.BytesIO(base64.b64decode(text)))
    return VideoRecord(
        index=int(stored["index"]),
        logits=stored["logits"],
        labels=stored["labels"],
        distinct=int(stored["distinct"]),
        probes={name[len("probe_") :]: value for name, value in stored.items() if name.startswith("probe_")},
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
