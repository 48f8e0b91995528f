"""Motionformer: its trajectories written out, the landmarks, the tables, and the authors' files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import stvid
from stvid.models.families.motionformer import Motionformer, TrajectoryAttention, orthogonal_landmarks

TINY: dict[str, Any] = {"num_frames": 4, "img_size": (48, 32), "depth": 2, "embed_dim": 48, "num_heads": 4}


def tiny(**options: Any) -> Motionformer:
    torch.manual_seed(0)
    model = stvid.create_model("motionformer", num_classes=5, **{**TINY, **options}).eval()
    assert isinstance(model, Motionformer)
    return model


def written_out(layer: TrajectoryAttention, x: Tensor, frames: int) -> Tensor:
    """Trajectory attention of one clip, token by token and head by head."""
    heads, dim = layer.num_heads, x.shape[1] // layer.num_heads
    q, k, v = layer.qkv(x).chunk(3, dim=1)
    cells = (len(x) - 1) // frames
    out = torch.empty_like(x)

    def look(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = []
        for head in range(heads):
            part = slice(head * dim, (head + 1) * dim)
            weights = (keys[:, part] @ query[part] * dim**-0.5).softmax(0)
            parts.append(weights @ values[:, part])
        return torch.cat(parts)

    out[0] = look(q[0], k, v)
    for token in range(1, len(x)):
        starts = [1 + frame * cells for frame in range(frames)]
        path = torch.stack([look(q[token], k[at : at + cells], v[at : at + cells]) for at in starts])
        keys, values = layer.proj_kv(path).chunk(2, dim=1)
        own = layer.proj_q(path[(token - 1) // cells])
        out[token] = look(own, keys, path if layer.original_values else values)
    return layer.proj(out)


@pytest.mark.parametrize("original_values", [True, False])
def test_trajectory_attention_is_what_its_two_steps_say(original_values: bool) -> None:
    torch.manual_seed(0)
    layer = TrajectoryAttention(24, num_heads=3, original_values=original_values).double()
    x = torch.randn(2, 1 + 4 * 5, 24, dtype=torch.float64)
    with torch.no_grad():
        found = layer(x, frames=4)
        for row in range(2):
            torch.testing.assert_close(found[row], written_out(layer, x[row], 4))


def test_landmarks_are_far_from_each_other_and_in_order() -> None:
    basis = torch.eye(4, dtype=torch.float64)
    sequence = torch.stack(
        [basis[0], 2 * basis[0], -basis[0] + 0.1 * basis[1], basis[1], basis[2] + basis[1], basis[3]]
    )
    queries = sequence.view(1, 6, 1, 4).expand(2, -1, 3, -1)
    found = orthogonal_landmarks(queries, 3)
    assert found.shape == (2, 3, 3, 4)
    # The first; of those at a right angle to it the first, number 3; then number 5, at a right angle to both.
    torch.testing.assert_close(found, queries[:, [0, 3, 5]])
    assert torch.equal(orthogonal_landmarks(queries, 99), queries)  # no more than there are


def test_one_landmark_for_each_token_is_near_the_trajectory() -> None:
    """With landmarks that hardly tell tokens apart both kinds average over each frame."""
    torch.manual_seed(0)
    exact = TrajectoryAttention(24, num_heads=3)
    with torch.no_grad():
        exact.qkv.weight[:48].mul_(1e-4)  # queries and keys
        exact.qkv.bias[:48].zero_()
        approximation = TrajectoryAttention(24, num_heads=3, kind="orthoformer", num_landmarks=20)
        approximation.load_state_dict(exact.state_dict())
        x = torch.randn(2, 21, 24)
        torch.testing.assert_close(approximation(x, frames=4), exact(x, frames=4), rtol=1e-4, atol=1e-5)


def test_other_frames_and_sizes_than_built_for() -> None:
    model = tiny()
    clip = torch.randn(1, 3, 8, 64, 48)
    with torch.no_grad():
        assert model.forward_features(clip).shape == (1, 1 + 4 * 4 * 3, 48)
        other = tiny(num_frames=8, img_size=(64, 48))
        report = stvid.load_checkpoint(other, model.state_dict())
        assert list(report.resized) == ["temp_embed"]
        torch.testing.assert_close(other(clip), model(clip))


def test_the_authors_files_and_what_they_show() -> None:
    model = tiny(mlp_ratio=3.0)
    state = {key.replace("head.fc.", "head.").replace("head.hidden.", "pre_logits.fc."): value
             for key, value in model.state_dict().items()}  # fmt: skip
    assert tiny(depth=1).options_of(state) == {"depth": 2, "mlp_ratio": 3.0}
    other = tiny(mlp_ratio=3.0)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    assert stvid.load_checkpoint(other, state).format == "facebookresearch/Motionformer"
    clip = torch.randn(1, 3, 4, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(other(clip), model(clip), rtol=0, atol=0)


def test_all_of_the_last_block_trains_where_the_head_sees_all_tokens() -> None:
    model = tiny()
    assert not model.blocks[-1].attn.proj_q.weight.requires_grad
    assert model.blocks[0].attn.proj_q.weight.requires_grad
    model.reset_classifier(5, head="attentive")
    assert model.blocks[-1].attn.proj_q.weight.requires_grad
    with pytest.raises(ValueError, match="trajectory or orthoformer"):
        tiny(attention="nystrom")
