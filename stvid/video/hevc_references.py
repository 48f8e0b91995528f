"""The frames that the slice headers of HEVC name as references, so that none of them is skipped.

A frame that its own header calls unreferenced may be named all the same by a damaged header of another frame. The
decoder makes one up then if it was skipped, and shows other pixels than a decode of the whole file. Only as much of the
syntax is read as that takes (ITU-T H.265, 7.3.1 to 7.3.7, 7.4.8, 8.3.1); whatever cannot be read ends the trust in the
whole stream, of which nothing is skipped then.
"""

from __future__ import annotations

from dataclasses import dataclass

from stvid.video.packets import nal_units

__all__ = ["HevcReferences"]

_HEADER_BYTES = 400  # of a slice: more than any list of references takes
_MOST_SETS = 64


class _Unreadable(ValueError):
    """Syntax that is not read here, or damage."""


class _Bits:
    """The bits of a NAL unit behind its two bytes of header, without emulation prevention (7.3.1.1)."""

    def __init__(self, data: bytes) -> None:
        content = data[2:].replace(b"\0\0\3", b"\0\0")
        self.value = int.from_bytes(content, "big")
        self.left = 8 * len(content)

    def take(self, count: int) -> int:
        """Returns the next bits as a number."""
        self.left -= count
        if self.left < 0:
            raise _Unreadable
        return self.value >> self.left & ((1 << count) - 1)

    def code(self) -> int:
        """Returns the next ue(v): an exponential Golomb code (9.2)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 31:
                raise _Unreadable
        return (1 << zeros) - 1 + self.take(zeros)


_Set = tuple[list[int], list[int]]  # distances to earlier frames and to later ones


@dataclass
class _Sequence:
    """The facts of a sequence parameter set that slice headers need."""

    separate_planes: bool
    poc_bits: int
    sets: list[_Set]


@dataclass
class _Picture:
    """The facts of a picture parameter set that slice headers need."""

    sequence: int
    output_flag: bool
    extra_bits: int


def _read_set(bits: _Bits, sets: list[_Set], number: int, count: int) -> _Set:
    """Reads st_ref_pic_set(number) (7.3.7, 7.4.8)."""
    if not (number and bits.take(1)):
        before, after = bits.code(), bits.code()
        if before + after > _MOST_SETS:
            raise _Unreadable
        lists: _Set = ([], [])
        for sign, places, length in ((-1, lists[0], before), (1, lists[1], after)):
            distance = 0
            for _ in range(length):
                distance += sign * (bits.code() + 1)
                bits.take(1)  # whether this frame uses it
                places.append(distance)
        return lists
    back = bits.code() + 1 if number == count else 1
    if back > number:
        raise _Unreadable
    earlier, later = sets[number - back]
    sign = bits.take(1)
    delta = (1 - 2 * sign) * (bits.code() + 1)
    kept = [bits.take(1) == 1 or bits.take(1) == 1 for _ in range(len(earlier) + len(later) + 1)]
    near = [(place + delta, keep) for place, keep in zip(earlier, kept, strict=False)]
    far = [(place + delta, keep) for place, keep in zip(later, kept[len(earlier) :], strict=False)]
    own = [(delta, kept[-1])]
    return (
        [place for place, keep in [*reversed(far), *own, *near] if keep and place < 0],
        [place for place, keep in [*reversed(near), *own, *far] if keep and place > 0],
    )


def _skip_profile(bits: _Bits, layers: int) -> None:
    """Passes over profile_tier_level (7.3.3)."""
    bits.take(96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.take(88 * profile + 8 * level)


def _skip_scaling(bits: _Bits) -> None:
    """Passes over scaling_list_data (7.3.4)."""
    for size in range(4):
        for _ in range(0, 6, 3 if size == 3 else 1):
            if not bits.take(1):
                bits.code()
                continue
            if size > 1:
                bits.code()
            for _ in range(min(64, 1 << (4 + 2 * size))):
                bits.code()


def _read_sequence(data: bytes) -> tuple[int, _Sequence]:
    """Reads a sequence parameter set (7.3.2.2)."""
    bits = _Bits(data)
    bits.take(4)
    layers = bits.take(3)
    bits.take(1)
    _skip_profile(bits, layers)
    number, chroma = bits.code(), bits.code()
    separate = chroma == 3 and bits.take(1) == 1
    bits.code(), bits.code()
    for _ in range(4 * bits.take(1)):
        bits.code()
    bits.code(), bits.code()
    poc_bits = bits.code() + 4
    for _ in range(3 * (layers + 1 if bits.take(1) else 1)):
        bits.code()
    for _ in range(6):
        bits.code()
    if bits.take(1) and bits.take(1):
        _skip_scaling(bits)
    bits.take(2)
    if bits.take(1):
        bits.take(8)
        bits.code(), bits.code(), bits.take(1)
    count = bits.code()
    if count > _MOST_SETS or poc_bits > 16:
        raise _Unreadable
    sets: list[_Set] = []
    for each in range(count):
        sets.append(_read_set(bits, sets, each, count))
    if bits.take(1):
        raise _Unreadable  # long-term references, which name frames in another way
    return number, _Sequence(separate, poc_bits, sets)


class HevcReferences:
    """Follows the packets of a stream, and tells which frames others refer to.

    Args:
        extradata: The header of the decoder (ISO/IEC 14496-15, 8.3.3, or parameter sets with start codes).
        length_size: Bytes of the length before each NAL unit, 0 for start codes.
    """

    def __init__(self, extradata: bytes | None, length_size: int) -> None:
        self.length_size = length_size
        self.trusted = True
        self.sequences: dict[int, _Sequence] = {}
        self.pictures: dict[int, _Picture] = {}
        self.packet_of: dict[int, int] = {}  # by the picture order count, since the last picture that begins anew
        self.referred: set[int] = set()
        self.packets = 0
        self.previous = 0  # of temporal sub-layer 0
        try:
            self._take_header(extradata or b"")
        except (_Unreadable, IndexError):
            self.trusted = False

    def _take_header(self, extradata: bytes) -> None:
        if not self.length_size:
            self._take_sets(extradata, nal_units(extradata, 0) or [])
            return
        at = 23
        for _ in range(extradata[22]):
            count = int.from_bytes(extradata[at + 1 : at + 3], "big")
            at += 3
            for _ in range(count):
                begin, at = at + 2, at + 2 + int.from_bytes(extradata[at : at + 2], "big")
                self._take_sets(extradata, [(begin, at)])

    def _take_sets(self, data: bytes, units: list[tuple[int, int]]) -> None:
        for begin, end in units:
            kind = data[begin] >> 1 & 63
            if kind == 33:
                number, sequence = _read_sequence(data[begin:end])
                self.sequences[number] = sequence
            elif kind == 34:
                bits = _Bits(data[begin:end])
                number, sequence_number = bits.code(), bits.code()
                bits.take(1)
                self.pictures[number] = _Picture(sequence_number, bits.take(1) == 1, bits.take(3))

    def note(self, data: bytes) -> None:
        """Takes the next packet of the file, which holds one frame."""
        number, self.packets = self.packets, self.packets + 1
        if not self.trusted:
            return
        try:
            units = nal_units(data, self.length_size) or []
            self._take_sets(data, units)
            for begin, end in units:
                kind, layered = data[begin] >> 1 & 63, data[begin] & 1 or data[begin + 1] >> 3
                if kind < 32 and not layered and data[begin + 2] >> 7:  # the first slice of the frame
                    self._take_slice(data[begin : min(end, begin + _HEADER_BYTES)], kind, number)
                    return
        except (_Unreadable, LookupError):
            pass
        self.trusted = False

    def _take_slice(self, data: bytes, kind: int, number: int) -> None:
        """Reads the beginning of a slice header (7.3.6.1), and notes which frames it names."""
        bits = _Bits(data)
        bits.take(1)
        anew = 16 <= kind <= 23
        if anew:
            bits.take(1)
        picture = self.pictures[bits.code()]
        sequence = self.sequences[picture.sequence]
        bits.take(picture.extra_bits)
        bits.code()
        bits.take(picture.output_flag + 2 * sequence.separate_planes)
        if kind in (19, 20):  # IDR
            self.packet_of, self.previous = {0: number}, 0
            return
        low = bits.take(sequence.poc_bits)
        order = self._order(low, 1 << sequence.poc_bits, begins=anew and (kind != 21 or not self.packet_of))
        count = len(sequence.sets)
        if not bits.take(1):
            named = _read_set(bits, sequence.sets, count, count)
        else:
            named = sequence.sets[bits.take((count - 1).bit_length()) if count > 1 else 0]
        self.referred |= {
            self.packet_of[order + step] for steps in named for step in steps if order + step in self.packet_of
        }
        self.packet_of[order] = number
        if (data[1] & 7) == 1 and not (kind < 16 and kind % 2 == 0) and kind not in (7, 9):
            self.previous = order

    def _order(self, low: int, size: int, *, begins: bool) -> int:
        """Returns the picture order count (8.3.1)."""
        if begins:
            self.packet_of = {}
            return low
        high = self.previous - self.previous % size
        if low < self.previous % size and self.previous % size - low >= size // 2:
            high += size
        elif low > self.previous % size and low - self.previous % size > size // 2:
            high -= size
        return high + low

    def must_stay(self, number: int) -> bool:
        """Whether packet `number` may be one that another frame refers to."""
        return not self.trusted or number in self.referred
