from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch

from stvid.weight_files.msgpack import read_msgpack
from stvid.weight_files.pickles import DamagedFile


def pack(value: Any, *, short: bool = False) -> bytes:
    """Writes msgpack as flax does; `short` takes the short codes."""
    if isinstance(value, np.generic | np.ndarray):
        inner = (value.shape, value.dtype.name, value.tobytes())
        return extension(3 if isinstance(value, np.generic) else 1, pack(inner))
    if isinstance(value, dict):
        head = bytes([0x80 | len(value)]) if short else b"\xdf" + struct.pack(">I", len(value))
        return head + b"".join(pack(key, short=short) + pack(item, short=short) for key, item in value.items())
    if isinstance(value, tuple | list):
        head = bytes([0x90 | len(value)]) if short else b"\xdc" + struct.pack(">H", len(value))
        return head + b"".join(pack(item, short=short) for item in value)
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if short and -32 <= value < 128:
            return struct.pack("b", value)
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return (bytes([0xA0 | len(raw)]) if short else b"\xd9" + bytes([len(raw)])) + raw
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    return extension(2, pack((value.real, value.imag)))


def extension(number: int, body: bytes) -> bytes:
    return b"\xc9" + struct.pack(">I", len(body)) + bytes([number]) + body


def read(data: bytes) -> Any:
    return read_msgpack(memoryview(bytearray(data)))


@pytest.mark.parametrize("short", [False, True])
def test_values(short: bool) -> None:
    content = {"a": [1, -3, 1.5, None, True, "text", {}], "b": {"c": 2**40, "d": 2 + 3j}}
    assert read(pack(content, short=short)) == content
    assert read(b"\x81\xa1a\xc4\x02xy")["a"] == b"xy"
    assert read(b"\x92\xcd\x01\x00\xd1\xff\xfe") == [256, -2]


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "int32", "int64", "uint8", "bool", "complex64"])
def test_arrays(name: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(name)
    again = read(pack({"a": array}))["a"]
    assert again.dtype == array.dtype and np.array_equal(again, array)
    number = read(pack({"a": array[1, 1]}))["a"]
    assert type(number) is type(array[1, 1]) and number == array[1, 1]
    assert read(pack({"a": np.array(2, name)}))["a"].shape == ()


@pytest.mark.parametrize("name", ["bfloat16", "V2"])
def test_bfloat16(name: str) -> None:
    raw = torch.tensor([1.0, 2.0], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    again = read(extension(1, pack(([2], name, raw))))
    assert torch.equal(again, torch.tensor([1.0, 2.0], dtype=torch.bfloat16))


@pytest.mark.parametrize("listed", [list, lambda values: {str(place): value for place, value in enumerate(values)}])
def test_arrays_in_chunks(listed: Any) -> None:
    array = np.arange(20, dtype=np.float32)
    chunks = [array[start : start + 2] for start in range(0, 20, 2)]  # over nine: their names are numbers, not words
    content = {"__msgpack_chunked_array__": True, "shape": listed([4, 5]), "chunks": listed(chunks)}
    assert np.array_equal(read(pack({"a": content}))["a"], array.reshape(4, 5))
    with pytest.raises(DamagedFile, match="have 20 elements"):
        read(pack({**content, "shape": listed([4, 6])}))
    with pytest.raises(DamagedFile, match="incomplete"):
        read(pack({"__msgpack_chunked_array__": True, "shape": listed([4])}))


DAMAGED = {
    "a map that is not there": (b"\xdf\xff\xff\xff\xff", "too early"),
    "a list that is not there": (b"\xdd\xff\xff\xff\xff\x01", "too early"),
    "bytes that are not there": (b"\xc6\xff\xff\xff\xff", "promises"),
    "a cut number": (b"\xcb\x00", "promises"),
    "nothing": (b"", "too early"),
    "a code that is none": (b"\xc1", "nothing that msgpack has"),
    "deep nesting": (b"\x91" * 10_000 + b"\xc0", "deeper than"),
    "deep nesting in extensions": (extension(1, extension(1, extension(1, b"\xc0"))), "none of flax"),
    "another extension": (extension(9, b"\x93\x01\x02\x03"), "extension type 9"),
    "an array without bytes": (extension(1, pack(([2], "float32", 7))), "no bytes"),
    "an array with few bytes": (extension(1, pack(([1 << 40], "float32", b"1234"))), "instead of"),
    "an array of objects": (extension(1, pack(([1], "object", b"12345678"))), "'object' is not known"),
    "an array of nothing known": (extension(1, pack(([1], "os.system", b"1"))), "is not known"),
    "a list as a key": (b"\x81\x90\xc0", "cannot be a key"),
    "a text that is none": (b"\x81\xa2\xff\xfe\xc0", "is damaged"),
    "more behind": (b"\xc0\xc0", "1 bytes behind"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_said(name: str) -> None:
    data, reason = DAMAGED[name]
    with pytest.raises(DamagedFile, match=reason):
        read(data)
