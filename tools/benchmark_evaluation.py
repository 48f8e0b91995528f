"""Reading the views of a test: all from one decode, beside decoding for each view. Medians, ratios, memory.

    python tools/benchmark_evaluation.py                      # on files that it makes
    python tools/benchmark_evaluation.py --videos k400/*.mp4   # on real ones

The ways alternate in one process on one thread, and open the file anew each time, as a data loader does. "view by view"
is stvid's own reader asked for one clip and one crop at a time; "view by view, whole video" decodes all frames for each
view with PyAV, as SlowFast's test loader does (slowfast/datasets/kinetics.py has num_clips x num_crops items a video).
The first three give the same pixels, which is checked. Memory is the largest resident size of a process of its own that
reads one 1920 x 1080 video of 300 frames, less that of one that only imports.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmark_loader import make_videos
from benchmarking import alternate

from stvid.data.clips import cut_views, scaled_frames, view_plans
from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.sampling import sample_views
from stvid.data.views import affordable_views
from stvid.protocol import Protocol, parse_views
from stvid.video.reader import VideoReader

PROTOCOL = Protocol(frames=16, stride=4, short_side=256, crop=224)


def one_decode(path: str, views: str) -> torch.Tensor:
    clips = EvalDataset(Manifest.from_entries([VideoEntry(path)]), PROTOCOL, views=views)[0].clips
    assert clips is not None
    return clips


def one_decode_all_protocols(path: str, views: str) -> torch.Tensor:
    protocols = [views, *affordable_views(views, PROTOCOL.sampling)]
    clips = EvalDataset(Manifest.from_entries([VideoEntry(path)]), PROTOCOL, views=protocols)[0].clips
    assert clips is not None
    return clips[: int(np.prod(parse_views(views)))]


def one_view(images: torch.Tensor, crops: int, crop: int) -> torch.Tensor:
    frames = scaled_frames(images, PROTOCOL.short_side)
    plans = view_plans(frames.numbers[None], [(0, crops, crop)], frame_size=frames.size, size=PROTOCOL.crop)
    return cut_views(frames, plans, PROTOCOL.crop)[0]


def view_by_view(path: str, views: str) -> torch.Tensor:
    clips, crops = parse_views(views)
    found = []
    for clip in range(clips):
        for crop in range(crops):
            with VideoReader(path) as reader:
                indices = sample_views(np.arange(len(reader)), PROTOCOL, num_clips=clips)[clip]
                found.append(one_view(reader.get_batch(indices), crops, crop))
    return torch.stack(found)


def view_by_view_whole_video(path: str, views: str) -> torch.Tensor:
    import av

    clips, crops = parse_views(views)
    found = []
    for clip in range(clips):
        for crop in range(crops):
            with av.open(path) as container:
                container.streams.video[0].codec_context.thread_count = 1
                frames = list(container.decode(video=0))
                indices = sample_views(np.arange(len(frames)), PROTOCOL, num_clips=clips)[clip]
                picked = np.stack([frames[index].to_ndarray(format="rgb24") for index in indices])
            found.append(one_view(torch.from_numpy(picked), crops, crop))
    return torch.stack(found)


WAYS: dict[str, Callable[[str, str], torch.Tensor]] = {
    "one decode": one_decode,
    "one decode, all protocols": one_decode_all_protocols,
    "view by view": view_by_view,
    "view by view, whole video": view_by_view_whole_video,
}


def measure(videos: list[str], views: str, rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for path in videos:
        expected = one_decode(path, views)
        for name in ("one decode, all protocols", "view by view"):
            assert torch.equal(WAYS[name](path, views), expected), name
    for path in videos:
        steps = {name: functools.partial(way, path, views) for name, way in WAYS.items()}
        for name, seconds in alternate(steps, rounds=rounds, warm_up=0).items():
            times[name] += seconds["cpu"]
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{views} views of {PROTOCOL.frames}x{PROTOCOL.stride}, CPU time of one video")
    for name, value in medians.items():
        ratio = "" if name == "one decode" else f"   {value / medians['one decode']:.2f} times as long"
        print(f"  {name:<28}{1000 * value:9.1f} ms{ratio}")


def make_large_video(path: Path) -> None:
    """Writes 300 frames of 1920 x 1080."""
    import av

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (1080 // 8, 1920 // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number in range(300):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 8 * number, 1), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def memory(path: str, views: str) -> float:
    """Returns by how many MB reading the views raises the largest resident size of a process."""
    # The high-water mark of the process's own memory (Linux); getrusage's begins with that of the parent.
    code = (
        "import re, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import benchmark_evaluation as b\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "b.one_decode(sys.argv[1], sys.argv[2])\n"
        "print((peak() - before) / 1024)\n"
    )
    command = [sys.executable, "-c", code, path, views, os.path.dirname(os.path.abspath(__file__))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", nargs="+", help="video files; default: Kinetics-like files made here")
    parser.add_argument("--views", default="10x3", help="temporal clips x spatial crops")
    parser.add_argument("--rounds", type=int, default=3, help="passes over the videos")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(options.videos or make_videos(Path(folder), 2), options.views, options.rounds)
        large = Path(folder) / "large.mp4"
        make_large_video(large)
        print("\nmemory for a 1920 x 1080 video")
        for views in ("1x1", options.views):
            clips, crops = parse_views(views)
            held = clips * crops * PROTOCOL.frames * PROTOCOL.crop**2 * 3 / 2**20
            print(f"  {views:<8}{memory(str(large), views):8.0f} MB, of which the views themselves are {held:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
