"""``stvid explain`` draws where a model looks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stvid.commands.common import (
    add_backend_option,
    add_checkpoint_options,
    add_device_option,
    check_classifier,
    find_in_shards,
    load,
    parse,
    parser_for,
    pick_device,
    say_unnamed,
    split_config_options,
)
from stvid.console import printable

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["run"]


def _parser() -> ArgumentParser:
    parser = parser_for(
        "explain",
        "Draw where the model looks in the middle clip of a video: a strip of frames (PNG) and a video (MP4). Grad-CAM "
        "for models with feature maps (CNNs, UniFormer, Video Swin) and inflated image networks, attention rollout for "
        "transformers over tokens.",
    )
    parser.add_argument("files", type=str, nargs="+", help="Video files; in tar shards SHARD.tar/NAME.")
    add_checkpoint_options(parser)
    parser.add_argument(
        "--method",
        type=Literal["auto", "gradcam", "rollout", "grad-rollout"],
        default="auto",
        help="How the map is made: gradcam weights feature maps by their gradients; rollout follows the attention "
        "through the layers, and is the same for all classes; grad-rollout weights it by gradients; auto takes what "
        "the model has.",
    )
    parser.add_argument("--class", dest="class_name", type=str | None, help="Class to explain; default the top one.")
    parser.add_argument("--start", type=float | None, help="Use the video from this second on.")
    parser.add_argument("--end", type=float | None, help="Use the video up to this second.")
    parser.add_argument("--out", type=str, default="explained", help="Folder for the pictures and videos.")
    add_device_option(parser)
    add_backend_option(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Show where in space and time a model looks."""
    own, dotted = split_config_options(argv)
    options = parse(_parser(), own)

    from stvid.errors import VideoError
    from stvid.evaluation.evaluate import inference
    from stvid.look.explanation import explain

    model, config = load(options, dotted)
    check_classifier(model, options.checkpoint)
    say_unnamed(model)
    with inference(model, device=pick_device(options.device), precision="32-true") as place:
        device = place.device
    model.to(device)
    failed = 0
    for file in options.files:
        try:
            content, start, end = _part(file, options.start, options.end)
            found = explain(
                model,
                content,
                method=options.method,
                class_name=options.class_name,
                start=start,
                end=end,
                backend=options.backend or config.data.backend,
            )
            found = dataclasses.replace(found, clip=dataclasses.replace(found.clip, path=file))
        except VideoError as error:
            failed += 1
            print(printable(f"stvid: error: {error}"), file=sys.stderr)
            continue
        picture, video = found.save(options.out)
        strongest = int(found.over_time.argmax())
        line = (
            f"{file}: {found.class_name} {100 * found.probability:.1f}%, {found.method}, strongest at "
            f"{found.clip.seconds[strongest]:.2f} s; written to {picture} and {video}"
        )
        print(printable(line))
    return 1 if failed else 0


def _part(file: str, start: float | None, end: float | None) -> tuple[str | bytes, float | None, float | None]:
    """Returns the name of a file, or the bytes of a video in a shard, and from and to which second it is read."""
    found = find_in_shards(file)
    if found is None:
        return file, start, end
    manifest, index = found
    row = manifest[index]
    return manifest.content(index), row.start if start is None else start, row.end if end is None else end
