"""Charades from the official files to ready lists.

    python data_prep/charades/prepare.py --annotations Charades --videos Charades_v1_480 --out lists/charades

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, add_options, options_of, prepare, run_script, splits_of

FILES = {"train": ("Charades_v1_train.csv",), "test": ("Charades_v1_test.csv",)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(
        description="Charades from official files to ready lists, with the counts checked."
    )
    parser.add_argument(
        "--rows", choices=("videos", "segments"), default="videos", help="Rows of the lists; default %(default)s."
    )
    add_options(parser, ("train", "test"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    facts = Facts("charades", FILES, options={part: {"rows": values.rows} for part in FILES})
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
