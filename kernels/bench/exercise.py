"""Run every kernel once on small shapes, for a checker to watch:

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python kernels/bench/exercise.py

Ragged lengths, ragged lists, grouped heads, padding, shared and private lists, both kernels for listed keys, and caches
that are empty, partly filled and full. Without the variable PyTorch cuts tensors from larger pieces of memory, and what
reads past the end of one meets its neighbour instead of the checker.
"""

from __future__ import annotations

from itertools import product

import torch
from dlm_kernels import (
    attention_statistics,
    block_sparse_attention,
    cached_attention,
    column_scores,
    column_sparse_attention,
    retained_mass,
    select_columns,
    share_columns,
    store_in_cache,
)


def main() -> None:
    torch.manual_seed(0)
    for dtype, dim, length in product((torch.bfloat16, torch.float32), (32, 64, 128), (129, 300)):
        exercise(dtype, dim, length)
        exercise_cache(dtype, dim, length)
    rows = torch.rand(2, 20_000, device="cuda")
    select_columns(rows, 9000)
    select_columns(rows, top_p=0.5)
    select_columns((rows > 0.5).float(), 9000)
    torch.cuda.synchronize()
    print("every kernel ran")


def exercise(dtype: torch.dtype, dim: int, length: int) -> None:
    """All operations over whole sequences on one problem of two samples, four query heads and two key heads."""
    q = torch.randn(2, 4, length, dim, device="cuda", dtype=dtype)
    k, v = torch.randn(2, 2, 2, length, dim, device="cuda", dtype=dtype)
    start = torch.tensor([0, 21], device="cuda")
    statistics = attention_statistics(q, k, start=start, bins=7)
    attention_statistics(q, k, lse=statistics.lse, causal=True)
    for group_size in (16, 32, 40, 128, 200):
        pieces = column_scores(q, k, group_size=group_size, start=start, chunk_bytes=1 << 20)
        scores = torch.cat([scores for _, scores in pieces], 2)
        columns, counts = select_columns(scores, length // 3)
        counts = (torch.rand(counts.shape, device="cuda") * (counts + 1)).int()
        column_sparse_attention(q, k, v, columns, counts, group_size=group_size)
        retained_mass(q, k, columns, counts, group_size=group_size, start=start)
        if group_size <= 64:
            shared = share_columns(columns, counts, keys=length, group_size=group_size)
            column_sparse_attention(q, k, v, shared, group_size=group_size)
            retained_mass(q, k, shared, group_size=group_size, lse=statistics.lse, start=start)
    for block_size in (32, 64, 128):
        there = -(-length // block_size)
        blocks = torch.rand(2, 4, there, there, device="cuda").argsort(-1)
        counts = torch.randint(0, there + 1, (2, 4, there), device="cuda")
        block_sparse_attention(q, k, v, blocks, counts, block_size=block_size)
        shared = share_columns(blocks, counts, keys=there, group_size=block_size)
        block_sparse_attention(q, k, v, shared, block_size=block_size)


def exercise_cache(dtype: torch.dtype, dim: int, capacity: int) -> None:
    """Storing and attending, for few and many queries of four samples, four query heads and two key heads.

    The first cache is empty, the last full; the first and last slots are written.
    """
    lengths = torch.tensor([0, 1, capacity // 2, capacity], device="cuda")
    for queries, index in product((1, 20, 270), (torch.int32, torch.int64)):
        k, v = torch.zeros(2, 4, 2, capacity, dim, device="cuda", dtype=dtype)
        fresh = torch.randn(2, 4, 2, min(queries, capacity), dim, device="cuda", dtype=dtype)
        order = torch.rand(4, capacity, device="cuda")
        order[:, [0, -1]] = torch.tensor([3.0, 2.0], device="cuda")  # these two come first
        slots = order.argsort(1, descending=True)[:, : fresh.shape[3]]
        store_in_cache(k, v, slots.to(index), *fresh)
        q = torch.randn(4, 4, queries, dim, device="cuda", dtype=dtype)
        cached_attention(q, k, v, lengths.to(index))


if __name__ == "__main__":
    main()
