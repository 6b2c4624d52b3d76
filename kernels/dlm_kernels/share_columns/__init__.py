"""Lists of keys merged over neighbouring groups of queries, so that a kernel reads each key once for all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_kernels.common import INDEX_BITS, check_group_size, check_lists, choose
from dlm_kernels.share_columns.reference import merge

__all__ = ["SharedColumns", "share_columns"]

_MOST_GROUPS = 31 - INDEX_BITS


@dataclass(frozen=True)
class SharedColumns:
    """The lists of ``groups_per_list`` neighbouring groups of queries as one list with their membership.

    entries : int32 [B, H, lists, U]; the low ``INDEX_BITS`` (24) bits are the key, bit ``24 + g`` says that the
        g-th group of the list attends to it. Four runs follow each other, each ascending: keys that all groups
        share, other keys of groups in both halves of a tile, keys of the first half only, of the second only. The
        first half are a list's first 64 queries; lists for no more than 64 have nothing in the last two runs
    counts : int32 [B, H, lists, 4], where the runs end; the last is the number of all entries
    group_size : queries per group
    groups_per_list : groups per list; the last list may have fewer
    """

    entries: Tensor
    counts: Tensor
    group_size: int
    groups_per_list: int


def share_columns(
    columns: Tensor,
    counts: Tensor,
    *,
    keys: int,
    group_size: int,
    groups_per_list: int | None = None,
    impl: str = "auto",
) -> SharedColumns:
    """Merge the key lists of neighbouring groups for :func:`column_sparse_attention`, whose result stays the same.

    Lists of neighbouring groups overlap by three quarters on real models, so that a tile of 128 queries reads few
    more keys than each of its groups lists. Waits for the GPU once, to cut the result to the longest list.

    Parameters
    ----------
    columns : int32 or int64 [B, H, nG, K], distinct keys of each group; the first ``counts`` are used
    counts : int32 or int64 [B, H, nG]
    keys : number of keys, below 2²⁴
    group_size : queries per group
    groups_per_list : groups to merge, at most 7; by default as many as fit into 128 queries
    impl : "auto", "triton" or "reference"

    Raises ``ValueError`` for shapes, types or indices that do not fit.
    """
    check_group_size(group_size)
    impl = choose("share_columns", impl, columns, "columns")
    if groups_per_list is None:
        groups_per_list = max(1, min(_MOST_GROUPS, 128 // group_size))
    if not 1 <= groups_per_list <= _MOST_GROUPS:
        raise ValueError(f"groups_per_list must lie in 1 … {_MOST_GROUPS}, got {groups_per_list}")
    check_lists(columns, counts, keys)
    if impl == "triton":
        from dlm_kernels.share_columns.triton_share import share as merge_lists
    else:
        merge_lists = merge
    entries, shared = merge_lists(columns, counts, keys, group_size, groups_per_list)
    longest = max(1, int(shared[..., 3].max()))
    return SharedColumns(entries[..., :longest].contiguous(), shared, group_size, groups_per_list)


def private_lists(
    columns: Tensor | SharedColumns, counts: Tensor | None, groups: int
) -> tuple[Tensor, Tensor]:
    """One list per group, whether they were shared or not: columns [B, H, groups, K], counts [B, H, groups]."""
    if isinstance(columns, SharedColumns):
        return _separate(columns, groups)
    assert counts is not None
    return columns, counts


def _separate(shared: SharedColumns, groups: int) -> tuple[Tensor, Tensor]:
    index_mask = (1 << INDEX_BITS) - 1
    used = torch.arange(shared.entries.shape[-1], device=shared.entries.device) < shared.counts[..., 3:]
    parts = []
    for g in range(shared.groups_per_list):
        member = used & ((shared.entries >> (INDEX_BITS + g)) & 1).bool()
        parts.append(torch.where(member, shared.entries & index_mask, index_mask).sort(-1).values)
    columns = torch.stack(parts, dim=3).flatten(2, 3)[:, :, :groups]
    counts = (columns < index_mask).sum(-1)
    columns = columns[..., : max(1, int(counts.max()))]
    return torch.where(columns < index_mask, columns, 0).int(), counts.int()
