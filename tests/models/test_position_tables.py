"""Position tables at other frames and sizes, and the layouts of transformers' checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import stvid
from stvid.errors import CheckpointError
from stvid.models.base import VideoModel
from stvid.models.blocks import resize_grid
from stvid.models.families.vivit import tubelet_weight

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("timesformer_base", {}),
    ("timesformer_base", {"attention_type": "joint_space_time"}),
    ("timesformer_base", {"attention_type": "space_only"}),
    ("vivit_b16x2", {}),
    ("vivit_b16x2_fe", {"temporal_depth": 1}),
    ("vivit_b16x2_fsa", {"attention_order": "time_space"}),
    ("vivit_b16x2_fdp", {}),
    ("vivit_b16x2_avgpool", {"tubelet_init": "average"}),
]


def randomise(model: VideoModel) -> VideoModel:
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("name,options", CASES)
def test_a_loaded_table_is_the_one_resized_at_run_time(name: str, options: dict[str, Any], tmp_path: Any) -> None:
    options = {**TINY, **options}
    source = randomise(stvid.create_model(name, num_frames=8, img_size=(48, 64), **options))
    clip = torch.randn(1, 3, 12, 80, 33)
    stvid.save_model(source, tmp_path / "weights.safetensors")
    target = stvid.create_model(name, num_frames=12, img_size=(80, 33), **options).eval()
    report = stvid.load_checkpoint(target, tmp_path / "weights.safetensors")
    assert report.resized and all(key.endswith("_embed") for key in report.resized)
    with torch.no_grad():
        expected = source(clip)
        torch.testing.assert_close(target(clip), expected, rtol=1e-4, atol=1e-4)
    if any(old[1] in (13, 97, 12, 48, 96) for old, _ in report.resized.values()):  # 3 x 4 cells, frames aside
        with pytest.raises(CheckpointError, match="shapes differ"):  # nothing says that the grid was 3 x 4
            stvid.load_checkpoint(target, source.state_dict())


@pytest.mark.parametrize("name,options", CASES)
def test_a_published_table_is_taken_for_a_square(name: str, options: dict[str, Any]) -> None:
    options = {**TINY, **options}
    source = randomise(stvid.create_model(name, num_frames=8, img_size=64, **options))
    target = stvid.create_model(name, num_frames=8, img_size=(48, 80), **options).eval()
    assert stvid.load_checkpoint(target, source.state_dict()).resized
    clip = torch.randn(1, 3, 8, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(target(clip), source(clip), rtol=1e-4, atol=1e-4)


def test_resize_grid_rules() -> None:
    table = torch.tensor([0.0, 10.0, 20.0]).view(1, 3, 1)
    assert resize_grid(table, (3,), (3,), mode="linear") is table
    assert resize_grid(table, (3,), (5,), mode="linear").flatten().tolist() == [0, 5, 10, 15, 20]
    assert resize_grid(table, (3,), (6,), mode="nearest").flatten().tolist() == [0, 0, 10, 10, 20, 20]
    grid = torch.arange(6.0).view(1, 6, 1)
    assert resize_grid(grid, (2, 3), (1, 3), mode="nearest").flatten().tolist() == [0, 1, 2]
    assert resize_grid(grid, (1, 2, 3), (2, 2, 3), mode="linear").flatten().tolist() == 2 * list(range(6))


def test_tubelets_compute_the_image_model_on_a_still_clip() -> None:
    image = torch.randn(4, 3, 8, 8)
    still = torch.randn(1, 3, 1, 8, 8).expand(-1, -1, 4, -1, -1)
    expected = torch.nn.functional.conv2d(still[:, :, 0], image).flatten()
    for init in ("central_frame", "average"):
        weight = tubelet_weight(image, 4, init=init)  # type: ignore[arg-type]
        torch.testing.assert_close(torch.nn.functional.conv3d(still, weight).flatten(), expected)
    assert tubelet_weight(image, 2, init="central_frame")[:, :, 1].equal(image)


TRANSFORMERS_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def test_transformers_timesformer() -> None:
    source = randomise(stvid.create_model("timesformer_base", num_frames=4, img_size=32, **TINY))
    names = {
        "cls_token": "timesformer.embeddings.cls_token",
        "pos_embed": "timesformer.embeddings.position_embeddings",
        "time_embed": "timesformer.embeddings.time_embeddings",
        "patch_embed.proj": "timesformer.embeddings.patch_embeddings.projection",
        "norm": "timesformer.layernorm",
        "head.fc": "classifier",
    }
    block = {
        **TRANSFORMERS_BLOCK,
        "attn.qkv": "attention.attention.qkv",
        "temporal_norm1": "temporal_layernorm",
        "temporal_attn.qkv": "temporal_attention.attention.qkv",
        "temporal_attn.proj": "temporal_attention.output.dense",
        "temporal_fc": "temporal_dense",
    }
    for number in range(2):
        names |= {f"blocks.{number}.{a}": f"timesformer.encoder.layer.{number}.{b}" for a, b in block.items()}
    state = {}
    for key, value in source.state_dict().items():
        stem, dot, last = key.rpartition(".")
        theirs = f"{names[stem]}.{last}" if dot else names[key]
        state[theirs] = value.squeeze(2) if key == "patch_embed.proj.weight" else value
    target = stvid.create_model("timesformer_base", num_frames=4, img_size=32, **TINY)
    assert stvid.load_checkpoint(target, state).format == "transformers Timesformer"
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


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


def test_joint_timesformer_written_out() -> None:
    options = {**TINY, "attention_type": "joint_space_time"}
    model = randomise(stvid.create_model("timesformer_base", num_frames=3, img_size=(32, 48), **options)).double()
    weights = model.state_dict()
    clip = torch.randn(2, 3, 3, 32, 48, dtype=torch.float64)

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return F.layer_norm(x, (32,), weights[f"{key}.weight"], weights[f"{key}.bias"], 1e-6)

    def linear(x: torch.Tensor, key: str) -> torch.Tensor:
        return x @ weights[f"{key}.weight"].T + weights[f"{key}.bias"]

    patches = F.conv3d(clip, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=(1, 16, 16))
    x = patches.flatten(3).permute(0, 3, 2, 1)  # (B, S, T, dim)
    x = x + weights["pos_embed"][:, 1:, None] + weights["time_embed"][:, None]
    cls = (weights["cls_token"] + weights["pos_embed"][:, :1]).expand(2, -1, -1)
    x = torch.cat((cls, x.flatten(1, 2)), dim=1)
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(2, (3, 2, 16)).unbind(2)
        scores = torch.einsum("bnhc,bmhc->bhnm", q, k) / 4
        x = x + linear(torch.einsum("bhnm,bmhc->bnhc", scores.softmax(-1), v).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    expected = linear(norm(x, "norm")[:, 0], "head.fc")
    with torch.no_grad():
        torch.testing.assert_close(model(clip), expected, rtol=1e-9, atol=1e-9)


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
