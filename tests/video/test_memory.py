"""Frames in memory and files at a URL give what a lossless file of the same frames gives."""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import stvid
from stvid.errors import ConfigError, VideoError
from stvid.protocol import Protocol
from stvid.video.memory import MemoryFrames
from stvid.video.reader import VideoReader
from stvid.video.streaming import is_live, stream_frames

SIZE: dict[str, Any] = {"frames": 4, "short_side": 32, "crop": 32}


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (20, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope="module")
def lossless(frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lossless") / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


WAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda frames: frames,
    "tensor": torch.from_numpy,
    "tensor that is not contiguous": lambda frames: (
        torch.from_numpy(frames).permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    ),
    "images of PIL": lambda frames: [Image.fromarray(frame) for frame in frames],
    "arrays": list,
    "tensors": lambda frames: tuple(torch.from_numpy(frames)),
    "an iterator": lambda frames: iter(list(frames)),
    "a generator of images": lambda frames: (Image.fromarray(frame) for frame in frames),
    "MemoryFrames": MemoryFrames,
}


@pytest.mark.parametrize("way", WAYS)
def test_clips_and_predictions_are_those_of_a_lossless_file(
    way: str, frames: np.ndarray, lossless: Path, tiny_model
) -> None:
    protocol = Protocol(**SIZE, fps=5.0, stride=1, class_names=("a", "b", "c"))
    expected = stvid.load_clip(lossless, protocol=protocol, start=0.3)
    clip = stvid.load_clip(WAYS[way](frames), protocol=protocol, fps=10, start=0.3)
    assert torch.equal(clip.tensor, expected.tensor)
    np.testing.assert_array_equal(clip.indices, expected.indices)
    np.testing.assert_allclose(clip.seconds, expected.seconds, atol=1e-6)
    assert (clip.path, clip.backend) == ("<frames>", "memory")
    model = tiny_model(protocol)
    (wanted,) = stvid.predict(model, lossless)
    (found,) = stvid.predict(model, WAYS[way](frames), fps=10)
    assert found.path == "<frames>" and found.probabilities == pytest.approx(wanted.probabilities, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_streams_and_timelines_take_frames(way: str, frames: np.ndarray, lossless: Path, tiny_model) -> None:
    streamed = list(stream_frames(WAYS[way](frames), fps=10))
    np.testing.assert_array_equal(np.stack([frame.image for frame in streamed]), frames)
    np.testing.assert_allclose([frame.seconds for frame in streamed], np.arange(20) / 10)
    model = tiny_model(Protocol(**SIZE, stride=1, class_names=("a", "b")))
    wanted = list(stvid.timeline(model, lossless, window=1, stride=0.5))
    found = list(stvid.timeline(model, WAYS[way](frames), window=1, stride=0.5, fps=10))
    assert [window.frames for window in found] == [window.frames for window in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_bytes_and_files_are_as_good_as_a_path(lossless: Path, tiny_model) -> None:
    content = lossless.read_bytes()
    with VideoReader(lossless) as reader:
        times = reader.timestamps
    model = tiny_model(Protocol(**SIZE, stride=1, class_names=("a", "b")))
    (expected,) = stvid.predict(model, lossless)
    with open(lossless, "rb") as file:
        for source in (content, bytearray(content), io.BytesIO(content), file):
            (found,) = stvid.predict(model, source)
            assert (found.path, found.probabilities) == ("<bytes>", expected.probabilities)
    with open(lossless, "rb") as file:
        for source in (content, io.BytesIO(content), file):
            assert not is_live(source)
            assert [frame.seconds for frame in stream_frames(source)] == times.tolist()


def test_lists_of_videos_may_be_mixed(frames: np.ndarray, lossless: Path, tiny_model) -> None:
    model = tiny_model(Protocol(**SIZE, stride=1, class_names=("a", "b")))
    videos = [str(lossless), frames, lossless.read_bytes(), list(frames[:5]), lossless, "missing.mp4"]
    found = stvid.predict(model, videos)
    assert [one.path for one in found] == [
        str(lossless),
        "<frames>",
        "<bytes>",
        "<frames>",
        str(lossless),
        "missing.mp4",
    ]
    assert found[0].probabilities == found[2].probabilities == found[4].probabilities
    assert found[1].probabilities == pytest.approx(found[0].probabilities, abs=1e-6)
    assert found[5].error == "no such file" and found[3].error is None
    assert stvid.predict(model, iter(videos))[:3] == found[:3]
    assert stvid.predict(model, []) == stvid.predict(model, iter([])) == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "are float32.*multiply by 255"),
        (torch.zeros(4, 8, 8, 3), "are float32"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), r"permute\(0, 2, 3, 1\)"),
        (np.zeros((3, 4, 8, 8), np.uint8), r"permute\(1, 2, 3, 0\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"frames\[\.\.\., :3\]"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\)"),
        (np.zeros((2, 4, 8, 8, 3), np.uint8), "as a list"),
        (np.zeros((0, 8, 8, 3), np.uint8), "there are none"),
        (np.zeros((4, 0, 8, 3), np.uint8), "8 x 0 pixels"),
        (Image.new("RGB", (8, 8)), "is one image"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "frame 1 is 8 x 9 pixels high and wide"),
        ([np.zeros((8, 8, 3), np.uint8), "a.jpg"], "frame 1 is of type str"),
        ([np.zeros((8, 8, 3), np.float64)], "are float64"),
        (12, "is no video"),
        ([], "is no video"),
        (io.StringIO("text"), "<file>: was opened as text; open it with mode 'rb'"),
    ],
)
def test_what_cannot_be_used_is_one_line(source: Any, reason: str, tiny_model) -> None:
    with pytest.raises(VideoError, match=reason):
        stvid.load_clip(source)
    with pytest.raises(VideoError, match=reason):
        list(stream_frames(source, fps=10))
    if source != [] if isinstance(source, list) else True:
        with pytest.raises(stvid.StvidError):
            stvid.predict(tiny_model(Protocol(**SIZE, class_names=("a", "b"))), source)


def test_the_rate_must_be_known_where_it_matters(frames: np.ndarray, lossless: Path, tiny_model) -> None:
    assert stvid.load_clip(frames, **SIZE).indices.shape == (4,)
    protocol = Protocol(**SIZE, fps=5.0, class_names=("a", "b"))
    for call in (
        lambda: stvid.load_clip(frames, protocol=protocol),
        lambda: stvid.load_clip(frames, **SIZE, start=0.5),
        lambda: stvid.predict(tiny_model(protocol), frames),
        lambda: list(stream_frames(frames)),
    ):
        with pytest.raises(ConfigError, match=r"^fps: .*fps=25"):
            call()
    for odd in (0, -1, float("nan"), float("inf"), "25"):
        with pytest.raises(VideoError, match="is not a number above 0"):
            VideoReader(frames, fps=odd)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave fps out"):
        VideoReader(lossless, fps=25)


def test_frames_that_were_read_are_copies(frames: np.ndarray) -> None:
    with VideoReader(frames) as reader:
        reader.get_batch([0]).zero_()
        part = reader.get_batch([3, 3], crop=(8, 16, 10, 20))
        np.testing.assert_array_equal(part.numpy(), frames[[3, 3], 8:18, 16:36])
        assert torch.equal(reader.get_all(), torch.from_numpy(frames))


@pytest.fixture
def address(lossless: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(lossless.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_is_downloaded(address: str, lossless: Path, tiny_model) -> None:
    url = f"{address}/video.mkv"
    assert torch.equal(stvid.load_clip(url, **SIZE).tensor, stvid.load_clip(lossless, **SIZE).tensor)
    model = tiny_model(Protocol(**SIZE, class_names=("a", "b")))
    good, missing = stvid.predict(model, [url, f"{address}/missing.mkv"])
    assert (good.path, good.error) == (url, None)
    assert missing.error == "no such file"
    for odd, reason in (
        ("file:///etc/passwd", "give its path"),
        ("http://127.0.0.1:9/x.mp4", "refused"),
        ("http://", "no such file"),
    ):
        with pytest.raises(VideoError, match=reason):
            VideoReader(odd)


def test_files_that_cannot_be_read(lossless: Path, tmp_path: Path, tiny_model) -> None:
    model = tiny_model(Protocol(**SIZE, class_names=("a", "b")))
    used = io.BytesIO(lossless.read_bytes())
    stvid.load_clip(used)
    closed = io.BytesIO(b"x")
    closed.close()
    with open(lossless) as text, open(tmp_path / "written", "wb") as written:
        for source, reason in (
            (used, "has been read to its end before; go back with seek.0."),
            (closed, "<file>: cannot be read .*closed file"),
            (text, "was opened as text; open it with mode 'rb'"),
            (written, "<file>: cannot be read"),
        ):
            with pytest.raises(VideoError, match=reason):
                stvid.load_clip(source)
            with pytest.raises(VideoError, match=reason):
                stvid.predict(model, source)
    with pytest.raises(stvid.StvidError, match="dict is no video"):
        stvid.predict(model, {"a.mp4": 1})
