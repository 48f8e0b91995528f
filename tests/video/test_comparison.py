from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stvid.cli import main
from stvid.errors import VideoError
from stvid.video import comparison
from stvid.video.comparison import compare_backends

MakeVideo = Callable[..., Path]


def test_every_backend_is_compared_with_av(make_video: MakeVideo) -> None:
    found = compare_backends(make_video(frames=30))
    assert found["frames"] == 30
    assert set(found["backends"]) == {"av", "decord", "torchcodec"}
    reference = found["backends"]["av"]
    assert reference["problem"] == "" and reference["differing"] == [] and reference["milliseconds"] > 0
    assert found["recommended"] in found["backends"]
    for entry in found["backends"].values():
        assert entry["problem"] or entry["largest"] is not None


def test_a_backend_that_dies_or_is_absent_is_reported(make_video: MakeVideo, monkeypatch) -> None:
    usable = {"av": "", "decord": "not here", "torchcodec": "not here", "frames": ""}
    monkeypatch.setattr(comparison, "available_backends", lambda: usable)
    found = compare_backends(make_video(frames=30))
    assert found["backends"]["decord"]["problem"] == "not here"
    assert found["recommended"] == "av"


def test_the_command(
    make_video: MakeVideo, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = {"av": "", "decord": "not here", "torchcodec": "not here", "frames": ""}
    monkeypatch.setattr(comparison, "available_backends", lambda: usable)  # each of the others takes a process
    assert main(["doctor", "--video", str(make_video(frames=12))]) == 0
    assert "12 frames" in capsys.readouterr().out
    with pytest.raises(VideoError):
        (tmp_path / "bad.mp4").write_bytes(b"nothing")
        compare_backends(tmp_path / "bad.mp4")
    assert main(["doctor", "--video", str(tmp_path / "bad.mp4")]) == 1
    assert "bad.mp4" in capsys.readouterr().err
