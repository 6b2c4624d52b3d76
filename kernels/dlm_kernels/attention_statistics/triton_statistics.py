"""Statistics of attention in Triton: normalisers unless they are given, then one pass that sums over queries."""

import torch
from torch import Tensor

from dlm_kernels.attention_passes import LEFT_OUT, Segments, normalisers, sum_segments
from dlm_kernels.attention_statistics.reference import AttentionStatistics
from dlm_kernels.common import LOG2_E, position_bins


def reduce_scores(
    q: Tensor,
    k: Tensor,
    scale: float,
    start: Tensor | None,
    causal: bool,
    bins: int | None,
    entropy: bool,
    lse: Tensor | None,
    chunk_bytes: int,
) -> AttentionStatistics:
    """See :func:`dlm_kernels.attention_statistics`; arguments are checked there."""
    batch, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1:3]
    begin = torch.zeros(batch, dtype=torch.int32, device=q.device) if start is None else start.int()
    valid = torch.arange(queries, device=q.device) >= begin[:, None, None]
    lse = normalisers(q, k, begin, scale, causal) if lse is None else lse
    lse = lse.masked_fill(~valid, float("-inf"))
    query_bins, key_bins = min(bins or 1, queries), min(bins or 1, keys)
    segments = Segments.bins(queries, query_bins, q.device)
    of_key = _membership(keys, key_bins, q.device)
    of_query = _membership(queries, query_bins, q.device)
    per_bin = (valid[:, 0].float() @ of_query).clamp_min(1)[:, None]
    column_mass = torch.empty(batch, heads, keys, dtype=torch.float32, device=q.device)
    pooled_map = torch.empty(batch, heads, query_bins, key_bins, dtype=torch.float32, device=q.device)
    row_entropy = torch.empty(batch, heads, query_bins, dtype=torch.float32, device=q.device)
    with_entropy = entropy and bins is not None
    repeat = heads // kv_heads
    step = max(1, chunk_bytes // ((8 if with_entropy else 4) * batch * repeat * query_bins * keys))
    for kv in range(0, kv_heads, step):
        these = slice(kv * repeat, (kv + step) * repeat)
        by_bin, negentropy = sum_segments(
            q[:, these],
            k[:, kv : kv + step],
            torch.where(valid, lse[:, these] * LOG2_E, LEFT_OUT),
            begin,
            segments,
            scale,
            causal,
            with_entropy,
        )
        if with_entropy:
            row_entropy[:, these] = -negentropy / per_bin
        column_mass[:, these] = by_bin.sum(2) / valid.sum(2, keepdim=True)
        if bins:
            pooled_map[:, these] = by_bin @ of_key / per_bin[..., None]
    return AttentionStatistics(
        lse, column_mass, pooled_map if bins else None, row_entropy if with_entropy else None
    )


def _membership(length: int, bins: int, device: torch.device) -> Tensor:
    """Indicator [length, bins] of the bin that each position falls into, float32."""
    return torch.nn.functional.one_hot(position_bins(length, bins, device), bins).float()
