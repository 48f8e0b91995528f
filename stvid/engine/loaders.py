"""The data loaders as Lightning drives them: each rank its share, resumable inside an epoch, stoppable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import LightningDataModule

from stvid.config import DataConfig
from stvid.data.datamodule import LoaderSettings, TrainLoader, make_eval_loader, make_train_loader
from stvid.data.dataset import EvalDataset, TrainDataset
from stvid.errors import ConfigError
from stvid.runs import default_workers

__all__ = ["ResumableLoader", "StoppableLoader", "VideoData"]


class ResumableLoader:
    """A training loader that knows how far it is: epoch, and batches handed out in it.

    Each pass over it is the next epoch, or the rest of one: it starts with the batch after the last one, without
    decoding those before.

    Args:
        loader: This rank's share.
        epoch: Epoch to start in.
        batches: Batches of that epoch that have been used already.
    """

    def __init__(self, loader: TrainLoader, *, epoch: int = 0, batches: int = 0) -> None:
        self.loader = loader
        self.epoch = epoch
        self.batches = batches

    def __len__(self) -> int:
        """Returns the batches of a whole epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self.batches >= len(self):
            self.epoch, self.batches = self.epoch + 1, 0
        self.loader.set_epoch(self.epoch)
        self.loader.set_start(self.batches)
        for batch in self.loader:
            self.batches += 1
            yield batch


class StoppableLoader:
    """An evaluation loader that ends early when `stop` says so."""

    def __init__(self, loader: Any, stop: Callable[[], bool]) -> None:
        self.loader = loader
        self.stop = stop

    def __len__(self) -> int:
        """Returns the batches of a whole evaluation."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.stop():
                return
            yield batch


class VideoData(LightningDataModule):
    """Makes the loaders once the rank is known.

    Args:
        train: Training clips.
        val: Validation videos, or None.
        config: Batch sizes, workers, balance.
        seed: Seed of the order of the videos.
        stop: Asked between two validation batches whether to end.
    """

    def __init__(
        self,
        train: TrainDataset,
        val: EvalDataset | None,
        config: DataConfig,
        *,
        seed: int,
        stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.train_dataset = train
        self.val_dataset = val
        self.config = config
        self.seed = seed
        self.stop = stop
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, Any] = {"epoch": 0, "batches": 0}

    # Lightning stores the state of a data module in checkpoints. It also stores that of a loader with a `state_dict`,
    # but does not restore it from a checkpoint that was written at the end of an epoch (lightning 2.6, fit_loop.py).

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last batch that was handed out."""
        loader = self._train_loader
        if loader is None:
            return self._position
        return {"epoch": loader.epoch, "batches": loader.batches, "order": loader.loader.order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to a position; called before the loaders are made."""
        self._position = dict(state_dict)

    def _settings(self, batch_size: int) -> LoaderSettings:
        assert self.trainer is not None
        return LoaderSettings(
            batch_size=batch_size,
            workers=default_workers(self.config.workers),
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def steps_per_epoch(self, *, world_size: int, accumulate: int) -> int:
        """Returns the optimiser steps of an epoch; Lightning steps after the last batch even if others are missing."""
        loader = make_train_loader(
            self.train_dataset,
            LoaderSettings(self.config.batch_size, workers=0, world_size=world_size),
            seed=self.seed,
            balance=self.config.balance,
        )
        return -(-len(loader) // accumulate)

    def train_dataloader(self) -> ResumableLoader:
        """Returns this rank's share of the training clips."""
        loader = make_train_loader(
            self.train_dataset,
            self._settings(self.config.batch_size),
            seed=self.seed,
            balance=self.config.balance,
        )
        order = self._position.get("order", "")
        if order != loader.order and 0 < self._position["batches"] < len(loader):
            raise ConfigError(
                f"data.train: the run was stopped inside an epoch that {order or 'a list of files'} read, and cannot "
                f"go on there with {loader.order or 'a list of files'}; keep data.workers and trainer.devices"
            )
        self._train_loader = ResumableLoader(loader, epoch=self._position["epoch"], batches=self._position["batches"])
        return self._train_loader

    def close(self) -> None:
        """Ends the worker processes that are kept between epochs."""
        if self._train_loader is not None:
            self._train_loader.loader.close()

    def val_dataloader(self) -> list[StoppableLoader]:
        """Returns this rank's share of the validation videos."""
        if self.val_dataset is None:
            return []
        batch_size = self.config.val_batch_size or self.config.batch_size
        loader = make_eval_loader(self.val_dataset, self._settings(batch_size))
        return [StoppableLoader(loader, self._all_stop)]

    def _all_stop(self) -> bool:
        """Whether any rank is to stop: all end validation at the same batch, or the others would wait for ever."""
        assert self.trainer is not None
        if self.trainer.world_size == 1:
            return self.stop()
        return self.trainer.strategy.reduce_boolean_decision(self.stop(), all=False)
