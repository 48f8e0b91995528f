"""The tables of the video models of other libraries, against the libraries themselves."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest
import torch

import stvid
from stvid.models.libraries import NATIVE, library_models
from stvid.zoo import model_info

needs_pytorchvideo = pytest.mark.skipif(
    importlib.util.find_spec("pytorchvideo") is None, reason="pytorchvideo is not installed"
)


def test_every_video_model_of_torchvision_is_there_or_native() -> None:
    from torchvision.models import list_models, video

    assert sorted([*library_models("torchvision"), *NATIVE["torchvision"]]) == sorted(list_models(module=video))


@needs_pytorchvideo
def test_every_classifier_of_pytorchvideo_is_there_or_native() -> None:
    with torch.device("meta"):
        stvid.create_model("pytorchvideo/mvit_base_16x4")  # imports it
    hub = sys.modules["pytorchvideo.models.hub"]
    functions = {name for name in dir(hub) if callable(getattr(hub, name)) and not name.startswith("_")}
    known = {*library_models("pytorchvideo"), *NATIVE["pytorchvideo"]}
    assert known == functions - {"slow_r50_detection", "slowfast_r50_detection"}
    assert "pytorchvideo.transforms" not in sys.modules


@pytest.mark.parametrize("name", library_models("torchvision"))
def test_torchvisions_numbers_are_those_of_its_weights(name: str) -> None:
    from torchvision.models import get_model_weights

    info = model_info(f"torchvision/{name}")
    weights = get_model_weights(name).DEFAULT
    transforms, protocol = weights.transforms(), info.protocol
    assert transforms.crop_size == [protocol.crop] * 2 and min(transforms.resize_size) == protocol.short_side
    assert tuple(transforms.mean) == protocol.mean and tuple(transforms.std) == protocol.std
    stated = {key: float(value) for key, value in re.findall(r"`(\w+)=([\d.]+)`", weights.meta["_docs"])}
    assert (stated["frame_rate"], stated["clip_len"]) == (protocol.fps, protocol.frames) and protocol.stride == 1
    assert f"{stated['clips_per_video']:g}x1" == protocol.views
    assert info.params == pytest.approx(weights.meta["num_params"] / 1e6, abs=0.006)
    if info.gflops is not None:  # torchvision counts 16 frames
        assert info.gflops == pytest.approx(weights.meta["_ops"] * protocol.frames / 16, rel=0.005)
