"""Similarity metrics against plain loops."""

import numpy as np
import pytest

from dlm_lens import metrics
from dlm_lens.trace import Trace
from dlm_lens.trace_synthetic import synthetic_trace

STEPS = (2, 5, 9)


def make(samples=1):
    trace = synthetic_trace(3, 2, 2, length=20, prompt_length=6, bins=5, samples=samples)
    return Trace(trace.dataset.assign_coords(step=list(STEPS)))


def rows_of(trace, of, at):
    """[row, key] of one step and head without padding, and how many keys are valid."""
    part = trace.dataset.sel(at)
    start = int(part["start"])
    if of == "column_mass":
        return part[of].values[None, start:].astype(float)
    first = start * 5 // 20
    return part[of].values[first:, first:].astype(float)


def similarity(a, b, measure, budget):
    if measure == "cosine":
        return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    found = []
    for x, y in zip(a, b, strict=True):
        count = max(1, round(budget * len(x)))
        first, second = (set(np.argsort(-row, kind="stable")[:count]) for row in (x, y))
        found.append(len(first & second) / len(first | second))
    return np.mean(found)


@pytest.mark.parametrize("of", ["column_mass", "pooled_map"])
@pytest.mark.parametrize("measure", ["cosine", "overlap"])
@pytest.mark.parametrize("samples", [1, 3])
def test_steps_and_heads_follow_the_definitions(of, measure, samples):
    trace = make(samples)
    steps = metrics.step_similarity(trace, of, measure, budget=0.3)
    heads = metrics.head_similarity(trace, of, measure, budget=0.3)
    first = ("sample",) if samples > 1 else ()
    assert steps.dims == (*first, "step", "step_other", "layer", "head")
    assert heads.dims == (*first, "layer", "head", "layer_other", "head_other")
    for sample in range(samples):
        one = {"sample": sample} if samples > 1 else {}
        for layer, head in np.ndindex(2, 2):
            where = {**one, "layer": layer, "head": head}
            for step in STEPS:
                for other in STEPS:
                    a, b = (rows_of(trace, of, {**where, "step": s}) for s in (step, other))
                    found = steps.sel({**where, "step": step, "step_other": other})
                    assert float(found) == pytest.approx(similarity(a, b, measure, 0.3), rel=1e-6)
            for i, j in np.ndindex(2, 2):
                pairs = [
                    [
                        rows_of(trace, of, {**one, "step": step, "layer": x, "head": y})
                        for x, y in ((layer, head), (i, j))
                    ]
                    for step in STEPS
                ]
                found = heads.sel({**where, "layer_other": i, "head_other": j})
                expected = np.mean([similarity(a, b, measure, 0.3) for a, b in pairs])
                assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_stale_recall_follows_its_definition(samples):
    trace = make(samples)
    aged = metrics.stale_recall(trace, budget=0.25)
    assert aged["recall"].dims[-4:] == ("step_made", "step_used", "layer", "head")
    for sample in range(samples):
        one = {"sample": sample} if samples > 1 else {}
        for layer, head in np.ndindex(2, 2):
            mass = {
                s: rows_of(trace, "column_mass", {**one, "step": s, "layer": layer, "head": head})[0]
                for s in STEPS
            }
            count = max(1, round(0.25 * len(mass[2])))
            best = {s: np.argsort(-mass[s], kind="stable")[:count] for s in STEPS}
            for made in STEPS:
                for used in STEPS:
                    at = {**one, "step_made": made, "step_used": used, "layer": layer, "head": head}
                    found = aged.sel(at)
                    if used < made:
                        assert np.isnan(found["recall"])
                        assert np.isnan(found["relative"])
                        continue
                    kept, fresh = mass[used][best[made]].sum(), mass[used][best[used]].sum()
                    assert float(found["recall"]) == pytest.approx(kept, rel=1e-6)
                    assert float(found["relative"]) == pytest.approx(kept / fresh, rel=1e-6)


def test_a_mean_over_heads_and_a_fresh_choice():
    trace = make()
    each = metrics.step_similarity(trace, measure="overlap")
    mean = metrics.step_similarity(trace, measure="overlap", per_head=False)
    assert mean.dims == ("step", "step_other")
    np.testing.assert_allclose(mean, each.mean(("layer", "head")))
    fresh = metrics.column_recall(trace, [0.2]).isel(budget=0)
    aged = metrics.stale_recall(trace, 0.2)["recall"]
    for step in STEPS:
        np.testing.assert_allclose(aged.sel(step_made=step, step_used=step), fresh.sel(step=step), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"of": "row_entropy"}, "of='row_entropy' cannot be compared"),
        ({"measure": "nonsense"}, "unknown measure 'nonsense'"),
        ({"budget": 0.0}, "budget=0.0 must be a share"),
    ],
)
def test_what_cannot_be_compared_is_named(arguments, message):
    for metric in (metrics.step_similarity, metrics.head_similarity):
        with pytest.raises(ValueError, match=message):
            metric(make(), **arguments)
    with pytest.raises(ValueError, match="share of the keys"):
        metrics.stale_recall(make(), budget=2)
