"""The script of EPIC-KITCHENS-100, on its official layout with a few videos."""

from __future__ import annotations

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
    head = "narration_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    official = write_files(
        {
            "EPIC_100_train.csv": head + "P01_01_0,P01_01,00:00:00.00,00:00:00.50,0,2\n"
            "P01_01_1,P01_01,00:00:00.40,00:00:01.00,1,0\nP02_01_0,P02_01,00:00:00.00,00:00:01.00,1,0\n",
            "EPIC_100_validation.csv": head + "P01_01_2,P01_01,00:00:00.20,00:00:00.90,1,2\n",
        }
    )
    make_video("P01_01.MP4", frames=30, to=videos / "P01" / "videos")
    arguments = ("--annotations", official, "--videos", videos, "--out", out)
    run_prepare("epic_kitchens", "--labels", "actions", *arguments)
    ready = stvid.read_manifest(out / "lists" / "train_readable.csv")
    assert [(ready[n].labels, ready[n].start, ready[n].end) for n in range(2)] == [
        (("take plate",), 0.0, 0.5),
        (("put tap",), 0.4, 1.0),
    ]
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("", 3, "")
    assert counts["train", "videos there"] == ("3", 2, "lists/train_missing.txt")
    assert counts["val", "entries in the annotation"] == ("9668", 1, "")
    assert counts["val", "classes"] == ("", 3, "")
    run_prepare("epic_kitchens", "--labels", "verbs", *arguments)
    assert read_counts(out)["train", "classes"] == ("97", 97, "")
