"""From a decoded frame to RGB as it is to be seen: colour matrix, range, rotation and mirroring."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["Box", "RgbConverter", "display_turn", "ends_early", "stored_box", "turned"]

Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of a frame, in pixels."""

# AVColorSpace (libavutil/pixfmt.h) -> SWS_CS_* (libswscale/swscale.h). Anything else, unspecified included, is taken
# for BT.601, which is swscale's rule (SWS_CS_DEFAULT) and so that of ffmpeg, OpenCV and decord.
_SWS_COLORSPACE = {1: 1, 4: 4, 7: 7, 9: 9}
_SWS_DEFAULT = 5
_RANGE_LIMITED, _RANGE_FULL = 1, 2

# Of these, and with an even height, swscale computes each pixel from its own samples alone, so that a part can be cut
# out before it is converted. Of others it interpolates the colour between neighbours, which a cut would change.
_CUT_FIRST = frozenset({"yuv420p", "yuvj420p"})

# To cut a frame takes as long as to convert about this many pixels: fewer are converted for nothing instead.
_CUT_PIXELS = 100_000


class RgbConverter:
    """Converts frames to RGB with the matrix and the range that the file states."""

    def __init__(self, av: ModuleType) -> None:
        from av.video.reformatter import VideoReformatter

        self.reformatter = VideoReformatter()
        # Since PyAV 17, swscale takes matrix and range from the frame; before, PyAV left both at BT.601, limited,
        # unless told. `threads` came with it: 1, because a worker has one core and must leave no threads behind.
        self.reads_frame = int(av.__version__.split(".")[0]) >= 17

        self.cutter: tuple[tuple[Any, ...], Any] | None = None  # what it cuts out of what, and the filter graph

    def __call__(self, frame: Any, height: int, width: int, box: Box | None = None) -> np.ndarray:
        """Returns a frame, or a part of it, as RGB.

        Args:
            frame: PyAV's.
            height: Height of the whole frame; a frame of another size is scaled to it.
            width: Width of the whole frame, in the same way.
            box: The part; None is the whole.

        Returns:
            uint8 (H, W, 3); a view of memory that lives as long as the array.
        """
        if box is None:
            return self._converted(frame, height, width)
        top, left, rows, columns = box
        same_size = (frame.height, frame.width) == (height, width)
        pays = height * width - rows * columns >= _CUT_PIXELS
        if pays and frame.format.name in _CUT_FIRST and same_size and height % 2 == 0:
            # Colour has half the resolution: cut at whole samples of it.
            y, x = top - top % 2, left - left % 2
            frame = self._cut(frame, (y, x, rows + rows % 2 + 2 * (top % 2), columns + columns % 2 + 2 * (left % 2)))
            height, width = frame.height, frame.width
            top, left = top - y, left - x
        return self._converted(frame, height, width)[top : top + rows, left : left + columns]

    def _cut(self, frame: Any, box: Box) -> Any:
        """Returns a part of a frame, which shares its memory."""
        from av.filter import Graph

        y, x, rows, columns = box
        rows, columns = min(rows, frame.height - y), min(columns, frame.width - x)
        key = (frame.format.name, frame.height, frame.width, y, x, rows, columns)
        if self.cutter is None or self.cutter[0] != key:
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            crop, sink = graph.add("crop", f"{columns}:{rows}:{x}:{y}:exact=1"), graph.add("buffersink")
            source.link_to(crop)
            crop.link_to(sink)
            graph.configure()
            self.cutter = (key, graph)
        self.cutter[1].push(frame)
        return self.cutter[1].pull()

    def _converted(self, frame: Any, height: int, width: int) -> np.ndarray:
        if self.reads_frame:
            rgb = self.reformatter.reformat(frame, width, height, "rgb24", threads=1)
        else:
            matrix = _SWS_COLORSPACE.get(int(frame.colorspace), _SWS_DEFAULT)
            full = int(frame.color_range) == _RANGE_FULL or frame.format.name.startswith("yuvj")
            rgb = self.reformatter.reformat(
                frame,
                width,
                height,
                "rgb24",
                src_colorspace=matrix,
                # PyAV applies the matrix only if the two differ; RGB has none, so any other one will do.
                dst_colorspace=_SWS_DEFAULT if matrix != _SWS_DEFAULT else 1,
                src_color_range=_RANGE_FULL if full else _RANGE_LIMITED,
                dst_color_range=_RANGE_FULL,
            )
        plane: Any = rgb.planes[0]
        return np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, : 3 * width].reshape(height, width, 3)


def display_turn(frame: Any) -> tuple[bool, bool, bool]:
    """Reads the display matrix: (transpose, flip vertically, flip horizontally), to be done in this order.

    The matrix maps a stored pixel (x, y) to the shown (a x + c y, b x + d y) (ISO/IEC 14496-12, 8.3.2; FFmpeg
    libavutil/display.h). Quarter turns and mirrors are applied; any other matrix (an odd angle, damage) is left out.
    """
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = (np.frombuffer(bytes(data), np.int32) / 2**16).tolist()
            if abs(a) == abs(d) == 1 and b == c == 0:
                return False, d < 0, a < 0
            if abs(b) == abs(c) == 1 and a == d == 0:
                return True, b < 0, c < 0
    return False, False, False


def ends_early(frame: Any) -> bool:
    """Tells whether the last corner of a decoded picture was never written, in a buffer that held no picture before.

    FFmpeg's HEVC decoder ends a damaged slice early without an error. What is left then holds zeros, or the middle of
    the range, with which it fills the references that are missing before a cut (libavcodec/hevc/refs.c). A picture may
    truly end in such a corner of grey, which is rare, and no harm: it is decoded in another, slower way.
    """
    if frame.format.is_rgb or len(frame.planes) < 3:  # zeros are black there
        return False
    bits = frame.format.components[0].bits
    corners = []
    for plane in frame.planes[:3]:
        kind = np.dtype(np.uint8 if bits == 8 else np.uint16)
        rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        corners.append(rows[max(plane.height - 4, 0) : plane.height, max(plane.width - 4, 0) : plane.width])
    return any(all((corner == value).all() for corner in corners) for value in (0, 1 << (bits - 1)))


def turned(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """Applies `display_turn` to an image (H, W, 3); returns a view."""
    transpose, vertical, horizontal = turn
    if transpose:
        image = image.transpose(1, 0, 2)
    return image[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def stored_box(box: Box, height: int, width: int, turn: tuple[bool, bool, bool]) -> Box:
    """Returns where a part of an image that was `turned`, and has that height and width since, lies before."""
    transpose, vertical, horizontal = turn
    top, left, rows, columns = box
    if vertical:
        top = height - top - rows
    if horizontal:
        left = width - left - columns
    return (left, top, columns, rows) if transpose else (top, left, rows, columns)
