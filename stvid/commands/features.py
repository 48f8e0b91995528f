"""``stvid features`` writes clip features of many videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stvid.commands.common import (
    CSV_HELP,
    add_backend_option,
    add_checkpoint_options,
    add_precision_option,
    load,
    parse,
    parser_for,
    pick_device,
    split_config_options,
    with_test_videos,
)
from stvid.commands.sharing import add_engine_options, check_engine_options, check_rank, given_part, given_rank
from stvid.console import printable, progress_bar
from stvid.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.evaluation.ranks import Team

__all__ = ["run"]


def _parser() -> ArgumentParser:
    parser = parser_for(
        "features",
        "Write what the classifier sees of each clip, a file a video: of the protocol's test clips, or of a window "
        "that slides over the video. An interrupted run goes on where it stopped when it is started again.",
    )
    add_checkpoint_options(parser)
    parser.add_argument("--data", type=str, required=True, help="Videos: a CSV, a JSON, or a folder per class.")
    parser.add_argument("--out", type=str, default="features", help="Folder for the files.")
    parser.add_argument("--format", type=Literal["npz", "parquet"], default="npz", help="Format of the files.")
    parser.add_argument("--window", type=str | None, help="Slide a window: its length, as 2s, 500ms or 1min.")
    parser.add_argument(
        "--window_stride", type=str | None, help="Time from one window to the next; default a whole window."
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Clips in one forward pass.")
    parser.add_argument(
        "--workers", type=int | None, help="Decoding processes of a device; default one for each core, 8 at most."
    )
    parser.add_argument(
        "--device", type=str | None, help="cpu, cuda (all GPUs), cuda:1, ...; default the GPUs if there are any."
    )
    parser.add_argument(
        "--devices",
        type=str,
        default="auto",
        help="How many devices share the videos. Over machines, start the command with torchrun or srun.",
    )
    parser.add_argument(
        "--shard",
        type=str | None,
        help="Do one part of the videos, i/n: 1/4 to 4/4 are all of four; slurm takes the place of this process in its "
        "SLURM array. Afterwards the same command without --shard tries again what failed, and writes index.csv.",
    )
    add_engine_options(parser)
    add_precision_option(parser)
    add_backend_option(parser)
    parser.add_argument("--csv_formulas", action="store_true", help=CSV_HELP)
    return parser


def run(argv: Sequence[str]) -> int:
    """Write clip features of many videos, with their seconds."""
    own, dotted = split_config_options(argv)
    rank = given_rank(own)
    if rank is None:
        return _run(own, dotted, None)
    from stvid.evaluation.ranks import together

    with together(rank) as team:  # the processes meet first, so that one of them speaks for all
        return _run(own, dotted, team)


def _run(own: Sequence[str], dotted: Sequence[str], team: Team | None) -> int:
    options = parse(_parser(), own)
    check_engine_options(options)
    if team is not None:
        check_rank(options, team.rank)

    from stvid.engine.features import extract_features
    from stvid.evaluation.timeline import parse_seconds
    from stvid.runs import default_workers, is_first_rank, read_split

    window, stride = (
        None if text is None else parse_seconds(text, name=name)
        for text, name in ((options.window, "--window"), (options.window_stride, "--window_stride"))
    )
    if window is None and stride is not None:
        raise ConfigError("--window_stride: belongs to --window, which is missing")
    part = given_part(options)
    accelerator, devices = _for_lightning(options.device, "auto" if team is not None else options.devices)
    model, config = load(options, dotted)
    videos = read_split(with_test_videos(config, options.data, dotted), "test", whole=True)
    own_part = part if team is None else team.rank.part
    count = len(videos) if own_part is None else len(own_part.of(range(len(videos))))
    with progress_bar("videos", count) as bar:
        report = extract_features(
            model,
            videos,
            options.out,
            format=options.format,
            window=window,
            stride=stride,
            views=options.views,
            batch_size=options.batch_size,
            workers=(options.workers or 0) if options.engine == "ray" else default_workers(options.workers),
            backend=options.backend or config.data.backend,
            accelerator=accelerator,
            devices=devices,
            precision=options.precision,
            progress=bar.advance,
            csv_formulas=options.csv_formulas,
            part=part,
            engine=options.engine,
            ray_address=options.ray_address,
            team=team,
        )
    if not is_first_rank():
        return 0
    for path, reason in report.failed:
        print(printable(f"stvid: error: {path}: {reason}"), file=sys.stderr)
    if part is not None:
        print(f"shard {part}: ", end="")
    print(
        f"{report.written} videos written, {report.present} were there, {len(report.failed)} failed; features of "
        f"{model.head_features} numbers in {printable(str(report.folder))}"
    )
    return 1 if report.failed and part is None else 0


def _for_lightning(device: str | None, devices: str) -> tuple[str, str]:
    """Returns the accelerator and the devices, as Lightning names them, that ``--device`` and ``--devices`` ask for."""
    if device in (None, "auto"):
        return "auto", devices
    kind, _, number = pick_device("cuda" if device == "gpu" else device).partition(":")
    if number and devices != "auto":
        raise ConfigError(f"--devices {devices}: leave it out; --device {device} names the only one")
    return "gpu" if kind == "cuda" else kind, f"{number}," if number else devices
