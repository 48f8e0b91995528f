from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import stvid
from stvid.cli import main
from stvid.errors import CheckpointError, ConfigError, DownloadError, UnknownNameError
from stvid.inflation.parents import inflate_parent
from stvid.inflation.sources import find_origin
from tests.loopback import Hub, as_json


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield running


def put(hub: Hub, repo: str, network: torch.nn.Module, folder: Path, **config: Any) -> None:
    """Uploads a network as timm's `push_to_hf_hub` does (timm/models/_hub.py)."""
    folder.mkdir(exist_ok=True)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"), {"format": "pt"})
    files = {"config.json": as_json(config), "model.safetensors": (folder / "model.safetensors").read_bytes()}
    hub.put(repo, files)


def random_network(name: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


SETTINGS = {
    "input_size": [3, 64, 64],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.21, 0.22],
    "crop_pct": 0.8,
    "tag": "mine",
}


@pytest.mark.parametrize("flat", [False, True])  # the layout of old repositories is flat
def test_a_repository_of_timm_is_inflated(hub: Hub, tmp_path: Path, flat: bool) -> None:
    network = random_network("test_resnet", num_classes=7)
    described = SETTINGS if flat else {"pretrained_cfg": SETTINGS}
    put(hub, "org/images", network, tmp_path / "up", architecture="test_resnet", num_classes=7, **described)
    model = stvid.inflate("hf-hub:org/images", num_frames=4, temporal="none")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image.unsqueeze(2).expand(-1, -1, 4, -1, -1)), network(image))
    protocol = model.default_protocol
    assert protocol.mean == (0.5, 0.4, 0.3) and protocol.std == (0.2, 0.21, 0.22)
    assert (protocol.crop, protocol.short_side, protocol.frames) == (64, 80, 4)
    assert model.recipe["name"] == "timm/test_resnet" and model.num_classes == 7
    stvid.save_model(model, tmp_path / "video.safetensors")
    again = stvid.load_model(tmp_path / "video.safetensors")  # without the repository
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(clip), model(clip))
    assert again.default_protocol == protocol


def test_the_arguments_of_the_repository_are_kept(hub: Hub, tmp_path: Path) -> None:
    options = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "class_token": False, "global_pool": "avg"}
    network = random_network("vit_tiny_patch16_224", img_size=32, num_classes=5, **options)
    settings = {**SETTINGS, "input_size": [3, 32, 32], "fixed_input_size": True, "unknown_to_this_version": 1}
    put(
        hub,
        "org/vit",
        network,
        tmp_path / "up",
        architecture="vit_tiny_patch16_224",
        num_classes=5,
        pretrained_cfg=settings,
        model_args={**options, "img_size": 32},
    )
    model = stvid.inflate("hf-hub:org/vit", num_frames=2, temporal="none")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(image.unsqueeze(2).expand(-1, -1, 2, -1, -1)), network(image))
    stvid.save_model(model, tmp_path / "video.pt")
    again = stvid.load_model(tmp_path / "video.pt")
    with torch.no_grad():
        assert torch.equal(again(image.unsqueeze(2)), model(image.unsqueeze(2)))


def test_the_command_and_a_new_head(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = random_network("test_resnet", num_classes=7)
    put(hub, "org/images", network, tmp_path / "up", architecture="test_resnet", num_classes=7, pretrained_cfg=SETTINGS)
    out = tmp_path / "video.safetensors"
    arguments = ["inflate", "--from", "hf-hub:org/images", "--frames", "2", "--num_classes", "3", "--out", str(out)]
    assert main([*arguments, "--img_size", "32", "--pretrained"]) == 0  # it has its weights in any case
    assert "hf-hub:org/images" in capsys.readouterr().out
    model = stvid.load_model(out)
    assert model.num_classes == 3 and model.default_protocol.mean == (0.5, 0.4, 0.3)


def test_a_repository_is_the_parent_of_a_written_model(hub: Hub, tmp_path: Path) -> None:
    network = random_network("resnet50", num_classes=7)
    put(hub, "org/r50", network, tmp_path / "up", architecture="resnet50", num_classes=7, pretrained_cfg=SETTINGS)
    result = inflate_parent("hf-hub:org/r50", "i3d_r50", num_frames=4, img_size=64, prove=False)
    assert result.model.num_classes == 7
    assert result.model.default_protocol.mean == (0.5, 0.4, 0.3)
    assert result.model.default_protocol.std == (0.2, 0.21, 0.22)
    taken = result.model.state_dict()
    assert torch.equal(taken["layer1.0.conv2.weight"].squeeze(2), network.state_dict()["layer1.0.conv2.weight"])


def test_what_cannot_be_inflated_is_said(hub: Hub, tmp_path: Path) -> None:
    files = {"model.safetensors": b"w"}
    hub.put("org/new", {**files, "config.json": as_json({"architecture": "resnet18x", "pretrained_cfg": SETTINGS})})
    hub.put("org/video", {**files, "config.json": as_json({"model_type": "timesformer"})})
    grey = {"architecture": "resnet18", "pretrained_cfg": {**SETTINGS, "input_size": [1, 64, 64]}}
    hub.put("org/grey", {**files, "config.json": as_json(grey)})
    cases: list[tuple[str, type[Exception], str]] = [
        ("hf-hub:org/new", UnknownNameError, "has no image classifier 'resnet18x'; nearest: resnet18"),
        ("hf-hub:org/video", CheckpointError, "is a video model .transformers., not an image model of timm"),
        ("hf-hub:org/grey", ConfigError, "takes images of 1 channels"),
        ("hf-hub:org/none", DownloadError, "does not exist, or is private"),
    ]
    for source, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            stvid.inflate(source, num_frames=2)
        assert str(error.value).startswith(source) and "\n" not in str(error.value)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match="has its own weights"):
        stvid.inflate("hf-hub:org/new", num_frames=2, weights=tmp_path / "w.pth")


def test_named_networks_are_found_as_before() -> None:
    origin, weights, pretrained = find_origin("timm:resnet18", {"a": 1}, weights="w.pth", pretrained=True)
    assert (str(origin), origin.options, weights, pretrained) == ("timm:resnet18", {"a": 1}, "w.pth", True)
