"""Kinetics-400, -600 and -700 from the official CSV files and a folder of videos to ready lists.

    python data_prep/kinetics/prepare.py --edition 400 --annotations k400/annotations --videos k400 --out lists/k400

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Split, StepError, add_options, find_file, options_of, prepare, run_script

FILES = {"train": ("train.csv",), "val": ("val.csv", "validate.csv"), "test": ("test.csv",)}
"""Names of the annotation files: of the copies of CVDF first, then of DeepMind's archives."""

ENTRIES: dict[str, dict[str, int]] = {"400": {"train": 246534, "val": 19906, "test": 39805}, "600": {}, "700": {}}
"""Entries of the official annotation by edition and split, as far as README.md has a source for them."""


def count_entries(path: Path) -> int:
    """Returns the number of clips that a CSV of Kinetics lists.

    Raises:
        StepError: If it is no CSV.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return sum(1 for _ in csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StepError(f"{path}: cannot be read as CSV ({error})") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(description="Official files of Kinetics to ready lists, with the counts checked.")
    parser.add_argument("--edition", choices=tuple(ENTRIES), required=True, help="Number of classes.")
    add_options(parser, ("train", "val", "test"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    splits = []
    for name in values.splits:
        annotation = find_file(values.annotations, *FILES[name])
        folder = values.videos / name
        splits.append(
            Split(
                name=name,
                annotation=annotation,
                videos=folder if folder.is_dir() else values.videos,
                annotated=count_entries(annotation),
                official=ENTRIES[values.edition].get(name),
                classes=int(values.edition),
            )
        )
    prepare(f"kinetics{values.edition}", splits, options)


if __name__ == "__main__":
    run_script(main)
