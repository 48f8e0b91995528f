from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from stvid.errors import CheckpointError
from stvid.weight_files.distributed import read_distributed

STATE = {"a.weight": torch.arange(15.0).reshape(5, 3), "b": torch.arange(4, dtype=torch.float64)}


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    content = {"model": STATE, "optimizer_0": {"moment": torch.ones(3)}, "step": 3}
    dcp.save(content, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_tensors_come_back_and_optimizers_stay(folder: Path) -> None:
    content = read_distributed(folder).content
    assert list(content) == ["model"]
    assert all(torch.equal(content["model"][key], STATE[key]) for key in STATE)


def change(folder: Path, edit: Any) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_pieces_are_joined(folder: Path) -> None:
    whole = STATE["a.weight"]
    top, bottom = folder / "top", folder / "bottom"
    for path, part in ((top, whole[:2]), (bottom, whole[2:])):
        torch.save(part.clone(), path)

    def edit(metadata: Any) -> None:
        (index,) = [index for index in metadata.storage_data if index.fqn == "model.a.weight"]
        info = metadata.storage_data.pop(index)
        for path, begin in ((top, 0), (bottom, 2)):
            place = type(info)(path.name, 0, path.stat().st_size)
            metadata.storage_data[type(index)("model.a.weight", [begin, 0])] = place

    change(folder, edit)
    assert torch.equal(read_distributed(folder).content["model"]["a.weight"], whole)


def set_place(name: str, value: Any) -> Any:
    def edit(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            setattr(info, name, value)

    return edit


def set_size(metadata: Any) -> None:
    for facts in metadata.state_dict_metadata.values():
        facts.size = torch.Size([1 << 40])


class Harm:
    def __reduce__(self) -> Any:
        return (os._exit, (3,))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_place("relative_path", "../../etc/passwd"), "missing or not in the folder"),
        (set_place("relative_path", "gone"), "missing or not in the folder"),
        (set_place("offset", 1 << 40), "is cut off"),
        (set_place("offset", -1), "no file and number"),
        (set_place("offset", 7), "not where the list says"),
        (set_place("relative_path", Harm()), "no file and number"),
        (set_place("transform_descriptors", ["zstd"]), "compressed"),
        (set_size, "do not fill its shape"),
    ],
)
def test_a_list_that_lies_is_refused(folder: Path, edit: Any, reason: str) -> None:
    change(folder, edit)
    with pytest.raises(CheckpointError, match=reason) as error:
        read_distributed(folder)
    assert "dcp_to_torch" in str(error.value)


def test_a_list_that_is_none(folder: Path) -> None:
    for data in (b"", b"text", pickle.dumps({"a": 1}), pickle.dumps(Harm())):
        (folder / ".metadata").write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged folder"):
            read_distributed(folder)
