"""Budgets per head against a brute-force reading of their definition from materialised attention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.policies.head_budgets import columns_needed, share_out
from tests import reference_samplers as reference
from tests.policies.test_pulsecol import attend, attention, info, inputs, kept


def uneven(batch=1, length=37, seed=0):
    """``q, k, v`` of four heads, from one that looks everywhere to one that sees few keys."""
    q, k, v = inputs(batch=batch, length=length, seed=seed)
    return q * torch.tensor([0.1, 0.4, 1.0, 2.0])[:, None, None], k, v


def scores(q, k, group_size):
    """Mean attention of every group of the first sample, [H, groups, L] in float64."""
    return torch.stack([a.mean(1) for a in attention(q, k)[0].split(group_size, dim=1)], dim=1)


def fewest(row, mass):
    """How many of the highest entries of a row sum to ``mass``."""
    total, count = 0.0, 0
    for value in sorted(row.tolist(), reverse=True):
        if total >= mass:
            break
        total, count = total + value, count + 1
    return count


@pytest.mark.parametrize("group_size", [1, 8, 40])
@pytest.mark.parametrize("mass", [0.3, 0.9])
def test_a_head_needs_the_fewest_columns_that_reach_the_mass(group_size, mass):
    q, k, _ = uneven()
    expected = [sum(fewest(row, mass) for row in groups) for groups in scores(q, k, group_size)]
    assert columns_needed(q, k, group_size, mass).tolist() == [expected]
    assert expected[0] > 1.5 * expected[3], "the heads must differ for this to say anything"


@given(
    group_size=st.integers(1, 20),
    sparsity=st.floats(0.2, 0.97),
    mass=st.floats(0.2, 0.99),
    seed=st.integers(0, 3),
)
def test_heads_share_the_layers_total_in_proportion_to_their_needs(group_size, sparsity, mass, seed):
    q, k, v = uneven(seed=seed)
    run = dl.PulseCol(sparsity, group_size, refresh_count=1, budget=f"mass:{mass}").start(info())
    attend(run, 0, q, k, v)
    attend(run, 1, *uneven(seed=9))
    (lists,) = run.pattern(0).lists
    total = 4 * max(1, round((1 - sparsity) * 37))
    budgets = share_out(columns_needed(q, k, group_size, mass)[0].tolist(), total, 37)
    assert lists.counts[0].tolist() == [[budget] * lists.counts.shape[2] for budget in budgets]
    assert lists.columns.shape[3] == max(budgets)
    assert run.pattern(0).density == pytest.approx(total / 4 / 37)
    ranked = scores(q, k, group_size).argsort(dim=-1, descending=True, stable=True)
    assert kept(lists) == [
        [set(row[:budget].tolist()) for row in groups] for groups, budget in zip(ranked, budgets, strict=True)
    ]


class TestShareOut:
    @given(
        data=st.data(),
        needs=st.lists(st.integers(1, 5000), min_size=1, max_size=12),
        most=st.integers(1, 900),
    )
    def test_is_exact_bounded_and_in_proportion(self, data, needs, most):
        total = data.draw(st.integers(len(needs), len(needs) * most))
        parts = share_out(needs, total, most)
        assert sum(parts) == total
        assert all(1 <= part <= most for part in parts)
        free = [(part, need) for part, need in zip(parts, needs, strict=True) if 1 < part < most]
        for part, need in free:  # a part between the bounds is in proportion to every other up to rounding
            for other, other_need in free:
                assert (part + 1) / need > (other - 1) / other_need

    @pytest.mark.parametrize(
        ("needs", "total", "most", "parts"),
        [
            ([1, 2, 3], 12, 100, [2, 4, 6]),
            ([5, 5, 5], 10, 100, [4, 3, 3]),  # what rounding leaves goes to the first
            ([1, 1, 98], 30, 20, [5, 5, 20]),  # what one cannot take goes to the others
            ([1, 499, 500], 20, 100, [1, 9, 10]),  # nobody goes empty
            ([7, 30, 2], 120, 40, [40, 40, 40]),
            ([3, 9], 2, 40, [1, 1]),
        ],
    )
    def test_by_hand(self, needs, total, most, parts):
        assert share_out(needs, total, most) == parts


def test_keeps_more_mass_than_equal_budgets_where_heads_differ():
    q, k, v = uneven()
    mass = {}
    for budget in ("uniform", "mass:0.9"):
        run = dl.PulseCol(0.6, 8, refresh_count=1, budget=budget).start(info())
        for step in (0, 1):
            attend(run, step, q, k, v)
        mass[budget] = float(run.pattern(0).retained_mass(q, k)[0].mean())
    assert mass["mass:0.9"] > mass["uniform"] + 0.01


def test_heads_of_one_need_get_equal_budgets():
    q, k, v = inputs()
    q[:, 1:], k[:, 1:] = q[:, :1], k[:, :1]
    patterns = []
    for budget in ("uniform", "mass:0.9"):
        run = dl.PulseCol(0.6, 8, refresh_count=1, budget=budget).start(info())
        for step in (0, 1):
            attend(run, step, q, k, v)
        patterns.append(kept(run.pattern(0).lists[0]))
    assert patterns[0] == patterns[1]


@pytest.mark.parametrize("firsts", [None, [0, 5, 20]], ids=str)
def test_a_batch_of_three_equals_three_runs_of_one(firsts):
    start = None if firsts is None else torch.tensor(firsts)
    states = [uneven(batch=3, seed=seed) for seed in (0, 1)]
    for q, _, _ in states:
        q[1] = q[1].flip(0)  # heads of different samples need different budgets
    policy = dl.PulseCol(0.7, 8, refresh_count=1, budget="mass:0.9")
    together = policy.start(info(batch=3, start=start))
    outputs = [attend(together, step, *state, start=start) for step, state in enumerate(states)]
    for b, first in enumerate(firsts or [0, 0, 0]):
        alone = policy.start(info(length=37 - first))
        for step, state in enumerate(states):
            own = attend(alone, step, *(t[b : b + 1, :, first:] for t in state))
            torch.testing.assert_close(outputs[step][b : b + 1, :, first:], own)


def test_without_sparsity_it_equals_dense_token_for_token():
    dlm = reference.lively(dl.random_model("llada", hidden=32, heads=4, kv_heads=2, vocab=64))
    prompt = torch.tensor([3, 17, 42, 8, 25, 11, 60])
    policies = dl.Dense(), dl.PulseCol(0.0, 4, refresh_count=1, budget="mass:0.5")
    dense, full = (dl.denoise(dlm, prompt, gen_length=16, policy=p, progress=False) for p in policies)
    assert torch.equal(dense.tokens, full.tokens)


def test_names_say_what_differs():
    assert dl.PulseCol(budget="mass:0.95").label == "PulseCol 80%, mass 95%"
    assert dl.PulseCol(refresh="adaptive", budget="mass:0.9").label == "PulseCol adaptive 80%, mass 90%"
    assert dl.PulseCol(0.5, budget="mass:0.9").density == 0.5


@pytest.mark.parametrize(
    "budget", ["mass", "mass:", "mass:0", "mass:1.5", "mass:nan", "mass:x", "top:0.9", ""]
)
def test_refuses_other_budgets(budget):
    with pytest.raises(ValueError, match=rf'budget={budget!r} must be "uniform", or "mass:p"'):
        dl.PulseCol(budget=budget)
