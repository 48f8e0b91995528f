"""The script of HACS, on its official layout with a few videos."""

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
    names = {"training": "aaa", "validation": "bbb"}
    database = {
        key: {"subset": subset, "annotations": [{"label": "Rope climb", "segment": [0.1, 0.9]}]}
        for subset, key in names.items()
    }
    official = write_files(
        {
            "HACS_segments_v1.1.1.json": json.dumps({"database": database}),
            "HACS_clips_v1.1.1.csv": "classname,youtube_id,subset,start,end,label\nRope climb,aaa,training,0,1,1\n"
            "Rope climb,aaa,training,0,1,-1\nRope climb,bbb,validation,0,1,1\n",
        }
    )
    for number, key in enumerate(names.values()):
        make_video(f"v_{key}.mp4", frames=30, first=40 * number, to=videos / "Rope_climb")
    arguments = ("--annotations", official, "--videos", videos, "--out", out)
    run_prepare("hacs", "--kind", "segments", *arguments)
    ready = stvid.read_manifest(out / "lists" / "train_readable.csv")
    assert (ready[0].labels, ready[0].start, ready[0].end) == (("Rope climb",), 0.1, 0.9)
    assert read_counts(out)["val", "entries in the annotation"] == ("", 1, "")
    run_prepare("hacs", "--kind", "videos", *arguments)
    assert read_counts(out)["val", "entries in the annotation"] == ("5981", 1, "")
    run_prepare("hacs", "--kind", "clips", *arguments)
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("", 1, "")
    assert counts["train", "classes"] == ("200", 1, "")
