"""A window of a stream is what load_clip reads of that part of the file."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.data.dataset import EvalDataset
from stvid.data.manifest import Manifest, VideoEntry
from stvid.data.transforms import normalize
from stvid.errors import ConfigError, VideoError
from stvid.evaluation import timeline as timeline_module
from stvid.evaluation.timeline import TimelineWindow, parse_seconds, stream_windows, timeline
from stvid.look.timeline_output import ClassTrack, TimelineFiles
from stvid.protocol import Protocol
from stvid.video.reader import VideoReader
from stvid.video.streaming import stream_frames

NAMES = ("ant", "bee", "cat")
DENSE = Protocol(frames=4, stride=3, short_side=24, crop=16, class_names=NAMES)
UNEVEN = [0.0, 0.04, 0.08, 0.1, 0.3, 0.9, 0.95, 1.0, 1.4, 1.41, 2.2, 2.3, 2.35, 2.4, 2.45, 2.5, 2.9]


class Tiny(nn.Module):
    """Looks at the colour of each frame, so that other frames give other logits."""

    def __init__(self, protocol: Protocol = DENSE) -> None:
        super().__init__()
        self.head = nn.Linear(protocol.frames * 3, len(NAMES))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator))
        self.default_protocol = protocol

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(clips.mean((3, 4)).flatten(1))


def windows_of_a_file(path: Path, window: float, stride: float, fps: float | None) -> list[tuple[float, float]]:
    """Start and end of all windows, from the file's length; a single frame is shown for a tick."""
    with VideoReader(path) as reader:
        times = reader.timestamps - reader.timestamps[0]
    step = times[-1] / (len(times) - 1) if len(times) > 1 else 1 / (fps or 1)
    found = []
    while not found or (found[-1][1] < times[-1] + step - 1e-3 and round(len(found) * stride, 6) < times[-1] + step):
        start = round(len(found) * stride, 6)
        found.append((start, start + window))
    return found


VIDEOS = {
    "plain.mp4": {"frames": 60, "fps": 25},
    "ntsc.mp4": {"frames": 50, "fps": Fraction(30000, 1001)},
    "late.ts": {"frames": 40, "start": 1.4},
    "uneven.mkv": {"frames": len(UNEVEN), "times": UNEVEN},
    "short.mp4": {"frames": 3},
    "one.mp4": {"frames": 1},
}
PROTOCOLS = {
    "dense": DENSE,
    "resampled": DENSE.replace(fps=12.5, stride=2),
    "segment": DENSE.replace(sampling="segment"),
}


@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize(("window", "stride"), [(0.8, 0.3), (0.5, 0.5), (0.25, 0.6), (5.0, 1.0)])
def test_windows_are_what_load_clip_reads(
    video: str, kind: str, window: float, stride: float, make_video: Callable[..., Path]
) -> None:
    path, protocol = make_video(video, **VIDEOS[video]), PROTOCOLS[kind]
    found = list(stream_windows(stream_frames(path), protocol, window=window, stride=stride))
    expected = windows_of_a_file(path, window, stride, protocol.fps)
    assert [item.start for item in found] == [start for start, _ in expected]
    for item, (start, end) in zip(found, expected, strict=True):
        assert item.end <= end + 1e-6
        try:
            clip = stvid.load_clip(path, protocol=protocol, start=start, end=end)
        except VideoError as error:
            assert "no frame" in error.reason and item.clips is None and item.error is not None
            continue
        assert item.clips is not None and item.clips.shape == (1, 3, 4, 16, 16)
        np.testing.assert_array_equal(item.indices[0], clip.indices)
        np.testing.assert_array_equal(item.seconds[0], clip.seconds)
        torch.testing.assert_close(normalize(item.clips[0], protocol.mean, protocol.std), clip.tensor, rtol=0, atol=0)


def test_the_last_window_ends_with_the_video(make_video: Callable[..., Path]) -> None:
    path = make_video("plain.mp4", frames=60, fps=25)  # 2.4 s
    found = list(stream_windows(stream_frames(path), DENSE, window=1.0, stride=0.5))
    assert [(item.start, item.end) for item in found] == [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.4)]
    found = list(stream_windows(stream_frames(path), DENSE, window=1.2, stride=0.6))
    assert [(item.start, item.end) for item in found] == [(0, 1.2), (0.6, 1.8), (1.2, 2.4)]


@pytest.mark.parametrize("views", ["1x1", "2x3"])
@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_scores_are_those_of_a_video_cut_out(
    views: str, batch_size: int | None, make_video: Callable[..., Path]
) -> None:
    path, model = make_video("plain.mp4", frames=60, fps=25), Tiny()
    found = list(timeline(model, path, window=0.8, stride=0.4, views=views, topk=2, batch_size=batch_size))
    assert len(found) == 5
    for item in found:
        entry = VideoEntry(str(path), start=item.start, end=item.start + 0.8)
        sample = EvalDataset(Manifest.from_entries([entry]), DENSE, views=views)[0]
        with torch.no_grad():  # the reference: view by view, softmax, mean
            views_of_it = normalize(sample.clips, DENSE.mean, DENSE.std)
            scores = torch.stack([model(view[None])[0].softmax(0) for view in views_of_it]).mean(0)
        np.testing.assert_allclose(item.scores, scores.numpy(), atol=1e-6)
        best = scores.argsort(descending=True)[:2]
        assert item.classes == tuple(NAMES[k] for k in best)
        assert item.probabilities == pytest.approx(scores[best].tolist(), abs=1e-6)
        assert item.frames == (int(sample.indices.min()), int(sample.indices.max()))


def test_the_caller_is_left_alone_between_windows(make_video: Callable[..., Path]) -> None:
    path, model = make_video("plain.mp4", frames=60, fps=25), Tiny().train()
    windows = timeline(model, path, window=0.5, stride=0.5, batch_size=2)
    next(windows)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and model.training
    model(torch.zeros(1, 3, 4, 8, 8)).sum().backward()
    windows.close()


def test_windows_before_a_stream_breaks_off_still_come(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video("plain.mp4", frames=60, fps=25)

    def broken(source, **_):
        for number, frame in enumerate(stream_frames(source)):
            if number == 40:  # 1.6 s
                raise VideoError(str(source), "the stream broke off")
            yield frame

    monkeypatch.setattr(timeline_module, "stream_frames", broken)
    found = []
    with pytest.raises(VideoError, match="broke off"):
        for item in timeline(Tiny(), path, window=0.5, stride=0.5, batch_size=64):
            found.append(item.start)
    assert found == [0, 0.5, 1.0]


def test_multilabel_scores_do_not_add_up(make_video: Callable[..., Path]) -> None:
    path = make_video("plain.mp4", frames=60, fps=25)
    (item, *_) = timeline(Tiny(), path, window=1, stride=1, task="multilabel")
    assert not np.isclose(item.scores.sum(), 1) and ((item.scores > 0) & (item.scores < 1)).all()


def test_bad_calls(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video("plain.mp4", frames=60, fps=25)
    for options in ({"window": 0.0, "stride": 1.0}, {"window": 1.0, "stride": float("nan")}):
        with pytest.raises(ConfigError, match="seconds"):
            timeline(Tiny(), path, **options)
    with pytest.raises(ConfigError, match="topk"):
        timeline(Tiny(), path, window=1.0, stride=1.0, topk=0)
    with pytest.raises(VideoError, match="no such file"):
        list(timeline(Tiny(), tmp_path / "gone.mp4", window=1.0, stride=1.0))
    wrong = Tiny(DENSE.replace(class_names=("one", "two")))
    with pytest.raises(ConfigError, match="names 2 classes"):
        list(timeline(wrong, path, window=1.0, stride=1.0))


def test_a_window_that_needs_too_much_memory_is_refused(
    make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_module, "MAX_WINDOW_BYTES", 10 * 16 * 16 * 3)
    path = make_video("plain.mp4", frames=60, fps=25)
    assert len(list(stream_windows(stream_frames(path), DENSE, window=0.3, stride=0.3))) == 8
    with pytest.raises(ConfigError, match="shorter"):
        list(stream_windows(stream_frames(path), DENSE, window=2.0, stride=0.3))


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2), ("0.5", 0.5), ("500ms", 0.5), ("1.5 min", 90), (".25s", 0.25)]
)
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text, name="--window") == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "0", "2h", "1e3", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match="--window"):
        parse_seconds(text, name="--window")


# --- files ------------------------------------------------------------------------------------------------------------


def made_up(number: int, scores: tuple[float, ...] = (0.2, 0.7, 0.1), error: str | None = None) -> TimelineWindow:
    if error:
        return TimelineWindow(number, number + 2, (), (), np.empty(0), error=error)
    order = np.argsort(scores)[::-1]
    return TimelineWindow(
        number, number + 2, tuple(NAMES[k] for k in order), tuple(scores[k] for k in order), np.array(scores)
    )


def test_files_of_a_timeline(tmp_path: Path) -> None:
    with TimelineFiles(tmp_path / "out", {"source": "a.mp4"}, class_names=NAMES, topk=2) as files:
        files.add(made_up(0))
        assert (tmp_path / "out" / "timeline.csv").read_text().splitlines() == [
            "start,end,class_1,probability_1,class_2,probability_2,error",
            "0,2,bee,0.7,ant,0.2,",
        ]
        files.add(made_up(1, error="there is no frame"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "timeline.csv",
        "timeline.json",
        "timeline.svg",
    ]
    written = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert written["source"] == "a.mp4" and written["stopped"] is None
    assert [item["start"] for item in written["windows"]] == [0, 1]
    assert written["windows"][1]["error"] == "there is no frame"
    xml.etree.ElementTree.parse(tmp_path / "out" / "timeline.svg")


def test_files_of_classes_with_odd_names(tmp_path: Path) -> None:
    names = ("caf\udce9", "a\nb\x1b[1m", "<b>")
    window = TimelineWindow(0, 2, names, (0.7, 0.2, 0.1), np.array([0.7, 0.2, 0.1]))
    with TimelineFiles(tmp_path, {"source": "x\udce9.mp4"}, class_names=names, topk=2) as files:
        files.add(window)
    with open(tmp_path / "timeline.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        row = next(csv.DictReader(file))
    assert (row["class_1"], row["class_2"]) == names[:2]
    written = json.loads((tmp_path / "timeline.json").read_text())
    assert written["source"] == "x\udce9.mp4"
    shown = "".join(xml.etree.ElementTree.parse(tmp_path / "timeline.svg").getroot().itertext())
    assert "a\nb\\x1b[1m" in shown and "<b>" in shown


def test_an_interrupted_timeline_is_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TimelineFiles(tmp_path, {}, class_names=NAMES, topk=1) as files:
        files.add(made_up(0))
        raise KeyboardInterrupt
    written = json.loads((tmp_path / "timeline.json").read_text())
    assert len(written["windows"]) == 1 and written["stopped"] == "KeyboardInterrupt"


def test_the_plot_keeps_few_points_and_names_the_classes() -> None:
    track = ClassTrack(("a & b", "bee", "cat"), limit=64)
    for number in range(1000):
        track.add(made_up(number, (0.9 if number < 500 else 0.05, 0.05, 0.05)))
    assert len(track.times) <= 64
    assert max(abs(score[0] - 0.9) for score in track.scores[: len(track.scores) // 3]) < 1e-9
    root = xml.etree.ElementTree.fromstring(track.svg(classes=2))
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "a & b (at most 0.90)" in words
    assert len([element for element in root.iter() if element.tag.endswith("polyline")]) == 2
    xml.etree.ElementTree.fromstring(ClassTrack(NAMES).svg())  # empty
    single = ClassTrack(NAMES)
    single.add(made_up(3))
    assert "circle" in single.svg()


# --- memory -----------------------------------------------------------------------------------------------------------

_RUN = """
import resource, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_timeline import Tiny
from stvid.evaluation.timeline import timeline
count = sum(1 for _ in timeline(Tiny(), sys.argv[1], window=2.0, stride=0.5))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(make_video: Callable[..., Path]) -> None:
    """Eight times the length, 2,100 more frames of 320 x 240 (480 MB as RGB): no more memory."""
    peaks = []
    for frames in (300, 2400):
        path = make_video("long.mp4", frames=frames, width=320, height=240, fps=30)
        arguments = [sys.executable, "-c", _RUN, str(path), str(Path(__file__).parent)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=140)
        count, peak = map(int, done.stdout.split())
        assert count == round((frames / 30 - 2) / 0.5) + 1
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 20_000  # KiB
