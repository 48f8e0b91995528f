"""Damage is the same for the same numbers, and changes what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np


def test_every_kind_of_damage_changes_the_bytes(load_tool: Callable[[str], Any]) -> None:
    damage = load_tool("fuzz_damage")
    content = bytes(range(256)) * 8
    found: dict[str, set[bool]] = {}
    for number in range(300):
        kind, changed = damage.mutate(content, np.random.default_rng(number))
        assert (kind, changed) == damage.mutate(content, np.random.default_rng(number))
        found.setdefault(kind, set()).add(changed != content)
    assert len(found) == 9 and all(True in changed for changed in found.values())


def test_values_of_json_are_changed_one_by_one(load_tool: Callable[[str], Any]) -> None:
    damage = load_tool("fuzz_damage")
    tree = {"a": [1, 2], "b": {"c": "x"}}
    changed = {damage.change_value(json.dumps(tree).encode(), np.random.default_rng(number)) for number in range(60)}
    assert len(changed) > 30
    assert all(json.dumps(tree).encode() != text and json.loads(text) is not Ellipsis for text in changed)
