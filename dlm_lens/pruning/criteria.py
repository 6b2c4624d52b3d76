"""Which weights matter least: by their size alone, and by their size times what comes in (Wanda)."""

from __future__ import annotations

from torch import Tensor

from dlm_lens.pruning.amount import Amount, pruned_mask


def magnitude(weight: Tensor, amount: Amount) -> Tensor:
    """``weight`` [out, in] without the smallest of its absolute values, over the whole matrix.

    The oldest baseline: it looks at no activations.
    """
    return weight.masked_fill(pruned_mask(weight.float().abs(), amount, per_row=False), 0)


def wanda(weight: Tensor, norms: Tensor, amount: Amount) -> Tensor:
    """``weight`` [out, in] without the lowest |W_ij| · ‖X_j‖₂ of every output row (Wanda, arXiv 2306.11695).

    ``norms`` [in] is ‖X_j‖₂, the norm of every input over all calibration tokens. Weights that stay are not changed.
    """
    return weight.masked_fill(pruned_mask(wanda_scores(weight, norms), amount, per_row=True), 0)


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| · ‖X_j‖₂, float32 [out, in]."""
    return weight.float().abs() * norms.float()
