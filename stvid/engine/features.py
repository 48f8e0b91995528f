"""Clip features of many videos through Lightning's predict, on any number of devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from stvid.data.datamodule import Loader, worker_options
from stvid.data.jobs import EngineName
from stvid.data.manifest import Manifest, read_manifest
from stvid.data.parts import Part
from stvid.data.ray_engine import run_on_ray, started_ray
from stvid.engine.trainers import make_trainer, quiet_lightning
from stvid.errors import ConfigError
from stvid.evaluation.evaluate import check_counts, model_protocol
from stvid.evaluation.features import (
    ClipChunk,
    ClipFeatures,
    FeatureClips,
    FeatureFormat,
    check_settings,
    clip_features,
    feature_files,
    save_features,
)
from stvid.evaluation.progress import model_digest
from stvid.evaluation.ranks import Team, alone
from stvid.evaluation.result import check_choice
from stvid.evaluation.stages import FeatureFile
from stvid.files import claimed, write_table
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from stvid.runs import is_first_rank

__all__ = ["FeatureReport", "FeatureSettings", "extract_features"]


@dataclass
class FeatureReport:
    """The count of videos that `extract_features` wrote, found, and could not read.

    Attributes:
        folder: Where the files are.
        written: Videos whose features were written now.
        present: Videos whose features were there already.
        failed: Path and reason of each video that could not be read.
    """

    folder: Path
    written: int
    present: int
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class FeatureSettings:
    """How `extract_features` reads the clips, runs the model, and writes.

    Attributes:
        format: Format of the files, ``npz`` or ``parquet``.
        window: Seconds of a sliding window; None takes the test clips of the protocol.
        stride: Seconds from one window to the next; None takes `window`.
        views: Temporal clips x spatial crops; None takes the protocol's, or with windows 1x1.
        crops: ``mean`` averages the features of a clip's crops; ``each`` gives a row for each crop, clip by clip.
        batch_size: Clips in one forward pass.
        workers: Decoding processes of each device.
        backend: Decoder of the test clips.
        accelerator: As Lightning names it.
        devices: As Lightning counts them; each takes its share of the videos.
        precision: As Lightning names it.
        csv_formulas: Whether texts in the CSV files stay as they are that a spreadsheet would take for formulas.
        part: The part of the videos to do, while other processes may do the others. ``index.csv`` and ``failed.csv``
            are left to a run without it. None does all videos.
        engine: ``local`` runs on devices of this machine through Lightning, ``ray`` on those of a Ray cluster: then
            `workers` is the most models at once, 0 for all that it has room for, and `devices` has no meaning.
        ray_address: The cluster, as Ray names it; None starts Ray on this machine.
        team: Processes of torchrun or SLURM that share the videos, this one on the GPU of its place (`devices` has no
            meaning then). The report of the first is that of all.

    Raises:
        ConfigError: If a number is not usable.
    """

    format: FeatureFormat = "npz"
    window: float | None = None
    stride: float | None = None
    views: str | None = None
    crops: Literal["mean", "each"] = "mean"
    batch_size: int = 8
    workers: int = 0
    backend: str = "av"
    accelerator: str = "auto"
    devices: int | str = "auto"
    precision: str = "32-true"
    csv_formulas: bool = False
    part: Part | None = None
    engine: EngineName = "local"
    ray_address: str | None = None
    team: Team | None = None

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, workers=self.workers)
        check_choice("crops", self.crops, ("mean", "each"))
        if self.crops == "each" and self.engine == "ray":
            raise ConfigError("crops each: is not there with engine ray; take engine local")

    def used_views(self, protocol: Protocol) -> str:
        """Returns the views of a video, or with windows those of each window."""
        return self.views or ("1x1" if self.window is not None else protocol.views)


class _FeatureTask(LightningModule):
    """Gives the input of the classifier, of each crop or averaged over the crops of each clip."""

    def __init__(self, model: VideoModel, protocol: Protocol, *, batch_size: int, average: bool) -> None:
        super().__init__()
        self.average = average
        self.model = model
        self.protocol = protocol
        self.batch_size = batch_size

    def transfer_batch_to_device(self, batch: ClipChunk, device: torch.device, dataloader_idx: int) -> ClipChunk:
        return batch  # clip by clip in `predict_step`: a chunk may be larger than a batch

    def predict_step(self, batch: ClipChunk, batch_idx: int) -> Tensor | None:
        """Returns features (n, D) of a chunk's clips or of their crops, float32 on the CPU; None if it has none."""
        if batch.clips is None:
            return None
        return clip_features(
            self.model,
            batch.clips,
            self.protocol,
            batch_size=self.batch_size,
            device=self.device,
            average=self.average,
        )


class _FeatureWriter(BasePredictionWriter):
    """Joins the chunks of a video and writes its file when the last has come."""

    def __init__(self, manifest: Manifest, files: Sequence[Path], progress: Callable[[int], Any] | None) -> None:
        super().__init__(write_interval="batch")
        self.manifest = manifest
        self.files = files
        self.progress = progress
        self.parts: dict[int, list[tuple[ClipChunk, np.ndarray]]] = {}
        self.written = 0
        self.failed: list[tuple[str, str]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: ClipChunk,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keeps a chunk, or finishes its video."""
        if prediction is not None:
            batch.clips = None
            self.parts.setdefault(batch.video, []).append((batch, prediction.numpy()))
        if not batch.last:
            return
        chunks = self.parts.pop(batch.video, [])
        entry = self.manifest[batch.video]
        if batch.error is not None or not chunks:
            self.failed.append((entry.path, batch.error or "no window holds a frame"))
        else:
            rows = [len(features) // len(chunk.start) for chunk, features in chunks]  # of a clip: 1, or its crops
            times = {
                name: np.concatenate(
                    [np.repeat(getattr(chunk, name), n, axis=0) for (chunk, _), n in zip(chunks, rows, strict=True)]
                )
                for name in ("start", "end", "frames")
            }
            save_features(
                ClipFeatures(
                    features=np.concatenate([features for _, features in chunks]),
                    **times,
                    path=entry.path,
                    labels=entry.labels,
                ),
                self.files[batch.video],
            )
            self.written += 1
        if self.progress is not None:
            self.progress(trainer.world_size)


class _FeatureData(LightningDataModule):
    """Makes the loader once the rank is known."""

    def __init__(self, options: dict[str, Any], *, workers: int) -> None:
        super().__init__()
        self.options = options
        self.workers = workers

    def predict_dataloader(self) -> Any:
        """Returns this rank's share of the videos."""
        assert self.trainer is not None
        dataset = FeatureClips(**self.options, rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        options = worker_options(self.workers, seed=0, rank=self.trainer.global_rank, persistent=False)
        return Loader(dataset, batch_size=None, **options)


def extract_features(
    model: VideoModel,
    videos: Manifest | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[int], Any] | None = None,
    **settings: Any,
) -> FeatureReport:
    """Writes the features of every video that has none in the folder yet.

    Besides the files of `stvid.evaluation.features.feature_files`, the folder gets ``features.json`` (how they were
    made), ``index.csv`` (which file belongs to which video) and, if any failed, ``failed.csv``. A run that was
    interrupted goes on where it stopped; videos that failed are tried again.

    Args:
        model: In evaluation mode.
        videos: The videos, or their list: a CSV, a JSON, a folder with a folder per class. Labels are optional.
        folder: Made if it is missing.
        progress: Called with the number of videos that are done since the last call.
        **settings: The fields of `FeatureSettings`, such as ``window=2.0, batch_size=16``.

    Raises:
        ConfigError: If a setting is not usable, the folder holds features of other settings, or the model does not
            take the clips.
        StvidError: If a decoder is missing or a worker was killed.
        TypeError: If there is no such setting.
    """
    chosen = FeatureSettings(**settings)
    manifest = videos if isinstance(videos, Manifest) else read_manifest(videos)
    protocol = model_protocol(model, None, chosen.used_views(model.default_protocol))
    target = Path(folder)
    options: dict[str, Any] = {
        "manifest": manifest,
        "protocol": protocol,
        "views": protocol.views,
        "window": chosen.window,
        "stride": chosen.stride,
        "backend": chosen.backend,
    }
    mine = target if chosen.part is None else chosen.part.beside(target / "features")
    with claimed(mine) if is_first_rank() else contextlib.nullcontext():
        return _extract(model, manifest, target, options, chosen, progress)


def _extract(
    model: VideoModel,
    manifest: Manifest,
    target: Path,
    options: dict[str, Any],
    chosen: FeatureSettings,
    progress: Callable[[int], Any] | None,
) -> FeatureReport:
    """Writes the features of a folder that no other process writes to."""
    protocol = options["protocol"]
    FeatureClips(**options, rows=[])  # refuses what is not usable before anything is written
    files = feature_files(manifest, target, chosen.format)
    check_settings(target, _recorded(model, protocol, chosen))
    part = chosen.part if chosen.team is None else chosen.team.rank.part
    own = list(range(len(files))) if part is None else part.of(range(len(files)))
    rows = [row for row in own if not files[row].exists()]
    present = len(own) - len(rows)
    if progress is not None:
        progress(present)
    writer = _FeatureWriter(manifest, files, progress)
    if rows and chosen.engine == "ray":
        writer.written, writer.failed = _on_ray(model, manifest, [(row, files[row]) for row in rows], chosen, progress)
    elif rows:
        quiet_lightning()
        with contextlib.nullcontext() if chosen.team is None else alone():
            trainer = _trainer(target, writer, chosen)
        task = _FeatureTask(model, protocol, batch_size=chosen.batch_size, average=chosen.crops == "mean")
        data = _FeatureData({**options, "rows": rows}, workers=chosen.workers)
        with contextlib.nullcontext() if chosen.team is None else alone():
            trainer.predict(task, datamodule=data, return_predictions=False)
        writer.written, writer.failed = _gathered(writer, trainer)
    if chosen.team is not None:
        everyone = chosen.team.gather((writer.written, present, writer.failed)) or [(0, 0, [])]
        writer.written, present = (sum(values[place] for values in everyone) for place in (0, 1))
        writer.failed = [item for _, _, failed in everyone for item in failed]
    if is_first_rank() and chosen.part is None:
        _write_lists(manifest, files, target, writer.failed, formulas=chosen.csv_formulas)
    if chosen.team is not None:
        chosen.team.finish()
    return FeatureReport(target, writer.written, present, sorted(writer.failed))


def _on_ray(
    model: VideoModel,
    manifest: Manifest,
    rows: Sequence[tuple[int, Path]],
    chosen: FeatureSettings,
    progress: Callable[[int], Any] | None,
) -> tuple[int, list[tuple[str, str]]]:
    """Writes the features of some rows on a Ray cluster; returns how many, and path and reason of those that failed."""
    if manifest.members is not None:
        raise ConfigError(
            f"{manifest.source}: lies {manifest.members.place}, which --engine ray does not read; use --shard i/n"
        )
    names = ("window", "stride", "views", "batch_size", "precision", "backend")
    device = None if chosen.accelerator == "auto" else chosen.accelerator.replace("gpu", "cuda")
    stage = FeatureFile(model, device=device, **{name: getattr(chosen, name) for name in names})
    tasks = {FeatureFile.task(manifest[row], file): manifest[row].path for row, file in rows}
    failed: list[tuple[str, str]] = []

    def record(task: str, result: Mapping[str, Any], error: str) -> None:
        if error:
            failed.append((tasks[task], error.removeprefix(f"{tasks[task]}: ")))
        if progress is not None:
            progress(1)

    workers = chosen.workers or None
    with started_ray(chosen.ray_address, workers):
        for task in run_on_ray(stage, list(tasks), workers, record):
            if run_on_ray(stage, [task], 1, record):
                record(task, {}, "takes the process that reads it down")
    return len(rows) - len(failed), failed


def _recorded(model: VideoModel, protocol: Protocol, settings: FeatureSettings) -> dict[str, Any]:
    """Returns what the numbers in the files depend on."""
    return {
        "model": model.recipe.get("name"),
        "weights": model_digest(model),
        "protocol": protocol.to_dict(),
        "window": settings.window,
        "stride": settings.window if settings.stride is None else settings.stride,
        "format": settings.format,
        "crops": None if settings.crops == "mean" else settings.crops,  # older folders do not say it
        "num_features": model.head_features,
    }


def _trainer(folder: Path, writer: _FeatureWriter, settings: FeatureSettings) -> Trainer:
    devices: Any = settings.devices
    if settings.team is not None:
        on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        devices = [settings.team.rank.local % torch.cuda.device_count()] if on_gpu else 1
    return make_trainer(
        section="",
        accelerator=settings.accelerator,
        devices=devices,
        precision=settings.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[writer],
    )


def _gathered(writer: _FeatureWriter, trainer: Trainer) -> tuple[int, list[tuple[str, str]]]:
    """Joins what all ranks did."""
    own = (writer.written, writer.failed)
    if trainer.world_size == 1:
        return own
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return sum(written for written, _ in everyone), [item for _, failed in everyone for item in failed]


def _write_lists(
    manifest: Manifest, files: Sequence[Path], folder: Path, failed: list[tuple[str, str]], *, formulas: bool
) -> None:
    rows = []
    for row, file in enumerate(files):
        entry = manifest[row]
        place = file.relative_to(folder).as_posix() if file.exists() else ""
        parts = ["" if value is None else f"{value:g}" for value in (entry.start, entry.end)]
        rows.append([entry.path, ";".join(entry.labels), *parts, place])
    write_table(folder / "index.csv", ("path", "label", "start", "end", "file"), rows, formulas=formulas)
    if failed:
        write_table(folder / "failed.csv", ("path", "reason"), sorted(failed), formulas=formulas)
    else:
        (folder / "failed.csv").unlink(missing_ok=True)
