"""How much attention every key receives from each group of neighbouring queries."""

from collections.abc import Iterator

from torch import Tensor

from dlm_kernels.column_scores.reference import score_columns
from dlm_kernels.common import (
    check_group_size,
    check_heads,
    check_lse,
    check_scale,
    check_start,
    choose,
    chunk_budget,
    first_positions,
)

__all__ = ["column_scores"]


def column_scores(
    q: Tensor,
    k: Tensor,
    *,
    group_size: int,
    scale: float | None = None,
    start: Tensor | None = None,
    lse: Tensor | None = None,
    impl: str = "auto",
    chunk_bytes: int | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Mean over the valid queries of a group of the probability given to each key (PulseCol, arXiv 2605.20813, §2).

    Yields ``(groups, scores)`` for consecutive groups of ``group_size`` queries, ``scores [B, H, len(groups), Lk]``
    float32, so that all scores need never exist together. Each sums to 1 over the keys; padding keys score 0, and
    so does everything in a group that holds only padding.

    Parameters
    ----------
    q, k : [B, H, Lq, D] and [B, Hkv, Lk, D]; Hkv divides H
    group_size : queries per group; the last group may be smaller
    scale : factor of the scores; 1/√D by default
    start : integer [B], first valid position (left padding); needs Lq = Lk
    lse : float32 [B, H, Lq], the log-sum-exp of the scaled scores where it is known already, as from the dense
        forward pass: it saves a GPU half of the work. Its entries at padding are not looked at
    impl : "auto", "triton" or "reference"
    chunk_bytes : workspace, for Triton the bytes of a yielded piece: 4 MB by default on a CPU, 64 MB on a GPU, and
        1 GB for Triton. A piece holds at least one group

    Raises ``ValueError`` at the call for shapes, types or values that do not fit.
    """
    impl = choose("column_scores", impl, q)
    check_heads(q, k)
    check_group_size(group_size)
    check_start(start, q, k)
    check_lse(lse, q)
    scale = check_scale(scale, q)
    chunk = chunk_budget(chunk_bytes, q.device, triton=impl == "triton")
    if impl == "triton":
        from dlm_kernels.column_scores.triton_scores import score_groups

        return score_groups(q, k, group_size, scale, start, lse, chunk)
    return score_columns(q, k, group_size, scale, first_positions(start, q), chunk)
