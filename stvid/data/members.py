"""Where the videos of a list lie in tar shards, and how their bytes are read from there.

The shards lie in a folder, or behind any URL that fsspec opens. `stvid.data.shards` reads their list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stvid.errors import StvidError, VideoError
from stvid.video.frame_index import Index
from stvid.video.remote import file_system, reason_of
from stvid.video.stored_index import unpack_index

__all__ = ["Members"]


@dataclass(frozen=True)
class Members:
    """Where the videos of a manifest lie in shards; arrays of one entry a video.

    Attributes:
        root: Folder or URL of the shards.
        files: Their names.
        shard: Number of the shard, int32 (N,).
        begin: Where the first header of the video's files is in the tar, int64 (N,).
        data: Where its bytes begin, int64 (N,).
        size: Its bytes, int64 (N,).
        scan: Where the bytes of its index begin, int64 (N,).
        scan_size: Their number, 0 if it has none, int64 (N,).
    """

    root: str
    files: tuple[str, ...]
    shard: np.ndarray
    begin: np.ndarray
    data: np.ndarray
    size: np.ndarray
    scan: np.ndarray
    scan_size: np.ndarray

    @property
    def place(self) -> str:
        """Says in words where the videos lie, for messages."""
        return "in shards"

    @property
    def instead(self) -> str:
        """Says in words what to do where files are needed."""
        return "give the list that the shards were made of"

    def subset(self, picked: np.ndarray) -> Members:
        """Returns the places of some of the videos."""
        columns = (self.shard, self.begin, self.data, self.size, self.scan, self.scan_size)
        return Members(self.root, self.files, *(column[picked] for column in columns))

    def url(self, shard: int) -> str:
        """Returns where a shard is."""
        return f"{self.root}/{self.files[shard]}"

    def read(self, index: int) -> tuple[bytes, Index | None]:
        """Returns the bytes of one video, and its index if the shard has one that can be used.

        Raises:
            VideoError: If they cannot be read.
        """
        data, scan_size = int(self.data[index]), int(self.scan_size[index])
        first = int(self.scan[index]) if scan_size else data
        count = data + int(self.size[index]) - first
        url = self.url(int(self.shard[index]))
        try:
            files, path = file_system(url)
            content = files.cat_file(path, start=first, end=first + count)
        except StvidError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise VideoError(url, f"cannot be read ({reason_of(error)})") from error
        if len(content) != count:
            raise VideoError(
                url,
                f"gave {len(content)} bytes when {count} from byte {first} on were asked for (a server must do that)",
            )
        content = bytes(content)
        if not scan_size:
            return content, None
        return content[data - first :], unpack_index(content[:scan_size])
