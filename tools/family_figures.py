"""The figures of the page on the families of models: how each kind of network sees time.

    python tools/family_figures.py            # writes docs/images/families/*.svg

A figure is a column of panels. Most panels show five frames as grids of places: the dark place is the one that a layer
computes, and the coloured ones are those that it looks at for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "images" / "families"
WIDTH = 460
MARGIN = 20
FRAMES = 5
GRID = 4
CELL = 15
STEP = 90
"""From the left side of a frame to that of the next one."""

Place = tuple[int, int, int]
"""Frame, row and column of a place."""


@dataclass
class Figure:
    """Shapes that are drawn one below the other.

    Attributes:
        height: Height in use.
        shapes: The shapes, as the template takes them.
    """

    height: int = 14
    shapes: list[dict[str, Any]] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, style: str = "") -> None:
        """Adds a line of text."""
        self.shapes.append({"kind": "text", "x": x, "y": y, "text": text, "style": style})

    def rect(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """Adds a rectangle."""
        self.shapes.append({"kind": "rect", "x": x, "y": y, "width": width, "height": height, "style": style})

    def line(self, points: Sequence[tuple[float, float]], style: str = "line", *, tip: str = "tip") -> None:
        """Adds a line through points, with a tip at its end."""
        shown = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append({"kind": "line", "points": shown, "style": style, "tip": tip})

    def head(self, title: str, note: str) -> int:
        """Adds the two lines over a panel; returns where the panel begins."""
        self.text(MARGIN, self.height + 16, title, "title")
        self.text(MARGIN, self.height + 36, note, "note")
        return self.height + 48

    def grid(
        self, x: float, y: float, styles: Callable[[int, int], str], *, size: int = GRID, cell: int = CELL
    ) -> None:
        """Adds a frame as a grid of places."""
        for row in range(size):
            for column in range(size):
                self.rect(x + column * cell, y + row * cell, cell, cell, styles(row, column))

    def render(self) -> str:
        """Returns the SVG."""
        loader = jinja2.FileSystemLoader(HERE / "templates")
        environment = jinja2.Environment(loader=loader, autoescape=False, undefined=jinja2.StrictUndefined)
        template = environment.get_template("family_figure.svg.j2")
        return template.render(width=WIDTH, height=self.height, shapes=self.shapes)


SELF: Place = (2, 1, 1)
ALL = [(frame, row, column) for frame in range(FRAMES) for row in range(GRID) for column in range(GRID)]


def _near(place: Place) -> bool:
    return abs(place[1] - SELF[1]) <= 1 and abs(place[2] - SELF[2]) <= 1


def _frames(
    figure: Figure, title: str, note: str, seen: Collection[Place], then: Collection[Place] = (), self: Place = SELF
) -> int:
    """Adds a panel of frames; returns the top of the frames."""
    top = figure.head(title, note)

    def style(frame: int, row: int, column: int) -> str:
        place = (frame, row, column)
        return "self" if place == self else "then" if place in then else "seen" if place in seen else "cell"

    for frame in range(FRAMES):
        figure.grid(_left(frame), top, lambda row, column, frame=frame: style(frame, row, column))  # type: ignore[misc]
    figure.height = top + GRID * CELL + 20
    return top


def _left(frame: int) -> int:
    return MARGIN + frame * STEP


# --- figures ----------------------------------------------------------------------------------------------------------


def frames_with_modules() -> Figure:
    """Image networks, without and with a module for time."""
    figure = Figure()
    own = [place for place in ALL if place[0] == SELF[0] and _near(place)]
    _frames(figure, "TSN: each frame by itself", "Only the scores of the frames are averaged.", own)
    top = figure.head("TSM, TAM: channels move", "Some channels (rows) come from the frame before or after.")
    for frame in range(FRAMES):
        for channel in range(GRID):
            style = {0: "seen", 1: "then"}.get(channel, "cell")
            figure.rect(_left(frame), top + channel * CELL, GRID * CELL, CELL, style)
    for frame in range(FRAMES - 1):
        right = _left(frame) + GRID * CELL
        figure.line([(right + 2, top + 7), (right + 27, top + 7)])
        figure.line([(right + 28, top + 22), (right + 3, top + 22)])
    figure.height = top + GRID * CELL + 20
    top = _frames(figure, "TEA, TDN: differences", "What changes from frame to frame is added.", own)
    for frame in range(FRAMES - 1):
        middle = _left(frame) + GRID * CELL + 15
        figure.text(middle, top + 36, "−", "title middle")
    return figure


def convolutions() -> Figure:
    """Kernels over three dimensions, whole and split."""
    figure = Figure()
    cube = [place for place in ALL if abs(place[0] - SELF[0]) <= 1 and _near(place)]
    _frames(figure, "C3D, I3D, X3D: one kernel over space and time", "A block of 3 frames, 3 rows and 3 columns.", cube)
    picture = [place for place in ALL if place[0] == SELF[0] and _near(place)]
    times = [(frame, SELF[1], SELF[2]) for frame in (1, 3)]
    _frames(
        figure,
        "P3D, R(2+1)D, S3D: the kernel is split",
        "First the picture (blue), then time (orange).",
        picture,
        times,
    )
    return figure


def pathways() -> Figure:
    """Two networks at two rates."""
    figure = Figure()
    top = figure.head("SlowFast: two networks", "Few frames with many channels, many frames with few.")
    for number in range(3):
        x = MARGIN + 30 + number * 150
        for layer in (12, 8, 4, 0):
            figure.rect(x + layer, top + 12 - layer, 56, 56, "seen")
    low = top + 130
    for number in range(9):
        x = MARGIN + 2 + number * 47
        figure.rect(x + 4, low - 4, 34, 34, "then")
        figure.rect(x, low, 34, 34, "then")
    for number in range(3):
        x = MARGIN + 58 + number * 150
        figure.line([(x, low - 8), (x, top + 74)])
    figure.text(MARGIN, low + 56, "Fast (orange) tells slow (blue) what moves.", "note")
    figure.height = low + 72
    return figure


def attention() -> Figure:
    """The places that a token looks at."""
    figure = Figure()
    _frames(figure, "Joint (VideoMAE, ViViT 1): everything", "Each token looks at all others.", ALL)
    space = [place for place in ALL if place[0] == SELF[0]]
    time = [(frame, SELF[1], SELF[2]) for frame in range(FRAMES)]
    _frames(
        figure,
        "Divided (TimeSformer): two steps",
        "First the same place in time (orange), then the picture.",
        space,
        time,
    )
    window = [(f, r, c) for f, r, c in ALL if 1 <= f <= 2 and r < 2 and c < 2]
    _frames(figure, "Windows (Video Swin)", "Only within a window, which is shifted in the next layer.", window)
    path = [(0, 3, 0), (1, 2, 1), (3, 1, 2), (4, 0, 3)]
    top = _frames(figure, "Trajectory (Motionformer)", "In each frame the place where the thing is.", path)
    points = [(0, 3, 0), (1, 2, 1), SELF, (3, 1, 2), (4, 0, 3)]
    centres = [(_left(f) + (c + 0.5) * CELL, top + (r + 0.5) * CELL) for f, r, c in points]
    figure.line(centres, "path", tip="redtip")
    return figure


def pyramid() -> Figure:
    """Fewer and wider tokens from stage to stage."""
    figure = Figure()
    top = figure.head("MViT, Hiera, UniFormer: stages", "Fewer tokens from stage to stage, with more channels.")
    x = float(MARGIN)
    for size, cell, channels in ((8, 11, 1), (4, 22, 2), (2, 44, 4)):
        for layer in range(channels - 1, -1, -1):
            figure.grid(x + 5 * layer, top + 20 - 5 * layer, lambda row, column: "seen", size=size, cell=cell)
        x += 88 + 5 * (channels - 1)
        if channels < 4:
            figure.line([(x + 10, top + 64), (x + 46, top + 64)])
            x += 56
    figure.height = top + 128
    return figure


def streams() -> Figure:
    """Networks that run from the first frame to the last."""
    figure = Figure()
    past = [place for place in ALL if SELF[0] - 2 <= place[0] <= SELF[0] and _near(place)]
    top = _frames(figure, "Stream (MoViNet): no later frame", "What earlier frames left is kept as a state.", past)
    for frame in range(FRAMES - 1):
        right = _left(frame) + GRID * CELL
        figure.line([(right + 2, top + 50), (right + 28, top + 50)])
    top = _frames(
        figure, "State space (VideoMamba)", "A state walks over all tokens, forward and backward.", [], self=(-1, 0, 0)
    )
    points: list[tuple[float, float]] = []
    for frame in range(FRAMES):
        for row in range(GRID):
            y = top + (row + 0.5) * CELL
            points += [(_left(frame) + 7.5, y), (_left(frame) + GRID * CELL - 7.5, y)]
    figure.line(points, "path", tip="redtip")
    return figure


def masks_and_probes() -> Figure:
    """Learning without labels, and the small part that classifies afterwards."""
    figure = Figure()
    shown = {(0, 1), (1, 3), (2, 0), (3, 2)}
    visible = [(frame, row, column) for frame in range(FRAMES) for row, column in shown]
    title = "VideoMAE, UMT, V-JEPA 2: fill in what is hidden"
    top = _frames(figure, title, "Most is hidden (grey), in the same places of all frames.", visible, self=(-1, 0, 0))
    for shape in figure.shapes:
        if shape["kind"] == "rect" and shape["style"] == "cell" and shape["y"] >= top:
            shape["style"] = "hidden"
    top = figure.head("Probe: the network stays as it is", "Only a small part on top of it learns your classes.")
    figure.grid(MARGIN, top + 6, lambda row, column: "cell")
    figure.line([(86, top + 36), (110, top + 36)])
    figure.rect(112, top, 128, 72, "frozen")
    figure.text(176, top + 32, "network", "middle")
    figure.text(176, top + 52, "(frozen)", "middle note")
    figure.line([(242, top + 36), (264, top + 36)])
    figure.rect(266, top + 12, 76, 48, "then")
    figure.text(304, top + 41, "probe", "middle")
    figure.line([(344, top + 36), (366, top + 36)])
    figure.text(372, top + 41, "class")
    figure.height = top + 90
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "frames": frames_with_modules,
    "convolutions": convolutions,
    "pathways": pathways,
    "attention": attention,
    "pyramid": pyramid,
    "streams": streams,
    "masks": masks_and_probes,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="Folder of the figures.")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (options.out / f"{name}.svg").write_text(draw().render() + "\n", encoding="utf-8")
    print(f"{len(FIGURES)} figures: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
