"""I3D on Inception-v1: the published files of its flow stream."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import stvid

GOLDENS = Path(__file__).parents[2] / "goldens"


def test_weights_of_the_flow_streams(tmp_path: Path) -> None:
    record = json.loads((GOLDENS / "i3d_inception_v1__16x224.json").read_text())
    state = {key: torch.rand(shape) for key, shape in record["state"].items() if key not in record["int_keys"]}
    stem = "Conv3d_1a_7x7.conv3d.weight"
    state[stem] = state[stem][:, :2].contiguous()
    torch.save(state, tmp_path / "flow_imagenet.pt")
    for model in (
        stvid.create_model("i3d_inception", in_chans=2, checkpoint=tmp_path / "flow_imagenet.pt"),
        stvid.load_model(tmp_path / "flow_imagenet.pt", name="i3d_inception"),
    ):
        assert torch.equal(model.conv1.conv.weight, state[stem])
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 2, 8, 32, 32)).shape == (1, 400)
