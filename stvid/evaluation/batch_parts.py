"""Work on a list of videos, batch by batch, in parts: the journals of the parts, and the way back to one result.

A part is one of a number of ``--shard i/n``, or one of the processes of a run on several devices. Parts share whole
batches, those of a single process, since the last digits of a video's numbers may depend on the videos that are in one
batch with it. So joined parts are equal to the work of one process bit for bit.

Each part keeps a journal (`stvid.journal`) beside the file that the whole work would have: ``test.2-of-8.jsonl`` for
``test.jsonl``. It says what the work is, and holds what came out of each batch. A batch with a video that could not be
read is tried again when the part is run again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stvid.data.parts import Part, found_parts
from stvid.errors import ConfigError, StvidError
from stvid.files import write_atomically
from stvid.journal import Journal, read_journal

__all__ = ["BatchWork", "Joined", "PartJournal", "hardware"]

_WHAT = "the journal of a part"
_FIELDS: dict[str, type] = {"batch": int, "where": str, "outcome": dict}
_SAID = {"videos": "another list of videos", "checkpoint": "other weights", "measured": "another protocol or options"}
"""How the digests of `BatchWork.made` are called where a part differs in them; other values are shown themselves."""


def hardware(device: torch.device) -> str:
    """Returns what the last digits of numbers depend on beside the versions: the GPU, or the threads and the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return (
        f"{device.type} with {threads} thread{'s' if threads > 1 else ''} and {torch.backends.cpu.get_cpu_capability()}"
    )


@dataclass(frozen=True)
class Joined:
    """All parts of some work, joined.

    Attributes:
        outcomes: The outcome of each batch, in order.
        computed: What the parts say of how they computed; all say the same.
        notes: Lines for the user.
        journals: The files of the parts, which are not needed once the result is written.
    """

    outcomes: list[dict[str, Any]]
    computed: dict[str, Any]
    notes: list[str]
    journals: list[Path]


@dataclass
class PartJournal:
    """The open journal of a part.

    Attributes:
        path: The file.
        todo: The batches that are still to be done.
        done: How many batches of the part are done.
    """

    path: Path
    todo: list[int]
    done: int
    _file: Journal
    _known: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, batch: int, outcome: Mapping[str, Any], *, where: str) -> None:
        """Keeps the outcome of a batch, unless the journal has the very same of an earlier try.

        Args:
            batch: Its number.
            outcome: What came out, as JSON can hold it; ``failed`` lists what could not be read.
            where: The `hardware`; if parts differ in it, the user is told.

        Raises:
            StvidError: If it cannot be written.
        """
        plain = json.loads(json.dumps(outcome))
        if self._known.get(batch) != plain:
            self._file.add({"batch": batch, "where": where, "outcome": plain})
            self._known[batch] = plain


@dataclass(frozen=True)
class BatchWork:
    """Some work on the batches of a list.

    Attributes:
        path: The journal of the whole work; those of the parts stand beside it.
        made: What the outcomes depend on, in values that JSON can hold: ``videos``, ``checkpoint``, ``measured``
            (digests), ``versions`` (a dict) and others. Parts must agree in it with the command that joins them.
        batches: How many batches there are.
    """

    path: Path
    made: Mapping[str, Any]
    batches: int

    @contextlib.contextmanager
    def part(self, part: Part, *, computed: Mapping[str, Any]) -> Iterator[PartJournal]:
        """Opens the journal of a part, and reads what is done.

        Args:
            part: Which part.
            computed: How the numbers are computed, such as the device; the parts must agree in it.

        Raises:
            ConfigError: If the file is of other work.
            StvidError: If another process does this part now, or the file cannot be read or written.
        """
        known: dict[int, dict[str, Any]] = {}
        header = {"part": str(part), "made": dict(self.made), "computed": dict(computed)}

        def take(record: dict[str, Any]) -> None:
            known[record["batch"]] = record["outcome"]

        path = part.beside(self.path)
        self._read_whole(known, computed)
        self._check(path, part, computed)
        with _journal(path, header, take) as file:
            own = part.of(range(self.batches))
            todo = [batch for batch in own if batch not in known or known[batch].get("failed")]
            yield PartJournal(path, todo, len(own) - len(todo), file, known)

    def joined(self) -> Joined:
        """Joins all parts.

        Raises:
            ConfigError: If a part is of other work, or there are parts of two divisions, which overlap.
            StvidError: If a part is missing, not done or at work now, or was computed in another way than the others.
        """
        parts = found_parts(self.path)
        known: dict[int, dict[str, Any]] = {}
        computed = self._read_whole(known, None)
        places: dict[str, None] = {}
        for part in parts:
            path = part.beside(self.path)
            found = self._check(path, part, computed)
            computed = found["computed"] if computed is None else computed
            own = set(part.of(range(self.batches)))

            def take(record: dict[str, Any], own: set[int] = own, path: Path = path) -> None:
                if record["batch"] not in own:
                    raise ConfigError(f"{path}: holds another shard's videos; delete it and run it again")
                places[record["where"]] = None
                known[record["batch"]] = record["outcome"]

            with _journal(path, found, take):
                left = sum(batch not in known for batch in own)
            if left:
                raise StvidError(
                    f"{path}: {left} of the {len(own)} batches of shard {part} are not done; run --shard {part} again"
                )
        notes = []
        if len(places) > 1:
            notes.append(
                f"the parts were computed on different hardware ({'; '.join(places)}), so the last digits may differ "
                "from those of one process"
            )
        files = [part.beside(self.path) for part in parts]
        return Joined([known[batch] for batch in range(self.batches)], computed or {}, notes, [self.path, *files])

    def fold(self, count: int) -> None:
        """Keeps what an interrupted run on another number of devices did, so that parts of this number go on from it.

        Raises:
            ConfigError: If a file is of other work.
            StvidError: If a process is at work on it now, or the files cannot be read or written.
        """
        pattern = re.compile(re.escape(self.path.stem) + r"\.(\d+)-of-(\d+)" + re.escape(self.path.suffix))
        entries = sorted(self.path.parent.glob(f"{self.path.stem}.*")) if self.path.parent.is_dir() else []
        found = [(path, match) for path in entries if (match := pattern.fullmatch(path.name)) is not None]
        others = [(path, Part(int(match[1]), int(match[2]))) for path, match in found if int(match[2]) != count]
        if not others:
            return
        known: dict[int, dict[str, Any]] = {}
        records: dict[int, dict[str, Any]] = {}
        computed = self._read_whole(known, None, records)
        for path, part in others:
            header = self._check(path, part, computed)
            computed = header["computed"]

            def take(record: dict[str, Any]) -> None:
                records[record["batch"]] = record

            with _journal(path, header, take):
                pass

        def write(path: Path) -> None:
            with _journal(path, self._header(computed), lambda record: None) as file:
                for _, record in sorted(records.items()):
                    file.add(record)

        write_atomically(self.path, write)
        for path, _ in others:
            path.unlink()

    def _header(self, computed: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"part": "", "made": dict(self.made), "computed": dict(computed or {})}

    def _read_whole(
        self,
        known: dict[int, dict[str, Any]],
        computed: Mapping[str, Any] | None,
        records: dict[int, dict[str, Any]] | None = None,
    ) -> dict[str, Any] | None:
        """Reads what `fold` kept, if it did; returns how it was computed."""
        if not self.path.exists():
            return None
        header = self._check(self.path, None, computed)

        def take(record: dict[str, Any]) -> None:
            known[record["batch"]] = record["outcome"]
            if records is not None:
                records[record["batch"]] = record

        read_journal(self.path, header, what=_WHAT, fields=_FIELDS, each=take)
        return dict(header["computed"])

    def _check(self, path: Path, part: Part | None, computed: Mapping[str, Any] | None) -> dict[str, Any]:
        """Refuses a journal of other work, and says in what it differs; returns its first line.

        A file that is not there, or was only begun, is taken for one of this work.
        """
        own = {"part": "" if part is None else str(part), "made": dict(self.made), "computed": dict(computed or {})}
        own = json.loads(json.dumps(own))
        try:
            with open(path, "rb") as file:
                first = file.readline()
        except FileNotFoundError:
            return own
        except OSError as error:
            raise StvidError(f"{path}: cannot be read ({error.strerror or error})") from error
        if not first.endswith(b"\n"):
            return own
        try:
            found = json.loads(first)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in _HEADER.items()):
            raise StvidError(f"{path}: is not {_WHAT}; delete it or move it away")
        again = "" if part is None else f" and run --shard {part} again"
        if found["part"] != own["part"]:
            raise ConfigError(f"{path}: holds shard {found['part']}, whose copy it is; delete it{again}")
        if (differs := _difference(found["made"], own["made"])) is not None:
            raise ConfigError(f"{path}: was made with {differs}; delete it{again}, or choose another --out")
        if computed is not None and found["computed"] != own["computed"]:
            ways = (", ".join(str(value) for value in side["computed"].values()) for side in (found, own))
            raise ConfigError(f"{path}: was computed in another way ({' instead of '.join(ways)}); delete it{again}")
        return found


_HEADER: dict[str, type] = {"part": str, "made": dict, "computed": dict}


def _journal(path: Path, header: Mapping[str, Any], take: Any) -> Journal:
    return Journal(path, header, what=_WHAT, fields=_FIELDS, each=take)


def _difference(found: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Says in what a part differs from the command; None if in nothing."""
    for name, expected in own.items():
        value = found.get(name)
        if value == expected:
            continue
        if name in _SAID:
            return f"{_SAID[name]} than this command has"
        if isinstance(expected, dict) and isinstance(value, dict):
            key = next(key for key in {**expected, **value} if value.get(key) != expected.get(key))
            return f"{key} {value.get(key)}, this command has {expected.get(key)}"
        return f"{name} {value}, this command has {expected}"
    return None
