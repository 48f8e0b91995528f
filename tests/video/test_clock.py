"""The clock of a file whose pieces were joined goes on, by every way in which its frames are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import stvid
from stvid.errors import VideoError
from stvid.video.clock import Clock
from stvid.video.frame_index import index_cache
from stvid.video.reader import VideoReader, scan
from stvid.video.stored_index import pack_index, unpack_index
from stvid.video.streaming import stream_frames

MakeVideo = Callable[..., Path]


def join(target: Path, *pieces: Path) -> Path:
    target.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    return target


def with_continuous_counters(path: Path) -> Path:
    """Numbers the packets of a transport stream anew (ISO/IEC 13818-1, 2.4.3.3), as a recorder would have done it."""
    data = bytearray(path.read_bytes())
    counters: dict[int, int] = {}
    for at in range(0, len(data), 188):
        number = (data[at + 1] & 31) << 8 | data[at + 2]
        counters[number] = (counters.get(number, -1) + (data[at + 3] >> 4 & 1)) % 16
        data[at + 3] = data[at + 3] & 0xF0 | counters[number]
    path.write_bytes(data)
    return path


def assert_goes_on(path: Path, count: int, frame_number: Callable[[torch.Tensor], int]) -> str:
    """The file has `count` frames at 25 a second, each way of reading says so; returns how frames are found."""
    index_cache.clear()
    with VideoReader(path) as reader:
        times, frames, method = reader.timestamps, reader.get_all(), reader.index_method
        assert len(reader) == count
        assert reader.fps == pytest.approx(25, rel=0.01)
        assert reader.duration == pytest.approx(count / 25, abs=0.01)
        np.testing.assert_allclose(np.diff(times), 0.04, atol=0.002)
        for index in (count - 1, count // 2, 0):
            assert torch.equal(reader.get_batch([index])[0], frames[index])
    streamed = list(stream_frames(path))
    np.testing.assert_array_equal([frame.seconds for frame in streamed], times)
    assert [frame_number(frame.image) for frame in streamed] == [frame_number(frame) for frame in frames]
    stored = unpack_index(pack_index(scan(path)))
    assert stored is not None
    index_cache.clear()
    with VideoReader(path.read_bytes(), index=stored) as reader:
        np.testing.assert_array_equal(reader.timestamps, times)
        assert torch.equal(reader.get_batch([count - 1, 3]), frames[[count - 1, 3]])
    return method


@pytest.mark.parametrize("starts", [(0.0, 0.0), (0.0, 1000.0), (1000.0, 0.0), (7.0, 6.5)])
@pytest.mark.parametrize("way", ["counting", "time stamps"])
def test_joined_transport_streams(
    starts: tuple[float, float], way: str, make_video: MakeVideo, frame_number, tmp_path: Path
) -> None:
    first = make_video("a.ts", frames=30, bframes=2, start=starts[0])
    second = make_video("b.ts", frames=30, bframes=2, start=starts[1], first=30)
    path = join(tmp_path / "joined.ts", first, second)
    if way == "time stamps":
        with_continuous_counters(path)
    assert assert_goes_on(path, 60, frame_number).startswith(way)
    with VideoReader(path) as reader:
        assert reader.timestamps[0] == pytest.approx(starts[0], abs=0.1)
        assert [frame_number(frame) for frame in reader.get_all()] == list(range(60))


def test_clips_of_a_joined_file_show_it_as_it_is_played(make_video: MakeVideo, frame_number, tmp_path: Path) -> None:
    pieces = [make_video(f"{number}.ts", frames=30, first=30 * number) for number in range(3)]
    path = join(tmp_path / "joined.ts", *pieces)
    size = {"short_side": 48, "crop": 48, "stride": 1}
    clip = stvid.load_clip(path, frames=8, fps=25.0, **size)
    assert np.diff(clip.indices).tolist() == [1] * 7
    clip = stvid.load_clip(path, frames=4, fps=5.0, **size)
    assert np.diff(clip.indices).tolist() == [5] * 3
    clip = stvid.load_clip(path, frames=4, start=2.8, end=3.2, **size)
    assert clip.indices.min() >= 70 and clip.indices.max() <= 80
    with pytest.raises(VideoError, match="no frame"):
        stvid.load_clip(path, frames=4, start=3.7, end=4.2, **size)


@pytest.mark.parametrize("name", ["a.mpg", "a.vob", "a.ts"])
def test_joined_mpeg2(name: str, make_video: MakeVideo, frame_number, tmp_path: Path) -> None:
    first = make_video(name, codec="mpeg2video", frames=30)
    second = make_video(name, codec="mpeg2video", frames=30, first=30)
    assert_goes_on(join(tmp_path / name, first, second, first), 90, frame_number)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx")])
def test_joined_recordings_of_a_browser(
    name: str, codec: str, make_video: MakeVideo, frame_number, tmp_path: Path
) -> None:
    first = make_video(name, codec=codec, frames=30)
    second = make_video(name, codec=codec, frames=30, first=30)
    assert_goes_on(join(tmp_path / name, first, second), 60, frame_number)


@pytest.mark.parametrize("bframes", [0, 2])
def test_a_leap_of_a_transport_stream_is_closed_and_a_pause_is_kept(
    bframes: int, make_video: MakeVideo, frame_number
) -> None:
    leap = [number / 25 + (3600 if number >= 20 else 0) for number in range(40)]
    path = make_video("leap.ts", frames=40, times=leap, bframes=bframes)
    assert assert_goes_on(path, 40, frame_number) == "time stamps"
    with VideoReader(path) as reader:
        assert [frame_number(frame) for frame in reader.get_batch([39, 21, 5])] == [39, 21, 5]
    pause = [number / 25 + (5 if number >= 20 else 0) for number in range(40)]
    with VideoReader(make_video("pause.ts", frames=40, times=pause, bframes=bframes)) as reader:
        assert np.diff(reader.timestamps).max() == pytest.approx(5.04)
    with VideoReader(make_video("leap.mkv", frames=40, times=leap, bframes=bframes)) as reader:
        assert np.diff(reader.timestamps).max() == pytest.approx(3600.04)  # such a file says what it means


def test_a_clock_of_33_bits_that_runs_over(make_video: MakeVideo, frame_number) -> None:
    path = make_video("wrap.ts", frames=60, bframes=2, start=2**33 / 90_000 - 1.0)
    assert_goes_on(path, 60, frame_number)


def test_times_that_damage_has_made_absurd_are_left_alone() -> None:
    container = SimpleNamespace(format=SimpleNamespace(flags=0x200))
    clock = Clock(container, SimpleNamespace(time_base=1 / 90_000, average_rate=25, guessed_rate=25))

    def moved(pts: int | None, dts: int | None) -> tuple[int | None, int | None]:
        packet: Any = SimpleNamespace(pts=pts, dts=dts, duration=0)
        clock.move(packet)
        return packet.pts, packet.dts

    assert moved(3600, 0) == (3600, 0)
    assert moved(2**62, 2**62) == (2**62, 2**62)
    assert moved(7200, None) == (7200, None)
    assert moved(10_800, 3_600_000) == (10_800, 3_600_000)
    assert moved(0, 3600) == (3_600_000 + 3600 - 3600, 3_603_600)
