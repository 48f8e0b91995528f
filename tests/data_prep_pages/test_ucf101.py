"""The script of UCF101, on its official layout with a few videos."""

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
            "classInd.txt": "1 Archery\n2 YoYo\n",
            "trainlist02.txt": "Archery/v_Archery_g01_c01.avi 1\nYoYo/v_YoYo_g01_c01.avi 2\n",
            "testlist02.txt": "YoYo/v_YoYo_g02_c01.avi\n",
        }
    )
    for number, name in enumerate(("Archery/v_Archery_g01_c01.avi", "YoYo/v_YoYo_g02_c01.avi")):
        make_video(Path(name).name, first=40 * number, to=videos / Path(name).parent)
    arguments = ("--fold", "2", "--annotations", official, "--videos", videos, "--out", out, "--check_leakage")
    run_prepare("ucf101", *arguments)
    assert stvid.read_manifest(out / "lists" / "train_readable.csv")[0].labels == ("Archery",)
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("9586", 2, "")
    assert counts["train", "videos there"] == ("2", 1, "lists/train_missing.txt")
    assert counts["test", "entries in the annotation"] == ("3734", 1, "")
    assert counts["test", "classes"] == ("101", 2, "")
    assert counts["test", "copies of training videos"][0] == "0"
