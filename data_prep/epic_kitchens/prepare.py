"""EPIC-KITCHENS-100 from the official files to ready lists.

    python data_prep/epic_kitchens/prepare.py --labels verbs --annotations epic100 --videos EPIC --out lists/epic

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, add_options, options_of, prepare, run_script, splits_of

FILES = {
    "train": ("EPIC_100_train.csv",),
    "val": ("EPIC_100_validation.csv",),
    "test": ("EPIC_100_test_timestamps.csv",),
}
ENTRIES = {"val": 9668, "test": 13092}
"""Rows of the official files, as far as we could count them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(
        description="EPIC-KITCHENS-100 from official files to ready lists, with the counts checked."
    )
    parser.add_argument("--labels", choices=("verbs", "nouns", "actions"), required=True, help="Classes of the list.")
    add_options(parser, ("train", "val", "test"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    facts = Facts(f"epic_{values.labels}", FILES, ENTRIES)
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
