"""A local web page on which a video can be dropped, to see its classes over time (Gradio, the extra ``demo``)."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvid.errors import ConfigError, StvidError
from stvid.evaluation.classes import name_classes
from stvid.evaluation.evaluate import check_counts
from stvid.evaluation.timeline import check_windows, timeline
from stvid.look.rendering import render
from stvid.look.timeline_output import TimelineFiles
from stvid.models.base import VideoModel

__all__ = ["Answer", "Classifier", "build_page", "launch_page"]

Answer = tuple[str, "dict[str, float] | None", str, "list[str] | None"]
"""The contents of the page: a message (HTML), the scores of the whole video, a plot (HTML), and files."""

_REDRAW_SECONDS = 1.0
MAX_UPLOAD_MB = 1000
LEAST_STRIDE = 0.05
MOST_WINDOW = 600.0
"""Seconds: what a visitor may ask for, so that one request does not keep the machine busy for ever."""


def _import_gradio() -> ModuleType:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise StvidError(f"{error}; the page needs: pip install 'stvid[demo]'") from error
    return gradio


def build_page(
    model: VideoModel,
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
        model: A model with its protocol and class names.
        window: Length of a window in seconds that the page proposes.
        stride: Seconds from the start of a window to that of the next that the page proposes.
        topk: How many classes to show.
        title: Heading of the page.
        device: None leaves the model where it is.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Raises:
        StvidError: If Gradio is not installed.
        ConfigError: If the window, the stride or topk is not positive.
    """
    gradio = _import_gradio()
    check_windows(window, stride)
    check_counts(topk=topk, workers=0)
    classifier = Classifier(model, topk=topk, device=device, precision=precision)
    about = model.default_protocol.replace(views="1x1").describe()
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# {title}\nEach window: {about}")
        with gradio.Row():
            with gradio.Column():
                video = gradio.Video(label="Video", sources=["upload"], elem_id="video")
                with gradio.Row():
                    seconds = gradio.Number(window, label="Window (seconds)")
                    step = gradio.Number(stride, label="Stride (seconds)")
                button = gradio.Button("Classify", variant="primary", elem_id="classify")
            with gradio.Column():
                message = gradio.HTML(elem_id="message")
                label = gradio.Label(label="Whole video", num_top_classes=classifier.topk, elem_id="label")
        plot = gradio.HTML(label="Over time", elem_id="plot")
        files = gradio.File(label="Files", file_count="multiple", elem_id="files")
        outputs = [message, label, plot, files]
        button.click(classifier.classify, [video, seconds, step], outputs, api_name="classify")
        video.upload(classifier.classify, [video, seconds, step], outputs, api_name=False)
    return page


class Classifier:
    """Classifies the videos that are dropped on the page.

    Args:
        model: A model with its protocol and class names.
        topk: How many classes to show.
        device: Where the model runs; None leaves it where it is.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    """

    def __init__(
        self, model: VideoModel, *, topk: int = 5, device: str | None = None, precision: str = "32-true"
    ) -> None:
        self.model = model
        self.protocol = model.default_protocol
        self.topk = min(topk, model.num_classes)
        self.device = device
        self.precision = precision
        self._kept = tempfile.TemporaryDirectory(prefix="stvid_demo_")  # removed with the page; Gradio serves copies

    def classify(self, video: str | None, window: float | None, stride: float | None) -> Iterator[Answer]:
        """Classifies the windows of a video.

        Args:
            video: The file; None if there is none yet.
            window: Length of a window in seconds.
            stride: Seconds from the start of a window to that of the next.

        Yields:
            From time to time how far the work is; at the end the result, or the reason why there is none.
        """
        if not video:
            yield _message("Drop a video first.", error=True), None, "", None
            return
        try:
            _check_request(window, stride)
        except StvidError as error:
            yield _message(f"Error: {error}", error=True), None, "", None
            return
        header = {"source": Path(video).name, "window": window, "stride": stride, "protocol": self.protocol.to_dict()}
        folder = tempfile.mkdtemp(dir=self._kept.name)
        total, count, plot, drawn = np.zeros(self.model.num_classes), 0, "", time.monotonic()
        try:
            windows = timeline(
                self.model,
                video,
                window=window or 0,
                stride=stride or 0,
                topk=self.topk,
                device=self.device,
                precision=self.precision,
            )
            with TimelineFiles(folder, header, class_names=self.protocol.class_names, topk=self.topk) as files:
                for item in windows:
                    files.add(item)
                    if item.error is None:
                        total, count = total + item.scores, count + 1
                    if time.monotonic() - drawn > _REDRAW_SECONDS:
                        plot, drawn = self._plot(files), time.monotonic()
                        yield _message(f"{item.end:.1f} s ..."), None, plot, None
        except StvidError as error:
            reason = str(error).replace(video, Path(video).name)
            yield _message(f"Error: {reason}", error=True), None, plot, None
            return
        saved = [str(Path(folder) / name) for name in ("timeline.csv", "timeline.json", "timeline.svg")]
        label = self._label(total / count) if count else None
        yield _message(f"{count} windows. The bars are their mean."), label, self._plot(files), saved

    def _label(self, scores: NDArray[np.float64]) -> dict[str, float]:
        names = name_classes(self.protocol.class_names, len(scores))
        return {names[k]: float(scores[k]) for k in np.argsort(-scores, kind="stable")[: self.topk]}

    def _plot(self, files: TimelineFiles) -> str:
        return render("demo_plot.html.j2", svg=files.track.svg(classes=self.topk))


def _check_request(window: Any, stride: Any) -> None:
    """Raises ConfigError unless a visitor's numbers are within the limits of the page."""
    for name, value, least, most in (
        ("window", window, LEAST_STRIDE, MOST_WINDOW),
        ("stride", stride, LEAST_STRIDE, MOST_WINDOW),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ConfigError(f"{name}: {value!r} is not a number of seconds from {least:g} to {most:g}")


def _said_of_access(host: str, max_upload_mb: int) -> str:
    """Says who can use the page, and what they may send."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    who = "this computer only" if local else "anyone who reaches this address: there is no login"
    return f"open to {who}; videos up to {max_upload_mb} MB, strides from {LEAST_STRIDE:g} s"


def _message(text: str, *, error: bool = False) -> str:
    return render("demo_message.html.j2", text=text, error=error)


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
    where = f"{host}, port {port}" if port is not None else host
    try:  # Gradio would try a hundred ports one after the other
        family, kind, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StvidError(f"the page cannot listen on {where} ({error.strerror}); choose another") from error
    gradio = _import_gradio()
    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["monospace"]
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
