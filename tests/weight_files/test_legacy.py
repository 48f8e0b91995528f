from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from typing import Any

import pytest
import torch

from stvid.weight_files.legacy import read_pickle
from stvid.weight_files.pickles import DamagedFile

BASE = torch.arange(24.0).reshape(4, 6)
CONTENT = {
    "a": BASE,
    "view": BASE[1:3, ::2],
    "half": torch.ones(3, dtype=torch.float16),
    "none": torch.empty(0),
    "n": 3,
}


def saved(content: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    return stream.getvalue()


def read(data: bytes, foreign: Counter[str] | None = None) -> Any:
    return read_pickle(memoryview(bytearray(data)), Counter() if foreign is None else foreign)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_the_older_format_of_torch(protocol: int) -> None:
    again = read(saved(CONTENT, protocol))
    assert again["n"] == 3
    for name in ("a", "view", "half", "none"):
        assert torch.equal(again[name], CONTENT[name]) and again[name].dtype == CONTENT[name].dtype
    assert again["view"].untyped_storage().data_ptr() == again["a"].untyped_storage().data_ptr()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_tensors(protocol: int) -> None:
    again = read(pickle.dumps(CONTENT, protocol=protocol))
    assert torch.equal(again["a"], BASE) and torch.equal(again["view"], BASE[1:3, ::2])


class Harm:
    def __reduce__(self) -> Any:
        return (os._exit, (3,))


def test_foreign_classes_are_counted_once() -> None:
    foreign: Counter[str] = Counter()
    assert torch.equal(read(saved({**CONTENT, "harm": Harm()}), foreign)["a"], BASE)
    assert sum(foreign.values()) == 1


def test_a_network_that_was_saved_whole() -> None:
    network = torch.nn.Linear(2, 3)
    again = read(saved(network))
    assert torch.equal(again.attributes["_parameters"]["weight"], network.weight)


def test_damage_is_said() -> None:
    whole = saved(CONTENT)
    for cut in (len(whole) - 8, len(whole) // 2, 300, 60):
        with pytest.raises(DamagedFile):
            read(whole[:cut])
    bare = saved({"a": BASE})
    place = bare.rindex((24).to_bytes(8, "little"))
    for count in (1 << 60, -1):
        with pytest.raises(DamagedFile, match="cut off"):
            read(bare[:place] + count.to_bytes(8, "little", signed=True) + bare[place + 8 :])
    with pytest.raises(DamagedFile, match="has 4 bytes for 24 elements"):
        read(bare[:place] + (1).to_bytes(8, "little") + bare[place + 8 :])


def test_files_within_files_end() -> None:
    class Inner:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def __reduce__(self) -> Any:
            return (torch.storage._load_from_bytes, (self.data,))

    data = pickle.dumps({"a": 1})
    for _ in range(4):
        data = pickle.dumps(Inner(data))
    assert read(data) == {"a": 1}
    with pytest.raises(DamagedFile, match="within the pickle"):
        read(pickle.dumps(Inner(data)))
