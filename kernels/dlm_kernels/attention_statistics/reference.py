"""Statistics of attention in plain PyTorch, in tiles of queries that stay in the cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_kernels.common import position_bins

# Score of a key that a causal query must not see; finite, so that probability times score is 0 and not NaN.
_HIDDEN = -1e30
# Least number of queries per head in a tile where it has the room: enough to keep matrix products efficient.
_ROWS = 64


@dataclass
class AttentionStatistics:
    """Reductions of the attention probabilities A of every head, float32.

    lse : [B, H, Lq] log-sum-exp of the scaled scores of each query; −inf for padding
    column_mass : [B, H, Lk] mean over valid queries of the probability given to each key; sums to 1
    pooled_map : [B, H, bins, bins] mass from a bin of queries to a bin of keys, mean over the bin's valid
        queries; rows sum to 1, or are 0 where the bin holds only padding
    row_entropy : [B, H, bins] entropy of a query's probabilities in nats, mean over the bin's valid queries
    """

    lse: Tensor
    column_mass: Tensor
    pooled_map: Tensor | None
    row_entropy: Tensor | None


def reduce_attention(
    q: Tensor,
    k: Tensor,
    scale: float,
    first: list[int],
    causal: bool,
    bins: int | None,
    entropy: bool,
    chunk_bytes: int,
) -> AttentionStatistics:
    """See :func:`dlm_kernels.attention_statistics`; arguments are checked there."""
    batch, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1:3]
    repeat = heads // kv_heads
    query_bin = _membership(queries, bins or 1, q.device)
    key_bin = _membership(keys, bins or 1, q.device)
    lse = q.new_full((batch, heads, queries), float("-inf"), dtype=torch.float32)
    column_mass = q.new_zeros((batch, heads, keys), dtype=torch.float32)
    pooled_map = q.new_zeros((batch, heads, query_bin.shape[1], key_bin.shape[1]), dtype=torch.float32)
    row_entropy = q.new_zeros((batch, heads, query_bin.shape[1]), dtype=torch.float32)
    for b, begin in enumerate(first):
        # A tile holds the scores and their exponentials, hence 8 bytes for each pair of query and key.
        pairs = max(chunk_bytes // 8, 1)
        kv_step = min(kv_heads, max(1, pairs // (repeat * _ROWS * (keys - begin))))
        rows = max(1, pairs // (kv_step * repeat * (keys - begin)))
        members = query_bin[begin:]
        per_bin = members.sum(0).clamp_min(1)
        for kv in range(0, kv_heads, kv_step):
            these = slice(kv * repeat, (kv + kv_step) * repeat)
            queries_here = q[b, these, begin:].float() * scale
            tile = _reduce_heads(
                queries_here, k[b, kv : kv + kv_step, begin:].float(), members, rows, causal, entropy
            )
            lse[b, these, begin:], by_bin, entropies = tile
            column_mass[b, these, begin:] = by_bin.sum(1) / (queries - begin)
            pooled_map[b, these] = by_bin @ key_bin[begin:] / per_bin[:, None]
            row_entropy[b, these] = entropies / per_bin
    return AttentionStatistics(
        lse=lse,
        column_mass=column_mass,
        pooled_map=pooled_map if bins else None,
        row_entropy=row_entropy if bins and entropy else None,
    )


def _reduce_heads(
    q: Tensor, k: Tensor, members: Tensor, rows: int, causal: bool, entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over queries for a few heads: q [h, n, D] scaled, k [hkv, m, D], members [n, bins] → lse [h, n],
    mass by bin of queries [h, bins, m], entropy by bin of queries [h, bins]."""
    heads, length, dim = q.shape
    kv_heads, keys, _ = k.shape
    q = q.view(kv_heads, heads // kv_heads, length, dim)
    k = k.transpose(1, 2)
    lse = q.new_empty(heads, length)
    by_bin = q.new_zeros(heads, members.shape[1], keys)
    row_entropy = q.new_zeros(heads, length)
    # Two tiles for all rounds: fresh memory costs more than the arithmetic done in it.
    tiles = q.new_empty(2, heads * min(rows, length) * keys)
    for i in range(0, length, rows):
        now = slice(i, min(i + rows, length))
        n = now.stop - i
        seen = now.stop if causal else keys
        scores, tile = tiles[:, : heads * n * seen].view(2, heads, n, seen)
        torch.bmm(
            q[:, :, now].reshape(kv_heads, -1, dim), k[:, :, :seen], out=scores.view(kv_heads, -1, seen)
        )
        if causal:
            later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)
            scores[:, :, i:].masked_fill_(later, _HIDDEN)
        highest = scores.amax(-1, keepdim=True)
        probability = torch.softmax(scores.sub_(highest), -1, out=tile)
        # The highest score is 0 now, so its probability is 1 / Σ exp(score).
        log_total = -probability.amax(-1).log()
        lse[:, now] = highest[..., 0] + log_total
        if entropy:
            # H = −Σ p log p, where log p = score − log Σ exp(score)
            row_entropy[:, now] = log_total - scores.mul_(probability).sum(-1)
        span = slice(int(members[now.start].argmax()), int(members[now.stop - 1].argmax()) + 1)
        by_bin[:, span, :seen] += members[now, span].T @ probability
    return lse, by_bin, row_entropy @ members


def _membership(length: int, bins: int, device: torch.device) -> Tensor:
    """Indicator [length, bins] of the bin that each position falls into, float32."""
    bin_of = position_bins(length, bins, device)
    return torch.nn.functional.one_hot(bin_of, min(bins, length)).float()
