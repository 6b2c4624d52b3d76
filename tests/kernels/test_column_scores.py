"""Scores of keys per group of queries."""

import pytest
import torch
from dlm_kernels import attention_statistics, column_scores
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.materialised import assert_close, attention_map, valid_queries
from tests.kernels.strategies import DEVICE, IMPLS, effort, group_sizes, problems


@pytest.mark.parametrize("impl", IMPLS)
def test_means_over_the_valid_queries_of_each_group(impl):
    @effort(impl, reference=40, triton=16)
    @given(data=st.data(), problem=problems(impl), chunk_bytes=st.sampled_from([1, 9000, None]))
    def check(data, problem, chunk_bytes):
        q, k, start = problem.q, problem.k, problem.start
        group_size = data.draw(group_sizes(problem))
        scores = column_scores(q, k, group_size=group_size, start=start, impl=impl, chunk_bytes=chunk_bytes)
        a = attention_map(q, k, start)
        valid = valid_queries(start, q.shape[0], problem.length).to(DEVICE)
        groups = []
        for piece, found in scores:
            groups += piece
            for at, g in enumerate(piece):
                now = slice(g * group_size, (g + 1) * group_size)
                expected = a[:, :, now].sum(2) / valid[:, now].sum(1).clamp_min(1)[:, None, None]
                assert_close(found[:, :, at], expected)
        assert groups == list(range(-(-problem.length // group_size)))

    check()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("group_size", [8, 24])
def test_a_known_lse_changes_nothing(impl, group_size):
    q, k = torch.randn(2, 2, 2, 50, 16, device=DEVICE)
    start = torch.tensor([0, 19], device=DEVICE)
    lse = attention_statistics(q, k, start=start, bins=None, impl=impl).lse
    lse[1, :, :19] = torch.nan  # padding is not looked at
    options = {"group_size": group_size, "start": start, "impl": impl}
    known = torch.cat([scores for _, scores in column_scores(q, k, lse=lse, **options)], 2)
    unknown = torch.cat([scores for _, scores in column_scores(q, k, **options)], 2)
    assert_close(known, unknown.double(), 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_more_keys_than_queries(impl):
    q, k = torch.randn(1, 4, 5, 16, device=DEVICE), torch.randn(1, 2, 150, 16, device=DEVICE)
    (_, scores), *more = column_scores(q, k, group_size=5, impl=impl, scale=0.5)
    assert not more
    assert_close(scores[:, :, 0], attention_map(q, k, scale=0.5).mean(2))


def test_wrong_group_size_is_named_at_the_call():
    q, k = torch.randn(2, 1, 2, 10, 4)
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        column_scores(q, k, group_size=0)
