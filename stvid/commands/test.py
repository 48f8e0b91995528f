"""``stvid test``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stvid.commands.common import add_model_options, load, parse, parser_for, pick_device, split_config_options
from stvid.errors import ConfigError

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Measure a model on labelled videos with multi-view evaluation."""
    parser = parser_for(
        "test",
        "Measure a model on labelled videos: each is decoded once, all its views are averaged. Keys of the config can "
        "be given too (--protocol.stride 2, --data.test videos.csv); what differs from the checkpoint is printed.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--data", type=str | None, help="Videos; default the run's data.test, else its data.val. motion: the demo set."
    )
    parser.add_argument(
        "--temporal",
        type=Literal["normal", "frozen", "shuffled", "reversed"],
        default="normal",
        help="What is done to the order of each clip's frames: does the model use time?",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Clips in one forward pass.")
    parser.add_argument("--workers", type=int | None, help="Decoding processes; default one a core, 8 at most.")
    parser.add_argument(
        "--output", type=str | None, help="Folder for result.json and logits.npz; default that of the run."
    )
    parser.add_argument("--json", action="store_true", help="Print result.json instead of the summary.")
    own, dotted = split_config_options(argv)
    options = parse(parser, own)

    from stvid.engine.runs import default_test_output, default_workers, read_data, read_split
    from stvid.evaluation.evaluate import evaluate

    model, config = load(options, dotted)
    given = {option.partition("=")[0] for option in dotted}
    if options.data is not None:
        other = {"test": options.data}  # the list of the run may have had another format and root
        other |= {key: value for key, value in (("format", "auto"), ("root", None)) if f"--data.{key}" not in given}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **other))
    names = model.default_protocol.class_names
    held_out = None
    if config.data.test is None and config.data.val is None:
        if not config.data.val_fraction:
            raise ConfigError("--data is missing: the checkpoint's run names no validation videos")
        _, held_out = read_data(config)  # the same videos that the training held out
    videos = held_out if held_out is not None else read_split(config, "test", class_names=names or None)
    if not names:
        if len(videos.class_names) != model.num_classes:
            raise ConfigError(
                f"the checkpoint has {model.num_classes} logits without names, the videos have "
                f"{len(videos.class_names)} classes; give the names in the order of the logits with --class_names FILE"
            )
        print("the checkpoint names no classes: its logits are taken in the order of the sorted names", file=sys.stderr)
        model.default_protocol = model.default_protocol.replace(class_names=videos.class_names)
    result = evaluate(
        model,
        videos,
        batch_size=options.batch_size,
        workers=default_workers(options.workers),
        device=pick_device(options.device),
        precision=options.precision,
        backend=options.backend or config.data.backend,
        temporal=options.temporal,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )
    output = Path(options.output) if options.output else default_test_output(options.checkpoint, options.temporal)
    written = result.save(output)
    print(written.read_text(encoding="utf-8") if options.json else result.summary())
    if not options.json:
        print(f"written to {output}")
    return 0
