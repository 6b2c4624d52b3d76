"""Attention in which each group of neighbouring queries sees only its own list of keys."""

from torch import Tensor

from dlm_kernels.column_sparse_attention.reference import attend_to_columns
from dlm_kernels.common import check_heads, check_pattern, check_scale, choose, chunk_budget
from dlm_kernels.share_columns import SharedColumns, private_lists

__all__ = ["column_sparse_attention"]


def column_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    columns: Tensor | SharedColumns,
    counts: Tensor | None = None,
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
    columns : int32 or int64 [B, H, nG, K], distinct keys of each group, nG = ceil(Lq / group_size); the first
        ``counts`` of a list are used, the others must be valid indices all the same (``select_columns`` sees to
        both). Or the result of ``share_columns``: the same attention, much faster on a GPU for groups below 128
    counts : int32 or int64 [B, H, nG]; not given with shared columns
    group_size : queries per group
    scale : factor of the scores; 1/√D by default
    impl : "auto", "triton" or "reference"
    chunk_bytes : workspace of the reference

    Returns [B, H, Lq, D] in the type of q; zeros for queries without a key. Padding is left out by not listing it.
    Accumulates in float32. Raises ``ValueError`` for shapes, types or indices that do not fit; the values of lists on
    a GPU are looked at only with ``DLM_KERNELS_DEBUG=1`` in the environment.
    """
    impl = choose("column_sparse_attention", impl, q)
    check_heads(q, k, v)
    check_pattern(columns, counts, q, k.shape[2], group_size)
    scale = check_scale(scale, q)
    if impl == "triton":
        from dlm_kernels.listed_attention import as_entries, listed_attention

        return listed_attention(q, k, v, *as_entries(columns, counts, group_size), 1, scale)
    columns, counts = private_lists(columns, counts, -(-q.shape[2] // group_size))
    return attend_to_columns(q, k, v, columns, counts, group_size, scale, chunk_budget(chunk_bytes, q.device))
