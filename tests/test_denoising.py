"""The loop: batches, records of what happened, interruption, and what is refused before the first step."""

import copy
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens.denoising_loop import UNDECIDED
from dlm_lens.errors import DlmLensError
from tests import reference_samplers as reference

PROMPTS = [
    torch.tensor([3, 17, 42, 8, 25, 11, 60, 5, 9, 33, 21]),
    torch.tensor([7, 13]),
    torch.tensor([50, 2, 2, 19, 40, 44]),
]


@pytest.fixture(scope="module")
def llada():
    return reference.lively(dl.random_model("llada", hidden=32, heads=4, kv_heads=2, vocab=64))


@pytest.fixture(scope="module")
def dream():
    return reference.lively(dl.random_model("dream", hidden=32, heads=4, kv_heads=2, vocab=64))


@pytest.fixture(scope="module")
def twin():
    return reference.lively(dl.random_model("ar", hidden=32, heads=4, kv_heads=2, vocab=64))


def quiet(dlm, prompt, **options):
    return dl.denoise(dlm, prompt, progress=False, **options)


class Recorder:
    """Notes every call; raises KeyboardInterrupt in ``where`` of step ``at``."""

    def __init__(self, where=None, at=None):
        self.calls, self.where, self.at, self.ends = [], where, at, []

    def note(self, name, step):
        self.calls.append((name, step))
        if (name, step) == (self.where, self.at):
            raise KeyboardInterrupt

    def begin_step(self, step, tokens, plan):
        self.note("begin", step)

    def observe(self, layer, q, k, context):
        self.shapes = q.shape, k.shape
        self.note("observe", context.step)

    def end_step(self, step, confidence, committed, kind, ms, run):
        self.note("end", step)
        self.ends.append((confidence, committed, kind, ms))


class TestBatches:
    """Prompts of different lengths together give what each gives alone, token for token."""

    @pytest.mark.parametrize(
        ("family", "options"),
        [
            ("llada", {"sampler": dl.LowConfidence(block_length=8), "steps": 8}),
            ("llada", {"sampler": dl.LowConfidence(block_length=8), "steps": 8, "cfg_scale": 1.0}),
            ("llada", {"sampler": dl.Threshold(threshold=0.5, block_length=8)}),
            ("llada", {"policy": dl.PulseCol(0.5, group_size=4, refresh_count=2)}),
            ("llada", {"policy": dl.PulseCol(0.5, group_size=4, refresh_count=2), "cfg_scale": 1.0}),
            ("dream", {"steps": 7}),
            ("dream", {"sampler": dl.DreamSampler("entropy"), "policy": dl.PulseCol(0.7, group_size=8)}),
            ("twin", {}),
        ],
        ids=[
            "blocks",
            "guided",
            "threshold",
            "pulsecol",
            "pulsecol-guided",
            "dream",
            "dream-pulsecol",
            "twin",
        ],
    )
    def test_equal_single_runs(self, family, options, request):
        dlm = request.getfixturevalue(family)
        together = quiet(dlm, PROMPTS, gen_length=16, **options)
        assert together.start.tolist() == [0, 9, 5]
        for i, prompt in enumerate(PROMPTS):
            alone = quiet(dlm, prompt, gen_length=16, **options)
            first = int(together.start[i])
            assert torch.equal(together.tokens[i, first:], alone.tokens[0])
            assert torch.equal(together.committed_at[i, first:], alone.committed_at[0])

    def test_what_stands_in_the_padding_does_not_matter(self, llada):
        ours, theirs = (quiet(dlm, PROMPTS, gen_length=16) for dlm in (llada, with_spec(llada, pad_id=5)))
        assert torch.equal(ours.tokens[:, 11:], theirs.tokens[:, 11:])


def with_spec(dlm, **changes):
    """The same model with other facts."""
    changed = copy.copy(dlm)
    changed.spec = replace(dlm.spec, **changes)
    return changed


@pytest.mark.gpu
@pytest.mark.parametrize(
    "policy", [dl.Dense(), dl.PulseCol(0.5, group_size=4), dl.RandomColumns(0.5)], ids=str
)
def test_runs_on_a_gpu_and_hands_back_tensors_of_the_cpu(policy):
    dlm = dl.random_model("llada", hidden=32, heads=4, vocab=64, device="cuda")
    out = quiet(dlm, PROMPTS, gen_length=16, policy=policy, cfg_scale=1.0, history=True)
    assert {t.device.type for t in (out.tokens, out.start, out.committed_at, out.history)} == {"cpu"}
    # An untrained model may predict the mask itself, which decides nothing.
    undecided = out.committed_at[:, 11:] < 0
    assert (out.tokens[:, 11:][undecided] == dlm.spec.mask_id).all()
    assert undecided.float().mean() < 0.5


class TestRecords:
    def test_history_holds_the_state_entering_each_step(self, llada):
        out = quiet(llada, PROMPTS[0], gen_length=16, steps=4, history=True)
        assert out.history.shape == (4, 1, 27)
        assert (out.history[0, :, 11:] == llada.spec.mask_id).all()
        after = torch.cat([out.history[1:], out.tokens[None]])
        for step in range(4):
            changed = out.committed_at == step
            assert torch.equal(after[step], torch.where(changed, out.tokens, out.history[step]))
            assert changed.sum() == out.timings["committed"][step] == 4

    def test_history_is_off_by_default(self, llada):
        assert quiet(llada, PROMPTS[0], gen_length=4).history is None

    def test_prompt_is_kept_and_never_committed(self, llada):
        out = quiet(llada, PROMPTS[0], gen_length=16)
        assert torch.equal(out.tokens[0, :11], PROMPTS[0])
        assert (out.committed_at[:, :11] == -1).all()
        assert sorted(out.committed_at[0, 11:].tolist()) == list(range(16))

    def test_timings_have_a_row_for_each_step(self, llada):
        out = quiet(llada, PROMPTS[0], gen_length=16, steps=8, policy=dl.PulseCol(0.5, 4, refresh_count=1))
        assert list(out.timings.columns) == ["step", "kind", "ms", "committed"]
        assert out.timings["step"].tolist() == list(range(8))
        assert out.timings["kind"].tolist() == ["refresh"] + ["sparse"] * 7
        assert (out.timings["ms"] > 0).all()
        kinds = out.ms_by_kind()
        assert kinds["count"].to_dict() == {"refresh": 1, "sparse": 7}
        pd.testing.assert_series_equal(
            kinds["sum"].sort_index(), out.timings.groupby("kind")["ms"].sum(), check_names=False
        )

    def test_the_seed_decides_all_chance(self, llada):
        sampler = dl.LowConfidence(block_length=16, temperature=1.0)
        first, again, other = (
            quiet(llada, PROMPTS[0], gen_length=16, sampler=sampler, seed=seed).tokens for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_the_global_generator_is_left_alone(self, llada):
        before = torch.get_rng_state()
        sampler = dl.LowConfidence(block_length=16, temperature=1.0)
        quiet(llada, PROMPTS[0], gen_length=16, sampler=sampler, policy=dl.RandomColumns(0.5, 4))
        assert torch.equal(torch.get_rng_state(), before)

    def test_defaults_follow_the_family(self, llada, dream, twin):
        samplers = [quiet(dlm, PROMPTS[1], gen_length=8).sampler for dlm in (llada, dream, twin)]
        assert samplers == [dl.LowConfidence(block_length=8), dl.DreamSampler(), dl.LeftToRight()]

    def test_repr_says_what_was_run(self, llada):
        text = repr(quiet(llada, PROMPTS[0], gen_length=16, policy=dl.PulseCol()))
        assert all(word in text for word in ("PulseCol 80%", "LowConfidence", "11 + 16 tokens", "16 steps"))

    def test_progress_can_be_silenced(self, llada, capsys, monkeypatch):
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
        quiet(llada, PROMPTS[0], gen_length=4)
        assert capsys.readouterr() == ("", "")


class TestRecorder:
    def test_is_told_of_every_step_and_layer(self, llada):
        recorder = Recorder()
        quiet(llada, PROMPTS[0], gen_length=4, steps=2, recorder=recorder)
        one_step = ["begin", "observe", "observe", "end"]
        assert recorder.calls == [(name, step) for step in range(2) for name in one_step]

    def test_gets_confidences_of_the_generation_region(self, llada):
        recorder = Recorder()
        out = quiet(llada, PROMPTS[0], gen_length=4, recorder=recorder, history=True)
        confidence, committed, kind, ms = recorder.ends[0]
        entering = out.history[0, 0].to(llada.device)
        expected = reference.predictions(llada, entering).softmax(-1).amax(-1)[11:]
        torch.testing.assert_close(confidence[0, 11:].cpu(), expected.float().cpu())
        assert confidence[:, :11].isnan().all()
        assert torch.equal(committed.cpu(), out.committed_at == 0)
        assert (kind, ms) == ("dense", out.timings["ms"][0])

    def test_autoregressive_confidence_is_of_the_next_token_only(self, twin):
        recorder = Recorder()
        quiet(twin, PROMPTS[0], gen_length=4, recorder=recorder)
        known = torch.stack([~confidence[0].isnan() for confidence, *_ in recorder.ends])
        assert known.nonzero().tolist() == [[step, 11 + step] for step in range(4)]

    def test_guidance_shows_both_passes(self, llada):
        recorder = Recorder()
        quiet(llada, PROMPTS[0], gen_length=4, cfg_scale=1.0, recorder=recorder)
        assert recorder.shapes == ((2, 4, 15, 8), (2, 2, 15, 8))

    @pytest.mark.parametrize("where", ["begin", "observe", "end"])
    @pytest.mark.parametrize("finished", [0, 3])
    def test_interruption_keeps_the_finished_steps(self, llada, where, finished):
        whole = quiet(llada, PROMPTS[0], gen_length=16, history=True)
        recorder = Recorder(where, at=finished)
        out = quiet(llada, PROMPTS[0], gen_length=16, history=True, recorder=recorder)
        assert out.interrupted
        assert not whole.interrupted
        assert len(out.timings) == len(out.history) == finished
        assert torch.equal(out.tokens, whole.history[finished])
        assert (out.committed_at == UNDECIDED).sum() == 16 - finished
        assert "interrupted" in repr(out)


class TestRefusals:
    """What cannot work is refused before the model is run, and the message says what would."""

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"gen_length": 0}, ValueError, "gen_length=0 must be at least 1"),
            ({"gen_length": 64.0}, TypeError, "gen_length=64.0 is a float; expected an int"),
            ({"gen_length": 8, "steps": 0}, ValueError, "steps=0 must be at least 1"),
            (
                {"gen_length": 128, "steps": 10},
                ValueError,
                "steps=10 must be divisible by the number of blocks 4 (gen_length 128 / block_length 32);"
                " try 8 or 12",
            ),
            ({"gen_length": 128, "steps": 2}, ValueError, "try 4"),
            (
                {"gen_length": 100, "sampler": dl.LowConfidence(block_length=32)},
                ValueError,
                "gen_length=100 must be divisible by block_length=32; try 96 or 128",
            ),
            ({"sampler": "low_confidence"}, TypeError, "sampler='low_confidence' is a str"),
            (
                {"policy": dl.LowConfidence()},
                TypeError,
                "is a LowConfidence; expected a policy such as Dense()",
            ),
            ({"policy": dl.PulseCol}, TypeError, "expected a policy such as Dense()"),
            ({"sampler": dl.LeftToRight()}, ValueError, "needs an autoregressive one"),
            ({"cfg_scale": -1.0}, ValueError, "cfg_scale=-1.0 must not be negative"),
            (
                {"gen_length": 4096},
                ValueError,
                "a prompt of 11 tokens and gen_length=4096 exceed the 4096 positions",
            ),
            ({"gen_length": 4096}, ValueError, "generate at most 4085 tokens"),
        ],
    )
    def test_arguments_that_cannot_work(self, llada, monkeypatch, options, error, message):
        monkeypatch.setattr(llada.model, "forward", unexpected)
        with pytest.raises(error, match=re.escape(message)):
            quiet(llada, PROMPTS[0], **options)

    def test_diffusion_samplers_on_an_autoregressive_model(self, twin):
        with pytest.raises(ValueError, match=r"autoregressive.*use LeftToRight\(\)"):
            quiet(twin, PROMPTS[0], gen_length=4, sampler=dl.LowConfidence(block_length=4))

    def test_guidance_of_an_autoregressive_model(self, twin):
        with pytest.raises(ValueError, match="has no mask token"):
            quiet(twin, PROMPTS[0], gen_length=4, cfg_scale=1.0)

    def test_more_steps_than_an_autoregressive_model_takes(self, twin):
        with pytest.raises(ValueError, match="steps=8 must equal gen_length=4"):
            quiet(twin, PROMPTS[0], gen_length=4, steps=8)

    def test_sparse_policies_on_an_autoregressive_model(self, twin):
        for policy in (dl.PulseCol(), dl.RandomColumns()):
            with pytest.raises(ValueError, match="is causal"):
                quiet(twin, PROMPTS[0], gen_length=4, policy=policy)

    def test_a_missing_mask_token(self, llada):
        with pytest.raises(ValueError, match="names no mask token"):
            quiet(with_spec(llada, mask_id=None), PROMPTS[0], gen_length=4)

    def test_nan_logits_name_the_step(self, llada, monkeypatch):
        head = llada.model.lm_head
        monkeypatch.setattr(head, "weight", torch.nn.Parameter(head.weight * torch.nan))
        with pytest.raises(DlmLensError, match="step 0 of 4: the model returned NaN logits"):
            quiet(llada, PROMPTS[0], gen_length=4)


def unexpected(*_, **__):
    raise AssertionError("the model was run")
