"""Statistics agree with those of the materialised map, and the map is never made."""

import pytest
import torch
from dlm_kernels import attention_statistics, position_bins
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.materialised import attention_map, valid_queries
from tests.kernels.strategies import problems
from tests.tensors import LargestTensor


def _close(actual, expected):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    problem=problems(),
    causal=st.booleans(),
    bins=st.integers(1, 50),
    chunk_bytes=st.sampled_from([1, 600, 5000, None]),
)
def test_agrees_with_the_materialised_map(problem, causal, bins, chunk_bytes):
    q, k, start = problem.q, problem.k, problem.start
    batch, _, length, _ = q.shape
    found = attention_statistics(q, k, start=start, causal=causal, bins=bins, chunk_bytes=chunk_bytes)

    a = attention_map(q, k, start, causal)
    valid = valid_queries(start, batch, length).double()
    _close(found.column_mass, a.sum(2) / valid.sum(1)[:, None, None])

    bin_of = torch.nn.functional.one_hot(position_bins(length, bins)).double()
    per_bin = (valid @ bin_of).clamp_min(1)[:, None, :]
    _close(found.pooled_map, torch.einsum("qa,bhqk,kc->bhac", bin_of, a, bin_of) / per_bin[..., None])
    entropy = torch.special.entr(a).sum(-1) @ bin_of / per_bin
    _close(found.row_entropy, entropy)

    keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.double() @ keys.mT * q.shape[-1] ** -0.5
    lse = scores.masked_fill(a == 0, -torch.inf).logsumexp(-1)
    shown = valid[:, None].bool().expand(lse.shape)
    torch.testing.assert_close(found.lse[shown].double(), lse[shown], rtol=1e-5, atol=1e-5)
    assert torch.all(found.lse[~shown] == -torch.inf)


@settings(deadline=None, max_examples=20)
@given(problem=problems())
def test_padding_changes_nothing(problem):
    """A sample with left padding has the statistics of the same sample without it."""
    q, k, start = problem.q, problem.k, problem.start
    if start is None:
        return
    padded = attention_statistics(q, k, start=start)
    for b, begin in enumerate(start.tolist()):
        alone = attention_statistics(q[b : b + 1, :, begin:], k[b : b + 1, :, begin:])
        torch.testing.assert_close(
            padded.column_mass[b, :, begin:], alone.column_mass[0], rtol=1e-5, atol=1e-6
        )
        assert not padded.column_mass[b, :, :begin].any()


def test_more_keys_than_queries():
    q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 19, 8)
    found = attention_statistics(q, k, bins=4)
    _close(found.column_mass, attention_map(q, k).mean(2))
    assert found.pooled_map.shape == (1, 4, 4, 4)
    torch.testing.assert_close(found.pooled_map.sum(-1), torch.ones(1, 4, 4))


def test_low_precision_inputs_are_accumulated_in_float32():
    q, k = torch.randn(2, 1, 2, 300, 16, dtype=torch.bfloat16)
    _close(attention_statistics(q, k).column_mass, attention_map(q, k).mean(2))


def test_non_contiguous_inputs():
    q, k = (torch.randn(1, 33, 4, 8).transpose(1, 2) for _ in range(2))
    _close(attention_statistics(q, k).column_mass, attention_map(q, k).mean(2))


def test_enormous_scores_stay_finite():
    q, k = 1e4 * torch.randn(2, 1, 2, 40, 8)
    for part in vars(attention_statistics(q, k)).values():
        assert torch.isfinite(part).all()


def test_parts_can_be_left_out():
    q, k = torch.randn(2, 1, 2, 10, 4)
    bare = attention_statistics(q, k, bins=None)
    assert bare.pooled_map is None
    assert bare.row_entropy is None
    assert attention_statistics(q, k, entropy=False).row_entropy is None


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
        ({"impl": "triton"}, "no implementation 'triton'; available: reference"),
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
