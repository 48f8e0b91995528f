"""Clip features of many videos through Lightning's predict, on any number of devices."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from stvid.data.datamodule import _Loader, _worker_options
from stvid.data.manifest import Manifest
from stvid.data.transforms import normalize
from stvid.engine.train import _quiet_lightning
from stvid.errors import ConfigError
from stvid.evaluation.evaluate import check_counts, model_protocol
from stvid.evaluation.features import (
    ClipChunk,
    ClipFeatures,
    FeatureClips,
    FeatureFormat,
    check_settings,
    feature_files,
    save_features,
    weights_digest,
)
from stvid.files import write_atomically
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from stvid.runs import is_first_rank

__all__ = ["FeatureReport", "extract_features"]


@dataclass
class FeatureReport:
    """What `extract_features` did.

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


class _FeatureTask(LightningModule):
    """Gives the input of the classifier, averaged over the crops of each clip."""

    def __init__(self, model: VideoModel, protocol: Protocol, *, batch_size: int) -> None:
        super().__init__()
        self.model = model
        self.protocol = protocol
        self.batch_size = batch_size
        self._seen: list[Tensor] = []
        self._hook = model.get_classifier().register_forward_pre_hook(self._keep)

    def release(self) -> None:
        """Takes the hook off the model."""
        self._hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(inputs[0])

    def transfer_batch_to_device(self, batch: ClipChunk, device: torch.device, dataloader_idx: int) -> ClipChunk:
        return batch  # clip by clip in `predict_step`: a chunk may be larger than a batch

    def predict_step(self, batch: ClipChunk, batch_idx: int) -> Tensor | None:
        """Returns features (n, D) of a chunk's clips, float32 on the CPU; None if it has none."""
        if batch.clips is None:
            return None
        views = batch.clips.flatten(0, 1)
        dtype = next(self.model.parameters()).dtype
        rows = []
        for start in range(0, len(views), self.batch_size):
            part = views[start : start + self.batch_size].to(self.device)
            self._seen.clear()
            try:
                self.model(normalize(part, self.protocol.mean, self.protocol.std, dtype=dtype))
            except ValueError as error:
                text = " ".join(str(error).split())
                raise ConfigError(f"{text} (protocol: {self.protocol.describe()})") from error
            features = self._seen[-1].float()
            rows.append(features.flatten(1, -2).mean(1) if features.dim() > 2 else features)
        return torch.cat(rows).unflatten(0, batch.clips.shape[:2]).mean(1).cpu()


class _FeatureWriter(BasePredictionWriter):
    """Joins the chunks of a video and writes its file when the last has come."""

    def __init__(self, manifest: Manifest, files: Sequence[Path], progress: Any) -> None:
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
            save_features(
                ClipFeatures(
                    features=np.concatenate([features for _, features in chunks]),
                    start=np.concatenate([chunk.start for chunk, _ in chunks]),
                    end=np.concatenate([chunk.end for chunk, _ in chunks]),
                    frames=np.concatenate([chunk.frames for chunk, _ in chunks]),
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
        options = _worker_options(self.workers, seed=0, rank=self.trainer.global_rank, persistent=False)
        return _Loader(dataset, batch_size=None, **options)


def extract_features(
    model: VideoModel,
    manifest: Manifest,
    folder: str | os.PathLike[str],
    *,
    format: FeatureFormat = "npz",
    window: float | None = None,
    stride: float | None = None,
    views: str | None = None,
    batch_size: int = 8,
    workers: int = 0,
    backend: str = "av",
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    progress: Any = None,
) -> FeatureReport:
    """Writes the features of every video that has none in the folder yet.

    Besides the files of `stvid.evaluation.features.feature_files`, the folder gets ``features.json`` (how they were
    made), ``index.csv`` (which file belongs to which video) and, if any failed, ``failed.csv``. A run that was
    interrupted goes on where it stopped; videos that failed are tried again.

    Args:
        model: In evaluation mode.
        manifest: The videos; labels are optional.
        folder: Made if it is missing.
        format: ``npz`` or ``parquet``.
        window: Seconds of a sliding window; None takes the test clips of the protocol.
        stride: Seconds from one window to the next; None takes `window`.
        views: Temporal clips x spatial crops; None takes the protocol's, or with windows 1x1.
        batch_size: Clips in one forward pass.
        workers: Decoding processes of each device.
        backend: Decoder of the test clips.
        accelerator: Lightning's.
        devices: Lightning's; each takes its share of the videos.
        precision: Lightning's.
        progress: Called with the number of videos that are done.

    Raises:
        ConfigError: If an argument is not usable, the folder holds features of other settings, or the model does not
            take the clips.
        StvidError: If a decoder is missing or a worker was killed.
    """
    check_counts(batch_size=batch_size, workers=workers)
    used_views = views or ("1x1" if window is not None else model.default_protocol.views)
    protocol = model_protocol(model, None, used_views)
    target = Path(folder)
    options: dict[str, Any] = {
        "manifest": manifest,
        "protocol": protocol,
        "views": used_views,
        "window": window,
        "stride": stride,
        "backend": backend,
    }
    FeatureClips(**options, rows=[])  # refuses what is not usable before anything is written
    files = feature_files(manifest, target, format)
    check_settings(
        target,
        {
            "model": model.recipe.get("name"),
            "weights": weights_digest(model),
            "protocol": protocol.to_dict(),
            "window": window,
            "stride": window if stride is None else stride,
            "format": format,
            "num_features": model.num_features,
        },
    )
    rows = [row for row, file in enumerate(files) if not file.exists()]
    present = len(files) - len(rows)
    if progress is not None:
        progress(present)
    writer = _FeatureWriter(manifest, files, progress)
    if rows:
        _quiet_lightning()
        trainer = _trainer(target, writer, accelerator=accelerator, devices=devices, precision=precision)
        task = _FeatureTask(model, protocol, batch_size=batch_size)
        data = _FeatureData({**options, "rows": rows}, workers=workers)
        try:
            trainer.predict(task, datamodule=data, return_predictions=False)
        finally:
            task.release()
        writer.written, writer.failed = _gathered(writer)
    if is_first_rank():
        _write_lists(manifest, files, target, writer.failed)
    return FeatureReport(target, writer.written, present, sorted(writer.failed))


def _trainer(folder: Path, writer: _FeatureWriter, *, accelerator: str, devices: int | str, precision: str) -> Trainer:
    count: Any = int(devices) if str(devices).lstrip("-").isdigit() else devices
    try:
        return Trainer(
            accelerator=accelerator,
            devices=count,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            callbacks=[writer],
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _gathered(writer: _FeatureWriter) -> tuple[int, list[tuple[str, str]]]:
    """Joins what all ranks did."""
    own = (writer.written, writer.failed)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return sum(written for written, _ in everyone), [item for _, failed in everyone for item in failed]


def _write_lists(manifest: Manifest, files: Sequence[Path], folder: Path, failed: list[tuple[str, str]]) -> None:
    def index(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "label", "start", "end", "file"])
            for row, file in enumerate(files):
                entry = manifest[row]
                place = file.relative_to(folder).as_posix() if file.exists() else ""
                parts = ["" if value is None else f"{value:g}" for value in (entry.start, entry.end)]
                writer.writerow([entry.path, ";".join(entry.labels), *parts, place])

    def failures(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "reason"])
            writer.writerows(sorted(failed))

    write_atomically(folder / "index.csv", index)
    if failed:
        write_atomically(folder / "failed.csv", failures)
    else:
        (folder / "failed.csv").unlink(missing_ok=True)
