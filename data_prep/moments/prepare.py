"""Moments in Time from the official files to ready lists.

    python data_prep/moments/prepare.py --annotations mit --videos mit --out lists/moments

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, add_options, options_of, prepare, run_script, splits_of

FILES = {"train": ("trainingSet.csv",), "val": ("validationSet.csv",)}
FOLDERS = {"train": "training", "val": "validation"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(
        description="Moments in Time from official files to ready lists, with the counts checked."
    )
    add_options(parser, ("train", "val"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    facts = Facts("moments", FILES, folders=FOLDERS)
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
