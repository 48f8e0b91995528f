"""The script of ActivityNet, on its official layout with a few videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import stvid

Counts = dict[tuple[str, str], tuple[str, int, str]]


def test_lists_and_counts(
    tmp_path: Path,
    make_video: Callable[..., Path],
    run_prepare: Callable[..., None],
    read_counts: Callable[[Path], Counts],
    write_files: Callable[..., Path],
) -> None:
    out, videos = tmp_path / "out", tmp_path / "videos"
    segments = [{"label": "Archery", "segment": [0.1, 0.5]}, {"label": "Archery", "segment": [0.5, 0.9]}]
    database = {
        "aaa": {"subset": "training", "annotations": segments},
        "gone": {"subset": "training", "annotations": segments[:1]},
        "bbb": {"subset": "validation", "annotations": segments},
        "ccc": {"subset": "testing", "annotations": []},
    }
    official = write_files({"activity_net.v1-3.min.json": json.dumps({"database": database})})
    for number, key in enumerate(("aaa", "bbb", "ccc")):
        make_video(f"v_{key}.mp4", frames=30, first=40 * number, to=videos)
    arguments = ("--annotations", official, "--videos", videos, "--out", out)
    run_prepare("activitynet", *arguments, "--splits", "train", "val", "test")
    ready = stvid.read_manifest(out / "lists" / "train_readable.csv")
    assert [(ready[n].start, ready[n].end) for n in range(2)] == [(0.1, 0.5), (0.5, 0.9)]
    assert not stvid.read_manifest(out / "lists" / "test_readable.csv").has_labels
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("15410", 3, "")
    assert counts["train", "videos there"] == ("3", 2, "lists/train_missing.txt")
    assert counts["test", "entries in the annotation"] == ("5044", 1, "")
    run_prepare("activitynet", *arguments, "--rows", "videos")
    assert read_counts(out)["val", "entries in the annotation"] == ("4926", 1, "")
