"""Sink-aware skipping of heads against a brute-force reading of its definition from materialised attention."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.attention import dense_attention
from dlm_lens.policies import sink_aware_heads
from dlm_lens.policies.sink_aware_heads import even_heads
from tests import reference_samplers as reference
from tests.policies.test_pulsecol import attend, info, inputs
from tests.policies.test_sink_aware_kv import flickering, masses, sinks_of


class Expected:
    """What a head's score must be after the steps it was measured at."""

    def __init__(self, policy):
        self.policy, self.sets, self.score = policy, [], None

    def measure(self, mass):
        self.sets.append(sinks_of(mass, self.policy.kappa))
        padded = [self.sets[0]] * self.policy.memory + self.sets
        last = list(pairwise(padded))[-self.policy.memory :]
        self.score = 0.0
        for i in self.sets[-1]:
            changes = sum((i in a) != (i in b) for a, b in last) / self.policy.memory
            self.score += mass[i] * (1 - changes)


@given(
    prune=st.integers(0, 99).map(lambda percent: percent / 100),
    refresh=st.integers(1, 4),
    memory=st.integers(1, 3),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 3),
)
def test_skips_the_heads_with_the_lowest_score_of_the_step_before(prune, refresh, memory, kv_heads, seed):
    policy = dl.SinkAwareHeads(prune, refresh, kappa=1.5, memory=memory)
    run = policy.start(info(kv_heads=kv_heads))
    heads = [Expected(policy) for _ in range(4)]
    for step in range(7):
        q, k, v = inputs(kv_heads=kv_heads, seed=seed + 10 * step)
        everything = dense_attention(q, k, v)
        out = attend(run, step, q, k, v)
        ranked = sorted(range(4), key=lambda h: (heads[h].score or 0, -h))
        skipped = set() if step % refresh == 0 else set(ranked[: min(int(prune * 4), 3)])
        for head in range(4):
            assert out[0, head].any() != (head in skipped)
        kept = [head for head in range(4) if head not in skipped]
        torch.testing.assert_close(out[:, kept], everything[:, kept])
        for head, mass in enumerate(masses(q, k)):
            if head in kept:
                heads[head].measure(mass)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_skipped_head_is_not_computed(kv_heads, monkeypatch):
    """Neither attention nor mass sees its queries, nor the keys that only skipped heads share."""
    seen = []
    for name in ("dense_attention", "sampled_mass"):
        real = getattr(sink_aware_heads, name)
        monkeypatch.setattr(
            sink_aware_heads,
            name,
            lambda q, k, *rest, _real=real, **options: seen.append((q, k)) or _real(q, k, *rest, **options),
        )
    run = dl.SinkAwareHeads(0.5).start(info(kv_heads=kv_heads))
    attend(run, 0, *inputs(kv_heads=kv_heads))
    seen.clear()
    q, k, v = inputs(kv_heads=kv_heads, seed=1)
    attend(run, 1, q, k, v)
    kept = run.pattern(0).kept[0]
    used = {head * kv_heads // 4 for head in kept.nonzero().flatten().tolist()}
    for calls in (seen[::2], seen[1::2]):
        assert sum(queries.shape[1] for queries, _ in calls) == 2
        assert sum(keys.shape[1] for _, keys in calls) == len(used)
        for queries, _ in calls:
            for one in queries[0]:
                assert any(torch.equal(one, q[0, head]) for head in kept.nonzero().flatten())


@given(
    kept=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4),
    kv_heads=st.sampled_from([1, 2, 3, 6]),
)
def test_even_sets_hold_every_kept_head_once_with_its_own_keys(kept, kv_heads):
    found = []
    for (rows, heads), (kv_rows, kv) in even_heads(torch.tensor(kept), kv_heads):
        share = len(heads) // len(kv)
        for i, (row, head) in enumerate(zip(rows.tolist(), heads.tolist(), strict=True)):
            assert (row, head * kv_heads // 6) == (int(kv_rows[i // share]), int(kv[i // share]))
            found.append((row, head))
        assert len(heads) == share * len(kv)
    assert sorted(found) == [(b, h) for b, row in enumerate(kept) for h in range(6) if row[h]]


def test_a_score_is_the_mass_of_stable_sinks():
    """A head with strong sinks stays, one whose sinks move each step and one with none are skipped."""
    run = dl.SinkAwareHeads(0.5, refresh=1, kappa=1.0).start(info(kv_heads=4))
    for step in range(5):
        q, k, v = (0.1 * t for t in inputs(kv_heads=4, seed=step))
        q[..., 0] = 3
        k[:, 0, 5, 0] = 10
        k[:, 1, 3 + 7 * step, 0] = 12
        k[:, 2, 9, 0] = 8
        k[:, 3] = 0
        attend(run, step, q, k, v)
    scores = run._scores[0][0].tolist()
    assert scores[0] > scores[2] > scores[1] > scores[3]
    assert scores[0] > 0.9


def test_a_padded_sample_is_treated_as_if_alone():
    start = torch.tensor([0, 5, 20])
    policy = dl.SinkAwareHeads(0.5, refresh=3, sample=10)
    together = policy.start(info(batch=3, start=start))
    alone = [policy.start(info(length=37 - first)) for first in start.tolist()]
    for step in range(6):
        q, k, v = inputs(batch=3, seed=step)
        out = attend(together, step, q, k, v, start=start)
        for b, first in enumerate(start.tolist()):
            own = attend(alone[b], step, *(t[b : b + 1, :, first:] for t in (q, k, v)))
            torch.testing.assert_close(out[b : b + 1, :, first:], own)
            assert not out[b, :, :first].any()
    assert together.pattern(0).kept.tolist() == [run.pattern(0).kept[0].tolist() for run in alone]


def test_samples_of_a_batch_without_padding_skip_their_own_heads():
    policy = dl.SinkAwareHeads(0.5)
    together, alone = policy.start(info(batch=3)), [policy.start(info()) for _ in range(3)]
    for step in range(4):
        q, k, v = inputs(batch=3, seed=step)
        out = attend(together, step, q, k, v)
        for b in range(3):
            own = attend(alone[b], step, *(t[b : b + 1] for t in (q, k, v)))
            torch.testing.assert_close(out[b : b + 1], own)
    assert len({tuple(row) for row in together.pattern(0).kept.tolist()}) > 1


def test_a_batch_equals_its_prompts_alone():
    dlm = reference.lively(dl.random_model("llada", hidden=32, heads=4, kv_heads=2, vocab=64))
    prompts = [torch.arange(3, 3 + length) for length in (7, 20, 40)]
    policy = dl.SinkAwareHeads(0.5, refresh=3)
    together = dl.denoise(dlm, prompts, gen_length=8, policy=policy, progress=False)
    for b, prompt in enumerate(prompts):
        alone = dl.denoise(dlm, prompt, gen_length=8, policy=policy, progress=False)
        assert torch.equal(together.tokens[b, -8:], alone.tokens[0, -8:])


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_without_pruning_it_equals_dense_token_for_token(family):
    dlm = reference.lively(dl.random_model(family, hidden=32, heads=4, kv_heads=2, vocab=64))
    dense, full = (
        dl.denoise(dlm, torch.arange(3, 40), gen_length=16, policy=policy, progress=False)
        for policy in (dl.Dense(), dl.SinkAwareHeads(0.0))
    )
    assert torch.equal(dense.tokens, full.tokens)
    assert torch.equal(dense.committed_at, full.committed_at)
    assert list(full.timings["kind"]) == (["refresh"] + ["sparse"] * 7) * 2


def test_runs_of_one_policy_do_not_see_each_other():
    policy = dl.SinkAwareHeads(0.5)
    first, second, lonely = (policy.start(info()) for _ in range(3))
    for step in range(3):
        mine, theirs = flickering(step), inputs(seed=step + 50)
        out = attend(first, step, *mine)
        attend(second, step, *theirs)
        torch.testing.assert_close(out, attend(lonely, step, *mine))


def test_retained_mass_is_one_or_nothing(random_dlm):
    policy = dl.SinkAwareHeads(0.5, refresh=4)
    trace = dl.capture(random_dlm, torch.arange(3, 40), gen_length=6, policy=policy, progress=False)
    retained = trace["retained_mass"]
    assert list(trace["kind"].values) == ["refresh", "sparse", "sparse", "sparse", "refresh", "sparse"]
    assert (retained.isel(step=[0, 4]) == 1).all()
    assert set(retained.isel(step=[1, 2, 3, 5]).values.flat) == {0.0, 1.0}
    assert (retained.isel(step=[1, 2, 3, 5]).mean("head") == 0.5).all()
    run = policy.start(info())
    for step in range(2):
        attend(run, step, *inputs(seed=step))
    assert run.pattern(0).density == 0.5


def test_compares_with_a_control_of_the_same_work(random_dlm):
    policy = dl.SinkAwareHeads(0.5)
    table = dl.compare(random_dlm, torch.arange(3, 40), [policy], gen_length=4, progress=False)
    rows = table[table["policy"] == policy.label]
    assert set(rows["density"]) == {0.5}
    assert "Random columns 50%" in set(table["policy"])


@pytest.mark.parametrize(
    ("prune", "heads", "skipped"), [(0.4, 8, 3), (0.29, 100, 29), (0.0, 8, 0), (0.99, 4, 3), (0.5, 1, 0)]
)
def test_number_of_skipped_heads(prune, heads, skipped):
    assert dl.SinkAwareHeads(prune).skipped(heads) == skipped


def test_label_and_density():
    assert (dl.SinkAwareHeads().label, dl.SinkAwareHeads().density) == ("Sink-aware heads 40%", 0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": 1.0}, r"prune=1\.0 must be in \[0, 1\)"),
        ({"prune": -0.1}, r"prune=-0\.1 must be in \[0, 1\)"),
        ({"refresh": 0}, "refresh=0 must be at least 1 step"),
        ({"kappa": -1.0}, r"kappa=-1\.0 must not be negative"),
        ({"sample": 0}, "sample=0 must be at least 1 query"),
        ({"memory": 0}, "memory=0 must be at least 1 comparison"),
    ],
)
def test_refuses_impossible_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        dl.SinkAwareHeads(**options)


def test_refuses_causal_models():
    with pytest.raises(
        ValueError, match="scores heads by attention to both sides, but 'random-ar' is causal"
    ):
        dl.SinkAwareHeads().start(info(family="ar"))
