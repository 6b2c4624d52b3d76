"""Column-sparse attention is dense attention with everything else masked."""

import pytest
import torch
from dlm_kernels import column_sparse_attention
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.strategies import problems


@settings(deadline=None, max_examples=50)
@given(problem=problems(padding=False), data=st.data())
def test_agrees_with_masked_attention(problem, data):
    q, k, v = problem.q, problem.k, problem.v
    batch, heads, length, dim = q.shape
    group_size = data.draw(st.integers(1, 12))
    width = data.draw(st.integers(1, length))
    groups = -(-length // group_size)
    columns = torch.rand(batch, heads, groups, length).argsort(-1)[..., :width].int()
    counts = torch.randint(0, width + 1, (batch, heads, groups), dtype=torch.int32)
    out = column_sparse_attention(
        q, k, v, columns, counts, group_size=group_size, chunk_bytes=data.draw(st.sampled_from([1, None]))
    )

    listed = torch.zeros(batch, heads, groups, length, dtype=torch.int32)
    used = (torch.arange(width) < counts[..., None]).int()
    kept = listed.scatter_add(-1, columns.long(), used).bool().repeat_interleave(group_size, 2)[:, :, :length]
    repeat = heads // k.shape[1]
    keys, values = (x.double().repeat_interleave(repeat, 1) for x in (k, v))
    scores = (q.double() @ keys.mT * dim**-0.5).masked_fill(~kept, -torch.inf)
    expected = torch.softmax(scores, -1).nan_to_num(0.0) @ values
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_keys_are_dense_attention(dtype):
    q = torch.randn(2, 4, 37, 8, dtype=dtype)
    k, v = torch.randn(2, 2, 2, 37, 8, dtype=dtype)
    columns = torch.arange(37).expand(2, 4, 5, 37)
    out = column_sparse_attention(q, k, v, columns, torch.full((2, 4, 5), 37), group_size=8)
    assert out.dtype == dtype
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(x.double() for x in (q, k, v)), enable_gqa=True
    )
    torch.testing.assert_close(out, exact.to(dtype))


def test_fewer_queries_than_keys():
    q, k, v = torch.randn(1, 2, 3, 8), *torch.randn(2, 1, 2, 20, 8)
    columns = torch.arange(20).expand(1, 2, 1, 20)
    out = column_sparse_attention(q, k, v, columns, torch.full((1, 2, 1), 20), group_size=32)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"columns": torch.zeros(1, 2, 2, 3, dtype=torch.int32)},
            r"columns must be \[1, 2, 3, K\] for 10 queries",
        ),
        ({"columns": torch.full((1, 2, 3, 4), 10)}, "columns must lie in 0 … 9, got 10 … 10"),
        ({"columns": torch.full((1, 2, 3, 4), -1)}, "columns must lie in 0 … 9, got -1 … -1"),
        ({"columns": torch.zeros(1, 2, 3, 4)}, "columns must be int32 or int64"),
        ({"counts": torch.full((1, 2, 3), 5)}, "counts must lie in 0 … 4, got 5 … 5"),
        ({"counts": torch.ones(1, 2, dtype=torch.int32)}, r"counts must be \(1, 2, 3\), got \(1, 2\)"),
        ({"v": torch.randn(1, 2, 9, 8)}, r"v \(1, 2, 9, 8\) must have the shape of k"),
        ({"impl": "cuda"}, "no implementation 'cuda'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    q, k, v = torch.randn(3, 1, 2, 10, 8)
    columns, counts = torch.zeros(1, 2, 3, 4, dtype=torch.int32), torch.ones(1, 2, 3, dtype=torch.int32)
    arguments = {"q": q, "k": k, "v": v, "columns": columns, "counts": counts} | change
    with pytest.raises(ValueError, match=message):
        column_sparse_attention(**arguments, group_size=4)
