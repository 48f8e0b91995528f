"""The script of HMDB51, on its official layout with a few videos."""

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
            "clap_test_split1.txt": "a_clap_0.avi 1 \nb_clap_0.avi 2 \nc_clap_0.avi 0 \n",
            "run_test_split1.txt": "a_run_0.avi 1\n",
            "clap_test_split3.txt": "b_clap_0.avi 1\n",
        }
    )
    make_video("a_clap_0.avi", to=videos / "clap")
    make_video("b_clap_0.avi", first=50, to=videos / "clap")
    run_prepare("hmdb51", "--annotations", official, "--videos", videos, "--out", out)
    assert len(stvid.read_manifest(out / "lists" / "train_readable.csv")) == 1
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("3570", 2, "")
    assert counts["test", "entries in the annotation"] == ("1530", 1, "")
    assert counts["train", "videos there"] == ("2", 1, "lists/train_missing.txt")
    run_prepare(
        "hmdb51", "--fold", "3", "--splits", "train", "--annotations", official, "--videos", videos, "--out", out
    )
    assert stvid.read_manifest(out / "lists" / "train_readable.csv")[0].path.endswith("b_clap_0.avi")
