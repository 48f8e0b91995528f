"""The page of `stvid demo`: real uploads in headless Chromium, the same calls without a browser, and without Gradio."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stvid.errors import ConfigError, DownloadError, StvidError
from stvid.look import demo_page
from stvid.look.demo_models import ModelShelf
from stvid.look.demo_page import Classifier, PageGuard, build_page, is_loopback, launch_page
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

# Gradio's server leaves sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EVIL = "<img src=x onerror=\"document.title='evil'\">"
PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, class_names=(EVIL, "walk & run", "turn"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def away() -> VideoModel:
    raise DownloadError("away.k400: cannot be fetched: no answer")


@pytest.fixture(scope="module")
def shelf(tiny_model: Callable[[Protocol], VideoModel]) -> ModelShelf:
    """Two models that never agree, and one that cannot be had."""

    def make(factor: float) -> Callable[[], VideoModel]:
        def scale(module: VideoModel, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
            return logits * factor

        def load() -> VideoModel:
            model = tiny_model(PROTOCOL)
            model.register_forward_hook(scale)
            return model

        return load

    return ModelShelf({"first": make(50.0), "second": make(-50.0), "away.k400": away})


@pytest.fixture(scope="module")
def address(shelf: ModelShelf) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = build_page(shelf, window=0.5, stride=0.25, topk=2, title="a page")
    yield launch_page(page, block=False)
    page.close()


@pytest.fixture(scope="module")
def files(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    bad = tmp_path_factory.mktemp("bad") / "bad.mp4"
    bad.write_text("this is no video" * 50)
    return make_video("page.mp4", frames=50), bad


# --- in a browser -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(address: str, *, width: int = 1280, arguments: tuple[str, ...] = (), script: str = "") -> Iterator[Any]:
    """Opens the page in headless Chromium; in the end, nothing must have been asked of elsewhere, or gone wrong."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
        page = browser.new_page(viewport={"width": width, "height": 900})
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((address, "data:", "blob:")) else wrong.append(request.url),
        )
        if script:
            page.add_init_script(script)
        page.goto(address)
        page.wait_for_selector("#classify")
        page.wait_for_selector("#message[aria-live=polite]", state="attached")
        yield page
        assert page.title() == "a page" and wrong == []
        browser.close()


def until_said(page: Any, words: str) -> str:
    """Waits until the message of the page has some words."""
    page.wait_for_function("words => document.querySelector('#message').innerText.includes(words)", arg=words)
    return str(page.inner_text("#message"))


def choose(page: Any, chooser: str, name: str) -> None:
    """Chooses a model by the keyboard: types its name, and takes the one that is left."""
    page.focus(f"{chooser} input")
    page.keyboard.press("Control+A")
    page.keyboard.type(name)
    page.wait_for_function("document.querySelectorAll('[role=option]').length == 1")
    page.locator("[role=option].active").wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "([place, name]) => document.querySelector(place).value == name && !document.querySelector('[role=listbox]')",
        arg=[f"{chooser} input", name],
    )


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(address: str, files: tuple[Path, Path], width: int) -> None:
    with opened(address, width=width) as page:
        page.set_input_files("#video input[type=file]", files[0])
        page.wait_for_selector("#files a", timeout=60_000)
        assert "Done: 7 windows by first" in page.inner_text("#message")
        seen = f"#results .stvid-{'wide' if width > 640 else 'narrow'} svg"
        assert page.locator(seen).count() == 1 and page.locator(f"{seen} polyline").count() >= 2
        assert "Over time, 0 s to 2 s" in page.inner_text("#results")
        assert page.is_visible(seen) and "2 s" in page.locator(seen).text_content()
        assert "%" in page.inner_text("#results table") and EVIL in page.inner_text("#results")

        page.locator("#results .stvid-frame").last.click()  # a frame that counts shows itself in the video
        second = float(page.locator("#results .stvid-frame").last.get_attribute("data-second"))
        page.wait_for_function(
            "s => Math.abs(document.querySelector('#video video').currentTime - s) < 0.02", arg=second
        )
        page.wait_for_selector(f"{seen} .playhead[visibility=visible]", state="attached")

        choose(page, "#second", "second")
        page.focus("#classify")
        page.keyboard.press("Enter")
        until_said(page, "Done: 7 windows by first and 7 windows by second")
        assert "They disagree in 7 of 7 windows" in page.inner_text("#disagreement")
        assert page.locator(seen).count() == 2 and page.locator("#results section").count() == 2
        ends = {page.locator(seen).nth(k).get_attribute("data-end") for k in (0, 1)}
        assert len(ends) == 1
        tops = [page.locator("#results section").nth(k).bounding_box()["y"] for k in (0, 1)]
        assert (abs(tops[0] - tops[1]) < 1) == (width > 640)  # side by side, or one below the other
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@needs_chromium
def test_errors_in_a_browser(address: str, files: tuple[Path, Path]) -> None:
    with opened(address) as page:
        page.set_input_files("#video input[type=file]", files[1])
        page.wait_for_selector("#message [role=alert]", timeout=60_000)
        assert "bad.mp4: cannot be opened" in page.inner_text("#message")
        choose(page, "#first", "away.k400")
        page.focus("#classify")
        page.keyboard.press("Enter")
        until_said(page, "Error: away.k400: cannot be fetched: no answer")


@pytest.mark.slow
@needs_chromium
def test_every_control_is_reached_by_the_tab_key(address: str) -> None:
    look = """() => {
        const element = document.activeElement;
        const label = element.labels?.[0]?.innerText || element.getAttribute("aria-label") || element.innerText;
        return [label, getComputedStyle(element).outlineStyle];
    }"""
    with opened(address) as page:
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(look))
        wanted = [
            *("Drop a video file here to upload", "Record from the camera", "Model", "Compare with"),
            *("Window (seconds)", "Stride (seconds)", "Show the frames that count", "Classify", "Stop"),
        ]
        assert [label for label, _ in reached][: len(wanted)] == wanted
        assert all(outline == "solid" for _, outline in reached[: len(wanted)])
        page.wait_for_function("!document.querySelector('[role=listbox]')")  # no list stays open over the page


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_the_camera(address: str, kind: str) -> None:
    only_webm = (
        "const known = MediaRecorder.isTypeSupported; "
        "MediaRecorder.isTypeSupported = type => !type.includes('mp4') && known.call(MediaRecorder, type);"
    )
    with opened(address, width=400, arguments=CAMERA, script=only_webm if kind == "webm" else "") as page:
        page.focus("#camera-start")
        page.keyboard.press("Enter")
        page.wait_for_function("document.activeElement.id == 'camera-stop'")
        assert "Recording" in page.inner_text("#camera-said") and page.is_visible("#camera-view")
        page.wait_for_timeout(1500)
        page.keyboard.press("Enter")
        assert "windows by first" in until_said(page, "Done: ")
        assert "Recorded" in page.inner_text("#camera-said") and not page.is_visible("#camera-view")
        assert page.is_enabled("#camera-start") and page.is_disabled("#camera-stop")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("", "finds no camera"),
        (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); };",
            "was not allowed to use the camera",
        ),
        ("delete window.MediaRecorder;", "cannot record videos"),
    ],
)
def test_a_refused_camera_is_said(address: str, script: str, words: str) -> None:
    with opened(address, script=script) as page:
        page.click("#camera-start")
        page.wait_for_selector("#camera-said[role=alert]")
        assert words in page.inner_text("#camera-said")
        assert page.is_enabled("#camera-start") and not page.is_visible("#camera-view")


# --- over HTTP, without a browser -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_by_its_programming_interface(address: str, files: tuple[Path, Path]) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)

    def call(path: Path | None, first: str = "first", second: str = "", window: float = 0.5) -> tuple[Any, ...]:
        video = None if path is None else handle_file(path)
        return client.predict(video, first, second, window, 0.25, True, api_name="/classify")

    message, results, written = call(files[0])
    assert "7 windows by first" in message and results.count("<section") == 1 and len(written) == 3
    message, results, written = call(files[0], second="second")
    assert "disagree in 7 of 7 windows" in results and results.count("<section") == 2 and len(written) == 6
    assert "Error: bad.mp4" in call(files[1])[0]
    assert "there is no video" in call(None)[0]
    assert "Error: window" in call(files[0], window=0)[0]
    with pytest.raises(Exception, match="not in the list of choices"):
        call(files[0], first="/etc/passwd")


@pytest.mark.slow
@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("127.0.0.1:80", 200), ("evil.example", 421)])
def test_names_of_other_computers_get_no_answer(address: str, host: str, status: int) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://").strip("/"), timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/config", headers={"Host": host})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == status
        if status == 200:
            assert json.loads(text)["title"] == "a page"
            assert "default-src 'self'" in str(answer.getheader("Content-Security-Policy"))
        else:
            assert b"This page is for the computer that it runs on" in text


# --- without Gradio ---------------------------------------------------------------------------------------------------


def test_answers(shelf: ModelShelf, files: tuple[Path, Path]) -> None:
    classifier = Classifier(shelf, topk=2)
    message, results, written = list(classifier.classify(str(files[0]), "first", None, 0.5, 0.25))[-1]
    assert 'role="status"' in message and "7 windows by first" in message
    assert "stvid-frame" in results and EVIL not in results and "disagreement" not in results
    assert written is not None and all(Path(name).stat().st_size > 0 for name in written)
    assert [Path(name).name for name in written] == ["timeline.csv", "timeline.json", "timeline.svg"]
    answers = list(classifier.classify(str(files[0]), "first", "second", 0.5, 0.25, False))
    assert any("second: the model is loaded" in message for message, _, _ in answers)
    _, results, written = answers[-1]
    assert "They disagree in 7 of 7 windows" in results and "stvid-frame" not in results
    assert written is not None and len({Path(name).name for name in written}) == 6


def test_reasons(shelf: ModelShelf, files: tuple[Path, Path]) -> None:
    classifier = Classifier(shelf, topk=2)
    good, bad = map(str, files)
    for video, first, second, window, reason in (
        (None, "first", "", 0.5, "Error: there is no video"),
        (bad, "first", "", 0.5, "Error: bad.mp4: cannot be opened"),
        (good, "first", "", 0, "Error: window: 0 is not"),
        (good, None, "", 0.5, "Error: there is no model"),
        (good, "first", "first", 0.5, "Error: first: is chosen twice"),
        (good, "../first", "", 0.5, "Error: model &#39;../first&#39;: the page does not offer it"),
        (good, "away.k400", "", 0.5, "Error: away.k400: cannot be fetched: no answer"),
    ):
        message, results, written = list(classifier.classify(video, first, second, window, 0.25))[-1]
        assert reason in message and 'role="alert"' in message
        assert "<section" not in results and written is None
    message, results, written = list(classifier.classify(good, "first", "away.k400", 0.5, 0.25))[-1]
    assert "Error: away.k400" in message and results.count("<section") == 1 and written is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory: GPU 0 at /secret"), "too little memory"),
        (OSError(28, "No space left on device", "/secret"), "No space left on device"),
    ],
)
def test_what_the_machine_cannot_do_is_said(files: tuple[Path, Path], error: Exception, words: str) -> None:
    def fail() -> VideoModel:
        raise error

    classifier = Classifier(ModelShelf({"large": fail}))
    message, _, written = list(classifier.classify(str(files[0]), "large", None, 0.5, 0.25))[-1]
    assert f"cannot do this now: {words}" in message and "/secret" not in message and 'role="alert"' in message
    assert written is None


def guarded(hosts: frozenset[str] | None, host: str | None, kind: str = "http") -> list[dict[str, Any]]:
    """Returns what a guarded application sends to a request for a host."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"page"})

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [] if host is None else [(b"host", host.encode())]
    asyncio.run(PageGuard(app, hosts=hosts)({"type": kind, "headers": headers}, receive, send))
    return sent


def test_the_guard() -> None:
    local = frozenset(("localhost", "127.0.0.1", "::1"))
    for host in ("localhost", "LOCALHOST:7860", "127.0.0.1:7860", "[::1]:7860", "[::1]"):
        start, body = guarded(local, host)
        assert start["status"] == 200 and body["body"] == b"page"
    for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "", None):
        assert guarded(local, host)[0]["status"] == 421
    assert guarded(local, "evil.example", "websocket") == [{"type": "websocket.close", "code": 1008}]
    start, _ = guarded(None, "my-server.example")
    headers = dict(start["headers"])
    assert start["status"] == 200 and headers[b"a"] == b"b" and headers[b"x-content-type-options"] == b"nosniff"
    sources = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in sources and "http" not in sources and "*" not in sources


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
)
def test_addresses_of_this_computer(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_bad_calls(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    pytest.importorskip("gradio")
    model = tiny_model(PROTOCOL)
    for option in ("window", "stride", "topk"):
        with pytest.raises(ConfigError, match=option):
            build_page(model, **{option: 0})
    with pytest.raises(ConfigError, match="device 'cuda:99'"):
        build_page(model, device="cuda:99")
    page = build_page(model)
    for port in (0, 2**16):
        with pytest.raises(ConfigError, match="port"):
            launch_page(page, port=port, block=False)
    with pytest.raises(StvidError, match=r"cannot listen on no-such-host\.invalid"):
        launch_page(page, host="no-such-host.invalid", block=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StvidError, match=f"cannot listen on 127.0.0.1, port {port}"):
            launch_page(page, port=port, block=False)


class FakePage:
    """Notes how it is served."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def launch(self, **options: Any) -> tuple[None, str, None]:
        self.options = options
        return None, f"http://{options['server_name']}:1/", None


class FakeGradio:
    """As much of Gradio as serving takes."""

    class themes:
        @staticmethod
        def Default(**options: Any) -> None:
            return None


def test_the_page_is_for_this_computer_and_bounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_page, "_import_gradio", lambda: FakeGradio)
    page = FakePage()
    launch_page(page, block=False)
    assert page.options["server_name"] == "127.0.0.1" and page.options["share"] is False
    assert page.options["max_file_size"] == "1000mb"
    ((guard, _, options),) = page.options["app_kwargs"]["middleware"]
    assert guard is PageGuard and options["hosts"] == {"localhost", "127.0.0.1", "::1"}
    assert "open to this computer only; videos up to 1000 MB" in capsys.readouterr().out
    launch_page(page, host="0.0.0.0", block=False, max_upload_mb=5)
    assert page.options["max_file_size"] == "5mb"
    ((_, _, options),) = page.options["app_kwargs"]["middleware"]
    assert options["hosts"] is None
    assert "anyone who reaches this address: there is no login; videos up to 5 MB" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="max_upload_mb"):
        launch_page(page, block=False, max_upload_mb=0)


@pytest.mark.parametrize(("window", "stride"), [(2, 1e-6), (1e9, 1), (None, 1), (float("nan"), 1), (2, "1"), (True, 1)])
def test_requests_are_bounded(shelf: ModelShelf, files: tuple[Path, Path], window: Any, stride: Any) -> None:
    ((message, results, saved),) = Classifier(shelf).classify(str(files[0]), "first", "", window, stride)
    assert "is not a number of seconds from 0.05 to 600" in message and saved is None and "<section" not in results
