"""The script of Something-Something, on the official layouts of both versions with a few videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stvid
from data_prep.steps import StepError

LABELS = ("Holding something", "Pushing something so that it falls off the table")


def test_version_2(
    tmp_path: Path,
    make_video: Callable[..., Path],
    run_prepare: Callable[..., None],
    read_counts: Callable[[Path], dict[tuple[str, str], tuple[str, int, str]]],
) -> None:
    labels, videos, out = tmp_path / "labels", tmp_path / "20bn-something-something-v2", tmp_path / "out"
    labels.mkdir()
    rows = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "42326", "label": "x", "template": "Pushing [something] so that it falls off the table"},
    ]
    (labels / "train.json").write_text(json.dumps(rows))
    (labels / "validation.json").write_text(json.dumps(rows[:1]).replace("78687", "74225"))
    (labels / "test-answers.csv").write_text("1420;Holding something\n")
    (labels / "labels.json").write_text(json.dumps({label: str(n) for n, label in enumerate(LABELS)}))
    for number in ("78687", "74225", "1420"):
        make_video(f"{number}.webm", codec="libvpx-vp9", bframes=0, fps=12, to=videos)
    arguments = ("--version", "2", "--annotations", labels, "--videos", videos, "--out", out)
    run_prepare("something_something", *arguments, "--splits", "train", "val", "test")
    for split, count in (("train", 1), ("val", 1), ("test", 1)):
        ready = stvid.read_manifest(out / "lists" / f"{split}_readable.csv")
        assert len(ready) == count and ready[0].labels == (LABELS[0],)
        assert (out / "lists" / f"{split}_readable.csv.index").is_dir()
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("168913", 2, "")
    assert counts["train", "classes"] == ("174", 2, "")
    assert counts["train", "videos there"] == ("2", 1, "lists/train_missing.txt")
    assert counts["val", "entries in the annotation"] == ("24777", 1, "")
    assert counts["test", "entries in the annotation"] == ("27157", 1, "")
    assert (out / "lists" / "train_missing.txt").read_text() == "42326\n"


def test_version_1_is_made_into_videos_of_the_right_speed(
    tmp_path: Path,
    run_prepare: Callable[..., None],
    read_counts: Callable[[Path], dict[tuple[str, str], tuple[str, int, str]]],
) -> None:
    videos, out, small = tmp_path / "20bn-something-something-v1", tmp_path / "out", tmp_path / "small"
    for split, numbers in (("train", (100218, 24413)), ("validation", (43723,))):
        lines = [f"{number};{LABELS[0]}\n" for number in numbers]
        (tmp_path / f"something-something-v1-{split}.csv").write_text("".join(lines))
    (tmp_path / "something-something-v1-labels.csv").write_text("".join(f"{label}\n" for label in LABELS))
    for number in (100218, 43723):
        (videos / str(number)).mkdir(parents=True)
        for image in range(24):
            pixels = np.full((48, 64, 3), 8 * image + number % 8, np.uint8)
            Image.fromarray(pixels).save(videos / str(number) / f"{image + 1:05d}.jpg")
    arguments = ("--version", "1", "--annotations", tmp_path, "--videos", videos, "--out", out)
    with pytest.raises(StepError, match="--transcode: version 1 comes as folders of images"):
        run_prepare("something_something", *arguments)
    run_prepare("something_something", *arguments, "--transcode", small)
    ready = stvid.read_manifest(small / "train" / "videos_readable.csv")
    assert len(ready) == 1 and ready[0].labels == (LABELS[0],)
    with stvid.VideoReader(ready[0].path) as reader:
        assert len(reader) == 24 and reader.fps == 12
    assert (small / "val" / "videos_readable.csv.index").is_dir()
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("86017", 2, "")
    assert counts["train", "videos there"] == ("2", 1, "lists/train_missing.txt")
    assert counts["train", "videos copied"] == ("1", 1, "")
    assert counts["val", "videos readable"] == ("1", 1, "")
