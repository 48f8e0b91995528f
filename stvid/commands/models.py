"""``stvid models`` lists the models."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stvid.commands.common import parse, parser_for
from stvid.errors import UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from stvid.models.registry import ModelInfo
    from stvid.models.weights import Weights

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """List the models."""
    parser = parser_for("models", "List the models: parameters, multiply-adds of one view, and published protocol.")
    parser.add_argument(
        "pattern",
        type=str,
        nargs="?",
        default="*",
        help="Names to show, such as 'uniformer_*'; with a slash, of the image models of other libraries, which are "
        "inflated, such as 'timm/resnet*'.",
    )
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="List the published weights instead: MODEL.TAG, with their accuracy, protocol, licence and source. The "
        "pattern means models or weights, such as 'uniformer_*' or '*.ssv2*'.",
    )
    parser.add_argument("--get", type=str | None, help="Fetch published weights, MODEL.TAG, and print where they lie.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    options = parse(parser, argv)
    if options["get"] is not None:  # as an attribute, get is a method of the namespace
        return _get(options["get"])
    if options.pretrained:
        return _list_weights(options.pattern, as_json=options.json)

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


def _get(name: str) -> int:
    """Fetches weights by name, and prints the file or folder."""
    from stvid.models.registry import find_weights
    from stvid.sources import fetch_weights
    from stvid.zoo import model_info

    weights = find_weights(name)
    if weights is None:
        model_info(name)  # raises for a name that does not exist
        raise UnknownNameError(
            f"--get {name}: names a model, not weights; list them with: stvid models --pretrained {name}"
        )
    print(fetch_weights(weights))
    return 0


def _list_weights(pattern: str, *, as_json: bool) -> int:
    """Prints a table of published weights, or JSON."""
    from stvid.models.registry import find_weights
    from stvid.zoo import list_models, model_info

    found = [weights for name in list_models(pattern, pretrained=True) if (weights := find_weights(name)) is not None]
    if not found:
        if "." not in pattern and not any(sign in pattern for sign in "*?["):
            model_info(pattern)  # raises for a name that does not exist
        raise UnknownNameError(f"{pattern}: no published weights match (see: stvid models --pretrained)")
    if as_json:
        print(json.dumps([_weights_record(weights) for weights in found], indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, pad_edge=False)
    for column in ("weights", "top-1 %", "views", "frames", "size", "GFLOPs", "MB", "licence", "published by"):
        right = column in ("top-1 %", "frames", "size", "GFLOPs", "MB")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "published by")
    for weights in found:
        table.add_row(*_weights_cells(weights))
    console.print(table)
    console.print("\nGet one: stvid models --get NAME; use it: --checkpoint NAME, --init NAME", highlight=False)
    return 0


def _weights_record(weights: Weights) -> dict[str, Any]:
    protocol = weights.protocol.to_dict()
    del protocol["class_names"]
    return {
        "name": weights.name,
        "url": weights.url,
        "sha256": weights.sha256,
        "bytes": weights.bytes,
        "num_classes": weights.num_classes,
        "classes": weights.classes,
        "task": weights.task,
        "top1": weights.top1,
        "top5": weights.top5,
        "views": weights.views,
        "gflops": _gflops(weights),
        "protocol": protocol,
        "options": dict(weights.options),
        "pretrained_on": weights.pretrained_on,
        "licence": weights.licence,
        "source": weights.source,
        "note": weights.note,
    }


def _gflops(weights: Weights) -> float | None:
    """Returns the multiply-adds of one view; those of the model if it was measured at the same frames and size."""
    from stvid.models.registry import model_info

    info = model_info(weights.model)
    same = (weights.protocol.frames, weights.protocol.crop) == (info.protocol.frames, info.protocol.crop)
    return info.gflops if weights.gflops is None and same else weights.gflops


def _weights_cells(weights: Weights) -> list[str]:
    from stvid.models.registry import model_info

    protocol, params, gflops = weights.protocol, model_info(weights.model).params, _gflops(weights)
    size = "" if params is None else f"~{4 * params:.0f}"
    return [
        weights.name,
        "" if weights.top1 is None else f"{weights.top1:.1f}",
        weights.views or ("?" if weights.top1 is not None else ""),
        f"{protocol.frames}" + (f"x{protocol.stride}" if protocol.sampling == "dense" else ""),
        str(protocol.crop),
        "" if gflops is None else f"{gflops:.4g}",
        size if weights.bytes is None else f"{weights.bytes / 1e6:.0f}",
        weights.licence.partition(" (")[0],
        re.split(r"[@(:]", weights.source)[0].strip(),
    ]


def _find(pattern: str) -> dict[str, list[str]]:
    """Returns the names that match, by library; those of other libraries only if the pattern has a slash."""
    from stvid.zoo import LIBRARIES, list_models

    if "/" in pattern:
        names = list_models(pattern)
        return {library: [name for name in names if name.startswith(f"{library}/")] for library in LIBRARIES}
    return {"stvid": list_models(pattern)}


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
