"""The plot of a timeline as the demo page draws it: the video's own axis, colours by class, marks and shaded parts."""

from __future__ import annotations

import xml.etree.ElementTree
from collections.abc import Sequence

import numpy as np

from stvid.evaluation.timeline import TimelineWindow
from stvid.look.timeline_output import ClassTrack, TrackLook, colour_of, dashes_of

SVG = "{http://www.w3.org/2000/svg}"


def track_of(scores: Sequence[Sequence[float]], names: Sequence[str] = ("walk", "jump", "turn")) -> ClassTrack:
    track = ClassTrack(names)
    for k, values in enumerate(scores):
        best = names[int(np.argmax(values))]
        track.add(TimelineWindow(float(k), k + 2.0, (best,), (max(values),), np.array(values)))
    return track


def test_the_axis_is_that_of_the_video() -> None:
    track = track_of([(0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.1, 0.6, 0.3)])
    look = TrackLook(
        width=600,
        span=(0.0, 4.0),
        names=("jump", "unknown", "walk"),
        marks=((2.0, "walk"),),
        bands=((1.0, 2.0),),
        legend=False,
    )
    root = xml.etree.ElementTree.fromstring(track.svg(look=look))
    left, right = float(root.attrib["data-left"]), float(root.attrib["data-right"])
    assert (root.attrib["data-begin"], root.attrib["data-end"]) == ("0.0", "4.0")
    lines = root.findall(f"{SVG}polyline")
    assert [line.attrib["stroke"] for line in lines] == [colour_of(name, look.names) for name in ("jump", "walk")]
    first = [float(point.split(",")[0]) for point in lines[0].attrib["points"].split()]
    inner = right - left
    np.testing.assert_allclose(first, [left + inner * second / 4 for second in (1, 2, 3)], atol=0.06)
    band = next(part for part in root.iter(f"{SVG}rect") if part.attrib.get("class") == "band")
    assert abs(float(band.attrib["x"]) - (left + inner / 4)) < 0.06
    assert abs(float(band.attrib["width"]) - inner / 4) < 0.11
    mark = next(part for part in root.iter(f"{SVG}path") if part.attrib.get("class") == "mark")
    assert mark.attrib["fill"] == colour_of("walk", look.names)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "0 s" in texts and "4 s" in texts and not any("at most" in str(text) for text in texts)
    assert root.find(f"{SVG}line[@class='playhead']") is not None


def test_alone_it_has_a_legend_and_no_playhead() -> None:
    root = xml.etree.ElementTree.fromstring(track_of([(0.7, 0.2, 0.1), (0.1, 0.8, 0.1)]).svg(classes=2))
    assert len(root.findall(f"{SVG}polyline")) == 2 and root.find(f"{SVG}line") is None
    texts = [str(text.text) for text in root.iter(f"{SVG}text")]
    assert "jump (at most 0.80)" in texts and "data-end" not in root.attrib


def test_many_classes_can_be_told_apart() -> None:
    names = [f"class {k}" for k in range(21)]
    looks = {(colour_of(name, names), dashes_of(name, names)) for name in names}
    assert len(looks) == len(names)


def test_a_single_window_and_none_at_all_can_be_drawn() -> None:
    look = TrackLook(span=(0.0, 2.0), names=("walk",))
    assert "<circle" in track_of([(0.7, 0.2, 0.1)]).svg(look=look)
    assert "no window has scores" in track_of([]).svg(look=TrackLook(span=(0.0, 0.0)))
