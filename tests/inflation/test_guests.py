"""A user's network is copied without its wrappers and history; what cannot be inflated is refused in one line."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.errors import ConfigError
from stvid.inflation.guests import constants_of, copied, other_constants, own_copy


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 5)).eval()


def test_wrappers_are_taken_off() -> None:
    compiled = torch.compile(small(), backend="eager")
    for wrapped in (compiled, nn.DataParallel(small()), nn.Sequential(torch.compile(small(), backend="eager"))):
        network = own_copy(wrapped, (16, 16))
        assert not any("_orig_mod" in name for name, _ in network.named_modules())
        assert stvid.inflate(wrapped.eval(), num_frames=2, img_size=16).inflation.proof.exact


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_scripted_networks_are_refused() -> None:
    scripted = torch.jit.trace(small(), torch.randn(1, 3, 16, 16))
    with pytest.raises(ConfigError, match=r"TorchScript module.*give the network that it was made from"):
        stvid.inflate(scripted, num_frames=2, img_size=16)


class Remembering(nn.Module):
    """Keeps what it has computed last, with its history."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.inner(x)
        return self.last


def test_a_network_with_a_history_is_copied() -> None:
    network = Remembering().eval()
    network(torch.randn(1, 3, 16, 16))
    assert network.last.grad_fn is not None
    twin = copied(network)
    assert torch.equal(twin.last, network.last) and twin.last.grad_fn is None
    assert stvid.inflate(network, num_frames=2, img_size=16).inflation.proof.exact


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_learn_their_sizes() -> None:
    network = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(5)).eval()
    model = stvid.inflate(network, num_frames=2, img_size=16)
    assert model.inflation.proof.exact and model(torch.randn(1, 3, 2, 16, 16)).shape == (1, 5)
    with pytest.raises(ConfigError, match="do not know their sizes yet"):
        stvid.inflate(nn.Sequential(nn.LazyConv2d(8, 3), nn.Linear(3, 4)), num_frames=2, img_size=16)


@pytest.mark.parametrize("dtype", [torch.cfloat, torch.bfloat16])
def test_parameters_of_another_type_come_first(dtype: torch.dtype) -> None:
    class Filtered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.ones(3, 16, 9, dtype=dtype))
            self.inner = small()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[2:]))

    for mode in ("none", "conv", "shift"):
        model = stvid.inflate(Filtered().eval(), num_frames=2, img_size=16, temporal=mode)
        assert model.inflation.proof.exact


def test_a_state_that_is_no_tensor_is_refused() -> None:
    class Scaled(nn.Linear):
        def get_extra_state(self) -> dict[str, float]:
            return {"scale": 1.0}

        def set_extra_state(self, state: dict[str, float]) -> None:
            assert state["scale"] == 1.0

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Scaled(4, 5))
    with pytest.raises(ConfigError, match=r"Sequential: its state holds 3._extra_state, a dict and no tensor"):
        stvid.inflate(network, num_frames=2, img_size=16)


def test_constants_are_compared_as_they_round() -> None:
    network = nn.Module()
    network.table, network.count = torch.linspace(0, 1, 100), torch.arange(4)
    stored = json.loads(json.dumps(constants_of(network)))
    network.table = network.table.double() + 1e-7
    assert not other_constants(stored, constants_of(network))
    network.count, network.cache = network.count.flip(0), torch.ones(2)
    assert other_constants(stored, constants_of(network)) == ["count"]


def test_strided_convolutions_of_single_pixels_are_trained_in_the_usual_layout() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 1, stride=2), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(network, nn.Linear(16, 5))
    model = stvid.inflate(network.eval(), num_frames=2, img_size=16, temporal="none", prove=False)
    branch, behind = model.network[0][0], model.network[0][1]
    assert branch.weight.stride() == (3, 1, 1, 1)
    assert behind.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    branch.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].is_contiguous()))
    clip = torch.randn(2, 3, 2, 16, 16)
    for _ in range(3):  # in channels_last the gradient of the weight ends the process
        model.train()(clip).square().sum().backward()
    with torch.no_grad():
        model.eval()(clip)
    assert seen == [True, True, True, False]
