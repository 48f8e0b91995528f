"""Non-local blocks: recorded outputs of SlowFast's, and the start as the identity."""

from __future__ import annotations

import json
from pathlib import Path

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch

from stvid.models.nonlocal_block import NonLocal

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize("mode", ["softmax", "dot_product"])
def test_nonlocal_block_golden(mode: str) -> None:
    record = json.loads((GOLDENS / "blocks" / f"nonlocal_{mode}_block__4x6.json").read_text())
    state = fill.fill_state({key: shape for key, shape in record["state"].items() if key not in record["int_keys"]})
    names = {key: key.replace("conv_", "").replace("bn.", "norm.") for key in state}
    block = NonLocal(64, mode=mode).eval()
    loaded = block.load_state_dict({names[key]: torch.from_numpy(value) for key, value in state.items()}, strict=False)
    assert set(loaded.missing_keys) <= {"norm.num_batches_tracked"} and not loaded.unexpected_keys
    with torch.no_grad():
        out = block.double()(torch.from_numpy(fill.make_input(record["input_shape"])).double()).flatten()[:400].numpy()
    assert np.abs(out - np.array(record["logits"])).max() < 1e-7 * record["logits_std"]


def test_starts_as_the_identity() -> None:
    block = NonLocal(8)
    block.start_as_identity()
    x = torch.randn(2, 8, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(block(x), x)
