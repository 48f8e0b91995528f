"""Convolutions of clips: the gradients of depthwise ones are those of torch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvid.models.convolution import conv3d, depthwise

ONCE = (1, 1, 1)


def tensors(channels: int = 5, kernel: tuple[int, int, int] = (3, 3, 5), frames: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, channels, frames, 7, 8), (channels, 1, *kernel), (channels,))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.autograd.grad((out * torch.randn(out.shape, generator=generator)).sum(), inputs))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kernel", "padding", "frames"),
    [
        ((3, 3, 5), (1, 1, 2), 4),
        ((3, 3, 3), (0, 1, 1), 6),  # the ends were repeated before
        ((5, 3, 3), (2, 0, 1), 1),  # taps that no frame meets
        ((3, 1, 1), (1, 0, 0), 3),
        ((1, 7, 7), (0, 3, 3), 2),
    ],
)
def test_depthwise_gradients_are_those_of_torch(kernel, padding, frames, layout):
    inputs = [x.detach() for x in tensors(5, kernel, frames)]
    inputs = [(x.contiguous(memory_format=layout) if x.dim() == 5 else x).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = conv3d(*inputs, (ONCE, padding, ONCE), 5)
    expected = F.conv3d(*exact, padding=padding, groups=5)
    assert "Depthwise" in type(out.grad_fn).__name__
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients(out, inputs), gradients(expected, exact), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


def test_only_what_is_asked_for_is_computed():
    clip, weight, bias = tensors()
    out = conv3d(clip.detach(), weight, None, (ONCE, (1, 1, 2), ONCE), 5)
    (found,) = torch.autograd.grad(out.sum(), weight)
    assert found.shape == weight.shape
    frozen = conv3d(clip, weight.detach(), bias, (ONCE, (1, 1, 2), ONCE), 5)
    assert torch.autograd.grad(frozen.sum(), clip)[0].shape == clip.shape


def test_gradients_can_be_differentiated_again():
    inputs = tensors(3)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    twice = []
    for values in (inputs, exact):  # of doubles conv3d makes torch's own
        out = conv3d(*values, (ONCE, (1, 1, 2), ONCE), 3)
        first = torch.autograd.grad(out.pow(3).sum(), values[:2], create_graph=True)
        twice.append(torch.autograd.grad(sum(x.square().sum() for x in first), values[:2]))
    for mine, theirs in zip(*twice, strict=True):
        assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of oneDNN's operator
def test_gradients_of_each_clip_by_vmap():
    clip, weight, bias = (x.detach() for x in tensors(3))

    def loss(weight: Tensor, clip: Tensor) -> Tensor:
        return conv3d(clip[None], weight, bias, (ONCE, (1, 1, 2), ONCE), 3).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, clip)
    for mine, one in zip(found, clip, strict=True):
        torch.testing.assert_close(mine, torch.func.grad(loss)(weight, one), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_stacked_weights_and_stacked_gradients() -> None:
    clip, weight, bias = (x.detach() for x in tensors(3))
    stacked = torch.stack([weight, -2 * weight])

    def loss(weight: Tensor) -> Tensor:
        return conv3d(clip, weight, bias, (ONCE, (1, 1, 2), ONCE), 3).square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(stacked)
    for mine, one in zip(found, stacked, strict=True):
        torch.testing.assert_close(mine, torch.func.grad(loss)(one), rtol=1e-4, atol=1e-3)
    weight.requires_grad_()
    out = conv3d(clip, weight, bias, (ONCE, (1, 1, 2), ONCE), 3)
    both = torch.stack([torch.ones_like(out), 2 * torch.ones_like(out)])
    (batched,) = torch.autograd.grad(out, weight, both, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(out, weight, both[0])
    torch.testing.assert_close(batched, torch.stack([one, 2 * one]), rtol=1e-4, atol=1e-3)


def test_autocast_around_the_backward_pass_changes_nothing() -> None:
    clip, weight, _ = tensors(3)
    out = conv3d(clip, weight, None, (ONCE, (1, 1, 2), ONCE), 3)
    expected = torch.autograd.grad(out.sum(), [clip, weight], retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(out.sum(), [clip, weight])
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        ((1, 2, 2), (1, 1, 2), ONCE, 4),
        (ONCE, (1, 1, 2), (1, 2, 1), 4),
        (ONCE, (3, 1, 2), ONCE, 4),
        (ONCE, (1, 1, 2), ONCE, 2),
    ],
)
def test_other_convolutions_are_torchs(stride, padding, dilation, groups):
    clip, weight, bias = tensors(4)
    weight = weight.detach().repeat(1, 4 // groups, 1, 1, 1).requires_grad_()
    out = conv3d(clip, weight, bias, (stride, padding, dilation), groups)
    expected = F.conv3d(clip, weight, bias, stride, padding, dilation, groups)
    assert "Depthwise" not in type(out.grad_fn).__name__
    for mine, theirs in zip(gradients(out, [clip, weight]), gradients(expected, [clip, weight]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_no_gradient_is_kept_where_none_is_needed():
    inputs = tensors()
    with torch.no_grad():
        assert conv3d(*inputs, (ONCE, (1, 1, 2), ONCE), 5).grad_fn is None
    assert not conv3d(*[x.detach() for x in inputs], (ONCE, (1, 1, 2), ONCE), 5).requires_grad


def layer(**settings: Any) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(4, 4, 3, **{"padding": 1, "groups": 4, **settings})


def test_a_layer_with_quick_gradients_gives_what_it_gives() -> None:
    conv, clip = layer(), torch.randn(2, 4, 3, 6, 6)
    out, expected = depthwise(conv, clip), conv(clip)
    assert "Depthwise" in type(out.grad_fn).__name__
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    pairs = zip(gradients(out, [*conv.parameters()]), gradients(expected, [*conv.parameters()]), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"stride": (1, 2, 2)}, {"padding_mode": "replicate"}, {"padding": "same"}, {"groups": 2}, {"dilation": 2}],
)
def test_other_settings_are_left_to_the_layer(settings: dict[str, Any]) -> None:
    conv, clip = layer(**settings), torch.randn(2, 4, 5, 6, 6)
    out = depthwise(conv, clip)
    assert "Depthwise" not in type(out.grad_fn).__name__ and torch.equal(out, conv(clip))


def test_what_follows_a_layer_is_left_to_it() -> None:
    conv, clip = layer(), torch.randn(2, 4, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(depthwise(conv, clip), conv(clip))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(depthwise(conv, clip), conv(clip))
    assert depthwise(conv, clip[0]).shape == (4, 3, 6, 6)
    assert depthwise(layer().double(), clip.double()).dtype == torch.float64
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counted:
        depthwise(conv, clip)
    assert counted.get_total_flops() == 2 * clip.numel() * 27
    called: list[nn.Module] = []
    conv.register_forward_hook(lambda module, inputs, output: called.append(module))
    depthwise(conv, clip)
    assert called == [conv]
