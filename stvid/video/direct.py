"""Decoding without the container: the packets are read from where the scan found them in the file.

So nothing is spent on opening the container, on the packets of sound, and on those of frames that nobody wants. In the
common files (MP4, Matroska) a packet lies in one piece, so that its place, its size and what the header tells the
decoder are all that is needed. That it still is the packet that was scanned is checked by its CRC-32, each time.
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from stvid.video.frame_index import DecoderFacts, MismatchError, Packets
from stvid.video.remote import RemoteFile

__all__ = ["DirectDecoder", "decoder_facts", "find_packet", "new_decoder", "raw_file"]

# Before a packet's own bytes there may be the header of a Matroska block, whose place PyAV gives (RFC 9559, 10): an
# element's name and length, the track, the time, flags. MP4 has nothing there.
_MOST_BEFORE = 32

# What a packet may carry beside its bytes that changes what the decoder does (libavcodec/packet.h).
_CHANGES = frozenset({"new_extradata", "param_change", "encryption_init_info", "encryption_info"})


# Decoders that go on past damage without a word, and leave what the buffer of the frame held before. In several threads
# that would depend on their pace.
_SILENT = frozenset({"vp8"})

EXPLODE = {"err_detect": "explode"}
"""Option of a decoder: damage that it could hide is an error (H.264, HEVC)."""


def raw_file(source: str | bytes | RemoteFile) -> io.FileIO | io.BytesIO | RemoteFile:
    """Opens a path, or bytes, for reading without a buffer; a remote file is open."""
    if isinstance(source, RemoteFile):
        return source
    return io.BytesIO(source) if isinstance(source, bytes) else io.FileIO(source)


def find_packet(file: io.FileIO | io.BytesIO | RemoteFile, packet: Any, data: bytes) -> int | None:
    """Returns where in a file the bytes of a packet lie; None if not in one piece where PyAV says, or just after it.

    None too if the container gives it what its bytes do not hold, such as a new header for the decoder, and for PyAV
    before 16, which does not show that.
    """
    position = packet.pos
    if position is None or position < 0 or not hasattr(packet, "iter_sidedata"):
        return None
    if any(side.data_type in _CHANGES for side in packet.iter_sidedata()):
        return None
    file.seek(position)
    found = file.read(len(data) + _MOST_BEFORE) or b""
    return next((position + before for before in range(_MOST_BEFORE) if found.startswith(data, before)), None)


def decoder_facts(context: Any) -> DecoderFacts:
    """Returns the facts that a container told PyAV's codec context of its stream."""
    return DecoderFacts(
        codec=context.name,
        extradata=(context.extradata or b"").hex(),
        width=context.width,
        height=context.height,
        color_range=int(context.color_range),
        color_primaries=int(context.color_primaries),
        color_trc=int(context.color_trc),
        colorspace=int(context.colorspace),
        # Older PyAV neither tells nor takes it: where the stream itself does not state it, frames may come out in
        # another order than the index says, so that the container is asked after all.
        reorder_depth=int(getattr(context, "reorder_depth", -1)),
    )


def new_decoder(av: ModuleType, facts: DecoderFacts, num_threads: int) -> Any:
    """Returns a new decoder of one stream.

    What damaged areas show may be what the decoder's buffers held before. Those of a new one hold nothing, so that it
    gives the same frames for the same packets, whatever was read earlier.

    Args:
        av: The module.
        facts: The facts that the container's header tells the decoder.
        num_threads: Threads of the decoder.

    Raises:
        ValueError: If FFmpeg has no such decoder.
    """
    context = av.CodecContext.create(facts.codec, "r")
    context.extradata = bytes.fromhex(facts.extradata)
    for name in ("width", "height", "color_range", "color_primaries", "color_trc", "colorspace"):
        setattr(context, name, getattr(facts, name))
    threads = 1 if facts.codec in _SILENT else num_threads
    context.thread_count = threads
    context.thread_type = "FRAME" if threads > 1 else "NONE"
    context.options = dict(EXPLODE)
    if facts.reorder_depth >= 0 and hasattr(context, "reorder_depth"):
        context.reorder_depth = facts.reorder_depth
    return context


class DirectDecoder:
    """The decoder of one stream, and the file from which it takes its packets.

    Args:
        av: The module.
        source: Path of the file, its bytes, or the file behind a URL.
        facts: The facts that its header tells the decoder.
        num_threads: Threads of the decoder.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If FFmpeg has no such decoder.
    """

    def __init__(self, av: ModuleType, source: str | bytes | RemoteFile, facts: DecoderFacts, num_threads: int) -> None:
        self.new_packet = av.Packet
        self.facts = facts
        self.decoder = (av, facts, num_threads)
        self.unused = new_decoder(*self.decoder)
        self.file = raw_file(source)

    def feed(self, packets: Packets, first: int, sent: list[bool], deadline: float) -> Iterator[Any]:
        """Sends packets `first`, `first` + 1, ... where `sent` says so, then the end; yields what the decoder gives.

        Raises:
            MismatchError: If the file no longer holds one of the packets.
            TimeoutError: If the deadline (`time.monotonic`) is over.
            FFmpegError: If the decoder refuses a packet.
        """
        file, new_packet = self.file, self.new_packet
        context = self.unused or new_decoder(*self.decoder)
        self.unused = None
        span = slice(first, first + len(sent))
        columns = (packets.position, packets.size, packets.crc, packets.pts)
        for send, position, size, crc, pts in zip(sent, *(column[span].tolist() for column in columns), strict=True):
            if not send:
                continue
            if time.monotonic() > deadline:
                raise TimeoutError
            packet = new_packet(size)
            file.seek(position)
            if file.readinto(packet) != size or (crc and zlib.crc32(packet) != crc):
                raise MismatchError("the file has changed since it was scanned")
            packet.pts = pts
            yield from context.decode(packet)
        yield from context.decode(None)

    def close(self) -> None:
        """Frees the file and the decoder; may be called twice."""
        self.file.close()
        self.unused = None
