"""Zip files of weights: what torch.save writes, and numpy's .npz.

A zip file lists its members at its end. Members that are stored as they are (all of torch's) are mapped into memory,
not read; compressed ones are unpacked within limits, since a small file could otherwise fill the memory.
"""

from __future__ import annotations

import io
import lzma
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stvid.weight_files.pickles import DamagedFile, Machine
from stvid.weight_files.rebuilders import TABLE, ArrayType, Storage, StorageType, array_of

__all__ = ["Archive", "mapped", "read_npy", "read_npz", "read_torch_zip"]

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
MAX_UNPACKED = 1 << 30
MAX_RATIO = 100
# What the unpacking of damaged bytes raises: deflate, LZMA, and bzip2, which has no error of its own.
_UNPACKING = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError)
_PART = 2**24


def mapped(path: Path) -> memoryview:
    """Returns the bytes of a file, mapped into memory; what is written to them stays in this process.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


class Archive:
    """The members of a zip file.

    Args:
        path: The file.
        data: The bytes of the archive, if it is a part of the file.

    Raises:
        DamagedFile: If it is no zip file, or a part of one.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path, data: memoryview | None = None) -> None:
        self.path = path
        self.is_whole = data is None
        self.data = mapped(path) if data is None else data
        try:
            with zipfile.ZipFile(self._source()) as file:
                self.members = {info.filename: info for info in file.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise DamagedFile(f"it is no whole zip file: {error}") from error
        self._unpacked = 0

    def _source(self) -> Any:
        return self.path if self.is_whole else io.BytesIO(self.data)

    def place(self, name: str) -> tuple[int, int]:
        """Returns the first byte and the length of a member that is stored as it is.

        Raises:
            DamagedFile: If it is compressed, or its bytes are not there.
        """
        info = self.members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise DamagedFile(f"its member {name[:80]!r} is compressed or encrypted")
        header = self.data[info.header_offset : info.header_offset + LOCAL_HEADER.size]
        if len(header) < LOCAL_HEADER.size or bytes(header[:4]) != b"PK\x03\x04":
            raise DamagedFile(f"its member {name[:80]!r} is not where the list says")
        *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if start + info.file_size > len(self.data):
            raise DamagedFile(f"its member {name[:80]!r} is cut off")
        return start, info.file_size

    def read(self, name: str) -> memoryview:
        """Returns the bytes of a member: a view of the file, or what was unpacked.

        Raises:
            DamagedFile: If the member is damaged, encrypted, or would fill the memory.
        """
        info = self.members[name]
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            start, length = self.place(name)
            return self.data[start : start + length]
        self._unpacked += info.file_size
        if self._unpacked > max(MAX_UNPACKED, MAX_RATIO * len(self.data)):
            raise DamagedFile(f"it would unpack to over {self._unpacked / 1e9:.0f} GB, from {len(self.data)} bytes")
        try:
            with zipfile.ZipFile(self._source()) as file, file.open(info) as member:
                return memoryview(bytearray(member.read(info.file_size)))
        except (*_UNPACKING, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise DamagedFile(f"its member {name[:80]!r} cannot be unpacked: {error}") from error

    def check(self, name: str) -> None:
        """Compares the bytes of a member that is stored as it is with their CRC-32; unpacking checks the others.

        Raises:
            DamagedFile: If they differ.
        """
        info = self.members[name]
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            start, length = self.place(name)
            found = 0
            for begin in range(start, start + length, _PART):
                found = zlib.crc32(self.data[begin : min(begin + _PART, start + length)], found)
            if found != info.CRC:
                raise DamagedFile(f"the bytes of its member {name[:80]!r} are not those that were written")

    @property
    def has_sums(self) -> bool:
        """Whether the checksums of the members mean anything; torch can be told to leave them out."""
        return any(info.CRC for info in self.members.values())


def torch_root(archive: Archive) -> str | None:
    """Returns the folder within the archive that torch wrote, with a slash; None if there is none."""
    found = [name for name in archive.members if name.endswith("/data.pkl") and name.count("/") == 1]
    return found[0].removesuffix("data.pkl") if found else None


def read_torch_zip(archive: Archive, root: str, foreign: Counter[str]) -> Any:
    """Returns the content of a file of ``torch.save``; its tensors are on the mapped file.

    In a file of stvid, which describes its model, all bytes are compared with their checksums.

    Args:
        archive: The file.
        root: From `torch_root`.
        foreign: Counts the foreign classes.

    Raises:
        DamagedFile: If it breaks, or a tensor reaches beyond its bytes.
    """
    order = archive.members.get(f"{root}byteorder")
    if order is not None and bytes(archive.read(order.filename)) != b"little":
        raise DamagedFile("it was written on a machine with another order of bytes; save it again on a usual one")
    whole: list[Any] = []
    storages: dict[tuple[str, torch.dtype], Storage] = {}

    def bytes_of(name: str, dtype: torch.dtype) -> torch.UntypedStorage:
        if archive.members[name].compress_type != zipfile.ZIP_STORED or not archive.is_whole:
            return storage_of(archive.read(name), dtype)
        start, length = archive.place(name)
        if start % dtype.itemsize:  # packed again by somebody
            return storage_of(archive.read(name), dtype)
        if not whole:
            whole.append(torch.UntypedStorage.from_file(str(archive.path), False, len(archive.data)))
        return whole[0][start : start + length] if length else torch.UntypedStorage(0)

    def persistent(key: Any) -> Any:
        kind, number, length = storage_key(key)
        found = storages.get((number, kind.dtype))
        if found is None:
            name = f"{root}data/{number}"
            if name not in archive.members:
                raise DamagedFile(f"the bytes of its storage {number[:40]!r} are missing")
            storages[number, kind.dtype] = found = Storage(bytes_of(name, kind.dtype), kind.dtype)
        if length * kind.dtype.itemsize > len(found.bytes):
            raise DamagedFile(f"its storage {number[:40]!r} has {len(found.bytes)} bytes for {length} elements")
        return found

    if archive.has_sums:
        archive.check(f"{root}data.pkl")
    content = Machine(archive.read(f"{root}data.pkl"), TABLE, persistent=persistent, foreign=foreign).load()
    if archive.has_sums and isinstance(content, Mapping) and "stvid" in content:
        for name in archive.members:
            archive.check(name)
    return content


def storage_key(key: Any) -> tuple[StorageType, str, int]:
    """Returns the type, the name and the number of elements that a reference to a storage holds.

    Raises:
        DamagedFile: If it is no such reference.
    """
    if not isinstance(key, tuple) or len(key) < 5 or key[0] not in ("storage", b"storage"):
        raise DamagedFile("it refers to something other than a storage")
    _, kind, name, _, length = key[:5]
    if not isinstance(kind, StorageType) or not isinstance(name, str) or type(length) is not int or length < 0:
        raise DamagedFile("a reference to a storage is incomplete")
    return kind, name, length


def storage_of(view: memoryview, dtype: torch.dtype) -> torch.UntypedStorage:
    """Returns a storage on bytes in memory; they are copied if elements of the type may not begin where they do."""
    if not len(view):
        return torch.UntypedStorage(0)
    flat = torch.frombuffer(view, dtype=torch.uint8)
    return (flat.clone() if flat.data_ptr() % dtype.itemsize else flat).untyped_storage()


# --- numpy ------------------------------------------------------------------------------------------------------------


def read_npy(view: memoryview, foreign: Counter[str]) -> Any:
    """Returns the array in the bytes of an .npy file; one of Python objects is read as any pickle is.

    Raises:
        DamagedFile: If it breaks, or has fewer bytes than its shape says.
    """
    stream = io.BytesIO(bytes(view[: 1 << 16]))
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise DamagedFile(f"the head of an array is damaged: {' '.join(str(error).split())[:80]}") from error
    rest = view[stream.tell() :]
    if dtype.hasobject:
        content = Machine(rest, TABLE, foreign=foreign).load()
        elements = getattr(content, "elements", [])
        return elements[0] if shape == () and len(elements) == 1 else content
    return array_of(rest, ArrayType(dtype if dtype.names is None else None), shape, fortran=fortran)


def read_npz(archive: Archive, foreign: Counter[str]) -> dict[str, Any]:
    """Returns the arrays of an .npz file by name.

    Raises:
        DamagedFile: If one is damaged.
    """
    names = [name for name in archive.members if name.endswith(".npy")]
    return {name.removesuffix(".npy"): read_npy(archive.read(name), foreign) for name in names}
