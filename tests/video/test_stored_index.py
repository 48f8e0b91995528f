from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stvid.data.dataset import EvalDataset
from stvid.data.manifest import read_manifest
from stvid.errors import StvidError, VideoError
from stvid.protocol import Protocol
from stvid.video import stored_index
from stvid.video.av_reader import AvSource
from stvid.video.frame_index import index_cache
from stvid.video.reader import VideoReader, scan
from stvid.video.stored_index import StoredIndex, index_folder, pack_index, unpack_index, write_index

MakeVideo = Callable[..., Path]


def entry(path: Path) -> tuple[str, int, bytes]:
    return str(path), path.stat().st_size, pack_index(scan(path))


@pytest.fixture
def videos(make_video: MakeVideo) -> list[Path]:
    return [
        make_video("plain.mp4", frames=40, bframes=3),
        make_video("turned.mp4", rotation=90),
        make_video("counted.avi", codec="mpeg4"),
        make_video("hevc.mkv", codec="libx265"),
    ]


def test_stored_indices_give_the_same_reader_without_a_scan(videos: list[Path], tmp_path: Path, monkeypatch) -> None:
    assert write_index(tmp_path / "index", map(entry, videos), root=tmp_path) == 4
    expected = []
    for path in videos:
        with VideoReader(path) as reader:
            facts = (len(reader), reader.fps, reader.height, reader.width, reader.index_method, reader.bad_packets)
            expected.append((facts, reader.timestamps, reader.get_batch([17, 2, 2])))
    packed = [pack_index(scan(path)) for path in videos]
    index_cache.clear()

    def refuse(*_: object) -> None:
        raise AssertionError("scanned again")

    monkeypatch.setattr(AvSource, "_index_by_scan", refuse)
    monkeypatch.setattr(AvSource, "_index_by_counting", refuse)
    index = pickle.loads(pickle.dumps(StoredIndex(tmp_path / "index")))
    assert len(index) == 4
    for path, one, (facts, timestamps, frames) in zip(videos, packed, expected, strict=True):
        for source, known in ((path, index), (path.read_bytes(), unpack_index(one))):
            with VideoReader(source, index=known) as reader:
                found = (len(reader), reader.fps, reader.height, reader.width, reader.index_method, reader.bad_packets)
                assert found == facts
                assert (reader.timestamps == timestamps).all()
                assert torch.equal(reader.get_batch([17, 2, 2]), frames)


def test_a_data_set_can_be_moved_with_its_index(videos: list[Path], tmp_path: Path, monkeypatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for path in videos:
        shutil.copy(path, home / path.name)
    write_index(home / "index", (entry(home / path.name) for path in videos), root=home)
    home.rename(tmp_path / "away")
    index = StoredIndex(tmp_path / "away" / "index")
    path = tmp_path / "away" / "plain.mp4"
    assert index.find(str(path), path.stat().st_size) is not None
    assert index.find(str(path), path.stat().st_size + 1) is None
    assert index.find(str(tmp_path / "plain.mp4"), path.stat().st_size) is None


def test_a_folder_of_no_videos_and_a_damaged_one(videos: list[Path], tmp_path: Path) -> None:
    assert write_index(tmp_path / "none", [], root=tmp_path) == 0
    assert StoredIndex(tmp_path / "none").find(*entry(videos[0])[:2]) is None
    write_index(tmp_path / "index", map(entry, videos), root=tmp_path)
    packed = tmp_path / "index" / "indices.bin"
    packed.write_bytes(packed.read_bytes()[:-1])
    found = [StoredIndex(tmp_path / "index").find(*entry(path)[:2]) for path in videos]
    assert [index is None for index in found] == [False, False, False, True]
    packed.unlink()
    with pytest.raises(StvidError, match=r"damaged \(.*\); make it again with: stvid prep index"):
        StoredIndex(tmp_path / "index").find(*entry(videos[0])[:2])


def test_an_index_that_is_out_of_date_gives_no_wrong_frames(make_video: MakeVideo, tmp_path: Path) -> None:
    path, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    shutil.copy(make_video("a.mp4", frames=20), path)
    shutil.copy(make_video("b.mp4", frames=25, bframes=3), other)
    size = max(path.stat().st_size, other.stat().st_size)
    for file in (path, other):  # of equal size: only the packets tell them apart
        with file.open("ab") as stream:
            stream.write(bytes(size - file.stat().st_size))
    write_index(tmp_path / "index", [entry(path)], root=tmp_path)
    shutil.copy(other, path)
    index_cache.clear()
    with VideoReader(path) as reader:
        expected = reader.get_batch([19, 3])
    index_cache.clear()
    with VideoReader(path, index=StoredIndex(tmp_path / "index")) as reader:
        assert torch.equal(reader.get_batch([19, 3]), expected)
    index_cache.clear()


def test_datasets_take_the_index_that_lies_beside_their_list(videos: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    table.write_text("path,label\n" + "".join(f"{path},a\n" for path in videos))
    protocol = Protocol(frames=4, stride=2, short_side=32, crop=32)
    assert EvalDataset(read_manifest(table), protocol, views="1x1").stored_index is None
    write_index(index_folder(table), map(entry, videos), root=tmp_path)
    index_cache.clear()
    dataset = EvalDataset(read_manifest(table), protocol, views="1x1")
    assert dataset.stored_index is not None
    assert all(dataset[number].clips is not None for number in range(len(videos)))


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StvidError, match="stvid prep index"):
        StoredIndex(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 99, "root": "."}')
    with pytest.raises(StvidError, match="another version"):
        StoredIndex(tmp_path)


def test_a_packed_index_that_is_damaged_is_none(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_index(scan(make_video()))
    assert unpack_index(packed) is not None
    plain = zlib.decompress(packed)
    head, _, table = plain.partition(b"\n")
    for content in (b"", b"no index", packed[:-1], packed[:50], packed[:-1] + bytes([packed[-1] ^ 1])):
        assert unpack_index(content) is None
    for unpacked in (
        b"",
        b"{}",
        head,
        head + b"\n" + table[:-1],
        b"[]\n" + table,
        head.replace(b"frames", b"f") + table,
    ):
        assert unpack_index(zlib.compress(unpacked)) is None
    monkeypatch.setattr(stored_index, "_MOST_UNPACKED", len(plain) - 1)
    assert unpack_index(packed) is None  # more than any video has is not unpacked


def test_an_index_that_promises_huge_frames_is_refused(make_video: MakeVideo) -> None:
    path = make_video()
    index = dataclasses.replace(scan(path), coded=(60_000, 60_000))
    with pytest.raises(VideoError, match="60000 x 60000 pixels, more than a video can have"):
        VideoReader(path.read_bytes(), index=index)


def test_any_damage_to_the_table_of_videos_is_one_line(videos: list[Path], tmp_path: Path) -> None:
    write_index(tmp_path / "index", map(entry, videos), root=tmp_path)
    table = tmp_path / "index" / "videos.npy"
    good = table.read_bytes()
    damaged = [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(len(good))]
    for content in (*damaged, good[:-1], good[:20], b"", good + bytes(24), good.replace(b"'key'", b"'kez'")):
        table.write_bytes(content)
        with pytest.raises(StvidError, match=r"index: is damaged \(.*\); make it again with: stvid prep index$"):
            StoredIndex(tmp_path / "index").find(str(videos[0]), 1)
    table.write_bytes(good)
    assert StoredIndex(tmp_path / "index").find(*entry(videos[0])[:2]) is not None


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"root": 1, "version": 4}', '{"version": 4}', "null", "\xff"]
)
def test_any_damage_to_the_description_of_an_index_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(StvidError, match="make it with: stvid prep index"):
        StoredIndex(tmp_path)


@pytest.mark.parametrize("odd", [None, -1, 1.5, "1", [], {}, True, [1], 10**30])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_description_of_other_types_is_no_index(name: str, odd: object, make_video: MakeVideo) -> None:
    """With a valid checksum, as a program that means harm would write it: never an error, and never other frames."""
    path = make_video(name, codec="libx264" if name == "a.mp4" else "mpeg4")
    head, _, table = zlib.decompress(pack_index(scan(path))).partition(b"\n")
    about = json.loads(head)
    with VideoReader(path) as reader:
        expected = reader.get_batch([0, 19])
    decoder = about["decoder"] or {}
    variants = [{**about, key: odd} for key in about]
    variants += [{**about, "decoder": {**decoder, key: odd}} for key in decoder]
    for variant in variants:
        index = unpack_index(zlib.compress(json.dumps(variant).encode() + b"\n" + table))
        if index is None:
            continue
        index_cache.clear()
        try:
            with VideoReader(path.read_bytes(), index=index) as reader:
                assert torch.equal(reader.get_batch([0, 19]), expected)
        except VideoError:
            pass  # such as frames of another size
