"""UCF101 from the official files to ready lists.

    python data_prep/ucf101/prepare.py --annotations ucfTrainTestlist --videos UCF-101 --out lists/ucf101

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
    "1": {"train": 9537, "test": 3783},
    "2": {"train": 9586, "test": 3734},
    "3": {"train": 9624, "test": 3696},
}
"""Videos of each official split."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(description="UCF101 from official files to ready lists, with the counts checked.")
    parser.add_argument("--fold", choices=tuple(ENTRIES), default="1", help="Official split; default %(default)s.")
    add_options(parser, ("train", "test"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    files = {name: (f"{name}list0{values.fold}.txt",) for name in ("train", "test")}
    facts = Facts("ucf101", files, ENTRIES[values.fold])
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
