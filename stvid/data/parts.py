"""A job in parts that know nothing of each other: ``--shard 2/8`` on any machine, SLURM arrays, and the way back.

Each part takes every n-th file of the list and keeps a journal of its own beside that of the whole job. When all parts
are done, `merge_parts` makes of their journals the one that a single process would have written.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stvid.errors import ConfigError, StvidError

__all__ = ["Part", "found_parts", "keys_digest"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Part:
    """One of several parts of a job.

    Attributes:
        number: From 1 on.
        count: How many parts there are.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str, *, environment: Mapping[str, str] | None = None) -> Part:
        """Reads ``2/8``, or ``slurm``, which takes the place of this process in its SLURM array.

        Args:
            text: As it was typed after ``--shard``.
            environment: Variables of the process; None takes those of this one.

        Raises:
            ConfigError: If it is neither, or the variables of an array are missing or make no sense.
        """
        if text == "slurm":
            return cls._of_array(os.environ if environment is None else environment)
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--shard {text}: is not i/n with i from 1 to n, such as 1/4 to 4/4, nor slurm")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def _of_array(cls, environment: Mapping[str, str]) -> Part:
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
        missing = [name for name in names if name not in environment]
        if missing:
            raise ConfigError(
                f"--shard slurm: {' and '.join(missing)} not set: that is for jobs of an array (sbatch --array=1-8); "
                "elsewhere give i/n"
            )
        defaults = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1"}
        values = {name: environment.get(name, defaults.get(name, "")) for name in (*names, *defaults)}
        for name, value in values.items():
            if not value.isdecimal():
                raise ConfigError(f"--shard slurm: {name} is {value!r}, not a number")
        task, count, first, step = (int(value) for value in values.values())
        place, rest = divmod(task - first, max(1, step))
        if rest or not 0 <= place < count:
            raise ConfigError(
                f"--shard slurm: task {task} is not one of {count} in a row from {first} on; give the array as "
                f"--array=1-{count}"
            )
        return cls(place + 1, count)

    def of(self, items: Sequence[_T]) -> list[_T]:
        """Returns the items of this part: every n-th one, so that all parts have about the same to do."""
        return list(items[self.number - 1 :: self.count])

    def beside(self, path: Path) -> Path:
        """Returns the file of this part for a file of the whole job: ``scan.2-of-8.jsonl`` for ``scan.jsonl``."""
        return path.with_name(f"{path.stem}.{self.number}-of-{self.count}{path.suffix}")

    def header(self, job: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
        """Returns the first line of this part's journal.

        Args:
            job: The first line of the whole job's journal.
            keys: The files of the whole job; the parts must agree on them.
        """
        return {**job, "shard": str(self), "videos": keys_digest(keys)}


def keys_digest(keys: Sequence[str]) -> str:
    """Returns a digest of a list of files."""
    state = hashlib.blake2b(digest_size=16)
    for key in keys:
        state.update(os.fsencode(key) + b"\0")
    return state.hexdigest()


def found_parts(path: Path) -> list[Part]:
    """Returns all parts of a job of which each has its file beside that of the whole job.

    Args:
        path: The file of the whole job.

    Raises:
        ConfigError: If files of another number of parts lie there, too.
        StvidError: If there are none, or some are missing.
    """
    pattern = re.compile(re.escape(path.stem) + r"\.(\d+)-of-(\d+)" + re.escape(path.suffix))
    names = [match for entry in _entries(path.parent) if (match := pattern.fullmatch(entry)) is not None]
    found = {Part(int(match[1]), int(match[2])) for match in names}
    if not found:
        raise StvidError(
            f"{path.with_name(f'{path.stem}.1-of-N{path.suffix}')}: there is no journal of a shard; first run all of "
            "them: the command with --shard 1/N to N/N"
        )
    counts = sorted({part.count for part in found})
    if len(counts) > 1:
        raise ConfigError(
            f"{path.parent}: holds journals of runs in {' and '.join(map(str, counts))} shards, which overlap; "
            f"delete those of one run ({path.stem}.*-of-{counts[0]}{path.suffix})"
        )
    parts = [Part(number, counts[0]) for number in range(1, counts[0] + 1)]
    missing = [part for part in parts if part not in found]
    if missing:
        listed = ", ".join(str(part.number) for part in missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise StvidError(
            f"{missing[0].beside(path)}: no such file; shard{'s' if len(missing) > 1 else ''} {listed} of {counts[0]} "
            f"{'are' if len(missing) > 1 else 'is'} missing: run --shard {missing[0]}"
        )
    return parts


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
