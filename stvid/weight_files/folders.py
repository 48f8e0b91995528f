"""Folders of weights: transformers, DeepSpeed, and torch.distributed.

A folder's files name each other. A name must stay within the folder, so that an index from elsewhere cannot make the
reader open another file of this machine.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stvid.errors import CheckpointError
from stvid.weight_files.distributed import read_distributed
from stvid.weight_files.one_file import WeightFile, read_one_file

__all__ = ["holds_weights", "read_folder", "read_index"]

WHOLE = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin", "flax_model.msgpack")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
MAX_JSON = 100_000_000


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path}: is too large for a JSON file of this kind")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON, or damaged ({' '.join(str(error).split())[:80]})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _within(folder: Path, name: Any, where: Path) -> Path:
    """Returns a file of a folder that another file names.

    Raises:
        CheckpointError: If it is missing, or the name leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{where}: names {str(name)[:80]!r}, which is not in its folder")
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{where}: names {name[:80]!r}, which is missing; fetch all files of the folder")
    return path


def holds_weights(folder: Path) -> bool:
    """Whether a folder is of a kind that `read_folder` reads."""
    return _reader_of(folder) is not None


def read_folder(folder: Path) -> WeightFile:
    """Reads the weights in a folder.

    Raises:
        CheckpointError: If it holds none that are known, or they are incomplete.
    """
    reader = _reader_of(folder)
    if reader is not None:
        return reader()
    if any(folder.glob("*.index")) or (folder / "saved_model.pb").is_file():
        raise CheckpointError(f"{folder}: is a checkpoint of TensorFlow: convert it to .npz with TensorFlow first")
    raise CheckpointError(
        f"{folder}: is a folder without weights that stvid knows (a run of stvid, or a folder of transformers, "
        "DeepSpeed or torch.distributed); name the file itself"
    )


def _reader_of(folder: Path) -> Callable[[], WeightFile] | None:
    """Returns what reads a folder, by the files that are there; None if nothing does."""
    for name in WHOLE:
        if (folder / name).is_file():
            return lambda: _read_whole(folder, name)  # noqa: B023: returned at once
    for name in INDEXES:
        if (folder / name).is_file():
            return lambda: read_index(folder / name)
    if (folder / ".metadata").is_file():
        return lambda: read_distributed(folder)
    if (folder / "latest").is_file():
        return lambda: _read_deepspeed(folder)
    if any(folder.glob("*mp_rank_00_model_states.pt")):
        return lambda: _read_deepspeed_step(folder)
    inner = folder / "checkpoint"  # a file of flax, or Lightning's folder of DeepSpeed
    if inner.is_file() and not any(folder.glob("*.index")):
        return lambda: read_one_file(inner)
    return _reader_of(inner) if inner.is_dir() and not inner.is_symlink() else None


def _read_whole(folder: Path, name: str) -> WeightFile:
    read = read_one_file(folder / name)
    return _with_configs(folder, read, read.content)


# --- transformers -----------------------------------------------------------------------------------------------------


def read_index(path: Path) -> WeightFile:
    """Reads all shards that an index of transformers names.

    Raises:
        CheckpointError: If one is missing, outside the folder, or lacks tensors.
    """
    index = _json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path}: is no index of shards: it has no weight_map")
    state: dict[str, Any] = {}
    foreign: Counter[str] = Counter()
    for name in sorted({str(name) for name in places.values()}):
        read = read_one_file(_within(path.parent, name, path))
        foreign.update(read.foreign)
        keys = [key for key, place in places.items() if place == name]
        missing = [key for key in keys if key not in read.content]
        if missing:
            raise CheckpointError(f"{path.parent / name}: lacks {missing[0]}, which {path.name} expects there")
        state.update({key: read.content[key] for key in keys})
    return _with_configs(path.parent, WeightFile(path, {}, foreign), state)


def _with_configs(folder: Path, read: WeightFile, state: Mapping[str, Any]) -> WeightFile:
    """Puts the configs of transformers beside the state, if the folder has them."""
    content: dict[str, Any] = {"state_dict": {key: value for key, value in state.items() if key != "stvid"}}
    if "stvid" in state:
        content["stvid"] = state["stvid"]
    configs: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        configs["config"] = _json(folder / "config.json")
    for name in PREPROCESSORS:
        if (folder / name).is_file():
            configs.setdefault("preprocessor", _json(folder / name))
    if configs:
        content["transformers"] = {"config": {}, "preprocessor": {}, **configs}
    return WeightFile(read.path, content, read.foreign)


# --- DeepSpeed --------------------------------------------------------------------------------------------------------


def _read_deepspeed(folder: Path) -> WeightFile:
    """Reads the step that the file ``latest`` names."""
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / 'latest'}: cannot be read ({error})") from error
    inner = folder / name
    if not name or Path(name).name != name or name == "..":
        raise CheckpointError(f"{folder / 'latest'}: names {name[:80]!r}, which is not in its folder")
    if not inner.is_dir():
        raise CheckpointError(f"{folder / 'latest'}: names {name[:80]!r}, which is missing; copy the whole folder")
    return _read_deepspeed_step(inner)


def _read_deepspeed_step(folder: Path) -> WeightFile:
    """Reads the weights of one step: of the first rank, or of all ranks that each hold a part (ZeRO-3)."""
    whole = sorted(folder.glob("mp_rank_*_model_states.pt"))
    if len(whole) > 1:
        raise CheckpointError(
            f"{folder}: is split over {len(whole)} model-parallel ranks; join it with the program that wrote it"
        )
    if whole:
        return read_one_file(whole[0])
    parts = sorted(folder.glob("zero_pp_rank_*_mp_rank_00_optim_states.pt"), key=_rank)
    models = sorted(folder.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"), key=_rank)
    if not parts or not models:
        raise CheckpointError(f"{folder}: holds no weights of DeepSpeed (mp_rank_00_model_states.pt)")
    return _read_zero3(folder, parts, models)


def _rank(path: Path) -> int:
    match = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(match[1]) if match else 0


def _read_zero3(folder: Path, parts: list[Path], models: list[Path]) -> WeightFile:
    """Joins the parameters that ZeRO-3 has cut into equal parts, one a rank, padded at the end.

    The layout is that of ``deepspeed/utils/zero_to_fp32.py``: each rank's optimizer holds ``fp32_flat_groups``, one
    flat tensor a group, in which the parts of the parameters follow each other in the order of ``param_shapes``.
    """
    help_text = (
        f"{folder}: its parts (ZeRO-3) cannot be joined here; run the zero_to_fp32.py that DeepSpeed put beside it"
    )
    first = read_one_file(models[0])
    shapes = first.content.get("param_shapes")
    groups = [shapes] if isinstance(shapes, Mapping) else shapes
    ranks: list[Tensor] = []
    for path in parts:
        optimizer = read_one_file(path).content.get("optimizer_state_dict")
        flat = optimizer.get("fp32_flat_groups") if isinstance(optimizer, Mapping) else None
        if not isinstance(flat, list) or not all(isinstance(each, Tensor) for each in flat) or not flat:
            raise CheckpointError(help_text)
        ranks.append(torch.cat([each.reshape(-1) for each in flat]) if len(flat) > 1 else flat[0].reshape(-1))
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise CheckpointError(help_text)
    state: dict[str, Any] = {}
    position = 0
    for name, shape in (pair for group in groups for pair in group.items()):
        size = tuple(shape) if isinstance(shape, tuple | list) else None
        if size is None or not all(type(length) is int for length in size):
            raise CheckpointError(help_text)
        count = math.prod(size)
        width = -(-count // len(ranks))
        pieces = [rank[position : position + width] for rank in ranks]
        if any(len(piece) != width for piece in pieces):
            raise CheckpointError(help_text)
        state[name] = torch.cat(pieces)[:count].reshape(size)
        position += width
    buffers = first.content.get("module")
    names = first.content.get("buffer_names")
    if isinstance(buffers, Mapping) and isinstance(names, list):
        state.update({name: buffers[name] for name in names if name in buffers})
    return WeightFile(folder, {"module": state}, first.foreign)
