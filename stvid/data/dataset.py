"""From a manifest to clips: decode, sample, transform.

`TrainDataset` gives random clips, `EvalDataset` all test views of a video, `load_clip` the centre view of one file.
Each decodes a video once, however many clips are taken from it. Where a manifest names the part of a video to use, its
seconds count from the first frame; the times that samples and clips carry are on the file's own clock, which need not
begin at 0.

A training sample is a pure function of (seed, epoch, video, copy, repeat): it does not depend on the number of worker
processes, on which of them makes it, or on any global random state. So a run can be resumed exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from stvid.config import AugmentConfig
from stvid.data.clips import (
    ClipPlan,
    CropBox,
    around,
    cut_views,
    decode_frames,
    decode_scaled_frames,
    video_grid,
    view_plans,
)
from stvid.data.layout import view_layout
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.sampling import sample_train, sample_views
from stvid.data.transforms import TrainTransform, model_input, shown_pixels
from stvid.errors import ConfigError, ManifestError, StvidError, VideoError
from stvid.notebook import picture_address, render_html
from stvid.protocol import Protocol, checked_protocol, parse_views
from stvid.video.memory import checked_rate
from stvid.video.reader import Index, MemoryFrames, VideoLike, VideoReader
from stvid.video.stored_index import index_beside

__all__ = [
    "Clip",
    "Draw",
    "EvalDataset",
    "EvalSample",
    "TrainBatch",
    "TrainDataset",
    "TrainSample",
    "collate_eval",
    "collate_train",
    "load_clip",
    "make_generator",
]

MAX_TRIES = 8
"""Videos that are tried for one training sample before the run stops."""

_STREAM_CLIP, _STREAM_REPLACEMENT, STREAM_ORDER = range(3)
"""First number of the seed of each kind of random choice, so that no two kinds share their numbers."""


def make_generator(*key: int) -> np.random.Generator:
    """Returns a random generator that depends on these numbers only, the same on every platform.

    Args:
        key: Numbers of 0 or more. Compare only keys of one length: numpy takes (1, 2) for the same seed as (1, 2, 0).
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(key))))


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass
class Clip:
    """A clip as a model takes it, and where it comes from.

    Attributes:
        tensor: float32 (C, T, H, W), normalised, with the channels in the protocol's order: red, green, blue, or for
            ``channels: bgr`` blue, green, red.
        indices: Source frame of each frame, int64 (T,), in order of presentation.
        seconds: Time of each frame in the source, float64 (T,); on the file's own clock, which need not begin at 0.
        crop_box: Part of the source frame that is shown, in source pixels.
        flipped: Whether the clip is mirrored left to right.
        backend: Decoder that read it.
        path: The file.
        labels: Names of its classes, if known.
        protocol: How it was read, which says how it was normalised; None if unknown.
    """

    tensor: torch.Tensor
    indices: np.ndarray
    seconds: np.ndarray
    crop_box: CropBox
    flipped: bool
    backend: str
    path: str
    labels: tuple[str, ...] = ()
    protocol: Protocol | None = field(default=None, repr=False)

    def pictures(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Returns frames of the clip as they can be looked at: uint8 (H, W, 3), RGB.

        If the protocol is not known, the colours are stretched from the smallest to the largest value of the clip.

        Args:
            numbers: Which frames of the clip, from 0.
        """
        frames = self.tensor.detach().float().cpu()[:, list(numbers)]
        if self.protocol is None:
            low, high = float(self.tensor.min()), float(self.tensor.max())
            frames = (frames - low) / max(high - low, 1e-6)
            pixels = (frames.clamp(0, 1) * 255).round().to(torch.uint8)
        else:
            pixels = shown_pixels(frames, self.protocol)
        return list(pixels.permute(1, 2, 3, 0).numpy())

    def _repr_html_(self) -> str:
        """Returns a strip of up to eight frames with their times, and what the clip is, for Jupyter."""
        length = self.tensor.shape[1]
        numbers = [int(n) for n in np.unique(np.linspace(0, length - 1, min(8, length)).round())]
        frames = [
            {
                "address": picture_address(pixels),
                "index": int(self.indices[number]),
                "seconds": f"{self.seconds[number]:.2f}",
            }
            for number, pixels in zip(numbers, self.pictures(numbers), strict=True)
        ]
        height, width = self.tensor.shape[2:]
        return render_html(
            "clip.html.j2",
            frames=frames,
            labels=", ".join(self.labels),
            shape=f"{length} frames of {width} x {height}",
            flipped=self.flipped,
            path=self.path,
            stretched=self.protocol is None,
        )


def load_clip(
    source: VideoLike,
    *,
    protocol: Protocol | None = None,
    frames: int | None = None,
    stride: int | None = None,
    sampling: Literal["dense", "segment"] | None = None,
    fps: float | None = None,
    short_side: int | None = None,
    crop: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: Literal["rgb", "bgr"] | None = None,
    start: float | None = None,
    end: float | None = None,
    backend: str = "av",
) -> Clip:
    """Reads the view in the middle of a video: middle clip, centre crop.

    Args:
        source: A video file: its path, bytes or URL, or a binary file object; or frames in memory: a uint8 array or
            tensor (T, H, W, 3), or a list or iterator of images of PIL or of arrays (H, W, 3).
        protocol: How to read it, for example `model.default_protocol`; None takes `Protocol()`.
        frames: Replaces `protocol.frames`; None keeps it, here and below.
        stride: Replaces `protocol.stride`.
        sampling: Replaces `protocol.sampling`.
        fps: Replaces `protocol.fps`. For frames in memory it says instead how many a second they are, which must be
            known if the protocol has a rate, or `start` or `end` is given.
        short_side: Replaces `protocol.short_side`.
        crop: Replaces `protocol.crop`.
        mean: Replaces `protocol.mean`.
        std: Replaces `protocol.std`.
        channels: Replaces `protocol.channels`.
        start: Use the video from this second on, counted from its first frame.
        end: Use the video up to this second, exclusive, counted from its first frame.
        backend: Decoder.

    Raises:
        VideoError: If the file cannot be read, or has no frame between `start` and `end`.
        ConfigError: If the values do not make a protocol.
    """
    replacements: dict[str, Any] = {
        "frames": frames,
        "stride": stride,
        "sampling": sampling,
        "fps": fps,
        "short_side": short_side,
        "crop": crop,
        "mean": mean,
        "std": std,
        "channels": channels,
    }
    in_memory = MemoryFrames.take(source, None)
    if in_memory is not None:
        source = MemoryFrames(in_memory.images, checked_rate(replacements.pop("fps")) or in_memory.fps)
    given = {name: value for name, value in replacements.items() if value is not None}
    used = (checked_protocol(protocol) if protocol is not None else Protocol()).replace(**given)
    if isinstance(source, MemoryFrames):
        check_rate_known(source, used, seconds=start is not None or end is not None)
    with VideoReader(source, backend=backend) as reader:
        indices = sample_views(video_grid(reader, used, start, end), used, num_clips=1)
        decoded = decode_scaled_frames(reader, indices, used.short_side)
        (plan,) = view_plans(indices, [(0, 1, 0)], frame_size=decoded.size, size=used.crop)
        return Clip(
            tensor=model_input(cut_views(decoded, [plan], used.crop)[0], used),
            indices=plan.indices,
            seconds=reader.timestamps[plan.indices],
            crop_box=decoded.source_box(plan.box),
            flipped=plan.flipped,
            backend=reader.backend,
            path=reader.source_name,
            protocol=used,
        )


def check_rate_known(frames: MemoryFrames, protocol: Protocol, *, seconds: bool = False) -> None:
    """Checks that frames in memory say how many a second they are, if that matters.

    Args:
        frames: The frames.
        protocol: Its `fps` makes it matter.
        seconds: Whether seconds of the video are asked for, which makes it matter, too.

    Raises:
        ConfigError: If it matters and is not known.
    """
    if frames.fps is None and (protocol.fps is not None or seconds):
        asks = (
            "a part is given in seconds" if protocol.fps is None else f"the protocol asks for {protocol.fps:g} a second"
        )
        raise ConfigError(f"fps: {asks}, so say how many frames a second the given ones are, as in fps=25")


# --- labels -----------------------------------------------------------------------------------------------------------


def _multi_hot(label_ids: np.ndarray, num_classes: int) -> np.ndarray:
    target = np.zeros(num_classes, np.float32)
    target[label_ids] = 1.0
    return target


def _target(label_ids: np.ndarray, manifest: Manifest, multilabel: bool) -> np.ndarray:
    """int64 () or, with `multilabel`, float32 (K,); -1 or zeros if there is no label."""
    if multilabel:
        return _multi_hot(label_ids, len(manifest.class_names))
    if len(label_ids) == 0 and manifest.has_labels:
        raise ManifestError(f"{manifest.source}: a video has no label, but others have; set task: multilabel")
    if len(label_ids) > 1:
        names = ", ".join(manifest.class_names[label] for label in label_ids)
        raise ManifestError(f"{manifest.source}: a video has several labels ({names}); set task: multilabel")
    return np.array(label_ids[0] if len(label_ids) else -1, dtype=np.int64)


# --- training ---------------------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """Which sample a loader asks for.

    Attributes:
        video: Number of the video.
        epoch: The epoch that the sample belongs to.
        copy: How often this video has been drawn in this epoch before (class balancing draws some again and again).
    """

    video: int
    epoch: int
    copy: int = 0


@dataclass
class TrainSample:
    """R random clips of one training video.

    Attributes:
        clips: uint8 (R, C, T, H, W).
        labels: int64 (R,), or multi-hot float (R, K). Mirroring may give the clips of one video different labels.
        index: Number of the video that the clips show.
        failures: Path and reason of each video that could not be read and was replaced by this one.
        indices: Source frames of each clip, int64 (R, T).
        seconds: Their times in the source, float64 (R, T).
        crop_boxes: Part of the source that each clip shows, in source pixels.
        flipped: Whether each clip is mirrored.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    index: int
    failures: tuple[tuple[str, str], ...]
    indices: np.ndarray
    seconds: np.ndarray
    crop_boxes: tuple[CropBox, ...]
    flipped: tuple[bool, ...]


class TrainBatch(NamedTuple):
    """A batch of training clips.

    Attributes:
        clips: uint8 (B, C, T, H, W), for `model_input`. The colour is last in memory, as channels_last_3d has it.
        labels: int64 (B,), or multi-hot float (B, K).
        videos: Number of the video of each clip, int64 (B,).
        failures: Path and reason of each video that could not be read and was replaced.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    videos: np.ndarray
    failures: tuple[tuple[str, str], ...]


_Sample = TypeVar("_Sample")


class TrainDataset(Dataset[TrainSample]):
    """Random clips of videos.

    Args:
        manifest: The videos and their labels.
        protocol: Frames, sampling and size, where `augment` does not name others.
        augment: Training augmentation.
        seed: Seed of every random choice, 0 or more.
        backend: Decoder.
        decode_threads: Threads of one decoder.
        repeats: Clips that are taken from a video each time it is decoded (repeated augmentation, Hoffer 2020,
            arXiv:1901.09335). Each has its own random start, crop and augmentation.
        multilabel: Whether a video may have any number of labels.
        labelled: Whether the videos must have labels; those of others are -1.

    Raises:
        ManifestError: If the videos have no labels, and must have some.
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        manifest: Manifest,
        protocol: Protocol,
        augment: AugmentConfig,
        *,
        seed: int,
        backend: str = "av",
        decode_threads: int = 1,
        repeats: int = 1,
        multilabel: bool = False,
        labelled: bool = True,
    ) -> None:
        if labelled and not manifest.has_labels:
            raise ManifestError(f"{manifest.source}: the training videos have no labels")
        if seed < 0:
            raise ConfigError(f"seed: {seed!r} is not a whole number from 0 up")
        if repeats < 1:
            raise ConfigError(f"data.repeats: {repeats!r} is not a whole number from 1 up")
        protocol = augment.clip_protocol(protocol)
        self.manifest = manifest
        self.protocol = protocol
        self.augment = augment
        self.seed = seed
        self.backend = backend
        self.decode_threads = decode_threads
        self.stored_index = index_beside(manifest.source)
        self.repeats = repeats
        self.multilabel = multilabel
        self._transform = TrainTransform(protocol, augment, manifest.class_names)
        # In shared memory, so that worker processes that are kept over epochs see it change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of samples that are asked for by number; loaders send `Draw`, which has it."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, item: int | Draw) -> TrainSample:
        """Decodes a video and cuts its random clips.

        A video that cannot be read is replaced by one that the sample's own random numbers choose, and is listed in
        the sample's `failures`.

        Args:
            item: Number of the video, in the epoch of `set_epoch`; or a `Draw`, which names the epoch itself.

        Raises:
            VideoError: If 8 videos in a row cannot be read.
        """
        return self.sample(item if isinstance(item, Draw) else Draw(int(item), int(self._epoch)))

    def sample(self, draw: Draw, content: bytes | None = None, index: Index | None = None) -> TrainSample:
        """Cuts the random clips of a video, as ``dataset[draw]``.

        Args:
            draw: Which.
            content: The bytes of the video, if they have been read already.
            index: Theirs, if it is known.

        Raises:
            VideoError: If 8 videos in a row cannot be read.
        """
        if not 0 <= draw.video < len(self):
            raise IndexError(f"video {draw.video} of {len(self)}")
        key = (self.seed, draw.epoch, draw.video, draw.copy)
        failures: list[tuple[str, str]] = []
        for video in self._candidates(draw.video, key):
            given = (content, index) if content is not None and video == draw.video else None
            try:
                return self._sample(video, key, tuple(failures), given)
            except VideoError as error:
                failures.append((self.manifest[video].path, error.reason))
        listed = "; ".join(f"{path}: {reason}" for path, reason in failures)
        raise VideoError(self.manifest.source, f"{len(failures)} videos in a row cannot be read: {listed}")

    def __getitems__(self, items: Sequence[int | Draw]) -> list[TrainSample | StvidError]:
        """Used by loaders: a batch, with an error for the user in the place of the sample that raised it."""
        return [_value_or_error(self, item) for item in items]

    def _candidates(self, index: int, key: tuple[int, ...]) -> Iterator[int]:
        """The video that was asked for, then different others in random order, up to `MAX_TRIES` in all."""
        yield index
        order = make_generator(_STREAM_REPLACEMENT, *key).permutation(len(self))
        yield from [int(other) for other in order[:MAX_TRIES] if other != index][: MAX_TRIES - 1]

    def _sample(
        self,
        index: int,
        key: tuple[int, ...],
        failures: tuple[tuple[str, str], ...],
        given: tuple[bytes, Index | None] | None,
    ) -> TrainSample:
        entry: VideoEntry = self.manifest[index]
        label_ids = self.manifest.label_ids(index)
        generators = [make_generator(_STREAM_CLIP, *key, repeat) for repeat in range(self.repeats)]
        content, known = self.manifest.content_and_index(index) if given is None else given
        with VideoReader(
            content, backend=self.backend, num_threads=self.decode_threads, index=known or self.stored_index
        ) as reader:
            grid = video_grid(reader, self.protocol, entry.start, entry.end)
            jitter = self.augment.temporal_jitter
            indices = np.stack([sample_train(grid, self.protocol, rng=rng if jitter else None) for rng in generators])
            seconds = reader.timestamps[indices]
            size = (reader.height, reader.width)
            drawn = [
                self._transform.draw_plan(row, size, label_ids, rng)
                for row, rng in zip(indices, generators, strict=True)
            ]
            frames = decode_frames(reader, indices, around([plan.box for plan, _ in drawn]))
        clips, targets = [], []
        for (plan, ids), rng in zip(drawn, generators, strict=True):
            clip = self._transform.apply(frames, plan, rng)
            clips.append(clip.permute(1, 2, 3, 0))  # colour last, as it is in memory
            targets.append(_target(ids, self.manifest, self.multilabel))
        return TrainSample(
            clips=(torch.stack(clips) if len(clips) > 1 else clips[0].contiguous()[None]).permute(0, 4, 1, 2, 3),
            labels=torch.from_numpy(np.stack(targets)),
            index=index,
            failures=failures,
            indices=indices,
            seconds=seconds,
            crop_boxes=tuple(CropBox(*plan.box) for plan, _ in drawn),
            flipped=tuple(plan.flipped for plan, _ in drawn),
        )


def collate_train(samples: Sequence[TrainSample | StvidError]) -> TrainBatch | StvidError:
    """Joins samples to one batch; the first error among them takes its place.

    The clips become one tensor, so that one file descriptor carries them out of a worker process.
    """
    for sample in samples:
        if isinstance(sample, StvidError):
            return sample
    good = [sample for sample in samples if not isinstance(sample, StvidError)]
    clips = torch.cat([sample.clips.permute(0, 2, 3, 4, 1) for sample in good])
    return TrainBatch(
        clips=clips.permute(0, 4, 1, 2, 3),
        labels=torch.cat([sample.labels for sample in good]),
        videos=np.concatenate([np.full(len(sample.clips), sample.index, dtype=np.int64) for sample in good]),
        failures=tuple(failure for sample in good for failure in sample.failures),
    )


# --- evaluation -------------------------------------------------------------------------------------------------------


@dataclass
class EvalSample:
    """All test views of one video, or why there are none.

    Attributes:
        index: Number of the video.
        clips: uint8 (V, C, T, H, W) in the order of the data set's `layout`: the crops of the first clip come first,
            and views that only further protocols need come last. None if the video cannot be read.
        labels: int64 () or multi-hot float32 (K,); -1 or zeros if the video has no label.
        error: Why the video cannot be read, without its path; None if it was read.
        indices: Source frames of each clip, int64 (clips, T); None if the video cannot be read.
        seconds: Their times in the source, float64 (clips, T); None if the video cannot be read.
        crop_boxes: Part of the source that each crop of the (first) protocol shows, in source pixels.
        same: For each view the first one that shows the same frames and crop, int64 (V,): clips of a short video and
            crops of a square one may be equal. None if all are different or that was not found out.
    """

    index: int
    clips: torch.Tensor | None
    labels: np.ndarray
    error: str | None = None
    indices: np.ndarray | None = None
    seconds: np.ndarray | None = None
    crop_boxes: tuple[CropBox, ...] = ()
    same: np.ndarray | None = None

    def pin_memory(self) -> EvalSample:
        """Moves the clips to page-locked memory; called by loaders with ``pin_memory=True``."""
        if self.clips is not None:
            self.clips = self.clips.pin_memory()
        return self


class EvalDataset(Dataset[EvalSample]):
    """All test views of each video.

    Args:
        manifest: The videos; labels are optional.
        protocol: Frames, sampling and size.
        views: Temporal clips x spatial crops, as in ``4x3``; or several such protocols, whose views are all cut from
            one decode, those that they share once (see `stvid.data.layout`).
        backend: Decoder.
        decode_threads: Threads of one decoder.
        multilabel: Whether a video may have any number of labels.

    Raises:
        ConfigError: If the views cannot be read or their number of crops is not defined.
    """

    def __init__(
        self,
        manifest: Manifest,
        protocol: Protocol,
        *,
        views: str | Sequence[str],
        backend: str = "av",
        decode_threads: int = 1,
        multilabel: bool = False,
    ) -> None:
        self.layout = view_layout([views] if isinstance(views, str) else views, protocol.sampling)
        self.manifest = manifest
        self.protocol = protocol
        self.backend = backend
        self.decode_threads = decode_threads
        self.stored_index = index_beside(manifest.source)
        self.multilabel = multilabel

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> EvalSample:
        """Decodes a video and cuts all its views.

        A video that cannot be read gives a sample without clips, whose `error` says why; it is never replaced.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        entry: VideoEntry = self.manifest[index]
        labels = self.labels(index)
        try:
            content, known = self.content_and_index(index)
            with VideoReader(
                content, backend=self.backend, num_threads=self.decode_threads, index=known or self.stored_index
            ) as reader:
                grid = video_grid(reader, self.protocol, entry.start, entry.end)
                indices = self.layout.indices(grid, self.protocol)
                seconds = reader.timestamps[indices]
                frames = decode_scaled_frames(reader, indices, self.protocol.short_side)
        except VideoError as error:
            return EvalSample(index, None, labels, error=error.reason)
        size = self.protocol.crop
        plans = view_plans(indices, self.layout.views, frame_size=frames.size, size=size)
        crops = parse_views(self.layout.protocols[0])[1]
        return EvalSample(
            index,
            cut_views(frames, plans, size),
            labels,
            indices=indices,
            seconds=seconds,
            crop_boxes=tuple(frames.source_box(plan.box) for plan in plans[:crops]),
            same=_first_equal(plans),
        )

    def labels(self, index: int) -> np.ndarray:
        """Returns the label of a video as its sample has it: int64 (), or multi-hot float32 (K,)."""
        return _target(self.manifest.label_ids(index), self.manifest, self.multilabel)

    def content_and_index(self, index: int) -> tuple[str | bytes | MemoryFrames, Index | None]:
        """Returns where or what a video is, and its index if the list of videos has it."""
        return self.manifest.content_and_index(index)

    def __getitems__(self, items: Sequence[int]) -> list[EvalSample | StvidError]:
        """Used by loaders: a batch, with an error for the user in the place of the sample that raised it."""
        return [_value_or_error(self, item) for item in items]


def _first_equal(plans: Sequence[ClipPlan]) -> np.ndarray:
    """For each plan the number of the first one that shows the same: int64 (plans,)."""
    first: dict[tuple[bytes, tuple[int, ...], bool], int] = {}
    return np.array(
        [first.setdefault((plan.indices.tobytes(), plan.box, plan.flipped), row) for row, plan in enumerate(plans)]
    )


def collate_eval(samples: Sequence[EvalSample | StvidError]) -> list[EvalSample] | StvidError:
    """Keeps samples apart, since unreadable videos have no clips; the first error among them takes their place."""
    for sample in samples:
        if isinstance(sample, StvidError):
            return sample
    return [sample for sample in samples if not isinstance(sample, StvidError)]


def _value_or_error(dataset: Dataset[_Sample], item: int | Draw) -> _Sample | StvidError:
    # torch turns an exception of a worker process into another whose message is the traceback. An error for the user
    # travels as a value instead, and the loader raises it in the main process with its one line.
    try:
        return dataset[item]
    except StvidError as error:
        return error
