"""The best keys of each list of scores: a number of them, or as many as hold a share of the mass."""

import torch
from torch import Tensor

from dlm_kernels.common import choose, debug_checks
from dlm_kernels.select_columns.reference import select_highest

__all__ = ["select_columns"]


def select_columns(
    scores: Tensor, k: int | None = None, *, top_p: float | None = None, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Indices of the highest scores along the last dimension, in ascending order; ties go to the lower index.

    Takes the ``k`` highest, or with ``top_p`` the fewest that together reach that share of the row's sum, at most
    ``k``. Keys with a score of 0 (padding) are never selected, so a row may select fewer than ``k``: the first
    ``counts`` entries of a row are its selection, and the rest repeat the last of them (0 if there is none), so
    that every entry is a valid index. With ``k`` alone the result depends on the scores only, not on device or order
    of work; a share of the mass is reached up to the rounding of a float32 sum.

    Parameters
    ----------
    scores : [..., L] float32, float16 or bfloat16, not negative, no NaN
    k : how many to select, or at most to select, 1 … L; with ``top_p`` L by default
    top_p : share of the mass to keep, in (0, 1]
    impl : "auto", "triton" or "reference"

    Returns
    -------
    columns : int32 [..., k]
    counts : int32 [...]
    """
    impl = choose("select_columns", impl, scores, "scores")
    if scores.ndim < 1 or 0 in scores.shape or not scores.is_floating_point():
        raise ValueError(
            f"scores must be non-empty floats [..., L], got {scores.dtype} {tuple(scores.shape)}"
        )
    if k is None and top_p is None:
        raise ValueError("give k, top_p, or both")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], a share of the mass, got {top_p}")
    k = scores.shape[-1] if k is None else k
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k must lie in 1 … {scores.shape[-1]} (the number of keys), got {k}")
    if debug_checks(scores):
        low = scores.amin()
        if torch.isnan(low) or low < 0:
            raise ValueError(
                f"scores {tuple(scores.shape)} must not be negative or NaN, the lowest is {float(low)}"
            )
    if impl == "triton":
        from dlm_kernels.select_columns.triton_select import select

        return select(scores.float().contiguous(), k, top_p)
    return select_highest(scores.float(), k, top_p)
