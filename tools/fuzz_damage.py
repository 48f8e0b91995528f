"""Damages good files, for `tools/fuzz.py`: their bytes, or single values of a JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["REFUSED", "Seed", "change_value", "mutate"]

REFUSED = "refused"
"""The outcome of a reading that ends with an error of stvid."""

MAX_BYTES = 2**20  # longer files are cut to this length, which is a mutation, too
ODD_VALUES = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), 0.5),
    *("", "x", "x" * 5000, "a\nb", "\x1b[2J", "\ud800", "../../etc/passwd", [], [[]], {}, {"": {}}, [1, "a", None]),
)


@dataclass
class Seed:
    """A good file, what it needs beside it, and how it is read.

    Attributes:
        name: Its name in messages.
        files: The files of its folder, by their names; the first one is damaged.
        read: Reads the folder. It gets the path of the damaged file, the name of the reading and a generator, and
            returns a digest for each part that it read, or `REFUSED`.
        readings: The names of the readings, each in a process of its own; all must agree.
        sealed: Whether a digest guards it, so that damage must not change what is read.
        unpack: Gives the bytes that are damaged, such as those within a compressed file.
        pack: The way back; what was unpacked is then what an attacker writes, with all checksums right.
        plain: Whether those bytes are JSON, whose values are then changed one by one, too.
        named: Whether errors must name the file; those of configs name the key, which may be an option's.
    """

    name: str
    files: Mapping[str, bytes]
    read: Callable[[Path, str, np.random.Generator], Mapping[str, str]]
    readings: Sequence[str] = ("once",)
    sealed: bool = False
    unpack: Callable[[bytes], bytes] | None = None
    pack: Callable[[bytes], bytes] | None = None
    plain: bool = False
    named: bool = True

    @property
    def target(self) -> str:
        """The name of the file that is damaged."""
        return next(iter(self.files))

    def inner(self) -> bytes:
        """Returns the bytes that are damaged."""
        content = self.files[self.target]
        return content if self.unpack is None else self.unpack(content)

    def packed(self, inner: bytes) -> bytes:
        """Returns the file that holds these bytes."""
        return inner if self.pack is None else self.pack(inner)

    def damaged(self, rng: np.random.Generator) -> tuple[str, bytes]:
        """Returns the kind of damage and the damaged file."""
        if self.plain and rng.random() < 0.6:
            kind, inner = "value", change_value(self.inner(), rng)
        else:
            kind, inner = mutate(self.inner(), rng)
        return kind, self.packed(inner)


def mutate(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the kind of damage and the damaged bytes."""
    data = bytearray(content[:MAX_BYTES])
    kinds = ["flip", "flip_header", "bytes", "cut", "hole", "repeat", "swap", "size", "zero_tail"]
    kind = str(rng.choice(kinds))
    size = len(data)
    if size == 0:
        return kind, rng.bytes(int(rng.integers(1, 64)))
    if kind == "flip":
        for at in rng.integers(size, size=rng.integers(1, 40)):
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == "flip_header":  # where the structure is: the first and last kilobytes
        edge = min(size, 3000)
        for at in rng.integers(edge, size=rng.integers(1, 12)):
            data[at if rng.random() < 0.5 else size - 1 - at] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        at, length = int(rng.integers(size)), int(rng.integers(1, 200))
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
    elif kind == "cut":
        del data[int(rng.integers(size)) :]
    elif kind == "hole":
        at, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 4)))
        del data[at : at + length]
    elif kind == "repeat":
        at, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 8)))
        data[at:at] = data[at : at + length]
    elif kind == "swap":
        a, b = sorted(int(value) for value in rng.integers(size, size=2))
        length = min(b - a, size - b, 4096)
        data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
    elif kind == "size":  # four bytes that may be a size, a count or a time
        at = int(rng.integers(max(1, min(size - 4, 8000))))
        value = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, int(rng.integers(2**32))]))
        data[at : at + 4] = value.to_bytes(4, "big" if rng.random() < 0.7 else "little")
    else:
        at = int(rng.integers(size))
        data[at:] = bytes(size - at)
    return kind, bytes(data)


def change_value(content: bytes, rng: np.random.Generator) -> bytes:
    """Returns a JSON text in which one value, or one key, has become another one."""
    tree = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(tree)
    if not places or rng.random() < 0.02:
        tree = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    else:
        where, key = places[int(rng.integers(len(places)))]
        if rng.random() < 0.15:
            del where[key]
        else:
            where[key] = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    return json.dumps(tree).encode()
