"""Which pairs of queries and keys a pattern keeps, by bins, against counting them one by one."""

import pytest
import torch
from dlm_kernels.share_columns import share_columns

from dlm_lens.policies.columns import ColumnLists, ColumnPattern, Span
from dlm_lens.policies.sink_aware_heads import HeadPattern

BINS = 5


def counted(pattern, rows, heads):
    """The share of pairs kept of every pair of bins, [rows, heads, bins, bins], by the meaning of the lists."""
    length, size = pattern.length, pattern.group_size
    kept = torch.zeros(rows, heads, BINS, BINS)
    every = torch.zeros(rows, heads, BINS, BINS)
    for lists in pattern.lists:
        first = lists.span.first
        for row in range(rows)[lists.span.rows]:
            for head in range(heads):
                for query in range(first, length):
                    group = (query - first) // size
                    named = range(length - first)
                    if lists.columns is not None:
                        count = int(lists.counts[row - (lists.span.rows.start or 0), head, group])
                        named = lists.columns[
                            row - (lists.span.rows.start or 0), head, group, :count
                        ].tolist()
                    for key in range(first, length):
                        at = row, head, query * BINS // length, key * BINS // length
                        every[at] += 1
                        kept[at] += (key - first) // pattern.block_size in named
    return kept / every.clamp_min(1)


def lists_of(span, rows, heads, groups, keys, most):
    """Random ascending lists of different lengths."""
    columns = torch.stack([torch.randperm(keys)[:most].sort().values for _ in range(rows * heads * groups)])
    counts = torch.randint(1, most + 1, (rows, heads, groups))
    return ColumnLists(span, columns.view(rows, heads, groups, most).int(), counts.int())


def check(pattern, rows, heads):
    shares = pattern.kept_share(BINS, heads)
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares, counted(pattern, rows, heads))


@pytest.mark.parametrize("length", [23, 40])
def test_columns(length):
    groups = -(-length // 6)
    lists = lists_of(Span(slice(None), 0), 2, 3, groups, length, 7)
    check(ColumnPattern((lists,), 6, length), 2, 3)


def test_blocks_of_which_the_last_is_short():
    lists = lists_of(Span(slice(None), 0), 1, 2, 3, 3, 2)
    check(ColumnPattern((lists,), 16, 41, block_size=16), 1, 2)


def test_padding_counts_for_nothing_and_a_sample_may_keep_everything():
    padded = lists_of(Span(slice(0, 1), 9), 1, 2, -(-14 // 4), 14, 5)
    pattern = ColumnPattern((padded, ColumnLists.everything(Span(slice(1, 2), 3))), 4, 23)
    shares = pattern.kept_share(BINS, 2)
    assert not shares[0, :, 0].any()
    assert not shares[0, :, :, 0].any()
    assert shares[1].eq(1).all()
    torch.testing.assert_close(shares, counted(pattern, 2, 2))


def test_merged_lists_are_the_same_pattern():
    lists = lists_of(Span(slice(None), 0), 1, 2, 5, 40, 9)
    merged = share_columns(lists.columns, lists.counts, keys=40, group_size=8, groups_per_list=3)
    shared = ColumnPattern((ColumnLists(lists.span, merged, lists.counts),), 8, 40)
    torch.testing.assert_close(shared.kept_share(BINS, 2), ColumnPattern((lists,), 8, 40).kept_share(BINS, 2))


def test_heads_keep_all_or_nothing():
    shares = HeadPattern(torch.tensor([[True, False]])).kept_share(BINS, 2)
    assert shares.shape == (1, 2, BINS, BINS)
    assert shares[0, 0].eq(1).all()
    assert shares[0, 1].eq(0).all()
