"""An inflated network as a model: layouts in memory, threads, files, optimisation."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.checkpoints import describe
from stvid.errors import CheckpointError


class Net(nn.Module):
    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.view = view
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 64 if view else 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.norm(self.first(x)).relu()).relu()).relu()
        return self.fc(x.view(x.size(0), -1) if self.view else x.mean((2, 3)))


def build(*, view: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(view).eval()


@pytest.mark.parametrize("mode", ["none", "shift", "conv"])
def test_a_network_that_flattens_by_view_runs_in_the_usual_layout(mode: str) -> None:
    network = build(view=True)
    model = stvid.inflate(network, num_frames=3, img_size=16, temporal=mode)
    assert not model.time.channels_last and model.inflation.proof.exact
    assert stvid.inflate(build(), num_frames=3, img_size=16, temporal=mode).time.channels_last
    fast = stvid.optimize(model, precision="float32")
    clip = torch.randn(1, 3, 3, 16, 16)
    assert torch.allclose(fast(clip), model(clip), atol=1e-4)


@pytest.mark.parametrize("mode", ["shift", "conv"])
def test_threads_with_clips_of_different_lengths(mode: str) -> None:
    model = stvid.inflate(build(), num_frames=4, img_size=16, temporal=mode)
    clips = [torch.randn(1, 3, frames, 16, 16) for frames in (2, 4, 6, 8, 3, 5) * 20]

    def run(clip: Tensor) -> Tensor:
        with torch.no_grad():
            return model(clip)

    wanted = [run(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, clips))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("mode", ["shift", "conv"])
def test_threads_that_look_at_features(mode: str) -> None:
    model = stvid.inflate(build(), num_frames=4, img_size=16, temporal=mode)
    model.set_grad_checkpointing()
    clips = [torch.randn(1, 3, frames, 16, 16) for frames in (2, 4, 6, 8, 3, 5) * 20]

    def run(clip: Tensor) -> list[Tensor]:
        with torch.no_grad():
            features, maps = model.forward_intermediates(clip)
            return [features, *maps, model(clip)]

    wanted = [run(clip) for clip in clips]
    again = copy.deepcopy(model)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, clips))
    for first, second in zip(found, wanted, strict=True):
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(first, second, strict=True))
    assert len(model.feature_info) == 2 and [maps.shape[2] for maps in found[0][1:3]] == [2, 2]
    assert torch.equal(again.forward_intermediates(clips[0])[0], model.forward_intermediates(clips[0])[0])


def test_looking_at_features_changes_nothing_in_other_calls() -> None:
    model = stvid.inflate(build(), num_frames=2, img_size=16)
    clip = torch.randn(1, 3, 2, 16, 16)
    wanted = model(clip)

    def change(index: int, maps: Tensor) -> Tensor:
        assert torch.equal(model(clip), wanted)  # a call within a call
        return maps * 2 if index == 0 else maps

    changed = model.encode(clip, change)
    assert torch.equal(model(clip), wanted) and not torch.allclose(changed, model.forward_features(clip))


def test_a_saved_model_of_the_users_own_network(tmp_path: Path) -> None:
    model = stvid.inflate(build(), num_frames=2, img_size=16, num_classes=3)
    stvid.save_model(model, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"network of your own, class Net.*network=Net\(\.\.\.\)"):
        stvid.load_model(tmp_path / "x.safetensors")
    torch.manual_seed(1)
    again = stvid.load_model(tmp_path / "x.safetensors", network=Net())
    clip = torch.randn(1, 3, 2, 16, 16)
    assert torch.equal(again(clip), model(clip)) and not again.training and again.recipe == model.recipe
    native = stvid.create_model("timm/test_resnet", num_classes=3, num_frames=2, img_size=64)
    stvid.save_model(native, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="leave network out"):
        stvid.load_model(tmp_path / "y.safetensors", network=Net())


class Positions(Net):
    """Has tables that are in no file of its weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(8, 1, 1, generator=generator)
        self.register_buffer("mask", torch.rand(16, 1, 1, generator=generator), persistent=False)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu() + self.table).relu() * self.mask
        self.seen = x.mean((2, 3))
        return self.fc(self.seen)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_network_with_other_constants_is_told(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = stvid.inflate(Positions(0).eval(), num_frames=2, img_size=16)
    file = tmp_path / f"x.{suffix}"
    stvid.save_model(model, file)
    clip = torch.randn(1, 3, 2, 16, 16)
    same = Positions(0).eval()
    same(clip[:, :, 0])  # what it remembers of a batch is no constant
    assert torch.equal(stvid.load_model(file, network=same)(clip), model(clip)) and not caplog.records
    stvid.load_model(file, network=Positions(1))
    assert len(caplog.records) == 1
    assert "has another mask and another table than the saved one" in caplog.text


def test_a_training_checkpoint_of_the_users_own_network(tmp_path: Path) -> None:
    model = stvid.inflate(build(), num_frames=2, img_size=16, num_classes=3, temporal="shift")
    model.reset_classifier(7)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "stvid": describe(model)}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"network=Net\(\.\.\.\)"):
        stvid.load_model(tmp_path / "x.ckpt")
    again = stvid.load_model(tmp_path / "x.ckpt", network=Net())
    clip = torch.randn(1, 3, 2, 16, 16)
    assert torch.equal(again(clip), model(clip)) and again.num_classes == 7


class Coordinates(nn.Module):
    """Makes float32 tensors itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Conv2d(5, 8, 3), build()
        self.rest.first = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        line = torch.arange(x.shape[-1], device=x.device).float() / x.shape[-1]
        where = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(x), -1, -1, -1)
        return self.rest(self.first(torch.cat((x, where), 1)))


class Cached(nn.Module):
    """Keeps a tensor that is no buffer, so that the network cannot run on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build()
        self.bias = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.bias)


class Rooted(nn.Module):
    """Fails in low precision in its own code, not in a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build()
        self.table = torch.eye(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.einsum("nchw,cd->ndhw", x, self.table))


@pytest.mark.parametrize(
    ("kind", "kept"), [(Coordinates, "network.first stays in float32"), (Cached, "stays in float32")]
)
def test_layers_that_do_not_run_in_bf16_stay_in_float32(kind: type[nn.Module], kept: str) -> None:
    torch.manual_seed(0)
    model = stvid.inflate(kind().eval(), num_frames=2, img_size=16)
    clip = torch.randn(2, 3, 2, 16, 16)
    for precision, limit in (("float32", 1e-4), ("bf16", 0.1)):
        fast = stvid.optimize(model, precision=precision)
        assert (fast(clip) - model(clip)).abs().max() < limit * model(clip).abs().max().clamp(min=1)
        assert any(kept in note for note in fast.notes) == (precision == "bf16")
    assert any("batch norms folded" in note for note in fast.notes)


def test_a_network_that_does_not_run_in_bf16_stays_in_float32() -> None:
    model = stvid.inflate(Rooted().eval(), num_frames=2, img_size=16)
    fast = stvid.optimize(model, precision="bf16")
    clip = torch.randn(1, 3, 2, 16, 16)
    assert fast.precision == "float32" and any("not bf16" in note for note in fast.notes)
    assert torch.allclose(fast(clip), model(clip), atol=1e-4)


def test_complex_weights_stay_complex_in_low_precision() -> None:
    class Filtered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.randn(3, 16, 9, dtype=torch.cfloat))
            self.inner = build()

        def forward(self, x: Tensor) -> Tensor:
            x = torch.fft.irfft2(torch.fft.rfft2(x.float()) * self.filter, s=x.shape[2:]).to(x.dtype)
            return self.inner(x)

    torch.manual_seed(0)
    model = stvid.inflate(Filtered().eval(), num_frames=2, img_size=16)
    fast = stvid.optimize(model, precision="bf16")
    clip = torch.randn(1, 3, 2, 16, 16)
    assert fast.model.network.filter.is_complex()
    assert (fast(clip) - model(clip)).abs().max() < 0.1
