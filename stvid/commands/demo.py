"""``stvid demo`` serves a web page on which a video can be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stvid.commands.common import (
    add_checkpoint_options,
    add_device_option,
    add_precision_option,
    load,
    parse,
    parser_for,
    pick_device,
    say_unnamed,
    split_config_options,
)

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Serve a local web page on which a video can be dropped."""
    parser = parser_for(
        "demo", "Serve a local web page on which a video can be dropped, to see its classes over time; Ctrl-C ends it."
    )
    add_checkpoint_options(parser)
    parser.add_argument("--window", type=str, default="2s", help="Length of a window, as 2s, 500ms or 1min.")
    parser.add_argument("--window_stride", type=str, default="0.5s", help="Time from one window to the next.")
    parser.add_argument("--topk", type=int, default=5, help="Classes shown.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; 0.0.0.0 lets others in.")
    parser.add_argument("--port", type=int | None, help="Default the first free one from 7860 on.")
    parser.add_argument(
        "--max_upload",
        type=int,
        default=1000,
        help="Megabytes of a video that the page takes; larger ones are refused.",
    )
    add_device_option(parser)
    add_precision_option(parser)
    own, dotted = split_config_options(argv)
    options = parse(parser, own)

    from stvid.evaluation.timeline import parse_seconds
    from stvid.look.demo_page import build_page, launch_page

    window = parse_seconds(options.window, name="--window")
    stride = parse_seconds(options.window_stride, name="--window_stride")
    model, _ = load(options, dotted)
    say_unnamed(model)
    page = build_page(
        model,
        window=window,
        stride=stride,
        topk=options.topk,
        title=f"{model.recipe.get('name', 'stvid')}: {Path(options.checkpoint).name}",
        device=pick_device(options.device),
        precision=options.precision,
    )
    launch_page(page, host=options.host, port=options.port, max_upload_mb=options.max_upload)
    return 0
