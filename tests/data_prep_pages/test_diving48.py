"""The script of Diving48, on its official layout with a few videos."""

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
    rows = [{"vid_name": f"-oLk3XwMVqg_0000{n}", "label": n, "start_frame": 0, "end_frame": 9} for n in (0, 1)]
    official = write_files(
        {
            "Diving48_V2_train.json": json.dumps(rows),
            "Diving48_V2_test.json": json.dumps(rows[:1]).replace("_00000", "_00002"),
            "Diving48_vocab.json": json.dumps(
                [["Back", "15som", "05Twis", "FREE"], ["Back", "Dive", "NoTwis", "PIKE"]]
            ),
        }
    )
    for number in (0, 1, 2):
        make_video(f"-oLk3XwMVqg_0000{number}.mp4", first=40 * number, to=videos)
    run_prepare("diving48", "--annotations", official, "--videos", videos, "--out", out)
    assert stvid.read_manifest(out / "lists" / "train_readable.csv")[1].labels == ("Back Dive NoTwis PIKE",)
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("", 2, "")
    assert counts["test", "classes"] == ("48", 2, "")
    assert counts["test", "videos readable"] == ("1", 1, "")
