"""Reads the files that flax writes: msgpack, with arrays as extension types.

The types of msgpack are few (``spec.md`` of msgpack/msgpack). flax adds three of its own
(``flax/serialization.py``): 1 is an array, a packed triple of shape, name of the type, and bytes; 2 a complex number;
3 a number of numpy, packed as an array. Arrays of over 2^30 bytes are cut into chunks.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import torch

from stvid.weight_files.pickles import DamagedFile, checked_key
from stvid.weight_files.rebuilders import DTYPES, ArrayType, array_of

__all__ = ["read_msgpack"]

MAX_DEPTH = 100
NDARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
FIXED = {  # code: (format, bytes)
    0xCA: (">f", 4),
    0xCB: (">d", 8),
    0xCC: (">B", 1),
    0xCD: (">H", 2),
    0xCE: (">I", 4),
    0xCF: (">Q", 8),
    0xD0: (">b", 1),
    0xD1: (">h", 2),
    0xD2: (">i", 4),
    0xD3: (">q", 8),
}
WIDTHS = {  # code: (kind, bytes of the length)
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}


def read_msgpack(data: memoryview) -> Any:
    """Returns the content of a file that flax wrote, with arrays of numpy.

    Raises:
        DamagedFile: If it breaks.
    """
    reader = _Reader(data)
    try:
        content = reader.value(0)
    except (IndexError, struct.error) as error:
        raise DamagedFile(f"the msgpack ends too early, at byte {reader.position}") from error
    except UnicodeDecodeError as error:
        raise DamagedFile(f"a text before byte {reader.position} is damaged") from error
    if reader.position != len(data):
        raise DamagedFile(f"there are {len(data) - reader.position} bytes behind the msgpack")
    return content


class _Reader:
    """Reads one value after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise DamagedFile(f"the msgpack ends too early: byte {self.position} promises {count} more")
        view = self.data[self.position : end]
        self.position = end
        return view

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise DamagedFile(f"the msgpack is nested deeper than {MAX_DEPTH}")
        code = self.data[self.position]
        self.position += 1
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in FIXED:
            form, width = FIXED[code]
            return struct.unpack(form, self.take(width))[0]
        if code in WIDTHS:
            kind, width = WIDTHS[code]
            return self.sized(kind, int.from_bytes(self.take(width), "big"), depth)
        if 0xD4 <= code <= 0xD8:
            return self.sized("ext", 1 << (code - 0xD4), depth)
        if code < 0xC0:
            kind, mask = ("map", 0x0F) if code < 0x90 else ("list", 0x0F) if code < 0xA0 else ("str", 0x1F)
            return self.sized(kind, code & mask, depth)
        if code == 0xC1:
            raise DamagedFile(f"byte {self.position - 1} is nothing that msgpack has")
        return {0xC0: None, 0xC2: False, 0xC3: True}[code]

    def sized(self, kind: str, count: int, depth: int) -> Any:
        if kind == "str":
            return str(self.take(count), "utf-8")
        if kind == "bytes":
            return self.take(count)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(count)]
        if kind == "ext":
            number = self.take(1)[0]
            return _extension(number, self.take(count), depth)
        found = {checked_key(self.value(depth + 1)): self.value(depth + 1) for _ in range(count)}
        return _joined(found) if CHUNKED in found else found


def _extension(number: int, data: memoryview, depth: int) -> Any:
    inner = _Reader(data)
    content = inner.value(depth + 1)
    if number == COMPLEX and isinstance(content, list) and len(content) == 2:
        return complex(*content)
    if number not in (NDARRAY, SCALAR) or not isinstance(content, list) or len(content) != 3:
        raise DamagedFile(f"its extension type {number} is none of flax's")
    shape, name, raw = content
    array = array_of(raw, _type_of(name), shape)
    return array[()] if number == SCALAR and isinstance(array, np.ndarray) else array


def _type_of(name: Any) -> ArrayType:
    if isinstance(name, memoryview):
        name = bytes(name).decode("latin-1")
    known = {"float64", "float32", "float16", "complex64", "complex128", "bool", "int8", "int16", "int32", "int64"}
    if name in known or name in ("uint8", "uint16", "uint32", "uint64"):
        return ArrayType(np.dtype(name))
    if name == "V2":  # numpy's word for bfloat16 where it is not known
        return ArrayType(torch.bfloat16)
    if name in DTYPES:
        return ArrayType(DTYPES[name])
    raise DamagedFile(f"an array of type {str(name)[:40]!r} is not known")


def _joined(found: dict[Any, Any]) -> Any:
    """Joins the chunks of a large array."""

    def listed(value: Any) -> list[Any]:
        return [value[key] for key in sorted(value, key=int)] if isinstance(value, dict) else list(value)

    try:
        shape, chunks = listed(found["shape"]), listed(found["chunks"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile("an array in chunks is incomplete") from error
    tensors = [torch.from_numpy(chunk) if isinstance(chunk, np.ndarray) else chunk for chunk in chunks]
    if not tensors or not all(isinstance(chunk, torch.Tensor) for chunk in tensors):
        raise DamagedFile("an array in chunks has none")
    whole = torch.cat([chunk.reshape(-1) for chunk in tensors])
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != len(whole):
        raise DamagedFile(f"the chunks of an array of shape {shape} have {len(whole)} elements")
    return whole.reshape(shape)
