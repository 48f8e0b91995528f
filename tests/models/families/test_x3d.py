"""The parts of X3D alone: its hidden layer, a norm that PyTorchVideo lacks, and files of four kinds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import pytest
import torch

import stvid
from stvid.errors import CheckpointError
from stvid.models.families.x3d import X3D, round_width

TINY: dict[str, Any] = {"depth": (1, 2, 2, 1), "embed_dim": 16, "hidden_dim": 32, "num_classes": 5}
needs_pytorchvideo = pytest.mark.skipif(
    importlib.util.find_spec("pytorchvideo") is None, reason="pytorchvideo is not installed"
)


def tiny(**options: Any) -> X3D:
    torch.manual_seed(0)
    return stvid.create_model("x3d_m", **{**TINY, "num_frames": 4, "img_size": 64, **options})  # type: ignore[return-value]


def test_widths_of_the_squeezed_vectors() -> None:
    """Those of the published files: 8, 8, 16 and 32."""
    assert [round_width(width, 0.0625) for width in (54, 108, 216, 432)] == [8, 8, 16, 32]


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [
        ("x3d_xs", 182, 5),
        ("x3d_s", 160, 5),
        ("x3d_m", 256, 7),
        ("x3d_m", 160, 5),
        ("x3d_l", 356, 10),
        ("x3d_m", 100, 4),
    ],
)
def test_the_window_is_that_of_the_training_crop(name: str, size: int, side: int) -> None:
    with torch.device("meta"):
        assert stvid.create_model(name, img_size=size, num_frames=6).pool_size == (6, side, side)


@pytest.mark.parametrize("zero_init", [True, False])
def test_branches_start_at_zero_unless_told_otherwise(zero_init: bool) -> None:
    weights = [weight for key, weight in tiny(zero_init=zero_init).state_dict().items() if key.endswith("norm3.weight")]
    assert len(weights) == sum(TINY["depth"])
    assert all((weight == (0 if zero_init else 1)).all() for weight in weights)


def test_the_hidden_layer_sees_every_window() -> None:
    model = tiny().double().eval()
    fill.fill_module(model)
    features = torch.randn(2, model.num_features, 4, 3, 2, dtype=torch.float64)  # windows of 2x2: two of them
    head = model.head
    with torch.no_grad():
        upper, lower = (features[..., start : start + 2, :].mean((2, 3, 4)) for start in (0, 1))
        hidden = (head.hidden(upper).relu() + head.hidden(lower).relu()) / 2
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), hidden)
        torch.testing.assert_close(model.forward_head(features), head.fc(hidden))
        whole = tiny(pool_size="all").double().eval()
        whole.load_state_dict(model.state_dict())
        mean = head.hidden(features.mean((2, 3, 4))).relu()
        torch.testing.assert_close(whole.forward_head(features, pre_logits=True), mean)


def test_every_other_block_weighs_its_channels() -> None:
    model = tiny(depth=(3, 1, 4, 2))
    weighs = {name for name, _ in model.named_modules() if name.endswith(".se.fc1")}
    places = ("layer1.0", "layer1.2", "layer2.0", "layer3.0", "layer3.2", "layer4.0")
    assert weighs == {f"{place}.se.fc1" for place in places}


# --- published files --------------------------------------------------------------------------------------------------


@needs_pytorchvideo
@pytest.mark.parametrize("size", [(4, 64, 64), (6, 75, 100)])
def test_the_logits_are_pytorchvideos(size: tuple[int, int, int], tmp_path: Path) -> None:
    from pytorchvideo.models.x3d import create_x3d

    options = {"input_clip_length": 4, "input_crop_size": 64, "model_num_class": 5, "depth_factor": 1.0}
    network = create_x3d(**options, stem_dim_in=8, head_dim_out=32, head_activation=None)
    fill.fill_module(network).double().eval()
    model = tiny(depth=(1, 2, 5, 3))
    state = network.state_dict()
    report = stvid.load_checkpoint(model, {"model_state": state})
    assert report.format == "PyTorchVideo" and not model.shortcut_norm
    assert sum(part.numel() for part in model.parameters()) == sum(part.numel() for part in network.parameters())
    clip = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.double().eval()(clip), network(clip), rtol=1e-9, atol=1e-9)

    stvid.save_model(model.float(), tmp_path / "own.pt")  # the norm stays away
    again = stvid.load_model(tmp_path / "own.pt")
    assert not again.shortcut_norm
    with torch.no_grad():
        torch.testing.assert_close(again(clip.float()), model(clip.float()), rtol=0, atol=0)


def test_a_norm_that_a_model_lacks_is_named(tmp_path: Path) -> None:
    stvid.save_model(tiny(), tmp_path / "with.pt")
    other = tiny(shortcut_norm=False)
    with pytest.raises(CheckpointError, match=r"left over layer1\.0\.downsample\.1\.weight"):
        stvid.load_checkpoint(other, tmp_path / "with.pt")
    assert other.options_of(tiny().state_dict()) == {"shortcut_norm": True}


def test_options_are_read_off_a_file() -> None:
    built = tiny(depth=(2, 1, 3, 1), embed_dim=24, hidden_dim=16, in_chans=2)
    found = tiny().options_of(built.state_dict())
    assert found == {"depth": (2, 1, 3, 1), "embed_dim": 24, "hidden_dim": 16, "in_chans": 2}
    assert tiny().options_of({"fc.weight": torch.zeros(1)}) == {}
