"""Finds the states of networks in the content of a file, under whatever names its author gave them.

Training code saves a network under ``state_dict``, ``model_state``, ``params``, ..., with averaged copies, criteria and
metrics beside it, and wrappers put prefixes before its keys. Which of the parts is the network that somebody wants
cannot be told without that network. So everything that may be one is listed, the likeliest first, and the caller takes
the first that fits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stvid.errors import CheckpointError
from stvid.weight_files.placeholders import as_mapping as mapping_of
from stvid.weight_files.placeholders import is_module

__all__ = ["WRAPPERS", "Candidate", "find_candidates", "is_averaged", "to_tensor"]

WRAPPERS = (
    *("state_dict", "model_state", "model_state_dict", "model", "module", "net", "network", "params", "target"),
    *("optimizer/target", "optimizer", "student", "blobs", "model_weights", "net_state_dict"),
    *("averaged_model", "model_ema", "state_dict_ema", "ema_state_dict", "ema", "teacher"),
)
"""Keys under which files hold a network, the likelier first. Under ``optimizer``, older versions of flax do."""

# Marks that wrappers of torch and of its relatives leave in the keys, in front or in the middle of them.
MARKS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module|_forward_module)\."
)
INNER_MODULE = re.compile(r"(?<=\.)module\.")
AVERAGED = re.compile(
    r"(?:^|[^a-z])(?:ema|swa|shadow|teacher|averaged?|avg|momentum|encoder_k|key_encoder|target_(?:net\w*|encoder|model))"
    r"(?:$|[^a-z])|averaged_model|_momentum|momentum_",
    flags=re.I,
)
# Parts of a training's state that hold tensors and no network.
NO_NETWORK = {
    *(
        "optimizer_states",
        "optimizers",
        "optim",
        "lr_schedulers",
        "lr_scheduler",
        "scheduler",
        "scaler",
        "amp",
        "loops",
    ),
    *("callbacks", "opt_state", "param_states", "stvid", "rng_state", "transformers", "optimizer_state"),
    *("optimizer_state_dict", "scheduler_state_dict", "hyper_parameters", "args", "cfg", "config", "native_amp"),
}
MAX_DEPTH = 32
MAX_NODES = 64
MAX_TENSORS = 1_000_000
MAX_GROUPS = 32


@dataclass
class Candidate:
    """A part of a file that may be the state of a network.

    Attributes:
        path: Keys that lead to it in the file.
        prefix: What was taken off in front of its keys.
        state: The tensors by their names.
        averaged: Whether the names tell that it is an averaged copy (of a moving average, a teacher, ...).
        beside: What stands beside it under the same path: the first part of the other keys, and how many there are.
    """

    path: tuple[str, ...]
    prefix: str
    state: dict[str, Tensor]
    averaged: bool = False
    beside: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Where it is in the file, such as ``state_dict: model.``; empty for the file as a whole."""
        return ": ".join(part for part in ("/".join(self.path), self.prefix) if part)


def is_averaged(name: str) -> bool:
    """Whether a name tells that what it stands for is an averaged copy of a network."""
    return AVERAGED.search(name) is not None


def to_tensor(value: Any) -> Tensor | None:
    """Returns a tensor or an array of numbers as a dense tensor, without a copy where possible; None for all else."""
    if isinstance(value, Tensor):
        tensor = value.detach()
        if tensor.is_quantized:
            return tensor.dequantize()
        return tensor if tensor.layout == torch.strided else None
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        array = np.asarray(value)
        if array.dtype.byteorder not in ("=", "|") or not array.flags.writeable or min(array.strides, default=0) < 0:
            array = array.astype(array.dtype.newbyteorder("="), copy=True)
        if array.dtype.name in ("longdouble", "float128", "complex256", "clongdouble"):
            return None
        return torch.from_numpy(array)
    return None


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """Returns the names and values that a value holds; a list of mappings (``classifiers``) has numbers for names."""
    several = isinstance(value, list | tuple) and 0 < len(value) <= MAX_NODES
    if several and all(isinstance(one, Mapping) for one in value):
        return {str(number): one for number, one in enumerate(value)}
    return mapping_of(value)


@dataclass
class _Node:
    """A mapping within a file, with all tensors below it by their joined names."""

    path: tuple[str, ...]
    state: dict[str, Tensor]


class _Walk:
    """Walks through the mappings of a file; what is met again by another way is converted once."""

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[Any, Tensor | None]] = {}
        self.steps = 0

    def nodes(self, content: Any) -> list[_Node]:
        """Returns the mappings that hold tensors: wrapped ones before those around them, others last."""
        return list(self._nodes(content, (), set()))[:MAX_NODES]

    def _nodes(self, value: Any, path: tuple[str, ...], above: set[int]) -> Iterator[_Node]:
        mapping = as_mapping(value)
        if mapping is None or id(value) in above or len(path) > 3 or "param_groups" in mapping:
            return
        inner = above | {id(value)}
        for wrapper in WRAPPERS:
            if wrapper in mapping:
                yield from self._nodes(mapping[wrapper], (*path, wrapper), inner)
        state = self.flatten(value)
        if state:
            yield _Node(path, state)
        names = [key for key in mapping if isinstance(key, str) and key not in WRAPPERS and key not in NO_NETWORK]
        if not is_module(value) and len(names) <= 10 * MAX_NODES:
            for key in names:
                yield from self._nodes(mapping[key], (*path, key), inner)

    def flatten(self, value: Any) -> dict[str, Tensor]:
        """Returns all tensors below a mapping: names of torch are joined with ``.``, those of flax with ``/``."""
        flat: dict[str, Tensor] = {}
        self._collect(value, "", flat, ())
        return flat

    def _collect(self, value: Any, prefix: str, flat: dict[str, Tensor], above: tuple[int, ...]) -> None:
        mapping = as_mapping(value)
        if mapping is None or "param_groups" in mapping or id(value) in above or len(above) >= MAX_DEPTH:
            return
        joint = "." if is_module(value) else "/"
        for key, item in mapping.items():
            self.steps += 1
            if self.steps > 10 * MAX_TENSORS or len(flat) > MAX_TENSORS:
                raise CheckpointError(f"holds more than {MAX_TENSORS:,} tensors, or refers to itself again and again")
            tensor = self._tensor(item)
            if tensor is not None:
                flat[f"{prefix}{key}"] = tensor
            elif (
                not (above == () and key in NO_NETWORK) and (inner := as_mapping(item)) and "param_groups" not in inner
            ):
                self._collect(item, f"{prefix}{key}{joint}", flat, (*above, id(value)))

    def _tensor(self, value: Any) -> Tensor | None:
        if not isinstance(value, Tensor | np.ndarray | np.generic):
            return None
        if id(value) not in self.tensors:
            self.tensors[id(value)] = (value, to_tensor(value))  # the value is kept, so that its id stays its own
        return self.tensors[id(value)][1]


def _without(pattern: re.Pattern[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes marks out of all keys, unless two keys would become one."""
    cleaned = {pattern.sub("", key): value for key, value in state.items()}
    return cleaned if len(cleaned) == len(state) else state


def _first_part(key: str) -> str:
    """Returns a key up to and with its first ``.`` or ``/``; empty if it has none."""
    match = re.match(r"[^./]*[./]", key)
    return match[0] if match else ""


def _shared_prefixes(state: Mapping[str, Any]) -> list[str]:
    """Returns the prefixes that all keys share, the shortest first; none of them is a whole key."""
    found, prefix = [], ""
    first = next(iter(state))
    while part := _first_part(first[len(prefix) :]):
        prefix += part
        if not all(key.startswith(prefix) and len(key) > len(prefix) for key in state):
            break
        found.append(prefix)
    return found


def _group_prefixes(state: Mapping[str, Any]) -> list[str]:
    """Returns the prefixes of up to three parts that some keys share, those of many keys first."""
    counts: Counter[str] = Counter()
    for key in state:
        prefix = ""
        for _ in range(3):
            part = _first_part(key[len(prefix) :])
            if not part:
                break
            prefix += part
            counts[prefix] += 1
    smallest = max(2, len(state) // 50)
    groups = [prefix for prefix, count in counts.items() if smallest <= count < len(state)]
    return sorted(groups, key=lambda prefix: (-counts[prefix], len(prefix)))[:MAX_GROUPS]


def _beside(state: Mapping[str, Any], prefix: str) -> dict[str, int]:
    """Counts the keys that do not begin with a prefix, by the first part in which they differ from it."""
    counts: Counter[str] = Counter()
    for key in state:
        if not key.startswith(prefix):
            counts[_first_part(key) or key] += 1
    own = _first_part(prefix)
    if own in counts:  # the network stands deeper: tell its neighbours apart
        del counts[own]
        counts.update(
            own + (_first_part(key[len(own) :]) or key[len(own) :])
            for key in state
            if key.startswith(own) and not key.startswith(prefix)
        )
    return dict(counts)


def _of_node(node: _Node) -> Iterator[Candidate]:
    """Yields what may be a network within one mapping: the whole, then without shared prefixes, then its parts."""
    state = _without(MARKS, node.state)
    below = ".".join(node.path)
    whole_averaged = is_averaged(below)
    yield Candidate(node.path, "", state, whole_averaged)
    shared = _shared_prefixes(state)
    for prefix in shared:
        yield Candidate(node.path, prefix, _cut(state, prefix), whole_averaged or is_averaged(prefix))
    cleaned = _without(INNER_MODULE, state)
    if cleaned != state and cleaned is not state:
        yield Candidate(node.path, "", cleaned, whole_averaged)
        for prefix in _shared_prefixes(cleaned):
            yield Candidate(node.path, prefix, _cut(cleaned, prefix), whole_averaged or is_averaged(prefix))
    base = shared[-1] if shared else ""
    for prefix in _group_prefixes(_cut(state, base)):
        full = base + prefix
        part = _cut(state, full)
        for inner in ("", *_shared_prefixes(part)):
            averaged = whole_averaged or is_averaged(full + inner)
            yield Candidate(node.path, full + inner, _cut(part, inner), averaged, _beside(state, full))


def _cut(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix) and key != prefix}


def find_candidates(content: Any) -> list[Candidate]:
    """Lists the parts of a file that may be the state of a network, the likeliest first, averaged copies last.

    Raises:
        CheckpointError: If the content has an absurd number of entries.
    """
    found = [candidate for node in _Walk().nodes(content) for candidate in _of_node(node) if candidate.state]
    distinct: dict[tuple[tuple[str, int], ...], Candidate] = {}
    for candidate in sorted(found, key=lambda candidate: candidate.averaged):
        marker = tuple(sorted((key, id(value)) for key, value in candidate.state.items()))
        distinct.setdefault(marker, candidate)
    return list(distinct.values())
