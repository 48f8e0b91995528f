"""InternVideo2: both GELUs, its tables of positions, the encoder of the pretraining, masks and merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fill  # tests/goldens/fill.py
import numpy as np
import pytest
import torch
from torch import Tensor

import stvid
from stvid.errors import CheckpointError
from stvid.models.blocks import rename_keys, resize_grid
from stvid.models.families.internvideo2 import InternVideo2, positions_3d
from stvid.models.registry import weights_of

GOLDENS = Path(__file__).parents[2] / "goldens"
TINY: dict[str, Any] = {"num_frames": 4, "img_size": (28, 42), "depth": 2, "embed_dim": 48, "num_heads": 4}


def tiny(num_classes: int = 5, **options: Any) -> InternVideo2:
    torch.manual_seed(0)
    model = stvid.create_model("internvideo2_s", num_classes=num_classes, **{**TINY, **options}).eval()
    assert isinstance(model, InternVideo2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def authors_state(model: InternVideo2) -> dict[str, Tensor]:
    """The state of a model in the authors' keys."""
    rules = [
        (r"^head\.norm_([qkv])\.", r"clip_projector.norm1_\1."),
        (r"^head\.attn\.([qkv])\.bias$", r"clip_projector.cross_attn.\1_bias"),
        (r"^head\.attn\.", "clip_projector.cross_attn."),
        (r"^head\.mlp\.", "extra_mlp."),
        (r"^head\.norm\.", "fc_norm."),
        (r"^head\.fc\.", "head."),
    ]
    return rename_keys(model.state_dict(), rules)


def test_the_published_files_were_trained_with_the_tanh_approximation() -> None:
    record = json.loads((GOLDENS / "internvideo2_ap_s_d6__4x56.json").read_text())
    options = {"num_classes": 710, "num_frames": 4, "img_size": 56, "depth": 6, "extra_mlp": True}
    model = stvid.create_model("internvideo2_s", gelu="tanh", **options)
    stvid.load_checkpoint(model, fill.fill_state(record["state"]))
    clip = torch.from_numpy(fill.make_input(record["input_shape"])).double()
    with torch.no_grad():
        logits = model.double().eval()(clip)[0].numpy()
    assert np.abs(logits - np.array(record["logits_gelu_tanh"])).max() < 1e-7 * record["logits_std"]
    assert np.abs(logits - np.array(record["logits"])).max() > 1e-5
    rows = [weights for name in ("internvideo2_s", "internvideo2_1b") for weights in weights_of(name)]
    assert rows and all(weights.options["gelu"] == "tanh" for weights in rows)


@pytest.mark.parametrize("options", [{}, {"sep_pos_embed": True}, {"extra_mlp": True}])
def test_the_authors_files_load(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**options)
    other = stvid.create_model("internvideo2_s", num_classes=5, **{**TINY, **options}).eval()
    assert stvid.load_checkpoint(other, {"module": authors_state(model)}).format == "OpenGVLab/InternVideo2"
    clip = torch.randn(2, 3, 4, 28, 42)
    with torch.no_grad():
        torch.testing.assert_close(other(clip), model(clip), rtol=0, atol=0)


def test_the_options_of_a_file_are_read_off_its_tensors(tmp_path: Path) -> None:
    model = stvid.create_model("internvideo2_s", num_classes=6, depth=2, num_frames=16, extra_mlp=True).eval()
    assert isinstance(model, InternVideo2)
    torch.save({"model": authors_state(model)}, tmp_path / "probe.pth")
    again = stvid.load_model(tmp_path / "probe.pth", name="internvideo2_s")
    assert again.default_protocol.frames == 16 and again.num_classes == 6
    assert again.state_dict().keys() == model.state_dict().keys()


def test_the_pretraining_gives_its_encoder() -> None:
    model = tiny()
    state = {key: value for key, value in authors_state(model).items() if not key.startswith(("head.", "fc_norm."))}
    decoder = {"clip_decoder.0.head.weight": torch.zeros(3, 48), "clip_pos_embed": torch.zeros(1, 25, 48)}
    other = tiny()
    with pytest.raises(CheckpointError, match=r"missing head\.fc"):
        stvid.load_checkpoint(other, {**state, **decoder})
    report = stvid.load_checkpoint(tiny(num_classes=0), {**state, **decoder})
    assert report.format == "OpenGVLab/InternVideo2 pretraining"


def test_tables_follow_frames_and_size_as_in_the_official_fine_tuning() -> None:
    table = torch.randn(1, 8 * 4 * 4, 48)
    larger = resize_grid(table, (8, 4, 4), (16, 5, 5), mode="cubic")
    times = torch.nn.functional.interpolate(table.view(8, 16, 48).permute(1, 2, 0), size=16, mode="linear")
    frames = times.permute(2, 1, 0).unflatten(2, (4, 4))  # (16, 48, 4, 4)
    frames = torch.nn.functional.interpolate(frames, size=(5, 5), mode="bicubic")
    torch.testing.assert_close(larger, frames.permute(0, 2, 3, 1).reshape(1, 400, 48))

    model = tiny(num_frames=16, img_size=70)
    assert torch.equal(model.resize_table("pos_embed", torch.cat((table[:, :1], table), 1), {})[:, 1:], larger)  # type: ignore[index]
    assert model.resize_table("pos_embed", table[:, :7], {}) is None
    built = {"num_frames": 2, "img_size": (56, 112)}
    odd = model.resize_table("pos_embed", torch.zeros(1, 1 + 2 * 4 * 8, 48), built)
    assert odd is not None and odd.shape == model.pos_embed.shape
    separate = tiny(num_frames=16, img_size=70, sep_pos_embed=True)
    assert separate.resize_table("pos_embed_temporal", torch.zeros(1, 8, 48), {}).shape == (1, 16, 48)  # type: ignore[union-attr]
    assert separate.resize_table("pos_embed_spatial", torch.zeros(1, 16, 48), {}).shape == (1, 25, 48)  # type: ignore[union-attr]
    assert separate.resize_table("pos_embed_spatial", torch.zeros(1, 15, 48), {}) is None


def test_positions_start_as_sines_of_time_and_space() -> None:
    table = positions_3d((3, 2, 4), 48).view(3, 2, 4, 48)
    assert torch.equal(table[0, :, :, 12:], table[2, :, :, 12:])  # a quarter is time, the rest space
    assert torch.equal(table[:, 0, 0, :12], table[:, 1, 3, :12])
    assert torch.equal(table[0, 0, :, 12:30], table[0, 1, :, 12:30])  # the column comes first
    assert table[2, 0, 0, 0] == pytest.approx(np.sin(2.0), abs=1e-6)
    assert table[0, 0, 3, 12] == pytest.approx(np.sin(3.0), abs=1e-6)
    torch.manual_seed(0)
    model = stvid.create_model("internvideo2_s", **TINY)
    assert torch.equal(model.pos_embed[:, 1:].detach(), positions_3d((4, 2, 3), 48))  # type: ignore[index, union-attr]


def test_a_mask_leaves_tokens_out_and_tokens_merge() -> None:
    model = tiny()
    clip = torch.randn(2, 3, 4, 28, 42)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    with torch.no_grad():
        whole = model.forward_features(clip)
        torch.testing.assert_close(model.forward_features(clip, mask=mask), whole)
        mask[:, ::2] = True
        assert model.forward_features(clip, mask=mask).shape == (2, 13, 48)
        plain = model(clip)
        stvid.merge_tokens(model, 6)
        merged = model(clip)
        assert merged.shape == plain.shape and not torch.equal(merged, plain)
        assert model.forward_features(clip).shape == whole.shape
        stvid.merge_tokens(model, 0)
        torch.testing.assert_close(model(clip), plain)


def test_channels_that_make_no_table_are_refused() -> None:
    with pytest.raises(ValueError, match="embed_dim 40 is no multiple of 16"):
        tiny(embed_dim=40)
