"""``stvid test``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import (
    add_model_options,
    load,
    optimized,
    parse,
    parser_for,
    pick_device,
    split_config_options,
)
from stvid.errors import ConfigError

if TYPE_CHECKING:
    from stvid.data.manifest import Manifest
    from stvid.protocol import Protocol

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
    parser.add_argument(
        "--also",
        type=str,
        default="auto",
        help="Further views to report from the same pass, such as 1x1,4x3; auto: the usual smaller ones that are part "
        "of --views or add at most a quarter to its cost; none.",
    )
    parser.add_argument(
        "--average",
        type=Literal["probabilities", "logits"],
        default="probabilities",
        help="What the score of a video averages over its views.",
    )
    parser.add_argument(
        "--probe",
        type=Literal["time"] | None,
        help="time: measure reversed, shuffled and frozen frames too, on the same decoded clips.",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Clips in one forward pass.")
    parser.add_argument("--workers", type=int | None, help="Decoding processes; default one a core, 8 at most.")
    parser.add_argument(
        "--output",
        type=str | None,
        help="Folder for report.html, result.json and logits.npz; default that of the run, or one in it if that holds "
        "the result of other videos or views.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the result of another evaluation.")
    parser.add_argument("--json", action="store_true", help="Print result.json instead of the summary.")
    own, dotted = split_config_options(argv)
    options = parse(parser, own)

    from stvid.data.dataset import EvalDataset
    from stvid.evaluation.cost import measure_cost
    from stvid.evaluation.evaluate import PROBES, evaluate, evaluation_digest
    from stvid.look.report import find_examples, write_report
    from stvid.runs import default_workers, read_data, read_split

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
    protocol = model.default_protocol
    also = _further_views(options.also, protocol)
    measured: dict[str, Any] = {
        "also": also,
        "task": model.task,
        "temporal": options.temporal,
        "probe": PROBES if options.probe else (),
        "seed": config.seed,
        "average": options.average,
    }
    if videos.has_labels and tuple(videos.class_names) != protocol.class_names:
        videos = videos.with_class_names(protocol.class_names)
    output = _output_folder(options, protocol.views, videos, evaluation_digest(videos, protocol, **measured))
    backend = options.backend or config.data.backend
    device = pick_device(options.device)
    try:
        result = evaluate(
            optimized(model, options),
            videos,
            batch_size=options.batch_size,
            workers=default_workers(options.workers),
            device=device,
            precision=options.precision,
            backend=backend,
            progress=sys.stderr.isatty(),
            resume_from=output,
            **measured,
        )
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on where it was (from {output})", file=sys.stderr, flush=True)
        raise
    result.cost |= measure_cost(model, protocol, device=device)
    written = result.save(output)
    seen = EvalDataset(videos, protocol, views=protocol.views, backend=backend, multilabel=result.task == "multilabel")
    examples = find_examples(result, seen, seed=config.seed)
    write_report(result, output, examples=examples, title=f"{model.recipe['name']} on {Path(videos.source).name}")
    print(written.read_text(encoding="utf-8") if options.json else result.summary())
    if not options.json:
        print(f"written to {output} (report.html, result.json, logits.npz)")
    return 0


def _further_views(text: str, protocol: Protocol) -> tuple[str, ...]:
    from stvid.data.views import ViewPlan, affordable_views

    if text == "auto":
        return affordable_views(protocol.views, protocol.sampling)
    if text == "none":
        return ()
    return tuple(dict.fromkeys(str(ViewPlan.parse(views)) for views in text.split(",")))


def _output_folder(options: Any, views: str, videos: Manifest, evaluation: str) -> Path:
    """Where the result goes; never over that of another evaluation, unless told so."""
    from stvid.runs import default_test_output, held_evaluation

    if options.output is None:
        return default_test_output(
            options.checkpoint, evaluation=evaluation, views=views, temporal=options.temporal, data=videos.source
        )
    folder = Path(options.output)
    if not options.overwrite and held_evaluation(folder) not in (None, evaluation):
        raise ConfigError(
            f"--output {folder}: holds the result of another evaluation (other videos, views or options); choose "
            "another folder, or replace it with --overwrite"
        )
    return folder
