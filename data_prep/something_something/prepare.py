"""Something-Something v1 and v2 from the official files to ready lists.

    python data_prep/something_something/prepare.py --version 2 --annotations ssv2/labels \
        --videos ssv2/20bn-something-something-v2 --out lists/ssv2

README.md beside this file says where the files are from, and how to read the counts that are printed at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data_prep.steps import Split, StepError, add_options, find_file, options_of, prepare, run_script

FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "1": {
        "train": ("something-something-v1-train.csv",),
        "val": ("something-something-v1-validation.csv",),
        "test": ("something-something-v1-test.csv",),
    },
    "2": {
        "train": ("train.json", "something-something-v2-train.json"),
        "val": ("validation.json", "something-something-v2-validation.json"),
        "test": ("test-answers.csv", "test.json", "something-something-v2-test.json"),
    },
}
ENTRIES: dict[str, dict[str, int]] = {
    "1": {"train": 86017, "val": 11522, "test": 10960},
    "2": {"train": 168913, "val": 24777, "test": 27157},
}
CLASSES = 174
IMAGES_PER_SECOND = 12.0
"""Rate at which the images of version 1 were taken from the videos."""


def count_entries(path: Path) -> int:
    """Returns the number of videos that an annotation lists: JSON, or a line for each.

    Raises:
        StepError: If it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return len(json.loads(text))
    except (OSError, ValueError) as error:
        raise StepError(f"{path}: cannot be read ({error})") from error
    return sum(1 for line in text.splitlines() if line.strip())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares the splits that the command line names."""
    parser = argparse.ArgumentParser(
        description="Official files of Something-Something to ready lists, with the counts checked."
    )
    parser.add_argument("--version", choices=tuple(FILES), required=True, help="1: folders of images; 2: videos.")
    add_options(parser, ("train", "val", "test"))
    values = parser.parse_args(arguments)
    if values.version == "1" and values.transcode is None:
        raise StepError("--transcode: version 1 comes as folders of images; name a folder for the videos made of them")
    options = options_of(values, frames_fps=IMAGES_PER_SECOND if values.version == "1" else None)
    splits = []
    for name in values.splits:
        annotation = find_file(values.annotations, *FILES[values.version][name])
        splits.append(
            Split(
                name=name,
                annotation=annotation,
                videos=values.videos,
                annotated=count_entries(annotation),
                official=ENTRIES[values.version][name],
                classes=CLASSES,
            )
        )
    prepare(f"ssv{values.version}", splits, options)


if __name__ == "__main__":
    run_script(main)
