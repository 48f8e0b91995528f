"""Near-duplicates across splits: videos of which a re-encoded, scaled or slightly cropped copy lies in the other split.

Each video is described by difference hashes (dHash: is each cell of a coarse grey image brighter than its right
neighbour?) of frames at fixed shares of its length. Two videos match if the mean of their frames' Hamming distances is
small. It finds copies, not scenes of the same source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stvid.errors import VideoError
from stvid.video.reader import VideoReader

__all__ = ["FRAMES", "hash_video", "near_duplicates"]

FRAMES = 8
_ROWS, _COLUMNS = 8, 8
_PAIRS = 2**22  # compared at a time
_BITS = np.array([bin(number).count("1") for number in range(2**16)], np.uint8)
# Cells that are equally bright say nothing: a black or even frame would match every other one.
_MIN_CONTRAST = 2.0


def hash_video(path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns ``hashes``: one number of 64 bits for each of 8 frames, as hexadecimal text.

    Args:
        path: The video.
        options: Whatever; not used.

    Raises:
        VideoError: If it cannot be read, or is so even that it cannot be told from others.
    """
    from PIL import Image

    with VideoReader(path) as reader:
        places = np.linspace(0, len(reader) - 1, FRAMES + 2)[1:-1].round().astype(int)
        frames = reader.get_batch(places).numpy()
    hashes, contrast = [], 0.0
    for frame in frames:
        small = Image.fromarray(frame).convert("L").resize((_COLUMNS + 1, _ROWS), Image.Resampling.BOX)
        grey = np.asarray(small, np.int16)
        contrast = max(contrast, float(grey.std()))
        bits = (grey[:, :-1] > grey[:, 1:]).reshape(-1)
        hashes.append(np.packbits(bits).tobytes().hex())
    if contrast < _MIN_CONTRAST:
        raise VideoError(path, "is too even to be compared")
    return {"hashes": hashes}


def near_duplicates(
    first: Sequence[Sequence[str]], second: Sequence[Sequence[str]], *, threshold: float
) -> list[tuple[int, int, float]]:
    """Returns (number in `first`, number in `second`, distance) of pairs, nearest first.

    Args:
        first: Hashes of the videos of one split.
        second: Those of the other.
        threshold: Largest mean distance, in bits of 64; chance is about 32, copies are below 10.
    """
    if not first or not second:
        return []
    one, two = _table(first), _table(second)
    found: list[tuple[int, int, float]] = []
    block = max(1, _PAIRS // len(two))
    for start in range(0, len(one), block):
        some = one[start : start + block]
        bits = np.zeros((len(some), len(two)), np.uint16)
        for word in range(one.shape[1]):
            bits += _BITS[some[:, None, word] ^ two[None, :, word]]
        distance = bits / np.float32(FRAMES)
        found += [
            (start + int(row), int(column), float(distance[row, column]))
            for row, column in zip(*np.nonzero(distance <= threshold), strict=True)
        ]
    return sorted(found, key=lambda pair: pair[2])


def _table(hashes: Sequence[Sequence[str]]) -> np.ndarray:
    """uint16 (videos, words)."""
    data = b"".join(bytes.fromhex(value) for video in hashes for value in video)
    return np.frombuffer(data, np.uint16).reshape(len(hashes), -1)
