"""Reads one file of weights, of any program, without running anything of what it holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stvid.errors import CheckpointError
from stvid.weight_files.archives import Archive, mapped, read_npy, read_npz, read_torch_zip, torch_root
from stvid.weight_files.kinds import kind_of, refusal
from stvid.weight_files.legacy import read_pickle
from stvid.weight_files.msgpack import read_msgpack
from stvid.weight_files.pickles import DamagedFile
from stvid.weight_files.placeholders import Placeholder, as_mapping, is_module, shown_name
from stvid.weight_files.sums import check_sum

__all__ = ["WeightFile", "read_one_file"]


@dataclass
class WeightFile:
    """The content of a file or folder of weights.

    Attributes:
        path: Where it was read.
        content: Its mapping: tensors, arrays of numpy, plain values, and a `Placeholder` for each foreign object.
        foreign: Names of the foreign classes and functions that were left out, and how often each was met.
    """

    path: Path
    content: dict[str, Any]
    foreign: Counter[str] = field(default_factory=Counter)


def read_one_file(path: Path) -> WeightFile:
    """Reads one file of weights.

    Raises:
        CheckpointError: If it is damaged, or no file of weights.
    """
    foreign: Counter[str] = Counter()
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: is neither a file nor a folder")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        content = _content(path, foreign)
    except DamagedFile as error:
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({error}); fetch or save it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    mapping = {"module": content} if is_module(content) else as_mapping(content)
    if mapping is None or (isinstance(content, Placeholder) and not mapping):
        what = shown_name(content.name) if isinstance(content, Placeholder) else type(content).__name__
        raise CheckpointError(
            f"{path}: holds one object of type {what}, not a mapping of tensors; save the state dict of the network"
        )
    return WeightFile(path, dict(mapping), foreign)


def _content(path: Path, foreign: Counter[str]) -> Any:
    """Reads a file by its kind."""
    kind = kind_of(path)
    if kind == "zip":
        return _read_zip(path, foreign)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "npy":
        return read_npy(mapped(path), foreign)
    if kind == "msgpack":
        return read_msgpack(mapped(path))
    if kind == "pickle":
        return read_pickle(mapped(path), foreign)
    if kind == "old tar":
        raise CheckpointError(f"{path}: is in torch's format of 2016: load it with torch and save it again")
    if kind == "tar":
        raise CheckpointError(f"{path}: is a tar archive: unpack it first (tar -xf), and name what comes out")
    reason = refusal(path)
    if reason:
        raise CheckpointError(f"{path}: {reason}")
    raise CheckpointError(
        f"{path}: not a checkpoint, or damaged: it begins like no file of torch, numpy, flax or safetensors"
    )


def _read_zip(path: Path, foreign: Counter[str]) -> Any:
    archive = Archive(path)
    root = torch_root(archive)
    if root is not None:
        return read_torch_zip(archive, root, foreign)
    if any(name.endswith(".npy") for name in archive.members):
        return read_npz(archive, foreign)
    inner = ", ".join(sorted(archive.members)[:3])[:120]
    raise CheckpointError(
        f"{path}: is a zip archive of neither torch nor numpy ({inner or 'empty'}): unpack it first, and name the file "
        "of the weights"
    )


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError, safe_open

    check_sum(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            content: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise DamagedFile(f"safetensors: {error}") from error
    if "stvid" in metadata:
        try:
            content["stvid"] = json.loads(metadata["stvid"])
        except (ValueError, RecursionError) as error:
            raise DamagedFile(f"its description of stvid is no JSON: {' '.join(str(error).split())[:80]}") from error
    return content
