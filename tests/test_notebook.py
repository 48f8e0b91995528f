from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stvid
from stvid.evaluation.result import ViewAccumulator
from stvid.notebook import picture_address, render_html
from stvid.protocol import Protocol

EVIL = "<script>alert('&')</script>"


def pictures(page: str) -> list[Image.Image]:
    parts = page.split("data:image/jpeg;base64,")[1:]
    return [Image.open(io.BytesIO(base64.b64decode(part.split('"')[0]))) for part in parts]


def test_pictures_are_small_and_whole() -> None:
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[:, 200:] = (255, 0, 0)
    (picture,) = pictures(f'"{picture_address(pixels, short_side=50)}"')
    assert picture.size == (100, 50)
    left, right = picture.getpixel((10, 25)), picture.getpixel((90, 25))
    assert max(left) < 30 and right[0] > 225 and max(right[1:]) < 30  # type: ignore[arg-type,index]


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_a_clip_shows_the_colours_of_its_video(channels: str) -> None:
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    frames[..., 0] = 200
    protocol = Protocol(frames=16, stride=1, short_side=64, crop=64, channels=channels)  # type: ignore[arg-type]
    clip = stvid.load_clip(frames, protocol=protocol)
    (pixels,) = clip.pictures([3])
    assert np.abs(pixels.astype(int) - (200, 0, 0)).max() <= 1
    clip.labels = (EVIL,)
    page = clip._repr_html_()
    assert len(pictures(page)) == 8 and EVIL not in page and "&lt;script&gt;" in page
    assert "16 frames of 64 x 64" in page and "stretched" not in page
    clip.protocol = None
    assert "its colours are stretched" in clip._repr_html_()


def test_the_times_of_a_clip_stand_below_its_frames(make_video: Callable[..., Path]) -> None:
    video = make_video("a.mp4", frames=50, fps=25)
    page = stvid.load_clip(video, frames=2, stride=25, crop=32, short_side=32)._repr_html_()
    assert page.count("<figure") == 2 and page.count(" s</figcaption>") == 2 and str(video.name) in page


def test_a_result_is_a_table() -> None:
    accumulator = ViewAccumulator(Protocol(views="1x1").replace(class_names=(EVIL, "run")))
    for index, label in enumerate((0, 1, 1)):
        accumulator.add(index, torch.tensor([[0.0, 1.0]]), torch.tensor(label), path=f"{index}.mp4")
    page = accumulator.result()._repr_html_()
    assert "<td>top1, 1x1 views</td><td>66.67%</td>" in page and "3 videos, 2 classes" in page
    assert "unreadable" not in page
    accumulator.add_failure(3, "3.mp4", "broken", labels=1)
    page = accumulator.result()._repr_html_()
    assert "1 unreadable" in page and "<td>50.00 to 75.00%</td>" in page


def test_the_table_has_intervals_and_other_orders_of_frames() -> None:
    accumulator = ViewAccumulator(Protocol(views="1x1").replace(class_names=("jump", "run")))
    for index in range(4):
        accumulator.add(index, torch.tensor([[0.0, 1.0]]), torch.tensor(1), path=f"{index}.mp4")
    result = accumulator.result()
    page = result._repr_html_()
    assert "<td>top1, 1x1 views</td><td>100.00%</td><td>100.00 to 100.00%</td>" in page
    assert "frames" not in page.split("tbody")[1]
    result.probe_logits["reversed"] = -result.logits
    page = result._repr_html_()
    assert "<td>top1, 1x1 views, frames reversed</td><td>0.00%</td><td></td>" in page


def test_values_are_escaped() -> None:
    empty = {"frames": [], "flipped": True, "stretched": False, "shape": "x"}
    page = render_html("clip.html.j2", labels="", path=EVIL, **empty)
    assert "<script>" not in page and ", mirrored" in page
