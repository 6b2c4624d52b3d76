"""Sinks by their definitions, written as plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_lens import metrics
from dlm_lens.trace import Trace
from dlm_lens.trace_synthetic import synthetic_trace


def masses(trace: Trace, sample: int, per_head: tuple[int, int] | None) -> list[np.ndarray]:
    """m_t over the valid positions for every step."""
    column_mass = trace["column_mass"].values.astype(float)
    column_mass = column_mass[sample] if trace.samples > 1 else column_mass
    start = int(np.atleast_1d(trace["start"].values)[sample])
    valid = trace.length - start
    heads = column_mass[:, *per_head] if per_head else column_mass.mean((1, 2))
    return [valid * step[start:] for step in heads]


def loops(trace: Trace, sample: int, kappa: float, per_head: tuple[int, int] | None) -> dict[str, object]:
    start = int(np.atleast_1d(trace["start"].values)[sample])
    steps = masses(trace, sample, per_head)
    member = np.zeros((len(steps), trace.length), dtype=bool)
    centroids = []
    for t, mass in enumerate(steps):
        found = [i for i in range(len(mass)) if mass[i] > np.mean(mass) + kappa * np.std(mass)]
        member[t, [start + i for i in found]] = True
        total = sum(mass[i] for i in found)
        centroids.append(sum(mass[i] * (start + i) for i in found) / total if found else np.nan)
    seen = [c for c in centroids if not np.isnan(c)]
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
    }


@settings(max_examples=10)
@given(
    samples=st.integers(1, 3),
    steps=st.integers(1, 5),
    seed=st.integers(0, 50),
    kappa=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    causal=st.booleans(),
)
def test_metrics_follow_their_definitions(samples, steps, seed, kappa, causal):
    trace = synthetic_trace(
        steps, layers=2, heads=2, length=24, prompt_length=6, seed=seed, samples=samples, causal=causal
    )
    for per_head in (False, True):
        found = {
            "sinks": metrics.sinks(trace, kappa, per_head),
            "centroid": metrics.sink_centroid(trace, kappa, per_head),
            "lifetime": metrics.sink_lifetime(trace, kappa, per_head),
            **metrics.sink_variance(trace, kappa, per_head),
        }
        for sample in range(samples):
            for layer, head in np.ndindex(2, 2) if per_head else [(0, 0)]:
                expected = loops(trace, sample, kappa, (layer, head) if per_head else None)
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
