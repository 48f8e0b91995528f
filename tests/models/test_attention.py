from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stvid
from stvid.errors import UnknownNameError
from stvid.models import attention
from stvid.models.attention import attend, attention_backends, get_attention_backend, set_attention_backend

TOLERANCES = [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)]


class FakeXformers(types.ModuleType):
    """xformers.ops as documented: tensors (B, N, heads, head_dim) and a full bias; computed by hand."""

    def __init__(self) -> None:
        super().__init__("xformers.ops")
        self.calls: list[dict[str, Any]] = []

    def memory_efficient_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_bias: torch.Tensor | None = None,
        p: float = 0.0,
        scale: float | None = None,
    ) -> torch.Tensor:
        batch, queries, heads, dim = query.shape
        assert key.shape == value.shape == (batch, key.shape[1], heads, dim)
        if attn_bias is not None:
            assert attn_bias.shape == (batch, heads, queries, key.shape[1]) and attn_bias.dtype == query.dtype
        if dim > 256:
            raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")
        self.calls.append({"ptr": query.data_ptr(), "strides": query.stride(), "p": p})
        scores = torch.einsum("bnhd,bmhd->bhnm", query, key) * (dim**-0.5 if scale is None else scale)
        weights = (scores if attn_bias is None else scores + attn_bias).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, value)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeXformers]:
    package, ops = types.ModuleType("xformers"), FakeXformers()
    package.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield ops


@pytest.mark.parametrize("dtype,tolerance", TOLERANCES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layout", ["BHMK", "BMHK"])
@pytest.mark.parametrize("keys", [7, 20])  # at most `FEW`, and more
def test_backends_agree(
    dtype: torch.dtype,
    tolerance: float,
    with_bias: bool,
    layout: Literal["BHMK", "BMHK"],
    keys: int,
    xformers: FakeXformers,
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16, dtype=dtype) for length in (5, keys, keys))
    bias = torch.randn(1, 3, 5, keys, dtype=dtype) if with_bias else None
    expected = attend(q.double(), k.double(), v.double(), bias=None if bias is None else bias.double(), backend="math")
    if layout == "BMHK":
        q, k, v, expected = (x.transpose(1, 2) for x in (q, k, v, expected))
    assert set(attention_backends().values()) == {""}
    for backend in attention_backends():
        for grad in (False, True):  # inference in bfloat16 has its own way on a CPU
            with torch.set_grad_enabled(grad):
                leaf = q.detach().requires_grad_(grad)
                got = attend(leaf, k, v, bias=bias, layout=layout, backend=backend)  # type: ignore[arg-type]
            assert got.shape == expected.shape and got.dtype == dtype
            torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_xformers_gets_the_tensors_of_the_models_as_they_are(xformers: FakeXformers) -> None:
    qkv = torch.randn(2, 7, 3, 4, 8)
    q, k, v = qkv.unbind(2)
    got = attend(q, k, v, layout="BMHK", drop_rate=0.1, backend="xformers")
    assert xformers.calls == [{"ptr": qkv.data_ptr(), "strides": q.stride(), "p": 0.1}]  # a view: nothing was copied
    torch.testing.assert_close(got, attend(q, k, v, layout="BMHK", backend="math"))
    with pytest.raises(UnknownNameError, match=r"no operator for torch.float32 of shape \(1, 2, 1, 512\).*sdpa"):
        attend(*torch.randn(3, 1, 2, 1, 512), layout="BMHK", backend="xformers")


@pytest.mark.parametrize("name", ["vivit_b16x2", "vivit_b16x2_fdp", "timesformer_base", "xvit_base", "swin3d_t"])
def test_every_family_computes_the_same_with_every_backend(
    name: str, xformers: FakeXformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_backend", "sdpa")
    torch.manual_seed(0)
    small: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    if name == "swin3d_t":
        small = {"depth": (2, 2), "embed_dim": 16, "num_heads": (1, 2)}
    model = stvid.create_model(name, num_classes=5, num_frames=4, img_size=64, **small).eval()
    clip = torch.randn(2, 3, 4, 64, 64)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            set_attention_backend("sdpa")
            expected = model(clip)
            for backend in ("xformers", "math"):
                set_attention_backend(backend)  # type: ignore[arg-type]
                torch.testing.assert_close(model(clip), expected, rtol=1e-4, atol=1e-5)
    assert xformers.calls


class Largest(TorchDispatchMode):
    """Notes the most elements that any result has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
        return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_math_holds_all_scores(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK_SCORES", 1 << 14)
    q, k, v = torch.randn(3, 2, 4, 500, 8, dtype=dtype)
    sizes = {}
    for backend in ("sdpa", "math"):
        with torch.no_grad(), Largest() as largest:
            attend(q, k, v, backend=backend)  # type: ignore[arg-type]
        sizes[backend] = largest.elements
    assert sizes["math"] == 2 * 4 * 500 * 500
    assert sizes["sdpa"] <= q.numel()


@pytest.mark.parametrize("batch,queries,keys", [(1, 300, 300), (5, 9, 7), (3, 40, 200)])
def test_blocks_of_queries_are_the_whole(batch: int, queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, 3, length, 8) for length in (queries, keys, keys))
    every = torch.randn(batch, 3, queries, keys)
    for bias in (None, every, every[:1], every[:, :1, :1]):
        expected = attend(q, k, v, bias=bias, backend="math", scale=0.2)
        for scores in (1, 700, 5000, 1 << 22):
            monkeypatch.setattr(attention, "BLOCK_SCORES", scores)
            got = attention._attend_in_blocks(q, k, v, bias, 0.2)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 2, 3, 5), (1, 2, 3, 5), (1, 1, 3, 5), (2, 1, 1, 5), (3, 5)])
def test_a_bias_gets_its_gradient_from_blocks(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, length, 2, dtype=torch.float64, requires_grad=True) for length in (3, 5, 5))
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for scores in (1, 20, 1 << 22):
        monkeypatch.setattr(attention, "BLOCK_SCORES", scores)
        assert torch.autograd.gradcheck(lambda *leaves: attend(*leaves[:3], bias=leaves[3], scale=0.4), (q, k, v, bias))
    low = [x.detach().bfloat16().requires_grad_() for x in (q, k, v, bias)]
    grads = torch.autograd.grad(attend(*low[:3], bias=low[3], scale=0.4).sum(), low)
    expected = torch.autograd.grad(attend(q, k, v, bias=bias, scale=0.4).sum(), (q, k, v, bias))
    for found, wanted in zip(grads, expected, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0.05)


def test_training_with_a_bias_holds_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK_SCORES", 1 << 14)
    q, k, v = (torch.randn(6, 4, 100, 8, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 4, 100, 100, requires_grad=True)
    with Largest() as largest:
        attend(q, k, v, bias=bias).sum().backward()
    assert largest.elements <= bias.numel() < 6 * bias.numel()


def test_scale_and_process_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_backend", "sdpa")
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    set_attention_backend("math")
    assert get_attention_backend() == "math"
    by_hand = ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, scale=0.3), by_hand)
    torch.testing.assert_close(attend(q, k, v, scale=0.3, backend="sdpa"), by_hand)


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 64, 8)
    v = torch.ones(1, 2, 64, 8)
    for backend in ("sdpa", "math"):
        dropped = attend(q, k, v, drop_rate=0.5, backend=backend)  # type: ignore[arg-type]
        assert dropped.std() > 0.01 and abs(dropped.mean() - 1) < 0.1


def test_unusable_backends_are_refused_with_a_reason() -> None:
    with pytest.raises(UnknownNameError, match="nearest: sdpa"):
        set_attention_backend("spda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"BMKH.*BHMK, BMHK"):
        attend(*torch.randn(3, 1, 1, 4, 8), layout="BMKH")  # type: ignore[arg-type]
    problem = attention_backends()["xformers"]
    if problem:
        with pytest.raises(UnknownNameError, match="xformers"):
            set_attention_backend("xformers")


@pytest.mark.parametrize("grad", [False, True])
def test_parts_of_one_projection_are_copied_where_many_tokens_attend(
    grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(q.is_contiguous() and k.is_contiguous() and v.is_contiguous())
        return kernel(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    for tokens in (attention.LONG - 1, attention.LONG):
        q, k, v = torch.randn(1, tokens, 3, 2, 8, requires_grad=grad).unbind(2)
        found = attend(q, k, v, layout="BMHK")
        torch.testing.assert_close(found, attend(q, k, v, layout="BMHK", backend="math"), rtol=1e-4, atol=1e-5)
    assert seen == [False, not grad]


@pytest.mark.parametrize("keys", [257, 258, 260, 393, 512, 513])
def test_a_few_masked_keys_change_nothing(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs with AMX take half the time for them in bfloat16; under autocast the tensors come in float32."""
    monkeypatch.setattr(attention, "_has_amx", lambda: True)
    seen: list[int] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        seen.append(k.shape[2])
        return kernel(q, k, v, **options)

    torch.manual_seed(0)
    q, (k, v) = torch.randn(1, 2, 20, 16), torch.randn(2, 1, 2, keys, 16)
    expected = attend(q, k, v, backend="math")
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    padded = 258 <= keys <= 512 and keys % 4
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(q, k, v)
    assert found.dtype == torch.bfloat16 and seen == [-(-keys // 16) * 16 if padded else keys]
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    low = [part.bfloat16().requires_grad_() for part in (q, k, v)]
    attend(*low)
    assert seen[1:] == [keys]
