"""PulseCol against a brute-force reading of its definition from materialised attention."""

from itertools import pairwise

import pytest
import torch
from dlm_kernels import SharedColumns
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.attention import StepContext, dense_attention
from dlm_lens.policies import RunInfo
from tests import reference_samplers as reference


def info(steps=10, length=37, batch=1, start=None, family="llada", heads=4, kv_heads=2):
    spec = dl.random_model(family, hidden=8 * heads, heads=heads, kv_heads=kv_heads, vocab=64, layers=1).spec
    return RunInfo(spec, length - 16, 16, steps, batch, start, torch.device("cpu"), 0)


def inputs(batch=1, heads=4, kv_heads=2, length=37, dim=8, seed=0):
    """Queries, keys and values with peaked attention."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, length, dim), (batch, kv_heads, length, dim), (batch, kv_heads, length, dim)
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return 3 * q, k, v


def attend(run, step, q, k, v, layer=0, start=None):
    plan = run.plan(step, torch.zeros(q.shape[0], q.shape[2], dtype=torch.long))
    return run.attend(layer, q, k, v, StepContext(step, plan, run, start=start))


def attention(q, k):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).double()
    return (q.double() @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def best_columns(q, k, group_size, count):
    """For one unpadded sample: the set of columns of each (head, group), from the whole attention map."""
    maps = attention(q, k)[0]
    groups = range(0, q.shape[2], group_size)
    return [
        [
            set(a[g : g + group_size].mean(0).argsort(descending=True, stable=True)[:count].tolist())
            for g in groups
        ]
        for a in maps
    ]


def kept(lists):
    """The columns of one sample as sets, [head][group]."""
    return [
        [set(columns[:count].tolist()) for columns, count in zip(head, counts, strict=True)]
        for head, counts in zip(lists.columns[0], lists.counts[0], strict=True)
    ]


@given(
    length=st.integers(17, 50),
    group_size=st.integers(1, 20),
    sparsity=st.floats(0, 0.97),
    seed=st.integers(0, 3),
)
def test_keeps_the_columns_with_the_highest_group_mean(length, group_size, sparsity, seed):
    q, k, v = inputs(length=length, seed=seed)
    run = dl.PulseCol(sparsity, group_size, refresh_count=1).start(info(length=length))
    attend(run, 0, q, k, v)
    attend(run, 1, *inputs(length=length, seed=9))
    count = max(1, round((1 - sparsity) * length))
    (lists,) = run.pattern(0).lists
    assert lists.columns.shape == (1, 4, -(-length // group_size), count)
    assert kept(lists) == best_columns(q, k, group_size, count)
    assert run.pattern(0).density == pytest.approx(count / length)


def test_a_sparse_step_is_the_softmax_over_the_kept_columns():
    run = dl.PulseCol(0.7, group_size=8, refresh_count=1).start(info())
    attend(run, 0, *inputs(seed=0))
    q, k, v = inputs(seed=1)
    out = attend(run, 1, q, k, v)
    (lists,) = run.pattern(0).lists
    probability = attention(q, k)[0]
    for head, groups in enumerate(kept(lists)):
        for i in range(37):
            columns = sorted(groups[i // 8])
            p = probability[head, i, columns]
            expected = (p / p.sum()) @ v[0, head // 2, columns].double()
            torch.testing.assert_close(out[0, head, i].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_refresh_step_is_dense_and_has_no_pattern():
    run = dl.PulseCol().start(info())
    q, k, v = inputs()
    assert torch.equal(attend(run, 0, q, k, v), dense_attention(q, k, v))
    assert run.pattern(0) is None


def test_patterns_are_rebuilt_at_refreshes_only():
    policy = dl.PulseCol(0.7, group_size=8, refresh_count=2, refresh_window=0.5)
    assert policy.refresh_steps(10) == (0, 2)
    run, patterns, kinds = policy.start(info()), [], []
    for step in range(6):
        q, k, v = inputs(seed=step)
        kinds.append(run.plan(step, torch.zeros(1, 37)).kind)
        attend(run, step, q, k, v)
        patterns.append(run.pattern(0))
    assert kinds == ["refresh", "sparse", "refresh", "sparse", "sparse", "sparse"]
    assert kept(patterns[1].lists[0]) == best_columns(*inputs(seed=0)[:2], 8, 11)
    assert kept(patterns[3].lists[0]) == best_columns(*inputs(seed=2)[:2], 8, 11)
    assert patterns[3] is patterns[4] is patterns[5]


def test_a_padded_sample_is_treated_as_if_alone():
    start = torch.tensor([0, 5, 20])
    q, k, v = inputs(batch=3)
    policy = dl.PulseCol(0.7, group_size=8, refresh_count=1)
    together = policy.start(info(batch=3, start=start))
    outputs = [attend(together, step, q, k, v, start=start) for step in (0, 1)]
    lists = together.pattern(0).lists
    for b, first in enumerate(start.tolist()):
        alone = policy.start(info(length=37 - first))
        own = [t[b : b + 1, :, first:] for t in (q, k, v)]
        for step in (0, 1):
            torch.testing.assert_close(outputs[step][b : b + 1, :, first:], attend(alone, step, *own))
            assert not outputs[step][b, :, :first].any()
        assert torch.equal(lists[b].columns, alone.pattern(0).lists[0].columns)
        assert lists[b].columns.shape[-1] == round(0.3 * (37 - first))


def test_runs_of_one_policy_do_not_see_each_other():
    policy = dl.PulseCol(0.7, group_size=8, refresh_count=1)
    first, second = policy.start(info()), policy.start(info())
    attend(first, 0, *inputs(seed=0))
    attend(second, 0, *inputs(seed=1))
    attend(first, 1, *inputs(seed=2))
    attend(second, 1, *inputs(seed=2))
    assert kept(first.pattern(0).lists[0]) == best_columns(*inputs(seed=0)[:2], 8, 11)
    assert kept(second.pattern(0).lists[0]) == best_columns(*inputs(seed=1)[:2], 8, 11)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_without_sparsity_it_equals_dense_token_for_token(family):
    dlm = reference.lively(dl.random_model(family, hidden=32, heads=4, kv_heads=2, vocab=64))
    prompt = torch.tensor([3, 17, 42, 8, 25, 11, 60])
    dense, full = (
        dl.denoise(dlm, prompt, gen_length=16, policy=policy, progress=False)
        for policy in (dl.Dense(), dl.PulseCol(sparsity=0.0, group_size=4, refresh_count=1))
    )
    assert torch.equal(dense.tokens, full.tokens)
    assert torch.equal(dense.committed_at, full.committed_at)
    assert set(full.timings["kind"]) == {"refresh", "sparse"}


class TestRefreshSteps:
    def test_published_schedule_of_llada(self):
        steps = dl.PulseCol.llada().refresh_steps(128)
        assert len(steps) == 16
        assert steps[:4] == (0, 2, 4, 7)
        assert steps[-1] < 0.3 * 128

    @given(
        steps=st.integers(1, 300),
        count=st.integers(1, 40),
        window=st.floats(0.01, 1.0),
    )
    def test_are_even_and_within_the_window(self, steps, count, window):
        chosen = dl.PulseCol(refresh_count=count, refresh_window=window).refresh_steps(steps)
        assert chosen[0] == 0
        assert len(chosen) == min(count, max(1, int(window * steps + 1e-9)))
        assert chosen[-1] <= window * steps
        gaps = [later - earlier for earlier, later in pairwise(chosen)]
        assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_named_settings():
    assert (dl.PulseCol.llada().refresh_count, dl.PulseCol.dream(0.5).refresh_count) == (16, 8)
    policy = dl.PulseCol.dream(0.5)
    assert (policy.label, policy.density) == ("PulseCol 50%", 0.5)
    assert dl.PulseCol(0.875).label == "PulseCol 87.5%"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1\.0 must be in \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity=-0\.1 must be in \[0, 1\)"),
        ({"group_size": 0}, "group_size=0 must be at least 1"),
        ({"refresh_count": 0}, "refresh_count=0 must be at least 1"),
        ({"refresh_window": 0.0}, r"refresh_window=0\.0 must be in \(0, 1\]"),
    ],
)
def test_refuses_impossible_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        dl.PulseCol(**options)


def test_retained_mass_is_the_dense_mass_on_the_kept_columns():
    start = torch.tensor([0, 9])
    run = dl.PulseCol(0.8, group_size=8, refresh_count=1).start(info(batch=2, start=start))
    attend(run, 0, *inputs(batch=2, seed=0), start=start)
    q, k, v = inputs(batch=2, seed=1)
    attend(run, 1, q, k, v, start=start)
    pattern = run.pattern(0)
    mean, minimum = pattern.retained_mass(q, k)
    for b, first in enumerate(start.tolist()):
        probability = attention(q[b : b + 1, :, first:], k[b : b + 1, :, first:])[0]
        for head, groups in enumerate(kept(pattern.lists[b])):
            mass = torch.stack([row[sorted(groups[i // 8])].sum() for i, row in enumerate(probability[head])])
            assert float(mean[b, head]) == pytest.approx(float(mass.mean()), abs=1e-5)
            assert float(minimum[b, head]) == pytest.approx(float(mass.min()), abs=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("starts", [None, [0, 21]], ids=str)
@pytest.mark.parametrize("refresh", ["uniform", "adaptive"])
def test_on_a_gpu_small_groups_share_lists_and_mean_the_same(refresh, starts):
    start = None if starts is None else torch.tensor(starts)
    q, k, v = inputs(batch=2, length=300, dim=64)
    policy = dl.PulseCol(sparsity=0.7, group_size=32, refresh_count=2, refresh_window=0.01, refresh=refresh)
    outputs = []
    for device in ("cpu", "cuda"):
        run = policy.start(info(length=300, batch=2))
        place = None if start is None else start.to(device)
        for step in range(2):
            out = attend(run, step, q.to(device), k.to(device), v.to(device), start=place)
        outputs.append(out.cpu())
        shared = [isinstance(lists.columns, SharedColumns) for lists in run.pattern(0).lists]
        assert all(shared) if device == "cuda" else not any(shared)
        mean, _ = run.pattern(0).retained_mass(q.to(device), k.to(device))
        outputs.append(mean.cpu())
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs[3], outputs[1], rtol=1e-4, atol=1e-4)
