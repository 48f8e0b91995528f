"""Pictures made with PIL: contact sheets of frames with captions, and maps laid over frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from stvid.data.transforms import CropBox
from stvid.errors import ConfigError, StvidError
from stvid.files import write_atomically

__all__ = ["Row", "Tile", "contact_sheet", "heat_overlay", "save_picture", "with_box"]

_BACKGROUND, _TEXT, _FAINT, _BOX = (255, 255, 255), (20, 20, 20), (110, 110, 110), (255, 60, 30)
_GAP, _FONT_SIZE, _LINE = 6, 12, 16
# Dark blue, green, yellow, red at 0, 1/3, 2/3, 1.
_HEAT = np.array([(20, 20, 140), (0, 170, 140), (250, 220, 40), (220, 20, 20)], np.float32)


@dataclass(frozen=True)
class Tile:
    """A picture and the lines under it.

    Attributes:
        image: uint8 (H, W, 3).
        lines: Short lines of text.
    """

    image: NDArray[np.uint8]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Tiles that belong together, under a title; too many for one line go on in the next."""

    title: str
    tiles: tuple[Tile, ...]


def contact_sheet(
    rows: Sequence[Row], *, heading: Sequence[str] = (), tile: int = 112, columns: int = 16
) -> Image.Image:
    """Draws rows of tiles.

    Args:
        rows: At least one, each with at least one tile.
        heading: Lines at the top.
        tile: Side in pixels of the square that each picture is fitted into.
        columns: Tiles in one line.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    columns = min(columns, max(len(row.tiles) for row in rows))
    longest = max(font.getlength(text) for text in (*heading, *(row.title for row in rows)))
    width = max(columns * (tile + _GAP) + _GAP, int(longest) + 2 * _GAP)
    heights = []
    for row in rows:
        lines = -(-len(row.tiles) // columns)
        heights.append(_LINE + lines * (tile + _LINE * max(len(item.lines) for item in row.tiles) + _GAP) + _GAP)
    top = _GAP + _LINE * len(heading) + (_GAP if heading else 0)
    sheet = Image.new("RGB", (width, top + sum(heights)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((_GAP, _GAP + number * _LINE), line, fill=_TEXT, font=font)
    for row, height in zip(rows, heights, strict=True):
        draw.text((_GAP, top), row.title, fill=_TEXT, font=font)
        step = tile + _LINE * max(len(item.lines) for item in row.tiles) + _GAP
        for number, item in enumerate(row.tiles):
            x = _GAP + number % columns * (tile + _GAP)
            y = top + _LINE + number // columns * step
            picture = ImageOps.contain(Image.fromarray(item.image), (tile, tile), Image.Resampling.BILINEAR)
            sheet.paste(picture, (x + (tile - picture.width) // 2, y + (tile - picture.height) // 2))
            for place, line in enumerate(item.lines):
                draw.text((x + tile / 2, y + tile + place * _LINE), line, fill=_FAINT, font=font, anchor="ma")
        top += height
    return sheet


def with_box(frame: NDArray[np.uint8], box: CropBox) -> NDArray[np.uint8]:
    """Returns a copy of a frame (H, W, 3) with the outline of a crop, drawn thick enough to be seen in a thumbnail."""
    picture = Image.fromarray(frame)
    line = max(1, max(picture.size) // 60)
    corners = (box.left, box.top, box.left + box.width - 1, box.top + box.height - 1)
    ImageDraw.Draw(picture).rectangle(corners, outline=_BOX, width=line)
    return np.asarray(picture)


def heat_overlay(frame: NDArray[np.uint8], heat: NDArray[np.floating], *, opacity: float = 0.55) -> NDArray[np.uint8]:
    """Lays a map over a frame: dark blue is 0, red is 1; the frame shows through in grey.

    Args:
        frame: uint8 (H, W, 3).
        heat: (H, W) in 0..1.
        opacity: Opacity of the map.
    """
    place = np.clip(heat, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(place.astype(np.int64), len(_HEAT) - 2)
    share = (place - low)[..., None]
    colours = _HEAT[low] * (1 - share) + _HEAT[low + 1] * share
    grey = frame.mean(axis=2, keepdims=True)
    return (grey * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Writes a PNG; its folder is made.

    Raises:
        ConfigError: If the suffix is not .png.
        StvidError: If it cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ConfigError(f"{target}: pictures are written as .png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda file: picture.save(file, format="PNG"))
    except OSError as error:
        raise StvidError(f"{target}: cannot be written ({error.strerror or error}); choose another place") from error
    return target
