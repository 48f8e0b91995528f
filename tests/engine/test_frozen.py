from __future__ import annotations

import pytest
from torch import nn

import stvid
from stvid.engine.frozen import backbone_parameters, freeze, keep_frozen_still
from stvid.errors import ConfigError
from stvid.models.base import VideoModel


def cnn() -> VideoModel:
    return stvid.create_model("resnet3d_18", num_classes=2, num_frames=4, img_size=32).train()


def in_training(model: VideoModel) -> set[str]:
    return {name for name, module in model.named_modules() if module.training and name}


def test_frozen_modules_are_in_evaluation_mode_and_the_others_are_not() -> None:
    model = cnn()
    freeze(model, ["conv1", "bn1", "layer1", "layer2.0"])
    keep_frozen_still(model)
    training = in_training(model)
    assert not {"bn1", "layer1", "layer1.0.bn1", "layer2.0", "layer2.0.bn1"} & training
    assert {"layer2", "layer2.1.bn1", "layer3", "head"} <= training and model.training


def test_without_a_trained_backbone_only_the_head_is_in_training_mode() -> None:
    """Also layers without parameters (dropout of positions) and the model itself, whose functions ask for the mode."""
    model = stvid.create_model(
        "timesformer_base", num_classes=2, num_frames=4, img_size=32, depth=1, embed_dim=12, num_heads=2, drop_rate=0.5
    ).train()
    assert any(isinstance(module, nn.Dropout) and module.training for module in model.modules())
    for held in (True, False):  # told so, or seen from the parameters
        model.train()
        if not held:
            freeze(model, [name for name, _ in model.named_parameters() if not name.startswith("head.")])
        keep_frozen_still(model, head_only=held)
        assert not model.training
        assert in_training(model) == {name for name, _ in model.named_modules() if name.startswith("head")}


def test_a_frozen_part_of_the_head_stays_too() -> None:
    model = cnn()
    freeze(model, ["head"])
    keep_frozen_still(model)
    assert "layer4" in in_training(model) and "head" not in in_training(model)


def test_backbone_parameters_are_those_that_are_trained_outside_the_head() -> None:
    model = cnn()
    freeze(model, ["layer1"])
    found = {id(parameter) for parameter in backbone_parameters(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in found}
    assert "conv1.weight" in names and not any(name.startswith(("layer1.", "head.")) for name in names)
    assert len(names) == len(found)


def test_a_module_without_parameters_cannot_be_frozen() -> None:
    with pytest.raises(ConfigError, match=r"^model\.frozen: 'act' of ResNet3d has no parameters; leave it out$"):
        model = cnn()
        model.act = nn.ReLU()
        freeze(model, ["act"])
