"""Damage for files of JSON: each value in turn becomes something else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stvid.data.manifest import read_manifest
from stvid.errors import ManifestError

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    1e300,
    float("nan"),
    "",
    " ",
    "x",
    "\0",
    "\ud800",
    [],
    [[]],
    {},
    {"a": {}},
    ["x"],
]


def damaged(content: Any) -> Iterator[Any]:
    """Yields copies of a value in which one inner value is another one, or is missing."""
    for path in places(content):
        for odd in (*ODD, KeyError):
            changed = copy.deepcopy(content)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            if odd is KeyError:
                del holder[path[-1]]
            else:
                holder[path[-1]] = odd
            yield changed
    yield from ODD


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@pytest.fixture
def refuse_all_damage(tmp_path: Path) -> Callable[[str, str, Any], None]:
    """``refuse_all_damage(name, format, content)``: damage is read, or refused by one line that names the file."""

    def check(name: str, format: str, content: Any) -> None:
        path = tmp_path / name
        refused = 0
        for changed in damaged(content):
            path.write_text(json.dumps(changed), encoding="utf-8")
            for form in (format, "auto"):
                try:
                    for entry in read_manifest(path, format=form):
                        assert all(isinstance(label, str) and label for label in entry.labels)
                except ManifestError as error:
                    refused += 1
                    assert str(error).startswith(str(tmp_path)) and "\n" not in str(error), (changed, str(error))
        assert refused > 20

    return check
