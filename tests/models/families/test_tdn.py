"""TDN: segments of five frames, differences within and between them, and what the loader gives it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stvid
from stvid.config import load_config
from stvid.engine.finetuning import resolve_config
from stvid.engine.model import build_model
from stvid.errors import ConfigError
from stvid.models.families.tdn import DifferenceGate


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    given = {"num_classes": 5, "num_frames": 15, "img_size": 64, "depth": (1, 1, 1, 1), "embed_dim": 32, **options}
    return stvid.create_model("tdn_r50", **given).eval()


def test_clips_have_five_frames_a_segment() -> None:
    model = tiny()
    assert model.default_protocol.frames_per_segment == 5 and model.default_protocol.segments == 3
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 10, 64, 64)).shape == (1, 256, 2, 2, 2)
        with pytest.raises(ValueError, match="a multiple of 5 frames, 5 a segment, not 12"):
            model(torch.randn(1, 3, 12, 64, 64))
    with pytest.raises(ValueError, match="num_frames 12: TDN takes a multiple of 5 frames"):
        tiny(num_frames=12)


def test_differences_count_more_in_networks_of_eight_segments() -> None:
    assert tiny(num_frames=40).difference_weight == 0.5
    assert tiny(num_frames=80).difference_weight == tiny().difference_weight == 0.25
    assert tiny(num_frames=80, difference_weight=0.4).difference_weight == 0.4


def test_the_first_stage_sees_the_middle_frame_and_the_differences() -> None:
    model = tiny(difference_weight=0.0)
    clip = torch.randn(1, 3, 15, 64, 64)
    other = clip.clone()
    other.unflatten(2, (3, 5))[:, :, :, [0, 1, 3, 4]] = 7.0
    with torch.no_grad():
        torch.testing.assert_close(model(other), model(clip))  # without differences only the middle frames count
        weighed = tiny(difference_weight=0.5)
        assert not torch.allclose(weighed(other), weighed(clip))


def test_a_still_video_gates_by_what_the_blur_leaves() -> None:
    """In a still video both directions differ alike, but at the ends, where there is no neighbour."""
    gate = DifferenceGate(32).eval()
    x = torch.rand(1, 1, 32, 8, 8).expand(1, 4, 32, 8, 8)
    with torch.no_grad():
        out = gate(x)
    torch.testing.assert_close(out[:, 1], out[:, 2])
    assert not torch.allclose(out[:, 0], out[:, 1])


def test_a_video_is_read_as_segments_of_five_frames() -> None:
    frames = np.repeat(np.arange(64, dtype=np.uint8), 64 * 64 * 3).reshape(64, 64, 64, 3)
    clip = stvid.load_clip(frames, protocol=tiny().default_protocol)
    assert clip.indices.reshape(3, 5)[:, 0].tolist() == [10, 30, 50]
    prediction = stvid.predict(tiny(), [frames], topk=1)
    assert len(prediction) == 1


def test_training_with_single_frames_is_refused() -> None:
    config = load_config(None, ["--model.name", "tdn_r50", "--data.train", "x", "--protocol.frames", "40"])
    with pytest.raises(ConfigError, match=r"protocol\.frames_per_segment: tdn_r50 takes 5, not 1"):
        build_model(config, 2)


def test_a_recipe_of_another_model_gets_segments(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model.name", "tdn_r50"]
    config = resolve_config("uniformer_xxs_motion.yaml", given)
    assert (config.protocol.frames, config.protocol.frames_per_segment) == (15, 5)
    assert "protocol.frames 15 instead of 16 of the config" in capsys.readouterr().err
    assert resolve_config("uniformer_xxs_motion.yaml", [*given, "--protocol.frames", "20"]).protocol.segments == 4
    with pytest.raises(ConfigError, match=r"protocol\.frames: 12 is no multiple of protocol\.frames_per_segment"):
        resolve_config("uniformer_xxs_motion.yaml", [*given, "--protocol.frames", "12"])


def test_a_single_place_is_not_halved() -> None:
    with torch.no_grad():
        assert tiny()(torch.randn(1, 3, 5, 32, 32)).isfinite().all()
