"""How the checkpoints and the config of a run get onto the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from stvid.config import TrainConfig, dump_config
from stvid.errors import CheckpointError, ConfigError, nearest
from stvid.evaluation.result import ViewAccumulator
from stvid.files import write_atomically

__all__ = [
    "AtomicCheckpointIO",
    "LastEpoch",
    "RunConfig",
    "check_monitor",
    "checkpoint_callbacks",
    "monitor_mode",
    "monitored",
]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there, so that a full disk leaves the earlier one whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Writes the checkpoint.

        Raises:
            CheckpointError: If it cannot be written; says so, and that what was saved before is still there.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as RuntimeError without errno, so the disk is asked
            if isinstance(error, OSError):
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                reason = "no space left on the disk" if full else (error.strerror or str(error))
            else:
                reason = f"the disk may be full ({' '.join(str(error).split())[:100]})"
            raise CheckpointError(
                f"{target}: the checkpoint could not be written: {reason}; earlier checkpoints in {target.parent} are "
                "unchanged: make room, then continue with --resume"
            ) from error


class LastEpoch(Callback):
    """Validates and saves at the end of a run, wherever that is.

    The last epoch is validated even if `val_every` does not divide the epochs, and so are the weights of a run that
    `max_steps` ends within an epoch.

    Args:
        path: The checkpoint to write.
        save_every: Epochs from one checkpoint of the run to the next.
    """

    def __init__(self, path: Path, *, save_every: int) -> None:
        self.path = path
        self.save_every = save_every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for a validation at the end of the last epoch, also where a run is continued inside it."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for a validation at the end of the last epoch."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Asks for a validation after the last step."""
        if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
            trainer.check_val_every_n_epoch = 1
            trainer.should_stop = True  # Lightning validates then, and would end without it otherwise

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what no other checkpoint holds."""
        # This callback stands before the averaging of weights, which then replaces the weights by their average.
        if trainer.current_epoch % self.save_every or trainer.max_steps != -1:
            trainer.save_checkpoint(self.path)


class RunConfig(Callback):
    """Writes the config when the first step is near: a continuation that is refused leaves the earlier file.

    Args:
        path: Where the config is written.
        config: The complete config.

    Attributes:
        begun: Whether there was anything left to train.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self.begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        self.begun = True
        if trainer.is_global_zero:
            write_atomically(self.path, lambda path: path.write_text(dump_config(self.config), encoding="utf-8"))


def check_monitor(config: TrainConfig, *, has_val: bool) -> None:
    """Refuses a number that the validation will not have, before anything is trained.

    Args:
        config: The complete config, with the names of the classes.
        has_val: Whether there is a validation.

    Raises:
        ConfigError: Names the nearest numbers.
    """
    monitor = config.trainer.monitor
    if monitor is None:
        return
    if not has_val:
        raise ConfigError(f"trainer.monitor: {monitor} is a number of the validation, and there is none; set data.val")
    names = _validated(config)
    if monitor not in names:
        hint = nearest(monitor, names) or f"; there are {', '.join(names)}"
        raise ConfigError(f"trainer.monitor: the validation has no number {monitor}{hint}")


def _validated(config: TrainConfig) -> list[str]:
    """Returns the names of the numbers that a validation has."""
    if config.task == "pretrain":
        return ["val_loss"]
    classes, views = len(config.protocol.class_names), config.data.val_views
    tried = ViewAccumulator(config.protocol, views=views, task=config.classification)
    label = np.eye(1, classes, dtype=np.int64)[0] if config.task == "multilabel" else 0
    tried.add(0, np.zeros((tried.plan.num_views, classes), np.float32), label)
    return [f"val_{name}" for name in tried.result().metrics]


class _BestCheckpoint(ModelCheckpoint):
    """Knows its best score again when the folder of the run was moved; Lightning's forgets it then."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {
            key: here(value) if key in ("best_model_path", "kth_best_model_path", "last_model_path") else value
            for key, value in state_dict.items()
        }
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**moved, "dirpath": self.dirpath})


def monitor_mode(config: TrainConfig) -> Literal["max", "min"]:
    """Returns whether the number that `monitored` names is to grow or to fall."""
    return "min" if config.task == "pretrain" else "max"


def monitored(config: TrainConfig) -> str:
    """Returns the name of the logged number that says which checkpoint is the best."""
    if config.task == "pretrain":
        return "val_loss"
    if config.trainer.monitor is not None:
        return config.trainer.monitor
    number = "mAP" if config.task == "multilabel" else "top1"
    return f"val_{number}@{config.data.val_views}"


def checkpoint_callbacks(config: TrainConfig, folder: Path, *, has_val: bool) -> list[Callback]:
    """Returns the callbacks that write the checkpoints of a run: the newest ones that are kept, the last, and the best.

    Args:
        config: Says how often, how many, and which number is the best.
        folder: Where the checkpoints are written.
        has_val: Whether there is a validation that can say which is the best.
    """
    kept = config.trainer.keep
    shared: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    newest: dict[str, Any] = {
        **shared,
        "every_n_epochs": config.trainer.save_every,
        "save_on_train_epoch_end": True,
    }
    callbacks: list[Callback] = []
    if kept > 1:
        by_epoch: dict[str, Any] = {"filename": "epoch{epoch:04d}", "auto_insert_metric_name": False}
        callbacks.append(ModelCheckpoint(**newest, **by_epoch, monitor="epoch", mode="max", save_top_k=kept))
    # After those that are kept, so that it knows of the newest of them and a continued run removes it in its turn.
    callbacks.append(ModelCheckpoint(**newest, filename="last"))
    if has_val:
        callbacks.append(
            _BestCheckpoint(
                **shared,
                filename="best",
                monitor=monitored(config),
                mode=monitor_mode(config),
                save_top_k=1,
                save_on_train_epoch_end=False,
            )
        )
    return callbacks
