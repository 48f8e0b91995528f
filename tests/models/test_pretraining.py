from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch

import stvid
from stvid.checkpoints import load_checkpoint
from stvid.errors import ConfigError
from stvid.models.pretraining import MaskedAutoencoder, Masks, create_autoencoder
from stvid.models.registry import autoencoders, family_of

GOLDENS = Path(__file__).parent.parent / "goldens" / "pretraining"
# The model of each recorded case, and whether it takes more than a few seconds.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "hf_videomae_pretrain_vit_s__16x64": ("videomae_vit_s", {}, False),
    "videomae_pretrain_vit_s__16x64": ("videomae_vit_s", {}, True),
    "videomae_pretrain_vit_b__16x96": ("videomae_vit_b", {}, True),
    "videomaev2_pretrain_vit_b__8x64": ("videomaev2_vit_b", {}, True),
    "videomaev2_pretrain_vit_g_d4__16x56": ("videomaev2_vit_g", {"depth": 4}, True),
    "mae_hiera_tiny_video__8x96": ("hiera_tiny", {}, False),
    "mae_hiera_base_16x224__16x64": ("hiera_base", {}, True),
}
ONE_OF_EACH = ["videomae_vit_s", "hiera_tiny"]


def cases() -> list[Any]:
    return [pytest.param(case, marks=pytest.mark.slow) if slow else case for case, (_, _, slow) in CASES.items()]


def recorded(case: str) -> tuple[dict[str, Any], MaskedAutoencoder, torch.Tensor, Masks]:
    """Returns the record, the model with the official weights, the clip, and the masks."""
    record = json.loads((GOLDENS / f"{case}.json").read_text())
    name, options, _ = CASES[case]
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    clip = clip.transpose(1, 2) if record["layout"] == "N,T,C,H,W" else clip
    model = create_autoencoder(name, num_frames=clip.shape[2], img_size=clip.shape[3], **options)
    load_checkpoint(model, fill.fill_state(record["state"]))
    mask = torch.tensor(record["mask"]).bool().unsqueeze(0)
    mask = ~mask if case.startswith("mae_hiera") else mask  # 1 is visible there
    skipped = torch.tensor(record["decoder_mask"]).bool().unsqueeze(0) if "decoder_mask" in record else None
    return record, model.double().eval(), clip, Masks(mask, skipped)


def official_norms(model: MaskedAutoencoder, shapes: dict[str, Any]) -> dict[str, float]:
    """Returns the gradient's norm for each official tensor, which may be a part of one of ours.

    Each official tensor is filled with a number of its own; converted, ours say which of their entries is from where.
    """
    numbers = {key: torch.full(shape, float(number)) for number, (key, shape) in enumerate(shapes.items(), start=1)}
    _, own = model.convert_checkpoint(numbers)
    sums = dict.fromkeys(shapes, 0.0)
    names = list(shapes)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        for number in own[key].reshape(len(own[key]), -1)[:, 0].unique().int().tolist():
            sums[names[number - 1]] += parameter.grad[own[key] == number].square().sum().item()
    return {key: math.sqrt(value) for key, value in sums.items()}


@pytest.mark.parametrize("case", cases())
def test_outputs_losses_and_gradients_are_those_of_the_authors(case: str) -> None:
    record, model, clip, masks = recorded(case)
    assert sum(parameter.numel() for parameter in model.parameters()) == record["params"]

    prediction = model(clip, masks.mask, masks.decoder_mask)
    tokens, channels = record["config"]["output_stride"]
    assert list(prediction.shape)[-2:] == record["output_shape"][-2:]
    got = prediction.detach()[0, ::tokens, ::channels].flatten().numpy()
    assert np.abs(got - np.array(record["logits"])).max() < 1e-7 * record["logits_std"]
    if "output_mean_square" in record:
        assert prediction.square().mean().item() == pytest.approx(record["output_mean_square"], rel=1e-7)

    loss = model.loss(prediction, clip, masks)
    assert loss.item() == pytest.approx(record["loss"], rel=1e-7)
    loss.backward()
    norms = official_norms(model, record["state"])
    assert norms == pytest.approx(record["grad_norms"], rel=1e-6)
    assert math.hypot(*norms.values()) == pytest.approx(record["grad_norm"], rel=1e-7)

    if "loss_raw_target" in record:
        model.normalize_target = False
        assert model.loss(prediction, clip, masks).item() == pytest.approx(record["loss_raw_target"], rel=1e-7)


@pytest.mark.parametrize("case", ["videomae_pretrain_vit_s__16x64", "mae_hiera_tiny_video__8x96"])
def test_targets_are_those_of_the_authors(case: str) -> None:
    record = json.loads((GOLDENS / f"{case}.json").read_text())
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    # A tiny model does: the target does not depend on the weights.
    model, _ = tiny(CASES[case][0], num_frames=clip.shape[2], img_size=clip.shape[3])
    mask = torch.tensor(record["mask"]).bool().unsqueeze(0)
    hidden = model.hidden_patches(clip.shape, ~mask if case.startswith("mae") else mask)
    rows, columns = record["target_sample_stride"]
    sample = model.target(clip)[hidden][::rows, ::columns].flatten().numpy()
    assert np.abs(sample - np.array(record["target_sample"])).max() < 1e-7


def tiny(name: str, **options: Any) -> tuple[MaskedAutoencoder, torch.Tensor]:
    torch.manual_seed(0)
    decoder = {"decoder_depth": 1, "decoder_embed_dim": 24, "decoder_num_heads": 2}
    options = {"num_frames": 4, "img_size": 64, **family_of(name)[0].tiny, **options}
    size = options["img_size"]
    clip = torch.randn(2, 3, options["num_frames"], size, size)
    return create_autoencoder(name, decoder_options=decoder, **options), clip


def drawn(model: MaskedAutoencoder, clip: torch.Tensor, **options: Any) -> Masks:
    return model.draw_masks(clip.shape, np.random.default_rng(0), mask_ratio=0.75, **options)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_encoder_never_sees_hidden_pixels(name: str) -> None:
    model, clip = tiny(name)
    masks = drawn(model, clip)
    hidden = model.hidden_patches(clip.shape, masks.mask)
    patches = model.cut_patches(clip)
    changed = clip.clone()
    step = model.frame_step
    mean, noise = torch.zeros_like(patches), torch.randn_like(patches)
    noisy = model._joined(torch.where(hidden[:, :, None, None], patches + noise, patches + mean), clip.shape)
    changed[:, :, ::step] = noisy
    with torch.no_grad():
        assert torch.equal(model.eval()(clip, masks.mask), model(changed, masks.mask))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_predictions_and_targets_belong_together(name: str) -> None:
    model, clip = tiny(name)
    masks = drawn(model, clip)
    prediction = model(clip, masks.mask)
    hidden = model.hidden_patches(clip.shape, masks.mask)
    target = model.target(clip)[hidden].view(prediction.shape)
    assert model.loss(target, clip, masks).item() == pytest.approx(0.0, abs=1e-12)
    assert target.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert target.var().item() == pytest.approx(1.0, abs=2e-2)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_learns_with_and_without_recomputation(name: str) -> None:
    model, clip = tiny(name)
    masks = drawn(model, clip)
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(recompute)
        model.loss(model(clip, masks.mask), clip, masks).backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, key
        torch.testing.assert_close(gradients[1][key], gradient)


def test_both_masks_count_in_the_loss_of_the_second_version() -> None:
    model, clip = tiny("videomaev2_vit_s")
    masks = drawn(model, clip, decoder_mask_ratio=0.5)
    assert masks.decoder_mask is not None
    prediction = model(clip, masks.mask, masks.decoder_mask)
    assert prediction.shape[1] == 16  # half of 2 x 4 x 4
    target = model.target(clip)
    decoded = ~masks.decoder_mask
    error = (prediction - target[decoded].view(prediction.shape)).square().mean(2).flatten()
    counted = masks.mask[decoded]
    assert model.loss(prediction, clip, masks).item() == pytest.approx(error[counted].mean().item(), rel=1e-5)
    assert 0 < counted.sum() < counted.numel()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_pictures_show_what_was_seen_and_what_was_predicted(name: str) -> None:
    model, clip = tiny(name)
    masks = drawn(model, clip)
    pictures = model.eval().pictures(clip, masks)
    frames = clip[:, :, :: model.frame_step]
    torch.testing.assert_close(pictures.original, frames)
    hidden = model.hidden_patches(clip.shape, masks.mask)
    shown = model._joined(hidden[:, :, None, None].expand_as(model.cut_patches(clip)), clip.shape)
    assert (pictures.masked[shown] == 0).all()
    torch.testing.assert_close(pictures.masked[~shown], frames[~shown])
    torch.testing.assert_close(pictures.completed[~shown], frames[~shown])
    assert (pictures.completed[shown] != frames[shown]).float().mean() > 0.9


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_perfect_prediction_completes_the_clip(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = tiny(name)
    masks = drawn(model, clip)
    hidden = model.hidden_patches(clip.shape, masks.mask)
    perfect = model.target(clip)[hidden].view(len(clip), -1, model.target(clip).shape[2])
    monkeypatch.setattr(model, "predict", lambda *_: perfect)
    pictures = model.pictures(clip, masks)
    torch.testing.assert_close(pictures.completed, pictures.original, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_encoder_of_a_pretraining_starts_a_classifier(name: str) -> None:
    model, clip = tiny(name)
    options = dict(family_of(name)[0].tiny)
    classifier = stvid.create_model(name, num_classes=5, num_frames=4, img_size=64, **options)
    report = load_checkpoint(classifier, dict(model.state_dict()), reset_head=True)
    assert report.format == "stvid pretraining"
    assert any("decoder" in part for part in report.left_out)
    for key, value in model.encoder.state_dict().items():
        torch.testing.assert_close(classifier.state_dict()[key], value)
    assert classifier(clip).shape == (2, 5)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_autoencoder_loads_its_own_weights_at_another_size(name: str) -> None:
    model, _ = tiny(name)
    other, _ = tiny(name, num_frames=8)
    state = dict(model.state_dict())
    described = {"state_dict": state, "stvid": {"model": model.recipe}}
    report = load_checkpoint(other, described)
    assert set(report.resized) >= ({"encoder.pos_embed"} if name.startswith("videomae") else {"decoder.pos_embed"})
    again, _ = tiny(name)
    load_checkpoint(again, state)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())


def test_as_a_model_it_gives_the_features_of_its_encoder() -> None:
    model, clip = tiny("hiera_tiny")
    model.eval()
    with torch.no_grad():
        features, maps = model.forward_intermediates(clip)
        assert features.shape == (2, 2 * 4 * 4, 64) and maps[-1].shape == (2, 64, 2, 4, 4)
        assert model.token_grid(clip.shape) == (2, 4, 4) and model.mask_grid(clip.shape) == (2, 2, 2)
        torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), features)
        torch.testing.assert_close(model(clip), features.mean(1))
        visible = model.forward_features(clip, mask=drawn(model, clip).mask)
    assert visible.shape == (2, 2 * 4, 64)


def test_a_model_that_cannot_be_pretrained_names_those_that_can() -> None:
    with pytest.raises(ConfigError, match=r"^uniformer_s cannot be pretrained .* these can: hiera_base, .*videomae_"):
        create_autoencoder("uniformer_s")
    assert "uniformer_s" not in autoencoders()


def test_a_decoder_that_predicts_everything_takes_no_mask() -> None:
    model, clip = tiny("hiera_tiny")
    with pytest.raises(ConfigError, match=r"decoder_mask_ratio: the decoder of hiera_tiny predicts all"):
        drawn(model, clip, decoder_mask_ratio=0.5)
    masks = drawn(model, clip)
    with pytest.raises(ValueError, match="so it takes no mask"):
        model(clip, masks.mask, masks.mask)


def test_shares_that_hide_everything_blame_their_key() -> None:
    model, clip = tiny("videomae_vit_s")
    with pytest.raises(ConfigError, match=r"^autoencoder.mask_ratio: a ratio of 0.01 hides none of the 16 places"):
        model.draw_masks(clip.shape, np.random.default_rng(0), mask_ratio=0.01)
    with pytest.raises(ConfigError, match=r"^autoencoder.decoder_mask_ratio: a ratio of 0.1 hides none"):
        model.draw_masks(clip.shape, np.random.default_rng(0), decoder_mask_ratio=0.1)
