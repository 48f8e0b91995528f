"""VTN: the Longformer written out, the numbers of the frames, memory, and the authors' files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stvid
from stvid.models.families.vtn import VTN, LocalAttention

TINY: dict[str, Any] = {"num_frames": 6, "img_size": (48, 32), "depth": 2, "embed_dim": 48, "num_heads": 4}
TINY |= {"temporal_depth": 2, "temporal_window": 2}


def tiny(**options: Any) -> VTN:
    torch.manual_seed(0)
    model = stvid.create_model("vtn_vit_b", num_classes=5, **{**TINY, **options}).eval()
    assert isinstance(model, VTN)
    for parameter in model.parameters():  # the tables start small, so that a wrong row would hardly show
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def written_out(layer: LocalAttention, x: Tensor) -> Tensor:
    """The Longformer's attention of one clip, with all scores and a mask; (N, dim) to the same."""
    number, heads = len(x), layer.num_heads

    def split(part: Tensor) -> Tensor:
        return part.unflatten(-1, (heads, -1)).transpose(0, 1)

    def look(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)

    place = torch.arange(number)
    seen = (place[:, None] - place).abs() <= layer.reach
    seen[:, 0] = True
    out = look(*(split(part) for part in layer.qkv(x).chunk(3, dim=1)), seen)
    k, v = (split(part) for part in layer.kv_global(x).chunk(2, dim=1))
    out[0] = look(split(layer.q_global(x)), k, v, torch.ones_like(seen))[0]
    return layer.proj(out)


@pytest.mark.parametrize(("number", "reach"), [(1, 2), (2, 1), (9, 1), (9, 2), (23, 3), (40, 9), (7, 9)])
def test_local_attention_is_what_a_mask_gives(number: int, reach: int) -> None:
    torch.manual_seed(0)
    layer = LocalAttention(24, num_heads=3, reach=reach).double()
    x = torch.randn(2, number, 24, dtype=torch.float64)
    with torch.no_grad():
        found = layer(x)
        for row in range(2):
            torch.testing.assert_close(found[row], written_out(layer, x[row]))


def test_the_numbers_of_the_frames() -> None:
    model = tiny()
    clip = torch.randn(2, 3, 6, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), model.forward_frames(clip, 8 * torch.arange(6)))
        # The table has 286 rows for frames, so that numbers begin again there.
        torch.testing.assert_close(model(clip), model.forward_frames(clip, 286 + 8 * torch.arange(6)))
        other = tiny(first_frame=3, frame_stride=2)
        numbers = 3 + 2 * torch.arange(6).expand(2, -1)
        torch.testing.assert_close(other(clip), other.forward_frames(clip, numbers))
        assert (other(clip) - model(clip)).abs().max() > 1e-2
        whole = torch.randn(1, 3, 250, 16, 16)  # a whole video: its frames are taken for neighbours
        torch.testing.assert_close(model(whole), model.forward_frames(whole, torch.arange(250)), rtol=1e-4, atol=1e-5)
    for wrong in (torch.arange(5), torch.arange(6) - 1, torch.arange(6.0)):
        with pytest.raises(ValueError, match="numbers: takes whole numbers from 0 on"):
            model.forward_frames(clip, wrong)


def authors_state(model: VTN) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {"temporal_encoder.embeddings.position_ids": torch.arange(288)[None]}
    for key, value in model.state_dict().items():
        name, parts = key, [""]
        if key.startswith("temporal_blocks."):
            name = key.replace("temporal_blocks.", "temporal_encoder.encoder.layer.")
            for ours, theirs in (
                ("attn.proj", "attention.output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("attn.", "attention.self."),
                ("q_global", "query_global"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
                ("norm2", "output.LayerNorm"),
            ):
                name = name.replace(ours, theirs)
            for ours, theirs in (("qkv", ["query", "key", "value"]), ("kv_global", ["key_global", "value_global"])):
                if f".{ours}." in name:
                    name, parts = name.replace(ours, "{}"), theirs
        elif key.startswith("head."):
            name = key.replace("head.norm", "mlp_head.0").replace("head.hidden", "mlp_head.1")
            name = name.replace("head.fc", "mlp_head.4")
        elif key == "clip_token":
            name = "cls_token"
        elif key == "frame_positions":
            name = "temporal_encoder.embeddings.position_embeddings.weight"
        elif key == "token_types":
            name = "temporal_encoder.embeddings.token_type_embeddings.weight"
        elif key.startswith("temporal_norm"):
            name = key.replace("temporal_norm", "temporal_encoder.embeddings.LayerNorm")
        else:
            name = f"backbone.{key}"
            value = value.squeeze(2) if key == "patch_embed.proj.weight" else value
        for part, rows in zip(parts, value.chunk(len(parts)), strict=True):
            state[name.format(part)] = rows
    return state


def test_the_authors_files_and_what_they_show() -> None:
    model = tiny(temporal_depth=3, mlp_ratio=3.0)
    state = authors_state(model)
    assert tiny().options_of(state) == {"temporal_depth": 3, "mlp_ratio": 3.0}
    other = tiny(temporal_depth=3, mlp_ratio=3.0)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    assert stvid.load_checkpoint(other, state).format == "bomri/SlowFast"
    clip = torch.randn(1, 3, 6, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(other(clip), model(clip), rtol=0, atol=0)


def test_other_sizes_resize_the_table_of_a_frame() -> None:
    model, clip = tiny(), torch.randn(1, 3, 9, 64, 48)
    with torch.no_grad():
        assert model.forward_features(clip).shape == (1, 10, 48)
        stored = {**model.state_dict()}
        other = tiny(img_size=(64, 48))
        table = other.resize_table("pos_embed", stored["pos_embed"], {"img_size": (48, 32)})
        assert table is not None
        other.load_state_dict({**stored, "pos_embed": table})
        torch.testing.assert_close(other(clip), model(clip))


def test_memory_grows_with_the_number_of_frames() -> None:
    """Scores of the local attention are kept for windows alone, never for all pairs."""
    layer = LocalAttention(24, num_heads=3, reach=2)
    sizes = []

    def watch(weights: Tensor, source: object) -> None:
        sizes.append(weights.numel())

    for number in (100, 200):
        with torch.no_grad(), stvid.models.attention.record_attention(watch):
            layer(torch.randn(1, number, 24))
    assert sum(sizes[2:]) < 2.2 * sum(sizes[:2])
