"""The script of Charades, on its official layout with a few videos."""

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
            "Charades_v1_classes.txt": "c000 Holding clothes\nc001 Smiling\n",
            "Charades_v1_train.csv": "id,actions,length\n46GP8,c001 0.10 0.60;c000 0.0 0.5,1.0\nN11GT,,1.0\n",
            "Charades_v1_test.csv": "id,actions,length\nGONE1,c000 0.0 1.0,1.0\n0IH69,c001 0.0 0.5,1.0\n",
        }
    )
    for number, name in enumerate(("46GP8", "N11GT", "0IH69")):
        make_video(f"{name}.mp4", frames=30, first=40 * number, to=videos)
    arguments = ("--annotations", official, "--videos", videos, "--out", out)
    run_prepare("charades", *arguments, "--transcode", tmp_path / "small", "--short_side", "32")
    ready = stvid.read_manifest(tmp_path / "small" / "train" / "videos.csv", multilabel=True)
    assert [ready[n].labels for n in range(2)] == [("Holding clothes", "Smiling"), ()]
    counts = read_counts(out)
    assert counts["train", "classes"] == ("157", 2, "")
    assert counts["train", "videos readable"] == ("2", 2, "")
    assert counts["test", "videos there"] == ("2", 1, "lists/test_missing.txt")
    run_prepare("charades", *arguments, "--rows", "segments")
    ready = stvid.read_manifest(out / "lists" / "train_readable.csv", multilabel=True)
    assert [(ready[n].labels, ready[n].end) for n in range(2)] == [(("Smiling",), 0.6), (("Holding clothes",), 0.5)]
