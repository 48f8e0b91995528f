"""Training batches from WebDataset tar shards, which are read from front to back.

Disks and object stores like it so. Each epoch puts the shards in another order and cuts their videos into one run for
each process that reads; a process shuffles what it has read in a buffer, with the `webdataset` library. No video comes
twice in an epoch, and only those are left out that do not fill a batch of every rank, other ones in each epoch. The
clip that a video gives in an epoch is the very one that it gives when it is read from its own file. The order of the
videos is another than that of a list of files: it depends on the seed, the epoch, the numbers of ranks and of workers,
and the batch size.
"""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from stvid.data.dataset import STREAM_ORDER, Draw, TrainBatch, TrainDataset, collate_train, make_generator
from stvid.data.members import Members
from stvid.data.shards import INDEX
from stvid.errors import ConfigError, StvidError
from stvid.video.remote import file_system
from stvid.video.stored_index import unpack_index

__all__ = ["ShardStream"]

BUFFER_BYTES = 256 * 2**20
"""Videos, still encoded, that a process holds for shuffling."""

_MAX_BUFFER = 1000
_STREAM_BUFFER = 3  # beside the streams of `stvid.data.dataset`


class _Slice:
    """The bytes of a file from `begin` to `end`, as a stream."""

    def __init__(self, file: Any, begin: int, end: int) -> None:
        file.seek(begin)
        self.file = file
        self.left = end - begin

    def read(self, count: int) -> bytes:
        content = self.file.read(min(count, self.left))
        self.left -= len(content)
        return bytes(content)


class ShardStream(IterableDataset["TrainBatch | StvidError"]):
    """The training batches of one rank, read from shards in order; made by `stvid.data.datamodule.make_train_loader`.

    Each worker process is a lane: it reads a run of videos of its own, and makes every n-th batch.

    Args:
        dataset: Cuts the clips; its manifest lies in shards.
        videos_per_batch: Videos of one batch of one rank.
        seed: Seed of the order, 0 or more.
        lanes: Processes of this rank that read.
        rank: Number of this process.
        world_size: Number of training processes.

    Raises:
        ConfigError: If the videos do not fill one batch of every rank.
        StvidError: If `webdataset` is not installed.
    """

    def __init__(
        self, dataset: TrainDataset, *, videos_per_batch: int, seed: int, lanes: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if not isinstance(dataset.manifest.members, Members):
            raise ValueError("the videos do not lie in shards")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        _import_webdataset()
        self.dataset = dataset
        self.members: Members = dataset.manifest.members
        self.videos_per_batch = videos_per_batch
        self.seed = seed
        self.lanes = lanes
        self.rank = rank
        self.world_size = world_size
        together = videos_per_batch * world_size
        self._batches = len(dataset) // together
        if not self._batches:
            raise ConfigError(
                f"data.batch_size: there are {len(dataset)} training videos, but one step takes {together}; take a "
                "smaller batch or more videos"
            )
        mean = max(1, int(self.members.size.mean()))
        self.buffer = min(_MAX_BUFFER, max(videos_per_batch, BUFFER_BYTES // mean))
        # In shared memory, so that worker processes that are kept over epochs see them change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._start = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self._epoch.fill_(epoch)

    def set_start(self, batches: int) -> None:
        """Leaves out the first batches of the next passes: they are read, but not decoded.

        Raises:
            ValueError: If an epoch does not have so many.
        """
        if not 0 <= batches <= len(self):
            raise ValueError(f"cannot start at batch {batches} of {len(self)}")
        self._start.fill_(batches)

    @property
    def order(self) -> str:
        """Names all that the order of videos depends on besides seed and epoch, for people and for comparison."""
        readers = f"{self.world_size} ranks x {self.lanes} workers x {self.videos_per_batch} videos a batch"
        return f"{readers} of {len(self.members.files)} shards"

    def __len__(self) -> int:
        """Returns the batches of an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[TrainBatch | StvidError]:
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        # Not a generator function: epoch and start are those of now, not of when the first batch is asked for.
        return self._lane_batches(int(self._epoch), int(self._start), number)

    def lane_videos(self, epoch: int, lane: int) -> np.ndarray:
        """Returns the videos that a lane reads in an epoch, in the order of their places in the shards."""
        rng = make_generator(STREAM_ORDER, self.seed, epoch)
        by_place = np.lexsort((self.members.begin, self.members.shard))
        runs = np.split(by_place, np.flatnonzero(np.diff(self.members.shard[by_place])) + 1)
        everything = np.concatenate([runs[number] for number in rng.permutation(len(runs))])
        everything = np.roll(everything, -int(rng.integers(len(everything))))  # else the last shard is always cut short
        counts = [len(range(number, self._batches, self.lanes)) for number in range(self.lanes)]
        ends = np.cumsum(counts * self.world_size) * self.videos_per_batch
        at = self.rank * self.lanes + lane
        return everything[(ends[at - 1] if at else 0) : ends[at]]

    def _lane_batches(self, epoch: int, start: int, worker: int) -> Iterator[TrainBatch | StvidError]:
        # The loader takes its first batch from worker 0 even if that is batch `start`.
        lane = (start + worker) % self.lanes
        used = len(range(lane, start, self.lanes))
        videos = self.lane_videos(epoch, lane)
        if not len(videos):  # fewer batches than lanes
            return
        samples = self._videos(videos, make_generator(_STREAM_BUFFER, self.seed, epoch, lane))
        try:
            for _ in islice(samples, used * self.videos_per_batch):
                pass
            while chunk := list(islice(samples, self.videos_per_batch)):
                yield collate_train([self._clips(Draw(video, epoch), content, scan) for video, content, scan in chunk])
        except StvidError as error:
            yield error

    def _clips(self, draw: Draw, content: bytes, scan: bytes | None) -> Any:
        try:
            return self.dataset.sample(draw, content, None if scan is None else unpack_index(scan))
        except StvidError as error:
            return error

    def _videos(self, videos: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[int, bytes, bytes | None]]:
        """Yields number, bytes and packed index of some videos, shuffled in a buffer."""
        webdataset = _import_webdataset()
        from webdataset.tariterators import group_by_keys, tar_file_expander

        manifest = self.dataset.manifest
        wanted = {os.path.basename(manifest[int(video)].path).partition(".")[0]: int(video) for video in videos}
        files = tar_file_expander(self._parts(videos), select_files=lambda name: name.partition(".")[0] in wanted)

        def contents() -> Iterator[tuple[int, bytes, bytes | None]]:
            for sample in group_by_keys(files):
                beside = ("json", "scan")
                (content,) = (value for name, value in sample.items() if name not in beside and name[:2] != "__")
                yield wanted.pop(sample["__key__"]), content, sample.get("scan")

        shuffle = webdataset.shuffle(self.buffer, initial=self.buffer, rng=random.Random(int(rng.integers(2**62))))
        try:
            yield from shuffle(contents())
        except StvidError:
            raise
        except Exception as error:  # each file system has errors of its own
            detail = " ".join(str(error.args[0] if error.args else type(error).__name__).split())
            raise StvidError(f"{self.members.root}: a shard cannot be read ({detail})") from error
        if wanted:
            raise StvidError(
                f"{self.members.root}: {len(wanted)} videos are not in their shards, such as {next(iter(wanted))}; "
                f"shards and {INDEX} do not belong together"
            )

    def _parts(self, videos: np.ndarray) -> Iterator[Mapping[str, Any]]:
        """Yields a stream for each run of videos that lie one after the other in a shard."""
        where = self.members
        cuts = np.flatnonzero((np.diff(where.shard[videos]) != 0) | (np.diff(where.begin[videos]) <= 0)) + 1
        for part in np.split(videos, cuts):
            url = where.url(int(where.shard[part[0]]))
            last = part[-1]
            end = -(-int(where.data[last] + where.size[last]) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            files, path = file_system(url)
            with files.open(path, "rb") as file:
                yield {"url": url, "stream": _Slice(file, int(where.begin[part[0]]), end)}


def _import_webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise StvidError("training from shards needs webdataset: pip install stvid[shards]") from error
    return webdataset
