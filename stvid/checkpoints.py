"""Reading and writing weights: stvid's own checkpoints and every published format of the models it has.

A published format is recognised by its keys, not by its file name: wrappers are taken off, the model's family turns
the keys into its own (`VideoModel.convert_checkpoint`), and what is then missing or left over is an error that lists
it. Files are read without unpickling objects, so that a downloaded checkpoint cannot run code.

A checkpoint of stvid also says what it is: under the key ``stvid`` (``.ckpt``, ``.pt``) or in the metadata
(``.safetensors``) it holds the call that builds the model, the protocol with the class names, the task, and the
version.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from stvid.errors import CheckpointError
from stvid.files import write_atomically
from stvid.models.base import VideoModel
from stvid.protocol import Protocol, Task
from stvid.sources import adopt_weights, resolve_source
from stvid.version import __version__
from stvid.weight_files.states import find_candidates

__all__ = [
    "LoadReport",
    "candidates",
    "describe",
    "head_keys",
    "load_checkpoint",
    "read_checkpoint",
    "save_model",
    "unwrap",
]

PREFIXES = ("module.", "model.", "backbone.", "encoder.module.")
SHOWN_KEYS = 8


@dataclass
class LoadReport:
    """Tells what `load_checkpoint` recognised, took over and changed.

    Attributes:
        source: Path, or ``mapping``.
        format: The recognised format.
        loaded: Number of tensors taken over.
        reset: Keys of the classifier that were left as initialised, since `reset_head` was given.
        resized: Keys of position tables that were resized, with the shapes before and after.
        adapted: Keys of first layers that were adapted to another number of channels, with the two numbers.
        protocol: The protocol that came with the weights, if any.
    """

    source: str
    format: str
    loaded: int
    reset: list[str] = field(default_factory=list)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    adapted: dict[str, tuple[int, int]] = field(default_factory=dict)
    protocol: Protocol | None = None

    def __str__(self) -> str:
        text = f"{self.source}: {self.format} format, {self.loaded} tensors"
        if self.resized:
            text += f", {len(self.resized)} resized"
        for key, (before, after) in self.adapted.items():
            text += f", {key} adapted from {before} to {after} channels"
        if self.reset:
            text += f", new head ({', '.join(self.reset)})"
        return text


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of weights without executing anything in it.

    Args:
        source: A .pth, .pt, .pyth, .ckpt, .tar, .safetensors or .npz file.

    Returns:
        The content of the file; for .safetensors and .npz a flat mapping, with stvid's own description under ``stvid``.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds objects other than tensors and plain values.
    """
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, not a checkpoint file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:  # is a ValueError, too, which is caught below
        raise
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        if "Unsupported global" in reason or "Unsupported class" in reason or "GLOBAL" in reason:
            raise CheckpointError(
                f"{path}: holds Python objects besides tensors, which stvid does not unpickle; save its state dict "
                "alone, in the environment that wrote it"
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint, or damaged") from error
    except (RuntimeError, EOFError, IndexError, ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a mapping of tensors")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            content: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged ({error})") from error
    if "stvid" in metadata:
        content["stvid"] = json.loads(metadata["stvid"])
    return content


def candidates(content: Mapping[str, Any]) -> list[tuple[str, dict[str, Tensor]]]:
    """Lists what may be the state of a network in the content of a file, the likeliest first.

    The content as a whole, what stands under each wrapper (``state_dict``, ``model``, ``params``, ``ema``, ...), and
    what is left when a prefix is taken off that all of the keys share, or many of them (``model.``,
    ``module.encoder_q.``, ``student.backbone.``). Marks of torch's wrappers (``_orig_mod.``) are taken out everywhere.
    Plain networks come before averaged copies (moving averages, teachers, MoCo's ``encoder_k``).

    Args:
        content: From `read_checkpoint`, or any mapping from names to tensors and arrays, with or without wrappers.

    Returns:
        Pairs of where the state was found, such as ``state_dict: module.encoder_q.`` (empty for the content as it is),
        and the flat state without that prefix.
    """
    return [(found.name, found.state) for found in find_candidates(content)]


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the likeliest state of a network in the content of a file, without the usual prefixes.

    `candidates` lists the others; where it is known what the network must look like, that is the better choice.
    """
    found = find_candidates(content)
    if not found:
        return {}
    state = found[0].state
    while prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in state)), ""):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _listed(keys: list[str]) -> str:
    shown = ", ".join(keys[:SHOWN_KEYS])
    return shown + (f", and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")


def _stored_protocol(content: Mapping[str, Any]) -> Protocol | None:
    stored = content.get("stvid")
    return Protocol.from_dict(stored["protocol"]) if isinstance(stored, Mapping) and "protocol" in stored else None


def _stored_task(content: Mapping[str, Any], name: str) -> str | None:
    stored = content.get("stvid")
    task = stored.get("task") if isinstance(stored, Mapping) else None
    if task is not None and task not in get_args(Task):
        raise CheckpointError(f"{name}: its task {task!r} is not one of {', '.join(get_args(Task))}")
    return task


def _stored_recipe(content: Mapping[str, Any]) -> Mapping[str, Any]:
    stored = content.get("stvid")
    recipe = stored.get("model") if isinstance(stored, Mapping) else None
    return recipe if isinstance(recipe, Mapping) else {}


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    reset_head: bool = False,
    name: str | None = None,
) -> LoadReport:
    """Loads weights in stvid's own or a published format into a model.

    Args:
        model: A model of `create_model`. Its protocol and task are replaced by those stored with the weights, if there
            are any and the head is kept.
        source: A file, a folder or a name, as `stvid.sources` lists them, or a mapping from keys to tensors or arrays,
            with or without wrappers.
        reset_head: Leave the classifier as initialised if its size differs from the checkpoint's, or if the
            checkpoint has none.
        name: The name of a mapping in messages.

    Returns:
        What was recognised and done.

    Raises:
        CheckpointError: If the file cannot be read, any key is missing or left over, a shape differs, or the head has
            another number of classes and `reset_head` is off. The model is unchanged then.
    """
    weights = None
    if isinstance(source, Mapping):
        name, content = name or "mapping", source
    else:
        found = resolve_source(source)
        name, content, weights = found.name, read_checkpoint(found.path), found.weights
    state = unwrap(content)
    if not state:
        raise CheckpointError(f"{name}: holds no tensors")
    if isinstance(model, VideoModel) and model.inference_only:
        raise CheckpointError(
            f"{name}: cannot be loaded into this model: {model.inference_only}; load it into a plain one"
        )
    task = _stored_task(content, name)
    own = model.state_dict()
    model_name = getattr(model, "recipe", {}).get("name") or type(model).__name__
    if isinstance(model, VideoModel):
        format_name, state = model.convert_checkpoint(state)
    else:
        format_name = "state dict"

    head = head_keys(model)
    absent_head = head if reset_head and not head & state.keys() else set()  # weights of a backbone alone
    _check_fit(f"{name}: does not fit {model_name}", state, own, absent_head)

    adapted = _adapt_stem(model, state, own)
    resized = _resize_tables(model, state, own, head, _stored_recipe(content))
    differing = [key for key in state if key in own and state[key].shape != own[key].shape]
    reset = [key for key in differing if key in head]
    if absent_head:
        reset = sorted(head)
    elif reset:
        if not reset_head:
            raise CheckpointError(
                f"{name}: its head has {state[reset[0]].shape[0]} classes, the model {own[reset[0]].shape[0]}; build "
                f"the model with num_classes={state[reset[0]].shape[0]}, or load with reset_head=True for a new head"
            )
        reset = sorted(head)  # weight and bias go together, even where one of them happens to fit
    wrong = [key for key in differing if key not in head]
    if wrong:
        shown = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in wrong]
        raise CheckpointError(f"{name}: shapes differ from {model_name}: {_listed(shown)}")

    taken = {key: value.to(own[key].dtype) for key, value in state.items() if key in own and key not in reset}
    model.load_state_dict(taken, strict=False)
    if isinstance(model, VideoModel):
        model.adopt_format(format_name, _stored_recipe(content).get("hyperparameters", {}))
    protocol = _stored_protocol(content)
    if not reset and isinstance(model, VideoModel):
        model.default_protocol = model.default_protocol if protocol is None else protocol
        model.task = model.task if task is None else task
    if weights is not None and isinstance(model, VideoModel):
        adopt_weights(model, weights, trained=not reset)
    return LoadReport(name, format_name, len(taken), reset=reset, resized=resized, adapted=adapted, protocol=protocol)


def _check_fit(what: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor], may_miss: set[str]) -> None:
    """Raises CheckpointError, with the keys, unless a state has all keys of a model and no others."""
    counts = "num_batches_tracked"
    missing = [key for key in own if key not in state and not key.endswith(counts) and key not in may_miss]
    left_over = [key for key in state if key not in own and not key.endswith(counts)]
    if missing or left_over:
        parts = [f"missing {_listed(missing)}"] if missing else []
        parts += [f"left over {_listed(left_over)}"] if left_over else []
        other = len(own) - len(missing) <= len(own) // 2
        hint = f" (it is a checkpoint of another architecture than {what.rpartition(' ')[2]})" if other else ""
        raise CheckpointError(f"{what}{hint}: {'; '.join(parts)}")


COLOURS = 3


def _adapt_stem(model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Adapts in `state` the first convolutions of weights for three colours to the channels of the model's clips.

    As timm does it (timm/models/_manipulate.py, adapt_input_conv): one channel gets the sum over the colours; for other
    numbers the colours are repeated in turn and scaled, so that the sum over all channels stays about the same.

    Returns:
        The number of channels before and after, for each key.
    """
    adapted: dict[str, tuple[int, int]] = {}
    channels = model.in_chans if isinstance(model, VideoModel) else COLOURS
    if channels == COLOURS:
        return adapted
    for key, value in list(state.items()):
        wanted = own[key].shape if key in own else value.shape
        if value.dim() < 4 or value.shape[1] != COLOURS or tuple(wanted) != (len(value), channels, *value.shape[2:]):
            continue
        if channels == 1:
            state[key] = value.sum(dim=1, keepdim=True)
        else:
            turns = [number % COLOURS for number in range(channels)]
            state[key] = value[:, turns] * (COLOURS / channels)
        adapted[key] = (COLOURS, channels)
    return adapted


def _resize_tables(
    model: nn.Module,
    state: dict[str, Tensor],
    own: Mapping[str, Tensor],
    head: set[str],
    built: Mapping[str, Any],
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Resizes in `state` the position tables whose shape differs from the model's; returns the shapes of each."""
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    if not isinstance(model, VideoModel):
        return resized
    for key, value in list(state.items()):
        if key not in own or key in head or value.shape == own[key].shape:
            continue
        table = model.resize_table(key, value, built)
        if table is not None:
            resized[key] = (tuple(value.shape), tuple(table.shape))
            state[key] = table
    return resized


def head_keys(model: nn.Module) -> set[str]:
    """Returns the names of the classifier's tensors; empty for a module that is no model of stvid."""
    if not isinstance(model, VideoModel):
        return set()
    classifier = model.get_classifier()
    prefix = next(name for name, module in model.named_modules() if module is classifier)
    return {f"{prefix}.{key}" for key in classifier.state_dict()}


def describe(model: VideoModel) -> dict[str, Any]:
    """Returns the description that stvid stores with weights: how to build the model, its protocol and its task."""
    return {
        "version": __version__,
        "model": dict(model.recipe),
        "protocol": model.default_protocol.to_dict(),
        "task": model.task,
    }


def save_model(model: VideoModel, path: str | os.PathLike[str]) -> None:
    """Writes weights with their description: ``.safetensors``, or ``.pt`` for torch's own format.

    Raises:
        CheckpointError: If the file cannot be written, the suffix is another, or the model is for inference only.
    """
    target = Path(path)
    if model.inference_only:
        raise CheckpointError(f"{target}: not written: {model.inference_only}; save the model it was made from")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".safetensors":
            from safetensors.torch import save_file

            metadata = {"format": "pt", "stvid": json.dumps(describe(model))}
            write_atomically(target, lambda file: save_file(state, str(file), metadata))
        elif target.suffix in (".pt", ".pth", ".ckpt"):
            write_atomically(target, lambda file: torch.save({"state_dict": state, "stvid": describe(model)}, file))
        else:
            raise CheckpointError(f"{target}: the suffix must be .safetensors, .pt, .pth or .ckpt")
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error})") from error
