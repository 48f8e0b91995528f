"""Several ranges in one request: asked for only where a server is known to send them, and then the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from stvid.video import several_ranges as module
from stvid.video.remote import RemoteFile
from stvid.video.several_ranges import ASK_AFTER, SeveralRanges, parts_of
from tests.loopback import Request, Route, Server

CONTENT = np.random.default_rng(0).bytes(10**6)
STARTS, SIZES = np.arange(0, 100) * 9000, np.full(100, 3000)  # a third of each piece is needed


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each test begin like a process that has asked no host."""
    monkeypatch.setattr(module, "_clips", {})
    monkeypatch.setattr(module, "_sends", {})
    monkeypatch.delenv("STVID_REMOTE_CACHE", raising=False)


def answer(content: bytes, text: str, boundary: str = "limit") -> Route:
    """The answer of a server that knows several ranges."""
    body = b""
    for first, last in re.findall(r"(\d+)-(\d+)", text):
        head = (
            f"\r\n--{boundary}\r\nContent-Type: video/mp4\r\nContent-Range: bytes {first}-{last}/{len(content)}\r\n\r\n"
        )
        body += head.encode() + content[int(first) : int(last) + 1]
    body += f"\r\n--{boundary}--\r\n".encode()
    return Route(body, kind=f"multipart/byteranges; boundary={boundary}", headers={"Partial": "1"})


class Several(Server):
    """Answers requests of several ranges as `kind` says."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(self._look)

    def _look(self, request: Request) -> Route:
        text = request.headers.get("Range", "")
        if "," not in text or self.kind == "whole":
            return Route(CONTENT)
        if self.kind == "refused":
            return Route(statuses=[416])
        if self.kind == "first":
            first, last = map(int, re.findall(r"\d+", text)[:2])
            headers = {"Content-Range": f"bytes {first}-{last}/{len(CONTENT)}"}
            return Route(CONTENT[first : last + 1], headers=headers, ranges=False)
        return answer(CONTENT, text)

    def _handler(self) -> type:
        base = super()._handler()

        class Handler(base):  # type: ignore[misc, valid-type]
            def send_response(self, code: int, message: str | None = None) -> None:
                text = self.headers.get("Range", "")
                partial = "," in text and code == 200 and server.kind in ("several", "first")
                super().send_response(206 if partial else code, message)

        server = self
        return Handler


@pytest.fixture
def several(request: pytest.FixtureRequest) -> Iterator[Several]:
    with Several(request.param) as running:
        yield running


def ranges_of(server: Server) -> list[str]:
    return [request.headers["Range"] for request in server.requests if request.method == "GET"]


def read_clip(server: Server) -> RemoteFile:
    file = RemoteFile(f"{server.url}/file")
    file.prefetch(STARTS, SIZES)
    for start, size in zip(STARTS.tolist(), SIZES.tolist(), strict=True):
        file.seek(start)
        assert file.read(size) == CONTENT[start : start + size]
    return file


@pytest.mark.parametrize("several", ["several"], indirect=True)
def test_a_server_that_sends_them_is_asked_for_what_is_needed(several: Several) -> None:
    for clip in range(1, ASK_AFTER + 3):
        several.requests.clear()
        file = read_clip(several)
        asked = ranges_of(several)
        assert file.requests == len(asked) <= 6
        assert any("," in text for text in asked) == (clip >= ASK_AFTER), clip
    assert all("," in text for text in asked) and len(asked) <= 4
    assert SIZES.sum() < file.fetched < 1.1 * SIZES.sum()


@pytest.mark.parametrize("several", ["whole", "refused", "first"], indirect=True)
def test_another_server_is_asked_once(several: Several) -> None:
    for clip in range(1, ASK_AFTER + 5):
        several.requests.clear()
        assert read_clip(several).requests == len(ranges_of(several)) == 6
        assert sum("," in text for text in ranges_of(several)) == (clip == ASK_AFTER)


@pytest.mark.parametrize("several", ["several"], indirect=True)
def test_who_stops_sending_them_is_not_asked_again(several: Several) -> None:
    for _ in range(ASK_AFTER + 1):
        read_clip(several)
    several.kind = "refused"
    read_clip(several)
    several.requests.clear()
    read_clip(several)
    assert not any("," in text for text in ranges_of(several))


def test_an_object_store_is_never_asked() -> None:
    files = SeveralRanges(None, "s3://bucket/a.mp4")
    assert not any(files.is_due() for _ in range(3 * ASK_AFTER)) and not files.sent


def test_parts_are_found_by_their_length() -> None:
    content = b"ab\r\n--limit\r\nContent-Range: bytes 0-1/9\r\n\r\nxy" * 3  # looks like an answer itself
    route = answer(content, "bytes=0-50,60-70")
    headers = {"Content-Type": route.kind}
    assert parts_of(headers, route.content) == [(0, content[:51]), (60, content[60:71])]
    assert parts_of({"Content-Type": 'multipart/byteranges; charset=x; boundary="limit"'}, route.content) == parts_of(
        headers, route.content
    )
    cut = route.content[: route.content.rindex(content[60:71]) + 5]
    assert parts_of(headers, cut) == [(0, content[:51])]
    assert parts_of({"Content-Range": "bytes 3-5/9"}, b"abc") == [(3, b"abc")]
    assert parts_of({"Content-Range": "bytes 3-5/9"}, b"ab") == []
    assert parts_of({"Content-Type": "text/html"}, route.content) == parts_of({}, b"") == []
