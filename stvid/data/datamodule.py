"""Loaders: which videos make up a batch, in which process, and how worker processes are run.

Plain torch; the engine wraps it. The order of a training epoch is a pure function of (seed, epoch), so every rank
knows it without talking to the others, and a run can be resumed inside an epoch without decoding what it has seen.
"""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from stvid.config import AugmentConfig
from stvid.data.dataset import (
    STREAM_ORDER,
    Draw,
    EvalDataset,
    EvalSample,
    TrainBatch,
    TrainDataset,
    collate_eval,
    collate_train,
    make_generator,
)
from stvid.data.handover import ByValue, HandOver, sharing_advice, sockets_work, warn_of, worker_context
from stvid.data.manifest import Manifest, read_manifest
from stvid.data.members import Members
from stvid.data.shard_stream import ShardStream
from stvid.data.transforms import model_input
from stvid.errors import ConfigError, StvidError
from stvid.machine import usable_cores
from stvid.protocol import Protocol

__all__ = [
    "ClipBatch",
    "ClipLoader",
    "EvalLoader",
    "Loader",
    "LoaderOptions",
    "LoaderSettings",
    "ShardLoader",
    "TrainBatchSampler",
    "TrainLoader",
    "class_weights",
    "make_eval_loader",
    "make_loader",
    "make_train_loader",
    "worker_options",
]


def class_weights(manifest: Manifest) -> np.ndarray:
    """Returns the probability of each video with which every class that occurs is drawn equally often.

    A video of several classes counts for the rarest of them as much as for the others: it has the mean weight.

    Args:
        manifest: Labelled videos.

    Returns:
        float64 (N,), which sums to 1.
    """
    labels = [manifest.label_ids(index) for index in range(len(manifest))]
    counts = np.bincount(np.concatenate(labels), minlength=len(manifest.class_names))
    weights = np.array([np.mean(1.0 / counts[ids]) if len(ids) else 0.0 for ids in labels])
    return weights / weights.sum()


class TrainBatchSampler(Sampler[list[Draw]]):
    """The batches of one rank, epoch by epoch.

    Step s of all ranks together takes the videos s * G to (s + 1) * G of the epoch's order, where G is
    `videos_per_batch` * `world_size`: the same videos, however many ranks share them.

    Args:
        num_videos: Length of the data set.
        videos_per_batch: Videos of one batch of one rank.
        seed: Seed of the order, 0 or more.
        rank: Number of this process.
        world_size: Number of processes.
        weights: Probability of each video, float (N,), for drawing with replacement; None takes each video once.

    The videos at the end of an epoch that do not fill a batch of every rank are left out.

    Raises:
        ConfigError: If the videos do not fill one batch of every rank.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        videos_per_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        together = videos_per_batch * world_size
        if num_videos < together:
            raise ConfigError(
                f"data.batch_size: there are {num_videos} training videos, but one step takes {together} "
                f"({videos_per_batch} in each of {world_size} process{'es' if world_size > 1 else ''}); "
                "take a smaller batch or more videos"
            )
        self.num_videos = num_videos
        self.videos_per_batch = videos_per_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.weights = weights
        self._share = num_videos // together * videos_per_batch
        self._epoch = 0
        self._start = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self._epoch = epoch

    def set_start(self, batches: int) -> None:
        """Leaves out the first batches: to resume inside an epoch.

        Raises:
            ValueError: If an epoch does not have so many.
        """
        if not 0 <= batches <= len(self):
            raise ValueError(f"cannot start at batch {batches} of {len(self)}")
        self._start = batches

    def __len__(self) -> int:
        return self._share // self.videos_per_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        # Not a generator function: epoch and start are those of now, not of when the first batch is asked for.
        return iter(self._batches()[self._start :])

    def _batches(self) -> list[list[Draw]]:
        rng = make_generator(STREAM_ORDER, self.seed, self._epoch)
        if self.weights is None:
            order = rng.permutation(self.num_videos)
        else:
            order = rng.choice(self.num_videos, size=self.num_videos, p=self.weights)
        order = order[: self._share * self.world_size]
        copies = _occurrences(order)
        mine = [
            Draw(int(index), self._epoch, int(copy))
            for index, copy in zip(
                order[self.rank :: self.world_size], copies[self.rank :: self.world_size], strict=True
            )
        ]
        return [mine[at : at + self.videos_per_batch] for at in range(0, len(mine), self.videos_per_batch)]


def _occurrences(values: np.ndarray) -> np.ndarray:
    """For each value, how often it has occurred before: [5, 7, 5, 5] gives [0, 0, 1, 2]."""
    by_value = np.argsort(values, kind="stable")
    counts = np.unique(values, return_counts=True)[1]
    result = np.empty(len(values), dtype=np.int64)
    result[by_value] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return result


class _EvalSampler(Sampler[int]):
    """Every `world_size`-th video from `rank` on, filled up with repeated ones to the same length in all ranks."""

    def __init__(self, videos: Sequence[int], *, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        padded = -(-len(videos) // world_size) * world_size
        self._numbers = [videos[number % len(videos)] for number in range(rank, padded, world_size)]

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)


# --- worker processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WorkerInit:
    """Prepares a worker process; picklable."""

    seed: int
    rank: int

    def __call__(self, worker: int) -> None:
        # Ctrl-C reaches all processes of the terminal. Only the main one may act on it: it saves a checkpoint first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        torch.set_num_threads(1)
        # No sample uses global random state; this is for code of users that does (a subclass of a data set).
        state = np.random.SeedSequence([self.seed, self.rank, worker]).generate_state(3)
        random.seed(int(state[0]))
        np.random.seed(int(state[1]))  # noqa: NPY002
        torch.manual_seed(int(state[2]))


def _end_with_parent() -> None:
    """Ends this worker when the process that uses it is killed.

    torch's own watch looks at the parent's number, which in a worker of the forkserver is that of the server; and the
    server lives as long as one of its workers does. Without this, both stay for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Loader(DataLoader[Any]):
    """A loader whose errors are one line for the user; it works with little shared memory, too.

    Args:
        dataset: The samples.
        collate_fn: Joins samples to a batch.
        options: The other arguments of torch's loader, by their names.
    """

    _warned = False

    def __init__(self, dataset: Any, *, collate_fn: Callable[[Any], Any] | None = None, **options: Any) -> None:
        if collate_fn is not None and not isinstance(collate_fn, HandOver):
            collate_fn = HandOver(collate_fn, by_value=bool(options.get("num_workers")) and not sockets_work())
        super().__init__(dataset, collate_fn=collate_fn, **options)

    def __iter__(self) -> Generator[Any, None, None]:  # type: ignore[override]  # so that it can be closed
        try:
            batches = super().__iter__()
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, EOFError):  # of the server that forks them
                reason = "the process that starts them has ended, perhaps for want of memory"
            raise StvidError(
                f"data-loading processes cannot be started ({reason}; {sharing_advice()}, or data.workers 0)"
            ) from error
        return self._checked(batches)

    def _checked(self, batches: Any) -> Generator[Any, None, None]:
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                # The second kind: the worker died with a batch on its way, and the connection that hands over the
                # batch's memory broke.
                except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                    death = _describe_death(batches, error)
                    self.close()
                    if not death:
                        raise
                    raise StvidError(death) from error
                if isinstance(batch, ByValue):
                    if not self._warned:
                        self._warned = True
                        warn_of(batch)
                    batch = batch.unpack()
                if isinstance(batch, StvidError):
                    raise batch
                yield batch
        finally:
            # An exception's traceback keeps the iterator alive, and with it the workers, so they are ended here. torch
            # has no public way to do it; its own __del__ calls this.
            if not self.persistent_workers and hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()

    def close(self) -> None:
        """Ends worker processes that are kept between passes; the next pass starts new ones."""
        kept, self._iterator = self._iterator, None
        if kept is not None and hasattr(kept, "_shutdown_workers"):
            kept._shutdown_workers()


def _describe_death(batches: Any, error: Exception) -> str:
    """Says in one line which worker processes died, and what to do; empty if the error has another cause."""
    if str(error).startswith("Too many open files") or getattr(error, "errno", None) == errno.EMFILE:  # torch's words
        return "too many open files; raise the limit (ulimit -n 4096), or use fewer data.workers"
    noticed = str(error).startswith("DataLoader worker (pid")  # torch's words
    # What a data set raises in a worker is a RuntimeError, or says so; only a broken connection asks for a closer look.
    if not noticed and (isinstance(error, RuntimeError) or str(error).startswith("Caught ")):
        return ""
    workers = getattr(batches, "_workers", [])  # none without worker processes
    multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=5)
    dead = [worker for worker in workers if worker.exitcode is not None]
    if not dead:
        return str(error).strip().splitlines()[0] if noticed else ""
    who = f"data-loading process (pid {', '.join(str(worker.pid) for worker in dead)})"
    codes = sorted({worker.exitcode for worker in dead})
    if hasattr(signal, "SIGBUS") and codes[0] == -signal.SIGBUS:
        return f"{who} was killed by signal {signal.SIGBUS:d}: no room in shared memory; {sharing_advice()}"
    if codes[0] < 0:
        return (
            f"{who} was killed by signal {-codes[0]}, perhaps for want of memory; use fewer data.workers or a smaller "
            "data.batch_size"
        )
    return (
        f"{who} ended with exit code {codes[0]} before its work was done, for the reason that it printed; a script "
        "that uses workers must call them below `if __name__ == '__main__':`"
    )


class TrainLoader(Loader):
    """Batches of training clips; made by `make_train_loader`. Its length is that of a whole epoch."""

    batch_sampler: TrainBatchSampler
    dataset: TrainDataset

    def set_epoch(self, epoch: int) -> None:
        """Chooses order, crops and augmentation of the next pass."""
        self.batch_sampler.set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    @property
    def order(self) -> str:
        """Names all that the order of videos depends on besides seed, epoch and clips per step; may be empty."""
        return ""

    def set_start(self, batches: int) -> None:
        """Leaves out the first batches of the next pass, and only of that, without decoding them.

        Raises:
            ValueError: If an epoch does not have so many.
        """
        self.batch_sampler.set_start(batches)

    def __iter__(self) -> Generator[TrainBatch, None, None]:  # type: ignore[override]
        batches = super().__iter__()  # with workers, torch asks the sampler twice
        self.batch_sampler.set_start(0)
        return batches


class ShardLoader(TrainLoader):
    """Batches of training clips of videos in shards, read from front to back; made by `make_train_loader`."""

    dataset: ShardStream  # type: ignore[assignment]
    _started = False

    def set_epoch(self, epoch: int) -> None:
        """Chooses order, crops and augmentation of the next pass."""
        self.dataset.set_epoch(epoch)

    @property
    def order(self) -> str:
        """Names all that the order of videos depends on besides seed and epoch."""
        return self.dataset.order

    def set_start(self, batches: int) -> None:
        """Leaves out the first batches of the next pass, and only of that: they are read, but not decoded.

        Raises:
            ValueError: If an epoch does not have so many.
        """
        self.dataset.set_start(batches)
        self._started = False

    def __iter__(self) -> Generator[TrainBatch, None, None]:  # type: ignore[override]
        if self._started:  # the worker processes read the start of this pass later on, so only now it can be reset
            self.dataset.set_start(0)
        self._started = True
        return Loader.__iter__(self)


def _as_it_is(batch: Any) -> Any:
    return batch


class EvalLoader(Loader):
    """Lists of `EvalSample`; made by `make_eval_loader`."""

    dataset: EvalDataset

    def __iter__(self) -> Generator[list[EvalSample], None, None]:  # type: ignore[override]
        return super().__iter__()


@dataclass(frozen=True)
class LoaderSettings:
    """How one process of a training or an evaluation gets its batches.

    Attributes:
        batch_size: Clips of a training batch of this process, or videos of a list of an evaluation.
        workers: Processes that decode; 0 decodes in this one.
        rank: Number of this process.
        world_size: Number of processes.
        pin_memory: Whether batches are put into page-locked memory, for fast copies to a GPU.
    """

    batch_size: int
    workers: int
    rank: int = 0
    world_size: int = 1
    pin_memory: bool = False


def worker_options(workers: int, *, seed: int, rank: int, persistent: bool) -> dict[str, Any]:
    """Returns the arguments of a `Loader` that concern its worker processes.

    Args:
        workers: Their number; 0 decodes in this process.
        seed: Seed of the global random numbers of code that uses them; no sample of stvid does.
        rank: Number of the process that uses the loader.
        persistent: Whether the worker processes are kept for the next pass.

    Raises:
        ConfigError: If the number is below 0.
    """
    if workers < 0:
        raise ConfigError(f"data.workers: {workers!r} is not a whole number from 0 up")
    if workers == 0:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "multiprocessing_context": worker_context(),
        "worker_init_fn": _WorkerInit(seed, rank),
        "persistent_workers": persistent,
        "prefetch_factor": 2,
    }


def make_train_loader(
    dataset: TrainDataset,
    settings: LoaderSettings,
    *,
    seed: int,
    balance: Literal["none", "class"] = "none",
) -> TrainLoader:
    """Makes the loader of one training process; worker processes are kept from epoch to epoch.

    Args:
        dataset: The videos.
        settings: Batch size, worker processes and ranks.
        seed: Seed of the order, 0 or more.
        balance: ``class`` draws with replacement so that all classes are equally frequent; ``none`` takes each video
            once an epoch.

    Raises:
        ConfigError: If the clips that the data set gives of a video do not divide the batch size, there are too few
            videos for one batch, or a value is out of its range.
    """
    batch_size = settings.batch_size
    if batch_size < 1 or batch_size % dataset.repeats:
        raise ConfigError(
            f"data.batch_size: {batch_size} clips cannot be made of videos that give {dataset.repeats} clips each; "
            "data.repeats must divide it"
        )
    if balance not in ("none", "class"):
        raise ConfigError(f"data.balance: {balance!r} is neither none nor class")
    options = worker_options(settings.workers, seed=seed, rank=settings.rank, persistent=True)
    options["pin_memory"] = settings.pin_memory
    share = {"seed": seed, "rank": settings.rank, "world_size": settings.world_size}
    videos_per_batch = batch_size // dataset.repeats
    if isinstance(dataset.manifest.members, Members):
        if balance == "class":
            raise ConfigError(
                "data.balance: shards are read from front to back, each video once an epoch; set it to none, or give a "
                "list of files"
            )
        lanes = max(1, settings.workers)
        stream = ShardStream(dataset, videos_per_batch=videos_per_batch, lanes=lanes, **share)
        return ShardLoader(stream, batch_size=None, collate_fn=_as_it_is, **options)
    sampler = TrainBatchSampler(
        len(dataset),
        videos_per_batch=videos_per_batch,
        weights=class_weights(dataset.manifest) if balance == "class" else None,
        **share,
    )
    return TrainLoader(dataset, batch_sampler=sampler, collate_fn=collate_train, **options)


def make_eval_loader(
    dataset: EvalDataset,
    settings: LoaderSettings,
    *,
    only: Sequence[int] | None = None,
) -> EvalLoader:
    """Makes the loader of one evaluating process.

    The ranks take shares of equal length, in order; where the videos do not divide, some are repeated, so whoever
    joins the shares keeps one result for each `EvalSample.index`.

    Args:
        dataset: The videos.
        settings: Batch size, worker processes and ranks.
        only: Numbers of the videos to take; None takes all.

    Raises:
        ConfigError: If a value is out of its range.
    """
    if settings.batch_size < 1:
        raise ConfigError(f"data.val_batch_size: {settings.batch_size!r} is not a whole number from 1 up")
    videos = range(len(dataset)) if only is None else only
    return EvalLoader(
        dataset,
        batch_size=settings.batch_size,
        sampler=_EvalSampler(videos, rank=settings.rank, world_size=settings.world_size),
        collate_fn=collate_eval,
        pin_memory=settings.pin_memory,
        **worker_options(settings.workers, seed=0, rank=settings.rank, persistent=False),
    )


# --- for one's own training loop --------------------------------------------------------------------------------------


class ClipBatch(NamedTuple):
    """A batch of clips as a model takes them.

    Attributes:
        clips: float32 (B, C, T, H, W), normalised; or uint8, if it was asked for.
        labels: int64 (B,), or multi-hot float32 (B, K); -1 or zeros where a video has no label.
        videos: Number of the video of each clip, int64 (B,).
        views: Number of the view of each clip among those of its video, int64 (B,): the crops of the first temporal
            clip come first. Training clips of one video are numbered, too.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    videos: torch.Tensor
    views: torch.Tensor


@dataclass(frozen=True)
class LoaderOptions:
    """Further options of `make_loader`.

    Attributes:
        seed: Seed of the order, the crops and the augmentation.
        repeats: Training clips that are taken from a video each time it is decoded; it must divide the batch size.
        balance: ``class`` draws each class equally often; ``none`` takes each training video once in a pass.
        views: Temporal clips x spatial crops of an evaluation; None takes `protocol.views`.
        multilabel: Whether a video may have any number of labels.
        backend: Decoder: ``av``, ``decord``, ``torchcodec`` or ``frames``.
        decode_threads: Threads of one decoder.
        rank: Number of this process; each takes its own share.
        world_size: Number of processes.
        pin_memory: Whether batches are put into page-locked memory, for fast copies to a GPU.
    """

    seed: int = 0
    repeats: int = 1
    balance: Literal["none", "class"] = "none"
    views: str | None = None
    multilabel: bool = False
    backend: str = "av"
    decode_threads: int = 1
    rank: int = 0
    world_size: int = 1
    pin_memory: bool = False


class ClipLoader:
    """Batches of clips, each a `ClipBatch`; made by `make_loader`.

    Each pass over a training loader is the next epoch, with another order, other crops and other augmentation. Videos
    that cannot be read are replaced in training and left out in an evaluation.

    Attributes:
        manifest: The videos, with the names of the classes.
        protocol: How they are read.
        failures: Path and reason of each video that could not be read so far.
    """

    def __init__(self, loader: TrainLoader | EvalLoader, protocol: Protocol, *, normalized: bool) -> None:
        self.loader = loader
        self.protocol = protocol
        self.manifest: Manifest = loader.dataset.manifest
        self.failures: dict[str, str] = {}
        self._normalized = normalized
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the batches of a pass."""
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of the next pass, for a training that is continued; the passes go on from it."""
        self._epoch = epoch

    def close(self) -> None:
        """Ends the worker processes; the next pass starts new ones."""
        self.loader.close()

    def __iter__(self) -> Generator[ClipBatch, None, None]:
        if isinstance(self.loader, TrainLoader):
            self.loader.set_epoch(self._epoch)
            self._epoch += 1
            for batch in self.loader:
                self.failures.update(batch.failures)
                yield self._prepared(batch.clips, batch.labels, torch.from_numpy(batch.videos))
            return
        for samples in self.loader:
            read = [sample for sample in samples if sample.clips is not None]
            self.failures.update((self.manifest[s.index].path, str(s.error)) for s in samples if s.clips is None)
            if not read:
                continue
            counts = torch.tensor([len(sample.clips) for sample in read])  # type: ignore[arg-type]
            labels = torch.from_numpy(np.stack([sample.labels for sample in read]))
            videos = torch.tensor([sample.index for sample in read])
            clips = torch.cat([sample.clips for sample in read if sample.clips is not None])
            yield self._prepared(clips, labels.repeat_interleave(counts, 0), videos.repeat_interleave(counts))

    def _prepared(self, clips: torch.Tensor, labels: torch.Tensor, videos: torch.Tensor) -> ClipBatch:
        if self._normalized:
            clips = model_input(clips, self.protocol)
        changes = torch.cat([torch.ones(1, dtype=torch.bool), videos[1:] != videos[:-1]])
        starts = torch.arange(len(videos))[changes]
        views = torch.arange(len(videos)) - starts[changes.cumsum(0) - 1]
        return ClipBatch(clips, labels, videos, views)


def make_loader(
    videos: Manifest | str | os.PathLike[str],
    protocol: Protocol,
    *,
    train: bool,
    batch_size: int = 8,
    workers: int | None = None,
    augment: AugmentConfig | None = None,
    normalized: bool = True,
    options: LoaderOptions | None = None,
) -> ClipLoader:
    """Makes the clip loader of one's own training loop, without Lightning.

    A script with worker processes must make and use it below ``if __name__ == "__main__":``.

    Args:
        videos: Labelled videos: a list, a folder that holds a folder for each class, or what `read_manifest` returned.
        protocol: How clips are read, such as `model.default_protocol`.
        train: Whether to draw random clips of the videos in random order, `batch_size` clips a batch. What does not
            fill a batch at the end of a pass is left out, so that no batch norm meets a batch of one. Otherwise all
            test views of every video come in order, those of `batch_size` videos a batch.
        batch_size: Clips of a training batch, or videos of a batch of an evaluation.
        workers: Processes that decode; None takes one for each CPU core, 8 at most, and 0 decodes in this one.
        augment: Training augmentation; None takes the defaults: a random crop of a random size, mirrored or not. Not
            for an evaluation.
        normalized: Whether clips are float32, with the mean subtracted and divided by the standard deviation. If not,
            they are uint8, which takes a quarter of the memory on the way to a GPU, and are for `model_input` there.
        options: Seed, views, decoder, share of the process and more; None takes the defaults.

    Raises:
        ManifestError: If the list cannot be read, or training videos have no labels.
        ConfigError: If a value is out of its range, or there are too few videos for one batch.
    """
    chosen = LoaderOptions() if options is None else options
    manifest = videos if isinstance(videos, Manifest) else read_manifest(videos, multilabel=chosen.multilabel)
    settings = LoaderSettings(
        batch_size=batch_size,
        workers=min(usable_cores(), 8) if workers is None else workers,
        rank=chosen.rank,
        world_size=chosen.world_size,
        pin_memory=chosen.pin_memory,
    )
    shared: dict[str, Any] = {
        "backend": chosen.backend,
        "decode_threads": chosen.decode_threads,
        "multilabel": chosen.multilabel,
    }
    if not train:
        if augment is not None:
            raise ConfigError("augment: has a meaning for training alone; leave it out with train=False")
        views = protocol.views if chosen.views is None else chosen.views
        held = EvalDataset(manifest, protocol, views=views, **shared)
        return ClipLoader(make_eval_loader(held, settings), protocol, normalized=normalized)
    changes = AugmentConfig() if augment is None else augment
    clips = TrainDataset(manifest, protocol, changes, seed=chosen.seed, repeats=chosen.repeats, **shared)
    loader = make_train_loader(clips, settings, seed=chosen.seed, balance=chosen.balance)
    return ClipLoader(loader, protocol, normalized=normalized)
