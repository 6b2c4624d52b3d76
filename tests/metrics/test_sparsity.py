"""Sparsity metrics against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm_lens import metrics
from dlm_lens.trace_synthetic import synthetic_trace


@given(samples=st.integers(1, 3), budget=st.floats(0.001, 1.0), seed=st.integers(0, 50))
def test_metrics_follow_their_definitions(samples, budget, seed):
    trace = synthetic_trace(2, layers=2, heads=2, length=20, prompt_length=6, seed=seed, samples=samples)
    recall = metrics.column_recall(trace, budgets=[budget, 1.0])
    columns = metrics.effective_columns(trace)
    for sample in range(samples):
        of_sample = {"sample": sample} if samples > 1 else {}
        start = int(np.atleast_1d(trace["start"].values)[sample])
        for step, layer, head in np.ndindex(2, 2, 2):
            at = {**of_sample, "step": step, "layer": layer, "head": head}
            mass = trace["column_mass"].isel(at).values.astype(float)[start:]
            kept = max(1, round(budget * len(mass)))
            expected = sum(sorted(mass, reverse=True)[:kept])
            np.testing.assert_allclose(recall.isel(at), [expected, 1.0], rtol=1e-6)
            entropy = -sum(m * np.log(m) for m in mass if m > 0)
            np.testing.assert_allclose(columns.isel(at), np.exp(entropy), rtol=1e-6)


def test_dimensions_and_budgets_are_labelled():
    recall = metrics.column_recall(synthetic_trace(samples=2))
    assert recall.dims == ("sample", "step", "layer", "head", "budget")
    assert recall["budget"].values.tolist() == [0.05, 0.1, 0.2, 0.5]
    assert bool((recall.diff("budget") >= 0).all())


@pytest.mark.parametrize("budgets", [[], [0.0], [0.5, 1.5]])
def test_impossible_budgets_are_named(budgets):
    with pytest.raises(ValueError, match="budgets must be shares of the keys"):
        metrics.column_recall(synthetic_trace(), budgets=budgets)
