"""Pickles outside zip files: what torch.save wrote before version 1.6, and plain pickles.

Torch's older format is a row of pickles (a magic number, a version, the machine, the content, the names of the
storages), and then the bytes of each storage behind their number (``torch/serialization.py``, ``_legacy_load``).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from stvid.weight_files.archives import storage_key, storage_of
from stvid.weight_files.pickles import DamagedFile, Machine
from stvid.weight_files.rebuilders import TABLE, Storage

__all__ = ["read_pickle"]

MAGIC = 0x1950A86A20F9469CFC6C
MAX_INNER = 4


def read_pickle(data: memoryview, foreign: Counter[str], *, depth: int = 0) -> Any:
    """Returns the content of a pickle, or of torch's older format.

    Args:
        data: The bytes of the file; tensors are on them where they may be.
        foreign: Counts the foreign classes.
        depth: How many pickles this one is within: a tensor in a plain pickle is a file of torch within it.

    Raises:
        DamagedFile: If it breaks.
    """
    table = {**TABLE, "torch.storage._load_from_bytes": lambda args: _inner(args, foreign, depth)}
    machine = Machine(data, table, foreign=foreign)
    content = machine.load()
    return _read_torch(data, machine.position, table, foreign) if content == MAGIC and type(content) is int else content


def _inner(args: tuple[Any, ...], foreign: Counter[str], depth: int) -> Any:
    if depth >= MAX_INNER or not args or not isinstance(args[0], bytes | memoryview):
        raise DamagedFile("a storage within the pickle is damaged")
    inner = args[0] if isinstance(args[0], memoryview) else memoryview(bytearray(args[0]))
    return read_pickle(inner, foreign, depth=depth + 1)


def _read_torch(data: memoryview, position: int, table: dict[str, Any], foreign: Counter[str]) -> Any:
    """Reads what stands behind the magic number: once to find the storages at the end, and once with them."""
    head = Machine(data, table)
    head.load(position)
    info = head.load(head.position)
    if isinstance(info, dict) and info.get("little_endian") is False:
        raise DamagedFile("it was written on a machine with another order of bytes; save it again on a usual one")
    start = head.position
    widths: dict[str, int] = {}

    def note(key: Any) -> Any:
        if isinstance(key, tuple) and key[:1] == ("module",):
            return key[1]
        kind, name, _ = storage_key(key)
        widths[name] = kind.dtype.itemsize
        return None

    scout = Machine(data, {name: value for name, value in TABLE.items() if not callable(value)}, persistent=note)
    scout.load(start)
    names = Machine(data, {})
    places = _places(data, names.load(scout.position), names.position, widths)
    storages: dict[str, torch.UntypedStorage] = {}

    def persistent(key: Any) -> Any:
        if isinstance(key, tuple) and key[:1] == ("module",):
            return key[1]
        kind, name, length = storage_key(key)
        if name not in places:
            raise DamagedFile(f"the bytes of its storage {name[:40]!r} are missing")
        if name not in storages:
            storages[name] = storage_of(data[slice(*places[name])], kind.dtype)
        found = storages[name]
        if length * kind.dtype.itemsize > len(found):
            raise DamagedFile(f"its storage {name[:40]!r} has {len(found)} bytes for {length} elements")
        part = key[5] if len(key) > 5 else None
        if part is not None:  # a view: its name, offset and length
            _, begin, count = part
            width = kind.dtype.itemsize
            whole = len(found) // width
            if type(begin) is not int or type(count) is not int or not 0 <= begin <= begin + count <= whole:
                raise DamagedFile("a view of a storage reaches beyond it")
            found = found[begin * width : (begin + count) * width]
        return Storage(found, kind.dtype)

    return Machine(data, table, persistent=persistent, foreign=foreign).load(start)


def _places(data: memoryview, names: Any, position: int, widths: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Returns the first byte of each storage, and the one behind its last."""
    if not isinstance(names, list):
        raise DamagedFile("the list of its storages is missing")
    places: dict[str, tuple[int, int]] = {}
    for name in names:
        if name not in widths:
            raise DamagedFile("the list of its storages has one that nothing refers to")
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        begin, end = position + 8, position + 8 + count * widths[name]
        if count < 0 or end > len(data):
            raise DamagedFile(f"it is cut off: storage {str(name)[:40]!r} ends at byte {end} of {len(data)}")
        places[name] = (begin, end)
        position = end
    return places
