"""Attention over listed keys for Hopper (sm_90a), in Gluon, Triton's lower-level dialect.

Same meaning as ``listed_attention_kernel``: a tile of 128 queries reads only the keys it lists. A producer of four
warps gathers rows of K and V with 16-byte ``cp.async`` into rings of shared memory; two consumers of four warps, 64
queries each, run the products with asynchronous ``wgmma``: while the tensor cores multiply the last tile's P and V, a
consumer computes the softmax of this one, as in FlashAttention-3 (arXiv 2407.08608), and the two consumers issue their
products in turns. Plain Triton waits for every product of a tile before its softmax, which costs a quarter.

Of a list shared by groups of both halves of a tile (``share_columns``), both consumers take the tiles of the entries
for both halves. Then come pairs of tiles: one of the first half's entries for the first consumer, one of the second
half's for the second; the shorter run is filled up with empty tiles, so that both take as many turns.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from dlm_kernels.common import INDEX_BITS, LOG2_E
from dlm_kernels.launch import head_strides, hopper, wide

_BITS = gl.constexpr(INDEX_BITS)
_ROWS = gl.constexpr(64)  # queries of a consumer
_BLOCK_N = gl.constexpr(128)  # keys of a tile
_TURN = gl.constexpr(10)  # barriers of the turns; the compiler has the lower numbers


@gluon.jit
def _exp2(x):
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _pin(x):
    """Keep what ``x`` is computed from ahead of the next wait: ptxas moves arithmetic, but no store, past a wait.

    The store never happens: ``x`` is not negative.
    """
    asm: gl.constexpr = (
        "{ .reg .pred p; .reg .b32 a; mov.u32 a, 0; setp.lt.f32 p, $1, 0f00000000;"
        " @p st.volatile.shared.f32 [a], $1; mov.b32 $0, $1; }"
    )
    return gl.inline_asm_elementwise(asm, "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def _turn(VERB: gl.constexpr, PART: gl.constexpr):
    """``sync``: wait for the turn of consumer ``PART`` to issue its products; ``arrive``: give it the turn."""
    asm: gl.constexpr = f"bar.{VERB} {_TURN + PART}, 256; mov.b32 $0, 0;"
    gl.inline_asm_elementwise(asm, "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _keys(listing, tile, rows, HALVES: gl.constexpr, KEYS: gl.constexpr, RAGGED: gl.constexpr):
    """The entries and the keys of one tile; no key, -1, where the run has ended or the key does not exist."""
    entries_ptr, tiles, both, first, end, keys = listing
    start = tile * _BLOCK_N
    if HALVES:
        pair = tile - tiles
        later = (pair & 1) != 0
        start = gl.where(pair < 0, start, gl.where(later, first, both) + (pair >> 1) * _BLOCK_N)
        end = gl.where(pair < 0, both, gl.where(later, end, first))
    place = start + rows
    entry = gl.load(entries_ptr + place // KEYS, mask=place < end, other=0)
    index = entry & ((1 << _BITS) - 1)
    if KEYS > 1:
        index = index * KEYS + place % KEYS
    wanted = place < end
    if RAGGED:
        wanted = wanted & (index < keys)
    return entry, gl.where(wanted, index, -1)


@gluon.jit
def _gather(at, row, index_smem, tile, ring, LAYOUT: gl.constexpr, WIDE: gl.constexpr, MASKED: gl.constexpr):
    """Copy the listed rows of K or V of one tile into its ring, zeros for those that are not wanted; every thread
    arrives when its copies have landed."""
    smem, full, empty = ring
    stage = tile % smem.shape[0]
    mbarrier.wait(empty.index(stage), ((tile // smem.shape[0]) & 1) ^ 1)
    index = index_smem.index(tile & 1).load(gl.SliceLayout(1, LAYOUT))
    offset = gl.maximum(index, 0) if MASKED else index
    if WIDE:
        offset = offset.to(gl.int64)
    pointers = at + (offset * row)[:, None]
    if MASKED:
        async_copy.async_copy_global_to_shared(smem.index(stage), pointers, mask=(index >= 0)[:, None])
    else:
        async_copy.async_copy_global_to_shared(smem.index(stage), pointers)
    async_copy.mbarrier_arrive(full.index(stage), increment_count=False)


@gluon.jit
def _produce(
    k_ptr, v_ptr, k_row, v_row, listing, pairs, index_smem, k_ring, v_ring,
    HALVES: gl.constexpr, KEYS: gl.constexpr, RAGGED: gl.constexpr, WIDE: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    # Rows of a thread are 4 * 256 // DIM apart: one swizzle, so that one address and offsets serve them all.
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    rows = gl.arange(0, _BLOCK_N, gl.BlockedLayout([1], [32], [4], [0]))
    dims = gl.arange(0, DIM, gl.SliceLayout(0, LAYOUT))
    k_at = k_ptr + dims[None, :]
    v_at = v_ptr + dims[None, :]
    tiles = listing[1] + 2 * pairs
    whole = 0 if RAGGED else listing[2] // _BLOCK_N
    # With halves K runs a tile ahead of V: then the K that a consumer wants next does not wait until the other has made
    # room for a V. Without them that only costs time.
    AHEAD: gl.constexpr = 1 if HALVES else 0
    _, index = _keys(listing, 0, rows, HALVES, KEYS, RAGGED)
    for tile in range(0, whole):
        index_smem.index(tile & 1).store(index)
        _, index = _keys(listing, tile + 1, rows, HALVES, KEYS, RAGGED)
        _gather(k_at, k_row, index_smem, tile, k_ring, LAYOUT, WIDE, False)
        if tile >= AHEAD:
            _gather(v_at, v_row, index_smem, tile - AHEAD, v_ring, LAYOUT, WIDE, False)
    for tile in range(whole, tiles + AHEAD):
        index_smem.index(tile & 1).store(index)
        _, index = _keys(listing, tile + 1, rows, HALVES, KEYS, RAGGED)
        if tile < tiles:
            _gather(k_at, k_row, index_smem, tile, k_ring, LAYOUT, WIDE, True)
        if tile >= AHEAD:
            _gather(v_at, v_row, index_smem, tile - AHEAD, v_ring, LAYOUT, WIDE, True)


@gluon.jit
def _softmax(s, highest, total, scale_log2, MASKED: gl.constexpr, dtype: gl.constexpr):
    new = gl.maximum(highest, gl.max(s, 1) * scale_log2)
    base = new
    if MASKED:  # a row that has seen no key yet must not compute inf - inf
        base = gl.where(new == float("-inf"), 0.0, new)
    shrink = _exp2(highest - base)
    p = _exp2(s * scale_log2 - base[:, None])
    total = total * shrink + gl.sum(p, 1)
    return p.to(dtype), new, total, shrink


@gluon.jit
def _bits(
    listing, tile, rows, SHARED: gl.constexpr, HALVES: gl.constexpr, KEYS: gl.constexpr, RAGGED: gl.constexpr
):
    """Which of the groups attend to the keys of one tile; a key per thread, so that they take one register."""
    if SHARED > 1 or RAGGED:
        entry, index = _keys(listing, tile, rows, HALVES, KEYS, RAGGED)
        bits = entry >> _BITS if SHARED > 1 else 1
        return gl.where(index >= 0, bits, 0)
    else:
        return rows


@gluon.jit
def _hide(s, bits, tile, columns, member, count, SHARED: gl.constexpr, RAGGED: gl.constexpr):
    """Scores of keys that a query does not attend to become -inf."""
    if SHARED > 1 or RAGGED:
        bits = gl.convert_layout(bits, columns.type.layout)
        if SHARED > 1:
            seen = ((bits[None, :] >> member[:, None]) & 1) != 0
            return gl.where(seen, s, float("-inf"))
        else:
            return gl.where((bits != 0)[None, :], s, float("-inf"))
    else:
        return gl.where((tile * _BLOCK_N + columns < count)[None, :], s, float("-inf"))


@gluon.jit
def _skip(ring, tile, skip):
    """Release a tile that this consumer does not read, once it is there."""
    smem, full, empty = ring
    stage = tile % smem.shape[0]
    mbarrier.wait(full.index(stage), (tile // smem.shape[0]) & 1, pred=skip)
    mbarrier.arrive(empty.index(stage), count=1, pred=skip)


@gluon.jit
def _step(
    tile, p, acc, highest, total, q_smem, k_ring, v_ring, listing, rows, columns, member, scale_log2,
    PART: gl.constexpr, SHARED: gl.constexpr, HALVES: gl.constexpr, KEYS: gl.constexpr, RAGGED: gl.constexpr,
    S_LAYOUT: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """The scores and softmax of a tile, while the tensor cores multiply the previous tile's P and V."""
    k_smem, k_full, k_empty = k_ring
    v_smem, v_full, v_empty = v_ring
    STAGES: gl.constexpr = k_smem.shape[0]
    stage = tile % STAGES
    before = tile - 1
    bits = rows
    if MASKED:
        bits = _bits(listing, tile, rows, SHARED, HALVES, KEYS, RAGGED)
        if HALVES:
            # The tile before this one is the other consumer's: it is released unread, but only once it is there, so
            # that the release counts for it and not for the tile that had its place before. The producer never waits
            # for the release of the last pair. No deadlock: a tile's place is free at the latest when both consumers
            # have issued their next tile, at most two further on, and STAGES > 2.
            skip = tile > listing[1]
            before = gl.where(skip, tile - 2, tile - 1)
            _skip(k_ring, tile - 1, skip)
    nothing = gl.zeros([_ROWS, _BLOCK_N], gl.float32, S_LAYOUT)
    mbarrier.wait(k_full.index(stage), (tile // STAGES) & 1)
    fence_async_shared()
    _turn("sync", PART)
    s = warpgroup_mma(q_smem, k_smem.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(before % STAGES), (before // STAGES) & 1)
    fence_async_shared()
    acc = warpgroup_mma(p, v_smem.index(before % STAGES), acc, is_async=True)
    _turn("arrive", 1 - PART)
    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_empty.index(stage), count=1)
    if MASKED:
        s = _hide(s, bits, tile, columns, member, listing[4], SHARED, RAGGED)
    new_p, highest, total, shrink = _softmax(s, highest, total, scale_log2, MASKED, k_smem.dtype)
    new_p = gl.convert_layout(new_p, p.type.layout)
    total = _pin(total)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(v_empty.index(before % STAGES), count=1)
    if MASKED and HALVES:
        _skip(v_ring, tile - 1, tile > listing[1])
    shrink = gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))
    acc = acc * shrink[:, None]
    return new_p, acc, highest, total


@gluon.jit
def _consume(
    q_ptr, out_ptr, q_row, out_row, list0, row0, end, scale_log2, listing, unmasked, pairs, q_smem, k_ring, v_ring,
    PART: gl.constexpr, GROUP: gl.constexpr, SHARED: gl.constexpr, HALVES: gl.constexpr, KEYS: gl.constexpr,
    RAGGED: gl.constexpr, DIM: gl.constexpr,
):  # fmt: skip
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    LINES: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    k_smem, k_full, k_empty = k_ring
    v_smem, v_full = v_ring[0], v_ring[1]
    STAGES: gl.constexpr = k_smem.shape[0]
    dtype: gl.constexpr = k_smem.dtype

    lines = row0 + PART * _ROWS + gl.arange(0, _ROWS, gl.SliceLayout(1, LINES))
    dims = gl.arange(0, DIM, gl.SliceLayout(0, LINES))
    here = lines[:, None].to(gl.int64)
    q = gl.load(q_ptr + here * q_row + dims[None, :], mask=(lines < end)[:, None], other=0.0)
    q_smem.store(q)
    fence_async_shared()

    columns = gl.arange(0, _BLOCK_N, gl.SliceLayout(0, S_LAYOUT))
    rows = gl.arange(0, _BLOCK_N, gl.BlockedLayout([1], [32], [4], [0]))
    queries = row0 + PART * _ROWS + gl.arange(0, _ROWS, gl.SliceLayout(1, S_LAYOUT))
    member = gl.minimum((queries - list0) // GROUP, SHARED - 1)
    acc = gl.zeros([_ROWS, DIM], gl.float32, O_LAYOUT)
    total = gl.zeros([_ROWS], gl.float32, gl.SliceLayout(1, S_LAYOUT))
    tiles = listing[1]
    # Where a tile ends amid the entries without a mask, the masked loop takes over; the first tile is masked too.
    whole = 1 if RAGGED else gl.maximum(unmasked // _BLOCK_N, 1)
    if tiles > 0:
        bits = _bits(listing, 0, rows, SHARED, HALVES, KEYS, RAGGED)
        nothing = gl.zeros([_ROWS, _BLOCK_N], gl.float32, S_LAYOUT)
        mbarrier.wait(k_full.index(0), 0)
        fence_async_shared()
        s = warpgroup_mma(q_smem, k_smem.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(k_empty.index(0), count=1)
        s = _hide(s, bits, 0, columns, member, listing[4], SHARED, RAGGED)
        highest = gl.full([_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
        p, highest, total, _ = _softmax(s, highest, total, scale_log2, True, dtype)
        p = gl.convert_layout(p, P_LAYOUT)
        if PART == 1:
            _turn("arrive", 0)
        for tile in range(1, whole):
            p, acc, highest, total = _step(
                tile, p, acc, highest, total, q_smem, k_ring, v_ring, listing, rows, columns, member, scale_log2,
                PART, SHARED, HALVES, KEYS, RAGGED, S_LAYOUT, False,
            )  # fmt: skip
        for number in range(whole, tiles + pairs):
            tile = number
            if HALVES:  # of a pair, the tile of this half
                tile = number + gl.maximum(number - tiles + PART, 0)
            p, acc, highest, total = _step(
                tile, p, acc, highest, total, q_smem, k_ring, v_ring, listing, rows, columns, member, scale_log2,
                PART, SHARED, HALVES, KEYS, RAGGED, S_LAYOUT, True,
            )  # fmt: skip
        if PART == 0:
            _turn("sync", 0)  # takes the other's last turn, so that no barrier is left half full
        last = gl.maximum(tiles - 1, tiles + 2 * pairs - 2 + PART)
        mbarrier.wait(v_full.index(last % STAGES), (last // STAGES) & 1)
        fence_async_shared()
        acc = warpgroup_mma(p, v_smem.index(last % STAGES), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
    total = gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))
    out = acc / gl.where(total > 0, total, 1.0)[:, None]
    q_smem.store(out.to(dtype))
    gl.store(out_ptr + here * out_row + dims[None, :], q_smem.load(LINES), mask=(lines < end)[:, None])


@gluon.jit(do_not_specialize=["heads", "lists", "width", "queries", "keys"])
def hopper_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    entries_ptr,  # int32 [B, H, lists, width]
    counts_ptr,  # int32 [B, H, lists, 4]: ends of the runs, as in SharedColumns
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
    REPEAT: gl.constexpr,  # query heads per key head
    GROUP: gl.constexpr,  # queries per group
    SHARED: gl.constexpr,  # groups per list; 1 where every group has its own
    PARTS: gl.constexpr,  # tiles that a list's queries are cut into
    KEYS: gl.constexpr,  # keys per entry
    RAGGED: gl.constexpr,  # the last block of keys may be cut short
    DIM: gl.constexpr,  # 64 or 128
    WIDE: gl.constexpr,  # offsets within a head need 64 bits
    REGS: gl.constexpr,  # registers of a consumer's and of a producer's thread: 504 = 2 * consumer + producer
    PRODUCER_REGS: gl.constexpr,
):
    STAGES: gl.constexpr = 3 if DIM == 128 else 4
    dtype: gl.constexpr = k_ptr.dtype.element_ty
    tile = gl.program_id(0)
    head = gl.program_id(1) % heads
    batch = (gl.program_id(1) // heads).to(gl.int64)
    which = tile // PARTS
    list0 = which * (GROUP * SHARED)
    row0 = list0 + (tile % PARTS) * 2 * _ROWS
    end = gl.minimum(list0 + GROUP * SHARED, queries)

    q_ptr += batch * q_batch + head.to(gl.int64) * q_head
    k_ptr += batch * k_batch + (head // REPEAT).to(gl.int64) * k_head
    v_ptr += batch * v_batch + (head // REPEAT).to(gl.int64) * v_head
    out_ptr += batch * out_batch + head.to(gl.int64) * out_head
    at = (batch * heads + head) * lists + which
    entries_ptr += at * width
    counts_ptr += at * 4
    unmasked = gl.load(counts_ptr) * KEYS
    count = gl.load(counts_ptr + 3) * KEYS
    both = count
    first = count
    pairs = 0
    # The runs tell the first 64 queries from the others, which are more than one consumer's if the list has two tiles.
    HALVES: gl.constexpr = SHARED > 1 and PARTS == 1
    if HALVES:
        both = gl.load(counts_ptr + 1) * KEYS
        first = gl.load(counts_ptr + 2) * KEYS
        pairs = gl.cdiv(gl.maximum(first - both, count - first), _BLOCK_N)
    # The first tile is always for both, be it empty.
    tiles = gl.maximum(gl.cdiv(both, _BLOCK_N), gl.minimum(pairs, 1))

    Q_SMEM: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_ROWS, DIM], dtype)
    KV_SMEM: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_BLOCK_N, DIM], dtype)
    BAR: gl.constexpr = mbarrier.MBarrierLayout()
    q_smem = gl.allocate_shared_memory(dtype, [2, _ROWS, DIM], Q_SMEM)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, _BLOCK_N, DIM], KV_SMEM)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, _BLOCK_N, DIM], KV_SMEM)
    index_smem = gl.allocate_shared_memory(gl.int32, [2, _BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=128)  # every thread of the producer
        mbarrier.init(v_full.index(i), count=128)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()

    listing = (entries_ptr, tiles, both, first, count, keys)
    k_ring = (k_smem, k_full, k_empty)
    v_ring = (v_smem, v_full, v_empty)
    gl.warp_specialize(
        [
            (_consume, (
                q_ptr, out_ptr, q_row, out_row, list0, row0, end, scale_log2, listing, unmasked, pairs,
                q_smem.index(0), k_ring, v_ring, gl.constexpr(0), GROUP, SHARED, HALVES, KEYS, RAGGED, DIM,
            )),
            (_consume, (
                q_ptr, out_ptr, q_row, out_row, list0, row0, end, scale_log2, listing, unmasked, pairs,
                q_smem.index(1), k_ring, v_ring, gl.constexpr(1), GROUP, SHARED, HALVES, KEYS, RAGGED, DIM,
            )),
            (_produce, (
                k_ptr, v_ptr, k_row, v_row, listing, pairs, index_smem, k_ring, v_ring,
                HALVES, KEYS, RAGGED, WIDE, DIM,
            )),
        ],
        [4, 4],
        [REGS, PRODUCER_REGS],
    )  # fmt: skip


def suits_hopper(q: Tensor, k: Tensor, v: Tensor, span: int) -> bool:
    """Whether this kernel can and should serve lists for ``span`` queries each: half precision, head dimension 64 or
    128, rows in units of 32 bytes, and tiles of 128 queries that are more than half full."""
    if not hopper() or q.dtype == torch.float32 or q.shape[3] not in (64, 128) or span <= 64:
        return False
    aligned = (t.data_ptr() % 16 == 0 and all(s % 16 == 0 for s in t.stride()[:3]) for t in (q, k, v))
    return all(aligned)


def attend_on_hopper(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, entries: Tensor, counts: Tensor,
    group: int, shared: int, keys_per_entry: int, scale: float,
) -> None:  # fmt: skip
    """Launch the kernel; arguments as for ``listed_attention``, the result goes to ``out``."""
    batch, heads, queries, dim = q.shape
    lists, keys = entries.shape[2], k.shape[2]
    parts = triton.cdiv(group * shared, 128)
    hopper_attention_kernel[(lists * parts, batch * heads)](
        q, k, v, out, entries, counts,
        *head_strides(q), *head_strides(k), *head_strides(v), *head_strides(out),
        heads, lists, entries.shape[3], queries, keys, scale * LOG2_E,
        REPEAT=heads // k.shape[1], GROUP=group, SHARED=shared, PARTS=parts, KEYS=keys_per_entry,
        RAGGED=keys % keys_per_entry != 0, DIM=dim, WIDE=wide(k, v), REGS=232, PRODUCER_REGS=40, num_warps=4,
    )  # fmt: skip
