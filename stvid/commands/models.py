"""``stvid models``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from stvid.commands.common import parse, parser_for
from stvid.errors import UnknownNameError, nearest

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """List the models."""
    parser = parser_for("models", "List the models: parameters, multiply-adds of one view, and published protocol.")
    parser.add_argument("pattern", type=str, nargs="?", default="*", help="Names to show, such as 'uniformer_*'.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = parse(parser, argv)

    from stvid.models.registry import list_models, model_info

    names = list_models(options.pattern)
    if not names:
        raise UnknownNameError(f"{options.pattern}: no such model{nearest(options.pattern, list_models())}")
    infos = [model_info(name) for name in names]
    if options.json:
        records = [
            {
                "name": info.name,
                "params_millions": info.params,
                "gflops": info.gflops,
                "protocol": info.protocol.to_dict(),
                "paper": info.paper,
            }
            for info in infos
        ]
        print(json.dumps(records, indent=2))
        return 0

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("model", "params M", "GFLOPs", "frames", "size", "views", "paper"):
        table.add_column(column, justify="right" if column in ("params M", "GFLOPs", "frames", "size") else "left")
    for info in infos:
        frames = f"{info.protocol.frames}" + (f"x{info.protocol.stride}" if info.protocol.sampling == "dense" else "")
        table.add_row(
            info.name,
            "" if info.params is None else f"{info.params:g}",
            "" if info.gflops is None else f"{info.gflops:g}",
            frames,
            str(info.protocol.crop),
            info.protocol.views,
            info.paper,
        )
    Console().print(table)
    return 0
