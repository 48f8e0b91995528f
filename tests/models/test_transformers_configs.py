"""Models of transformers with random weights, and stvid's models that their folders call for: the logits are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stvid
from stvid.errors import CheckpointError
from stvid.models.registry import model_info
from stvid.models.transformers_configs import known_types, recipe_of

TINY: dict[str, Any] = {
    "image_size": 32,
    "num_frames": 4,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}
TINY_VJEPA2: dict[str, Any] = {
    "crop_size": 32,
    "frames_per_clip": 4,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_pooler_layers": 1,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}
NAMES = {0: "wave", 1: "clap", 2: "jump | run"}
BASE = {"model_type": "timesformer", "num_frames": 8, "image_size": 224, "id2label": {"0": "a", "1": "b"}}

VIDEOMAE = {"model_type": "videomae", "num_frames": 16}


def network(kind: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    classes = {"timesformer": ("TimesformerConfig", "TimesformerForVideoClassification")}
    classes["vivit"] = ("VivitConfig", "VivitForVideoClassification")
    classes["videomae"] = ("VideoMAEConfig", "VideoMAEForVideoClassification")
    classes["vjepa2"] = ("VJEPA2Config", "VJEPA2ForVideoClassification")
    config, model = (getattr(transformers, name) for name in classes[kind])
    torch.manual_seed(0)
    made = model(config(**{**(TINY_VJEPA2 if kind == "vjepa2" else TINY), **options})).eval()
    for parameter in made.parameters():  # tables and biases start at zero
        torch.nn.init.normal_(parameter, std=0.05)
    return made


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("timesformer", {}),
        ("timesformer", {"attention_type": "joint_space_time", "num_frames": 3}),
        ("timesformer", {"qkv_bias": False, "patch_size": 8}),
        ("videomae", {}),
        ("videomae", {"image_size": 48, "num_frames": 6, "intermediate_size": 120}),
        ("videomae", {"tubelet_size": 1, "patch_size": 8, "qv_bias": False}),
        ("vjepa2", {}),
        ("vjepa2", {"crop_size": 48, "frames_per_clip": 6, "num_pooler_layers": 2, "mlp_ratio": 3.0}),
        ("vjepa2", {"num_attention_heads": 6, "patch_size": 8, "tubelet_size": 1, "qkv_bias": False}),
        ("vivit", {"image_size": [48, 32]}),
        ("vivit", {}),
        ("vivit", {"tubelet_size": [1, 8, 16], "intermediate_size": 120}),
        ("vivit", {"tubelet_size": [2, 16, 16], "image_size": 48, "qkv_bias": False}),
    ],
)
def test_the_logits_are_those_of_transformers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = network(kind, id2label=NAMES, label2id={name: number for number, name in NAMES.items()}, **options)
    theirs.save_pretrained(tmp_path)
    found = recipe_of(json.loads((tmp_path / "config.json").read_text()))
    recipe = dict(found.recipe)
    ours = stvid.create_model(recipe.pop("name"), **recipe.pop("hyperparameters"), **recipe).eval()
    stvid.load_checkpoint(ours, tmp_path / "model.safetensors")
    height, width = found.recipe["img_size"]
    clip = torch.randn(2, 3, found.recipe["num_frames"], height, width)
    with torch.no_grad():
        expected = theirs(clip.transpose(1, 2)).logits
        torch.testing.assert_close(ours(clip), expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 1e-2
    assert found.protocol.class_names == tuple(NAMES.values())
    assert found.protocol.frames == found.recipe["num_frames"] and found.task == "multiclass"


def test_the_published_config_of_v_jepa_2() -> None:
    config = {"model_type": "vjepa2", "frames_per_clip": 64, "crop_size": 384, "hidden_size": 1408}
    config |= {"num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11, "num_pooler_layers": 3}
    config |= {"architectures": ["VJEPA2ForVideoClassification"], "id2label": {"0": "a", "1": "b"}}
    pixels = {"size": {"shortest_edge": 438}, "crop_size": {"height": 384, "width": 384}}
    found = recipe_of(config, pixels)
    assert found.recipe["name"] == "vjepa2_vit_g" and found.recipe["img_size"] == [384, 384]
    assert found.recipe["hyperparameters"] == {"head_num_heads": 22, "head_norm_eps": 1e-6}
    published = model_info("vjepa2_vit_g").protocol
    assert found.protocol == published.replace(class_names=("a", "b"), short_side=438)
    assert recipe_of({**config, "architectures": ["VJEPA2Model"]}).recipe["num_classes"] == 0


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "timesformer_base"),
        ({"num_frames": 16, "image_size": 448}, "timesformer_hr"),
        ({"num_frames": 96}, "timesformer_l"),
        ({**VIDEOMAE}, "videomae_vit_b"),
        ({**VIDEOMAE, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}, "videomae_vit_s"),
        (
            {**VIDEOMAE, "hidden_size": 1280, "num_hidden_layers": 32}
            | {"num_attention_heads": 16, "intermediate_size": 5120},
            "videomae_vit_h",
        ),
        ({"model_type": "vivit", "num_frames": 32}, "vivit_b16x2"),
        (
            {"model_type": "vivit", "num_frames": 32, "hidden_size": 1024, "num_hidden_layers": 24}
            | {"num_attention_heads": 16, "intermediate_size": 4096},
            "vivit_l16x2",
        ),
    ],
)
def test_published_sizes_get_their_own_names(config: dict[str, Any], name: str) -> None:
    found = recipe_of({**BASE, "hidden_act": "gelu_fast" if config.get("model_type") == "vivit" else "gelu", **config})
    assert found.recipe["name"] == name
    rates = {"drop_path_rate": 0.0} if name.startswith("timesformer") else {}
    assert found.recipe["hyperparameters"] == rates
    assert found.recipe["num_classes"] == 2 and found.protocol.class_names == ("a", "b")
    assert found.protocol.replace(class_names=()) == model_info(name).protocol


def test_the_first_configs_of_vivit_name_a_video_size() -> None:
    config = {"model_type": "vivit", "video_size": [32, 224, 224], "num_labels": 400}
    found = recipe_of(config)
    assert (found.recipe["num_frames"], found.recipe["img_size"], found.recipe["num_classes"]) == (32, [224, 224], 400)


def test_invented_class_names_are_left_out() -> None:
    found = recipe_of({**BASE, "id2label": {"1": "LABEL_1", "0": "LABEL_0", "2": "LABEL_2"}})
    assert found.recipe["num_classes"] == 3 and found.protocol.class_names == ()
    many = {str(number): f"class {number}" for number in range(12)}  # "10" comes before "2" as text
    found = recipe_of({**BASE, "id2label": dict(sorted(many.items()))})
    assert found.protocol.class_names == tuple(f"class {number}" for number in range(12))


def test_the_task_and_an_encoder_alone() -> None:
    assert recipe_of({**BASE, "problem_type": "multi_label_classification"}).task == "multilabel"
    found = recipe_of({**BASE, "architectures": ["TimesformerModel"]})
    assert found.recipe["num_classes"] == 0 and found.protocol.class_names == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model_type": "bert"},
            "model_type 'bert' is no video model that stvid has; it reads perceiver, timesformer, vid",
        ),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', but stvid's model has 'gelu'"),
        ({"model_type": "vivit", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12"),
        ({"attention_type": "axial"}, "attention_type is 'axial'"),
        ({**VIDEOMAE, "layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ({**VIDEOMAE, "use_mean_pooling": False}, "use_mean_pooling is False"),
        ({**VIDEOMAE, "hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"patch_size": [16, 8]}, "square patches"),
        ({"id2label": {"1": "a", "2": "b"}}, "does not number the classes from 0"),
        ({"hidden_size": "wide"}, "cannot be read"),
        ({"image_size": None}, "cannot be read"),
    ],
)
def test_what_stvid_does_not_compute_is_an_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as error:
        recipe_of({**BASE, **changes}, where="here/config.json")
    assert str(error.value).startswith("here/config.json: ") and "\n" not in str(error.value)
    assert known_types() == ["perceiver", "timesformer", "videomae", "vivit", "vjepa2", "xclip"]


# --- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VivitImageProcessor", {}),
        ("VivitImageProcessor", {"do_normalize": False}),
        ("VivitImageProcessor", {"offset": False, "rescale_factor": 1 / 255}),
        ("VideoMAEImageProcessor", {"image_mean": [0.45, 0.45, 0.4], "image_std": [0.225, 0.2, 0.25]}),
        ("VideoMAEImageProcessor", {"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]}),
        ("VideoMAEImageProcessor", {"do_normalize": False}),
        ("VivitVideoProcessor", {}),
        ("TimesformerVideoProcessor", {}),
    ],
)
def test_pixels_become_the_same_numbers(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, kind)(**options)
    processor.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*preprocessor_config.json")
    config = {**BASE, "model_type": "vivit" if "Vivit" in kind else "timesformer"}
    protocol = recipe_of(
        config | {"hidden_act": "gelu_fast" if "Vivit" in kind else "gelu"}, json.loads(path.read_text())
    ).protocol
    frame = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    crop_only = {"do_resize": False}
    video = [torch.from_numpy(frame).permute(2, 0, 1)] if "Video" in kind and "MAE" not in kind else [frame]
    given = torch.stack(video).unsqueeze(0) if isinstance(video[0], torch.Tensor) else video
    theirs = processor(given, return_tensors="pt", **crop_only)["pixel_values"][0, 0].float()
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (protocol.mean, protocol.std))
    ours = (torch.from_numpy(frame).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(theirs, ours.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("image_size", "values", "sides"),
    [
        (224, {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (256, 224)),
        (224, {"size": 256, "crop_size": 224}, (256, 224)),
        (224, {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, (224, 224)),
        (224, {"size": {"height": 224, "width": 224}}, (224, 224)),
        (224, {"size": {"shortest_edge": 320}, "crop_size": 224, "do_resize": False}, (224, 224)),
        (448, {"size": {"shortest_edge": 256}, "crop_size": 224}, (512, 448)),  # a copy of the usual file
        (224, {}, (224, 224)),
    ],
)
def test_sizes_are_those_of_the_preprocessor(image_size: int, values: dict[str, Any], sides: tuple[int, int]) -> None:
    protocol = recipe_of({**BASE, "image_size": image_size}, values).protocol
    assert (protocol.short_side, protocol.crop) == sides
    assert protocol.mean == protocol.std == (0.5, 0.5, 0.5)
