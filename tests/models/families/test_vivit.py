"""ViViT: tubelets, and the layouts of transformers and Scenic."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import stvid
from stvid.models.base import VideoModel
from stvid.models.blocks import taps

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


TRANSFORMERS_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
VIVIT_NAMES = {
    "files": {
        **TRANSFORMERS_BLOCK,
        "attn.query": "attention.attention.query",
        "attn.key": "attention.attention.key",
        "attn.value": "attention.attention.value",
    },
    "memory": {  # of transformers 5, which renames them when it reads and writes files
        "norm1": "layernorm_before",
        "attn.query": "attention.q_proj",
        "attn.key": "attention.k_proj",
        "attn.value": "attention.v_proj",
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
}


def randomise(model: VideoModel) -> VideoModel:
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_tubelets_compute_the_image_model_on_a_still_clip() -> None:
    image = torch.randn(4, 3, 8, 8)
    still = torch.randn(1, 3, 1, 8, 8).expand(-1, -1, 4, -1, -1)
    expected = torch.nn.functional.conv2d(still[:, :, 0], image).flatten()
    for init in ("center", "average"):
        weight = taps(image, 4, init=init)  # type: ignore[arg-type]
        torch.testing.assert_close(torch.nn.functional.conv3d(still, weight).flatten(), expected)
    assert taps(image, 2, init="center")[:, :, 1].equal(image)


@pytest.mark.parametrize("where", sorted(VIVIT_NAMES))
def test_transformers_vivit(where: str) -> None:
    source = randomise(stvid.create_model("vivit_b16x2", num_frames=4, img_size=32, **TINY))
    blocks = "vivit.encoder.layer" if where == "files" else "vivit.layers"
    outside = {
        "encoder.cls_token": "vivit.embeddings.cls_token",
        "encoder.pos_embed": "vivit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vivit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vivit.embeddings.patch_embeddings.projection.bias",
        "encoder.norm.weight": "vivit.layernorm.weight",
        "encoder.norm.bias": "vivit.layernorm.bias",
        "head.fc.weight": "classifier.weight",
        "head.fc.bias": "classifier.bias",
    }
    state = {theirs: source.state_dict()[ours] for ours, theirs in outside.items()}
    for key, value in source.state_dict().items():
        if not key.startswith("encoder.blocks."):
            continue
        number, stem = key.split(".")[2], key.split(".", 3)[3].rpartition(".")[0]
        parts = {stem: value}
        if stem == "attn.qkv":
            parts = dict(zip(("attn.query", "attn.key", "attn.value"), value.chunk(3), strict=True))
        for name, part in parts.items():
            state[f"{blocks}.{number}.{VIVIT_NAMES[where][name]}.{key.rpartition('.')[2]}"] = part
    target = stvid.create_model("vivit_b16x2", num_frames=4, img_size=32, **TINY)
    assert stvid.load_checkpoint(target, state).format == "transformers Vivit"
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_scenic_parameters_nested_in_a_train_state() -> None:
    model = stvid.create_model(
        "vivit_b16x2", num_frames=4, img_size=32, depth=1, embed_dim=8, num_heads=2, num_classes=5
    )
    dense = {"kernel": torch.randn(8, 8), "bias": torch.randn(8)}
    heads = {"kernel": torch.randn(8, 2, 4), "bias": torch.randn(2, 4)}
    norm = {"scale": torch.randn(8), "bias": torch.randn(8)}
    params = {
        "embedding": {"kernel": torch.randn(2, 16, 16, 3, 8), "bias": torch.randn(8)},
        "cls": torch.randn(1, 1, 8),
        "Transformer": {
            "posembed_input": {"pos_embedding": torch.randn(1, 9, 8)},
            "encoder_norm": norm,
            "encoderblock_0": {
                "LayerNorm_0": norm,
                "LayerNorm_1": norm,
                "MlpBlock_0": {
                    "Dense_0": {"kernel": torch.randn(8, 32), "bias": torch.randn(32)},
                    "Dense_1": {"kernel": torch.randn(32, 8), "bias": torch.randn(8)},
                },
                "MultiHeadDotProductAttention_0": {
                    "query": heads,
                    "key": heads,
                    "value": heads,
                    "out": {"kernel": torch.randn(2, 4, 8), "bias": dense["bias"]},
                },
            },
        },
        "output_projection": {"kernel": torch.randn(8, 5), "bias": torch.randn(5)},
    }
    for wrapped in (params, {"optimizer": {"target": params, "state": {"step": torch.tensor(3)}}}, {"params": params}):
        report = stvid.load_checkpoint(model, wrapped)
        assert report.format == "scenic ViViT" and report.loaded == len(model.state_dict())
    torch.testing.assert_close(model.head.fc.weight, params["output_projection"]["kernel"].t())
    query = model.encoder.blocks[0].attn.qkv.weight[:8]
    torch.testing.assert_close(query, heads["kernel"].reshape(8, 8).t())


TADACONV = [
    (r"^patch_embed\.proj\.", "backbone.stem.conv1."),
    (r"^encoder\.(cls_token)$", r"backbone.\1"),
    (r"^temporal_encoder\.cls_token$", "backbone.cls_token_out"),
    (r"^encoder\.pos_embed$", "backbone.pos_embd"),
    (r"^temporal_encoder\.pos_embed$", "backbone.temp_embd"),
    (r"^encoder\.blocks\.", "backbone.layers."),
    (r"^temporal_encoder\.blocks\.", "backbone.layers_temporal."),
    (r"^encoder\.norm\.", "backbone.norm."),
    (r"^temporal_encoder\.norm\.", "backbone.norm_out."),
    (r"\.norm1\.", ".norm."),
    (r"\.norm2\.", ".norm_ffn."),
    (r"\.attn\.qkv\.", ".attn.to_qkv."),
    (r"\.mlp\.fc1\.", ".ffn.net.0."),
    (r"\.mlp\.fc2\.", ".ffn.net.3."),
    (r"^head\.fc\.", "head.linear."),
]


def test_tadaconv_has_the_exact_gelu(tmp_path: Path) -> None:
    source = stvid.create_model("vivit_b16x2_fe", num_frames=4, img_size=32, gelu="none", **TINY).eval()
    torch.nn.init.normal_(source.head.fc.weight)
    for module in source.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.constant_(module.weight, 3.0)  # so that values far from zero reach the GELU
    state = {}
    for key, value in source.state_dict().items():
        for pattern, replacement in TADACONV:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    model = stvid.create_model("vivit_b16x2_fe", num_frames=4, img_size=32, **TINY).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    assert stvid.load_checkpoint(model, state).format == "TAdaConv"
    with torch.no_grad():
        expected = source(clip)
        torch.testing.assert_close(model(clip), expected)
        stvid.save_model(model, tmp_path / "own.pt")
        torch.testing.assert_close(stvid.load_model(tmp_path / "own.pt")(clip), expected)
        other = stvid.create_model("vivit_b16x2_fe", num_frames=4, img_size=32, **TINY).eval()
        other.load_state_dict(source.state_dict())  # the same weights with scenic's GELU
        assert not torch.allclose(other(clip), expected, rtol=1e-6, atol=1e-7)


def test_scenic_kernels_show_heads_and_channels() -> None:
    with torch.device("meta"):
        state = {
            "embedding/kernel": torch.empty(2, 16, 16, 3, 1024),
            "output_projection/kernel": torch.empty(1024, 600),
            "SpatialTransformer/posembed_input/pos_embedding": torch.empty(1, 101, 1024),
            "TemporalTransformer/posembed_input/pos_embedding": torch.empty(1, 9, 1024),
            **{
                f"{name}Transformer/encoderblock_{number}/{part}": torch.empty(shape)
                for name, depth in (("Spatial", 3), ("Temporal", 2))
                for number in range(depth)
                for part, shape in (
                    ("MultiHeadDotProductAttention_0/query/kernel", (1024, 16, 64)),
                    ("MlpBlock_0/Dense_0/kernel", (1024, 4096)),
                )
            },
        }
        shown = stvid.create_model("vivit_b16x2_fe").options_of(state)
    assert shown == {
        "depth": 3,
        "temporal_depth": 2,
        "embed_dim": 1024,
        "num_heads": 16,
        "num_frames": 16,
        "img_size": (160, 160),
    }
