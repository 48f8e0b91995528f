"""Reads any file or folder of weights without running anything of what it holds."""

from __future__ import annotations

import os
from pathlib import Path

from stvid.errors import CheckpointError
from stvid.weight_files.folders import read_folder, read_index
from stvid.weight_files.one_file import WeightFile, read_one_file

__all__ = ["read_weight_file"]


def read_weight_file(source: str | os.PathLike[str]) -> WeightFile:
    """Reads weights, whatever program wrote them; what a file is, its first bytes tell.

    Args:
        source: A file of torch (zip, older, or a plain pickle), safetensors, numpy (.npz, .npy), or flax (msgpack); the
            index of a file in shards; or a folder of transformers, DeepSpeed or torch.distributed.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or no such file; one line says what to do.
    """
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.is_dir():
        return read_folder(path)
    if path.name.endswith(".index.json"):
        return read_index(path)
    return read_one_file(path)
