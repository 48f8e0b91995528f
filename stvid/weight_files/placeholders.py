"""Stand-ins for what a file of weights holds besides tensors, arrays and plain values.

A pickle names classes and functions, and says what they are to be called with. The reader of stvid calls none of them:
where a file asks for a foreign class, a `Placeholder` notes the name and what came with it, and does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Placeholder", "as_mapping", "is_module", "shown_name"]

MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def shown_name(name: str) -> str:
    """Returns a name out of a file as it may be printed: without control characters and not too long."""
    return re.sub(r"[^\w.<>]", "?", name)[:80]


class Placeholder:
    """An object of a class that is not built: its name, and the values that the file stored with it.

    Attributes:
        name: Module and class, such as ``argparse.Namespace``.
        args: Arguments that the class or function would have been called with.
        state: State that the object would have been given.
        elements: Values that would have been appended or added to it.
        entries: Items that would have been set in it.
    """

    __slots__ = ("args", "elements", "entries", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.elements: list[Any] = []
        self.entries: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<placeholder of {shown_name(self.name)}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that the object would have, as a plain dictionary."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _is_module(attributes: Mapping[str, Any]) -> bool:
    return all(isinstance(attributes.get(part), Mapping) for part in MODULE_PARTS)


def _module_entries(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for part in MODULE_PARTS:
        yield from ((key, value) for key, value in attributes[part].items() if value is not None)


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """Returns the names and values that a value holds, if it is something of that kind; else None.

    That is a mapping itself, the items of a foreign class that is one (a config, a defaultdict of one's own), or the
    parameters, buffers and children of a network that was pickled whole.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, Placeholder):
        return None
    attributes = value.attributes
    if _is_module(attributes):
        return dict(_module_entries(attributes))
    return {**attributes, **value.entries}


def is_module(value: Any) -> bool:
    """Whether a value stands for a network that was pickled whole, or for a program of TorchScript."""
    return isinstance(value, Placeholder) and (value.name.startswith("__torch__") or _is_module(value.attributes))
