from __future__ import annotations

import pytest
import torch

from stvid.errors import UnknownNameError
from stvid.models import attention
from stvid.models.attention import attend, attention_backends, get_attention_backend, set_attention_backend


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_backends_agree(dtype: torch.dtype, tolerance: float, with_bias: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16, dtype=dtype) for length in (5, 7, 7))
    bias = torch.randn(1, 3, 5, 7, dtype=dtype) if with_bias else None
    expected = attend(q.double(), k.double(), v.double(), bias=None if bias is None else bias.double(), backend="math")
    for backend, problem in attention_backends().items():
        if not problem:
            got = attend(q, k, v, bias=bias, backend=backend).double()  # type: ignore[arg-type]
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_scale_and_process_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_backend", "sdpa")
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    set_attention_backend("math")
    assert get_attention_backend() == "math"
    by_hand = ((q @ k.transpose(-2, -1)) * 0.3).softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, scale=0.3), by_hand)
    torch.testing.assert_close(attend(q, k, v, scale=0.3, backend="sdpa"), by_hand)


def test_unusable_backends_are_refused_with_a_reason() -> None:
    with pytest.raises(UnknownNameError, match="nearest: sdpa"):
        set_attention_backend("spda")  # type: ignore[arg-type]
    problem = attention_backends()["xformers"]
    if problem:
        with pytest.raises(UnknownNameError, match="xformers"):
            set_attention_backend("xformers")
