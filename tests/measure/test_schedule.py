import re
from dataclasses import dataclass, replace

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.schedule import (
    StepWork,
    attention_flops,
    other_flops,
    replay,
    schedule_of,
    step_flops,
)
from dlm_lens.measure.shapes import SHAPES
from dlm_lens.models import Spec
from dlm_lens.policies import Policy, PolicyRun, RunInfo, StepPlan

# One layer of two heads of 4: every product below can be done by hand.
SPEC = Spec(
    name="toy",
    family="llada",
    mask_id=9,
    eos_id=8,
    pad_id=8,
    bos_id=None,
    logit_shift=False,
    causal=False,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=4,
    hidden=8,
    mlp=16,
    vocab=10,
    max_length=1024,
)


def whole(kind: str, keys: float = 10) -> StepWork:
    return StepWork(kind, 10, keys)


def test_operations_of_a_dense_step_by_hand():
    # q·kᵀ: 2 heads × 10 queries × 10 keys × 4 = 800 multiply-adds, p·v as many.
    assert attention_flops(SPEC, 10, 10) == 2 * 1600
    # q 8×8, k and v 8×4 each, output 8×8, MLP three of 8×16: 576 weights for 10 positions; logits 8×10 for 5.
    assert other_flops(SPEC, 10, 5) == 2 * (10 * 576 + 5 * 80)


def test_amdahl_bound_by_hand():
    policy = dl.PulseCol(sparsity=0.75, group_size=2)
    works = [whole("refresh")] * 2 + [whole("sparse", 2.5)] * 6
    found = schedule_of(policy, works, SPEC, length=10, gen_length=5)
    attention, rest = 3200, 12320
    assert found.attention_share == pytest.approx(attention / (attention + rest))
    assert found.bound == pytest.approx(
        8 * (attention + rest) / (8 * rest + 2 * attention + 6 * attention / 4)
    )


def test_a_step_that_computes_few_positions_by_hand():
    """Three queries over seven keys, and the logits of the three."""
    attention = 4 * 3 * 7 * 2 * 4
    rest = 2 * (3 * 576 + 3 * 80)
    assert step_flops(SPEC, StepWork("cached", 3, 7), gen_length=5) == attention + rest


def test_a_causal_model_needs_half_the_attention_and_one_position_of_logits():
    causal = replace(SPEC, causal=True, mask_id=None)
    assert attention_flops(causal, 10, 10) == attention_flops(SPEC, 10, 10) / 2
    assert attention_flops(causal, 1, 10) == attention_flops(SPEC, 1, 10)
    assert step_flops(causal, whole("dense"), 5) == 1600 + 2 * (10 * 576 + 80)


@pytest.mark.parametrize(
    "policy",
    [dl.Dense(), dl.Dense("flash"), dl.PulseCol(sparsity=0.0), dl.RandomColumns(sparsity=0.0)],
    ids=str,
)
def test_nothing_left_out_gives_nothing(policy):
    assert dl.schedule(policy, 5, SPEC, prompt_length=20, gen_length=10).bound == 1


def test_steps_are_counted_by_kind_without_a_model():
    found = dl.schedule(dl.PulseCol(refresh_count=4), 40, SPEC, prompt_length=20, gen_length=40)
    assert found.kinds == {"refresh": 4, "sparse": 36}
    assert found.label == "PulseCol 80%"
    assert [entry.positions for entry in found.by_kind] == [60, 60]
    assert [entry.keys for entry in found.by_kind] == pytest.approx([60, 12])
    assert sum(entry.flops for entry in found.by_kind) == pytest.approx(found.flops)


@dataclass(frozen=True)
class NextWords(Policy):
    """Computes the ``count`` masked positions that come next, filled up with L, and attends to what is decided."""

    count: int = 4
    label = "Next words"

    def start(self, info: RunInfo) -> PolicyRun:
        return NextWordsRun(self.count, info)


class NextWordsRun(PolicyRun):
    def __init__(self, count: int, info: RunInfo) -> None:
        self.count, self.info, self.states = count, info, []

    def plan(self, step: int, tokens: torch.Tensor) -> StepPlan:
        self.states.append(tokens)
        masked = [row.eq(SPEC.mask_id).nonzero()[:, 0][: self.count] for row in tokens]
        queries = torch.full((len(tokens), self.count), self.info.length)
        for row, positions in zip(queries, masked, strict=True):
            row[: len(positions)] = positions
        keys = int(tokens.ne(SPEC.mask_id).sum(-1).max())
        return StepPlan(step, "cached", queries=queries, keys=keys)

    def attend(self, *_):
        pytest.fail("planning needs no attention")


def test_policies_that_look_at_the_text_plan_on_a_simulated_one():
    """Six tokens in three steps: two more are decided before every step, from left to right."""
    found = dl.schedule(NextWords(4), 3, SPEC, prompt_length=10, gen_length=6)
    (cached,) = found.by_kind
    assert (cached.kind, cached.steps) == ("cached", 3)
    assert cached.positions == pytest.approx((4 + 4 + 2) / 3)  # the last two of the last step are filling
    assert cached.keys == pytest.approx((10 + 12 + 14) / 3)
    works = [StepWork("cached", 4, 10), StepWork("cached", 4, 12), StepWork("cached", 2, 14)]
    assert found.flops == sum(step_flops(SPEC, work, 6) for work in works)


def test_replaying_shows_the_states_that_the_run_went_through(random_dlm):
    policy = dl.PulseCol(sparsity=0.5, group_size=4, refresh_count=2)
    done = dl.denoise(random_dlm, torch.arange(1, 9), gen_length=8, steps=4, history=True, policy=policy)
    info = RunInfo(random_dlm.spec, 8, 8, 4, 1, None, torch.device("cpu"), 0)
    seen = NextWordsRun(2, info)

    class Watching(NextWords):
        def start(self, info):
            return seen

    list(replay(Watching(), info, done.tokens, done.committed_at, 4))
    assert torch.equal(torch.stack(seen.states), done.history)
    kinds = [work.kind for work in replay(policy, info, done.tokens, done.committed_at, 4)]
    assert kinds == list(done.timings["kind"])


def test_shapes_are_taken_from_models_and_by_name(tiny):
    arguments = {"prompt_length": 448, "gen_length": 64}
    named = dl.schedule(dl.Dense(), 64, "tiny", **arguments)
    assert named == dl.schedule(dl.Dense(), 64, tiny, **arguments)
    assert named == dl.schedule(dl.Dense(), 64, tiny.spec, **arguments)
    assert SHAPES["tiny"] == tiny.spec


def test_llada_at_64k_can_gain_what_its_authors_say():
    """PulseCol's published 1.95× at 65,536 positions, 1,024 steps and 80% lies below the bound."""
    found = dl.schedule(dl.PulseCol.llada(), 1024, "llada-8b", prompt_length=64512, gen_length=1024)
    assert found.attention_share == pytest.approx(0.711, abs=0.01)
    assert 1.95 < found.bound < 2.6


def test_the_report_reads_as_a_table():
    text = repr(dl.schedule(dl.PulseCol.llada(), 1024, "llada-8b", prompt_length=64512, gen_length=1024))
    assert "PulseCol 80% on llada-8b: 65,536 positions, 1,024 steps" in text
    assert re.search(r"refresh +16 +65,536 +65,536 +3\.17 PFLOP\n", text)
    assert re.search(r"sparse +1,008 +65,536 +13,107 +1\.37 PFLOP\n", text)
    assert "1.43 EFLOP instead of 3.24 EFLOP: at most 2.27× faster" in text
    assert "kFLOP" in repr(dl.schedule(dl.Dense(), 1, SPEC, prompt_length=1, gen_length=1))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": "llada-9b"}, ValueError, "'llada-9b'.*'llada-8b', 'dream-7b'"),
        ({"model": 8}, TypeError, "model=8 is a int"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"gen_length": 0}, ValueError, "gen_length=0"),
        ({"prompt_length": -1}, ValueError, "prompt_length=-1"),
    ],
)
def test_what_cannot_be_planned_is_refused(changed, error, message):
    arguments = {"policy": dl.Dense(), "steps": 4, "model": SPEC, "prompt_length": 4, "gen_length": 4}
    with pytest.raises(error, match=message):
        dl.schedule(**(arguments | changed))


def test_the_bound_grows_with_the_context_towards_that_of_attention_alone():
    policy = dl.RandomColumns(sparsity=0.8)
    bounds = [
        dl.schedule(policy, 1, SPEC, prompt_length=length - 1, gen_length=1).bound
        for length in (10, 1000, 100_000)
    ]
    assert bounds == sorted(bounds)
    assert 4.9 < bounds[-1] < 5
