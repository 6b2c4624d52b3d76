"""Columns of a weight matrix pruned one after the other, those to their right making up for them."""

import torch
from torch import Tensor

from dlm_kernels.common import choose
from dlm_kernels.prune_columns.reference import prune

__all__ = ["prune_columns"]


def prune_columns(
    weight: Tensor,
    factor: Tensor,
    *,
    gone: Tensor | None = None,
    pattern: tuple[int, int] | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Prune a block of columns as SparseGPT does (arXiv 2301.00774), rows independently of each other.

    From left to right: a weight w that goes from column j leaves the error e = w / U_jj, and e · U_j is taken from its
    row, which changes the columns from j on. With a ``pattern`` what goes is decided when the turn of its group comes,
    by what the columns before have made of it: the lowest of (w / U_jj)², of equal ones the first.

    Parameters
    ----------
    weight : float32 [out, n]
    factor : float32 [n, n], upper triangular U with a positive diagonal
    gone : bool [out, n], what goes; or
    pattern : ``(N, M)``: N of every M neighbouring columns stay in each row, with M dividing n
    impl : "auto", "triton" or "reference"

    Returns the pruned block [out, n] and the errors [out, n], zero where nothing went. Raises ``ValueError`` for shapes
    or types that do not fit, and unless one of ``gone`` and ``pattern`` is given.
    """
    impl = choose("prune_columns", impl, weight, "weight")
    if weight.ndim != 2 or weight.dtype != torch.float32 or 0 in weight.shape:
        raise ValueError(
            f"weight must be a non-empty float32 [out, n], got {weight.dtype} {tuple(weight.shape)}"
        )
    width = weight.shape[1]
    if factor.shape != (width, width) or factor.dtype != torch.float32 or factor.device != weight.device:
        raise ValueError(
            f"factor must be float32 {(width, width)} on {weight.device}, got {factor.dtype} {tuple(factor.shape)} on"
            f" {factor.device}"
        )
    if (gone is None) == (pattern is None):
        raise ValueError(
            f"give either gone or pattern, got {pattern=} and gone {'too' if pattern else 'neither'}"
        )
    if pattern is not None and not (0 < pattern[0] < pattern[1] and width % pattern[1] == 0):
        raise ValueError(
            f"pattern={pattern} must be (N, M) with 0 < N < M and M dividing the {width} columns"
        )
    if gone is not None and (
        gone.shape != weight.shape or gone.dtype != torch.bool or gone.device != weight.device
    ):
        raise ValueError(
            f"gone must be bool {tuple(weight.shape)} on {weight.device}, got {gone.dtype} {tuple(gone.shape)} on"
            f" {gone.device}"
        )
    if impl == "triton":
        from dlm_kernels.prune_columns.triton_prune import prune as prune_them
    else:
        prune_them = prune
    return prune_them(weight, factor, gone, pattern)
