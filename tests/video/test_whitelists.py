"""Nothing that is given as a video makes FFmpeg open another file or an address, whatever its name and its text."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stvid.errors import StvidError, VideoError
from stvid.video.reader import VideoReader
from stvid.video.streaming import stream_frames
from stvid.video.whitelists import FORMATS, options_for


def hls(target: str) -> str:
    return f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"


def concat(target: str) -> str:
    return f"ffconcat version 1.0\nfile '{target}'\n"


def sdp(target: str) -> str:
    head = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    return head + "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"


def dash(target: str) -> str:
    inner = f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        f'<AdaptationSet contentType="video">{inner}</AdaptationSet></Period></MPD>'
    )


TEXTS = {"hls": hls, "concat": concat, "sdp": sdp, "dash": dash}


@pytest.fixture
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """An address that notes whoever comes."""
    visits: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    ended = threading.Event()

    def listen() -> None:
        while not ended.is_set():
            try:
                visitor, _ = server.accept()
            except TimeoutError:
                continue
            visits.append(b"here")
            visitor.close()

    thread = threading.Thread(target=listen)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/a.ts", visits
    ended.set()
    thread.join()
    server.close()


def read(source: object) -> None:
    with VideoReader(source) as reader:  # type: ignore[arg-type]
        reader.get_batch([0])


def stream(source: object) -> None:
    for _ in stream_frames(source):  # type: ignore[arg-type]
        break


WAYS: dict[str, Callable[[Path], None]] = {
    "reader of a path": lambda path: read(path),
    "reader of bytes": lambda path: read(path.read_bytes()),
    "reader of a file": lambda path: read(io.BytesIO(path.read_bytes())),
    "stream of a path": lambda path: stream(path),
    "stream of bytes": lambda path: stream(path.read_bytes()),
    "stream of a file": lambda path: stream(io.BytesIO(path.read_bytes())),
}


class Pipe:
    """A source that cannot seek."""

    def __init__(self, content: bytes) -> None:
        self.read = io.BytesIO(content).read


WAYS["stream of a pipe"] = lambda path: stream(Pipe(path.read_bytes()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ts"])
def test_no_text_opens_anything_else(
    tmp_path: Path, make_video: Callable[..., Path], listener: tuple[str, list[bytes]], way: str, kind: str, name: str
) -> None:
    address, visits = listener
    other = make_video("other.ts", codec="mpeg2video", to=tmp_path)
    fifo = tmp_path / "fifo.ts"
    os.mkfifo(fifo)
    begin = time.monotonic()
    for target in (str(other), other.name, str(fifo), address):
        path = tmp_path / name
        path.write_text(TEXTS[kind](target))
        with pytest.raises(VideoError) as error:
            WAYS[way](path)
        assert "\n" not in str(error.value)
    assert visits == []
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("form", ["concat:{}", "subfile,,start,0,end,0,,:{}", "file:{}", "async:{}", "cache:file:{}"])
def test_names_are_no_protocols(tmp_path: Path, make_video: Callable[..., Path], form: str) -> None:
    name = form.format(make_video("other.mp4"))
    for way in (read, stream):
        with pytest.raises(StvidError, match=r"no such file|cannot be (read|opened)"):
            way(name)


@pytest.mark.parametrize("form", ["concat:{0}|{0}", "subfile,,start,0,end,9,,:{0}", "async:{0}", "file://{0}"])
def test_names_with_an_address_are_no_other_protocols(listener: tuple[str, list[bytes]], form: str) -> None:
    address, visits = listener
    with pytest.raises(VideoError):
        stream(form.format(address))
    assert visits == []


def test_an_image_sequence_is_no_video(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"a{number}.png")
    (tmp_path / "a%d.png").write_bytes((tmp_path / "a0.png").read_bytes())
    with VideoReader(tmp_path / "a0.png") as reader:
        assert len(reader) == 1
    try:
        with VideoReader(tmp_path / "a%d.png") as reader:
            assert len(reader) == 1  # itself
    except VideoError as error:
        assert "is not a video file" in str(error)


def test_a_list_of_images_reads_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(VideoError, match="not a regular file"):
        VideoReader(tmp_path / "list.txt", backend="frames")


def test_playlists_are_followed_where_an_address_names_one() -> None:
    assert "hls" not in FORMATS and "concat" not in FORMATS and "image2" not in FORMATS
    assert "hls" in options_for(url="http://example.org/live/a.m3u8?x=1")["format_whitelist"].split(",")
    assert "hls" not in options_for(url="http://example.org/a.mp4?b=c.m3u8")["format_whitelist"].split(",")
    assert "file" not in options_for(url="http://example.org/a.m3u8")["protocol_whitelist"].split(",")
    assert options_for()["protocol_whitelist"] == "none"
