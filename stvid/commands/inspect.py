"""``stvid inspect`` draws the clips that training and test see."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import add_backend_option, find_in_shards, load, parse, parser_for, split_config_options
from stvid.console import printable
from stvid.errors import ConfigError, MissingFileError, StvidError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.config import TrainConfig
    from stvid.data.manifest import Manifest
    from stvid.protocol import Protocol

__all__ = ["run"]


def _parser() -> ArgumentParser:
    parser = parser_for(
        "inspect",
        "Draw a contact sheet of the clips of a video that training draws and that a test sees, with the frame, the "
        "second and the crop of each. Keys of the config can be overridden (--protocol.stride 2, --augment.hflip 0). "
        "If the video is among the config's training videos, the draws are those of that very training.",
    )
    parser.add_argument("video", type=str, help="A video file; in tar shards SHARD.tar/NAME.")
    parser.add_argument("--config", type=str | None, help="Config of the training; this or --checkpoint is needed.")
    parser.add_argument("--checkpoint", type=str | None, help="Weights, as stvid predict takes them.")
    parser.add_argument("--model", type=str | None, help="Name of the model, for weights that do not carry it.")
    parser.add_argument(
        "--class_names",
        type=str | None,
        help="Names of the logits for weights that do not carry them: a file, or the name of a packaged list.",
    )
    parser.add_argument("--clips", type=Literal["train", "test", "both"], default="both", help="Whose clips are drawn.")
    parser.add_argument("--draws", type=int, default=2, help="Epochs of training to draw.")
    parser.add_argument("--seed", type=int | None, help="Seed of the training; default that of the config.")
    parser.add_argument("--views", type=str | None, help="Test views; default the protocol's.")
    parser.add_argument(
        "--label", type=str | None, help="Class of the video, which may decide whether it is mirrored (hflip_keep)."
    )
    parser.add_argument("--out", type=str | None, help="The picture; default <name of the video>_clips.png here.")
    parser.add_argument("--columns", type=int, default=9, help="Pictures in one line.")
    add_backend_option(parser, default="the config's")
    return parser


def run(argv: Sequence[str]) -> int:
    """Draw the exact clips of a video that training and test see."""
    own, dotted = split_config_options(argv)
    options = parse(_parser(), own)
    if options.columns < 2:
        raise ConfigError(f"--columns: {options.columns} is not a whole number from 2 up")

    from stvid.look.drawing import save_picture
    from stvid.look.inspection import inspect_video

    config, protocol = _settings(options, dotted)
    training = options.clips != "test"
    manifest, index = _place(options.video, options.label, config, protocol, training=training)
    inspection = inspect_video(
        manifest,
        index,
        protocol,
        split=options.clips,
        augment=config.augment,
        draws=options.draws,
        seed=config.seed if options.seed is None else options.seed,
        repeats=config.data.repeats,
        multilabel=config.task == "multilabel",
        backend=options.backend or config.data.backend,
    )
    inspection = dataclasses.replace(inspection, path=options.video)  # as it was given, not the resolved path
    written = save_picture(
        inspection.sheet(columns=options.columns), options.out or f"{Path(options.video).stem}_clips.png"
    )
    print("\n".join(map(printable, inspection.lines())))
    if training and config.augment.mixup + config.augment.cutmix > 0:
        print("not shown: MixUp and CutMix, which mix the clips of a batch")
    print(printable(f"written to {written}"))
    return 0


def _settings(options: Any, dotted: Sequence[str]) -> tuple[TrainConfig, Protocol]:
    """Returns the config and the protocol of a checkpoint, or those of a config file."""
    from stvid.config import load_config
    from stvid.data.manifest import read_class_names

    if options.checkpoint is not None:
        model, config = load(options, dotted)
        return config, model.default_protocol
    if options.config is None:
        raise ConfigError("--config or --checkpoint is missing: it says how clips are read")
    config = load_config(options.config, dotted)
    names = options.class_names or config.data.class_names
    return config, config.protocol.replace(
        class_names=read_class_names(names) if names is not None else config.protocol.class_names,
        views=options.views or config.protocol.views,
    )


def _place(
    video: str, label: str | None, config: TrainConfig, protocol: Protocol, *, training: bool
) -> tuple[Manifest, int]:
    """Finds the video among the training videos of the config; else makes a list of this video alone, and says so."""
    from stvid.data.manifest import Manifest, VideoEntry
    from stvid.runs import read_data

    sharded = find_in_shards(video)
    wanted = os.path.realpath(video) if sharded is None else sharded[0][sharded[1]].path
    if sharded is None and not os.path.exists(wanted):
        raise MissingFileError(video, "no such file")
    if training:
        reason = "the config names no training videos"
        if config.data.train is not None:
            try:
                manifest, _ = read_data(config)
                for index in range(len(manifest)):
                    if os.path.realpath(manifest[index].path) == os.path.realpath(wanted):
                        return manifest, index
                reason = f"it is not among the training videos of {manifest.source}"
            except StvidError as error:
                reason = f"the training videos cannot be listed ({error})"
        print(printable(f"note: {reason}; the draws are those of a training with this video alone"), file=sys.stderr)
    if sharded is not None:
        return sharded[0].subset([sharded[1]]), 0
    # The rules of mirroring name classes, so these have to exist.
    ruled = {name for pair in config.augment.hflip_pairs for name in pair} | set(config.augment.hflip_keep)
    names = protocol.class_names or tuple(sorted(ruled | ({label} if label else set()))) or ("unknown",)
    entry = VideoEntry(wanted, (label or next((name for name in names if name not in ruled), names[0]),))
    return Manifest.from_entries([entry], class_names=names, source=video), 0
