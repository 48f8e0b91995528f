"""Indices of videos, stored so that no process has to scan them again: of many in one folder, or of one as bytes.

A scan costs a few milliseconds for a file whose packets tell their times, and a whole decode for one that must be
counted (AVI). `stvid prep index` does it once. The folder is mapped into memory: all workers share it. Shards
(`stvid.data.shards`) hold the index of each video beside it.

A video is found by its name and its size in bytes. That the packets still are those of the scan is checked when they
are read (`stvid.video.direct`, `stvid.video.av_reader`), so an index that is out of date gives no frames of another
file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stvid.errors import StvidError
from stvid.files import write_folder_atomically
from stvid.video.frame_index import DecoderFacts, Index, Packets
from stvid.video.packets import PARSERS

__all__ = ["StoredIndex", "index_beside", "index_folder", "pack_index", "unpack_index", "write_index"]

_VERSION = 4
_VIDEO = np.dtype([("key", "<u8"), ("begin", "<i8"), ("size", "<i8")])  # where its packed index lies among the others
_PACKET = np.dtype(
    [
        ("pts", "<i8"),
        ("dts", "<i8"),
        ("position", "<i8"),
        ("size", "<i4"),
        ("crc", "<u4"),
        ("frame", "<i4"),
        ("flags", "u1"),
    ]
)
_START, _SKIPPABLE, _SHOWN = 1, 2, 4

# Bytes of a packed index once unpacked: what the longest video that is read takes (2^22 packets), and some.
_MOST_UNPACKED = 2**22 * _PACKET.itemsize + 2**20


def _rows(packets: Packets) -> np.ndarray:
    rows = np.zeros(len(packets.pts), _PACKET)
    for column in ("pts", "dts", "position", "size", "crc"):
        rows[column] = getattr(packets, column)
    rows["frame"][: len(packets.of_frame)] = packets.of_frame
    rows["flags"] = _START * packets.start + _SKIPPABLE * packets.skippable + _SHOWN * packets.shown
    return rows


def _packets(rows: np.ndarray, frames: int) -> Packets:
    return Packets(
        pts=rows["pts"].copy(),
        dts=rows["dts"].copy(),
        size=rows["size"].copy(),
        position=rows["position"].copy(),
        crc=rows["crc"].copy(),
        start=(rows["flags"] & _START) > 0,
        skippable=(rows["flags"] & _SKIPPABLE) > 0,
        shown=(rows["flags"] & _SHOWN) > 0,
        of_frame=rows["frame"][:frames].copy(),
    )


def _runs(values: np.ndarray) -> list[list[int]]:
    """Returns where each run of equal values begins, and the value."""
    begins = np.concatenate(([0], np.flatnonzero(np.diff(values)) + 1))
    return [[int(begin), int(values[begin])] for begin in begins]


def _unpacked_runs(runs: list[list[int]], count: int) -> np.ndarray | None:
    """Returns the values that `_runs` was given; None if there are none.

    Raises:
        ValueError: If they do not begin at 0 and end before `count`.
    """
    if not runs:
        return None
    begins, values = np.array(runs, np.int64).T
    if begins[0] != 0 or begins[-1] >= count or (np.diff(begins) <= 0).any():
        raise ValueError("runs of values that do not fit")
    return np.repeat(values, np.diff(np.append(begins, count)))


def pack_index(index: Index) -> bytes:
    """Returns an index as bytes, for `unpack_index`: 5 to 6 KB for 300 frames."""
    packets = index.packets
    about = {
        "version": _VERSION,
        "stream": index.stream,
        "frames": len(index.timestamps),
        "time_base": index.time_base,
        "fps": index.fps,
        "method": index.method,
        "counted": packets is None,
        "bad_packets": index.bad_packets,
        "coded": index.coded,
        "turn": index.turn,
        "decoder": None if index.decoder is None else dataclasses.asdict(index.decoder),
        "moved": [] if packets is None or packets.moved is None else _runs(packets.moved),
    }
    table = np.asarray(index.timestamps, "<f8") if packets is None else _rows(packets)
    return zlib.compress(json.dumps(about).encode() + b"\n" + table.tobytes(), 6)


def unpack_index(content: bytes) -> Index | None:
    """Returns the index that `pack_index` was given; None if it is damaged, or of another version: scan the video."""
    unpacking = zlib.decompressobj()
    try:
        head, _, table = unpacking.decompress(content, _MOST_UNPACKED).partition(b"\n")
        about = json.loads(head)
        if not unpacking.eof or about["version"] != _VERSION:  # at its end the sum has been checked
            return None
        return _checked_index(about, table)
    except (zlib.error, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


# What the description of an index holds; lists have one type for all that is in them.
_NUMBER = (int, float)
_ABOUT: dict[str, tuple[type, ...]] = {
    "stream": (int,),
    "frames": (int,),
    "time_base": _NUMBER,
    "fps": _NUMBER,
    "method": (str,),
    "counted": (bool,),
    "bad_packets": (int,),
    "coded": (list,),
    "turn": (list,),
    "decoder": (dict, type(None)),
    "moved": (list,),
}


def _checked_index(about: dict[str, Any], table: bytes) -> Index:
    """Makes an index of its description and its table.

    Raises:
        ValueError: If a value has another type than it should, or they do not belong together; LookupError, TypeError
            or OverflowError if it is further off.
    """
    for name, types in _ABOUT.items():
        if type(about[name]) not in types:
            raise ValueError(f"{name} is {about[name]!r}")
    numbers = {"time_base": float(about["time_base"]), "fps": float(about["fps"])}
    coded, turn = tuple(about["coded"]), tuple(about["turn"])
    if not all(0 < value < np.inf for value in numbers.values()) and not about["counted"]:
        raise ValueError("no clock")
    if [type(value) for value in coded] != [int] * 2 or [type(value) for value in turn] != [bool] * 3:
        raise ValueError("no shape")
    packets = None
    if about["counted"]:
        times = np.frombuffer(table, "<f8").copy()
    else:
        rows = np.frombuffer(table, _PACKET)
        packets = _packets(rows, about["frames"])
        packets.moved = _unpacked_runs(about["moved"], len(rows))
        _check_packets(packets)
        times = packets.pts[packets.of_frame] * numbers["time_base"]
    if not 0 < len(times) == about["frames"] or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError("no times")
    return Index(
        stream=about["stream"],
        timestamps=times,
        method=about["method"],
        packets=packets,
        bad_packets=about["bad_packets"],
        coded=(coded[0], coded[1]),
        turn=(turn[0], turn[1], turn[2]),
        decoder=None if about["decoder"] is None else _checked_facts(about["decoder"]),
        time_base=numbers["time_base"],
        fps=numbers["fps"],
    )


def _check_packets(packets: Packets) -> None:
    """Raises ValueError unless frames can be looked for among the packets, and decoding can begin at the first one."""
    count = len(packets.pts)
    if not count or not packets.start[0] or packets.pts.min() < packets.pts[0]:
        raise ValueError("no beginning")
    if packets.of_frame.min() < 0 or packets.of_frame.max() >= count:
        raise ValueError("frames without a packet")
    if packets.size.min() < 1 or packets.position.min() < -1:
        raise ValueError("packets without a place")


def _checked_facts(values: dict[str, Any]) -> DecoderFacts:
    facts = DecoderFacts(**values)
    bytes.fromhex(facts.extradata)
    for field in dataclasses.fields(facts):
        value = getattr(facts, field.name)
        if type(value) is not (str if field.name in ("codec", "extradata") else int):
            raise ValueError(f"{field.name} is {value!r}")
        if isinstance(value, int) and not (-1 if field.name == "reorder_depth" else 0) <= value < 2**31:
            raise ValueError(f"{field.name} is {value}")
    if facts.codec not in PARSERS:
        raise ValueError(f"the decoder is {facts.codec!r}")
    return facts


def _name(path: str, root: str | os.PathLike[str]) -> str:
    """Returns a name that does not change when a data set is moved; a URL is its own name."""
    return path if "://" in path else os.path.relpath(os.path.abspath(path), os.path.abspath(root))


def _key(name: str, size: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{size}:{name}".encode(errors="surrogateescape"), digest_size=8).digest(), "big"
    )


def index_folder(source: str | os.PathLike[str]) -> Path:
    """Returns where the index of a list or folder of videos lies: beside it, with ``.index`` after its name."""
    path = Path(os.path.abspath(source))
    return path.with_name(f"{path.name}.index")


def index_beside(source: str | os.PathLike[str]) -> StoredIndex | None:
    """Returns the stored index of a list or folder of videos, None if there is none."""
    folder = index_folder(source)
    return StoredIndex(folder) if folder.is_dir() else None


def _npy_header(count: int) -> bytes:
    """Returns what `numpy.save` writes before `count` records of `_VIDEO`."""
    written = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(_VIDEO), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(written, about)
    return written.getvalue()


def _mapped(path: Path, checksum: Any) -> np.ndarray:
    """Maps the table of videos into memory, which must be as it was written.

    `numpy.load` would run a parser of Python over a damaged header, which may raise anything.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = file.read(len(_npy_header(0)))
        count = (size - len(header)) // _VIDEO.itemsize
        header += file.read(len(_npy_header(count)) - len(header))  # a long count takes more room
        count = (size - len(header)) // _VIDEO.itemsize
    if header != _npy_header(count) or size != len(header) + count * _VIDEO.itemsize:
        raise ValueError(f"{path.name} holds no table of videos")
    videos = np.memmap(path, _VIDEO, "r", len(header), (count,)) if count else np.empty(0, _VIDEO)
    if zlib.crc32(videos.tobytes()) != checksum:
        raise ValueError(f"{path.name} is not what was written")
    return videos


class StoredIndex:
    """The indices of a folder that `write_index` wrote; opened when first used, so that it pickles as a path.

    Args:
        folder: The folder.

    Raises:
        StvidError: If there is no index, or one of another version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            self.root = Path(self.folder, about["root"])
            version = about["version"]
            self._sum = about.get("videos")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StvidError(f"{self.folder}: holds no index of videos; make it with: stvid prep index") from error
        if version != _VERSION:
            raise StvidError(f"{self.folder}: was written by another version; make it again with: stvid prep index")
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}

    def _opened(self) -> tuple[np.ndarray, np.ndarray]:
        if self._arrays is None:
            try:
                videos = _mapped(self.folder / "videos.npy", self._sum)
                packed = self.folder / "indices.bin"
                self._arrays = (videos, np.memmap(packed, np.uint8, "r") if len(videos) else np.empty(0, np.uint8))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise StvidError(
                    f"{self.folder}: is damaged ({reason}); make it again with: stvid prep index"
                ) from error
        return self._arrays

    def __len__(self) -> int:
        return len(self._opened()[0])

    def find(self, path: str, size: int) -> Index | None:
        """Returns the index of a video of `size` bytes (of a URL: 0), None if there is none, or it is damaged."""
        videos, packed = self._opened()
        key = np.uint64(_key(_name(path, self.root), size))
        at = int(np.searchsorted(videos["key"], key))
        if at >= len(videos) or videos["key"][at] != key:
            return None
        begin = int(videos["begin"][at])
        return unpack_index(packed[begin : begin + int(videos["size"][at])].tobytes())


def write_index(
    folder: str | os.PathLike[str], videos: Iterable[tuple[str, int, bytes]], *, root: str | os.PathLike[str]
) -> int:
    """Writes the indices of videos; an index that was there before is replaced when all is written.

    Args:
        folder: Where to.
        videos: Path, size in bytes and packed index (`pack_index`) of each; a URL has the size 0, since a reader would
            have to ask for it.
        root: The folder that the names count from, so that a data set can be moved with its index.

    Returns:
        The number of videos.

    Raises:
        StvidError: If it cannot be written.
    """
    target = Path(folder)
    records: list[tuple[int, int, int]] = []

    def write(temporary: Path) -> None:
        with open(temporary / "indices.bin", "wb") as file:
            for path, size, packed in videos:
                records.append((_key(_name(path, root), size), file.tell(), len(packed)))
                file.write(packed)
        table = np.sort(np.array(records, _VIDEO), order="key")
        np.save(temporary / "videos.npy", table)
        about = {"version": _VERSION, "root": os.path.relpath(root, target), "videos": zlib.crc32(table.tobytes())}
        (temporary / "index.json").write_text(json.dumps(about), encoding="utf-8")

    try:
        write_folder_atomically(target, write, replace=True)
    except OSError as error:
        raise StvidError(f"{target}: cannot be written ({error.strerror or error})") from error
    return len(records)
