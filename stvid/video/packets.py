"""Packets without decoding them: how many frames they hold, and whether decoding can begin there.

Only as much of each format is read as `av_reader` needs to trust an index that was made without decoding. A parser
gives None for a packet that cannot be what it claims to be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["PARSERS", "Units", "nal_length_size", "nal_units"]


@dataclass(frozen=True)
class Units:
    """Facts about one packet that show without decoding it."""

    frames: int  # frames that come out of it
    random_access: bool  # decoding can begin here
    skippable: bool  # no other frame refers to it, and it sets nothing that others need
    parameters: bool  # brings parameter sets
    layer: int = 0  # temporal sub-layer; only those that are skippable and in the highest one may be left out


def nal_units(data: bytes, length_size: int) -> list[tuple[int, int]] | None:
    """Splits a packet into NAL units: (start, end) offsets, or None if the packet is damaged.

    Args:
        data: The packet.
        length_size: Bytes of the length before each unit (ISO/IEC 14496-15), or 0 for start codes (H.264 annex B).
    """
    units = []
    size = len(data)
    if length_size:
        at = 0
        while at < size:
            start = at + length_size
            at = start + int.from_bytes(data[at:start], "big")
            if at > size or at <= start or _breaks_off(data, start, at):
                return None
            units.append((start, at))
        return units
    at = data.find(b"\x00\x00\x01")
    while at >= 0:
        start = at + 3
        at = data.find(b"\x00\x00\x01", start)
        end = size if at < 0 else at
        if end <= start or _breaks_off(data, start, end):
            return None
        units.append((start, end))
    return units


def _breaks_off(data: bytes, start: int, end: int) -> bool:
    """Whether a NAL unit holds what emulation prevention keeps out of it (H.264, 7.4.1), as a zero-filled hole does."""
    for code in (b"\x00\x00\x00", b"\x00\x00\x01", b"\x00\x00\x02"):
        at = data.find(code, start, end)
        if at >= 0 and data[at:end].strip(b"\x00"):  # zeros at the very end are padding
            return True
    return False


def _h264_units(data: bytes, length_size: int) -> Units | None:
    """Reads the NAL headers of one H.264 access unit (ITU-T H.264, 7.3.1, 7.4.1.2.4, table 7-1)."""
    units = nal_units(data, length_size)
    if not units:
        return None
    pictures = slices = idr = 0
    skippable, parameters = True, False
    for start, end in units:
        header = data[start]
        kind = header & 31
        if header & 128:  # forbidden_zero_bit
            return None
        if kind in (1, 5):
            if end - start < 2:
                return None
            slices += 1
            idr += kind == 5
            pictures += data[start + 1] >> 7  # first_mb_in_slice is 0: ue(v) code "1"
            skippable &= header & 0x60 == 0  # nal_ref_idc is 0
        elif kind in (2, 3, 4):  # data partitions: no encoder of today writes them, so there is nothing to try this on
            return None
        elif kind not in (6, 9, 12):  # SEI, delimiter and filler may go with their frame; parameter sets must stay
            skippable = False
            parameters |= kind in (7, 8, 13, 15)
    if not slices or idr not in (0, slices):
        return None
    return Units(pictures, idr > 0, skippable, parameters)


def _hevc_units(data: bytes, length_size: int) -> Units | None:
    """Reads the NAL headers of one HEVC access unit (ITU-T H.265, 7.3.1.2, 7.3.6.1, table 7-1)."""
    units = nal_units(data, length_size)
    if not units:
        return None
    pictures = slices = random_access = layer = 0
    skippable, parameters = True, False
    for start, end in units:
        header = data[start]
        kind = header >> 1 & 63
        if header & 128 or end - start < 2:
            return None
        if header & 1 or data[start + 1] >> 3:  # another layer than the base layer: this decoder leaves it out
            continue
        if kind < 32:
            if end - start < 3:
                return None
            slices += 1
            random_access += 16 <= kind <= 21
            pictures += data[start + 2] >> 7  # first_slice_segment_in_pic_flag
            skippable &= kind < 16 and kind % 2 == 0  # no frame of its temporal sub-layer refers to it
            layer = max(layer, (data[start + 1] & 7) - 1)
        elif kind not in (35, 38, 39, 40):  # delimiter, filler and SEI may go with their frame
            skippable = False
            parameters |= kind in (32, 33, 34)
    if not slices or random_access not in (0, slices):
        return None
    return Units(pictures, random_access > 0, skippable, parameters, layer)


def _vp8_units(data: bytes, length_size: int) -> Units | None:
    """Reads the frame tag of one VP8 frame (RFC 6386, 9.1)."""
    if len(data) < 3:
        return None
    return Units(data[0] >> 4 & 1, data[0] & 1 == 0, False, False)


def _vp9_units(data: bytes, length_size: int) -> Units | None:
    """Reads the frame headers of one VP9 packet (VP9 bitstream specification, 6.2 and annex B)."""
    sizes = [len(data)]
    marker = data[-1] if data else 0
    if marker & 0xE0 == 0xC0:
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = data[-(2 + count * width) :]
        if len(index) == 2 + count * width and index[0] == marker:
            sizes = [int.from_bytes(index[1 + i * width : 1 + (i + 1) * width], "little") for i in range(count)]
            if sum(sizes) > len(data) - len(index):
                return None
    at = shown = 0
    key = False
    for number, size in enumerate(sizes):
        if size < 1:
            return None
        bits = data[at]
        if bits >> 6 != 2:  # frame_marker
            return None
        shift = 2 if bits & 0x30 == 0x30 else 3  # profile 3 has a reserved bit before show_existing_frame
        if bits >> shift & 1:
            shown += 1
        else:
            shown += bits >> (shift - 2) & 1
            key |= number == 0 and bits >> (shift - 1) & 1 == 0
        at += size
    return Units(shown, key, False, False)


PARSERS: dict[str, Callable[[bytes, int], Units | None]] = {
    "h264": _h264_units,
    "hevc": _hevc_units,
    "vp8": _vp8_units,
    "vp9": _vp9_units,
}


def nal_length_size(codec: str, extradata: bytes | None) -> int:
    """Returns the bytes of a NAL unit's length field (ISO/IEC 14496-15, 5.3.3 and 8.3.3), 0 for start codes."""
    if not extradata or extradata[0] != 1 or codec not in ("h264", "hevc"):
        return 0
    at = 4 if codec == "h264" else 21
    return (extradata[at] & 3) + 1 if len(extradata) > at else 0
