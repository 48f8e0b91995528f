from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stvid
from stvid.config import TrainConfig, load_config
from stvid.config_sections import ModelConfig
from stvid.engine.finetuning import resolve_config
from stvid.engine.model import build_model, find_initial_weights, initialise, model_takes, protocol_differences
from stvid.errors import CheckpointError, ConfigError
from stvid.models.registry import family_of, native_models
from stvid.protocol import Protocol

STARTERS = ("uniformer_xxs_folder.yaml", "uniformer_xxs_motion.yaml")
FIRST = [  # of each family; the others are slow
    name if family_of(name)[0].variants[0].name == name else pytest.param(name, marks=pytest.mark.slow)
    for name in native_models()
]


@pytest.mark.parametrize("name", FIRST)
def test_every_model_is_built_by_the_starter_recipes(
    name: str, capsys: pytest.CaptureFixture[str], outline: Callable[..., Any]
) -> None:
    for recipe in STARTERS:
        config = resolve_config(recipe, ["--model.name", name])
        asked = load_config(recipe).model.drop_path_rate
        said = f"model.drop_path_rate: {asked:g} of the config is left out, {name} takes none\n"
        rows = config.protocol.frames_per_segment
        segments = (
            f"protocol.frames_per_segment: {rows}, as {name} takes them, and protocol.frames 15 instead of 16 of "
        )
        expected = "" if model_takes(name, "drop_path_rate") else said
        expected += "" if rows == 1 else f"{segments}the config\n"
        assert capsys.readouterr().err == expected
        with outline():
            model = build_model(config, 5)
        family, variant = family_of(name)
        least = variant.min_clip or family.min_clip
        clip = (config.protocol.frames, config.protocol.crop, config.protocol.crop)
        assert all(side >= smallest for side, smallest in zip(clip, least, strict=True))
        assert model.num_classes == 5


@pytest.mark.parametrize(
    "name,argument,takes",
    [
        ("uniformer_s", "drop_path_rate", True),
        ("r3d_18", "drop_path_rate", False),
        ("timm/tf_mobilenetv3_small_minimal_100", "drop_path_rate", True),
        ("timm/vgg11", "drop_path_rate", False),
        ("torchvision/resnet18", "drop_path_rate", False),
        ("timm/vit_tiny_patch16_224", "drop_path_rate", True),
        ("timm/deit_tiny_distilled_patch16_224", "drop_path_rate", True),  # its class hands arguments on
    ],
)
def test_models_say_which_arguments_they_take(name: str, argument: str, takes: bool) -> None:
    assert model_takes(name, argument) == takes


def config_of(*options: str) -> TrainConfig:
    return load_config(None, [f"--{option}" for option in options])


@pytest.mark.parametrize(
    "options,message",
    [
        (
            ["model.name=r3d_18", "model.drop_path_rate=0.2"],
            r"^model\.drop_path_rate: r3d_18 has no stochastic depth, so 0\.2 has no meaning; set it to null",
        ),
        (
            ["model.name=uniformer_xxs", "model.hyperparameters={deph: [1, 1, 1, 1]}"],
            r"^model\.hyperparameters: uniformer_xxs has no argument 'deph'; nearest: depth",
        ),
        (["model.name=uniformer_xxs", "model.hyperparameters={depth: 3}"], r"^model\.hyperparameters: .*depth"),
        (
            ["model.name=c3d", "protocol.frames=8"],
            r"^protocol\.frames: 8 frames are too few for c3d, .* at least 16; set --prot",
        ),
        (
            ["model.name=p3d_63", "augment.frames=4"],
            r"^augment\.frames: 4 frames are too few for p3d_63, .* at least 16; set --augment\.frames 16 or more$",
        ),
        (
            ["model.name=i3d_r50", "protocol.crop=24", "protocol.short_side=28"],
            r"^protocol\.crop: 24 pixels are too few for i3d_r50.*; set --protocol\.crop 32 --protocol\.short_side 32",
        ),
    ],
)
def test_the_key_that_can_be_changed_is_named(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config_of(*options), 2)


def test_a_drop_path_rate_from_the_command_line_is_an_error() -> None:
    config = resolve_config(STARTERS[0], ["--model.name=r3d_18", "--model.drop_path_rate=0.1"])
    with pytest.raises(ConfigError, match=r"^model\.drop_path_rate: r3d_18 has no stochastic depth"):
        build_model(config, 2)
    assert build_model(resolve_config(STARTERS[0], ["--model.name=r3d_18", "--model.drop_path_rate=null"]), 2)


def test_a_mistake_in_the_package_is_not_blamed_on_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr("stvid.engine.model.create_model", broken)
    with pytest.raises(TypeError, match="a mistake"):
        build_model(config_of("model.name=r3d_18"), 2)


# --- initial weights --------------------------------------------------------------------------------------------------

TINY = "timm/test_efficientnet"
OWN = Protocol(frames=4, stride=3, short_side=40, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    model = stvid.create_model(TINY, num_classes=3, num_frames=4, img_size=32, temporal="shift", shift_div=4)
    stvid.save_model(model, tmp_path / "shift.safetensors", protocol=OWN)
    return tmp_path / "shift.safetensors"


def start(init: Path | str, *options: str) -> list[str]:
    config = config_of(f"init={init}", f"model.name={TINY}", "protocol.frames=4", "protocol.crop=32", *options)
    weights = find_initial_weights(config)
    return initialise(build_model(config, 2), config, ("a", "b"), weights)


@pytest.mark.parametrize("temporal", ["conv", "none", "attention"])
def test_weights_of_another_mode_say_which(shifted: Path, temporal: str) -> None:
    """With ``none`` they would load: a shift has no parameters."""
    given = [] if temporal == "conv" else [f"model.hyperparameters={{temporal: {temporal}}}"]
    if temporal == "attention":
        given.append(f"model.name={(other := 'timm/test_vit')}")
        with pytest.raises(
            ConfigError, match=rf"holds {TINY}, not {other}; add --model\.name {TINY} .*\"temporal\": \"shift\""
        ):
            start(shifted, *given)
        return
    message = (
        rf"was made with temporal shift, but this training builds temporal {temporal}; add --model\.hyperparameters "
    )
    with pytest.raises(ConfigError, match=message + r"'\{\"temporal\": \"shift\", \"shift_div\": 4\}'$"):
        start(shifted, *given)


def test_weights_of_the_same_mode_load_and_get_a_small_new_head(shifted: Path) -> None:
    (line,) = start(shifted, "model.hyperparameters={temporal: shift, shift_div: 4}")
    assert line.startswith(f"init      {shifted}: stvid format") and "new head" in line


def test_a_new_head_is_small_whatever_the_library_draws(tmp_path: Path) -> None:
    """timm draws EfficientNet's classifier with weights of up to 1 / sqrt(classes)."""
    name = "timm/tf_mobilenetv3_small_minimal_100"
    model = stvid.create_model(name, num_classes=5, num_frames=2, img_size=32)
    stvid.save_model(model, tmp_path / "w.safetensors")
    config = config_of(
        f"init={tmp_path / 'w.safetensors'}", f"model.name={name}", "protocol.frames=2", "protocol.crop=32"
    )
    built = build_model(config, 2)
    initialise(built, config, ("a", "b"), find_initial_weights(config))
    classifier = built.get_classifier()
    assert classifier.weight.abs().max() < 0.1 and classifier.weight.requires_grad  # type: ignore[union-attr]


def test_weights_of_other_shapes_say_what_they_were_made_with(tmp_path: Path) -> None:
    size = {"embed_dim": [8, 8, 16, 16], "head_dim": 8}
    model = stvid.create_model("uniformer_xxs", num_classes=2, num_frames=4, img_size=32, depth=[1, 1, 1, 1], **size)
    stvid.save_model(model, tmp_path / "w.pt")
    base = [f"init={tmp_path / 'w.pt'}", "model.name=uniformer_xxs", "protocol.frames=4", "protocol.crop=32"]
    config = config_of(*base, "model.hyperparameters={depth: [1, 1, 2, 1], embed_dim: [8, 8, 16, 16], head_dim: 8}")
    with pytest.raises(
        ConfigError, match=r"was made with depth \[1, 1, 1, 1\] \(this training: \[1, 1, 2, 1\]\); add --mod"
    ):
        initialise(build_model(config, 2), config, ("a", "b"), find_initial_weights(config))


def test_weights_that_are_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is no file goes through `load_model`, with the protocol and the class names that it gives."""
    arguments = {"num_frames": 4, "img_size": 32, "depth": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "head_dim": 8}
    published = stvid.create_model("uniformer_xxs", num_classes=2, **arguments)
    published.default_protocol = OWN.replace(class_names=("a", "b"))
    asked = []

    def load(source: str, *, name: str | None = None) -> stvid.models.base.VideoModel:  # type: ignore[name-defined]
        asked.append((source, name))
        return published

    monkeypatch.setattr("stvid.engine.model.load_model", load)
    options = ["model.name=uniformer_xxs", "protocol.frames=4", "protocol.crop=32"]
    config = config_of("init=uniformer_xxs.tag", *options)
    config.model.hyperparameters = {key: arguments[key] for key in ("depth", "embed_dim", "head_dim")}
    weights = find_initial_weights(config)
    assert weights is not None and weights.protocol == published.default_protocol
    model = build_model(config, 2)
    (line,) = initialise(model, config, ("a", "b"), weights)
    assert line.startswith("init      uniformer_xxs.tag: stvid format") and "new head" not in line
    assert all(torch.equal(value, published.state_dict()[key]) for key, value in model.state_dict().items())
    find_initial_weights(dataclasses.replace(config, init="https://somewhere/w.pth"))
    assert asked == [("uniformer_xxs.tag", None), ("https://somewhere/w.pth", "uniformer_xxs")]


def test_nothing_is_loaded_without_weights_or_in_a_continuation() -> None:
    assert find_initial_weights(config_of()) is None
    config = config_of("init=gone.pt", "resume=last.ckpt")
    assert find_initial_weights(config) is None
    config.resume = None
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such"):
        find_initial_weights(config)


def test_differences_are_named_by_key() -> None:
    ours = OWN.replace(frames=8, mean=(0.45,) * 3, fps=15.0, views="4x3")
    assert protocol_differences(ours, OWN) == [
        "protocol.frames: 8 instead of the weights' 4",
        "protocol.fps: 15.0 instead of the weights' null",
        "protocol.mean: [0.45, 0.45, 0.45] instead of the weights' [0.5, 0.5, 0.5]",
    ]
    segments = OWN.replace(sampling="segment", stride=9)
    assert protocol_differences(OWN, segments) == ["protocol.sampling: dense instead of the weights' segment"]


def test_the_labels_of_the_videos_are_the_texts_of_a_model_that_takes_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("transformers")
    sizes = {"depth": 1, "embed_dim": 48, "num_heads": 4, "joint_dim": 32, "text_depth": 1, "text_dim": 64}
    options = {"text": True, "vocab_size": 50, "context_length": 8, **sizes}
    config = dataclasses.replace(
        TrainConfig(),
        model=ModelConfig(name="xclip_b16", hyperparameters=options),
        protocol=Protocol(frames=2, short_side=32, crop=32),
    )
    model = build_model(config, 2)
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(type(model), "set_classes", lambda self, names: given.append(names))
    assert "2 labels of the videos, as texts" in initialise(model, config, ("opening", "closing"), None)[0]
    assert given == [("opening", "closing")]
