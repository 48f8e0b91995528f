"""The figures of the page on the families: they are the tool's, they are small, and nothing leaves the picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools.family_figures import ALL, FIGURES, OUT, SELF, WIDTH, attention, main

SVG = "{http://www.w3.org/2000/svg}"


def test_the_pictures_are_those_that_the_tool_draws(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    assert {path.name for path in OUT.iterdir()} == {f"{name}.svg" for name in FIGURES}
    for path in tmp_path.iterdir():
        assert path.read_text() == (OUT / path.name).read_text(), f"run python tools/family_figures.py: {path.name}"
        assert path.stat().st_size < 100_000


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_leaves_the_picture(name: str) -> None:
    figure = FIGURES[name]()
    root = ElementTree.fromstring(figure.render())
    assert root.get("viewBox") == f"0 0 {WIDTH} {figure.height}"
    for rect in root.iter(f"{SVG}rect"):
        x, y, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0 and x + width <= WIDTH and y >= 0 and y + height <= figure.height
    for text in root.iter(f"{SVG}text"):
        begin = float(text.attrib["x"])
        letter = 8.4 if "title" in text.attrib["class"] else 7.6  # wider than the mean of the fonts
        assert "middle" in text.attrib["class"] or begin + letter * len(text.text or "") < WIDTH, text.text
    for line in root.iter(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert all(0 <= x <= WIDTH and 0 <= y <= figure.height for x, y in points)


def test_one_place_is_asked_about() -> None:
    shapes = attention().shapes
    assert sum(shape.get("style") == "self" for shape in shapes) == 4  # one in each of the four panels
    assert SELF in ALL and sum(shape.get("style") == "seen" for shape in shapes) >= len(ALL) - 1
