"""Tells what a file is by its first bytes; its name plays no part."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["kind_of", "refusal"]

PICKLE_TEXT = re.compile(rb"[(\]}cilLNIFSVdp]")

# What a file may be that holds no weights, by its first bytes, and what to do about it.
OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec", "is a pointer of Git LFS, not weights: fetch it by git lfs pull"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first (gunzip), and read what comes out"),
    (b"BZh", "is compressed with bzip2: unpack it first (bunzip2), and read what comes out"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it first (unxz), and read what comes out"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first (unzstd), and read what comes out"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first, and read what comes out"),
    (b"Rar!", "is a RAR archive: unpack it first, and read what comes out"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras): convert it to .npz or .safetensors first"),
    (b"GGUF", "is a GGUF file of a quantised language model, which stvid has no use for"),
    (b"\x89PNG", "is a PNG image, not weights"),
    (b"\xff\xd8\xff", "is a JPEG image, not weights"),
    (b"GIF8", "is a GIF image, not weights"),
    (b"%PDF", "is a PDF document, not weights"),
    (b"\x1aE\xdf\xa3", "is a Matroska or WebM video, not weights"),
)
OLD_TAR = (b"sys_info", b"pickle", b"storages", b"tensors")
WEB_PAGE = re.compile(rb"\s*(?:<!doctype html|<html|<head|<\?xml|<!--)", flags=re.I)


def kind_of(path: Path) -> str:
    """Tells the kind of a file of weights.

    Returns:
        ``zip``, ``safetensors``, ``npy``, ``msgpack``, ``pickle``, ``tar`` or ``old tar`` (torch's of 2016); empty if
        it is none of them.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head[257:262] == b"ustar":
        return "old tar" if head[:100].rstrip(b"\0") in OLD_TAR else "tar"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if refusal(path):
        return ""
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return "msgpack"
    return "pickle" if PICKLE_TEXT.match(head) else ""


def refusal(path: Path) -> str:
    """Says what a file is that holds no weights, and what to do; empty if its first bytes do not tell.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(-min(8, path.stat().st_size), 2)
        tail = file.read(8)
    if WEB_PAGE.match(head):
        return "is a web page, not weights: probably a download that needed a login or a confirmation; fetch it again"
    for start, text in OTHERS:
        if head.startswith(start):
            return text
    if head[4:8] == b"ftyp":
        return "is an MP4 video, not weights"
    if head[:4] == b"RIFF":
        return "is a video or an image (RIFF), not weights"
    if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":  # of a table of leveldb
        return "is the index of a TensorFlow checkpoint: convert it to .npz with TensorFlow first"
    if head.strip()[:1] == b"{" and head.strip()[1:2] in (b'"', b"\n", b" ", b"}"):
        return "is a JSON file, not weights: name the file of the weights, or the folder of both"
    return ""
