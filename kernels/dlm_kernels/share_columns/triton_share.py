"""Merging neighbouring groups' lists in Triton: mark the members of every key in a scratch row, then compact it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dlm_kernels.common import INDEX_BITS
from dlm_kernels.share_columns.reference import halves

_TILE = 1024
_PROGRAMS = 1056  # 8 for each of Hopper's 132 multiprocessors; each has a scratch row of its own


@triton.jit
def _kinds(marks, everyone, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The run of its list that a key belongs to, 4 for none, and a one in that run's 16 bits of a counter."""
    kind = tl.where((marks & FIRST) == 0, 3, tl.where((marks & SECOND) == 0, 2, 1))
    kind = tl.where(marks == everyone, 0, tl.where(marks == 0, 4, kind))
    one = tl.where(kind < 4, (marks * 0 + 1).to(tl.int64) << (kind % 4 * 16), 0)
    return kind, one


@triton.jit
def share_kernel(
    columns_ptr,  # int32 [rows, groups, width]
    counts_ptr,  # int32 [rows, groups]
    scratch_ptr,  # uint8 [programs, keys]
    entries_ptr,  # int32 [rows, lists, room]
    shared_ptr,  # int32 [rows, lists, 4]
    first,  # list that the first program merges
    groups,
    width,
    lists,
    room,
    keys,
    SHARED: tl.constexpr,
    FIRST: tl.constexpr,  # groups of the first half of a tile, and of the second
    SECOND: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    places = tl.arange(0, TILE)
    scratch_ptr += tl.program_id(0).to(tl.int64) * keys
    task = first + tl.program_id(0).to(tl.int64)
    row = task // lists
    group0 = task % lists * SHARED
    here = tl.minimum(groups - group0, SHARED).to(tl.int32)
    for n in range(0, keys, TILE):
        tl.store(scratch_ptr + n + places, (places * 0).to(tl.uint8), mask=n + places < keys)
    tl.debug_barrier()
    for g in range(0, here):
        at = row * groups + group0 + g
        count = tl.load(counts_ptr + at)
        for n in range(0, count, TILE):
            listed = n + places < count
            index = tl.load(columns_ptr + at * width + n + places, mask=listed, other=0)
            marks = tl.load(scratch_ptr + index, mask=listed, other=0)
            tl.store(scratch_ptr + index, (marks | (1 << g)).to(tl.uint8), mask=listed)
        tl.debug_barrier()
    everyone = (1 << here) - 1
    of_all = 0
    of_both = 0
    of_first = 0
    for n in range(0, keys, TILE):
        marks = tl.load(scratch_ptr + n + places, mask=n + places < keys, other=0).to(tl.int32)
        number = tl.sum(_kinds(marks, everyone, FIRST, SECOND)[1])
        of_all += (number & 0xFFFF).to(tl.int32)
        of_both += (number >> 16 & 0xFFFF).to(tl.int32)
        of_first += (number >> 32 & 0xFFFF).to(tl.int32)
    at_all = 0
    at_both = of_all
    at_first = of_all + of_both
    at_second = of_all + of_both + of_first
    shared_ptr += task * 4
    tl.store(shared_ptr, at_both)
    tl.store(shared_ptr + 1, at_first)
    tl.store(shared_ptr + 2, at_second)
    ours = entries_ptr + task * room
    for n in range(0, keys, TILE):
        marks = tl.load(scratch_ptr + n + places, mask=n + places < keys, other=0).to(tl.int32)
        kind, one = _kinds(marks, everyone, FIRST, SECOND)
        start = tl.where(
            kind < 2, tl.where(kind < 1, at_all, at_both), tl.where(kind < 3, at_first, at_second)
        )
        before = (tl.cumsum(one) - one >> (kind % 4 * 16) & 0xFFFF).to(tl.int32)
        tl.store(ours + start + before, (n + places) | (marks << INDEX_BITS), mask=kind < 4)
        number = tl.sum(one)
        at_all += (number & 0xFFFF).to(tl.int32)
        at_both += (number >> 16 & 0xFFFF).to(tl.int32)
        at_first += (number >> 32 & 0xFFFF).to(tl.int32)
        at_second += (number >> 48).to(tl.int32)
    tl.store(shared_ptr + 3, at_second)


def share(
    columns: Tensor, counts: Tensor, keys: int, group_size: int, groups_per_list: int
) -> tuple[Tensor, Tensor]:
    """See :func:`dlm_kernels.share_columns`: entries int32 [B, H, lists, room] and counts int32 [B, H, lists, 4]."""
    batch, heads, groups, width = columns.shape
    lists = -(-groups // groups_per_list)
    room = min(groups_per_list * width, keys)
    total = batch * heads * lists
    first_half, second_half = halves(group_size, groups_per_list)
    programs = min(total, _PROGRAMS)
    columns, counts = columns.int().contiguous(), counts.int().contiguous()
    scratch = torch.empty(programs, keys, dtype=torch.uint8, device=columns.device)
    entries = torch.zeros(batch, heads, lists, room, dtype=torch.int32, device=columns.device)
    shared = torch.empty(batch, heads, lists, 4, dtype=torch.int32, device=columns.device)
    # A round of programs after the other: all at once, their scratch rows would not stay in the cache.
    for first in range(0, total, programs):
        share_kernel[(min(programs, total - first),)](
            columns, counts, scratch, entries, shared, first, groups, width, lists, room, keys,
            SHARED=groups_per_list, FIRST=first_half, SECOND=second_half, INDEX_BITS=INDEX_BITS, TILE=_TILE,
            num_warps=4,
        )  # fmt: skip
    return entries, shared
