"""Statistics agree with those of the materialised map, and the map is never made."""

import pytest
import torch
from dlm_kernels import attention_statistics, position_bins
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.materialised import assert_close, attention_map, scaled_scores, valid_queries
from tests.kernels.strategies import DEVICE, DTYPES, IMPLS, effort, problems
from tests.tensors import LargestTensor


@pytest.mark.parametrize("impl", IMPLS)
def test_agrees_with_the_materialised_map(impl):
    @effort(impl, reference=60, triton=16)
    @given(
        problem=problems(impl),
        causal=st.booleans(),
        bins=st.integers(1, 50 if impl == "reference" else 10),
        scale=st.sampled_from([None, 0.3]),
        chunk_bytes=st.sampled_from([1, 600, 5000, None]),
    )
    def check(problem, causal, bins, scale, chunk_bytes):
        q, k, start = problem.q, problem.k, problem.start
        found = attention_statistics(
            q, k, start=start, causal=causal, bins=bins, scale=scale, impl=impl, chunk_bytes=chunk_bytes
        )
        a = attention_map(q, k, start, causal, scale)
        valid = valid_queries(start, q.shape[0], problem.length).double().to(DEVICE)
        assert_close(found.column_mass, a.sum(2) / valid.sum(1)[:, None, None])

        bin_of = torch.nn.functional.one_hot(position_bins(problem.length, bins)).double().to(DEVICE)
        per_bin = (valid @ bin_of).clamp_min(1)[:, None, :]
        pooled = torch.einsum("qa,bhqk,kc->bhac", bin_of, a, bin_of) / per_bin[..., None]
        assert_close(found.pooled_map, pooled)
        # The difference of two sums of scores, which may be tens of nats.
        assert_close(found.row_entropy, torch.special.entr(a).sum(-1) @ bin_of / per_bin)

        seen = scaled_scores(q, k, scale).masked_fill(a == 0, -torch.inf)
        shown = valid[:, None].bool().expand(found.lse.shape)
        assert_close(found.lse[shown], seen.logsumexp(-1)[shown])
        assert torch.all(found.lse[~shown] == -torch.inf)

    check()


@pytest.mark.parametrize("impl", IMPLS)
def test_padding_changes_nothing(impl):
    """A sample with left padding has the statistics of the same sample without it, whatever the padding holds."""
    q, k = torch.randn(2, 4, 2, 150, 16, device=DEVICE)
    start = torch.tensor([0, 1, 64, 149], device=DEVICE)
    for b, begin in enumerate(start.tolist()):
        q[b, :, :begin] = k[b, :, :begin] = 300.0
    padded = attention_statistics(q, k, start=start, bins=2, impl=impl)
    for b, begin in enumerate(start.tolist()):
        alone = attention_statistics(q[b : b + 1, :, begin:], k[b : b + 1, :, begin:], bins=1, impl=impl)
        assert_close(padded.column_mass[b, :, begin:], alone.column_mass[0].double())
        assert_close(padded.lse[b, :, begin:], alone.lse[0].double())
        assert not padded.column_mass[b, :, :begin].any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_known_lse_changes_nothing(impl, causal):
    q, k = torch.randn(2, 2, 2, 150, 16, device=DEVICE)
    start = torch.tensor([0, 33], device=DEVICE)
    options = {"start": start, "causal": causal, "bins": 3, "impl": impl}
    unknown = attention_statistics(q, k, **options)
    lse = unknown.lse.clone()
    lse[1, :, :33] = torch.nan  # padding is not looked at
    known = attention_statistics(q, k, lse=lse, **options)
    for name, value in vars(unknown).items():
        torch.testing.assert_close(getattr(known, name), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("queries", "keys"), [(5, 19), (3, 200), (140, 7)])
def test_other_numbers_of_keys_than_queries(impl, queries, keys):
    q = torch.randn(1, 4, queries, 16, device=DEVICE)
    k = torch.randn(1, 2, keys, 16, device=DEVICE)
    found = attention_statistics(q, k, bins=4, impl=impl)
    assert_close(found.column_mass, attention_map(q, k).mean(2))
    assert found.pooled_map.shape == (1, 4, min(4, queries), 4)
    assert_close(found.pooled_map.sum(-1), torch.ones(found.pooled_map.shape[:3]).double())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_precision_inputs_are_accumulated_in_float32(dtype, impl):
    q, k = torch.randn(2, 1, 2, 300, 16).to(DEVICE, dtype)
    assert_close(attention_statistics(q, k, bins=2, impl=impl).column_mass, attention_map(q, k).mean(2))


def test_bfloat16_on_the_cpu():
    q, k = torch.randn(2, 1, 2, 300, 16, dtype=torch.bfloat16)
    assert_close(attention_statistics(q, k).column_mass, attention_map(q, k).mean(2))


@pytest.mark.parametrize("impl", IMPLS)
def test_enormous_scores_stay_finite(impl):
    q, k = 1e4 * torch.randn(2, 1, 2, 40, 16, device=DEVICE)
    for part in vars(attention_statistics(q, k, bins=4, impl=impl)).values():
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_runs_are_bit_equal(impl):
    q, k = torch.randn(2, 1, 2, 150, 16, device=DEVICE)
    first, second = (vars(attention_statistics(q, k, bins=3, impl=impl)).values() for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("impl", IMPLS)
def test_parts_can_be_left_out(impl):
    q, k = torch.randn(2, 1, 2, 10, 16, device=DEVICE)
    bare = attention_statistics(q, k, bins=None, impl=impl)
    assert bare.pooled_map is None
    assert bare.row_entropy is None
    assert attention_statistics(q, k, entropy=False, impl=impl).row_entropy is None


def test_never_makes_the_map():
    q, k = torch.randn(2, 1, 8, 3000, 8)
    with LargestTensor() as largest:
        attention_statistics(q, k, bins=64)
    # The tiles of scores fill 4 MB by default; the maps would be 72 million elements.
    assert largest.elements <= (4 << 20) // 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": torch.randn(3, 4, 5)},
            r"q must be a non-empty \[batch, heads, length, dim\], got \(3, 4, 5\)",
        ),
        (
            {"q": torch.ones(1, 4, 6, 8, dtype=torch.int64)},
            "q must be float16, bfloat16 or float32, got torch.int64",
        ),
        ({"k": torch.randn(1, 3, 6, 8)}, "the 3 heads of k must divide the 4 heads of q"),
        ({"k": torch.randn(2, 4, 6, 8)}, r"k \(2, 4, 6, 8\) must agree with q"),
        ({"start": torch.tensor([0, 1])}, r"start must be an integer tensor of shape \(1,\)"),
        ({"start": torch.tensor([6])}, r"start must lie in 0 … 5, got \[6\]"),
        ({"k": torch.randn(1, 4, 9, 8), "start": torch.tensor([0])}, "start needs as many queries as keys"),
        ({"k": torch.randn(1, 4, 9, 8), "causal": True}, "causal needs as many queries as keys"),
        ({"bins": 0}, "bins must be positive or None, got 0"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": -1.0}, "scale must be positive and finite, got -1.0"),
        ({"scale": float("inf")}, "scale must be positive and finite, got inf"),
        ({"lse": torch.zeros(1, 4, 7)}, r"lse must be float32 \(1, 4, 6\), got torch.float32 \(1, 4, 7\)"),
        ({"lse": torch.zeros(1, 4, 6).double()}, r"lse must be float32 \(1, 4, 6\), got torch.float64"),
        ({"chunk_bytes": 0}, "chunk_bytes must be positive"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"q": torch.randn(1, 4, 6, 8), "k": torch.randn(1, 4, 6, 8)} | change
    with pytest.raises(ValueError, match=message):
        attention_statistics(**arguments)


@given(length=st.integers(1, 200), bins=st.integers(1, 250))
def test_bins_are_even_and_ordered(length, bins):
    bin_of = position_bins(length, bins)
    counts = torch.bincount(bin_of)
    assert len(counts) == min(bins, length)
    assert torch.equal(bin_of, bin_of.sort().values)
    assert counts.max() - counts.min() <= 1
