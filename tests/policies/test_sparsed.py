"""SparseD against a brute-force reading of its definition from materialised attention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.attention import StepContext, dense_attention
from dlm_lens.policies import RunInfo
from tests import reference_samplers as reference


def info(length=150, prompt=70, steps=10, batch=1, start=None, family="llada"):
    spec = dl.random_model(family, hidden=32, heads=4, kv_heads=2, vocab=64, layers=1).spec
    return RunInfo(spec, prompt, length - prompt, steps, batch, start, torch.device("cpu"), 0)


def inputs(batch=1, length=150, dim=8, seed=0):
    """Queries, keys and values with peaked attention."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, 4, length, dim), (batch, 2, length, dim), (batch, 2, length, dim)
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return 3 * q, k, v


def attend(run, step, q, k, v, start=None):
    plan = run.plan(step, torch.zeros(q.shape[0], q.shape[2], dtype=torch.long))
    return run.attend(0, q, k, v, StepContext(step, plan, run, start=start))


def attention(q, k, scale=None):
    k = k.repeat_interleave(2, dim=1).double()
    return (q.double() @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)


def tile_means(a, size):
    """Mean attention over every tile of a map [L, keys], as nested lists."""
    return [
        [float(a[i : i + size, j : j + size].mean()) for j in range(0, a.shape[1], size)]
        for i in range(0, a.shape[0], size)
    ]


def best(scores, share):
    count = min(int(len(scores) * share + 1e-9) + 1, len(scores))
    return set(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count])


def expected_blocks(q, k, policy, prompt):
    """For one unpadded sample: the set of key blocks of each (head, query block), by the definition."""
    size, length = policy.block_size, q.shape[2]
    blocks = -(-length // size)
    scale = q.shape[1] ** -0.5 if policy.reference_scale else None
    wholly = [j for j in range(blocks) if j * size >= prompt]
    begin = wholly[0] if wholly else blocks - 1
    everywhere = attention(q, k, scale)[0]
    generation = attention(q, k[:, :, begin * size :], scale)[0]
    result = []
    for head in range(q.shape[1]):
        rows = []
        for of_all, of_generation in zip(
            tile_means(everywhere[head], size), tile_means(generation[head], size), strict=True
        ):
            chosen = best(of_all, policy.select)
            if policy.isolated:
                chosen = {j for j in chosen if j < begin}
                chosen |= {j + begin for j in best(of_generation, policy.select)}
            rows.append(chosen)
        result.append(rows)
    return result


def kept(lists):
    """The blocks of one sample as sets, [head][query block]."""
    return [
        [set(blocks[:count].tolist()) for blocks, count in zip(head, counts, strict=True)]
        for head, counts in zip(lists.columns[0], lists.counts[0], strict=True)
    ]


@given(
    length=st.integers(20, 200),
    generation=st.integers(1, 100),
    block_size=st.sampled_from([16, 32, 64]),
    select=st.floats(0.05, 1.0),
    isolated=st.booleans(),
    reference_scale=st.booleans(),
    seed=st.integers(0, 3),
)
def test_chooses_the_blocks_of_the_definition(
    length, generation, block_size, select, isolated, reference_scale, seed
):
    prompt = max(1, length - generation)
    policy = dl.SparseD(select, 0.0, block_size, isolated, reference_scale)
    q, k, v = inputs(length=length, seed=seed)
    run = policy.start(info(length, prompt))
    attend(run, policy.selecting_step(10), q, k, v)
    attend(run, policy.selecting_step(10) + 1, *inputs(length=length, seed=9))
    (lists,) = run.pattern(0).lists
    assert kept(lists) == expected_blocks(q, k, policy, prompt)


def test_a_sparse_step_is_the_softmax_over_the_kept_blocks():
    policy = dl.SparseD(0.3, 0.0, 16)
    run = policy.start(info())
    attend(run, 1, *inputs(seed=0))
    q, k, v = inputs(seed=1)
    out = attend(run, 2, q, k, v)
    probability = attention(q, k)[0]
    kept_mass = torch.zeros(4, 150, dtype=torch.float64)
    for head, rows in enumerate(kept(run.pattern(0).lists[0])):
        for i in range(150):
            keys = [
                j for block in sorted(rows[i // 16]) for j in range(16 * block, min(16 * block + 16, 150))
            ]
            p = probability[head, i, keys]
            kept_mass[head, i] = p.sum()
            expected = (p / p.sum()) @ v[0, head // 2, keys].double()
            torch.testing.assert_close(out[0, head, i].double(), expected, rtol=1e-4, atol=1e-5)
    mean, lowest = run.pattern(0).retained_mass(q, k)
    torch.testing.assert_close(mean[0].double(), kept_mass.mean(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lowest[0].double(), kept_mass.amin(-1), rtol=1e-4, atol=1e-5)


def test_early_steps_are_dense_and_the_pattern_is_chosen_once():
    policy = dl.SparseD(0.3, 0.2, 16)
    assert policy.selecting_step(10) == 3
    run, kinds, patterns = policy.start(info()), [], []
    for step in range(7):
        q, k, v = inputs(seed=step)
        kinds.append(run.plan(step, torch.zeros(1, 150)).kind)
        out = attend(run, step, q, k, v)
        if step <= 3:
            torch.testing.assert_close(out, dense_attention(q, k, v))
        patterns.append(run.pattern(0))
    assert kinds == ["dense"] * 3 + ["refresh"] + ["sparse"] * 3
    assert patterns[:4] == [None] * 4
    assert patterns[4] is patterns[5] is patterns[6]
    assert kept(patterns[4].lists[0]) == expected_blocks(*inputs(seed=3)[:2], policy, 70)


def test_a_padded_sample_is_treated_as_if_alone():
    start = torch.tensor([0, 5, 40])
    q, k, v = inputs(batch=3)
    policy = dl.SparseD(0.3, 0.0, 16)
    together = policy.start(info(batch=3, start=start))
    outputs = [attend(together, step, q, k, v, start=start) for step in (1, 2)]
    for b, first in enumerate(start.tolist()):
        alone = policy.start(info(length=150 - first, prompt=70 - first))
        own = [t[b : b + 1, :, first:] for t in (q, k, v)]
        for at, step in enumerate((1, 2)):
            torch.testing.assert_close(outputs[at][b : b + 1, :, first:], attend(alone, step, *own))
            assert not outputs[at][b, :, :first].any()
        assert kept(together.pattern(0).lists[b]) == kept(alone.pattern(0).lists[0])


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_with_all_blocks_it_equals_dense_token_for_token(family):
    dlm = reference.lively(dl.random_model(family, hidden=32, heads=4, kv_heads=2, vocab=64))
    prompt = torch.arange(3, 40)
    dense, full = (
        dl.denoise(dlm, prompt, gen_length=16, policy=policy, progress=False)
        for policy in (dl.Dense(), dl.SparseD(select=1.0, block_size=16))
    )
    assert torch.equal(dense.tokens, full.tokens)
    assert torch.equal(dense.committed_at, full.committed_at)
    assert set(full.timings["kind"]) == {"dense", "refresh", "sparse"}


def test_captures_and_compares(random_dlm):
    """Through the recorder and the comparison, on a length that is no multiple of the block."""
    policy = dl.SparseD(0.5, 0.2, 16)
    prompt = torch.arange(3, 43)
    trace = dl.capture(random_dlm, prompt, gen_length=8, policy=policy, progress=False)
    kept_mass = trace["retained_mass"].isel(step=slice(3, None))
    assert list(trace["kind"].values) == ["dense"] * 2 + ["refresh"] + ["sparse"] * 5
    assert ((kept_mass > 0) & (kept_mass <= 1 + 1e-6)).all()
    table = dl.compare(random_dlm, prompt, [policy], gen_length=8, progress=False)
    assert policy.label in set(table["policy"])


def test_named_settings():
    assert dl.SparseD.long() == dl.SparseD(select=0.3, skip=0.2, block_size=128)
    assert dl.SparseD.short() == dl.SparseD(select=0.5, skip=0.2, block_size=32)
    assert (dl.SparseD.short().label, dl.SparseD.short().density) == ("SparseD 50%", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": 0.0}, r"select=0\.0 must be in \(0, 1\]"),
        ({"select": 1.5}, r"select=1\.5 must be in \(0, 1\]"),
        ({"skip": -0.1}, r"skip=-0\.1 must be in \[0, 1\]"),
        ({"block_size": 48}, "block_size=48 must be 16, 32, 64 or 128"),
    ],
)
def test_refuses_impossible_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        dl.SparseD(**options)


def test_refuses_causal_models():
    with pytest.raises(ValueError, match="chooses keys on both sides, but 'random-ar' is causal"):
        dl.SparseD().start(info(family="ar"))
