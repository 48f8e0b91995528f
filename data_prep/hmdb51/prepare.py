"""HMDB51 from the official files to ready lists.

    python data_prep/hmdb51/prepare.py --annotations testTrainMulti_7030_splits --videos hmdb51 --out lists/hmdb51

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, add_options, options_of, prepare, run_script, splits_of

ENTRIES = {"train": 51 * 70, "test": 51 * 30}
"""Each split has 70 videos a class for training and 30 for the test; the others are not used."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(description="HMDB51 from official files to ready lists, with the counts checked.")
    parser.add_argument("--fold", type=int, choices=(1, 2, 3), default=1, help="Official split; default %(default)s.")
    add_options(parser, ("train", "test"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    choices = {name: {"part": name, "split": values.fold} for name in ENTRIES}
    facts = Facts("hmdb51", dict.fromkeys(ENTRIES, ()), ENTRIES, choices)
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
