"""The order of the channels reaches the model wherever clips are made, and never a picture for people.

The reference is a model whose first layer has its input weights turned round: on clips in the order blue, green, red it
must give the logits that the plain model gives on red, green, blue. Mean and deviation differ from channel to channel.
"""

from __future__ import annotations

import ast
import copy
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stvid
from stvid.cli import main
from stvid.config import AugmentConfig, load_config
from stvid.data.dataset import Draw, TrainDataset, collate_train
from stvid.data.manifest import read_manifest
from stvid.data.transforms import model_input, normalize, shown_pixels
from stvid.engine.features import extract_features
from stvid.engine.task import VideoTask
from stvid.errors import ConfigError
from stvid.evaluation.evaluate import EvaluationPlan
from stvid.evaluation.features import feature_files, load_features
from stvid.look.inspection import inspect_video
from stvid.look.report import report_html
from stvid.models.base import VideoModel
from stvid.protocol import IMAGENET_MEAN, Protocol, checked_protocol

NAMES = ("left", "right", "turn")
RGB = Protocol(
    frames=4,
    stride=2,
    short_side=40,
    crop=32,
    views="2x3",
    mean=IMAGENET_MEAN,
    std=(0.2, 0.25, 0.3),
    class_names=NAMES,
)
BGR = RGB.replace(channels="bgr")


@pytest.fixture(scope="module")
def plain(tiny_model: Callable[[Protocol], VideoModel]) -> VideoModel:
    return tiny_model(RGB)


@pytest.fixture(scope="module")
def turned(plain: VideoModel) -> VideoModel:
    """The same network for clips in the order blue, green, red."""
    model = copy.deepcopy(plain)
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv3d) and layer.in_channels == 3)
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))
    model.default_protocol = BGR
    return model


@pytest.fixture(scope="module")
def videos(make_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("channels"), per_class=1)


@pytest.fixture(scope="module")
def video(videos: Path) -> str:
    return str(videos / "left" / "left_0.mp4")


def close(first: Any, second: Any) -> None:
    np.testing.assert_allclose(np.asarray(first), np.asarray(second), rtol=1e-4, atol=1e-5)


def test_load_clip(plain: VideoModel, turned: VideoModel, video: str) -> None:
    rgb, bgr = (stvid.load_clip(video, protocol=protocol).tensor for protocol in (RGB, BGR))
    assert torch.equal(bgr, rgb.flip(0)) and not torch.allclose(bgr, rgb, atol=0.1)
    assert torch.equal(stvid.load_clip(video, protocol=RGB, channels="bgr").tensor, bgr)
    with torch.no_grad():
        close(turned(bgr[None]), plain(rgb[None]))
        assert (turned(rgb[None]) - plain(rgb[None])).abs().max() > 1e-3  # it could not be so by accident


def test_evaluate_and_predict(plain: VideoModel, turned: VideoModel, videos: Path, video: str) -> None:
    expected, found = (stvid.evaluate(model, videos) for model in (plain, turned))
    close(found.logits, expected.logits)
    assert np.abs(stvid.evaluate(turned, videos, protocol=RGB).logits - expected.logits).max() > 1e-3
    expected_one, found_one = (stvid.predict(model, video)[0] for model in (plain, turned))
    assert found_one.classes == expected_one.classes
    close(found_one.probabilities, expected_one.probabilities)


def test_timeline(plain: VideoModel, turned: VideoModel, video: str) -> None:
    expected, found = (list(stvid.timeline(model, video, window=0.4, stride=0.2)) for model in (plain, turned))
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        close(one.scores, other.scores)


def test_features(plain: VideoModel, turned: VideoModel, videos: Path, tmp_path: Path) -> None:
    manifest = read_manifest(videos)
    features = []
    for name, model in (("rgb", plain), ("bgr", turned)):
        extract_features(model, manifest, tmp_path / name, accelerator="cpu", devices=1)
        files = feature_files(manifest, tmp_path / name, "npz")
        features.append(np.concatenate([load_features(file).features for file in files]))
    close(*features)


def test_export(plain: VideoModel, turned: VideoModel, video: str, tmp_path: Path) -> None:
    stvid.export_model(turned, tmp_path / "m.pt2")
    exported = stvid.load_exported(tmp_path / "m.pt2")
    assert exported.default_protocol.channels == "bgr"
    assert any("blue, green, red" in line for line in exported.metadata["preprocessing"])
    assert not any("blue" in line for line in stvid.exporting.export_metadata(plain, (3, 4, 32, 32))["preprocessing"])
    expected, found = stvid.predict(plain, video)[0], stvid.predict(exported, video)[0]
    assert found.classes == expected.classes
    close(found.probabilities, expected.probabilities)
    clip = stvid.load_clip(video, protocol=exported.default_protocol)
    with torch.no_grad():
        close(exported(clip.tensor[None]), plain(stvid.load_clip(video, protocol=RGB).tensor[None]))


STRONG = AugmentConfig(
    color_jitter=(0.4, 0.4, 0.4, 0.3), color_jitter_prob=1.0, randaugment_magnitude=9, randaugment_prob=1.0, erasing=1.0
)


def test_training_changes_colours_of_rgb_clips_and_turns_them_last(
    plain: VideoModel, turned: VideoModel, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(videos)
    batches, losses = [], []
    monkeypatch.setattr(VideoTask, "log", lambda *values, **options: None)
    for model in (plain, turned):
        dataset = TrainDataset(manifest, model.default_protocol, STRONG, seed=0)
        batch = collate_train([dataset[Draw(number, 0)] for number in range(len(dataset))])
        config = load_config(None, ["--augment.mixup=0.8", "--augment.label_smoothing=0"])
        task = VideoTask(copy.deepcopy(model), config, lr=0.1, clips_per_step=3, steps_per_epoch=1, training_videos=3)
        with torch.no_grad():
            losses.append(float(task.training_step(batch, 0)))
        batches.append(batch.clips)
    assert torch.equal(*batches)  # uint8, and alike: what is drawn and changed does not depend on the order
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_pictures_for_people_stay_rgb(plain: VideoModel, turned: VideoModel, video: str) -> None:
    expected, found = (stvid.explain(model, video) for model in (plain, turned))
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-3)
    np.testing.assert_array_equal(found.clip.tensor.numpy(), expected.clip.tensor.flip(0).numpy())
    assert expected.frames.astype(float).std(axis=3).max() > 5  # it has colours


def test_inspect_shows_the_same_pictures_and_names_the_order(videos: Path) -> None:
    manifest = read_manifest(videos)
    expected, found = (inspect_video(manifest, 0, protocol, augment=STRONG) for protocol in (RGB, BGR))
    assert len(found.clips) == len(expected.clips) == 8
    for one, other in zip(found.clips, expected.clips, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.source, other.source)
    assert "channels bgr (blue, green, red)" in found.lines()[1] and "blue" not in expected.lines()[1]


def test_report_and_result(turned: VideoModel, videos: Path, tmp_path: Path) -> None:
    result = stvid.evaluate(turned, videos)
    result.save(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["protocol"]["channels"] == "bgr"
    assert "channels bgr (blue, green, red)" in html.unescape(report_html(result))
    assert "channels bgr" in result.summary()


def test_checkpoints_keep_the_order_and_old_ones_are_rgb(turned: VideoModel, tmp_path: Path) -> None:
    stvid.save_model(turned, tmp_path / "m.safetensors")
    assert stvid.load_model(tmp_path / "m.safetensors").default_protocol == BGR
    older = BGR.to_dict()
    del older["channels"]
    assert Protocol.from_dict(older) == RGB


def test_command_line_and_config_files(turned: VideoModel, video: str, tmp_path: Path, capsys: Any) -> None:
    assert load_config(None, ["--protocol.channels=bgr"]).protocol.channels == "bgr"
    (tmp_path / "c.yaml").write_text("protocol:\n  channels: bgr\n")
    assert load_config(tmp_path / "c.yaml").protocol.channels == "bgr"
    with pytest.raises(ConfigError, match=r"protocol\.channels"):
        load_config(None, ["--protocol.channels=gbr"])
    with pytest.raises(ConfigError, match=r"protocol\.channels: 'gbr' is neither rgb nor bgr"):
        RGB.replace(channels="gbr")
    assert main(["train", "--protocol.channels", "bgr", "--data.train", "x", "--print_config"]) == 0
    assert "  channels: bgr\n" in capsys.readouterr().out
    stvid.save_model(turned, tmp_path / "m.safetensors")
    common = ["predict", video, "--checkpoint", str(tmp_path / "m.safetensors"), "--device", "cpu"]
    assert main([*common, "--protocol.channels", "rgb"]) == 0
    captured = capsys.readouterr()
    assert "protocol.channels: rgb instead of bgr" in captured.err and "blue" not in captured.out
    assert main(common) == 0
    assert "channels bgr" in capsys.readouterr().out


def test_earlier_results_of_rgb_are_still_known_by_their_digest(videos: Path) -> None:
    manifest = read_manifest(videos)
    digests = {channels: EvaluationPlan(RGB.replace(channels=channels)).digest(manifest) for channels in ("rgb", "bgr")}
    assert digests["rgb"] != digests["bgr"]
    assert "channels" not in EvaluationPlan(RGB)._described()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_model_input_and_its_inverse(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    clips = pixels if dtype == torch.uint8 else pixels / 255
    for protocol in (RGB, BGR):
        memory = torch.empty(2, 3, 4, 5, 6)
        found = model_input(clips, protocol, out=memory)
        assert found is memory and torch.equal(found, model_input(clips, protocol))
        assert torch.equal(shown_pixels(found, protocol), pixels)
    assert torch.equal(model_input(clips, BGR), model_input(clips, RGB).flip(1))
    assert torch.equal(model_input(clips, RGB), normalize(clips, RGB.mean, RGB.std))


def test_clips_reach_models_by_one_function_only() -> None:
    """Who normalises by hand would forget the order of the channels."""
    package = Path(stvid.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        if path.name == "transforms.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "stvid.data.transforms":
                found += [path.name for alias in node.names if alias.name == "normalize"]
    assert found == []


def test_only_another_order_is_named() -> None:
    assert RGB.describe() == "4 frames, stride 2; short side 40, crop 32; views 2x3"
    assert BGR.describe() == "4 frames, stride 2; short side 40, crop 32; channels bgr (blue, green, red); views 2x3"


def test_frames_are_a_multiple_of_those_of_a_segment(tmp_path: Path) -> None:
    protocol = Protocol(frames=40, frames_per_segment=5, sampling="segment")
    assert protocol.segments == 8 and Protocol.from_dict(protocol.to_dict()) == protocol
    assert protocol.describe().startswith("40 frames, 5 in a row from each of 8 segments; ")
    dense = protocol.replace(sampling="dense", stride=8)
    assert dense.describe().startswith("40 frames, stride 8, 5 in a row at each of 8 places; ")
    with pytest.raises(ConfigError, match=r"protocol.frames: 12 is no multiple of protocol.frames_per_segment \(5\)"):
        protocol.replace(frames=12)
    with pytest.raises(ConfigError, match=r"protocol\.frames_per_segment: 0 is not a positive whole number"):
        protocol.replace(frames_per_segment=0)


def test_training_clips_have_whole_segments() -> None:
    protocol = Protocol(frames=40, frames_per_segment=5)
    assert AugmentConfig(frames=20).clip_protocol(protocol).segments == 4
    with pytest.raises(ConfigError, match=r"augment\.frames: 12 is no multiple of protocol\.frames_per_segment"):
        AugmentConfig(frames=12).clip_protocol(protocol)


def test_earlier_results_of_single_frames_are_still_known_by_their_digest() -> None:
    assert "frames_per_segment" not in EvaluationPlan(RGB)._described()
    rows = RGB.replace(frames_per_segment=2)
    assert EvaluationPlan(rows)._described()["frames_per_segment"] == 2


def test_what_is_no_protocol_is_said() -> None:
    assert checked_protocol(Protocol()) == Protocol()
    for value in ("k400", {"frames": 8}):
        with pytest.raises(ConfigError, match=r"^protocol: .* is no stvid\.Protocol; .*from_dict"):
            checked_protocol(value)
