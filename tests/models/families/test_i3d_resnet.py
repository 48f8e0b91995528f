"""C2D, Slow and I3D on ResNets: the window of their pooling, and Non-local blocks."""

from __future__ import annotations

import json
from pathlib import Path

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch

import stvid
from stvid.models.families.i3d_resnet import NonLocal

GOLDENS = Path(__file__).parents[2] / "goldens"


def test_window_of_the_inflated_resnets() -> None:
    with torch.device("meta"):
        assert stvid.create_model("i3d_r50").head.window == (4, 7, 7)  # 256 pixels: trained at 224
        assert stvid.create_model("i3d_r50", num_frames=16, img_size=112).head.window == (8, 3, 3)
        assert stvid.create_model("slow_r50", num_frames=4, img_size=(112, 160)).head.window == (4, 3, 3)
        assert stvid.create_model("slow_r50", pool_size=(1, 2, 2)).head.window == (1, 2, 2)


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
