"""Files behind a URL, of which only the bytes that are needed are fetched.

The index of a video knows the place of every packet, so that a clip of a remote file takes a few ranges of bytes, all
fetched at the same time. `RemoteFile` fetches them: neighbours become one request, what came is kept for a while, and a
request that fails is tried again. Whatever fsspec opens will do (``https://``, ``s3://``, ``gs://``, ``hf://``,
``memory://``); the package that a scheme needs is named when it is missing.

An MP4 or MOV file without an index needs its header only: `HollowFile` shows FFmpeg the header as it is, and zeros in
the place of pictures and sound. The packets that it then finds have their true times, sizes and places, edit lists and
all, and nothing of the pictures was fetched.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stvid.errors import StvidError, VideoError
from stvid.video.block_cache import cache_of_environment, version_key
from stvid.video.several_ranges import MOST_PARTS, PART_HEAD, SeveralRanges

__all__ = [
    "HollowFile",
    "NoPartsError",
    "RemoteError",
    "RemoteFile",
    "file_system",
    "is_remote_file",
    "is_url",
    "join_ranges",
    "reason_of",
]

MOST_REQUESTS = 6
"""Ranges that are fetched for one clip, if they can be joined to so few without much that is not needed."""
_REQUEST_HEAD = 1024
"""Bytes that another request costs, with those of its answer's head."""
_AHEAD = 64 * 2**10
"""Bytes of one request where nobody has said what will be read."""
_PART = 8 * 2**20
"""Bytes of one request where a whole file is fetched."""
_HELD = 64 * 2**20
"""Bytes that one file keeps of what it fetched."""
_MOST_BYTES = 8 * 2**30
_TOO_LARGE = "is larger than 8 GB; download it first"
_TRIES = 4
_PAUSE = 0.2  # seconds before the second try; each later pause is twice as long
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)  # trying again would not help
_LOCAL = ("file", "local")
_GONE = (404, 410)  # answers of a server
_REFUSED = (400, 401, 403, *_GONE)

_BOX_WITH_DATA = b"mdat"
_KNOWN_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"pdin", b"meta", b"udta"))
_MOST_BOXES = 1000
_MOST_HEADER = 256 * 2**20


class RemoteError(VideoError):
    """The bytes of a remote file do not come."""


class NoPartsError(RemoteError):
    """A server sends whole files only."""


def is_url(source: Any) -> bool:
    """Tells whether a source is the address of a file in a network, and no file of this machine."""
    return isinstance(source, str) and "://" in source and not os.path.exists(source)


def is_remote_file(source: Any) -> bool:
    """Tells whether a source is a URL of a kind whose files can be read in parts; those of cameras (rtsp) cannot."""
    from fsspec import available_protocols

    return is_url(source) and source.split("://", 1)[0].lower() in set(available_protocols()) - set(_LOCAL)


def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a path or URL, and the path in it.

    Raises:
        StvidError: If the kind of URL is unknown, or the package that it needs is not installed.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if "://" not in url:
        return LocalFileSystem(), url
    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:  # an unknown kind of URL, or one whose package is not installed
        raise StvidError(f"{url}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Returns the reason that an error of a file system gives, in one line."""
    status = getattr(error, "status", None)  # aiohttp's answers of a server
    if status is not None:
        return f"{status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
        return "connection refused"  # aiohttp words it as a call of its own
    reason = (isinstance(error, OSError) and error.strerror) or str(error).strip() or type(error).__name__
    return " ".join(str(reason).split())


def _cause(error: BaseException) -> BaseException:
    """Returns the true reason where fsspec says that there is no such file, as it does when a server gives no size."""
    cause = error.__cause__
    told = cause is not None and (hasattr(cause, "status") or isinstance(cause, OSError))
    return cause if isinstance(error, FileNotFoundError) and told and cause is not None else error


def _is_final(error: BaseException) -> bool:
    """Whether asking again would give the same answer."""
    cause = _cause(error)
    status = getattr(cause, "status", None)
    return status in _REFUSED if status is not None else isinstance(cause, _FINAL)


def join_ranges(
    starts: Sequence[int] | np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    *,
    most: int = MOST_REQUESTS,
    least_gap: int = _REQUEST_HEAD,
) -> list[tuple[int, int]]:
    """Joins pieces of a file to the ranges of bytes that are asked for.

    Gaps that take no more bytes than another request does are closed. If there are too many ranges then, the smallest
    gaps are closed, so that the largest ones stay open: no other choice fetches fewer bytes in so few ranges. A gap of
    more than 64 KB stays open all the same.

    Args:
        starts: Where the pieces begin, in bytes; they may overlap and come in any order.
        sizes: Their bytes.
        most: Ranges that are wanted at most.
        least_gap: Bytes up to which a gap is closed always.

    Returns:
        (start, end) of each range, ascending.
    """
    order = np.argsort(np.asarray(starts, np.int64), kind="stable")
    begins = np.asarray(starts, np.int64)[order]
    ends = np.maximum.accumulate(begins + np.asarray(sizes, np.int64)[order])
    gaps = begins[1:] - ends[:-1]
    closed = gaps <= least_gap
    surplus = int((~closed).sum()) + 1 - most
    if surplus > 0:
        smallest = np.argsort(np.where(closed, np.iinfo(np.int64).max, gaps), kind="stable")[:surplus]
        closed[smallest[gaps[smallest] <= _AHEAD]] = True
    firsts = np.concatenate(([0], np.flatnonzero(~closed) + 1)).astype(int)
    lasts = np.concatenate((np.flatnonzero(~closed), [len(begins) - 1])).astype(int)
    return [(int(begins[first]), int(ends[last])) for first, last in zip(firsts, lasts, strict=True)]


class RemoteFile(io.RawIOBase):
    """A file behind a URL, read like one of this machine.

    Nothing is asked for until it is needed, not even the file's size. What was fetched is kept, up to 64 MB, and on a
    disk, too, if the environment names a folder for it (`stvid.video.block_cache`); then the server is asked for the
    file's version first. Make it in the process that reads, since connections do not survive a fork.

    Args:
        url: Address of the file, of any kind that fsspec knows.

    Attributes:
        url: The address.
        requests: Requests for bytes so far.
        fetched: Bytes that came.

    Raises:
        RemoteError: If the kind of URL is unknown, or the package that it needs is missing.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.requests = 0
        self.fetched = 0
        self._at = 0
        self._size: int | None = None
        self._held: list[tuple[int, bytes]] = []  # the latest last
        self._cache = cache_of_environment()
        self._key: str | None = None  # of this version of the file in the cache; None until it was asked for
        self._kept: set[tuple[int, int]] = set()  # ranges that the cache has
        if url.split("://", 1)[0].lower() in _LOCAL:
            raise RemoteError(url, "names a file of this machine; give its path")
        try:
            self._files, self._path = file_system(url)
        except StvidError as error:
            raise RemoteError(url, str(error).removeprefix(f"{url}: ")) from error
        self._several = SeveralRanges(self._files, url)

    @property
    def size(self) -> int:
        """Bytes of the file; asked for once.

        Raises:
            RemoteError: If there is no such file, or the server does not tell its size.
        """
        self._look_into_cache()
        if self._size is None:
            size = self._try(lambda: self._files.size(self._path))
            if size is None:
                raise NoPartsError(self.url, "cannot be read in parts: the server does not tell its size")
            self._size = int(size)
        return self._size

    def prefetch(self, starts: Sequence[int] | np.ndarray, sizes: Sequence[int] | np.ndarray) -> None:
        """Fetches pieces that will be read, joined to few ranges, all at the same time.

        Raises:
            RemoteError: If they cannot be read.
        """
        pieces = [(int(start), int(size)) for start, size in zip(starts, sizes, strict=True)]
        self._get([piece for piece in pieces if self._find(*piece) is None])

    def read_all(self) -> bytes:
        """Returns the whole file, fetched in parts at the same time, or in one where the server gives no parts.

        Raises:
            RemoteError: If it cannot be read, or is larger than 8 GB.
        """
        try:
            if self.size > _MOST_BYTES:
                raise RemoteError(self.url, _TOO_LARGE)
            parts = [(start, min(start + _PART, self.size)) for start in range(0, self.size, _PART)]
            kept = [self._from_cache(start, end) for start, end in parts]
            missing = [part for part, content in zip(parts, kept, strict=True) if content is None]
            if len(parts) > 1 or not missing:
                fetched = iter(self._fetch_and_store(missing))
                return b"".join(next(fetched) if content is None else content for content in kept)
        except NoPartsError:
            pass
        content = bytes(self._try(lambda: self._files.cat_file(self._path)))
        self.requests += 1
        self.fetched += len(content)
        if len(content) > _MOST_BYTES:
            raise RemoteError(self.url, _TOO_LARGE)
        if len(content) == self._size:
            self._store([(0, len(content))], [content])
        return content

    def forget(self) -> None:
        """Forgets all that was fetched, also what the cache on the disk holds of this file."""
        self._held.clear()
        if self._cache is not None and self._key is not None:
            self._cache.forget(self._key)
            self._kept.clear()

    # what io.RawIOBase asks for

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position; only a count from the end asks for the size."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = max(0, (self.size if base is None else base) + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer from the position on, as far as the file goes.

        Raises:
            RemoteError: If the bytes cannot be read.
        """
        view = memoryview(buffer).cast("B")
        found = self._find(self._at, len(view))
        if found is None and self._hold_cached([(self._at, len(view))]) == []:
            found = self._find(self._at, len(view))
        if found is None:
            # A plan has told what will be read, or else somebody reads on from here.
            end = self._at + max(len(view), _AHEAD)
            end = end if self._size is None and len(view) >= _AHEAD else min(end, self.size)
            if end <= self._at:
                return 0
            (content,) = self._fetch_and_store([(self._at, end)])
            self._hold([(self._at, content)])
            found = memoryview(content)
        count = min(len(view), len(found))
        view[:count] = found[:count]
        self._at += count
        return count

    # what was fetched

    def _find(self, start: int, size: int) -> memoryview | None:
        """Returns the bytes from `start` on if all `size` of them are held (or all that there are up to the end)."""
        for begin, content in reversed(self._held):
            if begin <= start < begin + len(content):
                found = memoryview(content)[start - begin :]
                if len(found) >= size or start + len(found) == self._size:
                    return found
        return None

    def _get(self, pieces: list[tuple[int, int]]) -> None:
        """Gets pieces (start, size) from the cache on the disk, and the others from the server, and holds them."""
        missing = self._hold_cached(pieces)
        if not missing:
            return
        starts, sizes = zip(*missing, strict=True)
        ranges = join_ranges(starts, sizes)
        due = len(ranges) > 1 and self._several.is_due()
        if self._several.sent and self._cache is None:  # which would keep a hundred small files of each clip
            pieces_of = join_ranges(starts, sizes, most=MOST_PARTS, least_gap=PART_HEAD)
            if len(ranges) > 1 and len(pieces_of) <= MOST_PARTS and self._fetch_several(pieces_of):
                return
        if due:
            ranges = join_ranges(starts, sizes, most=MOST_REQUESTS - 1)
        contents = self._fetch_and_store(ranges)
        self._hold([(start, content) for (start, _), content in zip(ranges, contents, strict=True)])
        if due:
            self._ask_for_several(ranges[0][0], ranges[-1][1] - 1, contents)

    def _fetch_several(self, ranges: list[tuple[int, int]]) -> bool:
        """Holds ranges that were sent several in an answer; returns whether all of them came."""
        groups = self._several.groups(ranges)
        contents, count = self._several.fetch(groups)
        self.requests += len(groups)
        self.fetched += count
        held = [(start, content) for (start, _), content in zip(ranges, contents, strict=True) if content is not None]
        self._hold(held)
        return len(held) == len(ranges)

    def _ask_for_several(self, first: int, last: int, contents: list[bytes]) -> None:
        """Asks the server for two bytes that are known in one request, and notes whether it sends them so."""
        found, count = self._several.fetch([[(first, first + 1), (last, last + 1)]])
        self.requests += 1
        self.fetched += count
        self._several.note(found == [contents[0][:1], contents[-1][-1:]] and count < _AHEAD)

    def _hold(self, blocks: list[tuple[int, bytes]]) -> None:
        """Holds blocks (start, bytes) in memory; the earliest that are held go for them."""
        self._held += blocks
        held = sum(len(content) for _, content in self._held)
        while held > _HELD and len(self._held) > len(blocks):
            held -= len(self._held.pop(0)[1])

    # the cache on the disk

    def _look_into_cache(self) -> None:
        """Asks for the version of the file and for what the cache has of it; once, and only if there is a cache."""
        if self._cache is None or self._key is not None:
            return
        self._files.invalidate_cache(self._path)  # of listings
        facts = self._try(lambda: self._files.info(self._path))
        if facts.get("size") is not None:
            self._size = int(facts["size"])
        self._key = version_key(self.url, facts)
        if self._key is None:
            self._cache.say_unversioned(self.url)
            self._cache = None
        else:
            self._kept = set(self._cache.blocks(self._key))

    def _hold_cached(self, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Holds the blocks of the cache in which pieces (start, size) lie; returns the pieces that it does not have."""
        if self._cache is None or not pieces:
            return pieces
        self._look_into_cache()
        blocks: dict[tuple[int, int], bytes] = {}
        missing = []
        for start, size in pieces:
            while (place := self._block_of(start, start + size, blocks)) is not None and place not in blocks:
                content = self._load(place)
                if content is not None:
                    blocks[place] = content
            if place is None:
                missing.append((start, size))
        self._hold([(start, content) for (start, _), content in blocks.items()])
        return missing

    def _from_cache(self, start: int, end: int) -> memoryview | None:
        """Returns the bytes of a range if the cache has them in one block."""
        self._look_into_cache()
        while (place := self._block_of(start, end, {})) is not None:
            content = self._load(place)
            if content is not None:
                return memoryview(content)[start - place[0] : end - place[0]]
        return None

    def _block_of(self, start: int, end: int, first: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
        """Returns a block that holds a range, up to the end of the file; one of `first` if it can be."""
        end = end if self._size is None else min(end, self._size)
        for blocks in (first, self._kept):
            for block in blocks:
                if block[0] <= start < end <= block[1]:
                    return block
        return None

    def _load(self, block: tuple[int, int]) -> bytes | None:
        """Returns a block of the cache; None if it is gone or damaged, and then it is not asked for again."""
        assert self._cache is not None and self._key is not None
        content = self._cache.load(self._key, *block)
        if content is None:
            self._kept.discard(block)
        return content

    def _store(self, ranges: list[tuple[int, int]], contents: list[bytes]) -> None:
        if self._cache is not None and self._key is not None:
            for (start, _), content in zip(ranges, contents, strict=True):
                self._cache.store(self._key, start, content)
                self._kept.add((start, start + len(content)))

    def _fetch_and_store(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Fetches ranges, and keeps them on the disk where there is a cache."""
        if not ranges:
            return []
        self._look_into_cache()
        contents = self._fetch(ranges)
        self._store(ranges, contents)
        return contents

    # requests

    def _fetch(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Fetches ranges at the same time; those that fail are tried again.

        Raises:
            RemoteError: If one still fails, or the server sends something else than the range.
        """
        got: dict[int, bytes] = {}
        for attempt in range(_TRIES):
            missing = [number for number in range(len(ranges)) if number not in got]
            answers = self._cat([ranges[number] for number in missing])
            self.requests += len(missing)
            reason: BaseException | None = None
            for number, answer in zip(missing, answers, strict=True):
                if isinstance(answer, BaseException):
                    reason = answer
                    continue
                self.fetched += len(answer)
                start, end = ranges[number]
                if len(answer) > end - start:
                    raise NoPartsError(self.url, "cannot be read in parts: the server sends more than was asked for")
                if len(answer) < end - start and self._is_cut(start + len(answer)):
                    reason = OSError(f"the answer broke off after {len(answer)} of {end - start} bytes")
                    continue
                got[number] = bytes(answer)
            if len(got) == len(ranges):
                return [got[number] for number in range(len(ranges))]
            if reason is not None and (_is_final(reason) or attempt == _TRIES - 1):
                break
            time.sleep(_PAUSE * 2**attempt)
        assert reason is not None
        raise RemoteError(self.url, self._told(reason)) from reason

    def _is_cut(self, end: int) -> bool:
        """Whether an answer that ended early ended before the file does."""
        return end < self.size

    def _cat(self, ranges: list[tuple[int, int]]) -> list[Any]:
        """Asks for ranges once; an answer is bytes or an exception."""
        starts, ends = zip(*ranges, strict=True)
        try:
            return list(self._files.cat_ranges([self._path] * len(ranges), list(starts), list(ends), on_error="return"))
        except Exception as error:  # each file system has errors of its own
            return [error] * len(ranges)

    def _try(self, ask: Any) -> Any:
        """Asks something of the file system, several times if need be.

        Raises:
            RemoteError: If it fails.
        """
        for attempt in range(_TRIES):
            try:
                return ask()
            except Exception as error:  # each file system has errors of its own
                if _is_final(error) or attempt == _TRIES - 1:
                    raise RemoteError(self.url, self._told(error)) from error
                time.sleep(_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _told(self, error: BaseException) -> str:
        cause = _cause(error)
        missing = isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in _GONE
        return "no such file" if missing else f"cannot be read ({reason_of(cause)})"


class HollowFile(io.RawIOBase):
    """An MP4 or MOV file as far as its header goes: where pictures and sound lie there are zeros, which nobody sends.

    Args:
        remote: The file.

    Raises:
        RemoteError: If the file cannot be read.
        ValueError: If it is no MP4 or MOV file, or its header lies among the pictures (fragments).
    """

    def __init__(self, remote: RemoteFile) -> None:
        super().__init__()
        self._remote = remote
        self._at = 0
        self._hollow = _data_boxes(remote)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._remote.size)
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer, with zeros where data lie."""
        view = memoryview(buffer).cast("B")
        at, size = self._at, self._remote.size
        count = max(0, min(len(view), size - at))
        end = next((end for start, end in self._hollow if start <= at < end), None)
        if end is not None:
            count = min(count, end - at)
            view[:count] = bytes(count)
        elif count:
            count = min(count, min((start for start, _ in self._hollow if start > at), default=size) - at)
            self._remote.seek(at)
            count = self._remote.readinto(view[:count])
        self._at += count
        return count


def _data_boxes(remote: RemoteFile) -> list[tuple[int, int]]:
    """Finds the insides of the ``mdat`` boxes (ISO/IEC 14496-12, 4.2 and 8.1.1): (start, end) of each.

    Raises:
        ValueError: If the boxes are not those of a file with one header.
    """
    found: list[tuple[int, int]] = []
    at, headers = 0, 0
    for _ in range(_MOST_BOXES):
        if at >= remote.size:
            break
        remote.seek(at)
        head = remote.read(16) or b""
        size, kind, inside = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, inside = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:
            size = remote.size - at
        if kind not in _KNOWN_BOXES or size < inside or len(head) < 8:
            raise ValueError("no boxes of an MP4 file")
        if kind == _BOX_WITH_DATA:
            found.append((at + inside, min(at + size, remote.size)))
        elif kind == b"moov":
            headers += 1
            if size > _MOST_HEADER:
                raise ValueError("a header of more than 256 MB")
            remote.prefetch([at], [min(size, remote.size - at)])  # in one piece: FFmpeg reads it in small ones
        at += size
    if headers != 1 or not found:
        raise ValueError("no header, or several")
    return found
