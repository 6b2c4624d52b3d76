"""Dense mass on the kept keys."""

import pytest
import torch
from dlm_kernels import attention_statistics, retained_mass
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.materialised import attention_map, valid_queries
from tests.kernels.strategies import problems


@settings(deadline=None, max_examples=50)
@given(problem=problems(), data=st.data())
def test_agrees_with_the_materialised_map(problem, data):
    q, k, start = problem.q, problem.k, problem.start
    batch, heads, length, _ = q.shape
    group_size, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, length))
    groups = -(-length // group_size)
    begin = torch.zeros(batch, dtype=torch.long) if start is None else start
    # Only valid keys are listed, as policies do it.
    order = (
        torch.rand(batch, heads, groups, length)
        - 2.0 * (torch.arange(length) < begin[:, None])[:, None, None]
    )
    columns = order.argsort(-1, descending=True)[..., :width].int()
    most = (length - begin).clamp_max(width)[:, None, None].expand(batch, heads, groups)
    counts = (torch.rand(batch, heads, groups) * (most + 1)).int()
    lse = attention_statistics(q, k, start=start).lse if data.draw(st.booleans()) else None
    mean, lowest = retained_mass(
        q,
        k,
        columns,
        counts,
        group_size=group_size,
        start=start,
        lse=lse,
        chunk_bytes=data.draw(st.sampled_from([1, None])),
    )

    used = (torch.arange(width) < counts[..., None]).double()
    kept = torch.zeros(batch, heads, groups, length).double().scatter_add(-1, columns.long(), used)
    kept = kept.repeat_interleave(group_size, 2)[:, :, :length]
    mass = (attention_map(q, k, start) * kept).sum(-1)
    valid = valid_queries(start, batch, length)
    for b in range(batch):
        of_valid = mass[b][:, valid[b]]
        torch.testing.assert_close(mean[b].double(), of_valid.mean(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lowest[b].double(), of_valid.amin(-1), rtol=1e-5, atol=1e-5)


def test_everything_kept_is_one():
    q, k = torch.randn(2, 1, 4, 50, 8)
    columns = torch.arange(50).expand(1, 4, 7, 50)
    mean, lowest = retained_mass(q, k, columns, torch.full((1, 4, 7), 50), group_size=8)
    torch.testing.assert_close(mean, torch.ones(1, 4))
    torch.testing.assert_close(lowest, torch.ones(1, 4))


def test_wrong_lse_is_named():
    q, k = torch.randn(2, 1, 2, 10, 8)
    columns, counts = torch.zeros(1, 2, 3, 4, dtype=torch.int32), torch.ones(1, 2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"lse must be \(1, 2, 10\), got \(1, 2, 9\)"):
        retained_mass(q, k, columns, counts, group_size=4, lse=torch.ones(1, 2, 9))
