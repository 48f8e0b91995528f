"""Weights of a 2D network are found in files of self-supervised and of timm's training, without their heads."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import stvid
from stvid.errors import CheckpointError
from stvid.inflation.inflate import inflate_with_report

NETWORK = torchvision.models.resnet18(num_classes=10).eval()
STATE = NETWORK.state_dict()
BODY = {key: value for key, value in STATE.items() if not key.startswith("fc.")}
CHILDREN = [name for name, _ in NETWORK.named_children()]


def under(prefix: str, state: dict[str, Tensor], *, plus: float = 0) -> dict[str, Tensor]:
    return {prefix + key: value + plus if value.is_floating_point() else value for key, value in state.items()}


def numbered(key: str) -> str:
    first, _, rest = key.partition(".")
    return f"{CHILDREN.index(first)}.{rest}"


FILES: dict[str, tuple[Any, str]] = {
    "moco": (
        {
            "state_dict": {
                **under("module.encoder_q.", BODY),
                "module.encoder_q.fc.weight": torch.randn(128, 512),
                "module.encoder_q.fc.bias": torch.randn(128),
                **under("module.encoder_k.", BODY, plus=1),
                "module.queue": torch.randn(128, 64),
            }
        },
        r"a projection head is left out \(fc\)",
    ),
    "moco v3": (
        {
            "state_dict": {
                **under("module.base_encoder.", BODY),
                "module.base_encoder.fc.0.weight": torch.randn(64, 512),
                "module.base_encoder.fc.3.weight": torch.randn(64, 64),
                **under("module.momentum_encoder.", BODY, plus=1),
                "module.predictor.0.weight": torch.randn(64, 64),
            }
        },
        r"a projection head is left out \(fc.0, fc.3\)",
    ),
    "lightly": (
        {
            "state_dict": {
                **under("backbone.", {numbered(key): value for key, value in BODY.items()}),
                "projection_head.layers.0.weight": torch.randn(64, 512),
            }
        },
        r"what stands beside it is left out \(projection_head\)",
    ),
    "simclr": (
        {"state_dict": {**under("encoder.", BODY), "projector.0.weight": torch.randn(64, 512)}},
        r"what stands beside it is left out \(projector\)",
    ),
    "byol": (
        {
            **under("online_encoder.net.", BODY),
            "online_encoder.projector.net.0.weight": torch.randn(64, 512),
            **under("target_encoder.net.", BODY, plus=1),
        },
        r"what stands beside it is left out \(online_encoder, target_encoder\)",
    ),
    "dino": (
        {
            "student": {**under("module.backbone.", BODY), "module.head.mlp.0.weight": torch.randn(64, 512)},
            "teacher": {**under("backbone.", BODY, plus=1), "head.mlp.0.weight": torch.randn(64, 512)},
            "epoch": 3,
        },
        r"student.*what stands beside it is left out \(head\)",
    ),
}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        *((kind, "module") for kind in FILES),
        *(
            pytest.param(kind, "torchvision:resnet18", marks=[pytest.mark.slow] if at else [])
            for at, kind in enumerate(FILES)
        ),
    ],
)
def test_self_supervised_files(kind: str, source: str, tmp_path: Path) -> None:
    content, note = FILES[kind]
    torch.save(content, tmp_path / "w.pth")
    given = torchvision.models.resnet18(num_classes=10) if source == "module" else source
    options: dict[str, Any] = {"num_frames": 2, "img_size": 32, "weights": tmp_path / "w.pth", "temporal": "shift"}
    with pytest.raises(CheckpointError, match="say for how many classes it gets a new one"):
        inflate_with_report(given, prove=False, **options)
    result = inflate_with_report(given, num_classes=3, **options)
    assert result.report.exact and result.model.num_classes == 3
    own = result.model.network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in BODY.items())
    assert any(re.search(note, said) for said in result.report.notes)


def test_a_training_checkpoint_of_timm(tmp_path: Path) -> None:
    content = {
        "epoch": 1,
        "arch": "resnet18",
        "state_dict": STATE,
        "state_dict_ema": under("", STATE, plus=1),
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "w.pth.tar")
    model = stvid.inflate(
        "timm:resnet18", num_frames=2, img_size=32, checkpoint=tmp_path / "w.pth.tar", temporal="none"
    )
    assert model.num_classes == 10 and torch.equal(model.network.conv1.weight, STATE["conv1.weight"])
    assert "state_dict" in model.inflation.weights and not model.inflation.notes


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: "):
        stvid.inflate("torchvision:resnet50", num_frames=2, img_size=32, weights=tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        stvid.inflate("torchvision:resnet18", num_frames=2, img_size=32, weights=tmp_path / "empty.pth")
