"""Predictions at a given state: which step of a policy makes them, and what they are."""

from dataclasses import dataclass

import pytest
import torch

import dlm_lens as dl
from dlm_lens.attention import StepContext
from dlm_lens.measure.predict import mask_token, negative_log_likelihood, predict
from dlm_lens.policies import PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.dense import DenseRun

POLICIES = [dl.PulseCol(sparsity=0.5, group_size=4), dl.RandomColumns(sparsity=0.5, group_size=4)]


@pytest.fixture
def tokens(random_dlm):
    ids = torch.randint(1, 60, (2, 40))
    return ids.masked_fill(torch.rand(2, 40) < 0.4, random_dlm.spec.mask_id)


def test_without_a_policy_predictions_are_those_of_one_forward_pass(random_dlm, tokens):
    made = predict(random_dlm, tokens)
    assert made.kind == "dense"
    torch.testing.assert_close(made.logits, random_dlm.logits(tokens))
    part = predict(random_dlm, tokens, keep=range(8, 30))
    torch.testing.assert_close(part.logits, made.logits[:, 8:30])


@pytest.mark.parametrize(
    "policy",
    [
        dl.PulseCol(),
        dl.PulseCol(refresh_window=1.0),
        dl.RandomColumns(),
        dl.OracleColumns(),
        dl.StreamingLLM(),
        dl.SparseD(block_size=16),
        dl.SparseD(block_size=16, skip=0.75),
    ],
)
def test_predictions_are_made_in_a_sparse_step(random_dlm, tokens, policy):
    assert predict(random_dlm, tokens, policy).kind == "sparse"


def test_a_policy_that_is_never_sparse_says_so(random_dlm, tokens):
    made = predict(random_dlm, tokens, dl.SparseD(block_size=16, skip=1.0))
    assert made.kind == "dense"
    torch.testing.assert_close(made.logits, random_dlm.logits(tokens))


def test_the_pattern_is_chosen_at_the_state_itself(random_dlm, tokens):
    """Against a run whose refresh step is made at the same state, by hand."""
    policy = dl.PulseCol(sparsity=0.5, group_size=4)
    run = policy.start(RunInfo(random_dlm.spec, 0, 40, 2, 2, None, tokens.device, 0))
    for step in range(2):
        context = StepContext(step, run.plan(step, tokens), run)
        expected = random_dlm.logits(tokens, context=context)
    made = predict(random_dlm, tokens, policy).logits
    torch.testing.assert_close(made, expected)
    assert not torch.allclose(made, random_dlm.logits(tokens), atol=1e-3)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
def test_padding_changes_nothing(random_dlm, tokens, policy):
    """Where nothing is drawn at random a padded sample is predicted as if it were alone."""
    short = tokens[1:, 9:]
    padded = torch.cat([torch.full((1, 9), random_dlm.spec.pad_id), short], dim=1)
    batch, start = torch.cat([tokens[:1], padded]), torch.tensor([0, 9])
    made = predict(random_dlm, batch, policy, start=start).logits
    assert made.isfinite().all()
    if not isinstance(policy, dl.RandomColumns):
        torch.testing.assert_close(made[1:, 9:], predict(random_dlm, short, policy).logits)


def test_random_policies_follow_the_seed(random_dlm, tokens):
    first, again, other = (predict(random_dlm, tokens, POLICIES[1], seed=seed).logits for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@dataclass(frozen=True)
class FirstHalf(dl.Dense):
    """Computes half of the positions only."""

    def start(self, info: RunInfo) -> PolicyRun:
        class Run(DenseRun):
            def plan(self, step, tokens):
                return StepPlan(step, "dense", queries=torch.arange(info.length // 2)[None])

        return Run()


def test_what_cannot_be_predicted_is_refused(random_dlm, tokens):
    with pytest.raises(ValueError, match="only 20 of 40 positions"):
        predict(random_dlm, tokens, FirstHalf())
    causal = dl.random_model("ar", layers=1, hidden=32, vocab=64)
    with pytest.raises(ValueError, match="causal"):
        predict(causal, tokens, POLICIES[0])
    with pytest.raises(ValueError, match=r"no mask token: filling needs a diffusion model"):
        mask_token(causal, "filling")
    broken = dl.random_model("llada", layers=1, hidden=32, vocab=64)
    broken.model.lm_head.weight.data[0] = torch.nan
    with pytest.raises(dl.DlmLensError, match="NaN"):
        predict(broken, tokens)


def test_log_likelihoods_are_those_of_a_float64_softmax():
    logits, tokens = 5 * torch.randn(600, 30), torch.randint(30, (600,))
    expected = -logits.double().log_softmax(-1)[torch.arange(600), tokens]
    torch.testing.assert_close(negative_log_likelihood(logits, tokens), expected, rtol=1e-5, atol=1e-5)
