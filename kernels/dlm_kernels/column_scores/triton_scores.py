"""Scores of keys per group of queries in Triton, in pieces of as many groups as the workspace holds."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dlm_kernels.attention_passes import LEFT_OUT, Segments, normalisers, sum_segments
from dlm_kernels.common import LOG2_E


def score_groups(
    q: Tensor,
    k: Tensor,
    group_size: int,
    scale: float,
    start: Tensor | None,
    lse: Tensor | None,
    chunk_bytes: int,
) -> Iterator[tuple[range, Tensor]]:
    """See :func:`dlm_kernels.column_scores`; arguments are checked there."""
    batch, heads, queries, _ = q.shape
    begin = torch.zeros(batch, dtype=torch.int32, device=q.device) if start is None else start.int()
    if lse is None:
        lse = normalisers(q, k, begin, scale, False)
    groups = -(-queries // group_size)
    position = torch.arange(queries, device=q.device)
    valid = position >= begin[:, None]
    # A query's weight in the mean of its group goes into its normaliser: p / n = exp2(score − lse − log2 n).
    first = torch.maximum(position // group_size * group_size, begin[:, None])
    last = (position // group_size * group_size + group_size).clamp_max(queries)
    log_size = (last - first).clamp_min(1).float().log2()
    normaliser = torch.where(valid[:, None], lse * LOG2_E + log_size[:, None], LEFT_OUT)
    step = max(1, chunk_bytes // (4 * batch * heads * k.shape[2]))
    for g in range(0, groups, step):
        piece = range(g, min(g + step, groups))
        rows = slice(piece.start * group_size, min(piece.stop * group_size, queries))
        segments = Segments.groups(rows.stop - rows.start, group_size, q.device)
        # Not kept in a variable: the scores of one piece are gone before those of the next are made.
        yield (
            piece,
            sum_segments(q[:, :, rows], k, normaliser[:, :, rows], begin, segments, scale, False, False)[0],
        )
