from __future__ import annotations

import pytest
import torch

import stvid
from stvid.errors import UnknownNameError
from stvid.models.registry import register_model
from stvid.protocol import Protocol


def test_list_models_is_sorted_and_filters() -> None:
    names = stvid.list_models()
    assert names == sorted(names) and {"uniformer_s", "uniformer_b", "uniformer_xxs"} <= set(names)
    assert stvid.list_models("uniformer_?") == ["uniformer_b", "uniformer_s"]


def test_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unifromer_s.*nearest: uniformer_s"):
        stvid.create_model("unifromer_s")


def test_unknown_hyperparameter_is_named() -> None:
    with pytest.raises(TypeError, match="drop_pth_rate"):
        stvid.create_model("uniformer_xxs", drop_pth_rate=0.1)


def test_protocol_follows_frames_and_size() -> None:
    model = stvid.create_model("uniformer_xxs", num_frames=8, img_size=(96, 128), num_classes=3)
    assert (model.default_protocol.frames, model.default_protocol.crop) == (8, 96)
    assert model.recipe["img_size"] == [96, 128]
    assert model(torch.randn(1, 3, 8, 96, 128)).shape == (1, 3)


def test_names_are_registered_once() -> None:
    def uniformer_s() -> None: ...

    with pytest.raises(ValueError, match="already"):
        register_model(protocol=Protocol())(uniformer_s)  # type: ignore[type-var]


def test_a_negative_number_of_classes() -> None:
    with pytest.raises(ValueError, match="num_classes is -5"):
        stvid.create_model("r3d_18", num_classes=-5)
