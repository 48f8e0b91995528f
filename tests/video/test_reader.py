from __future__ import annotations

import multiprocessing
import os
import struct
import sys
import types
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stvid.errors import MissingFileError, StvidError, UnknownNameError, VideoError
from stvid.video import av_reader, backends, pixels
from stvid.video.av_reader import AvSource
from stvid.video.frame_index import Packets, index_cache
from stvid.video.pixels import RgbConverter
from stvid.video.reader import VideoReader, available_backends

MakeVideo = Callable[..., Path]
FrameNumber = Callable[[torch.Tensor], int]

IRREGULAR = [0.0, 0.02, 0.1, 0.11, 0.3, 0.34, 0.5, 0.501, 0.6, 1.2, 1.21, 1.3, 1.5, 1.54, 1.6, 1.9, 2.0, 2.5, 2.51, 2.6]
KINDS = {
    "h264 mp4": {},
    "h264 no B-frames": {"bframes": 0},
    "h264 many B-frames": {"bframes": 5, "gop": 30, "frames": 40},
    "h264 intra only": {"gop": 1},
    "h264 open GOP": {"open_gop": True, "bframes": 3, "frames": 40},
    "h264 intra refresh": {"options": {"x264-params": "bframes=0:keyint=8:intra-refresh=1:threads=1"}, "frames": 40},
    "h264 slices": {"options": {"x264-params": "bframes=2:slices=3:keyint=10:threads=1"}},
    "h264 variable rate": {"times": IRREGULAR},
    "h264 mov": {"name": "a.mov"},
    "h264 mkv": {"name": "a.mkv"},
    "h264 flv": {"name": "a.flv"},
    "h264 ts": {"name": "a.ts"},
    "h264 4:4:4": {"pix_fmt": "yuv444p"},
    "h264 10 bits": {"pix_fmt": "yuv420p10le"},
    "h264 odd size": {"width": 65, "height": 49, "pix_fmt": "yuv444p"},
    "h264 with audio": {"audio": True},
    "h264 late start": {"start": 1.5},
    "h264 one frame": {"frames": 1},
    "hevc mp4": {"codec": "libx265"},
    "hevc open GOP": {"codec": "libx265", "open_gop": True, "bframes": 3, "frames": 40},
    "hevc mkv": {"codec": "libx265", "name": "a.mkv"},
    "hevc temporal layers": {
        "codec": "libx265",
        "frames": 40,
        "options": {
            "x265-params": "bframes=3:b-adapt=0:keyint=20:temporal-layers=3:pools=1:frame-threads=1:log-level=none"
        },
    },
    "vp9": {"codec": "libvpx-vp9", "name": "a.webm", "frames": 40},
    "vp9 odd size": {"codec": "libvpx-vp9", "name": "a.webm", "width": 65, "height": 49},
    "vp9 with alpha": {"codec": "libvpx-vp9", "name": "a.webm", "pix_fmt": "yuva420p"},
}
COUNTED = {
    "h264 avi": {"name": "a.avi"},
    "h264 bare stream": {"name": "a.h264"},
    "mpeg4 avi": {"codec": "mpeg4", "name": "a.avi"},
    "mpeg4 avi without B-frames": {"codec": "mpeg4", "name": "a.avi", "bframes": 0},
    "mpeg4 mp4": {"codec": "mpeg4"},
    "mjpeg avi": {"codec": "mjpeg", "name": "a.avi"},
    "mpeg2 ps": {"codec": "mpeg2video", "name": "a.mpg"},
    "gif": {"codec": "gif", "name": "a.gif"},
}


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    index_cache.clear()
    yield
    index_cache.clear()


needs_direct = pytest.mark.skipif(
    not hasattr(av.Packet, "iter_sidedata"), reason="PyAV 15 reads everything through the container"
)


def plain_decode(path: Path) -> np.ndarray:
    """Decodes the whole file from start to end, going on past refused packets: uint8 (N, H, W, 3), not rotated."""
    frames: list[np.ndarray] = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            if packet.size:
                try:
                    decoded = packet.decode()
                except av.error.InvalidDataError:
                    continue
                frames += [frame.to_ndarray(format="rgb24") for frame in decoded]
        frames += [frame.to_ndarray(format="rgb24") for frame in stream.codec_context.decode(None)]
    return np.stack(frames)


def orders(count: int, seed: int = 0) -> list[list[int]]:
    """Lists of frames to ask for: all, backwards, single ones, and random ones with repeats."""
    rng = np.random.default_rng(seed)
    lists = [list(range(count)), list(range(count - 1, -1, -1)), [count - 1], [0], [count // 2] * 3]
    return lists + [rng.integers(0, count, size).tolist() for size in (2, 7, 16)]


def check_exact(path: Path, frame_number: FrameNumber | None = None, **options: int) -> str:
    """Compares every order of access to a plain decode, bit for bit; returns how the frames were found."""
    expected = plain_decode(path)
    for indices in orders(len(expected)):
        index_cache.clear()
        with VideoReader(path, **options) as reader:
            assert len(reader) == len(expected) == len(reader.timestamps)
            frames = reader.get_batch(indices)
            assert frames.dtype == torch.uint8 and frames.shape == (len(indices), *expected.shape[1:])
            assert (reader.height, reader.width) == expected.shape[1:3]
            np.testing.assert_array_equal(frames.numpy(), expected[indices])
            if frame_number is not None:
                assert [frame_number(frame) for frame in frames] == indices
            method = reader.index_method
    return method


# ----------------------------------------------------------------------------------------------------- the right frames


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_exact_by_time_stamps(kind: str, make_video: MakeVideo, frame_number: FrameNumber) -> None:
    assert check_exact(make_video(**KINDS[kind]), frame_number) == "time stamps"


@pytest.mark.parametrize("kind", COUNTED)
def test_frames_are_exact_by_counting(kind: str, make_video: MakeVideo, frame_number: FrameNumber) -> None:
    assert check_exact(make_video(**COUNTED[kind]), frame_number).startswith("counting (")


def test_vp8_hidden_frames_do_not_count(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video("a.webm", codec="libvpx", bframes=0, to=tmp_path)
    assert check_exact(path) == "time stamps"
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][7]
    data = path.read_bytes()
    assert data.count(packet) == 1 and packet[0] & 0x10
    path.write_bytes(data.replace(packet, bytes([packet[0] & ~0x10]) + packet[1:]))  # show_frame
    assert check_exact(path).startswith("counting")
    with VideoReader(path) as reader:
        assert len(reader) == 19


def test_several_threads_give_the_same_frames(make_video: MakeVideo) -> None:
    assert check_exact(make_video(frames=40, bframes=3), num_threads=3) == "time stamps"
    check_exact(make_video("a.avi", codec="mpeg4"), num_threads=3)


def test_frames_before_the_first_key_frame(make_video: MakeVideo, tmp_path: Path) -> None:
    """A stream that begins with frames that refer to something before it: they are not part of the video."""
    source = make_video("a.mkv", open_gop=True, bframes=3, frames=40, gop=10)
    path = tmp_path / "late.mkv"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        keys = 0
        for packet in old.demux(video=0):
            keys += packet.is_keyframe and packet.size > 0
            if keys >= 2 and packet.size:
                packet.stream = stream
                new.mux(packet)
    assert check_exact(path).startswith("counting")


def test_frames_cut_off_by_an_edit_list_do_not_count(make_video: MakeVideo, tmp_path: Path, frame_number) -> None:
    path = make_video(bframes=2, gop=30, to=tmp_path)
    data = bytearray(path.read_bytes())
    at = data.find(b"elst") + 16  # version, flags, count, duration
    (begin,) = struct.unpack(">i", data[at : at + 4])
    with av.open(str(path)) as container:
        step = int(1 / (25 * container.streams.video[0].time_base))
    data[at : at + 4] = struct.pack(">i", begin + 5 * step)
    path.write_bytes(data)
    assert check_exact(path) == "time stamps"
    with VideoReader(path) as reader:
        assert [frame_number(frame) for frame in reader.get_all()] == list(range(5, 20))
        assert reader.timestamps[0] == pytest.approx(0.0)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_only_what_is_needed_is_decoded(codec: str, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last key frame on, without the frames that nothing refers to: that is the point of the time stamps."""
    sent: list[int] = []
    feed = AvSource._feed

    def counting(self: AvSource, packets: object, first: int, send: list[bool]) -> Iterator[object]:
        sent.append(sum(send))
        return feed(self, packets, first, send)

    monkeypatch.setattr(AvSource, "_feed", counting)
    with VideoReader(make_video(codec=codec, frames=60, gop=20, bframes=3)) as reader:
        sent.clear()
        reader.get_batch([40])
        assert sent == [1]  # the third key frame
        sent.clear()
        reader.get_batch([19])
        assert 1 < sum(sent) <= 12  # of 20: B-frames that nothing refers to are left out
        sent.clear()
        reader.get_batch([1, 41])
        assert len(sent) == 2 and sum(sent) <= 10


def test_the_end_of_a_long_file_is_read_from_there(make_video: MakeVideo, frame_number: FrameNumber) -> None:
    for name in ("a.mp4", "a.mkv", "a.ts"):
        with VideoReader(make_video(name, frames=200, gop=10)) as reader:
            for indices in ([199, 0, 150], [3], [77, 76]):
                assert [frame_number(frame) for frame in reader.get_batch(indices)] == indices


# -------------------------------------------------------------------------------------------------------- damaged files


def packet_ranges(path: Path) -> list[tuple[int, int, int]]:
    """(position in the file, size, number of the frame) of each packet in file order."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]
    order = sorted(pts for _, _, pts in packets)
    return [(pos, size, order.index(pts)) for pos, size, pts in packets]


def test_a_packet_that_is_overwritten_loses_one_frame(make_video: MakeVideo, tmp_path: Path, frame_number) -> None:
    path = make_video(bframes=2, gop=30, to=tmp_path)
    pos, size, number = next(r for r in packet_ranges(path)[8:] if r[1] < 100 and r[2] % 3)
    data = bytearray(path.read_bytes())
    data[pos : pos + size] = b"\xff" * size
    path.write_bytes(data)
    with VideoReader(path) as reader:
        frames = reader.get_all()
        assert reader.bad_packets == 1
        assert reader.index_method.startswith("counting")
        assert len(reader) == 19 == len(frames)
        assert [frame_number(frame) for frame in frames[:number]] == list(range(number))
    assert check_exact(path).startswith("counting")


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.mp4"])
def test_a_truncated_file_gives_what_is_left(name: str, make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(name, bframes=2, frames=40, gop=10, to=tmp_path)
    if name == "a.mp4":  # the table of contents first, as files for the web have it; else nothing can be read
        with av.open(str(path)) as old, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
        path = tmp_path / "b.mp4"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.7)])
    expected = plain_decode(path)
    assert 10 <= len(expected) < 40
    with VideoReader(path) as reader:
        assert len(reader) == len(expected)
        indices = list(range(len(expected) - 2, -1, -3))  # the last frame may be half there, with undefined pixels
        np.testing.assert_array_equal(reader.get_batch(indices).numpy(), expected[indices])


def test_damage_that_only_decoding_shows(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan promises a frame that the decoder then refuses: the others keep their numbers."""
    path = make_video(bframes=0, frames=20)
    feed = AvSource._feed

    def refusing(self: AvSource, packets: object, first: int, send: list[bool]) -> Iterator[object]:
        if len(send) > 1:  # not the first frame, which is read when the file is opened
            raise av.error.InvalidDataError(1, "made by the test")
        return feed(self, packets, first, send)

    decode_all = AvSource._decode_all
    lost = {13}

    def shorter(self: AvSource, problems: list[str]) -> Iterator[object]:
        for number, frame in enumerate(decode_all(self, problems)):
            if number not in lost:
                yield frame
        problems.append("made by the test")

    expected = plain_decode(path)
    monkeypatch.setattr(AvSource, "_feed", refusing)
    monkeypatch.setattr(AvSource, "_decode_all", shorter)
    for _ in range(2):  # the second reader knows the index of the first
        with VideoReader(path) as reader:
            assert len(reader) == 20
            frames = reader.get_batch([19, 14, 13, 5]).numpy()
            np.testing.assert_array_equal(frames, expected[[19, 14, 12, 5]])
            assert len(reader) == 20 and "made by the test" in reader.index_method and reader.bad_packets == 1
            np.testing.assert_allclose(reader.timestamps, np.arange(20) / 25)

    lost.update(range(3, 15))
    index_cache.clear()
    with VideoReader(path) as reader, pytest.raises(VideoError, match="is damaged: only 8 of its 20 frames can be"):
        reader.get_batch([19])
    with VideoReader(path) as reader:
        assert len(reader) == 20


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_frames_that_damage_leaves_whole_look_the_same_alone(
    name: str, make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that nothing refers to is damaged: the others are read by their packets, whoever meets it first."""
    path = make_video(name, bframes=2, gop=8, frames=24, to=tmp_path)
    feed = AvSource._feed

    def refusing(self: AvSource, packets: Packets, first: int, sent: list[bool]) -> Iterator[object]:
        if any(sent[number - first] for number in spoiled if first <= number < first + len(sent)):
            raise av.error.InvalidDataError(1, "made by the test")
        return feed(self, packets, first, sent)

    def concealed(self: AvSource, problems: list[str]) -> Iterator[object]:
        for frame in decode_all(self, problems):
            for plane in frame.planes:  # as decoders show what they have to guess
                plane.update(bytes([7]) * plane.buffer_size)
            yield frame

    decode_all = AvSource._decode_all
    expected = plain_decode(path)
    with VideoReader(path) as reader:
        source = reader._opened
        assert isinstance(source, AvSource) and source.index.packets is not None
        packets = source.index.packets
        free = int(np.flatnonzero(packets.skippable & (np.arange(24) > 10))[0])
    spoiled = {free}
    frame = packets.of_frame.tolist().index(free)
    monkeypatch.setattr(AvSource, "_feed", refusing)
    monkeypatch.setattr(AvSource, "_decode_all", concealed)
    others = [index for index in range(24) if index != frame]
    index_cache.clear()
    with VideoReader(path) as reader:
        together = reader.get_batch(range(24)).numpy()
        np.testing.assert_array_equal(together[others], expected[others])
        assert not np.array_equal(together[frame], expected[frame])
        assert "where it is damaged (a packet cannot be decoded" in reader.index_method
    with VideoReader(path) as reader:  # by the index of the one before
        np.testing.assert_array_equal(reader.get_batch([frame, 23]).numpy(), together[[frame, 23]])
    index_cache.clear()
    with VideoReader(path) as reader:
        alone = np.concatenate([reader.get_batch([index]).numpy() for index in range(24)])
    np.testing.assert_array_equal(alone, together)


def test_bits_flipped_anywhere_give_the_plain_decode_or_one_error(make_video: MakeVideo, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = make_video(bframes=2, gop=8, frames=24)
    original = np.frombuffer(source.read_bytes(), np.uint8)
    opened = 0
    for trial in range(25):
        data = original.copy()
        at = rng.integers(0, len(data), 3)
        data[at] ^= (1 << rng.integers(0, 8, 3)).astype(np.uint8)
        path = tmp_path / f"{trial}.mp4"
        path.write_bytes(data.tobytes())
        try:
            with VideoReader(path) as reader:
                frames = reader.get_batch([0, len(reader) - 1])
                assert frames.shape == (2, reader.height, reader.width, 3)
                opened += 1
        except VideoError as error:
            assert "\n" not in str(error) and str(path) in str(error)
    assert opened > 5


# ------------------------------------------------------------------------------------------------- time, rate, duration


def noisy_video(path: Path, codec: str, options: dict[str, str]) -> Path:
    """Writes 24 frames of texture that moves, in two groups of pictures."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (23, 40, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)[:176, :320]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 320, 176
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = 12
        stream.options = options
        for number in range(24):
            image = np.ascontiguousarray(np.roll(still, 5 * number, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.webm", "libvpx", {"b": "400k", "deadline": "realtime", "cpu-used": "8"}),
        ("a.avi", "libvpx", {"b": "400k", "deadline": "realtime", "cpu-used": "8"}),  # counted
        (
            "a.mp4",
            "libx265",
            {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:pools=1:frame-threads=1"},
        ),
        (
            "a.ts",
            "libx265",
            {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:pools=1:frame-threads=1"},
        ),  # in pieces
        ("b.avi", "mjpeg", {}),  # counted
    ],
)
def test_damage_that_the_decoder_hides_looks_the_same_each_time(
    name: str, codec: str, options: dict[str, str], threads: int, tmp_path: Path
) -> None:
    path = noisy_video(tmp_path / name, codec, options)
    good = path.read_bytes()
    with VideoReader(path) as reader:
        sound = reader.get_batch(range(0, 24, 3))
    rng = np.random.default_rng(1)
    spoiled = 0
    for _ in range(6):
        data = bytearray(good)
        at, length = int(rng.integers(1000, len(data) - 400)), int(rng.choice([1, 300]))
        data[at : at + length] = bytes(length) if length > 1 else bytes([data[at] ^ 0x5A])
        path.write_bytes(data)
        index_cache.clear()
        with VideoReader(path, num_threads=threads) as reader:
            indices = list(range(0, len(reader), 3))
            try:
                first = reader.get_batch(indices)
            except VideoError:  # fewer frames than it seemed: found while reading
                continue
            assert torch.equal(reader.get_batch(indices), first)
            single = [reader.get_batch([index]) for index in reversed(indices)]
            assert torch.equal(torch.cat(single).flip(0), first)
        with VideoReader(path, num_threads=threads) as reader:  # by the index of the one before
            assert torch.equal(reader.get_batch(indices), first)
        spoiled += first.shape == sound.shape and not torch.equal(first, sound)
    assert spoiled or codec == "libx265"  # else nothing was tried


def test_time_stamps_are_the_files_own(make_video: MakeVideo) -> None:
    with VideoReader(make_video(times=IRREGULAR)) as reader:
        np.testing.assert_allclose(reader.timestamps, IRREGULAR, atol=1e-4)
        assert reader.timestamps.dtype == np.float64
        assert reader.fps == pytest.approx(19 / 2.6, rel=1e-3)
        assert reader.duration == pytest.approx(2.6 + 2.6 / 19, rel=1e-3)
    with VideoReader(make_video(start=1.5)) as reader:
        np.testing.assert_allclose(reader.timestamps, 1.5 + np.arange(20) / 25, atol=1e-4)
        assert reader.duration == pytest.approx(0.8, abs=1e-3)
    with VideoReader(make_video("a.avi", codec="mpeg4")) as reader:  # stored in another order than shown
        assert (np.diff(reader.timestamps) > 0.039).all()
    with VideoReader(make_video(fps=Fraction(30000, 1001))) as reader:
        assert reader.fps == pytest.approx(30000 / 1001, rel=1e-9)
    with VideoReader(make_video("a.mkv", fps=30)) as reader:  # milliseconds
        assert reader.fps == pytest.approx(30, rel=1e-9)
    with VideoReader(make_video(frames=1, fps=10)) as reader:
        assert (len(reader), reader.duration) == (1, pytest.approx(0.1))


def test_time_stamps_are_a_copy(make_video: MakeVideo) -> None:
    with VideoReader(make_video()) as reader:
        reader.timestamps[:] = -1
        assert reader.timestamps[0] == 0


# ----------------------------------------------------------------------------------------------------- shape and colour


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied(rotation: int, mirrored: bool, make_video: MakeVideo, frame_number: FrameNumber) -> None:
    path = make_video(rotation=rotation, mirrored=mirrored, name="a.mov" if mirrored else "a.mp4")
    stored = plain_decode(path)
    shown = stored[:, :, ::-1] if mirrored else stored
    shown = np.rot90(shown, -rotation // 90, axes=(1, 2))  # np.rot90 turns anticlockwise
    with VideoReader(path) as reader:
        assert (reader.height, reader.width) == shown.shape[1:3]
        np.testing.assert_array_equal(reader.get_batch([7, 0, 13]).numpy(), shown[[7, 0, 13]])


def test_an_odd_display_matrix_is_left_out(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(to=tmp_path)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    half = 46341  # 45 degrees
    data[at : at + 36] = struct.pack(">9i", half, half, 0, -half, half, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    check_exact(path)


MATRICES = {"bt601": (6, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722), "bt2020": (9, 0.2627, 0.0593)}


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [*MATRICES, "unspecified"])
def test_colours_follow_matrix_and_range(matrix: str, full: bool, pix_fmt: str, tmp_path: Path) -> None:
    number, kr, kb = MATRICES.get(matrix, (2, 0.299, 0.114))  # unspecified is taken for BT.601, as by ffmpeg
    colours = [(200, 60, 30), (20, 180, 90), (40, 70, 220), (255, 255, 255), (0, 0, 0)]
    path = tmp_path / "colours.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4", "x264-params": "threads=1:bframes=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = number, 2 if full else 1
        for colour in colours:
            r, g, b = np.array(colour) / 255
            y = kr * r + (1 - kr - kb) * g + kb * b
            values = np.array([y, (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)])
            values = values * 255 + [0, 128, 128] if full else values * [219, 224, 224] + [16, 128, 128]
            frame = av.VideoFrame(64, 48, pix_fmt)
            frame.colorspace, frame.color_range = number, 2 if full else 1
            deep = pix_fmt.endswith("10le")
            for plane, value in zip(frame.planes, values, strict=True):
                samples = np.full(plane.buffer_size // (2 if deep else 1), min(round(value * (4 if deep else 1)), 1023))
                plane.update(np.minimum(samples, 1023 if deep else 255).astype(np.uint16 if deep else np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with VideoReader(path) as reader:
        got = reader.get_all().float().mean(dim=(1, 2)).numpy()
    assert np.abs(got - colours).max() < 4, got  # a wrong matrix or range is off by 8 to 25


def test_a_change_of_size_within_the_file_is_scaled_to_the_first(make_video: MakeVideo, tmp_path: Path) -> None:
    path = tmp_path / "joined.ts"
    small, large = make_video("a.ts", start=0.0), make_video("a.ts", width=96, height=96, start=1.0)
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(path) as reader:
        assert reader.get_batch([0, len(reader) - 1]).shape == (2, 48, 64, 3)


# ------------------------------------------------------------------------------------------------- streams and metadata


def two_streams(path: Path, make_picture: Callable[..., np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((32, 24), (96, 72)):
            stream = container.add_stream("libx264", rate=25, options={"x264-params": "threads=1"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        streams[0].disposition, streams[1].disposition = 0, av.stream.Disposition.default.value
        for number in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(make_picture(number, stream.width, stream.height), "rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def test_the_best_video_stream_is_read(tmp_path: Path, draw_frame, frame_number: FrameNumber) -> None:
    path = tmp_path / "two.mp4"
    two_streams(path, draw_frame)
    with VideoReader(path) as reader:
        assert (reader.height, reader.width) == (72, 96)
        assert [frame_number(frame) for frame in reader.get_batch([9, 2])] == [9, 2]


def test_a_cover_picture_is_no_video(tmp_path: Path, make_audio: Callable[[], Path]) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(make_audio())) as old, av.open(str(path), "w") as new:
        sound = new.add_stream_from_template(old.streams.audio[0])
        cover = new.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        new.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        new.mux(cover.encode(None))
        for packet in old.demux(audio=0):
            if packet.size:
                packet.stream = sound
                new.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoError, match="no video stream"):
        VideoReader(path)


def test_metadata_need_not_be_utf8(make_video: MakeVideo, tmp_path: Path) -> None:
    path = tmp_path / "title.mp4"
    with av.open(str(make_video())) as old, av.open(str(path), "w") as new:
        new.metadata["title"] = "TITLETITLE"
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    data = path.read_bytes()
    assert b"TITLETITLE" in data
    path.write_bytes(data.replace(b"TITLETITLE", b"\xff\xfe\xe9\xe8\xff\xff\xff\xff\xff\xff"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    with VideoReader(path) as reader:
        assert len(reader) == 20


# ----------------------------------------------------------------------------------------------------------- the source


def test_bytes_are_as_good_as_a_path(make_video: MakeVideo) -> None:
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4")):
        path = make_video(name, codec=codec, frames=30)
        with VideoReader(path.read_bytes()) as reader, VideoReader(path) as other:
            assert reader.source_name == "<bytes>"
            assert torch.equal(reader.get_batch([20, 3, 3]), other.get_batch([20, 3, 3]))
        with path.open("rb") as file, VideoReader(file) as reader, VideoReader(path) as other:
            assert torch.equal(reader.get_batch([7]), other.get_batch([7]))


@pytest.mark.parametrize("name", ["a:b.mp4", "50%d off.mp4", "ü 影片.mp4", "https:--x.mp4", "-i.mp4"])
def test_any_file_name_will_do(name: str, make_video: MakeVideo, tmp_path: Path, monkeypatch) -> None:
    make_video(to=tmp_path).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        with VideoReader(path) as reader:
            assert len(reader.get_batch([5])) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_need_not_be_utf8(make_video: MakeVideo, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xfe.mp4")
    with open(path, "wb") as file:
        file.write(make_video().read_bytes())
    with VideoReader(os.fsdecode(path)) as reader:
        assert len(reader.get_batch([19, 0])) == 2


def test_missing_and_empty_files_and_folders(tmp_path: Path, make_video: MakeVideo) -> None:
    with pytest.raises(MissingFileError, match="no such file") as caught:
        VideoReader(tmp_path / "none.mp4")
    assert isinstance(caught.value, FileNotFoundError) and caught.value.source == str(tmp_path / "none.mp4")
    with pytest.raises(MissingFileError, match="its name is empty"):
        VideoReader("")
    with pytest.raises(VideoError, match="is a folder"):
        VideoReader(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty \(0 bytes\)"):
        VideoReader(tmp_path / "empty.mp4")
    with pytest.raises(VideoError, match=r"<bytes>: is empty"):
        VideoReader(b"")
    with pytest.raises(VideoError, match="cannot be read"):
        VideoReader("null\0byte.mp4")
    with pytest.raises(MissingFileError):
        VideoReader(make_video() / "below a file.mp4")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(VideoError, match="not a regular file"):
            VideoReader(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_header_that_counts_no_samples(codec: str, make_video: MakeVideo) -> None:
    data = bytearray(make_video(f"{codec}.mp4", codec=codec).read_bytes())
    place = data.index(b"stsz") + 12  # type, version and flags, the size that all have in common, the count
    data[place : place + 4] = bytes(4)
    with pytest.raises(VideoError, match="it holds no frames"):
        VideoReader(bytes(data))


def test_files_that_are_no_videos(tmp_path: Path, make_audio: Callable[[], Path], make_video: MakeVideo) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("This is not a video.\n" * 100)
    with pytest.raises(VideoError, match="not a video") as caught:
        VideoReader(text)
    assert "\n" not in str(caught.value) and str(text) in str(caught.value)
    text.rename(tmp_path / "text.txt")  # FFmpeg would draw it
    with pytest.raises(VideoError, match="not a video"):
        VideoReader(tmp_path / "text.txt")
    with pytest.raises(VideoError, match="no video stream, only audio"):
        VideoReader(make_audio())
    data = make_video().read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])  # the table of contents is at the end
    with pytest.raises(VideoError, match="not a video, or cut off"):
        VideoReader(tmp_path / "cut.mp4")
    with pytest.raises(VideoError):
        VideoReader(b"\x00" * 5000)


def test_a_file_of_which_nothing_can_be_decoded(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(frames=3, bframes=0, to=tmp_path)
    data = bytearray(path.read_bytes())
    for pos, size, _ in packet_ranges(path):
        data[pos : pos + size] = b"\xff" * size
    path.write_bytes(data)
    with pytest.raises(VideoError, match="none of its frames can be decoded"):
        VideoReader(path)


def test_a_moving_webp_is_named(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 16), (60 * number, 0, 0)) for number in range(4)]
    pictures[0].save(tmp_path / "moving.webp", save_all=True, append_images=pictures[1:], duration=100)
    with pytest.raises(VideoError, match="FFmpeg reads no moving WebP"):
        VideoReader(tmp_path / "moving.webp")


def test_a_playlist_is_not_followed(make_video: MakeVideo, tmp_path: Path) -> None:
    make_video("a.ts", to=tmp_path)
    lists = {
        "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n",
        "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n",
        "concat.mp4": "ffconcat version 1.0\nfile a.ts\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(VideoError, match="not a video"):
            VideoReader(tmp_path / name)


def test_absurd_sizes_are_refused(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(width=96, height=72)
    monkeypatch.setattr(backends, "MAX_SIDE", 95)
    with pytest.raises(VideoError, match="96 x 72 pixels, more than"):
        VideoReader(path)
    monkeypatch.setattr(backends, "MAX_SIDE", 96)
    monkeypatch.setattr(backends, "MAX_PIXELS", 96 * 72 - 1)
    with pytest.raises(VideoError, match="96 x 72 pixels, more than"):
        VideoReader(path)
    monkeypatch.setattr(backends, "MAX_PIXELS", 96 * 72)
    monkeypatch.setattr(av_reader, "MAX_FRAMES", 19)
    for video in (path, make_video("a.avi", codec="mpeg4")):
        with pytest.raises(VideoError, match="more than 19 frames"):
            VideoReader(video)


# ---------------------------------------------------------------------------------------------------------------- usage


def test_indices_are_checked(make_video: MakeVideo) -> None:
    with VideoReader(make_video()) as reader:
        for bad in ([20], [-1], [0, 5, 99]):
            with pytest.raises(IndexError, match="video of 20 frames"):
                reader.get_batch(bad)
        for bad in ([0.5], [True], ["a"], [[1, 2]], 3):
            with pytest.raises(TypeError, match="whole numbers"):
                reader.get_batch(bad)  # type: ignore[arg-type]
        assert reader.get_batch([]).shape == (0, 48, 64, 3)
        expected = reader.get_batch([4, 2])
        assert torch.equal(reader.get_batch(np.array([4, 2], np.int32)), expected)
        assert torch.equal(reader.get_batch(torch.tensor([4, 2])), expected)
        assert torch.equal(reader.get_batch((4, 2)), expected)
        assert torch.equal(reader.get_batch(range(4, 1, -2)), expected)
        assert torch.equal(reader.get_all()[[4, 2]], expected)


def test_results_do_not_share_memory(make_video: MakeVideo) -> None:
    with VideoReader(make_video()) as reader:
        first = reader.get_batch([3, 3])
        first[0].zero_()
        assert first[1].any() and reader.get_batch([3]).any()


def test_a_reader_that_is_not_closed_leaves_nothing_open(make_video: MakeVideo) -> None:
    path = make_video()
    for _ in range(2):  # by a scan, and by the index that is remembered then
        reader = VideoReader(path)
        reader.get_batch([0])
        source = reader._source
        del reader
        assert isinstance(source, AvSource)
        assert source.direct is None and source.container is None
    with pytest.raises(TypeError):
        VideoReader(path, nothing=1)  # type: ignore[call-arg]


def test_a_closed_reader_says_so(make_video: MakeVideo) -> None:
    reader = VideoReader(make_video())
    assert "20 frames" in repr(reader)
    reader.close()
    reader.close()
    assert "closed" in repr(reader)
    with pytest.raises(VideoError, match="reader is closed"):
        reader.get_batch([0])
    with pytest.raises(VideoError, match="reader is closed"):
        len(reader)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_file_and_no_thread_is_left(make_video: MakeVideo, make_audio: Callable[[], Path], tmp_path: Path) -> None:
    good, counted, audio = make_video(), make_video("a.avi", codec="mpeg4"), make_audio()
    (tmp_path / "bad.mp4").write_bytes(good.read_bytes()[:500])

    def use() -> None:
        for path in (good, counted, good.read_bytes()):
            with VideoReader(path, num_threads=2) as reader:
                reader.get_batch([15, 1])
        for path in (audio, tmp_path / "bad.mp4", tmp_path / "none.mp4", tmp_path):
            with pytest.raises(VideoError):
                VideoReader(path)

    use()
    files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(5):
        index_cache.clear()
        use()
    assert len(os.listdir("/proc/self/fd")) == files
    assert len(os.listdir("/proc/self/task")) == threads


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_memory_stays_flat_over_thousands_of_reads(make_video: MakeVideo) -> None:
    paths = [make_video(f"{number}.mp4", frames=12, width=64, height=48) for number in range(3)]
    paths.append(make_video("a.avi", codec="mpeg4", frames=12))

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    sizes = []
    for number in range(5000):
        if number % 1000 == 0:
            index_cache.clear()
        with VideoReader(paths[number % len(paths)]) as reader:
            reader.get_batch([11, 3])
        if number in (999, 4999):
            sizes.append(resident())
    assert sizes[1] - sizes[0] < 5


def read_in_a_process(path: str, results: Any) -> None:
    with VideoReader(path) as reader:
        results.put(int(reader.get_batch([5]).sum()))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_any_start_method_will_do(method: str, make_video: MakeVideo) -> None:
    path = str(make_video())
    with VideoReader(path) as reader:
        expected = int(reader.get_batch([5]).sum())
        if method not in multiprocessing.get_all_start_methods():
            pytest.skip(f"no {method} on this system")
        context = multiprocessing.get_context(method)
        results = context.SimpleQueue()
        process = context.Process(target=read_in_a_process, args=(path, results))
        process.start()
        process.join(60)
        assert process.exitcode == 0 and results.get() == expected


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_reader_gives_up_in_time(name: str, make_video: MakeVideo) -> None:
    path = make_video(name, codec="mpeg4" if name == "a.avi" else "libx264")
    with pytest.raises(VideoError, match=r"not read within 0 s"):
        VideoReader(path, time_limit=0.0)


@needs_direct
def test_a_header_that_misleads_the_decoder_is_not_trusted_twice(make_video: MakeVideo, monkeypatch) -> None:
    path = make_video(bframes=3, frames=40)
    with VideoReader(path) as reader:
        expected = reader.get_batch([30, 2, 11])
    feed = AvSource._feed
    calls = []

    def misled(self: Any, *arguments: Any) -> Iterator[Any]:
        calls.append(self.direct is not None)
        frames = list(feed(self, *arguments))
        return iter(frames[1:] if self.direct is not None else frames)

    monkeypatch.setattr(AvSource, "_feed", misled)
    for _ in range(2):
        with VideoReader(path) as reader:
            assert torch.equal(reader.get_batch([30, 2, 11]), expected)
            assert reader.index_method == "time stamps"
    assert calls[0] and not any(calls[1:])


@needs_direct
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.webm", "libvpx-vp9")])
def test_packets_in_one_piece_are_read_without_the_container(name: str, codec: str, make_video: MakeVideo) -> None:
    path = make_video(name, codec=codec, frames=40)
    expected = plain_decode(path)
    for source in (path, path, path.read_bytes()):  # scanned, found in the cache, scanned
        with VideoReader(source) as reader:
            assert reader._source.container is None
            np.testing.assert_array_equal(reader.get_batch([30, 2, 11]).numpy(), expected[[30, 2, 11]])


def test_packets_in_pieces_are_read_through_the_container(make_video: MakeVideo) -> None:
    path = make_video("a.ts", frames=40)  # 188 bytes at a time
    for _ in range(2):
        with VideoReader(path) as reader:
            assert reader._source.direct is None
            np.testing.assert_array_equal(reader.get_batch([30, 2]).numpy(), plain_decode(path)[[30, 2]])


@needs_direct
def test_a_packet_that_has_changed_is_not_decoded_as_it_was(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(to=tmp_path, frames=20, bframes=0)
    with VideoReader(path) as reader:
        reader.get_batch([3])
        with path.open("r+b") as file:  # the reader and its index know nothing of it
            position, size, _ = packet_ranges(path)[2]
            file.seek(position + size // 2)
            file.write(bytes(size // 4))
        expected = plain_decode(path)
        frames = reader.get_batch(range(len(expected) - 1)).numpy()  # the last may be half there, with undefined pixels
        np.testing.assert_array_equal(frames, expected[:-1])
        assert reader._source.direct is None


def test_a_file_is_scanned_once_until_it_changes(make_video: MakeVideo, tmp_path: Path, monkeypatch) -> None:
    scans = []
    scan = AvSource._index_by_scan
    monkeypatch.setattr(AvSource, "_index_by_scan", lambda self: (scans.append(1), scan(self))[1])
    path = make_video(to=tmp_path)
    for _ in range(3):
        with VideoReader(path) as reader:
            assert len(reader.get_batch([19])) == 1 and len(reader) == 20
    assert len(scans) == 1
    path.write_bytes(make_video(frames=31).read_bytes())
    with VideoReader(path) as reader:
        assert len(reader) == 31
    assert len(scans) == 2


def test_the_cache_is_bounded(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "limit", 6000)
    for frames in range(20, 30):
        VideoReader(make_video(frames=frames)).close()
        assert index_cache.used == sum(index.nbytes for index in index_cache.entries.values()) <= 6000
    assert 1 <= len(index_cache.entries) < 10


# ------------------------------------------------------------------------------------------------------------- backends


CROPPED = {
    "even": {"width": 98, "height": 64},
    "odd width": {"width": 97, "height": 64, "pix_fmt": "yuv444p"},
    "odd height": {"width": 64, "height": 49, "codec": "libvpx-vp9", "name": "a.webm"},
    "full range": {"width": 64, "height": 48, "pix_fmt": "yuvj420p"},
    "10 bit": {"pix_fmt": "yuv420p10le"},
    "turned": {"width": 98, "height": 64, "rotation": 90},
    "turned and mirrored": {"width": 98, "height": 64, "rotation": 270, "mirrored": True},
    "upside down": {"width": 98, "height": 64, "rotation": 180},
    "counted": {"codec": "mpeg4", "name": "a.avi"},
}


@pytest.mark.parametrize("kind", CROPPED)
def test_a_crop_is_a_part_of_the_whole(kind: str, make_video: MakeVideo) -> None:
    rng = np.random.default_rng(0)
    with VideoReader(make_video(**CROPPED[kind])) as reader:
        whole = reader.get_batch([3, 1])
        for _ in range(8):
            height, width = int(rng.integers(1, reader.height + 1)), int(rng.integers(1, reader.width + 1))
            top, left = int(rng.integers(reader.height - height + 1)), int(rng.integers(reader.width - width + 1))
            part = reader.get_batch([3, 1], crop=(top, left, height, width))
            assert torch.equal(part, whole[:, top : top + height, left : left + width])
        assert reader.get_batch([], crop=(0, 0, 2, 3)).shape == (0, 2, 3, 3)
        for crop in ((-1, 0, 2, 2), (0, 0, 0, 2), (0, 0, reader.height + 1, 2), (0, reader.width - 1, 2, 2)):
            with pytest.raises(ValueError, match="is not within frames of"):
                reader.get_batch([0], crop=crop)


@pytest.mark.parametrize("size", [(2, 3), (30, 31), (64, 98)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
def test_what_is_cut_before_it_is_converted(
    size: tuple[int, int], pix_fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_CUT_PIXELS", 0)  # as if it paid for small frames
    rng = np.random.default_rng(1)
    height, width = size
    for matrix in (1, 2, 5):
        frame = av.VideoFrame(width, height, pix_fmt)
        for plane in frame.planes:
            plane.update(rng.bytes(plane.buffer_size))
        frame.colorspace, frame.color_range = matrix, 2 if pix_fmt == "yuvj420p" else 1
        convert = RgbConverter(av)
        whole = convert(frame, height, width).copy()
        for _ in range(20):
            rows, columns = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            part = convert(frame, height, width, (top, left, rows, columns))
            np.testing.assert_array_equal(part, whole[top : top + rows, left : left + columns])


def test_frames_backend_reads_a_list_of_images(tmp_path: Path, draw_frame, frame_number: FrameNumber) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.fromarray(draw_frame(number, 64, 48)).save(tmp_path / "images" / f"{number}.png")
    listed = tmp_path / "list.txt"
    listed.write_text("images/3.png\n\nimages/1.png\r\nimages/2.png\n")
    with VideoReader(listed, backend="frames") as reader:
        assert [frame_number(frame) for frame in reader.get_batch([2, 0, 1])] == [2, 3, 1]
        assert reader.duration == pytest.approx(3 / 25)
    listed.write_text("\n")
    with pytest.raises(VideoError, match="names no images"):
        VideoReader(listed, backend="frames")
    listed.write_text("gone.png\n")
    with pytest.raises(VideoError, match=r"gone\.png: is no readable image"):
        VideoReader(listed, backend="frames")


def test_frames_backend_reads_a_folder_of_images(tmp_path: Path, draw_frame, frame_number: FrameNumber) -> None:
    for number in range(1, 13):
        Image.fromarray(draw_frame(number, 60, 40)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    with VideoReader(tmp_path, backend="frames") as reader:
        assert (len(reader), reader.fps, reader.height, reader.width) == (12, 25.0, 40, 60)
        assert [frame_number(frame) for frame in reader.get_batch([11, 0, 1, 0])] == [12, 1, 2, 1]
        np.testing.assert_allclose(reader.timestamps, np.arange(12) / 25)
        with pytest.raises(IndexError):
            reader.get_batch([12])
        Image.fromarray(draw_frame(3, 62, 40)).save(tmp_path / "frame_3.png")
        with pytest.raises(VideoError, match=r"frame_3.png: is 62 x 40 pixels"):
            reader.get_batch([0, 2])
        (tmp_path / "frame_4.png").write_bytes(b"nothing")
        with pytest.raises(VideoError, match=r"frame_4.png: is no readable image"):
            reader.get_batch([3])
        part = reader.get_batch([5], crop=(10, 20, 7, 9))
        assert torch.equal(part, reader.get_batch([5])[:, 10:17, 20:29])


def test_frames_backend_errors(tmp_path: Path, make_video: MakeVideo) -> None:
    with pytest.raises(VideoError, match="holds no images"):
        VideoReader(tmp_path, backend="frames")
    with pytest.raises(VideoError, match="reads a folder of images"):
        VideoReader(make_video(), backend="frames")
    with pytest.raises(VideoError, match="folder of images, not bytes"):
        VideoReader(b"x", backend="frames")
    with pytest.raises(MissingFileError):
        VideoReader(tmp_path / "none", backend="frames")


def test_unknown_backend_and_bad_threads(make_video: MakeVideo) -> None:
    with pytest.raises(UnknownNameError, match=r"'decordd' does not exist; .*nearest: decord"):
        VideoReader(make_video(), backend="decordd")
    with pytest.raises(ValueError, match="num_threads"):
        VideoReader(make_video(), num_threads=0)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_a_missing_backend_names_the_command(backend: str, make_video: MakeVideo, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(StvidError, match=rf"pip install 'stvid\[{backend}\]'"):
        VideoReader(make_video(), backend=backend)
    found = available_backends()
    assert set(found) == {"av", "decord", "torchcodec", "frames"}
    assert found["av"] == "" and f"pip install 'stvid[{backend}]'" in found[backend]


class _FakeDecord(types.ModuleType):
    """Stands in for decord: the same interface over a plain decode."""

    extra = 0

    def __init__(self) -> None:
        super().__init__("decord")

    def cpu(self, number: int) -> int:
        return number

    def VideoReader(self, path: str, *, ctx: int, num_threads: int) -> object:
        frames = plain_decode(Path(path))

        class Batch:
            def __init__(self, array: np.ndarray) -> None:
                self.array = array

            def asnumpy(self) -> np.ndarray:
                return self.array

        class Reader:
            def __len__(reader) -> int:
                return len(frames) + self.extra

            def __getitem__(reader, index: int) -> np.ndarray:
                return frames[index]

            def get_batch(reader, indices: list[int]) -> Batch:
                assert indices == sorted(set(indices))
                if 13 in indices:
                    raise RuntimeError("broken frame\nwith a long trace")
                return Batch(frames[indices])

        return Reader()


def test_another_backend_gives_the_same_frames_or_says_so(make_video: MakeVideo, monkeypatch) -> None:
    fake = _FakeDecord()
    monkeypatch.setitem(sys.modules, "decord", fake)
    path = make_video(frames=20)
    with VideoReader(path, backend="decord") as reader, VideoReader(path) as reference:
        assert torch.equal(reader.get_batch([7, 2, 7]), reference.get_batch([7, 2, 7]))
        assert reader.get_batch([]).shape == (0, 48, 64, 3)
        assert len(reader) == 20 and reader.fps == reference.fps and reader.backend == "decord"
        np.testing.assert_array_equal(reader.timestamps, reference.timestamps)
        with pytest.raises(VideoError, match=r"decord cannot read it \(broken frame\)"):
            reader.get_batch([13])
    fake.extra = 1
    with pytest.raises(VideoError, match=r"finds 21 frames .* where there are 20"):
        VideoReader(path, backend="decord")


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_optional_backends_agree_with_av(backend: str, make_video: MakeVideo) -> None:
    reason = available_backends()[backend]
    if reason:
        pytest.skip(reason)
    path = make_video(frames=40, width=96, height=64)
    with VideoReader(path, backend=backend) as reader, VideoReader(path) as reference:
        difference = reader.get_batch([30, 4, 4]).float() - reference.get_batch([30, 4, 4]).float()
        assert difference.abs().mean() < 2
