"""Callbacks that stop a training, watch its speed and its unreadable videos, and print and log its numbers."""

from __future__ import annotations

import csv
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from stvid.console import command_line
from stvid.engine.submission import preemption_signal
from stvid.engine.task import VideoTask
from stvid.errors import Interrupted, StvidError
from stvid.files import write_atomically, write_table

__all__ = ["EpochLines", "EpochMeans", "FailureLimit", "MetricsCsv", "StopOnSignal", "Throughput", "TrainBar"]


class StopOnSignal(Callback):
    """On SIGINT or SIGTERM, ends the step in hand, saves the complete state, and leaves with `Interrupted`.

    In a job of a cluster the signal that announces its end does so, too. The same signal again stops at once, without
    saving. During a validation between epochs the rest of it is skipped, and the state is saved at the end of the
    epoch; the validation after the last epoch is finished, and the run with it.

    Args:
        folder: Where ``interrupted.ckpt`` is written.
        command: The command that continues the run.
    """

    def __init__(self, folder: Path, command: str = "train") -> None:
        self.folder = folder
        self.command = command
        self.received: int | None = None
        self.saved: Path | None = None
        self._last_epoch = False
        self._previous: dict[int, Any] = {}

    def stop_requested(self) -> bool:
        """Whether the run is to end before its time; validation loaders ask this between batches."""
        return self.received is not None and not self._last_epoch

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if signum in (self.received, signal.SIGINT):
                raise KeyboardInterrupt
            return  # a cluster announces the end by one signal, and ends by another
        self.received = signum
        name = signal.Signals(signum).name
        print(f"\n{name}: saving after this step (once more to stop at once)", file=sys.stderr, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the signals; Lightning's own handlers are put back by it at the end."""
        announced = preemption_signal()
        for signum in (signal.SIGINT, signal.SIGTERM, *([announced] if announced else [])):
            try:
                self._previous[signum] = signal.signal(signum, self._handle)
            except ValueError:  # not in the main thread: whoever runs the thread handles signals
                return

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes whether this is the last validation."""
        self._last_epoch = trainer.current_epoch + 1 >= (trainer.max_epochs or 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops between two optimiser steps."""
        stop = self.stop_requested()
        if trainer.world_size > 1:  # one rank may have got the signal a step before the others
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        last = batch_idx + 1 >= trainer.num_training_batches
        if stop and (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not last:
            path = self.folder / "interrupted.ckpt"
            trainer.save_checkpoint(path)
            self._leave(trainer, path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops between two epochs."""
        stop = self.stop_requested()
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            path = self.folder / "interrupted.ckpt"
            trainer.save_checkpoint(path)
            self._leave(trainer, path)

    def _leave(self, trainer: Trainer, path: Path) -> None:
        self.saved = path
        signum = self.received if self.received is not None else signal.SIGTERM
        command = command_line("stvid", self.command, "--resume", path)
        raise Interrupted(f"stopped by {signal.Signals(signum).name}; continue with: {command}", signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back to Lightning, which gives them back itself before it calls `teardown`."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back; Lightning does not call `on_train_end` then."""
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()


class FailureLimit(Callback):
    """Lists unreadable training videos after each epoch, and stops the run when there are too many.

    Args:
        folder: Folder of the run, which gets the list ``unreadable.csv``.
        videos: How many training videos there are.
        limit: Share of them that may be unreadable.
    """

    def __init__(self, folder: Path, *, videos: int, limit: float) -> None:
        self.path = folder / "unreadable.csv"
        self.videos = videos
        self.limit = limit

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the run in the middle of an epoch, if it runs on one device."""
        assert isinstance(pl_module, VideoTask)
        if trainer.world_size == 1:  # several ranks agree at the end of the epoch
            self._check(pl_module.failures)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the list of all ranks, and stops the run if it is too long."""
        assert isinstance(pl_module, VideoTask)
        failures = pl_module.gathered_failures()
        if failures and trainer.is_global_zero:
            self._write(failures)
        self._check(failures)

    def _write(self, failures: dict[str, str]) -> None:
        write_table(self.path, ("path", "reason"), sorted(failures.items()))

    def _check(self, failures: dict[str, str]) -> None:
        if len(failures) > self.limit * self.videos:
            self._write(failures)
            path, reason = next(iter(failures.items()))
            raise StvidError(
                f"{len(failures)} of {self.videos} training videos could not be read, more than data.max_failures "
                f"({self.limit:g}) allows; first {path}: {reason}; all are in {self.path}"
            )


class Throughput(Callback):
    """Measures clips a second and the share of the time that a step waited for data, and warns of a high share."""

    warn_above = 0.3  # share of an epoch's time spent waiting

    def __init__(self) -> None:
        self.clips_per_second = 0.0
        self.data_wait = 0.0
        self._warned = False
        self._started = False
        self._reset()

    def _reset(self) -> None:
        self._waited = self._worked = 0.0
        self._clips = 0
        self._mark = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock anew: validation in between does not count."""
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the wait for data."""
        now = time.perf_counter()
        if self._started:
            self._waited += now - self._mark
        self._started = True  # the first wait of a run is that for the worker processes to start
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the step."""
        now = time.perf_counter()
        self._worked += now - self._mark
        self._mark = now
        self._clips += len(batch.clips) * trainer.world_size
        total = max(self._waited + self._worked, 1e-9)
        self.clips_per_second = self._clips / total
        self.data_wait = self._waited / total
        values = {"clips_per_second": self.clips_per_second, "data_wait": self.data_wait}
        pl_module.log_dict(values, prog_bar=True, rank_zero_only=True, on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns, once, when the loader is the bottleneck of an epoch that is worth the words."""
        long = self._waited > 5.0
        if long and not self._warned and self.data_wait > self.warn_above and trainer.is_global_zero:
            self._warned = True
            print(
                f"warning: {self.data_wait:.0%} of the training time was spent waiting for data; more data.workers, "
                "videos of a smaller size, or data.repeats 2 would help",
                file=sys.stderr,
            )


class TrainBar(RichProgressBar):
    """Lightning's rich progress bar with loss, top-1, clips a second and the share of the time spent waiting."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict]:
        """Returns what stands at the end of the bar."""
        logged = super().get_metrics(trainer, pl_module)
        shown: dict[str, int | str | float | dict] = {}
        for key, name, layout in (
            ("train_loss_step", "loss", "{:.3f}"),
            ("train_top1_step", "top1", "{:.2f}"),
            ("clips_per_second", "clips/s", "{:.1f}"),
            ("data_wait", "wait", "{:.0%}"),
        ):
            if key in logged:
                shown[name] = layout.format(float(logged[key]))
        return shown


class EpochMeans(Callback):
    """Logs the means of an epoch at its end; stands before all that print or write them."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs them."""
        assert isinstance(pl_module, VideoTask)
        pl_module.log_epoch()


class EpochLines(Callback):
    """Prints one line an epoch: the record that stays when the bar is gone, and all there is without a terminal."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._validated = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that this epoch has numbers of its own."""
        self._validated = trainer.current_epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line."""
        metrics = trainer.callback_metrics  # asked for by all ranks: their means are exchanged here
        if not trainer.is_global_zero:
            return
        parts = []
        for key in ("train_loss", "train_top1"):
            if key in metrics:
                parts.append(f"{key.removeprefix('train_')} {float(metrics[key]):.4f}")
        parts += [
            f"{key} {float(value):.4f}"
            for key, value in metrics.items()
            if self._validated == trainer.current_epoch
            and key.startswith("val_")
            and not key.endswith(("_low", "_high", "_failed"))
        ]
        throughput = next((item for item in trainer.callbacks if isinstance(item, Throughput)), None)
        if throughput is not None:
            parts.append(f"{throughput.clips_per_second:.1f} clips/s, data wait {throughput.data_wait:.0%}")
        elapsed = time.perf_counter() - self._started
        parts.append(f"{elapsed // 60:.0f}m{elapsed % 60:02.0f}s")
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {', '.join(parts)}", flush=True)


class MetricsCsv(Logger):
    """Appends metrics to ``metrics.csv``; a continued run goes on in the same file.

    Lightning's CSVLogger deletes the file of an earlier run in the same folder.

    Args:
        folder: Folder of the run.
        resumed: Whether the file of an earlier part of the run is continued. Its rows from the first new step on are
            dropped: they are written again.
    """

    def __init__(self, folder: Path, *, resumed: bool = False) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.columns = ["epoch", "step"]
        self._resumed = resumed
        self._opened = False

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """No versions: a run has one folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config lies in ``config.yaml``; nothing is written here."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes one row, with new columns appended to the right."""
        row: dict[str, Any] = {**metrics, "step": step if step is not None else 0}
        if not self._opened:
            self._open(row["step"])
        added = [key for key in row if key not in self.columns]
        if added:
            self.columns += added
            self._rewrite(self._read())
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _open(self, step: int) -> None:
        self._opened = True
        rows = self._read() if self.path.exists() and self._resumed else []
        # a full disk may have cut the last row short
        rows = [row for row in rows if (row["step"] or "").isdecimal() and int(row["step"]) < step]
        for row in rows:
            self.columns += [key for key in row if key not in self.columns]
        self._rewrite(rows)

    def _read(self) -> list[dict[str, str]]:
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        def write(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.path, write)
