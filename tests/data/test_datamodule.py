from __future__ import annotations

import ast
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from stvid.config import AugmentConfig
from stvid.data.datamodule import (
    LoaderOptions,
    LoaderSettings,
    TrainBatchSampler,
    TrainLoader,
    class_weights,
    make_eval_loader,
    make_loader,
    make_train_loader,
)
from stvid.data.dataset import Draw, EvalDataset, TrainBatch, TrainDataset, TrainSample
from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.errors import ConfigError, StvidError, VideoError
from stvid.protocol import Protocol


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")  # ended, not yet collected


PROTOCOL = Protocol(frames=4, stride=2, short_side=64, crop=64)
AUGMENT = AugmentConfig(randaugment_magnitude=7.0, erasing=0.5)


@pytest.fixture(scope="module")
def manifest(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = make_dataset(tmp_path_factory.mktemp("set"), classes=("left", "right", "turn"), per_class=4)
    return read_manifest(folder)


def make_train(manifest: Manifest, *, workers: int = 0, batch_size: int = 4, **changes: object) -> TrainLoader:
    data = TrainDataset(manifest, PROTOCOL, AUGMENT, seed=0, repeats=int(changes.pop("repeats", 1)))  # type: ignore[call-overload]
    ranks = {name: changes.pop(name) for name in ("rank", "world_size") if name in changes}
    settings = LoaderSettings(batch_size, workers, **ranks)  # type: ignore[arg-type]
    return make_train_loader(data, settings, **{"seed": 0, **changes})  # type: ignore[arg-type]


def same(one: TrainBatch, other: TrainBatch) -> bool:
    return (
        torch.equal(one.clips, other.clips)
        and torch.equal(one.labels, other.labels)
        and one.videos.tolist() == other.videos.tolist()
    )


class Asked(TrainDataset):
    """Notes which samples are made."""

    def __getitem__(self, item: int | Draw) -> TrainSample:
        self.__dict__.setdefault("asked", []).append(item)
        return super().__getitem__(item)


class Observed(TrainDataset):
    """Puts what a worker process sees into the path of a failure."""

    def __getitem__(self, item: int | Draw) -> TrainSample:
        sample = super().__getitem__(item)
        info = get_worker_info()
        seen = (
            os.getpid(),
            -1 if info is None else info.id,
            torch.get_num_threads(),
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            (random.random(), float(np.random.rand()), float(torch.rand(()))),  # noqa: NPY002
        )
        sample.failures = ((repr(seen), "observed"),)
        return sample


class Slow(TrainDataset):
    def __getitem__(self, item: int | Draw) -> TrainSample:
        time.sleep(60)
        return super().__getitem__(item)


class TestTrainLoader:
    def test_an_epoch_takes_each_video_once(self, manifest: Manifest) -> None:
        loader = make_train(manifest)
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        assert sorted(np.concatenate([batch.videos for batch in batches]).tolist()) == list(range(12))
        for batch in batches:
            assert batch.clips.shape == (4, 3, 4, 64, 64) and batch.clips.dtype == torch.uint8
            assert batch.labels.tolist() == (batch.videos // 4).tolist()
            assert batch.failures == ()

    def test_epochs_differ_and_come_back(self, manifest: Manifest) -> None:
        loader = make_train(manifest)
        first = list(loader)
        loader.set_epoch(1)
        second = list(loader)
        assert [batch.videos.tolist() for batch in first] != [batch.videos.tolist() for batch in second]
        loader.set_epoch(0)
        assert all(same(one, other) for one, other in zip(first, loader, strict=True))
        assert not any(
            np.array_equal(clip, other)
            for clip in torch.cat([batch.clips for batch in first]).numpy()
            for other in torch.cat([batch.clips for batch in second]).numpy()
        )

    def test_seed_changes_the_order(self, manifest: Manifest) -> None:
        orders = [next(iter(make_train(manifest, seed=seed, batch_size=12))).videos.tolist() for seed in (0, 1)]
        assert orders[0] != orders[1]

    @pytest.mark.parametrize("start", [0, 1, 2, 3])
    def test_resume_skips_without_decoding(self, manifest: Manifest, start: int) -> None:
        whole = make_train(manifest)
        whole.set_epoch(5)
        expected = list(whole)
        data = Asked(manifest, PROTOCOL, AUGMENT, seed=0)
        loader = make_train_loader(data, LoaderSettings(4, workers=0), seed=0)
        loader.set_epoch(5)
        loader.set_start(start)
        got = list(loader)
        assert len(got) == 3 - start
        assert all(same(one, other) for one, other in zip(expected[start:], got, strict=True))
        assert len(data.__dict__.get("asked", [])) == 12 - 4 * start
        assert len(loader) == 3, "the length is that of a whole epoch"
        loader.set_epoch(6)
        assert len(list(loader)) == 3, "the next epoch is whole"

    def test_start_and_epoch_in_either_order(self, manifest: Manifest) -> None:
        loader = make_train(manifest)
        loader.set_start(2)
        loader.set_epoch(1)
        assert len(list(loader)) == 1

    @pytest.mark.parametrize("start", [-1, 4])
    def test_start_beyond_the_epoch(self, manifest: Manifest, start: int) -> None:
        with pytest.raises(ValueError, match=f"batch {start} of 3"):
            make_train(manifest).set_start(start)

    def test_repeats(self, manifest: Manifest) -> None:
        loader = make_train(manifest, repeats=2)
        batches = list(loader)
        assert len(batches) == len(loader) == 6
        assert all(batch.clips.shape[0] == 4 for batch in batches)
        assert all(len(set(batch.videos.tolist())) == 2 for batch in batches)

    def test_corrupt_file(self, manifest: Manifest, tmp_path: Path) -> None:
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(b"\0" * 5000)
        rows = [VideoEntry(str(bad), ("left",)), *(manifest[index] for index in range(7))]
        loader = make_train(Manifest.from_entries(rows, class_names=manifest.class_names))
        for epoch in range(3):
            loader.set_epoch(epoch)
            batches = list(loader)
            assert [path for batch in batches for path, _ in batch.failures] == [str(bad)]
            assert all(len(batch.clips) == 4 for batch in batches)
            assert all(0 not in batch.videos for batch in batches)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 16}, r"data.batch_size: there are 12 training videos, but one step takes 16 "),
            ({"batch_size": 8, "world_size": 2}, r"12 training videos, .* takes 16 \(8 in each of 2 processes"),
            ({"batch_size": 5, "repeats": 2}, "data.batch_size: 5 clips.*2 clips each; data.repeats must divide"),
            ({"batch_size": 0}, "data.batch_size"),
            ({"workers": -1}, "data.workers"),
            ({"balance": "video"}, "data.balance: 'video'"),
        ],
    )  # fmt: skip
    def test_bad_values(self, manifest: Manifest, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            make_train(manifest, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


class TestTrainBatchSampler:
    def ids(self, sampler: TrainBatchSampler) -> list[list[int]]:
        return [[draw.video for draw in batch] for batch in sampler]

    def test_ranks_take_disjoint_shares_of_the_same_batches(self) -> None:
        whole = TrainBatchSampler(103, videos_per_batch=12, seed=3)
        ranks = [TrainBatchSampler(103, videos_per_batch=4, seed=3, rank=rank, world_size=3) for rank in range(3)]
        for epoch in (0, 1):
            for sampler in (whole, *ranks):
                sampler.set_epoch(epoch)
            together = self.ids(whole)
            shares = [self.ids(sampler) for sampler in ranks]
            assert [len(share) for share in shares] == [8, 8, 8] == [len(sampler) for sampler in ranks]
            for step, batch in enumerate(together):
                parts = [share[step] for share in shares]
                assert sorted(chain(*parts)) == sorted(batch), "a step is the same videos for any number of ranks"
            everything = list(chain(*together))
            assert len(everything) == len(set(everything)) == 96

    def test_all_videos_are_seen_over_epochs(self) -> None:
        sampler = TrainBatchSampler(11, videos_per_batch=4, seed=0)
        seen: set[int] = set()
        for epoch in range(10):
            sampler.set_epoch(epoch)
            seen |= set(chain(*self.ids(sampler)))
        assert seen == set(range(11))

    def test_copies_number_the_draws_of_one_video(self) -> None:
        weights = np.array([0.7, 0.1, 0.1, 0.1])
        ranks = [
            TrainBatchSampler(4, videos_per_batch=1, seed=0, rank=r, world_size=2, weights=weights) for r in range(2)
        ]
        draws = [draw for sampler in ranks for batch in sampler for draw in batch]
        assert len(draws) == len(set(draws)) == 4, "the same video twice in an epoch is augmented in two ways"
        counts = Counter(draw.video for draw in draws)
        assert max(counts.values()) > 1
        for video, count in counts.items():
            assert sorted(draw.copy for draw in draws if draw.video == video) == list(range(count))

    def test_weights_of_classes(self) -> None:
        rows = [VideoEntry(f"/{n}.mp4", ("rare" if n < 10 else "often" if n < 300 else "some",)) for n in range(400)]
        manifest = Manifest.from_entries(rows, class_names=("never", "often", "rare", "some"))
        weights = class_weights(manifest)
        assert weights.sum() == pytest.approx(1)
        assert weights[:10].sum() == pytest.approx(1 / 3) == weights[10:300].sum()
        sampler = TrainBatchSampler(400, videos_per_batch=4, seed=0, weights=weights)
        counts: Counter[int] = Counter()
        orders = set()
        for epoch in range(20):
            sampler.set_epoch(epoch)
            drawn = list(chain(*self.ids(sampler)))
            assert len(drawn) == 400
            orders.add(tuple(drawn))
            counts.update(int(manifest.primary[video]) for video in drawn)
        assert len(orders) == 20
        assert counts[0] == 0
        for label in (1, 2, 3):
            assert abs(counts[label] / 8000 - 1 / 3) < 0.02

    def test_weights_of_several_labels(self) -> None:
        rows = [
            VideoEntry("/0", ("a",)),
            VideoEntry("/1", ("a", "b")),
            VideoEntry("/2", ("a",)),
            VideoEntry("/3", ("a",)),
        ]
        weights = class_weights(Manifest.from_entries(rows))
        assert weights[1] / weights[0] == pytest.approx((1 / 4 + 1) / 2 * 4)

    @pytest.mark.parametrize("rank", [-1, 2])
    def test_rank_outside_the_world(self, rank: int) -> None:
        with pytest.raises(ValueError, match="rank"):
            TrainBatchSampler(10, videos_per_batch=2, seed=0, rank=rank, world_size=2)

    def test_balanced_loader(self, manifest: Manifest) -> None:
        uneven = manifest.subset([0, 4, 5, 6, 7, 8, 9, 10])
        loader = make_train(uneven, balance="class")
        counts: Counter[int] = Counter()
        for epoch in range(15):
            loader.set_epoch(epoch)
            counts.update(uneven.primary[draw.video] for batch in loader.batch_sampler for draw in batch)
        assert counts[0] / 120 > 0.22, "the only video of its class is drawn as often as the four of another"


class TestEvalLoader:
    def test_order_is_kept(self, manifest: Manifest) -> None:
        loader = make_eval_loader(EvalDataset(manifest, PROTOCOL, views="2x1"), LoaderSettings(5, workers=0))
        batches = list(loader)
        assert [len(batch) for batch in batches] == [5, 5, 2] and len(loader) == 3
        assert [sample.index for batch in batches for sample in batch] == list(range(12))

    @pytest.mark.parametrize(("videos", "world"), [(12, 2), (11, 2), (10, 4), (1, 3), (2, 5)])
    def test_ranks_take_equal_shares_that_cover_everything(self, manifest: Manifest, videos: int, world: int) -> None:
        data = EvalDataset(manifest.subset(range(videos)), PROTOCOL, views="1x1")
        shares = []
        for rank in range(world):
            loader = make_eval_loader(data, LoaderSettings(3, workers=0, rank=rank, world_size=world))
            shares.append([sample.index for batch in loader for sample in batch])
        assert len({len(share) for share in shares}) == 1
        seen = [index for share in shares for index in share]
        assert set(seen) == set(range(videos))
        assert len(seen) - videos < world, "no more repeated ones than needed"
        # Without the repeated ones at the end, the shares are disjoint and in order.
        real = [share[: (videos - rank + world - 1) // world] for rank, share in enumerate(shares)]
        assert all(share == sorted(share) for share in real)
        assert sorted(chain(*real)) == list(range(videos))

    def test_bad_values(self, manifest: Manifest) -> None:
        data = EvalDataset(manifest, PROTOCOL, views="1x1")
        with pytest.raises(ConfigError, match="batch_size"):
            make_eval_loader(data, LoaderSettings(0, workers=0))
        with pytest.raises(ConfigError, match="workers"):
            make_eval_loader(data, LoaderSettings(1, workers=-2))
        with pytest.raises(ValueError, match="rank 2 of 2"):
            make_eval_loader(data, LoaderSettings(1, workers=0, rank=2, world_size=2))


class TestWorkers:
    @pytest.fixture(autouse=True)
    def _importable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Worker processes import this file by its name, also where pytest was started without the working directory.
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))

    def test_batches_do_not_depend_on_the_number_of_workers(self, manifest: Manifest) -> None:
        expected = {}
        plain = make_train(manifest, repeats=2)
        for epoch in (0, 1):
            plain.set_epoch(epoch)
            expected[epoch] = list(plain)
        for workers in (1, 2):
            loader = make_train(manifest, workers=workers, repeats=2)
            loader.set_epoch(1)
            loader.set_start(4)  # of the first pass, which starts the workers
            assert all(same(one, other) for one, other in zip(expected[1][4:], loader, strict=True))
            for epoch in (1, 0):  # kept workers must see the change
                loader.set_epoch(epoch)
                assert all(same(one, other) for one, other in zip(expected[epoch], loader, strict=True))
            loader.set_epoch(1)
            loader.set_start(4)
            assert all(same(one, other) for one, other in zip(expected[1][4:], loader, strict=True))
            loader.close()

    def test_eval_batches_do_not_depend_on_the_number_of_workers(self, manifest: Manifest, tmp_path: Path) -> None:
        rows = [*(manifest[index] for index in range(5)), VideoEntry(str(tmp_path / "none.mp4"), ("left",))]
        data = EvalDataset(Manifest.from_entries(rows), PROTOCOL, views="2x3")
        alone = [sample for batch in make_eval_loader(data, LoaderSettings(4, workers=0)) for sample in batch]
        shared = [sample for batch in make_eval_loader(data, LoaderSettings(4, workers=2)) for sample in batch]
        assert [sample.index for sample in shared] == [sample.index for sample in alone]
        assert [sample.error for sample in shared] == [sample.error for sample in alone]
        for one, other in zip(alone[:5], shared[:5], strict=True):
            assert one.clips is not None and other.clips is not None
            assert torch.equal(one.clips, other.clips)
            assert np.array_equal(one.indices, other.indices)

    def test_processes(self, manifest: Manifest) -> None:
        observed: dict[int, list[tuple[object, ...]]] = {}
        pids = set()
        for seed in (0, 1):
            data = Observed(manifest, PROTOCOL, AUGMENT, seed=0)
            loader = make_train_loader(data, LoaderSettings(2, workers=2), seed=seed)
            for _ in range(2):
                for batch in loader:
                    for text, _ in batch.failures:
                        observed.setdefault(seed, []).append(ast.literal_eval(text))
            loader.close()
            pids |= {seen[0] for seen in observed[seed]}
            assert len({seen[0] for seen in observed[seed]}) == 2, "workers are kept from epoch to epoch"
        assert os.getpid() not in pids
        everything = observed[0] + observed[1]
        assert {seen[1] for seen in everything} == {0, 1}
        assert {seen[2] for seen in everything} == {1}, "one thread each"
        assert {seen[3] for seen in everything} == {True}, "Ctrl-C is for the main process"
        first = {seed: {w: next(s[4] for s in seen if s[1] == w) for w in (0, 1)} for seed, seen in observed.items()}
        assert len({first[seed][worker] for seed in (0, 1) for worker in (0, 1)}) == 4, "each has its own seeds"

    def test_never_forked(self, manifest: Manifest) -> None:
        loader = make_train(manifest, workers=1)
        context = loader.multiprocessing_context
        assert context is not None and context.get_start_method() in ("forkserver", "spawn")

    @pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux shows them")
    def test_file_descriptors_do_not_pile_up(self, manifest: Manifest) -> None:
        loader = make_train(manifest, workers=1, batch_size=2)
        kept = []
        counts = []
        for epoch in range(4):
            loader.set_epoch(epoch)
            for batch in loader:
                kept.append((batch.videos, batch.failures))  # what a run may well keep
                del batch
            gc.collect()
            counts.append(len(os.listdir("/proc/self/fd")))
        loader.close()
        assert counts[-1] <= counts[0] + 1
        assert len(kept) == 24

    def test_errors_for_the_user_are_one_line(self, tmp_path: Path) -> None:
        rows = [VideoEntry(str(tmp_path / f"{number}.mp4"), ("a",)) for number in range(3)]
        loader = make_train(Manifest.from_entries(rows, source="list.csv"), workers=1, batch_size=2)
        with pytest.raises(VideoError, match=r"list.csv: 3 videos in a row cannot be read") as caught:
            list(loader)
        assert "\n" not in str(caught.value)
        loader.close()

    @pytest.mark.parametrize("busy", [True, False], ids=["while it works", "with batches on their way"])
    def test_a_killed_worker_is_named_within_seconds(self, manifest: Manifest, busy: bool) -> None:
        data = (Slow if busy else TrainDataset)(manifest, PROTOCOL, AUGMENT, seed=0)
        loader = make_train_loader(data, LoaderSettings(4, workers=1), seed=0)
        before = set(multiprocessing.active_children())
        batches = iter(loader)
        (worker,) = set(multiprocessing.active_children()) - before
        assert worker.pid is not None
        time.sleep(0 if busy else 1.5)
        os.kill(worker.pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(StvidError) as caught:
            next(batches)
        assert time.monotonic() - started < 30
        message = str(caught.value)
        assert f"process (pid {worker.pid}) was killed by signal 9" in message
        assert "data.workers" in message and "\n" not in message
        assert set(multiprocessing.active_children()) == before

    @pytest.mark.slow
    def test_a_script_without_main_guard_is_told_what_to_do(self, manifest: Manifest, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from stvid.data.datamodule import LoaderSettings, make_eval_loader\n"
            "from stvid.data.dataset import EvalDataset\n"
            "from stvid.data.manifest import Manifest, VideoEntry\n"
            "from stvid.protocol import Protocol\n"
            f"videos = Manifest.from_entries([VideoEntry({manifest[0].path!r}, ('a',))])\n"
            "data = EvalDataset(videos, Protocol(), views='1x1')\n"
            "list(make_eval_loader(data, LoaderSettings(1, workers=1)))\n"
        )
        root = str(Path(__file__).parents[2])
        result = subprocess.run(
            [sys.executable, str(script)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert result.returncode != 0
        assert "exit code 1" in result.stderr.splitlines()[-1]
        assert "if __name__ == '__main__':" in result.stderr.splitlines()[-1]

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals of POSIX")
    def test_workers_end_with_a_killed_process(self, manifest: Manifest, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "import multiprocessing, time\n"
            "from stvid.data.datamodule import LoaderSettings, make_eval_loader\n"
            "from stvid.data.dataset import EvalDataset\n"
            "from stvid.data.manifest import Manifest, VideoEntry\n"
            "from stvid.protocol import Protocol\n"
            "if __name__ == '__main__':\n"
            f"    paths = {[entry.path for entry in manifest]!r}\n"
            "    videos = Manifest.from_entries([VideoEntry(path, ('a',)) for path in paths])\n"
            "    data = EvalDataset(videos, Protocol(), views='1x1')\n"
            "    batches = iter(make_eval_loader(data, LoaderSettings(1, workers=2)))\n"
            "    next(batches)\n"
            "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
            "    time.sleep(120)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            workers = [int(pid) for pid in process.stdout.readline().split()]
            process.kill()
        assert len(workers) == 2
        deadline = time.monotonic() + 30
        while any(is_running(pid) for pid in workers):
            assert time.monotonic() < deadline, "workers outlive the process that used them"
            time.sleep(0.2)

    def test_leaving_early_ends_the_workers(self, manifest: Manifest) -> None:
        data = EvalDataset(manifest, PROTOCOL, views="1x1")
        before = set(multiprocessing.active_children())
        batches = iter(make_eval_loader(data, LoaderSettings(1, workers=1)))
        next(batches)
        assert len(set(multiprocessing.active_children()) - before) == 1
        batches.close()  # type: ignore[attr-defined]
        assert set(multiprocessing.active_children()) == before

    def test_close_ends_kept_workers_and_the_loader_can_go_on(self, manifest: Manifest) -> None:
        before = set(multiprocessing.active_children())
        loader = make_train(manifest, workers=1)
        first = list(loader)
        assert len(set(multiprocessing.active_children()) - before) == 1
        loader.close()
        assert set(multiprocessing.active_children()) == before
        assert all(same(one, other) for one, other in zip(first, loader, strict=True))
        loader.close()


def test_batches_survive_pinning(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned: list[tuple[int, ...]] = []

    def pretend(tensor: torch.Tensor, *device: object) -> torch.Tensor:
        pinned.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pretend)  # the real one needs a GPU
    (batch, *_) = make_train(manifest)
    moved = pin_memory(batch)
    assert isinstance(moved, TrainBatch) and same(moved, batch)
    assert pinned == [(4, 3, 4, 64, 64), (4,)]
    (samples,) = make_eval_loader(EvalDataset(manifest, PROTOCOL, views="2x1"), LoaderSettings(12, workers=0))
    assert [sample.index for sample in pin_memory(samples)] == list(range(12))
    assert pinned[2:] == [(2, 3, 4, 64, 64)] * 12
    error = StvidError("one line")
    assert pin_memory(error) is error


class TestClipLoader:
    def test_training_clips_are_normalised(self, manifest: Manifest) -> None:
        protocol = PROTOCOL.replace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
        floats = list(make_loader(manifest, protocol, train=True, batch_size=4, workers=0))
        bytes_ = list(make_loader(manifest, protocol, train=True, batch_size=4, workers=0, normalized=False))
        assert len(floats) == len(bytes_) == 3
        for normalized, plain in zip(floats, bytes_, strict=True):
            assert normalized.clips.shape == plain.clips.shape == (4, 3, 4, 64, 64)
            assert normalized.clips.dtype == torch.float32 and plain.clips.dtype == torch.uint8
            expected = (plain.clips / 255 - torch.tensor(protocol.mean).view(-1, 1, 1, 1)) / torch.tensor(
                protocol.std
            ).view(-1, 1, 1, 1)
            assert torch.allclose(normalized.clips, expected, atol=1e-5)
            assert normalized.labels.tolist() == plain.labels.tolist()
            assert [manifest.primary[video] for video in plain.videos.tolist()] == plain.labels.tolist()
        assert sorted(torch.cat([batch.videos for batch in floats]).tolist()) == list(range(12))

    def test_each_pass_is_another_epoch(self, manifest: Manifest) -> None:
        loader = make_loader(manifest, PROTOCOL, train=True, workers=0, options=LoaderOptions(seed=3))
        first, second = (torch.cat([batch.videos for batch in loader]).tolist() for _ in range(2))
        assert first != second
        loader.set_epoch(0)
        assert torch.cat([batch.videos for batch in loader]).tolist() == first
        assert torch.cat([batch.videos for batch in loader]).tolist() == second

    def test_clips_of_one_video_are_numbered(self, manifest: Manifest) -> None:
        loader = make_loader(manifest, PROTOCOL, train=True, workers=0, options=LoaderOptions(repeats=2))
        batch = next(iter(loader))
        assert batch.views.tolist() == [0, 1] * 4 and batch.videos[::2].tolist() == batch.videos[1::2].tolist()

    def test_an_evaluation_gives_all_views_in_order(self, manifest: Manifest) -> None:
        protocol = PROTOCOL.replace(short_side=80, views="2x3")
        loader = make_loader(manifest, protocol, train=False, batch_size=5, workers=1)
        batches = list(loader)
        loader.close()
        assert [len(batch.clips) for batch in batches] == [30, 30, 12] and len(loader) == 3
        videos = torch.cat([batch.videos for batch in batches])
        assert videos.tolist() == [video for video in range(12) for _ in range(6)]
        assert torch.cat([batch.views for batch in batches]).tolist() == list(range(6)) * 12
        labels = torch.cat([batch.labels for batch in batches])
        assert labels.tolist() == [manifest.primary[video] for video in videos.tolist()]
        one = make_loader(manifest, protocol, train=False, workers=0, options=LoaderOptions(views="1x1"))
        assert sum(len(batch.clips) for batch in one) == 12

    def test_unreadable_videos_are_left_out_and_listed(self, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
        folder = make_dataset(tmp_path / "set", classes=("a", "b"), per_class=2)
        (folder / "a" / "a_0.mp4").write_bytes(b"no video")
        loader = make_loader(folder, PROTOCOL, train=False, batch_size=1, workers=0)
        assert [batch.videos.tolist() for batch in loader] == [[1], [2], [3]]
        assert [Path(path).name for path in loader.failures] == ["a_0.mp4"]
        loader = make_loader(folder, PROTOCOL, train=True, batch_size=4, workers=0)
        (batch,) = loader
        assert len(batch.clips) == 4 and 0 not in batch.videos.tolist()
        assert [Path(path).name for path in loader.failures] == ["a_0.mp4"]

    def test_a_batch_of_one_is_never_left_over(self, manifest: Manifest) -> None:
        loader = make_loader(manifest.subset(np.arange(9)), PROTOCOL, train=True, batch_size=4, workers=0)
        assert [len(batch.clips) for batch in loader] == [4, 4]

    def test_what_has_no_meaning_is_refused(self, manifest: Manifest) -> None:
        with pytest.raises(ConfigError, match=r"^augment: has a meaning for training alone"):
            make_loader(manifest, PROTOCOL, train=False, augment=AUGMENT)
        with pytest.raises(ConfigError, match=r"^data\.batch_size: there are 12 training videos"):
            make_loader(manifest, PROTOCOL, train=True, batch_size=16, workers=0)

    @pytest.mark.slow  # a process that imports torch; tests/test_structure.py reads who imports Lightning
    def test_it_needs_no_lightning(self) -> None:
        code = "import sys, stvid; stvid.make_loader; print('lightning' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
