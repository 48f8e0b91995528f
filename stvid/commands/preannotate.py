"""``stvid predict --to``: predictions as files for the tools that people label with."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stvid.console import printable
from stvid.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from stvid.data.parts import Part
    from stvid.data.video_table import StoredVideo
    from stvid.evaluation.predict import Prediction
    from stvid.evaluation.predicted import ExchangeSettings, Predicted
    from stvid.evaluation.ranks import Team
    from stvid.models.base import VideoModel

__all__ = [
    "Sharing",
    "add_exchange_options",
    "check_exchange_options",
    "expand_lists",
    "predicted",
    "run_exchange",
]

_LISTS = (".csv", ".tsv", ".json", ".xml", ".zip", ".parquet")
_OF_LABEL_STUDIO = ("root", "from_name", "to_name")


def add_exchange_options(parser: ArgumentParser) -> None:
    """Adds the options of ``--to``."""
    parser.add_argument(
        "--to",
        type=Literal["label-studio", "fiftyone", "cvat", "via", "csv", "json"] | None,
        help="Write the predictions for a tool in which people correct them: tasks of Label Studio with the labelling "
        "configuration beside them, a data set of FiftyOne, a folder of CVAT, a project of VIA, or a list of videos "
        "(CSV, JSON) with the predicted classes as labels. With --window they are parts of the videos.",
    )
    parser.add_argument(
        "--root",
        type=str | None,
        help="Label Studio: the folder that it serves files from (LOCAL_FILES_DOCUMENT_ROOT); default the folder of "
        "--out if all videos are below it, else the one that is above all of them.",
    )
    parser.add_argument(
        "--from_name", type=str | None, help="Label Studio: name of the control; default choice, or timeline for parts."
    )
    parser.add_argument("--to_name", type=str | None, help="Label Studio: name of the video tag; default video.")


def check_exchange_options(options: Any) -> None:
    """Raises ConfigError if options of ``--to`` stand without it, or against others."""
    for name in _OF_LABEL_STUDIO:
        if options.to != "label-studio" and getattr(options, name) is not None:
            raise ConfigError(f"--{name}: belongs to --to label-studio")
    if options.to is None:
        return
    if options.json:
        raise ConfigError("--json: prints; with --to give --to json")
    if options.stream:
        raise ConfigError("--stream: says what was seen so far, which is no label; --to takes clips or a --window")
    if options.to in ("fiftyone", "cvat") and options.out is None:
        raise ConfigError(f"--to {options.to}: writes a folder: give its name with --out")


def expand_lists(files: Sequence[str], *, files_for: str | None = None) -> list[str | StoredVideo]:
    """Returns videos with the videos of a list in the place of the list; its notes are printed.

    Args:
        files: Videos and lists.
        files_for: The option because of which videos have to be files; None if they may lie in a data set, too.

    Raises:
        ConfigError: If a list has parts of videos, or its videos are no files although they have to be.
        ManifestError: If a list cannot be read.
    """
    from stvid.data.exchange.hub_files import is_hub_folder

    found: list[str | StoredVideo] = []
    for file in files:
        is_list = file.lower().endswith(_LISTS) and os.path.isfile(file)
        if not (is_list or (os.path.isdir(file) and is_hub_folder(file))):
            found.append(file)
            continue
        from stvid.data.manifest import read_manifest
        from stvid.data.video_table import StoredVideo

        manifest = read_manifest(file)
        for note in manifest.notes:
            print(printable(note), file=sys.stderr)
        if (members := manifest.members) is not None and files_for is not None:
            raise ConfigError(
                f"{files_for}: needs files, but the videos of {file} lie {members.place}; {members.instead}"
            )
        entries = [manifest[number] for number in range(len(manifest))]
        if any(entry.start is not None or entry.end is not None for entry in entries):
            raise ConfigError(f"{file}: lists parts of videos; stvid predict takes whole ones: list each once, alone")
        if manifest.members is not None:
            found += [StoredVideo(manifest, number) for number in range(len(manifest))]
        else:
            found += dict.fromkeys(entry.path for entry in entries)
    return found


@dataclass(frozen=True)
class Sharing:
    """How the videos of a command are shared out.

    Attributes:
        part: The part of ``--shard``.
        team: The processes that work together.
        joins: Whether parts that were done before are joined.
        on_ray: Whether Ray works on the batches.
        weights: The model as it was loaded.
        spent: Gets the journals that are not needed once what they hold is written.
    """

    part: Part | None = None
    team: Team | None = None
    joins: bool = False
    on_ray: bool = False
    weights: VideoModel | None = None
    spent: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return "--devices" if self.team is not None else "--engine ray" if self.on_ray else "--shard"

    @property
    def shares(self) -> bool:
        """Whether there are parts."""
        return self.journals or self.team is not None

    @property
    def journals(self) -> bool:
        """Whether predictions are kept in journals."""
        return self.part is not None or self.joins or self.on_ray


def predicted(model: VideoModel, options: Any, *, topk: int, backend: str, sharing: Sharing) -> list[Prediction] | None:
    """Classifies the videos of the command; returns None if another process has the predictions, or will have them."""
    from stvid.data.parts import Part
    from stvid.evaluation.evaluate import Execution, check_counts
    from stvid.evaluation.parts import join_predictions, predict_on_ray, predict_part, prediction_work
    from stvid.evaluation.predict import Classification, predict_together

    check_counts(workers=options.workers or 0)
    execution = Execution(
        device=options.device,
        precision=options.precision,
        backend=backend,
        workers=0 if sharing.on_ray else options.workers or 0,
        progress=sharing.on_ray and sys.stderr.isatty(),
    )
    work = Classification.prepare(model, options.files, topk=topk, execution=execution)
    if not sharing.journals:
        return predict_together(work, sharing.team)
    shared = prediction_work(work, options.out, weights=sharing.weights or model)
    if not sharing.joins:
        part = sharing.part or Part(1, 1)
        if sharing.on_ray:
            if sharing.part is None:
                shared.fold(1)
            report = predict_on_ray(work, shared, part, address=options.ray_address, workers=options.workers)
        else:
            report = predict_part(work, shared, part)
        if sharing.part is not None:
            print(
                printable(
                    f"shard {part}: {report.videos} of {len(set(work.places))} videos done, {report.failed} of them "
                    f"failed; {report.journal}; after all shards: stvid prep merge predict, with the same options"
                )
            )
            return None
    found, joined = join_predictions(work, shared)
    for note in joined.notes:
        print(printable(note), file=sys.stderr)
    sharing.spent.extend(joined.journals)
    return found


def run_exchange(model: VideoModel, options: Any, *, backend: str, sharing: Sharing) -> int:
    """Predicts, and writes or prints the file; returns the exit code."""
    from stvid.evaluation.classes import name_classes
    from stvid.evaluation.evaluate import model_task
    from stvid.evaluation.exchange import check_target, label_studio_config, to_text, write_predictions
    from stvid.evaluation.predicted import ExchangeSettings
    from stvid.video.remote import is_remote_file
    from stvid.video.streaming import is_live

    for file in options.files:
        if is_live(file) and not is_remote_file(file):
            raise ConfigError(f"{file}: a stream, of which no file stays that people could label")
    settings = ExchangeSettings(
        class_names=name_classes(model.default_protocol.class_names, model.num_classes),
        task=model_task(model, None),
        model_version=os.path.basename(os.path.normpath(options.checkpoint)),
        root=_root(options),
        from_name=options.from_name,
        to_name=options.to_name or "video",
        topk=options.topk,
        formulas=options.csv_formulas,
    )
    options.files = list(dict.fromkeys(options.files))
    check_target(options.files, options.to, options.out, settings)
    if options.window:
        found, failed = _over_time(model, options, settings)
    else:
        predictions = predicted(model, options, topk=model.num_classes, backend=backend, sharing=sharing)
        if predictions is None:
            return 0
        found, failed = _whole(predictions, settings)
    for error in failed:
        print(printable(f"stvid: error: {error}"), file=sys.stderr)
    if not found:
        return 1
    if options.out is None:
        sys.stdout.write(to_text(found, options.to, settings))
        if options.to == "label-studio":
            print(printable(_hint(settings)), file=sys.stderr)
            print(label_studio_config(found, settings), file=sys.stderr)
    else:
        written = write_predictions(found, options.to, options.out, settings)
        print(printable(f"{len(found)} of {len(options.files)} videos: {', '.join(map(str, written))}"))
        if options.to == "label-studio":
            print(printable(_hint(settings)))
    return 1 if failed else 0


def _hint(settings: ExchangeSettings) -> str:
    return (
        f"Label Studio serves the videos with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={os.path.abspath(settings.root)}"
    )


def _root(options: Any) -> str:
    """Returns the folder that Label Studio serves files from."""
    if options.root is not None:
        return str(options.root)
    folder = os.path.dirname(os.path.abspath(options.out)) if options.out else os.getcwd()
    folders = [os.path.dirname(os.path.abspath(file)) for file in options.files if "://" not in file]
    return os.path.commonpath(folders) if folders and os.path.commonpath([folder, *folders]) != folder else folder


def _whole(
    predictions: Sequence[Prediction], settings: ExchangeSettings
) -> tuple[list[Predicted], list[str | VideoError]]:
    from stvid.evaluation.predicted import predicted_whole

    found = (predicted_whole(prediction, settings.task) for prediction in predictions)
    failed: list[str | VideoError] = [
        f"{prediction.path}: {prediction.error}" for prediction in predictions if prediction.error is not None
    ]
    return [video for video in found if video is not None], failed


def _over_time(
    model: VideoModel, options: Any, settings: ExchangeSettings
) -> tuple[list[Predicted], list[str | VideoError]]:
    from stvid.evaluation.predicted import predicted_over_time
    from stvid.evaluation.timeline import parse_seconds, timeline

    window = parse_seconds(options.window, name="--window")
    given = options.window_stride
    stride = window / 2 if given is None else parse_seconds(given, name="--window_stride")
    if options.backend not in (None, "av"):
        raise ConfigError(f"--backend: {options.backend} reads no streams; --window uses av")
    found: list[Predicted] = []
    failed: list[str | VideoError] = []
    for file in options.files:
        windows = timeline(
            model,
            file,
            window=window,
            stride=stride,
            topk=1,
            views=options.views or "1x1",
            device=options.device,
            precision=options.precision,
        )
        try:
            found.append(predicted_over_time(file, windows, stride, settings.task))
        except VideoError as error:
            failed.append(error)
    return found, failed
