"""The pictures of README and of the documentation, made from a real run.

    make demo                                              # trains the run that the pictures show
    python tools/readme_pictures.py --checkpoint runs/demo

It joins held-out clips of five classes of the embedded set `motion` into a video of five seconds, which the model has
never seen, and lets `stvid` do what a user does: `inspect` draws the clips that a test sees, `predict --window`
classifies the video over time, and the report is the one that `stvid test` wrote into the run. Chromium takes the
screenshots; `--chromium` names it if it is not found.

Writes `docs/images/clips.png`, `timeline.png`, `report.png`, and `overview.png`, which holds the three, and the report
as a page, `docs/gallery/motion.html`, in which the folder of the videos is shortened.
"""

from __future__ import annotations

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvid.data.motion import FPS, MOTION_CLASSES, render_clip, resolve_motion

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHOWN = ("move right", "rotate counterclockwise", "grow", "move down", "shrink")
"""Classes of the joined video, in order; the plot of `predict` shows five."""
WIDTH = 1280
COLOURS = 256
"""Colours of the pictures' palettes: screenshots of plots and text lose nothing, and a file stays below 200 KB."""


def join_clips() -> NDArray[np.uint8]:
    """Returns one held-out clip of each of `SHOWN`, one after the other: uint8 (5 x 16, H, W, 3)."""
    found: dict[str, NDArray[np.uint8]] = {}
    index = 0
    while not found.keys() >= set(SHOWN):
        clip, label = render_clip(index, split="val")
        found.setdefault(MOTION_CLASSES[label], clip)
        index += 1
    return np.concatenate([found[name] for name in SHOWN])


def write_video(frames: NDArray[np.uint8], path: Path) -> None:
    """Writes frames (T, H, W, 3) as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def stvid(folder: Path, *arguments: str) -> None:
    """Runs a command of stvid in a folder, so that pictures name files without their folder; ends if it fails."""
    subprocess.run([sys.executable, "-m", "stvid", *arguments], check=True, cwd=folder)


class Screen:
    """Takes pictures of pages with Chromium, without a window.

    Args:
        program: Chromium's program.
        folder: Where temporary files may lie.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder

    def shoot(self, page: Path, target: Path, *, height: int, width: int = WIDTH) -> None:
        """Writes the top of a page as a PNG with a small palette."""
        raw = self.folder / f"{target.stem}.raw.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
        size = f"--window-size={width},{height}"
        command = [self.program, *options, size, f"--screenshot={raw}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        save_small(Image.open(raw), target)


def save_small(picture: Image.Image, target: Path) -> None:
    """Writes a PNG with a palette, as small as Pillow can make it."""
    palette = picture.convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(target, optimize=True)


def write_overview(page: Path, pictures: dict[str, Path]) -> None:
    """Writes a page that shows pictures with a line of text above each."""
    parts = [f"<p>{html.escape(text)}</p><img src='{path.resolve().as_uri()}'>" for text, path in pictures.items()]
    style = "body{margin:12px;font:20px sans-serif;background:#fff;color:#222}img{width:100%}p{margin:14px 0 6px}"
    page.write_text(f"<meta charset='utf-8'><style>{style}</style>{''.join(parts)}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder of `make demo`")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the documentation; default: docs")
    parser.add_argument("--chromium", help="default: chromium, google-chrome or chrome, wherever it is found")
    options = parser.parse_args(argv)
    names = [options.chromium] if options.chromium else ["chromium", "chromium-browser", "google-chrome", "chrome"]
    program = next(filter(None, map(shutil.which, names)), None)
    report = options.checkpoint / "report.html"
    if program is None:
        parser.error(f"no Chromium found ({', '.join(names)}); name it with --chromium")
    if not report.is_file():
        parser.error(f"{report}: no such file; `stvid test --checkpoint {options.checkpoint}` writes it")
    images = options.out / "images"
    for folder in (images, options.out / "gallery"):
        folder.mkdir(parents=True, exist_ok=True)
    videos = str(Path(resolve_motion("val")).parent)
    page = report.read_text(encoding="utf-8").replace(videos, "motion")
    (options.out / "gallery" / "motion.html").write_text(page, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        screen = Screen(program, work)
        video, run = "motions.mp4", str(options.checkpoint.resolve())
        write_video(join_clips(), work / video)
        stvid(work, "inspect", video, "--checkpoint", run, "--clips", "test", "--views", "3x1", "--columns", "17",
              "--out", "clips.png")  # fmt: skip
        save_small(Image.open(work / "clips.png"), images / "clips.png")
        stvid(work, "predict", video, "--checkpoint", run, "--window", "1s", "--window_stride", "1s", "--topk", "1",
              "--out", "timeline")  # fmt: skip
        (drawing,) = (work / "timeline").rglob("*.svg")
        screen.shoot(drawing, images / "timeline.png", height=420)
        screen.shoot(report, images / "report.png", height=760)
        pictures = {
            "stvid inspect: the exact frames that a test sees, with their numbers and seconds": "clips.png",
            "stvid predict --window 1s: what happens, and when": "timeline.png",
            "stvid test: the report": "report.png",
        }
        write_overview(work / "overview.html", {text: images / name for text, name in pictures.items()})
        # The first card of the report; what follows would be cut in the middle.
        screen.shoot(work / "overview.html", images / "overview.png", height=1172)
    print(f"{images}: {', '.join(sorted(path.name for path in images.glob('*.png')))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
