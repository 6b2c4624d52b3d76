"""How much is pruned: exactly the share or N of every M, and always what scores lowest."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm_lens.pruning.amount import Pattern, Share, pruned_mask

ROWS = st.integers(1, 9)


@given(ROWS, st.integers(1, 17), st.floats(0, 0.99), st.booleans())
def test_a_share_goes_and_nothing_that_goes_outscores_what_stays(rows, inputs, sparsity, per_row):
    scores = torch.rand(rows, inputs)
    mask = pruned_mask(scores, Share(sparsity), per_row=per_row)
    for part, gone in zip(scores, mask, strict=True) if per_row else [(scores, mask)]:
        assert gone.sum() == round(sparsity * part.numel())
        if gone.any() and not gone.all():
            assert part[gone].max() <= part[~gone].min()


@given(ROWS, st.integers(1, 5), st.sampled_from([(2, 4), (4, 8), (1, 3)]))
def test_n_of_every_m_are_kept_the_best(rows, groups, pattern):
    kept, among = pattern
    scores = torch.rand(rows, groups * among)
    mask = pruned_mask(scores, Pattern(kept, among), per_row=False)
    for row in range(rows):
        for first in range(0, groups * among, among):
            part = scores[row, first : first + among].tolist()
            best = sorted(range(among), key=lambda i: -part[i])[:kept]
            assert [not gone for gone in mask[row, first : first + among]] == [
                i in best for i in range(among)
            ]


def test_of_equals_the_first_goes():
    mask = pruned_mask(torch.ones(2, 4), Share(0.5), per_row=True)
    assert mask.tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), True, "half"])
def test_a_share_lies_in_the_unit_interval(sparsity):
    with pytest.raises(ValueError, match=r"sparsity=.* must be in \[0, 1\)"):
        Share(sparsity)


@pytest.mark.parametrize("pattern", ["4:4", "0:4", "2", "2:4:8", "a:b", "-2:4", 0.5])
def test_patterns_are_two_numbers(pattern):
    with pytest.raises(ValueError, match="0 < N < M"):
        Pattern.parse(pattern)


def test_a_pattern_must_divide_the_inputs():
    assert Pattern.parse("4:8") == Pattern(4, 8)
    with pytest.raises(ValueError, match=r"4:8 needs inputs in multiples of 8, but .* has 12"):
        pruned_mask(torch.rand(2, 12), Pattern(4, 8), per_row=True)
