"""The repeated units of a network, such as its residual or transformer blocks, told by what they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from stvid.inflation.watching import Record, has_own_weights

__all__ = ["find_blocks", "is_list", "parallel_lists"]


def find_blocks(network: nn.Module, parallel: Sequence[str] = ()) -> list[str]:
    """Returns the names of the repeated units of a network, such as its residual or transformer blocks.

    That is each module beneath a list of modules that holds at least two layers with weights and does not contain
    repeated units itself (then it is a stage). A list counts if it is one of several in a list whose members have the
    same sequence of classes, such as the pairs of attention and MLP in many transformers.

    Args:
        network: Any module.
        parallel: Names of lists whose members take the same input, so that they are branches and no repeated units.
    """
    found: list[str] = []
    branches = {id(network.get_submodule(name)) for name in parallel}

    def visit(name: str, module: nn.Module, in_list: bool) -> None:
        if (in_list or _is_unit(module)) and not _has_repeats(module, branches):
            found.append(name)
            return
        repeated = _repeated_lists(module, branches)
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child, id(child) in repeated)

    repeated = _repeated_lists(network, branches)
    for name, child in network.named_children():
        visit(name, child, id(child) in repeated)
    return found


def is_list(module: nn.Module) -> bool:
    """Returns whether a module is one of torch's lists of modules."""
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _count_layers(module: nn.Module) -> int:
    """Counts layers with weights; one that has weights itself and smaller layers inside, as a gate, counts once."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return 1
    below = sum(map(_count_layers, module.children()))
    return max(1, below) if has_own_weights(module) else below


def _is_unit(module: nn.Module) -> bool:
    return not is_list(module) and _count_layers(module) >= 2


def _signature(module: nn.Module) -> Any:
    """Returns the class of a module, or the sequence of the classes of a list's members."""
    return tuple(map(_signature, module.children())) if is_list(module) else type(module)


def _repeated_lists(parent: nn.Module, branches: set[int]) -> set[int]:
    """Returns the ids of those lists in a list that hold at least two layers and repeat each other.

    A list with a single unit in it is a stage of one block.
    """
    if not is_list(parent) or id(parent) in branches:
        return set()
    lists = [
        child
        for child in parent.children()
        if is_list(child) and _count_layers(child) >= 2 and sum(map(_is_unit, child.children())) != 1
    ]
    kinds = Counter(map(_signature, lists))
    return {id(child) for child in lists if kinds[_signature(child)] >= 2}


def _has_repeats(module: nn.Module, branches: set[int]) -> bool:
    for part in module.modules():
        kinds = Counter(type(child) for child in _flattened(part) if _is_unit(child))
        if any(count >= 2 for count in kinds.values()) or _repeated_lists(part, branches):
            return True
    return False


def _flattened(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the children of a module, and of lists among them their members: stages of one block each."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from _flattened(child)
        else:
            yield child


def parallel_lists(network: nn.Module, record: Record) -> list[str]:
    """Returns the names of the lists whose members ran side by side on one tensor."""
    found = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        taken = [
            _first_taken(f"{name}.{child}" if name else child, part, record) for child, part in module.named_children()
        ]
        taken = [number for number in taken if number is not None]
        if len(taken) >= 2 and len(set(taken)) < len(taken):
            found.append(name)
    return found


def _first_taken(name: str, module: nn.Module, record: Record) -> int | None:
    """Returns the number of the tensor that a module took, or the first member of a list that did not run itself."""
    if name in record.calls:
        return record.calls[name][0].took
    for child, part in module.named_children() if is_list(module) else []:
        if (number := _first_taken(f"{name}.{child}", part, record)) is not None:
            return number
    return None
