"""Magnitude and Wanda against a reading of their definitions with plain loops."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dlm_lens.pruning.amount import Pattern, Share
from dlm_lens.pruning.criteria import magnitude, wanda


@given(st.integers(1, 7), st.integers(1, 12), st.floats(0, 0.95))
def test_magnitude_prunes_the_smallest_of_the_matrix(rows, inputs, sparsity):
    weight = torch.randn(rows, inputs)
    sizes = sorted((abs(weight[i, j].item()), i, j) for i in range(rows) for j in range(inputs))
    expected = weight.clone()
    for _, i, j in sizes[: round(sparsity * weight.numel())]:
        expected[i, j] = 0
    assert torch.equal(magnitude(weight, Share(sparsity)), expected)


@given(st.integers(1, 7), st.integers(1, 12), st.integers(1, 20), st.floats(0, 0.95))
def test_wanda_prunes_the_lowest_of_every_row(rows, inputs, tokens, sparsity):
    weight, x = torch.randn(rows, inputs), torch.randn(tokens, inputs)
    expected = weight.clone()
    for i in range(rows):
        score = [
            (abs(weight[i, j]) * sum(x[t, j] ** 2 for t in range(tokens)) ** 0.5).item()
            for j in range(inputs)
        ]
        for j in sorted(range(inputs), key=lambda j: score[j])[: round(sparsity * inputs)]:
            expected[i, j] = 0
    assert torch.equal(wanda(weight, x.norm(dim=0), Share(sparsity)), expected)


def test_wanda_weighs_by_what_comes_in_also_within_patterns():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    norms = torch.tensor([10.0, 1.0, 1.0, 0.1])
    assert wanda(weight, norms, Pattern(2, 4)).tolist() == [[1.0, 0.0, 3.0, 0.0]]
    assert magnitude(weight, Pattern(2, 4)).tolist() == [[0.0, 0.0, 3.0, 4.0]]


def test_the_dtype_stays():
    assert magnitude(torch.randn(4, 4, dtype=torch.bfloat16), Share(0.5)).dtype == torch.bfloat16
