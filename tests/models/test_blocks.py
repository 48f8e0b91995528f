from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stvid.models import blocks
from stvid.models.blocks import Gelu, Mlp, QueryValueBiasAttention, TubeletEmbed, resize_grid


def test_resize_grid_rules() -> None:
    table = torch.tensor([0.0, 10.0, 20.0]).view(1, 3, 1)
    assert resize_grid(table, (3,), (3,), mode="linear") is table
    assert resize_grid(table, (3,), (5,), mode="linear").flatten().tolist() == [0, 5, 10, 15, 20]
    assert resize_grid(table, (3,), (6,), mode="nearest").flatten().tolist() == [0, 0, 10, 10, 20, 20]
    grid = torch.arange(6.0).view(1, 6, 1)
    assert resize_grid(grid, (2, 3), (1, 3), mode="nearest").flatten().tolist() == [0, 1, 2]
    assert resize_grid(grid, (1, 2, 3), (2, 2, 3), mode="linear").flatten().tolist() == 2 * list(range(6))


def test_tokens_have_their_channels_side_by_side() -> None:
    """Sums would hand the layout of the convolution on, and every norm would copy its input."""
    embed = TubeletEmbed(3, 8, tubelet_size=(2, 4, 4))
    clip = torch.randn(2, 3, 4, 8, 12)
    tokens = embed(clip)
    assert tokens.shape == (2, 2, 2, 3, 8) and tokens.is_contiguous()
    torch.testing.assert_close(tokens, embed.proj(clip).permute(0, 2, 3, 4, 1))


def test_a_tubelet_embedding_is_its_convolution() -> None:
    embed = TubeletEmbed(3, 8, tubelet_size=(2, 4, 4)).double()
    clip = torch.randn(2, 3, 5, 9, 13, dtype=torch.float64, requires_grad=True)  # a rest that fills no tubelet
    watched = copy.deepcopy(embed)
    calls: list[int] = []
    watched.proj.register_forward_hook(lambda module, inputs, output: calls.append(1))
    tokens, expected = embed(clip), watched(clip)
    assert calls == [1]
    torch.testing.assert_close(tokens, expected)
    found = torch.autograd.grad(tokens.sin().sum(), [clip, embed.proj.weight, embed.proj.bias])
    wanted = torch.autograd.grad(expected.sin().sum(), [clip, watched.proj.weight, watched.proj.bias])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gelu", ["none", "tanh", "quick"])
def test_a_gelu_overwrites_only_what_nobody_sees(gelu: Gelu) -> None:
    mlp = Mlp(6, 12, gelu=gelu).eval()
    x = torch.randn(2, 3, 6)
    kept = x.clone()
    expected = mlp.fc2(mlp.act(mlp.fc1(x))).detach()
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected)
        seen: list[Tensor] = []
        hook = mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
        torch.testing.assert_close(mlp(x), expected)
        torch.testing.assert_close(seen[0], mlp.fc1(x))
        hook.remove()
        hook = mlp.act.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        torch.testing.assert_close(mlp(x), expected)
        torch.testing.assert_close(seen[-1], mlp.fc1(x))
        hook.remove()
    torch.testing.assert_close(mlp(x), expected)
    mlp.fc1, mlp.fc2 = nn.Identity(), nn.Identity()  # the GELU's input is that of the MLP now
    with torch.no_grad():
        mlp(x)
    assert torch.equal(x, kept)


def test_biases_of_queries_and_values_are_added_with_gradients_as_without() -> None:
    attention = QueryValueBiasAttention(12, num_heads=3)
    nn.init.normal_(attention.q_bias)
    nn.init.normal_(attention.v_bias)
    x = torch.randn(2, 5, 12)
    expected = attention.queries_keys_values(x)
    assert expected[0].requires_grad
    with torch.no_grad():
        found = attention.queries_keys_values(x)
    torch.testing.assert_close(found, tuple(part.detach() for part in expected))
    assert found[0].transpose(1, 2).is_contiguous()


def test_a_large_hidden_layer_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LARGEST", 12 * 4 * 20)
    monkeypatch.setattr(blocks, "PIECE", 12 * 4 * 8)
    mlp = Mlp(6, 12, out_dim=5).eval()
    seen: list[int] = []
    apply = mlp._apply_layers
    monkeypatch.setattr(mlp, "_apply_layers", lambda x: seen.append(x.shape[-2]) or apply(x))
    for x, parts in ((torch.randn(2, 3, 7, 6), [7] * 6), (torch.randn(2, 10, 6), [10]), (torch.randn(0, 10, 6), [10])):
        seen.clear()
        with torch.no_grad():
            found = mlp(x)
        assert seen == parts and found.shape == (*x.shape[:-1], 5)
        seen.clear()
        torch.testing.assert_close(found, mlp(x).detach())  # whole, with gradients
        assert len(seen) == 1
