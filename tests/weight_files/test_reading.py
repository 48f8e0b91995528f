from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stvid.errors import CheckpointError
from stvid.weight_files import read_weight_file


def test_files_folders_and_indexes(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    assert list(read_weight_file(tmp_path / "pytorch_model.bin").content) == ["a"]
    for source in (tmp_path, str(tmp_path), index):
        assert list(read_weight_file(source).content["state_dict"]) == ["a"]
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        read_weight_file(tmp_path / "gone")
