from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stvid.errors import CheckpointError
from stvid.weight_files.folders import holds_weights, read_folder, read_index

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3), "c": torch.ones(1)}
CONFIG = {"model_type": "vivit", "id2label": {"0": "run"}}


def same(read: Any) -> bool:
    return sorted(read) == list(STATE) and all(torch.equal(read[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers(name: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / name) if name.endswith("safetensors") else torch.save(STATE, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    content = read_folder(tmp_path).content
    assert same(content["state_dict"]) and content["transformers"]["config"] == CONFIG
    assert content["transformers"]["preprocessor"] == {"image_mean": [0.5, 0.5, 0.5]}


def shards(folder: Path, places: dict[str, str]) -> Path:
    for name in {"x.safetensors", "y.safetensors"}:
        save_file({key: STATE[key] for key, place in places.items() if place == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


PLACES = {"a": "x.safetensors", "b": "y.safetensors", "c": "x.safetensors"}


def test_shards_and_their_index(tmp_path: Path) -> None:
    index = shards(tmp_path, PLACES)
    assert same(read_index(index).content["state_dict"]) and same(read_folder(tmp_path).content["state_dict"])


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ({"a": "../../etc/passwd"}, "not in its folder"),
        ({"a": "/etc/passwd"}, "not in its folder"),
        ({"a": "sub/../../x"}, "not in its folder"),
        ({"a": ""}, "not in its folder"),
        ({"a": "z.safetensors"}, "'z.safetensors', which is missing"),
        ({"b": "x.safetensors"}, "lacks b"),
        ({}, "no weight_map"),
        (["a"], "no weight_map"),
    ],
)
def test_an_index_stays_in_its_folder(places: Any, reason: str, tmp_path: Path) -> None:
    index = shards(tmp_path, PLACES)
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=reason):
        read_index(index)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", "3"])
def test_an_index_that_is_no_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"index\.json: is no (JSON|index)"):
        read_index(path)


def deepspeed(folder: Path) -> Path:
    (folder / "global_step3").mkdir()
    (folder / "latest").write_text("global_step3\n")
    return folder / "global_step3"


def test_a_folder_of_deepspeed(tmp_path: Path) -> None:
    step = deepspeed(tmp_path)
    torch.save({"module": STATE}, step / "mp_rank_00_model_states.pt")
    assert same(read_folder(tmp_path).content["module"]) and same(read_folder(step).content["module"])
    lightning = tmp_path / "epoch=1.ckpt"
    lightning.mkdir()
    step.rename(lightning / "checkpoint")
    assert same(read_folder(lightning).content["module"])
    for name in ("../elsewhere", "..", "gone"):
        (tmp_path / "latest").write_text(name)
        with pytest.raises(CheckpointError, match=r"which is (not in its folder|missing)"):
            read_folder(tmp_path)


def part(tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    flat = tensor.reshape(-1).float()
    width = -(-len(flat) // ranks)
    return torch.nn.functional.pad(flat, (0, width * ranks - len(flat)))[rank * width : (rank + 1) * width]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_parameters_that_zero_3_has_cut(ranks: int, tmp_path: Path) -> None:
    step = deepspeed(tmp_path)
    shapes = {key: value.shape for key, value in STATE.items() if key != "c"}
    for rank in range(ranks):
        flat = torch.cat([part(STATE[key], rank, ranks) for key in shapes])
        optimizer = {"optimizer_state_dict": {"fp32_flat_groups": [flat]}}
        model = {"module": {"c": STATE["c"]}, "buffer_names": ["c"], "param_shapes": [shapes]}
        torch.save(optimizer, step / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        torch.save(model, step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    assert same(read_folder(tmp_path).content["module"])
    torch.save({"optimizer_state_dict": {}}, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py"):
        read_folder(tmp_path)


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    assert not holds_weights(tmp_path)
    with pytest.raises(CheckpointError, match="folder without weights"):
        read_folder(tmp_path)
    (tmp_path / "model.ckpt-3.index").touch()
    with pytest.raises(CheckpointError, match="TensorFlow"):
        read_folder(tmp_path)
    flax = tmp_path / "flax"
    flax.mkdir()
    (flax / "checkpoint").write_bytes(b"\x81\xa1a\x01")
    assert holds_weights(flax) and read_folder(flax).content == {"a": 1}
