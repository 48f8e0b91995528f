"""``stvid models`` lists the models."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stvid.commands.common import parse, parser_for

if TYPE_CHECKING:
    from rich.console import Console

    from stvid.models.registry import ModelInfo

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """List the models."""
    parser = parser_for("models", "List the models: parameters, multiply-adds of one view, and published protocol.")
    parser.add_argument(
        "pattern",
        type=str,
        nargs="?",
        default="*",
        help="Names to show, of stvid and of the video models of other libraries, such as 'uniformer_*'; with a slash, "
        "of other libraries only, such as 'pytorchvideo/*'.",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = parse(parser, argv)

    from stvid.zoo import model_info

    found = _find(options.pattern)
    if not any(found.values()):
        model_info(options.pattern)  # raises, and knows what is near
    groups = {library: [model_info(name) for name in names] for library, names in found.items() if names}
    if options.json:
        print(json.dumps([_record(library, info) for library, infos in groups.items() for info in infos], indent=2))
        return 0

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for library, infos in groups.items():
        if library != "stvid":
            console.print(f"\n{library}{_missing(library)}", markup=False, highlight=False)
        _print_table(console, infos)
    if options.pattern == "*":
        console.print(
            "\nImage models, inflated to video: see stvid models 'timm/*' and 'torchvision/*'", highlight=False
        )
    return 0


def _find(pattern: str) -> dict[str, list[str]]:
    """Returns the names that match, by library; image models of other libraries only if the pattern has a slash."""
    from stvid.models.libraries import library_models, video_libraries
    from stvid.zoo import LIBRARIES, list_models

    if "/" in pattern:
        names = list_models(pattern)
        return {library: [name for name in names if name.startswith(f"{library}/")] for library in LIBRARIES}
    videos = {
        library: [f"{library}/{name}" for name in fnmatch.filter(library_models(library), pattern)]
        for library in video_libraries()
    }
    return {"stvid": list_models(pattern), **videos}


def _missing(library: str) -> str:
    if importlib.util.find_spec(library) is not None:
        return ""
    return f" (not installed: pip install 'stvid[{library}]')"


def _record(library: str, info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "library": library,
        "installed": not _missing(library),
        "params_millions": info.params,
        "gflops": info.gflops,
        "protocol": info.protocol.to_dict(),
        "paper": info.paper,
    }


def _print_table(console: Console, infos: Sequence[ModelInfo]) -> None:
    from rich.table import Table

    columns = ["model", "params M", "GFLOPs", "frames", "size", "views", "paper"]
    if max(len(info.name) for info in infos) > console.width - 60:
        columns.remove("paper")  # no room
    table = Table(box=None, pad_edge=False)
    for column in columns:
        right = column in ("params M", "GFLOPs", "frames", "size")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "paper")
    for info in infos:
        frames = f"{info.protocol.frames}" + (f"x{info.protocol.stride}" if info.protocol.sampling == "dense" else "")
        cells = [
            info.name,
            "" if info.params is None else f"{info.params:g}",
            "" if info.gflops is None else f"{info.gflops:g}",
            frames,
            str(info.protocol.crop),
            info.protocol.views,
            info.paper,
        ]
        table.add_row(*cells[: len(columns)])
    console.print(table)
