from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stvid import downloads
from stvid.downloads import fetch, fetch_hub_folder, say_licence, where_kept
from stvid.errors import CheckpointError, DownloadError, ManualDownloadError
from tests.loopback import Hub, Route, Server, as_json

CONTENT = bytes(range(256)) * 1200  # 307200 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BLOB = "gitblob-sha1:" + hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STVID_HOME", str(tmp_path / "home"))
    for name in ("STVID_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# --- the file comes, once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", ["", SHA256, SHA256[:8], SHA256.upper(), BLOB])
def test_a_file_is_fetched_once(server: Server, home: Path, sha256: str) -> None:
    server.routes["/a/weights.pth"] = Route(CONTENT)
    url = f"{server.url}/a/weights.pth"
    assert where_kept(url) is None
    path = fetch(url, sha256=sha256, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert path.name == "weights.pth" and path.is_relative_to(home / "weights" / "127.0.0.1")
    assert fetch(url, sha256=sha256) == path == where_kept(url)
    assert len(server.requests) == 1
    assert files_below(home) == {"weights.pth", ".weights.pth.checked"}
    assert path.stat().st_mode & 0o044 == 0o044  # as any file of the user's


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/model.pth?download=1&token=a%2Fb", "model.pth"),
        ("/x/r2plus1d_%20f128.pkl?dl=0", "r2plus1d__f128.pkl"),
        ("/x/net%2E%2E%2Fa.pt", "net.._a.pt"),
        ("/get/?id=7", "weights"),
    ],
)
def test_the_name_of_the_file_is_that_of_the_address(server: Server, path: str, name: str) -> None:
    server.routes[path.partition("?")[0]] = Route(CONTENT)
    found = fetch(server.url + path)
    assert found.name == name and found.read_bytes() == CONTENT
    assert server.requests[0].path == path


def test_addresses_with_one_file_name_do_not_meet(server: Server) -> None:
    server.routes |= {"/a/w.pth": Route(b"one"), "/b/w.pth": Route(b"two")}
    assert [fetch(f"{server.url}/{folder}/w.pth").read_bytes() for folder in "ab"] == [b"one", b"two"]


def test_redirects_are_followed(server: Server) -> None:
    server.routes["/real.pth"] = Route(CONTENT)
    for status in (301, 302, 303, 307, 308):
        server.routes[f"/{status}.pth"] = Route(statuses=[status], headers={"Location": "/real.pth"})
        assert fetch(f"{server.url}/{status}.pth", sha256=SHA256).name == f"{status}.pth"


def test_a_redirect_to_a_local_file_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    server.routes["/w.pth"] = Route(statuses=[302], headers={"Location": f"file://{tmp_path}/secret"})
    with pytest.raises(DownloadError, match="302"):
        fetch(f"{server.url}/w.pth")


def test_a_server_may_not_say_the_length(server: Server) -> None:
    server.routes["/w.pth"] = Route(CONTENT, with_length=False)
    assert fetch(f"{server.url}/w.pth", sha256=SHA256).read_bytes() == CONTENT


def test_the_bar_is_for_terminals(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes |= {"/a.pth": Route(CONTENT), "/b.pth": Route(CONTENT)}
    fetch(f"{server.url}/a.pth")
    assert capsys.readouterr() == ("", "")
    fetch(f"{server.url}/b.pth", name="net.tag", progress=True)
    assert "net.tag" in (shown := capsys.readouterr().err) and "307.2/307.2 kB" in shown


# --- cut connections --------------------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_stopped(server: Server) -> None:
    server.routes["/w.pth"] = Route(CONTENT, etag='"v1"', cuts=[100_000])
    assert fetch(f"{server.url}/w.pth").read_bytes() == CONTENT
    first, second = server.requests
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=100000-" and second.headers["If-Range"] == '"v1"'


def test_the_next_process_goes_on_where_a_killed_one_stopped(
    server: Server, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    route = server.routes["/w.pth"] = Route(CONTENT, cuts=[50_000, 70_000])
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    url = f"{server.url}/w.pth"
    with pytest.raises(DownloadError, match=r"cut after 70000 of 307200 bytes; 70000 bytes are kept.*try again later"):
        fetch(url, sha256=SHA256)
    assert where_kept(url) is None  # a part is not a file
    assert fetch(url, sha256=SHA256).read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in server.requests] == [None, "bytes=50000-", "bytes=70000-"]
    assert route.cuts == []
    assert ".w.pth.part" not in files_below(home)


def test_a_server_without_ranges_starts_again(server: Server) -> None:
    server.routes["/w.pth"] = Route(CONTENT, etag='"v1"', cuts=[100_000], ranges=False)
    assert fetch(f"{server.url}/w.pth").read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_nothing_is_appended_to_the_part_of_another_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    url = f"{server.url}/w.pth"
    for etag in ('"v1"', ""):  # with a name for the old content, and without
        server.routes["/w.pth"] = Route(b"old" * 1000, etag=etag, cuts=[900])
        with pytest.raises(DownloadError):
            fetch(url)
        server.routes["/w.pth"] = Route(CONTENT, etag='"v2"' if etag else "")
        path = fetch(url)
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_damaged_part_is_fetched_anew(server: Server, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    server.routes["/w.pth"] = Route(CONTENT, cuts=[1000])
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with pytest.raises(DownloadError):
        fetch(f"{server.url}/w.pth", sha256=SHA256)
    (part,) = home.rglob(".w.pth.part")
    part.write_bytes(b"x" * 1000)
    assert fetch(f"{server.url}/w.pth", sha256=SHA256).read_bytes() == CONTENT
    part.write_bytes(CONTENT + b"x")  # longer than the file
    where_kept(f"{server.url}/w.pth").unlink()  # type: ignore[union-attr]
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    assert fetch(f"{server.url}/w.pth", sha256=SHA256).read_bytes() == CONTENT


def test_a_part_that_is_whole_is_taken(server: Server, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    server.routes["/w.pth"] = Route(CONTENT, cuts=[1000])
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with pytest.raises(DownloadError):
        fetch(f"{server.url}/w.pth", sha256=SHA256)
    next(home.rglob(".w.pth.part")).write_bytes(CONTENT)
    assert fetch(f"{server.url}/w.pth", sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(server: Server, status: int) -> None:
    server.routes["/w.pth"] = Route(CONTENT, statuses=[status, status])
    assert fetch(f"{server.url}/w.pth").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_server_can_say_how_long_to_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.routes["/w.pth"] = Route(CONTENT, statuses=[503], headers={"Retry-After": "7"})
    slept: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", slept.append)
    fetch(f"{server.url}/w.pth")
    assert slept == [7.0]


def test_a_server_that_falls_silent_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    server.routes["/w.pth"] = Route(CONTENT, gate=gate)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    with pytest.raises(DownloadError, match="cannot be fetched: timed out"):
        fetch(f"{server.url}/w.pth")
    gate.set()
    assert len(server.requests) == 2


def test_two_processes_download_once(server: Server, home: Path) -> None:
    gate = threading.Event()
    server.routes["/w.pth"] = Route(CONTENT, gate=gate)
    code = f"from stvid.downloads import fetch; print(fetch({server.url + '/w.pth'!r}, name='net.tag'))"
    command = [sys.executable, "-c", code]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes)
    try:
        while not server.requests:
            time.sleep(0.01)
        second = subprocess.Popen(command, **pipes)
        try:
            time.sleep(2.5)
            gate.set()
            outputs = [process.communicate(timeout=60) for process in (first, second)]
        finally:
            second.kill()
    finally:
        first.kill()
    assert outputs[0][0] == outputs[1][0] and Path(outputs[0][0].strip()).read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert [err for _, err in outputs] == ["", "net.tag: another process is fetching it; waiting\n"]


# --- what is wrong is said --------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[DownloadError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_wrong_hash_leaves_no_file(server: Server, home: Path) -> None:
    server.routes["/w.pth"] = Route(CONTENT)
    for expected in ("0123456789ab", "gitblob-sha1:" + 40 * "0"):
        with pytest.raises(DownloadError) as error:
            fetch(f"{server.url}/w.pth", sha256=expected, name="net.tag")
        text = one_line(error)
        found = SHA256[:12] if ":" not in expected else BLOB
        assert text.startswith("net.tag: ") and f"its hash is {found}, the published one {expected}" in text
        assert "report it, or put the published file at" in text
        assert files_below(home) == set()
    assert isinstance(error.value, CheckpointError)


def test_a_wrong_size_is_found_before_the_download(server: Server, home: Path) -> None:
    server.routes["/w.pth"] = Route(CONTENT)
    with pytest.raises(DownloadError, match="has 307200 bytes, but the published file has 5"):
        fetch(f"{server.url}/w.pth", size=5)
    assert files_below(home) == set()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_a_file(server: Server, home: Path, kind: str) -> None:
    server.routes["/w.pth"] = Route(PAGE, kind=kind)
    with pytest.raises(ManualDownloadError) as error:
        fetch(f"{server.url}/w.pth", name="net.tag", licence="CC-BY-NC-4.0")
    text = one_line(error)
    assert "a web page in place of the file" in text and f"open {server.url}/w.pth in a browser" in text
    assert "(licence: CC-BY-NC-4.0)" in text
    assert not {"w.pth", ".w.pth.part"} & files_below(home)
    target = Path(text.partition("save the file as ")[2].partition(" (licence")[0])
    target.write_bytes(CONTENT)  # the person does what the line says
    assert fetch(f"{server.url}/w.pth", sha256=SHA256) == target


@pytest.mark.parametrize(("status", "words"), [(404, "put it at"), (410, "put it at"), (401, "in a browser")])
def test_a_refusal_is_final(server: Server, status: int, words: str) -> None:
    server.routes["/w.pth"] = Route(statuses=[status] * 9)
    with pytest.raises(DownloadError, match=f"the server answers {status}.*{words}"):
        fetch(f"{server.url}/w.pth")
    assert len(server.requests) == 1


def test_an_empty_file_is_refused(server: Server, home: Path) -> None:
    server.routes["/w.pth"] = Route(b"")
    with pytest.raises(DownloadError, match="is empty"):
        fetch(f"{server.url}/w.pth")
    assert files_below(home) == set()


def test_a_server_that_is_not_there_is_said_soon(server: Server) -> None:
    url = "http://127.0.0.1:9/w.pth"  # discard: nobody listens
    with pytest.raises(DownloadError, match=r"cannot be fetched: no answer .*put the file at"):
        fetch(url)


@pytest.mark.parametrize("url", ["weights.pth", "ftp://a/b.pth", "file:///etc/passwd", "https:///x.pth"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(DownloadError, match="is no address of a published file"):
        fetch(url)


def test_a_hash_must_be_one() -> None:
    with pytest.raises(ValueError, match="hexadecimal digits"):
        fetch("https://a.org/b.pth", sha256="sha1:12")


def test_a_full_disk_names_the_folder(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.routes["/w.pth"] = Route(CONTENT)
    usage = downloads.shutil.disk_usage(home.parent)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"0 MB do not fit into .*STVID_HOME"):
        fetch(f"{server.url}/w.pth")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setenv("STVID_HOME", str(home))
    monkeypatch.setattr(downloads._Transfer, "_append", full)
    with pytest.raises(DownloadError, match=r"cannot be kept in .*the disk is full.*STVID_HOME") as error:
        fetch(f"{server.url}/w.pth")
    one_line(error)


def test_a_folder_that_cannot_be_made_is_named(server: Server, home: Path) -> None:
    home.write_text("a file is in the way")
    with pytest.raises(DownloadError, match=r"cannot be kept in .*STVID_HOME names another folder"):
        fetch(f"{server.url}/w.pth")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(server: Server, home: Path) -> None:
    home.mkdir(mode=0o500)
    with pytest.raises(DownloadError, match=r"cannot be kept in .*Permission denied"):
        fetch(f"{server.url}/w.pth")


# --- without a network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["STVID_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_takes_what_is_here(server: Server, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    server.routes["/w.pth"] = Route(CONTENT)
    url = f"{server.url}/w.pth"
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"is not on this machine, and the network is switched off.*{variable}"):
        fetch(url)
    assert server.requests == []
    path = fetch(url, offline=False)
    assert fetch(url) == path and len(server.requests) == 1
    monkeypatch.setenv(variable, "0")
    path.unlink()
    assert fetch(url) == path


def test_a_kept_file_that_changed_is_found(server: Server) -> None:
    server.routes["/w.pth"] = Route(CONTENT)
    path = fetch(f"{server.url}/w.pth", sha256=SHA256)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=r"is not the published file.*delete it, then start again"):
        fetch(f"{server.url}/w.pth", sha256=SHA256)
    path.unlink()
    assert fetch(f"{server.url}/w.pth", sha256=SHA256) == path


def test_the_hash_of_a_kept_file_is_computed_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.routes["/w.pth"] = Route(CONTENT)
    url = f"{server.url}/w.pth"
    fetch(url, sha256=SHA256)
    computed: list[Path] = []
    monkeypatch.setattr(downloads, "_hash_of", lambda path, expected: computed.append(path) or expected)
    fetch(url, sha256=SHA256)
    assert computed == []
    fetch(url, sha256=SHA256[:10])  # another hash than before
    fetch(url, sha256=SHA256[:10])
    assert len(computed) == 1


# --- Google Drive, Dropbox --------------------------------------------------------------------------------------------


def test_google_drive_sends_what_is_public(server: Server, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(downloads, "GDRIVE_URL", server.url + "/download?id={}&confirm=t")
    server.routes["/download"] = Route(
        CONTENT, headers={"Content-Disposition": 'attachment; filename="uniformer small.pth"'}
    )
    path = fetch("gdrive:1Ab-c_D", name="uniformer_s.k400", sha256=SHA256)
    assert path == home / "weights" / "drive.google.com" / "1Ab-c_D" / "uniformer_small.pth"
    assert fetch("gdrive:1Ab-c_D", name="uniformer_s.k400", sha256=SHA256, offline=True) == path
    assert [request.path for request in server.requests] == ["/download?id=1Ab-c_D&confirm=t"]


@pytest.mark.parametrize("route", [Route(PAGE, kind="text/html"), Route(statuses=[403]), Route(statuses=[404])])
def test_google_drive_may_want_a_person(
    server: Server, monkeypatch: pytest.MonkeyPatch, home: Path, route: Route
) -> None:
    monkeypatch.setattr(downloads, "GDRIVE_URL", server.url + "/download?id={}")
    server.routes["/download"] = route
    with pytest.raises(ManualDownloadError) as error:
        fetch("gdrive:1Ab", name="uniformer_s.k400", sha256=SHA256, licence="Apache-2.0")
    place = home / "weights" / "drive.google.com" / "1Ab"
    assert one_line(error).endswith(
        f"open https://drive.google.com/file/d/1Ab/view in a browser and save the file as {place}/uniformer_s.k400 "
        "(licence: Apache-2.0)"
    )
    (place / "as the browser called it.pth").write_bytes(CONTENT)
    (place / "other.crdownload").write_bytes(b"begun")
    assert fetch("gdrive:1Ab", name="uniformer_s.k400", sha256=SHA256).name == "as the browser called it.pth"
    (place / "second.pth").write_bytes(CONTENT)
    with pytest.raises(DownloadError, match="holds several files"):
        fetch("gdrive:1Ab", name="uniformer_s.k400", sha256=SHA256)


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("gdrive-folder:1F", "https://drive.google.com/drive/folders/1F"),
        ("https://www.dropbox.com/sh/ab/cd?dl=0", "https://www.dropbox.com/sh/ab/cd?dl=0"),
        ("https://www.dropbox.com/scl/fo/ab/cd", "https://www.dropbox.com/scl/fo/ab/cd"),
    ],
)
def test_folders_need_a_person(url: str, link: str) -> None:
    for online in (True, False):  # there is nothing to try
        with pytest.raises(ManualDownloadError) as error:
            fetch(url, name="tdn_r50.k400", sha256=SHA256, offline=not online)
    text = one_line(error)
    assert text.startswith("tdn_r50.k400: only a person can fetch this: open " + link)
    target = Path(text.partition("save the file as ")[2])
    target.parent.mkdir(parents=True)
    target.write_bytes(b"another file")
    with pytest.raises(DownloadError, match=r"is not the published file.*delete it, then open"):
        fetch(url, name="tdn_r50.k400", sha256=SHA256)
    target.write_bytes(CONTENT)
    assert fetch(url, name="tdn_r50.k400", sha256=SHA256) == target


def test_files_of_one_folder_do_not_meet(home: Path) -> None:
    first = downloads._wanted("gdrive-folder:1F", sha256="", size=None, name="tdn_r50.k400", licence="")
    second = downloads._wanted("gdrive-folder:1F", sha256="", size=None, name="tdn_r50.ssv1", licence="")
    assert first.target != second.target


def test_dropbox_is_asked_for_the_file_itself() -> None:
    url = "https://www.dropbox.com/s/z6w/c3d_f12.pkl?dl=0"
    wanted = downloads._wanted(url, sha256="", size=None, name="", licence="")
    assert wanted.address == "https://www.dropbox.com/s/z6w/c3d_f12.pkl?dl=1"
    assert wanted.link == url and wanted.file_name == "c3d_f12.pkl"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STVID_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert downloads.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("STVID_HOME")
    assert downloads.cache_folder() == tmp_path / "b" / "stvid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert downloads.cache_folder() == tmp_path / "c" / ".cache" / "stvid"


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [
        ("CC-BY-NC-4.0", True),
        ("CC-BY-NC-4.0 (repository LICENSE)", True),
        ("cc-by-nc-sa-4.0", True),
        ("Non-Commercial use", True),
        ("for research use only", True),
        ("Apache-2.0 (repository)", False),
        ("MIT", False),
        ("", False),
    ],
)
def test_licences_that_forbid_commercial_use_are_said_once(
    licence: str, forbids: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_said", set())
    for name in ("a.k400", "a.k400", "b.k400"):
        say_licence(name, licence)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (2 if forbids else 0)
    assert not said or said[0] == f"a.k400: the licence of these weights forbids commercial use: {licence}"


def test_torch_is_not_imported() -> None:
    code = "import sys, stvid.downloads; print(sorted({'torch', 'huggingface_hub', 'rich'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield running


CONFIG = as_json({"architecture": "x"})


def test_a_file_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.put("org/name", {"a/w.pth": CONTENT})
    hub.put("org/name", {"a/w.pth": b"older"}, "v1")
    path = fetch("hf:org/name/a/w.pth", sha256=SHA256[:8])
    assert path.read_bytes() == CONTENT and path.is_relative_to(tmp_path / "hf" / "hub")
    assert fetch("hf:org/name/a/w.pth@v1").read_bytes() == b"older"
    assert fetch("https://huggingface.co/org/name/resolve/v1/a/w.pth").read_bytes() == b"older"
    count = len(hub.requests)
    assert fetch("hf:org/name/a/w.pth", offline=True) == path
    assert len(hub.requests) == count
    with pytest.raises(DownloadError, match=r"is not the published file.*removed from the cache"):
        fetch("hf:org/name/a/w.pth", sha256="00000000")
    assert not path.exists()


def test_the_hub_sends_a_file_in_two_parts(hub: Hub) -> None:
    hub.put("org/name", {"w.pth": CONTENT})
    look, cut = hub._find, [100_000]

    def find(request: Any) -> Any:
        route = look(request)
        if route is not None and request.method == "GET":
            route.cuts = [cut.pop()] if cut else []
        return route

    hub._find = find
    assert fetch("hf:org/name/w.pth", sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("preprocessor", ["preprocessor_config.json", "video_preprocessor_config.json", None])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "shards"])
def test_a_folder_of_the_hub(hub: Hub, weights: str, preprocessor: str | None) -> None:
    files = {"config.json": CONFIG, "README.md": b"#", "tf_model.h5": b"h5", "training_args.bin": b"x"}
    wanted = {"config.json"}
    if preprocessor is not None:
        files[preprocessor] = b"{}"
        wanted.add(preprocessor)
    if weights == "shards":
        names = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
        index = {"weight_map": {"a": min(names), "b": max(names)}}
        files |= dict.fromkeys(names, b"shard") | {"model.safetensors.index.json": as_json(index)}
        wanted |= names | {"model.safetensors.index.json"}
    else:
        files |= {"pytorch_model.bin": b"pickle", weights: b"weights"}
        wanted.add(weights)
    hub.put("org/name", files)
    folder = fetch_hub_folder("hf-hub:org/name")
    assert files_below(folder) == wanted
    assert folder == fetch("hf:org/name")
    hub.put("org/name", {"config.json": b"{}"})
    assert fetch_hub_folder("hf-hub:org/name", offline=True) == folder  # all of one commit
    hub.down = True
    assert fetch_hub_folder("hf-hub:org/name") == folder


def test_a_folder_that_another_program_fetched_in_part_is_not_taken_for_whole(hub: Hub) -> None:
    import huggingface_hub

    files = {"config.json": CONFIG, "preprocessor_config.json": b"{}", "model.safetensors": b"w"}
    hub.put("org/name", files)
    for name in ("config.json", "model.safetensors"):
        huggingface_hub.hf_hub_download(
            "org/name", name, endpoint=hub.url, cache_dir=os.path.join(os.environ["HF_HOME"], "hub")
        )
    with pytest.raises(DownloadError, match=r"preprocessor_config.json of org/name is not on this machine"):
        fetch_hub_folder("hf-hub:org/name", offline=True)


def test_what_is_wrong_at_the_hub_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("org/name", {"config.json": CONFIG})
    hub.put("org/raw", {"w.pth": b"w"})
    hub.gated.add("org/gated")
    lines = {
        "hf-hub:org/none": "does not exist, or is private.*HF_TOKEN",
        "hf-hub:org/gated": "asks for consent.*HF_TOKEN",
        "hf-hub:org/name@v9": "has no revision 'v9'",
        "hf-hub:org/name": "has no weights .model.safetensors or pytorch_model.bin.$",
        "hf-hub:org/raw": "has no config.json; name a file of it: hf:org/raw/FILE",
        "hf:org/raw/x.pth": "has no file 'x.pth'",
    }
    for source, words in lines.items():
        with pytest.raises(DownloadError, match=words) as error:
            fetch(source)
        assert one_line(error).startswith(f"{source}: ")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DownloadError, match=r"w.pth of org/raw is not on this machine, and the network is switched"
    ) as error:
        fetch("hf:org/raw/w.pth")
    one_line(error)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    with pytest.raises(DownloadError, match=r"is not on this machine, and http://127.0.0.1:9 cannot be reached"):
        fetch("hf:org/raw/w.pth")
    with pytest.raises(DownloadError, match="is no repository"):
        fetch_hub_folder("hf:org/raw/w.pth")
