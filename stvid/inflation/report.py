"""What inflation did to each tensor, and the proof that the video model is still the image model on a still video."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stvid.errors import StvidError
from stvid.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["EXACT", "FilterPair", "InflationReport", "LayerDifference", "TensorRule"]

EXACT = 1e-5  # the largest relative difference that still counts as equal
COPIED = "copied"  # the rule of tensors that did not change; printed as one row
DRAWN_FILTERS = 16
FILTER_PIXELS = 48


@dataclass(frozen=True)
class TensorRule:
    """What became of one tensor.

    Attributes:
        source: Name in the 2D network, several joined with ``+``; empty if the tensor has no origin there.
        target: Name in the video model; empty if the tensor was dropped.
        rule: In words: ``copied``, ``repeated 3 times in time, divided by 3``, ``dropped: a count of batches``.
        source_shape: Shape in the 2D network, several joined with ``+``; empty like `source`.
        target_shape: Shape in the video model; empty for a scalar, and if `target` is.
    """

    source: str
    target: str
    rule: str
    source_shape: str
    target_shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerDifference:
    """How far one layer of the video model is from its 2D twin on a still video.

    Attributes:
        name: Of the layer in the 2D network.
        relative: Largest difference over the largest magnitude of the 2D layer's output.
    """

    name: str
    relative: float


@dataclass(frozen=True)
class FilterPair:
    """A kernel before and after, for the picture.

    Attributes:
        name: Of the layer.
        source: (out, in, height, width).
        target: (out, in, time, height, width).
    """

    name: str
    source: Tensor
    target: Tensor


@dataclass
class InflationReport:
    """The rule of every tensor, and the proof on a still video.

    Attributes:
        source: What the 2D network is called.
        target: What the video model is called.
        rules: A row per tensor of either side.
        difference: Largest difference between the 2D network on an image and the video model on that image repeated
            over time, relative to the difference between the 2D network's outputs for two images; None if it was not
            measured.
        compared: What was compared.
        reasons: Why the two cannot be equal on a still video, each as one sentence; empty if they must be.
        aligned: The difference with a reason taken away; None if none can be.
        alignment: What was done for `aligned`.
        layers: Differences of single layers in the order of the forward pass, for the HTML report.
        filters: Kernels for the HTML report.
    """

    source: str
    target: str
    rules: list[TensorRule]
    difference: float | None = None
    compared: str = "logits"
    reasons: list[str] = field(default_factory=list)
    aligned: float | None = None
    alignment: str = ""
    layers: list[LayerDifference] = field(default_factory=list)
    filters: list[FilterPair] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether the proof was made and found the two equal."""
        return self.difference is not None and self.difference < EXACT

    @property
    def as_promised(self) -> bool:
        """Whether the two are equal, or a reason is named why they cannot be. Without a proof nothing is promised."""
        return self.exact or self.difference is None or bool(self.reasons)

    def verdict(self) -> str:
        """Returns the outcome of the proof in one line."""
        if self.difference is None:
            return "still video: not compared"
        line = f"still video: largest difference of the {self.compared} {self.difference:.1e} (relative)"
        if self.exact:
            return f"{line}: exact"
        if not self.reasons:
            return f"{line}: NOT EQUAL, although it should be"
        line += f": approximate, since {'; '.join(self.reasons)}"
        return f"{line}; with {self.alignment}: {self.aligned:.1e}" if self.aligned is not None else line

    def counts(self) -> dict[str, int]:
        """Returns the number of tensors of each rule, the most frequent first; they add up to all tensors."""
        return dict(Counter(rule.rule for rule in self.rules).most_common())

    def print(self, console: Console | None = None, *, every_tensor: bool = False) -> None:
        """Prints the table and the verdict.

        Args:
            console: Where to; None takes standard output.
            every_tensor: One row for each copied tensor too, instead of one for all of them.
        """
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console() if console is None else console
        table = Table(title=f"{self.source} -> {self.target}", title_justify="left")
        for name in ("tensor", "rule", "2D", "3D"):
            table.add_column(name, overflow="fold")
        rows = self.rules if every_tensor else [rule for rule in self.rules if rule.rule != COPIED]
        for rule in rows:
            cells = (_both_names(rule), rule.rule, rule.source_shape, _shape(rule))
            table.add_row(*(Text(cell) for cell in cells))
        copied = len(self.rules) - len(rows)
        if copied:
            table.add_row(Text(f"{copied} tensors"), Text(COPIED), Text(""), Text(""))
        table.add_section()
        table.add_row(Text(f"{len(self.rules)} tensors"), Text("all of both networks"), Text(""), Text(""))
        console.print(table)
        console.print(Text(self.verdict()), soft_wrap=True)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as one file that needs no other: all tensors, the layers' differences, the filters."""
        text = self.to_html()
        try:
            write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise StvidError(f"{path}: the report cannot be written ({error.strerror or error})") from error

    def to_html(self) -> str:
        """Returns what `save_html` writes."""
        title = html.escape(f"{self.source} → {self.target}")
        kind = "good" if self.exact else "fair" if self.as_promised else "bad"
        parts = [f"<h1>{title}</h1>", f'<p class="verdict {kind}">{html.escape(self.verdict())}</p>']
        counted = [_row("td", rule, str(count)) for rule, count in self.counts().items()]
        parts += ["<h2>What became of the tensors</h2>", _table(_row("th", "rule", "tensors"), counted)]
        if self.layers:
            about = f"Of each block's output on a still video, relative; the dashed line is {EXACT:g}."
            parts += ["<h2>Differences of layers</h2>", f"<p>{about}</p>", _draw_layers(self.layers)]
        if self.filters:
            about = "A column is a filter, on a scale of its own: the 2D kernel, then what it is in each frame."
            parts += ["<h2>Filters</h2>", f"<p>{about}</p>", *(_draw_filters(pair) for pair in self.filters)]
        rows = [_row("td", rule.source, rule.target, rule.rule, rule.source_shape, _shape(rule)) for rule in self.rules]
        head = _row("th", "2D", "3D", "rule", "shape 2D", "shape 3D")
        parts += [f"<h2>All {len(self.rules)} tensors</h2>", _table(head, rows)]
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style>" + "\n".join(parts) + "</html>\n"
        )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222;background:#fff}"
    "h1{font-size:1.5em;overflow-wrap:anywhere}h2{font-size:1.15em;margin-top:2em}"
    ".verdict{padding:.5em .8em;border-left:5px solid;background:#f4f4f4}"
    ".good{border-color:#3a7}.fair{border-color:#d93}.bad{border-color:#c33}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px}"
    "td,th{text-align:left;vertical-align:top;padding:2px 16px 2px 0;border-bottom:1px solid #ddd}"
    "td:nth-child(3){min-width:16em}td:nth-last-child(-n+2){white-space:nowrap}"
    "svg{width:100%;max-width:44em}svg text{font:11px system-ui,sans-serif;fill:#222}"
    "figure{margin:0 0 1.5em}figure div{display:flex;gap:8px}"
    "figure ol{list-style:none;margin:0;padding:0;display:flex;flex-direction:column;justify-content:space-around;"
    "font-size:12px;white-space:nowrap}"
    "img{image-rendering:pixelated;min-width:0;max-width:100%}figcaption{font-size:13px;overflow-wrap:anywhere}"
)


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _both_names(rule: TensorRule) -> str:
    names = [name for name in (rule.source, rule.target) if name]
    return names[0] if len(set(names)) == 1 else " -> ".join(names)


def _shape(rule: TensorRule) -> str:
    return str(rule.target_shape) if rule.target else ""


def _row(cell: str, *texts: str) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in texts) + "</tr>"


def _draw_layers(layers: Sequence[LayerDifference]) -> str:
    """Returns bars on a logarithmic scale from 1e-16 to 1, in SVG; the line is `EXACT`."""
    height, width = 30, 500

    def place(value: float) -> float:
        return width * min(max(1 + math.log10(max(value, 1e-16)) / 16, 0.0), 1.0)

    parts = []
    for index, layer in enumerate(layers):
        top = index * height
        colour = "#3a7" if layer.relative < EXACT else "#d93"
        parts.append(
            f'<text x="0" y="{top + 12}">{html.escape(layer.name[-60:])}</text>'
            f'<text x="{width}" y="{top + 12}" text-anchor="end">{layer.relative:.1e}</text>'
            f'<rect x="0" y="{top + 16}" width="{max(place(layer.relative), 1):.1f}" height="8" fill="{colour}"/>'
        )
    bottom, line = len(layers) * height, place(EXACT)
    parts.append(f'<line x1="{line:.1f}" x2="{line:.1f}" y1="0" y2="{bottom}" stroke="#888" stroke-dasharray="4 3"/>')
    return f'<svg viewBox="0 0 {width} {bottom}" role="img" aria-label="differences">{"".join(parts)}</svg>'


def _draw_filters(pair: FilterPair) -> str:
    """Returns the first filters in a column each, as a PNG: 2D kernel and taps, on one scale of grey or RGB."""
    from PIL import Image

    source, target = pair.source[:DRAWN_FILTERS].float().cpu(), pair.target[:DRAWN_FILTERS].float().cpu()
    if source.shape[1] != 3:  # more channels than colours: their mean
        source, target = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    tiles = torch.cat((source.unsqueeze(2), target), dim=2)  # (out, colours, 1 + taps, height, width)
    tiles = 0.5 + tiles / (2 * tiles.abs().amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-12))
    scale = max(1, FILTER_PIXELS // max(tiles.shape[-2:]))
    tiles = tiles.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=1.0)
    rows = tiles.permute(2, 3, 0, 4, 1).flatten(2, 3).flatten(0, 1)  # a column per filter, a row per tap
    pixels = (rows * 255).round().to(torch.uint8).expand(-1, -1, 3).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    shapes = f"{tuple(pair.source.shape)} → {tuple(pair.target.shape)}"
    count = pair.target.shape[2]
    offsets = [index - (count - 1) // 2 for index in range(count)]
    labels = ["2D", *(f"t{offset:+d}" if offset else "t" for offset in offsets)]
    return (
        f"<figure><figcaption>{html.escape(pair.name)}, {shapes}</figcaption>"
        f"<div><ol>{''.join(f'<li>{label}</li>' for label in labels)}</ol>"
        f'<img src="data:image/png;base64,{encoded}" alt="filters of {html.escape(pair.name)}"></div></figure>'
    )
