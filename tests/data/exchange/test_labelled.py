"""Labels of videos as the writers take them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stvid.data.exchange.labelled import (
    LabelledPart,
    LabelledVideo,
    classes_of,
    frame_times,
    frames_between,
    labelled_videos,
    place_in,
)
from stvid.data.video_table import Manifest, VideoEntry
from stvid.errors import MissingFileError


def test_rows_of_a_video_are_together() -> None:
    entries = [
        VideoEntry("/a.mp4", ("run",), 0.0, 1.0),
        VideoEntry("/b.mp4", ("sit",)),
        VideoEntry("/a.mp4", ("sit",), 1.0, None),
    ]
    first, second = labelled_videos(Manifest.from_entries(entries))
    assert [(part.labels, part.start, part.end) for part in first.parts] == [
        (("run",), None, 1.0),
        (("sit",), 1.0, None),
    ]
    assert first.is_timed and not second.is_timed and second.parts[0].is_whole
    assert classes_of([first, second], ("jump", "sit")) == ("jump", "sit", "run")


def test_frames_whose_times_lie_in_a_part() -> None:
    times = np.arange(40) / 20
    assert frames_between(times, None, None) == (0, 39)
    assert frames_between(times, 0.5, 1.0) == (10, 19)
    assert frames_between(times, 0.5000001, 1.0000001) == (10, 19)  # seconds are rounded where they are written
    assert frames_between(times, 0.51, 0.52) == (11, 11)  # there is always one
    assert frames_between(times, 9.0, 10.0) == (39, 39)


def test_frame_times(make_video: Callable[..., Path], tmp_path: Path) -> None:
    times, duration = frame_times(str(make_video("times.mp4", frames=10, fps=20)))
    assert times.tolist() == pytest.approx([k / 20 for k in range(10)]) and duration == pytest.approx(0.5)
    with pytest.raises(MissingFileError):
        frame_times(str(tmp_path / "none.mp4"))


def test_paths_below_the_folder_are_relative(tmp_path: Path) -> None:
    inner = str(tmp_path / "videos/a.mp4")
    assert place_in(tmp_path, inner) == os.path.join("videos", "a.mp4")
    assert place_in(tmp_path / "out", inner) == inner and place_in(None, "a.mp4") == os.path.abspath("a.mp4")
    assert place_in(tmp_path, "https://host/a.mp4") == "https://host/a.mp4"


def test_a_video_of_which_nothing_was_said() -> None:
    assert not LabelledVideo("a.mp4", ()).is_timed and LabelledPart(("x",), end=1.0).is_whole is False
