"""Block-sparse attention is dense attention with all other blocks masked."""

import pytest
import torch
from dlm_kernels import block_sparse_attention, column_sparse_attention, share_columns
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.materialised import assert_attends, listed_keys
from tests.kernels.strategies import DEVICE, DTYPES, IMPLS, effort, lists, problems

BLOCK_SIZES = [16, 32, 64, 128]


@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_masked_attention(impl):
    @effort(impl, reference=40, triton=16)
    @given(
        data=st.data(),
        problem=problems(impl, padding=False),
        block_size=st.sampled_from(BLOCK_SIZES),
        groups_per_list=st.none() | st.integers(1, 7),
        scale=st.sampled_from([None, 0.3]),
    )
    def check(data, problem, block_size, groups_per_list, scale):
        q, k, v, length = problem.q, problem.k, problem.v, problem.length
        blocks, counts = data.draw(lists(problem, block_size, block_size))
        kept = listed_keys(blocks, counts, block_size, length, length, block_size)
        options = {"block_size": block_size, "scale": scale, "impl": impl}
        out = block_sparse_attention(q, k, v, blocks, counts, **options)
        assert_attends(out, q, k, v, kept, scale)
        shared = share_columns(
            blocks,
            counts,
            keys=-(-length // block_size),
            group_size=block_size,
            groups_per_list=groups_per_list,
            impl=impl,
        )
        assert_attends(block_sparse_attention(q, k, v, shared, **options), q, k, v, kept, scale)

    check()


def everything(q, k, block_size):
    """Lists of all blocks, in no order."""
    shape = (*q.shape[:2], -(-q.shape[2] // block_size))
    blocks = torch.randperm(-(-k.shape[2] // block_size), device=DEVICE)
    return blocks.expand(*shape, -1), torch.full(shape, len(blocks), device=DEVICE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("length", [256, 150])
def test_all_blocks_are_dense_attention(impl, dtype, block_size, length):
    q = torch.randn(1, 2, length, 32).to(DEVICE, dtype)
    k, v = torch.randn(2, 1, 1, length, 32).to(DEVICE, dtype)
    out = block_sparse_attention(q, k, v, *everything(q, k, block_size), block_size=block_size, impl=impl)
    assert_attends(out, q, k, v, torch.ones(1, 2, length, length, dtype=torch.bool, device=DEVICE))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("queries", "keys"), [(3, 20), (16, 300), (150, 7)])
def test_other_numbers_of_keys_than_queries(impl, queries, keys):
    q = torch.randn(1, 2, queries, 16, device=DEVICE)
    k, v = torch.randn(2, 1, 2, keys, 16, device=DEVICE)
    blocks, counts = everything(q, k, 16)
    out = block_sparse_attention(q, k, v, blocks, counts, block_size=16, impl=impl)
    assert_attends(out, q, k, v, listed_keys(blocks, counts, 16, queries, keys, 16))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("last", [False, True])
def test_a_single_block_is_attention_to_its_keys(impl, block_size, last):
    """The first, and the last, which is cut short."""
    length = 2 * block_size + 5
    q, k, v = torch.randn(3, 1, 2, length, 16, device=DEVICE)
    blocks = torch.full((1, 2, 3, 1), 2 if last else 0, device=DEVICE)
    counts = torch.ones(1, 2, 3, dtype=torch.int32, device=DEVICE)
    out = block_sparse_attention(q, k, v, blocks, counts, block_size=block_size, impl=impl)
    assert_attends(out, q, k, v, listed_keys(blocks, counts, block_size, length, length, block_size))


@pytest.mark.parametrize("impl", IMPLS)
def test_no_block_gives_zeros(impl):
    q, k, v = torch.randn(3, 1, 2, 50, 16, device=DEVICE)
    blocks, counts = torch.full((2, 1, 2, 4, 1), 0, dtype=torch.int32, device=DEVICE)
    assert not block_sparse_attention(q, k, v, blocks, counts[..., 0], block_size=16, impl=impl).any()


@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_the_same_keys_as_columns(impl):
    q, k, v = torch.randn(3, 1, 2, 96, 16, device=DEVICE)
    blocks = torch.tensor([[0, 2], [1, 2], [0, 1]], device=DEVICE).expand(1, 2, 3, 2)
    counts = torch.full((1, 2, 3), 2, device=DEVICE)
    columns = (blocks[..., None] * 32 + torch.arange(32, device=DEVICE)).flatten(-2)
    by_block = block_sparse_attention(q, k, v, blocks, counts, block_size=32, impl=impl)
    by_column = column_sparse_attention(q, k, v, columns, counts * 32, group_size=32, impl=impl)
    torch.testing.assert_close(by_block, by_column, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_runs_are_bit_equal(impl):
    q, k, v = torch.randn(3, 1, 2, 150, 16, device=DEVICE)
    blocks, counts = everything(q, k, 32)
    options = {"block_size": 32, "impl": impl}
    first, second = (block_sparse_attention(q, k, v, blocks, counts, **options) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("impl", IMPLS)
def test_keys_and_values_may_lie_anyhow(impl):
    q = torch.randn(2, 4, 16, 40, device=DEVICE).mT
    k = torch.randn(2, 40, 1, 48, device=DEVICE)[..., 16:32].transpose(1, 2).expand(2, 2, 40, 16)
    v = torch.randn(2, 2, 16, 40, device=DEVICE).mT
    blocks, counts = everything(q, k, 16)
    out = block_sparse_attention(q, k, v, blocks, counts, block_size=16, impl=impl)
    assert_attends(out, q, k, v, listed_keys(blocks, counts, 16, 40, 40, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 8}, "block_size must be 16, 32, 64 or 128, got 8"),
        (
            {"blocks": torch.zeros(1, 2, 2, 1, dtype=torch.int32)},
            r"blocks must be \[1, 2, 3, K\] for 40 queries in groups of 16, got \(1, 2, 2, 1\)",
        ),
        (
            {"blocks": torch.full((1, 2, 3, 4), 3)},
            r"blocks \(1, 2, 3, 4\) must lie in 0 … 2, got 3 … 3",
        ),
        (
            {"blocks": torch.zeros(1, 2, 3, 4)},
            r"blocks must be int32 or int64, got torch.float32 \(1, 2, 3, 4\)",
        ),
        ({"counts": torch.full((1, 2, 3), 5)}, r"counts \(1, 2, 3\) must lie in 0 … 4, got 5 … 5"),
        ({"counts": None}, r"counts must be given with blocks \(1, 2, 3, 4\)"),
        ({"v": torch.randn(1, 2, 9, 8)}, r"v \(1, 2, 9, 8\) must have the shape of k \(1, 2, 40, 8\)"),
        ({"scale": -0.5}, "scale must be positive and finite, got -0.5"),
    ],
)
def test_wrong_arguments_are_named(change, message, monkeypatch):
    monkeypatch.setenv("DLM_KERNELS_DEBUG", "1")
    q, k, v = torch.randn(3, 1, 2, 40, 8)
    blocks, counts = torch.zeros(1, 2, 3, 4, dtype=torch.int32), torch.ones(1, 2, 3, dtype=torch.int32)
    arguments = {"q": q, "k": k, "v": v, "blocks": blocks, "counts": counts, "block_size": 16} | change
    arguments = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**arguments)
