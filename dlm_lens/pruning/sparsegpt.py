"""SparseGPT (arXiv 2301.00774): prune column after column, and let those that follow make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from dlm_lens.pruning.amount import Amount, Pattern, pruned_mask


def sparsegpt(
    weight: Tensor, hessian: Tensor, amount: Amount, *, block: int = 128, damping: float = 0.01
) -> Tensor:
    """``weight`` [out, in] pruned and reconstructed: ‖(W − W′) X‖² is kept low, with X the inputs of calibration.

    Columns are gone through from left to right. A weight that is pruned leaves an error, which the columns to its right
    take over as far as their inputs correlate with its own: for column j and the columns F = {j, j+1, …} not yet done,
    W_F loses w_j / [H_FF⁻¹]_jj · [H_FF⁻¹]_j. What costs least goes, by w_j² / [H_FF⁻¹]_jj: a :class:`Share` is taken of
    every ``block`` of columns, all rows together, when its turn comes, and a :class:`Pattern` of every group of M.

    Parameters
    ----------
    hessian : [in, in], Σ x xᵀ over the calibration tokens, times any factor
    block : columns at a time; rounded down to a multiple of M
    damping : share of the mean of the diagonal that is added to it

    Inputs that never were anything but zero (dead columns) lose all their weights. Computes in float32, the inverse in
    float64; returns the dtype of ``weight``. Raises ``ValueError`` for a Hessian that holds NaN or infinity.
    """
    inputs = weight.shape[1]
    group = inputs
    if isinstance(amount, Pattern):
        amount.check(inputs, "a matrix")
        group, block = amount.among, max(block // amount.among, 1) * amount.among
    dead = hessian.diagonal() == 0
    work = weight.float().masked_fill(dead, 0)
    factor = inverse_factor(hessian, damping).float()
    for first in range(0, inputs, block):
        columns = slice(first, min(first + block, inputs))
        own, later = factor[columns, columns], factor[columns, columns.stop :]
        part, errors = _prune_block(work[:, columns].clone(), own, amount, group)
        work[:, columns] = part
        work[:, columns.stop :] -= errors @ later
    return work.to(weight.dtype)


def _prune_block(part: Tensor, factor: Tensor, amount: Amount, group: int) -> tuple[Tensor, Tensor]:
    """A block of columns pruned [out, n], and w / √[H⁻¹]_jj of what was: what later blocks are to make up for."""
    width = part.shape[1]
    group = min(group, width)
    errors = torch.zeros_like(part)
    pruned = torch.zeros_like(part, dtype=torch.bool)
    diagonal = factor.diagonal()
    for column in range(width):
        if column % group == 0:
            turn = slice(column, column + group)
            pruned[:, turn] = pruned_mask((part[:, turn] / diagonal[turn]) ** 2, amount, per_row=False)
        error = part[:, column].masked_fill(~pruned[:, column], 0) / factor[column, column]
        part[:, column:] -= error[:, None] * factor[column, column:]
        errors[:, column] = error
    return part.masked_fill_(pruned, 0), errors


def damped(hessian: Tensor, damping: float) -> Tensor:
    """``hessian`` in float64, invertible: 1 on the diagonal of dead inputs, ``damping`` · mean of the diagonal added.

    Raises ``ValueError`` for one that holds NaN or infinity.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError(
            "the inputs of calibration hold NaN or infinity; check the model's weights, and its dtype"
        )
    result = hessian.double()
    diagonal = result.diagonal()
    ridge = damping * diagonal.mean()
    fixed = torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal) + ridge
    return result - torch.diag_embed(diagonal) + torch.diag_embed(fixed)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper triangular U, float64, with H⁻¹ = Uᵀ U for the damped H.

    Its row j is [H_FF⁻¹]_j / √[H_FF⁻¹]_jj with F = {j, j+1, …}, all that going through the columns needs.
    """
    lower = torch.linalg.cholesky(damped(hessian, damping))
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
