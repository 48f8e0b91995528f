"""Where the features of an inflated network are read: by its own methods, if these make what the network makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import stvid


class Split(nn.Module):
    """Has the methods that timm's networks have, and counts how often the first one runs."""

    def __init__(self, *, calls_it: bool = True, other: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)
        self.calls_it, self.other = calls_it, other
        self.runs: list[int] = []

    def forward_features(self, x: Tensor) -> Tensor:
        self.runs.append(len(x))
        return self._maps(2 * x if self.other else x)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x) if self.calls_it else self._maps(x))

    def _maps(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).relu()


@pytest.mark.parametrize(
    ("network", "runs", "maps"),
    [
        (Split(), [2, 3, 1, 2], True),  # both examinations, the search for the features, and the clip
        (Split(calls_it=False), [1], True),
        (Split(calls_it=False, other=True), [1], False),
    ],
)
def test_the_features_are_what_the_networks_own_method_makes(network: Split, runs: list[int], maps: bool) -> None:
    model = stvid.inflate(network.eval(), num_frames=2, img_size=32, temporal="shift", prove=False)
    assert model.network.runs == runs and "forward_features" not in vars(model.network)
    features = model.forward_features(torch.randn(1, 3, 2, 32, 32))
    assert (features.shape == (1, 8, 2, 8, 8)) == maps
    assert model.forward_head(features).shape == (1, 5)


def test_a_method_that_the_user_put_there_stays() -> None:
    network = Split().eval()
    network.forward_features = network._maps  # type: ignore[method-assign]
    model = stvid.inflate(network, num_frames=2, img_size=32, temporal="shift", prove=False)
    assert "forward_features" in vars(model.network)
    assert model.forward_features(torch.randn(1, 3, 2, 32, 32)).shape == (1, 8, 2, 8, 8)


class Property(Split):
    """Has features that are no method."""

    @property
    def forward_features(self) -> Callable[[Tensor], Tensor]:  # type: ignore[override]
        return self._maps


class WithModule(nn.Module):
    """Has features that are a module."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.forward_features, self.fc = nn.Sequential(*layers), nn.Linear(8, 5)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("kind", [WithModule, Property])
def test_features_may_be_a_module_or_a_property(kind: type[nn.Module]) -> None:
    model = stvid.inflate(kind().eval(), num_frames=2, img_size=32, temporal="shift", prove=False)
    assert model.forward_features(torch.randn(1, 3, 2, 32, 32)).shape == (1, 8, 2, 8, 8)


def test_a_head_may_overwrite_the_features() -> None:
    class Overwriting(Split):
        def forward_head(self, x: Tensor) -> Tensor:
            return self.fc(nn.functional.silu(x, inplace=True).mean((2, 3)))

    model = stvid.inflate(Overwriting().eval(), num_frames=2, img_size=32, temporal="shift", prove=False)
    assert model.forward_features(torch.randn(1, 3, 2, 32, 32)).shape == (1, 8, 2, 8, 8)
