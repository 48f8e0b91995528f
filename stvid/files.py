"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError

from stvid.errors import StvidError

__all__ = [
    "TEMPORARY",
    "claimed",
    "clear_leftovers",
    "csv_cell",
    "draft_folder",
    "expand_home",
    "load_arrays",
    "run_writer",
    "save_arrays",
    "try_lock",
    "write_atomically",
    "write_folder_atomically",
    "write_lines",
    "write_table",
    "write_together",
]

TEMPORARY = ".tmp"
"""End of the name of a file or folder that is not whole yet; its name begins with a dot and the name to be."""


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}" + re.escape(TEMPORARY), flags=re.S)
_MOST_UNPACKED = 2**30
_MOST_RATIO = 100


def _temporary(target: Path) -> Path:
    # Not the number of the process: two machines that write to one disk may have the same.
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], Any], *, lasting: bool = True) -> None:
    """Writes a file so that an interruption or a full disk leaves the earlier file as it was.

    Args:
        path: Where the file is to be.
        write: Called with a temporary path in the same folder; what it writes there is moved into place.
        lasting: Whether it must outlive a loss of power, for which the disk is waited for; without, the file may be
            there with other bytes then.
    """
    write_together({Path(path): write}, lasting=lasting)


def write_together(contents: Mapping[Path, Callable[[Path], Any]], *, lasting: bool = True) -> None:
    """Writes files that belong together; none gets its name before all of them are on the disk.

    Args:
        contents: For each file where it is to be, and what writes it, as for `write_atomically`.
        lasting: Whether they must outlive a loss of power.

    Raises:
        OSError: If a file cannot be written, whatever torch and safetensors raise then; `filename` is the file to be.
    """
    for folder in {path.parent for path in contents}:
        clear_leftovers(folder)
    with contextlib.ExitStack() as held:
        temporaries = {path: held.enter_context(_draft(path)) for path in contents}
        for target, write in contents.items():
            temporary = temporaries[target]
            with _named(temporary, target):
                mode = temporary.stat().st_mode
                run_writer(write, temporary, target)
                os.chmod(temporary, mode)  # some libraries (safetensors) make files that nobody else may read
                if lasting:
                    with open(temporary, "rb+") as file:
                        os.fsync(file.fileno())
        for target, temporary in temporaries.items():
            with _named(temporary, target):
                os.replace(temporary, target)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Writes texts as UTF-8 that belong together; see `write_together`."""

    def writer(text: str) -> Callable[[Path], Any]:
        return lambda file: file.write_text(text, encoding="utf-8")

    write_together({path: writer(text) for path, text in texts.items()})


@contextlib.contextmanager
def _named(temporary: Path, target: Path) -> Iterator[None]:
    """Lets an error name the file that is to be, not the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)) and error.errno is not None:
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise


@contextlib.contextmanager
def _draft(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Makes an empty temporary file or folder beside a place, locked as long as this process lives; removes it."""
    temporary = _temporary(target)
    with _named(temporary, target):
        temporary.mkdir() if folder else temporary.touch()
    lock = try_lock(temporary)
    try:
        yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)  # it is gone already if all went well
        else:
            temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def try_lock(path: Path) -> int | None:
    """Locks a file or folder for this process until the descriptor that is returned is closed.

    The system gives the lock back when the process ends, however it does.

    Returns:
        None if another process has it, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


_cleared: set[str] = set()


def clear_leftovers(folder: Path) -> None:
    """Removes what killed processes had half written in a folder, the first time that this process writes there.

    A temporary file is left over if nobody holds its lock.
    """
    place = os.path.abspath(folder)
    if place in _cleared:
        return
    _cleared.add(place)
    try:
        names = [entry.name for entry in os.scandir(place) if _LEFTOVER.fullmatch(entry.name)]
    except OSError:  # it is not there, or may not be listed; who writes will say so
        return
    for path in (Path(place, name) for name in names):
        lock = try_lock(path)
        if lock is None:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # another process clears, too
                path.unlink()
        os.close(lock)


@contextlib.contextmanager
def claimed(target: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes of stvid from writing the same output until the end of the ``with``.

    Args:
        target: The file or folder that is written; the folder above it is made. A file ``.NAME.lock`` stands beside it
            meanwhile.

    Raises:
        StvidError: If another process writes it now, or the folder cannot be written to.
    """
    place = Path(target)
    absolute = Path(os.path.abspath(target))
    lock = absolute.with_name(f".{absolute.name}.lock")
    try:
        import fcntl
    except ImportError:  # not POSIX: two processes are not kept apart
        yield
        return
    made = not lock.parent.exists()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StvidError(f"{place}: cannot be written ({error.strerror or error})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.exists(lock) and os.path.samestat(os.stat(lock), os.fstat(descriptor))
        except BlockingIOError:
            mine = False
        except OSError:  # a file system without locks
            mine = True
        if not mine:
            raise StvidError(f"{place}: another process writes it now; wait for its end, or choose another place")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made:  # and nothing has been written
                with contextlib.suppress(OSError):
                    lock.parent.rmdir()
    finally:
        os.close(descriptor)


def run_writer(write: Callable[[Path], Any], temporary: Path, target: Path) -> None:
    """Writes a file or folder; what libraries raise when the disk is full becomes an `OSError`.

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
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target) as temporary, _named(temporary, target):
        run_writer(write, temporary, target)
        if replace and target.exists():
            shutil.rmtree(target)
        os.rename(temporary, target)


@contextlib.contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside a place, for what is to be moved there; it is removed at the end of the ``with``.

    What killed processes have left in the folder above is removed, too.
    """
    clear_leftovers(target.parent)
    with _draft(target, folder=True) as temporary:
        yield temporary


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


def csv_cell(value: Any) -> Any:
    """Returns a cell that no spreadsheet takes for a formula: one that begins like one gets an apostrophe in front.

    Names of files and classes come from others, and formulas can fetch addresses and start programs.
    """
    if not isinstance(value, str) or not value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "|")):
        return value
    return value if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", value) else f"'{value}"


def write_table(
    path: Path,
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    errors: str = "surrogateescape",
    formulas: bool = False,
) -> None:
    """Writes a CSV.

    Args:
        path: Where; folders above it are made.
        header: The first line.
        rows: The others.
        errors: What becomes of a name that is not UTF-8, as for `open`: a report may name such a file.
        formulas: Whether texts stay as they are that a spreadsheet would take for formulas; see `csv_cell`. So must
            lists that stvid reads again.

    Raises:
        StvidError: If it cannot be written.
    """

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8", errors=errors, newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            table.writerows(rows if formulas else ([csv_cell(cell) for cell in row] for row in rows))

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
