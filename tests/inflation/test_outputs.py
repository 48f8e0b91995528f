"""Logits are found in tuples, mappings and objects, in evaluation and in training."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.errors import ConfigError
from stvid.inflation.outputs import Reader, Wish, find_reader, training_reader

LOGITS, FEATURES, MAPS = torch.randn(2, 5), torch.randn(2, 16), torch.randn(2, 16, 4, 4)
Pair = namedtuple("Pair", ["logits", "aux"])


@pytest.mark.parametrize(
    ("output", "path", "declared"),
    [
        (LOGITS, (), None),
        ((LOGITS, FEATURES), (0,), None),
        ((FEATURES, LOGITS), (1,), 5),
        ({"features": FEATURES, "logits": LOGITS}, ("logits",), None),
        (SimpleNamespace(features=MAPS, logits=LOGITS), ("logits",), None),
        (Pair(LOGITS, FEATURES), ("logits",), None),
        ({"last_hidden_state": MAPS, "pooler_output": FEATURES}, ("pooler_output",), None),
        ([MAPS, (LOGITS,)], (1, 0), None),
    ],
)
def test_logits_are_found(output: Any, path: tuple[Any, ...], declared: int | None) -> None:
    reader = find_reader(output, 2, wish=Wish(declared), name="Net")
    assert reader == Reader((path,)) and reader(output).dim() == 2


def test_maps_are_features_for_a_new_classifier_alone() -> None:
    with pytest.raises(ConfigError, match=r"not logits.*give num_classes"):
        find_reader(MAPS, 2, wish=Wish(), name="Net")
    reader = find_reader([MAPS, MAPS * 2], 2, wish=Wish(as_features=True), name="Net")
    assert torch.allclose(reader([MAPS, MAPS * 2]), 2 * MAPS.mean((2, 3)), atol=1e-6)
    last = find_reader(MAPS.movedim(1, -1), 2, wish=Wish(as_features=True), name="Net")
    assert torch.allclose(last(MAPS.movedim(1, -1)), MAPS.mean((2, 3)), atol=1e-6)
    tokens = MAPS.flatten(2).transpose(1, 2)
    assert find_reader(tokens, 2, wish=Wish(as_features=True), name="Net")(tokens).shape == (2, 16)


def test_training_takes_the_logits_of_evaluation() -> None:
    assert training_reader((LOGITS, FEATURES), Reader(), 5) == Reader(((0,),))
    assert training_reader((FEATURES, LOGITS), Reader(), 5) == Reader(((1,),))
    assert training_reader((LOGITS, LOGITS), Reader(), 5, several=True) == Reader(((0,), (1,)))
    assert training_reader((LOGITS, LOGITS), Reader(), 5) == Reader(((0,),))
    assert training_reader(([LOGITS, LOGITS], FEATURES), Reader(), 5) == Reader(((0, 1),))
    with pytest.raises(ConfigError, match="returns a tuple without logits in training mode"):
        training_reader((MAPS,), Reader(), 5)


def test_of_several_logits_those_are_taken_that_most_layers_lead_to() -> None:
    several = [torch.randn(2, 5) for _ in range(3)]
    depths = {id(tensor): depth for tensor, depth in zip(several, (1, 3, 3), strict=True)}
    reader = find_reader((several, None), 2, wish=Wish(depth=lambda tensor: depths[id(tensor)]), name="Net")
    assert reader.paths == ((0, 1),) and "of 3 of its shape (logits= takes another)" in str(reader)
    assert find_reader((several, None), 2, wish=Wish(path=(0, 2)), name="Net")((several, None)) is several[2]
    with pytest.raises(ConfigError, match=r"logits 'aux': Net returns no tensor there.*logits at \[0, 0\], \[0, 1\]"):
        find_reader((several, None), 2, wish=Wish(path="aux"), name="Net")


class Exits(nn.Module):
    """Classifies at several depths, and returns all logits also in evaluation (RevCol, MSDNet)."""

    def __init__(self, first_last: bool = False) -> None:
        super().__init__()
        self.first_last = first_last
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
            for width in (3, 16, 16)
        )
        self.exits = nn.ModuleList(nn.Linear(16, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        outputs = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            outputs.append(leave(x.mean((2, 3))))
        return tuple(reversed(outputs)) if self.first_last else (outputs, None)


@pytest.mark.parametrize("first_last", [False, True])
def test_networks_that_classify_at_several_depths(first_last: bool) -> None:
    torch.manual_seed(0)
    network = Exits(first_last).eval()
    images = torch.randn(2, 3, 16, 16)
    still = images[:, :, None].repeat(1, 1, 2, 1, 1)
    outputs = network(images) if first_last else network(images)[0]
    deepest = outputs[0] if first_last else outputs[-1]
    model = stvid.inflate(network, num_frames=2, img_size=16)
    assert torch.allclose(model(still), deepest, atol=1e-5) and torch.allclose(model.train()(still), deepest, atol=1e-5)
    assert "which the most layers lead to" in model.inflation.notes[0]
    at = 1 if first_last else [0, 1]
    model = stvid.inflate(network, num_frames=2, img_size=16, logits=at)
    assert torch.allclose(model(still), outputs[1], atol=1e-5)
    again = stvid.inflate(network, num_frames=2, img_size=16, **model.recipe["hyperparameters"])
    assert torch.allclose(again(still), outputs[1], atol=1e-5)
    with pytest.raises(ConfigError, match="must be a position or a name"):
        stvid.inflate(network, num_frames=2, img_size=16, logits=0.5)


class TwoHeads(nn.Module):
    """The mean of two classifiers in evaluation, both in training (DeiT); or the second in training alone."""

    def __init__(self, distilled: bool) -> None:
        super().__init__()
        self.distilled = distilled
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.fc, self.second = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).mean((2, 3))
        if self.training:
            return self.fc(x), self.second(x)
        return (self.fc(x) + self.second(x)) / 2 if self.distilled else self.fc(x)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("mode", ["none", "conv", "shift"])
def test_networks_that_return_more_while_they_train(distilled: bool, mode: str) -> None:
    torch.manual_seed(0)
    network = TwoHeads(distilled).eval()
    model = stvid.inflate(network, num_frames=2, img_size=16, temporal=mode)
    assert model.inflation.proof.exact and any("returns a tuple" in note for note in model.inflation.notes)
    images = torch.randn(2, 3, 16, 16)
    still = images[:, :, None].repeat(1, 1, 2, 1, 1)
    logits = model.train()(still)
    expected = network(images)  # in evaluation mode: there is no dropout, so the main logits are the same
    assert torch.allclose(logits, expected, atol=1e-5)
    logits.sum().backward()
    assert model.network.body[0].weight.grad is not None and model.get_classifier().weight.grad is not None


def test_the_classifiers_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    networks = [
        transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, num_labels=5, **sizes)),
        transformers.Dinov2ForImageClassification(
            transformers.Dinov2Config(image_size=28, patch_size=14, num_labels=5, mlp_ratio=2, **sizes)
        ),
        transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], num_labels=5)
        ),
    ]
    for network in networks:
        modes = ("conv", "shift") if "ResNet" in type(network).__name__ else ("conv", "shift", "attention")
        for mode in modes:
            model = (
                stvid.inflate(network.eval(), num_frames=2, img_size=28, temporal=mode)
                if ("Dinov2" in type(network).__name__)
                else stvid.inflate(network.eval(), num_frames=2, img_size=32, temporal=mode)
            )
            assert model.inflation.proof.exact and "logits" in model.inflation.notes[0]
            assert model(torch.randn(1, 3, 2, *model.img_size)).shape == (1, 5)


def test_a_backbone_gets_a_classifier_on_top() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    network = Backbone().eval()
    model = stvid.inflate(network, num_frames=2, img_size=16, num_classes=3, temporal="head")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        seen = model.forward_head(model.forward_features(images[:, :, None].repeat(1, 1, 2, 1, 1)), pre_logits=True)
        assert torch.allclose(seen, network(images).mean((2, 3)), atol=1e-5)
    assert model.get_classifier().weight.shape == (3, 16)
