"""Videos for tests, made on the spot, whose pixels say which frame they are.

A frame is a grid of 4 x 6 blocks, light for 1 and dark for 0: twelve bits of the frame's number, then the same bits
inverted. Lossy coding does not blur blocks of 10 pixels, and two frames that are mixed do not decode.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

import stvid
from stvid.data import jobs
from stvid.data.manifest import Manifest
from stvid.data.sharding import plan_shards, write_shard, write_shard_index
from stvid.data.stage_base import Stage
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

_ROWS, _COLUMNS = 4, 6
_BITS = _ROWS * _COLUMNS // 2


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)  # the tests are small, and several people share the cores
    with pytest.MonkeyPatch.context() as patch:
        # A training on the CPU would take more threads, and a test that forks would wait for them in its child.
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


_DRAWS = {
    *(torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.trunc_normal_),
    *(init.kaiming_normal_, init.kaiming_uniform_, init.xavier_normal_, init.xavier_uniform_),
}


class _NothingDrawn(TorchFunctionMode):
    """Gives zeros where weights are drawn; all other initial values are set."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            return tensor if tensor.is_meta else tensor.detach().zero_()
        return function(*args, **kwargs)


@contextlib.contextmanager
def _outline(device: str = "meta") -> Iterator[None]:
    with torch.device(device), _NothingDrawn():
        yield


@pytest.fixture(scope="session")
def outline() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """``with outline():`` models are built for their names and shapes, on the meta device.

    Weights are not drawn there, which takes torch longer than all the rest. ``with outline("cpu"):`` builds models
    whose weights are loaded afterwards: they are zeros until then.
    """
    return _outline


def _draw(number: int, width: int, height: int, light: Sequence[int] = (255, 255, 255)) -> np.ndarray:
    """Returns uint8 (height, width, 3) with the number's code in it."""
    if not 0 <= number < 2**_BITS:
        raise ValueError(f"number {number} does not fit into {_BITS} bits")
    bits = [number >> i & 1 for i in range(_BITS)]
    code = np.array(bits + [1 - bit for bit in bits], np.uint8).reshape(_ROWS, _COLUMNS)
    rows = np.arange(height) * _ROWS // height
    columns = np.arange(width) * _COLUMNS // width
    return code[rows][:, columns][:, :, None] * np.array(light, np.uint8)


def _read(frame: np.ndarray | torch.Tensor) -> int:
    """Returns the number in a frame (H, W, 3) of any size; AssertionError if it holds no code."""
    image = np.asarray(frame)
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8, (image.shape, image.dtype)
    height, width = image.shape[:2]
    bits = []
    for row in range(_ROWS):
        for column in range(_COLUMNS):
            y, x = int((row + 0.5) * height / _ROWS), int((column + 0.5) * width / _COLUMNS)
            bits.append(int(image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max(axis=2).mean() > 127))
    assert all(a != b for a, b in zip(bits[:_BITS], bits[_BITS:], strict=True)), (
        f"no frame number in the pixels: {bits}"
    )
    return sum(bit << i for i, bit in enumerate(bits[:_BITS]))


def _matrix(rotation: int, mirrored: bool) -> tuple[int, ...]:
    """Display matrix that turns a stored frame clockwise by `rotation` degrees, after mirroring it left to right."""
    one = 1 << 16
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[rotation]
    if mirrored:
        a, b = -a, -b
    return (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)


def _patch_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Writes a display matrix into the track header of an mp4 or mov file (ISO/IEC 14496-12, 8.3.2, version 0)."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd")
    assert at > 0 and data[at + 4] == 0
    data[at + 44 : at + 80] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


def _encode(
    path: Path,
    *,
    codec: str,
    width: int,
    height: int,
    frames: int,
    fps: Fraction,
    bframes: int,
    gop: int,
    open_gop: bool,
    pix_fmt: str,
    start: float,
    times: Sequence[float] | None,
    first: int,
    light: Sequence[int],
    audio: bool,
    options: dict[str, str],
) -> None:
    settings = dict(options)
    if codec in ("libx264", "libx265"):
        # b-adapt 0 uses all the B-frames it may; without scenecut the key frames are where gop says.
        params = (
            f"bframes={bframes}:b-adapt=0:keyint={gop}:min-keyint={gop}:scenecut=0:open-gop={int(open_gop)}"
            ":b-pyramid=1:rc-lookahead=10"
        )
        if codec == "libx264":
            settings = {"preset": "veryfast", "crf": "20", "x264-params": params + ":threads=1"} | settings
        else:
            params = params.replace("b-pyramid=1", "b-pyramid=1:pools=1:frame-threads=1:log-level=none")
            settings = {"preset": "ultrafast", "crf": "20", "x265-params": params} | settings
    elif codec == "libvpx-vp9":
        settings = {"deadline": "good", "cpu-used": "8", "lag-in-frames": "8", "auto-alt-ref": "1"} | settings
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000) if audio else None
        stream = container.add_stream(codec, rate=fps)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, pix_fmt
        context.thread_count = 1
        context.gop_size = gop
        if codec in ("mpeg4", "mpeg2video"):
            context.max_b_frames = bframes
        if codec in ("mpeg4", "mpeg2video", "mjpeg"):
            settings = {"qmin": "2", "qmax": "4", "q": "2"} | settings
        if times is not None or start:
            context.time_base = Fraction(1, 90000)
        context.options = settings
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(_draw(first + number, width, height, light), "rgb24")
            frame = frame.reformat(format=pix_fmt)
            if times is not None or start:
                seconds = times[number] if times is not None else number / fps
                frame.pts, frame.time_base = round((start + float(seconds)) * 90000), Fraction(1, 90000)
            else:
                frame.pts, frame.time_base = number, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _encode_silence(container, sound, float(frames / fps))


def _encode_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for at in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, at, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[Protocol], VideoModel]:
    """``tiny_model(protocol)`` -> the smallest model of the package for clips of this protocol, in evaluation mode.

    A UniFormer with random weights, always the same, and a logit for each class that the protocol names.
    """

    def make(protocol: Protocol) -> VideoModel:
        torch.manual_seed(0)
        model = stvid.create_model(
            "uniformer_xxs",
            num_classes=len(protocol.class_names),
            num_frames=protocol.frames,
            img_size=protocol.crop,
            depth=(1, 1, 1, 1),
            embed_dim=(8, 8, 16, 16),
            head_dim=8,
        )
        model.default_protocol = protocol
        return model.eval()

    return make


@pytest.fixture(scope="session")
def draw_frame() -> Callable[..., np.ndarray]:
    """``draw_frame(number, width, height)`` -> uint8 (height, width, 3) with the number in its pixels."""
    return _draw


@pytest.fixture(scope="session")
def frame_number() -> Callable[[np.ndarray | torch.Tensor], int]:
    """``frame_number(frame)`` -> the number in a decoded frame uint8 (H, W, 3); fails if there is none."""
    return _read


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_video("name.mp4", frames=20, ...)`` -> path of a video whose frames carry their numbers.

    Keywords: `codec`, `width`, `height`, `frames`, `fps`, `bframes`, `gop`, `open_gop`, `pix_fmt`, `start` (seconds at
    which the first frame is shown), `times` (seconds of each frame: variable frame rate), `first` (number in the first
    frame), `light` (colour of the light blocks), `rotation` (degrees clockwise that a player turns it; mp4 and mov),
    `mirrored` (before that), `audio` (a silent track before the video), `options` (of the encoder), `to` (a folder: the
    file is copied there, to be changed by the test). Skips the test if the encoder is missing.

    The same arguments give the same file, made once a session: do not change it without `to`.
    """
    folder = tmp_path_factory.mktemp("videos")

    def make(
        name: str = "video.mp4",
        *,
        codec: str = "libx264",
        width: int = 64,
        height: int = 48,
        frames: int = 20,
        fps: int | Fraction = 25,
        bframes: int = 2,
        gop: int = 12,
        open_gop: bool = False,
        pix_fmt: str | None = None,
        start: float = 0.0,
        times: Sequence[float] | None = None,
        first: int = 0,
        light: Sequence[int] = (255, 255, 255),
        rotation: int = 0,
        mirrored: bool = False,
        audio: bool = False,
        options: dict[str, str] | None = None,
        to: Path | None = None,
    ) -> Path:
        if codec not in av.codecs_available:
            pytest.skip(f"this build of FFmpeg has no {codec}")
        arguments = {
            "codec": codec,
            "width": width,
            "height": height,
            "frames": frames,
            "fps": Fraction(fps),
            "bframes": bframes,
            "gop": gop,
            "open_gop": open_gop,
            "pix_fmt": pix_fmt or {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p"),
            "start": start,
            "times": times,
            "first": first,
            "light": tuple(light),
            "audio": audio,
            "options": options or {},
        }
        key = hashlib.sha256(repr((name, rotation, mirrored, arguments)).encode()).hexdigest()[:16]
        path = folder / key / name
        if not path.exists():
            path.parent.mkdir()
            _encode(path, **arguments)
            if rotation or mirrored:
                _patch_matrix(path, _matrix(rotation, mirrored))
        if to is None:
            return path
        to.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(path, to / name))

    return make


@pytest.fixture(scope="session")
def make_audio(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """``make_audio()`` -> path of an mp4 file without video."""

    def make() -> Path:
        path = tmp_path_factory.mktemp("audio") / "audio.mp4"
        with av.open(str(path), "w") as container:
            _encode_silence(container, container.add_stream("aac", rate=16000), 0.5)
        return path

    return make


@pytest.fixture(scope="session")
def make_dataset(make_video: Callable[..., Path]) -> Callable[..., Path]:
    """``make_dataset(tmp_path, classes=("left", "right"), per_class=4)`` -> a folder with a folder per class.

    Videos are H.264, 64 x 64, of 16 to 20 frames. The light blocks have a colour of the class's own, so that a model
    can learn the classes; frame numbers of video ``n`` of a class begin at ``64 * n``.
    """
    colours = [(255, 255, 80), (80, 255, 255), (255, 160, 255), (255, 255, 255), (160, 255, 80), (255, 190, 120)]

    def make(
        folder: Path, *, classes: Sequence[str] = ("left", "right", "turn"), per_class: int = 4, size: int = 64
    ) -> Path:
        for c, label in enumerate(classes):
            for n in range(per_class):
                make_video(
                    f"{label}_{n}.mp4",
                    width=size,
                    height=size,
                    frames=16 + n % 5,
                    first=64 * n,
                    light=colours[c % len(colours)],
                    to=Path(folder) / label,
                )
        return Path(folder)

    return make


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Manifest]:
    """``make_shards(manifest, folder)`` -> the list of the same videos in tar shards of about `size` bytes."""

    def make(manifest: Manifest, folder: Path, *, size: float = 14000, seed: int = 0) -> Manifest:
        plan, failed = plan_shards(manifest, size=size, seed=seed)
        assert not failed
        (folder / "plan").mkdir(parents=True)
        results = []
        for number, rows in enumerate(plan):
            (folder / "plan" / f"shard-{number:06d}.json").write_text(json.dumps(rows))
            results.append(write_shard(str(folder / f"shard-{number:06d}.tar"), {"plan": str(folder / "plan")}))
        write_shard_index(folder, manifest.class_names, results)
        return stvid.read_manifest(folder)

    return make


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `run_jobs` do its work in this process, one file after the other: a worker process costs a second."""

    def run(stage: Stage, keys: Sequence[str], workers: int, record: jobs.Record) -> list[str]:
        for key in keys:
            record(*jobs._attempt(stage, key))
        return []

    monkeypatch.setattr(jobs, "run_pool", run)
