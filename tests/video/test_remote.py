"""Videos behind a URL: exact frames from few and small requests, and clear words when the server does not answer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import torch

import stvid
from stvid.commands.prep import main
from stvid.data.dataset import EvalDataset
from stvid.data.manifest import read_manifest
from stvid.errors import StvidError, VideoError
from stvid.protocol import Protocol
from stvid.video.reader import VideoReader, scan
from stvid.video.remote import HollowFile, RemoteError, RemoteFile, file_system, is_remote_file, is_url, join_ranges
from stvid.video.stored_index import StoredIndex, pack_index, write_index
from tests.loopback import Route, Server

CONTENT = bytes(range(256)) * 4096  # 1 MB


def put(server: Server, path: Path, name: str = "video.mp4") -> str:
    server.routes[f"/{name}"] = Route(path.read_bytes())
    return f"{server.url}/{name}"


def gets(server: Server) -> list[str]:
    return [request.headers.get("Range", "all") for request in server.requests if request.method == "GET"]


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts", "sizes", "joined"),
    [
        ([100], [50], [(100, 150)]),
        ([150, 100], [50, 50], [(100, 200)]),  # neighbours, in any order
        ([100, 120], [50, 10], [(100, 150)]),  # one within the other
        ([0, 1100], [1000, 1000], [(0, 2100)]),  # a gap that is smaller than a request is not worth one
        ([0, 5000], [1000, 1000], [(0, 1000), (5000, 6000)]),
        ([0, 10**6], [1000, 1000], [(0, 1000), (10**6, 10**6 + 1000)]),
        # The small gap is closed, the large one is not.
        ([0, 1100, 10**7], [1000, 1000, 1000], [(0, 2100), (10**7, 10**7 + 1000)]),
    ],
)
def test_pieces_are_joined(starts: list[int], sizes: list[int], joined: list[tuple[int, int]]) -> None:
    assert join_ranges(starts, sizes) == joined


def test_no_other_six_ranges_are_fewer_bytes() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.integers(1, 60, 11) * 1000
    starts = np.concatenate(([0], np.cumsum(gaps + 500)))
    sizes = np.full(12, 500)
    fetched = sum(end - start for start, end in join_ranges(starts, sizes, least_gap=0))
    span = int(starts[-1] + 500)
    least = min(span - int(gaps[list(left)].sum()) for left in itertools.combinations(range(11), 5))
    assert fetched == least and len(join_ranges(starts, sizes)) == 6


def test_many_small_pieces_become_few_requests() -> None:
    pieces = np.arange(0, 100) * 2000
    assert len(join_ranges(pieces, np.full(100, 1000))) <= 6
    apart = np.arange(0, 20) * 10**7  # gaps that cost more than a request are left
    assert len(join_ranges(apart, np.full(20, 1000))) == 20


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_a_remote_file_reads_like_one_of_this_machine(server: Server) -> None:
    server.routes["/file"] = Route(CONTENT)
    file = RemoteFile(f"{server.url}/file")
    assert server.requests == []  # nothing was needed yet
    assert file.read(10) == CONTENT[:10] and file.tell() == 10
    file.seek(-5, 2)
    assert file.read(10) == CONTENT[-5:] and file.read(1) == b""
    file.seek(500_000)
    assert file.read(3) == CONTENT[500_000:500_003]
    assert file.read_all() == CONTENT
    assert is_url(file.url) and not is_url("/a/b.mp4")
    assert is_remote_file(file.url) and not is_remote_file("rtsp://camera/1") and not is_remote_file("file:///a.mp4")


def test_what_was_fetched_is_not_fetched_again(server: Server) -> None:
    server.routes["/file"] = Route(CONTENT)
    file = RemoteFile(f"{server.url}/file")
    for _ in range(2):
        file.prefetch([1000, 1500, 900_000], [500, 500, 10])
    for start in (1000, 1999, 900_009):
        file.seek(start)
        assert file.read(1) == CONTENT[start : start + 1]
    assert sorted(gets(server)) == ["bytes=1000-1999", "bytes=900000-900009"]
    assert (file.requests, file.fetched) == (2, 1010)


def test_a_request_that_fails_is_tried_again(server: Server) -> None:
    server.routes["/file"] = Route(CONTENT, statuses=[503, 500])
    file = RemoteFile(f"{server.url}/file")
    file.prefetch([0], [100])
    assert file.read(100) == CONTENT[:100] and len(gets(server)) == 3


def test_an_answer_that_breaks_off_is_asked_for_again(server: Server) -> None:
    server.routes["/file"] = Route(CONTENT, cuts=[150_000])
    file = RemoteFile(f"{server.url}/file")
    file.prefetch([100_000], [100_000])
    file.seek(100_000)
    assert file.read(100_000) == CONTENT[100_000:200_000]


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (None, "no such file"),
        (Route(statuses=[403] * 9), "cannot be read \\(403"),
        (Route(statuses=[503] * 9), "cannot be read \\(503"),
        (Route(CONTENT, ranges=False), "cannot be read in parts"),
    ],
    ids=["missing", "refused", "busy", "no ranges"],
)
def test_a_server_that_does_not_answer_is_named(server: Server, route: Route | None, words: str) -> None:
    if route is not None:
        server.routes["/file"] = route
    file = RemoteFile(f"{server.url}/file")
    with pytest.raises(RemoteError, match=f"/file: {words}"):
        file.prefetch([1000], [100])


def test_a_server_that_is_not_there_is_named() -> None:
    with Server() as gone:
        url = f"{gone.url}/a.mp4"
    with pytest.raises(VideoError, match=r"a\.mp4: cannot be read \("):
        VideoReader(url)


def test_an_unknown_kind_of_url_is_named() -> None:
    with pytest.raises(VideoError, match="Protocol not known: carrier"):
        VideoReader("carrier://a/b.mp4")
    with pytest.raises(StvidError, match="carrier"):
        file_system("carrier://a")
    with pytest.raises(VideoError, match="names a file of this machine; give its path"):
        VideoReader("file:///etc/passwd")


# --- videos -----------------------------------------------------------------------------------------------------------


def same_frames(path: Path, url: str, **options: object) -> tuple[VideoReader, VideoReader]:
    with VideoReader(path) as near, VideoReader(url, **options) as far:
        count = len(near)
        assert np.array_equal(near.timestamps, far.timestamps)
        assert (near.height, near.width, near.fps) == (far.height, far.width, far.fps)
        for indices in ([count - 1], [0, count // 2, count // 3], range(0, count, 4)):
            assert torch.equal(near.get_batch(indices), far.get_batch(indices))
    return near, far


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"options": {"movflags": "+faststart"}},
        {"audio": True},
        {"open_gop": True, "frames": 90},
        {"codec": "libx265"},
        {"rotation": 90},
        {"bframes": 0, "times": [0, 0.1, 0.15, 0.9, 1, 1.3]},
        {"start": 1.5},
    ],
    ids=["plain", "faststart", "sound", "open groups", "hevc", "turned", "variable rate", "late start"],
)
def test_a_clip_of_a_url_is_that_of_the_file(server: Server, make_video: Callable[..., Path], options: dict) -> None:
    path = make_video(**{"frames": 6 if "times" in options else 60, **options})
    same_frames(path, put(server, path))


@pytest.mark.parametrize(
    ("name", "options"),
    [("video.mkv", {}), ("video.avi", {"codec": "mpeg4"}), ("video.mp4", {"codec": "mpeg4"})],
)
def test_other_files_are_fetched_whole(
    server: Server, make_video: Callable[..., Path], name: str, options: dict
) -> None:
    path = make_video(name, frames=30, **options)
    same_frames(path, put(server, path, name))


def test_without_ranges_the_whole_file_is_fetched(
    server: Server, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_video(frames=60, width=256, height=192, options={"crf": "0"})
    server.routes["/a.mp4"] = Route(path.read_bytes(), ranges=False)
    same_frames(path, f"{server.url}/a.mp4")
    url = f"{server.url}/a.mp4"
    same_frames(path, url, index=stored(tmp_path, {url: pack_index(scan(path))}))


@pytest.fixture(scope="session")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 s at 25 frames a second with a key frame each second; of noise, so that pictures take more than the header."""
    path = tmp_path_factory.mktemp("noise") / "long.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "25", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(200):
            picture = rng.integers(0, 256, (64, 96, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_the_header_alone_tells_where_the_packets_are(server: Server, long_video: Path) -> None:
    url = put(server, long_video)
    index = scan(url)
    fetched = sum(_length(text) for text in gets(server))
    assert fetched < 0.25 * long_video.stat().st_size
    known = scan(long_video)
    assert index.packets is not None and known.packets is not None
    assert index.decoder is not None and known.decoder is not None  # the header may not tell the delay of the output
    assert dataclasses.replace(index.decoder, reorder_depth=0) == dataclasses.replace(known.decoder, reorder_depth=0)
    for name in ("pts", "dts", "size", "position", "start", "of_frame"):
        assert np.array_equal(getattr(index.packets, name), getattr(known.packets, name)), name


def _length(text: str) -> int:
    first, last = text.removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


def stored(tmp_path: Path, videos: dict[str, bytes]) -> StoredIndex:
    write_index(tmp_path / "list.index", [(url, 0, packed) for url, packed in videos.items()], root=tmp_path)
    return StoredIndex(tmp_path / "list.index")


def test_with_an_index_a_clip_takes_its_own_bytes_only(server: Server, long_video: Path, tmp_path: Path) -> None:
    url = put(server, long_video)
    index = scan(long_video)
    known = stored(tmp_path, {url: pack_index(index)})
    packets = index.packets
    assert packets is not None
    with VideoReader(url, index=known) as reader:
        assert len(reader) == 200 and server.requests == []  # not even the size was asked for
        frames = reader.get_batch(range(100, 164, 4))
    with VideoReader(long_video) as near:
        assert torch.equal(frames, near.get_batch(range(100, 164, 4)))
    needed = packets.size[(packets.position >= packets.position[100]) & ~packets.skippable][:64].sum()
    assert 0 < len(gets(server)) <= 6 and all(request.method == "GET" for request in server.requests)
    assert sum(map(_length, gets(server))) <= 1.3 * needed


def test_a_file_that_has_changed_is_not_taken_for_the_indexed_one(
    server: Server, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    old, new = make_video(frames=40), make_video(frames=40, first=7)
    url = put(server, new)
    index = scan(old)
    with VideoReader(url, index=stored(tmp_path, {url: pack_index(index)})) as reader, VideoReader(new) as near:
        assert torch.equal(reader.get_batch([5, 30]), near.get_batch([5, 30]))  # the same times: the new file's frames
    shorter = make_video(frames=20)
    server.routes["/video.mp4"] = Route(shorter.read_bytes())
    with (
        VideoReader(url, index=stored(tmp_path, {url: pack_index(index)})) as reader,
        pytest.raises(VideoError, match="does not hold the frames that its index or its header promises"),
    ):
        reader.get_batch([30])


def test_any_file_system_will_do(make_video: Callable[..., Path]) -> None:
    path = make_video(frames=30)
    with fsspec.open("memory://videos/a.mp4", "wb") as file:
        file.write(path.read_bytes())
    same_frames(path, "memory://videos/a.mp4")


def test_zeros_stand_where_pictures_lie(server: Server, long_video: Path) -> None:
    url = put(server, long_video)
    content = long_video.read_bytes()
    hollow = HollowFile(RemoteFile(url))
    shown = hollow.read()
    assert shown is not None and len(shown) == len(content)
    start = content.index(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big")
    assert shown[:start] == content[:start] and shown[start - 8 + size :] == content[start - 8 + size :]
    assert not any(shown[start : start - 8 + size])


@pytest.mark.parametrize("content", [b"", b"RIFF....AVI LIST", b"\0\0\0\x08moov" * 3, b"\0\0\0\x01mdat" + bytes(8)])
def test_what_is_no_mp4_has_no_header(server: Server, content: bytes) -> None:
    server.routes["/x"] = Route(content)
    with pytest.raises(ValueError, match=r"no boxes|no header"):
        HollowFile(RemoteFile(f"{server.url}/x"))


def test_fragments_are_fetched_whole(server: Server, make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video(frames=60, options={"movflags": "+frag_keyframe+empty_moov"})
    same_frames(path, put(server, path))


# --- lists that name URLs ---------------------------------------------------------------------------------------------

PROTOCOL = Protocol(frames=4, stride=2, short_side=32, crop=32)


def write_lists(server: Server, folder: Path, files: list[Path]) -> tuple[Path, Path]:
    """Writes a list of files and one of the same videos behind URLs."""
    near, far = folder / "near.csv", folder / "far.csv"
    near.write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    rows = []
    for number, file in enumerate(files):
        server.routes[f"/v/{number}.mp4"] = Route(file.read_bytes())
        rows.append(f"{server.url}/v/{number}.mp4,{file.parent.name}\n")
    far.write_text("path,label\n" + "".join(rows))
    return near, far


def test_a_list_of_urls_gives_the_clips_of_the_files(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    files = sorted(make_dataset(tmp_path / "videos", classes=("a", "b"), per_class=2).rglob("*.mp4"))
    with Server() as server:
        near, far = write_lists(server, tmp_path, files)
        assert read_manifest(far)[0].path == f"{server.url}/v/0.mp4"
        expected = [batch.clips for batch in stvid.make_loader(near, PROTOCOL, train=False, batch_size=2, workers=0)]
        for workers in (0, 1):
            loader = stvid.make_loader(far, PROTOCOL, train=False, batch_size=2, workers=workers)
            found = [batch.clips for batch in loader]
            assert len(found) == 2 and all(map(torch.equal, found, expected))
        assert main(["index", str(far), "--workers", "2"]) == 0
        server.requests.clear()
        found = [batch.clips for batch in stvid.make_loader(far, PROTOCOL, train=False, batch_size=2, workers=0)]
        assert all(map(torch.equal, found, expected))
        assert {request.method for request in server.requests} == {"GET"}  # not even sizes are asked for


def test_a_url_that_is_gone_is_listed(tmp_path: Path, make_dataset: Callable[..., Path], capsys) -> None:
    files = sorted(make_dataset(tmp_path / "videos", classes=("a", "b"), per_class=1).rglob("*.mp4"))
    with Server() as server:
        _, far = write_lists(server, tmp_path, files)
        del server.routes["/v/1.mp4"]
        assert main(["index", str(far), "--workers", "1"]) == 1
        assert "1 of 2 videos failed" in capsys.readouterr().err
        sample = EvalDataset(read_manifest(far), PROTOCOL, views="1x1")[1]
        assert sample.clips is None and sample.error == "no such file"


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], str]]:
    """Runs a server that speaks S3 on loopback; ``bucket(name, content)`` puts an object there and returns its URL."""
    pytest.importorskip("s3fs")
    pytest.importorskip("flask")  # what moto's server needs
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("videos")

    def put(name: str, content: bytes) -> str:
        files.pipe_file(f"videos/{name}", content)
        return f"s3://videos/{name}"

    fsspec.filesystem("s3").clear_instance_cache()
    yield put
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def test_videos_of_s3(bucket: Callable[[str, bytes], str], make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video("a.mp4", frames=60, bframes=2, gop=12)
    url = bucket("a.mp4", path.read_bytes())
    with VideoReader(path) as local, VideoReader(url) as reader:
        assert np.array_equal(reader.timestamps, local.timestamps)
        assert torch.equal(reader.get_batch([50, 3, 17]), local.get_batch([50, 3, 17]))

    names = tmp_path / "list.csv"
    names.write_text(f"path,label\n{url},a\n{bucket('b.mp4', path.read_bytes())},b\n")
    assert main(["index", str(names), "--workers", "1"]) == 0
    known = StoredIndex(f"{names}.index")
    with VideoReader(path) as local, VideoReader(url, index=known) as reader:
        assert torch.equal(reader.get_batch([50, 3, 17]), local.get_batch([50, 3, 17]))

    with pytest.raises(VideoError, match=r"^s3://videos/none\.mp4: "):
        VideoReader("s3://videos/none.mp4")
