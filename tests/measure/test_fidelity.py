import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.attention import StepContext
from dlm_lens.measure import fidelity
from dlm_lens.policies import RunInfo

PROMPT = torch.arange(1, 13)


@given(sparsity=st.sampled_from([0.0, 0.5, 0.9]), steps=st.sampled_from([2, 4, 8]))
def test_rows_cover_the_dense_run(random_dlm, sparsity, steps):
    policy = dl.PulseCol(sparsity=sparsity, group_size=4)
    result = fidelity(random_dlm, PROMPT, policy, gen_length=8, steps=steps, progress=False)
    assert list(result.steps["step"]) == list(range(steps))
    assert list(result.steps["masked"]) == [8 - 8 // steps * step for step in range(steps)]
    assert result.retained_mass.shape == (steps, 2, 4)
    assert result.kl >= 0
    assert 0 <= result.agreement <= 1
    assert 0 < result.retained_worst_layer <= result.retained_mean <= 1 + 1e-5


def test_refresh_steps_are_exact_and_leave_no_retained_mass(random_dlm):
    policy = dl.PulseCol(sparsity=0.8, group_size=4)
    result = fidelity(random_dlm, PROMPT, policy, gen_length=8, progress=False)
    refresh = (result.steps["kind"] == "refresh").to_numpy()
    assert result.steps.loc[refresh, "kl"].max() == pytest.approx(0, abs=1e-6)
    assert result.steps.loc[~refresh, "kl"].min() > 0
    assert np.isnan(result.retained_mass.values[refresh]).all()
    assert np.isfinite(result.retained_mass.values[~refresh]).all()


def test_kl_is_that_of_the_two_distributions_at_every_dense_state(random_dlm):
    """Against states, logits and divergences made one by one."""
    policy = dl.RandomColumns(sparsity=0.6, group_size=4)
    dense = dl.denoise(random_dlm, PROMPT, gen_length=8, steps=4, history=True, progress=False)
    info = RunInfo(random_dlm.spec, 12, 8, 4, 1, None, random_dlm.device, 0)
    run, expected = policy.start(info), []
    for step, tokens in enumerate(dense.history):
        context = StepContext(step, run.plan(step, tokens), run)
        p = random_dlm.logits(tokens).double().log_softmax(-1)
        q = random_dlm.logits(tokens, context=context).double().log_softmax(-1)
        masked = tokens == random_dlm.spec.mask_id
        expected.append((p.exp() * (p - q)).sum(-1)[masked].mean().item())
    result = fidelity(random_dlm, PROMPT, policy, gen_length=8, steps=4, progress=False)
    assert result.steps["kl"].values == pytest.approx(expected, rel=1e-4)
    assert result.kl == pytest.approx(np.average(expected, weights=[8, 6, 4, 2]), rel=1e-4)


def test_walking_leaves_the_dense_run_as_it_is(random_dlm):
    """Padding, a random sampler and the policy beside it change no token of the dense run."""
    batch = torch.stack([PROMPT, PROMPT.flip(0)])
    sampler = dl.LowConfidence(block_length=4, temperature=1.0)
    settings = {"gen_length": 8, "sampler": sampler, "seed": 3, "progress": False}
    dense = fidelity(random_dlm, batch, dl.Dense(), **settings)
    assert dense.kl == 0
    assert dense.agreement == 1
    assert dense.retained_mean == 1
    once = fidelity(random_dlm, batch, dl.RandomColumns(sparsity=0.5), **settings)
    again = fidelity(random_dlm, batch, dl.RandomColumns(sparsity=0.5), **settings)
    assert once.steps.equals(again.steps)


def test_report_names_the_worst_layer(random_dlm):
    result = fidelity(random_dlm, PROMPT, dl.RandomColumns(sparsity=0.5), gen_length=8, progress=False)
    worst = int(result.retained_by_layer.values.argmin())
    assert f"worst layer ({worst})" in repr(result)
    assert "nats" in repr(result)
