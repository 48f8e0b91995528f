"""TimeSformer: the layout of transformers, and joint attention written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import stvid
from stvid.models.base import VideoModel

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}


def randomise(model: VideoModel) -> VideoModel:
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


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
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
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
