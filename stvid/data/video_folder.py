"""The videos below a folder, found by their names without extension."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from stvid.data.labels import composed
from stvid.errors import ManifestError

__all__ = ["VIDEO_EXTENSIONS", "VideoFolder", "counted_kinds", "is_image", "is_video"]

# The containers and raw streams of pictures that FFmpeg's demuxers name, and what cameras and recorders call theirs.
# Left out: scripts and lists of other files (avs, m3u8), raw pictures without a size (yuv), thumbnails (lrv, thm).
VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        "264", "265", "266", "3g2", "3gp", "3gp2", "3gpp", "amv", "asf", "avc", "avi", "avs2", "avs3", "bmv", "cdg",
        "cdxl", "cif", "dav", "dif", "dirac", "divx", "drc", "dv", "dxa", "evc", "evo", "f4v", "flc", "fli", "flv",
        "gif", "gxf", "h261", "h263", "h264", "h265", "h266", "h26l", "hevc", "idf", "ifv", "insv", "ipu", "ism",
        "isma", "ismv", "ivf", "ivr", "jmv", "kux", "lvf", "m1v", "m2p", "m2t", "m2ts", "m2v", "m4p", "m4v", "mj2",
        "mjpeg", "mjpg", "mjpg2", "mk3d", "mkv", "mlv", "mod", "moflex", "mov", "mp2v", "mp4", "mp4v", "mpe", "mpeg",
        "mpg", "mpv", "mpv2", "mqv", "mts", "mve", "mvi", "mxf", "mxg", "nsv", "nut", "nuv", "obu", "ogg", "ogm",
        "ogv", "ogx", "paf", "pmp", "psp", "qcif", "qt", "r3d", "rcv", "rec", "rm", "rmvb", "roq", "sdr2", "smk",
        "thp", "tod", "trp", "ts", "tts", "ty", "vc1", "viv", "vivo", "vob", "vro", "vvc", "webm", "wm", "wmv",
        "wtv", "xesc", "xmv", "y4m", "yop",
    )
)  # fmt: skip
_IMAGES = (".jpg", ".jpeg", ".png")


def is_video(name: str) -> bool:
    """Tells by its extension whether a file is a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


def is_image(name: str) -> bool:
    """Tells by its extension whether a file is a picture, as the frames of a video may be."""
    return name.lower().endswith(_IMAGES)


def counted_kinds(names: Iterable[str]) -> str:
    """Counts files by their extension, the most frequent first: ``3 .txt, 1 .xyz, 1 without an extension``."""
    kinds = Counter(os.path.splitext(name)[1].lower() for name in names)
    ranked = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {kind or 'without an extension'}" for kind, count in ranked[:8]]
    more = sum(count for _, count in ranked[8:])
    return ", ".join([*shown, *([f"{more} of {len(ranked) - 8} other kinds"] if more else [])])


def _unreadable(error: OSError) -> None:
    raise ManifestError(f"{error.filename}: cannot be read ({error.strerror})") from error


class VideoFolder:
    """The videos below a folder (or the folders of images), from one listing of each folder: no system call a file.

    A name is looked up as it is, then without regard to case and to the Unicode form of its letters: the split files of
    UCF101 write HandStandPushups where some copies have HandstandPushups.

    Attributes:
        root: The folder.
        left_out: Names of the files that are not known as videos.

    Args:
        root: The folder.
        depth: How many folders below it are looked into; None is all of them. Links are followed, but not in circles.
        frames: Whether the videos are folders of images.

    Raises:
        ManifestError: If there is no such folder, or it or one below it cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str], *, depth: int | None = None, frames: bool = False) -> None:
        self.root = os.fspath(root)
        self._found: dict[str, list[str]] = {}
        self._folders: set[str] = set()
        self._used: set[str] = set()
        self.left_out: list[str] = []
        if not os.path.isdir(self.root):
            raise ManifestError(f"{self.root}: no such folder (root of the videos)")
        visited: set[str] = set()
        for folder, below, names in os.walk(self.root, followlinks=True, onerror=_unreadable):
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
                if any(map(is_image, names)):
                    self._found.setdefault(os.path.basename(folder), []).append(relative)
                continue
            for name in sorted(names):
                if name.startswith("."):
                    continue
                if not is_video(name):
                    self.left_out.append(name)
                else:
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
