"""Attention in which each group of neighbouring queries sees only its own list of keys."""

from torch import Tensor

from dlm_kernels.column_sparse_attention.reference import attend_to_columns
from dlm_kernels.common import check_columns, check_heads, choose, chunk_budget

__all__ = ["column_sparse_attention"]


def column_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    columns: Tensor,
    counts: Tensor,
    *,
    group_size: int,
    scale: float | None = None,
    impl: str = "auto",
    chunk_bytes: int | None = None,
) -> Tensor:
    """Softmax attention of every query over the keys listed for its head and group (PulseCol, arXiv 2605.20813, §2).

    Parameters
    ----------
    q : [B, H, Lq, D], float16, bfloat16 or float32
    k, v : [B, Hkv, Lk, D]; Hkv divides H
    columns : int32 or int64 [B, H, nG, K], keys of each group, nG = ceil(Lq / group_size); the first ``counts``
        of a list are used, the others must be valid indices all the same (``select_columns`` sees to both)
    counts : int32 or int64 [B, H, nG]
    group_size : queries per group
    scale : factor of the scores; 1/√D by default
    impl : "auto" or "reference"
    chunk_bytes : workspace

    Returns [B, H, Lq, D] in the type of q; zeros for queries without a key. Padding is left out by not listing it.
    Accumulates in float32. Raises ``ValueError`` for shapes, types or indices that do not fit.
    """
    choose("column_sparse_attention", impl, ("reference",))
    check_heads(q, k, v)
    check_columns(columns, counts, q, k, group_size)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return attend_to_columns(q, k, v, columns, counts, group_size, scale, chunk_budget(chunk_bytes, q.device))
