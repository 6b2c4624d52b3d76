"""Merging neighbouring groups' lists in plain PyTorch, one row of lists at a time."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dlm_kernels.common import INDEX_BITS


def halves(group_size: int, groups_per_list: int) -> tuple[int, int]:
    """Bits of a list's groups with queries among its first 64, and of those with later ones, of which both may be;
    twice the same where no query is later."""
    groups = range(groups_per_list)
    first = sum(1 << g for g in groups if g * group_size < 64)
    second = sum(1 << g for g in groups if (g + 1) * group_size > 64)
    return first, second or first


def merge(
    columns: Tensor, counts: Tensor, keys: int, group_size: int, groups_per_list: int
) -> tuple[Tensor, Tensor]:
    """See :func:`dlm_kernels.share_columns`: entries int32 [B, H, lists, room] and counts int32 [B, H, lists, 4]."""
    batch, heads, groups, width = columns.shape
    lists = -(-groups // groups_per_list)
    short = lists * groups_per_list - groups
    used = torch.arange(width, device=columns.device) < counts[..., None]
    here = torch.full((lists,), groups_per_list, device=columns.device)
    here[-1] -= short
    first, second = halves(group_size, groups_per_list)
    bit = (1 << torch.arange(groups_per_list, device=columns.device))[:, None]
    entries = torch.zeros(
        batch, heads, lists, min(groups_per_list * width, keys), dtype=torch.int32, device=columns.device
    )
    shared = torch.zeros(batch, heads, lists, 4, dtype=torch.int32, device=columns.device)
    for b in range(batch):
        for h in range(heads):
            listed = torch.zeros(groups, keys + 1, dtype=torch.bool, device=columns.device)
            listed.scatter_(1, torch.where(used[b, h], columns[b, h].long(), keys), True)
            members = pad(listed[:, :keys], (0, 0, 0, short)).view(lists, groups_per_list, keys)
            marks = (members * bit).sum(1)
            kind = torch.where(marks & first == 0, 3, torch.where(marks & second == 0, 2, 1))
            kind = torch.where(marks == (1 << here[:, None]) - 1, 0, torch.where(marks == 0, 4, kind))
            order = kind.sort(dim=1, stable=True).indices
            shared[b, h] = torch.stack([(kind <= last).sum(1) for last in range(4)], dim=1)
            entries[b, h] = (order | marks.gather(1, order) << INDEX_BITS)[:, : entries.shape[-1]]
    return entries, shared
