"""The steps from official files to a ready list, shared by the scripts of all data sets.

Each step is a command of ``stvid prep``, printed before it runs, so that it can be repeated by hand. After the steps of
a split its counts are compared with the official ones; every difference is printed and stands in ``counts.csv``.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stvid.data.conversion import CLASSES, read_annotation
from stvid.errors import StvidError

__all__ = [
    "Count",
    "Facts",
    "Options",
    "Split",
    "StepError",
    "add_options",
    "find_file",
    "options_of",
    "prepare",
    "run_script",
    "splits_of",
]

PREP = (sys.executable, "-m", "stvid", "prep")
"""The program of the data preparation, as it is started. It is shown as ``stvid prep``."""


class StepError(Exception):
    """A step that cannot be done. The message is one line: what, where, what to do."""


@dataclass(frozen=True)
class Split:
    """A split of a data set as it is published.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        annotation: The official file.
        videos: Folder in which its videos lie, at any depth.
        annotated: Number of entries that were counted in the annotation.
        official: Number of entries that the official annotation has; None if no reliable source gives it.
        classes: Number of classes that it has; None if no official list has them.
        words: Further options of ``stvid prep manifest``.
        multilabel: Whether its videos have several labels.
    """

    name: str
    annotation: Path
    videos: Path
    annotated: int
    official: int | None
    classes: int | None
    words: tuple[str, ...] = ()
    multilabel: bool = False


@dataclass(frozen=True)
class Facts:
    """The official files of a data set, and what they hold.

    Attributes:
        dataset: Name of the data set for ``stvid prep manifest``.
        files: The possible names of the annotation of each split; none if it is the folder of the annotations itself.
        entries: Number of entries of each split, as far as a source gives it.
        options: Options of ``stvid prep manifest`` for each split: ``part``, ``split``, ``rows``.
        folders: The folder of the videos of each split, below that of all; used if it is there.
    """

    dataset: str
    files: Mapping[str, tuple[str, ...]]
    entries: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """The options of a script: where its files go, and how the videos are prepared.

    Attributes:
        out: Folder for lists and reports.
        transcode: Folder for small copies; None leaves the videos as they are.
        short_side: Short side of the copies in pixels.
        frames_fps: Images per second, for videos that are folders of images.
        shards: Folder for tar shards; None stores an index beside each list.
        workers: Processes; None takes one for each core.
        check_leakage: Also look for copies of training videos among those of the next split.
    """

    out: Path
    transcode: Path | None = None
    short_side: int = 256
    frames_fps: float | None = None
    shards: Path | None = None
    workers: int | None = None
    check_leakage: bool = False


@dataclass
class Count:
    """A number that was found, and the one that was expected.

    Attributes:
        split: Name of the split.
        what: The thing that was counted.
        expected: None if no expectation exists.
        found: The number found.
        listed: File that lists what makes the difference.
    """

    split: str
    what: str
    expected: int | None
    found: int
    listed: str = ""

    def __str__(self) -> str:
        text = f"{self.split}: {self.found} {self.what}"
        if self.expected is None:
            return f"{text}; no official number to compare with"
        if self.found == self.expected:
            return f"{text}, as expected"
        more = self.found - self.expected
        place = f", listed in {self.listed}" if self.listed else ""
        return f"{text} instead of {self.expected}: {abs(more)} {'more' if more > 0 else 'fewer'}{place}"


@dataclass
class _Chain:
    """The list of a split on its way through the steps, with the counts so far."""

    split: Split
    path: Path
    counts: list[Count] = field(default_factory=list)

    def add(self, what: str, expected: int | None, found: int, listed: Path | None = None) -> None:
        self.counts.append(Count(self.split.name, what, expected, found, str(listed) if listed else ""))

    def shorten(self, what: str, shorter: Path, listed: Path) -> None:
        """Goes on with a list that a step made of the one before."""
        before, after = _count_rows(self.path), _count_rows(shorter)
        self.add(what, before, after, listed if after != before else None)
        self.path = shorter


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else 0


def _count_rows(path: Path) -> int:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _run(words: Sequence[str], *, leaves: Path) -> None:
    """Runs a command of ``stvid prep``.

    The commands also end with 1 if they did their work and found something wrong with a video. So the step has failed
    only if the file that it leaves behind was not written.

    Raises:
        StepError: If the command did not do its work.
    """
    print(f"$ stvid prep {shlex.join(words)}", flush=True)
    before = _stamp(leaves)
    code = subprocess.run([*PREP, *words], check=False).returncode
    if code not in (0, 1) or (code == 1 and _stamp(leaves) == before):
        raise StepError(f"the step 'stvid prep {words[0]}' failed (exit code {code}); its message stands above")


def _write_list(dataset: str, split: Split, options: Options) -> _Chain:
    path = options.out / "lists" / f"{split.name}.csv"
    words = ["manifest", dataset, str(split.annotation), "--root", str(split.videos), "--out", str(path)]
    _run([*words, *split.words], leaves=path)
    chain = _Chain(split, path)
    missing = path.with_name(f"{path.stem}_missing.txt")
    there, lost = _count_rows(path), _count_lines(missing)
    repeated = split.annotated - there - lost
    chain.add("entries in the annotation", split.official, split.annotated)
    classes = _count_lines(path.with_name(f"{path.stem}_classes.txt"))
    if classes:  # the list of a test set may have no labels
        chain.add("classes", split.classes, classes)
    if repeated:
        chain.add("entries that repeat an earlier one", 0, repeated)
    chain.add("videos there", split.annotated - repeated, there, missing if lost else None)
    return chain


def _scan(chain: _Chain, workers: Sequence[str]) -> None:
    report, good = chain.path.with_suffix(".scan.csv"), chain.path.with_name(f"{chain.path.stem}_readable.csv")
    _run(["scan", str(chain.path), "--out", str(report), "--fix", str(good), *workers], leaves=good)
    chain.shorten("videos readable", good, report)


def _transcode(chain: _Chain, options: Options, workers: Sequence[str]) -> None:
    assert options.transcode is not None
    out = options.transcode / chain.split.name
    words = ["transcode", str(chain.path), "--root", str(chain.split.videos), "--out", str(out)]
    words += ["--short_side", str(options.short_side), *workers]
    if options.frames_fps is not None:
        words += ["--frames_fps", f"{options.frames_fps:g}"]
    _run(words, leaves=out / "videos.csv")
    chain.shorten("videos copied", out / "videos.csv", out / "failed.csv")


def _prepare_split(dataset: str, split: Split, options: Options) -> tuple[Path, list[Count]]:
    """Returns the ready list (or the folder of its shards) and the counts of a split."""
    workers = [] if options.workers is None else ["--workers", str(options.workers)]
    workers += ["--multilabel"] if split.multilabel else []
    chain = _write_list(dataset, split, options)
    if options.frames_fps is None:
        _scan(chain, workers)
        if options.transcode is not None:
            _transcode(chain, options, workers)
    else:  # only videos can be scanned, not folders of images
        _transcode(chain, options, workers)
        _scan(chain, workers)
    if options.shards is None:
        _run(["index", str(chain.path), *workers], leaves=Path(f"{chain.path}.index"))
        return chain.path, chain.counts
    out = options.shards / split.name
    _run(["shard", str(chain.path), "--out", str(out), *workers], leaves=out / "shards.json")
    return out, chain.counts


def prepare(dataset: str, splits: Sequence[Split], options: Options) -> list[Count]:
    """Takes the splits of a data set from their official files to ready lists, and reports the counts.

    Args:
        dataset: Name of the data set for ``stvid prep manifest``.
        splits: At least one.
        options: What is to be made of them.

    Returns:
        The counts, which are also written to ``counts.csv``.

    Raises:
        StepError: If a step fails.
    """
    ready: dict[str, Path] = {}
    counts: list[Count] = []
    for split in splits:
        ready[split.name], found = _prepare_split(dataset, split, options)
        counts += found
    other = next((name for name in ready if name != "train"), None)
    if options.check_leakage and other is not None and "train" in ready and options.shards is None:
        out = options.out / "leakage.csv"
        _run(["check-leakage", str(ready["train"]), str(ready[other]), "--out", str(out)], leaves=out)
        counts.append(Count(other, "copies of training videos", 0, _count_rows(out), str(out)))
    report = options.out / "counts.csv"
    with open(report, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("split", "what", "expected", "found", "listed_in"))
        table.writerows((c.split, c.what, "" if c.expected is None else c.expected, c.found, c.listed) for c in counts)
    print(f"\ncounts ({report}):")
    for count in counts:
        print(f"  {count}")
    for name, path in ready.items():
        print(f"ready: {name} {path}")
    return counts


def find_file(folder: Path, *names: str) -> Path:
    """Returns the first of these files that a folder holds.

    Raises:
        StepError: If it holds none of them.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise StepError(f"{folder}: holds no {' or '.join(names)}; the page beside this script says where to get it")


def splits_of(values: argparse.Namespace, facts: Facts) -> list[Split]:
    """Returns the splits that the command line names, with the entries of their annotations counted.

    Args:
        values: What the options of `add_options` gave.
        facts: The files of the data set.

    Raises:
        StepError: If a file is missing or cannot be read.
    """
    splits = []
    for name in values.splits:
        names = facts.files[name]
        annotation = find_file(values.annotations, *names) if names else values.annotations
        options = dict(facts.options.get(name, {}))
        try:
            found = read_annotation(facts.dataset, annotation, **options)
        except StvidError as error:
            raise StepError(str(error)) from error
        folder = values.videos / facts.folders.get(name, "")
        splits.append(
            Split(
                name=name,
                annotation=annotation,
                videos=folder if folder.is_dir() else values.videos,
                annotated=len(found.rows),
                official=facts.entries.get(name),
                classes=CLASSES.get(facts.dataset),
                words=tuple(word for key, value in options.items() for word in (f"--{key}", str(value))),
                multilabel=found.multilabel,
            )
        )
    return splits


def add_options(parser: argparse.ArgumentParser, splits: Sequence[str]) -> None:
    """Adds the options that the scripts of all data sets have.

    Args:
        parser: The parser of the script.
        splits: The splits of the data set; the first two are prepared by default.
    """
    parser.add_argument("--annotations", type=Path, required=True, help="Folder of the official annotation files.")
    parser.add_argument("--videos", type=Path, required=True, help="Folder of the videos.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the lists and reports.")
    parser.add_argument("--splits", nargs="+", choices=splits, default=splits[:2], help="Default: %(default)s.")
    parser.add_argument("--transcode", type=Path, help="Also write small copies that are quick to seek to this folder.")
    parser.add_argument("--short_side", type=int, default=256, help="Short side of the copies; default %(default)s.")
    parser.add_argument("--shards", type=Path, help="Write tar shards to this folder instead of indices.")
    parser.add_argument("--workers", type=int, help="Processes; default one for each core.")
    parser.add_argument("--check_leakage", action="store_true", help="Look for training videos among the others.")


def options_of(values: argparse.Namespace, *, frames_fps: float | None = None) -> Options:
    """Returns the options that `add_options` read from the command line.

    Raises:
        StepError: If two of them exclude each other.
    """
    if values.check_leakage and values.shards is not None:
        raise StepError("--check_leakage: compares lists of files, not shards; run it without --shards first")
    if values.check_leakage and ("train" not in values.splits or len(set(values.splits)) < 2):
        raise StepError("--check_leakage: needs train and another split among --splits")
    if not values.videos.is_dir():
        raise StepError(f"{values.videos}: no such folder of videos")
    return Options(
        out=values.out,
        transcode=values.transcode,
        short_side=values.short_side,
        frames_fps=frames_fps,
        shards=values.shards,
        workers=values.workers,
        check_leakage=values.check_leakage,
    )


def run_script(main: Callable[[], None]) -> None:
    """Ends the process with the exit code of a script: 0 if the lists are ready, complete or not, else 1.

    Args:
        main: Function without arguments that does the work.
    """
    try:
        main()
    except StepError as error:
        sys.exit(f"prepare: error: {error}")
    except KeyboardInterrupt:
        sys.exit("prepare: interrupted; the same command goes on from there")
