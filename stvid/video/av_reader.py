"""PyAV, the default backend: the frames of a video by time stamps where the container tells the truth, else by count.

There are two ways to find it:

* **By time stamps.** A scan that reads all packets but decodes only the first frame (a few ms for a Kinetics file)
  gives the time of every frame and the places where decoding can begin. To read frames, decode from the nearest such
  place, leave out the packets that nothing refers to and nobody asked for, and match the frames by their time stamps.
* **By counting.** Decode from the start of the file and count.

The first is only right if the container tells the truth, so it is used for H.264, HEVC, VP8 and VP9, whose packets show
without decoding how many frames they hold, and only if every packet has a time stamp of its own and the structure that
it should have. While frames are read, the decoder must give exactly the frames that the scan lists, in that order
and without an error; if it ever does not, the reader goes back to counting. `VideoReader.index_method` tells which way
is used, and why. Known reasons to count: AVI (it has decode times only: files with B-frames come out shuffled when
sorted by them), missing or repeated time stamps, damaged or truncated packets, no key frame at the beginning.

Packets that lie in one piece in the file, as those of MP4 and Matroska do, are then read without opening the container
again (`stvid.video.direct`), if that gives the same first frame. If the decoder ever gives other frames,
they are read through the container first, and the reader counts only if that does not help.

What is left: damage that only decoding shows (a flipped bit in a slice header) can make a frame fail that the scan has
counted. It is found when the decoder comes to it. The numbers of the others must not change then, since they may have
been read already, here or in another process: a frame that cannot be decoded is shown as the one before it, as a player
does. Frames that can be decoded by their own packets are read so before and after the damage was met, and the others
by counting, so that each looks the same whatever was read before. A file of which decoding gives less than half of the
frames is refused.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import io
import itertools
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stvid.errors import VideoError
from stvid.video.backends import TIME_LIMIT, check_size, import_backend, why
from stvid.video.clock import Clock
from stvid.video.direct import EXPLODE, DirectDecoder, decoder_facts, find_packet, new_decoder, raw_file
from stvid.video.frame_index import DEFAULT_FPS, DecoderFacts, Index, MismatchError, Packets, average_rate, index_cache
from stvid.video.hevc_references import HevcReferences
from stvid.video.packets import PARSERS, Units, nal_length_size
from stvid.video.pixels import Box, RgbConverter, display_turn, ends_early, stored_box, turned
from stvid.video.remote import HollowFile, NoPartsError, RemoteError, RemoteFile
from stvid.video.stored_index import StoredIndex
from stvid.video.whitelists import options_for, refusal

__all__ = ["MAX_READ_ERRORS", "AvSource"]

# 2^22 frames are 39 hours at 30 fps; their index takes 150 MB. More comes from damaged files and frame bombs.
MAX_FRAMES = 2**22

# What a reader that counts may keep of the frames that it decoded for counting, so that short files are decoded once.
_KEEP_BYTES = 128 * 2**20

# What a group of pictures may take whose frames are all held while it is decoded.
_HOLD_BYTES = 3 * 2**28

# A file that gives this many read errors in a row is taken to be at its end.
MAX_READ_ERRORS = 1000

# What the scan notes of a packet, in the order of the file; `Packets` says what each is. "parameters": it brings
# parameter sets; "layer": its temporal sub-layer; "moved": what `Clock` has added to its presentation time.
_SCANNED = np.dtype(
    [("pts", "i8"), ("dts", "i8"), ("size", "i4"), ("position", "i8"), ("crc", "u4")]
    + [(name, "?") for name in ("start", "skippable", "shown", "parameters")]
    + [("layer", "i1"), ("moved", "i8")]
)


def _checked_packets(scanned: np.ndarray) -> Packets:
    """Returns the packets that a scan has found.

    Args:
        scanned: One `_SCANNED` a packet, in the order of the file.

    Raises:
        MismatchError: If they do not tell all frames and their times.
    """
    column = {name: np.ascontiguousarray(scanned[name]) for name in _SCANNED.names or ()}
    pts, start, shown, brings = (column[name] for name in ("pts", "start", "shown", "parameters"))
    if not shown.any():
        raise MismatchError("no packets")
    if len(np.unique(pts)) != len(pts):
        raise MismatchError("repeated time stamps")
    if not start[0] or pts.min() < pts[0]:
        raise MismatchError("the stream does not begin with a key frame")
    if brings.any():
        # Parameter sets within the stream: a start must bring its own, and no frame may change them on its way.
        start = start & brings if not (brings & ~start).any() else np.zeros_like(start)
        start[0] = True
    visible = np.flatnonzero(shown)
    return Packets(
        **{name: column[name] for name in ("pts", "dts", "size", "position", "crc", "shown")},
        start=start,
        skippable=column["skippable"] & (column["layer"] == column["layer"].max()),  # none above refers to them
        of_frame=visible[np.argsort(pts[visible], kind="stable")].astype(np.int32),
        moved=column["moved"] if column["moved"].any() else None,
    )


class AvSource:
    """PyAV, the default."""

    def __init__(
        self,
        source: str | bytes | RemoteFile,
        name: str,
        num_threads: int,
        time_limit: float = TIME_LIMIT,
        stored: StoredIndex | Index | None = None,
    ) -> None:
        self.av = import_backend("av")
        self.time_limit = time_limit
        self.deadline = time.monotonic() + time_limit
        self.convert = RgbConverter(self.av)
        self.source = source
        self.name = name
        self.num_threads = num_threads
        self.container: Any = None
        self.stream: Any = None
        self.file: Any = None  # only for names that FFmpeg cannot be given
        self.hollow: HollowFile | None = None  # a remote file without its pictures, for the container
        self.kept: list[Any] = []  # frames that counting has decoded
        self.direct: DirectDecoder | None = None  # used instead of the container
        self.facts: DecoderFacts | None = None  # for new decoders of packets that come through the container
        self.clock: Clock | None = None  # of the latest pass over the whole file
        self.fresh = False  # whether the container's own decoder has not been used yet
        self.key: tuple[str, int, int] | None = None
        if isinstance(source, str):
            status = os.stat(source)
            self.key = (os.path.abspath(source), status.st_mtime_ns, status.st_size)
        try:
            self.index = self._find_index(stored)
        except BaseException:
            self.close()
            raise

    def _find_index(self, stored: StoredIndex | Index | None) -> Index:
        cached = index_cache.get(self.key)
        if cached is None and stored is not None:
            if isinstance(stored, Index):
                cached = stored
            elif isinstance(self.source, RemoteFile):
                cached = stored.find(self.source.url, 0)
            elif self.key is not None:
                cached = stored.find(self.key[0], self.key[2])
            if cached is not None:
                index_cache.put(self.key, cached)
        if isinstance(self.source, RemoteFile):
            found = cached or self._index_by_header(self.source)
            if found is not None and self._take_decoder(found):
                check_size(self.name, *found.coded)
                return found
            self.source = self.source.read_all()  # its packets are in pieces, or cannot be told without them
            cached = None
        if cached is not None:
            check_size(self.name, *cached.coded)
            if not self._take_decoder(cached):
                self._open(cached.stream)
            return cached
        try:
            index = self._index_by_scan()
        except MismatchError as reason:
            return self._index_by_counting(str(reason))
        index_cache.put(self.key, index)
        return index

    def _take_decoder(self, index: Index) -> bool:
        """Prepares what decodes; returns whether the packets need no container."""
        if index.decoder is None or index.packets is None:
            return False
        try:
            if (index.packets.position >= 0).all():
                if self.direct is None:
                    self.direct = DirectDecoder(self.av, self.source, index.decoder, self.num_threads)
                return True
            if isinstance(self.source, RemoteFile):
                return False
            new_decoder(self.av, index.decoder, self.num_threads)
            self.facts = index.decoder
        except (OSError, ValueError):  # the index comes from where FFmpeg has other decoders
            pass
        return False

    # Opening.

    def _open(self, stream_index: int | None = None, *, whole: bool = False) -> None:
        """Opens the container at its start, closing an earlier one.

        Args:
            stream_index: Number of the stream; None chooses one.
            whole: Whether all frames are to be decoded, also such as damage has spoiled: with one thread, since several
                may drop good frames that are in flight when a packet is refused.
        """
        self._close_direct()
        self._close_container()
        # "file:" keeps FFmpeg from taking a name such as "a:b.mp4" for a protocol. Broken metadata is no broken video.
        source: Any = self.hollow
        if isinstance(self.source, bytes):
            source = io.BytesIO(self.source)
        elif isinstance(self.source, str):
            source = f"file:{self.source}"
        if isinstance(self.source, str):
            try:
                self.source.encode()
            except UnicodeEncodeError:  # a file name that is not UTF-8
                source = self.file = open(self.source, "rb")  # noqa: SIM115 - the container reads from it
        try:
            options = options_for(path=isinstance(source, str))
            if source is self.hollow:  # key frames as the table has them, not as zeros look
                options = {**options, "fflags": "+noparse+nofillin"}
            self.container = self.av.open(
                source, metadata_errors="replace", container_options=options, timeout=(self.time_limit, None)
            )
        except self.av.error.FFmpegError as error:
            self._close_container()
            if isinstance(error, self.av.error.ExitError):  # the time for opening is over
                raise self._too_slow() from error
            reason = refusal(error) or f"not a video, or cut off before it begins ({why(error)})"
            raise VideoError(self.name, reason) from error
        try:
            self._choose_stream(stream_index)
            threads = 1 if whole else self.num_threads
            self.stream.codec_context.thread_count = threads
            self.stream.codec_context.thread_type = "FRAME" if threads > 1 else "NONE"
            if not whole:
                self.stream.codec_context.options = dict(EXPLODE)
            self.fresh = True
        except BaseException:
            self._close_container()
            raise

    def _choose_stream(self, stream_index: int | None) -> None:
        if stream_index is not None and 0 <= stream_index < len(self.container.streams):
            self.stream = self.container.streams[stream_index]
            if self.stream.type == "video" and self.stream.codec_context is not None:
                return  # else the index is another file's
        picture = self.av.stream.Disposition.attached_pic  # a cover
        videos = [s for s in self.container.streams.video if picture not in s.disposition]
        if not videos:
            kinds = sorted({str(s.type) for s in self.container.streams})
            found = "only " + " and ".join(kinds) if kinds else "nothing"
            raise VideoError(self.name, f"has no video stream, {found}")
        best = self.container.streams.best("video")
        if best is None or best.index not in {s.index for s in videos}:
            best = videos[0]
        self.stream = best
        context = best.codec_context
        if context is None:
            raise VideoError(self.name, "FFmpeg has no decoder for its video stream")
        # The size in the header may be missing, and be known when a frame is decoded.
        check_size(self.name, context.height or 1, context.width or 1)

    def _close_direct(self) -> None:
        if self.direct is not None:
            self.direct.close()
            self.direct = None

    def _close_container(self) -> None:
        if self.container is not None:
            self.container.close()
            self.container = None
        self.stream = None
        if self.file is not None:
            self.file.close()
            self.file = None

    def close(self) -> None:
        """Frees everything; may be called twice."""
        self.kept = []
        self._close_direct()
        self._close_container()

    # Indexing.

    def _too_slow(self) -> VideoError:
        return VideoError(self.name, f"not read within {self.time_limit:g} s; damaged, or very long")

    def _packets(self) -> Iterator[Any]:
        """Yields the stream's packets from where the container stands, past read errors."""
        errors = 0
        while True:
            try:
                for packet in self.container.demux(self.stream):
                    if time.monotonic() > self.deadline:
                        raise self._too_slow()
                    if packet.size:  # an empty packet would tell the decoder that the stream has ended
                        errors = 0
                        yield packet
                return
            except (self.av.error.FFmpegError, IndexError):  # PyAV: IndexError at a stream that begins within the file
                errors += 1
                if errors > MAX_READ_ERRORS:
                    return

    def _index_by_scan(self) -> Index:
        """Reads all packets and decodes only the first frame.

        Raises:
            MismatchError: If the packets do not give a reliable index.
        """
        self._open()
        packets = self._scan_packets()
        time_base = float(self.stream.time_base)
        timestamps = packets.pts[packets.of_frame] * time_base
        rate = self.stream.average_rate
        index = Index(
            stream=self.stream.index,
            timestamps=timestamps,
            time_base=time_base,
            fps=average_rate(timestamps, float(rate) if rate else None),
            method="time stamps",
            packets=packets,
        )
        facts = decoder_facts(self.stream.codec_context)  # before decoding, which changes them
        if self.hollow is not None:  # FFmpeg could not see it in the pictures
            facts = dataclasses.replace(facts, reorder_depth=max(facts.reorder_depth, packets.reorder_depth()))
        # The first frame gives size and rotation, and shows that the stream can be decoded at all.
        first = self._first_frame(packets)
        self._take_shape(index, first)
        if self._decodes_alone(facts, packets, first):
            index.decoder = facts
        return index

    def _index_by_header(self, remote: RemoteFile) -> Index | None:
        """Makes an index of the table that the header of a remote file holds, and of the first frame.

        Nothing refutes the table but the frames that are read later: they must be those that it promises.

        Returns:
            None if there is no such table, or it does not suffice.

        Raises:
            RemoteError: If the file cannot be read.
        """
        try:
            self.hollow = HollowFile(remote)
            return self._index_by_scan()
        except NoPartsError:
            return None
        except RemoteError:
            raise
        except (ValueError, VideoError, MismatchError, self.av.error.FFmpegError):
            self._close_direct()
            self._close_container()
            return None
        finally:
            self.hollow = None

    def _decodes_alone(self, facts: DecoderFacts, packets: Packets, first: Any) -> bool:
        """Goes over to a decoder that knows these facts only, if that gives the same first frame.

        Where all packets lie in one piece, they are then read without the container.
        """
        try:
            if (packets.position >= 0).all():
                self.direct = DirectDecoder(self.av, self.source, facts, self.num_threads)
            else:
                self.facts = facts
            if self._looks_like(first, self._first_frame(packets)):
                if self.direct is not None:
                    self._close_container()
                return True
        except (MismatchError, OSError, ValueError, self.av.error.FFmpegError):
            pass  # the header does not suffice
        self._close_direct()
        self.facts = None
        return False

    def _scan_packets(self) -> Packets:
        """Reads all packets of the opened container.

        Raises:
            MismatchError: If they do not tell all frames and their times.
        """
        context = self.stream.codec_context
        read_units = PARSERS.get(context.name)
        if read_units is None:
            raise MismatchError(f"packets of {context.name} do not show what they hold")
        if "avi" in self.container.format.name.split(","):
            raise MismatchError("AVI has no presentation times")
        length_size = nal_length_size(context.name, context.extradata)
        clock = Clock(self.container, self.stream)
        read_references = context.name == "hevc" and self.hollow is None
        references = HevcReferences(context.extradata, length_size) if read_references else None
        rows: list[tuple[Any, ...]] = []
        place: int | None = 0
        hollow = self.hollow is not None
        file = raw_file(self.source)
        with contextlib.nullcontext() if hollow else file:  # a remote file stays open
            for packet in self._packets():
                dts = packet.dts
                clock.move(packet)
                pts = packet.pts
                if pts is None:
                    raise MismatchError("packets without a time stamp")
                if packet.is_corrupt:
                    raise MismatchError("damaged packets")
                data = b"" if hollow else bytes(packet)
                units = Units(1, packet.is_keyframe, False, False) if hollow else read_units(data, length_size)
                if units is None or units.frames != 1:
                    raise MismatchError("packets that are damaged or hold no frame or several")
                if references is not None:
                    references.note(data)
                if hollow:
                    place = packet.pos
                elif place is not None:  # else they are in pieces, all of them as a rule
                    place = find_packet(file, packet, data)
                where = (pts, pts if dts is None else dts, packet.size, -1 if place is None else place)
                shows = (units.random_access, units.skippable, not packet.is_discard, units.parameters, units.layer)
                rows.append((*where, 0 if hollow else zlib.crc32(data), *shows, clock.moved))
                if len(rows) > MAX_FRAMES:
                    raise VideoError(self.name, f"more than {MAX_FRAMES} frames: cut it into shorter files")
        scanned = np.array(rows, _SCANNED)
        if references is not None:  # a damaged header may name a frame that calls itself unreferenced
            free = (not references.must_stay(number) for number in range(len(rows)))
            scanned["skippable"] &= np.fromiter(free, bool, len(rows))  # also when there is no packet at all
        order = np.argsort(scanned["pts"], kind="stable")
        in_order = scanned["pts"][order]
        if len(np.unique(in_order)) == len(rows) > 0 and (taken := in_order - clock.all_presented(in_order)).any():
            scanned["pts"][order] -= taken
            scanned["moved"][order] -= taken
        return _checked_packets(scanned)

    def _first_frame(self, packets: Packets) -> Any:
        number = int(packets.of_frame[0])
        (start,) = self._starts_of(packets, [number])
        ((_, frame),) = self._decode_span(packets, start, {number})
        return frame

    def _looks_like(self, frame: Any, other: Any) -> bool:
        """Whether two frames become the same RGB."""
        shape = (frame.height, frame.width)
        if frame.format.name != other.format.name or shape != (other.height, other.width):
            return False
        return np.array_equal(self.convert(frame, *shape), self.convert(other, *shape))

    def _index_by_counting(self, reason: str) -> Index:
        """Decodes the whole file and counts its frames; keeps them if they are few.

        Raises:
            VideoError: If no frame can be decoded.
        """
        times: list[int | None] = []
        held: list[Any] = []
        index = Index(0, np.zeros(0), 0.0, 0.0, f"counting ({reason})", None)
        problems: list[str] = []
        for frame in self._decode_and_hold(problems, held):
            if not times:
                self._take_shape(index, frame)
            times.append(frame.pts)
            if len(times) > MAX_FRAMES:
                raise VideoError(self.name, f"more than {MAX_FRAMES} frames: cut it into shorter files")
        if not times or self.clock is None:
            detail = f"none of its frames can be decoded ({problems[-1]})" if problems else "it holds no frames"
            if problems and self.container is not None and self.container.format.name.startswith("webp"):
                detail += "; FFmpeg reads no moving WebP: convert it, for example to GIF"
            raise VideoError(self.name, detail)
        rate = self.stream.average_rate
        stated = float(rate) if rate else None
        known = np.array([t for t in times if t is not None], np.int64)
        if len(known) == len(times):
            # The frames come in the order in which they are shown; their time stamps may not (AVI).
            index.timestamps = self.clock.all_presented(np.sort(known)) * float(self.stream.time_base)
        else:
            first = float(known.min()) * float(self.stream.time_base) if len(known) else 0.0
            step = 1 / (stated if stated is not None and 0 < stated < 1e6 else DEFAULT_FPS)
            index.timestamps = first + step * np.arange(len(times))
        index.fps = average_rate(index.timestamps, stated)
        index.stream = self.stream.index
        index.bad_packets = len(problems)
        self.kept = [] if problems else held
        index_cache.put(self.key, index)
        return index

    def _index_of_damaged(self, known: Index, reason: str) -> Index:
        """Decodes the whole file, whose packets promised other frames; the frames keep their numbers if possible.

        Raises:
            VideoError: If less than half of the promised frames can be decoded, or they have another size.
        """
        counted = self._index_by_counting(reason)
        promised, found = known.timestamps, counted.timestamps
        refused = ""
        if (counted.height, counted.width) != (known.height, known.width):
            refused = "its frames have another size than the first one promised"
        elif len(np.unique(found)) < len(found) or not np.isin(found, promised).all():
            return counted  # the packets told times that no frame has: it was no damage
        elif 2 * len(found) < len(promised):
            refused = f"is damaged: only {len(found)} of its {len(promised)} frames can be decoded"
        if refused:  # what lies before the damage is still read by the packets
            index_cache.put(self.key, known)
            self._open(known.stream)
            raise VideoError(self.name, refused)
        given = np.maximum(np.searchsorted(found, promised, side="right") - 1, 0).astype(np.int32)
        held = dataclasses.replace(
            known,
            method=f"time stamps, and counting where it is damaged ({reason})",
            bad_packets=counted.bad_packets,
            decoder=None,
            given=given,
        )
        index_cache.put(self.key, held)
        return held

    def _take_shape(self, index: Index, frame: Any) -> None:
        check_size(self.name, frame.height, frame.width)
        index.coded = (frame.height, frame.width)
        index.turn = display_turn(frame)

    # Decoding.

    def _decode_all(self, problems: list[str]) -> Iterator[Any]:
        """Yields every frame of the file in decoder order, which is presentation order; lists refused packets."""
        self._open(whole=True)
        context = self.stream.codec_context
        self.clock = Clock(self.container, self.stream)
        for packet in self._packets():
            self.clock.move(packet)
            try:
                frames = packet.decode()
            except self.av.error.FFmpegError as error:
                problems.append(why(error))
                continue
            yield from frames
        try:
            frames = context.decode(None)
        except self.av.error.FFmpegError as error:
            problems.append(why(error))
            return
        yield from frames

    def _decode_and_hold(self, problems: list[str], held: list[Any]) -> Iterator[Any]:
        """Yields every frame as `_decode_all`, and keeps them in `held` as long as they are few and undamaged.

        What damaged areas show is what the decoder's buffers held before, and that depends on which of them are free.
        So each reading holds the same frames, whether it needs them later or not.
        """
        free = _KEEP_BYTES
        for frame in self._decode_all(problems):
            free = -1 if problems or frame.is_corrupt else free - sum(plane.buffer_size for plane in frame.planes)
            if free >= 0:
                held.append(frame)
            else:
                free = -1
                held.clear()
            yield frame

    def _packets_from(self, packets: Packets, first: int) -> Iterator[Any]:
        """Yields the packets from number `first` on, wherever the container's seek lands."""
        times = packets.file_times()
        pts, size = int(times[first]), int(packets.size[first])
        # Where the clock has jumped, a time may not say which place of the file is meant.
        ascending = packets.moved is None or (np.diff(packets.dts) >= 0).all()
        for target in dict.fromkeys((pts, int(packets.dts[first]))) if ascending else ():
            try:
                self.container.seek(target, stream=self.stream, backward=True)
            except self.av.error.FFmpegError:
                continue
            stream = self._packets()
            for packet in stream:
                if packet.pts == pts and packet.size == size:
                    yield packet
                    yield from stream
                    return
                if packet.pts in times[first + 1 :]:
                    break  # too far: try the earlier target, or else the start of the file
        self._open(self.stream.index)
        yield from itertools.islice(self._packets(), first, None)

    def _decode_span(self, packets: Packets, first: int, wanted: set[int]) -> Iterator[tuple[int, Any]]:
        """Decodes from packet `first`, a start, to the packets `wanted`; yields (packet number, frame) for each.

        Packets that are skippable and not wanted do not go to the decoder. By the standards that changes no other frame
        (H.264, 7.4.1: nal_ref_idc 0 is not used for inter prediction; H.265, 7.4.2.2: a sub-layer non-reference picture
        is in no reference set of a picture of its sub-layer). After the last wanted packet the decoder is drained, so
        that no later packet needs to be decoded to get the delayed frames out.

        Raises:
            MismatchError: If the decoder gives anything but the frames of the packets that it got, in the order of
                their time stamps, or reports an error.
        """
        span = slice(first, max(wanted) + 1)
        holds = self._holds_frames(packets, first)
        held: list[Any] = []
        pts, sent = packets.pts[span], self._sent(packets, first, wanted)
        # What the container says to discard comes out too when it is not asked.
        expected = np.flatnonzero(sent if self.direct is not None else sent & packets.shown[span])
        expected = expected[np.argsort(pts[expected], kind="stable")]
        listed = zip(pts[expected].tolist(), (first + expected).tolist(), strict=True)
        try:
            for frame in self._feed(packets, first, sent.tolist()):
                time_stamp, number = next(listed, (None, -1))
                if time_stamp is None or frame.pts != time_stamp or frame.is_corrupt:
                    raise MismatchError("the decoder does not give the frames that the packets promise")
                if holds:
                    held.append(frame)
                    if ends_early(frame):  # what is skipped would show in the frames that refer to it
                        raise MismatchError("a picture ends early")
                if number in wanted:
                    yield number, frame
        except self.av.error.FFmpegError as error:
            raise MismatchError(f"a packet cannot be decoded ({why(error)})") from error
        if next(listed, None) is not None:
            raise MismatchError("the decoder gives fewer frames than the packets promise")

    def _holds_frames(self, packets: Packets, first: int) -> bool | None:
        """Tells whether all frames of a span are to be held, so that each comes in a buffer that held nothing before.

        FFmpeg's HEVC decoder may end a damaged frame early without an error and leave the rest as the buffer was, which
        depends on the packets that were skipped. None if the decoder does not do so, False if the frames would take too
        much memory: then none are to be skipped.
        """
        if self.direct is not None:
            codec, frame = self.direct.facts.codec, self.direct.facts.height * self.direct.facts.width
        else:
            context = self.stream.codec_context
            codec, frame = context.name, context.height * context.width
        if codec != "hevc":
            return None
        following = np.flatnonzero(packets.start[first + 1 :])
        count = 1 + int(following[0]) if len(following) else len(packets.pts) - first
        return 3 * frame * count <= _HOLD_BYTES  # 4:2:0 of 16 bits, or 4:4:4 of 8

    def _feed(self, packets: Packets, first: int, sent: list[bool]) -> Iterator[Any]:
        """Sends packets `first`, `first` + 1, ... where `sent` says so, then the end; yields what the decoder gives."""
        if self.direct is not None:
            try:
                yield from self.direct.feed(packets, first, sent, self.deadline)
            except TimeoutError as error:
                raise self._too_slow() from error
            return
        span = slice(first, first + len(sent))
        alone = None if self.facts is None else new_decoder(self.av, self.facts, self.num_threads)
        if alone is None:
            if not self.fresh:  # what its buffers hold would show in damaged areas
                self._open(self.index.stream)
            self.fresh = False
        stream = self._packets_from(packets, first)
        if self.hollow is not None:
            stream = self._filled(stream, packets, first)
        columns = (packets.file_times(), packets.pts, packets.size)
        for send, in_file, pts, size in zip(sent, *(column[span].tolist() for column in columns), strict=True):
            packet = next(stream, None)
            if packet is None or packet.pts != in_file:
                raise MismatchError("reading again gives other packets")
            if packet.size != size:
                raise MismatchError("the file has changed since it was scanned")
            if send:
                packet.pts = pts
                yield from packet.decode() if alone is None else alone.decode(packet)
        yield from (alone or self.stream.codec_context).decode(None)

    def _filled(self, stream: Iterator[Any], packets: Packets, first: int) -> Iterator[Any]:
        """Yields the packets of a hollow file from number `first` on with their own bytes."""
        assert isinstance(self.source, RemoteFile)
        for number, packet in enumerate(stream, start=first):
            self.source.seek(int(packets.position[number]))
            full = self.av.Packet(int(packets.size[number]))
            self.source.readinto(full)
            full.pts, full.dts, full.stream, full.time_base = packet.pts, packet.dts, self.stream, packet.time_base
            yield full

    def _sent(self, packets: Packets, first: int, wanted: set[int]) -> np.ndarray:
        """Tells which packets from number `first` on go to the decoder: bool, up to the last that is wanted."""
        span = slice(first, max(wanted) + 1)
        pts, sent = packets.pts[span], ~packets.skippable[span] | (self._holds_frames(packets, first) is False)
        sent[np.array(list(wanted)) - first] = True
        # Frames that are shown before the start but stored after it may refer to what lies before it: leave them out.
        return sent & (pts >= pts[0])

    def _prefetch(self, packets: Packets, spans: Mapping[int, set[int]]) -> None:
        """Fetches what decoding will take of a remote file, all at the same time."""
        if isinstance(self.source, RemoteFile):
            numbers = np.concatenate(
                [first + np.flatnonzero(self._sent(packets, first, spans[first])) for first in spans]
            )
            self.source.prefetch(packets.position[numbers], packets.size[numbers])

    @staticmethod
    def _starts_of(packets: Packets, numbers: Iterable[int]) -> list[int]:
        """Returns the last start from which each packet can be decoded: not after it, neither in file nor in time."""
        starts = np.flatnonzero(packets.start).tolist()
        found = []
        for number in numbers:
            at = bisect.bisect_right(starts, number) - 1
            while packets.pts[starts[at]] > packets.pts[number]:
                at -= 1
            found.append(starts[at])
        return found

    def read(self, indices: Sequence[int], box: Box | None = None) -> np.ndarray:
        """Returns the frames, or a part of them, at indices that are within the range: uint8 (N, H, W, 3)."""
        self.deadline = time.monotonic() + self.time_limit
        out = self._empty(len(indices), box)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        if self.index.packets is not None and self.index.given is None:
            try:
                self._read_by_time(out, places, self.index.packets, box)
                return out
            except NoPartsError as reason:
                assert isinstance(self.source, RemoteFile)
                self._fetch_whole(self.source, reason.reason)
                return self.read(indices, box)
            except MismatchError as reason:
                if isinstance(self.source, RemoteFile):
                    self._fetch_whole(self.source, str(reason))
                    return self.read(indices, box)
                if self.direct is not None or self.facts is not None:
                    self.facts = self.index.decoder = None
                    self._open(self.index.stream)
                    return self.read(indices, box)  # by the same packets, through the container and its own decoder
                self.index = self._index_of_damaged(self.index, str(reason))
                if max(indices, default=0) >= len(self.index.timestamps):
                    raise VideoError(
                        self.name,
                        f"has {len(self.index.timestamps)} frames, fewer than its packets promise; open it again for "
                        "the true number",
                    ) from reason
        if self.index.packets is not None:
            places = self._read_undamaged(out, places, self.index.packets, box)
        self._read_by_counting(out, places, box)
        return out

    def _fetch_whole(self, remote: RemoteFile, reason: str) -> None:
        """Goes over to the whole file, if that has the same frames as its index or its header promised.

        Raises:
            VideoError: If it has others.
        """
        promised = self.index.timestamps
        remote.forget()
        content = remote.read_all()
        self._close_direct()
        self.source = content
        self.index = self._find_index(None)
        if not np.array_equal(self.index.timestamps, promised):
            told = f"does not hold the frames that its index or its header promises ({reason})"
            raise VideoError(self.name, f"{told}; index it anew, or download it")

    def _empty(self, count: int, box: Box | None) -> np.ndarray:
        height, width = (self.index.height, self.index.width) if box is None else box[2:]
        return np.empty((count, height, width, 3), np.uint8)

    def _store(self, out: np.ndarray, places: list[int], frame: Any, box: Box | None) -> None:
        index = self.index
        stored = None if box is None else stored_box(box, index.height, index.width, index.turn)
        try:
            image = turned(self.convert(frame, *index.coded, stored), index.turn)
        except self.av.error.FFmpegError as error:
            reason = f"its {frame.format.name} frames cannot be converted to RGB ({why(error)})"
            raise VideoError(self.name, reason) from error
        for place in places:
            out[place] = image

    def _read_by_time(self, out: np.ndarray, places: dict[int, list[int]], packets: Packets, box: Box | None) -> None:
        """Decodes frames by their packets; `places` says where in `out` each goes.

        Raises:
            MismatchError: If the decoder gives other frames.
        """
        frame_of = {int(packets.of_frame[index]): index for index in places}
        spans = self._spans(packets, places)
        self._prefetch(packets, spans)
        for start in sorted(spans):
            for number, frame in self._decode_span(packets, start, spans[start]):
                self._store(out, places[frame_of[number]], frame, box)
                del frame  # its buffer is free for the decoder at once, as is that of one that nobody wants

    def _spans(self, packets: Packets, indices: Iterable[int]) -> dict[int, set[int]]:
        """Returns the packets of frames by the start from which they are decoded."""
        numbers = [int(packets.of_frame[index]) for index in indices]
        spans: dict[int, set[int]] = {}
        for number, start in zip(numbers, self._starts_of(packets, numbers), strict=True):
            spans.setdefault(start, set()).add(number)
        return spans

    def _read_undamaged(
        self, out: np.ndarray, places: dict[int, list[int]], packets: Packets, box: Box | None
    ) -> dict[int, list[int]]:
        """Decodes by their packets the frames of a damaged file that can be decoded so: of a span together, or alone.

        A reader that has not come to the damage reads them in this way, so they must look the same here.

        Returns:
            The places of the others.
        """
        lost: dict[int, list[int]] = {}
        frame_of = {int(packets.of_frame[index]): index for index in places}
        waiting = [[frame_of[number] for number in sorted(span)] for span in self._spans(packets, places).values()]
        while waiting:
            together = waiting.pop()
            if self.container is None:
                self._open(self.index.stream)
            self.fresh = False  # opened again for each: the decoder that counted takes damage for no error
            try:
                self._read_by_time(out, {index: places[index] for index in together}, packets, box)
            except MismatchError:
                if len(together) > 1:
                    waiting += [[index] for index in together]
                else:
                    lost[together[0]] = places[together[0]]
        return lost

    def _read_by_counting(self, out: np.ndarray, places: dict[int, list[int]], box: Box | None) -> None:
        given = self.index.given
        counted: dict[int, list[int]] = {}
        for index, where in places.items():
            counted.setdefault(index if given is None else int(given[index]), []).extend(where)
        left = len(counted)
        frames: Iterable[Any] = self.kept or self._decode_and_hold([], []) if left else ()
        for number, frame in enumerate(frames):
            if left == 0:
                break
            if number in counted:
                self._store(out, counted[number], frame, box)
                left -= 1
        if left:
            raise VideoError(self.name, "gave fewer frames than when it was opened: has the file changed?")
