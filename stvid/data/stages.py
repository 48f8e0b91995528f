"""The preparation of videos as stages: plain classes for `stvid prep` and for a ``ray.data`` pipeline of one's own.

A stage is made once, with options, and called with batches of rows: a dict of columns, one of which (``path``) names
the files. It returns them with more columns, and ``error`` says what is wrong with a file. `stvid prep` runs the same
classes in processes of one machine, and with ``--engine ray`` on a cluster. All machines must see the files under the
same names. For example, small copies of all videos that can be read, and an index of each copy::

    import ray
    from stvid.data.stages import Index, Scan, Transcode

    videos = ray.data.read_csv("videos.csv")                                  # path,label
    videos = videos.map_batches(Scan())                                       # frames, fps, seconds, ..., error
    videos = videos.map_batches(Transcode("/data/raw", "/data/small", short_side=256))    # out, bytes_after, ...
    videos = videos.map_batches(Index("/data/index", column="out"))           # file: one packed index for each copy
    videos.filter(lambda row: row["error"] == "").write_parquet("/data/small/videos")

Rows of which an earlier stage says an error are passed on as they are. The work on a file writes the same bytes each
time, and moves a file into place only when it is whole, so that work may be repeated, and done twice at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from stvid.data.stage_base import Stage
from stvid.data.transcoding import DEFAULTS, transcode
from stvid.errors import ConfigError, nearest

__all__ = ["Hash", "Index", "Scan", "Shard", "Transcode"]


class Scan(Stage):
    """Reads a video and tells what is in it: see `stvid.data.scanning.examine`.

    Args:
        full: Whether every frame is decoded, instead of the first, middle and last one.
        column: The column that names the videos.
    """

    fields: ClassVar[Mapping[str, type]] = {
        "frames": int,
        "fps": float,
        "seconds": float,
        "width": int,
        "height": int,
        "bad_packets": int,
        "method": str,
        "sha256": str,
        "bytes": int,
    }
    rows_at_once = 32

    def __init__(self, *, full: bool = False, column: str = "path") -> None:
        super().__init__({"full": full}, column=column)

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads one video."""
        from stvid.data.scanning import examine

        return examine(path, self.options)


class Index(Stage):
    """Scans the packets of a video once and keeps its index in a file: see `stvid.data.scanning.index_video`.

    ``file`` is the name of the index in the folder; `stvid.video.stored_index.write_index` joins many into the index
    that training and tests find beside a list.

    Args:
        folder: Where the files go; it is made if it is missing.
        column: The column that names the videos.
    """

    fields: ClassVar[Mapping[str, type]] = {"file": str, "bytes": int}
    rows_at_once = 32

    def __init__(self, folder: str | os.PathLike[str], *, column: str = "path") -> None:
        super().__init__({"folder": os.fspath(folder)}, column=column)

    def work(self, path: str) -> Mapping[str, Any]:
        """Scans one video."""
        from stvid.data.scanning import index_video

        os.makedirs(self.options["folder"], exist_ok=True)
        return index_video(path, self.options)


class Transcode(Stage):
    """Writes a copy of a video that is small and quick to seek: see `stvid.data.transcoding.transcode`.

    Args:
        root: The folder that the videos lie in.
        out: The folder of the copies, where each has the place that its original has below `root`.
        column: The column that names the videos.
        **settings: ``short_side``, ``gop``, ``crf``, ``preset`` and ``frames_fps``, whose defaults are those of
            `stvid.data.transcoding.DEFAULTS`.

    Raises:
        ConfigError: If there is no such setting.
    """

    fields: ClassVar[Mapping[str, type]] = {
        "out": str,
        "frames": int,
        "width": int,
        "height": int,
        "bytes_before": int,
        "bytes_after": int,
    }
    rows_at_once = 4

    def __init__(
        self, root: str | os.PathLike[str], out: str | os.PathLike[str], *, column: str = "path", **settings: Any
    ) -> None:
        for name in settings:
            if name not in DEFAULTS:
                raise ConfigError(f"{name}: no such setting of Transcode{nearest(name, DEFAULTS)}")
        super().__init__({"root": os.fspath(root), "out": os.fspath(out), **DEFAULTS, **settings}, column=column)

    def work(self, path: str) -> Mapping[str, Any]:
        """Writes one copy."""
        return transcode(path, self.options)


class Shard(Stage):
    """Writes one tar of WebDataset shards: see `stvid.data.sharding.write_shard`.

    Args:
        plan: The folder that says what each tar is to hold, as `stvid.data.sharding.plan_shards` gave it.
        column: The column that names the tars.
    """

    fields: ClassVar[Mapping[str, type]] = {"file": str, "bytes": int, "sha256": str, "videos": list}

    def __init__(self, plan: str | os.PathLike[str], *, column: str = "path") -> None:
        super().__init__({"plan": os.fspath(plan)}, column=column)

    def work(self, path: str) -> Mapping[str, Any]:
        """Writes one tar."""
        from stvid.data.sharding import write_shard

        return write_shard(path, self.options)


class Hash(Stage):
    """Describes a video by hashes by which its copies are found: see `stvid.data.leakage.hash_video`.

    Args:
        column: The column that names the videos.
    """

    fields: ClassVar[Mapping[str, type]] = {"hashes": list}
    rows_at_once = 32

    def __init__(self, *, column: str = "path") -> None:
        super().__init__({}, column=column)

    def work(self, path: str) -> Mapping[str, Any]:
        """Reads one video."""
        from stvid.data.leakage import hash_video

        return hash_video(path, self.options)
