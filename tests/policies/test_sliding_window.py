"""Windows hold the budget's keys nearest to each group, and behind the first keys if asked."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.attention import StepContext
from dlm_lens.policies import RunInfo
from dlm_lens.policies.sliding_window import windows
from tests import reference_samplers as reference


@given(
    length=st.integers(1, 60),
    group_size=st.integers(1, 20),
    sparsity=st.floats(0, 0.97),
    sinks=st.integers(0, 8),
)
def test_keys_are_the_nearest_run_and_the_first(length, group_size, sparsity, sinks):
    columns, counts = windows(torch.empty(2, 3, length, 4), group_size, sparsity, sinks)
    budget = max(1, round((1 - sparsity) * length))
    assert columns.shape == (2, 3, -(-length // group_size), budget)
    assert (counts == budget).all()
    assert torch.equal(columns[0, 0], columns[1, 2])
    fixed = min(sinks, budget)
    for group, keys in enumerate(columns[0, 0].tolist()):
        assert keys[:fixed] == list(range(fixed))
        run = keys[fixed:]
        if not run:
            continue
        assert run == list(range(run[0], run[0] + len(run)))
        own = range(group * group_size, min((group + 1) * group_size, length))
        middle = (own[0] + own[-1]) / 2
        off = [abs(first + (len(run) - 1) / 2 - middle) for first in range(fixed, length - len(run) + 1)]
        assert run[0] - fixed in [at for at, distance in enumerate(off) if distance == min(off)]


@pytest.mark.parametrize("policy", [dl.SlidingWindow(0.0), dl.StreamingLLM(0.0)], ids=str)
def test_without_sparsity_they_equal_dense_token_for_token(policy):
    dlm = reference.lively(dl.random_model("llada", hidden=32, heads=4, kv_heads=2, vocab=64))
    dense, full = (
        dl.denoise(dlm, torch.arange(3, 40), gen_length=16, policy=p, progress=False)
        for p in (dl.Dense(), policy)
    )
    assert torch.equal(dense.tokens, full.tokens)


def test_a_padded_sample_has_the_windows_of_itself_alone():
    policy = dl.StreamingLLM(0.7, sinks=2, group_size=8)
    spec = dl.random_model("llada", hidden=32, heads=4, vocab=64, layers=1).spec
    q, k, v = torch.randn(3, 2, 4, 37, 8)
    start = torch.tensor([0, 20])
    info = RunInfo(spec, 21, 16, 4, 2, start, torch.device("cpu"), 0)
    run = policy.start(info)
    out = run.attend(0, q, k, v, StepContext(0, run.plan(0, torch.zeros(2, 37)), run, start=start))
    alone = policy.start(info)
    own = [t[1:, :, 20:] for t in (q, k, v)]
    expected = alone.attend(0, *own, StepContext(0, alone.plan(0, torch.zeros(1, 17)), alone))
    torch.testing.assert_close(out[1:, :, 20:], expected)
    assert not out[1, :, :20].any()


@pytest.mark.parametrize("policy", [dl.SlidingWindow, dl.StreamingLLM])
def test_refuse_what_cannot_work(policy):
    with pytest.raises(ValueError, match=r"sparsity=1\.0 must be in"):
        policy(sparsity=1.0)
    twin = dl.random_model("ar", hidden=32, heads=4, vocab=64)
    with pytest.raises(ValueError, match="chooses keys on both sides, but 'random-ar' is causal"):
        dl.denoise(twin, torch.arange(5), gen_length=4, policy=policy(), progress=False)


def test_labels_and_parameters():
    assert (dl.SlidingWindow(0.5).label, dl.SlidingWindow(0.5).density) == ("Sliding window 50%", 0.5)
    assert dl.StreamingLLM(0.9).label == "StreamingLLM 90%"
    with pytest.raises(ValueError, match="sinks=-1 must not be negative"):
        dl.StreamingLLM(sinks=-1)
