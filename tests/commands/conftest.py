"""A checkpoint and a video for the tests of the commands, and a way to call them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import stvid
from stvid.cli import main
from stvid.models.base import VideoModel
from stvid.protocol import Protocol

PROTOCOL = Protocol(frames=4, stride=2, short_side=40, crop=32, views="2x3", class_names=("left", "right", "turn"))


@pytest.fixture(scope="session")
def checkpoint(tiny_model: Callable[[Protocol], VideoModel], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    stvid.save_model(tiny_model(PROTOCOL), path)
    return str(path)


@pytest.fixture(scope="session")
def video(make_video: Callable[..., Path]) -> str:
    return str(make_video("tool.mp4", frames=50, fps=25))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``call(*arguments)`` runs ``stvid`` in this process -> its exit code, output and messages."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run
