from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stvid.weight_files import states
from stvid.weight_files.states import find_candidates, is_averaged, to_tensor

NETWORK = {"stem.weight": torch.ones(2), "blocks.0.weight": torch.ones(3), "blocks.1.weight": torch.ones(4)}
BLOCKS = {key: value for key, value in NETWORK.items() if "blocks" in key}


def under(prefix: str, state: dict[str, torch.Tensor] = NETWORK) -> dict[str, torch.Tensor]:
    return {prefix + key: value.clone() for key, value in state.items()}


def place_of(content: Any) -> str:
    """Returns the name of the first candidate whose keys are those of the network."""
    return next(found.name for found in find_candidates(content) if set(found.state) == set(NETWORK))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (NETWORK, ""),
        ({"state_dict": NETWORK, "epoch": 3}, "state_dict"),
        ({"state_dict": {"model": NETWORK}}, "state_dict/model"),
        ({"my_own_name": NETWORK}, "my_own_name/"),
        ({"optimizer": {"target": NETWORK, "state": {}}}, "optimizer/target"),
        ({"ema": {"module": under("module.")}}, "ema/module: module."),
        ({"state_dict": under("net.a.b.c.d.")}, "state_dict: net.a.b.c.d."),
        ({"state_dict": {**under("model."), "criterion.weight": torch.ones(2)}}, "state_dict: model."),
        ({"state_dict": {**under("module.encoder_q."), **under("module.encoder_k.")}}, "state_dict: module.encoder_q."),
        ({"teacher": under("backbone."), "student": under("module.backbone.")}, "student: module.backbone."),
        (under("_forward_module._orig_mod."), ""),
        ({"stem._checkpoint_wrapped_module.weight": torch.ones(2), **BLOCKS}, ""),
    ],
)
def test_the_network_is_found_wherever_it_stands(content: Any, place: str) -> None:
    assert place_of(content) == place


def test_inner_marks_of_data_parallel_are_taken_out_as_a_second_guess() -> None:
    state = {"stem.module.weight": torch.ones(2), "blocks.0.module.weight": torch.ones(2)}
    first, *others = find_candidates(state)
    assert set(first.state) == set(state)
    assert any(set(found.state) == {"stem.weight", "blocks.0.weight"} for found in others)


def test_averaged_copies_come_last_and_neighbours_are_counted() -> None:
    content = {"state_dict": {**under("ema.module."), **under("model."), "criterion.weight": torch.ones(2)}}
    found = [each for each in find_candidates(content) if set(each.state) == set(NETWORK)]
    assert [each.prefix for each in found] == ["model.", "ema.module."]
    assert [each.averaged for each in found] == [False, True]
    assert found[0].beside == {"ema.": 3, "criterion.": 1}


@pytest.mark.parametrize("name", ["ema", "model_ema", "state_dict_ema", "teacher.backbone.", "swa_model", "encoder_k."])
def test_names_of_averaged_copies(name: str) -> None:
    assert is_averaged(name)


@pytest.mark.parametrize("name", ["model", "schema.", "student", "avgpool.", "target", "encoder_q.", "network"])
def test_names_of_plain_networks(name: str) -> None:
    assert not is_averaged(name)


def test_optimizers_and_rings_are_passed_by() -> None:
    ring: dict[str, Any] = {"state_dict": dict(NETWORK)}
    ring["itself"] = ring
    ring["optimizer"] = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    found = find_candidates(ring)
    assert found[0].name == "state_dict"
    assert all("exp_avg" not in key for each in found for key in each.state)


def test_a_content_that_multiplies_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MAX_TENSORS", 100_000)
    bottom: dict[str, Any] = {"weight": torch.ones(1)}
    for _ in range(10):
        bottom = {str(number): bottom for number in range(50)}
    with pytest.raises(ValueError, match="refers to itself again and again"):
        find_candidates({"state_dict": bottom})


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_tensors_of_all_kinds() -> None:
    big_endian = to_tensor(np.arange(3, dtype=">f4"))
    assert big_endian is not None and big_endian.tolist() == [0, 1, 2]
    assert to_tensor(np.float64(2.5)) == 2.5
    fixed = np.arange(3)
    fixed.flags.writeable = False
    assert torch.equal(to_tensor(fixed), torch.arange(3))  # type: ignore[arg-type]
    assert to_tensor(np.array(["text"])) is None and to_tensor("text") is None
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)
    assert torch.equal(to_tensor(quantised), torch.ones(2))  # type: ignore[arg-type]
    assert to_tensor(torch.ones(2).to_sparse()) is None
