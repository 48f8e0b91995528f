"""A GPU computes what the CPU does: every native model in a tiny size, and the kernels of attention."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import stvid
from stvid.models.attention import attend, attention_backends
from stvid.models.registry import family_of, native_models

pytestmark = pytest.mark.gpu


MODELS = [name for name in native_models() if not family_of(name)[1].same_as]  # the others equal one of these when tiny


def small_model(name: str) -> tuple[nn.Module, Tensor]:
    """Builds the tiny variant of a model, always with the same weights, and two clips."""
    family, variant = family_of(name)
    frames, height, width = family.small_clip
    torch.manual_seed(0)
    options = {**family.tiny, **variant.tiny}
    model = stvid.create_model(name, num_classes=7, num_frames=frames, img_size=(height, width), **options)
    return model, torch.randn(2, 3, frames, height, width)


def assert_close_to_bf16(found: Tensor, expected: Tensor) -> None:
    """The tolerance of tests/models for bfloat16."""
    assert (found.cpu().float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.05


@pytest.mark.parametrize("name", MODELS)
def test_bf16_autocast_and_memory_formats(name: str, device: torch.device) -> None:
    model, clip = small_model(name)
    model.eval()
    with torch.no_grad():
        expected = model(clip)
        model.to(device)
        here = clip.to(device)
        torch.testing.assert_close(model(here).cpu(), expected, rtol=1e-3, atol=1e-3)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert_close_to_bf16(model(here), expected)
        for parameter in model.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        last = here.contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(model(last).cpu(), expected, rtol=1e-3, atol=1e-3)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert_close_to_bf16(model(last), expected)


def train_once(name: str, device: torch.device, *, low: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """Trains a tiny model for one step; returns it with its gradients."""
    model, clip = small_model(name)
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
        logits = model(clip.to(device))
    F.cross_entropy(logits.float(), torch.arange(len(clip), device=device)).backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [key for key, parameter in trained.items() if parameter.grad is None]
    optimizer.step()
    return model, {key: parameter.grad for key, parameter in trained.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_in_bf16_gives_finite_gradients(name: str, device: torch.device) -> None:
    reference, expected = train_once(name, torch.device("cpu"), low=False)
    if device.type == "cpu" and any(isinstance(layer, nn.Conv3d) and layer.groups > 1 for layer in reference.modules()):
        pytest.skip("on CPUs torch's bf16 gradient of a depthwise 3D convolution in channels_last_3d can be wrong")
    model, found = train_once(name, device, low=True)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    # A kernel that leaves memory as it was gives finite numbers, too, but such of another order. NaN is not <= either.
    assert not [key for key, gradient in found.items() if not gradient.abs().max() <= 1000 * largest]
    assert all(any(gradient.any() for gradient in side.values()) for side in (found, expected))
    assert not [key for key, value in model.state_dict().items() if not value.isfinite().all()]


@pytest.mark.parametrize("name", MODELS)
def test_optimize_agrees(name: str, device: torch.device) -> None:
    model, clip = small_model(name)
    model.eval()
    with torch.no_grad():
        expected = model(clip)
    exact = stvid.optimize(model, device=device, precision="float32")
    quick = stvid.optimize(model, device=device)
    with torch.inference_mode():
        torch.testing.assert_close(exact(clip.to(device)).cpu(), expected, rtol=1e-3, atol=1e-3)
        assert_close_to_bf16(quick(clip.to(device)), expected)
    if device.type == "cuda":
        assert quick.precision in ("bf16", "fp16")


def attention_kernels() -> list[pytest.param]:
    """Every backend of `attend`, and each kernel of CUDA that torch may choose."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    named = [pytest.param("sdpa", kernel, id=f"sdpa-{kernel.name.lower()}") for kernel in kernels]
    return [pytest.param("sdpa", None, id="sdpa"), pytest.param("xformers", None, id="xformers"), *named]


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("tokens", [8, 49, 393])
@pytest.mark.parametrize(("backend", "kernel"), attention_kernels())
def test_attend_agrees_with_math(
    backend: str, kernel: SDPBackend | None, tokens: int, with_bias: bool, device: torch.device
) -> None:
    if attention_backends()[backend]:
        pytest.skip(attention_backends()[backend])
    if kernel is SDPBackend.FLASH_ATTENTION and with_bias and device.type == "cuda":
        pytest.skip("the flash kernel takes no bias")
    if kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION) and device.type != "cuda":
        pytest.skip(f"torch has no {kernel.name} on {device.type}")
    torch.manual_seed(0)
    qkv = torch.randn(2, tokens, 3, 4, 32)
    bias = torch.randn(1, 4, tokens, tokens) if with_bias else None
    gradient = torch.randn(2, tokens, 4, 32)

    def run(place: torch.device, dtype: torch.dtype, name: str, kernel: SDPBackend | None) -> list[Tensor]:
        inputs = [x.to(place, dtype).requires_grad_() for x in (qkv, bias) if x is not None]
        q, k, v = inputs[0].unbind(2)
        with contextlib.nullcontext() if kernel is None else sdpa_kernel(kernel):
            out = attend(q, k, v, bias=inputs[1] if with_bias else None, layout="BMHK", backend=name)
            return [out, *torch.autograd.grad(out, inputs, gradient.to(place, dtype))]

    expected = run(torch.device("cpu"), torch.float64, "math", None)
    for got, wanted in zip(run(device, torch.bfloat16, backend, kernel), expected, strict=True):
        assert got.dtype == torch.bfloat16 and got.shape == wanted.shape
        assert (got.cpu().double() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("name", ["uniformer_xxs", "r3d_18"])
def test_compiled_models_agree(name: str, device: torch.device) -> None:
    model, clip = small_model(name)
    model.eval()
    with torch.no_grad():
        expected = model(clip)
    compiled = torch.compile(model.to(device))
    with torch.no_grad():
        torch.testing.assert_close(compiled(clip.to(device)).cpu(), expected, rtol=1e-3, atol=1e-3)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert_close_to_bf16(compiled(clip.to(device)), expected)


def test_depthwise_convolutions_agree_in_both_memory_formats(device: torch.device) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(16, 16, 3, padding=1, groups=16)
    x, gradient = torch.randn(2, 16, 4, 14, 14), torch.randn(2, 16, 4, 14, 14)

    def run(place: torch.device, memory_format: torch.memory_format) -> list[Tensor]:
        layer.to(place).to(memory_format=memory_format)
        inputs = x.to(place).contiguous(memory_format=memory_format).requires_grad_()
        out = layer(inputs)
        taken = torch.autograd.grad(out, (inputs, layer.weight), gradient.to(place))
        return [out.detach().cpu(), *(part.cpu() for part in taken)]

    expected = run(torch.device("cpu"), torch.contiguous_format)
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        for got, wanted in zip(run(device, memory_format), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
