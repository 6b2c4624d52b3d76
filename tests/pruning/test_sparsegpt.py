"""SparseGPT against its definition in float64: every inverse made anew, column by column."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm_lens.pruning.amount import Pattern, Share
from dlm_lens.pruning.criteria import wanda
from dlm_lens.pruning.sparsegpt import sparsegpt as sparsegpt_of


def column_by_column(weight: Tensor, hessian: Tensor, amount, block: int, damping: float) -> Tensor:
    """The definition: W_F −= w_j / [H_FF⁻¹]_jj · [H_FF⁻¹]_j for every pruned w_j, F the columns from j on."""
    rows, inputs = weight.shape
    w, h = weight.double().clone(), hessian.double().clone()
    mean = h.diagonal().mean().item()
    for j in range(inputs):
        if h[j, j] == 0:
            h[j, j] = 1.0
            w[:, j] = 0
        h[j, j] += damping * mean
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(inputs)]
    gone = torch.zeros(rows, inputs, dtype=torch.bool)
    turn = amount.among if isinstance(amount, Pattern) else block
    for j in range(inputs):
        if j % turn == 0:
            columns = range(j, min(j + turn, inputs))
            score = {(i, c): (w[i, c] ** 2 / inverses[c][0, 0]).item() for i in range(rows) for c in columns}
            if isinstance(amount, Pattern):
                for i in range(rows):
                    for c in sorted(columns, key=lambda c: score[i, c])[: amount.among - amount.kept]:
                        gone[i, c] = True
            else:
                for i, c in sorted(score, key=lambda at: score[at])[: round(amount.sparsity * len(score))]:
                    gone[i, c] = True
        for i in range(rows):
            if gone[i, j]:
                w[i, j:] -= w[i, j] / inverses[j][0, 0] * inverses[j][0]
    return w.masked_fill(gone, 0)


def sparsegpt(weight: Tensor, *how, **more) -> Tensor:
    """Of one matrix alone."""
    (result,) = sparsegpt_of([weight], *how, **more)
    return result


def inputs_of(tokens: int, width: int) -> Tensor:
    """Correlated, as the inputs of a layer are."""
    return torch.randn(tokens, width) @ torch.randn(width, width)


@settings(max_examples=10)
@given(
    st.integers(1, 5),
    st.sampled_from([8, 16]),
    st.sampled_from([Share(0.5), Share(0.75), Share(0.0), Pattern(2, 4), Pattern(4, 8)]),
    st.sampled_from([8, 16, 128]),
)
def test_equals_the_definition(rows, width, amount, block):
    weight, x = torch.randn(rows, width), inputs_of(3 * width, width)
    expected = column_by_column(weight, x.T @ x, amount, block, 0.01)
    result = sparsegpt(weight, x.T @ x, amount, block=block)
    assert torch.equal(result == 0, expected == 0)
    assert torch.allclose(result.double(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("amount", [Share(0.5), Pattern(2, 4)], ids=str)
def test_matrices_of_one_input_are_pruned_as_each_alone(amount):
    """A share is taken of every matrix, however much smaller its weights are than the other's."""
    weights, x = [torch.randn(6, 16), 0.01 * torch.randn(3, 16).double()], inputs_of(60, 16)
    results = sparsegpt_of(weights, x.T @ x, amount, block=8)
    for weight, result in zip(weights, results, strict=True):
        alone = sparsegpt(weight, x.T @ x, amount, block=8)
        assert result.dtype == weight.dtype
        assert torch.equal(result == 0, alone == 0)
        assert torch.allclose(result, alone, rtol=1e-4, atol=1e-6)
        assert (result == 0).float().mean() == 0.5


def test_reconstructs_what_choosing_alone_cannot():
    weight = torch.randn(24, 32)
    x = torch.randn(400, 8) @ torch.randn(8, 32) + 0.1 * torch.randn(400, 32)
    for amount in (Share(0.5), Pattern(2, 4)):
        errors = [
            ((weight - pruned) @ x.T).norm()
            for pruned in (sparsegpt(weight, x.T @ x, amount), wanda(weight, x.norm(dim=0), amount))
        ]
        assert errors[0] < 0.7 * errors[1]


def test_dead_inputs_lose_their_weights_and_harm_nobody():
    weight, x = torch.randn(6, 16), inputs_of(60, 16)
    x[:, [3, 9]] = 0
    result = sparsegpt(weight, x.T @ x, Share(0.25))
    assert (result[:, [3, 9]] == 0).all()
    assert torch.isfinite(result).all()
    assert torch.allclose(
        result.double(), column_by_column(weight, x.T @ x, Share(0.25), 128, 0.01), atol=1e-4
    )


def test_the_factor_of_the_hessian_plays_no_part_and_the_dtype_stays():
    weight, x = torch.randn(4, 8).bfloat16(), inputs_of(40, 8)
    result = sparsegpt(weight, x.T @ x, Share(0.5))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, sparsegpt(weight, 4 * x.T @ x, Share(0.5)))


def test_a_block_holds_whole_groups():
    weight, x = torch.randn(3, 12), inputs_of(40, 12)
    result = sparsegpt(weight, x.T @ x, Pattern(1, 3), block=4)
    assert ((result != 0).unflatten(1, (4, 3)).sum(-1) == 1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_activations_are_named(bad):
    hessian = torch.eye(4)
    hessian[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        sparsegpt(torch.randn(2, 4), hessian, Share(0.5))
