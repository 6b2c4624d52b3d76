"""Statistics of attention that is not from every position to every position: windows, and blocks before a cache."""

from dataclasses import dataclass

import torch
from dlm_kernels import AttentionStatistics
from dlm_kernels.common import chunk_budget, position_bins
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """The positions at which queries and keys stand, in a sequence of ``length`` positions."""

    queries: range
    keys: range
    length: int


def masked_statistics(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    place: Positions,
    *,
    scale: float,
    start: Tensor | None,
    bins: int | None,
    entropy: bool,
) -> AttentionStatistics:
    """What ``dlm_kernels.attention_statistics`` makes, over all positions of the sequence, in tiles of queries.

    ``q`` [B, H, Lq, D] and ``k`` [B, Hkv, Lk, D] stand where ``place`` says; ``mask`` bool [B, 1, Lq, Lk] is True
    where a query may attend, None for everywhere; ``start`` [B] is the first valid position of each sample. Positions
    without a key get no mass, and bins without a valid query are 0. Accumulates in float32.
    """
    batch, heads, repeat = q.shape[0], q.shape[1], q.shape[1] // k.shape[1]
    member = torch.nn.functional.one_hot(position_bins(place.length, bins or 1, q.device)).float()
    lse = q.new_full((batch, heads, q.shape[2]), float("-inf"), dtype=torch.float32)
    column_mass = q.new_zeros((batch, heads, place.length), dtype=torch.float32)
    pooled_map = q.new_zeros((batch, heads, member.shape[1], member.shape[1]), dtype=torch.float32)
    row_entropy = q.new_zeros((batch, heads, member.shape[1]), dtype=torch.float32)
    for b, first in enumerate([0] * batch if start is None else start.tolist()):
        skip, before = max(0, first - place.queries.start), max(0, first - place.keys.start)
        of_queries = member[place.queries.start + skip : place.queries.stop]
        of_keys = slice(place.keys.start + before, place.keys.stop)
        keys = k[b, :, before:].float().repeat_interleave(repeat, 0).transpose(1, 2)
        by_bin = q.new_zeros((heads, member.shape[1], keys.shape[2]), dtype=torch.float32)
        # A tile holds scores and probabilities: 8 bytes for each pair.
        rows = max(1, chunk_budget(None, q.device) // (8 * heads * keys.shape[2]))
        for i in range(0, len(of_queries), rows):
            now = slice(skip + i, min(skip + i + rows, q.shape[2]))
            scores = q[b, :, now].float() @ keys * scale
            if mask is not None:
                scores.masked_fill_(~mask[b, :, now, before:], float("-inf"))
            lse[b, :, now] = scores.logsumexp(-1)
            probability = scores.softmax(-1)
            mine = of_queries[i : i + rows]
            by_bin += mine.T @ probability
            row_entropy[b] += torch.special.entr(probability).sum(-1) @ mine
        per_bin = of_queries.sum(0).clamp_min(1)
        column_mass[b, :, of_keys] = by_bin.sum(1) / len(of_queries)
        pooled_map[b] = by_bin @ member[of_keys] / per_bin[:, None]
        row_entropy[b] /= per_bin
    return AttentionStatistics(
        lse=lse,
        column_mass=column_mass,
        pooled_map=pooled_map if bins else None,
        row_entropy=row_entropy if bins and entropy else None,
    )
