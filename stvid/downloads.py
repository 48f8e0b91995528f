"""Published files: fetched once, checked, and kept in a folder of the user's.

`fetch` takes the address of a published file and returns its path on this machine. An address is ``https://...``,
``hf:REPO``, ``hf:REPO/FILE`` or ``hf:REPO/FILE@REVISION`` (Hugging Face), ``gdrive:ID`` or ``gdrive-folder:ID`` (Google
Drive).

A download is resumed where an earlier one stopped, and gets its name only when it is whole and its hash is right. Of
several processes one downloads and the others wait. What cannot be fetched without a person (a page of Google Drive, a
form, a login) is an error of one line with the link and the path at which stvid looks for the file from then on.

Files are kept in ``$STVID_HOME``, else ``$XDG_CACHE_HOME/stvid``, else ``~/.cache/stvid``, as
``weights/<host>/<id>/<file>``; those of Hugging Face where its own library keeps them (``HF_HOME``). With
``STVID_OFFLINE=1`` or ``HF_HUB_OFFLINE=1`` the network is not used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import filelock

from stvid.console import progress_bar
from stvid.errors import DownloadError, ManualDownloadError
from stvid.files import write_atomically
from stvid.hub_files import HubAddress, HubFiles, parse_hub_address
from stvid.version import __version__

__all__ = [
    "cache_folder",
    "fetch",
    "fetch_hub_folder",
    "is_non_commercial",
    "is_offline",
    "say_licence",
    "where_kept",
]

TIMEOUT = 30.0  # seconds without an answer
ATTEMPTS = 5  # failed requests in a row, after which a download is given up
BACKOFF = 0.5  # seconds before the second request; each further one waits twice as long
LONGEST_WAIT = 60.0  # seconds that a server may ask to wait (Retry-After)
CHUNK = 1 << 20
GDRIVE_URL = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
_LATER = frozenset((408, 425, 429, 500, 502, 503, 504))  # status codes that may be gone at the next request
_UNFINISHED = (".part", ".crdownload", ".download", ".tmp")  # suffixes of files that a browser has not finished


# --- the user's settings ----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Returns the folder in which stvid keeps what it has fetched; it need not exist."""
    if home := os.environ.get("STVID_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "stvid"


def is_offline(offline: bool | None = None) -> bool:
    """Returns whether the network must not be used; None asks ``STVID_OFFLINE`` and ``HF_HUB_OFFLINE``."""
    if offline is not None:
        return offline
    values = (os.environ.get(name, "") for name in ("STVID_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() not in ("", "0", "no", "off", "false") for value in values)


_said: set[tuple[str, str]] = set()


def is_non_commercial(licence: str) -> bool:
    """Returns whether a licence, as its owner writes it, forbids commercial use."""
    return bool(re.search(r"\bNC\b|non[ -]?commercial|research[ -](?:use|purposes)? ?only", licence, flags=re.I))


def say_licence(name: str, licence: str) -> None:
    """Says on standard error, once in a process, that weights are not for commercial use; allows all else in silence.

    Args:
        name: How the user calls the weights, such as ``timesformer_base.k400``.
        licence: Their licence, as its owner writes it.
    """
    if is_non_commercial(licence) and (name, licence) not in _said:
        _said.add((name, licence))
        print(f"{name}: the licence of these weights forbids commercial use: {licence}", file=sys.stderr, flush=True)


# --- what is wanted, and where it is kept -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A published file.

    Attributes:
        what: How messages call it.
        link: The address that a person opens in a browser.
        address: The address of the file itself; empty if only a person can fetch it.
        folder: Where it is kept, alone.
        file_name: Its name there, unless the server gives another, or a person.
        named_by_server: Whether the address does not tell the name, but the answer of the server may.
        sha256: The digits that are known of its hash; ``gitblob-sha1:`` and 40 digits for the id of git's blob.
        size: Its bytes; None if unknown.
        licence: Its licence; empty if unknown.
    """

    what: str
    link: str
    address: str
    folder: Path
    file_name: str
    named_by_server: bool = False
    sha256: str = ""
    size: int | None = None
    licence: str = ""

    @property
    def target(self) -> Path:
        return self.folder / self.file_name

    @property
    def by_hand(self) -> str:
        """The end of a message that says how a person gets the file."""
        terms = f" (licence: {self.licence})" if self.licence else ""
        return f"open {self.link} in a browser and save the file as {self.target}{terms}"


def _plain(name: str, default: str = "weights") -> str:
    """Returns a text as the name of a file: letters, digits and a few signs."""
    plain = re.sub(r"[^\w.+=@-]+", "_", name).lstrip(".")
    return plain[-150:] or default


def _wanted(url: str, *, sha256: str, size: int | None, name: str, licence: str) -> _Wanted:
    facts: dict[str, Any] = {"what": name or url, "sha256": sha256, "size": size, "licence": licence}
    folder = cache_folder() / "weights"
    kind, _, rest = url.partition(":")
    if kind == "gdrive":
        link, address = f"https://drive.google.com/file/d/{rest}/view", GDRIVE_URL.format(urllib.parse.quote(rest))
        place = folder / "drive.google.com" / _plain(rest)
        return _Wanted(
            link=link, address=address, folder=place, file_name=_plain(name, rest), named_by_server=True, **facts
        )
    if kind == "gdrive-folder":  # several published files may be in one
        place = folder / "drive.google.com" / _plain(rest) / _plain(name)
        link = f"https://drive.google.com/drive/folders/{rest}"
        return _Wanted(link=link, address="", folder=place, file_name=_plain(name), **facts)
    parts = urllib.parse.urlsplit(url)
    if kind not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{url}: is no address of a published file (https://, hf:, gdrive: or gdrive-folder:)")
    address = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    if parts.hostname.removeprefix("www.") == "dropbox.com":
        # With dl=1 Dropbox sends the file itself. A folder (/sh/, /scl/fo/) would come as a zip file of all its files.
        query = {**dict(urllib.parse.parse_qsl(parts.query)), "dl": "1"}
        whole = re.match(r"/(sh|scl/fo)/", parts.path) is None
        address = parts._replace(query=urllib.parse.urlencode(query)).geturl() if whole else ""
    own_name = urllib.parse.unquote(parts.path.rpartition("/")[2])
    place = folder / _plain(parts.hostname) / hashlib.sha256(url.encode()).hexdigest()[:12]
    return _Wanted(link=url, address=address, folder=place, file_name=_plain(own_name, _plain(name)), **facts)


def where_kept(url: str, *, name: str = "") -> Path | None:
    """Returns the path of a published file if it has been fetched, without looking at its hash; None if not.

    Args:
        url: As for `fetch`; not an address of Hugging Face, whose library has a folder of its own.
        name: As for `fetch`.
    """
    return _file_in(_wanted(url, sha256="", size=None, name=name, licence=""))


def _file_in(wanted: _Wanted) -> Path | None:
    """Returns the one whole file of a folder, which a person may have given another name."""
    if wanted.target.is_file():
        return wanted.target
    try:
        files = [path for path in wanted.folder.iterdir() if path.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _cannot_store(wanted.what, wanted.folder, error) from error
    whole = [path for path in files if not path.name.startswith(".") and path.suffix not in _UNFINISHED]
    if len(whole) > 1:
        names = ", ".join(sorted(path.name for path in whole)[:3])
        raise DownloadError(f"{wanted.what}: {wanted.folder} holds several files ({names}); leave the published one")
    return whole[0] if whole else None


# --- checks -----------------------------------------------------------------------------------------------------------


def _normal_hash(sha256: str) -> str:
    """Returns a hash in small letters.

    Raises:
        ValueError: If it is no hash.
    """
    digits = sha256.strip().lower()
    if not re.fullmatch(r"(gitblob-sha1:[0-9a-f]{40}|[0-9a-f]{6,64}|)", digits):
        raise ValueError(f"sha256 {sha256!r}: 6 to 64 hexadecimal digits are expected, or gitblob-sha1: and 40 of them")
    return digits


def _hash_of(path: Path, expected: str) -> str:
    """Returns the hash of a file in the kind and the length of an expected one."""
    kind, _, digits = expected.rpartition(":")
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False) if kind else hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()[: len(digits)]
    return f"{kind}:{found}" if kind else found


def _begins_a_page(start: bytes) -> bool:
    return (
        re.match(rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body)\b", start, flags=re.I)
        is not None
    )


def _problem_of(path: Path, wanted: _Wanted) -> str:
    """Returns what is wrong with a whole file; empty if nothing is."""
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    with open(path, "rb") as file:
        if _begins_a_page(file.read(512)):
            return "is a web page, not the file"
    if wanted.size is not None and size != wanted.size:
        return f"has {size} bytes, but the published file has {wanted.size}"
    if wanted.sha256 and (found := _hash_of(path, wanted.sha256)) != wanted.sha256:
        return f"is not the published file: its hash is {found}, the published one {wanted.sha256}"
    return ""


def _checked(wanted: _Wanted) -> Path | None:
    """Returns the kept file after checks; None if there is none.

    A note beside the file says that its hash has been computed, so that loading does not read the file twice.
    """
    path = _file_in(wanted)
    if path is None:
        return None
    facts = path.stat()
    note = path.with_name(f".{path.name}.checked")
    state = {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "hash": wanted.sha256}
    if _read_json(note) == state and wanted.size in (None, facts.st_size):
        return path
    if problem := _problem_of(path, wanted):
        again = "start again to fetch it anew" if wanted.address else wanted.by_hand
        raise DownloadError(f"{wanted.what}: {path} {problem}; delete it, then {again}")
    with contextlib.suppress(OSError):  # a folder that others share may be read-only; the note only saves time
        write_atomically(note, lambda temporary: temporary.write_text(json.dumps(state)))
    return path


def _read_json(path: Path) -> Any:
    """Returns the content of a note; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _cannot_store(what: str, folder: Path, error: OSError) -> DownloadError:
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return DownloadError(f"{what}: cannot be kept in {folder} ({reason}); STVID_HOME names another folder")


# --- one file over HTTP -----------------------------------------------------------------------------------------------


def fetch(
    url: str,
    *,
    sha256: str = "",
    size: int | None = None,
    name: str = "",
    licence: str = "",
    offline: bool | None = None,
    progress: bool | None = None,
) -> Path:
    """Returns the path of a published file, which is downloaded if it is not on this machine yet.

    Args:
        url: ``https://...``, ``hf:REPO/FILE@REVISION``, ``gdrive:ID`` or ``gdrive-folder:ID``. ``hf:REPO`` fetches the
            config and the weights of a repository, and the result is a folder.
        sha256: The hash of the file, or as many of its first digits as are known; ``gitblob-sha1:`` and 40 digits for
            the id that git gives to the content. Empty if nothing is known.
        size: Bytes of the file, if known.
        name: How messages call the file, such as ``uniformer_s.k400_16x4``; empty calls it by its address.
        licence: Is told to a person who has to fetch the file by hand.
        offline: Whether to use only what is on this machine; None asks the environment (see `is_offline`).
        progress: Whether a bar is shown; None shows it if standard error is a terminal.

    Raises:
        ManualDownloadError: If only a person can fetch the file; the line has the link and the path.
        DownloadError: If the file cannot be had for another reason, or is not the published one.
        ValueError: If `sha256` is no hash.
    """
    expected = _normal_hash(sha256)
    hub = parse_hub_address(url)
    if hub is not None:
        return _file_of_hub(hub, _Wanted(name or url, hub.link, "", Path(), "", False, expected, size), offline)
    wanted = _wanted(url, sha256=expected, size=size, name=name, licence=licence)
    if (kept := _checked(wanted)) is not None:
        return kept
    if not wanted.address:
        raise ManualDownloadError(f"{wanted.what}: only a person can fetch this: {wanted.by_hand}")
    if is_offline(offline):
        raise DownloadError(
            f"{wanted.what}: is not on this machine, and the network is switched off (STVID_OFFLINE, HF_HUB_OFFLINE); "
            f"elsewhere {wanted.by_hand}"
        )
    try:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        with _only_one(wanted):
            return _checked(wanted) or _Transfer(wanted, progress).run()
    except OSError as error:  # of the disk: those of the network are caught where they arise
        raise _cannot_store(wanted.what, wanted.folder, error) from error


@contextlib.contextmanager
def _only_one(wanted: _Wanted) -> Iterator[None]:
    """Waits while another process fetches the same file."""
    lock = filelock.FileLock(wanted.folder / ".lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"{wanted.what}: another process is fetching it; waiting", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _TryAgain(Exception):
    """A request that failed, and may succeed when it is made once more.

    Attributes:
        reason: The problem in words.
        wait: Seconds that the server asks to wait; None if it does not.
        weight: How many of the attempts it counts for: a machine without a network should not make the user wait long.
    """

    def __init__(self, reason: str, *, wait: float | None = None, weight: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.weight = weight


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, 308 among them (Python 3.10 does not), and from https to https alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Returns the next request."""
        old, new = (urllib.parse.urlsplit(address).scheme for address in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"redirects from {old} to {new}", headers, fp)
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


_opener = urllib.request.build_opener(_Redirects)


class _Transfer:
    """Brings one file into its folder.

    Args:
        wanted: The file.
        progress: Whether a bar is shown; None shows it on a terminal.
    """

    def __init__(self, wanted: _Wanted, progress: bool | None) -> None:
        self.wanted = wanted
        self.progress = progress
        self.target = wanted.target
        self.part = wanted.folder / f".{wanted.file_name}.part"
        self.note = wanted.folder / f".{wanted.file_name}.part.json"  # what tells whether the rest is of the same file

    def run(self) -> Path:
        """Returns the path of the whole, checked file."""
        resumed = self._have() > 0
        self._receive()
        problem = _problem_of(self.part, self.wanted)
        if problem and resumed:  # the part was perhaps of an older file, or damaged: once more from the start
            self._discard()
            self._receive()
            problem = _problem_of(self.part, self.wanted)
        if problem:
            page = "web page" in problem
            self._discard()
            if page:
                raise self._by_hand("the server sends a web page in place of the file")
            raise DownloadError(
                f"{self.wanted.what}: what {self.wanted.link} sends {problem}; it was removed; the address may serve "
                f"another file now: report it, or put the published file at {self.target}"
            )
        with open(self.part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.target)
        self.note.unlink(missing_ok=True)
        state = {"bytes": (facts := self.target.stat()).st_size, "mtime_ns": facts.st_mtime_ns}
        state_note = self.target.with_name(f".{self.target.name}.checked")
        write_atomically(
            state_note, lambda temporary: temporary.write_text(json.dumps({**state, "hash": self.wanted.sha256}))
        )
        return self.target

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _by_hand(self, reason: str) -> ManualDownloadError:
        return ManualDownloadError(f"{self.wanted.what}: {reason}: {self.wanted.by_hand}")

    def _receive(self) -> None:
        """Makes requests until the part is whole."""
        failures = 0
        while True:
            before = self._have()
            try:
                self._request()
                return
            except _TryAgain as error:
                failures = error.weight if self._have() >= before + CHUNK else failures + error.weight
                if failures >= ATTEMPTS:
                    kept = (
                        f"; {self._have()} bytes are kept, and the next attempt goes on there" if self._have() else ""
                    )
                    raise DownloadError(
                        f"{self.wanted.what}: {self.wanted.link} cannot be fetched: {error.reason}{kept}; try again "
                        f"later, or put the file at {self.target}"
                    ) from error
                time.sleep(BACKOFF * 2 ** (failures - 1) if error.wait is None else min(error.wait, LONGEST_WAIT))

    def _request(self) -> None:
        """Makes one request for what is missing, and appends what comes."""
        start, validator = self._have(), self._validator()
        headers = {"User-Agent": f"stvid/{__version__}", "Accept-Encoding": "identity"}
        if start and (validator or self.wanted.sha256):
            headers["Range"] = f"bytes={start}-"
            if validator:
                headers["If-Range"] = validator
        else:
            start = 0
        try:
            response = _opener.open(urllib.request.Request(self.wanted.address, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and start:  # nothing is missing, or the file is shorter now
                    if error.headers.get("Content-Range", "") == f"bytes */{start}":
                        return
                    self._discard()
                    raise _TryAgain("the file has changed on the server") from error
                raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        with response:
            self._accept(response, start)

    def _validator(self) -> str:
        note = _read_json(self.note)
        known = isinstance(note, Mapping) and note.get("address") == self.wanted.address
        return str(note.get("validator", "")) if known else ""

    def _refused(self, error: urllib.error.HTTPError) -> DownloadError | _TryAgain:
        answer = f"the server answers {error.code} {error.reason}"
        if error.code in _LATER:
            wait = error.headers.get("Retry-After", "")
            return _TryAgain(answer, wait=float(wait) if wait.isdecimal() else None)
        if error.code in (401, 403) or self.wanted.named_by_server:
            return self._by_hand(answer)
        return DownloadError(
            f"{self.wanted.what}: {self.wanted.link}: {answer}; if you have the file from elsewhere, put it at "
            f"{self.target}"
        )

    def _unreachable(self, error: Exception) -> DownloadError | _TryAgain:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        text = " ".join(str(getattr(reason, "strerror", None) or reason or type(reason).__name__).split())
        if isinstance(reason, ssl.SSLCertVerificationError):
            return DownloadError(
                f"{self.wanted.what}: {self.wanted.link}: the certificate of the server is not trusted ({text}); "
                f"behind a proxy set SSL_CERT_FILE, or put the file at {self.target}"
            )
        unreached = isinstance(reason, socket.gaierror | ConnectionRefusedError)
        return _TryAgain(f"no answer ({text})" if unreached else text, weight=2 if unreached else 1)

    def _accept(self, response: Any, start: int) -> None:
        """Looks at the head of an answer, and receives its body."""
        headers = response.headers
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if response.status == 206:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if place is None or int(place[1]) != start:
                self._discard()
                raise _TryAgain("the server sends another part than was asked for")
            total = int(place[2]) if place[2] != "*" else None if total is None else start + total
        else:
            start = 0  # all of it: the server knows no ranges, or the file has changed
        if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise self._by_hand("the server sends a web page in place of the file")
        if total is not None and self.wanted.size is not None and total != self.wanted.size:
            raise DownloadError(
                f"{self.wanted.what}: {self.wanted.link} has {total} bytes, but the published file has "
                f"{self.wanted.size}; put that at {self.target}"
            )
        if self.wanted.named_by_server and (name := headers.get_filename()):
            self.target = self.wanted.folder / _plain(Path(name).name)
        if not start:
            etag = headers.get("ETag", "")
            validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
            content = json.dumps({"address": self.wanted.address, "validator": validator})
            write_atomically(self.note, lambda temporary: temporary.write_text(content))
        free = shutil.disk_usage(self.wanted.folder).free
        if total is not None and total - start > free:
            raise DownloadError(
                f"{self.wanted.what}: {(total - start) / 1e6:.0f} MB do not fit into {self.wanted.folder} "
                f"({free / 1e6:.0f} MB are free); STVID_HOME names another folder"
            )
        self._append(response, start, total)

    def _append(self, response: Any, start: int, total: int | None) -> None:
        """Writes the body behind the first `start` bytes of the part."""
        title = self.wanted.what
        with (
            open(self.part, "r+b" if self.part.exists() else "wb") as file,
            progress_bar(title, total, done=start, enabled=self.progress, in_bytes=True) as bar,
        ):
            file.truncate(start)
            file.seek(start)
            received = start
            while True:
                try:
                    chunk = response.read1(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise self._unreachable(error) from error
                if not chunk:
                    break
                file.write(chunk)
                received += len(chunk)
                bar.advance(len(chunk))
        if total is not None and received < total:
            raise _TryAgain(f"the connection was cut after {received} of {total} bytes")


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def _file_of_hub(place: HubAddress, wanted: _Wanted, offline: bool | None) -> Path:
    """Fetches a file of the hub, and checks its hash; or fetches a folder."""
    files = HubFiles(place, wanted.what, offline=is_offline(offline))
    if not place.file:
        return files.folder()
    path = files.file(place.file)
    if problem := _problem_of(path, wanted):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise DownloadError(f"{wanted.what}: {place.link} sends a file that {problem}; it was removed from the cache")
    return path


def fetch_hub_folder(source: str, *, offline: bool | None = None) -> Path:
    """Returns the folder with the config and the weights of a repository, which are downloaded if they are not here.

    ``model.safetensors`` is taken where there is one, else its shards, else ``pytorch_model.bin``.

    Args:
        source: ``hf:REPO@REVISION`` or ``hf-hub:REPO@REVISION``.
        offline: As for `fetch`.

    Raises:
        DownloadError: If it cannot be had; the line says whether the repository does not exist, asks for a login, or
            is not here while the network is switched off.
    """
    place = parse_hub_address(source)
    if place is None or place.file:
        raise DownloadError(f"{source}: is no repository of the Hugging Face hub; write hf-hub:organisation/name")
    return HubFiles(place, source, offline=is_offline(offline)).folder()
