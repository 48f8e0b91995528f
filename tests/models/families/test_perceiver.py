"""Perceiver IO: its sound, its places, what it decodes, and transformers' folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch

import stvid
from stvid.errors import CheckpointError
from stvid.models.families.perceiver import Perceiver, place_features, places_of, points_of
from stvid.models.transformers_configs import recipe_of

GOLDENS = Path(__file__).parent.parent.parent / "goldens"
TINY: dict[str, Any] = {
    "num_latents": 6,
    "d_latents": 32,
    "d_model": 405,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "num_frames": 4,
    "image_size": 8,
    "output_shape": [1, 4, 32, 32],
    "audio_samples_per_frame": 64,
    "output_num_channels": 24,
    "_label_trainable_num_channels": 32,
}
NAMES = {0: "wave", 1: "clap", 2: "jump"}


def tiny(**options: Any) -> Perceiver:
    sizes = {"depth": 2, "embed_dim": 32, "num_heads": 4, "num_latents": 6, "label_dim": 8, "query_dim": 32}
    sizes |= {"num_classes": 5, "num_frames": 4, "img_size": (16, 24), "audio_samples_per_frame": 32}
    torch.manual_seed(0)
    model = stvid.create_model("perceiver_io_video", **{**sizes, **options}).eval()
    assert isinstance(model, Perceiver)
    return model


def test_pictures_and_sound_are_decoded_as_recorded() -> None:
    record = json.loads((GOLDENS / "hf_perceiver_multimodal_b8__4x32.json").read_text())
    model = stvid.create_model(
        "perceiver_io_video", num_classes=700, num_frames=4, img_size=32, num_latents=64, audio_samples_per_frame=64
    )
    assert isinstance(model, Perceiver)
    stvid.load_checkpoint(model, fill.fill_state(record["state"]))
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double().transpose(1, 2)
    sound = torch.from_numpy(fill.make_input(record["audio_shape"], seed=7)).double()
    with torch.no_grad():
        features = model.double().eval().forward_features(clip, audio=sound)
        image, audio = model.reconstruct(
            features, pixels=torch.arange(record["n_image_points"]), patches=torch.arange(16)
        )
    expected = np.array(record["image_output"]).reshape(-1, 3)
    assert np.abs(image[0, :: record["image_output_stride"]].numpy() - expected).max() < 1e-7
    assert np.abs(audio[0].numpy() - np.array(record["audio_output"])).max() < 1e-7


def test_no_sound_is_silence() -> None:
    model = tiny()
    clip = torch.randn(2, 3, 4, 16, 24)
    with torch.no_grad():
        silent = model(clip)
        assert torch.equal(model(clip, torch.zeros(2, 128)), silent)
        sound = torch.randn(2, 128)
        heard = model(clip, sound)
        assert (heard - silent).abs().max() > 1e-4
        torch.testing.assert_close(model(clip, sound[..., None]), heard, rtol=0, atol=0)
        torch.testing.assert_close(model(clip, torch.cat((sound, sound[:, :15]), dim=1)), heard, rtol=0, atol=0)
    for wrong in (sound[:, :15], sound[:1], sound[..., None, None]):
        with pytest.raises(ValueError, match=r"audio: \(2, S\) or \(2, S, 1\) with at least 16 samples, not"):
            model(clip, wrong)


def test_places() -> None:
    places = places_of((2, 3), torch.device("cpu"))
    assert places.tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert points_of(torch.tensor([0, 5]), (2, 4)).tolist() == [[-1, -1], [0, -0.5]]
    features = place_features(places, (4, 6), 3)
    assert features.shape == (6, 2 * 7)
    multiples = torch.tensor([[1, 1.5, 2], [1, 2, 3]])
    angles = torch.pi * torch.tensor([1.0, 0.0])[:, None] * multiples  # of the fifth place
    expected = torch.cat((places[4], angles.sin().flatten(), angles.cos().flatten()))
    torch.testing.assert_close(features[4], expected)


def test_what_no_logit_depends_on_is_not_trained() -> None:
    model = tiny()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "embed.padding.label",
        "embed.mask.audio",
        "embed.mask.image",
        *(f"head.{name}" for name in ("padding.audio", "padding.image")),
        *(f"head.{part}.{kind}" for part in ("image", "audio") for kind in ("weight", "bias")),
    }
    assert {"latents", "head.query", "embed.mask.label"} <= model.no_weight_decay()
    model.reset_classifier(3, head="attentive")
    with pytest.raises(ValueError, match="reconstruct: the head is a AttentivePoolHead"):
        model.reconstruct(torch.zeros(1, 7, 32), pixels=torch.arange(2), patches=torch.arange(2))


def test_impossible_options() -> None:
    with pytest.raises(ValueError, match="smaller than a patch of 4x4"):
        tiny(img_size=(3, 16))
    with pytest.raises(ValueError, match="audio_samples_per_frame 2: 4 frames have fewer samples than a patch of 16"):
        tiny(audio_samples_per_frame=2)
    with pytest.raises(ValueError, match="cross_num_heads 2: 405 channels are no multiple of it"):
        tiny(cross_num_heads=2)


def network(**options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
    config = transformers.PerceiverConfig(**{**TINY, **names, **options})
    made = transformers.PerceiverForMultimodalAutoencoding(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (4, 32, 32)),
        ({"num_blocks": 2, "num_cross_attention_heads": 1, "self_attention_widening_factor": 3}, (4, 32, 32)),
        ({"image_size": 6, "output_shape": [1, 4, 24, 24], "samples_per_patch": 8}, (3, 20, 28)),  # of another size
    ],
)
def test_the_logits_are_those_of_transformers(options: dict[str, Any], size: tuple[int, ...], tmp_path: Path) -> None:
    theirs = network(**options)
    theirs.save_pretrained(tmp_path)
    ours = stvid.load_model(tmp_path)
    assert isinstance(ours, Perceiver) and ours.default_protocol.class_names == tuple(NAMES.values())
    clip, sound = torch.randn(2, 3, *size), torch.randn(2, 64 * size[0], 1)
    points = {"image": torch.arange(5, 9), "audio": torch.arange(3), "label": None}
    for audio in (sound, torch.zeros_like(sound)):
        inputs = {"image": clip.transpose(1, 2), "audio": audio, "label": torch.zeros(2, 3)}
        with torch.no_grad():
            expected = theirs(inputs=inputs, subsampled_output_points=points).logits
            features = ours.forward_features(clip, audio=audio)
            image, samples = ours.reconstruct(features, pixels=points["image"], patches=points["audio"])
            torch.testing.assert_close(ours.forward_head(features), expected["label"], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(image, expected["image"], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(samples, expected["audio"], atol=2e-5, rtol=1e-4)
        assert expected["label"].std() > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), ours(clip, torch.zeros_like(sound)), rtol=0, atol=0)


def test_a_file_alone_shows_the_sizes_and_takes_another_classifier(tmp_path: Path) -> None:
    theirs = network()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = stvid.load_model(tmp_path / "weights.pt", name="perceiver_io_video")
    assert isinstance(ours, Perceiver)
    shown = {key: ours.recipe["hyperparameters"][key] for key in ("num_latents", "embed_dim", "depth", "label_dim")}
    assert shown == {"num_latents": 6, "embed_dim": 32, "depth": 2, "label_dim": 3} and ours.num_classes == 3
    tuned = tiny(num_classes=9, img_size=(32, 32), label_dim=3, output_dim=24, audio_samples_per_frame=64)
    report = stvid.load_checkpoint(tuned, tmp_path / "weights.pt", reset_head=True)
    assert report.reset == ["head.fc.bias", "head.fc.weight"]
    assert torch.equal(tuned.latents, theirs.perceiver.embeddings.latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["PerceiverForMaskedLM"]}, "is of PerceiverForMaskedLM; of the type perceiver stvid has"),
        ({"image_size": 7}, "image_size is 7, but stvid's model has a fourth of the sides of output_shape"),
        ({"num_frames": 5}, "num_frames is 5, but stvid's model has 4"),
        ({"qk_channels": 8}, "qk_channels is 8, but stvid's model has None"),
    ],
)
def test_other_networks_of_the_type_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        recipe_of({"model_type": "perceiver", **TINY, **changes})


def test_the_published_config() -> None:
    config = {"model_type": "perceiver", "architectures": ["PerceiverForMultimodalAutoencoding"], "num_blocks": 1}
    config |= {"num_latents": 784, "d_latents": 512, "num_self_attends_per_block": 8, "num_self_attention_heads": 8}
    config |= {"num_cross_attention_heads": 1, "num_frames": 16, "image_size": 56, "audio_samples_per_frame": 1920}
    config |= {"samples_per_patch": 16, "output_shape": [1, 16, 224, 224], "output_num_channels": 512}
    config |= {"_label_trainable_num_channels": 1024, "attention_probs_dropout_prob": 0.1}
    found = recipe_of({**config, "id2label": {str(number): f"LABEL_{number}" for number in range(700)}})
    assert found.recipe["hyperparameters"] == {"attn_drop_rate": 0.1}
    assert found.recipe["num_classes"] == 700 and found.recipe["img_size"] == [224, 224]
    with torch.device("meta"):
        model = stvid.create_model("perceiver_io_video", num_classes=700)
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_858_855


def test_explained_by_the_patches_that_the_latents_look_at() -> None:
    model = tiny()
    with torch.no_grad():  # to look at the patches with more than noise
        model.cross.kv.weight.mul_(10)
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 24, 3), dtype=np.uint8)
    protocol = model.default_protocol.replace(frames=4, fps=None, short_side=16, crop=16, views="1x1")
    shown = stvid.explain(model, frames, protocol=protocol)
    assert shown.method == "gradcam-tokens" and shown.heat.shape == (4, 16, 16) and shown.heat.std() > 0


def test_few_queries_are_projected_instead_of_many_keys_unless_somebody_listens() -> None:
    model = tiny(drop_path_rate=0.0).double()
    for parameter in model.parameters():  # biases start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    clip = torch.randn(2, 3, 4, 16, 24, dtype=torch.float64)
    seen: list[str] = []

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logits = model(clip)
        logits.square().sum().backward()
        found = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
        return logits.detach(), found

    quick, quick_gradients = gradients()
    for name, block in (("latents", model.cross), ("head", model.head.cross)):
        block.kv.register_forward_hook(lambda layer, inputs, output, name=name: seen.append(name))
    plain, plain_gradients = gradients()
    assert seen == ["latents", "head"]
    torch.testing.assert_close(quick, plain, rtol=1e-10, atol=1e-12)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(quick_gradients[name], gradient, rtol=1e-8, atol=1e-10)
