"""Clip features as files: one for each video, with the seconds of each clip, so that a later program needs no video.

A feature is the input of the classifier: the pooled output of `forward_features`. The clips of a video are either the
test clips of the protocol (features of a clip's crops are averaged), or windows that slide over it, as in
`stvid.evaluation.timeline`. `stvid.engine.features` runs the model and writes the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest
from stvid.data.sampling import LimitClock
from stvid.data.transforms import model_input
from stvid.data.views import ViewPlan
from stvid.errors import ConfigError, StvidError, VideoError
from stvid.evaluation.timeline import check_windows, stream_windows
from stvid.files import load_arrays, save_arrays, write_atomically
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from stvid.video.streaming import Frame, stream_frames

__all__ = [
    "ClipChunk",
    "ClipFeatures",
    "FeatureClips",
    "FeatureFormat",
    "check_settings",
    "clip_features",
    "feature_files",
    "load_features",
    "save_features",
]

FeatureFormat = Literal["npz", "parquet"]
SETTINGS = "features.json"
_CHUNK_CLIPS = 16
"""Clips that travel together from a decoding process; of a long video one chunk is in memory at a time."""


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipFeatures:
    """The features of one video.

    Attributes:
        features: float32 (N, D), one row for each clip.
        start: Second of each clip's start, counted from the video's first frame, float64 (N,).
        end: Second of each clip's end, float64 (N,); without windows this is the time of its last frame.
        frames: First and last source frame that the model saw, int64 (N, 2).
        path: The video.
        labels: Names of the video's classes, if they are known.
    """

    features: NDArray[np.float32]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    frames: NDArray[np.int64]
    path: str
    labels: tuple[str, ...] = ()


def save_features(found: ClipFeatures, path: str | os.PathLike[str]) -> None:
    """Writes ``.npz``, or ``.parquet`` with a row for each clip and path and labels in the metadata; atomically.

    Raises:
        ConfigError: If the suffix is neither of these.
        StvidError: If pyarrow is missing.
        OSError: If the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".npz":

        def write(file: Path) -> None:
            arrays = {name: getattr(found, name) for name in ("features", "start", "end", "frames")}
            words = {"path": np.array(found.path), "labels": np.array(found.labels, dtype=np.str_)}
            save_arrays(file, arrays | words)
    elif target.suffix == ".parquet":
        arrow, parquet = _pyarrow()
        columns = {
            "start": found.start,
            "end": found.end,
            "first_frame": found.frames[:, 0],
            "last_frame": found.frames[:, 1],
            "features": arrow.FixedSizeListArray.from_arrays(
                arrow.array(found.features.reshape(-1)), found.features.shape[1]
            ),
        }
        about = {"path": found.path, "labels": json.dumps(found.labels)}
        table = arrow.table(columns).replace_schema_metadata(about)

        def write(file: Path) -> None:
            parquet.write_table(table, file)
    else:
        raise ConfigError(f"{target}: features are written as .npz or .parquet")
    write_atomically(target, write)


def load_features(path: str | os.PathLike[str]) -> ClipFeatures:
    """Reads what `save_features` wrote.

    Raises:
        StvidError: If the file is damaged, or pyarrow is missing.
        OSError: If it cannot be read.
    """
    source = Path(path)
    try:
        if source.suffix == ".npz":
            held = load_arrays(source)
            arrays = {name: held[name] for name in ("features", "start", "end", "frames")}
            labels = tuple(map(str, held["labels"].tolist()))
            return _checked(ClipFeatures(**arrays, path=str(held["path"]), labels=labels))
        _, parquet = _pyarrow()
        table = parquet.read_table(source)
        about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        features = table["features"].combine_chunks()
        ends = [table[name].to_numpy() for name in ("first_frame", "last_frame")]
        found = ClipFeatures(
            features=features.flatten().to_numpy().reshape(len(features), -1),
            start=table["start"].to_numpy(),
            end=table["end"].to_numpy(),
            frames=np.stack(ends, axis=1),
            path=about["path"],
            labels=tuple(map(str, json.loads(about["labels"]))),
        )
        return _checked(found)
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(source, error) from error  # pyarrow's word for a file that it cannot understand
    except (LookupError, ValueError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
        raise _damaged(source, error) from error


def _damaged(source: Path, error: Exception) -> StvidError:
    reason = " ".join(str(error).split())[:160]
    return StvidError(f"{source}: not a file of stvid features, or damaged ({reason}); delete it and make it again")


def _checked(found: ClipFeatures) -> ClipFeatures:
    """Raises ValueError unless all parts have the types and the shapes that `ClipFeatures` promises."""
    clips = len(found.features) if found.features.ndim == 2 else -1
    wanted = {"features": ("float32", 2), "start": ("float64", 1), "end": ("float64", 1), "frames": ("int64", 2)}
    for name, (dtype, axes) in wanted.items():
        array = getattr(found, name)
        if array.dtype != dtype or array.ndim != axes or len(array) != clips:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    if found.frames.shape[1] != 2:
        raise ValueError(f"frames has the shape {found.frames.shape}")
    return found


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StvidError(f"{error}; Parquet needs: pip install 'stvid[parquet]'") from error
    return pyarrow, pyarrow.parquet


def feature_files(manifest: Manifest, folder: str | os.PathLike[str], format: FeatureFormat) -> list[Path]:
    """Returns the file of each row: ``<folder of the video>/<its name>.<digits>.npz``.

    The digits come from the video's path and the part of it that the row names, so that they depend on nothing else
    of the list, which may grow.

    Raises:
        ConfigError: If the format is unknown.
    """
    if format not in get_args(FeatureFormat):
        raise ConfigError(f"format: {format!r} is not one of {', '.join(get_args(FeatureFormat))}")
    files = []
    for index in range(len(manifest)):
        entry = manifest[index]
        path = Path(entry.path)
        digits = hashlib.sha256(repr((str(path), entry.start, entry.end)).encode(errors="surrogateescape")).hexdigest()
        files.append(Path(folder) / path.parent.name / f"{path.name}.{digits[:8]}.{format}")
    return files


def check_settings(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Writes down how a folder's features are made, or makes sure that those in it were made the same way.

    Raises:
        ConfigError: If the folder holds features of other settings.
        OSError: If the file cannot be read or written.
    """
    path = Path(folder) / SETTINGS
    plain = json.loads(json.dumps(settings))
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path}: cannot be read ({reason}); choose another --out") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: holds no settings of features; choose another --out")
        differing = [key for key in plain if found.get(key) != plain[key]]
        if differing:
            key = differing[0]
            raise ConfigError(
                f"{path}: the features there were made with other settings ({', '.join(differing)}"
                + (f": {found.get(key)!r}, now {plain[key]!r}" if len(str(plain[key])) < 60 else "")
                + "); choose another --out"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(json.dumps(plain, indent=2), encoding="utf-8"))


# --- clips ------------------------------------------------------------------------------------------------------------


@dataclass
class ClipChunk:
    """Some clips of one video, in order.

    Attributes:
        video: Row of the manifest.
        clips: uint8 (n, crops, C, T, H, W); None if there are none.
        start: Second of each clip's start, counted from the video's first frame, (n,).
        end: Second of each clip's end, (n,).
        frames: First and last source frame, (n, 2).
        last: Whether no more clips of this video come.
        error: Why the video cannot be read; its earlier chunks must not be used then.
    """

    video: int
    clips: Tensor | None
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    frames: NDArray[np.int64]
    last: bool
    error: str | None = None


@dataclass(eq=False)
class FeatureClips(IterableDataset[ClipChunk]):
    """The clips of many videos. Each process reads its share of the videos, and decodes each of them once.

    Attributes:
        manifest: The list of videos.
        rows: Which videos of the list to read.
        protocol: Frames, sampling and size of a clip.
        views: Temporal clips x spatial crops; with windows, those of each window, whose clips are averaged too.
        window: Seconds of a sliding window; None takes the temporal clips.
        stride: Seconds from one window to the next; None takes `window`.
        backend: Decoder of the temporal clips; windows are always read by PyAV.
        rank: Number of this process among those that run the model.
        world_size: How many processes run the model.

    Raises:
        ConfigError: If an attribute is not usable.
    """

    manifest: Manifest
    rows: Sequence[int]
    protocol: Protocol
    _: KW_ONLY
    views: str
    window: float | None
    stride: float | None
    backend: str = "av"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.plan = ViewPlan.parse(self.views)
        if self.window is not None:
            self.stride = self.window if self.stride is None else self.stride
            check_windows(self.window, self.stride)
        elif self.stride is not None:
            raise ConfigError("stride: belongs to window, which is missing")
        # The features do not depend on labels, so that a video may have one, several or none.
        self.videos = EvalDataset(self.manifest, self.protocol, views=self.views, backend=self.backend, multilabel=True)

    def __iter__(self) -> Iterator[ClipChunk | StvidError]:  # type: ignore[override]
        """Yields chunks. An error that is no fault of a video comes as a value, which the loader raises."""
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for row in self.rows[self.rank * workers + number :: self.world_size * workers]:
            chunks = self._windows(row) if self.window is not None else self._test_clips(row)
            try:
                yield from chunks
                error = None
            except VideoError as problem:
                error = problem.reason
            except StvidError as problem:
                yield problem
                return
            none = np.empty(0)
            yield ClipChunk(row, None, none, none, np.empty((0, 2), np.int64), last=True, error=error)

    def _test_clips(self, row: int) -> Iterator[ClipChunk]:
        sample = self.videos[row]
        if sample.clips is None or sample.indices is None or sample.seconds is None:
            raise VideoError(self.manifest[row].path, str(sample.error))
        clips = rearrange(sample.clips, "(clips crops) c t h w -> clips crops c t h w", crops=self.plan.crops)
        frames = sample.indices[:, [0, -1]]
        # The file's clock may begin anywhere.
        times = sample.seconds[:, [0, -1]] - _first_second(self.manifest.content(row), self.videos.backend)
        for begin in range(0, len(clips), _CHUNK_CLIPS):
            part = slice(begin, begin + _CHUNK_CLIPS)
            yield ClipChunk(row, clips[part], times[part, 0], times[part, 1], frames[part], last=False)

    def _windows(self, row: int) -> Iterator[ClipChunk]:
        assert self.window is not None and self.stride is not None
        part = _Part(self.manifest, row)
        windows = stream_windows(part.frames(), self.protocol, window=self.window, stride=self.stride, views=self.plan)
        waiting: list[Any] = []
        for item in windows:
            if item.clips is None:
                continue  # a part without a frame of its own
            waiting.append(item)
            if len(waiting) * self.plan.num_views >= _CHUNK_CLIPS:
                yield self._chunk(row, waiting, part)
                waiting = []
        if waiting:
            yield self._chunk(row, waiting, part)

    def _chunk(self, row: int, windows: list[Any], part: _Part) -> ClipChunk:
        return ClipChunk(
            row,
            torch.stack([item.clips for item in windows]),
            np.array([item.start for item in windows]) + part.seconds,
            np.array([item.end for item in windows]) + part.seconds,
            np.array([[item.indices.min(), item.indices.max()] for item in windows]) + part.index,
            last=False,
        )


def clip_features(
    model: VideoModel,
    clips: Tensor,
    protocol: Protocol,
    *,
    batch_size: int,
    device: torch.device,
    average: bool = True,
) -> Tensor:
    """Returns what the classifier sees of some clips of one video, averaged over the crops of each if asked.

    The caller chooses evaluation mode, autocast and `torch.inference_mode`.

    Args:
        model: On `device`.
        clips: uint8 (n, crops, C, T, H, W).
        protocol: Gives mean, standard deviation and order of the channels.
        batch_size: Clips in one forward pass.
        device: Where the clips go, a batch at a time.
        average: Whether the crops of a clip are averaged.

    Returns:
        float32 (n, D) on the CPU, or (n * crops, D) clip by clip.

    Raises:
        ConfigError: If the model does not take these clips.
    """
    views = clips.flatten(0, 1)
    dtype = next(model.parameters()).dtype
    rows = []
    for start in range(0, len(views), batch_size):
        part = views[start : start + batch_size].to(device)
        try:
            inputs = model_input(part, protocol, dtype=dtype)
            features = model.forward_head(model.forward_features(inputs), pre_logits=True)
        except ValueError as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"{text} (protocol: {protocol.describe()})") from error
        rows.append(features.float())
    found = torch.cat(rows)
    return (found.unflatten(0, clips.shape[:2]).mean(1) if average else found).cpu()


class _Part:
    """The frames of a manifest's row; windows count from its first frame.

    Attributes:
        index: Number of that frame in the file.
        seconds: Its time, counted from the file's first frame.
    """

    def __init__(self, manifest: Manifest, row: int) -> None:
        self.manifest = manifest
        self.row = row
        self.index = 0
        self.seconds = 0.0

    def frames(self) -> Iterator[Frame]:
        content = self.manifest.content(self.row)
        if isinstance(content, str):
            yield from self._within(content)
            return
        with tempfile.NamedTemporaryFile(prefix="stvid_") as file:  # a stream is read from a file, not from a shard
            file.write(content)
            file.flush()
            yield from self._within(file.name)

    def _within(self, path: str) -> Iterator[Frame]:
        entry = self.manifest[self.row]
        origin: float | None = None
        begun = False
        clock = LimitClock()
        for number, frame in enumerate(stream_frames(path)):
            origin = frame.seconds if origin is None else origin
            reached = clock.reached(frame.seconds - origin)
            if entry.end is not None and reached >= entry.end:
                break
            if entry.start is None or reached >= entry.start:
                if not begun:
                    begun, self.index, self.seconds = True, number, frame.seconds - origin
                yield frame
        if not begun:
            raise VideoError(entry.path, f"there is no frame from {entry.start or 0:g} s on")


def _first_second(source: str | bytes, backend: str) -> float:
    from stvid.video.reader import VideoReader

    with VideoReader(source, backend=backend) as reader:  # a file's index is remembered from the clips
        return float(reader.timestamps[0])
