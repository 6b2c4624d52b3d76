import pytest

import dlm_lens as dl
from dlm_lens.measure import schedule
from dlm_lens.measure.schedule import attention_flops, other_flops, schedule_of
from dlm_lens.models import Spec

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


def test_operations_of_a_dense_step_by_hand():
    # q·kᵀ: 2 heads × 10 queries × 10 keys × 4 = 800 multiply-adds, p·v as many.
    assert attention_flops(SPEC, 10) == 2 * 1600
    # q 8×8, k and v 8×4 each, output 8×8, MLP three of 8×16: 576 weights for 10 positions; logits 8×10 for 5.
    assert other_flops(SPEC, 10, 5) == 2 * (10 * 576 + 5 * 80)


def test_amdahl_bound_by_hand():
    policy = dl.PulseCol(sparsity=0.75, group_size=2)
    kinds = ["refresh"] * 2 + ["sparse"] * 6
    found = schedule_of(policy, kinds, SPEC, length=10, gen_length=5)
    attention, rest = 3200, 12320
    assert found.attention_share == pytest.approx(attention / (attention + rest))
    assert found.bound == pytest.approx(
        8 * (attention + rest) / (8 * rest + 2 * attention + 6 * attention / 4)
    )


@pytest.mark.parametrize("policy", [dl.Dense(), dl.PulseCol(sparsity=0.0), dl.RandomColumns(sparsity=0.0)])
def test_nothing_left_out_gives_nothing(policy):
    assert schedule(policy, SPEC, prompt_length=20, gen_length=10, steps=5).bound == 1


def test_steps_are_counted_by_kind_without_a_model():
    found = schedule(dl.PulseCol(refresh_count=4), SPEC, prompt_length=20, gen_length=40, steps=40)
    assert found.kinds == {"refresh": 4, "sparse": 36}
    assert found.label == "PulseCol 80%"
    assert found.density == pytest.approx(0.2)


def test_the_bound_grows_with_the_context_towards_that_of_attention_alone():
    policy = dl.RandomColumns(sparsity=0.8)
    bounds = [
        schedule_of(policy, ["sparse"], SPEC, length=length, gen_length=1).bound
        for length in (10, 1000, 100_000)
    ]
    assert bounds == sorted(bounds)
    assert 4.9 < bounds[-1] < 5
