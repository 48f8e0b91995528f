"""ActivityNet from the official files to ready lists.

    python data_prep/activitynet/prepare.py --annotations anet --videos anet/videos --out lists/anet

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, add_options, options_of, prepare, run_script, splits_of

FILES = ("activity_net.v1-3.min.json",)
ENTRIES = {
    "segments": {"train": 15410, "val": 7654, "test": 5044},
    "videos": {"train": 10024, "val": 4926, "test": 5044},
}
"""Annotated segments and videos of release 1.3; the test videos have no annotations and are listed whole."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(
        description="ActivityNet from official files to ready lists, with the counts checked."
    )
    parser.add_argument(
        "--rows", choices=tuple(ENTRIES), default="segments", help="Rows of the lists; default %(default)s."
    )
    add_options(parser, ("train", "val", "test"))
    values = parser.parse_args(arguments)
    options = options_of(values)
    entries = ENTRIES[values.rows]
    choices = {part: {"part": part, "rows": values.rows} for part in entries}
    facts = Facts("activitynet", dict.fromkeys(entries, FILES), entries, choices)
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
