"""Window-Diffusion against a reading of its definition in which nothing is kept by slots and nothing is batched."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import dlm_lens as dl
from dlm_lens.attention import StepContext
from dlm_lens.policies import PolicyRun, RunInfo, StepPlan
from tests.reference_samplers import never_masking

PROMPT = torch.tensor([3, 17, 42, 8, 25, 11, 60, 5, 9])


@pytest.fixture(scope="module", params=["llada", "dream"])
def dlm(request):
    shape = {"kv_heads": 2} if request.param == "dream" else {}
    size = {"layers": 2, "hidden": 32, "heads": 4, "vocab": 64, "device": "cpu"}
    return never_masking(dl.random_model(request.param, **size, **shape))


def tokens_of(dlm, policy, prompt=PROMPT, gen_length=24, steps=24, **options):
    return dl.denoise(
        dlm, prompt, policy=policy, gen_length=gen_length, steps=steps, progress=False, **options
    ).tokens


class Everywhere(PolicyRun):
    """The definition, for one sample: dense attention at every position, but keys and values of all that is not
    computed are those of the last step that computed them, and what is not attended is masked out."""

    def __init__(self, policy, info):
        self.policy, self.info, self.kept = policy, info, {}
        self.began, self.attended, self.window = None, set(), set()

    def plan(self, step, tokens):
        policy, info = self.policy, self.info
        masked = [i for i in range(info.prompt_length, info.length) if tokens[0, i] == info.spec.mask_id]
        last = step == info.steps - 1
        active = set(masked if last else masked[: policy.active])
        if self.began is None or step - self.began == policy.refresh_cycle or not active <= self.window:
            self.began, self.window = step, set(masked if last else masked[: policy.window])
            self.attended = self.computed = {
                i for i in range(info.length) if i not in masked or i in self.window
            }
        else:
            decided = self.window - set(masked)
            left = {i - 1 for i in active} if info.spec.logit_shift else set()
            self.computed = active | decided | left
        self.active = active
        return StepPlan(step, "sparse", candidates=torch.tensor([sorted(active)]))

    def attend(self, layer, q, k, v, context):
        fresh = torch.tensor([i in self.computed for i in range(k.shape[2])])[None, None, :, None]
        old_k, old_v = self.kept.get(layer, (k, v))
        k, v = self.kept[layer] = torch.where(fresh, k, old_k), torch.where(fresh, v, old_v)
        seen = torch.tensor([i in self.attended for i in range(k.shape[2])])
        return scaled_dot_product_attention(
            q, k, v, attn_mask=seen[None, None, None], enable_gqa=q.shape[1] != k.shape[1]
        )


@pytest.mark.parametrize(
    "policy",
    [
        dl.WindowDiffusion(active=4, window=10, refresh_cycle=5, early_stop=False),
        dl.WindowDiffusion(active=2, window=3, refresh_cycle=32, early_stop=False),
        dl.WindowDiffusion(active=5, window=50, refresh_cycle=7, early_stop=False),
    ],
    ids=["phases", "window-used-up", "no-far-field"],
)
@pytest.mark.parametrize(
    "sampler", [dl.LowConfidence(block_length=24), dl.DreamSampler()], ids=["low", "dream"]
)
def test_equals_the_definition(dlm, policy, sampler, monkeypatch):
    out = tokens_of(dlm, policy, sampler=sampler)
    monkeypatch.setattr(dl.WindowDiffusion, "start", lambda self, info: Everywhere(self, info))
    assert torch.equal(out, tokens_of(dlm, policy, sampler=sampler))


def test_a_window_over_everything_refreshed_at_every_step_is_dense(dlm):
    policy = dl.WindowDiffusion(active=24, window=24, refresh_cycle=1, early_stop=False)
    assert torch.equal(tokens_of(dlm, policy, steps=12), tokens_of(dlm, dl.Dense(), steps=12))


def test_it_differs_from_dense_otherwise(dlm):
    policy = dl.WindowDiffusion(active=4, window=6, refresh_cycle=8, early_stop=False)
    assert not torch.equal(tokens_of(dlm, policy), tokens_of(dlm, dl.Dense()))


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize(
    "sampler", [None, dl.Threshold(threshold=0.05, block_length=8)], ids=["own", "threshold"]
)
def test_a_batch_equals_runs_of_one(dlm, early_stop, sampler):
    policy = dl.WindowDiffusion(active=4, window=7, refresh_cycle=5, early_stop=early_stop)
    prompts = [PROMPT, PROMPT[:4], PROMPT[2:]]
    together = dl.denoise(dlm, prompts, policy=policy, sampler=sampler, gen_length=24, progress=False)
    for row, prompt in enumerate(prompts):
        alone = dl.denoise(dlm, prompt, policy=policy, sampler=sampler, gen_length=24, progress=False)
        assert torch.equal(together.tokens[row, -24:], alone.tokens[0, -24:])


def test_steps_compute_the_active_the_newly_decided_and_no_far_field(dlm):
    policy = dl.WindowDiffusion(active=4, window=8, refresh_cycle=6, early_stop=False)
    info = RunInfo(dlm.spec, 5, 30, 30, 1, None, torch.device("cpu"), 0)
    run = policy.start(info)
    tokens = torch.full((1, 35), dlm.spec.mask_id)
    tokens[:, :5] = 1
    first = run.plan(0, tokens)
    assert first.kind == "refresh"
    assert first.queries.tolist() == [list(range(13))]  # the prompt and the window of 8
    assert first.candidates.tolist() == [[5, 6, 7, 8]]
    tokens[0, 6] = 1
    second = run.plan(1, tokens)
    assert second.kind == "cached"
    computed = {5, 6, 7, 8, 9} | ({4} if dlm.spec.logit_shift else set())
    assert set(second.queries[0].tolist()) - {35} == computed
    assert set(second.candidates[0].tolist()) - {35} == {5, 7, 8, 9}
    assert second.keys == 13
    assert [run.plan(step, tokens).kind for step in range(2, 8)] == ["cached"] * 4 + ["refresh", "cached"]


def test_what_follows_an_end_of_text_is_given_up(dlm, monkeypatch):
    """The model is made to write end-of-text at the tenth position of the generation."""
    end = len(PROMPT) + 10
    plain = type(dlm).logits

    def logits(self, tokens, *, keep=None, **options):
        out = plain(self, tokens, keep=keep, **options)
        where = torch.tensor([list(keep)]) if isinstance(keep, range) else keep
        out[..., self.spec.eos_id] = torch.where(where == end, 1e4, -1e4).to(out)
        return out

    monkeypatch.setattr(type(dlm), "logits", logits)
    policy = dl.WindowDiffusion(active=4, window=8, refresh_cycle=6)
    options = {"sampler": dl.LowConfidence(block_length=40), "gen_length": 40, "progress": False}
    out = dl.denoise(dlm, PROMPT, policy=policy, **options)
    assert len(out.timings) < 20
    assert (out.tokens[0, end:] == dlm.spec.eos_id).all()
    assert (out.committed_at[0, len(PROMPT) : end + 1] >= 0).all()
    assert (out.committed_at[0, end + 5 :] == -2).all()
    whole = dl.WindowDiffusion(active=4, window=8, refresh_cycle=6, early_stop=False)
    longer = dl.denoise(dlm, PROMPT, policy=whole, **options)
    assert len(longer.timings) == 40
    assert (longer.committed_at[0, len(PROMPT) :] >= 0).all()


def test_guidance_keeps_both_passes(dlm):
    dense = tokens_of(dlm, dl.Dense(), cfg_scale=1.0)
    policy = dl.WindowDiffusion(active=24, window=24, refresh_cycle=1, early_stop=False)
    assert torch.equal(tokens_of(dlm, policy, cfg_scale=1.0), dense)


def test_recording_part_of_the_positions_is_refused(dlm):
    with pytest.raises(dl.TraceError, match="computes part of the positions"):
        dl.capture(dlm, PROMPT, policy=dl.WindowDiffusion(active=4, window=8), gen_length=24, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active": 0}, "active=0 must be at least 1"),
        ({"active": 8, "window": 4}, "window=4 must hold the active=8"),
        ({"refresh_cycle": 0}, "refresh_cycle=0 must be at least 1"),
    ],
)
def test_refuses_impossible_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        dl.WindowDiffusion(**options)


def test_refuses_more_tokens_a_step_than_are_active(dlm):
    message = "24 tokens in 4 steps are 6 a step, but only active=4 .* use active=6 or at least 6 steps"
    with pytest.raises(ValueError, match=message):
        tokens_of(dlm, dl.WindowDiffusion(active=4), steps=4)


def test_refuses_causal_models():
    twin = dl.random_model("ar", hidden=32, heads=4, vocab=64)
    with pytest.raises(ValueError, match="is causal"):
        dl.denoise(twin, PROMPT, policy=dl.WindowDiffusion(), gen_length=4, progress=False)


def test_presets_and_labels():
    assert dl.WindowDiffusion.llada() == dl.WindowDiffusion(active=16, window=64, refresh_cycle=32)
    assert dl.WindowDiffusion.dream(early_stop=False).label == "Window-Diffusion 16/128, no early stop"


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(
    "policy",
    [
        dl.WindowDiffusion(active=4, window=10, refresh_cycle=9, early_stop=False),
        dl.FastDLLM(block=8, threshold=0.05),
        dl.FastDLLM(block=8, dual=False, threshold=0.05),
    ],
    ids=lambda policy: policy.label,
)
def test_graphs_give_the_same_tokens(family, policy):
    """On a GPU cached steps are replayed from graphs; on the CPU every step runs as it is written."""
    model = never_masking(dl.random_model(family, layers=2, hidden=64, heads=4, vocab=64, device="cpu"))
    prompts = [PROMPT, PROMPT[:4], PROMPT[2:]]
    options = {"policy": policy, "gen_length": 32, "progress": False}
    expected = dl.denoise(model, prompts, **options).tokens
    assert torch.equal(dl.denoise(model.to("cuda"), prompts, **options).tokens, expected)
    assert torch.equal(dl.denoise(model.compile(), prompts, **options).tokens, expected)


def test_context_is_all_that_attention_reads(dlm):
    """A graph is replayed with new plans: attention may read them only from tensors."""
    policy = dl.WindowDiffusion(active=4, window=8, refresh_cycle=6, early_stop=False)
    run = policy.start(RunInfo(dlm.spec, 5, 30, 30, 1, None, torch.device("cpu"), 0))
    tokens = torch.full((1, 35), dlm.spec.mask_id)
    tokens[:, :5] = 1
    refresh, cached = run.plan(0, tokens), run.plan(1, tokens)
    run.plan(6, tokens)  # the run has moved on; the plan of step 1 still says everything
    k = torch.randn(1, dlm.spec.kv_heads, 13, 8)
    run.attend(0, torch.randn(1, 4, 13, 8), k, k, StepContext(0, refresh, run))
    q, new = torch.randn(1, 4, 16, 8), torch.randn(1, dlm.spec.kv_heads, 16, 8)
    out = run.attend(0, q, new, new, StepContext(1, cached, run))
    there = cached.slots[0] < 35
    kept = k.clone()
    kept[:, :, cached.slots[0][there]] = new[:, :, there]
    expected = scaled_dot_product_attention(q, kept, kept, enable_gqa=dlm.spec.kv_heads != 4)
    torch.testing.assert_close(out, expected)
