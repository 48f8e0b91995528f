"""The page of an inflation: what became of each tensor, how far each layer is from its 2D twin, and some filters.

It is one file that needs no other. This module prepares plain data; the template ``inflation.html.j2`` makes the page.
"""

from __future__ import annotations

import base64
import io
import math
import os
from typing import Any

import torch
from einops import rearrange, repeat
from PIL import Image

from stvid.errors import StvidError
from stvid.files import write_atomically
from stvid.inflation.report import EXACT, FilterPair, InflationReport
from stvid.look.rendering import render

__all__ = ["inflation_page", "write_inflation_page"]

_DRAWN_FILTERS = 16
_FILTER_PIXELS = 48
_BAR_WIDTH = 500


def write_inflation_page(report: InflationReport, path: str | os.PathLike[str]) -> None:
    """Writes the page of an inflation.

    Args:
        report: The inflation.
        path: File of the page.

    Raises:
        StvidError: If the file cannot be written; an earlier file is left as it was.
    """
    text = inflation_page(report)
    try:
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise StvidError(f"{path}: the report cannot be written ({error.strerror or error})") from error


def inflation_page(report: InflationReport) -> str:
    """Returns what `write_inflation_page` writes."""
    return render(
        "inflation.html.j2",
        title=f"{report.source} → {report.target}",
        kind="good" if report.exact else "fair" if report.as_promised else "bad",
        verdict=report.verdict(),
        counts=report.counts(),
        exact=EXACT,
        bar_width=_BAR_WIDTH,
        exact_place=_bar(EXACT),
        layers=[
            {
                "name": layer.name[-60:],
                "relative": layer.relative,
                "bar": max(_bar(layer.relative), 1),
                "colour": "#3a7" if layer.relative < EXACT else "#d93",
            }
            for layer in report.layers
        ],
        filters=[_filters(pair) for pair in report.filters],
        rules=report.rules,
    )


def _bar(value: float) -> float:
    """Returns the length of a bar on a logarithmic scale from 1e-16 to 1."""
    return _BAR_WIDTH * min(max(1 + math.log10(max(value, 1e-16)) / 16, 0.0), 1.0)


def _filters(pair: FilterPair) -> dict[str, Any]:
    taps = pair.target.shape[2]
    offsets = [tap - (taps - 1) // 2 for tap in range(taps)]
    return {
        "name": pair.name,
        "source_shape": tuple(pair.source.shape),
        "target_shape": tuple(pair.target.shape),
        "labels": ["2D", *(f"t{offset:+d}" if offset else "t" for offset in offsets)],
        "picture": base64.b64encode(_draw_filters(pair)).decode(),
    }


def _draw_filters(pair: FilterPair) -> bytes:
    """Returns the first filters as a PNG: in a column each, on its own scale, the 2D kernel above the taps."""
    source, target = pair.source[:_DRAWN_FILTERS].float().cpu(), pair.target[:_DRAWN_FILTERS].float().cpu()
    if source.shape[1] != 3:  # more channels than colours: their mean
        source, target = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    tiles = torch.cat((source.unsqueeze(2), target), dim=2)  # (filters, colours, 1 + taps, height, width)
    tiles = 0.5 + tiles / (2 * tiles.abs().amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-12))
    scale = max(1, _FILTER_PIXELS // max(tiles.shape[-2:]))
    tiles = repeat(tiles, "filters colours taps h w -> filters colours taps (h a) (w b)", a=scale, b=scale)
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=1.0)
    rows = rearrange(tiles, "filters colours taps h w -> (taps h) (filters w) colours")
    pixels = (rows * 255).round().to(torch.uint8).expand(-1, -1, 3).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
