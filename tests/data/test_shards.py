"""Training and testing from tar shards; the reference is always the same videos as files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stvid.config import AugmentConfig, load_config
from stvid.data import sharding
from stvid.data.datamodule import LoaderSettings, ShardLoader, make_eval_loader, make_train_loader
from stvid.data.dataset import Draw, EvalDataset, TrainDataset
from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.data.shard_stream import ShardStream
from stvid.engine.train import train
from stvid.errors import ConfigError, Interrupted, ManifestError, StvidError
from stvid.protocol import Protocol
from stvid.video import stored_index
from stvid.video.av_reader import AvSource
from stvid.video.reader import Index, VideoReader, scan
from stvid.video.stored_index import pack_index, unpack_index

pytest.importorskip("webdataset")

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32)
MakeShards = Callable[..., Manifest]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Manifest:
    return read_manifest(make_dataset(tmp_path_factory.mktemp("files"), per_class=7))


@pytest.fixture(scope="module")
def shards(files: Manifest, tmp_path_factory: pytest.TempPathFactory, make_shards: MakeShards) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    make_shards(files, folder)
    assert len(list(folder.glob("*.tar"))) > 3
    return folder


def dataset(manifest: Manifest, **options: Any) -> TrainDataset:
    return TrainDataset(manifest, PROTOCOL, AugmentConfig(), seed=3, **options)


def lanes(manifest: Manifest, *, batch: int = 2, count: int = 2, ranks: int = 1) -> list[ShardStream]:
    return [
        ShardStream(dataset(manifest), videos_per_batch=batch, seed=3, lanes=count, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]


def test_the_list_of_shards_is_that_of_the_files(files: Manifest, shards: Path) -> None:
    found = read_manifest(shards)
    assert len(found) == len(files) == 21
    assert found.class_names == files.class_names
    assert (found.primary == files.primary).all()
    for index in (0, 7, 20):
        assert found.content(index) == Path(files[index].path).read_bytes()
        assert found[index].path.startswith(str(shards)) and Path(files[index].path).stem in found[index].path
    picked = found.subset([20, 3]).with_class_names([*reversed(files.class_names)])
    assert picked.content(0) == Path(files[20].path).read_bytes()
    assert picked[0].labels == files[20].labels


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_shards_are_tars_that_webdataset_reads(files: Manifest, shards: Path) -> None:
    import webdataset

    urls = sorted(str(path) for path in shards.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == len(files)
    by_name = {Path(files[index].path).name: index for index in range(len(files))}
    for sample in samples:
        about = json.loads(sample["json"])
        index = by_name[Path(about["name"]).name]
        assert sample["mp4"] == Path(files[index].path).read_bytes()
        assert about["labels"] == files.label_ids(index).tolist()
        packed = unpack_index(sample["scan"])
        assert packed is not None and np.array_equal(packed.timestamps, scan(files[index].path).timestamps)


def test_the_same_plan_gives_the_same_bytes_and_another_seed_another_order(
    files: Manifest, make_shards: MakeShards, tmp_path: Path
) -> None:
    one, two, other = folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        make_shards(files, folder, seed=seed)
    assert all((two / tar.name).read_bytes() == tar.read_bytes() for tar in one.glob("*.tar"))
    orders = []
    for folder in (one, other):
        names: list[str] = []
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                names += [name for name in tar.getnames() if name.endswith(".mp4")]
        assert sorted(names) != names and len(names) == 21  # shuffled, not in the order of the list
        orders.append(names)
    assert orders[0] != orders[1]


def test_a_clip_of_an_epoch_is_the_one_of_the_file(files: Manifest, shards: Path) -> None:
    loader = make_train_loader(dataset(read_manifest(shards), repeats=2), LoaderSettings(6, workers=0), seed=3)
    assert isinstance(loader, ShardLoader) and len(loader) == 7
    reference = dataset(files, repeats=2)
    orders = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen = []
        for batch in loader:
            assert batch.clips.shape == (6, 3, 4, 32, 32) and batch.clips.is_contiguous(
                memory_format=torch.channels_last_3d
            )
            for at in range(0, 6, 2):
                video = int(batch.videos[at])
                expected = reference[Draw(video, epoch)]
                assert torch.equal(batch.clips[at : at + 2], expected.clips)
                assert torch.equal(batch.labels[at : at + 2], expected.labels)
                seen.append(video)
        assert sorted(seen) == list(range(21))  # 7 batches of 3 videos: none is left out
        orders.append(seen)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("ranks", "count", "batch"), [(1, 1, 2), (1, 3, 2), (2, 2, 2), (3, 2, 1), (2, 3, 5)])
def test_no_video_comes_twice_in_an_epoch(shards: Path, ranks: int, count: int, batch: int) -> None:
    manifest = read_manifest(shards)
    left_out = set()
    for epoch in range(6):
        streams = lanes(manifest, batch=batch, count=count, ranks=ranks)
        everything = [stream.lane_videos(epoch, lane) for stream in streams for lane in range(count)]
        videos = np.concatenate(everything)
        steps = 21 // (batch * ranks)
        assert len(videos) == steps * batch * ranks == len(set(videos.tolist()))
        assert [len(stream) for stream in streams] == [steps] * ranks
        for lane, found in enumerate(everything):
            assert len(found) == len(range(lane % count, steps, count)) * batch
        left_out.add(frozenset(set(range(21)) - set(videos.tolist())))
    assert len(left_out) > 1 or left_out == {frozenset()}  # not always the same ones


def in_workers(stream: ShardStream, epoch: int, start: int = 0) -> list[list[int]]:
    """The videos of each batch, as a loader with a process a lane takes them in turn."""
    runs = [stream._lane_batches(epoch, start, worker) for worker in range(stream.lanes)]
    found = [batch for turn in itertools.zip_longest(*runs) for batch in turn if batch is not None]
    return [batch.videos.tolist() for batch in found]  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_pass_that_starts_later_goes_on_with_the_same_batches(shards: Path, count: int) -> None:
    (stream,) = lanes(read_manifest(shards), count=count)
    whole = in_workers(stream, 1)
    assert len(whole) == len(stream) == 10
    for start in (1, 4, 10):
        assert in_workers(stream, 1, start) == whole[start:]


def test_start_counts_for_one_pass(shards: Path) -> None:
    loader = make_train_loader(dataset(read_manifest(shards)), LoaderSettings(4, workers=0), seed=3)
    whole = [batch.videos.tolist() for batch in loader]
    loader.set_start(3)
    assert [batch.videos.tolist() for batch in loader] == whole[3:]
    assert [batch.videos.tolist() for batch in loader] == whole
    with pytest.raises(ValueError, match="cannot start at batch 6 of 5"):
        loader.set_start(6)


def test_worker_processes_read_their_lanes(shards: Path) -> None:
    manifest = read_manifest(shards)
    (stream,) = lanes(manifest, batch=4, count=2)
    expected = [in_workers(stream, 0, 1), in_workers(stream, 1)]
    loader = make_train_loader(dataset(manifest), LoaderSettings(4, workers=2), seed=3)
    try:
        loader.set_start(1)
        first = [batch.videos.tolist() for batch in loader]
        loader.set_epoch(1)
        second = [batch.videos.tolist() for batch in loader]
    finally:
        loader.close()
    assert [first, second] == expected


def test_some_of_the_videos_of_shards(files: Manifest, shards: Path) -> None:
    part = read_manifest(shards).subset([1, 4, 5, 13, 20, 2])
    loader = make_train_loader(dataset(part), LoaderSettings(3, workers=0), seed=3)
    reference = dataset(files.subset([1, 4, 5, 13, 20, 2]))
    seen = []
    for batch in loader:
        for at, video in enumerate(batch.videos.tolist()):
            assert torch.equal(batch.clips[at : at + 1], reference[Draw(video, 0)].clips)
            seen.append(video)
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]


def test_the_buffer_shuffles_within_its_size(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stream,) = lanes(read_manifest(shards), batch=3, count=1)
    read = stream.lane_videos(0, 0).tolist()
    shuffled = list(itertools.chain(*in_workers(stream, 0)))
    assert sorted(shuffled) == sorted(read) and shuffled != read
    stream.buffer = 1
    assert list(itertools.chain(*in_workers(stream, 0))) == read
    monkeypatch.setattr("stvid.data.shard_stream.BUFFER_BYTES", 1)
    assert lanes(read_manifest(shards), batch=3)[0].buffer == 3  # at least a batch


def test_evaluation_reads_from_shards_what_it_reads_from_files(files: Manifest, shards: Path) -> None:
    sets = [EvalDataset(manifest, PROTOCOL, views="2x3") for manifest in (files, read_manifest(shards))]
    loaded = [list(itertools.chain(*make_eval_loader(each, LoaderSettings(8, workers=0)))) for each in sets]
    assert len(loaded[0]) == len(loaded[1]) == 21
    for one, two in zip(*loaded, strict=True):
        assert one.clips is not None and two.clips is not None
        assert torch.equal(one.clips, two.clips) and (one.labels == two.labels).all()


@pytest.mark.parametrize("state", ["good", "damaged", "of another version", "missing"])
def test_a_video_is_scanned_only_if_its_index_is_of_no_use(
    files: Manifest, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    if state == "damaged":
        monkeypatch.setattr(sharding, "pack_index", lambda index: pack_index(index)[:-1] + b"!")
    elif state == "of another version":
        monkeypatch.setattr(stored_index, "_VERSION", 1)
    elif state == "missing":
        monkeypatch.setattr(sharding, "scan", lambda path: VideoReader(b"no video"))
    manifest = make_shards(files.subset(range(4)), tmp_path / "shards")
    monkeypatch.undo()

    scans = []
    original = AvSource._index_by_scan

    def counted(self: AvSource) -> Index:
        scans.append(self.name)
        return original(self)

    expected = [dataset(files)[Draw(video, 0)].clips for video in range(4)]
    monkeypatch.setattr(AvSource, "_index_by_scan", counted)
    tests = EvalDataset(manifest, PROTOCOL, views="1x1")
    assert all(tests[video].clips is not None for video in range(4))
    assert len(scans) == (0 if state == "good" else 4)
    scans.clear()
    for batch in make_train_loader(dataset(manifest), LoaderSettings(1, workers=0), seed=3):
        assert torch.equal(batch.clips, expected[int(batch.videos[0])])
    assert len(scans) == (0 if state == "good" else 4)


def test_an_unreadable_member_is_listed_and_replaced(files: Manifest, make_shards: MakeShards, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 50)
    entries = [files[index] for index in range(5)] + [VideoEntry(str(broken), files[0].labels)]
    manifest = make_shards(Manifest.from_entries(entries), tmp_path / "shards")
    batches = list(make_train_loader(dataset(manifest), LoaderSettings(3, workers=0), seed=3))
    failures = [failure for batch in batches for failure in batch.failures]
    assert len(failures) == 1 and failures[0][0].endswith("-broken.mp4") and "not a video" in failures[0][1]
    videos = np.concatenate([batch.videos for batch in batches])
    assert len(videos) == 6 and 5 not in videos
    sample = EvalDataset(manifest, PROTOCOL, views="1x1")[5]
    assert sample.clips is None and sample.error is not None


def test_parts_of_videos_and_several_labels(files: Manifest, make_shards: MakeShards, tmp_path: Path) -> None:
    path = files[0].path
    rows = [VideoEntry(path, ("a", "b"), 0.0, 0.3), VideoEntry(path, (), 0.3, 0.6), VideoEntry(files[9].path, ("c",))]
    source = Manifest.from_entries(rows, multilabel=True)
    found = make_shards(source, tmp_path / "shards")
    for index in range(3):
        assert dataclasses.replace(found[index], path="") == dataclasses.replace(source[index], path="")
    one, two = (TrainDataset(m, PROTOCOL, AugmentConfig(), seed=0, multilabel=True)[1] for m in (source, found))
    assert torch.equal(one.clips, two.clips) and torch.equal(one.labels, two.labels)


def test_shards_behind_a_url(files: Manifest, shards: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{shards}/", "/somewhere/", recursive=True)
    try:
        manifest = read_manifest("memory://somewhere")
        assert manifest[0].path.startswith("memory://somewhere/shard-")
        assert manifest.content(4) == Path(files[4].path).read_bytes()
        loader = make_train_loader(dataset(manifest), LoaderSettings(3, workers=0), seed=3)
        local = make_train_loader(dataset(read_manifest(shards)), LoaderSettings(3, workers=0), seed=3)
        for one, two in zip(loader, local, strict=True):
            assert torch.equal(one.clips, two.clips) and (one.videos == two.videos).all()
        memory.rm("/somewhere/shard-000001.tar")
        with pytest.raises(StvidError, match=r"memory://somewhere: a shard cannot be read"):
            list(loader)
    finally:
        memory.rm("/somewhere", recursive=True)


def test_what_cannot_be_used_is_one_line(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(shards)
    with pytest.raises(ConfigError, match=r"data.balance: shards are read from front to back"):
        make_train_loader(dataset(manifest), LoaderSettings(2, workers=0), seed=0, balance="class")
    with pytest.raises(ConfigError, match="one step takes 30"):
        make_train_loader(dataset(manifest), LoaderSettings(30, workers=0), seed=0)
    with pytest.raises(ManifestError, match="root has no meaning for shards"):
        read_manifest(shards, root=tmp_path)
    with pytest.raises(ManifestError, match="no such file; shards are made with: stvid prep shard"):
        read_manifest("memory://nothing-here")
    with pytest.raises(StvidError, match=r"^nosuch://a/shards\.json: "):
        read_manifest("nosuch://a")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "webdataset", None)
        with pytest.raises(StvidError, match=r"needs webdataset: pip install stvid\[shards\]"):
            make_train_loader(dataset(manifest), LoaderSettings(2, workers=0), seed=0)
    about = json.loads((shards / "shards.json").read_text())
    for text in (
        "{}",
        json.dumps(about | {"columns": about["columns"][1:]}),
        json.dumps(about | {"columns": about["columns"][:-2]}),
        json.dumps(about | {"columns": ["a"] * 10}),
    ):
        (tmp_path / "shards.json").write_text(text)
        with pytest.raises(ManifestError, match="is no list of shards"):
            read_manifest(tmp_path)
    (tmp_path / "shards.json").write_text(json.dumps(about).replace(about["shards"][0]["file"], r"\ud800", 1))
    with pytest.raises(ManifestError, match=r"shards\.json: holds \\ud800, which is half of a letter"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_incomplete_shards_are_noticed(files: Manifest, make_shards: MakeShards, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "shards"
    make_shards(files, folder)
    tar = folder / "shard-000001.tar"
    if change == "missing":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:-1024])
    with pytest.raises(ManifestError, match=rf"{tar}: (is missing|has \d+ bytes instead of \d+); copy it again"):
        read_manifest(folder)


def test_shards_that_do_not_belong_to_their_list(files: Manifest, make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(files, tmp_path / "shards")
    tar = tmp_path / "shards" / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[:1024] = bytes(1024)  # as after another archive was written there
    tar.write_bytes(content)
    with pytest.raises(StvidError, match=r"cannot be read|do not belong together"):
        list(make_train_loader(dataset(manifest), LoaderSettings(3, workers=0), seed=0))


def test_a_run_on_shards_can_be_continued_inside_an_epoch(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stvid.engine.callbacks import StopOnSignal
    from stvid.runs import resume_config

    def options(output: str) -> list[str]:
        values = {
            "model.name": "uniformer_xxs",
            "model.hyperparameters": "{depth: [1, 1, 1, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}",
            "data.train": str(shards),
            "data.val": str(shards),
            "data.batch_size": "4",
            "data.workers": "0",
            "protocol.frames": "4",
            "protocol.short_side": "40",
            "protocol.crop": "32",
            "trainer.max_epochs": "2",
            "trainer.accelerator": "cpu",
            "output": str(tmp_path / output),
        }
        return [f"--{key}={value}" for key, value in values.items()]

    whole = train(load_config(None, options("whole")))
    assert whole.metrics["val_failed"] == 0
    original = StopOnSignal.on_train_batch_end

    def stop(self: StopOnSignal, trainer: Any, *arguments: Any, **keywords: Any) -> None:
        if trainer.global_step == 2:
            self.received = 2
        original(self, trainer, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_train_batch_end", stop)
        with pytest.raises(Interrupted):
            train(load_config(None, options("part")))
    with pytest.raises(ConfigError, match="stopped inside an epoch that 1 ranks x 1 workers x 4 videos a batch of"):
        train(resume_config(tmp_path / "part", ["--data.workers=2"]))
    again = train(resume_config(tmp_path / "part", ["--data.workers=0"]))
    one, two = (torch.load(run.last, weights_only=False)["state_dict"] for run in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
