"""The script of FineGym, on its official layout with a few videos."""

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
    ids = ("0LtLS9wROrk_E_000000_000001_A_0000_0001", "0LtLS9wROrk_E_000000_000001_A_0001_0002")
    element = {"stages": 1, "timestamps": [[0.1, 0.6]]}
    event = {"event": 4, "segments": dict.fromkeys(("A_0000_0001", "A_0001_0002"), element), "timestamps": [[0.2, 1.0]]}
    official = write_files(
        {
            "gym99_train_element_v1.1.txt": f"{ids[0]} 5\nAAAAAAAAAAA_E_000000_000001_A_0000_0001 5\n",
            "gym99_val_element.txt": f"{ids[1]} 98\n",
            "finegym_annotation_info_v1.1.json": json.dumps({"0LtLS9wROrk": {"E_000000_000001": event}}),
        }
    )
    make_video("0LtLS9wROrk.mp4", frames=30, to=videos)
    run_prepare("finegym", "--subset", "99", "--annotations", official, "--videos", videos, "--out", out)
    ready = stvid.read_manifest(out / "lists" / "train_readable.csv")
    assert (ready[0].start, ready[0].end) == (0.3, 0.8)
    counts = read_counts(out)
    assert counts["train", "entries in the annotation"] == ("26320", 2, "")
    assert counts["val", "entries in the annotation"] == ("8521", 1, "")
    assert counts["train", "classes"] == ("99", 99, "")
    assert counts["train", "videos there"] == ("2", 1, "lists/train_missing.txt")
