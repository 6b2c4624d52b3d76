"""Scores of keys per group of queries."""

import pytest
import torch
from dlm_kernels import column_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.materialised import attention_map, valid_queries
from tests.kernels.strategies import problems


@settings(deadline=None, max_examples=40)
@given(problem=problems(), group_size=st.integers(1, 20), chunk_bytes=st.sampled_from([1, 3000, None]))
def test_means_over_the_valid_queries_of_each_group(problem, group_size, chunk_bytes):
    q, k, start = problem.q, problem.k, problem.start
    pieces = list(column_scores(q, k, group_size=group_size, start=start, chunk_bytes=chunk_bytes))
    groups = -(-q.shape[2] // group_size)
    assert [g for piece, _ in pieces for g in piece] == list(range(groups))

    a = attention_map(q, k, start)
    valid = valid_queries(start, q.shape[0], q.shape[2])
    for piece, scores in pieces:
        for at, g in enumerate(piece):
            now = slice(g * group_size, (g + 1) * group_size)
            expected = a[:, :, now].sum(2) / valid[:, now].sum(1).clamp_min(1)[:, None, None]
            torch.testing.assert_close(scores[:, :, at].double(), expected, rtol=1e-5, atol=1e-6)


def test_wrong_group_size_is_named_at_the_call():
    q, k = torch.randn(2, 1, 2, 10, 4)
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        column_scores(q, k, group_size=0)
