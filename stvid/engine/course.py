"""Callbacks that decide how a training begins and ends, and say how long it will take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import FSDPStrategy

from stvid.engine.task import VideoTask
from stvid.errors import ConfigError

__all__ = ["HeadFirst", "Patience", "TimeEstimate", "duration"]

BACKWARD = 2.0  # time of a backward pass in forward passes: it computes two products where the forward computes one


def duration(seconds: float) -> str:
    """Writes a time with one or two digits that count: ``40 s``, ``12 min``, ``2.5 h``, ``3 days``."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f}".removesuffix(".0") + " h"
    return f"{seconds / 86400:.1f}".removesuffix(".0") + " days"


class HeadFirst(Callback):
    """Trains the head alone in the first epochs.

    Args:
        epochs: How many.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freezes the rest, also where a run is continued inside an epoch."""
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ConfigError(
                "optim.frozen_epochs: not with trainer.strategy fsdp, which joins frozen and free weights"
            )
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freezes the rest or sets it free."""
        self._apply(trainer, pl_module)

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VideoTask)
        head_only = trainer.current_epoch < self.epochs
        if head_only != pl_module.head_only:
            pl_module.train_head_only(head_only)


class Patience(EarlyStopping):
    """Ends a training whose validation does not get better, and knows that it did.

    Args:
        monitor: The number that says how good a validation is.
        patience: Validations in a row without a better one.
        min_delta: How much better one must be to count.
        mode: Whether the number is to grow or to fall.
    """

    def __init__(
        self, monitor: str, patience: int, *, min_delta: float = 0.0, mode: Literal["max", "min"] = "max"
    ) -> None:
        # A validation that a signal cut short has no number; it does not count.
        rules: dict[str, Any] = {"mode": mode, "patience": patience, "min_delta": min_delta}
        super().__init__(monitor, **rules, strict=False, check_on_train_epoch_end=False)

    @property
    def _better(self) -> str:
        return "better" if not self.min_delta else f"{abs(self.min_delta):g} better"

    @property
    def outcome(self) -> str:
        """Says why the run ended; empty if it was not for this."""
        if self.wait_count < self.patience:
            return ""
        return (
            f"stopped after epoch {self.stopped_epoch + 1}: {self.monitor} was not {self._better} than "
            f"{float(self.best_score):.4f} in {self.patience} validations"
        )


@dataclass
class _Measured:
    """The seconds that the steps since the last change took."""

    steps: int = 0
    waited: float = 0.0
    worked: float = 0.0
    clips: int = 0


class TimeEstimate(Callback):
    """Prints, after a few steps, how long an epoch and the whole training will take; again when all is trained.

    Args:
        validated: Clips of one validation; 0 without one.
        val_every: Epochs from one validation to the next.
    """

    skipped = 2  # first steps, in which workers start and kernels are chosen
    least_steps, enough_steps, enough_seconds = 3, 20, 5.0

    def __init__(self, *, validated: int, val_every: int) -> None:
        self.validated = validated
        self.val_every = val_every
        self._measured = _Measured()
        self._mark = 0.0
        self._seen = 0
        self._head_only: bool | None = None  # whether the measured steps train the head alone
        self._said = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; a validation in between does not count."""
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the wait for data."""
        assert isinstance(pl_module, VideoTask)
        if pl_module.head_only != self._head_only:  # other steps than before
            self._head_only, self._said, self._seen, self._measured = pl_module.head_only, False, 0, _Measured()
        now = time.perf_counter()
        if self._seen >= self.skipped:
            self._measured.waited += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the step, and prints the estimate when enough is measured."""
        now = time.perf_counter()
        measured = self._measured
        if self._seen >= self.skipped:
            measured.steps += 1
            measured.worked += now - self._mark
            measured.clips += len(batch.clips)
        self._seen += 1
        self._mark = now
        enough = measured.steps >= self.enough_steps or measured.waited + measured.worked >= self.enough_seconds
        if measured.steps >= self.least_steps and enough:
            self._say(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the estimate if the epoch was too short for it."""
        if self._measured.steps and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._say(trainer)

    def estimate(self, steps: int) -> tuple[float, float]:
        """Returns the seconds of an epoch in which all is trained, and of a validation.

        Args:
            steps: Batches of an epoch.
        """
        measured = self._measured
        # Steps that train the head alone have no backward pass of the rest.
        forward = measured.worked if self._head_only else measured.worked / (1 + BACKWARD)
        step = max(forward * (1 + BACKWARD), measured.waited + measured.worked) / measured.steps
        view = (forward + measured.waited) / measured.clips
        return steps * step, self.validated * view

    def _say(self, trainer: Trainer) -> None:
        if self._said:
            return
        self._said = True
        epochs = (trainer.max_epochs or 1) - trainer.current_epoch
        if not trainer.is_global_zero or epochs < 1:
            return
        steps = int(trainer.num_training_batches)
        epoch, validation = self.estimate(steps)
        if trainer.max_steps != -1:  # steps of the optimiser
            left = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
            epochs = min(epochs, max(1, -(-left // steps)))
        each = epoch + validation / self.val_every
        first = trainer.current_epoch == 0
        span = "in all" if first else f"for the {epochs} epochs that are left" if epochs > 1 else "for the last epoch"
        early = ", less if the validation stops improving" if self._can_stop(trainer) else ""
        print(f"time      about {duration(each)} an epoch, {duration(each * epochs)} {span}{early}", flush=True)

    def _can_stop(self, trainer: Trainer) -> bool:
        return any(isinstance(callback, Patience) for callback in trainer.callbacks)
