from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest

from stvid.video.packets import PARSERS, Units, nal_length_size


def packets(path: Path) -> tuple[str, int, list[tuple[bytes, bool]]]:
    """Codec, length size, and (data, key frame) of each packet."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        size = nal_length_size(context.name, context.extradata)
        return context.name, size, [(bytes(p), p.is_keyframe) for p in container.demux(stream) if p.size]


@pytest.mark.parametrize(
    ("codec", "name", "length_size"),
    [
        ("libx264", "a.mp4", 4),
        ("libx264", "a.ts", 0),
        ("libx265", "a.mp4", 4),
        ("libx265", "a.ts", 0),
        ("libvpx-vp9", "a.webm", 0),
        ("libvpx", "a.webm", 0),
    ],
)
def test_every_packet_is_one_frame(codec: str, name: str, length_size: int, make_video: Callable[..., Path]) -> None:
    kind, size, found = packets(make_video(name, codec=codec))
    assert size == length_size and len(found) == 20
    units = [PARSERS[kind](data, size) for data, _ in found]
    assert all(unit is not None and unit.frames == 1 for unit in units)
    assert [unit.random_access for unit in units if unit] == [key for _, key in found]
    if codec in ("libx264", "libx265"):  # two B-frames between references: nothing refers to at least one of them
        assert sum(unit.skippable for unit in units if unit) >= 5
    assert not units[0] or not units[0].skippable


def test_non_reference_frames_only_are_skippable() -> None:
    h264 = PARSERS["h264"]
    start = b"\x00\x00\x01"
    assert h264(start + b"\x01\x80\x11", 0) == Units(1, False, True, False)  # nal_ref_idc 0
    assert h264(start + b"\x21\x80\x11", 0) == Units(1, False, False, False)
    assert h264(start + b"\x65\x80\x11", 0) == Units(1, True, False, False)  # IDR
    assert h264(start + b"\x06\x05\x80" + start + b"\x01\x80\x11", 0) == Units(1, False, True, False)  # SEI
    assert h264(start + b"\x68\x05\x80" + start + b"\x01\x80\x11", 0) == Units(1, False, False, True)  # PPS
    assert h264(start + b"\x01\x80\x11" + start + b"\x01\x40\x11", 0) == Units(1, False, True, False)  # two slices
    assert h264(start + b"\x01\x80\x11" + start + b"\x01\x80\x11", 0) == Units(2, False, True, False)  # two pictures
    assert h264(start + b"\x06\x05\x80", 0) is None  # no picture
    assert h264(start + b"\x02\x80\x11", 0) is None  # data partition
    assert h264(start + b"\x81\x80\x11", 0) is None  # forbidden bit
    assert h264(start + b"\x65\x80\x11" + start + b"\x41\x40\x11", 0) is None  # half an IDR picture


def test_lengths_must_add_up() -> None:
    h264 = PARSERS["h264"]
    nal = b"\x65\x80\x11\x22"
    assert h264(b"\x00\x00\x00\x04" + nal, 4) == Units(1, True, False, False)
    assert h264(b"\x00\x04" + nal, 2) == Units(1, True, False, False)
    for broken in (b"\x00\x00\x00\x05" + nal, b"\x00\x00\x00\x03" + nal, b"\xff\xff\xff\xff" + nal, b"\x00\x00", b""):
        assert h264(broken, 4) is None
    assert h264(nal, 0) is None  # no start code


def test_pictures_of_hevc_that_their_sub_layer_does_not_refer_to() -> None:
    hevc = PARSERS["hevc"]
    start = b"\x00\x00\x01"

    def picture(kind: int, layer: int = 0) -> bytes:
        return start + bytes([kind << 1, layer + 1, 0x80, 0x11])

    assert hevc(picture(0), 0) == Units(1, False, True, False)  # TRAIL_N
    assert hevc(picture(1), 0) == Units(1, False, False, False)  # TRAIL_R
    assert hevc(picture(8, 2), 0) == Units(1, False, True, False, 2)  # RASL_N of the third sub-layer
    assert hevc(picture(19), 0) == Units(1, True, False, False)  # IDR
    assert hevc(picture(0) + picture(1), 0) == Units(2, False, False, False)
    assert hevc(start + b"\x4e\x01\x05\x80" + picture(0), 0) == Units(1, False, True, False)  # SEI
    assert hevc(start + b"\x44\x01\x05\x80" + picture(0), 0) == Units(1, False, False, True)  # PPS


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_hole_of_zeros_is_found(codec: str, make_video: Callable[..., Path]) -> None:
    kind, size, found = packets(make_video(codec=codec, width=96, height=96))
    data = max((data for data, _ in found), key=len)
    assert PARSERS[kind](data, size) is not None
    for at in range(size + 3, len(data) - 5, 7):
        assert PARSERS[kind](data[:at] + b"\x00" * 4 + data[at + 4 :], size) is None
    assert PARSERS[kind](data[:-1], size) is None


def test_vp9_frame_headers_and_superframes() -> None:
    vp9 = PARSERS["vp9"]
    key, inter, hidden, repeat = b"\x82\x49", b"\x86\x00\x40", b"\x84\x00", b"\x88"
    assert vp9(key, 0) == Units(1, True, False, False)
    assert vp9(inter, 0) == Units(1, False, False, False)
    assert vp9(hidden, 0) == Units(0, False, False, False)
    assert vp9(repeat, 0) == Units(1, False, False, False)  # show_existing_frame
    assert vp9(b"\xb1\x00", 0) == Units(1, True, False, False)  # profile 3 has one bit more
    assert vp9(hidden + inter + b"\xc1\x02\x03\xc1", 0) == Units(1, False, False, False)
    assert vp9(key + inter + b"\xc1\x02\x03\xc1", 0) == Units(2, True, False, False)
    assert vp9(hidden + inter + b"\xc9\x02\x00\x03\x00\xc9", 0) == Units(1, False, False, False)  # two-byte sizes
    assert vp9(hidden + inter + b"\xc1\x02\x09\xc1", 0) is None  # more than there is
    assert vp9(b"\x02\x49", 0) is None  # no frame marker
    assert vp9(b"", 0) is None


def test_vp8_frame_tags() -> None:
    vp8 = PARSERS["vp8"]
    assert vp8(b"\x10\x00\x00", 0) == Units(1, True, False, False)
    assert vp8(b"\x11\x00\x00", 0) == Units(1, False, False, False)
    assert vp8(b"\x01\x00\x00", 0) == Units(0, False, False, False)  # not shown
    assert vp8(b"\x10", 0) is None


def test_length_size() -> None:
    assert nal_length_size("h264", b"\x01\x64\x00\x1f\xff\xe1") == 4
    assert nal_length_size("h264", b"\x01\x64\x00\x1f\xfd\xe1") == 2
    assert nal_length_size("h264", b"\x00\x00\x00\x01\x67") == 0
    assert nal_length_size("hevc", b"\x01" + b"\x00" * 20 + b"\x03") == 4
    assert nal_length_size("h264", None) == 0 == nal_length_size("vp9", b"\x01\x00\x00\x00\x03")
