"""Adaptive refreshes against a brute-force reading of drift from materialised attention."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.attention import StepContext, dense_attention
from dlm_lens.policies.drift import spread
from tests import reference_samplers as reference
from tests.policies.test_pulsecol import attend, attention, best_columns, info, inputs, kept

GROUP = 8


def adaptive(**options):
    return dl.PulseCol(0.7, GROUP, refresh="adaptive", **{"drift_groups": 99, **options})


def drifting(steps, layers=1, batch=1, seed=0):
    """``q, k, v`` of every [step][layer], wandering from one random state to the next at an uneven pace."""
    pace = [0.0, 0.05, 0.1, 0.5, 0.02, 0.02, 0.6, 0.1, 0.05, 0.4]
    walks = [inputs(batch=batch, seed=seed + 100 * layer) for layer in range(layers)]
    states = []
    for step in range(steps):
        away = pace[(step + seed) % len(pace)]
        for layer in range(layers):
            fresh = inputs(batch=batch, seed=1000 + 10 * step + layer + seed)
            pairs = zip(walks[layer], fresh, strict=True)
            walks[layer] = tuple((1 - away) * old + away * new for old, new in pairs)
        states.append(list(walks))
    return states


def kinds(policy, states):
    """The kind of every step of an unpadded run of one sample."""
    run, found = policy.start(info()), []
    for step, layers in enumerate(states):
        plan = run.plan(step, torch.zeros(1, 37))
        found.append(plan.kind)
        for layer, (q, k, v) in enumerate(layers):
            run.attend(layer, q, k, v, StepContext(step, plan, run))
    return found


def retained(q, k, columns, groups):
    """Mean dense mass of the queries of ``groups`` on their columns [head][group], from the whole map."""
    maps = attention(q, k)[0]
    rows = [i for i in range(q.shape[2]) if i // GROUP in groups]
    return sum(
        float(a[i, sorted(columns[h][i // GROUP])].sum()) for h, a in enumerate(maps) for i in rows
    ) / (len(maps) * len(rows))


def expected_kinds(states, drift, most, groups):
    """When to refresh, computed from the definition."""
    found, loss = [], math.inf
    for layers in states:
        if loss > drift and found.count("refresh") < most:
            found.append("refresh")
            patterns = [best_columns(q, k, GROUP, round(0.3 * 37)) for q, k, _ in layers]
            fresh = [retained(q, k, p, groups) for (q, k, _), p in zip(layers, patterns, strict=True)]
            loss = 0.0
            continue
        found.append("sparse")
        now = [retained(q, k, p, groups) for (q, k, _), p in zip(layers, patterns, strict=True)]
        loss = (sum(fresh) - sum(now)) / len(layers)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("sample", "groups"), [(99, {0, 1, 2, 3, 4}), (5, {0, 1, 2, 3, 4}), (2, {1, 4}), (1, {4})]
)
def test_refreshes_after_a_step_that_lost_too_much(seed, sample, groups):
    states = drifting(10, layers=2, seed=seed)
    expected = expected_kinds(states, drift=0.1, most=4, groups=groups)
    assert 1 < expected.count("refresh") < 5, "the walk must make the threshold matter"
    assert kinds(adaptive(drift=0.1, refresh_count=4, drift_groups=sample), states) == expected


def test_never_refreshes_again_without_a_threshold_in_reach():
    assert kinds(adaptive(drift=math.inf), drifting(8)) == ["refresh", *["sparse"] * 7]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_loss_refreshes_as_often_as_allowed(count):
    states = [[inputs(seed=step)] for step in range(10)]
    expected = ["refresh" if step % 2 == 0 and step < 2 * count else "sparse" for step in range(10)]
    assert kinds(adaptive(drift=0.0, refresh_count=count, refresh_window=0.1), states) == expected


def test_a_pattern_that_holds_stays():
    states = [[inputs(seed=0)]] * 6
    assert kinds(adaptive(drift=1e-5), states) == ["refresh", *["sparse"] * 5]


def test_measures_nothing_once_its_refreshes_are_used_up(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("the mass was measured in vain")

    states = drifting(4)
    monkeypatch.setattr("dlm_lens.policies.drift.retained_mass", forbidden)
    assert kinds(adaptive(refresh_count=1), states) == ["refresh", "sparse", "sparse", "sparse"]
    with pytest.raises(AssertionError, match="in vain"):
        kinds(adaptive(refresh_count=2), states)


def test_a_refresh_rebuilds_the_columns_and_others_keep_them():
    run = adaptive(drift=0.0, refresh_count=2).start(info())
    for step, rebuilt in enumerate([None, 0, None, 2, 2]):
        q, k, v = inputs(seed=step)
        out = attend(run, step, q, k, v)
        pattern = run.pattern(0)
        if rebuilt is None:
            assert pattern is None
            assert torch.equal(out, dense_attention(q, k, v))
        else:
            assert kept(pattern.lists[0]) == best_columns(*inputs(seed=rebuilt)[:2], GROUP, 11)
            assert torch.equal(out, pattern.attend(q, k, v))


@pytest.mark.parametrize("firsts", [None, [0, 5, 12]], ids=str)
def test_a_batch_of_three_equals_three_runs_of_one(firsts):
    """Samples that refresh at different steps, with padding and without."""
    start = None if firsts is None else torch.tensor(firsts)
    states = [
        tuple(
            torch.cat(same) for same in zip(*(drifting(10, seed=s)[step][0] for s in (0, 3, 6)), strict=True)
        )
        for step in range(10)
    ]
    policy = adaptive(drift=0.1, refresh_count=3, drift_groups=3)
    together = policy.start(info(batch=3, start=start))
    alone = [policy.start(info(length=37 - first)) for first in firsts or [0, 0, 0]]
    refreshed = [[], [], []]
    for step, (q, k, v) in enumerate(states):
        out = attend(together, step, q, k, v, start=start)
        mass = []
        for b, first in enumerate(firsts or [0, 0, 0]):
            own = [t[b : b + 1, :, first:] for t in (q, k, v)]
            torch.testing.assert_close(out[b : b + 1, :, first:], attend(alone[b], step, *own))
            assert not out[b, :, :first].any()
            pattern = alone[b].pattern(0)
            if pattern is None:
                refreshed[b].append(step)
            mass.append(torch.ones(1, 4) if pattern is None else pattern.retained_mass(*own[:2])[0])
        pattern = together.pattern(0)
        if pattern is not None:
            torch.testing.assert_close(pattern.retained_mass(q, k)[0], torch.cat(mass))
        assert (pattern is None) == all(step in steps for steps in refreshed)
    assert len({tuple(steps) for steps in refreshed}) > 1, "the samples must differ for this to say anything"


def test_a_step_in_which_some_refresh_is_a_refresh_and_the_others_keep_their_columns():
    states = [[t.clone() for t in inputs(batch=2, seed=step)] for step in range(3)]
    for state in states:
        for tensor, first in zip(state, states[0], strict=True):
            tensor[0] = first[0]  # of the two samples, the first stands still
    run = adaptive(drift=0.05).start(info(batch=2))
    plans = [run.plan(0, torch.zeros(2, 37))]
    for step, (q, k, v) in enumerate(states):
        out = run.attend(0, q, k, v, StepContext(step, plans[-1], run))
        still, moving = run.pattern(0).lists if step else (None, None)
        plans.append(run.plan(step + 1, torch.zeros(2, 37)) if step < 2 else plans[-1])
    assert [plan.kind for plan in plans[:3]] == ["refresh", "sparse", "refresh"]
    assert kept(still) == best_columns(*(t[:1] for t in states[0][:2]), GROUP, 11)
    assert moving.columns is None
    assert torch.equal(out[1:], dense_attention(q[1:], k[1:], v[1:]))
    assert run.pattern(0).density == pytest.approx((11 / 37 + 1) / 2)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_batch_of_prompts_gives_the_tokens_of_single_runs(family):
    dlm = reference.lively(dl.random_model(family, hidden=32, heads=4, kv_heads=2, vocab=64, layers=2))
    prompts = [torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 11, 15)]
    policy = dl.PulseCol(0.6, 4, refresh="adaptive", drift=0.02, refresh_count=4, budget="mass:0.9")
    options = {"gen_length": 16, "policy": policy, "progress": False}
    together = dl.denoise(dlm, prompts, **options)
    counts = []
    for i, prompt in enumerate(prompts):
        alone = dl.denoise(dlm, prompt, **options)
        counts.append(list(alone.timings["kind"]))
        assert torch.equal(together.tokens[i, int(together.start[i]) :], alone.tokens[0])
    assert any(kinds.count("refresh") > 1 for kinds in counts)
    some = ["refresh" if "refresh" in step else "sparse" for step in zip(*counts, strict=True)]
    assert list(together.timings["kind"]) == some


def test_without_sparsity_it_equals_dense_token_for_token():
    dlm = reference.lively(dl.random_model("llada", hidden=32, heads=4, kv_heads=2, vocab=64))
    prompt = torch.tensor([3, 17, 42, 8, 25, 11, 60])
    policy = dl.PulseCol(0.0, 4, refresh="adaptive", drift=0.01)
    dense, full = (
        dl.denoise(dlm, prompt, gen_length=16, policy=p, progress=False) for p in (dl.Dense(), policy)
    )
    assert torch.equal(dense.tokens, full.tokens)
    assert list(full.timings["kind"]) == ["refresh", *["sparse"] * 15]


@given(groups=st.integers(1, 300), sample=st.integers(1, 320))
def test_sampled_groups_are_even_and_end_with_the_last(groups, sample):
    chosen = spread(groups, sample)
    assert len(chosen) == min(groups, sample)
    assert chosen[-1] == groups - 1
    gaps = [later - earlier for earlier, later in pairwise([-1, *chosen])]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_has_a_name_and_no_schedule():
    policy = adaptive(drift=0.1)
    assert (policy.label, policy.density) == ("PulseCol adaptive 70%", pytest.approx(0.3))
    assert "refresh='adaptive', drift=0.1, drift_groups=99" in repr(policy)
    with pytest.raises(ValueError, match='refresh="adaptive" decides during a run'):
        policy.refresh_steps(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refresh": "often"}, 'refresh=\'often\' must be "uniform" or "adaptive"'),
        ({"drift": -0.1}, r"drift=-0\.1 must be at least 0"),
        ({"drift": math.nan}, "drift=nan must be at least 0"),
        ({"drift_groups": 0}, "drift_groups=0 must be at least 1 group"),
    ],
)
def test_refuses_impossible_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        dl.PulseCol(**options)
