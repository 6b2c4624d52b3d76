"""Attention over the first keys of a cache, whatever lies behind them."""

import pytest
import torch
from dlm_kernels import cached_attention, store_in_cache
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.materialised import assert_attends
from tests.kernels.strategies import DEVICE, DIMS, DTYPES, IMPLS, effort


@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_masked_attention(impl):
    @effort(impl, reference=40, triton=12)
    @given(
        data=st.data(),
        capacity=st.integers(1, 40) | st.sampled_from([300, 600]),
        queries=st.integers(1, 40),
        heads=st.sampled_from([(1, 1), (1, 3), (2, 1)]),
        seed=st.integers(0, 1000),
    )
    def check(data, capacity, queries, heads, seed):
        kv_heads, repeat = heads
        batch = data.draw(st.integers(1, 2))
        dim, dtype = data.draw(st.sampled_from(DIMS[impl])), data.draw(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(seed)

        def normal(heads, length):
            return torch.randn(batch, heads, length, dim, generator=generator).to(DEVICE, dtype)

        q, k, v = normal(kv_heads * repeat, queries), normal(kv_heads, capacity), normal(kv_heads, capacity)
        lengths = data.draw(st.lists(st.integers(0, capacity), min_size=batch, max_size=batch))
        kept = torch.arange(capacity) < torch.tensor(lengths)[:, None]
        beyond = ~kept.to(DEVICE)[:, None, :, None]
        poisoned = [t.masked_fill(beyond, torch.nan) for t in (k, v)]
        out = cached_attention(q, *poisoned, torch.tensor(lengths, device=DEVICE), impl=impl)
        kept = kept.to(DEVICE)[:, None, None].expand(batch, q.shape[1], queries, capacity)
        clean = [t.masked_fill(beyond, 0.0) for t in (k, v)]
        assert_attends(out, q, *clean, kept)

    check()


@pytest.mark.parametrize("impl", IMPLS)
def test_more_queries_than_are_cut_into_pieces(impl):
    q, k, v = torch.randn(3, 1, 1, 300, 16, device=DEVICE)
    kept = torch.ones(1, 1, 300, 300, dtype=torch.bool, device=DEVICE)
    kept[..., 290:] = False
    out = cached_attention(q, k, v, torch.tensor([290], device=DEVICE), impl=impl)
    assert_attends(out, q, k, v, kept)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([5, 9]), r"lengths must lie in 0 … 8, got \[5, 9\]"),
        (torch.tensor([5]), r"lengths must be an integer tensor of shape \(2,\)"),
        (torch.tensor([5.0, 2.0]), r"lengths must be an integer tensor of shape \(2,\), got torch.float32"),
    ],
)
def test_refuses_lengths_that_do_not_fit(lengths, message):
    q = torch.randn(2, 1, 3, 16)
    with pytest.raises(ValueError, match=message):
        cached_attention(q, torch.randn(2, 1, 8, 16), torch.randn(2, 1, 8, 16), lengths)


@pytest.mark.gpu
def test_a_graph_follows_lengths_and_keys():
    q, k, v = torch.randn(3, 1, 4, 700, 64, device="cuda", dtype=torch.bfloat16)
    q, lengths = q[:, :, :20], torch.tensor([10], dtype=torch.int32, device="cuda")
    cached_attention(q, k, v, lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cached_attention(q, k, v, lengths)
    for length in (700, 1, 333):
        lengths.fill_(length)
        k.normal_()
        graph.replay()
        assert torch.equal(out, cached_attention(q, k, v, lengths))
        expected = cached_attention(q.float(), k.float(), v.float(), lengths, impl="reference")
        torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_fresh_rows_go_to_their_slots_and_nowhere_else(impl, kv_heads):
    cache = torch.randn(2, 2, kv_heads, 12, 20, device=DEVICE)
    fresh = torch.randn(2, 2, 5, kv_heads, 20, device=DEVICE).transpose(2, 3)
    slots = torch.tensor([[3, 0, 11, 7, 4], [9, 10, 1, 2, 5]], device=DEVICE)
    expected = cache.clone()
    for part in range(2):
        for b in range(2):
            for i, slot in enumerate(slots[b].tolist()):
                expected[part, b, :, slot] = fresh[part, b, :, i]
    store_in_cache(*cache, slots, *fresh, impl=impl)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (torch.tensor([[1, 8, 2]]), "slots must lie in 0 … 7, got 1 … 8"),
        (torch.tensor([[1, 2]]), r"slots must be integers of shape \(1, 3\), got torch.int64 \(1, 2\)"),
    ],
)
def test_refuses_slots_that_do_not_fit(slots, message):
    cache, fresh = torch.zeros(1, 2, 8, 16), torch.randn(1, 2, 3, 16)
    with pytest.raises(ValueError, match=message):
        store_in_cache(cache, cache.clone(), slots, fresh, fresh)
