"""Files of the Hugging Face hub, by the hub's own library: one file, or the config and weights of a repository.

The library keeps them where all its users do (``HF_HOME``), knows the user's token (``HF_TOKEN``), and another address
of the hub (``HF_ENDPOINT``). Here its errors become one line, and a folder is whole and of one commit.
"""

from __future__ import annotations

import errno
import json
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stvid.errors import DownloadError
from stvid.version import __version__

__all__ = ["HubAddress", "HubFiles", "hub_endpoint", "parse_hub_address"]

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_INDEX = ".index.json"  # end of the name of a file that lists the shards of weights
_PREPROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
_WEIGHTS = ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")


@dataclass(frozen=True)
class HubAddress:
    """A place on the Hugging Face hub.

    Attributes:
        repo: ``organisation/name``.
        file: A file of the repository; empty means all that belongs to the model.
        revision: Branch, tag or commit; None is the main branch.
    """

    repo: str
    file: str = ""
    revision: str | None = None

    @property
    def link(self) -> str:
        """The address that a person opens in a browser."""
        return f"{hub_endpoint() or 'https://huggingface.co'}/{self.repo}"


def parse_hub_address(source: str) -> HubAddress | None:
    """Splits ``hf:REPO/FILE@REVISION``, ``hf-hub:REPO@REVISION`` or the https address of a file on the hub.

    Returns:
        The place; None if the source is no address of the hub.

    Raises:
        DownloadError: If it is one, but names no repository.
    """
    match = re.match(r"(?:hf|hf-hub):(?://)?", source)
    if match is None:
        parts = urllib.parse.urlsplit(source)
        place = re.fullmatch(r"/([\w.-]+/[\w.-]+)/(?:resolve|blob|raw)/([^/]+)/(.+)", parts.path)
        if parts.scheme != "https" or parts.hostname not in _HOSTS or place is None:
            return None
        return HubAddress(place[1], urllib.parse.unquote(place[3]), urllib.parse.unquote(place[2]))
    path, at, revision = source[match.end() :].partition("@")
    names = path.strip("/").split("/")
    if not all(re.fullmatch(r"[\w.-]+", name) for name in names[:2]) or (at and not revision):
        raise DownloadError(
            f"{source}: is no place on the Hugging Face hub; write {match[0]}organisation/name@revision"
        )
    return HubAddress("/".join(names[:2]), "/".join(names[2:]), revision or None)


def hub_endpoint() -> str | None:
    """Returns the hub's address of now: the library reads the environment when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _hub_cache() -> str | None:
    """Returns the folder of the hub's library, of now; None is the library's default."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return str(Path(folder).expanduser())
    home = os.environ.get("HF_HOME")
    return str(Path(home).expanduser() / "hub") if home else None


class _NotHere(DownloadError):
    """A file that is not in the cache, where the hub cannot be asked."""


class HubFiles:
    """A repository of the hub, whose files are fetched by the hub's library.

    Args:
        place: The repository.
        what: How messages call it.
        offline: Whether only the cache is used.
    """

    def __init__(self, place: HubAddress, what: str, *, offline: bool) -> None:
        self.place = place
        self.what = what
        self.offline = offline

    def file(self, name: str, *, commit: str | None = None) -> Path:
        """Returns the path of a file that must be there."""
        path = self._get(name, commit)
        if path is None:
            raise DownloadError(f"{self.what}: {self.place.link} has no file {name!r}{self._at()}")
        return path

    def folder(self) -> Path:
        """Returns the folder with the config, what belongs to it, and one set of weights, all of one commit."""
        config = self._get("config.json", None)
        if config is None:
            raise DownloadError(
                f"{self.what}: {self.place.link} has no config.json{self._at()}; name a file of it: "
                f"hf:{self.place.repo}/FILE"
            )
        commit = config.parent.name
        self._first_of(_PREPROCESSORS, commit)
        weights = self._first_of(_WEIGHTS, commit)
        if weights is None:
            names = " or ".join(name for name in _WEIGHTS if not name.endswith(_INDEX))
            raise DownloadError(f"{self.what}: {self.place.link} has no weights ({names}){self._at()}")
        if weights.name.endswith(_INDEX):
            for shard in self._shards(weights):
                self.file(shard, commit=commit)
        return config.parent

    def _first_of(self, names: Sequence[str], commit: str) -> Path | None:
        """Returns the first of some files that is to be had; None if the repository has none of them.

        Without a network a file that the cache does not know of may exist, so that None would be a guess.
        """
        unknown: list[_NotHere] = []
        for name in names:
            try:
                if (path := self._get(name, commit)) is not None:
                    return path
            except _NotHere as error:
                unknown.append(error)
        if unknown:
            raise unknown[0]
        return None

    def _shards(self, index: Path) -> list[str]:
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DownloadError(f"{self.what}: {index} is no JSON ({error})") from error
        files = content.get("weight_map") if isinstance(content, Mapping) else None
        if not isinstance(files, Mapping) or not files:
            raise DownloadError(f"{self.what}: {index} lists no shards (weight_map)")
        return sorted(set(map(str, files.values())))

    def _at(self) -> str:
        return f" at revision {self.place.revision}" if self.place.revision else ""

    def _get(self, name: str, commit: str | None) -> Path | None:
        """Returns the path of a file; None if the repository has no such file, now or when it was last asked.

        Args:
            name: The file.
            commit: Where to look; what the cache knows of a commit needs no question. None takes the revision of now.
        """
        import huggingface_hub
        from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        where: dict[str, Any] = {"repo_id": self.place.repo, "filename": name, "cache_dir": _hub_cache()}
        where["revision"] = commit or self.place.revision
        settings: dict[str, Any] = {"endpoint": hub_endpoint(), "local_files_only": self.offline}
        # The last are the base of all errors of the library's HTTP client, which depends on the library's version.
        failures: tuple[type[BaseException], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
        try:
            if commit is not None or self.offline:
                known = huggingface_hub.try_to_load_from_cache(**where)
                if known is not None:
                    return Path(known) if isinstance(known, str) else None  # the other value: it does not exist
            agent = {"library_name": "stvid", "library_version": __version__}
            download: Any = huggingface_hub.hf_hub_download  # its type depends on arguments that are not given here
            return Path(download(**where, **settings, **agent))
        except LocalEntryNotFoundError as error:
            raise self._not_here(name) from error
        except EntryNotFoundError:
            return None
        except failures as error:
            raise self._failed(error) from error

    def _not_here(self, name: str) -> _NotHere:
        why = (
            "the network is switched off (STVID_OFFLINE, HF_HUB_OFFLINE)"
            if self.offline
            else f"{hub_endpoint() or 'https://huggingface.co'} cannot be reached"
        )
        return _NotHere(f"{self.what}: {name} of {self.place.repo}{self._at()} is not on this machine, and {why}")

    def _failed(self, error: BaseException) -> DownloadError:
        from huggingface_hub.utils import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
        from huggingface_hub.utils import RevisionNotFoundError as NoRevision

        link, login = self.place.link, "log in with `hf auth login`, or set HF_TOKEN"
        if isinstance(error, GatedRepoError):
            return DownloadError(f"{self.what}: {link} asks for consent: accept its terms there, then {login}")
        if isinstance(error, RepositoryNotFoundError):
            return DownloadError(f"{self.what}: {link} does not exist, or is private (then {login})")
        if isinstance(error, NoRevision):
            return DownloadError(f"{self.what}: {link} has no revision {self.place.revision!r}")
        if isinstance(error, HFValidationError):
            return DownloadError(f"{self.what}: {' '.join(str(error).split())}")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403):
            return DownloadError(f"{self.what}: {link} answers {status}: {login}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return DownloadError(
                f"{self.what}: cannot be kept in {error.filename or _hub_cache() or 'the cache of huggingface_hub'} "
                f"({error.strerror}); HF_HOME names another folder"
            )
        reason = f"answers {status}" if status else " ".join(str(error).split())[:200] or type(error).__name__
        return DownloadError(f"{self.what}: {link} cannot be fetched: {reason}")
