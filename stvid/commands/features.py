"""``stvid features``."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from stvid.commands.common import Precision, add_checkpoint_options, load, parse, parser_for, split_config_options
from stvid.errors import ConfigError

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Write clip features of many videos, with their seconds."""
    parser = parser_for(
        "features",
        "Write what the classifier sees of each clip, a file a video: of the protocol's test clips, or of a window "
        "that slides over the video. An interrupted run goes on where it stopped when it is started again.",
    )
    add_checkpoint_options(parser)
    parser.add_argument("--data", type=str, required=True, help="Videos: a CSV, a JSON, or a folder per class.")
    parser.add_argument("--out", type=str, default="features", help="Folder for the files.")
    parser.add_argument("--format", type=Literal["npz", "parquet"], default="npz", help="Of the files.")
    parser.add_argument("--window", type=str | None, help="Slide a window: its length, as 2s, 500ms or 1min.")
    parser.add_argument("--stride", type=str | None, help="From one window to the next; default a whole window.")
    parser.add_argument("--batch_size", type=int, default=8, help="Clips in one forward pass.")
    parser.add_argument(
        "--workers", type=int | None, help="Decoding processes of a device; default one a core, 8 at most."
    )
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, ... (Lightning's).")
    parser.add_argument("--devices", type=str, default="auto", help="How many devices share the videos.")
    parser.add_argument("--precision", type=Precision, default="32-true", help="Arithmetic of the model.")
    parser.add_argument(
        "--backend",
        type=Literal["av", "decord", "torchcodec", "frames"] | None,
        help="Decoder; default the one that the model was trained with.",
    )
    own, dotted = split_config_options(argv)
    options = parse(parser, own)

    from stvid.engine.features import extract_features
    from stvid.evaluation.timeline import parse_seconds
    from stvid.runs import default_workers, is_first_rank, read_split

    window = None if options.window is None else parse_seconds(options.window, name="--window")
    stride = None if options.stride is None else parse_seconds(options.stride, name="--stride")
    if window is None and stride is not None:
        raise ConfigError("--stride: belongs to --window, which is missing")
    model, config = load(options, dotted)
    given = {option.partition("=")[0] for option in dotted}
    other = {"test": options.data}  # the list of the run may have had another format and root
    other |= {key: value for key, value in (("format", "auto"), ("root", None)) if f"--data.{key}" not in given}
    videos = read_split(dataclasses.replace(config, data=dataclasses.replace(config.data, **other)), "test")
    with _progress(len(videos)) as advance:
        report = extract_features(
            model,
            videos,
            options.out,
            format=options.format,
            window=window,
            stride=stride,
            views=options.views,
            batch_size=options.batch_size,
            workers=default_workers(options.workers),
            backend=options.backend or config.data.backend,
            accelerator=options.accelerator,
            devices=options.devices,
            precision=options.precision,
            progress=advance,
        )
    if not is_first_rank():
        return 0
    for path, reason in report.failed:
        print(f"stvid: error: {path}: {reason}", file=sys.stderr)
    print(
        f"{report.written} videos written, {report.present} were there, {len(report.failed)} failed; features of "
        f"{model.num_features} numbers in {report.folder}"
    )
    return 1 if report.failed else 0


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task("videos", total=total)
        yield lambda count: bar.advance(row, count)
