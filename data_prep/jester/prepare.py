"""Jester from the official files to ready lists.

    python data_prep/jester/prepare.py --annotations jester --videos 20bn-jester-v1 --out lists/jester --transcode small

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Facts, StepError, add_options, options_of, prepare, run_script, splits_of

FILES = {
    "train": ("jester-v1-train.csv",),
    "val": ("jester-v1-validation.csv",),
    "test": ("jester-v1-test.csv",),
}
IMAGES_PER_SECOND = 12.0
"""Rate at which the images were taken from the videos."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(description="Jester from official files to ready lists, with the counts checked.")
    add_options(parser, ("train", "val", "test"))
    values = parser.parse_args(arguments)
    if values.transcode is None:
        raise StepError("--transcode: the videos come as folders of images; name a folder for the videos made of them")
    options = options_of(values, frames_fps=IMAGES_PER_SECOND)
    facts = Facts("jester", FILES)
    prepare(facts.dataset, splits_of(values, facts), options)


if __name__ == "__main__":
    run_script(main)
