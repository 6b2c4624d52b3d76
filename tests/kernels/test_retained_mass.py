"""Dense mass on the kept keys."""

import pytest
import torch
from dlm_kernels import attention_statistics, retained_mass, share_columns
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.materialised import assert_close, attention_map, listed_keys, valid_queries
from tests.kernels.strategies import DEVICE, IMPLS, effort, group_sizes, lists, problems


@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_the_materialised_map(impl):
    @effort(impl, reference=50, triton=16)
    @given(
        data=st.data(),
        problem=problems(impl),
        known_lse=st.booleans(),
        share=st.booleans(),
        scale=st.sampled_from([None, 0.3]),
        chunk_bytes=st.sampled_from([1, None]),
    )
    def check(data, problem, known_lse, share, scale, chunk_bytes):
        q, k, start, length = problem.q, problem.k, problem.start, problem.length
        group_size = data.draw(group_sizes(problem))
        columns, counts = data.draw(lists(problem, group_size))
        pattern = (columns, counts)
        if share:
            pattern = (share_columns(columns, counts, keys=length, group_size=group_size, impl=impl),)
        valid = valid_queries(start, q.shape[0], length).to(DEVICE)
        options = {"start": start, "scale": scale, "impl": impl}
        lse = None
        if known_lse:
            lse = attention_statistics(q, k, bins=None, **options).lse
            lse[~valid[:, None].expand(lse.shape)] = torch.nan  # padding is not looked at
        mean, lowest = retained_mass(
            q, k, *pattern, group_size=group_size, lse=lse, chunk_bytes=chunk_bytes, **options
        )
        kept = listed_keys(columns, counts, group_size, length, length)
        mass = (attention_map(q, k, start, scale=scale) * kept).sum(-1)
        for b in range(q.shape[0]):
            of_valid = mass[b][:, valid[b]]
            assert_close(mean[b], of_valid.mean(-1))
            assert_close(lowest[b], of_valid.amin(-1))

    check()


@pytest.mark.parametrize("impl", IMPLS)
def test_blocks_agree_with_the_materialised_map(impl):
    @effort(impl, reference=30, triton=10)
    @given(
        data=st.data(),
        problem=problems(impl, padding=False),
        block_size=st.sampled_from([16, 32, 64, 128]),
        share=st.booleans(),
    )
    def check(data, problem, block_size, share):
        q, k, length = problem.q, problem.k, problem.length
        blocks, counts = data.draw(lists(problem, block_size, block_size))
        pattern = (blocks, counts)
        if share:
            entries = -(-length // block_size)
            pattern = (share_columns(blocks, counts, keys=entries, group_size=block_size, impl=impl),)
        mean, lowest = retained_mass(q, k, *pattern, group_size=block_size, block_size=block_size, impl=impl)
        kept = listed_keys(blocks, counts, block_size, length, length, block_size)
        mass = (attention_map(q, k) * kept).sum(-1)
        assert_close(mean, mass.mean(-1))
        assert_close(lowest, mass.amin(-1))

    check()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("group_size", [8, 200])
def test_everything_kept_is_one_and_nothing_zero(impl, group_size):
    q, k = torch.randn(2, 1, 4, 50, 16, device=DEVICE)
    groups = -(-50 // group_size)
    columns = torch.arange(50, device=DEVICE).expand(1, 4, groups, 50)
    for count, expected in ((50, torch.ones), (0, torch.zeros)):
        counts = torch.full((1, 4, groups), count, device=DEVICE)
        for found in retained_mass(q, k, columns, counts, group_size=group_size, impl=impl):
            assert_close(found, expected(1, 4).double(), 2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_other_numbers_of_keys_than_queries(impl):
    q, k = torch.randn(1, 4, 5, 16, device=DEVICE), torch.randn(1, 2, 150, 16, device=DEVICE)
    columns = torch.tensor([0, 149], device=DEVICE).expand(1, 4, 1, 2)
    mean, _ = retained_mass(q, k, columns, torch.full((1, 4, 1), 2, device=DEVICE), group_size=8, impl=impl)
    assert_close(mean, attention_map(q, k)[..., [0, 149]].sum(-1).mean(-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"lse": torch.ones(1, 2, 9)},
            r"lse must be float32 \(1, 2, 10\), got torch.float32 \(1, 2, 9\)",
        ),
        ({"lse": torch.ones(1, 2, 10).half()}, r"lse must be float32 \(1, 2, 10\), got torch.float16"),
        ({"block_size": 5}, "block_size must be 1, 16, 32, 64 or 128, got 5"),
        ({"columns": torch.full((1, 2, 3, 4), 10)}, r"columns \(1, 2, 3, 4\) must lie in 0 … 9, got 10"),
        ({"counts": torch.full((1, 2, 3), 5)}, r"counts \(1, 2, 3\) must lie in 0 … 4, got 5"),
        ({"counts": None}, r"counts must be given with columns \(1, 2, 3, 4\)"),
        ({"scale": 0.0}, "scale must be positive and finite"),
        ({"start": torch.tensor([10])}, r"start must lie in 0 … 9, got \[10\]"),
    ],
)
def test_wrong_arguments_are_named(change, message, monkeypatch):
    monkeypatch.setenv("DLM_KERNELS_DEBUG", "1")
    q, k = torch.randn(2, 1, 2, 10, 8)
    columns, counts = torch.zeros(1, 2, 3, 4, dtype=torch.int32), torch.ones(1, 2, 3, dtype=torch.int32)
    arguments = {"q": q, "k": k, "columns": columns, "counts": counts, "group_size": 4} | change
    arguments = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        retained_mass(**arguments)
