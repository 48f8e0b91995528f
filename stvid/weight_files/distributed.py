"""Folders of torch.distributed.checkpoint (FSDP): a list of pieces in ``.metadata``, and the pieces in ``*.distcp``.

The list is a pickle and is read as inertly as any other here; so are the pieces, each of which is a file of torch
within a file, at the place that the list names (``torch/distributed/checkpoint/filesystem.py`` and ``metadata.py``).
The state of optimizers is left where it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stvid.errors import CheckpointError
from stvid.weight_files.archives import Archive, mapped, read_torch_zip, torch_root
from stvid.weight_files.legacy import read_pickle
from stvid.weight_files.one_file import WeightFile
from stvid.weight_files.pickles import DamagedFile
from stvid.weight_files.placeholders import Placeholder

__all__ = ["read_distributed"]


@dataclass(frozen=True)
class _Piece:
    """A piece of a tensor: where it begins in the tensor, and where its bytes are."""

    begin: tuple[int, ...]
    file: str
    offset: int
    length: int


def _attributes(value: Any, *names: str) -> list[Any]:
    """Returns attributes of what a placeholder stands for.

    Raises:
        DamagedFile: If it has not all of them.
    """
    found = value.attributes if isinstance(value, Placeholder) else {}
    missing = [name for name in names if name not in found]
    if missing:
        raise DamagedFile(f"the list of its pieces lacks {missing[0]}")
    return [found[name] for name in names]


def read_distributed(folder: Path) -> WeightFile:
    """Joins the tensors of a folder of torch.distributed.checkpoint.

    Raises:
        CheckpointError: If a piece is missing, damaged, or in a format of its own.
    """
    try:
        return WeightFile(folder, _content(folder), Counter())
    except DamagedFile as error:
        raise CheckpointError(
            f"{folder}: a damaged folder of torch.distributed.checkpoint ({error}); copy all of it again, or join it "
            "with: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _content(folder: Path) -> dict[str, Any]:
    if (folder / ".metadata").stat().st_size == 0:
        raise DamagedFile("the list of its pieces is empty")
    metadata = read_pickle(mapped(folder / ".metadata"), Counter())
    tensors, storage = _attributes(metadata, "state_dict_metadata", "storage_data")
    paths = metadata.attributes.get("planner_data")
    pieces = _pieces(storage)
    if not isinstance(tensors, dict):
        raise DamagedFile("the list of its tensors is no mapping")
    opened: dict[str, memoryview] = {}
    content: dict[str, Any] = {}
    for name, facts in tensors.items():
        path = paths.get(name) if isinstance(paths, dict) else None
        steps = [str(step) for step in path] if isinstance(path, tuple) and path else [str(name)]
        if steps[0].startswith("optim") or not isinstance(facts, Placeholder) or "size" not in facts.attributes:
            continue  # bytes of other values
        inner = content
        for step in steps[:-1]:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise DamagedFile(f"{str(name)[:60]!r} is both a tensor and a mapping")
        inner[steps[-1]] = _joined(folder, facts, pieces.get(name, []), opened)
    return content


def _pieces(storage: Any) -> dict[Any, list[_Piece]]:
    """Returns the pieces of each tensor, by its name."""
    found: dict[Any, list[_Piece]] = {}
    if not isinstance(storage, dict):
        raise DamagedFile("the list of its pieces is no mapping")
    for index, place in storage.items():
        (name,) = _attributes(index, "fqn")
        file, offset, length = _attributes(place, "relative_path", "offset", "length")
        if place.attributes.get("transform_descriptors"):
            raise DamagedFile("its pieces are compressed")
        if not isinstance(file, str) or type(offset) is not int or type(length) is not int or min(offset, length) < 0:
            raise DamagedFile("the place of a piece is no file and number")
        begin = index.attributes.get("offset")
        found.setdefault(name, []).append(_Piece(tuple(begin) if begin is not None else (), file, offset, length))
    return found


def _joined(folder: Path, facts: Placeholder, pieces: list[_Piece], opened: dict[str, memoryview]) -> Tensor:
    """Returns one tensor, made of its pieces."""
    (size,) = _attributes(facts, "size")
    parts = [(piece.begin, _read(folder, piece, opened)) for piece in pieces]
    if not isinstance(size, torch.Size) or sum(part.numel() for _, part in parts) != math.prod(size) or not parts:
        raise DamagedFile(f"the pieces of a tensor do not fill its shape {tuple(size)}")
    if len(parts) == 1 and parts[0][1].shape == size:
        return parts[0][1]
    whole = torch.empty(size, dtype=parts[0][1].dtype)
    for begin, part in parts:
        places = tuple(_ranges(begin, part.shape, size))
        whole[places] = part
    return whole


def _ranges(begin: tuple[int, ...], shape: torch.Size, size: torch.Size) -> Iterator[slice]:
    if not len(begin) == len(shape) == len(size):
        raise DamagedFile("a piece has another number of dimensions than its tensor")
    for start, length, whole in zip(begin, shape, size, strict=True):
        if not 0 <= start <= start + length <= whole:
            raise DamagedFile("a piece reaches beyond its tensor")
        yield slice(start, start + length)


def _read(folder: Path, piece: _Piece, opened: dict[str, memoryview]) -> Tensor:
    if piece.file not in opened:
        path = folder / piece.file
        if Path(piece.file).name != piece.file or not path.is_file() or path.stat().st_size == 0:
            raise DamagedFile(f"its file {piece.file[:80]!r} is missing or not in the folder")
        opened[piece.file] = mapped(path)
    data = opened[piece.file][piece.offset : piece.offset + piece.length]
    if len(data) != piece.length:
        raise DamagedFile(f"its file {piece.file[:80]!r} is cut off")
    archive = Archive(folder / piece.file, data)
    root = torch_root(archive)
    tensor = read_torch_zip(archive, root, Counter()) if root is not None else None
    if not isinstance(tensor, Tensor):
        raise DamagedFile("a piece is no tensor of torch")
    return tensor.detach()
