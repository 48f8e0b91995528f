"""A local web page on which a video can be dropped or recorded, to see its classes over time by one or two models.

Gradio (the extra ``demo``) serves it. `PageGuard` adds what Gradio leaves open: a page for this computer answers to
names of this computer only, and no page loads anything from elsewhere.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from stvid.errors import ConfigError, StvidError
from stvid.evaluation.evaluate import check_counts
from stvid.evaluation.timeline import check_windows
from stvid.look.demo_models import ModelShelf
from stvid.look.demo_results import ModelRun, compare_runs, results_page
from stvid.look.rendering import render
from stvid.models.base import VideoModel

__all__ = ["Answer", "Classifier", "PageGuard", "build_page", "is_loopback", "launch_page"]

Answer = tuple[str, str, "list[str] | None"]
"""The contents of the page: a message (HTML), the results (HTML), and files."""

_REDRAW_SECONDS = 1.0
MAX_UPLOAD_MB = 1000
LEAST_STRIDE = 0.05
MOST_WINDOW = 600.0
"""Seconds: what a visitor may ask for, so that one request does not keep the machine busy for ever."""
NO_SECOND = ""
"""The value of the second chooser that stands for no second model."""
RECORDING_SECONDS = 60


def _import_gradio() -> ModuleType:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise StvidError(f"{error}; the page needs: pip install 'stvid[demo]'") from error
    return gradio


def build_page(
    models: ModelShelf | VideoModel,
    *,
    window: float = 2.0,
    stride: float = 0.5,
    topk: int = 5,
    title: str = "stvid",
    device: str | None = None,
    precision: str = "32-true",
) -> Any:
    """Returns the page as `gradio.Blocks`.

    Args:
        models: The models that the page offers; a single one is offered under the title of the page.
        window: Length of a window in seconds that the page proposes.
        stride: Seconds from the start of a window to that of the next that the page proposes.
        topk: How many classes of the whole video to show.
        title: Heading of the page.
        device: Where a single model runs; None leaves it where it is. A shelf knows its device.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Raises:
        StvidError: If Gradio is not installed.
        ConfigError: If the window, the stride or topk is not positive, or there is no such device.
    """
    gradio = _import_gradio()
    check_windows(window, stride)
    check_counts(topk=topk, workers=0)
    if isinstance(models, VideoModel):
        single = models
        models = ModelShelf({title: lambda: single}, device=device)
        models.get(title)
    classifier = Classifier(models, topk=topk, precision=precision)
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column(min_width=300):
                video = gradio.Video(label="Video", sources=["upload"], include_audio=True, height=340, elem_id="video")
                gradio.HTML(render("demo_camera.html.j2", seconds=RECORDING_SECONDS))
            with gradio.Column(min_width=300):
                first, second = _choosers(gradio, models.choices())
                with gradio.Row():
                    seconds = gradio.Number(window, label="Window (seconds)", min_width=120, elem_id="window")
                    step = gradio.Number(stride, label="Stride (seconds)", min_width=120, elem_id="stride")
                explained = gradio.Checkbox(True, label="Show the frames that count", elem_id="explained")
                with gradio.Row():
                    button = gradio.Button("Classify", variant="primary", elem_id="classify", min_width=120)
                    stop = gradio.Button("Stop", elem_id="stop", min_width=120)
                message = gradio.HTML(elem_id="message")
        results = gradio.HTML(elem_id="results")
        files = gradio.File(label="Files", file_count="multiple", elem_id="files")
        inputs, outputs = [video, first, second, seconds, step, explained], [message, results, files]
        work: dict[str, Any] = {"concurrency_id": "classify", "concurrency_limit": 1, "show_progress": "hidden"}
        clicked = button.click(classifier.classify, inputs, outputs, api_name="classify", **work)
        dropped = video.upload(classifier.classify, inputs, outputs, api_name=False, **work)
        stop.click(lambda: _message("Stopped."), None, message, api_name=False, queue=False, cancels=[clicked, dropped])
    return page


def _choosers(gradio: ModuleType, choices: list[tuple[str, str]]) -> tuple[Any, Any]:
    """Returns the lists in which the two models are chosen."""
    first = gradio.Dropdown(
        choices, value=choices[0][1], label="Model", info="Type a part of a name to search.", elem_id="first"
    )
    none = ("none", NO_SECOND)
    return first, gradio.Dropdown([none, *choices], value=NO_SECOND, label="Compare with", elem_id="second")


class Classifier:
    """Classifies the videos that are dropped on the page.

    Args:
        models: The models by name.
        topk: How many classes of the whole video to show.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    """

    def __init__(self, models: ModelShelf, *, topk: int = 5, precision: str = "32-true") -> None:
        self.models = models
        self.topk = topk
        self.precision = precision
        self._kept = tempfile.TemporaryDirectory(prefix="stvid_demo_")  # removed with the page; Gradio serves copies

    def classify(
        self,
        video: str | None,
        first: str | None,
        second: str | None,
        window: float | None,
        stride: float | None,
        explained: bool = True,
    ) -> Iterator[Answer]:
        """Classifies the windows of a video by one or two models.

        Args:
            video: The file; None if there is none yet.
            first: Name of the model.
            second: Name of another to compare with; None or nothing for none.
            window: Length of a window in seconds.
            stride: Seconds from the start of a window to that of the next.
            explained: Whether to look for the frames that count.

        Yields:
            From time to time how far the work is; at the end the result, or the reason why there is none.
        """
        runs: list[ModelRun] = []
        try:
            if not video:
                raise ConfigError("there is no video; drop one first, or record one")
            _check_request(window, stride)
            names = self._chosen(first, second)
            folder = Path(tempfile.mkdtemp(dir=self._kept.name))
            for name in names:
                yield _message(f"{name}: the model is loaded ..."), results_page(runs), None
                runs.append(ModelRun(name, self.models.get(name), topk=self.topk))
                yield from self._watch(runs, video, folder / str(len(runs)), window or 0, stride or 0)
            compared = compare_runs(runs[0], runs[1], stride=stride or 0) if len(runs) > 1 else None
            for run in runs if explained else ():
                yield _message(f"{run.name}: looking for the frames that count ..."), results_page(runs, compared), None
                run.explain(video)
        except StvidError as error:
            reason = str(error).replace(video or "\0", Path(video or "").name)
            yield _message(f"Error: {reason}", error=True), results_page(runs), None
            return
        except (OSError, torch.OutOfMemoryError) as error:  # the machine's state, of which a visitor is told in words
            short = error.strerror or "cannot read or write" if isinstance(error, OSError) else "too little memory"
            text = f"Error: the computer of this page cannot do this now: {short}; a smaller model may help"
            yield _message(text, error=True), results_page(runs), None
            return
        text = " and ".join(f"{run.windows} windows by {run.name}" for run in runs)
        yield _message(f"Done: {text}."), results_page(runs, compared), _saved(folder, len(runs))

    def _watch(self, runs: list[ModelRun], video: str, folder: Path, window: float, stride: float) -> Iterator[Answer]:
        """Runs the last of the models over the video, and says from time to time how far it is."""
        drawn = time.monotonic()
        for item in runs[-1].watch(video, folder, window=window, stride=stride, precision=self.precision):
            if time.monotonic() - drawn > _REDRAW_SECONDS:
                yield _message(f"{runs[-1].name}: {item.end:.1f} s ..."), results_page(runs), None
                drawn = time.monotonic()

    def _chosen(self, first: str | None, second: str | None) -> list[str]:
        """Returns the names of the models that are asked for.

        Raises:
            ConfigError: If there is none, or twice the same.
        """
        if not first:
            raise ConfigError("there is no model; choose one")
        if second == first:
            raise ConfigError(f"{first}: is chosen twice; compare it with another model")
        return [first, second] if second else [first]


def _saved(folder: Path, count: int) -> list[str]:
    """Returns the files of all models; those of a second model get names of their own."""
    found = []
    for number in range(1, count + 1):
        for name in ("timeline.csv", "timeline.json", "timeline.svg"):
            path = folder / str(number) / name
            found.append(str(path if number == 1 else path.rename(path.with_name(f"second_{name}"))))
    return found


def _check_request(window: Any, stride: Any) -> None:
    """Raises ConfigError unless a visitor's numbers are within the limits of the page."""
    for name, value, least, most in (
        ("window", window, LEAST_STRIDE, MOST_WINDOW),
        ("stride", stride, LEAST_STRIDE, MOST_WINDOW),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ConfigError(f"{name}: {value!r} is not a number of seconds from {least:g} to {most:g}")


def is_loopback(host: str) -> bool:
    """Returns whether an address is open to this computer only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said_of_access(host: str, max_upload_mb: int) -> str:
    """Says who can use the page, and what they may send."""
    who = "this computer only" if is_loopback(host) else "anyone who reaches this address: there is no login"
    return f"open to {who}; videos up to {max_upload_mb} MB, strides from {LEAST_STRIDE:g} s"


def _message(text: str, *, error: bool = False) -> str:
    return render("demo_message.html.j2", text=text, error=error)


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


class PageGuard:
    """An ASGI middleware that looks at who is asked, and tells browsers to load nothing from elsewhere.

    A page that is open to this computer only could still be reached by a web site whose name is made to lead to
    127.0.0.1 (DNS rebinding). The browser then sends that name as ``Host``, so other names get no answer.

    Args:
        app: The application behind it.
        hosts: The names that requests may ask for; None allows all.
    """

    POLICY = (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self'"
    )

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, hosts: frozenset[str] | None = None
    ) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if self.hosts is not None and self._host(scope) not in self.hosts:
            await self._refuse(scope, send)
            return

        async def guarded(event: Scope) -> None:
            if event["type"] == "http.response.start":
                added = {
                    "content-security-policy": self.POLICY,
                    "x-content-type-options": "nosniff",
                    "referrer-policy": "no-referrer",
                }
                event["headers"] = [
                    *event.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in added.items()),
                ]
            await send(event)

        await self.app(scope, receive, guarded)

    @staticmethod
    def _host(scope: Scope) -> str:
        """Returns the name that a request asks for, without the port and the brackets of IPv6."""
        value = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
        name, colon, port = value.rpartition(":")
        return (name if colon and port.isdigit() else value).strip("[]")

    @staticmethod
    async def _refuse(scope: Scope, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        text = b"This page is for the computer that it runs on. Ask for it as localhost, or start it with --host."
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 421, "headers": headers})
        await send({"type": "http.response.body", "body": text})


def _free_place(host: str, port: int | None) -> str:
    """Returns in words where the page will listen.

    Raises:
        StvidError: If it cannot listen there.
    """
    where = f"{host}, port {port}" if port is not None else host
    try:  # Gradio would try a hundred ports one after the other
        family, kind, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StvidError(f"the page cannot listen on {where} ({error.strerror}); choose another") from error
    return where


def launch_page(
    page: Any,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = True,
    max_upload_mb: int = MAX_UPLOAD_MB,
) -> str:
    """Serves a page of `build_page` and prints its address.

    Args:
        page: The page.
        host: Address to listen on; ``0.0.0.0`` lets other machines in.
        port: None takes the first free one from 7860 on.
        block: Return only when the page is closed (Ctrl-C).
        max_upload_mb: Megabytes of a video that the page takes.

    Returns:
        The address.

    Raises:
        ConfigError: If there is no such port, or the limit is not positive.
        StvidError: If the port is taken, or the address is not one of this machine.
    """
    if port is not None and not 0 < port < 2**16:
        raise ConfigError(f"port: {port!r} is not a whole number from 1 to 65535")
    if isinstance(max_upload_mb, bool) or not isinstance(max_upload_mb, int) or max_upload_mb < 1:
        raise ConfigError(f"max_upload_mb: {max_upload_mb!r} is not a positive whole number")
    where = _free_place(host, port)
    gradio = _import_gradio()
    hosts = frozenset(("localhost", "127.0.0.1", "::1", host.lower())) if is_loopback(host) else None
    theme = gradio.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )  # no fonts from the network
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            max_file_size=f"{max_upload_mb}mb",
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            css=render("demo.css"),
            js=render("demo.js", seconds=RECORDING_SECONDS),
            app_kwargs={"middleware": [(PageGuard, (), {"hosts": hosts})]},  # as starlette's Middleware unpacks
        )
    except OSError as error:
        raise StvidError(f"the page cannot listen on {where}: {error}") from error
    print(f"open {url} (Ctrl-C ends it); {_said_of_access(host, max_upload_mb)}", flush=True)
    if block:
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close()
    return url
