"""The names of the video models of other libraries, against the libraries themselves."""

from __future__ import annotations

import importlib.util
import warnings

import pytest

from stvid.models.libraries import NATIVE
from stvid.models.registry import native_models


def test_every_video_model_of_torchvision_is_native() -> None:
    from torchvision.models import list_models, video

    assert sorted(NATIVE["torchvision"]) == sorted(list_models(module=video))


@pytest.mark.skipif(importlib.util.find_spec("pytorchvideo") is None, reason="pytorchvideo is not installed")
def test_every_classifier_of_pytorchvideo_is_native() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of modules that PyTorchVideo imports
        hub = importlib.import_module("pytorchvideo.models.hub")
    functions = {name for name in dir(hub) if callable(getattr(hub, name)) and not name.startswith("_")}
    assert {*NATIVE["pytorchvideo"]} == functions - {"slow_r50_detection", "slowfast_r50_detection"}


def test_the_names_here_exist() -> None:
    assert {native for names in NATIVE.values() for native in names.values()} <= {*native_models()}
