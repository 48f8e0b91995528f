"""Frames of a stream are those of the reader, wherever they come from."""

from __future__ import annotations

import functools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from stvid.errors import MissingFileError, VideoError
from stvid.video.reader import VideoReader
from stvid.video.streaming import is_live, stream_frames


def assert_same(source: str | Path, reference: Path) -> None:
    found = list(stream_frames(source))
    with VideoReader(reference) as reader:
        np.testing.assert_array_equal([frame.seconds for frame in found], reader.timestamps)
        expected = reader.get_all().numpy()
    assert len(found) == len(expected)
    for frame, image in zip(found, expected, strict=True):
        np.testing.assert_array_equal(frame.image, image)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b.mp4", {"bframes": 3}),
        ("offset.ts", {"start": 1.4}),
        ("uneven.mkv", {"times": [0.0, 0.04, 0.2, 0.24, 1.5, 1.54, 3.0], "frames": 7}),
        ("shuffled.avi", {"codec": "mpeg4", "bframes": 2}),
        ("turned.mp4", {"rotation": 90}),
        ("one.mp4", {"frames": 1}),
        ("nine.webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_files(name: str, options: dict, make_video: Callable[..., Path]) -> None:
    path = make_video(name, **options)
    assert not is_live(path)
    assert_same(path, path)


def test_a_damaged_file_goes_on_past_the_damage(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video("damaged.ts", frames=60, to=tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    found = list(stream_frames(path))
    with VideoReader(path) as reader:
        assert len(found) == len(reader)
        np.testing.assert_array_equal([frame.seconds for frame in found], reader.timestamps)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which it is served on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url(served: tuple[Path, str], make_video: Callable[..., Path]) -> None:
    folder, address = served
    path = make_video("served.mkv", to=folder)
    assert is_live(f"{address}/served.mkv")
    assert_same(f"{address}/served.mkv", path)
    with pytest.raises(VideoError, match="404"):
        list(stream_frames(f"{address}/missing.mkv"))


def test_an_mp4_with_its_index_last_needs_a_source_that_seeks(
    served: tuple[Path, str], make_video: Callable[..., Path]
) -> None:
    folder, address = served  # Python's server knows no ranges
    path = make_video("last.mp4", to=folder)
    data = path.read_bytes()
    moov = data.index(b"moov") - 4
    assert data.index(b"mdat") < moov
    gap = struct.pack(">I", 2**20) + b"free" + bytes(2**20 - 8)  # more than FFmpeg keeps of what it has read
    path.write_bytes(data[:moov] + gap + data[moov:])
    with pytest.raises(VideoError, match=r"broke off .*\+faststart"):
        list(stream_frames(f"{address}/last.mp4"))
    with av.open(str(path)) as old, av.open(str(folder / "first.mp4"), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    assert_same(f"{address}/first.mp4", path)


def test_a_playlist_from_the_network_cannot_read_files(
    served: tuple[Path, str], make_video: Callable[..., Path]
) -> None:
    folder, address = served
    path = make_video("secret.ts", to=folder)
    (folder / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{path}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        list(stream_frames(f"{address}/list.m3u8"))


def test_a_pipe(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video("piped.mkv")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    assert is_live(pipe)
    assert_same(pipe, path)
    writer.join()


def test_what_cannot_be_read(tmp_path: Path, make_audio: Callable[[], Path]) -> None:
    with pytest.raises(MissingFileError):
        list(stream_frames(tmp_path / "missing.mp4"))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for path, reason in (
        (tmp_path, "folder"),
        (text, "cannot be opened"),
        (make_audio(), "no video stream"),
        ("nothing://here", "Protocol not found"),
        ("http://127.0.0.1:9/x.mp4", "refused"),
    ):
        with pytest.raises(VideoError, match=reason):
            list(stream_frames(path))
