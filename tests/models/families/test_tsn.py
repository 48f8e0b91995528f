"""Temporal segment networks: no frame sees another but in the mean of the logits."""

from __future__ import annotations

import torch

import stvid


def test_the_order_of_frames_means_nothing() -> None:
    torch.manual_seed(0)
    model = stvid.create_model("tsn_r18", num_classes=5, depth=(1, 1, 1, 1), embed_dim=16).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip.flip(2)), model(clip))
        frames = torch.stack([model(clip[:, :, [frame]]) for frame in range(4)])
        torch.testing.assert_close(model(clip), frames.mean(0))


def test_weights_of_an_image_network_start_it() -> None:
    """The names of torchvision's ResNets, whose classifier may have another number of classes."""
    model = stvid.create_model("tsn_r18", num_classes=5, depth=(1, 1, 1, 1), embed_dim=16)
    own = {key: value + 1 for key, value in model.state_dict().items() if value.is_floating_point()}
    names = {"stem.0": "conv1", "stem.1": "bn1", "head.fc": "fc"}
    image = {}
    for key, value in own.items():
        for old, new in names.items():
            key = key.replace(old, new)
        for conv in "12":
            key = key.replace(f".conv{conv}.0.", f".conv{conv}.").replace(f".conv{conv}.1.", f".bn{conv}.")
        image[key] = value
    image |= {"fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}
    report = stvid.load_checkpoint(model, {"state_dict": image}, reset_head=True)
    assert report.format == "torchvision ResNet"
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in own.items() if not key.startswith("head."))


def test_options_are_read_off_a_file() -> None:
    built = stvid.create_model("tsn_r50", num_classes=5, depth=(1, 2, 1, 3), embed_dim=32, in_chans=2)
    small = stvid.create_model("tsn_r18", num_classes=5, depth=(1, 1, 1, 1), embed_dim=16)
    found = small.options_of(built.state_dict())
    assert found == {"depth": (1, 2, 1, 3), "embed_dim": 32, "in_chans": 2, "bottleneck": True}
    assert small.options_of({"fc.weight": torch.zeros(1)}) == {}
