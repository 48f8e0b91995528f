"""Bytes of remote videos that are kept on a disk of this machine, so that a later epoch need not fetch them again.

It is off unless the environment names a folder, so that the loader's processes know it, too:

    STVID_REMOTE_CACHE=/scratch/blocks      # or --remote_cache DIR of any command
    STVID_REMOTE_CACHE_GB=200               # or --remote_cache_gb N; default 10

Each range of bytes that was fetched is a file of the folder, named by the video (its address, size, and the ETag or the
date that the server tells) and by the range, so that a video that has changed is another one. A file is written whole
or not at all, and ends with a checksum: a damaged one is removed, and its bytes are fetched again. The folder may be
shared by the processes of one machine. It never holds more than its limit; those that were not read for the longest
time go first. If nothing can be written there, because the disk is full or the folder is read-only, that is said once,
and reading goes on with what is there and what is fetched.

Why not a library: the caches of fsspec hold whole files, or blocks without a bound, and diskcache keeps its list in a
data base that was last released in 2023.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from stvid.console import printable
from stvid.errors import ConfigError
from stvid.files import try_lock, write_atomically

__all__ = [
    "FOLDER_VARIABLE",
    "LIMIT_VARIABLE",
    "BlockCache",
    "cache_of_environment",
    "check_environment",
    "version_key",
]

FOLDER_VARIABLE = "STVID_REMOTE_CACHE"
LIMIT_VARIABLE = "STVID_REMOTE_CACHE_GB"
_DEFAULT_GB = 10.0
_CLUSTER = 4096
"""Bytes of which a disk gives whole numbers; a file of one byte takes so many."""
_EVICT_TO = 0.9
"""Share of the limit that is kept when it was reached, so that not every block needs a look at all files."""
_PATIENCE = 20.0  # seconds that a process waits for another one that makes room
_CHECKSUM = 4  # bytes
_DIGITS = 20  # of the number of bytes that is written down
_BLOCK = re.compile(r"([0-9a-f]{32})-(\d+)-(\d+)")
_TAGS = (
    *("ETag", "etag", "Content-MD5", "md5Hash", "generation", "blob_id", "Last-Modified", "LastModified"),
    *("last_modified", "updated", "mtime", "created"),
)
"""Names under which file systems of fsspec tell a file's version: http, s3, gs, abfs, hf, sftp, memory."""


def version_key(url: str, facts: Mapping[str, Any]) -> str | None:
    """Returns a name for the present version of a remote file.

    Args:
        url: Its address.
        facts: What its file system tells of it (`fsspec`'s ``info``).

    Returns:
        32 hexadecimal digits; None if nothing is told by which a change of the file could be seen.
    """
    size = facts.get("size")
    tags = [(name, str(facts[name])) for name in _TAGS if facts.get(name)]
    if size is None or not tags:
        return None
    return hashlib.sha256(json.dumps([url, int(size), tags]).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def cache_of_environment() -> BlockCache | None:
    """Returns the cache that the environment names; None without.

    Raises:
        ConfigError: If the limit is no positive number.
    """
    folder, limit = os.environ.get(FOLDER_VARIABLE, ""), os.environ.get(LIMIT_VARIABLE, "")
    return _cache(os.path.abspath(os.path.expanduser(folder)), _bytes_of(limit)) if folder else None


def check_environment() -> None:
    """Makes the folder of the cache that the environment names, if it names one.

    Raises:
        ConfigError: If that cannot be, the limit is no positive number, or there is a limit but no folder.
    """
    cache = cache_of_environment()
    if cache is None:
        if os.environ.get(LIMIT_VARIABLE):
            raise ConfigError(
                f"{LIMIT_VARIABLE} (--remote_cache_gb): belongs to {FOLDER_VARIABLE} (--remote_cache), which is missing"
            )
        return
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{FOLDER_VARIABLE} (--remote_cache): {cache.folder}"
        raise ConfigError(f"{what}: no folder can be made there ({error.strerror or error})") from error


@functools.lru_cache(maxsize=8)
def _cache(folder: str, most_bytes: int) -> BlockCache:
    return BlockCache(folder, most_bytes)


def _bytes_of(limit: str) -> int:
    try:
        gigabytes = float(limit or _DEFAULT_GB)
    except ValueError:
        gigabytes = 0.0
    if not (gigabytes > 0 and math.isfinite(gigabytes)):
        raise ConfigError(f"{LIMIT_VARIABLE} (--remote_cache_gb): {limit!r} is not a positive number of gigabytes")
    return int(gigabytes * 1e9)


class BlockCache:
    """Ranges of bytes of remote files in a folder of bounded size.

    Args:
        folder: The folder; it is made when something is kept.
        most_bytes: Bytes that all blocks may take together.

    Attributes:
        folder: The folder.
        most_bytes: Its limit.
    """

    def __init__(self, folder: str | os.PathLike[str], most_bytes: int) -> None:
        self.folder = Path(folder)
        self.most_bytes = most_bytes
        self._writes = True
        self._said: set[str] = set()
        self._voice: int | None = None  # the lock of the process that speaks for all

    def blocks(self, key: str) -> list[tuple[int, int]]:
        """Returns the ranges (start, end) of a file that are there."""
        try:
            names = [entry.name for entry in os.scandir(self._shelf(key))]
        except FileNotFoundError:
            return []
        except OSError as error:
            self._say(f"cannot be read ({error.strerror or error}); reading goes on without it")
            return []
        found = (match for name in names if (match := _BLOCK.fullmatch(name)) and match[1] == key)
        return [(int(match[2]), int(match[3])) for match in found]

    def load(self, key: str, start: int, end: int) -> bytes | None:
        """Returns a block; None if it is gone, or damaged, which also removes it."""
        path = self._place(key, start, end)
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # another process has made room
            return None
        except OSError as error:
            self._say(f"cannot be read ({error.strerror or error}); those bytes are fetched again")
            return None
        body, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:]
        if len(body) != end - start or checksum != self._checksum(path, body):
            self._say("holds damaged blocks, which are fetched again; is its disk sound?")
            with contextlib.suppress(OSError):  # another process has found it, too, or the folder is read-only
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # as above
            os.utime(path)  # the latest is the last to go
        return body

    def store(self, key: str, start: int, content: bytes) -> None:
        """Keeps a block, if it fits; makes room for it first."""
        path = self._place(key, start, start + len(content))
        taken = _on_disk(len(content) + _CHECKSUM)
        if not self._writes or not content or taken > self.most_bytes:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reserve(taken)
            whole = b"".join((content, self._checksum(path, content)))
            write_atomically(path, lambda temporary: temporary.write_bytes(whole), lasting=False)
        except OSError as error:
            self._writes = False
            self._say(f"cannot be written ({error.strerror or error}); reading goes on without keeping more")

    def forget(self, key: str) -> None:
        """Removes all blocks of a file."""
        for start, end in self.blocks(key):
            with contextlib.suppress(OSError):  # another process has removed it, or the folder is read-only
                self._place(key, start, end).unlink()

    def say_unversioned(self, url: str) -> None:
        """Says once that a server tells nothing by which a change of its files could be seen."""
        host = url.split("://", 1)[-1].split("/", 1)[0]
        self._say(f"keeps nothing of {host}: it tells neither ETag nor date, so that a changed video would go unseen")

    def used(self) -> int:
        """Returns the bytes that the blocks take."""
        return sum(size for _, size, _ in self._files())

    # room

    def _reserve(self, count: int) -> None:
        """Counts bytes that will be written, and removes the oldest blocks if there would be too many.

        Raises:
            OSError: If that cannot be written down, or another process takes too long.
        """
        with FileLock(self.folder / ".lock", timeout=_PATIENCE):
            counter = os.open(self.folder / ".used", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                told = os.read(counter, _DIGITS)
                used = int(told) if len(told) == _DIGITS and told.isdigit() else self.used()  # the first one asks
                if used + count > self.most_bytes:
                    used = self._evict(int(self.most_bytes * _EVICT_TO) - count)
                os.pwrite(counter, f"{used + count:0{_DIGITS}d}".encode(), 0)  # in place: a full disk has room for it
            finally:
                os.close(counter)

    def _evict(self, most: int) -> int:
        """Removes the blocks that were read longest ago until the others take at most so many bytes; returns theirs."""
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used <= max(most, 0):
                break
            if os.path.basename(path).startswith("."):  # somebody writes it now
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= size
        return used

    def _files(self) -> list[tuple[int, int, str]]:
        """Returns when each block was read, its bytes on the disk, and its path."""
        found = []
        for shelf in os.scandir(self.folder):
            if len(shelf.name) != 3 or not shelf.is_dir():
                continue
            for entry in os.scandir(shelf.path):
                with contextlib.suppress(FileNotFoundError):  # a temporary file that has got its name
                    status = entry.stat()
                    found.append((status.st_mtime_ns, _on_disk(status.st_size), entry.path))
        return found

    # names

    def _shelf(self, key: str) -> Path:
        return self.folder / key[:3]

    def _place(self, key: str, start: int, end: int) -> Path:
        return self._shelf(key) / f"{key}-{start}-{end}"

    @staticmethod
    def _checksum(path: Path, content: bytes) -> bytes:
        """Returns the CRC-32 of a block and of its name, so that a block in another's place is found, too."""
        return zlib.crc32(content, zlib.crc32(path.name.encode())).to_bytes(_CHECKSUM, "big")

    def _say(self, text: str) -> None:
        """Says something once: the first process that has something to say speaks for all as long as it lives."""
        if text in self._said:
            return
        self._said.add(text)
        if self._voice is None and os.name == "posix" and self.folder.is_dir():
            self._voice = try_lock(self.folder)
            if self._voice is None:
                return
        print(printable(f"the cache of remote videos in {self.folder} {text}"), file=sys.stderr, flush=True)


def _on_disk(size: int) -> int:
    return -(-size // _CLUSTER) * _CLUSTER
