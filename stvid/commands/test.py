"""``stvid test`` measures a model on labelled videos."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.commands.common import (
    add_model_options,
    add_text_option,
    check_classifier,
    load,
    optimized,
    parse,
    parser_for,
    split_config_options,
    with_test_videos,
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
from stvid.errors import ConfigError
from stvid.files import claimed

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.data.manifest import Manifest
    from stvid.data.parts import Part
    from stvid.evaluation.batch_parts import BatchWork
    from stvid.evaluation.evaluate import Evaluation
    from stvid.evaluation.parts import PartReport
    from stvid.evaluation.ranks import Team
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
    parser.add_argument(
        "--workers", type=int | None, help="Decoding processes of a device; default one for each core, 8 at most."
    )
    add_sharing_options(parser, what="the result, which is that of one process")
    add_engine_options(parser)
    parser.add_argument(
        "--out",
        type=str | None,
        help="Folder for report.html, result.json and logits.npz; default that of the run, or one in it if that holds "
        "the result of other videos or views.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the result of another evaluation.")
    parser.add_argument("--json", action="store_true", help="Print result.json instead of the summary.")
    return parser


def run(argv: Sequence[str], *, merged: list[Path] | None = None) -> int:
    """Measure a model on labelled videos with multi-view evaluation.

    Args:
        argv: The arguments of the command.
        merged: Joins the parts of a run with ``--shard`` instead of measuring; gets the files that are not needed
            afterwards.
    """
    if merged is None:
        return run_shared("test", argv, lambda own: parse(_parser(), own), _run)
    own, dotted = split_config_options(argv)
    return _run(parse(_parser(), own), dotted, None, merged=merged, command=["stvid", "test", *argv])


@dataclass(frozen=True)
class _Test:
    """A test that is about to begin.

    Attributes:
        options: Those of the command.
        model: The model as it was loaded.
        evaluation: What is measured.
        folder: Where the result goes.
        seed: That of the config.
    """

    options: Any
    model: VideoModel
    evaluation: Evaluation
    folder: Path
    seed: int

    @property
    def work(self) -> BatchWork:
        """The evaluation as work that can be shared out."""
        from stvid.evaluation.parts import work_of

        return work_of(self.evaluation, self.folder, weights=self.model, optimize=self.options.optimize)


def _run(
    options: Any,
    dotted: Sequence[str],
    team: Team | None,
    *,
    merged: list[Path] | None = None,
    command: Sequence[str] = (),
) -> int:
    check_engine_options(options)
    part = given_part(options)
    wanted = options.device
    if merged is None:
        place_on_device(options, team)
    else:
        options.device = None  # joining needs no device, such as that of the parts
    test = _prepared(options, dotted, runs=merged is None, wanted=wanted)
    if part is not None:
        return _do_part(test, part)
    if team is not None and not team.first:
        return _do_share(test, team)
    with claimed(test.folder / "result.json"):
        result, journals = _joined(test) if merged is not None else _measured(test, team)
        if command:
            from stvid.evaluation.result import typed_command

            result.command = typed_command(command)
        _complete(test, result)
        written = result.save(test.folder)
        _write_report(test, result)
    if merged is None:
        for journal in journals:
            journal.unlink(missing_ok=True)
    else:
        merged += journals
    _report_to_services(options.checkpoint, test.folder)
    if options.json:
        print(written.read_text(encoding="utf-8"))
    else:
        print(printable(result.summary(), keep="\n"))
        print(printable(f"written to {test.folder} (report.html, result.json, logits.npz)"))
    return 0


def _prepared(options: Any, dotted: Sequence[str], *, runs: bool, wanted: str | None) -> _Test:
    """Loads the model and the list of videos.

    Args:
        options: Those of the command.
        dotted: Those of the config.
        runs: Whether the model is to run here.
        wanted: The device that the user named.
    """
    from stvid.evaluation.evaluate import PROBES, model_task, prepare
    from stvid.runs import default_workers, read_test_videos

    model, config = load(options, dotted)
    if options.data is not None:
        config = with_test_videos(config, options.data, dotted)
    as_texts = model.takes_texts and options.classes is None and options.class_names is None
    names = () if as_texts else model.default_protocol.class_names
    videos = read_test_videos(config, class_names=names or None)
    if as_texts:
        _take_texts_of(model, videos)
    check_classifier(model, options.checkpoint)
    videos = _with_classes_of(model, videos)
    protocol = model.default_protocol
    options.backend = options.backend or config.data.backend
    evaluation = prepare(
        optimized(model, options) if runs else model,
        videos,
        protocol=protocol,
        also=_further_views("none" if model.joins_clips and options.also == "auto" else options.also, protocol),
        task=model_task(model, None),
        temporal=options.frame_order,
        probe=PROBES if options.probe else (),
        seed=config.seed,
        average=options.average,
        batch_size=options.batch_size,
        workers=default_workers(options.workers),
        device=wanted if options.engine == "ray" else options.device,
        precision=options.precision,
        backend=options.backend,
        progress=sys.stderr.isatty(),
    )
    folder = _folder(options, protocol.views, videos, evaluation.plan.digest(videos))
    return _Test(options, model, evaluation, folder, config.seed)


@contextlib.contextmanager
def _continued(folder: Path) -> Iterator[None]:
    """Says how to go on if Ctrl-C is pressed."""
    try:
        yield
    except KeyboardInterrupt:
        print(printable(f"stopped; the same command goes on where it was (from {folder})"), file=sys.stderr, flush=True)
        raise


def _part_report(test: _Test, part: Part) -> PartReport:
    from stvid.evaluation.parts import evaluate_on_ray, evaluate_part

    if test.options.engine == "local":
        return evaluate_part(test.evaluation, test.work, part)
    address, workers = test.options.ray_address, test.options.workers
    return evaluate_on_ray(test.evaluation, test.work, part, address=address, workers=workers)


def _do_part(test: _Test, part: Part) -> int:
    """Measures the videos of one part; returns the exit code."""
    with _continued(test.folder):
        report = _part_report(test, part)
    print(
        printable(
            f"shard {part}: {report.videos} of {len(test.evaluation.videos)} videos done, {report.failed} of them "
            f"failed; {report.journal}; after all shards: stvid prep merge test, with the same options"
        )
    )
    return 0


def _do_share(test: _Test, team: Team) -> int:
    """Measures the videos of a process that is not the first of its team; returns the exit code."""
    from stvid.evaluation.parts import evaluate_part

    team.meet()
    evaluate_part(test.evaluation, test.work, team.rank.part)
    team.finish()
    return 0


def _measured(test: _Test, team: Team | None) -> tuple[EvaluationResult, list[Path]]:
    """Measures the videos; returns the result, and the files that are not needed once it is written."""
    from stvid.data.parts import Part
    from stvid.evaluation.evaluate import run_evaluation
    from stvid.evaluation.parts import evaluate_part

    with _continued(test.folder):
        if test.options.engine == "ray":
            test.work.fold(1)
            _part_report(test, Part(1, 1))
            return _joined(test)
        if team is None:
            return run_evaluation(test.evaluation, resume_from=test.folder), []
        work = test.work
        work.fold(team.rank.count)
        team.meet()
        evaluate_part(test.evaluation, work, team.rank.part, title=f"videos of 1 of {team.rank.count} devices")
        team.finish()
    return _joined(test)


def _joined(test: _Test) -> tuple[EvaluationResult, list[Path]]:
    """Joins the parts; returns the result, and the files that are not needed once it is written."""
    from stvid.evaluation.parts import join_evaluation

    result, joined = join_evaluation(test.evaluation, test.work)
    for note in joined.notes:
        print(printable(note), file=sys.stderr)
    return result, joined.journals


def _complete(test: _Test, result: EvaluationResult) -> None:
    """Adds what is known of the model to a result: its cost, and its published numbers."""
    from stvid.evaluation.cost import measure_cost
    from stvid.evaluation.published import compare_with_published

    model = test.model
    result.cost |= measure_cost(model, model.default_protocol, device=test.options.device)
    if model.weights is not None:
        result.published = compare_with_published(model.weights, result)


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


def _write_report(test: _Test, result: EvaluationResult) -> None:
    from stvid.data.dataset import EvalDataset
    from stvid.look.report import find_examples, write_report

    model, videos, backend = test.model, test.evaluation.videos, test.options.backend
    protocol = model.default_protocol
    seen = EvalDataset(videos, protocol, views=protocol.views, backend=backend, multilabel=result.task == "multilabel")
    examples = find_examples(result, seen, seed=test.seed)
    title = f"{model.recipe['name']} on {Path(videos.source).name}"
    write_report(result, test.folder, examples=examples, title=title)


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
