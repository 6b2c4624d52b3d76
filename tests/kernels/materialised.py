"""The operations on a whole attention map in float64, the plain meaning the kernels are held to, and how closely."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def scaled_scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Scores [B, H, Lq, Lk]."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    return q.double() @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)


def attention_map(
    q: Tensor, k: Tensor, start: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """Probabilities [B, H, Lq, Lk]; rows of padding are zero."""
    scores = scaled_scores(q, k, scale)
    seen = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    if start is not None:
        valid = valid_queries(start, *q.shape[::2][:2])
        seen &= valid[:, None, None, :] & valid[:, None, :, None]
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)


def valid_queries(start: Tensor | None, batch: int, length: int) -> Tensor:
    """Whether each query is no padding, bool [B, L]."""
    if start is None:
        return torch.ones(batch, length, dtype=torch.bool)
    return torch.arange(length, device=start.device) >= start[:, None]


def listed_keys(
    columns: Tensor, counts: Tensor, group_size: int, queries: int, keys: int, block_size: int = 1
) -> Tensor:
    """Whether each query's list holds each key, bool [B, H, Lq, Lk]."""
    used = torch.arange(columns.shape[-1], device=columns.device) < counts[..., None]
    entries = -(-keys // block_size)
    listed = torch.zeros(*columns.shape[:3], entries, dtype=torch.int32, device=columns.device)
    listed = listed.scatter_add(-1, columns.long(), used.int()).bool()
    return listed.repeat_interleave(group_size, 2)[:, :, :queries].repeat_interleave(block_size, 3)[
        ..., :keys
    ]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Statistics are accumulated in float32 whatever the inputs are, and so are their errors."""
    assert actual.dtype == torch.float32
    expected = expected.to(actual.device)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def assert_attends(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float | None = None
) -> None:
    """``out`` is attention over the kept keys, with at most twice the error of PyTorch's own in the type of q."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = scaled_scores(q, k, scale).masked_fill(~kept, -torch.inf)
    exact = torch.softmax(scores, -1).nan_to_num(0.0) @ v.double()
    seen = kept.any(-1, keepdim=True)
    mask = None if kept.all() else kept
    # Fresh copies: ``contiguous()`` leaves odd strides where a dimension is 1, which some backends refuse.
    packed = (x.clone(memory_format=torch.contiguous_format) for x in (q, k, v))
    # Of the backends only this one takes rows of any size.
    odd = sdpa_kernel(SDPBackend.MATH) if q.shape[-1] % 8 else nullcontext()
    with odd:
        theirs = scaled_dot_product_attention(*packed, attn_mask=mask, scale=scale)
    error = float(torch.where(seen, theirs.double() - exact, 0.0).abs().max())
    # A few numbers may round luckily: half a unit in the last place of the largest is always allowed.
    floor = max(1e-5, torch.finfo(q.dtype).eps / 2 * float(v.abs().max()))
    assert out.dtype == q.dtype
    assert not out[~seen.expand_as(out)].any(), "queries without a key must get zeros"
    assert float((out.double() - exact).abs().max()) <= 2 * error + floor
