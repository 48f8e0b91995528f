"""The cache of remote videos: bounded, checked, shared by processes, and never older than the file."""

from __future__ import annotations

import datetime
import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stvid.errors import ConfigError
from stvid.video import block_cache as module
from stvid.video import remote as remote_module
from stvid.video.block_cache import BlockCache, cache_of_environment, check_environment, version_key
from stvid.video.reader import VideoReader, scan
from stvid.video.remote import RemoteFile
from tests.loopback import Route, Server

KEY, OTHER = "0" * 32, "1" * 32
CONTENT = bytes(range(256)) * 4096  # 1 MB


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Switches the cache on."""
    monkeypatch.setenv("STVID_REMOTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STVID_REMOTE_CACHE_GB", "0.01")
    module._cache.cache_clear()
    return tmp_path / "cache"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def gets(server: Server) -> list[str]:
    return [request.headers.get("Range", "all") for request in server.requests if request.method == "GET"]


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_a_block_comes_back(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "c", 10**6)
    assert cache.blocks(KEY) == [] and cache.load(KEY, 5, 10) is None
    cache.store(KEY, 5, b"hello")
    cache.store(OTHER, 0, b"x" * 5000)
    assert cache.blocks(KEY) == [(5, 10)] and cache.load(KEY, 5, 10) == b"hello"
    assert cache.used() == 4096 + 2 * 4096  # as the disk counts
    cache.forget(KEY)
    assert cache.blocks(KEY) == [] and cache.blocks(OTHER) == [(0, 5000)]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another's"])
def test_a_damaged_block_is_found_and_removed(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    cache = BlockCache(tmp_path, 10**6)
    cache.store(KEY, 0, b"some bytes")
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[3] ^= 1
    elif damage == "another's":
        cache.store(KEY, 20, b"same bytes")
        content = bytearray((path.parent / f"{KEY}-20-30").read_bytes())
    path.write_bytes(content[: {"cut": 9, "empty": 0}.get(damage, len(content))])
    assert cache.load(KEY, 0, 10) is None and not path.exists()
    assert cache.load(KEY, 0, 10) is None
    assert capsys.readouterr().err.count("holds damaged blocks, which are fetched again") == 1


def test_the_limit_holds_and_the_oldest_go_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * 8192)
    for number in range(10):
        cache.store(KEY, number * 10_000, bytes(8000))
        os.utime(tmp_path / KEY[:3] / f"{KEY}-{number * 10_000}-{number * 10_000 + 8000}", (number, number))
    assert cache.used() == 10 * 8192
    assert cache.load(KEY, 0, 8000) is not None  # the oldest has been read: it is the latest now
    cache.store(KEY, 200_000, bytes(8000))
    left = {start for start, _ in cache.blocks(KEY)}
    assert {0, 200_000, 90_000} <= left and not left & {10_000, 20_000}
    assert cache.used() <= 0.9 * cache.most_bytes
    for number in range(300, 340):
        cache.store(KEY, number * 10_000, bytes(8000))
        assert cache.used() <= cache.most_bytes
    cache.store(KEY, 10**7, bytes(11 * 8192))  # larger than the cache
    assert cache.load(KEY, 10**7, 10**7 + 11 * 8192) is None and cache.used() > 0


def test_the_count_is_made_anew_when_it_is_lost(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 4 * 4096)
    for number in range(4):
        cache.store(KEY, number * 10, b"0123456789")
    (tmp_path / ".used").write_text("12")
    cache.store(KEY, 100, b"0123456789")
    assert cache.used() <= cache.most_bytes and (100, 110) in cache.blocks(KEY)


def _fill(folder: str, number: int) -> None:
    cache = BlockCache(folder, 20 * 4096)
    for start in range(0, 600, 10):
        cache.store(f"{number:032x}", start, b"%010d" % start)
        found = cache.load(f"{number:032x}", start, start + 10)
        assert found in (None, b"%010d" % start)  # another process may have made room


def test_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # a new interpreter would load torch first
    processes = [context.Process(target=_fill, args=(str(tmp_path), number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    cache = BlockCache(tmp_path, 20 * 4096)
    assert 0 < cache.used() <= cache.most_bytes
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_a_full_disk_is_said_once_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = BlockCache(tmp_path, 10**6)
    cache.store(KEY, 0, b"before")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_atomically", full)
    cache.store(KEY, 10, b"after")
    cache.store(KEY, 20, b"after")
    assert cache.load(KEY, 0, 6) == b"before" and cache.load(KEY, 10, 15) is None
    said = capsys.readouterr().err
    assert said == (
        f"the cache of remote videos in {tmp_path} cannot be written (No space left on device); "
        "reading goes on without keeping more\n"
    )
    other = BlockCache(tmp_path, 10**6)  # as of another process, while the first lives
    other.store(KEY, 30, b"after")
    assert capsys.readouterr().err == ""


def test_the_version_is_part_of_the_name() -> None:
    known = {"size": 10, "ETag": '"a"'}
    assert version_key("http://a/b", known) == version_key("http://a/b", {**known, "mimetype": "video/mp4"})
    others = [
        version_key("http://a/c", known),
        version_key("http://a/b", {**known, "size": 11}),
        version_key("http://a/b", {**known, "ETag": '"b"'}),
        version_key("http://a/b", {"size": 10, "Last-Modified": "Mon, 30 Nov 2026 08:00:00 GMT"}),
        version_key("http://a/b", {"size": 10, "LastModified": datetime.datetime(2026, 11, 30)}),
    ]
    assert len({*others, version_key("http://a/b", known)}) == 6 and None not in others
    assert version_key("http://a/b", {"size": 10}) is None and version_key("http://a/b", {"ETag": "a"}) is None


def test_it_is_off_unless_the_environment_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STVID_REMOTE_CACHE", raising=False)
    monkeypatch.delenv("STVID_REMOTE_CACHE_GB", raising=False)
    assert cache_of_environment() is None
    check_environment()
    monkeypatch.setenv("STVID_REMOTE_CACHE_GB", "5")
    with pytest.raises(ConfigError, match=r"belongs to STVID_REMOTE_CACHE \(--remote_cache\), which is missing"):
        check_environment()
    monkeypatch.setenv("STVID_REMOTE_CACHE", str(tmp_path / "a" / "b"))
    check_environment()
    found = cache_of_environment()
    assert found is not None and found.most_bytes == 5 * 10**9 and (tmp_path / "a" / "b").is_dir()
    for text in ("-1", "0", "many", "nan", "inf"):
        monkeypatch.setenv("STVID_REMOTE_CACHE_GB", text)
        with pytest.raises(ConfigError, match="is not a positive number of gigabytes"):
            check_environment()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STVID_REMOTE_CACHE_GB", "1")
    monkeypatch.setenv("STVID_REMOTE_CACHE", str(tmp_path / "file" / "x"))
    with pytest.raises(ConfigError, match="no folder can be made there"):
        check_environment()


# --- remote files -----------------------------------------------------------------------------------------------------


def test_what_one_reader_fetched_another_one_has(server: Server, folder: Path) -> None:
    server.routes["/file"] = Route(CONTENT, etag='"1"')
    for _ in range(3):
        file = RemoteFile(f"{server.url}/file")
        file.prefetch([1000, 1500, 900_000], [500, 500, 10])
        for start in (1000, 1999, 900_009):
            file.seek(start)
            assert file.read(1) == CONTENT[start : start + 1]
    assert sorted(gets(server)) == ["bytes=1000-1999", "bytes=900000-900009"]
    assert [request.method for request in server.requests].count("HEAD") == 3  # each asks for the version
    assert (file.requests, file.fetched) == (0, 0)
    file.prefetch([1500, 2500], [100, 100])  # a part of it is new
    assert gets(server)[2:] == ["bytes=2500-2599"]
    file.seek(1200)
    assert file.read(300) == CONTENT[1200:1500] and len(gets(server)) == 3


@pytest.mark.parametrize("size", [1, 9])
def test_a_whole_file_is_kept(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(remote_module, "_PART", 2 * len(CONTENT))
    server.routes["/file"] = Route(CONTENT * size, etag='"1"')
    for _ in range(2):
        assert RemoteFile(f"{server.url}/file").read_all() == CONTENT * size
    assert len(gets(server)) == (1 if size == 1 else 5)
    if size > 1:
        files(folder)[0].unlink()
        assert RemoteFile(f"{server.url}/file").read_all() == CONTENT * size
        assert len(gets(server)) == 6  # only what is gone


@pytest.mark.parametrize("change", ["etag", "date"])
def test_a_changed_file_is_not_served_from_it(server: Server, folder: Path, change: str) -> None:
    def put(content: bytes, number: int) -> None:
        tag = {"etag": f'"{number}"'} if change == "etag" else {}
        headers = {"Last-Modified": f"Mon, 30 Nov 2026 08:00:0{number} GMT"} if change == "date" else {}
        server.routes["/file"] = Route(content, headers=headers, **tag)

    put(CONTENT, 1)
    assert RemoteFile(f"{server.url}/file").read(10) == CONTENT[:10]
    put(CONTENT[::-1], 2)  # as long as before
    assert RemoteFile(f"{server.url}/file").read(10) == CONTENT[::-1][:10]


def test_a_damaged_block_is_fetched_again(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes["/file"] = Route(CONTENT, etag='"1"')
    for _ in range(3):
        file = RemoteFile(f"{server.url}/file")
        file.prefetch([5000], [1000])
        file.seek(5000)
        assert file.read(1000) == CONTENT[5000:6000]
        (path,) = files(folder)
        path.write_bytes(b"\0" * 500)
    assert gets(server) == ["bytes=5000-5999"] * 3
    assert capsys.readouterr().err.count("\n") == 1


def test_a_server_without_versions_is_not_kept(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.routes["/file"] = Route(CONTENT)
    for _ in range(2):
        assert RemoteFile(f"{server.url}/file").read(10) == CONTENT[:10]
    assert len(gets(server)) == 2 and files(folder) == []
    assert "tells neither ETag nor date" in capsys.readouterr().err


def test_a_video_is_fetched_once(server: Server, folder: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(frames=60, audio=True)
    server.routes["/a.mp4"] = Route(path.read_bytes(), etag='"1"')
    url, index = f"{server.url}/a.mp4", scan(path)
    with VideoReader(path) as near:
        expected = near.get_batch(range(0, 60, 4))
    fetched = []
    for known in (index, None, index, None):
        with VideoReader(url, index=known) as reader:
            assert torch.equal(reader.get_batch(range(0, 60, 4)), expected)
        fetched.append(len(gets(server)))
        server.requests.clear()
    assert fetched[0] > 0 and fetched[2:] == [0, 0]  # the second one needs the header, too
    assert files(folder)


def test_wrong_bytes_with_a_right_checksum_are_given_up(
    server: Server, folder: Path, make_video: Callable[..., Path]
) -> None:
    """A server has once sent garbage: the index notices it, and the cache does not give it again."""
    path = make_video(frames=60)
    content = path.read_bytes()
    url, index = f"{server.url}/a.mp4", scan(path)
    server.routes["/a.mp4"] = Route(bytes(len(content)), etag='"1"')
    spoiled = RemoteFile(url)
    spoiled.prefetch([0], [len(content)])
    server.routes["/a.mp4"] = Route(content, etag='"1"')
    with VideoReader(url, index=index) as reader, VideoReader(path) as near:
        assert torch.equal(reader.get_batch([5, 50]), near.get_batch([5, 50]))
    server.requests.clear()
    with VideoReader(url, index=index) as reader, VideoReader(path) as near:
        assert torch.equal(reader.get_batch([5, 50]), near.get_batch([5, 50]))
    assert gets(server) == []
