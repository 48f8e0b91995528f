"""``stvid predict`` classifies videos, as a whole or over time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvid.commands.common import (
    CSV_HELP,
    add_model_options,
    add_text_option,
    check_classifier,
    load,
    optimized,
    parse,
    parser_for,
    say_unnamed,
    split_config_options,
)
from stvid.commands.preannotate import (
    Sharing,
    add_exchange_options,
    check_exchange_options,
    expand_lists,
    predicted,
    run_exchange,
)
from stvid.commands.sharing import (
    add_engine_options,
    add_sharing_options,
    check_engine_options,
    given_part,
    place_on_device,
    run_shared,
)
from stvid.console import printable
from stvid.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.data.video_table import StoredVideo
    from stvid.evaluation.predict import Prediction
    from stvid.evaluation.ranks import Team
    from stvid.evaluation.stream import StreamUpdate
    from stvid.evaluation.timeline import TimelineWindow
    from stvid.models.base import VideoModel
    from stvid.protocol import Protocol

__all__ = ["run"]


def _parser() -> ArgumentParser:
    parser = parser_for(
        "predict",
        "Classify video files. The protocol (frames, size, views, class names) comes from the checkpoint; its keys can "
        "be overridden (--protocol.stride 2), which is printed. With --window, a window slides over a file of any "
        "length, a camera (/dev/video0), a URL (rtsp://..., http://...), or standard input (-), and each is classified "
        "as if it had been cut out. A model that sees no later frame (MoViNet with causal=True) runs over the whole "
        "source as a stream, frame by frame in bounded memory: a line for each second says what it has seen so far and "
        "how long a frame took.",
    )
    parser.add_argument(
        "files",
        type=str,
        nargs="+",
        help="Video files, or lists of whole videos (CSV, JSON, ...); with --window or as a stream also cameras, URLs "
        "and -.",
    )
    add_model_options(parser)
    add_text_option(parser)
    parser.add_argument("--topk", type=int, default=5, help="Classes shown for each file or window.")
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print JSON instead of tables; a line for each window or second of a stream.",
    )
    parser.add_argument(
        "--stream",
        type=bool | None,
        help="Whether to run as a stream; without --window the default for models that can. "
        "With false the protocol's clips are classified.",
    )
    parser.add_argument(
        "--window", type=str | None, help="Classify over time: length of a window, as 2s, 500ms or 1min."
    )
    parser.add_argument(
        "--window_stride", type=str | None, help="Time from one window to the next, as 500ms; default half a window."
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="Folder for timeline.csv, .json and .svg; one in it for each of several files. With --to the file to "
        "write (fiftyone, cvat: the folder); default standard output.",
    )
    parser.add_argument("--csv_formulas", action="store_true", help=CSV_HELP)
    add_exchange_options(parser)
    parser.add_argument(
        "--workers",
        type=int | None,
        help="Decoding processes of a device, for many videos; default none: this process decodes, too.",
    )
    add_sharing_options(parser, what="the file of --out, which is that of one process")
    add_engine_options(parser)
    return parser


def run(argv: Sequence[str], *, merged: list[Path] | None = None) -> int:
    """Classify video files, as a whole or over time.

    Args:
        argv: The arguments of the command.
        merged: Joins the parts of a run with ``--shard`` instead of predicting; gets the files that are not needed
            afterwards.
    """
    if merged is None:
        return run_shared("predict", argv, lambda own: parse(_parser(), own), _run)
    own, dotted = split_config_options(argv)
    return _run(parse(_parser(), own), dotted, None, merged=merged)


def _run(options: Any, dotted: Sequence[str], team: Team | None, *, merged: list[Path] | None = None) -> int:
    check_exchange_options(options)
    check_engine_options(options)
    options.files = expand_lists(options.files, files_for=_files_for(options))
    joins, on_ray = merged is not None, merged is None and options.engine == "ray"
    sharing = Sharing(given_part(options), team, joins, on_ray, spent=[] if merged is None else merged)
    _check_options(options, sharing)
    if not joins and not on_ray:  # joining needs no device, such as that of the parts; Ray has its own
        place_on_device(options, team)
    model, config = load(options, dotted)
    if model.takes_texts and not model.num_classes:
        raise ConfigError(f"{options.checkpoint}: its classes are texts: give them, --classes 'opening a door,running'")
    check_classifier(model, options.checkpoint)
    say_unnamed(model)
    if options.stream and not model.streams:
        raise ConfigError(f"--stream: {type(model).__name__} sees later frames, too, so it takes clips or a --window")
    sharing = dataclasses.replace(sharing, weights=model)
    model = optimized(model, options)
    backend = options.backend or config.data.backend
    if options.to is not None:
        code = run_exchange(model, options, backend=backend, sharing=sharing)
        for journal in sharing.spent if on_ray else ():  # those of parts are deleted by stvid prep merge
            journal.unlink(missing_ok=True)
        return code
    if options.window is not None:
        return _run_timelines(model, options)
    if model.streams and options.stream is not False and all(isinstance(file, str) for file in options.files):
        if sharing.shares:
            raise ConfigError(f"{sharing}: shares out whole videos, not streams; give --stream false for clips")
        if options.workers is not None:
            raise ConfigError("--workers: decode clips; this model runs as a stream, unless --stream false is given")
        return _run_streams(model, options)
    _refuse_live(options.files)

    predictions = predicted(model, options, topk=options.topk, backend=backend, sharing=sharing)
    if predictions is None:
        return 0
    if options.json:
        print(json.dumps([dataclasses.asdict(prediction) for prediction in predictions], indent=2, allow_nan=False))
    else:
        _print_predictions(predictions, model.default_protocol)
    failed = [prediction for prediction in predictions if prediction.error is not None]
    for prediction in failed:
        print(printable(f"stvid: error: {prediction.path}: {prediction.error}"), file=sys.stderr)
    return 1 if failed else 0


def _check_options(options: Any, sharing: Sharing) -> None:
    """Raises ConfigError if options of a window, or of parts, stand without what they belong to."""
    if options.window is None:
        for name in ("window_stride", "out"):
            if getattr(options, name) is not None and (name != "out" or options.to is None):
                raise ConfigError(f"--{name}: belongs to --window, which is missing")
    elif options.stream:
        raise ConfigError("--stream: one pass over the whole source, which has no --window")
    if options.workers is not None and (options.window is not None or options.stream):
        raise ConfigError("--workers: decode clips; a --window and a --stream are read by this process alone")
    if sharing.shares and options.window is not None:
        raise ConfigError(f"{sharing}: shares out whole videos; with --window give each process a list of its own")
    if sharing.journals and (options.to is None or options.out is None):
        raise ConfigError(
            f"{sharing}: needs --to and --out, such as --to csv --out predictions.csv: what is done is kept beside "
            "that file"
        )


def _files_for(options: Any) -> str | None:
    """Returns the option for which videos have to be files; None if there is none."""
    if options.to is not None:
        return f"--to {options.to}"
    return "--window" if options.window is not None else "--stream" if options.stream else None


def _refuse_live(files: Sequence[str | StoredVideo]) -> None:
    from stvid.video.remote import is_remote_file
    from stvid.video.streaming import is_live

    for file in files:
        if isinstance(file, str) and is_live(file) and not is_remote_file(file):
            raise ConfigError(f"{file}: a stream, which is classified over time: give the length of a --window")


def _print_predictions(predictions: Sequence[Prediction], protocol: Protocol) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for prediction in predictions:
        if prediction.error is not None:
            continue
        console.print(Text(printable(prediction.path), style="italic"), soft_wrap=True)
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(justify="right")
        table.add_column()
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            table.add_row(f"{100 * probability:.1f}%", Text(printable(name)))
        console.print(table)
    console.print(Text(printable(protocol.describe()), style="dim"))


# --- over time --------------------------------------------------------------------------------------------------------


def _run_timelines(model: VideoModel, options: Any) -> int:
    from stvid.evaluation.timeline import parse_seconds, timeline

    window = parse_seconds(options.window, name="--window")
    given = options.window_stride
    stride = window / 2 if given is None else parse_seconds(given, name="--window_stride")
    if options.backend not in (None, "av"):
        raise ConfigError(f"--backend: {options.backend} reads no streams; --window uses av")
    views = options.views or "1x1"  # the protocol's views are spread over a whole video
    folders = _folders(options.files, options.out)
    failed = 0
    for source, folder in zip(options.files, folders, strict=True):
        header = {
            "source": source,
            "window": window,
            "stride": stride,
            "views": views,
            "protocol": model.default_protocol.to_dict(),
        }
        windows = timeline(
            model,
            source,
            window=window,
            stride=stride,
            topk=options.topk,
            views=views,
            device=options.device,
            precision=options.precision,
        )
        try:
            _follow(windows, source, folder, header, options)
        except VideoError as error:
            failed += 1
            print(printable(f"stvid: error: {error}"), file=sys.stderr)
        if folder is not None and folder.is_dir():
            print(printable(f"written to {folder}"), file=sys.stderr if options.json else sys.stdout)
    return 1 if failed else 0


def _run_streams(model: VideoModel, options: Any) -> int:
    from stvid.evaluation.stream import follow_stream

    if options.backend not in (None, "av"):
        raise ConfigError(f"--backend: {options.backend} reads no streams; av does, and --stream false takes clips")
    failed = 0
    for source in options.files:
        updates = follow_stream(
            model,
            source,
            topk=options.topk,
            views=options.views,
            device=options.device,
            precision=options.precision,
        )
        if not options.json:
            print(printable(source), flush=True)
        try:
            for update in updates:
                if options.json:
                    print(json.dumps({"source": source, **update.to_dict()}, allow_nan=False), flush=True)
                else:
                    _print_update(update)
        except VideoError as error:
            failed += 1
            print(printable(f"stvid: error: {error}"), file=sys.stderr)
    return 1 if failed else 0


def _print_update(update: StreamUpdate) -> None:
    shown = len(update.classes) if update.last else 3
    best = "   ".join(
        f"{100 * probability:5.1f}% {name}"
        for name, probability in zip(update.classes[:shown], update.probabilities[:shown], strict=True)
    )
    latency = f"{1000 * update.latency:7.1f} ms a frame"
    print(printable(f"  {update.seconds:8.2f} s {latency}  {update.error or best}"), flush=True)
    if update.last:
        rate = f"{1 / update.latency:.0f} frames/s"
        print(
            f"  {update.frames} frames as one stream: {1000 * update.latency:.1f} ms a frame in the median ({rate}), "
            f"at most {1000 * update.slowest:.1f} ms; decoding not counted",
            flush=True,
        )


def _folders(sources: Sequence[str], out: str | None) -> list[Path | None]:
    """Returns where the files of each source go: `out` itself for one, folders in it for several."""
    if out is None:
        return [None] * len(sources)
    if len(sources) == 1:
        return [Path(out)]
    folders = [Path(out) / ("stdin" if source == "-" else Path(source).stem) for source in sources]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"--out: two sources would both be written to {folder}; run them one by one")
    return [*folders]


def _follow(
    windows: Iterator[TimelineWindow],
    source: str,
    folder: Path | None,
    header: dict[str, Any],
    options: Any,
) -> None:
    """Prints windows as they come, and writes them."""
    from stvid.look.timeline_output import TimelineFiles

    with contextlib.ExitStack() as stack:
        files = None
        if folder is not None:
            names = header["protocol"]["class_names"]
            shown = {"topk": options.topk, "formulas": options.csv_formulas}
            files = stack.enter_context(TimelineFiles(folder, header, class_names=names, **shown))
        if not options.json:
            print(printable(source), flush=True)
        for window in windows:
            if files is not None:
                files.add(window)
            if options.json:
                print(json.dumps({"source": source, **window.to_dict()}, allow_nan=False), flush=True)
            else:
                best = "   ".join(
                    f"{100 * probability:5.1f}% {name}"
                    for name, probability in zip(window.classes[:3], window.probabilities[:3], strict=True)
                )
                print(printable(f"  {window.start:8.2f} to {window.end:8.2f} s  {window.error or best}"), flush=True)
