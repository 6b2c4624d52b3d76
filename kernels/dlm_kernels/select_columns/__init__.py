"""The best K keys of each list of scores."""

import torch
from torch import Tensor

from dlm_kernels.common import choose
from dlm_kernels.select_columns.reference import select_highest

__all__ = ["select_columns"]


def select_columns(scores: Tensor, k: int, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """Indices of the ``k`` highest scores along the last dimension, in ascending order; ties go to the lower index.

    Keys with a score of 0 (padding) are never selected, so a row may select fewer than ``k``: the first
    ``counts`` entries of a row are its selection, and the rest repeat the last of them (0 if there is none), so
    that every entry is a valid index. The result depends on the scores only, not on device or order of work.

    Parameters
    ----------
    scores : [..., L] float32, float16 or bfloat16, not negative, no NaN
    k : how many to select, 1 … L
    impl : "auto" or "reference"

    Returns
    -------
    columns : int32 [..., k]
    counts : int32 [...]
    """
    choose("select_columns", impl, ("reference",))
    if scores.ndim < 1 or 0 in scores.shape or not scores.is_floating_point():
        raise ValueError(
            f"scores must be non-empty floats [..., L], got {scores.dtype} {tuple(scores.shape)}"
        )
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k must lie in 1 … {scores.shape[-1]} (the number of keys), got {k}")
    low = scores.amin()
    if torch.isnan(low) or low < 0:
        raise ValueError(f"scores must not be negative or NaN, the lowest is {float(low)}")
    return select_highest(scores.float(), k)
