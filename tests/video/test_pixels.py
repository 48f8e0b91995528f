from __future__ import annotations

import av
import numpy as np
import pytest

from stvid.video.pixels import ends_early


@pytest.mark.parametrize("form", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize(("value", "early"), [(0, True), (0.5, True), (0.25, False)])
def test_a_corner_that_was_never_written_is_seen(form: str, value: float, early: bool) -> None:
    frame = av.VideoFrame(48, 32, form)
    top = 1024 if "10" in form else 256
    kind = np.uint16 if "10" in form else np.uint8
    for plane in frame.planes:
        rows = np.full((plane.height, plane.line_size // np.dtype(kind).itemsize), int(value * top), kind)
        rows[: plane.height // 2] = 77
        plane.update(rows.tobytes())
    assert ends_early(frame) is early


def test_black_of_rgb_and_grey_is_no_damage() -> None:
    for form in ("gbrp", "gray"):
        frame = av.VideoFrame(48, 32, form)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        assert not ends_early(frame)
