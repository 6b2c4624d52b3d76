"""How much of dense attention a sparse pattern keeps."""

from torch import Tensor

from dlm_kernels.attention_statistics import attention_statistics
from dlm_kernels.common import check_columns, check_heads, choose, chunk_budget, first_positions
from dlm_kernels.retained_mass.reference import mass_on_columns

__all__ = ["retained_mass"]


def retained_mass(
    q: Tensor,
    k: Tensor,
    columns: Tensor,
    counts: Tensor,
    *,
    group_size: int,
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
    lse : [B, H, Lq] from ``attention_statistics``; computed when it is not given
    scale : factor of the scores; 1/√D by default
    start : integer [B], first valid position (left padding); needs Lq = Lk
    impl : "auto" or "reference"
    chunk_bytes : workspace

    Returns the mean and the minimum over valid queries, each float32 [B, H]. Raises ``ValueError`` for shapes,
    types or indices that do not fit.
    """
    choose("retained_mass", impl, ("reference",))
    check_heads(q, k)
    check_columns(columns, counts, q, k, group_size)
    first = first_positions(start, q, k)
    if lse is None:
        statistics = attention_statistics(q, k, scale=scale, start=start, bins=None, chunk_bytes=chunk_bytes)
        lse = statistics.lse
    elif lse.shape != q.shape[:3]:
        raise ValueError(f"lse must be {tuple(q.shape[:3])}, got {tuple(lse.shape)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    budget = chunk_budget(chunk_bytes, q.device)
    return mass_on_columns(q, k, columns, counts, group_size, lse, scale, first, budget)
