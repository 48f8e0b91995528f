"""The search for a learning rate: a short training whose rate rises from almost nothing until the loss explodes.

This is the range test of Smith (https://arxiv.org/abs/1506.01186) as Lightning's `Tuner` runs it. The rate to take is
that at which the loss falls fastest over the logarithm of the rate. Nothing of it stays but the curve.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.tuner import Tuner

from stvid.config import TrainConfig
from stvid.engine.task import VideoTask
from stvid.engine.train import explained, prepare, share_cores
from stvid.engine.trainers import quiet_lightning
from stvid.errors import ConfigError, StvidError
from stvid.files import write_table

__all__ = ["FoundRate", "find_rate", "steepest"]

STEPS = 100
LOWEST, HIGHEST = 1e-7, {"adamw": 1.0, "rmsprop": 1.0, "sgd": 10.0}
_SKIPPED = (10, 1)  # points at both ends that say nothing: the mean has not settled, and the last one may have exploded
_FOREVER = 10**6  # epochs: the number of steps ends the search


@dataclass(frozen=True)
class FoundRate:
    """The result of a search.

    Attributes:
        rate: The rate of a step, as the optimiser uses it.
        lr: The same as the value of `optim.lr`, which may be stated for another number of clips (`optim.base_batch`).
        clips_per_step: Clips of a step.
        curve: File with the rate and the smoothed loss of each step.
        picture: File with the curve as a picture; None without matplotlib.
    """

    rate: float
    lr: float
    clips_per_step: int
    curve: Path
    picture: Path | None

    def describe(self) -> str:
        """Returns the lines that a user reads."""
        drawn = f" and {self.picture}" if self.picture else "; a picture needs: pip install matplotlib"
        return (
            f"found     learning rate {self.rate:.2g} for {self.clips_per_step} clips a step: "
            f"--optim.lr {self.lr:.2g}\n"
            f"curve     {self.curve}{drawn}"
        )


class _SearchTask(VideoTask):
    """Trains as ever, but with groups of parameters that keep their share of a rate which Lightning sets for all."""

    def configure_optimizers(self) -> dict[str, Any]:
        configured = super().configure_optimizers()
        optimizer: torch.optim.Optimizer = configured["optimizer"]
        shares = [group["initial_lr"] / self.lr for group in optimizer.param_groups]
        rates: list[float] = []

        def lower(*args: Any) -> None:
            rates[:] = [group["lr"] for group in optimizer.param_groups]
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] *= share

        def restore(*args: Any) -> None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

        optimizer.register_step_pre_hook(lower)
        optimizer.register_step_post_hook(restore)
        return configured

    def on_broken_loss(self, loss: float, batch_idx: int) -> None:
        """Ends the search: the rate is as high as it can be."""
        self.trainer.should_stop = True


def find_rate(config: TrainConfig, folder: Path) -> FoundRate:
    """Searches for a learning rate, and writes the curve as ``lr_find.csv`` and ``lr_find.png``.

    Args:
        config: Everything about the run whose rate is looked for. `output`, where it is set, gets the curve; a run that
            is in there stays as it is.
        folder: Gets the curve if the config names no output.

    Raises:
        ConfigError: If the config cannot be run.
        StvidError: If the loss falls at no rate.
    """
    quiet_lightning()
    share_cores(config)
    folder = folder if config.output is None else Path(config.output)
    highest = HIGHEST[config.optim.name]
    with tempfile.TemporaryDirectory(prefix="stvid-lr-") as scratch:
        run = prepare(_for_search(config, scratch), Path(scratch), task_type=_SearchTask)
        limits = {"min_lr": LOWEST, "max_lr": highest, "num_training": STEPS}
        try:
            with explained(config, Path(scratch), ranks=run.trainer.world_size):
                finder = Tuner(run.trainer).lr_find(run.task, datamodule=run.data, update_attr=False, **limits)
        finally:
            run.data.close()
    assert finder is not None
    count = min(len(finder.results["lr"]), len(finder.results["loss"]))
    rates, losses = finder.results["lr"][:count], finder.results["loss"][:count]
    place = steepest(rates, losses)
    curve = folder / "lr_find.csv"
    picture = _write(rates, losses, place, curve) if run.trainer.is_global_zero else None
    if place is None:
        raise StvidError(
            f"no learning rate from {LOWEST:g} to {highest:g} makes the loss fall within {count} steps; "
            f"the curve is {curve}: look at the labels, or take more data.batch_size"
        )
    clips = run.task.clips_per_step
    lr = rates[place] if config.optim.base_batch is None else rates[place] * config.optim.base_batch / clips
    return FoundRate(rates[place], lr, clips, curve, picture)


def _for_search(config: TrainConfig, scratch: str) -> TrainConfig:
    """Returns the config of a training that neither ends, validates, nor reports before the search does."""
    changes: dict[str, Any] = {"max_epochs": _FOREVER, "max_steps": None, "val_every": _FOREVER}
    changes |= {"patience": None, "loggers": [], "ema_decay": None}
    return dataclasses.replace(
        config,
        trainer=dataclasses.replace(config.trainer, **changes),
        optim=dataclasses.replace(config.optim, frozen_epochs=0),
        output=scratch,
    )


def _write(rates: Sequence[float], losses: Sequence[float], place: int | None, curve: Path) -> Path | None:
    """Writes the curve, and draws it if matplotlib is there; returns the picture."""
    try:
        curve.parent.mkdir(parents=True, exist_ok=True)
        write_table(curve, ("lr", "loss"), list(zip(rates, losses, strict=True)))
        return _draw(rates, losses, place, curve.with_suffix(".png"))
    except OSError as error:
        folder = curve.parent
        raise ConfigError(f"output {folder}: cannot be written to ({error.strerror}); choose another --out") from error


def steepest(rates: Sequence[float], losses: Sequence[float]) -> int | None:
    """Returns the place at which the loss falls fastest over the logarithm of the rate; None if it never falls.

    Args:
        rates: Rising.
        losses: The smoothed loss at each; what is not finite is left out.
    """
    first, last = _SKIPPED
    places = [place for place in range(first, len(rates) - last) if np.isfinite(losses[place])]
    if len(places) < 3:
        return None
    slopes = np.gradient(np.array([losses[place] for place in places]), np.log([rates[place] for place in places]))
    best = int(np.argmin(slopes))
    return places[best] if slopes[best] < 0 else None


def _draw(rates: Sequence[float], losses: Sequence[float], place: int | None, path: Path) -> Path | None:
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    if place is not None:
        axes.plot(rates[place], losses[place], "o", color="tab:red", label=f"{rates[place]:.2g}")
        axes.legend()
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
    figure.savefig(path, dpi=120)
    return path
