"""The two Triton passes over the scores behind statistics and column scores: normalisers, then mass per key.

Neither writes anything of the size of the map. The second pass lets every program own a tile of keys and walk over
the queries, so that sums over queries stay in registers and no atomics make the result depend on the order of work.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.common import LOG2_E
from dlm_kernels.launch import Tiles, copy_engine, head_strides, padded_dim, tile_descriptor, wide

LEFT_OUT = 1e30
"""Normaliser of queries that are not to count; finite, so that the product of probability and exponent is 0."""

# Most queries in a tile of the second pass: with 64, four programs share a multiprocessor and hide each other's waits.
_ROWS = 64


@triton.jit
def normaliser_kernel(
    q_ptr, k_ptr,
    k_tiles,  # tensor descriptor of k (TMA), otherwise None
    lse_ptr,  # float32 [B, H, Lq]
    start_ptr,  # int32 [B]
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    heads, queries, keys,
    scale_log2,
    REPEAT: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Natural log-sum-exp of the scaled scores of every query; −inf for padding."""
    head = tl.program_id(1) % heads
    batch = (tl.program_id(1) // heads).to(tl.int64)
    start = tl.load(start_ptr + batch)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    places = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    if WIDE:
        dims = dims.to(tl.int64)
    q_ptr += batch * q_batch + head.to(tl.int64) * q_head
    k_ptr += batch * k_batch + (head // REPEAT).to(tl.int64) * k_head
    q_at = q_ptr + rows[:, None].to(dims.dtype) * q_row + dims[None, :]
    q = tl.load(q_at, mask=(rows < queries)[:, None] & (dims < DIM)[None, :], other=0.0)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    stop = tl.minimum(keys, (tl.program_id(0) + 1) * BLOCK_M) if CAUSAL else keys
    whole = start if CAUSAL else start + (keys - start) // BLOCK_N * BLOCK_N
    for n in range(start, whole, BLOCK_N):
        if TMA:
            k = tl.reshape(k_tiles.load([batch.to(tl.int32), head // REPEAT, n, 0]), [BLOCK_N, BLOCK_D])
        else:
            k_at = k_ptr + (n + places)[:, None].to(dims.dtype) * k_row + dims[None, :]
            k = tl.load(k_at, mask=(dims < DIM)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        new = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
        total = total * tl.math.exp2(highest - new)
        total += tl.sum(tl.math.exp2(scores * scale_log2 - new[:, None]), 1)
        highest = new
    for n in range(whole, stop, BLOCK_N):
        index = n + places
        k_at = k_ptr + index[:, None].to(dims.dtype) * k_row + dims[None, :]
        k = tl.load(k_at, mask=(index < keys)[:, None] & (dims < DIM)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        seen = (index < keys)[None, :] & (rows >= start)[:, None]
        if CAUSAL:
            seen = seen & (index[None, :] <= rows[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 1) * scale_log2)
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.math.exp2(highest - base)
        total += tl.sum(tl.math.exp2(scores * scale_log2 - base[:, None]), 1)
        highest = new
    lse = (highest + tl.math.log2(tl.where(total > 0, total, 1.0))) * 0.6931471805599453  # ln 2
    lse = tl.where((rows >= start) & (rows < queries), lse, float("-inf"))
    lse_at = lse_ptr + (batch * heads + head) * queries + rows
    tl.store(lse_at, lse, mask=rows < queries)


@triton.jit
def mass_kernel(
    q_ptr,
    q_tiles,  # tensor descriptor of q (TMA), otherwise None
    k_ptr,
    normaliser_ptr,  # float32 [B, H, Lq]
    bounds_ptr,  # int32 [segments + 1]: the queries where segments begin
    start_ptr,  # int32 [B]
    mass_ptr,  # float32 [B, H, segments, Lk]
    inner_ptr,  # float32 [B, H, segments, Lk] (INNER)
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    heads, queries, keys, segments,
    scale_log2,
    REPEAT: tl.constexpr,
    TILES: tl.constexpr,  # tiles of queries per segment
    SPLIT: tl.constexpr,  # segments per tile of queries; then all are BLOCK_M / SPLIT long and TILES is 1
    CAUSAL: tl.constexpr, INNER: tl.constexpr,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over the queries of each segment of p = exp2(e), e = scaled score − normaliser, and if ``INNER`` of p · e.

    A normaliser of ``LEFT_OUT`` takes a query out, at no cost.
    """
    head = tl.program_id(1) % heads
    batch = (tl.program_id(1) // heads).to(tl.int64)
    index = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    places = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    if WIDE:
        dims = dims.to(tl.int64)
    q_ptr += batch * q_batch + head.to(tl.int64) * q_head
    k_ptr += batch * k_batch + (head // REPEAT).to(tl.int64) * k_head
    normaliser_ptr += (batch * heads + head) * queries
    mass_ptr += (batch * heads + head) * segments * keys
    inner_ptr += (batch * heads + head) * segments * keys
    exists = (index < keys) & (index >= tl.load(start_ptr + batch))
    k_at = k_ptr + index[:, None].to(dims.dtype) * k_row + dims[None, :]
    k = tl.load(k_at, mask=exists[:, None] & (dims < DIM)[None, :], other=0.0)
    mass = tl.zeros([BLOCK_N], tl.float32)
    inner = tl.zeros([BLOCK_N], tl.float32)
    segment = 0
    tile = 0
    for _ in range(0, tl.cdiv(segments, SPLIT) * TILES):
        row0 = tl.load(bounds_ptr + segment) + tile * BLOCK_M
        rows = row0 + places
        live = rows < tl.load(bounds_ptr + tl.minimum(segment + SPLIT, segments))
        if TMA:
            q = tl.reshape(q_tiles.load([batch.to(tl.int32), head, row0, 0]), [BLOCK_M, BLOCK_D])
        else:
            q_at = q_ptr + rows[:, None].to(dims.dtype) * q_row + dims[None, :]
            q = tl.load(q_at, mask=live[:, None] & (dims < DIM)[None, :], other=0.0)
        normaliser = tl.load(normaliser_ptr + rows, mask=live, other=1e30)
        exponent = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2 - normaliser[None, :]
        p = tl.math.exp2(exponent)
        if CAUSAL:
            p = tl.where(index[:, None] <= rows[None, :], p, 0.0)
        if SPLIT > 1:
            each = tl.sum(tl.reshape(p, [BLOCK_N, SPLIT, BLOCK_M // SPLIT]), 2)
            now = segment + tl.arange(0, SPLIT)
            at = mass_ptr + now[None, :].to(tl.int64) * keys + index[:, None]
            each = tl.where(exists[:, None], each, 0.0)
            tl.store(at, each, mask=(now < segments)[None, :] & (index < keys)[:, None])
            segment += SPLIT
        else:
            mass += tl.sum(p, 1)
            if INNER:
                inner += tl.sum(p * exponent, 1)
            tile += 1
            # Storing what is not complete yet costs less than a branch that the pipeline would have to wait for.
            at = segment.to(tl.int64) * keys + index
            tl.store(mass_ptr + at, tl.where(exists, mass, 0.0), mask=index < keys)
            if INNER:
                tl.store(inner_ptr + at, tl.where(exists, inner, 0.0), mask=index < keys)
            done = tile == TILES
            mass = tl.where(done, 0.0, mass)
            inner = tl.where(done, 0.0, inner)
            segment = tl.where(done, segment + 1, segment)
            tile = tl.where(done, 0, tile)


@dataclass(frozen=True)
class Segments:
    """Runs of neighbouring queries to sum over, and how tiles cover them.

    ``bounds`` int32 [count + 1]; either ``tiles`` tiles of ``rows`` queries cover a segment, or a tile covers
    ``split`` of them.
    """

    bounds: Tensor
    rows: int
    tiles: int
    split: int

    @classmethod
    def bins(cls, queries: int, bins: int, device: torch.device) -> "Segments":
        """The bins of ``position_bins``."""
        bounds = -(torch.arange(bins + 1, device=device) * -queries // bins)
        return cls(bounds.int(), *_cover(-(-queries // bins)), 1)

    @classmethod
    def groups(cls, queries: int, group_size: int, device: torch.device) -> "Segments":
        """Groups of ``group_size`` queries, of which the last may be smaller."""
        count = -(-queries // group_size)
        bounds = (torch.arange(count + 1, device=device) * group_size).clamp_max(queries).int()
        if group_size < _ROWS and _ROWS % group_size == 0:
            return cls(bounds, _ROWS, 1, _ROWS // group_size)
        return cls(bounds, *_cover(group_size), 1)


def _cover(longest: int) -> tuple[int, int]:
    """Rows per tile and tiles for segments of at most ``longest`` queries."""
    rows = min(_ROWS, max(16, triton.next_power_of_2(longest)))
    return rows, -(-longest // rows)


@torch.library.custom_op("dlm_kernels::normalisers", mutates_args=())
def normalisers(q: Tensor, k: Tensor, start: Tensor, scale: float, causal: bool) -> Tensor:
    """Natural log-sum-exp of the scores of every query, float32 [B, H, Lq]; ``start`` int32 [B]."""
    q, k = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k))
    batch, heads, queries, dim = q.shape
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    tiles = Tiles.for_scores(q.dtype, dim, 128)
    tma = copy_engine(k)
    k_tiles = tile_descriptor(k, tiles.keys) if tma else None
    normaliser_kernel[(triton.cdiv(queries, tiles.queries), batch * heads)](
        q, k, k_tiles, lse, start, *head_strides(q), *head_strides(k), heads, queries, k.shape[2], scale * LOG2_E,
        REPEAT=heads // k.shape[1], CAUSAL=causal, DIM=dim, BLOCK_D=padded_dim(dim), BLOCK_M=tiles.queries,
        BLOCK_N=tiles.keys, WIDE=wide(q, k), TMA=tma, PRECISION=tiles.precision, **tiles.options,
    )  # fmt: skip
    return lse


@normalisers.register_fake
def _(q, k, start, scale, causal):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def sum_segments(
    q: Tensor,
    k: Tensor,
    normaliser: Tensor,
    start: Tensor,
    segments: Segments,
    scale: float,
    causal: bool,
    inner: bool,
) -> tuple[Tensor, Tensor]:
    """Sums over each segment's queries of p = exp2(score · log2 e − normaliser): the mass of every key
    [B, H, segments, Lk], and if ``inner`` the sum of p · log p [B, H, segments] (otherwise none); float32."""
    shape = segments.rows, segments.tiles, segments.split
    mass, products = _mass(q, k, normaliser, start, segments.bounds, *shape, scale, causal, inner)
    return mass, products.sum(-1) / LOG2_E


@torch.library.custom_op("dlm_kernels::mass", mutates_args=())
def _mass(
    q: Tensor, k: Tensor, normaliser: Tensor, start: Tensor, bounds: Tensor, rows: int, tiles: int, split: int,
    scale: float, causal: bool, inner: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k))
    batch, heads, queries, dim = q.shape
    keys, count = k.shape[2], len(bounds) - 1
    by = Tiles.for_scores(q.dtype, dim, rows)
    mass = torch.empty(batch, heads, count, keys, dtype=torch.float32, device=q.device)
    products = torch.empty_like(mass) if inner else mass.new_empty(batch, heads, 0, keys)
    tma = copy_engine(q)
    q_tiles = tile_descriptor(q, rows) if tma else None
    mass_kernel[(triton.cdiv(keys, by.keys), batch * heads)](
        q, q_tiles, k, normaliser.contiguous(), bounds, start, mass, products, *head_strides(q), *head_strides(k),
        heads, queries, keys, count, scale * LOG2_E,
        REPEAT=heads // k.shape[1], TILES=tiles, SPLIT=split, CAUSAL=causal, INNER=inner, DIM=dim,
        BLOCK_D=padded_dim(dim), BLOCK_M=rows, BLOCK_N=by.keys, WIDE=wide(q, k), TMA=tma, PRECISION=by.precision,
        **by.options,
    )  # fmt: skip
    return mass, products


@_mass.register_fake
def _(q, k, normaliser, start, bounds, rows, tiles, split, scale, causal, inner):  # type: ignore[no-untyped-def]
    count = len(bounds) - 1
    shape = (*q.shape[:2], count, k.shape[2])
    mass = q.new_empty(shape, dtype=torch.float32)
    return mass, q.new_empty(shape if inner else (*q.shape[:2], 0, k.shape[2]), dtype=torch.float32)
