"""FineGym from the official files to ready lists.

    python data_prep/finegym/prepare.py --subset 99 --annotations finegym --videos finegym/videos --out lists/gym99

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, add_options, options_of, prepare, run_script, splits_of

ENTRIES = {
    "99": {"1.0": {"train": 20484, "val": 8521}, "1.1": {"train": 26320, "val": 8521}},
    "288": {"1.0": {"train": 22671, "val": 9646}, "1.1": {"train": 29334, "val": 9646}},
}
"""Elements by subset, version and split; the validation lists of both versions are the same."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(description="FineGym from official files to ready lists, with the counts checked.")
    parser.add_argument("--subset", choices=tuple(ENTRIES), required=True, help="Number of classes.")
    parser.add_argument("--version", choices=("1.0", "1.1"), default="1.1", help="Default: %(default)s.")
    add_options(parser, ("train", "val"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    name = f"gym{values.subset}"
    files = {"train": (f"{name}_train_element_v{values.version}.txt",), "val": (f"{name}_val_element.txt",)}
    facts = Facts(name, files, ENTRIES[values.subset][values.version])
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
