from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stvid.config import AugmentConfig
from stvid.data import clips as clips_module
from stvid.data import dataset as dataset_module
from stvid.data.clips import ClipPlan, CropBox, cut_views, make_clip, scaled_frames, view_plans, whole_frames
from stvid.data.dataset import (
    Draw,
    EvalDataset,
    TrainDataset,
    TrainSample,
    collate_eval,
    collate_train,
    load_clip,
    make_generator,
)
from stvid.data.manifest import Manifest, VideoEntry, read_manifest
from stvid.data.transforms import normalize
from stvid.errors import ConfigError, ManifestError, MissingFileError, StvidError, VideoError
from stvid.protocol import Protocol
from stvid.video.reader import VideoReader

PROTOCOL = Protocol(frames=4, stride=2, short_side=64, crop=64)
PLAIN = AugmentConfig(resize="none", hflip=0.0)

Number = Callable[[torch.Tensor], int]
MakeVideo = Callable[..., Path]


def numbers(clip: torch.Tensor, frame_number: Number) -> list[int]:
    """The frame numbers in a clip, uint8 (C, T, H, W)."""
    return [frame_number(frame) for frame in clip.permute(1, 2, 3, 0)]


@pytest.fixture(scope="module")
def folder(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("set"), classes=("left", "right", "turn"), per_class=3)


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Manifest:
    """Three videos of which the middle one cannot be read."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video" * 100)
    rows = [
        VideoEntry(str(folder / "left" / "left_0.mp4"), ("left",)),
        VideoEntry(str(bad), ("right",)),
        VideoEntry(str(folder / "turn" / "turn_0.mp4"), ("turn",)),
    ]
    return Manifest.from_entries(rows, class_names=("left", "right", "turn"))


def make_train(manifest: Manifest, augment: AugmentConfig = PLAIN, **changes: object) -> TrainDataset:
    return TrainDataset(manifest, PROTOCOL, augment, **{"seed": 0, **changes})  # type: ignore[arg-type]


class TestTrainDataset:
    def test_sample(self, manifest: Manifest, frame_number: Number) -> None:
        train = make_train(manifest)
        assert len(train) == 9
        for index in range(9):
            sample = train[index]
            assert sample.clips.shape == (1, 3, 4, 64, 64) and sample.clips.dtype == torch.uint8
            assert sample.labels.tolist() == [index // 3] and sample.labels.dtype == torch.int64
            assert sample.index == index
            assert sample.failures == ()
            assert np.diff(sample.indices[0]).tolist() == [2, 2, 2]
            assert numbers(sample.clips[0], frame_number) == (64 * (index % 3) + sample.indices[0]).tolist()
            assert sample.seconds[0] == pytest.approx(sample.indices[0] / 25)
            assert sample.crop_boxes == (CropBox(0, 0, 64, 64),)
            assert sample.flipped == (False,)

    def test_iterates_and_ends(self, manifest: Manifest) -> None:
        assert [sample.index for sample in make_train(manifest)] == list(range(9))
        with pytest.raises(IndexError):
            make_train(manifest)[9]
        with pytest.raises(IndexError):
            make_train(manifest)[Draw(-1, 0)]

    def test_is_a_pure_function_of_seed_epoch_video_and_copy(self, manifest: Manifest) -> None:
        augment = AugmentConfig(randaugment_magnitude=7, erasing=0.5)
        train = make_train(manifest, augment)
        reference = train[Draw(4, 3, 1)].clips
        train[0], train[Draw(4, 9)], torch.manual_seed(5), np.random.default_rng(5).random()
        assert torch.equal(train[Draw(4, 3, 1)].clips, reference)
        assert torch.equal(make_train(manifest, augment)[Draw(4, 3, 1)].clips, reference)
        assert not torch.equal(make_train(manifest, augment, seed=1)[Draw(4, 3, 1)].clips, reference)
        assert not torch.equal(train[Draw(4, 2, 1)].clips, reference)
        assert not torch.equal(train[Draw(4, 3, 0)].clips, reference)

    def test_training_clips_of_their_own_size_and_length(self, manifest: Manifest) -> None:
        augment = dataclasses.replace(PLAIN, crop=32, frames=2)
        sample = make_train(manifest, augment)[4]
        assert sample.clips.shape == (1, 3, 2, 32, 32)
        assert np.diff(sample.indices[0]).tolist() == [2]  # the stride is the protocol's
        assert sample.crop_boxes[0].height == sample.crop_boxes[0].width == 32
        with pytest.raises(ConfigError, match=r"^augment\.crop: 65 is larger than protocol\.short_side \(64\)$"):
            make_train(manifest, dataclasses.replace(PLAIN, crop=65))

    def test_set_epoch(self, manifest: Manifest) -> None:
        train = make_train(manifest, AugmentConfig())
        first = train[2].clips
        train.set_epoch(7)
        assert torch.equal(train[2].clips, train[Draw(2, 7)].clips)
        assert not torch.equal(train[2].clips, first)
        train.set_epoch(0)
        assert torch.equal(train[2].clips, first)

    def test_starts_vary_and_reach_both_ends(self, make_video: MakeVideo) -> None:
        path = make_video("square.mp4", width=64, height=64, frames=12)
        train = make_train(Manifest.from_entries([VideoEntry(str(path), ("a",))]))
        starts = {int(train[Draw(0, epoch)].indices[0, 0]) for epoch in range(60)}
        assert starts == set(range(6)), "12 frames hold a clip of 7 at six places"

    def test_without_temporal_jitter_the_middle_clip(self, manifest: Manifest) -> None:
        train = make_train(manifest, AugmentConfig(resize="none", temporal_jitter=False))
        for epoch in range(5):
            assert train[Draw(0, epoch)].indices.tolist() == [[4, 6, 8, 10]]

    def test_start_and_end_count_from_the_first_frame(self, make_video: MakeVideo, frame_number: Number) -> None:
        path = make_video("late.ts", width=64, height=64, frames=40, start=1.4)
        with VideoReader(path) as reader:
            first = float(reader.timestamps[0])
        assert first > 1
        rows = [VideoEntry(str(path), ("a",), 0.4, 0.8)]  # frames 10 to 19
        manifest = Manifest.from_entries(rows)
        train = make_train(manifest)
        seen: set[int] = set()
        for epoch in range(40):
            sample = train[Draw(0, epoch)]
            assert numbers(sample.clips[0], frame_number) == sample.indices[0].tolist()
            seen |= set(sample.indices[0].tolist())
        assert seen == set(range(10, 20))
        views = EvalDataset(manifest, PROTOCOL, views="2x1")[0]
        clip = load_clip(path, protocol=PROTOCOL, start=0.4, end=0.8)
        assert views.indices is not None and views.seconds is not None
        assert views.indices.tolist() == [[10, 12, 14, 16], [13, 15, 17, 19]]
        assert clip.indices.tolist() == [11, 13, 15, 17]
        for seconds, indices in ((views.seconds, views.indices), (clip.seconds, clip.indices)):
            assert seconds == pytest.approx(first + indices / 25, abs=1e-4), "times stay on the file's clock"
        assert load_clip(path, protocol=PROTOCOL, fps=5.0, stride=1, end=0.8).indices.tolist() == [0, 5, 10, 15]
        with pytest.raises(VideoError, match=r"no frame in \[1\.6 s, its end\) of a video from 0 s to 1\.6 s"):
            load_clip(path, protocol=PROTOCOL, start=1.6)

    def test_repeats_decode_once(
        self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, frame_number: Number
    ) -> None:
        opened: list[str] = []
        batches: list[int] = []

        class Counting(VideoReader):
            def __init__(self, source: str, **options: object) -> None:
                opened.append(source)
                super().__init__(source, **options)  # type: ignore[arg-type]

            def get_batch(self, indices: np.ndarray, *, crop: tuple[int, int, int, int]) -> torch.Tensor:
                assert len(set(indices.tolist())) == len(indices), "no frame is decoded twice"
                batches.append(len(indices))
                return super().get_batch(indices, crop=crop)

        monkeypatch.setattr(dataset_module, "VideoReader", Counting)
        sample = make_train(manifest, repeats=5)[1]
        assert len(opened) == len(batches) == 1
        assert sample.clips.shape == (5, 3, 4, 64, 64)
        assert sample.labels.tolist() == [0] * 5
        for clip, indices in zip(sample.clips, sample.indices, strict=True):
            assert numbers(clip, frame_number) == (64 + indices).tolist()
        assert len({tuple(row) for row in sample.indices.tolist()}) > 1, "each repeat has its own start"

    def test_repeats_differ_in_augmentation(self, manifest: Manifest) -> None:
        sample = make_train(manifest, AugmentConfig(temporal_jitter=False), repeats=4)[0]
        assert len(set(sample.crop_boxes)) == 4
        assert torch.equal(sample.clips[0], make_train(manifest, AugmentConfig(temporal_jitter=False))[0].clips[0])

    def test_mirrored_repeats_carry_their_own_labels(self, manifest: Manifest) -> None:
        augment = AugmentConfig(resize="none", hflip=0.5, hflip_pairs=[["left", "right"]])
        sample = make_train(manifest, augment, repeats=16)[0]
        assert sample.labels.tolist() == [int(flipped) for flipped in sample.flipped]
        assert 0 < sum(sample.flipped) < 16

    def test_unreadable_video_is_replaced_and_listed(self, broken: Manifest) -> None:
        train = make_train(broken)
        replacements = []
        for epoch in range(20):
            sample = train[Draw(1, epoch)]
            assert sample.index in (0, 2)
            assert sample.labels.tolist() == [sample.index], "the label is that of the video that is shown"
            assert len(sample.failures) == 1
            path, reason = sample.failures[0]
            assert path == broken[1].path
            assert reason and path not in reason
            assert train[Draw(1, epoch)].index == sample.index, "the choice is reproducible"
            replacements.append(sample.index)
        assert set(replacements) == {0, 2}

    def test_all_unreadable(self, tmp_path: Path) -> None:
        rows = [VideoEntry(str(tmp_path / f"{number}.mp4"), ("a",)) for number in range(20)]
        train = make_train(Manifest.from_entries(rows, source="list.csv"))
        with pytest.raises(VideoError) as caught:
            train[3]
        message = str(caught.value)
        assert message.startswith("list.csv: 8 videos in a row cannot be read: ")
        assert message.count(str(tmp_path)) == 8, "each is named, none twice"
        assert len({part for part in message.split() if part.startswith(str(tmp_path))}) == 8
        assert "\n" not in message

    def test_fewer_videos_than_tries(self, tmp_path: Path) -> None:
        rows = [VideoEntry(str(tmp_path / f"{number}.mp4"), ("a",)) for number in range(2)]
        with pytest.raises(VideoError, match="2 videos in a row"):
            make_train(Manifest.from_entries(rows))[0]

    def test_empty_range_is_a_fault_of_the_video(self, folder: Path) -> None:
        path = str(folder / "left" / "left_0.mp4")
        rows = [VideoEntry(path, ("a",), 100.0, 101.0), VideoEntry(path, ("a",))]
        sample = make_train(Manifest.from_entries(rows))[0]
        assert sample.index == 1
        assert sample.failures[0][0] == path and "no frame" in sample.failures[0][1]

    @pytest.mark.parametrize("repeats", [1, 3])
    @pytest.mark.parametrize("resize", ["random_resized_crop", "short_side_jitter", "none"])
    def test_only_the_boxes_of_the_clips_are_read(
        self, resize: str, repeats: int, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make_video("wide.mp4", width=98, height=64, frames=30)
        manifest = Manifest.from_entries([VideoEntry(str(path), ("a",))])
        augment = AugmentConfig(resize=resize, hflip=0.5, jitter=(48, 60), randaugment_magnitude=0, erasing=0.0)
        protocol = PROTOCOL.replace(crop=40, short_side=48)
        asked: list[tuple[int, int, int, int]] = []
        original = VideoReader.get_batch

        def record(
            self: VideoReader, indices: np.ndarray, *, crop: tuple[int, int, int, int] | None = None
        ) -> torch.Tensor:
            asked.extend([crop] if crop is not None else [])
            return original(self, indices, crop=crop)

        monkeypatch.setattr(VideoReader, "get_batch", record)
        dataset = TrainDataset(manifest, protocol, augment, seed=3, repeats=repeats)
        sample = dataset[0]
        boxes = np.array(sample.crop_boxes, int)
        top, left, height, width = asked[0]
        assert (top, left) == (boxes[:, 0].min(), boxes[:, 1].min())
        assert top + height == (boxes[:, 0] + boxes[:, 2]).max() and left + width == (boxes[:, 1] + boxes[:, 3]).max()
        with VideoReader(path) as reader:
            for clip, indices, box, flipped in zip(
                sample.clips, sample.indices, boxes.tolist(), sample.flipped, strict=True
            ):
                cut = reader.get_batch(indices)[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
                plan = ClipPlan(np.arange(len(cut)), (0, 0, *cut.shape[1:3]), flipped)
                expected = make_clip(whole_frames(cut), plan, protocol.crop).permute(1, 0, 2, 3)
                assert torch.equal(clip, expected)

    def test_bugs_are_not_taken_for_bad_videos(self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: VideoReader, indices: np.ndarray, *, crop: object = None) -> torch.Tensor:
            raise ValueError("a bug")

        monkeypatch.setattr(VideoReader, "get_batch", fail)
        with pytest.raises(ValueError, match="a bug"):
            make_train(manifest)[0]
        with pytest.raises(ValueError, match="a bug"):
            EvalDataset(manifest, PROTOCOL, views="1x1")[0]

    def test_multilabel(self, folder: Path) -> None:
        rows = [VideoEntry(str(folder / "left" / "left_0.mp4"), ("a", "c")), VideoEntry(__file__, ("b",))]
        manifest = Manifest.from_entries(rows, class_names=("a", "b", "c"))
        sample = make_train(manifest, multilabel=True, repeats=2)[0]
        assert sample.labels.tolist() == [[1, 0, 1], [1, 0, 1]]
        assert sample.labels.is_floating_point()
        with pytest.raises(ManifestError, match=r"several labels \(a, c\).*multilabel"):
            make_train(manifest)[0]

    def test_unlabelled_videos_are_refused(self, folder: Path) -> None:
        rows = [VideoEntry(str(folder / "left" / "left_0.mp4"))]
        with pytest.raises(ManifestError, match="no labels"):
            make_train(Manifest.from_entries(rows, class_names=("a",)))

    @pytest.mark.parametrize(("changes", "field"), [({"seed": -1}, "seed"), ({"repeats": 0}, "repeats")])
    def test_bad_values(self, manifest: Manifest, changes: dict[str, int], field: str) -> None:
        with pytest.raises(ConfigError, match=field):
            make_train(manifest, **changes)

    def test_pickles_small(self, tmp_path: Path) -> None:
        rows = [VideoEntry(str(tmp_path / "videos" / f"video_{n:06}.mp4"), (f"class {n % 400}",)) for n in range(20000)]
        manifest = Manifest.from_entries(rows)
        for data in (make_train(manifest), EvalDataset(manifest, PROTOCOL, views="4x3")):
            size = len(pickle.dumps(data))
            assert size < 20000 * (len(rows[0].path) + 60), "arrays, not objects"


class TestCollateTrain:
    def test_joins_repeats(self, manifest: Manifest) -> None:
        train = make_train(manifest, AugmentConfig(), repeats=2)
        samples = [train[index] for index in (5, 0, 8)]
        batch = collate_train(samples)
        assert not isinstance(batch, StvidError)
        assert batch.clips.shape == (6, 3, 4, 64, 64)
        assert torch.equal(batch.clips, torch.cat([sample.clips for sample in samples]))
        assert batch.clips.is_contiguous(memory_format=torch.channels_last_3d)
        assert batch.labels.tolist() == [1, 1, 0, 0, 2, 2]
        assert batch.videos.tolist() == [5, 5, 0, 0, 8, 8]

    def test_gathers_failures(self, broken: Manifest) -> None:
        train = make_train(broken)
        batch = collate_train([train[0], train[1], train[Draw(1, 1)]])
        assert not isinstance(batch, StvidError)
        assert [path for path, _ in batch.failures] == [broken[1].path] * 2

    def test_errors_for_the_user_travel_as_values(self, tmp_path: Path, manifest: Manifest) -> None:
        missing = Manifest.from_entries([VideoEntry(str(tmp_path / "a.mp4"), ("a",))])
        samples = make_train(missing).__getitems__([0, 0])
        assert isinstance(collate_train(samples), VideoError)
        good = make_train(manifest)[0]
        assert isinstance(good, TrainSample)
        assert isinstance(collate_train([good, *samples]), VideoError)


class TestEvalDataset:
    def test_views_are_clip_major(self, make_video: MakeVideo) -> None:
        path = make_video("wide.mp4", width=96, height=64, frames=30)
        manifest = Manifest.from_entries([VideoEntry(str(path), ("a",))])
        protocol = PROTOCOL.replace(crop=48)
        sample = EvalDataset(manifest, protocol, views="2x3")[0]
        assert sample.error is None
        assert sample.clips is not None and sample.indices is not None and sample.seconds is not None
        assert sample.clips.shape == (6, 3, 4, 48, 48) and sample.clips.dtype == torch.uint8
        assert sample.indices.tolist() == [[0, 2, 4, 6], [23, 25, 27, 29]]
        assert sample.seconds == pytest.approx(sample.indices / 25)
        assert [box.left for box in sample.crop_boxes] == [0, 24, 48]
        with VideoReader(path) as reader:
            for number, indices in enumerate(sample.indices):
                frames = scaled_frames(reader.get_batch(indices), protocol.short_side)
                views = [(0, 3, crop) for crop in range(3)]
                plans = view_plans(frames.numbers[None], views, frame_size=frames.size, size=48)
                crops = cut_views(frames, plans, 48)
                assert torch.equal(sample.clips[3 * number : 3 * number + 3], crops)

    def test_large_videos_are_decoded_in_parts_and_each_frame_once(
        self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        original = VideoReader.get_batch

        def record(self: VideoReader, indices: np.ndarray) -> torch.Tensor:
            asked.append(len(indices))
            return original(self, indices)

        expected = EvalDataset(manifest, PROTOCOL, views="5x3")[0]
        assert expected.clips is not None and expected.indices is not None
        unique = len(np.unique(expected.indices))
        monkeypatch.setattr(VideoReader, "get_batch", record)
        monkeypatch.setattr(clips_module, "MAX_FRAME_BYTES", unique * 64 * 64 * 3)
        assert EvalDataset(manifest, PROTOCOL, views="5x3")[0].clips is not None and asked == [unique]
        asked.clear()
        monkeypatch.setattr(clips_module, "MAX_FRAME_BYTES", unique * 64 * 64 * 3 - 1)
        sample = EvalDataset(manifest, PROTOCOL, views="5x3")[0]
        assert sample.clips is not None and asked == [unique - 1, 1]
        assert torch.equal(sample.clips, expected.clips) and sample.crop_boxes == expected.crop_boxes

    def test_frame_numbers(self, manifest: Manifest, frame_number: Number) -> None:
        sample = EvalDataset(manifest, PROTOCOL, views="3x1")[4]
        assert sample.clips is not None and sample.indices is not None
        for clip, indices in zip(sample.clips, sample.indices, strict=True):
            assert numbers(clip, frame_number) == (64 + indices).tolist()
        assert sample.labels.shape == () and int(sample.labels) == 1

    def test_unreadable_video_is_reported_and_never_replaced(self, broken: Manifest) -> None:
        sample = EvalDataset(broken, PROTOCOL, views="2x1")[1]
        assert sample.clips is None and sample.indices is None and sample.seconds is None
        assert sample.error is not None and broken[1].path not in sample.error
        assert sample.index == 1 and int(sample.labels) == 1
        assert sample.pin_memory() is sample

    def test_range_without_frames(self, folder: Path) -> None:
        rows = [VideoEntry(str(folder / "left" / "left_0.mp4"), ("a",), 100.0)]
        sample = EvalDataset(Manifest.from_entries(rows), PROTOCOL, views="1x1")[0]
        assert sample.clips is None and sample.error is not None and "no frame" in sample.error

    def test_labels_are_optional(self, folder: Path) -> None:
        rows = [VideoEntry(str(folder / "left" / "left_0.mp4"))]
        manifest = Manifest.from_entries(rows, class_names=("a", "b"))
        assert int(EvalDataset(manifest, PROTOCOL, views="1x1")[0].labels) == -1
        assert EvalDataset(manifest, PROTOCOL, views="1x1", multilabel=True)[0].labels.tolist() == [0, 0]

    def test_multilabel(self, folder: Path) -> None:
        rows = [VideoEntry(str(folder / "left" / "left_0.mp4"), ("c", "a"))]
        manifest = Manifest.from_entries(rows, class_names=("a", "b", "c"))
        assert EvalDataset(manifest, PROTOCOL, views="1x1", multilabel=True)[0].labels.tolist() == [1, 0, 1]

    def test_no_label_beside_labelled_videos(self, folder: Path) -> None:
        files = [str(folder / "left" / f"left_{n}.mp4") for n in range(2)]
        rows = [VideoEntry(files[0]), VideoEntry(files[1], ("b",))]
        manifest = Manifest.from_entries(rows, class_names=("a", "b"), multilabel=True)
        data = EvalDataset(manifest, PROTOCOL, views="1x1", multilabel=True)
        assert [data[index].labels.tolist() for index in range(2)] == [[0, 0], [0, 1]]
        train = make_train(manifest, multilabel=True)
        assert [train[Draw(index, 0)].labels.tolist() for index in range(2)] == [[[0, 0]], [[0, 1]]]
        for single in (EvalDataset(manifest, PROTOCOL, views="1x1"), make_train(manifest)):
            with pytest.raises(ManifestError, match="a video has no label, but others have; set task: multilabel"):
                single[0]

    def test_ends(self, manifest: Manifest) -> None:
        with pytest.raises(IndexError):
            EvalDataset(manifest, PROTOCOL, views="1x1")[9]

    def test_collate_keeps_samples_apart(self, broken: Manifest) -> None:
        data = EvalDataset(broken, PROTOCOL, views="1x1")
        batch = collate_eval(data.__getitems__([0, 1, 2]))
        assert not isinstance(batch, StvidError)
        assert [sample.error is None for sample in batch] == [True, False, True]

    def test_unusable_backend_is_an_error_and_not_a_bad_video(self, manifest: Manifest) -> None:
        data = EvalDataset(manifest, PROTOCOL, views="1x1", backend="no such")
        assert isinstance(collate_eval(data.__getitems__([0])), StvidError)
        with pytest.raises(StvidError, match="no such"):
            data[0]


class TestLoadClip:
    def test_centre_view_with_provenance(self, make_video: MakeVideo) -> None:
        path = make_video("wide.mp4", width=96, height=64, frames=30)
        protocol = PROTOCOL.replace(crop=48, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        clip = load_clip(path, protocol=protocol)
        assert clip.tensor.shape == (3, 4, 48, 48) and clip.tensor.dtype == torch.float32
        assert clip.indices.tolist() == [11, 13, 15, 17]
        assert clip.seconds == pytest.approx(clip.indices / 25)
        assert clip.crop_box == CropBox(8, 24, 48, 48)
        assert not clip.flipped
        assert clip.backend == "av"
        assert clip.path == str(path)
        with VideoReader(path) as reader:
            pixels = reader.get_batch(clip.indices)[:, 8:56, 24:72].permute(3, 0, 1, 2)
        assert torch.equal(clip.tensor, normalize(pixels, protocol.mean, protocol.std))

    def test_default_protocol(self, make_video: MakeVideo) -> None:
        clip = load_clip(make_video("wide.mp4", width=96, height=64, frames=30))
        assert clip.tensor.shape == (3, 16, 224, 224)

    def test_overrides(self, make_video: MakeVideo) -> None:
        path = make_video("square.mp4", width=64, height=64, frames=40)
        assert load_clip(path, frames=5, stride=3, crop=32, short_side=32).indices.tolist() == [13, 16, 19, 22, 25]
        segments = load_clip(path, protocol=PROTOCOL, sampling="segment")
        assert segments.indices.tolist() == [5, 15, 25, 35]
        assert load_clip(path, protocol=PROTOCOL, fps=5.0, stride=1).indices.tolist() == [10, 15, 20, 25]
        part = load_clip(path, protocol=PROTOCOL, start=0.4, end=0.8)
        assert part.indices.tolist() == [11, 13, 15, 17]
        assert load_clip(path, protocol=PROTOCOL, mean=(0, 0, 0), std=(1, 1, 1)).tensor.min() >= 0

    def test_bytes(self, make_video: MakeVideo) -> None:
        path = make_video("square.mp4", width=64, height=64, frames=40)
        clip = load_clip(path.read_bytes(), protocol=PROTOCOL)
        assert torch.equal(clip.tensor, load_clip(path, protocol=PROTOCOL).tensor)
        assert clip.path == "<bytes>"

    def test_unknown_keyword(self, manifest: Manifest) -> None:
        with pytest.raises(TypeError, match="num_frames"):
            load_clip(manifest[0].path, num_frames=8)  # type: ignore[call-arg]

    def test_errors(self, manifest: Manifest, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError):
            load_clip(tmp_path / "none.mp4")
        with pytest.raises(VideoError, match="no frame"):
            load_clip(manifest[0].path, start=50.0)
        with pytest.raises(ConfigError, match="crop"):
            load_clip(manifest[0].path, crop=512)


def test_generators_depend_on_every_number_of_their_key() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 2**40, 0)]
    draws = [make_generator(*key).integers(0, 2**60) for key in keys]
    assert len(set(draws)) == len(keys)
    assert make_generator(3, 4).integers(0, 2**60) == make_generator(3, 4).integers(0, 2**60)
