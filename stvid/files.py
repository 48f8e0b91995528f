"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import re
import shutil
import struct
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError

from stvid.errors import StvidError

__all__ = [
    "TEMPORARY",
    "expand_home",
    "load_arrays",
    "save_arrays",
    "write_atomically",
    "write_folder_atomically",
    "write_lines",
    "write_table",
    "write_together",
]

TEMPORARY = ".tmp"
"""End of the name of a file or folder that is not whole yet; its name begins with a dot and the name to be."""


_MOST_UNPACKED = 2**30
_MOST_RATIO = 100


def _temporary(target: Path) -> Path:
    # Not the number of the process: two machines that write to one disk may have the same.
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Writes a file so that an interruption or a full disk leaves the earlier file as it was.

    Args:
        path: Where the file is to be.
        write: Called with a temporary path in the same folder; what it writes there is moved into place.
    """
    write_together({Path(path): write})


def write_together(contents: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Writes files that belong together; none gets its name before all of them are on the disk.

    Args:
        contents: For each file where it is to be, and what writes it, as for `write_atomically`.

    Raises:
        OSError: If a file cannot be written, whatever torch and safetensors raise then; `filename` is the file to be.
    """
    temporaries = {path: _temporary(path) for path in contents}
    try:
        for temporary, write in zip(temporaries.values(), contents.values(), strict=True):
            temporary.touch()
            mode = temporary.stat().st_mode
            _run(write, temporary, next(path for path, place in temporaries.items() if place == temporary))
            os.chmod(temporary, mode)  # some libraries (safetensors) make files that nobody else may read
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for target, temporary in temporaries.items():
            os.replace(temporary, target)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _run(write: Callable[[Path], Any], temporary: Path, target: Path) -> None:
    """Writes a file; what libraries raise when the disk is full becomes an `OSError`.

    torch's writer of archives raises RuntimeError with a place in its C++ source, safetensors an error of its own that
    quotes the system's.
    """
    try:
        write(temporary)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error
    except RuntimeError as error:
        if not re.search(r"inline_container|PytorchStreamWriter|iostream error|unexpected pos", str(error)):
            raise
        full = shutil.disk_usage(temporary.parent).free < 2**20
        number_of = errno.ENOSPC if full else errno.EIO
        raise OSError(number_of, os.strerror(number_of), str(target)) from error


def write_folder_atomically(
    path: str | os.PathLike[str], write: Callable[[Path], Any], *, replace: bool = False
) -> None:
    """Makes a folder that is not seen before it is whole.

    Args:
        path: Where the folder is to be; the folders above it are made.
        write: Called with an empty temporary folder beside it; what it writes there is moved into place.
        replace: Whether a folder that is there is removed when the new one is whole.

    Raises:
        OSError: If it cannot be written, or there is a folder with files and `replace` is off.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if replace and target.exists():
            shutil.rmtree(target)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it is gone already if all went well


def expand_home(path: str, *, root: str = "") -> str:
    """Returns a path that begins with ``~/`` or ``~name/`` below the home folder, as a shell would write it.

    Args:
        path: Any path; one that exists as it is written stays.
        root: Folder that relative paths start from.
    """
    if not path.startswith("~") or os.path.lexists(os.path.join(root, path)):
        return path
    return os.path.expanduser(path)


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an ``.npz`` under exactly this name; numpy would append a suffix to another one."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def load_arrays(file: str | os.PathLike[str] | BinaryIO) -> dict[str, np.ndarray]:
    """Reads an ``.npz``: arrays of numbers and texts, never objects.

    Its checksums are compared, and no memory is taken for what is not there: neither for a shape that a head only
    claims, nor for more than a gigabyte that a hundredth of it unpacks to.

    Raises:
        ValueError: If it is damaged, or something else.
        OSError: If it cannot be read.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            held = sum(info.compress_size for info in archive.infolist())
            unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > max(_MOST_UNPACKED, _MOST_RATIO * held):
                raise ValueError(f"it would unpack to {unpacked} bytes, from {held}")
            for info in archive.infolist():
                with archive.open(info) as member:
                    arrays[info.filename.removesuffix(".npy")] = _array(member.read(info.file_size), info.filename)
                    if member.read(1):
                        raise ValueError(f"{info.filename}: is longer than its archive says")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("its parts are not where it says") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise ValueError(" ".join(str(error).split()) or "cut off") from error
    return arrays


def _array(content: bytes, name: str) -> np.ndarray:
    """Returns the array in the bytes of an ``.npy``."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"{name}: its head is damaged") from error
    count = math.prod(shape)
    if dtype.hasobject or dtype.names is not None or any(side < 0 for side in shape):
        raise ValueError(f"{name}: is no plain array")
    if len(content) - stream.tell() != count * dtype.itemsize:
        raise ValueError(f"{name}: has another number of bytes than its shape {shape} takes")
    if not count:
        return np.empty(shape, dtype)
    flat = np.frombuffer(content, dtype, count, stream.tell())
    return (flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)).copy()


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:  # it may name the temporary file or a folder above
        raise StvidError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_table(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], *, errors: str = "surrogateescape"
) -> None:
    """Writes a CSV.

    Args:
        path: Where; folders above it are made.
        header: The first line.
        rows: The others.
        errors: What becomes of a name that is not UTF-8, as for `open`: a report may name such a file.

    Raises:
        StvidError: If it cannot be written.
    """

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8", errors=errors, newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            table.writerows(rows)

    _write(path, write)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes a text file; without lines there is none, not even an earlier one.

    Raises:
        StvidError: If it cannot be written.
    """
    if not lines:
        path.unlink(missing_ok=True)
        return
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")
    _write(path, lambda target: target.write_bytes(content))
