"""Column-sparse attention is dense attention with everything else masked."""

import pytest
import torch
from dlm_kernels import column_sparse_attention, share_columns
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.materialised import assert_attends, listed_keys
from tests.kernels.strategies import DEVICE, DTYPES, IMPLS, effort, group_sizes, lists, problems


@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_masked_attention(impl):
    @effort(impl, reference=50, triton=16)
    @given(
        data=st.data(),
        problem=problems(impl, padding=False),
        groups_per_list=st.none() | st.integers(1, 7),  # a list may serve more queries than a tile has
        scale=st.sampled_from([None, 0.3]),
        chunk_bytes=st.sampled_from([1, None]),
    )
    def check(data, problem, groups_per_list, scale, chunk_bytes):
        q, k, v = problem.q, problem.k, problem.v
        group_size = data.draw(group_sizes(problem))
        columns, counts = data.draw(lists(problem, group_size))
        kept = listed_keys(columns, counts, group_size, problem.length, problem.length)
        options = {"group_size": group_size, "scale": scale, "impl": impl}
        out = column_sparse_attention(q, k, v, columns, counts, chunk_bytes=chunk_bytes, **options)
        assert_attends(out, q, k, v, kept, scale)
        shared = share_columns(
            columns,
            counts,
            keys=problem.length,
            group_size=group_size,
            groups_per_list=groups_per_list,
            impl=impl,
        )
        assert_attends(column_sparse_attention(q, k, v, shared, **options), q, k, v, kept, scale)

    check()


def everything(q, k, group_size):
    """Lists of all keys."""
    shape = (*q.shape[:2], -(-q.shape[2] // group_size))
    columns = torch.arange(k.shape[2], device=DEVICE).expand(*shape, -1)
    return columns, torch.full(shape, k.shape[2], device=DEVICE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [8, 32, 200])
def test_all_keys_are_dense_attention(impl, dtype, group_size):
    q = torch.randn(1, 4, 300 if group_size > 8 else 37, 24).to(DEVICE, dtype)
    k, v = torch.randn(2, 1, 2, q.shape[2], 24).to(DEVICE, dtype)
    out = column_sparse_attention(q, k, v, *everything(q, k, group_size), group_size=group_size, impl=impl)
    everywhere = torch.ones(1, 4, q.shape[2], k.shape[2], dtype=torch.bool, device=DEVICE)
    assert_attends(out, q, k, v, everywhere)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("queries", "keys"), [(3, 20), (5, 300), (150, 7)])
def test_other_numbers_of_keys_than_queries(impl, queries, keys):
    q = torch.randn(1, 2, queries, 16, device=DEVICE)
    k, v = torch.randn(2, 1, 2, keys, 16, device=DEVICE)
    columns, counts = everything(q, k, 32)
    out = column_sparse_attention(q, k, v, columns, counts, group_size=32, impl=impl)
    assert_attends(out, q, k, v, listed_keys(columns, counts, 32, queries, keys))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("column", [0, 149])
def test_a_single_key_gives_its_value(impl, column):
    q, k, v = torch.randn(3, 1, 2, 150, 16, device=DEVICE)
    columns = torch.full((1, 2, 3, 1), column, dtype=torch.int32, device=DEVICE)
    counts = torch.ones(1, 2, 3, dtype=torch.int32, device=DEVICE)
    expected = v[:, :, column : column + 1].expand_as(q)
    shared = share_columns(columns, counts, keys=150, group_size=64, impl=impl)
    for pattern in [(columns, counts), (shared,)]:
        out = column_sparse_attention(q, k, v, *pattern, group_size=64, impl=impl)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_key_gives_zeros(impl):
    q, k, v = torch.randn(3, 1, 2, 50, 16, device=DEVICE)
    columns = torch.full((1, 2, 4, 5), 49, dtype=torch.int32, device=DEVICE)
    counts = torch.zeros(1, 2, 4, dtype=torch.int32, device=DEVICE)
    shared = share_columns(columns, counts, keys=50, group_size=16, impl=impl)
    for pattern in [(columns, counts), (shared,)]:
        out = column_sparse_attention(q, k, v, *pattern, group_size=16, impl=impl)
        assert not out.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_runs_are_bit_equal(impl):
    q, k, v = torch.randn(3, 1, 2, 150, 16, device=DEVICE)
    columns, counts = everything(q, k, 20)
    options = {"group_size": 20, "impl": impl}
    first, second = (column_sparse_attention(q, k, v, columns, counts, **options) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("impl", IMPLS)
def test_keys_and_values_may_lie_anyhow(impl):
    """Each with strides of its own: cut out of one tensor, shared between heads, columns first."""
    q = torch.randn(2, 4, 16, 40, device=DEVICE).mT
    k = torch.randn(2, 40, 1, 48, device=DEVICE)[..., 16:32].transpose(1, 2).expand(2, 2, 40, 16)
    v = torch.randn(2, 2, 16, 40, device=DEVICE).mT
    columns, counts = everything(q, k, 16)
    out = column_sparse_attention(q, k, v, columns, counts, group_size=16, impl=impl)
    assert_attends(out, q, k, v, listed_keys(columns, counts, 16, 40, 40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"columns": torch.zeros(1, 2, 2, 3, dtype=torch.int32)},
            r"columns must be \[1, 2, 3, K\] for 10 queries in groups of 4, got \(1, 2, 2, 3\)",
        ),
        (
            {"columns": torch.full((1, 2, 3, 4), 10)},
            r"columns \(1, 2, 3, 4\) must lie in 0 … 9, got 10 … 10",
        ),
        (
            {"columns": torch.full((1, 2, 3, 4), -1)},
            r"columns \(1, 2, 3, 4\) must lie in 0 … 9, got -1 … -1",
        ),
        (
            {"columns": torch.zeros(1, 2, 3, 4)},
            r"columns must be int32 or int64, got torch.float32 \(1, 2, 3, 4\)",
        ),
        (
            {"counts": torch.full((1, 2, 3), 5)},
            r"counts \(1, 2, 3\) must lie in 0 … 4, got 5 … 5",
        ),
        ({"counts": torch.full((1, 2, 3), -1)}, r"counts \(1, 2, 3\) must lie in 0 … 4, got -1"),
        ({"counts": torch.ones(1, 2, dtype=torch.int32)}, r"counts must be \(1, 2, 3\), got \(1, 2\)"),
        ({"counts": torch.ones(1, 2, 3)}, r"counts must be int32 or int64, got torch.float32 \(1, 2, 3\)"),
        ({"counts": None}, r"counts must be given with columns \(1, 2, 3, 4\)"),
        ({"v": torch.randn(1, 2, 9, 8)}, r"v \(1, 2, 9, 8\) must have the shape of k \(1, 2, 10, 8\)"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
    ],
)
def test_wrong_arguments_are_named(change, message, monkeypatch):
    monkeypatch.setenv("DLM_KERNELS_DEBUG", "1")
    q, k, v = torch.randn(3, 1, 2, 10, 8)
    columns, counts = torch.zeros(1, 2, 3, 4, dtype=torch.int32), torch.ones(1, 2, 3, dtype=torch.int32)
    arguments = {"q": q, "k": k, "v": v, "columns": columns, "counts": counts, "group_size": 4} | change
    arguments = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        column_sparse_attention(**arguments)
