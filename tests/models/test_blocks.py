from __future__ import annotations

import copy

import pytest
import torch
import torch.utils.flop_counter
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from stvid.models import blocks
from stvid.models.blocks import Gelu, Mlp, TubeletEmbed, is_watched, resize_grid


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


class Keeping(nn.Linear):
    """A layer of a user's that keeps what it returned."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


@pytest.mark.parametrize("change", ["stride", "padding", "backward hook", "forward", "short clip"])
def test_an_embedding_that_was_changed_is_called(change: str) -> None:
    embed = TubeletEmbed(3, 8, tubelet_size=(2, 4, 4))
    clip = torch.randn(1, 3, 4, 8, 8, requires_grad=True)
    calls: list[int] = []
    if change == "stride":
        embed.proj.stride = (2, 2, 2)
    elif change == "padding":
        embed.proj = nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), padding=(0, 2, 2))
    elif change == "backward hook":
        embed.proj.register_full_backward_hook(lambda *arguments: calls.append(1))
    elif change == "forward":
        forward = embed.proj.forward
        embed.proj.forward = lambda x: calls.append(1) or forward(x)  # type: ignore[func-returns-value]
    else:
        with pytest.raises(RuntimeError):
            embed(clip[:, :, :1])
        return
    tokens = embed(clip)
    torch.testing.assert_close(tokens, embed.proj(clip).permute(0, 2, 3, 4, 1))
    tokens.sum().backward()
    assert bool(calls) == (change in ("backward hook", "forward"))


def test_exported_embeddings_take_clips_that_fill_no_tubelet() -> None:
    embed = TubeletEmbed(3, 8, tubelet_size=(2, 4, 4))
    program = torch.export.export(embed, (torch.randn(1, 3, 4, 8, 8),), dynamic_shapes=({2: torch.export.Dim.AUTO},))
    clip = torch.randn(1, 3, 7, 8, 8)
    torch.testing.assert_close(program.module()(clip), embed(clip))


def test_modes_and_hooks_of_all_modules_are_noticed() -> None:
    assert not is_watched()
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert is_watched()
    hook = register_module_forward_hook(lambda module, inputs, output: None)
    assert is_watched()
    hook.remove()
    with torch.device("cpu"):
        assert is_watched()


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
    with torch.no_grad():
        for layer in (mlp.fc1, mlp.act):
            hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
            mlp(x)
            hook.remove()
        outputs: dict[int, Tensor] = {}
        everywhere = register_module_forward_hook(lambda module, inputs, output: outputs.update({id(module): output}))
        mlp(x)
        everywhere.remove()
        torch.testing.assert_close(outputs[id(mlp.fc1)], mlp.fc1(x))
        mlp.fc1 = Keeping(6, 12)
        mlp(x)
        torch.testing.assert_close(mlp.fc1.last, mlp.fc1(x))
    mlp.fc1, mlp.fc2 = nn.Identity(), nn.Identity()  # the GELU's input is that of the MLP now
    with torch.no_grad():
        mlp(x)
    assert torch.equal(x, kept)


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
