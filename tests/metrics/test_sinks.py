"""Sinks by their definitions, written as plain loops."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_lens import metrics
from dlm_lens.trace import Trace
from dlm_lens.trace_synthetic import synthetic_trace


def even_map(length: int, causal: bool) -> np.ndarray:
    """Every query attends evenly to all keys that it may see."""
    seen = np.tri(length) if causal else np.ones((length, length))
    return seen / seen.sum(1, keepdims=True)


def masses(trace: Trace, sample: int, per_head: tuple[int, int] | None, over_even: bool) -> list[np.ndarray]:
    """m_t over the valid positions for every step."""
    column_mass = trace["column_mass"].values.astype(float)
    column_mass = column_mass[sample] if trace.samples > 1 else column_mass
    start = int(np.atleast_1d(trace["start"].values)[sample])
    valid = trace.length - start
    heads = column_mass[:, *per_head] if per_head else column_mass.mean((1, 2))
    even = even_map(valid, trace.spec["causal"]).sum(0) if over_even else 1.0
    return [valid * step[start:] / even for step in heads]


def loops(
    trace: Trace, sample: int, kappa: float, per_head: tuple[int, int] | None, over_even: bool
) -> dict[str, object]:
    start = int(np.atleast_1d(trace["start"].values)[sample])
    steps = masses(trace, sample, per_head, over_even)
    member = np.zeros((len(steps), trace.length), dtype=bool)
    centroids = []
    for t, mass in enumerate(steps):
        found = [i for i in range(len(mass)) if mass[i] > np.mean(mass) + kappa * np.std(mass)]
        member[t, [start + i for i in found]] = True
        total = sum(mass[i] for i in found)
        centroids.append(sum(mass[i] * (start + i) for i in found) / total if found else np.nan)
    seen = [c for c in centroids if not np.isnan(c)]
    staying = [
        np.mean([member[t + 1, i] for i in range(trace.length) if member[t, i]])
        for t in range(len(steps) - 1)
        if member[t].any()
    ]
    lifetimes = np.full(trace.length, np.nan)
    for i in range(trace.length):
        runs = "".join("x" if now else " " for now in member[:, i]).split()
        if runs:
            lifetimes[i] = np.mean([len(run) for run in runs])
    return {
        "sinks": member,
        "centroid": centroids,
        "spatial": np.var(np.mean(steps, axis=0)),
        "temporal": np.var(seen) if seen else np.nan,
        "lifetime": lifetimes,
        "persistence": np.mean(staying) if staying else np.nan,
    }


@settings(max_examples=10)
@given(
    samples=st.integers(1, 3),
    steps=st.integers(1, 5),
    seed=st.integers(0, 50),
    kappa=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    causal=st.booleans(),
    over_even=st.booleans(),
)
def test_metrics_follow_their_definitions(samples, steps, seed, kappa, causal, over_even):
    trace = synthetic_trace(
        steps, layers=2, heads=2, length=24, prompt_length=6, seed=seed, samples=samples, causal=causal
    )
    for per_head in (False, True):
        found = {
            "sinks": metrics.sinks(trace, kappa, per_head, over_even),
            "centroid": metrics.sink_centroid(trace, kappa, per_head, over_even),
            "lifetime": metrics.sink_lifetime(trace, kappa, per_head, over_even),
            "persistence": metrics.sink_persistence(trace, kappa, per_head, over_even),
            **metrics.sink_variance(trace, kappa, per_head, over_even),
        }
        for sample in range(samples):
            for layer, head in np.ndindex(2, 2) if per_head else [(0, 0)]:
                expected = loops(trace, sample, kappa, (layer, head) if per_head else None, over_even)
                for name, value in found.items():
                    value = value.isel(sample=sample) if samples > 1 else value
                    value = value.isel(layer=layer, head=head) if per_head else value
                    np.testing.assert_allclose(value.values, expected[name], rtol=1e-6, err_msg=name)


def test_mass_received_is_one_on_average_and_absent_on_padding():
    trace = synthetic_trace(samples=3)
    mass = metrics.received_mass(trace)
    np.testing.assert_allclose(mass.mean("position"), 1, rtol=1e-5)
    assert mass.isel(sample=2).isnull().sum("position").values.tolist() == [2] * 8


def test_steps_without_sinks_have_no_centroid():
    trace = synthetic_trace(steps=3)
    assert metrics.sink_centroid(trace, kappa=100).isnull().all()
    assert np.isnan(metrics.temporal_variance(trace, kappa=100))


@pytest.mark.parametrize("per_head", [False, True])
def test_diffusion_sinks_wander_and_causal_ones_stay(per_head):
    def temporal(trace):
        return float(metrics.sink_variance(trace, per_head=per_head)["temporal"].mean())

    assert temporal(synthetic_trace(causal=True)) < 0.01 * temporal(synthetic_trace())


def test_lifetime_counts_steps_in_a_row():
    trace = synthetic_trace(steps=6, causal=True)
    assert float(metrics.sink_lifetime(trace)[0]) == 6


def test_a_sink_that_stays_beside_one_that_leaves_persists_by_half():
    trace = synthetic_trace(steps=2, layers=1, heads=1, length=24, prompt_length=8)
    mass = np.full((2, 1, 1, 24), 0.1)
    mass[0, ..., [3, 9]] = mass[1, ..., [3, 20]] = 5.0
    trace.dataset["column_mass"].values[:] = mass
    assert metrics.sinks(trace).sum("position").values.tolist() == [2, 2]
    assert float(metrics.sink_persistence(trace)) == 0.5
    assert np.isnan(metrics.sink_persistence(trace, kappa=10))


def mapped(maps: np.ndarray, causal: bool) -> Trace:
    """The trace of one step of a map [L, L], the mass of each key and no more."""
    trace = synthetic_trace(
        steps=1, layers=1, heads=1, length=len(maps), prompt_length=1, bins=1, causal=causal
    )
    trace.dataset["column_mass"].values[:] = np.nanmean(maps, axis=0)
    return trace


def test_even_attention_has_sinks_by_its_mask_alone_and_none_over_even():
    trace = mapped(even_map(40, causal=True), causal=True)
    assert metrics.sinks(trace).values[0, :2].tolist() == [True, True]
    np.testing.assert_allclose(metrics.received_mass(trace, over_even=True), 1, rtol=1e-5)
    exact = mapped(even_map(40, causal=True), causal=True)
    exact.dataset["column_mass"] = (
        exact["column_mass"].astype(float).copy(data=even_map(40, True).mean(0)[None, None, None])
    )
    assert not metrics.sinks(exact, over_even=True).any()
    assert metrics.spatial_variance(exact, over_even=True) < 1e-20


def test_even_mass_leaves_out_keys_that_are_not_there_yet():
    trace = mapped(even_map(12, causal=True), causal=True)
    trace.dataset["column_mass"].values[..., 7:] = np.nan
    even = metrics.even_mass(trace).isel(step=0)
    np.testing.assert_allclose(even[:7], even_map(7, causal=True).sum(0))
    assert even[7:].isnull().all()


def test_without_a_mask_even_is_one():
    even = metrics.even_mass(synthetic_trace(samples=3))
    assert even.isel(sample=2).isnull().sum("position").values.tolist() == [2] * 8
    assert (even.fillna(1) == 1).all()


def test_windows_are_refused():
    trace = synthetic_trace(causal=True)
    trace.attrs["spec"] = json.dumps(trace.spec | {"windowed": [1, 5]})
    with pytest.raises(ValueError, match=r"layers \[1\] of synthetic attend within a window"):
        metrics.sinks(trace, over_even=True)
