"""How much of dense attention a sparse pattern keeps."""

from torch import Tensor

from dlm_kernels.attention_statistics import attention_statistics
from dlm_kernels.block_sparse_attention.reference import blocks_to_columns
from dlm_kernels.common import (
    check_heads,
    check_lse,
    check_pattern,
    check_scale,
    check_start,
    choose,
    chunk_budget,
)
from dlm_kernels.retained_mass.reference import mass_on_columns, reduce_queries
from dlm_kernels.share_columns import SharedColumns, private_lists

__all__ = ["retained_mass"]


def retained_mass(
    q: Tensor,
    k: Tensor,
    columns: Tensor | SharedColumns,
    counts: Tensor | None = None,
    *,
    group_size: int,
    block_size: int = 1,
    lse: Tensor | None = None,
    scale: float | None = None,
    start: Tensor | None = None,
    impl: str = "auto",
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Dense softmax probability that valid queries give to the keys listed for their group: 1 means nothing lost.

    Parameters
    ----------
    q, k : [B, H, Lq, D] and [B, Hkv, Lk, D]; Hkv divides H
    columns, counts, group_size : the pattern, as for ``column_sparse_attention``
    block_size : keys per entry of a list: 1 for columns; for the pattern of ``block_sparse_attention`` its block
        size, which is then the group size too
    lse : float32 [B, H, Lq] from ``attention_statistics``; computed when it is not given
    scale : factor of the scores; 1/√D by default
    start : integer [B], first valid position (left padding); needs Lq = Lk
    impl : "auto", "triton" or "reference"
    chunk_bytes : workspace of the reference

    Returns the mean and the minimum over valid queries, each float32 [B, H]. Raises ``ValueError`` for shapes,
    types or indices that do not fit.
    """
    impl = choose("retained_mass", impl, q)
    check_heads(q, k)
    if block_size not in (1, 16, 32, 64, 128):
        raise ValueError(f"block_size must be 1, 16, 32, 64 or 128, got {block_size}")
    check_pattern(columns, counts, q, -(-k.shape[2] // block_size), group_size)
    check_start(start, q, k)
    check_lse(lse, q)
    scale = check_scale(scale, q)
    if lse is None:
        lse = attention_statistics(
            q, k, scale=scale, start=start, bins=None, impl=impl, chunk_bytes=chunk_bytes
        ).lse
    if impl == "triton":
        from dlm_kernels.listed_attention import as_entries, listed_mass

        kept = listed_mass(q, k, lse, *as_entries(columns, counts, group_size), block_size, scale)
        return reduce_queries(kept, start)
    columns, counts = private_lists(columns, counts, -(-q.shape[2] // group_size))
    if block_size > 1:
        columns, counts = blocks_to_columns(columns, counts, block_size, k.shape[2])
    chunk = chunk_budget(chunk_bytes, q.device)
    return reduce_queries(mass_on_columns(q, k, columns, counts, group_size, lse, scale, chunk), start)
