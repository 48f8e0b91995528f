"""One attention for all transformers: `attend`, with a choice of kernels that compute the same function.

- ``sdpa`` (default): torch's scaled_dot_product_attention, which picks a fused kernel for the device.
- ``xformers``: memory_efficient_attention, where its operator answers for this dtype, device and shape; it is an
  error to ask for it where it does not.
- ``math``: softmax(q k^T) v written out, the reference of the tests. The only one that holds an N x N matrix.

The backend is chosen for the process with `set_attention_backend`, or for one call.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stvid.errors import UnknownNameError, nearest

__all__ = ["AttentionBackend", "attend", "attention_backends", "get_attention_backend", "set_attention_backend"]

AttentionBackend = Literal["sdpa", "xformers", "math"]
_backend: AttentionBackend = "sdpa"


def set_attention_backend(name: AttentionBackend) -> None:
    """Chooses the backend of this process.

    Raises:
        UnknownNameError: If the name is unknown, or the backend cannot be used here; the message says why.
    """
    global _backend
    _check(name)
    _backend = name


def get_attention_backend() -> AttentionBackend:
    """Returns the backend of this process."""
    return _backend


def attention_backends() -> dict[str, str]:
    """Returns each backend with an empty string if it can be used here, else the reason and the remedy."""
    return {"sdpa": "", "xformers": _xformers_problem(), "math": ""}


def _xformers_problem() -> str:
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        return f"{error}; install it with: pip install 'stvid[xformers]'"
    if not torch.cuda.is_available():
        return "xformers has no CPU kernels, and torch sees no GPU"
    return ""


def _check(name: str) -> None:
    if name not in get_args(AttentionBackend):
        raise UnknownNameError(f"attention backend {name!r}: unknown{nearest(name, get_args(AttentionBackend))}")
    if name == "xformers" and (problem := _xformers_problem()):
        raise UnknownNameError(f"attention backend xformers: {problem}")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    drop_rate: float = 0.0,
    scale: float | None = None,
    backend: AttentionBackend | None = None,
) -> Tensor:
    """Computes softmax(q k^T * scale + bias) v.

    Args:
        q: Queries, (B, heads, N, head_dim).
        k: Keys, (B, heads, M, head_dim).
        v: Values, (B, heads, M, head_dim).
        bias: Added to the scores before the softmax, broadcastable to (B, heads, N, M).
        drop_rate: Dropout of the attention weights; the caller passes 0 outside training.
        scale: Factor of the scores; None takes head_dim ** -0.5.
        backend: For this call; None takes that of the process.

    Returns:
        (B, heads, N, head_dim).

    Raises:
        UnknownNameError: If the backend is unknown or cannot be used here.
    """
    backend = _backend if backend is None else backend
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop_rate, scale=scale)
    _check(backend)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        if bias is not None:
            bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        # xformers wants (B, N, heads, head_dim): a view, not a copy, of what the models hold
        out = memory_efficient_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias, p=drop_rate, scale=scale
        )
        return out.transpose(1, 2)
    scores = (q @ k.transpose(-2, -1)) * scale
    if bias is not None:
        scores = scores + bias
    return F.dropout(scores.softmax(dim=-1), p=drop_rate, training=drop_rate > 0) @ v
