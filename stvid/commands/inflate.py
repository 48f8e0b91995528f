"""``stvid inflate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvid.commands.common import parse, parser_for
from stvid.errors import ConfigError, StvidError
from stvid.inflation.options import Init, Padding, Temporal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["run"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")  # that `save_model` writes
SHARED = ("weights", "pretrained", "num_classes", "img_size")  # options with and without --to
GENERIC = ("temporal", "kernel_size", "layers", "padding")  # options that have no meaning with --to


def run(argv: Sequence[str]) -> int:
    """Make a video model of an image model, with proof."""
    options = parse(_parser(), argv)
    source = getattr(options, "from")
    if options.to is None and Path(source).is_file():
        raise ConfigError(
            f"--from {source}: is a file; name what becomes of it (--to i3d_r50), or the network that it is of "
            f"(--from timm:<name> --weights {source})"
        )
    if options.out is not None and Path(options.out).suffix not in SUFFIXES:  # now, not after the proof
        raise ConfigError(f"--out {options.out}: the suffix must be one of {', '.join(SUFFIXES)}")
    inflated = _inflate(source, options)

    from rich.console import Console

    from stvid.checkpoints import save_model

    report = inflated.report
    if options.report is not None:
        from stvid.look.inflation_page import write_inflation_page

        write_inflation_page(report, options.report)
    report.print(Console(width=None if sys.stdout.isatty() else 160), every_tensor=options.all)
    if not report.as_promised:
        raise StvidError(
            f"{source}: the video model does not compute what the image model computes; nothing was written"
        )
    if options.out is not None:
        save_model(inflated.model, options.out)
        print(f"written to {options.out}")
    return 0


def _inflate(source: str, options: Any) -> Any:
    """Returns the model and the report."""
    hyperparameters = options.hyperparameters or {}
    for name in hyperparameters:
        option = "frames" if name == "num_frames" else name
        if name in (*SHARED, "num_frames") or getattr(options, option, None) is not None:
            raise ConfigError(f"--hyperparameters: {name} has an option of its own, --{option}")
    arguments: dict[str, Any] = {name: getattr(options, name) for name in SHARED} | hyperparameters
    if options.init is not None:
        arguments["init"] = options.init
    given = {name: value for name in GENERIC if (value := getattr(options, name)) is not None}
    if options.causal:
        given["causal"] = True
    try:
        if options.to is None:
            from stvid.inflation.inflate import inflate_with_report

            frames = 16 if options.frames is None else options.frames
            return inflate_with_report(source, num_frames=frames, **given, **arguments)
        if given:
            raise ConfigError(f"--{next(iter(given))} has no meaning with --to: {options.to} decides it")
        from stvid.inflation.parents import inflate_parent

        return inflate_parent(source, options.to, num_frames=options.frames, **arguments)
    except TypeError as error:
        if not hyperparameters:  # nothing that the user could change
            raise
        raise ConfigError(f"--hyperparameters: {error} (they are {hyperparameters})") from error


def _parser() -> ArgumentParser:
    """Returns the parser of the command."""
    parser = parser_for(
        "inflate",
        "Make a video model of an image model. Prints what became of every tensor, then feeds an image, repeated over "
        "time, to both and prints the largest difference of the logits: the exit code is 0 only if it is within 1e-5, "
        "or a reason is named why it cannot be.",
    )
    parser.add_argument(
        "--from",
        type=str,
        required=True,
        help="The image model: timm:<name>, torchvision:<name>, or hf-hub:<organisation>/<name> for a repository of "
        "timm's with its weights; with --to also a file of its weights.",
    )
    parser.add_argument(
        "--to",
        type=str | None,
        help="A video model of stvid that descends from it, such as i3d_r50; default the image "
        "model itself, with layers that see other frames.",
    )
    parser.add_argument("--weights", type=str | None, help="File with weights of the image model.")
    parser.add_argument("--pretrained", action="store_true", help="Take the library's published weights.")
    parser.add_argument("--frames", type=int | None, help="Frames of a clip; default 16, with --to the model's own.")
    parser.add_argument("--img_size", type=int | None, help="Side of the input in pixels; default the image model's.")
    parser.add_argument("--num_classes", type=int | None, help="For a new classifier; default the image model's own.")
    parser.add_argument(
        "--temporal",
        type=Temporal | None,
        help="How frames see each other: their mean (TSN), moved channels (TSM), kernels in time (I3D; the default), "
        "attention over time (TimeSformer), or a transformer over the frames' features (VTN).",
    )
    parser.add_argument(
        "--kernel_size", type=int | None, help="Frames that a kernel sees (conv), odd unless --causal; default 3."
    )
    parser.add_argument(
        "--init",
        type=Init | None,
        help="Kernels in time: zeros but in the central frame (the default), or an equal share in every frame.",
    )
    parser.add_argument(
        "--layers", type=str | None, help="Regular expression of the layers that see other frames; default by mode."
    )
    parser.add_argument(
        "--padding",
        type=Padding | None,
        help="Beyond the ends of a clip: its first and last frame (the default), or zeros, as I3D and TSM have it.",
    )
    parser.add_argument(
        "--causal",
        action="store_true",
        help="No frame sees a later one (none, shift, conv), so that stvid predict runs the model over a stream.",
    )
    parser.add_argument(
        "--hyperparameters",
        type=dict[str, Any] | None,
        help='Further arguments of the model, such as \'{"shift_place": "in_place", "drop_path_rate": 0.1}\'.',
    )
    parser.add_argument("--out", type=str | None, help="Where to write the model: .safetensors or .pt.")
    parser.add_argument("--report", type=str | None, help="Where to write the table with pictures, as HTML.")
    parser.add_argument("--all", action="store_true", help="Print a row for each copied tensor too.")
    return parser
