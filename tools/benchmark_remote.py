"""Clips of videos behind HTTP beside other ways to get them: bytes, requests and seconds.

    python tools/benchmark_remote.py                 # 20 files of 10 s and 4 of 60 s, over a throttled server
    python tools/benchmark_remote.py --files 4 --rounds 1
    python tools/benchmark_remote.py --key-frames 60 # at most 60 frames apart, instead of x264's 250
    python tools/benchmark_remote.py --several       # the server sends several ranges in an answer, as nginx does

A server of this tool sends the files over the loopback, at 20 MB/s in all and 30 ms after each request, as an object
store some way off would. Each round reads a random 16x4 clip of each file by

* stvid with an index that was made before (`stvid prep index`),
* stvid without one, from the file's header,
* torchcodec, or where it is not installed PyAV, over a file object of fsspec, which reads blocks as they are needed,
* fetching the whole file and reading it from memory,

in turns and with the same choice of frames; the frames are compared first. It prints the medians of bytes over the
bytes of the packets that the clip needs, over those of the file, of requests and of seconds.

It also prints what no reader can go below: the share of the file that those packets are, from the key frame on without
what nothing refers to, and the fewest bytes of six ranges in which they lie, with sound and packets that are not needed
between them. A decoder that leaves nothing out takes more: all pictures from the key frame on.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
from benchmark_loader import make_videos

from stvid.video.reader import Index, VideoReader, scan

RATE, LATENCY = 20e6, 0.03
FRAMES, STRIDE = 16, 4
_CHUNK = 2**16


class _Link:
    """A line that all requests share: bytes leave it at a rate."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free, self.lock = rate, 0.0, threading.Lock()

    def send(self, count: int) -> None:
        with self.lock:
            self.free = max(self.free, time.monotonic()) + count / self.rate
            wait = self.free - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def _serve(folder: str, port: Any, counts: Any, several: bool, rate: float, latency: float) -> None:
    """Sends the files of a folder; `counts` are the requests for bytes, and the bytes."""
    link = _Link(rate)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the reader has closed the line
                super().handle()

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            time.sleep(latency)
            content = Path(folder, self.path.lstrip("/")).read_bytes()
            text = self.headers.get("Range", "")
            if several and "," in text:
                self.send(_multipart(content, text), 206, {"Content-Type": "multipart/byteranges; boundary=limit"})
                return
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", text)
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]), len(content) - 1) if asked and asked[2] else len(content) - 1
            headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"} if asked else {}
            self.send(content[first : last + 1], 206 if asked else 200, headers, body=body)

        def send(self, content: bytes, status: int, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(status)
            for name, value in {"Accept-Ranges": "bytes", "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with counts.get_lock():
                counts[0] += 1
            for start in range(0, len(content) if body else 0, _CHUNK):
                part = content[start : start + _CHUNK]
                link.send(len(part))
                try:
                    self.wfile.write(part)
                except OSError:  # the reader has enough
                    return
                with counts.get_lock():
                    counts[1] += len(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port.value = server.server_address[1]
    server.serve_forever()


def _multipart(content: bytes, text: str) -> bytes:
    """Returns the body of an answer of several ranges."""
    parts = []
    for first, last in re.findall(r"(\d+)-(\d+)", text):
        place = f"Content-Range: bytes {first}-{last}/{len(content)}"
        parts.append(f"\r\n--limit\r\nContent-Type: video/mp4\r\n{place}\r\n\r\n".encode())
        parts.append(content[int(first) : int(last) + 1])
    return b"".join([*parts, b"\r\n--limit--\r\n"])


@contextlib.contextmanager
def serving(
    folder: str, *, several: bool = False, rate: float = RATE, latency: float = LATENCY
) -> Iterator[tuple[str, Any]]:
    """Runs the server in a process of its own; gives its address, and its counts of requests and bytes."""
    context = multiprocessing.get_context("spawn")
    port, counts = context.Value("i", 0), context.Array("q", 2)
    server = context.Process(target=_serve, args=(folder, port, counts, several, rate, latency), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port.value}", counts
    finally:
        server.terminate()
        server.join()


@dataclass
class Cost:
    """The cost of one way to read clips; one number a clip."""

    bytes_needed: list[float] = field(default_factory=list)  # over those of the packets that the clip needs
    bytes_file: list[float] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Bounds:
    """Bytes of a clip: no reader can go below `needed`, nor in six ranges below `six_ranges`."""

    needed: int  # of the packets that must be decoded
    in_turn: int  # of all pictures from the key frame on, which a decoder takes that leaves none out
    six_ranges: int  # the fewest of six ranges in which they lie
    file: int


def bounds_of(index: Index, frames: np.ndarray, file_bytes: int) -> Bounds:
    """Returns the bounds of some frames; packets to which nothing refers are skipped."""
    packets = index.packets
    assert packets is not None
    wanted = packets.of_frame[frames]
    starts = np.flatnonzero(packets.start)
    sent, in_turn = np.zeros((2, len(packets.pts)), bool)
    for number in wanted:
        first = starts[np.searchsorted(starts, number, side="right") - 1]
        in_turn[first : number + 1] = True
    sent[wanted] = True
    sent |= in_turn & ~packets.skippable
    begins, sizes = packets.position[sent], packets.size[sent].astype(np.int64)
    order = np.argsort(begins)
    ends = begins[order] + sizes[order]
    gaps = np.sort(begins[order][1:] - ends[:-1])
    least = int(ends[-1] - begins.min() - gaps[-5:].sum())
    return Bounds(int(sizes.sum()), int(packets.size[in_turn].sum()), least, file_bytes)


def read_stvid(url: str, frames: np.ndarray, index: Index | None) -> np.ndarray:
    with VideoReader(url, index=index) as reader:
        return reader.get_batch(frames).numpy()


def read_whole(url: str, frames: np.ndarray) -> np.ndarray:
    with fsspec.open(url, "rb", cache_type="none") as file:
        content = file.fs.cat_file(file.path) if hasattr(file, "fs") else file.read()
    with VideoReader(content) as reader:
        return reader.get_batch(frames).numpy()


def read_by_blocks(url: str, frames: np.ndarray) -> np.ndarray:
    """Seeks with PyAV over a file object, as its users write it: by time, then on to each frame."""
    with fsspec.open(url, "rb") as file, av.open(file) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        first = int(frames[0] / rate / stream.time_base) + (stream.start_time or 0)
        container.seek(first, stream=stream)
        wanted, found = set(frames.tolist()), []
        for frame in container.decode(stream):
            number = round((frame.pts - (stream.start_time or 0)) * stream.time_base * rate)
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if number >= frames[-1]:
                break
    return np.stack(found)


def read_torchcodec(url: str, frames: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    with fsspec.open(url, "rb") as file:
        decoder = VideoDecoder(file, seek_mode="approximate", dimension_order="NHWC")
        return decoder.get_frames_at(frames.tolist()).data.numpy()


def has_torchcodec() -> bool:
    """Whether torchcodec and FFmpeg's libraries are there."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def measure(
    files: Sequence[Path], base: str, counts: Any, *, rounds: int, seed: int
) -> tuple[dict[str, Cost], list[Bounds]]:
    """Reads clips of all files in every way, by turns."""
    rng = np.random.default_rng(seed)
    indices = {file: scan(file) for file in files}
    ways: dict[str, Callable[[Path, str, np.ndarray], np.ndarray]] = {
        "stvid, index": lambda file, url, frames: read_stvid(url, frames, indices[file]),
        "stvid, header": lambda file, url, frames: read_stvid(url, frames, None),
        "whole file": lambda file, url, frames: read_whole(url, frames),
    }
    if has_torchcodec():
        ways["torchcodec, blocks"] = lambda file, url, frames: read_torchcodec(url, frames)
    else:
        print("torchcodec: not installed, left out")
    ways["PyAV, blocks"] = lambda file, url, frames: read_by_blocks(url, frames)
    costs = {name: Cost() for name in ways}
    bounds = []
    for _ in range(rounds):
        for file in files:
            count = len(indices[file].timestamps)
            frames = rng.integers(0, count - FRAMES * STRIDE) + STRIDE * np.arange(FRAMES)
            bounds.append(bounds_of(indices[file], frames, file.stat().st_size))
            needed = bounds[-1].needed
            pictures = {}
            for name, read in ways.items():
                before = list(counts)
                begin = time.perf_counter()
                pictures[name] = read(file, f"{base}/{file.name}", frames)
                cost = costs[name]
                cost.seconds.append(time.perf_counter() - begin)
                cost.requests.append(counts[0] - before[0])
                cost.bytes_needed.append((counts[1] - before[1]) / needed)
                cost.bytes_file.append((counts[1] - before[1]) / file.stat().st_size)
            for name in ("stvid, header", "whole file"):
                assert np.array_equal(pictures[name], pictures["stvid, index"]), f"{name}: other frames of {file}"
    return costs, bounds


def print_costs(title: str, costs: dict[str, Cost], bounds: Sequence[Bounds]) -> None:
    """Prints the medians, how many times what stvid with an index takes the others take, and the bounds."""
    own = costs["stvid, index"]
    columns = ("bytes/needed", "bytes/file", "requests", "ms", "x bytes", "x time")
    print(f"\n{title}\n{'':20}" + "".join(f"{column:>13}" for column in columns))
    for name, cost in costs.items():
        of_needed, of_file, requests, seconds = map(
            statistics.median, (cost.bytes_needed, cost.bytes_file, cost.requests, cost.seconds)
        )
        more_bytes = of_file / statistics.median(own.bytes_file)
        more_time = seconds / statistics.median(own.seconds)
        print(f"{name:20}{of_needed:13.2f}{of_file:13.3f}{requests:13.1f}{1000 * seconds:13.0f}", end="")
        print(f"{more_bytes:13.2f}{more_time:13.2f}")
    print(f"with the index at most {max(own.requests):.0f} requests, {max(own.bytes_needed):.2f} of the bytes needed")
    share = statistics.median(bound.needed / bound.file for bound in bounds)
    six = statistics.median(bound.six_ranges / bound.needed for bound in bounds)
    six_file = statistics.median(bound.six_ranges / bound.file for bound in bounds)
    print(f"no reader needs less than {share:.3f} of the file, in six ranges {six:.2f} of that: {six_file:.3f}")
    turn = statistics.median(bound.in_turn / bound.file for bound in bounds)
    six_turn = statistics.median(bound.six_ranges / bound.in_turn for bound in bounds)
    print(f"all pictures from the key frame on are {turn:.3f} of the file; those six ranges are {six_turn:.2f} of that")


def with_header_first(file: Path) -> Path:
    """Writes the same packets with the header at the beginning (FFmpeg's +faststart)."""
    target = file.with_name(f"fast_{file.name}")
    with av.open(str(file)) as source, av.open(str(target), "w", options={"movflags": "+faststart"}) as sink:
        streams = {stream.index: sink.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                sink.mux(packet)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--files", type=int, default=20, help="files of 10 s; default: %(default)s")
    parser.add_argument("--long", type=int, default=4, help="files of 60 s; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="clips of each file; default: %(default)s")
    parser.add_argument("--key-frames", type=int, default=250, help="frames between key frames; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--several", action="store_true", help="the server sends several ranges in an answer")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        sets = {}
        for name, count, seconds in (("10 s", options.files, 10), ("60 s", options.long, 60)):
            making = Path(folder, name)
            making.mkdir()
            plain = [Path(p) for p in make_videos(making, count, seconds=seconds, key_frames=options.key_frames)]
            moved = []
            for number, path in enumerate(plain):
                target = Path(folder, f"{seconds}_{number}.mp4")
                path.rename(target)
                moved.append(target)
            sets[name] = moved
            sets[f"{name}, header first"] = [with_header_first(path) for path in moved]
        with serving(folder, several=options.several) as (address, counts):
            for name, files in sets.items():
                if files:
                    size = statistics.median(file.stat().st_size for file in files) / 1e6
                    costs, bounds = measure(files, address, counts, rounds=options.rounds, seed=options.seed)
                    print_costs(f"{len(files)} files of {name}, {size:.2f} MB each", costs, bounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
