"""Shared lists hold the keys of all their groups and say whose they are."""

from importlib import import_module
from itertools import accumulate

import pytest
import torch
from dlm_kernels import block_sparse_attention, column_sparse_attention, share_columns
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.strategies import DEVICE, IMPLS, effort

BITS = 24  # of an entry that are the key


def random_lists(seed, groups, keys, width, dtype=torch.int32):
    """Lists of one batch element with two heads; neighbours share some keys."""
    random = torch.Generator().manual_seed(seed)
    liked = torch.rand(1, 2, 1, keys, generator=random)
    order = liked + torch.rand(1, 2, groups, keys, generator=random) / 2
    counts = torch.randint(0, width + 1, (1, 2, groups), generator=random)
    return order.argsort(-1)[..., :width].to(DEVICE, dtype), counts.to(DEVICE, dtype)


def run_of(members, groups, group_size, groups_per_list):
    """Which of the four runs a key belongs to that these of ``groups`` groups list."""
    if len(members) == groups:
        return 0
    if group_size * groups_per_list <= 64:
        return 1
    first = any(g * group_size < 64 for g in members)
    second = any((g + 1) * group_size > 64 for g in members)
    return 1 if first and second else 2 if first else 3


def assert_holds(shared, columns, counts, groups_per_list):
    """Compare with the union of the groups' sets, key by key."""
    groups = columns.shape[2]
    assert shared.entries.dtype == shared.counts.dtype == torch.int32
    assert shared.entries.shape[:3] == (*columns.shape[:2], -(-groups // groups_per_list))
    assert shared.groups_per_list == groups_per_list
    longest = 1
    for b in range(columns.shape[0]):
        for h in range(columns.shape[1]):
            for at in range(shared.entries.shape[2]):
                members = range(at * groups_per_list, min(groups, (at + 1) * groups_per_list))
                sets = [set(columns[b, h, g, : counts[b, h, g]].tolist()) for g in members]
                runs = [[], [], [], []]
                for key in sorted(set.union(*sets)):
                    of = [g for g, keys in enumerate(sets) if key in keys]
                    entry = key | sum(1 << g for g in of) << BITS
                    runs[run_of(of, len(sets), shared.group_size, groups_per_list)].append(entry)
                expected = [entry for run in runs for entry in run]
                ends = list(accumulate(map(len, runs)))
                assert shared.counts[b, h, at].tolist() == ends
                assert shared.entries[b, h, at, : ends[-1]].tolist() == expected
                longest = max(longest, ends[-1])
    assert shared.entries.shape[3] == longest


@pytest.mark.parametrize("impl", IMPLS)
def test_holds_the_union_with_its_members(impl):
    @effort(impl, reference=60, triton=20)
    @given(
        data=st.data(),
        groups=st.integers(1, 12),
        keys=st.integers(1, 40) | st.integers(1000, 2500),
        group_size=st.sampled_from([5, 20, 32, 40, 64, 100]),
        groups_per_list=st.integers(1, 7),
        dtype=st.sampled_from([torch.int32, torch.int64]),
    )
    def check(data, groups, keys, group_size, groups_per_list, dtype):
        width = data.draw(st.integers(1, keys))
        columns, counts = random_lists(data.draw(st.integers(0, 99)), groups, keys, width, dtype)
        shared = share_columns(
            columns, counts, keys=keys, group_size=group_size, groups_per_list=groups_per_list, impl=impl
        )
        assert shared.group_size == group_size
        assert_holds(shared, columns, counts, groups_per_list)

    check()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("group_size", "expected"), [(1, 7), (16, 7), (32, 4), (50, 2), (64, 2), (128, 1), (200, 1)]
)
def test_lists_serve_at_most_128_queries_by_default(impl, group_size, expected):
    columns, counts = random_lists(0, 5, 30, 10)
    shared = share_columns(columns, counts, keys=30, group_size=group_size, impl=impl)
    assert_holds(shared, columns, counts, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_and_equal_lists(impl):
    columns = torch.tensor([3, 5, 29], device=DEVICE).expand(1, 2, 5, 3)
    for count in (0, 1, 3):
        counts = torch.full((1, 2, 5), count, device=DEVICE)
        shared = share_columns(columns, counts, keys=30, group_size=8, impl=impl)
        assert_holds(shared, columns, counts, 7)


def test_triton_works_in_rounds(monkeypatch):
    """More lists than programs run at once: scratch memory is used again."""
    monkeypatch.setattr(import_module("dlm_kernels.share_columns.triton_share"), "_PROGRAMS", 3)
    columns, counts = random_lists(1, 11, 200, 90)
    shared = share_columns(columns, counts, keys=200, group_size=8, groups_per_list=2, impl="triton")
    assert_holds(shared, columns, counts, 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("group_size", "groups_per_list"), [(16, 4), (16, 7), (50, 2), (64, 3), (200, 2)])
def test_attention_stays_the_same(impl, group_size, groups_per_list):
    """Whether or not the queries of a list fit into one tile."""
    q, k, v = torch.randn(3, 1, 2, 300, 16, device=DEVICE)
    columns, counts = random_lists(2, -(-300 // group_size), 300, 40)
    options = {"group_size": group_size, "impl": impl}
    private = column_sparse_attention(q, k, v, columns, counts, **options)
    shared = share_columns(columns, counts, keys=300, groups_per_list=groups_per_list, **options)
    together = column_sparse_attention(q, k, v, shared, **options)
    torch.testing.assert_close(together, private, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("block_size", "groups_per_list"), [(16, 4), (32, 4), (64, 2), (64, 3)])
def test_block_attention_stays_the_same(impl, block_size, groups_per_list):
    q, k, v = torch.randn(3, 1, 2, 300, 16, device=DEVICE)
    entries = -(-300 // block_size)
    blocks, counts = random_lists(3, entries, entries, 4)
    options = {"block_size": block_size, "impl": impl}
    private = block_sparse_attention(q, k, v, blocks, counts, **options)
    shared = share_columns(
        blocks, counts, keys=entries, group_size=block_size, groups_per_list=groups_per_list, impl=impl
    )
    together = block_sparse_attention(q, k, v, shared, **options)
    torch.testing.assert_close(together, private, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": 1 << 24}, r"there must be 1 … 16777215 keys to list, got 16777216"),
        ({"keys": 0}, "keys to list, got 0"),
        ({"keys": 29}, r"columns \(1, 2, 3, 4\) must lie in 0 … 28, got 29 … 29"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"groups_per_list": 8}, "groups_per_list must lie in 1 … 7, got 8"),
        ({"groups_per_list": 0}, "groups_per_list must lie in 1 … 7, got 0"),
        ({"columns": torch.zeros(2, 3, 4, dtype=torch.int32)}, r"columns must be .*, got \(2, 3, 4\)"),
        ({"columns": torch.zeros(1, 2, 3, 4)}, r"columns must be int32 or int64, got torch.float32"),
        ({"counts": torch.zeros(1, 2, 2).int()}, r"counts must be \(1, 2, 3\), got \(1, 2, 2\)"),
        ({"counts": torch.full((1, 2, 3), 5)}, r"counts \(1, 2, 3\) must lie in 0 … 4, got 5 … 5"),
        ({"impl": "cuda"}, "share_columns has no implementation 'cuda'"),
    ],
)
def test_wrong_arguments_are_named(change, message, monkeypatch):
    monkeypatch.setenv("DLM_KERNELS_DEBUG", "1")
    columns, counts = torch.full((1, 2, 3, 4), 29), torch.ones(1, 2, 3, dtype=torch.int32)
    arguments = {"columns": columns, "counts": counts, "keys": 30, "group_size": 8} | change
    arguments = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        share_columns(**arguments)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_pattern_that_does_not_fit_is_named(impl):
    q, k, v = torch.randn(3, 1, 2, 40, 16, device=DEVICE)
    columns, counts = random_lists(0, 5, 40, 10)
    shared = share_columns(columns, counts, keys=40, group_size=8, groups_per_list=4, impl=impl)
    with pytest.raises(ValueError, match="counts must not be given with shared columns"):
        column_sparse_attention(q, k, v, shared, counts, group_size=8, impl=impl)
    with pytest.raises(ValueError, match=r"shared columns hold lists \(1, 2, 2\) for groups of 8"):
        column_sparse_attention(q, k, v, shared, group_size=16, impl=impl)
    with pytest.raises(ValueError, match=r"shared columns hold lists .* but 39 queries .* need \(1, 1, 2\)"):
        column_sparse_attention(q[:, :1, 1:], k[:, :1], v[:, :1], shared, group_size=8, impl=impl)
