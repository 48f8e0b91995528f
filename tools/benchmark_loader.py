"""Clip loading beside its peers: one process, alternating rounds, medians, ratios.

    python tools/benchmark_loader.py                         # on files that it makes
    python tools/benchmark_loader.py --videos k400/*.mp4      # on real ones
    python tools/benchmark_loader.py --breakdown --workers    # where the time goes, and clips per second of a loader

Each row of the table is one piece of work (a random 16x4 clip at native size, the clips of a test, a training clip, a
test set-up); each of its columns does it with the same random choices, on one thread, opening the file anew as a data
loader does. Before a row is timed, the frames of the readers are compared where they should be equal. A peer that is
not installed is named and left out. Ratios are those of the medians, by the clock and by the time of the processor, and
the median of the ratios of pairs, of which each reads the same clip; unlike files move the former, not the latter. Two
rows compare the files with what `stvid prep transcode` makes of them with its defaults: "stvid" reads the copies,
"before" the files. The last row reads bytes, as of a tar shard: "stvid" with the index that `stvid prep shard` puts
beside them, "without" it.

The peers' recipes are written here as their users write them: mmaction2 is decord with OpenCV, PyTorchVideo is its
`EncodedVideo` with its steps in order (its transforms module cannot be imported with current torchvision).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stvid.config import AugmentConfig
from stvid.data.clips import decode_frames
from stvid.data.dataset import EvalDataset, TrainDataset, collate_train
from stvid.data.manifest import read_manifest
from stvid.data.transcoding import DEFAULTS, transcode
from stvid.data.transforms import TrainTransform, normalize
from stvid.protocol import Protocol
from stvid.video.reader import Index, VideoReader, scan
from stvid.video.stored_index import pack_index, unpack_index

FRAMES, STRIDE, SIZE, SHORT_SIDE = 16, 4, 224, 256
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
Work = Callable[[str, np.random.Generator], Any]


# --- videos -----------------------------------------------------------------------------------------------------------


def make_videos(folder: Path, count: int, *, seconds: int = 10, key_frames: int = 250) -> list[str]:
    """Writes H.264 files in the format of Kinetics copies: 340 x 256, 30 fps, 10 s, x264 defaults, AAC sound.

    The pictures are textures of natural spectrum (1/f) that move before each other, with grain. There are no cuts, so
    that key frames are `key_frames` frames apart; 250 is x264's default.
    """
    import av

    files = []
    rng = np.random.default_rng(0)
    for number in range(count):
        layers = [_texture(rng) for _ in range(3)]
        path = folder / f"video_{number}.mp4"
        with av.open(str(path), "w") as container:
            video: Any = container.add_stream("h264", rate=30)
            video.width, video.height, video.pix_fmt = 340, 256, "yuv420p"
            video.codec_context.gop_size = key_frames
            sound: Any = container.add_stream("aac", rate=44100)
            yy, xx = np.mgrid[0:256, 0:340]
            for frame in range(30 * seconds):
                top = frame // 2 % 256  # of 512 rows
                picture = layers[0][top : top + 256, 100 : 100 + 340].copy()
                for depth, layer in enumerate(layers[1:], start=1):
                    x = 170 + 120 * np.sin(frame / (11 + 5 * depth) + number)
                    y = 128 + 70 * np.cos(frame / (7 + 3 * depth))
                    inside = (xx - x) ** 2 + (yy - y) ** 2 < (40 + 15 * depth) ** 2
                    moved = np.roll(layer, (frame * depth, -2 * frame), (0, 1))[:256, :340]
                    picture[inside] = moved[inside]
                picture = (picture + rng.normal(0, 2, picture.shape)).clip(0, 255).astype(np.uint8)
                shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
                for packet in video.encode(shown):
                    container.mux(packet)
                tone = (8000 * np.sin(np.arange(1470) / 20)).astype(np.int16)[None]
                samples = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 44100, frame * 1470, Fraction(1, 44100)
                for packet in sound.encode(samples):
                    container.mux(packet)
            for stream in (video, sound):
                for packet in stream.encode(None):
                    container.mux(packet)
        files.append(str(path))
    return files


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Noise whose spectrum falls as 1/f, (512, 640, 3), values 0 to 255."""
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(640)[None]) + 1e-3
    spectrum = np.fft.fft2(rng.standard_normal((512, 640, 3)), axes=(0, 1)) / frequency[..., None] ** 1.2
    image = np.fft.ifft2(spectrum, axes=(0, 1)).real
    low, high = np.percentile(image, (1, 99))
    return ((image - low) / (high - low) * 255).clip(0, 255)


# --- readers: the frames at some indices, uint8 (N, H, W, 3) ----------------------------------------------------------


def read_stvid(path: str, indices: np.ndarray) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.get_batch(indices).numpy()


def read_pyav(path: str, indices: np.ndarray) -> np.ndarray:
    """Seeks to the key frame and decodes on to the last frame wanted, as most data loaders with PyAV do."""
    import av

    wanted = set(indices.tolist())
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = 1 / (stream.average_rate * stream.time_base)
        container.seek(int(min(wanted) * step), stream=stream)
        frames = {}
        for frame in container.decode(stream):
            number = round((frame.pts - (stream.start_time or 0)) / step)
            if number in wanted:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number >= max(wanted):
                break
    return np.stack([frames[index] for index in indices.tolist()])


def read_decord(path: str, indices: np.ndarray) -> np.ndarray:
    import decord

    return decord.VideoReader(path, num_threads=1).get_batch(indices.tolist()).asnumpy()


def read_torchcodec(path: str, indices: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    return decoder.get_frames_at(indices.tolist()).data.numpy()


READERS: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "stvid": read_stvid,
    "pyav": read_pyav,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
}


# --- rows -------------------------------------------------------------------------------------------------------------


def draw_clip(path: str, rng: np.random.Generator) -> np.ndarray:
    """A random 16x4 clip's indices; the length of the file is known beforehand, as from a manifest."""
    span = (FRAMES - 1) * STRIDE + 1
    start = rng.integers(LENGTHS[path] - span + 1)
    return start + STRIDE * np.arange(FRAMES)


def spread_clips(path: str, count: int) -> np.ndarray:
    """The indices of `count` clips spread evenly over the file, (count, 16)."""
    last = LENGTHS[path] - (FRAMES - 1) * STRIDE - 1
    starts = np.linspace(0, last, count).round().astype(np.int64)
    return starts[:, None] + STRIDE * np.arange(FRAMES)


def random_clip(read: Callable[[str, np.ndarray], np.ndarray]) -> Work:
    return lambda path, rng: read(path, draw_clip(path, rng))


def four_clips(read: Callable[[str, np.ndarray], np.ndarray]) -> Work:
    def work(path: str, rng: np.random.Generator) -> list[np.ndarray]:
        unique, where = np.unique(spread_clips(path, 4), return_inverse=True)
        frames = read(path, unique)
        return [frames[part] for part in where.reshape(4, FRAMES)]

    return work


PROTOCOL = Protocol(frames=FRAMES, stride=STRIDE, short_side=SHORT_SIDE, crop=SIZE, mean=MEAN, std=STD)
AUGMENT = AugmentConfig(resize="random_resized_crop", hflip=0.5, randaugment_magnitude=0, erasing=0.0)


def train_stvid(
    path: str, rng: np.random.Generator, content: bytes | None = None, index: Index | None = None
) -> torch.Tensor:
    indices = draw_clip(path, rng)
    transform = TrainTransform(PROTOCOL, AUGMENT, ["a"])
    with VideoReader(content or path, index=index) as reader:  # as `TrainDataset` does it
        plan, _ = transform.draw_plan(indices, (reader.height, reader.width), np.zeros(1, np.int64), rng)
        frames = decode_frames(reader, indices, plan.box)
    return normalize(transform.apply(frames, plan, rng), MEAN, STD)


def _draw_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        box_width, box_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < box_width <= width and 0 < box_height <= height:
            break
    else:
        box_height, box_width = height, width
    return int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1)), box_height, box_width


def train_mmaction2(path: str, rng: np.random.Generator) -> torch.Tensor:
    """DecordInit, DecordDecode, RandomResizedCrop, Resize, Flip, Normalize, FormatShape of mmaction2's configs."""
    import cv2

    cv2.setNumThreads(1)
    frames = list(read_decord(path, draw_clip(path, rng)))
    top, left, height, width = _draw_box(*frames[0].shape[:2], rng)
    flip = rng.random() < 0.5
    mean, scale = np.float64([255 * v for v in MEAN])[None], 1 / np.float64([255 * v for v in STD])[None]
    out = []
    for frame in frames:
        frame = cv2.resize(frame[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        frame = (cv2.flip(frame, 1) if flip else frame).astype(np.float32)
        cv2.subtract(frame, mean, frame)
        cv2.multiply(frame, scale, frame)
        out.append(frame)
    return torch.from_numpy(np.ascontiguousarray(np.stack(out).transpose(3, 0, 1, 2)))


def train_torchcodec(path: str, rng: np.random.Generator) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms import v2

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate")
    frames = decoder.get_frames_at(draw_clip(path, rng).tolist()).data
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
        ]
    )
    return steps(frames).permute(1, 0, 2, 3).contiguous()


def train_pytorchvideo(path: str, rng: np.random.Generator) -> torch.Tensor:
    """The steps of its Kinetics tutorial: subsample, scale, normalise, short side 256 to 320, crop, flip."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    video = EncodedVideo.from_path(path, decode_audio=False)
    first = draw_clip(path, rng)[0] / 30
    clip = video.get_clip(first, first + FRAMES * STRIDE / 30)["video"]
    video.close()
    clip = clip[:, torch.linspace(0, clip.shape[1] - 1, FRAMES).long()] / 255.0
    clip = (clip - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
    short = int(rng.integers(256, 321))
    factor = short / min(clip.shape[2:])
    size = [round(factor * side) for side in clip.shape[2:]]
    clip = torch.nn.functional.interpolate(clip, size=size, mode="bilinear", align_corners=False)
    top, left = rng.integers(size[0] - SIZE + 1), rng.integers(size[1] - SIZE + 1)
    clip = clip[:, :, top : top + SIZE, left : left + SIZE]
    return clip.flip(-1) if rng.random() < 0.5 else clip.contiguous()


def test_stvid(path: str, rng: np.random.Generator) -> None:
    """Batches of eight views, as `stvid.evaluation.evaluate.sample_logits` gives them to a model on the CPU."""
    views = EvalDataset(MANIFESTS[path], PROTOCOL, views="10x3")[0].clips
    assert views is not None
    memory = torch.empty(8, *views.shape[1:])
    for batch in views.split(len(memory)):
        for view, place in zip(batch, memory, strict=False):
            normalize(view, MEAN, STD, out=place)


def test_pytorchvideo(path: str, rng: np.random.Generator) -> None:
    """Clip by clip: no more of a video is joined than the crops of one clip."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    video = EncodedVideo.from_path(path, decode_audio=False)
    for first in spread_clips(path, 10)[:, 0] / 30:
        clip = video.get_clip(first, first + FRAMES * STRIDE / 30)["video"]
        clip = clip[:, torch.linspace(0, clip.shape[1] - 1, FRAMES).long()] / 255.0
        clip = (clip - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
        factor = SHORT_SIDE / min(clip.shape[2:])
        size = [round(factor * side) for side in clip.shape[2:]]
        clip = torch.nn.functional.interpolate(clip, size=size, mode="bilinear", align_corners=False)
        top = (size[0] - SIZE) // 2
        lefts = (0, (size[1] - SIZE) // 2, size[1] - SIZE)
        torch.stack([clip[:, :, top : top + SIZE, left : left + SIZE] for left in lefts])
    video.close()


def train_from_shard(path: str, rng: np.random.Generator) -> torch.Tensor:
    if path not in PACKED:
        PACKED[path] = pack_index(scan(path))
    return train_stvid(path, rng, Path(path).read_bytes(), unpack_index(PACKED[path]))


def train_from_bytes(path: str, rng: np.random.Generator) -> torch.Tensor:
    return train_stvid(path, rng, Path(path).read_bytes())


def transcoded(work: Work) -> Work:
    return lambda path, rng: work(COPIES[path], rng)


def make_copies(videos: Sequence[str], folder: str) -> None:
    """Writes what `stvid prep transcode` makes of the videos with its defaults; prints what they weigh."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in videos])
    options = {"root": root, "out": folder, **DEFAULTS}
    facts = [transcode(os.path.abspath(path), options) for path in videos]
    for path, fact in zip(videos, facts, strict=True):
        COPIES[path] = fact["out"]
        LENGTHS[fact["out"]] = fact["frames"]
    before, after = (sum(fact[key] for fact in facts) for key in ("bytes_before", "bytes_after"))
    print(f"transcode {DEFAULTS}: {after / before:.2f} times the size")


ROWS: dict[str, dict[str, Work]] = {
    "random 16x4 clip, native size": {name: random_clip(read) for name, read in READERS.items()},
    "4 clips x 16, one pass": {name: four_clips(read) for name, read in READERS.items()},
    "16x4 clip, random resized crop 224, flip, normalise": {
        "stvid": train_stvid,
        "mmaction2": train_mmaction2,
        "torchcodec": train_torchcodec,
        "pytorchvideo": train_pytorchvideo,
    },
    "10 clips x 3 crops of a test": {"stvid": test_stvid, "pytorchvideo": test_pytorchvideo},
    "random 16x4 clip, native size, after transcode": {
        "stvid": transcoded(random_clip(read_stvid)),
        "before": random_clip(read_stvid),
    },
    "16x4 clip, random resized crop 224, flip, normalise, after transcode": {
        "stvid": transcoded(train_stvid),
        "before": train_stvid,
    },
    "16x4 clip, random resized crop 224, flip, normalise, from a tar shard": {
        "stvid": train_from_shard,
        "without": train_from_bytes,
    },
}
NEEDS = {
    "decord": ("decord",),
    "torchcodec": ("torchcodec.decoders",),
    "mmaction2": ("decord", "cv2"),
    "pytorchvideo": ("pytorchvideo.data.encoded_video",),
}
LENGTHS: dict[str, int] = {}
MANIFESTS: dict[str, Any] = {}
COPIES: dict[str, str] = {}
PACKED: dict[str, bytes] = {}


# --- running ----------------------------------------------------------------------------------------------------------


def missing(name: str, path: str) -> str:
    """Returns why a peer cannot take part, or an empty string."""
    try:
        for module in NEEDS.get(name, ()):
            importlib.import_module(module)
        if name == "torchcodec":
            read_torchcodec(path, np.arange(1))
    except (ImportError, RuntimeError, OSError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def compare(name: str, works: dict[str, Work], videos: Sequence[str]) -> dict[str, int]:
    """The largest difference of each reader's frames from those of a full decode, over all videos."""
    import av

    found = dict.fromkeys(works, 0)
    for path in videos:
        with av.open(path) as container:
            everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        indices = draw_clip(path, np.random.default_rng(0))
        expected = np.stack([everything[index] for index in indices]).astype(int)
        for reader, read in READERS.items():
            if reader in works:
                difference = np.abs(read(path, indices).astype(int) - expected).max()
                found[reader] = max(found[reader], int(difference))
    return found


def measure(works: dict[str, Work], videos: Sequence[str], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each piece of work, on the clock and of the processor (N, 2), alternating.

    All sides draw the same random numbers, so the n-th times belong together. The processor's time is that of all
    threads of this process; it hardly depends on what else the machine does.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    order = list(works)
    for number in range(rounds):
        for position, path in enumerate(videos):
            turn = (number + position) % len(order)
            for name in order[turn:] + order[:turn]:
                rng = np.random.default_rng([number, position])
                torch.manual_seed(number)
                begin, begin_cpu = time.perf_counter(), time.process_time()
                works[name](path, rng)
                times[name].append((time.perf_counter() - begin, time.process_time() - begin_cpu))
    return {name: np.array(pairs) for name, pairs in times.items()}


def breakdown(videos: Sequence[str], rounds: int) -> dict[str, float]:
    """Median milliseconds of the processor for the parts of a training clip of stvid, and the bytes that it copies."""
    from stvid.video.av_reader import AvSource

    parts: dict[str, list[float]] = {}
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            begin = time.process_time()
            result = work(*arguments, **options)
            spent[name] = spent.get(name, 0.0) + time.process_time() - begin
            return result

        return call

    def frames_timed(*arguments: Any) -> Any:
        steps = feed(*arguments)
        while (frame := step(lambda: next(steps, None))) is not None:
            yield frame

    step = timed("seek, read packets, decode", lambda work: work())
    feed, store = AvSource._feed, AvSource._store
    AvSource._feed = frames_timed  # type: ignore[method-assign]
    AvSource._store = timed("convert to RGB, copy", store)  # type: ignore[method-assign]
    transform = TrainTransform(PROTOCOL, AUGMENT, ["a"])
    try:
        for number in range(rounds):
            for position, path in enumerate(videos):
                spent.clear()
                rng = np.random.default_rng([number, position])
                indices = draw_clip(path, rng)
                reader = timed("open (index cached)", VideoReader)(path)
                plan, _ = transform.draw_plan(indices, (reader.height, reader.width), np.zeros(1, np.int64), rng)
                frames = timed("get_batch in all", decode_frames)(reader, indices, plan.box)
                timed("close", reader.close)()
                clip = timed("resize, mirror", transform.apply)(frames, plan, rng)
                batch = timed("collate", torch.stack)([clip])
                timed("normalise", normalize)(batch, MEAN, STD)
                for name, seconds in spent.items():
                    parts.setdefault(name, []).append(1000 * seconds)
                # The boxes of the frames into one array; the clip scaled, mirrored, and put into the batch.
                copied = frames.images.numel() + (2 + plan.flipped) * clip.numel()
                for name, count in (("MB of frames", frames.images.numel()), ("MB copied in all", copied)):
                    parts.setdefault(name, []).append(count / 1e6)
    finally:
        AvSource._feed, AvSource._store = feed, store  # type: ignore[method-assign]
    return {part: statistics.median(values) for part, values in parts.items()}


def clips_per_second(videos: Sequence[str], workers: int, clips: int) -> float:
    """Clips that a training loader gives in a second, without the first batches."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.write("path,label\n" + "".join(f"{os.path.abspath(path)},a\n" for path in videos))
        file.flush()
        manifest = read_manifest(file.name)
    dataset = TrainDataset(manifest, PROTOCOL, AUGMENT, seed=0)
    order = [number % len(videos) for number in range(clips)]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, sampler=order, num_workers=workers, collate_fn=collate_train, persistent_workers=False
    )
    begin, count = 0.0, 0
    for number, batch in enumerate(loader):
        if number == 2:
            begin = time.perf_counter()
        elif number > 2:
            count += len(batch.clips)
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", nargs="+", help="H.264 files of at least 61 frames; default: files made here")
    parser.add_argument("--rows", nargs="+", help="parts of the names of the rows to run; default all")
    parser.add_argument("--rounds", type=int, default=10, help="passes over the videos")
    parser.add_argument("--breakdown", action="store_true", help="show the parts of stvid's time")
    parser.add_argument("--workers", action="store_true", help="show clips per second of a loader with 1 and 2 workers")
    parser.add_argument("--json", help="file for all figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or make_videos(Path(folder), 4)
        run(videos, options, copies=os.path.join(folder, "copies"))


def run(videos: Sequence[str], options: argparse.Namespace, *, copies: str) -> None:
    for path in videos:
        with VideoReader(path) as reader:
            LENGTHS[path] = len(reader)
            print(f"{Path(path).name}: {reader.width}x{reader.height}, {len(reader)} frames, {os.path.getsize(path)} B")
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
            file.write(f"path,label\n{os.path.abspath(path)},a\n")
            file.flush()
            MANIFESTS[path] = read_manifest(file.name)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, {options.rounds} rounds"
    )
    if any("transcode" in row and (not options.rows or any(part in row for part in options.rows)) for row in ROWS):
        make_copies(videos, copies)
    figures: dict[str, Any] = {}
    absent = {name: why for name in NEEDS if (why := missing(name, videos[0]))}
    for name, why in absent.items():
        print(f"left out: {name} ({why})")
    for row, all_works in ROWS.items():
        if options.rows and not any(part in row for part in options.rows):
            continue
        works = {name: work for name, work in all_works.items() if name not in absent}
        print(f"\n{row}")
        differences = compare(row, works, videos) if set(works) & {"pyav", "decord"} else {}
        measure(works, videos, 1)
        times = measure(works, videos, options.rounds)
        medians = {name: np.median(1000 * seconds, axis=0) for name, seconds in times.items()}
        figures[row] = {}
        for name, (wall, cpu) in medians.items():
            faster, cheaper = medians[name] / medians["stvid"]
            pairs = float(np.median(times[name][:, 0] / times["stvid"][:, 0]))
            ratios = f"   stvid is {faster:.2f} times as fast, {cheaper:.2f} by CPU, {pairs:.2f} pair by pair"
            note = f"   frames differ by up to {differences[name]}" if differences.get(name) else ""
            print(f"  {name:<14}{wall:8.1f} ms, CPU {cpu:7.1f} ms{ratios if name != 'stvid' else ''}{note}")
            figures[row][name] = {"ms": float(wall), "cpu_ms": float(cpu), "ratio_of_pairs": pairs}
    if options.breakdown:
        print("\nparts of a training clip (time of the processor)")
        figures["breakdown"] = breakdown(videos, options.rounds)
        for part, value in figures["breakdown"].items():
            print(f"  {part:<36}{value:8.2f}{'' if part.startswith('MB') else ' ms'}")
    if options.workers:
        print("\nclips per second of a training loader")
        figures["workers"] = {workers: clips_per_second(videos, workers, 96) for workers in (1, 2)}
        for workers, value in figures["workers"].items():
            print(f"  {workers} workers{value:12.1f}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
