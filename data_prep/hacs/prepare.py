"""HACS from the official files to ready lists.

    python data_prep/hacs/prepare.py --kind segments --annotations HACS_v1.1.1 --videos HACS --out lists/hacs

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, add_options, options_of, prepare, run_script, splits_of

FILES = {"segments": ("HACS_segments_v1.1.1.json",), "clips": ("HACS_clips_v1.1.1.csv",)}
VIDEOS = {"train": 37613, "val": 5981, "test": 5987}
"""Videos of HACS Segments by split."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(description="HACS from official files to ready lists, with the counts checked.")
    parser.add_argument(
        "--kind",
        choices=("segments", "videos", "clips"),
        required=True,
        help="HACS Segments by their segments or by whole videos with all of their classes, or HACS Clips.",
    )
    add_options(parser, ("train", "val", "test"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    names = FILES["clips" if values.kind == "clips" else "segments"]
    rows = "videos" if values.kind == "videos" else "segments"
    choices = {part: {"part": part, "rows": rows} for part in VIDEOS}
    entries = VIDEOS if values.kind == "videos" else {}
    facts = Facts("hacs", dict.fromkeys(VIDEOS, names), entries, choices)
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
