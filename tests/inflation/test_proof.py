"""The proof runs by default, refuses what is wrong, and decides in float64 where rounding is magnified."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stvid
from stvid.errors import ConfigError
from stvid.inflation.inflate import inflate_with_report


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Sensing(Net):
    """Asks for the class of its layer, so that it computes something else once it is replaced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if type(self.first) is nn.Conv2d else 2 * x)


@pytest.mark.parametrize("mode", ["none", "conv", "shift", "head"])
def test_the_proof_is_made_and_attached(mode: str) -> None:
    model = stvid.inflate(Net().eval(), num_frames=3, img_size=16, temporal=mode)
    proof = model.inflation.proof
    assert proof.exact and proof.difference < 1e-5 and "exact" in str(proof) and not proof.reasons
    assert stvid.inflate(Net().eval(), num_frames=3, img_size=16, temporal=mode, prove=False).inflation.proof is None


class Logging(Net):
    """Remembers which batches it got; for images of at least `least` pixels."""

    batches: ClassVar[list[tuple[int, int]]] = []
    least = 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append((len(x), x.shape[-1]))
        if x.shape[-1] < self.least:
            raise ValueError("too small")
        return self.fc(self.second(self.first(x).relu()).amax((2, 3)))


@pytest.mark.parametrize(("least", "trained"), [(0, [(2, 40)]), (100, [(2, 40), (2, 160)])])
def test_the_proof_takes_few_passes(monkeypatch: pytest.MonkeyPatch, least: int, trained: list[Any]) -> None:
    monkeypatch.setattr(Logging, "least", least)
    monkeypatch.setattr(Logging, "batches", [])
    assert stvid.inflate(Logging().eval(), num_frames=8, img_size=160).inflation.proof.exact
    assert Logging.batches == [(2, 160), (3, 160), (6, 160), *trained]
    Logging.batches.clear()
    stvid.inflate(Logging().eval(), num_frames=8, img_size=160, prove=False)
    assert Logging.batches == [(2, 160), (3, 160), (2, 160)]


def test_a_network_that_computes_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Sensing: the video model does not compute.*NOT EQUAL.*prove=False"):
        stvid.inflate(Sensing().eval(), num_frames=2, img_size=16)
    assert stvid.inflate(Sensing().eval(), num_frames=2, img_size=16, prove=False).inflated == ["first"]
    assert stvid.inflate(Sensing().eval(), num_frames=2, img_size=16, temporal="shift").inflation.proof.exact
    assert not inflate_with_report(Sensing().eval(), num_frames=2, img_size=16).report.as_promised


def test_a_network_that_trains_otherwise_is_refused() -> None:
    class Choosy(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and len(x) == 2 and not isinstance(self.fc, nn.Linear):
                raise ValueError("no classifier")
            return super().forward(x)

    with pytest.raises(ConfigError, match=r"cannot be trained \(ValueError: no classifier\)"):
        stvid.inflate(Choosy().eval(), num_frames=2, img_size=16)

    class Untrainable(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise AssertionError("for inference")
            return super().forward(x)

    notes = stvid.inflate(Untrainable().eval(), num_frames=2, img_size=16).inflation.notes
    assert notes == ["the network itself cannot be trained here (AssertionError: for inference)"]


def test_networks_that_mix_the_batch_in_training_are_refused_at_any_size() -> None:
    class Joining(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits = self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))
            return logits.mean(0, keepdim=True) if self.training else logits

    for size in (16, 136):
        with pytest.raises(ConfigError, match=r"in training mode it gives \(1, 5\) for 2 clips"):
            stvid.inflate(Joining().eval(), num_frames=2, img_size=size)


class Chaotic(Net):
    """Doubles what two inputs differ by, sixteen times."""

    def __init__(self, mixes: bool = False, fixed: bool = False) -> None:
        super().__init__()
        self.mixes, self.fixed = mixes, fixed

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + 0.1 * x.mean((2, 3)).tanh()  # of the batch's groups, as in dynamic convolutions
        kernels = (self.first.weight[None] * scale[:, None, :, None, None]).flatten(0, 1)
        x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, groups=len(x)).view(len(x), 16, 14, 14)
        x = self.second(x.relu()).mean((2, 3)).mul(8).sigmoid()
        x = x.float() if self.fixed else x
        x = x * x.mean(0, keepdim=True) if self.mixes else x
        for _ in range(16):
            x = 3.99 * x * (1 - x)
        return self.fc(x)


def test_rounding_is_told_from_mixing() -> None:
    model = stvid.inflate(Chaotic().eval(), num_frames=2, img_size=16, temporal="none")
    assert model.inflation.proof.exact
    with pytest.raises(ConfigError, match="other images in its batch"):
        stvid.inflate(Chaotic(mixes=True).eval(), num_frames=2, img_size=16, temporal="none")


@pytest.mark.parametrize("mode", ["none", "shift"])
def test_a_classifier_of_zeros_does_not_hide_mixing(mode: str) -> None:
    class Centred(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x).relu()).mean((2, 3))
            return self.fc(x - 0.5 * x.mean(0))

    network = Centred().eval()
    nn.init.zeros_(network.fc.weight)
    with pytest.raises(ConfigError, match="other images in its batch"):
        stvid.inflate(network, num_frames=2, img_size=16, temporal=mode)


def test_a_network_that_fixes_its_type_is_judged_by_rounding() -> None:
    model = stvid.inflate(Chaotic(fixed=True).eval(), num_frames=2, img_size=16, temporal="shift")
    proof = model.inflation.proof
    assert proof.computed_in == "float32" and (proof.exact or "rounding alone" in proof.reasons[0])


@torch.no_grad()
def test_logits_that_hardly_depend_on_the_image_are_judged_by_rounding() -> None:
    """As those of a deep network that nobody trained: the image changes their last digits."""
    network, wrong = Net().eval(), Sensing().eval()
    for each in (network, wrong):
        each.first.weight.mul_(1e-11)
        each.first.bias.fill_(0.7)
    proof = stvid.inflate(network, num_frames=3, img_size=16).inflation.proof
    assert not proof.exact and "hardly depend on the image" in proof.reasons[0]
    with pytest.raises(ConfigError, match="NOT EQUAL"):
        stvid.inflate(wrong, num_frames=3, img_size=16)


@torch.no_grad()
def test_the_rounding_of_averaging_filters_is_no_difference() -> None:
    """A layer that pads by itself gets a filter behind it, whose shares of a third no float32 holds."""
    network = Net().eval()
    network.first = nn.Conv2d(3, 16, 3, padding="same")
    network.first.weight.mul_(1e-5)
    network.first.bias.fill_(0.7)
    model = stvid.inflate(network, num_frames=3, img_size=16, init="average")
    report = model.inflation
    assert len(model.temporal) == 1 and report.aligned is not None and report.difference > 1e-5 > report.aligned


def test_the_generators_of_random_numbers_are_left_alone() -> None:
    network = nn.Sequential(Net(), nn.Dropout(0.5)).eval()
    torch.manual_seed(3)
    stvid.inflate(network, num_frames=2, img_size=16, temporal="none")
    found = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(1))


def test_the_users_network_stays_as_it_was() -> None:
    network: Any = Net().train()
    before = copy.deepcopy(network.state_dict())
    stvid.inflate(network, num_frames=2, img_size=16)
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network.first._forward_hooks and not network.first._forward_pre_hooks
