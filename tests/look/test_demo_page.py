"""The page of `stvid demo`: a real upload in headless Chromium, the same call without a browser, and without Gradio."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stvid.errors import ConfigError, StvidError
from stvid.look import demo_page
from stvid.look.demo_page import Classifier, build_page, launch_page
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

# Gradio's server leaves sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, class_names=("walk & run", "jump", "turn"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(tiny_model: Callable[[Protocol], VideoModel]) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = build_page(tiny_model(PROTOCOL), window=0.5, stride=0.25, topk=2, title="a model")
    yield launch_page(page, block=False)
    page.close()


@pytest.fixture(scope="module")
def files(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    bad = tmp_path_factory.mktemp("bad") / "bad.mp4"
    bad.write_text("this is no video" * 50)
    return make_video("page.mp4", frames=50), bad


@pytest.mark.slow
def test_by_its_programming_interface(address: str, files: tuple[Path, Path]) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)

    def call(path: Path | None, window: float = 0.5) -> tuple[Any, ...]:
        video = None if path is None else handle_file(path)
        return client.predict(video, window, 0.25, api_name="/classify")

    message, label, plot, written = call(files[0])
    assert "7 windows" in message and plot.count("<polyline") == 2
    assert {item["label"] for item in label["confidences"]} <= set(PROTOCOL.class_names)
    assert len(label["confidences"]) == 2 and len(written) == 3
    assert "Error: bad.mp4" in call(files[1])[0]
    assert "Drop a video first" in call(None)[0]
    assert "Error: window" in call(files[0], window=0)[0]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(address: str, files: tuple[Path, Path], width: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        elsewhere: list[str] = []
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((address, "data:", "blob:")) else elsewhere.append(request.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("#classify")
        page.set_input_files("#video input[type=file]", files[0])
        page.wait_for_selector("#files a", timeout=60_000)
        assert "7 windows" in page.inner_text("#message")
        assert page.locator("#plot svg polyline").count() == 2
        assert "%" in page.inner_text("#label")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto(address)
        page.wait_for_selector("#classify")
        page.set_input_files("#video input[type=file]", files[1])
        page.wait_for_selector("#message [role=alert]", timeout=60_000)
        assert "bad.mp4: cannot be opened" in page.inner_text("#message")
        assert elsewhere == []
        browser.close()


def test_answers(tiny_model: Callable[[Protocol], VideoModel], files: tuple[Path, Path]) -> None:
    names = ("<b>walk</b>", "jump", "turn")
    classifier = Classifier(tiny_model(PROTOCOL.replace(class_names=names)), topk=2)
    message, label, plot, written = list(classifier.classify(str(files[0]), 0.5, 0.25))[-1]
    assert 'role="status"' in message and "7 windows" in message
    assert label is not None and len(label) == 2 and set(label) <= set(names)
    assert plot.count("<polyline") == 2 and "<b>" not in plot
    assert written is not None and [Path(name).name for name in written] == [
        "timeline.csv",
        "timeline.json",
        "timeline.svg",
    ]
    assert 0 < max(label.values()) <= 1 and all(Path(name).stat().st_size > 0 for name in written)
    for video, window, reason in (
        (None, 0.5, "Drop a video first"),
        (str(files[1]), 0.5, "Error: bad.mp4: cannot be opened"),
        (str(files[0]), 0, "Error: window"),
    ):
        (answer,) = classifier.classify(video, window, 0.25)
        assert reason in answer[0] and 'role="alert"' in answer[0] and answer[1:] == (None, "", None)


def test_bad_calls(tiny_model: Callable[[Protocol], VideoModel]) -> None:
    pytest.importorskip("gradio")
    model = tiny_model(PROTOCOL)
    for option in ("window", "stride", "topk"):
        with pytest.raises(ConfigError, match=option):
            build_page(model, **{option: 0})
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
    assert "open to this computer only; videos up to 1000 MB" in capsys.readouterr().out
    launch_page(page, host="0.0.0.0", block=False, max_upload_mb=5)
    assert page.options["max_file_size"] == "5mb"
    assert "anyone who reaches this address: there is no login; videos up to 5 MB" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="max_upload_mb"):
        launch_page(page, block=False, max_upload_mb=0)


@pytest.mark.parametrize(("window", "stride"), [(2, 1e-6), (1e9, 1), (None, 1), (float("nan"), 1), (2, "1"), (True, 1)])
def test_requests_are_bounded(
    tiny_model: Callable[[Protocol], VideoModel], files: tuple[Path, Path], window: Any, stride: Any
) -> None:
    classifier = Classifier(tiny_model(Protocol(frames=4, stride=2, short_side=32, crop=32, class_names=("a", "b"))))
    ((message, label, plot, saved),) = classifier.classify(str(files[0]), window, stride)
    assert "is not a number of seconds from 0.05 to 600" in message and (label, plot, saved) == (None, "", None)
