"""The script of Moments in Time, on its official layout with a few videos."""

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
    official = write_files(
        {
            "moments_categories.txt": "yawning,1\nclapping,0\n",
            "trainingSet.csv": "clapping/a_1.mp4,clapping,3,0\nyawning/b_2.mp4,yawning,4,1\n",
            "validationSet.csv": "yawning/a_1.mp4,yawning,3,0\n",
        }
    )
    make_video("a_1.mp4", to=videos / "training" / "clapping")
    make_video("a_1.mp4", first=40, to=videos / "validation" / "yawning")
    run_prepare("moments", "--annotations", official, "--videos", videos, "--out", out)
    assert stvid.read_manifest(out / "lists" / "val_readable.csv")[0].path.endswith("validation/yawning/a_1.mp4")
    assert (out / "lists" / "train_classes.txt").read_text() == "clapping\nyawning\n"
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("", 2, "")
    assert counts["train", "classes"] == ("339", 2, "")
    assert counts["train", "videos there"] == ("2", 1, "lists/train_missing.txt")
