"""``stvid demo`` serves a web page on which a video can be dropped or recorded, and two models compared."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from stvid.errors import ConfigError

if TYPE_CHECKING:
    from stvid.models.base import VideoModel

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Serve a local web page that classifies a dropped or recorded video, by one model or two."""
    parser = parser_for(
        "demo",
        "Serve a local web page on which a video can be dropped or recorded, to see its classes over time and the "
        "frames that count, by one model or two side by side; Ctrl-C ends it. The page offers the checkpoints that are "
        "named here, and all published weights (stvid models --pretrained).",
    )
    add_checkpoint_options(parser, several=True)
    parser.add_argument("--window", type=str, default="2s", help="Length of a window, as 2s, 500ms or 1min.")
    parser.add_argument("--window_stride", type=str, default="0.5s", help="Time from one window to the next.")
    parser.add_argument("--topk", type=int, default=5, help="Classes shown.")
    parser.add_argument("--loaded", type=int, default=2, help="Models that stay in memory at the same time.")
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
    from stvid.look.demo_models import ModelShelf, published_weights, short_names
    from stvid.look.demo_page import build_page, is_loopback, launch_page

    window = parse_seconds(options.window, name="--window")
    stride = parse_seconds(options.window_stride, name="--window_stride")
    if options.loaded < 1:
        raise ConfigError(f"--loaded: {options.loaded} is not a positive number of models")
    names = short_names(options.checkpoint)
    loaders = {
        name: functools.partial(_load, options, source, dotted)
        for name, source in zip(names, options.checkpoint, strict=True)
    }
    shelf = ModelShelf(
        loaders,
        published=published_weights(),
        device=pick_device(options.device),
        limit=options.loaded,
        downloads=is_loopback(options.host),  # others must not fill this machine's disk
    )
    # What cannot be loaded is said before the page is there. The first one is loaded last, so that it stays in memory.
    for name in reversed(names):
        say_unnamed(shelf.get(name))
    page = build_page(
        shelf, window=window, stride=stride, topk=options.topk, title="stvid", precision=options.precision
    )
    launch_page(page, host=options.host, port=options.port, max_upload_mb=options.max_upload)
    return 0


def _load(options: Any, source: str, dotted: Sequence[str]) -> VideoModel:
    """Loads one of the checkpoints, with the options of the command."""
    own = options.clone()
    own.checkpoint = source
    return load(own, dotted)[0]
