"""The script of Jester, on its official layout with a few videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import stvid
from data_prep.steps import StepError

Counts = dict[tuple[str, str], tuple[str, int, str]]


def test_lists_and_counts(
    tmp_path: Path,
    make_video: Callable[..., Path],
    run_prepare: Callable[..., None],
    read_counts: Callable[[Path], Counts],
    write_files: Callable[..., Path],
    make_images: Callable[[Path], None],
) -> None:
    out, videos = tmp_path / "out", tmp_path / "videos"
    official = write_files(
        {
            "jester-v1-labels.csv": "Swiping Left\nNo gesture\n",
            "jester-v1-train.csv": "34870;No gesture\n56557;Swiping Left\n",
            "jester-v1-validation.csv": "9223;No gesture\n",
        }
    )
    make_images(videos / "34870")
    make_images(videos / "9223")
    arguments = ("--annotations", official, "--videos", videos, "--out", out)
    with pytest.raises(StepError, match="--transcode: the videos come as folders of images"):
        run_prepare("jester", *arguments)
    run_prepare("jester", *arguments, "--transcode", tmp_path / "small")
    ready = stvid.read_manifest(tmp_path / "small" / "train" / "videos_readable.csv")
    assert ready[0].labels == ("No gesture",)
    with stvid.VideoReader(ready[0].path) as reader:
        assert len(reader) == 24 and reader.fps == 12
    counts = read_counts(out)
    assert counts["train", "classes"] == ("27", 2, "")
    assert counts["train", "videos there"] == ("2", 1, "lists/train_missing.txt")
    assert counts["val", "videos readable"] == ("1", 1, "")
