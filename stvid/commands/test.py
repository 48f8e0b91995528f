"""``stvid test`` measures a model on labelled videos."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import (
    add_model_options,
    add_text_option,
    load,
    optimized,
    parse,
    parser_for,
    pick_device,
    split_config_options,
    with_test_videos,
)
from stvid.console import printable
from stvid.errors import ConfigError
from stvid.files import claimed

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.data.manifest import Manifest
    from stvid.evaluation.record import EvaluationResult
    from stvid.models.base import VideoModel
    from stvid.protocol import Protocol

__all__ = ["run"]


def _parser() -> ArgumentParser:
    parser = parser_for(
        "test",
        "Measure a model on labelled videos: each is decoded once, all its views are averaged. Keys of the config can "
        "be given too (--protocol.stride 2, --data.test videos.csv); what differs from the checkpoint is printed.",
    )
    add_model_options(parser)
    add_text_option(parser)
    parser.add_argument(
        "--data", type=str | None, help="Videos; default the run's data.test, else its data.val. motion: the demo set."
    )
    parser.add_argument(
        "--frame_order",
        type=Literal["normal", "frozen", "shuffled", "reversed"],
        default="normal",
        help="Order of the frames of each clip (frozen: one frame repeated): does the model use time?",
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
        help="The numbers of the views that are averaged to the score of a video.",
    )
    parser.add_argument(
        "--probe",
        type=Literal["time"] | None,
        help="time: measure reversed, shuffled and frozen frames too, on the same decoded clips.",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="Clips in one forward pass.")
    parser.add_argument("--workers", type=int | None, help="Decoding processes; default one for each core, 8 at most.")
    parser.add_argument(
        "--out",
        type=str | None,
        help="Folder for report.html, result.json and logits.npz; default that of the run, or one in it if that holds "
        "the result of other videos or views.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the result of another evaluation.")
    parser.add_argument("--json", action="store_true", help="Print result.json instead of the summary.")
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure a model on labelled videos with multi-view evaluation."""
    own, dotted = split_config_options(argv)
    options = parse(_parser(), own)

    from stvid.evaluation.evaluate import PROBES, EvaluationPlan
    from stvid.runs import read_test_videos

    model, config = load(options, dotted)
    if options.data is not None:
        config = with_test_videos(config, options.data, dotted)
    as_texts = model.takes_texts and options.classes is None and options.class_names is None
    names = () if as_texts else model.default_protocol.class_names
    videos = read_test_videos(config, class_names=names or None)
    if as_texts:
        _take_texts_of(model, videos)
    videos = _with_classes_of(model, videos)
    protocol = model.default_protocol
    measured: dict[str, Any] = {
        "also": _further_views("none" if model.joins_clips and options.also == "auto" else options.also, protocol),
        "task": model.task,
        "temporal": options.frame_order,
        "probe": PROBES if options.probe else (),
        "seed": config.seed,
        "average": options.average,
    }
    folder = _folder(options, protocol.views, videos, EvaluationPlan(protocol, **measured).digest(videos))
    options.backend = options.backend or config.data.backend
    with claimed(folder / "result.json"):
        result = _measure(model, videos, measured, options, folder)
        written = result.save(folder)
        _write_report(model, result, videos, folder, backend=options.backend, seed=config.seed)
    _report_to_services(options.checkpoint, folder)
    if options.json:
        print(written.read_text(encoding="utf-8"))
    else:
        print(printable(result.summary(), keep="\n"))
        print(printable(f"written to {folder} (report.html, result.json, logits.npz)"))
    return 0


def _take_texts_of(model: VideoModel, videos: Manifest) -> None:
    """Makes the labels of the videos the classes of a model that takes texts, unless it has them all."""
    from stvid.data.labels import are_numbers

    texts = videos.class_names
    if not texts or are_numbers(texts) or set(texts) <= set(model.default_protocol.class_names):
        return
    model.set_classes(texts)
    print(f"the classes are the {len(texts)} labels of the videos, as texts", file=sys.stderr)


def _with_classes_of(model: VideoModel, videos: Manifest) -> Manifest:
    """Returns the videos with the classes of the model; a model without names gets those of the videos.

    Labels that are numbers are the places of its logits.
    """
    from stvid.data.labels import are_numbers

    if not model.default_protocol.class_names and are_numbers(videos.class_names):
        numbers = tuple(str(number) for number in range(model.num_classes))
        print("the checkpoint names no classes: the labels are numbers, the places of its logits", file=sys.stderr)
        model.default_protocol = model.default_protocol.replace(class_names=numbers)
    if not model.default_protocol.class_names:
        if len(videos.class_names) != model.num_classes:
            raise ConfigError(
                f"the checkpoint has {model.num_classes} logits without names, the videos have "
                f"{len(videos.class_names)} classes; give the names in the order of the logits with --class_names (a "
                "file, or the name of a packaged list)"
            )
        print("the checkpoint names no classes: its logits are taken in the order of the sorted names", file=sys.stderr)
        model.default_protocol = model.default_protocol.replace(class_names=videos.class_names)
    names = model.default_protocol.class_names
    if videos.has_labels and tuple(videos.class_names) != names:
        videos = videos.with_class_names(names)
    if videos.labels_are == "numbers":
        print("the labels are numbers: they are taken as the places of the class names", file=sys.stderr)
    return videos


def _measure(
    model: VideoModel, videos: Manifest, measured: dict[str, Any], options: Any, folder: Path
) -> EvaluationResult:
    from stvid.evaluation.cost import measure_cost
    from stvid.evaluation.evaluate import evaluate
    from stvid.evaluation.published import compare_with_published
    from stvid.runs import default_workers

    device = pick_device(options.device)
    try:
        result = evaluate(
            optimized(model, options),
            videos,
            batch_size=options.batch_size,
            workers=default_workers(options.workers),
            device=device,
            precision=options.precision,
            backend=options.backend,
            progress=sys.stderr.isatty(),
            resume_from=folder,
            **measured,
        )
    except KeyboardInterrupt:
        print(printable(f"stopped; the same command goes on where it was (from {folder})"), file=sys.stderr, flush=True)
        raise
    result.cost |= measure_cost(model, model.default_protocol, device=device)
    if model.weights is not None:
        result.published = compare_with_published(model.weights, result)
    return result


def _write_report(
    model: VideoModel, result: EvaluationResult, videos: Manifest, folder: Path, *, backend: str, seed: int
) -> None:
    from stvid.data.dataset import EvalDataset
    from stvid.look.report import find_examples, write_report

    protocol = model.default_protocol
    seen = EvalDataset(videos, protocol, views=protocol.views, backend=backend, multilabel=result.task == "multilabel")
    examples = find_examples(result, seen, seed=seed)
    write_report(result, folder, examples=examples, title=f"{model.recipe['name']} on {Path(videos.source).name}")


def _report_to_services(checkpoint: str, folder: Path) -> None:
    """Sends the report to the services that the training of these weights reported to, if there are any."""
    from stvid.runs import SERVICES_FILE, newest_checkpoint, run_folder

    if not os.path.lexists(checkpoint):  # a name
        return
    run = run_folder(newest_checkpoint(checkpoint, prefer="best.ckpt"))
    if run is not None and (run / SERVICES_FILE).is_file():
        from stvid.engine.loggers import attach_report

        attach_report(folder, run)


def _further_views(text: str, protocol: Protocol) -> tuple[str, ...]:
    from stvid.data.views import ViewPlan, affordable_views

    if text == "auto":
        return affordable_views(protocol.views, protocol.sampling)
    if text == "none":
        return ()
    return tuple(dict.fromkeys(str(ViewPlan.parse(views)) for views in text.split(",")))


def _folder(options: Any, views: str, videos: Manifest, evaluation: str) -> Path:
    """Where the result goes; never over that of another evaluation, unless told so."""
    from stvid.runs import default_test_output, held_evaluation

    if options.out is None:
        return default_test_output(
            options.checkpoint, evaluation=evaluation, views=views, temporal=options.frame_order, data=videos.source
        )
    folder = Path(options.out)
    if not options.overwrite and held_evaluation(folder) not in (None, evaluation):
        raise ConfigError(
            f"--out {folder}: holds the result of another evaluation (other videos, views or options); choose "
            "another folder, or replace it with --overwrite"
        )
    return folder
