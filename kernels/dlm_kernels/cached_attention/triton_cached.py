"""Attention over a cache in Triton: pieces of the keys side by side, then their sums joined."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.common import LOG2_E
from dlm_kernels.launch import head_strides, padded_dim

_PIECE = 128  # keys per program where there are few queries
_MOST_PIECES = 32
_FEW_QUERIES = (
    256  # beyond, queries alone fill the chip, and sums of pieces would take more memory than the cache
)


@triton.jit
def piece_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    sums_ptr,  # float32 [B · H, pieces, queries, DIM], each divided by its own total
    lse_ptr,  # float32 [B · H, pieces, queries], in powers of two
    lengths_ptr,  # int32 [B]
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    heads,
    queries,
    pieces,
    span,  # keys per piece
    scale_log2,  # factor of the scores times log2(e)
    REPEAT: tl.constexpr,  # query heads per key head
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    piece = tl.program_id(1)
    at = tl.program_id(2).to(tl.int64)
    batch, head = at // heads, at % heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    wanted = (rows < queries)[:, None] & (dims < DIM)[None, :]
    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + (head // REPEAT) * k_head
    v_ptr += batch * v_batch + (head // REPEAT) * v_head
    end = tl.minimum(tl.load(lengths_ptr + batch), (piece + 1) * span)

    q = tl.load(q_ptr + rows[:, None].to(tl.int64) * q_row + dims[None, :], mask=wanted, other=0.0)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(piece * span, end, BLOCK_N):
        keys = n + tl.arange(0, BLOCK_N)
        there = (keys < end)[:, None] & (dims < DIM)[None, :]
        offsets = keys[:, None].to(tl.int64)
        k = tl.load(k_ptr + offsets * k_row + dims[None, :], mask=there, other=0.0)
        v = tl.load(v_ptr + offsets * v_row + dims[None, :], mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        scores = tl.where((keys < end)[None, :], scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - above[:, None])
        shrink = tl.exp2(highest - above)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        highest = above

    row0 = (at * pieces + piece) * queries
    some = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, highest + tl.log2(some), float("-inf"))
    tl.store(lse_ptr + row0 + rows, lse, mask=rows < queries)
    sums_at = sums_ptr + (row0 + rows[:, None]) * DIM + dims[None, :]
    tl.store(sums_at, acc / some[:, None], mask=wanted)


@triton.jit
def join_kernel(
    sums_ptr,
    lse_ptr,
    out_ptr,
    out_batch,
    out_head,
    out_row,
    heads,
    queries,
    pieces,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    at = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    wanted = (rows < queries)[:, None] & (dims < DIM)[None, :]
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for piece in range(pieces):
        row0 = (at * pieces + piece) * queries
        lse = tl.load(lse_ptr + row0 + rows, mask=rows < queries, other=float("-inf"))
        highest = tl.maximum(highest, lse)
    highest = tl.where(highest > float("-inf"), highest, 0.0)  # no key at all: every weight becomes zero
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for piece in range(pieces):
        row0 = (at * pieces + piece) * queries
        lse = tl.load(lse_ptr + row0 + rows, mask=rows < queries, other=float("-inf"))
        weight = tl.exp2(lse - highest)
        sums = tl.load(sums_ptr + (row0 + rows[:, None]) * DIM + dims[None, :], mask=wanted, other=0.0)
        total += weight
        acc += weight[:, None] * sums
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_ptr += (at // heads) * out_batch + (at % heads) * out_head
    out_at = out_ptr + rows[:, None].to(tl.int64) * out_row + dims[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=wanted)


@triton.jit
def store_kernel(
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,  # int [B, n]
    k_ptr,
    v_ptr,
    cache_batch,
    cache_head,
    cache_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    fresh,
    HEADS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One position of one row of the batch: all heads of its key and its value."""
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + batch * fresh + row).to(tl.int64)
    heads, dims = tl.arange(0, BLOCK_H)[:, None].to(tl.int64), tl.arange(0, BLOCK_D)[None, :]
    there = (heads < HEADS) & (dims < DIM)
    to = batch * cache_batch + heads * cache_head + slot * cache_row + dims
    k = tl.load(k_ptr + batch * k_batch + heads * k_head + row * k_row + dims, mask=there)
    v = tl.load(v_ptr + batch * v_batch + heads * v_head + row * v_row + dims, mask=there)
    tl.store(k_cache_ptr + to, k, mask=there)
    tl.store(v_cache_ptr + to, v, mask=there)


@torch.library.custom_op("dlm_kernels::store_in_cache", mutates_args=("k_cache", "v_cache"))
def store_op(k_cache: Tensor, v_cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, v))
    batch, heads, fresh, dim = k.shape
    if k_cache.stride() != v_cache.stride() or k_cache.stride(-1) != 1:
        raise ValueError(
            f"the caches must lie in memory alike, got {k_cache.stride()} and {v_cache.stride()}"
        )
    store_kernel[(fresh, batch)](
        k_cache,
        v_cache,
        slots.contiguous(),
        k,
        v,
        *head_strides(k_cache),
        *head_strides(k),
        *head_strides(v),
        fresh,
        HEADS=heads,
        BLOCK_H=triton.next_power_of_2(heads),
        DIM=dim,
        BLOCK_D=padded_dim(dim),
    )


@torch.library.custom_op("dlm_kernels::cached_attention", mutates_args=())
def cached_attention_op(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    batch, heads, queries, dim = q.shape
    # The order in memory that the model's output projection wants.
    out = q.new_empty(batch, queries, heads, dim).transpose(1, 2)
    pieces = 1 if queries > _FEW_QUERIES else min(_MOST_PIECES, triton.cdiv(k.shape[2], _PIECE))
    sums = q.new_empty(batch * heads, pieces, queries, dim, dtype=torch.float32)
    lse = q.new_empty(batch * heads, pieces, queries, dtype=torch.float32)
    block_d = padded_dim(dim)
    block_m = min(64 if block_d <= 128 else 32, max(16, triton.next_power_of_2(queries)))
    block_n = 64 if block_d <= 128 and q.dtype != torch.float32 else 32
    tiles = triton.cdiv(queries, block_m)
    piece_kernel[(tiles, pieces, batch * heads)](
        q,
        k,
        v,
        sums,
        lse,
        lengths,
        *head_strides(q),
        *head_strides(k),
        *head_strides(v),
        heads,
        queries,
        pieces,
        triton.cdiv(triton.cdiv(k.shape[2], pieces), block_n) * block_n,
        scale * LOG2_E,
        REPEAT=heads // k.shape[1],
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        PRECISION="ieee",
        num_warps=4,
        num_stages=2,
    )
    join_kernel[(triton.cdiv(queries, 16), batch * heads)](
        sums,
        lse,
        out,
        *head_strides(out),
        heads,
        queries,
        pieces,
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_M=16,
    )
    return out


@cached_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    batch, heads, queries, dim = q.shape
    return q.new_empty(batch, queries, heads, dim).transpose(1, 2)
