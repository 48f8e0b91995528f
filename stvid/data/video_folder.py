"""The videos below a folder, found by their names without extension."""

from __future__ import annotations

import os

from stvid.data.labels import composed
from stvid.errors import ManifestError

__all__ = ["VIDEO_EXTENSIONS", "VideoFolder", "is_video"]

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        "3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts",
        "mxf", "ogv", "rm", "rmvb", "ts", "vob", "webm", "wmv",
    )
)  # fmt: skip
_IMAGES = (".jpg", ".jpeg", ".png")


def is_video(name: str) -> bool:
    """Tells by its extension whether a file is a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


class VideoFolder:
    """The videos below a folder (or the folders of images), from one listing of each folder: no system call a file.

    A name is looked up as it is, then without regard to case and to the Unicode form of its letters: the split files of
    UCF101 write HandStandPushups where some copies have HandstandPushups.

    Args:
        root: The folder.
        depth: How many folders below it are looked into; None is all of them. Links are followed, but not in circles.
        frames: Whether the videos are folders of images.

    Raises:
        ManifestError: If there is no such folder.
    """

    def __init__(self, root: str | os.PathLike[str], *, depth: int | None = None, frames: bool = False) -> None:
        self.root = os.fspath(root)
        self._found: dict[str, list[str]] = {}
        self._folders: set[str] = set()
        self._used: set[str] = set()
        if not os.path.isdir(self.root):
            raise ManifestError(f"{self.root}: no such folder (root of the videos)")
        visited: set[str] = set()
        for folder, below, names in os.walk(self.root, followlinks=True):
            relative = os.path.relpath(folder, self.root)
            relative = "" if relative == "." else relative
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            self._folders.add(relative)
            below.sort()
            if depth is not None and (relative.count(os.sep) + 1 if relative else 0) >= depth:
                below.clear()
            if frames:
                if any(name.lower().endswith(_IMAGES) for name in names):
                    self._found.setdefault(os.path.basename(folder), []).append(relative)
                continue
            for name in sorted(names):
                if is_video(name) and not name.startswith("."):
                    self._found.setdefault(os.path.splitext(name)[0], []).append(os.path.join(relative, name))
        self._folded = {composed(name).casefold(): name for name in reversed(self._found)}

    def find(self, name: str, label: str = "") -> str | None:
        """Returns the path of a video below the root; of several of this name that in a folder called like its class.

        Args:
            name: Without extension.
            label: The class.
        """
        paths = self._found.get(name) or self._found.get(self._folded.get(composed(name).casefold(), ""), [])
        if not paths:
            return None
        folders = (composed(label), composed(label).replace(" ", "_"))
        path = next((path for path in paths if composed(os.path.basename(os.path.dirname(path))) in folders), paths[0])
        self._used.add(path)
        return path

    def folder_of(self, label: str) -> str:
        """Returns the folder in which the videos of a class lie, if there is one, else an empty string."""
        return next((name for name in (label, label.replace(" ", "_")) if name in self._folders), "")

    def unused(self) -> list[str]:
        """Returns the paths that were not found by `find`, sorted."""
        return sorted(path for paths in self._found.values() for path in paths if path not in self._used)
