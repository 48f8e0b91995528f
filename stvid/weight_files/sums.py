"""The checksum that stvid writes into its .safetensors: one flipped bit in a copy is found when it is loaded.

The metadata of the file hold a CRC-32 of all its bytes, with zeros where the checksum itself stands. A checksum finds
damage, and no more: who changes a file on purpose can compute it anew. Files of torch hold a CRC-32 for each of their
members already (`stvid.weight_files.archives`). Files without a checksum, of other programs and of earlier versions,
are read as they are.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from stvid.weight_files.archives import mapped
from stvid.weight_files.pickles import DamagedFile

__all__ = ["CHECKED", "check_sum", "seal"]

CHECKED = {"stvid_crc32": "00000000"}
"""Metadata that a .safetensors is to be written with before `seal` is called."""

_SUM = re.compile(rb'"stvid_crc32":"([0-9a-f]{8})"')
_PLACE = 15  # of the digits within what is matched
_MOST_HEADER = 100_000_000  # of safetensors itself
_PART = 2**24


def seal(path: Path) -> None:
    """Writes the checksum of a .safetensors into it.

    Args:
        path: The file. If it was saved without the metadata `CHECKED`, as huggingface_hub does with most of several
            files, it is saved once more with them.

    Raises:
        OSError: If it cannot be written.
    """
    data = mapped(path)
    match = _SUM.search(_header(data))
    if match is None:
        from safetensors.torch import load_file, save_file

        state = {key: value.clone() for key, value in load_file(path).items()}
        save_file(state, path, {"format": "pt", **CHECKED})
        data = mapped(path)
        match = _SUM.search(_header(data))
        assert match is not None
    value = f"{_sum(data, match):08x}".encode()
    with open(path, "r+b") as file:
        file.seek(match.start() + _PLACE)
        file.write(value)


def check_sum(path: Path) -> None:
    """Compares a .safetensors with the checksum in it, if there is one.

    Raises:
        DamagedFile: If they differ.
        OSError: If it cannot be read.
    """
    data = mapped(path)
    match = _SUM.search(_header(data))
    if match is not None and int(match[1], 16) != _sum(data, match):
        raise DamagedFile("its bytes are not those that were written: the checksum differs")


def _header(data: memoryview) -> bytes:
    return bytes(data[: 8 + min(int.from_bytes(data[:8], "little"), _MOST_HEADER)])


def _sum(data: memoryview, match: re.Match[bytes]) -> int:
    digits = match.start() + _PLACE
    value = zlib.crc32(b"00000000", zlib.crc32(data[:digits]))
    for begin in range(digits + 8, len(data), _PART):
        value = zlib.crc32(data[begin : begin + _PART], value)
    return value
