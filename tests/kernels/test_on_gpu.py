"""What only a GPU can show: torch.compile, CUDA graphs, offsets beyond 2³¹, many heads."""

import pytest
import torch
from dlm_kernels import (
    attention_statistics,
    block_sparse_attention,
    column_sparse_attention,
    retained_mass,
    share_columns,
)
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.materialised import assert_attends, assert_close, attention_map, listed_keys

pytestmark = pytest.mark.gpu

LENGTH, GROUP = 256, 32


def inputs(seed=0):
    """q, k, v of one batch element, and lists of keys and of blocks with their counts."""
    random = torch.Generator("cuda").manual_seed(seed)
    new = {"device": "cuda", "generator": random}
    q = torch.randn(1, 4, LENGTH, 64, dtype=torch.bfloat16, **new)
    k, v = torch.randn(2, 1, 2, LENGTH, 64, dtype=torch.bfloat16, **new)
    shape = (1, 4, LENGTH // GROUP)
    columns = torch.rand(*shape, LENGTH, **new).argsort(-1)[..., :50].int()
    blocks = torch.rand(*shape, LENGTH // GROUP, **new).argsort(-1)[..., :4].int()
    listed = torch.randint(1, 51, shape, dtype=torch.int32, **new)
    listed_blocks = torch.randint(1, 5, shape, dtype=torch.int32, **new)
    return q, k, v, columns, listed, blocks, listed_blocks


def columns_op(q, k, v, columns, listed, blocks, listed_blocks):
    return column_sparse_attention(q, k, v, columns, listed, group_size=GROUP)


def blocks_op(q, k, v, columns, listed, blocks, listed_blocks):
    return block_sparse_attention(q, k, v, blocks, listed_blocks, block_size=GROUP)


def statistics_op(q, k, v, columns, listed, blocks, listed_blocks):
    found = attention_statistics(q, k, bins=8)
    parts = (found.lse, found.column_mass, found.pooled_map, found.row_entropy)
    return torch.cat([part.flatten() for part in parts])


def mass_op(q, k, v, columns, listed, blocks, listed_blocks):
    return torch.stack(retained_mass(q, k, columns, listed, group_size=GROUP))


OPS = [columns_op, blocks_op, statistics_op, mass_op]


@pytest.mark.parametrize("op", OPS)
def test_compiles_without_a_break(op):
    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True)
    for seed in range(2):
        torch.testing.assert_close(compiled(*inputs(seed)), op(*inputs(seed)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_replays_in_a_cuda_graph(op):
    static = inputs(0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        op(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(*static)
    for seed in (1, 2):
        for tensor, new in zip(static, inputs(seed), strict=True):
            tensor.copy_(new)
        graph.replay()
        assert torch.equal(out, op(*inputs(seed)))


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float16, 64), (torch.bfloat16, 128)])
@pytest.mark.parametrize(
    ("group_size", "groups_per_list"), [(32, 1), (32, 3), (32, 4), (16, 7), (128, 1), (200, 1), (64, 3)]
)
def test_lists_for_few_and_many_queries(dtype, dim, group_size, groups_per_list):
    """Tiles of 128 queries are filled in part, whole, or more than once; some lists are empty, some ends ragged."""
    q = torch.randn(2, 4, 1000, dim, dtype=dtype, device="cuda")
    k, v = torch.randn(2, 2, 2, 1000, dim, dtype=dtype, device="cuda")
    shape = (2, 4, -(-1000 // group_size))
    columns = torch.rand(*shape, 1000, device="cuda").argsort(-1)[..., :333]
    counts = torch.randint(0, 334, shape, device="cuda")
    counts[0, 0, :3] = 0
    kept = listed_keys(columns, counts, group_size, 1000, 1000)
    pattern = (columns, counts)
    if groups_per_list > 1:
        lists = {"keys": 1000, "group_size": group_size, "groups_per_list": groups_per_list}
        pattern = (share_columns(columns, counts, **lists),)
    out = column_sparse_attention(q, k, v, *pattern, group_size=group_size)
    assert_attends(out, q, k, v, kept)
    assert torch.equal(out, column_sparse_attention(q, k, v, *pattern, group_size=group_size))


@pytest.mark.parametrize(("block_size", "groups_per_list"), [(32, 4), (64, 2), (64, 3), (128, 1)])
@pytest.mark.parametrize("length", [1024, 1000])
def test_lists_of_blocks(block_size, groups_per_list, length):
    """Whole blocks, and a last one that is cut short."""
    dim = 128 if groups_per_list > 2 else 64
    q = torch.randn(1, 4, length, dim, dtype=torch.bfloat16, device="cuda")
    k, v = torch.randn(2, 1, 2, length, dim, dtype=torch.bfloat16, device="cuda")
    entries = -(-length // block_size)
    blocks = torch.rand(1, 4, entries, entries, device="cuda").argsort(-1)
    counts = torch.randint(0, entries + 1, (1, 4, entries), device="cuda")
    lists = {"keys": entries, "group_size": block_size, "groups_per_list": groups_per_list}
    out = block_sparse_attention(q, k, v, share_columns(blocks, counts, **lists), block_size=block_size)
    assert_attends(out, q, k, v, listed_keys(blocks, counts, block_size, length, length, block_size))


def far_apart(rows, dim, stride):
    """bfloat16 [1, 1, rows, dim] whose rows lie ``stride`` elements apart, in memory that holds NaN otherwise."""
    memory = torch.full((rows * stride,), torch.nan, dtype=torch.bfloat16, device="cuda")
    tensor = memory.as_strided((1, 1, rows, dim), (rows * stride, rows * stride, stride, 1))
    assert tensor.stride(2) * (rows - 1) >= 1 << 31
    return tensor.copy_(torch.randn(1, 1, rows, dim))


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_offsets_beyond_32_bits(which):
    """Rows 75 million elements apart, so that the last of 33 begins beyond a 32-bit offset; 5 GB."""
    tensors = {name: torch.randn(1, 1, 33, 64, dtype=torch.bfloat16, device="cuda") for name in "qkv"}
    tensors[which] = far_apart(33, 64, 9 << 23)
    q, k, v = tensors.values()
    columns = torch.arange(33, device="cuda").expand(1, 1, 3, 33)
    counts = torch.tensor([[[33, 7, 20]]], device="cuda")
    out = column_sparse_attention(q, k, v, columns, counts, group_size=16)
    assert_attends(out, q, k, v, listed_keys(columns, counts, 16, 33, 33))
    if which != "v":
        found = attention_statistics(q, k, bins=3)
        assert_close(found.column_mass, attention_map(q, k).mean(2))
        assert_close(found.lse, attention_statistics(q.contiguous(), k.contiguous()).lse.double())


@pytest.mark.parametrize("heads_apart", [False, True])
def test_many_heads_beyond_32_bits(heads_apart):
    """Offsets of heads are always computed in 64 bits: 40 heads, 2²⁶ elements apart."""
    rows, dim, stride = 64, 64, 1 << 26 if heads_apart else 64 * 64
    memory = torch.zeros(39 * stride + rows * dim, dtype=torch.bfloat16, device="cuda")
    k = memory.as_strided((1, 40, rows, dim), (40 * stride, stride, dim, 1)).normal_()
    q, v = torch.randn(2, 1, 40, rows, dim, dtype=torch.bfloat16, device="cuda")
    blocks = torch.arange(4, device="cuda").expand(1, 40, 4, 4)
    out = block_sparse_attention(q, k, v, blocks, torch.full((1, 40, 4), 4, device="cuda"), block_size=16)
    assert_attends(out, q, k, v, torch.ones(1, 40, rows, rows, dtype=torch.bool, device="cuda"))
    assert_close(attention_statistics(q, k, bins=1).column_mass, attention_map(q, k).mean(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("share", [False, True])
def test_all_blocks_are_as_exact_as_flash_attention(dtype, block_size, share):
    """A long sequence and all heads; without a mask PyTorch runs FlashAttention or cuDNN."""
    q = torch.randn(1, 32, 4096, 128, dtype=dtype, device="cuda")
    k, v = torch.randn(2, 1, 8, 4096, 128, dtype=dtype, device="cuda")
    count = 4096 // block_size
    blocks = torch.arange(count, dtype=torch.int32, device="cuda").expand(1, 32, count, count)
    counts = torch.full((1, 32, count), count, dtype=torch.int32, device="cuda")
    pattern = (blocks, counts)
    if share:
        pattern = (share_columns(blocks, counts, keys=count, group_size=block_size),)
    out = block_sparse_attention(q, k, v, *pattern, block_size=block_size)
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), enable_gqa=True)
    theirs = scaled_dot_product_attention(q, k, v, enable_gqa=True)
    error = float((theirs - exact).abs().max())
    assert float((out - exact).abs().max()) <= 2 * error
