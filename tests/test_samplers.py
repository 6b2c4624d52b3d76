"""Every sampler against a plain transcription of its definition, token for token."""

import pytest
import torch

import dlm_lens as dl
from dlm_lens.samplers import Candidates
from tests import reference_samplers as reference

PROMPT = torch.tensor([3, 17, 42, 8, 25, 11, 60])


@pytest.fixture(scope="module")
def llada():
    return reference.lively(dl.random_model("llada", hidden=32, heads=4, vocab=64))


@pytest.fixture(scope="module")
def dream():
    return reference.lively(dl.random_model("dream", hidden=32, heads=4, kv_heads=2, vocab=64))


def tokens_of(dlm, **options):
    return dl.denoise(dlm, PROMPT, progress=False, **options).tokens[0]


class TestLowConfidence:
    @pytest.mark.parametrize(
        ("gen_length", "steps", "block_length"),
        [(16, 16, 16), (16, 8, 8), (24, 9, 8), (12, 2, 12), (12, 6, 4), (8, 16, 4)],
        ids=["one-block", "two-a-step", "remainder", "few-steps", "blocks", "more-steps-than-tokens"],
    )
    def test_equals_the_definition(self, llada, gen_length, steps, block_length):
        sampler = dl.LowConfidence(block_length=block_length)
        expected = reference.low_confidence(
            llada, PROMPT, gen_length=gen_length, steps=steps, block_length=block_length
        )
        assert torch.equal(tokens_of(llada, gen_length=gen_length, steps=steps, sampler=sampler), expected)

    @pytest.mark.parametrize("options", [{"temperature": 0.8}, {"remasking": "random"}], ids=str)
    def test_equals_the_definition_given_the_same_draws(self, llada, options):
        expected = reference.low_confidence(
            llada, PROMPT, gen_length=16, steps=8, block_length=8, seed=5, **options
        )
        sampler = dl.LowConfidence(block_length=8, **options)
        assert torch.equal(tokens_of(llada, gen_length=16, steps=8, sampler=sampler, seed=5), expected)
        assert not torch.equal(tokens_of(llada, gen_length=16, steps=8, sampler=sampler, seed=6), expected)

    def test_guidance_masks_the_prompt(self, llada):
        expected = reference.low_confidence(llada, PROMPT, gen_length=16, steps=8, block_length=8, scale=1.5)
        sampler = dl.LowConfidence(block_length=8)
        out = tokens_of(llada, gen_length=16, steps=8, sampler=sampler, cfg_scale=1.5)
        assert torch.equal(out, expected)
        assert not torch.equal(out, tokens_of(llada, gen_length=16, steps=8, sampler=sampler))

    def test_confident_positions_are_told_apart_where_float32_would_tie(self):
        logits = torch.zeros(1, 2, 4)
        logits[0, :, 1] = torch.tensor([30.0, 40.0])
        at = Candidates.everywhere(0, 2, torch.ones(1, 2, dtype=torch.bool), logits, torch.Generator())
        assert dl.LowConfidence(block_length=2).commit(at).where.tolist() == [[False, True]]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"block_length": 0}, "block_length=0 must be at least 1"),
            ({"remasking": "best"}, "remasking='best' is unknown; choose one of 'low_confidence', 'random'"),
            ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ],
    )
    def test_refuses_impossible_parameters(self, options, message):
        with pytest.raises(ValueError, match=message):
            dl.LowConfidence(**options)


class TestThreshold:
    @pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("block_length", [8, 5, 32])
    def test_equals_the_definition(self, llada, quantile, block_length):
        """Random weights are never confident, so the threshold is put among the confidences there are."""
        first = reference.predictions(llada, reference.fill(llada, PROMPT, 16)).softmax(-1).amax(-1)
        threshold = float(first[len(PROMPT) :].quantile(quantile)) * 0.999
        expected, steps = reference.threshold(
            llada, PROMPT, gen_length=16, block_length=block_length, threshold=threshold
        )
        sampler = dl.Threshold(threshold=threshold, block_length=block_length)
        out = dl.denoise(llada, PROMPT, gen_length=16, sampler=sampler, progress=False)
        assert torch.equal(out.tokens[0], expected)
        assert len(out.timings) == steps

    def test_the_last_step_commits_what_is_left(self, llada):
        out = dl.denoise(llada, PROMPT, gen_length=16, steps=3, sampler=dl.Threshold(1.0), progress=False)
        assert out.timings["committed"].tolist() == [1, 1, 14]

    def test_refuses_impossible_parameters(self):
        with pytest.raises(ValueError, match=r"threshold=1\.5 must"):
            dl.Threshold(1.5)


class TestDreamSampler:
    @pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy", "origin"])
    @pytest.mark.parametrize("steps", [1, 5, 16, 20])
    def test_equals_the_definition(self, dream, alg, steps):
        expected = reference.dream(dream, PROMPT, gen_length=16, steps=steps, alg=alg)
        assert torch.equal(
            tokens_of(dream, gen_length=16, steps=steps, sampler=dl.DreamSampler(alg=alg)), expected
        )

    @pytest.mark.parametrize("cut", [{"top_p": 0.3}, {"top_k": 5}, {"top_p": 0.5, "top_k": 9}], ids=str)
    @pytest.mark.parametrize("alg", ["topk_margin", "entropy"])
    def test_confidence_is_that_of_the_cut_distribution(self, dream, alg, cut):
        expected = reference.dream(dream, PROMPT, gen_length=16, steps=8, alg=alg, **cut)
        out = tokens_of(dream, gen_length=16, steps=8, sampler=dl.DreamSampler(alg=alg, **cut))
        assert torch.equal(out, expected)

    def test_logits_are_read_one_position_to_the_left(self, dream):
        out = dl.denoise(dream, PROMPT, gen_length=1, steps=1, progress=False)
        logits = dream.model(input_ids=reference.fill(dream, PROMPT, 1)[None]).logits[0]
        assert out.tokens[0, -1] == logits[-2].argmax()

    def test_tokens_are_drawn_from_the_nucleus(self):
        """Half the mass is on token 2 and a quarter on token 0: nothing else is within 0.6."""
        probability = torch.tensor([0.25, 0.15, 0.5, 0.1])
        logits = probability.log().expand(1, 4000, 4)
        open_positions = torch.ones(1, 4000, dtype=torch.bool)
        at = Candidates.everywhere(0, 1, open_positions, logits, torch.Generator().manual_seed(0))
        drawn = dl.DreamSampler(temperature=1.0, top_p=0.6).commit(at).tokens[0]
        torch.testing.assert_close(
            drawn.bincount(minlength=4) / 4000, torch.tensor([1 / 3, 0, 2 / 3, 0]), atol=0.03, rtol=0
        )

    def test_positions_are_drawn_with_alg_temp(self):
        """One of three positions is to be committed, whose confidences are 0.9, 0.5 and 0.5."""
        logits = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]]]).log().expand(4000, 3, 2)
        at = Candidates.everywhere(
            0, 2, torch.ones(4000, 3, dtype=torch.bool), logits, torch.Generator().manual_seed(0)
        )
        where = dl.DreamSampler(alg_temp=0.5).commit(at).where
        assert (where.sum(-1) == 1).all()
        expected = torch.tensor([0.9, 0.5, 0.5]).div(0.5).softmax(-1)
        torch.testing.assert_close(where.float().mean(0), expected, atol=0.03, rtol=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"alg": "best"}, "alg='best' is unknown; choose one of 'maskgit_plus'"),
            ({"top_p": 0.0}, "top_p=0.0 must be in"),
            ({"top_k": 0}, "top_k=0 must be at least 1"),
            ({"alg_temp": -1.0}, "alg_temp=-1.0 must not be negative"),
            ({"eps": 1.0}, "eps=1.0 must be between 0 and 1"),
        ],
    )
    def test_refuses_impossible_parameters(self, options, message):
        with pytest.raises(ValueError, match=message):
            dl.DreamSampler(**options)


class TestLeftToRight:
    def test_equals_greedy_generation(self):
        twin = reference.lively(dl.random_model("ar", hidden=32, heads=4, vocab=64))
        expected = reference.left_to_right(twin, PROMPT, gen_length=12)
        assert torch.equal(tokens_of(twin, gen_length=12), expected)

    def test_draws_at_a_temperature(self):
        logits = torch.tensor([0.7, 0.3]).log().mul(2).expand(4000, 1, 2)  # at temperature 2: 0.7 and 0.3
        at = Candidates.everywhere(
            0, 1, torch.ones(4000, 1, dtype=torch.bool), logits, torch.Generator().manual_seed(0)
        )
        drawn = dl.LeftToRight(temperature=2.0).commit(at).tokens
        assert drawn.double().mean() == pytest.approx(0.3, abs=0.03)
