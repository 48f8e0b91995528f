"""Several ranges of a file in one request, where an HTTP server sends them so (RFC 9110, 14.6: multipart/byteranges).

The packets of a clip lie in a hundred pieces as a rule, with sound and packets that nobody needs between them. With
few requests of one range each, a third of what comes is not needed; with several ranges in a request, almost nothing.
Web servers (Apache, nginx, Caddy) send them; object stores (S3, Google, Azure) do not, and answer with the whole file.
So each process asks a host once, after it has read a few clips from there, for two bytes that it knows already; an
answer with the whole file is not read.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["SeveralRanges"]

MOST_PARTS = 150
"""Ranges of one clip; Apache refuses more than 200 in a request."""
PART_HEAD = 160
"""Bytes that a server sends before each part, so that smaller gaps are fetched."""
_PARALLEL_BYTES = 64 * 2**10
"""Bytes of a request that make another one at the same time worth its while."""
_PARALLEL = 4
ASK_AFTER = 8
"""Clips from a host before it is asked; who reads only a few is not made to wait."""
_RANGE = re.compile(rb"(?i)content-range:[ \t]*bytes[ \t]+(\d+)-(\d+)/")

Ranges = list[tuple[int, int]]

_clips: dict[str, int] = {}
_sends: dict[str, bool] = {}


class SeveralRanges:
    """Asks one host for several ranges of a file in a request, if it is known to send them.

    Args:
        files: fsspec's file system.
        url: Address of the file.
    """

    def __init__(self, files: Any, url: str) -> None:
        self._files = files
        parts = urllib.parse.urlsplit(url)
        self._url = url
        self._host = f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else ""

    @property
    def sent(self) -> bool:
        """Whether the host is known to send them."""
        return _sends.get(self._host, False)

    def is_due(self) -> bool:
        """Counts a clip; returns whether the host is to be asked now whether it sends them."""
        if not self._host or self._host in _sends:
            return False
        _clips[self._host] = _clips.get(self._host, 0) + 1
        return _clips[self._host] >= ASK_AFTER

    def note(self, sends: bool) -> None:
        """Notes whether the host sends them."""
        _sends[self._host] = sends

    def groups(self, ranges: Ranges) -> list[Ranges]:
        """Divides the ranges of a clip among requests that run at the same time."""
        sizes = np.array([end - start for start, end in ranges])
        count = int(max(1, min(_PARALLEL, sizes.sum() // _PARALLEL_BYTES, len(ranges))))
        number = np.minimum((np.cumsum(sizes) - sizes) * count // max(1, int(sizes.sum())), count - 1)
        found = [[ranges[at] for at in np.flatnonzero(number == group)] for group in range(count)]
        return [group for group in found if group]

    def fetch(self, groups: Sequence[Ranges]) -> tuple[list[bytes | None], int]:
        """Asks for groups of ranges, one request a group, at the same time.

        Returns:
            The bytes of each range in their order, None for those that did not come; and the bytes that came.
        """
        from fsspec.asyn import sync

        answers = sync(self._files.loop, self._ask_all, groups)
        found: list[bytes | None] = []
        for ranges, (parts, _) in zip(groups, answers, strict=True):
            found += [_within(parts, start, end) for start, end in ranges]
        return found, sum(count for _, count in answers)

    async def _ask_all(self, groups: Sequence[Ranges]) -> list[tuple[list[tuple[int, bytes]], int]]:
        import asyncio

        return list(await asyncio.gather(*map(self._ask, groups)))

    async def _ask(self, ranges: Ranges) -> tuple[list[tuple[int, bytes]], int]:
        """Returns the parts (start, bytes) of one answer, none if it is another one, and the bytes that came."""
        import aiohttp

        session = await self._files.set_session()
        options = dict(self._files.kwargs)
        text = ",".join(f"{start}-{end - 1}" for start, end in ranges)
        options["headers"] = {**options.get("headers", {}), "Range": f"bytes={text}", "Accept-Encoding": "identity"}
        try:
            async with session.get(self._files.encode_url(self._url), **options) as answer:
                if answer.status != 206:
                    answer.close()  # the body would be the whole file
                    if answer.status < 500:
                        self.note(False)
                    return [], 0
                body = await answer.read()
                return parts_of(answer.headers, body), len(body)
        except (aiohttp.ClientError, OSError, TimeoutError):  # the plain requests that follow will say more
            return [], 0


def parts_of(headers: Any, body: bytes) -> list[tuple[int, bytes]]:
    """Returns the parts (start, bytes) of an answer: of one range, or of several (multipart/byteranges).

    A part that is cut off, or of which the answer does not say where it lies, is left out.
    """
    single = _RANGE.match(b"content-range: " + headers.get("Content-Range", "").encode())
    if single is not None:
        return [(int(single[1]), body)] if len(body) == int(single[2]) + 1 - int(single[1]) else []
    kind = re.search(r'(?i)^multipart/byteranges;.*boundary="?([^";]+)"?', headers.get("Content-Type", ""))
    if kind is None:
        return []
    parts, at, line = [], 0, b"--" + kind[1].strip().encode()
    while (at := body.find(line, at)) >= 0:
        head_end = body.find(b"\r\n\r\n", at)
        place = _RANGE.search(body, at, max(head_end, at))
        if head_end < 0 or place is None:
            break
        begin, size = head_end + 4, int(place[2]) + 1 - int(place[1])
        if begin + size > len(body):
            break
        parts.append((int(place[1]), body[begin : begin + size]))
        at = begin + size  # not within the part, whose bytes may look like a boundary
    return parts


def _within(parts: Sequence[tuple[int, bytes]], start: int, end: int) -> bytes | None:
    """Returns the bytes of a range if one part holds it; servers may join neighbours."""
    for begin, content in parts:
        if begin <= start and end <= begin + len(content):
            return content[start - begin : end - begin]
    return None
