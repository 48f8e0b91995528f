"""``stvid predict``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stvid.commands.common import add_model_options, load, parse, parser_for, pick_device, split_config_options

if TYPE_CHECKING:
    from stvid.evaluation.predict import Prediction
    from stvid.protocol import Protocol

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Classify video files."""
    parser = parser_for(
        "predict",
        "Classify video files. The protocol (frames, size, views, class names) comes from the checkpoint; its keys can "
        "be overridden (--protocol.stride 2), which is printed.",
    )
    parser.add_argument("files", type=str, nargs="+", help="Video files.")
    add_model_options(parser)
    parser.add_argument("--topk", type=int, default=5, help="Classes shown for each file.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    own, dotted = split_config_options(argv)
    options = parse(parser, own)

    from stvid.evaluation.predict import predict

    model, config = load(options, dotted)
    predictions = predict(
        model,
        options.files,
        topk=options.topk,
        device=pick_device(options.device),
        precision=options.precision,
        backend=options.backend or config.data.backend,
    )
    if options.json:
        print(json.dumps([dataclasses.asdict(prediction) for prediction in predictions], indent=2, allow_nan=False))
    else:
        _print_predictions(predictions, model.default_protocol)
    failed = [prediction for prediction in predictions if prediction.error is not None]
    for prediction in failed:
        print(f"stvid: error: {prediction.path}: {prediction.error}", file=sys.stderr)
    return 1 if failed else 0


def _print_predictions(predictions: Sequence[Prediction], protocol: Protocol) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for prediction in predictions:
        if prediction.error is not None:
            continue
        console.print(Text(prediction.path, style="italic"), soft_wrap=True)
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(justify="right")
        table.add_column()
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            table.add_row(f"{100 * probability:.1f}%", Text(name))
        console.print(table)
    console.print(Text(protocol.describe(), style="dim"))
