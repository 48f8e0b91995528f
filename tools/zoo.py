"""The table of models in README.md, made from the models themselves.

    python tools/zoo.py           # writes it between the comments zoo:begin and zoo:end
    python tools/zoo.py --check   # changes nothing; exit code 1 if the table is not that of the code

Parameters and multiply-adds (the literature's "GFLOPs") are counted on torch's meta device, at the frames and size of
each model's published protocol; what the papers print, their sources, the published formats and the weights come from
the registry.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import stvid
from stvid.files import write_atomically
from stvid.models.registry import ModelInfo, model_info, weights_of

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- zoo:begin -->", "<!-- zoo:end -->"
HEADER = (
    "| model | params (M) | GFLOPs | clip | published params, GFLOPs | source | loads | weights, top-1 (views) |",
    "|---|---:|---:|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Counted:
    """The size of a model: parameters in millions, and multiply-adds in 1e9 of one clip."""

    params: float
    gflops: float


def count(name: str) -> Counted:
    """Counts a model at its published protocol's frames and size, without computing."""
    protocol = model_info(name).protocol
    with torch.device("meta"):
        model = stvid.create_model(name).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, protocol.frames, protocol.crop, protocol.crop))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Counted(params / 1e6, counter.get_total_flops() / 2e9)


def source_link(paper: str) -> str:
    """Turns ``Authors year, arXiv:number`` into a link."""
    match = re.fullmatch(r"(.+), arXiv:(\d+\.\d+)", paper)
    return f"[{match[1]}](https://arxiv.org/abs/{match[2]})" if match else paper or "this project"


def published_weights(name: str) -> str:
    """Returns the default weights of a model with their accuracy at its views, and how many others there are."""
    published = weights_of(name)
    if not published:
        return "–"
    first = published[0]
    text = f"`{first.tag}`" + ("" if first.top1 is None else f" {first.top1:.1f} ({first.views or 'unknown'})")
    return text + (f", {len(published) - 1} more" if len(published) > 1 else "")


def make_row(info: ModelInfo, counted: Counted, note_number: int | None) -> str:
    """Returns the line of one model."""
    protocol = info.protocol
    published = [f"{value:g}" if value is not None else "–" for value in (info.params, info.gflops)]
    cells = [
        f"`{info.name}`",
        f"{counted.params:.2f}",
        f"{counted.gflops:.1f}",
        f"{protocol.frames} x {protocol.crop}²",
        ", ".join(published) + ("" if note_number is None else f" [{note_number}]"),
        source_link(info.paper),
        ", ".join(info.formats) or "stvid",
        published_weights(info.name),
    ]
    return f"| {' | '.join(cells)} |"


def make_table() -> str:
    """Returns the whole section: the table and the notes on where publication and code disagree."""
    infos = [model_info(name) for name in stvid.list_models()]
    notes = list(dict.fromkeys(info.note for info in infos if info.note))
    rows = [make_row(info, count(info.name), notes.index(info.note) + 1 if info.note else None) for info in infos]
    lines = [*HEADER, *rows, ""]
    lines += [f"[{number}] {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, start=1)]
    return "\n".join(line + ("  " if line.startswith("[") else "") for line in lines).rstrip()


def replace_section(text: str, section: str) -> str:
    """Returns a text with another section between the two comments.

    Raises:
        ValueError: If the comments are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"it needs one {BEGIN} and after it one {END}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{section}\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="only say whether the table is up to date")
    parser.add_argument("--readme", type=Path, default=README, help="default: %(default)s")
    options = parser.parse_args(argv)
    try:
        old = options.readme.read_text(encoding="utf-8")
        replace_section(old, "")  # before minutes of counting
        new = replace_section(old, make_table())
    except (OSError, ValueError) as error:
        print(f"{options.readme}: {error}", file=sys.stderr)
        return 2
    if new == old:
        print(f"{options.readme}: up to date")
        return 0
    if options.check:
        print(f"{options.readme}: the table of models is stale; run: python tools/zoo.py", file=sys.stderr)
        return 1
    write_atomically(options.readme, lambda path: path.write_text(new, encoding="utf-8"))
    print(f"{options.readme}: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
