"""A stream through a model: the frames of the protocol, one by one, give the logits of one clip of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import stvid
from stvid.data.sampling import frame_grid
from stvid.errors import ConfigError, StvidError, VideoError
from stvid.evaluation.stream import follow_stream, frames_at_ticks
from stvid.models.base import VideoModel
from stvid.protocol import Protocol
from stvid.video.streaming import Frame, stream_frames

NAMES = ("ant", "bee", "cat")
UNEVEN = [0.0, 0.04, 0.08, 0.1, 0.3, 0.9, 0.95, 1.0, 1.4, 1.41, 2.2, 2.3, 2.35, 2.4, 2.45, 2.5, 2.9]
PROTOCOL = Protocol(frames=10, stride=3, short_side=40, crop=32, class_names=NAMES)


@pytest.fixture(scope="module")
def model() -> VideoModel:
    torch.manual_seed(0)
    made = stvid.create_model("movinet_xxs", num_classes=3, num_frames=10, img_size=32, depth=(1, 1, 2, 1, 1)).eval()
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    made.default_protocol = PROTOCOL
    return made


def stream_of(times: list[float]) -> Iterator[Frame]:
    return (Frame(time + 1.4, np.full((1, 1, 3), number, np.uint8)) for number, time in enumerate(times))


TIMES = {
    "25": [number / 25 for number in range(40)],
    "ntsc": [float(Fraction(number * 1001, 30000)) for number in range(40)],
    "milliseconds": [round(number / 30, 3) for number in range(40)],
    "slow": [number / 4 for number in range(9)],
    "uneven": UNEVEN,
    "one": [0.0],
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("fps", "stride"), [(None, 1), (None, 3), (25, 5), (25, 1), (30, 2), (12.5, 1), (10, 3)])
def test_frames_are_those_of_the_protocol_s_timeline(times: str, fps: float | None, stride: int) -> None:
    found = [int(frame.image[0, 0, 0]) for frame in frames_at_ticks(stream_of(TIMES[times]), _rated(fps, stride))]
    assert found == frame_grid(np.array(TIMES[times]), fps=fps)[::stride].tolist()


def _rated(fps: float | None, stride: int) -> Protocol:
    return PROTOCOL.replace(fps=fps, stride=stride)


def test_a_frame_at_its_tick_does_not_wait_for_the_next() -> None:
    given = []

    def source() -> Iterator[Frame]:
        for frame in stream_of(TIMES["25"]):
            given.append(frame)
            yield frame

    taken = [len(given) for _ in frames_at_ticks(source(), _rated(25, 5))]
    assert taken == [1, 6, 11, 16, 21, 26, 31, 36]


def test_segments_have_no_stride() -> None:
    protocol = PROTOCOL.replace(sampling="segment", stride=3, fps=None)
    assert len(list(frames_at_ticks(stream_of(TIMES["25"]), protocol))) == 40


@pytest.mark.parametrize("views", ["1x1", "2x3"])
def test_the_end_is_one_clip_of_all_frames(model: VideoModel, make_video: Callable[..., Path], views: str) -> None:
    path = make_video("stream.mp4", frames=28, fps=25)
    updates = list(follow_stream(model, path, every=0.4, views=views))
    assert [update.last for update in updates] == [False] * (len(updates) - 1) + [True]
    # 10 frames at 0.12 s from each other: the first one at 0.4 s or later has 0.48 s
    assert [update.seconds for update in updates] == [0.0, 0.48, 0.84, 1.08]
    assert [update.frames for update in updates] == [1, 5, 8, 10]
    protocol = PROTOCOL.replace(views="1x1" if views == "1x1" else "1x3")
    expected = stvid.predict(model, [path], protocol=protocol, topk=3)[0]
    assert updates[-1].classes == tuple(expected.classes)
    np.testing.assert_allclose(updates[-1].probabilities, expected.probabilities, atol=1e-5)
    assert updates[-1].scores.sum() == pytest.approx(1)
    assert 0 < updates[-1].latency <= updates[-1].slowest


def test_memory_does_not_grow_and_the_model_is_left_as_it_was(model: VideoModel) -> None:
    alive: list[int] = []

    def endless() -> Iterator[NDArray[np.uint8]]:
        generator = np.random.default_rng(0)
        while True:
            yield generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)

    model.train()
    updates = follow_stream(model, endless(), fps=25, every=0.12)
    for _ in range(12):
        update = next(updates)
        assert not torch.is_inference_mode_enabled() and model.training
        frame = updates.gi_frame  # type: ignore[attr-defined]
        state = frame.f_locals["follower"].state
        alive.append(sum(buffer.untyped_storage().nbytes() for buffer in state.buffers))
    updates.close()  # type: ignore[attr-defined]
    assert update.frames == 12 and len(set(alive)) == 1
    model.eval()


def test_a_broken_stream_tells_what_is_known(model: VideoModel) -> None:
    def breaking() -> Iterator[NDArray[np.uint8]]:
        for number in range(8):
            yield np.full((48, 64, 3), number, np.uint8)
        raise VideoError("camera", "broke off")

    found = []
    with pytest.raises(VideoError, match="broke off"):
        for update in follow_stream(model, breaking(), fps=25):
            found.append(update)
    assert found[-1].last and found[-1].frames == 3


def test_what_cannot_be_followed(model: VideoModel, tiny_model: Any, tmp_path: Path) -> None:
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    with pytest.raises(StvidError, match="UniFormer does not run over a stream"):
        follow_stream(tiny_model(PROTOCOL), frames, fps=25)
    with pytest.raises(ConfigError, match="every: -1"):
        follow_stream(model, frames, fps=25, every=-1)
    with pytest.raises(ConfigError, match="say how many frames a second"):
        list(follow_stream(model, frames))
    with pytest.raises(VideoError, match="no such file"):
        list(follow_stream(model, tmp_path / "gone.mp4"))
    wrong = PROTOCOL.replace(class_names=("ant", "bee"))
    with pytest.raises(ConfigError, match="3 logits, but the protocol names 2"):
        list(follow_stream(model, frames, fps=25, protocol=wrong))


def test_an_optimized_model_streams(model: VideoModel) -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8))
    plain, fast = (
        list(follow_stream(each, frames, fps=25, topk=3))[-1]
        for each in (model, stvid.optimize(model, precision="float32"))
    )
    np.testing.assert_allclose(fast.scores, plain.scores, atol=1e-5)
    assert list(stream_frames(frames, fps=25))[-1].seconds == pytest.approx(11 / 25)
