"""Fast-dLLM against a reading of its definition in which everything is computed and stale keys are put in place."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import dlm_lens as dl
from dlm_lens.policies import PolicyRun, StepPlan
from tests.reference_samplers import never_masking

PROMPT = torch.tensor([3, 17, 42, 8, 25, 11, 60, 5, 9])


@pytest.fixture(scope="module", params=["llada", "dream"])
def dlm(request):
    shape = {"kv_heads": 2} if request.param == "dream" else {}
    size = {"layers": 2, "hidden": 32, "heads": 4, "vocab": 64, "device": "cpu"}
    return never_masking(dl.random_model(request.param, **size, **shape))


def tokens_of(dlm, policy, prompt=PROMPT, gen_length=24, **options):
    return dl.denoise(dlm, prompt, policy=policy, gen_length=gen_length, progress=False, **options).tokens


class Everywhere(PolicyRun):
    """The definition, for one sample: all positions computed, but outside the block keys and values are stale."""

    def __init__(self, policy, info):
        self.policy, self.info, self.block, self.kept = policy, info, None, {}

    def plan(self, step, tokens):
        size, prompt, info = self.policy.block, self.info.prompt_length, self.info
        masked = [i for i in range(prompt, info.length) if tokens[0, i] == info.spec.mask_id]
        block = (masked[0] - prompt) // size
        everything = block != self.block or step == info.steps - 1
        self.block = block
        begin, end = prompt + block * size, prompt + (block + 1) * size
        first = begin - info.spec.logit_shift
        self.fresh = torch.tensor(
            [everything or (i >= first and (i < end or not self.policy.dual)) for i in range(info.length)]
        )
        inside = [i for i in masked if i < end or step == info.steps - 1]
        return StepPlan(step, "sparse", candidates=torch.tensor([inside]))

    def attend(self, layer, q, k, v, context):
        fresh = self.fresh[None, None, :, None]
        old_k, old_v = self.kept.get(layer, (k, v))
        k, v = self.kept[layer] = torch.where(fresh, k, old_k), torch.where(fresh, v, old_v)
        return scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


@pytest.mark.parametrize("dual", [False, True], ids=["prefix", "dual"])
@pytest.mark.parametrize("threshold", [0.05, 0.9])
@pytest.mark.parametrize("steps", [24, 5])
def test_equals_the_definition(dlm, dual, threshold, steps, monkeypatch):
    policy = dl.FastDLLM(block=8, dual=dual, threshold=threshold)
    out = tokens_of(dlm, policy, steps=steps)
    assert not out.eq(dlm.spec.mask_id).any()
    monkeypatch.setattr(dl.FastDLLM, "start", lambda self, info: Everywhere(self, info))
    assert torch.equal(out, tokens_of(dlm, policy, steps=steps))


@pytest.mark.parametrize("dual", [False, True], ids=["prefix", "dual"])
def test_blocks_of_one_are_dense(dlm, dual):
    """Every step begins a block, so that nothing stale is ever attended to."""
    policy = dl.FastDLLM(block=1, dual=dual, threshold=None)
    sampler = dl.LowConfidence(block_length=1)
    dense = tokens_of(dlm, dl.Dense(), sampler=sampler)
    assert torch.equal(tokens_of(dlm, policy, sampler=sampler), dense)


def test_a_block_that_is_all_there_is_differs_from_dense_by_stale_keys_only_outside(dlm):
    """With one block and a prefix cache only the prompt's keys are stale."""
    policy = dl.FastDLLM(block=24, dual=False)
    out = dl.denoise(dlm, PROMPT, policy=policy, gen_length=24, progress=False)
    assert out.timings["kind"].tolist()[0] == "refresh"
    assert set(out.timings["kind"][1:-1]) <= {"cached"}


@pytest.mark.parametrize("threshold", [0.05, 0.2])
@pytest.mark.parametrize("dual", [False, True], ids=["prefix", "dual"])
def test_a_batch_equals_runs_of_one(dlm, dual, threshold):
    """At these thresholds rows move on at different steps."""
    policy = dl.FastDLLM(block=8, dual=dual, threshold=threshold)
    prompts = [PROMPT, PROMPT[:4], PROMPT[2:]]
    together = dl.denoise(dlm, prompts, policy=policy, gen_length=24, progress=False)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together.tokens[row, -24:], tokens_of(dlm, policy, prompt)[0, -24:])


def test_it_brings_its_own_decoding(dlm):
    out = dl.denoise(dlm, PROMPT, policy=dl.FastDLLM(block=8, threshold=0.7), gen_length=24, progress=False)
    assert out.sampler == dl.Threshold(threshold=0.7, block_length=8)
    assert dl.FastDLLM(threshold=None).sampler is None
    given = dl.LowConfidence(block_length=8)
    out = dl.denoise(dlm, PROMPT, policy=dl.FastDLLM(block=8), sampler=given, gen_length=24, progress=False)
    assert out.sampler == given
    assert not out.tokens.eq(dlm.spec.mask_id).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "block=0 must be at least 1"),
        ({"threshold": 0.0}, "threshold=0.0 must be in"),
        ({"threshold": 1.5}, "threshold=1.5 must be in"),
    ],
)
def test_refuses_impossible_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        dl.FastDLLM(**options)


def test_labels():
    assert dl.FastDLLM().label == "Fast-dLLM dual, τ 0.9"
    assert dl.FastDLLM(dual=False, threshold=None).label == "Fast-dLLM prefix"


def test_refuses_causal_models():
    twin = dl.random_model("ar", hidden=32, heads=4, vocab=64)
    with pytest.raises(ValueError, match="is causal"):
        dl.denoise(twin, PROMPT, policy=dl.FastDLLM(threshold=None), gen_length=4, progress=False)
