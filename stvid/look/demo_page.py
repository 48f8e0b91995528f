"""A local web page on which a video can be dropped, to see its classes over time (Gradio, the extra ``demo``)."""

from __future__ import annotations

import html
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from stvid.errors import ConfigError, StvidError
from stvid.evaluation.evaluate import check_counts
from stvid.evaluation.timeline import check_windows, timeline
from stvid.look.timeline_output import TimelineFiles
from stvid.models.base import VideoModel

__all__ = ["build_page", "launch_page"]

_REDRAW_SECONDS = 1.0


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
        model: With its protocol and class names.
        window: First value of the page's field: seconds of a window.
        stride: Likewise: seconds from one window to the next.
        topk: Classes that are shown.
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
    protocol = model.default_protocol
    shown = min(topk, model.num_classes)
    kept = tempfile.TemporaryDirectory(prefix="stvid_demo_")  # removed with the page; Gradio serves copies

    def picture(svg: str) -> str:
        return f'<div style="overflow-x:auto"><div style="min-width:640px">{svg}</div></div>'  # readable on a phone

    def classify(video: str | None, seconds: float | None, step: float | None) -> Iterator[tuple[Any, ...]]:
        def status(text: str, *, error: bool = False) -> str:
            colour = "#b00020" if error else "inherit"
            role = "alert" if error else "status"
            return f'<p role="{role}" style="color:{colour}">{html.escape(text)}</p>'

        if not video:
            yield status("Drop a video first.", error=True), None, "", None
            return
        label: dict[str, float] | None = None
        plot = ""
        header = {"source": Path(video).name, "window": seconds, "stride": step, "protocol": protocol.to_dict()}
        folder = tempfile.mkdtemp(dir=kept.name)
        try:
            windows = timeline(
                model, video, window=seconds or 0, stride=step or 0, topk=shown, device=device, precision=precision
            )
            with TimelineFiles(folder, header, class_names=protocol.class_names, topk=shown) as files:
                total = np.zeros(model.num_classes)
                count, drawn = 0, time.monotonic()
                for item in windows:
                    files.add(item)
                    if item.error is None:
                        total, count = total + item.scores, count + 1
                    if time.monotonic() - drawn > _REDRAW_SECONDS:
                        drawn = time.monotonic()
                        yield status(f"{item.end:.1f} s ..."), label, picture(files.track.svg(classes=shown)), None
                if count:
                    names = protocol.class_names or tuple(f"class {k}" for k in range(model.num_classes))
                    best = np.argsort(-total, kind="stable")[:shown]
                    label = {names[k]: float(total[k] / count) for k in best}
                plot = picture(files.track.svg(classes=shown))
        except StvidError as error:
            reason = str(error).replace(video, Path(video).name)
            yield status(f"Error: {reason}", error=True), label, plot, None
            return
        saved = [str(Path(folder) / name) for name in ("timeline.csv", "timeline.json", "timeline.svg")]
        yield status(f"{count} windows. The bars are their mean."), label, plot, saved

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# {title}\nEach window: {protocol.replace(views='1x1').describe()}")
        with gradio.Row():
            with gradio.Column():
                video = gradio.Video(label="Video", sources=["upload"], elem_id="video")
                with gradio.Row():
                    seconds = gradio.Number(window, label="Window (seconds)")
                    step = gradio.Number(stride, label="Stride (seconds)")
                button = gradio.Button("Classify", variant="primary", elem_id="classify")
            with gradio.Column():
                message = gradio.HTML(elem_id="message")
                label = gradio.Label(label="Whole video", num_top_classes=shown, elem_id="label")
        plot = gradio.HTML(label="Over time", elem_id="plot")
        files = gradio.File(label="Files", file_count="multiple", elem_id="files")
        outputs = [message, label, plot, files]
        button.click(classify, [video, seconds, step], outputs, api_name="classify")
        video.upload(classify, [video, seconds, step], outputs, api_name=False)
    return page


def launch_page(page: Any, *, host: str = "127.0.0.1", port: int | None = None, block: bool = True) -> str:
    """Serves a page of `build_page` and prints its address.

    Args:
        page: The page.
        host: Address to listen on; ``0.0.0.0`` lets other machines in.
        port: None takes the first free one from 7860 on.
        block: Return only when the page is closed (Ctrl-C).

    Returns:
        The address.

    Raises:
        ConfigError: If there is no such port.
        StvidError: If the port is taken, or the address is not one of this machine.
    """
    if port is not None and not 0 < port < 2**16:
        raise ConfigError(f"port: {port!r} is not a whole number from 1 to 65535")
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
            ssr_mode=False,
            footer_links=[],
            theme=theme,
        )
    except OSError as error:
        raise StvidError(f"the page cannot listen on {where}: {error}") from error
    print(f"open {url} (Ctrl-C ends it)", flush=True)
    if block:
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close()
    return url
