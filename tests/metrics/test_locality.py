"""Locality by its definitions, written as plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens import metrics
from dlm_lens.metrics.locality import KINDS
from dlm_lens.trace import Trace
from dlm_lens.trace_synthetic import synthetic_trace


def kind_of(trace: Trace, step: int, position: int) -> str:
    if position < trace.prompt_length:
        return "prompt"
    return "masked" if trace["masked"].values[step, position] else "decoded"


def loops(trace: Trace, queries: str) -> tuple[np.ndarray, np.ndarray]:
    """``mass`` and ``keys``, pair of positions by pair of positions, from a map with a bin per position."""
    steps, layers, heads, length, _ = trace["pooled_map"].shape
    start = int(trace["start"])
    mass = np.zeros((steps, layers, heads, 3, 2 * length - 1))
    keys = np.zeros((steps, 3, 2 * length - 1))
    for step in range(steps):
        asking = [i for i in range(start, length) if queries in ("all", kind_of(trace, step, i))]
        if not asking:
            mass[step], keys[step] = np.nan, np.nan
        for i in asking:
            for j in range(start, length):
                kind, where = KINDS.index(kind_of(trace, step, j)), j - i + length - 1
                mass[step, :, :, kind, where] += trace["pooled_map"].values[step, :, :, i, j] / len(asking)
                keys[step, kind, where] += 1 / len(asking)
    return mass, keys


@settings(max_examples=10)
@given(
    samples=st.integers(1, 2),
    seed=st.integers(0, 50),
    queries=st.sampled_from(["all", *KINDS]),
    causal=st.booleans(),
)
def test_attention_by_distance_is_exact_with_a_bin_per_position(samples, seed, queries, causal):
    trace = synthetic_trace(
        3, layers=2, heads=2, length=14, prompt_length=5, bins=14, seed=seed, samples=samples, causal=causal
    )
    found = metrics.attention_by_distance(trace, queries)
    assert found["distance"].values.tolist() == list(range(-13, 14))
    for sample in range(samples):
        part = Trace(trace.dataset.isel(sample=sample)) if samples > 1 else trace
        mass, keys = loops(part, queries)
        here = found.isel(sample=sample) if samples > 1 else found
        np.testing.assert_allclose(here["mass"].values, mass, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(here["keys"].values, keys, rtol=1e-9)


@pytest.mark.parametrize("bins", [1, 5, 8])
def test_bins_share_out_all_attention_and_all_keys(bins):
    trace = synthetic_trace(4, length=48, prompt_length=21, bins=bins)
    found = metrics.attention_by_distance(trace)
    np.testing.assert_allclose(found["mass"].sum(("key", "distance")), 1, rtol=1e-5)
    np.testing.assert_allclose(found["keys"].sum(("key", "distance")), 48, rtol=1e-9)
    assert found["distance"].values.tolist() == [
        round(offset * 48 / bins) for offset in range(1 - bins, bins)
    ]
    by_kind = trace["column_mass"].isel(position=slice(0, 21)).sum("position")
    weighted = found["mass"].sel(key="prompt").sum("distance")
    if bins == 8:  # bins of equal size: the mean over queries is that over bins
        whole = found["mass"].sum("distance")
        np.testing.assert_allclose(whole.sel(key="prompt"), weighted)
        np.testing.assert_allclose(weighted, by_kind, rtol=0.05)


def test_steps_without_such_a_query_have_no_attention():
    trace = synthetic_trace(4, length=16, prompt_length=8)
    mass = metrics.attention_by_distance(trace, "decoded")["mass"]
    assert mass.isel(step=0).isnull().all()
    assert mass.isel(step=1).notnull().all()


def test_what_attention_by_distance_cannot_do_is_named():
    trace = synthetic_trace(2, length=16, prompt_length=8)
    with pytest.raises(ValueError, match="unknown queries 'future'"):
        metrics.attention_by_distance(trace, "future")
    with pytest.raises(dl.TraceError, match="no pooled_map"):
        metrics.attention_by_distance(Trace(trace.dataset.drop_vars("pooled_map")))


@settings(max_examples=20)
@given(st.permutations(range(8)), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_committed_distance_counts_from_the_first_masked_position(order, each, undecided, batched):
    prompt, length = 4, 12
    committed_at = np.full(length, -1)
    committed_at[prompt:] = [place // each for place in order]
    committed_at[prompt:][np.array(order) >= 8 - undecided] = -2
    trace = synthetic_trace(1, length=length, prompt_length=prompt, samples=2 if batched else 1)
    trace.dataset["committed_at"][...] = committed_at
    found = metrics.committed_distance(trace)
    found = found.isel(sample=1) if batched else found
    for position in range(length):
        step = committed_at[position]
        expected = (np.nan, np.nan, np.nan)
        if step >= 0:
            masked = [i for i in range(prompt, length) if committed_at[i] >= step or committed_at[i] == -2]
            expected = (position - masked[0], masked.index(position), step)
        values = [float(found[name][position]) for name in ("distance", "rank", "step")]
        np.testing.assert_array_equal(values, expected)


def test_a_causal_model_commits_at_its_frontier():
    dlm = dl.random_model("ar", layers=1, hidden=16, heads=2, vocab=32)
    trace = dl.capture(dlm, torch.arange(1, 6), gen_length=4, progress=False)
    found = metrics.committed_distance(trace)
    assert found["distance"].values[5:].tolist() == [0, 0, 0, 0]
    assert found["rank"].values[5:].tolist() == [0, 0, 0, 0]
    assert found["step"].values[5:].tolist() == [0, 1, 2, 3]
