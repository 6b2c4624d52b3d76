"""SparseGPT (arXiv 2301.00774): prune column after column, and let those that follow make up for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dlm_kernels import prune_columns
from torch import Tensor

from dlm_lens.pruning.amount import Amount, Pattern, pruned_mask


def sparsegpt(
    weights: Sequence[Tensor], hessian: Tensor, amount: Amount, *, block: int = 128, damping: float = 0.01
) -> list[Tensor]:
    """``weights`` [out, in] with the same input, pruned and reconstructed: ‖(W − W′) X‖² of each is kept low.

    X are the inputs of calibration. Columns are gone through from left to right. A weight that is pruned leaves an
    error, which the columns to its right take over as far as their inputs correlate with its own: for column j and the
    columns F = {j, j+1, …} not yet done, W_F loses w_j / [H_FF⁻¹]_jj · [H_FF⁻¹]_j. What costs least goes, by w_j² /
    [H_FF⁻¹]_jj: a :class:`Share` is taken of every ``block`` of columns, all rows of a matrix together, when its turn
    comes, and a :class:`Pattern` of every group of M.

    Parameters
    ----------
    weights : matrices that have the same input, such as q, k and v: all rows use the inverse of one Hessian
    hessian : [in, in], Σ x xᵀ over the calibration tokens, times any factor
    block : columns at a time; rounded down to a multiple of M
    damping : share of the mean of the diagonal that is added to it

    Inputs that never were anything but zero (dead columns) lose all their weights. Computes in float32, the inverse in
    float64; returns the dtype of each. Raises ``ValueError`` for a Hessian that holds NaN or infinity.
    """
    inputs = hessian.shape[0]
    rows = [len(weight) for weight in weights]
    pattern = None
    if isinstance(amount, Pattern):
        amount.check(inputs, "a matrix")
        pattern, block = (amount.kept, amount.among), max(block // amount.among, 1) * amount.among
    dead = hessian.diagonal() == 0
    work = torch.cat([weight.float() for weight in weights]).masked_fill_(dead, 0)
    factor = inverse_factor(hessian, damping).float()
    for first in range(0, inputs, block):
        columns = slice(first, min(first + block, inputs))
        own, later = factor[columns, columns], factor[columns, columns.stop :]
        part, gone = work[:, columns], None
        if pattern is None:
            scores = (part / own.diagonal()) ** 2
            gone = torch.cat([pruned_mask(each, amount, per_row=False) for each in scores.split(rows)])
        part, errors = prune_columns(part, own, gone=gone, pattern=pattern)
        work[:, columns] = part
        work[:, columns.stop :] -= errors @ later
    parts = zip(work.split(rows), weights, strict=True)
    # Copies, for parts of one storage cannot be saved.
    return [part.to(weight.dtype, copy=True) for part, weight in parts]


def damped(hessian: Tensor, damping: float) -> Tensor:
    """``hessian`` in float64, invertible: 1 on the diagonal of dead inputs, ``damping`` · mean of the diagonal added.

    Raises ``ValueError`` for one that holds NaN or infinity.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError(
            "the inputs of calibration hold NaN or infinity; check the model's weights, and its dtype"
        )
    result = hessian.to(torch.float64, copy=True)
    diagonal = result.diagonal()
    ridge = damping * diagonal.mean()
    diagonal.masked_fill_(diagonal == 0, 1).add_(ridge)
    return result


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper triangular U, float64, with H⁻¹ = Uᵀ U for the damped H.

    Its row j is [H_FF⁻¹]_j / √[H_FF⁻¹]_jj with F = {j, j+1, …}, all that going through the columns needs.
    """
    lower = torch.linalg.cholesky(damped(hessian, damping))
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
