"""Attention in which each block of queries sees only its own list of key blocks."""

from torch import Tensor

from dlm_kernels.block_sparse_attention.reference import attend_to_blocks
from dlm_kernels.common import check_heads, check_pattern, check_scale, choose, chunk_budget
from dlm_kernels.share_columns import SharedColumns, private_lists

__all__ = ["block_sparse_attention"]


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor | SharedColumns,
    counts: Tensor | None = None,
    *,
    block_size: int,
    scale: float | None = None,
    impl: str = "auto",
    chunk_bytes: int | None = None,
) -> Tensor:
    """Softmax attention of every query over the key blocks listed for its head and block (SparseD, arXiv 2509.24014).

    Parameters
    ----------
    q : [B, H, Lq, D], float16, bfloat16 or float32
    k, v : [B, Hkv, Lk, D]; Hkv divides H
    blocks : int32 or int64 [B, H, nQ, K], distinct key blocks of each query block, nQ = ceil(Lq / block_size); the
        first ``counts`` are used, the others must be valid indices all the same. Key block ``j`` holds the keys
        ``j · block_size …``; the last may be cut short. Or the result of ``share_columns`` with
        ``keys=ceil(Lk / block_size)``: the same attention, faster on a GPU for blocks below 128
    counts : int32 or int64 [B, H, nQ]; not given with shared lists
    block_size : queries per query block and keys per key block: 16, 32, 64 or 128
    scale : factor of the scores; 1/√D by default
    impl : "auto", "triton" or "reference"
    chunk_bytes : workspace of the reference

    Returns [B, H, Lq, D] in the type of q; zeros for queries without a key. Accumulates in float32. Raises
    ``ValueError`` for shapes, types or indices that do not fit; the values of lists on a GPU are looked at only with
    ``DLM_KERNELS_DEBUG=1`` in the environment.
    """
    impl = choose("block_sparse_attention", impl, q)
    check_heads(q, k, v)
    if block_size not in (16, 32, 64, 128):
        raise ValueError(f"block_size must be 16, 32, 64 or 128, got {block_size}")
    check_pattern(blocks, counts, q, -(-k.shape[2] // block_size), block_size, name="blocks")
    scale = check_scale(scale, q)
    if impl == "triton":
        from dlm_kernels.listed_attention import as_entries, listed_attention

        return listed_attention(q, k, v, *as_entries(blocks, counts, block_size), block_size, scale)
    blocks, counts = private_lists(blocks, counts, -(-q.shape[2] // block_size))
    return attend_to_blocks(q, k, v, blocks, counts, block_size, scale, chunk_budget(chunk_bytes, q.device))
