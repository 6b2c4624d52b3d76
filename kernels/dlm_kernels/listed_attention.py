"""The Triton kernel behind column- and block-sparse attention: a tile of queries reads only the keys it lists.

An entry of a list stands for ``KEYS`` consecutive keys: 1 for columns, the block size for blocks. A tile of
queries either belongs to one list, or to several neighbouring groups of queries whose lists were merged
(``share_columns``): then the bits above ``INDEX_BITS`` of an entry say which of the groups attend to it, and the
entries that all of them share come first, where no mask is needed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.common import INDEX_BITS, LOG2_E
from dlm_kernels.hopper_attention import attend_on_hopper, suits_hopper
from dlm_kernels.launch import Tiles, head_strides, padded_dim, wide
from dlm_kernels.share_columns import SharedColumns


@triton.jit
def listed_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    entries_ptr,  # int32 [B, H, lists, width]
    counts_ptr,  # int32 [B, H, lists, 4]: entries without a mask, then further runs; all entries
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    heads,
    lists,
    width,
    queries,
    keys,
    scale_log2,  # factor of the scores times log2(e)
    REPEAT: tl.constexpr,  # query heads per key head
    GROUP: tl.constexpr,  # queries per group
    SHARED: tl.constexpr,  # groups per list; 1 where every group has its own
    PARTS: tl.constexpr,  # tiles that a group's queries are cut into
    KEYS: tl.constexpr,  # keys per entry
    RAGGED: tl.constexpr,  # the last block of keys may be cut short
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BITS: tl.constexpr,  # of an entry that are the index
    WIDE: tl.constexpr,  # offsets within a head need 64 bits
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    head = tl.program_id(1) % heads
    batch = (tl.program_id(1) // heads).to(tl.int64)
    which = tile // PARTS
    row0 = which * (GROUP * SHARED) + (tile % PARTS) * BLOCK_M
    end = tl.minimum(which * (GROUP * SHARED) + GROUP * SHARED, queries)
    rows = row0 + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    if WIDE:
        dims = dims.to(tl.int64)
    wanted = (rows < end)[:, None] & (dims < DIM)[None, :]

    q_ptr += batch * q_batch + head.to(tl.int64) * q_head
    k_ptr += batch * k_batch + (head // REPEAT).to(tl.int64) * k_head
    v_ptr += batch * v_batch + (head // REPEAT).to(tl.int64) * v_head
    out_ptr += batch * out_batch + head.to(tl.int64) * out_head
    at = (batch * heads + head) * lists + which
    entries_ptr += at * width
    unmasked = tl.load(counts_ptr + at * 4) * KEYS
    count = tl.load(counts_ptr + at * 4 + 3) * KEYS
    # Where a tile ends amid the entries without a mask, the masked loop takes over.
    whole = 0 if RAGGED else unmasked // BLOCK_N * BLOCK_N

    q = tl.load(q_ptr + rows[:, None].to(dims.dtype) * q_row + dims[None, :], mask=wanted, other=0.0)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(0, whole, BLOCK_N):
        index = _listed(entries_ptr, n, count, KEYS, BLOCK_N, BITS, False)[0]
        k = _gather(k_ptr, index, index, k_row, dims, DIM, BLOCK_D, False)
        v = _gather(v_ptr, index, index, v_row, dims, DIM, BLOCK_D, False)
        acc, total, highest = _attend(acc, total, highest, q, k, v, index, scale_log2, False, PRECISION)
    member = tl.minimum((rows - which * (GROUP * SHARED)) // GROUP, SHARED - 1)
    for n in range(whole, count, BLOCK_N):
        index, bits, listed = _listed(entries_ptr, n, count, KEYS, BLOCK_N, BITS, True)
        if RAGGED:
            listed = listed & (index < keys)
        seen = listed[None, :] & (rows >= 0)[:, None]
        if SHARED > 1:
            seen = seen & (((bits[None, :] >> member[:, None]) & 1) != 0)
        k = _gather(k_ptr, index, listed, k_row, dims, DIM, BLOCK_D, True)
        v = _gather(v_ptr, index, listed, v_row, dims, DIM, BLOCK_D, True)
        acc, total, highest = _attend(acc, total, highest, q, k, v, seen, scale_log2, True, PRECISION)
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_at = out_ptr + rows[:, None].to(tl.int64) * out_row + dims[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=wanted)


@triton.jit
def _listed(
    entries_ptr, n, count,
    KEYS: tl.constexpr, BLOCK_N: tl.constexpr, BITS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys ``n … n + BLOCK_N`` of a list: their index, whose they are, and which of them exist."""
    place = n + tl.arange(0, BLOCK_N)
    listed = place < count
    if KEYS >= BLOCK_N:  # one scalar entry covers the tile
        entry = tl.load(entries_ptr + n // KEYS)
        index = (entry & ((1 << BITS) - 1)) * KEYS + n % KEYS + tl.arange(0, BLOCK_N)
        bits = tl.zeros([BLOCK_N], tl.int32) + (entry >> BITS)
    else:
        if MASKED:
            entry = tl.load(entries_ptr + place // KEYS, mask=listed, other=0)
        else:
            entry = tl.load(entries_ptr + place // KEYS)
        index = (entry & ((1 << BITS) - 1)) * KEYS + place % KEYS
        bits = entry >> BITS
    return index, bits, listed


@triton.jit
def _gather(
    ptr, index, listed, row, dims, DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """The rows ``index`` of a head, [BLOCK_N, BLOCK_D]; zeros where nothing is listed."""
    at = ptr + index[:, None].to(dims.dtype) * row + dims[None, :]
    if MASKED:
        return tl.load(at, mask=listed[:, None] & (dims < DIM)[None, :], other=0.0)
    if BLOCK_D > DIM:
        return tl.load(at, mask=(dims < DIM)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def _attend(
    acc, total, highest, q, k, v, seen, scale_log2, MASKED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """One tile of keys into the online softmax."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
    # A row that has seen no key yet must not compute inf − inf.
    base = tl.where(new == float("-inf"), 0.0, new) if MASKED else new
    p = tl.math.exp2(scores * scale_log2 - base[:, None])
    shrink = tl.math.exp2(highest - base)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, new


@triton.jit
def listed_mass_kernel(
    q_ptr,
    k_ptr,
    lse_ptr,  # float32 [B, H, Lq]
    kept_ptr,  # float32 [B, H, Lq]
    entries_ptr,
    counts_ptr,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    heads,
    lists,
    width,
    queries,
    keys,
    scale_log2,
    REPEAT: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    PARTS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BITS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Probability under the dense softmax, whose log-sum-exp is given, of the keys that each query lists."""
    tile = tl.program_id(0)
    head = tl.program_id(1) % heads
    batch = (tl.program_id(1) // heads).to(tl.int64)
    which = tile // PARTS
    row0 = which * (GROUP * SHARED) + (tile % PARTS) * BLOCK_M
    end = tl.minimum(which * (GROUP * SHARED) + GROUP * SHARED, queries)
    rows = row0 + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    if WIDE:
        dims = dims.to(tl.int64)
    q_ptr += batch * q_batch + head.to(tl.int64) * q_head
    k_ptr += batch * k_batch + (head // REPEAT).to(tl.int64) * k_head
    at = (batch * heads + head) * lists + which
    entries_ptr += at * width
    count = tl.load(counts_ptr + at * 4 + 3) * KEYS
    wanted = (rows < end)[:, None] & (dims < DIM)[None, :]
    q = tl.load(q_ptr + rows[:, None].to(dims.dtype) * q_row + dims[None, :], mask=wanted, other=0.0)
    lse_at = (batch * heads + head) * queries + rows
    lse = tl.load(lse_ptr + lse_at, mask=rows < end, other=0.0)
    # Padding has no normaliser: with +inf it keeps no mass.
    normaliser = tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)
    member = tl.minimum((rows - which * (GROUP * SHARED)) // GROUP, SHARED - 1)
    kept = tl.zeros([BLOCK_M], tl.float32)
    for n in range(0, count, BLOCK_N):
        index, bits, listed = _listed(entries_ptr, n, count, KEYS, BLOCK_N, BITS, True)
        listed = listed & (index < keys)
        k = _gather(k_ptr, index, listed, k_row, dims, DIM, BLOCK_D, True)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        p = tl.math.exp2(scores * scale_log2 - normaliser[:, None])
        seen = listed[None, :]
        if SHARED > 1:
            seen = seen & (((bits[None, :] >> member[:, None]) & 1) != 0)
        kept += tl.sum(tl.where(seen, p, 0.0), 1)
    tl.store(kept_ptr + lse_at, kept, mask=rows < end)


@torch.library.custom_op("dlm_kernels::listed_attention", mutates_args=())
def listed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    entries: Tensor,
    counts: Tensor,
    group: int,
    shared: int,
    keys_per_entry: int,
    scale: float,
) -> Tensor:
    """Attention over listed keys, [B, H, Lq, D] as q; arguments as in the kernel, checked by the callers."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    if suits_hopper(q, k, v, group * shared):
        attend_on_hopper(q, k, v, out, entries, counts, group, shared, keys_per_entry, scale)
        return out
    batch, heads, queries, dim = q.shape
    tiles = Tiles.for_listed(q.dtype, dim, group * shared)
    parts = triton.cdiv(group * shared, tiles.queries)
    lists = entries.shape[2]
    listed_attention_kernel[(lists * parts, batch * heads)](
        q, k, v, out, entries, counts,
        *head_strides(q), *head_strides(k), *head_strides(v), *head_strides(out),
        heads, lists, entries.shape[3], queries, k.shape[2], scale * LOG2_E,
        REPEAT=heads // k.shape[1], GROUP=group, SHARED=shared, PARTS=parts, KEYS=keys_per_entry,
        RAGGED=k.shape[2] % keys_per_entry != 0, DIM=dim, BLOCK_D=padded_dim(dim), BLOCK_M=tiles.queries,
        BLOCK_N=tiles.keys, BITS=INDEX_BITS, WIDE=wide(q, k, v), PRECISION=tiles.precision,
        **tiles.options,
    )  # fmt: skip
    return out


@listed_attention.register_fake
def _(q, k, v, entries, counts, group, shared, keys_per_entry, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op("dlm_kernels::listed_mass", mutates_args=())
def listed_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    entries: Tensor,
    counts: Tensor,
    group: int,
    shared: int,
    keys_per_entry: int,
    scale: float,
) -> Tensor:
    """Dense probability of the listed keys, float32 [B, H, Lq]."""
    q, k = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k))
    batch, heads, queries, dim = q.shape
    kept = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    tiles = Tiles.for_listed(q.dtype, dim, group * shared)
    parts = triton.cdiv(group * shared, tiles.queries)
    lists = entries.shape[2]
    listed_mass_kernel[(lists * parts, batch * heads)](
        q, k, lse.contiguous(), kept, entries, counts, *head_strides(q), *head_strides(k),
        heads, lists, entries.shape[3], queries, k.shape[2], scale * LOG2_E,
        REPEAT=heads // k.shape[1], GROUP=group, SHARED=shared, PARTS=parts, KEYS=keys_per_entry,
        DIM=dim, BLOCK_D=padded_dim(dim), BLOCK_M=tiles.queries, BLOCK_N=tiles.keys, BITS=INDEX_BITS, WIDE=wide(q, k),
        PRECISION=tiles.precision, **tiles.options,
    )  # fmt: skip
    return kept


@listed_mass.register_fake
def _(q, k, lse, entries, counts, group, shared, keys_per_entry, scale):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def as_entries(
    columns: Tensor | SharedColumns, counts: Tensor | None, group_size: int
) -> tuple[Tensor, Tensor, int, int]:
    """Lists in the form that the kernels read: entries, counts [..., 4], queries per group, groups per list."""
    if isinstance(columns, SharedColumns):
        return columns.entries, columns.counts, group_size, columns.groups_per_list
    assert counts is not None
    counts = counts.int()
    return columns.int().contiguous(), torch.stack([counts] * 4, dim=-1), group_size, 1
