"""Oracle columns are those that PulseCol would choose at this very step."""

import pytest
import torch

import dlm_lens as dl
from dlm_lens.attention import StepContext
from dlm_lens.policies import RunInfo
from tests import reference_samplers as reference


def attend(policy, step, q, k, v, start=None):
    """The output of one step of a run that only that step has, and the run."""
    spec = dl.random_model("llada", hidden=32, heads=4, kv_heads=2, vocab=64, layers=1).spec
    run = policy.start(RunInfo(spec, 21, 16, 10, q.shape[0], start, torch.device("cpu"), 0))
    out = run.attend(0, q, k, v, StepContext(step, run.plan(step, torch.zeros(1, 37)), run, start=start))
    return out, run


@pytest.mark.parametrize("start", [None, torch.tensor([0, 13])], ids=["whole", "padded"])
def test_every_step_attends_to_its_own_best_columns(start):
    for seed in range(2):
        random = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(2, heads, 37, 8, generator=random) for heads in (4, 2, 2))
        _, pulse = attend(dl.PulseCol(0.7, group_size=8, refresh_count=1), 0, q, k, v, start)
        pulse.plan(1, torch.zeros(2, 37))
        out, oracle = attend(dl.OracleColumns(0.7, group_size=8), seed, q, k, v, start)
        for own, expected in zip(oracle.pattern(0).lists, pulse.pattern(0).lists, strict=True):
            assert torch.equal(own.columns, expected.columns)
        torch.testing.assert_close(out, pulse.pattern(0).attend(q, k, v))


def test_keeps_at_least_as_much_as_any_other_choice(random_dlm):
    prompt = torch.arange(3, 60)
    kept = {}
    for policy in (dl.OracleColumns(0.8, 8), dl.SlidingWindow(0.8, 8), dl.RandomColumns(0.8, 8)):
        trace = dl.capture(random_dlm, prompt, gen_length=8, steps=2, policy=policy, progress=False)
        kept[policy.label] = float(trace["retained_mass"].isel(step=0, layer=0).mean())
    assert kept["Oracle columns 80%"] == max(kept.values())


def test_without_sparsity_it_equals_dense_token_for_token():
    dlm = reference.lively(dl.random_model("dream", hidden=32, heads=4, kv_heads=2, vocab=64))
    dense, full = (
        dl.denoise(dlm, torch.arange(3, 40), gen_length=16, policy=policy, progress=False)
        for policy in (dl.Dense(), dl.OracleColumns(0.0))
    )
    assert torch.equal(dense.tokens, full.tokens)


def test_refuses_what_cannot_work():
    with pytest.raises(ValueError, match=r"sparsity=1\.0 must be in"):
        dl.OracleColumns(1.0)
    twin = dl.random_model("ar", hidden=32, heads=4, vocab=64)
    with pytest.raises(ValueError, match="chooses keys on both sides, but 'random-ar' is causal"):
        dl.denoise(twin, torch.arange(5), gen_length=4, policy=dl.OracleColumns(), progress=False)
    assert (dl.OracleColumns(0.5).label, dl.OracleColumns(0.5).density) == ("Oracle columns 50%", 0.5)
