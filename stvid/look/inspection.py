"""Shows the clips that a model sees of a video in training and test, with their frames, times and crops, as a picture.

The clips come from the data sets of `stvid.data.dataset`, asked for as the loaders ask for them; no clip is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from stvid.config import AugmentConfig
from stvid.data.dataset import Draw, EvalDataset, TrainDataset
from stvid.data.manifest import Manifest
from stvid.data.transforms import CropBox
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError, VideoError
from stvid.look.drawing import Row, Tile, contact_sheet, with_box
from stvid.protocol import Protocol
from stvid.video.reader import VideoReader

__all__ = ["InspectedClip", "Inspection", "inspect_video"]


@dataclass(frozen=True)
class InspectedClip:
    """One clip as the model sees it, before normalisation.

    Attributes:
        name: Which draw or view the clip is.
        frames: uint8 (T, crop, crop, 3), after all augmentation of a clip.
        indices: Source frame of each frame, int64 (T,).
        seconds: Time of each frame in the source, float64 (T,).
        crop_box: Part of the source that is shown, in source pixels.
        flipped: Whether it is mirrored left to right.
        source: The whole source frame of the clip's middle frame, uint8 (H, W, 3).
    """

    name: str
    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    seconds: NDArray[np.float64]
    crop_box: CropBox
    flipped: bool
    source: NDArray[np.uint8]

    def describe(self) -> str:
        """Returns one line for people: frames, seconds, crop and mirroring."""
        box = self.crop_box
        return (
            f"{self.name}: frames {_ranges(self.indices)}, {self.seconds[0]:.2f} to {self.seconds[-1]:.2f} s; crop "
            f"{box.width:.0f} x {box.height:.0f} at ({box.left:.0f}, {box.top:.0f})"
            + (", mirrored" if self.flipped else "")
        )


@dataclass(frozen=True)
class Inspection:
    """All inspected clips of one video.

    Attributes:
        path: The video.
        video: Frames, rate and size of the video, in words.
        protocol: The protocol that the clips follow.
        clips: The clips, those of training first.
    """

    path: str
    video: str
    protocol: Protocol
    clips: tuple[InspectedClip, ...]

    def lines(self) -> list[str]:
        """Returns the summary: the video, the protocol, and one line for each clip."""
        return [f"{self.path}: {self.video}", self.protocol.describe(), *(clip.describe() for clip in self.clips)]

    def sheet(self, *, tile: int = 112, columns: int = 9) -> Image.Image:
        """Draws the contact sheet: for each clip the source frame with its crop, then every frame.

        Args:
            tile: Side of a picture in pixels.
            columns: Pictures in one line.
        """
        rows = []
        for clip in self.clips:
            tiles = [Tile(with_box(clip.source, clip.crop_box), ("source, crop", ""))]
            for frame, index, second in zip(clip.frames, clip.indices, clip.seconds, strict=True):
                tiles.append(Tile(frame, (f"frame {index}", f"{second:.2f} s")))
            rows.append(Row(clip.describe(), tuple(tiles)))
        return contact_sheet(rows, heading=self.lines()[:2], tile=tile, columns=columns)


def _ranges(indices: Sequence[int] | NDArray[np.int64]) -> str:
    """Shortens indices: ``0, 4 ... 60`` if they have one stride, else the first, the second and the last."""
    steps = set(np.diff(indices).tolist())
    if len(indices) < 4:
        return ", ".join(str(index) for index in indices)
    stride = f" (stride {steps.pop()})" if len(steps) == 1 else " (uneven)"
    return f"{indices[0]}, {indices[1]} ... {indices[-1]}{stride}"


def inspect_video(
    manifest: Manifest,
    index: int,
    protocol: Protocol,
    *,
    split: Literal["train", "test", "both"] = "both",
    augment: AugmentConfig | None = None,
    draws: int = 2,
    seed: int = 0,
    repeats: int = 1,
    multilabel: bool = False,
    backend: str = "av",
) -> Inspection:
    """Returns the clips of a video that training draws and that a test sees.

    A draw is a pure function of the seed, the epoch and the video's place in the manifest. With the manifest and the
    seed of a run, draw ``n`` is what that run saw in its epoch ``n`` - before clips are mixed with others (MixUp,
    CutMix), which is done with whole batches.

    Args:
        manifest: The videos of the run; for ``train`` they need labels.
        index: Number of the video in the manifest.
        protocol: How clips are read; its `views` are those of the test.
        split: Which clips to show.
        augment: Augmentation of the training; None takes the defaults.
        draws: How many epochs of training to draw, from 0 on.
        seed: Seed of the training.
        repeats: How many clips training takes from one decode.
        multilabel: Whether a video may have several labels.
        backend: Decoder.

    Raises:
        VideoError: If the video cannot be read.
        ConfigError: If an argument is not usable.
        ManifestError: If training clips are asked for and the manifest has no labels.
    """
    if split not in ("train", "test", "both"):
        raise ConfigError(f"split: {split!r} is not one of train, test, both")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ConfigError(f"draws: {draws!r} is not a whole number from 1 up")
    shown: list[_Shown] = []
    with VideoReader(manifest.content(index), backend=backend) as reader:
        video = f"{len(reader)} frames of {reader.width} x {reader.height}, {reader.fps:g} fps, {reader.duration:.2f} s"
        if split != "test":
            training = TrainDataset(
                manifest,
                protocol,
                augment if augment is not None else AugmentConfig(),
                seed=seed,
                backend=backend,
                repeats=repeats,
                multilabel=multilabel,
            )
            shown += _training_clips(training, index, draws)
        if split != "train":
            test = EvalDataset(manifest, protocol, views=protocol.views, backend=backend, multilabel=multilabel)
            shown += _test_clips(test, index, ViewPlan.parse(protocol.views))
        middles, places = np.unique([int(clip.indices[len(clip.indices) // 2]) for clip in shown], return_inverse=True)
        sources = reader.get_batch(middles).numpy()
    clips = (InspectedClip(*clip, source=sources[place]) for clip, place in zip(shown, places, strict=True))
    return Inspection(manifest[index].path, video, protocol, tuple(clips))


class _Shown(NamedTuple):
    """A clip as the data sets give it: an `InspectedClip` without the source frame."""

    name: str
    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    seconds: NDArray[np.float64]
    crop_box: CropBox
    flipped: bool


def _training_clips(dataset: TrainDataset, index: int, draws: int) -> list[_Shown]:
    """Returns the clips that the first epochs of a training draw from a video."""
    shown = []
    for epoch in range(draws):
        drawn = dataset[Draw(index, epoch)]
        if drawn.index != index:  # training goes on with another video; here that would mislead
            raise VideoError(*drawn.failures[0])
        for repeat, clip in enumerate(drawn.clips):
            number = f", clip {repeat + 1} of {len(drawn.clips)}" if len(drawn.clips) > 1 else ""
            shown.append(
                _Shown(
                    f"train, epoch {epoch}{number} (seed {dataset.seed})",
                    rearrange(clip, "c t h w -> t h w c").numpy(),
                    drawn.indices[repeat],
                    drawn.seconds[repeat],
                    drawn.crop_boxes[repeat],
                    drawn.flipped[repeat],
                )
            )
    return shown


def _test_clips(dataset: EvalDataset, index: int, plan: ViewPlan) -> list[_Shown]:
    """Returns the views of a video that a test averages."""
    sample = dataset[index]
    if sample.clips is None or sample.indices is None or sample.seconds is None:
        raise VideoError(dataset.manifest[index].path, str(sample.error))
    shown = []
    for view, name in enumerate(plan.names):
        clip, crop = divmod(view, plan.crops)
        shown.append(
            _Shown(
                f"test, {name}",
                rearrange(sample.clips[view], "c t h w -> t h w c").numpy(),
                sample.indices[clip],
                sample.seconds[clip],
                sample.crop_boxes[crop],
                crop >= 5,  # see `stvid.data.clips.crop_offsets`
            )
        )
    return shown
