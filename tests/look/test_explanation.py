"""Maps that are known beforehand: networks that look at one place, and rollouts written out with whole matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stvid
from stvid.errors import ConfigError, UnknownNameError, VideoError
from stvid.look import explanation
from stvid.look.explanation import explain
from stvid.models.attention import attend, record_attention
from stvid.models.base import FeatureInfo, VideoModel
from stvid.models.blocks import Tap
from stvid.models.heads import LinearHead
from stvid.protocol import Protocol

NAMES = ("ant", "bee", "cat")
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 3, "num_frames": 4, "img_size": 32}


class Corner(VideoModel):
    """Class 0 is the light in the upper left quarter of the last half of the clip, class 1 the lower right's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.in_chans = 3, 2, 3
        self.default_protocol = Protocol(frames=4, stride=2, short_side=32, crop=32, class_names=NAMES)
        self.feature_info = [FeatureInfo("head", 2, (2, 16, 16))]
        self.head = LinearHead(2, 3)
        with torch.no_grad():
            self.head.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
            self.head.fc.bias.zero_()

    def encode(self, clip: Tensor, tap: Tap) -> Tensor:
        light = nn.functional.avg_pool3d(clip.mean(1, keepdim=True), (2, 16, 16))  # (B, 1, 2, 2, 2)
        masks = torch.zeros(2, 2, 2, 2)
        masks[0, 1, 0, 0] = masks[1, 1, 1, 1] = 1
        return tap(0, (light + 10) * masks.to(light))


@pytest.fixture(scope="module")
def video(make_video: Callable[..., Path]) -> str:
    return str(make_video("explained.mp4", frames=20))


@pytest.mark.parametrize(("name", "row", "column"), [("ant", 0, 0), ("bee", 1, 1)])
def test_gradcam_finds_the_place(video: str, name: str, row: int, column: int) -> None:
    found = explain(Corner(), video, class_name=name)
    assert found.method == "gradcam" and found.class_name == name
    assert found.heat.shape == (4, 32, 32) and found.heat.max() == 1 and found.heat.min() == 0
    time, y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert time >= 2 and y // 16 == row and x // 16 == column
    assert found.over_time.sum() == pytest.approx(1) and found.over_time[3] > found.over_time[0]


def test_gradcam_of_a_class_that_nothing_speaks_for_is_empty(video: str) -> None:
    found = explain(Corner(), video, class_name="cat")
    assert not found.heat.any() and not found.over_time.any()


def test_the_probability_is_the_models(video: str) -> None:
    model = Corner()
    found = explain(model, video)
    clip = stvid.load_clip(video, protocol=model.default_protocol)
    with torch.no_grad():
        scores = model(clip.tensor[None])[0].softmax(0)
    assert found.class_name == NAMES[scores.argmax()] and found.probability == pytest.approx(float(scores.max()))
    np.testing.assert_array_equal(found.clip.indices, clip.indices)


# --- rollout ----------------------------------------------------------------------------------------------------------


def recorded(model: VideoModel, clip: Tensor) -> list[Tensor]:
    """The attention of every call, averaged over heads, (sequences, N, N)."""
    kept: list[Tensor] = []
    with record_attention(lambda weights, source: kept.append(weights)), torch.no_grad():
        model(clip)
    return [weights.mean(1) for weights in kept]


def random_model(name: str, **options: Any) -> VideoModel:
    torch.manual_seed(0)
    model = stvid.create_model(name, **{**TINY, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # what starts as zero would hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def mixed(weights: Tensor) -> Tensor:
    return 0.5 * torch.eye(weights.shape[-1]) + 0.5 * weights


def roll(model: VideoModel, clip: Tensor) -> Tensor:
    return explanation._rollout(model, clip, None, with_gradients=False)[0].flatten()


CLIP = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def test_recording_hands_over_the_weights() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind(0)
    kept: list[Tensor] = []
    with record_attention(lambda weights, source: kept.append(weights)):
        out = attend(q, k, v)
    attend(q, k, v)
    (weights,) = kept
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    torch.testing.assert_close(weights @ v, out)
    torch.testing.assert_close(out, attend(q, k, v))


@pytest.mark.parametrize(
    ("name", "options"), [("timesformer_base", {"attention_type": "joint_space_time"}), ("vivit_b16x2", {})]
)
def test_rollout_of_joint_attention(name: str, options: dict[str, Any]) -> None:
    model = random_model(name, **options)
    product = torch.eye(recorded(model, CLIP)[0].shape[-1])
    for weights in recorded(model, CLIP):
        product = mixed(weights[0]) @ product
    expected = product[0, 1:]
    found = roll(model, CLIP)
    torch.testing.assert_close(found, expected)


def test_rollout_of_divided_attention() -> None:
    """TimeSformer: whole matrices over (class token, patches frame by frame) for each of the two attentions."""
    model = random_model("timesformer_base", img_size=(32, 48))
    clip = torch.randn(1, 3, 4, 32, 48)
    time, space = 4, 6
    tokens = 1 + time * space
    product = torch.eye(tokens)
    weights = recorded(model, clip)
    for over_time, over_space in zip(weights[::2], weights[1::2], strict=True):
        whole = torch.eye(tokens)
        for place in range(space):
            rows = 1 + place + space * torch.arange(time)
            whole[rows[:, None], rows] = mixed(over_time[place])
        product = whole @ product
        whole = torch.zeros(tokens, tokens)
        for frame in range(time):
            rows = torch.cat((torch.zeros(1, dtype=torch.long), 1 + frame * space + torch.arange(space)))
            part = mixed(over_space[frame])
            whole[rows[1:, None], rows] += part[1:]
            whole[0, rows] += part[0] / time  # the class token's copies are averaged
        product = whole @ product
    torch.testing.assert_close(roll(model, clip), product[0, 1:])


def test_rollout_of_factorised_encoders() -> None:
    """ViViT's model 2: from the clip's token to the frames' class tokens, and in each frame to its patches."""
    model = random_model("vivit_b16x2_fe", img_size=(32, 48), temporal_depth=2)
    clip = torch.randn(1, 3, 4, 32, 48)
    weights = recorded(model, clip)
    spatial = [item for item in weights if len(item) == 2]
    temporal = [item[0] for item in weights if len(item) == 1]
    assert len(spatial) == len(temporal) == 2
    shares = (mixed(temporal[1]) @ mixed(temporal[0]))[0, 1:]
    expected = [(mixed(spatial[1][t]) @ mixed(spatial[0][t]))[0, 1:] * shares[t] for t in range(2)]
    torch.testing.assert_close(roll(model, clip), torch.cat(expected))


def test_rollout_of_attention_side_by_side() -> None:
    """ViViT's model 4: half of the heads over time, half over space; all tokens are averaged."""
    model = random_model("vivit_b16x2_fdp", num_frames=8, img_size=(32, 48))
    clip = torch.randn(1, 3, 8, 32, 48)
    time, space = 4, 6
    relevance = torch.full((time * space,), 1 / (time * space))
    weights = recorded(model, clip)
    for over_time, over_space in reversed(list(zip(weights[::2], weights[1::2], strict=True))):
        whole = torch.zeros(time * space, time * space)
        for place in range(space):
            rows = place + space * torch.arange(time)
            whole[rows[:, None], rows] += 0.5 * over_time[place]
        for frame in range(time):
            rows = frame * space + torch.arange(space)
            whole[rows[:, None], rows] += 0.5 * over_space[frame]
        relevance = relevance @ mixed(whole)
    torch.testing.assert_close(roll(model, clip), relevance)


@pytest.mark.parametrize("name", ["vivit_b16x2_fsa", "vivit_b16x2_fdp", "timesformer_base"])
def test_as_many_frames_as_patches_are_told_apart(name: str) -> None:
    """Axes of equal length: what a clip and its transpose in time and space would confuse."""
    model = random_model(name, num_frames=8 if name.startswith("vivit") else 4)
    clip = torch.randn(1, 3, 8 if name.startswith("vivit") else 4, 32, 32)
    kinds = []
    real = explanation._roll

    def spy(layers: Any, *arguments: Any, **keywords: Any) -> Tensor:
        kinds.extend(layer.kind for layer in layers)
        return real(layers, *arguments, **keywords)

    explanation._roll = spy
    try:
        roll(model, clip)
    finally:
        explanation._roll = real
    order = ["frame", "column"] if name.endswith("fsa") else ["column", "frame"]
    assert kinds == order * 2


def test_grad_rollout_depends_on_the_class() -> None:
    model = random_model("vivit_b16x2")
    maps = [explanation._rollout(model, CLIP.clone(), k, with_gradients=True)[0] for k in range(3)]
    assert all((item >= 0).all() and item.any() for item in maps)
    assert not torch.allclose(maps[0] / maps[0].max(), maps[1] / maps[1].max(), rtol=1e-2)


def test_grad_rollout_of_one_layer_is_chefers_equation() -> None:
    model = random_model("vivit_b16x2", depth=1)
    kept: list[Tensor] = []
    with record_attention(lambda weights, source: kept.append(weights)):
        logits = model(CLIP.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(logits[0, 2], kept)
    expected = (kept[0] * gradient).clamp(min=0).mean(1)[0, 0, 1:]
    found = explanation._rollout(model, CLIP.clone(), 2, with_gradients=True)[0].flatten()
    torch.testing.assert_close(found, expected)


# --- inflated image networks ------------------------------------------------------------------------------------------


class CornerImage(nn.Module):
    """The image network that `Corner` is of a clip, with places first (torch) or channels last (Swin)."""

    def __init__(self, *, channels_last: bool) -> None:
        super().__init__()
        self.maps = CornerMaps(channels_last)
        self.head = nn.Linear(2, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
            self.head.bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.maps(image).mean(self.maps.places))


class CornerMaps(nn.Module):
    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.places = (1, 2) if channels_last else (2, 3)
        self.stem = nn.Conv2d(3, 1, 8, stride=8)

    def forward(self, image: Tensor) -> Tensor:
        light = self.stem(image).square() + 10  # (N, 1, 4, 4): an earlier map, of the same size
        masks = torch.zeros(2, 4, 4)
        masks[0, :2, :2] = masks[1, 2:, 2:] = 1
        maps = light * masks.to(light)
        return maps.permute(0, 2, 3, 1) if self.places == (1, 2) else maps


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "row", "column"), [("ant", 0, 0), ("bee", 1, 1)])
def test_gradcam_of_an_inflated_network(channels_last: bool, name: str, row: int, column: int, video: str) -> None:
    model = stvid.inflate(CornerImage(channels_last=channels_last), num_frames=4, temporal="none", img_size=32)
    model.default_protocol = model.default_protocol.replace(class_names=NAMES, short_side=32)
    found = explain(model, video, class_name=name)
    assert found.method == "gradcam" and found.heat.shape == (4, 32, 32) and found.heat.max() == 1
    _, y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert y // 16 == row and x // 16 == column
    assert not found.heat[
        :, (1 - row) * 16 + 4 : (1 - row) * 16 + 12, (1 - column) * 16 + 4 : (1 - column) * 16 + 12
    ].any()


@pytest.mark.parametrize("temporal", ["attention", "head"])
def test_gradcam_on_the_tokens_of_an_inflated_vit(temporal: Any, video: str) -> None:
    torch.manual_seed(0)
    model: Any = stvid.inflate(
        "timm:vit_tiny_patch16_224",
        num_frames=4,
        num_classes=3,
        temporal=temporal,
        img_size=(32, 64),
        depth=2,
        embed_dim=48,
        patch_size=8,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # what starts as the identity hides mistakes
            nn.init.normal_(parameter, std=0.1)
    clip = torch.randn(1, 3, 4, 32, 64)
    heat, logits, _, tokens_drawn = explanation._gradcam(model, clip.clone(), 2)
    assert tokens_drawn
    # The same, with the network run by hand from the last block's tokens on.
    image = model.network
    frames = model._fold(clip)
    tokens = image.blocks[0](image.norm_pre(image._pos_embed(image.patch_embed(frames))))
    for number, hook in image.blocks[1]._forward_pre_hooks.items():
        if number in image.blocks[1]._forward_pre_hooks_with_kwargs:  # the others only look at the input
            (tokens,), _ = hook(image.blocks[1], (tokens,), {})
    tokens = tokens.detach().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(model(clip)[0], logits)
    rest = type(image.blocks[1]).forward(image.blocks[1], tokens)
    features = image.forward_head(image.norm(rest)).unflatten(0, (1, 4))
    mixed = model.temporal["head"](features) if temporal == "head" else features.mean(1)
    expected_logits = model.head(mixed)[0]
    torch.testing.assert_close(expected_logits, logits)
    (gradient,) = torch.autograd.grad(expected_logits[2], tokens)
    patches, slopes = tokens[:, 1:].detach(), gradient[:, 1:]  # without the class token
    expected = (patches * slopes.mean((0, 1))).sum(-1).relu().unflatten(1, (4, 8))
    assert heat.shape == (4, 4, 8) and heat.any()
    torch.testing.assert_close(heat, expected)

    square: Any = stvid.inflate(
        "timm:vit_tiny_patch16_224", num_frames=4, num_classes=3, temporal=temporal, img_size=32, depth=2, embed_dim=48
    )
    found = explain(square, video)
    assert found.method == "gradcam-tokens" and found.heat.shape == (4, 32, 32)
    with pytest.raises(ConfigError, match="take gradcam"):
        explain(square, video, method="rollout")


# --- every model, files, errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("uniformer_xxs", "gradcam"),
        ("swin3d_t", "gradcam"),
        ("r3d_18", "gradcam"),
        ("c3d", "gradcam"),
        ("timesformer_base", "rollout"),
        ("xvit_base", "rollout"),
        ("vivit_b16x2_avgpool", "rollout"),
    ],
)
def test_auto(name: str, method: str, video: str) -> None:
    shrink: dict[str, Any] = {
        "uniformer_xxs": {"num_frames": 4, "img_size": 64},
        "swin3d_t": {
            "depth": (1, 1, 1, 1),
            "embed_dim": 16,
            "num_heads": (1, 2, 2, 4),
            "num_frames": 4,
            "img_size": 64,
        },
        "r3d_18": {"depth": (1, 1, 1, 1), "num_frames": 4, "img_size": 64},
        "c3d": {"embed_dim": (8, 8, 8, 8, 8), "hidden_dim": 16, "num_frames": 16, "img_size": 64},
    }
    torch.manual_seed(0)
    model = stvid.create_model(name, **{"num_classes": 3, **shrink.get(name, TINY)})
    with torch.no_grad():
        nn.init.normal_(model.get_classifier().weight)
    model.train()
    found = explain(model, video)
    frames, side = model.default_protocol.frames, model.default_protocol.crop
    assert found.method == method and found.heat.shape == (frames, side, side)
    assert np.isfinite(found.heat).all() and found.heat.max() in (0.0, pytest.approx(1.0))
    assert all(module.training for module in model.modules())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert "forward_features" not in model.__dict__ and not any(m._forward_hooks for m in model.modules())


def test_files(video: str, tmp_path: Path) -> None:
    found = explain(Corner(), video)
    picture, movie = found.save(tmp_path / "out")
    assert picture.name == "explained_gradcam.png" and movie.name == "explained_gradcam.mp4"
    with av.open(str(movie)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and float(stream.average_rate) == pytest.approx(12.5)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 4 and frames[0].shape == (448, 448, 3)
    assert frames[0][:24].mean() < 60  # the banner
    warm = [(frame[30:, :, 0].astype(int) - frame[30:, :, 2]).max() for frame in frames]
    assert warm[3] > 100 > 0 > warm[0]  # red at the end, blue at the start


def test_bad_calls(video: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nearest: bee"):
        explain(Corner(), video, class_name="be")
    with pytest.raises(ConfigError, match="method"):
        explain(Corner(), video, method="lime")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="take gradcam"):
        explain(Corner(), video, method="rollout")
    transformer = random_model("timesformer_base")
    with pytest.raises(ConfigError, match="take rollout"):
        explain(transformer, video, method="gradcam")
    with pytest.raises(ConfigError, match="same for all classes"):
        explain(transformer, video, method="rollout", class_name="class 1")
    assert explain(transformer, video, class_name="class 1").method == "grad-rollout"
    with pytest.raises(VideoError, match="no such file"):
        explain(Corner(), tmp_path / "gone.mp4")
    for bad in ({"start": -1.0}, {"start": float("nan")}, {"start": 2.0, "end": 1.0}, {"end": 0.0}):
        with pytest.raises(ConfigError, match=f"{list(bad)[-1]}: .* second"):
            explain(Corner(), video, **bad)
