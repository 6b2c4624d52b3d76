"""The diffusion bound: against its exact value, the honesty of its error, and policies on the same draws."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.measure.tasks.perplexity import Perplexity

TEXT = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
QUICK = {"progress": False, "batch_size": 256}


@pytest.fixture(scope="module")
def small() -> dl.DLM:
    return dl.random_model("llada", layers=2, hidden=32, heads=2, vocab=12, seed=1)


def exact_bound(dlm: dl.DLM, window: torch.Tensor) -> float:
    """Nats per token by enumeration: the mean over l = 1 … L, over all sets of l positions, over the positions."""
    length, by_count = len(window), []
    for count in range(1, length + 1):
        means = []
        for hidden in map(list, combinations(range(length), count)):
            tokens = window.clone()
            tokens[hidden] = dlm.spec.mask_id
            log_p = dlm.logits(tokens[None])[0].double().log_softmax(-1)
            means.append(-log_p[hidden, window[hidden]].mean().item())
        by_count.append(np.mean(means))
    return float(np.mean(by_count))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_the_estimate_agrees_with_the_enumerated_bound(family, length):
    dlm = dl.random_model(family, layers=2, hidden=32, heads=2, vocab=12, seed=1)
    exact = exact_bound(dlm, TEXT[:length])
    estimate = dl.tasks.perplexity(dlm, TEXT[:length], samples=2000, **QUICK)
    assert estimate.nats == pytest.approx(exact, abs=4 * estimate.standard_error + 1e-6)
    assert estimate.standard_error < 0.02 * exact


def test_texts_count_by_their_tokens(small):
    """Windows of 3, 3, 2 and 1 tokens, batched with padding."""
    texts = [TEXT, TEXT[4:5]]
    windows = [TEXT[:3], TEXT[3:6], TEXT[6:], TEXT[4:5]]
    exact = np.average([exact_bound(small, w) for w in windows], weights=[3, 3, 2, 1])
    estimate = dl.tasks.perplexity(small, texts, length=3, samples=4000, **QUICK)
    assert estimate.tokens == 9
    assert estimate.nats == pytest.approx(exact, abs=4 * estimate.standard_error)
    assert estimate.ppl == pytest.approx(np.exp(estimate.nats))


def test_the_standard_error_is_the_spread_between_seeds(small):
    runs = [dl.tasks.perplexity(small, TEXT, samples=16, seed=seed, **QUICK) for seed in range(120)]
    spread = np.std([run.nats for run in runs], ddof=1)
    told = np.sqrt(np.mean([run.standard_error**2 for run in runs]))
    assert told == pytest.approx(spread, rel=0.25)


def test_the_standard_error_shrinks_with_the_root_of_the_samples(small):
    few, many = (dl.tasks.perplexity(small, TEXT, samples=n, **QUICK) for n in (200, 3200))
    assert few.standard_error / many.standard_error == pytest.approx(4, rel=0.25)


@given(seed=st.integers(0, 2**40), batch_size=st.integers(1, 9))
def test_seeds_make_the_draws_and_batches_do_not(small, seed, batch_size):
    settings = {"length": 5, "samples": 8, "progress": False}
    first = dl.tasks.perplexity(small, TEXT, seed=seed, **settings)
    again = dl.tasks.perplexity(small, TEXT, seed=seed, batch_size=batch_size, **settings)
    other = dl.tasks.perplexity(small, TEXT, seed=seed + 1, **settings)
    np.testing.assert_allclose(first.draws, again.draws, rtol=1e-5)
    assert not np.allclose(first.draws, other.draws)


@pytest.mark.parametrize("policy", [dl.PulseCol(sparsity=0), dl.RandomColumns(sparsity=0)])
def test_at_full_budget_a_policy_is_dense(small, policy):
    dense = dl.tasks.perplexity(small, TEXT, samples=8, **QUICK)
    full = dl.tasks.perplexity(small, TEXT, policy, samples=8, **QUICK)
    assert (dense.kind, full.kind) == ("dense", "sparse")
    np.testing.assert_allclose(full.draws, dense.draws, rtol=1e-5)
    assert full.above(dense) == pytest.approx((0, 0), abs=1e-5)


def test_policies_are_compared_on_the_same_draws(tiny):
    settings = {"length": 128, "samples": 16, "progress": False}
    dense, pulse, random = (
        dl.tasks.perplexity(tiny, policy=policy, **settings)
        for policy in (None, dl.PulseCol(sparsity=0.5), dl.RandomColumns(sparsity=0.9))
    )
    assert 2 < dense.nats < 4.5  # its card says 3.13, by all of the held-out code
    # Without strata the error would be larger: the more is masked, the harder it is.
    assert dense.standard_error < dense.draws.std(ddof=1) / 16**0.5
    gap, error = random.above(dense)
    assert gap == pytest.approx(random.nats - dense.nats)
    assert gap > 3 * error
    assert error < np.hypot(random.standard_error, dense.standard_error) / 2
    assert abs(pulse.above(dense)[0]) < gap


def test_results_of_different_settings_are_not_subtracted(small):
    one, other = (dl.tasks.perplexity(small, TEXT, samples=n, **QUICK) for n in (2, 4))
    with pytest.raises(ValueError, match="samples differ, 2 and 4"):
        one.above(other)


def test_autoregressive_models_are_scored_exactly():
    dlm = dl.random_model("ar", layers=2, hidden=32, heads=2, vocab=12, seed=1)
    result = dl.tasks.perplexity(dlm, [TEXT, TEXT[:6]], length=5, progress=False)
    expected = []
    for window in (TEXT[:5], TEXT[5:], TEXT[:5]):  # the sixth token of the second text has nothing before it
        log_p = dlm.logits(window[None])[0].double().log_softmax(-1)
        expected += [-log_p[i, window[i]].item() for i in range(1, len(window))]
    assert result.nats == pytest.approx(np.mean(expected), rel=1e-5)
    assert result.exact
    assert result.standard_error == 0
    assert "exact" in repr(result)
    with pytest.raises(ValueError, match="causal"):
        dl.tasks.perplexity(dlm, TEXT, dl.PulseCol(), progress=False)


def test_the_report_tells_value_error_and_how():
    result = Perplexity("Dense", "dense", np.array([3.0, 3.2, 4.0, 4.0]), 1000, 512, 0)
    assert result.standard_error == pytest.approx(0.05)
    assert "3.5500 ± 0.05 nats per token" in repr(result)
    assert "4 draws, predicted in dense steps; 1,000 tokens in windows of 512" in repr(result)


def test_bad_values_are_refused(small):
    for wrong, message in [
        ({"samples": 3}, "samples=3 must be even"),
        ({"samples": 0}, "samples=0 must be even and at least 2"),
        ({"length": 0}, r"length=0 must be in 1…4096"),
        ({"length": 5000}, r"length=5000 must be in 1…4096"),
        ({"batch_size": 0}, "batch_size=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            dl.tasks.perplexity(small, TEXT, **wrong)
    with pytest.raises(ValueError, match="no tokenizer; held-out texts are text"):
        dl.tasks.perplexity(small)
    with pytest.raises(ValueError, match="holds the mask token 11"):
        dl.tasks.perplexity(small, [TEXT, torch.tensor([1, 11])])
    with pytest.raises(ValueError, match="no text has 2 tokens"):
        dl.tasks.perplexity(dl.random_model("ar", layers=1, hidden=32, vocab=12), TEXT[:1])
