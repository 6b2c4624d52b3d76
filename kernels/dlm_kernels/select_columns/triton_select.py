"""Top-K and keep-above-mass selection in Triton: search the bits of the threshold, then write what lies above it.

The bits of non-negative floats order as the floats do. A sample of the row brackets the threshold; one reading of the
row then counts what lies above the bracket and collects the few candidates within it, among which the threshold is
found bit by bit in registers. Where the sample misled (many ties, odd distributions), a slower search finds it: three
bits per reading of the row, by counting what reaches each of seven thresholds. The result is exact either way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024
_SAMPLE = 4096  # elements that bracket the threshold
_ROOM = 8192  # most candidates within the bracket


@triton.jit
def _tally(tile, threshold, MASS: tl.constexpr):
    """Per element, what it adds to the count, or to the mass, at or above a threshold."""
    reached = tile.to(tl.int32, bitcast=True) >= threshold
    return tl.where(reached, tile, 0.0) if MASS else reached.to(tl.int32)


@triton.jit
def _threshold(scores_ptr, length, goal, MASS: tl.constexpr, TILE: tl.constexpr):
    """Bits of the highest threshold whose tally reaches the goal, but at least 1: the least positive float.

    Where a count is met exactly, the threshold returned lies just below, so that no ties are needed.
    """
    places = tl.arange(0, TILE)
    threshold = 0
    shift = 28
    while shift >= 0:
        t1 = tl.zeros([TILE], tl.float32 if MASS else tl.int32)
        t2, t3, t4, t5, t6, t7 = t1, t1, t1, t1, t1, t1
        for n in range(0, length, TILE):
            tile = tl.load(scores_ptr + n + places, mask=n + places < length, other=0.0)
            t1 += _tally(tile, threshold + (1 << shift), MASS)
            t2 += _tally(tile, threshold + (2 << shift), MASS)
            t3 += _tally(tile, threshold + (3 << shift), MASS)
            t4 += _tally(tile, threshold + (4 << shift), MASS)
            t5 += _tally(tile, threshold + (5 << shift), MASS)
            t6 += _tally(tile, threshold + (6 << shift), MASS)
            t7 += _tally(tile, threshold + (7 << shift), MASS)
        s1, s2, s3, s4 = tl.sum(t1), tl.sum(t2), tl.sum(t3), tl.sum(t4)
        s5, s6, s7 = tl.sum(t5), tl.sum(t6), tl.sum(t7)
        digit = (s1 >= goal).to(tl.int32) + (s2 >= goal).to(tl.int32) + (s3 >= goal).to(tl.int32)
        digit += (s4 >= goal).to(tl.int32) + (s5 >= goal).to(tl.int32) + (s6 >= goal).to(tl.int32)
        digit += (s7 >= goal).to(tl.int32)
        threshold += digit << shift
        shift = tl.where(shift == 1, 0, shift - 3)
        if not MASS:
            met = (s1 == goal) | (s2 == goal) | (s3 == goal) | (s4 == goal)
            met = met | (s5 == goal) | (s6 == goal) | (s7 == goal)
            threshold = tl.where(met, threshold - 1, threshold)
            shift = tl.where(met, -1, shift)
    return tl.maximum(threshold, 1)


@triton.jit
def _search(bits, goal):
    """The highest threshold that at least ``goal`` of these bit patterns reach, or 0."""
    threshold = 0
    for place in range(0, 31):
        higher = threshold | (1 << (30 - place))
        reached = tl.sum((bits >= higher).to(tl.int32))
        threshold = tl.where(reached >= goal, higher, threshold)
    return threshold


@triton.jit
def _bracketed(
    scores_ptr, scratch_ptr, length, wanted, SAMPLE: tl.constexpr, ROOM: tl.constexpr, TILE: tl.constexpr
):
    """The threshold from a sampled bracket, or 0 where the sample misled. Uses ``ROOM`` integers of scratch."""
    at = tl.arange(0, SAMPLE) * (length // SAMPLE)
    sample = tl.load(scores_ptr + at).to(tl.int32, bitcast=True)
    rank = wanted.to(tl.float32) / length * SAMPLE
    # Four standard deviations of the rank that the threshold has in the sample.
    margin = 4.0 * tl.sqrt(rank * (1.0 - rank / SAMPLE)) + 8.0
    low = tl.maximum(_search(sample, tl.minimum(rank + margin, SAMPLE).to(tl.int32)), 1)
    high = tl.where(rank > margin, _search(sample, tl.maximum(rank - margin, 1.0).to(tl.int32)), 0x7FFFFFFF)
    places = tl.arange(0, TILE)
    above = tl.zeros([TILE], tl.int32)
    found = 0
    for n in range(0, length, TILE):
        bits = tl.load(scores_ptr + n + places, mask=n + places < length, other=0.0).to(
            tl.int32, bitcast=True
        )
        above += (bits >= high).to(tl.int32)
        within = ((bits >= low) & (bits < high)).to(tl.int32)
        rank_within = found + tl.cumsum(within) - within
        tl.store(scratch_ptr + rank_within, bits, mask=(within != 0) & (rank_within < ROOM))
        found += tl.sum(within)
    goal = wanted - tl.sum(above)
    tl.debug_barrier()
    threshold = 0
    if (goal >= 1) & (goal <= found) & (found <= ROOM):
        room = tl.arange(0, ROOM)
        threshold = _search(tl.load(scratch_ptr + room, mask=room < found, other=-1), goal)
    return threshold


@triton.jit
def enough_kernel(
    scores_ptr,  # float32 [rows, length]
    enough_ptr,  # int32 [rows]
    share,
    most,
    length,
    TILE: tl.constexpr,
):
    """How many of a row's highest scores hold ``share`` of its mass, at most ``most``."""
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * length
    places = tl.arange(0, TILE)
    sums = tl.zeros([TILE], tl.float32)
    for n in range(0, length, TILE):
        sums += tl.load(scores_ptr + n + places, mask=n + places < length, other=0.0)
    goal = share * tl.sum(sums)
    threshold = _threshold(scores_ptr, length, goal, True, TILE)
    mass = tl.zeros([TILE], tl.float32)
    count = tl.zeros([TILE], tl.int32)
    for n in range(0, length, TILE):
        tile = tl.load(scores_ptr + n + places, mask=n + places < length, other=0.0)
        mass += _tally(tile, threshold + 1, True)
        count += _tally(tile, threshold + 1, False)
    # As many at the threshold as the goal still lacks, each worth the threshold itself.
    each = threshold.to(tl.float32, bitcast=True)
    ties = tl.ceil(tl.maximum(goal - tl.sum(mass), 0.0) / each).to(tl.int32)
    tl.store(enough_ptr + row, tl.minimum(tl.sum(count) + ties, most))


@triton.jit
def select_kernel(
    scores_ptr,  # float32 [rows, length]
    wanted_ptr,  # int32 [rows]
    columns_ptr,  # int32 [rows, width]
    counts_ptr,  # int32 [rows]
    length,
    width,
    BRACKET: tl.constexpr,  # the row is long enough for a sample, and its result for the candidates
    SAMPLE: tl.constexpr,
    ROOM: tl.constexpr,
    TILE: tl.constexpr,
):
    """Positions of the highest scores, ascending, ties to the lower one; then the last repeated to the end."""
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * length
    columns_ptr += row * width
    wanted = tl.load(wanted_ptr + row)
    threshold = 0
    if BRACKET:  # the row of the result serves as scratch until it is written
        threshold = _bracketed(scores_ptr, columns_ptr, length, wanted, SAMPLE, ROOM, TILE)
    if threshold == 0:
        threshold = _threshold(scores_ptr, length, wanted, False, TILE)
    tl.debug_barrier()
    places = tl.arange(0, TILE)
    higher = tl.zeros([TILE], tl.int32)
    for n in range(0, length, TILE):
        tile = tl.load(scores_ptr + n + places, mask=n + places < length, other=0.0)
        higher += _tally(tile, threshold + 1, False)
    ties = wanted - tl.sum(higher)
    written = 0
    tied = 0
    last = 0
    for n in range(0, length, TILE):
        tile = tl.load(scores_ptr + n + places, mask=n + places < length, other=0.0)
        bits = tile.to(tl.int32, bitcast=True)
        equal = (bits == threshold).to(tl.int32)
        rank = tied + tl.cumsum(equal) - equal
        keep = (bits > threshold) | ((equal > 0) & (rank < ties))
        kept = keep.to(tl.int32)
        tl.store(columns_ptr + written + tl.cumsum(kept) - kept, n + places, mask=keep)
        last = tl.maximum(last, tl.max(tl.where(keep, n + places, 0)))
        written += tl.sum(kept)
        tied += tl.sum(equal)
    tl.store(counts_ptr + row, written)
    for n in range(written, width, TILE):
        tl.store(columns_ptr + n + places, places * 0 + last, mask=n + places < width)


def select(scores: Tensor, k: int, top_p: float | None) -> tuple[Tensor, Tensor]:
    """See :func:`dlm_kernels.select_columns`; ``scores`` are contiguous float32 [..., L]."""
    length = scores.shape[-1]
    rows = scores.numel() // length
    wanted = torch.full((rows,), k, dtype=torch.int32, device=scores.device)
    columns = torch.empty((*scores.shape[:-1], k), dtype=torch.int32, device=scores.device)
    counts = torch.empty(scores.shape[:-1], dtype=torch.int32, device=scores.device)
    if top_p is not None:
        enough_kernel[(rows,)](scores, wanted, top_p, k, length, TILE=_TILE, num_warps=4)
    select_kernel[(rows,)](
        scores, wanted, columns, counts, length, k,
        BRACKET=length >= 2 * _SAMPLE and k >= _ROOM, SAMPLE=_SAMPLE, ROOM=_ROOM, TILE=_TILE, num_warps=4,
    )  # fmt: skip
    return columns, counts
