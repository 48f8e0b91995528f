"""One attention for all transformers: `attend`, with a choice of kernels that compute the same function.

- ``sdpa`` (default): torch's scaled_dot_product_attention, which picks a fused kernel for the device. On CPUs two cases
  go through blocks of queries instead: inference in bfloat16 without AMX, where torch's kernel takes as long as in
  float32; and the gradient where the bias takes one too (Video Swin): torch has no kernel for it and keeps all scores.
  In bfloat16, attention among a handful of tokens is computed as ``math`` does.
- ``xformers``: memory_efficient_attention, where its operator answers for this dtype, device and shape; it is an
  error to ask for it where it does not.
- ``math``: softmax(q k^T) v written out, the reference of the tests. The only one whose memory grows with N x N.

The backend is chosen for the process with `set_attention_backend`, or for one call. Tensors are laid out as torch has
them, (B, heads, N, head_dim), called ``BHMK``; or as linear layers leave them, (B, N, heads, head_dim), called ``BMHK``
(xformers' names), which no backend but xformers needs and which costs none of them a copy of the inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stvid.errors import UnknownNameError, nearest

__all__ = [
    "AttentionBackend",
    "AttentionLayout",
    "attend",
    "attention_backends",
    "get_attention_backend",
    "record_attention",
    "set_attention_backend",
]

AttentionBackend = Literal["sdpa", "xformers", "math"]
AttentionLayout = Literal["BHMK", "BMHK"]
BLOCK_SCORES = 1 << 22  # scores that one block of queries may have (8 MB in bfloat16, which caches hold)
LONG = 1024  # tokens, from which on torch's kernel for CPUs gains more by inputs side by side than copying them costs
UNPACKED = (258, 512)  # keys, the fewest and the most, see `_padding_is_faster`
FEW = 8  # tokens, up to which bfloat16 is faster without the fused kernel
_backend: AttentionBackend = "sdpa"
Source = tuple[object, str]
"""Which module attends, and over which axes: ``clip``, ``space``, ``time`` or ``window``."""
Recorder = Callable[[Tensor, "Source | None"], None]
_recorder: Recorder | None = None


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


@contextlib.contextmanager
def record_attention(keep: Recorder) -> Iterator[None]:
    """Hands the attention weights of every `attend` to a function, with the `source` that the caller named.

    The weights are (B, heads, N, M), after the softmax.

    Inside, all attention is computed by ``math``, since the fused kernels never hold the weights.
    """
    global _recorder
    before, _recorder = _recorder, keep
    try:
        yield
    finally:
        _recorder = before


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
    layout: AttentionLayout = "BHMK",
    backend: AttentionBackend | None = None,
    source: Source | None = None,
) -> Tensor:
    """Computes softmax(q k^T * scale + bias) v.

    Args:
        q: Queries, (B, heads, N, head_dim), or (B, N, heads, head_dim) with the layout ``BMHK``.
        k: Keys in the same layout, (B, heads, M, head_dim) or (B, M, heads, head_dim).
        v: Values, in the shape of the keys.
        bias: Added to the scores before the softmax, broadcastable to (B, heads, N, M) in both layouts.
        drop_rate: Dropout of the attention weights; the caller passes 0 outside training.
        scale: Factor of the scores; None takes head_dim ** -0.5.
        layout: Order of the axes of q, k, v and of the result.
        backend: For this call; None takes that of the process.
        source: The module that attends and its axes; `record_attention` hands them on.

    Returns:
        The shape of `q`.

    Raises:
        UnknownNameError: If the backend is unknown, cannot be used here, or (xformers) not for these tensors.
        ValueError: If the layout is unknown.
    """
    if layout not in get_args(AttentionLayout):
        raise ValueError(f"attention layout {layout!r}: choose one of {', '.join(get_args(AttentionLayout))}")
    backend = _backend if backend is None else backend
    if backend != "sdpa":
        _check(backend)
    if _recorder is not None or (backend == "sdpa" and not drop_rate and _plain_is_faster(q, k, v, layout)):
        backend = "math"
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "xformers":
        if layout == "BMHK":
            return _attend_xformers(q, k, v, bias, drop_rate, scale)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return _attend_xformers(q, k, v, bias, drop_rate, scale).transpose(1, 2)
    if layout == "BMHK":
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if backend == "math":
        scores = q @ k.transpose(-2, -1)
        scores = scores if scale == 1.0 else scores * scale
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(dim=-1)
        if _recorder is not None:
            _recorder(weights, source)
        out = F.dropout(weights, p=drop_rate, training=drop_rate > 0) @ v
    elif bias is not None and not drop_rate and _has_no_fused_gradient(bias):
        out = _BiasedAttention.apply(q, k, v, bias.view(*[1] * (4 - bias.dim()), *bias.shape), scale)
    else:
        out = _attend_fused(q, k, v, bias, drop_rate, scale)
    return out.transpose(1, 2) if layout == "BMHK" else out


def _attend_xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop_rate: float, scale: float) -> Tensor:
    """Calls memory_efficient_attention on (B, N, heads, head_dim), the layout that it takes without a transpose."""
    from xformers.ops import memory_efficient_attention

    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    try:
        return memory_efficient_attention(q, k, v, attn_bias=bias, p=drop_rate, scale=scale)
    except NotImplementedError as error:  # raised where no operator supports the inputs
        reason = " ".join(str(error).split())[:200]
        raise UnknownNameError(
            f"attention backend xformers: no operator for {q.dtype} of shape {tuple(q.shape)} on {q.device.type}; use "
            f"the backend sdpa ({reason})"
        ) from error


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, drop_rate: float, scale: float) -> Tensor:
    """The backend ``sdpa`` on (B, heads, N, head_dim)."""
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and q.dtype == k.dtype == v.dtype != torch.float64:
        # As torch's function does, but before the choices that depend on the type.
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    if not drop_rate and _blocks_are_faster(q, k, v, bias):
        return _attend_in_blocks(q, k, v, bias, scale)
    if bias is None and not drop_rate and _padding_is_faster(q, k, v):
        k, v, bias = _padded(k, v)
    elif _copies_are_faster(q, k, v):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop_rate, scale=scale)


def _blocks_are_faster(q: Tensor, *others: Tensor | None) -> bool:
    """Returns whether blocks beat torch's fused kernel for CPUs, whose bfloat16 products are as slow as in float32.

    That is so on processors with AVX-512 but not AMX: with it the fused kernel takes a third of the time of blocks.
    ``python tools/benchmark_attention.py --backends`` prints both. Elsewhere oneDNN may have no matrix product in
    bfloat16. Gradients need the fused kernel: blocks would keep every score.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (q, *others)):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not _has_amx()


def _padding_is_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Returns whether torch's kernel for CPUs with AMX takes less time for a few more keys, which are masked.

    From 258 to 512 keys it does, unless their number is a multiple of four: 1,569 queries of MViT with 393 keys take
    half the time with 400 (``python tools/benchmark_attention.py --backends`` prints both).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)):
        return False
    return UNPACKED[0] <= k.shape[2] <= UNPACKED[1] and k.shape[2] % 4 != 0 and _has_amx()


def _padded(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns keys and values of a number that is a multiple of 16, and the bias that gives the last ones no weight."""
    keys = k.shape[2]
    more = -keys % 16
    bias = k.new_zeros(1, 1, 1, keys + more)
    bias[..., keys:] = -torch.inf
    return F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more)), bias


def _has_amx() -> bool:
    with_amx: Callable[[], bool] = getattr(torch.cpu, "_is_amx_tile_supported", bool)
    return with_amx()


def _copies_are_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Returns whether many tokens attend on a CPU, without gradients, which would keep the copies.

    Parts of one projection lie three times as far from token to token as its channels, and are read again for every
    block of queries. Copied, 1,568 tokens of VideoMAE take a fifth less time in float32, and as long in bfloat16.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)):
        return False
    return min(q.shape[2], k.shape[2]) >= LONG


def _plain_is_faster(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout) -> bool:
    """Returns whether so few tokens attend, in bfloat16 on a CPU, that plain matrix products beat torch's kernel.

    Each token then has fewer scores than channels, and the kernel takes half as long again as the products alone.
    Attention over the 8 frames of a TimeSformer is such a case.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)):
        return False
    return k.shape[1 if layout == "BMHK" else 2] <= FEW


def _has_no_fused_gradient(bias: Tensor) -> bool:
    """Returns whether the bias takes a gradient on a CPU, for which torch has no kernel and would keep all scores."""
    differentiated = torch.is_grad_enabled() and bias.requires_grad and not torch.jit.is_tracing()
    return differentiated and bias.device.type == "cpu" and not torch.compiler.is_compiling()


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the clips and the queries of blocks of at most `BLOCK_SCORES` scores, all queries of a clip in turn."""
    batch, heads, queries, _ = q.shape
    row = heads * k.shape[2]
    clips = min(batch, max(1, BLOCK_SCORES // (row * queries)))
    block = min(queries, max(1, BLOCK_SCORES // (row * clips)))
    for first in range(0, batch, clips):
        for start in range(0, queries, block):
            yield slice(first, first + clips), slice(start, start + block)


def _part(bias: Tensor, some: slice, rows: slice) -> Tensor:
    """Returns a view of the part of a bias (1 or B, 1 or heads, 1 or N, 1 or M) for some clips and queries."""
    return bias[some if bias.shape[0] > 1 else slice(None), :, rows if bias.shape[2] > 1 else slice(None)]


def _weights(q: Tensor, keys: Tensor, bias: Tensor | None, some: slice, rows: slice) -> Tensor:
    """Returns the attention weights of one block; the queries are scaled, the keys (clips, heads, head_dim, M)."""
    scores = q @ keys
    if bias is not None:
        scores += _part(bias, some, rows)
    return scores.softmax(dim=-1)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Computes the attention of a few queries at a time, see `_blocks`; (B, heads, N, head_dim) to the same shape."""
    batch, heads, queries, _ = q.shape
    out = q.new_empty(batch, queries, heads, v.shape[-1]).transpose(1, 2)  # values may have other channels
    for some, rows in _blocks(q, k):
        if rows.start == 0:
            keys, values = k[some].transpose(-2, -1).contiguous(), v[some].contiguous()
        out[some, :, rows] = _weights(q[some, :, rows] * scale, keys, bias, some, rows) @ values
    return out


class _BiasedAttention(torch.autograd.Function):
    """`_attend_fused` with a gradient for the bias; it computes the weights again, block by block, and keeps none."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        return _attend_fused(q.detach(), k.detach(), v.detach(), bias.detach(), 0.0, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, bias, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, bias, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, bias, out = ctx.saved_tensors
        sums = torch.promote_types(q.dtype, torch.float32)  # the type of gradients that several blocks add to
        grad_q = torch.empty_like(q)
        grad_k, grad_v, grad_bias = (torch.zeros(x.shape, dtype=sums) for x in (k, v, bias))
        for some, rows in _blocks(q, k):
            if rows.start == 0:
                keys, values = k[some].contiguous(), v[some].transpose(-2, -1).contiguous()
                turned = keys.transpose(-2, -1).contiguous()
            queries, part = q[some, :, rows] * ctx.scale, grad[some, :, rows].contiguous()
            weights = _weights(queries, turned, bias, some, rows)
            grad_v[some] += weights.transpose(-2, -1) @ part
            scores = part @ values  # the gradient of the weights, and then that of the scores
            scores -= (part * out[some, :, rows]).sum(-1, keepdim=True)
            scores *= weights
            grad_q[some, :, rows] = (scores @ keys) * ctx.scale
            grad_k[some] += scores.transpose(-2, -1) @ queries
            share = _part(grad_bias, some, rows)
            share += scores.to(sums).sum_to_size(share.shape)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias.to(bias.dtype), None
