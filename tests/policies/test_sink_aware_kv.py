"""Sink-aware retention against a brute-force reading of its definition from materialised attention."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.attention import dense_attention
from tests import reference_samplers as reference
from tests.policies.test_pulsecol import attend, attention, info, inputs, kept


def masses(q, k):
    """Column mass of one unpadded sample as lists, [head][key]."""
    return attention(q, k)[0].mean(1).tolist()


def sinks_of(mass, kappa):
    mean = sum(mass) / len(mass)
    std = (sum((m - mean) ** 2 for m in mass) / len(mass)) ** 0.5
    return {i for i, m in enumerate(mass) if m > mean + kappa * std}


def transient(history, policy):
    """The present sinks whose membership changed too often, from all sets of sinks so far."""
    padded = [history[0]] * policy.memory + history
    last = list(pairwise(padded))[-policy.memory :]
    return {
        i
        for i in history[-1]
        if sum((i in a) != (i in b) for a, b in last) / policy.memory > policy.transience
    }


def expected_keys(mass, history, group, policy):
    """The keys that a group of queries keeps, given the mass of the step before and all sets of sinks so far."""
    length = len(mass)
    by_mass = sorted(range(length), key=lambda i: (-mass[i], i))
    dropped = transient(history, policy) if policy.mode == "drop_transient" else set()
    sinks = [i for i in by_mass if i in history[-1] - dropped]
    own = range(group * policy.group_size, min((group + 1) * policy.group_size, length))
    near = sorted(range(length), key=lambda i: (abs(2 * i - own[0] - own[-1]), i))
    window = [i for i in near[: policy.window] if i not in dropped]
    rest = [i for i in by_mass if i not in dropped]
    order = [*sinks, *window, *rest, *(i for i in by_mass if i in dropped)]
    return set(list(dict.fromkeys(order))[: max(1, round(policy.budget * length))])


def flickering(step, length=37, seed=0):
    """Inputs of a step in which a few keys draw attention, some of them at every other step only."""
    q, k, v = inputs(length=length, seed=seed + 100 * step)
    q[..., 0] = 3
    places = [3, 20 % length, 8 if step % 2 else 30 % length, (11 * step) % length]
    k[:, :, places, 0] += 3
    return q, k, v


@given(
    length=st.integers(20, 50),
    group_size=st.integers(1, 20),
    budget=st.floats(0.03, 1.0),
    window=st.integers(0, 40),
    mode=st.sampled_from(["keep", "drop_transient"]),
    memory=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_keeps_sinks_window_and_the_best_of_the_rest(length, group_size, budget, window, mode, memory, seed):
    policy = dl.SinkAwareKV(
        budget, mode, window, kappa=1.5, memory=memory, transience=0.3, group_size=group_size
    )
    run = policy.start(info(length=length))
    histories, mass = [[] for _ in range(4)], None
    for step in range(5):
        q, k, v = flickering(step, length, seed)
        attend(run, step, q, k, v)
        if step:
            (lists,) = run.pattern(0).lists
            assert lists.columns.shape == (1, 4, -(-length // group_size), max(1, round(budget * length)))
            assert kept(lists) == [
                [expected_keys(m, h, g, policy) for g in range(-(-length // group_size))]
                for m, h in zip(mass, histories, strict=True)
            ]
        mass = masses(q, k)
        for history, m in zip(histories, mass, strict=True):
            history.append(sinks_of(m, 1.5))


def test_the_sinks_of_the_step_before_are_kept_and_transient_ones_dropped():
    """The examples of the test above do contain what it is about."""
    found = 0
    for mode in ("keep", "drop_transient"):
        policy = dl.SinkAwareKV(0.4, mode, window=8, group_size=8)
        run, histories = policy.start(info()), [[] for _ in range(4)]
        for step in range(6):
            q, k, v = flickering(step)
            attend(run, step, q, k, v)
            for head, history in enumerate(histories):
                if step:
                    there = kept(run.pattern(0).lists[0])[head]
                    gone = transient(history, policy) if mode == "drop_transient" else set()
                    assert all(history[-1] - gone <= keys and not gone & keys for keys in there)
                    found += len(gone)
                    assert history[-1]
                history.append(sinks_of(masses(q, k)[head], 2.0))
    assert found


def test_the_first_step_is_dense_and_every_other_follows_the_sinks():
    run = dl.SinkAwareKV(0.2, group_size=8).start(info())
    kinds, patterns = [], []
    for step in range(4):
        q, k, v = flickering(step)
        kinds.append(run.plan(step, torch.zeros(1, 37)).kind)
        out = attend(run, step, q, k, v)
        patterns.append(run.pattern(0))
        if step == 0:
            torch.testing.assert_close(out, dense_attention(q, k, v))
        else:
            torch.testing.assert_close(out, patterns[-1].attend(q, k, v))
            assert patterns[-1].density == pytest.approx(7 / 37)
    assert kinds == ["refresh", "sparse", "sparse", "sparse"]
    assert patterns[0] is None
    assert kept(patterns[1].lists[0]) != kept(patterns[2].lists[0])


def test_layers_are_followed_apart():
    run = dl.SinkAwareKV(0.2, window=0, group_size=8).start(info())
    seen = flickering(1), flickering(3)
    for step in range(2):
        for layer in range(2):
            attend(run, step, *seen[layer], layer=layer)
    for layer in range(2):
        q, k, _ = seen[layer]
        best = [set(sorted(range(37), key=lambda i, m=mass: -m[i])[:7]) for mass in masses(q, k)]
        assert kept(run.pattern(layer).lists[0]) == [[keys] * 5 for keys in best]


@pytest.mark.parametrize("mode", ["keep", "drop_transient"])
def test_a_padded_sample_is_treated_as_if_alone(mode):
    start = torch.tensor([0, 5, 20])
    policy = dl.SinkAwareKV(0.3, mode, window=4, sample=10, transience=0.0, group_size=8)
    together = policy.start(info(batch=3, start=start))
    alone = [policy.start(info(length=37 - first)) for first in start.tolist()]
    for step in range(4):
        q, k, v = inputs(batch=3, seed=step)
        out = attend(together, step, q, k, v, start=start)
        for b, first in enumerate(start.tolist()):
            own = attend(alone[b], step, *(t[b : b + 1, :, first:] for t in (q, k, v)))
            torch.testing.assert_close(out[b : b + 1, :, first:], own)
            assert not out[b, :, :first].any()
    for lists, one in zip(together.pattern(0).lists, alone, strict=True):
        assert torch.equal(lists.columns, one.pattern(0).lists[0].columns)


@pytest.mark.parametrize("mode", ["keep", "drop_transient"])
def test_a_batch_equals_its_prompts_alone(mode):
    dlm = reference.lively(dl.random_model("llada", hidden=32, heads=4, kv_heads=2, vocab=64))
    prompts = [torch.arange(3, 3 + length) for length in (7, 20, 40)]
    policy = dl.SinkAwareKV(0.4, mode, window=4, group_size=4)
    together = dl.denoise(dlm, prompts, gen_length=8, policy=policy, progress=False)
    for b, prompt in enumerate(prompts):
        alone = dl.denoise(dlm, prompt, gen_length=8, policy=policy, progress=False)
        assert torch.equal(together.tokens[b, -8:], alone.tokens[0, -8:])


@pytest.mark.parametrize("mode", ["keep", "drop_transient"])
def test_with_all_keys_it_equals_dense_token_for_token(mode):
    dlm = reference.lively(dl.random_model("dream", hidden=32, heads=4, kv_heads=2, vocab=64))
    policy = dl.SinkAwareKV(1.0, mode, kappa=0.5, transience=0.0)
    dense, full = (
        dl.denoise(dlm, torch.arange(3, 40), gen_length=16, policy=p, progress=False)
        for p in (dl.Dense(), policy)
    )
    assert torch.equal(dense.tokens, full.tokens)
    assert torch.equal(dense.committed_at, full.committed_at)
    assert list(full.timings["kind"]) == ["refresh"] + ["sparse"] * 15


def test_runs_of_one_policy_do_not_see_each_other():
    policy = dl.SinkAwareKV(0.2, window=4, group_size=8)
    first, second, lonely = (policy.start(info()) for _ in range(3))
    for step in range(3):
        attend(first, step, *flickering(step))
        attend(second, step, *flickering(step, seed=7))
        attend(lonely, step, *flickering(step))
    assert torch.equal(first.pattern(0).lists[0].columns, lonely.pattern(0).lists[0].columns)
    assert kept(first.pattern(0).lists[0]) != kept(second.pattern(0).lists[0])


def test_captures_and_compares(random_dlm):
    prompt = torch.arange(3, 43)
    policy = dl.SinkAwareKV(0.5, window=8, group_size=8)
    trace = dl.capture(random_dlm, prompt, gen_length=4, policy=policy, progress=False)
    retained = trace["retained_mass"]
    assert (retained.isel(step=0) == 1).all()
    assert ((retained.isel(step=slice(1, None)) > 0) & (retained.isel(step=slice(1, None)) < 1)).all()
    table = dl.compare(random_dlm, prompt, [policy], gen_length=4, progress=False)
    assert {policy.label, "Random columns 50%"} <= set(table["policy"])


def test_labels_tell_modes_apart():
    assert (dl.SinkAwareKV().label, dl.SinkAwareKV().density) == ("Sink-aware KV 80%", 0.2)
    assert dl.SinkAwareKV(0.5, "drop_transient").label == "Sink-aware KV 50%, no transient sinks"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, r"budget=0\.0 must be in \(0, 1\]"),
        ({"budget": 1.2}, r"budget=1\.2 must be in \(0, 1\]"),
        ({"mode": "drop"}, 'mode=\'drop\' must be "keep" or "drop_transient"'),
        ({"window": -1}, "window=-1 must not be negative"),
        ({"kappa": -2.0}, r"kappa=-2\.0 must not be negative"),
        ({"kappa": float("nan")}, "kappa=nan must not be negative"),
        ({"sample": 0}, "sample=0 must be at least 1 query"),
        ({"memory": 0}, "memory=0 must be at least 1 comparison"),
        ({"transience": 1.0}, r"transience=1\.0 must be in \[0, 1\)"),
        ({"group_size": 0}, "group_size=0 must be at least 1 query"),
    ],
)
def test_refuses_impossible_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        dl.SinkAwareKV(**options)


def test_refuses_causal_models():
    with pytest.raises(ValueError, match="chooses keys on both sides, but 'random-ar' is causal"):
        dl.SinkAwareKV().start(info(family="ar"))
