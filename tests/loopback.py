"""Servers on the loopback for tests: one that sends files as it is told, and one that answers as the hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass
class Route:
    """Answers of the server to one path.

    `statuses` are answered one after the other, with the `refusal`, before the content is sent; `cuts` are the bytes
    after which each answer breaks off, one a request; `gate` holds the body back until it is set.
    """

    content: bytes = b""
    kind: str = "application/octet-stream"
    ranges: bool = True
    etag: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    refusal: bytes = b""
    cuts: list[int] = field(default_factory=list)
    with_length: bool = True
    gate: threading.Event | None = None


@dataclass
class Request:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


Answer = Route | None


class Server:
    """A server on a free port; used as a context.

    Args:
        find: Returns the route of a request; None answers 404. By default the routes by path, without the query.
    """

    def __init__(self, find: Callable[[Request], Answer] | None = None) -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[Request] = []
        self._find = find or (lambda request: self.routes.get(request.path.partition("?")[0]))
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._http.shutdown()
        self._http.server_close()

    def gets(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.method == "GET" and request.path == path]

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def do_POST(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                length = int(self.headers.get("Content-Length", 0))
                request = Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
                server.requests.append(request)
                route = server._find(request)
                if route is None:
                    self.send_error(404)
                elif route.statuses:
                    status = route.statuses.pop(0)
                    self.send_response(status)
                    for name, value in route.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(route.refusal)))
                    self.end_headers()
                    self.wfile.write(route.refusal if body else b"")
                else:
                    self.send(route, body)

            def send(self, route: Route, body: bool) -> None:
                content, start = route.content, 0
                wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                last = len(content) - 1
                same = self.headers.get("If-Range", route.etag) == route.etag
                if wanted and route.ranges and same:
                    start = int(wanted[1])
                    if start >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(content)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    if wanted[2]:
                        last = min(last, int(wanted[2]))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Type", route.kind)
                if route.with_length:
                    self.send_header("Content-Length", str(last + 1 - start))
                if route.etag:
                    self.send_header("ETag", route.etag)
                for name, value in route.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if not body:
                    return
                if route.gate is not None:
                    route.gate.wait(20)
                end = route.cuts.pop(0) if route.cuts else last + 1
                self.wfile.write(content[start:end])

        return Handler


class Hub(Server):
    """Answers as the Hugging Face hub does, as far as files are read and small ones uploaded.

    Attributes:
        repos: Repository -> revision -> file -> content. A branch and its commit are two revisions with the same files;
            the commit is made of the content.
        gated: Repositories that ask for consent.
    """

    def __init__(self) -> None:
        super().__init__(self._look)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.down = False
        self.token = ""  # that uploads must have
        self.private: set[str] = set()

    def put(self, repo: str, files: Mapping[str, bytes], revision: str = "main") -> None:
        self.repos.setdefault(repo, {})[revision] = dict(files)

    @staticmethod
    def commit(files: Mapping[str, bytes]) -> str:
        digest = hashlib.sha1()
        for name in sorted(files):
            digest.update(name.encode() + b"\0" + files[name])
        return digest.hexdigest()

    def _look(self, request: Request) -> Answer:
        def error(status: int, code: str, commit: str = "") -> Answer:
            headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": commit} if commit else {})
            return Route(statuses=[status], headers=headers)

        if self.down:
            return Route(statuses=[500])
        path = urllib.parse.unquote(request.path.partition("?")[0])
        if path.startswith("/api/"):
            return self._api(request, path)
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            return None
        repo, revision, name = match.groups()
        if repo in self.gated:
            return error(403, "GatedRepo")
        if repo not in self.repos:
            return error(401, "RepoNotFound")
        by_commit = {self.commit(files): files for files in self.repos[repo].values()}
        files = self.repos[repo].get(revision, by_commit.get(revision))
        if files is None:
            return error(404, "RevisionNotFound")
        commit = self.commit(files)
        if name not in files:
            return error(404, "EntryNotFound", commit)
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        return Route(files[name], etag=etag, headers={"X-Repo-Commit": commit})

    def _api(self, request: Request, path: str) -> Answer:
        def answer(values: object) -> Answer:
            return Route(as_json(values), kind="application/json")

        if request.method == "POST" and self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return Route(statuses=[401])
        if path == "/api/validate-yaml":
            return answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(request.body)
            repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            if repo in self.repos:
                return Route(statuses=[409], refusal=as_json({"url": f"{self.url}/{repo}"}))
            self.put(repo, {".gitattributes": b""})
            self.private |= {repo} if asked.get("private") or asked.get("visibility") == "private" else set()
            return answer({"url": f"{self.url}/{repo}"})
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(branch|preupload|commit|tree|revision)/([^/]+)", path)
        if match is None or match[1] not in self.repos:
            return Route(statuses=[404])
        repo, what, revision = match.groups()
        if what == "branch" and revision in self.repos[repo]:
            return Route(statuses=[409], refusal=as_json({}))
        if what == "branch":
            self.put(repo, self.repos[repo]["main"], revision)
            return answer({})
        files = self.repos[repo][revision]
        if what == "revision":
            return answer({"id": repo, "sha": self.commit(files), "siblings": [{"rfilename": name} for name in files]})
        if what == "tree":
            rows = [{"type": "file", "path": name, "size": len(text), "oid": "0"} for name, text in files.items()]
            return answer(rows)
        if what == "preupload":
            names = [row["path"] for row in json.loads(request.body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for name in names]
            return answer({"files": modes})
        for row in map(json.loads, request.body.splitlines()):
            if row["key"] == "file":
                files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "deletedFile":
                del files[row["value"]["path"]]
        commit = self.commit(files)
        return answer({"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit})


def as_json(values: object) -> bytes:
    return json.dumps(values).encode()
