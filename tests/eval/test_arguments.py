"""Arguments of lm-eval as policies, samplers and lengths."""

import pytest

import dlm_lens as dl
from dlm_lens.eval.arguments import Method

KNOWN = ["pretrained", "policy"]


@pytest.fixture(scope="module")
def spec(random_dlm):
    return random_dlm.spec


def method(policy="dense", sparsity=None, sampler=None, **parameters) -> Method:
    return Method.of(policy, sparsity, sampler, parameters, KNOWN)


def test_parameters_go_to_the_policy_and_the_sampler(spec):
    found = method("pulsecol", 0.6, refresh_count=4, block_length=8)
    assert found.policy == dl.PulseCol(sparsity=0.6, refresh_count=4)
    assert found.generation(spec, {}, 16).sampler == dl.LowConfidence(block_length=8)
    assert method("sparsed", 0.6).policy == dl.SparseD(select=0.4)
    assert method(dl.SparseD(block_size=16), 0.6).policy == dl.SparseD(select=0.4, block_size=16)
    both = method("fast-dllm", threshold=0.7)
    assert both.policy == dl.FastDLLM(threshold=0.7)
    assert both.generation(spec, {}, 64).sampler == dl.Threshold(threshold=0.7)


def test_a_sampler_is_the_one_named_or_the_models_own(spec):
    assert method().generation(spec, {}, 8).sampler == dl.LowConfidence(block_length=8)
    threshold = method(sampler="threshold", threshold=0.5).generation(spec, {}, 8)
    assert threshold.sampler == dl.Threshold(threshold=0.5)


@pytest.mark.parametrize(
    ("tokens", "block", "positions"), [(8, 8, 8), (32, 32, 32), (100, 32, 128), (33, 32, 64)]
)
def test_whole_blocks_are_generated(spec, tokens, block, positions):
    found = method().generation(spec, {"max_gen_toks": tokens}, None)
    assert (found.tokens, found.positions) == (tokens, positions)
    assert found.sampler == dl.LowConfidence(block_length=block)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_length_is_what_is_asked_for(spec, name):
    assert method().generation(spec, {name: 64}, None).tokens == 64
    assert method().generation(spec, {name: 64}, 16).tokens == 16
    assert method().generation(spec, {}, None).tokens == 256


def test_tokens_are_drawn_where_sampling_is_asked_for(spec):
    greedy = {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "until": "x"}
    found = method().generation(spec, greedy, 8)
    assert found.sampler == dl.LowConfidence(block_length=8)
    assert not found.random
    assert found.until == ("x",)
    for arguments in ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7, "until": ["x", ""]}):
        drawn = method().generation(spec, arguments, 8)
        assert drawn.sampler == dl.LowConfidence(block_length=8, temperature=0.7)
        assert drawn.random
    dream = method(sampler="dream").generation(spec, {"temperature": 0.7, "top_p": 0.9}, 8)
    assert dream.sampler == dl.DreamSampler(temperature=0.7, top_p=0.9)


def test_what_nothing_knows_is_an_error_that_says_what_there_is(spec):
    for wrong, message in [
        ({"policy": "pulse"}, "unknown policy 'pulse': choose from dense, pulsecol"),
        ({"sampler": "best"}, "unknown sampler 'best': choose from low-confidence"),
        (
            {"policy": "pulsecol", "sparsty": 0.5},
            "argument sparsty: there are pretrained, policy; pulsecol takes sparsity, group_size,.*block_length",
        ),
        (
            {"sampler": "dream", "block_length": 8},
            "argument block_length: .* samplers take alg, alg_temp, eps$",
        ),
        ({"sparsity": 0.5}, "needs a sparse policy"),
        ({"policy": dl.Dense(), "sparsity": 0.5}, "needs a policy that leaves out keys"),
    ]:
        with pytest.raises(ValueError, match=message):
            method(**wrong)
    with pytest.raises(ValueError, match="LowConfidence, the sampler, has no eps; it has block_length"):
        method(eps=0.1).generation(spec, {}, 8)
    with pytest.raises(ValueError, match="has no top_p"):
        method().generation(spec, {"do_sample": True, "top_p": 0.5}, 8)
    with pytest.raises(
        ValueError, match="unknown generation argument num_beams: there are until, max_gen_toks"
    ):
        method().generation(spec, {"num_beams": 4}, 8)
